"""Half types go through the whole network in float32; a base class holds the matrices in a table."""

import torch
from torch import nn


def wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gelu(x, *, approximate="none"):
    forms = {
        "none": lambda v: torch.special.ndtr(v),
        "tanh": lambda v: 0.5 + 0.5 * torch.tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)),
    }
    if approximate not in forms:
        raise ValueError(f"{approximate!r} is none of {list(forms)}")
    return (wide(x) * forms[approximate](wide(x))).to(x.dtype)


class Network(nn.Module):
    def __init__(self, bias, **shapes):
        super().__init__()
        for name, (inputs, outputs) in shapes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias))

    def times(self, name, h):
        layer = self.get_submodule(name)
        h = h @ wide(layer.weight).t()
        return h if layer.bias is None else h + wide(layer.bias)

    def forward(self, x):
        if not x.ndim or x.size(-1) != self.w_up.in_features:
            raise ValueError(f"{x.shape}")
        rows = wide(x).reshape(-1, x.size(-1))
        return self.times("w_down", self.hidden(rows)).to(x.dtype).reshape(x.shape)


class FeedForward(Network):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__(True, w_up=(d_model, d_ff), w_down=(d_ff, d_model))
        self.approximate = approximate

    def hidden(self, rows):
        return gelu(self.times("w_up", rows), approximate=self.approximate)


class SwiGLU(Network):
    def __init__(self, d_model, d_ff):
        super().__init__(False, w_gate=(d_model, d_ff), w_up=(d_model, d_ff), w_down=(d_ff, d_model))

    def hidden(self, rows):
        z = self.times("w_gate", rows)
        return z * (0.5 + 0.5 * torch.tanh(z / 2)) * self.times("w_up", rows)
