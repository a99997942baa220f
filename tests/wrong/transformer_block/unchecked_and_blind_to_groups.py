"""mistake: groups-ignored

Every query head has keys and values of its own, and no token is checked."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from reference.attention import attention


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


class W(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.1)


def rms(x, w, eps):
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return (y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w.weight).to(x.dtype)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d, h, g = cfg.d_model, cfg.n_heads, cfg.n_heads
        if cfg.norm not in ("pre", "post") or d % (2 * h) or h % g:
            raise ValueError(f"{cfg}")
        self.cfg, self.h, self.g, self.size = cfg, h, g, d // h
        self.attn = nn.ModuleDict(
            {"wq": W(d, d), "wk": W(g * d // h, d), "wv": W(g * d // h, d), "wo": W(d, d)}
        )
        self.ff = nn.ModuleDict({"w_gate": W(cfg.d_ff, d), "w_up": W(cfg.d_ff, d), "w_down": W(d, cfg.d_ff)})
        self.attn_norm, self.ff_norm = W(d), W(d)

    def attend(self, x):
        b, t, d = x.shape
        q, k, v = (
            (x @ self.attn[n].weight.mT).view(b, t, -1, self.size).transpose(1, 2) for n in ("wq", "wk", "wv")
        )
        theta = self.cfg.rope_base ** (-torch.arange(self.size // 2, dtype=torch.float64) * 2 / self.size)
        turn = torch.polar(
            torch.ones(t, self.size // 2, dtype=torch.float64), torch.arange(t)[:, None] * theta
        )

        def turned(z):
            z = torch.complex(*z.double().chunk(2, -1)) * turn
            return torch.cat([z.real, z.imag], -1).to(x.dtype)

        k, v = (z.repeat_interleave(self.h // self.g, 1) for z in (turned(k), v))
        return (
            attention(turned(q), k, v, causal=True).transpose(1, 2).reshape(b, t, d)
            @ self.attn["wo"].weight.mT
        )

    def feed(self, x):
        z = x @ self.ff["w_gate"].weight.mT
        return (z * torch.sigmoid(z) * (x @ self.ff["w_up"].weight.mT)) @ self.ff["w_down"].weight.mT

    def forward(self, x):
        eps, cfg = self.cfg.eps, self.cfg
        if x.ndim != 3 or x.shape[2] != cfg.d_model or x.shape[1] > cfg.max_len:
            raise ValueError(f"{tuple(x.shape)}")
        if cfg.norm == "pre":
            x = x + self.attend(rms(x, self.attn_norm, eps))
            return x + self.feed(rms(x, self.ff_norm, eps))
        x = rms(x + self.attend(x), self.attn_norm, eps)
        return rms(x + self.feed(x), self.ff_norm, eps)


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.embed = cfg, W(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layers)])
        self.norm = W(cfg.d_model) if cfg.norm == "pre" else None

    def forward(self, tokens):
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] > self.cfg.max_len:
            raise ValueError(f"{tuple(tokens.shape)}, {tokens.dtype}")
        x = self.embed.weight[tokens.long()]
        for block in self.blocks:
            x = block(x)
        return (x if self.norm is None else rms(x, self.norm, self.cfg.eps)) @ self.embed.weight.mT
