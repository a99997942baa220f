r"""Rotary position embedding (RoPE): each pair of channels is turned by an angle that grows with position.

    θ_i = base^(−2i / head_dim)                               i = 0 … head_dim / 2 − 1
    cos[p, i], sin[p, i] = cos(p · θ_i), sin(p · θ_i)
    (a, b)  →  (a · cos − b · sin,  a · sin + b · cos)        the i-th pair of a token at position p

A turn by m·θ on the query and by n·θ on the key leaves in their product only the turn by (m − n)·θ:
absolute positions go in, the score depends on the distance alone. No length changes, position 0 is
the identity, and the gradient is the turn back.

Conventions: the turn is counter-clockwise (a towards b). The i-th pair is (i, i + head_dim / 2) in
the half-split layout (GPT-NeoX, Hugging Face) and (2i, 2i + 1) in the interleaved one (the paper,
Meta's Llama). They are the same rotation with the channels in another order, and the rows of W_q and
W_k decide which one a checkpoint needs. The frequency belongs to the pair: the tables serve both.

Precision: angles are formed in float64 and their cosines rounded once, so that row 100,000 is as good
as row 1 (an angle of 1e5 in float32 is itself off by up to 0.004, in bfloat16 by 256). Half types are
turned in float32 and rounded once.

Cost: six multiplications and additions a pair, one temporary of x's size or two. Checking given
positions against the table waits for the device they are on.

Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021,
arXiv:2104.09864, equations 15 (the rotation) and 34 (its elementwise form).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rope_tables(
    length: int, head_dim: int, *, base: float = 10000.0
) -> tuple[Float[Tensor, "length pairs"], Float[Tensor, "length pairs"]]:
    """Cosines and sines of the angles at positions 0 … length − 1, one column a pair, in float32, made anew.

    Raises ValueError if head_dim is not positive and even, length is negative, or base not positive.
    """
    if length < 0 or head_dim < 2 or head_dim % 2 or base <= 0:
        raise ValueError(f"no tables for length {length}, head_dim {head_dim}, base {base}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64), base**-exponents)
    return angles.cos().float(), angles.sin().float()


def apply_rope(
    x: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "length pairs"],
    sin: Float[Tensor, "length pairs"],
    positions: Int[Tensor, "*batch time"] | None = None,
    *,
    interleaved: bool = False,
) -> Float[Tensor, "batch heads time head_dim"]:
    """Turn every pair of channels of x by the angle of its token's position.

    ``positions``, (time,) or (batch, time), are rows of the tables; None stands for 0 … time − 1.
    With a cache of n tokens the next ones are at n, n + 1, …; keys are stored turned, once for all.
    Raises ValueError if the shapes do not fit or a position is no row of the tables.
    """
    if x.ndim != 4 or cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] != x.shape[3]:
        raise ValueError(f"x {tuple(x.shape)} does not fit cos {tuple(cos.shape)}, sin {tuple(sin.shape)}")
    rows = _rows(x, len(cos), positions)
    # (time, pairs) or (batch, time, pairs), and a dimension for the heads, which share their angles
    cos, sin = cos[rows].unsqueeze(-3), sin[rows].unsqueeze(-3)
    # The layouts differ in where a pair lies once head_dim is split: down a column or along a row.
    split, pair = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    a, b = _widened(x).unflatten(-1, split).unbind(pair)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=pair)
    return turned.flatten(-2).to(x.dtype)


def _rows(x: Tensor, length: int, positions: Tensor | None) -> Tensor | slice:
    """The index that picks the table rows of x's tokens, checked."""
    batch, _, time, _ = x.shape
    if positions is None:
        if time > length:
            raise ValueError(f"{time} tokens need more rows than the tables' {length}")
        return slice(time)
    if positions.shape not in ((time,), (batch, time)):
        raise ValueError(f"positions {tuple(positions.shape)} must be ({time},) or ({batch}, {time})")
    # A negative index would wrap around in silence, and one too large would fail far from here on a GPU.
    if ((positions < 0) | (positions >= length)).any():
        raise ValueError(f"positions {positions.tolist()} must be in [0, {length})")
    return positions.long()


def _widened(x: Tensor) -> Tensor:
    """Half types as float32, so that products and their sum are rounded once, at the end."""
    return x.float() if x.itemsize < 4 else x
