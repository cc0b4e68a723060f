"""A screening run on disk: what is still to do, what is done, and the moment it becomes visible.

    _staging/<run_id>/catalog.parquet   its catalogue, without any path
    _staging/<run_id>/run.json          its identity, pinned at its first start
    _staging/<run_id>/plan.json         how it scores, fixed when the first film is scored
    _staging/<run_id>/parts/…           scored rows, as they come
    catalog/runs/<run_id>.parquet       what it answers for
    predictions/model_id=…/run_date=…/<run_id>.parquet
    runs/<run_id>.json                  written last: until it is there, the run is not published

A run killed at any moment goes on from its parts. What is published is created, never overwritten: whoever comes second
finds it there and takes it as it is. One file holds a run's rows, so that a reader sees all of them or none.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pneumobatch import storage, tables
from pneumobatch.archive import catalog, left_out
from pneumobatch.config import Job
from pneumobatch.identity import SITE_KEY, key_check
from pneumobatch.lineage import code_hash
from pneumobatch.models.bundle import Bundle
from pneumobatch.screening import reconcile
from pneumobatch.screening.budget import PASSING, Budget, OverBudgetError
from pneumobatch.screening.reconcile import Predictions
from pneumobatch.screening.scorer import Plan
from pneumobatch.tables import Status

FLUSH_ROWS = 4096
FLUSH_SECONDS = 2.0
FLUSH_SHARE = 0.01
"""A part is written when so many rows have come, or so long has passed: 2 s, and 1 % of the time so far in long runs.
That is what a kill can lose, and it keeps the parts few."""

LAYOUT = f"{tables.SCHEMA_VERSION} {' '.join(field.name for field in fields(Plan))}"
"""What staging is made of: another version's is not taken up."""


