"""What people get wrong in a small GPT, from the embedding to the sampler; a debug round plants four of these."""

import torch

from dojo.mistake import Mistake

EMBEDDED = "= self.token_embedding(ids)"
TOKEN_TABLE = "self.token_embedding = nn.Embedding(vocab_size, d_model)"
POSITIONS = "positions = torch.arange(time, device=ids.device)"
TRIANGLE = ".tril(keys - queries)"
SOFTMAX = 'F.softmax(scores.masked_fill(~past, float("-inf")), dim=-1)'
SCALE = " / q.shape[-1] ** 0.5"
SHAPE = "shape = batch, time, self.n_heads, d_model // self.n_heads"
JOINED = "joined = y.transpose(1, 2).flatten(2)"
GELU = "F.gelu(self.up(x))"
LAYERS = "nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))"
ATTENTION_BRANCH = "        x = x + self.attn(self.norm1(x))\n"
MLP_BRANCH = "        x = x + self.mlp(self.norm2(x))\n"
SHIFT = "logits, targets = model(ids)[:, :-1], ids[:, 1:]"
ENTROPY = "F.cross_entropy(logits.flatten(0, 1), targets.flatten())"
OPTIMISER = "torch.optim.AdamW(model.parameters(), lr=lr)"
ZERO = "        optimiser.zero_grad()\n"
CLIP = "        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)\n"
WINDOW = "window = ids[:, -model.context :]"
DRAW = "torch.multinomial(probs, num_samples=1, generator=generator)"
POOL = "states[torch.arange(batch, device=ids.device), lengths - 1]"
JOIN_CACHE = """        if cache is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache[layer], (k, v), strict=True))
"""


def _extend_a_buffer(model, ids, cache=None):
    start, buffers = cache if cache is not None else (0, [])
    end = start + ids.shape[1]
    if not start < end <= model.context:
        raise ValueError(f"{start} cached and {ids.shape[1]} new tokens, the context is {model.context}")
    x = model.token_embedding(ids) + model.position_embedding(torch.arange(start, end, device=ids.device))
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.norm1(x))
        if cache is None:
            buffers.append([part.new_zeros(*part.shape[:2], model.context, part.shape[3]) for part in (k, v)])
        keys, values = buffers[layer]
        with torch.no_grad():
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
        x = x + block.attn.merge(attend(q, keys[:, :, :end].clone(), values[:, :, :end].clone()))
        x = x + block.mlp(block.norm2(x))
    return model.unembed(model.norm(x)), (end, buffers)


