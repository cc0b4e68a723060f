"""From labels and scores to counts, rates and intervals; numpy only.

Conventions: labels are pneumonia = 1 and normal = 0; probabilities are those of pneumonia, 0–1; a film is called
pneumonia when `probability >= threshold`. Counts merge by addition and rates come last. A value that is not defined
(no film in the denominator, one class only) is None, never NaN. Intervals are 95 % unless z says otherwise.
"""

from pneumobatch.metrics.calibration import choose_threshold, fit_temperature
from pneumobatch.metrics.counts import RATES, Z95, Counts, Floats, Interval, count, grid_counts, ppv_npv, wilson
from pneumobatch.metrics.curves import (
    Bin,
    Operating,
    auroc,
    average_precision,
    brier,
    ece,
    operating_points,
    reliability,
)
from pneumobatch.metrics.intervals import Statistic, bootstrap, delong, delong_interval, percentile

__all__ = [
    "RATES",
    "Z95",
    "Bin",
    "Counts",
    "Floats",
    "Interval",
    "Operating",
    "Statistic",
    "auroc",
    "average_precision",
    "bootstrap",
    "brier",
    "choose_threshold",
    "count",
    "delong",
    "delong_interval",
    "ece",
    "fit_temperature",
    "grid_counts",
    "operating_points",
    "percentile",
    "ppv_npv",
    "reliability",
    "wilson",
]
