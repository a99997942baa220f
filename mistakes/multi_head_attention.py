"""What people get wrong in multi-head attention: its reshapes, its tables, its groups and its window."""

from dojo.mistake import Mistake

SPLIT = "return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)"
MERGE = "out.transpose(1, 2).flatten(2)"
OUT = "return self.wo(out.transpose(1, 2).flatten(2))"
PROJECT = "q, k, v = (self._split(w(x)) for w in (self.wq, self.wk, self.wv))"
ATTEND = "out = attention(q, k, v, mask=self._near(x.shape[1], x.device), causal=self.causal)"
TURN = "q, k = (apply_rope(heads, cos, sin, positions) for heads in (q, k))"
ROPE = "        if self.rope is not None:\n"
TABLES = "        self.rope = rope\n"
REPEAT = "k, v = (heads.repeat_interleave(self.repeats, dim=1) for heads in (k, v))"
SIZES = "if min(d_model, n_heads, n_kv_heads) < 1 or d_model % n_heads or n_heads % n_kv_heads:"
GROUPS = "n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads"
NEAR = "return torch.ones(time, time, dtype=torch.bool, device=device).triu(1 - self.window)"
WINDOW = "if window is not None and (window < 1 or not causal):"

SCORES = (
    "time, wide = x.shape[1], torch.float64 if x.dtype == torch.float64 else torch.float32\n"
    "        seen = torch.ones(time, time, dtype=torch.bool)\n"
    "        seen = seen.tril() if self.causal else seen\n"
    "        seen = seen if self.window is None else seen & self._near(time, x.device)\n"
    "        scores = (q.to(wide) @ k.to(wide).mT * self.head_dim**-0.5)"
)
LOWEST = "scores = scores.masked_fill(~seen, torch.finfo(wide).min)"

