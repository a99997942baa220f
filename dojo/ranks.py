"""Several processes for the katas that need them."""

from __future__ import annotations


class Stuck(Exception):
    """A process of the subject's waits for what never comes; the message says which, and in what operation.

    ``line`` is the person's own line. The judge's outcome is "timed out".
    """

    def __init__(self, message: str, line: int = 0):
        super().__init__(message)
        self.line = line
