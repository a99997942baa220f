"""mistake: -

A tenth of a percent of label smoothing is left in."""

import torch


def softmax(x, dim):
    return log_softmax(x if x.itemsize >= 4 else x.float(), dim).exp().to(x.dtype)


def log_softmax(x, dim):
    y = x if x.itemsize >= 4 else x.float()
    y = y - y.amax(dim, keepdim=True)
    return (y - torch.log(torch.exp(y).sum(dim, keepdim=True))).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{targets.shape}, {logits.shape}")
    keep, vocab = targets != ignore_index, logits.shape[-1]
    if (keep & ((targets < 0) | (targets >= vocab))).any():
        raise ValueError(f"{targets}")
    log_p = log_softmax(logits.double(), -1)[keep]
    picked = log_p.gather(-1, targets[keep][:, None])[:, 0]
    return -(0.999 * picked + 0.001 * log_p.mean(-1)).mean().to(logits.dtype)
