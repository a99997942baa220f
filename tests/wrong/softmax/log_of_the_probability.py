"""mistake: log-of-softmax

Softmax first, and the rest from it. Nothing is checked but the range of the classes."""

import torch


def softmax(x, dim):
    z = x.float() if x.dtype.itemsize == 2 else x
    z = torch.exp(z - torch.amax(z, dim=dim, keepdim=True))
    return (z / torch.sum(z, dim=dim, keepdim=True)).type_as(x)


def log_softmax(x, dim):
    z = x.float() if x.dtype.itemsize == 2 else x
    return torch.log(softmax(z, dim)).type_as(x)


def cross_entropy(logits, targets, *, ignore_index=-100):
    z = logits.float() if logits.dtype.itemsize == 2 else logits
    p = softmax(z, -1).reshape(-1, logits.shape[-1])
    t = targets.reshape(-1)
    p, t = p[t != ignore_index], t[t != ignore_index]
    if len(t) and (t.min() < 0 or t.max() >= logits.shape[-1]):
        raise ValueError(f"no such class among {t.tolist()}")
    return -torch.log(p[torch.arange(len(t)), t]).mean().type_as(logits)
