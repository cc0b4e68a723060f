"""One DICOM object → 8-bit grey and the few attributes that may leave it.

Everything else in the object stays here: no value of it gets into an attribute, an exception, a warning or a log line.
pydicom is imported with the first object, as archives of plain pictures never need it.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pneumobatch.archive.errors import DecodeError, DomainError, Reason
from pneumobatch.config import Gate

if TYPE_CHECKING:
    from pydicom import Dataset

_QUIET = threading.Lock()  # warning filters belong to the process
_VIEWS = {"PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAT", "LATERAL"}
_PLUGINS = {
    "JPEGBaseline8Bit": "pillow",
    "JPEGExtended12Bit": "pillow",
    "JPEGLossless": "gdcm",
    "JPEGLosslessSV1": "gdcm",
    "JPEGLSLossless": "pyjpegls",
    "JPEGLSNearLossless": "pyjpegls",
    "JPEG2000Lossless": "pylibjpeg",
    "JPEG2000": "pylibjpeg",
    "HTJ2KLossless": "pylibjpeg",
    "HTJ2KLosslessRPCL": "pylibjpeg",
    "HTJ2K": "pylibjpeg",
    "RLELossless": "pylibjpeg",
}
"""One decoder for each syntax: a second one, asked after the first refused, may make a picture of a broken stream."""
_DAYS = {"Y": 365.25, "M": 30.4375, "W": 7.0, "D": 1.0}


def read(
    data: bytes, *, max_pixels: int, gate: Gate, ages: tuple[int, int] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, str | int]]:
    """Reads a film through the whole chain of PS3.3: modality, values of interest, inversion, 8-bit grey.

    The domain gate is asked before any pixel is decoded.

    Args:
        data: The whole object, with or without preamble and file meta information.
        max_pixels: Columns × rows above which nothing is decoded.
        gate: Rules of the model's domain.
        ages: Youngest and oldest age the model was validated for, whole years; None: any.

    Returns:
        Grey, uint8 [rows, columns], bright is dense; and those of `tables.DICOM_ALLOWED` that the object states.

    Raises:
        DecodeError: It gives no picture.
        DomainError: It is outside the model's domain by `modality`, `body_part`, `view` or `age`.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes values in its warnings
        for name in ("pydicom", "openjpeg", "libjpeg"):  # … and repeats them in its log
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        return _read(data, max_pixels, gate, ages)


def _read(
    data: bytes, max_pixels: int, gate: Gate, ages: tuple[int, int] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, str | int]]:
    from pydicom import config, dcmread
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian
    from pydicom.uid import ImplicitVRLittleEndian as Implicit

    config.settings.reading_validation_mode = config.IGNORE  # archives are full of values that break their VR's rules
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
    except EOFError:
        raise DecodeError(Reason.TRUNCATED) from None
    syntax = UID(str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "") or ""))
    if not syntax:  # without meta header the reader found out by itself
        implicit, little = dataset.original_encoding
        syntax = Implicit if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    attributes = _attributes(dataset) | {"transfer_syntax": syntax.keyword or "unknown"}
    complete = "PixelData" in dataset
    # A report or a measurement is outside the domain; a film that was cut before it said what it is, is not.
    if (complete or "modality" in attributes) and _code(dataset, "Modality") not in gate.modalities:
        raise DomainError("modality", attributes)
    if not complete:
        raise DecodeError(Reason.TRUNCATED)
    _ask(gate, ages, dataset, attributes)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise DecodeError(Reason.CORRUPT)
    if dataset.Rows * dataset.Columns > max_pixels:
        raise DecodeError(Reason.TOO_MANY_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DecodeError(Reason.MULTI_FRAME)
    deepest = 8 if syntax.keyword == "JPEGExtended12Bit" else 16  # nothing with a permissive licence reads its 12 bits
    if (syntax.is_encapsulated and syntax.keyword not in _PLUGINS) or dataset.BitsStored > deepest:
        raise DecodeError(Reason.UNSUPPORTED)
    if syntax.is_encapsulated:
        _check_codestream(syntax.keyword, dataset.PixelData)
    elif len(dataset.PixelData) < dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8:
        raise DecodeError(Reason.TRUNCATED)
    frame, _ = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=_PLUGINS.get(syntax.keyword, ""))
    return _grey(dataset, frame, compressed=syntax.is_encapsulated), attributes


def _check_codestream(keyword: str, pixel_data: bytes) -> None:
    """Tells a cut codestream: JPEG, JPEG-LS and JPEG 2000 all end with FF D9; some decoders fill in what is missing."""
    from pydicom.encaps import get_frame

    if keyword.startswith(("JPEG", "HTJ2K")) and b"\xff\xd9" not in get_frame(pixel_data, 0, number_of_frames=1)[-64:]:
        raise DecodeError(Reason.TRUNCATED)


def _ask(gate: Gate, ages: tuple[int, int] | None, dataset: "Dataset", attributes: dict[str, str | int]) -> None:
    """Asks the domain gate; what is absent is accepted."""
    body_part, view, age = _code(dataset, "BodyPartExamined"), _view(dataset), attributes.get("age_years")
    if body_part and body_part not in gate.body_parts:
        raise DomainError("body_part", attributes)
    if view and view not in gate.views:
        raise DomainError("view", attributes)
    if ages and isinstance(age, int) and not gate.allow_any_age and not ages[0] <= age <= ages[1]:
        raise DomainError("age", attributes)


def _code(dataset: "Dataset", keyword: str) -> str:
    """First value of an element as an upper-case code, "" where it is absent."""
    value = dataset.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else ""
    return " ".join(str(value if value is not None else "").upper().split())


