"""mistake: hidden-by-minus-10000

Einsum over groups.
"""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        G = n_heads if n_kv_heads is None else n_kv_heads
        if min(d_model, n_heads, G) < 1 or d_model % n_heads or n_heads % G:
            raise ValueError(f"d_model={d_model} n_heads={n_heads} n_kv_heads={n_kv_heads}")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window={window} causal={causal}")
        D = d_model // n_heads
        if rope is not None and (
            rope[0].shape != rope[1].shape or rope[0].ndim != 2 or 2 * rope[0].shape[1] != D
        ):
            raise ValueError(f"rope {rope[0].shape} {rope[1].shape}")
        self.H, self.G, self.D, self.causal, self.rope, self.window = n_heads, G, D, causal, rope, window
        self.wq = nn.Linear(d_model, d_model, bias=False)
        self.wk = nn.Linear(d_model, G * D, bias=False)
        self.wv = nn.Linear(d_model, G * D, bias=False)
        self.wo = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, *, positions=None):
        H, G, D = self.H, self.G, self.D
        if x.ndim != 3 or x.shape[2] != H * D:
            raise ValueError(f"x {tuple(x.shape)}")
        B, T, _ = x.shape
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        W = lambda lin, *s: lin.weight.to(wide).view(*s)
        X = x.to(wide)
        q = torch.einsum("btm,grdm->btgrd", X, W(self.wq, G, H // G, D, H * D))
        k = torch.einsum("btm,gdm->btgd", X, W(self.wk, G, D, H * D))
        v = torch.einsum("btm,gdm->btgd", X, W(self.wv, G, D, H * D))
        if self.rope is not None:
            c, s = self.rope
            if positions is None:
                if T > len(c):
                    raise ValueError(f"{T} tokens for {len(c)} rows")
                positions = torch.arange(T)
            if positions.shape != (T,) and positions.shape != (B, T):
                raise ValueError(f"positions {tuple(positions.shape)}")
            if positions.numel() and (positions.min() < 0 or positions.max() >= len(c)):
                raise ValueError(f"positions {positions}")
            c, s = (t[positions.long()].to(wide).expand(B, T, D // 2) for t in (c, s))

            def turn(z):
                n = z.ndim - 3
                a, b = z.chunk(2, -1)
                cc, ss = (t.reshape(B, T, *[1] * n, D // 2) for t in (c, s))
                return torch.cat([a * cc - b * ss, a * ss + b * cc], -1)

            q, k = turn(q), turn(k)
        sc = torch.einsum("bigrd,bjgd->bgrij", q, k) / D**0.5
        if self.causal:
            d = torch.arange(T)[:, None] - torch.arange(T)
            hide = d < 0
            if self.window is not None:
                hide = hide | (d >= self.window)
            sc = sc.masked_fill(hide, -1e4)
        y = torch.einsum("bgrij,bjgd,mgrd->bim", sc.softmax(-1), v, W(self.wo, H * D, G, H // G, D))
        return y.to(x.dtype)
