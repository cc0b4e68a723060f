"""Catalogue: ids, patients, copies, versions, what may be written."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumobatch import storage
from pneumobatch.archive import catalog, fetch, left_out
from pneumobatch.config import Archive
from tests.archive.conftest import png


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


def test_the_version_changes_with_the_file(folder: Path, tmp_path: Path) -> None:
    before = catalog.build(Archive(uri=str(folder)))["version"].to_pylist()
    assert all(len(version) == 16 for version in before)
    (folder / "other.png").write_bytes(png(9) + b"more")
    after = catalog.build(Archive(uri=str(folder)))["version"].to_pylist()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    target = tmp_path / "films.parquet"
    versions = []
    for values in ([1, 2], [1, 2, 3]):
        pq.write_table(pa.table({"bytes": [png(value) for value in values]}), target)
        (version,) = set(catalog.build(Archive(uri=str(target)))["version"].to_pylist())
        versions.append(version)
    assert versions[0] != versions[1]


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


def test_paths_beside_excluded_dicom_files_are_not_written(folder: Path) -> None:
    (folder / "film.dcm").write_bytes(b"1")
    table = catalog.build(Archive(uri=str(folder), exclude=("*.dcm",)))
    assert catalog.publishable(table)["uri"].null_count == len(table)
    assert catalog.publishable(catalog.find_duplicates(table))["uri"].null_count == len(table)
    assert catalog.publishable(table, keep_uri=True)["uri"].null_count == 0


def test_the_name_of_a_parquet_file_chooses_its_rows(tmp_path: Path) -> None:
    for name in ("2024-01", "2024-02"):
        pq.write_table(pa.table({"bytes": [png(1), png(2)]}), tmp_path / f"{name}.parquet")
    for include, exclude in (("*-01.parquet", ()), ("*-01*", ()), ("*", ("*-02.parquet",))):
        assert len(catalog.build(Archive(uri=str(tmp_path), include=(include,), exclude=exclude))) == 2
