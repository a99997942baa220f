"""mistake: aligned-to-the-first-key

Query by query in float64; the past of query i is the keys 0 … i, however many keys there are."""

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
    B, H, T, D = q.shape
    S = k.shape[2]
    scale = D**-0.5 if scale is None else scale
    seen = torch.ones(B, H, T, S, dtype=torch.bool) if mask is None else mask.expand(B, H, T, S)
    rows = []
    for i in range(T):
        may = seen[:, :, i]
        if causal:
            may = may & (torch.arange(S) <= i)
        s = (k.double() @ (scale * q[:, :, i].double())[..., None])[..., 0]
        s = torch.where(may, s, torch.finfo(s.dtype).min)
        w = torch.where(may, s.softmax(-1), 0)
        rows.append((w[..., None] * v.double()).sum(2))
    return torch.stack(rows, 2).to(q.dtype)
