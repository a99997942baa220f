"""mistake: positions-of-any-shape

Positions are checked by indexing alone, which broadcasts, and counts negative ones from the end."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 or length < 0 or base <= 0:
        raise ValueError(f"{length} {head_dim} {base}")
    theta = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * theta
    return torch.cos(angle).float(), torch.sin(angle).float()


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    dim = x.shape[-1]
    if cos.shape != sin.shape or cos.shape[1] * 2 != dim:
        raise ValueError(f"{x.shape} {cos.shape} {sin.shape}")
    if positions is None:
        if x.shape[2] > cos.shape[0]:
            raise ValueError(f"{x.shape} {cos.shape}")
        positions = torch.arange(x.shape[2])
    kind = torch.double if x.dtype == torch.double else torch.float
    c, s = (t[positions.long()].unsqueeze(-3).to(kind) for t in (cos, sin))
    out = torch.zeros(x.shape, dtype=kind)
    where = (
        (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    )
    a, b = (x[..., w].to(kind) for w in where)
    out[..., where[0]] = a * c - b * s
    out[..., where[1]] = a * s + b * c
    return out.type_as(x)
