"""Do the rooms of a kata agree? What must be true of every kata before anyone practises on it."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

from dojo import catalogue
from dojo.judge.client import Judge
from dojo.mistake import DoesNotApply, Mistake, mistakes, wrong_source
from dojo.places import ROOMS, ROOT, room_file
from dojo.rules import logical_lines, scan
from dojo.verdict import ClaimResult, Verdict

LEAST_HINTS, LEAST_FOLLOW_UPS, LEAST_CLAIMS, LEAST_MISTAKES, LEAST_STYLES = 3, 3, 8, 10, 4


def check_rooms(katas: list[str]) -> int:
    """Check the given katas, print what is wrong, and return the exit code."""
    wrong = 0
    stray = list(stray_files()) if set(katas) == set(catalogue.here()) else []
    for complaint in stray:
        print(f"stray: {complaint}")
    with Judge() as judge:
        for kata in katas:
            started = time.monotonic()
            complaints = [*on_paper(kata), *on_trial(kata, judge)]
            for complaint in complaints:
                print(f"{kata}: {complaint}")
            wrong += len(complaints)
            brief = catalogue.brief(kata)
            counts = f"{len(brief.claims)} claims, {len(mistakes(kata))} mistakes"
            counts += f", {len(styles(kata))} other styles  ({time.monotonic() - started:.1f} s)"
            print(
                f"{kata:<20} {'ok' if not complaints else 'WRONG':<6} {counts}",
                flush=True,
            )
    return 1 if wrong or stray else 0


# --- without running anything -------------------------------------------------------------------------


def on_paper(kata: str) -> Iterator[str]:
    """What can be seen by reading: signatures, the brief, the mistakes' texts."""
    brief = catalogue.brief(kata)
    missing = [room for room in ROOMS if not room_file(room, kata).is_file()]
    if missing:
        yield f"has no file in {', '.join(missing)}"
        return
    yield from _contract(kata)
    yield from _too_few(kata)
    for path in styles(kata):
        broken = scan(path.read_text(encoding="utf-8"), brief)
        yield from (f"the right answer {path.name} breaks a rule: {b.says}" for b in broken)
    defined = {n.name for n in _tree("properties", kata).body if isinstance(n, ast.FunctionDef)}
    tests = {name for name in defined if name.startswith("test_")}
    listed = list(brief.claims)
    yield from (f"{name} belongs to no part" for name in sorted(tests - set(listed)))
    yield from (
        f"a part lists {name}, which properties/{kata}.py lacks" for name in sorted(set(listed) - tests)
    )
    yield from (
        f"{name} belongs to more than one part" for name in sorted({n for n in listed if listed.count(n) > 1})
    )
    if "probes" not in defined:
        yield f"properties/{kata}.py has no probes to tell the mistakes apart"
    lines = logical_lines(room_file("reference", kata).read_text(encoding="utf-8"))
    if brief.lines is not None and lines > brief.lines:
        yield f"the reference has {lines} lines, the limit is {brief.lines}"


def _too_few(kata: str) -> Iterator[str]:
    brief = catalogue.brief(kata)
    counts = {
        "hints": (len(brief.hints), LEAST_HINTS),
        "follow-ups": (len(brief.follow_ups), LEAST_FOLLOW_UPS),
        "claims": (len(brief.claims), LEAST_CLAIMS),
        "mistakes": (len(mistakes(kata)), LEAST_MISTAKES),
        "accepted styles": (len(styles(kata)), LEAST_STYLES),
        "sources": (len(brief.sources), 1),
    }
    yield from (
        f"has {found} {what}, at least {least} are due"
        for what, (found, least) in counts.items()
        if found < least
    )


