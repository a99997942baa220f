"""Bug hunts: a working file with mistakes planted in it, to be found and mended on the clock.

The mistakes come from the kata's catalogue and are drawn by a seed: the same seed gives the same hunt. The file
is the reference without its docstrings, comments and annotations, which would tell a planted line from its
neighbours, under the statement of the kata. It is mended when every claim holds again. Meanwhile the judge does
not say which mistake the file resembles: that is what the person is here to find; the hints say it, one by one.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import io
import random
import re
import tokenize
from collections.abc import Iterable, Iterator

from dojo import catalogue
from dojo.dead import without_dead
from dojo.exercise import Exercise
from dojo.mistake import DoesNotApply, Mistake, mistakes
from dojo.places import room_file

MINUTES_A_BUG, MINUTES_TO_READ = 5, 5
MOST_BUGS = 6
WIDEST = 110
ORDERS = 20
"""In how many orders the mistakes are tried, until enough go together."""
ODD = re.compile(
    r"""\bFalse and\b|\bif (True|False)\b|^\s*pass$|\b0 \* |\* 0\b(?![.])|__dict__|__init__\(\)$"""
    r"""|\b(has|get)attr\((self|table|ctx), |[.]stride\(-?\d\) =="""
)
"""What helps to keep a mistake small in the catalogue, and would give it away here."""


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
    places: dict[str, list[Mistake]] = {}
    for mistake in every:
        places.setdefault(_place(kata, mistake), []).append(mistake)
    most = 0
    for _ in range(ORDERS):
        chosen = _together(kata, places, chance, bugs)
        if len(chosen) == bugs:
            return tuple(chosen)
        most = max(most, len(chosen))
    raise NoSuchHunt(f"{kata} has room for {most} mistakes at once, {bugs} were asked for")


def _together(kata: str, places: dict[str, list[Mistake]], chance: random.Random, bugs: int) -> list[Mistake]:
    """As many as fit, up to ``bugs``: one from each place, and each place as likely as another."""
    source, chosen = _reference(kata), []
    for place in chance.sample(sorted(places), len(places)):
        for mistake in chance.sample(places[place], len(places[place])):
            if len(chosen) == bugs:
                return chosen
            try:
                planted = mistake.plant(source)
                if _betrays(kata, source, planted):
                    continue
            except (DoesNotApply, SyntaxError):
                continue
            source = planted
            chosen.append(mistake)
            break
    return chosen


def _betrays(kata: str, before: str, after: str) -> bool:
    """Does the change stand out in the text: by its width, or by code that nobody writes?"""
    left = _left_to_write(kata)
    known = set(plain(_unwritten(before, left)).splitlines())
    new = [line for line in plain(_unwritten(after, left)).splitlines() if line not in known]
    return any(len(line) > WIDEST or ODD.search(line) for line in new)


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
    """The hunt for these mistakes; without any, what follows a hunt: the same file, judged like any kata.

    Mistakes of an open hunt that the catalogue has no more are passed over: they stand in the file already.
    """
    planted, source = tuple(planted), _reference(kata)
    known, chosen = {m.name: m for m in mistakes(kata)}, []
    for mistake in (known[name] for name in planted if name in known):
        with contextlib.suppress(DoesNotApply):
            source = mistake.plant(source)
            chosen.append(mistake)
    brief, left = catalogue.brief(kata), _left_to_write(kata)
    hunted, judged = dataclasses.replace(brief, title=f"After the hunt: {brief.title}"), {}
    if planted:
        hunted = dataclasses.replace(
            brief, title=f"Bug hunt: {brief.title}", hints=tuple(_hints(kata, chosen)),
            minutes=MINUTES_TO_READ + MINUTES_A_BUG * len(planted),
        )  # fmt: skip
        judged = {"likeness": False} | ({"parts": 1} if left else {})
    text = f'"""{_statement(kata, len(planted), bool(left))}\n"""\n\n' + plain(_unwritten(source, left))
    says = tuple(m.says for m in chosen)
    return Exercise(kata, name_of(kata), text, hunted, f"hunt {kata}", judged, planted, says, seed)


def _statement(kata: str, count: int, grows: bool) -> str:
    bugs = f"{count} bug{'s' * (count > 1)}"
    told = [f"This file is broken: {bugs}. Mend it until every claim holds again."] if count else []
    if grows:
        told.append(f"{'Then write' if count else 'Write'} what still raises NotImplementedError.")
    text = catalogue.statement(kata).replace("\\", "\\\\").replace('"""', "'''")
    return "\n\n".join([*([" ".join(told)] if told else []), text])


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
    source = without_dead(_without_comments(source))
    return _tidied(_broken_up(_on_one_line(_in_double_quotes(source))))


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


def _in_double_quotes(source: str) -> str:
    """Strings as the formatter writes them."""
    lines = source.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        simple = token.type == tokenize.STRING and re.fullmatch(r"([a-z]?)'([^'\"\\]+)'", token.string)
        if simple:
            row, column = token.start[0] - 1, token.start[1]
            rest = lines[row][column + len(token.string) :]
            lines[row] = f'{lines[row][:column]}{simple[1]}"{simple[2]}"{rest}'
    return "".join(lines)


def _broken_up(source: str) -> str:
    """Lines that are too wide, with what stands in their last brackets on a line of its own."""
    lines = source.splitlines()
    for row in reversed(range(len(lines))):
        line = lines[row].rstrip(":") if lines[row].endswith("):") else lines[row]
        opened = _opening(line) if len(lines[row]) > WIDEST and line.endswith((")", "]")) else 0
        if opened:
            indent = " " * (len(line) - len(line.lstrip()))
            closed = line[-1] + lines[row][len(line) :]
            apart = [line[:opened], f"{indent}    {line[opened:-1]}", indent + closed]
            if max(map(len, apart)) <= WIDEST:
                lines[row : row + 1] = apart
    return "\n".join(lines) + "\n"


def _opening(line: str) -> int:
    """Where the inside of the brackets begins that the line ends with; 0 if there is none."""
    depth = 0
    for at in range(len(line) - 1, -1, -1):
        depth += (line[at] in ")]}") - (line[at] in "([{")
        if depth == 0:
            return at + 1 if at + 1 < len(line) - 1 else 0
    return 0


def _tidied(source: str) -> str:
    """No holes where something was cut out."""
    text = re.sub(r"[ \t]+$", "", source, flags=re.M)
    text = re.sub(r"(:\n)\n+(?=[ \t])", r"\1", text)  # a blank line where a docstring stood
    text = re.sub(r"\n{3,}(?=[ \t])", "\n\n", text)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


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
