"""The session screen: the file is saved in an editor next to it, and here stands what became of it.

Three things move it: the person's keys, the file (``dojo.screen.watch``, ten times a second), and the judge,
which runs in a thread of its own and whose events arrive as messages. What it looks like is in
``dojo.screen.panes`` and ``dojo.screen.pages``; nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import tokenize
from collections.abc import Callable
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import App, ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.css.query import NoMatches
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Footer, Static

from dojo.judge.client import Judge, Ruling
from dojo.places import room_file, shown
from dojo.plain import clock
from dojo.rules import logical_lines
from dojo.screen import editor, look, pages, panes
from dojo.screen.board import Board
from dojo.screen.compare import Compare
from dojo.screen.trials import Trials
from dojo.screen.watch import Save, Watch
from dojo.session import Session

POLL = 0.1
Page = tuple[Any, ...]
"""What the body shows: its kind first, then whatever, when it changes, makes it another page."""
CLOSING = contextlib.suppress(NoMatches, IndexError)
"""When the app is closed its widgets go before its timers do."""


def run_session(session: Session, judge: Judge, *, resumed: bool, kept: int | None, edit: bool) -> int:
    """Show the session until the person quits. Returns 0 if the attempt passed, else 1."""
    app = SessionApp(session, judge, resumed=resumed, kept=kept, edit=edit)
    try:
        app.run()
    finally:
        if app.trials.judge is not judge:
            app.trials.judge.close()  # one that was started here, in place of one that died
    if app.return_code:  # the app itself went wrong, and has said how
        return app.return_code
    return 0 if session.result else 1


class Heard(Message):
    """An event of the judge, and the number of the trial that it belongs to."""

    def __init__(self, trial: int, event: dict[str, Any]):
        self.trial, self.event = trial, event
        super().__init__()


class Ask(ModalScreen[bool]):
    """A question before something that cannot be taken back. Only y means yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes"),
        Binding("n,escape,enter,q,ctrl+c", "dismiss(False)", "no", priority=True),
    ]

    def __init__(self, question: str):
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        yield Static(f"{self.question}\n\ny  yes     n  no", id="question", markup=False)


