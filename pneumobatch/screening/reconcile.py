"""Catalogue and staged rows → predictions: exactly one row for every catalogued image, whatever became of it.

Columns in: `catalogue` (tables.catalog_schema, without paths), `films` (image_id, uri, version as listed now) and
`staged` (archive.films without pixels, version, probability, scored_at; several rows a film where it was tried again).
Out: one Parquet file of tables.prediction_schema, in the order of the catalogue.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    """A run's predictions as the file that is published, and what it is found to hold."""

    data: bytes
    """Parquet, zstd."""
    ids: pa.ChunkedArray
    """image_id of its rows."""
    reasons: list[tuple[tuple[str, str | None], int]]
    """Images by (status, reason), most frequent first."""
    contradicting: int
    """Rows that are scored and have no probability, or the other way round."""

    @classmethod
    def read(cls, data: bytes) -> "Predictions":
        """Counts what the file holds."""
        rows = pq.read_table(pa.BufferReader(data), columns=["image_id", "status", "reason", "probability"])
        counted = rows.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
        reasons = Counter({(row["status"], row["reason"]): row["count_all"] for row in counted})
        scored = pc.equal(rows["status"], Status.SCORED.value)
        wrong = pc.sum(pc.xor(scored, pc.is_valid(rows["probability"])), min_count=0).as_py()
        return cls(data, rows["image_id"], reasons.most_common(), wrong)

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return len(self.ids)

    def count(self, status: Status) -> int:
        """Images that ended so."""
        return sum(n for (found, _), n in self.reasons if found == status)

    def answer_for(self, catalogue: pa.Table) -> bool:
        """Whether there is exactly one row for every image of the catalogue."""
        known = pc.all(pc.is_in(self.ids, catalogue["image_id"].combine_chunks()), min_count=0).as_py()
        return bool(known and self.rows == pc.count_distinct(self.ids).as_py() == len(catalogue))


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


class _Places(NamedTuple):
    """For each image of the catalogue, in its order; NULL where there is none."""

    staged: pa.Array
    """Row of `staged` that counts: a film tried again counts as its best and last try."""
    film: pa.Array
    """Row of `films`."""
    original: pa.Array
    """Place in the catalogue of the first scored image with the same bytes."""
    read: pa.Array
    """Whether its bytes were read; never NULL."""

    @classmethod
    def find(cls, catalogue: pa.Table, films: pa.Table, key: pa.Table) -> "_Places":
        ids = catalogue["image_id"].combine_chunks()
        key = key.append_column("failed", pc.equal(key["status"], str(Status.FAILED)))
        order = pc.sort_indices(key, [("failed", "ascending"), ("scored_at", "descending")])
        staged = order.take(pc.index_in(ids, key["image_id"].combine_chunks().take(order)))
        digest = key["sha256"].combine_chunks().take(staged)
        scored = pc.equal(key["status"].combine_chunks().take(staged), str(Status.SCORED))
        bytes_of = pc.if_else(scored, digest, None)
        first = pc.index_in(bytes_of, bytes_of, skip_nulls=True)
        original = pc.if_else(pc.equal(first, pa.array(np.arange(len(ids), dtype=np.int32))), None, first)
        return cls(staged, pc.index_in(ids, films["image_id"].combine_chunks()), original, pc.is_valid(digest))

    def slice(self, start: int, length: int) -> "_Places":
        return _Places(*(column.slice(start, length) for column in self))


def predictions(
    catalogue: pa.Table,
    films: pa.Table,
    staged: Callable[[list[str] | None], pa.Table],
    constants: Mapping[str, Any],
    band: tuple[float, float] | None,
    *,
    keep_uri: bool | None,
) -> bytes:
    """Joins catalogue and staged rows, names duplicates, and encodes the table that is published, as Parquet.

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
    places = _Places.find(catalogue, films, key)
    del key
    rows = staged(None)
    rows = rows.drop_columns([name for name in ("image_id", "sha256") if name in rows.column_names])
    ids = catalogue["image_id"].combine_chunks()
    uris = films["uri"].combine_chunks() if keep else None
    schema = tables.prediction_schema(tables.subgroup_columns(catalogue.column_names))

    def published(start: int) -> pa.Table:
        part = places.slice(start, ROW_GROUP)
        listed, found = catalogue.slice(start, ROW_GROUP), rows.take(part.staged)
        copied, tried = pc.is_valid(part.original), pc.is_valid(found["status"])
        kind, known = found["format"], pc.coalesce(found["format"], listed["format"])
        probability = pc.if_else(copied, None, found["probability"])
        computed = {
            "status": pc.if_else(copied, str(Status.DUPLICATE), pc.coalesce(found["status"], str(Status.FAILED))),
            "reason": pc.if_else(copied, "byte_identical", pc.if_else(tried, found["reason"], "missing")),
            "duplicate_of": ids.take(part.original),
            "version": pc.coalesce(found["version"], listed["version"]),
            "patient": pc.coalesce(listed["patient"], found["patient"]),
            "format": pc.if_else(part.read, kind, known),
            "probability": probability,
            "predicted_label": pc.greater_equal(probability, constants["threshold"]),
            "uri": None if uris is None else _publishable(uris.take(part.film), known, certain=keep_uri is True),
            **{name: pa.repeat(value, len(listed)) for name, value in constants.items()},
        }
        if band:
            low, high = pc.greater_equal(probability, band[0]), pc.less_equal(probability, band[1])
            computed["uncertain"] = pc.and_(low, high)
        return _shaped(computed, (found, listed), schema)

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(catalogue), ROW_GROUP):
            writer.write_table(published(start), row_group_size=ROW_GROUP)
    return sink.getvalue()


def _publishable(uris: pa.Array, kind: pa.ChunkedArray, *, certain: bool) -> pa.ChunkedArray:
    """A path is only written where the file is known to be no DICOM file, by its content or else by its name."""
    known = tables.known_pictures(kind)
    return uris if certain else pc.if_else(known, uris, None)


def _shaped(computed: Mapping[str, Any], sources: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """The schema's columns: the computed one, else what the first table knows of each image, else NULL."""

    def column(field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if (made := computed.get(field.name)) is not None:
            return made.cast(field.type)
        known = [table[field.name].cast(field.type) for table in sources if field.name in table.column_names]
        return pc.coalesce(*known) if known else pa.nulls(len(sources[0]), field.type)

    return pa.table([column(field) for field in schema], schema=schema)
