"""Cross-entropy, focal loss, and the paper's improved focal loss, by one formula.

For a target distribution q and softmax probabilities p over the two classes c (0 normal, 1 pneumonia):

    loss = mean over images of  Σ_c  q_c · w_c · (1 − p_c)^γ · (−log p_c)

- cross_entropy: γ = 0, w = 1;
- focal (Lin et al., ICCV 2017): w_1 = α, w_0 = 1 − α;
- improved_focal (the paper's section "Focal loss"): besides that each class is weighted by 1/√(its own count in the
  training split), which is the reading that raises the minority class (reading 7), normalised to mean 1 (reading 9).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pneumobatch.config import Loss


class FocalLoss(nn.Module):
    """The loss of this module's formula.

    Args:
        config: Name, γ, α, scale and label smoothing.
        class_counts: Training images of class 0 (normal) and 1 (pneumonia).

    Shape:
        logits float[B, 2], labels int64[B] in {0, 1} → float32 scalar.

    Raises:
        ValueError: A class has no training image.
    """

    weights_K: Tensor

    def __init__(self, config: Loss, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.gamma = 0.0 if config.name == "cross_entropy" else config.gamma
        self.smoothing = config.label_smoothing
        weights = torch.ones(2, dtype=torch.float64)
        if config.name != "cross_entropy":
            weights *= torch.tensor([1 - config.alpha, config.alpha], dtype=torch.float64)
        if config.name == "improved_focal":
            if min(class_counts) < 1:
                raise ValueError(
                    f"the training split has {class_counts[0]} normal and {class_counts[1]} pneumonia films"
                )
            inverse_root = torch.tensor(class_counts, dtype=torch.float64).rsqrt()
            weights *= inverse_root if config.literal_scale else inverse_root / inverse_root.mean()
        self.register_buffer("weights_K", weights.float())

    def forward(self, logits_B2: Tensor, labels_B: Tensor) -> Tensor:
        """Returns the mean loss over the batch, computed in float32 from log-softmax (reading 10)."""
        log_p_B2 = torch.log_softmax(logits_B2.float(), dim=1)
        target_B2 = nn.functional.one_hot(labels_B, 2).float()
        target_B2 = target_B2 * (1 - 2 * self.smoothing) + self.smoothing
        # 1 − p without cancellation; kept above 0, where the slope of x^γ for γ < 1 would be infinite.
        miss_B2 = (-torch.expm1(log_p_B2)).clamp_min(torch.finfo(torch.float32).tiny)
        loss_B = (target_B2 * self.weights_K * miss_B2**self.gamma * -log_p_B2).sum(1)
        return loss_B.mean()
