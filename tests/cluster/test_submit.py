"""Verbs as jobs of a cluster with a token: ids, exit codes, logs over lost connections, and what travels."""

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

import pneumobatch
from pneumobatch import cli, submit
from pneumobatch.config import Job
from pneumobatch.submit import submission_id
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


def job(**changes: object) -> Job:
    archive = {"uri": "s3://a/in"}
    data = {"archive": archive, "output": {"uri": "s3://a/out"}, "screening": {"bundle": "s3://a/bundle"}}
    return Job.model_validate(data | changes)


def test_the_id_depends_on_what_is_done_and_for_a_night_on_its_date() -> None:
    read = {"archive", "screening", "output"}
    one = submission_id("screen", job(), read)
    assert one == submission_id("screen", job(cluster={"address": "http://other:8265"}, bench={"images": 3}), read)
    assert re.fullmatch(r"screen-[0-9a-f]{12}", one)
    assert one != submission_id("screen", job(cluster={"runtime": "package"}), read)
    others = [
        job(archive={"uri": "s3://b/in"}),
        job(output={"uri": "s3://b/out"}),
        job(screening={"precision": "fp32"}),
    ]
    assert len({one, submission_id("train", job(), read), *(submission_id("screen", j, read) for j in others)}) == 5
    night = submission_id("screen", job(screening={"bundle": "s3://a/bundle", "nightly": True}), read)
    assert re.fullmatch(r"screen-20\d\d-\d\d-\d\d-[0-9a-f]{12}", night)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--archive.uri", "/data/x"], "archive.uri: /data/x is a path of this machine"),
        (["--archive.labels", "file:///data/labels.csv"], "archive.labels: /data/labels.csv is a path of this machine"),
        (["--archive.roots", "s3://a", "/data"], "archive.roots: /data is a path of this machine"),
        (["--output.uri", "out"], "output.uri: "),
        (["--output.uri", "/mnt/out", "--cluster.shared_paths", "/mnt"], "cluster.address: give the address"),
        (["--output.uri", "file:///mnt/out", "--cluster.shared_paths", "/mnt/"], "cluster.address: give the address"),
        (["--output.uri", "/mnt/out", "--cluster.shared_paths", "file:///mnt"], "cluster.address: give the address"),
        (["--output.uri", "/mnt/out", "--cluster.shared_paths", "/"], "cluster.address: give the address"),
        (["--output.uri", "/mnt2/out", "--cluster.shared_paths", "/mnt"], "output.uri: /mnt2/out is a path of this"),
        ([], "cluster.address: give the address of the cluster's job server, such as http://HEAD:8265"),
        (["--cluster.address", "HEAD:6379"], "cluster.address: give the address of the cluster's job server"),
        (["--cluster.address", "http://127.0.0.1:1"], "cluster.address: no job server answers at http://127.0.0.1:1"),
    ],
)
def test_what_cannot_run_there_is_refused_here(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "LOST_SECONDS", 0.0)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    given = dict(zip(flags[::2], flags[1::2], strict=True)) if "--archive.roots" not in flags else {}
    complete = [] if "--archive.uri" in given else ["--archive.uri", "s3://a/in"]
    complete += [] if "--output.uri" in given else ["--output.uri", "s3://a/out"]
    assert cli.run(["submit", "catalog", *complete, *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_default_output_travels_as_the_folder_that_it_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def taken(client: object, verb: str, name: str, folder: str, config: object) -> str:
        told.append((Path(folder) / "job.toml").read_text())
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", taken)
    monkeypatch.setattr(submit, "follow", lambda client, submission: 0)
    words = ["submit", "catalog", "--archive.uri", f"{tmp_path}/in", "--cluster.shared_paths", str(tmp_path)]
    assert cli.run(words) == 0
    assert tomllib.loads(told[0])["output"] == {"uri": f"{tmp_path}/outputs"}


def test_a_night_that_is_not_over_is_followed_by_the_next_one(capsys: pytest.CaptureFixture[str]) -> None:
    night = job(screening={"bundle": "s3://a/bundle", "nightly": True})
    name = submission_id("screen", night, {"archive", "screening", "output"})
    digest = name.rpartition("-")[2]
    known = [(f"screen-2026-01-01-{digest}-2", False), (f"screen-2026-01-02-{'0' * 12}", False), (name, True)]
    jobs = [
        SimpleNamespace(submission_id=one, status=SimpleNamespace(is_terminal=lambda over=over: over))
        for one, over in known
    ]
    client: Any = SimpleNamespace(list_jobs=lambda: jobs)
    followed = submit._submitted(client, "screen", name, ".", night.cluster)
    assert followed == f"screen-2026-01-01-{digest}-2"
    assert capsys.readouterr().err == f"{followed} is running: following it\n"


def test_a_reader_of_the_log_that_goes_away_is_no_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        asked = 0

        def get_job_info(self, _: str) -> object:
            self.asked += 1
            assert self.asked == 1  # and not for ever
            return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: False))

        async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
            yield "a line of the log\n"

    def gone(_: str) -> None:  # as in `pneumobatch logs ID | head`
        raise BrokenPipeError

    client: Any = Client()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=gone, flush=lambda: None))
    with pytest.raises(BrokenPipeError):
        submit.follow(client, "screen-1")


