"""The scoring actor: loads the network once, then turns decoded films into probabilities."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch.archive.errors import Reason
from pneumobatch.archive.films import pixels_of
from pneumobatch.models import bundle as bundles
from pneumobatch.models.hardware import Precision
from pneumobatch.tables import Status

if TYPE_CHECKING:
    from torch import Tensor

    from pneumobatch.models.scoring import Logits


@dataclass(frozen=True)
class Plan:
    """How a run scores; fixed at its first start, so that a resumed run gives the same probabilities."""

    bundle: str
    model_id: str
    batch_size: int
    precision: Precision
    compile: bool
    device: str
    threads: int


class Scorer:
    """Columns in: those of `archive.films`. Out: the same without `pixels`, with `probability` and `scored_at`.

    One row out for each row in, in order. A film without a picture has no probability. One of which the network makes
    no number (as a broken accelerator does) is `failed` with the reason `not_finite`, and tried again by a later start.
    """

    def __init__(self, plan: Plan) -> None:
        # Not above: the driver, which only names this class, does without the seconds that torch takes.
        import torch

        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.bundle = bundles.load(plan.bundle)
        if self.bundle.model_id != plan.model_id:  # it was replaced since the run began
            raise ValueError(
                f"screening.bundle: {plan.bundle} holds {self.bundle.model_id} by now, and the run is one of "
                f"{plan.model_id}; give the place of that bundle"
            )
        self.size = self.bundle.preprocessing.image_size
        self.logits = self.network()
        self.logits(self.batch(np.zeros((0, self.size, self.size), np.uint8)))  # the first call of a network is slow

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scores a block in batches of one fixed shape; the last is padded."""
        readable = np.flatnonzero(rows["pixels"].is_valid().to_numpy())
        pixels = pixels_of(rows, self.size)
        probability = np.full(len(rows), np.nan)
        parts = [readable[at : at + self.plan.batch_size] for at in range(0, len(readable), self.plan.batch_size)]
        # All are under way before the first is read, so that an accelerator finds the next batch when it is done.
        logits = [self.logits(self.batch(pixels[part])) for part in parts]
        for part, logits_B2 in zip(parts, logits, strict=True):
            probability[part] = self.probabilities(logits_B2)[: len(part)]
        nothing = readable[~np.isfinite(probability[readable])]
        if len(nothing):
            probability[nothing] = np.nan
            rows = _failed(rows, nothing)
        scored_at = pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC"))
        return (
            rows.drop_columns(["pixels"])
            .append_column("probability", pa.array(probability, from_pandas=True))
            .append_column("scored_at", pa.repeat(scored_at, len(rows)))
        )

    def network(self) -> "Logits":
        """Loads the bundle's network as the plan says."""
        import torch

        from pneumobatch.models import scoring

        plan, device = self.plan, torch.device(self.plan.device)
        if plan.compile:
            return scoring.compiled(plan.bundle, self.bundle, plan.precision, plan.batch_size, device)
        return scoring.eager(plan.bundle, self.bundle, plan.precision, device)

    def batch(self, films_NSS: np.ndarray[Any, np.dtype[np.uint8]]) -> "Tensor":
        """Pads films to a batch, uint8[B, S, S], in memory from which an accelerator copies while it computes."""
        import torch

        shape = (self.plan.batch_size, self.size, self.size)
        padded = torch.zeros(shape, dtype=torch.uint8, pin_memory=self.plan.device == "cuda")
        padded[: len(films_NSS)] = torch.from_numpy(films_NSS)
        return padded

    def probabilities(self, logits_B2: "Tensor") -> np.ndarray[Any, np.dtype[np.float64]]:
        """Calibrated probability of pneumonia of each film, float64[B] in 0–1."""
        margin = (logits_B2[:, 1] - logits_B2[:, 0]).double().cpu()
        return (margin / self.bundle.temperature + self.bundle.offset).sigmoid().numpy()


def _failed(rows: pa.Table, places: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    wrong = pa.array(np.isin(np.arange(len(rows)), places))
    for name, value in (("status", Status.FAILED.value), ("reason", Reason.NOT_FINITE.value)):
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), pc.if_else(wrong, value, rows[name]))
    return rows
