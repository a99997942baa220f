"""Both layers from one base class; the affine map is folded, y = x · s + t; everything in float64."""

import torch
from torch import nn


class Affine(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.size, self.eps = size, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(size)))
        self.register_parameter("bias", nn.Parameter(torch.zeros(size)))

    def stretched(self, x, mean, var):
        s = self.weight.double() * (var.double() + self.eps) ** -0.5
        return x.double() * s + (self.bias.double() - mean.double() * s)


class LayerNorm(Affine):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__(dim, eps)

    def forward(self, x):
        if x.ndim == 0 or x.shape[-1] != self.size:
            raise ValueError(f"{x.shape}")
        mean = x.double().mean(-1, keepdim=True)
        return self.stretched(x, mean, ((x.double() - mean) ** 2).mean(-1, keepdim=True)).to(x.dtype)


class BatchNorm1d(Affine):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x):
        if x.ndim == 3 and x.shape[1] == self.size:
            b, c, t = x.shape
            if self.training and b * t < 2:
                raise ValueError(f"{x.shape}")
            return self(x.transpose(1, 2).reshape(b * t, c)).reshape(b, t, c).transpose(1, 2)
        if x.ndim != 2 or x.shape[1] != self.size or (self.training and len(x) < 2):
            raise ValueError(f"{x.shape}")
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean = x.double().sum(0) / len(x)
            squares = (x.double() - mean).pow(2).sum(0)
            var = squares / len(x)
            self.running_mean.data.lerp_(mean.detach().to(self.running_mean), self.momentum)
            self.running_var.data.lerp_((squares.detach() / (len(x) - 1)).to(self.running_var), self.momentum)
            self.num_batches_tracked.add_(1)
        return self.stretched(x, mean, var).to(x.dtype)
