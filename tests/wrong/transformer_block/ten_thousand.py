"""mistake: base-fixed

RoPE's base is 10,000."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    vocab_size: int
    n_kv_heads: int | None = None
    norm: Literal["pre", "post"] = "pre"
    rope_base: float = 10000.0
    eps: float = 1e-6
    max_len: int = 1024


def matrix(rows, columns):
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(torch.empty(rows, columns).normal_(std=columns**-0.5)))
    return holder


def gain(d):
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.ones(d))
    return holder


def up(x):
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def rms(x, holder, eps):
    wide = up(x)
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    root = torch.hypot(size / wide.shape[-1] ** 0.5, torch.full_like(size, eps**0.5))
    return (wide / root * up(holder.weight)).to(x.dtype)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        groups = cfg.n_heads if cfg.n_kv_heads is None else cfg.n_kv_heads
        size, odd = divmod(cfg.d_model, cfg.n_heads)
        if odd or size % 2 or groups < 1 or cfg.n_heads % groups:
            raise ValueError(f"heads do not fit: {cfg}")
        self.order = {"pre": self.pre, "post": self.post}.get(cfg.norm)
        if self.order is None:
            raise ValueError(f"norm {cfg.norm!r}")
        self.cfg, self.size, self.group = cfg, size, cfg.n_heads // groups
        d = cfg.d_model
        self.attn = nn.ModuleDict(
            {
                "wq": matrix(d, d),
                "wk": matrix(groups * size, d),
                "wv": matrix(groups * size, d),
                "wo": matrix(d, d),
            }
        )
        self.ff = nn.ModuleDict(
            {"w_gate": matrix(cfg.d_ff, d), "w_up": matrix(cfg.d_ff, d), "w_down": matrix(d, cfg.d_ff)}
        )
        self.ff_norm, self.attn_norm = gain(d), gain(d)

    def __deepcopy__(self, memo):
        twin = Block(self.cfg).to(self.attn_norm.weight.dtype)
        twin.load_state_dict(self.state_dict())
        return twin

    def turned(self, x, place):
        half = self.size // 2
        rows = []
        for i in range(half):
            angle = place * 10000.0 ** (-2 * i / self.size)
            c, s, a, b = math.cos(angle), math.sin(angle), up(x[..., i]), up(x[..., i + half])
            rows.append((i, a * c - b * s))
            rows.append((i + half, a * s + b * c))
        return torch.stack([row for _, row in sorted(rows, key=lambda r: r[0])], -1).to(x.dtype)

    def attend(self, x):
        q, k, v = (x @ self.attn[name].weight.T for name in ("wq", "wk", "wv"))
        n, size = x.shape[1], self.size
        heads = []
        for h in range(self.cfg.n_heads):
            g = h // self.group
            mine, theirs = slice(h * size, h * size + size), slice(g * size, g * size + size)
            keys = [self.turned(k[:, t, theirs], t) for t in range(n)]
            rows = []
            for t in range(n):
                query = self.turned(q[:, t, mine], t)
                scores = torch.stack([(query * key).sum(-1) for key in keys[: t + 1]], -1) / size**0.5
                weights = torch.softmax(up(scores), -1).to(x.dtype)
                rows.append((weights[..., None] * v[:, : t + 1, theirs]).sum(1))
            heads.append(torch.stack(rows, 1) if rows else x[..., :size])
        return torch.cat(heads, -1) @ self.attn["wo"].weight.T

    def feed(self, x):
        gate = up(x @ self.ff["w_gate"].weight.T)
        hidden = (gate / (1 + torch.exp(-gate.clamp(min=-80)))).to(x.dtype) * (x @ self.ff["w_up"].weight.T)
        return hidden @ self.ff["w_down"].weight.T

    def pre(self, x, part, norm):
        return x + part(rms(x, norm, self.cfg.eps))

    def post(self, x, part, norm):
        return rms(x + part(x), norm, self.cfg.eps)

    def forward(self, x):
        if x.ndim != 3 or x.shape[1] > self.cfg.max_len or x.shape[2] != self.cfg.d_model:
            raise ValueError(f"cannot read {tuple(x.shape)}")
        return self.order(self.order(x, self.attend, self.attn_norm), self.feed, self.ff_norm)


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = matrix(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleDict({str(n): Block(cfg) for n in range(cfg.n_layers)})
        if cfg.norm == "pre":
            self.norm = gain(cfg.d_model)

    def forward(self, tokens):
        whole = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
        if tokens.dtype not in whole or tokens.ndim != 2 or tokens.shape[1] > self.cfg.max_len:
            raise ValueError(f"{tokens.dtype} {tuple(tokens.shape)}")
        for token in tokens.unique().tolist():
            if token not in range(self.cfg.vocab_size):
                raise ValueError(f"token {token}")
        x = self.embed.weight.index_select(0, tokens.flatten().long()).unflatten(0, tuple(tokens.shape))
        for block in self.blocks.values():
            x = block(x)
        if self.cfg.norm == "pre":
            x = rms(x, self.norm, self.cfg.eps)
        return torch.stack([(x * row).sum(-1) for row in self.embed.weight], -1)
