r"""Speculative decoding: a cheap draft model proposes, the target checks all proposals in one forward
pass, and the text is distributed as if the target had written it alone.

For drafts d_i ~ q_i and the target's rows p_i, from left to right:

    accept d_i with probability min(1, p_i(d_i) / q_i(d_i))
    at the first refusal, emit a token of the residual  max(p_i − q_i, 0) / Σ max(p_i − q_i, 0)  and stop
    if nothing is refused, emit a bonus token of p_{K+1}

Why this is exact: a token x is drafted and accepted with probability q(x) min(1, p(x)/q(x)), which is
min(p(x), q(x)). A refusal has the remaining probability 1 − Σ min(p, q) = Σ max(p − q, 0), by which the
residual is divided, so that it adds max(p(x) − q(x), 0); and min(p, q) + max(p − q, 0) = p. No rule accepts
more often: Σ min(p, q) = 1 − TV(p, q) bounds the agreement of any two variables with these laws.

Conventions: one uniform per draft and another draw for the token that follows them; half types are
computed in float32. Rows sum to 1 up to rounding: they are compared as they are, and what is drawn from is
divided by its sum. Within a round the text known so far is prompt + emitted tokens; between rounds both
caches hold a prefix of it that lacks at least its last token, which no model has read yet.

Cost: O(K·vocab) a step; a round is K draft runs and one target run, for (1 − α^{K+1}) / (1 − α) tokens
on average if each draft is accepted with probability α.

Sources: Leviathan, Kalman & Matias, Fast Inference from Transformers via Speculative Decoding, 2023,
arXiv:2211.17192 (§2.3; eq. 1; Theorem 3.8); Chen et al., Accelerating Large Language Model Decoding with
Speculative Sampling, 2023, arXiv:2302.01318 (Algorithm 2, Theorem 1).
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


@runtime_checkable
class CachedModel(Protocol):
    """A language model that remembers what it has read."""

    def __len__(self) -> int:
        """How many tokens its cache holds."""

    def probs(self, tokens: Int[Tensor, " unread"]) -> Float[Tensor, "unread vocab"]:
        """Read one or more tokens after those in the cache; row i is the law of the token after tokens[i]."""

    def rollback(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens; nothing if there are no more than that."""


def speculative_step(
    target_probs: Float[Tensor, "places vocab"],
    draft_probs: Float[Tensor, "drafts vocab"],
    draft_tokens: Int[Tensor, " drafts"],
    *,
    generator: Generator,
) -> Int[Tensor, " emitted"]:
    """The accepted drafts and one more token, 1 to K + 1 in all. ``target_probs`` has K + 1 rows.

    Raises ValueError if the shapes do not fit, a row is no distribution, a draft is no token, or a draft
    has probability 0 under its own row.
    """
    target, draft = _widened(target_probs), _widened(draft_probs)
    _check(target, draft, draft_tokens)
    wanted, offered = (x[: len(draft)].gather(1, draft_tokens[:, None])[:, 0] for x in (target, draft))
    uniform = torch.rand(len(draft), generator=generator, dtype=target.dtype, device=target.device)
    # A product of 0s and 1s stays 1 up to the first refusal: what comes after it was never up for judgement.
    accepted = int((uniform < wanted / offered).cumprod(0).sum())
    weights = target[accepted]
    if accepted < len(draft):
        residual = (weights - draft[accepted]).clamp(min=0)
        # Rows equal but for rounding may leave no residual at all: then the target's row is as good.
        weights = residual if residual.any() else weights
    return torch.cat([draft_tokens[:accepted], torch.multinomial(weights, 1, generator=generator)])


