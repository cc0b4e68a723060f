"""An experiment's trials on Ray Tune: the loop of `train` with one worker each, on films that all of them share.

A trial keeps its own checkpoint and leaves its scores under its key, so that a killed experiment goes on in
mid-trial, and a grid that has grown trains only what is new. Tune decides what runs when, and what is stopped early.
"""

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence, Set
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.tune
import torch
from ray.tune.schedulers import ASHAScheduler

from pneumobatch import cluster, lease, storage
from pneumobatch.config import Job
from pneumobatch.lineage import code_hash
from pneumobatch.models.hardware import described
from pneumobatch.models.networks import cost
from pneumobatch.progress import say
from pneumobatch.training.grid import Trial
from pneumobatch.training.live import Live
from pneumobatch.training.loop import Trainer
from pneumobatch.training.shards import Films, Shard, image_ids

REDUCTION = 3
"""ASHA keeps the best third at each of its rungs."""

CHECKPOINT = "checkpoint.pt"
"""All that a trial's next epoch depends on; renamed when the chosen weights got their epoch's name."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each trial keeps its own state: what Tune writes is not needed again
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it ends an interrupted experiment as one that is done
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints even where it is told to be silent
}


class Folds(NamedTuple):
    """The decoded films of a protocol at one image size: references of blocks in the object store."""

    train: list["ray.ObjectRef[pa.Table]"]
    validation: list["ray.ObjectRef[pa.Table]"]
    test: list["ray.ObjectRef[pa.Table]"]
    cache_size: int
    """Side of the training films, pixels."""


def result_uri(job: Job, key: str) -> str:
    """Where a finished trial's scores lie."""
    return storage.join(job.output.uri, "experiments", job.experiment.name, "trials", f"{key}.json")


def own_uri(trial: Trial) -> str:
    """Where an unfinished trial keeps its checkpoint: `CHECKPOINT`, and the weights of the epoch chosen so far."""
    return storage.join(trial.job.output.uri, "_staging", "_experiments", trial.job.experiment.name, trial.key)


def kept(trial: Trial) -> dict[str, Any] | None:
    """What a finished trial left behind; one that was stopped early is finished only for those who stop it early."""
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(result_uri(trial.job, trial.key)))
    except FileNotFoundError:
        return None
    stops = trial.job.experiment.early_stopping and not trial.baseline
    return found if stops or "stopped" not in found else None


def run(
    job: Job,
    resources: cluster.Resources,
    trials: Sequence[Trial],
    folds: Mapping[tuple[str, int], Folds],
    scheduler: ASHAScheduler | None,
    ours: lease.Lease,
) -> dict[str, str]:
    """Runs trials, and returns why one did not finish, by its key; the others have left their scores.

    Args:
        job: The experiment's job.
        resources: What the engine offers.
        trials: What is to be run.
        folds: Decoded films by protocol and image size.
        scheduler: Stops poor trials early (`asha`); None stops none.
        ours: The experiment's lease.

    Raises:
        lease.HeldError: Another start has taken the experiment over meanwhile.
    """
    gpu = resources.gpus > 0 if job.training.use_gpu is None else job.training.use_gpu
    cpus = _cpus(job, resources, gpu=gpu)
    gpus = 1 / job.experiment.trials_per_gpu if gpu else 0
    at_once = None if gpu else job.experiment.concurrent
    told = f" and {gpus:.3g} GPU" if gpu else ""
    say(f"experiment {job.experiment.name}: {len(trials)} trials, each on {cpus} CPU{told}")
    function = ray.tune.with_parameters(_trial, trials={t.key: t for t in trials}, folds=dict(folds), threads=cpus)
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)

    def fits(found: cluster.Resources) -> bool:
        return any(node.gpus >= 1 if gpu else node.cpus >= cpus for node in found.nodes)

    waiting = cluster.awaited("an epoch", resources, job.cluster, fits)
    with tempfile.TemporaryDirectory() as folder, waiting as came, Live(trials, came) as live:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(function, {"CPU": cpus, "GPU": gpus}),
            param_space={"key": ray.tune.grid_search([trial.key for trial in trials])},
            tune_config=ray.tune.TuneConfig(
                scheduler=scheduler,
                max_concurrent_trials=at_once,
                reuse_actors=True,  # or each trial would import torch anew
                time_budget_s=job.experiment.hours and job.experiment.hours * 3600,
                trial_dirname_creator=lambda trial: str(trial.config["key"]),
            ),
            run_config=ray.tune.RunConfig(
                name=job.experiment.name,
                storage_path=folder,
                failure_config=ray.tune.FailureConfig(max_failures=job.training.max_failures),
                callbacks=[live],
                verbose=0,
            ),
        )
        grid = tuner.fit()
        ended = [grid[i] for i in range(len(grid))]
    ours.check()
    found = {str(result.config["key"]): result for result in ended if result.config}
    left = [trial for trial in trials if kept(trial) is None]
    reasons = {trial.key: _reason(found.get(trial.key), trial, ended=live.ended(trial.key)) for trial in left}
    for trial in left:
        if reasons[trial.key].startswith("stopped"):  # for good: a later start shall not go on with it
            history = _loaded(storage.join(own_uri(trial), CHECKPOINT))["history"]
            content = {"stopped": reasons[trial.key], "history": history}
            storage.write_bytes(result_uri(job, trial.key), json.dumps(content).encode())
            storage.delete(own_uri(trial))
    return reasons


