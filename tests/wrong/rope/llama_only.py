"""mistake: always-interleaved

Neighbours as complex numbers, as in Meta's Llama; there is no other layout."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 or length < 0 or base <= 0:
        raise ValueError(f"{length} {head_dim} {base}")
    theta = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * theta
    return torch.cos(angle).float(), torch.sin(angle).float()


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    batch, _, time, dim = x.shape
    if cos.shape != sin.shape or 2 * cos.shape[-1] != dim:
        raise ValueError(f"{cos.shape} {sin.shape} {x.shape}")
    if positions is None:
        if time > len(cos):
            raise ValueError(f"{time} > {len(cos)}")
        positions = torch.arange(time)
    if positions.shape != (time,) and positions.shape != (batch, time):
        raise ValueError(f"{positions.shape}")
    if positions.min() < 0 or positions.max() >= len(cos):
        raise ValueError(f"{positions}")
    wide = torch.promote_types(x.dtype, torch.float32)
    turn = torch.complex(cos, sin)[positions.long()].unsqueeze(-3)
    z = torch.view_as_complex(x.to(wide).reshape(*x.shape[:-1], -1, 2).contiguous()) * turn
    return torch.view_as_real(z).flatten(-2).to(x.dtype)
