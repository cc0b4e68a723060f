"""A run on disk, without an engine: films are scored by this hand, and the run stages, checks and publishes them."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pneumobatch import cluster, storage
from pneumobatch.archive import catalog
from pneumobatch.identity import SITE_KEY
from pneumobatch.lease import HeldError
from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware
from pneumobatch.screening import ledger, pipeline, runs
from pneumobatch.screening.runs import Run
from pneumobatch.screening.scorer import Plan, Scorer
from pneumobatch.screening.verify import verify
from tests.screening.nights import job, write
from tests.screening.nights import rows as rows_of


@pytest.fixture
def start(bundle_uri: str, tmp_path: Path) -> Callable[[], Run]:
    """Starts the run `run` of the films in `in`, or takes it up."""

    def begun() -> Run:
        plain = job(tmp_path, bundle_uri, nightly=False, run_id="run")
        run = Run(plain, bundles.load(bundle_uri))
        run.begin(catalog.build(plain.archive))
        return run

    for n in range(3):
        write(tmp_path / "in", f"{n}.png", n)
    return begun


def score(run: Run, probability: float | None = 0.25, copies: Mapping[str, str] = {}, kind: str = "png") -> None:
    """Stages a row for every film, as a scorer would; `copies` have the bytes of another film."""
    now = datetime.now(UTC)
    told = {
        "status": "scored", "reason": None, "format": kind, "patient": None, "probability": probability,
        "scored_at": now,
    }  # fmt: skip
    films = run.films.select(["image_id", "version"]).to_pylist()
    ids = dict(zip((uri.rsplit("/", 1)[-1] for uri in run.films["uri"].to_pylist()), films, strict=True))
    same = {ids[copy]["image_id"]: ids[original]["image_id"] for copy, original in copies.items()}
    rows = [film | told | {"sha256": same.get(film["image_id"], film["image_id"])} for film in films]
    kinds = {"reason": pa.string(), "patient": pa.string(), "probability": pa.float64()}
    table = pa.Table.from_pylist(rows)
    for name, kind in kinds.items():
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    run.stage(table)


def publish(run: Run) -> dict[str, Any]:
    return run.publish(run.reconcile(), {})


def test_a_scored_film_without_a_probability_is_not_published(start: Callable[[], Run], tmp_path: Path) -> None:
    run = start()
    score(run, None)
    with pytest.raises(RuntimeError, match="3 rows have a status that does not fit their probability"):
        run.reconcile()
    assert ledger.published(str(tmp_path / "out")) == []


def test_files_of_a_start_whose_staging_was_deleted_are_named(start: Callable[[], Run], tmp_path: Path) -> None:
    """It was killed after one or both of its files, before its record; the archive has grown since."""
    create = storage.create_bytes
    for last in ("/catalog/", "/predictions/"):

        def killed(uri: str, data: bytes, last: str = last) -> bool:
            made = create(uri, data)
            if last in uri:
                raise KeyboardInterrupt
            return made

        run = start()
        score(run)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(storage, "create_bytes", killed)
            publish(run)
        storage.delete(run.staging)
        write(tmp_path / "in", f"more-{len(list((tmp_path / 'in').iterdir()))}.png", 7)
        again = start()
        score(again)
        with pytest.raises(
            RuntimeError, match=r"catalog/runs/run.parquet.* there already, .* delete what is"
        ) as caught:
            publish(again)
        assert ("/predictions/model_id=" in str(caught.value)) == (last == "/predictions/")
        for folder in ("catalog", "predictions"):
            storage.delete(str(tmp_path / "out" / folder))
    assert publish(again)["counts"]["scored"] == 5
    assert all(finding.right for finding in verify(str(tmp_path / "out"), "run"))


def test_verify_tells_of_files_that_are_no_parquet_any_more(start: Callable[[], Run], tmp_path: Path) -> None:
    run = start()
    score(run)
    path = tmp_path / "out" / publish(run)["predictions"][0]
    path.write_bytes(path.read_bytes()[:500])
    wrong = [finding.what for finding in verify(str(tmp_path / "out"), "run") if not finding.right]
    assert wrong == ["predictions file", "predictions rows"]


def test_what_another_version_staged_is_not_taken_up(start: Callable[[], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = start()
    pin = json.loads(storage.read_bytes(f"{run.staging}/run.json"))
    assert runs.continues(pin)
    monkeypatch.setattr(runs, "LAYOUT", runs.LAYOUT + " more")
    assert not runs.continues(pin)
    with pytest.raises(ValueError, match=r"begun by another version of pneumobatch; .* delete .*_staging/run"):
        start()
    score(run)
    publish(run)
    run.refresh()  # what is published is published
    assert run.record


def test_a_copy_is_taken_again_with_its_original(start: Callable[[], Run], tmp_path: Path) -> None:
    """Its bytes may have no other row by now, and its original's probability is another film's."""
    archive = tmp_path / "in"
    shutil.copy(archive / "0.png", archive / "3.png")
    run = start()
    score(run, copies={"3.png": "0.png"})
    assert publish(run)["counts"]["duplicate"] == 1
    out, model = str(tmp_path / "out"), run.bundle.model_id

    def new() -> list[str]:
        films = ledger.new(out, model, catalog.build(run.job.archive), [])
        return [uri.rsplit("/", 1)[-1] for uri in films["uri"].to_pylist()]

    assert new() == []
    write(archive, "0.png", 77)
    assert new() == ["0.png", "3.png"]
    again = Run(run.job, run.bundle, "again")
    films = catalog.build(run.job.archive)
    again.begin(films.filter(pc.ends_with(films["uri"], "0.png")))  # as an older version would
    score(again)
    publish(again)
    assert new() == ["3.png"]


def test_a_plain_run_under_another_site_key_is_refused(
    start: Callable[[], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would publish every film under a second id, and the nights after it would be refused."""
    monkeypatch.setenv(SITE_KEY, "the key")
    run = start()
    score(run)
    publish(run)
    monkeypatch.delenv(SITE_KEY)
    with pytest.raises(ValueError, match=f"{SITE_KEY} is not what it was when run was published"):
        pipeline.screen(job(tmp_path, run.job.screening.bundle or "", nightly=False, run_id="by-hand"))
    assert len(ledger.published(str(tmp_path / "out"))) == 1


