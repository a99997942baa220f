"""Is no right answer refused?

``python runner.py check KATA --styles`` judges the right answers under ``tests/accepted`` again and again, each
time with another seed, by turns on one thread and on two.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path

from dojo import catalogue
from dojo.check import styles
from dojo.judge.client import Judge
from dojo.record import in_parallel, put_down, said
from dojo.verdict import Verdict

RUNS = 20


def fairness(katas: list[str], *, write: bool = False, runs: int = RUNS) -> int:
    """Print every refusal of a right answer; returns 1 if there was one."""
    refusals = 0
    for kata in katas:
        lines = list(_fairness(kata, runs))
        refusals += len(lines) - 1
        if write:
            put_down(kata, "styles", lines)
    return 1 if refusals else 0


def _fairness(kata: str, runs: int) -> Iterator[str]:
    started, refusals = time.monotonic(), 0
    trials = list(product(styles(kata), range(runs)))
    for (path, seed), verdict in zip(trials, in_parallel(_judged(kata), trials), strict=True):
        if not verdict.passed:
            refusals += 1
            yield said(f"  {path.name}, seed {seed}: {verdict.outcome}: {verdict.message}")
    yield said(
        f"{kata}: {len(styles(kata))} styles × {runs} runs, {refusals} refusals; "
        f"on one thread and on two by turns, {time.monotonic() - started:.0f} s; Python {platform.python_version()}, "
        f"torch {version('torch')}, {os.cpu_count()} cores"
    )


def _judged(kata: str) -> Callable[[Judge, tuple[Path, int]], Verdict]:
    patience = catalogue.brief(kata).seconds * 3  # two judges share the cores here

    def judged(judge: Judge, trial: tuple[Path, int]) -> Verdict:
        path, seed = trial
        return judge.judge(
            kata, path, seed=seed, threads=1 + seed % 2, likeness=False, cards=False, seconds=patience
        ).verdict

    return judged
