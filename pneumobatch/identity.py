"""Keyed hashes: how an identifier joins tables without leaving the site.

The site's key is a secret of its environment, never of a job. An unkeyed hash of a path, a patient or an accession
number could be looked up by trying all of them.
"""

import hmac
import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

SITE_KEY = "PNEUMOBATCH_SITE_KEY"
"""Environment variable with the site's secret for keyed hashes."""

CHUNK = 1 << 16
"""Values that are text of the interpreter's at a time."""


def _key() -> bytes:
    try:
        return os.environ.get(SITE_KEY, "").encode()
    except UnicodeEncodeError:  # raw random bytes, as of /dev/urandom
        raise ValueError(
            f"{SITE_KEY}: holds bytes that are no text; set plain characters, such as `openssl rand -hex 32` makes"
        ) from None


def has_key() -> bool:
    """Whether the environment has a site key."""
    return bool(os.environ.get(SITE_KEY))


def key_check() -> str:
    """What tells one site key from another without telling it; `none` where none is set."""
    return keyed_hash("which key")[:8] if has_key() else "none"


def keyed_hash(value: str) -> str:
    """HMAC-SHA-256 of a value under the site's key (an empty one where none is set), 128 bits as 32 hex digits."""
    return hmac.digest(_key(), value.encode(), "sha256").hex()[:32]


def keyed_hashes(values: pa.ChunkedArray, kind: str | None = None) -> pa.ChunkedArray:
    """Hashes a column of text; NULL stays NULL, and so becomes a blank value of a kind.

    Args:
        values: Text.
        kind: What it identifies, such as `accession` or `patient`: the same text of two kinds has two hashes, and
            white space around it does not count. None: the text alone, as for paths.
    """
    key = _key()
    head = f"{kind}:".encode() if kind else b""

    def hashes(chunk: pa.Array) -> Iterator[str | None]:
        for value in chunk.to_pylist():
            yield None if value is None else hmac.digest(key, head + value.encode(), "sha256").hex()[:32]

    if kind:
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), None, values)
    parts = [
        pa.array(hashes(chunk.slice(start, CHUNK)), pa.string())
        for chunk in values.chunks
        for start in range(0, len(chunk), CHUNK)
    ]
    return pa.chunked_array(parts, pa.string())
