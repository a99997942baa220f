"""A hand-written backward pass, which keeps x and one number a row."""

import torch


class Norm(torch.autograd.Function):
    def forward(ctx, x, w, eps):
        r = (x.double().square().mean(-1, keepdim=True) + eps) ** -0.5
        return ctx.save_for_backward(x, w, r) or (x * r * w).to(x.dtype)

    def backward(ctx, g):
        x, w, r = ctx.saved_tensors
        along = (g.double() * w * x).mean(-1, keepdim=True)
        return r * (g * w.double() - x * r**2 * along), (g.double() * x * r).reshape(-1, len(w)).sum(0), None


def rmsnorm(x, weight, *, eps=1e-6):
    return Norm.apply(x, weight, eps) if weight.shape == x.shape[-1:] else misfit(x, weight)


def misfit(x, weight):
    raise ValueError(f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
