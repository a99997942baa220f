"""mistake: a-column-for-the-weight

The way Llama is written."""

import torch


def rmsnorm(hidden_states, weight, *, eps=1e-6):
    if weight.dim() == 0 or weight.size(0) != hidden_states.size(-1):
        raise ValueError(f"weight {tuple(weight.size())} hidden_states {tuple(hidden_states.size())}")
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.promote_types(input_dtype, torch.float32))
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + eps)
    return (weight * hidden_states.to(input_dtype)).to(input_dtype)
