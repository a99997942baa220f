"""The rooms agree: for every kata, the reference passes, other right answers pass, and every mistake is
refuted by the claim it names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from dojo import catalogue
from dojo.check import on_paper, stray_files, styles, try_mistake, wrong_styles
from dojo.mistake import mistakes, wrong_source
from dojo.places import room_file

KATAS = catalogue.here()
LEFT_OUT = [name for name in catalogue.names() if catalogue.lacking(name)]
WRONG_SAMPLE = 2
SAMPLE = 12
"""Mistakes a kata that are always tried, spread over its list; ``pytest --thorough`` tries all of them, and
so does ``python runner.py check``."""


def costly(kata):
    """Kernels are interpreted where there is no GPU: seconds a claim."""
    return bool(catalogue.brief(kata).needs)


def sampled(kata):
    every, size = mistakes(kata), 4 if costly(kata) else SAMPLE
    step = max(1, len(every) // size)
    for number, mistake in enumerate(every):
        marks = [] if number % step == 0 and number // step < size else [pytest.mark.thorough]
        yield pytest.param(kata, mistake, id=f"{kata}-{mistake.name}", marks=marks)


MISTAKES = [case for kata in KATAS for case in sampled(kata)]
STYLES = [
    pytest.param(
        kata, path, id=f"{kata}-{path.stem}", marks=[pytest.mark.thorough] if costly(kata) and n else []
    )
    for kata in KATAS
    for n, path in enumerate(styles(kata))
]
WRONG = [
    pytest.param(
        kata, path, name, id=f"{kata}-{path.stem}",
        marks=[pytest.mark.thorough] if costly(kata) or n >= WRONG_SAMPLE else [],
    )
    for kata in KATAS
    for n, (path, name) in enumerate(wrong_styles(kata))
]  # fmt: skip
SLOW_PROBES = ("flash_attention", "gpt", "transformer_block", "speculative", "moe", "paged_kv")
PROBED = [
    pytest.param(kata, marks=[pytest.mark.thorough] if costly(kata) or kata in SLOW_PROBES else [])
    for kata in KATAS
]
CHEAP = [pytest.param(kata, marks=[pytest.mark.thorough] if costly(kata) else []) for kata in KATAS]


def seed_of(*words: str) -> int:
    """The same examples each time in CI, and others for each file."""
    return sum(ord(c) for c in "".join(words))


@pytest.mark.parametrize("kata", KATAS)
def test_the_rooms_agree_on_paper(kata):
    assert list(on_paper(kata)) == []


@pytest.mark.parametrize("kata", LEFT_OUT)
def test_every_kata_can_be_judged_here(kata):
    pytest.skip(f"{' and '.join(catalogue.lacking(kata))} is not installed: nothing of {kata} was tried")


def test_no_stray_files():
    assert list(stray_files()) == []


@pytest.mark.parametrize("kata", KATAS)
def test_the_stub_is_not_implemented(kata, judge):
    verdict = judge.judge(kata, room_file("katas", kata), seed=1, likeness=False).verdict
    assert verdict.outcome == "not_implemented", verdict.message


@pytest.mark.parametrize("kata", KATAS)
def test_the_reference_passes(kata, judge, request):
    """On few examples here: ``pytest properties`` has it on the full number."""
    confirm = kata == KATAS[0] or request.config.getoption("--thorough")
    verdict = judge.judge(kata, room_file("reference", kata), seed=2, confirm=confirm).verdict
    holds(verdict, confirm)


def holds(verdict, confirm):
    if confirm:
        assert verdict.passed, (verdict.message, verdict.cards)
    else:  # which is no pass
        assert not verdict.rules_broken, verdict.rules_broken
        assert {c.status for c in verdict.claims} <= {"held", "not_reached"}, (verdict.message, verdict.cards)
        assert sum(c.status == "held" for c in verdict.claims) > len(verdict.claims) / 2


@pytest.mark.parametrize(("kata", "path"), STYLES)
def test_right_answers_in_other_styles_pass(kata, path, judge, request):
    """The first style of each kata on the full number of examples; with ``--thorough`` all of them."""
    confirm = (path == styles(kata)[0] and not costly(kata)) or request.config.getoption("--thorough")
    verdict = judge.judge(kata, path, seed=seed_of(kata, path.stem), confirm=confirm).verdict
    holds(verdict, confirm)


@pytest.mark.parametrize(("kata", "mistake"), MISTAKES)
def test_every_mistake_is_refuted_by_its_claim(kata, mistake, judge):
    events = judge.trial(
        kata, Path(f"{mistake.name}.py"), wrong_source(kata, mistake), only=(mistake.claim,), cards=False,
        likeness=False, seed=seed_of(kata, mistake.name),
    )  # fmt: skip
    told = [event["message"] for event in events if event["event"] == "failing"]
    assert told, f"{mistake.name} survives {mistake.claim}"
    assert told[0].split(":")[0] not in CRASHES, f"refuted by a crash only: {told[0]}"


CRASHES = ("NameError", "AttributeError", "UnboundLocalError", "SyntaxError", "ImportError")


@pytest.mark.parametrize("kata", KATAS)
def test_an_empty_answer_is_refused_by_every_claim(kata, judge):
    """A claim that accepts an object which answers everything with itself would claim nothing."""
    names = catalogue.entry_points(kata)
    source = "class Nothing:\n    def __call__(self, *a, **k):\n        return self\n    def __getattr__(self, name):\n"
    source += (
        "        if name.startswith('__'):\n            raise AttributeError(name)\n        return self\n"
    )
    source += "\n".join(f"{name} = Nothing()" for name in names)
    left = set(catalogue.brief(kata).claims)

    def refused(*only):
        verdict = judge.judge(
            kata, Path("nothing.py"), source, only=only, cards=False, likeness=False, seed=seed_of(kata)
        ).verdict
        return {c.claim for c in verdict.claims if c.status == "failed"}

    for part in catalogue.brief(kata).parts:
        left -= refused(*part.claims)
    for claim in sorted(left):  # on its full number of examples, which are not reached where others fail
        left -= refused(claim)
    assert left == set(), "these claims accept an answer that is nothing"


@pytest.mark.parametrize("kata", PROBED)
def test_every_mistake_is_named_and_hardly_ever_by_anothers_name(kata):
    """With its own entry in the catalogue each is; with the entry taken out, nearly none is taken for another."""
    from dojo.judge.likeness import known, likeness

    everything, brief = known(kata), catalogue.brief(kata)
    named, misnamed = {}, {}
    for mistake in mistakes(kata):
        mine, part = everything.wrong[mistake.name], brief.part_of(mistake.claim)
        named[mistake.name] = likeness(kata, mine, everything, part)
        other = likeness(kata, mine, everything.without({mistake.name}), part)
        misnamed |= {mistake.name: other} if other else {}
    assert {name: told for name, told in named.items() if told != name} == {}
    assert len(misnamed) <= 0.05 * len(named), misnamed


@pytest.mark.parametrize(("kata", "path"), STYLES)
def test_the_probes_ask_for_nothing_that_is_open(kata, path):
    """Every right style gives the reference's results: or a mistake made in that style would not be known."""
    from dojo.judge.likeness import differing, module_of, trace

    right = trace(
        kata, module_of(kata, "reference", room_file("reference", kata).read_text(encoding="utf-8"))
    )
    other = trace(kata, module_of(kata, path.stem, path.read_text(encoding="utf-8")))
    assert differing(right, other) == set()


