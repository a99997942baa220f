"""The pages of the session screen: a failure, a result, the statement, the hints …

Each function turns what is known into text of a given width; nothing here keeps state.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dojo.catalogue import FollowUp
from dojo.plain import clock, in_a_row, parted
from dojo.screen.board import Board
from dojo.screen.panes import BLUE, DIM, GREEN, RED, TEXT, YELLOW
from dojo.session import Result, Session
from dojo.verdict import Card, Verdict

OUTPUT_LINES = 20
LABEL = 10


# --- failures -----------------------------------------------------------------------------------------


def failure(board: Board, claim: str, width: int) -> RenderableType:
    """The card of a failing claim, or what is known of it so far."""
    card = board.cards.get(claim)
    if card is None:
        rows = [("because", Text(board.failing.get(claim, "")))]
        rows.append(
            ("input", Text("being made as small as it can be …" if not board.verdict else "none found", DIM))
        )
    else:
        rows = [*_smallest(card, width), ("", Text(""))]
    rows += _likeness(board)
    if card is not None and card.why:
        rows.append(("about", Text(card.why)))
    if card is not None and board.brief.sources:
        rows.append(("to read", Text("\n".join(board.brief.sources), style=DIM)))
    return Group(Text(board.sentence(claim), style=f"bold {RED}"), Text(""), _listed(rows), *_more(board))


def _smallest(card: Card, width: int) -> Iterator[tuple[str, RenderableType]]:
    """The smallest input, expected against got, and where they differ."""
    if card.inputs:
        named = Table.grid(padding=(0, 1, 0, 0))
        named.add_column(no_wrap=True)
        named.add_column()
        long, short = parted(card.inputs)
        longest = max(map(len, long), default=0)
        for name, value in long.items():
            named.add_row(Text(f"{name:<{longest}} ="), Text(value, style="bold"))
        row = [Text(in_a_row(short, width - LABEL - 2), style="bold")] if short else []
        yield "input", Group(*[named] * bool(long), *row)
    yield from _compared(card, width - LABEL - 2)
    if card.where:
        yield "where", Text(card.where)
    if card.message:
        yield "raised" if card.line else "because", Text(card.message)
    if card.line:
        yield f"line {card.line}", Text(card.text, style="bold")
    if card.flaky:
        yield (
            "but",
            Text("it held when tried again: the code depends on something that changes", style=YELLOW),
        )


def _compared(card: Card, width: int) -> Iterator[tuple[str, RenderableType]]:
    """Expected and got, side by side where both fit."""
    expected, got = Text(card.expected, style=GREEN), Text(card.got, style=RED)
    if card.expected and card.got and cell_len(card.expected) + cell_len(card.got) + 10 <= width:
        yield "expected", Text.assemble(expected, ("    got  ", DIM), got)
        return
    if card.expected:
        yield "expected", expected
    if card.got:
        yield "got", got


def _likeness(board: Board) -> Iterator[tuple[str, RenderableType]]:
    if board.mistake:
        yield "looks like", Text(board.mistake.says, style=YELLOW)
        yield "belief", Text(board.mistake.belief, style="italic")
        yield "", Text("")


def trouble(board: Board, verdict: Verdict) -> RenderableType:
    """An outcome that is no failing claim: the message, the person's line, rules, what was printed."""
    rows: list[tuple[str, RenderableType]] = []
    if verdict.line:
        rows.append((f"line {verdict.line}", Text(verdict.text, style="bold")))
    head = Text(verdict.message, style=f"bold {YELLOW if verdict.outcome == 'judge_error' else RED}")
    if verdict.outcome == "judge_error":
        rows.append(
            ("", Text("This is the suite's fault and says nothing about your file. r runs it again."))
        )
    return Group(head, Text(""), _listed(rows), *_more(board))


def next_part(board: Board) -> RenderableType:
    """What the interviewer asks next; the statement follows below it."""
    part = board.brief.parts[board.part - 1]
    of = f"part {board.part} of {len(board.brief.parts)} · " if len(board.brief.parts) > 1 else ""
    return Group(Text(of + part.title, style=f"bold {BLUE}"), Text(part.asks), *_more(board), Text(""))


def _more(board: Board) -> Iterator[RenderableType]:
    """Rules that are broken, and the last of what the file printed."""
    verdict = board.verdict
    broken = board.rules
    if verdict and verdict.rules_broken:
        broken = [(f"line {b.line}: " if b.line else "") + b.says for b in verdict.rules_broken]
    if broken:
        yield Text("")
        yield _listed(("rule", Text(says, style=RED)) for says in broken)
    printed = verdict.output.rstrip().splitlines() if verdict else []
    if printed and not verdict.passed:
        few = f", the last {OUTPUT_LINES} of {len(printed)} lines" if len(printed) > OUTPUT_LINES else ""
        yield Text(f"\nprinted by the file{few}", style=DIM)
        yield Text("\n".join(_printable(line) for line in printed[-OUTPUT_LINES:]))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in line.expandtabs())


# --- the statement and the hints ----------------------------------------------------------------------


def statement(session: Session, width: int) -> RenderableType:
    """What to build, the rules, and the hints taken so far."""
    brief = session.brief
    rows: list[tuple[str, RenderableType]] = []
    if brief.lines:
        rows.append(
            ("limit", Text(f"{brief.lines} lines of code; comments, docstrings, blanks, imports are free"))
        )
    forbidden = ", ".join((*brief.forbidden, *brief.forbidden_imports))
    if forbidden:
        rows.append(("forbidden", Text(forbidden, style=DIM)))
    if brief.builds_on:
        rows.append(("may import", Text(", ".join(f"reference.{name}" for name in brief.builds_on))))
    if len(brief.parts) > 1:
        rows += [(f"part {n}", Text(f"{p.title}. {p.asks}")) for n, p in enumerate(brief.parts, 1)]
    return Group(Text(reflow(session.statement(), width)), Text(""), _listed(rows), *_hints_taken(session))


