"""Φ by ndtr, tanh by way of the logistic function, both projections up in one einsum."""

import math

import torch
import torch.nn as nn


def gelu(x, *, approximate="none"):
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if approximate == "none":
        y = h * torch.special.ndtr(h)
    elif approximate == "tanh":
        y = h * torch.special.expit(math.sqrt(8 / math.pi) * torch.addcmul(h, h * h, h, value=0.044715))
    else:
        raise ValueError(f"approximate={approximate}")
    return y.to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate={approximate}")
        self.d_model = d_model
        self.approximate = approximate
        self.w_up = nn.Linear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)

    def forward(self, x):
        if x.ndim == 0 or x.shape[-1] != self.d_model:
            raise ValueError(f"{tuple(x.shape)}")
        return self.w_down(gelu(self.w_up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.d_model = d_model
        self.w_gate = nn.Linear(d_model, d_ff, bias=False)
        self.w_up = nn.Linear(d_model, d_ff, bias=False)
        self.w_down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x):
        if x.ndim == 0 or x.shape[-1] != self.d_model:
            raise ValueError(f"{tuple(x.shape)}")
        both = torch.cat([self.w_gate.weight, self.w_up.weight])
        gate, up = torch.einsum("...d,fd->...f", x, both).tensor_split(2, dim=-1)
        hidden = gate * (0.5 + 0.5 * torch.tanh(0.5 * gate)) * up
        return torch.einsum("...f,df->...d", hidden, self.w_down.weight)
