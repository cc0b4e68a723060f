"""Any other fsspec URL (memory://, gs://, abfs:// …), by fsspec and the package that it needs."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import pyarrow as pa

from pneumobatch.storage import listing
from pneumobatch.storage.parts import opened
from pneumobatch.storage.persistence import PassingError, TooLargeError, persist

BATCH = 10_000
"""Files in a batch of a listing."""

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, TooLargeError)
_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")

T = TypeVar("T")


def resolve(uri: str) -> tuple[Any, str]:
    """Returns the fsspec filesystem of a URL, and the path within it.

    Raises:
        ValueError: The protocol is unknown or its package is not installed.
    """
    import fsspec

    try:
        where, path = fsspec.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{uri.partition('://')[0]}://: cannot be opened: {error}") from None
    where.invalidate_cache()
    return where, path.rstrip("/")


def _asked(attempt: Callable[[], T]) -> T:
    def once() -> T:
        try:
            return attempt()
        except _PERMANENT:
            raise
        except Exception as error:  # packages for stores have errors of their own, which are no OSError
            raise PassingError(f"the store failed: {type(error).__name__}") from None

    return persist(once)


def get(uri: str, limit: int | None) -> bytes:
    """Reads a file of at most `limit` bytes."""
    where, path = resolve(uri)

    def once() -> bytes:
        if limit is not None and (where.info(path)["size"] or 0) > limit:
            raise TooLargeError(f"a file is larger than {limit} bytes")
        return bytes(where.cat_file(path))

    return _asked(once)


def put(uri: str, data: bytes) -> None:
    """Writes a file; most stores show it whole when it is complete."""
    where, path = resolve(uri)
    _asked(lambda: where.pipe_file(path, data))


def create(uri: str, data: bytes) -> bool:
    """Writes a file unless there is one: looked up first, read back afterwards; two writers at once can both pass."""
    if kind(uri) is None:
        put(uri, data)
    return get(uri, None) == data


def kind(uri: str) -> Literal["file", "folder"] | None:
    """What a URL leads to."""
    where, path = resolve(uri)
    return _asked(lambda: "file" if where.isfile(path) else "folder" if where.isdir(path) else None)


def stat(uri: str) -> tuple[int, str]:
    """Size and version of a file."""
    where, path = resolve(uri)
    info = _asked(lambda: where.info(path))
    return int(info["size"] or 0), _version(info)


def _version(info: Mapping[str, Any]) -> str:
    return str(next((info[name] for name in _VERSIONS if info.get(name)), ""))


def scan(uri: str) -> Iterator[pa.RecordBatch]:
    """Lists a folder."""
    where, path = resolve(uri)
    found = [
        (name[len(path) :].lstrip("/"), info) for name, info in _asked(lambda: where.find(path, detail=True)).items()
    ]
    for start in range(0, len(found), BATCH):
        part = found[start : start + BATCH]
        versions = [_version(info) for _, info in part]
        yield listing.batch([name for name, _ in part], [info["size"] or 0 for _, info in part], versions)


def delete(uri: str) -> None:
    """Deletes a file or a folder."""
    where, path = resolve(uri)
    try:
        _asked(lambda: where.rm(path, recursive=True))
    except FileNotFoundError:
        return


def open_file(uri: str) -> pa.NativeFile:
    """Opens a file for reading here and there."""
    where, path = resolve(uri)
    size, _ = stat(uri)

    def part(start: int, end: int) -> bytes:
        return _asked(lambda: bytes(where.cat_file(path, start=start, end=end)))

    return opened(size, part)
