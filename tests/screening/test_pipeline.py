"""Screening end to end on a real local engine: one row an image, resume, reconcile, publish."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pneumobatch import cluster, storage, tables
from pneumobatch.archive import catalog, phantoms
from pneumobatch.config import Cluster, Job
from pneumobatch.identity import SITE_KEY
from pneumobatch.models import bundle as bundles
from pneumobatch.screening import pipeline
from pneumobatch.screening.pipeline import screen
from pneumobatch.screening.scorer import Plan, Scorer

pytestmark = pytest.mark.engine
Make = Callable[..., bundles.Bundle]


def job(archive: Path, bundle: str, output: Path, **screening: Any) -> Job:
    return Job.model_validate(
        {
            "archive": {"uri": str(archive)},
            "screening": {"bundle": bundle, "run_id": "run", "block_images": 16, "failure_budget": 0.5, **screening},
            "output": {"uri": str(output)},
        }
    )


def published(output: Path, record: dict[str, Any]) -> pa.Table:
    return pa.concat_tables([storage.read_table(str(output / path)) for path in record["predictions"]])


def test_every_catalogued_image_ends_as_one_row(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path, planted: dict[str, int]
) -> None:
    record = screen(job(films, bundle_uri, tmp_path))
    table = published(tmp_path, record)
    files = [path for path in films.rglob("*") if path.is_file()]
    assert len(table) == len(files) == record["counts"]["catalogued"]
    assert sum(record["counts"][status.value] for status in tables.Status) == len(files)
    assert table.schema.equals(tables.prediction_schema(["etiology"]), check_metadata=True)
    reasons = Counter(table["reason"].to_pylist())
    for reason in ("empty", "truncated", "html_page", "not_an_image", "wrong_extension", "body_part", "view"):
        assert reasons[reason] == planted[reason], reason
    assert reasons["byte_identical"] == planted["duplicate"]
    for row in table.to_pylist():
        assert (row["probability"] is not None) == (row["status"] == "scored")
        assert (row["predicted_label"] is not None) == (row["status"] == "scored")
        assert (row["reason"] is None) == (row["status"] == "scored")
        assert row["uri"] is None  # the archive holds DICOM files
    assert not (tmp_path / "_staging").exists() or not list((tmp_path / "_staging").iterdir())
    query = f"SELECT count(*) FROM '{tmp_path}/predictions/**/*.parquet' WHERE label = 1"
    assert duckdb.execute(query).fetchall() == [(table["label"].to_pylist().count(1),)]


def test_a_finished_run_does_nothing_and_another_model_may_not_take_its_name(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path, make_bundle: Make
) -> None:
    record = screen(job(films, bundle_uri, tmp_path))
    path = tmp_path / record["predictions"][0]
    before = path.stat().st_mtime_ns
    assert screen(job(films, bundle_uri, tmp_path)) == record
    assert path.stat().st_mtime_ns == before
    make_bundle(str(tmp_path / "other"), seed=5)
    with pytest.raises(ValueError, match="run was started with another model_id"):
        screen(job(films, str(tmp_path / "other"), tmp_path))
    with pytest.raises(ValueError, match="another configuration"):
        screen(job(films, bundle_uri, tmp_path, batch_size=7))


def test_a_run_is_taken_up_with_its_model_wherever_that_lies_by_now(
    engine: cluster.Resources, films: Path, tmp_path: Path, make_bundle: Make
) -> None:
    place, moved = tmp_path / "bundle", tmp_path / "moved"
    make_bundle(str(place), seed=1)
    undisturbed = screen(job(films, str(place), tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="images failed"):
        screen(job(films, str(place), tmp_path, failure_budget=0.0))
    for part in (tmp_path / "_staging" / "run" / "parts").iterdir():  # all is to be scored again
        part.unlink()
    place.rename(moved)
    make_bundle(str(place), seed=2)
    record = screen(job(films, str(moved), tmp_path))
    assert record["images_this_start"] == record["counts"]["catalogued"]
    scores = [published(*run)["probability"] for run in ((tmp_path, record), (tmp_path / "whole", undisturbed))]
    assert scores[0].equals(scores[1])
    with pytest.raises(ValueError, match=f"holds {bundles.load(str(place)).model_id} by now, and the run is one of"):
        Scorer(Plan(str(place), record["model_id"], 8, "fp32", False, "cpu", 1))


def test_paths_stay_where_all_are_pictures_and_leave_none_beside_dicom(
    engine: cluster.Resources, shared: Path, bundle_uri: str, tmp_path: Path
) -> None:
    archive = tmp_path / "in" / "DOE_JANE"
    archive.mkdir(parents=True)
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(archive / "blank.png")
    (archive / "empty.png").write_bytes(b"")
    (archive / "page.png").write_bytes(b"<html></html>")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,sex\nDOE_JANE/blank.png,0,F\n")
    known = job(tmp_path / "in", bundle_uri, tmp_path, failures_allowed=3)
    known = known.model_copy(update={"archive": known.archive.model_copy(update={"labels": str(labels)})})
    rows = {row["reason"]: row for row in published(tmp_path, screen(known)).to_pylist()}
    assert {reason: row["format"] for reason, row in rows.items()} == {
        "blank": "png", "empty": None, "html_page": None
    }  # fmt: skip
    assert all(row["uri"] for row in rows.values())
    assert rows["blank"]["sex"] == "F"  # the table's, where the film states none
    shutil.copy(shared / "dicom" / "nema-cr-hip-j2k.dcm", archive / "IM0001")  # rejected, and named by nothing
    beside = job(tmp_path / "in", bundle_uri, tmp_path, failures_allowed=3, run_id="beside")
    table = published(tmp_path, screen(beside))
    assert {"body_part", "blank"} <= set(table["reason"].to_pylist())
    assert table["uri"].null_count == len(table) == 4


def test_the_failure_budget_fails_the_run_and_keeps_what_was_scored(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"images failed \(.*empty 1.*failure_budget = 1%"):
        screen(job(films, bundle_uri, tmp_path, failure_budget=0.01))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "predictions").exists()
    record = screen(job(films, bundle_uri, tmp_path))
    assert record["images_this_start"] == 0


def test_nothing_readable_fails(engine: cluster.Resources, bundle_uri: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(RuntimeError, match="1 of 1 images failed"):
        screen(job(tmp_path / "in", bundle_uri, tmp_path, failure_budget=1.0))


def test_a_film_that_vanishes_between_two_starts_is_missing(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path
) -> None:
    archive = tmp_path / "in"
    shutil.copytree(films, archive)
    with pytest.raises(RuntimeError):
        screen(job(archive, bundle_uri, tmp_path, failure_budget=0.0))
    gone = next((archive / "NORMAL").glob("*.jpeg"))
    for part in (tmp_path / "_staging" / "run" / "parts").iterdir():
        part.unlink()
    gone.unlink()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(archive / "new.png")
    table = published(tmp_path, screen(job(archive, bundle_uri, tmp_path)))
    assert Counter(table["reason"].to_pylist())["missing"] == 1
    assert len(table) == sum(1 for path in films.rglob("*") if path.is_file())  # what came later waits for the next run


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 small films, each with its own bytes."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    base = [(phantoms.film(rng, label, 96, 96) >> 8).astype(np.uint8) for label in (0, 1) for _ in range(10)]
    for index in range(1500):
        film = Image.fromarray(base[index % len(base)])
        film.putpixel((0, 0), index % 256)
        film.putpixel((1, 0), index // 256)
        film.save(folder / f"{index:05d}.png", compress_level=1)
    return folder


def test_killed_and_started_again_every_image_is_there_once(
    many: Path, tmp_path: Path, make_bundle: Make, engine: cluster.Resources
) -> None:
    uri = str(tmp_path / "bundle")
    make_bundle(uri, size=96)
    output = tmp_path / "killed"
    flags = {"archive.uri": many, "screening.bundle": uri, "screening.run_id": "run", "output.uri": output}
    command = [sys.executable, "-m", "pneumobatch", "screen", "--screening.block_images", "16"]
    command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    parts = output / "_staging" / "run" / "parts"
    deadline = time.monotonic() + 120
    while not (parts.is_dir() and any(parts.glob("*.parquet"))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # the driver and its engine, in the middle
    process.wait()
    assert not (output / "runs").exists()
    staged = sum(len(pq.read_table(part)) for part in parts.glob("*.parquet"))
    assert 0 < staged < 1500
    # What a killed writer may leave is not taken for a part.
    (parts / ".half.parquet.1234").write_bytes(b"PAR1")
    resumed = screen(job(many, uri, output))
    assert resumed["images_this_start"] == 1500 - staged
    table = published(output, resumed)
    assert len(set(table["image_id"].to_pylist())) == len(table) == 1500
    undisturbed = published(tmp_path / "whole", screen(job(many, uri, tmp_path / "whole")))
    assert table["image_id"].equals(undisturbed["image_id"])
    np.testing.assert_array_equal(table["probability"].to_numpy(), undisturbed["probability"].to_numpy())


@pytest.mark.shared
def test_real_films_and_dicom_samples(
    engine: cluster.Resources, shared: Path, bundle_uri: str, tmp_path: Path, make_bundle: Make
) -> None:
    record = screen(job(shared / "originals", bundle_uri, tmp_path / "originals"))
    assert record["counts"] == {"catalogued": 220, "scored": 220, "rejected": 0, "failed": 0, "duplicate": 0}
    table = published(tmp_path / "originals", record)
    assert table["uri"].null_count == 0
    assert min(table["width"].to_pylist()) > 400
    record = screen(job(shared / "dicom", bundle_uri, tmp_path / "dicom"))
    rows = published(tmp_path / "dicom", record).to_pylist()
    found = [(row["status"], row["reason"]) for row in rows]  # in the order of the file names
    assert found == [("scored", None), ("rejected", "body_part"), ("rejected", "inverted"), ("scored", None)]
    assert all(row["uri"] is None for row in rows)
    uri = str(tmp_path / "paediatric")
    make_bundle(uri, validated_age_years=(1, 5))
    rows = published(tmp_path / "age", screen(job(shared / "dicom", uri, tmp_path / "age"))).to_pylist()
    assert [row["reason"] for row in rows] == ["age", "body_part", "age", "age"]  # the first by its dates


def test_a_worker_that_never_comes_is_not_waited_for_for_ever(
    engine: cluster.Resources, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> int:
        return 1

    patient, there = Cluster(patience_minutes=0.02), dataclasses.replace(engine, local=False)
    assert cluster.answer(ray.remote(work).remote(), there, patient, gpu=False) == 1
    with pytest.raises(cluster.NoWorkerError, match="a worker with a GPU did not come.* it has 2 CPUs and 0 GPUs"):
        cluster.answer(ray.remote(num_gpus=1)(work).remote(), there, patient, gpu=True)
    monkeypatch.setattr(cluster, "SILENCE_SECONDS", 0.1)
    with cluster.awaited("an epoch", there, patient, lambda found: found.cpus >= 2):
        time.sleep(2)  # longer than its patience: the cluster is busy and lacks nothing
    assert "waiting for an epoch for 0 minutes: the cluster has 2 CPUs" in capfd.readouterr().err
    with cluster.awaited("an epoch", there, patient, lambda _: False) as came:
        for _ in range(4):  # what comes, comes from somewhere
            time.sleep(0.5)
            came()
    with (
        pytest.raises(cluster.NoWorkerError, match=r"for 0\.02 minutes .* an epoch did not come"),
        cluster.awaited("an epoch", there, patient, lambda _: False),
    ):
        time.sleep(30)


def test_only_films_of_one_site_key_are_scored(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers read their own environment: where it has another key than the driver's, nothing is scored."""
    monkeypatch.setenv(SITE_KEY, "the-drivers-key")
    (tmp_path / "in").mkdir()
    wanted, bundle = job(tmp_path / "in", bundle_uri, tmp_path), bundles.load(bundle_uri)
    film = pa.table({"uri": [str(tmp_path / "in" / "a.png")]})
    elsewhere = dataclasses.replace(engine, local=False)
    with pytest.raises(ValueError, match=f"{SITE_KEY} of the cluster's workers is another than here"):
        pipeline.decided(wanted, bundle_uri, bundle, elsewhere, film, gpu=False)


