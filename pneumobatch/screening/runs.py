"""A screening run on disk: what is still to do, what is done, and the moment it becomes visible.

    _staging/<run_id>/run.json          the run's identity, pinned at its first start
    _staging/<run_id>/catalog.parquet   its catalogue, without any path
    _staging/<run_id>/parts/…           scored rows, as they come
    predictions/model_id=…/run_date=…/<run_id>.parquet
    runs/<run_id>.json                  written last: until it is there, the run is not published

A run killed at any moment goes on from its parts. Publishing is done from the staged rows alone and may be repeated.
"""

import hashlib
import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage, tables
from pneumobatch.archive import catalog
from pneumobatch.config import Job
from pneumobatch.models.bundle import Bundle
from pneumobatch.tables import Status

FLUSH_ROWS = 4096
FLUSH_SECONDS = 2.0
"""A part is written when so many rows have come or so long has passed: what a kill can lose."""

_TRANSIENT = ("unreadable", "missing")
"""Reasons that a later start tries again."""


class Run:
    """One screening run, new or taken up again.

    Raises:
        ValueError: The run id belongs to a run with another model, archive or configuration.
    """

    def __init__(self, job: Job, bundle: Bundle, films: pa.Table, plan: dict[str, Any]) -> None:
        self.job, self.bundle, self.films = job, bundle, films
        now = datetime.now(UTC)
        archive = hashlib.sha256(str(job.archive.uri).encode()).hexdigest()[:6]
        self.run_id = job.screening.run_id or f"{now:%Y-%m-%d}-{bundle.model_id}-{archive}"
        self.record_uri = storage.join(job.output.uri, "runs", f"{self.run_id}.json")
        self.staging = storage.join(job.output.uri, "_staging", self.run_id)
        self._waiting: list[pa.Table] = []
        self._flushed = time.monotonic()
        identity = {"model_id": bundle.model_id, "configuration": self._fingerprint()}
        self.record: dict[str, Any] | None = _read_json(self.record_uri)
        self.pin: dict[str, Any] = self.record or _read_json(storage.join(self.staging, "run.json")) or {
            **identity, "started_at": now.isoformat(), "plan": plan,
        }  # fmt: skip
        for key, value in identity.items():
            if self.pin[key] != value:
                raise ValueError(
                    f"screening.run_id: {self.run_id} was started with another {key} ({self.pin[key]}, now {value}); "
                    "choose another run_id"
                )

    def _fingerprint(self) -> str:
        """What the rows depend on besides the model; the failure budget and the engine are not part of it."""
        screening = self.job.screening.model_dump(mode="json", include={"batch_size", "precision", "compile", "gate"})
        config = [screening, self.job.archive.model_dump(mode="json"), self.job.output.keep_source_uri]
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]

    def begin(self) -> pa.Table:
        """Pins the run at its first start; returns the rows of the catalogue that are still to do."""
        pinned = storage.join(self.staging, "catalog.parquet")
        if not storage.is_file(storage.join(self.staging, "run.json")):
            anonymous = catalog.publishable(self.films, keep_uri=False)
            storage.write_table(pinned, anonymous)
            storage.write_bytes(storage.join(self.staging, "run.json"), json.dumps(self.pin, indent=2).encode())
        self.catalogue = storage.read_table(pinned)
        listed = self.films.filter(pc.is_in(self.films["image_id"], self.catalogue["image_id"].combine_chunks()))
        done = self._staged().column("image_id").combine_chunks()
        return listed.filter(pc.invert(pc.is_in(listed["image_id"], done)))

    def stage(self, rows: pa.Table) -> None:
        """Takes scored rows; they are safe once a part is written."""
        self._waiting.append(rows)
        waiting = sum(len(table) for table in self._waiting)
        if waiting >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait as one part."""
        if self._waiting:
            part = storage.join(self.staging, "parts", f"{uuid.uuid4().hex}.parquet")
            storage.write_table(part, pa.concat_tables(self._waiting).replace_schema_metadata(None))
            self._waiting = []
        self._flushed = time.monotonic()

    def _parts(self) -> list[pa.Table]:
        folder = storage.join(self.staging, "parts")
        return [storage.read_table(storage.join(folder, file.path)) for file in storage.list_files(folder)]

    def _staged(self) -> pa.Table:
        """All staged rows that stand; a film that failed for a passing reason is tried again."""
        parts = self._parts()
        if not parts:
            return pa.table({"image_id": pa.array([], pa.string()), "reason": pa.array([], pa.string())})
        rows = pa.concat_tables(parts)
        passing = pc.is_in(rows["reason"], pa.array(_TRANSIENT))
        return rows.filter(pc.invert(passing))

    def reconcile(self) -> pa.Table:
        """Builds the run's predictions: exactly one row for every catalogued image.

        Raises:
            RuntimeError: The counts do not reconcile, or more images failed than `screening.failure_budget` allows.
        """
        self.flush()
        parts = self._parts()
        if not parts:
            raise RuntimeError(f"run {self.run_id}: nothing was scored")
        rows = _rows(self, pa.concat_tables(parts))
        self._check(rows)
        return rows

    def _check(self, rows: pa.Table) -> None:
        wanted = len(self.catalogue)
        if len(rows) != wanted or pc.count_distinct(rows["image_id"]).as_py() != wanted:
            raise RuntimeError(
                f"run {self.run_id}: {len(rows)} rows for {wanted} catalogued images; nothing was published"
            )
        counts = status_counts(rows)
        budget = self.job.screening.failure_budget
        if counts[Status.FAILED] > budget * wanted or counts[Status.FAILED] == wanted:
            failed = rows.filter(pc.equal(rows["status"], Status.FAILED.value))
            reasons = sorted(failed["reason"].value_counts().to_pylist(), key=lambda row: -row["counts"])
            listed = ", ".join(f"{row['values']} {row['counts']}" for row in reasons)
            raise RuntimeError(
                f"run {self.run_id}: {counts[Status.FAILED]} of {wanted} images failed ({listed}), more than "
                f"screening.failure_budget = {budget:.0%} allows; nothing was published. Mend the archive or raise the "
                "budget and start the same run again: what was scored is kept"
            )

    def publish(self, rows: pa.Table, facts: dict[str, Any]) -> dict[str, Any]:
        """Writes the predictions, then the record that makes them visible, then removes the staging."""
        date = self.pin["started_at"][:10]
        path = f"predictions/model_id={self.bundle.model_id}/run_date={date}/{self.run_id}.parquet"
        storage.write_table(storage.join(self.job.output.uri, path), rows)
        counts = status_counts(rows)
        self.record = {
            "schema": tables.SCHEMA_VERSION,
            "verb": "screen",
            "run_id": self.run_id,
            **self.pin,
            "finished_at": datetime.now(UTC).isoformat(),
            "counts": {"catalogued": len(self.catalogue), **{status.value: counts[status] for status in Status}},
            "predictions": [path],
            "bundle": self.pin["plan"]["bundle"],
            "threshold": self.bundle.threshold,
            "weights_sha256": self.bundle.weights_sha256,
            **facts,
        }
        storage.write_bytes(self.record_uri, json.dumps(self.record, indent=2).encode())
        self.clean()
        return self.record

    def clean(self) -> None:
        """Removes what staging a published run still has."""
        storage.delete(self.staging)


def status_counts(rows: pa.Table) -> dict[Status, int]:
    """Counts rows by status; every status is named."""
    found = {row["values"]: row["counts"] for row in rows["status"].value_counts().to_pylist()}
    return {status: found.get(status.value, 0) for status in Status}


def _read_json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else None


_RECONCILE = """
WITH latest AS (  -- a film tried again counts as its last try; equal tries are equal rows
    SELECT * FROM staged
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY status = 'failed', scored_at DESC) = 1
), joined AS (
    SELECT n.* EXCLUDE (patient), l.* EXCLUDE (image_id, format, patient), coalesce(n.patient, l.patient) AS patient,
        CASE WHEN l.sha256 IS NULL THEN n.format ELSE l.format END AS found_format,
        first_value(n.image_id) OVER (PARTITION BY l.sha256, l.status ORDER BY n.position) AS original
    FROM catalogue n LEFT JOIN latest l USING (image_id)
), judged AS (
    SELECT *, coalesce(status = 'scored' AND sha256 IS NOT NULL AND original <> image_id, false) AS copied FROM joined
)
SELECT * REPLACE (
        CASE WHEN copied THEN 'duplicate' WHEN status IS NULL THEN 'failed' ELSE status END AS status,
        CASE WHEN copied THEN 'byte_identical' WHEN status IS NULL THEN 'missing' ELSE reason END AS reason,
        CASE WHEN copied THEN original END AS duplicate_of,
        CASE WHEN NOT copied THEN probability END AS probability,
        found_format AS format)
