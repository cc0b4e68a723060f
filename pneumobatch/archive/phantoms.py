"""Synthetic chest films: what the demo trains on and the tests read, without any patient.

A phantom is drawn as tissue thickness and exposed like a film, so bright is dense. Pneumonia is patchy, soft-edged
consolidation in a lung, near the limit of what a small network can see. Nothing here says anything about real films.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Grid = npt.NDArray[Any]  # float [SIDE, SIDE]: a field over the film

SIDE = 192
"""Pixels at which the anatomy is drawn; the film is enlarged and gets its grain afterwards."""

_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j])


def film(rng: np.random.Generator, label: int, width: int = 512, height: int = 512) -> npt.NDArray[np.uint16]:
    """Draws one frontal chest film.

    Args:
        rng: Where every choice comes from: equal states draw equal films.
        label: 1 pneumonia, 0 normal.
        width: Columns.
        height: Rows.

    Returns:
        Grey, uint16 [height, width] over the full range of 16 bits; bright is dense.
    """
    x, y = _pose(rng)
    heart = _heart(rng, x, y)
    air = np.maximum(_lung(rng, x, y, -1), _lung(rng, x, y, 1)) * (1 - 0.92 * heart)
    sides = rng.uniform(0.84, 0.96) - np.abs(x) + 0.06 * y - 0.05 * np.cos(3 * y)
    shoulders = 0.7 * (y + rng.uniform(0.84, 0.92) - 0.42 * np.abs(x) ** 1.6)
    neck = rng.uniform(0.2, 0.27) - np.abs(x) + 0.2 * np.maximum(0, y + 0.8)
    body = _soft(np.maximum(np.minimum(sides, shoulders), np.minimum(neck, -0.4 - y)), 0.05)

    density = body * rng.uniform(0.50, 0.58)
    density -= air * rng.uniform(0.30, 0.40)
    density += body * _middle(rng, x, y) + 0.05 * heart
    density += body * _bones(rng, x, y, air)
    density += air * _vessels(rng, x, y)
    if label:
        density += _consolidation(rng, x, y, air)
    density += air * _benign(rng, x, y)
    density += body * 0.035 * _clouds(rng, 6) + 0.012 * body * _clouds(rng, 24)

    exposed = 0.04 + np.clip(density, 0, None) * rng.uniform(0.85, 1.1)
    exposed = 1 - np.exp(-rng.uniform(1.4, 2.2) * exposed)
    exposed *= rng.uniform(0.82, 0.97) / exposed.max()
    picture = np.asarray(Image.fromarray(exposed).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.008, 0.016))
    picture = np.clip(picture + grain, 0, 1)
    if rng.random() < 0.6:
        _mark(rng, picture)
    return np.asarray(np.rint(picture * 65535), np.uint16)


def _pose(rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Coordinates of the body (x to the film's right, y down, ± 1 at the edges) as the patient stands."""
    angle, scale = rng.normal(0, 0.04), rng.uniform(0.92, 1.12)
    x, y = _X - np.float32(rng.normal(0, 0.04)), _Y - np.float32(rng.normal(0, 0.04))
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return cos * x + sin * y, cos * y - sin * x


def _soft(inside: Grid, edge: float) -> Grid:
    """1 where `inside` is positive, 0 where it is negative, over an edge of this width."""
    return np.asarray(np.clip(inside / np.float32(edge) + np.float32(0.5), 0, 1), np.float32)


def _blob(x: Grid, y: Grid, at: tuple[float, float], radius: tuple[float, float]) -> Grid:
    return np.asarray(np.exp(-(((x - at[0]) / radius[0]) ** 2) - ((y - at[1]) / radius[1]) ** 2), np.float32)


