"""Does the network live on markers and borders? A sample of films is scored again with parts of them covered.

In: labelled films, their pictures and a way to score pictures. Out: `tables.masking_schema`, one row a region.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumobatch import config, metrics, tables
from pneumobatch.evaluation.summary import Scored, scored

BORDER, CORNER, CENTRE = 0.1, 0.2, 0.6
"""Width of the border and side of a corner, where letters, cables and collimators are, as shares of the film's side.
The centre covers as much of the film as the border does: what so much loss costs where the lungs are."""

Pixels = NDArray[np.uint8]


def regions(size: int) -> dict[str, NDArray[np.bool_]]:
    """Returns what is covered in each row of the table, bool[S, S] by name."""
    place = (np.arange(size) + 0.5) / size
    edge = np.minimum(place, 1 - place)
    y, x = edge[:, None], edge[None, :]
    inner = (1 - CENTRE) / 2
    return {
        "none": np.zeros((size, size), bool),
        "border": (y < BORDER) | (x < BORDER),
        "corners": (y < CORNER) & (x < CORNER),
        "centre": (y > inner) & (x > inner),
    }


def covered(pixels_NSS: Pixels, region_SS: NDArray[np.bool_]) -> Pixels:
    """Fills a region of each film with the mean grey of what is left of it, so that it is no edge of its own."""
    grey_N = np.rint(pixels_NSS[:, ~region_SS].mean(1)).astype(np.uint8)
    return np.where(region_SS, grey_N[:, None, None], pixels_NSS)


def sample(films: pa.Table, most: int, seed: int) -> NDArray[np.int64]:
    """Draws rows of labelled films, half of each class as far as there are so many."""
    order, drawn = pc.sort_indices(films["image_id"]).to_numpy(), []
    labels = films["label"].to_numpy()[order]
    for value, share in ((1, (most + 1) // 2), (0, most // 2)):
        rows = order[labels == value]
        drawn.append(np.random.default_rng(seed).permutation(rows)[:share])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def measure(
    films: pa.Table,
    pixels_NSS: Pixels,
    probabilities: Callable[[Pixels], metrics.Floats],
    options: config.Evaluation,
    record: Mapping[str, Any],
) -> pa.Table:
    """Scores films whole and with each region covered.

    The intervals of AUROC and of its change are percentile bootstrap over patients, all from the same resamples.

    Args:
        films: Of one model, scored, label known (`tables.prediction_schema`).
        pixels_NSS: Their pictures.
        probabilities: uint8[N, S, S] → calibrated probabilities [N].
        options: bootstrap and seed are read.
        record: The run's record; run_id and model_id are read.
    """
    known = scored(films)
    found = {
        name: probabilities(covered(pixels_NSS, region))[known.rows]
        for name, region in regions(pixels_NSS.shape[1]).items()
    }
    threshold = float(films["threshold"][0].as_py())
    draws = {name: _draws(known, values, options) for name, values in found.items()}
    head = {"run_id": record["run_id"], "model_id": record["model_id"], "measured_at": datetime.now(UTC)}
    rows: list[dict[str, Any]] = []
    for name, values in found.items():
        row = head | {"region": name, "films": len(values), **_rates(known, values, threshold)}
        row |= metrics.bounds("auroc", metrics.percentile(draws[name]))
        if name != "none":
            row |= _changes(row, rows[0], values, found["none"], threshold)
            row |= metrics.bounds("auroc_change", metrics.difference(draws[name] - draws["none"]))
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=tables.masking_schema())


def _draws(known: Scored, values: metrics.Floats, options: config.Evaluation) -> metrics.Floats:
    # Films are named as patients where no patient is: without, resamples would differ with the order of the scores.
    patients = np.arange(len(values)) if known.patients is None else known.patients
    resamples = metrics.enough_resamples(options.bootstrap, len(values))
    return metrics.bootstrap(known.labels, values, patients, resamples, options.seed)["auroc"]


def _rates(known: Scored, values: metrics.Floats, threshold: float) -> dict[str, Any]:
    counts = metrics.count(known.labels, values >= threshold)
    return {
        "positives": counts.positives,
        "negatives": counts.negatives,
        "auroc": metrics.auroc(known.labels, values),
        **{name: counts.rate(name) for name in ("accuracy", "sensitivity", "specificity")},
        **metrics.bounds("accuracy", counts.interval("accuracy")),
    }


def _changes(
    row: Mapping[str, Any], whole: Mapping[str, Any], values: metrics.Floats, before: metrics.Floats, threshold: float
) -> dict[str, Any]:
    return {
        "auroc_change": None if row["auroc"] is None else row["auroc"] - whole["auroc"],
        "accuracy_change": row["accuracy"] - whole["accuracy"],
        "changed_calls": int(np.count_nonzero((values >= threshold) != (before >= threshold))),
        "mean_change": float(np.abs(values - before).mean()),
    }
