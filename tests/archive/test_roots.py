"""A manifest cannot point outside the archive's roots, however it is written."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pneumobatch import storage
from pneumobatch.archive.roots import Roots

# What paths are attacked with: ways up, encodings of them, other places, parts of chains and of other archives.
PIECES = [
    "..", ".", "", "a", "b.png", "base", "base-evil", "link", "secret.png", "%2e%2e", "%252e%252e", "%2F", "..%2f..",
    "..\\..", "%5c..", "\0", "#", "x.parquet#bytes#0", "::", "file:", "file://", "s3://", "S3://bucket", "s3://bucket",
    "s3://other", "memory://", "~", "C:", "ｅ", " ..", ".. ", "...", "\u2024\u2024", "\n",
]  # fmt: skip
VALUES = st.one_of(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("/".join), st.text(max_size=30))


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
    return above / "base"


@given(VALUES)
@example("link/secret.png")
@example("linked.png")
@example("a/../../secret.png")
@settings(max_examples=400, deadline=None)
def test_no_local_entry_leaves_the_root(base: Path, value: str) -> None:
    try:
        place = Roots((), str(base), "m").locate(value)
    except ValueError as error:
        # The text is the same whatever the entry is: it quotes nothing of it.
        assert str(error) == (
            "archive.uri: an entry of m lies outside the archive's folder; name its root in archive.roots"
        )
        return
    assert os.path.realpath(place.uri).startswith(str(base.resolve()) + "/")
    assert place.uri == f"{base}/{place.path}"
    assert not storage.is_file(place.uri) or storage.read_bytes(place.uri) == b"ours"


@given(st.sampled_from(["s3://bucket/base", "s3://bucket", "memory://base", "gs://bucket/base"]), VALUES)
@settings(max_examples=400, deadline=None)
def test_no_remote_entry_leaves_the_root(root: str, value: str) -> None:
    try:
        place = Roots((root,), root, "m").locate(value)
    except ValueError:
        return
    assert place.uri == f"{root}/{place.path}"
    assert not {".", ".."} & set(place.path.replace("\\", "/").split("/"))
    assert "::" not in place.path or root.startswith("s3://")


@given(st.lists(st.text("abc%. é#+", min_size=1, max_size=8), min_size=1, max_size=4).map("/".join))
@settings(deadline=None)
def test_ordinary_entries_are_found_however_they_are_written(base: Path, path: str) -> None:
    if {".", ".."} & set(path.split("/")):
        return
    for value in (path, f"{base}/{path}", f"./{path}", f"file://{base}/{path}"):
        assert Roots((), str(base), "m").locate(value) == (path, f"{base}/{path}")
    assert Roots(("s3://bucket/base",), "/elsewhere", "m").locate(f"s3://bucket/base/{path}").path == path


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd", "../secret.png", "a/../../secret.png", "s3://bucket/base/x", "file:///etc/passwd",
        "link/secret.png", "linked.png", quote("../secret.png", safe=""), "a/%252e%252e/x", "..\\secret.png", "", ".",
        "x.parquet#bytes#0",
    ],
)  # fmt: skip
def test_what_is_refused(base: Path, value: str) -> None:
    with pytest.raises(ValueError, match="outside the archive's folder"):
        Roots((), str(base), "m").locate(value)
    with pytest.raises(ValueError, match="outside the archive's folder"):
        Roots(("s3://bucket/base2",), str(base), "m").locate(value)


def test_links_within_the_root_and_to_the_root_are_followed(base: Path) -> None:
    assert Roots((), str(base), "m").locate("inner.png").path == "inner.png"
    entry = base.parent / "entry"
    assert Roots((), str(entry), "m").locate("b.png") == ("b.png", f"{entry}/b.png")


def test_a_prefix_that_looks_alike_is_another(base: Path) -> None:
    roots = Roots(("s3://bucket/base", str(base)), "/", "m")
    assert roots.locate("s3://bucket/base/x").path == "x"
    for value in (
        "s3://bucket/base-evil/x",
        "s3://bucket2/base/x",
        "s3://bucket",
        "s3://bucket/base",
        f"{base}-evil/x",
    ):
        with pytest.raises(ValueError, match="outside"):
            roots.locate(value)


def test_of_nested_roots_the_innermost_holds_an_entry() -> None:
    for roots in (("s3://b/x", "s3://b/x/y"), ("s3://b/x/y", "s3://b/x")):
        assert Roots(roots, "/", "m").locate("s3://b/x/y/z.png").path == "z.png"
        assert Roots(roots, "/", "m").locate("s3://b/x/z.png").path == "z.png"
