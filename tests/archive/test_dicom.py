"""The DICOM chain against the standard, pydicom's own functions and real films."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pneumobatch.archive import dicom
from pneumobatch.archive.errors import DecodeError, DomainError
from pneumobatch.config import Gate
from pneumobatch.tables import DICOM_ALLOWED

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"


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


def attributes(**values: Any) -> dict[str, str | int]:
    data = save(make(np.zeros((2, 2), np.uint16), 12, **values))
    return dicom.read(data, max_pixels=100, gate=Gate(), ages=None)[1]


def lut(entries: int, first: int, bits: int, values: np.ndarray) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [entries, first, bits], values.astype("<u2").tobytes()
    return [item]


def all_values(bits: int, *, signed: bool) -> np.ndarray:
    side = 1 << (bits // 2)
    first = -(1 << (bits - 1)) if signed else 0
    return np.arange(first, first + (1 << bits), dtype=np.int16 if signed else np.uint16).reshape(-1, side)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_every_stored_value_goes_through_the_chain_as_pydicom_sends_it(
    bits: int, signed: bool, function: str, rescaled: bool
) -> None:
    stored = all_values(bits, signed=signed)
    values: dict[str, Any] = {"RescaleSlope": "0.5", "RescaleIntercept": "-100"} if rescaled else {}
    window = {"WindowCenter": (1 << bits) * 0.3, "WindowWidth": (1 << bits) * 0.4, "VOILUTFunction": function}
    dataset = make(stored, bits, **values, **window)
    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    low, high = float(stored.min()), float(stored.max())
    if rescaled:
        low, high = low * 0.5 - 100, high * 0.5 - 100
    expected = np.rint(255 * (shown - low) / (high - low))
    difference = np.abs(grey(dataset) - expected)
    assert difference.max() <= 1  # a half may round either way
    assert (difference > 0).mean() < 0.01


def test_a_voi_lut_is_preferred_to_a_window() -> None:
    stored = all_values(12, signed=False)
    curve = np.rint(65535 * (np.arange(4096) / 4095) ** 0.5).astype(int)
    dataset = make(stored, 12, WindowCenter=100, WindowWidth=10, VOILUTSequence=lut(4096, 0, 16, curve))
    expected = np.rint(255 * (apply_voi_lut(stored, reread(dataset)) / 65535))
    assert np.array_equal(grey(dataset), expected)


def test_a_modality_lut_comes_before_the_window() -> None:
    stored = all_values(12, signed=False)
    curve = np.arange(4096)[::-1] * 4
    dataset = make(stored, 12, ModalityLUTSequence=lut(4096, 0, 16, curve), WindowCenter=8192, WindowWidth=16384)
    expected = np.rint(255 * np.clip((apply_modality_lut(stored, reread(dataset)) - 8191.5) / 16383 + 0.5, 0, 1))
    assert np.array_equal(grey(dataset), expected)


def test_the_first_of_several_windows_counts() -> None:
    stored = all_values(12, signed=False)
    several = grey(make(stored, 12, WindowCenter=[1000, 3000], WindowWidth=[500, 50]))
    assert np.array_equal(several, grey(make(stored, 12, WindowCenter=1000, WindowWidth=500)))


@pytest.mark.parametrize("unusable", [{}, {"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": 5}])
def test_without_a_window_the_percentiles_of_what_is_no_padding_span_the_greys(unusable: dict[str, Any]) -> None:
    stored = np.full((100, 100), 4000, np.uint16)
    stored[:, 50:] = np.linspace(1000, 2000, 5000).reshape(100, 50)
    pixels = grey(make(stored, 12, PixelPaddingValue=4000, **unusable))
    assert (pixels[:, :50] == 0).all()
    assert pixels[-1, -1] == 255
    assert pixels[0, 50] == 0
    assert 120 <= pixels[50, 50] <= 135


def test_eight_bits_without_a_window_are_shown_as_they_are() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey(make(stored, 8)), stored)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 16), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([None, "IDENTITY", "INVERSE"]))
def test_monochrome1_is_monochrome2_inverted_exactly_once(
    bits: int, signed: bool, seed: int, shape: str | None
) -> None:
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    rng = np.random.default_rng(seed)
    stored = rng.integers(low, high, (9, 7)).astype("i2" if signed else "u2")
    window = {"WindowCenter": (low + high) / 2, "WindowWidth": (high - low) * 0.7}
    upright = grey(make(stored, bits, **window)).astype(int)
    inverse = make(stored, bits, PhotometricInterpretation="MONOCHROME1", **window)
    if shape:
        inverse.PresentationLUTShape = shape
    assert np.abs(255 - upright - grey(inverse)).max() <= 1
    flagged = make(stored, bits, PresentationLUTShape="INVERSE", **window)
    assert np.array_equal(grey(flagged), grey(inverse))


def test_padding_is_black_even_where_the_picture_is_inverted() -> None:
    stored = np.full((4, 4), 100, np.int16)
    stored[0], stored[1] = -2000, -1990
    window = {"WindowCenter": 0, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}
    assert grey(make(stored, 12, **window))[0].min() > 200
    dataset = make(stored, 12, **window)
    dataset.add_new(0x00280120, "US", 65536 - 2000)  # the sign got lost
    assert (grey(dataset)[0] == 0).all()
    assert (grey(dataset)[1] > 200).all()
    dataset.add_new(0x00280121, "US", 65536 - 1990)
    assert (grey(dataset)[:2] == 0).all()
    assert (grey(dataset)[2:] > 100).all()


def test_padding_outside_the_stored_range_hides_nothing() -> None:
    stored = all_values(12, signed=False)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(grey(make(stored, 12, PixelPaddingValue=65535, **window)), grey(make(stored, 12, **window)))


def test_overlays_in_unused_bits_are_no_part_of_the_picture() -> None:
    stored = all_values(12, signed=False)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(grey(make(stored | 0xF000, 12, **window)), grey(make(stored, 12, **window)))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_syntaxes_give_the_same_picture(syntax: str) -> None:
    stored = np.random.default_rng(1).integers(0, 4096, (80, 70)).astype(np.uint16)
    dataset = make(stored, 12, WindowCenter=2048, WindowWidth=4096)
    expected = grey(dataset)
    dataset.compress(syntax, generate_instance_uid=False)
    data = save(dataset, enforce_file_format=True)
    assert np.array_equal(grey(data), expected)
    for cut in (len(data) - 20, len(data) - 200, len(data) * 2 // 3):
        with pytest.raises(DecodeError):
            grey(data[:cut])


def test_lossless_jpeg_gives_the_same_picture(tmp_path: Path) -> None:
    gdcm = pytest.importorskip("gdcm")
    stored = np.random.default_rng(1).integers(0, 4096, (80, 70)).astype(np.uint16)
    dataset = make(stored, 12, WindowCenter=2048, WindowWidth=4096)
    (tmp_path / "plain.dcm").write_bytes(save(dataset, enforce_file_format=True))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    assert writer.Write()
    data = (tmp_path / "lossless.dcm").read_bytes()
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(grey(data), grey(dataset))


def test_baseline_jpeg_and_what_nothing_here_reads() -> None:
    stored = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "JPEG", quality=98)
    dataset = make(stored, 8, syntax=JPEGBaseline8Bit, PixelData=encapsulate([buffer.getvalue()]))
    assert np.abs(grey(save(dataset, enforce_file_format=True)).astype(int) - stored).max() < 6
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    with pytest.raises(DecodeError, match="not supported"):
        grey(save(dataset, enforce_file_format=True))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("headless", [False, True])
def test_every_byte_order_with_and_without_preamble_and_meta_header(syntax: str, headless: bool) -> None:
    from pneumobatch.archive.headers import sniff

    stored = all_values(12, signed=False)
    dataset = make(stored, 12, WindowCenter=2048, WindowWidth=4096)
    expected = grey(dataset)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    if headless and syntax != DeflatedExplicitVRLittleEndian:
        buffer = io.BytesIO()
        del dataset.file_meta
        how = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
        pydicom.dcmwrite(buffer, dataset, **how)
        data = buffer.getvalue()
    else:
        data = save(dataset, enforce_file_format=True)
        data = data[132:] if headless else data
    assert sniff(data) == "dicom"
    assert np.array_equal(grey(data), expected)


def test_colour_secondary_captures_become_grey() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    dataset = make(rgb, 8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.array_equal(grey(dataset), np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 2, "PixelData": bytes(16)}, "multi_frame"),
        ({"Rows": 4000, "Columns": 4000}, "too_many_pixels"),
        ({"PixelData": bytes(4)}, "truncated"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "unsupported"),
        ({"Rows": None}, "corrupt"),
    ],
)
def test_what_is_wrong_has_a_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError) as raised:
        grey(make(np.zeros((2, 2), np.uint16), 12, **change))
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"Modality": "CT"}, "modality"),
        ({"Modality": ""}, "modality"),
        ({"BodyPartExamined": "HIP"}, "body_part"),
        ({"BodyPartExamined": "chest"}, None),
        ({"BodyPartExamined": None}, None),
        ({"ViewPosition": "LL"}, "view"),
        ({"ViewPosition": "", "PatientPosition": "LATERAL"}, "view"),
        ({"ViewPosition": "", "PatientPosition": "HFS"}, None),
        ({"PatientAge": "062Y"}, "age"),
        ({"PatientAge": "011M"}, "age"),
        ({"PatientAge": "018M"}, None),
        ({"PatientAge": ""}, None),
    ],
)
def test_the_domain_gate_names_its_rule(change: dict[str, Any], rule: str | None) -> None:
    data = save(make(np.zeros((2, 2), np.uint16), 12, **change))
    if rule is None:
        dicom.read(data, max_pixels=100, gate=Gate(), ages=(1, 5))
        return
    with pytest.raises(DomainError) as raised:
        dicom.read(data, max_pixels=100, gate=Gate(), ages=(1, 5))
    assert raised.value.rule == rule
    assert set(raised.value.facts) <= set(DICOM_ALLOWED)


def test_any_age_passes_where_the_site_opted_in() -> None:
    data = save(make(np.zeros((2, 2), np.uint16), 12, PatientAge="062Y"))
    assert dicom.read(data, max_pixels=100, gate=Gate(allow_any_age=True), ages=(1, 5))[1]["age_years"] == 62


def test_a_report_is_outside_the_domain_not_broken() -> None:
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "2.25.9", "SR"
    with pytest.raises(DomainError):
        grey(save(report, enforce_file_format=True))


@pytest.mark.parametrize(
    ("age", "years"), [("062Y", 62), ("62", 62), ("018M", 1), ("024M", 2), ("080W", 1), ("095Y", 90), ("old", None)]
)
def test_ages_are_whole_years(age: str, years: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on writing what is no age
        assert attributes(PatientAge=age).get("age_years") == years


def test_only_the_allow_list_leaves_the_reader() -> None:
    free = {"StudyDescription": "SECRET", "AccessionNumber": "SECRET", "InstitutionName": "SECRET"}
    found = attributes(
        **free, PatientSex="F", StudyDate="20240517", Manufacturer=" Acme \n X-Rays " + "x" * 99, PatientAge="004Y"
    )
    assert set(found) <= set(DICOM_ALLOWED)
    assert "SECRET" not in str(found)
    assert found["study_month"] == "2024-05"
    assert str(found["manufacturer"]).startswith("Acme X-Rays x")
    assert len(str(found["manufacturer"])) == 64
    assert found["transfer_syntax"] == "ExplicitVRLittleEndian"
    assert "sex" not in attributes(PatientSex="Secret Name")


def test_a_value_that_breaks_its_rules_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = save(make(np.zeros((2, 2), np.uint16), 12))
    grey(data.replace(b"2.25.7", b"SECRET"))
    assert "SECRET" not in caplog.text


@pytest.mark.shared
def test_real_films() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    upright = grey((SHARED / "rsna-cr-pa-monochrome2.dcm").read_bytes(), views=("PA",))[::4].astype(int)
    flagged = grey((SHARED / "rsna-cr-pa-flagged-monochrome1.dcm").read_bytes())[::4]
    assert np.abs(255 - upright - flagged).max() <= 1
    data = (SHARED / "nema-cr-chest-monochrome1-j2k.dcm").read_bytes()
    pixels, found = dicom.read(data, max_pixels=10**7, gate=Gate(), ages=None)
    assert pixels.shape == (1955, 1841)
    assert pixels[:, 700:1100].mean() > pixels.mean()  # the mediastinum is bright
    assert found["study_month"] == "2004-08"
    with pytest.raises(DomainError) as raised:
        grey((SHARED / "nema-cr-hip-j2k.dcm").read_bytes())
    assert raised.value.rule == "body_part"
