"""Who works on a run: a lease in the output's storage, so that of two starts one works and the other says who does.

    _leases/<name>/<epoch>.json     the highest epoch holds; the file is written again as a sign of life

A new holder creates the next epoch, create-only, so that one of many wins. A holder is dead when its process is gone
from this machine, or when it gave no sign of life for a while by the watcher's own clock: no two clocks are compared.
The lease saves work and tells who works; that nothing is published twice rests on create-only publishing alone.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pneumobatch import storage
from pneumobatch.progress import say

BEAT_SECONDS = 5.0
"""Time between two signs of life."""
DEAD_SECONDS = 60.0
"""Silence after which a holder on another machine counts as dead."""


class HeldError(RuntimeError):
    """Another start holds the run; the message says who."""


class Lease:
    """A held lease; `check` before anything that only its holder may do."""

    def __init__(self, folder: str, epoch: int, owner: dict[str, Any]) -> None:
        self.folder, self.epoch, self.owner = folder, epoch, owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that nobody took the lease over meanwhile.

        Raises:
            HeldError: Somebody did: this start was silent for too long and must leave the run to the other.
        """
        if (latest := _latest(self.folder)) and latest[0] > self.epoch:
            raise HeldError(f"this start was silent for too long; {_told(latest[1])} has taken its run over")

    def release(self) -> None:
        """Gives the lease back, unless another has it by now."""
        self._stop.set()
        self._thread.join()
        try:
            latest = _latest(self.folder)
            if latest and latest[0] == self.epoch:
                self._write(released=True)
        except OSError as error:  # what was done under the lease is done, or has failed for a reason of its own
            say(f"lease: could not be given back ({type(error).__name__}); the next start waits {DEAD_SECONDS:.0f} s")

    def _live(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._write(released=False)
            except OSError as error:  # an outage of the store; `check` decides whether the run is still ours
                say(f"lease: no sign of life could be written ({type(error).__name__})")

    def _write(self, *, released: bool) -> None:
        content = {**self.owner, "beat": uuid.uuid4().hex, "released": released}
        storage.write_bytes(_file(self.folder, self.epoch), json.dumps(content).encode())


@contextmanager
def hold(output: str, name: str) -> Iterator[Lease]:
    """Holds the lease `name` below an output URI, after waiting for the silence of a holder that may be dead.

    Raises:
        HeldError: A living start holds it.
    """
    folder = storage.join(output, "_leases", name)
    lease = _acquire(folder, name)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(folder: str, name: str) -> Lease:
    owner = {"name": name, "since": datetime.now(UTC).isoformat(timespec="seconds"), **_process()}
    epoch = 0
    if latest := _latest(folder):
        epoch, holder = latest
        if not (holder["released"] or _gone(holder)):
            _watch(folder, epoch, holder)
    content = json.dumps({**owner, "beat": uuid.uuid4().hex, "released": False}).encode()
    if not storage.create_bytes(_file(folder, epoch + 1), content):
        winner = _latest(folder)
        raise HeldError(f"{name} is held by {_told(winner[1]) if winner else 'another start'}")
    for file in storage.list_files(folder):
        if int(file.path.removesuffix(".json")) <= epoch:
            storage.delete(storage.join(folder, file.path))
    return Lease(folder, epoch + 1, owner)


def _watch(folder: str, epoch: int, holder: dict[str, Any]) -> None:
    """Returns when the holder has been silent long enough; only time in which the store answered counts."""
    quiet, step = 0.0, BEAT_SECONDS / 2
    say(f"{holder['name']} was taken by {_told(holder)}; watching for a sign of life")
    while quiet < DEAD_SECONDS:
        time.sleep(step)
        quiet += step
        latest = _latest(folder)
        if latest is None or latest[1]["released"]:
            return
        if latest[0] != epoch or latest[1]["beat"] != holder["beat"]:
            raise HeldError(f"{holder['name']} is held by {_told(latest[1])}")
    say(f"{holder['name']}: silent for {DEAD_SECONDS:.0f} s, taking it over")


def _latest(folder: str) -> tuple[int, dict[str, Any]] | None:
    for epoch in sorted((int(f.path.removesuffix(".json")) for f in storage.list_files(folder)), reverse=True):
        try:
            return epoch, json.loads(storage.read_bytes(_file(folder, epoch)))
        except FileNotFoundError:  # a new holder has just removed it
            continue
    return None


def _file(folder: str, epoch: int) -> str:
    return storage.join(folder, f"{epoch:08d}.json")


def _told(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _process() -> dict[str, Any]:
    """Names this process so that it can be told from a later one with its number, in this and other containers."""
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "born": _born(os.getpid())}


def _space() -> str:
    """Boot and process namespace: process numbers mean the same only where both are the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}" if boot.exists() else ""  # noqa: PTH115


def _born(pid: int) -> str | None:
    """Start time of a process, in ticks since boot; None where it is gone (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    return bool(holder["space"] and holder["space"] == _space() and _born(holder["pid"]) != holder["born"])
