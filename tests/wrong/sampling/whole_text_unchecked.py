"""mistake: prompt-returned-too

Recursion; the text comes back with its prompt, and no argument of generate is looked at."""

import math

import torch
import torch.nn.functional as F


def greedy(logits):
    return logits.argmax(dim=-1)


def temperature(logits, t):
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    return logits / t


def top_k(logits, k):
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, logits.shape[-1])
    kth = logits.sort(dim=-1).values[..., -k, None]
    return torch.where(logits >= kth, logits, -math.inf)


def top_p(logits, p):
    if math.isnan(p) or p < 0 or p > 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    probs = F.softmax(logits, dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    descending = probs.sort(dim=-1, descending=True).values
    total = descending.cumsum(dim=-1)
    inside = torch.cat([torch.ones_like(total[..., :1], dtype=torch.bool), total[..., :-1] < p], dim=-1)
    least = descending.masked_fill(~inside, 2.0).amin(dim=-1, keepdim=True)
    return torch.where(probs >= least, logits, -math.inf)


def min_p(logits, p):
    if math.isnan(p) or p < 0 or p > 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    ratio = (wide - wide.amax(dim=-1, keepdim=True)).exp()
    return torch.where(ratio >= p, logits, -math.inf)


_temperature, _top_k, _top_p, _min_p = temperature, top_k, top_p, min_p


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if temperature == 0:
        return greedy(logits)
    x = _temperature(logits, temperature)
    if top_k is not None:
        x = _top_k(x, top_k)
    if top_p is not None:
        x = _top_p(x, top_p)
    if min_p is not None:
        x = _min_p(x, min_p)
    probs = F.softmax(x, dim=-1, dtype=torch.float32)
    if probs.ndim == 1:
        return torch.multinomial(probs, 1, generator=generator)[0]
    return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).view(probs.shape[:-1])


def generate(model, prompt, max_new_tokens, *, generator, eos=None, **options):
    ended = prompt.new_zeros(len(prompt)).bool()
    return more(model, prompt, max(max_new_tokens, 0), generator, eos, options, ended)


def more(model, text, left, generator, eos, options, ended):
    if left == 0 or bool(ended.all()):
        return text
    token = sample(model(text)[:, -1], generator=generator, **options)
    if eos is not None:
        token = torch.where(ended, eos, token)
        ended = ended | token.eq(eos)
    return more(model, torch.cat((text, token.unsqueeze(1)), 1), left - 1, generator, eos, options, ended)
