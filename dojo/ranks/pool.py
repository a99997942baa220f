"""The judge's side: forks the ranks, gives them calls, and sees who has ended or waits in vain."""

from __future__ import annotations

import builtins
import contextlib
import linecache
import os
import pickle
import re
import select
import signal
import sys
import tempfile
import time
import traceback
import types
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dojo.close import Mismatch
from dojo.places import place_among_ranks
from dojo.ranks.meeting import STARTING, Meeting, kept_by_torchrun, run_name, tcp_store
from dojo.ranks.rank import Rank, die_with
from dojo.ranks.wire import (
    IN_WORDS,
    UNKNOWN,
    Answer,
    Ended,
    Ledger,
    Packed,
    Raised,
    Reply,
    Stuck,
    Waits,
    read,
    write,
)

SIZE = 4
"""How many ranks there are at most, unless torchrun has started fewer or more."""

PATIENCE, PATIENCE_IN_STEP = 6.0, 30.0
"""Seconds without an answer until a call counts as stuck, where that cannot be proved; and under torchrun,
where a first message may set up NCCL."""

SIGNS = {signal.SIGABRT: " (gloo aborts where a message is larger than the buffer that receives it)"}
"""What a signal most likely means here."""

LOOK, GRACE = 0.02, 1.0
"""Seconds between two looks at who waits for whom; and, under torchrun, for the others once a rank has failed."""


@dataclass
class Worker:
    pid: int
    commands: int
    answers: int
    trace: Any


