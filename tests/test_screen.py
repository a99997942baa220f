"""The session screen, driven by its keys, by a real file, and by a judge that says what it is told."""

import io
import os
import queue
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from dojo import catalogue, hunt, plain
from dojo.judge.client import JudgeUnavailable
from dojo.places import practice_file, room_file
from dojo.screen import editor, pages
from dojo.screen.app import POLL, SessionApp
from dojo.screen.watch import Watch
from dojo.session import Result, open_session
from dojo.store import Store
from dojo.verdict import Card, ClaimResult, PartResult, RuleBroken, Verdict

KATA = "softmax"
BRIEF = catalogue.brief(KATA)
LIMIT = BRIEF.lines
FIRST, SECOND = BRIEF.claims[:2]
WRITTEN = "def softmax(x, dim):\n    return x\n"
CARD = Card(
    FIRST, "Softmax returns a new tensor of x's shape and dtype.", "Because the caller still needs x.",
    {"x": "[100] float32", "dim": "0"}, "the result is off", "[1] float64", "[nan] float32", "first at [0]",
)  # fmt: skip


class Scripted:
    """A judge that says what the test tells it to. A new trial ends the one before, as the real one does."""

    versions = {"torch": "none"}  # noqa: RUF012

    def __init__(self):
        self.trials = []
        self.gone = False

    def wait(self):
        if self.gone:
            raise JudgeUnavailable("the judge could not run: no memory")

    def trial(self, kata, path, source, **options):
        heard = queue.SimpleQueue()
        if self.trials:
            self.trials[-1][1].put(None)
        self.trials.append((source, heard))
        while (event := heard.get()) is not None:
            yield event
            if event["event"] == "verdict":
                return

    def close(self):
        pass

    def say(self, event, **fields):
        self.trials[-1][1].put({"event": event, "id": 1, **fields})

    def rule(self, outcome="passed", message="all claims hold", **fields):
        self.say("verdict", verdict=verdict(outcome, message, **fields).as_json(), examples={})


def verdict(outcome, message, failed=(), **fields):
    held = "held" if outcome in ("passed", "rejected") else "not_reached"
    claims = [
        ClaimResult(c, BRIEF.part_of(c), "failed" if c in failed else held, c.removeprefix("test_"), card=CARD if c == FIRST and failed else None)
        for c in BRIEF.claims
    ]  # fmt: skip
    states = fields.pop("parts", [held] * 3)
    parts = [PartResult(n, p.title, s) for n, (p, s) in enumerate(zip(BRIEF.parts, states, strict=True), 1)]
    return Verdict(KATA, "f", outcome, message, parts, claims, outcome == "passed", 0.5, 19, 28, **fields)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Opens a session; whatever it does happens below tmp_path."""
    monkeypatch.setenv("KATA_HOME", str(tmp_path))
    monkeypatch.delenv("NO_COLOR", raising=False)
    stores = []

    def begin(*, timed=False, resume=False, **options):
        stores.append(Store())
        opened = open_session(KATA, stores[-1], timed=timed, resume=resume)
        return SessionApp(opened.session, Scripted(), resumed=opened.resumed, kept=opened.kept, **options)

    yield begin
    for store in stores:
        store.close()


def write(text):
    practice_file(KATA).write_text(text, encoding="utf-8")


async def until(pilot, holds, seconds=30.0):
    """Let the app run until something holds. Returns how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s:\n{screen(pilot.app)}"
        await pilot.pause(0.02)
    return time.monotonic() - began


async def shows(pilot, *texts):
    await until(pilot, lambda: all(text in screen(pilot.app) for text in texts))


