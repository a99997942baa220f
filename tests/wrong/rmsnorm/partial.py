"""mistake: -

The mean square of the first half of a row, as the paper's pRMSNorm has it."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    some = h[..., : (x.shape[-1] + 1) // 2]
    return (h * torch.rsqrt(some.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
