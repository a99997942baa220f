"""The warm process: has torch and Hypothesis imported, has computed nothing, and forks the children.

It reads requests from standard input and writes events to standard output, one JSON object a line:

    in   {"do": "prepare", "kata": …}      have the kata's claims and its mistakes' results at hand
         {"do": "judge", "id": 1, "kata": …, "path": …, "source": …, …}     see ``Request``
         {"do": "cancel"}
    out  {"event": "ready", "versions": {…}}
         {"event": "claim" | "failing" | "rule" | "stage" | "card" | "mistake", "id": 1, …}
         {"event": "verdict", "id": 1, "verdict": {…}, "examples": {claim: [hex]}}

A trial is one child that runs every claim on few examples (quick) and then on all (full); when the quick
stage holds, a second child joins it, and the two draw claims from one queue until it is empty. The first
failing claim starts a third, which looks for the mistake that the file resembles. Where fork is unsafe the
children are spawned, which costs an import of torch each.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from dojo import catalogue
from dojo.rules import Broken, logical_lines, scan
from dojo.verdict import Card, ClaimResult, Likeness, PartResult, RuleBroken, Verdict

FORKS = hasattr(os, "fork") and sys.platform.startswith("linux") and os.environ.get("DOJO_JUDGE") != "spawn"
OUTPUT_KEPT = 16_384
LIKENESS_SECONDS, LIKENESS_ALONE = 15.0, 3.0
"""How long the search for a likeness may take: in all, and once only it keeps the verdict waiting. A kata that is
slow to judge has more, and so has a single verdict, which must not lack the name because the mistakes' results
had yet to be computed."""
UNHURRIED = 4, 10
"""How many times as long, when nobody is at the screen."""


@dataclass(frozen=True)
class Request:
    """One file to judge.

    ``confirm`` asks for the full number of examples after the quick stage. ``only`` restricts the trial
    to some claims (such a verdict is never a pass), ``parts`` to the first so many parts. ``seconds`` bounds
    one claim, ``wall`` the trial; None takes the brief's. ``likeness`` asks which known mistake the file
    resembles; ``without`` leaves mistakes out of that search. ``in_step`` is set where torchrun has started
    several processes that try the same examples together: one child runs everything, whatever time it takes.
    ``threads`` is how many torch computes with. ``hurried`` is unset where no person waits for the next save.
    """

    id: int
    kata: str
    path: str
    source: str
    confirm: bool = True
    only: tuple[str, ...] = ()
    parts: int | None = None
    seed: int | None = None
    cards: bool = True
    stop_at_first: bool = False
    likeness: bool = True
    without: tuple[str, ...] = ()
    examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: float | None = None
    wall: float | None = None
    in_step: bool = False
    threads: int = 1
    hurried: bool = True


class Child:
    """A process at work for a trial, its pipes, and what is known of how it ended."""

    def __init__(self, role: str, body: Callable[[int, int], None], spawn: dict[str, Any], queue: int = -1):
        self.role = role
        self.events = _Lines()
        self.output = self.trace = b""
        self.closed: set[str] = set()
        self.status: int | None = None
        self.killed: str | None = None
        self.patience, self.deadline = 0.0, float("inf")
        self.phase = ""
        self.running = ""
        self.finished = False
        pipes = {name: os.pipe() for name in ("events", "trace", "output")}
        self.fds = {name: read for name, (read, _) in pipes.items()}
        writes = {name: write for name, (_, write) in pipes.items()}
        self.pid = _fork(body, writes, queue) if FORKS else _spawn(spawn, writes, queue)
        for fd in writes.values():
            os.close(fd)
        for fd in self.fds.values():
            os.set_blocking(fd, False)

    def kill(self, why: str) -> None:
        self.killed = self.killed or why
        for target in (
            lambda: os.killpg(self.pid, signal.SIGKILL),
            lambda: os.kill(self.pid, signal.SIGKILL),
        ):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                target()

    def wait(self, seconds: float, start: float = 0.0) -> None:
        """It has so many seconds from now to say something, and ``start`` more to begin at all."""
        self.patience, self.deadline = seconds, time.monotonic() + seconds + start

    @property
    def gone(self) -> bool:
        return self.status is not None and len(self.closed) == len(self.fds)


class _Lines:
    """Bytes as they come, cut into lines."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        return lines


