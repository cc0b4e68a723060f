"""The lease: one of many works, the others say who, and a dead holder is replaced."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pneumobatch import lease, storage
from pneumobatch.lease import HeldError


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)


def newest(folder: Path) -> Path:
    return max((folder / "_leases" / "x").glob("*.json"))


def test_the_second_says_who_holds_it_and_gets_it_afterwards(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "x") as held:
        with pytest.raises(HeldError, match=r"x is held by process \d+ on .+ since 2"), lease.hold(str(tmp_path), "x"):
            pass
        held.check()
    with lease.hold(str(tmp_path), "x") as again:
        again.check()
    assert len(list((tmp_path / "_leases" / "x").iterdir())) == 1


def test_a_killed_process_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pneumobatch import lease\n"
        "with lease.hold(sys.argv[1], 'x'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    process.stdout.close()
    started = time.monotonic()
    with lease.hold(str(tmp_path), "x"):
        assert time.monotonic() - started < lease.DEAD_SECONDS


def from_elsewhere(folder: Path) -> str:
    """Makes the holder look like a process of another machine; returns the file's path."""
    file = newest(folder)
    content = json.loads(file.read_text()) | {"host": "elsewhere", "space": "another machine", "released": False}
    storage.write_bytes(str(file), json.dumps(content).encode())
    return str(file)


def test_a_silent_holder_elsewhere_is_waited_for_and_then_replaced(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "x"):
        pass
    from_elsewhere(tmp_path)
    started = time.monotonic()
    with lease.hold(str(tmp_path), "x"):
        assert time.monotonic() - started >= lease.DEAD_SECONDS


def test_who_was_silent_too_long_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.Lease, "_live", lambda self: None)  # a process that was stopped for a while
    with lease.hold(str(tmp_path), "x") as first:
        from_elsewhere(tmp_path)
        with lease.hold(str(tmp_path), "x") as second:
            with pytest.raises(HeldError, match="silent for too long; process .* has taken its run over"):
                first.check()
            second.check()
        assert json.loads(newest(tmp_path).read_text())["released"]


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            with lease.hold(str(tmp_path), "x") as held:
                time.sleep(1.0)
                held.check()
                return True
        except HeldError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
