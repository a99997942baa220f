"""The rooms agree: for every kata, the reference passes, other right answers pass, and every mistake is
refuted by the claim it names."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from dojo import catalogue
from dojo.check import claim_of, on_paper, stray_files, styles, try_mistake
from dojo.mistake import mistakes, wrong_source
from dojo.places import room_file

KATAS = catalogue.here()
LEFT_OUT = [name for name in catalogue.names() if catalogue.lacking(name)]
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
    accept = []
    for part in catalogue.brief(kata).parts:
        # What the quick stage leaves out is tried only if the rest held: on its own, then.
        quick, late = set(part.claims), set(part.claims) & left_for_later(kata)
        for only in filter(None, (quick - late, late)):
            verdict = judge.judge(
                kata, Path("nothing.py"), source, only=tuple(only), cards=False, likeness=False
            ).verdict
            accept += [name for name in only if claim_of(verdict, name).status != "failed"]
    assert accept == [], "these claims accept an answer that is nothing"


def left_for_later(kata):
    from dojo.judge.claims import claims

    return {claim.name for claim in claims(kata) if not claim.count("quick")}


@pytest.mark.parametrize("kata", PROBED)
def test_the_probes_tell_every_mistake_from_the_others_and_from_the_reference(kata):
    """So each is recognised while it is in the catalogue, and taken for no other when it is not."""
    from dojo.judge.likeness import agree, traces

    right, wrong = traces(kata)
    unseen = [name for name, theirs in wrong.items() if agree(right, theirs)]
    assert unseen == [], "no probe shows these mistakes"
    alike = [(a, b) for (a, x), (b, y) in itertools.combinations(wrong.items(), 2) if agree(x, y)]
    assert alike == [], "the probes cannot tell these apart"


@pytest.mark.parametrize("kata", CHEAP)
def test_the_shapes_in_the_signatures_are_true(kata, monkeypatch):
    """The reference does the same when jaxtyping checks every argument and result of it at run time."""
    from dojo.judge.likeness import agree, trace

    plain = importlib.import_module(f"reference.{kata}")
    monkeypatch.delitem(sys.modules, f"reference.{kata}")
    with install_import_hook(f"reference.{kata}", "beartype.beartype"):
        checked = importlib.import_module(f"reference.{kata}")
    assert checked is not plain
    assert agree(trace(kata, plain), trace(kata, checked))


def test_try_mistake_judges_the_mistake(judge):
    kata, mistake = MISTAKES[0].values
    verdict = try_mistake(kata, mistake, wrong_source(kata, mistake), judge)
    assert verdict.outcome == "rejected"
