"""Catalogue and labels → bundle: the whole training run on one screen."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pneumobatch import __version__, cluster, lease, metrics, storage, tables
from pneumobatch.archive import catalog, left_out
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.config import Gate, Job
from pneumobatch.lineage import code_hash
from pneumobatch.models import bundle as bundles
from pneumobatch.models.weights import save_bundle
from pneumobatch.progress import say, track
from pneumobatch.tables import Status
from pneumobatch.training import card, loop
from pneumobatch.training.splits import usable, validation_fold

T = TypeVar("T")

BLOCK_FILMS = 256
"""Films a decode task."""

PIN = "fingerprint"
"""File of a run's staging folder that holds what its result depends on."""


class Trained(NamedTuple):
    """What a training run left behind."""

    run_id: str
    uri: str
    bundle: bundles.Bundle


class Fold(NamedTuple):
    """Decoded films of one side of the split."""

    blocks: list["ray.ObjectRef[pa.Table]"]
    """References of Arrow blocks in the object store, films in order."""
    films: pa.Table
    """One row a film, in order: status, label, image statistics and the attributes of `tables.reference_schema`."""

    @property
    def readable(self) -> pa.Table:
        """The films that have a picture."""
        return self.films.filter(pc.equal(self.films["status"], Status.SCORED.value))

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        """Labels of the readable films."""
        return self.readable["label"].to_numpy()  # type: ignore[no-any-return]

    @property
    def unreadable(self) -> int:
        """Films without a picture."""
        return len(self.films) - len(self.labels)


def train(job: Job) -> Trained:
    """Trains to the end, from where an earlier start of the same run stopped; a finished run does nothing.

    Raises:
        ValueError: The archive, its labels or the network do not allow it.
        RuntimeError: Training failed more often than `training.max_failures`, or another start is at work on this run.
    """
    code = code_hash()  # now: the files may change while it trains
    films = catalog.find_duplicates(catalog.build(job.archive), job.archive.max_bytes)
    if without := left_out.told(left_out.counted(films)):
        say(without)
    fingerprint = _fingerprint(job, films)
    run_id = job.training.run_id or f"{job.network.name.replace('/', '-')}-{fingerprint[:8]}"
    target = storage.join(job.output.uri, "bundles", run_id)
    staging = storage.join(job.output.uri, "_staging", run_id)
    with lease.hold(job.output.uri, f"train-{run_id}"):
        if _finished(fingerprint, target, staging):
            return Trained(run_id, target, bundles.load(target))
        known = usable(films, str(job.archive.uri))
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
            started_at = _pin(fingerprint, staging)  # not before: what is refused can be mended under its name
            there = cluster.offered(local=resources.local)  # decoding may have brought workers to a cluster
            state, logits = _fit(job, there, training, validation, run_id, staging)
        lineage = {
            "fingerprint": fingerprint,
            "code": code,
            "hardware": state["hardware"],  # None: a run whose last epoch is an older version's
            "started_at": started_at,
            "ended_at": _now(),
            "seconds": round(time.time() - beginning, 1),
        }
        trained = _bundle(job, target, state, logits, validation, _data(films, known, training, validation), lineage)
        storage.delete(staging)
        return Trained(run_id, target, trained)


def _finished(fingerprint: str, target: str, staging: str) -> bool:
    """Whether the run is finished already.

    Raises:
        ValueError: A run of that name has another configuration.
    """
    if storage.is_file(storage.join(target, "bundle.json")):
        if bundles.load(target).training["fingerprint"] != fingerprint:
            raise ValueError(
                f"training.run_id: {target} holds a bundle of another configuration; choose another run_id"
            )
        say(f"{target}: already trained")
        return True
    pin = storage.join(staging, PIN)
    if storage.is_file(pin) and storage.read_bytes(pin).decode() != fingerprint:
        raise ValueError(
            f"training.run_id: {staging} holds an unfinished run of another configuration or archive; finish it with "
            "the old one, delete the folder, or choose another run_id"
        )
    return False


