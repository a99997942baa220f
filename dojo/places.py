"""Where things stand: the rooms of the checkout, and the person's own files."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("katas", "reference", "properties", "mistakes")


def home() -> Path:
    """The folder that holds ``practice/`` and the store: the checkout, or ``$KATA_HOME``."""
    moved = os.environ.get("KATA_HOME")
    return Path(moved).expanduser().resolve() if moved else ROOT


def practice_file(kata: str) -> Path:
    return home() / "practice" / f"{kata}.py"


def store_file() -> Path:
    return home() / ".dojo" / "store.sqlite3"


def room_file(room: str, kata: str, suffix: str = ".py") -> Path:
    return ROOT / room / f"{kata}{suffix}"


def place_among_ranks() -> tuple[int, int] | None:
    """This process's rank and the number of ranks, if torchrun (or the like) has started several."""
    if all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return None


def shown(path: Path) -> str:
    """The path as a person types it: relative to where they stand, if it is below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
