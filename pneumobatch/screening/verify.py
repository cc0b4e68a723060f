"""The verb `verify`: proves a published run against its catalogue, from what lies on disk alone."""

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pneumobatch import storage
from pneumobatch.screening.runs import read_json
from pneumobatch.tables import Status


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    right: bool
    told: str


def verify(output: str, run_id: str) -> list[Finding]:
    """Checks files, hashes, counts and rows of a published run.

    Raises:
        ValueError: There is no such published run.
    """
    record = read_json(storage.join(output, "runs", f"{run_id}.json"))
    if record is None:
        staged = storage.is_file(storage.join(output, "_staging", run_id, "run.json"))
        state = "was started and is not published: start it again" if staged else "is not there; `runs` lists all"
        raise ValueError(f"output.uri: run {run_id} {state}")
    if record.get("verb") != "screen" or "catalog" not in record:
        raise ValueError(
            f"output.uri: {run_id} is no screening run with a catalogue, so there is nothing to prove it by"
        )
    return list(_findings(output, record))


def _findings(output: str, record: dict[str, Any]) -> Iterator[Finding]:
    contents: dict[str, bytes] = {}
    for name, path in (("catalog", record["catalog"]), ("predictions", record["predictions"][0])):
        try:
            contents[name] = storage.read_bytes(storage.join(output, path))
        except FileNotFoundError:
            yield Finding(f"{name} file", False, f"{path} is missing")
            continue
        whole = hashlib.sha256(contents[name]).hexdigest() == record["hashes"][name]
        yield Finding(f"{name} file", whole, "as published" if whole else f"{path} was changed since")
    if len(contents) < 2:
        return
    with duckdb.connect() as connection:
        for name, data in contents.items():
            try:
                connection.register(name, pq.read_table(io.BytesIO(data)))
            except pa.ArrowException:
                yield Finding(f"{name} rows", False, "cannot be read: the file is no whole Parquet file")
                return

        def count(query: str, *values: object) -> int:
            row = connection.execute(query, list(values)).fetchone()
            assert row is not None
            return int(row[0])

        yield from _rows(count, record)


def _rows(count: Callable[..., int], record: dict[str, Any]) -> Iterator[Finding]:
    catalogued, rows = count("SELECT count(*) FROM catalog"), count("SELECT count(*) FROM predictions")
    once = count("SELECT count(DISTINCT image_id) FROM predictions")
    unknown = count("SELECT count(*) FROM predictions ANTI JOIN catalog USING (image_id)")
    without = count("SELECT count(*) FROM catalog ANTI JOIN predictions USING (image_id)")
    yield Finding(
        "one row an image",
        rows == once == catalogued and not unknown and not without,
        f"{catalogued:,} catalogued, {rows:,} rows of {once:,} images, {without:,} without a row, {unknown:,} unknown",
    )
    counts = {str(s): count("SELECT count(*) FROM predictions WHERE status = ?", str(s)) for s in Status}
    yield Finding(
        "counts",
        {"catalogued": catalogued, **counts} == record["counts"] and sum(counts.values()) == catalogued,
        " + ".join(f"{n:,} {status}" for status, n in counts.items()) + f" = {sum(counts.values()):,}",
    )
    strange = count(
        """SELECT count(*) FROM predictions WHERE (status = 'scored') <> coalesce(probability BETWEEN 0 AND 1, false)
        OR (status = 'scored') <> (predicted_label IS NOT NULL) OR (status = 'scored') <> (reason IS NULL)"""
    )
    yield Finding("a failure is no probability", not strange, f"{strange:,} rows contradict their status")
    calls = count(
        "SELECT count(*) FROM predictions WHERE (probability >= ?)::INT <> predicted_label", record["threshold"]
    )
    yield Finding(
        "calls at the threshold", not calls, f"{calls:,} calls differ from probability >= {record['threshold']}"
    )
    foreign = count(
        "SELECT count(*) FROM predictions WHERE model_id <> ? OR run_id <> ? OR threshold <> ?",
        record["model_id"], record["run_id"], record["threshold"],
    )  # fmt: skip
    yield Finding("one model, one run", not foreign, f"{foreign:,} rows of another model, run or threshold")
    copies = count(
        """SELECT count(*) FROM predictions c LEFT JOIN predictions o ON c.duplicate_of = o.image_id
        WHERE (c.status = 'duplicate') <> (c.duplicate_of IS NOT NULL)
        OR (c.status = 'duplicate' AND o.status IS DISTINCT FROM 'scored')"""
    )
    yield Finding("copies lead to a scored film", not copies, f"{copies:,} do not")
