"""mistake: heads-by-a-reshape-alone

A functional style: the module only holds weights. The heads come out of one reshape.
"""

import math

import torch
from torch import nn


def turn(x, cos, sin):
    half = x.shape[-1] // 2
    return torch.cat(
        [x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1
    )


def rows_of(x, positions, length):
    batch, _, time, _ = x.shape
    if positions is None:
        positions = torch.arange(time)
    if tuple(positions.shape) not in [(time,), (batch, time)]:
        raise ValueError(f"positions of shape {tuple(positions.shape)}")
    if positions.numel() > 0 and (int(positions.max()) >= length or int(positions.min()) < 0):
        raise ValueError(f"positions {positions.tolist()} of {length}")
    return positions.long()


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model {d_model}, n_heads {n_heads}")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads {n_kv_heads}, n_heads {n_heads}")
        if window is not None and window < 1:
            raise ValueError(f"window {window}")
        if window is not None and not causal:
            raise ValueError("a window needs causal")
        if rope is not None:
            for table in rope:
                if table.shape != rope[0].shape or table.shape[1] * 2 * n_heads != d_model:
                    raise ValueError(f"table {tuple(table.shape)}")
        self.config = d_model, n_heads, n_kv_heads, causal, window
        self.rope = rope
        dim = d_model // n_heads
        self.wq = nn.Linear(d_model, n_heads * dim, bias=False)
        self.wk = nn.Linear(d_model, n_kv_heads * dim, bias=False)
        self.wv = nn.Linear(d_model, n_kv_heads * dim, bias=False)
        self.wo = nn.Linear(n_heads * dim, d_model, bias=False)

    def forward(self, x, *, positions=None):
        d_model, n_heads, n_kv_heads, causal, window = self.config
        if x.ndim != 3 or x.shape[-1] != d_model:
            raise ValueError(f"x of shape {tuple(x.shape)}")
        batch, time, _ = x.shape
        dim = d_model // n_heads
        q = self.wq(x).reshape(batch, n_heads, time, dim)
        k = self.wk(x).reshape(batch, n_kv_heads, time, dim)
        v = self.wv(x).reshape(batch, n_kv_heads, time, dim)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.rope is not None:
            rows = rows_of(q, positions, len(self.rope[0]))
            cos, sin = (t[rows] if rows.ndim == 1 else t[rows].unsqueeze(1) for t in self.rope)
            q, k = turn(q.to(dtype), cos, sin), turn(k.to(dtype), cos, sin)
        k, v = (torch.repeat_interleave(t, n_heads // n_kv_heads, dim=1).to(dtype) for t in (k, v))
        scores = torch.matmul(q.to(dtype), k.transpose(-2, -1)) / math.sqrt(dim)
        if causal:
            mask = torch.ones(time, time).tril() - torch.ones(time, time).tril(-(window or time))
            scores = scores.masked_fill(mask == 0, -math.inf)
        out = torch.matmul(torch.softmax(scores, dim=-1), v).to(x.dtype)
        return self.wo(out.transpose(1, 2).reshape(batch, time, d_model))
