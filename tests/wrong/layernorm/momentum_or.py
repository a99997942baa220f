"""mistake: momentum-zero-left-out

The way torch.nn is written."""

import torch
from torch import nn


class LayerNorm(nn.Module):
    __constants__ = ["normalized_shape", "eps"]

    def __init__(self, dim, *, eps=1e-5):
        super().__init__()
        self.normalized_shape = (dim,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(self.normalized_shape))
        self.bias = nn.Parameter(torch.empty(self.normalized_shape))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        if tuple(x.shape[-1:]) != self.normalized_shape:
            raise ValueError(f"normalized_shape {self.normalized_shape}, got {tuple(x.shape)}")
        u = x.double() if x.dtype == torch.float64 else x.float()
        std, mean = torch.std_mean(u, dim=-1, keepdim=True, correction=0)
        y = (u - mean) / torch.sqrt(std.square() + self.eps)
        return (self.weight * y + self.bias).type_as(x)


class BatchNorm1d(nn.Module):
    def __init__(self, num_features, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum or 0.1
        self.weight = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.reset_parameters()

    def reset_running_stats(self):
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self):
        self.reset_running_stats()
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def _check_input_dim(self, input):
        if input.dim() != 2 and input.dim() != 3:
            raise ValueError(f"expected 2D or 3D input (got {input.dim()}D input: {tuple(input.shape)})")
        if input.size(1) != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got {tuple(input.shape)}")

    def forward(self, input):
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims = (0,) if x.dim() == 2 else (0, 2)
        view = (-1,) if x.dim() == 2 else (-1, 1)
        if self.training:
            if input.numel() // self.num_features <= 1:
                raise ValueError(
                    f"Expected more than 1 value per channel when training, got {tuple(input.shape)}"
                )
            self.num_batches_tracked.add_(1)
            mean = x.mean(dims)
            biased = x.var(dims, correction=0)
            with torch.no_grad():
                unbiased = x.var(dims, correction=1)
                self.running_mean = torch.lerp(
                    self.running_mean, mean.detach().to(self.running_mean), self.momentum
                )
                self.running_var = torch.lerp(self.running_var, unbiased.to(self.running_var), self.momentum)
        else:
            mean, biased = self.running_mean, self.running_var
        alpha = self.weight / torch.sqrt(biased + self.eps)
        out = (x - mean.view(view)) * alpha.view(view) + self.bias.view(view)
        return out.to(input.dtype)
