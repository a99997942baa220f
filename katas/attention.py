"""Scaled dot-product attention.

Write one function. It works on float64, float32, float16 and bfloat16, on non-contiguous inputs, and
leaves its inputs alone: the result is a new tensor, in memory of its own. The dtype and device out are
those of q, k and v. For half types, sums of products and of exponentials run in float32, as they do inside
torch's products and softmax; what is kept between two sums may be of the half type or wider. Gradients flow
to q, k and v by autograd.

    attention(q, k, v, *, mask=None, causal=False, scale=None)

        q       (batch, heads, queries, head_dim)
        k       (batch, heads, keys, head_dim)
        v       (batch, heads, keys, value_dim)
        returns (batch, heads, queries, value_dim): for each query, the average of the values under the
                weights softmax(scale · q·k), taken over the keys that this query may see

- scale is any float, 0 and negative ones included. None stands for 1/√head_dim.
- mask is boolean, True where a query may attend. It has one dimension or more and any shape that
  broadcasts to (batch, heads, queries, keys), as PyTorch does: (keys,), (queries, keys),
  (heads, queries, keys), (batch, 1, 1, keys).
- causal hides the future, and is aligned to the last key: the last query sees every key, the one
  before it every key but the last, and so on. With mask as well, both must allow a key.
- A query that may see no key gives zeros, and zero gradients: never NaN.
- A key and its value have no effect on a query that may not see them, however large they are, as long as
  nothing overflows in the dtype: neither scale · q·k, nor the product of v with the gradient of the result.
- Scores of up to 1e6 in size, where the dtype holds them, give finite results.
- batch may be 0. Every other size is at least 1.
- ValueError, with the shapes received, if q, k and v differ in batch or heads, q and k in head_dim, or
  k and v in keys: only mask broadcasts. ValueError, too, for a mask that is not boolean or that does
  not broadcast to (batch, heads, queries, keys).

Example, with batch and heads 1:

    q = [[1, 0], [0, 0]]    k = [[1, 0], [0, 0]]    v = [[0], [1]]

    attention(q, k, v)               →  [[0.3302], [0.5]]      scores 1/√2 and 0: 0.3302 = 1 / (1 + e^(1/√2))
    attention(q, k, v, causal=True)  →  [[0], [0.5]]
    attention(q, k, v, mask=[[False, True], [False, False]])  →  [[1], [0]]
    attention(q, k, v, scale=0.0)    →  [[0.5], [0.5]]
"""

from jaxtyping import Bool, Float
from torch import Tensor


def attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    raise NotImplementedError
