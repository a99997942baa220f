"""mistake: tables-handed-out-again

One large table is kept, and its first rows are handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Layout(Enum):
    HALF_SPLIT = "half-split"
    INTERLEAVED = "interleaved"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self is Layout.INTERLEAVED:
            return x[..., 0::2], x[..., 1::2]
        return torch.tensor_split(x, 2, dim=-1)

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        if self is Layout.INTERLEAVED:
            return torch.stack((a, b), dim=-1).reshape(*a.shape[:-1], -1)
        return torch.cat((a, b), dim=-1)


@dataclass(frozen=True)
class Tables:
    cos: Tensor
    sin: Tensor

    def __post_init__(self):
        if self.cos.shape != self.sin.shape or self.cos.ndim != 2:
            raise ValueError(f"cos {tuple(self.cos.shape)} and sin {tuple(self.sin.shape)} differ")

    def rows(self, positions: Tensor | None, batch: int, time: int) -> "Tables":
        if positions is None:
            if time > self.cos.shape[0]:
                raise ValueError(f"{time} tokens but {self.cos.shape[0]} rows")
            return Tables(self.cos[:time], self.sin[:time])
        if positions.shape != (time,) and positions.shape != (batch, time):
            raise ValueError(f"positions {tuple(positions.shape)}")
        bad = (positions < 0) | (positions > self.cos.shape[0] - 1)
        if bool(bad.any()):
            raise ValueError(f"positions {positions[bad].tolist()} out of range")
        flat = positions.flatten().to(torch.int64)
        rows = Tables.__new__(Tables)
        object.__setattr__(rows, "cos", self.cos[flat].unflatten(0, positions.shape))
        object.__setattr__(rows, "sin", self.sin[flat].unflatten(0, positions.shape))
        return rows


_BIG = {}


def rope_tables(length: int, head_dim: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    if not (head_dim > 0 and head_dim % 2 == 0):
        raise ValueError(f"head_dim={head_dim}")
    if length < 0:
        raise ValueError(f"length={length}")
    if not base > 0:
        raise ValueError(f"base={base}")
    if (head_dim, base) in _BIG and len(_BIG[head_dim, base][0]) >= length:
        c, s = _BIG[head_dim, base]
        return c[:length], s[:length]
    log = torch.log(torch.tensor(float(base), dtype=torch.float64))
    theta = torch.exp(torch.arange(head_dim // 2, dtype=torch.float64) * (-2.0 / head_dim) * log)
    angles = torch.arange(length, dtype=torch.float64).unsqueeze(1) * theta.unsqueeze(0)
    _BIG[head_dim, base] = torch.cos(angles).to(torch.float32), torch.sin(angles).to(torch.float32)
    return _BIG[head_dim, base]


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    batch, _heads, time, head_dim = x.shape
    tables = Tables(cos, sin)
    if head_dim != 2 * tables.cos.shape[1]:
        raise ValueError(f"head_dim {head_dim}, columns {tables.cos.shape[1]}")
    rows = tables.rows(positions, batch, time)
    c, s = (r if r.ndim == 2 else r.unsqueeze(-3) for r in (rows.cos, rows.sin))
    layout = Layout.INTERLEAVED if interleaved else Layout.HALF_SPLIT
    a, b = layout.split(x if x.dtype == torch.float64 else x.to(torch.float32))
    return layout.join(torch.addcmul(a * c, b, s, value=-1), torch.addcmul(a * s, b, c)).to(x.dtype)
