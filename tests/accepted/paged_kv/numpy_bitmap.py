"""Counts, times and owners as numpy arrays; K and V in two tensors laid out by slot; float64 attention."""

import hashlib

import numpy as np
import torch


class OutOfBlocks(Exception):
    pass


class PageTable:
    def __init__(self):
        self.array = np.zeros(0, dtype=np.int64)
        self.length = 0
        self.told = []
        self.open = True

    @property
    def blocks(self):
        return self.array.tolist()


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        if num_blocks < 1 or num_heads < 1 or block_size < 1 or head_dim < 1:
            raise ValueError(f"{num_blocks=} {num_heads=} {block_size=} {head_dim=}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.wanted = (num_heads, head_dim)
        slots = num_blocks * block_size
        self.k = torch.full((slots, num_heads, head_dim), float("nan"), dtype=dtype, device=device)
        self.v = self.k.clone()
        self.refs = np.zeros(num_blocks, dtype=np.int64)
        self.cached_at = np.full(num_blocks, -1, dtype=np.int64)  # −1: nothing cached
        self.time = 0
        self.names, self.where = [b""] * num_blocks, {}

    @property
    def num_free(self):
        return int((self.refs == 0).sum())

    def _take(self, n):
        free = np.flatnonzero(self.refs == 0)
        if n > len(free):
            raise OutOfBlocks(f"{n} of {len(free)}")
        chosen = free[np.argsort(self.cached_at[free], kind="stable")][:n]
        for block in chosen:
            if self.names[block]:
                del self.where[self.names[block]]
                self.names[block] = b""
        self.cached_at[chosen] = -1
        self.refs[chosen] = 1
        return chosen

    def _slots(self, table, start, stop):
        at = np.arange(start, stop)
        return torch.from_numpy(table.array[at // self.block_size] * self.block_size + at % self.block_size)

    def _require(self, table, *tensors):
        if not table.open:
            raise ValueError("the table was freed")
        for x in tensors:
            if x.ndim != 3 or (x.shape[0], x.shape[2]) != self.wanted:
                raise ValueError(f"{tuple(x.shape)} does not fit {self.wanted}")

    def append(self, table, k, v, *, tokens=None):
        self._require(table, k, v)
        if k.shape != v.shape:
            raise ValueError(f"{k.shape} is not {v.shape}")
        n = k.size(1)
        if tokens is not None and len(tokens) != n:
            raise ValueError(f"{tokens} for {n}")
        start, stop = table.length, table.length + n
        missing = -(-stop // self.block_size) - len(table.array)
        if n and start % self.block_size and self.refs[table.array[-1]] > 1:
            taken = self._take(missing + 1)
            src, dst = int(table.array[-1]) * self.block_size, int(taken[0]) * self.block_size
            for store in (self.k, self.v):
                store[dst : dst + self.block_size] = store[src : src + self.block_size]
            self.refs[table.array[-1]] -= 1
            table.array = np.concatenate([table.array[:-1], taken])
        else:
            table.array = np.concatenate([table.array, self._take(missing)])
        table.length = stop
        slots = self._slots(table, start, stop)
        self.k[slots] = k.transpose(0, 1)
        self.v[slots] = v.transpose(0, 1)
        if tokens is None or len(table.told) < start:
            return
        table.told = table.told + [int(t) for t in tokens]
        for i in range(start // self.block_size, stop // self.block_size):
            text = ",".join(map(str, table.told[: (i + 1) * self.block_size]))
            name = hashlib.blake2b(text.encode()).digest()
            if name not in self.where:
                self.where[name] = int(table.array[i])
                self.names[int(table.array[i])] = name

    def gather(self, table):
        self._require(table)
        slots = self._slots(table, 0, table.length)
        return self.k[slots].transpose(0, 1), self.v[slots].transpose(0, 1)

    def attend(self, table, q, *, scale=None):
        self._require(table, q)
        if q.shape[1] > table.length:
            raise ValueError(f"{q.shape[1]} queries, {table.length} tokens")
        k, v = (x.double() for x in self.gather(table))
        out = torch.empty_like(q)
        factor = self.wanted[1] ** -0.5 if scale is None else scale
        for i in range(q.shape[1]):
            upto = table.length - q.shape[1] + i + 1
            s = (k[:, :upto] * q[:, i : i + 1].double()).sum(-1) * factor
            out[:, i] = (s.softmax(-1)[..., None] * v[:, :upto]).sum(1)
        return out

    def free(self, table):
        self._require(table)
        table.open = False
        for block in reversed(table.blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0 and self.names[block]:
                self.time += 1
                self.cached_at[block] = self.time

    def fork(self, table):
        self._require(table)
        child = PageTable()
        child.array, child.length, child.told = table.array.copy(), table.length, list(table.told)
        self.refs[child.array] += 1
        return child

    def match_prefix(self, tokens):
        table, size = PageTable(), self.block_size
        found = []
        while (len(found) + 1) * size <= len(tokens):
            text = ",".join(str(int(t)) for t in tokens[: (len(found) + 1) * size])
            block = self.where.get(hashlib.blake2b(text.encode()).digest())
            if block is None:
                break
            found.append(block)
        table.array = np.array(found, dtype=np.int64)
        self.refs[table.array] += 1
        table.length = len(found) * size
        table.told = [int(t) for t in tokens[: table.length]]
        return table
