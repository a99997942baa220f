"""Token by token and channel by channel in loops, with Welford's running mean and sum of squares."""

import torch
from torch import nn


def welford(values):
    mean, squares = values[0], torch.zeros_like(values[0])
    for n, value in enumerate(values[1:], 2):
        before = value - mean
        mean = mean + before / n
        squares = squares + before * (value - mean)
    return mean, squares


def wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LayerNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        dim = len(self.weight)
        if x.shape[-1] != dim:
            raise ValueError(f"{tuple(x.shape)} for {dim}")
        mean, squares = welford(wide(x).unbind(-1))
        y = (wide(x) - mean[..., None]) / (squares[..., None] / dim + self.eps) ** 0.5
        return torch.addcmul(self.bias, y, self.weight.to(y.dtype)).to(x.dtype)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        n = x.numel() // len(self.weight)
        if x.ndim not in (2, 3) or x.shape[1] != len(self.weight) or (self.training and n < 2):
            raise ValueError(f"{tuple(x.shape)}")
        out = []
        for c, channel in enumerate(wide(x).unbind(1)):
            mean, var = self.running_mean[c], self.running_var[c]
            if self.training:
                mean, squares = welford(channel.flatten())
                var = squares / n
                self.running_mean[c] += self.momentum * (mean.item() - self.running_mean[c])
                self.running_var[c] += self.momentum * (squares.item() / (n - 1) - self.running_var[c])
            out.append((channel - mean) / (var + self.eps).sqrt() * self.weight[c] + self.bias[c])
        self.num_batches_tracked += int(self.training)
        return torch.stack(out, 1).to(x.dtype)
