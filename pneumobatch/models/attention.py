"""The paper's attention: side branches, a channel gate and a spatial gate (readings 11 and 12).

Each module is residual and its last layer starts at zero, so that at step 0 a network with attention computes exactly
what its plain backbone computes.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SideBranchAttention(nn.Module):
    """Two side branches that reduce, restore and join the feature map: x + final(x + u₁ + u₂) (reading 11).

    Each branch is a 3×3 convolution, a strided convolution and a transposed convolution. Both branches are computed
    side by side in the channels of one layer: the first kernels read the same map, the strided ones are grouped, and
    because restoring is linear, u₁ + u₂ is one transposed convolution over both. That one is computed by its
    definition, as a plain convolution of the map with zeros inserted: on CPUs it is twice as fast as the library's own.

    Args:
        channels: Channels of the feature map.
        width: Channels of one branch.
        final_groups: Groups of the final 3×3 convolution; `channels` makes it depthwise, which keeps the cost of
            attention in a deep stage small (a full one at 2,048 channels has 38 M weights).

    Shape:
        float[B, C, H, W] → float[B, C, H, W], any H and W, odd ones included.
    """

    def __init__(self, channels: int, width: int, final_groups: int) -> None:
        super().__init__()
        self.branches = nn.Conv2d(channels, 2 * width, 3, padding=1, bias=False)
        self.branches_norm = nn.BatchNorm2d(2 * width)
        self.reduce = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, groups=2, bias=False)
        self.reduce_norm = nn.BatchNorm2d(2 * width)
        self.restore = nn.ConvTranspose2d(2 * width, channels, 3, stride=2, padding=1)
        self.final = nn.Conv2d(channels, channels, 3, padding=1, groups=final_groups)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the feature map with what the side branches add to it."""
        u = F.relu(self.branches_norm(self.branches(x_BCHW)))
        count, _, height, width = x_BCHW.shape
        # A single pixel has nothing to stride over; told to, oneDNN leaves bf16 weight gradients uninitialised.
        u = F.conv2d(u, self.reduce.weight, None, 1 if height == width == 1 else 2, 1, 1, 2)
        u = F.relu(self.reduce_norm(u))
        spread = F.pad(u[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1))  # a zero after every row and column
        spread = spread.reshape(count, -1, 2 * u.shape[2], 2 * u.shape[3])[:, :, :height, :width]
        u = F.conv2d(spread, self.restore.weight.flip(2, 3).transpose(0, 1), self.restore.bias, 1, 1)
        return cast(Tensor, x_BCHW + self.final(x_BCHW + u))


class GatedAttention(nn.Module):
    """Channel and spatial gates whose gated maps are concatenated and fused by a 1×1 convolution (reading 12).

    The channel gate is global average pooling → bottleneck → sigmoid; the spatial gate is each pixel's mean and
    maximum over the channels → 7×7 convolution → sigmoid. The fusing kernel has rank C / `reduction`, as two factors
    without anything between them. A 1×1 convolution of a concatenation is the sum of one over each part; the channel
    gate scales that part's kernel, and the spatial gate, a scalar a pixel, its result. So the map is read once for
    both parts, and neither a gated copy nor the concatenation is ever stored.

    Args:
        channels: Channels of the feature map.
        channel_gate: Whether to gate channels.
        spatial_gate: Whether to gate pixels.
        reduction: Divisor of the bottleneck's and the fusing kernel's width.

    Shape:
        float[B, C, H, W] → float[B, C, H, W].
    """

    def __init__(self, channels: int, *, channel_gate: bool, spatial_gate: bool, reduction: int = 8) -> None:
        super().__init__()
        narrow = max(channels // reduction, 8)
        self.squeeze = nn.Conv2d(channels, narrow, 1) if channel_gate else None
        self.excite = nn.Conv2d(narrow, channels, 1) if channel_gate else None
        self.fuse_channel = nn.Conv2d(channels, narrow, 1, bias=False) if channel_gate else None
        self.spatial = nn.Conv2d(2, 1, 7, padding=3) if spatial_gate else None
        self.fuse_spatial = nn.Conv2d(channels, narrow, 1, bias=False) if spatial_gate else None
        self.fuse = nn.Conv2d(narrow, channels, 1)
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)  # type: ignore[arg-type]

    def spatial_map(self, x_BCHW: Tensor) -> Tensor:
        """Returns the spatial gate, float[B, 1, H, W] in 0–1; a network without one raises `AssertionError`."""
        assert self.spatial is not None
        pooled = torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], dim=1)
        return torch.sigmoid(self.spatial(pooled))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the feature map with the fused gated maps added."""
        count, channels, height, width = x_BCHW.shape
        kernels = []
        if self.squeeze is not None and self.excite is not None and self.fuse_channel is not None:
            gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x_BCHW.mean((2, 3), keepdim=True)))))
            kernels.append(self.fuse_channel.weight.flatten(1) * gate.reshape(count, 1, channels))
        if self.fuse_spatial is not None:
            kernels.append(self.fuse_spatial.weight.flatten(1).to(x_BCHW.dtype).expand(count, -1, -1))
        pixels = x_BCHW.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        parts = list(torch.split(torch.bmm(pixels, torch.cat(kernels, 1).mT), self.fuse.in_channels, 2))
        if self.fuse_spatial is not None:
            parts[-1] = parts[-1] * self.spatial_map(x_BCHW).reshape(count, -1, 1)
        fused = sum(parts[1:], parts[0]).reshape(count, height, width, -1).permute(0, 3, 1, 2)
        return cast(Tensor, x_BCHW + self.fuse(fused))


def attention(
    channels: int, *, side_branches: bool, channel_gate: bool, spatial_gate: bool, literal: bool = False
) -> nn.Module:
    """Builds the attention that follows a stage, with each part as a switch; nothing switched on is the identity.

    Args:
        channels: Channels of the stage's feature map.
        side_branches: Whether to add `SideBranchAttention`.
        channel_gate: Whether `GatedAttention` gates channels.
        spatial_gate: Whether `GatedAttention` gates pixels.
        literal: Full-width branches and a full final kernel, as drawn in the paper's figure 3 at 64 channels.
    """
    parts: list[nn.Module] = []
    if side_branches:
        width, groups = (channels, 1) if literal else (max(channels // 64, 8), channels)
        parts.append(SideBranchAttention(channels, width, groups))
    if channel_gate or spatial_gate:
        parts.append(GatedAttention(channels, channel_gate=channel_gate, spatial_gate=spatial_gate))
    return nn.Sequential(*parts)
