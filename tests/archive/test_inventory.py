"""S3 inventories: the same catalogue as a listing of the bucket."""

import gzip
import hashlib
import io
import json
from pathlib import Path
from urllib.parse import quote_plus

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from pneumobatch import storage
from pneumobatch.archive import catalog, fetch
from pneumobatch.config import Archive

FILMS = ["NORMAL/ü b+c%20.png", "PNEUMONIA/person1_virus_2.jpeg", "PNEUMONIA/person1_bacteria_2.jpeg", "a//b.dcm"]
TYPES = {
    "Bucket": "string", "Key": "string", "VersionId": "string", "IsLatest": "bool", "IsDeleteMarker": "bool",
    "Size": "int64", "ETag": "string",
}  # fmt: skip


def _rows(bucket: str, listed: list[dict]) -> list[dict]:
    """What an inventory of the bucket holds: its objects, older versions, delete markers, and what is not ours."""

    def row(key: str, **more: object) -> dict:
        known = {"Size": 7, "ETag": "e", "VersionId": "v", "IsLatest": True, "IsDeleteMarker": False}
        return {"Bucket": bucket, "Key": key, **known, **more}

    rows = [row(entry["Key"], Size=entry["Size"], ETag=entry["ETag"].strip('"')) for entry in listed]
    rows += [row(entry["Key"], ETag="older", IsLatest=False) for entry in listed]
    rows += [row("base/deleted.png", IsDeleteMarker=True, Size=None, ETag=None), row("base/folder/", Size=0)]
    return [*rows, row("base/_staging/x.png"), row("base-evil/x.png"), row("other/x.png")]


def _csv(rows: list[dict]) -> bytes:
    def cell(name: str, value: object) -> str:
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return f'"{quote_plus(text, safe="/") if name == "Key" else text}"'

    lines = [",".join(cell(name, row[name]) for name in TYPES) for row in rows]
    return gzip.compress(("\n".join(lines) + "\n").encode())


def _table(rows: list[dict]) -> pa.Table:
    snake = {"VersionId": "version_id", "IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker", "ETag": "e_tag"}
    schema = pa.schema([(snake.get(name, name.lower()), kind) for name, kind in TYPES.items()])
    return pa.table(
        {field.name: [row[name] for row in rows] for field, name in zip(schema, TYPES, strict=True)}, schema
    )


def _parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(rows), sink, row_group_size=3)
    return sink.getvalue()


def _orc(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    orc.write_table(_table(rows), sink)
    return sink.getvalue()


FORMS = {"CSV": _csv, "Parquet": _parquet, "ORC": _orc}


def _manifest(form: str, keys: dict[str, bytes]) -> dict:
    files = [{"key": k, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()} for k, data in keys.items()]
    schema = ", ".join(TYPES) if form == "CSV" else "…"
    return {"sourceBucket": "x", "fileFormat": form, "fileSchema": schema, "files": files}


@pytest.fixture
def bucket(s3: str) -> str:
    """A bucket of films, below s3://BUCKET/base."""
    client = boto3.session.Session().client("s3")
    name = s3[5:].partition("/")[0]
    for number, path in enumerate(FILMS):
        client.put_object(Bucket=name, Key=f"base/{path}", Body=b"x" * number)
    return name


def _listed(bucket: str) -> list[dict]:
    return boto3.session.Session().client("s3").list_objects_v2(Bucket=bucket, Prefix="base/")["Contents"]


@pytest.mark.parametrize("form", list(FORMS))
def test_an_inventory_is_the_listing(form: str, s3: str, bucket: str) -> None:
    rows = _rows(bucket, _listed(bucket))
    parts = {f"inv/{bucket}/all/data/{number}": FORMS[form](rows[number::2]) for number in (0, 1)}
    for key, data in parts.items():
        storage.write_bytes(f"s3://{bucket}/{key}", data)
    for night in ("2026-11-23T01-00Z", "2026-11-24T01-00Z"):
        content = _manifest(form, parts if "24" in night else {"gone": b""})
        storage.write_bytes(f"s3://{bucket}/inv/{bucket}/all/{night}/manifest.json", json.dumps(content).encode())
    listing = catalog.build(Archive(uri=s3))
    for name in ("2026-11-24T01-00Z", "*"):
        uri = f"s3://{bucket}/inv/{bucket}/all/{name}/manifest.json"
        assert catalog.build(Archive(uri=uri, roots=(s3,))).equals(listing)
    assert len(listing) == len(FILMS)
    assert [len(data) for data in fetch.fetch_many(listing["uri"].to_pylist())] == listing["bytes"].to_pylist()
    with pytest.raises(ValueError, match=r"archive.roots is empty.*name the prefixes"):
        catalog.build(Archive(uri=uri))


def _local(folder: Path, form: str, rows: list[dict], **more: object) -> str:
    data = FORMS[form](rows)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "part").write_bytes(data)
    (folder / "day").mkdir()
    content = _manifest(form, {"inv/data/part": data}) | more
    (folder / "day" / "manifest.json").write_text(json.dumps(content))
    return str(folder / "day" / "manifest.json")


