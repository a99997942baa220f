"""What `check` measures is printed line by line, on as many judges as there are cores, and written down on request:
a section of ``docs/power/KATA.md``, and the table of all katas in ``docs/judge.md``."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dojo import catalogue
from dojo.judge.client import Judge
from dojo.places import ROOT

DOCS = ROOT / "docs"
TABLE = ("<!-- power: written by check --write -->", "<!-- /power -->")


def in_parallel(work: Callable[[Judge, Any], Any], items: list | tuple) -> Iterator[Any]:
    """``work(judge, item)`` for each item, in order, on as many judges as there are cores."""
    count = max(1, min(os.cpu_count() or 1, len(items)))
    judges: queue.SimpleQueue = queue.SimpleQueue()
    opened = [Judge() for _ in range(count)]
    for judge in opened:
        judges.put(judge)

    def on_one(item: Any) -> Any:
        judge = judges.get()
        try:
            return work(judge, item)
        finally:
            judges.put(judge)

    try:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            yield from pool.map(on_one, items)
    finally:
        for judge in opened:
            judge.close()


def said(line: str) -> str:
    print(line, flush=True)
    return line


def put_down(kata: str, section: str, lines: list[str]) -> None:
    """Put a section, named after its option, into the kata's page, and the table of all into ``docs/judge.md``."""
    page = _page(kata)
    page.parent.mkdir(exist_ok=True)
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", read_page(kata), re.M | re.S))
    command = f"    python runner.py check {kata} --{section} --write"
    sections[section] = "\n".join([command, "", "```", *lines, "```", ""])
    text = f"# What the claims of `{kata}` notice\n\n"
    text += "".join(f"## {name}\n\n{sections[name]}\n" for name in sorted(sections))
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    judge = DOCS / "judge.md"
    begin, end = TABLE
    before, _, rest = judge.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    judge.write_text(f"{before}{begin}\n{_table()}{end}{after}", encoding="utf-8")


def read_page(kata: str) -> str:
    """What was measured of a kata before; empty if nothing was."""
    page = _page(kata)
    return page.read_text(encoding="utf-8") if page.exists() else ""


def _page(kata: str) -> Path:
    return DOCS / "power" / f"{kata}.md"


COLUMNS = {
    "claims": r"(\d+) claims, median",
    "mistakes refuted": r"(\d+ of \d+) mistakes refuted by the claim they name",
    "mutants refused": r"(\d+ of \d+) mutants refused",
    "equivalent": r"mutants refused \(\d+%\), (\d+) equivalent",
    "mistakes named": r"(\d+ of \d+) mistakes named",
    "in another style": r"(\d+ of \d+) files in another style named",
    "another's name": r"(\d+ of \d+) given another's name",
    "right styles × runs": r"(\d+ styles × \d+ runs), 0 refusals",
}
"""What the table shows of each page."""


def _table() -> str:
    rows = [f"| kata | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for kata in catalogue.names():
        page = read_page(kata)
        cells = [found[1] if (found := re.search(pattern, page)) else "-" for pattern in COLUMNS.values()]
        if page:
            rows.append(f"| [{kata}](power/{kata}.md) | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
