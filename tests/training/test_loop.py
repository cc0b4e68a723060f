"""The worker's loop without an engine: equal shares, exact resume, the schedule."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.train import Checkpoint, CheckpointConfig
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult

from pneumobatch.config import PAPER, Augmentation, Job
from pneumobatch.training.loop import Trainer, learning_rate, measures, ranked
from pneumobatch.training.shards import Films, Shard, seeded
from pneumobatch.training.tune import chosen_epoch


def _films(count: int, size: int) -> Films:
    rng = np.random.default_rng(0)
    labels = torch.arange(count) % 2
    pixels = rng.integers(0, 200, (count, size, size), dtype=np.uint8)
    pixels[1::2, size // 3 : size // 2] += 55  # something to learn
    places = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    return Films([pixels], places, labels)


def _job(**training: Any) -> Job:
    return Job.model_validate(
        {
            "network": {"name": "attention_resnet18", "image_size": 32},
            "training": {"epochs": 4, "batch_size": 8, "warmup_epochs": 0.5, "ema_decay": 0.9, **training},
        }
    )


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_every_batch_evenly(count: int, batch: int, world: int, epoch: int) -> None:
    if count < world or batch < world:
        return
    batch = batch // world * world
    ranks = [list(Shard(rank, world).batches(count, batch, 0, epoch)) for rank in range(world)]
    alone = list(Shard(0, 1).batches(count, min(batch, count // world * world), 0, epoch))
    assert len({len(rows) for rank in ranks for _, rows in rank}) == 1
    for step, (_, whole) in enumerate(alone):
        joined = torch.cat([rank[step][1] for rank in ranks])
        assert sorted(joined.tolist()) == sorted(whole.tolist())
    seen = [int(row) for rank in ranks for _, rows in rank for row in rows]
    assert len(seen) == len(set(seen))


def test_a_resumed_training_equals_an_uninterrupted_one() -> None:
    torch.set_num_threads(1)
    films, job, device = _films(40, 36), _job(), torch.device("cpu")
    whole = Trainer(job, (20, 20), device, Shard(0, 1))
    part = Trainer(job, (20, 20), device, Shard(0, 1))
    for trainer, epochs in ((whole, 4), (part, 2)):
        for _ in range(epochs):
            trainer.train_epoch(films)
            trainer.epoch += 1
    resumed = Trainer(_job(), (20, 20), device, Shard(0, 1))
    resumed.restore(torch.load(io.BytesIO(part.state()), weights_only=True))
    for _ in range(2):
        resumed.train_epoch(films)
        resumed.epoch += 1
    for name, tensor in whole.shipped().state_dict().items():
        torch.testing.assert_close(resumed.shipped().state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_it_learns_and_validates_every_film_once() -> None:
    job = _job(epochs=8).model_copy(update={"augmentation": Augmentation(**PAPER["augmentation"])})
    films = _films(64, 32)
    trainer = Trainer(job, (32, 32), torch.device("cpu"), Shard(0, 1))
    losses = []
    for _ in range(8):
        losses.append(trainer.train_epoch(films)["train_loss"])
        trainer.epoch += 1
    logits = trainer.validate(films)
    assert logits.shape == (64, 2)
    found = measures(logits, films.labels, trainer.loss)
    assert losses[-1] < losses[0]
    assert found["auroc"] > 0.9
    one_by_one = trainer.validate(Films(films.blocks, films.places[:3], films.labels[:3]))
    np.testing.assert_allclose(one_by_one, logits[:3], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("seed", [20240101, 2**64 + 5])
def test_a_seed_of_any_size_trains_and_validates(seed: int) -> None:
    films = _films(16, 36)
    trainer = Trainer(_job(seed=seed, validation="shifted"), (8, 8), torch.device("cpu"), Shard(0, 1))
    logits = trainer.advance(films, Films([films.blocks[0][:, :32, :32]], films.places, films.labels))
    assert logits.shape == (32, 2) and np.isfinite(logits).all()


def test_a_seed_that_torch_takes_stays_as_it_is() -> None:
    assert [seeded(number) for number in (0, 7, 2**64 - 1)] == [0, 7, 2**64 - 1]


def test_a_shifted_validation_scores_every_film_as_it_is_and_changed() -> None:
    films, device = _films(24, 32), torch.device("cpu")
    shifted, plain = (Trainer(_job(validation=kind), (12, 12), device, Shard(0, 1)) for kind in ("shifted", "random"))
    shifted.train_epoch(films)
    plain.restore(torch.load(io.BytesIO(shifted.state()), weights_only=True))
    twice = shifted.validate(films)
    np.testing.assert_array_equal(twice[:24], plain.validate(films))
    assert (np.abs(twice[24:] - twice[:24]).max(axis=1) > 0).all()
    np.testing.assert_array_equal(shifted.validate(films), twice)  # the same changes in every epoch
    accuracies = [measures(part, films.labels, plain.loss)["accuracy"] for part in (twice, twice[:24], twice[24:])]
    assert accuracies[0] == pytest.approx((accuracies[1] + accuracies[2]) / 2)


@pytest.mark.parametrize(
    ("name", "table"),
    [("timm/vit_tiny_patch16_224", "pos_embed"), ("timm/swin_tiny_patch4_window7_224", "relative_position_bias_table")],
)
def test_tables_of_biases_and_positions_do_not_decay(name: str, table: str) -> None:
    job = Job.model_validate({"network": {"name": name, "image_size": 64}})
    trainer = Trainer(job, (1, 1), torch.device("cpu"), Shard(0, 1))
    names = {id(parameter): key for key, parameter in trainer.network.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in trainer.optimizer.param_groups)
    assert any(key.endswith(table) for key in plain) and not any(key.endswith((table, "bias")) for key in decayed)
    assert len(decayed) + len(plain) == len(names)


def test_schedules() -> None:
    job = _job(epochs=10, warmup_epochs=1.0, learning_rate=1.0)
    rates = [learning_rate(job, epoch / 10) for epoch in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01, abs=0.01)
    paper = Job.model_validate({"training": {"preset": "paper"}})
    assert [learning_rate(paper, epoch) for epoch in (0, 4.9, 5, 10)] == pytest.approx([5e-5, 5e-5, 5e-6, 5e-7])


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_of_equal_epochs_the_first_is_kept_however_many_are(tmp_path: Path, keep: int) -> None:
    history = [{"epoch": float(epoch), "auroc": auroc} for epoch, auroc in enumerate([0.9, 1.0, 1.0, 1.0, 0.99], 1)]
    config = CheckpointConfig(num_to_keep=keep, checkpoint_score_attribute="auroc", checkpoint_score_order="max")
    manager = _CheckpointManager(config)
    for row in history:
        folder = tmp_path / str(row["epoch"])
        folder.mkdir()
        manager.register_checkpoint(_TrainingResult(Checkpoint(str(folder)), ranked(row)))
    best = max(manager.best_checkpoint_results, key=lambda result: result.metrics["auroc"])
    assert best.metrics["epoch"] == chosen_epoch(history) == 2
