"""mistake: only-keys-are-copied

A tensor a block, zeros when new, so that what the copy lacks is not what lay there before."""

import itertools
from collections import defaultdict, deque

import torch


class OutOfBlocks(Exception):
    pass


class Block:
    __slots__ = ("number", "kv", "holders", "key", "let_go")

    def __init__(self, number):
        self.number, self.kv, self.holders, self.key, self.let_go = number, None, set(), None, -1


class PageTable:
    _serial = itertools.count()

    def __init__(self):
        self.me, self.length, self.pages = next(PageTable._serial), 0, []
        self.told, self.over = [], False
        self.complete = True

    @property
    def blocks(self):
        return [p.number for p in self.pages]

    def use(self):
        if self.over:
            raise ValueError("the table was freed")
        return self


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        self._sizes = num_heads, block_size, head_dim
        if not all(s > 0 for s in (num_blocks, *self._sizes)):
            raise ValueError("sizes must be positive")
        self._all = [Block(i) for i in range(num_blocks)]
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._clock = itertools.count()
        self._by_key = defaultdict(list)

    num_blocks = property(lambda self: len(self._all))
    num_free = property(lambda self: sum(not b.holders for b in self._all))

    def _new(self, table):
        free = [b for b in self._all if not b.holders]
        b = next((b for b in free if b.key is None), None) or min(free, key=lambda b: b.let_go)
        if b.key is not None:
            self._by_key[b.key].remove(b)
            b.key = None
        h, s, d = self._sizes
        b.kv = self._like.new_zeros(2, h, s, d)
        b.holders = {table.me}
        return b

    def append(self, table, k, v, *, tokens=None):
        table.use()
        h, s, d = self._sizes
        if k.ndim != 3 or v.ndim != 3 or k.shape != v.shape or k.shape[0] != h or k.shape[2] != d:
            raise ValueError(f"{k.shape} {v.shape}")
        n = k.shape[1]
        if tokens is not None and len(tokens) != n:
            raise ValueError("as many ids as tokens")
        if not n:
            return
        part = table.length % s
        copy = bool(part) and len(table.pages[-1].holders) > 1
        if -(-(table.length + n) // s) - len(table.pages) + copy > self.num_free:
            raise OutOfBlocks
        if copy:
            old = table.pages[-1]
            new = self._new(table)
            new.kv[0].copy_(old.kv[0])
            old.holders.discard(table.me)
            table.pages[-1] = new
        rest = deque(zip(k.detach().unbind(1), v.detach().unbind(1)))
        ids = deque(tokens) if tokens is not None else None
        while rest:
            if table.length % s == 0:
                table.pages.append(self._new(table))
            one = torch.stack(rest.popleft())
            table.pages[-1].kv[:, :, table.length % s] = one
            table.length += 1
            if ids is None:
                table.complete = False
            if table.complete:
                table.told.append(int(ids.popleft()))
                if table.length % s == 0:
                    b = table.pages[-1]
                    b.key = tuple(table.told)
                    self._by_key[b.key].append(b)

    def gather(self, table):
        table.use()
        h, s, d = self._sizes
        if not table.pages:
            return self._like.new_empty(h, 0, d), self._like.new_empty(h, 0, d)
        kv = torch.cat([p.kv for p in table.pages], dim=2)
        return kv[0, :, : table.length].clone(), kv[1, :, : table.length].clone()

    def attend(self, table, q, *, scale=None):
        table.use()
        h, s, d = self._sizes
        if q.ndim != 3 or q.shape[0] != h or q.shape[2] != d:
            raise ValueError(q.shape)
        m = q.shape[1]
        if m > table.length:
            raise ValueError("queries")
        if m == 0:
            return q.clone()
        up = torch.promote_types(q.dtype, torch.float32)
        top = torch.full((h, m), -torch.inf, dtype=up)
        den, num = torch.zeros(h, m, dtype=up), torch.zeros(h, m, d, dtype=up)
        at = torch.arange(table.length - m, table.length)[:, None]
        f = d**-0.5 if scale is None else scale
        for i, p in enumerate(table.pages):
            used = min(s, table.length - i * s)
            sc = q.to(up) @ p.kv[0, :, :used].to(up).mT * f
            sc = sc.masked_fill(torch.arange(i * s, i * s + used) > at, -torch.inf)
            new = torch.maximum(top, sc.amax(-1))
            w = torch.exp(sc - new[..., None])
            w = torch.where(sc == -torch.inf, 0.0, w)
            old = torch.where(top == -torch.inf, 0.0, torch.exp(top - new))
            den = den * old + w.sum(-1)
            num = num * old[..., None] + w @ p.kv[1, :, :used].to(up)
            top = new
        return (num / den[..., None]).to(q.dtype)

    def free(self, table):
        table.use()
        table.over = True
        while table.pages:
            b = table.pages.pop()
            b.holders.discard(table.me)
            if not b.holders:
                b.let_go = next(self._clock)
                if b.key is None:
                    b.kv = None

    def fork(self, table):
        table.use()
        t = PageTable()
        t.length, t.pages, t.told, t.complete = table.length, [*table.pages], [*table.told], table.complete
        for p in t.pages:
            p.holders.add(t.me)
        return t

    def match_prefix(self, tokens):
        t, s = PageTable(), self._sizes[1]
        ids = [int(i) for i in tokens]
        for end in range(s, len(ids) + 1, s):
            same = self._by_key.get(tuple(ids[:end]))
            if not same:
                break
            t.pages.append(same[0])
            same[0].holders.add(t.me)
            t.length = end
        t.told = ids[: t.length]
        return t
