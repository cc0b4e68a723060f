"""Two workers see the batch statistics that one sees. Each worker is a process, as DDP wants it."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn import functional as F

from pneumobatch.config import Job, Network
from pneumobatch.models.networks import build
from pneumobatch.training.loop import Trainer
from pneumobatch.training.shards import Films, Shard
from pneumobatch.training.synchronised import Synchronised

FILMS = 9  # which two workers cannot share evenly
CASES = {
    "attention": (Network(name="attention_resnet18", image_size=64), torch.float32),
    "half precision": (Network(name="attention_resnet18", image_size=64), torch.bfloat16),
    "timm": (None, torch.float32),  # whose layer normalises and activates in one
}


def step(case: str, worker: int, workers: int) -> dict[str, Tensor]:
    """One step of one worker's part of the batch; returns its gradients and running statistics."""
    config, arithmetic = CASES[case]
    torch.manual_seed(0)
    made = build(config) if config else timm.create_model("test_efficientnet", num_classes=2, in_chans=1)
    network = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.rand(FILMS, 1, 64, 64, generator=torch.Generator().manual_seed(1)) + 5  # far from 0
    rows = torch.arange(FILMS)[worker::workers]
    model = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False) if workers > 1 else network
    together = Synchronised() if workers > 1 else nullcontext()
    with together, torch.autocast("cpu", torch.bfloat16, enabled=arithmetic is torch.bfloat16):
        logits = model(pixels[rows])
    (F.cross_entropy(logits.float(), rows % 2) * len(rows) * workers / FILMS).backward()
    found = {f"gradient of {key}": parameter.grad for key, parameter in network.named_parameters()}
    return found | {key: buffer.float() for key, buffer in network.named_buffers()}


def epochs(worker: int, *, synchronise: bool) -> dict[str, Tensor]:
    """Two epochs of a worker; returns its network's and its average's state, and what it validates."""
    rng = np.random.default_rng(0)
    films = Films(
        [rng.integers(0, 255, (16, 32, 32), np.uint8)],
        np.stack([np.zeros(16, np.int64), np.arange(16)], axis=1),
        torch.arange(16) % 2,
    )
    training = {"epochs": 2, "batch_size": 8, "synchronise": synchronise, "ema_decay": 0.5}
    job = Job.model_validate({"network": {"name": "resnet18", "image_size": 32}, "training": training})
    trainer = Trainer(job, (8, 8), torch.device("cpu"), Shard(worker, 2))
    for _ in range(2):
        logits = trainer.advance(films, films)
    own = {f"network {key}": value.clone() for key, value in trainer.network.state_dict().items()}
    average = {f"average {key}": value.clone() for key, value in trainer.shipped().state_dict().items()}
    return own | average | {"logits": torch.from_numpy(logits)}


def work(worker: int, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=worker, world_size=workers)
    found = {case: step(case, worker, workers) for case in CASES}
    found |= {f"synchronise={value}": epochs(worker, synchronise=value) for value in (True, False)}
    torch.save(found, folder / f"{worker}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two workers found, by case."""
    folder = tmp_path_factory.mktemp("two")
    processes.spawn(work, (2, folder), nprocs=2)
    return [torch.load(folder / f"{worker}.pt") for worker in range(2)]


@pytest.mark.parametrize("case", ["attention", "timm"])
def test_a_shared_batch_has_the_gradients_and_statistics_of_one(
    case: str, two: list[dict[str, dict[str, Tensor]]]
) -> None:
    one = step(case, 0, 1)
    for found in (part[case] for part in two):
        assert found.keys() == one.keys()
        for key, value in one.items():
            near = 1e-3 * float(value.abs().max()) + 1e-6
            torch.testing.assert_close(found[key], value, rtol=0, atol=near, msg=lambda told, key=key: f"{key}: {told}")
    assert sum("running_var" in key for key in one) > 5


@pytest.mark.parametrize("case", CASES)
def test_statistics_are_the_same_on_all_workers_and_in_full_precision(
    case: str, two: list[dict[str, dict[str, Tensor]]]
) -> None:
    one, (first, second) = step(case, 0, 1), (part[case] for part in two)
    assert all(torch.equal(first[key], second[key]) for key in one if "running" in key)
    for kind in ("running_mean", "running_var"):
        key = next(key for key in one if key.endswith(kind))  # of the first layer, before rounding adds up
        torch.testing.assert_close(first[key], one[key], rtol=1e-3, atol=1e-5)


def test_workers_that_normalise_apart_ship_one_network(two: list[dict[str, dict[str, Tensor]]]) -> None:
    together, apart = ([part[f"synchronise={value}"] for part in two] for value in (True, False))
    for key, value in apart[0].items():
        own = key.startswith("network ") and "running" in key  # which the next step replaces by the first worker's
        assert torch.equal(value, apart[1][key]) != own, key
    assert all(torch.equal(value, together[1][key]) for key, value in together[0].items())
    assert not torch.equal(apart[0]["logits"], together[0]["logits"])
