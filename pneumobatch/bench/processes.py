"""One measurement in one fresh process (or several copies at once), and the memory of all its processes meanwhile.

The request goes to the child's standard input as one line of JSON. The child warms up, answers `ready`, waits for
`go`, measures, and answers its result as one line of JSON: so copies measure at the same time.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from pydantic import BaseModel, ConfigDict

from pneumobatch.config import Job
from pneumobatch.models.hardware import Precision

READY, GO = "ready", "go"
SAMPLE_SECONDS = 0.25
"""Least time between two samples of memory; where a sample takes long, they are rarer."""


class Request(BaseModel):
    """What one process is to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    job: Job
    """The whole job."""
    measurement: str
    """Name of a function in `measurements`, `loops` or `pipeline`."""
    images: int
    """Images to go through."""
    exact: bool = False
    """The pipeline takes exactly so many images, even where they are too few for a steady state."""
    uris: tuple[str, ...] = ()
    """Readable films, repeated to reach `images`."""
    precision: Precision = "fp32"
    """Arithmetic of the network."""
    compiled: bool = False
    """Whether the network is compiled."""
    threads: int = 1
    """Threads of the network, and of decoding in `tuned`."""
    alike: bool = False
    """`tuned`: every thread decodes and scores, instead of some decoding for one that scores."""
    workers: int = 1
    """`training`: DDP workers."""
    backbone: bool = False
    """The network without its attention, untrained."""
    null_network: bool = False
    """`pipeline`: a network that does nothing takes the place of the bundle's."""
    spawned: float = 0
    """When the process was started, on the machine's monotonic clock."""


@dataclass(frozen=True)
class Memory:
    """Peak memory, bytes of RAM (proportional set size: shared pages are counted once)."""

    driver: int = 0
    """The process itself."""
    workers: int = 0
    """All processes that it started, except Ray's own."""
    engine: int = 0
    """Ray's own processes (raylet, control store, agents)."""
    store: int = 0
    """Shared memory of all of them: Ray's object store."""
    total: int = 0
    """All at once; less than the sum of the peaks when they fall at different times."""


@dataclass(frozen=True)
class Measured:
    """The result of one process."""

    facts: dict[str, Any]
    """What the measurement returned; rates are images/s."""
    memory: Memory = field(default_factory=Memory)
    """Of this process, its copies and all that they started."""


def measure(request: Request, copies: int = 1) -> list[Measured]:
    """Runs a measurement in fresh processes at the same time.

    Raises:
        ValueError, RuntimeError: As the measurement raised them, or a process died (with its last words).
    """
    children: list[_Child] = []
    with tempfile.TemporaryFile("w+") as words:
        try:
            children += [_Child(request, words) for _ in range(copies)]
            with watch([child.process.pid for child in children]) as memory:
                lines = [child.line() for child in children]
                waiting = [child for child, line in zip(children, lines, strict=True) if line == READY]
                for child in waiting:
                    child.send(GO)
                answers = zip(children, lines, strict=True)
                lines = [child.line() if child in waiting else line for child, line in answers]
                peak = memory()
        finally:
            for child in children:
                child.stop()
    return [Measured(json.loads(line), peak) for line in lines]


class _Child:
    """A measuring process, seen from outside."""

    def __init__(self, request: Request, words: IO[str]) -> None:
        self.words = words
        request = request.model_copy(update={"spawned": time.monotonic()})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pneumobatch.bench"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, text=True,
        )  # fmt: skip
        self.input, self.output = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.send(request.model_dump_json())

    def send(self, line: str) -> None:
        self.input.write(f"{line}\n")
        self.input.flush()

    def line(self) -> str:
        line = self.output.readline().strip()
        if not line:
            code = self.process.wait()
            self.words.seek(0)
            raise RuntimeError(f"a measurement died with exit code {code}: {self.words.read().strip()[-2000:]}")
        if line.startswith('{"error"'):
            error = json.loads(line)
            raise (ValueError if error["error"] == "ValueError" else RuntimeError)(error["text"])
        return line

    def stop(self) -> None:
        """Waits for a process that is done; one that is not gives up without `go`, or is ended."""
        self.input.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()
        self.output.close()


Measurement = Callable[[Request, Callable[[], None]], dict[str, Any]]
"""Takes its request and a function to call when it is warm; returns its facts."""


def answer(find: Callable[[str], Measurement]) -> None:
    """The child's side: reads a request, runs its measurement, and answers."""
    request = Request.model_validate_json(sys.stdin.readline())
    with _own_standard_output() as say:

        def ready() -> None:
            say(READY)
            if sys.stdin.readline().strip() != GO:
                raise SystemExit(1)  # the parent gave up

        try:
            result = find(request.measurement)(request, ready)
        except (ValueError, RuntimeError) as error:
            if type(error) not in {ValueError, RuntimeError}:
                raise
            result = {"error": type(error).__name__, "text": str(error)}
        say(json.dumps(result))
        sys.stdin.readline()  # stays until its memory has been read


@contextmanager
def _own_standard_output() -> Iterator[Callable[[str], None]]:
    """Keeps standard output for the answers; whatever else is printed there goes to standard error."""
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        yield lambda line: print(line, file=output, flush=True)
    finally:
        sys.stdout = output


@contextmanager
def watch(roots: list[int]) -> Iterator[Callable[[], Memory]]:
    """Samples the memory of processes and of all that they start; yields a function that returns the peaks so far."""
    peaks: dict[str, int] = defaultdict(int)
    done = threading.Event()

    def sample() -> Memory:
        now = _memory(roots)
        for name, value in (now | {"total": sum(now.values())}).items():
            peaks[name] = max(peaks[name], value)
        return Memory(**peaks)

    def keep_sampling() -> None:
        pause = 0.0
        while not done.wait(pause):
            before = time.thread_time()
            sample()
            pause = max(SAMPLE_SECONDS, 30 * (time.thread_time() - before))  # so as not to disturb what is measured

    thread = threading.Thread(target=keep_sampling, daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        done.set()
        thread.join()


def _memory(roots: list[int]) -> dict[str, int]:
    """Memory of the processes `roots` and their descendants now, by the fields of `Memory`."""
    parents: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (status := _read(folder / "stat")):
            # The name in parentheses may hold anything; the parent's id is the second field after it.
            parents[int(status.rpartition(")")[2].split()[1])].append(int(folder.name))
    found = dict.fromkeys(("driver", "workers", "engine", "store"), 0)
    family = list(roots)
    for process in family:
        family += parents[process]
        folder = Path("/proc") / str(process)
        sizes = dict(line.split()[:2] for line in _read(folder / "smaps_rollup").splitlines()[1:])
        command = _read(folder / "cmdline")
        shared = int(sizes.get("Pss_Shmem:", 0)) * 1024
        own_engine = "/ray/" in command and not command.startswith("ray::") and "default_worker" not in command
        kind = "driver" if process in roots else "engine" if own_engine else "workers"
        found[kind] += int(sizes.get("Pss:", 0)) * 1024 - shared
        found["store"] += shared
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended, or is another user's
        return ""
