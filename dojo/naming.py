"""Is a mistake called by its name, and never by another's?

``python runner.py check KATA --names`` asks of every mistake whether it is named when it is made, and what is
said when its own entry is taken out of the catalogue; and both of the wrong answers in other styles under
``tests/wrong``, which go through the judge as a person's file does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dojo import catalogue
from dojo.check import wrong_styles
from dojo.judge.client import Judge
from dojo.mistake import mistakes
from dojo.record import in_parallel, put_down, said


def naming(katas: list[str], *, write: bool = False) -> int:
    """Print who is named and who is misnamed; returns 1 if a mistake or file is not told what it is."""
    missed = 0
    for kata in katas:
        lines = [*_mistakes(kata), *_files(kata)]
        missed += sum(line.startswith("  ") for line in lines)
        if write:
            put_down(kata, "names", lines)
    return 1 if missed else 0


def _mistakes(kata: str) -> Iterator[str]:
    """From the results of the probes, as the judge compares them."""
    from dojo.judge.likeness import known, likeness

    everything, brief = known(kata), catalogue.brief(kata)
    named = others = 0
    for mistake in mistakes(kata):
        mine, part = everything.wrong[mistake.name], brief.part_of(mistake.claim)
        with_entry = likeness(kata, mine, everything, part)
        without = likeness(kata, mine, everything.without({mistake.name}), part)
        named += with_entry == mistake.name
        others += without is not None
        if with_entry != mistake.name:
            yield said(f"  {mistake.name} is named {with_entry}")
        if without is not None:
            yield said(f"  {mistake.name}, its entry taken out, is named {without}")
    every = len(mistakes(kata))
    yield said(
        f"{kata}: {named} of {every} mistakes named; without its entry {others} of {every} given another's name"
    )


def _files(kata: str) -> Iterator[str]:
    """By the judge, as anyone's file."""
    named = due = others = 0
    files = wrong_styles(kata)
    for (path, name), (whole, without) in zip(files, in_parallel(_told(kata), files), strict=True):
        due += name is not None
        named += name is not None and whole == name
        others += without is not None
        if whole != name:
            yield said(f"  {path.name}, which makes {name or 'a mistake of its own'}, is named {whole}")
        if without is not None and name:
            yield said(f"  {path.name}, the entry {name} taken out, is named {without}")
    yield said(
        f"{kata}: {named} of {due} files in another style named; "
        f"without an entry {others} of {len(files)} files given a name"
    )


def _told(kata: str) -> Callable[[Judge, tuple[Path, str | None]], tuple[str | None, str | None]]:
    """What the judge calls a file, with the catalogue whole and with the entry of its mistake taken out."""

    def told(judge: Judge, file: tuple[Path, str | None]) -> tuple[str | None, str | None]:
        path, name = file
        verdicts = [judge.judge(kata, path, without=out, hurried=False).verdict for out in ((), (name,) if name else ())]
        rejected = [f"nothing: {v.outcome}" for v in verdicts if v.outcome != "rejected"]
        whole, without = (v.mistake.name if v.mistake else None for v in verdicts)
        return (rejected[0] if rejected else whole), without

    return told
