r"""Layer normalisation, and batch normalisation in one dimension.

    y = (x − μ) / √(σ² + eps) · weight + bias          σ² = mean (x − μ)²

The same formula along different axes. LayerNorm takes μ and σ² over the channels of one token: no token
sees another, and training and inference are alike. BatchNorm takes them over the batch (and the length),
channel by channel: every example then depends on its neighbours, so that inference needs statistics of
its own, gathered while training:

    running ← (1 − momentum) · running + momentum · batch statistic

The batch is normalised by σ², which divides by n: that is what has variance 1 afterwards. running_var is
an estimate for examples not yet seen and divides by n − 1.

With u = g ∘ weight and x̂ the normalised x, both have the gradient

    ∂x = (u − mean(u) − x̂ · mean(u ∘ x̂)) / √(σ² + eps)

over the same axes; in eval BatchNorm is an affine map, and the two means are absent.

Numerics: the variance is taken of the centred values. E[x²] − E[x]² is one pass, but subtracts two
numbers of size μ² to get one of size σ²: in float32 nothing is left once μ/σ passes 4,000. Half types are
computed in float32 and rounded once. Costs O(n) time and two temporaries of x's size.

Sources: Ba, Kiros & Hinton, Layer Normalization, 2016, arXiv:1607.06450, equation 3; Ioffe & Szegedy,
Batch Normalization, 2015, arXiv:1502.03167, algorithms 1 and 2. Names, eps and momentum as in torch.nn.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Every token to mean 0 and variance 1 over its channels, then an affine map of each channel."""

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """ValueError if the last dimension of x is not ``dim``."""
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"x {tuple(x.shape)} does not end in {len(self.weight)} channels")
        wide = _widened(x)
        mean = wide.mean(dim=-1, keepdim=True)
        var = (wide - mean).square().mean(dim=-1, keepdim=True)
        normed = (wide - mean) * (var + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(x.dtype)


class BatchNorm1d(nn.Module):
    """Every channel to mean 0 and variance 1 over the batch; in eval by the statistics gathered so far."""

    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Float[Tensor, "batch channels *length"]) -> Float[Tensor, "batch channels *length"]:
        """ValueError if the shape of x does not fit, or has one value a channel to train on."""
        if x.ndim not in (2, 3) or x.shape[1] != len(self.weight):
            raise ValueError(f"x {tuple(x.shape)} is not (batch, {len(self.weight)}[, length])")
        # Channels last, as in LayerNorm: (batch, channels) or (batch, length, channels)
        wide = _widened(x).movedim(1, -1)
        mean, var = self._observe(wide) if self.training else (self.running_mean, self.running_var)
        scale = (var + self.eps).rsqrt() * self.weight
        return ((wide - mean) * scale + self.bias).movedim(-1, 1).to(x.dtype)

    def _observe(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel in this batch, which the running statistics follow."""
        rows = wide.flatten(0, -2)
        count = len(rows)
        if count < 2:
            raise ValueError(f"{count} values a channel are too few to train on: {tuple(wide.shape)}")
        mean = rows.mean(dim=0)
        var = (rows - mean).square().mean(dim=0)
        # No graph: the statistics would otherwise hold on to every batch ever seen.
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var * count / (count - 1) - self.running_var)
            self.num_batches_tracked += 1
        return mean, var


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, since their sums lose every term below ε · the running total."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
