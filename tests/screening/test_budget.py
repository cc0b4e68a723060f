"""Nights of which too many films fail: what stops them, what mends them, and what they stop."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pneumobatch import cluster, storage
from pneumobatch.config import Screening
from pneumobatch.screening import ledger
from pneumobatch.screening.budget import Budget
from pneumobatch.screening.nightly import night
from pneumobatch.screening.reconcile import Predictions
from tests.screening.nights import job, names, rows, write

pytestmark = pytest.mark.engine


def test_a_night_over_budget_does_not_stop_the_next_and_is_published_once_mended(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    archive = tmp_path / "in"
    write(archive, "0.png", 0)
    for n in range(3):
        (archive / f"bad{n}.png").write_bytes(b"")
    stopped = night(job(tmp_path, bundle_uri, failures_allowed=2))
    assert stopped.records == []
    assert "3 of 4 images failed (empty 3)" in stopped.unpublished[0]
    assert [pin["over_budget"] for pin in ledger.unfinished(str(tmp_path / "out"))] == [True]
    calendar(2)
    write(archive, "1.png", 1)
    going = night(job(tmp_path, bundle_uri, failures_allowed=2))
    assert [names(tmp_path, record) for record in going.records] == [["1.png"]]
    assert len(going.unpublished) == 1
    calendar(3)
    write(archive, "bad1.png", 3)  # mended
    mended = night(job(tmp_path, bundle_uri, failures_allowed=2))
    assert mended.unpublished == []
    assert Counter(row["status"] for row in rows(tmp_path, mended.records[0])) == {"scored": 2, "failed": 2}
    assert mended.records[1]["counts"]["catalogued"] == 0
    # Each of the nights has its lists, also the one that came late.
    listed = {path.stem for path in (tmp_path / "out" / "review").rglob("*.parquet")}
    assert listed == {record["run_id"] for record in ledger.published(str(tmp_path / "out"))}
    assert len(listed) == 3


def test_a_bad_film_that_is_taken_away_no_longer_holds_up_its_night(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    write(tmp_path / "in", "0.png", 0)
    (tmp_path / "in" / "bad.png").write_bytes(b"no film")
    (tmp_path / "in" / "worse.png").write_bytes(b"no film either")
    (tmp_path / "in" / "dangling.png").symlink_to(tmp_path / "nothing.png")
    (text,) = night(job(tmp_path, bundle_uri, failures_allowed=1)).unpublished
    assert "missing 1" in text and f"delete {tmp_path / 'out' / '_staging'}" in text
    (tmp_path / "in" / "dangling.png").unlink()
    assert night(job(tmp_path, bundle_uri, failures_allowed=1)).unpublished
    (tmp_path / "in" / "bad.png").unlink()
    mended = night(job(tmp_path, bundle_uri, failures_allowed=1))
    assert mended.unpublished == []
    assert Counter(row["status"] for row in rows(tmp_path, mended.records[-1])) == {"scored": 1, "failed": 3}


def test_films_of_a_folder_that_goes_away_are_no_mended_films(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    """Their links lead nowhere for a moment, as those into a share that is not mounted, and then are gone as well."""
    archive = tmp_path / "in"
    write(archive, "0.png", 0)
    for n in range(1, 6):
        (archive / f"{n}.png").symlink_to(tmp_path / "share" / f"{n}.png")
    (text,) = night(job(tmp_path, bundle_uri, failures_allowed=1)).unpublished
    assert "5 of 6 images failed (missing 5)" in text
    for n in range(1, 6):
        (archive / f"{n}.png").unlink()
    (text,) = night(job(tmp_path, bundle_uri, failures_allowed=1)).unpublished
    assert "5 of 6 images failed" in text
    for n in range(1, 6):
        write(tmp_path / "share", f"{n}.png", n)
        (archive / f"{n}.png").symlink_to(tmp_path / "share" / f"{n}.png")
    (record,) = night(job(tmp_path, bundle_uri, failures_allowed=1)).records
    assert record["counts"]["scored"] == 6


def test_what_failed_within_the_budget_does_not_fail_the_nights_after_it(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    archive = tmp_path / "in"
    for n in range(5):
        write(archive, f"{n}.png", n)
    (archive / "gone.png").symlink_to(tmp_path / "nowhere.png")
    first = night(job(tmp_path, bundle_uri, failure_budget=0.2))
    assert first.records[-1]["counts"]["failed"] == 1
    calendar(2)
    quiet = night(job(tmp_path, bundle_uri, failure_budget=0.2))  # nothing new: that film alone is tried again
    assert quiet.unpublished == []
    assert quiet.records[-1]["counts"] | {"failed": 1, "catalogued": 1} == quiet.records[-1]["counts"]
    calendar(3)
    (archive / "empty.png").write_bytes(b"")  # a new failure counts as ever
    (text,) = night(job(tmp_path, bundle_uri, failure_budget=0.2)).unpublished
    assert "2 of 2 images failed (" in text
    (archive / "empty.png").unlink()
    write(tmp_path, "nowhere.png", 9)
    mended = night(job(tmp_path, bundle_uri, failure_budget=0.2)).records[-1]
    assert mended["counts"]["scored"] == 1


def test_what_is_excused_makes_no_room_for_other_failures() -> None:
    """200 films that an earlier night accepted as missing, and 11 new ones of which 10 are corrupt."""
    ids = pa.chunked_array([[str(n) for n in range(211)]])
    status = ["failed"] * 210 + ["scored"]
    table = pa.table(
        {"image_id": ids, "status": status, "reason": ["missing"] * 200 + ["corrupt"] * 10 + [None],
         "probability": pa.array([None] * 210 + [0.5], pa.float64())}
    )  # fmt: skip
    budget = Budget(Screening(), Predictions.read(storage.encode(table)))
    excused = budget.excused(ids, ids, ids.slice(0, 200))
    assert excused == 200
    assert budget.over(excused)
    assert not budget._replace(config=Screening(failures_allowed=10)).over(excused)


def test_a_night_that_is_mended_after_tonights_counts_in_what_is_told(
    engine: cluster.Resources, bundle_uri: str, tmp_path: Path, calendar: Callable[[int], None]
) -> None:
    archive = tmp_path / "in"
    write(archive, "0.png", 0)
    (archive / "bad.png").write_bytes(b"")
    assert night(job(tmp_path, bundle_uri)).unpublished
    calendar(2)
    write(archive, "1.png", 1)
    assert night(job(tmp_path, bundle_uri)).unpublished
    write(archive, "bad.png", 2)
    mended = night(job(tmp_path, bundle_uri))
    assert mended.unpublished == []
    assert mended.result is not None
    assert (mended.result.runs, mended.result.summary["scored"][0].as_py()) == (2, 3)
