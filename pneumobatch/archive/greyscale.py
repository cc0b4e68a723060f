"""Stored values of a DICOM object → 8-bit grey, through the chain of PS3.3.

Modality LUT or rescale → VOI LUT or window → inversion → 8 bits. A stored value has at most 16 bits, so the whole chain
is one table: it is worked out once for every value there is, exactly and in floating point, and then each pixel is
looked up.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pneumobatch.archive.attributes import code, number
from pneumobatch.archive.errors import DecodeError, Reason

if TYPE_CHECKING:
    from pydicom import Dataset

Values = npt.NDArray[Any]


def shown(dataset: "Dataset", frame: Values, *, whole_cells: bool) -> npt.NDArray[np.uint8]:
    """Sends stored values [rows, columns] (or colours [rows, columns, 3]) through the chain.

    Args:
        dataset: The object.
        frame: What is stored.
        whole_cells: Stored values may have other things in the bits that they do not use.

    Returns:
        Grey, uint8 [rows, columns]; bright is dense, padding is black.

    Raises:
        DecodeError: `corrupt` or `unsupported`.
    """
    from pydicom.pixels.processing import apply_color_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
        return _luma(frame, 8 * frame.itemsize)
    if frame.ndim == 3:
        return _luma(frame, dataset.BitsStored)

    bits, allocated, signed = dataset.BitsStored, 8 * frame.itemsize, dataset.PixelRepresentation == 1
    codes = np.arange(1 << bits)
    stored = codes - (codes >> (bits - 1) << bits) if signed else codes
    frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    if whole_cells:  # which may carry overlays, below the value (HighBit) or above
        shift = dataset.get("HighBit", bits - 1) + 1 - bits
        if not 0 <= shift <= allocated - bits:
            raise DecodeError(Reason.CORRUPT)
    elif frame.min() < stored.min() or frame.max() > stored.max():
        raise DecodeError(Reason.CORRUPT)
    else:
        shift = 0
    frame_HW = (frame.view(f"u{frame.itemsize}") >> shift) & (len(codes) - 1)

    values = _modality(stored, dataset)
    padding = _padding(stored, dataset)
    level = _values_of_interest(values, dataset)
    if level is None and bits > 8:
        counts = np.where(padding, 0, np.bincount(frame_HW.ravel(), minlength=len(codes)))
        level = _percentile_window(values, counts)
    elif level is None:  # 8 bits are ready for display
        level = (values - values.min()) / (np.ptp(values) or 1)
    if not np.isfinite(level).all():  # by a slope or a window that is no number
        raise DecodeError(Reason.CORRUPT)
    # DX asks for MONOCHROME1 with INVERSE: two names of one inversion.
    if dataset.PhotometricInterpretation == "MONOCHROME1" or code(dataset, "PresentationLUTShape") == "INVERSE":
        level = 1 - level
    table = np.rint(255 * level).astype(np.uint8)
    table[padding] = 0
    return np.asarray(np.take(table, frame_HW))


def _luma(frame: Values, bits: int) -> npt.NDArray[np.uint8]:
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


def _modality(stored: npt.NDArray[np.int64], dataset: "Dataset") -> Values:
    """Modality LUT, or rescale slope and intercept, or nothing (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)[0]
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    return stored if slope is None or intercept is None else stored * slope + intercept


def _values_of_interest(values: Values, dataset: "Dataset") -> npt.NDArray[np.float64] | None:
    """VOI LUT, or the first window (PS3.3 C.11.2.1), as levels 0–1; None where the object has neither."""
    if dataset.get("VOILUTSequence"):
        shown, bits = _looked_up(values, dataset.VOILUTSequence[0], dataset)
        return np.clip(shown / ((1 << bits) - 1), 0, 1)
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    function = code(dataset, "VOILUTFunction")
    if centre is None or width is None or width <= 0 or (width < 1 and function not in {"LINEAR_EXACT", "SIGMOID"}):
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _looked_up(values: Values, item: "Dataset", dataset: "Dataset") -> tuple[Values, int]:
    """Looks values up in a modality or VOI LUT; returns what it maps them to, and with how many bits.

    pydicom's own is not used: it counts entries of 8 bits modulo 256, and takes the first value mapped as it was read.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries, first = entries & 0xFFFF or 1 << 16, first & 0xFFFF
    if not 1 <= bits <= 16:
        raise DecodeError(Reason.CORRUPT)
    if first >= 1 << 15 and values.min() < 0 and first > values.max():  # US or SS: the sign may have got lost
        first -= 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        width = 2 if len(data) >= 2 * entries else 1  # two entries of 8 bits may share a word
        data = np.frombuffer(data, f"{'<' if dataset.original_encoding[1] else '>'}u{width}")
    found = np.atleast_1d(np.asarray(data, np.int64))
    if len(found) < entries:
        raise DecodeError(Reason.CORRUPT)
    return found[np.clip(np.floor(values - first), 0, entries - 1).astype(np.int64)], bits


def _percentile_window(values: Values, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Levels 0–1 between the 1st and the 99th percentile of the pixels; `counts` is their number for each value."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / max(counts.sum(), 1)
    low, high = (float(values[order[int(at)]]) for at in np.searchsorted(share, (0.01, 0.99)).clip(max=len(order) - 1))
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1)
