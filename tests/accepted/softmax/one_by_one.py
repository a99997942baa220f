"""The maximum by sorting, expm1 in place of exp, and the loss target after target."""

import torch


def softmax(x, dim):
    y = x.movedim(dim, -1) if x.dim() else x.reshape(1)
    y = y.float() if y.element_size() == 2 else y
    y = torch.sub(y, torch.max(y.detach(), -1, True)[0]).exp()
    out = y / torch.einsum("...i->...", y).unsqueeze(-1)
    out = out.to(x.dtype)
    return out.movedim(-1, dim) if x.dim() else out.reshape(())


def log_softmax(x, dim):
    y = x.movedim(dim, -1) if x.dim() else x.reshape(1)
    y = y.float() if y.element_size() == 2 else y
    top = y.sort(-1, descending=True)[0][..., :1]
    out = y - (top + torch.expm1(y - top).add(1).sum(-1, keepdim=True).log())
    out = out.to(x.dtype)
    return out.movedim(-1, dim) if x.dim() else out.reshape(())


def cross_entropy(logits, targets, *, ignore_index=-100):
    *lead, v = logits.shape
    if tuple(targets.shape) != tuple(lead):
        raise ValueError((targets.shape, logits.shape))
    total, n = logits.new_zeros((), dtype=torch.float64), 0
    for row, t in zip(logits.reshape(-1, v), targets.reshape(-1).tolist()):
        if t == ignore_index:
            continue
        if t not in range(v):
            raise ValueError(t)
        total = total - log_softmax(row.double(), 0)[t]
        n += 1
    return (total / n if n else total / 0).to(logits.dtype)