def test_an_archive_that_workers_do_not_have_is_told_at_the_start(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path
) -> None:
    archive = tmp_path / "in"
    wanted, bundle = job(archive, bundle_uri, tmp_path), bundles.load(bundle_uri)
    film = pa.table({"uri": [str(archive / "a.png")]})
    elsewhere = dataclasses.replace(engine, local=False)
    with pytest.raises(ValueError, match=f"archive.uri: a worker does not find {archive}; it must lie on object stor"):
        pipeline.decided(wanted, bundle_uri, bundle, elsewhere, film, gpu=False)
    on_a_store = pa.table({"uri": ["s3://pacs/a.png"]})  # of a manifest that only the driver reads
    assert pipeline.decided(wanted, bundle_uri, bundle, elsewhere, on_a_store, gpu=False).bundle == bundle_uri
    archive.mkdir()
    assert pipeline.decided(wanted, bundle_uri, bundle, elsewhere, film, gpu=False).bundle == bundle_uri


def test_a_worker_that_comes_later_with_another_key_scores_nothing(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start asked a worker that had the key; this one has none."""
    monkeypatch.setenv(SITE_KEY, "the-drivers-key")
    wanted, bundle = job(films, bundle_uri, tmp_path), bundles.load(bundle_uri)
    plan = Plan(bundle_uri, bundle.model_id, 8, "fp32", False, "cpu", 1)
    elsewhere = dataclasses.replace(engine, local=False)
    with pytest.raises(Exception, match=f"{SITE_KEY} of the cluster's workers is another than here"):
        list(pipeline.score(wanted, bundle, plan, catalog.build(wanted.archive), elsewhere))
