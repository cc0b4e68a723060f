"""What tests share: one small archive, one small bundle, one local engine for the whole session."""

import gc
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from pneumobatch import cluster
from pneumobatch.archive import phantoms
from pneumobatch.config import Cluster
from pneumobatch.models import bundle as bundles
from tests import ceph as ceph_store
from tests import untrained

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_configure() -> None:
    """Sets what this process and all that tests start inherit.

    A suite in a shell's background ignores interrupts, and so would the commands that tests start and interrupt.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        "RAY_worker_niceness": "0",  # by themselves they give way to the other lane, which keeps a core busy
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a training of seconds is not to wait two for its end
    }


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that share the engine, for the two lanes of `make test`."""
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker("lane_engine")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real X-rays beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real X-rays of ../shared/data are not here")
    return SHARED


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled archive of 60 phantoms with planted defects."""
    folder = tmp_path_factory.mktemp("films")
    phantoms.write_archive(folder, 60, seed=3)
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What `films` holds, by kind."""
    return phantoms.write_archive(tmp_path_factory.mktemp("again"), 60, seed=3)


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., bundles.Bundle]:
    """Writes a bundle of an untrained network."""
    return untrained.write_bundle


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., bundles.Bundle]) -> str:
    """A small bundle."""
    uri = str(tmp_path_factory.mktemp("bundle"))
    make_bundle(uri)
    return uri


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest) -> None:
    """Actors of a pipeline that failed keep their CPUs until its exception, a cycle, is collected: a process that waits
    for these CPUs, as the next test may, never gets to it by itself."""
    if "engine" in request.fixturenames:
        gc.collect()


@pytest.fixture(scope="session")
def engine() -> Iterator[cluster.Resources]:
    """The local engine that all engine tests share."""
    with cluster.engine(Cluster(num_cpus=2, object_store_gb=0.5)) as resources:
        yield resources


def _enter(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> str:
    """Leads this process to a store, and makes a bucket there."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"archive-{uuid.uuid4().hex[:8]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/base"


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Endpoint of a mock of S3: it knows no credentials, and forgets."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a new bucket of the mock, with this process's environment leading to it."""
    return _enter(monkeypatch, ceph_store.environment(moto))


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ceph_store.Ceph]:
    """A real object store."""
    if missing := ceph_store.missing():
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: radosgw, ceph-mon, ceph-osd, ceph-common)")
    with ceph_store.Ceph(tmp_path_factory.mktemp("ceph")) as store:
        yield store


@pytest.fixture
def ceph_s3(ceph: ceph_store.Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a new bucket of the real store, with this process's environment leading to it."""
    return _enter(monkeypatch, ceph.environment)
