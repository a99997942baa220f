"""mistake: statistics-of-the-first-eval

A cache that load_state_dict empties and training does not."""

import torch
from torch import nn


def up(x):
    return x if x.dtype == torch.float64 else x.float()


class LayerNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.eps, self.weight, self.bias = eps, nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        if x.shape[-1:] != self.weight.shape:
            raise ValueError(f"{x.shape} {self.weight.shape}")
        v, m = torch.var_mean(up(x), -1, correction=0, keepdim=True)
        return ((up(x) - m) * (v + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = (
            nn.Parameter(torch.ones(num_features)),
            nn.Parameter(torch.zeros(num_features)),
        )
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def load_state_dict(self, *a, **k):
        self.kept = None
        return super().load_state_dict(*a, **k)

    def forward(self, x):
        if x.ndim not in (2, 3) or x.shape[1] != len(self.weight):
            raise ValueError(f"{x.shape} {self.weight.shape}")
        y = up(x).transpose(0, 1).flatten(1)
        if self.training:
            n = y.shape[1]
            if n < 2:
                raise ValueError(f"{x.shape}")
            v, m = torch.var_mean(y, 1, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(m.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_((v * n / (n - 1)).to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked += 1
        else:
            if getattr(self, "kept", None) is None:
                self.kept = self.running_mean.clone(), self.running_var.clone()
            m, v = self.kept
        s = [1, -1] + [1] * (x.ndim - 2)
        a = self.weight / (v + self.eps).sqrt()
        return ((up(x) - m.view(s)) * a.view(s) + self.bias.view(s)).to(x.dtype)
