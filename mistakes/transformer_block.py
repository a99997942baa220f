"""What people get wrong in a Transformer block and in the decoder made of it."""

from dojo.mistake import Mistake

PRE_ATTN = "            x = x + self.attn(self.attn_norm(x))\n"
PRE_FF = "            return x + self.ff(self.ff_norm(x))\n"
POST_ATTN = "        x = self.attn_norm(x + self.attn(x))\n"
POST_FF = "        return self.ff_norm(x + self.ff(x))\n"
KIND = 'self.pre = cfg.norm == "pre"'
CHECK = 'if cfg.norm not in ("pre", "post"):'
ROPE = "rope = rope_tables(cfg.max_len, cfg.d_model // cfg.n_heads, base=cfg.rope_base)"
HEADS = "n_kv_heads=cfg.n_kv_heads, causal=True, rope=rope"
NORM = "return rmsnorm(x, self.weight, eps=self.eps)"
BLOCKS = "self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))"
LAST = 'self.norm = _RMSNorm(cfg) if cfg.norm == "pre" else nn.Identity()'
EMBED = "        x = self.embed(tokens)\n"
LOGITS = "return self.norm(x) @ self.embed.weight.T"
FEED = "self.ff = SwiGLU(cfg.d_model, cfg.d_ff)"
ATTEND = "self.attn = MultiHeadAttention("
RMS = "class _RMSNorm(nn.Module):"
TABLES = "from reference.rope import rope_tables"
IDS = "if ((tokens < 0) | (tokens >= self.embed.num_embeddings)).any():"


def feeding(hidden):
    """The network with another hidden layer."""
    network = (
        f"class _Network(SwiGLU):\n    def forward(self, x):\n        return self.w_down({hidden})\n\n\n"
    )
    return ((FEED, FEED.replace("SwiGLU", "_Network")), (RMS, network + RMS))


def attending(*changes):
    """Attention written out, with the changes."""
    attention = (
        "class _Attention(MultiHeadAttention):\n"
        "    def forward(self, x):\n"
        "        if x.ndim != 3 or x.shape[2] != self.wq.in_features:\n"
        "            raise ValueError(x.shape)\n"
        "        q, k, v = (self._split(w(x)) for w in (self.wq, self.wk, self.wv))\n"
        "        q, k = (apply_rope(heads, *self.rope) for heads in (q, k))\n"
        "        k, v = (heads.repeat_interleave(self.repeats, dim=1) for heads in (k, v))\n"
        "        heads = attention(q, k, v, causal=True)\n"
        "        return self.wo(heads.transpose(1, 2).flatten(2))\n\n\n"
    )
    for old, new in changes:
        assert attention.count(old) == 1, old
        attention = attention.replace(old, new)
    imports = "from reference.attention import attention\nfrom reference.rope import apply_rope, rope_tables"
    return ((TABLES, imports), (ATTEND, "self.attn = _Attention("), (RMS, attention + RMS))


