"""Catalogue: ids, labels, patients, Parquet archives and manifests, what may be written."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumobatch import storage
from pneumobatch.archive import catalog, fetch, left_out
from pneumobatch.archive.labels import LabelTable, from_paths
from pneumobatch.config import Archive
from pneumobatch.identity import SITE_KEY, keyed_hash


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = {
        "NORMAL/IM-0001-0001.png": 1,
        "NORMAL/NORMAL2-IM-0001-0002-0001.png": 2,
        "PNEUMONIA/person7_bacteria_1.png": 3,
        "PNEUMONIA/person7_bacteria_2.png": 3,
        "PNEUMONIA/person7_virus_9.png": 4,
        "other.png": 5,
    }
    for name, value in names.items():
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(value))
    return tmp_path / "films"


def test_class_folders_patients_and_etiology(folder: Path) -> None:
    table = catalog.build(Archive(uri=str(folder)))
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert {name: row["label"] for name, row in rows.items()} == {
        "IM-0001-0001.png": 0,
        "NORMAL2-IM-0001-0002-0001.png": 0,
        "person7_bacteria_1.png": 1,
        "person7_bacteria_2.png": 1,
        "person7_virus_9.png": 1,
        "other.png": None,
    }
    # reading 6: the bare number is reused across etiologies, and NORMAL2 is another series than IM
    assert rows["person7_bacteria_1.png"]["patient"] == rows["person7_bacteria_2.png"]["patient"]
    assert len({row["patient"] for row in rows.values() if row["patient"]}) == 4
    assert rows["person7_virus_9.png"]["etiology"] == "viral"


def test_ids_are_stable_when_the_archive_moves(folder: Path, tmp_path: Path) -> None:
    before = catalog.build(Archive(uri=str(folder)))["image_id"].to_pylist()
    folder.rename(tmp_path / "moved")
    assert catalog.build(Archive(uri=str(tmp_path / "moved")))["image_id"].to_pylist() == before


def test_byte_identical_images_are_recognised(folder: Path) -> None:
    table = catalog.find_duplicates(catalog.build(Archive(uri=str(folder))))
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert rows["person7_bacteria_2.png"]["duplicate_of"] == rows["person7_bacteria_1.png"]["image_id"]
    assert table["duplicate_of"].null_count == len(table) - 1


def test_include_and_exclude(folder: Path) -> None:
    table = catalog.build(Archive(uri=str(folder), include=("PNEUMONIA/*",), exclude=("*virus*",)))
    assert len(table) == 2
    with pytest.raises(ValueError, match="no file that archive.include"):
        catalog.build(Archive(uri=str(folder), include=("*.dcm",)))


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_what_has_no_row_is_counted(place: str, folder: Path, s3: str) -> None:
    for name in (".DS_Store", "NORMAL/._x.png", "_old/a.png", "_old/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"1")
    root = str(folder)
    if place == "s3":
        root = storage.join(s3, "films")
        for path in folder.rglob("*.*"):
            storage.write_bytes(storage.join(root, str(path.relative_to(folder))), path.read_bytes())
    hidden = 4 if place == "s3" else 3  # a local folder is not looked into: it may hold the archive many times over
    table = catalog.build(Archive(uri=root, include=("*/*",), exclude=("*virus*",)))
    assert left_out.counted(table) == {"hidden": hidden, "excluded": 2}
    kept = catalog.publishable(catalog.find_duplicates(table)).filter(pa.array([True] * len(table)))
    assert left_out.counted(pq.read_table(pa.BufferReader(storage.encode(kept)))) == {"hidden": hidden, "excluded": 2}
    with pytest.raises(ValueError, match=rf"left out: {hidden} with hidden names .*, 6 by archive.include"):
        catalog.build(Archive(uri=root, include=("*.dcm",)))


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
    ],
)
def test_wrong_label_tables_are_named(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(ValueError, match=message):
        catalog.build(Archive(uri=str(folder), labels=str(labels)))


def test_a_file_name_of_several_images_labels_none(folder: Path, tmp_path: Path) -> None:
    for name in ("p2", "p3"):
        (folder / name).mkdir()
        (folder / name / "film.png").write_bytes(_png(9))
    labels = tmp_path / "labels.csv"
    for name in ("film.png", "film"):
        labels.write_text(f"path,label\n{name},PNEUMONIA\n")
        with pytest.raises(ValueError, match="a file name fits several images; name them by their path below"):
            catalog.build(Archive(uri=str(folder), labels=str(labels)))
    labels.write_text("path,label\np3/film.png,PNEUMONIA\np2/film.png,NORMAL\n")
    table = catalog.build(Archive(uri=str(folder), labels=str(labels), include=("p*/*",)))
    assert table["label"].to_pylist() == [0, 1]


def test_beside_parquet_only_what_is_set_aside_may_lie(folder: Path, tmp_path: Path) -> None:
    picture = (folder / "other.png").read_bytes()
    home = tmp_path / "tables"
    home.mkdir()
    pq.write_table(pa.table({"bytes": [picture, picture]}), home / "films.parquet")
    (home / "labels.csv").write_text("path,label\nfilms.parquet#000000001,1\n")
    (home / "README.txt").write_text("x")
    with pytest.raises(ValueError, match="holds Parquet files beside other files"):
        catalog.build(Archive(uri=str(home)))
    archive = Archive(uri=str(home), labels=str(home / "labels.csv"), exclude=("*.txt",))
    assert catalog.build(archive)["label"].to_pylist() == [None, 1]


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


def test_parquet_with_bytes(tmp_path: Path) -> None:
    images = [_png(value) for value in range(7)]
    pq.write_table(pa.table({"bytes": images}), tmp_path / "films.parquet", row_group_size=3)
    table = catalog.build(Archive(uri=str(tmp_path / "films.parquet")))
    assert list(fetch.fetch_many(table["uri"].to_pylist())) == images
    assert catalog.build(Archive(uri=str(tmp_path)))["image_id"].equals(table["image_id"])


def test_parquet_manifest_stays_inside_its_roots(folder: Path) -> None:
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.table({"uri": ["other.png", str(folder / "NORMAL/IM-0001-0001.png")]}), manifest)
    table = catalog.build(Archive(uri=str(manifest)))
    assert all(isinstance(data, bytes) for data in fetch.fetch_many(table["uri"].to_pylist()))
    for outside in ("../secret.png", "/etc/passwd", "NORMAL/../../x.png", "s3://other/x.png"):
        pq.write_table(pa.table({"uri": [outside]}), manifest)
        with pytest.raises(ValueError, match="outside the archive's folder"):
            catalog.build(Archive(uri=str(manifest)))
    pq.write_table(pa.table({"uri": ["/etc/passwd"]}), manifest)
    assert len(catalog.build(Archive(uri=str(manifest), roots=("/etc",)))) == 1


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


def test_paths_are_kept_unless_there_is_dicom(folder: Path) -> None:
    table = catalog.build(Archive(uri=str(folder)))
    assert catalog.publishable(table)["uri"].null_count == 0
    (folder / "x.dcm").write_bytes(b"")
    table = catalog.build(Archive(uri=str(folder)))
    assert catalog.publishable(table)["uri"].null_count == len(table)
    assert catalog.publishable(table, keep_uri=True)["uri"].null_count == 0
    (folder / "x.dcm").rename(folder / "x")  # DICOM files often have no extension
    table = catalog.build(Archive(uri=str(folder)))
    assert catalog.publishable(table)["uri"].null_count == len(table)


@pytest.mark.parametrize("name", ["1.2.840.113619.2.55.3.1", "IM0001", "DOE.IMA", "notes.txt", "a/DOE.JANE/x"])
def test_no_path_is_kept_beside_what_may_be_dicom(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    table = catalog.publishable(catalog.build(Archive(uri=str(folder))))
    assert table["uri"].null_count == len(table) == 7


def test_images_in_parquet_keep_no_path(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": [_png(1)]}), tmp_path / "DOE.parquet")
    assert catalog.publishable(catalog.build(Archive(uri=str(tmp_path))))["uri"].null_count == 1


def test_the_version_changes_with_the_file(folder: Path, tmp_path: Path) -> None:
    before = catalog.build(Archive(uri=str(folder)))["version"].to_pylist()
    assert all(len(version) == 16 for version in before)
    (folder / "other.png").write_bytes(_png(9) + b"more")
    after = catalog.build(Archive(uri=str(folder)))["version"].to_pylist()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    target = tmp_path / "films.parquet"
    versions = []
    for values in ([1, 2], [1, 2, 3]):
        pq.write_table(pa.table({"bytes": [_png(value) for value in values]}), target)
        (version,) = set(catalog.build(Archive(uri=str(target)))["version"].to_pylist())
        versions.append(version)
    assert versions[0] != versions[1]


def test_a_label_table_decides_like_a_dictionary(folder: Path, tmp_path: Path) -> None:
    """The last of several rows counts, the path goes before the name, and a blank cell is unknown."""
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "uri,label,patient,etiology\nperson7_virus_9.png,0,,\nPNEUMONIA/person7_virus_9.png,1,,fungal\n"
        "other,0,a,\nother,1,b,\nperson7_bacteria_1,1,,\n"
    )
    table = catalog.build(Archive(uri=str(folder), labels=str(labels)))
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert (rows["other.png"]["label"], rows["other.png"]["patient"]) == (1, "patient:b")
    assert (rows["person7_virus_9.png"]["label"], rows["person7_virus_9.png"]["etiology"]) == (1, "fungal")
    assert rows["person7_bacteria_1.png"]["etiology"] is None  # in the table, and blank
    assert rows["person7_bacteria_2.png"]["etiology"] == "bacterial"  # not in the table
    assert rows["person7_bacteria_1.png"]["patient"] == "kermany:person7_bacteria"


def test_a_parquet_manifest_gives_the_ids_of_a_listing(folder: Path) -> None:
    listed = catalog.build(Archive(uri=str(folder)))
    manifest = folder / "manifest.parquet"
    for uris in (listed["uri"].to_pylist(), [f"file://{uri}" for uri in listed["uri"].to_pylist()] * 2):
        pq.write_table(pa.table({"uri": uris}), manifest)
        assert catalog.build(Archive(uri=str(manifest)))["image_id"].equals(listed["image_id"])


def test_a_link_of_a_manifest_stays_inside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(_png(1))
    (folder / "link.png").symlink_to(tmp_path / "secret" / "a.png")
    (folder / "links").symlink_to(tmp_path / "secret")
    (folder / "inside.png").symlink_to(folder / "other.png")
    for name, allowed in (("link.png", False), ("links/a.png", False), ("inside.png", True)):
        pq.write_table(pa.table({"uri": [name]}), folder / "manifest.parquet")
        if allowed:
            assert len(catalog.build(Archive(uri=str(folder / "manifest.parquet")))) == 1
        else:
            with pytest.raises(ValueError, match="a link to outside"):
                catalog.build(Archive(uri=str(folder / "manifest.parquet")))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_manifest_gives_the_rows_of_the_listing(kind: str, folder: Path, tmp_path: Path) -> None:
    listing = catalog.build(Archive(uri=str(folder)))
    uris = [*listing["uri"].to_pylist()[:3], *(f"films/./{path}" for path in ("other.png", "NORMAL//IM-0001-0001.png"))]
    uris += [f"file://{folder}/PNEUMONIA/{path.name}" for path in (folder / "PNEUMONIA").iterdir()]
    _write(tmp_path / f"manifest.{kind}", uris)
    table = catalog.build(Archive(uri=str(tmp_path / f"manifest.{kind}"), roots=(str(folder),)))
    assert table.equals(listing)
    _write(tmp_path / f"manifest.{kind}", ["films/gone.png"])
    table = catalog.build(Archive(uri=str(tmp_path / f"manifest.{kind}"), roots=(str(folder),)))
    assert table["bytes"].to_pylist() == table["version"].to_pylist() == [None]


def _write(path: Path, uris: list[str]) -> None:
    if path.suffix == ".csv":
        path.write_text("uri\n" + "".join(f'"{uri}"\n' for uri in uris))
    else:
        pq.write_table(pa.table({"uri": uris}), path, row_group_size=2)


def test_a_manifest_may_state_sizes_and_tags(s3: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{s3}/a.png", b"123")
    (file,) = storage.list_files(s3)
    for suffix in ("csv", "parquet"):
        manifest = tmp_path / f"m.{suffix}"
        if suffix == "csv":
            manifest.write_text(f"uri,size,etag\n{s3}/a.png,3,{file.version}\n")
        else:
            pq.write_table(pa.table({"uri": [f"{s3}/a.png"], "size": [3], "etag": [file.version]}), manifest)
        assert catalog.build(Archive(uri=str(manifest), roots=(s3,))).equals(catalog.build(Archive(uri=s3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx\n", "neither a column 'bytes'"),
        ("uri\nDOE,2\n", "no readable CSV"),
        ("", "no readable CSV"),
        ("uri,size\nDOE,large\n", "no readable CSV"),
    ],
)
def test_wrong_manifests_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        catalog.build(Archive(uri=str(tmp_path / "m.csv")))
    assert "DOE" not in str(caught.value)


def test_a_folder_on_s3_has_the_ids_of_its_copy(folder: Path, s3: str) -> None:
    for path in folder.rglob("*.png"):
        storage.write_bytes(f"{s3}/{path.relative_to(folder)}", path.read_bytes())
    local, remote = (catalog.find_duplicates(catalog.build(Archive(uri=uri))) for uri in (str(folder), s3))
    same = ["image_id", "bytes", "sha256", "duplicate_of", "label", "patient", "etiology"]
    assert remote.select(same).equals(local.select(same))
    assert list(fetch.fetch_many(remote["uri"].to_pylist())) == list(fetch.fetch_many(local["uri"].to_pylist()))
    labels = storage.join(s3, "labels.csv")
    storage.write_bytes(labels, b"uri,label\nother.png,1\n")
    assert len(catalog.build(Archive(uri=s3, labels=labels))) == len(local)


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
    }
    known = from_paths(pa.chunked_array([list(cases)]), "auto")
    rows = zip(*(known[name].to_pylist() for name in ("label", "patient", "etiology")), strict=True)
    assert dict(zip(cases, rows, strict=True)) == cases
    assert from_paths(pa.chunked_array([list(cases)]), "none")["patient"].null_count == len(cases)


KEYS = ["a/b.png", "a/c.png", "b.png", "c", "b", "id-of-a/b.png", "elsewhere"]


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["0", "1", "pending"])), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_label_is_found_by_path_id_name_or_stem(rows: list[tuple[str, str]]) -> None:
    paths = ["a/b.png", "a/c.png", "b.png", "d/b"]
    text = "uri,label,patient,sex\n" + "".join(f"{key},{label},p{i},s{i}\n" for i, (key, label) in enumerate(rows))
    storage.write_bytes("memory://labels/l.csv", text.encode())
    last = {key: (label, i) for i, (key, label) in enumerate(rows)}

    named: list[str] = []

    def expected(path: str) -> tuple[bool, int | None, str | None, str | None]:
        name = path.rsplit("/", 1)[-1]
        for key in (path, f"id-of-{path}", name, name.rsplit(".", 1)[0]):
            if key in last:
                named.extend([key] * (key not in {path, f"id-of-{path}"}))
                label, i = last[key]
                return True, {"0": 0, "1": 1, "pending": None}[label], f"patient:p{i}", f"s{i}"
        return False, None, None, None

    wanted = [expected(path) for path in paths]
    table = LabelTable(Archive(uri="x", labels="memory://labels/l.csv"))
    arguments = pa.chunked_array([paths]), pa.chunked_array([[f"id-of-{path}" for path in paths]])
    if len(set(named)) < len(named):
        with pytest.raises(ValueError, match="a file name fits several images"):
            table.find(*arguments)
        return
    found = table.find(*arguments)
    columns = (found[name].to_pylist() for name in ("found", "label", "patient", "sex"))
    assert list(zip(*columns, strict=True)) == wanted


def test_rows_of_parquet_are_read_one_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [bytes([i]) * 1000 for i in range(40)]
    pq.write_table(pa.table({"bytes": images}), tmp_path / "films.parquet", row_group_size=4, compression="none")
    monkeypatch.setattr(fetch, "CACHE_BYTES", 10_000)
    fetch.forget()
    uris = catalog.build(Archive(uri=str(tmp_path / "films.parquet")))["uri"].to_pylist()
    assert list(fetch.fetch_many(uris)) == images
    assert sum(values.nbytes for values in fetch._row_groups._kept.values()) <= 10_000
    assert isinstance(fetch.fetch(uris[0], limit=999), storage.TooLargeError)
    assert fetch.fetch(uris[0], limit=1000) == images[0]
    assert isinstance(fetch.fetch(f"{tmp_path}/films.parquet#bytes#40"), OSError)
    assert isinstance(fetch.fetch(f"{tmp_path}/films.parquet#other#0"), OSError)
    assert isinstance(fetch.fetch(f"{tmp_path}/gone.parquet#bytes#0"), FileNotFoundError)
    copies = pa.table({"bytes": [b"a", b"b", b"a", None, b"b", b"a"]})
    pq.write_table(copies, tmp_path / "films.parquet", row_group_size=2)
    fetch.forget()
    table = catalog.find_duplicates(catalog.build(Archive(uri=str(tmp_path / "films.parquet"))))
    ids = table["image_id"].to_pylist()
    assert table["duplicate_of"].to_pylist() == [None, None, ids[0], None, ids[1], ids[0]]


def test_a_file_named_like_a_row_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet#b.png").write_bytes(b"1")
    (tmp_path / "c.png").write_bytes(b"2")
    table = catalog.build(Archive(uri=str(tmp_path)))
    assert list(fetch.fetch_many(table["uri"].to_pylist())) == [b"1", b"2"]


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    for index in range(3000):
        path = tmp_path / f"{index % 7}" / f"{index:05}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, 1000 + index)
    yield tmp_path


def test_only_files_that_share_a_size_are_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (many / "copy.dcm").write_bytes(bytes(1500))
    (many / "differs.dcm").write_bytes(b"1" * 1501)
    table = catalog.build(Archive(uri=str(many)))
    read = []

    def count(uri: str, limit: int | None = None) -> bytes:
        read.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr(fetch, "fetch", count)
    found = catalog.find_duplicates(table)
    assert len(read) == 4
    assert len(found) - found["duplicate_of"].null_count == 1
    assert len(found) - found["sha256"].null_count == 4


@pytest.mark.shared
def test_kermany(shared: Path) -> None:
    table = catalog.find_duplicates(catalog.build(Archive(uri=str(shared / "kermany"))))
    assert len(table) == 5216
    assert table["label"].to_pylist().count(1) == 3875
    assert table["patient"].null_count == 0
    assert len(table) - table["duplicate_of"].null_count == 26
