"""What people get wrong in a KV cache: its length, its mask for chunks, its memory, and its ring."""

import torch

from dojo.mistake import Mistake

WRITE = "self._kv[0, :, :, new], self._kv[1, :, :, new] = k.detach(), v.detach()"
MOVE = f"        {WRITE}\n        self.length = stop\n"
STOP = "        stop = self.length + k.shape[2]\n"
FULL = "        if stop > self.max_len:\n"
NEW = "        new = slice(self.length, stop)\n"
VIEW = "k, v = self._kv[:, :, :, : self.length]"
CLONE = '''    def clone(self) -> "KVCache":
        """An independent cache that holds the same: another branch of the sequence."""
        return copy.deepcopy(self)
'''
RING_CLONE = CLONE.replace("KVCache", "WindowKVCache")
RESET = '''        """Forget all tokens. The memory stays, and is written over."""
        self.length = 0

    def _extended'''
RING_RESET = RESET.replace("_extended", "_slots")
EXTENDED = "        self.append(k, v)\n        return *self.view(), None\n"
REPEAT = "keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (keys, values))"
ATTEND = "return attention(q, keys, values, mask=near, causal=True, scale=scale)"
GOES_IN = "    keys, values, near = cache._extended(k, v)\n"
FIT = "    fit = q.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]\n"
CHECK_Q = """    if not fit or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not fit k {tuple(k.shape)} and v {tuple(v.shape)}")
"""
CHECK = "if k.ndim != 4 or k.shape != v.shape or k.shape != (batch, heads, k.shape[2], dim):"
ROOM = "return torch.zeros(2, batch, heads, tokens, dim, dtype=dtype, device=device)"
RING_ROOM = "self._kv = _room(batch, n_kv_heads, window, head_dim, dtype, device)"
RING_K = "self._kv[0, :, :, slots] = k[:, :, pushed_out:].detach()"
RING_V = "self._kv[1, :, :, slots] = v[:, :, pushed_out:].detach()"
RING_MOVE = "        self.length += k.shape[2]\n"
RING_VIEW = "k, v = self._kv[:, :, :, self._slots(min(self.length, self.window))]"
SLOTS = "return torch.arange(self.length - count, self.length, device=self._kv.device) % self.window"
NEAR = "return keys, values, near.triu(last + 1 - self.window)"
PAST = "        past_k, past_v = self.view()\n        self.append(k, v)\n"


def attends_to_the_whole_room(q, k, v, cache, *, scale=None):
    _check(cache._kv, k, v)
    fit = q.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not fit or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not fit k {tuple(k.shape)} and v {tuple(v.shape)}")
    start = cache.length
    keys, values, near = cache._extended(k, v)
    if near is None:
        keys, values = cache._kv
        near = torch.arange(keys.shape[2]) <= start + torch.arange(k.shape[2])[:, None]
    else:
        near = near.tril(keys.shape[2] - k.shape[2])
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (keys, values))
    return attention(q, keys, values, mask=near, scale=scale)


BY_HAND = """    wide = {dtype}
    at = torch.arange(keys.shape[2], device=q.device)
    seen = at <= at[keys.shape[2] - q.shape[2] :, None]
    seen = seen if near is None else seen & near
    scores = q.to(wide) @ keys.to(wide).mT * (q.shape[3] ** -0.5 if scale is None else scale)
"""


class RolledWindowKVCache:
    def __init__(self, batch, n_kv_heads, window, head_dim, *, dtype=None, device=None):
        self._kv = _room(batch, n_kv_heads, window, head_dim, dtype, device)
        self.window, self.length = window, 0

    def append(self, k, v):
        _check(self._kv, k, v)
        self.length += k.shape[2]
        new = torch.stack((k, v)).detach()
        self._kv = torch.cat((self._kv, new), dim=3)[:, :, :, -self.window :].clone()

    def view(self):
        k, v = self._kv[:, :, :, self.window - min(self.length, self.window) :]
        return k, v

    def clone(self):
        return copy.deepcopy(self)

    def reset(self):
        self.length = 0

    def _extended(self, k, v):
        past = self.view()
        self.append(k, v)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        last = keys.shape[2] - k.shape[2]
        near = torch.ones(k.shape[2], keys.shape[2], dtype=torch.bool, device=k.device)
        return keys, values, near.triu(last + 1 - self.window)


