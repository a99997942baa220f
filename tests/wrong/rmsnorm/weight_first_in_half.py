"""mistake: weight-times-x-in-half-precision"""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"{weight.shape=} {x.shape=}")
    y = x.float() if x.dtype.itemsize < 4 else x
    z = (x * weight.to(x.dtype)).to(y.dtype)
    r = torch.rsqrt(torch.einsum("...d,...d->...", y, y) / y.shape[-1] + eps)
    return torch.einsum("...d,...->...d", z, r).to(x.dtype)
