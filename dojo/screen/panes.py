"""The lines around the page: kata and clock, the file, how things stand, the list of claims.

Nothing here keeps state. Colours only repeat what a word or a mark already says.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from dojo.catalogue import Brief
from dojo.plain import clock
from dojo.screen import board as board_
from dojo.screen.board import Board
from dojo.session import Session
from dojo.verdict import IN_WORDS

BACK, PANEL, LINE = "#15171c", "#1d2027", "#3a3f4b"
TEXT, DIM = "#d8dbe0", "#8d95a1"
GREEN, RED, YELLOW, BLUE = "#93c47d", "#f07f7f", "#e3b95f", "#86b6ea"

MARKS = {
    "waiting": ("·", DIM),
    "running": ("›", BLUE),
    "held": ("✓", GREEN),
    "confirming": ("✓", GREEN),
    "confirmed": ("✓", GREEN),
    "failed": ("✗", RED),
    "not_implemented": ("–", YELLOW),
    "not_reached": ("·", DIM),
    "interrupted": ("✗", RED),
}


# --- the lines at the top -----------------------------------------------------------------------------


def title(brief: Brief, part: int, lines: int | None, width: int) -> Text:
    """Kata, tier, part and line count, in what room there is; the name of the kata gives way first."""
    limit = f"/{brief.lines}" if brief.lines else ""
    count = f"{'–' if lines is None else lines}{limit} lines"
    long = brief.lines is not None and lines is not None and lines > brief.lines
    parts = [f"part {part}/{len(brief.parts)}"] if len(brief.parts) > 1 else []
    rest = [brief.tier, *parts, count + (": too long" if long else "")]
    room = width - sum(len(piece) + 3 for piece in rest)
    name = brief.title if len(brief.title) <= room else brief.title[: max(0, room - 1)] + "…"
    text = Text(name, style=f"bold {TEXT}", no_wrap=True)
    for piece in rest:
        text.append(" · ", style=DIM)
        text.append(piece, style=RED if long and piece.startswith(count) else DIM)
    return text


def time_line(session: Session, given_up: float | None, wide: bool) -> Text:
    """The clock: counting down against the limit, or up beside par; it stops when the attempt is over."""
    par = clock(session.brief.minutes * 60)
    beside = f" · par {par}" if wide else ""
    if session.result:
        return Text(f"passed in {clock(session.result.seconds)}{beside}", style=GREEN)
    if given_up is not None:
        return Text(f"given up at {clock(given_up)}{beside}", style=DIM)
    left = session.remaining()
    if left is None:
        return Text(f"{clock(session.elapsed())} · par {par}", style=TEXT)
    if left < 0:
        return Text(f"over time by {clock(-left)}{beside}", style=f"bold {RED}")
    return Text(f"{clock(left)} left of {par}", style=YELLOW if left < 60 else TEXT)


def file_line(path: str, uri: str, width: int) -> Text:
    """The path as a link; if it is too long, its end is what stays."""
    short = path if cell_len(path) <= width else "…" + path[len(path) - max(1, width - 1) :]
    return Text(short, style=Style(color=BLUE, link=uri), no_wrap=True)


def band(board: Board, shown: int) -> Text:
    """Did it hold? One line, read first. ``shown`` is the index of the failing claim on display."""
    verdict, failed = board.verdict, board.failed
    if verdict is None:
        return _band_under_way(board, failed)
    if verdict.passed:
        return _band("✓", "passed", f"{verdict.message}, on every example", GREEN)
    took = f"{verdict.seconds:.1f} s"
    if verdict.outcome == "rejected" and failed:
        where = f" in part {board.part}" if len(board.brief.parts) > 1 else ""
        at = f" · {shown + 1} of {len(failed)} shown" if len(failed) > 1 else ""
        return _band(
            "✗", "rejected", f"{_count(len(failed), 'claim')} {_verb(failed)}{where}{at} · {took}", RED
        )
    if verdict.outcome == "not_implemented" and board.part > 1:
        return _band(
            "✓",
            f"part {board.part - 1} of {len(board.brief.parts)} holds",
            f"next: {board.brief.parts[board.part - 1].title}",
            GREEN,
        )
    colour = YELLOW if verdict.outcome in ("not_implemented", "judge_error") else RED
    mark = "–" if verdict.outcome == "not_implemented" else "✗"
    return _band(mark, IN_WORDS[verdict.outcome], verdict.message, colour)


def _band_under_way(board: Board, failed: list[str]) -> Text:
    total = len(board.states)
    if failed:
        return _band("✗", "does not hold", f"{_count(len(failed), 'claim')} {_verb(failed)} so far", RED)
    if board.rules:
        return _band("✗", "a rule is broken", board.rules[0], RED)
    if board.quick_seconds is not None:
        quick = f"after {board.quick_seconds:.1f} s · confirming, {board.tried} of {total}"
        return _band("✓", "holds on few examples", quick, GREEN)
    return _band("›", "judging", f"{board.tried} of {total} claims tried", BLUE)


def _band(mark: str, word: str, rest: str, colour: str) -> Text:
    return Text.assemble((f"{mark} {word}", f"bold {colour}"), ("  " + rest, TEXT), no_wrap=True)


def quiet(mark: str, word: str, rest: str = "", colour: str = DIM) -> Text:
    """A band for when nothing is being judged."""
    return _band(mark, word, rest, colour)


# --- the claims ---------------------------------------------------------------------------------------


def claim_rows(board: Board, shown: str | None, wide: bool) -> list[tuple[str | None, Text]]:
    """The list of claims, one line each, with a heading for each part: (claim or None, line).

    Where there is room (``wide``) every claim has its line. Otherwise only the part under way is
    opened; while all of them are being confirmed, none; and after the verdict only what is wrong.
    """
    rows: list[tuple[str | None, Text]] = []
    live = board.live if board.quick_seconds is None or board.failed else None
    for number, part in enumerate(board.brief.parts, 1):
        if wide and rows:
            rows.append((None, Text("")))
        rows.append((None, _heading(board, number)))
        states = {board.states[claim] for claim in part.claims}
        open_ = wide or (live in part.claims) or bool(states & {"interrupted"})
        for claim in part.claims if open_ else ():
            settled = board.states[claim] in ("held", "confirmed", "not_reached")
            if wide or board.verdict is None or not settled:
                rows.append((claim, _row(board, claim, claim == shown)))
    return rows


def _heading(board: Board, number: int) -> Text:
    part = board.brief.parts[number - 1]
    states = [board.states[claim] for claim in part.claims]
    style = f"bold {TEXT}" if number == board.part else DIM
    name = f"{number} {part.title}" if len(board.brief.parts) > 1 else part.title
    return Text.assemble((name, style), ("  " + _tally(states), DIM))


def _tally(states: list[str]) -> str:
    """How many claims are in which state, in words: 7 held, 3 fail."""
    words = board_.IN_WORDS | {"failed": "fail", "interrupted": "stopped"}
    counts = {state: states.count(state) for state in words}
    counts["held"] += counts.pop("confirming")
    if len(states) == counts["confirmed"]:
        return f"✓ all {len(states)} confirmed"
    if len(states) == counts["held"]:
        return f"✓ all {len(states)} held"
    return " · ".join(f"{count} {words[state]}" for state, count in counts.items() if count)


def _row(board: Board, claim: str, shown: bool) -> Text:
    state = board.states[claim]
    mark, colour = MARKS[state]
    strong = state in ("failed", "interrupted", "running")
    return Text.assemble(
        ("▸" if shown else " ", BLUE),
        (f"{mark} {board_.IN_WORDS[state]:<12}", f"bold {colour}" if strong else colour),
        (board.sentence(claim), TEXT if strong else DIM),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _verb(failed: list[str]) -> str:
    return "fails" if len(failed) == 1 else "fail"


def extent(text: Text) -> tuple[int, int]:
    """Columns and line breaks: while these stay, nothing around a text has to move."""
    return text.cell_len, text.plain.count("\n")
