"""Comparing what the subject gave with what it should have given. Every tolerance comes from here.

Values are compared with a float64 oracle that was given the same, already rounded inputs. The bound
is the textbook one for a sum computed in finite precision (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, §3.1): |error| ≤ c · (steps · ε_stored + length · ε_summed) · Σ|terms|.

- ε_stored is the epsilon of the dtype that values are kept in: each intermediate written in it costs one.
- ε_summed is the epsilon that sums run in: float32 for half types, the dtype itself otherwise. A sum
  of a thousand terms run in bf16 is therefore out of bounds, and is meant to be.
- ``steps`` is the number of intermediates in the plainest way to write the thing, each of which may
  be kept in the input dtype or not: both styles are right.
- c = 4: a factor 2 for terms of second order and another for ``exp`` and ``sqrt``, which torch
  computes to 1–2 ulp and not to half an ulp.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

C = 4.0
HALF_TYPES = (torch.float16, torch.bfloat16)


class Mismatch(AssertionError):
    """Expected and got differ. Carries both, so that a failure card can show them side by side."""

    def __init__(self, message: str, *, expected: Any = None, got: Any = None, where: str | None = None):
        super().__init__(message)
        self.message, self.expected, self.got, self.where = message, expected, got, where


def epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def tolerance(
    dtype: torch.dtype, *, length: int = 1, magnitude: Tensor | float = 1.0, steps: int = 4
) -> Tensor | float:
    """The largest error that rounding explains (see the module's docstring).

    ``magnitude`` is Σ|terms|, element by element or one number for all: the size of what is added
    up, not of the result, so that cancellation is allowed for. ``length`` is how many terms are added.
    """
    summed = torch.float32 if dtype in HALF_TYPES else dtype
    unit = C * (steps * epsilon(dtype) + length * epsilon(summed))
    # Below the smallest normal number rounding is absolute, no longer relative.
    return unit * magnitude + C * torch.finfo(dtype).smallest_normal


def assert_close(
    got: Any,
    want: Tensor,
    *,
    dtype: torch.dtype,
    length: int = 1,
    magnitude: Tensor | float | None = None,
    steps: int = 4,
    name: str = "the result",
) -> None:
    """``got`` must be a tensor of ``want``'s shape and of ``dtype``, equal to ``want`` (float64) within
    ``tolerance``. ``magnitude`` defaults to |want|. NaN equals NaN, and infinity only itself."""
    assert_tensor(got, shape=want.shape, dtype=dtype, name=name)
    expected, actual = want.detach().double(), got.detach().double()
    allowed = tolerance(
        dtype, length=length, magnitude=expected.abs() if magnitude is None else magnitude, steps=steps
    )
    error = (actual - expected).abs()
    # Where infinity is due, what is allowed is infinite as well.
    good = (
        (error.isfinite() & (error <= allowed)) | (actual == expected) | (actual.isnan() & expected.isnan())
    )
    if bool(good.all()):
        return
    index = tuple((~good).nonzero()[0].tolist())
    allowed = float(torch.as_tensor(allowed).broadcast_to(error.shape)[index])
    places = f"{int((~good).sum())} of {good.numel()} places"
    off = f"off by {_short(error[index])} (allowed {allowed:.1g})"
    raise Mismatch(
        f"{name} is {off if bool(error[index].isfinite()) else _short(actual[index])} in {places}",
        expected=want,
        got=got,
        where=f"first at {list(index)}: {_apart(expected[index], actual[index])}",
    )


def assert_tensor(got: Any, *, shape: tuple[int, ...], dtype: torch.dtype, name: str = "the result") -> None:
    """``got`` must be a tensor of that shape and dtype.

    A subclass of the subject's own making may answer every comparison as it likes: it is no tensor here."""
    if type(got) not in (Tensor, Parameter):
        raise Mismatch(f"{name} is not a tensor", expected="a tensor", got=got)
    if tuple(got.shape) != tuple(shape):
        raise Mismatch(f"{name} has the wrong shape", expected=tuple(shape), got=tuple(got.shape))
    if got.dtype != dtype:
        raise Mismatch(f"{name} has the wrong dtype", expected=dtype, got=got.dtype)


def assert_equal(got: Any, want: Any, name: str = "the result") -> None:
    """Exact equality, for tokens, blocks, schedules, copies: ``got == want``, types of container aside.

    An object of the subject's own making is never equal to anything: it decides itself what ``==`` says.
    """
    if isinstance(want, Tensor):
        assert_tensor(got, shape=want.shape, dtype=want.dtype, name=name)
        if not torch.equal(got, want):
            index = tuple((got != want).nonzero()[0].tolist()) if want.numel() else ()
            where = f"first at {list(index)}: {_apart(want[index], got[index])}"
            raise Mismatch(f"{name}: not the same", expected=want, got=got, where=where)
        return
    for value in got if isinstance(got, (list, tuple)) else (got,):
        if type(value).__module__.split(".")[0] not in ("builtins", "numpy", "torch", type(want).__module__):
            raise Mismatch(f"{name} holds an object of type {type(value).__name__}", expected=want, got=got)
    if isinstance(want, (list, tuple)) and isinstance(got, (list, tuple)):
        if list(got) != list(want):
            first = next(
                (i for i, (g, w) in enumerate(zip(got, want, strict=False)) if g != w),
                min(len(got), len(want)),
            )
            raise Mismatch(
                f"{name}: not the same", expected=want, got=got, where=f"first at position {first}"
            )
    elif type(got) is bool or type(want) is bool:
        if got is not want:
            raise Mismatch(f"{name}: not the same", expected=want, got=got)
    elif not bool(got == want):
        raise Mismatch(f"{name}: not the same", expected=want, got=got)


def assert_true(holds: Any, message: str, *, expected: Any = None, got: Any = None) -> None:
    """A claim that has no single expected value; ``message`` says what does not hold."""
    # What was made from a tensor of the subject's own class is of that class, and says yes if it likes.
    if (isinstance(holds, Tensor) and type(holds) not in (Tensor, Parameter)) or not bool(holds):
        raise Mismatch(message, expected=expected, got=got)


def refuses(
    error: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object], *, because: str
) -> None:
    """``call`` must raise ``error``. ``because`` says what was wrong with the arguments."""
    due = " or ".join(e.__name__ for e in error) if isinstance(error, tuple) else error.__name__
    try:
        got = call()
    except error:
        return
    except NotImplementedError:
        raise
    except Exception as other:
        said = f"{type(other).__name__}: {other}"
        raise Mismatch(f"{because}, so {due} is due", expected=due, got=said) from other
    raise Mismatch(f"{because}, so {due} is due", expected=due, got=got)