def _fork(body: Callable[[int, int], None], writes: dict[str, int], queue: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    _die_with_parent()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(writes["output"], 1)
    os.dup2(writes["output"], 2)
    keep = {writes["events"], writes["trace"], queue}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    body(writes["events"], writes["trace"])
    os._exit(70)  # not reached: the body leaves by itself


def _spawn(task: dict[str, Any], writes: dict[str, int], queue: int) -> int:
    fds = (writes["events"], writes["trace"])
    process = subprocess.Popen(
        [sys.executable, "-m", "dojo.judge.spawned", *map(str, fds)],
        stdin=subprocess.PIPE, stdout=writes["output"], stderr=writes["output"],
        pass_fds=(*fds, queue) if queue >= 0 else fds,
        start_new_session=True,
    )  # fmt: skip
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
    _SPAWNED[process.pid] = process
    return process.pid


_SPAWNED: dict[int, subprocess.Popen] = {}


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Trial:
    """Everything known of one request: its children, the claims' results, and in the end the verdict."""

    def __init__(self, request: Request, say: Callable[..., None], start: Callable[[Child], None]):
        self.request, self.say, self.start = request, say, start
        self.brief = catalogue.brief(request.kata)
        self.seconds = request.seconds or self.brief.seconds
        self.asked = [claim for part in self.brief.parts[: request.parts] for claim in part.claims]
        self.nonce = secrets.token_hex(16)
        self.began = time.monotonic()
        self.children: dict[str, Child] = {}
        self.rules: list[Broken] = []
        self.held: dict[str, set[str]] = {"quick": set(), "full": set()}
        self.due: dict[str, set[str]] = {"quick": set(), "full": set()}
        self.results: dict[str, dict[str, Any]] = {}
        self.cards: dict[str, Card] = {}
        self.examples: dict[str, list[str]] = {}
        self.likeness: Likeness | None = None
        self.ended: dict[str, Any] | None = None  # an end other than held or failed, the first that came
        self.cancelled = False
        self.lines: int | None = None
        self.queue = -1
        self.open()

    # --- starting -----------------------------------------------------------------------------

    def open(self) -> None:
        from dojo.judge import claims as claims_
        from dojo.judge.guard import seal

        try:
            self.every = {c.name: c for c in claims_.claims(self.request.kata)}
            seal(self.request.kata)  # taken once, before any file is loaded: the children inherit it
        except Exception as error:
            self.every = {}
            self.end("judge_error", message=f"{type(error).__name__}: {error}")
            return
        with contextlib.suppress(SyntaxError, ValueError):  # the child says where
            self.lines = logical_lines(self.request.source)
            self.rules = scan(self.request.source, self.brief)
        for broken in self.rules:
            self.say("rule", **dataclasses.asdict(broken))
        self.names = tuple(n for n in self.asked if not self.request.only or n in self.request.only)
        self.due["quick"] = {n for n in self.names if self.every[n].count("quick")}
        confirm = self.request.confirm and not any(b.forbidden for b in self.rules)
        if confirm:
            self.due["full"] = set(self.names)
            self.queue = self.filled_queue()
        self.run_child("trial", "quick", *["full"] * confirm)

    def filled_queue(self) -> int:
        """A pipe with one byte for each claim, those first that the quick stage leaves out: they take longest."""
        read, write = os.pipe()
        late_first = sorted(range(len(self.names)), key=lambda i: self.names[i] in self.due["quick"])
        os.write(write, bytes(late_first))
        os.close(write)
        return read

    def run_child(self, role: str, *stages: str) -> None:
        from dojo.judge.child import Task, main

        request = self.request
        task = Task(
            request.kata, request.path, request.source, self.names, stages, self.nonce, queue=self.queue,
            seed=request.seed, cards=request.cards, stop_at_first=request.stop_at_first,
            examples=request.examples, seconds=self.seconds, wall=request.wall or self.brief.wall,
            in_step=request.in_step, threads=request.threads,
        )  # fmt: skip
        spawn = {"main": "child", "task": dataclasses.asdict(task)}
        child = Child(role, lambda events, trace: main(task, events, trace), spawn, self.queue)
        self.add(child)

    def compare(self, part: int) -> None:
        """Start the child that looks for the mistake which the file resembles; a claim of ``part`` failed."""
        if not self.request.likeness or "likeness" in self.children:
            return
        from dojo.judge.likeness import Task, main

        request = self.request
        seconds, _ = self.likeness_may_take()
        task = Task(request.kata, request.path, request.source, self.nonce, part, request.without, seconds)
        spawn = {"main": "likeness", "task": dataclasses.asdict(task)}
        child = Child("likeness", lambda events, trace: main(task, events, trace), spawn)
        self.add(child)
        child.wait(seconds, start=0 if FORKS else 10)

    def likeness_may_take(self) -> tuple[float, float]:
        """How many seconds in all, and how many once only it keeps the verdict waiting."""
        more, alone = (1, 1) if self.request.hurried else UNHURRIED
        slow = max(1.0, self.brief.seconds / 10)
        return LIKENESS_SECONDS * max(more, slow), LIKENESS_ALONE * max(alone, slow)

    def add(self, child: Child) -> None:
        self.children[child.role] = child
        child.phase = "load"
        child.wait(self.seconds, start=0 if FORKS else 30)
        self.start(child)

    # --- events from the children ---------------------------------------------------------------

    def hear(self, child: Child, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict) or event.pop("nonce", None) != self.nonce:
            return  # not from the judge
        kind = event.pop("event", "")
        handler = getattr(self, f"on_{kind}", None)
        if handler:
            handler(child, **event)

    def on_loading(self, child: Child) -> None:
        child.wait(self.seconds)

    def on_claim(self, child: Child, claim: str, stage: str, status: str, **found: Any) -> None:
        from dojo.judge.child import FULL_PATIENCE

        child.phase = "claim"
        child.wait(self.seconds * (FULL_PATIENCE if stage == "full" else 1))
        child.running = claim if status == "running" else ""
        if status == "running":
            self.say("claim", claim=claim, stage=stage, status=status)
            return
        before = self.results.get(claim, {"examples": 0, "seconds": 0.0})
        worst = before.get("status") if before.get("status") in ("failed", "not_implemented") else status
        self.results[claim] = {
            "status": worst,
            "examples": before["examples"] + found.get("examples", 0),
            "seconds": round(before["seconds"] + found.get("seconds", 0.0), 4),
        }
        if status == "held":
            self.held[stage].add(claim)
        self.say("claim", claim=claim, stage=stage, status=status, **found)

    def on_failing(self, child: Child, **failing: Any) -> None:
        self.say("failing", seconds=round(time.monotonic() - self.began, 3), **failing)
        self.compare(self.brief.part_of(failing["claim"]))

    def on_rule(self, child: Child, **broken: Any) -> None:
        found = Broken(**broken)
        if all(b.line != found.line or not b.forbidden for b in self.rules):
            self.rules.append(found)
            self.say("rule", **broken)

    def on_stage(self, child: Child, stage: str, held: bool) -> None:
        child.running = ""
        if stage == "quick" and child.role == "trial":
            self.say("stage", stage=stage, held=held, seconds=round(time.monotonic() - self.began, 3))
            if held and len(self.due["full"]) > 1 and not self.request.in_step:
                self.run_child("second", "full")

    def on_card(self, child: Child, card: dict[str, Any], example: str | None) -> None:
        child.wait(self.seconds)
        child.phase = "card"
        self.cards[card["claim"]] = Card(**card)
        if example:
            self.examples[card["claim"]] = [example]
        self.say("card", card=card, seconds=round(time.monotonic() - self.began, 3))

    def on_mistake(self, child: Child, name: str, says: str, belief: str) -> None:
        self.likeness = Likeness(name, says, belief)
        self.say(
            "mistake", name=name, says=says, belief=belief, seconds=round(time.monotonic() - self.began, 3)
        )

    def on_finished(self, child: Child) -> None:
        child.finished = True
        child.wait(2)

    def on_does_not_load(self, child: Child, message: str, line: int, text: str) -> None:
        self.end("does_not_load", child, message=message, line=line, text=text)

    def on_tampered(self, child: Child, what: list[str]) -> None:
        self.end("tampered", child, message="the file replaced what the judge relies on: " + ", ".join(what))

    def on_out_of_memory(self, child: Child, claim: str, line: int, text: str) -> None:
        where = f"while this was tried: {self.sentence(claim)}" if claim else "while the file was loaded"
        bound = f"more than {self.brief.memory_gb:g} GB were asked for"
        self.end("out_of_memory", child, message=f"{bound} {where}", line=line, text=text, claim=claim)

    def on_stuck(self, child: Child, claim: str, message: str, line: int) -> None:
        message = f"{message} while this was tried: {self.sentence(claim)}"
        self.end("timed_out", child, message=message, line=line, text=self.text(line), claim=claim)

    def on_device_lost(self, child: Child, claim: str, message: str, line: int) -> None:
        message = f"{message}, while this was tried: {self.sentence(claim)}"
        self.end("crashed", child, message=message, line=line, text=self.text(line), claim=claim)

    def on_judge_error(self, child: Child, message: str) -> None:
        self.end("judge_error", child, message=message)

    # --- ends -------------------------------------------------------------------------------------

    def end(self, outcome: str, child: Child | None = None, **said: Any) -> None:
        if child is not None and child.role == "likeness":
            return
        if child is not None:
            child.finished = True
        if self.ended is None or outcome == "tampered":
            self.ended = {"outcome": outcome, **said}

    def reaped(self, child: Child) -> None:
        """The child is gone. If it did not say so itself, work out why."""
        if child.finished or child.role == "likeness" or self.cancelled:
            return
        line, text = self.traced(child)
        doing = {
            "load": "while the file was being loaded",
            "card": "while a counterexample was being made smaller",
        }
        where = (
            f"while this was tried: {self.sentence(child.running)}"
            if child.running
            else doing.get(child.phase, "")
        )
        if child.killed == "timed out":
            late = f"no answer within {child.patience:g} s {where}".strip()
            self.end("timed_out", child, message=late, line=line, text=text, claim=child.running)  # fmt: skip
            return
        status = child.status or 0
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                how, outcome = "its CPU time is used up", "timed_out"
            elif number == signal.SIGKILL:
                how, outcome = "the system ended the process, most likely for lack of memory", "out_of_memory"
            else:
                how, outcome = (
                    f"the process died of {signal.Signals(number).name} ({signal.strsignal(number)})",
                    "crashed",
                )
        else:
            how, outcome = f"the file ended its process with exit code {os.WEXITSTATUS(status)}", "crashed"
        self.end(outcome, child, message=f"{how} {where}".strip(), line=line, text=text, claim=child.running)

    def traced(self, child: Child) -> tuple[int, str]:
        """The person's line in what faulthandler wrote, deepest first."""
        for found in re.finditer(rb'File "(.*?)", line (\d+)', child.trace):
            if found[1].decode(errors="replace") == self.request.path:
                line = int(found[2])
                lines = self.request.source.splitlines()
                return line, lines[line - 1].strip() if line <= len(lines) else ""
        return 0, ""

    def sentence(self, claim: str) -> str:
        return self.every[claim].sentence if claim in self.every else claim

    @property
    def done(self) -> bool:
        return all(child.gone for child in self.children.values())

    # --- the verdict --------------------------------------------------------------------------------

    def verdict(self, versions: dict[str, str]) -> Verdict:
        outcome, message, said = self.outcome()
        trial = self.children.get("trial")
        output = b"".join(c.output for c in self.children.values() if c.role != "likeness") if trial else b""
        return Verdict(
            kata=self.request.kata, file=self.request.path, outcome=outcome, message=message,
            parts=self.parts(), claims=[self.result(name) for name in self.brief.claims],
            confirmed=self.complete("full"), seconds=round(time.monotonic() - self.began, 3),
            lines=self.lines, line_limit=self.brief.lines,
            line=said.get("line", 0), text=said.get("text", ""),
            rules_broken=[RuleBroken(b.says, b.line) for b in self.rules],
            mistake=self.likeness if outcome == "rejected" else None,
            output=output[:OUTPUT_KEPT].decode(errors="replace"), versions=versions,
        )  # fmt: skip

    def complete(self, stage: str) -> bool:
        """Every claim of the kata ran in that stage and held, and the children lived to say so."""
        everything = bool(self.asked) and not self.request.only
        children = [c for c in self.children.values() if c.role != "likeness"]
        proved = self.held[stage] >= self.due[stage] >= ({*self.asked} if stage == "full" else set())
        return everything and proved and all(c.finished for c in children)

    def outcome(self) -> tuple[str, str, dict[str, Any]]:
        """The first of these that applies: what ended the trial, forbidden things, claims, length."""
        said = self.ended or {}
        failed = [n for n in self.brief.claims if self.status(n) == "failed"]
        unwritten = [n for n in self.brief.claims if self.status(n) == "not_implemented"]
        forbidden = [b for b in self.rules if b.forbidden]
        long = [b for b in self.rules if not b.forbidden]
        if said.get("outcome") == "tampered":
            return "tampered", said["message"], said
        if forbidden and said.get("outcome") != "judge_error":
            return (
                "rule_broken",
                forbidden[0].says,
                {"line": forbidden[0].line, "text": self.text(forbidden[0].line)},
            )
        if said:
            return said["outcome"], said["message"], said
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            return "rejected", self.sentence(failed[0]) + more, said
        if unwritten:
            part = self.brief.part_of(unwritten[0])
            return "not_implemented", f"part {part} of {len(self.brief.parts)} is still to be written", said
        if long:
            return "rule_broken", long[0].says, said
        if self.complete("full"):
            of = "" if len(self.asked) == len(self.brief.claims) else f" of part {self.request.parts}"
            return "passed", f"all {len(self.asked)} claims{of} hold", said
        if self.request.only or not self.request.confirm:
            return "rejected", "not everything was tried, so this is no pass", said
        return "judge_error", "the trial ended without a result", said

    def status(self, claim: str) -> str:
        if claim in self.results:
            return self.results[claim]["status"]
        if self.ended and self.ended.get("claim") == claim:
            return "interrupted"
        return "not_reached"

    def result(self, claim: str) -> ClaimResult:
        found = self.results.get(claim, {})
        return ClaimResult(
            claim, self.brief.part_of(claim), self.status(claim), self.sentence(claim),
            found.get("examples", 0), found.get("seconds", 0.0), self.cards.get(claim),
        )  # fmt: skip

    def parts(self) -> list[PartResult]:
        found = []
        quick_only = not self.held["quick"] >= self.due["quick"]
        for number, part in enumerate(self.brief.parts, 1):
            # What the quick stage leaves out says nothing of a part while a later one is still to be written.
            tried = [c for c in part.claims if c in self.due["quick"] or not quick_only]
            states = {self.status(claim) for claim in tried or part.claims}
            order = ("failed", "interrupted", "not_implemented", "not_reached")
            status = next((s for s in order if s in states), "held")
            found.append(PartResult(number, part.title, "failed" if status == "interrupted" else status))
        return found

    def text(self, line: int) -> str:
        lines = self.request.source.splitlines()
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def prepare(kata: str) -> int | None:
    """Import the kata's claims, and have a child compute its mistakes' results, for which nobody waits.

    Returns the child's process number, or None where there is none."""
    from dojo.judge import claims as claims_
    from dojo.judge import likeness
    from dojo.judge.guard import seal

    with contextlib.suppress(Exception):  # a trial will say what is wrong
        claims_.claims(kata)
        seal(kata)
        if not FORKS:
            return None
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            os.nice(10)
            likeness.main(likeness.Task(kata, "", "", ""), os.open(os.devnull, os.O_WRONLY), -1)
        return pid
    return None


class Warm:
    """The loop: requests in, events out, children started, heard, timed and reaped."""

    def __init__(self, source: int, sink: int):
        self.source, self.sink = source, sink
        self.requests = _Lines()
        self.selector = selectors.DefaultSelector()
        self.selector.register(source, selectors.EVENT_READ, None)
        self.trial: Trial | None = None
        self.waiting: Request | None = None
        self.preparing: int | None = None
        self.open = True
        self.versions = versions()

    def say(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.sink, line) :]
        except BrokenPipeError:
            self.open = False

    def loop(self) -> None:
        self.say("ready", versions=self.versions, forks=FORKS)
        while self.open or self.trial:
            for key, _ in self.selector.select(self.patience()):
                if key.data is None:
                    self.read_requests()
                else:
                    self.read_child(*key.data)
            self.reap()
            if not self.open and self.trial:
                self.cancel()
        sweep()

    def patience(self) -> float:
        """Until the next deadline; short while a child may be about to be reaped."""
        if not self.trial:
            return 3600.0
        now = time.monotonic()
        alive = [c for c in self.trial.children.values() if not c.gone]
        return max(0.0, min([0.05, *(c.deadline - now for c in alive)]))

    def read_requests(self) -> None:
        data = os.read(self.source, 1 << 20)
        if not data:
            self.open = False
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(self.source)
            return
        for line in self.requests.feed(data):
            asked = json.loads(line)
            do = asked.pop("do")
            if do == "prepare":
                self.preparing = self.preparing or prepare(asked["kata"])
            elif do == "cancel":
                self.waiting = None
                self.cancel()
            elif do == "judge":
                lists = {k: tuple(v) for k, v in asked.items() if isinstance(v, list)}
                self.waiting = Request(**asked | lists)
                self.cancel()
                self.begin()

    def begin(self) -> None:
        if self.trial or not self.waiting:
            return
        request, self.waiting = self.waiting, None
        self.trial = Trial(request, lambda event, **f: self.say(event, id=request.id, **f), self.register)

    def register(self, child: Child) -> None:
        for name, fd in child.fds.items():
            self.selector.register(fd, selectors.EVENT_READ, (child, name))

    def cancel(self) -> None:
        """End the trial under way; its verdict is never sent."""
        if self.trial:
            self.trial.cancelled = True
            for child in self.trial.children.values():
                child.kill("cancelled")

    def read_child(self, child: Child, name: str) -> None:
        if name in child.closed:
            return
        with contextlib.suppress(BlockingIOError):
            self.take(child, name, os.read(child.fds[name], 1 << 16))

    def take(self, child: Child, name: str, data: bytes) -> None:
        if not data:
            self.close(child, name)
        elif name == "events":
            for line in child.events.feed(data):
                self.trial.hear(child, line)
        else:
            setattr(child, name, (getattr(child, name) + data)[:OUTPUT_KEPT])

    def close(self, child: Child, name: str) -> None:
        if name not in child.closed:
            child.closed.add(name)
            self.selector.unregister(child.fds[name])
            os.close(child.fds[name])

    def reap(self) -> None:
        if not self.trial:
            return
        now = time.monotonic()
        for child in list(self.trial.children.values()):
            if child.gone:
                continue
            if now > child.deadline and not child.killed:
                child.kill("timed out")
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self.bury(child, status)
        alive = [c for c in self.trial.children.values() if not c.gone]
        if [c.role for c in alive] == ["likeness"]:
            _, alone = self.trial.likeness_may_take()
            alive[0].deadline = min(alive[0].deadline, now + alone + (0 if FORKS else 10))
        if self.trial.done:
            self.finish()

    def bury(self, child: Child, status: int) -> None:
        """The child has ended: end what it started, and read what is left in its pipes."""
        child.status = status
        _SPAWNED.pop(child.pid, None)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        self.sweep()
        for name in tuple(child.fds.keys() - child.closed):
            while name not in child.closed:
                try:
                    data = os.read(child.fds[name], 1 << 16)
                except BlockingIOError:
                    data = b""
                self.take(child, name, data)
        self.trial.reaped(child)

    def sweep(self) -> None:
        """End whatever is not at work for us."""
        if self.preparing and os.waitpid(self.preparing, os.WNOHANG)[0]:
            self.preparing = None
        at_work = [c.pid for c in self.trial.children.values() if not c.gone] if self.trial else []
        sweep(spare={*at_work, self.preparing})

    def finish(self) -> None:
        trial, self.trial = self.trial, None
        if trial.queue >= 0:
            os.close(trial.queue)
        self.sweep()
        if not trial.cancelled:
            verdict = trial.verdict(self.versions)
            self.say("verdict", id=trial.request.id, verdict=verdict.as_json(), examples=trial.examples)
        self.begin()


