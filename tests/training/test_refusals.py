"""What `train` refuses before it trains, and with what remedy."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest

from pneumobatch import cluster, lease, tables
from pneumobatch.config import Job
from pneumobatch.training.folds import Fold, require_ages
from pneumobatch.training.trainer import train
from tests.training.runs import job

pytestmark = pytest.mark.engine


def test_of_two_starts_at_once_one_trains(films: Path, tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "train-run"), pytest.raises(lease.HeldError, match="train-run is held by process"):
        train(job(films, tmp_path))
    assert not (tmp_path / "_staging").exists()


def test_an_ended_run_goes_on_where_only_films_without_a_label_came_meanwhile(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(_job: Job, _resources: object, known: pa.Table, *_: object) -> Fold:
        facts = {"status": ["scored"] * len(known), "reason": [None] * len(known), "age_years": [None] * len(known)}
        return Fold([], pa.table(facts | {name: known[name] for name in ("image_id", "label")}))

    def ended(*_: object) -> None:
        raise RuntimeError("the driver was killed")

    here = cluster.Resources((cluster.Node(2, 0),), local=True)
    for name, value in {"decode": decoded, "fit": ended}.items():
        monkeypatch.setattr(f"pneumobatch.training.trainer.{name}", value)
    monkeypatch.setattr(cluster, "engine", lambda _: nullcontext(here))
    monkeypatch.setattr(cluster, "offered", lambda *, local: here)
    archive = tmp_path / "films"
    shutil.copytree(films, archive)
    copied = next((archive / "NORMAL").glob("*.jpeg")).read_bytes()
    for name, data in (("first", b"first"), ("a copy", copied), ("last", b"last")):  # of a later night
        with pytest.raises(RuntimeError, match="the driver was killed"):
            train(job(archive, tmp_path / "output"))
        (archive / f"{name}.jpeg").write_bytes(data)
    (archive / "NORMAL" / "labelled.jpeg").write_bytes(b"another")
    with pytest.raises(ValueError, match="an unfinished run of another configuration or archive"):
        train(job(archive, tmp_path / "output"))


def test_an_archive_without_labels_is_refused(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for path in (films / "NORMAL").glob("*.jpeg"):
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="no film of .* has a label"):
        train(job(folder, tmp_path))
    (folder / "NORMAL").mkdir()
    for number in range(4):  # a first repair: the next start looks at that archive, and not for the one before
        (folder / "NORMAL" / f"{number}.jpeg").write_bytes(b"%d" % number)
    with pytest.raises(ValueError, match="the archive has 0 pneumonia patients"):
        train(job(folder, tmp_path))


def test_more_unreadable_films_than_the_budget_train_nothing(
    engine: cluster.Resources, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = r"of 67 films that should train or judge 5 failed \(.*truncated 1.*\); 2 rejected \(.*view 1.*\)"
    with pytest.raises(ValueError, match=told + r": more failed than training\.failure_budget = 5%"):
        train(job(films, tmp_path, **{"training.failure_budget": 0.05}))
    assert not (tmp_path / "_staging").exists()


def test_more_workers_than_films_are_refused_before_they_start(
    engine: cluster.Resources, films: Path, tmp_path: Path
) -> None:
    told = r"training\.batch_size: 8 films a step cannot be shared by 9 training\.workers; give a batch of 9"
    with pytest.raises(ValueError, match=told):  # elastic training would die as soon as the ninth worker came
        train(job(films, tmp_path, **{"training.workers": [1, 9]}))
    with pytest.raises(ValueError, match=r"training\.workers: 50 workers cannot share \d+ training and \d+ validation"):
        train(job(films, tmp_path, **{"training.workers": [1, 50], "training.batch_size": 50}))
    assert not (tmp_path / "_staging").exists()


def test_stated_ages_that_films_contradict_are_refused(engine: cluster.Resources, films: Path, tmp_path: Path) -> None:
    told = r"training\.validated_age_years: \[2, 4\] leaves out 2 of 8 films with a known age, which cover 1 to 3 years"
    with pytest.raises(ValueError, match=told):
        train(job(films, tmp_path, **{"training.validated_age_years": (2, 4)}))
    assert not (tmp_path / "_staging").exists()


@pytest.mark.parametrize(("ages", "fits"), [((18, 90), True), ((95, 99), True), ((18, 89), False), (None, True)])
def test_ninety_stands_for_all_above(ages: tuple[int, int] | None, fits: bool) -> None:
    facts = {"status": ["scored", "failed"], "age_years": [90, 3]}  # of what cannot be read no age counts
    fold = Fold([], tables.upgraded(pa.table(facts), tables.reference_schema()))
    with nullcontext() if fits else pytest.raises(ValueError, match="leaves out 1 of 1 films"):
        require_ages([fold], ages)


def test_films_above_max_bytes_train_nothing_and_a_refused_start_can_be_mended(
    engine: cluster.Resources, films: Path, tmp_path: Path
) -> None:
    for epochs in (1, 2):  # of one run_id
        with pytest.raises(ValueError, match="too few readable films of a class"):
            train(job(films, tmp_path, **{"archive.max_bytes": 1024, "training.epochs": epochs}))