MISTAKES = (
    # --- what is held ---
    Mistake(
        "length-not-moved",
        "the length stays as it is, so that each append writes over the one before",
        "The slice assignment does the work.",
        "test_the_cache_reads_as_what_was_appended",
        change=((MOVE, MOVE.replace("self.length = stop\n", "self.length = k.shape[2]\n")),),
    ),
    Mistake(
        "length-counts-calls",
        "an append counts as one token, however many it brings",
        "Decoding appends one token at a time.",
        "test_the_cache_reads_as_what_was_appended",
        change=((MOVE, MOVE.replace("self.length = stop\n", "self.length += 1\n")),),
    ),
    Mistake(
        "the-whole-room-is-read",
        "view gives all max_len slots, the empty ones included",
        "The mask takes care of the rest.",
        "test_the_cache_reads_as_what_was_appended",
        change=((VIEW, "k, v = self._kv"),),
    ),
    Mistake(
        "dtype-ignored",
        "the cache is made in torch's default dtype, whatever it is asked for",
        "Assignment converts.",
        "test_the_cache_reads_as_what_was_appended",
        change=((ROOM, "return torch.zeros(2, batch, heads, tokens, dim, device=device)"),),
    ),
    Mistake(
        "half-precision-by-default",
        "without a dtype the cache is bfloat16",
        "Caches are kept in half precision.",
        "test_the_dtype_is_that_of_torch_unless_given",
        change=((ROOM, ROOM.replace("dtype=dtype", "dtype=dtype or torch.bfloat16")),),
    ),
    Mistake(
        "device-ignored",
        "the cache is made on the CPU, whatever device it is asked for",
        "torch finds the device.",
        "test_a_cache_lies_on_its_device",
        change=((ROOM, "return torch.zeros(2, batch, heads, tokens, dim, dtype=dtype)"),),
    ),
    Mistake(
        "grown-by-cat",
        "each append joins the old keys and the new ones into a new tensor",
        "torch.cat along time is a cache.",
        "test_view_copies_nothing",
        change=(
            (
                MOVE,
                "        old = self._kv[:, :, :, : self.length]\n"
                "        self._kv = torch.cat([old, torch.stack((k, v)).detach()], dim=3)\n"
                "        self.length = stop\n",
            ),
        ),
    ),
    Mistake(
        "rewritten-with-every-token",
        "each append clones the whole cache and writes into the clone",
        "In-place writes are dangerous.",
        "test_append_moves_the_new_tokens_only",
        change=((NEW, "        self._kv = self._kv.clone()\n" + NEW),),
    ),
    Mistake(
        "the-pieces-are-kept",
        "the cache keeps every piece that was appended besides writing it",
        "They may be needed.",
        "test_append_moves_the_new_tokens_only",
        change=((MOVE, MOVE + "        self._pieces = [*getattr(self, '_pieces', ()), (k, v)]\n"),),
    ),
    Mistake(
        "the-callers-tensors",
        "the first piece is not copied: it is the caller's tensor until the next one comes",
        "Copying a prompt is a waste.",
        "test_cache_and_caller_share_no_memory",
        change=(
            (
                NEW,
                "        for room, mine in zip(self._kv, getattr(self, '_mine', None) or (), strict=False):\n"
                "            room[:, :, : mine.shape[2]] = mine\n"
                "        self._mine = None if self.length else (k.detach(), v.detach())\n" + NEW,
            ),
            (VIEW, "k, v = getattr(self, '_mine', None) or self._kv[:, :, :, : self.length]"),
            (
                '        """Forget all tokens. The memory stays, and is written over."""\n'
                "        self.length = 0\n\n    def _extended",
                '        """Forget all tokens. The memory stays, and is written over."""\n'
                "        self.length, self._mine = 0, None\n\n    def _extended",
            ),
        ),
    ),
    Mistake(
        "view-copies",
        "view gives copies of all keys and values",
        "Nobody should write into the cache.",
        "test_view_copies_nothing",
        change=((VIEW, "k, v = self._kv[:, :, :, : self.length].clone()"),),
    ),
    Mistake(
        "full-one-too-early",
        "a cache with room for max_len tokens refuses the last one",
        "The index must stay below max_len.",
        "test_a_cache_that_is_full_refuses_and_changes_nothing",
        change=((FULL, "        if stop >= self.max_len:\n"),),
    ),
    Mistake(
        "length-moved-before-the-check",
        "an append that raises CacheFull has moved the length already",
        "After an error nobody goes on.",
        "test_a_cache_that_is_full_refuses_and_changes_nothing",
        change=(
            (
                STOP,
                "        start, self.length = self.length, self.length + k.shape[2]\n        stop = self.length\n",
            ),
            (NEW, "        new = slice(start, stop)\n"),
        ),
    ),
    Mistake(
        "filled-up-before-it-raises",
        "attend_with_cache takes the tokens one by one, and raises CacheFull when those that fit are in",
        "The last append checks.",
        "test_a_cache_that_is_full_refuses_and_changes_nothing",
        change=(
            (
                GOES_IN,
                "    room = cache.max_len - cache.length if isinstance(cache, KVCache) else k.shape[2]\n"
                "    if room < k.shape[2]:\n"
                "        cache.append(k[:, :, :room], v[:, :, :room])\n" + GOES_IN,
            ),
        ),
    ),
    Mistake(
        "full-for-no-tokens-too",
        "a full cache refuses an append of no tokens",
        "Full is full.",
        "test_an_empty_cache_holds_nothing",
        change=((FULL, "        if stop > self.max_len or self.length == self.max_len:\n"),),
    ),
    Mistake(
        "overflow-is-cut",
        "tokens that do not fit are dropped in silence",
        "The context ends at max_len.",
        "test_a_cache_that_is_full_refuses_and_changes_nothing",
        change=(
            (
                FULL,
                "        fits = self.max_len - self.length\n        k, v = k[:, :, :fits], v[:, :, :fits]\n"
                "        stop = self.length + k.shape[2]\n" + FULL,
            ),
        ),
    ),
    Mistake(
        "overflow-unchecked",
        "an append that does not fit fails in the assignment, with a RuntimeError",
        "PyTorch checks shapes.",
        "test_a_cache_that_is_full_refuses_and_changes_nothing",
        change=((FULL, "        if stop < 0:\n"),),
    ),
    Mistake(
        "reset-keeps-the-length",
        "reset writes zeros and leaves the length",
        "An empty cache is full of zeros.",
        "test_a_reset_forgets_everything",
        change=((RESET, RESET.replace("self.length = 0", "self._kv.zero_()")),),
    ),
    Mistake(
        "the-whole-room-is-attended-to",
        "attention runs over all max_len slots, the empty ones masked; what stands there, NaN, gets in as 0 · NaN",
        "A weight of zero hides everything.",
        "test_a_reset_forgets_everything",
        define=(("attend_with_cache", attends_to_the_whole_room),),
    ),
    Mistake(
        "shallow-clone",
        "a clone shares its memory with the cache it came from",
        "copy.copy copies.",
        "test_clones_do_not_see_each_other",
        change=((CLONE, CLONE.replace("deepcopy", "copy")),),
    ),
    Mistake(
        "clone-without-room",
        "a clone has room for the tokens it holds and for no more",
        "It holds the same.",
        "test_clones_do_not_see_each_other",
        change=(
            (
                CLONE,
                """    def clone(self) -> "KVCache":
        _, batch, heads, _, dim = self._kv.shape
        other = KVCache(batch, heads, max(self.length, 1), dim, dtype=self._kv.dtype, device=self._kv.device)
        other.append(*self.view())
        return other
""",
            ),
        ),
    ),
    Mistake(
        "clone-starts-empty",
        "a clone has the room and not the tokens",
        "A clone is a cache of the same size.",
        "test_clones_do_not_see_each_other",
        change=(
            (
                CLONE,
                CLONE.replace(
                    "return copy.deepcopy(self)",
                    "twin = copy.deepcopy(self)\n        twin.length = 0\n        return twin",
                ),
            ),
        ),
    ),
    Mistake(
        "one-room-for-all",
        "caches of the same sizes share one memory",
        "The buffer of a size is made once.",
        "test_two_caches_share_nothing",
        change=(
            ("import copy\n", "import copy\nimport functools\n"),
            ("def _room(", "@functools.cache\ndef _room("),
        ),
    ),
    Mistake(
        "graph-kept",
        "the cache keeps the graph of what is appended",
        "Autograd looks after itself.",
        "test_the_cache_keeps_no_graph",
        change=((WRITE, WRITE.replace(".detach()", "")),),
    ),
    # --- attention over it ---
    Mistake(
        "no-mask-for-a-chunk",
        "the tokens of a chunk see each other's future",
        "With a cache no mask is needed: all keys are in the past.",
        "test_later_tokens_of_a_chunk_never_matter",
        change=((ATTEND, "return attention(q, keys, values, mask=near, scale=scale)"),),
    ),
    Mistake(
        "triangle-at-the-first-key",
        "the causal triangle of a chunk starts at the first key, so that query i sees the keys 0 … i only",
        "is_causal=True is all that causal attention takes.",
        "test_prefill_then_decode_in_any_split_equals_one_pass",
        change=(
            (
                ATTEND,
                "past = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril()\n"
                "    if near is None:\n        return attention(q, keys, values, mask=past, scale=scale)\n"
                f"    {ATTEND}",
            ),
        ),
    ),
    Mistake(
        "mask-for-a-prefill-only",
        "causal is applied to the first chunk and to none after it",
        "Prefill is causal, decoding needs no mask.",
        "test_later_tokens_of_a_chunk_never_matter",
        change=(
            (ATTEND, ATTEND.replace("causal=True", "causal=near is not None or q.shape[2] == keys.shape[2]")),
        ),
    ),
    Mistake(
        "new-tokens-left-out",
        "the new tokens attend to what was held before, and not to themselves",
        "First look up, then append.",
        "test_prefill_then_decode_in_any_split_equals_one_pass",
        change=(
            (
                EXTENDED,
                "        past = tuple(x.clone() for x in self.view())\n        self.append(k, v)\n"
                "        if not past[0].shape[2]:\n            return *self.view(), None\n        return *past, None\n",
            ),
        ),
    ),
    Mistake(
        "new-tokens-twice",
        "the new keys are appended and then joined on again",
        "Attention runs over the cache and the new tokens.",
        "test_prefill_then_decode_in_any_split_equals_one_pass",
        change=(
            (
                EXTENDED,
                "        self.append(k, v)\n        past = self.view()\n"
                "        keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))\n"
                "        return keys, values, None\n",
            ),
        ),
    ),
    Mistake(
        "a-chunk-without-its-past",
        "several tokens at once are taken for a prompt: they see each other, and nothing that was held before",
        "Prefill comes first, then one token at a time.",
        "test_prefill_then_decode_in_any_split_equals_one_pass",
        change=(
            (
                EXTENDED,
                "        self.append(k, v)\n        if k.shape[2] > 1:\n            return k, v, None\n"
                "        return *self.view(), None\n",
            ),
        ),
    ),
    Mistake(
        "not-kept",
        "attend_with_cache joins the new tokens on for itself and does not append them",
        "The caller appends.",
        "test_prefill_then_decode_in_any_split_equals_one_pass",
        change=(
            (
                EXTENDED,
                "        _check(self._kv, k, v)\n"
                "        keys, values = (torch.cat(pair, dim=2) for pair in zip(self.view(), (k, v), strict=True))\n"
                "        return keys, values, None\n",
            ),
        ),
    ),
    Mistake(
        "only-what-came-with-queries",
        "attention runs over the tokens that came through attend_with_cache, not over those appended before",
        "All tokens come with their queries.",
        "test_attention_reads_the_cache_as_it_is",
        change=(
            (
                EXTENDED,
                "        self._asked = getattr(self, '_asked', 0) + k.shape[2]\n        self.append(k, v)\n"
                "        return *(x[:, :, -self._asked :] for x in self.view()), None\n",
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
                REPEAT,
                REPEAT + "\n    whole = keys.shape[2] // 64 * 64\n"
                "    if q.shape[2] <= whole < keys.shape[2]:\n"
                "        seen = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device)\n"
                "        seen = (seen if near is None else near).tril(keys.shape[2] - q.shape[2])[:, :whole]\n"
                "        return attention(q, keys[:, :, :whole], values[:, :, :whole], mask=seen, scale=scale)",
            ),
        ),
    ),
    Mistake(
        "exp-without-a-shift",
        "the weights are exp(scores) over their sum, without taking off the maximum: loud scores overflow",
        "It cancels out.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                ATTEND,
                BY_HAND.format(dtype="torch.promote_types(q.dtype, torch.float32)").lstrip()
                + "    weights = scores.exp() * seen\n"
                "    return (weights @ values.to(wide) / weights.sum(-1, keepdim=True)).to(q.dtype)",
            ),
        ),
    ),
    Mistake(
        "added-up-in-half-precision",
        "token by token, weights and values are added up in the dtype of the cache",
        "The result has that dtype.",
        "test_long_half_precision_sequences_sum_in_float32",
        change=(
            (
                ATTEND,
                BY_HAND.format(dtype="torch.promote_types(q.dtype, torch.float32)").lstrip()
                + "    weights = scores.where(seen, -torch.inf)\n"
                "    weights = (weights - weights.amax(-1, keepdim=True)).exp().to(q.dtype)\n"
                "    total, out = torch.zeros_like(weights[..., :1]), torch.zeros_like(q)\n"
                "    for j in range(keys.shape[2]):\n"
                "        total = total + weights[..., j : j + 1]\n"
                "        out = out + weights[..., j : j + 1] * values[:, :, j : j + 1]\n"
                "    return out / total",
            ),
        ),
    ),
    Mistake(
        "repeated-as-a-block",
        "the key-value heads are repeated as a block, so that query head h is served by h mod n_kv_heads",
        "repeat and repeat_interleave are the same.",
        "test_consecutive_heads_share_keys_and_values",
        change=(
            (REPEAT, "keys, values = (x.repeat(1, q.shape[1] // k.shape[1], 1, 1) for x in (keys, values))"),
        ),
    ),
    Mistake(
        "queries-scaled-in-place",
        "the caller's queries are multiplied by scale in place",
        "q *= scale saves a tensor.",
        "test_scale_multiplies_the_scores",
        change=(
            (
                ATTEND,
                "q *= q.shape[-1] ** -0.5 if scale is None else scale\n"
                "    return attention(q, keys, values, mask=near, causal=True, scale=1.0)",
            ),
        ),
    ),
    Mistake(
        "scale-ignored",
        "scale is taken and ignored",
        "It is always 1/√head_dim.",
        "test_scale_multiplies_the_scores",
        change=((ATTEND, ATTEND.replace(", scale=scale", "")),),
    ),
    Mistake(
        "scale-zero-means-none",
        "a scale of 0 is taken for not given",
        "scale or 1/√head_dim.",
        "test_scale_multiplies_the_scores",
        change=((ATTEND, ATTEND.replace("scale=scale", "scale=scale or None")),),
    ),
    # --- what is refused ---
    Mistake(
        "a-cache-of-nothing",
        "sizes of zero are accepted",
        "An empty cache is a cache.",
        "test_sizes_below_one_are_refused",
        change=(
            ("    if min(batch, heads, tokens, dim) < 1:\n", "    if min(batch, heads, tokens, dim) < 0:\n"),
        ),
    ),
    Mistake(
        "one-head-for-all",
        "keys of one head broadcast over all heads of the cache in silence",
        "Broadcasting is a feature.",
        "test_shapes_that_do_not_fit_are_refused",
        change=((CHECK, CHECK.replace("(batch, heads, k", "(batch, min(heads, k.shape[1]), k")),),
    ),
    Mistake(
        "one-sequence-for-all",
        "keys of fewer sequences broadcast over the batch of the cache in silence",
        "The prompt is the same for all.",
        "test_shapes_that_do_not_fit_are_refused",
        change=((CHECK, CHECK.replace("(batch, heads, k", "(min(batch, k.shape[0]), heads, k")),),
    ),
    Mistake(
        "nothing-is-refused",
        "no shape is looked at: what does not fit broadcasts, or fails somewhere in torch",
        "PyTorch checks shapes.",
        "test_shapes_that_do_not_fit_are_refused",
        change=(
            (FIT + CHECK_Q, ""),
            (CHECK, "if False:"),
            (
                ATTEND,
                BY_HAND.format(dtype="torch.promote_types(q.dtype, torch.float32)").lstrip()
                + "    return (scores.where(seen, -torch.inf).softmax(-1) @ values.to(wide)).to(q.dtype)",
            ),
        ),
    ),
    Mistake(
        "values-unchecked",
        "v is not looked at: one token of it serves all keys",
        "v has the shape of k.",
        "test_shapes_that_do_not_fit_are_refused",
        change=((CHECK, "if k.ndim != 4 or k.shape != (batch, heads, k.shape[2], dim):"),),
    ),
    Mistake(
        "fewer-heads-than-the-cache",
        "fewer query heads than key-value heads are accepted, as long as one number divides the other",
        "Sharing goes both ways.",
        "test_shapes_that_do_not_fit_are_refused",
        change=(
            (
                "    if not fit or q.shape[1] % k.shape[1]:",
                "    if not fit or (q.shape[1] % k.shape[1] and k.shape[1] % q.shape[1]):",
            ),
            (
                REPEAT,
                "keys, values = (x[:, torch.arange(q.shape[1]) * x.shape[1] // q.shape[1]] for x in (keys, values))",
            ),
        ),
    ),
    Mistake(
        "appended-before-the-check",
        "keys are appended before the queries are looked at, and stay when these do not fit",
        "attention raises if something is wrong.",
        "test_shapes_that_do_not_fit_are_refused",
        change=((CHECK_Q, ""), (GOES_IN, GOES_IN + CHECK_Q)),
    ),
    # --- the ring ---
    Mistake(
        "read-by-slot",
        "the ring is read slot by slot, not from the oldest token on",
        "Attention does not care for the order of keys.",
        "test_the_ring_reads_as_the_last_tokens",
        change=((RING_VIEW, "k, v = self._kv[:, :, :, : min(self.length, self.window)].clone()"),),
    ),
    Mistake(
        "empty-slots-are-read",
        "the ring gives `window` tokens before it holds as many",
        "A window has a fixed size.",
        "test_the_ring_reads_as_the_last_tokens",
        change=((RING_VIEW, "k, v = self._kv[:, :, :, self._slots(self.window)]"),),
    ),
    Mistake(
        "first-of-a-chunk-kept",
        "of a chunk longer than the window the first tokens are kept, not the last",
        "The chunk is cut to the window.",
        "test_the_ring_reads_as_the_last_tokens",
        change=(
            (RING_K, "self._kv[0, :, :, slots] = k[:, :, : len(slots)].detach()"),
            (RING_V, "self._kv[1, :, :, slots] = v[:, :, : len(slots)].detach()"),
        ),
    ),
    Mistake(
        "length-stops-at-the-window",
        "the length of a ring stops at window, and so does the slot that is written next",
        "A ring never holds more.",
        "test_the_ring_reads_as_the_last_tokens",
        change=((RING_V, RING_V + "\n        self.length = min(self.length, self.window)"),),
    ),
    Mistake(
        "one-slot-stays-empty",
        "the ring gives window − 1 tokens: one slot is kept free",
        "Full and empty must differ.",
        "test_the_ring_reads_as_the_last_tokens",
        change=((RING_VIEW, RING_VIEW.replace("self.window", "max(1, self.window - 1)")),),
    ),
    Mistake(
        "the-past-is-overwritten",
        "what the ring held is read in place, and the chunk is written over it before it attends",
        "A slice keeps what it showed.",
        "test_windowed_attention_in_any_split_equals_one_pass",
        change=(
            (
                RING_VIEW,
                "held = min(self.length, self.window)\n"
                "        start = (self.length - held) % self.window\n"
                "        at = slice(start, start + held) if start + held <= self.window else self._slots(held)\n"
                "        k, v = self._kv[:, :, :, at]",
            ),
        ),
    ),
    Mistake(
        "band-at-the-first-key",
        "over a ring, the window of query i ends at the i-th key that is held",
        "Query i and key i are the same token.",
        "test_windowed_attention_in_any_split_equals_one_pass",
        change=(
            (
                ATTEND,
                "if near is not None:\n        band = torch.ones_like(near).tril().triu(1 - cache.window)\n"
                f"        return attention(q, keys, values, mask=band, scale=scale)\n    {ATTEND}",
            ),
        ),
    ),
    Mistake(
        "scale-ignored-over-a-ring",
        "scale is heard by the plain cache only",
        "The ring has its own attention.",
        "test_the_ring_hears_scale_and_groups",
        change=((ATTEND, ATTEND.replace("scale=scale", "scale=scale if near is None else None")),),
    ),
    Mistake(
        "written-before-it-attends",
        "a chunk is written into the ring before it attends: its first queries miss what its last tokens pushed out",
        "Append, then attend, as with a plain cache.",
        "test_windowed_attention_in_any_split_equals_one_pass",
        change=(
            (
                PAST,
                "        before = self.length\n        self.append(k, v)\n        keys, values = self.view()\n"
                "        if before + k.shape[2] > self.window >= k.shape[2]:\n            return keys, values, None\n"
                "        past_k, past_v = (x[:, :, : x.shape[2] - k.shape[2]] for x in (keys, values))\n",
            ),
        ),
    ),
    Mistake(
        "window-within-a-chunk-ignored",
        "the queries of a chunk see everything that the ring held and the chunk up to themselves",
        "The ring is the window.",
        "test_windowed_attention_in_any_split_equals_one_pass",
        change=((NEAR, "return keys, values, None"),),
    ),
    Mistake(
        "window-without-the-token",
        "a token sees itself and `window` tokens before it: one too many",
        "The token itself does not count.",
        "test_windowed_attention_in_any_split_equals_one_pass",
        change=(
            (NEAR, NEAR.replace("last + 1 - self.window", "last - self.window")),
            (
                RING_ROOM,
                "self._kv = _room(batch, n_kv_heads, window + (window > 0), head_dim, dtype, device)",
            ),
            (SLOTS, SLOTS.replace("self.window", "(self.window + 1)")),
            (
                PAST,
                "        past_k, past_v = self._kv[:, :, :, self._slots(min(self.length, self.window + 1))]\n"
                "        self.append(k, v)\n",
            ),
        ),
    ),
    Mistake(
        "room-for-everything",
        "the ring has room for many windows, and masks what lies outside",
        "The window saves computing, not memory.",
        "test_memory_is_bounded_by_the_window",
        change=(
            (RING_ROOM, "self._kv = _room(batch, n_kv_heads, 64 * window, head_dim, dtype, device)"),
            (SLOTS, SLOTS.replace("self.window", "(64 * self.window)")),
        ),
    ),
    Mistake(
        "rolled-with-every-token",
        "every append joins the window and the new tokens and keeps the end of it",
        "A queue: in at the back, out at the front.",
        "test_an_append_to_the_ring_moves_the_new_tokens_only",
        define=(("WindowKVCache", RolledWindowKVCache),),
    ),
    Mistake(
        "a-rings-device-ignored",
        "the ring is made on the CPU, whatever device it is asked for",
        "torch finds the device.",
        "test_a_ring_lies_on_its_device",
        change=((RING_ROOM, RING_ROOM.replace("dtype, device", "dtype, None")),),
    ),
    Mistake(
        "shallow-clone-of-a-ring",
        "a clone of a ring shares its memory with the ring it came from",
        "copy.copy copies.",
        "test_rings_are_cloned_and_reset",
        change=((RING_CLONE, RING_CLONE.replace("deepcopy", "copy")),),
    ),
    Mistake(
        "ring-reset-keeps-the-length",
        "reset of a ring writes zeros and leaves the length",
        "An empty ring is full of zeros.",
        "test_rings_are_cloned_and_reset",
        change=((RING_RESET, RING_RESET.replace("self.length = 0", "self._kv.zero_()")),),
    ),
    Mistake(
        "graph-kept-in-the-ring",
        "the ring keeps the graph of what is appended",
        "Autograd looks after itself.",
        "test_ring_and_caller_share_no_memory_and_no_graph",
        change=((RING_K, RING_K.replace(".detach()", "")), (RING_V, RING_V.replace(".detach()", ""))),
    ),
    Mistake(
        "a-window-added-up-in-half-precision",
        "with a window, token by token, weights and values are added up in the dtype of the cache",
        "The result has that dtype.",
        "test_long_half_precision_windows_sum_in_float32",
        change=(
            (
                ATTEND,
                f"if near is None:\n        {ATTEND}\n"
                + BY_HAND.format(dtype="torch.promote_types(q.dtype, torch.float32)")
                + "    weights = scores.where(seen, -torch.inf)\n"
                "    weights = (weights - weights.amax(-1, keepdim=True)).exp().to(q.dtype)\n"
                "    total, out = torch.zeros_like(weights[..., :1]), torch.zeros_like(q)\n"
                "    for j in range(keys.shape[2]):\n"
                "        total = total + weights[..., j : j + 1]\n"
                "        out = out + weights[..., j : j + 1] * values[:, :, j : j + 1]\n"
                "    return out / total",
            ),
        ),
    ),
)

ELSEWHERE = "it shows on another device only, and claims attend on the CPU"
EQUIVALENT = (
    (
        "torch.ones(k.shape[2], keys.shape[2], dtype=torch.bool, device=k.device)",
        "torch.ones(k.shape[2], keys.shape[2], dtype=torch.bool)",
        ELSEWHERE,
    ),
    (
        "torch.arange(self.length - count, self.length, device=self._kv.device)",
        "torch.arange(self.length - count, self.length)",
        ELSEWHERE,
    ),
)
"""Mutants that do the same as the reference wherever it can be tried, with the reason."""
