"""mistake: capacity-rounded-down

NumPy keeps the books, int() the room."""

import numpy as np
import torch
from torch import nn


def swiglu(x, w_gate, w_up, w_down):
    gate, up = torch.cat([w_gate, w_up]).matmul(x.mT).mT.chunk(2, dim=-1)
    return (nn.functional.silu(gate) * up).matmul(w_down.mT)


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        if min(d_model, d_ff, n_experts, top_k) <= 0:
            raise ValueError(f"{(d_model, d_ff, n_experts, top_k)}")
        if n_experts < top_k:
            raise ValueError(f"{(n_experts, top_k)}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"{capacity_factor=}")
        self.d_model, self.n_experts, self.top_k = d_model, n_experts, top_k
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = nn.Parameter(torch.rand(n_experts, d_ff, d_model) - 0.5)
        self.w_up = nn.Parameter(torch.rand(n_experts, d_ff, d_model) - 0.5)
        self.w_down = nn.Parameter(torch.rand(n_experts, d_model, d_ff) - 0.5)
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        if x.shape[-1] != self.d_model:
            raise ValueError(f"{tuple(x.shape)} {self.d_model}")
        logits = self.router(x)
        _, experts = torch.topk(logits.detach() + self.bias, self.top_k, dim=-1, sorted=False)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        chosen = torch.gather(logits, -1, experts).to(wide)
        chosen = torch.exp(chosen - chosen.max(-1, keepdim=True).values)
        return (chosen / chosen.sum(-1, keepdim=True)).to(x.dtype), experts

    def forward(self, x):
        weights, experts = self.route(x)
        flat = x.contiguous().view(-1, self.d_model)
        n = flat.shape[0]
        if n == 0:
            return x.clone()
        who = experts.reshape(-1).numpy()
        order = np.argsort(who, kind="stable")
        edges = np.searchsorted(who[order], np.arange(self.n_experts + 1))
        room = (
            n if self.capacity_factor is None else int(self.capacity_factor * n * self.top_k / self.n_experts)
        )
        pieces = []
        for e in range(self.n_experts):
            mine = order[edges[e] : edges[e + 1]]
            if not len(mine):
                continue
            served, late = mine[:room], mine[room:]
            y = swiglu(
                flat[torch.from_numpy(served // self.top_k)], self.w_gate[e], self.w_up[e], self.w_down[e]
            )
            pieces += [y, y.new_zeros(len(late), self.d_model)]
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        per_choice = torch.cat(pieces)[back].view(n, self.top_k, self.d_model)
        w = weights.view(n, self.top_k, 1)
        return (per_choice.float() * w if x.itemsize < 4 else per_choice * w).sum(1).to(x.dtype).view_as(x)

    def update_bias(self, experts, *, rate=1e-3):
        load = tally(experts, self.n_experts)
        with torch.no_grad():
            self.bias += torch.from_numpy(np.sign(load.mean() - load)).to(self.bias.dtype) * rate


def tally(experts, n):
    flat = experts.reshape(-1).numpy()
    if ((flat < 0) | (flat >= n)).any():
        raise ValueError(f"no such expert among {n}: {flat}")
    return np.bincount(flat, minlength=n)


def load_balancing_loss(logits, experts):
    if experts.shape[:-1] != logits.shape[:-1]:
        raise ValueError("shapes")
    n = logits.shape[-1]
    f = torch.from_numpy(tally(experts, n) / experts.numel())
    wide = logits.double().reshape(-1, n)
    p = (wide - wide.logsumexp(-1, keepdim=True)).exp()
    return (n * (p * f).sum() / len(p)).to(logits.dtype)
