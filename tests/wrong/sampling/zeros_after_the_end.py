"""mistake: padded-with-zero

NumPy within; rows that have ended are filled with 0."""

import numpy as np
import torch


def wide(logits):
    return logits.detach().double().numpy().reshape(-1, logits.shape[-1])


def cut(logits, keep):
    keep = torch.from_numpy(np.ascontiguousarray(keep)).reshape(logits.shape)
    return logits.masked_fill(keep.logical_not(), float("-inf"))


def share(p):
    if not 0 <= p <= 1:
        raise ValueError(f"{p} is no share")


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def greedy(logits):
    return torch.from_numpy(wide(logits).argmax(-1)).reshape(logits.shape[:-1])


def temperature(logits, t):
    if not t > 0:
        raise ValueError(t)
    return logits / t


def top_k(logits, k):
    if k < 1:
        raise ValueError(k)
    x = wide(logits)
    k = min(k, x.shape[-1])
    return cut(logits, x >= np.partition(x, -k, axis=-1)[:, -k][:, None])


def top_p(logits, p):
    share(p)
    x = wide(logits)
    keep = np.zeros(x.shape, dtype=bool)
    for row, chosen in zip(softmax(x), keep):
        order = np.argsort(-row, kind="stable")
        count = min(int(np.searchsorted(np.cumsum(row[order]), p, side="left")) + 1, len(row))
        chosen[:] = row >= row[order[count - 1]]
    return cut(logits, keep)


def min_p(logits, p):
    share(p)
    x = softmax(wide(logits))
    return cut(logits, x >= p * x.max(-1, keepdims=True))


FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p}


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if not temperature >= 0:
        raise ValueError(temperature)
    if temperature == 0:
        return greedy(logits)
    x = logits.double() / temperature
    for name, value in {"top_k": top_k, "top_p": top_p, "min_p": min_p}.items():
        if value is not None:
            x = FILTERS[name](x, value)
    edges = np.cumsum(softmax(wide(x)), axis=-1)
    edges /= edges[:, -1:]
    u = torch.rand(len(edges), generator=generator, dtype=torch.float64).numpy()
    tokens = [int(np.searchsorted(row, one, side="right")) for row, one in zip(edges, u)]
    return torch.tensor(tokens, dtype=torch.int64).reshape(logits.shape[:-1])


def generate(
    model, prompt, max_new_tokens, *, generator, eos=None, temperature=1.0, top_k=None, top_p=None, min_p=None
):
    if prompt.ndim != 2 or prompt.shape[1] == 0 or max_new_tokens < 0:
        raise ValueError(f"{tuple(prompt.shape)} {max_new_tokens}")
    new = prompt[:, :0]
    for _ in range(max_new_tokens):
        ended = (new == eos).any(dim=1) if eos is not None else torch.zeros(len(prompt), dtype=torch.bool)
        if bool(ended.all()):
            break
        logits = model(torch.cat([prompt, new], dim=1))[:, -1]
        token = sample(
            logits, generator=generator, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        token[ended] = 0
        new = torch.cat([new, token[:, None]], dim=1)
    return new
