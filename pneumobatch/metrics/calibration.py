"""What is fitted on validation films (calibration, operating point, uncertain band), and what another prior changes."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pneumobatch.metrics.counts import Floats, Interval, checked
from pneumobatch.metrics.curves import operating_points


class Calibration(NamedTuple):
    """What turns a network's margins into probabilities: sigmoid(margin / temperature + offset)."""

    temperature: float
    offset: float

    def probabilities(self, margins: ArrayLike) -> Floats:
        """Returns float64[N] in 0–1 for margins [N], the logit of pneumonia minus that of normal."""
        return _sigmoid(np.asarray(margins, np.float64) / self.temperature + self.offset)


def fit_calibration(margins: ArrayLike, labels: ArrayLike) -> Calibration:
    """Returns the temperature, 0.05–20, and the offset of the least negative log-likelihood.

    A temperature alone would keep the bias that class weights and focal losses bring: their networks take both classes
    for nearly equally frequent. The likelihood is convex, so the slope in 1/T is bisected, each time at the offset that
    is best there; the order of the films never changes. As in Platt's paper the targets are (N₁ + 1) / (N₁ + 2) and
    1 / (N₀ + 2) for 1 and 0, so that a fold without an error does not claim certainty.

    Args:
        margins: Logit of pneumonia minus logit of normal [N], any finite value.
        labels: 0/1 [N].

    Raises:
        ValueError: No films, lengths differ, a label is neither 0 nor 1, or a margin is not finite.

    Source: Platt, Probabilistic outputs for support vector machines, 1999; Guo et al., On calibration of modern neural
    networks, ICML 2017.
    """
    truth, margin = checked(labels, margins)
    if not margin.size:
        raise ValueError("fit_calibration: no films; give labelled validation films")
    positives = int(truth.sum())
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (margin.size - positives + 2))
    wanted, reach = float(target.mean()), float(np.abs(margin).max())

    def offset(inverse: float) -> float:
        """The offset at which the mean probability is the mean target."""
        scaled, edge = margin * inverse, reach * inverse + math.log(margin.size + 2) + 1
        return _root(lambda value: float(_sigmoid(scaled + value).mean()) - wanted, -edge, edge)

    def slope(inverse: float) -> float:
        return float(((_sigmoid(margin * inverse + offset(inverse)) - target) * margin).mean())

    inverse = _root(slope, 1 / 20, 20.0)
    return Calibration(1 / inverse, offset(inverse))


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(values / 2))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses 0, or the end that is nearer to it."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def choose_threshold(
    labels: ArrayLike,
    probabilities: ArrayLike,
    target: Literal["sensitivity", "specificity", "balanced"],
    value: float = 0.95,
) -> float:
    """Returns the threshold in 0–1 that reaches a target on these films while giving away as little as possible.

    sensitivity: the greatest threshold with sensitivity >= value; specificity: the least with specificity >= value;
    balanced: the greatest Youden index (of equals, the most sensitive). It lies midway between two neighbouring
    scores, so that no film stands on the edge.

    Raises:
        ValueError: The class that the target measures is missing, or normal films at probability 1 keep every
            threshold from the specificity.
    """
    truth, score = checked(labels, probabilities)
    thresholds, tp, fp = operating_points(truth, score)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if (target != "specificity" and not positives) or (target != "sensitivity" and not negatives):
        raise ValueError(f"choose_threshold: target {target} needs validation films of the class that it measures")
    # Cut i calls the i highest distinct scores pneumonia; cut 0 calls none.
    tp, fp = np.append(0.0, tp), np.append(0.0, fp)
    edges = np.concatenate(([max(1.0, thresholds[0])], thresholds, [min(0.0, thresholds[-1])]))
    if target == "sensitivity":
        cut = int(np.flatnonzero(tp >= value * positives - 1e-9)[0])
        cut = max(cut, int(edges[0] == edges[1]))  # above a score of 1 there is no threshold in 0–1
    elif target == "specificity":
        cut = int(np.flatnonzero(negatives - fp >= value * negatives - 1e-9)[-1])
        if cut == 0 and edges[0] == edges[1]:
            raise ValueError(
                f"choose_threshold: normal films have probability 1, so no threshold reaches specificity {value}; "
                "lower target_value, or choose target balanced"
            )
    else:
        youden = tp / positives - fp / negatives
        cut = int(np.flatnonzero(youden >= youden[1:].max() - 1e-12)[-1])
    upper, lower = float(edges[cut]), float(edges[cut + 1])
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper  # between adjacent floats there is no middle


def uncertain_band(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, sensitivity: float, specificity: float
) -> Interval:
    """Returns the probabilities, lowest and highest, between which a call is not to be relied on.

    The band is the narrowest around the operating threshold outside which two rates hold on these films: at or above
    its low end lie at least `sensitivity` of the pneumonias, at or below its high end at least `specificity` of the
    normal films. So no more than 1 − sensitivity of the pneumonias are called normal with certainty, and no more than
    1 − specificity of the normal films pneumonia; and a certain call is always that of the threshold. A network that
    keeps both rates at the threshold itself has an empty band, low = high = threshold.

    Raises:
        ValueError: A class is missing.
    """
    truth, score = checked(labels, probabilities)
    low = choose_threshold(truth, score, "sensitivity", sensitivity)
    # Seen from the normal class, which a mirror turns into the one that is looked for.
    high = 1 - choose_threshold(~truth, 1 - score, "sensitivity", specificity)
    return min(low, threshold), max(high, threshold)


def shift_prior(probabilities: ArrayLike, source: float, target: float) -> Floats:
    """Returns what probabilities become where pneumonia is more or less frequent than where they were calibrated.

    The posterior odds are multiplied by the ratio of the prior odds; the order of the films never changes. It supposes
    that films of each class look alike in both places: another machine or another age is not corrected by it.

    Args:
        probabilities: Of pneumonia, 0–1 [N].
        source: Prevalence under which they are calibrated, above 0 and below 1.
        target: Prevalence for which they are wanted, above 0 and below 1.

    Source: Saerens, Latinne & Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, Neural
    Computation 14 (2002), eq. 2.4.
    """
    probability = np.asarray(probabilities, dtype=np.float64)
    sick, well = probability * (target / source), (1 - probability) * ((1 - target) / (1 - source))
    return np.asarray(sick / (sick + well))


def prevalence_weights(labels: ArrayLike, prevalence: float) -> Floats:
    """Returns weights [N] under which labelled films have a prevalence; their sum is N.

    Raises:
        ValueError: A class is missing, or a label is neither 0 nor 1.
    """
    truth, _ = checked(labels, np.zeros(np.shape(labels)))
    positives, films = int(truth.sum()), truth.size
    if not 0 < positives < films:
        raise ValueError("prevalence_weights: needs films of both classes")
    return np.where(truth, prevalence * films / positives, (1 - prevalence) * films / (films - positives))
