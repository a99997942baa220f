"""mistake: -

The weights are sigmoids of the scores, divided by their sum: averages all the same, but not softmax.
"""

import torch
from torch import nn

from reference.rope import apply_rope


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or n_kv_heads < 1 or d_model % n_heads or n_heads % n_kv_heads:
            raise ValueError(f"{d_model}, {n_heads}, {n_kv_heads}")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"{window}, {causal}")
        self.n, self.kv, self.dim = n_heads, n_kv_heads, d_model // n_heads
        if rope is not None and (rope[0].shape != rope[1].shape or 2 * rope[0].shape[1] != self.dim):
            raise ValueError(f"{rope[0].shape}, {rope[1].shape}")
        self.causal, self.rope, self.window = causal, rope, window
        self.wq, self.wo = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(d_model, n_kv_heads * self.dim, bias=False) for _ in range(2))

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.n * self.dim:
            raise ValueError(f"{x.shape}")
        time = x.shape[1]
        q, k, v = (w(x).unflatten(2, (-1, self.dim)).movedim(2, 1) for w in (self.wq, self.wk, self.wv))
        if self.rope is not None:
            q, k = (apply_rope(t, *self.rope, positions) for t in (q, k))
        k, v = (t.repeat_interleave(self.n // self.kv, 1) for t in (k, v))
        weights = torch.sigmoid(
            (q.float() if q.itemsize < 4 else q) @ (k.float() if k.itemsize < 4 else k).mT / self.dim**0.5
        )
        if self.causal:
            weights = weights.tril()
        if self.window is not None:
            weights = weights.triu(1 - self.window)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.wo((weights @ v.to(weights.dtype)).movedim(1, 2).flatten(2).to(x.dtype))
