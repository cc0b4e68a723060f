"""Whole loops, from files to probabilities, without this pipeline: what a user would write, and what an expert would.

They and the pipeline are measured in steady state, from the moments at which batches or blocks arrive.
"""

import io
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pneumobatch.archive.pixels import decode
from pneumobatch.bench.basics import STEADY_BLOCKS, Facts, Ready, content, model, rates, repeated
from pneumobatch.bench.measurements import device, network_of
from pneumobatch.bench.processes import Request
from pneumobatch.models.weights import load_network

PLAIN_BATCH = 32
"""Images a batch of the plain loop."""


class _Films(Dataset[Tensor]):
    """The usual dataset: PIL to RGB, then torchvision's transforms; the network normalises."""

    def __init__(self, uris: list[str], size: int) -> None:
        self.uris = uris
        self.transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, index: int) -> Tensor:
        picture: Tensor = self.transform(Image.open(io.BytesIO(content(self.uris[index]))).convert("RGB"))
        return picture


def _opens(uri: str) -> bool:
    try:
        Image.open(io.BytesIO(content(uri))).close()
    except UnidentifiedImageError:  # PIL reads no DICOM; the plain loop does without it
        return False
    return True


def plain(request: Request, ready: Ready) -> Facts:
    """The loop that a user would write: Dataset, DataLoader with a worker a CPU, fp32, a thread a CPU.

    Films that PIL cannot open (DICOM) are `left_out`, and the others repeated the more.
    """
    uri, bundle = model(request)
    opening = [uri for uri in request.uris if _opens(uri)]
    if not opening:
        raise ValueError("archive.uri: PIL opens none of the images, so there is no plain loop to compare with")
    torch.set_num_threads(request.threads)
    batch, ahead = PLAIN_BATCH, 2 * request.threads  # batches that the workers have read before they are scored
    # So many that what was read ahead is used up within what `steady` leaves out.
    images = max(request.images, 6 * ahead * batch)
    films = repeated(request.model_copy(update={"uris": tuple(opening)}), images)["uri"].to_pylist()
    where = device(request.job.screening.use_gpu)
    network = load_network(uri, bundle).to(where)
    loader = DataLoader(_Films(films, bundle.preprocessing.image_size), batch, num_workers=request.threads)
    ready()
    started, arrivals = time.perf_counter(), []
    with torch.no_grad():
        for pictures in loader:
            torch.softmax(network(pictures.to(where)), 1)[:, 1].cpu()
            arrivals.append((time.perf_counter(), len(pictures)))
    left_out = float(len(request.uris) - len(opening))
    return {**rates(started, arrivals, ahead), "left_out": left_out}


def tuned(request: Request, ready: Ready) -> Facts:
    """The best of one process by hand: this package's decoder and network, threads, a bounded queue, nothing else.

    Either threads decode ahead for one that scores on all cores, or (`alike`) every thread decodes and scores on its
    own core; neither checks, records or survives anything. A compiled network holds Python's lock while it runs, so
    that only the first way is of use with it: cores decode together, then score together.
    """
    config, (_, bundle) = request.job, model(request)
    size, batch, ages = bundle.preprocessing.image_size, config.screening.batch_size, bundle.validated_age_years
    torch.set_num_threads(1 if request.alike else request.threads)
    local = threading.local()

    def films(uris: list[str]) -> Tensor:
        pictures = []
        for uri in uris:
            film = decode(
                content(uri), uri, size, max_pixels=config.archive.max_pixels, gate=config.screening.gate, ages=ages
            )
            pictures.append(film.pixels)
        return torch.from_numpy(np.stack(pictures))

    def probabilities(films_BSS: Tensor) -> Tensor:
        if not hasattr(local, "logits"):
            local.logits = network_of(request)
        logits_B2: Tensor = local.logits(films_BSS).float()
        margin = logits_B2[:, 1] - logits_B2[:, 0]
        return (margin / bundle.temperature + bundle.offset).sigmoid().cpu()

    batches = max(-(-request.images // batch), STEADY_BLOCKS * request.threads)
    uris = repeated(request, batches * batch)["uri"].to_pylist()
    if not request.alike:
        probabilities(torch.zeros(batch, size, size, dtype=torch.uint8))
    ready()
    started, arrivals = time.perf_counter(), []
    with ThreadPoolExecutor(request.threads) as pool:
        work = (uris[start : start + batch] for start in range(0, len(uris), batch))
        step = (lambda part: probabilities(films(part))) if request.alike else films
        queue: deque[Future[Tensor]] = deque(pool.submit(step, part) for part in islice(work, 2 * request.threads))
        while queue:
            done = queue.popleft().result()
            if not request.alike:
                probabilities(done)
            arrivals.append((time.perf_counter(), batch))
            queue.extend(pool.submit(step, part) for part in islice(work, 1))
    return rates(started, arrivals, 2 * request.threads)
