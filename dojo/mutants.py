"""Small mechanical changes to a reference, to measure what the claims would notice.

The mistakes are what people write; mutants are what nobody thought of. Each differs from the reference in one
place. A mutant that every claim accepts is either equivalent to the reference or a gap in the claims, and a
person has to say which.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from dojo.places import room_file

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Mult,
}  # fmt: skip
METHODS = {
    "amax": "amin", "max": "min", "min": "max", "sum": "mean", "mean": "sum", "any": "all", "all": "any",
    "exp": "exp2", "cos": "sin", "sin": "cos", "tril": "triu", "float": "half", "detach": "clone",
    "pop": "copy", "append": "remove", "add": "discard", "argmax": "argmin", "cumsum": "cumprod",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """The reference with one change: at which line, what stood there, and what stands there now."""

    line: int
    before: str
    after: str
    source: str


def mutants(kata: str) -> Iterator[Mutant]:
    """Every mutant of a kata's reference, in the order of its lines."""
    tree = ast.parse(room_file("reference", kata).read_text(encoding="utf-8"))
    unread = _unread(tree)
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in unread:
            continue
        for change in _changes(node):
            mutated = copy.deepcopy(tree)
            twin = next(n for i, n in enumerate(ast.walk(mutated)) if i == index)
            before = ast.unparse(node)
            change(twin)
            after = ast.unparse(ast.fix_missing_locations(twin))
            if after != before:
                yield Mutant(getattr(node, "lineno", 0), before, after, ast.unparse(mutated))


def _unread(tree: ast.Module) -> set[int]:
    """Nodes that no caller can observe: docstrings, annotations, the wording of errors."""
    found: set[int] = set()
    for node in ast.walk(tree):
        hidden: list[ast.AST] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            hidden = [node]
        elif (isinstance(node, ast.arg) and node.annotation) or isinstance(node, ast.AnnAssign):
            hidden = [node.annotation]
        elif isinstance(node, ast.FunctionDef) and node.returns:
            hidden = [node.returns]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            hidden = list(node.exc.args)
        found |= {id(inner) for root in hidden for inner in ast.walk(root)}
    return found


def _changes(node: ast.AST) -> Iterator:
    """The ways to change one node; each is a function that edits a copy of it in place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield lambda n: n.ops.__setitem__(0, COMPARISONS[type(n.ops[0])]())
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield lambda n: setattr(n, "op", OPERATORS[type(n.op)]())
    if isinstance(node, ast.BoolOp):
        yield lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield lambda n: setattr(n, "op", ast.UAdd()) if isinstance(n.op, ast.USub) else _unwrap(n)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda n: setattr(n, "value", n.value + 1)
        yield lambda n: setattr(n, "value", n.value - 1)
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield lambda n: setattr(n, "attr", METHODS[n.attr])
    if isinstance(node, ast.If):
        yield lambda n: setattr(n, "test", ast.Constant(True))
        yield lambda n: setattr(n, "test", ast.Constant(False))
    if isinstance(node, ast.IfExp):
        yield lambda n: setattr(n, "body", n.orelse)
        yield lambda n: setattr(n, "orelse", n.body)
    if isinstance(node, (ast.FunctionDef, ast.If, ast.For, ast.While, ast.With)) and len(node.body) > 1:
        for at, statement in enumerate(node.body):
            if isinstance(statement, (ast.Expr, ast.AugAssign)) and not _is_docstring(statement):
                yield lambda n, at=at: n.body.__setitem__(at, ast.Pass())
    if isinstance(node, ast.Call) and node.keywords:
        for at in range(len(node.keywords)):
            yield lambda n, at=at: n.keywords.pop(at)


def _unwrap(node: ast.UnaryOp) -> None:
    """``not x`` becomes ``not not x``, and ``~x`` becomes ``~~x``: the operator is taken back."""
    node.operand = ast.UnaryOp(node.op, node.operand)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
