"""Confusion counts that merge by addition, and the rates and intervals that come of them last."""

from dataclasses import astuple, dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
"""Normal deviate of a two-sided 95 % interval."""

RATES = ("accuracy", "precision", "sensitivity", "specificity", "npv", "f1")
"""The rates of a confusion matrix, as `Counts.rate` and `Counts.interval` name them."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]


_Number = TypeVar("_Number", int, Ints)


def _fractions(tp: _Number, fp: _Number, tn: _Number, fn: _Number) -> dict[str, tuple[_Number, _Number]]:
    """Numerator and denominator of each of `RATES`, of one matrix or of many."""
    return {
        "accuracy": (tp + tn, tp + fp + tn + fn),
        "precision": (tp, tp + fp),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "npv": (tn, tn + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
    }


@dataclass(frozen=True, slots=True)
class Counts:
    """A confusion matrix; matrices of disjoint sets of films merge with `+`, in any order."""

    tp: int = 0
    """Pneumonia, called pneumonia."""
    fp: int = 0
    """Normal, called pneumonia."""
    tn: int = 0
    """Normal, called normal."""
    fn: int = 0
    """Pneumonia, called normal."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """All films."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def positives(self) -> int:
        """Films with pneumonia."""
        return self.tp + self.fn

    @property
    def negatives(self) -> int:
        """Normal films."""
        return self.tn + self.fp

    def fraction(self, rate: str) -> tuple[int, int]:
        """Returns numerator and denominator of one of `RATES` (precision is PPV, sensitivity is recall)."""
        return _fractions(self.tp, self.fp, self.tn, self.fn)[rate]

    def rate(self, rate: str) -> float | None:
        """Returns one of `RATES`, 0–1, or None where its denominator is 0."""
        numerator, denominator = self.fraction(rate)
        return numerator / denominator if denominator else None

    def interval(self, rate: str, z: float = Z95) -> Interval | None:
        """Returns the Wilson interval of one of `RATES`, or None where its denominator is 0.

        F1 is no proportion, but it rises with one: F1 = 2j/(1 + j) with j = TP/(TP + FP + FN), the critical success
        index. Its interval is the Wilson interval of j carried through that curve.
        """
        if rate == "f1":
            interval = wilson(self.tp, self.tp + self.fp + self.fn, z)
            return interval and (2 * interval[0] / (1 + interval[0]), 2 * interval[1] / (1 + interval[1]))
        return wilson(*self.fraction(rate), z)


def checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """Returns labels as bool [N] and scores as float64 [N].

    Raises:
        ValueError: The lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(f"labels and scores: give two vectors of one length, not {truth.shape}, {score.shape}")
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError("labels: only 1 (pneumonia) and 0 (normal); leave out films of unknown label")
    if not np.isfinite(score).all():
        raise ValueError("scores: every score must be a finite number")
    return truth == 1, score


def count(labels: ArrayLike, predicted: ArrayLike) -> Counts:
    """Counts a confusion matrix from labels [N] and calls [N], both 0/1.

    Raises:
        ValueError: The lengths differ or a value is neither 0 nor 1.
    """
    truth, calls = checked(labels, np.asarray(predicted, dtype=np.float64))
    return grid_counts(truth, checked(calls, calls)[1], [0.5])[0]


def confusion(labels: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> Ints:
    """Returns tp, fp, tn and fn at each threshold, int64[T, 4].

    Raises:
        ValueError: The lengths differ, a label is neither 0 nor 1, or a probability is not finite.
    """
    truth, score = checked(labels, probabilities)
    normal, pneumonia = np.sort(score[~truth]), np.sort(score[truth])
    points = np.asarray(thresholds, dtype=np.float64)
    tn = np.searchsorted(normal, points, side="left")
    fn = np.searchsorted(pneumonia, points, side="left")
    return np.column_stack([pneumonia.size - fn, normal.size - tn, tn, fn])


def grid_counts(labels: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> list[Counts]:
    """Returns one confusion matrix per threshold; those of disjoint parts of an archive merge threshold by threshold.

    Raises:
        ValueError: As `confusion`.
    """
    return [Counts(*row) for row in confusion(labels, probabilities, thresholds).tolist()]


def rates(matrices: Ints) -> dict[str, Floats]:
    """Returns `RATES` of many confusion matrices [R, 4] at once, each with its `_low` and `_high`; NaN: not defined.

    Values and intervals are those of `Counts.rate` and `Counts.interval`.
    """
    tp, fp, tn, fn = np.ascontiguousarray(matrices.T)
    columns: dict[str, Floats] = {}
    for name, (numerator, denominator) in _fractions(tp, fp, tn, fn).items():
        value = np.full(len(matrices), np.nan)
        np.divide(numerator, denominator, out=value, where=denominator > 0)
        if name == "f1":
            low, high = (2 * bound / (1 + bound) for bound in wilson_bounds(tp, tp + fp + fn))
        else:
            low, high = wilson_bounds(numerator, denominator)
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return columns


def wilson_bounds(successes: Ints, n: Ints, z: float = Z95) -> tuple[Floats, Floats]:
    """Returns both bounds of the Wilson score interval (Wilson, JASA 1927) of each successes/n; NaN for n = 0."""
    films = np.where(n > 0, n, 1)
    rate = successes / films
    centre = (rate + z * z / (2 * films)) / (1 + z * z / films)
    half = z / (1 + z * z / films) * np.sqrt(rate * (1 - rate) / films + z * z / (4 * films * films.astype(float)))
    # Rounding must not cut a rate of exactly 0 or 1 out of its own interval.
    low, high = np.where(successes == 0, 0.0, centre - half), np.where(successes == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def wilson(successes: int, n: int, z: float = Z95) -> Interval | None:
    """Returns the Wilson score interval of successes/n, or None for n = 0.

    Raises:
        ValueError: Not 0 ≤ successes ≤ n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n} are impossible")
    if n == 0:
        return None
    low, high = wilson_bounds(np.array([successes]), np.array([n]), z)
    return float(low[0]), float(high[0])


