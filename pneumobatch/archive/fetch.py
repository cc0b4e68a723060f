"""From an image's place to its bytes: a file or object, or a row of a Parquet archive (`FILE#COLUMN#ROW`)."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import pyarrow.parquet as pq

from pneumobatch import storage

CONCURRENCY = 16
"""Requests that one task keeps open against an object store."""


def below_roots(value: str, folder: str, roots: Sequence[str], manifest: str) -> str:
    """Returns the full URI of a manifest's entry.

    Raises:
        ValueError: The entry leads outside the roots; a manifest must not decide what a job may read.
    """
    uri = value if "://" in value or value.startswith("/") else storage.join(folder, value)
    where, path = storage.filesystem(uri)
    for root in roots or (folder,):
        root_where, root_path = storage.filesystem(root)
        if where == root_where and os.path.normpath(path).startswith(os.path.normpath(root_path) + "/"):
            return uri
    raise ValueError(
        f"archive.uri: an entry of {manifest} lies outside the archive's folder; name its root in archive.roots"
    )


@lru_cache(maxsize=4)
def _row_group(uri: str, column: str, group: int) -> list[bytes | None]:
    where, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=where) as file:
        values: list[bytes | None] = file.read_row_group(group, columns=[column])[column].to_pylist()
        return values


@lru_cache(maxsize=64)
def _group_starts(uri: str) -> list[int]:
    where, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=where) as file:
        starts = [0]
        for group in range(file.metadata.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts


def _row(uri: str, column: str, row: int) -> bytes:
    starts = _group_starts(uri)
    group = max(g for g, start in enumerate(starts) if start <= row)
    return _row_group(uri, column, group)[row - starts[group]] or b""


def fetch(uri: str, limit: int | None = None) -> bytes | OSError:
    """Returns an image's bytes, or the error of an object that is missing or whose store fails."""
    try:
        if "#" in uri and uri.count(".parquet#") == 1:
            file, column, row = uri.rsplit("#", 2)
            return _row(file, column, int(row))
        return storage.read_bytes(uri, limit)
    except OSError as error:
        return error


def fetch_many(uris: Sequence[str], limit: int | None = None) -> Iterator[bytes | OSError]:
    """Yields each image's bytes or error, in order; objects of a remote store are fetched concurrently."""
    if not uris or "://" not in uris[0] or uris[0].startswith("file://") or ".parquet#" in uris[0]:
        yield from map(partial(fetch, limit=limit), uris)  # local files: a thread costs more than it hides
        return
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        yield from pool.map(partial(fetch, limit=limit), uris)
