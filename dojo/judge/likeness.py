"""Which known mistake does a rejected file resemble?

The kata's probes are run on the file, on the reference, and on the reference with each mistake planted.
A mistake *fits* if the file gives its results on every probe on which the mistake and the reference differ.
It is named only if the mistakes that fit explain all that the file does otherwise than the reference: a file
that is wrong in a way of its own is told nothing rather than something false, and one that makes two known
mistakes is told the weightier. This runs in a child of its own, beside the one that shrinks the
counterexample, and only once a claim has failed; so it may read the reference.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import pickle
import time
import types
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dojo import catalogue
from dojo.judge.claims import state_of
from dojo.judge.guard import limit_resources
from dojo.judge.subject import DoesNotLoad, load
from dojo.mistake import Mistake, mistakes, wrong_source
from dojo.places import home, room_file

NEAR = {1: 5e-2, 2: 2e-2, 4: 1e-4, 8: 1e-8, 16: 1e-8}
"""How near two results must be, by the size of the dtype in bytes, relative to the largest: wide enough
for another order of summation, narrow enough to tell √d from d."""


@dataclass(frozen=True)
class Task:
    """The file, the part whose claim failed, mistakes to leave out, and the seconds there are; without a path,
    only prepare."""

    kata: str
    path: str
    source: str
    nonce: str
    part: int = 0
    without: tuple[str, ...] = ()
    seconds: float = 300.0


@dataclass(frozen=True)
class Raised:
    """A probe that raised, by the name of the exception."""

    name: str


UNWRITTEN = Raised("NotImplementedError")
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
        exact = (x == y) | (x.isnan() & y.isnan())
        finite = x.isfinite() & y.isfinite()
        largest = torch.maximum(x.abs(), y.abs()).where(
            finite, 0
        )  # of either, so that the order is no matter
        near = NEAR[a.itemsize] * (largest + (largest.max() if largest.numel() else 0))
        return bool((exact | (finite & ((x - y).abs() <= near))).all())
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


def differing(one: Trace, other: Trace) -> frozenset[str]:
    """The probes on which two implementations give other results, among those that both have written."""
    return frozenset(k for k in one if UNWRITTEN not in (one[k], other[k]) and not same(one[k], other[k]))


def module_of(kata: str, name: str, source: str) -> types.ModuleType:
    return load(Path(f"<{kata} {name}>"), source, ())


@dataclass(frozen=True)
class Known:
    """The reference's results, each mistake's by name, and the probes on which a mistake shows."""

    right: Trace
    wrong: dict[str, Trace]
    shows: dict[str, frozenset[str]]

    def without(self, names: Collection[str]) -> Known:
        """The same with some mistakes taken out."""
        return Known(self.right, {n: t for n, t in self.wrong.items() if n not in names}, self.shows)


def known(kata: str) -> Known:
    """What is to be known of a kata: computed once for each state of its rooms and kept beside the store.

    Of a mistake only that is kept in which it differs from the reference. What an earlier process did not finish
    is gone on with."""
    rooms = [room_file(room, kata).read_bytes() for room in ("reference", "mistakes")]
    how = os.environ.get("TRITON_INTERPRET", "compiled")  # a GPU rounds otherwise
    under = f"{state_of(kata)} {torch.__version__} {how}, what differs"
    state = hashlib.sha256(b"\0".join([*rooms, under.encode()])).hexdigest()[:16]
    kept = home() / ".dojo" / "traces" / f"{kata}-{state}.pickle"
    found: dict[str, Trace] = {}
    with contextlib.suppress(OSError, pickle.PickleError, EOFError, AttributeError):
        found = pickle.loads(kept.read_bytes())
    due = {"": None, **{m.name: m for m in mistakes(kata)}}
    missing, last, wait = [name for name in due if name not in found], time.monotonic(), KEPT_EVERY
    for name in missing:
        results = _planted(kata, due[name])
        found[name] = _odd(found[""], results) if name else results
        if time.monotonic() - last > wait or name == missing[-1]:
            began = time.monotonic()
            _keep(kept, found)
            last = time.monotonic()
            wait = max(KEPT_EVERY, 10 * (last - began))  # all of it is written anew each time
    right, odd = found[""], {m.name: found[m.name] for m in mistakes(kata)}
    shows = {name: frozenset(k for k, v in theirs.items() if v != UNWRITTEN) for name, theirs in odd.items()}
    return Known(right, {name: right | theirs for name, theirs in odd.items()}, shows)


KEPT_EVERY = 0.3
"""Seconds of computing after which what is known so far is kept: a process may be ended while it computes."""


def _odd(right: Trace, theirs: Trace) -> Trace:
    """What is otherwise than the reference's, or not written."""
    odd = differing(right, theirs)
    return {label: found for label, found in theirs.items() if label in odd or found == UNWRITTEN}