class _MadeAnew(BaseHTTPRequestHandler):
    """A job server whose cluster has another token from the second request on."""

    def do_GET(self) -> None:
        first = self.path == "/api/version"
        self.send_response(200 if first else 403)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.60.0"}' if first else b"Forbidden")

    def log_message(self, *_: object) -> None:
        pass


def test_a_cluster_that_is_made_anew_and_has_another_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):  # which `connect` sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with ThreadingHTTPServer(("127.0.0.1", 0), _MadeAnew) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert cli.run(["logs", "screen-1", "--cluster.address", address]) == 2
        server.shutdown()
    assert f"error: cluster.address: {address} wants a token, and another one" in capsys.readouterr().err


def test_how_long_to_wait_for_workers_travels_and_changes_no_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, str] = {}

    def taken(client: object, verb: str, name: str, folder: str, config: object) -> str:
        told[name] = (Path(folder) / "job.toml").read_text()
        return name

    monkeypatch.setattr(submit, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", taken)
    monkeypatch.setattr(submit, "follow", lambda client, submission: 0)
    words = ["submit", "screen", "--archive.uri", "s3://a/in", "--output.uri", "s3://a/out"]
    words += ["--screening.bundle", "s3://a/bundle", "--cluster.address", "http://HEAD:8265"]
    for minutes in ("30", "120"):
        assert cli.run([*words, "--cluster.patience_minutes", minutes]) == 0
    (sent,) = told.values()
    assert tomllib.loads(sent)["cluster"] == {"patience_minutes": 120.0}


def test_a_cluster_that_forgot_the_job_is_told_from_a_wrong_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forgotten(client: object, submission: str) -> int:
        raise ValueError(f"{submission}: the cluster knows no such job")

    monkeypatch.setattr(submit, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", lambda *_: "catalog-1")
    monkeypatch.setattr(submit, "follow", forgotten)
    assert cli.run(["submit", "catalog", "--archive.uri", "s3://a/in", "--output.uri", "s3://a/out"]) == 1
    assert "the cluster was restarted and no longer knows the job; submit it again" in capsys.readouterr().err


def test_starting_weights_may_not_lie_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "LOST_SECONDS", 0.0)
    places = ["--archive.uri", "s3://a/in", "--output.uri", "s3://a/out", "--cluster.address", "http://127.0.0.1:1"]
    assert cli.run(["submit", "train", *places, "--network.weights", "weights.safetensors"]) == 2
    assert "weights.safetensors is a path of this machine" in capsys.readouterr().err
    assert cli.run(["submit", "train", *places, "--network.weights", "pretrained"]) == 2
    assert "no job server answers" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["submit"], ["submit", "screen"], ["status"], ["logs"], ["cancel"]])
def test_every_verb_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*verb, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"pneumobatch {' '.join(verb)}" in told
    assert "--cluster.address" in told


def test_a_job_servers_address_is_not_an_engines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--cluster.address", "http://HEAD:8265", "--output.uri", str(tmp_path), "--demo.images", "40"]
    assert cli.run(["demo", *flags]) == 2
    assert "pneumobatch submit VERB starts the verb there" in capsys.readouterr().err
