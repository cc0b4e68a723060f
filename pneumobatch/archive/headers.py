"""What a file says about itself before anything is decoded: kind, size, orientation, completeness.

Only the segments that make pixels are handed on to the decoder. Comments, EXIF, XMP, colour profiles, thumbnails and
animation frames stay behind: they cost time, may name a patient, and make the decoder warn.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pneumobatch.archive.errors import DecodeError, Reason

Kind = Literal["jpeg", "png", "dicom"]

EXTENSIONS: dict[str, Kind] = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "dcm": "dicom", "dicom": "dicom"}

_OTHER_PICTURES = (
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"RIFF",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")
_PNG = b"\x89PNG\r\n\x1a\n"
_SCANS = 500
"""Scans after the first; encoders make a dozen. Each costs as much as the whole picture, and may be ten bytes long."""
_FILL = re.compile(b"\xff+(?=\xff)")  # before a marker
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


class Header(NamedTuple):
    """A JPEG or PNG before it is decoded."""

    width: int  # as stored, before the orientation is applied
    height: int
    orientation: int  # EXIF, 1–8; 1: upright
    essence: bytes  # the file without what does not make pixels


def sniff(data: bytes) -> Kind:
    """Names the kind of a file from its first bytes; its name plays no part.

    Raises:
        DecodeError: `empty`, `html_page`, `unsupported` (another picture format), or `not_an_image`.
    """
    if not data:
        raise DecodeError(Reason.EMPTY)
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data.startswith(_PNG[:4]):
        return "png"
    if data[128:132] == b"DICM" or _starts_with_element(data):
        return "dicom"
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_HTML) or (text.startswith((b"<?xml", b"<!--")) and b"<html" in text):
        raise DecodeError(Reason.HTML_PAGE)
    raise DecodeError(Reason.UNSUPPORTED if data.startswith(_OTHER_PICTURES) else Reason.NOT_AN_IMAGE)


def _starts_with_element(data: bytes) -> bool:
    """Whether a DICOM data set begins right here, as in files that lost their preamble (and meta header)."""
    if len(data) < 12:
        return False
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    if data.startswith(b"\x00\x08\x00"):  # big-endian
        return explicit and data[3] < 0x70
    group, element, length = struct.unpack_from("<HHI", data)
    return (group == 2 and element < 0x100 and explicit) or (
        group == 8 and element < 0x70 and (explicit or length < len(data))
    )


def jpeg(data: bytes) -> Header:
    """Reads a JPEG's markers up to its first scan, and looks for the end of the image.

    Raises:
        DecodeError: `truncated`, `corrupt`, or `unsupported` (12-bit, lossless, hundreds of scans).
    """
    at, size, orientation = 2, (0, 0), 1
    essence: list[bytes | memoryview] = [data[:2]]
    for marker, segment in _segments(data):
        at += len(segment)
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # frame header
            if len(segment) < 10:
                raise DecodeError(Reason.CORRUPT)
            if segment[4] != 8 or marker in {0xC3, 0xC7, 0xCB, 0xCF}:
                raise DecodeError(Reason.UNSUPPORTED)
            size = (int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7]))
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            orientation = _orientation(segment[10:])
        if marker in {0xE0, 0xEE} or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # JFIF and Adobe set the colours
            essence.append(segment)
    # The decoder is content once the last row is out, and never asks for the end marker. Within a scan FF D9 can be
    # nothing else, and whatever follows it is padding.
    if data.rfind(b"\xff\xd9", at) < 0:
        raise DecodeError(Reason.TRUNCATED)
    if 0 in size:
        raise DecodeError(Reason.CORRUPT)
    if data.count(b"\xff\xda", at) > _SCANS:
        raise DecodeError(Reason.UNSUPPORTED)
    return Header(*size, orientation, b"".join([*essence, memoryview(data)[at:]]))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields marker and bytes of every segment after the start of image, the header of the first scan last."""
    at, marker = 2, 0
    while marker != 0xDA:
        if at + 4 > len(data):
            raise DecodeError(Reason.TRUNCATED)
        marker, length = data[at + 1], 2 + int.from_bytes(data[at + 2 : at + 4])
        if fill := _FILL.match(data, at):  # of any length, and in one step: it may be all of a large file
            length = len(fill[0])
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stands alone
            length = 2
        elif marker == 0xD9 or length < 4:
            raise DecodeError(Reason.CORRUPT)
        if data[at] != 0xFF:
            raise DecodeError(Reason.CORRUPT)
        if at + length > len(data):
            raise DecodeError(Reason.TRUNCATED)
        yield marker, data[at : at + length]
        at += length


def png(data: bytes) -> Header:
    """Walks through all chunks of a PNG and checks those that make pixels.

    Raises:
        DecodeError: `truncated`, `corrupt` (order, checksum), or `animated`.
    """
    if not data.startswith(_PNG):
        raise DecodeError(Reason.TRUNCATED if len(data) < len(_PNG) else Reason.CORRUPT)
    at, kind, size, orientation = len(_PNG), b"", (0, 0), 1
    essence = [_PNG]
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        if len(chunk) < 12 + length:
            raise DecodeError(Reason.TRUNCATED)
        content = memoryview(chunk)[8:-4]
        if kind in _PNG_PIXELS:
            if zlib.crc32(memoryview(chunk)[4:-4]) != int.from_bytes(chunk[-4:]):
                raise DecodeError(Reason.CORRUPT)
            essence.append(chunk)
        if (kind == b"IHDR") != (at == len(_PNG)):  # first and once: the decoder believes another one than is checked
            raise DecodeError(Reason.CORRUPT)
        if kind == b"IHDR" and length == 13:
            size = (int.from_bytes(content[:4]), int.from_bytes(content[4:8]))
        elif kind == b"acTL" and int.from_bytes(content[:4]) > 1:
            raise DecodeError(Reason.ANIMATED)
        elif kind == b"eXIf":
            orientation = _orientation(bytes(content))
        at += len(chunk)
    if 0 in size:
        raise DecodeError(Reason.CORRUPT)
    return Header(*size, orientation, b"".join(essence))


def _orientation(exif: bytes) -> int:
    """Orientation (tag 274) in the first directory of an EXIF block; 1 where it is absent or makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, at)
            if (tag, kind, count) == (274, 3, 1) and 1 <= value <= 8:
                return int(value)
    except struct.error:  # a damaged EXIF block says nothing about the pixels
        pass
    return 1
