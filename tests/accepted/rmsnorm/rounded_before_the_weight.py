"""The normalised row is rounded to the input's dtype before it meets the weight, as in Llama's code."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(f"weight {weight.shape}, x {x.shape}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = wide.pow(2).mean(-1, keepdim=True)
    return (weight * (wide * torch.rsqrt(variance + eps)).to(x.dtype)).to(x.dtype)
