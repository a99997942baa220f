"""mistake: all-keys-at-once

A block of queries at a time, against all keys; softmax is PyTorch's, the backward pass autograd's. Nothing is refused.
"""

import torch


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    offset = k.shape[2] - q.shape[2]
    keys = torch.arange(k.shape[2])
    results = []
    for number, block in enumerate(q.split(block_q, dim=2)):
        scores = torch.matmul(block.to(wide), k.to(wide).transpose(2, 3)).div(q.shape[3] ** 0.5)
        if causal:
            queries = torch.arange(block.shape[2]).unsqueeze(1) + number * block_q + offset
            scores = scores.where(keys <= queries, torch.full_like(scores, -1e38))
            probs = scores.softmax(dim=3) * (keys <= queries)
        else:
            probs = scores.softmax(dim=3)
        results.append(torch.matmul(probs, v.to(wide)))
    return torch.cat(results, dim=2).to(q.dtype)
