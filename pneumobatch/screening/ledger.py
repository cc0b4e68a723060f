"""All runs of an output together: which are published, which were left unfinished, and what no run has taken yet."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from pneumobatch import storage, tables
from pneumobatch.screening.runs import PASSING, read_json
from pneumobatch.tables import Status

_KEY = ["image_id", "version", "status", "reason"]


def published(output: str) -> list[dict[str, Any]]:
    """Reads the records of all published screening runs, oldest first."""
    folder = storage.join(output, "runs")
    uris = [storage.join(folder, file.path) for file in storage.list_files(folder) if file.path.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        records = [record for record in pool.map(read_json, uris) if record and record.get("verb") == "screen"]
    return sorted(records, key=lambda record: str(record["finished_at"]))


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

    A film is taken again when the object has changed (its version), or when it could not be read for a passing reason.

    Args:
        output: Output URI of the job.
        model_id: The model; another one's runs do not count.
        films: The archive (`catalog.build`).
        pinned: Ids of runs that are not published yet and answer for their films themselves.
    """
    records = [record for record in published(output) if record["model_id"] == model_id]
    paths = [storage.join(output, path) for record in records for path in record["predictions"]]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(_rows, paths))
    taken = [
        storage.read_table(storage.join(output, "_staging", run, "catalog.parquet"), ["image_id"]) for run in pinned
    ]
    with duckdb.connect() as connection:
        connection.register("films", films.select(["image_id", "version"]))
        connection.register("done", pa.concat_tables([_rows(None), *_numbered(done)]))
        connection.register("taken", pa.concat_tables([_rows(None).select(["image_id"]), *taken]))
        fresh = connection.sql(
            """
            WITH latest AS (
                SELECT * FROM done QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY night DESC) = 1
            ), settled AS (SELECT * FROM latest WHERE NOT coalesce(list_contains(?, reason), false))
            SELECT f.image_id FROM films f LEFT JOIN settled s USING (image_id)
            WHERE (s.image_id IS NULL OR s.version <> f.version) AND image_id NOT IN (SELECT image_id FROM taken)
            """,
            params=[list(PASSING)],
        ).to_arrow_table()["image_id"]
    return films.filter(pc.is_in(films["image_id"], fresh.combine_chunks()))


def _rows(uri: str | None) -> pa.Table:
    """The columns of predictions that the anti-join needs; of files without a version it is NULL, which fits any."""
    schema = pa.schema([(name, pa.string()) for name in _KEY])
    if uri is None:
        return schema.append(pa.field("night", pa.int64())).empty_table()
    return tables.upgraded(storage.read_table(uri, _KEY), schema).select(_KEY)


def _numbered(nights: list[pa.Table]) -> list[pa.Table]:
    return [
        rows.append_column("night", pa.repeat(pa.scalar(night, pa.int64()), len(rows)))
        for night, rows in enumerate(nights)
    ]


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
        rows = len(storage.read_table(storage.join(output, "_staging", pin["run_id"], "catalog.parquet"), ["image_id"]))
        table.add_row(Text(pin["run_id"]), state, f"{rows:,}", *["–"] * 5)
    return table
