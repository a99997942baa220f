"""mistake: filled-with-1e4

torch.where with −1e4, for all dtypes; rows that see nothing are zeroed."""

import math

import torch


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
    T, S = q.size(2), k.size(2)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = torch.matmul(q.to(dtype), k.to(dtype).transpose(-1, -2))
    scores = scores / math.sqrt(q.size(3)) if scale is None else scores * scale
    keep = torch.tensor(True)
    if causal:
        keep = torch.arange(S)[None] - torch.arange(T)[:, None] <= S - T
    if mask is not None:
        keep = torch.logical_and(keep, mask)
    scores = torch.where(keep, scores, torch.tensor(-1e4, dtype=dtype))
    out = torch.softmax(scores, dim=3).matmul(v.to(dtype))
    alive = keep.expand(scores.shape).any(-1)
    return torch.where(alive[..., None], out, 0).to(q.dtype)
