"""One trial, in a process of its own: load the file, run the claims, tell the warm process what happens.

Every message carries the trial's nonce, which the file on trial is never given. A child that stops
without its closing message has proved nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis.database import InMemoryExampleDatabase

from dojo import catalogue
from dojo.judge import claims as claims_
from dojo.judge.card import card, message
from dojo.judge.claims import BrokenClaim, Claim, DeviceLost, Failure, Outcome, OutOfMemory
from dojo.judge.guard import Guard, Seal, limit_resources, modes_left_on, seal
from dojo.judge.subject import DoesNotLoad, load, own_line
from dojo.ranks import Stuck
from dojo.rules import Broken

SHRINK_BUDGET = 3.0
"""Seconds for all cards after the first; claims beyond it show the example as it was found."""

FULL_PATIENCE = 3
"""How much longer a claim may take on its full number of examples: a slow answer is not a wrong one."""


@dataclass(frozen=True)
class Task:
    """What one child is to do.

    ``claims`` are put to the file in each of the ``stages`` (``quick``, ``full``). In the full stage children
    share them: ``queue`` is a pipe that holds a byte for each, its place in ``claims``, and whoever reads the
    byte runs the claim. ``stop_at_first`` ends at the first failing claim, and ``cards`` says whether to
    shrink and write the failures down. ``examples`` are failing examples of earlier verdicts by claim,
    replayed first. ``in_step``: other processes try the same at the same time (see ``dojo.ranks``), so that
    nothing may depend on the clock.
    """

    kata: str
    path: str
    source: str
    claims: tuple[str, ...]
    stages: tuple[str, ...]
    nonce: str
    queue: int = -1
    seed: int | None = None
    cards: bool = True
    stop_at_first: bool = False
    examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 10.0
    wall: float = 60.0
    in_step: bool = False
    threads: int = 1


class Channel:
    """The pipe to the warm process: one JSON object a line."""

    def __init__(self, fd: int, nonce: str):
        self._fd, self._nonce, self._write = fd, nonce, os.write

    def send(self, event: str, **fields: Any) -> None:
        line = json.dumps({"nonce": self._nonce, "event": event, **fields}).encode() + b"\n"
        while line:
            line = line[self._write(self._fd, line) :]


class Trial:
    """Runs a task, claim by claim, part by part."""

    def __init__(self, task: Task, channel: Channel, trace_fd: int):
        self.task, self.channel, self.trace_fd = task, channel, trace_fd
        self.brief = catalogue.brief(task.kata)
        self.path = Path(task.path)
        self.seal: Seal | None = None
        self.database = InMemoryExampleDatabase()
        for name, found in task.examples.items():
            for example in found:
                self.database.save(name.encode(), bytes.fromhex(example))

    def run(self) -> None:
        """The whole trial. Ends with a ``finished`` message only if nothing was cut short."""
        every = {claim.name: claim for claim in claims_.claims(self.task.kata)}
        torch.set_num_threads(self.task.threads)
        # With GPUs, far more addresses are reserved than used.
        limit_resources(2**20 if self.task.in_step else self.brief.memory_gb, self.task.wall)
        faulthandler.enable(self.trace_fd)
        self.seal = seal(self.task.kata)
        self.guard = Guard(self.path, self.brief, self.rule_broken)
        self.guard.arm()
        subject = self.load()
        if subject is None or self.tampered():
            return
        failures = list(self.judge(every, subject))
        faulthandler.cancel_dump_traceback_later()
        if self.tampered() or not self.canary(every):
            return
        if failures and self.task.cards:
            self.write_cards(failures, subject)
        self.channel.send("finished")

    def rule_broken(self, broken: Broken) -> None:
        self.channel.send("rule", **asdict(broken))

    def load(self) -> types.ModuleType | None:
        self.channel.send("loading")
        faulthandler.dump_traceback_later(self.task.seconds * 0.95, file=self.trace_fd)
        try:
            with self.guard:
                return load(self.path, self.task.source, catalogue.entry_points(self.task.kata))
        except DoesNotLoad as error:
            if error.__cause__ is not None and claims_.out_of_memory(error.__cause__):
                self.channel.send("out_of_memory", claim="", line=error.line, text=error.text)
            else:
                self.channel.send("does_not_load", message=error.message, line=error.line, text=error.text)
        return None

    def judge(self, every: dict[str, Claim], subject: types.ModuleType) -> Iterator[tuple[Claim, Outcome]]:
        """Run the stages. A part is only begun when the one before it held."""
        for stage in self.task.stages:
            failed: int | None = None
            for name in self.turn(stage):
                claim = every[name]
                if failed is not None and (claim.part > failed or self.task.stop_at_first):
                    continue
                outcome = self.claim(claim, subject, stage)
                if outcome is not None and outcome.failure is not None:
                    failed = claim.part
                    if not isinstance(outcome.failure.error, NotImplementedError):
                        yield claim, outcome
            # What is to be refused anyway is not worth the full number of examples.
            foul = bool(self.guard.broken or self.seal.broken())
            self.channel.send("stage", stage=stage, held=failed is None and not foul)
            if failed is not None or foul:
                return

    def turn(self, stage: str) -> Iterator[str]:
        """The claims that this child runs in a stage: all in the quick one, those it draws in the full one."""
        if stage == "quick":
            yield from self.task.claims
            return
        while drawn := os.read(self.task.queue, 1):
            yield self.task.claims[drawn[0]]

    def claim(self, claim: Claim, subject: types.ModuleType, stage: str) -> Outcome | None:
        """Put one claim to the subject; None if this stage leaves it out."""
        count = claim.count(stage)
        if not count:
            return None
        self.channel.send("claim", claim=claim.name, stage=stage, status="running")
        patience = self.task.seconds * FULL_PATIENCE if stage == "full" else self.task.seconds
        faulthandler.dump_traceback_later(patience * 0.95, file=self.trace_fd)
        try:
            outcome = claims_.search(
                claim, subject, count, seed=self.task.seed, database=self.database, guard=self.guard,
                on_failure=lambda failure: self.first_failure(claim, failure),
            )  # fmt: skip
        except OutOfMemory as error:
            line = own_line(error, self.path)
            self.channel.send("out_of_memory", claim=claim.name, line=line, text="")
            os._exit(0)
        except DeviceLost as error:
            line = own_line(error, self.path)
            self.channel.send("device_lost", claim=claim.name, message=str(error), line=line)
            os._exit(0)
        except Stuck as stuck:
            self.channel.send("stuck", claim=claim.name, message=str(stuck), line=stuck.line)
            os._exit(0)
        if left_on := list(modes_left_on()):  # asked each time: every call may leave one more
            self.channel.send("tampered", what=left_on[:1])
            os._exit(0)
        status = "held"
        if outcome.failure is not None:
            unwritten = isinstance(outcome.failure.error, NotImplementedError)
            status = "not_implemented" if unwritten else "failed"
        self.channel.send(
            "claim", claim=claim.name, stage=stage, status=status, examples=outcome.examples,
            seconds=round(outcome.seconds, 4),
        )  # fmt: skip
        return outcome

    def first_failure(self, claim: Claim, failure: Failure) -> None:
        if not isinstance(failure.error, NotImplementedError):
            self.channel.send(
                "failing", claim=claim.name, sentence=claim.sentence, message=message(failure.error)[:300]
            )

    def tampered(self) -> bool:
        replaced = self.seal.broken()
        if replaced:
            self.channel.send("tampered", what=replaced[:5])
        return bool(replaced)

    def canary(self, every: dict[str, Claim]) -> bool:
        """An answer that is wrong everywhere must fail, or the claims can no longer be believed."""
        wrong = types.ModuleType("canary")
        for name in catalogue.entry_points(self.task.kata):
            setattr(wrong, name, _Canary())
        outcome = claims_.search(next(iter(every.values())), wrong, 3, seed=self.task.seed)
        if outcome.failure is None:
            self.channel.send("tampered", what=["a wrong answer was accepted"])
        return outcome.failure is not None

    def write_cards(self, failures: list[tuple[Claim, Outcome]], subject: types.ModuleType) -> None:
        """Shrink each failure and send its card, the first failing claim's first."""
        started = time.perf_counter()
        for claim, outcome in failures:
            faulthandler.dump_traceback_later(self.task.seconds * 0.95, file=self.trace_fd)
            in_time = time.perf_counter() - started < SHRINK_BUDGET and not self.task.in_step
            if claim.is_drawn and not outcome.flaky and in_time:
                outcome = self.shrunk(claim, outcome, subject)
            written = card(claim, outcome.failure, self.path, flaky=outcome.flaky)
            key = claim.name.encode()
            # The secondary key holds what was found before shrinking; the primary, the smallest.
            smallest = min(
                self.database.fetch(key), key=lambda example: (len(example), example), default=None
            )
            self.channel.send("card", card=asdict(written), example=smallest.hex() if smallest else None)

    def shrunk(self, claim: Claim, found: Outcome, subject: types.ModuleType) -> Outcome:
        """The smallest failure; the one that was found, marked flaky, if it cannot be had again."""
        with contextlib.suppress(Stuck):
            smallest = claims_.shrink(claim, subject, database=self.database)
            if smallest.failure:
                return smallest
        return Outcome(found.examples, 0, found.failure, flaky=True)


class _Canary:
    """Answers every call, and every attribute, with something that no claim accepts."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Canary:
        return self

    def __getattr__(self, name: str) -> _Canary:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def main(task: Task, event_fd: int, trace_fd: int) -> None:
    """Run a task in this process, which does nothing else, and leave it. Never returns."""
    channel = Channel(event_fd, task.nonce)
    # A kernel's error is raised by the call that started the kernel, not by whatever touches the GPU next.
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    leave, flush = os._exit, (sys.stdout.flush, sys.stderr.flush)
    # A forked process repeats its parent's randomness unless told otherwise.
    random.seed()
    torch.manual_seed(random.getrandbits(62))
    trial = Trial(task, channel, trace_fd)
    try:
        trial.run()
    except BaseException as error:
        # What goes wrong in the judge goes wrong most often because the file replaced something in it.
        if trial.seal is None or not trial.tampered():
            if claims_.out_of_memory(error):
                channel.send("out_of_memory", claim="", line=own_line(error, trial.path), text="")
            else:
                broken = str(error) if isinstance(error, BrokenClaim) else f"{type(error).__name__}: {error}"
                channel.send("judge_error", message=broken)
    finally:
        with contextlib.suppress(BaseException):
            for each in flush:
                each()
        leave(0)
