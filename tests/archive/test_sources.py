"""Archives of Parquet: images in rows, and manifests of paths."""

import os
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from pneumobatch import storage
from pneumobatch.archive import catalog, fetch, left_out
from pneumobatch.config import Archive
from tests.archive.conftest import png


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


def test_parquet_with_bytes(tmp_path: Path) -> None:
    images = [png(value) for value in range(7)]
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


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string(), ordered=True),
    ],
)
def test_text_of_a_manifest_may_be_of_any_arrow_type(kind: pa.DataType, folder: Path) -> None:
    listed = catalog.build(Archive(uri=str(folder)))
    columns = {"uri": pa.array(listed["uri"].to_pylist()).cast(kind), "etag": pa.array(["x"] * len(listed)).cast(kind)}
    pq.write_table(pa.table(columns), folder / "manifest.parquet", row_group_size=4)
    assert catalog.build(Archive(uri=str(folder / "manifest.parquet"))).equals(listed)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)])
def test_bytes_may_be_of_any_arrow_type(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": pa.array([b"abc", None, b"def"], kind)}), tmp_path / "films.parquet")
    uris = catalog.build(Archive(uri=str(tmp_path)))["uri"].to_pylist()
    assert list(fetch.fetch_many(uris, limit=3)) == [b"abc", b"", b"def"]
    assert isinstance(fetch.fetch(uris[2], limit=2), storage.TooLargeError)


def test_the_label_table_is_no_film_by_whatever_links_it_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "NORMAL" / "labels.csv").write_text("path,label\nother.png,1\n")
    listed = catalog.build(Archive(uri=str(folder), exclude=("*.csv",)))
    (tmp_path / "archive").symlink_to(folder)
    (tmp_path / "current.CSV").symlink_to(folder / "NORMAL" / "labels.csv")
    for uri in (folder, tmp_path / "archive"):
        for labels in (folder / "NORMAL/labels.csv", tmp_path / "archive/NORMAL/labels.csv", tmp_path / "current.CSV"):
            table = catalog.build(Archive(uri=str(uri), labels=str(labels)))
            assert table["image_id"].equals(listed["image_id"])
            assert left_out.counted(table) == {"excluded": 1}
    (folder / "NORMAL" / "labels.csv").rename(tmp_path / "labels.csv")
    (folder / "latest.csv").symlink_to(tmp_path / "labels.csv")
    table = catalog.build(Archive(uri=str(folder), labels=str(tmp_path / "labels.csv")))
    assert table["image_id"].equals(listed["image_id"])


def test_names_of_tables_may_be_in_capitals(folder: Path, tmp_path: Path) -> None:
    images = [png(value) for value in range(3)]
    (tmp_path / "IN").mkdir()
    pq.write_table(pa.table({"bytes": images}), tmp_path / "IN" / "FILMS.PARQUET")
    for uri in (tmp_path / "IN", tmp_path / "IN" / "FILMS.PARQUET"):
        table = catalog.find_duplicates(catalog.build(Archive(uri=str(uri), include=("films.p*", "FILMS.PARQUET"))))
        assert list(fetch.fetch_many(table["uri"].to_pylist())) == images
        assert table["sha256"].null_count == 0
    uris = catalog.build(Archive(uri=str(folder)))["uri"].to_pylist()
    pq.write_table(pa.table({"uri": uris}), folder / "LIST.Parquet")
    (folder / "LIST.CSV").write_text("\n".join(["uri", *uris]))
    for name in ("LIST.Parquet", "LIST.CSV"):
        assert catalog.build(Archive(uri=str(folder / name)))["uri"].to_pylist() == uris
    pq.write_table(pa.table({"uri": [f"{tmp_path}/IN/FILMS.PARQUET#bytes#0"]}), folder / "LIST.Parquet")
    with pytest.raises(ValueError, match="is a row of another table"):
        catalog.build(Archive(uri=str(folder / "LIST.Parquet"), roots=(str(tmp_path),)))


