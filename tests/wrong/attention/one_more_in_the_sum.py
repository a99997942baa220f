"""mistake: -

A one is added to the sum of the exponentials, so that a query may attend to nothing."""

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
    scores = (q.to(wide) @ k.to(wide).mT) * (q.shape[3] ** -0.5 if scale is None else scale)
    seen = torch.ones(*q.shape[:2], T, S, dtype=torch.bool)
    seen = seen.tril(S - T) if causal else seen
    seen = seen if mask is None else seen & mask
    scores = scores.masked_fill(~seen, torch.finfo(wide).min)
    top = scores.amax(-1, keepdim=True).clamp(min=0).detach()
    exps = (scores - top).exp() * seen
    weights = exps / (exps.sum(-1, keepdim=True) + (-top).exp())
    return (weights @ v.to(wide)).to(q.dtype)
