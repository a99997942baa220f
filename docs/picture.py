"""Makes docs/session.svg: a session as it looks after a save with a mistake in it.

    python docs/picture.py                       softmax without the shift
    python docs/picture.py attention             another kata, with the first of its mistakes
    python docs/picture.py attention no-scale    with the mistake of that name

The judge is the real one, the file on trial is the reference with the mistake planted in it.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = (116, 31)
sys.path.insert(0, str(ROOT))


async def picture(kata: str, name: str | None, into: Path) -> None:
    """Judge a wrong file of a kata, and write what the screen shows to an SVG file."""
    from dojo.judge.client import Judge
    from dojo.mistake import mistakes, wrong_source
    from dojo.screen.app import SessionApp
    from dojo.session import open_session
    from dojo.store import Store

    chosen = next(m for m in mistakes(kata) if name in (None, m.name))
    session = open_session(kata, Store(), timed=True, resume=False).session
    with Judge() as judge:
        app = SessionApp(session, judge)
        async with app.run_test(size=SIZE) as pilot:
            session.path.write_text(wrong_source(kata, chosen), encoding="utf-8")
            while app.board.verdict is None:
                if app.dead:
                    raise SystemExit(app.dead)
                await pilot.pause(0.05)
            # A time that looks like one in the middle of an attempt.
            object.__setattr__(session.attempt, "started", time.time() - 0.37 * session.brief.minutes * 60)
            await pilot.pause(0.6)
            into.write_text(
                portable(app.export_screenshot(title=f"python runner.py {kata} --timed")), encoding="utf-8"
            )


def portable(svg: str) -> str:
    """The same picture each time (Rich numbers its classes at random), and no fonts from elsewhere."""
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace")
    return re.sub(r"[ \t]+$", "", svg, flags=re.M)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["KATA_HOME"] = home
        os.chdir(home)  # so that the path is shown as people see it: practice/softmax.py
        kata, name = (*sys.argv[1:3], None, None)[:2]
        asyncio.run(picture(kata or "softmax", name if kata else "no-shift", ROOT / "docs" / "session.svg"))
