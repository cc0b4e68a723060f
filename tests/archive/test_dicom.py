"""DICOM objects in every encoding; the domain gate; what leaves an object, and what does not."""

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from radiograph import all_values, grey, make, save, stated

from pneumobatch.archive import attributes, dicom
from pneumobatch.archive.errors import DecodeError, DomainError
from pneumobatch.config import Gate
from pneumobatch.identity import SITE_KEY, keyed_hash
from pneumobatch.tables import DICOM_ALLOWED, KEYED

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"


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


def test_eight_bits_in_words_of_the_other_byte_order() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    dataset = make(stored, 8, syntax=ExplicitVRBigEndian, PixelData=stored.reshape(-1, 2)[:, ::-1].tobytes())
    dataset["PixelData"].VR = "OW"
    assert np.array_equal(grey(save(dataset, enforce_file_format=True)), stored)


def test_a_private_syntax_is_unsupported_not_broken() -> None:
    dataset, buffer = make(np.zeros((2, 2), np.uint16), 12, syntax="1.2.840.113619.5.2"), io.BytesIO()
    dataset.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=True)
    with pytest.raises(DecodeError) as raised:
        grey(buffer.getvalue())
    assert raised.value.reason == "unsupported"


@pytest.mark.parametrize("modality", ["CR", "DX"])
def test_secondary_captures_of_a_film_are_films(modality: str) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    values = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": modality, "ConversionType": "WSD"}
    colour = make(rgb, 8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, **values)
    assert np.array_equal(grey(colour), np.asarray(Image.fromarray(rgb).convert("L")))
    assert np.array_equal(grey(make(rgb[..., 0], 8, **values)), rgb[..., 0])
    with pytest.raises(DomainError, match="modality"):
        grey(make(rgb[..., 0], 8, **(values | {"Modality": "OT"})))


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


def coded(value: str, scheme: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "SECRET"
    return [item]


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
        ({"ViewPosition": "", "ViewCodeSequence": coded("399348003", "SCT")}, None),
        ({"ViewPosition": "", "ViewCodeSequence": coded("R-10214", "SRT")}, None),
        ({"ViewPosition": "", "ViewCodeSequence": coded("272479007", "SCT")}, None),
        ({"ViewPosition": "", "ViewCodeSequence": coded("399033003", "SCT")}, None),  # frontal
        ({"ViewPosition": "", "ViewCodeSequence": []}, None),
        ({"ViewPosition": "", "ViewCodeSequence": coded("R-10236", "SNM3")}, "view"),
        ({"ViewPosition": "", "ViewCodeSequence": coded("399135007", "SCT")}, "view"),  # left anterior oblique
        ({"ViewPosition": "PA", "ViewCodeSequence": coded("R-10236", "SRT")}, None),
        ({"ViewPosition": "", "PatientOrientation": ["A", "F"]}, "view"),
        ({"ViewPosition": "", "PatientOrientation": ["PL", "F"]}, "view"),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, None),
        ({"ViewPosition": "", "PatientOrientation": ["LA", "F"]}, None),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": coded("T-D3000", "SRT")}, None),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": coded("816094009", "SCT")}, None),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": coded("T-15710", "SRT")}, "body_part"),  # hip joint
        ({"BodyPartExamined": "CHEST", "AnatomicRegionSequence": coded("T-15710", "SRT")}, None),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"PresentationIntentType": "FOR PRESENTATION"}, None),
        ({"PatientAge": "062Y"}, "age"),
        ({"PatientAge": "011M"}, "age"),
        ({"PatientAge": "018M"}, None),
        ({"PatientAge": ""}, None),
        ({"PatientAge": None}, None),
        ({"PatientAge": "62 Y"}, "age"),
        ({"PatientAge": "4.5 y"}, None),
        ({"PatientAge": "62YR"}, "age"),  # stated, and not readable
        ({"PatientAge": "old"}, "age"),
        ({"PatientAge": "", "PatientBirthDate": "19310217", "StudyDate": "20240301"}, "age"),
        ({"PatientAge": None, "PatientBirthDate": "20180302", "StudyDate": "20240301"}, None),  # five until tomorrow
        ({"PatientAge": None, "PatientBirthDate": "20180301", "StudyDate": "20240301"}, "age"),
        ({"PatientAge": "003Y", "PatientBirthDate": "19000101", "StudyDate": "20240301"}, None),  # what is stated holds
        ({"PatientAge": "", "PatientBirthDate": "20240302", "StudyDate": "20240301"}, None),  # not born
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


