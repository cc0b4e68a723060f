"""Published runs on disk → the films that an evaluation is about, and what it writes, which is never overwritten."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pneumobatch import storage, tables
from pneumobatch.config import Job

Record = Mapping[str, Any]

COLUMNS = (
    "image_id", "uri", "status", "reason", "probability", "predicted_label", "threshold", "uncertain", "model_id",
    "run_id", "label", "patient", *tables.KEYED, "format", "age_years", "sex", "view", "manufacturer",
)  # fmt: skip
"""What an evaluation reads of a film, besides the subgroups of its label table."""

FEW_VALUES = {"status", "reason", "model_id", "run_id", "format", "sex", "view", "manufacturer"}
"""Columns of few different values: a million films name them by number."""


class Run(NamedTuple):
    """A published screening run, and the films of the scope that is evaluated."""

    record: dict[str, Any]
    """Its run record, `runs/<run_id>.json`."""
    predictions: pa.Table
    """One row an image: `COLUMNS` and subgroups, of `tables.prediction_schema`."""
    runs: int
    """Published runs that the films come from."""


def load(job: Job) -> Run:
    """Reads the run named by evaluation.run_id, or the latest published screening run under output.uri.

    With evaluation.scope = "model" its films are those of all published runs of the same model up to and including it;
    of an image that several runs hold, the row of the latest counts.

    Raises:
        ValueError: There is none, its record is no JSON object, or it lists no predictions.
    """
    record, earlier = _record(job)
    records = [*earlier, record] if job.evaluation.scope == "model" else [record]
    files = [storage.join(job.output.uri, path) for item in records for path in item["predictions"]]
    kept: list[NDArray[np.bool_]] | None = None
    # Side by side: a few years of nights are a thousand files, of which a store's each takes some answers.
    with ThreadPoolExecutor(8) as pool:
        if len(records) > 1:
            kept = _latest(list(pool.map(lambda uri: storage.read_table(uri, ["image_id"])["image_id"], files)))

        def latest(i: int) -> pa.Table:
            part = _read(files[i], COLUMNS, subgroups=True)
            return part if kept is None else part.filter(pa.array(kept[i]))

        parts = list(pool.map(latest, range(len(files))))
    if not parts:
        parts = [pa.schema([tables.prediction_schema([]).field(name) for name in COLUMNS]).empty_table()]
    return Run(record, pa.concat_tables(parts, promote_options="permissive").unify_dictionaries(), len(records))


def own_films(job: Job, record: Record, columns: Sequence[str]) -> pa.Table:
    """Reads some columns of one run's own predictions."""
    parts = [_read(storage.join(job.output.uri, path), columns) for path in record["predictions"]]
    return pa.concat_tables(parts) if parts else _wanted(columns).empty_table()


def _wanted(columns: Sequence[str]) -> pa.Schema:
    whole = tables.prediction_schema([])
    return pa.schema([whole.field(name) for name in columns], metadata=whole.metadata)


def _read(uri: str, columns: Sequence[str], *, subgroups: bool = False) -> pa.Table:
    """Reads columns of a file of this or an older schema version; what it does not have is NULL."""
    there = storage.read_schema(uri).names
    further = [name for name in tables.subgroup_columns(there) if name not in columns] if subgroups else []
    stored = storage.read_table(uri, [name for name in (*columns, *further) if name in there])
    try:
        table = tables.upgraded(stored, _wanted(columns))
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None
    for index, column in enumerate(table.column_names):
        if column in FEW_VALUES or column in further:
            table = table.set_column(index, column, table[column].dictionary_encode())
    return table.replace_schema_metadata(None)


def _latest(image_ids: list[pa.ChunkedArray]) -> list[NDArray[np.bool_]]:
    """Whether a row is the last of its image, file by file."""
    ids = pa.chunked_array([chunk for column in image_ids for chunk in column.chunks], pa.string())
    rows = pa.table({"image_id": ids, "row": np.arange(len(ids))})
    last = rows.group_by("image_id").aggregate([("row", "max")])["row_max"].to_numpy()
    keep = np.zeros(len(ids), bool)
    keep[last] = True
    return np.split(keep, np.cumsum([len(column) for column in image_ids])[:-1])


