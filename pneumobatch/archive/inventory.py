"""S3 Inventory: a bucket's listing that the store wrote itself, as `manifest.json` and files of CSV, ORC or Parquet.

Format: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, orc

from pneumobatch import storage
from pneumobatch.archive.roots import Roots

NAME = "manifest.json"

_COLUMNS = {"bucket", "key", "islatest", "isdeletemarker", "size", "etag"}
"""Those that are used, written as Key, key, IsLatest, is_latest, …"""
_BLOCK = 4 << 20
"""Bytes of CSV that are parsed at a time."""


def read(manifest: str, roots: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Reads an inventory: the objects that are below one of the roots, and not older versions or deleted ones.

    Its files are looked for beside the manifest alone (`../data/NAME`, as the store lays them out; `data/NAME` or
    `NAME`, as copies have them), so that a manifest cannot lead to anything else.

    Args:
        manifest: URI of its `manifest.json`.
        roots: archive.roots.

    Returns:
        Batches of `path` (below the root that holds it), `uri`, `size` (bytes) and `version` (the entity tag).

    Raises:
        ValueError: It is no inventory, is damaged, or has no roots.
    """
    if not roots:
        raise ValueError(
            f"archive.roots is missing: {manifest} is an S3 Inventory, which lists a whole bucket; give the prefix of "
            'the images, as in roots = ["s3://BUCKET/PREFIX"]'
        )
    bucket, kind, names, files = _parse(manifest)
    allowed = Roots(roots, manifest)
    if not any(f"{root}/".startswith(f"s3://{bucket}/") for root in allowed.uris):
        raise ValueError(f"archive.roots: no root lies in the bucket that {manifest} lists (its sourceBucket)")
    for file in files:
        for batch in _batches(kind, names, _content(manifest, file), manifest):
            yield from _objects(batch, bucket, kind == "CSV", allowed)


def latest(uri: str) -> str:
    """Finds the manifest that a `*` stands for: of the folders named by date, the last that has one.

    Raises:
        ValueError: None has.
    """
    above, star, _ = uri.rpartition(f"/*/{NAME}")
    if not star:
        return uri
    pattern = rf"^[^/]+/{re.escape(NAME)}$"
    found = [
        pc.max(batch["path"].filter(pc.match_substring_regex(batch["path"], pattern))) for batch in storage.scan(above)
    ]
    last = max((path.as_py() for path in found if path.is_valid), default=None)
    if last is None:
        raise ValueError(f"archive.uri: no folder below {above} holds the {NAME} of an S3 Inventory")
    return storage.join(above, last)


def _parse(manifest: str) -> tuple[str, str, list[str], list[dict[str, Any]]]:
    try:
        content = json.loads(storage.read_bytes(manifest))
        bucket, kind, files = str(content["sourceBucket"]), str(content["fileFormat"]), list(content["files"])
        bucket = bucket.removeprefix("arn:aws:s3:::")
        names = [_name(part) for part in str(content["fileSchema"]).split(",")]
        well = all(isinstance(file["key"], str) and isinstance(file["MD5checksum"], str) for file in files)
    except (KeyError, TypeError, ValueError):
        well, bucket, kind, names, files = False, "", "", [], []
    if not well or not bucket or "/" in bucket or kind not in {"CSV", "ORC", "Parquet"}:
        raise ValueError(
            f"archive.uri: {manifest} is no manifest of an S3 Inventory (sourceBucket, fileFormat CSV, ORC or Parquet, "
            "fileSchema, files with key and MD5checksum)"
        )
    return bucket, kind, names, files


def _name(text: str) -> str:
    """IsLatest, is_latest → islatest; ETag, e_tag → etag."""
    return re.sub(r"[\s_]", "", text).lower()