def _pin(fingerprint: str, staging: str) -> str:
    """Pins the configuration, so that a resumed run is the same run; returns when its first start was, UTC."""
    first = storage.join(staging, "started_at")
    if not storage.is_file(first):
        storage.write_bytes(first, _now().encode())
    storage.write_bytes(storage.join(staging, PIN), fingerprint.encode())
    return storage.read_bytes(first).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _fingerprint(job: Job, films: pa.Table) -> str:
    """What a result depends on; where it is written and how many failures it may survive is not part of it."""
    config = job.model_dump(mode="json", include={"network", "loss", "augmentation", "training"})
    for key in ("run_id", "max_failures", "checkpoints_to_keep", "cpus_per_worker", "rationale"):
        del config["training"][key]
    known = films.select(["image_id", "label", "patient"]).to_pydict()
    return hashlib.sha256(json.dumps([config, known], sort_keys=True).encode()).hexdigest()


def cache_size(job: Job) -> int:
    """Side of the decoded training films: a seventh larger than the input, so that crops keep their detail."""
    return round(job.network.image_size * 8 / 7)


def decode(job: Job, resources: cluster.Resources, films: pa.Table, size: int, title: str) -> Fold:
    """Decodes films once, by the decoder that screening uses; they stay in the object store as uint8.

    Columns in: image_id, uri, label. Out: those of `archive.films` and label, one row a film, in order.

    Raises:
        cluster.NoWorkerError: The cluster has no worker, and none came.
    """
    decoder = FilmDecoder(size, job.archive.max_pixels, Gate(allow_any_age=True), max_bytes=job.archive.max_bytes)
    ray.data.DataContext.get_current().execution_options.preserve_order = True  # a resumed run sees the same order
    rows = films.select(["image_id", "uri", "label"]).combine_chunks()
    chunks = [rows.slice(start, BLOCK_FILMS) for start in range(0, len(rows), BLOCK_FILMS)]

    def decode_chunk(chunk: pa.Table) -> pa.Table:
        return decoder(chunk).append_column("label", chunk["label"])

    stage = ray.data.from_arrow(chunks).map_batches(decode_chunk, batch_format="pyarrow", batch_size=None)
    say(f"{title}: {len(rows)} at {size} px")
    with cluster.awaited("decoded films", resources, job.cluster, lambda found: found.cpus > 0):
        decoded = stage.materialize()
    described = [name for name in tables.reference_schema().names if name != "probability"]
    summary = decoded.select_columns([*described, "label"])
    return Fold(decoded.to_arrow_refs(), pa.concat_tables(ray.get(summary.to_arrow_refs())))


def require_classes(fold: Fold, name: str) -> None:
    """Refuses decoded films that cannot train or judge a network.

    Raises:
        ValueError: The fold of that name has no readable film of a class.
    """
    if len(set(fold.labels.tolist())) < 2:
        raise ValueError(
            f"archive: too few readable films of a class are left: the {name} films have one class or none; "
            "pneumobatch screen says what became of each film"
        )


