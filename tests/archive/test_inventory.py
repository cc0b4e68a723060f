"""S3 Inventory as an archive: every format, what is left out, what is refused."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from pneumobatch import storage
from pneumobatch.archive import catalog, fetch, left_out
from pneumobatch.config import Archive

Row = tuple[str, bool, bool, int | None, str | None]
_CSV = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"


def write_inventory(folder: str, kind: str, rows: Sequence[Row], *, bucket: str = "films", **changed: Any) -> str:
    """Writes an inventory as the store lays it out; returns its manifest."""
    columns: dict[str, Any] = {
        "bucket": [bucket] * len(rows),
        "key": [row[0] for row in rows],
        "version_id": ["v"] * len(rows),
        "is_latest": [row[1] for row in rows],
        "is_delete_marker": [row[2] for row in rows],
        "size": pa.array([row[3] for row in rows], pa.int64()),
        "last_modified_date": ["2025-01-01T00:00:00.000Z"] * len(rows),
        "e_tag": [row[4] for row in rows],
    }
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    if kind == "CSV":
        encode = quote_plus if len(rows) % 2 else quote
        lines = [
            f'"{bucket}","{encode(key, safe="/")}","v","{str(latest).lower()}","{str(marker).lower()}",'
            f'"{"" if size is None else size}","2025-01-01T00:00:00.000Z","{tag or ""}"'
            for key, latest, marker, size, tag in rows
        ]
        data, name, schema = gzip.compress("\n".join(lines).encode()), "1.csv.gz", _CSV
    elif kind == "Parquet":
        pq.write_table(table, sink)
        data, name, schema = (
            sink.getvalue().to_pybytes(),
            "1.parquet",
            "message s3.inventory { required binary bucket; }",
        )
    else:
        orc.write_table(table, sink)
        data, name, schema = sink.getvalue().to_pybytes(), "1.orc", "struct<bucket:string,key:string>"
    storage.write_bytes(storage.join(folder, "data", name), data)
    file = {"key": f"x/films/all/data/{name}", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}
    manifest = {
        "sourceBucket": bucket,
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [file],
        "version": "2016-11-30",
    }
    uri = storage.join(folder, "2025-01-01T01-00Z", "manifest.json")
    storage.write_bytes(uri, json.dumps(manifest | changed).encode())
    return uri


NAMES = ["NORMAL/a b+c.png", "NORMAL/ü%41.png", "PNEUMONIA/person1_virus_2.jpeg", "x.dcm"]


@pytest.mark.parametrize("kind", ["CSV", "Parquet", "ORC"])
def test_it_gives_what_a_listing_gives(kind: str, s3: str, tmp_path: Path) -> None:
    bucket = s3.removeprefix("s3://").split("/")[0]
    root = f"s3://{bucket}/films"
    for name in (*NAMES, "_hidden/y.png", "folder/"):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"films/{name}", Body=name.encode())
    boto3.client("s3").put_object(Bucket=bucket, Key="films-evil/z.png", Body=b"")
    pages = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    rows: list[Row] = [(entry["Key"], True, False, entry["Size"], entry["ETag"].strip('"')) for entry in pages]
    rows += [("films/x.dcm", False, False, 1, "0"), ("films/gone.png", True, True, None, None)]
    manifest = write_inventory(str(tmp_path), kind, rows, bucket=bucket)
    listed = catalog.build(Archive(uri=root))
    assert len(listed) == len(NAMES)
    assert left_out.counted(listed) == {"hidden": 1}
    assert catalog.build(Archive(uri=manifest, roots=(root + "/",))).equals(listed, check_metadata=True)
    for name in ("a", "b"):  # the same, delivered to the store; once more with a key that is named twice
        again = write_inventory(
            f"s3://{bucket}/inventory/{name}", kind, rows * (1 if name == "a" else 2), bucket=bucket
        )
        assert catalog.build(Archive(uri=again, roots=(root,))).equals(listed)
    chosen = catalog.build(Archive(uri=manifest, roots=(root,), include=("NORMAL/*",), exclude=("*%41*",)))
    assert chosen["label"].to_pylist() == [0]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_without_a_tag_an_object_has_no_version(kind: str, tmp_path: Path) -> None:
    rows: list[Row] = [("films/a.png", True, False, 12, None), ("films/b.png", True, False, 12, "e")]
    table = catalog.build(Archive(uri=write_inventory(str(tmp_path), kind, rows), roots=("s3://films",)))
    assert table["bytes"].to_pylist() == [12, 12]
    assert [version is None for version in table["version"].to_pylist()] == [True, False]


def test_what_is_refused(tmp_path: Path) -> None:
    rows: list[Row] = [("films/a.png", True, False, 1, "0")]
    good = write_inventory(str(tmp_path / "good"), "CSV", rows)
    assert len(catalog.build(Archive(uri=good, roots=("s3://films/films",)))) == 1
    for roots, message in (((), "archive.roots is missing"), (("s3://films-evil",), "no root lies in the bucket")):
        with pytest.raises(ValueError, match=message):
            catalog.build(Archive(uri=good, roots=roots))
    (tmp_path / "good/data/1.csv.gz").write_bytes(b"changed")
    with pytest.raises(ValueError, match="MD5 differs"):
        catalog.build(Archive(uri=good, roots=("s3://films",)))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"fileFormat": "TSV"}, "no manifest of an S3 Inventory"),
        ({"files": "x"}, "no manifest of an S3 Inventory"),
        ({"sourceBucket": "a/b"}, "no manifest of an S3 Inventory"),
        ({"sourceBucket": "other"}, "of another bucket"),
        ({"fileSchema": "Bucket, Key"}, "not readable"),
        ({"files": [{"key": "../../etc/passwd", "size": 1, "MD5checksum": ""}]}, "is missing"),
        ({"files": [{"key": "x/..", "size": 1, "MD5checksum": ""}]}, "is missing"),
    ]
    for number, (change, message) in enumerate(changes):
        manifest = write_inventory(str(tmp_path / str(number)), "CSV", rows, **change)
        with pytest.raises(ValueError, match=message):
            catalog.build(Archive(uri=manifest, roots=("s3://films", "s3://other")))


def test_odd_keys_are_what_a_listing_makes_of_them(s3: str, tmp_path: Path) -> None:
    """Below the root as anywhere in the bucket: what climbs is counted as hidden, the others are films of that name."""
    client, bucket = boto3.client("s3"), s3.removeprefix("s3://").split("/")[0]
    odd = ("../x.png", "./x.png", "a/../../x.png", "%2e%2e/x.png", "part.parquet#1", "t.parquet#bytes#0")
    for key in [f"{folder}/{name}" for folder in ("films", "backup") for name in (*odd, "film.png")]:
        entry = {"Bucket": bucket, "Key": key, "Body": key.encode()}
        client.put_object(**entry)
    pages = client.list_objects_v2(Bucket=bucket)["Contents"]
    assert len(pages) == 14
    rows: list[Row] = [(entry["Key"], True, False, entry["Size"], entry["ETag"].strip('"')) for entry in pages]
    manifest = write_inventory(str(tmp_path), "Parquet", rows, bucket=bucket)
    listed = catalog.build(Archive(uri=f"s3://{bucket}/films"))
    read = catalog.build(Archive(uri=manifest, roots=(f"s3://{bucket}/films",)))
    assert read.equals(listed, check_metadata=True)
    assert (len(read), left_out.counted(read)) == (4, {"hidden": 3})
    assert b"films/%2e%2e/x.png" in fetch.fetch_many(read["uri"].to_pylist())


def test_two_roots_with_the_same_path_are_refused(tmp_path: Path) -> None:
    rows: list[Row] = [("a/1.png", True, False, 1, "0"), ("b/1.png", True, False, 1, "0")]
    manifest = write_inventory(str(tmp_path), "CSV", rows)
    with pytest.raises(ValueError, match="hold the same path"):
        catalog.build(Archive(uri=manifest, roots=("s3://films/a", "s3://films/b")))
    assert len(catalog.build(Archive(uri=manifest, roots=("s3://films",)))) == 2


def test_a_star_takes_the_latest(tmp_path: Path) -> None:
    rows: list[Row] = [("base/a.png", True, False, 1, "e")]
    uri = write_inventory(str(tmp_path), "CSV", rows)
    for night in ("2024-12-31T01-00Z", "2024-01-31T01-00Z/deeper"):
        storage.write_bytes(str(tmp_path / night / "manifest.json"), b"not this one")
    (tmp_path / "2026-01-01T01-00Z").mkdir()
    roots = ("s3://films/base",)
    star = str(tmp_path / "*" / "manifest.json")
    assert catalog.build(Archive(uri=star, roots=roots)).equals(catalog.build(Archive(uri=uri, roots=roots)))
    with pytest.raises(ValueError, match="no folder below .* holds the manifest.json"):
        catalog.build(Archive(uri=str(tmp_path / "gone" / "*" / "manifest.json"), roots=roots))
