"""Catalogue and labels → bundle: the whole training run on one screen."""

import hashlib
import json
import time
from collections.abc import Set
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa

from pneumobatch import cluster, lease, storage
from pneumobatch.archive import catalog, left_out
from pneumobatch.config import Job
from pneumobatch.lineage import code_hash
from pneumobatch.models import bundle as bundles
from pneumobatch.progress import say
from pneumobatch.training.fit import fit
from pneumobatch.training.folds import (
    cache_size,
    decode,
    require_ages,
    require_classes,
    require_readable,
    require_workers,
)
from pneumobatch.training.grid import started_from
from pneumobatch.training.shipping import films_used, ship
from pneumobatch.training.splits import distinct, labelled, validation_fold

PIN = "fingerprint"
"""File of a run's staging folder that holds what its weights depend on."""

STARTED = "started_at"
"""File of a run's staging folder that tells when its first start was."""

FITTED = {"target", "target_value", "uncertain", "validated_age_years"}
"""Keys of `training` that count only after the last epoch: one that proves wrong then is mended without training again.
"""

NEITHER = {"run_id", "max_failures", "failure_budget", "checkpoints_to_keep", "cpus_per_worker", "rationale"}
"""Keys of `training` on which neither weights nor bundle depend."""


class Trained(NamedTuple):
    """What a training run left behind."""

    run_id: str
    uri: str
    bundle: bundles.Bundle


def train(job: Job) -> Trained:
    """Trains to the end, from where an earlier start of the same run stopped; a finished run does nothing.

    Raises:
        ValueError: The archive, its labels or the network do not allow it.
        RuntimeError: Training failed more often than `training.max_failures`, or another start is at work on this run.
    """
    code = code_hash()  # now: the files may change while it trains
    films = catalog.build(job.archive)
    if without := left_out.told(left_out.counted(films)):
        say(without)
    known = distinct(labelled(films, str(job.archive.uri)), job.archive.max_bytes)
    fingerprint, pin = _fingerprints(job, known)
    name = job.network.name.replace("/", "-")
    run_id, staged = (job.training.run_id or f"{name}-{digest[:8]}" for digest in (fingerprint, pin))
    target = storage.join(job.output.uri, "bundles", run_id)
    staging = storage.join(job.output.uri, "_staging", "_trainings", staged)
    with lease.hold(job.output.uri, f"train-{staged}") as ours:
        if _finished(fingerprint, pin, target, staging):
            return Trained(run_id, target, bundles.load(target))
        plan = job.training
        held = validation_fold(
            known["label"].to_pylist(), known["patient"].to_pylist(), plan.validation_fraction, plan.seed,
            shifted=plan.validation == "shifted",
        )  # fmt: skip
        beginning = time.time()
        with cluster.engine(job.cluster) as resources:
            size = job.network.image_size
            training = decode(job, resources, known.filter(pa.array(~held)), cache_size(job), "decode training films")
            validation = decode(job, resources, known.filter(pa.array(held)), size, "decode validation films")
            require_classes(training, "training")
            require_classes(validation, "validation")
            require_readable([training, validation], plan.failure_budget)
            require_workers(training, validation, plan.workers, plan.batch_size)
            require_ages([training, validation], plan.validated_age_years)
            started_at = _pin(pin, staging)  # not before: what is refused can be mended under its name
            there = cluster.offered(local=resources.local)  # decoding may have brought workers to a cluster
            state, logits, scored = fit(job, there, training, validation, staged, staging)
            validation = validation.as_scored(scored)
        lineage = {
            "fingerprint": fingerprint,
            "code": code,
            "hardware": state["hardware"],  # None: a run whose last epoch is an older version's
            "started_at": started_at,
            "ended_at": _now(),
            "seconds": round(time.time() - beginning, 1),
        }
        ours.check()  # whoever took the run over ships it, and needs what is staged
        trained = ship(job, target, state, logits, validation, films_used(films, known, training, validation), lineage)
        ours.check()
        storage.delete(staging)
        return Trained(run_id, target, trained)


def _finished(fingerprint: str, pin: str, target: str, staging: str) -> bool:
    """Whether the run is finished already; what it had staged is deleted then.

    Raises:
        ValueError: A run of that name has another configuration.
    """
    if storage.is_file(storage.join(target, "bundle.json")):
        trained = bundles.load(target).training
        if trained["fingerprint"] != fingerprint:
            raise ValueError(
                f"training.run_id: {target} holds a bundle of another configuration; choose another run_id"
            )
        say(f"{target}: already trained")
        first = storage.join(staging, STARTED)
        # A start that was killed just then has left its checkpoints; another target's run may be staged there by now.
        if not storage.is_file(first) or storage.read_bytes(first).decode() == trained["started_at"]:
            storage.delete(staging)
        return True
    pinned = storage.join(staging, PIN)
    if storage.is_file(pinned) and storage.read_bytes(pinned).decode() != pin:
        raise ValueError(
            f"training.run_id: {staging} holds an unfinished run of another configuration or archive; finish it with "
            "the old one, delete the folder, or choose another run_id"
        )
    return False


def _pin(pin: str, staging: str) -> str:
    """Pins the configuration, so that a resumed run is the same run; returns when its first start was, UTC."""
    first = storage.join(staging, STARTED)
    if not storage.is_file(first):
        storage.write_bytes(first, _now().encode())
    storage.write_bytes(storage.join(staging, PIN), pin.encode())
    return storage.read_bytes(first).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _fingerprints(job: Job, known: pa.Table) -> tuple[str, str]:
    """What the bundle depends on, and what its weights do; where it is written, how many failures it may survive and
    which films of the archive have no label, as those of a later night, is part of neither."""
    # A film that was mended or encoded anew under its name has another size.
    films = json.dumps(known.select(["image_id", "label", "patient", "bytes"]).to_pydict())
    starting = started_from(job.network)

    def digest(without: Set[str]) -> str:
        config = job.model_dump(mode="json", include={"network", "loss", "augmentation", "training"})
        config["network"]["weights"] = starting
        for key in without:
            del config["training"][key]
        config["archive"] = job.archive.model_dump(include={"max_pixels", "max_bytes"})  # which films can be read
        return hashlib.sha256(f"{json.dumps(config, sort_keys=True)}{films}".encode()).hexdigest()

    return digest(NEITHER), digest(NEITHER | FITTED)
