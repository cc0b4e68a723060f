"""Every network by its name: the paper's, its plain backbones, and timm's for comparison."""

import re
from typing import cast

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pneumobatch import storage
from pneumobatch.config import Network
from pneumobatch.models.attention import GatedAttention, SideBranchAttention, attention

GREY_MEAN, GREY_STD = 0.5, 0.25
"""Normalisation of grey values in 0–1; equal for all three replicated channels."""

FLAT = 1 / 64
"""Contrast (standard deviation, grey in 0–1) below which a film is not stretched any further."""

ATTENTION = "attention_"
"""What the name of a ResNet with attention begins with; the rest is that of its plain backbone."""

_RESNET = re.compile(rf"({ATTENTION})?resnet(18|34|50|101|152)")


class Classifier(nn.Module):
    """A backbone with two outputs, behind the normalisation that all networks share.

    Shape:
        float[B, 1, S, S], grey in 0–1 → logits float[B, 2]; output 0 is normal, 1 is pneumonia.
    """

    def __init__(self, backbone: nn.Module, *, standardise: bool = False, mirrored: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.standardise, self.mirrored = standardise, mirrored

    def forward(self, pixels_B1SS: Tensor) -> Tensor:
        """Returns the logits of normal and pneumonia."""
        if self.standardise:
            spread, mean = torch.std_mean(pixels_B1SS.float(), (1, 2, 3), keepdim=True)
            x = ((pixels_B1SS - mean) / spread.clamp_min(FLAT)).to(pixels_B1SS.dtype)
        else:
            x = (pixels_B1SS - GREY_MEAN) * (1 / GREY_STD)
        x = x.expand(-1, 3, -1, -1)  # reading 15
        logits = cast(Tensor, self.backbone(x))
        if self.mirrored and not self.training:
            logits = (logits + self.backbone(x.flip(3))) / 2
        return logits


class SideBranchNet(nn.Module):
    """The literal network of the paper's figure 3 (reading 13): nothing is strided, all is at full resolution.

    A 3→64 stem, 8 consecutive blocks, global average pooling and a linear map to 2. One 3×3 convolution of 64
    channels at 512² costs 9.7 G multiply-adds, and a block has six or so: use it to study, not to screen.
    """

    def __init__(self, *, side_branches: bool, channel_gate: bool, spatial_gate: bool, dropout: float) -> None:
        super().__init__()

        def convolution(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())

        blocks = [
            nn.Sequential(
                convolution(64),
                attention(
                    64,
                    side_branches=side_branches,
                    channel_gate=channel_gate,
                    spatial_gate=spatial_gate,
                    literal=True,
                ),
            )
            for _ in range(8)
        ]
        self.features = nn.Sequential(convolution(3), *blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, 2)

    def forward(self, x_B3SS: Tensor) -> Tensor:
        """Returns logits float[B, 2]."""
        return cast(Tensor, self.fc(self.dropout(self.features(x_B3SS).mean((2, 3)))))


def build(config: Network, *, initialise: bool = True) -> Classifier:
    """Builds the network a job names.

    Args:
        config: The job's network section.
        initialise: Whether to load the starting weights that `config.weights` names; a bundle brings its own.

    Raises:
        ValueError: The name or its weights are unknown, or there is no way to them; the message names the key and the
            remedy.
    """
    pretrained = initialise and config.weights == "pretrained"
    try:
        backbone = _backbone(config, pretrained=pretrained)
    except OSError as error:
        if not pretrained:
            raise
        raise ValueError(
            f"network.weights: those of {config.name} cannot be downloaded here ({error}); give the path of a "
            "safetensors file of them, or fill the library's cache where there is a network"
        ) from None
    network = Classifier(backbone, standardise=config.standardise, mirrored=config.mirrored)
    if initialise and config.weights and not pretrained:
        _start(network, config.name, config.weights)
    return network


def _backbone(config: Network, *, pretrained: bool) -> nn.Module:
    switches = {
        "side_branches": config.side_branches, "channel_gate": config.channel_gate, "spatial_gate": config.spatial_gate,
    }  # fmt: skip
    if config.name == "side_branch_net":
        if pretrained:
            raise ValueError("network.weights: side_branch_net has no pretrained weights; leave the key out")
        return SideBranchNet(**switches, dropout=config.dropout)
    if config.name.startswith("timm/"):
        return _timm(config, pretrained=pretrained)
    match = _RESNET.fullmatch(config.name)
    if not match:
        raise ValueError(
            f"network.name: {config.name!r} is no network; give attention_resnet18/34/50/101/152, resnet18/…/152, "
            "side_branch_net or timm/NAME"
        )
    backbone = torchvision.models.get_model(
        f"resnet{match[2]}", weights="DEFAULT" if pretrained else None, zero_init_residual=not pretrained
    )
    backbone.fc = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(cast(nn.Linear, backbone.fc).in_features, 2))
    if match[1]:
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            layer = getattr(backbone, stage)
            channels = next(m.num_features for m in reversed(list(layer.modules())) if isinstance(m, nn.BatchNorm2d))
            layer.append(attention(channels, **switches))
    return cast(nn.Module, backbone)


