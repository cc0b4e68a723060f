"""Where in a film a network finds its evidence: class activation, and the network's own spatial gates (reading 20)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumobatch.models.attention import GatedAttention
from pneumobatch.models.networks import Classifier


class NoFeatureMapError(ValueError):
    """A network whose features have no rows and columns, as those of a vision transformer."""


class HeatMaps(NamedTuple):
    """Maps of a batch of films, at the films' size."""

    evidence_BSS: Tensor
    """Evidence for pneumonia (above 0) and for normal (below), logits a cell of the feature map."""
    gate_BSS: Tensor | None
    """Mean of the spatial gates of all stages, 0–1; None where the network has none."""
    cells: tuple[int, int]
    """Rows and columns of the feature map, as fine as the evidence is known."""


def heat_maps(network: Classifier, pixels_B1SS: Tensor) -> HeatMaps:
    """Maps the evidence: gradient of the margin (pneumonia − normal) times activation, summed over the channels.

    In a network that pools its last feature map and ends in a linear layer, as all of ours do, this is class activation
    mapping (Zhou et al., CVPR 2016): the map adds up to the margin without its bias. In others it is HiResCAM (Draelos
    & Carin 2020) at their last feature map.

    Args:
        network: In evaluation mode.
        pixels_B1SS: Grey in 0–1.

    Raises:
        NoFeatureMapError: The network has no feature map to look at.
    """
    gates: list[Tensor] = []
    module, channels = _last_feature_map(network.backbone)
    with torch.enable_grad(), _caught(module) as features, _spatial_gates(network, gates):
        logits_B2 = network(pixels_B1SS)
        if features[0].ndim != 4:
            raise NoFeatureMapError("the network has no feature map with rows and columns")
        gradients = torch.autograd.grad((logits_B2[:, 1] - logits_B2[:, 0]).sum(), features)
    axis = 1 if channels in {None, features[0].shape[1]} else 3  # Swin's maps end in their channels
    # A network that scores the mirror image as well has two of everything, the film's first.
    parts = [(gradient * map_).sum(axis).detach() for gradient, map_ in zip(gradients, features, strict=True)]
    evidence = torch.stack([part.flip(2) if i else part for i, part in enumerate(parts)]).sum(0)
    upright = len(gates) // len(features)
    size = pixels_B1SS.shape[-1]
    lit = [_stretched(gate.flip(2) if i >= upright else gate, size) for i, gate in enumerate(gates)]
    gate_BSS = torch.stack(lit).mean(0) if lit else None
    return HeatMaps(_stretched(evidence, size), gate_BSS, (evidence.shape[1], evidence.shape[2]))


def _last_feature_map(backbone: nn.Module) -> tuple[nn.Module, int | None]:
    """The module that makes it and, where they need not be its second dimension, its channels."""
    if hasattr(backbone, "feature_info"):  # timm
        last = cast(Any, backbone.feature_info)[-1]
        return backbone.get_submodule(last["module"]), last["num_chs"]
    if hasattr(backbone, "layer4"):  # ResNets
        return cast(nn.Module, backbone.layer4), None
    return cast(nn.Module, backbone.features), None


@contextmanager
def _caught(module: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def _spatial_gates(network: nn.Module, gates: list[Tensor]) -> Iterator[None]:
    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        gates.append(cast(GatedAttention, module).spatial_map(inputs[0])[:, 0].detach())

    stages = [m for m in network.modules() if isinstance(m, GatedAttention) and m.spatial is not None]
    hooks = [stage.register_forward_pre_hook(look) for stage in stages]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stretched(map_BHW: Tensor, size: int) -> Tensor:
    return F.interpolate(map_BHW[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
