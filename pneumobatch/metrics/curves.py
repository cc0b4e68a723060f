"""Statistics of labels and scores over all thresholds: ROC, precision–recall, calibration.

Each is written once, for weighted films and for many weightings at a time: a bootstrap's resamples are weightings.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumobatch.metrics.counts import Floats, checked


@dataclass(frozen=True)
class Ranking:
    """Films in falling order of score."""

    truth: NDArray[np.bool_]
    """Has pneumonia [N]."""
    score: Floats
    """Scores, falling [N]."""
    order: NDArray[np.intp]
    """Where each film stood before [N]; equal scores keep their order."""
    last: NDArray[np.intp]
    """The last film at each cut: of each distinct score, unless thinned [K]."""
    bins: int = 10
    """Equal-width bins of the expected calibration error."""

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> Self:
        """Ranks films.

        Raises:
            ValueError: The lengths differ, a label is neither 0 nor 1, or a score is not finite.
        """
        truth, score = checked(labels, scores)
        order = np.argsort(-score, kind="stable")
        score = score[order]
        last = np.append(np.flatnonzero(np.diff(score)), score.size - 1) if score.size else np.zeros(0, int)
        return cls(truth[order], score, order, last, bins)

    def thinned(self, points: int) -> Self:
        """Cuts the curve at about so many scores, evenly by rank, where it has more: what lies between counts as tied.

        With 8,192 points AUROC moves by less than 1e-6 and average precision by less than 1e-4.
        """
        if self.last.size <= points:
            return self
        return replace(self, last=self.last[np.linspace(0, self.last.size - 1, points).round().astype(np.intp)])

    @cached_property
    def residual(self) -> Floats:
        """Score minus label [N]."""
        return self.score - self.truth

    @cached_property
    def squared(self) -> Floats:
        """Squared difference of score and label [N]."""
        return self.residual**2

    @cached_property
    def bin_starts(self) -> NDArray[np.intp]:
        """The first film of each bin that holds any: in falling order of score a bin is one stretch of films."""
        return np.append(0, np.flatnonzero(np.diff(_bins(self.score, self.bins))) + 1)


@dataclass(frozen=True)
class Weighted:
    """Ranked films under one weighting [N] or several [B, N]; weights are not negative."""

    films: Ranking
    weights: Floats

    @cached_property
    def total(self) -> Floats:
        """Weight of all films [B]."""
        return np.asarray(self.weights.sum(-1))

    @cached_property
    def called(self) -> tuple[Floats, Floats]:
        """Weight of pneumonia and of normal films at or above each cut [B, K]."""
        tp, called = self._up_to_each_cut(self.weights * self.films.truth), self._up_to_each_cut(self.weights)
        return tp, called - tp

    def _up_to_each_cut(self, weights: Floats) -> Floats:
        if self.films.last.size < self.films.score.size:
            weights = np.add.reduceat(weights, np.append(0, self.films.last[:-1] + 1), axis=-1)
        return np.cumsum(weights, axis=-1)


Statistic = Callable[[Weighted], Floats]
"""A statistic of weighted films: one value a weighting [B], NaN where it is not defined."""


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    defined = denominator > 0
    return np.asarray(np.where(defined, numerator, np.nan) / np.where(defined, denominator, 1))


def weighted_auroc(films: Weighted) -> Floats:
    """Area under the ROC curve by the trapezoidal rule."""
    tp, fp = films.called
    steps, heights = fp.copy(), tp.copy()
    steps[..., 1:] -= fp[..., :-1]
    heights[..., 1:] += tp[..., :-1]
    return _ratio(np.einsum("...k,...k->...", steps, heights), 2 * tp[..., -1] * fp[..., -1])


def weighted_average_precision(films: Weighted) -> Floats:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over falling thresholds."""
    tp, fp = films.called
    steps = tp.copy()
    steps[..., 1:] -= tp[..., :-1]
    precision = tp / np.maximum(tp + fp, 1e-300)
    return _ratio(np.einsum("...k,...k->...", steps, precision), tp[..., -1])


