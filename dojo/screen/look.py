"""Colours, layout and keys of the session screen.

Narrow terminals get one column, wide ones two; ``-reading`` gives a page the whole height, and
``-comparing`` puts the two files in place of everything.
"""

from textual.binding import Binding, BindingType
from textual.theme import Theme

from dojo.screen import panes

WIDE = 110
"""Columns from which on there are two columns."""

THEME = Theme(
    "dojo", primary=panes.BLUE, success=panes.GREEN, warning=panes.YELLOW, error=panes.RED,
    foreground=panes.TEXT, background=panes.BACK, surface=panes.BACK, panel=panes.PANEL, accent=panes.BLUE,
    variables={"line": panes.LINE, "footer-background": panes.PANEL, "footer-key-foreground": panes.BLUE},
)  # fmt: skip
CSS = """
Screen { background: $background; color: $foreground; }
VerticalScroll { scrollbar-size-vertical: 1; }
Static { text-wrap: nowrap; text-overflow: ellipsis; }
#top { height: 1; background: $panel; padding: 0 1; }
#file { height: 1; padding: 0 1; }
#title, #path { width: 1fr; }
#clock, #saved { width: auto; padding-left: 2; }
#saved { color: $foreground 60%; }
#band { height: 1; padding: 0 1; }
#notice { height: auto; max-height: 3; padding: 0 1; color: $warning; text-wrap: wrap; display: none; }
#notice.-said { display: block; }
#middle { height: 1fr; layout: vertical; }
#main { height: 1fr; padding: 1 0 0 1; scrollbar-gutter: stable; }
#body { text-wrap: wrap; }
#body.-old { text-opacity: 50%; }
#claims { height: auto; max-height: 8; border-top: solid $line; padding: 0 0 0 1; }
.-wide #middle { layout: horizontal; }
.-wide #claims { width: 48%; height: 100%; max-height: 100%; border-top: none; border-left: solid $line; }
.-reading #claims, .-comparing #middle, #compare { display: none; }
.-comparing #compare { display: block; height: 1fr; layout: horizontal; }
#compare VerticalScroll { width: 1fr; height: 100%; border-top: solid $line; }
#compare Static { text-wrap: wrap; }
.-narrow #compare .-behind { display: none; }
Ask { align: center middle; background: $background 60%; }
#question { width: 72; max-width: 100%; height: auto; padding: 1 2; background: $panel; text-wrap: wrap; }
"""
KEYS: list[BindingType] = [
    Binding("r", "judge", "run"),
    Binding("h", "hint", "hint"),
    Binding("a", "answer", "answer"),
    Binding("n", "question", "next question"),
    Binding("c", "compare", "compare"),
    Binding("s", "statement", "statement"),
    Binding("e", "edit", "edit"),
    Binding("x", "reset", "reset"),
    Binding("o", "solution", "solution"),
    Binding("tab", "next(1)", "next", priority=True),
    Binding("shift+tab", "next(-1)", "before", show=False, priority=True),
    Binding("escape", "back", "back"),
    Binding("q", "leave", "quit"),
    Binding("ctrl+c,ctrl+q,ctrl+d", "leave", "quit", show=False, priority=True),
    Binding("j,down", "scroll(1)", "down", show=False),
    Binding("k,up", "scroll(-1)", "up", show=False),
    Binding("space,pagedown", "scroll(10)", "page down", show=False),
    Binding("b,pageup", "scroll(-10)", "page up", show=False),
    Binding("g,home", "scroll(-100000)", "top", show=False),
    Binding("G,end", "scroll(100000)", "end", show=False),
]
