"""The loss through a one-hot product, softmax through log_softmax, always in float64."""

import torch


def log_softmax(x, dim):
    if dim >= x.ndim or dim < -x.ndim:
        raise ValueError(f"dim {dim} of {tuple(x.shape)}")
    wide = x.double()
    m = wide.amax(dim=dim, keepdim=True)
    lse = m + (wide - m).exp().sum(dim=dim, keepdim=True).log()
    return (wide - lse).to(x.dtype)


def softmax(x, dim):
    return log_softmax(x.double(), dim).exp().to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    vocab = logits.size(-1)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{targets.shape} {logits.shape}")
    keep = targets.ne(ignore_index)
    if not ((targets[keep] >= 0) & (targets[keep] < vocab)).all():
        raise ValueError(f"targets {targets}")
    onehot = (targets[..., None] == torch.arange(vocab)) & keep[..., None]
    log_p = log_softmax(logits.double(), -1)
    picked = torch.where(onehot, log_p, torch.zeros_like(log_p))
    return (-picked.sum() / keep.sum()).to(logits.dtype)
