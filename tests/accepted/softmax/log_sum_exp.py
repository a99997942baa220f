"""Everything through the log-sum-exp, in float64; ignored rows are dropped."""

import torch


def _lse(x, dim):
    m = x.max(dim=dim, keepdim=True).values.detach()
    return m + torch.log(torch.sum(torch.exp(x - m), dim=dim, keepdim=True))


def softmax(x, dim=-1):
    return (
        torch.exp(log_softmax(x, dim).double()).to(x.dtype)
        if x.dtype == torch.float64
        else torch.exp(x.double() - _lse(x.double(), dim)).to(x.dtype)
    )


def log_softmax(x, dim=-1):
    z = x.double()
    return (z - _lse(z, dim)).to(x.dtype)


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    if list(targets.shape) != list(logits.shape)[:-1]:
        raise ValueError("nope", logits.shape, targets.shape)
    flat, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    flat, t = flat[t != ignore_index], t[t != ignore_index]
    if len(t) and not (0 <= int(t.min()) and int(t.max()) < logits.shape[-1]):
        raise ValueError("targets", t)
    z = flat.double()
    return (_lse(z, -1)[:, 0] - z[torch.arange(len(t)), t.long()]).mean().to(logits.dtype)
