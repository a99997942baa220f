"""Row and weight are both rounded to the dtype of x before they are multiplied."""

import torch


def rmsnorm(x, weight, *, eps=1e-6):
    if weight.dim() != 1 or weight.size(0) != x.size(-1):
        raise ValueError(f"weight {tuple(weight.size())} hidden_states {tuple(x.size())}")
    input_dtype = x.dtype
    hidden_states = x.to(torch.promote_types(input_dtype, torch.float32))
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + eps)
    return (weight.to(input_dtype) * hidden_states.to(input_dtype)).to(input_dtype)
