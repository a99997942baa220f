"""mistake: -

Sets of owners, from which free takes out anybody."""

import hashlib
import itertools
import struct

import torch


class OutOfBlocks(Exception):
    def __init__(self, need, free):
        super().__init__(f"need {need} blocks, {free} free")


_serial = itertools.count()


class PageTable:
    def __init__(self):
        self._id = next(_serial)
        self._row = ()
        self._len = 0
        self._digest = ""
        self._tail = b""
        self._dark = False
        self._gone = False

    @property
    def blocks(self):
        return list(self._row)

    @property
    def length(self):
        return self._len


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        got = (num_blocks, num_heads, block_size, head_dim)
        for size in got:
            if size <= 0:
                raise ValueError(f"sizes must be 1 or more: {got}")
        self._n, self._h, self._s, self._d = got
        probe = torch.empty(0, dtype=dtype, device=device)
        self._dtype, self._device = probe.dtype, probe.device
        self._bytes = torch.zeros(
            2, num_blocks, block_size, num_heads * head_dim * probe.itemsize, dtype=torch.uint8, device=device
        )
        self._tables = {b: set() for b in range(num_blocks)}
        self._lru = []  # cached and idle, oldest first
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._where, self._what = {}, {}

    @property
    def num_blocks(self):
        return self._n

    @property
    def num_free(self):
        return len(self._empty) + len(self._lru)

    def _need_live(self, t):
        if t._gone:
            raise ValueError(f"table {t._id} is gone")

    def _raw(self, x):
        return (
            x.detach()
            .to(self._dtype)
            .transpose(0, 1)
            .reshape(x.shape[1], self._h * self._d)
            .contiguous()
            .view(torch.uint8)
        )

    def append(self, table, k, v, *, tokens=None):
        self._need_live(table)
        if k.ndim != 3 or v.ndim != 3 or (k.shape[0], k.shape[2]) != (self._h, self._d) or k.shape != v.shape:
            raise ValueError(f"k of {tuple(k.shape)}, v of {tuple(v.shape)}")
        n = int(k.shape[1])
        if tokens is not None and len(tokens) != n:
            raise ValueError(f"{len(tokens)} ids for {n} tokens")
        packed = None if tokens is None else b"".join(struct.pack("<q", int(t)) for t in tokens)
        row, L, S = list(table._row), table._len, self._s
        cow = n > 0 and L % S > 0 and len(self._tables[row[-1]]) > 1
        need = max(0, (L + n + S - 1) // S - len(row)) + (1 if cow else 0)
        if need > self.num_free:
            raise OutOfBlocks(need, self.num_free)
        fresh = []
        for _ in range(need):
            if self._empty:
                b = self._empty.pop()
            else:
                b = self._lru.pop(0)
                del self._where[self._what.pop(b)]
            self._tables[b].add(table._id)
            fresh.append(b)
        if cow:
            old, new = row.pop(), fresh.pop(0)
            self._bytes[:, new] = self._bytes[:, old]
            self._tables[old].discard(table._id)
            row.append(new)
        row.extend(fresh)
        for raw, store in ((self._raw(k), self._bytes[0]), (self._raw(v), self._bytes[1])):
            done = 0
            while done < n:
                b, o = row[(L + done) // S], (L + done) % S
                m = min(S - o, n - done)
                store[b, o : o + m] = raw[done : done + m]
                done += m
        table._row, table._len = tuple(row), L + n
        if packed is None:
            table._dark = table._dark or n > 0
        elif not table._dark:
            buf = table._tail + packed
            first = L // S
            while len(buf) >= 8 * S:
                table._digest = hashlib.blake2b(table._digest.encode() + buf[: 8 * S]).hexdigest()
                buf = buf[8 * S :]
                if table._digest not in self._where:
                    self._where[table._digest] = row[first]
                    self._what[row[first]] = table._digest
                first += 1
            table._tail = buf

    def gather(self, table):
        self._need_live(table)
        out = []
        for i in (0, 1):
            raw = self._bytes[i][list(table._row)].reshape(-1, self._bytes.shape[-1])[: table._len]
            x = (
                raw.contiguous().view(self._dtype)
                if table._len
                else raw.new_empty(0, self._h * self._d).to(self._dtype)
            )
            out.append(x.reshape(table._len, self._h, self._d).transpose(0, 1).contiguous())
        return out[0], out[1]

    def attend(self, table, q, *, scale=None):
        self._need_live(table)
        if q.ndim != 3 or (q.shape[0], q.shape[2]) != (self._h, self._d):
            raise ValueError(f"q of {tuple(q.shape)}")
        T, L = q.shape[1], table._len
        if T > L:
            raise ValueError(f"{T} queries for {L} tokens")
        k, v = (x.double() for x in self.gather(table))
        out = q.new_empty(q.shape)
        c = self._d**-0.5 if scale is None else float(scale)
        for t in range(T):
            end = L - T + t + 1
            s = (k[:, :end] * q[:, t : t + 1].double()).sum(-1) * c
            a = torch.exp(s - torch.logsumexp(s, -1, keepdim=True))
            out[:, t] = (a[..., None] * v[:, :end]).sum(1).to(q.dtype)
        return out

    def free(self, table):
        self._need_live(table)
        table._gone = True
        for b in table._row[::-1]:
            if len(self._tables[b]) > 1:
                self._tables[b].pop()
            else:
                self._tables[b].clear()
            if not self._tables[b]:
                (self._lru if b in self._what else self._empty).append(b)

    def fork(self, table):
        self._need_live(table)
        t = PageTable()
        t._row, t._len, t._digest, t._tail, t._dark = (
            table._row,
            table._len,
            table._digest,
            table._tail,
            table._dark,
        )
        for b in t._row:
            self._tables[b].add(t._id)
        return t

    def match_prefix(self, tokens):
        t = PageTable()
        row = []
        ids = [int(x) for x in tokens]
        for i in range(len(ids) // self._s):
            d = hashlib.blake2b(
                t._digest.encode()
                + b"".join(struct.pack("<q", x) for x in ids[i * self._s : (i + 1) * self._s])
            ).hexdigest()
            if d not in self._where:
                break
            b = self._where[d]
            if b in self._lru:
                self._lru.remove(b)
            self._tables[b].add(t._id)
            row.append(b)
            t._digest = d
        t._row, t._len = tuple(row), len(row) * self._s
        return t
