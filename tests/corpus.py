"""Bad input: more than a thousand broken, cut, lying and oversized files, all made from phantoms.

    python tests/corpus.py FOLDER [SEED]

Equal seeds write equal files. The first part of a name says what was done to the file.
"""

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from pneumobatch.archive import phantoms

Named = Iterator[tuple[str, bytes]]
WIDTH, HEIGHT = 150, 130


def picture(seed: int) -> np.ndarray:
    return phantoms.film(np.random.default_rng(seed), seed % 2, WIDTH, HEIGHT)


def encode(pixels: Any, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **how)
    return buffer.getvalue()


def computed(stored: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **values: Any) -> Dataset:
    """A computed radiograph of 12 bits (of 8, where the values are bytes)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    bits = 8 if stored.dtype == np.uint8 else 12
    fields: dict[str, Any] = {
        "SOPClassUID": uid.ComputedRadiographyImageStorage, "SOPInstanceUID": "2.25.1", "Modality": "CR",
        "PatientName": "Phantom", "PatientID": "P1", "PatientAge": "003Y", "BodyPartExamined": "CHEST",
        "ViewPosition": "PA", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0], "Columns": stored.shape[1], "BitsAllocated": 8 * stored.itemsize, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": 0, "WindowCenter": 1 << (bits - 1), "WindowWidth": 1 << bits,
        "PixelData": stored.tobytes(),
    }  # fmt: skip
    for keyword, value in (fields | values).items():
        setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def encapsulated(codestream: bytes, syntax: str, stored: np.ndarray, **values: Any) -> bytes:
    dataset = computed(stored, syntax, PixelData=encapsulate([codestream]), **values)
    dataset["PixelData"].is_undefined_length = True
    return save(dataset)


def dicoms() -> Named:
    """One object for each way to encode it."""
    twelve = picture(1) >> 4
    eight = (twelve >> 4).astype(np.uint8)
    yield "explicit", save(computed(twelve))
    yield "implicit", save(computed(twelve, uid.ImplicitVRLittleEndian))
    yield "deflated", save(computed(twelve, uid.DeflatedExplicitVRLittleEndian))
    big = computed(twelve, uid.ExplicitVRBigEndian, PixelData=twelve.astype(">u2").tobytes())
    big["PixelData"].VR = "OW"
    yield "big", save(big)
    for name, syntax in (("rle", uid.RLELossless), ("jls", uid.JPEGLSLossless), ("j2k", uid.JPEG2000Lossless)):
        dataset = computed(twelve)
        dataset.compress(syntax, generate_instance_uid=False)
        yield name, save(dataset)
    yield "jpeg", encapsulated(encode(eight, "JPEG"), uid.JPEGBaseline8Bit, eight)
    headless = computed(twelve)
    del headless.file_meta
    buffer = io.BytesIO()
    dcmwrite(buffer, headless, implicit_vr=True, little_endian=True)
    yield "headless", buffer.getvalue()


def sound() -> Named:
    """The files that everything is made from."""
    grey = (picture(2) >> 8).astype(np.uint8)
    colour = np.stack([grey, grey, grey // 2], axis=2)
    yield "grey.jpeg", encode(grey, "JPEG", quality=90)
    yield "colour.jpeg", encode(colour, "JPEG", quality=90)
    yield "progressive.jpeg", encode(grey, "JPEG", quality=90, progressive=True)
    yield "eight.png", encode(grey, "PNG")
    yield "sixteen.png", encode(picture(2), "PNG")
    yield "clear.png", encode(np.dstack([colour, grey]), "PNG")
    for name, data in dicoms():
        yield f"{name}.dcm", data


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)) if rng.random() < 0.6 else rng.integers(min(len(data), 700)))]


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Flips a few bits, half of the time in what comes before the pixels."""
    changed = bytearray(data)
    within = min(len(data), 700) if rng.random() < 0.5 else len(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[rng.integers(within)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Writes what is read as a length: nothing, everything, a sign."""
    value = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\xff\xff")
    at, new = int(rng.integers(min(len(data), 1200))), value[rng.integers(len(value))]
    return data[:at] + new + data[at + len(new) :]


def lengthen(rng: np.random.Generator, data: bytes) -> bytes:
    """Takes a piece out, or puts one in twice."""
    start, size = int(rng.integers(len(data))), int(rng.integers(1, 400))
    return data[:start] + (data[start + size :] if rng.random() < 0.5 else data[max(0, start - size) :])


MUTATIONS: dict[str, tuple[Callable[[np.random.Generator, bytes], bytes], int]] = {
    "cut": (cut, 24),
    "flip": (flip, 30),
    "overwrite": (overwrite, 16),
    "lengthen": (lengthen, 12),
}


def mutated(rng: np.random.Generator) -> Named:
    files = list(sound())
    for name, data in files:
        for mutation, (change, times) in MUTATIONS.items():
            for number in range(times):
                yield f"{mutation}-{number:02d}-{name}", change(rng, data)
        other = files[rng.integers(len(files))][1]
        yield f"splice-00-{name}", data[: len(data) // 2] + other[len(other) // 2 :]
        for extension in ("jpeg", "png", "dcm"):
            if not name.endswith(extension):
                yield f"misnamed-{name}.{extension}", data


def garbage(rng: np.random.Generator) -> Named:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM", b"\x08\0\x05\0CS\x0a\0"):
        for number in range(5):
            yield f"garbage-{number}-{len(start)}.bin", start + rng.bytes(int(rng.integers(1, 5000)))
    yield "garbage-empty.dcm", b""
    yield "garbage-zeros.png", bytes(100_000)
    yield "garbage-ones.jpeg", b"\xff" * 100_000
    yield "garbage-page.dcm", b"<html><body>403</body></html>"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, between: bytes = b"", idat: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + (idat or chunk(b"IDAT", b"x")) + chunk(b"IEND", b"")
    )


def zeros(size: int, *, raw: bool = False) -> bytes:
    """So many deflated zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS if raw else zlib.MAX_WBITS)
    parts = [deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, deflate.compress(bytes(size & 0xFFFFF)), deflate.flush()])


