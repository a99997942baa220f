"""An autograd.Function each, with the loss and its gradient in one."""

import torch
from torch.autograd import Function


def _wide(x):
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class SoftmaxFn(Function):
    @staticmethod
    def forward(x, dim):
        y = _wide(x)
        e = torch.exp(y - y.amax(dim, True))
        return (e / e.sum(dim, True)).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.dim = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        w, g = _wide(p), _wide(grad)
        return (w * (g - (w * g).sum(ctx.dim, True))).to(p.dtype), None


class LogSoftmaxFn(Function):
    @staticmethod
    def forward(ctx, x, dim):
        y = _wide(x)
        y = y - y.amax(dim, True)
        lp = y - y.exp().sum(dim, True).log()
        ctx.save_for_backward(lp)
        ctx.dim, ctx.dtype = dim, x.dtype
        return lp.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (lp,) = ctx.saved_tensors
        g = _wide(grad)
        return (g - lp.exp() * g.sum(ctx.dim, True)).to(ctx.dtype), None


class CrossEntropyFn(Function):
    @staticmethod
    def forward(ctx, logits, targets, keep):
        y = _wide(logits)
        y = y - y.amax(-1, True)
        e = y.exp()
        z = e.sum(-1, True)
        n = keep.sum()
        losses = z.squeeze(-1).log() - y.gather(-1, targets[..., None]).squeeze(-1)
        ctx.save_for_backward(e / z, targets, keep, n)
        ctx.dtype = logits.dtype
        return (losses[keep].sum() / n).to(logits.dtype)

    @staticmethod
    def backward(ctx, grad):
        p, targets, keep, n = ctx.saved_tensors
        d = p.clone()
        d.scatter_add_(-1, targets[..., None], -torch.ones_like(d[..., :1]))
        d = d * keep[..., None] * (_wide(grad) / n)
        return d.to(ctx.dtype), None, None


def softmax(x, dim):
    return SoftmaxFn.apply(x, dim)


def log_softmax(x, dim):
    return LogSoftmaxFn.apply(x, dim)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if targets.shape != logits.shape[:-1]:
        raise ValueError((targets.shape, logits.shape))
    keep = targets != ignore_index
    if bool((keep & ((targets < 0) | (targets >= logits.shape[-1]))).any()):
        raise ValueError(targets)
    return CrossEntropyFn.apply(logits, torch.where(keep, targets, 0), keep)
