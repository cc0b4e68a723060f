from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumobatch import storage
from tests.ceph import environment
from tests.faults import FaultProxy


@pytest.fixture(params=["local", "s3", "memory", "ceph_s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param in {"s3", "ceph_s3"}:
        return str(request.getfixturevalue(request.param))
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


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
