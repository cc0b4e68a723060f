"""The only module that opens, lists or commits paths and URIs.

Everything goes through Arrow's filesystems: local folders and `s3://` natively, any other fsspec URL through fsspec.
Credentials and endpoints come from the environment's standard chain, never from a job.
"""

import os
import random
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, fs


class File(NamedTuple):
    """A listed file: its path below the listed folder (with /), and its size in bytes."""

    path: str
    size: int


@lru_cache(maxsize=32)
def _remote(protocol: str) -> fs.FileSystem:
    if protocol == "s3":
        # Older gateways answer 411 to the checksummed uploads that newer SDKs send by default.
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        return fs.S3FileSystem(
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=8),
        )
    import fsspec

    try:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(protocol)))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{protocol}://: cannot be opened: {error}") from None


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a local path or URI, and the path within it.

    Raises:
        ValueError: The protocol is unknown or its package is not installed.
    """
    protocol, separator, path = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    if protocol == "file":
        return fs.LocalFileSystem(), path
    return _remote(protocol), path.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Joins a path or URI and parts below it with single slashes."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def is_file(uri: str) -> bool:
    """Whether a file (or object) is there."""
    where, path = filesystem(uri)
    return bool(where.get_file_info(path).type == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether a folder (or a prefix with objects) is there."""
    where, path = filesystem(uri)
    return bool(where.get_file_info(path).type == fs.FileType.Directory)


def list_files(uri: str) -> Iterator[File]:
    """Yields every file below a folder or prefix, hidden ones (a part beginning with . or _) left out."""
    where, root = filesystem(uri)
    for info in where.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
        path = info.path.lstrip("/")[len(root.lstrip("/")) :].lstrip("/")
        if info.type == fs.FileType.File and not any(part[0] in "._" for part in path.split("/")):
            yield File(path, info.size)


READ_TRIES = 4
"""Times that a remote object is asked for: stores truncate and reset, and SDKs give up on a body halfway."""


class TooLargeError(OSError):
    """A file is larger than its reader allows."""


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """Reads a whole file; an object of a remote store is tried again after a passing error.

    Raises:
        FileNotFoundError: It is not there.
        OSError: The store failed each time.
    """
    where, path = filesystem(uri)
    tries = 1 if isinstance(where, fs.LocalFileSystem) else READ_TRIES
    for attempt in range(1, tries + 1):
        try:
            with where.open_input_file(path) as file:
                if limit is not None and file.size() > limit:
                    raise TooLargeError("the file is larger than allowed")
                return bytes(file.read())
        except (FileNotFoundError, TooLargeError):
            raise
        except OSError:
            if attempt == tries:
                raise
            time.sleep(0.2 * 4**attempt * random.uniform(0.5, 1))  # noqa: S311 - spreads the load, keeps no secret
    raise AssertionError("unreachable")


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a whole file so that a reader sees the old content or the new, never a part."""
    where, path = filesystem(uri)
    if not isinstance(where, fs.LocalFileSystem):
        with where.open_output_stream(path) as stream:  # an object appears whole when it is closed
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)


def delete(uri: str) -> None:
    """Deletes a file, or a folder or prefix with all that is in it; nothing there is no error."""
    where, path = filesystem(uri)
    kind = where.get_file_info(path).type
    if kind == fs.FileType.Directory:
        where.delete_dir(path)
    elif kind == fs.FileType.File:
        where.delete_file(path)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file whole, or those of `columns` that it has: older files have fewer."""
    where, path = filesystem(uri)
    with pq.ParquetFile(path, filesystem=where) as file:
        names = file.schema_arrow.names
        return file.read(None if columns is None else [name for name in columns if name in names])


def read_schema(uri: str) -> pa.Schema:
    """Reads the columns and types of a Parquet file."""
    where, path = filesystem(uri)
    return pq.read_schema(path, filesystem=where)


def read_cells(uri: str) -> pa.Table:
    """Reads a CSV or Parquet table with every column as text: a key such as 0012 must keep its zeros.

    Raises:
        ValueError: It is missing or is no table; the message quotes no cell, which may hold a name.
    """
    try:
        data = read_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri}: no such file; give a CSV or Parquet table of labels") from None
    try:
        if uri.lower().endswith((".parquet", ".pq")):
            table = pq.read_table(pa.BufferReader(data))
        else:
            names = csv.open_csv(pa.BufferReader(data)).schema.names
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
            table = csv.read_csv(pa.BufferReader(data), convert_options=as_text)
    except pa.ArrowInvalid:
        raise ValueError(f"{uri}: not a readable CSV or Parquet table") from None
    flat = [name for name in table.column_names if not pa.types.is_nested(table.schema.field(name).type)]
    return pa.table({name: pc.cast(table[name], pa.string()) for name in flat})


def encode(table: pa.Table) -> bytes:
    """Returns a table as one Parquet file (zstd)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write_table(uri: str, table: pa.Table) -> None:
    """Writes a table as one Parquet file, so that a reader sees all of it or nothing."""
    write_bytes(uri, encode(table))


def create_bytes(uri: str, data: bytes) -> bool:
    """Placeholder until the object store's own create-only write."""
    target = Path(filesystem(uri)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    draft.write_bytes(data)
    try:
        os.link(draft, target)
    except FileExistsError:
        return target.read_bytes() == data
    finally:
        draft.unlink()
    return True
