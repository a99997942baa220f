"""Wrong answers that people really write, each a small change to the reference.

A mistake is kept as a change, not as a second copy, so that it stays wrong in one way only, reads
as a sentence, and can be planted into a working file together with others.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from dojo.places import room_file


class DoesNotApply(ValueError):
    """The text that a mistake changes is not found exactly once in the source."""


@dataclass(frozen=True)
class Mistake:
    """One wrong answer.

    ``name`` is a slug; ``says`` completes "this looks like: …"; ``belief`` is what the person
    thought; ``claim`` is the property that ends it. ``change`` holds (old, new) texts, each old
    text standing exactly once in the reference; ``define`` replaces whole top-level functions or
    classes by the given ones, where a change of text would not do.
    """

    name: str
    says: str
    belief: str
    claim: str
    change: tuple[tuple[str, str], ...] = ()
    define: tuple[tuple[str, Callable], ...] = ()

    def plant(self, source: str) -> str:
        """The source with this mistake in it. Raises DoesNotApply if it has no place there."""
        for old, new in self.change:
            if source.count(old) != 1:
                raise DoesNotApply(f"{self.name}: {old!r} stands {source.count(old)} times, expected once")
            source = source.replace(old, new)
        for name, wrong in self.define:
            source = _redefine(source, name, wrong)
        return source


def _redefine(source: str, name: str, wrong: Callable) -> str:
    found = list(re.finditer(rf"^(?:@.*\n)*(?:def|class) {name}\b.*\n(?:[ \t)\]}}].*\n|\n)*", source, re.M))
    if len(found) != 1:
        raise DoesNotApply(f"{name!r} is defined {len(found)} times at the top level, expected once")
    text = textwrap.dedent(inspect.getsource(wrong))
    text = re.sub(rf"^(def|class) {wrong.__name__}\b", rf"\1 {name}", text, count=1, flags=re.M)
    return source[: found[0].start()] + text + "\n\n" + source[found[0].end() :]


def mistakes(kata: str) -> tuple[Mistake, ...]:
    """The mistakes of a kata, in the order of ``mistakes/NAME.py``."""
    return importlib.import_module(f"mistakes.{kata}").MISTAKES


def wrong_source(kata: str, mistake: Mistake) -> str:
    """The reference with the mistake planted: a complete file that can be put on trial."""
    return mistake.plant(room_file("reference", kata).read_text(encoding="utf-8"))
