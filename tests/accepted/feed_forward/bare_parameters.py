"""Parameters in holders of their own instead of nn.Linear, einsum, erfc, and σ(2y) for tanh."""

import math

import torch
from torch import nn


def gelu(x, *, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError(approximate)
    if approximate == "tanh":
        y = 0.7978845608028654 * x.double() * (1 + 0.044715 * x.double() * x.double())
        return (x.double() * torch.sigmoid(2 * y)).to(x.dtype)
    return (x.double() * torch.erfc(x.double() / -math.sqrt(2)) / 2).to(x.dtype)


class Matrix(nn.Module):
    def __init__(self, rows, columns, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) / columns**0.5)
        if bias:
            self.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, x):
        if x.ndim == 0 or x.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"{tuple(x.shape)} against {tuple(self.weight.shape)}")
        y = torch.einsum("...i,oi->...o", x, self.weight)
        return y + self.bias if hasattr(self, "bias") else y


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(approximate)
        self.w_up, self.w_down, self.approximate = Matrix(d_ff, d_model), Matrix(d_model, d_ff), approximate

    def forward(self, x):
        return self.w_down(gelu(self.w_up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.w_down = Matrix(d_model, d_ff, bias=False)
        self.w_up, self.w_gate = (Matrix(d_ff, d_model, bias=False) for _ in range(2))

    def forward(self, x):
        z = self.w_gate(x)
        return self.w_down(torch.sigmoid(z).mul(z).mul(self.w_up(x)))