def _clouds(rng: np.random.Generator, cells: int) -> Grid:
    """Smooth noise of standard deviation about 1, with this many cells along a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _lung(rng: np.random.Generator, x: Grid, y: Grid, side: int) -> Grid:
    """A lung: an ellipse with a narrow apex, cut by the mediastinum and the dome of the diaphragm."""
    across = side * x
    top, base = rng.uniform(-0.78, -0.70), rng.uniform(0.42, 0.56) + (0.05 if side > 0 else 0)
    down = np.clip((y - top) / (base - top), 0, 1.3)
    chest_wall = rng.uniform(0.66, 0.76) * np.sqrt(np.clip(1 - (1 - np.clip(down, 0, 1)) ** 2.2, 0, 1)) ** 0.8
    hilum = rng.uniform(0.12, 0.16) + (0.16 * down**2.5 if side > 0 else 0.05 * down)
    dome = base - 0.16 * (1 - ((across - 0.38) / 0.36) ** 2)
    inside = np.minimum(np.minimum(chest_wall - across, across - hilum), (dome - y) * 0.8)
    return _soft(np.minimum(inside, (y - top) * 0.8), 0.045)


def _heart(rng: np.random.Generator, x: Grid, y: Grid) -> Grid:
    """The heart, which takes the lung's place rather than adding to it."""
    across = (x - rng.uniform(0.08, 0.14)) / rng.uniform(0.27, 0.36) - 0.35 * (y - 0.2)
    return _soft(np.asarray(1 - np.hypot(across, (y - 0.26) / rng.uniform(0.30, 0.36)), np.float32), 0.14)


def _middle(rng: np.random.Generator, x: Grid, y: Grid) -> Grid:
    """Mediastinum with the aortic knob, spine with its discs, trachea, and the abdomen below."""
    half = 0.10 + 0.05 * np.exp(-(((y + 0.2) / 0.16) ** 2)) * (x > 0) + 0.03 * np.cos(3 * y)
    density = 0.20 * _soft(half - np.abs(x), 0.1)
    density += 0.10 * np.exp(-((x / 0.075) ** 4)) * (1 + 0.25 * np.sin(y * rng.uniform(32, 38)))
    density -= 0.10 * np.exp(-(((x - 0.01) / 0.035) ** 4)) * _soft(-0.25 - y, 0.15)
    density += rng.uniform(0.12, 0.2) * _soft(y - 0.45, 0.3)
    stomach = _blob(x, y, (rng.uniform(0.3, 0.45), rng.uniform(0.66, 0.78)), (0.12, 0.09))
    return np.asarray(density - rng.uniform(0, 0.22) * stomach, np.float32)


def _bones(rng: np.random.Generator, x: Grid, y: Grid, air: Grid) -> Grid:
    """Posterior and anterior ribs as bands of two slopes, clavicles and the edges of the shoulder blades."""
    count, phase = rng.uniform(26, 31), rng.uniform(0, 6.28)
    cage = _soft(0.84 - np.hypot(x, 0.72 * (y + 0.05)), 0.12)
    posterior = np.cos(count * (y - 0.34 * np.abs(x) + 0.55 * x * x) + phase)
    anterior = np.cos(count * 0.8 * (y - 0.75 * np.abs(x)) + phase)
    density = cage * (0.075 * _soft(posterior - 0.35, 0.5) + 0.035 * _soft(anterior - 0.5, 0.6) * air)
    slope = rng.uniform(0.18, 0.34)
    line = np.abs(y + rng.uniform(0.66, 0.74) + slope * (np.abs(x) - 0.3) - 0.08 * np.sin(4 * np.abs(x)))
    density += 0.10 * _soft(0.028 - line, 0.02) * _soft(0.72 - np.abs(x), 0.05) * _soft(np.abs(x) - 0.07, 0.03)
    blade = np.abs(np.abs(x) - 0.74 - 0.12 * (y + 0.4))
    return np.asarray(density + 0.06 * _soft(0.03 - blade, 0.03) * _soft(0.25 - np.abs(y + 0.38), 0.1), np.float32)


