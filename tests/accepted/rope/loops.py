"""Plain loops: math.cos for the tables, and one pair of channels after the other into a buffer."""

import math

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim not in range(2, 1 << 20, 2):
        raise ValueError(f"head_dim {head_dim}")
    if base <= 0 or length < 0:
        raise ValueError(f"base {base}, length {length}")
    thetas = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    cos = [[math.cos(p * theta) for theta in thetas] for p in range(length)]
    sin = [[math.sin(p * theta) for theta in thetas] for p in range(length)]
    return tuple(torch.tensor(t, dtype=torch.float32).reshape(length, head_dim // 2) for t in (cos, sin))


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    B, _, T, D = x.shape
    length = cos.shape[0]
    if D % 2 or tuple(cos.shape) != (length, D // 2) or tuple(sin.shape) != (length, D // 2):
        raise ValueError(f"{x.shape} {cos.shape} {sin.shape}")
    rows = list(range(T)) if positions is None else positions.tolist()
    if positions is not None and list(positions.shape) not in ([T], [B, T]):
        raise ValueError(f"{positions.shape}")
    if positions is None or positions.ndim == 1:
        rows = [rows] * B
    out = torch.zeros_like(x)
    for b in range(B):
        for t in range(T):
            p = rows[b][t]
            if not 0 <= p < length:
                raise ValueError(f"position {p} of {length}")
            for i in range(D // 2):
                j, k = (2 * i, 2 * i + 1) if interleaved else (i, i + D // 2)
                c, s = float(cos[p, i]), float(sin[p, i])
                out[b, :, t, j] = x[b, :, t, j] * c - x[b, :, t, k] * s
                out[b, :, t, k] = x[b, :, t, j] * s + x[b, :, t, k] * c
    return out
