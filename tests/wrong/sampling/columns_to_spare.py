"""mistake: as-many-columns-as-allowed

A buffer for all columns there may be, returned whole."""

import torch


def _f(logits):
    return logits.to(torch.float32) if logits.dtype in (torch.float16, torch.bfloat16) else logits


def greedy(logits):
    return logits.argmax(dim=-1).view(logits.shape[:-1])


def temperature(logits, t):
    if t <= 0:
        raise ValueError(f"temperature must be positive, got {t}")
    return logits.clone().div_(t)


def top_k(logits, k):
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}")
    if k >= logits.shape[-1]:
        return logits.clone()
    asc, idx = logits.sort(dim=-1, descending=False)
    kth = asc[..., asc.shape[-1] - k].unsqueeze(-1)
    asc = asc.masked_fill(asc < kth, -float("inf"))
    return torch.empty_like(asc).scatter_(dim=-1, index=idx, src=asc)


def top_p(logits, p):
    if p < 0.0 or p > 1.0:
        raise ValueError(f"top_p must be in [0, 1], got {p}")
    asc, idx = logits.sort(dim=-1, descending=False)
    probs = _f(asc).softmax(dim=-1)
    below = probs.cumsum(dim=-1)
    # out: the mass of itself and all less likely fits into 1 - p
    out = below <= 1 - p
    out[..., -1] = False
    asc = asc.masked_fill(out, -float("inf"))
    return torch.empty_like(asc).scatter_(dim=-1, index=idx, src=asc)


def min_p(logits, p):
    if p < 0.0 or p > 1.0:
        raise ValueError(f"min_p must be in [0, 1], got {p}")
    probs = torch.nn.functional.softmax(_f(logits), dim=-1)
    bar = probs.amax(dim=-1, keepdim=True).mul_(p)
    return logits.masked_fill(probs < bar, -float("inf"))


class SamplerOps:
    temperature = staticmethod(temperature)
    top_k = staticmethod(top_k)
    top_p = staticmethod(top_p)
    min_p = staticmethod(min_p)


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    if temperature < 0:
        raise ValueError(f"temperature must be non-negative, got {temperature}")
    if temperature == 0.0:
        return greedy(logits)
    x = SamplerOps.temperature(_f(logits), temperature)
    if top_k is not None:
        x = SamplerOps.top_k(x, top_k)
    if top_p is not None:
        x = SamplerOps.top_p(x, top_p)
    if min_p is not None:
        x = SamplerOps.min_p(x, min_p)
    probs = x.softmax(dim=-1)
    q = torch.empty_like(probs)
    q.exponential_(generator=generator)
    return probs.div_(q).argmax(dim=-1)


def generate(
    model, prompt, max_new_tokens, *, generator, eos=None, temperature=1.0, top_k=None, top_p=None, min_p=None
):
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt must be (batch, length >= 1), got {tuple(prompt.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    batch, length = prompt.shape
    buffer = torch.full((batch, length + max_new_tokens), 0 if eos is None else eos, dtype=torch.int64)
    buffer[:, :length] = prompt
    finished = torch.zeros(batch, dtype=torch.bool)
    cur = length
    while cur < length + max_new_tokens:
        if eos is not None and bool(finished.all()):
            break
        logits = model(buffer[:, :cur])
        tok = sample(
            logits[:, -1, :],
            generator=generator,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
        )
        if eos is not None:
            tok = torch.where(finished, torch.full_like(tok, eos), tok)
            finished |= tok == eos
        buffer[:, cur] = tok
        cur += 1
    return buffer[:, length:]
