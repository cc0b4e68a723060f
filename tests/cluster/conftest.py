"""One cluster of hosts for these tests, and the object store that its jobs work on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pneumobatch import storage
from tests import ceph as ceph_store
from tests.ceph import environment
from tests.cluster import hosts
from tests.faults import FaultProxy


@dataclass
class Site:
    """A cluster and its store, as a user's machine sees them."""

    cluster: hosts.Cluster
    store: FaultProxy
    """What the hosts reach the store through: it can be made slow."""
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str, url: str = "", cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Starts a command line of pneumobatch at the user's machine."""
        command = [sys.executable, "-m", "pneumobatch", *words, "--cluster.address", url or self.cluster.url]
        return subprocess.Popen(
            command, cwd=cwd, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        process = self.start(*words, cwd=cwd, **environment)
        try:
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="session")
def site(ceph: ceph_store.Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A head and three workers."""
    with (
        hosts.Cluster(tmp_path_factory.mktemp("hosts")) as cluster,
        FaultProxy(ceph.url, host=cluster.gateway) as store,
    ):
        cluster.boot(3, environment(store.url, ceph.access_key, ceph.secret_key))
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        yield Site(cluster, store, mine | cluster.environment)


@pytest.fixture
def archive(site: Site, ceph_s3: str, films: Path) -> Iterator[str]:
    """The films on the store, under `in`, with nothing else there; the store is quick again afterwards."""
    put(films, f"{ceph_s3}/in")
    yield ceph_s3
    site.store.rules = []


def put(folder: Path, uri: str) -> None:
    """Copies a folder to the store."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())
