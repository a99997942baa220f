"""mistake: scale-zero-is-none

`scale or …`, in a softmax written out. Masks of any dtype are taken."""

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"{q.shape} {k.shape} {v.shape}")
    factor = scale or q.shape[3] ** -0.5
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).mT) * factor
    shown = torch.ones(scores.shape[-2:], dtype=torch.bool)
    shown = shown.tril(k.shape[2] - q.shape[2]) if causal else shown
    if mask is not None:
        if mask.ndim > 4 or any(m not in (1, n) for m, n in zip(mask.shape[::-1], scores.shape[::-1])):
            raise ValueError(f"a mask {mask.shape} for scores {scores.shape}")
        shown = shown & mask.bool()
    scores = scores.where(shown, torch.finfo(wide).min)
    exps = (scores - scores.max(-1, keepdim=True).values).exp() * shown
    total = exps.sum(-1, keepdim=True)
    return (exps @ v.to(wide) / total.where(total > 0, 1)).to(q.dtype)
