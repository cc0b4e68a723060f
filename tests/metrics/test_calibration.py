import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from pneumobatch import metrics
from tests.metrics.drawn import EXAMPLES, draw, films, priors, split


@EXAMPLES
@given(films, st.floats(0.1, 1), st.sampled_from(["sensitivity", "specificity"]))
def test_thresholds_meet_their_target_and_no_further_one_does(rows, value, target):
    labels, scores = split(rows)
    assume(scores.max() < 1)
    threshold = metrics.choose_threshold(labels, scores, target, value)
    assert metrics.count(labels, scores >= threshold).rate(target) >= value - 1e-9
    step = 1 / 40 if target == "sensitivity" else -1 / 40
    stricter = [t for t in np.arange(41) / 40 + step / 2 if (t - threshold) * step > 1 / 1600]
    beyond = [metrics.count(labels, scores >= t) for t in stricter]
    here = metrics.count(labels, scores >= threshold)
    assert all(c == here or c.rate(target) < value for c in beyond)


@EXAMPLES
@given(films)
def test_the_balanced_threshold_has_the_greatest_youden_index(rows):
    labels, scores = split(rows)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    counts = metrics.count(labels, scores >= metrics.choose_threshold(labels, scores, "balanced"))
    assert counts.rate("sensitivity") + counts.rate("specificity") - 1 == pytest.approx((tpr - fpr)[1:].max())


def test_a_threshold_lies_midway_between_scores():
    labels, scores = [0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9]
    assert metrics.choose_threshold(labels, scores, "sensitivity", 1.0) == pytest.approx(0.5)
    assert metrics.choose_threshold(labels, scores, "sensitivity", 0.5) == pytest.approx(0.8)
    assert metrics.choose_threshold(labels, scores, "specificity", 1.0) == pytest.approx(0.5)
    assert metrics.choose_threshold(labels, scores, "specificity", 0.5) == pytest.approx(0.2)
    above = np.nextafter(0.3, 1)
    assert metrics.choose_threshold([0, 1], [0.3, above], "sensitivity", 1.0) == above


def test_an_impossible_target_says_so():
    with pytest.raises(ValueError, match="normal films have probability 1"):
        metrics.choose_threshold([0, 1], [1.0, 0.5], "specificity", 1.0)
    with pytest.raises(ValueError, match="needs validation films"):
        metrics.choose_threshold([0, 0], [0.1, 0.5], "sensitivity")


@EXAMPLES
@given(films, st.floats(0.1, 60))
def test_calibration_keeps_the_order_and_has_the_least_likelihood_loss(rows, scale):
    labels, scores = split(rows)
    margins = (scores - 0.5) * scale
    fitted = metrics.fit_calibration(margins, labels)
    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))

    def loss(temperature, offset):
        logit = margins / temperature + offset
        return (target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit)).mean()

    assert 0.05 <= fitted.temperature <= 20
    others = itertools.product((0.05, 0.3, 1, 1.7, 20), (-3, -0.5, 0, 0.2, 2))
    assert loss(*fitted) <= min(loss(*other) for other in others) + 1e-9
    probabilities = fitted.probabilities(margins)
    assert probabilities.mean() == pytest.approx(target.mean(), abs=1e-6)
    assert (np.diff(probabilities[np.argsort(margins, kind="stable")]) >= 0).all()


def test_calibration_finds_scale_and_offset_of_the_logits():
    generator = np.random.default_rng(0)
    logits = generator.normal(0.7, 2, 40_000)
    labels = (generator.random(40_000) < 1 / (1 + np.exp(-logits))).astype(int)
    fitted = metrics.fit_calibration(3 * (logits + 0.6), labels)
    assert fitted.temperature == pytest.approx(3, rel=0.03)
    assert fitted.offset == pytest.approx(-0.6, abs=0.05)
    ours = LogisticRegression(C=np.inf).fit((logits / 5)[:, None], labels)
    again = metrics.fit_calibration(logits / 5, labels)
    assert (1 / again.temperature, again.offset) == pytest.approx((ours.coef_[0, 0], ours.intercept_[0]), abs=2e-3)
    kept = (labels == 0) | (generator.random(40_000) < 0.2)  # a rarer class shifts the logit, as a class weight does
    rare = metrics.fit_calibration(logits[kept], labels[kept])
    assert rare.temperature == pytest.approx(1, abs=0.05)
    assert rare.offset == pytest.approx(np.log(0.2), abs=0.1)
    assert metrics.ece(labels[kept], rare.probabilities(logits[kept])) < 0.01


