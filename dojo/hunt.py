"""Bug hunts: a working file with mistakes planted in it, to be found and mended on the clock.

The mistakes come from the kata's catalogue and are drawn by a seed: the same seed gives the same hunt. The file
is the reference without its docstrings, comments and annotations, which would tell a planted line from its
neighbours, under the statement of the kata. It is mended when every claim holds again. Meanwhile the judge does
not say which mistake the file resembles: that is what the person is here to find; the hints say it, one by one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import io
import random
import re
import tokenize
from collections.abc import Iterable, Iterator

from dojo import catalogue
from dojo.exercise import Exercise
from dojo.mistake import DoesNotApply, Mistake, mistakes
from dojo.places import room_file

MINUTES_A_BUG, MINUTES_TO_READ = 5, 5
MOST_BUGS = 6
WIDEST = 110


class NoSuchHunt(ValueError):
    """So many mistakes cannot be planted together."""


def draw(kata: str, seed: int, bugs: int, *, subtle: bool = False) -> tuple[Mistake, ...]:
    """Choose the mistakes by the seed, in different places of the file.

    ``subtle`` keeps to the half of the catalogue that changes the fewest characters. Raises NoSuchHunt if
    fewer than ``bugs`` go together.
    """
    source, chance = _reference(kata), random.Random(f"{kata} {seed} {bugs} {subtle}")
    every = sorted(_plantable(kata), key=lambda m: m.name)
    if subtle:
        every = sorted(every, key=lambda m: _size(source, m))[: max(len(every) // 2, bugs)]
    chance.shuffle(every)
    chosen: list[Mistake] = []
    for mistake in every:
        if len(chosen) == bugs:
            break
        if {_place(kata, m) for m in chosen}.isdisjoint({_place(kata, mistake)}):
            try:
                source = mistake.plant(source)
                ast.parse(source)
            except (DoesNotApply, SyntaxError):
                continue
            chosen.append(mistake)
    if len(chosen) < bugs:
        raise NoSuchHunt(f"{kata} has room for {len(chosen)} mistakes at once, {bugs} were asked for")
    return tuple(chosen)


def _plantable(kata: str) -> list[Mistake]:
    """All mistakes; where the later parts are left to be written, those of the first, which stays."""
    brief = catalogue.brief(kata)
    last = 1 if brief.hunt_leaves else len(brief.parts)
    return [m for m in mistakes(kata) if brief.part_of(m.claim) <= last]


def _reference(kata: str) -> str:
    return room_file("reference", kata).read_text(encoding="utf-8")


def _place(kata: str, mistake: Mistake) -> str:
    """Where a mistake belongs: its region if the kata names regions, else the claim that it breaks."""
    regions = getattr(importlib.import_module(f"mistakes.{kata}"), "REGIONS", {})
    return regions.get(mistake.name, mistake.claim)


def _size(source: str, mistake: Mistake) -> int:
    """How many lines the mistake changes, and then how many characters."""
    try:
        planted = mistake.plant(source)
    except DoesNotApply:
        return len(source)
    lines = [d for d in difflib.ndiff(source.splitlines(), planted.splitlines()) if d[0] in "+-"]
    return sum(map(len, lines))


def name_of(kata: str) -> str:
    """Of the hunt's file in ``practice/`` and of its record."""
    return f"hunt-{kata}"


def exercise(kata: str, planted: Iterable[str], seed: int | None) -> Exercise:
    """The hunt for these mistakes."""
    known = {m.name: m for m in mistakes(kata)}
    chosen, source = [known[name] for name in planted], _reference(kata)
    for mistake in chosen:
        source = mistake.plant(source)
    brief = catalogue.brief(kata)
    count = f"{len(chosen)} bug{'s' * (len(chosen) > 1)}"
    hunted = dataclasses.replace(
        brief, title=f"Bug hunt: {brief.title}", hints=tuple(_hints(kata, chosen)),
        minutes=MINUTES_TO_READ + MINUTES_A_BUG * len(chosen),
    )  # fmt: skip
    left = _left_to_write(kata)
    judged = {"likeness": False} | ({"parts": 1} if left else {})
    text = f'"""{_statement(kata, count, bool(left))}\n"""\n\n' + plain(_unwritten(source, left))
    return Exercise(
        kata, name_of(kata), text, hunted, f"hunt {kata}", judged, tuple(m.name for m in chosen),
        tuple(m.says for m in chosen), seed,
    )  # fmt: skip


def _statement(kata: str, count: str, grows: bool) -> str:
    then = " Then write what still raises NotImplementedError." if grows else ""
    return f"This file is broken: {count}. Mend it until every claim holds again.{then}\n\n" + (
        catalogue.statement(kata).replace("\\", "\\\\").replace('"""', "'''")
    )


def _hints(kata: str, chosen: list[Mistake]) -> Iterator[str]:
    """First where each mistake is, then what it is."""
    for mistake in chosen:
        where = sorted(_touched(_reference(kata), mistake.plant(_reference(kata))))
        yield f"one is in {' and '.join(where)}" if where else "one is outside the functions"
    for mistake in chosen:
        yield mistake.says


