"""Children that crash, hang, run out of memory or are killed: one answer for every item all the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from pneumobatch.archive import phantoms, sandbox
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.archive.sandbox import TRIES, Sandbox

WORK = """
import ctypes, os, signal, time
from collections import Counter
from pathlib import Path
from pneumobatch.archive.sandbox import Answer

class Deadly:
    def __init__(self, folder):
        self.folder = folder

    def load(self, items):
        with (Path(self.folder) / "requests").open("a") as file:
            file.write(f"{len(items)} ")
        for item in items:
            if item == "load":
                os.abort()
            yield item.upper()

    def answer(self, item, loaded):
        with (Path(self.folder) / item).open("a") as file:
            file.write("x")
        match item:
            case "segfault":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "hang":
                while True:
                    pass
            case "deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                time.sleep(1000)
            case "once" if (Path(self.folder) / item).read_text() == "x":
                os.kill(os.getpid(), signal.SIGKILL)
            case "noise":
                os.write(1, b"SECRET" * 1000)
                os.write(2, b"SECRET" * 1000)
            case "memory":
                try:
                    hold = bytearray(1 << 31)
                except MemoryError:
                    return Answer({"item": item, "memory": "refused"})
            case "key":
                return Answer({"item": item, "key": os.environ.get("PNEUMOBATCH_SITE_KEY")})
            case "bug":
                raise KeyError("SECRET")
        return Answer({"item": item, "loaded": loaded}, item.encode() * 1000)

    def given_up(self, item, loaded):
        return Answer({"item": item, "given_up": loaded})
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    box = Sandbox(memory=1 << 30, seconds=0.5)
    yield box
    box.stop()


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "deadly_work.py").write_text(WORK)
    (tmp_path / "met").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    import deadly_work

    yield deadly_work.Deadly(str(tmp_path / "met"))
    del sys.modules["deadly_work"]


def facts(box: Sandbox, work: Any, *items: str) -> list[dict[str, Any] | None]:
    return [answer and answer.facts for answer in box.answers(work, items)]


def fine(item: str) -> dict[str, Any]:
    return {"item": item, "loaded": item.upper()}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_answers_come_in_order_from_one_child_that_stays(box: Sandbox, deadly: Any) -> None:
    items = [f"item{number}" for number in range(1000)]
    answers = box.answers(deadly, items)
    assert [answer and answer.facts["item"] for answer in answers] == items
    assert answers[7] == ({"item": "item7", "loaded": "ITEM7"}, b"item7" * 1000)
    pid = box.pid
    assert facts(box, deadly, "a") == [fine("a")]
    assert box.answers(deadly, []) == []
    assert box.pid == pid


@pytest.mark.parametrize("killer", ["segfault", "abort", "hang", "deaf"])
def test_what_kills_its_child_is_given_up_and_the_rest_goes_on(
    box: Sandbox, deadly: Any, killer: str, tmp_path: Path
) -> None:
    expected = [fine("a"), {"item": killer, "given_up": killer.upper()}, fine("b"), fine("c")]
    assert facts(box, deadly, "a", killer, "b", "c") == expected
    # The first time among others; a second hang is enough.
    assert len((tmp_path / "met" / killer).read_text()) == (2 if killer in {"hang", "deaf"} else 1 + TRIES)


def test_the_others_go_together_again_once_the_killer_is_found(box: Sandbox, deadly: Any, tmp_path: Path) -> None:
    facts(box, deadly, "a", "abort", "b", "c", "load", "d", "e")
    # a and its killer alone, that one given up, b and c with theirs; what was lost with it alone, and the rest.
    assert (tmp_path / "met" / "requests").read_text() == "7 1 1 1 1 1 5 1 1 1 1 1 1 2 "


def test_even_loading_may_kill(box: Sandbox, deadly: Any) -> None:
    assert facts(box, deadly, "a", "load", "b") == [fine("a"), None, fine("b")]


def test_several_killers_and_an_innocent(box: Sandbox, deadly: Any, tmp_path: Path) -> None:
    found = facts(box, deadly, "segfault", "once", "abort", "a")
    assert found[0] == {"item": "segfault", "given_up": "SEGFAULT"}
    assert found[1] == fine("once")  # on its second try
    assert found[2] == {"item": "abort", "given_up": "ABORT"}
    assert found[3] == fine("a")
    assert len((tmp_path / "met" / "a").read_text()) == 1


def test_memory_is_bounded(box: Sandbox, deadly: Any) -> None:
    assert facts(box, deadly, "memory", "a") == [{"item": "memory", "memory": "refused"}, fine("a")]


