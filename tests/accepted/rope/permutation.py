"""A permutation of the channels and their signs: x · C + x[permutation] · S, in float64."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim < 2 or head_dim % 2 or length < 0 or base <= 0:
        raise ValueError(f"{length}, {head_dim}, {base}")
    steps = torch.linspace(0, 1, head_dim // 2 + 1, dtype=torch.float64)[:-1]
    angles = torch.arange(length).double().outer(torch.tensor(base, dtype=torch.float64).pow(-steps))
    return angles.cos().float(), angles.sin().float()


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    B, H, T, D = x.shape
    if cos.shape != sin.shape or cos.dim() != 2 or cos.shape[1] * 2 != D:
        raise ValueError(f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}")
    N = cos.shape[0]
    if positions is None:
        if N < T:
            raise ValueError(f"{T} tokens, {N} rows")
        positions = torch.arange(T)
    if list(positions.shape) not in ([T], [B, T]):
        raise ValueError(f"positions {tuple(positions.shape)}")
    if positions.min() < 0 or positions.max() >= N:
        raise ValueError(f"positions from {positions.min()} to {positions.max()}, rows {N}")
    k = torch.arange(D)
    pair = k // 2 if interleaved else k % (D // 2)
    perm = k ^ 1 if interleaved else (k + D // 2) % D
    sign = torch.where(perm > k, -1.0, 1.0)
    rows = positions.broadcast_to(B, T)
    C = cos[rows][:, :, pair][:, None]
    S = (sin[rows][:, :, pair] * sign)[:, None]
    y = x.to(torch.float64)
    return (y * C + y[..., perm] * S).to(x.dtype)
