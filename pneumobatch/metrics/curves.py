"""Statistics of labels and scores over all thresholds: ROC, precision–recall, calibration.

Each takes optional non-negative weights a film, which is how the bootstrap resamples without copying.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumobatch.metrics.counts import Floats, checked


class Operating(NamedTuple):
    """Every distinct way to cut the scores, from the strictest: called pneumonia is a score >= threshold."""

    thresholds: Floats
    """The distinct scores, falling."""
    true_positives: Floats
    """Pneumonia at or above each threshold, films (or weight)."""
    false_positives: Floats
    """Normal at or above each threshold, films (or weight)."""


def operating_points(labels: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> Operating:
    """Returns the cumulative counts behind ROC and precision–recall curves; tied scores are one point.

    Raises:
        ValueError: The lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth, score = checked(labels, scores)
    order = np.argsort(-score, kind="stable")  # linear time when the scores are sorted already, as in `bootstrap`
    truth, score = truth[order], score[order]
    weight = np.ones(score.size) if weights is None else weights[order]
    last = np.append(np.flatnonzero(np.diff(score)), score.size - 1) if score.size else np.zeros(0, int)
    return Operating(score[last], np.cumsum(weight * truth)[last], np.cumsum(weight * ~truth)[last])


def auroc(labels: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns the area under the ROC curve: P(pneumonia scores above normal) + ½ P(tie); None with one class only."""
    _, tp, fp = operating_points(labels, scores, weights)
    if tp.size == 0 or not tp[-1] or not fp[-1]:
        return None
    return float(np.sum(np.diff(fp, prepend=0) * (tp + np.append(0.0, tp[:-1])))) / (2 * float(tp[-1] * fp[-1]))


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns Σ (Rₙ − Rₙ₋₁) Pₙ over falling thresholds, scikit-learn's definition; None without pneumonia."""
    _, tp, fp = operating_points(labels, scores, weights)
    if tp.size == 0 or not tp[-1]:
        return None
    return float(np.sum(np.diff(tp, prepend=0) * tp / np.maximum(tp + fp, 1e-300)) / tp[-1])


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns the mean squared difference of probability and label, 0–1 (Brier 1950); None without films."""
    truth, score = checked(labels, probabilities)
    return float(np.average((score - truth) ** 2, weights=weights)) if score.size else None


def _bins(probabilities: Floats, bins: int) -> NDArray[np.intp]:
    if probabilities.size and not 0 <= probabilities.min() <= probabilities.max() <= 1:
        raise ValueError("probabilities: must lie in 0–1")
    return np.minimum((probabilities * bins).astype(np.intp), bins - 1)


def ece(labels: ArrayLike, probabilities: ArrayLike, weights: Floats | None = None, bins: int = 10) -> float | None:
    """Returns the expected calibration error, 0–1: the mean gap of probability and observed rate over equal-width bins.

    Source: Guo et al., ICML 2017, eq. 3, for the probability of pneumonia; a bin holds its lower edge, the last both.

    Raises:
        ValueError: A probability lies outside 0–1.
    """
    truth, score = checked(labels, probabilities)
    if not score.size:
        return None
    weight = np.ones(score.size) if weights is None else weights
    gaps = np.bincount(_bins(score, bins), weights=weight * (score - truth), minlength=bins)
    return float(np.abs(gaps).sum() / weight.sum())


class Bin(NamedTuple):
    """One bin of a reliability curve."""

    low: float
    high: float
    probability: float
    """Mean probability of its films."""
    positives: int
    """Its films with pneumonia."""
    films: int


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> list[Bin]:
    """Returns the bins of `ece` that hold films.

    Raises:
        ValueError: A probability lies outside 0–1.
    """
    truth, score = checked(labels, probabilities)
    index = _bins(score, bins)
    films, positives = np.bincount(index, minlength=bins), np.bincount(index[truth], minlength=bins)
    sums = np.bincount(index, weights=score, minlength=bins)
    return [
        Bin(i / bins, (i + 1) / bins, float(sums[i] / films[i]), int(positives[i]), int(films[i]))
        for i in range(bins)
        if films[i]
    ]