def _fit(
    job: Job, resources: cluster.Resources, training: Fold, validation: Fold, run_id: str, staging: str
) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Runs the workers; returns the best checkpoint's state with the whole history and the hardware of the last epoch,
    and its validation logits."""
    plan = job.training
    counts = [int((training.labels == value).sum()) for value in (0, 1)]
    most = max(plan.workers)
    gpu = resources.gpus > 0 if plan.use_gpu is None else plan.use_gpu
    cpus = plan.cpus_per_worker or _cpus_per_worker(resources, plan.workers, gpu)
    where, path = storage.filesystem(storage.join(staging, "train"))
    config: dict[str, Any] = {
        "job": job,
        "train": training.blocks,
        "validation": validation.blocks,
        "class_counts": counts,
        "cache_size": cache_size(job),
        "threads": 0 if gpu else max(int(cpus), 1),
        "history": storage.join(staging, "history.json"),
    }
    trainer = TorchTrainer(
        loop.train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            # Ray's types are those of Train V1, which knew no elastic range.
            num_workers=most if len(plan.workers) == 1 else (min(plan.workers), most),  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=run_id,
            storage_path=path,
            storage_filesystem=where,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=plan.checkpoints_to_keep, checkpoint_score_attribute="auroc", checkpoint_score_order="max"
            ),
        ),
    )
    say(
        f"train {job.network.name}: {sum(counts)} films ({counts[1]} pneumonia), {most} × {cpus:g} CPU" + " + GPU" * gpu
    )

    def fits(found: cluster.Resources) -> bool:
        return (found.gpus if gpu else sum(node.cpus // cpus for node in found.nodes)) >= min(plan.workers)

    waiting = cluster.awaited("an epoch", resources, job.cluster, fits)
    with waiting as came, _epochs(config["history"], plan.epochs, came):
        try:
            result = _apart(trainer.fit)
        except ray.train.TrainingFailedError as error:
            cause = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"training failed after {plan.max_failures} restarts: {cause}") from error
    best = result.get_best_checkpoint("auroc", "max")
    assert best is not None and result.checkpoint is not None
    with best.as_directory() as folder:
        state = torch.load(Path(folder) / loop.CHECKPOINT, map_location="cpu", weights_only=True)
        logits = np.load(Path(folder) / "logits.npy")
    with result.checkpoint.as_directory() as folder:
        last = torch.load(Path(folder) / loop.CHECKPOINT, map_location="cpu", weights_only=True)
    return {**state, "history": last["history"], "hardware": last.get("hardware")}, logits


def _cpus_per_worker(resources: cluster.Resources, workers: tuple[int, ...], gpu: bool) -> float:
    """Divides the local machine's CPUs among all workers, a GPU node's among its GPUs, and otherwise those of the
    cluster's smallest node among the workers that it must hold.

    An elastic range on a cluster counts with its least: more workers come with more nodes.
    """
    if resources.local:
        share = resources.cpus / max(workers)
        return share if share < 1 else int(share)
    if gpu:
        return max(min((node.cpus // node.gpus for node in resources.nodes if node.gpus), default=1), 1)
    each = math.ceil(min(workers) / max(len(resources.nodes), 1))
    return max(min((node.cpus for node in resources.nodes), default=1) // each, 1)


def _told(row: dict[str, float]) -> str:
    return (
        f"loss {row['train_loss']:.4f}, validation loss {row['validation_loss']:.4f}, AUROC {row['auroc']:.4f}, "
        f"sensitivity {row['sensitivity']:.3f}, specificity {row['specificity']:.3f}, "
        f"{row['images_per_second']:.0f} images/s"
    )


def _apart(call: Callable[[], T]) -> T:
    """Runs `call` in a thread of its own. In the main one Ray Train would take over interrupts, on which it waits for
    workers that may be gone, and ends the process with exit code 0."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@contextmanager
def _epochs(history: str, epochs: int, came: Callable[[], None]) -> Iterator[None]:
    """Shows each epoch as the workers write it into the run's history, and calls `came` for it."""
    done = threading.Event()

    def rows() -> list[dict[str, float]]:
        return json.loads(storage.read_bytes(history)) if storage.is_file(history) else []

    def follow() -> None:
        shown = len(rows())
        with track("train", epochs, "epochs", every=0) as advance:
            while True:
                last = done.wait(1.0)
                for row in rows()[shown:]:
                    came()
                    shown = int(row["epoch"])
                    advance(shown, _told(row))
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _data(films: pa.Table, known: pa.Table, training: Fold, validation: Fold) -> dict[str, Any]:
    used = len(training.labels) + len(validation.labels)
    return {
        "train": len(training.labels),
        "train_sick": int((training.labels == 1).sum()),
        "train_well": int((training.labels == 0).sum()),
        "validation": len(validation.labels),
        "validation_sick": int((validation.labels == 1).sum()),
        "validation_well": int((validation.labels == 0).sum()),
        "left_out": films.num_rows - used,
        "unreadable": training.unreadable + validation.unreadable,
        "patients_known": bool(pc.all(pc.is_valid(known["patient"])).as_py()),
    }


