"""Activations as autograd functions with derivatives written by hand."""

from math import pi, sqrt

import torch
from torch import nn


class Activation(torch.autograd.Function):
    def forward(ctx, x, kind):
        y = x.double()
        if kind == "silu":
            s = y.sigmoid()
            slope = s + y * s * (1 - s)
        elif kind == "none":
            s = (1 + torch.erf(y / sqrt(2))) / 2
            slope = s + y * torch.exp(-y * y / 2) / sqrt(2 * pi)
        else:
            t = torch.tanh(sqrt(2 / pi) * (y + 0.044715 * y**3))
            s = (1 + t) / 2
            slope = s + y / 2 * (1 - t * t) * sqrt(2 / pi) * (1 + 0.134145 * y * y)
        ctx.save_for_backward(slope)
        return (y * s).to(x.dtype)

    def backward(ctx, g):
        return (g * ctx.saved_tensors[0]).to(g.dtype), None


def gelu(x, *, approximate="none"):
    if approximate == "none" or approximate == "tanh":
        return Activation.apply(x, approximate)
    raise ValueError(f"no GELU of form {approximate}")


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        self.form, self.w_up, self.w_down = approximate, nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x):
        if x.shape[-1:].numel() != self.w_up.in_features or x.ndim < 1:
            raise ValueError(tuple(x.shape))
        return self.w_down(gelu(self.w_up(x), approximate=self.form))


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        for name, sizes in {
            "w_gate": (d_model, d_ff),
            "w_up": (d_model, d_ff),
            "w_down": (d_ff, d_model),
        }.items():
            setattr(self, name, nn.Linear(*sizes, bias=False))

    def forward(self, x):
        if x.shape[-1:].numel() != self.w_up.in_features or x.ndim < 1:
            raise ValueError(tuple(x.shape))
        return self.w_down(Activation.apply(self.w_gate(x), "silu") * self.w_up(x))
