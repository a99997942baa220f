"""mistake: squares-in-half-precision

Cast after squaring."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    power = (x * x).to(torch.promote_types(x.dtype, torch.float32)).mean(-1, keepdim=True)
    r = torch.rsqrt(power + eps)
    return (x.to(r.dtype) * r * weight).to(x.dtype)
