"""Image statistics by their definitions, and the check that a picture can be a chest film."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pneumobatch.archive import phantoms, quality
from pneumobatch.tables import STATISTICS

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def phantom(seed: int, label: int = 0) -> np.ndarray:
    picture = Image.fromarray((phantoms.film(np.random.default_rng(seed), label, 400, 360) >> 8).astype(np.uint8))
    return np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))


def test_the_measures_are_the_columns_of_the_tables() -> None:
    assert {"width", "height", *quality.measure(phantom(1))} == set(STATISTICS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(3, 40))
def test_measures_equal_their_definitions(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    found, exact = quality.measure(pixels), pixels.astype(float)
    low, high = (np.percentile(pixels, q, method="inverted_cdf") for q in (1, 99))
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    windows = np.lib.stride_tricks.sliding_window_view(exact, (3, 3))
    response = np.abs((windows * mask).sum((2, 3)))
    gradient = (np.abs(np.diff(exact, axis=0)).mean() + np.abs(np.diff(exact, axis=1)).mean()) / 2
    assert found["mean_intensity"] == pytest.approx(exact.mean() / 255)
    assert found["contrast"] == pytest.approx((float(high) - float(low)) / (float(high) + float(low)))
    assert found["sharpness"] == pytest.approx(gradient / 255)
    assert found["noise"] == pytest.approx(np.sqrt(np.pi / 2) / 6 * response.mean() / 255)


@pytest.mark.parametrize("deviation", [2.0, 5.0, 12.0])
def test_noise_is_the_deviation_of_white_noise(deviation: float) -> None:
    anatomy = np.add.outer(np.linspace(60, 120, 224), np.linspace(0, 60, 224))
    noisy = anatomy + np.random.default_rng(2).normal(0, deviation, (224, 224))
    assert quality.measure(np.rint(noisy).astype(np.uint8))["noise"] * 255 == pytest.approx(deviation, rel=0.05)


def test_a_black_picture_has_no_contrast() -> None:
    assert set(quality.measure(np.zeros((8, 8), np.uint8)).values()) == {0.0}


@pytest.mark.parametrize("size", [64, 224, 512])
@pytest.mark.parametrize("label", [0, 1])
def test_phantoms_pass_upright_and_fail_inverted(size: int, label: int) -> None:
    for seed in range(4):
        pixels = np.asarray(Image.fromarray(phantom(seed, label)).resize((size, size)))
        assert quality.check(pixels) is None
        assert quality.check(255 - pixels) == "inverted"


@pytest.mark.parametrize("level", [0, 90, 255])
def test_blank(level: int) -> None:
    rng = np.random.default_rng(level)
    assert quality.check(np.full((224, 224), level, np.uint8)) == "blank"
    assert quality.check(np.clip(rng.normal(level, 3, (224, 224)), 0, 255).astype(np.uint8)) == "blank"


def test_what_is_no_x_ray() -> None:
    rng = np.random.default_rng(1)
    page = Image.new("L", (224, 224), 255)
    for top in range(10, 215, 12):
        ImageDraw.Draw(page).text((12, top), "Findings: the lungs are clear.", fill=20)
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8), (224, 224))
    for picture in (rng.integers(0, 256, (224, 224)), rng.normal(128, 30, (224, 224)).clip(0, 255), page, ramp, ramp.T):
        assert quality.check(np.asarray(picture).astype(np.uint8)) == "not_an_xray"


@pytest.mark.shared
def test_real_films_pass_upright_and_fail_inverted() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    for path in sorted(SHARED.glob("kermany/*/*"))[::16]:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert quality.check(pixels) is None
        assert quality.check(255 - pixels) == "inverted"
