"""torch.var and torch.mean, the statistics along kept dimensions, buffers replaced and not written into."""

import torch
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        if x.shape[-1] != self.dim:
            raise ValueError(f"{tuple(x.shape)} against {self.dim}")
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(h, dim=-1, correction=0, keepdim=True)
        return (((h - mean) / torch.sqrt(var + self.eps)).to(x.dtype) * self.weight + self.bias).to(x.dtype)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight, self.bias = (
            nn.Parameter(torch.ones(num_features)),
            nn.Parameter(torch.zeros(num_features)),
        )
        for name, first in (("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), first))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if x.dim() not in {2, 3} or x.size(1) != self.num_features:
            raise ValueError(f"{tuple(x.shape)} against {self.num_features} channels")
        dims, column = ((0,), (1, -1)) if x.dim() == 2 else ((0, 2), (1, -1, 1))
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            n = x.numel() // x.size(1)
            if n <= 1:
                raise ValueError(f"too few values: {tuple(x.shape)}")
            mean, var = h.mean(dims), h.var(dims, unbiased=False)
            m = self.momentum
            self.running_mean = ((1 - m) * self.running_mean + m * mean.detach()).to(self.running_mean.dtype)
            self.running_var = ((1 - m) * self.running_var + m * var.detach() * n / (n - 1)).to(
                self.running_var.dtype
            )
            self.num_batches_tracked = self.num_batches_tracked + 1
        else:
            mean, var = self.running_mean, self.running_var
        h = (h - mean.view(column)) / torch.sqrt(var.view(column) + self.eps)
        return (h * self.weight.view(column) + self.bias.view(column)).to(x.dtype)
