"""A file of a store that is read here and there, as `pyarrow.PythonFile` asks for it."""

import os
from collections.abc import Callable

import pyarrow as pa


def opened(length: int, part: Callable[[int, int], bytes]) -> pa.NativeFile:
    """Makes a file of its parts, each asked for by itself, so that it can be asked for again where the store fails.

    Args:
        length: Size of the file, bytes.
        part: (start, end) → its bytes from start to before end.
    """
    return pa.PythonFile(_Parts(length, part), mode="r")


class _Parts:
    def __init__(self, length: int, part: Callable[[int, int], bytes]) -> None:
        self.length, self.part = length, part
        self.position = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        end = self.length if size < 0 else min(self.position + size, self.length)
        if end <= self.position:
            return b""
        start, self.position = self.position, end
        return self.part(start, end)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
