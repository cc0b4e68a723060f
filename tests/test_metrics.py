import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from pneumobatch import metrics
from pneumobatch.metrics.curves import Ranking, Weighted

PAPER = metrics.Counts(tp=207, fp=12, tn=196, fn=1)

# Rounded scores make ties; every draw has both classes.
films = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), min_size=2, max_size=80).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)
EXAMPLES = settings(max_examples=60, deadline=None)


def split(rows):
    return np.array([label for label, _ in rows]), np.array([score / 40 for _, score in rows])


def draw(films=400, seed=0, gap=1.0, digits=2):
    generator = np.random.default_rng(seed)
    labels = (generator.random(films) < 0.6).astype(int)
    logits = generator.normal(gap * (2 * labels - 1), 1.5)
    return labels, np.round(1 / (1 + np.exp(-logits)), digits)


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


matrices = st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=20)


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
    rare = metrics.bootstrap([1, 0, 0], [0.9, 0.1, 0.5], None, 200, 0)["auroc"]
    assert 0 < rare.size < 200


def test_many_films_need_fewer_resamples():
    assert [metrics.enough_resamples(1000, n) for n in (0, 10, 5000, 10_000, 10**6)] == [1000, 1000, 1000, 500, 200]
    assert metrics.enough_resamples(100, 10**6) == 100
    assert metrics.enough_resamples(0, 10**6) == 0


def test_a_thinned_curve_keeps_its_statistics():
    labels, scores = draw(films=60_000, digits=12)
    whole = Ranking.of(labels, scores)
    thin = whole.thinned(8192)
    assert thin.last.size <= 8192 < whole.last.size
    weights = np.random.default_rng(0).integers(0, 4, (3, 60_000)).astype(float)
    for name, limit in (("auroc", 1e-6), ("average_precision", 1e-4), ("brier", 1e-15), ("ece", 1e-15)):
        statistic = metrics.STATISTICS[name]
        np.testing.assert_allclose(statistic(Weighted(thin, weights)), statistic(Weighted(whole, weights)), atol=limit)


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


def test_predictive_values_by_bayes_rule():
    ppv, npv = metrics.ppv_npv(PAPER.rate("sensitivity"), PAPER.rate("specificity"), 0.5)
    assert (ppv, npv) == pytest.approx((PAPER.rate("precision"), PAPER.rate("npv")))
    assert metrics.ppv_npv(0.9, 0.9, 0.01)[0] == pytest.approx(0.0833, abs=1e-4)
    assert metrics.ppv_npv(0.0, 1.0, 0.3) == (None, pytest.approx(0.7))
    assert metrics.ppv_npv(1.0, 0.0, 0.3) == (pytest.approx(0.3), None)


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


priors = st.floats(0.01, 0.99)


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


@EXAMPLES
@given(matrices, priors)
def test_predictive_values_are_bayes_rule_within_their_interval(rows, prevalence):
    columns = metrics.predictive_values(np.array(rows), prevalence)
    for i, row in enumerate(rows):
        counts = metrics.Counts(*row)
        if counts.positives and counts.negatives:
            wanted = metrics.ppv_npv(counts.rate("sensitivity"), counts.rate("specificity"), prevalence)
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
    for name, value in zip(("ppv", "npv"), metrics.ppv_npv(sensitivity, specificity, prevalence), strict=True):
        covered = (columns[f"{name}_low"] <= value) & (value <= columns[f"{name}_high"])
        assert 0.935 < covered.mean() < 0.985


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
