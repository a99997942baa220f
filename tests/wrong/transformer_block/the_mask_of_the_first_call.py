"""mistake: mask-of-the-first-call

Right but for what is kept at a fixed size."""

from dataclasses import dataclass

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
    norm: str = "pre"
    rope_base: float = 10000.0
    eps: float = 1e-6
    max_len: int = 1024


class Norm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x):
        y = x if x.dtype == torch.float64 else x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        kv = c.n_heads if c.n_kv_heads is None else c.n_kv_heads
        if c.n_heads < 1 or c.d_model % (2 * c.n_heads) or kv < 1 or c.n_heads % kv:
            raise ValueError(f"{c}")
        self.h, self.kv, self.d = c.n_heads, kv, c.d_model // c.n_heads
        L = lambda i, o: nn.Linear(i, o, bias=False)
        self.wq, self.wk, self.wv, self.wo = (
            L(c.d_model, c.d_model),
            L(c.d_model, kv * self.d),
            L(c.d_model, kv * self.d),
            L(c.d_model, c.d_model),
        )
        f = c.rope_base ** (-torch.arange(0, self.d, 2).double() / self.d)
        a = torch.outer(torch.arange(c.max_len).double(), f)
        self.rot = torch.polar(torch.ones_like(a), a)

    def turn(self, x):
        w = torch.float64 if x.dtype == torch.float64 else torch.float32
        a, b = x.to(w).chunk(2, -1)
        z = torch.complex(a.contiguous(), b.contiguous()) * self.rot[: x.shape[-2]].to(
            torch.complex128 if w == torch.float64 else torch.complex64
        )
        return torch.cat([z.real, z.imag], -1).to(x.dtype)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (l(x).view(B, T, -1, self.d).transpose(1, 2) for l in (self.wq, self.wk, self.wv))
        if not hasattr(self, "m"):
            self.m = torch.ones(T, T).tril().bool()
        o = F.scaled_dot_product_attention(
            self.turn(q), self.turn(k), v, attn_mask=self.m[:T, :T], enable_gqa=True
        )
        return self.wo(o.transpose(1, 2).reshape(B, T, -1))


class FF(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w_gate = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.w_down = nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.norm not in {"pre", "post"}:
            raise ValueError(cfg.norm)
        self.cfg = cfg
        self.attn, self.ff = Attn(cfg), FF(cfg)
        self.attn_norm, self.ff_norm = Norm(cfg.d_model, cfg.eps), Norm(cfg.d_model, cfg.eps)

    def forward(self, x):
        if x.dim() != 3 or x.size(2) != self.cfg.d_model or x.size(1) > self.cfg.max_len:
            raise ValueError(f"{tuple(x.shape)}")
        for f, n in ((self.attn, self.attn_norm), (self.ff, self.ff_norm)):
            x = x + f(n(x)) if self.cfg.norm == "pre" else n(x + f(x))
        return x


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layers)])
        self.norm = Norm(cfg.d_model, cfg.eps) if cfg.norm == "pre" else None
        self.apply(lambda m: isinstance(m, (nn.Linear, nn.Embedding)) and nn.init.normal_(m.weight, 0, 0.02))

    def forward(self, tokens):
        if tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{tokens.shape} {tokens.dtype}")
        if tokens.shape[1] > self.cfg.max_len:
            raise ValueError(tokens.shape)
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.cfg.vocab_size):
            raise ValueError("token")
        x = self.embed(tokens)
        for b in self.blocks:
            x = b(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.linear(x, self.embed.weight)
