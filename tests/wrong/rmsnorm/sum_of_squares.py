"""mistake: sum-for-the-mean

The sum of the squares, written as a product of matrices."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    power = (h[..., None, :] @ h[..., :, None]).squeeze(-1)
    return (h / torch.sqrt(power + eps) * weight).to(x.dtype)
