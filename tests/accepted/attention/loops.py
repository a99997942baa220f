"""Loops over entries, heads and queries; the keys that a query may see are picked by index, not masked."""

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    if (batch, heads, width) != (k.shape[0], k.shape[1], k.shape[3]) or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"shapes {list(q.shape)} {list(k.shape)} {list(v.shape)}")
    if mask is None:
        mask = torch.tensor(True)
    shape = (batch, heads, queries, keys)
    if mask.dtype != torch.bool or len(mask.shape) > 4:
        raise ValueError(f"mask {mask.dtype} {list(mask.shape)}")
    for have, need in zip(reversed(mask.shape), reversed(shape), strict=False):
        if have != need and have != 1:
            raise ValueError(f"mask {list(mask.shape)} for {list(shape)}")
    mask = mask.broadcast_to(shape)
    out = q.new_zeros(batch, heads, queries, v.shape[3])
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                upto = max(keys - queries + i + 1, 0) if causal else keys
                seen = mask[b, h, i, :upto].nonzero().flatten()
                if len(seen) == 0:
                    continue
                scores = (k[b, h, seen] * q[b, h, i]).sum(-1) * (width**-0.5 if scale is None else scale)
                weights = (scores - scores.max()).exp()
                weights = weights / weights.sum()
                out[b, h, i] = (weights[:, None] * v[b, h, seen]).sum(0)
    return out
