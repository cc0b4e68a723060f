"""Labels: from class folders, Kermany's file names, and tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumobatch import storage
from pneumobatch.archive import catalog
from pneumobatch.archive.labels import LabelTable, from_paths
from pneumobatch.config import Archive
from pneumobatch.identity import SITE_KEY, keyed_hash
from tests.archive.conftest import png


def test_a_label_table_decides_and_pending_is_unknown(folder: Path) -> None:
    labels = folder / "labels.csv"
    labels.write_text("uri,label,patient,sex,secret\nother.png,PNEUMONIA,p1,F,x\nIM-0001-0001,pending,,M,y\n")
    table = catalog.build(Archive(uri=str(folder), labels=str(labels)))
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert rows["other.png"]["label"] == 1
    assert rows["other.png"]["sex"] == "F"
    assert rows["IM-0001-0001.png"]["label"] is None
    assert rows["person7_virus_9.png"]["label"] is None  # not in the table: unknown, whatever its folder says
    assert "secret" not in table.column_names
    assert "labels.csv" not in rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,label\nother.png,1\n", "none of the columns uri, image_id, .*; set archive.key_column to one of x, label"),
        ("uri,class\nother.png,1\n", "no column label; set archive.label_column to one of uri, class"),
        ("uri,label\nother.png,maybe\n", "row 1: the label is none of"),
        ("uri,label\nelse.png,1\n", "no row fits an image"),
        ("uri,label\nother.png,1\nother.png,0\n", "column uri names an image twice, with two labels; keep the row"),
    ],
)
def test_wrong_label_tables_are_named(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(ValueError, match=message):
        catalog.build(Archive(uri=str(folder), labels=str(labels)))


@pytest.mark.parametrize("name", ["version", "uri", "patient", "label", "age_years", "probability", "width"])
def test_a_subgroup_replaces_no_column(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"path,label,{name}\nother.png,1,7\n".replace("label,label", "label,x"))
    with pytest.raises(ValueError, match=f"archive.subgroups: {name} is a column of the results themselves"):
        catalog.build(Archive(uri=str(folder), labels=str(tmp_path / "labels.csv"), subgroups=("sex", name)))


def test_columns_that_are_no_text_are_left_out(folder: Path, tmp_path: Path) -> None:
    columns = {
        "uri": [b"other.png"],
        "label": [1],
        "thumbnail": [b"\xff\xd8"],
        "boxes": [[1, 2]],
        "etiology": ["viral"],
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    assert storage.read_cells(str(tmp_path / "labels.parquet")).column_names == ["uri", "label", "etiology"]
    table = catalog.build(Archive(uri=str(folder), labels=str(tmp_path / "labels.parquet")))
    assert table["label"].drop_null().to_pylist() == [1]


@pytest.mark.parametrize("kind", [pa.float64(), pa.decimal128(38, 10), pa.dictionary(pa.int32(), pa.int64())])
def test_a_number_is_the_text_of_its_digits(kind: pa.DataType, tmp_path: Path) -> None:
    accessions = pa.array([20261105001234, None, 17])
    accessions = accessions.dictionary_encode() if pa.types.is_dictionary(kind) else accessions.cast(kind)
    columns = {"accession": accessions, "label": [1.0, 0.0, None], "share": [0.5, 1.0, None]}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    cells = storage.read_cells(str(tmp_path / "labels.parquet"))
    assert cells["accession"].to_pylist() == ["20261105001234", None, "17"]
    assert cells["label"].to_pylist() == ["1", "0", None]
    assert cells["share"].to_pylist() == ["0.5", "1", None]


def test_a_broken_label_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"uri": ["DOE.png"] * 500, "label": [1] * 500}), file, compression="none")
    good = file.read_bytes()
    for broken in (good[:-40], good.replace(b"DOE.png", b"DO\xff.png"), b"PAR1" + bytes(60) + good[64:]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"labels\.parquet: not a readable") as caught:
            storage.read_cells(str(file))
        assert "DO" not in str(caught.value)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_table_may_have_only_its_header_yet(end: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"uri,label{end}")
    config = Archive(uri=str(folder), labels=str(tmp_path / "labels.csv"))
    assert catalog.build(config, growing=True)["label"].null_count == len(catalog.build(Archive(uri=str(folder))))
    with pytest.raises(ValueError, match="no row fits an image"):
        catalog.build(config)


def test_a_file_name_of_several_images_labels_none(folder: Path, tmp_path: Path) -> None:
    for name in ("p2", "p3"):
        (folder / name).mkdir()
        (folder / name / "film.png").write_bytes(png(9))
    labels = tmp_path / "labels.csv"
    for name in ("film.png", "film"):
        labels.write_text(f"path,label\n{name},PNEUMONIA\n")
        with pytest.raises(ValueError, match="a file name fits several images; name them by their path below"):
            catalog.build(Archive(uri=str(folder), labels=str(labels)))
    labels.write_text("path,label\np3/film.png,PNEUMONIA\np2/film.png,NORMAL\n")
    table = catalog.build(Archive(uri=str(folder), labels=str(labels), include=("p*/*",)))
    assert table["label"].to_pylist() == [0, 1]


def test_labels_of_studies_wait_for_the_evaluation(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(b"")
    labels = tmp_path.parent / f"{tmp_path.name}.csv"
    archive = Archive(uri=str(tmp_path), labels=str(labels))
    for text in ("accession,label\n17,1\n", "filename,accession,label\n,17,1\nc.dcm,18,0\n"):
        labels.write_text(text)
        assert catalog.build(archive)["label"].null_count == 2
    labels.write_text("filename,accession,label\nc.dcm,17,1\n")  # which names its image by file name
    with pytest.raises(ValueError, match="no row fits an image"):
        catalog.build(archive)
    assert catalog.build(archive, growing=True)["label"].null_count == 2


def test_what_is_written_holds_no_patient_of_a_label_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = folder / "labels.csv"
    labels.write_text("uri,label,patient\nother.png,1,Doe^Jane\n")
    table = catalog.build(Archive(uri=str(folder), labels=str(labels)))
    monkeypatch.delenv(SITE_KEY, raising=False)
    assert "Doe" not in str(catalog.publishable(table).to_pydict())
    row = next(row for row in catalog.publishable(table).to_pylist() if row["label"] == 1)
    assert row["patient"] is None
    monkeypatch.setenv(SITE_KEY, "secret")
    first = next(row for row in catalog.publishable(table).to_pylist() if row["label"] == 1)["patient"]
    monkeypatch.setenv(SITE_KEY, "other")
    second = next(row for row in catalog.publishable(table).to_pylist() if row["label"] == 1)["patient"]
    assert first != second
    assert second == keyed_hash("patient:Doe^Jane")  # as the PatientID of a DICOM file


def test_patients_are_not_known_where_a_site_wants_none(folder: Path) -> None:
    labels = folder / "labels.csv"
    labels.write_text("uri,label,patient\nother.png,1,Doe^Jane\n")
    for patients, known in (("none", set()), ("auto", {"patient:Doe^Jane"}), ("kermany", set())):
        table = catalog.build(Archive(uri=str(folder), labels=str(labels), patients=patients))
        stated = {patient for patient in table["patient"].to_pylist() if patient}
        assert {patient for patient in stated if not patient.startswith("kermany:")} == known
        assert bool(stated) == (patients != "none")
        assert table["label"].to_pylist().count(1) == 1  # the label stays


def test_a_label_table_decides_like_a_dictionary(folder: Path, tmp_path: Path) -> None:
    """A finding counts before `pending`, the path goes before the name, and a blank cell is unknown."""
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "uri,label,patient,etiology\nperson7_virus_9.png,0,,\nPNEUMONIA/person7_virus_9.png,1,,fungal\n"
        "other,pending,a,\nother,1,b,\nperson7_bacteria_1,1,,\n"
    )
    table = catalog.build(Archive(uri=str(folder), labels=str(labels)))
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert (rows["other.png"]["label"], rows["other.png"]["patient"]) == (1, "patient:b")
    assert (rows["person7_virus_9.png"]["label"], rows["person7_virus_9.png"]["etiology"]) == (1, "fungal")
    assert rows["person7_bacteria_1.png"]["etiology"] is None  # in the table, and blank
    assert rows["person7_bacteria_2.png"]["etiology"] == "bacterial"  # not in the table
    assert rows["person7_bacteria_1.png"]["patient"] == "kermany:person7_bacteria"


def test_class_folders_and_kermany_names_column_by_column() -> None:
    cases: dict[str, tuple[int | None, str | None, str | None]] = {
        "NORMAL/x.png": (0, None, None),
        "a/Pneumonia/b/c.png": (1, None, None),
        "PNEUMONIA/normal/x.png": (0, None, None),
        "NORMAL/a/PNEUMONIA/b/x.png": (1, None, None),
        "NORMALISED/PNEUMONIA": (None, None, None),
        "normal": (None, None, None),
        "x/person12_virus_3.jpeg": (None, "kermany:person12_virus", "viral"),
        "person12_virus_3/x.jpeg": (None, None, None),
        "NORMAL/NORMAL2-IM-0001-0001.jpeg": (0, "kermany:NORMAL2-IM-0001", None),
        "NORMAL/IM-01\n-0001.jpeg": (0, None, None),
        "NORMAL\n/normal/IM-01-0001.jpeg": (0, "kermany:IM-01", None),
        "PNEUMONIA/xperson1_bacteria_1.png": (1, None, None),
        "Doe/IM-0001-0001.jpeg": (None, None, None),  # any viewer's export
    }
    known = from_paths(pa.chunked_array([list(cases)]), "auto")
    rows = zip(*(known[name].to_pylist() for name in ("label", "patient", "etiology")), strict=True)
    assert dict(zip(cases, rows, strict=True)) == cases
    assert from_paths(pa.chunked_array([list(cases)]), "none")["patient"].null_count == len(cases)
    assert from_paths(pa.chunked_array([list(cases)]), "kermany")["patient"].to_pylist()[-1] == "kermany:IM-0001"


def test_only_pictures_name_kermanys_patients_in_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "NORMAL").mkdir()
    for name in ("IM-0001-0001.png", "IM-4711023-1.dcm", "IM-0002-0001"):
        (tmp_path / "NORMAL" / name).write_bytes(b"")
    table = catalog.build(Archive(uri=str(tmp_path)))
    assert table["patient"].null_count == 0
    written = catalog.publishable(table).to_pylist()
    assert sorted((row["format"] or "", row["patient"]) for row in written) == [
        ("", None), ("dicom", None), ("png", "kermany:IM-0001")
    ]  # fmt: skip


KEYS = ["a/b.png", "a/c.png", "b.png", "c", "b", "id-of-a/b.png", "elsewhere"]


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["0", "1", "pending"])), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_label_is_found_by_path_id_name_or_stem(rows: list[tuple[str, str]]) -> None:
    paths = ["a/b.png", "a/c.png", "b.png", "d/b"]
    text = "uri,label,patient,sex\n" + "".join(f"{key},{label},p{i},s{i}\n" for i, (key, label) in enumerate(rows))
    storage.write_bytes("memory://labels/l.csv", text.encode())
    if any({"0", "1"} <= {label for other, label in rows if other == key} for key in KEYS):
        with pytest.raises(ValueError, match="column uri names an image twice, with two labels"):
            LabelTable(Archive(uri="x", labels="memory://labels/l.csv"))
        return
    first: dict[str, tuple[str, int]] = {}
    for i, (key, label) in sorted(enumerate(rows), key=lambda row: row[1][1] == "pending"):
        first.setdefault(key, (label, i))

    exact = {key for path in paths for key in (path, f"id-of-{path}") if key in first}
    named: list[str] = []

    def expected(path: str) -> tuple[bool, int | None, str | None, str | None]:
        name = path.rsplit("/", 1)[-1]
        for key in (path, f"id-of-{path}", name, name.rsplit(".", 1)[0]):
            if key in first and (key in {path, f"id-of-{path}"} or key not in exact):
                named.extend([key] * (key not in {path, f"id-of-{path}"}))
                label, i = first[key]
                return True, {"0": 0, "1": 1, "pending": None}[label], f"patient:p{i}", f"s{i}"
        return False, None, None, None

    wanted = [expected(path) for path in paths]
    table = LabelTable(Archive(uri="x", labels="memory://labels/l.csv"))
    arguments = [pa.chunked_array([[f"{head}{path}" for path in paths]]) for head in ("", "id-of-", "/archive/")]
    if len(set(named)) < len(named):
        with pytest.raises(ValueError, match="a file name fits several images"):
            table.find(*arguments)
        return
    found, known = table.find(*arguments)
    columns = (column.to_pylist() for column in (found, known["label"], known["patient"], known["sex"]))
    assert list(zip(*columns, strict=True)) == wanted


def test_a_name_is_the_same_composed_or_padded(tmp_path: Path) -> None:
    for name in ("Gro\u0308ße.png", "a/Gru\u0308n.png", "plain.png", "b/stem.png"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "films" / name).write_bytes(png(1))
    (tmp_path / "labels.csv").write_text("path,label\nGröße.png,1\nGrün.png,1\nplain.png ,0\n stem,0\n")
    table = catalog.build(Archive(uri=str(tmp_path / "films"), labels=str(tmp_path / "labels.csv")))
    assert {Path(row["uri"]).name[:2]: row["label"] for row in table.to_pylist()} == {
        "Gr": 1, "pl": 0, "st": 0
    }  # fmt: skip
    assert table["label"].null_count == 0


def test_a_row_that_names_a_film_names_no_other_that_is_spelled_alike(tmp_path: Path) -> None:
    for folder in ("a", " a"):
        (tmp_path / "films" / folder).mkdir(parents=True)
        (tmp_path / "films" / folder / "1.png").write_bytes(png(1))
    (tmp_path / "labels.csv").write_text("path,label\na/1.png,1\n")
    table = catalog.build(Archive(uri=str(tmp_path / "films"), labels=str(tmp_path / "labels.csv")))
    assert {Path(row["uri"]).parent.name: row["label"] for row in table.to_pylist()} == {"a": 1, " a": None}


def test_a_manifest_may_be_its_own_table_of_labels(folder: Path) -> None:
    manifest = folder.parent / "films.csv"
    for head in ("", "file://", "file:"):  # file: of Spark
        manifest.write_text(f"uri,label\n{head}{folder}/other.png,1\nfilms/NORMAL/IM-0001-0001.png,0\n")
        table = catalog.build(Archive(uri=str(manifest), labels=str(manifest)))
        labels = {Path(row["uri"]).name: row["label"] for row in table.to_pylist()}
        assert labels == {"other.png": 1, "IM-0001-0001.png": 0}
        assert table["bytes"].null_count == 0


def test_paths_may_be_those_of_find(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n./other.png,1\n./NORMAL/IM-0001-0001.png,0\n")
    table = catalog.build(Archive(uri=str(folder), labels=str(tmp_path / "labels.csv")))
    assert sorted(table["label"].drop_null().to_pylist()) == [0, 1]


@pytest.mark.parametrize(
    "content", ["path;label\nMüller.png;1\n".encode("latin-1"), "path,label\na,1\n".encode("utf-16")]
)
def test_a_table_in_another_encoding_is_told_what_to_be(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.csv: not a readable CSV or Parquet table; save CSV as UTF-8"):
        storage.read_cells(str(tmp_path / "labels.csv"))
    with pytest.raises(ValueError, match="cannot be read: Is a directory; give a CSV or Parquet table"):
        storage.read_cells(str(tmp_path))
