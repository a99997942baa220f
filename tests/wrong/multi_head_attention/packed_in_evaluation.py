"""mistake: weights-put-together-once

One matrix for all projections, kept in evaluation; rope by complex numbers.
"""

import torch
import torch.nn.functional as F
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        n_kv = n_heads if n_kv_heads is None else n_kv_heads
        ok = d_model >= 1 and n_heads >= 1 and n_kv >= 1
        if not ok or d_model % n_heads or n_heads % n_kv:
            raise ValueError(f"got {d_model=}, {n_heads=}, {n_kv_heads=}")
        if window is not None and (window <= 0 or not causal):
            raise ValueError(f"got {window=}, {causal=}")
        hd = d_model // n_heads
        if rope is not None and (rope[0].size() != rope[1].size() or rope[0].size(-1) * 2 != hd):
            raise ValueError(f"got tables {rope[0].size()}, {rope[1].size()}")
        self.n_head, self.n_kv, self.hd, self.causal, self.window = n_heads, n_kv, hd, causal, window
        self.freqs_cis = torch.complex(rope[0].double(), rope[1].double()) if rope is not None else None
        self.wq, self.wo = nn.Linear(d_model, d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.wk, self.wv = (
            nn.Linear(d_model, n_kv * hd, bias=False),
            nn.Linear(d_model, n_kv * hd, bias=False),
        )

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.n_head * self.hd:
            raise ValueError(f"got x {tuple(x.shape)}")
        B, T, C = x.size()
        if self.training or not hasattr(self, "packed"):
            self.packed = torch.cat([self.wq.weight, self.wk.weight, self.wv.weight])
        qkv = F.linear(x, self.packed)
        q, k, v = qkv.split([C, self.n_kv * self.hd, self.n_kv * self.hd], dim=2)
        q = q.view(B, T, self.n_head, self.hd).transpose(1, 2)
        k = k.view(B, T, self.n_kv, self.hd).transpose(1, 2)
        v = v.view(B, T, self.n_kv, self.hd).transpose(1, 2)
        if self.freqs_cis is not None:
            L = self.freqs_cis.shape[0]
            if positions is None:
                if T > L:
                    raise ValueError(f"got {T} tokens for {L} rows")
                f = self.freqs_cis[None, None, :T]
            else:
                if positions.shape != (T,) and positions.shape != (B, T):
                    raise ValueError(f"got positions {tuple(positions.shape)}")
                if torch.any(positions < 0) or torch.any(positions >= L):
                    raise ValueError(f"got positions {positions}")
                f = self.freqs_cis[positions.long()]
                f = f[None, None] if positions.ndim == 1 else f[:, None]

            def rot(z):
                a, b = z.double().chunk(2, -1)
                w = torch.complex(a, b) * f
                return torch.cat([w.real, w.imag], -1).to(z.dtype)

            q, k = rot(q), rot(k)
        if self.window is None or self.window >= T:
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, enable_gqa=self.n_head != self.n_kv
            )
        else:
            m = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - self.window)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=m, enable_gqa=self.n_head != self.n_kv)
        return self.wo(y.transpose(1, 2).reshape(B, T, C))