class Sparing(ASHAScheduler):
    """ASHA that stops none of some trials, by their keys, but measures the others by them."""

    def __init__(self, spared: Set[str], epochs: int) -> None:
        super().__init__(
            time_attr="epoch", metric="auroc", mode="max", max_t=epochs, grace_period=max(epochs // 4, 1),
            reduction_factor=REDUCTION,
        )  # fmt: skip
        self.spared = spared

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides whether a trial goes on."""
        decision = super().on_trial_result(controller, trial, result)
        return str(self.CONTINUE if trial.config["key"] in self.spared else decision)


def asha(trials: Sequence[Trial], earlier: Mapping[str, Mapping[str, Any]]) -> ASHAScheduler:
    """Returns a scheduler whose rungs hold what earlier starts have seen, and which never stops the baseline.

    Args:
        trials: All trials of the grid: the longest of them places the rungs.
        earlier: What finished and stopped trials left behind, by key; those in mid-way report their own past again.
    """
    spared = {trial.key for trial in trials if trial.baseline}
    scheduler = Sparing(spared, max(trial.job.training.epochs for trial in trials))
    for key, found in earlier.items():
        past = SimpleNamespace(trial_id=key, config={"key": key})
        scheduler.on_trial_add(None, past)  # type: ignore[arg-type]  # ASHA reads the id alone
        for row in found.get("history", ()):  # an older version kept none of a stopped trial
            scheduler.on_trial_result(None, past, row)
    return scheduler


def _cpus(job: Job, resources: cluster.Resources, *, gpu: bool) -> int:
    """CPUs of a trial: its share, but never more than a node has, where it would wait for ever; on a
    GPU its part of the CPUs beside it."""
    if gpu:
        at_once = job.experiment.trials_per_gpu
        return max(int(min((n.cpus / (n.gpus * at_once) for n in resources.nodes if n.gpus), default=1)), 1)
    share = resources.cpus / job.experiment.concurrent
    return max(int(min(share, max((node.cpus for node in resources.nodes), default=1))), 1)


def _reason(result: "ray.tune.Result | None", trial: Trial, *, ended: bool) -> str:
    """Why a trial has no scores, beginning with `failed`, `stopped` or `not run`.

    Args:
        result: What Tune knows of it.
        trial: The trial.
        ended: Whether the scheduler ended it, and not the experiment's end.
    """
    if result is None or (result.error is None and not result.metrics):
        return "not run: stopped before its first epoch; start the experiment again to go on"
    if result.error is not None:
        return f"failed: {str(result.error).strip().splitlines()[-1]}"
    epoch = int((result.metrics or {}).get("epoch", 0))
    done = f"after epoch {epoch} of {trial.job.training.epochs}"
    if ended:
        return f"stopped: {done}, validation AUROC {(result.metrics or {})['auroc']:.4f}"
    return f"not run: stopped {done}; start the experiment again to go on"


def _trial(
    config: dict[str, Any], trials: Mapping[str, Trial], folds: Mapping[tuple[str, int], Folds], threads: int
) -> None:
    """Trains one trial to its last epoch, from its own checkpoint where there is one, and leaves its scores."""
    trial = trials[config["key"]]
    job, size = trial.job, trial.job.network.image_size
    code = code_hash()  # now: the files may change while it trains
    torch.set_num_threads(threads)
    fold = folds[trial.protocol, size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = Films.open(fold.train, fold.cache_size).on(device)
    validation, test = (Films.open(blocks, size).on(device) for blocks in (fold.validation, fold.test))
    counts = torch.bincount(train.labels, minlength=2).tolist()
    trainer = Trainer(job, counts, device, Shard(0, 1))
    parameters, multiply_adds = cost(trainer.network, size)
    state = storage.join(own_uri(trial), CHECKPOINT)

    def chosen() -> str:
        return storage.join(own_uri(trial), f"chosen-{chosen_epoch(trainer.history)}.pt")

    if storage.is_file(state):
        trainer.restore(_loaded(state))
        for row in trainer.history[: job.training.epochs - 1]:  # a scheduler that was started again has not seen them
            ray.tune.report(row)
    while trainer.epoch < job.training.epochs:
        before = chosen() if trainer.history else None
        trainer.advance(train, validation)
        if chosen() != before:
            buffer = io.BytesIO()
            torch.save(trainer.shipped().state_dict(), buffer)
            storage.write_bytes(chosen(), buffer.getvalue())
        storage.write_bytes(state, trainer.state())
        if before and before != chosen():  # only now: a start after a kill may still go on from the state before
            storage.delete(before)
        if trainer.epoch < job.training.epochs:
            ray.tune.report(trainer.history[-1])
    trainer.shipped().load_state_dict(_loaded(chosen()))
    margins = _margins(trainer.validate(validation))
    found = {
        "row": trial.row,
        "epochs": trainer.epoch,
        "chosen_epoch": chosen_epoch(trainer.history),
        "history": trainer.history,
        "train_films": len(train),
        "validation_labels": validation.labels.repeat(len(margins) // len(validation)).tolist(),
        "validation_margins": margins,
        "test_image_ids": image_ids(fold.test),
        "test_margins": _margins(trainer.score(test)),
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "hardware": described(device.type),
        "arithmetic": trainer.arithmetic,
        "seconds": sum(row["seconds"] for row in trainer.history),
        "code": code,
        "torch": version("torch"),
        "max_pixels": job.archive.max_pixels,
    }
    storage.write_bytes(result_uri(job, trial.key), json.dumps(found).encode())
    storage.delete(own_uri(trial))
    ray.tune.report(trainer.history[-1])  # last of all, as a scheduler may stop a trial at any report


def chosen_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The epoch with the greatest validation AUROC, of equals the first."""
    return int(max(history, key=lambda row: row["auroc"])["epoch"])


def _loaded(uri: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
    return content


def _margins(logits_N2: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    """Logit of pneumonia minus logit of normal."""
    margins: list[float] = (logits_N2[:, 1].astype(np.float64) - logits_N2[:, 0]).tolist()
    return margins
