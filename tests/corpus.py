"""A corpus of damaged and hostile films and Parquet archives, made from phantoms: equal seeds write equal bytes.

`python tests/corpus.py FOLDER [SEED]` writes it, for a look at what a decoder does to it.
"""

import io
import itertools
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from radiograph import encoded, make, save

from pneumobatch.archive import phantoms

SIDE = 96
"""Rows and columns of the films before they are damaged, pixels."""
MAX_PIXELS = 4_000_000
"""What the corpus takes for archive.max_pixels: its bombs claim more, as many, or lie."""
SYNTAXES = {
    "plain": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg": uid.JPEGBaseline8Bit,
    "lossless": uid.JPEGLosslessSV1,
    "ls": uid.JPEGLSLossless,
    "j2k": uid.JPEG2000Lossless,
}
SIZES = (0, 1, 2, SIDE + 1, 2_000, 0x7FFF, 0xFFFF)  # for a film's rows and columns: 16 bits in JPEG and DICOM
LENGTHS = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF)


def films(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of about 1,500 files, none of which is a sound film under its right name (bit flips and
    cuts behind the picture apart)."""
    rng = np.random.default_rng(seed)
    sound = dict(_sound(rng))
    for name, data in sound.items():
        yield from ((f"cut{at:07d}-{name}", data[:at]) for at in _offsets(rng, len(data), 28))
        yield from ((f"flip{number:02d}-{name}", _flipped(rng, data)) for number in range(28))
        yield from ((f"junk{number:02d}-{name}", _overwritten(rng, data)) for number in range(14))
        yield from ((f"length{number:02d}-{name}", _mislength(rng, data)) for number in range(14))
        yield f"twice-{name}", data + data
        yield f"tail-{name}", data + rng.bytes(2_000)
        for extension in ("jpeg", "png", "dcm"):
            if not name.endswith(extension):
                yield f"as-{name}.{extension}", data
    for number, extension in itertools.product(range(20), ("jpeg", "png", "dcm", "txt")):
        yield f"garbage{number:02d}.{extension}", rng.bytes(int(rng.integers(0, 3_000)))
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM", b"\x08\0\5\0CS", b"GIF89a", b"<html>"):
        yield f"begin-{start[-4:].hex()}.bin", start + rng.bytes(500)
        yield f"only-{start[-4:].hex()}.bin", start
    yield from _jpeg_claims(sound["grey.jpeg"])
    yield from _png_bombs()
    yield from _dicom_claims(sound["plain.dcm"])
    yield from _dicom_bombs()


def parquets(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of about 200 damaged Parquet archives of films."""
    rng = np.random.default_rng(seed)
    data = dict(_sound(rng))
    sound = {}
    for compression in ("none", "snappy", "zstd"):
        sink = io.BytesIO()
        table = pa.table({"bytes": [data["grey.jpeg"], data["grey.png"], None, data["rle.dcm"]] * 2})
        pq.write_table(table, sink, compression=compression, row_group_size=3)
        sound[compression] = sink.getvalue()
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a.jpeg", "b.png"] * 4}), sink, compression="zstd")
    sound["manifest"] = sink.getvalue()
    for name, whole in sound.items():
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        yield from ((f"cut{at:07d}-{name}.parquet", whole[:at]) for at in _offsets(rng, len(whole), 12))
        yield from ((f"flip{number:02d}-{name}.parquet", _flipped(rng, whole)) for number in range(12))
        yield from (  # where Arrow believes what it reads
            (f"foot{number:02d}-{name}.parquet", whole[:footer] + _flipped(rng, whole[footer:-8]) + whole[-8:])
            for number in range(20)
        )
        yield from ((f"junk{number:02d}-{name}.parquet", _overwritten(rng, whole)) for number in range(12))
        for length in LENGTHS:
            yield f"foot{length:08x}-{name}.parquet", whole[:-8] + length.to_bytes(4, "little") + b"PAR1"
    for name, column in {
        "numbers": pa.array([1, 2, 3]),
        "texts": pa.array(["SECRET"] * 3),
        "lists": pa.array([[b"a"], [b"b"]]),
        "nothing": pa.nulls(3),
    }.items():
        for key in ("bytes", "uri", "other"):
            sink = io.BytesIO()
            pq.write_table(pa.table({key: column}), sink)
            yield f"{key}-{name}.parquet", sink.getvalue()
    yield "empty.parquet", b""
    yield "garbage.parquet", rng.bytes(3_000)
    yield "film.parquet", data["grey.jpeg"]


def _sound(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Films in every format and DICOM transfer syntax, as yet undamaged."""
    grey16 = phantoms.film(rng, 1, SIDE, SIDE)
    grey8 = (grey16 >> 8).astype(np.uint8)
    rgb = np.stack([grey8, grey8, grey8[::-1]], axis=2)
    yield "grey.jpeg", _saved(grey8, "JPEG", quality=90)
    yield "colour.jpeg", _saved(rgb, "JPEG", quality=90)
    yield "progressive.jpeg", _saved(rgb, "JPEG", quality=90, progressive=True)
    yield "grey.png", _saved(grey8, "PNG")
    yield "deep.png", _saved(grey16, "PNG")
    yield "palette.png", _saved(grey8 // 16, "PNG", mode="P")
    yield "alpha.png", _saved(np.dstack([rgb, grey8]), "PNG")
    stored = grey16 >> 4
    with TemporaryDirectory() as folder:
        for name, syntax in SYNTAXES.items():
            lossy = syntax == uid.JPEGBaseline8Bit
            film = make(grey8 if lossy else stored, 8 if lossy else 12, WindowCenter=2048, WindowWidth=4096)
            if syntax.is_encapsulated:
                yield f"{name}.dcm", encoded(film, syntax, Path(folder))
            else:
                film.file_meta.TransferSyntaxUID = syntax
                yield f"{name}.dcm", save(film, enforce_file_format=True)


def _saved(picture: np.ndarray, form: str, *, mode: str | None = None, **how: object) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(picture)
    if mode == "P":
        image.putpalette(bytes(range(48)))
    image.save(buffer, form, **how)
    return buffer.getvalue()


def _offsets(rng: np.random.Generator, size: int, count: int) -> list[int]:
    """Half of them within the first 600 bytes, where the headers are."""
    early, late = rng.integers(0, min(size, 600), count // 2), rng.integers(0, size, count - count // 2)
    return sorted({int(at) for at in (*early, *late)})


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for at in rng.choice(_offsets(rng, len(data), 32), int(rng.integers(1, 9))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwritten(rng: np.random.Generator, data: bytes) -> bytes:
    """A stretch of it is random, all ones, or gone."""
    at, length = int(rng.choice(_offsets(rng, len(data), 32))), int(rng.integers(1, 200))
    middle = (rng.bytes(length), b"\xff" * length, b"")[int(rng.integers(3))]
    return data[:at] + middle + data[at + length :]


def _mislength(rng: np.random.Generator, data: bytes) -> bytes:
    """Four bytes become a length that is too short, too long or negative, in one of the byte orders."""
    at, length = int(rng.choice(_offsets(rng, len(data), 32))), int(rng.choice(LENGTHS))
    return data[:at] + length.to_bytes(4, rng.choice(["little", "big"])) + data[at + 4 :]  # type: ignore[arg-type]


def _jpeg_claims(jpeg: bytes) -> Iterator[tuple[str, bytes]]:
    frame = jpeg.index(b"\xff\xc0") + 5
    for rows, columns in itertools.product(SIZES, SIZES):
        yield f"claims-{rows}x{columns}.jpeg", jpeg[:frame] + struct.pack(">HH", rows, columns) + jpeg[frame + 4 :]
    yield "segments.jpeg", b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + jpeg[2:]
    yield "fill.jpeg", b"\xff\xd8" + b"\xff" * 300_000 + jpeg[2:]
    large = _saved(np.zeros((2000, 2000), np.uint8), "JPEG", progressive=True)
    scan = large.rindex(b"\xff\xda")
    for scans in (100, 20_000):
        yield f"scans{scans}.jpeg", large[:-2] + large[scan:-2] * scans + large[-2:]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colours: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def _png_bombs() -> Iterator[tuple[str, bytes]]:
    rows = chunk(b"IDAT", zlib.compress(bytes((SIDE + 1) * SIDE)))
    huge = chunk(b"IDAT", zlib.compress(bytes(200_000_000), 1))
    for width, height in itertools.product((*SIZES[:-2], 1_000_000, 0x7FFF_FFFF, 0xFFFF_FFFF), repeat=2):
        yield f"claims-{width}x{height}.png", _png(width, height, rows)
    for depth, colours in itertools.product((1, 2, 4, 8, 16, 32), range(8)):
        yield f"depth{depth}-colours{colours}.png", _png(SIDE, SIDE, rows, depth=depth, colours=colours)
    yield "more-than-claimed.png", _png(SIDE, SIDE, huge)
    yield "as-much-as-allowed.png", _png(2000, 2000, huge, depth=16, colours=6)
    yield "one-column.png", _png(1, MAX_PIXELS, huge)
    yield "one-row.png", _png(MAX_PIXELS, 1, huge)
    for kind in (b"tEXt", b"IDAT", b"PLTE", b"IHDR", b"tRNS", b"acTL"):
        yield f"chunks-{kind.decode()}.png", _png(SIDE, SIDE, chunk(kind, b"") * 100_000, rows)
    unfolding = zlib.compress(bytes(10**8), 1)
    for kind, start in ((b"zTXt", b"key\0\0"), (b"iCCP", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0")):
        yield f"unfolds-{kind.decode()}.png", _png(SIDE, SIDE, chunk(kind, start + unfolding), rows)


_SIZE = (b"\x28\0\x10\0US\2\0", b"\x28\0\x11\0US\2\0")  # what stands before rows and columns
_OPEN = b"SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # a sequence and an item without an end


def _dicom_claims(film: bytes) -> Iterator[tuple[str, bytes]]:
    for rows, columns in itertools.product(SIZES, SIZES):
        changed = film
        for element, value in zip(_SIZE, (rows, columns), strict=True):
            at = changed.index(element) + len(element)
            changed = changed[:at] + value.to_bytes(2, "little") + changed[at + 2 :]
        yield f"claims-{rows}x{columns}.dcm", changed
    header = bytes(128) + b"DICM"
    at = film.index(b"\x08\0\x60\0CS")  # before the modality
    for depth in (50, 500, 5_000, 50_000):
        yield f"nested{depth}.dcm", header + (b"\x08\0\x40\x11" + _OPEN) * depth
        yield f"nested{depth}-film.dcm", film[:at] + (b"\x08\0\x50\0" + _OPEN) * depth + film[at:]
        closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
        yield f"nested{depth}-closed.dcm", film[:at] + (b"\x08\0\x50\0" + _OPEN) * depth + closed * depth + film[at:]
        unknown = b"\x08\0\x50\0UN\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
        yield f"nested{depth}-unknown.dcm", film[:at] + unknown * depth + film[at:]
    yield "items.dcm", header + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 60_000
    many = b"".join(struct.pack("<HH2sH", 9 + 2 * (at // 60_000), at % 60_000, b"LO", 0) for at in range(100_000))
    yield "elements.dcm", header + many
    for length in LENGTHS:
        at = film.rindex(b"\xe0\x7f\x10\0") + 8
        yield f"pixels{length:08x}.dcm", film[:at] + length.to_bytes(4, "little") + film[at + 4 :]


def _dicom_bombs() -> Iterator[tuple[str, bytes]]:
    """Small objects that unfold: by more pixels than are allowed, by as many, and by more than the object says."""
    small, stored = np.zeros((SIDE, SIDE), np.uint16), np.zeros((2000, 2000), np.uint16)
    with TemporaryDirectory() as folder:
        for name in ("rle", "lossless", "ls", "j2k"):
            film: Dataset = make(stored, 12)
            film.PixelData = stored.tobytes()
            data = encoded(film, SYNTAXES[name], Path(folder))
            yield f"allowed-{name}.dcm", data
            for side in (SIDE, 60_000):
                changed = bytearray(data)
                for start in (data.index(element) + len(element) for element in _SIZE):
                    changed[start : start + 2] = side.to_bytes(2, "little")
                yield f"says{side}-{name}.dcm", bytes(changed)
    runs = struct.pack("<16I", 2, 64, 64 + 2_000_000, *[0] * 13) + b"\x81\0" * 2_000_000  # 512 MB
    inflated = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    for name, syntax, pixels in (
        ("runs", SYNTAXES["rle"], encapsulate([runs])),
        ("frames", SYNTAXES["rle"], encapsulate([b"\0\0"] * 50_000)),
        ("text", SYNTAXES["j2k"], encapsulate([b"not a codestream\xff\xd9"])),
    ):
        bomb = make(small, 12, syntax=syntax, PixelData=pixels)
        bomb["PixelData"].is_undefined_length = True
        yield f"{name}.dcm", save(bomb, enforce_file_format=True)
    plain = save(make(small, 12, syntax=SYNTAXES["deflated"]), enforce_file_format=True)
    start = plain.index(uid.DeflatedExplicitVRLittleEndian.encode()) + len(uid.DeflatedExplicitVRLittleEndian)
    bomb_of = b"".join(inflated.compress(bytes(1 << 20)) for _ in range(1_000)) + inflated.flush()
    yield "deflated.dcm", plain[: start + start % 2] + bomb_of
    for table, bits in itertools.product((0, 1, 65_535), (0, 8, 16, 255)):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [table, 0, bits])
        item.add_new("LUTData", "OW", bytes(2 * min(table, 50)))
        yield f"table{table}-{bits}.dcm", save(make(small, 12, VOILUTSequence=[item]), enforce_file_format=True)
    for bits, allocated in itertools.product((0, 1, 7, 13, 17, 40_000), (0, 1, 8, 16, 32, 64)):
        film = make(small, 12, BitsStored=bits, BitsAllocated=allocated, HighBit=max(bits - 1, 0))
        yield f"bits{bits}-of{allocated}.dcm", save(film, enforce_file_format=True)


if __name__ == "__main__":
    target, start_at = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for kind, files in (("films", films(start_at)), ("parquets", parquets(start_at))):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for name, data in files:
            (target / kind / name).write_bytes(data)
