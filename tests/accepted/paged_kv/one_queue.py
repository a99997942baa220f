"""One ordered queue of all free blocks, blank ones in front; a dataclass for the table; SDPA over the blocks."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


class OutOfBlocks(Exception):
    pass


@dataclass(eq=False)
class PageTable:
    blocks: list = field(default_factory=list)
    length: int = 0
    chain: list = field(default_factory=list)
    rest: list | None = field(default_factory=list)
    ended: bool = False


class BlockPool:
    def __init__(self, num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None):
        self.shape = (num_blocks, num_heads, block_size, head_dim)
        if any(s < 1 for s in self.shape):
            raise ValueError(f"shape {self.shape}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.kv = torch.empty(num_blocks, 2, num_heads, block_size, head_dim, dtype=dtype, device=device)
        self.queue = OrderedDict.fromkeys(range(num_blocks))
        self.refs = {}
        self.serials, self.block_of, self.key_of = iter(range(10**9)), {}, {}

    @property
    def num_free(self):
        return len(self.queue)

    def _ok(self, table, x=None):
        if table.ended:
            raise ValueError("ended")
        if x is not None and (x.dim() != 3 or x.shape[0] != self.shape[1] or x.shape[2] != self.shape[3]):
            raise ValueError(f"{tuple(x.shape)} against {self.shape}")

    def _pop(self):
        block, _ = self.queue.popitem(last=False)
        if block in self.key_of:
            del self.block_of[self.key_of.pop(block)]
        self.refs[block] = 1
        return block

    def append(self, table, k, v, *, tokens=None):
        self._ok(table, k)
        self._ok(table, v)
        n = k.shape[1]
        if v.shape[1] != n:
            raise ValueError(f"{n} keys, {v.shape[1]} values")
        if tokens is not None and len(tokens) != n:
            raise ValueError(f"{n} keys, {len(tokens)} ids")
        if not n:
            return
        size, used = self.block_size, table.length % self.block_size
        clone = used and self.refs[table.blocks[-1]] > 1
        if len(self.queue) < len(range(0, table.length + n, size)) - len(table.blocks) + bool(clone):
            raise OutOfBlocks(len(self.queue))
        if clone:
            self.refs[table.blocks[-1]] -= 1
            mine = self._pop()
            self.kv[mine, :, :, :used] = self.kv[table.blocks[-1], :, :, :used]
            table.blocks[-1] = mine
        both = torch.stack([k, v])
        edges = [0, *range((size - used) if used else size, n, size), n]
        for a, b in zip(edges, edges[1:], strict=False):
            at = (table.length + a) % size
            if at == 0:
                table.blocks.append(self._pop())
            self.kv[table.blocks[-1], :, :, at : at + b - a] = both[:, :, a:b]
        table.length += n
        if tokens is None or table.rest is None:
            table.rest = None
            return
        table.rest += list(tokens)
        while len(table.rest) >= size:
            # A serial number stands for all the ids before, so equal keys mean equal ids from the start on.
            key = (table.chain[-1] if table.chain else None, tuple(table.rest[:size]))
            block = table.blocks[len(table.chain)]
            if key not in self.block_of:
                self.block_of[key] = (block, next(self.serials))
                self.key_of[block] = key
            table.chain.append(self.block_of[key][1])
            del table.rest[:size]

    def gather(self, table):
        self._ok(table)
        if not table.blocks:
            return tuple(self.kv.new_empty(2, self.shape[1], 0, self.shape[3]))
        k, v = torch.cat([self.kv[b] for b in table.blocks], 2).narrow(2, 0, table.length)
        return k.contiguous(), v.contiguous()

    def attend(self, table, q, *, scale=None):
        self._ok(table, q)
        if q.shape[1] > table.length:
            raise ValueError(f"{q.shape[1]} > {table.length}")
        k, v = self.gather(table)
        bias = torch.full((q.shape[1], table.length), float("-inf"), dtype=q.dtype)
        bias = bias.triu(table.length - q.shape[1] + 1)
        return F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=bias[None, None], scale=scale
        )[0]

    def free(self, table):
        self._ok(table)
        table.ended = True
        for block in table.blocks[::-1]:
            self.refs[block] -= 1
            if not self.refs[block]:
                self.queue[block] = None
                if block not in self.key_of:
                    self.queue.move_to_end(block, last=False)
        table.blocks = []

    def fork(self, table):
        self._ok(table)
        for block in table.blocks:
            self.refs[block] += 1
        rest = None if table.rest is None else list(table.rest)
        return PageTable(list(table.blocks), table.length, list(table.chain), rest)

    def match_prefix(self, tokens):
        table, size = PageTable(), self.block_size
        for i in range(len(tokens) // size):
            key = (table.chain[-1] if i else None, tuple(tokens[i * size : (i + 1) * size]))
            if key not in self.block_of:
                break
            block, serial = self.block_of[key]
            self.queue.pop(block, None)
            self.refs[block] = self.refs.get(block, 0) + 1
            table.blocks.append(block)
            table.chain.append(serial)
            table.length += size
        return table
