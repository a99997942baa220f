"""What an attempt starts from: a blank stub to write, or a working file with mistakes planted in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dojo import catalogue
from dojo.catalogue import Brief
from dojo.places import room_file


@dataclass(frozen=True)
class Exercise:
    """``kata`` names the rooms that judge it, ``name`` the file in ``practice/`` and the record.

    ``text`` is what the file begins as, ``again`` what is typed after ``runner.py`` to go on. ``judged`` are
    the options of a trial (``dojo.judge.warm.Request``) until the attempt has passed. ``planted`` are the
    names of the mistakes in the text, ``says`` what they are, and ``seed`` is the number that drew them.
    """

    kata: str
    name: str
    text: str = field(repr=False)
    brief: Brief = field(repr=False)
    again: str
    judged: dict[str, Any] = field(default_factory=dict)
    planted: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    seed: int | None = None


def build(kata: str) -> Exercise:
    """Write the kata from its stub."""
    stub = room_file("katas", kata).read_text(encoding="utf-8")
    return Exercise(kata, kata, stub, catalogue.brief(kata), kata)
