"""What katas there are. There is no registry: a kata is the files that stand in the rooms.

Reading the catalogue imports neither torch nor any kata, so that the runner paints at once.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dojo.places import ROOT, room_file

TIERS = ("warmup", "intermediate", "advanced", "expert")


class UnknownKata(LookupError):
    """No kata has that name; ``nearest`` is what the person may have meant."""

    def __init__(self, name: str):
        self.name = name
        self.nearest = nearest(name, names())
        meant = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        super().__init__(f"there is no kata {name!r}.{meant}")


class BadBrief(ValueError):
    """A brief that cannot be read; the message names the file and the key."""


@dataclass(frozen=True)
class Part:
    """One step of a kata: when its claims hold, the interviewer asks for the next."""

    title: str
    asks: str
    claims: tuple[str, ...]


@dataclass(frozen=True)
class FollowUp:
    """What an interviewer asks once the code holds."""

    question: str
    strong: str
    red_flag: str
    source: str


@dataclass(frozen=True)
class Brief:
    """Everything about a kata that is not code, read from ``katas/NAME.toml``.

    ``lines`` counts logical lines of code (see ``dojo.rules``); None means no limit. ``forbidden``
    are names of torch operations, however they are reached; ``forbidden_imports`` are modules;
    ``builds_on`` are the references that the kata may import; ``allows`` are guarded modules
    (``threading``, ``ctypes`` …) that this kata needs. ``wall`` and ``memory_gb`` bound a trial,
    ``seconds`` one claim. ``needs`` are modules beyond the suite's own (``triton``) without which it cannot
    be practised. ``hunt_leaves`` are functions, methods and classes that a bug hunt leaves to be written, for
    the parts after the first, and ``hunt_bugs`` is how many it plants unless told otherwise.
    """

    name: str
    title: str
    tier: str
    minutes: int
    parts: tuple[Part, ...]
    lines: int | None = None
    forbidden: tuple[str, ...] = ()
    forbidden_imports: tuple[str, ...] = ()
    builds_on: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    hunt_leaves: tuple[str, ...] = ()
    hunt_bugs: int = 1
    hints: tuple[str, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    sources: tuple[str, ...] = ()
    wall: float = 60.0
    seconds: float = 10.0
    memory_gb: float = 2.0
    path: Path = field(default=Path(), compare=False)

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(claim for part in self.parts for claim in part.claims)

    def part_of(self, claim: str) -> int:
        """The number of the part that a claim belongs to, from 1."""
        return next(n for n, part in enumerate(self.parts, 1) if claim in part.claims)


@cache
def names() -> tuple[str, ...]:
    """Every kata, easiest tier first, then by par and name."""
    found = [brief(path.stem) for path in (ROOT / "katas").glob("*.toml")]
    return tuple(b.name for b in sorted(found, key=lambda b: (TIERS.index(b.tier), b.minutes, b.name)))


@cache
def brief(name: str) -> Brief:
    """Read ``katas/NAME.toml``. Raises UnknownKata, or BadBrief with the key that is wrong."""
    path = room_file("katas", name, ".toml")
    if not path.is_file():
        raise UnknownKata(name)
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        parts = tuple(Part(p["title"], p["asks"], tuple(p["claims"])) for p in raw.pop("parts"))
        follow_ups = tuple(FollowUp(**f) for f in raw.pop("follow_ups", ()))
        lists = {key: tuple(value) for key, value in raw.items() if isinstance(value, list)}
        read = Brief(name=name, parts=parts, follow_ups=follow_ups, path=path, **(raw | lists))
    except (KeyError, TypeError) as wrong:
        raise BadBrief(f"{path}: {wrong}") from wrong
    if read.tier not in TIERS:
        raise BadBrief(f"{path}: tier is {read.tier!r}, expected one of {', '.join(TIERS)}")
    return read


def lacking(name: str) -> tuple[str, ...]:
    """The modules that a kata needs and that are not installed here."""
    return tuple(module for module in brief(name).needs if importlib.util.find_spec(module) is None)


@cache
def here() -> tuple[str, ...]:
    """The katas that can be judged on this machine, in the order of ``names``."""
    return tuple(name for name in names() if not lacking(name))


def nearest(word: str, known: tuple[str, ...]) -> str | None:
    """The known word closest to what was typed, or None."""
    close = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    return close[0] if close else next((k for k in known if k.startswith(word.lower())), None)


@cache
def stub_tree(name: str) -> ast.Module:
    return ast.parse(room_file("katas", name).read_text(encoding="utf-8"))


def statement(name: str) -> str:
    """What to build, by the stub's docstring."""
    return ast.get_docstring(stub_tree(name)) or ""


def entry_points(name: str) -> tuple[str, ...]:
    """The public functions and classes that the stub asks for; a Protocol is given, not asked for."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    asked = [n for n in stub_tree(name).body if isinstance(n, kinds) and not is_protocol(n)]
    return tuple(n.name for n in asked if not n.name.startswith("_"))


def is_protocol(node: ast.AST) -> bool:
    """Does the class only describe what a caller passes in?"""
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
