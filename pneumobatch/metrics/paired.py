"""Tests of two models on the same films: who is right (McNemar), and who ranks better (DeLong)."""

from math import comb, erfc, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pneumobatch.metrics.counts import checked
from pneumobatch.metrics.intervals import placements


class McNemar(NamedTuple):
    """What two models' calls disagree about."""

    only_first: int
    """Films that the first model alone calls rightly."""
    only_second: int
    """Films that the second model alone calls rightly."""
    p_value: float
    """Two-sided and exact: of so lopsided a disagreement if both were equally often right."""


def mcnemar(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> McNemar:
    """Compares two models' calls (0/1, [N] each) of the same films by the exact McNemar test.

    Of the n films that one alone calls rightly, each is as likely the first's as the second's: a binomial of ½
    (McNemar, Psychometrika 1947; exact as in Agresti, Categorical Data Analysis, 10.1). Without disagreement p is 1.
    Films count as independent.

    Raises:
        ValueError: The lengths differ or a value is neither 0 nor 1.
    """
    truth, first_score = checked(labels, np.asarray(first, np.float64))
    second_score = checked(labels, np.asarray(second, np.float64))[1]
    first_right, second_right = (checked(s, s)[0] == truth for s in (first_score, second_score))
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    films = only_first + only_second
    # Whole numbers until the last division, so that no tail is lost to rounding.
    tail = sum(comb(films, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**films))


class Difference(NamedTuple):
    """The difference of two AUROCs on the same films."""

    value: float
    """First minus second."""
    variance: float
    """Its variance."""
    p_value: float
    """Two-sided, of so great a difference if there were none."""


def delong_paired(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> Difference | None:
    """Compares two models' AUROCs on the same films after DeLong et al. (Biometrics 1988).

    Returns:
        None below two films of a class. Films count as independent.

    Raises:
        ValueError: The lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth, first_score = checked(labels, first)
    second_score = checked(labels, second)[1]
    if min(truth.sum(), (~truth).sum()) < 2:
        return None
    # The variance of a difference needs no covariance when each film's own difference is at hand.
    above, below = (a - b for a, b in zip(placements(truth, first_score), placements(truth, second_score), strict=True))
    value = float(above.mean())
    variance = float(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size)
    if variance == 0:
        return Difference(value, 0.0, 1.0 if value == 0 else 0.0)
    return Difference(value, variance, erfc(abs(value) / sqrt(2 * variance)))
