"""One head at a time, mapped over batch and heads; softmax through log-weights; keys first, queries last."""

import torch
from torch import vmap


def single(q, k, v, seen, scale):
    s = (k @ (q * scale).T).masked_fill(~seen.T, -torch.inf)  # (keys, queries)
    top = s.amax(0).nan_to_num(neginf=0.0)
    log_w = s - top - (s - top).exp().sum(0).clamp(min=torch.finfo(s.dtype).tiny).log()
    return log_w.exp().T @ v


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    if q.shape[:2] + k.shape[2:] != k.shape[:2] + k.shape[2:3] + q.shape[3:] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"{tuple(q.shape)} {tuple(k.shape)} {tuple(v.shape)}")
    B, H, T_q, T_k = *q.shape[:3], k.shape[2]
    seen = (
        torch.arange(T_k)[None, :] - T_k <= torch.arange(T_q)[:, None] - T_q if causal else torch.tensor(True)
    )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(mask.dtype)
        dims = (1,) * (4 - mask.ndim) + tuple(mask.shape)
        if len(dims) != 4 or any(a not in (1, b) for a, b in zip(dims, (B, H, T_q, T_k), strict=True)):
            raise ValueError(tuple(mask.shape))
        seen = seen & mask
    seen = seen.expand(B, H, T_q, T_k)
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if B == 0:
        return q.new_empty(0, H, T_q, v.shape[3])
    head = vmap(vmap(single, (0, 0, 0, 0, None)), (0, 0, 0, 0, None))
    return head(q.to(wide), k.to(wide), v.to(wide), seen, scale).to(q.dtype)
