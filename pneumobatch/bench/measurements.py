"""What can be measured alone: reading the films, compiling the network, decoding, the network."""

import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from pneumobatch import storage, tables
from pneumobatch.archive import catalog, headers
from pneumobatch.bench.basics import Facts, Ready, content, decoder_of, model, repeated
from pneumobatch.bench.processes import Request
from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware, scoring
from pneumobatch.models.bundle import Bundle
from pneumobatch.models.networks import ATTENTION, build
from pneumobatch.models.weights import save_bundle
from pneumobatch.tables import Status


def device(use_gpu: bool | None) -> torch.device:
    """The accelerator where there is one and the job's section does not do without."""
    return torch.device("cuda" if torch.cuda.is_available() and use_gpu is not False else "cpu")


def network_of(request: Request) -> scoring.Logits:
    """The bundle's network as the request wants it."""
    uri, bundle = _backbone(request) if request.backbone else model(request)
    config = request.job.screening
    if request.compiled:
        return scoring.compiled(uri, bundle, request.precision, config.batch_size, device(config.use_gpu))
    return scoring.eager(uri, bundle, request.precision, device(config.use_gpu))


def _backbone(request: Request) -> tuple[str, Bundle]:
    """The bundle's network without attention and untrained, always the same: it is compiled once for a machine."""
    uri, bundle = storage.join(request.job.output.uri, "backbone"), model(request)[1]
    if storage.is_file(storage.join(uri, "bundle.json")):
        return uri, bundles.load(uri)
    torch.manual_seed(0)
    config = bundle.network.model_copy(update={"name": bundle.network.name.removeprefix(ATTENTION)})
    bundle = bundle.model_copy(update={"network": config})
    weights = build(config, initialise=False).state_dict()
    history, reference = pa.table({"epoch": [1.0]}), tables.reference_schema().empty_table()
    return uri, save_bundle(uri, bundle, weights, history, reference, "")


def packing(request: Request, _: Ready) -> Facts:
    """Packs the films into a Parquet archive in the output folder."""
    column, uri = request.job.archive.bytes_column, storage.join(request.job.output.uri, "films.parquet")
    films = pa.table({column: pa.array([content(uri) for uri in request.uris], pa.large_binary())})
    pq.write_table(films, uri, row_group_size=64)
    return {"uris": [f"{uri}#{column}#{row}" for row in range(len(films))]}


def prepare(request: Request, _: Ready) -> Facts:
    """Chooses films evenly from the archive, reads them once, and says what there is to measure.

    Only films that are scored in the end are kept, so that every measurement has the same work; reading them also puts
    them into the machine's page cache, where all measurements find them.
    """
    config = request.job.screening
    bundle = model(request)[1]
    listed = catalog.build(request.job.archive)
    chosen = min(request.images, len(listed))
    films = listed.take([number * len(listed) // chosen for number in range(chosen)])
    decoded = decoder_of(request, bundle)(films)
    status, formats = decoded["status"].to_pylist(), decoded["format"].to_pylist()
    scored = [number for number, value in enumerate(status) if value == Status.SCORED]
    left_out = Counter(reason for reason in decoded["reason"].to_pylist() if reason is not None)
    if not scored:
        reasons = ", ".join(f"{name} {count}" for name, count in left_out.most_common())
        raise ValueError(f"archive.uri: none of {chosen} images of {request.job.archive.uri} can be scored ({reasons})")
    if config.compile == "on" and not hardware.compiler():
        raise ValueError("screening.compile: no C++ compiler is on the PATH; install g++ or set it to off")
    kind = device(config.use_gpu).type
    precision = hardware.scoring_precision(config.precision, kind, bundle)
    batch = config.batch_size or hardware.BATCH[kind]
    return {
        "uris": [films["uri"][number].as_py() for number in scored],
        "formats": Counter(formats[number] for number in scored),
        "left_out": left_out,
        "listed": len(listed),
        "model_id": bundle.model_id,
        "attention": bundle.network.name.startswith(ATTENTION),
        "precision": precision,
        "hardware_precision": hardware.hardware_precision(kind),
        "compile": config.compile != "off" and hardware.compiler() is not None,
        "batch": batch,
        "compiled_already": hardware.compiled_path(bundle, precision, batch, kind, hardware.THREADS).exists(),
        "gpus": torch.cuda.device_count() if kind == "cuda" else 0,
    }


def compiling(request: Request, _: Ready) -> Facts:
    """Compiles the network for the pipeline, from nothing; the cache keeps it."""
    torch.set_num_threads(hardware.THREADS)
    started = time.perf_counter()
    network_of(request)
    return {"seconds": time.perf_counter() - started}


def decode(request: Request, ready: Ready) -> Facts:
    """Fetches and decodes on one core, exactly as the pipeline's stage does; files come from the page cache."""
    decoder = decoder_of(request, model(request)[1])
    rows = repeated(request, request.images)
    block = request.job.screening.block_images or 64
    decoder(rows.slice(0, min(8, len(rows))))  # imports what the formats need
    ready()
    started = time.perf_counter()
    for start in range(0, len(rows), block):
        decoder(rows.slice(start, block))
    return {"rate": len(rows) / (time.perf_counter() - started)}


def decode_accelerator(request: Request, ready: Ready) -> Facts:
    """Decodes and resizes the archive's JPEGs on the accelerator (nvJPEG), from their bytes in memory.

    The pipeline does without: its films would differ from those that CPUs decode in the last digits.
    """
    size, where = model(request)[1].preprocessing.image_size, device(request.job.screening.use_gpu)
    read = [content(uri) for uri in request.uris]
    films = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in read if headers.sniff(data) == "jpeg"]
    batch = request.job.screening.batch_size

    def decoded(part: list[torch.Tensor]) -> torch.Tensor:
        pictures = decode_jpeg(part, ImageReadMode.GRAY, where)
        small = [functional.interpolate(p[None].float(), (size, size), mode="area") for p in pictures]
        return torch.cat(small)

    decoded(films[:2])
    ready()
    started, count = time.perf_counter(), 0
    while count < request.images:
        part = [films[number % len(films)] for number in range(count, count + batch)]
        last = decoded(part)
        count += batch
    last.sum().item()  # waits for the accelerator
    return {"rate": count / (time.perf_counter() - started)}


def network(request: Request, ready: Ready) -> Facts:
    """Scores random pictures that are already where the network runs, at least two batches after two to warm up."""
    torch.set_num_threads(request.threads)
    logits = network_of(request)
    bundle = model(request)[1]
    batch, size = request.job.screening.batch_size, bundle.preprocessing.image_size
    films_BSS = torch.randint(0, 256, (batch, size, size), dtype=torch.uint8).to(device(request.job.screening.use_gpu))
    batches = max(2, -(-request.images // batch))
    for _ in range(2):
        logits(films_BSS).cpu()
    ready()
    started = time.perf_counter()
    for _ in range(batches):
        result = logits(films_BSS)
    result.cpu()  # waits for an accelerator
    return {"rate": batches * batch / (time.perf_counter() - started)}
