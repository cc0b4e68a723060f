"""The command line: exit codes, messages, precedence, and its start-up time's cause."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pneumobatch import cli
from pneumobatch.config import read_job


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from pneumobatch import cli; cli.run(['train', '--help']);"
        "print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--training.epochs" in done.stdout
    assert "range: >= 1" in " ".join(done.stdout.split())


def test_a_night_starts_without_torch() -> None:
    # Its scorers import it, while the driver would only wait some seconds for it.
    code = (
        "import sys, pneumobatch.screening.nightly, pneumobatch.bench.pipeline;"
        "print([name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("verb", ["catalog", "train", "screen", "evaluate", "demo", "bench", "doctor"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert f"pneumobatch {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--network.nam", "x"], "Did you mean --network.name?"),
        (["train", "--training.epochs", "0"], "training.epochs: Input should be greater than or equal to 1 (got '0')"),
        (["trian"], 'Did you mean "train"?'),
        (["screen"], "screening.bundle is missing"),
        (["catalog"], "archive.uri is missing"),
        (["catalog", "--archive.uri", "/nowhere/at/all"], "archive.uri: /nowhere/at/all does not exist"),
        (["screen", "--screening.bundle", "/nowhere", "--archive.uri", "/"], "/nowhere holds no bundle.json"),
        (["catalog", "--archive.uri", "~nobody-of-this-name/x"], "archive.uri: Value error, begins with the home of"),
        (["train", "/nowhere.toml"], "/nowhere.toml: no such job file"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_remedy(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_password_is_refused_and_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[cluster]\naddress = "http://me:hunter2@head:8265"\n')
    for arguments in (["catalog", "--archive.uri", "sftp://me:hunter2@host/films"], ["catalog", str(job)]):
        assert cli.run(arguments) == 2
        error = capsys.readouterr().err
        assert "holds a password" in error and "hunter2" not in error
        assert "archive.uri: " in error or "cluster.address: " in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainin]\nepochs = 1\n", "unknown key trainin; did you mean training?"),
        ("[training]\nepoch = 1\n", "unknown key training.epoch; did you mean training.epochs?"),
        ("[screening.gate]\nview = []\n", "unknown key screening.gate.view; did you mean screening.gate.views?"),
        ("training = 1\n", "training is a section"),
        ("[training]\nepochs = 0\n", "training.epochs: Input should be greater than or equal to 1 (got 0)"),
    ],
)
def test_a_wrong_job_file_is_named_with_the_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    assert cli.run(["screen", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_catalog_writes_one_row_an_image_and_flags_win_over_the_file(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: dict[str, int]
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f"[archive]\nuri = {json.dumps(str(films))}\n[output]\nuri = '/nowhere/writable'\n[bench]\nimages = 3\n"
    )
    # The job file counts wherever it stands.
    assert cli.run(["catalog", "--output.uri", str(tmp_path), str(job)]) == 0
    table = pq.read_table(tmp_path / "catalog" / "catalog.parquet")
    assert len(table) == sum(1 for path in films.rglob("*") if path.is_file())
    assert len(set(table["image_id"].to_pylist())) == len(table)
    assert len(table) - table["duplicate_of"].null_count >= planted["duplicate"]
    assert table["uri"].null_count == len(table)  # there are DICOM files: no path leaves unless asked for
    switch = ["--output.keep_source_uri", "true"]
    assert cli.run(["catalog", str(job), "--output.uri", str(tmp_path), *switch]) == 0
    assert pq.read_table(tmp_path / "catalog" / "catalog.parquet")["uri"].null_count == 0
    assert "byte-identical" in capsys.readouterr().out
    for name in "ab":
        (tmp_path / "large" / f"{name}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "large" / f"{name}.png").write_bytes(bytes(2000))
    large = ["catalog", "--archive.uri", str(tmp_path / "large"), "--output.uri", str(tmp_path), "--archive.max_bytes"]
    for limit, copies in (("1999", 0), ("2000", 1)):  # what is too large is not read
        assert cli.run([*large, limit]) == 0
        assert f"{copies} byte-identical" in capsys.readouterr().out


def test_a_job_file_is_not_taken_for_a_list_s_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["catalog", "--archive.uri", str(tmp_path), "--archive.exclude", "*.dcm", "job.toml"]) == 2
    assert "job.toml: is taken for a value of the flag before it; name the job file right" in capsys.readouterr().err


def test_paths_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").write_bytes(b"1")
    for name in ("[site]", "x[", "a :smile: b"):
        output = f"{tmp_path}/{name}/]"
        assert cli.run(["catalog", "--archive.uri", str(tmp_path / "films"), "--output.uri", output]) == 0
        assert f"catalogue  {output}/catalog/catalog.parquet\n" in capsys.readouterr().out


def test_a_site_key_of_raw_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    monkeypatch.setenv("PNEUMOBATCH_SITE_KEY", "\udcff\udcfe")
    assert cli.run(["catalog", "--archive.uri", str(tmp_path), "--output.uri", str(tmp_path / "out")]) == 2
    assert "PNEUMOBATCH_SITE_KEY: holds bytes that are no text" in capsys.readouterr().err


def test_a_job_file_of_windows_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf[training]\nepochs = 3\n")
    assert read_job(tmp_path / "job.toml") == {"training": {"epochs": 3}}
    with pytest.raises(ValueError, match=r"job\.toml/x: the job file cannot be read: Not a directory"):
        read_job(tmp_path / "job.toml" / "x")