def huge() -> Named:
    """Dimensions beyond reason, in the header and in the codestream only."""
    grey = (picture(2) >> 8).astype(np.uint8)
    for width, height in (
        (60_000, 60_000),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**32 - 1, 2**32 - 1),
        (0, 5),
        (99_999, 999),
    ):
        yield f"huge-{width}x{height}.png", png(width, height, idat=chunk(b"IDAT", zeros(1000)))
    jpeg = encode(grey, "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    for size in (b"\xff\xff\xff\xff", b"\0\1\xff\xff", b"\xff\xff\0\1", b"\0\0\0\0", b"\x20\0\x20\0"):
        yield f"huge-{size.hex()}.jpeg", jpeg[:frame] + size + jpeg[frame + 4 :]
    for name, data in dicoms():
        for keyword, tag in (("rows", b"\x28\0\x10\0"), ("columns", b"\x28\0\x11\0"), ("bits", b"\x28\0\x00\1")):
            at = data.find(tag)
            if at > 0:
                yield f"huge-{keyword}-{name}.dcm", data[: at + 8] + b"\xff\xff" + data[at + 10 :]
        for kind, (mark, skip) in {
            "siz": (b"\xff\x4f\xff\x51", 8),
            "sof": (b"\xff\xc0", 5),
            "ls": (b"\xff\xf7", 5),
        }.items():
            if (at := data.find(mark)) > 0:
                changed = data[: at + skip] + b"\x7f\xff\x7f\xff" + data[at + skip + 4 :]
                yield f"huge-{kind}-{name}.dcm", changed


def bombs() -> Named:
    """Small files that unfold to much; each is below the limit on pixels by its header."""
    side = 9000
    for depth, colour, samples in ((8, 0, 1), (16, 0, 2), (8, 6, 4), (1, 0, 0)):
        row = side * samples + 1 if samples else side // 8 + 1
        yield (
            f"bomb-{depth}-{colour}.png",
            png(side, side, depth=depth, colour=colour, idat=chunk(b"IDAT", zeros(side * row))),
        )
    yield "bomb-tail.png", png(WIDTH, HEIGHT, idat=chunk(b"IDAT", zeros(300 << 20)))
    text = chunk(b"zTXt", b"Comment\0\0" + zeros(200 << 20)) + chunk(b"iCCP", b"icc\0\0" + zeros(200 << 20))
    yield "bomb-text.png", png(WIDTH, HEIGHT, between=text, idat=chunk(b"IDAT", zeros((WIDTH + 1) * HEIGHT)))
    yield "bomb.jpeg", encode(np.zeros((side, side), np.uint8), "JPEG", quality=10)
    progressive = encode(np.zeros((side, side), np.uint8), "JPEG", quality=10, progressive=True)
    yield "bomb-progressive.jpeg", progressive
    scan = progressive.rindex(b"\xff\xda")
    yield "bomb-scans.jpeg", progressive[:-2] + progressive[scan:-2] * 3000 + b"\xff\xd9"
    stored = np.zeros((16, 16), np.uint16)
    yield "bomb-deflated.dcm", _deflated(computed(stored), 1 << 30)
    flat = np.zeros((side, side), np.uint8)
    for name, syntax in (("rle", uid.RLELossless), ("j2k", uid.JPEG2000Lossless)):
        dataset = computed(flat)
        dataset.compress(syntax, generate_instance_uid=False)
        yield f"bomb-{name}.dcm", save(dataset)
    segment = b"\x81\0" * 100
    many = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    yield "bomb-rle-short.dcm", encapsulated(many, uid.RLELossless, np.zeros((4000, 4000), np.uint16))


def _deflated(dataset: Dataset, size: int) -> bytes:
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    plain = save(dataset)
    at = plain.index(uid.ExplicitVRLittleEndian.encode())
    length = int.from_bytes(plain[140:144], "little")  # of the meta group
    deflated = uid.DeflatedExplicitVRLittleEndian.encode()
    value = deflated + b"\0" * (len(deflated) % 2)
    old = int.from_bytes(plain[at - 2 : at], "little")
    meta = plain[: at - 2] + len(value).to_bytes(2, "little") + value + plain[at + old : 144 + length]
    meta = meta[:140] + (length + len(value) - old).to_bytes(4, "little") + meta[144:]
    return meta + zeros(size, raw=True)


def nested() -> Named:
    """Sequences in sequences, and very many small parts."""
    data = save(computed(np.zeros((16, 16), np.uint16) + 9))
    at = data.index(b"\x28\0\x02\0US")  # Samples per Pixel: a sequence of a lower tag goes before it
    head, tail = data[:at], data[at:]
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    for depth in (5, 300, 5_000, 100_000):
        yield f"nested-{depth}.dcm", head + opened * depth + closed * depth + tail
        yield f"nested-open-{depth}.dcm", head + opened * depth + tail
        unknown = opened.replace(b"SQ", b"UN")
        yield f"nested-unknown-{depth}.dcm", head + unknown * depth + closed * depth + tail
    inner = b""
    for _ in range(400):
        item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(inner)) + inner
        inner = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<I", len(item)) + item
    yield "nested-explicit.dcm", head + inner + tail
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 100_000
    yield "many-items.dcm", head + b"\x08\0\x40\x11SQ\0\0" + struct.pack("<I", len(items)) + items + tail
    yield "many-elements.dcm", head + b"".join(struct.pack("<HH2sH", 9, n, b"LO", 0) for n in range(16, 65_000)) + tail
    yield (
        "many-fragments.dcm",
        encapsulated(b"\0\0", uid.RLELossless, np.zeros((16, 16), np.uint16)).replace(
            b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\0\xe0\0\0\0\0" * 100_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
        ),
    )
    pixels = chunk(b"IDAT", zeros((WIDTH + 1) * HEIGHT))
    yield "many-chunks.png", png(WIDTH, HEIGHT, between=chunk(b"tEXt", b"a\0b") * 100_000, idat=pixels)
    yield "many-empty.png", png(WIDTH, HEIGHT, idat=chunk(b"IDAT", b"") * 100_000 + pixels)
    jpeg = encode((picture(2) >> 8).astype(np.uint8), "JPEG")
    yield "many-segments.jpeg", jpeg[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg[2:]
    yield "many-fills.jpeg", jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:]


