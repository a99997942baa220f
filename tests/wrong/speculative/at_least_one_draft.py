"""mistake: always-speculates

NumPy within; best_k starts at 1."""

import numpy as np
import torch


def speculative_step(target_probs, draft_probs, draft_tokens, *, generator):
    shapes = target_probs.shape, draft_probs.shape, draft_tokens.shape
    if (
        [len(s) for s in shapes] != [2, 2, 1]
        or len({shapes[0][0] - 1, shapes[1][0], shapes[2][0]}) > 1
        or shapes[0][1] != shapes[1][1]
    ):
        raise ValueError(f"shapes {shapes}")
    p, q = target_probs.double().numpy(), draft_probs.double().numpy()
    tokens = draft_tokens.tolist()
    for rows in (p, q):
        for row in rows:
            if not (min(row) >= 0 and abs(sum(row) - 1) <= 0.01):
                raise ValueError(f"row {row}")
    for i, t in enumerate(tokens):
        if not 0 <= t < shapes[0][1] or q[i][t] == 0:
            raise ValueError(f"draft {t} at {i}")
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    out = []
    for i, t in enumerate(tokens):
        if rng.random() * q[i][t] < p[i][t]:
            out.append(t)
            continue
        rest = np.maximum(p[i] - q[i], 0)
        if rest.sum() == 0:
            rest = p[i]
        out.append(int(rng.choice(len(rest), p=rest / rest.sum())))
        break
    else:
        out.append(int(rng.choice(len(p[-1]), p=p[-1] / p[-1].sum())))
    return torch.tensor(out, dtype=torch.int64)


def speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None):
    if prompt.dim() != 1 or prompt.numel() < 1 or k < 1 or max_new_tokens < 0:
        raise ValueError(f"{prompt}, {k}, {max_new_tokens}")
    text, new = prompt.tolist(), []
    if max_new_tokens and len(text) > 1:
        target.probs(prompt[:-1])
        draft.probs(prompt[:-1])
    done = max_new_tokens == 0
    while not done:
        known = text + new
        drafts, rows = [], []
        for _ in range(k):
            rows.append(draft.probs(torch.tensor((known + drafts)[len(draft) :]))[-1])
            drafts.append(int(torch.multinomial(rows[-1].float(), 1, generator=generator)))
        probs = target.probs(torch.tensor(known[-1:] + drafts))
        got = speculative_step(probs, torch.stack(rows), torch.tensor(drafts), generator=generator).tolist()
        for token in got:
            new.append(token)
            if token == eos or len(new) == max_new_tokens:
                done = True
                break
        target.rollback(len(known) + len(got) - 1)
        draft.rollback(len(known) + len(got) - 1)
    return torch.tensor(new, dtype=torch.int64)


def acceptance_rate(target_probs, draft_probs):
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"{target_probs.shape} {draft_probs.shape}")
    return 1 - (target_probs - draft_probs).abs().sum(-1) / 2


def expected_tokens(alpha, k):
    if alpha < 0 or alpha > 1 or k < 0:
        raise ValueError(f"{alpha} {k}")
    return k + 1 if alpha == 1 else (1 - alpha ** (k + 1)) / (1 - alpha)


def best_k(alpha, cost, max_k):
    if max_k < 0 or cost < 0:
        raise ValueError(f"{max_k} {cost}")
    first = min(1, max_k)
    expected_tokens(alpha, 0)
    speeds = np.array([expected_tokens(alpha, k) / (k * cost + 1) for k in range(first, max_k + 1)])
    return first + int(speeds.argmax())
