"""The Ray engine that a job runs on: an embedded local one, or a cluster that is attached to."""

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pneumobatch.config import Cluster
from pneumobatch.progress import say

if TYPE_CHECKING:
    import ray

T = TypeVar("T")

SILENCE_SECONDS = 60.0
"""After so long without a result a job looks at the cluster, and says so if it lacks workers."""

GIVE_UP = signal.SIGUSR2
"""Ends a wait as an interrupt does: whatever a job waits in, Ray's calls have no other end in common. Not SIGINT,
which is ignored in the background of a shell."""

BUSY_SILENCES = 5
"""After so many times as long it says so as well if the cluster is only busy."""

_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a hospital's machine leaves it
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # for filesystems that travel to workers; see storage
}
"""What every process of an engine runs with; a cluster's workers do not inherit it and are sent it."""


_REMEDY = "set RAY_AUTH_MODE=token, and name the file that holds it by RAY_AUTH_TOKEN_PATH"
"""For a cluster that wants a token."""


class Node(NamedTuple):
    """What one machine offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Resources:
    """What the engine offers to jobs at the moment."""

    nodes: tuple[Node, ...]
    """Machines that take work: a cluster's head without CPUs is none of them."""
    local: bool
    """An engine embedded in this process, not a cluster."""

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs on {len(self.nodes)} nodes"


class NoWorkerError(RuntimeError):
    """The engine has no worker of the kind that a job needs, and none came."""


CGROUP = Path("/sys/fs/cgroup")
"""Where a container's limits stand."""


