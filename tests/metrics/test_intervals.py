import time

import numpy as np
import pytest

from pneumobatch import metrics
from pneumobatch.metrics.curves import Ranking, Weighted
from tests.metrics.drawn import draw


def test_delong_agrees_with_every_pair():
    labels, scores = draw(films=150, digits=1)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    # DeLong et al., Biometrics 44 (1988): structural components from the kernel of all pairs.
    kernel = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    variance = kernel.mean(1).var(ddof=1) / positives.size + kernel.mean(0).var(ddof=1) / negatives.size
    assert metrics.delong(labels, scores) == pytest.approx((kernel.mean(), variance))
    low, high = metrics.delong_interval(labels, scores)
    assert low < kernel.mean() < high


def test_delong_agrees_with_a_published_example():
    # CT ratings of Hanley & McNeil, Radiology 143 (1982), table I; area, standard error and 95 % interval of DeLong as
    # the manual of Stata's roctab gives them.
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    scores = np.concatenate([np.repeat(np.arange(5), counts) for counts in (normal, abnormal)])
    area, variance = metrics.delong([0] * 58 + [1] * 51, scores)
    half = metrics.Z95 * variance**0.5
    assert (area, variance**0.5) == pytest.approx((0.8932, 0.0307), abs=5e-5)
    assert (area - half, area + half) == pytest.approx((0.83295, 0.95339), abs=5e-6)


def test_bootstrap_agrees_with_delong_where_films_are_independent():
    labels, scores = draw(films=800, digits=6)
    low, high = metrics.percentile(metrics.bootstrap(labels, scores, None, 2000, 1)["auroc"])
    assert (low, high) == pytest.approx(metrics.delong_interval(labels, scores), abs=0.006)


def test_bootstrap_over_patients_is_wider_when_their_films_are_alike():
    labels, scores = draw(films=150, digits=6)
    labels, scores, patients = np.repeat(labels, 4), np.repeat(scores, 4), np.repeat(np.arange(150), 4)
    width = {}
    for name, clusters in (("films", None), ("patients", patients)):
        low, high = metrics.percentile(metrics.bootstrap(labels, scores, clusters, 500, 0)["auroc"])
        width[name] = high - low
    assert width["patients"] == pytest.approx(2 * width["films"], rel=0.3)


def test_bootstrap_repeats_with_its_seed_and_leaves_undefined_draws_out():
    labels, scores = draw(films=60)
    first, second = (metrics.bootstrap(labels, scores, None, 50, 3)["auroc"] for _ in range(2))
    assert np.array_equal(first, second)
    labels, scores = [1] * 4 + [0] * 36, np.arange(40) / 40  # one resample in seventy has no pneumonia
    rare = metrics.bootstrap(labels, scores, None, 1000, 0)
    assert 900 < rare["auroc"].size < rare["brier"].size == 1000


def test_too_few_patients_or_too_many_undefined_draws_have_no_interval():
    labels, scores = draw(films=90)
    for patients, known in ((9, False), (10, True)):
        drawn = metrics.bootstrap(labels, scores, np.arange(90) % patients, 100, 0)
        assert all((metrics.percentile(draws) is not None) == known for draws in drawn.values())
    assert metrics.bootstrap(labels[:9], scores[:9], None, 100, 0)["brier"].size == 0
    labels = [1] + [0] * 29  # a third of all resamples has no pneumonia, and no AUROC
    alone = metrics.bootstrap(labels, np.arange(30) / 30, None, 1000, 0)
    assert alone["auroc"].size == 0 and alone["brier"].size == 1000


def test_many_films_need_fewer_resamples():
    assert [metrics.enough_resamples(1000, n) for n in (0, 10, 5000, 10_000, 10**6)] == [1000, 1000, 1000, 500, 200]
    assert metrics.enough_resamples(100, 10**6) == 100
    assert metrics.enough_resamples(0, 10**6) == 0


def test_resamples_of_a_block_are_those_of_films_repeated():
    labels, scores = draw(films=70, digits=1)
    weights = np.random.default_rng(1).integers(0, 4, (5, 70))
    ranking = Ranking.of(labels, scores)
    for name, statistic in metrics.STATISTICS.items():
        found = statistic(Weighted(ranking, weights[:, ranking.order].astype(float)))
        for value, times in zip(found, weights, strict=True):
            repeated = np.repeat(labels, times), np.repeat(scores, times)
            assert value == pytest.approx(metrics.over_thresholds(*repeated)[name])


def test_perfect_separation_claims_no_interval():
    labels, scores = [0] * 30 + [1] * 30, np.linspace(0, 1, 60)
    draws = metrics.bootstrap(labels, scores, None, 100, 0)["auroc"]
    assert metrics.percentile(draws) is None
    assert metrics.delong_interval(labels, scores) is None
    assert metrics.percentile(np.array([])) is None


def test_the_interval_of_ece_is_moved_onto_the_estimate():
    labels, scores = draw(films=300, digits=6)
    draws, ece = metrics.bootstrap(labels, scores, None, 300, 0)["ece"], metrics.ece(labels, scores)
    low, high = metrics.percentile(draws, about=ece)
    assert 0 <= low < ece < high


def test_a_thousand_resamples_of_five_thousand_films_take_seconds():
    labels, scores = draw(films=5000, digits=6)
    start = time.perf_counter()
    metrics.bootstrap(labels, scores, np.arange(5000) // 2, 1000, 0)
    assert time.perf_counter() - start < 5  # measured: 0.3–0.9 s on one core