def _bundle(
    job: Job, target: str, state: dict[str, Any], logits: np.ndarray[Any, Any], validation: Fold,
    data: dict[str, Any], lineage: dict[str, Any],
) -> bundles.Bundle:  # fmt: skip
    """Fits calibration, threshold and uncertain band on the validation logits and writes the bundle.

    For `training.validation = "shifted"` the logits hold every film twice, as it is and changed: both are fitted on.
    """
    plan, count = job.training, len(validation.labels)
    labels = np.tile(validation.labels, len(logits) // count)
    margins = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    calibration = metrics.fit_calibration(margins, labels)
    probabilities = calibration.probabilities(margins)
    threshold = metrics.choose_threshold(labels, probabilities, plan.target, plan.target_value)
    uncertain = metrics.uncertain_band(labels, probabilities, threshold, *plan.uncertain)
    found = _found(labels[:count], probabilities[:count], threshold)
    if len(logits) > count:
        shifted = _found(labels[count:], probabilities[count:], threshold)
        found |= {f"shifted_{name}": value for name, value in shifted.items()}
    found["epoch"] = state["epoch"]
    goal = (
        "balanced sensitivity and specificity" if plan.target == "balanced" else f"{plan.target} >= {plan.target_value}"
    )
    weights = state["network"]
    if plan.ema_decay:
        weights = {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
    bundle = bundles.Bundle(
        network=job.network.model_copy(update={"weights": None}),
        preprocessing=bundles.Preprocessing(image_size=job.network.image_size),
        temperature=calibration.temperature,
        offset=calibration.offset,
        threshold=threshold,
        target=goal,
        uncertain=uncertain,
        ranges=state.get("ranges", {}),  # a run that an older version began may have its best epoch from then
        validated_age_years=plan.validated_age_years,
        metrics=found,
        data=data,
        training={
            "config": job.model_dump(mode="json", include={"network", "loss", "augmentation", "training"}),
            **lineage,
        },
        versions={"pneumobatch": __version__, **{name: version(name) for name in ("torch", "torchvision", "ray")}},
    )
    history = pa.Table.from_pylist(state["history"])
    reference = _reference(validation, probabilities[:count], plan.seed)
    text = card.write(job, calibration, threshold, goal, uncertain, data, found, lineage)
    return save_bundle(target, bundle, weights, history, reference, text)


def _found(labels: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any], threshold: float) -> dict[str, Any]:
    counts = metrics.count(labels, probabilities >= threshold)
    return {
        "auroc": metrics.auroc(labels, probabilities),
        **{rate: counts.rate(rate) for rate in ("sensitivity", "specificity", "accuracy")},
        "ece": metrics.ece(labels, probabilities),
        "brier": metrics.brier(labels, probabilities),
    }


def _reference(validation: Fold, probabilities: np.ndarray[Any, Any], seed: int) -> pa.Table:
    """Describes the validation fold for drift: what the films look like, how they score, and how many do not.

    At most `tables.REFERENCE_ROWS` rows, shuffled, so that none can be told to be this or that film by its place.
    """
    films, schema = validation.films, tables.reference_schema()
    scores = np.full(len(films), np.nan)
    scores[pc.equal(films["status"], Status.SCORED.value).to_numpy()] = probabilities
    films = films.append_column("probability", pa.array(scores, from_pandas=True))
    drawn = np.random.default_rng(seed).permutation(len(films))[: tables.REFERENCE_ROWS]
    return films.select(schema.names).take(pa.array(drawn)).cast(schema)
