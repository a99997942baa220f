"""mistake: -

Streaming: when the running maximum moves, the sum so far is not rescaled."""

import torch


def _stats(y, dim):
    m = s = None
    for block in torch.split(y, 3, dim=dim):
        bm = block.amax(dim, keepdim=True)
        if m is None:
            new = bm
        else:
            new = torch.maximum(m, bm)
        safe = torch.where(new.isinf(), torch.zeros_like(new), new)
        part = (block - safe).exp().sum(dim, keepdim=True)
        s = part if s is None else s + part
        m = new
    return m, s


def _acc(x):
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def softmax(x, dim):
    y = _acc(x)
    m, s = _stats(y, dim)
    return ((y - m).exp() * s.reciprocal()).to(x.dtype)


def log_softmax(x, dim):
    y = _acc(x)
    m, s = _stats(y, dim)
    return (y - m - s.log()).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100):
    *batch, vocab = logits.shape
    if list(targets.shape) != batch:
        raise ValueError(f"targets {list(targets.shape)} logits {list(logits.shape)}")
    flat = targets.reshape(-1)
    where = torch.nonzero(flat != ignore_index, as_tuple=True)[0]
    t = flat[where]
    if ((t < 0) | (t > vocab - 1)).any():
        raise ValueError(f"targets {flat.tolist()} vocab {vocab}")
    y = _acc(logits).reshape(-1, vocab)[where]
    m, s = _stats(y, 1)
    picked = y[torch.arange(len(where), device=y.device), t]
    return (s.log().squeeze(1) + (m.squeeze(1) - picked)).mean().to(logits.dtype)
