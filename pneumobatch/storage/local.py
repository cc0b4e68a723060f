"""Local folders, by the operating system."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pneumobatch.storage import listing
from pneumobatch.storage.persistence import TooLargeError

BATCH = 10_000
"""Files in a batch of a listing."""

BROKEN = "broken link"
"""Version of a link that leads nowhere, or to itself: it is listed, so that it becomes a film that is missing."""


def get(path: str, limit: int | None) -> bytes:
    """Reads a file of at most `limit` bytes."""
    try:
        with Path(path).open("rb") as file:
            # Not read(limit): Python takes memory for as much before it reads.
            data = file.read() if limit is None or os.fstat(file.fileno()).st_size <= limit else None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself leads nowhere
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        raise
    if data is None or (limit is not None and len(data) > limit):
        raise TooLargeError(f"a file is larger than {limit} bytes")
    return data


@contextmanager
def _draft(target: Path, data: bytes) -> Iterator[Path]:
    """Writes the content beside its target, safe on the disk, and removes what is left of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
        folder = os.open(target.parent, os.O_RDONLY)  # the name, too, must survive a power failure
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


def put(path: str, data: bytes) -> None:
    """Writes a file by renaming a draft."""
    target = Path(path)
    with _told(target.parent), _draft(target, data) as draft:
        draft.replace(target)


def create(path: str, data: bytes) -> bool:
    """Writes a file by linking a draft, which fails where the name is taken."""
    target = Path(path)
    with _told(target.parent), _draft(target, data) as draft:
        try:
            target.hardlink_to(draft)
        except FileExistsError:
            return target.read_bytes() == data
        except OSError as error:
            if error.errno not in _NO_LINKS:  # those of exFAT, and of some network and cloud mounts
                raise
            raise OSError(
                f"{target.parent}: its file system has no hard links, which publishing needs; give an output.uri on a "
                "disk that has them, or in an object store"
            ) from None
    return True


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Names the folder that cannot be written: it is the output's, which holds no identity."""
    try:
        yield
    except OSError as error:
        if not error.errno:  # not the system's: told already
            raise
        why = os.strerror(error.errno)
        raise type(error)(
            f"{folder}: cannot be written: {why}; make room or give permission there, or another output.uri"
        ) from None


def kind(path: str) -> Literal["file", "folder"] | None:
    """What a path leads to."""
    where = Path(path)
    return "file" if where.is_file() else "folder" if where.is_dir() else None


def stat(path: str) -> tuple[int, str]:
    """Size and version of a file."""
    found = Path(path).stat()
    return found.st_size, str(found.st_mtime_ns)


def scan(path: str) -> Iterator[pa.RecordBatch]:
    """Lists a folder; links are followed, except to a folder on the way to it."""
    rows = _walk(path)
    while part := list(islice(rows, BATCH)):
        yield listing.batch(*zip(*part, strict=True))


def _walk(path: str) -> Iterator[tuple[str, int, str]]:
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        try:
            folder = os.stat(path + below)  # noqa: PTH116 - a million folders: no Path for each
            if (folder.st_dev, folder.st_ino) in above:
                continue
            within = above | {(folder.st_dev, folder.st_ino)}
            with os.scandir(path + below) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if entry.name[0] in "._":  # one entry: a .snapshot may hold the archive many times over
                            yield _text(f"{below}/{entry.name}"[1:]), 0, ""
                            continue
                        waiting.append((f"{below}/{entry.name}", within))
                    elif found := _file(entry):
                        yield _text(f"{below}/{entry.name}"[1:]), *found
        except FileNotFoundError:
            continue  # deleted meanwhile, or nothing there
        except OSError as error:
            why = os.strerror(error.errno or 0)  # without the folder's name, which may be a patient's
            raise type(error)(error.errno, f"{path}: something below it cannot be listed: {why}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _file(entry: os.DirEntry[str]) -> tuple[int, str] | None:
    """Size and version of a file; None for what is gone, a socket or a pipe."""
    try:
        if entry.is_file():
            found = entry.stat()
            return found.st_size, str(found.st_mtime_ns)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return (0, BROKEN) if entry.is_symlink() else None


def _text(name: str) -> str:
    """A name that is no UTF-8 stays visible; opening it will fail, and say so in its row."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def delete(path: str) -> None:
    """Deletes a file or a folder."""
    where = Path(path)
    if where.is_dir() and not where.is_symlink():
        shutil.rmtree(where, onerror=_unless_gone)
    else:
        where.unlink(missing_ok=True)


def _unless_gone(_: object, __: str, failure: Any) -> None:
    """Another process that deletes the same folder is no failure."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def open_file(path: str) -> pa.NativeFile:
    """Opens a file for reading here and there."""
    return pa.OSFile(path)
