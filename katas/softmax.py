"""Softmax, its logarithm, and the loss made of it.

Write three functions. Each works on one dimension or more, none of them empty, on float64, float32,
float16 and bfloat16, on non-contiguous inputs, and leaves its inputs alone. The dtype and device out are
those that came in; for half types, sums run in float32. Gradients flow by autograd.

    softmax(x, dim)          exp(x_i) / Σ_j exp(x_j) along dim; same shape as x.
    log_softmax(x, dim)      its natural logarithm; same shape as x.
    cross_entropy(logits, targets, *, ignore_index=-100)
                             the mean of −log softmax(logits)[target] over the targets that are
                             not ignore_index; a scalar.

- Logits of any finite size give finite results, where the dtype holds them: softmax([1e4, 0]) is [1, 0],
  log_softmax of it [0, −1e4].
- A logit of −inf gets probability exactly 0 and log-probability −inf (its slice holds at least one finite
  logit). As a target it costs inf; as another class, or in an ignored row, it costs nothing.
- logits is (..., vocab), targets is (...) of int64, a single one too: (vocab,) and (). ignore_index may be
  any integer, a valid class too. If every target is ignored the mean is over nothing: NaN, as in PyTorch.
- ValueError, with the values received, if targets does not have the shape of logits without its last
  dimension, or if a target that is not ignored lies outside 0 … vocab − 1.
- A dim that x does not have raises IndexError or ValueError.

Example:

    softmax(tensor([[0., log 3]]), dim=1)                  →  [[0.25, 0.75]]
    cross_entropy(tensor([[0., log 3], [5., 1.]]), tensor([1, -100]))  →  −log 0.75 = 0.2877
"""

from jaxtyping import Float, Int
from torch import Tensor


def softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    raise NotImplementedError


def log_softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    raise NotImplementedError


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], *, ignore_index: int = -100
) -> Float[Tensor, ""]:
    raise NotImplementedError
