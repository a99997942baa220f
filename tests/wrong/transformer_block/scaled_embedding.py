"""mistake: embedding-scaled

The embedding is multiplied by √d_model."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from reference.feed_forward import SwiGLU
from reference.multi_head_attention import MultiHeadAttention
from reference.rmsnorm import rmsnorm
from reference.rope import rope_tables


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


class Norm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(cfg.d_model)), cfg.eps

    def forward(self, x):
        return rmsnorm(x, self.weight, eps=self.eps)


def pre(x, part, norm):
    return part(norm(x)) + x


def post(x, part, norm):
    return norm(part(x) + x)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        kinds = {"pre": pre, "post": post}
        if cfg.norm not in kinds or cfg.d_model % cfg.n_heads:
            raise ValueError(f"{cfg}")
        self.residual, size = kinds[cfg.norm], cfg.d_model // cfg.n_heads
        self.attn = MultiHeadAttention(
            cfg.d_model,
            cfg.n_heads,
            n_kv_heads=cfg.n_kv_heads,
            causal=True,
            rope=rope_tables(cfg.max_len, size, base=cfg.rope_base),
        )
        self.ff, self.attn_norm, self.ff_norm = SwiGLU(cfg.d_model, cfg.d_ff), Norm(cfg), Norm(cfg)

    def forward(self, x):
        return self.residual(self.residual(x, self.attn, self.attn_norm), self.ff, self.ff_norm)


class Table(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(rows, columns) - 0.5)


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embed = Table(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList()
        for _ in range(cfg.n_layers):
            self.blocks.append(Block(cfg))
        self.norm, self.longest = (Norm(cfg) if cfg.norm == "pre" else None), cfg.max_len

    def forward(self, tokens):
        table = self.embed.weight
        if tokens.dim() != 2 or tokens.shape[1] > self.longest or tokens.dtype.is_floating_point:
            raise ValueError(f"{tokens.shape} {tokens.dtype}")
        onehot = tokens[..., None] == torch.arange(len(table))
        if not onehot.any(-1).all():
            raise ValueError(f"{tokens.tolist()}")
        x = onehot.to(table.dtype) @ table * table.shape[1] ** 0.5
        for n in range(len(self.blocks)):
            x = self.blocks[n](x)
        return torch.einsum("btd,vd->btv", x if self.norm is None else self.norm(x), table)
