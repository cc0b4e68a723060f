"""Nights on a real object store, by the command line: archive, labels, bundle and output all lie in it."""

import os
import subprocess
import sys
from pathlib import Path

from pneumobatch import storage
from pneumobatch.screening import ledger


def run(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pneumobatch", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | changed, timeout=300, check=False)


def put(folder: Path, uri: str) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def test_nights_from_store_to_store(ceph_s3: str, films: Path, bundle_uri: str, tmp_path: Path) -> None:
    archive, output = f"{ceph_s3}/in", f"{ceph_s3}/out"
    put(films, archive)
    put(Path(bundle_uri), f"{ceph_s3}/bundle")
    job = tmp_path / "nightly.toml"
    job.write_text(
        f'[archive]\nuri = "{archive}"\n[screening]\nbundle = "{ceph_s3}/bundle"\nnightly = true\n'
        f'failure_budget = 0.2\n[evaluation]\nbootstrap = 20\n[output]\nuri = "{output}"\n'
    )
    first = run("screen", str(job))
    assert first.returncode == 0, first.stderr
    (record,) = ledger.published(output)
    files = sum(path.is_file() for path in films.rglob("*"))
    assert record["counts"]["catalogued"] == files
    assert record["counts"]["scored"] > files / 2
    second = run("screen", str(job))
    assert second.returncode == 0, second.stderr
    assert "already published, nothing to do" in second.stderr
    assert "(evaluated before)" in second.stdout
    assert len(ledger.published(output)) == 1
    proof = run("verify", record["run_id"], "--output.uri", output)
    assert proof.returncode == 0, proof.stdout
    assert "WRONG" not in proof.stdout
    assert record["run_id"][:10] in run("runs", str(job)).stdout
    kinds = {file.path.split("/")[0] for file in storage.list_files(output)}
    assert {"predictions", "runs", "catalog", "summaries", "review", "reports"} <= kinds
    assert list(storage.list_files(f"{output}/_staging")) == []


def test_wrong_credentials_end_at_once_and_are_not_told(ceph_s3: str, bundle_uri: str) -> None:
    words = (
        "screen",
        "--archive.uri",
        f"{ceph_s3}/in",
        "--screening.bundle",
        bundle_uri,
        "--output.uri",
        f"{ceph_s3}/out",
    )
    done = run(*words, AWS_SECRET_ACCESS_KEY="a-wrong-secret")
    assert done.returncode in {1, 2}
    assert "the store refused access" in done.stderr
    assert "Traceback" not in done.stderr
    assert "a-wrong-secret" not in done.stderr + done.stdout


def test_an_archive_that_is_not_there_and_an_empty_output(ceph_s3: str) -> None:
    missing = run("catalog", "--archive.uri", f"{ceph_s3}/nothing", "--output.uri", f"{ceph_s3}/out")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: archive.uri")
    empty = run("runs", "--output.uri", f"{ceph_s3}/out")
    assert empty.returncode == 0, empty.stderr
