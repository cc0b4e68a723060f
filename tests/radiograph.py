"""Computed radiographs of any depth, sign and look-up table, as the tests of the DICOM chain need them."""

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from pneumobatch.archive import dicom
from pneumobatch.config import Gate


def make(stored: np.ndarray, bits: int, *, syntax: str = ExplicitVRLittleEndian, **values: Any) -> Dataset:
    """A computed radiograph with these stored values."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = "2.25.7"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-ID"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.astype(f"{stored.dtype.kind}{dataset.BitsAllocated // 8}").tobytes()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, **how: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, **how)
    return buffer.getvalue()


def reread(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(save(dataset, enforce_file_format=True)))


def grey(dataset: Dataset | bytes, **gate: Any) -> np.ndarray:
    data = dataset if isinstance(dataset, bytes) else save(dataset)
    return dicom.read(data, max_pixels=10**7, gate=Gate(**gate), ages=None)[0]


def stated(**values: Any) -> dict[str, str | int]:
    data = save(make(np.zeros((2, 2), np.uint16), 12, **values))
    return dicom.read(data, max_pixels=100, gate=Gate(), ages=None)[1]


def lut(entries: int, first: int, bits: int, values: np.ndarray, *, signed: bool = False) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [entries, first, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return [item]


def all_values(bits: int, *, signed: bool) -> np.ndarray:
    side = 1 << (bits // 2)
    first = -(1 << (bits - 1)) if signed else 0
    return np.arange(first, first + (1 << bits), dtype=np.int16 if signed else np.uint16).reshape(-1, side)
