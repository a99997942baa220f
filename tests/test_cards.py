"""What a person reads who makes an ordinary mistake: a sentence, an input to work by hand, and what was due.

The cards as they should be stand in ``docs/power``, where ``check --cards --write`` puts them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dojo import catalogue, plain
from dojo.mistake import wrong_source
from dojo.power import ordinary
from dojo.record import read_page
from dojo.verdict import Card

CASES = [
    pytest.param(
        kata,
        mistake,
        id=f"{kata}-{mistake.name}",
        marks=[pytest.mark.thorough] if number or catalogue.brief(kata).needs else [],
    )
    for kata in catalogue.here()
    for number, mistake in enumerate(ordinary(kata))
]
MOST_NUMBERS = 48
"""In all inputs together: what fits a few lines and can still be worked by hand."""


@pytest.mark.parametrize(("kata", "mistake"), CASES)
def test_the_first_card_can_be_worked_by_hand(kata, mistake, judge):
    path = Path(f"practice/{kata}.py")
    verdict = judge.judge(kata, path, wrong_source(kata, mistake), seed=1, likeness=False).verdict
    if verdict.outcome == "timed_out":  # processes that wait for each other: there is no input to shrink
        assert "waits in" in verdict.message
        assert verdict.line
        return
    assert verdict.cards, (verdict.outcome, verdict.message)
    card = verdict.cards[0]
    assert card.sentence.endswith("."), "the claim is a sentence"
    assert "Catches " in card.why, "it says what it is there for"
    assert card.message
    assert not card.flaky
    assert card.got or card.line, "it says what came out, or the line that raised"
    numbers = re.findall(r"-?\d+(?:\.\d+)?", " ".join(card.inputs.values()))
    assert len(numbers) <= MOST_NUMBERS, card.inputs
    on_record = block(kata, mistake)
    for words in (card.sentence, card.why, f"this looks like: {mistake.says}"):
        assert flat(words) in on_record, f"python runner.py check {kata} --cards --write, and read it"


def block(kata, mistake):
    """The card that the record has of a mistake. Which numbers the smallest counterexample has, and how far off
    the result is, may change from version to version; the words may not."""
    _, _, after = flat(read_page(kata)).partition(flat(f"{kata}, where {mistake.says}:"))
    return after.split(f"{kata}, where ")[0]


def flat(text):
    return " ".join(text.split())


def test_a_card_as_text():
    card = Card(
        claim="test_x", sentence="Every slice along dim sums to one.", inputs={"x": "[[0, 0]] float32", "dim": "0"},
        message="the sum along dim is off by 0.5 (allowed 2e-06) in 2 of 2 places", expected="[1, 1] float64",
        got="[0.5, 0.5] float32", where="first at [0]: expected 1, got 0.5", why="Catches a dim that is ignored.",
        line=0, text="", flaky=False,
    )  # fmt: skip
    assert "\n".join(plain.card(card, None, catalogue.brief("softmax"))) == "\n".join([
        "─" * 72,
        "does not hold: Every slice along dim sums to one.",
        "  x = [[0, 0]] float32",
        "  dim = 0",
        "  the sum along dim is off by 0.5 (allowed 2e-06) in 2 of 2 places",
        "  expected  [1, 1] float64",
        "  got       [0.5, 0.5] float32",
        "  first at [0]: expected 1, got 0.5",
        "  Catches a dim that is ignored.",
    ])  # fmt: skip