def test_a_view_that_is_coded_is_stated() -> None:
    assert stated(ViewPosition="", ViewCodeSequence=coded("R-10206", "SRT"))["view"] == "AP"
    assert "view" not in stated(ViewPosition="", ViewCodeSequence=coded("R-10202", "SRT"))
    other = {"ViewPosition": "", "ViewCodeSequence": coded("LOCAL-7", "99SITE")}
    with pytest.raises(DomainError) as raised:
        stated(**other)
    assert raised.value.facts["view"] == "OTHER"
    assert grey(make(np.zeros((2, 2), np.uint16), 12, **other), views=("PA", "OTHER")).shape == (2, 2)


def test_the_gates_codes_may_be_written_in_any_case() -> None:
    film = make(np.zeros((2, 2), np.uint16), 12, BodyPartExamined="Chest", ViewPosition="ll")
    assert grey(film, modalities=("cr",), body_parts=("chest",), views=("Ll",)).shape == (2, 2)


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


def test_a_discs_directory_is_outside_the_domain_not_broken(tmp_path: Path) -> None:
    film = make(np.zeros((2, 2), np.uint16), 12, PatientName="", PatientID="7", StudyInstanceUID="2.25.1")
    film.SeriesInstanceUID, film.StudyDate, film.StudyTime, film.StudyID = "2.25.2", "20240101", "120000", "1"
    film.SeriesNumber = film.InstanceNumber = 1
    disc = FileSet()
    disc.add(pydicom.dcmread(io.BytesIO(save(film, enforce_file_format=True))))
    disc.write(tmp_path)
    with pytest.raises(DomainError) as raised:
        grey((tmp_path / "DICOMDIR").read_bytes())
    assert raised.value.rule == "modality"
    assert set(raised.value.facts) <= set(DICOM_ALLOWED)


