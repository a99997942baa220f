"""The person's file beside the reference: highlighted, and opened where the code begins."""

from __future__ import annotations

import ast
import textwrap

from rich.syntax import Syntax
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

NUMBERS = 6
"""Columns that the line numbers take."""


class Compare(Horizontal):
    """Two files: side by side, or where there is no room for that, one in front of the other."""

    def compose(self) -> ComposeResult:
        yield VerticalScroll(Static(), id="yours", classes="-behind")
        yield VerticalScroll(Static(), id="theirs")

    def fill(self, yours: str, theirs: str, titles: tuple[str, str], columns: int) -> None:
        """Show two sources, ``columns`` wide each."""
        for pane, source, title in zip(self.query(VerticalScroll), (yours, theirs), titles, strict=True):
            pane.query_one(Static).update(code(source))
            pane.border_title = title
            pane.begin = max(0, first_row(source, columns) - 1)
            self.open_at_code(pane)

    def open_at_code(self, pane: VerticalScroll) -> None:
        """Past docstring and imports, unless the person has scrolled already."""

        def scroll() -> None:
            if pane.is_attached and pane.scroll_y == 0:
                pane.scroll_to(y=pane.begin, animate=False)

        self.call_after_refresh(scroll)

    @property
    def front(self) -> VerticalScroll:
        """The pane that is seen where only one is, and that the keys scroll."""
        return next(pane for pane in self.query(VerticalScroll) if not pane.has_class("-behind"))

    def turn(self) -> None:
        """Bring the other file to the front."""
        for pane in self.query(VerticalScroll):
            pane.toggle_class("-behind")
        self.open_at_code(self.front)


def code(source: str) -> Syntax:
    """Python, highlighted, with line numbers; long lines are wrapped."""
    dark = {"theme": "nord", "background_color": "default"}
    return Syntax(source, "python", line_numbers=True, word_wrap=True, **dark)


def first_row(source: str, width: int) -> int:
    """The row on which the first function or class begins."""
    try:
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = next((node for node in ast.parse(source).body if isinstance(node, kinds)), None)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    if found is None:
        return 0
    line = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    room = max(10, width - NUMBERS)
    return sum(max(1, len(textwrap.wrap(text, room))) for text in source.splitlines()[: line - 1])
