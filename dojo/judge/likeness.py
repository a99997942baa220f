"""Which known mistake does a rejected file resemble?

The kata's probes are run on the file, on the reference, and on the reference with each mistake planted.
A mistake is named only if the file gives its results on every probe, and no other mistake does: a file
that is wrong in its own way is told nothing rather than something false. This runs in a child of its own,
beside the one that shrinks the counterexample, and only once a claim has failed; so it may read the
reference.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import pickle
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dojo import catalogue
from dojo.judge.guard import limit_resources
from dojo.judge.subject import DoesNotLoad, load
from dojo.mistake import Mistake, mistakes, wrong_source
from dojo.places import home, room_file

NEAR = {1: 5e-2, 2: 2e-2, 4: 1e-4, 8: 1e-8, 16: 1e-8}
"""How near two results must be, by the size of the dtype in bytes, relative to the largest: wide enough
for another order of summation, narrow enough to tell √d from d."""


@dataclass(frozen=True)
class Task:
    """The file, and the mistakes to leave out of the search; without a path, only prepare."""

    kata: str
    path: str
    source: str
    nonce: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Raised:
    """A probe that raised, by the name of the exception."""

    name: str


Trace = dict[str, Any]


def trace(kata: str, subject: types.ModuleType) -> Trace:
    """The results of the kata's probes on an implementation."""
    room = importlib.import_module(f"properties.{kata}")
    return {label: _result(call) for label, call in room.probes(subject).items()}


def _result(call: Any) -> Any:
    try:
        value = call()
    except Exception as error:
        return Raised(type(error).__name__)
    return value.detach().clone() if isinstance(value, Tensor) else value


def same(a: Any, b: Any) -> bool:
    """Are two results the same but for rounding? Any two refusals are: which is due, a claim says."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not (a.is_floating_point() or a.is_complex()):
            return torch.equal(a, b)
        x, y = a.double(), b.double()
        finite = y[y.isfinite()].abs()
        near = NEAR[a.itemsize]
        return torch.allclose(
            x, y, rtol=near, atol=near * float(finite.max()) if finite.numel() else 0.0, equal_nan=True
        )
    if isinstance(a, Raised) or isinstance(b, Raised):
        return isinstance(a, Raised) and isinstance(b, Raised)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-8, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    try:
        return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
    except Exception:
        return False


def agree(one: Trace, other: Trace) -> bool:
    """Do two implementations give the same results, wherever both are written?"""
    unwritten = Raised("NotImplementedError")
    return all(same(one[k], other[k]) for k in one if unwritten not in (one[k], other[k]))


def module_of(kata: str, name: str, source: str) -> types.ModuleType:
    return load(Path(f"<{kata} {name}>"), source, ())


def traces(kata: str) -> tuple[Trace, dict[str, Trace]]:
    """The reference's results, and each mistake's by name."""
    right = trace(
        kata, module_of(kata, "reference", room_file("reference", kata).read_text(encoding="utf-8"))
    )
    return right, {
        m.name: trace(kata, module_of(kata, m.name, wrong_source(kata, m))) for m in mistakes(kata)
    }


def remembered(kata: str) -> tuple[Trace, dict[str, Trace]]:
    """``traces``, computed once for each state of the kata's rooms and kept beside the store."""
    rooms = [room_file(room, kata).read_bytes() for room in ("reference", "mistakes", "properties")]
    state = hashlib.sha256(b"\0".join([*rooms, torch.__version__.encode()])).hexdigest()[:16]
    kept = home() / ".dojo" / "traces" / f"{kata}-{state}.pickle"
    with contextlib.suppress(OSError, pickle.PickleError, EOFError, AttributeError):
        return pickle.loads(kept.read_bytes())
    found = traces(kata)
    with contextlib.suppress(OSError, pickle.PickleError, TypeError, AttributeError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        for stale in kept.parent.glob(f"{kata}-*.pickle"):
            stale.unlink(missing_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(found))
        part.replace(kept)
    return found


def likeness(kata: str, subject: types.ModuleType, without: tuple[str, ...] = ()) -> Mistake | None:
    """The one mistake whose results the subject gives on every probe, if there is exactly one."""
    mine = trace(kata, subject)
    right, wrong = remembered(kata)
    if agree(mine, right):
        return None
    alike = [m for m in mistakes(kata) if m.name not in without and agree(mine, wrong[m.name])]
    return alike[0] if len(alike) == 1 else None


def main(task: Task, event_fd: int, trace_fd: int) -> None:
    """Compare, in this process, which does nothing else, and leave it. Never returns."""
    from dojo.judge.child import Channel

    channel, leave = Channel(event_fd, task.nonce), os._exit
    try:
        torch.set_num_threads(1)
        limit_resources(catalogue.brief(task.kata).memory_gb, 10 if task.path else 300)
        if not task.path:  # nobody waits: only see to it that the results are there
            remembered(task.kata)
            return
        found = likeness(task.kata, load(Path(task.path), task.source, ()), task.without)
        if found:
            channel.send("mistake", name=found.name, says=found.says, belief=found.belief)
        channel.send("finished")
    except DoesNotLoad:
        pass
    finally:
        leave(0)
