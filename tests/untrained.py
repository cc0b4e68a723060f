"""A bundle of a network that has learned nothing: it scores, and that is all."""

from typing import Any

import pyarrow as pa
import torch
from torch import nn

from pneumobatch import tables
from pneumobatch.config import Network
from pneumobatch.models import bundle as bundles
from pneumobatch.models.networks import build
from pneumobatch.models.weights import save_bundle


def write_bundle(
    uri: str,
    *,
    size: int = 64,
    name: str = "attention_resnet18",
    seed: int = 0,
    network: nn.Module | None = None,
    **more: Any,
) -> bundles.Bundle:
    """Writes the bundle of a network drawn by `seed`, or of a given one; `more` are fields of `Bundle`."""
    torch.manual_seed(seed)
    config = Network(name=name, image_size=size)
    fields = {"temperature": 1.5, "threshold": 0.5, "target": "sensitivity >= 0.95", **more}
    bundle = bundles.Bundle(network=config, preprocessing=bundles.Preprocessing(image_size=size), **fields)
    history, reference = pa.table({"epoch": [1.0]}), tables.reference_schema().empty_table()
    return save_bundle(uri, bundle, (network or build(config)).state_dict(), history, reference, "# MODEL_ID\n")
