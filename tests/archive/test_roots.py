"""Roots: whatever a manifest states, what it may read lies below a root."""

import os
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumobatch import storage
from pneumobatch.archive.roots import Roots, absolute

_PART = st.sampled_from(
    ["..", ".", "", "a", "b.png", "...", "%2e%2e", "%2E.", "%252e%252e", "..%2f", "%2f", "%5c..", "..\\\\..", "é", "\n"]
)
_HEAD = st.sampled_from(
    ["", "/", "//", "/data/films/", "/data/films-evil/", "/data/films/../", "/etc/", "file://", "file:///etc/", "FILE:///",
     "file:///data/films/", "file:/etc/", "s3://bucket/films/", "s3://bucket/films-evil/", "s3://bucket/", "s3://other/films/",
     "S3://bucket/films/", "s3://bucket//films/", "memory://films/", "memory://films::file:///etc/", "simplecache::file:///etc/",
     "memory://films/x::file:///etc/"]
)  # fmt: skip
_ROOTS = ["/data/films", "s3://bucket/films", "memory://films/"]


@settings(deadline=None)
@given(_HEAD, st.lists(_PART, max_size=5).map("/".join))
def test_nothing_outside_is_allowed(head: str, rest: str) -> None:
    uris = absolute(pa.array([head + rest]), "/data/films")
    try:
        (below,) = Roots(_ROOTS, "manifest").below(uris).to_pylist()
    except ValueError:
        return
    if below is None:
        return
    uri = uris[0].as_py()
    root = next(root.rstrip("/") for root in _ROOTS if uri.startswith(root.rstrip("/") + "/"))
    assert uri == f"{root}/{below}"
    for text in (uri, unquote(uri), unquote(unquote(uri)), uri.replace("\\", "/")):
        path = text.partition("://")[2] or text
        assert f"{os.path.normpath(path)}/".startswith(os.path.normpath(root.partition("://")[2] or root) + "/")
    if root == "/data/films":
        assert storage.filesystem(uri)[1].startswith("/data/films/")
    assert "::" not in uri


@settings(deadline=None)
@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=4).map("/".join))
def test_plain_paths_are_allowed(path: str) -> None:
    uris = pa.array([f"{root.rstrip('/')}/{path}" for root in _ROOTS])
    assert Roots(_ROOTS, "manifest").below(uris).to_pylist() == [path] * 3
    assert absolute(pa.array([path]), "s3://bucket/films/").to_pylist() == [f"s3://bucket/films/{path}"]


def test_a_missing_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="write plain paths"):
        Roots(_ROOTS, "manifest").below(pa.array(["/data/films/a", None]))
