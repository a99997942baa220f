"""Bulk allocation and free of a paged cache's blocks, beside the published algorithms of two engines.

    python -m benchmarks.paged_kv

A round allocates 64 blocks for one sequence and frees them again; each block allocated and each block
freed is one operation. The two engines are GPU packages, so what runs here is a minimal restatement of
their bookkeeping, written from its description and not their code:

- nano-vllm's block manager: a deque of free ids, a set of used ids, and an object for each block whose
  count, hash and ids are reset when it is allocated; blocks are taken and given back one at a time.
- vLLM's free queue: block objects that are themselves the links of a doubly linked list, so that a cached
  block can leave it in the middle; n blocks are cut off the front and hung on at the back in one go.

The reference runs through its own ``_allocate`` and ``free``, a new page table a round included. Prefix
caching is idle in all of them. Figures are medians over interleaved repeats, so that the ratios hold even
where the machine is shared; the garbage collector is off while the clock runs.
"""

import gc
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import torch

from reference.paged_kv import BlockPool, PageTable

BULK, BLOCKS, ROUNDS, REPEATS = 64, 4096, 100, 60
TARGET = 4.0


class Record:
    """What nano-vllm's description keeps of a block."""

    def __init__(self, number: int) -> None:
        self.number, self.owners, self.digest, self.tokens = number, 0, None, []

    def start(self) -> None:
        self.owners, self.digest, self.tokens = 1, None, []


class DequeManager:
    """A deque of free ids, a set of used ids, one block at a time."""

    def __init__(self) -> None:
        self.records = [Record(i) for i in range(BLOCKS)]
        self.free_ids, self.used_ids = deque(range(BLOCKS)), set()
        self.cached: dict[bytes, int] = {}

    def take(self) -> int:
        number = self.free_ids.popleft()
        record = self.records[number]
        if record.digest is not None and self.cached.get(record.digest) == number:
            del self.cached[record.digest]
        record.start()
        self.used_ids.add(number)
        return number

    def give(self, number: int) -> None:
        self.used_ids.remove(number)
        self.free_ids.append(number)

    def round(self) -> None:
        table = []
        for _ in range(BULK):
            table.append(self.take())
        for number in reversed(table):
            record = self.records[number]
            record.owners -= 1
            if record.owners == 0:
                self.give(number)
        table.clear()


class Link:
    """A block that is its own link in the queue of free ones."""

    __slots__ = ("after", "before", "digest", "number", "owners")

    def __init__(self, number: int) -> None:
        self.number, self.owners, self.digest = number, 0, None
        self.before = self.after = None


class LinkedQueue:
    """A doubly linked list of free blocks between two sentinels, cut and hung on in bulk."""

    def __init__(self) -> None:
        links = [Link(i) for i in range(-1, BLOCKS + 1)]
        for one, other in pairwise(links):
            one.after, other.before = other, one
        self.head, self.tail, self.count = links[0], links[-1], BLOCKS

    def cut(self, n: int) -> list[Link]:
        taken, link = [], self.head.after
        for _ in range(n):
            taken.append(link)
            following = link.after
            link.before = link.after = None
            link = following
        self.head.after, link.before = link, self.head
        self.count -= n
        return taken

    def hang(self, links: list[Link]) -> None:
        last = self.tail.before
        for link in links:
            last.after, link.before = link, last
            last = link
        last.after, self.tail.before = self.tail, last
        self.count += len(links)

    def round(self) -> None:
        table = self.cut(BULK)
        for link in table:
            link.owners += 1
        back = []
        for link in reversed(table):
            link.owners -= 1
            if link.owners == 0:
                back.append(link)
        self.hang(back)


def reference_round(pool: BlockPool) -> Callable[[], None]:
    def round_() -> None:
        table = PageTable()
        table.blocks = pool._allocate(BULK)
        pool.free(table)

    return round_


def measure(rounds: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median M operations a second of each, in turns."""
    seen: dict[str, list[float]] = {name: [] for name in rounds}
    gc.collect()
    gc.disable()
    try:
        for _ in range(REPEATS):
            for name, round_ in rounds.items():
                started = time.perf_counter()
                for _ in range(ROUNDS):
                    round_()
                seen[name].append(2 * BULK * ROUNDS / (time.perf_counter() - started) / 1e6)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    peer = "nano-vllm's block manager, restated"
    speeds = measure(
        {
            "reference": reference_round(BlockPool(BLOCKS, 1, 1, 1)),
            peer: DequeManager().round,
            "vLLM's free queue, restated": LinkedQueue().round,
        }
    )
    print(f"Bulk allocate and free, {BULK} of {BLOCKS} blocks a round, median of {REPEATS} × {ROUNDS} rounds")
    for name, speed in speeds.items():
        print(f"  {name:38s}{speed:8.1f} M ops/s{speed / speeds[peer]:8.1f} × nano-vllm's")
    ratio = speeds["reference"] / speeds[peer]
    print(f"  target: at least {TARGET:g} × nano-vllm's; got {ratio:.1f} ×")
    print(f"  Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    print("  command: python -m benchmarks.paged_kv")


if __name__ == "__main__":
    main()