def _contract(kata: str) -> Iterator[str]:
    """The stub's signatures equal the reference's, and its bodies only raise."""
    stub, reference = _signatures(_tree("katas", kata)), _signatures(_tree("reference", kata))
    for name, signature in stub.items():
        if name not in reference:
            yield f"the reference lacks {name}"
        elif reference[name] != signature:
            yield f"{name} is {signature} in the stub and {reference[name]} in the reference"
    if not catalogue.statement(kata):
        yield "the stub has no statement"
    asked = [node for node in _tree("katas", kata).body if not catalogue.is_protocol(node)]
    for node in (inner for statement in asked for inner in ast.walk(statement)):
        if isinstance(node, ast.FunctionDef) and not _only_raises(node):
            yield f"the stub's {node.name} does more than raise NotImplementedError (line {node.lineno})"


def _signatures(tree: ast.Module) -> dict[str, str]:
    """Public functions and methods with their arguments as written."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found[node.name] = _signature(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = "class"
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    method.name == "__init__" or not method.name.startswith("_")
                ):
                    found[f"{node.name}.{method.name}"] = _signature(method)
    return found


def _signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def _only_raises(node: ast.FunctionDef) -> bool:
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return (
        len(body) == 1
        and isinstance(body[0], ast.Raise)
        and ast.unparse(body[0].exc).startswith("NotImplementedError")
    )


def _tree(room: str, kata: str) -> ast.Module:
    return ast.parse(room_file(room, kata).read_text(encoding="utf-8"))


def styles(kata: str) -> list[Path]:
    """The right answers in other styles."""
    return sorted((ROOT / "tests" / "accepted" / kata).glob("*.py"))


def wrong_styles(kata: str) -> list[tuple[Path, str | None]]:
    """Wrong answers in other styles, and the mistake that each makes; None where the catalogue lacks it."""
    found = []
    for path in sorted((ROOT / "tests" / "wrong" / kata).glob("*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        said, _, name = first.partition("mistake: ")
        if said or not name:
            raise ValueError(f"{path} should begin with 'mistake: NAME', and begins with {first!r}")
        found.append((path, None if name == "-" else name))
    return found


def stray_files() -> Iterator[str]:
    """Files in the rooms that belong to no kata."""
    known = set(catalogue.names())
    for room in ROOMS:
        for path in sorted((ROOT / room).iterdir()):
            ours = path.stem in known or path.name in ("__init__.py", "conftest.py", "__pycache__")
            if not ours:
                yield str(path.relative_to(ROOT))


# --- on trial -----------------------------------------------------------------------------------------


def on_trial(kata: str, judge: Judge) -> Iterator[str]:
    """The reference passes, the stub is not written, and every mistake is refuted by its own claim."""
    reference = room_file("reference", kata)
    found = judge.judge(kata, reference, likeness=False).verdict
    if not found.passed:
        yield f"the reference does not pass: {found.outcome}: {found.message}"
    stub = judge.judge(kata, room_file("katas", kata), likeness=False).verdict
    if stub.outcome != "not_implemented":
        yield f"the stub should be 'not implemented' and is {stub.outcome}: {stub.message}"
    for mistake in mistakes(kata):
        yield from _mistake_on_trial(kata, mistake, judge)


def _mistake_on_trial(kata: str, mistake: Mistake, judge: Judge) -> Iterator[str]:
    if mistake.claim not in catalogue.brief(kata).claims:
        yield f"mistake {mistake.name} names the claim {mistake.claim}, which no part has"
        return
    try:
        source = wrong_source(kata, mistake)
    except DoesNotApply as wrong:
        yield f"mistake {wrong}"
        return
    found = try_mistake(kata, mistake, source, judge, only=(mistake.claim,))
    result = claim_of(found, mistake.claim)
    if result.status != "failed":
        yield f"mistake {mistake.name} is not refuted by {mistake.claim} ({found.outcome}: {found.message})"


def try_mistake(
    kata: str, mistake: Mistake, source: str, judge: Judge, only: tuple[str, ...] = ()
) -> Verdict:
    """Put a mistake on trial; the brief's forbidden calls and limits apply as to anyone."""
    path = Path(f"{kata}-{mistake.name}.py")
    return judge.judge(kata, path, source, only=only, cards=False, likeness=False).verdict


def claim_of(verdict: Verdict, name: str) -> ClaimResult:
    return next(c for c in verdict.claims if c.claim == name)
