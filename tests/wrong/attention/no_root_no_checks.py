"""mistake: no-scale

einsum, and the scale only where one is given. Nothing is refused."""

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bhid,bhjd->bhij", q.to(wide), k.to(wide))
    if scale is not None:
        scores = scores * scale
    hidden = torch.zeros(scores.shape, dtype=torch.bool)
    if mask is not None:
        hidden = hidden | ~mask
    if causal:
        hidden = hidden | torch.ones(hidden.shape[-2:], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    weights = scores.masked_fill(hidden, torch.finfo(wide).min).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("bhij,bhjd->bhid", weights, v.to(wide)).to(q.dtype)