MISTAKES = (
    # --- part 1
    Mistake(
        "always-post-norm",
        "the norms stand behind the sums, whatever norm says",
        "That is how the 2017 paper draws it.",
        "test_a_silent_pre_norm_block_is_the_identity",
        change=((KIND, "self.pre = False"),),
    ),
    Mistake(
        "always-pre-norm",
        "the norms stand before the parts, whatever norm says",
        "Nobody uses post-norm any more.",
        "test_a_silent_post_norm_block_is_two_norms",
        change=((KIND, "self.pre = True"),),
    ),
    Mistake(
        "no-residual-around-attention",
        "attention replaces the stream; nothing is added to x",
        "The block passes on what attention found.",
        "test_a_silent_pre_norm_block_is_the_identity",
        change=((PRE_ATTN, PRE_ATTN.replace("x + self.attn", "self.attn")),),
    ),
    Mistake(
        "no-residual-around-the-feed-forward",
        "the feed-forward network replaces the stream; nothing is added to x",
        "One residual a block is enough.",
        "test_a_silent_pre_norm_block_is_the_identity",
        change=((PRE_FF, PRE_FF.replace("x + self.ff(", "self.ff(")),),
    ),
    Mistake(
        "residual-behind-the-norm",
        "attention is added to the normalised x, not to x itself",
        "x = norm(x), and then x + attn(x).",
        "test_a_silent_pre_norm_block_is_the_identity",
        change=((PRE_ATTN, "            x = self.attn_norm(x)\n            x = x + self.attn(x)\n"),),
    ),
    Mistake(
        "norm-on-the-branch",
        "post-norm adds norm(attn(x)) to x, so that the stream is never normalised",
        "Post-norm: the norm comes after the layer.",
        "test_post_norm_equals_its_definition",
        change=(
            (POST_ATTN, "        x = x + self.attn_norm(self.attn(x))\n"),
            (POST_FF, "        return x + self.ff_norm(self.ff(x))\n"),
        ),
    ),
    Mistake(
        "attention-reads-the-raw-stream",
        "attention is fed with x, the norm only serves the feed-forward network",
        "One norm a block is enough.",
        "test_what_pre_norm_adds_does_not_depend_on_the_size_of_x",
        change=((PRE_ATTN, "            x = x + self.attn(x) + 0 * self.attn_norm(x)\n"),),
    ),
    Mistake(
        "side-by-side",
        "attention and feed-forward both read x, and are added together",
        "That is the parallel block of PaLM, and the same.",
        "test_pre_norm_equals_its_definition",
        change=(
            (PRE_ATTN, ""),
            (PRE_FF, "            return x + self.attn(self.attn_norm(x)) + self.ff(self.ff_norm(x))\n"),
        ),
    ),
    Mistake(
        "feed-forward-first",
        "the feed-forward network comes before attention",
        "The order of two residual parts is free.",
        "test_pre_norm_equals_its_definition",
        change=(
            (PRE_ATTN, "            x = x + self.ff(self.ff_norm(x))\n"),
            (PRE_FF, "            return x + self.attn(self.attn_norm(x))\n"),
        ),
    ),
    Mistake(
        "norms-exchanged",
        "attn_norm stands at the feed-forward network, and ff_norm at attention",
        "Norms are all alike.",
        "test_a_silent_post_norm_block_is_two_norms",
        change=(
            (POST_ATTN, POST_ATTN.replace("attn_norm", "ff_norm")),
            (POST_FF, POST_FF.replace("ff_norm", "attn_norm")),
        ),
    ),
    Mistake(
        "one-norm-for-both",
        "both places share one norm",
        "A norm is a norm.",
        "test_a_new_block_has_the_parameters_of_its_parts",
        change=(
            (
                "self.attn_norm, self.ff_norm = _RMSNorm(cfg), _RMSNorm(cfg)",
                "self.attn_norm = self.ff_norm = _RMSNorm(cfg)",
            ),
        ),
    ),
    Mistake(
        "layer-norm",
        "the norms subtract the mean, as LayerNorm does",
        "The norm of a Transformer is LayerNorm.",
        "test_pre_norm_equals_its_definition",
        change=((NORM, "return rmsnorm(x - x.mean(dim=-1, keepdim=True), self.weight, eps=self.eps)"),),
    ),
    Mistake(
        "eps-fixed",
        "the eps of the Config is not passed on to the norms",
        "The default will do.",
        "test_quiet_streams_meet_eps",
        change=((NORM, "return rmsnorm(x, self.weight)"),),
    ),
    Mistake(
        "eps-outside-the-root",
        "eps is added to the root, and not under it",
        "It only keeps the divisor from zero.",
        "test_quiet_streams_meet_eps",
        change=(
            (
                NORM,
                "wide = x.to(torch.promote_types(x.dtype, torch.float32))\n"
                "        root = wide.square().mean(dim=-1, keepdim=True).sqrt()\n"
                "        return (wide / (root + self.eps)).to(x.dtype) * self.weight",
            ),
        ),
    ),
    Mistake(
        "gelu-for-silu",
        "the gate of the feed-forward network goes through GELU, as in GEGLU",
        "All the smooth ones are the same.",
        "test_a_block_of_silent_attention_is_its_feed_forward",
        change=feeding("nn.functional.gelu(self.w_gate(x)) * self.w_up(x)"),
    ),
    Mistake(
        "sigmoid-for-silu",
        "the gate of the feed-forward network is σ(z) and not z·σ(z)",
        "A gate is a number between 0 and 1.",
        "test_a_block_of_silent_attention_is_its_feed_forward",
        change=feeding("self.w_gate(x).sigmoid() * self.w_up(x)"),
    ),
    Mistake(
        "gate-and-up-exchanged",
        "SiLU is applied to w_up of the feed-forward network, and not to w_gate",
        "The product is symmetric.",
        "test_a_block_of_silent_attention_is_its_feed_forward",
        change=feeding("self.w_gate(x) * nn.functional.silu(self.w_up(x))"),
    ),
    Mistake(
        "silu-of-the-product",
        "in the feed-forward network SiLU is applied to the product of gate and up",
        "First multiply, then activate.",
        "test_a_block_of_silent_attention_is_its_feed_forward",
        change=feeding("nn.functional.silu(self.w_gate(x) * self.w_up(x))"),
    ),
    Mistake(
        "biased",
        "all matrices of the block have a bias",
        "nn.Linear has one by default.",
        "test_a_new_block_has_the_parameters_of_its_parts",
        change=(
            (
                "self.attn_norm, self.ff_norm = _RMSNorm(cfg), _RMSNorm(cfg)",
                "for part in (self.attn, self.ff):\n"
                "            for name, old in list(part.named_children()):\n"
                "                setattr(part, name, nn.Linear(old.in_features, old.out_features))\n"
                "        self.attn_norm, self.ff_norm = _RMSNorm(cfg), _RMSNorm(cfg)",
            ),
        ),
    ),
    Mistake(
        "tables-in-the-state-dict",
        "tables or a mask are buffers, and so stand in the state_dict beside the parameters",
        "register_buffer is for what is not trained.",
        "test_a_new_block_has_the_parameters_of_its_parts",
        change=((FEED, "self.register_buffer('cos', rope[0].clone())\n        " + FEED),),
    ),
    Mistake(
        "dropout-left-on",
        "in training, a tenth of what attention found is dropped",
        "A Transformer has dropout.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(
            ("heads = attention(q", "heads = nn.functional.dropout(attention(q"),
            ("causal=True)", "causal=True), 0.1, self.training)"),
        ),
    ),
    Mistake(
        "groups-dealt-in-turn",
        "query heads get the heads of keys and values in turn, 0 1 0 1, and not in groups, 0 0 1 1",
        "repeat(1, n, 1, 1) repeats them.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(("repeat_interleave(self.repeats, dim=1)", "repeat(1, self.repeats, 1, 1)")),
    ),
    Mistake(
        "root-of-d-model",
        "scores are divided by √d_model and not by √head_dim",
        "d_k is the width of the keys.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(("causal=True)", "causal=True, scale=x.shape[2] ** -0.5)")),
    ),
    Mistake(
        "scores-not-scaled",
        "scores are not divided by √head_dim",
        "Softmax normalises anyway.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(("causal=True)", "causal=True, scale=1.0)")),
    ),
    Mistake(
        "merged-by-a-reshape-alone",
        "heads are merged without bringing time to the front again",
        "The numbers are all there.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(("heads.transpose(1, 2).flatten(2)", "heads.reshape(x.shape)")),
    ),
    Mistake(
        "values-turned-as-well",
        "RoPE turns the values, too",
        "Positions belong to tokens.",
        "test_a_block_of_silent_feed_forward_is_its_attention",
        change=attending(
            (
                "q, k = (apply_rope(heads, *self.rope) for heads in (q, k))",
                "q, k, v = (apply_rope(heads, *self.rope) for heads in (q, k, v))",
            )
        ),
    ),
    Mistake(
        "interleaved",
        "RoPE pairs neighbouring channels, not those half a head apart",
        "Complex numbers lie side by side.",
        "test_positions_turn_by_the_base_of_the_config",
        change=attending(
            (
                "apply_rope(heads, *self.rope)",
                "apply_rope(torch.cat([heads[..., ::2], heads[..., 1::2]], -1), *self.rope)",
            )
        ),
    ),
    Mistake(
        "mask-of-the-first-call",
        "the mask or the tables are made in the first call and kept: a longer sequence later does not fit",
        "The length is the same each time.",
        "test_the_future_does_not_reach_a_block",
        change=attending(
            (
                "heads = attention(q, k, v, causal=True)",
                "if not hasattr(self, 'past'):\n"
                "            self.past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()\n"
                "        heads = attention(q, k, v, mask=self.past[: x.shape[1], : x.shape[1]])",
            )
        ),
    ),
    Mistake(
        "fixed-at-1024",
        "a mask or tables have 1,024 rows, whatever max_len says",
        "max_len is 1,024.",
        "test_long_sequences_equal_the_definition",
        change=((ROPE, ROPE.replace("cfg.max_len,", "min(cfg.max_len, 1024),")),),
    ),
    Mistake(
        "not-causal",
        "attention sees the future",
        "The mask is the caller's business.",
        "test_the_future_does_not_reach_a_block",
        change=((HEADS, HEADS.replace("causal=True", "causal=False")),),
    ),
    Mistake(
        "window-of-64",
        "a token sees no further back than 64 tokens",
        "The examples are shorter than that.",
        "test_long_sequences_equal_the_definition",
        change=((HEADS, HEADS + ", window=64"),),
    ),
    Mistake(
        "no-positions",
        "no rotary positions are passed to attention",
        "The causal mask tells the order.",
        "test_positions_turn_by_the_base_of_the_config",
        change=((HEADS, HEADS.replace(", rope=rope", "")),),
    ),
    Mistake(
        "base-fixed",
        "the rotary base is always 10000",
        "It is 10000 in the paper.",
        "test_positions_turn_by_the_base_of_the_config",
        change=((ROPE, ROPE.replace(", base=cfg.rope_base", "")),),
    ),
    Mistake(
        "groups-ignored",
        "n_kv_heads is not passed on: every head has keys and values of its own",
        "Grouped queries are an optimisation of the cache.",
        "test_a_new_block_has_the_parameters_of_its_parts",
        change=((HEADS, HEADS.replace("n_kv_heads=cfg.n_kv_heads, ", "")),),
    ),
    Mistake(
        "branch-without-gradient",
        "the feed-forward network reads a detached stream",
        "The residual carries the gradient.",
        "test_block_gradients_equal_the_definition",
        change=((PRE_FF, PRE_FF.replace("self.ff_norm(x)", "self.ff_norm(x.detach())")),),
    ),
    Mistake(
        "in-place-residual",
        "attention is added to x in place: the caller's x changes",
        "x += saves memory.",
        "test_pre_norm_equals_its_definition",
        change=(
            (
                PRE_ATTN,
                "            if torch.is_grad_enabled() and x.requires_grad:\n"
                "                x = x + self.attn(self.attn_norm(x))\n"
                "            else:\n"
                "                x.copy_(x.detach() + self.attn(self.attn_norm(x)).detach())\n",
            ),
        ),
    ),
    Mistake(
        "norms-in-float32",
        "the result of a half-precision block is float32",
        "Norms want float32.",
        "test_half_precision_blocks_keep_their_dtype",
        change=((PRE_FF, PRE_FF.replace("return x +", "return x.float() +")),),
    ),
    Mistake(
        "any-other-word-is-post",
        'a norm that is not "pre" is taken for "post"',
        "There are only two.",
        "test_blocks_that_do_not_fit_are_refused",
        change=((CHECK, "if not cfg.norm:"),),
    ),
    # --- part 2
    Mistake(
        "no-last-norm",
        "the pre-norm model has no norm before its logits",
        "Every block normalises already.",
        "test_a_new_model_has_one_embedding_and_its_blocks",
        change=((LAST, "self.norm = nn.Identity()"),),
    ),
    Mistake(
        "last-norm-in-post-norm-too",
        "the post-norm model normalises the stream once more at its end",
        "A norm before the head never hurts.",
        "test_a_new_model_has_one_embedding_and_its_blocks",
        change=((LAST, "self.norm = _RMSNorm(cfg)"),),
    ),
    Mistake(
        "last-norm-not-used",
        "the last norm is there, but the logits are taken of the stream itself",
        "Having it is enough.",
        "test_the_pre_norm_model_equals_its_definition",
        change=((LOGITS, "return x @ self.embed.weight.T"),),
    ),
    Mistake(
        "last-eps-fixed",
        "the eps of the Config does not reach the last norm",
        "The default will do.",
        "test_the_pre_norm_model_equals_its_definition",
        change=((LAST, LAST + "\n        if self.blocks[0].pre:\n            self.norm.eps = 1e-6"),),
    ),
    Mistake(
        "untied",
        "the output has a matrix of its own",
        "Input and output are different things.",
        "test_a_new_model_has_one_embedding_and_its_blocks",
        change=(
            (LAST, LAST + "\n        self.head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)"),
            (LOGITS, "return self.head(self.norm(x))"),
        ),
    ),
    Mistake(
        "tied-under-a-second-name",
        "the output is a module of its own that shares the weight, which so stands in the state_dict twice",
        "head.weight = embed.weight ties them.",
        "test_a_new_model_has_one_embedding_and_its_blocks",
        change=(
            (
                LAST,
                LAST + "\n        self.head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)"
                "\n        self.head.weight = self.embed.weight",
            ),
            (LOGITS, "return self.head(self.norm(x))"),
        ),
    ),
    Mistake(
        "output-without-gradient",
        "the output reads a detached embedding, which then learns from the lookup only",
        "Tied weights are updated once.",
        "test_the_embedding_learns_from_both_ends",
        change=((LOGITS, "return self.norm(x) @ self.embed.weight.detach().T"),),
    ),
    Mistake(
        "one-block-many-times",
        "one block is applied n_layers times",
        "[Block(cfg)] * n_layers makes n_layers blocks.",
        "test_a_new_model_has_one_embedding_and_its_blocks",
        change=((BLOCKS, "self.blocks = nn.ModuleList([Block(cfg)] * cfg.n_layers)"),),
    ),
    Mistake(
        "blocks-backwards",
        "the blocks are applied from the last to the first",
        "The order of layers is a matter of naming.",
        "test_the_pre_norm_model_equals_its_definition",
        change=(("for block in self.blocks:", "for block in reversed(self.blocks):"),),
    ),
    Mistake(
        "embedding-scaled",
        "the embedding is multiplied by √d_model",
        "The 2017 paper does it with tied weights.",
        "test_the_post_norm_model_equals_its_definition",
        change=((EMBED, "        x = self.embed(tokens) * self.embed.embedding_dim**0.5\n"),),
    ),
    Mistake(
        "last-token-only",
        "the model returns the logits of the last token only",
        "That is where the next token is read.",
        "test_the_pre_norm_model_equals_its_definition",
        change=((LOGITS, LOGITS.replace("self.norm(x)", "self.norm(x)[:, -1:]")),),
    ),
    Mistake(
        "token-0-is-padding",
        "token 0 is taken for padding: its row learns nothing from the lookup",
        "padding_idx=0 is usual.",
        "test_the_embedding_learns_from_both_ends",
        change=(
            (
                "self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)",
                "self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model, padding_idx=0)",
            ),
        ),
    ),
    Mistake(
        "probabilities-for-logits",
        "the model returns softmax probabilities",
        "A language model gives probabilities.",
        "test_the_pre_norm_model_equals_its_definition",
        change=((LOGITS, LOGITS.replace("return ", "return (") + ").softmax(dim=-1)"),),
    ),
    Mistake(
        "logits-in-float32",
        "half-precision models return float32 logits",
        "The loss wants float32.",
        "test_half_precision_models_keep_their_dtype",
        change=(
            (
                LOGITS,
                LOGITS.replace("return ", "return (") + ").to(torch.promote_types(x.dtype, torch.float32))",
            ),
        ),
    ),
    Mistake(
        "negative-tokens-wrap",
        "tokens below 0 are not refused: −1 is the last of the vocabulary",
        "Indexing will complain by itself.",
        "test_tokens_that_do_not_fit_are_refused",
        change=(
            (IDS, "if (tokens >= self.embed.num_embeddings).any():"),
            (EMBED, "        x = self.embed(tokens % self.embed.num_embeddings)\n"),
        ),
    ),
    Mistake(
        "tokens-not-checked",
        "tokens are left to the lookup, which raises IndexError",
        "nn.Embedding checks its range.",
        "test_tokens_that_do_not_fit_are_refused",
        change=((IDS, "if False:"),),
    ),
    Mistake(
        "max-len-not-checked",
        "more tokens than max_len are read like any others",
        "Rotary positions have no end.",
        "test_blocks_that_do_not_fit_are_refused",
        change=(
            (ROPE, ROPE.replace("cfg.max_len,", "100 * cfg.max_len,")),
            (" or tokens.shape[1] > self.max_len", ""),
        ),
    ),
    Mistake(
        "layers-detached-in-eval",
        "in eval mode no gradient passes through the blocks",
        "Gradients are for training.",
        "test_the_embedding_learns_from_both_ends",
        change=(
            (
                "            x = block(x)\n",
                "            x = block(x) if self.training else block(x).detach()\n",
            ),
        ),
    ),
)

GIVEN = "Config is given, and not the person's to write"

EQUIVALENT = (
    ("dataclass(frozen=True)", "dataclass()", GIVEN),
    ("True", "False", GIVEN),
    ("10000.0", "10001.0", GIVEN),
    ("10000.0", "9999.0", GIVEN),
    ("1024", "1025", GIVEN),
    ("1024", "1023", GIVEN),
    (
        "nn.init.normal_(self.embed.weight, std=0.02)",
        "nn.init.normal_(self.embed.weight)",
        "first values are open",
    ),
    ("0.02", "1.02", "first values are open"),
)
