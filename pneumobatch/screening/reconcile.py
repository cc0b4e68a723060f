"""Catalogue and staged rows → predictions: exactly one row for every catalogued image, whatever became of it.

Columns in: `catalogue` (tables.catalog_schema, without paths), `films` (image_id, uri, version as listed now) and
`staged` (archive.films without pixels, version, probability, scored_at; several rows a film where it was tried again).
Out: one Parquet file of tables.prediction_schema, in the order of the catalogue.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
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
    columns = {"image_id": pa.string(), "version": pa.string(), "status": pa.string(), "reason": pa.string()}
    more = {"sha256": pa.string(), "format": pa.string(), "patient": pa.string(), "probability": pa.float64()}
    return pa.schema([*(columns | more).items(), ("scored_at", pa.timestamp("us", tz="UTC"))]).empty_table()


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


_JOIN = """
WITH latest AS (  -- a film tried again counts as its best and last try
    SELECT * FROM staged
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY status = 'failed', scored_at DESC) = 1
), joined AS (
    SELECT n.position, n.image_id, {columns},
        coalesce(l.version, n.version) AS version,
        coalesce(n.patient, l.patient) AS patient,
        CASE WHEN l.sha256 IS NULL THEN n.format ELSE l.format END AS format,
        l.sha256, coalesce(l.status, 'failed') AS status, CASE WHEN l.status IS NULL THEN 'missing' ELSE l.reason END
            AS reason,
        CASE WHEN {keep} THEN f.uri END AS uri,
        first_value(n.image_id) OVER (PARTITION BY l.sha256, l.status ORDER BY n.position) AS original
    FROM catalogue n LEFT JOIN latest l USING (image_id) LEFT JOIN films f USING (image_id)
), judged AS (
    SELECT *, coalesce(status = 'scored' AND sha256 IS NOT NULL AND original <> image_id, false) AS copied FROM joined
)
SELECT * REPLACE (
    CASE WHEN copied THEN 'duplicate' ELSE status END AS status,
    CASE WHEN copied THEN 'byte_identical' ELSE reason END AS reason,
    CASE WHEN NOT copied THEN probability END AS probability),
    CASE WHEN copied THEN original END AS duplicate_of
FROM judged ORDER BY position
"""


def predictions(
    catalogue: pa.Table,
    films: pa.Table,
    staged: pa.Table,
    constants: Mapping[str, Any],
    *,
    keep_uri: bool | None,
) -> Predictions:
    """Joins catalogue and staged rows, names duplicates, and encodes the table that is published.

    Args:
        catalogue: What the run answers for.
        films: Where the films lie now.
        staged: Every scored row.
        constants: model_id, run_id and threshold.
        keep_uri: Write the source paths; None: where no film of the run is or may be a DICOM file.
    """
    schema = tables.prediction_schema(tables.subgroup_columns(catalogue.column_names))
    made = {"image_id", "uri", "version", "patient", "format", "status", "reason", "duplicate_of", "predicted_label"}
    sources = dict.fromkeys(catalogue.column_names, "n.") | dict.fromkeys(staged.column_names, "l.")
    columns = [
        sources.get(name, "NULL AS ") + name for name in schema.names if name not in made and name not in constants
    ]
    keep = "false" if keep_uri is False else "true"
    if keep_uri is None:
        # A path is only written where the file is known to be no DICOM file, by its content or else by its name.
        dicom = "dicom" in {*catalogue["format"].unique().to_pylist(), *staged["format"].unique().to_pylist()}
        keep = "false" if dicom else "coalesce(l.format, n.format, '') IN ('jpeg', 'png')"
    with duckdb.connect() as connection:
        listed = catalogue.append_column("position", pa.array(range(len(catalogue)), pa.int64()))
        connection.register("catalogue", listed)
        connection.register("films", films.select(["image_id", "uri"]))
        connection.register("staged", staged)
        query = _JOIN.format(columns=", ".join(columns), keep=keep)
        batches = connection.sql(query).to_arrow_reader(ROW_GROUP)
        return _encode((_published(pa.table(batch), schema, constants) for batch in batches), schema)


def _published(rows: pa.Table, schema: pa.Schema, constants: Mapping[str, Any]) -> pa.Table:
    computed = {
        "predicted_label": pc.greater_equal(rows["probability"], constants["threshold"]),
        **{name: pa.repeat(value, len(rows)) for name, value in constants.items()},
    }
    columns = [computed[name] if name in computed else rows[name] for name in schema.names]
    return pa.table([column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


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
