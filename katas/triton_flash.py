"""FlashAttention as Triton kernels: forward, backward, grouped heads and a sliding window.

Write one function whose arithmetic runs in kernels of your own. It works on float32, float16 and bfloat16,
on inputs with any strides, and leaves them alone. The dtype and device out are those of q, k and v; sums
run in float32, and products of float32 inputs are not rounded to TF32.

    triton_flash(q, k, v, *, causal=False, scale=None, window=None)

        q       (batch, heads, queries, head_dim)
        k       (batch, kv_heads, keys, head_dim)
        v       (batch, kv_heads, keys, head_dim)
        returns (batch, heads, queries, head_dim): for each query, the average of the values under the
                weights softmax(scale · q·k), taken over the keys that this query may see

- scale is any float, 0 and negative ones included. None stands for 1/√head_dim.
- head_dim is 16, 32, 64 or 128. queries and keys are any numbers from 1 up, and need not divide by
  anything. batch may be 0.
- causal hides the future, and is aligned to the last key: the last query sees every key, the one before
  it every key but the last, and so on. A query that may see no key gives zeros, and zero gradients.
- Grouped heads (part 3): heads is a multiple of kv_heads, and head h of q uses head h // (heads / kv_heads)
  of k and v. Parts 1 and 2 have as many heads of k and v as of q.
- window (part 3) is an integer from 1 up, and needs causal: of the keys that causal leaves, a query sees the
  last window, its own included. A window longer than the sequence hides nothing.
- What a key and its value hold, finite but of any size, has no effect on a query that may not see it. Values
  that lie 256 or more keys away from all that a query may see are not even read for it: not a NaN there
  reaches it.
- Scores of up to 1e6 in size, where the dtype holds them, give finite results.
- Gradients flow to q, k and v by autograd. Between forward and backward nothing is kept beside q, k, v, the
  result, and at most two numbers for each query. No tensor made outside the kernels, forward or backward,
  has more than four times the elements of the largest of q, k, v. Gradients of gradients are not asked for.
- ValueError, with what was received, if the shapes do not fit, for another head_dim or dtype, or for a
  window below 1 or without causal.

The same kernels run on a GPU and, with TRITON_INTERPRET=1 in the environment before Triton is imported, on
Triton's interpreter. The judge does so where there is no GPU; bfloat16, which the interpreter cannot
multiply, is then left out. Blocks of 16 are the smallest that tl.dot takes, and the fastest there. On a GPU
beware of TF32: it is tl.dot's default for float32, and Triton also makes such a dot of
tl.sum(a[:, :, None] * b[None, :, :], axis=1).

Example, with batch and heads 1, head_dim 16 of which only the first entry is shown (the others are 0):

    q = [[4], [0]]    k = [[1], [0]]    v = [[0], [1]]

    triton_flash(q, k, v)               →  [[0.2689], [0.5]]      scores 1 and 0: 0.2689 = 1 / (1 + e)
    triton_flash(q, k, v, causal=True)  →  [[0], [0.5]]
    triton_flash(q, k, v, causal=True, window=1)  →  [[0], [1]]
"""

from jaxtyping import Float
from torch import Tensor


def triton_flash(
    q: Float[Tensor, "batch heads queries head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    raise NotImplementedError
