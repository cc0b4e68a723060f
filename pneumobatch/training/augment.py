"""What training changes about films, for a whole batch at once and on its device."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pneumobatch.config import Augmentation


def draw(config: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """Draws what happens to each film: float32[count, 13], on the CPU.

    Drawn for the global batch and then sliced by rank, so that a film's fate does not depend on the number of workers.
    Columns: affine map (6, row-major 2×3, normalised coordinates), contrast factor, brightness shift, gamma, and the
    erased rectangle's centre (x, y) and half sides (x, y; 0 where nothing is erased).
    """
    uniform = torch.rand(count, 14, generator=generator)
    area = torch.lerp(torch.tensor(config.crop_area[0]), torch.tensor(config.crop_area[1]), uniform[:, 0])
    aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(config.crop_aspect) / 2)
    scale_x, scale_y = (area.sqrt() * aspect).clamp_max(1), (area.sqrt() / aspect).clamp_max(1)
    angle = (2 * uniform[:, 2] - 1) * math.radians(config.rotation_degrees)
    mirror = torch.where(uniform[:, 3] < config.flip, -1.0, 1.0)
    shift_x, shift_y = (2 * uniform[:, 4] - 1) * (1 - scale_x), (2 * uniform[:, 5] - 1) * (1 - scale_y)
    cos, sin = torch.cos(angle), torch.sin(angle)
    affine = [mirror * scale_x * cos, -scale_y * sin, shift_x, mirror * scale_x * sin, scale_y * cos, shift_y]
    contrast = 1 + (2 * uniform[:, 6] - 1) * config.contrast
    brightness = (2 * uniform[:, 7] - 1) * config.brightness
    gamma = torch.exp((2 * uniform[:, 8] - 1) * config.gamma)
    hidden = (uniform[:, 9] < config.erase).float()
    half_x, half_y = hidden * (0.1 + 0.35 * uniform[:, 12]), hidden * (0.1 + 0.35 * uniform[:, 13])
    centre_x, centre_y = 2 * uniform[:, 10] - 1, 2 * uniform[:, 11] - 1
    return torch.stack([*affine, contrast, brightness, gamma, centre_x, centre_y, half_x, half_y], dim=1)


def apply(films_BHW: Tensor, fate_BF: Tensor, size: int) -> Tensor:
    """Applies what `draw` drew: one resampling for crop, rotation and flip, then the grey curve.

    Args:
        films_BHW: uint8[B, H, W], the decoded films.
        fate_BF: float32[B, 13] from `draw`, on the same device.
        size: Side of the result, pixels.

    Returns:
        float32[B, 1, size, size] in 0–1.
    """
    grey = films_BHW[:, None].float() * (1 / 255)
    grid = F.affine_grid(fate_BF[:, :6].reshape(-1, 2, 3), [len(grey), 1, size, size], align_corners=False)
    grey = F.grid_sample(grey, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    contrast, brightness, gamma, centre_x, centre_y, half_x, half_y = (
        column.reshape(-1, 1, 1, 1) for column in fate_BF[:, 6:].unbind(1)
    )
    mean = grey.mean((2, 3), keepdim=True)
    grey = ((grey - mean) * contrast + mean + brightness).clamp(0, 1)
    if bool((gamma != 1).any()):
        grey = grey.clamp_min(1e-4) ** gamma
    if bool((half_x > 0).any()):
        axis = torch.linspace(-1, 1, size, device=grey.device)
        inside = ((axis - centre_x).abs() < half_x) & ((axis.reshape(-1, 1) - centre_y).abs() < half_y)
        grey = torch.where(inside, mean, grey)
    return grey


def plain(films_BSS: Tensor) -> Tensor:
    """Turns films into the network's input as screening does: uint8[B, S, S] → float32[B, 1, S, S] in 0–1."""
    return films_BSS[:, None].float() * (1 / 255)
