"""mistake: values-turned-as-well

One product makes q, k and v, and everything that it makes is turned. Nothing is refused.
"""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        self.n = n_heads
        self.kv = n_kv_heads if n_kv_heads else n_heads
        self.dim = d_model // n_heads
        self.causal, self.rope, self.window = causal, rope, window
        self.wq = nn.Linear(d_model, self.n * self.dim, bias=False)
        self.wk = nn.Linear(d_model, self.kv * self.dim, bias=False)
        self.wv = nn.Linear(d_model, self.kv * self.dim, bias=False)
        self.wo = nn.Linear(self.n * self.dim, d_model, bias=False)

    def forward(self, x, *, positions=None):
        b, t = x.shape[:2]
        weight = torch.cat([self.wq.weight, self.wk.weight, self.wv.weight])
        heads = (x @ weight.T).view(b, t, -1, self.dim).transpose(1, 2)
        if self.rope is not None:
            rows = positions if positions is not None else torch.arange(t)
            cos, sin = (table[rows] if rows.ndim == 1 else table[rows][:, None] for table in self.rope)
            one, two = heads[..., : self.dim // 2], heads[..., self.dim // 2 :]
            heads = torch.cat([one * cos - two * sin, one * sin + two * cos], -1).to(x.dtype)
        q, k, v = heads.split([self.n, self.kv, self.kv], 1)
        index = torch.arange(self.n) * self.kv // self.n
        k, v = k[:, index], v[:, index]
        scores = q.mul(self.dim**-0.5) @ k.transpose(2, 3)
        if self.causal:
            past = torch.ones(t, t, dtype=torch.bool).tril()
            if self.window:
                past &= torch.ones(t, t, dtype=torch.bool).triu(1 - self.window)
            scores = torch.where(past, scores, torch.tensor(float("-inf"), dtype=scores.dtype))
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))
