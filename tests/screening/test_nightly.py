"""Nights of one archive on a real local engine: what is new, changed or missed, and what never comes twice."""

import dataclasses
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pneumobatch import cluster, storage
from pneumobatch.archive import catalog
from pneumobatch.config import Archive
from pneumobatch.identity import SITE_KEY
from pneumobatch.lease import HeldError
from pneumobatch.models import bundle as bundles
from pneumobatch.screening import ledger, pipeline, runs
from pneumobatch.screening.budget import OverBudgetError
from pneumobatch.screening.nightly import night
from pneumobatch.screening.scorer import Plan
from pneumobatch.screening.verify import verify
from tests.screening.nights import job, names, rows, write

pytestmark = pytest.mark.engine
Make = Callable[..., bundles.Bundle]


def test_nights_take_what_is_new_or_changed_and_nothing_twice(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None], make_bundle: Make
) -> None:
    archive = tmp_path / "in"
    for n in range(4):
        write(archive, f"{n}.png", n)
    write(archive, "._0.png", 0)
    first = night(job(tmp_path, bundle_uri)).records[-1]
    assert first["counts"]["scored"] == 4 and first["left_out"] == {"hidden": 1}

    write(archive, "4.png", 4)
    assert night(job(tmp_path, bundle_uri)).records == [first]  # a second start in the same night adds nothing
    assert len(ledger.published(str(tmp_path / "out"))) == 1

    calendar(2)
    write(archive, "1.png", 77)  # changed
    os.utime(archive / "1.png", ns=(1, 1))
    (archive / "2.png").touch()  # the same content, written again: a store cannot tell
    second = night(job(tmp_path, bundle_uri)).records[-1]
    assert set(names(tmp_path, second)) >= {"1.png", "4.png"}
    assert not {"0.png", "3.png"} & set(names(tmp_path, second))

    calendar(3)
    third = night(job(tmp_path, bundle_uri)).records[-1]  # nothing new
    assert third["counts"]["catalogued"] == 0 and third["left_out"] == {"hidden": 1}
    assert rows(tmp_path, third) == []

    calendar(6)  # two nights were missed
    write(archive, "5.png", 5)
    assert names(tmp_path, night(job(tmp_path, bundle_uri)).records[-1]) == ["5.png"]

    other = str(tmp_path / "other")
    make_bundle(other, seed=5)
    beside = night(job(tmp_path, other)).records[-1]
    assert beside["counts"]["scored"] == 6  # a new model scores everything; the old one's results stay
    assert len(list((tmp_path / "out" / "predictions").iterdir())) == 2
    for record in ledger.published(str(tmp_path / "out")):
        assert all(finding.right for finding in verify(str(tmp_path / "out"), record["run_id"])), record["run_id"]


def test_a_killed_night_is_finished_first_and_keeps_its_films(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    archive = tmp_path / "in"
    for n in range(3):
        write(archive, f"{n}.png", n)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "reconcile", killed)
        with pytest.raises(KeyboardInterrupt):
            night(job(tmp_path, bundle_uri))
    (left,) = ledger.unfinished(str(tmp_path / "out"))
    calendar(2)
    write(archive, "3.png", 3)
    done = night(job(tmp_path, bundle_uri)).records
    assert [record["run_id"][:10] for record in done] == ["2026-01-01", "2026-01-02"]
    assert done[0]["run_id"] == left["run_id"]
    assert sorted(names(tmp_path, done[0])) == ["0.png", "1.png", "2.png"]
    assert names(tmp_path, done[1]) == ["3.png"]


