"""mistake: running-variance-biased

The same variance for the batch and for the future; and no shape is ever refused."""

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
        h = _up(x)
        mu = h.mean(-1, keepdim=True)
        var = h.var(-1, keepdim=True, correction=0)
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
        h = _up(x)
        dims = (0,) if x.dim() == 2 else (0, 2)
        view = (1, -1) if x.dim() == 2 else (1, -1, 1)
        if self.training:
            mu = h.mean(dims)
            var = h.var(dims, correction=0)
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(mu, alpha=self.momentum)
                self.running_var.mul_(1 - self.momentum).add_(var, alpha=self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            mu, var = self.running_mean, self.running_var
        y = (h - mu.view(view)) / torch.sqrt(var.view(view) + self.eps)
        return (y * self.weight.view(view) + self.bias.view(view)).to(x.dtype)