def hints(session: Session) -> RenderableType:
    """The ladder as far as it was climbed, the latest hint last."""
    every, taken = len(session.brief.hints), session.hints_taken
    if not every:
        return Text("This kata has no hints.")
    left = f"{every - taken} left; h takes the next one." if taken < every else "That was the last one."
    note = Text(f"{left} Each hint taken is recorded with the attempt. Escape goes back.", style=DIM)
    return Group(*_hints_taken(session), note)


def _hints_taken(session: Session) -> Iterator[RenderableType]:
    taken, every = session.hints_taken, len(session.brief.hints)
    for number, hint in enumerate(session.brief.hints[:taken], 1):
        latest = number == taken
        yield Text(f"hint {number} of {every}", style=f"bold {BLUE}" if latest else DIM)
        yield Text(hint + "\n", style=TEXT if latest else DIM)


def reflow(text: str, width: int) -> str:
    """A docstring for a narrower terminal: paragraphs filled, columns kept with a hanging indent."""
    width = max(20, width)
    if all(cell_len(line) <= width for line in text.splitlines()):
        return text
    told: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        told += [*(_fill(lines, width) for lines in _paragraphs(block.splitlines())), ""]
    return "\n".join(told).rstrip()


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Lines that belong together: prose and bullets run on, and so does the right column of a table;
    other indented lines stand alone."""
    gathered: list[str] = []
    for line in lines:
        if gathered and not _runs_on(gathered[0], line):
            yield gathered
            gathered = []
        gathered.append(line)
    if gathered:
        yield gathered


def _runs_on(first: str, line: str) -> bool:
    indent = _indent(line)
    if line.lstrip().startswith("- "):
        return False
    if first.startswith("    "):
        return indent >= 16 and (indent == _column(first) or _begins_a_word(first, indent))
    return indent < 4


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _column(line: str) -> int:
    """Where the description begins, in a line of a name and, after a gap, what it is."""
    gap = re.match(r" *\S.*?\s{2,}(?=\S)", line)
    return gap.end() if gap else _indent(line)


def _begins_a_word(line: str, at: int) -> bool:
    """In a line whose name is so long that one blank is all that parts it from what it is."""
    named_only = line.rstrip().endswith(")")
    return not named_only and line[:at].strip() != "" and re.match(r" \S", line[at - 1 :]) is not None


def _fill(lines: list[str], width: int) -> str:
    first = lines[0]
    joined = " ".join([first.rstrip(), *(line.strip() for line in lines[1:])])
    if not first.startswith("    "):
        hang = " " * (_indent(first) + 2 * first.lstrip().startswith("- "))
        return textwrap.fill(joined, width, subsequent_indent=hang)
    hang = " " * min(_indent(lines[1]) if lines[1:] else _column(first), width // 2)
    return textwrap.fill(
        joined, width, subsequent_indent=hang, replace_whitespace=False, break_long_words=False
    )


# --- the end ------------------------------------------------------------------------------------------


def passed(result: Result, session: Session, asked: int, answered: bool) -> RenderableType:
    """What the pass is worth, and what an interviewer asks next."""
    rows = [("time", _against(result.seconds, result.par_seconds, "par"))]
    if result.best_before is None:
        rows.append(("best", Text("your first pass of this kata")))
    else:
        rows.append(("best", _against(result.seconds, result.best_before, "your best so far")))
    if session.timed:
        late = Text("over time: recorded as such", style=RED)
        rows.append(("limit", late if result.over_time else Text("within the time", style=GREEN)))
    limit = f" of {result.line_limit}" if result.line_limit else ""
    rows.append(("lines", Text(f"{result.lines}{limit}")))
    rows.append(("hints", Text(f"{result.hints} taken" if result.hints else "none taken")))
    rows += [("mended" if n == 0 else "", Text(says)) for n, says in enumerate(session.exercise.says)]
    if mended := session.exercise.judged.get("parts"):
        later = session.exercise.brief.parts[mended:]
        rows += [
            ("write next" if n == 0 else "then", Text(f"{p.title}. {p.asks}")) for n, p in enumerate(later)
        ]
    return Group(_listed(rows), *_follow_up(session.follow_ups(), asked, answered))


def _against(seconds: float, mark: float, name: str) -> Text:
    """4:12, 1:48 under par (6:00)."""
    gap = seconds - mark
    how = f"{clock(abs(gap))} {'under' if gap <= 0 else 'over'}"
    text = Text(clock(seconds), style="bold")
    return text.append(f"   {how} {name} ({clock(mark)})", style=f"not bold {GREEN if gap <= 0 else YELLOW}")


def _follow_up(follow_ups: tuple[FollowUp, ...], asked: int, answered: bool) -> Iterable[RenderableType]:
    if not follow_ups:
        return
    ask = follow_ups[asked % len(follow_ups)]
    yield Text(f"\nan interviewer asks next · {asked % len(follow_ups) + 1} of {len(follow_ups)}", style=DIM)
    yield Text(ask.question, style=f"bold {BLUE}")
    yield Text("")
    if not answered:
        yield Text("Answer it aloud, then press a for what a strong answer says.", style=DIM)
        return
    rows = [("strong", Text(ask.strong)), ("red flag", Text(ask.red_flag, style=YELLOW))]
    yield _listed([*rows, ("source", Text(ask.source, style=DIM))])


def _listed(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Labels in a quiet column, what they say beside them."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(width=LABEL, no_wrap=True, style=DIM)
    grid.add_column(ratio=1, overflow="fold")
    for label, said in rows:
        grid.add_row(label, said)
    return grid
