"""mistake: dropout-left-on

After nanoGPT, whose attention drops some of its weights in training."""

import math
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


class RMSNorm(nn.Module):
    def __init__(self, ndim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.n_embd = config.n_heads, config.d_model
        self.n_kv = config.n_kv_heads or config.n_heads
        hs = config.d_model // config.n_heads
        self.wq = nn.Linear(config.d_model, config.d_model, bias=False)
        self.wk = nn.Linear(config.d_model, self.n_kv * hs, bias=False)
        self.wv = nn.Linear(config.d_model, self.n_kv * hs, bias=False)
        self.wo = nn.Linear(config.d_model, config.d_model, bias=False)
        self.register_buffer(
            "bias",
            torch.tril(torch.ones(config.max_len, config.max_len)).view(1, 1, config.max_len, config.max_len),
            persistent=False,
        )
        theta = config.rope_base ** (-2.0 * torch.arange(hs // 2, dtype=torch.float64) / hs)
        ang = torch.arange(config.max_len, dtype=torch.float64)[:, None] * theta
        self.cos, self.sin = ang.cos(), ang.sin()

    def rot(self, x):
        T, hs = x.shape[-2:]
        x1, x2 = x[..., : hs // 2], x[..., hs // 2 :]
        c, s = self.cos[:T].to(x.dtype), self.sin[:T].to(x.dtype)
        return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)

    def forward(self, x):
        B, T, C = x.size()
        hs = C // self.n_head
        q = self.rot(self.wq(x).view(B, T, self.n_head, hs).transpose(1, 2))
        k = self.rot(self.wk(x).view(B, T, self.n_kv, hs).transpose(1, 2))
        v = self.wv(x).view(B, T, self.n_kv, hs).transpose(1, 2)
        k = k.repeat_interleave(self.n_head // self.n_kv, dim=1)
        v = v.repeat_interleave(self.n_head // self.n_kv, dim=1)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(hs))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = F.dropout(att, 0.1, self.training)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.wo(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w_gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.w_up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.w_down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)).mul_(self.w_up(x)))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.norm not in ("pre", "post"):
            raise ValueError(cfg.norm)
        hd, rest = divmod(cfg.d_model, cfg.n_heads)
        if rest or hd % 2:
            raise ValueError(f"{cfg.d_model} {cfg.n_heads}")
        if cfg.n_kv_heads is not None and cfg.n_heads % cfg.n_kv_heads:
            raise ValueError(f"{cfg.n_kv_heads} {cfg.n_heads}")
        self.cfg = cfg
        self.attn_norm = RMSNorm(cfg.d_model, cfg.eps)
        self.attn = CausalSelfAttention(cfg)
        self.ff_norm = RMSNorm(cfg.d_model, cfg.eps)
        self.ff = MLP(cfg)

    def forward(self, x):
        if x.ndim != 3 or x.shape[2] != self.cfg.d_model or x.shape[1] > self.cfg.max_len:
            raise ValueError(f"x of shape {tuple(x.shape)}")
        if self.cfg.norm == "post":
            x = self.attn_norm(self.attn(x).add_(x))
            return self.ff_norm(self.ff(x).add_(x))
        x = x + self.attn(self.attn_norm(x))
        x = x + self.ff(self.ff_norm(x))
        return x


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.n_layers)])
        self.norm = RMSNorm(cfg.d_model, cfg.eps) if cfg.norm == "pre" else None
        self.apply(self._init_weights)
        for pn, p in self.named_parameters():
            if pn.endswith("wo.weight"):
                torch.nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * cfg.n_layers))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx):
        if idx.ndim != 2 or idx.dtype not in (torch.int32, torch.int64) or idx.shape[1] > self.cfg.max_len:
            raise ValueError(f"{tuple(idx.shape)} {idx.dtype}")
        if ((idx < 0) | (idx >= self.cfg.vocab_size)).any():
            raise ValueError(f"{idx}")
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = self.norm(x)
        return x @ self.embed.weight.t()
