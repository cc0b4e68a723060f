"""Every transfer syntax, depth and sign gives the stored values; what a codestream says of itself is checked."""

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from radiograph import encoded, grey, make, reread, save

from pneumobatch.archive.errors import DecodeError

RAMP = (16 * np.arange(256).reshape(16, 16)).astype(np.uint16)
# The ramp as nothing here can encode it: by OpenJPH, and in 12 bits by libjpeg-turbo.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH4AAf+TwAAmSfYFB3QAAMAAEsAAEwAiAYd0AEbyA4d0AMAAE0AAE4AQyAEC"
    "dAAe6ZEAw1QAwAAVEAAFYIZhGKpwgnUAfvTDDz/+wFKB7LYAwAArIAAWkO7u7u7nwKenp8J4AP79/f39/f39/Yxge/Yxgey6AP/Z"
)
TWELVE_BITS = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQEBAQH/wQALDAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAACw7/xAAcEAAABgMAAAAAAAAAAAAAAAAACQ0pNUhUZnL/2gAIAQEAAD8Anb8t"
    "tNxoBhfGrbxrQQALbTcaAYXxq28a0LwALbTcaAYXxq28a0EAC203GgGF8atvGtD/2Q=="
)
WHOLE = {"WindowCenter": 2048, "WindowWidth": 4096}


def radiograph(bits: int, *, signed: bool) -> Dataset:
    rng, top = np.random.default_rng(bits), (1 << bits) - 1
    waves = 0.5 + 0.35 * np.outer(np.cos(np.arange(96) / 11), np.sin(np.arange(80) / 13))
    stored = (top * waves + rng.normal(0, top / 200, waves.shape)).clip(0, top).astype(int)
    low = -(1 << (bits - 1)) if signed else 0
    window = {"WindowCenter": low + (1 << bits) / 2, "WindowWidth": 1 << bits}
    return make((stored + low).astype("i2" if signed else "u2"), bits, **window)


def wrapped(codestream: bytes, syntax: str, stored: np.ndarray = RAMP, bits: int = 12, **values: Any) -> bytes:
    dataset = make(stored, bits, syntax=syntax, PixelData=encapsulate([codestream]), **(WHOLE | values))
    dataset["PixelData"].is_undefined_length = True
    return save(dataset, enforce_file_format=True)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless]
)
def test_lossless_syntaxes_give_the_same_picture(syntax: str, bits: int, signed: bool, tmp_path: Path) -> None:
    expected = grey(radiograph(bits, signed=signed))
    data = encoded(radiograph(bits, signed=signed), syntax, tmp_path)
    assert np.array_equal(grey(data), expected)
    for cut in (len(data) - 20, len(data) - 200, len(data) * 2 // 3):
        with pytest.raises(DecodeError):
            grey(data[:cut])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize(
    ("syntax", "how", "most"),
    [(uid.JPEGLSNearLossless, {"jls_error": 2}, 2), (uid.JPEG2000, {"j2k_cr": [8]}, 6)],
)
def test_lossy_syntaxes_give_nearly_the_same_picture(
    syntax: str, how: dict[str, Any], most: int, bits: int, signed: bool, tmp_path: Path
) -> None:
    found = grey(encoded(radiograph(bits, signed=signed), syntax, tmp_path, **how)).astype(int)
    assert np.abs(found - grey(radiograph(bits, signed=signed))).max() <= most


@pytest.mark.parametrize(
    ("syntax", "bits", "signed"),
    [
        (uid.JPEGBaseline8Bit, 8, False),
        (uid.JPEGBaseline8Bit, 8, True),
        (uid.JPEGExtended12Bit, 8, False),
        (uid.JPEGExtended12Bit, 10, False),
        (uid.JPEGExtended12Bit, 12, False),
    ],
)
def test_lossy_jpeg_of_8_and_12_bits(syntax: str, bits: int, signed: bool, tmp_path: Path) -> None:
    found = grey(encoded(radiograph(bits, signed=signed), syntax, tmp_path)).astype(int)
    assert np.abs(found - grey(radiograph(bits, signed=signed))).max() <= 2


def test_codestreams_of_other_encoders() -> None:
    expected = grey(make(RAMP, 12, **WHOLE))
    for syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        assert np.array_equal(grey(wrapped(HTJ2K, syntax)), expected)
    assert np.array_equal(grey(wrapped(TWELVE_BITS, uid.JPEGExtended12Bit)), expected)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.ExplicitVRLittleEndian])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_colours_become_grey(syntax: str, photometric: str) -> None:
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    rgb = np.stack([ramp, ramp[::-1], 255 - ramp], axis=2)
    expected = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
    values: dict[str, Any] = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    ycc = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    if syntax == uid.JPEGBaseline8Bit:
        buffer = io.BytesIO()
        keep = {"keep_rgb": True} if photometric == "RGB" else {"subsampling": 1 if photometric.endswith("2") else 0}
        Image.fromarray(rgb).save(buffer, "JPEG", quality=98, **keep)
        data = wrapped(buffer.getvalue(), syntax, rgb, 8, **values)
    elif photometric == "YBR_FULL_422":
        halved = np.rint(ycc.reshape(64, 32, 2, 3).mean(2)).astype(np.uint8)
        pairs = np.stack([ycc[:, ::2, 0], ycc[:, 1::2, 0], halved[..., 1], halved[..., 2]], axis=2)
        data = save(make(rgb, 8, **values, PixelData=pairs.tobytes()), enforce_file_format=True)
    else:
        data = save(make(rgb if photometric == "RGB" else ycc, 8, **values), enforce_file_format=True)
    assert np.abs(grey(data) - expected).max() <= 8
    assert np.abs(grey(data) - expected).mean() < 2


