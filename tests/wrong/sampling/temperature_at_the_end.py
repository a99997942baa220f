"""mistake: temperature-last

Gumbel noise; the filters see the logits before the temperature does."""

import torch

NEVER = -torch.inf


def greedy(logits):
    return torch.max(logits, dim=-1).indices


def temperature(logits, t):
    if t <= 0 or t != t:
        raise ValueError(t)
    return torch.div(logits, t)


def top_k(logits, k):
    if k < 1:
        raise ValueError(k)
    index = logits.topk(min(k, logits.size(-1)), dim=-1).indices
    return torch.full_like(logits, NEVER).scatter(-1, index, logits.gather(-1, index))


def top_p(logits, p):
    if not 0.0 <= p <= 1.0:
        raise ValueError(p)
    values, index = torch.sort(logits.to(torch.float64), dim=-1, descending=True)
    probs = torch.softmax(values, dim=-1)
    before = probs.cumsum(dim=-1) - probs
    remove = before >= p
    remove[..., 0] = False
    mask = torch.zeros_like(remove).scatter(-1, index, remove)
    return logits.masked_fill(mask, NEVER)


def min_p(logits, p):
    if not 0.0 <= p <= 1.0:
        raise ValueError(p)
    probs = torch.softmax(logits.double(), dim=-1)
    return torch.where(probs >= probs.amax(dim=-1, keepdim=True) * p, logits, NEVER)


def sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    x = logits.double()
    if temperature < 0 or temperature != temperature:
        raise ValueError(temperature)
    if temperature == 0:
        return greedy(logits)
    apply = globals()
    if top_k is not None:
        x = apply["top_k"](x, top_k)
    if top_p is not None:
        x = apply["top_p"](x, top_p)
    if min_p is not None:
        x = apply["min_p"](x, min_p)
    x = x / temperature
    uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return torch.argmax(x + noise, dim=-1)


def generate(model, prompt, max_new_tokens, *, generator, eos=None, **options):
    if prompt.ndim != 2 or prompt.shape[-1] == 0 or max_new_tokens < 0:
        raise ValueError((tuple(prompt.shape), max_new_tokens))
    batch, length = prompt.shape
    text = torch.zeros(batch, length + max_new_tokens, dtype=torch.int64)
    text[:, :length] = prompt
    if eos is not None:
        text[:, length:] = eos
    alive = torch.arange(batch)
    end = length
    while end < length + max_new_tokens and len(alive) > 0:
        logits = model(text[alive, :end])[:, -1]
        token = sample(logits, generator=generator, **options)
        text[alive, end] = token
        end += 1
        if eos is not None:
            alive = alive[token != eos]
    return text[:, length:end]
