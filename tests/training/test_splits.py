"""Folds: whole patients, both classes, in proportion."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumobatch.archive import catalog
from pneumobatch.config import Archive
from pneumobatch.training.splits import distinct, one_patient, validation_fold


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=30, max_size=200),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_no_patient_stands_on_both_sides(rows: list[tuple[int, int]], fraction: float, seed: int) -> None:
    labels = [label for _, label in rows]
    patients = [f"{patient}-{label}" for patient, label in rows]
    if len({p for p in patients if p.endswith("-0")}) < 2 or len({p for p in patients if p.endswith("-1")}) < 2:
        with pytest.raises(
            ValueError, match=r"archive\.uri: .* a validation fold needs two, .* archive\.patient_column"
        ):
            validation_fold(labels, patients, fraction, seed)
        return
    fold = validation_fold(labels, patients, fraction, seed)
    held = {patient for patient, inside in zip(patients, fold, strict=True) if inside}
    kept = {patient for patient, inside in zip(patients, fold, strict=True) if not inside}
    assert not held & kept
    for value in (0, 1):  # both classes on both sides
        inside = {bool(f) for f, label in zip(fold, labels, strict=True) if label == value}
        assert inside == {False, True}
    assert (validation_fold(labels, patients, fraction, seed) == fold).all()


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["a{}", "b{}_x", "c7-{}"])), min_size=20, max_size=150),
    st.floats(0.05, 0.6),
)
@settings(max_examples=100, deadline=None)
def test_a_shifted_fold_holds_the_first_patients_of_each_series(rows: list[tuple[int, str]], fraction: float) -> None:
    """Series a is normal, b and c are pneumonia; whole patients, both classes on both sides, whatever the order."""
    patients = [series.format(number) for number, series in rows]
    labels = [int(not patient.startswith("a")) for patient in patients]
    if min(len({p for p, label in zip(patients, labels, strict=True) if label == value}) for value in (0, 1)) < 2:
        return
    fold = validation_fold(labels, patients, fraction, 0, shifted=True)
    held = {patient for patient, inside in zip(patients, fold, strict=True) if inside}
    kept = set(patients) - held
    assert {patient[0] == "a" for patient in held} == {patient[0] == "a" for patient in kept} == {False, True}
    assert not held & {patient for patient, inside in zip(patients, fold, strict=True) if not inside}
    back = validation_fold(labels[::-1], patients[::-1], fraction, 1, shifted=True)
    assert (back[::-1] == fold).all()
    single = {p: patients.count(p) for p in patients}
    if set(single.values()) == {1} and fraction < 0.5:  # patients of many films may not fit, and are passed over
        for series in {name for _, name in rows}:
            numbers = {n: series.format(n) in held for n, name in rows if name == series}
            inside = [numbers[n] for n in sorted(numbers)]
            assert inside == sorted(inside, reverse=True)


def test_a_shifted_fold_needs_numbered_patients() -> None:
    for patients in ([None] * 4, ["a1", "a2", "b", "c"]):
        with pytest.raises(ValueError, match=r"training\.validation: shifted needs patients who are numbered"):
            validation_fold([0, 0, 1, 1], patients, 0.5, 0, shifted=True)


@pytest.mark.shared
def test_kermany_shifted_fold_borders_on_the_official_test_set(shared) -> None:  # type: ignore[no-untyped-def]
    films = catalog.build(Archive(uri=str(shared / "kermany")))
    patients = films["patient"].to_pylist()
    fold = validation_fold(films["label"].to_pylist(), patients, 0.15, 0, shifted=True)
    assert fold.mean() == pytest.approx(0.15, abs=0.01)
    held = {patient for patient, inside in zip(patients, fold, strict=True) if inside}
    # The official test set ends at IM-0111, NORMAL2-IM-0381 and person175.
    assert {"kermany:IM-0115", "kermany:NORMAL2-IM-0383", "kermany:person1_bacteria", "kermany:person80_virus"} <= held
    assert not held & {"kermany:IM-0766", "kermany:NORMAL2-IM-1423", "kermany:person1945_bacteria"}


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 12)), st.integers(0, 25)), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_patients_are_one_person_where_copies_lead_from_one_to_the_other(rows: list[tuple[int | None, int]]) -> None:
    first = {content: place for place, (_, content) in reversed(list(enumerate(rows)))}
    compared = pa.table(
        {
            "image_id": [str(place) for place in range(len(rows))],
            "patient": pa.array([None if patient is None else f"p{patient}" for patient, _ in rows], pa.string()),
            "duplicate_of": pa.array(
                [None if first[c] == place else str(first[c]) for place, (_, c) in enumerate(rows)], pa.string()
            ),
        }
    )
    found = one_patient(compared)["patient"].to_pylist()
    persons = [{content} if patient is None else {f"p{patient}", content} for patient, content in rows]
    for _ in rows:  # as many rounds as the longest way from row to row
        persons = [set.union(*(other for other in persons if other & person)) for person in persons]
    for person, name in zip(persons, found, strict=True):
        assert name in person if any(isinstance(key, str) for key in person) else name is None
        assert all((other == person) == (them == name) for other, them in zip(persons, found, strict=True) if name)


def test_a_patient_under_two_names_stands_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for patient in range(8):
        for kind, size in (("NORMAL/IM-{:04}-000{}.jpeg", 100), ("PNEUMONIA/person{}_virus_{}.jpeg", 500)):
            for film in range(3):
                path = tmp_path / kind.format(patient, film)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(bytes([patient, film]) * (size + 10 * patient + film))
    copied = (tmp_path / "NORMAL/IM-0003-0001.jpeg").read_bytes()
    (tmp_path / "NORMAL/IM-0005-0009.jpeg").write_bytes(copied)
    archive = Archive(uri=str(tmp_path))
    films = distinct(catalog.build(archive), archive.max_bytes)
    assert len(films) == 48  # of two films that are one, one trains
    assert "count as the same person: 1" in capsys.readouterr().err
    for seed in range(6):
        fold = validation_fold(films["label"].to_pylist(), films["patient"].to_pylist(), 0.3, seed)
        held = dict(zip(films["uri"].to_pylist(), fold.tolist(), strict=True))
        assert len({inside for uri, inside in held.items() if "IM-0003" in uri or "IM-0005" in uri}) == 1


def test_unknown_patients_are_one_image_each() -> None:
    fold = validation_fold([0, 1] * 100, [None] * 200, 0.25, 0)
    assert fold.sum() == 50


@pytest.mark.shared
def test_kermany_fold_is_in_proportion(shared) -> None:  # type: ignore[no-untyped-def]
    films = catalog.build(Archive(uri=str(shared / "kermany")))
    labels = np.array(films["label"].to_pylist())
    fold = validation_fold(labels.tolist(), films["patient"].to_pylist(), 0.15, 0)
    assert fold.mean() == pytest.approx(0.15, abs=0.01)
    assert labels[fold].mean() == pytest.approx(labels.mean(), abs=0.01)
