"""Folds: whole patients, both classes, in proportion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumobatch.archive import catalog
from pneumobatch.config import Archive
from pneumobatch.training.splits import validation_fold


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
        with pytest.raises(ValueError, match="a validation fold needs two"):
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
