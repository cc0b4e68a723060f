"""The chosen weights and their validation scores → bundle: calibration, threshold, drift reference, card."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import __version__, metrics, tables
from pneumobatch.config import Job
from pneumobatch.models import bundle as bundles
from pneumobatch.models.weights import save_bundle
from pneumobatch.tables import Status
from pneumobatch.training import card
from pneumobatch.training.folds import Fold


def films_used(films: pa.Table, known: pa.Table, training: Fold, validation: Fold) -> dict[str, Any]:
    """Counts the films that trained, those that validated, and those that were left out of both."""
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


def ship(
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

    At most `tables.REFERENCE_ROWS` rows, sorted by what they hold, so that none can be told to be this or that film by
    its place: the order of a shuffle could be undone, as its seed stands in the bundle.
    """
    films, schema = validation.films, tables.reference_schema()
    scores = np.full(len(films), np.nan)
    scores[pc.equal(films["status"], Status.SCORED.value).to_numpy()] = probabilities
    films = films.append_column("probability", pa.array(scores, from_pandas=True))
    drawn = np.random.default_rng(seed).permutation(len(films))[: tables.REFERENCE_ROWS]
    rows = films.select(schema.names).take(pa.array(drawn)).cast(schema)
    first = ["probability", *(name for name in schema.names if name != "probability")]
    return rows.sort_by([(name, "ascending") for name in first])
