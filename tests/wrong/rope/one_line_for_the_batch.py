"""mistake: first-sequence-for-all

Positions of the whole batch are taken from its first sequence; the rotation is a matrix product."""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2 or length < 0 or base <= 0:
        raise ValueError(f"{length} {head_dim} {base}")
    theta = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * theta
    return torch.cos(angle).float(), torch.sin(angle).float()


def rows(x, cos, sin, positions):
    batch, _, time, dim = x.shape
    if cos.shape != sin.shape or cos.ndim != 2 or dim != 2 * cos.shape[1]:
        raise ValueError(f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}")
    if positions is None:
        if time > len(cos):
            raise ValueError(f"{time} tokens, {len(cos)} rows")
        positions = torch.arange(time)
    if tuple(positions.shape) not in ((time,), (batch, time)):
        raise ValueError(f"positions {tuple(positions.shape)}")
    if (positions < 0).any() or (positions >= len(cos)).any():
        raise ValueError(f"positions {positions.tolist()}")
    wide = torch.promote_types(x.dtype, torch.float32)
    at = positions.long().expand(batch, time)
    return x.to(wide), cos[at].to(wide)[:, None], sin[at].to(wide)[:, None]


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    rows(x, cos, sin, positions)
    if positions is not None and positions.ndim == 2:
        positions = positions[0]
    y, c, s = rows(x, cos, sin, positions)
    order = torch.arange(x.shape[-1]).view(-1, 2) if interleaved else torch.arange(x.shape[-1]).view(2, -1).T
    turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    turned = (turn @ y[..., order].unsqueeze(-1)).squeeze(-1)
    return turned.flatten(-2)[..., order.flatten().argsort()].to(x.dtype)
