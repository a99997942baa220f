"""The command line. Light: nothing here imports torch, and textual only when a screen is opened."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dojo import catalogue, plain
from dojo.catalogue import BadBrief, UnknownKata
from dojo.places import place_among_ranks, practice_file, room_file, shown

if TYPE_CHECKING:
    from dojo.exercise import Exercise
    from dojo.session import Result
    from dojo.store import Attempt
    from dojo.verdict import Verdict

PASSED, REJECTED, USAGE = 0, 1, 2
EPILOG = """\
commands (python runner.py COMMAND --help tells more):
  KATA            practise: a blank stub, a clock, a verdict at each save
  list            all katas                  show KATA      statement and rules
  hint KATA       the next hint              solution KATA  the reference
  reset KATA      the blank stub again       history [KATA] what you did, and files put aside
  hunt [KATA]     find the bugs planted in a working file, on the clock
  check [KATA]    do the rooms agree?        doctor         what works on this machine
"""


class Refused(Exception):
    """Bad input: the message goes to the person, the exit code is 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 passed, 1 rejected, 2 usage or environment."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(argv)
    except (Refused, UnknownKata, BadBrief) as wrong:
        print(f"runner.py: {wrong}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; your file is where it was", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
        return USAGE
    except OSError as wrong:
        print(f"runner.py: {wrong}", file=sys.stderr)
    except RuntimeError as wrong:
        if type(wrong).__name__ not in ("StoreUnusable", "JudgeUnavailable"):
            raise
        print(f"runner.py: {wrong}", file=sys.stderr)
    return USAGE


def run(argv: list[str]) -> int:
    if not argv:
        return front_page()
    word = argv[0]
    if word in COMMANDS:
        return COMMANDS[word](argv[1:])
    if word in ("-h", "--help"):
        practise_parser().print_help()
        return 0
    if not word.startswith("-") and word not in catalogue.names():
        meant = catalogue.nearest(word, catalogue.names()) or catalogue.nearest(word, tuple(COMMANDS))
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise Refused(f"there is no kata or command {word!r}.{hint} All katas: python runner.py list")
    return practise(argv)


# --- practising -------------------------------------------------------------------------------------


def practise_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "runner.py", usage="runner.py [KATA] [options] | runner.py COMMAND", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kata", help="the kata to practise")
    parser.add_argument("--timed", action="store_true", help="against the clock: par is the limit")
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="keep the file and go on with the open attempt"
    )
    parser.add_argument("--edit", action="store_true", help="open $VISUAL or $EDITOR on the file")
    parser.add_argument(
        "--once", action="store_true", help="one confirmed verdict as text; exit code 0 passed, 1 rejected"
    )
    parser.add_argument(
        "--json", action="store_true", help="one verdict as a JSON object (docs/verdict.schema.json)"
    )
    parser.add_argument(
        "--file", type=Path, metavar="PATH", help="judge this file instead of the one in practice/"
    )
    return parser


def judgeable(kata: str) -> catalogue.Brief:
    """The brief of a kata that can be judged here. Raises UnknownKata, or Refused if a module is missing."""
    lacks = " and ".join(catalogue.lacking(kata))
    if lacks:
        raise Refused(
            f"{kata} needs {lacks}, which is not installed here: pip install -e '.[{lacks}]'."
            " All other katas work without it."
        )
    return catalogue.brief(kata)


def practise(argv: list[str]) -> int:
    asked = practise_parser().parse_args(argv)
    brief = judgeable(asked.kata)
    if asked.file is not None and not asked.file.is_file():
        raise Refused(f"--file {asked.file}: there is no such file")
    if place_among_ranks():
        return in_step(brief, asked)
    from dojo.exercise import build

    if not (asked.once or asked.json or asked.file is not None or not _on_a_terminal()):
        print(f"{brief.title} · {brief.tier} · par {brief.minutes} min", flush=True)
        return session(lambda running: build(brief.name), brief.name, asked)
    return once(build(brief.name), asked)


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def session(exercise: Callable[[Attempt | None], Exercise], name: str, asked: argparse.Namespace) -> int:
    """A session on the screen. ``exercise`` gives what to practise, knowing the attempt to go on with."""
    from dojo.judge.client import Judge
    from dojo.session import can_go_on, open_session
    from dojo.store import Store

    judge = Judge()  # torch is being imported while the screen is built
    try:
        store = Store()
        running = store.open_attempt(name)
        resume = asked.resume or (can_go_on(running) and go_on(running))
        chosen = exercise(running if resume else None)
        judge.prepare(chosen.kata)
        opened = open_session(chosen, store, timed=asked.timed, resume=resume)
        from dojo.screen.app import run_session

        return run_session(opened.session, judge, resumed=opened.resumed, kept=opened.kept, edit=asked.edit)
    finally:
        judge.close()


