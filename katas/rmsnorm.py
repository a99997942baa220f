"""Root-mean-square normalisation (RMSNorm).

Write one function. It works on float64, float32, float16 and bfloat16, on non-contiguous inputs, and
leaves its inputs alone. Gradients flow to x and to weight by autograd.

    rmsnorm(x, weight, *, eps=1e-6)

        x       (…, dim): any number of leading dimensions, none included, and any of them may be 0
        weight  (dim,)
        returns x / √(mean(x²) + eps) · weight, the mean taken over the last dimension: each row alone

- The shape, dtype and device out are those of x. weight may have another floating dtype than x.
- For half types the squares, their mean and eps are float32: 1000² is more than float16 holds. Whether the
  normalised row is rounded before it is multiplied by weight is left open.
- eps is positive. A row of zeros gives zeros, and its gradient is finite.
- Entries may be as large as the half type holds, up to 1e15 in size; rows may be far smaller than √eps.
- ValueError, with the shapes received, if weight is not (dim,): it does not broadcast.

Example:

    rmsnorm(tensor([[3., 4.]]), tensor([1., 10.]))            →  [[0.8485, 11.3137]]    √12.5 = 3.5355
    rmsnorm(tensor([[3., 4.]]), tensor([1., 10.]), eps=12.5)  →  [[0.6, 8.0]]           √25 = 5
"""

from jaxtyping import Float
from torch import Tensor


def rmsnorm(
    x: Float[Tensor, "*batch dim"], weight: Float[Tensor, "dim"], *, eps: float = 1e-6
) -> Float[Tensor, "*batch dim"]:
    raise NotImplementedError
