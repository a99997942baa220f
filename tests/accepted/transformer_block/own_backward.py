"""Norm, rotation, softmax and gate each with a backward of its own."""

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


class RMSFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        up = torch.promote_types(x.dtype, torch.float32)
        a = x.to(up)
        r = 1.0 / torch.sqrt((a * a).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(a, w, r)
        return (a * r * w.to(up)).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        a, w, r = ctx.saved_tensors
        n = a.shape[-1]
        gu = g.to(a.dtype)
        gw = (gu * a * r).reshape(-1, n).sum(0).to(w.dtype)
        u = gu * w.to(a.dtype)
        gx = r * u - a * r**3 * (u * a).mean(-1, keepdim=True)
        return gx.to(g.dtype), gw, None


class AttnFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        T, D = q.shape[-2:]
        s = q @ k.transpose(-1, -2) / D**0.5
        s = s.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        p = torch.softmax(s.to(torch.promote_types(s.dtype, torch.float32)), -1).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved_tensors
        gv = p.transpose(-1, -2) @ g
        gp = g @ v.transpose(-1, -2)
        gs = p * (gp - (gp * p).sum(-1, keepdim=True))
        gs = gs / q.shape[-1] ** 0.5
        return gs @ k, gs.transpose(-1, -2) @ q, gv


class SwiFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * torch.sigmoid(a) * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        return g * b * (s + a * s * (1 - s)), g * a * s


class RotFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c, s):
        ctx.c, ctx.s = c, s
        a, b = x.chunk(2, -1)
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    @staticmethod
    def backward(ctx, g):
        a, b = g.chunk(2, -1)
        return torch.cat((a * ctx.c + b * ctx.s, b * ctx.c - a * ctx.s), -1), None, None


class RMSNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x):
        return RMSFn.apply(x, self.weight, self.eps)


class Attn(nn.Module):
    def __init__(self, d, h, g, base):
        super().__init__()
        self.h, self.g, self.hd, self.base = h, g, d // h, base
        self.wq = nn.Linear(d, d, bias=False)
        self.wk = nn.Linear(d, g * self.hd, bias=False)
        self.wv = nn.Linear(d, g * self.hd, bias=False)
        self.wo = nn.Linear(d, d, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        split = lambda y: y.unflatten(-1, (-1, self.hd)).transpose(1, 2)
        q, k, v = split(self.wq(x)), split(self.wk(x)), split(self.wv(x))
        inv = torch.exp(torch.arange(0, self.hd, 2).float() * (-math.log(self.base) / self.hd))
        ang = torch.arange(T).float()[:, None] * inv[None]
        c, s = ang.cos().to(x.dtype), ang.sin().to(x.dtype)
        q, k = RotFn.apply(q, c, s), RotFn.apply(k, c, s)
        rep = self.h // self.g
        q = q.reshape(B, self.g, rep, T, self.hd)
        k = k[:, :, None].expand(-1, -1, rep, -1, -1)
        v = v[:, :, None].expand(-1, -1, rep, -1, -1)
        o = AttnFn.apply(q, k, v).reshape(B, self.h, T, self.hd)
        return self.wo(o.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.w_gate, self.w_up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.w_down = nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.w_down(SwiFn.apply(self.w_gate(x), self.w_up(x)))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        g = cfg.n_heads if cfg.n_kv_heads is None else cfg.n_kv_heads
        if (
            cfg.norm not in ("pre", "post")
            or cfg.d_model % cfg.n_heads
            or cfg.d_model // cfg.n_heads % 2
            or cfg.n_heads % g
        ):
            raise ValueError(f"bad config {cfg}")
        self.attn = Attn(cfg.d_model, cfg.n_heads, g, cfg.rope_base)
        self.ff = SwiGLU(cfg.d_model, cfg.d_ff)
        self.attn_norm = RMSNorm(cfg.d_model, cfg.eps)
        self.ff_norm = RMSNorm(cfg.d_model, cfg.eps)
        self.d_model, self.max_len = cfg.d_model, cfg.max_len
        self.forward_impl = self.pre if cfg.norm == "pre" else self.post

    def pre(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.ff(self.ff_norm(x))

    def post(self, x):
        x = self.attn_norm(x + self.attn(x))
        return self.ff_norm(x + self.ff(x))

    def forward(self, x):
        if x.ndim != 3 or x.shape[-1] != self.d_model or x.shape[1] > self.max_len:
            raise ValueError(f"bad x {tuple(x.shape)}")
        return self.forward_impl(x)


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.vocab_size, self.max_len = cfg.vocab_size, cfg.max_len
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.eps) if cfg.norm == "pre" else (lambda x: x)

    def forward(self, tokens):
        if tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"bad tokens {tuple(tokens.shape)} {tokens.dtype}")
        if tokens.shape[1] > self.max_len or torch.any(tokens >= self.vocab_size) or torch.any(tokens < 0):
            raise ValueError(f"bad tokens {tokens.tolist()}")
        x = self.embed(tokens)
        for b in self.blocks:
            x = b(x)
        return self.norm(x) @ self.embed.weight.T
