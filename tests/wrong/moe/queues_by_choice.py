"""mistake: capacity-by-choice

A table of choices whose running count forgets to add up the choices."""

import torch
import torch.nn.functional as F
from torch import nn


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        if any(s < 1 for s in (d_model, d_ff, n_experts, top_k)) or top_k > n_experts:
            raise ValueError(f"d_model {d_model}, d_ff {d_ff}, n_experts {n_experts}, top_k {top_k}")
        if capacity_factor is not None and capacity_factor <= 0:
            raise ValueError(f"capacity_factor {capacity_factor}")
        self.d_model, self.n_experts, self.top_k, self.capacity_factor = (
            d_model,
            n_experts,
            top_k,
            capacity_factor,
        )
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.w_gate = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.w_up = nn.Parameter(torch.randn(n_experts, d_ff, d_model))
        self.w_down = nn.Parameter(torch.randn(n_experts, d_model, d_ff))
        self.register_buffer("bias", torch.zeros(n_experts))

    def _logits(self, x):
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x {tuple(x.shape)}")
        return F.linear(x, self.router.weight)

    def route(self, x):
        logits = self._logits(x)
        wide = logits.to(torch.promote_types(x.dtype, torch.float32))
        chosen = torch.zeros_like(wide, dtype=torch.bool)
        order = torch.topk(wide + self.bias, self.top_k, dim=-1).indices
        chosen.scatter_(-1, order, True)
        probs = torch.softmax(wide.masked_fill(~chosen, float("-inf")), dim=-1)
        return probs.gather(-1, order).to(x.dtype), order

    def forward(self, x):
        w, e = self.route(x)
        shape = x.shape
        x = x.reshape(-1, self.d_model)
        T = x.shape[0]
        hit = F.one_hot(e.reshape(T, self.top_k), self.n_experts)
        acc = torch.promote_types(x.dtype, torch.float32)
        combine = torch.zeros(T, self.n_experts, dtype=acc).scatter(
            1, e.reshape(T, self.top_k), w.reshape(T, self.top_k).to(acc)
        )
        use = hit.sum(1)
        if self.capacity_factor is not None:
            room = torch.ceil(
                torch.tensor(self.capacity_factor * T * self.top_k / self.n_experts, dtype=torch.float64)
            )
            use = (hit * (hit.cumsum(0) <= room)).sum(1)
        out = torch.zeros(T, self.d_model, dtype=acc)
        for i in range(self.n_experts):
            rows = use[:, i].nonzero().flatten()
            if len(rows) == 0:
                continue
            h = x[rows]
            y = (F.silu(h @ self.w_gate[i].T) * (h @ self.w_up[i].T)) @ self.w_down[i].T
            out = out + torch.zeros_like(out).index_copy(0, rows, combine[rows, i, None] * y.to(acc))
        return out.to(x.dtype).reshape(shape)

    @torch.no_grad()
    def update_bias(self, experts, *, rate=1e-3):
        if torch.any(experts < 0) or torch.any(experts > self.n_experts - 1):
            raise ValueError(f"{experts}")
        load = (experts.reshape(-1, 1) == torch.arange(self.n_experts)).sum(0)
        mean = experts.numel() / self.n_experts
        self.bias += rate * torch.where(load < mean, 1.0, torch.where(load > mean, -1.0, 0.0)).to(
            self.bias.dtype
        )


def load_balancing_loss(logits, experts):
    if experts.ndim != logits.ndim or experts.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"{tuple(logits.shape)} {tuple(experts.shape)}")
    n = logits.shape[-1]
    if torch.any(experts < 0) or torch.any(experts > n - 1):
        raise ValueError(f"{experts}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    share = (experts.reshape(-1, 1) == torch.arange(n)).to(wide).mean(0)
    P = logits.to(wide).softmax(-1).reshape(-1, n).mean(0)
    return (share @ P * n).to(logits.dtype)
