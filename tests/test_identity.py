"""No identity leaves: identifiers planted everywhere, the whole way with failures provoked, and every byte searched.

What is planted is unique, so that any trace of it is a leak: in every text, name, date and UID element that the
standard knows, in private elements and nested sequences, in several character sets, in file names and folders, and in
the tables of labels. Searched are all files under the output, Ray's own logs, temporary files, and the console of
every command, as they are and, where they are Parquet, as the values they hold.
"""

import csv
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import config, datadict, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

from pneumobatch.archive import phantoms
from pneumobatch.identity import SITE_KEY, keyed_hash

KEY = "a-site-key-of-the-test"
MONTH, DAY = "2026-03", "17"
TEXTS = {"AE", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "UI", "DA", "TM", "DT"}
ALLOWED = {"Manufacturer", "SpecificCharacterSet", "TransferSyntaxUID", "SOPClassUID"}
NAMES = {  # character set of the element: a name that it can write
    "ISO_IR 100": "Müßig^Jörg",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 192": "山田^太郎",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "ISO_IR 166": "นามสกุล^ชื่อ",
}


class Planted:
    """Hands out identifiers that occur nowhere else, and remembers them."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.count = 0

    def text(self, limit: int = 16) -> str:
        self.count += 1
        marker = f"Zq{self.count:05d}Wx"[:limit]
        self.texts.add(marker)
        return marker

    def number(self) -> str:
        self.count += 1
        marker = f"73190{self.count:05d}"
        self.texts.add(marker)
        return marker

    def needles(self) -> list[bytes]:
        found = set(self.texts) | {MONTH.replace("-", "") + DAY, f"{MONTH}-{DAY}"}
        for name in NAMES.values():
            found |= {part for part in name.replace("=", "^").split("^") if len(part) > 1}
        encoded = {text.encode() for text in found} | {text.encode("unicode_escape") for text in found}
        for charset, name in zip(
            ("latin-1", "iso8859-5", "iso8859-7", "utf-8", "euc-kr", "tis-620"), NAMES.values(), strict=True
        ):
            encoded |= {part.encode(charset, "ignore") for part in name.replace("=", "^").split("^")}
        return sorted(needle for needle in encoded if len(needle) > 3)


def value(planted: Planted, vr: str, limit: int = 16) -> str:
    if vr == "DA":
        return f"19{planted.count % 60 + 20}0219"
    if vr == "TM":
        return f"07{planted.count % 60:02d}11.731907"
    if vr == "DT":
        return f"19{planted.count % 60 + 20}021907{planted.count % 60:02d}11.731907"
    return f"2.25.{planted.number()}" if vr == "UI" else planted.text(limit)


def film(planted: Planted, charset: str, **changed: object) -> bytes:
    """A chest film whose every element names a patient, as far as the standard lets it."""
    picture = phantoms.film(np.random.default_rng(planted.count), 1, 120, 110)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = charset.split("\\") if "\\" in charset else charset
    pixel_elements = range(0x00280000, 0x00290000)
    for tag, (vr, multiplicity, _, retired, keyword) in datadict.DicomDictionary.items():
        if vr not in TEXTS or not keyword or keyword in ALLOWED or retired or tag in pixel_elements or tag < 0x00080000:
            continue
        if multiplicity in {"1", "1-n"} and not keyword.startswith(("Referenced", "Pixel")):
            setattr(dataset, keyword, value(planted, vr))
    nested = Dataset()
    nested.PatientName, nested.PatientID = f"{NAMES[charset]}{planted.text()}", planted.text()
    dataset.OtherPatientIDsSequence = [nested]
    dataset.RequestAttributesSequence = [nested]
    block = dataset.private_block(0x0011, planted.text(), create=True)
    block.add_new(0x01, "LO", planted.text())
    block.add_new(0x02, "PN", f"{planted.text()}^{planted.text()}")
    dataset.PatientName = f"{NAMES[charset]}"
    dataset.PatientID, dataset.AccessionNumber = planted.text(), planted.text()
    dataset.StudyInstanceUID, dataset.SOPInstanceUID = f"2.25.{planted.number()}", f"2.25.{planted.number()}"
    dataset.StudyDate, dataset.PatientBirthDate = MONTH.replace("-", "") + DAY, "19310217"
    # With its seconds: six digits alone come up in Ray's logs by chance, about once in a million places.
    planted.texts |= {"19310217", "1931-02-17", "11.731907"}
    values: dict[str, object] = {
        "SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR", "BodyPartExamined": "CHEST",
        "ViewPosition": "PA", "PatientSex": "F", "PatientAge": "004Y", "Manufacturer": "Works",
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": picture.shape[0],
        "Columns": picture.shape[1], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
        "WindowCenter": 32768, "WindowWidth": 65536, "PixelData": picture.tobytes(), "PresentationLUTShape": "IDENTITY",
        "PatientPosition": "",
    }  # fmt: skip
    for keyword, content in (values | changed).items():
        setattr(dataset, keyword, content)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_archive(folder: Path, planted: Planted) -> list[Dataset]:
    """Films in every character set, and files that fail or are rejected in many ways."""
    good = []

    def put(data: bytes, ending: str = ".dcm") -> None:
        person = folder / f"{planted.text()}^Anna 山田" / planted.text()
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{planted.text()} Müller{ending}").write_bytes(data)

    for charset in NAMES:
        good.append(film(planted, charset))
        put(good[-1])
    whole = film(planted, "ISO_IR 192")
    put(whole, "")
    put(whole[: len(whole) // 2])
    put(whole[:3000])
    put(film(planted, "ISO_IR 192", BodyPartExamined="HIP"))
    put(film(planted, "ISO_IR 192", ViewPosition="LL"))
    put(film(planted, "ISO_IR 192", Modality="MR"))
    put(film(planted, "ISO_IR 192", Rows=0))
    put(film(planted, "ISO_IR 192", PatientAge="no age", WindowWidth="0", RescaleSlope=None))
    put(film(planted, "ISO_IR 192", NumberOfFrames="7"))
    put(film(planted, "ISO_IR 192", BitsStored=99))
    # What follows the name of a syntax is no such stream: its decoder complains, and must not quote.
    put(film(planted, "ISO_IR 192").replace(ExplicitVRLittleEndian.encode() + b"\0", JPEG2000Lossless.encode()[:20]))
    put(planted.text().encode() * 50, ".txt")
    put(b"")
    put(b"\xff\xd8\xff\xe1" + planted.text().encode() * 9 + b"\xff\xd9", ".jpeg")
    return good


def finder(needles: list[bytes]) -> Callable[[bytes], set[bytes]]:
    """Finds which of the needles a text holds: those that were numbered, some thousands, in one pass."""
    numbered = re.compile(rb"Zq\d{5}Wx|73190\d{5}")
    others = [needle for needle in needles if not numbered.fullmatch(needle)]
    known = set(needles)
    return lambda text: known.intersection(numbered.findall(text)).union(needle for needle in others if needle in text)


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, as it is; of Parquet also every value and the metadata."""
    for file in sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        data = file.read_bytes()
        yield str(file), str(file.relative_to(root)).encode() + b"\n" + data
        if file.suffix == ".parquet":
            table = pq.read_table(io.BytesIO(data))
            yield f"{file} (values)", "\n".join(map(str, table.to_pylist())).encode() + str(table.schema).encode()


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom writes whatever it is given, as many a modality does."""
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)


@pytest.mark.engine
@pytest.mark.usefixtures("careless")
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("key", [KEY, None])
def test_no_planted_identifier_is_anywhere(tmp_path: Path, bundle_uri: str, key: str | None) -> None:
    planted = Planted()
    archive, output = tmp_path / "in", tmp_path / "out"
    good = write_archive(archive, planted)
    accessions = [str(dcmread(io.BytesIO(data)).AccessionNumber) for data in good]
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["accession", "label", "patient", "comment"])
        for number, accession in enumerate(accessions):
            writer.writerow([accession, number % 2, planted.text(), planted.text()])
    broken = tmp_path / "broken.csv"
    broken.write_text(f"accession,label\n{accessions[0]},{planted.text()}\n")
    environment = {name: text for name, text in os.environ.items() if name != SITE_KEY}
    environment |= {SITE_KEY: key} if key else {}
    console: list[bytes] = []
    with tempfile.TemporaryDirectory(prefix="pb") as temporary:
        environment |= {"TMPDIR": temporary, "RAY_TMPDIR": temporary}

        def run(*words: str) -> int:
            command = [sys.executable, "-m", "pneumobatch", *words, "--output.uri", str(output)]
            done = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
            console.append(done.stdout + done.stderr)
            return done.returncode

        common = ["--archive.uri", str(archive)]
        screen = ["screen", *common, "--screening.bundle", bundle_uri, "--screening.run_id", "run"]
        assert run("catalog", *common) == 0
        assert run(*screen, "--screening.failure_budget", "0.01") == 1
        assert run(*screen, "--screening.failure_budget", "0.9") == 0, console[-1].decode()
        look = ["--evaluation.heat_maps", "2", "--evaluation.masked_films", "6"]  # the archive is listed and read again
        joined = run("evaluate", "--evaluation.labels", str(labels), "--archive.key_column", "accession", *look)
        assert run("evaluate", "--evaluation.labels", str(broken), "--archive.key_column", "accession") == 2
        assert run("evaluate") == 0
        assert run("runs") == 0
        assert run("verify", "run") == 0
        searched = [*contents(output), *contents(Path(temporary)), *(("console", text) for text in console)]
    assert any("session" in name for name, _ in searched), "Ray's logs are not among what is searched"
    (rows,) = (output / "predictions").rglob("*.parquet")
    table = pq.read_table(rows, partitioning=None).to_pylist()
    assert sum(row["status"] == "scored" for row in table) >= len(NAMES)
    assert {row["study_month"] for row in table} <= {MONTH, None}
    if key:
        assert joined == 0, console[3].decode()
        assert list((output / "masking").rglob("*.parquet")) and b"no picture leaves an archive of these" in console[3]
        os.environ[SITE_KEY] = KEY
        try:
            assert {keyed_hash(f"accession:{name}") for name in accessions} <= {row["accession"] for row in table}
        finally:
            del os.environ[SITE_KEY]
        assert all(row["patient"] and row["study"] and row["instance"] for row in table if row["status"] == "scored")
    else:
        assert joined == 2  # a join by an identifier is refused without a key
        assert SITE_KEY.encode() in console[3]
        assert not any(row[name] for row in table for name in ("patient", "accession", "study", "instance"))
    needles = planted.needles() + ([KEY.encode()] if key else [])
    search = finder(needles)
    planted_bytes = b"".join(data for _, data in contents(archive)) + labels.read_bytes()
    assert len(search(planted_bytes)) > 0.9 * len(needles)  # the search finds what is there
    assert {name: found for name, text in searched if (found := search(text))} == {}