def _start(network: Classifier, name: str, uri: str) -> None:
    """Loads starting weights: those of the whole network, or its plain backbone's, of any classes, under their names.

    Raises:
        ValueError: The file is no safetensors, or does not fit.
    """
    try:
        state = load_safetensors(storage.read_bytes(uri))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"network.weights: {uri} cannot be read as safetensors ({error}); give the path of a safetensors state dict"
        ) from None
    new: tuple[str, ...] = ()
    if not any(key.startswith("backbone.") for key in state):
        heads = tuple(f"{head}." for head in _classifiers(network.backbone))
        state = {f"backbone.{key}": tensor for key, tensor in state.items() if not key.startswith(heads)}
        added = (SideBranchAttention, GatedAttention)
        blocks = (f"{place}." for place, module in network.named_modules() if isinstance(module, added))
        new = (*(f"backbone.{head}" for head in heads), *blocks)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f"network.weights: {uri} does not fit {name}: {error}") from None
    lacking = [key for key in missing if not key.startswith(new)]
    if lacking or unexpected:
        told = ", ".join([f"lacks {key}" for key in lacking[:3]] + [f"has {key}" for key in unexpected[:3]])
        raise ValueError(
            f"network.weights: {uri} does not fit {name}: it {told}; give weights of that network or its plain backbone"
        )


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the modules behind the features, where a state dict holds other classes."""
    named: str | tuple[str, ...] = getattr(backbone, "default_cfg", {}).get("classifier", "fc")
    return (named,) if isinstance(named, str) else tuple(named)


def _timm(config: Network, *, pretrained: bool) -> nn.Module:
    import timm

    name = config.name.removeprefix("timm/")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:5]
        raise ValueError(f"network.name: timm has no {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    options = {"num_classes": 2, "drop_rate": config.dropout, "pretrained": pretrained}
    try:  # transformers fix their grid of patches at construction and take the image size there
        return cast(nn.Module, timm.create_model(name, img_size=config.image_size, **options))
    except TypeError:
        return cast(nn.Module, timm.create_model(name, **options))


@torch.no_grad()
def settle(network: nn.Module) -> None:
    """Makes the convolutions of a trained network plain that standardise their weights at every call, as BiT's do.

    Once for all films this costs nothing, its rounding is fp32's whatever the network is cast to, and what works on
    plain convolutions (`int8`) works on these.
    """
    for module in network.modules():
        if standardises(module):
            convolution = cast(nn.Conv2d, module)
            spread, mean = torch.var_mean(convolution.weight, (1, 2, 3), correction=0, keepdim=True)
            convolution.weight.copy_((convolution.weight - mean) * (spread + cast(float, convolution.eps)).rsqrt())
            convolution.__class__ = nn.Conv2d


def standardises(module: nn.Module) -> bool:
    """Whether it is timm's StdConv2d: by its name, as timm takes a second to import and is seldom needed."""
    return type(module).__qualname__ == "StdConv2d" and type(module).__module__.startswith("timm.")


def cost(network: nn.Module, image_size: int) -> tuple[int, int]:
    """Returns the network's parameters and its multiply-adds for one image of `image_size`²."""
    network = network.eval()
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, image_size, image_size, device=device))
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2
