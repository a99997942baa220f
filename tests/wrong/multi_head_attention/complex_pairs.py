"""mistake: interleaved

Rope by complex numbers, which pair neighbours; PyTorch's own kernel for the rest.
"""

import torch
import torch.nn.functional as F
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(d_model, n_heads, n_kv_heads) < 1:
            raise ValueError(f"{d_model}, {n_heads}, {n_kv_heads}")
        if d_model % n_heads or n_heads % n_kv_heads:
            raise ValueError(f"{d_model}, {n_heads}, {n_kv_heads}")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"{window}, {causal}")
        self.heads, self.kv_heads, self.causal, self.window = n_heads, n_kv_heads, causal, window
        self.head_dim = d_model // n_heads
        self.freqs = None
        if rope is not None:
            cos, sin = rope
            if cos.shape != sin.shape or cos.shape[1] * 2 != self.head_dim:
                raise ValueError(f"{cos.shape}, {sin.shape}")
            self.freqs = torch.complex(cos.double(), sin.double())
        self.wq = nn.Linear(d_model, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, d_model, bias=False)

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.wq.in_features:
            raise ValueError(f"{x.shape}")
        batch, time, _ = x.shape
        q = (
            self.wq(x).view(batch, time, self.heads, -1)
            if batch
            else x.new_zeros(0, time, self.heads, self.head_dim)
        )
        k, v = (w(x).reshape(batch, time, self.kv_heads, self.head_dim) for w in (self.wk, self.wv))
        if self.freqs is not None:
            if positions is None:
                if time > len(self.freqs):
                    raise ValueError(f"{time} > {len(self.freqs)}")
                positions = torch.arange(time)
            if positions.shape not in ((time,), (batch, time)):
                raise ValueError(f"{positions.shape}")
            if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(self.freqs):
                raise ValueError(f"{positions}")
            turn = self.freqs[positions.long()].unsqueeze(-2)
            q, k = (self.turned(t, turn) for t in (q, k))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mask = None
        if self.causal:
            mask = torch.ones(time, time, dtype=torch.bool).tril()
            if self.window is not None:
                mask = mask & ~mask.tril(-self.window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.wo(out.transpose(1, 2).reshape(x.shape))

    @staticmethod
    def turned(x, turn):
        pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
