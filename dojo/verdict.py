"""What the judge says of a file: one object, the same in the screen, in ``--json`` and in the store.

``docs/verdict.schema.json`` documents it; the tests hold the two together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal[
    "passed",
    "rejected",
    "not_implemented",
    "does_not_load",
    "rule_broken",
    "crashed",
    "timed_out",
    "out_of_memory",
    "tampered",
    "judge_error",
]
"""Only ``passed`` is a pass: every claim of every part ran on the full number of examples and held.
``judge_error`` means that the suite itself went wrong, and says nothing about the file."""

IN_WORDS: dict[str, str] = {
    "passed": "passed",
    "rejected": "rejected",
    "not_implemented": "not implemented yet",
    "does_not_load": "does not load",
    "rule_broken": "a rule is broken",
    "crashed": "crashed",
    "timed_out": "timed out",
    "out_of_memory": "out of memory",
    "tampered": "tampered with the judge",
    "judge_error": "the judge itself failed",
}

ClaimStatus = Literal["held", "failed", "not_implemented", "not_reached", "interrupted"]
PartStatus = Literal["held", "failed", "not_implemented", "not_reached"]


@dataclass
class Card:
    """One failing claim, in a form that a person can work by hand.

    ``inputs`` maps each drawn value to how it is written; ``expected``, ``got`` and ``where`` are empty
    if the claim has none; ``line`` is the person's own line if their code raised (0: it did not).
    """

    claim: str
    sentence: str
    why: str
    inputs: dict[str, str]
    message: str
    expected: str = ""
    got: str = ""
    where: str = ""
    line: int = 0
    text: str = ""
    flaky: bool = False


@dataclass
class ClaimResult:
    """What came of one claim; ``examples`` counts those tried, ``seconds`` what they took."""

    claim: str
    part: int
    status: ClaimStatus
    sentence: str
    examples: int = 0
    seconds: float = 0.0
    card: Card | None = None


@dataclass
class RuleBroken:
    says: str
    line: int = 0


@dataclass
class Likeness:
    """The known mistake whose results the file shares wherever the mistake differs from the reference."""

    name: str
    says: str
    belief: str


@dataclass
class PartResult:
    number: int
    title: str
    status: PartStatus


@dataclass
class Verdict:
    """The judgement of one file.

    ``message`` says in a sentence why the outcome is what it is; ``line`` and ``text`` point at the
    person's own line where there is one. ``confirmed`` tells whether the full number of examples ran.
    ``seconds`` runs from the request to this verdict.
    """

    kata: str
    file: str
    outcome: Outcome
    message: str
    parts: list[PartResult]
    claims: list[ClaimResult]
    confirmed: bool
    seconds: float
    lines: int | None
    line_limit: int | None
    line: int = 0
    text: str = ""
    rules_broken: list[RuleBroken] = field(default_factory=list)
    mistake: Likeness | None = None
    output: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def cards(self) -> list[Card]:
        return [result.card for result in self.claims if result.card]

    def as_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self)}


def from_json(raw: dict[str, Any]) -> Verdict:
    """The inverse of ``Verdict.as_json``."""
    raw = {k: v for k, v in raw.items() if k != "schema"}
    claims = [
        ClaimResult(**c | {"card": Card(**c["card"]) if c["card"] else None}) for c in raw.pop("claims")
    ]
    return Verdict(
        claims=claims,
        parts=[PartResult(**p) for p in raw.pop("parts")],
        rules_broken=[RuleBroken(**r) for r in raw.pop("rules_broken")],
        mistake=Likeness(**raw["mistake"]) if raw["mistake"] else None,
        **{k: v for k, v in raw.items() if k != "mistake"},
    )