class Run:
    """One screening run, new or taken up again.

    Raises:
        ValueError: The run id belongs to a run with another model, archive or configuration.
    """

    def __init__(self, job: Job, bundle: Bundle, run_id: str | None = None) -> None:
        self.job, self.bundle = job, bundle
        self.run_id = run_id or job.screening.run_id or default_id(job, bundle)
        self.record_uri = storage.join(job.output.uri, "runs", f"{self.run_id}.json")
        self.staging = storage.join(job.output.uri, "_staging", self.run_id)
        self.identity = {"model_id": bundle.model_id, "configuration": fingerprint(job), "site_key": key_check()}
        self.accepted: Callable[[], pa.ChunkedArray] = lambda: pa.chunked_array([], pa.string())
        """Finds the ids of films that failed in a published run before: they do not count against the budget again."""
        self.check: Callable[[], None] = lambda: None
        """Raises where another start has taken the run over (`lease.Lease.check`): what is staged is the other's."""
        self._waiting: list[pa.Table] = []
        self._started = self._flushed = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Reads what is on disk: `record` where the run is published, `pin` where it was ever started."""
        self.record, self.pin = started(self.job.output.uri, self.run_id)
        for key, value in self.identity.items():
            if self.pin and self.pin.get(key, value) != value:  # runs of older versions do not name their site key
                raise ValueError(
                    f"screening.run_id: {self.run_id} was started with another {key} ({self.pin[key]}, now {value}); "
                    + (
                        f"set {SITE_KEY} as it was, or delete {self.staging} to take its films anew"
                        if key == "site_key"
                        else "choose another run_id"
                    )
                )
        if self.pin and not self.record and not continues(self.pin):
            raise ValueError(
                f"screening.run_id: {self.run_id} was begun by another version of pneumobatch; finish it by that, or "
                f"delete {self.staging} to take its films anew"
            )

    def begin(self, films: pa.Table) -> pa.Table:
        """Pins the catalogue at the first start; returns the rows of `films` that are still to do.

        Args:
            films: The archive as it is listed now (`catalog.build`), with the paths that the pinned catalogue lacks.
        """
        pinned = storage.join(self.staging, "catalog.parquet")
        if not self.pin:
            storage.write_table(pinned, catalog.publishable(films, keep_uri=False))
            self.pin = {
                "run_id": self.run_id, **self.identity, "layout": LAYOUT, "started_at": datetime.now(UTC).isoformat(),
                "beside_dicom": left_out.is_beside_dicom(films),
            }  # fmt: skip
            storage.write_bytes(storage.join(self.staging, "run.json"), json.dumps(self.pin, indent=2).encode())
        # DICOM files may have come since then.
        self.pin["beside_dicom"] = self.pin.get("beside_dicom") or left_out.is_beside_dicom(films)
        self.catalogue = storage.read_table(pinned)
        pinned_ids = self.catalogue["image_id"].combine_chunks()
        self.films = _kept(films, pc.is_in(films["image_id"], pinned_ids))
        staged = self._parts(["image_id", "version", "reason", "status"])
        settled = reconcile.settled(staged, self.films, PASSING)
        return _kept(self.films, pc.invert(pc.is_in(self.films["image_id"], settled.combine_chunks())))

    def plan(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Fixes how the run scores, or returns what an earlier start fixed: the same run, the same probabilities."""
        uri = storage.join(self.staging, "plan.json")
        storage.create_bytes(uri, json.dumps(wanted, indent=2).encode())
        plan: dict[str, Any] = json.loads(storage.read_bytes(uri))
        return plan

    def planned(self) -> dict[str, Any] | None:
        """What an earlier start fixed by `plan`, if there was one."""
        return read_json(storage.join(self.staging, "plan.json"))

    def stage(self, rows: pa.Table) -> None:
        """Takes scored rows; they are safe once a part is written."""
        self._waiting.append(rows)
        now = time.monotonic()
        patience = max(FLUSH_SECONDS, FLUSH_SHARE * (now - self._started))
        if sum(len(table) for table in self._waiting) >= FLUSH_ROWS or now - self._flushed >= patience:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait as one part."""
        if self._waiting:
            self.check()
            part = storage.join(self.staging, "parts", f"{uuid.uuid4().hex}.parquet")
            storage.write_table(part, pa.concat_tables(self._waiting).replace_schema_metadata(None))
            self._waiting = []
        self._flushed = time.monotonic()

    def _parts(self, columns: list[str] | None = None) -> pa.Table:
        """All staged rows; tries of one film stand beside each other."""
        folder = storage.join(self.staging, "parts")
        uris = sorted(storage.join(folder, file.path) for file in storage.list_files(folder))
        with ThreadPoolExecutor(16) as pool:
            parts = list(pool.map(lambda uri: storage.read_table(uri, columns), uris))
        return pa.concat_tables(parts) if parts else reconcile.nothing_staged()

    def reconcile(self) -> Predictions:
        """Builds the run's predictions: exactly one row for every catalogued image.

        Raises:
            OverBudgetError: More images failed than the failure budget allows.
            RuntimeError: The counts do not reconcile, or another start has taken the run over.
        """
        self.flush()
        self.check()
        scored = pc.is_in(self.films["image_id"], self._parts(["image_id"])["image_id"].combine_chunks())
        lost = len(self.films) - pc.sum(scored, min_count=0).as_py()
        if lost:
            raise RuntimeError(
                f"run {self.run_id}: {lost} images that are in the archive were not scored; start it again"
            )
        constants = {"model_id": self.bundle.model_id, "run_id": self.run_id, "threshold": self.bundle.threshold}
        keep = self.job.output.keep_source_uri
        if keep is None and self.pin and self.pin.get("beside_dicom"):
            keep = False
        data = reconcile.predictions(
            self.catalogue, self.films, self._parts, constants, self.bundle.uncertain, keep_uri=keep
        )
        found = Predictions.read(data)
        if not found.answer_for(self.catalogue):
            raise RuntimeError(
                f"run {self.run_id}: {found.rows} rows for {len(self.catalogue)} catalogued images are not one each; "
                "nothing was published"
            )
        if found.contradicting:
            raise RuntimeError(
                f"run {self.run_id}: {found.contradicting} rows have a status that does not fit their probability; "
                "nothing was published; this is a bug"
            )
        self._check_budget(found)
        return found

    def failed_again(self, found: Predictions) -> int:
        """Films that failed once more as an earlier run has published: they are no news of this run's films."""
        passing = any(reason in PASSING for (_, reason), _ in found.reasons)
        return Budget(self.job.screening, found).known(self.accepted()) if passing else 0

    def _check_budget(self, found: Predictions) -> None:
        budget = Budget(self.job.screening, found)
        if not budget.over():
            return
        tried, there = self._parts(["image_id"])["image_id"], self.films["image_id"]
        if budget.over(budget.excused(tried, there, self.accepted())):
            text = (
                f"run {self.run_id}: {budget.told()}. To give this run up, delete {self.staging}: a later one takes "
                "its films"
            )
            storage.write_bytes(storage.join(self.staging, "over_budget"), text.encode())
            raise OverBudgetError(text)

    def publish(self, found: Predictions, facts: dict[str, Any]) -> dict[str, Any]:
        """Creates catalogue and predictions, then the record that makes them visible, then removes the staging.

        Raises:
            RuntimeError: Predictions of this name are there and do not answer for this catalogue.
        """
        assert self.pin is not None
        date = self.pin["started_at"][:10]
        places = {
            "catalog": f"catalog/runs/{self.run_id}.parquet",
            "predictions": f"predictions/model_id={self.bundle.model_id}/run_date={date}/{self.run_id}.parquet",
        }
        # A start that was killed between the writes, or taken over after a long silence, may have been here.
        listed = self._create(places["catalog"], storage.encode(self.catalogue))
        written = self._create(places["predictions"], found.data)
        if written is not found.data:
            found = Predictions.read(written)
        ids = pq.read_table(pa.BufferReader(listed), columns=["image_id"])["image_id"]
        fits = {"catalog": ids.equals(self.catalogue["image_id"]), "predictions": found.answer_for(self.catalogue)}
        if strange := " and ".join(storage.join(self.job.output.uri, places[name]) for name in fits if not fits[name]):
            raise RuntimeError(
                f"{strange}: there already, of a start whose staging was deleted, for other images; delete what is "
                "named here and start again, or choose another screening.run_id"
            )
        record = {
            "schema": tables.SCHEMA_VERSION,
            "verb": "screen",
            **self.pin,
            "finished_at": datetime.now(UTC).isoformat(),
            "counts": {"catalogued": found.rows, **{status.value: found.count(status) for status in Status}},
            "predictions": [places["predictions"]],
            "catalog": places["catalog"],
            "hashes": {
                "catalog": hashlib.sha256(listed).hexdigest(),
                "predictions": hashlib.sha256(found.data).hexdigest(),
                "code": code_hash(),
            },
            "plan": self.planned(),
            "threshold": self.bundle.threshold,
            "weights_sha256": self.bundle.weights_sha256,
            **facts,
        }
        storage.create_bytes(self.record_uri, json.dumps(record).encode())  # one line: SQL engines read it as a row
        self.record = read_json(self.record_uri)
        assert self.record is not None
        self.clean()
        return self.record

    def _create(self, path: str, data: bytes) -> bytes:
        """Creates a file of the output, or takes the one that is there; returns its content."""
        uri = storage.join(self.job.output.uri, path)
        return data if storage.create_bytes(uri, data) else storage.read_bytes(uri)

    def clean(self) -> None:
        """Removes what staging a published run still has."""
        storage.delete(self.staging)


