"""Decoding in a process of its own: whatever a file does to its decoder ends there, and costs at most that file.

`Sandbox.answers` sends a list of items to a child, which loads and decodes them in order and streams one answer for
each. A child that dies (a crash in native code, a hang, the kernel's out-of-memory killer) is replaced and the rest of
the list resumed, one by one until the killer is found: an item that is alone with a child is the one that kills it. The
child reads its requests from a pipe and ends with it, so it outlives its parent by one decode at most, even after
kill -9.

This module needs the standard library alone: the child imports what the work needs when it unpickles it. What comes
back is JSON and raw bytes, never a pickle, as it was made from hostile files.
"""

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

MEMORY = 4 << 30
"""Bytes of data that the child may hold: more ends as MemoryError in it and not as the machine's lack of memory. A
film of the default archive.max_pixels needs less than 2 GiB in every format."""
SECONDS = 120
"""Time that one item may be worked on, seconds, from the moment its bytes are there; loading has its own time-outs."""
TRIES = 3
"""Children that an item may kill, alone with them, before it is given up."""

_REQUEST = struct.Struct("<Q")  # bytes of the pickled request
_ANSWER = struct.Struct("<cIQ")  # kind, bytes of JSON, bytes of payload
_READY, _DONE, _BUG = b"R", b"A", b"E"
_PIPE = 1 << 20  # bytes; the child goes on while its answers wait
_TOGETHER = 400_000  # bytes of answers sent at once: waking the parent for every film of 50 KB costs 45 µs each


class Answer(NamedTuple):
    """What became of one item: facts that JSON can hold, and raw bytes."""

    facts: dict[str, Any]
    payload: bytes = b""


class Work(Protocol):
    """What the child does, picklable by reference: its module must be importable there."""

    def load(self, items: Sequence[str]) -> Iterator[Any]:
        """Yields what each item stands for, in order; may work ahead."""

    def answer(self, item: str, loaded: Any) -> Answer:
        """Works on one item."""

    def given_up(self, item: str, loaded: Any) -> Answer:
        """Answers for an item that killed `TRIES` children, without touching what killed them."""


class _DiedError(Exception):
    """The child ended without an answer."""