def untouched(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """The tensors that went in must still hold what they held (``before`` holds clones)."""
    for name, was in before.items():
        if not torch.equal(was, after[name].detach()):
            got = after[name].detach().clone()
            with contextlib.suppress(RuntimeError):
                after[name].data.copy_(was)  # the card shows the inputs as they went in
            raise Mismatch(f"the input {name} was modified", expected=was, got=got)


def gradients(output: Tensor, inputs: Sequence[Tensor], upstream: Tensor | None = None) -> tuple[Tensor, ...]:
    """d(output·upstream)/d(inputs); zeros for an input that the output does not depend on.

    A result that is cut off from the graph altogether is a Mismatch that says so.
    """
    assert_true(
        type(output) in (Tensor, Parameter) and output.requires_grad,
        "the result has no gradient: it is cut off from its inputs",
    )
    # A sum rather than grad_outputs, whose check imports sympy: a second of the first verdict.
    total = output.sum() if upstream is None else (output * upstream).sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def _short(value: Tensor | float, digits: int = 4) -> str:
    number = float(value)
    return f"{number:.{digits}g}" if math.isfinite(number) else str(number)


def _apart(expected: Tensor, got: Tensor) -> str:
    """The two with as many digits as it takes to see that they differ."""
    pairs = [(_short(expected, digits), _short(got, digits)) for digits in (4, 8, 17)]
    want, have = next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])
    return f"expected {want}, got {have}"