def test_a_night_of_gpus_that_are_gone_does_not_stop_the_next(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    write(tmp_path / "in", "0.png", 0)
    today = job(tmp_path, bundle_uri)
    left = runs.Run(today, bundles.load(bundle_uri))
    left.begin(catalog.build(today.archive))
    left.plan(dataclasses.asdict(Plan(bundle_uri, left.bundle.model_id, 8, "bf16", False, "cuda", 1)))
    calendar(2)
    write(tmp_path / "in", "1.png", 1)
    going = night(today)
    assert [names(tmp_path, record) for record in going.records] == [["1.png"]]
    (text,) = going.unpublished
    assert f"run {left.run_id} was started on GPUs" in text and left.staging in text
    storage.delete(left.staging)
    calendar(3)
    assert [names(tmp_path, record) for record in night(today).records] == [["0.png"]]


def test_a_changed_configuration_has_a_run_of_its_own_on_the_same_date(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    write(tmp_path / "in", "0.png", 0)
    (tmp_path / "in" / "page.html").write_bytes(b"<html>")
    first = job(tmp_path, bundle_uri)
    assert night(first).unpublished
    without = first.model_copy(update={"archive": first.archive.model_copy(update={"exclude": ("*.html",)})})
    done = night(without)
    assert done.unpublished == []
    assert names(tmp_path, done.records[-1]) == ["0.png"]
    assert night(without).records == done.records


def test_a_night_under_another_site_key_is_refused(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path / "in", "0.png", 0)
    monkeypatch.setenv(SITE_KEY, "the key")
    (record,) = night(job(tmp_path, bundle_uri)).records
    assert "the key" not in str(record)
    calendar(2)
    for other in ("", "another"):
        monkeypatch.setenv(SITE_KEY, other)
        for archive in (tmp_path / "in", f"file://{tmp_path / 'in'}"):  # the same films, whatever it is called
            again = job(tmp_path, bundle_uri).model_copy(update={"archive": Archive(uri=str(archive))})
            with pytest.raises(ValueError, match=f"{SITE_KEY} is not what it was"):
                night(again)
    monkeypatch.setenv(SITE_KEY, "the key")
    assert night(job(tmp_path, bundle_uri)).records[-1]["counts"]["catalogued"] == 0


def test_two_at_once_one_works_and_the_other_says_who(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path / "in", "0.png", 0)
    reached, go_on = threading.Event(), threading.Event()
    finish = runs.Run.reconcile

    def slow(self: runs.Run) -> Any:
        reached.set()
        assert go_on.wait(60)
        return finish(self)

    monkeypatch.setattr(runs.Run, "reconcile", slow)
    done: list[Any] = []
    first = threading.Thread(target=lambda: done.append(night(job(tmp_path, bundle_uri))))
    first.start()
    assert reached.wait(120)
    with pytest.raises(HeldError, match=r"nightly-.* is held by process \d+ on"):
        night(job(tmp_path, bundle_uri))
    go_on.set()
    first.join()
    assert done[0].records[-1]["counts"]["scored"] == 1
    assert len(ledger.published(str(tmp_path / "out"))) == 1


def test_what_is_published_is_never_overwritten(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in", "0.png", 0)
    plain = job(tmp_path, bundle_uri, nightly=False, run_id="run")
    create = storage.create_bytes

    def killed(uri: str, data: bytes) -> bool:
        if uri.endswith("/runs/run.json"):
            raise KeyboardInterrupt  # between predictions and record
        return create(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.screen(plain)
    (file,) = (tmp_path / "out" / "predictions").rglob("*.parquet")
    before = file.read_bytes()
    record = pipeline.screen(plain)
    assert file.read_bytes() == before
    assert record["counts"]["scored"] == 1
    assert all(finding.right for finding in verify(str(tmp_path / "out"), "run"))


def test_verify_finds_what_was_changed(engine: cluster.Resources, bundle_uri: str, tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / "in", f"{n}.png", n)
    record = pipeline.screen(job(tmp_path, bundle_uri, nightly=False, run_id="run"))
    path = str(tmp_path / "out" / record["predictions"][0])
    whole = storage.read_table(path)

    def wrong(table: pa.Table) -> set[str]:
        storage.write_table(path, table)
        return {finding.what for finding in verify(str(tmp_path / "out"), "run") if not finding.right}

    assert wrong(whole.slice(1)) == {"predictions file", "one row an image", "counts"}
    assert wrong(pa.concat_tables([whole, whole.slice(0, 1)])) == {"predictions file", "one row an image", "counts"}
    index = whole.schema.get_field_index("predicted_label")
    flipped = pa.array([1 - label for label in whole["predicted_label"].to_pylist()], pa.int8())
    assert wrong(whole.set_column(index, "predicted_label", flipped)) == {"predictions file", "calls at the threshold"}
    with pytest.raises(ValueError, match="run nothing is not there"):
        verify(str(tmp_path / "out"), "nothing")


def test_labels_that_only_a_key_could_join_are_refused_before_the_night(
    bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SITE_KEY, raising=False)
    (tmp_path / "in" / "ward").mkdir(parents=True)
    (tmp_path / "in" / "ward" / "1.dcm").write_bytes(b"by its name a DICOM file")
    (tmp_path / "labels.csv").write_text("accession,label\nA1,1\n")
    nightly = job(tmp_path, bundle_uri)
    nightly = nightly.model_copy(
        update={"archive": nightly.archive.model_copy(update={"labels": str(tmp_path / "labels.csv")})}
    )
    with pytest.raises(ValueError, match=f"keyed hashes only, and {SITE_KEY} is not set"):
        night(nightly)
    monkeypatch.setenv(SITE_KEY, "k")
    (tmp_path / "labels.csv").write_text("file,label\n1.dcm,1\n")
    with pytest.raises(ValueError, match="names films by file name or URI, which results do not keep beside DICOM"):
        night(nightly)
    assert ledger.published(str(tmp_path / "out")) == []


def test_a_nightly_job_names_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"screening\.run_id: with screening\.nightly"):
        job(tmp_path, "bundle", run_id="x")


def test_over_budget_is_an_error_of_the_job() -> None:
    assert issubclass(OverBudgetError, RuntimeError)
    assert issubclass(HeldError, RuntimeError)


def test_no_path_of_a_picture_is_written_on_a_night_of_an_archive_with_dicom(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    """Whether the DICOM files are named as such, or only their content told, on a night before."""
    for number, name in enumerate(("1.dcm", "IM0001")):
        home = tmp_path / name
        write(home / "in" / "DOE_JANE", "b.png", 1)
        (home / "in" / "DOE_JANE" / name).write_bytes(
            bytes(128) + b"DICM" + bytes(200)
        )  # broken, and known by its head
        today = job(home, bundle_uri, failures_allowed=1)
        calendar(2 * number + 1)
        first = night(today).records[-1]
        assert [row["uri"] for row in rows(home, first)] == [None, None]
        calendar(2 * number + 2)
        write(home / "in" / "DOE_JOHN", "c.png", 2)
        second = night(today).records[-1]
        assert [(row["uri"], row["format"]) for row in rows(home, second)] == [(None, "png")]
        assert second["beside_dicom"]
        assert b"DOE" not in b"".join(path.read_bytes() for path in (home / "out").rglob("*") if path.is_file())


def test_a_night_and_a_plain_run_of_one_day_are_two(bundle_uri: str, tmp_path: Path) -> None:
    bundle = bundles.load(bundle_uri)
    named = [runs.default_id(job(tmp_path, bundle_uri, nightly=nightly), bundle) for nightly in (False, True)]
    assert len(set(named)) == 2
    assert all(name.endswith(runs.series(job(tmp_path, bundle_uri), bundle)) for name in named)


def test_labels_that_come_on_a_night_over_budget_are_evaluated(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    for n in range(2):
        write(tmp_path / "in", f"{n}.png", n)
    first = night(job(tmp_path, bundle_uri))
    assert first.result is not None
    calendar(2)
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,0\n1.png,1\n")
    told = job(tmp_path, bundle_uri)
    told = told.model_copy(
        update={"evaluation": told.evaluation.model_copy(update={"labels": str(tmp_path / "labels.csv")})}
    )
    second = night(told)
    assert second.unpublished and second.records == []
    assert second.result is not None
    (listed,) = (tmp_path / "out" / "review").rglob(f"{first.records[-1]['run_id']}.parquet")
    assert len(storage.read_table(str(listed))) == 0  # no film is left without a label
