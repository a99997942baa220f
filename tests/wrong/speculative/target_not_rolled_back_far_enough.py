"""mistake: rolled-back-one-too-far

Exact fractions, a stream of tokens; both caches lose one token more than was refused."""

import random
from fractions import Fraction

import torch


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    if target_probs.dim() != 2 or draft_probs.dim() != 2 or draft_tokens.dim() != 1:
        raise ValueError(f"{target_probs.dim()}, {draft_probs.dim()}, {draft_tokens.dim()} dimensions")
    (rows, vocab), (k, v) = target_probs.shape, draft_probs.shape
    if rows != k + 1 or len(draft_tokens) != k or v != vocab:
        raise ValueError(f"{rows} rows, {k} rows, {len(draft_tokens)} tokens, vocabularies {vocab} and {v}")
    p, q = exact(target_probs), exact(draft_probs)
    tokens = draft_tokens.tolist()
    for row, token in zip(q, tokens, strict=True):
        if token not in range(vocab) or not row[token]:
            raise ValueError(f"draft {token} of {vocab}")
    rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    return torch.tensor(judged(p, q, tokens, rng))


def exact(x):
    rows = x.double().tolist()
    if any(not v >= 0 or v == float("inf") for row in rows for v in row) or any(
        abs(sum(r) - 1) > 0.01 for r in rows
    ):
        raise ValueError(f"no distributions: {rows}")
    return [[Fraction(v) for v in row] for row in rows]


def judged(p, q, tokens, rng):
    if not tokens:
        return [chosen(p[0], rng)]
    token = tokens[0]
    if chance(rng) * q[0][token] < p[0][token]:
        return [token, *judged(p[1:], q[1:], tokens[1:], rng)]
    rest = [max(a - b, Fraction(0)) for a, b in zip(p[0], q[0], strict=True)]
    return [chosen(rest if any(rest) else p[0], rng)]


def chance(rng):
    return Fraction(rng.getrandbits(62), 2**62)


def chosen(weights, rng):
    left = chance(rng) * sum(weights)
    for token, weight in enumerate(weights):
        if left < weight:
            return token
        left -= weight
    raise AssertionError("a chance is below 1")


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if prompt.dim() != 1 or len(prompt) == 0 or k < 1 or max_new_tokens < 0:
        raise ValueError(f"prompt {tuple(prompt.shape)}, k {k}, max_new_tokens {max_new_tokens}")
    new = []
    for token in stream(target, draft, prompt.tolist(), k, generator) if max_new_tokens else ():
        new.append(token)
        if token == eos or len(new) == max_new_tokens:
            break
    return torch.tensor(new, dtype=torch.int64)


def stream(target, draft, text, k, generator):
    """Tokens without end; the models run only when the next one is asked for."""
    while True:
        guesses, rows = [], []
        while len(guesses) < k:
            row = draft.probs(torch.tensor((text + guesses)[len(draft) :]))[-1]
            rows.append(row)
            rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
            guesses.append(chosen([Fraction(v) for v in row.tolist()], rng))
        rows_of_target = target.probs(torch.tensor((text + guesses)[len(target) :]))[-(k + 1) :]
        got = speculative_step(rows_of_target, torch.stack(rows), torch.tensor(guesses), generator=generator)
        yield from got.tolist()
        text = text + got.tolist()
        for model in (target, draft):
            model.rollback(max(len(text) - 2, 0))


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"{target_probs.shape} and {draft_probs.shape}")
    flat = zip(
        target_probs.reshape(-1, target_probs.shape[-1]).tolist(),
        draft_probs.reshape(-1, draft_probs.shape[-1]).tolist(),
        strict=True,
    )
    rates = [sum(map(min, p, q)) for p, q in flat]
    return torch.tensor(rates, dtype=target_probs.dtype).reshape(target_probs.shape[:-1])


def expected_tokens(alpha, k):
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"{alpha}, {k}")
    return float(sum(Fraction(alpha) ** i for i in range(k + 1)))


def best_k(alpha, cost, max_k):
    if not 0 <= alpha <= 1 or cost < 0 or max_k < 0:
        raise ValueError(f"{alpha}, {cost}, {max_k}")

    def speed(k):
        return sum(Fraction(alpha) ** i for i in range(k + 1)) / (k * Fraction(cost) + 1)

    return max(range(max_k + 1), key=speed)
