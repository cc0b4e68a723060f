"""What the machine computes in, and where its compiled networks lie. Without torch, which takes seconds to import: a
driver on CPUs decides by this how its scorers will work, and they import it meanwhile."""

import hashlib
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pneumobatch import __version__
from pneumobatch.models.bundle import Bundle

Precision = Literal["fp32", "bf16", "int8"]

BATCH: dict[str, int] = {"cpu": 8, "cuda": 128}
"""Default images a forward pass; a core's cache holds no more than 8 films' feature maps."""

THREADS = 1
"""Threads of a scoring process: a process a core is quicker than one process with many threads, not least because a
compiled network holds the interpreter's lock."""


def hardware_precision(device: str) -> Precision:
    """bf16 where a device (`cpu` or `cuda`) computes in it rather than emulating it, fp32 elsewhere."""
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"amx_bf16", "avx512_bf16"} & _cpu_flags() else "fp32"


def described(device: str) -> str:
    """What this process computes on, such as `2 CPU (x86_64, AVX512)` with its threads, or a GPU's name."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def computes_int8() -> bool:
    """Whether this CPU multiplies int8 exactly: on older ones the sum of two products saturates."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & _cpu_flags())


def scoring_precision(wanted: Precision | Literal["auto"], device: str, bundle: Bundle) -> Precision:
    """What scoring computes in: what is wanted, or for `auto` `hardware_precision`.

    Raises:
        ValueError: int8 is wanted, and this machine or bundle cannot.
    """
    if wanted == "auto":
        return hardware_precision(device)
    if wanted == "int8":
        if device != "cpu" or not computes_int8():
            raise ValueError(
                "screening.precision: int8 needs CPUs with VNNI or AMX, and no GPU; this machine has "
                f"{'a GPU' if device != 'cpu' else 'neither'}: leave it at auto"
            )
        if not bundle.ranges:
            raise ValueError(
                f"screening.precision: int8 needs ranges, which bundle {bundle.model_id} lacks: it is from an older "
                "version, or its network has no convolutions for it; train it again or leave it at auto"
            )
    return wanted


def compiler() -> str | None:
    """The C++ compiler that compiling needs, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compiled_path(bundle: Bundle, precision: Precision, batch: int, device: str, threads: int) -> Path:
    """Where the compiled network of this bundle for this machine lies, whether it is there or not.

    The batch and the number of threads are part of what is compiled.
    """
    if device == "cuda":
        import torch

        hardware, threads = torch.cuda.get_device_name(), 1
    else:
        hardware = " ".join(sorted(_cpu_flags())) or platform.processor()
    key = [bundle.identity(), __version__, version("torch"), hardware, f"{precision} {batch} {threads}"]
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()[:20]
    home = os.environ.get("PNEUMOBATCH_CACHE") or Path.home() / ".cache" / "pneumobatch"
    return Path(home) / "compiled" / f"{bundle.model_id}-{digest}.pt2"


def _cpu_flags() -> frozenset[str]:
    """What the first CPU can do, by Linux's names; empty where they are not told."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(told, "").split())
