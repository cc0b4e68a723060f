"""What training changes about films, for a whole batch at once and on its device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pneumobatch.config import Augmentation

DETAIL = (0.004, 0.02)
"""Least and greatest σ of the Gaussian that parts a film's detail from the rest, share of the side."""

SHIFT = Augmentation(
    crop_area=(0.6, 1.0), crop_aspect=1.6, contrast=0.35, brightness=0.12, gamma=0.35, rotation_degrees=5,
    sharpness=0.9, margins=0.15,
)  # fmt: skip
"""What validation changes about its films where it is to show how a network stands a shift: another collimation, with
blank margins or without, and aspect ratio (films are squashed to a square), exposure, grey curve and resolution, but
the same patients."""


def draw(config: Augmentation, count: int, generator: torch.Generator) -> Tensor:
    """Draws what happens to each film: float32[count, 22], on the CPU.

    Drawn for the global batch and then sliced by rank, so that a film's fate does not depend on the number of workers.
    Columns: affine map (6, row-major 2×3, normalised coordinates), contrast factor, brightness shift, gamma, the
    erased rectangle's centre (x, y) and half sides (x, y; 0 where nothing is erased), how fine the detail is that is
    reinforced or smoothed (σ, share of the side) and its factor, the slopes of uneven exposure (x, y), the rectangle
    within blank margins, stated as the erased one (half sides 1 where there are none), and the margins' grey.
    """
    uniform = torch.rand(count, 24, generator=generator)
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
    # From what squashing a large film to the network's size leaves to what a film of a fifth of the size has lost.
    scale = DETAIL[0] + (DETAIL[1] - DETAIL[0]) * uniform[:, 14]
    detail = 1 + (2 * uniform[:, 15] - 1) * config.sharpness
    slope_x, slope_y = ((2 * uniform[:, place] - 1) * config.shading for place in (16, 17))
    # A quarter of the films are covered, as by a collimator, and a quarter is drawn smaller, as into a digital frame.
    framed = (uniform[:, 18] < 0.5).float() * config.margins
    left, right, top, bottom = (framed * uniform[:, place] for place in (19, 20, 21, 22))
    frame = [left - right, top - bottom, 1 - left - right, 1 - top - bottom]
    affine = [*torch.where(uniform[:, 18] < 0.25, _within(affine, frame), torch.stack(affine))]
    blank = (4 * uniform[:, 23] - 2).clamp(0, 1)  # half of the margins are black, a quarter white
    grey_curve, erased = [contrast, brightness, gamma], [centre_x, centre_y, half_x, half_y]
    return torch.stack([*affine, *grey_curve, *erased, scale, detail, slope_x, slope_y, *frame, blank], dim=1)


def _within(affine: Sequence[Tensor], frame: Sequence[Tensor]) -> Tensor:
    """Draws what an affine map shows of a film within a rectangle (centre x, y, half sides x, y); [6, count]."""
    a, b, shift_x, c, d, shift_y = affine
    x, y, half_x, half_y = frame
    a, b, c, d = a / half_x, b / half_y, c / half_x, d / half_y
    return torch.stack([a, b, shift_x - a * x - b * y, c, d, shift_y - c * x - d * y])


def apply(films_BHW: Tensor, fate_BF: Tensor, size: int) -> Tensor:
    """Applies what `draw` drew: one resampling for crop, rotation and flip, then detail and the grey curve.

    Args:
        films_BHW: uint8[B, H, W], the decoded films.
        fate_BF: float32[B, 22] from `draw`, on the CPU: what it leaves out is known without waiting for the device.
        size: Side of the result, pixels.

    Returns:
        float32[B, 1, size, size] in 0–1.
    """
    grey = films_BHW[:, None].float() * (1 / 255)
    detailed, shaded, curved, hidden, framed = (
        (fate_BF[:, place] != same).any() for place, same in ((14, 1), (15, 0), (8, 1), (11, 0), (19, 1))
    )
    fate_BF = fate_BF.to(grey.device)
    grid = F.affine_grid(fate_BF[:, :6].reshape(-1, 2, 3), [len(grey), 1, size, size], align_corners=False)
    grey = F.grid_sample(grey, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    contrast, brightness, gamma, *erased, scale, detail, slope_x, slope_y, x, y, half_x, half_y, blank = (
        column.reshape(-1, 1, 1, 1) for column in fate_BF[:, 6:].unbind(1)
    )
    axis = torch.linspace(-1, 1, size, device=grey.device)
    if detailed:
        smooth = _smooth(grey, scale * size)
        grey = smooth + (grey - smooth) * detail
    if shaded:
        grey = grey * (1 + slope_x * axis + slope_y * axis.reshape(-1, 1))
    mean = grey.mean((2, 3), keepdim=True)
    grey = ((grey - mean) * contrast + mean + brightness).clamp(0, 1)
    if curved:
        grey = grey.clamp_min(1e-4) ** gamma
    if hidden:
        grey = torch.where(_inside(axis, *erased), mean, grey)
    if framed:
        grey = torch.where(_inside(axis, x, y, half_x, half_y), grey, blank)
    return grey


def _inside(axis: Tensor, x: Tensor, y: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    """Which pixels lie in each film's rectangle, bool[B, 1, S, S]."""
    return ((axis - x).abs() <= half_x) & ((axis.reshape(-1, 1) - y).abs() <= half_y)


def _smooth(grey_B1HW: Tensor, sigma_B111: Tensor) -> Tensor:
    """Blurs each film by its own Gaussian of σ pixels."""
    reach = math.ceil(2.5 * DETAIL[1] * grey_B1HW.shape[3])
    offsets = torch.arange(-reach, reach + 1, device=grey_B1HW.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma_B111) ** 2, dim=3)  # B, 1, 1, taps
    films = F.pad(grey_B1HW, (reach,) * 4, mode="replicate").transpose(0, 1)
    count = len(grey_B1HW)
    return F.conv2d(F.conv2d(films, kernels, groups=count), kernels.mT, groups=count).transpose(0, 1)


def plain(films_BSS: Tensor) -> Tensor:
    """Turns films into the network's input as screening does: uint8[B, S, S] → float32[B, 1, S, S] in 0–1."""
    return films_BSS[:, None].float() * (1 / 255)
