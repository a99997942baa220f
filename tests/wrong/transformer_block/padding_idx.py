"""mistake: token-0-is-padding

Terse, with complex rotations; the embedding takes token 0 for padding."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
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


class Norm(nn.Module):
    def __init__(s, d, eps):
        super().__init__()
        s.weight, s.eps = nn.Parameter(torch.ones(d)), eps

    def forward(s, x):
        y = x.double() if x.dtype == torch.float64 else x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + s.eps)).type_as(x) * s.weight


def lin(i, o):
    return nn.Linear(i, o, bias=False)


class Attn(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.h, s.g = c.n_heads, c.n_kv_heads or c.n_heads
        s.d = c.d_model // s.h
        s.wq, s.wk, s.wv, s.wo = (
            lin(c.d_model, c.d_model),
            lin(c.d_model, s.g * s.d),
            lin(c.d_model, s.g * s.d),
            lin(c.d_model, c.d_model),
        )
        s.base = c.rope_base

    def turn(s, x):
        t = torch.arange(x.shape[2], device=x.device).float()
        f = s.base ** (-torch.arange(0, s.d, 2, device=x.device).float() / s.d)
        cis = torch.polar(torch.ones(()), t[:, None] * f)
        a, b = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
        z = torch.complex(a, b) * cis
        return torch.cat([z.real, z.imag], -1).type_as(x)

    def forward(s, x):
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, -1, s.d).transpose(1, 2) for w in (s.wq, s.wk, s.wv))
        o = F.scaled_dot_product_attention(s.turn(q), s.turn(k), v, is_causal=True, enable_gqa=True)
        return s.wo(o.transpose(1, 2).reshape(B, T, -1))


class FF(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.w_gate, s.w_up, s.w_down = lin(c.d_model, c.d_ff), lin(c.d_model, c.d_ff), lin(c.d_ff, c.d_model)

    def forward(s, x):
        return s.w_down(F.silu(s.w_gate(x)) * s.w_up(x))


class Block(nn.Module):
    def __init__(s, cfg):
        super().__init__()
        if cfg.norm not in ("pre", "post"):
            raise ValueError(f"norm {cfg.norm}")
        if (
            cfg.d_model % cfg.n_heads
            or cfg.d_model // cfg.n_heads % 2
            or cfg.n_heads % (cfg.n_kv_heads or cfg.n_heads)
        ):
            raise ValueError(f"{cfg}")
        s.cfg, s.attn, s.ff = cfg, Attn(cfg), FF(cfg)
        s.attn_norm, s.ff_norm = Norm(cfg.d_model, cfg.eps), Norm(cfg.d_model, cfg.eps)

    def forward(s, x):
        if x.ndim != 3 or x.shape[-1] != s.cfg.d_model or x.shape[1] > s.cfg.max_len:
            raise ValueError(f"{x.shape}")
        if s.cfg.norm == "pre":
            x = x + s.attn(s.attn_norm(x))
            return x + s.ff(s.ff_norm(x))
        x = s.attn_norm(x + s.attn(x))
        return s.ff_norm(x + s.ff(x))


class DecoderLM(nn.Module):
    def __init__(s, cfg):
        super().__init__()
        s.cfg = cfg
        s.embed = nn.Embedding(cfg.vocab_size, cfg.d_model, padding_idx=0)
        s.blocks = nn.Sequential(*[Block(cfg) for _ in range(cfg.n_layers)])
        if cfg.norm == "pre":
            s.norm = Norm(cfg.d_model, cfg.eps)

    def forward(s, tokens):
        if (
            tokens.ndim != 2
            or tokens.is_floating_point()
            or tokens.dtype == torch.bool
            or tokens.shape[1] > s.cfg.max_len
        ):
            raise ValueError(f"{tokens.shape} {tokens.dtype}")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < s.cfg.vocab_size:
            raise ValueError(f"{tokens}")
        x = s.blocks(s.embed(tokens))
        if s.cfg.norm == "pre":
            x = s.norm(x)
        return torch.einsum("btd,vd->btv", x, s.embed.weight)