class SessionApp(App[None]):
    """One attempt, from the blank stub to the follow-up questions."""

    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-narrow"), (look.WIDE, "-wide")]
    CSS = look.CSS
    BINDINGS: ClassVar[list[BindingType]] = look.KEYS

    def __init__(
        self,
        session: Session,
        judge: Judge,
        *,
        resumed: bool = False,
        kept: int | None = None,
        edit: bool = False,
        new_judge: Callable[[], Judge] = Judge,
    ):
        super().__init__()
        self.register_theme(look.THEME)
        self.theme = "dojo"
        self.session = session
        self.trials = Trials(session, judge, new_judge, self.pass_on)
        self.resumed, self.kept, self.edit_first = resumed, kept, edit
        self.board = Board(session.brief)
        self.watch_file = Watch(session.path)
        self.stub = session.exercise.text
        self.save: Save | None = None
        self.judging = False
        self.dead: str | None = None  # why there is no judge, if there is none
        self.view = ""  # what the person asked to see instead: statement, hints or compare
        self.selected = 0  # which failing claim is shown
        self.asked, self.answered = 0, False
        self.given_up: float | None = None
        self.told_time = False
        self.lines: int | None = None
        self.drawn: Page = ("",)
        self.soon = False  # is a drawing due?
        self.keys: tuple[bool | None, ...] = ()
        self.put_last: dict[str, Text] = {}

    # --- the screen -------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Horizontal(Static(id="title"), Static(id="clock"), id="top")
        yield Horizontal(Static(id="path"), Static(id="saved"), id="file")
        yield Static(id="band")
        yield Static(id="notice")
        with Horizontal(id="middle"):
            with VerticalScroll(id="main"):
                yield Static(id="body")
            with VerticalScroll(id="claims", can_focus=False):
                yield Static(id="list")
        yield Compare(id="compare")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#main").focus()
        if self.resumed:
            self.say(
                f"Going on with the attempt begun {clock(self.session.elapsed())} ago; the clock went on."
            )
        elif self.kept is not None:
            self.say(f"Your earlier file is kept: {self.kept_where(self.kept)}")
        self.look()
        self.set_interval(POLL, self.look)
        self.set_interval(0.25, self.tick)
        self.call_after_refresh(self.draw)
        if self.edit_first:
            self.call_after_refresh(self.action_edit)

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw, anew=True)

    def say(self, notice: str) -> None:
        """A line that stays until the next save."""
        with CLOSING:
            line = self.screen_stack[0].query_one("#notice", Static)
            line.update(Text(notice))
            line.set_class(bool(notice), "-said")

    def draw(self, anew: bool = False) -> None:
        """Bring every pane up to date; the body only if it is another page, or ``anew``."""
        self.soon = False
        with CLOSING:
            self.draw_all(anew)

    def draw_all(self, anew: bool) -> None:
        self.draw_top()
        self.put("#band", self.band())
        page = self.page()
        screen = self.screen_stack[0]
        screen.set_class(page[0] in ("statement", "hints"), "-reading")
        screen.set_class(page[0] == "compare", "-comparing")
        # While a new verdict is on its way, the one before it stays readable but steps back.
        old = self.judging and page == self.drawn and page[0] in ("card", "trouble") and not self.board.failed
        screen.query_one("#body").set_class(old, "-old")
        if page != self.drawn or anew:
            self.later(self.draw_body, page, self.drawn)
            self.drawn = page
            changing = ("answer", "compare", "hint", "reset", "next", "back")
            keys = tuple(self.check_action(action, ()) for action in changing)
            if keys != self.keys:
                self.keys = keys
                self.refresh_bindings()
        self.draw_claims()

    def draw_top(self) -> None:
        width = self.screen_stack[0].size.width - 2
        time_line = panes.time_line(self.session, self.given_up, self.size.width >= look.WIDE)
        self.put("#clock", time_line)
        self.put(
            "#title",
            panes.title(self.session.brief, self.board.part, self.lines, width - time_line.cell_len - 2),
        )
        saved = "not saved yet"
        if self.save is not None and self.save.source != self.stub:
            saved = "saved " + time.strftime("%H:%M:%S", time.localtime(self.save.at))
        self.put("#saved", Text(saved))
        path = self.session.path
        self.put("#path", panes.file_line(shown(path), path.as_uri(), width - len(saved) - 2))

    def put(self, where: str, what: Text) -> None:
        """Change a line, if it changes; the layout is only worked out anew if its size does."""
        before = self.put_last.get(where)
        if what != before:
            moved = before is None or panes.extent(before) != panes.extent(what)
            self.screen_stack[0].query_one(where, Static).update(what, layout=moved)
            self.put_last[where] = what

    def band(self) -> Text:
        """The one line that says how things stand."""
        if self.dead:
            return panes.quiet("✗", "no judge", "your file is safe; r starts another one", panes.RED)
        if self.watch_file.gone:
            return panes.quiet(
                "✗", "the file is gone", "waiting for it to come back; x puts the first text there", panes.RED
            )
        if self.judging and not self.trials.warm:
            return panes.quiet("›", "saved", "the judge is still warming up", panes.BLUE)
        if self.judging or self.board.verdict is not None:
            return panes.band(self.board, self.selected)
        if self.given_up is not None:
            return panes.quiet(
                "–", "given up", "what is saved now is judged, but counts no more", panes.YELLOW
            )
        return panes.quiet("·", "not judged yet", "write the file and save it: every save is judged")

    def draw_claims(self) -> None:
        """The list, scrolled so far that the claim on display, or else the one under way, is seen."""
        board = self.board
        failed = self.stack[self.selected] if self.stack else None
        rows = panes.claim_rows(board, failed, self.size.width >= look.WIDE)
        self.put("#list", Text("\n").join(row for _, row in rows))
        target = failed or board.live
        at = next((n for n, (claim, _) in enumerate(rows) if target and claim == target), 0)
        self.later(self.bring_in, at)

    def later(self, what: Callable[..., None], *given: object) -> None:
        """Do something once the layout is known."""

        def then() -> None:
            with CLOSING:
                what(*given)

        self.call_after_refresh(then)

    def bring_in(self, row: int) -> None:
        claims = self.screen_stack[0].query_one("#claims", VerticalScroll)
        top, room = claims.scroll_offset.y, claims.scrollable_content_region.height
        if row == 0 or not top <= row < top + room:
            claims.scroll_to(y=max(0, row - room // 2), animate=False)

    @property
    def stack(self) -> list[str | None]:
        """What Tab goes through: what ended the trial (None), then the failing claims."""
        verdict = self.board.verdict
        ended = verdict is not None and verdict.outcome not in ("passed", "rejected", "not_implemented")
        return [None] * ended + self.board.failed

    def page(self) -> Page:
        """What the body should show now."""
        board, verdict, stack = self.board, self.board.verdict, self.stack
        if self.view:
            return (self.view, self.session.hints_taken)
        if stack:
            claim = stack[self.selected]
            if claim is None:
                return ("trouble", self.trials.number)
            return ("card", self.trials.number, claim, claim in board.cards, board.mistake, verdict is None)
        if verdict is not None and verdict.passed:
            return ("passed", self.asked, self.answered)
        if verdict is not None:
            return ("next", self.trials.number)
        if board.quick_seconds is not None:
            return ("confirming",)
        if self.judging and self.drawn[0] in ("card", "trouble", "passed", "next"):
            return self.drawn
        return ("no judge", self.dead) if self.dead else ("home",)

    def draw_body(self, page: Page, before: Page) -> None:
        """Fill the body, and start at its top if it is another page than before."""
        screen = self.screen_stack[0]
        body, main = screen.query_one("#body", Static), screen.query_one("#main", VerticalScroll)
        if page[0] == "compare":
            self.draw_compare()
            return
        found = self.render_page(page, main.scrollable_content_region.width)
        if found is not None:
            body.update(found)
        if page[0] == "hints":
            self.call_after_refresh(main.scroll_end, animate=False)
        elif page[:3] != before[:3]:
            main.scroll_home(animate=False)

    def render_page(self, page: Page, width: int) -> RenderableType | None:
        """The body as text; None where what stands there is to stay."""
        board, session = self.board, self.session
        match page[0]:
            case "card":
                # While the next verdict is on its way, the failure that is shown is already forgotten.
                return pages.failure(board, page[2], width) if page[2] in board.failing else None
            case "trouble":
                return pages.trouble(board, board.verdict) if board.verdict else None
            case "next":
                return (
                    Group(pages.next_part(board), pages.statement(session, width)) if board.verdict else None
                )
            case "passed" if board.verdict is None:
                return None
            case "passed" if session.result is None:
                return Text(
                    "Every claim holds. The attempt was given up before, so it does not count as passed."
                )
            case "passed":
                return pages.passed(session.result, session, self.asked, self.answered)
            case "confirming":
                return Text(
                    "Every claim holds on few examples. Only when it holds on all of them it is a pass."
                )
            case "no judge":
                return Text(
                    f"{page[1]}\n\nYour file is safe, and the attempt stays open. r starts another judge."
                )
            case "hints":
                return pages.hints(session)
        return pages.statement(session, width)

    def draw_compare(self) -> None:
        yours = self.session.source()
        theirs = room_file("reference", self.session.kata).read_text(encoding="utf-8")
        titles = tuple(
            name if lines is None else f"{name} · {lines} lines"
            for name, lines in (("your file", count_lines(yours)), ("the reference", count_lines(theirs)))
        )
        columns = self.size.width // (2 if self.size.width >= look.WIDE else 1) - 2
        self.screen_stack[0].query_one(Compare).fill(yours, theirs, titles, columns)
        self.front().focus()

    def front(self) -> Widget:
        """The pane that the scrolling keys move."""
        screen = self.screen_stack[0]
        return screen.query_one(Compare).front if self.view == "compare" else screen.query_one("#main")

    # --- the file ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Has the file been saved, or gone?"""
        was_gone = self.watch_file.gone
        save = self.watch_file.poll()
        if save is not None:
            self.saved(save)
        if save is not None or was_gone != self.watch_file.gone:
            self.draw()

    def saved(self, save: Save) -> None:
        """A new text: count its lines, and judge it unless it is the blank stub (what a hunt begins with is)."""
        first, self.save = self.save is None, save
        self.lines = count_lines(save.source)
        if not first:
            self.say("")
        if save.source == self.stub and not self.session.exercise.planted:
            self.stop_judging()
        else:
            self.start_judging()

    def tick(self) -> None:
        """The clock moves on; when the time is up, that is said once."""
        left = self.session.remaining()
        over = self.session.result is not None or self.given_up is not None
        if left is not None and left < 0 and not over and not self.told_time:
            self.told_time = True
            self.say("Time is up. Go on if you like: a pass from here on is recorded as over time.")
            self.bell()
        with CLOSING:
            self.draw_top()

    # --- the judge --------------------------------------------------------------------------------

    def start_judging(self) -> None:
        """Judge the file as it was saved last."""
        self.board.clear()
        self.judging, self.dead, self.view, self.selected = True, None, "", 0
        self.trials.start(self.save.source)

    def stop_judging(self) -> None:
        """Nothing is on trial any more."""
        self.trials.forget()
        self.board.clear()
        self.judging, self.dead, self.view, self.selected, self.drawn = False, None, "", 0, ("",)

    def pass_on(self, trial: int, event: dict[str, Any]) -> None:
        """In the thread of a trial: bring what the judge said to the screen's."""
        with contextlib.suppress(RuntimeError):  # the screen was closed meanwhile
            self.post_message(Heard(trial, event))

    def on_heard(self, heard: Heard) -> None:
        if heard.trial != self.trials.number:
            return
        event = heard.event
        if event["event"] == "unavailable":
            self.judging, self.dead = False, event["message"]
        else:
            self.board.hear(event)
        if event["event"] == "verdict":
            self.judging = False
            self.record(event)
        if event["event"] == "claim":
            self.draw_soon()
        else:
            self.draw()

    def draw_soon(self) -> None:
        """Claims finish in quick succession; drawing each would take time from the judge."""
        if not self.soon:
            self.soon = True
            self.set_timer(0.05, self.draw)

    def record(self, event: dict[str, Any]) -> None:
        """Keep the verdict. A pass stays on the screen; nothing moves on by itself."""
        started, now = self.session.attempt.started, time.time()
        saved_at = min(max(self.save.at, started), max(now, started))
        before = self.session.result
        try:
            self.session.record(Ruling(self.board.verdict, event["examples"]), self.save.source, saved_at)
        except sqlite3.Error as wrong:
            self.say(f"This verdict could not be recorded ({wrong}). Your file is safe.")
        if before is None and self.session.result is not None:
            self.asked, self.answered = 0, False

    # --- the keys ---------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.session.result is not None or self.given_up is not None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that have no meaning now are neither shown nor heard."""
        on_pass = self.drawn[0] == "passed" and self.session.result is not None
        match action:
            case "answer" | "question":
                return on_pass and bool(self.session.follow_ups())
            case "compare":
                return self.over
            case "hint" | "solution":
                return not self.over
            case "reset":
                return self.session.result is None
            case "next":
                return self.view == "compare" or (not self.view and len(self.stack) > 1)
            case "back":
                return bool(self.view)
        return True

    def action_judge(self) -> None:
        if self.save is None:
            return
        if self.dead:
            self.trials.replace_judge()
        self.start_judging()
        self.draw()

    def action_hint(self) -> None:
        self.session.next_hint()
        self.look_at("hints")

    def action_statement(self) -> None:
        self.look_at("" if self.view == "statement" else "statement")

    def action_compare(self) -> None:
        self.look_at("" if self.view == "compare" else "compare")

    def action_back(self) -> None:
        self.look_at("")

    def look_at(self, view: str) -> None:
        self.view = view
        self.draw()
        self.front().focus()

    def action_next(self, step: int) -> None:
        if self.view == "compare":
            self.screen_stack[0].query_one(Compare).turn()
            self.front().focus()
        else:
            self.selected = (self.selected + step) % len(self.stack)
            self.draw()

    def action_question(self) -> None:
        self.asked, self.answered = self.asked + 1, False
        self.draw()

    def action_answer(self) -> None:
        self.answered = not self.answered
        self.draw()

    def action_scroll(self, rows: int) -> None:
        self.front().scroll_relative(y=rows, animate=False)

    def action_reset(self) -> None:
        self.push_screen(
            Ask("Put the file back as it was at first? What you have written so far is kept."), self.reset
        )

    def reset(self, sure: bool | None) -> None:
        if not sure:
            return
        kept = self.session.reset()
        self.look()
        if kept is not None:
            self.say(f"Your text is kept: {self.kept_where(kept)}")

    def kept_where(self, number: int) -> str:
        return f"python runner.py history {self.session.name} --show {number}"

    def action_solution(self) -> None:
        question = "Show the reference? This ends the attempt as given up."
        self.push_screen(Ask(question), self.give_up)

    def give_up(self, sure: bool | None) -> None:
        if not sure or self.over:
            return
        self.given_up = self.session.elapsed()
        self.session.give_up()
        self.say("The attempt is over, as given up. Escape leaves the reference, c brings it back.")
        self.look_at("compare")

    def action_edit(self) -> None:
        """Open the editor: beside the screen if it has a window, else in place of the screen."""
        try:
            words = editor.command()
            if editor.has_window(words):
                editor.open_window(words, self.session.path)
                return
            with self.suspend():
                code = editor.edit_here(words, self.session.path)
            self.say(f"{words[0]} ended with exit code {code}." if code else "")
        except (editor.NoEditor, OSError) as wrong:
            self.say(f"Nothing to edit with: {wrong}.")
        except SuspendNotSupported:
            self.say("This terminal cannot be lent to an editor: open the file in a window beside it.")

    def action_leave(self) -> None:
        """Leave. An attempt that is not over stays open, and its clock, the wall's, goes on."""
        going_on = f"python runner.py {self.session.exercise.again} --continue"
        told = None if self.over else f"The attempt stays open, and its clock runs: {going_on}"
        if self.session.result is not None and self.session.exercise.judged.get("parts"):
            told = f"The next parts are written in the same file: {going_on}"
        self.exit(message=told)


def count_lines(source: str) -> int | None:
    """Logical lines of code; None while the text does not parse."""
    try:
        return logical_lines(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return None
