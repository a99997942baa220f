"""What the judge and its ranks tell each other: messages, calls and answers, and who waits for whom."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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


# --- through the pipes ---------------------------------------------------------------------------------


@dataclass
class Packed:
    """A tensor on its way: the bytes of its storage, and how it lies in them."""

    data: bytes
    dtype: torch.dtype
    layout: tuple

    @staticmethod
    def of(x: Tensor) -> Packed:
        return Packed(storage_bytes(x), x.dtype, (x.storage_offset(), tuple(x.shape), x.stride()))

    def tensor(self, device: str = "cpu") -> Tensor:
        flat = torch.empty(0, dtype=torch.uint8)
        if self.data:
            flat = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
        storage = flat.to(device).untyped_storage()
        return torch.empty(0, dtype=self.dtype, device=device).set_(storage, *self.layout)


def storage_bytes(x: Tensor) -> bytes:
    """The whole storage that x lies in."""
    return torch.empty(0, dtype=torch.uint8).set_(x.detach().cpu().untyped_storage()).numpy().tobytes()


def pack(value: Any) -> Any:
    return Packed.of(value.detach().cpu().contiguous().clone()) if isinstance(value, Tensor) else value


@dataclass
class Reply:
    """What a worker says of a call. ``args`` is None if the arguments are as they were."""

    value: Any = None
    args: list | None = None
    shares: bool = False
    messages: list[Message] = field(default_factory=list)


@dataclass
class Raised:
    kind: str
    text: str
    line: int
    messages: list[Message] = field(default_factory=list)


@dataclass
class Ended:
    """A worker's process is gone."""

    how: str
    line: int


@dataclass
class Waits:
    """A worker does not answer."""

    where: str
    line: int


def write(fd: int, thing: Any) -> None:
    data = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    data = memoryview(struct.pack("q", len(data)) + data)
    while data:
        data = data[os.write(fd, data) :]


def read(fd: int) -> Any:
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


# --- in shared memory ----------------------------------------------------------------------------------


class Ledger:
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
