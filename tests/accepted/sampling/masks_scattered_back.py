"""Masks in sorted order, scattered back to their places; where instead of masked_fill; one flat multinomial."""

import torch

NEG = float("-inf")


def wide(x):
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def greedy(logits):
    return torch.argmax(logits, dim=-1)


def temperature(logits, t):
    if not t > 0:
        raise ValueError(f"t {t}")
    return logits / t


def top_k(logits, k):
    if k < 1:
        raise ValueError(f"k {k}")
    k = min(k, logits.shape[-1])
    kth = torch.topk(logits, k, dim=-1).values[..., -1:]
    return torch.where(logits < kth, torch.full_like(logits, NEG), logits)


def top_p(logits, p):
    if not 0 <= p <= 1:
        raise ValueError(f"p {p}")
    s, idx = torch.sort(wide(logits), dim=-1, descending=True)
    probs = torch.softmax(s, dim=-1)
    cum = torch.cumsum(probs, dim=-1)
    remove = cum - probs >= p
    remove[..., 0] = False
    mask = torch.zeros_like(remove).scatter(-1, idx, remove)
    return logits.masked_fill(mask, NEG)


def min_p(logits, p):
    if not 0 <= p <= 1:
        raise ValueError(f"p {p}")
    probs = torch.softmax(wide(logits), dim=-1)
    return logits.masked_fill(probs < p * probs.max(dim=-1, keepdim=True).values, NEG)


_T, _K, _P, _M = temperature, top_k, top_p, min_p


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if temperature == 0:
        return greedy(logits)
    x = wide(logits)
    x = _T(x, temperature)
    if top_k is not None:
        x = _K(x, top_k)
    if top_p is not None:
        x = _P(x, top_p)
    if min_p is not None:
        x = _M(x, min_p)
    probs = torch.softmax(x, dim=-1)
    flat = probs.reshape(-1, probs.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:-1])


def generate(
    model, prompt, max_new_tokens, *, generator, eos=None, temperature=1.0, top_k=None, top_p=None, min_p=None
):
    if prompt.ndim != 2 or prompt.shape[1] < 1 or max_new_tokens < 0:
        raise ValueError(f"{prompt.shape} {max_new_tokens}")
    text = prompt
    done = torch.zeros(prompt.shape[0], dtype=torch.bool)
    for _ in range(max_new_tokens):
        if done.all():
            break
        logits = model(text)[:, -1]
        nxt = sample(
            logits, generator=generator, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        if eos is not None:
            nxt = torch.where(done, torch.full_like(nxt, eos), nxt)
            done = done | (nxt == eos)
        text = torch.cat([text, nxt[:, None]], dim=1)
    return text[:, prompt.shape[1] :]