def _kept(films: pa.Table, chosen: pa.ChunkedArray) -> pa.Table:
    """Filters a table; one that is kept whole is not copied, as a million films take 200 MB."""
    return films if pc.all(chosen, min_count=0).as_py() else films.filter(chosen)


def started(output: str, run_id: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Reads a run's record, where it is published, and its pin, where it was ever started."""
    record = read_json(storage.join(output, "runs", f"{run_id}.json"))
    return record, record or read_json(storage.join(output, "_staging", run_id, "run.json"))


def default_id(job: Job, bundle: Bundle) -> str:
    """Names today's run of a model over an archive."""
    return f"{datetime.now(UTC):%Y-%m-%d}-{'nightly-' * job.screening.nightly}{series(job, bundle)}"


def series(job: Job, bundle: Bundle) -> str:
    """What a night has in common with other nights: the model and the archive."""
    return f"{bundle.model_id}-{hashlib.sha256(str(job.archive.uri).encode()).hexdigest()[:6]}"


def fingerprint(job: Job) -> str:
    """What the rows depend on besides the model; the failure budget and the engine are not part of it."""
    # Without defaults: a version that knows a further key does not make every run another one.
    chosen = {"batch_size", "precision", "compile", "gate", "nightly"}
    screening = job.screening.model_dump(mode="json", include=chosen, exclude_defaults=True)
    config = [screening, job.archive.model_dump(mode="json", exclude_defaults=True), job.output.keep_source_uri]
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def continues(pin: dict[str, Any]) -> bool:
    """Whether this version can take up what the run of that pin has staged."""
    return bool(pin.get("layout", LAYOUT) == LAYOUT)


def read_json(uri: str) -> dict[str, Any] | None:
    """Reads a JSON object, or None where there is none.

    Raises:
        ValueError: It is something else; the message names it.
    """
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{uri}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{uri}: is no JSON object")
    return content