def test_planes_and_palettes() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    values = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    planes = rgb.transpose(2, 0, 1).tobytes()
    assert np.array_equal(grey(make(rgb, 8, **values, PlanarConfiguration=1, PixelData=planes)), expected)
    indices = np.arange(48, dtype=np.uint8).reshape(8, 6)
    dataset = make(indices, 8, PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        entries = rgb[..., channel].ravel().astype("<u2") * 257
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [48, 0, 16])
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", entries.tobytes())
    assert np.abs(grey(dataset).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGExtended12Bit])
@pytest.mark.parametrize(
    "change", [{"Rows": 48}, {"Columns": 40}, {"Rows": 2000, "Columns": 2000}, {"SamplesPerPixel": 3}]
)
def test_a_codestream_of_another_size_is_not_decoded(syntax: str, change: dict[str, int], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(io.BytesIO(encoded(radiograph(12, signed=False), syntax, tmp_path)))
    dataset.update(change)
    with pytest.raises(DecodeError) as raised:
        grey(save(dataset, enforce_file_format=True))
    assert raised.value.reason == "corrupt"


def test_no_size_or_no_end_is_no_film() -> None:
    for codestream, reason in (
        (b"\xff\xd8\xff\xd9", "corrupt"),
        (b"\xff\xd8\xff\xda\0\2\0\xff\xd9", "corrupt"),
        (b"\xff\xd8\xff\xff\xff\xc0\0\x0b\x0c\xff\xd9", "truncated"),
        (b"\xff\x4f\xff\x51\0\0\xff\xd9", "truncated"),
        (TWELVE_BITS[:-2], "truncated"),
        (TWELVE_BITS.replace(b"\xff\xc1\0\x0b\x0c", b"\xff\xc1\0\x0b\0"), "corrupt"),
    ):
        with pytest.raises(DecodeError) as raised:
            grey(wrapped(codestream, uid.JPEGExtended12Bit))
        assert raised.value.reason == reason


def test_a_syntax_that_nothing_here_reads_is_unsupported() -> None:
    with pytest.raises(DecodeError) as raised:
        grey(wrapped(TWELVE_BITS, uid.MPEG2MPML))
    assert raised.value.reason == "unsupported"


def test_a_deflated_bomb_is_measured_before_it_is_inflated() -> None:
    dataset = make(RAMP, 12, syntax=uid.DeflatedExplicitVRLittleEndian, **WHOLE)
    data = save(dataset, enforce_file_format=True)
    assert np.array_equal(grey(data), grey(make(RAMP, 12, **WHOLE)))
    start = data.index(reread(dataset).file_meta.TransferSyntaxUID.encode())
    head = data[: start + 22 + start % 2]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = head + b"".join(deflate.compress(bytes(1 << 20)) for _ in range(200)) + deflate.flush()
    with pytest.raises(DecodeError) as raised:
        grey(bomb)
    assert raised.value.reason == "too_large"
