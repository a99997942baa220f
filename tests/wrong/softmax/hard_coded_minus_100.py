"""mistake: ignore-index-fixed

A loop over the targets that knows one index to be ignored."""

import torch


def softmax(x, dim):
    return log_softmax(x.double(), dim).exp().to(x.dtype)


def log_softmax(x, dim):
    y = x.double()
    return (
        y - y.max(dim, keepdim=True)[0] - (y - y.max(dim, keepdim=True)[0]).exp().sum(dim, keepdim=True).log()
    ).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    vocab = logits.size(-1)
    if targets.size() != logits.size()[:-1]:
        raise ValueError(f"{targets.size()} and {logits.size()}")
    terms = []
    for row, target in zip(logits.reshape(-1, vocab).unbind(0), targets.reshape(-1).tolist()):
        if target == -100:
            continue
        if target < 0 or target >= vocab:
            raise ValueError(f"target {target}")
        terms.append(log_softmax(row.double(), 0)[target])
    total = torch.stack(terms).mean() if terms else torch.tensor(float("nan"))
    return -total.to(logits.dtype)
