"""What is submitted, under which id, and what is refused: without a cluster, but for what stands in for its server."""

import os
import re
import sys
import threading
import tomllib
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pneumobatch import cli, submit
from pneumobatch.config import Job
from pneumobatch.submit import log, server, submission_id


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
    monkeypatch.setattr(server, "LOST_SECONDS", 0.0)
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
    monkeypatch.setattr(server, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", taken)
    monkeypatch.setattr(log, "follow", lambda client, submission: 0)
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
        log.follow(client, "screen-1")


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
    with ThreadingHTTPServer(("127.0.0.1", 0), _MadeAnew) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{made.server_port}"
        assert cli.run(["logs", "screen-1", "--cluster.address", address]) == 2
        made.shutdown()
    assert f"error: cluster.address: {address} wants a token, and another one" in capsys.readouterr().err


def test_how_long_to_wait_for_workers_travels_and_changes_no_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, str] = {}

    def taken(client: object, verb: str, name: str, folder: str, config: object) -> str:
        told[name] = (Path(folder) / "job.toml").read_text()
        return name

    monkeypatch.setattr(server, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", taken)
    monkeypatch.setattr(log, "follow", lambda client, submission: 0)
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

    monkeypatch.setattr(server, "connect", lambda config: None)
    monkeypatch.setattr(submit, "_submitted", lambda *_: "catalog-1")
    monkeypatch.setattr(log, "follow", forgotten)
    assert cli.run(["submit", "catalog", "--archive.uri", "s3://a/in", "--output.uri", "s3://a/out"]) == 1
    assert "the cluster was restarted and no longer knows the job; submit it again" in capsys.readouterr().err


def test_starting_weights_may_not_lie_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "LOST_SECONDS", 0.0)
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
