"""From an image's place to its bytes: a file or object, or a row of a Parquet archive (`FILE#COLUMN#ROW`)."""

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import pyarrow as pa
import pyarrow.parquet as pq

from pneumobatch import storage

CONCURRENCY = 16
"""Requests that one task keeps open against an object store."""


class DamagedError(OSError):
    """What holds the image cannot be read as what it claims to be."""


_ROW = re.compile(r"(?s)(.*\.parquet)#([^#]*)#(\d+)")


@lru_cache(maxsize=4)
def _row_group(uri: str, column: str, group: int) -> list[bytes | None]:
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        values: list[bytes | None] = file.read_row_group(group, columns=[column])[column].to_pylist()
        return values


@lru_cache(maxsize=64)
def _group_starts(uri: str) -> list[int]:
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        starts = [0]
        for group in range(file.metadata.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts


def _row(uri: str, column: str, row: int, limit: int | None) -> bytes:
    starts = _group_starts(uri)
    group = bisect(starts, row) - 1
    data = _row_group(uri, column, group)[row - starts[group]] or b""
    if not isinstance(data, bytes):
        raise DamagedError("a cell of the Parquet archive holds no bytes")
    if limit is not None and len(data) > limit:
        raise storage.TooLargeError("the image is larger than allowed")
    return data


def forget() -> None:
    """Drops what is kept of Parquet archives for their next rows."""
    _row_group.cache_clear()


def fetch(uri: str, limit: int | None = None) -> bytes | OSError:
    """Returns an image's bytes, or the error of one that is missing or too large, whose store fails or is damaged."""
    try:
        if found := _ROW.fullmatch(uri):
            return _row(found[1], found[2], int(found[3]), limit)
        return storage.read_bytes(uri, limit)
    except OSError as error:
        return error
    except MemoryError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, pa.ArrowException):  # Arrow's, on a damaged Parquet
        return DamagedError("the Parquet archive is damaged")


def fetch_many(uris: Sequence[str], limit: int | None = None) -> Iterator[bytes | OSError]:
    """Yields each image's bytes or error, in order; objects of a remote store are fetched concurrently."""
    if not uris or "://" not in uris[0] or uris[0].startswith("file://") or ".parquet#" in uris[0]:
        yield from map(partial(fetch, limit=limit), uris)  # local files: a thread costs more than it hides
        return
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        yield from pool.map(partial(fetch, limit=limit), uris)