def test_images_in_parquet_keep_no_path(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": [png(1)]}), tmp_path / "DOE.parquet")
    assert catalog.publishable(catalog.build(Archive(uri=str(tmp_path))))["uri"].null_count == 1


def test_a_parquet_manifest_gives_the_ids_of_a_listing(folder: Path) -> None:
    listed = catalog.build(Archive(uri=str(folder)))
    manifest = folder / "manifest.parquet"
    for uris in (listed["uri"].to_pylist(), [f"file://{uri}" for uri in listed["uri"].to_pylist()] * 2):
        pq.write_table(pa.table({"uri": uris}), manifest)
        assert catalog.build(Archive(uri=str(manifest)))["image_id"].equals(listed["image_id"])


def test_a_link_of_a_manifest_stays_inside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(png(1))
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
    for suffix, tag in product(("csv", "parquet"), (file.version, f'"{file.version}"')):  # as boto3 answers
        manifest = tmp_path / f"m.{suffix}"
        columns = {"uri": [f"{s3}/a.png"], "size": [3], "etag": pa.array([tag], pa.large_string())}
        if suffix == "csv":
            csv.write_csv(pa.table(columns), manifest)
        else:
            pq.write_table(pa.table(columns), manifest)
        assert catalog.build(Archive(uri=str(manifest), roots=(s3,))).equals(catalog.build(Archive(uri=s3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx\n", "neither a column 'bytes'"),
        ("uri\nDOE,2\n", "no readable CSV"),
        ("", "no readable CSV"),
    ],
)
def test_wrong_manifests_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        catalog.build(Archive(uri=str(tmp_path / "m.csv")))
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"size": ["1024x768", "3"]},
        {"size": [[1024, 768], [3, 3]], "etag": [[1], [2]]},
        {"size": [1.5, 2.5], "etag": [7, 8]},
        {"size": [b"\xff", b"3"], "etag": [b"\xff", None]},
    ],
)
def test_a_size_that_is_none_is_not_taken(columns: dict[str, list[Any]], s3: str, tmp_path: Path) -> None:
    uris = [f"{s3}/a.png", f"{s3}/b.png"]
    pq.write_table(pa.table({"uri": uris, **columns}), tmp_path / "m.parquet")
    lines = "".join(f'{uri},"{size}"\n' for uri, size in zip(uris, columns["size"], strict=True))
    (tmp_path / "m.csv").write_text(f"uri,size\n{lines}")
    for name in ("m.parquet", "m.csv"):
        table = catalog.build(Archive(uri=str(tmp_path / name), roots=(s3,)))
        assert len(table) == table["bytes"].null_count == table["version"].null_count == 2


@pytest.mark.parametrize("rows", [4, 40])
def test_rows_of_parquet_are_read_some_at_a_time(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [bytes([i]) * 1000 for i in range(40)]
    pq.write_table(pa.table({"bytes": images}), tmp_path / "films.parquet", row_group_size=rows, compression="none")
    monkeypatch.setattr(fetch, "WINDOW_BYTES", 10_000)
    fetch.forget()
    uris = catalog.build(Archive(uri=str(tmp_path / "films.parquet")))["uri"].to_pylist()
    for uri, image in zip(uris, images, strict=True):
        assert fetch.fetch(uri) == image
        assert fetch._window._rows.nbytes <= 11_000
    assert list(fetch.fetch_many(uris[::-1])) == images[::-1]
    assert sorted([uris[11], uris[2], uris[10]], key=fetch.in_file) == [uris[2], uris[10], uris[11]]
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


def test_a_row_group_larger_than_memory_is_read_in_parts(tmp_path: Path) -> None:
    images = [os.urandom(100_000) for _ in range(400)]
    pq.write_table(pa.table({"bytes": images}), tmp_path / "films.parquet", write_batch_size=4, use_dictionary=False)
    assert pq.ParquetFile(tmp_path / "films.parquet").num_row_groups == 1
    fetch.forget()
    before = pa.total_allocated_bytes()
    for row in range(0, 400, 3):
        assert fetch.fetch(f"{tmp_path}/films.parquet#bytes#{row}") == images[row]
        assert pa.total_allocated_bytes() - before < 20_000_000  # of 40 MB
    fetch.forget()


def test_a_file_named_like_a_row_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet#b.png").write_bytes(b"1")
    (tmp_path / "c.png").write_bytes(b"2")
    table = catalog.build(Archive(uri=str(tmp_path)))
    assert list(fetch.fetch_many(table["uri"].to_pylist())) == [b"1", b"2"]


def test_a_long_manifest_may_hold_reports_of_several_lines(tmp_path: Path) -> None:
    rows = "".join(f'"a first line of the report\nand a second\n",s3://b/{i}.png\n' for i in range(40_000))
    (tmp_path / "films.csv").write_text(f"report,uri\n{rows}")
    assert len(catalog.build(Archive(uri=str(tmp_path / "films.csv"), roots=("s3://b",)))) == 40_000


def test_a_packed_archive_is_refused_before_every_film_of_it_fails(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as packed:
        packed.writestr("NORMAL/a.png", png(1))
    with pytest.raises(ValueError, match=r"archive\.uri: zip://::.*is a packed archive; unpack it"):
        catalog.build(Archive(uri=f"zip://::file://{tmp_path}/films.zip"))
