"""From an image's place to its bytes: a file or object, or a row of a Parquet archive (`FILE#COLUMN#ROW`)."""

import re
import threading
from bisect import bisect_right
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


WINDOW_ROWS = 64
"""Most rows of a Parquet archive that are held at a time."""
WINDOW_BYTES = 64 << 20
"""Bytes that these rows may hold by the mean size of their row group; one row is held, however large it is."""
_BUFFER = 8 << 20
"""Bytes of a Parquet file that are read at a time."""

_ROW = re.compile(r"(?P<file>.*\.parquet)#(?P<column>.*)#(?P<row>\d+)", re.DOTALL | re.IGNORECASE)


class _Window:
    """The rows around the one that was asked for last: a row group may be larger than any memory.

    A row group can only be read from its beginning, so rows are to be asked for in ascending order (`in_file`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drop()

    def _drop(self) -> None:
        self._group: tuple[str, str, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first, self._rows = 0, pa.array([], pa.binary())

    def cell(self, uri: str, column: str, row: int) -> pa.Scalar:
        """Returns a cell.

        Raises:
            OSError: The store failed.
            IndexError: There is no such row.
        """
        starts = _group_starts(uri)
        if not 0 <= row < starts[-1]:
            raise IndexError
        number = bisect_right(starts, row) - 1
        with self._lock:
            try:
                return self._reach((uri, column, number), row - starts[number])
            except BaseException:  # what was read halfway must not be taken for the way to the next rows
                self._drop()
                raise

    def _reach(self, group: tuple[str, str, int], row: int) -> pa.Scalar:
        if group != self._group or row < self._first:
            self._drop()
            self._group, self._batches = group, _batches(*group)
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = self._rows[:0]  # the old rows go before the new ones come
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError
            self._rows = batch[group[1]]
        return self._rows[row - self._first]

    def clear(self) -> None:
        with self._lock:
            self._drop()


_window = _Window()


def _batches(uri: str, column: str, group: int) -> Iterator[pa.RecordBatch]:
    """Reads a row group some rows at a time, page by page, and never its column as a whole."""
    with (
        storage.open_file(uri) as source,
        pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as file,
    ):
        about = file.metadata.row_group(group)
        fitting = about.num_rows * WINDOW_BYTES // max(1, about.total_byte_size)
        rows = min(max(1, fitting), WINDOW_ROWS)
        yield from file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)


@lru_cache(maxsize=64)
def _group_starts(uri: str) -> list[int]:
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        starts = [0]
        for group in range(file.metadata.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        return starts


def in_table(uri: str) -> bool:
    """Whether an image is a cell of a Parquet file: those are read in their order, as they share what is read."""
    return ".parquet#" in uri.lower()


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(fits(kind) for fits in known)


def _row(uri: str, column: str, row: int, limit: int | None) -> bytes:
    cell = _window.cell(uri, column, row)
    if not holds_bytes(cell.type):
        raise DamagedError("a cell of the Parquet archive holds no bytes")
    if limit is not None and cell.is_valid and cell.as_buffer().size > limit:
        raise storage.TooLargeError(f"an image is larger than {limit} bytes")
    return cell.as_py() or b""


def forget() -> None:
    """Drops what is kept of Parquet archives for their next rows."""
    _window.clear()
    _group_starts.cache_clear()


def in_file(uri: str) -> tuple[str, int]:
    """Sorts images by where they lie: rows of a Parquet archive are read in the order of their file."""
    found = _ROW.fullmatch(uri)
    return (found["file"], int(found["row"])) if found else (uri, 0)


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
    if not uris or "://" not in uris[0] or uris[0].startswith("file://") or in_table(uris[0]):
        yield from map(partial(fetch, limit=limit), uris)  # local files: a thread costs more than it hides
        return
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        yield from pool.map(partial(fetch, limit=limit), uris)
