"""mistake: eps-outside-the-root

The length of the row over √dim, plus eps."""

import math

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    size = h.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return (h / (size + eps) * weight).to(x.dtype)