def go_on(running: object) -> bool:
    """Ask whether to go on with the open attempt. Enter means yes: the clock runs either way."""
    left = (
        ""
        if running.limit_seconds is None
        else f", {plain.clock(running.started + running.limit_seconds - _now())} left"
    )
    answer = input(f"An attempt from {plain.when(running.started)} is open{left}. Go on with it? [Y/n] ")
    return answer.strip().lower() not in ("n", "no")


def _now() -> float:
    import time

    return time.time()


def once(exercise: Exercise, asked: argparse.Namespace) -> int:
    """One confirmed verdict, as text or JSON. The file in ``practice/`` is judged as it stands."""
    from dojo.judge.client import Judge
    from dojo.session import Session, write_out
    from dojo.store import Store

    brief = exercise.brief
    with Judge() as judge:
        store, path = Store(), asked.file or practice_file(exercise.name)
        if not path.exists():
            write_out(exercise)
            if not asked.json:
                print(plain.statement(brief))
                print(
                    f"\nThe file to begin with is now {shown(path)}. Write there, and run this again.\n",
                    flush=True,
                )
        source = path.read_text(encoding="utf-8-sig", errors="replace")
        running = store.open_attempt(exercise.name) if asked.file is None else None
        if running:
            attempt = Session(exercise, store, running)
            ruling = attempt.judge(judge, hurried=False)
        else:
            attempt = None
            options = exercise.judged | {"examples": store.examples(exercise.name)}
            ruling = judge.judge(exercise.kata, path.resolve(), source, hurried=False, **options)
            store.add_verdict(None, source, ruling.verdict)
            store.add_examples(exercise.name, ruling.examples)
    return told(ruling.verdict, exercise, asked, attempt.result if attempt is not None else None)


def told(found: Verdict, exercise: Exercise, asked: argparse.Namespace, result: Result | None = None) -> int:
    """Print a verdict as it was asked for, and return its exit code."""
    if asked.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        print(plain.verdict(found, exercise.brief))
        if found.passed:
            if result:
                print(plain.result(result))
                print(plain.next_parts(exercise), end="")
                print("".join(f"mended: {says}\n" for says in exercise.says), end="")
            print("\n" + plain.follow_ups(exercise.brief))
    return exit_code(found)


def exit_code(found: Verdict) -> int:
    if found.outcome == "judge_error":
        return USAGE
    return PASSED if found.passed else REJECTED


def in_step(brief: catalogue.Brief, asked: argparse.Namespace) -> int:
    """One verdict of several processes that torchrun started, on the same file; the first of them prints it."""
    from dojo.exercise import build
    from dojo.judge.client import Judge

    path = asked.file or practice_file(brief.name)
    if not path.is_file():
        raise Refused(f"there is no {shown(path)} yet")
    # The first to leave with another code than 0 has torchrun end the others: let them come to their own end.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(25))
    run = f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.environ['MASTER_PORT']}"
    with Judge() as judge:
        found = judge.judge(
            brief.name, path.resolve(), likeness=False, in_step=True, seed=zlib.crc32(run.encode()),
            seconds=300.0, wall=1800.0,
        ).verdict  # fmt: skip
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a handler of Python's is gone while Python ends
    rank, _ = place_among_ranks()
    if rank == 0:
        return told(found, build(brief.name), asked)
    if found.outcome not in ("passed", "rejected"):
        print(f"rank {rank}: {found.outcome}: {found.message}", file=sys.stderr)
    return exit_code(found)


def hunt(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "runner.py hunt", description="A working file with bugs planted in it, drawn by a seed, on the clock."
    )
    parser.add_argument("kata", nargs="?", help="which file (default: drawn as well)")
    parser.add_argument("--seed", type=int, help="the same seed plants the same bugs (default: a new one)")
    parser.add_argument("--bugs", type=int, help="how many (default: 4 in gpt, else 1)")
    parser.add_argument("--subtle", action="store_true", help="only such as change little in the text")
    parser.add_argument("--untimed", dest="timed", action="store_false", help="without a limit")
    for option, what in (("--continue", "go on with the open hunt"), ("--edit", "open $VISUAL or $EDITOR"),
                         ("--once", "one verdict as text"), ("--json", "one verdict as JSON")):  # fmt: skip
        parser.add_argument(
            option, dest=option[2:].replace("continue", "resume"), action="store_true", help=what
        )
    asked = parser.parse_args(argv)
    asked.file = None
    return hunted(asked)


