"""Computed radiographs of any depth, sign and look-up table, as the tests of the DICOM chain need them."""

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from pneumobatch.archive import dicom
from pneumobatch.config import Gate

BY_GDCM = {
    uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    uid.JPEGExtended12Bit: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    uid.JPEGBaseline8Bit: gdcm.TransferSyntax.JPEGBaselineProcess1,
}


def make(stored: np.ndarray, bits: int, *, syntax: str = uid.ExplicitVRLittleEndian, **values: Any) -> Dataset:
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


def encoded(dataset: Dataset, syntax: str, folder: Path, **how: Any) -> bytes:
    """The object in another transfer syntax, by GDCM or by pydicom's encoders."""
    if syntax not in BY_GDCM:
        dataset.compress(syntax, generate_instance_uid=False, **how)
        return save(dataset, enforce_file_format=True)
    (folder / "plain.dcm").write_bytes(save(dataset, enforce_file_format=True))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(BY_GDCM[uid.UID(syntax)]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "encoded.dcm"))
    assert writer.Write()
    written = pydicom.dcmread(folder / "encoded.dcm")
    assert written.file_meta.TransferSyntaxUID == syntax
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = written.PixelData  # and not the UIDs that GDCM makes up
    dataset["PixelData"].is_undefined_length = True
    return save(dataset, enforce_file_format=True)


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
