import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pneumobatch import metrics
from tests.metrics.drawn import EXAMPLES, bayes, films, matrices, priors, split

PAPER = metrics.Counts(tp=207, fp=12, tn=196, fn=1)


@pytest.mark.parametrize(
    ("rate", "value"),
    [("accuracy", 0.9688), ("sensitivity", 0.995), ("specificity", 0.942), ("precision", 0.945), ("f1", 0.970)],
)
def test_the_papers_matrix_gives_the_rates_of_reading_1(rate, value):
    assert PAPER.rate(rate) == pytest.approx(value, abs=6e-4)


def test_the_papers_accuracy_has_the_wilson_interval_of_reading_1():
    assert PAPER.interval("accuracy") == pytest.approx((0.947, 0.982), abs=5e-4)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_newcombes_table(successes, n, low, high):
    assert metrics.wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@EXAMPLES
@given(st.integers(1, 2000), st.data())
def test_wilson_agrees_with_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    wanted = binomtest(successes, n).proportion_ci(method="wilson")
    assert metrics.wilson(successes, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_wilson_of_all_and_none():
    assert metrics.wilson(7, 7)[1] == 1.0
    assert metrics.wilson(0, 0) is None
    with pytest.raises(ValueError, match="impossible"):
        metrics.wilson(3, 2)


def test_a_rate_without_denominator_is_none():
    none = metrics.Counts(tn=5)
    assert none.rate("sensitivity") is None
    assert none.rate("precision") is None
    assert none.interval("f1") is None
    assert none.rate("specificity") == 1.0


@EXAMPLES
@given(films, st.randoms(use_true_random=False), st.integers(1, 79))
def test_counts_merge_regardless_of_order_and_partition(rows, random, cut):
    whole = metrics.count(split(rows)[0], split(rows)[1] >= 0.5)
    random.shuffle(rows)
    parts = [rows[:cut], rows[cut:]]
    assert sum((metrics.count(split(p)[0], split(p)[1] >= 0.5) for p in parts), metrics.Counts()) == whole
    assert whole.total == len(rows)


@EXAMPLES
@given(matrices)
def test_rates_of_many_matrices_are_those_of_each(rows):
    columns = metrics.rates(np.array(rows))
    for i, row in enumerate(rows):
        counts = metrics.Counts(*row)
        for name in metrics.RATES:
            found = [columns[f"{name}{bound}"][i] for bound in ("", "_low", "_high")]
            low, high = counts.interval(name) or (None, None)
            wanted = [np.nan if v is None else v for v in (counts.rate(name), low, high)]
            assert np.array_equal(found, wanted, equal_nan=True)


@EXAMPLES
@given(films)
def test_grid_counts_are_monotone_and_agree_with_counting(rows):
    labels, scores = split(rows)
    grid = np.linspace(0, 1, 17)
    counts = metrics.grid_counts(labels, scores, grid)
    assert counts == [metrics.count(labels, scores >= threshold) for threshold in grid]
    assert all(a.tp >= b.tp and a.fp >= b.fp for a, b in itertools.pairwise(counts))
    assert (counts[0].tn, counts[0].fn) == (0, 0)


def test_predictive_values_at_the_films_own_prevalence_are_those_that_were_counted():
    at_half = metrics.predictive_values(np.array([[PAPER.tp, PAPER.fp, PAPER.tn, PAPER.fn]]), 0.5)
    assert (at_half["ppv"][0], at_half["npv"][0]) == pytest.approx((PAPER.rate("precision"), PAPER.rate("npv")))


@EXAMPLES
@given(matrices, priors)
def test_predictive_values_are_bayes_rule_within_their_interval(rows, prevalence):
    columns = metrics.predictive_values(np.array(rows), prevalence)
    for i, row in enumerate(rows):
        counts = metrics.Counts(*row)
        if counts.positives and counts.negatives:
            wanted = bayes(counts.rate("sensitivity"), counts.rate("specificity"), prevalence)
            for name, value in zip(("ppv", "npv"), wanted, strict=True):
                found, low, high = (columns[f"{name}{bound}"][i] for bound in ("", "_low", "_high"))
                if value is not None:
                    assert found == pytest.approx(value) and 0 <= low <= found + 1e-12 <= high + 2e-12 <= 1 + 3e-12
                else:
                    assert np.isnan(found)


@pytest.mark.parametrize(("sensitivity", "specificity", "prevalence"), [(0.95, 0.9, 0.05), (0.99, 0.97, 0.3)])
def test_intervals_of_predictive_values_cover_them_as_often_as_they_say(sensitivity, specificity, prevalence):
    generator, sick, well = np.random.default_rng(0), 390, 234
    tp, tn = generator.binomial(sick, sensitivity, 4000), generator.binomial(well, specificity, 4000)
    columns = metrics.predictive_values(np.column_stack([tp, well - tn, tn, sick - tp]), prevalence)
    for name, value in zip(("ppv", "npv"), bayes(sensitivity, specificity, prevalence), strict=True):
        covered = (columns[f"{name}_low"] <= value) & (value <= columns[f"{name}_high"])
        assert 0.935 < covered.mean() < 0.985
