"""Plain Python over the slices, no upcast beyond what a list of floats gives."""

import math

import torch


def softmax(x, dim):
    if x.requires_grad:
        return log_softmax(x, dim).exp()
    moved = x.movedim(dim, -1)
    rows = [one(row) for row in moved.reshape(-1, moved.shape[-1]).tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(moved.shape).movedim(-1, dim).to(x.dtype)


def one(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def log_softmax(x, dim):
    y = x.to(torch.float64)
    top = y.max(dim, keepdim=True).values
    return (y - top - torch.log(torch.sum(torch.exp(y - top), dim, keepdim=True))).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    if list(targets.shape) != list(logits.shape)[:-1]:
        raise ValueError(f"{targets.shape=} {logits.shape=}")
    flat, losses = log_softmax(logits.reshape(-1, logits.shape[-1]).double(), -1), []
    for i, t in enumerate(targets.reshape(-1).tolist()):
        if t == ignore_index:
            continue
        if not 0 <= t < logits.shape[-1]:
            raise ValueError(f"target {t}")
        losses.append(-flat[i, t])
    return (sum(losses) / len(losses)).to(logits.dtype) if losses else logits.new_tensor(float("nan"))
