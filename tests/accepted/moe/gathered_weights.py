"""No loop at all: every assignment fetches its own expert's weights, and einsum does the rest."""

import torch
from torch import nn


class Router(nn.Module):
    def __init__(self, n_experts, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_experts, d_model) / d_model**0.5)

    def forward(self, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.einsum("...d,ed->...e", x.to(wide), self.weight.to(wide))


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        if not (0 < d_model and 0 < d_ff and 0 < top_k <= n_experts):
            raise ValueError(f"{d_model} {d_ff} {n_experts} {top_k}")
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"{capacity_factor}")
        super().__init__()
        self.shape = (d_model, d_ff, n_experts, top_k, capacity_factor)
        self.router = Router(n_experts, d_model)
        self.w_down = nn.Parameter(torch.randn(n_experts, d_model, d_ff))
        self.w_up = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.w_gate = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        d_model, _, _, k, _ = self.shape
        if x.shape[-1] != d_model:
            raise ValueError(f"{x.shape}")
        logits = self.router(x)
        left, picks = (logits + self.bias).detach().clone(), []
        for _ in range(k):  # the best, then the best of the rest
            pick = left.argmax(-1, keepdim=True)
            left.scatter_(-1, pick, -torch.inf)
            picks.insert(0, pick)
        experts = torch.cat(picks, -1)
        chosen = torch.take_along_dim(logits, experts, -1)
        return (chosen - chosen.logsumexp(-1, keepdim=True)).exp().to(x.dtype), experts

    def forward(self, x):
        d_model, _, n_experts, k, factor = self.shape
        weights, experts = self.route(x)
        tokens, e, w = x.reshape(-1, d_model), experts.reshape(-1, k), weights.reshape(-1, k)
        wide = torch.promote_types(x.dtype, torch.float32)
        w = w.to(wide)
        if factor is not None:
            room = -int(-(factor * len(tokens) * k / n_experts) // 1)
            taken = nn.functional.one_hot(e, n_experts).sum(1).cumsum(0)
            w = w * (taken.gather(1, e) <= room)
        up = torch.einsum("tkfd,td->tkf", self.w_up[e], tokens)
        gate = torch.einsum("tkfd,td->tkf", self.w_gate[e], tokens)
        y = torch.einsum("tkdf,tkf->tkd", self.w_down[e], gate * torch.sigmoid(gate) * up)
        return (y.to(wide) * w[..., None]).sum(1).to(x.dtype).reshape(x.shape)

    def update_bias(self, experts, *, rate=1e-3):
        n = self.shape[2]
        load = one_hots(experts, n).sum(0)
        self.bias.add_((load.sum() - n * load).sign() * rate)


def one_hots(experts, n):
    if not ((0 <= experts) & (experts < n)).all():
        raise ValueError(f"{experts} of {n}")
    return nn.functional.one_hot(experts.reshape(-1).long(), n)


def load_balancing_loss(logits, experts):
    if list(logits.shape[:-1]) != list(experts.shape[:-1]):
        raise ValueError(f"{logits.shape} {experts.shape}")
    n = logits.shape[-1]
    f = one_hots(experts, n).float().mean(0)
    p = logits.flatten(0, -2).softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).mean(0)
    return ((f.to(p) @ p) * n).to(logits.dtype)