@pytest.mark.parametrize("form", list(FORMS))
def test_a_copied_inventory(form: str, tmp_path: Path) -> None:
    rows = _rows("hospital", [{"Key": f"base/{path}", "Size": 1, "ETag": '"e"'} for path in FILMS])
    uri = _local(tmp_path, form, rows)
    table = catalog.build(Archive(uri=uri, roots=("s3://hospital/base",)))
    assert sorted(table["uri"].to_pylist()) == sorted(f"s3://hospital/base/{path}" for path in FILMS)
    assert table["version"].null_count == 0
    with pytest.raises(ValueError, match="holds no file"):
        catalog.build(Archive(uri=uri, roots=("s3://elsewhere",)))


def test_a_key_that_leads_out_of_its_root_is_refused(tmp_path: Path) -> None:
    rows = _rows("hospital", [{"Key": "base/../DOE.dcm", "Size": 1, "ETag": '"e"'}])
    with pytest.raises(ValueError, match="outside the archive's folder") as caught:
        catalog.build(Archive(uri=_local(tmp_path, "CSV", rows), roots=("s3://hospital/base",)))
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"fileFormat": "Avro"}, "CSV, Parquet and ORC are read"),
        ({"files": [{"key": "inv/data/gone", "MD5checksum": "0"}]}, "a data file .* is missing"),
        ({"files": [{"key": "inv/data/..", "MD5checksum": "0"}]}, "a data file .* is missing"),
        ({"files": [{"key": "inv/data/part", "MD5checksum": "0"}]}, r"damaged \(MD5\)"),
        ({"files": "none"}, "not the manifest of an S3 inventory"),
        ({"files": [{"key": "inv/data/part"}], "fileFormat": "ORC"}, "cannot be read as ORC"),
        ({"files": [{"key": "inv/data/part"}], "fileFormat": "Parquet"}, "cannot be read as PARQUET"),
        ({"fileSchema": "Bucket, Size"}, "cannot be read as CSV"),
    ],
)
def test_a_damaged_inventory_is_named(more: dict, message: str, tmp_path: Path) -> None:
    uri = _local(tmp_path, "CSV", _rows("hospital", [{"Key": "base/DOE.dcm", "Size": 1, "ETag": "e"}]), **more)
    with pytest.raises(ValueError, match=message) as caught:
        catalog.build(Archive(uri=uri, roots=("s3://hospital/base",)))
    assert "DOE" not in str(caught.value)


def test_a_missing_inventory_is_named(tmp_path: Path) -> None:
    for uri, message in (
        (tmp_path / "manifest.json", "does not exist"),
        (tmp_path / "*" / "manifest.json", "no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            catalog.build(Archive(uri=str(uri), roots=("s3://hospital",)))
