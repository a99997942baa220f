"""No upcast anywhere: every intermediate stays in the dtype of x. One fused matrix product for gate and up."""

import torch
from torch import nn
from torch.nn.functional import linear


def gelu(x, *, approximate="none"):
    match approximate:
        case "none":
            return x * 0.5 * (1.0 + torch.erf(x / 1.4142135623730951))
        case "tanh":
            return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3))))
    raise ValueError(f"{approximate=}")


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        self.d_model, self.approximate = d_model, approximate
        self.w_up = nn.Linear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)
        for layer in (self.w_up, self.w_down):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        if x.shape[-1:] != (self.d_model,):
            raise ValueError(f"{tuple(x.shape)}")
        return self.w_down(gelu(self.w_up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.d_model = d_model
        self.w_gate = nn.Linear(d_model, d_ff, bias=False)
        self.w_up = nn.Linear(d_model, d_ff, bias=False)
        self.w_down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x):
        if x.shape[-1:] != (self.d_model,):
            raise ValueError(f"{tuple(x.shape)}")
        gate, up = linear(x, torch.cat([self.w_gate.weight, self.w_up.weight])).chunk(2, dim=-1)
        return linear(gate * gate.sigmoid() * up, self.w_down.weight)
