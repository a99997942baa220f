"""Everything the runner prints without the screen: verdicts, lists, histories. Plain text, no colour."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Iterable, Iterator

from dojo import catalogue
from dojo.catalogue import Brief
from dojo.exercise import Exercise
from dojo.places import room_file, shown
from dojo.session import Result
from dojo.store import Attempt
from dojo.verdict import IN_WORDS, Card, Verdict

WIDTH = 96
CARDS = 3
"""How many failures are shown in full: the first ones say most."""
SHORT, MANY = 20, 3
"""Inputs of so few characters share a line if there are so many of them."""
MARKS = {
    "held": "held",
    "failed": "FAILED",
    "not_implemented": "to write",
    "not_reached": "-",
    "interrupted": "STOPPED",
}


def clock(seconds: float) -> str:
    """Seconds as 7:05 or 1:02:03; negative time with a minus."""
    whole = round(abs(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"-{text}" if seconds < 0 and whole else text


def wrapped(text: str, indent: str = "", first: str | None = None) -> str:
    """A paragraph, wrapped; ``first`` is the indent of its first line, if another."""
    return textwrap.fill(
        text, WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent
    )


def rules(brief: Brief) -> str:
    """Par, line limit, and what may not be called, in a few lines."""
    limit = "no line limit" if brief.lines is None else f"at most {brief.lines} lines of code"
    told = [f"{brief.tier} · par {brief.minutes} min · {limit}"]
    if brief.forbidden or brief.forbidden_imports:
        told.append(
            wrapped("not to be used: " + ", ".join((*brief.forbidden, *brief.forbidden_imports)), "  ", "")
        )
    if brief.builds_on:
        told.append("may be imported: " + ", ".join(f"reference.{name}" for name in brief.builds_on))
    parts = [f"  part {n}  {part.title}" for n, part in enumerate(brief.parts, 1)]
    return "\n".join(told + (parts if len(parts) > 1 else []))


# --- verdicts ---------------------------------------------------------------------------------------


def verdict(found: Verdict, brief: Brief) -> str:
    """A verdict as text: the outcome, the claims by part, the cards."""
    return "\n".join(_verdict(found, brief))


def _verdict(found: Verdict, brief: Brief) -> Iterator[str]:
    yield wrapped(f"{found.kata}: {IN_WORDS[found.outcome]}: {found.message}", "  ", "")
    if found.line:
        yield f"  {found.file}:{found.line}   {found.text}"
    for broken in found.rules_broken:
        at = f"  (line {broken.line})" if broken.line else ""
        yield f"  rule broken: {broken.says}{at}"
    yield ""
    for part in found.parts:
        mine = [c for c in found.claims if c.part == part.number]
        held = sum(c.status == "held" for c in mine)
        yield f"part {part.number}  {part.title}: {held} of {len(mine)} claims hold"
        if part.status != "not_reached":
            for claim in mine:
                yield wrapped(claim.sentence, " " * 12, f"  {MARKS[claim.status]:<9} ")
    for number, shown_card in enumerate(found.cards[:CARDS]):
        yield ""
        yield from card(shown_card, found if number == 0 else None, brief)
    if len(found.cards) > CARDS:
        yield f"\n({len(found.cards) - CARDS} more cards: --json has them all)"
    if found.output.strip() and not found.passed:
        yield "\nprinted by the file:"
        yield textwrap.indent("\n".join(found.output.rstrip().splitlines()[-20:]), "  ")
    yield ""
    limit = f" of {found.line_limit}" if found.line_limit else ""
    lines = "" if found.lines is None else f"{found.lines}{limit} lines · "
    tried = "every claim on its full number of examples" if found.confirmed else "not confirmed"
    yield f"{lines}{found.seconds:.1f} s · {tried}"


def parted(inputs: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs that need a line each, and the small ones, if they are many enough to share a line."""
    short = {n: v for n, v in inputs.items() if len(v) <= SHORT and not v.startswith("[")}
    if len(short) < MANY:
        return inputs, {}
    return {n: v for n, v in inputs.items() if n not in short}, short


