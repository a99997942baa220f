"""How much the claims notice: every mistake against every claim, and every mutant of the references.

``python runner.py check KATA --mistakes`` and ``--mutants`` print what they find, and ``--write`` records it
(``dojo.record``).
"""

from __future__ import annotations

import hashlib
import importlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dojo import catalogue, plain
from dojo.check import try_mistake
from dojo.judge.client import Judge
from dojo.mistake import Mistake, mistakes, wrong_source
from dojo.mutants import Mutant, mutants
from dojo.places import room_file
from dojo.record import in_parallel, put_down, read_page, said
from dojo.verdict import IN_WORDS, Verdict

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
            put_down(kata, "mistakes", lines)
    print(f"\n{survivors} mistakes survive the claim they name")
    return 1 if survivors else 0


def _matrix(kata: str) -> Iterator[str]:
    claims, started = catalogue.brief(kata).claims, time.monotonic()
    found = []
    yield said(f"{kata}: each mistake (a row) against each claim (a column); X is the claim it names")
    for killed in in_parallel(lambda judge, m: _against_every_claim(kata, m, judge), mistakes(kata)):
        found.append(killed)
        marks = "".join(
            "." if c not in killed.claims else "X" if c == killed.mistake.claim else "x" for c in claims
        )
        fate = "" if killed.by_its_own else "  SURVIVES ITS CLAIM"
        yield said(f"  {killed.mistake.name:<44} {marks}  {killed.seconds:4.1f} s{fate}")
    for number, claim in enumerate(claims):
        yield said(f"  {'':<44} {'.' * number}X{'.' * (len(claims) - number - 1)}  {claim}")
    by_own = sum(k.by_its_own for k in found)
    median = statistics.median(k.seconds for k in found)
    yield said(
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


def mutation(katas: list[str], *, write: bool = False, again: bool = False) -> int:
    """Put every mutant of the references on trial; returns 1 if one survives that is not known as equivalent.

    ``again`` tries only those that the last recorded run did not refuse (after a claim was added, say), if
    that run had the same mutants."""
    survivors = 0
    for kata in katas:
        lines = list(_mutation(kata, again))
        survivors += sum(line.startswith("  survives") for line in lines)
        if write:
            put_down(kata, "mutants", lines)
    return 1 if survivors else 0


def _mutation(kata: str, again: bool) -> Iterator[str]:
    started, every = time.monotonic(), list(mutants(kata))
    changes = [_change(mutant) for mutant in every]
    these = f"mutants {hashlib.sha256(repr(changes).encode()).hexdigest()[:8]}"
    before = read_page(kata)
    due = [m for m in every if _change(m) in before] if again and these in before else every
    lines = room_file("reference", kata).read_text(encoding="utf-8").splitlines()
    refused, same = len(every) - len(due), 0
    for mutant, passed in in_parallel(lambda judge, m: (m, _passes(kata, m, judge)), due):
        if not passed:
            refused += 1
            continue
        why = _why_equivalent(kata, mutant, lines[mutant.line - 1])
        same += why is not None
        fate = f"equivalent ({why})" if why else "survives"
        yield said(f"  {fate}, line {mutant.line}: {_change(mutant)}")
    wrong, took = len(every) - same, time.monotonic() - started
    yield said(
        f"{kata}: {refused} of {wrong} mutants refused ({refused / max(wrong, 1):.0%}), {same} equivalent; "
        f"{these}, {len(due)} tried in {took:.0f} s"
    )


def _change(mutant: Mutant) -> str:
    return f"{_short(mutant.before)}  →  {_short(mutant.after)}"


def _why_equivalent(kata: str, mutant: Mutant, line: str) -> str | None:
    """Why a person found that a mutant does the same as the reference; None if nobody did.

    ``EQUIVALENT`` in ``mistakes/NAME.py`` holds what stood there, what stands there, why, and where that alone
    would say too little (``0``, ``1``) a piece of the line. None for both stands for any change to such a line."""
    for before, after, why, *where in getattr(importlib.import_module(f"mistakes.{kata}"), "EQUIVALENT", ()):
        this = (before, after) in ((mutant.before, mutant.after), (None, None))
        if this and all(piece in line for piece in where):
            return why
    return None


def _passes(kata: str, mutant: Mutant, judge: Judge) -> bool:
    verdict = judge.judge(
        kata, Path(f"{kata}-mutant.py"), mutant.source, cards=False, likeness=False, stop_at_first=True,
        seconds=max(5.0, catalogue.brief(kata).seconds / 2),
    ).verdict  # fmt: skip
    return verdict.outcome in ("passed", "judge_error")  # the judge's own failure refuses nothing


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
    from dojo.judge.likeness import known

    with Judge() as judge:
        for kata in katas:
            known(
                kata
            )  # computed now, or the first of the mistakes might get its verdict before it has its name
            lines = [said(line) for mistake in ordinary(kata) for line in _card(kata, mistake, judge)]
            if write:
                put_down(kata, "cards", lines)
    return 0


def _card(kata: str, mistake: Mistake, judge: Judge) -> Iterator[str]:
    source = wrong_source(kata, mistake)
    verdict = judge.judge(kata, Path(f"practice/{kata}.py"), source, seed=1).verdict
    yield from first_card(kata, mistake, verdict)


def first_card(kata: str, mistake: Mistake, verdict: Verdict) -> Iterator[str]:
    """The first card of a verdict on a mistake, under a line that says which; an end without a card, in words."""
    yield f"{kata}, where {mistake.says}:"
    if verdict.cards:
        yield from plain.card(verdict.cards[0], verdict, catalogue.brief(kata))
    else:
        yield plain.wrapped(f"{IN_WORDS[verdict.outcome]}: {verdict.message}", "  ")
    yield ""
