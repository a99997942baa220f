"""mistake: bias-in-the-weights

The bias is added to the logits once and for all."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Expert:
    """A view of one expert's weights."""

    def __init__(self, layer, e):
        self.gate, self.up, self.down = layer.w_gate[e], layer.w_up[e], layer.w_down[e]

    def __call__(self, x):
        return (F.silu(x @ self.gate.t()) * (x @ self.up.t())) @ self.down.t()


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        if any(s < 1 for s in [d_model, d_ff, n_experts, top_k]) or top_k > n_experts:
            raise ValueError(f"sizes {[d_model, d_ff, n_experts, top_k]}")
        if capacity_factor is not None:
            if capacity_factor <= 0.0:
                raise ValueError(f"capacity_factor {capacity_factor}")
        self.d_model, self.n_experts, self.top_k, self.capacity_factor = (
            d_model,
            n_experts,
            top_k,
            capacity_factor,
        )
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate, self.w_up = (nn.Parameter(torch.empty(n_experts, d_ff, d_model)) for _ in range(2))
        self.w_down = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        for w in (self.w_gate, self.w_up, self.w_down):
            nn.init.xavier_normal_(w)
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x is {tuple(x.shape)}, expected (..., {self.d_model})")
        logits = F.linear(x, self.router.weight) + self.bias.to(x.dtype)
        experts = torch.topk(logits, self.top_k, dim=-1)[1]
        top = logits.gather(-1, experts)
        return F.softmax(top if top.dtype == torch.float64 else top.float(), dim=-1).to(
            x.dtype
        ), experts.int()

    def forward(self, x):
        weights, experts = self.route(x)
        tokens = x.reshape(-1, self.d_model)
        weights, experts = weights.reshape(-1, self.top_k), experts.reshape(-1, self.top_k)
        room = None
        if self.capacity_factor is not None:
            room = math.ceil(self.capacity_factor * tokens.shape[0] * self.top_k / self.n_experts)
        total = torch.zeros_like(tokens, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        for e in range(self.n_experts):
            chose = (experts == e).any(-1)
            if room is not None:
                chose = chose & (torch.cumsum(chose, 0) <= room)
            rows = chose.nonzero().squeeze(-1)
            if rows.numel():
                share = (weights * (experts == e)).sum(-1)[rows]
                total[rows] = total[rows] + Expert(self, e)(tokens[rows]) * share[:, None]
        return total.to(x.dtype).reshape(x.shape)

    def update_bias(self, experts, *, rate=1e-3):
        load = loads(experts, self.n_experts)
        mean = experts.numel() / self.n_experts
        for e, n in enumerate(load):
            self.bias[e] += rate * ((n < mean) - (n > mean))


def loads(experts, n):
    load = [0] * n
    for e in experts.flatten().tolist():
        if not 0 <= e < n:
            raise ValueError(f"expert {e} of {n}")
        load[e] += 1
    return load


def load_balancing_loss(logits, experts):
    n = logits.shape[-1]
    if experts.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"{tuple(experts.shape)} {tuple(logits.shape)}")
    p = F.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    dims = tuple(range(logits.dim() - 1))
    p = p.mean(dims) if dims else p
    total = sum(f * p_i for f, p_i in zip(loads(experts, n), p))
    return (n * total / experts.numel()).to(logits.dtype)
