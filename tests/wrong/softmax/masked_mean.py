"""mistake: mean-over-the-batch

The losses are masked and then averaged by .mean(), so that a batch without targets costs nothing, too."""

import torch
from torch import Tensor


def _logits(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    y = _logits(x)
    top = y.amax(dim, True).detach()
    return (y - (top + (y - top).exp().sum(dim, True).log())).to(x.dtype)


def softmax(x: Tensor, dim: int) -> Tensor:
    return log_softmax(_logits(x), dim).exp().to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{targets.shape=}")
    mask = targets == ignore_index
    safe = targets.masked_fill(mask, 0)
    if safe.min() < 0 or safe.max() >= logits.shape[-1]:
        raise ValueError(f"{targets=}")
    loss = -torch.take_along_dim(log_softmax(_logits(logits), -1), safe.unsqueeze(-1), -1).squeeze(-1)
    return loss.masked_fill(mask, 0).mean().to(logits.dtype)
