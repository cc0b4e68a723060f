"""The Arrow schema of every table on disk, and the names that run through them.

Labels everywhere: pneumonia = 1, normal = 0, unknown = NULL. A value that does not exist is NULL, never NaN.
"""

from pneumobatch.tables.columns import (
    DICOM_ALLOWED,
    KEYED,
    SCHEMA_VERSION,
    STATISTICS,
    Status,
    known_pictures,
    subgroup_columns,
    upgraded,
    wanted_subgroups,
)
from pneumobatch.tables.experiments import COMPARED, result_schema, trial_prediction_schema
from pneumobatch.tables.films import (
    REFERENCE_ROWS,
    catalog_schema,
    discrepancy_schema,
    prediction_schema,
    reference_schema,
    review_schema,
)
from pneumobatch.tables.labels import (
    findings_first,
    label_columns,
    one_spelling,
    plain_keys,
    require_one_finding,
    rows_by_name,
    stated,
    unless_named,
)
from pneumobatch.tables.summaries import LOCAL, WITH_INTERVAL, drift_schema, masking_schema, summary_schema

__all__ = [
    "COMPARED", "DICOM_ALLOWED", "KEYED", "LOCAL", "REFERENCE_ROWS", "SCHEMA_VERSION", "STATISTICS", "WITH_INTERVAL",
    "Status", "catalog_schema", "discrepancy_schema", "drift_schema", "findings_first", "known_pictures",
    "label_columns", "masking_schema", "one_spelling", "plain_keys", "prediction_schema", "reference_schema",
    "require_one_finding", "result_schema", "review_schema", "rows_by_name", "stated", "subgroup_columns",
    "summary_schema", "trial_prediction_schema", "unless_named", "upgraded", "wanted_subgroups",
]  # fmt: skip
