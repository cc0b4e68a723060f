"""Predictions and labels → confusion counts, rates and intervals, overall and by subgroup.

In: predictions (`tables.prediction_schema`), one row a catalogued image.
Out: `tables.summary_schema`, one row per subgroup value and threshold.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumobatch import config, metrics, tables
from pneumobatch.evaluation.labels import label_version

AGE_BANDS = ((1, "under 1"), (6, "1–5"), (18, "6–17"), (45, "18–44"), (65, "45–64"), (80, "65–79"), (200, "80+"))
"""Age bands, years: first age above the band, and its name; 1–5 is the range of the Kermany films."""


class Scored(NamedTuple):
    """The scored films whose label is known, in order of image_id."""

    labels: NDArray[np.int8]
    """Pneumonia = 1, normal = 0 [N]."""
    probabilities: NDArray[np.float64]
    """Of pneumonia, 0–1 [N]."""
    patients: NDArray[np.int32] | None
    """A number for the patient of each film [N], or None where no patient is known."""
    uncertain: NDArray[np.bool_] | None
    """Whether the probability lies in the model's uncertain band [N], or None where it has none."""
    rows: NDArray[np.int64]
    """Where the films stand in the predictions [N]."""

    def take(self, index: NDArray[np.int64]) -> Self:
        """Returns some of the films."""
        patients = None if self.patients is None else self.patients[index]
        uncertain = None if self.uncertain is None else self.uncertain[index]
        return type(self)(self.labels[index], self.probabilities[index], patients, uncertain, self.rows[index])


def statuses(predictions: pa.Table) -> dict[tuple[str, str | None], int]:
    """Returns the number of images by (status, reason), the most frequent first within each status."""
    groups = predictions.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist()
    order = {str(status): i for i, status in enumerate(tables.Status)}
    groups.sort(key=lambda row: (order.get(row["status"], 9), -row["count_all"], row["reason"] or ""))
    return {(row["status"], row["reason"]): row["count_all"] for row in groups}


def scored(predictions: pa.Table) -> Scored:
    """Returns the films that count: status scored, label known."""
    counted = pc.and_(pc.equal(predictions["status"], tables.Status.SCORED.value), predictions["label"].is_valid())
    rows = np.flatnonzero(counted.to_numpy())
    films = predictions.select(["image_id", "label", "probability", "patient", "uncertain"]).take(pa.array(rows))
    order = pc.sort_indices(films["image_id"]).to_numpy()  # the bootstrap must not depend on the order of files
    patients = None
    if films["patient"].null_count < len(films):
        # A film of unknown patient is a patient of its own. Numbered in order of image_id, whatever order they came in.
        names = pc.coalesce(films["patient"], films["image_id"]).take(pa.array(order))
        patients = names.combine_chunks().dictionary_encode().indices.to_numpy()
    uncertain = None if films["uncertain"].null_count else films["uncertain"].to_numpy()[order]
    labels, probabilities = (films[name].to_numpy()[order] for name in ("label", "probability"))
    return Scored(labels, probabilities, patients, uncertain, rows[order])


def operating_threshold(predictions: pa.Table, scope: str) -> float | None:
    """Returns the threshold that the calls were made with; None when nothing was scored.

    Raises:
        ValueError: The scored rows mix thresholds, models or (of scope `run`) runs, or a call contradicts
            probability >= threshold.
    """
    rows = predictions.filter(pc.equal(predictions["status"], tables.Status.SCORED.value))
    if not len(rows):
        return None
    for column in ("threshold", "model_id", *(["run_id"] if scope == "run" else [])):
        if rows[column].null_count or len(rows[column].unique()) != 1:
            raise ValueError(f"predictions: column {column} is empty or mixed; evaluate one run of one model at a time")
    calls = pc.cast(pc.greater_equal(rows["probability"], rows["threshold"]), pa.int8())
    if not pc.all(pc.equal(calls, rows["predicted_label"]), skip_nulls=False).as_py():
        raise ValueError("predictions: a predicted_label is not (probability >= threshold); screen the archive again")
    return float(rows["threshold"][0].as_py())


def with_age_bands(films: pa.Table) -> pa.Table:
    """Adds the column age_band from age_years, unless the label table brought one."""
    if "age_band" in films.column_names or "age_years" not in films.column_names:
        return films
    age = films["age_years"]
    limits = np.array([below for below, _ in AGE_BANDS[:-1]])
    band = np.searchsorted(limits, pc.fill_null(age, 0).to_numpy(), side="right").astype(np.int32)
    unknown = age.is_null().to_numpy()
    names = pa.DictionaryArray.from_arrays(pa.array(band, mask=unknown), [name for _, name in AGE_BANDS])
    return films.append_column("age_band", names)


def encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Returns a column of text as numbers [N], and the text of each number; NULL is "unknown"."""
    column = pc.fill_null(column.cast(pa.string()), "unknown") if column.null_count else column
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    return whole.indices.to_numpy(), whole.dictionary.to_pylist()


class _Part(NamedTuple):
    """One value of one subgroup."""

    subgroup: str
    value: str | None
    images: int
    scored: int
    uncertain: int | None
    films: Scored


BUNDLE, CERTAIN, GRID = range(3)
KINDS = pa.array(["bundle", "certain", "grid"])


def summarise(
    predictions: pa.Table, options: config.Evaluation, record: Mapping[str, Any], prior: float | None = None
) -> pa.Table:
    """Summarises predictions (`tables.prediction_schema`) into `tables.summary_schema`.

    Only rows with status scored and a known label are counted; `images` says how many rows there are in all.

    Args:
        predictions: Of the run, or of all its model's runs up to it (evaluation.scope).
        options: How.
        record: The run's record; run_id and model_id are read.
        prior: Prevalence under which the model's probabilities are calibrated; None: unknown.

    Raises:
        ValueError: The predictions mix models or thresholds (or runs, of scope `run`), or contradict themselves.
    """
    threshold = operating_threshold(predictions, options.scope)
    head = {
        "run_id": record["run_id"],
        "model_id": record["model_id"],
        "scope": options.scope,
        "label_version": label_version(predictions),
        "evaluated_at": datetime.now(UTC),
        "model_prevalence": prior,
        "local_prevalence": options.prevalence,
    }
    parts = list(_parts(with_age_bands(predictions)))
    hidden = [part.subgroup != "all" and part.films.labels.size < options.min_cell for part in parts]
    rows = [_rows(part.films, threshold, options, none) for part, none in zip(parts, hidden, strict=True)]
    scores = [
        {"suppressed": none} | ({} if none else _score_cells(part.films, options, prior))
        for part, none in zip(parts, hidden, strict=True)
    ]
    return _table(head, parts, rows, scores)


class _Rows(NamedTuple):
    """The rows of one part: at the bundle's threshold, of the certain films alone, then the grid."""

    kinds: NDArray[np.int64]
    """Index into `KINDS` [R]."""
    thresholds: NDArray[np.float64]
    """NaN where nothing was scored [R]."""
    counts: metrics.Ints
    """Confusion matrices [R, 4]."""


def _rows(films: Scored, threshold: float | None, options: config.Evaluation, hidden: bool) -> _Rows:
    points = np.linspace(0, 1, options.thresholds) if films.labels.size and not hidden else np.zeros(0)
    at = np.append(np.nan if threshold is None else threshold, points)
    kinds = np.append(BUNDLE, np.full(points.size, GRID))
    counts = metrics.confusion(films.labels, films.probabilities, np.nan_to_num(at, nan=2.0))
    if films.uncertain is not None and not hidden and threshold is not None:
        sure = films.take(np.flatnonzero(~films.uncertain))
        if sure.labels.size >= options.min_cell:
            row = metrics.confusion(sure.labels, sure.probabilities, [threshold])
            counts, at = np.insert(counts, 1, row, axis=0), np.insert(at, 1, threshold)
            kinds = np.insert(kinds, 1, CERTAIN)
    return _Rows(kinds, at, counts)


def _parts(predictions: pa.Table) -> Iterator[_Part]:
    films = scored(predictions)
    done = pc.equal(predictions["status"], tables.Status.SCORED.value).to_numpy()
    unsure = pc.fill_null(predictions["uncertain"], False).to_numpy()
    marked = predictions["uncertain"].null_count < len(predictions)
    yield _Part("all", None, len(predictions), int(done.sum()), int(unsure.sum()) if marked else None, films)
    for column in tables.subgroup_columns(predictions.column_names):
        if predictions[column].null_count == len(predictions):
            continue
        numbers, names = encoded(predictions[column])
        images, done_here, unsure_here = (
            np.bincount(rows, minlength=len(names)) for rows in (numbers, numbers[done], numbers[unsure])
        )
        order = np.argsort(numbers[films.rows], kind="stable")
        ends = np.cumsum(np.bincount(numbers[films.rows], minlength=len(names)))
        natural = _natural(column)
        for i in sorted(np.flatnonzero(images).tolist(), key=lambda i: natural(names[i])):
            part = films.take(order[ends[i - 1] if i else 0 : ends[i]])
            uncertain = int(unsure_here[i]) if marked else None
            yield _Part(column, names[i], int(images[i]), int(done_here[i]), uncertain, part)


