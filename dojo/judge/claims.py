"""Runs one claim against one subject, and catches what it fails with.

A claim is an ordinary Hypothesis test, called here without pytest (which costs 0.2 s of the second
that a verdict may take). The function inside is wrapped, so that the first failing example is known
at once, before it has been shrunk, and the smallest one is at hand afterwards.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import hypothesis.internal.conjecture.engine as engine
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import HypothesisException

from dojo import catalogue
from dojo.ranks import Stuck

SEARCH = (Phase.explicit, Phase.reuse, Phase.generate)
SHRINK = (Phase.explicit, Phase.reuse, Phase.shrink)
QUICK, FULL = 5, 40
SHRINK_SECONDS = 1.0
GUARDED = 3
"""On so many examples of a claim the guard looks at every torch operation, which makes them slower."""

settings.register_profile(
    "judge", max_examples=FULL, deadline=None, database=None, print_blob=False,
    suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
)  # fmt: skip

# Hypothesis spends most of a small budget on near copies of an example; as many distinct ones find more.
engine.ConjectureRunner.generate_mutations_from = lambda runner, data: None


class LeftEarly(AssertionError):
    """The subject called sys.exit or raised KeyboardInterrupt inside a call."""


class OutOfMemory(Exception):
    """The subject asked for more memory than the trial allows."""


class DeviceLost(Exception):
    """A kernel of the subject's broke the GPU's context (it read beyond an allocation, say): nothing else in the
    process can use the GPU from then on, the claims' own arithmetic included."""


class _Ended(BaseException):
    """Takes what ends the whole trial past Hypothesis, which would try the example again."""

    def __init__(self, why: Exception):
        self.why = why


class BrokenClaim(RuntimeError):
    """A claim went wrong in a way that is ours, not the subject's."""


@dataclass(frozen=True)
class Claim:
    """One property of a kata."""

    name: str
    part: int
    run: Callable = field(compare=False)

    @property
    def sentence(self) -> str:
        """The claim in words: the first paragraph of its docstring, else its name."""
        doc = (self.run.__doc__ or "").strip().split("\n\n")[0]
        return " ".join(doc.replace("``", "").split()) or self.name.removeprefix("test_").replace("_", " ")

    @property
    def is_drawn(self) -> bool:
        return hasattr(self.run, "hypothesis")

    def count(self, stage: str) -> int:
        """How many examples it is tried on in a stage (``quick`` or ``full``); 0 leaves it out."""
        if stage == "quick":
            return getattr(self.run, "quick_examples", QUICK if self.is_drawn else 1)
        declared = getattr(self.run, "_hypothesis_internal_use_settings", None)
        return declared.max_examples if declared else FULL if self.is_drawn else 1


@dataclass
class Failure:
    """The last example that failed: what was drawn, and what was raised."""

    inputs: dict[str, Any]
    error: BaseException


@dataclass
class Outcome:
    """What came of one claim: held (failure is None) or failing."""

    examples: int
    seconds: float
    failure: Failure | None = None
    flaky: bool = False


def claims(kata: str) -> tuple[Claim, ...]:
    """The claims of a kata in the order of its parts. Raises BrokenClaim if the brief names one that
    ``properties/NAME.py`` does not define."""
    settings.load_profile("judge")
    new = f"properties.{kata}" not in sys.modules
    room = importlib.import_module(f"properties.{kata}")
    brief = catalogue.brief(kata)
    if new:
        room.__state__ = _digest(room.__file__)
        for name in brief.builds_on:  # read here, so that a file on trial need not open an answer
            importlib.import_module(f"reference.{name}")
        _rehearse()
    missing = [name for name in brief.claims if not hasattr(room, name)]
    if missing:
        raise BrokenClaim(
            f"katas/{kata}.toml names claims that properties/{kata}.py lacks: {', '.join(missing)}"
        )
    return tuple(Claim(name, brief.part_of(name), getattr(room, name)) for name in brief.claims)


def state_of(kata: str) -> str:
    """Which state of ``properties/NAME.py`` this process runs: it may have been edited since."""
    room = importlib.import_module(f"properties.{kata}")
    return getattr(room, "__state__", None) or _digest(room.__file__)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _rehearse() -> None:
    """Run an empty test, and settle the heap.

    Hypothesis reads the constants of every new module when it first draws, and collects garbage when it
    first seeds NumPy; done here, before the fork, it costs each child nothing. What lives now is taken out
    of the garbage collector's sight: with torch loaded, each full collection would cost a child 0.1 s.
    """
    settings(max_examples=2, phases=(Phase.generate,))(given(st.binary(max_size=1))(lambda data: None))()
    gc.collect()
    gc.freeze()


def search(
    claim: Claim, subject: ModuleType, count: int, *, seed: int | None = None,
    database: ExampleDatabase | None = None, on_failure: Callable[[Failure], None] = lambda failure: None,
    guard: AbstractContextManager = nullcontext(),
) -> Outcome:  # fmt: skip
    """Look for an example that breaks the claim, without shrinking it. The first ones run under ``guard``."""
    return _run(claim, subject, count, SEARCH, seed, database, _Watch(on_failure, guard))


