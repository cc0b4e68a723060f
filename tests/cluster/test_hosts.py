"""Training and screening over several hosts, some of which are lost, by a user's own commands."""

import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pneumobatch import storage
from pneumobatch.screening import ledger
from tests.cluster.conftest import Site, put
from tests.cluster.hosts import Host
from tests.faults import Rule

pytestmark = [pytest.mark.engine, pytest.mark.lane_engine]

TRAINING = {
    "network.name": "timm/test_resnet",  # small, as every epoch's checkpoint travels, and with batch normalisation
    "network.image_size": "32",
    "training.run_id": "run",
    "training.batch_size": "13",  # which two workers cannot share evenly
    "training.learning_rate": "0.002",
    "training.validation_fraction": "0.3",
    "training.precision": "fp32",
    "training.failure_budget": "0.3",
}


def train(site: Site, archive: str, output: str, *more: str) -> subprocess.Popen[str]:
    flags = [word for key, value in TRAINING.items() for word in (f"--{key}", value)]
    return site.start(
        "submit", "train", "--archive.uri", f"{archive}/in", "--output.uri", f"{archive}/{output}", *flags, *more
    )


def ended(process: subprocess.Popen[str], seconds: float = 400) -> str:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    return out


def until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.2)


def runs_on(host: Host, title: str) -> bool:
    return any(title in process for process in host.processes())


def test_two_hosts_train_as_one_does(site: Site, archive: str) -> None:
    curves = []
    started = [
        train(site, archive, f"{workers}", "--training.workers", f"{workers}", "--training.epochs", "4")
        for workers in (1, 2)
    ]
    for workers, process in zip((1, 2), started, strict=True):
        out = ended(process)
        assert f", {workers} × 1 CPU" in out  # and no host has two
        history = storage.read_bytes(f"{archive}/{workers}/bundles/run/history.parquet")
        curves.append(pq.read_table(io.BytesIO(history)))
    one, two = curves
    for name in ("train_loss", "validation_loss", "auroc"):
        np.testing.assert_allclose(two[name].to_numpy(), one[name].to_numpy(), rtol=1e-3, atol=2e-5, err_msg=name)
    assert np.ptp(one["train_loss"].to_numpy()) > 0.03 * one["train_loss"][0].as_py()  # a curve, not a line


def test_training_goes_on_without_a_lost_host_and_with_a_new_one(site: Site, archive: str) -> None:
    epochs = 30
    history = f"{archive}/out/_staging/_trainings/run/history.json"

    def rows() -> list[dict[str, float]]:
        return json.loads(storage.read_bytes(history)) if storage.is_file(history) else []

    site.store.rules = [Rule("delay", method="PUT", path="history.json", seconds=5)]
    process = train(site, archive, "out", "--training.workers", "1", "4", "--training.epochs", f"{epochs}")
    until(rows, process)
    before = rows()  # they tell by the clock when they were made; none is too new to be in a checkpoint at the loss
    first = site.cluster.workers
    assert all(runs_on(host, "RayTrainWorker") for host in first)
    new = site.cluster.join()
    site.cluster.wait()
    first[0].kill()
    until(lambda: runs_on(new, "RayTrainWorker"), process)
    site.store.rules = []
    ended(process)
    assert len(before) < epochs
    whole = pq.read_table(io.BytesIO(storage.read_bytes(f"{archive}/out/bundles/run/history.parquet")))
    assert whole["epoch"].to_pylist() == list(range(1, epochs + 1))
    assert whole.to_pylist()[: len(before)] == before  # it went on, and did not start over


def test_screening_uses_every_host_and_survives_the_loss_of_two(
    site: Site, archive: str, bundle_uri: str, films: Path, tmp_path: Path
) -> None:
    put(Path(bundle_uri), f"{archive}/bundle")
    job = tmp_path / "jobs" / "screen.toml"
    job.parent.mkdir()
    job.write_text(
        f'[archive]\nuri = "{archive}/in"\n[screening]\nbundle = "{archive}/bundle"\nrun_id = "run"\nblock_images = 1\n'
        f'failure_budget = 0.3\n[output]\nuri = "{archive}/out"\n[cluster]\naddress = "{site.cluster.url}"\n'
    )
    site.store.rules = [Rule("delay", method="GET", path="/base/in/.*jpe?g", seconds=12)]
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", site.cluster.url]
    command += ["--working-dir", str(tmp_path), "--", "pneumobatch", "screen", "jobs/screen.toml"]
    process = subprocess.Popen(
        command, env=site.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    first = site.cluster.workers
    assert len(first) == 3
    until(lambda: all(runs_on(host, "MapWorker") for host in first), process)
    new = site.cluster.join()
    until(lambda: runs_on(new, "MapWorker"), process)
    first[0].cut()
    first[1].kill()
    until(lambda: site.cluster.alive() == 3, process)  # the head, and two workers
    site.store.rules = []
    ended(process)
    (record,) = ledger.published(f"{archive}/out")
    files = sum(path.is_file() for path in films.rglob("*"))
    assert record["counts"]["catalogued"] == files
    assert record["counts"]["scored"] > files / 2
    assert record["hardware"]["nodes"] == 3
    rows = pq.read_table(io.BytesIO(storage.read_bytes(f"{archive}/out/{record['predictions'][0]}")))
    assert Counter(rows["image_id"].to_pylist()).most_common(1)[0][1] == 1
    assert len(rows) == files
