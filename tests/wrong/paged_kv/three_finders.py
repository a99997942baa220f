"""mistake: -

Of those who find a block, no more than three are counted."""

from collections import OrderedDict, deque

import torch


class OutOfBlocks(Exception):
    pass


class PageTable:
    def __init__(self):
        self.blocks = []
        self.length = 0
        self.freed = False
        self.ids = []
        self.known = True


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        for n in (num_blocks, num_heads, block_size, head_dim):
            if n < 1:
                raise ValueError(f"bad size {n}")
        self.num_blocks, self.num_heads, self.block_size, self.head_dim = (
            num_blocks,
            num_heads,
            block_size,
            head_dim,
        )
        self.k = torch.empty(num_blocks, num_heads, block_size, head_dim, dtype=dtype, device=device)
        self.v = torch.empty(num_blocks, num_heads, block_size, head_dim, dtype=dtype, device=device)
        self.ref = [0] * num_blocks
        self.blank = deque(range(num_blocks))
        self.lru = OrderedDict()
        self.cache = {}
        self.key = {}

    @property
    def num_free(self):
        return len(self.blank) + len(self.lru)

    def _live(self, table):
        if table.freed:
            raise ValueError("freed table")

    def _shape(self, x):
        if x.dim() != 3 or x.shape[0] != self.num_heads or x.shape[2] != self.head_dim:
            raise ValueError(f"bad shape {tuple(x.shape)}")

    def _take(self):
        if self.blank:
            b = self.blank.popleft()
        else:
            b, _ = self.lru.popitem(last=False)
            del self.cache[self.key.pop(b)]
        self.ref[b] = 1
        return b

    def append(self, table, k, v, *, tokens=None):
        self._live(table)
        self._shape(k)
        self._shape(v)
        n = k.shape[1]
        if v.shape[1] != n:
            raise ValueError("k and v differ")
        if tokens is not None and len(tokens) != n:
            raise ValueError("ids")
        if n == 0:
            return
        bs = self.block_size
        off = table.length % bs
        cow = off != 0 and self.ref[table.blocks[-1]] > 1
        total = (table.length + n + bs - 1) // bs
        need = total - len(table.blocks) + (1 if cow else 0)
        if need > self.num_free:
            raise OutOfBlocks(f"{need} > {self.num_free}")
        if cow:
            old = table.blocks[-1]
            new = self._take()
            self.k[new, :, :off] = self.k[old, :, :off]
            self.v[new, :, :off] = self.v[old, :, :off]
            self.ref[old] -= 1
            table.blocks[-1] = new
        while len(table.blocks) < total:
            table.blocks.append(self._take())
        for i in range(n):
            pos = table.length + i
            b = table.blocks[pos // bs]
            self.k[b, :, pos % bs] = k[:, i]
            self.v[b, :, pos % bs] = v[:, i]
        first = table.length // bs
        table.length += n
        if tokens is None:
            table.known = False
        elif table.known:
            table.ids.extend(int(t) for t in tokens)
            for i in range(first, table.length // bs):
                key = tuple(table.ids[: (i + 1) * bs])
                if key not in self.cache:
                    self.cache[key] = table.blocks[i]
                    self.key[table.blocks[i]] = key

    def gather(self, table):
        self._live(table)
        idx = torch.tensor(table.blocks, dtype=torch.long)
        out = []
        for s in (self.k, self.v):
            x = s[idx]
            x = x.permute(1, 0, 2, 3).reshape(self.num_heads, -1 if len(table.blocks) else 0, self.head_dim)
            out.append(x[:, : table.length].clone())
        return tuple(out)

    def attend(self, table, q, *, scale=None):
        self._live(table)
        self._shape(q)
        m, T = q.shape[1], table.length
        if m > T:
            raise ValueError("too many queries")
        k, v = self.gather(table)
        if scale is None:
            scale = self.head_dim**-0.5
        up = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
        s = torch.einsum("hqd,hkd->hqk", q.to(up), k.to(up)) * scale
        qi = torch.arange(m)[:, None] + (T - m)
        ki = torch.arange(T)[None]
        s = s.masked_fill(ki > qi, float("-inf"))
        p = torch.softmax(s, -1)
        return torch.einsum("hqk,hkd->hqd", p, v.to(up)).to(q.dtype)

    def free(self, table):
        self._live(table)
        table.freed = True
        for b in reversed(table.blocks):
            self.ref[b] -= 1
            if self.ref[b] == 0:
                if b in self.key:
                    self.lru[b] = None
                else:
                    self.blank.append(b)
        table.blocks = []

    def fork(self, table):
        self._live(table)
        child = PageTable()
        child.blocks = list(table.blocks)
        child.length = table.length
        child.ids = list(table.ids)
        child.known = table.known
        for b in child.blocks:
            self.ref[b] += 1
        return child

    def match_prefix(self, tokens):
        tokens = [int(t) for t in tokens]
        table = PageTable()
        bs = self.block_size
        for end in range(bs, len(tokens) + 1, bs):
            b = self.cache.get(tuple(tokens[:end]))
            if b is None:
                break
            if self.ref[b] == 0:
                del self.lru[b]
            self.ref[b] = min(self.ref[b] + 1, 3)
            table.blocks.append(b)
            table.length = end
        table.ids = tokens[: table.length]
        return table
