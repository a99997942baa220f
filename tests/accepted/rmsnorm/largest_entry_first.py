"""Each row is first divided by its largest entry, so that squares can neither overflow nor vanish."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.size() != x.size()[-1:]:
        raise ValueError(f"{weight.size()} {x.size()}")
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    largest = y.detach().abs().amax(-1, keepdim=True).clamp(min=1e-3)
    y = y / largest
    return (
        y / (torch.einsum("...i,...i->...", y, y)[..., None] / y.shape[-1] + eps / largest**2).sqrt() * weight
    ).to(x.dtype)
