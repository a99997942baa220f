"""mistake: eos-zero-is-none

Inverse CDFs and a session; eos is asked for by its truth."""

import torch
from torch import Tensor


def uniform(generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator)


def draw(weights: Tensor, generator: torch.Generator) -> int:
    cdf = weights.cumsum(0, dtype=torch.promote_types(weights.dtype, torch.float32))
    place = torch.searchsorted(cdf, uniform(generator).to(cdf.dtype) * cdf[-1], right=True)
    possible = weights.nonzero()
    return min(int(place), int(possible[-1]))


def check(target_probs, draft_probs, draft_tokens):
    if target_probs.ndim != 2 or draft_probs.ndim != 2 or draft_tokens.ndim != 1:
        raise ValueError(f"ndims {target_probs.ndim}, {draft_probs.ndim}, {draft_tokens.ndim}")
    if len(target_probs) - 1 != len(draft_probs) or len(draft_tokens) != len(draft_probs):
        raise ValueError(f"lengths {len(target_probs)}, {len(draft_probs)}, {len(draft_tokens)}")
    if target_probs.size(1) != draft_probs.size(1):
        raise ValueError(f"vocabularies {target_probs.size(1)}, {draft_probs.size(1)}")
    for row in (*target_probs, *draft_probs):
        total = float(row.sum(dtype=torch.float32))
        if row.isnan().any() or float(row.min()) < 0 or not 0.99 <= total <= 1.01:
            raise ValueError(f"not a distribution: {row.tolist()}")
    for row, token in zip(draft_probs, draft_tokens.tolist(), strict=True):
        if token < 0 or token >= len(row) or row[token] == 0:
            raise ValueError(f"draft {token} under {row.tolist()}")


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    check(target_probs, draft_probs, draft_tokens)
    result = torch.empty(len(target_probs), dtype=torch.long)
    for n, token in enumerate(draft_tokens.tolist()):
        p, q = target_probs[n], draft_probs[n]
        if p[token] >= q[token] or uniform(generator).item() < p[token] / q[token]:
            result[n] = token
        else:
            residual = torch.relu(p - q)
            result[n] = draw(residual if residual.sum() > 0 else p, generator)
            return result[: n + 1]
    result[-1] = draw(target_probs[-1], generator)
    return result


class Session:
    """The loop as an object that remembers what each model has not read yet."""

    def __init__(self, target, draft, prompt, k, generator):
        self.target, self.draft, self.k, self.generator = target, draft, k, generator
        self.length = len(prompt)
        self.for_target, self.for_draft = prompt, prompt

    def round(self):
        tokens, rows, unread = [], [], self.for_draft
        for _ in range(self.k):
            rows.append(self.draft.probs(unread)[-1])
            tokens.append(draw(rows[-1], self.generator))
            unread = torch.tensor(tokens[-1:])
        tokens = torch.tensor(tokens)
        probs = self.target.probs(torch.cat([self.for_target, tokens]))[len(self.for_target) - 1 :]
        emitted = speculative_step(probs, torch.stack(rows), tokens, generator=self.generator)
        kept = len(emitted) - 1
        if kept < self.k:
            self.target.rollback(self.length + kept)
            self.draft.rollback(self.length + kept)
        self.for_target = emitted[-1:]
        self.for_draft = emitted[-2:] if kept == self.k else emitted[-1:]
        self.length += len(emitted)
        return emitted


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if k < 1:
        raise ValueError(f"k = {k}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens = {max_new_tokens}")
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"prompt of shape {tuple(prompt.shape)}")
    session, out = Session(target, draft, prompt, k, generator), []
    while len(out) < max_new_tokens and (not eos or eos not in out):
        out += session.round().tolist()
    if eos and eos in out:
        out = out[: out.index(eos) + 1]
    return torch.tensor(out[:max_new_tokens], dtype=torch.long)


def acceptance_rate(target_probs, draft_probs):
    if list(target_probs.shape) != list(draft_probs.shape):
        raise ValueError(f"{list(target_probs.shape)} != {list(draft_probs.shape)}")
    return 1 - torch.relu(target_probs - draft_probs).sum(dim=-1)


def expected_tokens(alpha, k):
    if alpha < 0 or alpha > 1:
        raise ValueError(f"alpha = {alpha}")
    if k < 0:
        raise ValueError(f"k = {k}")
    # Horner: 1 + α(1 + α(1 + …)).
    tokens = 1.0
    for _ in range(k):
        tokens = 1.0 + alpha * tokens
    return tokens


def best_k(alpha, cost, max_k):
    if cost < 0 or max_k < 0:
        raise ValueError(f"cost = {cost}, max_k = {max_k}")
    speeds = [(expected_tokens(alpha, k) / (1 + k * cost), -k) for k in range(max_k + 1)]
    return -max(speeds)[1]
