"""mistake: negative-classes-wrap

Plain indexing, which takes −1 for the last class and complains about others in its own way."""

import torch


def softmax(x, dim):
    top = x.float().amax(dim, keepdim=True) if x.element_size() < 4 else x.amax(dim, keepdim=True)
    e = (x - top).exp()
    return (e / e.sum(dim, keepdim=True)).to(x.dtype)


def log_softmax(x, dim):
    top = x.float().amax(dim, keepdim=True) if x.element_size() < 4 else x.amax(dim, keepdim=True)
    return (x - top - (x - top).exp().sum(dim, keepdim=True).log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ValueError(f"{tuple(targets.shape)}")
    keep = targets != ignore_index
    rows, labels = logits[keep], targets[keep]
    return -log_softmax(rows.double(), -1)[torch.arange(len(labels)), labels].mean().to(logits.dtype)
