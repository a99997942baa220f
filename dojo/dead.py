"""Take out of a source what a change to it has left without a use: it would point at the change.

Works on the text, so that the layout of the lines stays as a person wrote it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

ACTIONS = {"pop", "popleft", "popitem", "append", "extend", "remove", "setdefault", "update", "add", "next"}
Edit = tuple[int, int, list[str]]
"""The lines from the first up to the second, counted from 0, become these."""


def without_dead(source: str) -> str:
    """The source without code that is never reached, names that are never read, and imports of nothing.

    What is public stays, used or not: the contract asks for it.
    """
    while True:
        tree, lines = ast.parse(source), source.splitlines(keepends=True)
        edit = next(_edits(tree, lines), None)
        if edit is None:
            return source
        first, last, instead = edit
        lines[first:last] = instead
        source = "".join(lines)


def _edits(tree: ast.Module, lines: list[str]) -> Iterator[Edit]:
    yield from _branches(tree, lines)
    yield from _never_read(tree, lines)
    used = _used(tree)
    for body in (node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))):
        for node in body:
            name = getattr(node, "name", "")
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and _private(name) and name not in used:
                yield _out(node, body, lines)
            elif isinstance(node, ast.Assign) and body is tree.body:
                names = _names(node.targets)
                if names and all(map(_private, names)) and used.isdisjoint(names):
                    yield _out(node, body, lines)
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", "") != "__future__":
            kept = [a for a in node.names if (a.asname or a.name.split(".")[0]) in used]
            if not kept:
                yield _out(node, tree.body, lines)
            elif len(kept) < len(node.names):
                whence = (node.module, kept, node.level) if isinstance(node, ast.ImportFrom) else (kept,)
                yield node.lineno - 1, node.end_lineno, [ast.unparse(type(node)(*whence)) + "\n"]


def _branches(tree: ast.Module, lines: list[str]) -> Iterator[Edit]:
    """Branches that are always taken, or never, or that do nothing, and what stands after the way out."""
    for body in _bodies(tree):
        for at, node in enumerate(body):
            if isinstance(node, (ast.Return, ast.Raise)) and body[at + 1 :]:
                yield node.end_lineno, body[-1].end_lineno, []
            if isinstance(node, ast.Pass) and len(body) > 1:
                yield _out(node, body, lines)
            if not isinstance(node, ast.If) or lines[node.lineno - 1].lstrip().startswith("elif"):
                continue
            never = _is(node.test, False) or (
                isinstance(node.test, ast.BoolOp)
                and isinstance(node.test.op, ast.And)
                and _is(node.test.values[0], False)
            )
            idle = all(isinstance(n, ast.Pass) for n in node.body) and not _acts(node.test)
            if not node.orelse and (never or idle):
                yield _out(node, body, lines)
            elif _is(node.test, True):
                kept = lines[node.body[0].lineno - 1 : node.body[-1].end_lineno]
                yield node.lineno - 1, node.end_lineno, [line.removeprefix("    ") for line in kept]


def _never_read(tree: ast.Module, lines: list[str]) -> Iterator[Edit]:
    """Assignments in a function to names that it never reads."""
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        read |= {
            name
            for n in ast.walk(function)
            if isinstance(n, (ast.Global, ast.Nonlocal, ast.AugAssign))
            for name in (_names([n.target]) if isinstance(n, ast.AugAssign) else n.names)
        }
        for body in _bodies(function):
            for node in (n for n in body if isinstance(n, ast.Assign)):
                names = _names(node.targets)
                if names and read.isdisjoint(names) and not _acts(node.value):
                    yield _out(node, body, lines)


def _out(node: ast.stmt, body: list[ast.stmt], lines: list[str]) -> Edit:
    """Take a statement out, and the blank lines after a definition; a body keeps one statement at least."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
    last = node.end_lineno
    if len(body) == 1:
        return first, last, [" " * node.col_offset + "pass\n"]
    while isinstance(node, (ast.FunctionDef, ast.ClassDef)) and last < len(lines) and not lines[last].strip():
        last += 1
    return first, last, []


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for part in ("body", "orelse", "finalbody"):
            body = getattr(node, part, None)
            if isinstance(body, list) and body:
                yield body


def _names(targets: list[ast.expr]) -> set[str]:
    """The names that are assigned to; none if anything else is, such as an attribute."""
    found: set[str] = set()
    for target in targets:
        if isinstance(target, ast.Name):
            found.add(target.id)
        elif isinstance(target, ast.Tuple) and all(isinstance(t, ast.Name) for t in target.elts):
            found |= {t.id for t in target.elts}
        else:
            return set()
    return found


def _used(tree: ast.Module) -> set[str]:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def _acts(node: ast.expr) -> bool:
    """May it do something besides giving a value? Then taking it out may take a mistake out."""
    called = [
        getattr(n.func, "attr", getattr(n.func, "id", "")) for n in ast.walk(node) if isinstance(n, ast.Call)
    ]
    return any(name in ACTIONS or name.endswith("_") for name in called)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
