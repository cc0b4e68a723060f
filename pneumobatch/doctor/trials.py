"""What works when it is tried: the network, its precisions, every decoder, and the places that a job writes to."""

import base64
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pneumobatch import storage
from pneumobatch.archive.errors import DecodeError
from pneumobatch.archive.pixels import decode
from pneumobatch.config import Gate, Job
from pneumobatch.doctor.findings import Finding, Findings, gib
from pneumobatch.identity import SITE_KEY
from pneumobatch.models import hardware, networks

DECODERS = {"rle": "pylibjpeg-rle", "jpeg-ls": "pyjpegls", "jpeg 2000": "pylibjpeg-openjpeg", "lossless": "python-gdcm"}
LEAST_FREE = 2**30
"""Free disk, bytes, below which a job may fail: Ray keeps its session and what spills over there."""

_LOSSLESS = base64.b64decode(
    "/9j/wwALCAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAQAI/9oACAEBAAEAAM/qqqqqyqqqqsqqqqrKqqqqyqqqqsqqqqrK"
    "qqqqyqqqqsqqqqrKqqqqyqqqqsqqqqrKqqqqyqqqqsqqqqrKqqqq/wD/2Q=="
)
"""16 × 16 pixels, each row 0–15, as lossless JPEG (process 14): nothing installed here writes one in memory."""


def network(job: Job) -> Findings:
    """The job's network: whether it can be built, and what it costs."""
    name, size = job.network.name, job.network.image_size
    try:
        with torch.device("meta"):  # shapes without numbers
            network = networks.build(job.network, initialise=False)
        parameters, multiply_adds = networks.cost(network, size)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the network cannot take this size
        yield Finding("network", f"{name} at {size}: {error}", "problem", "mend network.name or network.image_size")
        return
    text = f"{name} at {size}²: {parameters / 1e6:.1f} M parameters, {multiply_adds / 1e9:.2f} G multiply-adds an image"
    yield Finding("network", text)
    weights = job.network.weights
    try:
        wrong = "is no file" if weights not in {None, "pretrained"} and not storage.is_file(str(weights)) else ""
    except (OSError, ValueError) as error:  # a store that does not answer, or a protocol without its package
        wrong = f"cannot be looked for: {error}"
    if wrong:
        text = f"network.weights: {weights} {wrong}"
        yield Finding("network", text, "problem", "mend the path or leave the key out")


