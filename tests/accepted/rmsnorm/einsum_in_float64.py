"""Everything in float64, the row's length by einsum; a bias that may be left out."""

import torch


def rmsnorm(x, weight, *, eps=1e-6, bias=None):
    if list(weight.size()) != list(x.size())[-1:]:
        raise ValueError(f"weight of size {list(weight.size())} for x of size {list(x.size())}")
    wide = x.double()
    power = torch.einsum("...i,...i->...", wide, wide) / weight.numel() + eps
    y = torch.einsum("...i,...,i->...i", wide, power**-0.5, weight.double())
    return (y if bias is None else y + bias).type_as(x)
