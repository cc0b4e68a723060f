"""The losses against a float64 reference, PyTorch's cross-entropy, and the paper's counts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumobatch.config import Loss
from pneumobatch.models.loss import FocalLoss

PAPER_COUNTS = (1280, 4160)
logit = st.floats(-60, 60, allow_nan=False)


def reference(config: Loss, counts: tuple[int, int], logits: list[tuple[float, float]], labels: list[int]) -> float:
    """The formulas of Lin et al. and of the paper as they are printed, in float64."""
    total = 0.0
    roots = [1 / math.sqrt(count) for count in counts]
    scale = 1.0 if config.literal_scale else sum(roots) / 2
    for (z0, z1), label in zip(logits, labels, strict=True):
        margin = (z1 - z0) if label else (z0 - z1)
        log_p = -np.logaddexp(0.0, -margin)
        miss = 1 / (1 + math.exp(margin)) if margin < 700 else 0.0
        alpha = config.alpha if label else 1 - config.alpha
        weight = {"cross_entropy": 1.0, "focal": alpha, "improved_focal": alpha * roots[label] / scale}[config.name]
        gamma = 0.0 if config.name == "cross_entropy" else config.gamma
        total -= weight * miss**gamma * log_p
    return total / len(labels)


@given(
    st.sampled_from(["cross_entropy", "focal", "improved_focal"]),
    st.floats(0, 5),
    st.floats(0, 1),
    st.booleans(),
    st.lists(st.tuples(logit, logit, st.integers(0, 1)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_float64_reference(
    name: str, gamma: float, alpha: float, literal: bool, rows: list[tuple[float, float, int]]
) -> None:
    config = Loss(name=name, gamma=gamma, alpha=alpha, literal_scale=literal)  # type: ignore[arg-type]
    logits, labels = [row[:2] for row in rows], [row[2] for row in rows]
    found = FocalLoss(config, PAPER_COUNTS)(torch.tensor(logits), torch.tensor(labels))
    assert float(found) == pytest.approx(reference(config, PAPER_COUNTS, logits, labels), rel=1e-4, abs=1e-6)


def test_gamma_zero_is_pytorchs_weighted_cross_entropy() -> None:
    logits, labels = torch.randn(50, 2), torch.randint(0, 2, (50,))
    found = FocalLoss(Loss(name="focal", gamma=0, alpha=0.5), (1, 1))(logits, labels)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels) / 2)
    plain = FocalLoss(Loss(name="cross_entropy", label_smoothing=0.05), (1, 1))(logits, labels)
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_saturated_logits_keep_loss_and_gradient_finite(gamma: float, size: float) -> None:
    logits = torch.tensor([[size, -size], [-size, size], [0.0, 0.0]], requires_grad=True)
    loss = FocalLoss(Loss(gamma=gamma), PAPER_COUNTS)(logits, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_papers_counts_raise_the_minority_class() -> None:
    weights = FocalLoss(Loss(), PAPER_COUNTS).weights_K  # reading 7: each class by 1/√(its own count)
    assert float(weights[0] / weights[1]) == pytest.approx(math.sqrt(4160 / 1280))
    assert float(weights.mean()) == pytest.approx(0.5)  # reading 9, times α = ½
    literal = FocalLoss(Loss(literal_scale=True), PAPER_COUNTS).weights_K
    assert [float(w) for w in literal] == pytest.approx([0.5 / math.sqrt(1280), 0.5 / math.sqrt(4160)])


def test_a_class_without_films_is_refused() -> None:
    with pytest.raises(ValueError, match="0 normal"):
        FocalLoss(Loss(), (0, 10))