def _view(dataset: "Dataset") -> str:
    """View position; some archives put it into PatientPosition, whose own terms (HFS …) name no projection."""
    position = _code(dataset, "PatientPosition")
    return _code(dataset, "ViewPosition") or (position if position in _VIEWS else "")


def _attributes(dataset: "Dataset") -> dict[str, str | int]:
    """The allow-list, each value in a form that cannot carry free text (a manufacturer's name apart)."""
    codes = (
        ("modality", _code(dataset, "Modality"), r"[A-Z]{2,16}"),
        ("view", _view(dataset), r"[A-Z]{1,16}"),
        ("sex", _code(dataset, "PatientSex"), r"[MFO]"),
        ("photometric", _code(dataset, "PhotometricInterpretation"), r"[A-Z0-9_ ]{1,16}"),
    )
    found: dict[str, str | int] = {name: value for name, value, form in codes if re.fullmatch(form, value)}
    if age := re.fullmatch(r"(\d{1,3})([YMWD]?)", _code(dataset, "PatientAge")):
        found["age_years"] = min(int(int(age[1]) * _DAYS[age[2] or "Y"] / _DAYS["Y"]), 90)
    if month := re.fullmatch(r"(\d{4})\.?(0[1-9]|1[0-2])\.?\d\d", _code(dataset, "StudyDate")):
        found["study_month"] = f"{month[1]}-{month[2]}"
    if maker := " ".join(
        "".join(c if c.isprintable() else " " for c in str(dataset.get("Manufacturer") or "")).split()
    ):
        found["manufacturer"] = maker[:64]
    return found


def _grey(dataset: "Dataset", frame: npt.NDArray[Any], *, compressed: bool) -> npt.NDArray[np.uint8]:
    """Stored values → 8-bit grey.

    A stored value has at most 16 bits, so the whole chain is one table: it is worked out once for every value there
    is, exactly and in floating point, and then each pixel is looked up.
    """
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
        return _luma(frame, 8 * frame.itemsize)
    if frame.ndim == 3:
        return _luma(frame, dataset.BitsStored)

    bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    codes = np.arange(1 << bits)
    stored = codes - (codes >> (bits - 1) << bits) if signed else codes
    if compressed and (frame.min() < stored.min() or frame.max() > stored.max()):
        raise DecodeError(Reason.CORRUPT)
    frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    # Uncompressed values may carry overlays in their unused bits, below them (HighBit) or above.
    shift = 0 if compressed else dataset.get("HighBit", bits - 1) + 1 - bits
    frame_HW = (frame.view(f"u{frame.itemsize}") >> shift) & (len(codes) - 1)

    values = apply_modality_lut(stored, dataset)
    padding = _padding(stored, dataset)
    level = _values_of_interest(values, dataset)
    if level is None and bits > 8:
        counts = np.where(padding, 0, np.bincount(frame_HW.ravel(), minlength=len(codes)))
        level = _percentile_window(values, counts)
    elif level is None:  # 8 bits are ready for display
        level = (values - values.min()) / (np.ptp(values) or 1)
    # DX asks for MONOCHROME1 with INVERSE: two names of one inversion.
    if dataset.PhotometricInterpretation == "MONOCHROME1" or _code(dataset, "PresentationLUTShape") == "INVERSE":
        level = 1 - level
    table = np.rint(255 * level).astype(np.uint8)
    table[padding] = 0
    return np.take(table, frame_HW)


def _luma(frame: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Grey of a colour picture [rows, columns, 3], by the luma of every other colour picture here."""
    from PIL import Image

    if frame.shape[2] != 3:
        raise DecodeError(Reason.UNSUPPORTED)
    eight = frame if bits == 8 else np.rint(frame * (255 / ((1 << bits) - 1)))
    return np.asarray(Image.fromarray(eight.astype(np.uint8)).convert("L"))


def _padding(stored: npt.NDArray[np.int64], dataset: "Dataset") -> npt.NDArray[np.bool_]:
    """Which stored values mean "nothing was exposed here": PixelPaddingValue, or from there to its range limit."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(stored), bool)
    last = dataset.get("PixelPaddingRangeLimit")
    allocated = dataset.BitsAllocated
    # The sign may have got lost on the way: both elements are US or SS, as PixelRepresentation says.
    ends = [int(value) & ((1 << allocated) - 1) for value in (first, first if last is None else last)]
    if dataset.PixelRepresentation == 1:
        ends = [value - (value >> (allocated - 1) << allocated) for value in ends]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _values_of_interest(values: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.float64] | None:
    """VOI LUT, or the first window (PS3.3 C.11.2.1), as levels 0–1; None where the object has neither."""
    from pydicom.pixels.processing import apply_voi

    if dataset.get("VOILUTSequence"):
        top = (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return np.asarray(np.clip(apply_voi(values, dataset) / top, 0, 1))
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    function = _code(dataset, "VOILUTFunction")
    if centre is None or width is None or width <= 0 or (width < 1 and function not in {"LINEAR_EXACT", "SIGMOID"}):
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _number(dataset: "Dataset", keyword: str) -> float | None:
    """First value of a numeric element."""
    text = _code(dataset, keyword)
    return float(text) if text else None


def _percentile_window(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Levels 0–1 between the 1st and the 99th percentile of the pixels; `counts` is their number for each value."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / max(counts.sum(), 1)
    low, high = (float(values[order[int(at)]]) for at in np.searchsorted(share, (0.01, 0.99)).clip(max=len(order) - 1))
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1)
