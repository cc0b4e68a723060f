"""CARD.md: what it states holds for this network, this loss and these films."""

import re
from typing import Any

from pneumobatch.config import Job
from pneumobatch.metrics import Calibration
from pneumobatch.training import card

RATES = {"auroc": 0.9, "sensitivity": 0.95, "specificity": 0.8, "accuracy": 0.9, "ece": 0.0123, "brier": 0.0456}


def written(*, patients_known: bool = True, shifted: bool = False, **sections: Any) -> str:
    """A card's text, its lines joined."""
    data = {
        "train": 80, "train_sick": 50, "train_well": 30, "validation": 20, "validation_sick": 12, "validation_well": 8,
        "left_out": 3, "patients_known": patients_known,
    }  # fmt: skip
    found = RATES | {"epoch": 7} | ({f"shifted_{name}": value for name, value in RATES.items()} if shifted else {})
    lineage = {"hardware": "1 × 2 CPU", "code": "0" * 64}
    job = Job.model_validate(sections)
    text = card.write(job, Calibration(1.0, 0.0), 0.4, "sensitivity >= 0.95", (0.2, 0.7), data, found, lineage)
    return re.sub(r"\s+", " ", text)


def test_only_known_patients_are_told_to_be_others() -> None:
    assert "8 normal) of other patients chose epoch" in written()
    alone = written(patients_known=False)
    assert "8 normal) chose epoch" in alone and "other patients" not in alone and "Patients are not known" in alone


def test_a_loss_is_told_by_what_it_uses() -> None:
    assert "Loss `focal` (γ 2.0, α 0.5); starting" in written(loss={"name": "focal"})
    assert "Loss `cross_entropy`; starting" in written(loss={"name": "cross_entropy"})
    assert "(γ 2.0, α 0.5, literal 1/√n)" in written(loss={"literal_scale": True})
    smoothed = written(loss={"name": "cross_entropy", "label_smoothing": 0.1})
    assert "Loss `cross_entropy` (label smoothing 0.1); starting" in smoothed


def test_the_papers_networks_tell_their_source_and_their_parts() -> None:
    gated = written(network={"name": "attention_resnet18", "side_branches": False})
    assert "after Li, *Attention-enhanced architecture" in gated and "Attention: channel, spatial." in gated
    off = {"side_branches": False, "channel_gate": False, "spatial_gate": False}
    assert "Attention: none." in written(network={"name": "side_branch_net", **off})
    for name in ("timm/convnext_atto", "resnet18"):
        other = written(network={"name": name})
        assert "after Li" not in other and "Attention" not in other


def test_the_chosen_epoch_and_the_calibration_are_told() -> None:
    text = written(training={"epochs": 9})
    assert "the weights of epoch 7 of 9." in text and "ECE 0.0123, Brier score 0.0456" in text


def test_what_was_fitted_on_films_as_they_are_and_changed_says_so() -> None:
    both = written(shifted=True, training={"validation": "shifted"})
    assert "Of the validation films, as they are and changed together, at least" in both
    assert "The target was fitted on films as they are and changed together." in both
    assert "together" not in written()
