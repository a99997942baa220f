"""mistake: one-plus-weight

As in Gemma; and any weight is taken."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    r = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return torch.addcmul(h * r, h * r, weight.to(h.dtype).expand_as(h)).to(x.dtype)