class Pool:
    """The workers of this process, by rank: all ranks, or under torchrun its own."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.place = place_among_ranks()
        self.size = self.place[1] if self.place else SIZE
        self.local = (self.place[0],) if self.place else tuple(range(SIZE))
        self.patience = PATIENCE_IN_STEP if self.place else PATIENCE
        self.workers: dict[int, Worker] = {}
        self.known: dict[int, types.ModuleType] = {}
        self.groups: set[tuple[int, ...]] = set()
        self.ledger = Ledger(self.size)
        self.store: Any = None
        self.said = self.generation = 0

    # Starting and ending.

    def start(self, subject: types.ModuleType) -> None:
        if self.place and self.store is None:
            self.store = dist.PrefixStore(run_name(), tcp_store(host=self.place[0] == 0))
        self.generation += 1
        self.known, self.groups = {id(subject): subject}, set()
        meeting = None if self.place else Meeting()
        try:
            for rank in self.local:
                self.workers[rank] = self.fork(rank, meeting)
            replies = self.told(dict.fromkeys(self.local), STARTING)
        finally:
            if meeting:
                meeting.close()
        for rank, reply in replies.items():
            if reply != "ready":
                self.end()
                raise RuntimeError(f"rank {rank} could not be started: {reply}")

    def fork(self, rank: int, meeting: Meeting | None) -> Worker:
        sys.stdout.flush()
        sys.stderr.flush()
        trace = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed in end)
        commands, answers, parent = os.pipe(), os.pipe(), os.getpid()
        pid = os.fork()
        if pid:
            os.close(commands[0])
            os.close(answers[1])
            return Worker(pid, commands[1], answers[0], trace)
        try:
            die_with(parent)
            for worker in self.workers.values():
                os.close(worker.commands)
                os.close(worker.answers)
            os.close(commands[1])
            os.close(answers[0])
            Rank(self, rank, commands[0], answers[1], trace, meeting).serve()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def end(self) -> None:
        """End the workers; the next call forks new ones."""
        for worker in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            os.close(worker.commands)
            os.close(worker.answers)
            worker.trace.close()
        self.workers = {}
        self.ledger.clear()  # or those who come next would seem to wait for what these waited for

    # Talking.

    def told(self, commands: dict[int, Any], patience: float) -> dict[int, Any]:
        """Give workers their commands (None: only listen) and collect their replies."""
        for rank, command in commands.items():
            if command is not None:
                with contextlib.suppress(BrokenPipeError):
                    write(self.workers[rank].commands, command)
        replies: dict[int, Any] = {}
        ears = {self.workers[rank].answers: rank for rank in commands}
        poll = select.poll()
        for fd in ears:
            poll.register(fd, select.POLLIN)
        late, before = time.monotonic() + patience, None
        while len(replies) < len(commands):
            heard = poll.poll(1000 * LOOK)
            for fd, _ in heard:
                rank = ears[fd]
                poll.unregister(fd)
                try:
                    replies[rank] = read(fd)
                except EOFError:
                    replies[rank] = self.ended(rank)
            if any(isinstance(reply, Ended) for reply in replies.values()):
                break
            missing = [rank for rank in commands if rank not in replies]
            cells = list(self.ledger.cells)
            # Two equal looks: nobody moved in between, so they show one moment.
            vain = not heard and cells == before and all(self.ledger.waits_in_vain(cells, r) for r in missing)
            if (vain and not self.place) or (missing and time.monotonic() > late):
                replies |= {rank: self.waits(rank) for rank in missing}
            before = cells
            if (
                self.place
                and missing
                and time.monotonic() > late - patience + GRACE
                and self.failed_elsewhere()
            ):
                late = min(late, time.monotonic() + GRACE)
        return replies

    def failed_elsewhere(self) -> bool:
        """Has another rank of the call under way already failed, so that this one may wait for ever?"""
        return self.store.check([f"{self.said + 1}/failed"])

    def ended(self, rank: int) -> Ended:
        _, status = os.waitpid(self.workers[rank].pid, 0)
        if os.WIFSIGNALED(status):
            number = signal.Signals(os.WTERMSIG(status))
            how = f"died of {number.name}{SIGNS.get(number, '')}"
        else:
            how = f"ended its process with exit code {os.WEXITSTATUS(status)}"
        return Ended(how, self.traced(rank))

    def waits(self, rank: int) -> Waits:
        verb, peer, line = self.ledger.waits(rank)
        if verb in IN_WORDS:
            return Waits(f"waits in {IN_WORDS[verb]} rank {peer}", line)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.workers[rank].pid, signal.SIGUSR1)
        time.sleep(0.1)
        where = "waits in an operation" if verb == UNKNOWN else f"has not answered for {self.patience:g} s"
        return Waits(where, line or self.traced(rank))

    def traced(self, rank: int) -> int:
        """The person's line in what faulthandler wrote for a worker, deepest first."""
        trace = self.workers[rank].trace
        trace.seek(0)
        paths = {str(subject.__file__) for subject in self.known.values() if hasattr(subject, "__file__")}
        for found in re.finditer(rb'File "(.*?)", line (\d+)', trace.read()):
            if found[1].decode(errors="replace") in paths:
                return int(found[2])
        return 0

    def exchanged(self, mine: Any) -> list[Any]:
        """What every process of torchrun's says, by rank."""
        rank, size = self.place
        self.said += 1
        self.store.set(f"{self.said}/{rank}", pickle.dumps(mine))
        everyone = [pickle.loads(self.store.get(f"{self.said}/{other}")) for other in range(size)]
        # Who has come this far has read all of the exchange before.
        self.store.delete_key(f"{self.said - 1}/{rank}")
        if not kept_by_torchrun():
            # The store ends with the process of rank 0, so that one stays until the others have read.
            self.store.set(f"{self.said}/read/{rank}", b"1")
            for other in range(1, size) if rank == 0 else ():
                self.store.get(f"{self.said}/read/{other}")
        return everyone

    # A call.

    def run(
        self, subject: types.ModuleType, name: str, calls: Sequence[tuple], world: int,
        members: tuple[int, ...], grouped: bool, options: dict[str, Any],
    ) -> list[Answer]:  # fmt: skip
        try:
            function = self.acquainted(subject, name)
            for ranks in {tuple(range(world)), members} - self.groups:
                self.told(dict.fromkeys(self.local, ("group", ranks)), STARTING)
                self.groups.add(ranks)
            self.ledger.clear()
            commands = {}
            for rank, args in zip(members, calls, strict=True):
                packed = [Packed.of(a) if isinstance(a, Tensor) else a for a in args]
                commands[rank] = ("call", function, packed, options, world, members if grouped else None)
            replies = self.told({r: c for r, c in commands.items() if r in self.local}, self.patience)
            if self.place:
                if not all(isinstance(reply, Reply) for reply in replies.values()):
                    self.store.set(f"{self.said + 1}/failed", b"1")
                everyone = self.exchanged((_digest(commands), replies.get(self.place[0])))
                if len({digest for digest, _ in everyone}) > 1:
                    raise RuntimeError("the processes that torchrun started no longer try the same example")
                replies = {rank: everyone[rank][1] for rank in members}
        except BaseException:
            self.end()
            raise
        # A send that was received needs no wait to be over.
        clean = all(
            isinstance(r, (Reply, Raised)) and all(m.waited or m.sent for m in r.messages)
            for r in replies.values()
        )
        if not clean or (not self.place and not self.ledger.settled()) or len(replies) < len(members):
            self.end()
        fail_if_needed(replies, world, str(getattr(subject, "__file__", "")))
        return [
            Answer(
                rank, r.value.tensor() if isinstance(r.value, Packed) else r.value,
                tuple(args) if r.args is None else tuple(a.tensor() if isinstance(a, Packed) else a for a in r.args),
                r.shares, r.messages,
            )
            for rank, args in zip(members, calls, strict=True)
            for r in (replies[rank],)
        ]  # fmt: skip

    def acquainted(self, subject: types.ModuleType, name: str) -> tuple:
        """See to it that the workers run and know the subject; returns how to tell them the function."""
        if not self.workers:
            self.start(subject)
        if id(subject) not in self.known:
            function = getattr(subject, name)
            path = str(getattr(subject, "__file__", ""))
            if subject.__name__ == "subject" and path in linecache.cache:
                source = "".join(linecache.getlines(path))
                self.told(dict.fromkeys(self.local, ("load", id(subject), path, source)), STARTING)
                self.known[id(subject)] = subject
            elif not isinstance(function, types.FunctionType):
                return "itself", pickle.dumps(function)
            else:
                self.end()
                self.start(subject)
        return id(subject), name


