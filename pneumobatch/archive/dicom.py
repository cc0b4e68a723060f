"""One DICOM object → 8-bit grey and the few attributes that may leave it.

Everything else in the object stays here: no value of it gets into an attribute, an exception, a warning or a log line.
pydicom is imported with the first object, as archives of plain pictures never need it.
"""

import io
import logging
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumobatch.archive import attributes, codestream, greyscale
from pneumobatch.archive.errors import DecodeError, DomainError, Reason
from pneumobatch.config import Gate

if TYPE_CHECKING:
    from pydicom import Dataset

_QUIET = threading.Lock()  # warning filters belong to the process
_BESIDES = 64 << 20  # bytes: what a deflated object may hold besides 16 bits of three colours a pixel

Known = dict[str, str | int]


def read(
    data: bytes, *, max_pixels: int, gate: Gate, ages: tuple[int, int] | None
) -> tuple[npt.NDArray[np.uint8], Known]:
    """Reads a film through the whole chain of PS3.3: modality, values of interest, inversion, 8-bit grey.

    The domain gate is asked before any pixel is decoded.

    Args:
        data: The whole object, with or without preamble and file meta information.
        max_pixels: Columns × rows above which nothing is decoded.
        gate: Rules of the model's domain.
        ages: Youngest and oldest age the model was validated for, whole years; None: any.

    Returns:
        Grey, uint8 [rows, columns], bright is dense; and those of `tables.DICOM_ALLOWED` that the object states,
        with its keyed identities (`patient`, and those of `tables.KEYED`) where the environment has the site's key.

    Raises:
        DecodeError: It gives no picture.
        DomainError: It is outside the model's domain by `modality`, `for_processing`, `body_part`, `view` or `age`.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes values in its warnings
        for name in ("pydicom", "openjpeg", "libjpeg"):  # … and repeats them in its log
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        return _read(data, max_pixels, gate, ages)


def _read(
    data: bytes, max_pixels: int, gate: Gate, ages: tuple[int, int] | None
) -> tuple[npt.NDArray[np.uint8], Known]:
    from pydicom import config, dcmread
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage
    from pydicom.uid import ImplicitVRLittleEndian as Implicit

    config.settings.reading_validation_mode = config.IGNORE  # archives are full of values that break their VR's rules
    codestream.check_inflated(data, 6 * max_pixels + _BESIDES)
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
    except EOFError:
        raise DecodeError(Reason.TRUNCATED) from None
    meta = getattr(dataset, "file_meta", {})
    syntax = UID(str(meta.get("TransferSyntaxUID", "") or ""))
    if not syntax:  # without meta header the reader found out by itself
        implicit, little = dataset.original_encoding
        syntax = Implicit if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    known = attributes.allowed(dataset) | attributes.identities(dataset)
    known["transfer_syntax"] = syntax.keyword or "unknown"
    complete = "PixelData" in dataset
    directory = meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage  # DICOMDIR, of no modality
    # A report or a measurement is outside the domain; a film that was cut before it said what it is, is not.
    told = complete or directory or "modality" in known
    if told and attributes.code(dataset, "Modality") not in gate.modalities:
        raise DomainError("modality", known)
    if not complete:
        raise DecodeError(Reason.TRUNCATED)
    _ask(gate, ages, dataset, known)
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not (isinstance(rows, int) and isinstance(columns, int) and rows and columns):
        raise DecodeError(Reason.CORRUPT)
    if rows * columns > max_pixels:
        raise DecodeError(Reason.TOO_MANY_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DecodeError(Reason.MULTI_FRAME)
    frame = codestream.stored_values(dataset, syntax)
    return greyscale.shown(dataset, frame, whole_cells=codestream.keeps_unused_bits(syntax)), known


def _ask(gate: Gate, ages: tuple[int, int] | None, dataset: "Dataset", known: Known) -> None:
    """Asks the domain gate; what is absent is accepted, and an age that cannot be read is none of those validated."""
    body_part, view = attributes.body_part(dataset), attributes.view(dataset)
    age = known.get("age_years")
    age_stated = age is not None or attributes.code(dataset, "PatientAge")
    if attributes.code(dataset, "PresentationIntentType") == "FOR PROCESSING":  # raw: greys not yet those of a film
        raise DomainError("for_processing", known)
    if body_part and body_part not in gate.body_parts:
        raise DomainError("body_part", known)
    if view and view not in gate.views:
        raise DomainError("view", known)
    inside = not ages or (isinstance(age, int) and ages[0] <= age <= ages[1])
    if age_stated and not inside and not gate.allow_any_age:
        raise DomainError("age", known)
