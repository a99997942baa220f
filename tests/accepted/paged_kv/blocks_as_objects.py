"""Blocks are objects with their own tensors, linked to the block before; all copies of a prefix are cached, in a
tree of dictionaries. Free blocks stand in two lists. Softmax is carried from block to block."""

import torch


class OutOfBlocks(Exception):
    pass


class Block:
    def __init__(self, number, shape, **kind):
        self.number, self.kv, self.owners = number, torch.zeros(2, *shape, **kind), set()
        self.home = None  # the list of the tree's node in which it is cached


class Node:
    def __init__(self):
        self.blocks, self.next = [], {}


class PageTable:
    def __init__(self):
        self.pages, self.length, self.dead = [], 0, False
        self.node, self.tail, self.told = None, [], True

    @property
    def blocks(self):
        return [page.number for page in self.pages]


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        self.shape = (num_heads, block_size, head_dim)
        if num_blocks < 1 or min(self.shape) < 1:
            raise ValueError(f"{num_blocks} blocks of {self.shape}")
        self.num_blocks = num_blocks
        self.empty = torch.empty(num_heads, 0, head_dim, dtype=dtype, device=device)
        self.blank = [Block(i, self.shape, dtype=dtype, device=device) for i in range(num_blocks)]
        self.waiting = []
        self.root = Node()

    num_free = property(lambda self: len(self.blank) + len(self.waiting))

    def check(self, table, *parts):
        if table.dead:
            raise ValueError("table was freed")
        for x in parts:
            if (
                x.dim() != 3
                or x.size(0) != self.shape[0]
                or x.size(2) != self.shape[2]
                or x.size(1) != parts[0].size(1)
            ):
                raise ValueError(f"shapes {[tuple(p.shape) for p in parts]}, blocks are {self.shape}")

    def new(self, table):
        if self.blank:
            block = self.blank.pop(0)
        else:
            block = self.waiting.pop(0)
            block.home.remove(block)
            block.home = None
        block.owners = {table}
        return block

    def append(self, table, k, v, *, tokens=None):
        self.check(table, k, v)
        n, size = k.size(1), self.shape[1]
        if tokens is not None and len(tokens) != n:
            raise ValueError(f"{len(tokens)} ids for {n} tokens")
        used = table.length % size
        copies = bool(n and used and len(table.pages[-1].owners) > 1)
        if (table.length + n + size - 1) // size - len(table.pages) + copies > self.num_free:
            raise OutOfBlocks
        if copies:
            old, mine = table.pages.pop(), self.new(table)
            old.owners.remove(table)
            mine.kv.copy_(old.kv)
            table.pages.append(mine)
        if n and tokens is None:
            table.told = False
        for i in range(n):
            if table.length % size == 0:
                table.pages.append(self.new(table))
                table.tail = []
            table.pages[-1].kv[:, :, table.length % size] = torch.stack((k[:, i], v[:, i]))
            table.length += 1
            if table.told:
                table.tail.append(int(tokens[i]))
                if len(table.tail) == size:
                    table.node = (table.node or self.root).next.setdefault(tuple(table.tail), Node())
                    table.node.blocks.append(table.pages[-1])
                    table.pages[-1].home = table.node.blocks

    def gather(self, table):
        self.check(table)
        pairs = [page.kv.unbind() for page in table.pages]
        k, v = ([self.empty] + [pair[i] for pair in pairs] for i in (0, 1))
        return torch.cat(k, 1)[:, : table.length].clone(), torch.cat(v, 1)[:, : table.length].clone()

    def attend(self, table, q, *, scale=None):
        self.check(table, q)
        m, size = q.size(1), self.shape[1]
        first = table.length - m
        if first < 0:
            raise ValueError(f"{m} queries, {table.length} tokens")
        wide = torch.promote_types(q.dtype, torch.float32)
        q_ = q.to(wide) * (q.size(2) ** -0.5 if scale is None else scale)
        top = torch.full((*q.shape[:2], 1), -1e300 if wide == torch.float64 else -1e38, dtype=wide)
        norm, out = torch.zeros_like(top), torch.zeros_like(q_)
        for number, page in enumerate(table.pages):
            count = min(size, table.length - number * size)
            k, v = page.kv[:, :, :count].to(wide)
            s = torch.einsum("hqd,hkd->hqk", q_, k)
            late = (
                torch.arange(number * size, number * size + count) > torch.arange(first, first + m)[:, None]
            )
            s = s.masked_fill(late, -torch.inf)
            higher = torch.maximum(top, s.amax(2, keepdim=True))
            p, keep = (s - higher).exp(), (top - higher).exp()
            norm, out, top = norm * keep + p.sum(2, keepdim=True), out * keep + p @ v, higher
        return (out / norm).to(q.dtype)

    def free(self, table):
        self.check(table)
        table.dead = True
        for page in reversed(table.pages):
            page.owners.remove(table)
            if not page.owners:
                (self.blank if page.home is None else self.waiting).append(page)

    def fork(self, table):
        self.check(table)
        child = PageTable()
        child.pages, child.length, child.dead = table.pages[:], table.length, False
        child.node, child.tail, child.told = table.node, table.tail[:], table.told
        for page in child.pages:
            page.owners.add(child)
        return child

    def match_prefix(self, tokens):
        table, size, node = PageTable(), self.shape[1], self.root
        for at in range(0, len(tokens) - size + 1, size):
            node = node.next.get(tuple(int(t) for t in tokens[at : at + size]))
            if node is None or not node.blocks:
                break
            page = next((b for b in node.blocks if b.owners), node.blocks[-1])
            if not page.owners:
                self.waiting.remove(page)
            page.owners.add(table)
            table.pages.append(page)
            table.length += size
            table.node = node
        return table
