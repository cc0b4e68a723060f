"""Schemas with one row a film: catalogue, predictions, a bundle's reference, and the lists for radiologists."""

from collections.abc import Iterable

import pyarrow as pa

from pneumobatch.tables.columns import CATALOG_HEAD, DICOM_ALLOWED, KEYED, PREDICTION_HEAD, STATISTICS, versioned


def catalog_schema(subgroups: Iterable[str]) -> pa.Schema:
    """Schema of the catalogue: one row an image; `subgroups` are further string columns from the label table."""
    return versioned(CATALOG_HEAD | dict.fromkeys(subgroups, pa.string()))


def prediction_schema(subgroups: Iterable[str]) -> pa.Schema:
    """Schema of the predictions: one row a catalogued image, whatever became of it."""
    return versioned(PREDICTION_HEAD | STATISTICS | DICOM_ALLOWED | dict.fromkeys(subgroups, pa.string()))


REFERENCE_ROWS = 10_000
"""Most films that a bundle's reference keeps: enough for deciles, few enough to travel with the weights."""


def reference_schema() -> pa.Schema:
    """Schema of a bundle's drift reference: the validation fold's films by probability, and nothing that names one.

    The month of the study is left out: it always moves.
    """
    attributes = {name: kind for name, kind in DICOM_ALLOWED.items() if name != "study_month"}
    return versioned({"status": pa.string(), "probability": pa.float64()} | STATISTICS | attributes)


_WORKLIST = {
    "rank": pa.int64(),  # 1 is to be looked at first
    "image_id": pa.string(),
    "uri": pa.string(),
    "probability": pa.float64(),
    "predicted_label": pa.int8(),
    "uncertain": pa.bool_(),
    "view": pa.string(),
    "age_years": pa.int16(),
    "sex": pa.string(),
    "patient": pa.string(),
    **KEYED,
    "run_id": pa.string(),  # the run that scored the film
    "model_id": pa.string(),
}


def review_schema() -> pa.Schema:
    """Schema of the review list: a run's scored films without a known label, the most probable pneumonia first."""
    return versioned(_WORKLIST)


def discrepancy_schema() -> pa.Schema:
    """Schema of the discrepancy list: scored films whose known label is not the model's call, the widest gap first.

    `gap` is how far the probability lies on the wrong side of the threshold, as a share of that side: 0 at the
    threshold, 1 where the model is certain of the other class. A low threshold thus hides no missed pneumonia.
    """
    return versioned(_WORKLIST | {"label": pa.int8(), "threshold": pa.float64(), "gap": pa.float64()})
