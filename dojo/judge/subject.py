"""Loads the file on trial, and points at the person's own line when something goes wrong in it."""

from __future__ import annotations

import linecache
import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

NAME = "subject"


@dataclass
class DoesNotLoad(Exception):
    """The file could not be turned into a module; ``line`` is the person's own (0: no one line)."""

    message: str
    line: int = 0
    text: str = ""


def load(path: Path, source: str, entry_points: tuple[str, ...]) -> types.ModuleType:
    """Run the file as a module. Raises DoesNotLoad, also if it lacks an entry point."""
    # Tracebacks show the judged text, even if the file is saved again meanwhile.
    linecache.cache[str(path)] = (len(source), None, source.splitlines(True), str(path))
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise DoesNotLoad(
            f"{type(error).__name__}: {getattr(error, 'msg', error)}", line, _text(source, line)
        ) from None
    module = types.ModuleType(NAME)
    module.__file__ = str(path)
    sys.modules[NAME] = module
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        line = own_line(error, path)
        raise DoesNotLoad(
            "the file calls for an exit while it is loaded", line, _text(source, line)
        ) from None
    except BaseException as error:
        line = own_line(error, path)
        raise DoesNotLoad(f"{type(error).__name__}: {error}", line, _text(source, line)) from error
    missing = [name for name in entry_points if not callable(getattr(module, name, None))]
    if missing:
        raise DoesNotLoad(f"the file does not define {' and '.join(missing)}")
    return module


def own_line(error: BaseException, path: Path) -> int:
    """The deepest line of the person's file in the traceback, or 0."""
    while error is not None:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        if lines:
            return lines[-1] or 0
        error = error.__cause__
    return 0


def _text(source: str, line: int) -> str:
    lines = source.splitlines()
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""
