"""mistake: eps-as-a-floor

The mean square is kept from falling below eps."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    power = torch.einsum("...d,...d->...", h, h).unsqueeze(-1) / x.shape[-1]
    return (h * power.clamp(min=eps) ** -0.5 * weight).to(x.dtype)
