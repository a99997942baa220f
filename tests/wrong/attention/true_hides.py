"""mistake: mask-inverted

Running maximum and sum, a key at a time; True in the mask is taken for padding."""

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
    query = q.to(wide) * (q.shape[3] ** -0.5 if scale is None else scale)
    hide = torch.zeros(*q.shape[:3], S, dtype=torch.bool)
    if mask is not None:
        hide = hide | mask
    if causal:
        hide = hide | (torch.arange(S) > torch.arange(S - T, S)[:, None])
    low = torch.finfo(wide).min
    top = torch.full((*q.shape[:3], 1), low, dtype=wide)
    total, out = torch.zeros_like(top), torch.zeros(*q.shape[:3], v.shape[3], dtype=wide)
    for j in range(S):
        away = hide[..., j : j + 1]
        s = (query * k[:, :, j : j + 1].to(wide)).sum(-1, keepdim=True).masked_fill(away, low)
        new = torch.maximum(top, s).detach()
        fade, p = (top - new).exp(), (s - new).exp().masked_fill(away, 0)
        total, out, top = total * fade + p, out * fade + p * v[:, :, j : j + 1].to(wide), new
    return (out / total.masked_fill(total == 0, 1)).to(q.dtype)
