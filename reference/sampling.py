r"""Sampling the next token: temperature, top-k, top-p (nucleus), min-p, and the loop that writes a text.

    temperature    z_i / T                        T → 0 is greedy, T → ∞ uniform
    top-k          keep the k largest logits
    top-p          keep the smallest set of likeliest tokens with Σ p_i ≥ p
    min-p          keep the tokens with p_i ≥ p · max_j p_j

Each filter puts −inf where a token is out, and leaves the others as they are: softmax then gives the
removed exactly 0 and shares the rest out again, so that filters can follow one another.

Conventions: the order is temperature, top-k, top-p, min-p, each seeing what the one before has left, as in
Hugging Face's generate. Filters cut at a value, so that equal logits stay or go together: all that equal
the last one due are kept. Half types are computed in float32.

Top-p needs the likeliest tokens in order, but seldom many of them: the first 1,024 by topk hold the nucleus of
any peaked distribution. Where they do not, all tokens are thrown into bins by how far they lie below the
likeliest; the mass of the bins tells in which of them the sum reaches p, and only that one is sorted. Both cost
O(V), while a sort of all tokens would be O(V log V).

Sources: Fan, Lewis & Dauphin, Hierarchical Neural Story Generation, 2018, arXiv:1805.04833 (top-k);
Holtzman et al., The Curious Case of Neural Text Degeneration, 2020, arXiv:1904.09751 (top-p, §3.1);
Nguyen et al., Turning Up the Heat: Min-p Sampling, 2024, arXiv:2407.01082 (min-p, Algorithm 1).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

HEAD = 1024
BINS, BINS_A_NAT = 4096, 256


def greedy(logits: Float[Tensor, "*batch vocab"]) -> Int[Tensor, "*batch"]:
    """The likeliest token of each row; of several, any."""
    return logits.argmax(-1)


def temperature(logits: Float[Tensor, "*batch vocab"], t: float) -> Float[Tensor, "*batch vocab"]:
    """Logits over ``t``. Raises ValueError unless t > 0."""
    if not t > 0:
        raise ValueError(f"got temperature {t}, which must be positive")
    return logits / t


def top_k(logits: Float[Tensor, "*batch vocab"], k: int) -> Float[Tensor, "*batch vocab"]:
    """The k largest logits of each row, and all that equal the least of them. Raises ValueError if k < 1."""
    if k < 1:
        raise ValueError(f"got k {k}, which must be at least 1")
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    """The smallest set of likeliest tokens whose mass reaches p: always the likeliest, and all that equal
    the least of them. Raises ValueError if p is outside [0, 1]."""
    _check_share(p)
    wide = _widened(logits)
    total = wide.logsumexp(-1, keepdim=True)
    ranked = wide.topk(min(HEAD, wide.shape[-1])).values
    mass = (ranked - total).exp().cumsum(-1)
    if (mass[..., -1] < p).any():
        ranked, mass = _around_the_edge(wide, total, p)
    # The least that is kept is the first whose mass reaches p; rounding may leave the whole sum below 1.
    place = (mass < p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
    return torch.where(wide < ranked.gather(-1, place), -math.inf, logits)


def min_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    """The tokens at least p times as likely as the likeliest. Raises ValueError if p is outside [0, 1]."""
    _check_share(p)
    wide = _widened(logits)
    # In logits, a ratio is a difference. Nothing is below −inf, so that p = 0 keeps all.
    least = wide.amax(-1, keepdim=True) + (math.log(p) if p else -math.inf)
    return logits.masked_fill(wide < least, -math.inf)


def sample(
    logits: Float[Tensor, "*batch vocab"],
    *,
    generator: Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Int[Tensor, "*batch"]:
    """A token for each row, drawn after temperature, top-k, top-p and min-p, in this order. A temperature
    of 0 is greedy. Raises ValueError where a filter would."""
    if temperature == 0:
        return greedy(logits)
    weights = _filtered(_widened(logits), temperature, top_k, top_p, min_p).softmax(-1)
    drawn = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])


def generate(
    model: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch length vocab"]],
    prompt: Int[Tensor, "batch length"],
    max_new_tokens: int,
    *,
    generator: Generator,
    eos: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Int[Tensor, "batch new"]:
    """The tokens that follow each prompt: ``max_new_tokens`` of them, or fewer once every row has had its
    first ``eos``, which fills the rest of its row.

    Raises ValueError if the prompt is not (batch, length ≥ 1) or max_new_tokens < 0.
    """
    if prompt.ndim != 2 or prompt.shape[1] == 0 or max_new_tokens < 0:
        raise ValueError(f"got prompt {tuple(prompt.shape)} and max_new_tokens {max_new_tokens}")
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    text, ended = prompt, torch.zeros_like(prompt[:, 0], dtype=torch.bool)
    for _ in range(max_new_tokens):
        if ended.all():
            break
        token = sample(model(text)[:, -1], generator=generator, **options)
        if eos is not None:
            token = token.masked_fill(ended, eos)
            ended = token == eos
        text = torch.cat([text, token[:, None]], dim=1)
    return text[:, prompt.shape[1] :]


def _filtered(logits: Tensor, t: float, k: int | None, p: float | None, share: float | None) -> Tensor:
    logits = temperature(logits, t)
    logits = logits if k is None else top_k(logits, k)
    logits = logits if p is None else top_p(logits, p)
    return logits if share is None else min_p(logits, share)


def _around_the_edge(logits: Tensor, total: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The logits in which the mass of each row reaches p, from the largest down, and the mass up to each."""
    chances = (logits - total).exp()
    # Bins from the likeliest down; the last takes all that are further away.
    bins = ((logits.amax(-1, keepdim=True) - logits) * BINS_A_NAT).clamp_(max=BINS - 1).long()
    each = chances.new_zeros(*logits.shape[:-1], BINS).scatter_add(-1, bins, chances)
    mass = each.cumsum(-1)
    # A share of this very sum, which rounding may leave off 1, is reached in a bin that has tokens.
    edge = (mass < p * mass[..., -1:]).sum(-1, keepdim=True)
    inside = bins == edge
    count = inside.sum(-1, keepdim=True)
    ranked = torch.where(inside, logits, -math.inf).topk(int(count.max())).values
    mass = (mass - each).gather(-1, edge) + (ranked - total).exp().cumsum(-1)
    # Rows with fewer tokens in their bin repeat the last of them.
    return ranked.maximum(ranked.gather(-1, count - 1)), mass


def _check_share(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"got p {p}, which must be in [0, 1]")


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, whose sums and ratios would lose tokens otherwise."""
    return x.float() if x.itemsize < 4 else x
