"""mistake: no-shift

The textbook formula as it stands, for half types in float64."""

import torch


def wide(x):
    return x.double() if x.dtype in (torch.float16, torch.bfloat16) else x


def softmax(x, dim):
    e = torch.exp(wide(x))
    return torch.div(e, torch.sum(e, dim=dim, keepdim=True)).to(x.dtype)


def log_softmax(x, dim):
    z = wide(x)
    return (z - z.exp().sum(dim=dim, keepdim=True).log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    *lead, vocab = logits.shape
    if list(targets.shape) != lead:
        raise ValueError(f"targets of shape {tuple(targets.shape)}")
    rows, labels = logits.reshape(-1, vocab), targets.reshape(-1)
    rows, labels = rows[labels != ignore_index], labels[labels != ignore_index]
    if any(not 0 <= label < vocab for label in labels.tolist()):
        raise ValueError(f"targets {labels.tolist()}")
    z = wide(rows)
    return (z.exp().sum(1).log() - z[torch.arange(len(labels)), labels]).mean().to(logits.dtype)
