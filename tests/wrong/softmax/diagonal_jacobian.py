"""mistake: cut-from-the-graph

A hand-written backward pass that knows only the diagonal of the Jacobian: p · g."""

import torch


class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        wide = x.double()
        e = (wide - wide.amax(dim, keepdim=True)).exp()
        p = e / e.sum(dim, keepdim=True)
        ctx.save_for_backward(p)
        return p.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        return (p * grad).to(grad.dtype), None


def softmax(x, dim):
    return Softmax.apply(x, dim)


def log_softmax(x, dim):
    wide = x.double()
    wide = wide - wide.amax(dim, keepdim=True)
    return (wide - wide.exp().sum(dim, keepdim=True).log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{list(targets.shape)} {list(logits.shape)}")
    keep = (targets != ignore_index).flatten()
    chosen, t = (
        logits.flatten(0, -2)[keep] if logits.ndim > 1 else logits[None][keep],
        targets.flatten()[keep],
    )
    if (t < 0).any() or (t >= logits.shape[-1]).any():
        raise ValueError(f"{t}")
    return -log_softmax(chosen.double(), 1)[range(len(t)), t].mean().to(logits.dtype)
