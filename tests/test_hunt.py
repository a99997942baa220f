"""Bug hunts: what is planted, what the file looks like, and that it can be mended."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from dojo import catalogue, hunt
from dojo.dead import without_dead
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


DEAD = """\
import math, os
from torch import Tensor, nn

_TABLE = {}


def kept(x, unused):
    if False:
        raise ValueError(x)
    if x is None:
        pass
    both, lost = x, nn
    y = [
        x, x
    ]
    if True:
        return math.exp(both)
    return x


def _helper(x):
    return _nested(x)


def _nested(x):
    return _TABLE
"""


def test_what_a_change_leaves_without_a_use_is_taken_out():
    assert without_dead(DEAD) == (
        "import math\nfrom torch import nn\n\n\n\ndef kept(x, unused):\n    both, lost = x, nn\n"
        "    return math.exp(both)\n\n\n"
    )


def test_a_body_keeps_a_statement():
    assert without_dead("def f(x):\n    y = x\n") == "def f(x):\n    pass\n"


def test_what_acts_stays_though_nothing_reads_it():
    acts = "def f(x):\n    if x.pop():\n        pass\n    y = x.clear_()\n    return x\n"
    assert without_dead(acts) == acts
    early = "def f(x):\n    if x:\n        return\n    g(x)\n"
    assert without_dead(early.replace("return", "pass\n        return")) == early


@pytest.mark.parametrize("kata", KATAS)
def test_nothing_in_the_reference_is_without_a_use(kata):
    plain = hunt.plain(room_file("reference", kata).read_text(encoding="utf-8"))
    assert without_dead(plain) == plain


def test_planted_lines_are_laid_out_like_their_neighbours():
    wide = "def f(x):\n    return x.sum(-1) + g(x, 'a', [" + ", ".join(["x"] * 25) + "])\n"
    narrow = hunt.plain(wide)
    assert max(map(len, narrow.splitlines())) <= hunt.WIDEST
    assert "'" not in narrow
    assert ast.dump(ast.parse(narrow)) == ast.dump(ast.parse(wide))


@pytest.mark.parametrize("kata", KATAS)
def test_no_line_stands_out(kata):
    mended = set(code(hunt.exercise(kata, [], None)).splitlines())
    for seed in range(3):
        begun = hunt.exercise(kata, [m.name for m in hunt.draw(kata, seed, 3)], seed)
        planted = [line for line in code(begun).splitlines() if line not in mended]
        assert [line for line in planted if len(line) > hunt.WIDEST or hunt.ODD.search(line)] == []


def test_every_place_is_as_likely_as_another():
    """However many mistakes a place has."""
    places = {hunt._place("gpt", m) for m in hunt._plantable("gpt")}
    where = Counter(hunt._place("gpt", m) for seed in range(110) for m in hunt.draw("gpt", seed, 4))
    assert where.keys() == places
    assert min(where.values()) > 110 * 4 / len(places) / 2


def test_another_order_is_tried_where_the_first_has_too_little_room():
    assert all(len(hunt.draw("multi_head_attention", seed, 4)) == 4 for seed in range(12))


def test_an_open_hunt_outlives_a_mistake_that_is_in_the_catalogue_no_more():
    begun = hunt.exercise("softmax", ["renamed-since", "no-shift"], 3)
    assert begun.planted == ("renamed-since", "no-shift")
    assert "2 bugs" in begun.text
    assert len(begun.says) == 1


def test_what_follows_a_hunt_is_judged_like_any_kata():
    begun, after = hunt.exercise("gpt", ["no-scale"], 3), hunt.exercise("gpt", [], None)
    assert (begun.judged, after.judged) == ({"likeness": False, "parts": 1}, {})
    assert after.name == begun.name
    assert after.brief.hints == catalogue.brief("gpt").hints
    assert "broken" not in after.text
    assert after.text.startswith('"""Write what still raises NotImplementedError.')


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
