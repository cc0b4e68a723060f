"""Catalogue and staged rows → predictions: exactly one row for every catalogued image, whatever became of it.

Columns in: `catalogue` (tables.catalog_schema, without paths), `films` (image_id, uri, version as listed now) and
`staged` (archive.films without pixels, version, probability, scored_at; several rows a film where it was tried again).
Out: one Parquet file of tables.prediction_schema, in the order of the catalogue.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pneumobatch import tables
from pneumobatch.tables import Status

ROW_GROUP = 100_000
"""Rows of a row group: some 10 MB, what analytics engines read at once."""


class Predictions(NamedTuple):
    """A run's predictions as the file that is published, and its counts."""

    data: bytes
    """Parquet, zstd."""
    rows: int
    images: int
    """Different image_id."""
    reasons: list[tuple[tuple[str, str | None], int]]
    """Images by (status, reason), most frequent first."""

    def count(self, status: Status) -> int:
        """Images that ended so."""
        return sum(n for (found, _), n in self.reasons if found == status)


def nothing_staged() -> pa.Table:
    """A staged table without rows."""
    texts = ("image_id", "version", "status", "reason", "sha256", "format", "patient")
    more = [("probability", pa.float64()), ("scored_at", pa.timestamp("us", tz="UTC"))]
    return pa.schema([*((name, pa.string()) for name in texts), *more]).empty_table()


def settled(staged: pa.Table, films: pa.Table, passing: Sequence[str]) -> pa.ChunkedArray:
    """Returns the image_ids that need no further try.

    A film that failed is tried again when the reason was of the moment, or when the object has changed since.
    """
    with duckdb.connect() as connection:
        connection.register("staged", staged)
        connection.register("films", films.select(["image_id", "version"]))
        return connection.sql(
            """
            SELECT DISTINCT s.image_id FROM staged s LEFT JOIN films f USING (image_id)
            WHERE s.status <> 'failed' OR (list_contains(?, s.reason) = false
                AND (f.version IS NULL OR s.version IS NULL OR f.version = s.version))
            """,
            params=[list(passing)],
        ).to_arrow_table()["image_id"]


KEY = ["image_id", "status", "sha256", "scored_at", "format"]
"""Staged columns that decide which row of a film counts."""

MEMORY = "512MB"
"""What the join may hold in memory before it goes to disk: identifiers and hashes alone."""

_JOIN = """
WITH latest AS (  -- a film tried again counts as its best and last try
    SELECT image_id, status, sha256, row FROM staged
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY status = 'failed', scored_at DESC) = 1
), joined AS (
    SELECT n.row AS position, l.row AS staged, f.row AS film, l.status, l.sha256,
        first_value(n.row) OVER (PARTITION BY l.sha256, l.status ORDER BY n.row) AS first
    FROM catalogue n LEFT JOIN latest l USING (image_id) LEFT JOIN films f USING (image_id)
)
SELECT staged, film, coalesce(sha256 IS NOT NULL, false) AS read,
    CASE WHEN status = 'scored' AND sha256 IS NOT NULL AND first <> position THEN first END AS original
FROM joined ORDER BY position
"""


def predictions(
    catalogue: pa.Table,
    films: pa.Table,
    staged: Callable[[list[str] | None], pa.Table],
    constants: Mapping[str, Any],
    band: tuple[float, float] | None,
    *,
    keep_uri: bool | None,
) -> Predictions:
    """Joins catalogue and staged rows, names duplicates, and encodes the table that is published.

    Args:
        catalogue: What the run answers for.
        films: Where the films lie now.
        staged: Reads columns of all staged rows, or all columns, in the same order each time.
        constants: model_id, run_id and threshold.
        band: Lowest and highest probability that is uncertain; None: the model does not say.
        keep_uri: Write the source paths; None: where no film of the run is or may be a DICOM file.
    """
    key = staged(KEY)
    dicom = "dicom" in {*catalogue["format"].unique().to_pylist(), *key["format"].unique().to_pylist()}
    keep = not dicom if keep_uri is None else keep_uri
    with TemporaryDirectory() as spill, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [MEMORY])
        connection.execute("SET temp_directory = ?", [spill])
        for name, table in (("catalogue", catalogue), ("films", films), ("staged", key)):
            columns = table.select([column for column in KEY if column in table.column_names and column != "format"])
            connection.register(name, columns.append_column("row", pa.array(np.arange(len(table)))))
        places = connection.sql(_JOIN).to_arrow_table()
    del key
    rows = staged(None)
    rows = rows.drop_columns([name for name in ("image_id", "sha256") if name in rows.column_names]).combine_chunks()
    schema = tables.prediction_schema(tables.subgroup_columns(catalogue.column_names))
    parts = (
        _published(catalogue, films if keep else None, rows, part, constants, band, schema, certain=keep_uri is True)
        for start in range(0, len(catalogue), ROW_GROUP)
        for part in [(start, places.slice(start, ROW_GROUP))]
    )
    return _encode(parts, schema)


