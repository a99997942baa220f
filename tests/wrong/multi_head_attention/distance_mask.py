"""mistake: window-without-the-token

Grouped heads by broadcasting over an axis of their own; a matrix of distances; -1e30 in place of -inf.
"""

import torch
from torch import nn


def rotated(x, rope, rows):
    cos, sin = (torch.cat((table, table), 1)[rows].unsqueeze(-3).unsqueeze(-3) for table in rope)
    back = torch.cat(x.chunk(2, -1)[::-1], -1) * torch.ones(x.shape[-1]).masked_fill(
        torch.arange(x.shape[-1]) < x.shape[-1] // 2, -1
    )
    return (x * cos + back * sin).to(x.dtype)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        groups = n_heads if n_kv_heads is None else n_kv_heads
        for value in (d_model, n_heads, groups, 1 if window is None else window):
            if value < 1:
                raise ValueError(f"{value} is below 1")
        if d_model % n_heads or n_heads % groups:
            raise ValueError(f"{d_model}, {n_heads} and {groups} do not divide")
        if window is not None and not causal:
            raise ValueError(f"window {window}, causal {causal}")
        head_dim = d_model // n_heads
        if rope is not None and not rope[0].shape == rope[1].shape == (len(rope[0]), head_dim / 2):
            raise ValueError(f"{rope[0].shape}, {rope[1].shape}")
        self.shape = groups, n_heads // groups, head_dim
        self.causal, self.rope, self.window = causal, rope, window
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, groups * head_dim, bias=False)
        self.wv = nn.Linear(d_model, groups * head_dim, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, *, positions=None):
        groups, each, dim = self.shape
        if x.ndim != 3 or x.shape[2] != groups * each * dim:
            raise ValueError(f"x {x.shape}")
        batch, time, _ = x.shape
        q = self.wq(x).view(batch, time, groups, each, dim).permute(0, 2, 3, 1, 4)
        k, v = (w(x).view(batch, time, groups, 1, dim).permute(0, 2, 3, 1, 4) for w in (self.wk, self.wv))
        if self.rope is not None:
            rows = torch.arange(time) if positions is None else positions.long()
            if rows.shape != (time,) and rows.shape != (batch, time):
                raise ValueError(f"positions {rows.shape}")
            if ((rows < 0) | (rows >= len(self.rope[0]))).any():
                raise ValueError(f"positions {rows}")
            q, k = rotated(q, self.rope, rows), rotated(k, self.rope, rows)
        wide = torch.promote_types(x.dtype, torch.float32)
        scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * dim**-0.5
        age = torch.arange(time).unsqueeze(1) - torch.arange(time)
        if self.causal:
            scores = scores.masked_fill(age < 0, -1e30)
        if self.window is not None:
            scores = scores.masked_fill(age > self.window, -1e30)
        out = torch.softmax(scores, -1) @ v.to(wide)
        return self.wo(out.permute(0, 3, 1, 2, 4).reshape(batch, time, -1).to(x.dtype))
