"""Opens the person's own editor on a file."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

WINDOWED = frozenset({
    "code", "code-insiders", "codium", "cursor", "windsurf", "zed", "subl", "sublime_text", "mate", "bbedit",
    "gvim", "mvim", "neovide", "gedit", "gnome-text-editor", "kate", "kwrite", "mousepad", "xed", "pluma",
    "notepad", "notepad++", "idea", "pycharm", "charm", "fleet", "xdg-open", "open", "explorer",
})  # fmt: skip
"""Editors with a window of their own: the terminal stays with the session, which goes on judging."""


class NoEditor(LookupError):
    """No editor is named, or the one named cannot be started; the message says what to do."""


def command() -> list[str]:
    """The editor and its arguments, as ``$VISUAL`` or else ``$EDITOR`` names it."""
    for variable in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(os.environ.get(variable, ""))
        except ValueError as wrong:
            raise NoEditor(f"${variable} cannot be read ({wrong})") from wrong
        if words:
            if shutil.which(words[0]) is None:
                raise NoEditor(f"${variable} names {words[0]!r}, which cannot be found")
            return words
    raise NoEditor("neither $VISUAL nor $EDITOR is set: open the file in an editor of your choice")


def has_window(words: list[str]) -> bool:
    return Path(words[0]).stem.lower() in WINDOWED


def open_window(words: list[str], path: Path) -> None:
    """Start an editor that has its own window, and leave it alone."""
    nowhere = subprocess.DEVNULL
    subprocess.Popen(
        [*words, str(path)], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )


def edit_here(words: list[str], path: Path) -> int:
    """Give this terminal to the editor until it is closed. Returns its exit code."""
    # Ctrl-C inside the editor reaches this process too, and is not meant for it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.call([*words, str(path)])
    finally:
        signal.signal(signal.SIGINT, before)