def _published(
    catalogue: pa.Table, films: pa.Table | None, rows: pa.Table, part: tuple[int, pa.Table],
    constants: Mapping[str, Any], band: tuple[float, float] | None, schema: pa.Schema, *, certain: bool,
) -> pa.Table:  # fmt: skip
    """Rows of the published table for a slice of the catalogue."""
    start, places = part
    listed, found = catalogue.slice(start, len(places)), rows.take(places["staged"].combine_chunks())
    original = places["original"].combine_chunks()
    copied, tried = pc.is_valid(original), pc.is_valid(found["status"])
    kind = pc.if_else(places["read"].combine_chunks(), found["format"], listed["format"])
    probability = pc.if_else(copied, None, found["probability"])
    computed = {
        "status": pc.if_else(copied, str(Status.DUPLICATE), pc.coalesce(found["status"], str(Status.FAILED))),
        "reason": pc.if_else(copied, "byte_identical", pc.if_else(tried, found["reason"], "missing")),
        "duplicate_of": catalogue["image_id"].combine_chunks().take(original),
        "version": pc.coalesce(found["version"], listed["version"]),
        "patient": pc.coalesce(listed["patient"], found["patient"]),
        "format": kind,
        "probability": probability,
        "predicted_label": pc.greater_equal(probability, constants["threshold"]),
        "uri": pa.nulls(len(places), pa.string()),
        **{name: pa.repeat(value, len(places)) for name, value in constants.items()},
    }
    if band:
        low, high = pc.greater_equal(probability, band[0]), pc.less_equal(probability, band[1])
        computed["uncertain"] = pc.and_(low, high)
    if films is not None:
        uris = films["uri"].combine_chunks().take(places["film"].combine_chunks())
        # A path is only written where the file is known to be no DICOM file, by its content or else by its name.
        known = pc.fill_null(pc.is_in(kind, pa.array(["jpeg", "png"])), False)
        computed["uri"] = uris if certain else pc.if_else(known, uris, None)
    columns = []
    for field in schema:
        source = next((table for table in (found, listed) if field.name in table.column_names), None)
        column = computed.get(field.name, source[field.name] if source else None)
        columns.append(pa.nulls(len(places), field.type) if column is None else column.cast(field.type))
    return pa.table(columns, schema=schema)


def _encode(parts: Iterable[pa.Table], schema: pa.Schema) -> Predictions:
    sink = io.BytesIO()
    counted = _Count()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part, row_group_size=ROW_GROUP)
            counted.add(part)
    return counted.result(sink.getvalue())


class _Count:
    def __init__(self) -> None:
        self.rows, self.ids, self.reasons = 0, list[pa.ChunkedArray](), Counter[tuple[str, str | None]]()

    def add(self, part: pa.Table) -> None:
        self.rows += len(part)
        self.ids.append(part["image_id"])
        for row in part.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist():
            self.reasons[row["status"], row["reason"]] += row["count_all"]

    def result(self, data: bytes) -> Predictions:
        ids = pa.chunked_array([chunk for column in self.ids for chunk in column.chunks], pa.string())
        return Predictions(data, self.rows, pc.count_distinct(ids).as_py(), self.reasons.most_common())


def read_back(data: bytes, catalogue: pa.Table) -> Predictions:
    """Takes predictions that are published already, after making sure that they answer for this catalogue.

    Raises:
        RuntimeError: They do not.
    """
    counted = _Count()
    with pq.ParquetFile(io.BytesIO(data)) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["image_id", "status", "reason"]):
            counted.add(pa.table(batch))
    found = counted.result(data)
    ids = pa.chunked_array([chunk for column in counted.ids for chunk in column.chunks], pa.string())
    if (
        not found.rows == found.images == len(catalogue)
        or not pc.all(pc.is_in(ids, catalogue["image_id"].combine_chunks()), min_count=0).as_py()
    ):
        raise RuntimeError(
            "predictions of this run_id are there already and answer for other images; choose another screening.run_id"
        )
    return found