def machine_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by its container's quota."""
    usable = len(os.sched_getaffinity(0))
    quota, _, period = _limit("cpu.max").partition(" ")
    return min(usable, max(int(quota) // int(period), 1)) if quota.isdecimal() else usable


def machine_memory() -> int:
    """Main memory that this process may use, bytes: the machine's, or its container's limit."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max").strip()
    return min(present, int(limit)) if limit.isdecimal() else present


def _limit(name: str) -> str:
    path = CGROUP / name
    return path.read_text() if path.is_file() else ""


def object_store_bytes(config: Cluster) -> int:
    """Size of the local engine's object store, bytes."""
    if config.object_store_gb:
        return int(config.object_store_gb * 2**30)
    return min(machine_memory() // 4, 8 * 2**30)


def address_of(config: Cluster) -> str | None:
    """The cluster that `engine` attaches to: cluster.address, or what the environment names; None: a local engine,
    which Ray names `local`."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


@contextmanager
def engine(config: Cluster) -> Iterator[Resources]:
    """Starts the local engine or attaches to a cluster, and stops or leaves it at the end.

    Inside an engine that is already connected (tests, several verbs in one process) it is used as it is.

    Raises:
        ValueError: The named cluster does not answer, or what is named is a server of another kind.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray
    import ray.data

    started = not ray.is_initialized()
    address = address_of(config)
    if address and address.startswith(("http://", "https://")):
        # The job file that was submitted names the cluster's job server; the job itself is told where it runs.
        address = os.environ.get("RAY_ADDRESS", address)
        if address.startswith("http"):
            raise ValueError(
                f"cluster.address: {address} is a cluster's job server; pneumobatch submit VERB starts the verb there"
            )
    if address and address.startswith("ray://"):  # whose drivers get no streams of results, which Ray Data lives on
        raise ValueError(
            f"cluster.address: {address} is a server of Ray Client, which runs no such jobs; on a machine of the "
            "cluster give HOST:6379 or auto, elsewhere start the verb by pneumobatch submit VERB and http://HEAD:8265"
        )
    with _native_noise_in_log():
        yield from _run(config, address, started=started)


def _run(config: Cluster, address: str | None, *, started: bool) -> Iterator[Resources]:
    import ray

    if started and address:
        try:
            variables = {key: os.environ[key] for key in _ENVIRONMENT}
            ray.init(
                address=address,
                runtime_env={"env_vars": variables},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:  # as well where a token is missing or wrong: Ray tells these not apart
            raise ValueError(
                f"cluster.address: no Ray cluster answers at {address}: {error}; where it wants a token, {_REMEDY}"
            ) from None
        except ray.exceptions.AuthenticationError:
            raise ValueError(f"cluster.address: {address} wants a token, and there is none here: {_REMEDY}") from None
    elif started:
        # A token that ends with it. Ray would leave one in the home folder, where others may read it; users of services
        # and containers may have none.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # No cloud reclaims a node of this engine: the actor that watches for it would delay every training's start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(
            address="local",  # and not a cluster that happens to run on this machine
            num_cpus=config.num_cpus or machine_cpus(),
            object_store_memory=object_store_bytes(config),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _quiet()
    try:
        yield offered(local=not address)
    finally:
        if started:
            ray.shutdown()


def offered(*, local: bool) -> Resources:
    """Counts what the connected engine has now: workers of an autoscaled cluster come and go."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [Node(found.get("CPU", 0), found.get("GPU", 0)) for found in alive]
    return Resources(tuple(node for node in nodes if node.cpus), local)


def answer(reference: "ray.ObjectRef[T]", resources: Resources, config: Cluster, *, gpu: bool) -> T:
    """Waits for a task that needs a CPU or a GPU: a cluster may have to bring up a node for it first, or be busy.

    Raises:
        NoWorkerError: As `awaited`; a node that is busy is waited for.
        Exception: What the task raised.
    """
    import ray

    try:
        wanted = f"a worker with a {'GPU' if gpu else 'CPU'}"
        with awaited(wanted, resources, config, lambda found: (found.gpus if gpu else found.cpus) > 0):
            result: T = ray.get(reference)
    except NoWorkerError:
        ray.cancel(reference, force=True)
        raise
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return result


@contextmanager
def awaited(
    what: str, resources: Resources, config: Cluster, enough: Callable[[Resources], bool]
) -> Iterator[Callable[[], None]]:
    """Says what a job waits for, and what the cluster has, whenever nothing has come for long; yields what to call
    when something has. A local engine has all it will ever have, and waits for nothing.

    Args:
        what: What the job waits for.
        resources: What the engine offered at first.
        config: The cluster's section.
        enough: Whether the job can go on with what the cluster has.

    Raises:
        NoWorkerError: For `cluster.patience_minutes` nothing came and the cluster did not have enough.
    """
    if resources.local:
        yield lambda: None
        return
    last, done, given_up, patience = time.monotonic(), threading.Event(), "", config.patience_minutes * 60
    waits = threading.current_thread()
    if waits is threading.main_thread():
        signal.signal(GIVE_UP, signal.default_int_handler)

    def came() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        nonlocal given_up
        sufficed = said = last
        while not done.wait(min(SILENCE_SECONDS, patience)):
            now, found = time.monotonic(), offered(local=False)
            if enough(found):
                sufficed = now
            lacks = now - max(last, sufficed)
            if lacks >= patience and waits is threading.main_thread():
                given_up = str(found)
                signal.pthread_kill(int(waits.ident or 0), GIVE_UP)
                return
            if now - max(last, said) >= SILENCE_SECONDS * (1 if lacks else BUSY_SILENCES):
                said = now
                say(f"waiting for {what} for {(now - last) / 60:.0f} minutes: the cluster has {found}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        try:
            yield came
        finally:
            done.set()
            thread.join()
    except KeyboardInterrupt:
        if not given_up:
            raise
    if given_up:
        raise NoWorkerError(
            f"cluster: for {config.patience_minutes:g} minutes (cluster.patience_minutes) {what} did not come, and the "
            f"cluster lacks workers for it; it has {given_up}. Look at its autoscaler, its quota and the workers' "
            "image, and start the same job again"
        )


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
    console, python_stderr = os.dup(2), sys.stderr
    descriptor, log = tempfile.mkstemp(prefix="pneumobatch-", suffix=".log")
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr = os.fdopen(os.dup(console), "w", buffering=1) if python_stderr is sys.__stderr__ else python_stderr
    try:
        yield
    finally:
        if sys.stderr is not python_stderr:
            sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(console, 2)
        os.close(console)
        Path(log).unlink(missing_ok=True)
