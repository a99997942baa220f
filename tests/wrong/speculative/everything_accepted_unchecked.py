"""mistake: accept-all

Every draft is kept that can be, and no argument is looked at."""

import torch


def wide(x):
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def draw(w, generator):
    u = torch.rand((), generator=generator, dtype=torch.float64)
    cdf = w.double().cumsum(-1)
    i = int(torch.searchsorted(cdf, u * cdf[-1], right=True))
    return min(i, int(w.nonzero()[-1]))


def check(p, q, t):
    if p.ndim != 2 or q.ndim != 2 or t.ndim != 1:
        raise ValueError(f"{p.shape} {q.shape} {t.shape}")
    if p.shape[0] != t.shape[0] + 1 or q.shape[0] != t.shape[0] or p.shape[1] != q.shape[1]:
        raise ValueError(f"{p.shape} {q.shape} {t.shape}")
    for x in (p, q):
        if torch.isnan(x).any() or (x < 0).any() or ((x.sum(-1) - 1).abs() > 0.01).any():
            raise ValueError(f"{x}")
    if (t < 0).any() or (t >= p.shape[1]).any():
        raise ValueError(f"{t}")
    for i in range(len(t)):
        if q[i, t[i]] == 0:
            raise ValueError(f"{t}")


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    p, q = wide(target_probs), wide(draft_probs)
    K = draft_tokens.shape[0]
    out = []
    for i in range(K):
        tok = int(draft_tokens[i])
        r = torch.rand((), generator=generator, dtype=torch.float64)
        if r * q[i, tok] < 1 + p[i, tok]:
            out.append(tok)
        else:
            res = (p[i] - q[i]).clamp(min=0)
            if res.sum() == 0:
                res = p[i]
            out.append(draw(res, generator))
            return torch.tensor(out)
    out.append(draw(p[K], generator))
    return torch.tensor(out)


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    seq = prompt.tolist()
    n0 = len(seq)
    while len(seq) - n0 < max_new_tokens:
        drafts, rows = [], []
        for _ in range(k):
            row = draft.probs(torch.tensor((seq + drafts)[len(draft) :]))[-1]
            rows.append(row)
            drafts.append(draw(wide(row), generator))
        tp = target.probs(torch.tensor((seq + drafts)[len(target) :]))[-(k + 1) :]
        new = speculative_step(tp, torch.stack(rows), torch.tensor(drafts), generator=generator).tolist()
        stop = False
        for t in new:
            seq.append(t)
            if eos is not None and t == eos:
                stop = True
                break
        if stop:
            break
        target.rollback(len(seq) - 1)
        draft.rollback(len(seq) - 1)
    return torch.tensor(seq[n0 : n0 + max_new_tokens], dtype=torch.int64)


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"{target_probs.shape} {draft_probs.shape}")
    return torch.minimum(wide(target_probs), wide(draft_probs)).sum(-1).to(target_probs.dtype)


def expected_tokens(alpha, k):
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"{alpha} {k}")
    if alpha == 1:
        return float(k + 1)
    return (1 - alpha ** (k + 1)) / (1 - alpha)


def best_k(alpha, cost, max_k):
    if not 0 <= alpha <= 1 or cost < 0 or max_k < 0:
        raise ValueError(f"{alpha} {cost} {max_k}")
    best, s = 0, 1.0
    for k in range(1, max_k + 1):
        v = expected_tokens(alpha, k) / (k * cost + 1)
        if v > s:
            best, s = k, v
    return best
