"""Stored values → grey, value by value against pydicom's own functions and the standard's formulas."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from radiograph import all_values, grey, lut, make, reread, save

from pneumobatch.archive.errors import DecodeError
from pneumobatch.archive.pixels import decode
from pneumobatch.config import Gate


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [None, (0.5, -100), (1, -1024), (2.5, 7.25)])
def test_every_stored_value_goes_through_the_chain_as_pydicom_sends_it(
    bits: int, signed: bool, function: str, rescale: tuple[float, float] | None
) -> None:
    stored = all_values(bits, signed=signed)
    slope, intercept = rescale or (1, 0)
    values: dict[str, Any] = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    window = {"WindowCenter": (1 << bits) * 0.3, "WindowWidth": (1 << bits) * 0.4, "VOILUTFunction": function}
    dataset = make(stored, bits, **values, **window)
    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    low, high = float(stored.min()) * slope + intercept, float(stored.max()) * slope + intercept
    expected = np.rint(255 * (shown - low) / (high - low))
    difference = np.abs(grey(dataset) - expected)
    assert difference.max() <= 1  # a half may round either way
    assert (difference > 0).sum() <= max(0.01 * stored.size, 2)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
@pytest.mark.parametrize("offset", [0, 50])
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_every_stored_value_goes_through_a_look_up_table(
    bits: int, signed: bool, depth: int, offset: int, kind: str
) -> None:
    stored = all_values(bits, signed=signed)
    first, entries = int(stored.min()) + offset, stored.size - 100
    curve = np.rint(((1 << depth) - 1) * np.linspace(1, 0, entries) ** 0.6).astype(int)
    window = {} if kind == "VOILUTSequence" else {"WindowCenter": 1 << (depth - 1), "WindowWidth": 1 << depth}
    dataset = make(stored, bits, **window)
    setattr(dataset, kind, lut(entries, first, depth, curve, signed=signed))
    found = curve[np.clip(stored.astype(int) - first, 0, entries - 1)]
    expected = np.rint(255 * (found / ((1 << depth) - 1)))
    assert np.abs(grey(dataset) - expected).max() <= 1
    assert (grey(dataset) != expected).mean() < 0.01
    if depth == 16 and bits > 8 and entries < 32768:  # where pydicom counts in integers that are wide enough
        theirs = (apply_voi_lut if kind == "VOILUTSequence" else apply_modality_lut)(stored, reread(dataset))
        assert np.array_equal(theirs, found)


def test_the_first_value_mapped_may_have_lost_its_sign() -> None:
    stored = all_values(12, signed=False)
    curve = np.rint(65535 * (np.arange(4096) / 4095) ** 0.5).astype(int)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    dataset = make(stored, 12, VOILUTSequence=lut(4096, 65536 - 1024, 16, curve), **rescaled)
    assert np.array_equal(grey(dataset), grey(make(stored, 12, VOILUTSequence=lut(4096, 0, 16, curve))))


def test_look_up_tables_of_other_encodings() -> None:
    stored = all_values(12, signed=False)
    curve = (np.arange(4096) // 16)[::-1]
    expected = np.take(curve, stored)
    sequence = lut(4096, 0, 8, curve)
    dataset = make(stored, 12, VOILUTSequence=sequence)
    assert np.array_equal(grey(dataset), expected)
    sequence[0].LUTData = curve.astype("u1").tobytes()  # two entries in a word
    assert np.array_equal(grey(dataset), expected)
    sequence[0].LUTData = curve.astype("<u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert np.array_equal(grey(dataset), expected)
    sequence[0].LUTData = curve.astype(">u2").tobytes()
    dataset.PixelData = stored.astype(">u2").tobytes()
    dataset["PixelData"].VR = sequence[0]["LUTData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(grey(save(dataset, enforce_file_format=True)), expected)


@pytest.mark.parametrize(
    "broken",
    [
        {"VOILUTSequence": lut(4096, 0, 16, np.arange(100))},
        {"VOILUTSequence": lut(256, 0, 0, np.arange(256))},
        {"VOILUTSequence": lut(256, 0, 17, np.arange(256))},
        {"RescaleSlope": "nan", "RescaleIntercept": "0", "WindowCenter": 5, "WindowWidth": 9},
        {"WindowCenter": "inf", "WindowWidth": "inf"},
        {"HighBit": 3},
        {"HighBit": 40},
    ],
)
def test_what_cannot_be_shown_is_corrupt(broken: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on writing it
        data = save(make(all_values(12, signed=False), 12, **broken))
    with pytest.raises(DecodeError) as raised:
        decode(data, "x", 64, max_pixels=10**6, gate=Gate(pixel_check=False), ages=None)
    assert raised.value.reason == "corrupt"


def test_an_empty_slope_is_none() -> None:
    stored = all_values(12, signed=False)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(
        grey(make(stored, 12, RescaleSlope=None, RescaleIntercept=None, **window)), grey(make(stored, 12, **window))
    )


def test_a_voi_lut_is_preferred_to_a_window() -> None:
    stored = all_values(12, signed=False)
    curve = np.rint(65535 * (np.arange(4096) / 4095) ** 0.5).astype(int)
    dataset = make(stored, 12, WindowCenter=100, WindowWidth=10, VOILUTSequence=lut(4096, 0, 16, curve))
    expected = np.rint(255 * (apply_voi_lut(stored, reread(dataset)) / 65535))
    assert np.array_equal(grey(dataset), expected)


def test_a_modality_lut_comes_before_the_window() -> None:
    stored = all_values(12, signed=False)
    curve = np.arange(4096)[::-1] * 4
    dataset = make(stored, 12, ModalityLUTSequence=lut(4096, 0, 16, curve), WindowCenter=8192, WindowWidth=16384)
    expected = np.rint(255 * np.clip((apply_modality_lut(stored, reread(dataset)) - 8191.5) / 16383 + 0.5, 0, 1))
    assert np.array_equal(grey(dataset), expected)


def test_the_first_of_several_windows_counts() -> None:
    stored = all_values(12, signed=False)
    several = grey(make(stored, 12, WindowCenter=[1000, 3000], WindowWidth=[500, 50]))
    assert np.array_equal(several, grey(make(stored, 12, WindowCenter=1000, WindowWidth=500)))


@pytest.mark.parametrize("unusable", [{}, {"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": 5}])
def test_without_a_window_the_percentiles_of_what_is_no_padding_span_the_greys(unusable: dict[str, Any]) -> None:
    stored = np.full((100, 100), 4000, np.uint16)
    stored[:, 50:] = np.linspace(1000, 2000, 5000).reshape(100, 50)
    pixels = grey(make(stored, 12, PixelPaddingValue=4000, **unusable))
    assert (pixels[:, :50] == 0).all()
    assert pixels[-1, -1] == 255
    assert pixels[0, 50] == 0
    assert 120 <= pixels[50, 50] <= 135


def test_eight_bits_without_a_window_are_shown_as_they_are() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey(make(stored, 8)), stored)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 16), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([None, "IDENTITY", "INVERSE"]))
def test_monochrome1_is_monochrome2_inverted_exactly_once(
    bits: int, signed: bool, seed: int, shape: str | None
) -> None:
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    rng = np.random.default_rng(seed)
    stored = rng.integers(low, high, (9, 7)).astype("i2" if signed else "u2")
    window = {"WindowCenter": (low + high) / 2, "WindowWidth": (high - low) * 0.7}
    upright = grey(make(stored, bits, **window)).astype(int)
    inverse = make(stored, bits, PhotometricInterpretation="MONOCHROME1", **window)
    if shape:
        inverse.PresentationLUTShape = shape
    assert np.abs(255 - upright - grey(inverse)).max() <= 1
    flagged = make(stored, bits, PresentationLUTShape="INVERSE", **window)
    assert np.array_equal(grey(flagged), grey(inverse))


def test_padding_is_black_even_where_the_picture_is_inverted() -> None:
    stored = np.full((4, 4), 100, np.int16)
    stored[0], stored[1] = -2000, -1990
    window = {"WindowCenter": 0, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}
    assert grey(make(stored, 12, **window))[0].min() > 200
    dataset = make(stored, 12, **window)
    dataset.add_new(0x00280120, "US", 65536 - 2000)  # the sign got lost
    assert (grey(dataset)[0] == 0).all()
    assert (grey(dataset)[1] > 200).all()
    dataset.add_new(0x00280121, "US", 65536 - 1990)
    assert (grey(dataset)[:2] == 0).all()
    assert (grey(dataset)[2:] > 100).all()


def test_padding_outside_the_stored_range_hides_nothing() -> None:
    stored = all_values(12, signed=False)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(grey(make(stored, 12, PixelPaddingValue=65535, **window)), grey(make(stored, 12, **window)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_overlays_in_unused_bits_are_no_part_of_the_picture(syntax: str, signed: bool) -> None:
    stored = all_values(12, signed=signed)
    window = {"WindowCenter": 0 if signed else 2048, "WindowWidth": 4096}
    above = make(stored.view(np.uint16) & 0xFFF | 0xA000, 12, **window)
    below = make(stored.view(np.uint16) << 4 | 0x5, 12, HighBit=15, **window)
    for dataset in (above, below):
        dataset.PixelRepresentation = int(signed)
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        assert np.array_equal(grey(save(dataset, enforce_file_format=True)), grey(make(stored, 12, **window)))
