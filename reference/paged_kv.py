r"""A paged KV cache: equal blocks from one pool, and a page table for every sequence.

    token t of a sequence lies in slot  t mod block_size  of block  table.blocks[⌊t / block_size⌋]

A contiguous cache reserves room for the longest sequence it may meet. Here a sequence holds
⌈length / block_size⌉ blocks, wherever they lie, and at most block_size − 1 slots stand empty. A table only
names its blocks, so two tables may name the same one: a fork costs no keys or values until one of the two
writes (copy on write), and a prompt that begins like an earlier one starts with its blocks (prefix caching).

Conventions:

- **Who owns a block.** Every table that names it. Owners are counted only where the count says something,
  for blocks in use that are cached or were shared; any other block in use has one. So allocation in bulk is
  a slice off a stack, and the usual free puts the slice back.
- **Writing.** Only the slots after a table's last token are written. They lie in new blocks, or in the
  partly filled last one, which is copied first if another table names it too.
- **What is cached.** Full blocks whose token ids are known from the beginning of the sequence, because the
  keys and values of a token depend on all the tokens before it. The key is a SHA-256 chained from block to
  block, dᵢ = H(dᵢ₋₁ ‖ ids of block i): 32 bytes stand for the whole prefix. Unlike Python's ``hash``, where
  −1 and −2 collide, it has no known collisions, so the ids need not be kept for comparison. Of two blocks
  with one key the first is cached; once it is taken, what comes behind the second is not found.
- **What is evicted.** A cached block without an owner counts as free and keeps its content until no blank
  block is left. Then the one freed longest ago goes. A table frees its last block first, so that a prefix
  outlives what was built on it and no chain is cut in the middle.

Allocating and freeing n blocks is O(n), whatever the size of the pool. ``append`` copies what it is given and
at most one block, ``fork`` copies the table, ``match_prefix`` hashes each token once.

Sources: Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention,
SOSP 2023, arXiv:2309.06180, §4.2 (block tables) and §4.4 (sharing, copy on write); vLLM's automatic prefix
caching for the chained hash and the order of eviction. They keep a count for every block and one queue of
all free blocks; here counts are sparse and blank blocks form a stack. Their kernel reads the blocks where
they lie; ``attend`` gathers them first, which gives the same result.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class OutOfBlocks(Exception):
    """The pool has fewer free blocks than an append needs."""


class PageTable:
    """Where one sequence lies in its pool: ``blocks`` in order of position, ``length`` in tokens."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.length = 0
        self._tokens: list[int] = []  # their ids, up to the first append that came without
        self._digest = b""  # of the full blocks whose ids are known
        self._live = True


