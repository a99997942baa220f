"""A rank's side: a worker that finds the others and does as it is told, on a process group that is watched."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from dojo.ranks.meeting import Meeting, run_name, tcp_store
from dojo.ranks.wire import (
    NOTHING,
    RECEIVE,
    SEND,
    UNKNOWN,
    Message,
    Packed,
    Raised,
    Reply,
    pack,
    read,
    storage_bytes,
    write,
)

if TYPE_CHECKING:
    from dojo.ranks.pool import Pool

WATCHED = 1 << 16
"""A buffer of up to so many elements is compared before and after it is sent."""


class Rank:
    """A worker: finds the others, then does as it is told until its pipe closes."""

    def __init__(
        self, pool: Pool, rank: int, commands: int, answers: int, trace: Any, meeting: Meeting | None
    ):
        self.pool, self.rank, self.size, self.ledger = pool, rank, pool.size, pool.ledger
        self.commands, self.answers = commands, answers
        self.meeting = meeting
        self.device: Any = None
        self.log: list[Request] = []
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
            write(self.answers, "ready")
            with contextlib.suppress(EOFError):
                while True:
                    what, *rest = read(self.commands)
                    write(self.answers, self.do(what, *rest))

    def do(self, what: str, *rest: Any) -> Any:
        if what == "group":
            return self.group(*rest)
        if what == "load":
            return self.load(*rest)
        reply = self.call("cpu", *rest)
        if self.gpu and isinstance(reply, Reply):
            fast = self.call("cuda", *rest)
            if isinstance(fast, Raised):
                return fast
            reply.value = fast.value
        if isinstance(reply, Reply) and not isinstance(reply.value, Packed):
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
            store = dist.PrefixStore(f"{run_name()}/{self.pool.generation}", tcp_store(host=False))
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
        return Watched(self, dist.ProcessGroupGloo(store, rank, size, options), rank, size)

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
    ) -> Reply | Raised:
        groups = self.groups if device == "cpu" else self.fast
        everyone, self.log = groups[tuple(range(world))], []
        group = None if members is None else groups[members]
        for slot, each in enumerate((everyone, group)):
            if isinstance(each, Watched):
                each.slot = 0 if each is everyone else slot
        args = tuple(a.tensor(device) if isinstance(a, Packed) else a for a in packed)
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
            return Raised(type(error).__name__, str(error), self.own_line(error), self.messages())
        finally:
            dist.GroupMember.WORLD = self.whole
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
        tensors = [(a, p) for a, p in zip(args, packed, strict=True) if isinstance(a, Tensor)]
        changed = any(storage_bytes(a) != p.data for a, p in tensors)
        shares = isinstance(value, Tensor) and value.numel() > 0 and any(
            value.untyped_storage().data_ptr() == a.untyped_storage().data_ptr() for a, _ in tensors
        )  # fmt: skip
        left = [Packed.of(a.cpu()) if isinstance(a, Tensor) else a for a in args] if changed else None
        return Reply(pack(value), left, shares, self.messages())

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


def die_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


class Request:
    """What send and recv return: a handle on one message."""

    def __init__(
        self, group: Watched, inner: Any, verb: int, peer: int, buffer: Tensor, aside: Tensor | None
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


class Watched(dist.ProcessGroup):
    """A process group that hands messages to gloo and keeps a log of them. It has no collectives."""

    def __init__(self, keeper: Rank, inner: Any, rank: int, size: int):
        super().__init__(rank, size)
        self.keeper, self.inner = keeper, inner
        self.members: tuple[int, ...] = tuple(range(size))
        self.slot = 0

    def getBackendName(self) -> str:
        return "gloo"

    def send(self, tensors: list[Tensor], peer: int, tag: int = 0) -> Request:
        (tensor,) = tensors
        _must_be_contiguous(tensor)
        aside = tensor.detach().clone() if tensor.numel() <= WATCHED else None
        return self._posted(self.inner.send(tensors, peer, tag), SEND, peer, tensor, aside, tag)

    def recv(self, tensors: list[Tensor], peer: int, tag: int = 0) -> Request:
        (tensor,) = tensors
        aside = self._landing(tensor)
        return self._posted(self.inner.recv([aside], peer, tag), RECEIVE, peer, tensor, aside, tag)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> Request:
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
    ) -> Request:
        request = Request(self, inner, verb, self.members[peer], tensor.detach(), aside)
        request.known = tag == 0
        return request


def _must_be_contiguous(tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"a message must be contiguous; this has shape {tuple(tensor.shape)}, stride {tensor.stride()}"
        )


def _collective(name: str) -> Callable:
    def refuse(self: Watched, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name} is a collective; here messages go by send and recv only")

    return refuse


for _name in dir(dist.ProcessGroup):
    if re.match(r"_?(all|reduce|broadcast|gather|scatter|barrier|monitored_barrier)", _name):
        setattr(Watched, _name, _collective(_name))
