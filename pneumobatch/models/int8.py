"""Convolutions in int8, which CPUs multiply several times as fast as floats: static quantisation of a trained network.

Weights are int8, symmetric, with a scale for each output channel; inputs are uint8 over one range a convolution, which
training finds on its validation films and the bundle keeps (Jacob et al. 2018, arXiv 1712.05877). Products are summed
in int32; what lies between convolutions stays in floats.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pneumobatch.models.attention import GatedAttention, SideBranchAttention
from pneumobatch.models.networks import standardises

LEAST_CHANNELS = 16
"""Channels below which a convolution stays in floats: the stem, which reads the picture itself, and a head."""


# PyTorch compiles calls of this operator but cannot trace one: it only tells the shape, which packing keeps.
@torch.library.register_fake("onednn::qconv_prepack")  # type: ignore[untyped-decorator]
def _packed(weight_OIKK: Tensor, *_: object) -> Tensor:
    return torch.empty_like(weight_OIKK)


class Int8Conv2d(nn.Module):
    """A convolution that quantises its input and answers in its input's dtype.

    Args:
        convolution: The trained one.
        low: Least input expected, at most 0; what is less counts as this.
        high: Greatest input expected, at least 0.

    Shape:
        float[B, I, H, W] → float[B, O, H', W'], as the convolution's.
    """

    def __init__(self, convolution: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        weight_OIKK = convolution.weight.detach().float()
        scale_O = (weight_OIKK.abs().amax((1, 2, 3)) / 127).clamp_min(1e-12)
        rounded = (weight_OIKK / scale_O[:, None, None, None]).round()
        self.register_buffer("weight", rounded.to(torch.int8).contiguous(memory_format=torch.channels_last))
        self.register_buffer("weight_scale", scale_O)
        self.register_buffer("weight_zero", torch.zeros(len(scale_O), dtype=torch.int64))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach().float())
        self.scale = max(high - low, 1e-12) / 255
        self.zero = round(-low / self.scale)
        strides, padding = list(convolution.stride), list(cast(tuple[int, ...], convolution.padding))
        self.geometry = strides, padding, list(convolution.dilation), convolution.groups

    def _apply(self, fn: object, recurse: bool = True) -> "Int8Conv2d":
        return self  # scales and bias stay fp32, whatever the network around them is cast to

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """Returns the convolution of the quantised input."""
        steps = (x_BIHW.float() * (1 / self.scale) + self.zero).round().clamp(0, 255).to(torch.uint8)
        packed = torch.ops.onednn.qconv_prepack(
            self.weight, self.weight_scale, self.scale, self.zero, *self.geometry, list(steps.shape)
        )
        return cast(
            Tensor,
            torch.ops.onednn.qconv_pointwise(
                steps, self.scale, self.zero, packed, self.weight_scale, self.weight_zero, self.bias, *self.geometry,
                1.0, 0, x_BIHW.dtype, "none", [], "",
            ),
        )  # fmt: skip


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Returns the convolutions that int8 computes, by name: those that make up a backbone.

    Attention stays in floats: its convolutions are thin, so that quantising their maps would cost what it gains.
    """
    parts = [part for part in network.modules() if isinstance(part, SideBranchAttention | GatedAttention)]
    attention = {id(module) for part in parts for module in part.modules()}
    return {
        name: module
        for name, module in network.named_modules()
        if (type(module) is nn.Conv2d or standardises(module))  # other subclasses compute otherwise when they score
        and id(module) not in attention
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
    }


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that fills while films pass: for each convolution −least and greatest input, float32[2] ≥ 0.

    Of several such the greatest numbers hold for all films together.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, x_BIHW: Tensor) -> None:
        low, high = torch.aminmax(x_BIHW.detach().permute(0, 2, 3, 1))  # as it lies: 14 times as fast
        found = torch.stack([-low, high]).float().clamp_min(0)  # 0 is always inside: padding is 0
        seen[name] = torch.maximum(seen[name], found) if name in seen else found

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, module in convolutions(network).items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def quantise(network: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Replaces the convolutions of a network that runs on a CPU.

    Args:
        network: A trained network in evaluation mode; changed in place.
        ranges: Least and greatest input of each of its `convolutions`.

    Raises:
        ValueError: A convolution has none, as where an older version trained the network.
    """
    found = convolutions(network)
    if lacking := found.keys() - ranges.keys():
        raise ValueError(
            f"screening.precision: int8 needs ranges, which this bundle lacks for {len(lacking)} of {len(found)} "
            "convolutions: it is from an older version; train it again or leave it at auto"
        )
    for name, module in found.items():
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, Int8Conv2d(module, *ranges[name]))
