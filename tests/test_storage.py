"""Storage: the same behaviour on a local folder, on S3 (moto, and Ceph where it is installed) and through fsspec."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumobatch import storage
from pneumobatch.storage import persistence
from tests.ceph import environment
from tests.faults import FaultProxy, Rule


@pytest.fixture(params=["local", "s3", "memory", "ceph_s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in {"s3", "ceph_s3"}:
        return str(request.getfixturevalue(request.param))
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").split("/")[0]


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


# --- local folders


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


# --- S3


@pytest.mark.parametrize("base", ["s3", "ceph_s3"], indirect=True)
def test_keys_are_taken_as_they_are(base: str) -> None:
    """Folder markers are no files, an empty part is a part, and a prefix ends with a slash."""
    client = boto3.session.Session().client("s3")
    for key in ("base/a//b.png", "base/folder/", "base/", "base-evil/x.png", "base/ü +%41?#.png", "base/c.png"):
        client.put_object(Bucket=_bucket(base), Key=key, Body=b"1" if key.endswith(".png") else b"")
    found = sorted(file.path for file in storage.list_files(base))
    assert found == ["a//b.png", "c.png", "ü +%41?#.png"]
    assert [storage.read_bytes(f"{base}/{path}") for path in found] == [b"1"] * 3
    with pytest.raises(storage.TooLargeError):
        storage.read_bytes(f"{base}/a//b.png", limit=0)
    storage.delete(base)
    left = client.list_objects_v2(Bucket=_bucket(base))["Contents"]
    assert [entry["Key"] for entry in left] == ["base-evil/x.png"]


def _put_all(base: str, names: list[str]) -> None:
    client = boto3.session.Session().client("s3")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.put_object(Bucket=_bucket(base), Key=f"base/{name}", Body=b"12"), names))


def test_a_large_listing_is_what_was_written(ceph_s3: str) -> None:
    names = [f"{year}/{month:02}/{i:05}.png" for year in (2024, 2025) for month in (1, 2, 3) for i in range(400)]
    names += [f"2024/top-{i:04}.png" for i in range(300)] + [f"root-{i:04}.png" for i in range(300)]
    _put_all(ceph_s3, names)
    found = list(storage.list_files(ceph_s3))
    assert sorted(file.path for file in found) == sorted(names)
    assert {(file.size, file.version) for file in found} == {(2, "c20ad4d76fe97759aa27a0c99bff6710")}
    storage.delete(ceph_s3)
    assert not storage.is_folder(ceph_s3)


@pytest.mark.parametrize("folders", [1, 3, 40])
def test_a_listing_of_many_pages(folders: int, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flat folder, few large ones, many small ones, with files beside them at every level."""
    monkeypatch.setattr(storage.s3, "PAGE", 10)
    names = [f"{i % folders:02}/{i % 2}/{i:04}.png" for i in range(100)] + [f"{i:04}.png" for i in range(5)]
    _put_all(s3, names)
    assert sorted(file.path for file in storage.list_files(s3)) == sorted(names)
    storage.delete(s3)
    assert not storage.is_folder(s3)


@pytest.mark.parametrize("base", ["s3", "ceph_s3"], indirect=True)
def test_a_bucket_that_is_not_there(base: str) -> None:
    assert not storage.is_folder("s3://no-such-bucket-here/x")
    assert list(storage.scan("s3://no-such-bucket-here/x")) == []
    storage.delete("s3://no-such-bucket-here/x")
    for act in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(FileNotFoundError, match="no such bucket"):
            act("s3://no-such-bucket-here/x")


def test_wrong_credentials_are_refused_at_once(ceph_s3: str, ceph: object, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"1")
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "wrong-key")):
        monkeypatch.setenv(name, value)
        for ask in (
            lambda: storage.read_bytes(f"{ceph_s3}/DOE^JANE.dcm"),
            lambda: storage.write_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"2"),
            lambda: storage.create_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"2"),
            lambda: storage.is_file(f"{ceph_s3}/DOE^JANE.dcm"),
            lambda: list(storage.scan(ceph_s3)),
            lambda: storage.delete(ceph_s3),
            lambda: storage.open_file(f"{ceph_s3}/DOE^JANE.dcm"),
        ):
            with pytest.raises(PermissionError, match="refused access.*check the environment's credentials") as caught:
                ask()
            text = str(caught.value) + repr(caught.value.__context__ if caught.value.__cause__ else "")
            assert "wrong" not in text
            assert "DOE" not in text


