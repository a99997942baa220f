"""mistake: gradient-turned-the-same-way

A backward pass of its own.
"""

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if length < 0 or head_dim <= 0 or head_dim % 2 or base <= 0:
        raise ValueError(f"length {length}, head_dim {head_dim}, base {base}")
    p = torch.arange(length, dtype=torch.float32)[:, None]
    i = torch.arange(head_dim // 2, dtype=torch.float32)[None]
    a = p / base ** (2 * i / head_dim)
    return torch.cos(a), torch.sin(a)


class Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c, s, interleaved):
        ctx.save_for_backward(c, s)
        ctx.interleaved = interleaved
        return Turn.go(x, c, s, interleaved)

    @staticmethod
    def go(x, c, s, interleaved):
        out = x.to(torch.float64, copy=True)
        if interleaved:
            a, b = out[..., ::2], out[..., 1::2]
        else:
            a, b = (
                out.narrow(-1, 0, out.shape[-1] // 2),
                out.narrow(-1, out.shape[-1] // 2, out.shape[-1] // 2),
            )
        t = a * s
        a.mul_(c).sub_(b * s)
        b.mul_(c).add_(t)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        c, s = ctx.saved_tensors
        return Turn.go(g, c, s, ctx.interleaved), None, None, None


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    if cos.shape != sin.shape or 2 * cos.shape[-1] != x.shape[-1]:
        raise ValueError(f"{cos.shape} {sin.shape} {x.shape}")
    n, t = cos.shape[0], x.shape[2]
    if positions is None:
        if t > n:
            raise ValueError(f"{t} > {n}")
        positions = torch.arange(t)
    if positions.shape != x.shape[2:3] and positions.shape != (x.shape[0], t):
        raise ValueError(f"positions {positions.shape}")
    if not torch.all((0 <= positions) & (positions < n)):
        raise ValueError(f"positions {positions}")
    pos = positions.long()
    pos = pos.view(1, 1, t) if pos.ndim == 1 else pos.unsqueeze(1)
    return Turn.apply(x, cos.double()[pos], sin.double()[pos], interleaved)
