"""Attempts, the clock, the history: what is remembered, and that nothing is ever lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dojo.judge.client import Ruling
from dojo.places import ROOT, practice_file, room_file
from dojo.session import can_go_on, open_session
from dojo.store import Store, StoreUnusable
from dojo.verdict import Verdict

STUB = room_file("katas", "softmax").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("KATA_HOME", str(tmp_path))
    opened = Store()
    yield opened
    opened.close()


def ruling(outcome: str, examples=None) -> Ruling:
    found = Verdict(
        kata="softmax", file="f", outcome=outcome, message="", parts=[], claims=[], confirmed=outcome == "passed",
        seconds=1.0, lines=12, line_limit=28,
    )  # fmt: skip
    return Ruling(found, examples or {})


def test_a_new_attempt_starts_from_the_blank_stub_and_keeps_the_old_file(store):
    open_session("softmax", store, timed=True, resume=False)
    practice_file("softmax").write_text("mine = 1\n")
    opened = open_session("softmax", store, timed=True, resume=False)
    assert practice_file("softmax").read_text() == STUB
    assert [k["source"] for k in store.kept("softmax")] == ["mine = 1\n"]
    assert opened.kept == store.kept("softmax")[0]["id"]


def test_the_blank_stub_is_not_worth_keeping(store):
    for _ in range(3):
        assert open_session("softmax", store, timed=True, resume=False).kept is None


def test_continue_keeps_the_file_and_the_clock(store):
    first = open_session("softmax", store, timed=True, resume=False).session
    practice_file("softmax").write_text("mine = 1\n")
    again = open_session("softmax", store, timed=True, resume=True)
    assert again.resumed
    assert practice_file("softmax").read_text() == "mine = 1\n"
    assert again.session.attempt.started == first.attempt.started


def test_an_attempt_can_be_gone_on_with_within_its_limit(store):
    attempt = open_session("softmax", store, timed=True, resume=False).session.attempt
    assert can_go_on(attempt)
    store._db.execute("UPDATE attempts SET started = ? WHERE id = ?", (time.time() - 3600, attempt.id))
    assert not can_go_on(store.open_attempt("softmax"))
    assert not can_go_on(None)


def test_a_pass_ends_the_attempt_at_the_save_that_was_confirmed(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    saved = session.attempt.started + 100
    result = session.record(ruling("passed"), "source", saved)
    assert result.seconds == pytest.approx(100)
    assert not result.over_time
    assert result.best_before is None
    assert store.open_attempt("softmax") is None
    best = store.best("softmax")
    assert (best.outcome, best.seconds, best.source) == ("passed", pytest.approx(100), "source")


def test_a_pass_after_the_limit_is_recorded_as_over_time(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    result = session.record(ruling("passed"), "source", session.attempt.started + 10_000)
    assert result.over_time
    assert store.attempts("softmax")[0].over_time


def test_no_other_outcome_ends_an_attempt(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    for outcome in (
        "rejected",
        "rule_broken",
        "crashed",
        "timed_out",
        "tampered",
        "not_implemented",
        "judge_error",
    ):
        assert session.record(ruling(outcome), "source", time.time()) is None
    assert store.open_attempt("softmax") is not None
    assert store.verdict_count(session.attempt.id) == 7


def test_a_pass_after_giving_up_is_not_recorded_as_one(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    session.give_up()
    session.record(ruling("passed"), "source", time.time())
    assert store.attempts("softmax")[0].outcome == "given_up"
    assert store.best("softmax") is None


def test_failing_examples_are_kept_for_next_time(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    session.record(ruling("rejected", {"test_x": ["00ff"]}), "source", time.time())
    assert store.examples("softmax") == {"test_x": ["00ff"]}


def test_hints_run_out(store):
    session = open_session("softmax", store, timed=True, resume=False).session
    count = len(session.brief.hints)
    assert [session.next_hint()[0] for _ in range(count)] == list(range(1, count + 1))
    assert session.next_hint() is None
    assert store.attempts("softmax")[0].hints == count


def test_killed_at_any_moment_the_store_keeps_what_was_written(tmp_path):
    writer = (
        "import sys, itertools\nfrom dojo.store import Store\ns = Store()\n"
        "for i in itertools.count():\n    s.keep('softmax', f'text {i}', 'test')\n    print(i, flush=True)\n"
    )
    env = os.environ | {"KATA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, env=env, text=True)
    for line in process.stdout:
        if int(line) >= 50:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = Store(tmp_path / ".dojo" / "store.sqlite3").kept()
    assert len(kept) >= 51
    assert [k["source"] for k in reversed(kept)] == [f"text {i}" for i in range(len(kept))]


def test_a_store_from_the_future_is_refused_untouched(tmp_path):
    path = tmp_path / "store.sqlite3"
    Store(path)._db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreUnusable, match="newer version"):
        Store(path)
