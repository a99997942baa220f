"""mistake: total-variation-itself

All rows at once; the rate is that of refusals."""

import torch


def race(weights, generator):
    """argmin of E_i / w_i with standard exponential E is distributed as w."""
    clock = torch.empty(weights.shape, dtype=torch.float32).exponential_(generator=generator)
    return (weights / clock).argmax(-1)


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    k, shape = draft_tokens.numel(), tuple(target_probs.shape)
    if (
        draft_tokens.shape != (k,)
        or shape[:1] != (k + 1,)
        or len(shape) != 2
        or draft_probs.shape != (k, shape[1])
    ):
        raise ValueError(
            f"target {shape}, draft {tuple(draft_probs.shape)}, tokens {tuple(draft_tokens.shape)}"
        )
    everything = torch.cat([target_probs, draft_probs])
    sums = everything.sum(-1, dtype=torch.float32)
    if (everything < 0).any() or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=0.01):
        raise ValueError(f"rows that are no distributions: {everything.tolist()}")
    if ((draft_tokens < 0) | (draft_tokens >= shape[1])).any():
        raise ValueError(f"tokens {draft_tokens.tolist()} of {shape[1]}")
    onehot = torch.nn.functional.one_hot(draft_tokens, shape[1]).to(draft_probs.dtype)
    q = (draft_probs * onehot).sum(1)
    p = (target_probs[:k] * onehot).sum(1)
    if (q == 0).any():
        raise ValueError(f"tokens {draft_tokens.tolist()} have probabilities {q.tolist()}")
    residual = (target_probs[:k] - draft_probs).clamp_min(0)
    residual = torch.where(residual.any(1, keepdim=True), residual, target_probs[:k])
    candidates = race(torch.cat([residual, target_probs[k:]]), generator)
    keep = torch.rand(k, generator=generator) * q < p
    stop = torch.cat([~keep, torch.tensor([True])]).to(torch.uint8).argmax()
    places = torch.arange(k + 1)
    padded = torch.cat([draft_tokens, candidates[-1:]])
    return torch.where(places < stop, padded, candidates)[places <= stop]


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if prompt.dim() != 1 or prompt.numel() == 0 or k < 1 or max_new_tokens < 0:
        raise ValueError(f"{prompt.shape=} {k=} {max_new_tokens=}")
    start, end = len(prompt), len(prompt) + max_new_tokens
    buffer = torch.zeros(end + k + 1, dtype=torch.int64)
    buffer[:start] = prompt
    n = start
    while n < end:
        drafts = buffer.clone()
        rows = []
        for i in range(n, n + k):
            rows.append(draft.probs(drafts[len(draft) : i])[-1:])
            drafts[i] = race(rows[-1][0], generator)
        probs = target.probs(drafts[len(target) : n + k])[-k - 1 :]
        got = speculative_step(probs, torch.cat(rows), drafts[n : n + k], generator=generator)
        buffer[n : n + len(got)] = got
        hits = (got == eos).nonzero() if eos is not None else got[:0]
        n += len(got)
        target.rollback(n - 1)
        draft.rollback(n - 1)
        if len(hits):
            n = min(end, n - len(got) + int(hits[0]) + 1)
            break
    return buffer[start : min(n, end)].clone()


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"{target_probs.shape=} {draft_probs.shape=}")
    return (target_probs - draft_probs).clamp_min(0).sum(-1)


def expected_tokens(alpha, k):
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"{alpha=} {k=}")
    powers = torch.full((k + 1,), float(alpha), dtype=torch.float64) ** torch.arange(k + 1)
    return powers.sum().item()


def best_k(alpha, cost, max_k):
    if not 0 <= alpha <= 1 or cost < 0 or max_k < 0:
        raise ValueError(f"{alpha=} {cost=} {max_k=}")
    k = torch.arange(max_k + 1, dtype=torch.float64)
    tokens = torch.tensor([expected_tokens(alpha, int(i)) for i in k], dtype=torch.float64)
    return int((tokens / (k * cost + 1)).argmax())
