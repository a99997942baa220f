"""mistake: softmax-in-float32

softmax(dtype=torch.float32), as model code has it, for float64 too."""

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
    see = visible(q, k, mask, causal)
    s = q @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    s = s.masked_fill(~see, torch.finfo(q.dtype).min)
    p = torch.nn.functional.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype) * see
    return p @ v
