"""mistake: repeated-as-a-block

Einsum throughout; the shared heads are tiled. Nothing is ever refused.
"""

import torch
from torch import einsum, nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        self.h, self.g = n_heads, n_kv_heads or n_heads
        self.d = d_model // n_heads
        self.causal, self.rope, self.window = causal, rope, window
        self.wq = nn.Linear(d_model, self.h * self.d, bias=False)
        self.wk = nn.Linear(d_model, self.g * self.d, bias=False)
        self.wv = nn.Linear(d_model, self.g * self.d, bias=False)
        self.wo = nn.Linear(self.h * self.d, d_model, bias=False)

    def forward(self, x, *, positions=None):
        B, T, _ = x.shape
        q = self.wq(x).reshape(B, T, self.h, self.d)
        k = self.wk(x).reshape(B, T, self.g, self.d)
        v = self.wv(x).reshape(B, T, self.g, self.d)
        if self.rope is not None:
            rows = torch.arange(T) if positions is None else positions
            cos, sin = (t[rows].unsqueeze(-2) for t in self.rope)
            q, k = self.turn(q, cos, sin), self.turn(k, cos, sin)
        k, v = (t.tile(1, 1, self.h // self.g, 1) for t in (k, v))
        s = einsum("bihd,bjhd->bhij", q, k) / self.d**0.5
        i, j = torch.arange(T)[:, None], torch.arange(T)
        hidden = torch.zeros(T, T, dtype=torch.bool)
        if self.causal:
            hidden |= j > i
        if self.window:
            hidden |= i - j >= self.window
        w = s.masked_fill(hidden, float("-inf")).softmax(-1)
        return self.wo(einsum("bhij,bjhd->bihd", w, v).reshape(B, T, -1))

    def turn(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)
