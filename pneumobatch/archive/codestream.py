"""The encoded frame of a DICOM object → its stored values, by one decoder for each transfer syntax.

What a codestream says of itself is checked before a decoder sees it: some fill in what is missing, and all allocate
what the codestream asks for.
"""

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pneumobatch.archive.errors import DecodeError, Reason

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_PLUGINS = {
    "JPEGBaseline8Bit": "pillow",
    "JPEGExtended12Bit": "pillow",
    "JPEGLossless": "gdcm",
    "JPEGLosslessSV1": "gdcm",
    "JPEGLSLossless": "pyjpegls",
    "JPEGLSNearLossless": "pyjpegls",
    "JPEG2000Lossless": "pylibjpeg",
    "JPEG2000": "pylibjpeg",
    "HTJ2KLossless": "pylibjpeg",
    "HTJ2KLosslessRPCL": "pylibjpeg",
    "HTJ2K": "pylibjpeg",
    "RLELossless": "pylibjpeg",
}
"""One decoder for each syntax: a second one, asked after the first refused, may make a picture of a broken stream."""


_UNCOMPRESSED = {
    "ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian"
}  # fmt: skip


def check_inflated(data: bytes, most: int) -> None:
    """Measures what a deflated data set inflates to, a piece at a time: the reader inflates all of it at once.

    Raises:
        DecodeError: `too_large`: it is more than `most` bytes; `corrupt`.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian as Deflated

    if Deflated.encode() not in data[:4096]:
        return
    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != Deflated:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for at in range(stream.tell(), len(data), 1 << 16):
        try:
            size += len(inflater.decompress(data[at : at + (1 << 16)]))
        except zlib.error:
            raise DecodeError(Reason.CORRUPT) from None
        if size > most:
            raise DecodeError(Reason.TOO_LARGE)


def stored_values(dataset: "Dataset", syntax: "UID") -> npt.NDArray[Any]:
    """Decodes the one frame of an object whose rows and columns were checked.

    Returns:
        Stored values [rows, columns] or, in colour, RGB [rows, columns, 3]; not yet freed of overlays in unused bits.

    Raises:
        DecodeError: `unsupported`, `truncated` or `corrupt`; a decoder may also raise nearly everything else.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGLosslessSV1

    # By name: pydicom does not know of a private syntax whether it is encapsulated.
    if dataset.BitsStored > 16 or syntax.keyword not in _PLUGINS.keys() | _UNCOMPRESSED:
        raise DecodeError(Reason.UNSUPPORTED)
    if (
        not syntax.is_encapsulated
        and len(dataset.PixelData) < dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    ):
        raise DecodeError(Reason.TRUNCATED)
    if keeps_unused_bits(syntax):  # pydicom would shift them away whatever HighBit says
        plugin = _PLUGINS.get(syntax.keyword, "")
        whole: Any = {"correct_unused_bits": False}
        return get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=plugin, **whole)[0]
    plugin = _PLUGINS[syntax.keyword]
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    _check(get_frame(dataset.PixelData, 0, number_of_frames=1), shape)
    if syntax.keyword == "JPEGExtended12Bit" and dataset.BitsStored > 8:
        # GDCM tells the process from the codestream and reads 12 bits; only under this name pydicom does not ask it.
        dataset.file_meta.TransferSyntaxUID = syntax = JPEGLosslessSV1
        plugin = "gdcm"
    return get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=plugin)[0]


def keeps_unused_bits(syntax: "UID") -> bool:
    """Whether whole cells are stored: uncompressed or by RLE; a codestream holds the bits of the value alone."""
    return not syntax.is_encapsulated or syntax.keyword == "RLELossless"


def _check(frame: bytes, shape: tuple[int, int, int]) -> None:
    """Checks that a codestream of any JPEG kind is complete and has these rows, columns and samples for each pixel.

    Raises:
        DecodeError: `truncated` (all kinds end with FF D9) or `corrupt`.
    """
    if b"\xff\xd9" not in frame[-64:]:
        raise DecodeError(Reason.TRUNCATED)
    try:
        found = _shape(frame)
    except struct.error:
        raise DecodeError(Reason.TRUNCATED) from None
    if found != shape:
        raise DecodeError(Reason.CORRUPT)


def _shape(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples by the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None if it has none."""
    if (start := frame.find(b"\xff\x4f\xff\x51", 0, 256)) >= 0:  # JPEG 2000, perhaps boxed: size and offset of the grid
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        (samples,) = struct.unpack_from(">H", frame, start + 40)
        return bottom - top, right - left, samples
    at = 2
    while frame[at : at + 1] == b"\xff":
        marker = frame[at + 1]
        if marker in {0xD9, 0xDA}:  # the picture begins, or ends
            return None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return (rows, columns, samples) if 2 <= precision <= 16 else None  # GDCM crashes on none
        else:
            at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return None
