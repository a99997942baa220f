"""mistake: dim-ignored

The rows are flattened out, whatever dim says; log_softmax is right."""

import torch


def softmax(x, dim):
    rows = x.reshape(-1, x.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    peaks, _ = rows.max(dim=1)
    weights = (rows - peaks[:, None]).exp()
    return (weights / weights.sum(1)[:, None]).reshape(x.shape).to(x.dtype)


def log_softmax(x, dim):
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    z = z - z.max(dim, keepdim=True).values
    return (z - z.exp().sum(dim, keepdim=True).log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if logits.shape[:-1] != targets.shape:
        raise ValueError((logits.shape, targets.shape))
    live = targets.ne(ignore_index)
    if ((targets[live] < 0) | (targets[live] >= logits.shape[-1])).any():
        raise ValueError(targets)
    picked = log_softmax(logits[live].double(), -1).gather(-1, targets[live][:, None])
    return picked.mean().neg().to(logits.dtype)
