"""Schemas of an experiment's results and predictions."""

import pyarrow as pa

from pneumobatch.tables.columns import versioned

COMPARED = ("accuracy", "auroc")
"""What a row of an experiment is compared with the baseline by; each with the difference and its interval."""


def result_schema() -> pa.Schema:
    """Schema of an experiment's results: one row a trial, done or not, and one a row's mean where it has several seeds.

    Status: `done`; `failed`, `stopped` (early, by the scheduler) and `not_run` with a reason; `mean` over the seeds
    that are done on the same films (seed NULL; hardware, arithmetic and code are `mixed` where they differ). A row with
    numbers that could not be compared with the baseline gives its reason too. `configuration` holds all keys of the
    recipe as JSON; `code` is the beginning of `lineage.code_hash` in the start that ended the trial (12 hex digits;
    NULL: unknown, an older trial). Split sizes (without the `unreadable` films of all three sides), hardware and
    seconds stand in every row that has them; then the test films' counts at the threshold that the validation fold
    chose.

    Intervals (95 %): Wilson for the rates of the counts; bootstrap over patients for `accuracy_patients`, auroc,
    average_precision, brier, ece and both differences from the baseline (same protocol, seed and films); DeLong for
    `auroc_delong`. A `mean` row has the bootstrap intervals of the means. `only_row` and `only_baseline` are the films
    that one of the two alone calls rightly, `mcnemar_p` the exact two-sided test of them, `delong_p` the paired test of
    both AUROCs. Films count as independent in Wilson, DeLong and McNemar.
    """
    text, whole, number = pa.string(), pa.int64(), pa.float64()
    named = ("accuracy", "precision", "sensitivity", "specificity", "npv", "f1")
    curves = ("auroc", "average_precision", "brier", "ece")
    bounds = [f"{name}{bound}" for name in (*named, *curves) for bound in ("", "_low", "_high")]
    differences = [f"{name}_difference{bound}" for name in COMPARED for bound in ("", "_low", "_high")]
    return versioned(
        dict.fromkeys(("row", "protocol"), text)
        | {"seed": whole, "status": text, "reason": text, "baseline": pa.bool_()}
        | dict.fromkeys(("network", "weights", "loss", "preset", "target", "hardware", "arithmetic", "code"), text)
        | dict.fromkeys(("image_size", "epochs", "chosen_epoch", "batch_size"), whole)
        | {"learning_rate": number, "configuration": text, "seconds": number, "seeds": whole}
        | dict.fromkeys(
            ("parameters", "multiply_adds", "train_films", "validation_films", "test_films", "unreadable"), whole
        )
        | dict.fromkeys(("validation_auroc", "temperature", "offset", "threshold"), number)
        | dict.fromkeys(("tp", "fp", "tn", "fn"), whole)
        | dict.fromkeys([*bounds, "accuracy_patients_low", "accuracy_patients_high"], number)
        | dict.fromkeys(["auroc_delong_low", "auroc_delong_high", *differences], number)
        | {"only_row": whole, "only_baseline": whole, "mcnemar_p": number, "delong_p": number}
    )


def trial_prediction_schema() -> pa.Schema:
    """Schema of an experiment's predictions: one row a test film and finished trial, so that any test can be redone.

    `patient` is what tells which films belong together: public as Kermany's, else a hash under the site's key, or NULL.
    """
    return versioned(
        {
            "row": pa.string(),
            "protocol": pa.string(),
            "seed": pa.int64(),
            "image_id": pa.string(),
            "patient": pa.string(),
            "label": pa.int8(),
            "probability": pa.float64(),
            "threshold": pa.float64(),
            "predicted_label": pa.int8(),
        }
    )
