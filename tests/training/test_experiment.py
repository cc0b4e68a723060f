"""The verb `experiment` on a real local engine: a failing row, a killed driver, a grid that grows, early stopping."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pneumobatch import cli, cluster, lease
from pneumobatch.evaluation import comparison
from pneumobatch.lineage import code_hash

pytestmark = pytest.mark.engine

COMMON = """
[network]
image_size = 32
[training]
epochs = 3
batch_size = 8
precision = "fp32"
max_failures = 0
validation_fraction = 0.3
failure_budget = 0.15
target = "balanced"
[evaluation]
bootstrap = 50
[cluster]
num_cpus = 2
[experiment]
name = "trial"
protocols = ["official", "paper_like"]
held_out = 5
baseline = "plain"
"""
ROWS = {
    "plain": '{ name = "resnet18" }',
    "too small": '{ name = "timm/inception_resnet_v2" }',
    "attention": '{ name = "attention_resnet18" }',
}


def job_file(folder: Path, *rows: str, more: str = "") -> Path:
    levels = [f'[[factors.network]]\nname = "{row}"\nnetwork = {ROWS[row]}\n' for row in rows]
    path = folder / "job.toml"
    path.write_text(COMMON + more + "\n".join(levels), encoding="utf-8")
    return path


def command(job: Path, films: Path, output: Path) -> list[str]:
    return ["experiment", str(job), "--archive.uri", str(films), "--output.uri", str(output)]


def results(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "experiments" / "trial" / "results.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def undisturbed(engine: cluster.Resources, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with a row that fails in its first step."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert cli.run(command(job_file(output, "plain", "too small"), films, output)) == 1
    return output


def test_of_two_starts_at_once_one_works(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lease.hold(str(tmp_path), "experiment-trial"):
        assert cli.run(command(job_file(tmp_path, "plain"), films, tmp_path)) == 1
    assert "failed: experiment-trial is held by process" in capsys.readouterr().err


def test_a_start_that_was_taken_over_writes_and_deletes_nothing(
    undisturbed: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed / "experiments" / "trial" / "trials", tmp_path / "experiments" / "trial" / "trials")
    compare = comparison.compare

    def overtaken(*given: Any) -> Any:
        holder = {"pid": 1, "host": "elsewhere", "since": "then", "space": "", "beat": "", "released": True}
        later = tmp_path / "_leases" / "experiment-trial" / "00000002.json"
        later.write_text(json.dumps(holder), encoding="utf-8")
        return compare(*given)

    monkeypatch.setattr(comparison, "compare", overtaken)
    assert cli.run(command(job_file(tmp_path, "plain"), films, tmp_path)) == 1
    assert "process 1 on elsewhere since then has taken its run over" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "experiments" / "trial").iterdir()] == ["trials"]


def test_a_row_that_fails_loses_nothing_of_the_others_and_one_that_cannot_run_says_why(undisturbed: Path) -> None:
    found = {(row["row"], row["protocol"]): row for row in results(undisturbed)}
    assert found["plain", "paper_like"]["status"] == "done"
    plain = found["plain", "paper_like"]
    assert 4 <= plain["test_films"] <= 10 and plain["unreadable"] >= 10 - plain["test_films"]
    assert found["plain", "paper_like"]["hardware"].startswith("1 CPU")
    assert found["plain", "paper_like"]["code"] == code_hash()[:12]
    assert found["too small", "paper_like"]["status"] == "failed"
    assert "Kernel size" in found["too small", "paper_like"]["reason"]
    assert found["plain", "official"]["status"] == "not_run"
    assert "experiment.test is not set" in found["plain", "official"]["reason"]
    home = undisturbed / "experiments" / "trial"
    (trial,) = [json.loads(path.read_bytes()) for path in (home / "trials").iterdir()]
    assert (trial["code"], trial["torch"], trial["max_pixels"]) == (code_hash(), version("torch"), 100_000_000)
    assert len(pq.read_table(home / "predictions.parquet")) == plain["test_films"]
    assert "too small" in (home / "index.html").read_text(encoding="utf-8")


def test_scores_that_no_threshold_fits_fail_that_row_alone(
    undisturbed: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "experiments" / "trial"
    shutil.copytree(undisturbed / "experiments" / "trial", home)
    (trial,) = (home / "trials").iterdir()
    left = json.loads(trial.read_bytes())
    # One normal film scores so high that its probability is 1.
    left["validation_margins"] = [100.0 if label else -100.0 for label in left["validation_labels"]]
    left["validation_margins"][left["validation_labels"].index(0)] = 1e6
    trial.write_text(json.dumps(left))
    words = command(job_file(tmp_path, "plain"), films, tmp_path)
    assert cli.run([*words, "--training.target", "specificity", "--training.target_value", "1"]) == 1
    (found,) = [row for row in results(tmp_path) if row["protocol"] == "paper_like"]
    assert found["status"] == "failed" and "no threshold reaches specificity 1" in found["reason"]
    assert "lower target_value, or choose target balanced" in (home / "index.html").read_text(encoding="utf-8")
    assert cli.run(words) == 0  # for another target the same scores do


def test_a_killed_experiment_goes_on_in_mid_trial_and_a_grown_grid_trains_only_what_is_new(
    undisturbed: Path, engine: cluster.Resources, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(job_file(tmp_path, "plain"), films, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "pneumobatch", *words], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    states, deadline = tmp_path / "_staging" / "_experiments" / "trial", time.monotonic() + 150
    while not any(states.glob("*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "experiments").exists()
    (checkpoint,) = states.glob("*/checkpoint.pt")
    before_kill = torch.load(checkpoint, weights_only=True)["history"]  # it tells by the clock when it was made
    assert cli.run(command(job_file(tmp_path, "plain", "attention"), films, tmp_path)) == 0
    trial = tmp_path / "experiments" / "trial" / "trials" / f"{checkpoint.parent.name}.json"
    assert json.loads(trial.read_bytes())["history"][: len(before_kill)] == before_kill != []  # it did not start over
    expected = pq.read_table(undisturbed / "experiments" / "trial" / "predictions.parquet")
    found = pq.read_table(tmp_path / "experiments" / "trial" / "predictions.parquet")
    plain = found.filter(pc.equal(found["row"], "plain"))
    assert plain["image_id"].equals(expected["image_id"])
    assert plain["probability"].to_pylist() == pytest.approx(expected["probability"].to_pylist(), abs=1e-3)
    assert not any(states.iterdir())
    attention = next(row for row in results(tmp_path) if row["row"] == "attention" and row["status"] == "done")
    assert attention["only_row"] is not None and attention["delong_p"] is not None
    capsys.readouterr()
    before = sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "experiments" / "trial" / "trials").iterdir()
    )
    assert len(before) == 2
    leftover = states / before[0][0].stem / "checkpoint.pt"
    leftover.parent.mkdir()
    leftover.touch()
    assert cli.run(command(job_file(tmp_path, "attention", "plain"), films, tmp_path)) == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in before[0][0].parent.iterdir())
    assert "2 of 2 trials were finished before" in capsys.readouterr().err
    assert not any(states.iterdir())


def test_early_stopping_ends_trials_that_others_surpassed(
    engine: cluster.Resources, films: Path, tmp_path: Path
) -> None:
    job = job_file(tmp_path, "plain", more="early_stopping = true\nconcurrent = 1\nseeds = [0, 1, 2, 3]\n")
    short = '[[factors.network]]\nname = "short"\nnetwork = { name = "resnet18" }\ntraining = { epochs = 1 }\n'
    text = job.read_text(encoding="utf-8").replace('baseline = "plain"', 'baseline = "short"')
    job.write_text(text + short, encoding="utf-8")
    words = [*command(job, films, tmp_path), "--training.epochs", "4"]
    assert cli.run(words) == 0
    tried = [row for row in results(tmp_path) if row["protocol"] == "paper_like" and row["seed"] is not None]
    assert [row["status"] for row in tried if row["row"] == "short"] == ["done"] * 4  # the baseline is spared
    found = [row for row in tried if row["row"] == "plain"]
    trials = tmp_path / "experiments" / "trial" / "trials"
    left = [json.loads(path.read_bytes()) for path in trials.iterdir()]
    stopped = [row for row in found if row["status"] == "stopped"]
    assert len(found) == 4 and 1 <= len(stopped) == sum("stopped" in content for content in left)
    histories = [content["history"] for content in left]
    for row in stopped:
        told = re.fullmatch(r"after epoch ([13]) of 4, validation AUROC (\d\.\d+)", row["reason"])
        assert told is not None, row["reason"]
        epoch = int(told[1])
        assert float(told[2]) < max(history[epoch - 1]["auroc"] for history in histories if len(history) >= epoch)
        assert any(
            content["history"][-1]["epoch"] == epoch for content in left if row["reason"] in content.get("stopped", "")
        )
        assert row["auroc"] is None  # never tested
    before = sorted((path, path.stat().st_mtime_ns) for path in trials.iterdir())
    assert cli.run(words) == 0  # it stays so
    assert before == sorted((path, path.stat().st_mtime_ns) for path in trials.iterdir())
    assert not any((tmp_path / "_staging" / "_experiments" / "trial").iterdir())
    job_file(tmp_path, "plain", more="concurrent = 1\nseeds = [0, 1, 2, 3]\n")
    assert cli.run(words) == 0  # for those who stop none they are still to be run
    whole = [row["status"] for row in results(tmp_path) if row["protocol"] == "paper_like" and row["seed"] is not None]
    assert whole == ["done"] * 4


def test_early_stopping_refuses_validation_scores_of_different_films(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_file(tmp_path, "plain", "attention", more="early_stopping = true\n")
    job.write_text(job.read_text(encoding="utf-8") + 'training = { validation = "shifted" }\n', encoding="utf-8")
    assert cli.run(command(job, films, tmp_path)) == 2
    assert "rows that differ in training.validation take from different films" in capsys.readouterr().err


def test_what_hours_do_not_suffice_for_is_not_run_and_goes_on_later(
    engine: cluster.Resources, films: Path, tmp_path: Path, undisturbed: Path
) -> None:
    words = command(job_file(tmp_path, "plain"), films, tmp_path)
    assert cli.run([*words, "--experiment.hours", "0.0001"]) == 0
    (left,) = [row for row in results(tmp_path) if row["protocol"] == "paper_like"]
    assert left["status"] == "not_run"
    assert "start the experiment again to go on" in left["reason"]
    assert cli.run(words) == 0
    (done,) = [row for row in results(tmp_path) if row["protocol"] == "paper_like"]
    expected = next(row for row in results(undisturbed) if row["status"] == "done")
    assert done["status"] == "done"
    assert done["auroc"] == pytest.approx(expected["auroc"], abs=1e-3)


def test_an_experiment_on_what_an_outage_has_left_is_refused(
    engine: cluster.Resources, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(job_file(tmp_path, "plain"), films, tmp_path)
    assert cli.run([*words, "--training.failure_budget", "0.05"]) == 2
    assert "5 failed" in capsys.readouterr().err


def test_a_class_that_no_film_is_left_of_is_refused_before_it_trains(
    engine: cluster.Resources, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(films / "NORMAL", tmp_path / "films" / "NORMAL")
    (tmp_path / "films" / "PNEUMONIA").mkdir()
    for number in range(40):
        (tmp_path / "films" / "PNEUMONIA" / f"{number}.png").write_bytes(b"no film %d" % number)
    assert cli.run(command(job_file(tmp_path, "plain"), tmp_path / "films", tmp_path)) == 2
    assert "too few readable films of a class" in capsys.readouterr().err
