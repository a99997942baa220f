"""For each block the set of tables that hold it; free ids in a set; all known prefixes kept whole and compared."""

import torch


class OutOfBlocks(RuntimeError):
    pass


class PageTable:
    def __init__(self):
        self.pages, self.length, self.known, self.dead = (), 0, (), False

    @property
    def blocks(self):
        return self.pages


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        if min(num_blocks, num_heads, block_size, head_dim) <= 0:
            raise ValueError([num_blocks, num_heads, block_size, head_dim])
        self.num_blocks, self.H, self.S, self.D = num_blocks, num_heads, block_size, head_dim
        self.K = [None] * num_blocks
        self.V = [None] * num_blocks
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.device = device
        self.owners = [set() for _ in range(num_blocks)]
        self.blank = set(range(num_blocks))
        self.prefixes = []  # (ids from the start, block)
        self.waiting = []  # cached blocks without an owner, the next to go last

    @property
    def num_free(self):
        return len([o for o in self.owners if not o])

    def demand(self, condition, *what):
        if not condition:
            raise ValueError(what)

    def append(self, table, k, v, *, tokens=None):
        self.demand(not table.dead, "dead")
        self.demand(k.ndim == v.ndim == 3 and k.shape == v.shape, k.shape, v.shape)
        self.demand(k.shape[::2] == (self.H, self.D), k.shape)
        self.demand(tokens is None or len(tokens) == k.shape[1], tokens)
        new = k.shape[1]
        filled = table.length % self.S
        pages = list(table.pages)
        old = None
        if new and filled and len(self.owners[pages[-1]]) > 1:
            old = pages.pop()
        need = -(-(table.length + new) // self.S) - len(pages)
        if need > self.num_free:
            raise OutOfBlocks(f"{need} blocks, {self.num_free} free")
        first = len(pages)
        while need:
            need -= 1
            if not self.blank:
                evicted = self.waiting.pop()
                self.prefixes = [p for p in self.prefixes if p[1] != evicted]
                self.blank.add(evicted)
            pages.append(self.blank.pop())
            self.owners[pages[-1]].add(table)
            for store in (self.K, self.V):
                store[pages[-1]] = torch.zeros(self.H, self.S, self.D, dtype=self.dtype, device=self.device)
        if old is not None:
            self.K[pages[first]][:] = self.K[old]
            self.V[pages[first]][:] = self.V[old]
            self.owners[old].discard(table)
        for t in range(new):
            at = table.length + t
            self.K[pages[at // self.S]][:, at % self.S] = k[:, t]
            self.V[pages[at // self.S]][:, at % self.S] = v[:, t]
        if tokens is not None and len(table.known) == table.length:
            before = table.length // self.S
            table.known = (*table.known, *tokens)
            for i in range(before, len(table.known) // self.S):
                self.prefixes.append((table.known[: (i + 1) * self.S], pages[i]))
        table.pages, table.length = tuple(pages), table.length + new

    def gather(self, table):
        self.demand(not table.dead, "dead")
        out = []
        for store in (self.K, self.V):
            whole = torch.zeros(self.H, table.length, self.D, dtype=self.dtype, device=self.device)
            for i, block in enumerate(table.pages):
                part = whole[:, i * self.S : (i + 1) * self.S]
                part.copy_(store[block][:, : part.shape[1]])
            out.append(whole)
        return out

    def attend(self, table, q, *, scale=None):
        self.demand(not table.dead, "dead")
        self.demand(q.ndim == 3 and q.shape[::2] == (self.H, self.D), q.shape)
        self.demand(q.shape[1] <= table.length, q.shape, table.length)
        k, v = self.gather(table)
        if q.dtype.itemsize == 2:
            k, v, wide = k.float(), v.float(), q.float()
        else:
            wide = q
        wide = wide * (self.D**-0.5 if scale is None else scale)
        s = wide.bmm(k.mT)
        last = torch.arange(table.length)[-q.shape[1] :]
        s = s + torch.zeros_like(s).masked_fill(torch.arange(table.length) > last[:, None], -torch.inf)
        e = torch.exp(s - s.max(dim=-1, keepdim=True).values)
        return (e.bmm(v) / e.sum(-1, keepdim=True)).to(q.dtype)

    def free(self, table):
        self.demand(not table.dead, "dead")
        table.dead = True
        cached = {block for _, block in self.prefixes}
        for block in reversed(table.pages):
            self.owners[block].remove(table)
            if not self.owners[block]:
                if block in cached:
                    self.waiting.insert(0, block)
                else:
                    self.blank.add(block)

    def fork(self, table):
        self.demand(not table.dead, "dead")
        twin = PageTable()
        twin.pages, twin.length, twin.known = table.pages, table.length, table.known
        for block in twin.pages:
            self.owners[block].add(twin)
        return twin

    def match_prefix(self, tokens):
        table, pages = PageTable(), []
        for end in range(self.S, len(tokens) + 1, self.S):
            hits = [block for ids, block in self.prefixes if ids == tuple(tokens[:end])]
            if not hits:
                break
            pages.append(hits[-1])
        for block in pages:
            if block in self.waiting:
                self.waiting.remove(block)
            self.owners[block].add(table)
        table.pages, table.length = tuple(pages), len(pages) * self.S
        table.known = tuple(tokens[: table.length])
        return table
