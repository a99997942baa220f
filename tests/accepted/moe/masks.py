"""A loop over experts with where, probabilities renormalised, and sums in float64."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        for size in (d_model, d_ff, n_experts, top_k):
            if size < 1:
                raise ValueError(f"size {size}")
        if top_k > n_experts:
            raise ValueError(f"top_k {top_k} > {n_experts}")
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"capacity_factor {capacity_factor}")
        self.k, self.e, self.d, self.factor = top_k, n_experts, d_model, capacity_factor
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = nn.Parameter(torch.randn(n_experts, d_ff, d_model) * 0.02)
        self.w_up = nn.Parameter(torch.randn(n_experts, d_ff, d_model) * 0.02)
        self.w_down = nn.Parameter(torch.randn(n_experts, d_model, d_ff) * 0.02)
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        if x.dim() == 0 or x.size(-1) != self.d:
            raise ValueError(f"x {tuple(x.shape)}, d_model {self.d}")
        logits = self.router(x).double()
        experts = torch.argsort(logits + self.bias, dim=-1, descending=True)[..., : self.k]
        p = torch.softmax(logits, dim=-1).gather(-1, experts)
        if (p.sum(-1) < 1e-12).any():  # the bias chose what the router would never have
            p = torch.softmax(logits.gather(-1, experts), dim=-1)
        return (p / p.sum(-1, keepdim=True)).to(x.dtype), experts

    def forward(self, x):
        weights, experts = self.route(x)
        flat, weights, experts = (
            x.reshape(-1, self.d),
            weights.reshape(-1, self.k),
            experts.reshape(-1, self.k),
        )
        out = torch.zeros(flat.shape, dtype=torch.float64)
        for e in range(self.e):
            token, choice = torch.where(experts == e)
            if self.factor is not None:
                room = math.ceil(self.factor * flat.size(0) * self.k / self.e)
                token, choice = token[:room], choice[:room]
            if token.numel() == 0:
                continue
            h = F.silu(F.linear(flat[token], self.w_gate[e])) * F.linear(flat[token], self.w_up[e])
            y = F.linear(h, self.w_down[e])
            out = out.index_add(0, token, (y * weights[token, choice, None]).double())
        return out.to(x.dtype).view(x.shape)

    @torch.no_grad()
    def update_bias(self, experts, *, rate=1e-3):
        load = count(experts, self.e).double()
        self.bias.add_(rate * torch.sign(load.mean() - load))


def count(experts, n):
    if experts.numel() and (experts.min() < 0 or experts.max() >= n):
        raise ValueError(f"experts {experts}")
    return torch.bincount(experts.reshape(-1), minlength=n)


def load_balancing_loss(logits, experts):
    n = logits.size(-1)
    if logits.shape[:-1] != experts.shape[:-1]:
        raise ValueError(f"{logits.shape} {experts.shape}")
    f = count(experts, n) / experts.numel()
    p = torch.softmax(logits.double(), -1).reshape(-1, n).mean(0)
    return (n * torch.sum(f * p)).to(logits.dtype)
