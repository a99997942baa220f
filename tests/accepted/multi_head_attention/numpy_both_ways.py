"""Forward and backward pass in NumPy, in float64."""

import numpy as np
import torch
from torch import nn


def npy(t):
    return t.detach().double().numpy()


class _MHA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, wq, wk, wv, wo, H, G, tables, see):
        X, Wq, Wk, Wv, Wo = map(npy, (x, wq, wk, wv, wo))
        B, T, M = X.shape
        D = M // H
        heads = lambda a, n: a.reshape(B, T, n, D).transpose(0, 2, 1, 3)
        q, k, v = heads(X @ Wq.T, H), heads(X @ Wk.T, G), heads(X @ Wv.T, G)
        if tables is not None:
            q, k = _MHA.turn(q, *tables), _MHA.turn(k, *tables)
        kk, vv = np.repeat(k, H // G, axis=1), np.repeat(v, H // G, axis=1)
        s = q @ kk.swapaxes(-1, -2) / np.sqrt(D)
        s = np.where(see, s, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        y = (p @ vv).transpose(0, 2, 1, 3).reshape(B, T, M)
        ctx.stuff = X, Wq, Wk, Wv, Wo, q, kk, vv, p, y, H, G, tables
        ctx.types = [a.dtype for a in (x, wq, wk, wv, wo)]
        return torch.from_numpy(y @ Wo.T).to(x.dtype)

    @staticmethod
    def turn(z, c, s):
        a, b = np.split(z, 2, axis=-1)
        return np.concatenate([a * c - b * s, a * s + b * c], -1)

    @staticmethod
    def backward(ctx, g):
        X, Wq, Wk, Wv, Wo, q, kk, vv, p, y, H, G, tables = ctx.stuff
        B, T, M = X.shape
        D = M // H
        g = npy(g)
        dWo = np.einsum("btm,btn->mn", g, y)
        dy = (g @ Wo).reshape(B, T, H, D).transpose(0, 2, 1, 3)
        dvv = p.swapaxes(-1, -2) @ dy
        dp = dy @ vv.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(D)
        dq, dkk = ds @ kk, ds.swapaxes(-1, -2) @ q
        dk = dkk.reshape(B, G, H // G, T, D).sum(2)
        dv = dvv.reshape(B, G, H // G, T, D).sum(2)
        if tables is not None:
            c, s = tables
            dq, dk = _MHA.turn(dq, c, -s), _MHA.turn(dk, c, -s)
        flat = lambda a: a.transpose(0, 2, 1, 3).reshape(B, T, -1)
        dq, dk, dv = flat(dq), flat(dk), flat(dv)
        dX = dq @ Wq + dk @ Wk + dv @ Wv
        dW = [np.einsum("btn,btm->nm", d, X) for d in (dq, dk, dv)]
        out = [torch.from_numpy(np.ascontiguousarray(a)).to(t) for a, t in zip([dX, *dW, dWo], ctx.types)]
        return (*out, None, None, None, None)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        kv = n_heads if n_kv_heads is None else n_kv_heads
        if d_model < 1 or n_heads < 1 or kv < 1 or d_model % n_heads or n_heads % kv:
            raise ValueError(f"{d_model} {n_heads} {n_kv_heads}")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window {window}, causal {causal}")
        D = d_model // n_heads
        if rope is not None:
            if rope[0].shape != rope[1].shape or rope[0].shape[1:] != (D / 2,):
                raise ValueError(f"rope {rope[0].shape} {rope[1].shape}")
            rope = npy(rope[0]), npy(rope[1])
        self.h, self.kv, self.causal, self.tables, self.window = n_heads, kv, causal, rope, window
        for name, (o, i) in {
            "wq": (d_model, d_model),
            "wk": (kv * D, d_model),
            "wv": (kv * D, d_model),
            "wo": (d_model, d_model),
        }.items():
            self.add_module(name, nn.Linear(i, o, bias=False))

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[-1] != self.wo.weight.shape[0]:
            raise ValueError(f"x {x.shape}")
        B, T, _ = x.shape
        tables = None
        if self.tables is not None:
            L = self.tables[0].shape[0]
            if positions is None:
                if T > L:
                    raise ValueError(f"{T} > {L}")
                rows = np.arange(T)
            else:
                rows = positions.numpy()
                if rows.shape not in [(T,), (B, T)]:
                    raise ValueError(f"positions {rows.shape}")
                if (rows < 0).any() or (rows >= L).any():
                    raise ValueError(f"positions {rows}")
            tables = [t[rows] if rows.ndim == 1 else t[rows][:, None] for t in self.tables]
        see = np.ones((T, T), dtype=bool)
        if self.causal:
            see = np.tril(see)
            if self.window:
                see = np.triu(see, 1 - self.window)
        return _MHA.apply(
            x, self.wq.weight, self.wk.weight, self.wv.weight, self.wo.weight, self.h, self.kv, tables, see
        )
