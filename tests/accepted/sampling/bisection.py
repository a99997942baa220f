"""No sort for the filters' sake: each is a threshold, that of the nucleus found by bisection over its mass; one
uniform number a row and a search in the CDF; the text as a generator of columns."""

import math

import torch


class Row:
    """Filters on a (rows, vocab) tensor of float64."""

    @staticmethod
    def cut_k(z, k):
        k = min(k, z.shape[1])
        return z.kthvalue(z.shape[1] - k + 1, dim=1, keepdim=True).values

    @staticmethod
    def cut_p(z, p):
        w = (z - z.logsumexp(1, keepdim=True)).exp()
        # the largest threshold whose mass still reaches p, among the values themselves
        values = z.sort(1).values
        lo = torch.zeros(z.shape[0], 1, dtype=torch.int64)  # reaches p
        hi = torch.full_like(lo, z.shape[1])  # does not
        while bool((hi - lo > 1).any()):
            mid = (lo + hi) // 2
            bar = values.gather(1, mid.clamp(max=z.shape[1] - 1))
            enough = (w * (z >= bar)).sum(1, keepdim=True) >= p
            lo, hi = torch.where(enough, mid, lo), torch.where(enough, hi, mid)
        return values.gather(1, lo)

    @staticmethod
    def cut_m(z, p):
        return z.amax(1, keepdim=True) + (math.log(p) if p > 0 else -math.inf)


def _filter(logits, cut, arg):
    z = logits.reshape(-1, logits.shape[-1])
    wide = z.double()
    return torch.where(wide >= cut(wide, arg), z, torch.tensor(-math.inf, dtype=z.dtype)).reshape(
        logits.shape
    )


def _share(p):
    if not (p >= 0 and p <= 1):
        raise ValueError(f"{p} is not in [0, 1]")


def _count(k):
    if k < 1:
        raise ValueError(f"{k} is less than 1")


def greedy(logits):
    return logits.max(-1).indices


def temperature(logits, t):
    if t > 0:
        return logits * (1 / t) if logits.dtype == torch.float64 else logits / t
    raise ValueError(f"{t} is not positive")


def top_k(logits, k):
    _count(k)
    return _filter(logits, Row.cut_k, k)


def top_p(logits, p):
    _share(p)
    return _filter(logits, Row.cut_p, p)


def min_p(logits, p):
    _share(p)
    return _filter(logits, Row.cut_m, p)


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if temperature < 0:
        raise ValueError(f"{temperature} is negative")
    if temperature == 0:
        return greedy(logits)
    steps = ((top_k, _count, Row.cut_k), (top_p, _share, Row.cut_p), (min_p, _share, Row.cut_m))
    z = logits.reshape(-1, logits.shape[-1]).double() / temperature
    for arg, check, cut in steps:
        if arg is not None:
            check(arg)
            z = z.masked_fill(z < cut(z, arg), -math.inf)
    cdf = z.softmax(1).cumsum(1)
    u = torch.rand(z.shape[0], 1, generator=generator, dtype=torch.float64) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True).clamp(max=z.shape[1] - 1).reshape(logits.shape[:-1])


def generate(
    model, prompt, max_new_tokens, *, generator, eos=None, temperature=1.0, top_k=None, top_p=None, min_p=None
):
    if len(prompt.shape) != 2 or prompt.shape[1] < 1 or max_new_tokens < 0:
        raise ValueError(f"{prompt.shape} {max_new_tokens}")

    def stream():
        text, open_ = prompt, torch.ones(prompt.shape[0], dtype=torch.bool)
        for _ in range(max_new_tokens):
            if not open_.any():
                return
            new = sample(
                model(text)[:, -1],
                generator=generator,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
            )
            if eos is not None:
                new = torch.where(open_, new, eos)
                open_ = open_ & (new != eos)
            yield new
            text = torch.cat([text, new.unsqueeze(-1)], -1)

    columns = list(stream())
    return torch.stack(columns, 1) if columns else torch.empty(prompt.shape[0], 0, dtype=torch.int64)
