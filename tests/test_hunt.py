"""Bug hunts: what is planted, what the file looks like, and that it can be mended."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from dojo import catalogue, hunt
from dojo.mistake import mistakes
from dojo.places import ROOT, room_file

KATAS = catalogue.here()
TRIED = [pytest.param(kata, marks=[pytest.mark.thorough] if n % 3 else []) for n, kata in enumerate(KATAS)]


@pytest.mark.parametrize("kata", KATAS)
def test_the_same_seed_plants_the_same_bugs_and_another_others(kata):
    drawn = [hunt.draw(kata, seed, 2) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({frozenset(m.name for m in d) for d in drawn}) > 1
    assert all(len({m.name for m in d}) == 2 for d in drawn)


@pytest.mark.parametrize("kata", KATAS)
def test_the_text_is_the_statement_and_the_code_without_signs(kata):
    text = hunt.exercise(kata, [m.name for m in hunt.draw(kata, 5, 2)], 5).text
    tree = ast.parse(text)
    assert catalogue.statement(kata).splitlines()[0] in ast.get_docstring(tree)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert functions
    assert not any(ast.get_docstring(f) for f in functions)
    functions = [f for f in functions if "constexpr" not in ast.unparse(f.args)]
    assert not any(a.annotation for f in functions for a in [*f.args.args, *f.args.kwonlyargs])
    assert "#" not in text.split('"""', 2)[2]


@pytest.mark.parametrize("kata", TRIED)
def test_the_plain_text_of_the_reference_still_passes(kata, judge):
    """Nothing but words was taken out of the file."""
    source = hunt.plain(room_file("reference", kata).read_text(encoding="utf-8"))
    verdict = judge.judge(kata, room_file("reference", kata), source, seed=3, confirm=False).verdict
    assert verdict.outcome == "rejected", "an unconfirmed verdict is no pass"
    assert {c.status for c in verdict.claims} <= {"held", "not_reached"}, (verdict.message, verdict.cards)
    assert sum(c.status == "held" for c in verdict.claims) > len(verdict.claims) / 2


@pytest.mark.parametrize("kata", TRIED)
def test_a_hunt_begins_broken(kata, judge):
    begun = hunt.exercise(kata, [m.name for m in hunt.draw(kata, 11, 2)], 11)
    verdict = judge.judge(
        kata, room_file("reference", kata), begun.text, cards=False, seed=4, **begun.judged
    ).verdict
    assert verdict.outcome == "rejected", (begun.planted, verdict.message)
    assert verdict.mistake is None, "the judge does not give it away"


def test_no_bug_hides_in_what_is_left_to_be_written():
    mended = code(hunt.exercise("gpt", [], None))
    planted = {mistake.name for seed in range(60) for mistake in hunt.draw("gpt", seed, 4)}
    assert len(planted) > 20
    assert [name for name in planted if code(hunt.exercise("gpt", [name], None)) == mended] == []


def code(exercise):
    return exercise.text.split('"""', 2)[2]


def test_subtle_bugs_change_less():
    sizes = [
        [
            hunt._size(hunt._reference("attention"), m)
            for s in range(12)
            for m in hunt.draw("attention", s, 1, subtle=x)
        ]
        for x in (False, True)
    ]
    assert max(sizes[1]) < max(sizes[0])


def test_too_many_bugs_are_refused():
    with pytest.raises(hunt.NoSuchHunt, match="softmax has room for"):
        hunt.draw("softmax", 1, 50)


def test_hints_say_first_where_and_then_what():
    mistake = next(m for m in mistakes("attention") if m.name == "no-scale")
    begun = hunt.exercise("attention", ["no-scale"], 0)
    assert begun.brief.hints == ("one is in attention", mistake.says)


def runner(*argv: str, home) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, str(ROOT / "runner.py"), *argv], capture_output=True, text=True,
        env=os.environ | {"KATA_HOME": str(home)}, check=False,
    )  # fmt: skip


def test_a_hunt_from_the_first_verdict_to_the_pass(tmp_path):
    begun = runner("hunt", "softmax", "--seed", "4", "--once", home=tmp_path)
    assert begun.returncode == 1, begun.stderr
    assert "--seed 4" in begun.stdout
    file = tmp_path / "practice" / "hunt-softmax.py"
    file.write_text(room_file("reference", "softmax").read_text(encoding="utf-8"), encoding="utf-8")
    mended = runner("hunt", "softmax", "--once", home=tmp_path)
    assert mended.returncode == 0, mended.stdout
    assert "mended: " in mended.stdout
    assert "hunt-softmax" in runner("history", home=tmp_path).stdout


@pytest.mark.parametrize(
    "argv", [("hunt", "nope"), ("hunt", "softmax", "--bugs", "0"), ("hunt", "softmax", "--bugs", "7")]
)
def test_bad_input_is_refused(argv, tmp_path):
    ended = runner(*argv, home=tmp_path)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
