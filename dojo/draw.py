"""Strategies that draw tensors fast and shrink them to what a person can work by hand.

A tensor is filled in one of two ways. While looking for a counterexample it is mostly noise from a
seeded generator, which costs one draw whatever the size. Shrinking turns the seed to zero, and then
the values come from one short byte string that maps 0, 1, 2, 3 … to the numbers 0, 1, −1, 2 …
The length of the byte string never depends on the shape: tying the two makes shrinking poor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

PALETTE = (0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 4, -4, 5, 8, -8, 10, 0.25)
_BYTES = st.binary(max_size=48)
_SEEDS = st.integers(0, 2**16)
_WHOLE, _ROUNDED = 2**6, 2**15
"""Seeds below the first give small whole numbers and below the second noise rounded to sixteenths:
both print short and add up exactly. The others use every bit, so that rounding errors show."""

LAYOUTS = st.sampled_from(("contiguous", "transposed", "strided", "expanded"))
"""Ways to lay out the same values in memory, the ordinary one first."""


def fill(
    draw: st.DrawFn,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    layout: str = "contiguous",
) -> Tensor:
    """Draw a tensor of the given shape whose noise has standard deviation ``scale``.

    The values are exact in ``dtype``: what an oracle reads in float64 is what the subject got.
    """
    seed, data = draw(_SEEDS), draw(_BYTES)
    return laid_out(_values(tuple(shape), seed, data, scale).to(dtype), layout)


def _values(shape: tuple[int, ...], seed: int, data: bytes, scale: float) -> Tensor:
    if seed:
        generator = torch.Generator().manual_seed(seed)
        if seed < _WHOLE:
            return torch.randint(-2, 4, shape, generator=generator).double() * scale
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * 16).round() / 16 * scale if seed < _ROUNDED else noise * scale
    count = torch.Size(shape).numel()
    small = [PALETTE[b % len(PALETTE)] for b in data[:count]]
    return torch.tensor(small + [0] * (count - len(small)), dtype=torch.float64).reshape(shape) * min(
        scale, 100
    )


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout (``expanded`` needs equal slices: it repeats the first)."""
    if layout == "transposed" and x.ndim >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided" and x.ndim >= 1:
        return torch.stack([x, torch.full_like(x, 77)], dim=-1)[..., 0]
    if layout == "expanded" and x.ndim >= 1 and x.shape[0] > 0:
        return x[:1].expand_as(x)
    return x


def distinct(draw: st.DrawFn, count: int, *, low: int = 1, high: int = 6) -> list[int]:
    """``count`` sizes, all different unless shrunk, so that a mixed-up axis cannot hide.

    They are drawn one by one (each shrinks to ``low``); a repeated size is moved on while room is left.
    """
    sizes: list[int] = []
    for _ in range(count):
        size = draw(st.integers(low, high))
        while size > low and size in sizes and size < high + count:
            size += 1
        sizes.append(size)
    return sizes


def examples(*, quick: int = 5, full: int = 40) -> Callable[[Callable], Callable]:
    """How many examples a claim is tried on: in the quick verdict, and in the confirmed one.

    ``quick=0`` leaves a costly claim to the confirmed verdict. Stands above ``@given``.
    """

    def mark(claim: Callable) -> Callable:
        claim.quick_examples = quick
        return settings(max_examples=full)(claim) if hasattr(claim, "hypothesis") else claim

    return mark