def _natural(column: str) -> Any:
    bands = {name: i for i, (_, name) in enumerate(AGE_BANDS)} if column == "age_band" else {}
    return lambda value: (value == "unknown", bands.get(value, 0), value)


def _score_cells(films: Scored, options: config.Evaluation, prior: float | None) -> dict[str, float | None]:
    """What does not depend on the threshold, with its intervals."""
    labels, probabilities, patients = films[:3]
    resamples = metrics.enough_resamples(options.bootstrap, labels.size)
    draws = metrics.bootstrap(labels, probabilities, patients, resamples, options.seed, options.bins)
    cells: dict[str, float | None] = {}
    for name, value in metrics.over_thresholds(labels, probabilities, options.bins).items():
        low, high = metrics.percentile(draws[name], about=value if name == "ece" else None) or (None, None)
        cells |= {name: value, f"{name}_low": low, f"{name}_high": high}
    low, high = metrics.delong_interval(labels, probabilities) or (None, None)
    cells |= {"auroc_delong_low": low, "auroc_delong_high": high}
    local = options.prevalence
    if local is not None and prior is not None and 0 < labels.sum() < labels.size:
        corrected, weights = metrics.shift_prior(probabilities, prior, local), metrics.prevalence_weights(labels, local)
        draws = metrics.bootstrap(labels, corrected, patients, resamples, options.seed, options.bins, local)
        brier, ece = metrics.brier(labels, corrected, weights), metrics.ece(labels, corrected, weights, options.bins)
        for name, value, centre in (("brier", brier, None), ("ece", ece, ece)):
            low, high = metrics.percentile(draws[name], about=centre) or (None, None)
            cells |= {f"local_{name}": value, f"local_{name}_low": low, f"local_{name}_high": high}
    return cells


def _table(head: Mapping[str, Any], parts: list[_Part], rows: list[_Rows], scores: list[dict[str, Any]]) -> pa.Table:
    """Puts the parts together column by column: a thousand sites of a hundred thresholds are many rows.

    A part's row for the bundle's threshold also holds what does not depend on it.
    """
    lengths = np.array([len(part.kinds) for part in rows])
    part = pa.array(np.repeat(np.arange(len(parts)), lengths))
    kinds, at, counts = (np.concatenate(columns) for columns in zip(*rows, strict=True))
    bundle, hidden = kinds == BUNDLE, np.repeat([cells["suppressed"] for cells in scores], lengths)
    labelled, positives = counts.sum(1), counts[:, 0] + counts[:, 3]
    low, high = metrics.wilson_bounds(positives, labelled)
    rates = metrics.rates(counts) | {
        "prevalence": np.divide(positives, labelled, out=np.full(labelled.size, np.nan), where=labelled > 0),
        "prevalence_low": low,
        "prevalence_high": high,
    }
    whole = dict(zip(("tp", "fp", "tn", "fn"), counts.T, strict=True))
    whole |= {"labelled": labelled, "positives": positives, "negatives": labelled - positives}
    if head["local_prevalence"] is not None:
        local = metrics.predictive_values(counts, head["local_prevalence"])
        rates |= {f"local_{name}": values for name, values in local.items()}
    columns: dict[str, Any] = {
        "threshold": pa.array(at, from_pandas=True),
        "threshold_kind": KINDS.take(pa.array(kinds)),
        "suppressed": pa.array(hidden),
        **{name: pa.array(values, mask=hidden) for name, values in whole.items()},
        **{name: pa.array(values, mask=hidden | np.isnan(values)) for name, values in rates.items()},
        **{name: pa.array([getattr(p, name) for p in parts]).take(part) for name in _Part._fields[:5]},
    }
    schema = tables.summary_schema()
    for field in schema:
        if field.name in head:
            columns[field.name] = pa.repeat(pa.scalar(head[field.name], field.type), len(at))
        elif field.name not in columns:
            values = np.full(len(at), np.nan)
            values[bundle] = [np.nan if cells.get(field.name) is None else cells[field.name] for cells in scores]
            columns[field.name] = pa.array(values, from_pandas=True)
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)
