"""The columns that tables share, and what holds for every schema."""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = 3
"""1: first; 2: `version`, the keyed identities, and label versions of summaries; 3: `uncertain`, and what summaries say
of it and of a local prevalence; `code` of results. `upgraded` reads older files."""


class Status(StrEnum):
    """How a catalogued image ended; their counts add up to the catalogue."""

    SCORED = "scored"
    REJECTED = "rejected"  # outside the model's domain
    FAILED = "failed"  # unreadable or missing
    DUPLICATE = "duplicate"  # byte-identical with another image, which was scored


STATISTICS: dict[str, pa.DataType] = {
    "width": pa.int32(),  # source pixels
    "height": pa.int32(),
    "mean_intensity": pa.float32(),  # grey, 0–1
    "contrast": pa.float32(),  # (p99 − p1) / (p99 + p1), 0–1
    "sharpness": pa.float32(),  # mean absolute gradient, share of full scale
    "noise": pa.float32(),  # robust noise deviation, share of full scale
}
"""Image statistics, one column each; defined in archive.quality."""

DICOM_ALLOWED: dict[str, pa.DataType] = {
    "modality": pa.string(),
    "view": pa.string(),
    "age_years": pa.int16(),  # whole years; 90 means 90 and over
    "sex": pa.string(),
    "manufacturer": pa.string(),
    "photometric": pa.string(),
    "transfer_syntax": pa.string(),
    "study_month": pa.string(),  # YYYY-MM
}
"""The only attributes of a DICOM file that leave the reader (besides its rows and columns)."""

KEYED: dict[str, pa.DataType] = {
    "accession": pa.string(),  # of AccessionNumber
    "study": pa.string(),  # of StudyInstanceUID
    "instance": pa.string(),  # of SOPInstanceUID
}
"""Keyed hashes of a DICOM file's identifiers, for joins with labels and reports; NULL without the site's key. The
patient (of PatientID) has a column of its own, as archives that are not DICOM know patients too."""

CATALOG_HEAD = {
    "image_id": pa.string(),
    "uri": pa.string(),
    "version": pa.string(),  # keyed hash of the store's entity tag or time of change, and size: changes with the object
    "format": pa.string(),
    "bytes": pa.int64(),
    "sha256": pa.string(),
    "duplicate_of": pa.string(),
    "label": pa.int8(),
    "patient": pa.string(),
}

PREDICTION_HEAD = {
    "image_id": pa.string(),
    "uri": pa.string(),
    "version": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "duplicate_of": pa.string(),
    "probability": pa.float64(),
    "predicted_label": pa.int8(),
    "threshold": pa.float64(),
    "uncertain": pa.bool_(),  # the probability lies in the model's uncertain band; NULL where it has none
    "model_id": pa.string(),
    "run_id": pa.string(),
    "label": pa.int8(),
    "patient": pa.string(),
    **KEYED,
    "format": pa.string(),
    "scored_at": pa.timestamp("us", tz="UTC"),
}

_FIXED = {*CATALOG_HEAD, *PREDICTION_HEAD, *STATISTICS, *DICOM_ALLOWED}


def versioned(fields: dict[str, pa.DataType]) -> pa.Schema:
    """The schema of these fields that says of which version it is."""
    return pa.schema(list(fields.items()), metadata={"pneumobatch.schema": str(SCHEMA_VERSION)})


def known_pictures(formats: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether a file is known to be JPEG or PNG, so that its path may be written, and not perhaps DICOM; never NULL."""
    return pc.fill_null(pc.is_in(formats, pa.array(["jpeg", "png"])), False)


def subgroup_columns(names: Iterable[str]) -> list[str]:
    """Returns those of a table's column names by which results can be broken down."""
    return [name for name in names if name not in _FIXED or name in {"sex", "view", "manufacturer"}]


def wanted_subgroups(names: Sequence[str]) -> Sequence[str]:
    """Returns archive.subgroups.

    Raises:
        ValueError: One is the name of a column that every table has, which the label table's would replace.
    """
    if taken := [name for name in names if name not in subgroup_columns(names)]:
        raise ValueError(
            f"archive.subgroups: {', '.join(taken)} is a column of the results themselves; give the column of the "
            "label table another name"
        )
    return names


def upgraded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Gives a table of this or an older schema version the columns of `schema`, in its order.

    Columns that the older version did not have are NULL; those that `schema` does not name (subgroups) stay behind.

    Raises:
        ValueError: It was written by a newer version than this one reads.
    """
    version = int((table.schema.metadata or {}).get(b"pneumobatch.schema", b"1"))
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"a table of schema version {version} is newer than version {SCHEMA_VERSION}; update pneumobatch"
        )
    names = [*schema.names, *(name for name in table.column_names if name not in schema.names)]
    fields = [schema.field(name) if name in schema.names else table.schema.field(name) for name in names]
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in fields
    ]
    return pa.table(columns, schema=pa.schema(fields, metadata=schema.metadata))
