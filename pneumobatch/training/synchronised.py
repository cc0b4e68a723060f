"""Batch normalisation over the films of all workers, so that a batch is one batch however many workers share it.

PyTorch's own SyncBatchNorm is for GPUs alone; this one runs wherever the network does, and for every layer that calls
`torch.nn.functional.batch_norm`, such as timm's.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Synchronised(TorchFunctionMode):
    """Within it, batch normalisation in training takes its statistics from the films of all workers.

    All workers must run the same layers in the same order. The losses are those of DDP, whose mean over workers is the
    loss of the whole batch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answers in the place of `batch_norm`, and lets all else pass."""
        return (_batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Takes the place of `torch.nn.functional.batch_norm`."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, var, count = _statistics(x.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
    return cast(Tensor, _Normalised.apply(x, weight, bias, mean, var, count, eps))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and variance of each channel, and the number of values that they are of, over all workers.

    Args:
        x: float[B, C, ...], this worker's part; B may differ by worker.
    """
    channels = x.shape[1]
    # The buffers are only there to have the statistics of half-precision films in full precision.
    buffers = torch.zeros(2, channels, device=x.device)
    mean, var = torch.batch_norm_update_stats(x, buffers[0], buffers[1], 0.0)
    mine = torch.cat([mean, var, mean.new_tensor([x.numel() / channels])])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    means, variances, counts = torch.split(torch.stack(parts), [channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    # Chan et al. (1983): squares of sums would cancel where a mean is far from 0.
    var = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, var, count


class _Normalised(torch.autograd.Function):
    """Normalises by statistics that depend on the films of all workers, and so do its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        ones = torch.ones_like(mean) if weight is None else weight
        # As if the statistics were constants; what they add follows.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, ones, mean, var, mean, scale, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        of_mean, of_spread = sums * (ones * scale / count)
        slope = of_spread * scale
        shape = (1, -1, *[1] * (x.ndim - 2))
        of_x = of_x - (x * slope.view(shape) + (of_mean - mean * slope).view(shape)).to(of_x.dtype)
        return of_x, None if weight is None else of_weight, None if weight is None else of_bias, None, None, None, None
