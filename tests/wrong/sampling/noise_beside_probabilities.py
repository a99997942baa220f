"""mistake: noise-on-the-probabilities

A chain of processors; Gumbel noise on the softmax of what they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

NEG = float("-inf")


class Processor(Protocol):
    def mask(self, scores: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class TopK:
    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")

    def mask(self, scores):
        ranks = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return ranks < self.k


@dataclass(frozen=True)
class TopP:
    p: float

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be in [0, 1], got {self.p}")

    def mask(self, scores):
        order = scores.argsort(-1, descending=True)
        ranked = scores.softmax(-1).gather(-1, order)
        preceding = torch.nn.functional.pad(ranked.cumsum(-1)[..., :-1], (1, 0))
        keep = preceding < self.p
        keep[..., :1] = True
        return torch.zeros_like(keep).scatter(-1, order, keep)


@dataclass(frozen=True)
class MinP:
    p: float

    def __post_init__(self):
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be in [0, 1], got {self.p}")

    def mask(self, scores):
        logp = scores.log_softmax(-1)
        best = logp.max(-1, keepdim=True).values
        return torch.exp(logp - best) >= self.p


def run(processor, logits):
    wide = logits.float() if logits.dtype not in (torch.float64, torch.float32) else logits
    return torch.where(processor.mask(wide), logits, NEG)


def greedy(logits):
    return logits.topk(1, dim=-1).indices[..., 0]


def temperature(logits, t):
    if not t > 0:
        raise ValueError(f"t must be > 0, got {t}")
    return torch.true_divide(logits, t)


def top_k(logits, k):
    return run(TopK(k), logits)


def top_p(logits, p):
    return run(TopP(p), logits)


def min_p(logits, p):
    return run(MinP(p), logits)


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")

    def chain(self):
        pairs = ((TopK, self.top_k), (TopP, self.top_p), (MinP, self.min_p))
        return [kind(arg) for kind, arg in pairs if arg is not None]


def sample(logits, *, generator, **options):
    options = Options(**options)
    chain = options.chain()
    if options.temperature == 0:
        return greedy(logits)
    scores = logits.double()
    scores = (scores - scores.amax(-1, keepdim=True)) / options.temperature
    for processor in chain:
        scores = scores.masked_fill(~processor.mask(scores), NEG)
    noise = torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return (scores.softmax(-1) - (-noise.log()).log()).masked_fill(scores == NEG, NEG).argmax(-1)


def generate(model, prompt, max_new_tokens, *, generator, eos=None, **options):
    if prompt.ndim != 2 or prompt.shape[-1] == 0:
        raise ValueError(f"prompt must be (batch, length >= 1), got {tuple(prompt.shape)}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be >= 0, got {max_new_tokens}")
    Options(**options).chain()
    batch = prompt.shape[0]
    new = torch.full((batch, max_new_tokens), -1 if eos is None else eos, dtype=torch.int64)
    alive = torch.full((batch,), True)
    for column in range(max_new_tokens):
        if not alive.any():
            return new[:, :column]
        context = torch.hstack([prompt, new[:, :column]])
        drawn = sample(model(context)[:, -1], generator=generator, **options)
        new[alive, column] = drawn[alive]
        if eos is not None:
            alive &= drawn != eos
    return new
