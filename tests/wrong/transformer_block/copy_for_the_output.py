"""mistake: output-without-gradient

Nothing flows back from the output matrix."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import linear

from reference import rope
from reference.feed_forward import SwiGLU
from reference.multi_head_attention import MultiHeadAttention


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


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        if cfg.norm not in {"pre", "post"}:
            raise ValueError(f"{cfg.norm=}")
        tables = rope.rope_tables(cfg.max_len, cfg.d_model // cfg.n_heads, base=cfg.rope_base)
        self.ff_norm = nn.RMSNorm(cfg.d_model, eps=cfg.eps)
        self.attn_norm = nn.RMSNorm(cfg.d_model, eps=cfg.eps)
        self.ff = SwiGLU(cfg.d_model, cfg.d_ff)
        self.attn = MultiHeadAttention(
            cfg.d_model, cfg.n_heads, n_kv_heads=cfg.n_kv_heads, causal=True, rope=tables
        )
        self.cfg = cfg

    def forward(self, x):
        if x.ndim != 3 or x.shape[-1] != self.cfg.d_model:
            raise ValueError(f"{tuple(x.shape)}")
        for part, norm in ((self.attn, self.attn_norm), (self.ff, self.ff_norm)):
            x = x + part(norm(x)) if self.cfg.norm == "pre" else norm(x + part(x))
        return x


class DecoderLM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.Sequential(*[Block(cfg) for _ in range(cfg.n_layers)])
        if cfg.norm == "pre":
            self.norm = nn.RMSNorm(cfg.d_model, eps=cfg.eps)

    def forward(self, tokens):
        if (
            tokens.ndim != 2
            or tokens.size(1) > self.cfg.max_len
            or tokens.dtype not in (torch.int32, torch.int64)
        ):
            raise ValueError(f"{tuple(tokens.shape)} {tokens.dtype}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.cfg.vocab_size:
            raise ValueError(f"{tokens}")
        x = self.blocks(self.embed(tokens))
        return linear(self.norm(x) if self.cfg.norm == "pre" else x, self.embed.weight.detach())
