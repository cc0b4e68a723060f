"""Bytes → film or a named error, whatever the bytes are."""

import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pneumobatch.archive import phantoms
from pneumobatch.archive.pixels import DecodeError, DomainError, Film, Reason, decode
from pneumobatch.config import Gate

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
PICTURE = (phantoms.film(np.random.default_rng(5), 1, 300, 260) >> 8).astype(np.uint8)


def film(data: bytes, name: str = "x", size: int = 64, max_pixels: int = 10**7, check: bool = False) -> Film:
    return decode(data, name, size, max_pixels=max_pixels, gate=Gate(pixel_check=check), ages=None)


def save(picture: Any, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, form, **how)
    return buffer.getvalue()


def reason(data: bytes, name: str = "x", **how: Any) -> str:
    with pytest.raises(DecodeError) as raised:
        film(data, name, **how)
    assert name == "x" or name not in str(raised.value)
    return str(raised.value.reason)


def close(result: Film, most: int) -> None:
    """The film is the PNG's, but for compression: DCT scaling is another low-pass, seen at the lead marker's edges."""
    difference = np.abs(result.pixels.astype(int) - film(PNG).pixels)
    assert difference.mean() < 1
    assert difference.max() <= most


JPEG = save(PICTURE, "JPEG", quality=90)
PROGRESSIVE = save(PICTURE, "JPEG", quality=90, progressive=True)
PNG = save(PICTURE, "PNG")
DICOM = phantoms._dicom(np.random.default_rng(1), PICTURE[::4, ::4].astype(np.uint16) * 257)


def test_a_film_is_grey_square_and_writable() -> None:
    result = film(PNG, size=48)
    assert result.pixels.shape == (48, 48)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.writeable  # torch.from_numpy warns otherwise
    assert (result.width, result.height, result.format, result.attributes) == (300, 260, "png", {})
    expected = Image.fromarray(PICTURE).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(result.pixels, np.asarray(expected))


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b"", "x.jpeg", "empty"),
        (b"<!DOCTYPE html><html></html>", "x.dcm", "html_page"),
        (b"\xef\xbb\xbf \n<HTML><body>", "x.png", "html_page"),
        (b"See the other folder.\n", "x.jpeg", "not_an_image"),
        (b"PAR1" + bytes(100), "x.parquet", "not_an_image"),
        (bytes(5000), "x.dcm", "not_an_image"),
        (b"\x89", "x.png", "not_an_image"),
        (JPEG, "x.png", "wrong_extension"),
        (JPEG, "x.dcm", "wrong_extension"),
        (PNG, "x.JPG", "wrong_extension"),
        (DICOM, "x.jpeg", "wrong_extension"),
        (save(PICTURE, "GIF"), "x.gif", "unsupported"),
        (save(PICTURE, "TIFF"), "x.tif", "unsupported"),
        (save(PICTURE, "BMP"), "x.bmp", "unsupported"),
        (save(PICTURE, "WEBP"), "x.webp", "unsupported"),
        (JPEG[:2], "x.jpg", "truncated"),
        (JPEG[:-2], "x.jpg", "truncated"),
        (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2), "x.jpg", "truncated"),
        (PNG[:-12], "x.png", "truncated"),
        (PNG[:-40] + b"\0" + PNG[-39:], "x.png", "corrupt"),
        (DICOM[:-1], "x.dcm", "truncated"),
    ],
)
def test_every_failure_has_a_name(data: bytes, name: str, expected: str) -> None:
    assert reason(data, name) == expected


@pytest.mark.parametrize("name", ["x", "x.jpeg", "x.JPG", "folder.png/x", "x.unknown"])
def test_without_a_telling_extension_the_content_decides(name: str) -> None:
    assert film(JPEG, name).format == "jpeg"


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    filled = JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:]
    assert np.array_equal(film(filled).pixels, film(JPEG).pixels)
    assert reason(filled[:900_000]) == "truncated"


