"""What is remembered: attempts, every verdict with the source it judged, hints, and failing examples.

SQLite in WAL mode, one transaction a fact: killed at any moment, at most the unfinished one is lost.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dojo.places import store_file
from dojo.verdict import Verdict

SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, kata TEXT NOT NULL, started REAL NOT NULL, limit_seconds REAL,
    ended REAL, outcome TEXT, seconds REAL, over_time INTEGER NOT NULL DEFAULT 0, lines INTEGER,
    source TEXT, versions TEXT, seed INTEGER, planted TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY, attempt INTEGER REFERENCES attempts(id), kata TEXT NOT NULL, at REAL NOT NULL,
    outcome TEXT NOT NULL, source TEXT NOT NULL, verdict TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS hints (
    attempt INTEGER NOT NULL REFERENCES attempts(id), number INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (attempt, number)
);
CREATE TABLE IF NOT EXISTS kept (
    id INTEGER PRIMARY KEY, kata TEXT NOT NULL, at REAL NOT NULL, why TEXT NOT NULL, source TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS examples (
    kata TEXT NOT NULL, claim TEXT NOT NULL, example TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (kata, claim)
);
CREATE INDEX IF NOT EXISTS attempts_by_kata ON attempts(kata, started);
"""
VERSION = 2
UPGRADES = {
    1: "ALTER TABLE attempts ADD COLUMN seed INTEGER;"
    " ALTER TABLE attempts ADD COLUMN planted TEXT NOT NULL DEFAULT ''",
}
"""What brings a store of that version to the next one."""


class StoreUnusable(RuntimeError):
    """The store cannot be opened; the message says which file and why."""


@dataclass(frozen=True)
class Attempt:
    """One go at a kata or a hunt. ``outcome`` is None while it runs, else passed, given_up or left.

    ``seconds`` is the time to the save that passed; ``over_time`` tells that the limit had passed by then.
    ``planted`` are the mistakes of a hunt, drawn by ``seed``.
    """

    id: int
    kata: str
    started: float
    limit_seconds: float | None
    ended: float | None
    outcome: str | None
    seconds: float | None
    over_time: bool
    lines: int | None
    source: str | None
    hints: int
    seed: int | None = None
    planted: tuple[str, ...] = ()


class Store:
    """The person's record. Opening creates the file and its folder."""

    def __init__(self, path: Path | None = None):
        self.path = path or store_file()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found > VERSION:
                raise StoreUnusable(
                    f"{self.path} was written by a newer version (store {found}, this one reads {VERSION})"
                )
            for version in range(found or VERSION, VERSION):
                self._db.executescript(
                    f"BEGIN; {UPGRADES[version]}; PRAGMA user_version={version + 1}; COMMIT"
                )
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusable(f"{self.path}: {error}") from error

    def close(self) -> None:
        self._db.close()

    # --- attempts ---------------------------------------------------------------------------------

    def begin(
        self, kata: str, limit_seconds: float | None, *, seed: int | None = None, planted: Iterable[str] = ()
    ) -> Attempt:
        cursor = self._db.execute(
            "INSERT INTO attempts (kata, started, limit_seconds, seed, planted) VALUES (?, ?, ?, ?, ?)",
            (kata, time.time(), limit_seconds, seed, " ".join(planted)),
        )
        return self.attempt(cursor.lastrowid)

    def end(self, attempt: int, outcome: str, **facts: Any) -> None:
        """Close an attempt; ``facts`` are any of seconds, over_time, lines, source, versions."""
        facts |= {"outcome": outcome, "ended": time.time()}
        columns = ", ".join(f"{name} = ?" for name in facts)
        self._db.execute(f"UPDATE attempts SET {columns} WHERE id = ?", (*facts.values(), attempt))

    def attempt(self, number: int) -> Attempt:
        return self._attempts("WHERE a.id = ?", number)[0]

    def open_attempt(self, kata: str) -> Attempt | None:
        """The attempt at this kata that has not ended, if there is one."""
        found = self._attempts("WHERE a.kata = ? AND a.outcome IS NULL ORDER BY a.id DESC LIMIT 1", kata)
        return found[0] if found else None

    def attempts(self, kata: str | None = None) -> list[Attempt]:
        """All attempts, the latest first."""
        if kata is None:
            return self._attempts("ORDER BY a.started DESC, a.id DESC")
        return self._attempts("WHERE a.kata = ? ORDER BY a.started DESC, a.id DESC", kata)

    def best(self, kata: str) -> Attempt | None:
        """The fastest attempt that passed."""
        found = self._attempts("WHERE a.kata = ? AND a.outcome = 'passed' ORDER BY a.seconds LIMIT 1", kata)
        return found[0] if found else None

    def _attempts(self, where: str, *values: Any) -> list[Attempt]:
        rows = self._db.execute(
            "SELECT a.id, a.kata, a.started, a.limit_seconds, a.ended, a.outcome, a.seconds, a.over_time,"
            " a.lines, a.source, (SELECT COUNT(*) FROM hints h WHERE h.attempt = a.id), a.seed, a.planted"
            " FROM attempts a " + where,
            values,
        )
        return [Attempt(*row[:7], bool(row[7]), *row[8:-1], tuple(row[-1].split())) for row in rows]

    # --- what happens during one --------------------------------------------------------------------

    def add_verdict(self, attempt: int | None, source: str, verdict: Verdict) -> None:
        self._db.execute(
            "INSERT INTO verdicts (attempt, kata, at, outcome, source, verdict) VALUES (?, ?, ?, ?, ?, ?)",
            (attempt, verdict.kata, time.time(), verdict.outcome, source, json.dumps(verdict.as_json())),
        )

    def verdict_count(self, attempt: int) -> int:
        return self._db.execute("SELECT COUNT(*) FROM verdicts WHERE attempt = ?", (attempt,)).fetchone()[0]

    def add_hint(self, attempt: int, number: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO hints VALUES (?, ?, ?)", (attempt, number, time.time()))

    def keep(self, kata: str, source: str, why: str) -> int:
        """Put a file's text aside before it is overwritten; returns its number."""
        row = (kata, time.time(), why, source)
        return self._db.execute("INSERT INTO kept (kata, at, why, source) VALUES (?, ?, ?, ?)", row).lastrowid

    def kept(self, kata: str | None = None) -> list[dict[str, Any]]:
        """The texts put aside, the latest first."""
        where, values = ("WHERE kata = ?", (kata,)) if kata else ("", ())
        rows = self._db.execute(
            f"SELECT id, kata, at, why, source FROM kept {where} ORDER BY id DESC", values
        )
        return [dict(zip(("id", "kata", "at", "why", "source"), row, strict=True)) for row in rows]

    # --- failing examples, replayed first next time ---------------------------------------------------

    def examples(self, kata: str) -> dict[str, list[str]]:
        rows = self._db.execute("SELECT claim, example FROM examples WHERE kata = ?", (kata,))
        return {claim: [example] for claim, example in rows}

    def add_examples(self, kata: str, found: dict[str, list[str]]) -> None:
        rows = [(kata, claim, examples[0], time.time()) for claim, examples in found.items() if examples]
        self._db.executemany("INSERT OR REPLACE INTO examples VALUES (?, ?, ?, ?)", rows)
