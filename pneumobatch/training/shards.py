"""The decoded films as a worker sees them, and its share of every batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from pneumobatch.archive.films import pixels_of


def seeded(number: int) -> int:
    """Returns a seed that torch takes, which has 64 bits: what is derived from a seed may have more."""
    return number % 2**64


@dataclass(frozen=True)
class Films:
    """Decoded films in the object store, shared without a copy by all workers of a node.

    Films are addressed by (block, row); nothing is concatenated, so a worker's own memory stays small.
    """

    blocks: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]  # uint8[n, S, S] each
    places: np.ndarray[Any, np.dtype[np.int64]]  # int64[N, 2]: block, row
    labels: Tensor  # int64[N]
    resident: Tensor | None = None  # uint8[N, S, S] on an accelerator that has room for all of them

    @classmethod
    def open(cls, references: Sequence["ray.ObjectRef[pa.Table]"], size: int) -> "Films":
        """Maps the decoded blocks, leaving out the rows without a picture."""
        tables = ray.get(list(references))
        readable = [np.flatnonzero(table["pixels"].is_valid().to_numpy()) for table in tables]
        places = [np.stack([np.full(len(rows), block), rows], axis=1) for block, rows in enumerate(readable)]
        labels = [table["label"].to_numpy()[rows] for table, rows in zip(tables, readable, strict=True)]
        return cls(
            [pixels_of(table, size) for table in tables],
            np.concatenate(places),
            torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> "Films":
        """Returns the films with their pictures on an accelerator, where they take a quarter of its free memory at
        most: a step then waits for no copy."""
        size = sum(block[0].nbytes * len(block) for block in self.blocks if len(block))
        if device.type != "cuda" or 4 * size > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, resident=self.gather(torch.arange(len(self))).to(device))

    def gather(self, rows: Tensor) -> Tensor:
        """Returns uint8[len(rows), S, S], where the films are."""
        if self.resident is not None:
            return self.resident[rows.to(self.resident.device)]
        return torch.from_numpy(np.stack([self.blocks[block][row] for block, row in self.places[rows.numpy()]]))


def image_ids(references: Sequence["ray.ObjectRef[pa.Table]"]) -> list[str]:
    """Ids of the films with a picture, in the order of `Films`."""
    ids = [table["image_id"].filter(pc.is_valid(table["pixels"])).to_pylist() for table in ray.get(list(references))]
    return [image_id for part in ids for image_id in part]


@dataclass(frozen=True)
class Shard:
    """Which part of every global batch this worker takes."""

    rank: int
    world: int

    def batch(self, count: int, wanted: int) -> int:
        """Films of a global batch: fewer than wanted where there are fewer films."""
        return min(wanted, count // self.world * self.world)

    def batches(self, count: int, batch: int, seed: int, epoch: int) -> Iterator[tuple[int, Tensor]]:
        """Yields (step, this rank's rows); every rank yields equally often, whatever the number of films."""
        generator = torch.Generator().manual_seed(seeded(seed * 1_000_003 + epoch))
        order = torch.randperm(count, generator=generator)
        batch = self.batch(count, batch)
        for step in range(count // batch):
            yield step, order[step * batch : (step + 1) * batch][self.rank :: self.world]
