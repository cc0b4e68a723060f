"""A few trials of `tests.chaos`; `make chaos` runs as many as one likes."""

import os
from pathlib import Path

import pytest

from tests import ceph as ceph_store
from tests import chaos


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> chaos.Scene:
    return chaos.prepare(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize(("kind", "seed"), [("driver", 1), ("actor", 2), ("decoder", 3), ("raylet", 21)])
def test_killed_and_started_again_nothing_is_lost(scene: chaos.Scene, kind: str, seed: int) -> None:
    outcome = chaos.killing(kind, seed, scene)
    assert outcome.wrong == [], (scene.folder / "log").read_text()[-3000:]


@pytest.mark.parametrize(("kind", "seed"), [("slow_down", 5), ("lost_reply", 6), ("outage", 7)])
def test_a_failing_store_loses_nothing(
    scene: chaos.Scene, ceph: ceph_store.Ceph, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    outcome = chaos.failing_store(kind, seed, scene, outage=10)
    assert outcome.wrong == [], Path(scene.folder / "log").read_text()[-3000:]
    assert outcome.hit > 0