def screen(app):
    """What stands on the screen, as text without colour."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines)


async def saved(pilot, text=WRITTEN):
    """Save a text, and wait until it is on trial."""
    judge, before = pilot.app.trials.judge, len(pilot.app.trials.judge.trials)
    write(text)
    await until(pilot, lambda: len(judge.trials) > before)
    return judge


# --- the file ---------------------------------------------------------------------------------------


def by_rename(path, text):
    other = path.with_suffix(".new")
    other.write_text(text, encoding="utf-8")
    os.replace(other, path)


def in_place(path, text):
    with path.open("w", encoding="utf-8") as file:
        file.write(text)


def deleted_first(path, text):
    path.unlink()
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("way", [by_rename, in_place, deleted_first])
def test_a_save_of_any_kind_is_seen_within_two_looks(tmp_path, way):
    path = tmp_path / "f.py"
    path.write_text("a = 1\n")
    watch = Watch(path)
    watch.poll()
    for number, text in enumerate([WRITTEN, "def f(:\n", "x = 1\n", ""]):
        way(path, text)
        seen = [save.source for save in (watch.poll(), watch.poll()) if save]
        assert seen == [text], f"save {number}"
    assert POLL <= 0.1


async def test_a_save_of_any_kind_is_put_on_trial(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        for number, way in enumerate((by_rename, in_place, deleted_first), 1):
            way(app.session.path, f"{WRITTEN}# {number}\n")
            await until(pilot, lambda: len(app.trials.judge.trials) == number)  # noqa: B023
            assert app.trials.judge.trials[-1][0] == f"{WRITTEN}# {number}\n"


async def test_of_several_fast_saves_the_last_is_judged(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        for number in range(5):
            write(f"x = {number}\n")
            await pilot.pause(0.04)
        await until(pilot, lambda: app.trials.judge.trials and app.trials.judge.trials[-1][0] == "x = 4\n")


async def test_the_untouched_stub_is_not_judged_and_r_judges_it_all_the_same(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        by_rename(app.session.path, room_file("katas", KATA).read_text(encoding="utf-8"))
        await pilot.pause(0.25)
        assert not app.trials.judge.trials
        await pilot.press("r")
        await until(pilot, lambda: app.trials.judge.trials)


async def test_a_file_that_is_gone_is_waited_for(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        app.session.path.unlink()
        await shows(pilot, "the file is gone")
        write(WRITTEN)
        await until(pilot, lambda: app.trials.judge.trials)
        await until(pilot, lambda: "the file is gone" not in screen(app))


def test_half_a_file_is_left_for_the_next_look(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("a = 1\n")
    watch = Watch(path)
    assert watch.poll().source == "a = 1\n"
    assert watch.poll() is None
    path.write_text("def f(:\n")
    assert watch.poll() is None
    assert watch.poll().source == "def f(:\n"


def test_a_second_save_with_the_same_time_and_size_is_seen(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("a = 1\n")
    watch = Watch(path)
    watch.poll()
    stamp = path.stat()
    path.write_text("a = 2\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert watch.poll().source == "a = 2\n"


async def test_lines_are_counted_at_each_save_also_of_a_file_that_does_not_parse(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await saved(pilot)
        await shows(pilot, f"2/{LIMIT} lines")
        await saved(pilot, "def f(:\n")
        await shows(pilot, f"–/{LIMIT} lines")
        await saved(pilot, "\n".join(f"x{n} = {n}" for n in range(LIMIT + 2)))
        await shows(pilot, f"{LIMIT + 2}/{LIMIT} lines: too long")


# --- verdicts ---------------------------------------------------------------------------------------


async def test_a_failure_is_shown_at_once_then_its_card_then_the_verdict(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        judge = await saved(pilot)
        judge.say("claim", claim=FIRST, stage="quick", status="running")
        await shows(pilot, "judging", "› running")
        judge.say("failing", claim=FIRST, sentence="s", message="off by 3", seconds=0.1)
        await shows(pilot, "does not hold", "off by 3", "✗ FAILS")
        judge.say(
            "mistake", name="m", says="exp of the raw logits", belief="The maximum cancels.", seconds=0.2
        )
        judge.say("card", card=vars(CARD), seconds=0.3)
        await shows(pilot, "x   = [100] float32", "[1] float64    got  [nan] float32", "first at [0]")
        await shows(pilot, "looks like  exp of the raw logits", "The maximum cancels.")
        judge.rule("rejected", "no", failed=(FIRST, SECOND), parts=["failed", "not_reached", "not_reached"])
        await shows(pilot, "rejected  2 claims fail in part 1", "1 of 2 shown")
        await pilot.press("tab")
        await shows(pilot, "2 of 2 shown")
        assert app.session.store.verdict_count(app.session.attempt.id) == 1


async def test_a_pass_stays_and_shows_what_it_is_worth_and_what_is_asked_next(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        judge = await saved(pilot)
        judge.say("stage", stage="quick", held=True, seconds=0.4)
        await shows(pilot, "holds on few examples")
        judge.rule()
        await shows(pilot, "passed", "under par (6:00)", "your first pass", "19 of 28", "none taken")
        ask = BRIEF.follow_ups[0]
        await shows(pilot, ask.question[:60])
        assert ask.strong[:30] not in screen(app)
        await pilot.press("a")
        await shows(pilot, ask.strong[:30], "red flag")
        await pilot.press("n")
        await shows(pilot, BRIEF.follow_ups[1].question[:40])
        await pilot.pause(0.3)
        assert "passed" in screen(app)
        await pilot.press("c")
        await shows(pilot, "the reference ·", "def softmax")
        await pilot.press("tab")
        await shows(pilot, "your file · 2 lines", "return x")
        await pilot.press("escape", "q")
    assert app.session.store.attempt(app.session.attempt.id).outcome == "passed"
    assert app.session.store.verdict_count(app.session.attempt.id) == 1


async def test_the_clock_stops_at_the_save_that_passed(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        judge = await saved(pilot)
        at = practice_file(KATA).stat().st_mtime
        await pilot.pause(0.3)
        judge.rule()
        await shows(pilot, "✓ passed")
    assert app.session.result.seconds == pytest.approx(at - app.session.attempt.started, abs=1e-3)


async def test_events_of_a_trial_that_was_overtaken_are_dropped(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await saved(pilot)
        await saved(pilot, WRITTEN + "# more\n")
        stale = verdict("passed", "late").as_json()
        app.pass_on(1, {"event": "verdict", "verdict": stale, "examples": {}})
        app.pass_on(1, {"event": "failing", "claim": FIRST, "sentence": "s", "message": "late"})
        await pilot.pause(0.1)
        assert app.session.result is None
        assert app.board.failed == []
        assert app.session.store.verdict_count(app.session.attempt.id) == 0


OTHERS = [
    ("does_not_load", {"line": 3, "text": "def f(:"}, ("does not load", "line 3", "def f(:")),
    ("crashed", {"output": "".join(f"print {n}\n" for n in range(30))}, ("crashed", "print 12", "20 of 30")),
    ("rule_broken", {"rules_broken": [RuleBroken("uses torch.softmax", 4)]}, ("line 4: uses torch.softmax",)),
    ("timed_out", {}, ("timed out", "what happened")),
    ("judge_error", {}, ("the judge itself failed", "the suite's fault")),
]


async def test_other_outcomes_say_what_happened(start):
    app = start()
    async with app.run_test(size=(80, 36)) as pilot:
        for outcome, fields, texts in OTHERS:
            judge = await saved(pilot, f"x = '{outcome}'\n")
            judge.rule(outcome, "what happened", **fields)
            await shows(pilot, "what happened", *texts)


async def test_when_a_part_holds_the_next_one_is_asked_for(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        judge = await saved(pilot)
        judge.rule(
            "not_implemented", "part 2 is to be written", parts=["held", "not_implemented", "not_reached"]
        )
        await shows(pilot, "part 1 of 3 holds", "part 2/3", BRIEF.parts[1].asks[:40])


async def test_a_judge_that_died_is_told_of_and_replaced(start):
    fresh = Scripted()
    app = start(new_judge=lambda: fresh)
    async with app.run_test(size=(80, 24)) as pilot:
        app.trials.judge.gone = True
        write(WRITTEN)
        await shows(pilot, "no judge", "your file is safe", "no memory")
        await pilot.press("r")
        await until(pilot, lambda: fresh.trials)
        fresh.rule()
        await shows(pilot, "✓ passed")


# --- the clock --------------------------------------------------------------------------------------


async def test_time_up_is_said_once_and_one_goes_on(start):
    app = start(timed=True)
    object.__setattr__(app.session.attempt, "started", time.time() - 361)
    said = []
    say, app.say = app.say, lambda notice: (said.append(notice), say(notice))
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Time is up", "over time by 0:0")
        await pilot.pause(0.6)
        assert sum("Time is up" in notice for notice in said) == 1
        judge = await saved(pilot)
        judge.rule()
        await shows(pilot, "✓ passed", "over time: recorded as such")
    assert app.session.store.attempt(app.session.attempt.id).over_time


async def test_the_clock_counts_down_or_up_beside_par(start):
    app = start(timed=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: re.search(r"[56]:\d\d left of 6:00", screen(app)))
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: re.search(r"0:0\d · par 6:00", screen(app)))


# --- the keys ---------------------------------------------------------------------------------------


async def test_hints_come_one_at_a_time_and_are_recorded(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("h")
        await shows(pilot, "hint 1 of 4", "3 left", "recorded")
        assert app.session.store.attempt(app.session.attempt.id).hints == 1
        for _ in range(5):
            await pilot.press("h")
        await shows(pilot, "hint 4 of 4", "the last one")
        assert app.session.store.attempt(app.session.attempt.id).hints == 4
        await pilot.press("escape")
        await shows(pilot, "not judged yet", "1 Softmax")


async def test_the_statement_fills_the_screen_and_goes_again(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "1 Softmax  10 waiting", "Write three functions")
        await pilot.press("s")
        await until(pilot, lambda: "10 waiting" not in screen(app))
        await pilot.press("G")
        await shows(pilot, "part 3", "Cross-entropy. Now the loss")
        await pilot.press("s")
        await shows(pilot, "10 waiting")


async def test_the_solution_is_asked_for_twice_and_ends_the_attempt(start):
    app = start()
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("o")
        await shows(pilot, "This ends the attempt")
        await pilot.press("n", "o", "enter")
        assert app.session.store.attempt(app.session.attempt.id).outcome is None
        await pilot.press("o", "y")
        await shows(pilot, "given up", "the reference ·", "your file ·", "def cross_entropy")
        assert app.session.store.attempt(app.session.attempt.id).outcome == "given_up"
        judge = await saved(pilot)
        judge.rule()
        await shows(pilot, "does not count as passed")
        await pilot.press("q")
    assert app.session.store.attempt(app.session.attempt.id).outcome == "given_up"
    assert app.session.result is None


async def test_reset_asks_and_keeps_the_text(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        judge = await saved(pilot)
        judge.say("failing", claim=FIRST, sentence="s", message="m", seconds=0.1)
        await pilot.press("x")
        await shows(pilot, "Put the file back as it was at first?")
        await pilot.press("n")
        assert practice_file(KATA).read_text() == WRITTEN
        await pilot.press("x", "y")
        await shows(pilot, "history softmax --show 1", "not judged yet")
        assert practice_file(KATA).read_text() == room_file("katas", KATA).read_text()
        assert app.session.store.kept(KATA)[0]["source"] == WRITTEN
        assert len(judge.trials) == 1


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quitting_leaves_the_attempt_open(start, key):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await saved(pilot)
        await pilot.press(key)
    assert not app.is_running
    assert app.session.store.open_attempt(KATA).id == app.session.attempt.id
    assert practice_file(KATA).read_text() == WRITTEN


async def test_an_earlier_file_is_judged_at_once_on_going_on_and_announced_when_put_aside(start):
    start().session.path.write_text(WRITTEN)
    app = start(resume=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.trials.judge.trials)
        await shows(pilot, "the clock went on")
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "Your earlier file is kept", "history softmax --show 1")


async def test_without_an_editor_that_is_said(start, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    app = start(edit=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "neither $VISUAL nor $EDITOR is set")


def test_the_editor_is_visual_before_editor_with_its_arguments(monkeypatch):
    monkeypatch.setenv("EDITOR", "false")
    monkeypatch.setenv("VISUAL", "true --wait 'a b'")
    assert editor.command() == ["true", "--wait", "a b"]
    monkeypatch.setenv("VISUAL", "no-such-editor-here")
    with pytest.raises(editor.NoEditor, match="no-such-editor-here"):
        editor.command()
    assert editor.has_window(["/usr/bin/code", "-w"])
    assert not editor.has_window(["vim"])


# --- how it looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (60, 20)])
async def test_everything_fits_and_nothing_lies_outside(start, size):
    app = start(timed=True)
    async with app.run_test(size=size) as pilot:
        judge = await saved(pilot)
        judge.say("card", card=vars(CARD), seconds=0.3)
        judge.rule("rejected", "no", failed=(FIRST, SECOND), parts=["failed", "not_reached", "not_reached"])
        await shows(pilot, "rejected")
        for key in ("", "s", "h"):
            await pilot.press(*filter(None, [key]))
            await pilot.pause()
            room = app.screen.region
            ids = ("top", "file", "band", "middle", "main")
            outside = [i for i in ids if not room.contains_region(app.query_one(f"#{i}").region)]
            assert outside == []
            assert app.query_one("Footer").region.bottom == room.bottom
            assert all(len(line) <= size[0] for line in screen(app).splitlines())


async def test_every_key_has_its_place_at_80_columns(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        keys = ("r run", "h hint", "s statement", "e edit", "x reset", "o solution", "q quit")
        await shows(pilot, *keys)


async def test_without_colour_every_state_is_a_word(start, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = start()
    async with app.run_test(size=(120, 36)) as pilot:
        assert app.no_color
        judge = await saved(pilot)
        judge.say("claim", claim=FIRST, stage="quick", status="held")
        judge.say("claim", claim=SECOND, stage="quick", status="running")
        await shows(pilot, "✓ held", "› running", "· waiting")
        judge.say("claim", claim=FIRST, stage="full", status="held")
        judge.say("claim", claim=SECOND, stage="quick", status="not_implemented")
        judge.say("failing", claim=BRIEF.claims[2], sentence="s", message="m", seconds=0.1)
        await shows(pilot, "✓ confirmed", "– not written", "✗ FAILS", "✗ does not hold")


async def test_the_path_is_a_link_to_the_file(start):
    app = start()
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "softmax.py")
        links = {
            s.style.link
            for strip in app.screen._compositor.render_strips()
            for s in strip
            if s.style and s.style.link
        }
        assert links == {app.session.path.as_uri()}


def test_a_statement_is_reflowed_with_its_columns():
    text = "One two three four five six.\n\n    f(x)    what it does and\n            what it returns\n\n- a point that runs\n  on to here"
    told = pages.reflow(text, 24).splitlines()
    assert max(map(len, told)) <= 24
    assert "    f(x)    what it does" in told
    assert told[-1].startswith("  ")
    assert pages.reflow(text, 80) == text


def test_a_name_too_long_for_its_column_keeps_its_text_together():
    text = "    f(x, y, z)  two words\n    train(model, ids) how it is trained on the ids that\n                      are given"
    told = pages.reflow(text, 44).splitlines()
    assert told[1:] == ["    train(model, ids) how it is trained on", " " * 22 + "the ids that are given"]


async def test_leaving_a_mended_hunt_tells_where_it_goes_on(start, capsys):
    start()
    begun = hunt.exercise("gpt", ["no-scale"], 1)
    app = SessionApp(open_session(begun, Store(), timed=False, resume=False).session, Scripted())
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.trials.judge.trials)
        app.session.result = Result(1.0, 60.0, None, 100, 220, 0, False)
        await pilot.press("q")
    assert "python runner.py hunt gpt --continue" in " ".join(capsys.readouterr().err.split())


def test_small_inputs_share_a_line_that_breaks_between_two_of_them():
    inputs = {"ids": "[[2]] int64", "vocab_size": "3", "context": "4", "head_dim": "4", "training": "True"}
    told = "\n".join(plain.card(replace(CARD, inputs=inputs), None, BRIEF))
    assert "  ids = [[2]] int64\n  vocab_size = 3, context = 4, head_dim = 4, training = True\n" in told
    assert plain.in_a_row(inputs, 20).splitlines()[2:] == ["context = 4,", "head_dim = 4,", "training = True"]
    assert plain.parted({"x": "[1] float32", "dim": "0"}) == ({"x": "[1] float32", "dim": "0"}, {})
    console = Console(width=48, file=io.StringIO())
    console.print(pages._listed(pages._smallest(replace(CARD, inputs=inputs), 48)))
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert shown[:3] == [
        "input ids = [[2]] int64",
        "vocab_size = 3, context = 4,",
        "head_dim = 4, training = True",
    ]
