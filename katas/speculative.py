"""Speculative decoding: a small model drafts, the target checks all drafts at once, the text is the target's.

Part 1.
    speculative_step(target_probs, draft_probs, draft_tokens, *, generator)

judges K drafted tokens (K may be 0). Draft i was sampled from draft_probs[i]; target_probs[i] is what the
target gives for the same place, and target_probs[K] what it gives for the place after the last draft.
Returned is an int64 row of 1 to K + 1 tokens: drafts from the left, as long as they are accepted, and then
exactly one more token, in place of the first draft refused or, if none was, after the last.

- The rule is that of speculative sampling (Leviathan et al. 2023, Chen et al. 2023): every token emitted is
  distributed as its target row, and no rule would accept more drafts. What is drawn for one place is
  independent of what is drawn for another, within a call and from call to call.
- A token to which the target gives probability 0 is never emitted.
- All randomness comes from generator: equal states of it give equal tokens, and no other random state is
  read or moved. In which order and how much you draw is yours.
- target_probs is (K + 1, vocab), draft_probs (K, vocab), both of one floating dtype; draft_tokens is (K,),
  int64. Inputs are left alone. Rows are not rounded to less than came in, float64 not to float32 (uniform
  numbers may be float32); for half types, sums run in float32.
- Rows may sum to 1 only up to rounding (±0.01), and are drawn from as if divided by their sum. Whether they
  are divided before they are compared, here and in part 3, is yours. If rounding leaves nothing to draw a
  replacement from, it is drawn from the target's row. A difference, however small, is not nothing.
- ValueError, with the values received, if shapes do not fit; if a row holds a negative number or NaN, or
  sums to something else; if a draft is no token, or has probability 0 in its own row.

    speculative_step([[0., 1], [1, 0]], [[.5, .5]], [1])  →  [1, 0]      accepted, and a bonus
    speculative_step([[0., 1], [1, 0]], [[.5, .5]], [0])  →  [1]         refused, and replaced

Part 2.
    speculative_generate(target, draft, prompt, max_new_tokens, *, k, generator, eos=None)

continues prompt, an int64 row of one or more tokens, by exactly max_new_tokens tokens (0 allowed), or
fewer if eos comes: the first eos is the last token. Returned are the new tokens only. The models come with
empty caches (see CachedModel), and share a vocabulary.

- The new tokens are distributed as if sampled from the target one by one.
- A round samples k drafts from the draft model, one run for each, has the target judge them in one run, and
  applies speculative_step; there are fewer drafts only where the text ends before more could be of use.
  Besides the rounds each model may run once, to read the prompt.
- No model reads the same token at the same place twice. What a model reads follows only the text so far
  and drafts of the present round: refused drafts leave both caches.
- ValueError, with the values received, if prompt is empty or no row, k < 1, or max_new_tokens < 0.

Part 3. Choose k. Suppose every draft is accepted with probability alpha, independently.
    acceptance_rate(target_probs, draft_probs)   (…, vocab) twice → (…), of the rows' dtype: the probability
                                                 with which a draft sampled from the draft row is accepted,
                                                 as precise as in part 1; ValueError if the shapes differ.
    expected_tokens(alpha, k)                    how many tokens a step with k drafts emits on average.
    best_k(alpha, cost, max_k)                   the k in 0 … max_k with most tokens per unit of time, if a
                                                 target run takes 1 and a draft run cost; the smallest of
                                                 equals. 0 means: do not speculate.
ValueError, with the values received, if alpha is outside [0, 1] or k, max_k or cost is negative.

    expected_tokens(0.5, 2)  →  1.75          best_k(0.5, 0.125, 8)  →  2          best_k(0.5, 0.75, 8)  →  0
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Generator, Tensor


@runtime_checkable
class CachedModel(Protocol):
    """Given, not to be written: a language model that remembers what it has read."""

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
    raise NotImplementedError


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
    raise NotImplementedError


def acceptance_rate(
    target_probs: Float[Tensor, "*places vocab"], draft_probs: Float[Tensor, "*places vocab"]
) -> Float[Tensor, "*places"]:
    raise NotImplementedError


def expected_tokens(alpha: float, k: int) -> float:
    raise NotImplementedError


def best_k(alpha: float, cost: float, max_k: int) -> int:
    raise NotImplementedError
