"""Training end to end on a real local engine: bundle, two workers, a killed driver, a killed worker."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pneumobatch import cluster, lease, storage, tables
from pneumobatch.archive import catalog
from pneumobatch.config import Archive, Job
from pneumobatch.lineage import code_hash
from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware, int8
from pneumobatch.models.weights import load_network
from pneumobatch.screening.pipeline import screen
from pneumobatch.training.fit import fit
from pneumobatch.training.folds import Fold
from pneumobatch.training.shipping import _reference
from pneumobatch.training.splits import labelled, validation_fold
from pneumobatch.training.trainer import train
from tests.training.runs import PLAN, job

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def undisturbed(engine: cluster.Resources, films: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One worker, from the first epoch to the last."""
    return train(job(films, tmp_path_factory.mktemp("undisturbed"))).uri


def damaged(path: Path) -> bytes:
    """Makes a film unreadable for a while, as an outage does: the listing stays the same. Returns what it was."""
    data = path.read_bytes()
    path.write_bytes(b"x" * len(data))
    return data


def test_a_start_that_was_taken_over_leaves_the_run_and_the_next_pairs_its_scores_with_their_films(
    engine: cluster.Resources, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, output = tmp_path / "films", tmp_path / "output"
    shutil.copytree(films, archive)
    listed = catalog.find_duplicates(labelled(catalog.build(Archive(uri=str(archive))), str(archive)), 10**9)
    known = listed.filter(listed["duplicate_of"].is_null())
    fold = validation_fold(known["label"].to_pylist(), known["patient"].to_pylist(), 0.3, 0)
    held = known.filter(pa.array(fold)).to_pylist()
    intact = [film for film in held if not re.search(r"(IM-|person)900\d", film["uri"])]
    alone = [film for film in intact if film["image_id"] not in listed["duplicate_of"].to_pylist()]
    well, sick = (next(Path(film["uri"]) for film in alone if film["label"] == label) for label in (0, 1))

    def overtaken(*given: Any) -> Any:
        found = fit(*given)
        holder = {"pid": 1, "host": "elsewhere", "since": "then", "space": "", "beat": "", "released": True}
        storage.write_bytes(str(output / "_leases" / "train-run" / "00000002.json"), json.dumps(holder).encode())
        return found

    monkeypatch.setattr("pneumobatch.training.trainer.fit", overtaken)
    whole = damaged(sick)
    with pytest.raises(lease.HeldError, match="process 1 on elsewhere since then has taken its run over"):
        train(job(archive, output, **{"training.epochs": 2}))
    assert not (output / "bundles").exists() and (output / "_staging" / "_trainings" / "run").exists()
    monkeypatch.undo()
    started = (output / "_staging" / "_trainings" / "run" / "started_at").read_text()
    sick.write_bytes(whole)
    damaged(well)
    fitted = {"training.target": "balanced", "training.uncertain": (0.9, 0.9), "training.validated_age_years": (0, 90)}
    with pytest.raises(ValueError, match="an unfinished run of another configuration"):
        train(job(archive, output, **{"training.epochs": 2, "archive.max_pixels": 10**7}))
    trained = train(job(archive, output, **{"training.epochs": 2, **fitted}))
    assert trained.bundle.target == "balanced sensitivity and specificity"  # fitted on what was trained before
    assert trained.bundle.training["started_at"] == started
    history = pq.read_table(Path(trained.uri) / "history.parquet").to_pylist()
    assert trained.bundle.metrics["auroc"] == pytest.approx(history[trained.bundle.metrics["epoch"] - 1]["auroc"])
    data, labels = trained.bundle.data, [film["label"] for film in intact]
    assert (data["validation_sick"], data["validation_well"]) == (labels.count(1) - 1, labels.count(0))
    assert not (output / "_staging" / "_trainings" / "run").exists()
    with pytest.raises(ValueError, match="a bundle of another configuration"):
        train(job(archive, output, **{"training.epochs": 2}))


def test_the_bundle_holds_what_was_trained(undisturbed: str, films: Path) -> None:
    bundle = bundles.load(undisturbed)
    assert set(bundle.ranges) == set(int8.convolutions(load_network(undisturbed, bundle)))
    history = pq.read_table(Path(undisturbed) / "history.parquet")
    assert history["epoch"].to_pylist() == [1, 2, 3, 4]
    wanted = {"train_loss", "validation_loss", "accuracy", "sensitivity", "specificity", "auroc", "learning_rate"}
    assert wanted | {"images_per_second"} <= set(history.column_names)
    assert bundle.data["train"] + bundle.data["validation"] + bundle.data["left_out"] == sum(
        1 for path in films.rglob("*") if path.is_file()
    )
    assert bundle.data["left_out"] >= 8  # planted defects and copies
    assert bundle.metrics["sensitivity"] >= 0.95  # the threshold's target, on the fold it was fitted on
    assert bundle.uncertain is not None and bundle.uncertain[0] <= bundle.threshold <= bundle.uncertain[1]
    card = (Path(undisturbed) / "CARD.md").read_text()
    assert f"from {bundle.uncertain[0]:.4f} to {bundle.uncertain[1]:.4f}" in card
    assert "Research use only" in card
    assert bundle.model_id in card
    lineage = bundle.training
    assert lineage["code"] == code_hash() and f"code {code_hash()[:12]}" in card
    assert re.fullmatch(r"1 × 2 CPU \(.+\), fp32", lineage["hardware"]) and lineage["hardware"] in card
    began, ended = (datetime.fromisoformat(lineage[name]) for name in ("started_at", "ended_at"))
    assert began.tzinfo and 0 <= (ended - began).total_seconds() <= lineage["seconds"] + 2


def test_the_bundle_describes_its_validation_films_for_drift(undisturbed: str) -> None:
    bundle = bundles.load(undisturbed)
    path = Path(undisturbed) / "reference.parquet"
    assert bundle.reference_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    reference = pq.read_table(path)
    assert reference.schema.equals(tables.reference_schema(), check_metadata=True)
    scored = reference.filter(pc.equal(reference["status"], "scored"))
    assert len(scored) == bundle.data["validation"]
    called = pc.sum(pc.greater_equal(scored["probability"], bundle.threshold)).as_py()
    assert called >= bundle.metrics["sensitivity"] * bundle.data["validation_sick"] - 1e-9
    for name in tables.STATISTICS:
        assert scored[name].null_count == 0
    assert reference["probability"].null_count == len(reference) - len(scored)


def test_a_reference_keeps_so_many_films_in_an_order_that_tells_nothing_of_their_places() -> None:
    count = tables.REFERENCE_ROWS + 500
    status = ["scored" if i % 3 else "rejected" for i in range(count)]
    widths_of = np.random.default_rng(0).permutation(count)
    films = tables.upgraded(pa.table({"status": status, "width": widths_of}), tables.reference_schema())
    films = films.drop_columns(["probability"]).append_column("label", pa.array([i % 2 for i in range(count)]))
    fold = Fold([], films)
    probabilities = np.arange(count)[[s == "scored" for s in status]] / count
    reference = _reference(fold, probabilities, seed=0)
    assert len(reference) == tables.REFERENCE_ROWS and reference.schema == tables.reference_schema()
    widths, scores = reference["width"].to_numpy(), reference["probability"].to_pylist()
    assert len(set(widths.tolist())) == len(widths)
    place = np.argsort(widths_of)
    for width, score in zip(widths.tolist(), scores, strict=True):
        assert score == (place[width] / count if place[width] % 3 else None)
    known = [score for score in scores if score is not None]
    assert scores[: len(known)] == sorted(known)
    assert (np.diff(widths[len(known) :]) > 0).all()  # those without a score stand by what they are
    assert fold.unreadable == status.count("rejected") and len(fold.labels) == status.count("scored")


def first_epoch(staging: Path) -> dict[str, float] | None:
    """The first row of an unfinished run's history, once a checkpoint holds it; it tells by the clock when it was
    made."""
    history = staging / "history.json"
    if not history.exists() or not (staging / "train" / "run" / "checkpoint_manager_snapshot.json").exists():
        return None
    row: dict[str, float] = json.loads(history.read_bytes())[0]
    return row


def _weights(uri: str) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(Path(uri) / "model.safetensors")


@pytest.mark.parametrize("end", ["killed", "interrupted"])
def test_a_training_that_was_ended_goes_on_and_reaches_the_same_weights(
    films: Path, tmp_path: Path, undisturbed: str, end: str
) -> None:
    command = [sys.executable, "-m", "pneumobatch", "train", "--archive.uri", str(films), "--output.uri", str(tmp_path)]
    command += [word for key, value in PLAN.items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not (before := first_epoch(tmp_path / "_staging" / "_trainings" / "run")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if end == "killed":
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    else:
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in words  # and not 0, as Ray would have it
    assert not (tmp_path / "bundles").exists()
    resumed = train(job(films, tmp_path))
    history = pq.read_table(Path(resumed.uri) / "history.parquet")
    assert history["epoch"].to_pylist() == [1, 2, 3, 4]
    assert history.to_pylist()[0] == before  # it went on, and did not start over
    expected, found = _weights(undisturbed), _weights(resumed.uri)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert resumed.bundle.threshold == pytest.approx(bundles.load(undisturbed).threshold, abs=1e-4)


def test_two_workers_survive_the_death_of_one(engine: cluster.Resources, films: Path, tmp_path: Path) -> None:
    import threading

    killed: list[int] = []
    before: list[dict[str, float]] = []

    def kill_one_worker() -> None:
        while not (row := first_epoch(tmp_path / "_staging" / "_trainings" / "run")):
            time.sleep(0.05)
        before.append(row)
        ours = {child.pid for child in psutil.Process().children(recursive=True)}
        found = psutil.process_iter(["cmdline"])  # which passes over what ends meanwhile
        workers = [p for p in found if p.pid in ours and "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
        if workers:
            killed.append(workers[0].pid)
            workers[0].kill()

    thread = threading.Thread(target=kill_one_worker, daemon=True)
    thread.start()
    trained = train(job(films, tmp_path, **{"training.workers": 2, "training.epochs": 6}))
    thread.join(timeout=5)
    assert killed
    history = pq.read_table(Path(trained.uri) / "history.parquet")
    assert history["epoch"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert history.to_pylist()[:1] == before  # it went on, and did not start over


def test_what_was_trained_screens_in_int8_by_its_own_ranges(undisturbed: str, films: Path, tmp_path: Path) -> None:
    if not hardware.computes_int8():
        pytest.skip("this CPU has neither VNNI nor AMX")
    scored = {}
    for precision in ("fp32", "int8"):
        screening = {"bundle": undisturbed, "precision": precision, "failure_budget": 0.5}
        output = tmp_path / precision
        given = {"archive": {"uri": str(films)}, "screening": screening, "output": {"uri": str(output)}}
        record = screen(Job.model_validate(given))
        assert record["plan"]["precision"] == precision
        rows = pa.concat_tables([storage.read_table(str(output / path)) for path in record["predictions"]])
        scored[precision] = rows.filter(pc.is_valid(rows["probability"])).sort_by("image_id")
    exact, rough = (scored[precision]["probability"].to_numpy() for precision in ("fp32", "int8"))
    assert scored["fp32"]["image_id"].equals(scored["int8"]["image_id"]) and len(exact) > 30
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_a_finished_training_does_nothing_and_another_configuration_is_refused(
    undisturbed: str, films: Path, tmp_path: Path
) -> None:
    output = Path(undisturbed).parents[1]
    before = (Path(undisturbed) / "bundle.json").stat().st_mtime_ns
    left = output / "_staging" / "_trainings" / "run" / "train" / "checkpoint"  # of a kill before it was deleted
    left.parent.mkdir(parents=True)
    left.touch()
    train(job(films, output))
    assert not (output / "_staging" / "_trainings" / "run").exists()
    assert (Path(undisturbed) / "bundle.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another configuration; choose another run_id"):
        train(job(films, output, **{"training.epochs": 5}))


def test_a_shifted_validation_tells_both_of_its_results(engine: cluster.Resources, films: Path, tmp_path: Path) -> None:
    changes = {"training.validation": "shifted", "training.epochs": 1, "training.target": "balanced"}
    trained = train(job(films, tmp_path, **changes))
    found, card = trained.bundle.metrics, (Path(trained.uri) / "CARD.md").read_text()
    assert found["shifted_sensitivity"] + found["shifted_specificity"] > 0
    assert f"AUROC {found['auroc']:.4f}" in card and f"AUROC {found['shifted_auroc']:.4f}" in card
    assert "lowest numbers" in card
    reference = pq.read_table(Path(trained.uri) / "reference.parquet")  # drift: films as they are
    assert pc.sum(pc.equal(reference["status"], "scored")).as_py() == trained.bundle.data["validation"]