def in_a_row(inputs: dict[str, str], width: int, indent: str = "") -> str:
    """Inputs side by side; a line breaks between two of them only."""
    told = ", ".join(f"{name} = {value}".replace(" ", "\0") for name, value in inputs.items())
    filled = textwrap.fill(told, width, initial_indent=indent, subsequent_indent=indent)
    return filled.replace("\0", " ")


def card(shown_card: Card, found: Verdict | None, brief: Brief) -> Iterator[str]:
    """A failure card; the verdict is given with the first, which also says what the file looks like."""
    yield "─" * 72
    yield wrapped("does not hold: " + shown_card.sentence, "  ", "")
    long, short = parted(shown_card.inputs)
    for name, value in long.items():
        yield wrapped(f"{name} = {value}", " " * (len(name) + 5), "  ")
    if short:
        yield in_a_row(short, WIDTH, "  ")
    yield wrapped(shown_card.message, "  ")
    if shown_card.expected or shown_card.got:
        if shown_card.expected:
            yield wrapped(shown_card.expected, " " * 12, "  expected  ")
        yield wrapped(shown_card.got, " " * 12, "  got       ")
    if shown_card.where:
        yield f"  {shown_card.where}"
    if shown_card.line:
        yield f"  your line {shown_card.line}: {shown_card.text}"
    if shown_card.flaky:
        yield "  (it failed once and held when tried again: the code depends on something that changes)"
    if found is not None and found.mistake:
        yield wrapped(f"this looks like: {found.mistake.says}", "  ")
        yield wrapped(f"the thought behind it: {found.mistake.belief}", "  ")
    if shown_card.why:
        yield wrapped(shown_card.why, "  ")
    if found is not None and brief.sources:
        yield wrapped(f"to read: {brief.sources[0]}", "  ")


def result(reached: Result) -> str:
    """What a pass is worth."""
    against = "under par" if reached.seconds <= reached.par_seconds else "over par"
    told = [f"time {clock(reached.seconds)} ({against}, par {clock(reached.par_seconds)})"]
    if reached.over_time:
        told.append("recorded as over time")
    if reached.best_before is not None:
        gap = reached.seconds - reached.best_before
        told.append(f"your best was {clock(reached.best_before)}" + (": a new best" if gap < 0 else ""))
    if reached.hints:
        told.append(f"{reached.hints} hint{'s' * (reached.hints > 1)} taken")
    return " · ".join(told)


def next_parts(exercise: Exercise) -> str:
    """What is to be written in the same file once its bugs are mended; nothing where all parts were judged."""
    mended = exercise.judged.get("parts")
    if mended is None:
        return ""
    told = [f"then, in the same file (python runner.py {exercise.again} --continue):"]
    told += [wrapped(f"{p.title}. {p.asks}", "    ", "  ") for p in exercise.brief.parts[mended:]]
    return "\n".join(told) + "\n"


def follow_ups(brief: Brief) -> str:
    """The questions alone: what a strong answer says is in ``show --answers``."""
    told = ["an interviewer would ask next:"]
    told += [wrapped(f.question, "     ", f"  {n}. ") for n, f in enumerate(brief.follow_ups, 1)]
    return "\n".join([*told, f"(answers: python runner.py show {brief.name} --answers)"])


def answers(brief: Brief) -> str:
    """The follow-ups with what a strong answer says, the red flag, and the source."""
    told = []
    for number, ask in enumerate(brief.follow_ups, 1):
        told += [
            wrapped(ask.question, "   ", f"{number}. "),
            wrapped(ask.strong, "   strong:   ".replace("strong:", "       "), "   strong:   "),
        ]
        told += [
            wrapped(ask.red_flag, " " * 13, "   red flag: "),
            wrapped(ask.source, " " * 13, "   source:   "),
            "",
        ]
    return "\n".join(told)


# --- what has been done -----------------------------------------------------------------------------


def table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    """Columns, aligned on their widest entry."""
    every = [heads, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    )


