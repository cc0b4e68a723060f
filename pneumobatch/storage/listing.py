"""What a listing consists of."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema({"path": pa.string(), "size": pa.int64(), "version": pa.string()})
"""A listing's columns: path below the folder (with /), size in bytes, and what changes when the content does."""


class File(NamedTuple):
    """A listed file: its path below the listed folder (with /), its size in bytes, and its version.

    The version is a text that changes when the content does: the entity tag of an object, the time of change of a
    local file.
    """

    path: str
    size: int
    version: str


def batch(paths: Sequence[str], sizes: Sequence[int], versions: Sequence[str]) -> pa.RecordBatch:
    """Makes a batch of a listing."""
    return pa.record_batch([pa.array(paths, pa.string()), sizes, pa.array(versions, pa.string())], schema=SCHEMA)


def hidden(paths: pa.Array) -> pa.Array:
    """Whether a part of each path begins with . or _, as working files of systems and programs do."""
    return pc.match_substring_regex(paths, r"(^|/)[._]")
