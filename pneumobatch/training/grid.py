"""The rows of an experiment: every combination of its factors' levels, with the whole configuration of each."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

from pydantic import BaseModel

from pneumobatch import storage
from pneumobatch.config import Archive, Job, Level, Loss, Network, Training
from pneumobatch.training.protocols import Split

SECTIONS = ("network", "loss", "augmentation", "training")
"""What a level may change."""

NOT_LEARNED_FROM = {
    "preset", "run_id", "workers", "synchronise", "use_gpu", "cpus_per_worker", "validation_fraction", "target",
    "target_value", "max_failures", "checkpoints_to_keep", "validated_age_years", "rationale", "uncertain",
    "failure_budget",
}  # fmt: skip
"""Keys of `training` that do not change what a network learns from given films: where it runs, and what is done with
its scores afterwards."""


_UNUSED_BY = {"cross_entropy": ("gamma", "alpha", "literal_scale"), "focal": ("literal_scale",)}
"""Keys of `loss` that a loss does not look at."""


class Row(NamedTuple):
    """A row of the grid."""

    name: str
    """The names of its levels, joined by commas."""
    job: Job
    """The job with what its levels change."""


class Trial(NamedTuple):
    """A row trained with one seed on one protocol's films."""

    row: str
    protocol: str
    seed: int
    job: Job
    """The row's job with the trial's seed."""
    key: str
    """Hash of all that the trial's scores depend on: the same key, the same trial."""
    baseline: bool
    """Whether its row is the one that the others are tested against: it is never stopped early."""


def rows(job: Job) -> dict[str, Job]:
    """Returns each row's job by the row's name, in the order of the job file.

    Raises:
        ValueError: There is no factor, two factors change one key, two rows have one name, or there is no such
            baseline.
    """
    if not job.factors:
        raise ValueError(
            'factors: the job names none; give a job file with tables such as [[factors.network]] name = "…"'
        )
    if empty := [name for name, levels in job.factors.items() if not levels]:
        raise ValueError(f"factors.{empty[0]}: has no level; give at least one [[factors.{empty[0]}]]")
    combined = [_row(job, levels) for levels in product(*job.factors.values())]
    found = dict(combined)
    if len(found) < len(combined):
        raise ValueError("factors: two rows have the same name; give every level of a factor a name of its own")
    baseline = job.experiment.baseline
    if baseline is not None and baseline not in found:
        near = difflib.get_close_matches(baseline, found, 1, 0.0)[0]
        raise ValueError(f"experiment.baseline: there is no row {baseline!r}; did you mean {near!r}?")
    return found


def baseline(job: Job) -> str:
    """Returns the name of the row that the others are tested against."""
    return job.experiment.baseline or next(iter(rows(job)))


def _row(job: Job, levels: tuple[Level, ...]) -> Row:
    name = ", ".join(level.name for level in levels)
    given = job.model_dump(exclude_unset=True, include=set(SECTIONS))
    changed: dict[tuple[str, str], Any] = {}
    for level in levels:
        for section, values in level.model_dump(exclude_unset=True, include=set(SECTIONS)).items():
            for key, value in values.items():
                if changed.setdefault((section, key), value) != value:
                    raise ValueError(f"factors: two levels of row {name!r} give {section}.{key} different values")
    if ("training", "seed") in changed:
        raise ValueError(f"factors: row {name!r} sets training.seed; the seeds of all rows are experiment.seeds")
    if ("training", "validation_fraction") in changed:
        raise ValueError(
            f"factors: row {name!r} sets training.validation_fraction; all rows share one fold: set it in [training]"
        )
    preset = changed.get(("training", "preset"), job.training.preset)
    if job.training.preset == "paper" and preset != "paper":
        raise ValueError(
            f"factors: row {name!r} sets training.preset = {preset!r}, but [training] has preset = 'paper' for all "
            "rows; take it out there, and give it to the levels that want it"
        )
    for (section, key), value in changed.items():
        given.setdefault(section, {})[key] = value
    merged = Job.model_validate(given)
    return Row(name, job.model_copy(update={section: getattr(merged, section) for section in SECTIONS}))


def trials(job: Job, splits: Mapping[str, Split]) -> list[Trial]:
    """Returns the trials of every row on every protocol that has films: the first seed of all rows comes first.

    Raises:
        ValueError: As `rows`, or two rows are the same recipe.
    """
    found, main, jobs = [], baseline(job), rows(job)
    starting = {row: started_from(row_job.network) for row, row_job in jobs.items()}
    for protocol, seed, (row, row_job) in product(splits, job.experiment.seeds, jobs.items()):
        seeded = row_job.model_copy(update={"training": row_job.training.model_copy(update={"seed": seed})})
        found.append(Trial(row, protocol, seed, seeded, _key(seeded, starting[row], splits[protocol]), row == main))
    first: dict[str, Trial] = {}
    for trial in found:
        if (same := first.setdefault(trial.key, trial)) is not trial:
            raise ValueError(f"factors: rows {same.row!r} and {trial.row!r} learn the same; leave one of them out")
    return found


def started_from(network: Network) -> str | None:
    """Returns network.weights, but for a file the SHA-256 of what it holds, which its place does not tell.

    Raises:
        ValueError: It cannot be read.
    """
    if network.weights in {None, "pretrained"}:
        return network.weights
    try:
        return hashlib.sha256(storage.read_bytes(str(network.weights))).hexdigest()
    except OSError as error:
        raise ValueError(
            f"network.weights: {network.weights} cannot be read ({error}); give the path of a safetensors state dict"
        ) from None


def _defaults(section: type[BaseModel], keys: Iterable[str]) -> dict[str, Any]:
    return {key: section.model_fields[key].default for key in keys}


def _key(job: Job, starting: str | None, split: Split) -> str:
    config = job.model_dump(mode="json", include=set(SECTIONS))
    config["network"]["weights"] = starting
    config["training"] = {key: value for key, value in config["training"].items() if key not in NOT_LEARNED_FROM}
    # What a recipe does not look at counts as its default, so that keys of earlier trials stay.
    config["loss"] |= _defaults(Loss, _UNUSED_BY.get(job.loss.name, ()))
    if not job.network.attends:
        config["network"] |= _defaults(Network, ["side_branches", "channel_gate", "spatial_gate"])
    if job.training.schedule == "cosine":
        config["training"] |= _defaults(Training, ["step_epochs"])
    # Which films can be read, where it is not what it has been in all earlier trials.
    limits = job.archive.model_dump(include={"max_pixels", "max_bytes"})
    if limits != _defaults(Archive, limits):
        config["archive"] = limits
    # A film that was mended or encoded anew under its name has another size.
    facts = ["image_id", "label", "bytes"]
    films = [fold.select(facts).to_pydict() for fold in (split.train, split.validation, split.test)]
    return hashlib.sha256(json.dumps([config, films], sort_keys=True).encode()).hexdigest()[:20]
