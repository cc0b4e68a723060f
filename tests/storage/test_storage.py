"""The same behaviour on a local folder, on S3 (moto, and Ceph where it is installed) and through fsspec."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from pneumobatch import storage
from pneumobatch.storage import persistence


def test_bytes_and_tables_round_trip(base: str) -> None:
    uri = storage.join(base, "a", "b c%20+ü.bin")
    assert not storage.is_file(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.is_file(uri)
    assert not storage.is_folder(uri)
    table = pa.table({"x": [1, None, 3], "y": ["a", "b", "c"]})
    storage.write_table(storage.join(base, "t.parquet"), table)
    assert storage.read_table(storage.join(base, "t.parquet")).equals(table)
    assert storage.read_table(storage.join(base, "t.parquet"), ["y", "z"]).equals(table.select(["y"]))
    assert storage.is_folder(storage.join(base, "a"))
    assert not storage.is_file(storage.join(base, "a"))
    where, path = storage.filesystem(storage.join(base, "t.parquet"))
    assert pq.read_table(path, filesystem=where, partitioning=None).equals(table)


def test_files_are_listed_without_hidden_ones_and_deleting_takes_all(base: str) -> None:
    for name in ("x/1.png", "x/y/2.png", "x/_staging/3", "x/.hidden", "x/y/z/_4"):
        storage.write_bytes(storage.join(base, name), b"12")
    found = sorted(storage.list_files(storage.join(base, "x")))
    assert [(file.path, file.size) for file in found] == [("1.png", 2), ("y/2.png", 2)]
    storage.delete(storage.join(base, "x/y/2.png"))
    assert [file.path for file in storage.list_files(storage.join(base, "x"))] == ["1.png"]
    storage.delete(storage.join(base, "x"))
    storage.delete(storage.join(base, "x"))
    assert list(storage.list_files(storage.join(base, "x"))) == []
    assert not storage.is_folder(storage.join(base, "x"))


def test_the_version_changes_with_the_content(base: str) -> None:
    uri = storage.join(base, "v", "a.bin")
    versions = []
    for content in (b"one", b"two", b"two "):
        storage.write_bytes(uri, content)
        versions += [file.version for file in storage.list_files(storage.join(base, "v"))]
    assert len(set(versions)) == 3
    assert all(versions)


def test_a_missing_file_is_missing(base: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(base, "nothing"))
    with pytest.raises(FileNotFoundError):
        storage.open_file(storage.join(base, "nothing"))


def test_nothing_is_read_of_a_file_above_the_limit(base: str) -> None:
    uri = storage.join(base, "large")
    storage.write_bytes(uri, b"12345")
    assert storage.read_bytes(uri, limit=5) == b"12345"
    with pytest.raises(storage.TooLargeError):
        storage.read_bytes(uri, limit=4)


def test_creating_respects_what_is_there(base: str) -> None:
    uri = storage.join(base, "c", "marker.json")
    assert storage.create_bytes(uri, b"ours")
    assert storage.create_bytes(uri, b"ours")
    assert not storage.create_bytes(uri, b"theirs")
    assert storage.read_bytes(uri) == b"ours"
    assert [file.path for file in storage.list_files(storage.join(base, "c"))] == ["marker.json"]


@pytest.mark.parametrize("base", ["local", "ceph_s3"], indirect=True)
def test_of_many_creators_one_wins(base: str) -> None:
    for round_ in range(3):
        uri = storage.join(base, f"race-{round_}")
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda i, uri=uri: storage.create_bytes(uri, f"writer {i}".encode()), range(16)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode()


def test_parquet_is_read_by_row_groups(base: str) -> None:
    uri = storage.join(base, "groups.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": range(1000), "y": [b"z" * 100] * 1000}), sink, row_group_size=100)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        assert file.read_row_group(3, ["x"])["x"].to_pylist() == list(range(300, 400))


def test_an_unknown_protocol_is_named() -> None:
    for ask in (storage.filesystem, storage.read_bytes):
        with pytest.raises(ValueError, match="nope://"):
            ask("nope://x")
    with pytest.raises(ValueError, match="give the bucket"):
        storage.read_bytes("s3:///x")


def test_errors_of_a_stores_own_package_are_of_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As gcsfs and adlfs have them, which are no OSError: asked again, and then told without their text."""

    class HttpError(Exception):
        pass

    fails = iter([True])
    read = MemoryFileSystem.cat_file

    def failing(self: MemoryFileSystem, path: str, *more: object, **named: object) -> bytes:
        if next(fails, False):
            raise HttpError("503 for /DOE^JANE.dcm")
        return bytes(read(self, path, *more, **named))

    uri = f"memory://{tmp_path.name}/a"
    storage.write_bytes(uri, b"1")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    assert storage.read_bytes(uri) == b"1"
    fails = iter(lambda: True, False)
    monkeypatch.setattr(persistence, "PATIENCE", 0.3)
    with pytest.raises(OSError, match="the store failed: HttpError") as caught:
        storage.read_bytes(uri)
    assert "DOE" not in str(caught.value)


def test_a_folder_that_two_delete_is_gone(tmp_path: Path) -> None:
    for number in range(300):
        storage.write_bytes(str(tmp_path / "staging" / str(number % 7) / str(number)), b"")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(storage.delete, [str(tmp_path / "staging")] * 4))
    assert not (tmp_path / "staging").exists()


def test_a_table_is_read_again_where_the_store_behind_fsspec_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night reads the tables of all nights before it."""
    uri, table = f"memory://{tmp_path.name}/x.parquet", pa.table({"a": [1, 2]})
    storage.write_table(uri, table)
    fails = iter([True])

    def failing(kind: type, name: str) -> Any:
        works = getattr(kind, name)

        def called(*given: Any, **more: Any) -> Any:
            if next(fails, False):
                raise RuntimeError("the package's own")
            return works(*given, **more)

        return called

    for kind, name in ((MemoryFileSystem, "cat_file"), (MemoryFile, "read")):
        monkeypatch.setattr(kind, name, failing(kind, name))
    assert storage.read_table(uri).equals(table)
    assert not next(fails, False)
