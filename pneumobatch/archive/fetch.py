"""From an image's place to its bytes: a file or object, or a row of a Parquet archive (`FILE#COLUMN#ROW`)."""

import re
import threading
from bisect import bisect_right
from collections import OrderedDict
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


CACHE_BYTES = 256 << 20
"""Bytes of row groups that are kept for their next rows; the latest is kept, however large it is."""

_ROW = re.compile(r"(?P<file>.*\.parquet)#(?P<column>.*)#(?P<row>\d+)", re.DOTALL)


class _RowGroups:
    """The row groups of Parquet archives that were read last, as Arrow columns: images become bytes one at a time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, uri: str, column: str, row: int) -> pa.Scalar:
        """Returns a cell.

        Raises:
            OSError: The store failed.
            IndexError: There is no such row.
        """
        starts = _group_starts(uri)
        if not 0 <= row < starts[-1]:
            raise IndexError
        group = bisect_right(starts, row) - 1
        with self._lock:  # threads that want the same group read it once
            key = (uri, column, group)
            if key not in self._kept:
                with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
                    self._kept[key] = file.read_row_group(group, columns=[column])[column]
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(values.nbytes for values in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
            return self._kept[key][row - starts[group]]

    def clear(self) -> None:
        self._kept.clear()


_row_groups = _RowGroups()


@lru_cache(maxsize=64)
def _group_starts(uri: str) -> list[int]:
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        starts = [0]
        for group in range(file.metadata.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts


def _row(uri: str, column: str, row: int, limit: int | None) -> bytes:
    cell = _row_groups.cell(uri, column, row)
    if not (
        pa.types.is_binary(cell.type) or pa.types.is_large_binary(cell.type) or pa.types.is_fixed_size_binary(cell.type)
    ):
        raise DamagedError("a cell of the Parquet archive holds no bytes")
    if limit is not None and cell.is_valid and cell.as_buffer().size > limit:
        raise storage.TooLargeError(f"an image is larger than {limit} bytes")
    return cell.as_py() or b""


def forget() -> None:
    """Drops what is kept of Parquet archives for their next rows."""
    _row_groups.clear()
    _group_starts.cache_clear()


def fetch(uri: str, limit: int | None = None) -> bytes | OSError:
    """Returns an image's bytes, or the error of one that is missing or too large, whose store fails or is damaged."""
    try:
        if "#" in uri and (found := _ROW.fullmatch(uri)):
            return _row(found["file"], found["column"], int(found["row"]), limit)
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
