"""The network as screening runs it: from uint8 pictures to logits, at the hardware's precision, compiled or not.

A compiled network is one shared library with the weights folded in (AOTInductor with freezing), kept in this user's
cache folder. It loads in a second without tracing anything, and it is never taken from a bundle, because a library
is code and a bundle must stay data.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from pneumobatch import __version__
from pneumobatch.models import bundle as bundles
from pneumobatch.models.networks import Classifier

Precision = Literal["fp32", "bf16"]
BATCH = {"cpu": 8, "cuda": 128}
"""Default images a forward pass; a core's cache holds no more than 8 films' feature maps."""

THREADS = 1
"""Threads of a scoring process: a process a core is quicker than one process with many threads, not least because a
compiled network holds the interpreter's lock."""

Logits = Callable[[Tensor], Tensor]
"""uint8[B, S, S] → float32[B, 2]."""


def hardware_precision(device: torch.device) -> Precision:
    """bf16 where the device computes in it rather than emulating it, fp32 elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bf16" if "amx_bf16" in flags or "avx512_bf16" in flags else "fp32"


class _Scoring(nn.Module):
    def __init__(self, network: Classifier, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype

    def forward(self, films_BSS: Tensor) -> Tensor:
        grey = films_BSS[:, None].to(self.dtype) * (1 / 255)
        return cast(Tensor, self.network(grey)).float()


def eager(uri: str, bundle: bundles.Bundle, precision: Precision, device: torch.device) -> Logits:
    """Loads a bundle's network to run as it is."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    module = _Scoring(bundles.load_network(uri, bundle), dtype).to(device).eval()

    @torch.inference_mode()
    def logits(films_BSS: Tensor) -> Tensor:
        return cast(Tensor, module(films_BSS.to(device, non_blocking=True)))

    return logits


def compiler() -> str | None:
    """The C++ compiler that compiling needs, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compiled_path(bundle: bundles.Bundle, precision: Precision, batch: int, device: torch.device, threads: int) -> Path:
    """Where the compiled network of this bundle for this machine lies, whether it is there or not.

    The batch and the number of threads are part of what is compiled.
    """
    cuda = device.type == "cuda"
    hardware = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    settings = f"{precision} {batch} {1 if cuda else threads}"
    key = [bundle.identity(), __version__, torch.__version__, hardware, hardware_precision(device), settings]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:20]
    home = os.environ.get("PNEUMOBATCH_CACHE") or Path.home() / ".cache" / "pneumobatch"
    return Path(home) / "compiled" / f"{bundle.model_id}-{digest}.pt2"


def compiled(uri: str, bundle: bundles.Bundle, precision: Precision, batch: int, device: torch.device) -> Logits:
    """Loads the compiled network for a fixed batch and this process's threads; compiles it where that is not yet done.

    Raises:
        RuntimeError: It cannot be compiled; the message carries the compiler's words.
    """
    path = compiled_path(bundle, precision, batch, device, torch.get_num_threads())
    if not path.exists():
        with _lock(path.with_suffix(".lock")):  # of several scorers on a machine one compiles and the others wait
            if not path.exists():
                _compile(uri, bundle, precision, batch, device, path)
    run = torch._inductor.aoti_load_package(str(path))

    @torch.inference_mode()
    def logits(films_BSS: Tensor) -> Tensor:
        return cast(Tensor, run(films_BSS.to(device, non_blocking=True)))

    return logits


def _compile(
    uri: str, bundle: bundles.Bundle, precision: Precision, batch: int, device: torch.device, path: Path
) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    module = _Scoring(bundles.load_network(uri, bundle), dtype).to(device).eval()
    size = bundle.preprocessing.image_size
    example = torch.zeros(batch, size, size, dtype=torch.uint8, device=device)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(draft), inductor_configs={"freezing": True}
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
