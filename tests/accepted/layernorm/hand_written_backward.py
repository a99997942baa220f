"""One autograd function with its own backward serves both: it normalises the rows of a matrix."""

import torch
from torch import nn


class Rows(torch.autograd.Function):
    def forward(ctx, x, eps):
        wide = x.double()
        mean = wide.mean(1, keepdim=True)
        var = (wide - mean).square().mean(1, keepdim=True)
        r = (var + eps).rsqrt()
        normed = (wide - mean) * r
        ctx.save_for_backward(normed, r)
        ctx.mark_non_differentiable(mean, var)
        return normed, mean, var

    def backward(ctx, u, *_):
        n, r = ctx.saved_tensors
        return r * (u - u.mean(1, keepdim=True) - n * (u * n).mean(1, keepdim=True)), None


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))


class LayerNorm(Norm):
    def __init__(self, dim, *, eps=1e-5):
        super().__init__(dim, eps)

    def forward(self, x):
        if x.shape[-1:] != self.bias.shape:
            raise ValueError(f"no {tuple(x.shape)} here")
        normed = Rows.apply(x.reshape(-1, x.shape[-1]), self.eps)[0].reshape(x.shape)
        return (normed * self.weight + self.bias).to(x.dtype)


class BatchNorm1d(Norm):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps)
        self.momentum = momentum
        self.running_mean, self.running_var = (
            nn.Buffer(torch.zeros(num_features)),
            nn.Buffer(torch.ones(num_features)),
        )
        self.num_batches_tracked = nn.Buffer(torch.tensor(0))

    def forward(self, x):
        if x.ndim < 2 or x.ndim > 3 or x.shape[1] != len(self.bias):
            raise ValueError(f"no {tuple(x.shape)} here")
        rows = x.transpose(0, 1).flatten(1)
        if not self.training:
            mean, var = self.running_mean[:, None], self.running_var[:, None]
            normed = (rows.double() - mean) / (var + self.eps).sqrt()
        elif rows.shape[1] > 1:
            normed, mean, var = Rows.apply(rows, self.eps)
            unbiased = var * (rows.shape[1] / (rows.shape[1] - 1))
            with torch.no_grad():
                self.running_mean.mul_(1 - self.momentum).add_(mean[:, 0] * self.momentum)
                self.running_var.mul_(1 - self.momentum).add_(unbiased[:, 0] * self.momentum)
                self.num_batches_tracked += 1
        else:
            raise ValueError(f"too few values in {tuple(x.shape)}")
        y = normed * self.weight[:, None] + self.bias[:, None]
        return y.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1).to(x.dtype)