@pytest.mark.parametrize(
    ("age", "years"), [("062Y", 62), ("62", 62), ("018M", 1), ("024M", 2), ("080W", 1), ("095Y", 90), ("old", None)]
)
def test_ages_are_whole_years(age: str, years: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on writing what is no age
        assert stated(PatientAge=age).get("age_years") == years


@given(
    st.integers(0, 999),
    st.sampled_from(["", "0", "00", " "]),
    st.sampled_from(["", ".", ".0", ".9"]),
    st.sampled_from(["", " ", "  "]),
    st.sampled_from(["", *"YMWDymwd"]),
)
def test_an_age_is_read_however_it_is_written(number: int, before: str, part: str, between: str, unit: str) -> None:
    dataset = Dataset()
    dataset.add(DataElement(0x00101010, "LO", f"{before}{number}{part}{between}{unit} "))  # AS would warn of it
    years = (number + 0.9 * (part == ".9")) / {"Y": 1, "M": 12, "W": 365.25 / 7, "D": 365.25}[unit.upper() or "Y"]
    assert attributes.allowed(dataset)["age_years"] in {min(int(years - 1e-9), 90), min(int(years + 1e-9), 90)}


def test_only_the_allow_list_leaves_the_reader() -> None:
    free = {"StudyDescription": "SECRET", "AccessionNumber": "SECRET", "InstitutionName": "SECRET"}
    found = stated(
        **free, PatientSex="F", StudyDate="20240517", Manufacturer=" Acme \n X-Rays " + "x" * 99, PatientAge="004Y"
    )
    assert set(found) <= set(DICOM_ALLOWED)
    assert "SECRET" not in str(found)
    assert found["study_month"] == "2024-05"
    assert str(found["manufacturer"]).startswith("Acme X-Rays x")
    assert len(str(found["manufacturer"])) == 64
    assert found["transfer_syntax"] == "ExplicitVRLittleEndian"
    assert "sex" not in stated(PatientSex="Secret Name")


IDENTITIES = {
    "patient": ("PatientID", " Ab-0012 "),
    "accession": ("AccessionNumber", "A 77"),
    "study": ("StudyInstanceUID", "2.25.11"),
    "instance": ("SOPInstanceUID", "2.25.13"),
}


def test_identifiers_leave_as_keyed_hashes_and_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    values = dict(IDENTITIES.values())
    monkeypatch.delenv(SITE_KEY, raising=False)
    assert not set(stated(**values)) & set(IDENTITIES)
    for key in ("one", "two"):
        monkeypatch.setenv(SITE_KEY, key)
        expected = {name: keyed_hash(f"{name}:{value.strip()}") for name, (_, value) in IDENTITIES.items()}
        assert {name: stated(**values)[name] for name in IDENTITIES} == expected
        with pytest.raises(DomainError) as raised:
            stated(**values, BodyPartExamined="HIP")
        assert raised.value.facts.items() >= expected.items()
        assert set(raised.value.facts) <= {*DICOM_ALLOWED, *KEYED, "patient"}
    assert "accession" not in stated(AccessionNumber="")


@pytest.mark.parametrize(
    ("charset", "value"),
    [
        ("ISO_IR 100", "Zoë-1".encode("latin-1")),
        ("ISO_IR 144", "Иван-1".encode("iso8859-5")),
        ("ISO_IR 192", "王小東-1".encode()),
        ("GB18030", "王小东-1".encode("gb18030")),
        (["", "ISO 2022 IR 87"], b"\x1b$B;3ED\x1b(B-1"),
        (["", "ISO 2022 IR 149"], b"\x1b$)C\xb1\xe8-1"),
        ("ISO_IR 192", b"\xff\xfe\xc3-1"),  # not what it claims to be
        ("NO SUCH SET", b"\xe9-1"),
        (["NONE", "ISO_IR 192", ""], b"\xe9\x1b-1"),
    ],
)
def test_names_of_any_character_set_neither_fail_nor_leak(
    charset: str | list[str], value: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SITE_KEY, "key")
    padded = value + b" " * (len(value) % 2)
    dataset = make(np.zeros((2, 2), np.uint16), 12, PatientID="#" * len(padded), PatientName="#" * len(padded))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on a set that it does not know
        dataset.SpecificCharacterSet = charset
        data = save(dataset).replace(b"#" * len(padded), padded)
    assert data.count(padded) == 2
    found = dicom.read(data, max_pixels=100, gate=Gate(), ages=None)[1]
    assert re.fullmatch("[0-9a-f]{32}", str(found["patient"]))
    if charset == "ISO_IR 192" and b"\xff" not in value:
        assert found["patient"] == keyed_hash(f"patient:{value.decode()}")
    assert set(found) <= {*DICOM_ALLOWED, *KEYED, "patient"}
    assert capfd.readouterr() == ("", "")


def test_identities_leave_as_keyed_hashes_and_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"PatientID": " 12345 ", "AccessionNumber": "A-1", "StudyInstanceUID": "2.25.5"}
    monkeypatch.delenv(SITE_KEY, raising=False)
    assert not {"patient", "accession", "study", "instance"} & set(stated(**values))
    monkeypatch.setenv(SITE_KEY, "one")
    found = stated(**values)
    assert found["patient"] == keyed_hash("patient:12345")
    assert found["accession"] == keyed_hash("accession:A-1")
    assert found["study"] == keyed_hash("study:2.25.5")
    assert found["instance"] == keyed_hash("instance:2.25.7")
    assert "accession" not in stated(AccessionNumber="")
    monkeypatch.setenv(SITE_KEY, "another")
    assert stated(**values)["patient"] != found["patient"]


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