def predictive_values(matrices: Ints, prevalence: float) -> dict[str, Floats]:
    """Returns PPV and NPV at a prevalence of many confusion matrices [R, 4], with `_low` and `_high`; NaN: not defined.

    Sensitivity and specificity are supposed to hold there (Bayes), and the prevalence to be known. Each value falls
    with a ratio of two independent proportions, PPV with (1 − specificity) / sensitivity and NPV with
    (1 − sensitivity) / specificity; its interval is that of the ratio, made of both Wilson intervals.
    """
    tp, fp, tn, fn = np.ascontiguousarray(matrices.T)
    odds = prevalence / (1 - prevalence)
    ratios = {"ppv": (fp, tp, tn + fp, tp + fn, 1 / odds), "npv": (fn, tn, tp + fn, tn + fp, odds)}
    columns: dict[str, Floats] = {}
    for name, (wrong, right, wrong_of, right_of, scale) in ratios.items():
        value, low, high = _ratio((wrong, wrong_of), (right, right_of))
        columns |= {
            name: 1 / (1 + value * scale),
            f"{name}_low": 1 / (1 + high * scale),
            f"{name}_high": 1 / (1 + low * scale),
        }
    return columns


def _ratio(first: tuple[Ints, Ints], second: tuple[Ints, Ints]) -> tuple[Floats, Floats, Floats]:
    """The ratio of two independent proportions, each (successes, n), and the bounds that both Wilson intervals give it.

    It is infinite where the second is 0, and NaN where both are or one has no film.

    Source: Donner & Zou, Statistical Methods in Medical Research 21 (2012), MOVER for a ratio; the lower bound with its
    numerator made rational.
    """
    (a, a_low, a_high), (b, b_low, b_high) = (
        (np.divide(k, n, out=np.full(n.shape, np.nan), where=n > 0), *wilson_bounds(k, n)) for k, n in (first, second)
    )
    a_least, a_most, b_least, b_most = (
        bound * (2 * rate - bound) for rate, bound in ((a, a_low), (a, a_high), (b, b_low), (b, b_high))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        value = a / b
        low = a_least / (a * b + np.sqrt(np.maximum((a * b) ** 2 - a_least * b_most, 0)))
        high = (a * b + np.sqrt(np.maximum((a * b) ** 2 - a_most * b_least, 0))) / b_least
    low = np.where((a == 0) & (b > 0), 0.0, low)
    high = np.where((b == 0) & (a > 0), np.inf, high)
    return value, np.where(np.isnan(value), np.nan, low), np.where(np.isnan(value), np.nan, high)