def _content(manifest: str, file: dict[str, Any]) -> bytes:
    """One of the inventory's files, whole, if it is as the manifest says."""
    folder, name = manifest.rpartition("/")[0] or ".", str(file["key"]).rpartition("/")[2]
    beside = [folder, storage.join(folder, "data")]
    if above := folder.rpartition("/")[0]:
        beside.insert(0, storage.join(above, "data"))
    for place in beside if name not in {"", ".", ".."} else ():
        try:
            data = storage.read_bytes(storage.join(place, name))
        except FileNotFoundError:
            continue
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == file["MD5checksum"].lower():
            return data
        raise ValueError(f"archive.uri: a file of {manifest} is damaged (its MD5 differs); deliver the inventory again")
    raise ValueError(f"archive.uri: a file of {manifest} is missing; it belongs into ../data beside the manifest")


def _batches(kind: str, names: list[str], data: bytes, manifest: str) -> Iterator[pa.RecordBatch]:
    """One file's rows, those columns that are used, with their names as `_name` makes them."""
    source: Any = pa.BufferReader(data)
    try:
        if kind == "CSV":
            if data[:2] == b"\x1f\x8b":
                source = pa.CompressedInputStream(source, "gzip")
            used = [name for name in names if name in _COLUMNS]
            reader = csv.open_csv(
                source,
                read_options=csv.ReadOptions(column_names=names, block_size=_BLOCK),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), include_columns=used, strings_can_be_null=False
                ),
            )
            yield from reader
        elif kind == "Parquet":
            with pq.ParquetFile(source) as file:
                used = [name for name in file.schema_arrow.names if _name(name) in _COLUMNS]
                for batch in file.iter_batches(columns=used):
                    yield batch.rename_columns([_name(name) for name in batch.schema.names])
        else:
            stripes = orc.ORCFile(source)
            used = [name for name in stripes.schema.names if _name(name) in _COLUMNS]
            for number in range(stripes.nstripes):
                batch = stripes.read_stripe(number, used)
                yield batch.rename_columns([_name(name) for name in batch.schema.names])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError):
        raise ValueError(
            f"archive.uri: a file of {manifest} is not readable as its fileFormat and fileSchema"
        ) from None


def _objects(batch: pa.RecordBatch, bucket: str, encoded: bool, allowed: Roots) -> Iterator[pa.RecordBatch]:
    rows = {name: batch.column(name) for name in batch.schema.names}
    if not {"key", "size"} <= rows.keys():
        raise ValueError(
            f"archive.uri: {allowed.manifest} lacks Key or Size; configure the inventory with Size and ETag"
        )
    if "bucket" in rows and not pc.all(pc.equal(rows["bucket"].cast(pa.string()), bucket)).as_py():
        raise ValueError(f"archive.uri: an entry of {allowed.manifest} is of another bucket than its sourceBucket")
    keep = pc.invert(pc.ends_with(rows["key"], "/"))  # folder markers
    for name, wanted in (("islatest", "true"), ("isdeletemarker", "false")):
        if name in rows:
            flag = pc.utf8_lower(rows[name].cast(pa.string()))
            keep = pc.and_(keep, pc.equal(pc.fill_null(pc.if_else(pc.equal(flag, ""), wanted, flag), wanted), wanted))
    batch = batch.filter(keep)
    keys = batch.column("key").cast(pa.string())
    if encoded and pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        try:
            keys = pa.array((unquote_plus(key, errors="strict") for key in keys.to_pylist()), pa.string())
        except UnicodeDecodeError:
            raise ValueError(f"archive.uri: a key of {allowed.manifest} is not UTF-8") from None
    uris = pc.binary_join_element_wise(f"s3://{bucket}", keys, "/")
    try:
        sizes = pc.cast(batch.column("size"), pa.int64())
    except pa.ArrowInvalid:
        raise ValueError(f"archive.uri: a Size of {allowed.manifest} is no number") from None
    tags = batch.column("etag").cast(pa.string()) if "etag" in batch.schema.names else pa.nulls(len(batch), pa.string())
    columns = {"path": allowed.below(uris), "uri": uris, "size": sizes, "version": tags}
    found = pa.record_batch(columns)
    found = found.filter(pc.is_valid(found["path"]))
    if len(found):
        yield found
