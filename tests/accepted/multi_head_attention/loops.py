"""Head by head and sequence by sequence in float64, with plain softmax and lists of what is seen."""

import torch
from torch import nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        nn.Module.__init__(self)
        if n_kv_heads is None:
            n_kv_heads = n_heads
        for name, value in (("d_model", d_model), ("n_heads", n_heads), ("n_kv_heads", n_kv_heads)):
            if value <= 0:
                raise ValueError(f"{name} {value}")
        head_dim, rest = divmod(d_model, n_heads)
        if rest or n_heads % n_kv_heads != 0:
            raise ValueError(f"{d_model} {n_heads} {n_kv_heads}")
        if window is not None and not (causal and window > 0):
            raise ValueError(f"window {window}, causal {causal}")
        if rope is not None and any(
            t.ndim != 2 or t.shape[1] * 2 != head_dim or len(t) != len(rope[0]) for t in rope
        ):
            raise ValueError(f"tables {rope[0].shape} {rope[1].shape}, head_dim {head_dim}")
        self.sizes = n_heads, n_kv_heads, head_dim
        self.options = causal, rope, window
        wide, narrow = n_heads * head_dim, n_kv_heads * head_dim
        for name, out in zip(("wq", "wk", "wv", "wo"), (wide, narrow, narrow, d_model), strict=True):
            self.add_module(name, nn.Linear(d_model, out, bias=False))

    def forward(self, x, *, positions=None):
        n, n_kv, d = self.sizes
        causal, rope, window = self.options
        if x.dim() != 3 or x.size(2) != n * d:
            raise ValueError(f"x {x.shape}")
        B, T, M = x.shape
        rows = self._rows(B, T, positions) if rope is not None else [[None] * T] * B
        wq, wk, wv, wo = (w.weight.double() for w in (self.wq, self.wk, self.wv, self.wo))
        entries = []
        for b in range(B):
            out = []
            for h in range(n):
                g = h * n_kv // n
                q, k, v = (x[b].double() @ w[i * d : (i + 1) * d].t() for w, i in ((wq, h), (wk, g), (wv, g)))
                if rope is not None:
                    q, k = (
                        torch.stack([self._turn(t, r) for t, r in zip(y, rows[b], strict=True)])
                        for y in (q, k)
                    )
                new = []
                for i in range(T):
                    end = i + 1 if causal else T
                    start = max(0, end - window) if window is not None else 0
                    w = torch.softmax(k[start:end] @ q[i] / d**0.5, dim=0)
                    new.append(w @ v[start:end])
                out.append(torch.stack(new))
            entries.append(torch.cat(out, dim=1) @ wo.t())
        return torch.stack(entries).to(x.dtype) if entries else x.new_zeros(0, T, M)

    def _rows(self, B, T, positions):
        length = len(self.options[1][0])
        if positions is None:
            rows = [list(range(T))] * B
        elif positions.shape == (T,):
            rows = [positions.tolist()] * B
        elif positions.shape == (B, T):
            rows = positions.tolist()
        else:
            raise ValueError(f"positions {positions.shape}")
        if T > length and positions is None or any(not 0 <= p < length for row in rows for p in row):
            raise ValueError(f"positions {rows}, {length} rows")
        return rows

    def _turn(self, token, row):
        cos, sin = (table[row].double() for table in self.options[1])
        a, b = token.chunk(2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin])
