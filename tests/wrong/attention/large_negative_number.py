"""mistake: blind-queries-average

The lowest finite number hides a key, and nothing is done for a query that sees none."""

import torch
import torch.nn.functional as F


def check(q, k, v, mask):
    B, H, T, D = q.shape
    S = k.shape[2]
    if tuple(k.shape) != (B, H, S, D) or tuple(v.shape[:3]) != (B, H, S):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {mask.dtype}")
        try:
            mask.expand(B, H, T, S)
        except RuntimeError as error:
            raise ValueError(f"mask {tuple(mask.shape)}") from error


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    check(q, k, v, mask)
    kind = torch.double if q.dtype == torch.double else torch.float
    s = q.to(kind) @ k.to(kind).swapaxes(2, 3)
    s = s * (q.shape[3] ** -0.5 if scale is None else scale)
    may = torch.ones_like(s, dtype=torch.bool)
    if mask is not None:
        may &= mask
    if causal:
        past = (
            torch.arange(k.shape[2])[None, :] <= (torch.arange(q.shape[2]) + k.shape[2] - q.shape[2])[:, None]
        )
        may &= past
    return (F.softmax(s.masked_fill(may.logical_not(), torch.finfo(kind).min), dim=-1) @ v.to(kind)).to(
        q.dtype
    )
