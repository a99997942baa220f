"""mistake: batch-squares-in-half-precision

Buffers, and a loop over the channels."""

import torch
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.eps = eps
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        if x.size(-1) != self.weight.size(0):
            raise ValueError("LayerNorm", x.size(), self.weight.size())
        buf = x.to(torch.float64 if x.dtype is torch.float64 else torch.float32, copy=True)
        buf -= buf.mean(-1, keepdim=True)
        rstd = torch.pow(buf, 2).mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        buf = buf * rstd
        out = torch.addcmul(self.bias.to(buf.dtype), buf, self.weight.to(buf.dtype))
        return out.to(x.dtype)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.C, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, x):
        if x.dim() < 2 or x.dim() > 3 or x.size(1) != self.C:
            raise ValueError("BatchNorm1d", x.size(), self.C)
        axes = [0, 2][: x.dim() - 1]
        N = 1
        for a in axes:
            N *= x.size(a)
        buf = x.to(torch.float64 if x.dtype is torch.float64 else torch.float32, copy=True)
        if self.training:
            if N < 2:
                raise ValueError("BatchNorm1d: one value a channel", x.size())
            mean = buf.sum(axes) / N
            centred = buf - self._broadcast(mean, x)
            var = centred.to(x.dtype).square().to(centred.dtype).sum(axes) / N
            self.running_mean.mul_(1 - self.momentum).add_(mean.detach(), alpha=self.momentum)
            self.running_var.mul_(1 - self.momentum).add_(var.detach(), alpha=self.momentum * N / (N - 1))
            self.num_batches_tracked.add_(1)
        else:
            centred = buf - self._broadcast(self.running_mean, x)
            var = self.running_var
        scale = self.weight / torch.sqrt(var + self.eps)
        out = torch.empty_like(centred)
        for c in range(self.C):
            out[:, c] = centred[:, c] * scale[c] + self.bias[c]
        return out.to(x.dtype)

    def _broadcast(self, t, x):
        return t.reshape([1, self.C] + [1] * (x.dim() - 2))
