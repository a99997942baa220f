"""mistake: capacity-forgets-the-bias

A router of its own class, asked with a bias of zero where there is a capacity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterator, NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    weights: Tensor
    experts: Tensor


@dataclass(frozen=True)
class Config:
    d_model: int
    d_ff: int
    n_experts: int
    top_k: int
    capacity_factor: float | None = None

    def __post_init__(self):
        for name in ("d_model", "d_ff", "n_experts", "top_k"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k={self.top_k} exceeds n_experts={self.n_experts}")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(f"capacity_factor={self.capacity_factor} must be positive")

    def room(self, tokens: int) -> int | None:
        if self.capacity_factor is None:
            return None
        return math.ceil(self.capacity_factor * (tokens * self.top_k / self.n_experts))


def accumulator(dtype):
    return {torch.bfloat16: torch.float32, torch.float16: torch.float32}.get(dtype, dtype)


class Router(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.n_experts, config.d_model) / math.sqrt(config.d_model))
        self.top_k = config.top_k

    def forward(self, x: Tensor, bias: Tensor) -> Routing:
        acc = accumulator(x.dtype)
        logits = torch.einsum("...d,ed->...e", x, self.weight).to(acc)
        scores = logits + bias.to(acc)
        taken = []
        for _ in range(self.top_k):
            best = scores.argmax(-1, keepdim=True)
            taken.append(best)
            scores = scores.scatter(-1, best, -torch.inf)
        experts = torch.cat(taken, -1)
        return Routing(torch.softmax(logits.gather(-1, experts), -1).to(x.dtype), experts)


class Dispatcher:
    def __init__(self, experts: Tensor, room: int | None):
        self.experts, self.room = experts, room

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for e in sorted(set(self.experts.flatten().tolist())):
            tokens, choices = torch.nonzero(self.experts == e).unbind(1)
            yield e, tokens[: self.room], choices[: self.room]


class MoE(nn.Module):
    def __init__(self, d_model, d_ff, n_experts, top_k, *, capacity_factor=None):
        super().__init__()
        self.config = Config(d_model, d_ff, n_experts, top_k, capacity_factor)
        self.router = Router(self.config)
        self.w_gate = nn.Parameter(torch.empty(n_experts, d_ff, d_model))
        self.w_up = nn.Parameter(torch.empty(n_experts, d_ff, d_model))
        self.w_down = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        for w in (self.w_gate, self.w_up, self.w_down):
            nn.init.normal_(w, std=0.02)
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(n_experts))

    def route(self, x):
        if x.shape[-1:] != (self.config.d_model,):
            raise ValueError(f"x of shape {tuple(x.shape)} must end in d_model={self.config.d_model}")
        return tuple(self.router(x, self.bias))

    def expert(self, e, x):
        gate, up = x @ self.w_gate[e].T, x @ self.w_up[e].T
        return (gate / (1 + torch.exp(-gate)) * up) @ self.w_down[e].T

    def forward(self, x):
        self.route(x)
        weights, experts = self.router(x, self.bias if self.config.capacity_factor is None else 0 * self.bias)
        tokens = x.reshape(-1, self.config.d_model)
        weights = weights.reshape(-1, self.config.top_k)
        out = torch.zeros_like(tokens, dtype=accumulator(x.dtype))
        for e, rows, choices in Dispatcher(
            experts.reshape(-1, self.config.top_k), self.config.room(len(tokens))
        ):
            out[rows] += weights[rows, choices][:, None] * self.expert(e, tokens[rows])
        return out.to(x.dtype).view(x.shape)

    def update_bias(self, experts, *, rate=1e-3):
        load = load_of(experts, self.config.n_experts)
        with torch.no_grad():
            self.bias.add_(torch.sign(load.double().mean() - load).to(self.bias), alpha=rate)


def load_of(experts, n):
    flat = experts.reshape(-1)
    if flat.numel() and not (0 <= int(flat.min()) and int(flat.max()) < n):
        raise ValueError(f"experts {flat.tolist()} must lie in 0 … {n - 1}")
    return torch.zeros(n, dtype=torch.long).scatter_add_(
        0, flat.long(), torch.ones_like(flat, dtype=torch.long)
    )


def load_balancing_loss(logits, experts):
    if experts.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"experts {tuple(experts.shape)} and logits {tuple(logits.shape)} differ before the last dimension"
        )
    n = logits.shape[-1]
    load = load_of(experts, n)
    acc = accumulator(logits.dtype)
    f = load.to(acc) / load.sum()
    P = logits.to(acc).softmax(-1).flatten(0, -2).mean(0) if logits.dim() > 1 else logits.to(acc).softmax(-1)
    return (n * torch.sum(f * P)).to(logits.dtype)