def _planted(kata: str, mistake: Mistake | None) -> Trace:
    """The results of the reference, with a mistake planted in it if one is given."""
    if mistake is None:
        name, source = "reference", room_file("reference", kata).read_text(encoding="utf-8")
    else:
        name, source = mistake.name, wrong_source(kata, mistake)
    return trace(kata, module_of(kata, name, source))


def _keep(path: Path, found: dict[str, Trace]) -> None:
    with contextlib.suppress(OSError, pickle.PickleError, TypeError, AttributeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.pickle"):
            if stale != path:
                stale.unlink(missing_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(found))
        part.replace(path)


def likeness(kata: str, mine: Trace, all_known: Known, part: int = 0) -> str | None:
    """The name of the mistake that gives these results, if known ones explain all that they have otherwise
    than the reference's.

    Failing that, if they explain it up to ``part``: what later parts ask for may not have been thought of yet, and
    where they share code with this one, the mistake may show there in another way."""
    mine = {label: found for label, found in mine.items() if found != UNWRITTEN}
    odd = differing(mine, all_known.right)
    name = explained(mine, odd, all_known)
    if name or not part:
        return name
    brief = catalogue.brief(kata)
    later = {m.name for m in mistakes(kata) if brief.part_of(m.claim) > part}
    late = frozenset().union(*(all_known.shows[name] for name in later)) & mine.keys()
    early = {label: found for label, found in mine.items() if label not in late}
    return explained(early, odd - late, all_known.without(later))


def explained(mine: Trace, odd: frozenset[str], all_known: Known) -> str | None:
    """Of the mistakes that fit, the one that shows on most probes, if they leave none of the ``odd`` unexplained.

    What comes out where a refusal is due depends on all else that is wrong: there, a mistake that does not refuse
    either explains what the file does, but is not named for it. Of two that show equally often the first of the
    catalogue is named: the file makes both, or they are one and the same in what is written so far."""
    fits, covered = {}, frozenset()
    for name, theirs in all_known.wrong.items():
        on = all_known.shows[name] & mine.keys()
        if not on or not on <= odd:
            continue
        other = {label for label in on if not same(mine[label], theirs[label])}
        if not other:
            fits[name] = on
        if all(isinstance(all_known.right[label], Raised) for label in other):
            covered |= on
    return max(fits, key=lambda name: len(fits[name])) if fits and not odd - covered else None


def main(task: Task, event_fd: int, trace_fd: int) -> None:
    """Compare, in this process, which does nothing else, and leave it. Never returns."""
    from dojo.judge.child import Channel

    channel, leave = Channel(event_fd, task.nonce), os._exit
    try:
        torch.set_num_threads(1)
        limit_resources(catalogue.brief(task.kata).memory_gb, task.seconds)
        all_known = known(task.kata)
        if not task.path:  # nobody waits: only see to it that it is at hand
            return
        mine = trace(task.kata, load(Path(task.path), task.source, ()))
        name = likeness(task.kata, mine, all_known.without(task.without), task.part)
        for found in (m for m in mistakes(task.kata) if m.name == name):
            channel.send("mistake", name=found.name, says=found.says, belief=found.belief)
        channel.send("finished")
    except DoesNotLoad:
        pass
    finally:
        leave(0)