class BlockPool:
    """``num_blocks`` blocks, each with room for the keys and values of ``block_size`` tokens."""

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
        sizes = (num_blocks, num_heads, block_size, head_dim)
        if min(sizes) < 1:
            raise ValueError(f"num_blocks, num_heads, block_size, head_dim must be at least 1, got {sizes}")
        self.num_blocks, self.num_heads, self.block_size, self.head_dim = sizes
        # Heads outermost: the blocks of a head lie side by side, so their slots form one axis.
        self._kv = torch.empty(2, num_heads, num_blocks, block_size, head_dim, dtype=dtype, device=device)
        self._blank = list(range(num_blocks))
        self._owners: dict[int, int] = {}  # of cached or shared blocks in use; any other in use has one
        self._digests: dict[int, bytes] = {}  # of cached blocks, and
        self._cached: dict[bytes, int] = {}  # the other way round
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached, not in use, first freed first

    @property
    def num_free(self) -> int:
        """How many blocks no table holds."""
        return len(self._blank) + len(self._idle)

    def append(
        self,
        table: PageTable,
        k: Float[Tensor, "num_heads tokens head_dim"],
        v: Float[Tensor, "num_heads tokens head_dim"],
        *,
        tokens: Sequence[int] | None = None,
    ) -> None:
        """Add keys and values at the end of a sequence; with token ids, ``match_prefix`` can find them.

        Raises ValueError if the shapes do not fit and OutOfBlocks if the pool is short. Either leaves
        everything as it was.
        """
        self._check(table, k, v)
        if tokens is not None and len(tokens) != k.shape[1]:
            raise ValueError(f"got {len(tokens)} token ids for {k.shape[1]} keys")
        start, stop, size = table.length, table.length + k.shape[1], self.block_size
        kv = torch.stack((k, v)).to(self._kv)
        # Copy on write: the new tokens begin in a block that another table reads too.
        split = start % size > 0 and stop > start and self._owners.get(table.blocks[-1], 1) > 1
        fresh = self._allocate(-(-stop // size) - len(table.blocks) + split)
        if split:
            shared = table.blocks.pop()
            self._kv[:, :, fresh[0]] = self._kv[:, :, shared]
            self._owners[shared] -= 1
        table.blocks += fresh
        table.length = stop
        positions, first = torch.arange(start, stop), start // size
        blocks = torch.tensor(table.blocks[first:], dtype=torch.long)[positions // size - first]
        self._kv.flatten(2, 3)[:, :, blocks * size + positions % size] = kv
        if tokens is not None and len(table._tokens) == start:
            table._tokens += tokens
            for i in range(first, stop // size):
                table._digest = _chained(table._digest, table._tokens[i * size : (i + 1) * size])
                self._remember(table.blocks[i], table._digest)

    def gather(
        self, table: PageTable
    ) -> tuple[Float[Tensor, "num_heads length head_dim"], Float[Tensor, "num_heads length head_dim"]]:
        """Keys and values of the whole sequence, copied into contiguous order."""
        self._check(table)
        k, v = self._kv[:, :, table.blocks].flatten(2, 3)[:, :, : table.length]
        return k, v

    def attend(
        self, table: PageTable, q: Float[Tensor, "num_heads queries head_dim"], *, scale: float | None = None
    ) -> Float[Tensor, "num_heads queries head_dim"]:
        """Causal attention of the sequence's last ``queries`` positions over all of it.

        Raises ValueError if the shape of q does not fit or there are more queries than tokens.
        """
        self._check(table, q)
        before = table.length - q.shape[1]
        if before < 0:
            raise ValueError(f"got {q.shape[1]} queries for the last positions of {table.length}")
        k, v = self.gather(table)
        # Query i stands at position before + i, and sees the keys up to its own.
        seen = torch.ones(q.shape[1], table.length, dtype=torch.bool, device=q.device).tril(before)
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    def free(self, table: PageTable) -> None:
        """End a sequence; its blocks are free again unless another table names them."""
        self._check(table)
        table._live = False
        if self._owners.keys().isdisjoint(table.blocks):
            self._blank += table.blocks
            return
        for block in reversed(table.blocks):
            owners = self._owners.pop(block, 1) - 1
            if owners:
                self._owners[block] = owners
            elif block in self._digests:
                self._idle[block] = None
            else:
                self._blank.append(block)

    def fork(self, table: PageTable) -> PageTable:
        """A second sequence with the same past, in the same blocks."""
        self._check(table)
        child = copy(table)
        child.blocks, child._tokens = table.blocks.copy(), table._tokens.copy()
        for block in table.blocks:
            self._owners[block] = self._owners.get(block, 1) + 1
        return child

    def match_prefix(self, tokens: Sequence[int]) -> PageTable:
        """A new sequence of the first tokens, as many as there are cached blocks for."""
        table, size = PageTable(), self.block_size
        for stop in range(size, len(tokens) + 1, size):
            digest = _chained(table._digest, tokens[stop - size : stop])
            if digest not in self._cached:
                break
            block = self._cached[digest]
            self._owners[block] = self._owners.get(block, 0) + 1  # cached blocks in use are all counted
            self._idle.pop(block, None)
            table.blocks.append(block)
            table.length, table._digest = stop, digest
        table._tokens = list(tokens[: table.length])
        return table

    def _check(self, table: PageTable, *parts: Tensor) -> None:
        if not table._live:
            raise ValueError(f"the table of {table.length} tokens in blocks {table.blocks} was freed before")
        shapes = [(*part.shape,) for part in parts]
        if any(shape != (self.num_heads, *shapes[0][1:2], self.head_dim) for shape in shapes):
            raise ValueError(f"expected ({self.num_heads}, tokens, {self.head_dim}), got {shapes}")

    def _remember(self, block: int, digest: bytes) -> None:
        """Let a full block be found. Of two with the same content the first stays."""
        if digest not in self._cached:
            self._cached[digest], self._digests[block] = block, digest
            self._owners.setdefault(block, 1)

    def _allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks: blank ones, then the cached ones that have been idle longest."""
        if count > self.num_free:
            raise OutOfBlocks(f"{count} blocks are needed, {self.num_free} of {self.num_blocks} are free")
        while len(self._blank) < count:
            block, _ = self._idle.popitem(last=False)
            del self._cached[self._digests.pop(block)]
            self._blank.append(block)
        rest = len(self._blank) - count  # not [-count:], which is everything if count is 0
        fresh = self._blank[rest:]
        del self._blank[rest:]
        return fresh


def _chained(digest: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block, from the key of the block before it and its own ids."""
    return hashlib.sha256(digest + array("q", tokens).tobytes()).digest()
