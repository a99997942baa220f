"""NumPy does the work, in float64; the slopes are written by hand."""

import math

import numpy as np
import torch
from torch import nn

_erf = np.vectorize(math.erf, otypes=[np.float64])


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind):
        a = x.detach().to(torch.float64).numpy()
        with np.errstate(all="ignore"):
            if kind == "none":
                cdf = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)), otypes=[np.float64])(a)
                d = cdf + a * np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
                y = a * cdf
            else:
                c = math.sqrt(2 / math.pi)
                b = np.clip(a, -1e3, 1e3)
                t = np.tanh(c * (b + 0.044715 * b**3))
                y = 0.5 * a * (1 + t)
                d = 0.5 * (1 + t) + 0.5 * b * (1 - t * t) * c * (1 + 3 * 0.044715 * b * b)
        ctx.save_for_backward(torch.from_numpy(np.asarray(d)).to(x.dtype))
        return torch.from_numpy(np.asarray(y)).to(x.dtype).reshape(x.shape)

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        return g * d.reshape(g.shape), None


def gelu(x, *, approximate="none"):
    if approximate != "none" and approximate != "tanh":
        raise ValueError(f"approximate {approximate}")
    return _Gelu.apply(x, approximate)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, *, approximate="none"):
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate {approximate}")
        self.w_up = nn.Linear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)
        self.approximate = approximate

    def forward(self, x):
        if x.ndim < 1 or x.shape[-1] != self.w_up.in_features:
            raise ValueError(f"x {tuple(x.shape)}")
        return self.w_down(gelu(self.w_up(x), approximate=self.approximate))


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        a = z.detach().to(torch.float64).numpy()
        s = 0.5 * (1 + np.tanh(a / 2))
        s = np.where(a < -30, np.exp(np.minimum(a, 0)), s)
        ctx.save_for_backward(torch.from_numpy(np.asarray(s * (1 + a * (1 - s)))).to(z.dtype))
        return torch.from_numpy(np.asarray(a * s)).to(z.dtype).reshape(z.shape)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].reshape(g.shape)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.w_gate = nn.Linear(d_model, d_ff, bias=False)
        self.w_up = nn.Linear(d_model, d_ff, bias=False)
        self.w_down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x):
        if x.ndim < 1 or x.shape[-1] != self.w_up.in_features:
            raise ValueError(f"x {tuple(x.shape)}")
        return self.w_down(_Silu.apply(self.w_gate(x)) * self.w_up(x))
