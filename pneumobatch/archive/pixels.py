"""Bytes → grey uint8, or a named decode error: the one decoder of training and screening."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pneumobatch.archive import dicom, headers, quality
from pneumobatch.archive.errors import DecodeError, DomainError, Reason
from pneumobatch.config import Gate

__all__ = ["DecodeError", "DomainError", "Film", "Reason", "decode"]

_FROM_16_BITS = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
"""Grey of 16 bits → grey of 8 bits, rounded: 65535 is 255."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of an EXIF orientation upright."""


@dataclass(frozen=True, slots=True)
class Film:
    """A decoded film.

    Attributes:
        pixels: Grey, uint8 [size, size]; bright is dense, as on every film.
        width: Columns of the source, upright.
        height: Rows of the source, upright.
        format: `jpeg`, `png` or `dicom`, by content.
        attributes: Those of `tables.DICOM_ALLOWED` that a DICOM file states; empty for other formats.
        statistics: `quality.measure` of the pixels.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    format: headers.Kind
    attributes: dict[str, str | int]
    statistics: dict[str, float]


def decode(data: bytes, name: str, size: int, *, max_pixels: int, gate: Gate, ages: tuple[int, int] | None) -> Film:
    """Decodes a film, whatever its format.

    The aspect ratio is not kept: the film is squashed to a square, antialiased bilinear, as in the paper's data. A JPEG
    is decoded at 1/2, 1/4 or 1/8 of its size where that still covers the square. Colours become grey by ITU-R BT.601
    luma; what is transparent becomes black.

    Args:
        data: The whole file.
        name: Its name; only the extension is looked at.
        size: Side of the square, pixels.
        max_pixels: Columns × rows above which nothing is decoded.
        gate: Rules of the model's domain.
        ages: Youngest and oldest age the model was validated for, whole years; None: any.

    Raises:
        DecodeError: The file gives no picture.
        DomainError: The picture is readable and outside the model's domain.
    """
    kind = headers.sniff(data)
    if headers.EXTENSIONS.get(name.rpartition(".")[2].lower(), kind) != kind:
        raise DecodeError(Reason.WRONG_EXTENSION)
    attributes: dict[str, str | int] = {}
    orientation = 1
    try:
        if kind == "dicom":
            grey_HW, attributes = dicom.read(data, max_pixels=max_pixels, gate=gate, ages=ages)
            picture, box = Image.fromarray(grey_HW), None
            width, height = picture.size
        else:
            width, height, orientation, essence = headers.jpeg(data) if kind == "jpeg" else headers.png(data)
            if width * height > max_pixels:
                raise DecodeError(Reason.TOO_MANY_PIXELS)
            picture, box = _grey(kind, essence, size)
        picture = picture.resize((size, size), Image.Resampling.BILINEAR, box)
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
    except (DecodeError, DomainError):
        raise
    except MemoryError:
        raise DecodeError(Reason.TOO_LARGE) from None
    except (KeyboardInterrupt, SystemExit):
        raise
    # The one broad except: decoders answer hostile bytes with nearly every exception there is (SyntaxError, KeyError,
    # struct.error, RecursionError …, and panics of Rust, which are no Exception), and one bad file must end as one row.
    # `from None`, as their texts quote the file.
    except BaseException:
        raise DecodeError(Reason.CORRUPT) from None
    if orientation >= 5:  # lying on its side
        width, height = height, width
    pixels_HW = np.array(picture)
    statistics = quality.measure(pixels_HW)
    if gate.pixel_check and (rule := quality.check(pixels_HW)) is not None:
        raise DomainError(rule, {**attributes, "width": width, "height": height, **statistics})
    return Film(pixels_HW, width, height, kind, attributes, statistics)


def _grey(
    kind: headers.Kind, essence: bytes, size: int
) -> tuple[Image.Image, tuple[float, float, float, float] | None]:
    """Decodes a JPEG or PNG to 8-bit grey, a large JPEG at a fraction of its size; and the box that the film fills."""
    # Not through Image.open: its limit on pixels is a global of the process, and warns before it fails.
    picture: Image.Image = (JpegImageFile if kind == "jpeg" else PngImageFile)(io.BytesIO(essence))
    # Asked for a square, so that it also covers a film that lies on its side. The last column and row of a reduced
    # JPEG reach beyond the film unless the reduction divides it; without the box everything would be shifted.
    drafted = picture.draft("L", (size, size))
    box = drafted[1] if drafted else None
    picture.load()
    if picture.mode.startswith("I"):  # convert("L") would clip at 255
        return Image.fromarray(np.take(_FROM_16_BITS, np.asarray(picture), mode="clip")), box
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    alpha = picture.getchannel("A") if picture.mode in {"LA", "RGBA"} else None
    if picture.mode in {"CMYK", "P"}:
        picture = picture.convert("RGB")
    grey = picture.convert("L")
    return grey if alpha is None else ImageChops.multiply(grey, alpha), box
