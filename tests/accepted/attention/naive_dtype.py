"""No upcast: all intermediates in the dtype of the inputs; −inf first, NaN cleaned from the weights."""

import math

import torch


def attention(q, k, v, *, mask=None, causal=False, scale=None):
    B, H, T_q, D = q.shape
    T_k = k.shape[-2]
    if k.shape != (B, H, T_k, D) or v.shape[:3] != (B, H, T_k):
        raise ValueError(f"{q.shape=} {k.shape=} {v.shape=}")
    if scale is None:
        scale = 1 / math.sqrt(D)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    if mask is not None:
        if mask.dtype is not torch.bool:
            raise ValueError(f"mask has dtype {mask.dtype}")
        try:
            mask = mask.expand(B, H, T_q, T_k)
        except RuntimeError:
            raise ValueError(f"mask {mask.shape} against scores {scores.shape}") from None
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    if causal:
        future = torch.ones(T_q, T_k, device=q.device).triu(T_k - T_q + 1).bool()
        scores = scores.masked_fill(future, float("-inf"))
    weights = torch.nan_to_num(torch.softmax(scores, -1))
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)