def _touched(before: str, after: str) -> set[str]:
    """The functions and methods in which two sources differ."""
    a, b = _bodies(before), _bodies(after)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def _bodies(source: str) -> dict[str, str]:
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found |= {f"{node.name}.{n.name}": ast.unparse(n) for n in methods}
    return found


# --- the text -----------------------------------------------------------------------------------------


def plain(source: str) -> str:
    """The code alone: without docstrings, comments, and annotations of arguments and results.

    Works on the text, so that the layout of the lines stays as a person wrote it."""
    tree = ast.parse(source)
    starts = [0, *(m.end() for m in re.finditer("\n", source))]

    def at(line: int, column: int) -> int:  # columns count bytes
        text = source[starts[line - 1] : starts[line] if line < len(starts) else None]
        return starts[line - 1] + len(text.encode()[:column].decode())

    cuts = [(at(*begin), at(*end), new) for begin, end, new in _cuts(tree, source, at)]
    for begin, end, new in sorted(cuts, reverse=True):
        source = source[:begin] + new + source[end:]
    return _tidied(_on_one_line(_without_comments(source)))


def _cuts(tree: ast.Module, source: str, at) -> Iterator[tuple[tuple[int, int], tuple[int, int], str]]:  # noqa: ANN001
    """What to cut out, as (line, column) of its begin and end, and what to put there."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            doc, new = body[0], "" if len(body) > 1 or isinstance(node, ast.Module) else "pass"
            yield (doc.lineno, doc.col_offset), (doc.end_lineno, doc.end_col_offset), new
        if isinstance(node, ast.FunctionDef) and "constexpr" not in ast.unparse(
            node.args
        ):  # no mere annotation
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [a for a in (node.args.vararg, node.args.kwarg) if a]
            for arg in filter(lambda a: a.annotation, every):
                end = (arg.annotation.end_lineno, arg.annotation.end_col_offset)
                default = re.match(r"\s*=\s*", source[at(*end) :])
                if default:
                    end = (end[0], end[1] + len(default[0]))
                name_ends = (arg.lineno, arg.col_offset + len(arg.arg.encode()))
                yield name_ends, end, "=" if default else ""
            if node.returns:
                arrow = source.rindex("->", 0, at(node.returns.lineno, node.returns.col_offset))
                line = source.count("\n", 0, arrow) + 1
                column = len(source[source.rfind("\n", 0, arrow) + 1 : arrow].rstrip().encode())
                yield (line, column), (node.returns.end_lineno, node.returns.end_col_offset), ""


def _without_comments(source: str) -> str:
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start[0] - 1, token.start[1]
            rest = lines[row][:column].rstrip()
            lines[row] = rest + "\n" if rest else ""
    return "".join(lines)


def _on_one_line(source: str) -> str:
    """Signatures joined that fit a line now that their annotations are gone."""
    lines = source.splitlines(keepends=True)
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    for node in sorted(functions, key=lambda n: -n.lineno):
        first, last = node.lineno - 1, node.body[0].lineno - 1
        joined = " ".join(line.strip() for line in lines[first:last])
        joined = " " * node.col_offset + re.sub(r",? \)", ")", joined.replace("( ", "("))
        if last - first > 1 and len(joined) <= WIDEST:
            lines[first:last] = [joined + "\n"]
    return "".join(lines)


def _tidied(source: str) -> str:
    """No imports that are used no more, no holes where something was cut out."""
    used = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}
    kept = [line for line in source.splitlines() if not _unused(line, used)]
    text = re.sub(r"[ \t]+$", "", "\n".join(kept), flags=re.M)
    text = re.sub(r"(:\n)\n+(?=[ \t])", r"\1", text)  # a blank line where a docstring stood
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def _unused(line: str, used: set[str]) -> bool:
    """An import at the top level, on one line, of names that nothing uses."""
    if not re.match(r"(from \S+ )?import [^(]+$", line):
        return False
    names = [a.asname or a.name.split(".")[0] for a in ast.parse(line).body[0].names]
    return "annotations" not in names and not used.intersection(names)


def _left_to_write(kata: str) -> frozenset[str]:
    return frozenset(catalogue.brief(kata).hunt_leaves)


def _unwritten(source: str, names: frozenset[str]) -> str:
    """The source with these functions, methods and classes left to be written."""
    tree = ast.parse(source)
    cut: list[ast.FunctionDef] = []
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else []
        whole = getattr(node, "name", "") in names
        cut += [node] if whole and isinstance(node, ast.FunctionDef) else []
        for m in (m for m in members if isinstance(m, ast.FunctionDef)):
            cut += [m] if whole or f"{node.name}.{m.name}" in names else []
    lines = source.splitlines(keepends=True)
    for node in sorted(cut, key=lambda n: -n.lineno):
        first, last = node.body[0], node.body[-1]
        lines[first.lineno - 1 : last.end_lineno] = [" " * first.col_offset + "raise NotImplementedError\n"]
    return "".join(lines)
