"""All runs of an output together: which are published, which were left unfinished, and what no run has taken yet."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from pneumobatch import storage, tables
from pneumobatch.archive import left_out
from pneumobatch.identity import SITE_KEY, key_check
from pneumobatch.screening.budget import PASSING
from pneumobatch.screening.runs import Run, read_json
from pneumobatch.tables import Status

_KEY = ["image_id", "version", "status", "reason", "duplicate_of", "format"]

_LATEST = "SELECT * FROM done QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY night DESC) = 1"


def published(output: str) -> list[dict[str, Any]]:
    """Reads the records of all published screening runs, oldest first."""
    folder = storage.join(output, "runs")
    uris = [storage.join(folder, file.path) for file in storage.list_files(folder) if file.path.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        records = [record for record in pool.map(read_json, uris) if record and record.get("verb") == "screen"]
    return sorted(records, key=lambda record: str(record["finished_at"]))


def require_site_key(records: Sequence[dict[str, Any]]) -> None:
    """Refuses to work under another site key than the output's last run, which knew every film by other ids.

    Args:
        records: All published runs, oldest first.

    Raises:
        ValueError: It is another key, or none.
    """
    known = [record for record in records if "site_key" in record]
    if known and known[-1]["site_key"] != key_check():
        raise ValueError(
            f"{SITE_KEY} is not what it was when {known[-1]['run_id']} was published, so every film would count as a "
            "new one; set it as it was (not at all, if it was not), or give another output.uri"
        )


def unfinished(output: str) -> list[dict[str, Any]]:
    """Reads the pins of all runs that were started and not published, oldest first; `over_budget` says why not.

    A training run in the making has no pin of this kind and is left out.
    """
    folder = storage.join(output, "_staging")
    names = sorted({file.path.split("/")[0] for file in storage.list_files(folder)})
    pins = []
    for name in names:
        pin = read_json(storage.join(folder, name, "run.json"))
        if pin and not storage.is_file(storage.join(output, "runs", f"{name}.json")):
            pins.append(pin | {"over_budget": storage.is_file(storage.join(folder, name, "over_budget"))})
    return sorted(pins, key=lambda pin: str(pin["started_at"]))


def nights(records: Sequence[dict[str, Any]], series: str) -> list[dict[str, Any]]:
    """Returns those of published records that are nights of a series (`runs.series`)."""
    return [
        record
        for record in records
        if record["run_id"].endswith(series) and record.get("config", {}).get("screening", {}).get("nightly")
    ]


def not_evaluated(output: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns those of the records whose run no evaluation has seen to its end: it has no review list."""
    folder = storage.join(output, "review")
    seen = {file.path.rpartition("/")[2].removesuffix(".parquet") for file in storage.list_files(folder)}
    return [record for record in records if record["run_id"] not in seen]


def new(output: str, model_id: str, films: pa.Table, pinned: Sequence[str]) -> pa.Table:
    """Returns the films that no published run of the model has taken as they are now: an anti-join, not a date.

    A film is taken again when the object has changed (its version), when it could not be read for a passing reason, or
    when it is a copy whose original is taken again: its bytes may have no other row by now.

    Args:
        output: Output URI of the job.
        model_id: The model; another one's runs do not count.
        films: The archive (`catalog.build`).
        pinned: Ids of runs that are not published yet and answer for their films themselves.

    Returns:
        Their rows; marked by `left_out.beside_dicom` where any other film of the archive is or may be a DICOM file.
    """
    taken = [
        storage.read_table(storage.join(output, "_staging", run, "catalog.parquet"), ["image_id"]) for run in pinned
    ]
    with _compared(output, model_id, films) as connection:
        connection.register("taken", pa.concat_tables([_DONE.empty_table().select(["image_id"]), *taken]))
        fresh = connection.sql(
            f"""
            WITH latest AS ({_LATEST}),
            settled AS (SELECT * FROM latest WHERE NOT coalesce(list_contains(?, reason), false)),
            changed AS (
                SELECT f.image_id FROM films f LEFT JOIN settled s USING (image_id)
                WHERE s.image_id IS NULL OR s.version <> f.version
            ), copies AS (
                SELECT c.image_id FROM latest c SEMI JOIN films USING (image_id)
                JOIN latest o ON c.duplicate_of = o.image_id
                WHERE o.night > c.night OR o.image_id IN (FROM changed)
            )
            SELECT image_id FROM (FROM changed UNION FROM copies) WHERE image_id NOT IN (FROM taken)
            """,  # noqa: S608 - all of it is written here
            params=[list(PASSING)],
        ).to_arrow_table()["image_id"]
        return _marked(connection, films.filter(pc.is_in(films["image_id"], fresh.combine_chunks())), fresh)


