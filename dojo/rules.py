"""The rules of a kata that can be read off the source: the line limit, and what may not be used.

The run-time guard (``dojo.judge.guard``) catches what a scan cannot see, such as a forbidden call made
through ``getattr`` on a built-up name; the scan catches what the guard cannot, such as threads.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from dojo.catalogue import Brief

ROOMS = frozenset({"reference", "properties", "mistakes", "katas", "dojo", "tests", "runner"})
UNWATCHED = frozenset({
    "ctypes", "cffi", "subprocess", "multiprocessing", "threading", "_thread", "concurrent", "asyncio",
    "importlib", "imp", "runpy", "pkgutil", "gc", "inspect", "signal", "faulthandler", "hypothesis",
    "pytest", "_pytest", "unittest", "socket", "pty", "code", "codeop",
})  # fmt: skip
"""Modules through which code leaves the sight of the judge; a brief may allow one that it needs."""

UNWATCHED_ATTRIBUTES = frozenset({
    "_C", "jit", "_dynamo", "DisableTorchFunction", "DisableTorchFunctionSubclass", "_getframe",
    "settrace", "setprofile", "addaudithook", "__globals__", "__subclasses__", "__builtins__", "f_globals",
    "f_locals", "f_back", "__code__", "__closure__",
})  # fmt: skip
UNWATCHED_TORCH = frozenset({"compile", "library", "jit", "package", "hub"})
UNWATCHED_CALLS = frozenset({"exec", "eval", "compile", "__import__"})


@dataclass(frozen=True)
class Broken:
    """A rule that the file breaks: what it did, and where (line 0: the file as a whole).

    ``forbidden`` separates what may not be used from what is merely too long.
    """

    says: str
    line: int = 0
    forbidden: bool = True


def logical_lines(source: str) -> int:
    """Logical lines of code: statements as written, without docstrings, comments, blanks and imports.

    A statement broken over several lines counts once; statements joined by semicolons count each.
    """
    tree = ast.parse(source)
    skipped = {n.lineno for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))}
    skipped |= set(_docstring_lines(tree))
    count, start = 0, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) or token.string == ";":
            count += start is not None and start not in skipped
            start = None
        elif start is None and token.type not in _NOT_CODE:
            start = token.start[0]
    return count


_NOT_CODE = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield statement.lineno


def scan(source: str, brief: Brief) -> list[Broken]:
    """The rules that the source breaks. The source must parse."""
    found = list(_Scan(brief).over(ast.parse(source)))
    lines = logical_lines(source)
    if brief.lines is not None and lines > brief.lines:
        found.append(Broken(f"{lines} lines of code, the limit is {brief.lines}", forbidden=False))
    return found


class _Scan:
    def __init__(self, brief: Brief):
        self.brief = brief
        self.banned = UNWATCHED - set(brief.allows)
        self.torch_names: set[str] = set()

    def over(self, tree: ast.Module) -> Iterator[Broken]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self.imported(alias.name, node.lineno)
                    if alias.name.split(".")[0] == "torch":
                        self.torch_names.add((alias.asname or alias.name).split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield from self.imported(f"{node.module or ''}.{alias.name}", node.lineno)
                    if (node.module or "").split(".")[0] == "torch":
                        self.torch_names.add(alias.asname or alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                yield from self.attribute(node)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield from self.call(node, node.func.id)

    def imported(self, name: str, line: int) -> Iterator[Broken]:
        root, *rest = name.split(".")
        if root in ROOMS and not (root == "reference" and rest and rest[0] in self.brief.builds_on):
            yield Broken(f"imports {name.rstrip('.*')}: the answer is to be written, not fetched", line)
        elif root in self.banned:
            yield Broken(f"imports {root}, through which the judge cannot follow", line)
        elif any(name == f or name.startswith(f + ".") for f in self.brief.forbidden_imports):
            yield Broken(f"imports {root}, which is what this kata asks you to write", line)
        elif root == "torch" and rest and rest[-1] in self.brief.forbidden:
            yield Broken(f"imports {name}, which this kata forbids", line)
        elif root == "torch" and (set(rest) & UNWATCHED_ATTRIBUTES or (rest and rest[0] in UNWATCHED_TORCH)):
            yield Broken(f"imports {name}, through which the judge cannot follow", line)

    def attribute(self, node: ast.Attribute) -> Iterator[Broken]:
        chain, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            chain.append(root.attr)
            root = root.value
        from_torch = isinstance(root, ast.Name) and root.id in self.torch_names
        dotted = ".".join([root.id if isinstance(root, ast.Name) else "…", *reversed(chain)])
        if from_torch and node.attr in self.brief.forbidden:
            yield Broken(f"uses {dotted}, which this kata forbids", node.lineno)
        elif dotted == "triton.jit" and "triton" in self.brief.needs:
            return  # how a kernel is written
        elif node.attr in UNWATCHED_ATTRIBUTES or (
            from_torch and len(chain) == 1 and node.attr in UNWATCHED_TORCH
        ):
            yield Broken(f"uses {dotted}, through which the judge cannot follow", node.lineno)
        elif isinstance(root, ast.Name) and root.id == "sys" and chain[-1] == "modules":
            yield Broken("uses sys.modules, through which the judge cannot follow", node.lineno)

    def call(self, node: ast.Call, name: str) -> Iterator[Broken]:
        if name in UNWATCHED_CALLS:
            yield Broken(f"calls {name}(), through which the judge cannot follow", node.lineno)
        if name == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            if node.args[1].value in self.brief.forbidden:
                yield Broken(
                    f"fetches {node.args[1].value!r} by getattr, which this kata forbids", node.lineno
                )
            elif node.args[1].value in UNWATCHED_ATTRIBUTES:
                yield Broken(
                    f"fetches {node.args[1].value!r}, through which the judge cannot follow", node.lineno
                )
