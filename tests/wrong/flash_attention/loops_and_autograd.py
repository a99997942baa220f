"""mistake: left-to-autograd

Tiles as they should be, and loss.backward() for the rest.
"""

import torch


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if min(block_q, block_k) < 1:
        raise ValueError(f"{block_q}, {block_k}")
    wide = torch.promote_types(q.dtype, torch.float32)
    ahead = k.shape[2] - q.shape[2]
    done = []
    for first, block in zip(range(0, q.shape[2], block_q), q.split(block_q, 2), strict=True):
        block = block.to(wide) / q.shape[3] ** 0.5
        places = torch.arange(first, first + block.shape[2])[:, None] + ahead
        peak = torch.full((*block.shape[:3], 1), -1e30, dtype=wide)
        mass, mean = torch.zeros_like(peak), block.new_zeros(*block.shape[:3], v.shape[3])
        for start in range(0, k.shape[2], block_k):
            if causal and start > places[-1]:
                break
            keys, values = (x[:, :, start : start + block_k].to(wide) for x in (k, v))
            scores = torch.einsum("bhqd,bhkd->bhqk", block, keys)
            if causal:
                hidden = torch.arange(start, start + keys.shape[2]) > places
                scores = scores.masked_fill(hidden, -torch.inf)
            higher = torch.maximum(peak, scores.detach().amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (peak - higher).exp()
            mass = mass * shrink + weights.sum(-1, keepdim=True)
            mean = mean * shrink + torch.einsum("bhqk,bhke->bhqe", weights, values)
            peak = higher
        done.append(mean / mass.masked_fill(mass == 0, 1))
    return torch.cat(done, 2).to(q.dtype)
