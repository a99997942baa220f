"""What is known of the trial under way: the state of each claim, the failures, in the end the verdict.

Events of the judge go in (``dojo.judge.warm`` lists them), the screen reads what follows from them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dojo.catalogue import Brief
from dojo.places import room_file
from dojo.verdict import Card, Likeness, Verdict, from_json

IN_WORDS = {
    "waiting": "waiting",
    "running": "running",
    "held": "held",
    "confirming": "confirming",
    "confirmed": "confirmed",
    "failed": "FAILS",
    "not_implemented": "not written",
    "not_reached": "not reached",
    "interrupted": "STOPPED",
}
"""The states of a claim, as they stand on the screen. ``held`` is the quick stage, ``confirmed`` the full."""


@dataclass
class Board:
    """One trial. ``part`` is the part that the person is at, and outlives the trial."""

    brief: Brief
    part: int = 1
    states: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    rules: list[str] = field(default_factory=list)
    mistake: Likeness | None = None
    quick_seconds: float | None = None
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Before a new trial."""
        self.states = dict.fromkeys(self.brief.claims, "waiting")
        self.failing, self.cards, self.rules = {}, {}, []
        self.mistake = self.quick_seconds = self.verdict = None

    def hear(self, event: dict[str, Any]) -> None:
        """Take in an event; kinds that are not known are let pass."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)

    def _on_claim(self, event: dict[str, Any]) -> None:
        full = event["stage"] == "full"
        words = {"running": "confirming", "held": "confirmed"} if full else {}
        self._set(event["claim"], words.get(event["status"], event["status"]))

    def _on_failing(self, event: dict[str, Any]) -> None:
        self.failing.setdefault(event["claim"], event["message"])
        self._set(event["claim"], "failed")

    def _on_card(self, event: dict[str, Any]) -> None:
        card = Card(**event["card"])
        self.cards[card.claim] = card
        self.failing.setdefault(card.claim, card.message)
        self._set(card.claim, "failed")

    def _on_mistake(self, event: dict[str, Any]) -> None:
        self.mistake = Likeness(event["name"], event["says"], event["belief"])

    def _on_rule(self, event: dict[str, Any]) -> None:
        at = f"line {event['line']}: " if event.get("line") else ""
        self.rules.append(at + event["says"])

    def _on_stage(self, event: dict[str, Any]) -> None:
        if event["stage"] == "quick" and event["held"]:
            self.quick_seconds = event["seconds"]

    def _on_verdict(self, event: dict[str, Any]) -> None:
        self.verdict = from_json(event["verdict"])
        for result in self.verdict.claims:
            if result.status != "held":
                self._set(result.claim, result.status)
            elif self.states.get(result.claim) != "confirmed":
                self._set(result.claim, "confirmed" if self.verdict.confirmed else "held")
            if result.card:
                self.cards[result.claim] = result.card
            if result.status == "failed":
                self.failing.setdefault(result.claim, "")
        open_parts = (part.number for part in self.verdict.parts if part.status != "held")
        self.part = next(open_parts, len(self.brief.parts))

    def _set(self, claim: str, state: str) -> None:
        # What failed once stays failed: another child may still report what it was doing meanwhile.
        if claim in self.states and (self.states[claim] != "failed" or state == "interrupted"):
            self.states[claim] = state

    # --- what the screen asks -----------------------------------------------------------------------

    @property
    def failed(self) -> list[str]:
        """The failing claims, in the order of the brief."""
        return [claim for claim in self.brief.claims if claim in self.failing]

    @property
    def tried(self) -> int:
        """How many claims have been answered, in the stage that is running."""
        still = (
            ("waiting", "running")
            if self.quick_seconds is None
            else ("waiting", "running", "held", "confirming")
        )
        return sum(state not in still for state in self.states.values())

    @property
    def live(self) -> str | None:
        """The claim to look at: the first that fails, else the one that is running, else None."""
        if self.failed:
            return self.failed[0]
        running = [claim for claim, state in self.states.items() if state in ("running", "confirming")]
        return running[-1] if running else None

    def sentence(self, claim: str) -> str:
        if self.verdict:
            said = next((c.sentence for c in self.verdict.claims if c.claim == claim), "")
            if said:
                return said
        return sentences(self.brief.name).get(claim) or claim.removeprefix("test_").replace("_", " ")


@cache
def sentences(kata: str) -> dict[str, str]:
    """Each claim in words, read off the properties file without importing it (that would need torch)."""
    try:
        tree = ast.parse(room_file("properties", kata).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    docs = {
        node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    return {name: " ".join(doc.split("\n\n")[0].split()) for name, doc in docs.items()}
