"""A heap of free ids, one small tensor a block made when it is first needed, and a trie of blocks by their ids.

Attention gathers, and keeps every intermediate in the pool's dtype."""

import heapq

import torch


class OutOfBlocks(Exception):
    """Not enough blocks."""


class Node:
    def __init__(self, parent=None, ids=None, block=None):
        self.parent, self.ids, self.block, self.children = parent, ids, block, {}


class PageTable:
    def __init__(self):
        self.blocks, self.length, self.tail, self.node, self.freed = [], 0, [], None, False


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        if not all(n > 0 for n in (num_blocks, num_heads, block_size, head_dim)):
            raise ValueError((num_blocks, num_heads, block_size, head_dim))
        self.num_blocks, self.heads, self.size, self.dim = num_blocks, num_heads, block_size, head_dim
        self.options = {"dtype": dtype, "device": device}
        self.data = {}
        self.heap = list(range(num_blocks))
        self.count = [0] * num_blocks
        self.root = Node()
        self.node_of = {}
        self.lru = {}
        self.clock = 0

    @property
    def num_free(self):
        return sum(c == 0 for c in self.count)

    def _live(self, table):
        if table.freed:
            raise ValueError("freed")

    def _shape(self, x):
        if x.ndim != 3 or (x.shape[0], x.shape[2]) != (self.heads, self.dim):
            raise ValueError(f"{tuple(x.shape)}")

    def _new(self):
        if not self.heap:
            oldest = min(self.lru, key=self.lru.get)
            del self.lru[oldest]
            node = self.node_of.pop(oldest)
            del node.parent.children[node.ids]
            heapq.heappush(self.heap, oldest)
        block = heapq.heappop(self.heap)
        self.count[block] = 1
        self.data[block] = torch.empty(2, self.heads, self.size, self.dim, **self.options)
        return block

    def append(self, table, k, v, *, tokens=None):
        self._live(table)
        self._shape(k)
        self._shape(v)
        n = k.shape[1]
        if v.shape[1] != n or (tokens is not None and len(tokens) != n):
            raise ValueError(f"{k.shape} {v.shape} {tokens}")
        used = table.length % self.size
        copies = n > 0 and used > 0 and self.count[table.blocks[-1]] > 1
        need = (table.length + n + self.size - 1) // self.size - len(table.blocks)
        if need + copies > self.num_free:
            raise OutOfBlocks(f"{need + copies} > {self.num_free}")
        if copies:
            old = table.blocks[-1]
            table.blocks[-1] = self._new()
            self.data[table.blocks[-1]].copy_(self.data[old])
            self.count[old] -= 1
        first = table.length // self.size
        for _ in range(need):
            table.blocks.append(self._new())
        done = 0
        while done < n:
            at = (table.length + done) % self.size
            take = min(self.size - at, n - done)
            block = self.data[table.blocks[(table.length + done) // self.size]]
            block[0, :, at : at + take] = k[:, done : done + take]
            block[1, :, at : at + take] = v[:, done : done + take]
            done += take
        table.length += n
        if n == 0:
            return
        if tokens is None or table.tail is None:
            table.tail = None
            return
        table.tail.extend(tokens)
        node = table.node or self.root
        for i in range(first, table.length // self.size):
            ids = tuple(table.tail[: self.size])
            table.tail = table.tail[self.size :]
            if node is not None and (node is self.root or node.block is not None):
                if ids not in node.children:
                    node.children[ids] = Node(node, ids, table.blocks[i])
                    self.node_of[table.blocks[i]] = node.children[ids]
                node = node.children[ids]
        table.node = node

    def gather(self, table):
        self._live(table)
        if not table.blocks:
            empty = torch.empty(2, self.heads, 0, self.dim, **self.options)
            return empty[0], empty[1]
        whole = torch.cat([self.data[b] for b in table.blocks], dim=2)[:, :, : table.length]
        return whole[0], whole[1]

    def attend(self, table, q, *, scale=None):
        self._live(table)
        self._shape(q)
        if q.shape[1] > table.length:
            raise ValueError(f"{q.shape[1]} > {table.length}")
        k, v = self.gather(table)
        s = torch.einsum("hqd,hkd->hqk", q, k) * (self.dim**-0.5 if scale is None else scale)
        rows = torch.arange(table.length - q.shape[1], table.length)
        s = torch.where(torch.arange(table.length) <= rows[:, None], s, float("-inf"))
        return torch.einsum("hqk,hkd->hqd", s.softmax(-1), v)

    def free(self, table):
        self._live(table)
        table.freed = True
        for block in table.blocks[::-1]:
            self.count[block] -= 1
            if self.count[block] == 0:
                self.clock += 1
                if block in self.node_of:
                    self.lru[block] = self.clock
                else:
                    heapq.heappush(self.heap, block)

    def fork(self, table):
        self._live(table)
        other = PageTable()
        other.blocks = table.blocks[:]
        other.length, other.node = table.length, table.node
        other.tail = table.tail and table.tail[:] if table.tail is not None else None
        other.tail = [] if table.tail == [] else other.tail
        for block in table.blocks:
            self.count[block] += 1
        return other

    def match_prefix(self, tokens):
        table, node = PageTable(), self.root
        for at in range(0, len(tokens) // self.size * self.size, self.size):
            node = node.children.get(tuple(tokens[at : at + self.size]))
            if node is None:
                break
            table.node = node
            table.blocks.append(node.block)
            self.count[node.block] += 1
            self.lru.pop(node.block, None)
        table.length = len(table.blocks) * self.size
        return table