def files(seed: int = 0) -> Named:
    """Yields name and content of every bad file that is no Parquet."""
    rng = np.random.default_rng(seed)
    for part in (mutated(rng), garbage(rng), huge(), bombs(), nested()):
        yield from part


def parquets(seed: int = 0) -> Named:
    """Yields damaged Parquet archives of three films each; the last have the wrong columns."""
    rng = np.random.default_rng(seed)
    films = [encode((picture(number) >> 8).astype(np.uint8), "JPEG") for number in range(3)]
    for compression in ("none", "zstd"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"bytes": films, "label": [0, 1, 0]}), sink, compression=compression, row_group_size=2)
        data = sink.getvalue().to_pybytes()
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        for number in range(12):
            yield f"cut-{compression}-{number:02d}.parquet", cut(rng, data)
            yield f"flip-{compression}-{number:02d}.parquet", flip(rng, data)
            yield f"lengthen-{compression}-{number:02d}.parquet", lengthen(rng, data)
        for number in range(40):
            yield f"footer-{compression}-{number:02d}.parquet", data[:footer] + flip(rng, data[footer:-8]) + data[-8:]
    for name, column in (("int", pa.array([1, 2])), ("null", pa.nulls(2)), ("list", pa.array([[b"a"], None]))):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"bytes": column}), sink)
        yield f"column-{name}.parquet", sink.getvalue().to_pybytes()


def main(folder: str, seed: str = "0") -> None:
    count = 0
    for make in (files, parquets):
        for name, data in make(int(seed)):
            path = Path(folder) / make.__name__ / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            count += 1
    print(f"{count} files in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
