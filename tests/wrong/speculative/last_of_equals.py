"""mistake: largest-of-equals

Log space and Gumbel noise; of equally fast k the last is kept."""

import math

import torch


def gumbel_max(log_weights, generator):
    noise = torch.rand(log_weights.shape, generator=generator, dtype=torch.float64)
    return (log_weights - (-noise.log()).log()).argmax(-1, keepdim=True)


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    k = draft_tokens.shape[0] if draft_tokens.dim() else -1
    if (
        draft_tokens.dim() != 1
        or target_probs.dim() != 2
        or target_probs.shape[0] != k + 1
        or draft_probs.shape != target_probs[1:].shape
    ):
        raise ValueError(f"{target_probs.shape}, {draft_probs.shape}, {draft_tokens.shape}")
    p, q = target_probs.double(), draft_probs.double()
    for x in (p, q):
        bad = x.isnan().any(-1) | (x < 0).any(-1) | ((x.sum(-1) - 1).abs() > 0.01)
        if bad.any():
            raise ValueError(f"rows {bad.nonzero().tolist()} of {x}")
    if k and (draft_tokens.min() < 0 or draft_tokens.max() >= p.shape[1]):
        raise ValueError(f"tokens {draft_tokens}")
    at = torch.arange(k)
    if (q[at, draft_tokens] <= 0).any():
        raise ValueError(f"tokens {draft_tokens} with probability 0")
    log_ratio = p[at, draft_tokens].log() - q[at, draft_tokens].log()
    last = gumbel_max(torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]]).log(), generator)[:, 0]
    log_u = torch.rand(k, generator=generator, dtype=torch.float64).log()
    refused = (log_u >= log_ratio).nonzero()
    n = int(refused[0]) if len(refused) else k
    if n < k and not (p[n] > q[n]).any():
        return torch.cat([draft_tokens[:n], gumbel_max(p[n].log(), generator)])
    return torch.cat([draft_tokens[:n], last[n : n + 1]])


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if k <= 0 or max_new_tokens < 0 or prompt.dim() != 1 or prompt.shape[0] == 0:
        raise ValueError(f"k={k}, max_new_tokens={max_new_tokens}, prompt={tuple(prompt.shape)}")
    if max_new_tokens == 0:
        return prompt.new_empty(0)
    draft_row = draft.probs(prompt)[-1]
    new = gumbel_max(target.probs(prompt)[-1].double().log(), generator)
    while len(new) < max_new_tokens and not (eos is not None and eos in new.tolist()):
        drafts, rows, unread = [], [], torch.cat([prompt, new])[len(draft) :]
        for _ in range(min(k, max_new_tokens - len(new))):
            draft_row = draft.probs(unread)[-1]
            rows.append(draft_row)
            unread = gumbel_max(draft_row.double().log(), generator)
            drafts.append(int(unread))
        draft.probs(unread)
        probs = target.probs(torch.cat([new[-1:], torch.tensor(drafts)]))
        new = torch.cat(
            [new, speculative_step(probs, torch.stack(rows), torch.tensor(drafts), generator=generator)]
        )
        target.rollback(len(prompt) + len(new) - 1)
        draft.rollback(len(prompt) + len(new) - 1)
    if eos is not None and eos in new.tolist():
        new = new[: new.tolist().index(eos) + 1]
    return new[:max_new_tokens]


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"{tuple(target_probs.shape)} and {tuple(draft_probs.shape)}")
    p, q = target_probs.double(), draft_probs.double()
    return (p.where(p < q, q)).sum(-1).to(target_probs.dtype)


def expected_tokens(alpha, k):
    if not (0.0 <= alpha <= 1.0) or k < 0:
        raise ValueError(f"alpha={alpha}, k={k}")
    if alpha in (0, 1):
        return 1.0 + k * alpha
    return -math.expm1((k + 1) * math.log(alpha)) / (1 - alpha)


def best_k(alpha, cost, max_k):
    if cost < 0 or max_k < 0:
        raise ValueError(f"cost={cost}, max_k={max_k}")
    if not (0.0 <= alpha <= 1.0):
        raise ValueError(f"alpha={alpha}")
    # One more draft pays as long as it adds more than its share of the time.
    best, tokens, power = 0, 1.0, 1.0
    fastest = 1.0
    for k in range(1, max_k + 1):
        power *= alpha
        tokens += power
        if tokens / (k * cost + 1) >= fastest:
            best, fastest = k, tokens / (k * cost + 1)
    return best
