"""The exponentials times the mask, over their own sum; the maximum is taken over visible keys. No upcast."""

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    if not (q.size(0) == k.size(0) == v.size(0) and q.size(1) == k.size(1) == v.size(1)):
        raise ValueError(f"batch and heads of {q.size()}, {k.size()}, {v.size()}")
    if q.size(-1) != k.size(-1) or k.size(-2) != v.size(-2):
        raise ValueError(f"head_dim or keys of {q.size()}, {k.size()}, {v.size()}")
    visible = torch.ones((*q.size()[:3], k.size(2)), dtype=torch.bool, device=q.device)
    if causal:
        i, j = torch.meshgrid(torch.arange(q.size(2)), torch.arange(k.size(2)), indexing="ij")
        visible = visible & (q.size(2) - 1 - i <= k.size(2) - 1 - j)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"not a boolean mask: {mask.dtype}")
        if torch.Size(
            max(a, b) for a, b in zip(mask.size(), visible.size()[4 - mask.dim() :], strict=True)
        ) != (visible.size()[4 - mask.dim() :]) or any(
            m != 1 and m != s for m, s in zip(mask.size(), visible.size()[4 - mask.dim() :], strict=True)
        ):
            raise ValueError(f"mask {mask.size()} for {visible.size()}")
        visible = visible & mask
    scale = q.size(-1) ** -0.5 if scale is None else scale
    scores = q.mul(scale).matmul(k.transpose(-1, -2))
    with torch.no_grad():
        lowest = torch.finfo(scores.dtype).min
        top = torch.where(visible, scores, lowest).max(dim=-1, keepdim=True).values
    e = (scores - top).clamp(max=0).exp() * visible
    total = e.sum(-1, keepdim=True)
    return e @ v / torch.where(total > 0, total, 1)
