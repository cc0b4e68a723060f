"""A run's own films against the frozen reference in its model's bundle: has what comes in changed, or what comes out?

In: rows of a run (`COLUMNS`), and the bundle's reference (`tables.reference_schema`). Out: `tables.drift_schema`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

from pneumobatch import storage, tables
from pneumobatch.config import Evaluation
from pneumobatch.evaluation.published import Bundle
from pneumobatch.evaluation.summary import encoded, with_age_bands

COLUMNS = tuple(tables.reference_schema().names)
"""What is compared of a film."""

NUMBERS = ("probability", *tables.STATISTICS)
CATEGORIES = ("modality", "view", "age_band", "sex", "manufacturer", "photometric", "transfer_syntax")

BINS = 10
"""Deciles of the reference; a column of no more than so many values is compared value by value."""
LEAST_SHARE = 0.02
"""Categories that are rarer in the reference, or unknown to it, count together as others."""
LEAST_DIFFERENCE = 0.1
"""Difference of two shares under which a rate has not drifted, however sure it is."""
CHANCE = 0.001
"""A measure drifts by chance alone in no more than so many runs."""

Counts = NDArray[np.int64]


class Reference(NamedTuple):
    """The reference of a run's bundle, or why there is none."""

    films: pa.Table | None
    missing: str | None = None


def read_reference(bundle: Bundle) -> Reference:
    """Reads the reference of a run's bundle."""
    if bundle.missing:
        return Reference(None, bundle.missing)
    if not bundle.content.get("reference_sha256"):
        return Reference(None, "the bundle has no reference; train again to have one")
    try:
        data = storage.read_bytes(storage.join(bundle.uri, "reference.parquet"))
    except FileNotFoundError:
        return Reference(None, "reference.parquet of the bundle is missing")
    if hashlib.sha256(data).hexdigest() != bundle.content["reference_sha256"]:
        return Reference(None, "reference.parquet is not the file that bundle.json was written for")
    return Reference(tables.upgraded(pq.read_table(pa.BufferReader(data)), tables.reference_schema()))


def measure(reference: pa.Table, rows: pa.Table, options: Evaluation, record: Mapping[str, Any]) -> pa.Table:
    """Compares a run's films with the reference.

    A share has drifted where it differs by `LEAST_DIFFERENCE` and by more than chance explains; a distribution where
    its stability index exceeds evaluation.drift_psi by more than chance adds on average, and what chance explains.
    Fewer scored films (images, for the shares of images) than evaluation.drift_images are measured and not judged.

    Args:
        reference: `tables.reference_schema`.
        rows: `COLUMNS` of the run's predictions.
        options: The bounds.
        record: The run's record; run_id, model_id, threshold and failed_again are read: films that an earlier run has
            accepted as missing are tried every night, and are no failures of this one.
    """
    head = {"run_id": record["run_id"], "model_id": record["model_id"], "measured_at": datetime.now(UTC)}
    found = [head | row for row in _measures(reference, rows, options, record)]
    for row in found:
        if row["n"] < options.drift_images:
            row["bound"] = None
        row["drifted"] = None if row.get("bound") is None else abs(row["value"]) >= row["bound"]
    return pa.Table.from_pylist(found, schema=tables.drift_schema())


