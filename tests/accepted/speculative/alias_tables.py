"""Classes, alias tables, a number drawn only where a draft may be refused, and exact fractions for the speed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor


class BadSpeculation(ValueError):
    pass


@dataclass
class Uniforms:
    generator: Generator
    batch: int = 1

    def one(self) -> float:
        return float(torch.rand(1, generator=self.generator, dtype=torch.float64))


class Alias:
    """O(n) set-up, O(1) draw."""

    def __init__(self, weights: Tensor):
        w = weights.double()
        self.ids = w.nonzero()[:, 0].tolist()
        w = (w[w > 0] / w.sum() * len(self.ids)).tolist()
        self.cut = [1.0] * len(w)
        self.other = list(range(len(w)))
        small = [i for i, x in enumerate(w) if x < 1]
        large = [i for i, x in enumerate(w) if x >= 1]
        while small and large:
            s, g = small.pop(), large.pop()
            self.cut[s], self.other[s] = w[s], g
            w[g] = (w[g] + w[s]) - 1
            (small if w[g] < 1 else large).append(g)

    def draw(self, u: Uniforms) -> int:
        x = u.one() * len(self.ids)
        i = min(int(x), len(self.ids) - 1)
        return self.ids[i] if x - i < self.cut[i] else self.ids[self.other[i]]


@dataclass(frozen=True)
class Proposal:
    target: Tensor
    draft: Tensor
    tokens: Tensor
    k: int = field(init=False)

    def __post_init__(self):
        t, d, x = self.target, self.draft, self.tokens
        if t.ndim != 2 or d.ndim != 2 or x.ndim != 1:
            raise BadSpeculation(f"ranks {t.ndim}, {d.ndim}, {x.ndim}")
        if len(t) != len(d) + 1 or len(d) != len(x) or t.shape[1] != d.shape[1]:
            raise BadSpeculation(f"shapes {tuple(t.shape)} {tuple(d.shape)} {tuple(x.shape)}")
        for label, rows in (("target", t), ("draft", d)):
            for row in rows.double():
                if not bool((row >= 0).all()) or not abs(float(row.sum()) - 1) <= 0.0102:
                    raise BadSpeculation(f"{label}: {row.tolist()}")
        for i, token in enumerate(x.tolist()):
            if token not in range(t.shape[1]) or d[i, token] == 0:
                raise BadSpeculation(f"draft {i} = {token}")
        object.__setattr__(self, "k", len(x))


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    case = Proposal(target_probs, draft_probs, draft_tokens)
    u = Uniforms(generator)
    for i in range(case.k):
        token = int(case.tokens[i])
        p, q = case.target[i].double(), case.draft[i].double()
        p, q = p / p.sum(), q / q.sum()
        if p[token] >= q[token]:
            continue
        if u.one() < float(p[token] / q[token]):
            continue
        rest = (p - q).relu()
        pick = Alias(rest if rest.any() else p).draw(u)
        return torch.cat([case.tokens[:i], torch.tensor([pick])])
    return torch.cat([case.tokens, torch.tensor([Alias(case.target[case.k]).draw(u)])])


class Session:
    def __init__(self, target, draft, prompt, budget, k, generator, eos):
        if prompt.ndim != 1 or len(prompt) < 1:
            raise BadSpeculation(f"prompt {tuple(prompt.shape)}")
        if not k >= 1 or not budget >= 0:
            raise BadSpeculation(f"k {k}, max_new_tokens {budget}")
        self.target, self.draft, self.k, self.eos = target, draft, k, eos
        self.generator, self.u = generator, Uniforms(generator)
        self.start, self.stop = len(prompt), len(prompt) + budget
        self.text = prompt.tolist()
        self.done = budget == 0

    def unread(self, model, extra=()):
        return torch.tensor((self.text + list(extra))[len(model) :])

    def round(self):
        drafts, rows = [], []
        while len(drafts) < self.k:
            rows.append(self.draft.probs(self.unread(self.draft, drafts))[-1])
            drafts.append(Alias(rows[-1]).draw(self.u))
        seen = self.target.probs(self.unread(self.target, drafts))[-self.k - 1 :]
        for token in speculative_step(
            seen, torch.stack(rows), torch.tensor(drafts), generator=self.generator
        ).tolist():
            self.text.append(token)
            if token == self.eos or len(self.text) == self.stop:
                self.done = True
                break
        keep = len(self.text) - 1
        self.target.rollback(keep)
        self.draft.rollback(keep)

    def run(self):
        while not self.done:
            self.round()
        return torch.tensor(self.text[self.start :], dtype=torch.int64)


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    return Session(target, draft, prompt, max_new_tokens, k, generator, eos).run()


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise BadSpeculation(f"{tuple(target_probs.shape)} and {tuple(draft_probs.shape)}")
    p, q = target_probs.double(), draft_probs.double()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return (p - (p - q).relu()).sum(-1).to(target_probs.dtype)


def expected_tokens(alpha, k):
    from fractions import Fraction

    if not 0 <= alpha <= 1 or k < 0:
        raise BadSpeculation(f"alpha {alpha} k {k}")
    a = Fraction(alpha)
    return float(k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a))


def best_k(alpha, cost, max_k):
    if not 0 <= alpha <= 1 or not cost >= 0 or max_k < 0:
        raise BadSpeculation(f"alpha {alpha} cost {cost} max_k {max_k}")
    best = 0
    for k in range(1, max_k + 1):
        if expected_tokens(alpha, k) * (1 + best * cost) > expected_tokens(alpha, best) * (1 + k * cost):
            best = k
    return best
