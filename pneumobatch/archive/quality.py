"""Statistics of a decoded film, and the check that it looks like a chest film at all.

Both look at the film as the network sees it: 8-bit grey, squashed to the network's square.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

BLANK_RANGE = 24
"""Grey levels between the 1st and 99th percentile below which a picture shows nothing; 5,216 Kermany films: ≥ 85."""
INVERTED_MIDDLE = -0.15
"""Brightness of the middle below which a film is inverted; Kermany: 0.22 … 1.19, adult PA films: about 0.5."""
NOISE_GRADIENT = 0.6
"""Gradient in standard deviations above which a picture is mere noise or print; Kermany: ≤ 0.30."""
PAGE_SHARE = 0.5
"""Share of one bright grey level above which a picture is a page; Kermany: ≤ 0.29 for any level."""
DRAWN_NOISE = 1e-3
"""Noise (share of full scale) below which a picture without a bright middle was drawn, not exposed."""


def measure(pixels_HW: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Measures a film; the values become columns of every row and are watched for drift.

    Args:
        pixels_HW: Grey, uint8, at least 3 × 3.

    Returns:
        mean_intensity: Mean grey, 0–1 of full scale.
        contrast: Michelson contrast of the 1st and 99th percentile, (p99 − p1) / (p99 + p1), 0–1; 0 for black.
        sharpness: Mean absolute difference of neighbours, horizontal and vertical, 0–1 of full scale.
        noise: Standard deviation of the noise, share of full scale, estimated from the mean absolute response to a
            difference of two Laplacians, which anatomy hardly excites (Immerkær, Fast Noise Variance Estimation,
            CVIU 64, 1996). White noise of deviation s gives s.
    """
    counts = np.array(Image.fromarray(pixels_HW).histogram())  # twice as fast as bincount
    low, high = _percentiles(counts)
    grey_HW = pixels_HW.astype(np.int16)  # the response below reaches ± 2,040
    rows, columns = grey_HW[1:] - grey_HW[:-1], grey_HW[:, 1:] - grey_HW[:, :-1]
    curved = columns[:, 1:] - columns[:, :-1]
    curved = curved[1:] - curved[:-1]
    response = curved[1:] - curved[:-1]
    return {
        "mean_intensity": float(counts @ np.arange(256)) / (255 * pixels_HW.size),
        "contrast": (high - low) / max(high + low, 1),
        "sharpness": (_mean_absolute(rows) + _mean_absolute(columns)) / (2 * 255),
        "noise": math.sqrt(math.pi / 2) / 6 * _mean_absolute(response) / 255,
    }


def check(pixels_HW: npt.NDArray[np.uint8]) -> str | None:
    """Checks that a picture can be a frontal chest film, as one that is wrongly refused is worse than one let through.

    On every frontal film the mediastinum and the abdomen make the middle third brighter than the whole, whatever the
    exposure or the crop; that is the one feature that tells an inverted film.

    Args:
        pixels_HW: Grey, uint8.

    Returns:
        The rule it breaks, or None: `blank` (hardly any contrast), `inverted` (bright is air), `not_an_xray` (noise,
        print, a page, a drawn gradient).
    """
    step = max(1, min(pixels_HW.shape) // 112)
    grey_HW = pixels_HW[::step, ::step].astype(np.int16)
    counts = np.bincount(grey_HW.ravel(), minlength=256)
    low, high = _percentiles(counts)
    if high - low < BLANK_RANGE:
        return "blank"
    if counts.max() > PAGE_SHARE * grey_HW.size and counts.argmax() > 200:
        return "not_an_xray"
    levels = np.arange(256)
    mean = float(counts @ levels) / grey_HW.size
    deviation = math.sqrt(float(counts @ (levels - mean) ** 2) / grey_HW.size)
    if _mean_absolute(grey_HW[:, 1:] - grey_HW[:, :-1]) > NOISE_GRADIENT * deviation:
        return "not_an_xray"
    width = grey_HW.shape[1]
    middle = (float(grey_HW[:, width * 3 // 8 : width * 5 // 8].mean()) - mean) / deviation
    if middle < INVERTED_MIDDLE:
        return "inverted"
    if middle < -INVERTED_MIDDLE and measure(pixels_HW)["noise"] < DRAWN_NOISE:
        return "not_an_xray"
    return None


def _percentiles(counts: npt.NDArray[np.intp]) -> tuple[int, int]:
    """1st and 99th percentile of a histogram."""
    below = counts.cumsum()
    low, high = np.searchsorted(below, (below[-1] * 0.01, below[-1] * 0.99))
    return int(low), int(high)


def _mean_absolute(values: npt.NDArray[np.int16]) -> float:
    return float(np.abs(values).sum(dtype=np.int64)) / values.size
