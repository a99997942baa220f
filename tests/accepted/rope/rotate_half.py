"""x·cos + rotate(x)·sin with tables as wide as x, cast to x's dtype: no upcast anywhere.

The frequencies come from exp and log in float32."""

import math

import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim < 1 or head_dim & 1 or length < 0 or base <= 0:
        raise ValueError(f"{length=} {head_dim=} {base=}")
    inv_freq = torch.exp(torch.arange(0, head_dim, 2, dtype=torch.float32) * (-math.log(base) / head_dim))
    angles = torch.einsum("t,f->tf", torch.arange(length, dtype=torch.float32), inv_freq)
    return angles.cos(), angles.sin()


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_every_two(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    batch, _, time, head_dim = x.shape
    if cos.shape != sin.shape or cos.size(-1) != head_dim / 2:
        raise ValueError(f"{tuple(x.shape)}, {tuple(cos.shape)}, {tuple(sin.shape)}")
    if positions is None:
        positions = torch.arange(time)
        if time > cos.size(0):
            raise ValueError(f"{time} > {cos.size(0)}")
    positions = positions.to(torch.int64)
    if positions.dim() == 1:
        positions = positions[None, :].expand(batch, -1) if positions.size(0) == time else positions
    if positions.shape != (batch, time):
        raise ValueError(f"positions of shape {tuple(positions.shape)}")
    if torch.any(positions < 0) or torch.any(positions > cos.size(0) - 1):
        raise ValueError(f"positions {positions.tolist()} for {cos.size(0)} rows")
    cos, sin = cos[positions][:, None].to(x.dtype), sin[positions][:, None].to(x.dtype)
    if interleaved:
        cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
        return x * cos + rotate_every_two(x) * sin
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
    return x * cos + rotate_half(x) * sin
