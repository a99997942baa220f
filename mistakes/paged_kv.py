"""What people get wrong in a paged cache."""

from dojo.mistake import Mistake

BLOCKS_NEEDED = "fresh = self._allocate(-(-stop // size) - len(table.blocks) + split)"
SPLIT = "split = start % size > 0 and stop > start and self._owners.get(table.blocks[-1], 1) > 1"
COPY = "self._kv[:, :, fresh[0]] = self._kv[:, :, shared]"
WRITE = "self._kv.flatten(2, 3)[:, :, blocks * size + positions % size] = kv"
GATHER = "k, v = self._kv[:, :, table.blocks].flatten(2, 3)[:, :, : table.length]"
ATTEND = "return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)"
SEEN = "seen = torch.ones(q.shape[1], table.length, dtype=torch.bool, device=q.device).tril(before)"
FREED = "        table._live = False\n"
CHILD = "child.blocks, child._tokens = table.blocks.copy(), table._tokens.copy()"
FULL = "            for i in range(first, stop // size):\n"
KEY = 'return hashlib.sha256(digest + array("q", tokens).tobytes()).digest()'
EVICT = """        while len(self._blank) < count:
            block, _ = self._idle.popitem(last=False)
            del self._cached[self._digests.pop(block)]
            self._blank.append(block)
"""
SHORT = "        if count > self.num_free:\n"
IDLE = "                self._idle[block] = None\n"
COUNT_UP = "            self._owners[block] = self._owners.get(block, 1) + 1\n"
REVIVE = "            self._idle.pop(block, None)\n"

