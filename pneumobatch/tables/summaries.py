"""Schemas of what is said of many films: summaries, drift, and the check of the borders."""

import pyarrow as pa

from pneumobatch.tables.columns import versioned

WITH_INTERVAL = (
    "accuracy", "precision", "sensitivity", "specificity", "npv", "f1", "prevalence",
    "auroc", "average_precision", "brier", "ece",
)  # fmt: skip
"""Metrics of a summary that stand with `_low` and `_high`, the bounds of their 95 % interval."""

LOCAL = ("local_ppv", "local_npv", "local_brier", "local_ece")
"""Those at the local prevalence, likewise."""


def summary_schema() -> pa.Schema:
    """Schema of the summaries: one row per subgroup value and threshold, of the scored films whose label is known.

    The row with subgroup `all` (value NULL) and threshold_kind `bundle` is the headline. The bundle's own threshold
    has a row for every subgroup value; the grid (kind `grid`) has rows for `all` and for every value large enough. A
    row of kind `certain` is at the bundle's threshold too, of the films outside the model's uncertain band alone.
    A value with fewer labelled films than evaluation.min_cell is `suppressed`: one bundle row with `images` only.
    That guards against reading noise; it is no disclosure control, as one hidden value is the rest's difference.

    A film is called pneumonia when probability >= threshold. Rates are 0–1 and come from the counts beside them.
    Intervals (95 %): Wilson for the proportions and prevalence; F1 by the Wilson interval of TP/(TP+FP+FN); percentile
    bootstrap over patients (films where no patient is known; fewer resamples above 5,000 films, see
    metrics.enough_resamples) for auroc, average_precision, brier and ece, that of ece moved back by its bootstrap
    bias; DeLong on the logit scale for auroc_delong. What does not depend on the
    threshold stands in bundle rows only. Undefined values and intervals of no width are NULL, and so is a bootstrap
    interval of fewer than metrics.FEWEST_UNITS patients, or of a value that many resamples leave undefined.

    The `local_` columns stand where evaluation.prevalence states a prevalence: PPV and NPV that sensitivity and
    specificity make there (metrics.predictive_values), and Brier score and ECE of the probabilities that are corrected
    from `model_prevalence`, under which the model is calibrated, to it (metrics.shift_prior), over the same films
    weighted to it.
    """
    counts = ("labelled", "positives", "negatives", "tp", "fp", "tn", "fn")
    metrics, local = (
        [f"{name}{bound}" for name in names for bound in ("", "_low", "_high")] for names in (WITH_INTERVAL, LOCAL)
    )
    return versioned(
        {
            "run_id": pa.string(),
            "model_id": pa.string(),
            "scope": pa.string(),  # run: this run's images; model: the latest row of every image up to this run
            "label_version": pa.string(),  # hash of the labels used: the same labels, the same version
            "threshold_kind": pa.string(),  # bundle or grid
            "threshold": pa.float64(),
            "subgroup": pa.string(),  # "all" or the column's name
            "value": pa.string(),  # NULL for "all"; "unknown" where the column is NULL
            "images": pa.int64(),  # every row of the subgroup, whatever became of it
            "scored": pa.int64(),  # of them, those with a probability
            "uncertain": pa.int64(),  # of these, those in the model's uncertain band; NULL where it has none
        }
        | dict.fromkeys(counts, pa.int64())
        | {"suppressed": pa.bool_()}
        | dict.fromkeys([*metrics, "auroc_delong_low", "auroc_delong_high"], pa.float64())
        | dict.fromkeys(["model_prevalence", "local_prevalence", *local], pa.float64())
        | {"evaluated_at": pa.timestamp("us", tz="UTC")}
    )


def drift_schema() -> pa.Schema:
    """Schema of the drift table: one row a measure, of one run's own films against its bundle's reference.

    `positive_rate`, `rejection_rate` and `failure_rate` are differences of two shares; `psi` is the population
    stability index of a column's distribution, over the reference's deciles or its categories; `ks` is the two-sample
    Kolmogorov-Smirnov distance, told beside it and never judged, as among many films it finds what does not matter.
    """
    return versioned(
        {
            "run_id": pa.string(),
            "model_id": pa.string(),
            "measure": pa.string(),
            "column": pa.string(),  # the column of the predictions; age_band and status are made of theirs
            "reference_n": pa.int64(),
            "n": pa.int64(),
            "reference_value": pa.float64(),  # the share, or the column's mean; NULL for categories
            "run_value": pa.float64(),
            "value": pa.float64(),  # difference of shares (run - reference), PSI, or KS distance
            "p_value": pa.float64(),  # of so great a value by chance alone
            "bound": pa.float64(),  # drifted where |value| >= bound; NULL: not judged
            "drifted": pa.bool_(),  # NULL: not judged
            "measured_at": pa.timestamp("us", tz="UTC"),
        }
    )


def masking_schema() -> pa.Schema:
    """Schema of the check of the borders: one row a region that is covered in a sample of labelled films.

    `none` is the sample as it is, and a change is against it; `centre` covers as much as `border`, where the lungs are.
    An interval of no width is NULL.
    """
    rates = [f"{name}{bound}" for name in ("auroc", "auroc_change", "accuracy") for bound in ("", "_low", "_high")]
    return versioned(
        {
            "run_id": pa.string(),
            "model_id": pa.string(),
            "region": pa.string(),  # none, border, corners or centre
            "films": pa.int64(),
            "positives": pa.int64(),
            "negatives": pa.int64(),
        }
        | dict.fromkeys([*rates, "accuracy_change", "sensitivity", "specificity"], pa.float64())
        | {
            "changed_calls": pa.int64(),  # films on the other side of the bundle's threshold
            "mean_change": pa.float64(),  # of the probability, without its sign
            "measured_at": pa.timestamp("us", tz="UTC"),
        }
    )