def test_no_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match="no usable credentials.*AWS_PROFILE"):
        storage.read_bytes(f"{s3}/x")


def test_the_profile_leads_to_the_store(moto: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"1")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    text = f"[profile site]\nregion = eu-central-1\nendpoint_url = {moto}\naws_access_key_id = a\n"
    (tmp_path / "config").write_text(text + "aws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "site")
    assert storage.read_bytes(f"{s3}/x") == b"1"
    assert [file.path for file in storage.list_files(s3)] == ["x"]
    assert storage.filesystem(s3)[0].get_file_info(f"{s3.removeprefix('s3://')}/x").size == 1


# --- what stores do


@pytest.fixture
def proxy(moto: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(moto, seed=1) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage.s3, "STALL", 1)
        monkeypatch.setattr(storage.s3_clients, "STALL", 1)
        storage.s3_clients.key_client.cache_clear()  # it was made with the longer patience
        yield proxy
    storage.s3_clients.key_client.cache_clear()


FAULTS = [
    ("status", {"status": 503}),
    ("status", {"status": 500}),
    ("status", {"status": 404, "body": b"404 page not found\n"}),  # of a load balancer
    ("status", {"status": 404, "body": b"<html><body>404</body></html>"}),
    ("status", {"status": 404, "body": b""}),
    ("reset", {}),
    ("lost_reply", {}),
    ("truncate", {}),
    ("stall", {"seconds": 5}),
    ("delay", {"seconds": 0.2}),
]


@pytest.mark.parametrize(("fault", "more"), FAULTS)
def test_every_operation_survives(fault: str, more: dict, s3: str, proxy: FaultProxy) -> None:
    content = bytes(range(256)) * 100

    def once(method: str = "") -> None:
        proxy.rules = [Rule(fault, method=method, nth=1, **more)]

    once()
    storage.write_bytes(f"{s3}/a", content)
    once()
    assert storage.read_bytes(f"{s3}/a") == content
    once()
    assert storage.is_file(f"{s3}/a")
    once()
    assert [file.path for file in storage.list_files(s3)] == ["a"]
    for number, method in enumerate(("GET", "PUT")):
        once(method)
        assert storage.create_bytes(f"{s3}/new-{number}", content)
        once(method)
        assert not storage.create_bytes(f"{s3}/new-{number}", b"other")
    once()
    with storage.open_file(f"{s3}/a") as file:
        file.seek(100)
        assert file.read(50) == content[100:150]
    once("POST")
    storage.delete(s3)
    proxy.rules = []
    assert not storage.is_folder(s3)
    assert proxy.injected[fault] >= 8


def test_a_store_that_fails_three_times_in_ten(s3: str, proxy: FaultProxy) -> None:
    proxy.rules = [Rule("status", probability=0.2), Rule("reset", probability=0.05), Rule("truncate", probability=0.1)]
    names = [f"{i:02}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"{s3}/{name}", name.encode()), names))
        assert list(pool.map(lambda name: storage.read_bytes(f"{s3}/{name}"), names)) == [n.encode() for n in names]
    assert sorted(file.path for file in storage.list_files(s3)) == names
    assert proxy.injected.total() > 20


@pytest.mark.parametrize("base", ["s3", "ceph_s3"], indirect=True)
def test_only_the_store_says_what_is_missing(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer answers for the store for a while: nothing that is there becomes missing by it."""
    client = boto3.session.Session().client("s3")
    for name in ("a", "b/c"):
        client.put_object(Bucket=_bucket(base), Key=f"base/{name}", Body=b"1")
    with FaultProxy(client.meta.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for ask, truth in (
            (lambda: storage.read_bytes(f"{base}/a"), b"1"),
            (lambda: storage.is_file(f"{base}/a"), True),
            (lambda: storage.is_folder(f"{base}/b"), True),
            (lambda: storage.stat(f"{base}/a").size, 1),
            (lambda: sorted(file.path for file in storage.list_files(base)), ["a", "b/c"]),
            (lambda: storage.create_bytes(f"{base}/a", b"2"), False),
            (lambda: storage.open_file(f"{base}/a").read(), b"1"),
        ):
            proxy.rules = [Rule("status", status=404, body=b"404 page not found\n", nth=1) for _ in range(3)]
            assert ask() == truth
            assert all(rule.seen for rule in proxy.rules)
        proxy.rules = [Rule("status", status=404, body=b"404 page not found\n")]
        monkeypatch.setattr(persistence, "PATIENCE", 0.3)
        for refused in (lambda: storage.is_file(f"{base}/x"), lambda: list(storage.scan(base))):
            with pytest.raises(OSError, match="404 without the error code of a store") as caught:
                refused()
            assert not isinstance(caught.value, FileNotFoundError)
        proxy.rules = []
        assert not storage.is_file(f"{base}/x")
        with pytest.raises(FileNotFoundError, match="no such object"):
            storage.stat(f"{base}/x")


def test_a_bucket_that_goes_during_a_listing_is_no_end_of_it(
    s3: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.s3, "PAGE", 10)
    _put_all(s3, [f"{i:02}" for i in range(25)])
    gone = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>"
    proxy.rules = [Rule("status", path="continuation-token", status=404, body=gone)]
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        list(storage.scan(s3))


def test_an_outage_is_waited_for(s3: str, proxy: FaultProxy) -> None:
    proxy.outage(2)
    storage.write_bytes(f"{s3}/a", b"1")
    proxy.outage(2)
    assert storage.read_bytes(f"{s3}/a") == b"1"
    proxy.outage(1)
    assert [file.path for file in storage.list_files(s3)] == ["a"]


def test_a_store_is_given_up(s3: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "PATIENCE", 1.0)
    proxy.rules = [Rule("status")]
    for ask in (
        lambda: storage.read_bytes(f"{s3}/DOE^JANE.dcm"),
        lambda: storage.write_bytes(f"{s3}/DOE^JANE.dcm", b"1"),
        lambda: list(storage.scan(s3)),
    ):
        with pytest.raises(OSError, match="given up \\(503 SlowDown\\)") as caught:
            ask()
        assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(("status", "message"), [(400, "answered 400"), (403, "refused access"), (301, "region")])
def test_what_asking_again_cannot_change(status: int, message: str, s3: str, proxy: FaultProxy) -> None:
    proxy.rules = [Rule("status", status=status)]
    asks = [lambda: storage.read_bytes(f"{s3}/a"), lambda: list(storage.scan(s3))]
    for ask in asks[: 1 if status == 301 else 2]:  # boto3 follows a bucket to its region
        before = proxy.injected.total()
        with pytest.raises(OSError, match=message):
            ask()
        assert proxy.injected.total() == before + 1


def test_a_store_that_ignores_the_condition_still_keeps_what_is_there(s3: str, proxy: FaultProxy) -> None:
    proxy.unconditional = True
    assert storage.create_bytes(f"{s3}/a", b"ours")
    assert not storage.create_bytes(f"{s3}/a", b"theirs")
    assert storage.read_bytes(f"{s3}/a") == b"ours"


def test_a_lost_race_is_seen(s3: str, proxy: FaultProxy) -> None:
    """Another writer comes between the look and the write."""
    proxy.rules = [Rule("delay", method="PUT", nth=1, seconds=0.5)]
    client = boto3.session.Session().client("s3", endpoint_url=proxy.upstream)
    other = threading.Timer(0.2, lambda: client.put_object(Bucket=_bucket(s3), Key="base/a", Body=b"theirs"))
    other.start()
    assert not storage.create_bytes(f"{s3}/a", b"ours")
    other.join()
    assert storage.read_bytes(f"{s3}/a") == b"theirs"


@given(st.floats(0.05, 1), st.floats(1, 30))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_patience_is_bounded(monkeypatch: pytest.MonkeyPatch, lasting: float, patience: float) -> None:
    """However long an attempt lasts, no more than one begins after the patience is spent."""
    clock = 0.0

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    def attempt() -> None:
        nonlocal clock
        clock += lasting
        raise persistence.PassingError("no")

    with monkeypatch.context() as patch:
        patch.setattr(persistence.time, "monotonic", lambda: clock)
        patch.setattr(persistence.time, "sleep", sleep)
        patch.setattr(persistence, "PATIENCE", patience)
        with pytest.raises(persistence.PassingError):
            persistence.persist(attempt)
    assert patience - persistence.LONGEST_PAUSE <= clock <= patience + lasting
