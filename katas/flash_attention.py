"""FlashAttention: exact attention in tiles, forward and backward, that never holds the matrix of scores.

Write one function. It works on float64, float32, float16 and bfloat16, on non-contiguous inputs, and
leaves its inputs alone. The dtype and device out are those of q, k and v. For half types, sums of products and
of exponentials run in float32, within a tile and over all of them, in the result and in the gradients; what
is no running sum may be of the half type or wider, but the log-sum-exp must not be rounded to it. All
arithmetic on q, k and v is done by torch operations.

    flash_attention(q, k, v, *, causal=False, block_q, block_k)

        q       (batch, heads, queries, head_dim)
        k       (batch, heads, keys, head_dim)
        v       (batch, heads, keys, value_dim)
        returns (batch, heads, queries, value_dim): for each query, the average of the values under the
                weights softmax(q·k / √head_dim), taken over the keys that this query may see

- Queries are taken block_q at a time and keys block_k at a time; a tile is one such block of queries
  against one such block of keys. Both sizes are any integers from 1 up: they need not divide the
  sequence, which may be shorter than a block. They do not change the result, rounding aside.
- causal hides the future, and is aligned to the last key: the last query sees every key, the one before
  it every key but the last, and so on. A query that may see no key gives zeros, and zero gradients. A key and
  its value have no effect on a query that may not see them, however large they are, as long as neither q·k
  nor the product of v with the gradient of the result overflows in the dtype.
- Scores of up to 1e6 in size, where the dtype holds them, give finite results.
- batch may be 0. Every other size is at least 1.
- ValueError, with what was received, if q, k and v differ in batch or heads, q and k in head_dim, or k
  and v in keys, and for a block size below 1.

What is measured besides, for sequences of many blocks:

- No tensor made on the way, forward or backward, has more than four times the elements of the largest of
  q, k, v, the result and one tile for all batch entries and heads (batch · heads · block_q · block_k);
  and all that are alive at once hold less than half of queries · keys.
- The tiles are those that the block sizes ask for: one tile for everything takes torch fewer operations than
  many small ones, forward and backward.
- A tile in which no query may see any key costs no products and no exponentials, forward or backward.
- Between forward and backward, nothing is kept beside q, k, v, the result, and at most two numbers for
  each query. Gradients of gradients are not asked for.

Example, with batch and heads 1:

    q = [[1, 0], [0, 0]]    k = [[1, 0], [0, 0]]    v = [[0], [1]]

    flash_attention(q, k, v, block_q=1, block_k=1)               →  [[0.3302], [0.5]]
    flash_attention(q, k, v, causal=True, block_q=2, block_k=8)  →  [[0], [0.5]]

The scores are 1/√2 and 0, and 0.3302 = 1 / (1 + e^(1/√2)).
"""

from jaxtyping import Float
from torch import Tensor


def flash_attention(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch heads keys head_dim"],
    v: Float[Tensor, "batch heads keys value_dim"],
    *,
    causal: bool = False,
    block_q: int,
    block_k: int,
) -> Float[Tensor, "batch heads queries value_dim"]:
    raise NotImplementedError
