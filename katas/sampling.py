"""Sampling: from the model's logits to the next token, and on to a text.

logits are (..., vocab), of float64, float32, float16 or bfloat16 and any memory layout; every row holds at
least one finite number, the others may be −inf. Rows have nothing to do with one another.

    greedy(logits)           the token with the largest logit of each row: int64, (...)
    temperature(logits, t)   logits / t
    top_k(logits, k)         keeps the k largest logits of each row, all of them if there are fewer
    top_p(logits, p)         keeps the nucleus: the smallest set of likeliest tokens whose probabilities add
                             up to p or more; never empty, so that p = 0 keeps the likeliest
    min_p(logits, p)         keeps the tokens at least p times as probable as the likeliest
    sample(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None)
                             one token for each row: int64, (...)

- temperature and the filters return logits of the same shape and dtype. A filter leaves what it keeps bit
  for bit as it was, and puts −inf for everything else. Inputs are left alone.
- Ties: of equal largest logits greedy may take any. Where equal logits straddle the edge of a filter, it
  keeps as many as are due, whichever, or more of them, as you like.
- For half types probabilities and their sums are computed in float32. At the edge of a nucleus, and of
  min_p, what rounding in that precision explains is right.
- sample applies temperature, top_k, top_p, min_p, in this order, each to what the one before has left,
  renormalised; None leaves a filter out. It draws from the softmax of what remains. temperature=0 is greedy.
- Randomness comes from the generator alone, however you use it, and moves it on. Draws are independent, from
  row to row and from call to call.
- ValueError, with the values received: t ≤ 0; in sample, temperature < 0; k < 1; p outside [0, 1].

    top_p(log([.5, .3, .2]), 0.6)  →  [log .5, log .3, −inf]        min_p(log([.5, .3, .2]), 0.5)  →  the same
    top_k, then top_p: of [.4, .25, .2, .1, .05], top_k=3 leaves [.47, .29, .24], and top_p=0.75 the first two

Part 2.
    generate(model, prompt, max_new_tokens, *, generator, eos=None, and the options of sample)

prompt is int64, (batch, length ≥ 1), all rows of one length. model(text) takes the int64 tokens
(batch, length) and gives logits (batch, length, vocab), of which the last ones belong to the next token.
Returned are the new tokens only: int64, (batch, max_new_tokens), 0 allowed. Each is sampled given all tokens
before it.

- With eos, a row ends with the first eos that it is given (one in the prompt does not count); all that
  follows in it is eos. As soon as every row has ended, generate stops, and the result has as many columns
  as that took.
- The model runs once for each column of the result.
- ValueError, with the values received, if prompt is not of that shape or max_new_tokens < 0.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Generator, Tensor


def greedy(logits: Float[Tensor, "*batch vocab"]) -> Int[Tensor, "*batch"]:
    raise NotImplementedError


def temperature(logits: Float[Tensor, "*batch vocab"], t: float) -> Float[Tensor, "*batch vocab"]:
    raise NotImplementedError


def top_k(logits: Float[Tensor, "*batch vocab"], k: int) -> Float[Tensor, "*batch vocab"]:
    raise NotImplementedError


def top_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    raise NotImplementedError


def min_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    raise NotImplementedError


def sample(
    logits: Float[Tensor, "*batch vocab"],
    *,
    generator: Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Int[Tensor, "*batch"]:
    raise NotImplementedError


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
    raise NotImplementedError
