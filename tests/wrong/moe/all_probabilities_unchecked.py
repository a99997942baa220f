"""mistake: weights-not-renormalised

The softmax over all experts, gathered; and nothing is ever refused."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        self.d_model, self.d_ff, self.n_experts, self.top_k = d_model, d_ff, n_experts, top_k
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = nn.Parameter(torch.randn(n_experts, d_ff, d_model) * d_model**-0.5)
        self.w_up = nn.Parameter(torch.randn(n_experts, d_ff, d_model) * d_model**-0.5)
        self.w_down = nn.Parameter(torch.randn(n_experts, d_model, d_ff) * d_ff**-0.5)
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        logits = self.router(x)
        experts = (logits + self.bias).topk(self.top_k, dim=-1).indices
        weights = F.softmax(logits, dim=-1, dtype=torch.float32 if logits.itemsize < 4 else None)
        weights = weights.gather(-1, experts)
        return weights.to(x.dtype), experts

    def forward(self, x):
        weights, experts = self.route(x)
        flat = x.reshape(-1, self.d_model)
        n = flat.shape[0]
        weights = weights.reshape(n, self.top_k)
        experts = experts.reshape(n, self.top_k)
        acc = torch.zeros(
            n, self.d_model, dtype=torch.float32 if x.itemsize < 4 else x.dtype, device=x.device
        )
        cap = None
        if self.capacity_factor is not None:
            cap = math.ceil(self.capacity_factor * n * self.top_k / self.n_experts)
        for e in range(self.n_experts):
            tok, slot = torch.where(experts == e)
            if cap is not None:
                tok, slot = tok[:cap], slot[:cap]
            if tok.numel() == 0:
                continue
            h = flat[tok]
            out = (F.silu(h @ self.w_gate[e].T) * (h @ self.w_up[e].T)) @ self.w_down[e].T
            acc = acc.index_add(0, tok, (out.to(acc.dtype) * weights[tok, slot].to(acc.dtype)[:, None]))
        return acc.to(x.dtype).reshape(x.shape)

    @torch.no_grad()
    def update_bias(self, experts, *, rate=1e-3):
        load = torch.bincount(experts.reshape(-1), minlength=self.n_experts).to(self.bias.dtype)
        self.bias += rate * torch.sign(load.mean() - load)


def load_balancing_loss(logits, experts):
    n = logits.shape[-1]
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32 if logits.itemsize < 4 else None)
    P = probs.reshape(-1, n).mean(0)
    f = torch.bincount(experts.reshape(-1), minlength=n).to(probs.dtype) / experts.numel()
    return (n * (f * P).sum()).to(logits.dtype)
