"""mistake: positions-of-the-first-call

Tiles of keys under a running softmax; the rows of the tables are kept.
"""

import torch
from torch import nn

TILE = 4


class Weight(nn.Module):
    def __init__(self, out, in_):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, in_).normal_(0, 0.02))


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        nkv = n_kv_heads if n_kv_heads is not None else n_heads
        if d_model <= 0 or n_heads <= 0 or nkv <= 0:
            raise ValueError(f"sizes {d_model}, {n_heads}, {nkv}")
        if d_model % n_heads or n_heads % nkv:
            raise ValueError(f"sizes {d_model}, {n_heads}, {nkv} do not divide")
        if window is not None and (window < 1 or causal is False):
            raise ValueError(f"window {window} causal {causal}")
        hd = d_model // n_heads
        if rope is not None:
            cos, sin = rope
            if cos.shape != sin.shape or cos.dim() != 2 or cos.shape[1] * 2 != hd:
                raise ValueError(f"tables {tuple(cos.shape)} {tuple(sin.shape)}")
        self.d, self.nh, self.nkv, self.hd = d_model, n_heads, nkv, hd
        self.causal, self.win = causal, window
        self.tables = rope
        self.wq, self.wk, self.wv = (
            Weight(d_model, d_model),
            Weight(nkv * hd, d_model),
            Weight(nkv * hd, d_model),
        )
        self.wo = Weight(d_model, d_model)

    def forward(self, x, *, positions=None):
        if x.dim() != 3 or x.size(2) != self.d:
            raise ValueError(f"x {tuple(x.shape)}")
        B, T = x.size(0), x.size(1)
        acc = torch.promote_types(x.dtype, torch.float32)
        X = x.to(acc)
        q, k, v = (X.matmul(w.weight.to(acc).t()) for w in (self.wq, self.wk, self.wv))
        if self.tables is not None:
            cos, sin = self.tables
            if positions is None:
                if T > cos.size(0):
                    raise ValueError(f"time {T}, rows {cos.size(0)}")
                positions = torch.arange(T)
            elif positions.shape != (T,) and positions.shape != (B, T):
                raise ValueError(f"positions {tuple(positions.shape)}")
            idx = positions.long()
            if idx.numel() and not (0 <= int(idx.min()) and int(idx.max()) < cos.size(0)):
                raise ValueError(f"positions in {int(idx.min())}..{int(idx.max())}")
            if (
                getattr(self, "kept", None) is None
                or self.kept[0].shape[:-2] != idx.shape
                or self.kept[0].dtype != acc
            ):
                self.kept = cos[idx].to(acc).unsqueeze(-2), sin[idx].to(acc).unsqueeze(-2)
            c, s = self.kept  # ([B,] T, 1, pairs)
            q, k = self.turned(q, c, s, self.nh), self.turned(k, c, s, self.nkv)
        out = torch.zeros(B, T, self.d, dtype=acc)
        hd, rep = self.hd, self.nh // self.nkv
        rows = torch.arange(T)[:, None]
        for h in range(self.nh):
            g = h // rep
            qh = q[..., h * hd : (h + 1) * hd] / hd**0.5
            kh, vh = k[..., g * hd : (g + 1) * hd], v[..., g * hd : (g + 1) * hd]
            top = torch.full((B, T, 1), -float("inf"), dtype=acc)
            total = torch.zeros(B, T, 1, dtype=acc)
            sums = torch.zeros(B, T, hd, dtype=acc)
            for lo in range(0, T, TILE):
                hi = min(lo + TILE, T)
                sc = qh @ kh[:, lo:hi].transpose(1, 2)
                cols = torch.arange(lo, hi)
                if self.causal:
                    hidden = cols > rows
                    if self.win is not None:
                        hidden = hidden | (cols <= rows - self.win)
                    sc = sc.masked_fill(hidden, -float("inf"))
                new = torch.maximum(top, sc.detach().amax(-1, keepdim=True))
                safe = torch.where(new == -float("inf"), torch.zeros_like(new), new)
                e = (sc - safe).exp()
                fade = torch.where(top == -float("inf"), torch.zeros_like(top), (top - safe).exp())
                total = total * fade + e.sum(-1, keepdim=True)
                sums = sums * fade + e @ vh[:, lo:hi]
                top = new
            out[..., h * hd : (h + 1) * hd] = sums / total
        return out.matmul(self.wo.weight.to(acc).t()).to(x.dtype)

    def turned(self, z, c, s, n):
        half = self.hd // 2
        z = z.reshape(*z.shape[:2], n, self.hd)
        a, b = z[..., :half], z[..., half:]
        out = torch.empty_like(z)
        out[..., :half] = a * c - b * s
        out[..., half:] = a * s + b * c
        return out.reshape(*out.shape[:2], -1)
