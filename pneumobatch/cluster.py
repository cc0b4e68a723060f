"""The Ray engine that a job runs on: an embedded local one, or a cluster that is attached to."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pneumobatch.config import Cluster

_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a hospital's machine leaves it
}


@dataclass(frozen=True)
class Resources:
    """What the engine offers to jobs."""

    cpus: float
    gpus: float
    nodes: int
    local: bool


def machine_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def object_store_bytes(config: Cluster) -> int:
    """Size of the local engine's object store, bytes."""
    if config.object_store_gb:
        return int(config.object_store_gb * 2**30)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory // 4, 8 * 2**30)


@contextmanager
def engine(config: Cluster) -> Iterator[Resources]:
    """Starts the local engine or attaches to a cluster, and stops or leaves it at the end.

    Inside an engine that is already connected (tests, several verbs in one process) it is used as it is.

    Raises:
        ValueError: The named cluster does not answer.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray
    import ray.data

    started = not ray.is_initialized()
    address = config.address or os.environ.get("RAY_ADDRESS")
    with _native_noise_in_log():
        yield from _run(config, address, started=started)


def _run(config: Cluster, address: str | None, *, started: bool) -> Iterator[Resources]:
    import ray

    if started and address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(f"cluster.address: no Ray cluster answers at {address}: {error}") from None
    elif started:
        ray.init(
            num_cpus=config.num_cpus or machine_cpus(),
            object_store_memory=object_store_bytes(config),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _quiet()
    try:
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        nodes = len(ray.nodes())  # type: ignore[no-untyped-call]
        yield Resources(cpus=total.get("CPU", 0), gpus=total.get("GPU", 0), nodes=nodes, local=not address)
    finally:
        if started:
            ray.shutdown()


def _quiet() -> None:
    """Keeps Ray's own messages in its log files: a job's console says what the job does."""
    import ray.data

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _native_noise_in_log() -> Iterator[None]:
    """Sends what Ray's C++ core writes on file descriptor 2 to a log; Python's own standard error stays where it is.

    RAY_BACKEND_LOG_LEVEL would be the switch for it, but announces itself on the console it is meant to keep quiet.
    """
    log = Path(tempfile.gettempdir()) / f"pneumobatch-{os.getpid()}.log"
    console, python_stderr = os.dup(2), sys.stderr
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(os.dup(console), "w", buffering=1) if python_stderr is sys.__stderr__ else python_stderr
    try:
        yield
    finally:
        if sys.stderr is not python_stderr:
            sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(console, 2)
        os.close(console)
        log.unlink(missing_ok=True)