def _vessels(rng: np.random.Generator, x: Grid, y: Grid) -> Grid:
    """Hilar shadows, and branching markings that fade towards the periphery."""
    reach = np.hypot(np.abs(x) - 0.16, y - 0.02)
    angle = np.arctan2(y - 0.02, np.abs(x) - 0.16)
    spokes = np.clip(np.cos(rng.integers(9, 14) * angle + 3 * reach + 0.8 * _clouds(rng, 9)), 0, 1) ** 4
    density = 0.10 * np.exp(-((reach / 0.13) ** 2)) + 0.05 * spokes * np.exp(-reach / 0.28)
    return np.asarray(density + 0.02 * _clouds(rng, 40) * np.exp(-reach / 0.4), np.float32)


def _consolidation(rng: np.random.Generator, x: Grid, y: Grid, air: Grid) -> Grid:
    """One to three patchy opacities in one lung, sometimes both."""
    density = np.zeros_like(x)
    first = rng.choice((-1, 1))
    for patch in range(rng.integers(1, 4)):
        side = first if patch < 2 or rng.random() < 0.6 else -first
        at = (side * rng.uniform(0.26, 0.52), rng.uniform(-0.3, 0.36))
        radius = (rng.uniform(0.12, 0.24), rng.uniform(0.12, 0.24))
        density += rng.uniform(0.18, 0.36) * _blob(x, y, at, radius) * np.clip(0.9 + 0.4 * _clouds(rng, 20), 0, 2)
    return np.asarray(np.minimum(density, 0.28) * air, np.float32)  # no denser than the heart


def _benign(rng: np.random.Generator, x: Grid, y: Grid) -> Grid:
    """What resembles disease and is none: breast shadow, nipple, old granuloma, a hazy exposure of one side."""
    density = 0.05 * rng.random() * np.sign(rng.normal()) * x
    if rng.random() < 0.4:
        density += rng.uniform(0.02, 0.09) * _soft(0.2 - np.hypot(np.abs(x) - 0.42, y - 0.3), 0.2)
    for _ in range(rng.integers(0, 3)):
        at = (rng.choice((-1, 1)) * rng.uniform(0.25, 0.5), rng.uniform(-0.4, 0.35))
        radius = rng.uniform(0.015, 0.07)
        density += rng.uniform(0.03, 0.12) * _blob(x, y, at, (radius, radius))
    return np.asarray(density, np.float32)


def _mark(rng: np.random.Generator, picture: Grid) -> None:
    """Puts the lead marker of the side into a corner."""
    unit = max(2, picture.shape[0] // 90)
    letter = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], bool)
    letter = letter.repeat(unit, 0).repeat(unit, 1)
    top, left = (int(rng.uniform(0.03, 0.1) * side) for side in picture.shape)
    picture[top : top + letter.shape[0], left : left + letter.shape[1]][letter] = rng.uniform(0.85, 0.98)


