"""The light end of the judge: starts the warm process and talks to it. Imports no torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dojo.places import ROOT, home, place_among_ranks
from dojo.verdict import Verdict, from_json


class JudgeUnavailable(RuntimeError):
    """The warm process did not start or died; the message holds what it said last."""


@dataclass
class Ruling:
    """A verdict, and the failing examples to replay next time."""

    verdict: Verdict
    examples: dict[str, list[str]]


class Judge:
    """A running judge. Use as a context manager, so that nothing is left behind.

    Starting returns at once; the first trial waits until torch is imported (two to three seconds).
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(home() / ".dojo" / "hypothesis"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        if place_among_ranks():
            environment["PYTHONHASHSEED"] = "0"  # the same examples in all processes
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dojo.judge.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.versions: dict[str, str] = {}
        self.forks = False
        self._warm = threading.Event()
        self._latest: tuple[int, queue.SimpleQueue] = (0, queue.SimpleQueue())
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until the judge is warm."""
        self._warm.wait()
        if not self.versions:
            raise JudgeUnavailable(self._last_words())

    def trial(
        self, kata: str, path: Path, source: str | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Judge a file and yield what happens, the verdict last (``event`` is ``verdict``).

        ``options`` are the fields of ``dojo.judge.warm.Request``. Starting another trial, also from
        another thread, cancels this one, which then just ends.
        """
        source = path.read_text(encoding="utf-8-sig", errors="replace") if source is None else source
        self.wait()
        with self._lock:
            number = next(self._ids)
            events: queue.SimpleQueue = queue.SimpleQueue()
            self._latest[1].put(None)
            self._latest = (number, events)
            self._send(
                {"do": "judge", "id": number, "kata": kata, "path": str(path), "source": source, **options}
            )
        while (event := events.get()) is not None:
            if event["event"] == "gone":
                raise JudgeUnavailable(self._last_words())
            yield event
            if event["event"] == "verdict":
                return

    def judge(self, kata: str, path: Path, source: str | None = None, **options: Any) -> Ruling:
        """Judge a file and return the ruling."""
        *_, last = self.trial(kata, path, source, **options)
        return Ruling(from_json(last["verdict"]), last["examples"])

    def prepare(self, kata: str) -> None:
        """Let the judge get ready for a kata in its own time; returns at once."""
        with contextlib.suppress(JudgeUnavailable):
            self._send({"do": "prepare", "kata": kata})

    def cancel(self) -> None:
        """End the trial under way, if there is one; its events just end."""
        with self._lock:
            self._latest[1].put(None)
            self._send({"do": "cancel"})

    def close(self) -> None:
        """End the judge and everything it started."""
        if not self._warm.is_set():
            self._process.terminate()  # still importing: nobody waits for that
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        self._process.stdout.close()
        self._log.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as gone:
            raise JudgeUnavailable(self._last_words()) from gone

    def _read(self) -> None:
        """The reading thread: hands each event to the trial it belongs to, if that is still wanted."""
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                event = json.loads(line)
                if event["event"] == "ready":
                    self.versions, self.forks = event["versions"], event["forks"]
                    self._warm.set()
                elif event.get("id") == self._latest[0]:
                    self._latest[1].put(event)
        self._warm.set()
        self._latest[1].put({"event": "gone"})

    def _last_words(self) -> str:
        if self._log.closed:
            return "the judge was closed"
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in said if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", line)]
        last = (errors or said or [f"exit code {self._process.poll()}"])[-1]
        cure = " (pip install -e . brings what is missing)" if "ModuleNotFoundError" in last else ""
        return f"the judge could not run: {last}{cure}"
