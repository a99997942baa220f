"""mistake: min-p-absolute

Lists; min_p is a probability, not a share of the largest."""

import bisect
import itertools
import math

import torch

OUT = float("-inf")


def by_row(logits, keep):
    rows = logits.double().reshape(-1, logits.shape[-1]).tolist()
    mask = torch.tensor([[i in kept for i in range(len(row))] for row, kept in ((r, keep(r)) for r in rows)])
    return torch.where(mask.reshape(logits.shape), logits, torch.full_like(logits, OUT))


def ranked(row):
    return sorted((i for i in range(len(row)) if row[i] > OUT), key=lambda i: row[i], reverse=True)


def weights_of(row):
    top = max(row)
    return [math.exp(x - top) for x in row]


def greedy(logits):
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    return torch.tensor([row.index(max(row)) for row in rows]).reshape(logits.shape[:-1])


def temperature(logits, t):
    if not t > 0:
        raise ValueError(f"temperature {t}")
    return logits.mul(1 / t) if math.isfinite(1 / t) else logits / t


def top_k(logits, k):
    if k <= 0:
        raise ValueError(f"k={k}")
    return by_row(logits, lambda row: set(ranked(row)[:k]))


def top_p(logits, p):
    if not (p >= 0 and p <= 1):
        raise ValueError(f"p={p}")

    def nucleus(row):
        order, weights = ranked(row), weights_of(row)
        goal, kept, mass = p * math.fsum(weights), set(), 0.0
        for i in order:
            if kept and mass >= goal:
                break
            kept.add(i)
            mass += weights[i]
        return kept

    return by_row(logits, nucleus)


def min_p(logits, p):
    if not (p >= 0 and p <= 1):
        raise ValueError(f"p={p}")

    def likely(row):
        weights = weights_of(row)
        return {i for i, w in enumerate(weights) if w >= min(1.0, p * math.fsum(weights))}

    return by_row(logits, likely)


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature}")
    if temperature == 0:
        return greedy(logits)
    x = logits.double()
    x = x / temperature
    for name, value in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)):
        if value is not None:
            x = globals()[name](x, value)
    tokens = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        edges = list(itertools.accumulate(weights_of(row)))
        u = torch.rand(1, generator=generator, dtype=torch.float64).item() * edges[-1]
        tokens.append(bisect.bisect_right(edges, u))
    return torch.tensor(tokens).reshape(logits.shape[:-1])


def generate(
    model, prompt, max_new_tokens, *, generator, eos=None, temperature=1.0, top_k=None, top_p=None, min_p=None
):
    if prompt.dim() != 2 or prompt.size(1) < 1:
        raise ValueError(f"prompt {tuple(prompt.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens}")
    texts = prompt.tolist()
    done = [False for _ in texts]
    for _ in range(max_new_tokens):
        logits = model(torch.tensor(texts))[:, -1, :]
        for i, text in enumerate(texts):
            if done[i]:
                text.append(eos)
                continue
            text.append(
                int(
                    sample(
                        logits[i],
                        generator=generator,
                        temperature=temperature,
                        top_k=top_k,
                        top_p=top_p,
                        min_p=min_p,
                    )
                )
            )
            done[i] = eos is not None and text[-1] == eos
        if all(done):
            break
    return torch.tensor([text[prompt.size(1) :] for text in texts], dtype=torch.int64).reshape(len(texts), -1)