MISTAKES = (
    # --- heads ---
    Mistake(
        "heads-by-a-reshape-alone",
        "the projections are reshaped to (batch, heads, time, head_dim) without a transpose",
        "The numbers fit, so the reshape is right.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=((SPLIT, "return x.reshape(len(x), x.shape[2] // self.head_dim, x.shape[1], self.head_dim)"),),
    ),
    Mistake(
        "merged-by-a-reshape-alone",
        "the heads are merged by a reshape, without transposing them back",
        "reshape(batch, time, d_model) puts the heads side by side.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=((MERGE, "out.reshape(x.shape)"),),
    ),
    Mistake(
        "channels-dealt-in-turn",
        "channel c goes to head c mod n_heads, not to head ⌊c / head_dim⌋",
        "unflatten into (head_dim, heads) or (heads, head_dim): it is the same weights anyway.",
        "test_each_head_has_rows_of_its_own",
        change=((SPLIT, "return x.unflatten(2, (self.head_dim, -1)).permute(0, 3, 1, 2)"),),
    ),
    Mistake(
        "merged-channels-first",
        "the heads are merged channel by channel: the first channel of every head, then the second",
        "(head_dim, heads) or (heads, head_dim): flattened, they are as long.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=((MERGE, "out.permute(0, 2, 3, 1).flatten(2)"),),
    ),
    Mistake(
        "heads-attend-to-each-other",
        "time and heads are not swapped, so that the heads of one token attend to each other",
        "Attention works on the last two dimensions, and these are heads and head_dim.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=(
            (SPLIT, "return x.unflatten(2, (-1, self.head_dim))"),
            (MERGE, "out.flatten(2)"),
        ),
    ),
    Mistake(
        "time-first",
        "x is taken as (time, batch, d_model), so that the entries of the batch attend to each other",
        "So does torch.nn.MultiheadAttention, unless it is told batch_first.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=(
            (SPLIT, "return x.unflatten(2, (-1, self.head_dim)).permute(1, 2, 0, 3)"),
            (MERGE, "out.permute(2, 0, 1, 3).flatten(2)"),
            ("self._near(x.shape[1], x.device)", "self._near(x.shape[0], x.device)"),
        ),
    ),
    Mistake(
        "no-output-projection",
        "wo is made and not used",
        "The heads side by side have the right shape already.",
        "test_equal_scores_give_the_mean_of_what_a_token_sees",
        change=((OUT, f"return {MERGE}"),),
    ),
    Mistake(
        "residual-inside",
        "x is added to the result",
        "Attention always comes with its residual.",
        "test_the_module_equals_its_definition",
        change=((OUT, f"return x + self.wo({MERGE})"),),
    ),
    Mistake(
        "values-from-the-keys",
        "the values are projected by wk",
        "Keys and values are the same thing, looked at from two sides.",
        "test_the_module_equals_its_definition",
        change=(("for w in (self.wq, self.wk, self.wv))", "for w in (self.wq, self.wk, self.wk))"),),
    ),
    Mistake(
        "weights-transposed",
        "x is multiplied by the weights and not by their transposes",
        "x @ W, as in the paper.",
        "test_the_module_equals_its_definition",
        change=((PROJECT, "q, k, v = (self._split(x @ w.weight) for w in (self.wq, self.wk, self.wv))"),),
    ),
    Mistake(
        "root-of-d-model",
        "the scores are divided by √d_model",
        "d is d_model.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=((ATTEND, ATTEND.replace("q, k, v,", "q, k, v, scale=x.shape[2] ** -0.5,")),),
    ),
    Mistake(
        "unscaled",
        "the scores are not divided by anything",
        "The softmax normalises anyway.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=((ATTEND, ATTEND.replace("q, k, v,", "q, k, v, scale=1.0,")),),
    ),
    Mistake(
        "scaled-twice",
        "the queries are divided by √head_dim, and the scores again",
        "Scale early, so that nothing overflows; attention knows nothing of it.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=((ATTEND, ATTEND.replace("q, k", "q * self.head_dim**-0.5, k")),),
    ),
    Mistake(
        "softmax-over-the-queries",
        "softmax runs over the queries and not over the keys",
        "The scores are square, and one of the two axes sums to 1.",
        "test_the_module_equals_its_definition",
        change=(
            (
                ATTEND,
                f"{SCORES}\n        {LOWEST}\n        weights = scores.softmax(-2).where(seen, 0)\n"
                "        out = (weights @ v.to(wide)).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "masked-after-the-softmax",
        "the weights of hidden tokens are set to 0 after the softmax, and the others no longer sum to 1",
        "A hidden token has the weight 0.",
        "test_causal_shows_a_token_the_past_and_itself",
        change=(
            (
                ATTEND,
                f"{SCORES}\n        out = (scores.softmax(-1).where(seen, 0) @ v.to(wide)).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "hidden-by-minus-10000",
        "hidden scores are set to −10,000, which large scores fall below",
        "No score is as low as that.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                ATTEND,
                f"{SCORES}\n        scores = scores.masked_fill(~seen, -1e4)\n"
                "        out = (scores.softmax(-1) @ v.to(wide)).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "scores-clamped",
        "scores are cut to ±1,000",
        "Then exp cannot overflow.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                ATTEND,
                f"{SCORES}.clamp(-1e3, 1e3)\n        {LOWEST}\n"
                "        out = (scores.softmax(-1) @ v.to(wide)).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "float64-cut-to-float32",
        "softmax runs in float32, for float64 too",
        "softmax(dtype=torch.float32), as the big models have it.",
        "test_the_module_equals_its_definition",
        change=(
            (
                ATTEND,
                f"{SCORES}\n        {LOWEST}\n"
                "        out = (scores.softmax(-1, dtype=torch.float32).to(wide) @ v.to(wide)).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "x-viewed",
        "x is reshaped by view, which fails unless x is contiguous",
        "view is reshape.",
        "test_the_module_equals_its_definition",
        change=((PROJECT, "x = x.view(-1).view(x.shape)\n        " + PROJECT),),
    ),
    Mistake(
        "biased",
        "wo has a bias",
        "nn.Linear has one, so it will be of use.",
        "test_the_module_holds_four_weights_of_its_own",
        change=(
            (
                "self.wo = nn.Linear(n_heads * self.head_dim, d_model, bias=False)",
                "self.wo = nn.Linear(n_heads * self.head_dim, d_model)",
            ),
        ),
    ),
    Mistake(
        "causal-ignored",
        "every token sees the whole sequence, whatever causal says",
        "The mask comes in training.",
        "test_causal_shows_a_token_the_past_and_itself",
        change=((ATTEND, ATTEND.replace("self.causal", "self.window is not None")),),
    ),
    Mistake(
        "one-token-ahead",
        "causal shows a token the next one as well",
        "triu(1) or triu(2): the diagonal is its own.",
        "test_causal_shows_a_token_the_past_and_itself",
        change=(
            (
                ATTEND,
                "ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(1)\n"
                "        near = self._near(x.shape[1], x.device)\n"
                "        ahead = ahead if near is None else ahead & near\n"
                "        out = attention(q, k, v, mask=ahead if self.causal else None)",
            ),
        ),
    ),
    Mistake(
        "always-causal",
        "tokens never see what comes after them, whatever causal says",
        "Language models are causal.",
        "test_the_order_of_tokens_does_not_matter_unless_causal",
        change=((ATTEND, ATTEND.replace("self.causal", "True")),),
    ),
    Mistake(
        "dropout-left-in",
        "a tenth of the result is dropped in training",
        "Attention has dropout.",
        "test_calls_do_not_remember_each_other",
        change=((OUT, f"return self.wo(nn.functional.dropout({MERGE}, 0.1, self.training))"),),
    ),
    Mistake(
        "mask-of-the-first-call",
        "the causal mask is made in the first call and kept; later tokens are cut to it or see everything",
        "The mask is the same each time.",
        "test_calls_do_not_remember_each_other",
        change=(
            (
                ATTEND,
                "time = x.shape[1]\n"
                "        if self.causal and not hasattr(self, 'past'):\n"
                "            self.past = torch.ones(time, time, dtype=torch.bool).tril()\n"
                "        mask = self._near(time, x.device)\n"
                "        if self.causal:\n"
                "            seen = torch.ones(time, time, dtype=torch.bool)\n"
                "            size = min(time, len(self.past))\n"
                "            seen[:size, :size] = self.past[:size, :size]\n"
                "            mask = seen if mask is None else mask & seen\n"
                "        out = attention(q, k, v, mask=mask)",
            ),
        ),
    ),
    Mistake(
        "keys-of-the-call-before",
        "in evaluation, keys and values of the call before are used again if they have the same shape",
        "That is the KV cache.",
        "test_calls_do_not_remember_each_other",
        change=(
            (
                REPEAT,
                "if not self.training:\n"
                "            kept = getattr(self, 'kept', (k, v))\n"
                "            k, v = kept if kept[0].shape == k.shape else (k, v)\n"
                "            self.kept = k.detach(), v.detach()\n"
                f"        {REPEAT}",
            ),
        ),
    ),
    Mistake(
        "weights-put-together-once",
        "in evaluation the weights of the first call are used again, although others were loaded since",
        "In evaluation weights do not change, so one matrix can be put together and kept.",
        "test_new_weights_count_from_the_next_call_on",
        change=(
            (
                PROJECT,
                "if self.training or not hasattr(self, 'packed'):\n"
                "            self.packed = torch.cat([w.weight for w in (self.wq, self.wk, self.wv)])\n"
                "        sizes = [w.out_features for w in (self.wq, self.wk, self.wv)]\n"
                "        parts = nn.functional.linear(x, self.packed).split(sizes, dim=-1)\n"
                "        q, k, v = (self._split(part) for part in parts)",
            ),
        ),
    ),
    Mistake(
        "no-gradient-in-evaluation",
        "in evaluation no gradient flows through the attention",
        "eval() is for inference, which needs no gradients.",
        "test_gradients_follow_every_argument",
        change=((OUT, OUT.replace("out.transpose", "(out if self.training else out.detach()).transpose")),),
    ),
    Mistake(
        "keys-detached",
        "no gradient flows through keys and values",
        "They are looked up, and a cache has no gradient.",
        "test_gradients_equal_the_definition",
        change=((REPEAT, REPEAT.replace("heads.repeat", "heads.detach().repeat")),),
    ),
    Mistake(
        "left-in-float32",
        "for half types the result is float32",
        "The last product is more exact that way.",
        "test_half_precision_equals_the_definition",
        change=(
            (
                OUT,
                "if x.itemsize == 2:\n"
                f"            return nn.functional.linear({MERGE}.float(), self.wo.weight.float())\n"
                f"        {OUT}",
            ),
        ),
    ),
    # --- rope ---
    Mistake(
        "rope-ignored",
        "rope is taken and not used",
        "Positions are the embedding's business.",
        "test_rope_turns_queries_and_keys",
        change=((TURN, "pass"),),
    ),
    Mistake(
        "values-turned-as-well",
        "rope turns the values too",
        "Every head gets its positions.",
        "test_rope_turns_queries_and_keys",
        change=((TURN, "q, k, v = (apply_rope(heads, cos, sin, positions) for heads in (q, k, v))"),),
    ),
    Mistake(
        "queries-turned-alone",
        "rope turns the queries and leaves the keys",
        "One of the two is enough for a relative angle.",
        "test_rope_turns_queries_and_keys",
        change=((TURN, "q = apply_rope(q, cos, sin, positions)"),),
    ),
    Mistake(
        "interleaved",
        "rope turns the channels 2i and 2i + 1, not i and i + head_dim / 2",
        "That is how the paper does it.",
        "test_rope_turns_queries_and_keys",
        change=((TURN, TURN.replace("sin, positions", "sin, positions, interleaved=True")),),
    ),
    Mistake(
        "turned-backwards",
        "queries and keys are turned the other way round",
        "Only the difference counts, and its sign does not.",
        "test_rope_turns_queries_and_keys",
        change=((TURN, TURN.replace("cos, sin", "cos, -sin")),),
    ),
    Mistake(
        "tables-of-its-own",
        "the module makes its own tables with base 10000, whatever it was given",
        "There is one base.",
        "test_rope_turns_queries_and_keys",
        change=(
            ("from reference.rope import apply_rope", "from reference.rope import apply_rope, rope_tables"),
            (
                TABLES,
                "        self.rope = None if rope is None else rope_tables(len(rope[0]), self.head_dim)\n",
            ),
        ),
    ),
    Mistake(
        "tables-in-the-state-dict",
        "the tables are buffers and so part of the state dict",
        "What is not trained is a buffer.",
        "test_the_module_holds_four_weights_of_its_own",
        change=(
            (
                TABLES,
                "        self.rope = None\n        if rope is not None:\n"
                "            self.register_buffer('cos', rope[0])\n            self.register_buffer('sin', rope[1])\n"
                "            self.rope = rope\n",
            ),
        ),
    ),
    Mistake(
        "positions-ignored",
        "tokens always stand at 0 … time − 1, whatever positions says",
        "A sequence starts at 0.",
        "test_positions_choose_the_rows_of_the_tables",
        change=((TURN, TURN.replace("sin, positions", "sin")),),
    ),
    Mistake(
        "positions-kept-in-bytes",
        "positions are kept in bytes, and begin again after the 256th row",
        "Sequences are short.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                TURN,
                "positions = positions if positions is None else positions % 256\n            " + TURN,
            ),
        ),
    ),
    Mistake(
        "positions-of-the-first-sequence",
        "of positions with a row for each sequence, the first row serves all",
        "All sequences of a batch stand at the same positions.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                TURN,
                f"if positions is not None and positions.ndim == 2 and len(positions):\n"
                f"                positions = positions[0]\n            {TURN}",
            ),
        ),
    ),
    Mistake(
        "positions-of-the-first-call",
        "the rows of the tables are picked in the first call and kept while positions keep their shape",
        "The rows are the same each time.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                TURN,
                "if positions is not None:\n"
                "                kept = getattr(self, 'kept', positions)\n"
                "                self.kept = positions = kept if kept.shape == positions.shape else positions\n"
                f"            {TURN}",
            ),
        ),
    ),
    Mistake(
        "positions-in-the-dtype-of-x",
        "positions pass through the dtype of x, and bfloat16 has no odd numbers beyond 256",
        "What meets x has to have its dtype.",
        "test_every_token_is_turned_by_the_very_row_it_names",
        change=(
            (
                TURN,
                f"positions = positions if positions is None else positions.to(x.dtype).long()\n            {TURN}",
            ),
        ),
    ),
    Mistake(
        "positions-by-head",
        "where there are as many sequences as heads, the positions of a sequence go to a head",
        "(batch, time, head_dim) broadcasts against (batch, heads, time, head_dim).",
        "test_every_token_is_turned_by_the_very_row_it_names",
        change=(
            (
                TURN,
                "if positions is not None and positions.ndim == 2 and len(x) == q.shape[1] > 1:\n"
                "                swap = lambda heads: apply_rope(heads.transpose(0, 1), cos, sin, positions)\n"
                "                q, k = swap(q).transpose(0, 1), swap(k).transpose(0, 1)\n"
                "            else:\n"
                f"                {TURN}",
            ),
        ),
    ),
    Mistake(
        "positions-by-time-and-batch",
        "where there are as many sequences as tokens, positions are read as (time, batch)",
        "Whichever way round it fits.",
        "test_every_token_is_turned_by_the_very_row_it_names",
        change=(
            (
                TURN,
                "if positions is not None and positions.shape == (x.shape[1], len(x)):\n"
                f"                positions = positions.T\n            {TURN}",
            ),
        ),
    ),
    Mistake(
        "int64-positions-only",
        "positions in int32 are refused",
        "An index is int64.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                TURN,
                "if positions is not None and positions.dtype != torch.int64:\n"
                "                raise ValueError(f'positions {positions.dtype}')\n"
                f"            {TURN}",
            ),
        ),
    ),
    Mistake(
        "last-rows-of-the-tables",
        "without positions the last rows of the tables are taken, not the first",
        "The newest tokens are at the end.",
        "test_rope_turns_queries_and_keys",
        change=(
            (
                TURN,
                "if positions is None and x.shape[1] <= len(cos):\n"
                "                cos, sin = cos[-x.shape[1] :], sin[-x.shape[1] :]\n"
                f"            {TURN}",
            ),
        ),
    ),
    Mistake(
        "causal-by-positions",
        "causal hides the tokens at later positions, not those later in x",
        "Positions say who comes first.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                ATTEND,
                "mask = self._near(x.shape[1], x.device)\n"
                "        if positions is None or not self.causal:\n"
                "            out = attention(q, k, v, mask=mask, causal=self.causal)\n"
                "        else:\n"
                "            past = positions[..., None, :] <= positions[..., :, None]\n"
                "            past = past.unsqueeze(-3)\n"
                "            out = attention(q, k, v, mask=past if mask is None else mask & past)",
            ),
        ),
    ),
    Mistake(
        "positions-wrap-around",
        "a position that is no row of the tables starts from the first one again",
        "Better some angle than an error.",
        "test_inputs_that_do_not_fit_are_refused",
        change=(
            (
                TURN,
                "rows = None if positions is None else positions % len(cos)\n            "
                + TURN.replace("positions", "rows"),
            ),
        ),
    ),
    Mistake(
        "negative-positions",
        "a negative position counts from the last row of the tables",
        "An index that fits no row raises by itself.",
        "test_inputs_that_do_not_fit_are_refused",
        change=(
            (
                TURN,
                "rows = None if positions is None else positions.where(positions >= 0, positions + len(cos))\n"
                "            " + TURN.replace("positions", "rows"),
            ),
        ),
    ),
    Mistake(
        "one-row-of-positions-for-all",
        "positions of (1, time) are taken for all sequences of a batch",
        "They broadcast.",
        "test_inputs_that_do_not_fit_are_refused",
        change=(
            (
                TURN,
                "if positions is not None and positions.ndim == 2 and len(positions) == 1:\n"
                f"                positions = positions[0]\n            {TURN}",
            ),
        ),
    ),
    Mistake(
        "no-more-tokens-than-rows",
        "an x longer than the tables is refused, although positions are given",
        "Every token needs a row of its own.",
        "test_positions_choose_the_rows_of_the_tables",
        change=(
            (
                TURN,
                "if x.shape[1] > len(cos):\n"
                "                raise ValueError(f'{x.shape[1]} tokens, {len(cos)} rows')\n"
                f"            {TURN}",
            ),
        ),
    ),
    # --- what is refused ---
    Mistake(
        "head-dim-rounded-down",
        "head_dim is rounded down where n_heads does not divide d_model",
        "// takes care of it.",
        "test_sizes_that_do_not_fit_are_refused",
        change=((SIZES, SIZES.replace("d_model % n_heads or ", "d_model < n_heads or ")),),
    ),
    Mistake(
        "an-empty-batch-fails",
        "an empty batch fails in a reshape with a −1",
        "reshape(batch, time, −1) always knows what is left.",
        "test_an_empty_batch_gives_an_empty_result",
        change=((MERGE, "out.transpose(1, 2).reshape(len(x), x.shape[1], -1)"),),
    ),
    # --- groups ---
    Mistake(
        "scale-of-the-key-heads",
        "the scores are divided by the root of d_model / n_kv_heads",
        "The keys have n_kv_heads heads.",
        "test_consecutive_heads_share_keys_and_values",
        change=((ATTEND, ATTEND.replace("q, k", "q * self.repeats**-0.5, k")),),
    ),
    Mistake(
        "queries-dealt-to-the-groups",
        "query head h uses the key-value head h mod n_kv_heads, and the heads are merged group by group",
        "(group, shared) or (shared, group): the sizes fit either way.",
        "test_consecutive_heads_share_keys_and_values",
        change=(
            (
                REPEAT,
                f"q = q.unflatten(1, (self.repeats, -1)).transpose(1, 2).flatten(1, 2)\n        {REPEAT}",
            ),
        ),
    ),
    Mistake(
        "heads-merged-across-groups",
        "the heads are right, but merged in the order of their place in the group",
        "All heads are there, and wo mixes them anyway.",
        "test_consecutive_heads_share_keys_and_values",
        change=(
            (
                OUT,
                f"out = out.unflatten(1, (-1, self.repeats)).transpose(1, 2).flatten(1, 2)\n        {OUT}",
            ),
        ),
    ),
    Mistake(
        "no-key-heads-mean-all",
        "n_kv_heads=0 is taken for None",
        "n_kv_heads or n_heads.",
        "test_groups_that_do_not_come_out_even_are_refused",
        change=((GROUPS, "n_kv_heads = n_kv_heads or n_heads"),),
    ),
    Mistake(
        "groups-ignored",
        "n_kv_heads is taken and ignored: there are as many heads of keys as of queries",
        "More keys can do no harm.",
        "test_consecutive_heads_share_keys_and_values",
        change=((GROUPS, "n_kv_heads = n_heads"),),
    ),
    Mistake(
        "repeated-as-a-block",
        "the key-value heads are repeated as a block, so that query head h is served by h mod n_kv_heads",
        "repeat and repeat_interleave are the same.",
        "test_consecutive_heads_share_keys_and_values",
        change=((REPEAT, "k, v = (heads.repeat(1, self.repeats, 1, 1) for heads in (k, v))"),),
    ),
    Mistake(
        "values-repeated-as-a-block",
        "the keys are repeated one by one, the values as a block",
        "Both are repeated, the order does not matter.",
        "test_consecutive_heads_share_keys_and_values",
        change=(
            (REPEAT, "k, v = k.repeat_interleave(self.repeats, dim=1), v.repeat(1, self.repeats, 1, 1)"),
        ),
    ),
    Mistake(
        "the-first-serves-all",
        "the first key-value head serves all query heads",
        "Grouped means that the keys are shared.",
        "test_consecutive_heads_share_keys_and_values",
        change=(
            (
                REPEAT,
                "if self.repeats > 1:\n            "
                "k, v = (heads[:, :1].repeat_interleave(q.shape[1], dim=1) for heads in (k, v))",
            ),
        ),
    ),
    Mistake(
        "gradient-of-one-head",
        "a shared head gets the gradient of the first query head of its group only",
        "The copies need no graph of their own.",
        "test_a_shared_head_collects_the_gradients_of_its_group",
        change=(
            (
                REPEAT,
                "k, v = (\n"
                "            torch.stack([h] + [h.detach()] * (self.repeats - 1), dim=2).flatten(1, 2) for h in (k, v)\n"
                "        )",
            ),
        ),
    ),
    Mistake(
        "shared-keys-unturned",
        "rope is left out where heads share their keys",
        "A key that serves several queries cannot be turned for each.",
        "test_grouped_keys_are_turned_as_well",
        change=((TURN, f"if self.repeats == 1:\n                {TURN}"),),
    ),
    Mistake(
        "groups-rounded-down",
        "an n_kv_heads that does not divide n_heads is taken, and fails when it is used",
        "n_heads // n_kv_heads copies of each.",
        "test_groups_that_do_not_come_out_even_are_refused",
        change=((SIZES, SIZES.replace(" or n_heads % n_kv_heads", " or n_heads < n_kv_heads")),),
    ),
    # --- window ---
    Mistake(
        "window-without-the-token",
        "a token sees itself and `window` tokens before it: one too many",
        "The token itself does not count.",
        "test_a_token_sees_the_last_window_tokens",
        change=((NEAR, NEAR.replace("1 - self.window", "-self.window")),),
    ),
    Mistake(
        "window-ignored",
        "window is taken and ignored",
        "The window saves memory, it does not change the result.",
        "test_a_token_sees_the_last_window_tokens",
        change=(("if self.window is None:\n            return None", "if time:\n            return None"),),
    ),
    Mistake(
        "window-on-both-sides",
        "with a window a token sees the next tokens as well",
        "A window is |i − j| < window; causal is not needed any more.",
        "test_a_token_sees_the_last_window_tokens",
        change=(
            (NEAR, NEAR + ".tril(self.window - 1)"),
            (ATTEND, ATTEND.replace("self.causal", "self.causal and self.window is None")),
        ),
    ),
    Mistake(
        "window-in-place-of-causal",
        "with a window a token sees everything that comes after it",
        "The mask of the window takes the place of the causal one.",
        "test_a_token_sees_the_last_window_tokens",
        change=((ATTEND, ATTEND.replace("self.causal", "self.causal and self.window is None")),),
    ),
    Mistake(
        "windows-side-by-side",
        "time is cut into blocks of `window` tokens, and a token sees its own block only",
        "Local attention works on chunks.",
        "test_a_token_sees_the_last_window_tokens",
        change=(
            (
                NEAR,
                "block = torch.arange(time, device=device) // self.window\n        return block[:, None] == block",
            ),
        ),
    ),
    Mistake(
        "window-of-positions",
        "the window goes by positions, not by the order in x",
        "Distance is the difference of positions.",
        "test_the_window_counts_tokens_and_not_positions",
        change=(
            (
                ATTEND,
                "near = self._near(x.shape[1], x.device)\n"
                "        if near is not None and positions is not None:\n"
                "            near = positions[..., :, None] - positions[..., None, :] < self.window\n"
                "            near = near.unsqueeze(-3)\n"
                "        out = attention(q, k, v, mask=near, causal=self.causal)",
            ),
        ),
    ),
    Mistake(
        "window-zero-means-none",
        "window=0 is taken for no window",
        "if window:",
        "test_windows_that_make_no_sense_are_refused",
        change=(
            (
                WINDOW,
                "window = window or None\n        if window is not None and (window < 1 or not causal):",
            ),
        ),
    ),
    Mistake(
        "window-without-causal",
        "a window without causal is taken",
        "Then it hides the distant past, and the future is seen.",
        "test_windows_that_make_no_sense_are_refused",
        change=((WINDOW, "if window is not None and window < 1:"),),
    ),
)

EQUIVALENT = (
    (
        "torch.ones(time, time, dtype=torch.bool, device=device)",
        "torch.ones(time, time, dtype=torch.bool)",
        "on the CPU, where the judge runs, there is only one device",
    ),
)
