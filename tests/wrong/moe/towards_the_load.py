"""mistake: bias-with-the-load

The signs of the comparisons are turned round."""

from math import ceil

import torch
from torch import nn


class Experts(torch.autograd.Function):
    """Assignments sorted by expert; edges say where each expert's run ends."""

    @staticmethod
    def forward(ctx, inputs, edges, w_gate, w_up, w_down):
        ctx.save_for_backward(inputs, w_gate, w_up, w_down)
        ctx.edges, out = edges, torch.zeros_like(inputs)
        for e, (a, b) in enumerate(zip(edges, edges[1:])):
            if b > a:
                g, u = inputs[a:b] @ w_gate[e].T, inputs[a:b] @ w_up[e].T
                out[a:b] = (g * g.sigmoid() * u) @ w_down[e].T
        return out

    @staticmethod
    def backward(ctx, slope):
        inputs, w_gate, w_up, w_down = ctx.saved_tensors
        d_in, d_gate, d_up, d_down = map(torch.zeros_like, (inputs, w_gate, w_up, w_down))
        for e, (a, b) in enumerate(zip(ctx.edges, ctx.edges[1:])):
            if b > a:
                x, dy = inputs[a:b], slope[a:b]
                g, u = x @ w_gate[e].T, x @ w_up[e].T
                s = g.sigmoid()
                dh = dy @ w_down[e]
                dg, du = dh * u * s * (1 + g * (1 - s)), dh * g * s
                d_down[e] = dy.T @ (g * s * u)
                d_gate[e], d_up[e] = dg.T @ x, du.T @ x
                d_in[a:b] = dg @ w_gate[e] + du @ w_up[e]
        return d_in, None, d_gate, d_up, d_down


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        if d_model < 1 or d_ff < 1 or n_experts < 1 or not 1 <= top_k <= n_experts:
            raise ValueError((d_model, d_ff, n_experts, top_k))
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(capacity_factor)
        self.top_k, self.capacity_factor = top_k, capacity_factor
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.w_up = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.w_down = nn.Parameter(torch.randn(n_experts, d_model, d_ff))
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        if x.shape[-1] != self.router.in_features:
            raise ValueError(tuple(x.shape))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        logits = x.to(wide) @ self.router.weight.to(wide).T
        chosen = torch.zeros_like(logits, dtype=torch.bool)
        chosen = chosen.scatter(-1, (logits + self.bias).topk(self.top_k).indices, True)
        p = logits.masked_fill(~chosen, -torch.inf).softmax(-1)
        experts = chosen.nonzero()[:, -1].reshape(*x.shape[:-1], self.top_k)
        return p.gather(-1, experts).to(x.dtype), experts

    def forward(self, x):
        weights, experts = self.route(x)
        n_experts, d_model = self.router.weight.shape
        tokens, experts = x.reshape(-1, d_model), experts.flatten()
        token = torch.arange(len(tokens)).repeat_interleave(self.top_k)
        experts, order = experts.sort(stable=True)
        first = torch.searchsorted(experts, torch.arange(n_experts))
        if self.capacity_factor is not None:
            room = ceil(self.capacity_factor * len(tokens) * self.top_k / n_experts)
            kept = torch.arange(len(experts)) - first[experts] < room
            order, experts = order[kept], experts[kept]
        edges = torch.searchsorted(experts, torch.arange(n_experts + 1)).tolist()
        y = Experts.apply(tokens[token[order]], edges, self.w_gate, self.w_up, self.w_down)
        y = y.float() if y.itemsize < 4 else y
        y = y * weights.flatten()[order][:, None]
        out = torch.zeros(tokens.shape, dtype=y.dtype).scatter_add(0, token[order][:, None].expand_as(y), y)
        return out.to(x.dtype).reshape(x.shape)

    def update_bias(self, experts, *, rate=1e-3):
        n = len(self.bias)
        if ((experts < 0) | (experts >= n)).any():
            raise ValueError(experts)
        load = (experts.reshape(-1, 1) == torch.arange(n)).sum(0).to(self.bias)
        self.bias[load > load.mean()] += rate
        self.bias[load < load.mean()] -= rate


def load_balancing_loss(logits, experts):
    n = logits.shape[-1]
    if logits.shape[:-1] != experts.shape[:-1] or ((experts < 0) | (experts >= n)).any():
        raise ValueError(f"{logits.shape} {experts}")
    f = torch.zeros(n, dtype=torch.float64).index_add(
        0, experts.flatten(), torch.ones(experts.numel()).double()
    )
    p = logits.reshape(-1, n).double().softmax(-1)
    return (n * (p.mean(0) * f / f.sum()).sum()).to(logits.dtype)
