"""mistake: masked-by-multiplying

Ignored losses are multiplied by a float mask."""

import torch


def _stable(x, dim):
    z = x.to(torch.float64)
    z = z - z.amax(dim=dim, keepdim=True)
    return z, z.exp().sum(dim=dim, keepdim=True)


def softmax(x, dim):
    z, total = _stable(x, dim)
    return (z.exp() / total).to(x.dtype)


def log_softmax(x, dim):
    z, total = _stable(x, dim)
    return (z - total.log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if targets.shape != logits.shape[:-1]:
        raise ValueError("shapes", targets.shape, logits.shape)
    vocab = logits.shape[-1]
    weight = (targets != ignore_index).to(torch.float64)
    index = torch.where(targets == ignore_index, 0, targets)
    if not ((index >= 0) & (index < vocab)).all():
        raise ValueError("targets", targets)
    z, total = _stable(logits, -1)
    loss = total.log().squeeze(-1) - z.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return ((loss * weight).sum() / weight.sum()).to(logits.dtype)