@pytest.mark.parametrize(("kata", "path", "name"), WRONG)
def test_a_mistake_in_another_style_is_named(kata, path, name, judge):
    from dojo.judge.likeness import known

    known(kata)  # kept, as it is in a session before the first save
    verdict = judge.judge(kata, path, seed=seed_of(kata, path.stem), cards=False, hurried=False).verdict
    if verdict.outcome == "timed_out":  # ranks that wait for each other: the verdict says which, and in what
        assert "waits in" in verdict.message
        return
    assert verdict.outcome == "rejected", verdict.message
    assert (verdict.mistake.name if verdict.mistake else None) == name


def test_a_file_that_makes_two_mistakes_is_told_the_weightier():
    from dojo.judge.likeness import Known, Raised, explained

    right = {"a": 0, "b": 0, "c": 0, "d": 0}
    wrong = {"two": right | {"a": 1, "b": 1}, "one": right | {"c": 1}, "other": right | {"a": 2}}
    shows = {"two": frozenset("ab"), "one": frozenset("c"), "other": frozenset("a")}
    known = Known(right, wrong, shows)

    def named(**results):
        mine = right | results
        return explained(mine, frozenset(k for k in mine if mine[k] != right[k]), known)

    assert named(a=1, b=1, c=1) == "two"
    assert named(c=1) == "one"
    assert named(a=1, b=1, d=1) is None, "d is explained by nothing"
    assert named(a=1) is None, "half of a mistake is another one"
    right["r"], wrong["lax"], shows["lax"] = Raised("ValueError"), right | {"r": 5}, frozenset("r")
    assert named(a=1, b=1, r=7) == "two", "what comes out where a refusal is due is of its own making"
    assert named(r=7) is None
    assert named() is None


@pytest.mark.parametrize("kata", CHEAP)
def test_the_shapes_in_the_signatures_are_true(kata, monkeypatch):
    """The reference does the same when jaxtyping checks every argument and result of it at run time."""
    from dojo.judge.likeness import differing, trace

    plain = importlib.import_module(f"reference.{kata}")
    monkeypatch.delitem(sys.modules, f"reference.{kata}")
    with install_import_hook(f"reference.{kata}", "beartype.beartype"):
        checked = importlib.import_module(f"reference.{kata}")
    assert checked is not plain
    assert differing(trace(kata, plain), trace(kata, checked)) == set()


def test_try_mistake_judges_the_mistake(judge):
    kata, mistake = MISTAKES[0].values
    verdict = try_mistake(kata, mistake, wrong_source(kata, mistake), judge)
    assert verdict.outcome == "rejected"
