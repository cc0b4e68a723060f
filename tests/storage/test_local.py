"""What only local folders do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pneumobatch import storage


def test_links_are_listed_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"1")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "films").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "archive" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "archive" / "pipe")
    found = {file.path for file in storage.list_files(str(tmp_path / "archive"))}
    assert found == {"films/a.png", "gone.png", "loop"}
    for name in ("gone.png", "loop"):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(str(tmp_path / "archive" / name))


def test_a_name_that_is_no_text_does_not_stop_a_listing(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.dcm")).write_bytes(b"1")
    (tmp_path / "Müller.dcm").write_bytes(b"1")
    found = sorted(file.path for file in storage.list_files(str(tmp_path)))
    assert found == ["M\\xfcller.dcm", "Müller.dcm"]


def test_a_local_write_leaves_no_draft(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "d" / "x"), b"1")
    storage.create_bytes(str(tmp_path / "d" / "y"), b"1")
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["x", "y"]


@pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
def test_a_folder_that_cannot_be_written_is_named(write: Callable[[str, bytes], object], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(OSError, match=f"^{folder}: cannot be written: .*; .* another output.uri$") as caught:
            write(str(folder / "x"), b"1")
        assert caught.value.filename is None  # the console does not take it for a film's


def test_a_disk_without_hard_links_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exFAT answers; none is mounted here."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", "a", None, "b")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(OSError, match=f"^{tmp_path}: its file system has no hard links.* give an output.uri on a disk"):
        storage.create_bytes(str(tmp_path / "x"), b"1")
    assert list(tmp_path.iterdir()) == []
