"""One einsum over (groups, heads of a group), so that keys are never repeated; non-persistent tables."""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        groups = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or groups < 1:
            raise ValueError(f"sizes below 1: {(d_model, n_heads, groups)}")
        if d_model % n_heads:
            raise ValueError(f"{n_heads} heads do not divide {d_model}")
        if n_heads % groups:
            raise ValueError(f"{groups} groups do not divide {n_heads}")
        if window is not None:
            if window < 1:
                raise ValueError(f"window {window}")
            if not causal:
                raise ValueError(f"window {window} without causal")
        self.groups, self.size, self.dim = groups, n_heads // groups, d_model // n_heads
        self.causal, self.window = causal, window
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, groups * self.dim, bias=False)
        self.wv = nn.Linear(d_model, groups * self.dim, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)
        cos = sin = None
        if rope is not None:
            cos, sin = rope
            if tuple(cos.shape) != tuple(sin.shape) or 2 * cos.shape[-1] != self.dim:
                raise ValueError(f"{cos.shape}, {sin.shape} for {self.dim}")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def turned(self, x, positions):
        if self.cos is None:
            return x
        time, length = x.shape[1], len(self.cos)
        if positions is None:
            positions = torch.arange(time)
        if positions.shape not in ((time,), (len(x), time)):
            raise ValueError(f"positions {positions.shape}, x {x.shape}")
        if positions.min() < 0 or positions.max() >= length:
            raise ValueError(f"positions {positions}, {length} rows")
        cos, sin = (table[positions.long()] for table in (self.cos, self.sin))
        while cos.ndim < x.ndim:
            cos, sin = (t.unsqueeze(-2) if t.ndim > 2 else t[None] for t in (cos, sin))
        cos, sin = (torch.cat([t, t], -1) for t in (cos, sin))
        half = torch.cat([-x[..., self.dim // 2 :], x[..., : self.dim // 2]], -1)
        return (x * cos + half * sin).to(x.dtype)

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[-1] != self.wq.weight.shape[1]:
            raise ValueError(f"x {x.shape}")
        B, T, M = x.shape
        q = self.wq(x).view(B, T, self.groups, self.size, self.dim)
        k = self.wk(x).view(B, T, self.groups, 1, self.dim)
        v = self.wv(x).view(B, T, self.groups, self.dim)
        if B:
            q, k = self.turned(q, positions), self.turned(k, positions)
        scores = torch.einsum(
            "btgsd,bugd->bgstu",
            q.float() if q.itemsize < 4 else q,
            k.squeeze(3).float() if k.itemsize < 4 else k.squeeze(3),
        )
        scores = scores / self.dim**0.5
        age = torch.arange(T)[:, None] - torch.arange(T)
        if self.causal:
            scores = scores.masked_fill(age < 0, float("-inf"))
        if self.window is not None:
            scores = scores.masked_fill(age >= self.window, float("-inf"))
        weights = scores.softmax(-1).to(x.dtype)
        return self.wo(torch.einsum("bgstu,bugd->btgsd", weights, v).reshape(B, T, M))
