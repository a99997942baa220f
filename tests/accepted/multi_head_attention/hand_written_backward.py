"""An autograd.Function of its own for the whole of attention, turn and all, with its backward pass by hand; masks
as sets of pairs of indices; everything in float64."""

import math

import torch
from torch import nn


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, hidden):
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, above):
        q, k, v, weights = ctx.saved_tensors
        pull = above @ v.mT
        pull = weights * (pull - (pull * weights).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        return pull @ k, pull.mT @ q, weights.mT @ above, None


class Turn(torch.autograd.Function):
    """Rotations are undone by their transposes."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return Turn.by(x, cos, sin)

    @staticmethod
    def backward(ctx, above):
        cos, sin = ctx.saved_tensors
        return Turn.by(above, cos, -sin), None, None

    @staticmethod
    def by(x, cos, sin):
        out, half = torch.empty_like(x), x.shape[-1] // 2
        out[..., :half] = x[..., :half] * cos - x[..., half:] * sin
        out[..., half:] = x[..., :half] * sin + x[..., half:] * cos
        return out


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, n_kv_heads=None, causal=False, rope=None, window=None):
        super().__init__()
        n_kv_heads = n_kv_heads if n_kv_heads is not None else n_heads
        if not (d_model > 0 and n_heads > 0 and n_kv_heads > 0):
            raise ValueError(f"sizes must be positive, not {d_model}, {n_heads}, {n_kv_heads}")
        if math.gcd(d_model, n_heads) != n_heads or math.gcd(n_heads, n_kv_heads) != n_kv_heads:
            raise ValueError(f"{d_model}, {n_heads} and {n_kv_heads} do not divide")
        if window is not None and (not causal or window < 1):
            raise ValueError(f"window {window}, causal {causal}")
        self.heads, self.kv, self.dim = n_heads, n_kv_heads, d_model // n_heads
        if rope is not None:
            (rows, pairs), other = rope[0].shape, tuple(rope[1].shape)
            if (rows, pairs) != other or pairs + pairs != self.dim:
                raise ValueError(f"tables {(rows, pairs)} and {other}")
        self.causal, self.tables, self.window = causal, rope, window
        weight = {
            "wq": n_heads * self.dim,
            "wk": n_kv_heads * self.dim,
            "wv": n_kv_heads * self.dim,
            "wo": d_model,
        }
        for name, out in weight.items():
            holder = nn.Module()
            holder.weight = nn.Parameter(torch.empty(out, d_model).uniform_(-0.1, 0.1))
            self.add_module(name, holder)

    def forward(self, x, *, positions=None):
        if x.ndim != 3 or x.shape[2] != self.heads * self.dim:
            raise ValueError(f"x {tuple(x.shape)}")
        batch, time, _ = x.shape
        wide = x.double()
        q, k, v = (
            (wide @ holder.weight.double().T).reshape(batch, time, count, self.dim).transpose(1, 2)
            for holder, count in ((self.wq, self.heads), (self.wk, self.kv), (self.wv, self.kv))
        )
        if self.tables is not None:
            cos, sin = (
                table.double()[self.rows(batch, time, positions)].unsqueeze(1) for table in self.tables
            )
            q, k = Turn.apply(q, cos, sin), Turn.apply(k, cos, sin)
        pairs = [(i, j) for i in range(time) for j in range(time) if not self.sees(i, j)]
        hidden = torch.zeros(time, time, dtype=torch.bool)
        if pairs:
            hidden[tuple(zip(*pairs, strict=True))] = True
        each = self.heads // self.kv
        outs = [Attend.apply(q[:, h], k[:, h // each], v[:, h // each], hidden) for h in range(self.heads)]
        return (torch.cat(outs, -1) @ self.wo.weight.double().T).to(x.dtype)

    def sees(self, i, j):
        return not self.causal or (j <= i and (self.window is None or i - j < self.window))

    def rows(self, batch, time, positions):
        length = len(self.tables[0])
        if positions is None:
            positions = torch.arange(time)
        if positions.ndim not in (1, 2) or positions.shape != (batch, time)[2 - positions.ndim :]:
            raise ValueError(f"positions {tuple(positions.shape)}")
        if any(p not in range(length) for p in positions.flatten().tolist()):
            raise ValueError(f"positions {positions.tolist()}, {length} rows")
        return positions.long().broadcast_to(batch, time)
