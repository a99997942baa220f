"""mistake: -

Divided by the largest entry."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (h / (h.abs().amax(-1, keepdim=True).square() + eps).sqrt() * weight).to(x.dtype)
