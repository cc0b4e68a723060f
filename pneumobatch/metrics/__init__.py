"""From labels and scores to counts, rates and intervals; numpy only.

Conventions: labels are pneumonia = 1 and normal = 0; probabilities are those of pneumonia, 0–1; a film is called
pneumonia when `probability >= threshold`. Counts merge by addition and rates come last. A value that is not defined
(no film in the denominator, one class only) is None, never NaN. Intervals are 95 % unless z says otherwise.
"""

from pneumobatch.metrics.calibration import (
    Calibration,
    choose_threshold,
    fit_calibration,
    prevalence_weights,
    shift_prior,
    uncertain_band,
)
from pneumobatch.metrics.counts import (
    RATES,
    Z95,
    Counts,
    Floats,
    Interval,
    Ints,
    confusion,
    count,
    grid_counts,
    predictive_values,
    rates,
    wilson,
    wilson_bounds,
)
from pneumobatch.metrics.curves import (
    STATISTICS,
    Bin,
    Operating,
    auroc,
    average_precision,
    brier,
    ece,
    operating_points,
    over_thresholds,
    reliability,
)
from pneumobatch.metrics.intervals import (
    FEWEST_UNITS,
    UNDEFINED,
    bootstrap,
    bounds,
    delong,
    delong_interval,
    difference,
    enough_resamples,
    percentile,
)
from pneumobatch.metrics.paired import Difference, McNemar, delong_paired, mcnemar

__all__ = [
    "FEWEST_UNITS",
    "RATES",
    "STATISTICS",
    "UNDEFINED",
    "Z95",
    "Bin",
    "Calibration",
    "Counts",
    "Difference",
    "Floats",
    "Interval",
    "Ints",
    "McNemar",
    "Operating",
    "auroc",
    "average_precision",
    "bootstrap",
    "bounds",
    "brier",
    "choose_threshold",
    "confusion",
    "count",
    "delong",
    "delong_interval",
    "delong_paired",
    "difference",
    "ece",
    "enough_resamples",
    "fit_calibration",
    "grid_counts",
    "mcnemar",
    "operating_points",
    "over_thresholds",
    "percentile",
    "predictive_values",
    "prevalence_weights",
    "rates",
    "reliability",
    "shift_prior",
    "uncertain_band",
    "wilson",
    "wilson_bounds",
]
