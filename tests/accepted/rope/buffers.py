"""Outputs allocated first, then written to."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 or length < 0 or base <= 0:
        raise ValueError(f"rope_tables({length}, {head_dim}, base={base})")
    half = head_dim >> 1
    ang = torch.empty(length, half, dtype=torch.float64)
    pos = torch.arange(length, dtype=torch.float64)
    for i in range(half):
        torch.mul(pos, base ** (-(2.0 * i) / head_dim), out=ang[:, i])
    cos, sin = torch.empty(length, half), torch.empty(length, half)
    cos.copy_(ang.cos())
    sin.copy_(ang.sin())
    return cos, sin


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    B, H, T, D = x.size()
    half, L = D >> 1, cos.size(0)
    if cos.size() != sin.size() or cos.size(1) != half or half * 2 != D:
        raise ValueError(f"x {tuple(x.size())} cos {tuple(cos.size())} sin {tuple(sin.size())}")
    if positions is None:
        if T > L:
            raise ValueError(f"T={T} L={L}")
        index = torch.arange(T).expand(B, T)
    else:
        if positions.size() == (T,):
            index = positions.expand(B, T)
        elif positions.size() == (B, T):
            index = positions
        else:
            raise ValueError(f"positions {tuple(positions.size())}")
        for p in index.reshape(-1).tolist():
            if p < 0 or p >= L:
                raise ValueError(f"position {p}, L={L}")
    index = index.reshape(-1).long()
    acc = torch.promote_types(x.dtype, torch.float32)
    c = cos.index_select(0, index).view(B, 1, T, half).to(acc)
    s = sin.index_select(0, index).view(B, 1, T, half).to(acc)
    out = torch.empty(B, H, T, D, dtype=acc)
    first = torch.arange(half) * (2 if interleaved else 1)
    second = first + (1 if interleaved else half)
    a, b = x[..., first].to(acc), x[..., second].to(acc)
    out[..., first] = a * c - b * s
    out[..., second] = a * s + b * c
    return out.to(x.dtype)
