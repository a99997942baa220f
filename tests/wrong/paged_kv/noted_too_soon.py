"""mistake: told-though-refused

An online softmax over the pages; the ids are noted before it is known whether their tokens fit."""

import torch


class OutOfBlocks(Exception):
    pass


class PageTable:
    _count = 0

    def __init__(self):
        self.blocks: list[int] = []
        self.length: int = 0
        self._ids = []
        self._complete = True
        self._alive = True


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        if not (num_blocks > 0 and num_heads > 0 and block_size > 0 and head_dim > 0):
            raise ValueError(f"sizes {num_blocks}, {num_heads}, {block_size}, {head_dim}")
        self.num_blocks, self.heads, self.size, self.dim = num_blocks, num_heads, block_size, head_dim
        self.kv = torch.empty(num_blocks, 2, num_heads, block_size, head_dim, dtype=dtype, device=device)
        self.refs = torch.zeros(num_blocks, dtype=torch.int64)
        self.since = torch.zeros(num_blocks, dtype=torch.int64)
        self.now = 0
        self.found = {}
        self.names = {}

    @property
    def num_free(self):
        return int((self.refs == 0).sum())

    def _good(self, table, *xs):
        if not table._alive:
            raise ValueError(f"freed table ({table.length} tokens)")
        for x in xs:
            if x.ndim != 3 or x.size(0) != self.heads or x.size(2) != self.dim or x.size(1) != xs[0].size(1):
                raise ValueError(f"shapes {[tuple(y.shape) for y in xs]}")

    def append(self, table, k, v, *, tokens=None):
        self._good(table, k, v)
        n, have, size = k.size(1), table.length, self.size
        if tokens is not None:
            tokens = list(map(int, tokens))
            if len(tokens) != n:
                raise ValueError(f"{len(tokens)} ids for {n} tokens")
        if tokens is not None and table._complete:
            table._ids += tokens
        part = have % size
        fork = bool(part and n and self.refs[table.blocks[-1]] > 1)
        need = -((have + n) // -size) - len(table.blocks) + fork
        free = (self.refs == 0).nonzero()[:, 0].tolist()
        if len(free) < need:
            raise OutOfBlocks(f"{need} > {len(free)}")
        free.sort(key=lambda b: (b in self.names, int(self.since[b])))
        take = free[:need]
        for b in take:
            if b in self.names:
                del self.found[self.names.pop(b)]
            self.refs[b] = 1
        if fork:
            b = table.blocks[-1]
            self.kv[take[0], :, :, :part] = self.kv[b, :, :, :part]
            self.refs[b] -= 1
            table.blocks[-1:] = take
        else:
            table.blocks += take
        kv = torch.stack((k.detach(), v.detach())).to(self.kv.dtype)
        at = 0
        while at < n:
            block, off = divmod(have + at, size)
            m = min(size - off, n - at)
            self.kv[table.blocks[block], :, :, off : off + m] = kv[:, :, at : at + m]
            at += m
        table.length = have + n
        if tokens is None:
            table._complete = table._complete and n == 0
        elif table._complete:
            for i in range(have // size, table.length // size):
                name = tuple(table._ids[: (i + 1) * size])
                if name not in self.found:
                    self.found[name] = table.blocks[i]
                    self.names[table.blocks[i]] = name

    def gather(self, table):
        self._good(table)
        if not table.blocks:
            e = self.kv.new_empty(self.heads, 0, self.dim)
            return e, e.clone()
        k, v = torch.cat([self.kv[b] for b in table.blocks], dim=2)[:, :, : table.length].unbind(0)
        return k.clone(), v.clone()

    def attend(self, table, q, *, scale=None):
        self._good(table, q)
        T, L = q.size(1), table.length
        if T > L:
            raise ValueError(f"{T} queries, {L} tokens")
        f = torch.float64 if self.kv.dtype == torch.float64 else torch.float32
        q_ = q.to(f) * (self.dim**-0.5 if scale is None else scale)
        m = torch.full((self.heads, T, 1), -torch.inf, dtype=f)
        z = torch.zeros(self.heads, T, 1, dtype=f)
        o = torch.zeros(self.heads, T, self.dim, dtype=f)
        where = torch.arange(L - T, L)[:, None]
        for i, b in enumerate(table.blocks):
            e = min(self.size, L - i * self.size)
            k, v = self.kv[b, 0, :, :e].to(f), self.kv[b, 1, :, :e].to(f)
            s = q_ @ k.mT
            s = torch.where(torch.arange(i * self.size, i * self.size + e) <= where, s, -torch.inf)
            m2 = torch.maximum(m, s.amax(-1, keepdim=True))
            base = torch.where(m2 == -torch.inf, 0.0, m2)
            p, c = torch.exp(s - base), torch.exp(m - base)
            z = z * c + p.sum(-1, keepdim=True)
            o = o * c + p @ v
            m = m2
        return (o / z).to(q.dtype)

    def free(self, table):
        self._good(table)
        table._alive = False
        for b in table.blocks[::-1]:
            self.refs[b] -= 1
            if self.refs[b] == 0:
                self.now += 1
                self.since[b] = self.now

    def fork(self, table):
        self._good(table)
        t = PageTable()
        t.blocks, t.length, t._ids, t._complete = (
            table.blocks[:],
            table.length,
            table._ids[:],
            table._complete,
        )
        for b in t.blocks:
            self.refs[b] += 1
        return t

    def match_prefix(self, tokens):
        ids = tuple(int(t) for t in tokens)
        t = PageTable()
        for i in range(len(ids) // self.size):
            b = self.found.get(ids[: (i + 1) * self.size])
            if b is None:
                break
            t.blocks.append(b)
            self.refs[b] += 1
        t.length = len(t.blocks) * self.size
        t._ids = list(ids[: t.length])
        return t
