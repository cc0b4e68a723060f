"""Protocols: no patient and no copy on two sides, so many films held out, and a reason where one cannot run."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumobatch.archive import phantoms
from pneumobatch.config import Job
from pneumobatch.training.protocols import NotRun, Split, held_out, split


@given(
    st.lists(st.tuples(st.integers(0, 1), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_whole_patients_are_held_out_and_never_too_many(
    films: list[tuple[int, int | None]], wanted: int, seed: int
) -> None:
    labels = [label for label, _ in films]
    patients = [None if patient is None else f"p{patient}" for _, patient in films]
    held = held_out(labels, patients, wanted, seed)
    for value in (0, 1):
        assert sum(h for h, label in zip(held, labels, strict=True) if label == value) <= wanted
    for patient in {p for p in patients if p}:
        assert len({bool(h) for h, p in zip(held, patients, strict=True) if p == patient}) == 1
    assert np.array_equal(held, held_out(labels, patients, wanted, seed))


def test_patients_of_one_film_fill_both_classes_exactly() -> None:
    held = held_out([0, 1] * 30, [None] * 60, 7, 0)
    assert held[0::2].sum() == held[1::2].sum() == 7


def _film(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A training and a test folder that share a patient, and a copy under another name."""
    archive, test = tmp_path / "train", tmp_path / "test"
    for number in range(8):
        _film(archive, f"NORMAL/IM-{number:04}-0001.jpeg", bytes([number]) * (100 + number))
        _film(archive, f"PNEUMONIA/person{number}_virus_{number}.jpeg", bytes([number]) * (200 + number))
    _film(test, "NORMAL/IM-0099-0001.jpeg", b"a" * 301)
    _film(test, "PNEUMONIA/person3_virus_99.jpeg", b"b" * 302)  # patient 3 trains as well
    _film(test, "PNEUMONIA/person3_bacteria_98.jpeg", b"c" * 303)  # another patient: the number is reused
    _film(archive, "NORMAL/IM-0050-0001.jpeg", b"a" * 301)  # a copy of a test film
    return archive, test


def test_official_trains_on_no_test_patient_and_no_copy_of_a_test_film(folders: tuple[Path, Path]) -> None:
    archive, test = folders
    job = Job.model_validate(
        {"archive": {"uri": str(archive)}, "experiment": {"test": str(test)}, "training": {"validation_fraction": 0.3}}
    )
    found = split(job, "official")
    assert isinstance(found, Split)
    assert len(found.test) == 3
    assert len(found.train) + len(found.validation) == 15
    assert "2 of the training folder are left out" in found.told
    assert f"{len(found.validation)} films of random patients are the validation fold" in found.told
    sides = [set(fold["patient"].to_pylist()) for fold in found[:3]]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_the_patient_of_a_copied_test_film_trains_with_no_other_film(folders: tuple[Path, Path]) -> None:
    archive, test = folders
    _film(archive, "NORMAL/IM-0050-0002.jpeg", b"g" * 303)
    found = split(Job.model_validate({"archive": {"uri": str(archive)}, "experiment": {"test": str(test)}}), "official")
    assert isinstance(found, Split)
    assert not any("IM-0050" in uri for side in found[:3] for uri in side["uri"].to_pylist())
    assert len(found.test) == 3 and len(found.train) + len(found.validation) == 15


def test_films_of_one_path_in_both_folders_are_two_films(folders: tuple[Path, Path]) -> None:
    archive, test = folders
    _film(archive, "NORMAL/1.jpeg", b"d" * 400)
    _film(test, "NORMAL/1.jpeg", b"e" * 401)
    for folder in folders:
        _film(folder, "NORMAL/2.jpeg", b"f" * 402)  # one film under one path in both
    found = split(Job.model_validate({"archive": {"uri": str(archive)}, "experiment": {"test": str(test)}}), "official")
    assert isinstance(found, Split)
    assert len(found.test) == 5 and all(str(test) in uri for uri in found.test["uri"].to_pylist())
    rest = found.train["uri"].to_pylist() + found.validation["uri"].to_pylist()
    assert sum(uri.endswith("/1.jpeg") for uri in rest) == 1 and not any(uri.endswith("/2.jpeg") for uri in rest)
    assert "the patients of 3 films are not known" in found.told


def test_a_folder_without_labels_is_named(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    _film(tmp_path / "bare", "1.jpeg", b"1")
    for home, test in ((tmp_path / "bare", folders[1]), (folders[0], tmp_path / "bare")):
        given = Job.model_validate({"archive": {"uri": str(home)}, "experiment": {"test": str(test)}})
        with pytest.raises(ValueError, match=f"no film of {tmp_path / 'bare'} has a label"):
            split(given, "official")


def test_the_shifted_fold_is_that_of_the_lowest_numbers(folders: tuple[Path, Path]) -> None:
    given = {
        "archive": {"uri": str(folders[0])},
        "experiment": {"test": str(folders[1])},
        "training": {"validation": "shifted", "validation_fraction": 0.2},
    }
    found = split(Job.model_validate(given), "official")
    assert isinstance(found, Split)
    numbers = [int(re.findall(r"(?:IM-|person)0*(\d+)", uri)[0]) for uri in found.validation["uri"].to_pylist()]
    assert max(numbers) <= 2
    assert f"{len(numbers)} films of the patients with the lowest numbers are the validation fold" in found.told


def test_official_says_why_it_is_not_run(folders: tuple[Path, Path]) -> None:
    found = split(Job.model_validate({"archive": {"uri": str(folders[0])}}), "official")
    assert isinstance(found, NotRun) and "experiment.test is not set" in found.reason
    same = {"archive": {"uri": str(folders[0])}, "experiment": {"test": str(folders[0])}}
    with pytest.raises(ValueError, match=r"experiment\.test: every film of .* is a copy of one of"):
        split(Job.model_validate(same), "official")


def test_paper_like_holds_out_so_many_of_each_class(tmp_path: Path) -> None:
    phantoms.write_archive(tmp_path, 60, seed=1)
    settings = {"archive": {"uri": str(tmp_path)}, "experiment": {"held_out": 5}}
    found = split(Job.model_validate(settings), "paper_like")
    assert isinstance(found, Split)
    assert sorted(found.test["label"].to_pylist()) == [0] * 5 + [1] * 5
    ids = [set(fold["image_id"].to_pylist()) for fold in found[:3]]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    settings["experiment"] = {"held_out": 500}
    with pytest.raises(ValueError, match=r"experiment\.held_out: 500 pneumonia films cannot be held out"):
        split(Job.model_validate(settings), "paper_like")
