"""mistake: block-sizes-unused

Plain attention by einsum and softmax, backward by autograd; the block sizes are looked at, and not used.
"""

import math

import torch


def flash_attention(q, k, v, *, causal=False, block_q, block_k):
    if q.shape[0] != k.shape[0] or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape}, k {k.shape}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k {k.shape}, v {v.shape}")
    if block_q < 1 or block_k < 1:
        raise ValueError(f"blocks {block_q}, {block_k}")
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = torch.einsum("bhqd,bhkd->bhqk", q.to(dtype), k.to(dtype)) / math.sqrt(q.shape[-1])
    if causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        logits = logits.masked_fill(~seen, torch.finfo(dtype).min)
        probs = logits.softmax(-1) * seen
    else:
        probs = logits.softmax(-1)
    return torch.einsum("bhqk,bhke->bhqe", probs, v.to(dtype)).to(q.dtype)
