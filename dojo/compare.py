"""The person's file beside the reference: highlighted, and opened where the code begins."""

from __future__ import annotations

import ast
import textwrap

from rich.syntax import Syntax

NUMBERS = 6
"""Columns that the line numbers take."""


def code(source: str) -> Syntax:
    """Python, highlighted, with line numbers; long lines are wrapped."""
    return Syntax(
        source, "python", theme="nord", line_numbers=True, word_wrap=True, background_color="default"
    )


def first_row(source: str, width: int) -> int:
    """The row on which the first function or class begins, past docstring and imports."""
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
