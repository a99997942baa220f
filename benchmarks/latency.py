"""How long a verdict takes, from the save to what the person sees.

    python -m benchmarks.latency [KATA ...] [--repeats N]

For each kata: a right answer, from handing the file over to the complete quick verdict and to the
confirmed one; and a dozen mistakes, to the first failing claim and to its shrunk card. Then ``--once`` as a
whole process, beside a bare ``import torch``. The screen adds the time in which it notices a save (it looks
ten times a second). Medians, with the worst in brackets, on one running judge.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dojo import catalogue
from dojo.judge.client import Judge
from dojo.mistake import mistakes, wrong_source
from dojo.places import ROOT, room_file

TARGETS = {"quick": 1.0, "confirmed": 4.0, "failing": 0.5, "card": 2.0, "named": 2.5}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("benchmarks.latency", description=__doc__.splitlines()[0])
    parser.add_argument("katas", nargs="*", metavar="KATA", help="only these (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="verdicts on the right answer (default 5)")
    parser.add_argument("--mistakes", type=int, default=12, help="mistakes a kata, at most (default 12)")
    parser.add_argument("--no-once", action="store_true", help="leave out the whole-process figures")
    asked = parser.parse_args()
    katas = asked.katas or catalogue.here()
    for name in katas:
        try:
            catalogue.brief(name)
        except catalogue.UnknownKata as unknown:
            print(unknown, file=sys.stderr)
            return 2
    with Judge() as judge:
        judge.wait()
        versions = ", ".join(f"{name} {version}" for name, version in judge.versions.items())
        print(f"{versions}; {os.cpu_count()} cores; python -m benchmarks.latency {' '.join(asked.katas)}")
        print("seconds: median [worst]; right answer, then mistakes\n")
        heads = "".join(f"{f'{what} (≤ {bound:g})':>20}" for what, bound in TARGETS.items())
        print(f"{'kata':<22}{heads}")
        every: dict[str, list[float]] = {what: [] for what in TARGETS}
        for kata in katas:
            found = right(judge, kata, asked.repeats) | wrong(judge, kata, asked.mistakes)
            cells = "".join(f"{_cell(found[what]):>20}" for what in TARGETS)
            print(f"{kata:<22}{cells}", flush=True)
            for what, seconds in found.items():
                every[what] += seconds
        print(f"{'all':<22}" + "".join(f"{_cell(every[what]):>20}" for what in TARGETS))
    if not asked.no_once:
        once(katas[0])
    return 0


def _cell(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} [{max(seconds):.2f}]" if seconds else "-"


def right(judge: Judge, kata: str, repeats: int) -> dict[str, list[float]]:
    """A right answer: until the quick stage is complete, and until it is confirmed."""
    path = room_file("reference", kata)
    found: dict[str, list[float]] = {"quick": [], "confirmed": []}
    for _ in range(repeats):
        started = time.perf_counter()
        for event in judge.trial(kata, path):
            if event["event"] == "stage":
                found["quick"].append(time.perf_counter() - started)
            elif event["event"] == "verdict":
                found["confirmed"].append(time.perf_counter() - started)
                if event["verdict"]["outcome"] != "passed":
                    raise SystemExit(f"the reference of {kata} did not pass: {event['verdict']['message']}")
    return found


def wrong(judge: Judge, kata: str, most: int) -> dict[str, list[float]]:
    """Mistakes, spread over the list: until a claim fails, until its card is there, until it is named."""
    found: dict[str, list[float]] = {"failing": [], "card": [], "named": []}
    whats = {"failing": "failing", "card": "card", "mistake": "named"}
    every = mistakes(kata)
    step = max(1, len(every) // most)
    for mistake in every[::step][:most]:
        started, seen = time.perf_counter(), set()
        for event in judge.trial(kata, Path(f"{mistake.name}.py"), wrong_source(kata, mistake)):
            what = whats.get(event["event"])
            if what and what not in seen:
                seen.add(what)
                found[what].append(time.perf_counter() - started)
    return found


def once(kata: str, repeats: int = 3) -> None:
    """``runner.py KATA --once`` as a whole process, beside ``import torch``."""
    torch = [_whole([sys.executable, "-c", "import torch"]) for _ in range(repeats)]
    reference = str(room_file("reference", kata))
    with tempfile.TemporaryDirectory() as home:
        argv = [sys.executable, str(ROOT / "runner.py"), kata, "--once", "--file", reference]
        whole = [_whole(argv, home) for _ in range(repeats)]
        paint = [_first_line([sys.executable, str(ROOT / "runner.py"), "list"], home) for _ in range(repeats)]
    bound = statistics.median(torch) + 4
    print(f"\nimport torch                  {_cell(torch)}")
    print(f"runner.py {kata} --once    {_cell(whole)}   (≤ import torch + 4 = {bound:.2f})")
    print(f"runner.py list, first line    {_cell(paint)}   (≤ 0.3)")


def _whole(argv: list[str], home: str | None = None) -> float:
    started = time.perf_counter()
    env = os.environ | ({"KATA_HOME": home} if home else {})
    subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _first_line(argv: list[str], home: str) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(argv, env=os.environ | {"KATA_HOME": home}, stdout=subprocess.PIPE)
    process.stdout.readline()
    took = time.perf_counter() - started
    process.communicate()
    return took


if __name__ == "__main__":
    sys.exit(main())
