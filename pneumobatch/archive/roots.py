"""What a manifest may point at: the places below the archive's roots, and nothing else.

A manifest is data from elsewhere; it must not decide what a job may read.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage


class Place(NamedTuple):
    """A manifest's entry: its path below the root that holds it, and where `fetch` finds it."""

    path: str
    uri: str


class Roots:
    """The roots of an archive, against which the entries of a manifest are held.

    Args:
        roots: archive.roots; empty: the manifest's own folder.
        folder: Where relative entries begin.
        manifest: What an error calls the manifest.
    """

    def __init__(self, roots: Sequence[str], folder: str, manifest: str) -> None:
        self.folder, self.manifest = folder, manifest
        # Of nested roots the innermost holds an entry, whatever the order they are named in.
        self.roots = sorted({_below(_plain(root)) for root in roots or (folder,)}, key=len, reverse=True)
        self._real = lru_cache(maxsize=4096)(lambda path: _below(os.path.realpath(path)))

    def hold(self, uris: pa.Array) -> pa.Array:
        """Which URIs begin with a root."""
        return reduce(pc.or_, (pc.starts_with(uris, root) for root in self.roots))

    def locate(self, value: str) -> Place:
        """Finds the place of an entry: an absolute path or URI, or a path below the manifest's folder.

        Raises:
            ValueError: It leads outside the roots, or is written so that a store could take it to. The text does not
                quote it: a path may hold a name.
        """
        uri = _plain(value if "://" in value or value.startswith("/") else storage.join(self.folder, value))
        root = next((root for root in self.roots if uri.startswith(root)), None)
        path = "" if root is None else uri[len(root) :]
        if root is None or not _straight(path, root) or ("://" not in root and not self._within(uri, root)):
            raise ValueError(
                f"archive.uri: an entry of {self.manifest} lies outside the archive's folder; name its root in "
                "archive.roots"
            )
        return Place(path, uri)

    def _within(self, path: str, root: str) -> bool:
        """Whether a local path is below the root once links are followed; links within the root are welcome."""
        folder = os.path.dirname(path)  # noqa: PTH120 - a million entries: no Path for each
        real = os.path.realpath(path) if os.path.islink(path) else self._real(folder)  # noqa: PTH114
        return real.startswith(self._real(root))


def _below(folder: str) -> str:
    return folder if folder.endswith("/") else folder + "/"


def _plain(uri: str) -> str:
    """A path or URI with one way of writing it: file:// away, and locally no empty parts and no `.`."""
    uri = uri.removeprefix("file://")
    if "://" in uri:
        return uri
    return re.sub(r"/(\./|/)+", "/", uri).rstrip("/") or "/"


_TURN = re.compile(r"(?:^|[/\\])\.\.?(?:[/\\]|$)")


def _straight(path: str, root: str) -> bool:
    """Whether a path goes downward only, however a store decodes it, and names one thing alone."""
    if not path or "\0" in path or ".parquet#" in path:
        return False  # nothing, or a row of a Parquet archive, which may be a link
    if "::" in path and "://" in root and not root.startswith("s3://"):
        return False  # fsspec takes it for a chain of filesystems
    while not _TURN.search(path):
        if "%" not in path or path == (path := unquote(path)):
            return True
    return False
