"""Several processes for the katas that need them: a rank each, connected by gloo, watched.

``run`` calls one function of the subject on every rank at once and returns what each gave, together with its
messages. The ranks are workers, forked once and kept: a call then costs a millisecond or two. After a failure
they are ended and forked anew, so that no message of one example reaches the next.

What a rank sends and receives goes through a process group written here, which hands it to gloo and keeps
a log. It is also strict where gloo is merely undefined: what is received reaches its buffer in ``wait`` and
not before, and a buffer that is written to while it is under way is noted.

Each rank says in shared memory what it has posted and what it waits for. If every rank that has not answered
waits for something that nobody has posted, no time can help them, and ``Stuck`` is raised at once.

Under torchrun (RANK and WORLD_SIZE are set) every process runs the same claims and forks one worker, its own
rank's. The answers are exchanged through torchrun's store, so that all come to the same verdict. Where each
rank has a GPU, a call is run twice, on gloo for the log and on NCCL for the values.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import faulthandler
import linecache
import mmap
import os
import pickle
import re
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from dojo.close import Mismatch
from dojo.places import place_among_ranks

SIZE = 4
"""How many ranks there are at most, unless torchrun has started fewer or more."""

PATIENCE, PATIENCE_IN_STEP, STARTING = 6.0, 30.0, 120.0
"""Seconds without an answer until a call counts as stuck, where that cannot be proved; under torchrun, where
a first message may set up NCCL; and for the workers to find each other."""

LOOK, GRACE = 0.02, 1.0
"""Seconds between two looks at who waits for whom; and, under torchrun, for the others once a rank has failed."""

WATCHED = 1 << 16
"""A buffer of up to so many elements is compared before and after it is sent."""

NOTHING, SEND, RECEIVE, UNKNOWN = range(4)
IN_WORDS = {SEND: "send to", RECEIVE: "recv from"}


class Stuck(Exception):
    """A process of the subject's waits for what never comes; the message says which, and in what operation.

    ``line`` is the person's own line. The judge's outcome is "timed out".
    """

    def __init__(self, message: str, line: int = 0):
        super().__init__(message)
        self.line = line


@dataclass
class Message:
    """One message as its rank saw it; ``peer`` is the other's rank in the world.

    ``waited``: the rank waited for it. ``ahead``: how many other receives were posted by then and not yet waited
    for. ``disturbed``: its buffer was written to while it was under way.
    """

    sent: bool
    peer: int
    numel: int
    bytes: int
    waited: bool = False
    ahead: int = 0
    disturbed: bool = False


@dataclass
class Answer:
    """What one rank gave: the value, the arguments as it left them, and its messages in order.

    ``shares`` tells whether the value lies in the memory of an argument.
    """

    rank: int
    value: Any
    args: tuple
    shares: bool
    messages: list[Message]

    @property
    def sent(self) -> list[Message]:
        return [m for m in self.messages if m.sent]

    @property
    def received(self) -> list[Message]:
        return [m for m in self.messages if not m.sent]


def most() -> int:
    """How many ranks a claim may ask for."""
    place = place_among_ranks()
    return place[1] if place else SIZE


def run(
    subject: types.ModuleType, name: str, calls: Sequence[tuple], *, world: int,
    group: Sequence[int] | None = None, **options: Any,
) -> list[Answer]:  # fmt: skip
    """Call ``subject.name(*args, group=…, **options)`` on ranks of a world of ``world``, with ``calls`` holding
    each one's args, and return their answers.

    ``group`` names the ranks that take part (default: all, and the function gets no group). Raises what
    the lowest rank that raised has raised; Mismatch if a rank's process ended; Stuck if one does not answer.
    """
    members = tuple(range(world) if group is None else group)
    if len(calls) != len(members):
        raise ValueError(f"{len(calls)} calls for {len(members)} ranks")
    global _pool
    if _pool is None or _pool.owner != os.getpid():
        _pool = _Pool()
    return _pool.run(subject, name, calls, world, members, group is not None, options)


_pool: _Pool | None = None


# --- what goes through the pipes --------------------------------------------------------------------------


@dataclass
class _Packed:
    """A tensor on its way: the bytes of its storage, and how it lies in them."""

    data: bytes
    dtype: torch.dtype
    layout: tuple

    @staticmethod
    def of(x: Tensor) -> _Packed:
        return _Packed(_bytes(x), x.dtype, (x.storage_offset(), tuple(x.shape), x.stride()))

    def tensor(self, device: str = "cpu") -> Tensor:
        flat = torch.empty(0, dtype=torch.uint8)
        if self.data:
            flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        storage = flat.to(device).untyped_storage()
        return torch.empty(0, dtype=self.dtype, device=device).set_(storage, *self.layout)


def _bytes(x: Tensor) -> bytes:
    """The whole storage that x lies in."""
    return torch.empty(0, dtype=torch.uint8).set_(x.detach().cpu().untyped_storage()).numpy().tobytes()


def _pack(value: Any) -> Any:
    return _Packed.of(value.detach().cpu().contiguous().clone()) if isinstance(value, Tensor) else value


@dataclass
class _Reply:
    """What a worker says of a call. ``args`` is None if the arguments are as they were."""

    value: Any = None
    args: list | None = None
    shares: bool = False
    messages: list[Message] = field(default_factory=list)


@dataclass
class _Raised:
    kind: str
    text: str
    line: int
    messages: list[Message] = field(default_factory=list)


@dataclass
class _Ended:
    """A worker's process is gone."""

    how: str
    line: int