def sweep(spare: Collection[int] = ()) -> None:
    """End every process that a trial left behind, whatever session it fled to.

    The warm process adopts orphans (on Linux), so each is a child of its own that it never started.
    """
    import psutil

    for adopted in psutil.Process().children():
        if adopted.pid in spare:
            continue
        with contextlib.suppress(psutil.Error):
            for process in (*adopted.children(recursive=True), adopted):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            adopted.wait(timeout=1)


def versions() -> dict[str, str]:
    import hypothesis
    import numpy
    import torch

    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "python": python,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "hypothesis": hypothesis.__version__,
    }


def main() -> None:
    source, sink = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what is printed here goes to the log, never between the events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of a trial come here and are swept
    _die_with_parent()
    preload()
    Warm(source, sink).loop()


def preload() -> None:
    """Import what a trial needs, and compute nothing: a process that ran an operation may not be forked."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for a GPU without starting on it
    import jaxtyping  # noqa: F401
    import numpy  # noqa: F401
    import psutil  # noqa: F401
    import torch  # noqa: F401

    if importlib.util.find_spec("pytest"):  # only the tests need it; where it is, patching it is seen
        importlib.import_module("pytest")

    from dojo.judge.guard import gpu_here

    if not gpu_here():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when it is first imported


if __name__ == "__main__":
    main()
