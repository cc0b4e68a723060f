"""Intervals of statistics over all thresholds: DeLong for AUROC, bootstrap over patients for any of them."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumobatch.metrics.counts import Z95, Floats, Interval, checked


def delong(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float] | None:
    """Returns AUROC and its variance after DeLong in O(n log n) (Sun & Xu, IEEE SPL 2014); None below two of a class.

    Films count as independent: with several films a patient, `bootstrap` over patients is the honest interval.
    """
    truth, score = checked(labels, scores)
    positives, negatives = score[truth], score[~truth]
    if min(positives.size, negatives.size) < 2:
        return None
    ranks = _midranks(score)
    above = (ranks[truth] - _midranks(positives)) / negatives.size
    below = 1 - (ranks[~truth] - _midranks(negatives)) / positives.size
    variance = above.var(ddof=1) / positives.size + below.var(ddof=1) / negatives.size
    return float(above.mean()), float(variance)


def _midranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def delong_interval(labels: ArrayLike, scores: ArrayLike, z: float = Z95) -> Interval | None:
    """Returns DeLong's interval on the logit scale, which stays within 0–1; None where the variance is 0 or unknown."""
    result = delong(labels, scores)
    if result is None or result[1] <= 0 or not 0 < result[0] < 1:
        return None  # perfect separation: a width of 0 would claim certainty
    area, variance = result
    logit, half = np.log(area / (1 - area)), z * np.sqrt(variance) / (area * (1 - area))
    return float(1 / (1 + np.exp(half - logit))), float(1 / (1 + np.exp(-half - logit)))


Statistic = Callable[[NDArray[np.bool_], Floats, Floats], float | None]
"""A statistic of labels, scores and non-negative weights; None where it is not defined."""


def bootstrap(
    statistics: Mapping[str, Statistic],
    labels: ArrayLike,
    scores: ArrayLike,
    clusters: Iterable[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Draws each statistic from resampled clusters (patients), all statistics from the same resamples.

    A resample is a vector of multiplicities, so nothing is copied or sorted again: linear time each.

    Args:
        statistics: `auroc`, `average_precision`, `brier`, `ece` or their like, by name.
        labels: 0/1 [N].
        scores: Scores [N].
        clusters: One patient a film [N], resampled whole; None: every film is its own patient.
        resamples: Number of resamples.
        seed: Same seed, same draws, for films in the same order.

    Returns:
        The draws in which the statistic was defined, [≤ resamples] by name; `percentile` makes an interval of them.

    Raises:
        ValueError: As the statistics do.
    """
    truth, score = checked(labels, scores)
    order = np.argsort(-score, kind="stable")
    patients = np.arange(score.size) if clusters is None else np.unique(list(clusters), return_inverse=True)[1]
    truth, score, member = truth[order], score[order], patients[order]
    patient_count = int(patients.max()) + 1 if patients.size else 0
    generator = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(resamples if patient_count else 0):
        multiplicity = np.bincount(generator.integers(patient_count, size=patient_count), minlength=patient_count)
        weight = multiplicity[member].astype(np.float64)
        for name, statistic in statistics.items():
            value = statistic(truth, score, weight)
            if value is not None:
                draws[name].append(value)
    return {name: np.asarray(values, dtype=np.float64) for name, values in draws.items()}


def percentile(draws: Floats, about: float | None = None) -> Interval | None:
    """Returns the central 95 % of bootstrap draws; None where they do not vary (a width of 0 would claim certainty).

    Args:
        draws: Draws [R] of a statistic within 0–1.
        about: The estimate to centre the draws on first, for a statistic that resampling itself inflates: ECE is
            (Efron & Tibshirani 1993, ch. 10: the bootstrap's estimate of bias is subtracted).
    """
    if draws.size == 0 or np.ptp(draws) < 1e-12:
        return None
    shift = 0.0 if about is None else about - draws.mean()
    low, high = np.clip(np.percentile(draws, [2.5, 97.5]) + shift, 0, 1)
    return float(low), float(high)
