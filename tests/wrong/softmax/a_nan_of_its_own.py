"""mistake: nothing-in-float32

Plain Python, and a special case for a batch without targets."""

import math

import torch


def _rows(x, dim):
    moved = torch.movedim(x, dim, -1)
    return moved, moved.reshape(-1, moved.shape[-1])


def _lse(row):
    biggest = -math.inf
    for v in row.tolist():
        if v > biggest:
            biggest = v
    total = 0.0
    for v in row:
        total = total + torch.exp(v - biggest)
    return biggest, total


def _wide(x):
    return x.to(torch.float32) if x.dtype.itemsize == 2 else x


def softmax(x, dim):
    moved, rows = _rows(_wide(x), dim)
    out = []
    for row in rows:
        biggest, total = _lse(row)
        out.append(torch.stack([torch.exp(v - biggest) / total for v in row]))
    return torch.stack(out).reshape(moved.shape).movedim(-1, dim).to(x.dtype)


def log_softmax(x, dim):
    moved, rows = _rows(_wide(x), dim)
    out = []
    for row in rows:
        biggest, total = _lse(row)
        out.append(torch.stack([(v - biggest) - torch.log(total) for v in row]))
    return torch.stack(out).reshape(moved.shape).movedim(-1, dim).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ValueError("targets have shape %s, logits %s" % (tuple(targets.shape), tuple(logits.shape)))
    vocab = logits.shape[-1]
    total, count = 0.0, 0
    for t in targets.reshape(-1).tolist():
        if t != ignore_index and not 0 <= t < vocab:
            raise ValueError("target %d outside 0..%d" % (t, vocab - 1))
    for row, t in zip(_wide(logits).reshape(-1, vocab), targets.reshape(-1).tolist()):
        if t == ignore_index:
            continue
        biggest, mass = _lse(row)
        total = total + (torch.log(mass) - (row[t] - biggest))
        count += 1
    if count == 0:
        return torch.tensor(math.nan)
    return (total / count).to(logits.dtype)
