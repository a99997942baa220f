"""Places in the queue by a running count, as GShard has them; experts in ascending order, as int32."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MoE(nn.Module):
    def __init__(
        self, d_model: int, d_ff: int, n_experts: int, top_k: int, *, capacity_factor: float | None = None
    ):
        if min(d_model, d_ff, n_experts, top_k) < 1:
            raise ValueError(f"{d_model=}, {d_ff=}, {n_experts=}, {top_k=}")
        if top_k > n_experts:
            raise ValueError(f"{top_k=} {n_experts=}")
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"{capacity_factor=}")
        super().__init__()
        self.d_model, self.n_experts, self.top_k, self.capacity_factor = (
            d_model,
            n_experts,
            top_k,
            capacity_factor,
        )
        self.router = nn.Linear(d_model, n_experts, bias=False)
        for name, rows, columns in (
            ("w_gate", d_ff, d_model),
            ("w_up", d_ff, d_model),
            ("w_down", d_model, d_ff),
        ):
            weight = nn.init.xavier_uniform_(torch.empty(n_experts, rows, columns))
            setattr(self, name, nn.Parameter(weight))
        self.register_buffer("bias", torch.zeros(n_experts), persistent=True)

    def route(self, x):
        if x.shape[-1] != self.d_model:
            raise ValueError(f"expected last dimension {self.d_model}, got {tuple(x.shape)}")
        logits = F.linear(x, self.router.weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        experts = torch.argsort(logits + self.bias, dim=-1, descending=True)[..., : self.top_k]
        experts = experts.sort(-1).values
        weights = torch.log_softmax(torch.take_along_dim(logits, experts, -1), -1).exp()
        return weights.to(x.dtype), experts.to(torch.int32)

    def forward(self, x):
        weights, experts = self.route(x)
        flat = x.reshape(-1, self.d_model)
        T, K, E = flat.shape[0], self.top_k, self.n_experts
        who = experts.reshape(T * K).long()
        gate = weights.reshape(T * K)
        token = torch.arange(T).repeat_interleave(K)
        if self.capacity_factor is not None:
            hot = F.one_hot(who, E)
            place = (hot.cumsum(0) * hot).sum(-1) - 1
            room = math.ceil(self.capacity_factor * (T * K) / E)
            keep = place < room
            who, gate, token = who[keep], gate[keep], token[keep]
        acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        y = torch.zeros(T, self.d_model, dtype=acc)
        for e in who.unique().tolist():
            sel = (who == e).nonzero().squeeze(-1)
            h = flat.index_select(0, token[sel])
            o = F.linear(F.silu(F.linear(h, self.w_gate[e])) * F.linear(h, self.w_up[e]), self.w_down[e])
            y = y.index_add(0, token[sel], gate[sel, None].to(acc) * o.to(acc))
        return y.to(x.dtype).reshape(x.shape)

    def update_bias(self, experts, *, rate=1e-3):
        if ((experts < 0) | (experts >= self.n_experts)).any():
            raise ValueError(f"experts must be in 0…{self.n_experts - 1}: {experts.tolist()}")
        hot = F.one_hot(experts.long().reshape(-1), self.n_experts).sum(0)
        total = hot.sum()
        direction = torch.sign(total - hot * self.n_experts)
        self.bias.copy_(self.bias + rate * direction)


def load_balancing_loss(logits, experts):
    if logits.shape[:-1] != experts.shape[:-1]:
        raise ValueError(f"{logits.shape} {experts.shape}")
    E = logits.shape[-1]
    if ((experts < 0) | (experts >= E)).any():
        raise ValueError(f"experts must be in 0…{E - 1}: {experts.tolist()}")
    z = logits if logits.dtype == torch.float64 else logits.float()
    P = z.log_softmax(-1).exp().reshape(-1, E).mean(0)
    hot = F.one_hot(experts.long(), E).reshape(-1, E).sum(0).to(z.dtype)
    return (E * (hot / hot.sum() * P).sum()).to(logits.dtype)
