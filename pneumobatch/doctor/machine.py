"""What is there: software, CPUs, memory, GPUs, and the engine that a job would run on."""

import os
import platform
import re
import shutil
import socket
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pneumobatch import __version__, cluster
from pneumobatch.config import Job
from pneumobatch.doctor.findings import Finding, Findings, gib
from pneumobatch.models import hardware

PACKAGES = ("ray", "torch", "torchvision", "pyarrow", "pydantic", "numpy", "pillow", "pydicom", "duckdb", "safetensors")
SCORER_BYTES = 2**30
"""Memory that a scoring process needs, about."""
REFUSED_STORE = 10**10
"""Bytes above which Ray refuses an object store that /dev/shm cannot hold; a smaller one it lays on the disk."""


def software(_: Job) -> Findings:
    """Python, packages, compiler."""
    yield Finding("system", f"Python {platform.python_version()}, {platform.platform()}")
    versions = {"pneumobatch": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            yield Finding("packages", f"{name} is not installed", "problem", f"pip install {name}")
    yield Finding("packages", ", ".join(f"{name} {number}" for name, number in versions.items()))
    if compiler := hardware.compiler():
        yield Finding("compiler", compiler)
    else:
        yield Finding(
            "compiler", "none, so networks are not compiled: scoring takes two to three times as long", "note",
            "install g++ (or point CXX at a C++ compiler)",
        )  # fmt: skip


def processors(job: Job) -> Findings:
    """CPUs, and what limits them."""
    usable, present = cluster.machine_cpus(), os.cpu_count() or 1
    flags = _text("/proc/cpuinfo")
    features = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", flags)]
    model = re.search(r"model name\s*: (.*)", flags)
    yield Finding(
        "CPUs", f"{usable} usable of {present}, {model[1] if model else platform.machine()}, {' '.join(features)}"
    )
    if job.cluster.num_cpus > usable:
        text = f"cluster.num_cpus = {job.cluster.num_cpus}, but {usable} are usable: processes will share them"
        yield Finding("CPUs", text, "note", "leave cluster.num_cpus out")


def memory(job: Job) -> Findings:
    """Main memory, and shared memory for the object store."""
    free = 1024 * _number(r"MemAvailable:\s*(\d+)", "/proc/meminfo")
    total = cluster.machine_memory()
    if _number(r"^(\d+)$", "/sys/fs/cgroup/memory.max") == total:  # a container's limit
        cache = _number(r"inactive_file (\d+)", "/sys/fs/cgroup/memory.stat")  # given back when it is needed
        free = min(free, total - _number(r"^(\d+)$", "/sys/fs/cgroup/memory.current") + cache)
    workers = job.cluster.num_cpus or cluster.machine_cpus()
    text = f"{gib(free)} available of {gib(total)}"
    if free < 2 * SCORER_BYTES:
        yield Finding("memory", text, "problem", "free some: a job needs 2 GiB and more")
    elif free < workers * SCORER_BYTES:
        fit = max(1, free // SCORER_BYTES - 1)
        yield Finding("memory", f"{text}; {workers} scorers need about 1 GiB each", "note", f"--cluster.num_cpus {fit}")
    else:
        yield Finding("memory", text)
    if cluster.address_of(job.cluster):
        return
    store = cluster.object_store_bytes(job.cluster)
    shared = Path("/dev/shm")  # noqa: S108  # where Ray keeps its object store
    space = shutil.disk_usage(shared).free if shared.is_dir() else 0
    text = f"object store {gib(store)}, /dev/shm has {gib(space)}"
    if space >= store:
        yield Finding("object store", text)
        return
    fits = int(9 * space / 2**30) / 10
    remedy = "enlarge /dev/shm (docker: --shm-size)" + (f" or --cluster.object_store_gb {fits}" if fits else "")
    if store > REFUSED_STORE and not os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"):
        yield Finding("object store", f"{text}: Ray will not start", "problem", remedy)
    else:
        yield Finding("object store", f"{text}: Ray will use the disk instead", "note", remedy)


def accelerators(_: Job) -> Findings:
    """GPUs as torch sees them."""
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _text("/proc/driver/nvidia/version"))
    name = f"driver {driver[1]}" if driver else "no NVIDIA driver"
    if not torch.cuda.is_available():
        built = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
        if driver:
            yield Finding("GPUs", f"{name}, but {built} sees none", "note", "install a torch build for this driver")
        else:
            yield Finding("GPUs", f"none ({name}, {built})")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding("GPUs", f"{number}: {device.name}, {gib(device.total_memory)}, {name}, CUDA {torch.version.cuda}")


def engine(job: Job) -> Findings:
    """The cluster, asked; or the local engine, foretold."""
    address = cluster.address_of(job.cluster)
    if not address:
        cpus = job.cluster.num_cpus or cluster.machine_cpus()
        yield Finding("Ray", f"a local engine with {cpus} CPUs and {torch.cuda.device_count()} GPUs (not started now)")
        return
    remedy = "start the cluster, or mend cluster.address or RAY_ADDRESS"
    try:
        _knock(address)
        with cluster.engine(job.cluster) as there:
            yield Finding("Ray", f"{address}: {len(there.nodes)} nodes, {there.cpus:g} CPUs, {there.gpus:g} GPUs")
            yield _cluster_versions()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        yield Finding("Ray", f"{address}: {error}", "problem", remedy)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would try for half a minute."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), 5).close()


def _versions() -> dict[str, str]:
    """What must be equal on all machines; runs on each."""
    names = {name: version(name) for name in ("ray", "torch", "pneumobatch")}
    return {"python": platform.python_version(), **names}


def _cluster_versions() -> Finding:
    """Compares every node that takes work: a head without CPUs runs no job's task, and may have another image."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    if not nodes:
        return Finding(
            "Ray workers", "none now, so their versions are not compared", "note", "look again while a job runs"
        )
    task = ray.remote(_versions)
    asked = [task.options(num_cpus=0, scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in nodes]
    try:
        found: list[dict[str, str]] = ray.get(asked, timeout=30)
    except (RayError, GetTimeoutError) as error:
        text = f"a worker cannot run this package: {str(error).strip().splitlines()[-1]}"
        return Finding("Ray workers", text, "problem", "install the same pneumobatch on every node")
    here = _versions()
    different = Counter(
        f"{name} {there[name]} there, {here[name]} here"
        for there in found
        for name in here
        if here[name].partition("+")[0] != there[name].partition("+")[0]  # torch for CPUs here, for CUDA there
    )
    if different:
        text = "; ".join(f"{text} ({count} of {len(nodes)} nodes)" for text, count in different.items())
        return Finding("Ray workers", text, "problem", "use one image for the cluster and this machine")
    return Finding("Ray workers", f"versions as here on {len(nodes)} nodes")


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(errors="replace").strip()
    return ""


def _number(pattern: str, path: str) -> int:
    """The number that a pattern finds in a file, 0 where there is none."""
    found = re.search(pattern, _text(path))
    return int(found[1]) if found else 0
