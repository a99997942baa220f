"""Rotary position embedding (RoPE), in both channel layouts and with the positions of a cache.

    rope_tables(length, head_dim, *, base=10000.0)
        cos and sin, each float32 of shape (length, head_dim / 2): at row p and column i the cosine and
        the sine of p · θ_i, where θ_i = base^(−2i / head_dim), i = 0 … head_dim / 2 − 1. length may be 0.
        Every call makes tables of its own: what is written into them does not show in the next ones.

    apply_rope(x, cos, sin, positions=None, *, interleaved=False)
        x with each of its pairs of channels rotated: the pair i of a token at position p, (a, b), becomes
            (a · cos[p, i] − b · sin[p, i],  a · sin[p, i] + b · cos[p, i])
        in the same two channels. Pair i is made of the channels
            i and i + head_dim / 2   if interleaved is False (half-split)
            2i and 2i + 1            if interleaved is True
        x is (batch, heads, time, head_dim), none of them 0, and so is the result. All heads share the
        angles.
        positions holds the table row of each token: int32 or int64, (time,) for all sequences or
        (batch, time), in any order, with repetitions. None stands for 0 … time − 1.
        The tables may have more rows than x has tokens (fewer, too, if positions stay within).

- x may be float64, float32, float16 or bfloat16; the dtype and device out are x's, right to the rounding
  of x's dtype (float64 is not cut down to float32).
- The angles p · θ_i are formed in float32 or better: the tables must hold at position 100,000, too.
- Inputs may be non-contiguous and are left alone. The tables given, float32, are the ones used, whatever
  made them: any angles, and stretched ones too, where cos² + sin² is not 1. Gradients flow to x by autograd.
- ValueError, with the values received, if
    head_dim is not positive and even, length is negative, or base is not positive;
    cos and sin differ in shape, or do not have head_dim / 2 columns for the head_dim of x;
    there are no positions and time is more than the rows of the tables;
    positions have another shape, or one of them is not in 0 … length − 1.

Example:

    cos, sin = rope_tables(2, 4, base=100.)    →  angles [[0, 0], [1, 0.1]]
    apply_rope(tensor([[[[1., 0., 0., 2.]]]]), cos, sin, tensor([1]))
        →  [cos 1, −2 sin 0.1, sin 1, 2 cos 0.1] = [0.5403, −0.1997, 0.8415, 1.9900]
    the same with interleaved=True
        →  [cos 1, sin 1, −2 sin 0.1, 2 cos 0.1] = [0.5403, 0.8415, −0.1997, 1.9900]
"""

from jaxtyping import Float, Int
from torch import Tensor


def rope_tables(
    length: int, head_dim: int, *, base: float = 10000.0
) -> tuple[Float[Tensor, "length pairs"], Float[Tensor, "length pairs"]]:
    raise NotImplementedError


def apply_rope(
    x: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "length pairs"],
    sin: Float[Tensor, "length pairs"],
    positions: Int[Tensor, "*batch time"] | None = None,
    *,
    interleaved: bool = False,
) -> Float[Tensor, "batch heads time head_dim"]:
    raise NotImplementedError