class Sandbox:
    """A child process that works through lists of items; started when it is first needed, then kept.

    Args:
        memory: See `MEMORY`.
        seconds: See `SECONDS`.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}

    @property
    def pid(self) -> int | None:
        """The child's process id, None before it is started."""
        return self._child.pid if self._child else None

    def answers(self, work: Work, items: Sequence[str]) -> list[Answer | None]:
        """Returns one answer for each item, in order; None where even giving up killed the child.

        Raises:
            RuntimeError: The child cannot be started, or the work has a bug (an exception that it let through).
        """
        answers: list[Answer | None] = []
        alone, deaths = False, 0  # of children that the next item was alone with
        with self._lock:
            while (at := len(answers)) < len(items):
                part = items[at : at + 1] if alone else items[at:]
                try:
                    for answer in self._ask(work, part, given_up=deaths == TRIES):
                        answers.append(answer)  # noqa: PERF402 - what came before a death stays
                    alone, deaths = alone and not deaths, 0  # with a killer's answer the others may go together again
                except _DiedError:
                    hung = self._stop() == -signal.SIGALRM
                    if deaths == TRIES:
                        answers.append(None)
                        alone, deaths = False, 0
                        continue
                    if alone:  # what used up its time once will do so again
                        deaths = TRIES if hung else deaths + 1
                    alone = True
                except BaseException:  # unread answers must not be taken for those of the next list
                    self._stop()
                    raise
        return answers

    def stop(self) -> None:
        """Ends the child; the next list starts another."""
        with self._lock:
            self._stop()

    def _ask(self, work: Work, items: Sequence[str], *, given_up: bool) -> Iterator[Answer]:
        child = self._running()
        assert child.stdin and child.stdout
        request = pickle.dumps((work, list(items), self.seconds, given_up))
        try:
            child.stdin.write(_REQUEST.pack(len(request)) + request)
            child.stdin.flush()
        except OSError:
            raise _DiedError from None
        for _ in items:
            kind, facts, payload = _receive(child.stdout)
            if kind == _BUG:
                raise RuntimeError(f"decoding failed by {facts['error']} at {facts['where']}; this is a bug")
            yield Answer(facts, payload)

    def _running(self) -> subprocess.Popen[bytes]:
        # What the parent can import, the child can, even where the path was only set at run time.
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        if environment != self._environment:  # credentials and the site's key are the caller's
            self._stop()
        tries = 0
        while self._child is None:
            tries += 1
            try:
                self._child = subprocess.Popen(  # noqa: S603 - this module
                    [sys.executable, "-P", "-m", "pneumobatch.archive.sandbox", str(self.memory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,  # native decoders print what they find in a file
                    env=environment,
                    pipesize=_PIPE,
                )
                assert self._child.stdout
                _receive(self._child.stdout)  # it is ready
            except (OSError, _DiedError):
                self._stop()
                if tries == TRIES:
                    raise RuntimeError(
                        f"the decoding process cannot be started: {sys.executable} must be able to import pneumobatch, "
                        "and the machine to start another process"
                    ) from None
            self._environment = environment
        return self._child

    def _stop(self) -> int | None:
        """Ends the child; returns how it ended, a signal as a negative number."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()  # a dead one that was not waited for stays as it died
        assert child.stdin and child.stdout
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()


def _receive(stream: Any) -> tuple[bytes, dict[str, Any], bytes]:
    """Reads one message.

    Raises:
        _DiedError: The stream ends.
    """
    head = stream.read(_ANSWER.size)
    if len(head) < _ANSWER.size:
        raise _DiedError
    kind, *sizes = _ANSWER.unpack(head)
    facts, payload = (stream.read(size) for size in sizes)
    if [len(facts), len(payload)] != sizes:
        raise _DiedError
    return kind, json.loads(facts), payload


def _send(stream: BinaryIO, kind: bytes, answer: Answer) -> None:
    facts = json.dumps(answer.facts).encode()
    stream.write(_ANSWER.pack(kind, len(facts), len(answer.payload)) + facts)
    stream.write(answer.payload)


shared = Sandbox()
"""The child of this process, for all its tasks."""


def _forget() -> None:
    """A forked process must not talk to its parent's child, nor wait for a lock that no thread of its own holds."""
    global shared  # noqa: PLW0603
    shared = Sandbox()


os.register_at_fork(after_in_child=_forget)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The child's life: requests until the pipe ends."""
    _send(answers, _READY, Answer({}))
    answers.flush()
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        try:
            work, items, seconds, given_up = pickle.loads(requests.read(*_REQUEST.unpack(head)))  # noqa: S301 - ours
            for item, loaded in zip(items, work.load(items), strict=True):
                # By the kernel's hand: no signal handler of Python's runs while native code hangs.
                signal.setitimer(signal.ITIMER_REAL, seconds)
                answer = work.given_up(item, loaded) if given_up else work.answer(item, loaded)
                signal.setitimer(signal.ITIMER_REAL, 0)
                _send(answers, _DONE, answer)
            answers.flush()
        except BrokenPipeError:
            return
        except MemoryError:  # between items nothing is left to give up: as good as dead
            os._exit(1)
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(answers, _BUG, Answer({"error": type(error).__name__, "where": _where(error)}))
            answers.flush()


def _where(error: BaseException) -> str:
    """The innermost line of this package in a traceback; the text stays behind, as it may quote the file."""
    place, trace = "?", error.__traceback__
    while trace:
        name = trace.tb_frame.f_globals.get("__name__", "?")
        place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _main(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # The pipes move out of reach of native code that prints or reads.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", _TOGETHER)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    _serve(requests, answers)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