def listing(attempts: dict[str, list[Attempt]]) -> str:
    """All katas with par, limit, parts and the person's best."""
    rows = []
    for name in catalogue.names():
        brief = catalogue.brief(name)
        rows.append((
            name, brief.tier, f"{brief.minutes} min", str(brief.lines or "-"), str(len(brief.parts)),
            *standing(attempts.get(name, [])), brief.title + "".join(f" (needs {m})" for m in catalogue.lacking(name)),
        ))  # fmt: skip
    return table(rows, ("kata", "tier", "par", "lines", "parts", "tries", "best", "about"))


def standing(attempts: list[Attempt]) -> tuple[str, str]:
    """How often a kata was tried, and the best time."""
    passed = [a.seconds for a in attempts if a.outcome == "passed" and a.seconds is not None]
    return str(len(attempts) or "-"), clock(min(passed)) if passed else "-"


def home(attempts: dict[str, list[Attempt]]) -> str:
    """The front page: what was done, what is next; for a newcomer, what to type first."""
    names = catalogue.names()
    passed = [n for n in names if any(a.outcome == "passed" for a in attempts.get(n, []))]
    if not attempts:
        return "\n".join([
            f"{len(names)} katas of the LLM stack, each with a judge that names your bug.", "",
            "start here:   python runner.py softmax --timed      (6 minutes, a warm-up)",
            "or here:      python runner.py attention --timed    (what is asked most)", "",
            "A blank stub goes to practice/; edit it in your editor, and every save is judged.",
            "all katas:    python runner.py list",
        ])  # fmt: skip
    open_now = [a for found in attempts.values() for a in found if a.outcome is None]
    told = [f"{len(passed)} of {len(names)} katas passed"]
    for attempt in open_now:
        at = f"started {when(attempt.started)}"
        words = attempt.kata.replace("hunt-", "hunt ", 1)
        told.append(f"open: {words} ({at}); go on with: python runner.py {words} --continue")
    todo = [n for n in names if n not in passed]
    if todo:
        flag = " --timed"
        told.append(f"next: python runner.py {todo[0]}{flag}    ({catalogue.brief(todo[0]).title})")
    else:
        slowest = max(
            passed,
            key=lambda n: (
                min(a.seconds for a in attempts[n] if a.outcome == "passed") / catalogue.brief(n).minutes
            ),
        )
        told.append(f"next: python runner.py {slowest} --timed    (your slowest against par)")
    return "\n".join([*told, "", table(recent(attempts), ("when", "kata", "outcome", "time", "hints"))])


def recent(attempts: dict[str, list[Attempt]], most: int = 8) -> list[tuple[str, ...]]:
    every = sorted((a for found in attempts.values() for a in found), key=lambda a: -a.started)
    return [_row(a) for a in every[:most]]


def history(attempts: list[Attempt], kept: list[dict]) -> str:
    """Attempts, and the texts that were put aside."""
    told = (
        [table([_row(a) for a in attempts], ("when", "kata", "outcome", "time", "hints"))]
        if attempts
        else ["no attempts yet"]
    )
    if kept:
        rows = [
            (str(k["id"]), when(k["at"]), k["kata"], k["why"], f"{len(k['source'].splitlines())} lines")
            for k in kept
        ]
        told += [
            "",
            "files put aside (print one with --show NUMBER):",
            table(rows, ("number", "when", "kata", "why", "size")),
        ]
    return "\n".join(told)


def _row(attempt: Attempt) -> tuple[str, ...]:
    outcome = (attempt.outcome or "open").replace("_", " ") + (", over time" if attempt.over_time else "")
    time = clock(attempt.seconds) if attempt.seconds is not None else "-"
    return when(attempt.started), attempt.kata, outcome, time, str(attempt.hints or "-")


def when(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")


def statement(brief: Brief) -> str:
    """The statement with the rules, as ``show`` prints it."""
    where = shown(room_file("katas", brief.name))
    return f"{brief.title}\n{rules(brief)}\n\n{catalogue.statement(brief.name)}\n\nthe stub: {where}"