def hunted(asked: argparse.Namespace) -> int:
    """Draw the bugs, or go on with those of the open attempt."""
    import random

    from dojo import hunt as hunts
    from dojo.store import Store

    if asked.kata is not None:
        judgeable(asked.kata)
    if asked.bugs is not None and not 1 <= asked.bugs <= hunts.MOST_BUGS:
        raise Refused(f"--bugs {asked.bugs}: expected 1 to {hunts.MOST_BUGS}")
    seed = random.randrange(10_000) if asked.seed is None else asked.seed
    kata = asked.kata or random.Random(seed).choice(sorted(catalogue.here()))
    if asked.resume and asked.kata is None:
        hunted = [a.kata for a in Store().attempts() if a.kata.startswith("hunt-")]
        if not hunted:
            raise Refused("there is no hunt to go on with: python runner.py hunt begins one")
        kata = hunted[0].removeprefix("hunt-")
    bugs = asked.bugs or catalogue.brief(kata).hunt_bugs

    def exercise(running: Attempt | None) -> Exercise:
        if running is not None:
            return hunts.exercise(kata, running.planted, running.seed)
        if asked.resume:  # the hunt is over, and the same file goes on
            last = next(iter(Store().attempts(name)), None)
            if last is None or last.outcome != "passed" or not practice_file(name).exists():
                raise Refused(f"there is no hunt to go on with: python runner.py hunt {kata} begins one")
            return hunts.exercise(kata, (), None)
        try:
            drawn = hunts.draw(kata, seed, bugs, subtle=asked.subtle)
        except hunts.NoSuchHunt as none:
            raise Refused(str(none)) from none
        if not asked.json:
            extra = f" --bugs {bugs}" + " --subtle" * asked.subtle
            print(f"hunt {kata} · again: python runner.py hunt {kata} --seed {seed}{extra}", flush=True)
        return hunts.exercise(kata, [m.name for m in drawn], seed)

    name = hunts.name_of(kata)
    once_only = asked.once or asked.json or not _on_a_terminal()
    if not once_only:
        return session(exercise, name, asked)
    store = Store()
    running = store.open_attempt(name)
    if running is None or (asked.seed is not None and running.seed != seed):
        from dojo.session import open_session

        opened = open_session(exercise(None), store, timed=asked.timed, resume=asked.resume)
        if opened.kept is not None and not asked.json:
            print(f"what was in {shown(opened.session.path)} is kept: history {name} --show {opened.kept}")
        running = opened.session.attempt
    return once(exercise(running), asked)


# --- the other commands -----------------------------------------------------------------------------


def front_page() -> int:
    print(plain.home(_attempts()))
    return 0


