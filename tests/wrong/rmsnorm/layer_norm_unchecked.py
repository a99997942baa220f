"""mistake: mean-subtracted

LayerNorm without the bias; and any weight is taken."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    h = h - h.sum(-1, keepdim=True) / x.shape[-1]
    return (h / (h.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt() * weight).to(x.dtype)
