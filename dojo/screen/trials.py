"""Trials in the background: each save starts one, and only the latest one counts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from dojo.judge.client import Judge, JudgeUnavailable
from dojo.session import Session

Told = Callable[[int, dict[str, Any]], None]
"""Is given the number of a trial and an event of the judge, in the trial's own thread. To the judge's
events comes ``unavailable``, with a ``message``."""


class Trials:
    """Holds trials of a session's file. ``number`` is that of the latest; what others say is late."""

    def __init__(self, session: Session, judge: Judge, new_judge: Callable[[], Judge], told: Told):
        self.session, self.judge, self.new_judge, self.told = session, judge, new_judge, told
        self.number = 0

    @property
    def warm(self) -> bool:
        """Can the judge answer at once?"""
        return bool(self.judge.versions)

    def start(self, source: str) -> None:
        """Put a source on trial. A trial still under way is cancelled by this one."""
        self.number += 1
        asked = self.session.asked()
        # A daemon: a judge that does not answer must never keep the screen from closing.
        threading.Thread(target=self._hold, args=(self.number, source, asked), daemon=True).start()

    def forget(self) -> None:
        """Let the trial under way be late."""
        self.number += 1

    def replace_judge(self) -> None:
        """Another judge in place of one that died."""
        with contextlib.suppress(OSError):
            self.judge.close()
        self.judge = self.new_judge()

    def _hold(self, number: int, source: str, asked: dict[str, Any]) -> None:
        try:
            self.judge.wait()
            while number == self.number:
                for event in self.judge.trial(self.session.kata, self.session.path, source, **asked):
                    self.told(number, event)
                    if event["event"] == "verdict":
                        return
                # Cancelled, but not by a newer save: an older thread came late. Then it is held again.
        except (JudgeUnavailable, OSError, ValueError) as gone:
            self.told(number, {"event": "unavailable", "message": str(gone)})