def _measures(
    reference: pa.Table, rows: pa.Table, options: Evaluation, record: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    threshold, again = record.get("threshold"), record.get("failed_again", 0)
    old, new = (with_age_bands(_with_status(table, tables.Status.SCORED)) for table in (reference, rows))
    if threshold is not None and len(old) and len(new):
        called = [pc.sum(pc.greater_equal(films["probability"], threshold)).as_py() for films in (old, new)]
        yield _share("positive_rate", "probability", called[0], len(old), called[1], len(new))
    old_images, new_images = (len(t) - len(_with_status(t, tables.Status.DUPLICATE)) for t in (reference, rows))
    new_images -= again
    for name, status in (("rejection_rate", tables.Status.REJECTED), ("failure_rate", tables.Status.FAILED)):
        if old_images and new_images:
            before, now = (len(_with_status(table, status)) for table in (reference, rows))
            now -= again if status == tables.Status.FAILED else 0
            yield _share(name, "status", before, old_images, now, new_images)
    for name in NUMBERS:
        x, y = (pc.drop_null(films[name]).to_numpy() for films in (old, new))
        if x.size and y.size:
            yield from _distribution(name, x, y, options.drift_psi)
    for name in CATEGORIES:
        if old[name].null_count < len(old) and len(new):
            yield _stability(name, *_category_counts(old[name], new[name]), options.drift_psi)


def _with_status(table: pa.Table, status: tables.Status) -> pa.Table:
    return table.filter(pc.equal(table["status"], status.value))


def _share(measure: str, column: str, a: int, m: int, b: int, n: int) -> dict[str, Any]:
    """Two shares, a of the reference's m and b of the run's n, by the two-proportion z-test with a pooled share."""
    pooled = (a + b) / (m + n)
    error = float(np.sqrt(pooled * (1 - pooled) * (1 / m + 1 / n)))
    difference = b / n - a / m
    return {
        "measure": measure, "column": column, "reference_n": m, "n": n, "reference_value": a / m, "run_value": b / n,
        "value": difference, "p_value": 2 * float(stats.norm.sf(abs(difference) / error)) if error else 1.0,
        "bound": max(LEAST_DIFFERENCE, float(stats.norm.isf(CHANCE / 2)) * error),
    }  # fmt: skip


def _distribution(name: str, x: NDArray[Any], y: NDArray[Any], bound: float) -> Iterator[dict[str, Any]]:
    values = np.unique(x)
    if values.size <= BINS:
        old, new = (np.bincount(np.where(np.isin(v, values), np.searchsorted(values, v), values.size),
                                minlength=values.size + 1) for v in (x, y))  # fmt: skip
    else:
        edges = np.unique(np.quantile(x, np.arange(1, BINS) / BINS))
        old, new = (np.bincount(np.searchsorted(edges, v, side="right"), minlength=edges.size + 1) for v in (x, y))
    means = {"reference_value": float(x.mean(dtype=np.float64)), "run_value": float(y.mean(dtype=np.float64))}
    yield _stability(name, old, new, bound) | means
    distance = stats.ks_2samp(x, y, method="asymp")
    yield {
        "measure": "ks", "column": name, "reference_n": x.size, "n": y.size, **means,
        "value": float(distance.statistic), "p_value": float(distance.pvalue),
    }  # fmt: skip


def _category_counts(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[Counts, Counts]:
    """Counts the reference's categories in both, and all others as one; an unknown value is a category."""
    numbers, names = encoded(old)
    shares = np.bincount(numbers, minlength=len(names)) / len(old)
    common = [names[i] for i in np.flatnonzero(shares >= LEAST_SHARE)]
    counts = []
    for column in (old, new):
        numbers, names = encoded(column)
        place = np.array([common.index(name) if name in common else len(common) for name in names])
        counts.append(np.bincount(place[numbers], minlength=len(common) + 1))
    return counts[0], counts[1]


def stability_index(old: Counts, new: Counts) -> tuple[float, int]:
    """Returns the population stability index Σ (q − p) ln(q / p) of two vectors of counts, and its bins.

    Half a film is added to each bin, so that an empty one does not make it infinite; bins empty on both sides fall out.
    """
    filled = (old + new) > 0
    p, q = (counts[filled] + 0.5 for counts in (old, new))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p))), int(filled.sum())


def _stability(name: str, old: Counts, new: Counts, bound: float) -> dict[str, Any]:
    """The index of one column and its bound.

    Without drift the index is about (1/n + 1/m) times a chi-square of bins − 1 degrees of freedom (Yurdakul,
    Statistical Properties of Population Stability Index, Western Michigan University 2018), so its mean is
    (bins − 1)(1/n + 1/m): the bound is raised by that, and never lies within what chance explains.
    """
    value, bins = stability_index(old, new)
    m, n = int(old.sum()), int(new.sum())
    unit, freedom = 1 / m + 1 / n, max(bins - 1, 1)
    return {
        "measure": "psi", "column": name, "reference_n": m, "n": n, "value": value,
        "p_value": float(stats.chi2.sf(value / unit, freedom)),
        "bound": max(bound + freedom * unit, float(stats.chi2.isf(CHANCE, freedom)) * unit),
    }  # fmt: skip
