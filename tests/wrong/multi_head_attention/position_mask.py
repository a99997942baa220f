"""mistake: causal-by-positions

The mask is made of positions, since these say who comes first; the window goes by the order in x.
"""

import torch
from torch import nn

from reference.rope import apply_rope


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        kv = n_kv_heads if n_kv_heads is not None else n_heads
        if any(n < 1 for n in (d_model, n_heads, kv)) or d_model % n_heads or n_heads % kv:
            raise ValueError(f"{(d_model, n_heads, kv)}")
        if window is not None and (not causal or window < 1):
            raise ValueError(f"{window}, {causal}")
        if rope is not None and {tuple(t.shape[1:]) for t in rope} != {(d_model / n_heads / 2,)}:
            raise ValueError("tables")
        if rope is not None and len(rope[0]) != len(rope[1]):
            raise ValueError("tables")
        self.heads, self.kv, self.causal, self.rope, self.window = n_heads, kv, causal, rope, window
        self.wq, self.wk, self.wv, self.wo = (
            nn.Linear(d_model, n * d_model // n_heads, bias=False) for n in (n_heads, kv, kv, n_heads)
        )

    def seen(self, time, positions):
        order = torch.arange(time)
        rows = order if positions is None else positions
        past = rows.unsqueeze(-1) >= rows.unsqueeze(-2)
        if self.window is not None:
            past = past & (order.unsqueeze(-1) - order < self.window)
        return past if past.ndim == 2 else past.unsqueeze(1)

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.wo.out_features:
            raise ValueError(f"{tuple(x.shape)}")
        q, k, v = (
            w(x).unflatten(-1, (n, -1)).permute(0, 2, 1, 3)
            for w, n in ((self.wq, self.heads), (self.wk, self.kv), (self.wv, self.kv))
        )
        if self.rope is not None:
            q, k = apply_rope(q, *self.rope, positions), apply_rope(k, *self.rope, positions)
        k, v = (t.unsqueeze(2).expand(-1, -1, self.heads // self.kv, -1, -1).flatten(1, 2) for t in (k, v))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scores = torch.einsum("bhid,bhjd->bhij", q.to(wide), k.to(wide)) * q.shape[-1] ** -0.5
        if self.causal:
            scores = scores.masked_fill(~self.seen(x.shape[1], positions), torch.finfo(wide).min)
        mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v.to(wide))
        return self.wo(mixed.flatten(2).to(x.dtype))