def _record(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the record of the run, and those of its model's runs before it, in the order of their end."""
    runs, wanted = storage.join(job.output.uri, "runs"), job.evaluation.run_id
    named = storage.join(runs, f"{wanted}.json")
    if wanted and not storage.is_file(named):
        raise ValueError(f"{named}: no such run; leave out evaluation.run_id to evaluate the latest")
    if wanted and job.evaluation.scope == "run":
        places = [named]
    else:
        places = [storage.join(runs, f.path) for f in storage.list_files(runs) if f.path.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        records = dict(zip(places, pool.map(_json, places), strict=True))
    screened = {place: record for place, record in records.items() if record.get("verb") == "screen"}
    if not wanted and not screened:
        raise ValueError(f"{runs}: no published screening run; run `pneumobatch screen` with this output.uri first")
    place = named if wanted else max(screened, key=lambda place: _moment(screened[place]))
    record = records[place]
    if lacking := [key for key in ("run_id", "model_id", "predictions") if record.get(key) is None]:
        raise ValueError(f"{place}: lacks {', '.join(lacking)}; give evaluation.run_id of a published screening run")
    earlier = [
        item
        for item in screened.values()
        if item.get("model_id") == record["model_id"]
        and item.get("predictions")
        and item["run_id"] != record["run_id"]
        and _moment(item) <= _moment(record)
    ]
    return record, sorted(earlier, key=_moment)


def _moment(record: Record) -> tuple[str, str]:
    return str(record.get("finished_at")), str(record.get("run_id"))


def _json(uri: str) -> dict[str, Any]:
    try:
        record = json.loads(storage.read_bytes(uri))
    except ValueError:
        raise ValueError(f"{uri}: not a run record (JSON); give evaluation.run_id of another run") from None
    return record if isinstance(record, dict) else {}


class Bundle(NamedTuple):
    """The bundle that a run was made with, or why it cannot be read."""

    uri: str
    content: dict[str, Any]
    """bundle.json; empty where `missing`."""
    missing: str | None = None

    @property
    def prevalence(self) -> float | None:
        """Prevalence of pneumonia among the validation films, under which the probabilities are calibrated.

        None where that is not known, and of an older bundle without an offset: class weights and focal losses have
        shifted its probabilities, so that they cannot be corrected from this prevalence.
        """
        if "offset" not in self.content:
            return None
        data = self.content.get("data", {})
        sick, well = data.get("validation_sick"), data.get("validation_well")
        return sick / (sick + well) if sick and well else None


def holds_dicom(record: Record, films: pa.Table) -> bool:
    """Whether a run's archive holds DICOM films, or these films are some: then neither paths nor pictures leave."""
    return bool(record.get("beside_dicom")) or "dicom" in films["format"].unique().to_pylist()


def find_bundle(record: Record) -> Bundle:
    """Finds a run's bundle, if it still lies where the run found it and is still that model's."""
    uri = record.get("bundle") or record.get("config", {}).get("screening", {}).get("bundle")
    if not isinstance(uri, str):
        return Bundle("", {}, "the run's record names no bundle")
    try:
        content = json.loads(storage.read_bytes(storage.join(uri, "bundle.json")))
    except (FileNotFoundError, NotADirectoryError):
        return Bundle(uri, {}, "the bundle no longer lies where the run found it")
    except ValueError:
        return Bundle(uri, {}, "the bundle.json that lies where the run found its own is broken (no JSON)")
    if not isinstance(content, dict) or content.get("model_id") != record["model_id"]:
        return Bundle(uri, {}, "another model's bundle lies where the run found its own")
    return Bundle(uri, content)


def keep(uri: str, table: pa.Table, moment: str | None = None) -> tuple[str, bool]:
    """Writes a Parquet file that is never overwritten, and returns where it lies and whether it is new.

    The same content, but for the column `moment`, is not written again. Another content under the same name (other
    options, other subgroups) is written beside it, with six digits of its own hash in the name.
    """
    content = _content(table, moment)
    for place in (uri, f"{uri.removesuffix('.parquet')}-{content[:6]}.parquet"):
        if not storage.is_file(place):
            storage.write_table(place, table)
            return place, True
        if _content(storage.read_table(place), moment) == content:
            return place, False
    raise ValueError(f"{place}: was changed after it was written; move it away and evaluate again")


def _content(table: pa.Table, moment: str | None) -> str:
    """SHA-256 of a table's rows; floats count to seven digits, as another machine's last digits differ."""
    table = table.drop_columns([moment] if moment in table.column_names else [])
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(pa.float32()))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(None).combine_chunks(), sink
    )  # unlike a buffer it holds no hidden cells
    return hashlib.sha256(sink.getvalue()).hexdigest()
