"""The network as screening runs it: from uint8 pictures to logits, at the hardware's precision, compiled or not.

A compiled network is one shared library with the weights folded in (AOTInductor with freezing), kept in this user's
cache folder. It loads in a second without tracing anything, and it is never taken from a bundle, because a library
is code and a bundle must stay data.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pneumobatch.models import hardware
from pneumobatch.models.bundle import Bundle
from pneumobatch.models.hardware import Precision, compiled_path

Logits = Callable[[Tensor], Tensor]
"""uint8[B, S, S] → float32[B, 2]."""


class _Scoring(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype).to(memory_format=torch.channels_last)
        self.dtype = dtype

    def forward(self, films_BSS: Tensor) -> Tensor:
        grey = films_BSS[:, None].to(self.dtype) * (1 / 255)
        return cast(Tensor, self.network(grey)).float()


def _network(uri: str, bundle: Bundle, precision: Precision, device: torch.device) -> _Scoring:
    from pneumobatch.models.int8 import quantise  # a compiled network does without, and without its imports
    from pneumobatch.models.weights import load_network

    network = load_network(uri, bundle)
    if precision == "int8":
        hardware.scoring_precision(precision, device.type, bundle)  # not every node need be like the first
        quantise(network, bundle.ranges)
        precision = hardware.hardware_precision(device.type)  # of all else
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return _Scoring(network, dtype).to(device).eval()


def eager(uri: str, bundle: Bundle, precision: Precision, device: torch.device) -> Logits:
    """Loads a bundle's network to run as it is."""
    module = _network(uri, bundle, precision, device)

    @torch.inference_mode()
    def logits(films_BSS: Tensor) -> Tensor:
        return cast(Tensor, module(films_BSS.to(device, non_blocking=True)))

    return logits


def compiled(uri: str, bundle: Bundle, precision: Precision, batch: int, device: torch.device) -> Logits:
    """Loads the compiled network for a fixed batch and this process's threads; compiles it where that is not yet done.

    Raises:
        RuntimeError: It cannot be compiled; the message carries the compiler's words.
    """
    path = compiled_path(bundle, precision, batch, device.type, torch.get_num_threads())
    if not path.exists():
        with _lock(path.with_suffix(".lock")):  # of several scorers on a machine one compiles and the others wait
            if not path.exists():
                _compile(uri, bundle, precision, batch, device, path)
    # As torch._inductor.aoti_load_package does it, without its two seconds of importing the compiler.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model")

    @torch.inference_mode()
    def logits(films_BSS: Tensor) -> Tensor:
        return loader.run([films_BSS.to(device, non_blocking=True)])[0]

    return logits


def _compile(uri: str, bundle: Bundle, precision: Precision, batch: int, device: torch.device, path: Path) -> None:
    module = _network(uri, bundle, precision, device)
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