def marked(run: Run, films: pa.Table) -> pa.Table:
    """Marks the archive's films by `left_out.beside_dicom`, as `new` does, for a run that takes all or was begun."""
    own = films
    if run.pin:
        own = storage.read_table(storage.join(run.staging, "catalog.parquet"), ["image_id"])
    with _compared(run.job.output.uri, run.bundle.model_id, films) as connection:
        return _marked(connection, films, own["image_id"])


@contextmanager
def _compared(output: str, model_id: str, films: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
    """The films and what became of them, to ask about in SQL."""
    with duckdb.connect() as connection:
        connection.register("films", films.select(["image_id", "version", "format"]))
        connection.register("done", _done(output, model_id))
        yield connection


def _marked(connection: duckdb.DuckDBPyConnection, found: pa.Table, own: pa.ChunkedArray) -> pa.Table:
    connection.register("own", pa.table({"image_id": own}))
    dicom = connection.sql(
        f"""
        SELECT EXISTS (FROM done WHERE format = 'dicom') OR EXISTS (
            FROM films f LEFT JOIN ({_LATEST}) l USING (image_id) WHERE image_id NOT IN (FROM own)
            AND coalesce(l.format, f.format, '') NOT IN ('jpeg', 'png'))
        """  # noqa: S608
    ).fetchall()
    return left_out.beside_dicom(found) if dicom == [(True,)] else found


def failing(output: str, model_id: str) -> pa.ChunkedArray:
    """Returns the ids of the films that failed for a passing reason in the latest published run of the model."""
    with duckdb.connect() as connection:
        connection.register("done", _done(output, model_id))
        query = f"SELECT image_id FROM ({_LATEST}) WHERE list_contains(?, reason)"  # noqa: S608
        return connection.sql(query, params=[list(PASSING)]).to_arrow_table()["image_id"]


_DONE = pa.schema([*((name, pa.string()) for name in _KEY), ("night", pa.int64())])


def _done(output: str, model_id: str) -> pa.Table:
    """What became of the films in all published runs of a model; `night` counts the runs, oldest first."""
    records = [record for record in published(output) if record["model_id"] == model_id]
    paths = [storage.join(output, path) for record in records for path in record["predictions"]]
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(_rows, paths))
    numbered = (
        rows.append_column("night", pa.repeat(pa.scalar(night, pa.int64()), len(rows)))
        for night, rows in enumerate(runs)
    )
    return pa.concat_tables([_DONE.empty_table(), *numbered])


def _rows(uri: str) -> pa.Table:
    """The columns of predictions that the anti-join needs; of files without a version it is NULL, which fits any."""
    try:
        return tables.upgraded(storage.read_table(uri, _KEY), pa.schema([(name, pa.string()) for name in _KEY]))
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from None


def console_table(output: str) -> Table:
    """Returns what ran, newest last, with counts; and what was left unfinished."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "images", *Status, "seconds"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for record in published(output):
        counts = record["counts"]
        cells = [f"{counts[name]:,}" for name in ("catalogued", *(str(status) for status in Status))]
        table.add_row(Text(record["run_id"]), "published", *cells, f"{record.get('seconds', 0):,.0f}")
    for pin in unfinished(output):
        state = "over budget" if pin["over_budget"] else "unfinished"
        try:
            pinned = storage.join(output, "_staging", pin["run_id"], "catalog.parquet")
            rows = len(storage.read_table(pinned, ["image_id"]))
        except FileNotFoundError:  # it was published in this very moment
            continue
        table.add_row(Text(pin["run_id"]), state, f"{rows:,}", *["–"] * 5)
    return table
