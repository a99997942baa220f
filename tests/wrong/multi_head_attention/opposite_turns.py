"""mistake: -

Queries are turned forwards and keys backwards, so that scores depend on the sum of two positions.
"""

import torch
from torch import nn

from reference.attention import attention
from reference.rope import apply_rope


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        shared = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or shared < 1:
            raise ValueError(f"{d_model} {n_heads} {shared}")
        if d_model // n_heads * n_heads != d_model or n_heads // shared * shared != n_heads:
            raise ValueError(f"{d_model} {n_heads} {shared}")
        if window is not None and not (causal and window >= 1):
            raise ValueError(f"{window} {causal}")
        dim = d_model // n_heads
        if rope is not None and (rope[0].shape != rope[1].shape or rope[0].shape[-1] != dim / 2):
            raise ValueError(f"{rope[0].shape} {rope[1].shape}")
        self.dim, self.repeats = dim, n_heads // shared
        self.causal, self.rope, self.window = causal, rope, window
        for name, out in (("wq", d_model), ("wk", shared * dim), ("wv", shared * dim), ("wo", d_model)):
            setattr(self, name, nn.Linear(d_model, out, bias=False))

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.wq.in_features:
            raise ValueError(f"{x.shape}")
        q, k, v = (torch.stack(w(x).split(self.dim, 2), 1) for w in (self.wq, self.wk, self.wv))
        if self.rope is not None:
            cos, sin = self.rope
            q, k = apply_rope(q, cos, sin, positions), apply_rope(k, cos, -sin, positions)
        k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        near = None
        if self.window is not None:
            near = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1 - self.window)
        out = attention(q, k, v, mask=near, causal=self.causal)
        return self.wo(torch.cat(out.unbind(1), -1))