@EXAMPLES
@given(films, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_outside_the_uncertain_band_both_rates_hold_and_calls_are_those_of_the_threshold(rows, low_rate, high_rate, at):
    labels, scores = split(rows)
    scores = 0.05 + 0.9 * scores
    low, high = metrics.uncertain_band(labels, scores, at, low_rate, high_rate)
    assert 0 <= low <= at <= high <= 1
    assert (scores[labels == 1] >= low).mean() >= low_rate - 1e-9
    assert (scores[labels == 0] <= high).mean() >= high_rate - 1e-9
    # No narrower one does: without its outermost films one rate fails, unless the threshold keeps it.
    lowest, highest = scores[scores >= low].min(initial=1), scores[scores <= high].max(initial=0)
    if lowest < at:
        assert (scores[labels == 1] > lowest).mean() < low_rate
    if highest > at:
        assert (scores[labels == 0] < highest).mean() < high_rate


def test_no_rates_no_band_and_separated_classes_neither():
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9]
    assert metrics.uncertain_band(labels, [0.1, 0.7, 0.6, 0.9], 0.65, 0, 0) == (0.65, 0.65)
    assert metrics.uncertain_band(labels, scores, 0.5, 0.99, 0.99) == (0.5, 0.5)
    assert metrics.uncertain_band([0, 1], [1.0, 0.5], 0.5, 1.0, 1.0) == (0.25, 1.0)  # a normal film at 1


@EXAMPLES
@given(films, priors, priors)
def test_a_shifted_prior_is_bayes_rule_and_can_be_taken_back(rows, source, target):
    _, scores = split(rows)
    shifted = metrics.shift_prior(scores, source, target)
    # Saerens et al., eq. 2.4, as it stands there.
    sick, well = scores * target / source, (1 - scores) * (1 - target) / (1 - source)
    assert shifted == pytest.approx(sick / (sick + well))
    assert metrics.shift_prior(shifted, target, source) == pytest.approx(scores)
    assert metrics.shift_prior(scores, source, source) == pytest.approx(scores)
    assert metrics.shift_prior([source], source, target) == pytest.approx([target])


def test_a_shifted_prior_is_calibrated_where_it_is_true():
    generator = np.random.default_rng(0)

    def sample(prevalence, films):
        labels = (generator.random(films) < prevalence).astype(int)
        logits = generator.normal(2.0 * labels - 1, 1)  # whose log-likelihood ratio is 2x
        return labels, 1 / (1 + np.exp(-(2 * logits + np.log(0.7 / 0.3))))  # calibrated at .7

    labels, scores = sample(0.1, 40_000)
    corrected = metrics.shift_prior(scores, 0.7, 0.1)
    assert metrics.ece(labels, scores) > 0.2 and metrics.ece(labels, corrected) < 0.01
    # Films of another prevalence, weighted to the local one, say the same of the corrected probabilities.
    labels, scores = sample(0.6, 40_000)
    corrected, weights = metrics.shift_prior(scores, 0.7, 0.1), metrics.prevalence_weights(labels, 0.1)
    assert weights.sum() == pytest.approx(labels.size) and weights @ labels == pytest.approx(0.1 * labels.size)
    assert metrics.ece(labels, corrected, weights) < 0.01
    low, high = metrics.percentile(metrics.bootstrap(labels[:900], corrected[:900], None, 300, 0, 10, 0.1)["brier"])
    assert low < metrics.brier(labels, corrected, weights) < high


def test_a_resample_is_weighted_to_the_prevalence_as_its_own_films_are():
    labels, scores = draw(films=70)
    draws = metrics.bootstrap(labels, scores, np.arange(70), 4, 3, 10, 0.05)
    generator = np.random.default_rng(3)
    for drawn, picked in zip(draws["brier"], generator.integers(70, size=(4, 70)), strict=True):
        weights = metrics.prevalence_weights(labels[picked], 0.05)
        assert drawn == pytest.approx(metrics.brier(labels[picked], scores[picked], weights))
    with pytest.raises(ValueError, match="both classes"):
        metrics.prevalence_weights([1, 1], 0.1)
