"""Block objects with counts and a deque of free ones; token by token writes; online softmax over the blocks."""

import math
from collections import deque

import torch


class OutOfBlocks(Exception):
    pass


class Block:
    def __init__(self, id):
        self.id, self.owners, self.key = id, 0, None


class PageTable:
    def __init__(self):
        self.held = []
        self.length = 0
        self.ids = []
        self.state = "live"

    @property
    def blocks(self):
        return [block.id for block in self.held]


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        for name, size in zip(
            "blocks heads block_size head_dim".split(),
            (num_blocks, num_heads, block_size, head_dim),
            strict=True,
        ):
            if size <= 0:
                raise ValueError(f"{name} = {size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.shape = num_heads, head_dim
        self.keys = torch.zeros(num_blocks, block_size, num_heads, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.fresh = deque(Block(i) for i in range(num_blocks))
        self.stale = deque()  # cached, oldest left
        self.index = {}

    @property
    def num_free(self):
        return len(self.fresh) + len(self.stale)

    def alive(self, table):
        if table.state != "live":
            raise ValueError("table was freed")

    def pop(self):
        if self.fresh:
            return self.fresh.popleft()
        block = self.stale.popleft()
        if self.index.get(block.key) is block:
            del self.index[block.key]
        block.key = None
        return block

    def append(self, table, k, v, *, tokens=None):
        self.alive(table)
        heads, dim = self.shape
        if k.dim() != 3 or k.shape[0] != heads or k.shape[2] != dim or v.shape != k.shape:
            raise ValueError(f"{k.shape} {v.shape}")
        n = k.shape[1]
        if tokens is not None and len(tokens) != n:
            raise ValueError(f"{n} tokens, {len(tokens)} ids")
        if n == 0:
            return
        partly = table.length % self.block_size != 0
        copying = partly and table.held[-1].owners > 1
        room = self.block_size - table.length % self.block_size if partly else 0
        need = math.ceil(max(0, n - room) / self.block_size) + int(copying)
        if need > self.num_free:
            raise OutOfBlocks(need)
        if copying:
            old, new = table.held[-1], self.pop()
            self.keys[new.id].copy_(self.keys[old.id])
            self.values[new.id].copy_(self.values[old.id])
            old.owners -= 1
            new.owners = 1
            table.held[-1] = new
        told = tokens is not None and table.ids is not None
        for t in range(n):
            slot = table.length % self.block_size
            if slot == 0:
                block = self.pop()
                block.owners = 1
                table.held.append(block)
            block = table.held[-1]
            self.keys[block.id, slot] = k[:, t]
            self.values[block.id, slot] = v[:, t]
            table.length += 1
            if told:
                table.ids.append(int(tokens[t]))
                if slot == self.block_size - 1:
                    block.key = tuple(table.ids)
                    self.index[block.key] = block  # the newest of several
        if not told:
            table.ids = None

    def gather(self, table):
        self.alive(table)
        heads, dim = self.shape
        out = []
        for store in (self.keys, self.values):
            rows = [store[b.id] for b in table.held]
            whole = torch.cat(rows) if rows else store.new_zeros(0, heads, dim)
            out.append(whole[: table.length].transpose(0, 1).clone())
        return tuple(out)

    def attend(self, table, q, *, scale=None):
        self.alive(table)
        heads, dim = self.shape
        if q.dim() != 3 or q.shape[0] != heads or q.shape[2] != dim or q.shape[1] > table.length:
            raise ValueError(f"{q.shape} for {table.length}")
        scale = 1 / math.sqrt(dim) if scale is None else scale
        wide = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
        m = wide.new_full((*q.shape[:2], 1), -math.inf)
        l, o = torch.zeros_like(m), torch.zeros_like(wide)
        mine = torch.arange(q.shape[1])[:, None] + table.length - q.shape[1]
        for i, block in enumerate(table.held):
            filled = min(self.block_size, table.length - i * self.block_size)
            k = self.keys[block.id, :filled].transpose(0, 1).to(wide.dtype)
            v = self.values[block.id, :filled].transpose(0, 1).to(wide.dtype)
            s = (wide @ k.transpose(1, 2)) * scale
            s = s.masked_fill(torch.arange(filled) + i * self.block_size > mine, -math.inf)
            top = torch.maximum(m, s.amax(-1, keepdim=True))
            safe = top.masked_fill(top == -math.inf, 0)
            p, shrink = (s - safe).exp(), (m - safe).exp()
            l, o, m = l * shrink + p.sum(-1, keepdim=True), o * shrink + p @ v, top
        return (o / l).to(q.dtype)

    def free(self, table):
        self.alive(table)
        table.state = "freed"
        while table.held:
            block = table.held.pop()
            block.owners -= 1
            if block.owners:
                continue
            if block.key is not None and self.index.get(block.key) is block:
                self.stale.append(block)
            else:
                block.key = None
                self.fresh.append(block)
        table.length = 0

    def fork(self, table):
        self.alive(table)
        child = PageTable()
        child.held, child.length = list(table.held), table.length
        child.ids = None if table.ids is None else list(table.ids)
        for block in child.held:
            block.owners += 1
        return child

    def match_prefix(self, tokens):
        table, tokens = PageTable(), [int(t) for t in tokens]
        while table.length + self.block_size <= len(tokens):
            block = self.index.get(tuple(tokens[: table.length + self.block_size]))
            if block is None:
                break
            if block.owners == 0:
                self.stale.remove(block)
            block.owners += 1
            table.held.append(block)
            table.length += self.block_size
        table.ids = tokens[: table.length]
        return table
