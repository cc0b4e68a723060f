"""One Ray Train worker's loop: the same code for one worker and for many (DDP over gloo or NCCL)."""

import io
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pneumobatch import metrics, storage
from pneumobatch.config import Job
from pneumobatch.models import int8
from pneumobatch.models.hardware import described, hardware_precision
from pneumobatch.models.loss import FocalLoss
from pneumobatch.models.networks import Classifier, build
from pneumobatch.training import augment
from pneumobatch.training.shards import Films, Shard, image_ids, seeded
from pneumobatch.training.synchronised import Synchronised

CHECKPOINT = "state.pt"

LOGITS, SCORED = "logits.npy", "image_ids.json"
"""What a checkpoint holds beside its state: the logits of the validation films, and which films these are."""

EARLIER = 1e-12
"""What an epoch costs a checkpoint's rank, AUROC: less than films can differ by. Of equals the first is the best."""


def learning_rate(job: Job, epoch: float) -> float:
    """The learning rate at a fractional epoch: linear warm-up, then cosine to 1 % or steps of ×0.1."""
    plan = job.training
    if epoch < plan.warmup_epochs:
        return plan.learning_rate * (0.01 + 0.99 * epoch / plan.warmup_epochs)
    if plan.schedule == "step":
        return plan.learning_rate * 0.1 ** (int(epoch) // plan.step_epochs)
    progress = (epoch - plan.warmup_epochs) / max(plan.epochs - plan.warmup_epochs, 1e-9)
    return plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Trainer:
    """A worker's network, optimiser and moving average, and what a checkpoint saves of them."""

    def __init__(self, job: Job, class_counts: Sequence[int], device: torch.device, shard: Shard) -> None:
        self.job, self.device, self.shard = job, device, shard
        torch.manual_seed(seeded(job.training.seed))
        self.network = build(job.network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = FocalLoss(job.loss, class_counts).to(device)
        # Transformers of timm name tables that are biases or positions, whatever their dimensions.
        named: set[str] = getattr(self.network.backbone, "no_weight_decay", set)()
        apart = {f"backbone.{name}" for name in named}
        parameters = list(self.network.named_parameters())
        decayed = [p for name, p in parameters if p.ndim > 1 and name not in apart]
        plain = [p for name, p in parameters if p.ndim <= 1 or name in apart]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=job.training.learning_rate, weight_decay=job.training.weight_decay, fused=True
        )
        self.average = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True)
        self.model: nn.Module = self.network
        together = shard.world > 1 and job.training.synchronise
        self.together: AbstractContextManager[object] = Synchronised() if together else nullcontext()
        if shard.world > 1:
            # Statistics that are synchronised are the same on all workers: no buffer needs to be sent.
            self.model = nn.parallel.DistributedDataParallel(
                self.network, gradient_as_bucket_view=True, broadcast_buffers=not together
            )
        wanted = job.training.precision
        self.arithmetic = hardware_precision(device.type) if wanted == "auto" else wanted
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.ranges: dict[str, Tensor] = {}

    def logits(self, model: nn.Module, pixels_B1SS: Tensor) -> Tensor:
        """Returns float32 logits; the network itself runs in the job's precision."""
        pixels = pixels_B1SS.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic == "bf16"):
            return cast(Tensor, model(pixels)).float()

    def train_epoch(self, films: Films) -> dict[str, float]:
        """One pass over the training films; returns the mean loss, the last learning rate and images/s."""
        plan, size = self.job.training, self.job.network.image_size
        self.model.train()
        # Dropout and stochastic depth draw from here: an epoch draws the same after a restart.
        torch.manual_seed(seeded((plan.seed * 1_000_003 + self.epoch) * self.shard.world + self.shard.rank))
        started, seen, total = time.perf_counter(), 0, torch.zeros((), device=self.device)
        steps = max(len(films) // min(plan.batch_size, len(films)), 1)
        whole = self.shard.batch(len(films), plan.batch_size)
        rate = 0.0
        for step, rows in self.shard.batches(len(films), plan.batch_size, plan.seed, self.epoch):
            rate = learning_rate(self.job, self.epoch + step / steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            drawn = seeded((plan.seed * 1_000_003 + self.epoch) * 1_000_003 + step)
            fate = augment.draw(self.job.augmentation, whole, torch.Generator().manual_seed(drawn))
            fate = fate[self.shard.rank :: self.shard.world]
            pixels = augment.apply(films.gather(rows).to(self.device), fate, size)
            with self.together:
                logits = self.logits(self.model, pixels)
            loss = self.loss(logits, films.labels[rows].to(self.device))
            self.optimizer.zero_grad(set_to_none=True)
            # DDP takes the mean over workers; where a batch does not divide evenly, a larger part counts for more.
            (loss * (len(rows) * self.shard.world / whole)).backward()
            if plan.gradient_clip:
                nn.utils.clip_grad_norm_(self.network.parameters(), plan.gradient_clip)
            self.optimizer.step()
            if plan.ema_decay:
                self.average.update_parameters(self.network)
            total += loss.detach() * len(rows)
            seen += len(rows)
        if self.shard.world > 1 and not plan.synchronise:
            for statistics in self.shipped().buffers():  # the first worker's are saved, and so all go on from them
                dist.broadcast(statistics, 0)
        summed = torch.stack([total, torch.tensor(float(seen), device=self.device)])
        if self.shard.world > 1:
            dist.all_reduce(summed)
        if not torch.isfinite(summed).all():
            raise RuntimeError(f"the loss is no number in epoch {self.epoch + 1}: lower training.learning_rate")
        seconds = time.perf_counter() - started
        return {
            "train_loss": float(summed[0] / summed[1]),
            "learning_rate": rate,
            "images_per_second": float(summed[1]) / seconds,
        }

    @torch.no_grad()
    def _average(self, average: Any, current: Any, _: object) -> None:
        """Takes a step's weights and statistics into their moving average."""
        if not average[0].is_floating_point():
            for old, new in zip(average, current, strict=True):
                old.copy_(new)
            return
        # Not the count that is passed: it lies on the accelerator, which would have to be waited for.
        steps = int(self.average.n_averaged)
        # Early on a long average would still hold the random start.
        kept = min(self.job.training.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(average, current, 1 - kept)

    def shipped(self) -> Classifier:
        """The network that is validated and shipped: the moving average where one is kept."""
        return cast(Classifier, self.average.module) if self.job.training.ema_decay else self.network

    def validate(self, films: Films) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Scores the whole validation fold, every film exactly once over all workers.

        Returns:
            float32[N, 2], the logits in the fold's order, the same on every worker; for `training.validation =
            "shifted"` float32[2 N, 2], the fold as it is and then once more under `augment.SHIFT`.
        """
        with int8.watched(self.shipped()) as self.ranges:
            logits = [self.score(films)]
            if self.job.training.validation == "shifted":
                generator = torch.Generator().manual_seed(seeded(self.job.training.seed))
                fate = augment.draw(augment.SHIFT, len(films), generator)
                logits.append(self.score(films, fate))
        if self.shard.world > 1:
            for greatest in self.ranges.values():
                dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return np.concatenate(logits)

    @torch.inference_mode()
    def score(self, films: Films, fate_NF: Tensor | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Scores films as screening would, or changed by `augment.apply` as `fate_NF` says; float32[N, 2], in order."""
        network = self.shipped()
        network.eval()
        logits = np.zeros((len(films), 2), np.float32)
        mine = torch.arange(self.shard.rank, len(films), self.shard.world)
        for rows in torch.split(mine, max(self.job.training.batch_size // self.shard.world, 1)):
            pixels = films.gather(rows).to(self.device)
            if fate_NF is None:
                pixels = augment.plain(pixels)
            else:
                pixels = augment.apply(pixels, fate_NF[rows], self.job.network.image_size)
            logits[rows.numpy()] = self.logits(network, pixels).cpu().numpy()
        if self.shard.world == 1:
            return logits
        total = torch.from_numpy(logits).to(self.device)  # each row is zero but on the worker that scored it
        dist.all_reduce(total)
        return total.cpu().numpy()

    def advance(self, train: Films, validation: Films) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Trains an epoch, scores the validation fold, adds a row to the history, and returns the fold's logits."""
        started = time.perf_counter()
        figures = self.train_epoch(train)
        logits = self.validate(validation)
        figures |= measures(logits, validation.labels, self.loss)
        self.epoch += 1
        self.history.append({"epoch": float(self.epoch), **figures, "seconds": time.perf_counter() - started})
        return logits

    def state(self) -> bytes:
        """Serialises everything that the next epoch depends on."""
        buffer = io.BytesIO()
        content = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "hardware": f"{self.shard.world} × {described(self.device.type)}, {self.arithmetic}",
            "ranges": {name: (-float(least), float(greatest)) for name, (least, greatest) in self.ranges.items()},
        }
        torch.save(content, buffer)
        return buffer.getvalue()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history = state["epoch"], state["history"]


def measures(logits_N2: np.ndarray[Any, Any], labels: Tensor, loss: nn.Module) -> dict[str, float]:
    """The validation figures of one epoch at probability .5 (the threshold is fitted at the end).

    The films may stand in the logits once or several times over, as `Trainer.validate` returns them.
    """
    labels = labels.repeat(len(logits_N2) // len(labels))
    truth = labels.numpy()
    difference = (logits_N2[:, 1] - logits_N2[:, 0]).astype(np.float64)
    counts = metrics.count(truth, difference >= 0)
    device = next(loss.buffers()).device
    return {
        "validation_loss": float(loss(torch.from_numpy(logits_N2).to(device), labels.to(device))),
        **{rate: counts.rate(rate) or 0.0 for rate in ("accuracy", "sensitivity", "specificity")},
        "auroc": metrics.auroc(truth, difference) or 0.0,
    }


def ranked(row: dict[str, float]) -> dict[str, float]:
    """What Ray Train ranks an epoch's checkpoint by. It would keep the last of equals, as many as it may keep, and take
    the first of those: `training.checkpoints_to_keep` would choose the epoch."""
    return {**row, "auroc": row["auroc"] - EARLIER * row["epoch"]}


def train_worker(config: dict[str, Any]) -> None:
    """Trains to the last epoch, from the run's latest checkpoint where there is one.

    Args:
        config: `job` (the whole configuration), `train` and `validation` (references of decoded blocks),
            `class_counts`, `cache_size` (side of the training films), `threads` (0: leave as it is), `history` (where
            to write one row an epoch for whoever watches).
    """
    job: Job = config["job"]
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    train = Films.open(config["train"], config["cache_size"]).on(device)
    validation = Films.open(config["validation"], job.network.image_size).on(device)
    scored = json.dumps(image_ids(config["validation"]))
    trainer = Trainer(job, config["class_counts"], device, shard)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            trainer.restore(torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True))
    while trainer.epoch < job.training.epochs:
        logits = trainer.advance(train, validation)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if shard.rank == 0:
                (Path(folder) / CHECKPOINT).write_bytes(trainer.state())
                np.save(Path(folder) / LOGITS, logits)
                (Path(folder) / SCORED).write_text(scored, encoding="utf-8")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(ranked(trainer.history[-1]), checkpoint=checkpoint)
        if shard.rank == 0:
            storage.write_bytes(config["history"], json.dumps(trainer.history).encode())
