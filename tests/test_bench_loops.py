"""That what `bench` compares does the same work, on the same device and in the same precision, and says where not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pneumobatch import cluster
from pneumobatch.archive import phantoms
from pneumobatch.bench import loops, measurements, pipeline, training
from pneumobatch.bench.processes import Request
from pneumobatch.config import Job, Network
from pneumobatch.models.networks import build
from tests import untrained


def request(uri: str, uris: Iterable[Path] = (), **sections: Any) -> Request:
    job = Job.model_validate({**sections, "screening": {"bundle": uri, **sections.get("screening", {})}})
    return Request(job=job, measurement="", images=2, uris=tuple(map(str, uris)))


def films_of(folder: Path) -> list[Path]:
    """Two pictures, and a DICOM film."""
    rng = np.random.default_rng(3)
    sixteen = phantoms.film(rng, 1, 90, 80)
    for name in ("a.png", "b.png"):
        Image.fromarray((sixteen >> 8).astype(np.uint8)).save(folder / name)
    (folder / "c.dcm").write_bytes(phantoms._dicom(rng, sixteen))
    return sorted(folder.iterdir())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_plain_loop_does_the_networks_work_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, bundle = build(Network(name="resnet18", image_size=32, standardise=True, mirrored=True)), tmp_path / "b"
    (tmp_path / "films").mkdir()
    films, seen = films_of(tmp_path / "films"), []
    network.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    untrained.write_bundle(str(bundle), name="resnet18", size=32)
    monkeypatch.setattr(loops, "load_network", lambda *_: network.eval())
    facts = loops.plain(request(str(bundle), films), lambda: None)
    assert facts["left_out"] == 1
    assert facts["rate"] > 0
    assert len(seen) == 2 * 12  # twice a batch
    assert torch.equal(seen[1], seen[0].flip(3))
    assert seen[0].mean((1, 2, 3)).abs().max() < 1e-4
    assert seen[0].std((1, 2, 3)).sub(1).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_plain_loop_is_measured_while_its_workers_read_and_keeps_to_its_cpus(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(loops, "rates", lambda _, arrivals, ahead: taken.append((len(arrivals), ahead)) or {})
    monkeypatch.setattr(loops, "PLAIN_BATCH", 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        asked = request(bundle_uri, films_of(tmp_path)[:1])
        loops.plain(asked, lambda: taken.append(torch.get_num_threads()))
    finally:
        torch.set_num_threads(threads)
    used, (batches, ahead) = taken
    assert used == asked.threads == 1
    assert ahead == 2  # a DataLoader's worker reads two batches ahead
    assert batches // 6 >= ahead  # `steady` leaves them out


def test_an_archive_that_changes_meanwhile_is_named_and_its_films_are_not(bundle_uri: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be read any more") as raised:
        loops.plain(request(bundle_uri, [tmp_path / "Name^Secret.png"]), lambda: None)
    assert "Secret" not in str(raised.value)


def test_what_runs_without_its_gpu_is_measured_without(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films_of(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sections = {"archive": {"uri": str(tmp_path)}, "screening": {"use_gpu": False, "gate": {"pixel_check": False}}}
    facts = measurements.prepare(request(bundle_uri, **sections), lambda: None)
    assert (facts["gpus"], facts["batch"]) == (0, 8)
    asked: list[bool] = []

    @contextmanager
    def engine(_: object) -> Iterator[cluster.Resources]:
        yield cluster.Resources((cluster.Node(2, 2),), local=True)

    def decided(*_: object, gpu: bool) -> None:
        asked.append(gpu)
        raise InterruptedError

    monkeypatch.setattr(cluster, "engine", engine)
    monkeypatch.setattr(pipeline.screening, "decided", decided)
    for use_gpu in (False, None):
        with pytest.raises(InterruptedError):
            pipeline.pipeline(request(bundle_uri, [tmp_path / "a.png"], screening={"use_gpu": use_gpu}), lambda: None)
    assert asked == [False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_training_has_the_jobs_precision(
    precision: str, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, seen, made = films_of(tmp_path)[:2], set(), training.build

    def watched(config: Network) -> torch.nn.Module:
        network = made(config)
        network.backbone.fc.register_forward_hook(lambda *given: seen.add(given[2].dtype))
        return network

    monkeypatch.setattr(training, "build", watched)
    sections = {"training": {"precision": precision}, "bench": {"training_epochs": 1}}
    gate = {"screening": {"gate": {"pixel_check": False}}}
    assert training.training_plain(request(bundle_uri, films, **sections, **gate), lambda: None)["rate"] > 0
    assert seen == {torch.float32 if precision == "fp32" else torch.bfloat16}