def speculative_generate(
    target: CachedModel,
    draft: CachedModel,
    prompt: Int[Tensor, " prompt"],
    max_new_tokens: int,
    *,
    k: int,
    generator: Generator,
    eos: int | None = None,
) -> Int[Tensor, " new"]:
    """The tokens that follow the prompt: ``max_new_tokens`` of them, or up to and with the first ``eos``.

    Raises ValueError if the prompt is not a row of one or more tokens, k < 1 or max_new_tokens < 0.
    """
    if prompt.ndim != 1 or len(prompt) == 0 or k < 1 or max_new_tokens < 0:
        raise ValueError(f"got prompt {tuple(prompt.shape)}, k {k} and max_new_tokens {max_new_tokens}")
    text, end = prompt, len(prompt) + max_new_tokens
    while len(text) < end:
        draft_tokens, draft_probs = _propose(draft, text, min(k, end - len(text)), generator)
        target_probs = target.probs(torch.cat([text[len(target) :], draft_tokens]))
        # The last K + 1 rows: the one that judges draft 1 belongs to the last token of the text.
        target_probs = target_probs[-len(draft_tokens) - 1 :]
        emitted = speculative_step(target_probs, draft_probs, draft_tokens, generator=generator)
        if eos is not None and eos in emitted:
            end = min(end, len(text) + emitted.tolist().index(eos) + 1)
        text = torch.cat([text, emitted])[:end]
        # Refused drafts leave both caches. The last token stays out too: nobody has read it yet.
        target.rollback(len(text) - 1)
        draft.rollback(len(text) - 1)
    return text[len(prompt) :]


def acceptance_rate(
    target_probs: Float[Tensor, "*places vocab"], draft_probs: Float[Tensor, "*places vocab"]
) -> Float[Tensor, "*places"]:
    """How often a draft is accepted, place by place: Σ min(p, q) = 1 − total variation.

    Raises ValueError if the shapes differ.
    """
    if target_probs.shape != draft_probs.shape:
        raise ValueError(f"target {tuple(target_probs.shape)} and draft {tuple(draft_probs.shape)} differ")
    shared = torch.minimum(_widened(target_probs), _widened(draft_probs))
    return shared.sum(-1).to(target_probs.dtype)


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens a round of k drafts emits on average: (1 − α^{k+1}) / (1 − α), Leviathan eq. 1.

    Raises ValueError if alpha is outside [0, 1] or k < 0.
    """
    if not 0 <= alpha <= 1 or k < 0:
        raise ValueError(f"got alpha {alpha} and k {k}")
    # A token follows i drafts if all i are accepted. Unlike the closed form, the sum has no 0/0 at α = 1.
    return float(sum(alpha**i for i in range(k + 1)))


def best_k(alpha: float, cost: float, max_k: int) -> int:
    """The number of drafts, 0 to max_k, that gives most tokens per unit of time; the smallest if several do.

    ``cost`` is the time of a draft run, in target runs: a round takes k·cost + 1 (Leviathan, Theorem 3.8).
    Raises ValueError if alpha is outside [0, 1], cost < 0 or max_k < 0.
    """
    if not cost >= 0 or max_k < 0:
        raise ValueError(f"got cost {cost} and max_k {max_k}")
    return max(range(max_k + 1), key=lambda k: expected_tokens(alpha, k) / (k * cost + 1))


def _propose(draft: CachedModel, text: Tensor, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draft tokens and the rows they were sampled from. The last draft is sampled but not read."""
    unread, tokens, rows = text[len(draft) :], [], []
    for _ in range(count):
        rows.append(draft.probs(unread)[-1])
        unread = torch.multinomial(_widened(rows[-1]), 1, generator=generator)
        tokens.append(unread)
    return torch.cat(tokens), torch.stack(rows)


def _check(target: Tensor, draft: Tensor, tokens: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (target, draft, tokens)]
    if target.ndim != 2 or shapes[1:] != [(len(target) - 1, target.shape[1]), (len(target) - 1,)]:
        raise ValueError(f"target_probs, draft_probs and draft_tokens do not fit: {shapes}")
    for name, rows in (("target_probs", target), ("draft_probs", draft)):
        # Written so that NaN fails.
        if not ((rows >= 0).all() and ((rows.sum(-1) - 1).abs() <= 0.01).all()):
            raise ValueError(f"{name} holds a row that is no distribution: {rows.tolist()}")
    if not ((tokens >= 0) & (tokens < target.shape[1])).all():
        raise ValueError(f"draft_tokens {tokens.tolist()} must be in [0, {target.shape[1]})")
    if not draft.gather(1, tokens[:, None]).all():
        raise ValueError(f"draft_tokens {tokens.tolist()} hold one that draft_probs gives probability 0")


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, float32 and float64 as they are."""
    return x.float() if x.itemsize < 4 else x
