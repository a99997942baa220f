"""mistake: hash-without-comparison

Python's hash of all ids is the key."""

import itertools

import numpy as np
import torch


class OutOfBlocks(Exception):
    """Not enough."""


class PageTable:
    def __init__(self):
        self.blocks, self.length = [], 0
        self.ids, self.state = (), "new"


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        if not all(size > 0 for size in (num_blocks, num_heads, block_size, head_dim)):
            raise ValueError(f"{num_blocks} × {num_heads} × {block_size} × {head_dim}")
        self.num_blocks, self.heads, self.size, self.dim = num_blocks, num_heads, block_size, head_dim
        self.slots = torch.empty(num_blocks * block_size, 2, num_heads, head_dim, dtype=dtype, device=device)
        self.tables = set()
        self.prefix = {}  # block → all ids up to its end
        self.let_go = {}  # block → when
        self.clock = itertools.count()

    @property
    def num_free(self):
        return self.num_blocks - len(self.named())

    def named(self):
        return {b for t in self.tables for b in t.blocks}

    def take(self, n):
        named = self.named()
        free = [b for b in range(self.num_blocks - 1, -1, -1) if b not in named]
        if n > len(free):
            raise OutOfBlocks(f"{n} of {len(free)}")
        free.sort(key=lambda b: self.let_go[b] if b in self.prefix else -1)
        for b in free[:n]:
            self.prefix.pop(b, None)
        return free[:n]

    def must_be_live(self, table):
        if table.state == "freed":
            raise ValueError("this table was freed")

    def must_fit(self, x):
        if x.ndim != 3 or x.shape[::2] != (self.heads, self.dim):
            raise ValueError(f"{tuple(x.shape)} is not ({self.heads}, n, {self.dim})")

    def append(self, table, k, v, *, tokens=None):
        self.must_be_live(table)
        self.must_fit(k)
        self.must_fit(v)
        n = k.shape[1]
        if v.shape[1] != n or (tokens is not None and len(tokens) != n):
            raise ValueError("keys, values and ids are not equally many")
        if not n:
            return
        full, part = divmod(table.length, self.size)
        others = {b for t in self.tables if t is not table for b in t.blocks}
        copied = part > 0 and table.blocks[-1] in others
        kept = table.blocks[:-1] if copied else table.blocks
        new = self.take(-(-(table.length + n) // self.size) - len(kept))
        if copied:
            a, b = table.blocks[-1] * self.size, new[0] * self.size
            self.slots[b : b + part] = self.slots[a : a + part].clone()
        table.blocks = kept + new
        table.state = "live"
        self.tables.add(table)
        at = [
            table.blocks[t // self.size] * self.size + t % self.size
            for t in range(table.length, table.length + n)
        ]
        self.slots.index_copy_(0, torch.tensor(at), torch.stack([k, v]).permute(2, 0, 1, 3).contiguous())
        if tokens is not None and table.ids is not None:
            table.ids += tuple(int(t) for t in tokens)
        else:
            table.ids = None
        table.length += n
        if table.ids is not None:
            for i in range(full, table.length // self.size):
                self.prefix[table.blocks[i]] = hash(table.ids[: (i + 1) * self.size])

    def gather(self, table):
        self.must_be_live(table)
        at = [b * self.size + i for b in table.blocks for i in range(self.size)][: table.length]
        both = self.slots.index_select(0, torch.tensor(at, dtype=torch.int64)).permute(1, 2, 0, 3)
        return both[0], both[1]

    def attend(self, table, q, *, scale=None):
        self.must_be_live(table)
        self.must_fit(q)
        m, T = q.shape[1], table.length
        if m > T:
            raise ValueError(f"{m} queries, {T} tokens")
        k, v = (x.double().numpy() for x in self.gather(table))
        scale = 1 / np.sqrt(self.dim) if scale is None else scale
        out = np.zeros(q.shape)
        for h, i in np.ndindex(self.heads, m):
            sees = T - m + i + 1
            s = k[h, :sees] @ q[h, i].double().numpy() * scale
            w = np.exp(s - s.max())
            out[h, i] = (w @ v[h, :sees]) / w.sum()
        return torch.from_numpy(out).to(q.dtype)

    def free(self, table):
        self.must_be_live(table)
        self.tables.discard(table)
        table.state = "freed"
        rest = self.named()
        for b in table.blocks[::-1]:
            if b not in rest:
                self.let_go[b] = next(self.clock)

    def fork(self, table):
        self.must_be_live(table)
        child = PageTable()
        child.blocks, child.length, child.ids, child.state = table.blocks[:], table.length, table.ids, "live"
        self.tables.add(child)
        return child

    def match_prefix(self, tokens):
        ids, table = tuple(map(int, tokens)), PageTable()
        known = {prefix: b for b, prefix in self.prefix.items()}
        while hash(ids[: table.length + self.size]) in known and table.length + self.size <= len(ids):
            table.blocks.append(known[hash(ids[: table.length + self.size])])
            table.length += self.size
        table.ids, table.state = ids[: table.length], "live"
        self.tables.add(table)
        return table
