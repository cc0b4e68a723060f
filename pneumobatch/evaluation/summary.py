"""Predictions and labels → confusion counts, rates and intervals, overall and by subgroup.

In: a run's predictions (`tables.prediction_schema`), one row a catalogued image.
Out: `tables.summary_schema`, one row per subgroup value and threshold.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumobatch import config, metrics, tables

AGE_BANDS = ((1, "under 1"), (6, "1–5"), (18, "6–17"), (45, "18–44"), (65, "45–64"), (80, "65–79"), (200, "80+"))
"""Age bands, years: first age above the band, and its name; 1–5 is the range of the Kermany films."""


Statistic = Callable[..., float | None]


class Scored(NamedTuple):
    """The scored films whose label is known, in order of image_id."""

    labels: NDArray[np.int8]
    """Pneumonia = 1, normal = 0 [N]."""
    probabilities: NDArray[np.float64]
    """Of pneumonia, 0–1 [N]."""
    patients: NDArray[np.object_] | None
    """One patient a film [N], or None where no patient is known."""


def statuses(predictions: pa.Table) -> dict[tuple[str, str | None], int]:
    """Returns the number of images by (status, reason), the most frequent first within each status."""
    groups = predictions.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    order = {str(status): i for i, status in enumerate(tables.Status)}
    groups.sort(key=lambda row: (order.get(row["status"], 9), -row["count_all"], row["reason"] or ""))
    return {(row["status"], row["reason"]): row["count_all"] for row in groups}


def scored(predictions: pa.Table) -> Scored:
    """Returns the films that count: status scored, label known."""
    rows = predictions.filter((pc.field("status") == tables.Status.SCORED) & pc.field("label").is_valid())
    rows = rows.sort_by("image_id")  # the bootstrap's draws must not depend on the order of files
    patients = rows["patient"]
    return Scored(
        rows["label"].to_numpy(),
        rows["probability"].to_numpy(),
        # A film of unknown patient is a patient of its own.
        None if patients.null_count == len(rows) else pc.coalesce(patients, rows["image_id"]).to_numpy(),
    )


def operating_threshold(predictions: pa.Table) -> float | None:
    """Returns the threshold that the run's calls were made with; None when nothing was scored.

    Raises:
        ValueError: The scored rows mix thresholds or models, or a call contradicts probability >= threshold.
    """
    rows = predictions.filter(pc.field("status") == tables.Status.SCORED)
    if not len(rows):
        return None
    for column in ("threshold", "model_id", "run_id"):
        if rows[column].null_count or len(rows[column].unique()) != 1:
            raise ValueError(f"predictions: column {column} is empty or mixed; evaluate one run of one model at a time")
    calls = pc.cast(pc.greater_equal(rows["probability"], rows["threshold"]), pa.int8())
    if not pc.all(pc.equal(calls, rows["predicted_label"]), skip_nulls=False).as_py():
        raise ValueError("predictions: a predicted_label is not (probability >= threshold); screen the archive again")
    return float(rows["threshold"][0].as_py())


def with_age_bands(predictions: pa.Table) -> pa.Table:
    """Adds the subgroup age_band from age_years, unless the label table brought one."""
    if "age_band" in predictions.column_names or "age_years" not in predictions.column_names:
        return predictions
    age = predictions["age_years"]
    bands = [pc.less(age, below) for below, _ in AGE_BANDS]
    band = pc.case_when(pc.make_struct(*(pc.fill_null(inside, False) for inside in bands)), *(n for _, n in AGE_BANDS))
    return predictions.append_column("age_band", pc.cast(band, pa.string()))


def summarise(predictions: pa.Table, options: config.Evaluation) -> pa.Table:
    """Summarises one run's predictions (`tables.prediction_schema`) into `tables.summary_schema`.

    Only rows with status scored and a known label are counted; `images` says how many rows there are in all.

    Raises:
        ValueError: The predictions mix runs, models or thresholds, or contradict themselves.
    """
    threshold = operating_threshold(predictions)
    head: dict[str, Any] = {name: pc.first(predictions[name]).as_py() for name in ("run_id", "model_id")}
    head |= {"scope": options.scope, "label_version": None}
    head["evaluated_at"] = datetime.now(UTC)
    rows = [
        head | {"subgroup": subgroup, "value": value} | row
        for subgroup, value, part in _parts(with_age_bands(predictions))
        for row in _rows(part, threshold, 0 if subgroup == "all" else options.min_cell, options)
    ]
    return pa.Table.from_pylist(rows, schema=tables.summary_schema())


def _parts(predictions: pa.Table) -> Iterator[tuple[str, str | None, pa.Table]]:
    yield "all", None, predictions
    for column in tables.subgroup_columns(predictions.column_names):
        if predictions[column].null_count == len(predictions):
            continue
        values = pc.fill_null(pc.cast(predictions[column], pa.string()), "unknown")
        for value in sorted(values.unique().to_pylist(), key=_natural(column)):
            yield column, value, predictions.filter(pc.equal(values, value))


def _natural(column: str) -> Any:
    bands = {name: i for i, (_, name) in enumerate(AGE_BANDS)} if column == "age_band" else {}
    return lambda value: (value == "unknown", bands.get(value, 0), value)


def _rows(part: pa.Table, threshold: float | None, least: int, options: config.Evaluation) -> Iterator[dict[str, Any]]:
    films = scored(part)
    row: dict[str, Any] = {"threshold_kind": "bundle", "threshold": threshold, "images": len(part)}
    if films.labels.size < least:
        yield row | {"suppressed": True}
        return
    row |= {"suppressed": False}
    grid = np.linspace(0, 1, options.thresholds)
    at_grid = metrics.grid_counts(films.labels, films.probabilities, grid)
    at_bundle = metrics.Counts()
    if threshold is not None:
        (at_bundle,) = metrics.grid_counts(films.labels, films.probabilities, [threshold])
    yield row | _count_cells(at_bundle) | _score_cells(films, options)
    if films.labels.size:
        for point, counts in zip(grid.tolist(), at_grid, strict=True):
            yield row | {"threshold_kind": "grid", "threshold": point} | _count_cells(counts)


def _cells(name: str, value: float | None, interval: metrics.Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _count_cells(counts: metrics.Counts) -> dict[str, Any]:
    row: dict[str, Any] = {"labelled": counts.total, "positives": counts.positives, "negatives": counts.negatives}
    row |= {name: getattr(counts, name) for name in ("tp", "fp", "tn", "fn")}
    for name in metrics.RATES:
        row |= _cells(name, counts.rate(name), counts.interval(name))
    prevalence = counts.positives / counts.total if counts.total else None
    return row | _cells("prevalence", prevalence, metrics.wilson(counts.positives, counts.total))


def _score_cells(films: Scored, options: config.Evaluation) -> dict[str, float | None]:
    statistics: dict[str, Statistic] = {
        "auroc": metrics.auroc,
        "average_precision": metrics.average_precision,
        "brier": metrics.brier,
        "ece": partial(metrics.ece, bins=options.bins),
    }
    draws = metrics.bootstrap(statistics, *films, resamples=options.bootstrap, seed=options.seed)
    row: dict[str, float | None] = {}
    for name, statistic in statistics.items():
        value = statistic(films.labels, films.probabilities)
        row |= _cells(name, value, metrics.percentile(draws[name], about=value if name == "ece" else None))
    low, high = metrics.delong_interval(films.labels, films.probabilities) or (None, None)
    return row | {"auroc_delong_low": low, "auroc_delong_high": high}
