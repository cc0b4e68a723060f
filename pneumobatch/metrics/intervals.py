"""Intervals of statistics over all thresholds: DeLong for AUROC, bootstrap over patients for any of them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumobatch.metrics.counts import Z95, Floats, Interval, checked
from pneumobatch.metrics.curves import STATISTICS, Ranking, Weighted


def delong(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float] | None:
    """Returns AUROC and its variance after DeLong in O(n log n) (Sun & Xu, IEEE SPL 2014); None below two of a class.

    Films count as independent: with several films a patient, `bootstrap` over patients is the honest interval.
    """
    truth, score = checked(labels, scores)
    if min(truth.sum(), (~truth).sum()) < 2:
        return None
    above, below = placements(truth, score)
    variance = above.var(ddof=1) / above.size + below.var(ddof=1) / below.size
    return float(above.mean()), float(variance)


def placements(truth: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Returns for each pneumonia the share of normal films that score below it, and for each normal film the share of
    pneumonias that score above it; a tie counts half. The mean of either is the AUROC.
    """
    ranks = _midranks(score)
    above = (ranks[truth] - _midranks(score[truth])) / (~truth).sum()
    below = 1 - (ranks[~truth] - _midranks(score[~truth])) / truth.sum()
    return above, below


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


MONTE_CARLO = 5_000_000
LEAST_RESAMPLES = 200


def enough_resamples(wanted: int, films: int) -> int:
    """Returns how many of the wanted resamples a bootstrap of so many films needs: all up to 5,000 films, then fewer.

    A percentile bound of R resamples has a Monte-Carlo error of about 2.7 σ/√R (Efron & Tibshirani 1993, ch. 19), and
    σ itself falls as 1/√films. While R × films stays the same so does that error, about 0.0003 for an AUROC: below
    the third decimal that is shown. Under 200 resamples there would be too few beyond the 2.5th percentile.
    """
    return min(wanted, max(LEAST_RESAMPLES, MONTE_CARLO // max(films, 1)))


BLOCK = 1 << 18
"""Weights at a time: a few MB, which stay in the processor's cache."""

FEWEST_UNITS = 10
"""Patients (or films, where no patient is known) below which nothing is drawn: so few do not show how much others of
their kind differ, and percentiles would be far too narrow."""

UNDEFINED = 0.05
"""Share of resamples in which a statistic may be undefined: those that are left are not a sample of all."""

POINTS = 8192
"""Points of a resample's curve."""


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: NDArray[np.integer[Any]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 10,
    prevalence: float | None = None,
) -> dict[str, Floats]:
    """Draws the `STATISTICS` over all thresholds from resampled patients, all of them from the same resamples.

    A resample is a vector of multiplicities, so nothing is copied or sorted again: linear time each.

    Args:
        labels: 0/1 [N].
        scores: Probabilities [N].
        patients: The patient of each film, any integers [N]; resampled whole. None: every film is its own patient.
        resamples: Number of resamples.
        seed: Same seed, same draws, for films in the same order.
        bins: Bins of the expected calibration error.
        prevalence: Prevalence that the films of every resample are weighted to; None: the one it has.

    Returns:
        The draws in which the statistic was defined, [≤ resamples] by name; `percentile` makes an interval of them.
        None at all of fewer than `FEWEST_UNITS` patients, or where more than the share `UNDEFINED` of them is lacking.

    Raises:
        ValueError: As the statistics do.
    """
    films = Ranking.of(labels, scores, bins).thinned(POINTS)
    member, count = None, films.score.size
    if patients is not None and count:
        member = np.unique(patients, return_inverse=True)[1][films.order]
        count = int(member.max()) + 1
    generator = np.random.default_rng(seed)
    draws: dict[str, list[Floats]] = {name: [np.zeros(0)] for name in STATISTICS}
    left = resamples if count >= FEWEST_UNITS else 0
    while left:
        rows = min(left, max(1, BLOCK // films.score.size))
        left -= rows
        picked = generator.integers(count, size=(rows, count))
        picked += np.arange(rows)[:, None] * count
        weights = np.bincount(picked.ravel(), minlength=rows * count).reshape(rows, count)
        # Without patients, multiplicities of films in any order are equally likely.
        times = (weights if member is None else weights[:, member]).astype(np.float64)
        weighted = Weighted(films, times if prevalence is None else _to_prevalence(times, films.truth, prevalence))
        for name, statistic in STATISTICS.items():
            values = statistic(weighted)
            draws[name].append(values[~np.isnan(values)])
    found = {name: np.concatenate(parts) for name, parts in draws.items()}
    return {name: drawn if drawn.size >= (1 - UNDEFINED) * resamples else drawn[:0] for name, drawn in found.items()}


def _to_prevalence(weights: Floats, truth: NDArray[np.bool_], prevalence: float) -> Floats:
    """Scales each class's weights [B, N] to its share; a draw without one of the classes has no weight left."""
    sick = weights @ truth
    well = weights.sum(-1) - sick
    both = (sick > 0) & (well > 0)
    shares = [
        np.where(both, share / np.where(both, n, 1), 0.0) for share, n in ((prevalence, sick), (1 - prevalence, well))
    ]
    return np.asarray(weights * np.where(truth, shares[0][:, None], shares[1][:, None]))


def percentile(draws: Floats, about: float | None = None) -> Interval | None:
    """Returns the central 95 % of bootstrap draws; None where they do not vary (a width of 0 would claim certainty).

    Args:
        draws: Draws [R] of a statistic within 0–1.
        about: The estimate to centre the draws on first, for a statistic that resampling itself inflates: ECE is
            (Efron & Tibshirani 1993, ch. 10: the bootstrap's estimate of bias is subtracted).
    """
    central = difference(draws)
    if central is None:
        return None
    shift = 0.0 if about is None else about - draws.mean()
    low, high = np.clip(np.add(central, shift), 0, 1)
    return float(low), float(high)


def difference(draws: Floats) -> Interval | None:
    """As `percentile`, of draws [R] of a statistic's difference between two sides, within −1 to 1."""
    if draws.size == 0 or np.ptp(draws) < 1e-12:
        return None
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Returns an interval as a table's columns `<name>_low` and `<name>_high`; None is NULL in both."""
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
