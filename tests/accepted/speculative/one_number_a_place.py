"""NumPy in double; what a refusal leaves of its uniform number, scaled up, draws the replacement."""

import numpy as np
import torch


def _np(x):
    return x.detach().to(torch.float64).cpu().numpy()


def _inv(weights, u):
    idx = np.flatnonzero(weights > 0)
    cdf = np.cumsum(weights[idx])
    j = int(np.searchsorted(cdf, u * cdf[-1], side="right"))
    return int(idx[min(j, len(idx) - 1)])


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    K = draft_probs.shape[0]
    if (
        target_probs.ndim != 2
        or draft_probs.ndim != 2
        or draft_tokens.shape != (K,)
        or target_probs.shape != (K + 1, draft_probs.shape[1])
    ):
        raise ValueError(
            f"{tuple(target_probs.shape)}, {tuple(draft_probs.shape)}, {tuple(draft_tokens.shape)}"
        )
    P, Q, d = _np(target_probs), _np(draft_probs), draft_tokens.cpu().numpy()
    both = np.concatenate([P, Q])
    if np.isnan(both).any() or (both < 0).any() or (np.abs(both.sum(1) - 1) > 0.01 + 1e-9).any():
        raise ValueError(f"not distributions: {both}")
    if (d < 0).any() or (d >= P.shape[1]).any() or (Q[np.arange(K), d] == 0).any():
        raise ValueError(f"bad drafts {d}")
    u = torch.rand(K + 1, generator=generator, dtype=torch.float64).numpy()
    for i in range(K):
        r = min(P[i, d[i]] / Q[i, d[i]], 1.0)
        if u[i] >= r:
            res = np.maximum(P[i] - Q[i], 0)
            if res.sum() <= 0:
                res = P[i]
            x = _inv(res, (u[i] - r) / (1 - r))
            return torch.cat([draft_tokens[:i], torch.tensor([x])])
    return torch.cat([draft_tokens, torch.tensor([_inv(P[K], u[K])])])


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if prompt.ndim != 1 or prompt.shape[0] == 0:
        raise ValueError(f"prompt of shape {tuple(prompt.shape)}")
    if k < 1 or max_new_tokens < 0:
        raise ValueError(f"k={k} max_new_tokens={max_new_tokens}")
    text = list(prompt.tolist())
    goal = len(text) + max_new_tokens
    while len(text) < goal:
        n = min(k, goal - len(text) - 1)
        spec = list(text)
        q = []
        for _ in range(n):
            row = draft.probs(torch.as_tensor(spec[len(draft) :]))[-1]
            q.append(row)
            spec.append(_inv(_np(row), torch.rand(1, generator=generator, dtype=torch.float64).item()))
        rows = target.probs(torch.as_tensor(spec[len(target) :]))
        rows = rows[rows.shape[0] - n - 1 :]
        out = speculative_step(
            rows,
            torch.stack(q) if n else rows.new_zeros(0, rows.shape[1]),
            torch.as_tensor(spec[len(text) :], dtype=torch.int64),
            generator=generator,
        ).tolist()
        text = text + out
        if eos in out:
            goal = min(goal, len(text) - len(out) + out.index(eos) + 1)
        del text[goal:]
        for m in (target, draft):
            m.rollback(len(text) - 1)
    return torch.as_tensor(text[prompt.shape[0] :], dtype=torch.int64)


def acceptance_rate(target_probs, draft_probs):
    if tuple(target_probs.shape) != tuple(draft_probs.shape):
        raise ValueError(f"{tuple(target_probs.shape)} {tuple(draft_probs.shape)}")
    return torch.from_numpy(np.asarray(np.minimum(_np(target_probs), _np(draft_probs)).sum(-1))).to(
        target_probs.dtype
    )


def expected_tokens(alpha, k):
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"{alpha} {k}")
    return float(np.sum(np.power(float(alpha), np.arange(k + 1))))


def best_k(alpha, cost, max_k):
    if not 0 <= alpha <= 1 or cost < 0 or max_k < 0:
        raise ValueError(f"{alpha} {cost} {max_k}")
    ks = np.arange(max_k + 1)
    return int(np.argmax(np.cumsum(float(alpha) ** ks) / (1 + cost * ks)))