def write_archive(folder: Path, images: int, seed: int) -> dict[str, int]:
    """Writes an archive of phantoms as a hospital would hand it over: mixed formats and sizes, and some bad files.

    Films lie in NORMAL/ and PNEUMONIA/ under names from which patients can be told (`IM-0012-0001.png`,
    `person12_bacteria_34.jpeg`). About 60 % are JPEG (grey and RGB), 20 % PNG (8 and 16 bits) and 20 % DICOM (CR, 12
    bits, windowed, MONOCHROME1 and 2). Equal arguments write equal bytes; different seeds write different films.

    Args:
        folder: Where to; made if need be.
        images: Good films, about half of them with pneumonia; the planted files come on top.
        seed: Seed of everything.

    Returns:
        Files by kind: `normal` and `pneumonia` films, and the planted ones under the reason or rule they must get:
        `duplicate`, `empty`, `truncated`, `html_page`, `not_an_image`, `wrong_extension`, `body_part`, `view`.
    """
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    written: list[Path] = []
    patient = int(rng.integers(1, 1500))
    while len(written) < images:
        label, patient = int(rng.random() < 0.5), patient + 1
        cause = rng.choice(("bacteria", "virus"))
        for number in range(1, int(rng.integers(1, 5)) + 1):
            if len(written) == images:
                break
            stem = f"PNEUMONIA/person{patient}_{cause}_{4 * patient + number}"
            stem = stem if label else f"NORMAL/IM-{patient:04d}-{number:04d}"
            data, extension = _file(rng, label)
            written.append(_write(folder / f"{stem}.{extension}", data))
            counts["pneumonia" if label else "normal"] += 1

    for number, source in enumerate(written[:: max(1, images // 3)][:3], start=1):
        stem = f"person910{number}_virus_{number}" if source.parent.name == "PNEUMONIA" else f"IM-910{number}-0001"
        _write(source.with_name(stem + source.suffix), source.read_bytes())
        counts["duplicate"] += 1
    picture = film(rng, 0)
    jpeg = _jpeg(picture, colour=False)
    planted = {
        "empty": ("NORMAL/IM-9001-0001.jpeg", b""),
        "truncated": ("PNEUMONIA/person9001_bacteria_1.jpeg", jpeg[: len(jpeg) * 2 // 3]),
        "html_page": (
            "NORMAL/IM-9002-0001.dcm",
            b"<!DOCTYPE html>\n<html><body>Your session has expired.</body></html>",
        ),
        "not_an_image": ("PNEUMONIA/person9002_virus_1.jpeg", b"See the other folder.\n"),
        "wrong_extension": ("NORMAL/IM-9003-0001.png", jpeg),
        "body_part": ("NORMAL/IM-9004-0001.dcm", _dicom(rng, picture, BodyPartExamined="HIP")),
        "view": ("NORMAL/IM-9005-0001.dcm", _dicom(rng, picture, ViewPosition="LL")),
    }
    for kind, (name, data) in planted.items():
        _write(folder / name, data)
        counts[kind] += 1
    return dict(counts)


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _file(rng: np.random.Generator, label: int) -> tuple[bytes, str]:
    """One film as the bytes of a file, and its extension."""
    width = int(rng.integers(300, 760))
    picture = film(rng, label, width, int(width * rng.uniform(0.72, 1.18)))
    which = rng.random()
    if which < 0.6:
        return _jpeg(picture, colour=which < 0.12), "jpeg"
    if which < 0.8:
        shown = Image.fromarray(picture if which < 0.68 else _eight_bits(picture))
        buffer = io.BytesIO()
        shown.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "png"
    return _dicom(rng, picture), "dcm"


def _eight_bits(picture: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    return (picture >> 8).astype(np.uint8)


def _jpeg(picture: npt.NDArray[np.uint16], *, colour: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_eight_bits(picture)).convert("RGB" if colour else "L").save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _dicom(rng: np.random.Generator, picture: npt.NDArray[np.uint16], **changed: str) -> bytes:
    """A computed radiograph: 12 bits stored, one window, uncompressed, of a patient who does not exist."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    stored, centre = 200 + (picture * np.float32(3400 / 65535)).astype(np.uint16), 1900
    inverted = bool(rng.random() < 0.5)
    if inverted:
        stored, centre = 4095 - stored, 4095 - centre
    number = int(rng.integers(1 << 62))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": f"2.25.{number}3",
        "StudyInstanceUID": f"2.25.{number}1", "SeriesInstanceUID": f"2.25.{number}2", "Modality": "CR",
        "StudyDate": f"2024{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}", "Manufacturer": "Phantom Works",
        "PatientName": f"Phantom^No {number % 9973}", "PatientID": f"P{number % 99991}",
        "PatientSex": str(rng.choice(("F", "M"))), "PatientAge": f"{rng.integers(1, 6):03d}Y",
        "BodyPartExamined": "CHEST", "ViewPosition": "PA", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2",
        "Rows": stored.shape[0], "Columns": stored.shape[1], "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
        "PixelRepresentation": 0, "WindowCenter": centre, "WindowWidth": 3400, "PixelData": stored.tobytes(),
    }  # fmt: skip
    for keyword, value in (values | changed).items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