def test_what_native_code_prints_is_neither_an_answer_nor_on_the_console(
    box: Sandbox, deadly: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert facts(box, deadly, "noise", "a") == [fine("noise"), fine("a")]
    assert "SECRET" not in "".join(capfd.readouterr())


def test_a_bug_is_an_error_that_quotes_nothing(box: Sandbox, deadly: Any) -> None:
    with pytest.raises(RuntimeError, match=r"KeyError at deadly_work:\d+") as raised:
        facts(box, deadly, "a", "bug", "b")
    assert "SECRET" not in str(raised.value)
    assert facts(box, deadly, "a") == [fine("a")]  # no answer of the other list


def test_the_child_works_in_its_callers_environment(box: Sandbox, deadly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("one", "two"):
        monkeypatch.setenv("PNEUMOBATCH_SITE_KEY", key)
        assert facts(box, deadly, "key") == [{"item": "key", "key": key}]


def test_a_child_that_cannot_be_started_is_said(deadly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in (tmp_path / "none", Path("/bin/false")):
        monkeypatch.setattr(sys, "executable", str(executable))
        with pytest.raises(RuntimeError, match="decoding process cannot be started"):
            facts(Sandbox(), deadly, "a")


def test_threads_share_a_child(box: Sandbox, deadly: Any) -> None:
    found: dict[str, list[dict[str, Any] | None]] = {}

    def work(name: str) -> None:
        found[name] = facts(box, deadly, name, "segfault", name) if name == "t1" else facts(box, deadly, name)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[name][-1] == fine(name) for name in found)
    assert len(found) == 5


PARENT = """
import os, sys, time
from pneumobatch.archive import sandbox
from deadly_work import Deadly
work = Deadly(sys.argv[1])
sandbox.shared.seconds = 1
sandbox.shared.answers(work, ["a"])
if (fork := os.fork()) == 0:
    sandbox.shared.answers(work, ["b"])
    print("fork", sandbox.shared.pid, flush=True)
    os._exit(0)
os.wait()
print("parent", sandbox.shared.pid, flush=True)
sandbox.shared.answers(work, ["c"])
print("parent", sandbox.shared.pid, flush=True)
if sys.argv[2] != "idle":
    sandbox.shared.answers(work, [sys.argv[2]])
time.sleep(1000)
"""


@pytest.mark.parametrize("at_work", ["idle", "hang"])
def test_the_child_dies_with_its_parent_and_is_not_shared_with_a_fork(
    deadly: Any, tmp_path: Path, at_work: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "met"), at_work]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        lines = [parent.stdout.readline().split() for _ in range(3)]
        assert [name for name, _ in lines] == ["fork", "parent", "parent"]
        assert lines[1] == lines[2] != lines[0]
        child = psutil.Process(int(lines[1][1]))
        if at_work == "hang":
            wait_for((tmp_path / "met" / "hang").exists)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_killed_decoder_loses_no_film(tmp_path: Path) -> None:
    phantoms.write_archive(tmp_path, 12, seed=1)
    uris = sorted(str(path) for path in tmp_path.rglob("*.*")) * 20
    rows = pa.table({"image_id": [str(number) for number in range(len(uris))], "uri": uris})
    decoder = FilmDecoder(64, 10**7)
    expected = decoder(rows)
    assert expected["status"].to_pylist().count("scored") > 200
    kills = np.random.default_rng(0).uniform(0.05, 0.5, TRIES)  # one more, all on one film, could give it up
    done = threading.Event()

    def kill() -> None:
        for pause in kills:
            if not done.wait(pause) and (pid := sandbox.shared.pid):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = decoder(rows)
    done.set()
    killer.join()
    assert found.equals(expected)


def test_a_film_that_unfolds_beyond_the_memory_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGBA", (9000, 9000)).save(tmp_path / "bomb.png")  # 0.3 MB as a file, 324 MB as pixels
    Image.fromarray((phantoms.film(np.random.default_rng(0), 1) >> 8).astype(np.uint8)).save(tmp_path / "film.png")
    child = Sandbox(memory=256 << 20)
    monkeypatch.setattr(sandbox, "shared", child)
    rows = pa.table({"image_id": ["a", "b"], "uri": [str(tmp_path / "bomb.png"), str(tmp_path / "film.png")]})
    found = FilmDecoder(64, 10**8)(rows)
    pid = child.pid
    assert found["reason"].to_pylist() == ["too_large", None]
    assert FilmDecoder(64, 10**8)(rows).equals(found)
    assert child.pid == pid  # it refused, and did not die
    child.stop()
