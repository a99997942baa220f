"""Everything in the dtype of x, half types too: a mask of the lowest number, kept in a cache that grows; rope by a
sign and a roll."""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(
        self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None, bias=False
    ):
        super().__init__()
        kv = n_heads if n_kv_heads is None else n_kv_heads
        for size in (d_model, n_heads, kv):
            if size < 1:
                raise ValueError(f"{size} is below 1")
        if d_model % n_heads:
            raise ValueError(f"{n_heads} does not divide {d_model}")
        if n_heads % kv:
            raise ValueError(f"{kv} does not divide {n_heads}")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window {window}")
        self.n_heads, self.kv, self.causal, self.window = n_heads, kv, causal, window
        self.dim = d_model // n_heads
        if rope is not None:
            cos, sin = rope
            if cos.shape[0] != sin.shape[0] or cos.shape[1] != sin.shape[1] or 2 * cos.shape[1] != self.dim:
                raise ValueError(f"{cos.shape}, {sin.shape}")
            rope = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
        self.rope = rope
        self.mask = torch.zeros(0, 0, dtype=torch.bool)
        self.wq = nn.Linear(d_model, n_heads * self.dim, bias=bias)
        self.wk = nn.Linear(d_model, kv * self.dim, bias=bias)
        self.wv = nn.Linear(d_model, kv * self.dim, bias=bias)
        self.wo = nn.Linear(n_heads * self.dim, d_model, bias=bias)

    def hidden(self, time):
        if len(self.mask) < time:
            age = torch.arange(time)[:, None] - torch.arange(time)[None]
            self.mask = (age < 0) | (age >= (self.window or time))
        return self.mask[:time, :time]

    def turned(self, x, positions):
        length, time = len(self.rope[0]), x.shape[1]
        if positions is None:
            if time > length:
                raise ValueError(f"{time} tokens, {length} rows")
            positions = torch.arange(time)
        elif positions.shape != x.shape[1:2] and positions.shape != x.shape[:2]:
            raise ValueError(f"positions {positions.shape}")
        elif positions.lt(0).any() or positions.ge(length).any():
            raise ValueError(f"positions {positions}")
        cos, sin = (
            table.index_select(0, positions.flatten()).view(*positions.shape, 1, -1).to(x)
            for table in self.rope
        )
        return x * cos + x.roll(self.dim // 2, -1) * sin

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.wq.weight.shape[1]:
            raise ValueError(f"x {x.shape}")
        batch, time, d_model = x.shape
        q = self.wq(x).view(batch, time, self.n_heads, self.dim)
        k = self.wk(x).view(batch, time, self.kv, self.dim)
        v = self.wv(x).view(batch, time, self.kv, self.dim)
        if self.rope is not None:
            q, k = self.turned(q, positions), self.turned(k, positions)
        q = (
            q.view(batch, time, self.kv, self.n_heads // self.kv, self.dim)
            .permute(0, 2, 3, 1, 4)
            .flatten(2, 3)
            / self.dim**0.5
        )
        scores = q @ k.permute(0, 2, 3, 1)  # (batch, groups, heads of a group · time, time)
        if self.causal:
            scores = (
                scores.unflatten(2, (-1, time))
                .masked_fill(self.hidden(time), torch.finfo(x.dtype).min)
                .flatten(2, 3)
            )
        out = scores.softmax(-1) @ v.transpose(1, 2)
        return self.wo(out.unflatten(2, (-1, time)).permute(0, 3, 1, 2, 4).reshape(batch, time, d_model))
