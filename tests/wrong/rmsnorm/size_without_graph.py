"""mistake: rms-cut-from-the-graph

The root mean square is taken for a constant."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)}, x {tuple(x.shape)}")
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    with torch.no_grad():
        size = torch.sqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (h / size * weight).to(x.dtype)
