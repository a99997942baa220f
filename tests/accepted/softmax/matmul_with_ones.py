"""Sums as products with a vector of ones, softmax as exp of its logarithm, and nanmean."""

import torch

F = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def log_softmax(x, dim):
    y = x.to(F.get(x.dtype, x.dtype))
    m = y.max() if y.ndim == 0 else y.amax(dim=dim, keepdim=True)
    y = y - m
    if y.ndim == 0:
        return y.to(x.dtype)
    k = torch.ones(y.shape[dim], 1, dtype=y.dtype)
    s = (y.exp().transpose(dim, -1) @ k).transpose(dim, -1)
    return (y - s.log()).to(x.dtype)


def softmax(x, dim):
    y = x.to(F.get(x.dtype, x.dtype))
    return log_softmax(y, dim).exp().to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if logits.shape[:-1] != targets.shape:
        raise ValueError(logits.shape, targets.shape)
    keep = (targets != ignore_index).reshape(-1)
    z = logits.reshape(-1, logits.shape[-1])[keep]
    t = targets.reshape(-1)[keep]
    for i in t.tolist():
        if not 0 <= i < logits.shape[-1]:
            raise ValueError(i)
    z = z.to(F.get(z.dtype, z.dtype))
    return (
        torch.nanmean(-log_softmax(z, 1)[torch.arange(z.shape[0]), t.long()]).to(logits.dtype)
        if len(t)
        else (z.sum() / 0).to(logits.dtype)
    )
