"""A paged KV cache: equal blocks from one pool, and a page table for every sequence.

The keys and values of a sequence lie in blocks of block_size tokens, anywhere in the pool; its page table
names them in order. Write the pool and the table; OutOfBlocks is given.

    BlockPool(num_blocks, num_heads, block_size, head_dim, *, dtype=None, device=None)
                                     sizes of at least 1; dtype and device as in torch.empty
    pool.num_blocks, pool.num_free   all blocks, and those that no live table holds
    PageTable()                      an empty sequence, live until it is freed
    table.blocks, table.length       its block ids in order, integers in 0 … num_blocks − 1; its tokens
    pool.append(table, k, v)         adds n ≥ 0 tokens: k and v are (num_heads, n, head_dim)
    pool.gather(table)               k and v of the whole sequence, each (num_heads, length, head_dim)
    pool.attend(table, q, *, scale=None)
                                     causal attention of the last `queries` positions over the sequence;
                                     q and the result are (num_heads, queries, head_dim); scores are
                                     multiplied by scale, 1/√head_dim unless given
    pool.free(table)                 ends the sequence

- A table holds ⌈length / block_size⌉ blocks, which no other table holds unless by fork or match_prefix.
- append raises OutOfBlocks if there are not enough free blocks for all its tokens. ValueError is due for a
  size below 1, shapes that do not fit, more queries than tokens, and any use of a table that was freed, to
  free it again included. A call that raises changes nothing.
- k, v, q and all results have the pool's dtype; for half types, sums run in float32. gather returns bit for
  bit what was appended. Inputs may have any memory layout and are left alone; no tensor that goes in or comes
  out shares memory with the pool.
- append moves the new tokens and at most one block, however long the sequence is. What a block held before,
  NaN included, has no influence on its next owner.

Part 2. pool.fork(table) is a second, independent sequence with the same tokens. It takes no free block: the
two share all blocks. Only when a sequence appends into a partly filled block that another live table holds
too does it get a copy of that one block; the last to hold it writes in place.

Part 3. pool.append(table, k, v, tokens=ids) also tells the ids of the n tokens, any 64-bit integers. A full
block is cached as soon as the ids of all tokens up to its end have been told, to this table or to the one
it was forked from. pool.match_prefix(ids) is a new table that starts with the longest run of cached blocks
whose ids, and all ids before them, are those of `ids`. It holds nothing else (it may be empty), and its ids
count as told. Ids are compared themselves, or by a hash without known collisions; hash((-1,)) == hash((-2,)).

- A cached block that no live table holds counts as free. It stays cached until append finds no other free
  block; of several, the one that was let go first is taken first, and of those that one free let go, the
  last of the sequence.
- append itself never looks for cached blocks. Of two blocks with the same ids and the same ids before them,
  only one need be cached, either; once that one is taken, what comes behind the other need not be found.

Example:

    pool = BlockPool(4, 1, 2, 8); table = PageTable()
    pool.append(table, k, v)                3 tokens  →  two blocks, num_free is 2
    child = pool.fork(table)                          →  the same two blocks, num_free is 2
    pool.append(child, k1, v1)              1 token   →  child has another second block, num_free is 1
    pool.free(table)                                  →  num_free is 2: child still holds the first block
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class OutOfBlocks(Exception):
    """The pool has fewer free blocks than an append needs."""


class PageTable:
    blocks: list[int]
    length: int

    def __init__(self) -> None:
        raise NotImplementedError


class BlockPool:
    num_blocks: int

    def __init__(
        self,
        num_blocks: int,
        num_heads: int,
        block_size: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def num_free(self) -> int:
        raise NotImplementedError

    def append(
        self,
        table: PageTable,
        k: Float[Tensor, "num_heads tokens head_dim"],
        v: Float[Tensor, "num_heads tokens head_dim"],
        *,
        tokens: Sequence[int] | None = None,
    ) -> None:
        raise NotImplementedError

    def gather(
        self, table: PageTable
    ) -> tuple[Float[Tensor, "num_heads length head_dim"], Float[Tensor, "num_heads length head_dim"]]:
        raise NotImplementedError

    def attend(
        self, table: PageTable, q: Float[Tensor, "num_heads queries head_dim"], *, scale: float | None = None
    ) -> Float[Tensor, "num_heads queries head_dim"]:
        raise NotImplementedError

    def free(self, table: PageTable) -> None:
        raise NotImplementedError

    def fork(self, table: PageTable) -> PageTable:
        raise NotImplementedError

    def match_prefix(self, tokens: Sequence[int]) -> PageTable:
        raise NotImplementedError
