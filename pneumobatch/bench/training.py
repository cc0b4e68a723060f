"""Training: the loop that a user would write, and this package's, on the same films."""

import tempfile
import time
from statistics import median

import torch
from torch.nn import functional as F

from pneumobatch import storage
from pneumobatch.archive.films import pixels_of
from pneumobatch.bench.basics import Facts, Ready, decoder_of, model, repeated
from pneumobatch.bench.measurements import device
from pneumobatch.bench.processes import Request
from pneumobatch.config import Job, Output
from pneumobatch.models import hardware
from pneumobatch.models.networks import build
from pneumobatch.training.trainer import train


def _plan(request: Request) -> Job:
    """The job that trains the bundle's network on the request's films, for an epoch to warm up and those measured."""
    job, bundle = request.job, model(request)[1]
    changes = {
        "run_id": "bench", "epochs": 1 + job.bench.training_epochs, "workers": (request.workers,), "max_failures": 0
    }  # fmt: skip
    return job.model_copy(update={"network": bundle.network, "training": job.training.model_copy(update=changes)})


def training(request: Request, _: Ready) -> Facts:
    """This package: `train` from the start of the process to the bundle; `rate` is that of its epochs but the first."""
    with tempfile.TemporaryDirectory() as folder:
        job = _plan(request).model_copy(update={"output": Output(uri=folder)})
        started = time.monotonic()
        trained = train(job)
        history = storage.read_table(storage.join(trained.uri, "history.parquet"))
    rates = history["images_per_second"].to_pylist()[1:]
    return {"rate": median(rates), "seconds": time.monotonic() - started}


def training_plain(request: Request, ready: Ready) -> Facts:
    """The loop that a user would write over pictures that are tensors already: no augmentation, no moving average."""
    torch.set_num_threads(request.threads)
    job, bundle = _plan(request), model(request)[1]
    films = repeated(request, len(request.uris))
    pixels = torch.from_numpy(pixels_of(decoder_of(request, bundle)(films), bundle.preprocessing.image_size).copy())
    labels = torch.arange(len(pixels)) % 2  # what they are makes no difference to the time
    batch = min(job.training.batch_size, len(pixels))
    where, wanted = device(job.training.use_gpu), job.training.precision
    network = build(job.network).to(where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=job.training.learning_rate, fused=True)
    bf16 = (hardware.hardware_precision(where.type) if wanted == "auto" else wanted) == "bf16"

    def epoch() -> int:
        order = torch.randperm(len(pixels))
        whole = len(pixels) // batch * batch
        for rows in torch.split(order[:whole], batch):
            x_B1SS = pixels[rows, None].to(where).float().div(255).contiguous(memory_format=torch.channels_last)
            with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(network(x_B1SS).float(), labels[rows].to(where))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss.item()  # waits for an accelerator
        return whole

    epoch()
    ready()
    rates = []
    for _ in range(job.bench.training_epochs):
        started = time.perf_counter()
        count = epoch()
        rates.append(count / (time.perf_counter() - started))
    return {"rate": median(rates)}
