"""S3 Inventory: the daily list of a bucket's objects that the store writes by itself, as an archive.

`manifest.json` names the data files (CSV, Parquet or ORC) that lie in its own bucket. Where a bucket holds more objects
than one wants to list every night, this is how it is read; a `*` for the dated folder takes the latest.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, orc

from pneumobatch import storage
from pneumobatch.archive.roots import Roots
from pneumobatch.config import Archive

_WANTED = ("bucket", "key", "islatest", "isdeletemarker", "size", "etag", "lastmodifieddate")


def entries(config: Archive, uri: str) -> Iterator[pa.RecordBatch]:
    """Lists the objects of an inventory that lie below archive.roots, as `sources.SCHEMA`.

    Older versions, delete markers, folder markers and hidden keys are left out, as a listing leaves them out.

    Raises:
        ValueError: archive.roots is empty, the inventory is missing or damaged, or a key leads out of its root.
    """
    if not config.roots:
        raise ValueError(
            f"archive.roots is empty, and {uri} is an inventory: it lists whole buckets; name the prefixes that belong "
            'to the archive, such as archive.roots = ["s3://bucket/films"]'
        )
    uri = _latest(uri)
    try:
        manifest = json.loads(storage.read_bytes(uri))
        files = [(str(file["key"]), file.get("MD5checksum")) for file in manifest["files"]]
        form, schema = str(manifest["fileFormat"]).upper(), str(manifest.get("fileSchema", ""))
    except FileNotFoundError:
        raise ValueError(f"archive.uri: {uri} does not exist") from None
    except (ValueError, TypeError, LookupError, AttributeError):
        raise ValueError(f"archive.uri: {uri} is not the manifest of an S3 inventory") from None
    readers = {"CSV": lambda data: _csv(data, schema), "PARQUET": _parquet, "ORC": _orc}
    if form not in readers:
        raise ValueError(f"archive.uri: {uri} has fileFormat {form!r}; CSV, Parquet and ORC are read")
    roots = Roots(config.roots, uri.rpartition("/")[0], uri)
    for key, checksum in files:
        data = _data(uri, key)
        if checksum and hashlib.md5(data, usedforsecurity=False).hexdigest() != checksum:
            raise ValueError(f"archive.uri: a data file of {uri} is damaged (MD5); wait for the next inventory")
        try:
            for batch in readers[form](data):
                yield _places(_named(batch), roots)
        except (pa.ArrowException, OSError, LookupError, TypeError, UnicodeDecodeError):
            raise ValueError(f"archive.uri: a data file of {uri} cannot be read as {form} of its fileSchema") from None


def _latest(uri: str) -> str:
    """Finds the latest of the dated folders that a `*` stands for."""
    above, star, _ = uri.rpartition("/*/")
    if not star:
        return uri
    found = [
        match
        for batch in storage.scan(above)
        for match in batch["path"]
        .filter(pc.match_substring_regex(batch["path"], r"^[^/]+/manifest\.json$"))
        .to_pylist()
    ]
    if not found:
        raise ValueError(f"archive.uri: no folder below {above} holds the manifest.json of an inventory")
    return storage.join(above, max(found))


def _data(uri: str, key: str) -> bytes:
    """Reads a data file: of the manifest's bucket, or, of a copy elsewhere, from the folder `data` beside its own."""
    try:
        if uri.startswith("s3://"):
            return storage.read_bytes(storage.join("s3://" + uri[5:].partition("/")[0], key))
        beside = uri.rsplit("/", 2)[0]
        return storage.read_bytes(storage.join(beside, "data", key.rpartition("/")[2]))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"archive.uri: a data file of {uri} is missing") from None


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def _csv(data: bytes, schema: str) -> Iterator[pa.RecordBatch]:
    """Reads gzipped CSV without a header; its keys are URL-encoded."""
    names = [_plain(name) for name in schema.split(",")]
    wanted = [name for name in _WANTED if name in names]
    reader = csv.open_csv(
        pa.CompressedInputStream(pa.BufferReader(data), "gzip") if data[:2] == b"\x1f\x8b" else pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=names, block_size=8 << 20),
        convert_options=csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
    )
    for batch in reader:
        keys = pa.array([unquote_plus(key, errors="strict") for key in batch["key"].to_pylist()], pa.string())
        yield batch.set_column(batch.schema.get_field_index("key"), "key", keys)


def _parquet(data: bytes) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        yield from file.iter_batches(1 << 16, columns=_columns(file.schema_arrow.names))


def _orc(data: bytes) -> Iterator[pa.RecordBatch]:
    file = orc.ORCFile(pa.BufferReader(data))
    for stripe in range(file.nstripes):
        yield from pa.Table.from_batches([file.read_stripe(stripe, _columns(file.schema.names))]).to_batches(1 << 16)


def _columns(names: Sequence[str]) -> list[str]:
    return [name for name in names if _plain(name) in _WANTED]


def _named(batch: pa.RecordBatch) -> dict[str, Any]:
    return {_plain(name): batch[name] for name in batch.schema.names}


def _places(columns: dict[str, Any], roots: Roots) -> pa.RecordBatch:
    """Turns an inventory's rows into places below the archive's roots."""
    keys = columns["key"].cast(pa.string())
    uris = pc.binary_join_element_wise("s3:/", columns["bucket"].cast(pa.string()), keys, "/")
    wanted = pc.and_(pc.invert(pc.ends_with(keys, "/")), roots.hold(uris))
    for name, value in (("islatest", "true"), ("isdeletemarker", "false")):
        if name in columns:
            stated = pc.utf8_lower(columns[name].cast(pa.string()))
            wanted = pc.and_(wanted, pc.fill_null(pc.equal(stated, value), True))
    uris = uris.filter(wanted)
    nothing = pa.nulls(len(keys), pa.string())
    sizes = columns.get("size", nothing).filter(wanted).cast(pa.int64())
    versions = columns.get("etag", columns.get("lastmodifieddate", nothing)).filter(wanted).cast(pa.string())
    paths = pa.array([roots.locate(uri).path for uri in uris.to_pylist()], pa.string())
    rows = pa.record_batch([paths, uris, sizes, pc.ascii_trim(versions, '"')], names=["path", "uri", "size", "version"])
    return rows.filter(pc.invert(pc.match_substring_regex(paths, r"(^|/)[._]")))
