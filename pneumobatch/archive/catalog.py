"""Folder, object prefix or Parquet → one row an image, with a stable id and what is known about it."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pneumobatch import storage, tables
from pneumobatch.archive import fetch
from pneumobatch.archive.labels import LabelTable, from_path
from pneumobatch.config import Archive
from pneumobatch.identity import SITE_KEY, keyed_hash

_FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "dcm": "dicom", "dicom": "dicom"}


class _Entry(NamedTuple):
    path: str  # below the archive
    uri: str  # where `fetch` finds it
    size: int | None  # bytes


def build(config: Archive) -> pa.Table:
    """Lists an archive: one row an image, by ascending path; see `tables.catalog_schema`.

    `image_id` depends on the path below the archive alone, so it stays when the archive moves. `uri` and `patient` are
    for use inside the process: `publishable` takes out of them what must not be written.

    Raises:
        ValueError: The archive is not named, does not exist, holds no image, or its labels cannot be read.
    """
    if config.uri is None:
        raise ValueError("archive.uri is missing: give the folder, prefix or Parquet file of the images")
    entries = sorted(
        entry
        for entry in _entries(config, config.uri)
        if any(fnmatch(entry.path, pattern) for pattern in config.include)
        and not any(fnmatch(entry.path, pattern) for pattern in config.exclude)
    )
    if not entries:
        raise ValueError(f"archive.uri: {config.uri} holds no file that archive.include and archive.exclude leave")
    labels = None if config.labels is None else LabelTable(config)
    ids = [keyed_hash(entry.path) for entry in entries]
    known = [from_path(entry.path, config.patients) for entry in entries]
    if labels is not None:
        found = [labels.find(entry.path, image_id) for entry, image_id in zip(entries, ids, strict=True)]
        if not any(found):
            raise ValueError(
                f"archive.labels: {labels.uri}, column {labels.key}: no row fits an image of {config.uri}; it "
                "must hold the path below the archive, the file name, or the image_id"
            )
        # The table decides on the label; a patient known only by the file name is still that patient.
        known = [
            path._replace(label=None) if row is None else row._replace(
                patient=path.patient if row.patient is None or config.patients == "kermany" else row.patient,
                subgroups={**path.subgroups, **row.subgroups},
            )
            for path, row in zip(known, found, strict=True)
        ]  # fmt: skip
    subgroups = sorted({name for row in known for name in row.subgroups if name in config.subgroups})
    columns = {
        "image_id": ids,
        "uri": [entry.uri for entry in entries],
        "version": [None] * len(entries),
        "format": [_FORMATS.get(entry.path.rsplit(".", 1)[-1].lower()) for entry in entries],
        "bytes": [entry.size for entry in entries],
        "sha256": [None] * len(entries),
        "duplicate_of": [None] * len(entries),
        "label": [row.label for row in known],
        "patient": [row.patient for row in known],
        **{name: [row.subgroups.get(name) for row in known] for name in subgroups},
    }
    return pa.table(columns, schema=tables.catalog_schema(subgroups))


def _entries(config: Archive, uri: str) -> Iterator[_Entry]:
    if storage.is_file(uri):
        if not uri.endswith(".parquet"):
            raise ValueError(f"archive.uri: {uri} is a file; give a folder or prefix of images, or a Parquet file")
        yield from _parquet_entries(config, uri.rpartition("/")[0] or ".", uri.rpartition("/")[2])
        return
    if not storage.is_folder(uri):
        raise ValueError(f"archive.uri: {uri} does not exist")
    files = list(storage.list_files(uri))
    if files and all(file.path.endswith(".parquet") for file in files):
        for file in files:
            yield from _parquet_entries(config, uri, file.path)
        return
    labels = config.labels and storage.filesystem(config.labels)[1]
    for file in files:
        where = storage.join(uri, file.path)
        if storage.filesystem(where)[1] != labels:
            yield _Entry(file.path, where, file.size)


def _parquet_entries(config: Archive, folder: str, path: str) -> Iterator[_Entry]:
    uri = storage.join(folder, path)
    where, inner = storage.filesystem(uri)
    try:
        with pq.ParquetFile(inner, filesystem=where) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            size = where.get_file_info(inner).size
            column = next((name for name in (config.bytes_column, config.uri_column) if name in names), None)
            kind = None if column is None else file.schema_arrow.field(column).type
            paths = file.read([column])[column].to_pylist() if column and column != config.bytes_column else []
    except FileNotFoundError:
        raise ValueError(f"archive.uri: {uri} does not exist") from None
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, pa.ArrowException):
        raise ValueError(
            f"archive.uri: {uri} cannot be read as a Parquet file: it is damaged, of another kind, or its store failed"
        ) from None
    if column is None:
        raise ValueError(
            f"archive.uri: {uri} has neither a column {config.bytes_column!r} (archive.bytes_column) nor "
            f"{config.uri_column!r} (archive.uri_column); it has {', '.join(names)}"
        )
    if column == config.bytes_column:
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
            raise ValueError(f"archive.uri: {uri}: column {column!r} (archive.bytes_column) holds {kind}, not bytes")
        if not 0 <= rows <= size:  # of no byte at all is no image
            raise ValueError(f"archive.uri: {uri} is damaged: it claims {rows} images, and is not as many bytes long")
        for row in range(rows):
            yield _Entry(f"{path}#{row:09d}", f"{uri}#{column}#{row}", None)
        return
    for value in paths:
        if not isinstance(value, str):
            raise ValueError(f"archive.uri: {uri}: column {column!r} (archive.uri_column) holds what is no path")
        yield _Entry(value, fetch.below_roots(value, folder, config.roots, uri), None)


def publishable(catalog: pa.Table, *, keep_uri: bool | None = None) -> pa.Table:
    """Takes out of a catalogue what must not be written: DICOM paths and unhashed patients.

    Args:
        catalog: From `build`.
        keep_uri: Keep the source paths; None: unless a file may be DICOM by its name (.dcm, .dicom, no extension).

    Returns:
        The same rows. A patient known from Kermany's public file names stays; one from a label table becomes a hash
        under the site's key, or NULL where the environment has none (an unkeyed hash could be looked up).
    """
    if keep_uri is None:
        named = zip(catalog["uri"].to_pylist(), catalog["format"].to_pylist(), strict=True)
        keep_uri = all(kind != "dicom" and "." in uri.rsplit("/", 1)[-1] for uri, kind in named)
    key = os.environ.get(SITE_KEY)
    patients = [
        name if name is None or name.startswith("kermany:") else keyed_hash(name) if key else None
        for name in catalog["patient"].to_pylist()
    ]
    uris = catalog["uri"].to_pylist() if keep_uri else [None] * len(catalog)
    for name, values in (("patient", patients), ("uri", uris)):
        index = catalog.schema.get_field_index(name)
        catalog = catalog.set_column(index, catalog.schema.field(index), pa.array(values, pa.string()))
    return catalog


def find_duplicates(catalog: pa.Table) -> pa.Table:
    """Fills `sha256` and `duplicate_of` by reading those files whose size another file shares.

    Of byte-identical files the first by path is the original. Unreadable files are left for decoding to name.
    """
    sizes = catalog["bytes"].to_pylist()
    sharing: dict[int | None, int] = defaultdict(int)
    for size in sizes:
        sharing[size] += 1
    suspects = [i for i, size in enumerate(sizes) if size is None or (size and sharing[size] > 1)]
    uris = catalog["uri"].to_pylist()

    def digest(index: int) -> str | None:
        data = fetch.fetch(uris[index])
        return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None

    with ThreadPoolExecutor(16) as pool:
        digests = dict(zip(suspects, pool.map(digest, suspects), strict=True))
    ids = catalog["image_id"].to_pylist()
    originals: dict[str, str] = {}
    sha256 = [digests.get(i) for i in range(len(ids))]
    duplicate_of = [
        None if value is None or originals.setdefault(value, image_id) == image_id else originals[value]
        for image_id, value in zip(ids, sha256, strict=True)
    ]
    for name, values in (("sha256", sha256), ("duplicate_of", duplicate_of)):
        index = catalog.schema.get_field_index(name)
        catalog = catalog.set_column(index, catalog.schema.field(index), pa.array(values, pa.string()))
    return catalog
