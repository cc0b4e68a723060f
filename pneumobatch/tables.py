"""The Arrow schema of every table on disk, and the names that run through them.

Labels everywhere: pneumonia = 1, normal = 0, unknown = NULL. A value that does not exist is NULL, never NaN.
"""

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

_CATALOG_HEAD = {
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

_PREDICTION_HEAD = {
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

_FIXED = {*_CATALOG_HEAD, *_PREDICTION_HEAD, *STATISTICS, *DICOM_ALLOWED}


def _versioned(fields: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(fields.items()), metadata={"pneumobatch.schema": str(SCHEMA_VERSION)})


_KEY_COLUMNS = ("uri", "image_id", "path", "file", "filename", "image", "name")


def label_columns(names: Sequence[str], key: str | None, label: str, where: str) -> tuple[str, str]:
    """Returns the columns of a label table that hold the image's name (or accession, study, instance) and its class.

    Raises:
        ValueError: One is not there; the message begins with `where` and names the key to set.
    """
    candidates = (*_KEY_COLUMNS, *KEYED)
    found = key or next((name for name in candidates if name in names), None)
    for option, column in (("key_column", found), ("label_column", label)):
        if column not in names:
            missing = f"no column {column}" if column else f"none of the columns {', '.join(candidates)}"
            raise ValueError(f"{where}: {missing}; set archive.{option} to one of {', '.join(names)}")
    assert found is not None
    return found, label


def known_pictures(formats: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether a file is known to be JPEG or PNG, so that its path may be written, and not perhaps DICOM; never NULL."""
    return pc.fill_null(pc.is_in(formats, pa.array(["jpeg", "png"])), False)


_CLASSES = {"pneumonia": 1, "1": 1, "true": 1, "normal": 0, "0": 0, "false": 0}
_UNKNOWN = {"", "pending", "unknown", "null", "nan"}


def parse_labels(cells: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Reads classes as people write them, int8: 1 (pneumonia), 0 (normal), NULL (empty, pending, unknown).

    Raises:
        ValueError: A value is none of these. The message begins with `where` and names the row, not the value: a wrong
            column may hold a name.
    """
    spelled = cells.combine_chunks().dictionary_encode()
    texts = [text.strip().lower().removesuffix(".0") for text in spelled.dictionary.to_pylist()]
    wrong = [place for place, text in enumerate(texts) if text not in _CLASSES and text not in _UNKNOWN]
    if wrong:
        row = pc.index(pc.is_in(spelled.indices, pa.array(wrong, spelled.indices.type)), True).as_py() + 1
        raise ValueError(
            f"{where}: row {row}: the label is none of 1, 0, PNEUMONIA, NORMAL, true, false, pending or empty"
        )
    classes = pa.array([_CLASSES.get(text) for text in texts], pa.int8())
    return pa.chunked_array([classes.take(spelled.indices)])


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


def catalog_schema(subgroups: Iterable[str]) -> pa.Schema:
    """Schema of the catalogue: one row an image; `subgroups` are further string columns from the label table."""
    return _versioned(_CATALOG_HEAD | dict.fromkeys(subgroups, pa.string()))


def prediction_schema(subgroups: Iterable[str]) -> pa.Schema:
    """Schema of the predictions: one row a catalogued image, whatever became of it."""
    return _versioned(_PREDICTION_HEAD | STATISTICS | DICOM_ALLOWED | dict.fromkeys(subgroups, pa.string()))


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
    threshold stands in bundle rows only. Undefined values and intervals of no width are NULL.

    The `local_` columns stand where evaluation.prevalence states a prevalence: PPV and NPV that sensitivity and
    specificity make there (metrics.predictive_values), and Brier score and ECE of the probabilities that are corrected
    from `model_prevalence`, under which the model is calibrated, to it (metrics.shift_prior), over the same films
    weighted to it.
    """
    counts = ("labelled", "positives", "negatives", "tp", "fp", "tn", "fn")
    metrics, local = (
        [f"{name}{bound}" for name in names for bound in ("", "_low", "_high")] for names in (WITH_INTERVAL, LOCAL)
    )
    return _versioned(
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


REFERENCE_ROWS = 10_000
"""Most films that a bundle's reference keeps: enough for deciles, few enough to travel with the weights."""


def reference_schema() -> pa.Schema:
    """Schema of a bundle's drift reference: the validation fold's films, in no order, without anything that names one.

    The month of the study is left out: it always moves.
    """
    attributes = {name: kind for name, kind in DICOM_ALLOWED.items() if name != "study_month"}
    return _versioned({"status": pa.string(), "probability": pa.float64()} | STATISTICS | attributes)


def drift_schema() -> pa.Schema:
    """Schema of the drift table: one row a measure, of one run's own films against its bundle's reference.

    `positive_rate`, `rejection_rate` and `failure_rate` are differences of two shares; `psi` is the population
    stability index of a column's distribution, over the reference's deciles or its categories; `ks` is the two-sample
    Kolmogorov-Smirnov distance, told beside it and never judged, as among many films it finds what does not matter.
    """
    return _versioned(
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
    return _versioned(
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
    return _versioned(_WORKLIST)


def discrepancy_schema() -> pa.Schema:
    """Schema of the discrepancy list: scored films whose known label is not the model's call, the widest gap first.

    `gap` is how far the probability lies on the wrong side of the threshold, as a share of that side: 0 at the
    threshold, 1 where the model is certain of the other class. A low threshold thus hides no missed pneumonia.
    """
    return _versioned(_WORKLIST | {"label": pa.int8(), "threshold": pa.float64(), "gap": pa.float64()})


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
    return _versioned(
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
    return _versioned(
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
