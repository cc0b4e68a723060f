"""How a job divides what a cluster has, and which addresses it takes; no engine is needed to decide it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pneumobatch.cluster import Node, Resources, address_of, engine
from pneumobatch.config import Cluster, Job, Screening
from pneumobatch.screening.pipeline import pool
from pneumobatch.training.fit import _cpus_per_worker
from pneumobatch.training.tune import _cpus


@pytest.mark.parametrize(
    ("nodes", "local", "workers", "gpu", "cpus"),
    [
        ([(8, 0)], True, (2,), False, 4),
        ([(2, 0)], True, (1, 4), False, 0.5),
        ([(8, 0), (8, 0)], False, (2,), False, 8),
        ([(8, 0), (8, 0)], False, (4,), False, 4),
        ([(8, 0), (64, 0)], False, (2,), False, 8),  # what fits the smallest fits everywhere
        ([(4, 0), (4, 0), (4, 0)], False, (1, 4), False, 4),  # a fourth comes with a fourth node
        ([(1, 0)], False, (4,), False, 1),  # waits for nodes that an autoscaler brings
        ([], False, (4,), False, 1),
        ([(4, 0), (16, 2)], False, (2,), True, 8),
    ],
)
def test_workers_fit_the_nodes(
    nodes: list[tuple[float, float]], local: bool, workers: tuple[int, ...], gpu: bool, cpus: float
) -> None:
    resources = Resources(tuple(Node(*node) for node in nodes), local)
    assert _cpus_per_worker(resources, workers, gpu) == cpus


@pytest.mark.parametrize(
    ("nodes", "local", "scorers", "gpu", "sizes"),
    [
        ([(8, 0)], True, 0, False, (8, 8, 8)),
        ([(8, 0)], True, 3, False, (3, 3, 3)),
        ([(8, 0), (4, 0)], False, 0, False, (1, 12, 20)),
        ([(8, 1), (4, 0)], False, 0, True, (1, 1, 20)),
        ([(8, 1), (4, 0)], False, 0, False, (1, 12, 20)),  # a run that began on CPUs keeps to them
        ([(64, 0)], False, 0, False, (1, 20, 20)),  # no more scorers than blocks
        ([], False, 0, False, (1, 1, 20)),
        ([], False, 8, True, (1, 8, 8)),  # asked for at once, and begun with the first
    ],
)
def test_scorers_follow_the_nodes(
    nodes: list[tuple[float, float]], local: bool, scorers: int, gpu: bool, sizes: tuple[int, int, int]
) -> None:
    resources = Resources(tuple(Node(*node) for node in nodes), local)
    found = pool(Screening(scorers=scorers), resources, 20, gpu=gpu)
    assert (found.min_size, found.initial_size, found.max_size) == sizes


@pytest.mark.parametrize(
    ("nodes", "per_gpu", "gpu", "cpus"),
    [
        ([(16, 1)], 4, True, 4),
        ([(4, 0)] * 8 + [(8, 1)], 4, True, 2),  # four of them fit the GPU's node
        ([(64, 0), (64, 0), (8, 1)], 1, True, 8),  # CPUs of nodes without a GPU are none of a trial's
        ([(16, 4), (8, 1)], 1, True, 4),
        ([(2, 1)], 4, True, 1),
        ([(4, 0)], 1, True, 1),  # its node is still to come
        ([(8, 0), (8, 0)], 1, False, 8),
        ([], 1, False, 1),
    ],
)
def test_trials_fit_the_nodes(nodes: list[tuple[float, float]], per_gpu: int, gpu: bool, cpus: int) -> None:
    job = Job.model_validate({"experiment": {"trials_per_gpu": per_gpu}})
    assert _cpus(job, Resources(tuple(Node(*node) for node in nodes), local=False), gpu=gpu) == cpus


@pytest.mark.parametrize("named", ["section", "environment"])
def test_ray_client_is_refused_with_the_two_ways_that_there_are(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    section = Cluster(address="ray://head:10001") if named == "section" else Cluster()
    with (
        pytest.raises(ValueError, match=r"cluster\.address: ray://head:10001 (?s:.*)HOST:6379(?s:.*)submit VERB"),
        engine(section),
    ):
        pass


def test_local_is_the_embedded_engine_also_where_the_environment_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address_of(Cluster()) == "head:6379"
    assert address_of(Cluster(address="local")) is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert address_of(Cluster()) is None


def run(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    mine = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=mine | environment, capture_output=True, text=True, check=False
    )


def test_a_token_that_is_missing_is_told_with_the_remedy(tmp_path: Path) -> None:
    code = "from pneumobatch import cluster, config\nwith cluster.engine(config.Cluster(address='127.0.0.1:1')): pass"
    done = run(code, HOME=str(tmp_path), RAY_AUTH_MODE="token")
    assert done.stderr.splitlines()[-1].startswith("ValueError: cluster.address: 127.0.0.1:1 wants a token, and there")
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_a_local_engine_has_a_token_and_needs_no_home_for_it(tmp_path: Path) -> None:
    code = """if True:
        import ray
        from ray._private.authentication import authentication_token_setup as tokens
        from pneumobatch import cluster, config

        def init(**_):  # what ray.init does first
            tokens.enable_token_auth_by_default()
            tokens.ensure_token_if_auth_enabled()
            raise SystemExit

        ray.init = init
        with cluster.engine(config.Cluster()):
            pass
    """
    for home in (tmp_path, tmp_path / "file" / "none"):
        (tmp_path / "file").write_text("")
        done = run(code, HOME=str(home))
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
