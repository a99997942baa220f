"""mistake: softmax-over-queries

The scores are kept as (keys, queries), and the softmax runs over their last dimension."""

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
    T, S = q.shape[2], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores = k.to(wide) @ (q.to(wide) * scale).transpose(2, 3)
    visible = torch.ones(*q.shape[:2], T, S, dtype=torch.bool)
    if causal:
        visible = visible.tril(S - T)
    if mask is not None:
        visible = visible & mask
    scores = scores.masked_fill(~visible.transpose(2, 3), torch.finfo(wide).min)
    out = torch.softmax(scores, -1).transpose(2, 3) @ v.to(wide)
    return (out * visible.any(-1, keepdim=True)).to(q.dtype)
