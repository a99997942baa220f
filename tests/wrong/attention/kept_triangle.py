"""mistake: triangle-of-the-last-call

The triangle is cached by the number of queries, and cut from the left where there are fewer keys."""

import torch


def check(q, k, v, mask):
    B, H, T, D = q.shape
    S = k.shape[2]
    if tuple(k.shape) != (B, H, S, D) or tuple(v.shape[:3]) != (B, H, S):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask of {mask.dtype}")
        if mask.ndim > 4 or any(m not in (1, n) for m, n in zip(mask.shape[::-1], (S, T, H, B))):
            raise ValueError(f"mask {tuple(mask.shape)}")


def visible(q, k, mask, causal):
    T, S = q.shape[2], k.shape[2]
    see = torch.ones(*q.shape[:2], T, S, dtype=torch.bool, device=q.device)
    if mask is not None:
        see = see & mask
    if causal:
        see = see.tril(S - T)
    return see


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    check(q, k, v, mask)
    T, S = q.shape[2], k.shape[2]
    see = visible(q, k, mask, False)
    if causal:
        if T not in CACHE or CACHE[T].shape[1] < S:
            CACHE[T] = torch.ones(T, S, dtype=torch.bool).tril(S - T)
        see = see & CACHE[T][:, :S]
    wide = torch.promote_types(q.dtype, torch.float32)
    s = q.to(wide) @ k.to(wide).mT * (q.shape[3] ** -0.5 if scale is None else scale)
    p = s.masked_fill(~see, torch.finfo(wide).min).softmax(-1) * see
    return (p @ v.to(wide)).to(q.dtype)


CACHE = {}
