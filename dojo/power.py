"""How much the claims notice: every mistake against every claim, and every mutant of the references.

``python runner.py check KATA --mistakes`` and ``--mutants`` print what they find; with ``--write`` it goes to
``docs/power/KATA.md`` as well, and the table in ``docs/judge.md`` is made anew from what stands there.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import queue
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dojo import catalogue, plain
from dojo.check import try_mistake
from dojo.judge.client import Judge
from dojo.mistake import Mistake, mistakes, wrong_source
from dojo.mutants import Mutant, mutants
from dojo.places import ROOT

DOCS = ROOT / "docs"
TABLE = ("<!-- power: written by check --write -->", "<!-- /power -->")


# --- mistakes × claims ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killed:
    """One mistake, the claims that refute it, and the seconds that it took."""

    mistake: Mistake
    claims: tuple[str, ...]
    seconds: float

    @property
    def by_its_own(self) -> bool:
        return self.mistake.claim in self.claims


def matrix(katas: list[str], *, write: bool = False) -> int:
    """Every mistake against every claim: prints which refute it, and returns 1 if one survives its own."""
    survivors = 0
    for kata in katas:
        lines = list(_matrix(kata))
        survivors += sum("SURVIVES" in line for line in lines)
        if write:
            _write(kata, "mistakes", lines)
    print(f"\n{survivors} mistakes survive the claim they name")
    return 1 if survivors else 0


def _matrix(kata: str) -> Iterator[str]:
    claims, started = catalogue.brief(kata).claims, time.monotonic()
    found = []
    yield _said(f"{kata}: each mistake (a row) against each claim (a column); X is the claim it names")
    for killed in _in_parallel(lambda judge, m: _against_every_claim(kata, m, judge), mistakes(kata)):
        found.append(killed)
        marks = "".join(
            "." if c not in killed.claims else "X" if c == killed.mistake.claim else "x" for c in claims
        )
        fate = "" if killed.by_its_own else "  SURVIVES ITS CLAIM"
        yield _said(f"  {killed.mistake.name:<44} {marks}  {killed.seconds:4.1f} s{fate}")
    for number, claim in enumerate(claims):
        yield _said(f"  {'':<44} {'.' * number}X{'.' * (len(claims) - number - 1)}  {claim}")
    by_own = sum(k.by_its_own for k in found)
    median = statistics.median(k.seconds for k in found)
    yield _said(
        f"{kata}: {by_own} of {len(found)} mistakes refuted by the claim they name, {len(claims)} claims, "
        f"median {median:.1f} s, {time.monotonic() - started:.0f} s in all"
    )


def _against_every_claim(kata: str, mistake: Mistake, judge: Judge) -> Killed:
    """A claim of a later part runs only if the parts before hold: each part is tried by itself."""
    started, source, killers = time.monotonic(), wrong_source(kata, mistake), []
    for part in catalogue.brief(kata).parts:
        verdict = try_mistake(kata, mistake, source, judge, only=part.claims)
        killers += [c.claim for c in verdict.claims if c.status == "failed"]
    if (
        mistake.claim not in killers
    ):  # one that is left to the full stage, which is not reached if others fail
        verdict = try_mistake(kata, mistake, source, judge, only=(mistake.claim,))
        killers += [c.claim for c in verdict.claims if c.status == "failed"]
    return Killed(mistake, tuple(killers), time.monotonic() - started)


# --- mutants --------------------------------------------------------------------------------------------


def mutation(katas: list[str], *, write: bool = False) -> int:
    """Put every mutant of the references on trial; returns 1 if one survives that is not known as equivalent."""
    survivors = 0
    for kata in katas:
        lines = list(_mutation(kata))
        survivors += sum(line.startswith("  survives") for line in lines)
        if write:
            _write(kata, "mutants", lines)
    return 1 if survivors else 0


def _mutation(kata: str) -> Iterator[str]:
    started, every = time.monotonic(), list(mutants(kata))
    known = {(before, after): why for before, after, why in equivalent(kata)}
    refused = same = 0
    for mutant, passed in _in_parallel(lambda judge, m: (m, _passes(kata, m, judge)), every):
        if not passed:
            refused += 1
            continue
        why = known.get((mutant.before, mutant.after))
        same += why is not None
        fate = f"equivalent ({why})" if why else "survives"
        yield _said(f"  {fate}, line {mutant.line}: {_short(mutant.before)}  →  {_short(mutant.after)}")
    due = len(every) - same
    yield _said(
        f"{kata}: {refused} of {due} mutants refused ({refused / max(due, 1):.0%}), {same} equivalent, "
        f"{time.monotonic() - started:.0f} s in all"
    )


def equivalent(kata: str) -> tuple[tuple[str, str, str], ...]:
    """Mutants that a person found to do the same as the reference: what stood there, what stands there, why."""
    return getattr(importlib.import_module(f"mistakes.{kata}"), "EQUIVALENT", ())


def _passes(kata: str, mutant: Mutant, judge: Judge) -> bool:
    return judge.judge(
        kata, Path(f"{kata}-mutant.py"), mutant.source, cards=False, likeness=False, stop_at_first=True,
        seconds=5.0,
    ).verdict.passed  # fmt: skip


def _short(code: str) -> str:
    flat = " ".join(code.split())
    return flat if len(flat) < 90 else flat[:87] + "…"


# --- cards ----------------------------------------------------------------------------------------------


def ordinary(kata: str, count: int = 3) -> tuple[Mistake, ...]:
    """The first mistakes of the catalogue that break different claims: what most people get wrong."""
    by_claim: dict[str, Mistake] = {}
    for mistake in mistakes(kata):
        by_claim.setdefault(mistake.claim, mistake)
    return tuple(by_claim.values())[:count]


def cards(katas: list[str], *, write: bool = False) -> int:
    """Print what a person sees first who makes one of three ordinary mistakes."""
    with Judge() as judge:
        for kata in katas:
            lines = [line for mistake in ordinary(kata) for line in _card(kata, mistake, judge)]
            if write:
                _write(kata, "cards", lines)
    return 0


def _card(kata: str, mistake: Mistake, judge: Judge) -> Iterator[str]:
    path = Path(f"practice/{kata}.py")
    verdict = judge.judge(kata, path, wrong_source(kata, mistake), seed=1, without=(mistake.name,)).verdict
    yield _said(f"{kata}, where {mistake.says}:")
    for line in plain.card(verdict.cards[0], verdict, catalogue.brief(kata)):
        yield _said(line)
    yield _said("")


# --- both -----------------------------------------------------------------------------------------------


def _in_parallel(work: Callable[[Judge, Any], Any], items: list | tuple) -> Iterator[Any]:
    """``work(judge, item)`` for each item, in order, on as many judges as there are cores."""
    count = max(1, min(os.cpu_count() or 1, len(items)))
    judges: queue.SimpleQueue = queue.SimpleQueue()
    opened = [Judge() for _ in range(count)]
    for judge in opened:
        judges.put(judge)

    def on_one(item: Any) -> Any:
        judge = judges.get()
        try:
            return work(judge, item)
        finally:
            judges.put(judge)

    try:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            yield from pool.map(on_one, items)
    finally:
        for judge in opened:
            judge.close()


def _said(line: str) -> str:
    print(line, flush=True)
    return line


def _write(kata: str, section: str, lines: list[str]) -> None:
    """Put a section into the kata's page, and the table of all pages into ``docs/judge.md``."""
    page = DOCS / "power" / f"{kata}.md"
    page.parent.mkdir(exist_ok=True)
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", _read(page), re.M | re.S))
    command = f"    python runner.py check {kata} --{section} --write"
    sections[section] = "\n".join([command, "", "```", *lines, "```", ""])
    text = f"# What the claims of `{kata}` notice\n\n"
    text += "".join(f"## {name}\n\n{sections[name]}\n" for name in sorted(sections))
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    judge = DOCS / "judge.md"
    begin, end = TABLE
    before, _, rest = judge.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    judge.write_text(f"{before}{begin}\n{_table()}{end}{after}", encoding="utf-8")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _table() -> str:
    rows = ["| kata | claims | mistakes refuted | mutants refused | equivalent |", "|---|---|---|---|---|"]
    for kata in catalogue.names():
        text = _read(DOCS / "power" / f"{kata}.md")
        mistakes_ = re.search(r"(\d+ of \d+) mistakes refuted by the claim they name, (\d+) claims", text)
        mutants_ = re.search(r"(\d+ of \d+) mutants refused \((\d+%)\), (\d+) equivalent", text)
        if mistakes_ or mutants_:
            killed, claims = mistakes_.groups() if mistakes_ else ("-", "-")
            refused = f"{mutants_[1]} ({mutants_[2]})" if mutants_ else "-"
            same = mutants_[3] if mutants_ else "-"
            rows.append(f"| [{kata}](power/{kata}.md) | {claims} | {killed} | {refused} | {same} |")
    return "\n".join(rows) + "\n"
