"""Stores that fail, answer late, or say what is not so."""

import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumobatch import storage
from pneumobatch.storage import persistence
from tests.faults import FaultProxy, Rule
from tests.storage.buckets import bucket, put_all

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
        client.put_object(Bucket=bucket(base), Key=f"base/{name}", Body=b"1")
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
    put_all(s3, [f"{i:02}" for i in range(25)])
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
    other = threading.Timer(0.2, lambda: client.put_object(Bucket=bucket(s3), Key="base/a", Body=b"theirs"))
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