def precisions(_: Job) -> Findings:
    """Speed of bf16 against fp32, measured."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    seconds = {dtype: _convolution_seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    how = "native" if hardware.hardware_precision(kind) == "bf16" else "emulated"
    text = f"bf16 is {how} on this {kind}: a convolution runs {ratio:.1f} × as fast as in fp32"
    other = "" if kind == "cuda" else f"; it {'has' if hardware.computes_int8() else 'lacks'} what int8 needs"
    yield Finding("precision", f"{text}; `auto` takes {hardware.hardware_precision(kind)}{other}")


def _convolution_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Shortest of five runs of a convolution as it stands in the networks."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.rand(8, 128, 28, 28, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            layer(x).sum().item()  # waits for an accelerator
            times.append(time.perf_counter() - started)
    return min(times[1:])


def decoders(_: Job) -> Findings:
    """One small film a format, decoded."""
    works, gate, samples = [], Gate(pixel_check=False), _samples()
    for name, make in samples.items():
        # Of the lossless sample's 16 columns each is one level brighter than the one before.
        expected = np.arange(16) if "lossless" in name else np.linspace(0, 255, 64)
        try:
            film = decode(make(), "", len(expected), max_pixels=10**6, gate=gate, ages=None)
            right = np.abs(film.pixels - expected).max() < 4
        except (DecodeError, ImportError, OSError, RuntimeError, NotImplementedError, ValueError):
            right = False
        if right:
            works.append(name)
        else:
            package = next((package for key, package in DECODERS.items() if key in name.lower()), "pydicom pillow")
            yield Finding("decoders", f"{name} does not work", "problem", f"pip install --force-reinstall {package}")
    yield Finding("decoders", f"{len(works)} of {len(samples)} work: {', '.join(works)}")


def _samples() -> dict[str, Callable[[], bytes]]:
    """Makers of one film a format: every row rises from black to white, but for lossless JPEG."""
    grey = np.tile(np.rint(np.linspace(0, 255, 64)).astype(np.uint8), (64, 1))

    def picture(kind: str, pixels: Any, **options: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return {
        "JPEG": lambda: picture("JPEG", grey, quality=98),
        "PNG 8 bits": lambda: picture("PNG", grey),
        "PNG 16 bits": lambda: picture("PNG", grey.astype(np.uint16) * 257),
        "DICOM uncompressed": lambda: _dicom(grey),
        "DICOM RLE": lambda: _dicom(grey, "RLELossless"),
        "DICOM JPEG": lambda: _dicom(grey, "JPEGBaseline8Bit", picture("JPEG", grey, quality=98)),
        "DICOM JPEG lossless": lambda: _dicom(grey[:16, :16], "JPEGLosslessSV1", _LOSSLESS),
        "DICOM JPEG-LS": lambda: _dicom(grey, "JPEGLSLossless"),
        "DICOM JPEG 2000": lambda: _dicom(grey, "JPEG2000Lossless"),
    }


def _dicom(grey: Any, syntax: str = "ExplicitVRLittleEndian", frame: bytes | None = None) -> bytes:
    """A computed radiograph of nobody, its pixels encoded here unless the encoded frame is given."""
    from pydicom import uid as uids
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = getattr(uids, syntax) if frame else uids.ExplicitVRLittleEndian
    values = {
        "SOPClassUID": uids.ComputedRadiographyImageStorage, "SOPInstanceUID": "2.25.1", "Modality": "CR",
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": grey.shape[0],
        "Columns": grey.shape[1], "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "PixelData": encapsulate([frame]) if frame else grey.tobytes(),
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if not frame and syntax != "ExplicitVRLittleEndian":
        dataset.compress(getattr(uids, syntax), generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def places(job: Job) -> Findings:
    """Where a job writes, and under which key."""
    uri = job.output.uri.removeprefix("file://")
    try:
        _probe(uri)
    except (OSError, ValueError) as error:
        yield Finding(
            "output.uri", f"{uri} cannot be written: {error}", "problem", "give another output.uri or its permission"
        )
    else:
        yield Finding("output.uri", f"{uri}: written, read and deleted a probe")
    places = {"temporary folder": Path(tempfile.gettempdir())}
    if "://" not in uri:
        places["output.uri"] = next(folder for folder in (Path(uri), *Path(uri).parents) if folder.is_dir())
    for topic, folder in places.items():
        free = shutil.disk_usage(folder).free
        remedy = f"free space on the disk of {folder}" if free < LEAST_FREE else ""
        yield Finding(topic, f"{gib(free)} free at {folder}", "problem" if remedy else "ok", remedy)
    if os.environ.get(SITE_KEY):
        yield Finding("site key", f"{SITE_KEY} is set")
    else:
        yield Finding(
            "site key", f"{SITE_KEY} is not set: hashes can be looked up, and patients are not kept", "note",
            f"set {SITE_KEY} to a long random secret of the site, the same for all its jobs",
        )  # fmt: skip


def _probe(uri: str) -> None:
    """Does with a small file below a place what publishing does, and leaves no folder that was not there."""
    folder = storage.join(uri, "_staging", f"doctor-{uuid.uuid4().hex}")
    probe, content = storage.join(folder, "probe"), b"pneumobatch"
    path = Path(folder)
    new = [] if "://" in uri else [parent for parent in path.parents if not parent.exists()]
    try:
        storage.write_bytes(probe, content)
        if storage.read_bytes(probe) != content:
            raise OSError("what was read is not what was written")
        if storage.create_bytes(probe, b"") or not storage.create_bytes(f"{probe}-2", content):
            raise OSError("a file that is there is not told from one that is not")
        storage.delete(folder)
    finally:
        if "://" not in uri:
            shutil.rmtree(folder, ignore_errors=True)  # of a trial that failed halfway
        for parent in new:
            with suppress(OSError):  # another job writes there by now
                parent.rmdir()
