"""A tree of cached blocks: a node goes with its block, and what a live twin hangs below it is lost to search."""

import heapq
import itertools
import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor


class OutOfBlocks(Exception):
    pass


class Node:
    __slots__ = ("children", "key", "parent", "block", "stamp", "__weakref__")

    def __init__(self, parent=None, key=None, block=-1):
        self.parent, self.key, self.block = parent, key, block
        self.children = {}
        self.stamp = -1


class PageTable:
    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._len = 0
        self._tail: list[int] = []
        self._node: Optional[Node] = None
        self._told = True
        self._freed = False

    blocks = property(lambda self: tuple(self._blocks))
    length = property(lambda self: self._len)


class KV(NamedTuple):
    k: Tensor
    v: Tensor


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        sizes = dict(num_blocks=num_blocks, num_heads=num_heads, block_size=block_size, head_dim=head_dim)
        if bad := {k: s for k, s in sizes.items() if s < 1}:
            raise ValueError(bad)
        self.num_blocks = num_blocks
        self._h, self._s, self._d = num_heads, block_size, head_dim
        self._kv = torch.zeros(num_blocks, 2, num_heads, block_size, head_dim, dtype=dtype, device=device)
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks))
        self._node_of = {}
        self._lru = []
        self._n_idle = 0
        self._clock = itertools.count()
        self._root = Node()

    @property
    def num_free(self):
        return len(self._free) + self._n_idle

    def _alive(self, t):
        if t._freed:
            raise ValueError("use of a freed table")

    def _alloc(self):
        if self._free:
            b = self._free.pop()
        else:
            while True:
                stamp, b = heapq.heappop(self._lru)
                node = self._node_of.get(b)
                if node is not None and self._refs[b] == 0 and node.stamp == stamp:
                    break
            self._n_idle -= 1
            del self._node_of[b]
            if node.parent.children.get(node.key) is node:
                del node.parent.children[node.key]
        self._refs[b] = 1
        return b

    def _acquire(self, b):
        if self._refs[b] == 0:
            self._n_idle -= 1
        self._refs[b] += 1

    def _release(self, b):
        self._refs[b] -= 1
        if self._refs[b]:
            return
        if b in self._node_of:
            self._node_of[b].stamp = next(self._clock)
            heapq.heappush(self._lru, (self._node_of[b].stamp, b))
            self._n_idle += 1
        else:
            self._free.append(b)

    def append(self, table, k, v, *, tokens=None):
        self._alive(table)
        want = (self._h, k.size(-2) if k.dim() == 3 else -1, self._d)
        if k.shape != want or v.shape != want:
            raise ValueError((k.shape, v.shape))
        n = want[1]
        if tokens is not None and len(tokens) != n:
            raise ValueError("tokens")
        if not n:
            return
        off = table._len % self._s
        cow = int(off > 0 and self._refs[table._blocks[-1]] > 1)
        fresh = math.ceil((table._len + n) / self._s) - len(table._blocks)
        if fresh + cow > self.num_free:
            raise OutOfBlocks(fresh + cow)
        if cow:
            old, new = table._blocks[-1], self._alloc()
            self._kv[new].copy_(self._kv[old].clone())
            self._release(old)
            table._blocks[-1] = new
        first = len(table._blocks) - (off > 0)
        table._blocks += [self._alloc() for _ in range(fresh)]
        both = torch.stack([k.detach(), v.detach()])
        done = 0
        for b in table._blocks[first:]:
            m = min(self._s - off, n - done)
            self._kv[b, :, :, off : off + m] = both[:, :, done : done + m]
            done, off = done + m, 0
        table._len += n
        if tokens is None:
            table._told = False
        if not table._told:
            return
        table._tail.extend(int(t) for t in tokens)
        node = table._node or self._root
        while len(table._tail) >= self._s:
            key = tuple(table._tail[: self._s])
            del table._tail[: self._s]
            b = table._blocks[first]
            first += 1
            nxt = node.children.get(key)
            if nxt is None:
                nxt = Node(node, key, b)
                node.children[key] = nxt
                self._node_of[b] = nxt
            node = nxt
        table._node = node

    def gather(self, table):
        self._alive(table)
        x = self._kv[list(table._blocks)].permute(1, 2, 0, 3, 4)
        x = x.reshape(2, self._h, -1, self._d)[:, :, : table._len]
        return KV(*x.contiguous().unbind(0))

    def attend(self, table, q, *, scale=None):
        k, v = self.gather(table)
        if q.dim() != 3 or q.size(0) != self._h or q.size(2) != self._d or q.size(1) > k.size(1):
            raise ValueError(q.shape)
        wide = torch.promote_types(q.dtype, torch.float32)
        s = torch.einsum("hqd,hkd->hqk", q.to(wide), k.to(wide)) * (
            scale if scale is not None else self._d**-0.5
        )
        i = torch.arange(q.size(1))[:, None] + (k.size(1) - q.size(1))
        s.masked_fill_((torch.arange(k.size(1)) > i).to(s.device), -torch.inf)
        return torch.einsum("hqk,hkd->hqd", s.softmax(-1), v.to(wide)).to(q.dtype)

    def free(self, table):
        self._alive(table)
        for b in reversed(table._blocks):
            self._release(b)
        table._freed = True
        table._blocks = []
        table._node = None

    def fork(self, table):
        self._alive(table)
        new = PageTable()
        new._blocks, new._len, new._tail = list(table._blocks), table._len, list(table._tail)
        new._node, new._told = table._node, table._told
        list(map(self._acquire, new._blocks))
        return new

    def match_prefix(self, tokens):
        t, node, ids = PageTable(), self._root, [int(x) for x in tokens]
        for i in range(len(ids) // self._s):
            node = node.children.get(tuple(ids[i * self._s : (i + 1) * self._s]))
            if node is None:
                break
            self._acquire(node.block)
            t._blocks.append(node.block)
            t._node = node
        t._len = len(t._blocks) * self._s
        return t
