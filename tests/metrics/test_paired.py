"""Paired tests against published values, and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pneumobatch import metrics

OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
"""Albumin, total protein, K-G score and benefit of surgery, of DeLong et al. 1988, as in SAS/STAT's PROC LOGISTIC."""


def test_delong_gives_the_published_comparison() -> None:
    albumin, protein, score, benefit = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    score = 10 - score
    one = metrics.delong_paired(benefit, protein, score)
    two = metrics.delong_paired(benefit, albumin, score)
    both = metrics.delong_paired(benefit, protein, albumin)
    assert one is not None and two is not None and both is not None
    covariance = (one.variance + two.variance - both.variance) / 2
    difference = np.array([one.value, two.value])
    chi_square = difference @ np.linalg.solve([[one.variance, covariance], [covariance, two.variance]], difference)
    assert chi_square == pytest.approx(2.5340, abs=5e-5)  # published: 2.5340 with 2 degrees of freedom


films = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=40).filter(
    lambda rows: 2 <= sum(row[0] for row in rows) <= len(rows) - 2
)


@given(films)
def test_delong_follows_its_definition(rows: list[tuple[int, int, int]]) -> None:
    labels, first, second = np.array(rows).T

    def psi(scores: np.ndarray) -> np.ndarray:
        sick, well = scores[labels == 1][:, None], scores[labels == 0][None, :]
        return (sick > well) + 0.5 * (sick == well)

    kernel = psi(first) - psi(second)
    variance = kernel.mean(1).var(ddof=1) / len(kernel) + kernel.mean(0).var(ddof=1) / kernel.shape[1]
    found, swapped = metrics.delong_paired(labels, first, second), metrics.delong_paired(labels, second, first)
    assert found is not None and swapped is not None
    assert found.value == pytest.approx(kernel.mean(), abs=1e-12)
    assert found.variance == pytest.approx(variance, abs=1e-12)
    assert swapped.value == -found.value and swapped.p_value == pytest.approx(found.p_value)
    assert 0 <= found.p_value <= 1
    area = metrics.delong(labels, first)
    alone = metrics.delong_paired(labels, first, np.zeros(len(labels)))
    assert area is not None and alone is not None
    assert alone.value == pytest.approx(area[0] - 0.5) and alone.variance == pytest.approx(area[1])


def test_delong_of_too_few_films_is_not_defined() -> None:
    assert metrics.delong_paired([0, 0, 1], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]) is None


def test_mcnemar_gives_the_published_value() -> None:
    # Approval ratings (Agresti, Categorical Data Analysis, table 10.1): 150 changed one way, 86 the other.
    labels = np.ones(1600)
    first = np.repeat([1, 1, 0, 0], [794, 150, 86, 570])
    second = np.repeat([1, 0, 1, 0], [794, 150, 86, 570])
    found = metrics.mcnemar(labels, first, second)
    assert (found.only_first, found.only_second) == (150, 86)
    assert found.p_value == pytest.approx(binomtest(86, 236).pvalue, rel=1e-9)
    assert found.p_value < 5e-5


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=60))
def test_mcnemar_is_a_binomial_test_of_the_disagreements(rows: list[tuple[int, int, int]]) -> None:
    labels, first, second = np.array(rows).T
    found = metrics.mcnemar(labels, first, second)
    right = ((first == labels).sum(), (second == labels).sum())
    assert found.only_first - found.only_second == right[0] - right[1]
    if changed := found.only_first + found.only_second:
        assert found.p_value == pytest.approx(binomtest(found.only_first, changed).pvalue)
    else:
        assert found.p_value == 1
    assert metrics.mcnemar(1 - labels, 1 - first, 1 - second) == found
