"""Roots: whatever a manifest states, what it may read lies below a root."""

import os
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
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
        (below,) = Roots(_ROOTS, "manifest").required(uris).to_pylist()
    except ValueError:
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
    assert Roots(_ROOTS, "manifest").required(uris).to_pylist() == [path] * 3
    assert absolute(pa.array([path]), "s3://bucket/films/").to_pylist() == [f"s3://bucket/films/{path}"]


def test_a_missing_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="write plain paths"):
        Roots(_ROOTS, "manifest").required(pa.array(["/data/films/a", None]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with links that stay in it and links that leave it."""
    above = tmp_path_factory.mktemp("site")
    (above / "base" / "a").mkdir(parents=True)
    (above / "base-evil").mkdir()
    for name in ("secret.png", "base-evil/secret.png", "base/b.png", "base/a/b.png", "base/a/secret.png"):
        (above / name).write_bytes(b"secret" if "secret" in name and "base/" not in name else b"ours")
    (above / "base" / "link").symlink_to(above)
    (above / "base" / "linked.png").symlink_to(above / "secret.png")
    (above / "base" / "inner.png").symlink_to(above / "base" / "b.png")
    (above / "entry").symlink_to(above / "base")
    (above / "base" / "link.parquet").symlink_to(above / "secret.png")
    return above / "base"


# What local paths are attacked with: ways up, encodings of them, links, other places.
_PIECES = [
    "..", ".", "", "a", "b.png", "base", "base-evil", "link", "linked.png", "inner.png", "secret.png", "%2e%2e",
    "..%2f..", "..\\..", "\0", "file:", "s3:", "~", " ..", "...", "\u2024\u2024", "x.parquet#bytes#0",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map("/".join), st.text(max_size=30)))
@example("link/secret.png")
@example("linked.png")
@example("a/../../secret.png")
@example("link.parquet#bytes#0")
def test_no_file_outside_is_named(base: Path, value: str) -> None:
    uris = absolute(pa.array([value]), str(base))
    try:
        (path,) = Roots((str(base),), "manifest").required(uris).to_pylist()
    except ValueError as error:
        assert "/" not in value or value not in str(error)
        return
    (uri,) = uris.to_pylist()
    assert uri == f"{base}/{path}"
    assert "//" not in uri
    file = uri.partition(".parquet#")
    assert os.path.realpath(file[0] + (".parquet" if file[1] else "")).startswith(str(base.resolve()) + "/")


def test_links_within_the_root_and_to_the_root_are_followed(base: Path) -> None:
    entry = str(base.parent / "entry")
    for root in (str(base), entry):
        uris = absolute(pa.array(["inner.png", "./a//b.png", f"file://{root}/b.png"]), root)
        assert Roots((root,), "manifest").required(uris).to_pylist() == ["inner.png", "a/b.png", "b.png"]
