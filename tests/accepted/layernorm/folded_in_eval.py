"""torch.var_mean; in eval one affine map a channel; buffers whose data are replaced."""

import torch
import torch.nn as nn


def _up(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LayerNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"last dim of {tuple(x.shape)} must be {self.dim}")
        h = _up(x)
        var, mu = torch.var_mean(h, -1, keepdim=True, correction=0)
        return ((h - mu) / torch.sqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x):
        if x.dim() not in (2, 3) or x.shape[1] != self.num_features:
            raise ValueError(f"bad shape {tuple(x.shape)}")
        h = _up(x)
        dims = (0,) if x.dim() == 2 else (0, 2)
        view = (1, -1) if x.dim() == 2 else (1, -1, 1)
        if self.training:
            n = x.numel() // self.num_features
            if n < 2:
                raise ValueError(f"too few values: {tuple(x.shape)}")
            var, mu = torch.var_mean(h, dims, correction=0)
            keep, new = 1 - self.momentum, self.momentum
            self.running_mean.data = keep * self.running_mean + new * mu.detach()
            self.running_var.data = keep * self.running_var + new * h.detach().var(dims)
            self.num_batches_tracked.data = self.num_batches_tracked + 1
        else:
            scale = self.weight / torch.sqrt(self.running_var + self.eps)
            shift = self.bias - self.running_mean * scale
            return (h * scale.view(view) + shift.view(view)).to(x.dtype)
        y = (h - mu.view(view)) / torch.sqrt(var.view(view) + self.eps)
        return (y * self.weight.view(view) + self.bias.view(view)).to(x.dtype)
