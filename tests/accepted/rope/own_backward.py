"""A hand-written backward (the turn back), numpy for the tables, slices assigned into an own buffer."""

import numpy as np
import torch


def rope_tables(length, head_dim, *, base=10000.0):
    if head_dim <= 0 or head_dim % 2:
        raise ValueError(f"bad head_dim: {head_dim}")
    if length < 0 or base <= 0:
        raise ValueError(f"bad length or base: {length}, {base}")
    theta = np.power(base, -np.arange(0, head_dim, 2) / head_dim)
    angle = np.arange(length)[:, np.newaxis] * theta
    return torch.from_numpy(np.cos(angle).astype(np.float32)), torch.from_numpy(
        np.sin(angle).astype(np.float32)
    )


class Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, first, second):
        ctx.save_for_backward(cos, sin)
        ctx.channels = first, second
        return turn(x, cos, sin, first, second)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin, *ctx.channels), None, None, None, None


def turn(x, cos, sin, first, second):
    wide = x.double()
    out = torch.empty(x.shape, dtype=torch.float64)
    out[..., first] = torch.addcmul(wide[..., first] * cos, wide[..., second], sin, value=-1)
    out[..., second] = torch.addcmul(wide[..., second] * cos, wide[..., first], sin)
    return out.to(x.dtype)


def apply_rope(x, cos, sin, positions=None, *, interleaved=False):
    batch, _, time, head_dim = x.shape
    half, odd = divmod(head_dim, 2)
    if odd or cos.shape != sin.shape or cos.shape[1:] != (half,):
        raise ValueError(f"x {tuple(x.shape)}; cos {tuple(cos.shape)}; sin {tuple(sin.shape)}")
    at = np.arange(time) if positions is None else positions.numpy()
    if at.shape not in {(time,), (batch, time)} or at.min() < 0 or at.max() >= len(cos):
        raise ValueError(f"positions {at} for {time} tokens and {len(cos)} rows")
    at = torch.from_numpy(np.broadcast_to(at, (batch, time)).astype(np.int64).copy())
    cos, sin = (
        table.index_select(0, at.flatten()).double().view(batch, 1, time, half) for table in (cos, sin)
    )
    channels = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    return Turn.apply(x, cos, sin, *channels)
