"""Writes a failing claim down: the inputs, what was expected, what came, and the person's own line."""

from __future__ import annotations

import dataclasses
import enum
import linecache
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dojo.close import Mismatch
from dojo.judge.claims import Claim, Failure, LeftEarly
from dojo.judge.subject import own_line
from dojo.verdict import Card

MOST_ELEMENTS = 48
MOST_CHARACTERS = 400


def card(claim: Claim, failure: Failure, path: Path, *, flaky: bool = False) -> Card:
    """The failure card of a claim."""
    error = failure.error
    paragraphs = [" ".join(p.split()) for p in (claim.run.__doc__ or "").strip().split("\n\n")]
    why = " ".join(paragraphs[1:])
    written = Card(claim.name, claim.sentence, why, _inputs(failure.inputs), message(error), flaky=flaky)
    if isinstance(error, Mismatch):
        if error.expected is not None:
            written.expected = describe(error.expected)
        if error.got is not None or error.expected is not None:
            written.got = describe(error.got)
        written.where = error.where or ""
    raised = error if not isinstance(error, Mismatch) else error.__cause__
    if raised is not None:
        written.line = own_line(raised, path)
        written.text = linecache.getline(str(path), written.line).strip() if written.line else ""
    return written


def message(error: BaseException) -> str:
    """What went wrong, in a line."""
    if isinstance(error, (Mismatch, LeftEarly)):
        return str(error)
    if type(error) is AssertionError and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:MOST_CHARACTERS]


def _inputs(drawn: dict[str, Any]) -> dict[str, str]:
    """The drawn values by name; dataclasses, alone or in a tuple, stand for their fields."""
    named: dict[str, str] = {}
    for name, value in drawn.items():
        several = isinstance(value, tuple) and any(_is_case(v) for v in value)
        for at, one in enumerate(value if several else (value,)):
            if _is_case(one):
                named |= {f.name: describe(getattr(one, f.name)) for f in dataclasses.fields(one) if f.repr}
            else:
                named[f"{name}[{at}]" if several else name] = describe(one)
    return named


def _is_case(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def describe(value: Any) -> str:
    """A value as short as it can be written without losing what matters."""
    text = _written(value)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _written(value: Any) -> str:
    if isinstance(value, Tensor):
        return _tensor(value.detach().cpu())
    if isinstance(value, np.ndarray):
        return _tensor(torch.from_numpy(value)) if value.dtype.kind in "iufb" else repr(value)
    if isinstance(value, torch.Generator):
        return f"generator with seed {value.initial_seed()}"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_written(k)}: {_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, float, list, tuple)) for v in value):
        inner = ", ".join(_written(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(
            f"{f.name}={_written(getattr(value, f.name))}" for f in dataclasses.fields(value) if f.repr
        )
        return f"{type(value).__name__}({inner})"
    return repr(value)


def _tensor(x: Tensor) -> str:
    kind = str(x.dtype).removeprefix("torch.")
    if x.numel() > MOST_ELEMENTS:
        few = ", ".join(_number(v) for v in x.flatten()[:6].tolist())
        return f"shape {tuple(x.shape)} {kind}: {few}, …"
    values = _nested(x.tolist())
    unsaid = x.numel() == 0 or x.ndim == 0
    shape = f" of shape {tuple(x.shape)}" if unsaid and x.ndim else ""
    return f"{values}{shape} {kind}"


def _nested(values: Any) -> str:
    return "[" + ", ".join(_nested(v) for v in values) + "]" if isinstance(values, list) else _number(values)


def _number(value: float | complex | bool) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return str(value)
