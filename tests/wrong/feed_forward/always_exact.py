"""mistake: approximate-kept-and-not-used

The network forgets what it was asked for."""

import math

import torch
import torch.nn as nn


def gelu(x, *, approximate="none"):
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if approximate == "none":
        y = h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0)))
    elif approximate == "tanh":
        y = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3))))
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
        return self.w_down(gelu(self.w_up(x)))


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
        g = self.w_gate(x)
        return self.w_down(g * torch.sigmoid(g) * self.w_up(x))
