"""The only package that opens, lists or commits paths and URIs. One module for each kind of place:

- `local`: folders, by the operating system;
- `s3`: s3://; obstore moves bytes, boto3 answers about keys;
- `other`: any other fsspec URL, by fsspec.

pyarrow's filesystems are not used to read or write here; `filesystem` gives them to libraries that insist (Ray Train).
Credentials and endpoints come from the environment's standard chain, never from a job. Stores are asked again, for
about three minutes, after what may pass (`persistence`).
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, fs

from pneumobatch.storage import local, other, s3
from pneumobatch.storage.listing import File, hidden
from pneumobatch.storage.persistence import TooLargeError
from pneumobatch.storage.s3_clients import connection

__all__ = [
    "LINES", "File", "TooLargeError", "create_bytes", "delete", "encode", "filesystem", "hidden", "is_file",
    "is_folder", "join", "list_files", "open_file", "read_bytes", "read_cells", "read_schema", "read_table", "scan",
    "stat", "write_bytes", "write_table",
]  # fmt: skip


def _place(uri: str) -> tuple[ModuleType, str]:
    """Returns the module of a path's or URI's place, and what that module calls the path."""
    protocol, separator, path = uri.partition("://")
    if not separator:
        return local, str(Path(uri).absolute())
    if protocol == "file":
        return local, path
    return (s3, path.rstrip("/")) if protocol == "s3" else (other, uri)


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns pyarrow's filesystem for a local path or URI, and the path within it.

    Raises:
        ValueError: The protocol is unknown or its package is not installed.
    """
    place, path = _place(uri)
    if place is local:
        return fs.LocalFileSystem(), path
    if place is s3:
        where = connection()
        return _arrow_s3(where.endpoint, where.region, where.certificates), path
    where, path = other.resolve(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(where)), path


@lru_cache(maxsize=4)
def _arrow_s3(endpoint: str | None, region: str, certificates: str | None) -> fs.FileSystem:
    # Older gateways answer 411 to the checksummed uploads that newer SDKs send by default.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        tls_ca_file_path=certificates,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=8),
    )


def join(uri: str, *parts: str) -> str:
    """Joins a path or URI and parts below it with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)]) or "/"


def is_file(uri: str) -> bool:
    """Whether a file (or object) is there."""
    place, path = _place(uri)
    return bool(place.kind(path) == "file")


def is_folder(uri: str) -> bool:
    """Whether a folder (or a prefix with objects) is there."""
    place, path = _place(uri)
    return bool(place.kind(path) == "folder")


def stat(uri: str) -> File:
    """Returns a file's name, size and version, the same as a listing of its folder.

    Raises:
        FileNotFoundError: It is not there.
    """
    place, path = _place(uri)
    size, version = place.stat(path)
    return File(path.rpartition("/")[2], size, version)


def scan(uri: str) -> Iterator[pa.RecordBatch]:
    """Lists every file below a folder or prefix, in no order, a batch at a time.

    `hidden` tells names of working files; a local folder of such a name is one entry, which is not looked into.
    Prefixes of an object store are listed side by side.

    Returns:
        Batches of `listing.SCHEMA`: `path` below the folder, `size` in bytes, and `version`, which changes when the
        content does.
    """
    place, path = _place(uri)
    batches: Iterator[pa.RecordBatch] = place.scan(path)
    return batches


def list_files(uri: str) -> Iterator[File]:
    """Yields what `scan` finds, without hidden files, one file at a time: for folders of some thousand files."""
    for batch in scan(uri):
        files = batch.filter(pc.invert(hidden(batch["path"])))
        yield from map(File, *(column.to_pylist() for column in files.columns))


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Reads a whole file.

    Args:
        uri: Path or URI.
        limit: Bytes that the caller is ready to read.

    Raises:
        FileNotFoundError: It is not there.
        TooLargeError: It holds more than `limit` bytes.
        OSError: The store refused, or failed for about three minutes.
    """
    place, path = _place(uri)
    data: bytes = place.get(path, limit)
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file so that a reader sees the old content or the new, never a part."""
    place, path = _place(uri)
    place.put(path, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Writes a whole file unless there is one.

    Of several writers at once one succeeds: on a local folder, and on an object store that knows the condition
    `If-None-Match`. On others an object that is there is respected too, but writers of the same moment can both pass.

    Returns:
        True if what is there now is `data`, read back (whoever wrote it: let contents differ); False if it is
        something else.
    """
    place, path = _place(uri)
    ours: bool = place.create(path, data)
    return ours


def delete(uri: str) -> None:
    """Deletes a file, or a folder or prefix with all that is in it; nothing there is no error."""
    place, path = _place(uri)
    place.delete(path)


def open_file(uri: str) -> pa.NativeFile:
    """Opens a file for reading here and there, as Parquet is read by row groups.

    Raises:
        FileNotFoundError: It is not there.
    """
    place, path = _place(uri)
    return place.open_file(path)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file whole, or those of `columns` that it has: older files have fewer."""
    with open_file(uri) as source, pq.ParquetFile(source) as file:
        names = file.schema_arrow.names
        return file.read(None if columns is None else [name for name in columns if name in names])


def read_schema(uri: str) -> pa.Schema:
    """Reads the columns and types of a Parquet file."""
    with open_file(uri) as source:
        return pq.read_schema(source)


LINES = csv.ParseOptions(newlines_in_values=True)
"""How a CSV table is cut into rows: a cell may hold a report of several lines."""


def read_cells(uri: str) -> pa.Table:
    """Reads a CSV or Parquet table with every column as text: a key such as 0012 must keep its zeros.

    Columns that are no text (lists, pictures) are left out.

    Raises:
        ValueError: It is missing or is no table; the message quotes no cell, which may hold a name.
    """
    try:
        data = read_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri}: no such file; give a CSV or Parquet table of labels") from None
    except OSError as error:
        if not error.filename:  # a store's, which says all
            raise
        raise ValueError(
            f"{uri}: cannot be read: {error.strerror}; give a CSV or Parquet table of labels that this user may read"
        ) from None
    try:
        if uri.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(pa.BufferReader(data))
            table.validate(full=True)  # what claims to be text is UTF-8
        else:
            data += b"\n"  # without a line end pyarrow takes a header alone for no table; a blank line is no row
            # Closed, as its thread may abort a process that ends before it.
            with csv.open_csv(pa.BufferReader(data), parse_options=LINES) as reader:
                names = reader.schema.names
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
            table = csv.read_csv(pa.BufferReader(data), parse_options=LINES, convert_options=as_text)
    except (pa.ArrowException, OSError):
        raise ValueError(
            f"{uri}: not a readable CSV or Parquet table; save CSV as UTF-8, each row with as many cells as the first"
        ) from None
    if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise ValueError(f"{uri}: two columns are called {twice[0]}; rename one")
    texts = {name: _text(table[name]) for name in table.column_names}
    return pa.table({name: column for name, column in texts.items() if column is not None})


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        # pandas makes 20261105001234 a float beside an empty cell, and Spark a decimal: as text 2.026…e+13, …34.00.
        with suppress(pa.ArrowInvalid):
            column = pc.cast(column, pa.int64())
    try:
        return pc.cast(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes that are no UTF-8; lists
        return None


def encode(table: pa.Table) -> bytes:
    """Returns a table as one Parquet file (zstd)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write_table(uri: str, table: pa.Table) -> None:
    """Writes a table as one Parquet file, so that a reader sees all of it or nothing."""
    write_bytes(uri, encode(table))