def fail_if_needed(replies: dict[int, Any], world: int, path: str) -> None:
    """Raise what the replies call for: first what ended (the others then lose their connection), then what was
    raised, then what waits."""
    for rank in sorted(replies):
        reply, who = replies[rank], f"rank {rank} of {world}"
        if isinstance(reply, Ended):
            at = f", line {reply.line}" if reply.line else ""
            raise Mismatch(f"{who} {reply.how}{at}") from _placed(RuntimeError(reply.how), path, reply.line)
    for rank in sorted(replies):
        if isinstance(replies[rank], Raised):
            raise _rebuilt(replies[rank], f"rank {rank} of {world}", path)
    waiting = [(rank, reply) for rank, reply in sorted(replies.items()) if isinstance(reply, Waits)]
    if waiting:
        told = [
            f"rank {rank} of {world} {reply.where}" + (f", line {reply.line}" if reply.line else "")
            for rank, reply in waiting
        ]
        line = next((reply.line for _, reply in waiting if reply.line), 0)
        raise Stuck("; ".join(told), line) from _placed(RuntimeError("waits"), path, line)


def _rebuilt(raised: Raised, who: str, path: str) -> BaseException:
    """The exception as the person's code raised it, at the person's line."""
    kind = getattr(builtins, raised.kind, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        with contextlib.suppress(Exception):
            return _placed(kind(f"{who}: {raised.text}"), path, raised.line)
    return _placed(RuntimeError(f"{who}: {raised.kind}: {raised.text}"), path, raised.line)


def _placed(error: BaseException, path: str, line: int) -> BaseException:
    """The error, with a traceback that ends at a line of the person's file."""
    if not line:
        return error
    try:
        exec(compile("\n" * (line - 1) + "raise error", path, "exec"), {"error": error})
    except BaseException as raised:
        return raised
    return error


def _digest(commands: dict) -> int:
    return zlib.crc32(pickle.dumps([(rank, c[2:]) for rank, c in sorted(commands.items())]))