FROM judged ORDER BY position
"""


def _rows(run: Run, staged: pa.Table) -> pa.Table:
    """Joins catalogue and staged rows, names duplicates, and gives the table its published schema."""
    with duckdb.connect() as connection:
        listed = run.catalogue.drop_columns(["sha256", "uri"])
        connection.register("catalogue", listed.append_column("position", pa.array(range(len(listed)))))
        connection.register("staged", staged)
        joined = connection.sql(_RECONCILE).to_arrow_table()
    lost = set(run.catalogue["image_id"].to_pylist()) & set(run.films["image_id"].to_pylist())
    lost -= set(staged["image_id"].to_pylist())
    if lost:
        raise RuntimeError(
            f"run {run.run_id}: {len(lost)} images that are in the archive were not scored; start it again"
        )
    keep = run.job.output.keep_source_uri
    if keep is None:
        keep = "dicom" not in joined["format"].to_pylist()
    uris = dict(zip(run.films["image_id"].to_pylist(), run.films["uri"].to_pylist(), strict=True)) if keep else {}
    constants = {"model_id": run.bundle.model_id, "run_id": run.run_id, "threshold": run.bundle.threshold}
    computed = {
        "uri": pa.array([uris.get(image_id) for image_id in joined["image_id"].to_pylist()], pa.string()),
        "predicted_label": pc.greater_equal(joined["probability"], run.bundle.threshold).cast(pa.int8()),
        **{name: pa.repeat(value, len(joined)) for name, value in constants.items()},
    }
    schema = tables.prediction_schema(tables.subgroup_columns(run.catalogue.column_names))
    columns = [computed[name] if name in computed else joined[name] for name in schema.names]
    return pa.table([column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)