MISTAKES = (
    # --- part 1
    Mistake(
        "a-block-for-every-append",
        "each append starts a new block, whatever room the last one has",
        "A chunk gets blocks of its own.",
        "test_a_sequence_holds_as_many_blocks_as_its_tokens_need",
        change=((BLOCKS_NEEDED, "fresh = self._allocate(-(-k.shape[1] // size) + split)"),),
    ),
    Mistake(
        "a-block-too-many",
        "a sequence whose length is a multiple of block_size holds one empty block more",
        "length // block_size + 1 blocks.",
        "test_a_sequence_holds_as_many_blocks_as_its_tokens_need",
        change=(
            (
                BLOCKS_NEEDED,
                "fresh = self._allocate((stop // size + 1 if stop else 0) - len(table.blocks) + split)",
            ),
        ),
    ),
    Mistake(
        "the-whole-blocks-come-back",
        "gather returns whole blocks, the empty slots of the last one included",
        "The attention mask takes care of the rest.",
        "test_gather_returns_what_was_appended",
        change=(
            (GATHER, "k, v = self._kv[:, :, table.blocks].flatten(2, 3)"),
            (
                SEEN,
                "seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(before)",
            ),
        ),
    ),
    Mistake(
        "blocks-in-the-order-of-their-ids",
        "gather walks over the blocks by id, not in the table's order",
        "Later blocks have higher ids.",
        "test_each_sequence_reads_as_a_cache_of_its_own",
        change=((GATHER, GATHER.replace("table.blocks]", "sorted(table.blocks)]")),),
    ),
    Mistake(
        "blocks-side-by-side",
        "gather reads on from the first block, as if the others lay behind it",
        "Blocks are allocated one after the other.",
        "test_each_sequence_reads_as_a_cache_of_its_own",
        change=(
            (
                GATHER,
                "at = table.blocks[0] if table.blocks else 0\n"
                "        blocks = [(at + i) % self.num_blocks for i in range(len(table.blocks))]\n"
                "        k, v = self._kv[:, :, blocks].flatten(2, 3)[:, :, : table.length]",
            ),
        ),
    ),
    Mistake(
        "keys-for-values",
        "the keys are stored twice, once in place of the values",
        "Both have the same shape.",
        "test_gather_returns_what_was_appended",
        change=(("kv = torch.stack((k, v)).to(self._kv)", "kv = torch.stack((k, k)).to(self._kv)"),),
    ),
    Mistake(
        "heads-and-tokens-mixed",
        "k and v are reshaped to (tokens, heads, head_dim) without a transpose",
        "reshape swaps two dimensions.",
        "test_gather_returns_what_was_appended",
        change=(
            (
                "kv = torch.stack((k, v)).to(self._kv)",
                "kv = torch.stack((k, v)).to(self._kv)\n        kv = kv.reshape(2, stop - start, self.num_heads, self.head_dim).transpose(1, 2)",
            ),
        ),
    ),
    Mistake(
        "offset-from-the-chunk",
        "the first new token goes to slot 0 of its block, over what is there",
        "Every append begins at a block's first slot.",
        "test_gather_returns_what_was_appended",
        change=((WRITE, "self._kv.flatten(2, 3)[:, :, blocks * size + (positions - start) % size] = kv"),),
    ),
    Mistake(
        "always-float32",
        "the pool is float32, whatever dtype says",
        "The default dtype will do.",
        "test_gather_returns_what_was_appended",
        change=(
            (
                "num_blocks, block_size, head_dim, dtype=dtype, device=device)",
                "num_blocks, block_size, head_dim, device=device)",
            ),
        ),
    ),
    Mistake(
        "device-ignored",
        "the pool lies on the CPU, whatever device says",
        "Tensors move by themselves.",
        "test_a_pool_lies_on_its_device",
        change=(
            (
                "num_blocks, block_size, head_dim, dtype=dtype, device=device)",
                "num_blocks, block_size, head_dim, dtype=dtype)",
            ),
        ),
    ),
    Mistake(
        "free-forgets-the-blocks",
        "free ends the table and never gives its blocks back",
        "Clearing the table is enough.",
        "test_free_and_held_blocks_make_the_pool",
        change=(("            self._blank += table.blocks\n", "            pass\n"),),
    ),
    Mistake(
        "free-forgets-the-last-block",
        "free gives back the full blocks and loses the partly filled last one",
        "length // block_size blocks are in use.",
        "test_free_and_held_blocks_make_the_pool",
        change=(
            (
                "            self._blank += table.blocks\n",
                "            self._blank += table.blocks[: table.length // self.block_size]\n",
            ),
        ),
    ),
    Mistake(
        "double-free",
        "a second free puts the blocks on the free list once more",
        "Nobody frees twice.",
        "test_a_freed_table_is_refused",
        change=((FREED, ""),),
    ),
    Mistake(
        "a-freed-table-starts-again",
        "a freed table is an empty one: a second free and further appends pass in silence",
        "Freeing resets the table.",
        "test_a_freed_table_is_refused",
        change=(
            (FREED, ""),
            (
                "            self._blank += table.blocks\n            return\n",
                "            self._blank += table.blocks\n            table.__init__()\n            return\n",
            ),
            (
                "                self._blank.append(block)\n\n    def fork",
                "                self._blank.append(block)\n        table.__init__()\n\n    def fork",
            ),
        ),
    ),
    Mistake(
        "a-freed-table-is-still-read",
        "gather and attend read the blocks of a freed table, which others own by now",
        "Reading does no harm.",
        "test_a_freed_table_is_refused",
        change=(
            ("        self._check(table)\n        k, v = self._kv", "        k, v = self._kv"),
            ("        self._check(table, q)\n", ""),
        ),
    ),
    Mistake(
        "taken-one-by-one",
        "blocks are taken one by one until none is left, and those already taken are lost",
        "The exception tells the caller to stop.",
        "test_an_append_that_does_not_fit_changes_nothing",
        change=((SHORT, "        if count > self.num_free:\n            self._blank.clear()\n"),),
    ),
    Mistake(
        "length-moves-first",
        "the length has moved on by the time that blocks run out",
        "The order of the lines does not matter.",
        "test_an_append_that_does_not_fit_changes_nothing",
        change=(
            (BLOCKS_NEEDED, "table.length = stop\n        " + BLOCKS_NEEDED),
            (
                "        table.blocks += fresh\n        table.length = stop\n",
                "        table.blocks += fresh\n",
            ),
        ),
    ),
    Mistake(
        "as-much-as-fits",
        "of an append that does not fit, the part that does is written before OutOfBlocks is raised",
        "Half the tokens are better than none.",
        "test_an_append_that_does_not_fit_changes_nothing",
        change=(
            (
                BLOCKS_NEEDED,
                "room = len(table.blocks) * size - start + self.num_free * size\n"
                "        if room < stop - start:\n"
                "            self.append(table, k[:, :room], v[:, :room])\n"
                "        " + BLOCKS_NEEDED,
            ),
        ),
    ),
    Mistake(
        "the-last-block-is-kept",
        "OutOfBlocks comes one block too early: the last free block is never given out",
        "There must be more free blocks than needed.",
        "test_every_block_can_be_used_again",
        change=((SHORT, "        if count and count >= self.num_free:\n"),),
    ),
    Mistake(
        "minus-zero",
        "an append that needs no new block takes all free ones, since [-0:] is the whole list",
        "free[-n:] are the last n.",
        "test_a_sequence_holds_as_many_blocks_as_its_tokens_need",
        change=(
            (
                "        fresh = self._blank[rest:]\n        del self._blank[rest:]\n",
                "        fresh = self._blank[-count:]\n        del self._blank[-count:]\n",
            ),
        ),
    ),
    Mistake(
        "taken-and-still-free",
        "blocks are read off the free list and stay on it",
        "Slicing takes them out.",
        "test_no_block_has_two_owners",
        change=(("        del self._blank[rest:]\n", ""),),
    ),
    Mistake(
        "one-list-for-all-tables",
        "the list of blocks belongs to the class: all tables share it",
        "Attributes can be declared in the class body.",
        "test_an_empty_sequence_has_no_block_and_gathers_nothing",
        change=(
            (
                "    def __init__(self) -> None:\n        self.blocks: list[int] = []\n",
                "    blocks: list[int] = []\n\n    def __init__(self) -> None:\n",
            ),
        ),
    ),
    Mistake(
        "one-free-list-for-all-pools",
        "the free list belongs to the class: a second pool of the same size starts with the first one's",
        "There is only one pool.",
        "test_two_pools_share_nothing",
        change=(
            (
                "        self._blank = list(range(num_blocks))\n",
                "        self._blank = self._lists.setdefault(num_blocks, list(range(num_blocks)))\n",
            ),
            (
                'class BlockPool:\n    """``num_blocks`` blocks, each with room for the keys and values of ``block_size`` tokens."""\n',
                "class BlockPool:\n    _lists = {}\n",
            ),
        ),
    ),
    Mistake(
        "the-callers-tensor",
        "the first append is kept as the caller's own tensors",
        "What is passed in is mine.",
        "test_pool_and_caller_share_no_memory",
        change=(
            (
                "        self._kv.flatten(2, 3)[:, :, blocks * size + positions % size] = kv\n",
                "        self._kv.flatten(2, 3)[:, :, blocks * size + positions % size] = kv\n        table._mine = (k, v) if start == 0 else None\n",
            ),
            (
                "        k, v = self._kv[:, :, table.blocks]",
                "        if getattr(table, '_mine', None):\n            return table._mine\n        k, v = self._kv[:, :, table.blocks]",
            ),
        ),
    ),
    Mistake(
        "a-view-of-the-pool",
        "gather returns a view of the pool where the blocks happen to lie side by side",
        "Nobody writes to what gather returns.",
        "test_pool_and_caller_share_no_memory",
        change=(
            (
                "        k, v = self._kv[:, :, table.blocks]",
                "        if table.blocks and table.blocks == list(range(table.blocks[0], table.blocks[-1] + 1)):\n"
                "            at = table.blocks[0] * self.block_size\n"
                "            k, v = self._kv.flatten(2, 3)[:, :, at : at + table.length]\n"
                "            return k, v\n"
                "        k, v = self._kv[:, :, table.blocks]",
            ),
        ),
    ),
    Mistake(
        "one-buffer-for-gather",
        "gather copies into a buffer of the pool's, and the next gather overwrites what this one returned",
        "The result is used at once.",
        "test_each_sequence_reads_as_a_cache_of_its_own",
        change=(
            (
                GATHER,
                "if not hasattr(self, '_buffer'):\n"
                "            self._buffer = torch.empty_like(self._kv).flatten(2, 3)\n"
                "        self._buffer[:, :, : len(table.blocks) * self.block_size] = self._kv[:, :, table.blocks].flatten(2, 3)\n"
                "        k, v = self._buffer[:, :, : table.length]",
            ),
        ),
    ),
    Mistake(
        "attention-to-what-was-gathered-last",
        "attend keeps the keys and values of its last call and uses them again if the length is the same",
        "Decoding attends to the same sequence again and again.",
        "test_attend_reads_the_table_as_it_is",
        change=(
            (
                "        k, v = self.gather(table)\n",
                "        if not hasattr(self, '_last') or self._last[0].shape[1] != table.length:\n"
                "            self._last = self.gather(table)\n"
                "        k, v = self._last\n",
            ),
        ),
    ),
    Mistake(
        "attend-over-whole-blocks",
        "attend weighs the empty slots of the last block by zero, and 0 · NaN is NaN",
        "A weight of zero removes whatever stands there.",
        "test_what_a_block_held_before_has_no_influence",
        change=(
            (
                "        k, v = self.gather(table)\n",
                "        k, v = self._kv[:, :, table.blocks].flatten(2, 3)\n",
            ),
            (
                SEEN,
                "seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(before)",
            ),
        ),
    ),
    Mistake(
        "attend-over-the-pool",
        "attend runs over the whole pool and masks what is not the sequence's",
        "The mask keeps the others out.",
        "test_what_a_block_held_before_has_no_influence",
        change=(
            (
                "        k, v = self.gather(table)\n",
                "        order = torch.tensor(table.blocks + [b for b in range(self.num_blocks) if b not in table.blocks])\n        k, v = self._kv[:, :, order].flatten(2, 3)\n",
            ),
            (
                SEEN,
                "seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(before)",
            ),
        ),
    ),
    Mistake(
        "causal-from-the-first-key",
        "the causal mask is aligned to the first key: query i sees the first i + 1 tokens",
        "is_causal=True does it.",
        "test_attend_equals_its_definition",
        change=((".tril(before)", ".tril()"),),
    ),
    Mistake(
        "no-causal-mask",
        "every query sees every token, also those after its own",
        "A cache only holds the past.",
        "test_queries_may_come_one_by_one_or_together",
        change=((ATTEND, "return scaled_dot_product_attention(q, k, v, scale=scale)"),),
    ),
    Mistake(
        "not-itself",
        "a query does not see its own token's key",
        "Attention is over the past.",
        "test_attend_equals_its_definition",
        change=((".tril(before)", ".tril(max(before - 1, 0))"),),
    ),
    Mistake(
        "only-a-prefill-is-masked",
        "the causal mask is left out when there are fewer queries than tokens, be they several",
        "With a past in the cache, everything in it may be seen.",
        "test_queries_may_come_one_by_one_or_together",
        change=(
            (ATTEND, "return scaled_dot_product_attention(q, k, v, is_causal=before == 0, scale=scale)"),
        ),
    ),
    Mistake(
        "masked-with-minus-10000",
        "hidden scores are set to −10,000, and a loud score lies below that",
        "−10,000 is as good as −∞.",
        "test_queries_may_come_one_by_one_or_together",
        change=(
            (
                ATTEND,
                "scores = q @ k.mT * (q.shape[2] ** -0.5 if scale is None else scale)\n"
                "        return scores.masked_fill(~seen, -1e4).softmax(-1) @ v",
            ),
        ),
    ),
    Mistake(
        "output-not-rescaled",
        "block by block, a new maximum rescales the normaliser but not the output so far",
        "The division in the end takes care of it.",
        "test_attend_equals_its_definition",
        change=(
            (
                ATTEND,
                "k, v, wide = k.double(), v.double(), q.double() * (q.shape[2] ** -0.5 if scale is None else scale)\n"
                "        top = wide.new_full((*q.shape[:2], 1), -1e300)\n"
                "        total, out = torch.zeros_like(top), torch.zeros_like(wide)\n"
                "        for at in range(0, table.length, self.block_size):\n"
                "            end = at + self.block_size\n"
                "            scores = (wide @ k[:, at:end].mT).masked_fill(~seen[:, at:end], float('-inf'))\n"
                "            new = torch.maximum(top, scores.amax(-1, keepdim=True))\n"
                "            p = (scores - new).exp()\n"
                "            total = total * (top - new).exp() + p.sum(-1, keepdim=True)\n"
                "            out, top = out + p @ v[:, at:end], new\n"
                "        return (out / total).to(q.dtype)",
            ),
        ),
    ),
    Mistake(
        "scale-ignored",
        "the scores are always divided by √head_dim",
        "That is what attention does.",
        "test_scale_multiplies_the_scores",
        change=((ATTEND, "return scaled_dot_product_attention(q, k, v, attn_mask=seen)"),),
    ),
    Mistake(
        "scale-of-zero-is-none",
        "scale=0 means the default, since 0 is false",
        "`scale or default` covers None.",
        "test_scale_multiplies_the_scores",
        change=(
            (ATTEND, "return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale or None)"),
        ),
    ),
    Mistake(
        "no-scale",
        "the scores are not divided by √head_dim",
        "Softmax normalises anyway.",
        "test_attend_equals_its_definition",
        change=((ATTEND, ATTEND.replace("scale=scale", "scale=1.0 if scale is None else scale")),),
    ),
    Mistake(
        "scale-by-the-length",
        "the default scale is 1/√length, not 1/√head_dim",
        "The more keys, the smaller the scores have to be.",
        "test_attend_equals_its_definition",
        change=(
            (ATTEND, ATTEND.replace("scale=scale", "scale=table.length**-0.5 if scale is None else scale")),
        ),
    ),
    Mistake(
        "added-up-in-half-precision",
        "block by block, normaliser and output are added up in the pool's dtype",
        "The accumulators have the dtype of the result.",
        "test_long_half_precision_sequences_sum_in_float32",
        change=(
            (
                ATTEND,
                "scores = (q.double() @ k.double().mT * (q.shape[2] ** -0.5 if scale is None else scale)).masked_fill(~seen, float('-inf'))\n"
                "        p = (scores - scores.amax(-1, keepdim=True)).exp().to(q.dtype)\n"
                "        total, out = q.new_zeros(*q.shape[:2], 1), torch.zeros_like(q)\n"
                "        for at in range(0, table.length, self.block_size):\n"
                "            part = p[..., at : at + self.block_size]\n"
                "            total += part.sum(-1, keepdim=True)\n"
                "            out += part @ v[:, at : at + self.block_size]\n"
                "        return out / total",
            ),
        ),
    ),
    Mistake(
        "the-last-tile-is-cut-off",
        "keys are taken 64 at a time, and those beyond a multiple of 64 are left out",
        "Lengths are multiples of the tile.",
        "test_every_token_of_a_long_sequence_counts",
        change=(
            (
                ATTEND,
                "whole = table.length // 64 * 64 or table.length\n"
                "        if q.shape[1] <= whole:\n"
                "            k, v, seen = k[:, :whole], v[:, :whole], seen[:, :whole]\n"
                f"        {ATTEND}",
            ),
        ),
    ),
    Mistake(
        "shapes-broadcast",
        "shapes are not checked: one head, or one dimension, is copied to all",
        "Assignment raises by itself if shapes do not fit.",
        "test_bad_arguments_are_refused",
        change=(
            (
                "        if any(shape != (self.num_heads, *shapes[0][1:2], self.head_dim) for shape in shapes):\n",
                "        if any(len(shape) != 3 for shape in shapes):\n",
            ),
            (
                "kv = torch.stack((k, v)).to(self._kv)",
                "kv = torch.stack([x.expand(self.num_heads, k.shape[1], self.head_dim) for x in (k, v)]).to(self._kv)",
            ),
        ),
    ),
    Mistake(
        "too-many-queries",
        "more queries than tokens are answered, the first ones with nothing to see",
        "The mask takes care of it.",
        "test_bad_arguments_are_refused",
        change=(("        if before < 0:\n", "        if False:\n"),),
    ),
    Mistake(
        "a-pool-of-nothing",
        "sizes of zero are accepted",
        "An empty pool is a pool.",
        "test_bad_arguments_are_refused",
        change=(("        if min(sizes) < 1:\n", "        if min(sizes) < 0:\n"),),
    ),
    Mistake(
        "the-pool-is-copied",
        "each append makes a new storage with the tokens put in",
        "Tensors should not be changed in place.",
        "test_append_moves_the_new_tokens_only",
        change=((WRITE, "self._kv = self._kv.clone()\n        " + WRITE),),
    ),
    Mistake(
        "the-sequence-is-rewritten",
        "each append gathers the sequence, concatenates the new tokens and writes it all back",
        "append is gather, cat and write.",
        "test_append_moves_the_new_tokens_only",
        change=(
            (
                "        positions, first = torch.arange(start, stop), start // size\n",
                "        kv = torch.cat([self._kv[:, :, table.blocks].flatten(2, 3)[:, :, :start], kv], 2)\n        positions, first = torch.arange(stop), 0\n",
            ),
            (FULL, "            for i in range(start // size, stop // size):\n"),
        ),
    ),
    # --- part 2
    Mistake(
        "fork-copies-everything",
        "fork copies every block at once",
        "A fork is a copy.",
        "test_a_fork_takes_no_block_and_holds_the_same",
        change=(
            (
                CHILD,
                "child.blocks, child._tokens = self._allocate(len(table.blocks)), table._tokens.copy()\n        self._kv[:, :, child.blocks] = self._kv[:, :, table.blocks]",
            ),
            ("        for block in table.blocks:\n" + COUNT_UP, ""),
        ),
    ),
    Mistake(
        "fork-copies-the-last-block",
        "fork copies the partly filled last block at once, whether anybody writes to it or not",
        "It will be written to anyway.",
        "test_a_fork_takes_no_block_and_holds_the_same",
        change=(
            (
                "        for block in table.blocks:\n" + COUNT_UP,
                "        if table.length % self.block_size:\n"
                "            child.blocks[-1:] = self._allocate(1)\n"
                "            self._kv[:, :, child.blocks[-1]] = self._kv[:, :, table.blocks[-1]]\n"
                "        for block in set(table.blocks) & set(child.blocks):\n" + COUNT_UP,
            ),
        ),
    ),
    Mistake(
        "an-append-of-nothing-copies",
        "an append of no tokens takes a copy of a shared block all the same",
        "Whoever calls append will write.",
        "test_a_fork_takes_no_block_and_holds_the_same",
        change=((SPLIT, SPLIT.replace(" and stop > start", "")),),
    ),
    Mistake(
        "one-list-for-parent-and-child",
        "parent and child share one list of blocks: what one appends, the other holds too",
        "Copying the object copies its list.",
        "test_forks_do_not_see_each_other",
        change=((CHILD, "child._tokens = table._tokens.copy()"),),
    ),
    Mistake(
        "written-in-place",
        "a shared block is written in place: the other sequence reads the new tokens' keys as its own",
        "Each one knows its length.",
        "test_forks_do_not_see_each_other",
        change=((SPLIT, "split = False"),),
    ),
    Mistake(
        "only-the-parent-copies",
        "a parent copies the shared block, its children write in place, all into the same slots",
        "The block is the child's from now on.",
        "test_forks_do_not_see_each_other",
        change=(
            (SPLIT, SPLIT + " and not hasattr(table, '_child')"),
            ("        return child\n", "        child._child = True\n        return child\n"),
        ),
    ),
    Mistake(
        "the-copy-is-blank",
        "the new block gets the new tokens, but not those that were in the shared one",
        "Allocating a block is copying it.",
        "test_forks_do_not_see_each_other",
        change=((COPY, "pass"),),
    ),
    Mistake(
        "only-keys-are-copied",
        "the copy of a shared block has its keys, but not its values",
        "The block is copied.",
        "test_forks_do_not_see_each_other",
        change=((COPY, "self._kv[0, :, fresh[0]] = self._kv[0, :, shared]"),),
    ),
    Mistake(
        "a-full-block-is-copied",
        "a shared last block is copied even if it is full and nothing will be written to it",
        "An append copies the last block if it is shared.",
        "test_only_a_written_block_is_copied",
        change=((SPLIT, "split = stop > start > 0 and self._owners.get(table.blocks[-1], 1) > 1"),),
    ),
    Mistake(
        "the-whole-sequence-is-copied",
        "the first append after a fork copies every shared block",
        "Copy on write copies the table.",
        "test_only_a_written_block_is_copied",
        change=(
            (
                BLOCKS_NEEDED,
                "if stop > start and any(self._owners.get(b, 1) > 1 for b in table.blocks):\n"
                "            own = self._allocate(len(table.blocks))\n"
                "            self._kv[:, :, own] = self._kv[:, :, table.blocks]\n"
                "            for b in table.blocks:\n"
                "                self._owners[b] = self._owners.get(b, 1) - 1\n"
                "                if self._owners[b] == 0:\n"
                "                    del self._owners[b]\n"
                "                    self._blank.append(b)\n"
                "            table.blocks, split = own, False\n"
                "        " + BLOCKS_NEEDED,
            ),
        ),
    ),
    Mistake(
        "the-copied-block-keeps-its-count",
        "after a copy the old block still counts the sequence that left it, and is never free again",
        "The count changes at fork and free.",
        "test_a_shared_block_is_free_when_its_last_owner_is",
        change=(("            self._owners[shared] -= 1\n", ""),),
    ),
    Mistake(
        "freed-with-its-first-owner",
        "free gives back shared blocks that other sequences still hold",
        "free frees the table's blocks.",
        "test_a_shared_block_is_free_when_its_last_owner_is",
        change=(
            (
                "            owners = self._owners.pop(block, 1) - 1\n",
                "            owners = self._owners.pop(block, 1) * 0\n",
            ),
        ),
    ),
    Mistake(
        "counted-once",
        "a block counts as shared or not: the third owner is not counted",
        "A flag is enough.",
        "test_a_shared_block_is_free_when_its_last_owner_is",
        change=((COUNT_UP, "            self._owners[block] = 2\n"),),
    ),
    Mistake(
        "never-alone-again",
        "a block that was once shared is copied even when nobody else holds it any more",
        "Shared stays shared.",
        "test_a_copy_that_does_not_fit_changes_nothing",
        change=(
            (SPLIT, "split = start % size > 0 and stop > start and table.blocks[-1] in self._owners"),
            (
                "            self._owners[shared] -= 1\n",
                "            self._owners[shared] -= 1\n            if not self._owners[shared]:\n                del self._owners[shared]\n                self._blank.append(shared)\n",
            ),
        ),
    ),
    Mistake(
        "the-copy-is-not-counted",
        "the block for the copy is taken after the check, so that the append fails half done",
        "Only new blocks have to be counted.",
        "test_a_copy_that_does_not_fit_changes_nothing",
        change=(
            (
                BLOCKS_NEEDED,
                "if split:\n            self._owners[table.blocks[-1]] -= 1\n        " + BLOCKS_NEEDED,
            ),
            ("            self._owners[shared] -= 1\n", ""),
        ),
    ),
    Mistake(
        "first-the-copy-then-the-rest",
        "the block for the copy is taken before it is known whether there are blocks for the tokens",
        "The copy comes first.",
        "test_a_copy_that_does_not_fit_changes_nothing",
        change=(
            (
                BLOCKS_NEEDED,
                "fresh = self._allocate(int(split))\n"
                "        fresh += self._allocate(-(-stop // size) - len(table.blocks))",
            ),
        ),
    ),
    Mistake(
        "a-fork-of-the-dead",
        "a freed table can be forked, and its blocks have two owners",
        "fork only copies a list.",
        "test_a_freed_table_cannot_be_forked",
        change=(
            (
                "        self._check(table)\n        child = copy(table)\n",
                "        child = copy(table)\n        child._live = True\n",
            ),
        ),
    ),
    # --- part 3
    Mistake(
        "key-without-its-prefix",
        "a block is found by its own ids, whatever stood before it",
        "Equal tokens have equal keys and values.",
        "test_the_same_ids_after_another_prefix_are_not_shared",
        change=((KEY, 'return hashlib.sha256(array("q", tokens).tobytes()).digest()'),),
    ),
    Mistake(
        "key-of-ids-and-position",
        "a block is found by its own ids and its position, whatever stood before it",
        "Same tokens, same position: same keys and values.",
        "test_the_same_ids_after_another_prefix_are_not_shared",
        change=(
            (
                KEY,
                'at = int.from_bytes(digest[:8], "big") + 1\n    return at.to_bytes(8, "big") + array("q", tokens).tobytes()',
            ),
        ),
    ),
    Mistake(
        "key-of-two-blocks",
        "a block is found by its own ids and those of the block before it, not of all blocks before it",
        "One block of context tells prefixes apart.",
        "test_the_same_ids_after_another_prefix_are_not_shared",
        change=((KEY, 'own = array("q", tokens).tobytes()\n    return digest[-len(own) :] + own'),),
    ),
    Mistake(
        "key-of-the-block-found-before",
        "a block's key holds the id of the cached block before it, which may be another's by then",
        "A block's id stands for what it holds.",
        "test_what_follows_a_twin_is_found_behind_its_own_ids",
        change=(
            (
                "                self._remember(table.blocks[i], table._digest)\n",
                "                self._remember(table.blocks[i], table._digest)\n"
                '                table._digest = b"%d" % self._cached[table._digest]\n',
            ),
            (
                "table.length, table._digest = stop, digest",
                'table.length, table._digest = stop, b"%d" % block',
            ),
        ),
    ),
    Mistake(
        "key-of-its-own-block-before",
        "a block's key holds the id of the block before it in its own table, which need not be the cached one",
        "No other block has these ids.",
        "test_what_follows_a_twin_is_found_behind_its_own_ids",
        change=(
            (
                "                self._remember(table.blocks[i], table._digest)\n",
                "                self._remember(table.blocks[i], table._digest)\n"
                '                table._digest = b"%d" % table.blocks[i]\n',
            ),
            (
                "table.length, table._digest = stop, digest",
                'table.length, table._digest = stop, b"%d" % block',
            ),
        ),
    ),
    Mistake(
        "hash-without-comparison",
        "Python's hash of the ids is the key, and hash(−1) = hash(−2)",
        "A hash stands for what was hashed.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, "return str(hash((digest, *tokens))).encode()"),),
    ),
    Mistake(
        "ids-joined-without-a-separator",
        "the ids are joined to a string without a separator, so that 1, 23 and 12, 3 are the same",
        "A string of the ids is a key.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, 'return digest + b"|" + "".join(map(str, tokens)).encode()'),),
    ),
    Mistake(
        "order-ignored",
        "the ids of a block are a set: their order does not count",
        "The same tokens are in it.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, 'return hashlib.sha256(digest + array("q", sorted(tokens)).tobytes()).digest()'),),
    ),
    Mistake(
        "ids-cut-to-a-byte",
        "the ids are hashed as bytes, modulo 256",
        "bytes(tokens) is what a hash takes.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, "return hashlib.sha256(digest + bytes(t % 256 for t in tokens)).digest()"),),
    ),
    Mistake(
        "ids-cut-to-32-bits",
        "the ids are hashed as 32-bit integers",
        "No vocabulary is larger.",
        "test_ids_that_look_alike_are_told_apart",
        change=(
            (
                KEY,
                'return hashlib.sha256(digest + array("I", [t % 2**32 for t in tokens]).tobytes()).digest()',
            ),
        ),
    ),
    Mistake(
        "sign-of-the-ids-cut-off",
        "the ids are hashed without their sign bit",
        "An id is never negative.",
        "test_ids_that_look_alike_are_told_apart",
        change=(
            (
                KEY,
                'return hashlib.sha256(digest + array("Q", [t % 2**63 for t in tokens]).tobytes()).digest()',
            ),
        ),
    ),
    Mistake(
        "ids-as-floating-point-numbers",
        "the ids are hashed as float64, which tells integers apart up to 2⁵³ only",
        "A number is a number.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, 'return hashlib.sha256(digest + array("d", tokens).tobytes()).digest()'),),
    ),
    Mistake(
        "a-polynomial-in-31",
        "the key is a polynomial in 31, so that 0, 31 and 1, 0 are the same",
        "That is how strings are hashed.",
        "test_ids_that_look_alike_are_told_apart",
        change=(
            (KEY, 'return b"%d" % functools.reduce(lambda h, t: 31 * h + t, tokens, int(digest or b"7"))'),
            ("import hashlib\n", "import functools\nimport hashlib\n"),
        ),
    ),
    Mistake(
        "summed-ids",
        "the key is a sum over the ids weighted by their place",
        "A rolling sum is a hash.",
        "test_ids_that_look_alike_are_told_apart",
        change=((KEY, 'return digest + b"|" + str(sum(tokens)).encode()'),),
    ),
    Mistake(
        "the-cache-forgets-at-free",
        "a freed block is forgotten: prefixes are shared among live sequences only",
        "Freed is gone.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (
                IDLE,
                "                del self._cached[self._digests.pop(block)]\n                self._blank.append(block)\n",
            ),
        ),
    ),
    Mistake(
        "found-only-after-free",
        "a block can be found only once its sequence was freed",
        "It is cached when it is given back.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (
                "            if digest not in self._cached:\n                break\n",
                "            if digest not in self._cached or self._cached[digest] not in self._idle:\n                break\n",
            ),
        ),
    ),
    Mistake(
        "all-or-nothing",
        "a prompt is found as a whole or not at all",
        "The cache maps prompts to tables.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (
                "        table, size = PageTable(), self.block_size\n",
                "        table, size, whole = PageTable(), self.block_size, b''\n"
                "        for stop in range(size, len(tokens) + 1, size):\n"
                "            whole = _chained(whole, tokens[stop - size : stop])\n"
                "        if whole not in self._cached:\n"
                "            return table\n",
            ),
        ),
    ),
    Mistake(
        "the-last-block-is-left-out",
        "a block that ends the prompt is never found",
        "range(0, len(tokens) - block_size, block_size) are the blocks.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(("range(size, len(tokens) + 1, size)", "range(size, len(tokens), size)"),),
    ),
    Mistake(
        "found-and-not-held",
        "match_prefix does not count the new owner: the block is free while it is in use",
        "Looking up changes nothing.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (
                "            self._owners[block] = self._owners.get(block, 0) + 1  # cached blocks in use are all counted\n"
                + REVIVE,
                "",
            ),
        ),
    ),
    Mistake(
        "found-and-still-free",
        "a freed block that was found again stays on the list of free ones",
        "The count says that it is in use.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (REVIVE, ""),
            (
                EVICT,
                EVICT.replace(
                    "            del self._cached[",
                    "            self._owners.pop(block, None)\n            del self._cached[",
                ),
            ),
        ),
    ),
    Mistake(
        "kept-for-ever",
        "cached blocks are never given up: OutOfBlocks although no table holds them",
        "The cache owns them.",
        "test_cached_blocks_are_free",
        change=((SHORT, "        if count > len(self._blank):\n"),),
    ),
    Mistake(
        "entries-left-behind",
        "an evicted block keeps its entry: its old ids find another sequence's content",
        "The entry will be overwritten.",
        "test_cached_blocks_are_free",
        change=(
            (
                "            del self._cached[self._digests.pop(block)]\n",
                "            self._digests.pop(block)\n",
            ),
            (
                "        if digest not in self._cached:\n            self._cached",
                "        if self._digests.get(self._cached.get(digest)) != digest:\n            self._cached",
            ),
        ),
    ),
    Mistake(
        "a-digest-outlives-its-block",
        "a block that was evicted keeps its digest: shared and freed again, it passes for a cached one",
        "The digest will be overwritten.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(
            (
                "            del self._cached[self._digests.pop(block)]\n",
                "            self._cached.pop(self._digests[block], None)\n",
            ),
        ),
    ),
    Mistake(
        "evicted-in-use",
        "the oldest cached block is evicted although a table holds it",
        "The least recently cached block goes.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(
            (
                EVICT,
                "        while len(self._blank) < count:\n"
                "            block = next(iter(self._digests))\n"
                "            del self._cached[self._digests.pop(block)]\n"
                "            if block in self._idle:\n"
                "                del self._idle[block]\n"
                "            elif self._idle:\n"
                "                self._idle.popitem()\n"
                "            self._blank.append(block)\n",
            ),
        ),
    ),
    Mistake(
        "cached-before-blank",
        "cached blocks are evicted while there are free ones without content",
        "The cache gives way to live sequences.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(
            (
                EVICT,
                "        for _ in range(min(count, len(self._idle))):\n"
                "            block, _ = self._idle.popitem(last=False)\n"
                "            del self._cached[self._digests.pop(block)]\n"
                "            self._blank.append(block)\n",
            ),
        ),
    ),
    Mistake(
        "nothing-evicted-for-a-copy",
        "the block for a copy comes from those without content only: OutOfBlocks although cached ones are free",
        "A copy goes into an empty block.",
        "test_cached_blocks_are_free",
        change=(
            (
                "        fresh = self._allocate(",
                "        if split and not self._blank:\n"
                '            raise OutOfBlocks("no block for the copy")\n'
                "        fresh = self._allocate(",
            ),
        ),
    ),
    Mistake(
        "one-evicted-too-many",
        "a cached block is evicted although the blank ones were just enough",
        "There should be one in reserve.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(
            (
                EVICT,
                EVICT.replace(
                    "while len(self._blank) < count:", "while self._idle and len(self._blank) <= count:"
                ),
            ),
        ),
    ),
    Mistake(
        "last-in-first-out",
        "the block freed last is evicted first",
        "popitem takes the oldest.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(("self._idle.popitem(last=False)", "self._idle.popitem()"),),
    ),
    Mistake(
        "beginning-before-end",
        "of a freed sequence the first block is evicted first, and the rest can never be found again",
        "Blocks are freed in the table's order.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(("        for block in reversed(table.blocks):\n", "        for block in table.blocks:\n"),),
    ),
    Mistake(
        "first-cached-first-out",
        "eviction goes by the time at which a block was cached, not by when it was last let go",
        "The oldest entry is the least used.",
        "test_eviction_spares_what_is_in_use_and_takes_the_longest_free",
        change=(
            (
                EVICT,
                EVICT.replace(
                    "            block, _ = self._idle.popitem(last=False)\n",
                    "            block = next(b for b in self._digests if b in self._idle)\n            del self._idle[block]\n",
                ),
            ),
        ),
    ),
    Mistake(
        "evicted-until-it-does-not-fit",
        "an append that does not fit evicts the whole cache before it raises",
        "First make room, then see.",
        "test_a_refused_append_gives_up_nothing",
        change=(
            (
                SHORT,
                "        while self._idle and count > len(self._blank):\n"
                "            block, _ = self._idle.popitem(last=False)\n"
                "            del self._cached[self._digests.pop(block)]\n"
                "            self._blank.append(block)\n" + SHORT,
            ),
        ),
    ),
    Mistake(
        "only-prompts",
        "blocks that fill up over several appends are never cached",
        "Only the prompt is worth caching.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=((FULL, "            for i in range(first if start == 0 else stop, stop // size):\n"),),
    ),
    Mistake(
        "match-forgets-the-ids",
        "a table from match_prefix does not know its ids, so nothing behind them is cached",
        "The ids are in the cache already.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=(("        table._tokens = list(tokens[: table.length])\n", ""),),
    ),
    Mistake(
        "match-forgets-the-chain",
        "behind a found prefix the chain of hashes starts anew",
        "Each append hashes its own blocks.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=(
            (
                "        table._tokens = list(tokens[: table.length])\n",
                "        table._tokens, table._digest = list(tokens[: table.length]), b''\n",
            ),
        ),
    ),
    Mistake(
        "one-list-of-ids-for-parent-and-child",
        "parent and child share one list of ids",
        "Only the blocks have to be copied.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=((CHILD, "child.blocks = table.blocks.copy()"),),
    ),
    Mistake(
        "the-callers-list",
        "the first list of ids is kept as it is, and grows or changes with what its owner does to it",
        "A list that is passed in is mine.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=(
            (
                "            table._tokens += tokens\n",
                "            table._tokens = table._tokens + list(tokens) if start else tokens\n",
            ),
        ),
    ),
    Mistake(
        "fork-forgets-the-ids",
        "a fork does not know its ids, so that what it fills is never cached",
        "A fork copies blocks and length.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=((CHILD, "child.blocks, child._tokens, child._digest = table.blocks.copy(), [], b''"),),
    ),
    Mistake(
        "a-zero-for-a-missing-id",
        "a token that came without an id counts as id 0, and what follows is cached",
        "Zero is as good as none.",
        "test_nothing_is_cached_behind_a_token_without_an_id",
        change=(
            (
                "        if tokens is not None and len(table._tokens) == start:\n",
                "        if tokens is None:\n            tokens = [0] * (stop - start)\n        if True:\n",
            ),
        ),
    ),
    Mistake(
        "ids-close-the-gap",
        "ids told after tokens without ids move up to the place of those",
        "The ids are one list.",
        "test_nothing_is_cached_behind_a_token_without_an_id",
        change=(
            (
                "        if tokens is not None and len(table._tokens) == start:\n",
                "        if tokens is not None:\n            first = len(table._tokens) // size\n",
            ),
            (
                "            for i in range(first, stop // size):\n",
                "            for i in range(first, len(table._tokens) // size):\n",
            ),
        ),
    ),
    Mistake(
        "told-though-refused",
        "the ids of an append that does not fit are noted all the same",
        "First the ids, then the blocks.",
        "test_a_refused_append_tells_no_ids",
        change=(
            (
                "        kv = torch.stack((k, v)).to(self._kv)\n",
                "        known = tokens is not None and len(table._tokens) == start\n"
                "        table._tokens += tokens if known else ()\n"
                "        kv = torch.stack((k, v)).to(self._kv)\n",
            ),
            (
                "        if tokens is not None and len(table._tokens) == start:\n            table._tokens += tokens\n",
                "        if known:\n",
            ),
        ),
    ),
    Mistake(
        "untold-though-refused",
        "an append without ids ends the telling even if it is refused",
        "A flag may be set first: whoever gets an exception gives up.",
        "test_a_refused_append_tells_no_ids",
        change=(
            (
                "        kv = torch.stack((k, v)).to(self._kv)\n",
                "        table._told = getattr(table, '_told', True) and (tokens is not None or stop == start)\n"
                "        kv = torch.stack((k, v)).to(self._kv)\n",
            ),
            ("len(table._tokens) == start:\n", "table._told:\n"),
        ),
    ),
    Mistake(
        "nothing-ends-the-telling",
        "an append of no tokens, which has no ids, ends the telling",
        "Without ids means unknown from here on.",
        "test_blocks_are_cached_while_all_ids_are_told",
        change=(
            (
                "        if tokens is not None and len(table._tokens) == start:\n",
                "        table._told = getattr(table, '_told', True) and tokens is not None\n        if table._told:\n",
            ),
        ),
    ),
    Mistake(
        "the-partly-filled-block-is-cached",
        "a sequence's last, partly filled block is cached too, and written to while others hold it",
        "The end of the prompt is worth sharing.",
        "test_whole_blocks_of_a_common_prefix_are_found",
        change=(
            (FULL, "            for i in range(first, -(-stop // size)):\n"),
            (
                "        for stop in range(size, len(tokens) + 1, size):\n            digest = _chained(table._digest, tokens[stop - size : stop])\n",
                "        for at in range(0, len(tokens), size):\n            stop = min(at + size, len(tokens))\n            digest = _chained(table._digest, tokens[at:stop])\n",
            ),
        ),
    ),
    Mistake(
        "evicted-with-its-twin",
        "when one of two blocks with the same ids is evicted, the entry goes that leads to the other",
        "An entry belongs to its ids.",
        "test_the_same_ids_appended_twice_are_safe",
        change=(
            (
                "        if digest not in self._cached:\n            self._cached",
                "        if True:\n            self._cached",
            ),
            (
                EVICT,
                EVICT.replace(
                    "del self._cached[self._digests.pop(block)]",
                    "self._cached.pop(self._digests.pop(block), None)",
                ),
            ),
        ),
    ),
    Mistake(
        "one-idle-block-for-each-hash",
        "the blocks that wait for eviction are kept by hash: of two with the same ids, one is lost",
        "A hash has one block.",
        "test_the_same_ids_appended_twice_are_safe",
        change=(
            (
                "        if digest not in self._cached:\n            self._cached",
                "        if True:\n            self._cached",
            ),
            (IDLE, "                self._idle[self._digests[block]] = block\n"),
            (REVIVE, "            self._idle.pop(digest, None)\n"),
            (
                EVICT,
                EVICT.replace("block, _ = self", "digest, block = self").replace(
                    "del self._cached[self._digests.pop(block)]",
                    "del self._cached[digest], self._digests[block]",
                ),
            ),
        ),
    ),
    Mistake(
        "ids-not-counted",
        "fewer or more ids than tokens are accepted",
        "zip stops at the shorter one.",
        "test_as_many_ids_as_tokens",
        change=(("        if tokens is not None and len(tokens) != k.shape[1]:\n", "        if False:\n"),),
    ),
    Mistake(
        "a-byte-of-the-past",
        "only the first byte of a block's key goes into the key of the next",
        "Any part of a good hash is a good hash.",
        "test_a_block_is_found_after_its_own_past_only",
        change=(("return hashlib.sha256(digest + array(", "return hashlib.sha256(digest[:1] + array("),),
    ),
)

EQUIVALENT = (
    (
        "if self._owners.keys().isdisjoint(table.blocks):\n    self._blank += table.blocks\n    return",
        "if False:\n    self._blank += table.blocks\n    return",
        "the loop below gives the same blocks back, one by one",
    ),
    (
        "torch.ones(q.shape[1], table.length, dtype=torch.bool, device=q.device)",
        "torch.ones(q.shape[1], table.length, dtype=torch.bool)",
        "it shows on another device only, and claims attend on the CPU",
    ),
    ("1", "2", "range(size, len(tokens) + 2, size): a block cut short has a key that no full block has"),
    ("1", "0", "a block without a count has one owner; that it has none would not be more than one either"),
    ("0", "-1", "shapes[-1][1:2]: k and v must have equally many tokens, whichever is taken for due"),
)
"""Mutants that do the same as the reference wherever it can be tried, with the reason."""
