import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from pneumobatch import metrics
from pneumobatch.metrics.curves import Ranking, Weighted
from tests.metrics.drawn import EXAMPLES, draw, films, split


@EXAMPLES
@given(films)
def test_threshold_free_statistics_agree_with_scikit_learn(rows):
    labels, scores = split(rows)
    assert metrics.auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores))
    assert metrics.average_precision(labels, scores) == pytest.approx(sk.average_precision_score(labels, scores))
    assert metrics.brier(labels, scores) == pytest.approx(sk.brier_score_loss(labels, scores))


@EXAMPLES
@given(films, st.data())
def test_weights_are_repetitions(rows, data):
    labels, scores = split(rows)
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    assume(len(set(np.repeat(labels, times))) == 2)
    for statistic in (metrics.auroc, metrics.average_precision, metrics.brier, metrics.ece):
        repeated = statistic(np.repeat(labels, times), np.repeat(scores, times))
        assert statistic(labels, scores, times.astype(float)) == pytest.approx(repeated)


@EXAMPLES
@given(films)
def test_auroc_keeps_under_monotone_change_and_flips_with_the_scores(rows):
    labels, scores = split(rows)
    area = metrics.auroc(labels, scores)
    assert metrics.auroc(labels, np.exp(3 * scores) - 7) == pytest.approx(area)
    assert metrics.auroc(labels, -scores) == pytest.approx(1 - area)
    assert metrics.auroc(1 - labels, scores) == pytest.approx(1 - area)


def test_one_class_has_no_area():
    assert metrics.auroc([1, 1], [0.2, 0.3]) is None
    assert metrics.average_precision([0, 0], [0.2, 0.3]) is None
    assert metrics.delong([1, 0], [0.2, 0.3]) is None
    assert metrics.brier([], []) is None and metrics.ece([], []) is None


def test_operating_points_are_scikit_learns_curve():
    labels, scores = draw()
    points = metrics.operating_points(labels, scores)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert np.allclose(points.true_positives / labels.sum(), tpr[1:])
    assert np.allclose(points.false_positives / (1 - labels).sum(), fpr[1:])


def test_ece_and_reliability_by_hand():
    labels, scores = [0, 1, 1, 1], [0.1, 0.2, 0.8, 1.0]
    # Bins of a half: |0.15 − 0.5| and |0.9 − 1|, two films each.
    assert metrics.ece(labels, scores, bins=2) == pytest.approx(0.225)
    low, high = metrics.reliability(labels, scores, bins=2)
    assert low == pytest.approx((0.0, 0.5, 0.15, 0.5, 1, 2))
    assert high == pytest.approx((0.5, 1.0, 0.9, 1.0, 2, 2))


def test_reliability_is_scikit_learns_curve():
    labels, scores = draw()
    observed, stated = calibration_curve(labels, scores, n_bins=7)
    rows = metrics.reliability(labels, scores, bins=7)
    assert [row.observed for row in rows] == pytest.approx(observed.tolist())
    assert [row.probability for row in rows] == pytest.approx(stated.tolist())


def test_a_thinned_curve_keeps_its_statistics():
    labels, scores = draw(films=60_000, digits=12)
    whole = Ranking.of(labels, scores)
    thin = whole.thinned(8192)
    assert thin.last.size <= 8192 < whole.last.size
    weights = np.random.default_rng(0).integers(0, 4, (3, 60_000)).astype(float)
    for name, limit in (("auroc", 1e-6), ("average_precision", 1e-4), ("brier", 1e-15), ("ece", 1e-15)):
        statistic = metrics.STATISTICS[name]
        np.testing.assert_allclose(statistic(Weighted(thin, weights)), statistic(Weighted(whole, weights)), atol=limit)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.5], "two vectors"),
        ([0, 2], [0.5, 0.5], "only 1"),
        ([0, 1], [0.5, np.nan], "finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.auroc(labels, scores)


def test_probabilities_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="0–1"):
        metrics.ece([0, 1], [0.5, 1.5])