MISTAKES = (
    # --- embedding ---
    Mistake(
        "embedding-times-root",
        "token embeddings are multiplied by √d_model",
        "Attention Is All You Need scales its embeddings.",
        "test_token_and_position_embeddings_are_added",
        change=((EMBEDDED, EMBEDDED + " * self.token_embedding.embedding_dim**0.5"),),
    ),
    Mistake(
        "embedding-of-size-one",
        "embeddings keep nn.Embedding's standard deviation of 1, which the tied head turns into huge logits",
        "The default initialisation is fine.",
        "test_a_new_model_is_undecided",
        change=(("if isinstance(module, (nn.Linear, nn.Embedding)):", "if isinstance(module, nn.Linear):"),),
    ),
    Mistake(
        "initialised-ten-times-too-wide",
        "weights start at a standard deviation of 0.2",
        "Some small number: 0.02 or 0.2.",
        "test_a_new_model_is_undecided",
        change=(("std=0.02", "std=0.2"),),
    ),
    Mistake(
        "residual-layers-start-smaller",
        "layers that write into the stream start smaller by √(2 · n_layers), as in GPT-2, and not with 0.02 like all others",
        "Every addition makes the stream larger.",
        "test_a_new_model_is_undecided",
        change=(
            (
                "        self.apply(_initialise)\n",
                "        self.apply(_initialise)\n        for block in self.blocks:\n            for layer in (block.attn.out, block.mlp.down):\n                nn.init.normal_(layer.weight, std=0.02 / (2 * n_layers) ** 0.5)\n",
            ),
        ),
    ),
    Mistake(
        "padding-row",
        "token 0 is declared to be padding, so that its embedding is never trained as an input",
        "Id 0 is for padding.",
        "test_gradients_equal_the_definition",
        change=((TOKEN_TABLE, TOKEN_TABLE[:-1] + ", padding_idx=0)"),),
    ),
    Mistake(
        "embedding-renormalised",
        "embeddings longer than 1 are shortened whenever they are looked up",
        "max_norm keeps embeddings from growing.",
        "test_token_and_position_embeddings_are_added",
        change=((TOKEN_TABLE, TOKEN_TABLE[:-1] + ", max_norm=1.0)"),),
    ),
    Mistake(
        "ids-by-place-in-the-text",
        "a character's id is its last place in the text, not its rank in the vocabulary",
        "Enumerating the text numbers its characters.",
        "test_characters_are_numbered_in_sorted_order",
        change=(("enumerate(self.chars)", "enumerate(text)"),),
    ),
    Mistake(
        "vocabulary-by-first-appearance",
        "characters are numbered as they first appear, not in sorted order",
        "Any order of the vocabulary will do.",
        "test_characters_are_numbered_in_sorted_order",
        change=(("sorted(set(text))", "list(dict.fromkeys(text))"),),
    ),
    Mistake(
        "capitals-made-small",
        "capitals are taken for small letters",
        "Fewer characters are easier to learn.",
        "test_characters_are_numbered_in_sorted_order",
        change=(
            ("sorted(set(text))", "sorted(set(text.lower()))"),
            (
                "        if not set(text) <= self.ids.keys():",
                "        text = text.lower()\n        if not set(text) <= self.ids.keys():",
            ),
        ),
    ),
    Mistake(
        "negative-ids-decoded",
        "decode reads −1 as the last character",
        "Indexing checks its range.",
        "test_unknown_characters_and_ids_are_refused",
        change=(("not 0 <= i < len(self.chars)", "i >= len(self.chars)"),),
    ),
    # --- positions ---
    Mistake(
        "position-of-the-text-in-the-batch",
        "positions are counted along the batch: all tokens of a text get the same one",
        "arange over the first axis, broadcast over the second.",
        "test_each_place_has_its_own_position_embedding",
        change=((POSITIONS, "positions = torch.arange(batch, device=ids.device)[:, None]"),),
    ),
    Mistake(
        "positions-from-the-end",
        "the last token is position 0",
        "What counts is the distance to the token that is predicted.",
        "test_each_place_has_its_own_position_embedding",
        change=((POSITIONS, POSITIONS + ".flip(0)"),),
    ),
    Mistake(
        "positions-end-at-the-context",
        "the last token always gets the last row of the position table; only full texts are right",
        "The window ends at the context.",
        "test_each_place_has_its_own_position_embedding",
        change=(
            (POSITIONS, "positions = torch.arange(self.context - time, self.context, device=ids.device)"),
        ),
    ),
    Mistake(
        "position-table-by-token",
        "the position table is looked up by token ids",
        "An embedding takes ids.",
        "test_each_place_has_its_own_position_embedding",
        change=(("self.position_embedding(positions)", "self.position_embedding(ids)"),),
    ),
    Mistake(
        "no-positions",
        "position embeddings are never added",
        "The causal mask tells the order.",
        "test_each_place_has_its_own_position_embedding",
        change=((" + self.position_embedding(positions)", ""),),
    ),
    Mistake(
        "context-not-checked",
        "a text longer than the context fails inside the embedding, with an IndexError",
        "The position table checks its own range.",
        "test_sizes_and_texts_that_do_not_fit_are_refused",
        change=(("if not 1 <= time <= self.context:", "if time < 1:"),),
    ),
    Mistake(
        "heads-not-checked",
        "heads that do not divide d_model are not refused",
        "d_model // n_heads is the head's size.",
        "test_sizes_and_texts_that_do_not_fit_are_refused",
        change=(("if min(sizes) < 1 or d_model % n_heads:", "if min(sizes) < 1:"),),
    ),
    Mistake(
        "sizes-below-zero",
        "a size of 0 is refused and one below it is not",
        "A size that is falsy is no size.",
        "test_sizes_and_texts_that_do_not_fit_are_refused",
        change=(("if min(sizes) < 1 or", "if not all(sizes) or"),),
    ),
    # --- mask ---
    Mistake(
        "mask-lets-the-next-token-through",
        "each token also sees the next one, the very token that it has to predict",
        "The diagonal is offset by one, since the target is.",
        "test_the_future_never_matters",
        change=((TRIANGLE, ".tril(keys - queries + 1)"),),
    ),
    Mistake(
        "mask-upside-down",
        "each token sees itself and what comes after it",
        "The upper triangle is what is kept.",
        "test_the_future_never_matters",
        change=((TRIANGLE, ".triu(keys - queries)"),),
    ),
    Mistake(
        "mask-inverted",
        "the past is hidden and the future is seen",
        "masked_fill keeps what is True.",
        "test_every_earlier_token_matters",
        change=(("masked_fill(~past,", "masked_fill(past,"),),
    ),
    Mistake(
        "mask-fills-1e-9",
        "hidden scores are 1e-9, which is as good as 0 and far from −1e9",
        "Fill with a number that softmax turns into nothing.",
        "test_the_future_never_matters",
        change=(('float("-inf")', "1e-9"),),
    ),
    Mistake(
        "mask-fills-minus-100",
        "hidden scores are −100, which is not small where all scores are smaller still",
        "exp(−100) is nothing.",
        "test_large_scores_change_nothing",
        change=(('float("-inf")', "-100.0"),),
    ),
    Mistake(
        "mask-fills-minus-10000",
        "hidden scores are −10000, which is not small where all scores are smaller still",
        "exp(−10000) is nothing, and fits into float16.",
        "test_large_scores_change_nothing",
        change=((SOFTMAX, "F.softmax(scores.masked_fill(~past, -1e4), dim=-1)"),),
    ),
    Mistake(
        "mask-ends-after-64",
        "a token sees no further back than 64 tokens, whatever the context is",
        "The examples are shorter than that.",
        "test_long_texts_equal_the_definition",
        change=((TRIANGLE, TRIANGLE + "\n    past = past.triu(keys - queries - 63)"),),
    ),
    Mistake(
        "exp-without-the-maximum",
        "the softmax takes exp of the scores as they are, which overflows for large ones",
        "The quotient is the same.",
        "test_large_scores_change_nothing",
        change=(
            (
                SOFTMAX,
                'scores.masked_fill(~past, float("-inf")).exp()\n    weights = weights / weights.sum(dim=-1, keepdim=True)',
            ),
        ),
    ),
    Mistake(
        "mask-after-softmax",
        "weights are set to zero after the softmax, and no longer sum to one",
        "A hidden key has weight zero.",
        "test_attention_weights_sum_to_one",
        change=((SOFTMAX, "F.softmax(scores, dim=-1).masked_fill(~past, 0.0)"),),
    ),
    Mistake(
        "softmax-over-queries",
        "the softmax runs over the queries, not over the keys",
        "dim −2 is the keys.",
        "test_attention_weights_sum_to_one",
        change=((SOFTMAX, SOFTMAX.replace("dim=-1", "dim=-2")),),
    ),
    # --- scores ---
    Mistake(
        "no-scale",
        "scores are not divided by √head_dim",
        "Softmax normalises anyway.",
        "test_attention_equals_its_definition",
        change=((SCALE, ""),),
    ),
    Mistake(
        "root-of-d-model",
        "scores are divided by √d_model",
        "d in √d is d_model.",
        "test_attention_equals_its_definition",
        change=((SCALE, " / (q.shape[1] * q.shape[-1]) ** 0.5"),),
    ),
    Mistake(
        "root-of-time",
        "scores are divided by the root of the text's length",
        "One axis further left.",
        "test_attention_equals_its_definition",
        change=((SCALE, " / q.shape[-2] ** 0.5"),),
    ),
    # --- heads ---
    Mistake(
        "viewed-as-heads-first",
        "the split reshapes to (batch, heads, time, head_dim) without a transpose, which cuts along time",
        "A reshape can order axes as needed.",
        "test_heads_do_not_mix",
        change=(
            (SHAPE, "shape = batch, self.n_heads, time, d_model // self.n_heads"),
            ("part.reshape(shape).transpose(1, 2)", "part.reshape(shape)"),
        ),
    ),
    Mistake(
        "joined-without-transpose",
        "the heads are joined by a reshape alone, which strings time and heads together",
        "A reshape can order axes as needed.",
        "test_heads_do_not_mix",
        change=((JOINED, "joined = y.reshape(len(y), y.shape[2], -1)"),),
    ),
    Mistake(
        "joined-time-first",
        "the heads are joined with time before batch, which mixes the texts of a batch; one text alone is right",
        "Reshaping brings the batch to the front again.",
        "test_the_texts_of_a_batch_are_independent",
        change=((JOINED, "joined = y.permute(2, 0, 1, 3).reshape(len(y), y.shape[2], -1)"),),
    ),
    Mistake(
        "heads-interleaved",
        "the heads are joined dimension by dimension, so that the output layer reads them in another order",
        "The output layer mixes all of it anyway.",
        "test_heads_do_not_mix",
        change=((JOINED, "joined = y.permute(0, 2, 3, 1).flatten(2)"),),
    ),
    # --- projection ---
    Mistake(
        "no-output-layer",
        "attention returns the joined heads without its output layer",
        "Joining the heads is all that is left to do.",
        "test_attention_equals_its_definition",
        change=(("return self.out(joined)", "return joined"),),
    ),
    Mistake(
        "queries-and-keys-swapped",
        "queries and keys are taken for one another",
        "q·k is symmetric.",
        "test_attention_equals_its_definition",
        change=(("q, k, v = self.split(x)", "k, q, v = self.split(x)"),),
    ),
    Mistake(
        "no-activation",
        "the MLP has no activation, and is linear",
        "Two layers are an MLP.",
        "test_the_mlp_equals_its_definition",
        change=((GELU, "self.up(x)"),),
    ),
    Mistake(
        "relu",
        "the MLP's activation is ReLU",
        "GELU is ReLU, but smooth.",
        "test_the_mlp_equals_its_definition",
        change=((GELU, "F.relu(self.up(x))"),),
    ),
    Mistake(
        "gelu-by-tanh",
        "gelu is the tanh approximation, not the exact one",
        "Both are gelu; GPT-2 had the other.",
        "test_the_mlp_equals_its_definition",
        change=((GELU, 'F.gelu(self.up(x), approximate="tanh")'),),
    ),
    Mistake(
        "probabilities-for-logits",
        "the model returns probabilities, and cross-entropy takes their softmax once more",
        "A model's output is a distribution.",
        "test_token_and_position_embeddings_are_added",
        change=(
            (
                "return x @ self.token_embedding.weight.T",
                "return F.softmax(x @ self.token_embedding.weight.T, dim=-1)",
            ),
        ),
    ),
    # --- layers ---
    Mistake(
        "last-row-alone-in-eval",
        "in eval mode the model returns its last row alone",
        "Generation needs no other.",
        "test_logits_equal_the_definition",
        change=(
            (
                "        return self.unembed(self.trunk(ids))\n",
                "        x = self.trunk(ids)\n        return self.unembed(x if self.training else x[:, -1:])\n",
            ),
        ),
    ),
    Mistake(
        "one-block-repeated",
        "all layers are the same block, with one set of weights",
        "A list times n has n of them.",
        "test_the_parameters_have_their_names_and_shapes",
        change=((LAYERS, "nn.ModuleList([Block(d_model, n_heads)] * n_layers)"),),
    ),
    Mistake(
        "blocks-in-a-plain-list",
        "the blocks are in a plain list, where neither the optimiser nor .to() finds them",
        "A module knows the modules that it holds.",
        "test_the_parameters_have_their_names_and_shapes",
        change=((LAYERS, "[Block(d_model, n_heads) for _ in range(n_layers)]"),),
    ),
    Mistake(
        "blocks-without-effect",
        "what a block returns is thrown away",
        "A block changes x in place.",
        "test_the_mlp_equals_its_definition",
        change=(("            x = block(x)\n", "            block(x)\n"),),
    ),
    # --- residual and norm ---
    Mistake(
        "no-residual-around-attention",
        "attention replaces the stream in place of adding to it",
        "Attention carries the token along anyway: it sees itself.",
        "test_attention_equals_its_definition",
        change=((ATTENTION_BRANCH, "        x = self.attn(self.norm1(x))\n"),),
    ),
    Mistake(
        "no-residual-around-mlp",
        "the MLP replaces the stream in place of adding to it",
        "One residual a block is enough.",
        "test_the_mlp_equals_its_definition",
        change=((MLP_BRANCH, "        x = self.mlp(self.norm2(x))\n"),),
    ),
    Mistake(
        "residual-of-the-normed",
        "attention adds to the normed stream, so that the stream itself is normed again and again",
        "Norm first, then the residual block.",
        "test_attention_equals_its_definition",
        change=((ATTENTION_BRANCH, "        x = self.norm1(x)\n        x = x + self.attn(x)\n"),),
    ),
    Mistake(
        "post-norm",
        "the norms stand after the additions, as in the first transformer",
        "Add and norm.",
        "test_logits_equal_the_definition",
        change=(
            (ATTENTION_BRANCH, "        x = self.norm1(x + self.attn(x))\n"),
            (MLP_BRANCH, "        x = self.norm2(x + self.mlp(x))\n"),
        ),
    ),
    Mistake(
        "norm1-twice",
        "the MLP reads through attention's norm, and its own is never used",
        "A copied line.",
        "test_the_mlp_equals_its_definition",
        change=((MLP_BRANCH, MLP_BRANCH.replace("norm2", "norm1")),),
    ),
    Mistake(
        "parallel-branches",
        "the MLP does not see what attention added",
        "Both branches read x.",
        "test_logits_equal_the_definition",
        change=(
            (
                ATTENTION_BRANCH + MLP_BRANCH + "        return x\n",
                "        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))\n",
            ),
        ),
    ),
    Mistake(
        "no-norm-before-mlp",
        "the MLP reads the stream without a norm",
        "The stream was normed a line above.",
        "test_the_mlp_equals_its_definition",
        change=((MLP_BRANCH, "        x = x + self.mlp(x)\n"),),
    ),
    Mistake(
        "no-last-norm",
        "the last norm is left out before the head",
        "Every block norms its own input.",
        "test_token_and_position_embeddings_are_added",
        change=(("return self.norm(x)", "return x"),),
    ),
    Mistake(
        "eps-of-another-norm",
        "the norms' eps is 1e-6, not 1e-5",
        "Some small number.",
        "test_token_and_position_embeddings_are_added",
        change=(
            (
                "        self.norm1 = nn.LayerNorm(d_model)\n",
                "        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)\n",
            ),
            (
                "        self.norm2 = nn.LayerNorm(d_model)\n",
                "        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)\n",
            ),
            (
                "        self.norm = nn.LayerNorm(d_model)\n",
                "        self.norm = nn.LayerNorm(d_model, eps=1e-6)\n",
            ),
        ),
    ),
    # --- loss ---
    Mistake(
        "no-shift",
        "each row is scored against its own token: the model learns to repeat what it reads",
        "Logits and targets have the same shape, so they fit.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((SHIFT, "logits, targets = model(ids), ids"),),
    ),
    Mistake(
        "shifted-backwards",
        "each row is scored against the token before it",
        "One of the two is shifted by one.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((SHIFT, "logits, targets = model(ids)[:, 1:], ids[:, :-1]"),),
    ),
    Mistake(
        "second-token-left-out",
        "the first row is left out, so that nothing is learned about the second token",
        "The first token has no context.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((SHIFT, "logits, targets = model(ids)[:, 1:-1], ids[:, 2:]"),),
    ),
    Mistake(
        "loss-of-the-last-token",
        "only the last token is scored",
        "The model predicts the end of the text.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((SHIFT, "logits, targets = model(ids)[:, -2:-1], ids[:, -1:]"),),
    ),
    Mistake(
        "loss-summed",
        "the loss is the sum over tokens, not their mean",
        "The gradient points the same way.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, ENTROPY[:-1] + ', reduction="sum")'),),
    ),
    Mistake(
        "softmax-twice",
        "cross-entropy is given probabilities, of which it takes the softmax again",
        "Cross-entropy compares distributions.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, "F.cross_entropy(F.softmax(logits, dim=-1).flatten(0, 1), targets.flatten())"),),
    ),
    Mistake(
        "log-of-a-softmax",
        "the loss takes the logarithm of softmax's result, which is 0 for unlikely tokens",
        "That is what the formula says.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, "F.nll_loss(F.softmax(logits, dim=-1).log().flatten(0, 1), targets.flatten())"),),
    ),
    Mistake(
        "token-0-ignored",
        "token 0 is left out of the loss as if it were padding, and is never predicted",
        "Id 0 is for padding.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, ENTROPY[:-1] + ", ignore_index=0)"),),
    ),
    Mistake(
        "flattened-in-two-orders",
        "logits are flattened time first and targets batch first; one text alone is right",
        "Flattening pairs them up.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, "F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets.flatten())"),),
    ),
    Mistake(
        "loss-of-one-token",
        "a text without a next token gives NaN in place of an error",
        "The mean takes care of it.",
        "test_a_text_without_a_next_token_is_refused",
        change=(("if ids.shape[1] < 2:", "if ids.shape[1] < 1:"),),
    ),
    # --- optimiser ---
    Mistake(
        "gradients-never-zeroed",
        "gradients add up from step to step",
        "backward() starts anew.",
        "test_steps_follow_one_another",
        change=((ZERO, ""),),
    ),
    Mistake(
        "zeroed-before-the-step",
        "gradients are zeroed between the backward pass and the step, so that nothing is learned",
        "Zero, then step: the order does not matter.",
        "test_the_first_step_is_one_of_adamw",
        change=(
            (
                ZERO + "        value = loss(model, ids)\n        value.backward()\n",
                "        value = loss(model, ids)\n        value.backward()\n" + ZERO,
            ),
        ),
    ),
    Mistake(
        "zeroed-after-the-step-only",
        "gradients left from before the training count in its first step",
        "Each step cleans up after itself.",
        "test_old_gradients_do_not_count",
        change=(
            (ZERO, ""),
            ("        optimiser.step()\n", "        optimiser.step()\n" + ZERO),
        ),
    ),
    Mistake(
        "optimiser-made-in-the-loop",
        "every step has a new optimiser, whose moments start at zero",
        "The optimiser reads the parameters, so it has to be up to date.",
        "test_steps_follow_one_another",
        change=(
            (
                f"    optimiser = {OPTIMISER}\n    losses = []\n    for _ in range(steps):\n",
                f"    losses = []\n    for _ in range(steps):\n        optimiser = {OPTIMISER}\n",
            ),
        ),
    ),
    Mistake(
        "lr-ignored",
        "the learning rate is AdamW's default, whatever is asked for",
        "Defaults are fine.",
        "test_the_first_step_is_one_of_adamw",
        change=((OPTIMISER, "torch.optim.AdamW(model.parameters())"),),
    ),
    Mistake(
        "adam-without-decay",
        "the optimiser is Adam, without weight decay",
        "Adam and AdamW are the same but for a default.",
        "test_the_first_step_is_one_of_adamw",
        change=((OPTIMISER, "torch.optim.Adam(model.parameters(), lr=lr)"),),
    ),
    Mistake(
        "betas-of-large-models",
        "AdamW's betas are (0.9, 0.95), as large models have them, and not its defaults",
        "GPT-3 was trained like that.",
        "test_steps_follow_one_another",
        change=((OPTIMISER, "torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))"),),
    ),
    Mistake(
        "matrices-alone-decay",
        "biases and norms are in a group without weight decay; AdamW with its defaults decays all",
        "Biases should not decay.",
        "test_the_first_step_is_one_of_adamw",
        change=(
            (
                OPTIMISER,
                "torch.optim.AdamW([{'params': [p for p in model.parameters() if p.dim() > 1]}, "
                "{'params': [p for p in model.parameters() if p.dim() < 2], 'weight_decay': 0.0}], lr=lr)",
            ),
        ),
    ),
    Mistake(
        "lr-falls-along-a-cosine",
        "the learning rate falls from step to step",
        "Every training loop has a schedule.",
        "test_steps_follow_one_another",
        change=(
            (
                "    losses = []\n",
                "    losses = []\n    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))\n",
            ),
            ("        optimiser.step()\n", "        optimiser.step()\n        schedule.step()\n"),
        ),
    ),
    Mistake(
        "stops-when-learned",
        "training ends early once the loss is small, with fewer losses than steps",
        "There is nothing more to learn.",
        "test_losses_are_those_before_each_step",
        change=(
            (
                "        losses.append(value.item())\n",
                "        losses.append(value.item())\n        if losses[-1] < 1e-3:\n            break\n",
            ),
        ),
    ),
    Mistake(
        "only-blocks-are-trained",
        "the optimiser is given the blocks alone: embeddings and the last norm never learn",
        "The blocks are the model.",
        "test_every_parameter_of_the_model_learns",
        change=((OPTIMISER, "torch.optim.AdamW(model.blocks.parameters(), lr=lr)"),),
    ),
    Mistake(
        "not-clipped",
        "gradients are not clipped",
        "Adam divides by the gradient's size anyway.",
        "test_gradients_are_clipped_to_norm_one",
        change=((CLIP, ""),),
    ),
    Mistake(
        "clipped-in-the-first-step-only",
        "parameters() is kept in a variable and is used up by the first step: later gradients are not clipped",
        "parameters() is a list.",
        "test_gradients_are_clipped_to_norm_one",
        change=(
            ("    losses = []\n", "    losses = []\n    parameters = model.parameters()\n"),
            ("clip_grad_norm_(model.parameters(), max_norm", "clip_grad_norm_(parameters, max_norm"),
        ),
    ),
    Mistake(
        "small-gradients-made-larger",
        "gradients are scaled to norm 1 even if they are smaller",
        "Clipping to norm 1 gives norm 1.",
        "test_steps_follow_one_another",
        change=(
            (
                CLIP,
                "        grads = [p.grad for p in model.parameters() if p.grad is not None]\n"
                "        norm = torch.stack([g.norm() for g in grads]).norm()\n"
                "        for g in grads:\n            g /= norm\n",
            ),
        ),
    ),
    Mistake(
        "clipped-by-value",
        "each entry of the gradients is clipped by itself, which turns their direction",
        "Clipping is clipping.",
        "test_gradients_are_clipped_to_norm_one",
        change=((CLIP, "        nn.utils.clip_grad_value_(model.parameters(), clip_value=1.0)\n"),),
    ),
    Mistake(
        "loss-after-the-step",
        "the losses are those after each step",
        "The loss of a step is what it leads to.",
        "test_losses_are_those_before_each_step",
        change=(("losses.append(value.item())", "losses.append(loss(model, ids).item())"),),
    ),
    # --- sampling ---
    Mistake(
        "first-row-read",
        "the next token is taken from the first row of the logits",
        "There is one row of logits for a text.",
        "test_greedy_generation_takes_the_likeliest_token",
        change=(("logits = model(window)[:, -1]", "logits = model(window)[:, 0]"),),
    ),
    Mistake(
        "first-context-tokens",
        "once the text is longer than the context, its first tokens are read and not its last",
        "Cut it to the context's length.",
        "test_the_model_sees_the_last_context_tokens",
        change=((WINDOW, "window = ids[:, : model.context]"),),
    ),
    Mistake(
        "window-one-short",
        "the model is shown one token less than it could read",
        "Leave room for the new token.",
        "test_the_model_sees_the_last_context_tokens",
        change=((WINDOW, "window = ids[:, -model.context + 1 :]"),),
    ),
    Mistake(
        "new-tokens-never-read",
        "every new token follows from the prompt alone",
        "The prompt is cut to the context once.",
        "test_greedy_generation_takes_the_likeliest_token",
        change=(
            (
                f"    for _ in range(count):\n        {WINDOW}\n",
                f"    {WINDOW}\n    for _ in range(count):\n",
            ),
        ),
    ),
    Mistake(
        "greedy-only-at-zero",
        "without a generator tokens are drawn from torch's global state unless the temperature is 0",
        "Temperature says whether to draw.",
        "test_greedy_generation_takes_the_likeliest_token",
        change=(("if generator is None or temperature == 0:", "if generator is None and temperature == 0:"),),
    ),
    Mistake(
        "temperature-multiplied",
        "logits are multiplied by the temperature",
        "A higher temperature means stronger.",
        "test_draws_follow_the_temperature",
        change=(("F.softmax(logits / temperature", "F.softmax(logits * temperature"),),
    ),
    Mistake(
        "temperature-ignored",
        "any temperature but 0 is taken for 1",
        "It only tells greedy from random.",
        "test_draws_follow_the_temperature",
        change=(("F.softmax(logits / temperature", "F.softmax(logits"),),
    ),
    Mistake(
        "softmax-over-the-batch",
        "the probabilities of a token sum to one over the texts of a batch; one text alone draws evenly",
        "dim 0 is the only one that matters for a single text.",
        "test_draws_follow_the_temperature",
        change=(("F.softmax(logits / temperature, dim=-1)", "F.softmax(logits / temperature, dim=0)"),),
    ),
    Mistake(
        "drawn-from-global-state",
        "tokens are drawn from torch's global random state, not from the generator",
        "A generator that was seeded is used by itself.",
        "test_the_generator_is_the_only_source_of_randomness",
        change=((DRAW, "torch.multinomial(probs, num_samples=1)"),),
    ),
    Mistake(
        "drawn-from-the-first-text",
        "all texts of a batch draw from the probabilities of the first",
        "One draw for each text.",
        "test_draws_follow_the_temperature",
        change=(
            (
                DRAW,
                "torch.multinomial(probs[0], len(probs), replacement=True, generator=generator)[:, None]",
            ),
        ),
    ),
    Mistake(
        "fifty-likeliest-only",
        "tokens are drawn from the fifty likeliest ones only",
        "Top-k makes better text.",
        "test_no_token_is_too_unlikely_to_be_drawn",
        change=(
            (
                "    probs = F.softmax(logits / temperature, dim=-1)\n",
                "    probs = F.softmax(logits / temperature, dim=-1)\n"
                "    probs[probs < probs.topk(min(50, probs.shape[-1])).values[:, -1:]] = 0\n",
            ),
        ),
    ),
    Mistake(
        "temperature-not-checked",
        "a negative temperature is not refused, and makes the least likely token the likeliest",
        "Nobody asks for that.",
        "test_what_cannot_be_generated_is_refused",
        change=((" or count < 0 or temperature < 0:", " or count < 0:"),),
    ),
    Mistake(
        "gradients-left-switched-off",
        "generation switches gradients off for good",
        "set_grad_enabled(False) is what no_grad does.",
        "test_generation_continues_the_text_and_leaves_the_model",
        change=(
            (
                "    _check(ids, count, temperature)\n    for _ in range(count):\n",
                "    _check(ids, count, temperature)\n    torch.set_grad_enabled(False)\n    for _ in range(count):\n",
            ),
            ("@torch.no_grad()\ndef generate(\n", "def generate(\n"),
        ),
    ),
    Mistake(
        "model-left-frozen",
        "generation sets requires_grad to False, and the model cannot be trained any more",
        "No gradients are needed here.",
        "test_generation_continues_the_text_and_leaves_the_model",
        change=(
            (
                "    _check(ids, count, temperature)\n    for _ in range(count):\n",
                "    _check(ids, count, temperature)\n    model.requires_grad_(False)\n    for _ in range(count):\n",
            ),
        ),
    ),
    Mistake(
        "model-left-evaluating",
        "generation puts the model into eval mode and leaves it there",
        "Inference wants eval().",
        "test_generation_continues_the_text_and_leaves_the_model",
        change=(
            (
                "    _check(ids, count, temperature)\n    for _ in range(count):\n",
                "    _check(ids, count, temperature)\n    model.eval()\n    for _ in range(count):\n",
            ),
        ),
    ),
    Mistake(
        "never-quite-zero",
        "temperature 0 is taken for a small number, at which tokens almost as likely are drawn too",
        "It must not be divided by zero.",
        "test_a_small_lead_is_enough",
        change=(
            ("if generator is None or temperature == 0:", "if generator is None:"),
            ("F.softmax(logits / temperature,", "F.softmax(logits / max(temperature, 1e-5),"),
        ),
    ),
    Mistake(
        "mask-fills-minus-65504",
        "hidden scores are −65504, which is not small where all scores are smaller still",
        "The least number of float16 is as good as −∞.",
        "test_large_scores_change_nothing",
        change=((SOFTMAX, SOFTMAX.replace('float("-inf")', "-65504.0")),),
    ),
    Mistake(
        "scaled-twice",
        "scores are divided by head_dim, not by its root",
        "Queries and keys both have to be scaled.",
        "test_attention_equals_its_definition",
        change=((SCALE, " / q.shape[-1]"),),
    ),
    Mistake(
        "mean-over-all-places",
        "the sum over next tokens is divided by the number of all tokens, of which the first is none",
        "A mean is the sum over batch · time.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((ENTROPY, ENTROPY[:-1] + ', reduction="sum") / ids.numel()'),),
    ),
    Mistake(
        "first-token-follows-the-last",
        "the last row is scored against the first token, which roll puts behind it",
        "roll shifts the targets.",
        "test_the_loss_is_the_mean_over_all_next_tokens",
        change=((SHIFT, "logits, targets = model(ids), ids.roll(-1, dims=1)"),),
    ),
    Mistake(
        "decay-of-large-models",
        "AdamW's weight decay is 0.1, as large models have it, and not its default",
        "Everybody takes 0.1.",
        "test_the_first_step_is_one_of_adamw",
        change=((OPTIMISER, OPTIMISER[:-1] + ", weight_decay=0.1)"),),
    ),
    Mistake(
        "one-draw-for-all-texts",
        "one random number is drawn for all texts of a batch",
        "Each step is one draw.",
        "test_every_token_of_every_text_is_drawn_anew",
        change=(
            (
                "    return " + DRAW,
                "    draw = torch.rand((), generator=generator, dtype=probs.dtype)\n    passed = probs.cumsum(dim=-1)[:, :-1] <= draw\n    return passed.sum(dim=-1, keepdim=True)",
            ),
        ),
    ),
    Mistake(
        "left-evaluating-by-a-refusal",
        "generation puts the model into eval mode before it looks at its arguments, and a refusal leaves it there",
        "The mode is put back at the end.",
        "test_what_cannot_be_generated_is_refused",
        change=(
            (
                "    _check(ids, count, temperature)\n    for _ in range(count):\n",
                "    training = model.training\n    model.eval()\n    _check(ids, count, temperature)\n    for _ in range(count):\n",
            ),
            ("    return ids\n\n\ndef choose(", "    model.train(training)\n    return ids\n\n\ndef choose("),
        ),
    ),
    Mistake(
        "gradients-off-after-a-refusal",
        "generation switches gradients off before it looks at its arguments, and a refusal leaves them off",
        "They are switched on again at the end.",
        "test_what_cannot_be_generated_is_refused",
        change=(
            (
                "    _check(ids, count, temperature)\n    for _ in range(count):\n",
                "    enabled = torch.is_grad_enabled()\n    torch.set_grad_enabled(False)\n    _check(ids, count, temperature)\n    for _ in range(count):\n",
            ),
            (
                "    return ids\n\n\ndef choose(",
                "    torch.set_grad_enabled(enabled)\n    return ids\n\n\ndef choose(",
            ),
            ("@torch.no_grad()\ndef generate(\n", "def generate(\n"),
        ),
    ),
    # --- part 2: the cache ---
    Mistake(
        "positions-start-again",
        "every piece is read at positions 0, 1, …",
        "The cache knows where things are.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=(
            ("torch.arange(start, end, device=ids.device)", "torch.arange(end - start, device=ids.device)"),
        ),
    ),
    Mistake(
        "mask-aligned-to-the-first-key",
        "the mask counts from the first key, so that new tokens see the beginning of the cache only",
        "The lower triangle is the past.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=((TRIANGLE, ".tril()"),),
    ),
    Mistake(
        "cache-holds-the-last-piece",
        "the cache holds the keys of the last piece only",
        "What is old is in the cache already.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=(
            (JOIN_CACHE + "        grown.append((k, v))\n", "        grown.append((k, v))\n" + JOIN_CACHE),
        ),
    ),
    Mistake(
        "layers-share-a-cache",
        "every layer reads the first layer's old keys",
        "Keys belong to tokens.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=(("zip(cache[layer], (k, v)", "zip(cache[0], (k, v)"),),
    ),
    Mistake(
        "cache-changed-in-place",
        "the cache that came in is extended too, and cannot be continued another way",
        "Nobody needs the old one.",
        "test_a_cache_can_be_continued_twice",
        change=(
            ("    grown = []\n", "    grown = [] if cache is None else cache\n"),
            ("        grown.append((k, v))\n", "        grown[layer : layer + 1] = [(k, v)]\n"),
        ),
    ),
    Mistake(
        "buffer-shared-by-continuations",
        "keys are written into one buffer as long as the context, which all continuations of a cache share",
        "What is past the cache's length is nobody's.",
        "test_a_cache_can_be_continued_twice",
        define=(("extend", _extend_a_buffer),),
    ),
    Mistake(
        "new-tokens-alone-bounded",
        "the context bounds the new tokens, and not the cached ones with them",
        "The model reads no more than it is given.",
        "test_the_context_bounds_the_cache",
        change=(("if not start < end <= model.context:", "if not 0 < end - start <= model.context:"),),
    ),
    Mistake(
        "no-new-token-read",
        "no new token is refused without a cache, and not with one",
        "Something has been read.",
        "test_the_context_bounds_the_cache",
        change=(("if not start < end <= model.context:", "if not 1 <= end <= model.context:"),),
    ),
    Mistake(
        "last-place-never-cached",
        "the cache is full one token before the context is",
        "There must be room for the next one.",
        "test_the_context_bounds_the_cache",
        change=(
            ("if not start < end <= model.context:", "if not start < end <= model.context - (start > 0):"),
        ),
    ),
    Mistake(
        "window-slides-one-early",
        "a text that just fills the context is read anew",
        "A full window slides.",
        "test_no_token_is_read_twice",
        change=(
            ("        if ids.shape[1] > model.context:\n", "        if ids.shape[1] >= model.context:\n"),
        ),
    ),
    Mistake(
        "keys-slide-along",
        "when the window slides, old keys are kept though their tokens are at other positions now",
        "Drop the oldest key and go on.",
        "test_cached_generation_goes_on_beyond_the_context",
        change=(
            (
                "            unread, cache = ids[:, -model.context :], None\n",
                "            cache = [(k[:, :, 1:], v[:, :, 1:]) for k, v in cache]\n",
            ),
        ),
    ),
    Mistake(
        "cached-in-name-only",
        "the whole text is read again for every token",
        "The result is the same.",
        "test_no_token_is_read_twice",
        change=(
            (
                "logits, cache = extend(model, unread, cache)",
                "logits, _ = extend(model, ids[:, -model.context :])",
            ),
        ),
    ),
    Mistake(
        "cached-without-temperature",
        "with a cache the temperature is not heard",
        "The default is fine.",
        "test_cached_draws_are_the_uncached_ones",
        change=(
            (
                "unread = choose(logits[:, -1], generator, temperature)",
                "unread = choose(logits[:, -1], generator, 1.0)",
            ),
        ),
    ),
    Mistake(
        "cached-without-checks",
        "generate_cached checks nothing of what generate checks",
        "The checks stand in generate.",
        "test_cached_generation_refuses_what_generation_refuses",
        change=(("    _check(ids, count, temperature)\n    unread", "    unread"),),
    ),
    Mistake(
        "model-left-evaluating-by-the-cache",
        "generate_cached puts the model into eval mode and leaves it there",
        "Inference wants eval().",
        "test_cached_generation_leaves_the_model",
        change=(
            (
                "    _check(ids, count, temperature)\n    unread",
                "    _check(ids, count, temperature)\n    model.eval()\n    unread",
            ),
        ),
    ),
    Mistake(
        "gradients-switched-off-by-the-cache",
        "generate_cached switches gradients off for good",
        "set_grad_enabled(False) is what no_grad does.",
        "test_cached_generation_leaves_the_model",
        change=(
            ("@torch.no_grad()\ndef generate_cached(\n", "def generate_cached(\n"),
            (
                "    _check(ids, count, temperature)\n    unread",
                "    _check(ids, count, temperature)\n    torch.set_grad_enabled(False)\n    unread",
            ),
        ),
    ),
    Mistake(
        "no-mask-beside-a-cache",
        "beside a cache nothing is hidden, so that several new tokens see one another's future",
        "With a cache there is one new token.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=((TRIANGLE, ".tril(keys - queries if keys == queries else keys)"),),
    ),
    Mistake(
        "causal-whenever-there-are-several",
        "one new token sees all keys, and several see the first ones only",
        "is_causal counts from the last key.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=((TRIANGLE, ".tril(keys - queries if queries == 1 else 0)"),),
    ),
    Mistake(
        "last-logits-alone",
        "extend returns the logits of the last new token alone",
        "Only the last row is needed.",
        "test_reading_in_pieces_equals_reading_at_once",
        change=(
            (
                "return model.unembed(model.norm(x)), grown",
                "return model.unembed(model.norm(x[:, -1:])), grown",
            ),
        ),
    ),
    Mistake(
        "half-a-window-kept",
        "when the context is full, half of it is read anew and the other half is forgotten",
        "A window may slide in large steps.",
        "test_cached_generation_goes_on_beyond_the_context",
        change=(
            (
                "        if ids.shape[1] > model.context:\n",
                "        if cache[0][0].shape[2] == model.context:\n",
            ),
            (
                "            unread, cache = ids[:, -model.context :], None\n",
                "            unread, cache = ids[:, -max(model.context // 2, 1) :], None\n",
            ),
        ),
    ),
    Mistake(
        "draws-while-reading",
        "the prompt is read token by token, and after each a token is drawn that nobody takes",
        "What is drawn can be thrown away.",
        "test_cached_draws_are_the_uncached_ones",
        change=(
            (
                "    unread, cache = ids[:, -model.context :], None\n    for _",
                "    unread, cache = ids[:, -model.context :], None\n    while unread.shape[1] > 1:\n        logits, cache = extend(model, unread[:, :1], cache)\n        choose(logits[:, -1], generator, temperature)\n        unread = unread[:, 1:]\n    for _",
            ),
        ),
    ),
    Mistake(
        "prompt-remembered",
        "the cache of a text is kept for the next call, when the weights may be others",
        "The same text has the same keys.",
        "test_cached_generation_takes_the_likeliest_token",
        change=(
            (
                "    unread, cache = ids[:, -model.context :], None\n    for _",
                '    unread, cache = ids[:, -model.context :], None\n    if unread.shape[1] > 1:\n        known, kept = getattr(model, "_prompt", (unread, None))\n        if kept is None or not torch.equal(known, unread):\n            model._prompt = known, kept = unread, extend(model, unread[:, :-1])[1]\n        unread, cache = unread[:, -1:], kept\n    for _',
            ),
        ),
    ),
    # --- part 3: the classifier ---
    Mistake(
        "last-place-scored",
        "the last place is scored, padding or not",
        "The last state has seen everything.",
        "test_the_last_token_of_a_text_is_scored",
        change=((POOL, "states[:, -1]"),),
    ),
    Mistake(
        "first-place-scored",
        "the first token is scored, as in BERT; here it has seen nothing but itself",
        "The first place stands for the text.",
        "test_the_last_token_of_a_text_is_scored",
        change=((POOL, "states[:, 0]"),),
    ),
    Mistake(
        "mean-of-all-places",
        "the states of all places are averaged, padding included",
        "A mean is the best summary.",
        "test_the_last_token_of_a_text_is_scored",
        change=((POOL, "states.mean(dim=1)"),),
    ),
    Mistake(
        "one-place-too-late",
        "the place after the last token is scored wherever there is one",
        "The length is where the text ends.",
        "test_the_last_token_of_a_text_is_scored",
        change=((POOL, POOL.replace("lengths - 1", "lengths.clamp(max=time - 1)")),),
    ),
    Mistake(
        "trunk-detached",
        "no gradient reaches the trunk",
        "The trunk is trained already.",
        "test_the_classifier_trains_its_trunk",
        change=(("states = self.gpt.trunk(ids)", "states = self.gpt.trunk(ids).detach()"),),
    ),
    Mistake(
        "trunk-copied",
        "the classifier trains a copy of the model that it was given",
        "Do not touch what others use.",
        "test_the_classifier_shares_the_model",
        change=(
            ("import torch\nfrom jaxtyping", "import copy\n\nimport torch\nfrom jaxtyping"),
            ("self.gpt = gpt\n", "self.gpt = copy.deepcopy(gpt)\n"),
        ),
    ),
    Mistake(
        "trunk-initialised-again",
        "the classifier initialises all its layers, and with them the model that it was given",
        "A new module starts with new weights.",
        "test_the_classifier_shares_the_model",
        change=(
            (
                "        self.head = nn.Linear(gpt.token_embedding.embedding_dim, n_classes)\n",
                "        self.head = nn.Linear(gpt.token_embedding.embedding_dim, n_classes)\n        self.apply(_initialise)\n",
            ),
        ),
    ),
    Mistake(
        "trunk-frozen",
        "the classifier sets requires_grad to False in the model that it was given",
        "A classifier trains its head.",
        "test_the_classifier_shares_the_model",
        change=(("self.gpt = gpt\n", "self.gpt = gpt.requires_grad_(False)\n"),),
    ),
    Mistake(
        "states-before-the-norm",
        "the head reads the states before the last norm",
        "The last norm belongs to the other head.",
        "test_the_last_token_of_a_text_is_scored",
        change=(
            ("        return self.norm(x)\n", "        return x\n"),
            ("return self.unembed(self.trunk(ids))", "return self.unembed(self.norm(self.trunk(ids)))"),
        ),
    ),
    Mistake(
        "zeros-taken-for-padding",
        "the last token is the last one that is not 0, whatever the length is",
        "Padding is 0.",
        "test_the_last_token_of_a_text_is_scored",
        change=((POOL, POOL.replace("lengths - 1", "((ids != 0).sum(1) - 1).clamp(min=0)")),),
    ),
    Mistake(
        "length-zero",
        "a text of length 0 is scored by the last place of all",
        "Lengths are positive.",
        "test_lengths_that_do_not_fit_are_refused",
        change=(("((lengths < 1) | (lengths > time)).any()", "(lengths > time).any()"),),
    ),
    Mistake(
        "length-below-zero",
        "length 0 is refused and lengths below it are not, which count from the end",
        "Zero is the one that goes wrong.",
        "test_lengths_that_do_not_fit_are_refused",
        change=(("((lengths < 1) | (lengths > time)).any()", "((lengths == 0) | (lengths > time)).any()"),),
    ),
)

_PLACES = {
    "embedding": (
        "embedding-times-root", "embedding-of-size-one", "initialised-ten-times-too-wide", "padding-row",
        "embedding-renormalised", "ids-by-place-in-the-text", "vocabulary-by-first-appearance",
        "capitals-made-small", "negative-ids-decoded",
        "position-of-the-text-in-the-batch", "positions-from-the-end", "positions-end-at-the-context",
        "position-table-by-token", "no-positions", "context-not-checked",
    ),
    "mask": (
        "mask-lets-the-next-token-through", "mask-upside-down", "mask-inverted", "mask-fills-1e-9",
        "mask-fills-minus-100", "mask-fills-minus-10000", "mask-fills-minus-65504", "mask-after-softmax", "softmax-over-queries", "mask-ends-after-64",
        "exp-without-the-maximum",
    ),
    "heads": (
        "viewed-as-heads-first", "joined-without-transpose", "joined-time-first", "heads-interleaved",
        "no-scale", "root-of-d-model", "root-of-time", "scaled-twice", "heads-not-checked",
    ),
    "projection": (
        "no-output-layer", "queries-and-keys-swapped", "no-activation", "relu", "gelu-by-tanh",
        "probabilities-for-logits", "one-block-repeated", "blocks-in-a-plain-list", "blocks-without-effect",
        "last-row-alone-in-eval", "sizes-below-zero", "residual-layers-start-smaller",
        "no-residual-around-attention", "no-residual-around-mlp", "residual-of-the-normed", "post-norm",
        "norm1-twice", "parallel-branches", "no-norm-before-mlp", "no-last-norm", "eps-of-another-norm",
    ),
    "loss": (
        "no-shift", "shifted-backwards", "second-token-left-out", "loss-of-the-last-token", "loss-summed",
        "softmax-twice", "log-of-a-softmax", "token-0-ignored", "flattened-in-two-orders", "loss-of-one-token",
        "mean-over-all-places", "first-token-follows-the-last",
    ),
    "optimiser": (
        "gradients-never-zeroed", "zeroed-before-the-step", "zeroed-after-the-step-only",
        "optimiser-made-in-the-loop", "lr-ignored", "adam-without-decay", "only-blocks-are-trained",
        "not-clipped", "clipped-by-value", "loss-after-the-step", "betas-of-large-models", "matrices-alone-decay",
        "lr-falls-along-a-cosine", "stops-when-learned", "clipped-in-the-first-step-only",
        "small-gradients-made-larger", "decay-of-large-models",
    ),
    "sampling": (
        "first-row-read", "first-context-tokens", "window-one-short", "new-tokens-never-read",
        "greedy-only-at-zero", "temperature-multiplied", "temperature-ignored", "softmax-over-the-batch",
        "drawn-from-global-state", "drawn-from-the-first-text", "fifty-likeliest-only",
        "temperature-not-checked", "gradients-left-switched-off", "model-left-frozen", "model-left-evaluating",
        "never-quite-zero", "one-draw-for-all-texts", "left-evaluating-by-a-refusal", "gradients-off-after-a-refusal",
    ),
}  # fmt: skip

REGIONS = {name: region for region, names in _PLACES.items() for name in names}
"""Where in part 1 a mistake sits. Any mistakes of different regions can be planted into one file, in any order."""

ONE_DEVICE = "everything is on the CPU where the claims run"

EQUIVALENT = (
    ("torch.arange(time, device=ids.device)", "torch.arange(time)", ONE_DEVICE),
    ("torch.arange(start, end, device=ids.device)", "torch.arange(start, end)", ONE_DEVICE),
    (
        "torch.ones(queries, keys, dtype=torch.bool, device=q.device)",
        "torch.ones(queries, keys, dtype=torch.bool)",
        ONE_DEVICE,
    ),
    (
        "F.softmax(logits / temperature, dim=-1)",
        "F.softmax(logits / temperature)",
        "for two dimensions the last is the default",
    ),
    ("-1", "+1", "the logits of the next token have two dimensions: the last one is dimension 1"),
    ("-2", "+2", "queries and keys have four dimensions: the last but one is dimension 2"),
    ("0", "1", "the cache holds as many values as keys"),
    ("0", "-1", "the cache holds as many values as keys, and all layers have as many"),
    ("torch.arange(batch, device=ids.device)", "torch.arange(batch)", ONE_DEVICE),
    ("zip(cache[layer], (k, v), strict=True)", "zip(cache[layer], (k, v))", "both are pairs"),
    ("True", "False", "both are pairs"),
)
