"""mistake: not-causal

Attention as in an encoder."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F


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


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_heads, self.n_kv_heads = (
            cfg.n_heads,
            cfg.n_kv_heads if cfg.n_kv_heads is not None else cfg.n_heads,
        )
        self.head_dim = cfg.d_model // cfg.n_heads
        self.wq = nn.Linear(cfg.d_model, cfg.d_model, bias=False)
        self.wk = nn.Linear(cfg.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(cfg.d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(cfg.d_model, cfg.d_model, bias=False)
        freqs = 1.0 / cfg.rope_base ** (torch.arange(0, self.head_dim, 2).double() / self.head_dim)
        angles = torch.outer(torch.arange(cfg.max_len).double(), freqs).repeat(1, 2)
        self.tables = angles.cos(), angles.sin()

    def forward(self, x):
        B, T, D = x.shape
        q = self.wq(x).view(B, T, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = (t[:T].to(wide) for t in self.tables)
        q = (q * cos + rotate_half(q) * sin).to(x.dtype)
        k = (k * cos + rotate_half(k) * sin).to(x.dtype)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.n_heads != self.n_kv_heads)
        return self.wo(y.transpose(1, 2).contiguous().view(B, T, D))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.w_gate = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.w_up = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.w_down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.norm not in ("pre", "post"):
            raise ValueError(f"norm {cfg.norm}")
        if cfg.d_model % cfg.n_heads != 0 or (cfg.d_model // cfg.n_heads) % 2 != 0:
            raise ValueError(f"{cfg.n_heads} heads for {cfg.d_model}")
        if cfg.n_kv_heads is not None and cfg.n_heads % cfg.n_kv_heads != 0:
            raise ValueError(f"{cfg.n_kv_heads} kv heads for {cfg.n_heads}")
        self.cfg = cfg
        self.attn = Attention(cfg)
        self.ff = MLP(cfg)
        self.attn_norm = RMSNorm(cfg.d_model, cfg.eps)
        self.ff_norm = RMSNorm(cfg.d_model, cfg.eps)

    def forward(self, x):
        if x.dim() != 3 or x.size(-1) != self.cfg.d_model or x.size(1) > self.cfg.max_len:
            raise ValueError(f"x {tuple(x.shape)}")
        if self.cfg.norm == "pre":
            h = x + self.attn(self.attn_norm(x))
            out = h + self.ff(self.ff_norm(h))
        else:
            h = self.attn_norm(x + self.attn(x))
            out = self.ff_norm(h + self.ff(h))
        return out


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layers)])
        if cfg.norm == "pre":
            self.norm = RMSNorm(cfg.d_model, cfg.eps)

    def forward(self, tokens):
        if tokens.dim() != 2:
            raise ValueError(f"tokens {tuple(tokens.shape)}")
        if tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"tokens of {tokens.dtype}")
        if tokens.size(1) > self.cfg.max_len:
            raise ValueError(f"{tokens.size(1)} tokens")
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.cfg.vocab_size):
            raise ValueError("token outside of the vocabulary")
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        if self.cfg.norm == "pre":
            x = self.norm(x)
        return F.linear(x, self.embed.weight)