def test_padding_after_the_end_is_accepted() -> None:
    for data in (JPEG, PNG):
        assert np.array_equal(film(data + bytes(1000)).pixels, film(data).pixels)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG, DICOM], ids=["jpeg", "progressive", "png", "dicom"])
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_beginning_of_a_film_is_a_film(data: bytes, share: float) -> None:
    assert reason(data[: int(len(data) * share)]) in {"empty", "truncated", "not_an_image", "corrupt"}


@pytest.mark.parametrize("data", [JPEG, PNG, DICOM], ids=["jpeg", "png", "dicom"])
@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
def test_damage_is_a_named_error_or_a_film(data: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for share, value in changes:
        damaged[int(len(data) * share)] = value
    with contextlib.suppress(DecodeError, DomainError):
        film(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"\xff\xd8\xff", PNG[:33], DICOM[:200], DICOM[132:180]]), st.binary(max_size=300))
def test_noise_is_a_named_error(head: bytes, data: bytes) -> None:
    with pytest.raises((DecodeError, DomainError)):
        film(head + data)


def test_nothing_is_completed_even_where_pillow_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for data in (JPEG, PROGRESSIVE, PNG):
        assert reason(data[: len(data) * 3 // 4]) == "truncated"


@pytest.mark.parametrize("data", [JPEG, PNG, DICOM], ids=["jpeg", "png", "dicom"])
def test_too_many_pixels_are_found_before_decoding(data: bytes) -> None:
    assert reason(data, max_pixels=1000) == "too_many_pixels"


def test_a_bomb_is_no_warning() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = PNG[:8] + chunk + PNG[33:]
    assert reason(data, max_pixels=10**8) == "too_many_pixels"


def test_an_animation_is_refused() -> None:
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    assert reason(save(frames[0], "PNG", save_all=True, append_images=frames[1:])) == "animated"


def test_of_a_multi_picture_jpeg_the_first_counts() -> None:
    both = save(Image.fromarray(PICTURE), "MPO", save_all=True, append_images=[Image.fromarray(255 - PICTURE)])
    assert np.array_equal(film(both).pixels, film(save(PICTURE, "JPEG")).pixels)


def test_colours_become_luma() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    expected = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(film(save(colours, "PNG")).pixels - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes_agree(mode: str, progressive: bool) -> None:
    data = save(Image.fromarray(PICTURE).convert("RGB").convert(mode), "JPEG", quality=95, progressive=progressive)
    close(film(data), 20)


def test_png_modes_agree() -> None:
    grey = Image.fromarray(PICTURE)
    opaque = Image.new("L", grey.size, 255)
    palette = Image.fromarray(PICTURE)
    palette.putpalette([level for level in range(256) for _ in range(3)])
    sixteen = Image.fromarray(PICTURE.astype(np.uint16) * 257)
    for picture in (grey.convert("RGB"), Image.merge("LA", (grey, opaque)), grey.convert("RGBA"), palette, sixteen):
        assert np.abs(film(save(picture, "PNG")).pixels.astype(int) - film(PNG).pixels).max() <= 1
    assert set(np.unique(film(save(grey.convert("1"), "PNG"), size=260).pixels)) >= {0, 255}


def test_a_png_says_its_size_first_and_once() -> None:
    first = PNG.index(b"IHDR") - 4
    header, rest = PNG[first : first + 25], PNG[first + 25 :]
    small = chunk(b"IHDR", struct.pack(">II", 4, 4) + header[16:21])
    text = chunk(b"tEXt", b"a\0b")
    assert reason(PNG[:first] + header + small + rest, max_pixels=1_000) == "corrupt"
    assert reason(PNG[:first] + small + header + rest) == "corrupt"
    assert reason(PNG[:first] + header + rest[:-12] + small + rest[-12:], max_pixels=1_000) == "corrupt"
    assert reason(PNG[:first] + text + header + rest) == "corrupt"
    assert film(PNG[:first] + header + text + rest).width == 300


def test_what_is_transparent_is_black() -> None:
    white = Image.new("L", (64, 64), 255)
    half = Image.new("L", (64, 64), 128)
    half.paste(0, (0, 0, 32, 64))
    for picture in (Image.merge("LA", (white, half)), Image.merge("RGBA", (white, white, white, half))):
        pixels = film(save(picture, "PNG")).pixels
        assert (pixels[:, :32] == 0).all()
        assert (pixels[:, 32:] == 128).all()
    stripes = Image.new("P", (64, 64), 1)
    stripes.putpalette([255] * 6)
    stripes.paste(0, (0, 0, 32, 64))
    pixels = film(save(stripes, "PNG", transparency=b"\x00\xff")).pixels
    assert (pixels[:, :32] == 0).all()
    assert (pixels[:, 32:] == 255).all()


@given(st.integers(0, 65535))
@settings(max_examples=40, deadline=None)
def test_sixteen_bits_scale_by_their_depth(value: int) -> None:
    pixels = film(save(np.full((8, 8), value, np.uint16), "PNG"), size=8).pixels
    assert (pixels == round(value / 257)).all()


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_picture(form: str, orientation: int) -> None:
    upright = Image.fromarray(PICTURE)
    stored = upright.transpose(UNDO[orientation]) if orientation in UNDO else upright
    exif = Image.Exif()
    exif[274] = orientation
    how = {"quality": 95} if form == "JPEG" else {}
    result = film(save(stored, form, exif=exif.tobytes(), **how))
    assert (result.width, result.height) == (300, 260)
    close(result, 20 if form == "JPEG" else 1)


def test_a_damaged_exif_block_turns_nothing_and_warns_nobody() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01\0\x09\0\0" + b"\xff" * 7
    assert film(save(PICTURE, "JPEG", exif=exif)).width == 300


def test_large_jpegs_are_decoded_small_with_the_same_result() -> None:
    large = np.asarray(Image.fromarray(PICTURE).resize((1201, 1039), Image.Resampling.BICUBIC))
    data = save(large, "JPEG", quality=95)
    for size in (64, 129, 224):
        expected = Image.fromarray(large).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(film(data, size=size).pixels.astype(int) - np.asarray(expected)).mean() < 0.6


def test_a_twelve_bit_jpeg_is_unsupported() -> None:
    at = JPEG.index(b"\xff\xc0")
    assert reason(JPEG[: at + 4] + b"\x0c" + JPEG[at + 5 :]) == "unsupported"


def test_a_picture_outside_the_domain_names_its_rule_and_what_is_known() -> None:
    with pytest.raises(DomainError) as raised:
        film(save(255 - PICTURE, "PNG"), check=True)
    assert raised.value.rule == "inverted"
    assert raised.value.facts["width"] == 300
    assert 0 < raised.value.facts["mean_intensity"] < 1
    assert film(PNG, check=True).statistics["contrast"] > 0.5


def test_errors_survive_the_way_between_processes() -> None:
    assert pickle.loads(pickle.dumps(DecodeError(Reason.EMPTY))).reason == "empty"
    copy = pickle.loads(pickle.dumps(DomainError("blank", {"width": 3})))
    assert (copy.rule, copy.facts) == ("blank", {"width": 3})


@pytest.mark.shared
def test_original_films() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    for path in sorted(SHARED.glob("originals/*/*"))[::11]:
        data = path.read_bytes()
        result = film(data, path.name, 224, check=True)
        with Image.open(path) as picture:
            assert (result.width, result.height) == picture.size
            expected = picture.convert("L").resize((224, 224), Image.Resampling.BILINEAR)
        assert np.abs(result.pixels.astype(int) - np.asarray(expected)).mean() < 0.9
        assert reason(data[: len(data) * 2 // 3]) == "truncated"
