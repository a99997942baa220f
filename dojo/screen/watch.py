"""Sees a file being saved, whatever way the editor saves it.

It polls the one file, on purpose. Notifications do not come through from network drives, from the
Windows side of WSL or into containers, and editors differ: some write in place, some rename a new file
over the old one, some delete first. What they all leave is a path whose content is another than before.
"""

from __future__ import annotations

import ast
import time
from dataclasses import dataclass
from pathlib import Path

COARSE = 3.0
"""Seconds for which the content is compared even if nothing else changed: timestamps of some file
systems are this coarse, and a second save in the same second may have the same length."""


@dataclass(frozen=True)
class Save:
    """The text of a file, and when it was written (seconds since the epoch)."""

    source: str
    at: float


class Watch:
    """Looks at a file each time ``poll`` is called. ``gone`` tells that the file is not there now."""

    def __init__(self, path: Path):
        self.path = path
        self.gone = False
        self._absent = 0
        self._seen: tuple[int, int, int] | None = None
        self._changed = time.monotonic()
        self._unread = True
        self._raw: bytes | None = None

    def poll(self) -> Save | None:
        """The file, if its content is new since the last Save and no longer being written."""
        signature = self._signature()
        if signature is None:
            self._absent += 1
            self.gone = self._absent > 2  # an editor that deletes and writes anew is not worth a word
            self._seen = None
            return None
        self._absent, self.gone = 0, False
        settled = signature == self._seen
        if not settled:
            self._seen, self._changed, self._unread = signature, time.monotonic(), True
        elif not self._unread and time.monotonic() - self._changed > COARSE:
            return None
        return self._read(settled)

    def _read(self, settled: bool) -> Save | None:
        try:
            raw = self.path.read_bytes()
        except OSError:
            return None
        if self._signature() != self._seen:
            return None  # still being written: the next poll sees the rest
        if raw == self._raw:
            self._unread = False
            return None
        source = raw.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        if not settled and not _whole(source):
            return None  # may be the first half of a save; if it is not, the next poll takes it
        self._raw, self._unread = raw, False
        return Save(source, self._seen[0] / 1e9)

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _whole(source: str) -> bool:
    """A file that parses is taken at once; one that is empty or cut off in the middle mostly does not."""
    try:
        return bool(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
