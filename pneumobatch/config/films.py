"""Which films a job reads, and which of them are inside the model's domain."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pneumobatch.config.section import Section, Uri


class Archive(Section):
    """What to read: images and, where known, their labels."""

    uri: Uri | None = None
    """Folder, prefix or Parquet file/folder of the images: local path, s3://… or any fsspec URL."""
    labels: Uri | None = None
    """CSV or Parquet of labels; without it, class folders NORMAL/ and PNEUMONIA/ are the labels where present."""
    include: tuple[str, ...] = ("*",)
    """Glob patterns on the path below the archive; a file is taken when any of them fits."""
    exclude: tuple[str, ...] = ()
    """Glob patterns on the path below the archive; a file is left out when any of them fits."""
    key_column: str | None = None
    """Column of `labels` that names the image: by its path below the archive, its URI, its file name (with or without
    ending), or its image_id. Default: the first of uri, image_id, path, file, filename, image, name that is there."""
    label_column: str = "label"
    """Column of `labels` with the class: 1/0, PNEUMONIA/NORMAL, true/false; empty or `pending` is unknown."""
    patient_column: str = "patient"
    """Column of `labels` with the patient, used only to keep splits and intervals honest; never written out."""
    subgroups: tuple[str, ...] = ("etiology", "age_band", "sex", "view", "manufacturer", "site")
    """Columns of `labels` carried to the predictions as subgroups; those that are absent are left out."""
    patients: Literal["auto", "kermany", "none"] = "auto"
    """How patients are known: from the label table, from Kermany's file names, or not at all (auto: as found, but
    normal films by their names only below NORMAL/)."""
    roots: tuple[Uri, ...] = ()
    """Folders or prefixes that a manifest may point into; default: a Parquet manifest's own folder. An S3 inventory
    needs them."""
    bytes_column: str = "bytes"
    """Parquet archives: column with the encoded image."""
    uri_column: str = "uri"
    """Parquet archives without a bytes column: column with each image's path or URI (below the archive)."""
    max_bytes: Annotated[int, Field(ge=1_024)] = 1_000_000_000
    """Size of a file, bytes, above which it fails as `too_large` before it is read whole."""
    max_pixels: Annotated[int, Field(ge=1_024)] = 100_000_000
    """Pixels (width × height) above which an image fails as `too_many_pixels` before it is decoded."""


Codes = tuple[Annotated[str, AfterValidator(lambda code: " ".join(code.upper().split()))], ...]
"""Codes of DICOM, written as a film's own are compared."""


class Gate(Section):
    """Which DICOM films and pictures are inside the model's domain; a film outside is `rejected` by the named rule."""

    modalities: Codes = ("CR", "DX")
    """Accepted Modality values."""
    body_parts: Codes = ("CHEST", "THORAX")
    """Accepted BodyPartExamined values, or OTHER for a region coded otherwise; an absent one is accepted."""
    views: Codes = ("PA", "AP")
    """Accepted view positions, or OTHER for a view coded otherwise; an absent one is accepted."""
    allow_any_age: bool = False
    """Score patients outside the bundle's validated ages, or of an unreadable age, instead of rejecting them."""
    pixel_check: bool = True
    """Reject blank, inverted and non-X-ray pictures."""
