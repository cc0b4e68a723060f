"""Verbs as jobs of a real cluster with a token: exit codes, logs over lost connections, and what travels."""

import contextlib
import re
import shutil
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import pneumobatch
from tests.cluster.conftest import Site
from tests.faults import Rule

pytestmark = pytest.mark.engine


def words(archive: str, *more: str) -> list[str]:
    return ["submit", "catalog", "--archive.uri", f"{archive}/in", "--output.uri", f"{archive}/out", *more]


def test_a_job_ends_with_its_log_and_exit_code(site: Site, archive: str, films: Path, tmp_path: Path) -> None:
    count = sum(path.is_file() for path in films.rglob("*"))
    first = site.run(*words(archive))
    assert first.returncode == 0, first.stderr
    assert f"{count} images: " in first.stdout
    (submission,) = re.findall(r"^submitted (catalog-\w{12}) to ", first.stderr, re.MULTILINE)

    copy = tmp_path / "pneumobatch"
    shutil.copytree(Path(pneumobatch.__file__).parent, copy)
    text = (copy / "cli" / "verbs.py").read_text()
    (copy / "cli" / "verbs.py").write_text(text.replace("byte-identical copies", "copies, said another code"))
    second = site.run(*words(archive, "--cluster.runtime", "package"), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    (other,) = re.findall(r"^submitted (catalog-\w{12}) to ", second.stderr, re.MULTILINE)
    assert other != submission  # other code is another job
    assert "copies, said another code" in second.stdout  # the package travelled to where the image has another

    listed = site.run("status").stdout
    assert re.search(rf"^{submission}  SUCCEEDED \(0\)  20", listed, re.MULTILINE)
    assert f"{other}  SUCCEEDED" in listed
    third = site.run(*words(archive))
    assert third.stderr.startswith(f"submitted {submission}-2 to ")
    again = site.run("logs", submission)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    wrong = site.run("submit", "catalog", "--archive.uri", f"{archive}/none", "--output.uri", f"{archive}/out")
    assert wrong.returncode == 2
    assert "error: archive.uri" in wrong.stdout


def test_a_running_job_is_joined_left_and_cancelled(site: Site, archive: str) -> None:
    def state() -> str:
        return str(site.cluster.ask(f"/api/jobs/{submission}")["status"])

    site.store.rules = [Rule("delay", path="list-type=2", seconds=120)]
    first = site.start(*words(archive))
    assert first.stderr is not None
    submission = first.stderr.readline().split()[1]
    second = site.start(*words(archive))
    assert second.stderr is not None
    assert second.stdout is not None
    assert second.stderr.readline() == f"{submission} is running: following it\n"
    while "Running entrypoint" not in second.stdout.readline():
        assert second.poll() is None
    second.send_signal(signal.SIGINT)
    _, told = second.communicate(timeout=30)
    assert second.returncode == 130
    assert f"pneumobatch logs {submission} follows it" in told and "Traceback" not in told
    assert state() == "RUNNING"
    assert site.run("cancel", submission).stdout == f"{submission}: STOPPED\n"
    _, told = first.communicate(timeout=60)
    assert first.returncode == 1
    assert f"failed: {submission} was cancelled" in told
    unknown = site.run("logs", "catalog-0")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: catalog-0: the cluster knows no such job; pneumobatch status lists them\n"


class Relay:
    """Passes connections on, until they are dropped."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._target = (target.hostname, target.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.refusing = False
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            if self.refusing:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # dropped
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def drop(self) -> None:
        self.refusing = True
        for one in self._open:
            with contextlib.suppress(OSError):  # closed before
                one.shutdown(socket.SHUT_RDWR)


def test_a_lost_connection_does_not_lose_the_job(site: Site, archive: str) -> None:
    site.store.rules = [Rule("delay", path="list-type=2", seconds=12)]
    relay = Relay(site.cluster.url)
    relay.refusing = True
    process = site.start(*words(archive), url=relay.url)
    assert process.stderr is not None
    assert process.stdout is not None
    told = process.stderr.readline()
    assert told == f"cluster.address: no job server answers at {relay.url}, trying again in 1 s\n"
    relay.refusing = False
    while not (told := process.stderr.readline()).startswith("submitted"):
        assert "trying again" in told
    submission = told.split()[1]
    lines = [process.stdout.readline()]
    while "Running entrypoint" not in lines[-1]:
        lines.append(process.stdout.readline())
    for _ in range(2):
        relay.drop()
        while not (told := process.stderr.readline()).startswith("connection lost, trying again in 1 s; the job goes"):
            assert told
        relay.refusing = False
        lines.append(process.stdout.readline())
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    whole = site.cluster.ask(f"/api/jobs/{submission}/logs")["logs"]
    assert "".join(lines) + out == whole  # nothing twice, nothing missing


def test_the_token_is_asked_for_and_never_told(site: Site, archive: str, tmp_path: Path) -> None:
    token = site.environment["RAY_AUTH_TOKEN"]
    for wrong in ("", "0" * 64):
        mode = "token" if wrong else "disabled"
        told = site.run("status", RAY_AUTH_TOKEN=wrong, RAY_AUTH_MODE=mode, HOME=str(tmp_path))
        assert told.returncode == 2
        assert "wants a token" in told.stderr and "RAY_AUTH_TOKEN_PATH" in told.stderr
    path = tmp_path / "token"
    path.write_text(token)
    environment = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(path)}
    done = site.run(*words(archive), **environment)
    assert done.returncode == 0, done.stderr
    jobs = str(site.cluster.ask("/api/jobs/"))
    assert token not in done.stdout + done.stderr + jobs
    assert "secret-of-the-tests" not in jobs