def shrink(
    claim: Claim, subject: ModuleType, *, database: ExampleDatabase, seed: int | None = None
) -> Outcome:
    """Run a claim whose failing example stands in the database, down to the smallest that fails."""
    engine.MAX_SHRINKING_SECONDS = SHRINK_SECONDS
    # Hypothesis takes what stands under the primary key for shrunk already; the search did not shrink it.
    key = claim.name.encode()
    for example in list(database.fetch(key)):
        database.delete(key, example)
        database.save(key + b".secondary", example)
    return _run(claim, subject, 10_000, SHRINK, seed, database, _Watch())


def _run(
    claim: Claim, subject: ModuleType, count: int, phases: tuple[Phase, ...], seed: int | None,
    database: ExampleDatabase | None, watch: _Watch,
) -> Outcome:  # fmt: skip
    started = time.perf_counter()
    if not claim.is_drawn:
        watch.call(claim.run, {"subject": subject})
        return Outcome(1, time.perf_counter() - started, watch.failure)
    test = claim.run
    inner = test.hypothesis.inner_test
    declared = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
    database = InMemoryExampleDatabase() if database is None else database
    settings(declared, max_examples=count, phases=phases, database=database)(_without_settings(test))
    test._hypothesis_internal_use_seed = seed  # the decorator would take the database away
    test.hypothesis.inner_test = watch.wrap(inner)
    test._hypothesis_internal_database_key = claim.name.encode()
    flaky = False
    try:
        test(subject=subject)
    except _Ended as ended:
        raise ended.why from ended.__cause__
    except HypothesisException as broken:
        flaky = watch.failure is not None
        if not flaky:
            raise BrokenClaim(f"{claim.name}: {type(broken).__name__}: {broken}") from broken
    except Exception as error:
        if watch.failure is None:
            if (
                device_lost()
            ):  # while the next example was drawn: kernels run behind the call that starts them
                raise DeviceLost(_first_line(error)) from error
            raise BrokenClaim(f"{claim.name}: {type(error).__name__}: {error}") from error
    finally:
        test.hypothesis.inner_test = inner
        _without_settings(test)._hypothesis_internal_use_settings = declared
    return Outcome(watch.examples, time.perf_counter() - started, watch.failure, flaky)


def _without_settings(test: Callable) -> Callable:
    # A test takes settings once; the marker is removed so that a stage can bring its own.
    for name in ("_hypothesis_internal_use_settings", "_hypothesis_internal_settings_applied"):
        if hasattr(test, name):
            delattr(test, name)
    return test


class _Watch:
    """Stands between Hypothesis and a claim: counts examples and keeps the last failure."""

    def __init__(
        self,
        on_failure: Callable[[Failure], None] = lambda failure: None,
        guard: AbstractContextManager = nullcontext(),
    ):
        self.on_failure, self.guard = on_failure, guard
        self.examples = 0
        self.failure: Failure | None = None

    def wrap(self, inner: Callable) -> Callable:
        def watched(**inputs: Any) -> None:
            self.call(inner, inputs, reraise=True)

        return watched

    def call(self, inner: Callable, inputs: dict[str, Any], *, reraise: bool = False) -> None:
        self.examples += 1
        try:
            with self.guard if self.examples <= GUARDED else nullcontext():
                inner(**inputs)
        except HypothesisException:
            raise  # how Hypothesis steers: an example that does not count
        except Stuck as stuck:
            raise _Ended(stuck) from stuck
        except (SystemExit, KeyboardInterrupt) as left:
            self._failed(inputs, LeftEarly(f"the code called for an exit: {left!r}"), left, reraise)
        except Exception as error:
            if out_of_memory(error):
                raise _Ended(OutOfMemory(str(error))) from error
            if device_lost():
                raise _Ended(DeviceLost(_first_line(error))) from error
            self._failed(inputs, error, error.__cause__, reraise)

    def _failed(self, inputs: dict, error: BaseException, cause: BaseException | None, reraise: bool) -> None:
        first = self.failure is None
        error = error.with_traceback(_tail(error.__traceback__))
        self.failure = Failure({k: v for k, v in inputs.items() if k != "subject"}, error)
        if first:
            self.on_failure(self.failure)
        if reraise:
            raise error from cause


def _tail(frames: TracebackType | None, most: int = 50) -> TracebackType | None:
    """The deepest frames: a runaway recursion has a thousand, and Hypothesis formats each of them."""
    chain = []
    while frames is not None:
        chain.append(frames)
        frames = frames.tb_next
    return chain[-most] if len(chain) > most else chain[0] if chain else None


def out_of_memory(error: BaseException) -> bool:
    """MemoryError, or what torch's allocators raise in its place, anywhere in the chain; unless it was raised by a
    ``raise``, say where a cache has no block left."""
    while error is not None:
        refused = isinstance(error, RuntimeError) and "allocate memory" in str(error)
        if refused or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            frames = traceback.extract_tb(error.__traceback__)
            return not (frames and (frames[-1].line or "").startswith("raise"))
        error = error.__cause__ or error.__context__
    return False


def device_lost() -> bool:
    """Does the GPU, if this process has woken it, answer with an error to everything?"""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