@pytest.mark.parametrize("staging", [True, False])
def test_who_was_silent_for_too_long_stops_where_it_stands(
    start: Callable[[], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staging: bool
) -> None:
    """The other has published the run by then: nothing is staged anew, and no film is missed that it has scored."""

    def overtaken(run: Run, *_: Any) -> dict[str, Any]:
        (held,) = (tmp_path / "out" / "_leases" / "run").glob("*.json")
        held.with_name(f"{int(held.stem) + 1:08d}.json").write_bytes(held.read_bytes())
        storage.delete(run.staging)
        if staging:
            score(run)
            run.flush()
        return {}

    run = start()
    monkeypatch.setattr(cluster, "engine", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(pipeline, "_scored", overtaken)
    with pytest.raises(HeldError, match="has taken its run over"):
        pipeline.screen(run.job)
    assert not Path(run.staging).exists()


@pytest.mark.parametrize("told_by", ["name", "published run"])
def test_paths_stay_behind_where_dicom_came_after_the_run_was_begun(
    start: Callable[[], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    """A night of pictures that is over budget or was killed is finished beside the DICOM films of the nights since."""
    run = start()
    (tmp_path / "in" / ("1.dcm" if told_by == "name" else "IM0001")).write_bytes(b"DICM")
    if told_by == "published run":
        since = Run(run.job, run.bundle, "since")
        since.begin(catalog.build(run.job.archive))
        score(since, kind="dicom")
        publish(since)
    monkeypatch.setattr(cluster, "engine", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(pipeline, "_scored", lambda *taken: score(taken[0]) or {})
    record = pipeline.screen(run.job)
    assert record["beside_dicom"]
    assert [row["uri"] for row in rows_of(tmp_path, record)] == [None] * 3


@pytest.mark.parametrize(
    ("fixed", "told"), [({"precision": "int8"}, "in int8, and"), ({"compile": True}, "no C.. compiler")]
)
def test_what_this_machine_cannot_score_as_it_was_begun_is_told_before(
    start: Callable[[], Run], bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: dict[str, Any],
    told: str,
) -> None:  # fmt: skip
    """A night goes on after such a run (`NoWorkerError`), where a scorer's own error would stop every night."""
    run = start()
    plan = {"precision": "fp32", "compile": False} | fixed
    run.plan(dataclasses.asdict(Plan(bundle_uri, run.bundle.model_id, 8, device="cpu", threads=1, **plan)))
    monkeypatch.setattr(hardware, "computes_int8", lambda: False)
    monkeypatch.setattr(hardware, "compiler", lambda: None)
    monkeypatch.setenv("PNEUMOBATCH_CACHE", str(tmp_path / "cache"))
    here = cluster.Resources((cluster.Node(2, 0),), local=True)
    with pytest.raises(cluster.NoWorkerError, match=f"run run was started .*{told}"):
        pipeline._scored(run, bundle_uri, run.films, here, 0.0)


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    for content in (b'{"verb": ', b"[]", b"\xff"):
        storage.write_bytes(str(tmp_path / "out" / "runs" / "x.json"), content)
        with pytest.raises(ValueError, match=r"runs/x\.json"):
            ledger.published(str(tmp_path / "out"))


def test_a_network_that_makes_no_number_fails_the_film(bundle_uri: str) -> None:
    scorer = Scorer(Plan(bundle_uri, bundles.load(bundle_uri).model_id, 4, "fp32", False, "cpu", 1))
    makes = scorer.logits

    def broken(batch: Any) -> Any:
        logits = makes(batch).clone()
        logits[batch[:, 0, 0] == 77] = float("nan")
        return logits

    scorer.logits = broken
    size = scorer.size
    pictures = np.random.default_rng(0).integers(0, 70, (6, size, size), np.uint8)
    pictures[4] = 77
    pixels = pa.array([*(picture.tobytes() for picture in pictures[:5]), None], pa.binary(size * size))
    told = {"status": ["scored"] * 5 + ["failed"], "reason": [*[None] * 5, "empty"], "pixels": pixels}
    kinds = [("status", pa.string()), ("reason", pa.string()), ("pixels", pixels.type)]
    rows = scorer(pa.table(told, schema=pa.schema(kinds)))
    assert rows["status"].to_pylist() == ["scored"] * 4 + ["failed"] * 2
    assert rows["reason"].to_pylist() == [*[None] * 4, "not_finite", "empty"]
    assert [value is None for value in rows["probability"].to_pylist()] == [False] * 4 + [True] * 2
