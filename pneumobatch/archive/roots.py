"""What a manifest may point at: nothing outside the archive's roots, however it is written."""

import os
from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage
from pneumobatch.config import plain

_CLIMBS = r"(?i)(^|[/\\]|%(25)*(2f|5c))(\.|%(25)*2e){1,2}([/\\]|%(25)*(2f|5c)|$)"
"""A part . or .., plain or encoded any number of times: what follows may be resolved by a store, a proxy or a disk."""
_UNSAFE = rf"[\x00-\x1f]|(?i:\.parquet)#|{_CLIMBS}"
"""Also what `fetch` takes for a row of a Parquet file: that file may be a link."""


class Roots:
    """The folders or prefixes that a manifest may point into.

    Args:
        uris: Paths or URIs; the first that holds an entry names it.
        manifest: The manifest, for messages.
    """

    def __init__(self, uris: Sequence[str], manifest: str) -> None:
        self.uris = [plain(uri) for uri in uris]
        self.manifest = manifest

    def below(self, uris: pa.Array) -> pa.Array:
        """Returns each entry's path below the root that holds it, or NULL where none does.

        Args:
            uris: Absolute paths or URIs, none that climbs (..): of `required`, or keys as a store lists them, whose
                parts . and .. are `storage.hidden` and no way.

        Raises:
            ValueError: An entry is a link that leads out of its root.
        """
        paths = pa.nulls(len(uris), pa.string())
        for root in self.uris:
            inside = pc.starts_with(uris, f"{root}/")
            if "://" not in root:
                self._follow(uris.filter(inside), root)
            elif not root.startswith("s3://"):  # fsspec takes what follows a :: for another address
                inside = pc.and_(inside, pc.invert(pc.match_substring(uris, "::")))
            below = pc.utf8_slice_codeunits(uris, len(root) + 1)
            paths = pc.coalesce(paths, pc.if_else(inside, below, None))
        return pc.if_else(pc.equal(paths, ""), None, paths)

    def required(self, uris: pa.Array) -> pa.Array:
        """`below`, where no entry may lie outside.

        Raises:
            ValueError: One does, or climbs (..), is empty or NULL; a manifest must not decide what a job may read.
        """
        if uris.null_count or pc.any(pc.match_substring_regex(uris, _UNSAFE)).as_py():
            raise ValueError(
                f"archive.uri: an entry of {self.manifest} may lead outside the archive's folder (it is empty, has a "
                "part . or .. or a control character, or is a row of another table); write plain paths"
            )
        paths = self.below(uris)
        if paths.null_count:
            raise ValueError(
                f"archive.uri: an entry of {self.manifest} lies outside the archive's folder; name its root in "
                "archive.roots"
            )
        return paths

    def _follow(self, paths: pa.Array, root: str) -> None:
        """Local links, too, must stay inside."""
        real = os.path.join(os.path.realpath(root or "/"), "")  # noqa: PTH118
        folder_of = lru_cache(1 << 14)(os.path.realpath)
        for path in paths.to_pylist():
            folder, _, name = path.rpartition("/")
            target = os.path.join(folder_of(folder or "/"), name)  # noqa: PTH118
            if os.path.islink(target):  # noqa: PTH114 - a million entries: no Path for each
                target = os.path.realpath(target)
            if not target.startswith(real):
                raise ValueError(
                    f"archive.uri: an entry of {self.manifest} is a link to outside the archive's folder; name its "
                    "target's root in archive.roots"
                )


def absolute(values: pa.Array, folder: str) -> pa.Array:
    """Entries as a manifest states them → absolute paths or URIs; relative ones lie below `folder`.

    Local ones get the one way of writing that a listing has: a file must not have two ids. Spark writes `file:/data`.
    """
    values = pc.replace_substring_regex(values, "^file:(?://|(/))", r"\1")
    relative = pc.invert(pc.match_substring_regex(values, "^/|://"))
    uris = pc.if_else(relative, pc.binary_join_element_wise(plain(folder), values, "/"), values)
    return pc.if_else(pc.match_substring(uris, "://"), uris, pc.replace_substring_regex(uris, r"/(\./|/)+", "/"))


def place(uri: str) -> str:
    """A path or URI as entries are compared: absolute and plain."""
    return plain(storage.join(uri))


def lead_to(uris: pa.Array, file: str) -> pa.Array:
    """Whether each entry is the file (of `place`), by whatever links on either side.

    Only entries of the file's ending are looked at: each asks the disk, and most are films.
    """
    if not file or "://" in file:
        return pc.equal(uris, file)
    real, ending = os.path.realpath(file), os.path.splitext(file)[1]  # noqa: PTH122
    alike = uris.filter(pc.ends_with(uris, ending, ignore_case=True)).to_pylist()
    return pc.is_in(uris, pa.array([uri for uri in alike if os.path.realpath(uri) == real], pa.string()))
