"""An attempt at a kata or a hunt: the file, the clock, the hints, and what each verdict means for them.

The screen and the plain runner are two faces of this. The clock is the wall clock since the attempt
began, kept in the store, so that a closed terminal does not stop it.
"""

from __future__ import annotations

import ast
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dojo.catalogue import Brief, FollowUp
from dojo.exercise import Exercise, build
from dojo.judge.client import Judge, Ruling
from dojo.places import practice_file, room_file
from dojo.store import Attempt, Store
from dojo.verdict import Verdict


@dataclass(frozen=True)
class Result:
    """What a pass is worth: seconds to the save that was confirmed, against par and the earlier best."""

    seconds: float
    par_seconds: float
    best_before: float | None
    lines: int | None
    line_limit: int | None
    hints: int
    over_time: bool


@dataclass(frozen=True)
class Opened:
    """How an attempt was opened: ``kept`` is the number under which an earlier file was put aside."""

    session: Session
    resumed: bool
    kept: int | None


class Session:
    """One attempt under way. ``open_session`` makes it."""

    def __init__(self, exercise: Exercise, store: Store, attempt: Attempt):
        self.exercise, self.store, self.attempt = exercise, store, attempt
        self.kata, self.name = exercise.kata, exercise.name
        self.brief: Brief = exercise.brief
        self.path: Path = practice_file(exercise.name)
        self.result: Result | None = None
        self.given_up = False
        self.hints_taken = attempt.hints

    # --- the clock --------------------------------------------------------------------------------

    @property
    def timed(self) -> bool:
        return self.attempt.limit_seconds is not None

    def elapsed(self, at: float | None = None) -> float:
        return max(0.0, (time.time() if at is None else at) - self.attempt.started)

    def remaining(self) -> float | None:
        """Seconds left; negative once over time; None without a limit."""
        return None if self.attempt.limit_seconds is None else self.attempt.limit_seconds - self.elapsed()

    # --- what the person may ask for ------------------------------------------------------------------

    def statement(self) -> str:
        """What is asked, as it stands at the top of the file."""
        return ast.get_docstring(ast.parse(self.exercise.text)) or ""

    def next_hint(self) -> tuple[int, str] | None:
        """Take the next hint of the ladder (counted from 1); None if there is no further one."""
        if self.hints_taken >= len(self.brief.hints):
            return None
        self.hints_taken += 1
        self.store.add_hint(self.attempt.id, self.hints_taken)
        return self.hints_taken, self.brief.hints[self.hints_taken - 1]

    def reset(self) -> int | None:
        """Put the first text back; the text so far is kept. Returns the number it is kept under."""
        kept = put_aside(self.exercise, self.store, "reset")
        write_out(self.exercise)
        return kept

    def give_up(self) -> str:
        """End the attempt as given up, and return the reference's source."""
        if self.result is None:
            self.store.end(self.attempt.id, "given_up", source=self.source())
            self.given_up = True
        return room_file("reference", self.kata).read_text(encoding="utf-8")

    def follow_ups(self) -> tuple[FollowUp, ...]:
        return self.brief.follow_ups

    def source(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError:
            return ""

    # --- verdicts ---------------------------------------------------------------------------------

    def record(self, ruling: Ruling, source: str, saved_at: float) -> Result | None:
        """Keep a verdict. A pass ends the attempt; the clock stops at the save that was confirmed."""
        verdict: Verdict = ruling.verdict
        self.store.add_verdict(self.attempt.id, source, verdict)
        self.store.add_examples(self.name, ruling.examples)
        if not verdict.passed or self.result is not None or self.given_up:
            return None
        best = self.store.best(self.name)
        seconds = self.elapsed(saved_at)
        over = self.attempt.limit_seconds is not None and seconds > self.attempt.limit_seconds
        self.result = Result(
            seconds, self.brief.minutes * 60, best.seconds if best else None, verdict.lines,
            verdict.line_limit, self.hints_taken, over,
        )  # fmt: skip
        self.store.end(
            self.attempt.id, "passed", seconds=seconds, over_time=int(over), lines=verdict.lines,
            source=source, versions=str(verdict.versions),
        )  # fmt: skip
        return self.result

    def asked(self) -> dict[str, Any]:
        """The options of the next trial. Once a hunt is over, what follows it is judged like any kata."""
        options = {} if self.result else self.exercise.judged
        return options | {"examples": self.store.examples(self.name)}

    def judge(self, judge: Judge, **options: Any) -> Ruling:
        """One verdict on the file as it is now, recorded."""
        source, saved_at = self.source(), self.saved_at()
        ruling = judge.judge(self.kata, self.path, source, **self.asked(), **options)
        self.record(ruling, source, saved_at)
        return ruling

    def saved_at(self) -> float:
        """When the file was saved last; never before the attempt began."""
        try:
            return max(self.path.stat().st_mtime, self.attempt.started)
        except OSError:
            return time.time()


def can_go_on(attempt: Attempt | None) -> bool:
    """Is there an attempt to go on with: begun, not ended, and within its limit?"""
    if attempt is None:
        return False
    return attempt.limit_seconds is None or time.time() - attempt.started < attempt.limit_seconds


def open_session(what: Exercise | str, store: Store, *, timed: bool, resume: bool) -> Opened:
    """Start an attempt at an exercise, or at a kata by name, or go on with the one that is open.

    A new attempt begins from the exercise's text; whatever stands in ``practice/`` is put aside first. With
    ``resume`` the file stays as it is, and the open attempt goes on if there is one.
    """
    exercise = build(what) if isinstance(what, str) else what
    running = store.open_attempt(exercise.name)
    there = practice_file(exercise.name).exists()
    if resume and running is not None:
        if not there:
            write_out(exercise)
        return Opened(Session(exercise, store, running), True, None)
    kept = None
    if not resume:
        kept = put_aside(exercise, store, "new attempt")
    if running is not None:
        store.end(running.id, "left")
    if not resume or not there:
        write_out(exercise)
    limit = exercise.brief.minutes * 60.0 if timed else None
    attempt = store.begin(exercise.name, limit, seed=exercise.seed, planted=exercise.planted)
    return Opened(Session(exercise, store, attempt), False, kept)


def write_out(exercise: Exercise) -> Path:
    """Put the exercise's text in ``practice/``, in one step, so that no half file is ever seen."""
    path = practice_file(exercise.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{exercise.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(exercise.text)
    os.chmod(name, 0o644)
    os.replace(name, path)
    return path


def put_aside(exercise: Exercise, store: Store, why: str) -> int | None:
    """Keep the text in ``practice/`` if it is anything but the blank stub; returns its number."""
    try:
        source = practice_file(exercise.name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if not source.strip() or source == exercise.text:
        return None
    return store.keep(exercise.name, source, why)
