"""By the length of the vector: mean square = (‖x‖ / √dim)²."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.shape != (x.shape[-1],):
        raise ValueError(f"weight of shape {tuple(weight.shape)} for rows of {x.shape[-1]}")
    wide = x.to(torch.float32) if x.element_size() == 2 else x
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return wide.div(length.square().add(eps).sqrt()).mul(weight.to(wide)).to(x)
