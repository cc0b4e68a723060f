"""A grid of recipes × seeds × protocols → results, predictions and a report: the whole experiment on one screen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import cluster, lease, metrics, storage
from pneumobatch.archive import catalog
from pneumobatch.config import Job
from pneumobatch.evaluation import comparison, comparison_report
from pneumobatch.evaluation.comparison import Entry
from pneumobatch.progress import say
from pneumobatch.training import grid, protocols, tune
from pneumobatch.training.folds import cache_size, decode, require_classes, require_readable
from pneumobatch.training.grid import Trial
from pneumobatch.training.protocols import NotRun, Split

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler
    from rich.console import RenderableType


WRITTEN = {"results": "results.parquet", "predictions": "predictions.parquet", "report": "index.html"}


class Experimented(NamedTuple):
    """What an experiment left behind."""

    told: list["RenderableType"]
    """What to print."""
    failed: int
    """Trials that failed; a later start tries them again."""


def experiment(job: Job) -> Experimented:
    """Runs what is left of an experiment, and writes what is known of all of it.

    Raises:
        ValueError: The grid, the archive or its labels do not allow it.
        RuntimeError: Another start is at work on this experiment.
    """
    baseline = grid.baseline(job)
    plans: dict[str, Split | NotRun] = {name: protocols.split(job, name) for name in job.experiment.protocols}
    splits = {name: plan for name, plan in plans.items() if isinstance(plan, Split)}
    if job.experiment.early_stopping and len(splits) > 1:
        raise ValueError(
            "experiment.early_stopping: stops trials by their validation scores, which those of two protocols take "
            "from different films; give one of experiment.protocols"
        )
    if job.experiment.early_stopping and len({row.training.validation for row in grid.rows(job).values()}) > 1:
        raise ValueError(
            "experiment.early_stopping: stops trials by their validation scores, which rows that differ in "
            "training.validation take from different films; give all rows one"
        )
    with lease.hold(job.output.uri, f"experiment-{job.experiment.name}") as ours:
        return _completed(job, baseline, plans, splits, ours)


def _completed(
    job: Job, baseline: str, plans: Mapping[str, Split | NotRun], splits: Mapping[str, Split], ours: lease.Lease
) -> Experimented:
    """Runs the trials that are left, and writes what is known of all."""
    trials = grid.trials(job, splits)
    kept = {trial.key: found for trial in trials if (found := tune.kept(trial))}
    left = [trial for trial in trials if trial.key not in kept]
    for trial in trials:
        if trial.key in kept:  # a start that was killed just then has left its checkpoint
            storage.delete(tune.own_uri(trial))
    if kept:
        say(f"experiment {job.experiment.name}: {len(kept)} of {len(trials)} trials were finished before")
    scheduler = tune.asha(trials, kept) if job.experiment.early_stopping and left else None
    missing = _run(job, left, splits, scheduler, ours) if left else {}
    kept |= {trial.key: found for trial in left if (found := tune.kept(trial))}
    entries = [
        _entry(trial, splits[trial.protocol], kept.get(trial.key) or {"missing": missing[trial.key]})
        for trial in trials
    ]
    for name, plan in plans.items():
        if isinstance(plan, NotRun):
            entries += [_not_run(job, name, row, plan) for row in grid.rows(job).items()]
    results, predictions = comparison.compare(entries, baseline, job.evaluation)
    home = storage.join(job.output.uri, "experiments", job.experiment.name)
    ours.check()  # whoever took the experiment over knows more by now
    storage.write_table(storage.join(home, WRITTEN["predictions"]), predictions)
    storage.write_table(storage.join(home, WRITTEN["results"]), results)
    page = comparison_report.render(job, results, baseline, {name: plan.told for name, plan in splits.items()})
    storage.write_bytes(storage.join(home, WRITTEN["report"]), page.encode())
    told: list[RenderableType] = [comparison_report.console_table(results, baseline)]
    told += [f"{name:<12} {storage.join(home, file)}" for name, file in WRITTEN.items()]
    return Experimented(told, results["status"].to_pylist().count("failed"))


def _run(
    job: Job, trials: Sequence[Trial], splits: Mapping[str, Split], scheduler: "ASHAScheduler | None", ours: lease.Lease
) -> dict[str, str]:
    """Decodes what the trials need, once for each protocol and image size, and runs them."""
    folds: dict[tuple[str, int], tune.Folds] = {}
    with cluster.engine(job.cluster) as resources:
        for trial in trials:
            size = trial.job.network.image_size
            if (trial.protocol, size) not in folds:
                split, cached = splits[trial.protocol], cache_size(trial.job)
                sides = (
                    ("training", split.train, cached),
                    ("validation", split.validation, size),
                    ("test", split.test, size),
                )
                decoded = []
                for side, films, pixels in sides:
                    name = f"{trial.protocol} {side}"
                    decoded.append(decode(job, resources, films, pixels, f"decode {name} films"))
                    require_classes(decoded[-1], name)
                require_readable(decoded, job.training.failure_budget)
                train, validation, test = (fold.blocks for fold in decoded)
                folds[trial.protocol, size] = tune.Folds(train, validation, test, cached)
        there = cluster.offered(local=resources.local)  # decoding may have brought workers to a cluster
        return tune.run(job, there, trials, folds, scheduler, ours)


def _entry(trial: Trial, split: Split, found: Mapping[str, Any]) -> Entry:
    """What is known of a trial: its recipe, and, where it finished, its scores of the test films.

    Args:
        trial: The trial.
        split: Its protocol's films.
        found: What it left behind, or why it left nothing, under `missing`.
    """
    recipe = _recipe(trial.job, trial.protocol, trial.row, trial.seed)
    if told := found.get("missing") or found.get("stopped"):
        status, _, reason = told.partition(": ")
        return Entry(recipe | {"status": status.replace(" ", "_"), "reason": reason})
    labels, margins = np.array(found["validation_labels"]), np.array(found["validation_margins"])
    plan, calibration = trial.job.training, metrics.fit_calibration(margins, labels)
    try:
        threshold = metrics.choose_threshold(labels, calibration.probabilities(margins), plan.target, plan.target_value)
    except ValueError as error:  # of this network's scores: the other rows have theirs
        return Entry(recipe | {"status": "failed", "reason": str(error)})
    fold = len(labels) // (2 if plan.validation == "shifted" else 1)  # whose films stand there twice
    test = split.test.append_column("format", pa.nulls(len(split.test), pa.string()))
    test = test.append_column("published_patient", catalog.publishable(test)["patient"])
    films = test.take(pc.index_in(pa.array(found["test_image_ids"]), test["image_id"].combine_chunks()))
    scores = pa.array(calibration.probabilities(found["test_margins"]))
    facts = {name: found[name] for name in comparison.MEASURED} | {
        "validation_films": fold, "validation_auroc": metrics.auroc(labels[:fold], margins[:fold]),
        "threshold": threshold, **calibration._asdict(), "code": found.get("code", "")[:12] or None,
        "unreadable": sum(map(len, split[:3])) - found["train_films"] - fold - len(films),
    }  # fmt: skip
    return Entry(
        recipe | facts | {"status": "done"},
        films.select(["image_id", "label", "patient", "published_patient"]).append_column("probability", scores),
    )


def _not_run(job: Job, protocol: str, row: tuple[str, Job], plan: NotRun) -> Entry:
    recipe = _recipe(row[1], protocol, row[0], job.experiment.seeds[0])
    return Entry(recipe | {"status": "not_run", "reason": plan.reason, "seed": None})


def _recipe(job: Job, protocol: str, row: str, seed: int) -> dict[str, Any]:
    plan = job.training
    return {
        "row": row,
        "protocol": protocol,
        "seed": seed,
        "network": job.network.name,
        "weights": Path(job.network.weights or "random").name,
        "image_size": job.network.image_size,
        "loss": job.loss.name,
        "preset": plan.preset,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "configuration": json.dumps(job.model_dump(mode="json", include=set(grid.SECTIONS))),
        "target": "balanced sensitivity and specificity"
        if plan.target == "balanced"
        else f"{plan.target} >= {plan.target_value}",
    }