def list_(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("runner.py list", description="All katas, the easiest first.")
    parser.add_argument("--json", action="store_true", help="as a JSON list")
    asked = parser.parse_args(argv)
    attempts = _attempts()
    if not asked.json:
        print(plain.listing(attempts))
        return 0
    rows = []
    for name in catalogue.names():
        brief = catalogue.brief(name)
        passed = [a.seconds for a in attempts.get(name, []) if a.outcome == "passed"]
        rows.append({
            "kata": name, "title": brief.title, "tier": brief.tier, "minutes": brief.minutes,
            "lines": brief.lines, "parts": [p.title for p in brief.parts], "claims": len(brief.claims),
            "attempts": len(attempts.get(name, [])), "best_seconds": min(passed) if passed else None,
        })  # fmt: skip
    print(json.dumps(rows, indent=2, ensure_ascii=False))
    return 0


def show(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("runner.py show", description="The statement and the rules of a kata.")
    parser.add_argument("kata")
    parser.add_argument(
        "--answers", action="store_true", help="the follow-up questions with strong answers and red flags"
    )
    asked = parser.parse_args(argv)
    brief = catalogue.brief(asked.kata)
    print(plain.answers(brief) if asked.answers else plain.statement(brief))
    return 0


def hint(argv: list[str]) -> int:
    asked = _kata_alone("hint", "The next hint; it is recorded with the open attempt.", argv)
    brief = catalogue.brief(asked.kata)
    from dojo.exercise import build
    from dojo.session import Session
    from dojo.store import Store

    store = Store()
    running = store.open_attempt(brief.name) or store.begin(brief.name, None)
    session = Session(build(brief.name), store, running)
    taken = session.next_hint()
    if taken is None:
        print(f"all {len(brief.hints)} hints are taken; the last: {brief.hints[-1]}")
    else:
        print(plain.wrapped(f"hint {taken[0]} of {len(brief.hints)}: {taken[1]}", "  ", ""))
    return 0


def solution(argv: list[str]) -> int:
    asked = _kata_alone("solution", "The reference; an open attempt ends as given up.", argv)
    brief = catalogue.brief(asked.kata)
    from dojo.exercise import build
    from dojo.session import Session
    from dojo.store import Store

    store = Store()
    running = store.open_attempt(brief.name)
    if running is not None and sys.stdin.isatty():
        answer = input("The open attempt ends as given up. Show the solution? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return 0
    if running is not None:
        print(Session(build(brief.name), store, running).give_up())
    else:
        print(room_file("reference", brief.name).read_text(encoding="utf-8"))
    return 0


def reset(argv: list[str]) -> int:
    asked = _kata_alone("reset", "Put the blank stub back; what was there is kept.", argv)
    brief = catalogue.brief(asked.kata)
    from dojo.exercise import build
    from dojo.session import put_aside, write_out
    from dojo.store import Store

    exercise = build(brief.name)
    kept = put_aside(exercise, Store(), "reset")
    path = write_out(exercise)
    aside = (
        f"; what was there is kept as number {kept}: python runner.py history {brief.name} --show {kept}"
        if kept
        else ""
    )
    print(f"{shown(path)} is the blank stub again{aside}")
    return 0


def history(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "runner.py history", description="What you did, and the files put aside."
    )
    parser.add_argument("kata", nargs="?")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print a file that was put aside")
    asked = parser.parse_args(argv)
    if asked.kata is not None:
        catalogue.brief(asked.kata.removeprefix("hunt-"))
    from dojo.store import Store

    store = Store()
    kept = store.kept(asked.kata)
    if asked.show is None:
        print(plain.history(store.attempts(asked.kata), kept))
        return 0
    found = [k for k in kept if k["id"] == asked.show]
    if not found:
        raise Refused(f"--show {asked.show}: no file was put aside under that number")
    print(found[0]["source"], end="")
    return 0


def check(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "runner.py check", description="Do the rooms agree? Tries the references and the mistakes."
    )
    parser.add_argument("katas", nargs="*", metavar="KATA", help="only these (default: all)")
    parser.add_argument(
        "--mistakes", action="store_true", help="the matrix: each mistake and every claim that refutes it"
    )
    parser.add_argument("--mutants", action="store_true", help="mechanical changes to the references")
    parser.add_argument(
        "--again", action="store_true", help="with --mutants: only those that the record says survive"
    )
    parser.add_argument("--names", action="store_true", help="is each mistake named, and none by another's?")
    parser.add_argument(
        "--styles", action="store_true", help="are right answers in other styles ever refused?"
    )
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="with --styles: how often (20)")
    parser.add_argument("--cards", action="store_true", help="the failure cards of three ordinary mistakes")
    parser.add_argument(
        "--write", action="store_true", help="put what these find into docs/power and docs/judge.md"
    )
    asked = parser.parse_args(argv)
    for name in asked.katas:
        judgeable(name)
    if asked.runs < 1:
        raise Refused(f"--runs {asked.runs}: at least 1 is due")
    from dojo.check import check_rooms
    from dojo.fairness import fairness
    from dojo.judge.warm import preload
    from dojo.naming import naming
    from dojo.power import cards, matrix, mutation

    chosen = asked.katas or list(catalogue.here())
    for name in set(catalogue.names()) - set(catalogue.here()) if not asked.katas else ():
        print(f"{name:<20} left out: {' and '.join(catalogue.lacking(name))} is not installed")
    tasks = [task for task, wanted in (
        (matrix, asked.mistakes), (partial(mutation, again=asked.again), asked.mutants), (naming, asked.names),
        (partial(fairness, runs=asked.runs), asked.styles), (cards, asked.cards),
    ) if wanted]  # fmt: skip
    if not tasks:
        if asked.write or asked.again:
            raise Refused("--write and --again go with what is to be measured, such as --mutants")
        return check_rooms(chosen)
    preload()  # probes are computed in this process too
    return max(task(chosen, write=asked.write) for task in tasks)


def doctor(argv: list[str]) -> int:
    argparse.ArgumentParser(
        "runner.py doctor", description="What is installed, and what works here."
    ).parse_args(argv)
    from dojo.doctor import report

    return report()


def _kata_alone(command: str, description: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"runner.py {command}", description=description)
    parser.add_argument("kata")
    return parser.parse_args(argv)


def _attempts() -> dict[str, list]:
    """Attempts by kata; nothing is created for someone who only looks."""
    from dojo.places import store_file

    if not store_file().exists():
        return {}
    from dojo.store import Store

    found: dict[str, list] = {}
    for attempt in Store().attempts():
        if attempt.kata.removeprefix("hunt-") in catalogue.names():
            found.setdefault(attempt.kata, []).append(attempt)
    return found


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": list_, "show": show, "hint": hint, "solution": solution, "reset": reset, "history": history,
    "check": check, "doctor": doctor, "hunt": hunt,
}  # fmt: skip