def weighted_brier(films: Weighted) -> Floats:
    """Mean squared difference of probability and label."""
    return _ratio(films.weights @ films.films.squared, films.total)


def weighted_ece(films: Weighted) -> Floats:
    """Mean gap of probability and observed rate over equal-width bins."""
    gaps = np.add.reduceat(films.weights * films.films.residual, films.films.bin_starts, axis=-1)
    return _ratio(np.abs(gaps).sum(-1), films.total)


STATISTICS: dict[str, Statistic] = {
    "auroc": weighted_auroc,
    "average_precision": weighted_average_precision,
    "brier": weighted_brier,
    "ece": weighted_ece,
}
"""The statistics over all thresholds by name."""


def over_thresholds(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> dict[str, float | None]:
    """Returns the `STATISTICS` by name, None where one is not defined; the films are ranked once.

    Raises:
        ValueError: As the statistics do.
    """
    films = Ranking.of(labels, scores, bins)
    if not films.score.size:
        return dict.fromkeys(STATISTICS)
    weighted = Weighted(films, np.ones(films.score.size))
    values = {name: float(statistic(weighted)) for name, statistic in STATISTICS.items()}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _value(
    statistic: Statistic, labels: ArrayLike, scores: ArrayLike, weights: Floats | None, bins: int = 10
) -> float | None:
    films = Ranking.of(labels, scores, bins)
    if not films.score.size:
        return None
    weight = np.ones(films.score.size) if weights is None else np.asarray(weights, np.float64)[films.order]
    value = float(statistic(Weighted(films, weight)))
    return None if np.isnan(value) else value


class Operating(NamedTuple):
    """Every distinct way to cut the scores, from the strictest: called pneumonia is a score >= threshold."""

    thresholds: Floats
    """The distinct scores, falling."""
    true_positives: Floats
    """Pneumonia at or above each threshold, films."""
    false_positives: Floats
    """Normal at or above each threshold, films."""


def operating_points(labels: ArrayLike, scores: ArrayLike) -> Operating:
    """Returns the cumulative counts behind ROC and precision–recall curves; tied scores are one point.

    Raises:
        ValueError: The lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    films = Ranking.of(labels, scores)
    return Operating(films.score[films.last], *Weighted(films, np.ones(films.score.size)).called)


def auroc(labels: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns the area under the ROC curve: P(pneumonia scores above normal) + ½ P(tie); None with one class only."""
    return _value(weighted_auroc, labels, scores, weights)


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns Σ (Rₙ − Rₙ₋₁) Pₙ over falling thresholds, scikit-learn's definition; None without pneumonia."""
    return _value(weighted_average_precision, labels, scores, weights)


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: Floats | None = None) -> float | None:
    """Returns the mean squared difference of probability and label, 0–1 (Brier 1950); None without films."""
    return _value(weighted_brier, labels, probabilities, weights)


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
    return _value(weighted_ece, labels, probabilities, weights, bins)


class Bin(NamedTuple):
    """One bin of a reliability curve."""

    low: float
    high: float
    probability: float
    """Mean probability of its films."""
    observed: float
    """Share of its films with pneumonia."""
    positives: int
    """Its films with pneumonia."""
    films: int


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10, weights: Floats | None = None
) -> list[Bin]:
    """Returns the bins of `ece` that hold films; weights [N] change their means, not their counts.

    Raises:
        ValueError: A probability lies outside 0–1.
    """
    truth, score = checked(labels, probabilities)
    index = _bins(score, bins)
    weight = np.ones(score.size) if weights is None else weights
    films, positives = np.bincount(index, minlength=bins), np.bincount(index[truth], minlength=bins)
    totals, probability, observed = (
        np.bincount(index, weights=weight * values, minlength=bins) for values in (np.ones(score.size), score, truth)
    )
    return [
        Bin(i / bins, (i + 1) / bins, float(probability[i] / totals[i]), float(observed[i] / totals[i]),
            int(positives[i]), int(films[i]))
        for i in np.flatnonzero(films).tolist()
    ]  # fmt: skip
