"""Ray Train around the loop: workers, restarts, and each epoch as it ends."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pneumobatch import cluster, storage
from pneumobatch.config import Job
from pneumobatch.progress import say, track
from pneumobatch.training import loop
from pneumobatch.training.folds import Fold, cache_size

T = TypeVar("T")


def fit(
    job: Job, resources: cluster.Resources, training: Fold, validation: Fold, run_id: str, staging: str
) -> tuple[dict[str, Any], np.ndarray[Any, Any], list[str]]:
    """Runs the workers; returns the best checkpoint's state with the whole history and the hardware of the last epoch,
    its validation logits, and the ids of their films: an earlier start may have read others than this one."""
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
        logits = np.load(Path(folder) / loop.LOGITS)
        scored = json.loads((Path(folder) / loop.SCORED).read_bytes())
    with result.checkpoint.as_directory() as folder:
        last = torch.load(Path(folder) / loop.CHECKPOINT, map_location="cpu", weights_only=True)
    return {**state, "history": last["history"], "hardware": last.get("hardware")}, logits, scored


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