@dataclass
class _Waits:
    """A worker does not answer."""

    where: str
    line: int


def _write(fd: int, thing: Any) -> None:
    data = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    data = memoryview(struct.pack("q", len(data)) + data)
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int) -> Any:
    (length,) = struct.unpack("q", _exactly(fd, 8))
    return pickle.loads(_exactly(fd, length))


def _exactly(fd: int, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        more = os.read(fd, min(count - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data


class _Ledger:
    """Shared memory in which each rank alone writes its row: what it waits for, and what it has posted."""

    HEAD = 5  # what it waits for: verb, peer, slot, number of the message; and the person's line

    def __init__(self, size: int):
        self.size, self.width = size, self.HEAD + 4 * size
        self.cells = memoryview(mmap.mmap(-1, 8 * size * self.width)).cast("q")

    def clear(self) -> None:
        for i in range(len(self.cells)):
            self.cells[i] = 0

    def post(self, rank: int, slot: int, verb: int, peer: int) -> int:
        """Count a message; returns how many of its kind there were before."""
        at = self._posted(rank, slot, verb, peer)
        self.cells[at] += 1
        return self.cells[at] - 1

    def wait(
        self, rank: int, verb: int, peer: int = 0, slot: int = 0, number: int = 0, line: int = 0
    ) -> None:
        at = rank * self.width
        self.cells[at] = NOTHING
        self.cells[at + 1 : at + self.HEAD] = memoryview(struct.pack("4q", peer, slot, number, line)).cast(
            "q"
        )
        self.cells[at] = verb

    def waits(self, rank: int) -> tuple[int, int, int]:
        """Verb, peer and line of what a rank waits for."""
        at = rank * self.width
        return self.cells[at], self.cells[at + 1], self.cells[at + 4]

    def waits_in_vain(self, cells: Sequence[int], rank: int) -> bool:
        """Has the counterpart of what a rank waits for not been posted?"""
        verb, peer, slot, number = cells[rank * self.width : rank * self.width + 4]
        if verb not in IN_WORDS:
            return False
        return cells[self._posted(peer, slot, SEND + RECEIVE - verb, rank)] <= number

    def settled(self) -> bool:
        """Was every message that was sent received, and none awaited that was not sent?"""
        pairs = ((a, b, slot) for a in range(self.size) for b in range(self.size) for slot in (0, 1))
        return all(
            self.cells[self._posted(a, slot, SEND, b)] == self.cells[self._posted(b, slot, RECEIVE, a)]
            for a, b, slot in pairs
        )

    def _posted(self, rank: int, slot: int, verb: int, peer: int) -> int:
        return rank * self.width + self.HEAD + (2 * slot + verb - SEND) * self.size + peer


# --- the judge's side ---------------------------------------------------------------------------------------


@dataclass
class _Worker:
    pid: int
    commands: int
    answers: int
    trace: Any


class _Pool:
    """The workers of this process, by rank: all ranks, or under torchrun its own."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.place = place_among_ranks()
        self.size = self.place[1] if self.place else SIZE
        self.local = (self.place[0],) if self.place else tuple(range(SIZE))
        self.patience = PATIENCE_IN_STEP if self.place else PATIENCE
        self.workers: dict[int, _Worker] = {}
        self.known: dict[int, types.ModuleType] = {}
        self.groups: set[tuple[int, ...]] = set()
        self.ledger = _Ledger(self.size)
        self.store: Any = None
        self.said = self.generation = 0

    # Starting and ending.

    def start(self, subject: types.ModuleType) -> None:
        if self.place and self.store is None:
            self.store = dist.PrefixStore(_run_name(), _tcp_store(host=self.place[0] == 0))
        self.generation += 1
        self.known, self.groups = {id(subject): subject}, set()
        meeting = None if self.place else _Meeting()
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

    def fork(self, rank: int, meeting: _Meeting | None) -> _Worker:
        sys.stdout.flush()
        sys.stderr.flush()
        trace = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed in end)
        commands, answers, parent = os.pipe(), os.pipe(), os.getpid()
        pid = os.fork()
        if pid:
            os.close(commands[0])
            os.close(answers[1])
            return _Worker(pid, commands[1], answers[0], trace)
        try:
            _die_with(parent)
            for worker in self.workers.values():
                os.close(worker.commands)
                os.close(worker.answers)
            os.close(commands[1])
            os.close(answers[0])
            _Rank(self, rank, commands[0], answers[1], trace, meeting).serve()
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

    # Talking.

    def told(self, commands: dict[int, Any], patience: float) -> dict[int, Any]:
        """Give workers their commands (None: only listen) and collect their replies."""
        for rank, command in commands.items():
            if command is not None:
                with contextlib.suppress(BrokenPipeError):
                    _write(self.workers[rank].commands, command)
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
                    replies[rank] = _read(fd)
                except EOFError:
                    replies[rank] = self.ended(rank)
            if any(isinstance(reply, _Ended) for reply in replies.values()):
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

    def ended(self, rank: int) -> _Ended:
        _, status = os.waitpid(self.workers[rank].pid, 0)
        if os.WIFSIGNALED(status):
            how = f"died of {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            how = f"ended its process with exit code {os.WEXITSTATUS(status)}"
        return _Ended(how, self.traced(rank))

    def waits(self, rank: int) -> _Waits:
        verb, peer, line = self.ledger.waits(rank)
        if verb in IN_WORDS:
            return _Waits(f"waits in {IN_WORDS[verb]} rank {peer}", line)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.workers[rank].pid, signal.SIGUSR1)
        time.sleep(0.1)
        where = "waits in an operation" if verb == UNKNOWN else f"has not answered for {self.patience:g} s"
        return _Waits(where, line or self.traced(rank))

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
        if not _kept_by_torchrun():
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
                packed = [_Packed.of(a) if isinstance(a, Tensor) else a for a in args]
                commands[rank] = ("call", function, packed, options, world, members if grouped else None)
            replies = self.told({r: c for r, c in commands.items() if r in self.local}, self.patience)
            if self.place:
                if not all(isinstance(reply, _Reply) for reply in replies.values()):
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
            isinstance(r, (_Reply, _Raised)) and all(m.waited or m.sent for m in r.messages)
            for r in replies.values()
        )
        if not clean or (not self.place and not self.ledger.settled()) or len(replies) < len(members):
            self.end()
        fail_if_needed(replies, world, str(getattr(subject, "__file__", "")))
        return [
            Answer(
                rank, r.value.tensor() if isinstance(r.value, _Packed) else r.value,
                tuple(args) if r.args is None else tuple(a.tensor() if isinstance(a, _Packed) else a for a in r.args),
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
        if isinstance(reply, _Ended):
            at = f", line {reply.line}" if reply.line else ""
            raise Mismatch(f"{who} {reply.how}{at}") from _placed(RuntimeError(reply.how), path, reply.line)
    for rank in sorted(replies):
        if isinstance(replies[rank], _Raised):
            raise _rebuilt(replies[rank], f"rank {rank} of {world}", path)
    waiting = [(rank, reply) for rank, reply in sorted(replies.items()) if isinstance(reply, _Waits)]
    if waiting:
        told = [
            f"rank {rank} of {world} {reply.where}" + (f", line {reply.line}" if reply.line else "")
            for rank, reply in waiting
        ]
        line = next((reply.line for _, reply in waiting if reply.line), 0)
        raise Stuck("; ".join(told), line) from _placed(RuntimeError("waits"), path, line)


def _rebuilt(raised: _Raised, who: str, path: str) -> BaseException:
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


def _run_name() -> str:
    return "dojo/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _kept_by_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _tcp_store(host: bool) -> dist.Store:
    """The store that torchrun keeps; without one, rank 0's judge is the host."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address,
        port,
        is_master=host and not _kept_by_torchrun(),
        wait_for_workers=False,
        timeout=timedelta(seconds=STARTING),
    )


class _Meeting:
    """Where workers of one machine find each other: a file, without a name where the system can do that."""

    def __init__(self) -> None:
        self.unnamed = hasattr(os, "memfd_create")
        if self.unnamed:
            self.fd = os.memfd_create("ranks", 0)
            self.path = f"/proc/self/fd/{self.fd}"
        else:
            self.fd, self.path = tempfile.mkstemp()

    def close(self) -> None:
        os.close(self.fd)
        if not self.unnamed:
            os.unlink(self.path)


def _die_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


# --- a rank's side ------------------------------------------------------------------------------------------


class _Rank:
    """A worker: finds the others, then does as it is told until its pipe closes."""

    def __init__(
        self, pool: _Pool, rank: int, commands: int, answers: int, trace: Any, meeting: _Meeting | None
    ):
        self.pool, self.rank, self.size, self.ledger = pool, rank, pool.size, pool.ledger
        self.commands, self.answers = commands, answers
        self.meeting = meeting
        self.device: Any = None
        self.log: list[_Request] = []
        self.groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self.fast: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self.subjects = dict(pool.known)
        self.path = ""
        self.gpu = False
        faulthandler.enable(trace)
        faulthandler.register(signal.SIGUSR1, trace)

    def serve(self) -> None:
        torch.set_num_threads(1)
        # The judge's guard watches every torch call; what it forbids here is refused by the group itself.
        with torch._C.DisableTorchFunction():
            self.connect()
            _write(self.answers, "ready")
            with contextlib.suppress(EOFError):
                while True:
                    what, *rest = _read(self.commands)
                    _write(self.answers, self.do(what, *rest))

    def do(self, what: str, *rest: Any) -> Any:
        if what == "group":
            return self.group(*rest)
        if what == "load":
            return self.load(*rest)
        reply = self.call("cpu", *rest)
        if self.gpu and isinstance(reply, _Reply):
            fast = self.call("cuda", *rest)
            if isinstance(fast, _Raised):
                return fast
            reply.value = fast.value
        if isinstance(reply, _Reply) and not isinstance(reply.value, _Packed):
            try:
                pickle.dumps(reply.value)
            except Exception:
                reply.value = repr(reply.value)
        return reply

    # The groups.

    def connect(self) -> None:
        dist.Backend.register_backend("watched", self.watched, devices=["cpu"])
        if self.meeting:
            store = dist.FileStore(self.meeting.path, -1)
        else:
            store = dist.PrefixStore(f"{_run_name()}/{self.pool.generation}", _tcp_store(host=False))
            self.gpu = self.all_have_gpus(store)
        dist.init_process_group("watched", store=store, rank=self.rank, world_size=self.size)
        self.whole = dist.group.WORLD

    def all_have_gpus(self, store: dist.Store) -> bool:
        local = int(os.environ.get("LOCAL_RANK", 0))
        mine = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        store.set(f"gpu/{self.rank}", str(int(mine)))
        if mine:
            torch.cuda.set_device(local)
        return all(store.get(f"gpu/{rank}") == b"1" for rank in range(self.size))

    def watched(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(hours=1)
        options._threads = 1
        if self.meeting and self.device is None:
            self.device = dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")
        options._devices = [self.device or dist.ProcessGroupGloo.create_default_device()]
        return _Watched(self, dist.ProcessGroupGloo(store, rank, size, options), rank, size)

    def group(self, ranks: tuple[int, ...]) -> str:
        dist.GroupMember.WORLD = self.whole
        made = dist.new_group(list(ranks), backend="watched")
        if self.rank in ranks:
            made.members = ranks
            self.groups[ranks] = made
        if self.gpu:
            fast = dist.new_group(list(ranks), backend="nccl")
            if self.rank in ranks:
                self.fast[ranks] = fast
                # The first call of a communicator may have to be one that all its ranks take part in.
                dist.all_reduce(torch.zeros(1, device="cuda"), group=fast)
                torch.cuda.synchronize()
        return "made"

    # The calls.

    def load(self, key: int, path: str, source: str) -> str:
        from dojo.judge.subject import DoesNotLoad, load

        with contextlib.suppress(DoesNotLoad):
            self.subjects[key] = load(Path(path), source, ())
        return "loaded"

    def call(
        self, device: str, function: tuple, packed: list, options: dict, world: int, members: tuple | None
    ) -> _Reply | _Raised:
        groups = self.groups if device == "cpu" else self.fast
        everyone, self.log = groups[tuple(range(world))], []
        group = None if members is None else groups[members]
        for slot, each in enumerate((everyone, group)):
            if isinstance(each, _Watched):
                each.slot = 0 if each is everyone else slot
        args = tuple(a.tensor(device) if isinstance(a, _Packed) else a for a in packed)
        dist.GroupMember.WORLD = everyone
        key, name = function
        try:
            if key == "itself":
                called = pickle.loads(name)
            else:
                called = getattr(self.subjects[key], name)
                self.path = str(getattr(self.subjects[key], "__file__", ""))
            value = called(*args, **(options if group is None else {**options, "group": group}))
            if device == "cuda":
                torch.cuda.synchronize()
        except BaseException as error:
            return _Raised(type(error).__name__, str(error), self.own_line(error), self.messages())
        finally:
            dist.GroupMember.WORLD = self.whole
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
        tensors = [(a, p) for a, p in zip(args, packed, strict=True) if isinstance(a, Tensor)]
        changed = any(_bytes(a) != p.data for a, p in tensors)
        shares = isinstance(value, Tensor) and value.numel() > 0 and any(
            value.untyped_storage().data_ptr() == a.untyped_storage().data_ptr() for a, _ in tensors
        )  # fmt: skip
        left = [_Packed.of(a.cpu()) if isinstance(a, Tensor) else a for a in args] if changed else None
        return _Reply(_pack(value), left, shares, self.messages())

    def messages(self) -> list[Message]:
        return [request.message for request in self.log]

    def own_line(self, error: BaseException) -> int:
        from dojo.judge.subject import own_line

        return own_line(error, Path(self.path))

    def line(self) -> int:
        """The person's line that is running."""
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self.path:
            frame = frame.f_back
        return frame.f_lineno if frame is not None else 0


class _Request:
    """What send and recv return: a handle on one message."""

    def __init__(
        self, group: _Watched, inner: Any, verb: int, peer: int, buffer: Tensor, aside: Tensor | None
    ):
        self.rank, self.inner, self.verb = group.keeper, inner, verb
        self.peer, self.slot, self.buffer, self.aside = peer, group.slot, buffer, aside
        self.message = Message(verb == SEND, peer, buffer.numel(), buffer.numel() * buffer.itemsize)
        self.number = self.rank.ledger.post(self.rank.rank, self.slot, verb, peer)
        self.known = True
        self.rank.log.append(self)

    def wait(self, timeout: timedelta | None = None) -> bool:
        if not self.message.waited:
            ledger, rank = self.rank.ledger, self.rank.rank
            verb = self.verb if self.known else UNKNOWN
            ledger.wait(rank, verb, self.peer, self.slot, self.number, self.rank.line())
            self.inner.wait()
            ledger.wait(rank, NOTHING)
            self.arrived()
        return True

    synchronize = wait

    def is_completed(self) -> bool:
        if not self.message.waited and self.inner.is_completed():
            self.arrived()
        return self.message.waited

    def is_success(self) -> bool:
        return self.is_completed()

    def _source_rank(self) -> int:
        return self.inner._source_rank()

    def arrived(self) -> None:
        message = self.message
        message.waited = True
        message.ahead = sum(not m.sent and not m.waited for m in self.rank.messages())
        if self.aside is None:
            return
        with torch.no_grad():
            if self.verb == SEND:
                message.disturbed = not _same(self.buffer, self.aside)
            else:
                message.disturbed = not _same(self.buffer, _blank(self.buffer))
                self.buffer.copy_(self.aside)


def _blank(buffer: Tensor) -> Tensor:
    """What stands in a buffer until its message arrives."""
    return torch.full_like(buffer, float("nan") if buffer.is_floating_point() else 77)


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = (torch.empty(x.numel(), dtype=x.dtype).copy_(x.reshape(-1)).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


class _Watched(dist.ProcessGroup):
    """A process group that hands messages to gloo and keeps a log of them. It has no collectives."""

    def __init__(self, keeper: _Rank, inner: Any, rank: int, size: int):
        super().__init__(rank, size)
        self.keeper, self.inner = keeper, inner
        self.members: tuple[int, ...] = tuple(range(size))
        self.slot = 0

    def getBackendName(self) -> str:
        return "gloo"

    def send(self, tensors: list[Tensor], peer: int, tag: int = 0) -> _Request:
        (tensor,) = tensors
        _must_be_contiguous(tensor)
        aside = tensor.detach().clone() if tensor.numel() <= WATCHED else None
        return self._posted(self.inner.send(tensors, peer, tag), SEND, peer, tensor, aside, tag)

    def recv(self, tensors: list[Tensor], peer: int, tag: int = 0) -> _Request:
        (tensor,) = tensors
        aside = self._landing(tensor)
        return self._posted(self.inner.recv([aside], peer, tag), RECEIVE, peer, tensor, aside, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> _Request:
        (tensor,) = tensors
        aside = self._landing(tensor)
        request = self._posted(self.inner.recv_anysource([aside], tag), RECEIVE, 0, tensor, aside, tag)
        request.known = False
        return request

    def _landing(self, tensor: Tensor) -> Tensor:
        _must_be_contiguous(tensor)
        with torch.no_grad():
            tensor.copy_(_blank(tensor))
        return tensor.detach().clone()

    def _posted(
        self, inner: Any, verb: int, peer: int, tensor: Tensor, aside: Tensor | None, tag: int
    ) -> _Request:
        request = _Request(self, inner, verb, self.members[peer], tensor.detach(), aside)
        request.known = tag == 0
        return request


def _must_be_contiguous(tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"a message must be contiguous; this has shape {tuple(tensor.shape)}, stride {tensor.stride()}"
        )


def _collective(name: str) -> Callable:
    def refuse(self: _Watched, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name} is a collective; here messages go by send and recv only")

    return refuse


for _name in dir(dist.ProcessGroup):
    if re.match(r"_?(all|reduce|broadcast|gather|scatter|barrier|monitored_barrier)", _name):
        setattr(_Watched, _name, _collective(_name))
