"""Is anything left behind? One judge, the same katas again and again.

    python -m benchmarks.leaks [KATA ...] [--times N]

Prints, before and after: the processes below the judge, its open files, its memory, shared memory and temporary
files. Each kata's reference is judged N times (default 50) on the quick stage, and the first of its mistakes
after every tenth time, since failures leave by other doors than passes. Exit code 1 if anything has grown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from dojo import catalogue
from dojo.judge.client import Judge
from dojo.mistake import mistakes, wrong_source
from dojo.places import room_file

CORE = (
    "ring_allreduce", "triton_flash", "flash_attention", "moe", "kv_cache", "multi_head_attention", "sampling",
    "adamw", "rmsnorm", "layernorm", "feed_forward", "transformer_block",
)  # fmt: skip
ALLOWED_MB = 64
"""Memory may grow by what an allocator keeps once; what leaks fifty times is far more."""


@dataclass
class State:
    """What could grow."""

    processes: int
    files: int
    memory_mb: int
    shared: int
    temporary: int

    @classmethod
    def of(cls, judge: psutil.Process) -> State:
        shared = Path("/dev/shm")
        return cls(
            len(judge.children(recursive=True)), judge.num_fds(), judge.memory_info().rss >> 20,
            len(list(shared.iterdir())) if shared.is_dir() else 0, len(list(Path(tempfile.gettempdir()).iterdir())),
        )  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("benchmarks.leaks", description=__doc__.splitlines()[0])
    parser.add_argument("katas", nargs="*", metavar="KATA", help="only these")
    parser.add_argument("--times", type=int, default=50, help="verdicts a kata (default 50)")
    asked = parser.parse_args()
    katas = asked.katas or [name for name in CORE if name in catalogue.here()]
    with tempfile.TemporaryDirectory() as own:  # so that what others put beside it is not counted
        os.environ["TMPDIR"] = tempfile.tempdir = own
        return measure(katas, asked.times)


def measure(katas: list[str], times: int) -> int:
    """Judge each kata so often, print the state before and after, and return 1 if anything has grown."""
    grown = False
    with Judge() as judge:
        judge.wait()
        process = psutil.Process(judge._process.pid)
        print(f"python -m benchmarks.leaks {' '.join(sys.argv[1:])}; " + str(judge.versions))
        print(f"{'kata':<22}{'':<8}" + "".join(f"{f.name:>12}" for f in fields(State)))
        for kata in katas:
            judged(judge, kata, 1)  # what is loaded once
            before, started = State.of(process), time.monotonic()
            judged(judge, kata, times)
            after = State.of(process)
            for when, state in (("before", before), ("after", after)):
                print(
                    f"{kata if when == 'before' else '':<22}{when:<8}"
                    + "".join(f"{n:>12}" for n in astuple(state))
                )
            print(f"{'':<22}{times} times in {time.monotonic() - started:.0f} s", flush=True)
            grown |= has_grown(before, after)
    print("something was left behind" if grown else "nothing was left behind")
    return 1 if grown else 0


def judged(judge: Judge, kata: str, times: int) -> None:
    """The reference so many times, and now and then a mistake."""
    reference, mistake = room_file("reference", kata), mistakes(kata)[0]
    for number in range(times):
        verdict = judge.judge(kata, reference, confirm=False, seed=number).verdict
        if any(c.status == "failed" for c in verdict.claims):
            raise SystemExit(f"{kata}: the reference was refused: {verdict.message}")
        if number % 10 == 0:
            judge.judge(kata, Path("wrong.py"), wrong_source(kata, mistake), confirm=False, likeness=False)


def has_grown(before: State, after: State) -> bool:
    return (
        after.processes > before.processes or after.files > before.files or after.shared > before.shared
        or after.temporary > before.temporary or after.memory_mb > before.memory_mb + ALLOWED_MB
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
