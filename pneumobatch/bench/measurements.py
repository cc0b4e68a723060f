"""What can be measured alone: reading the films, compiling the network, decoding, the network."""

import time
from collections import Counter

import torch

from pneumobatch.archive import catalog
from pneumobatch.bench.basics import Facts, Ready, decoder_of, model, repeated
from pneumobatch.bench.processes import Request
from pneumobatch.models import hardware, scoring
from pneumobatch.tables import Status


def device() -> torch.device:
    """The accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network_of(request: Request) -> scoring.Logits:
    """The bundle's network as the request wants it."""
    uri, bundle = model(request)
    if request.compiled:
        return scoring.compiled(uri, bundle, request.precision, request.job.screening.batch_size, device())
    return scoring.eager(uri, bundle, request.precision, device())


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
    precision = hardware.scoring_precision(config.precision, device().type, bundle)
    batch = config.batch_size or hardware.BATCH[device().type]
    return {
        "uris": [films["uri"][number].as_py() for number in scored],
        "formats": Counter(formats[number] for number in scored),
        "left_out": left_out,
        "listed": len(listed),
        "model_id": bundle.model_id,
        "precision": precision,
        "hardware_precision": hardware.hardware_precision(device().type),
        "compile": config.compile != "off" and hardware.compiler() is not None,
        "batch": batch,
        "compiled_already": hardware.compiled_path(bundle, precision, batch, device().type, hardware.THREADS).exists(),
        "gpus": torch.cuda.device_count(),
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


def network(request: Request, ready: Ready) -> Facts:
    """Scores random pictures that are already where the network runs, at least two batches after two to warm up."""
    torch.set_num_threads(request.threads)
    logits = network_of(request)
    bundle = model(request)[1]
    batch, size = request.job.screening.batch_size, bundle.preprocessing.image_size
    films_BSS = torch.randint(0, 256, (batch, size, size), dtype=torch.uint8).to(device())
    batches = max(2, -(-request.images // batch))
    for _ in range(2):
        logits(films_BSS).cpu()
    ready()
    started = time.perf_counter()
    for _ in range(batches):
        result = logits(films_BSS)
    result.cpu()  # waits for an accelerator
    return {"rate": batches * batch / (time.perf_counter() - started)}
