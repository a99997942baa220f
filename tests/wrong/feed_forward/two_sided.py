"""mistake: slope-through-where

In blocks and buffers; σ picks the side that does not overflow, after computing both."""

import torch
from torch import nn


def gelu(x, *, approximate="none"):
    a = x.to(torch.promote_types(x.dtype, torch.float32))
    if approximate == "none":
        t = torch.erf(a.mul(0.7071067811865476)).add_(1.0).mul_(0.5)
    elif approximate == "tanh":
        t = a.square().mul_(0.044715).add_(1.0).mul_(a).mul_(0.7978845608028654).tanh().add(1.0).mul_(0.5)
    else:
        raise ValueError(approximate)
    return t.mul(a).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(approximate)
        self.w_up = nn.Linear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)
        self.d_model, self.kind = d_model, approximate

    def forward(self, x):
        if not x.dim() or x.size(-1) != self.d_model:
            raise ValueError(x.shape)
        flat = x.reshape(-1, self.d_model) if x.numel() else x.reshape(0, self.d_model)
        out = torch.empty_like(flat)
        for i in range(0, len(flat), 64):
            hidden = torch.addmm(self.w_up.bias, flat[i : i + 64], self.w_up.weight.t())
            out[i : i + 64] = torch.addmm(
                self.w_down.bias, gelu(hidden, approximate=self.kind), self.w_down.weight.t()
            )
        return out.view(x.shape)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.w_gate = nn.Linear(d_model, d_ff, bias=False)
        self.w_up = nn.Linear(d_model, d_ff, bias=False)
        self.w_down = nn.Linear(d_ff, d_model, bias=False)
        self.d_model, self.d_ff = d_model, d_ff

    def forward(self, x):
        if not x.dim() or x.size(-1) != self.d_model:
            raise ValueError(x.shape)
        flat = x.reshape(-1, self.d_model) if x.numel() else x.reshape(0, self.d_model)
        both = torch.empty(len(flat), 2 * self.d_ff, dtype=x.dtype, device=x.device)
        both[:, : self.d_ff] = flat @ self.w_gate.weight.t()
        both[:, self.d_ff :] = flat @ self.w_up.weight.t()
        g, u = both.split(self.d_ff, dim=1)
        w = g if g.dtype == torch.float64 else g.float()
        s = torch.where(w >= 0, 1 / (1 + torch.exp(-w)), torch.exp(w) / (1 + torch.exp(w))).to(g.dtype)
        return torch.matmul(s * g * u, self.w_down.weight.t()).view(x.shape)
