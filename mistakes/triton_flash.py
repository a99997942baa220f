"""What people get wrong in attention kernels: the running sums, the edges of blocks, strides, what is skipped, and
what the backward kernels must know of the forward one."""

import torch

from dojo.mistake import Mistake

MIXED = 'mixed = tl.dot(weights.to(values.dtype), values, mixed * keep[:, None], input_precision="ieee")'
SAVED = "ctx.save_for_backward(q, k, v, out, lse)"
APPLY = "return _Flash.apply(q, k, v, causal, q.shape[3] ** -0.5 if scale is None else scale, window)"
FORWARD_RANGE = """reach = keys - queries
    lo, full_lo, full_hi, hi = _seen_keys(first, keys, reach, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if WINDOWED:
        top, """
FORWARD_HEADS = """K += batch * k_batch + head // group * k_head
    V += batch * v_batch + head // group * v_head
    Out"""


def in_pytorch(q, k, v, *, causal=False, scale=None, window=None):
    _check(q, k, v, causal, window)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).float() for x in (k, v))
    scores = q.float() @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    last = torch.arange(q.shape[2], device=q.device)[:, None] + (
        k.shape[2] - q.shape[2] if causal else k.shape[2]
    )
    columns = torch.arange(k.shape[2], device=q.device)
    seen = columns <= last
    if window is not None:
        seen = seen & (columns > last - window)
    weights = scores.masked_fill(~seen, -1e38).softmax(-1) * seen.any(-1, keepdim=True)
    return (weights @ v).to(q.dtype)


MISTAKES = (
    # --- forward ---
    Mistake(
        "values-not-rescaled",
        "the sum of values is not rescaled when the maximum rises",
        "The correction belongs to the normaliser.",
        "test_a_louder_block_rescales_what_came_before",
        change=((MIXED, MIXED.replace(" * keep[:, None]", "")),),
    ),
    Mistake(
        "total-not-rescaled",
        "the sum of weights is not rescaled when the maximum rises",
        "The correction belongs to the output.",
        "test_a_louder_block_rescales_what_came_before",
        change=(("total = total * keep + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),),
    ),
    Mistake(
        "maximum-starts-at-zero",
        "the running maximum starts at 0, so that weights far below 0 underflow",
        "Zero is a neutral start.",
        "test_large_scores_do_not_overflow",
        change=(
            ('top = tl.full([BLOCK_M], float("-inf"), tl.float32)', "top = tl.zeros([BLOCK_M], tl.float32)"),
        ),
    ),
    Mistake(
        "base-two",
        "exp2 is taken of scores that were not multiplied by log2 e",
        "exp2 is the fast exponential.",
        "test_several_blocks_equal_the_definition",
        change=(('"scale": abs(scale) * LOG2_E', '"scale": abs(scale)'),),
    ),
    Mistake(
        "zero-scale-is-none",
        "scale=0 is taken for no scale",
        "`scale or default` is the idiom.",
        "test_scale_takes_the_place_of_the_root",
        change=(
            (
                "q.shape[3] ** -0.5 if scale is None else scale, window)",
                "scale or q.shape[3] ** -0.5, window)",
            ),
        ),
    ),
    Mistake(
        "sign-of-scale-lost",
        "a negative scale acts as a positive one",
        "A scale is positive.",
        "test_scale_takes_the_place_of_the_root",
        change=(("NEGATIVE=scale < 0", "NEGATIVE=False"),),
    ),
    Mistake(
        "last-keys-dropped",
        "the last block of keys is left out unless it is full",
        "The number of blocks is keys // BLOCK.",
        "test_nothing_is_read_beyond_the_end",
        change=(('TAIL=causal or k.shape[2] % blocks["BLOCK_N"] != 0', "TAIL=causal"),),
    ),
    Mistake(
        "keys-beyond-the-end-take-weight",
        "the scores of keys beyond the end are not masked: they are 0, and take weight",
        "They were loaded as zeros.",
        "test_nothing_is_read_beyond_the_end",
        change=(("    visible = columns < keys\n", "    visible = columns >= 0\n"),),
    ),
    Mistake(
        "values-loaded-without-a-bound",
        "values beyond the end are loaded, as their weights are zero",
        "Zero times anything is zero.",
        "test_nothing_is_read_beyond_the_end",
        change=(("values = tl.load(v, mask=columns[:, None] < keys, other=0.0)", "values = tl.load(v)"),),
    ),
    Mistake(
        "one-set-of-strides",
        "v is read with the strides of k",
        "k and v have the same shape.",
        "test_strides_are_minded",
        change=(
            (
                "strides = *q.stride(), *k.stride(), *v.stride(), *out.stride()",
                "strides = *q.stride(), *k.stride(), *k.stride(), *out.stride()",
            ),
        ),
    ),
    Mistake(
        "left-in-float32",
        "half-precision inputs give a float32 result",
        "Wider is better, so the result stays wide.",
        "test_half_precision_equals_the_definition",
        change=(("out = q.new_empty(q.shape)", "out = q.new_empty(q.shape, dtype=torch.float32)"),),
    ),
    Mistake(
        "sums-in-half-precision",
        "the running average is kept in half precision",
        "The result is in that dtype anyway.",
        "test_long_half_precision_rows_sum_in_float32",
        change=((MIXED, MIXED + ".to(values.dtype).to(tl.float32)"),),
    ),
    Mistake(
        "written-in-pytorch",
        "the whole matrix of scores is made in PyTorch",
        "The result is the same.",
        "test_no_scores_are_made_outside_the_kernels",
        define=(("triton_flash", in_pytorch),),
    ),
    Mistake(
        "head-dim-not-checked",
        "a head_dim that the kernels cannot take is not refused",
        "Triton will say so.",
        "test_what_does_not_fit_is_refused",
        change=(("if q.shape[3] not in (16, 32, 64, 128):", "if q.shape[3] < 1:"),),
    ),
    Mistake(
        "own-key-hidden",
        "a query does not see its own key",
        "Causal means what came before.",
        "test_causal_is_aligned_to_the_last_key",
        change=(("columns <= rows + reach", "columns < rows + reach"),),
    ),
    Mistake(
        "aligned-to-the-first-key",
        "causal is aligned to the first key: query i sees key j where j ≤ i",
        "Position i of the queries is position i of the keys.",
        "test_causal_is_aligned_to_the_last_key",
        change=((FORWARD_RANGE, FORWARD_RANGE.replace("keys - queries", "0")),),
    ),
    Mistake(
        "stops-at-the-first-query",
        "the loop over keys ends with what the first query of the block sees",
        "What the block sees is what its start sees.",
        "test_causal_is_aligned_to_the_last_key",
        change=(("tl.maximum(first + BLOCK_M + reach, 0))", "tl.maximum(first + 1 + reach, 0))"),),
    ),
    Mistake(
        "blind-queries-nan",
        "queries before the first key give 0/0",
        "Every query sees a key.",
        "test_queries_before_the_first_key_give_zeros",
        change=(
            (
                "    mixed = mixed / total[:, None]",
                "    mixed = mixed / tl.where(sighted, total, 0.0)[:, None]",
            ),
        ),
    ),
    Mistake(
        "masked-to-a-finite-number",
        "hidden scores are set to −1e4, which large scores overrun",
        "−1e4 is as good as −inf.",
        "test_future_keys_never_matter",
        change=(
            ('scores = tl.where(visible, scores, float("-inf"))', "scores = tl.where(visible, scores, -1e4)"),
        ),
    ),
    Mistake(
        "future-computed-and-masked",
        "blocks in the future are computed, and then masked",
        "Masked scores weigh nothing, so it is right.",
        "test_values_far_in_the_future_are_never_read",
        change=(("hi = tl.minimum(hi, tl.maximum(first + BLOCK_M + reach, 0))", "hi = keys"),),
    ),
    # --- backward ---
    Mistake(
        "delta-left-out",
        "dS = P∘dP, without the row sum that softmax's Jacobian subtracts",
        "The derivative of exp is exp.",
        "test_gradients_equal_the_definition",
        change=(
            (
                "delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)",
                "delta = tl.sum(out.to(tl.float32) * 0, 1)",
            ),
        ),
    ),
    Mistake(
        "dq-without-scale",
        "the gradient of q misses the scale",
        "q was scaled already.",
        "test_gradients_equal_the_definition",
        change=(("(dq * scale)", "dq"),),
    ),
    Mistake(
        "log2e-in-dk",
        "the gradient of k is multiplied by scale · log2 e",
        "The scores are in powers of two, hence their gradient too.",
        "test_gradients_equal_the_definition",
        change=(("(dk * scale)", "(dk * scale * 1.4426950408889634)"),),
    ),
    Mistake(
        "sign-of-scale-lost-in-backward",
        "the weights of dQ are made again with |scale|",
        "The sign went into q, in the forward pass.",
        "test_gradients_follow_the_scale",
        change=(
            (
                'scores = tl.dot(q, k, input_precision="ieee") * (scale',
                'scores = tl.dot(q, k, input_precision="ieee") * (tl.abs(scale)',
            ),
        ),
    ),
    Mistake(
        "backward-not-masked",
        "the weights that are made again for dK and dV are not masked",
        "The mask has done its work in the forward pass.",
        "test_causal_gradients_equal_the_definition",
        change=(
            (
                "weights, pull = tl.where(visible, weights, 0.0), tl.where(visible, pull, 0.0)",
                "weights, pull = weights, pull",
            ),
        ),
    ),
    Mistake(
        "backward-starts-at-its-own-block",
        "the loop over queries starts at the block with the number of the block of keys, whatever the lengths",
        "A key is seen by the queries from its own position on.",
        "test_causal_gradients_are_aligned_to_the_last_key",
        change=(
            (
                "lo = tl.maximum(first - reach, 0) // BLOCK_M * BLOCK_M",
                "lo = tl.maximum(first, 0) // BLOCK_M * BLOCK_M",
            ),
        ),
    ),
    Mistake(
        "root-fixed-in-backward",
        "the backward pass takes 1/4 for 1/√head_dim, whatever the width",
        "head_dim is 16.",
        "test_every_head_dim_has_its_gradients",
        change=(
            (
                "        delta = torch.empty_like(lse)\n",
                "        delta = torch.empty_like(lse)\n"
                '        if ctx.options["scale"] == ctx.options["D"] ** -0.5:\n'
                '            ctx.options["scale"] = 0.25\n',
            ),
        ),
    ),
    Mistake(
        "sign-of-scale-lost-in-wide-heads",
        "a negative scale acts as a positive one in the backward pass, where head_dim is 128",
        "The branch for wide heads is about registers, and the scale is as it always is.",
        "test_every_head_dim_has_its_gradients",
        change=(
            (
                "        delta = torch.empty_like(lse)\n",
                "        delta = torch.empty_like(lse)\n"
                '        if ctx.options["D"] > 64:\n'
                '            ctx.options["scale"] = abs(ctx.options["scale"])\n',
            ),
        ),
    ),
    Mistake(
        "gradients-summed-in-half-precision",
        "the gradient of v is rounded to the dtype of the inputs after each block of queries",
        "It is stored in that dtype anyway.",
        "test_long_half_precision_gradients_sum_in_float32",
        change=(
            (
                '        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")\n',
                '        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")\n'
                "        dv = dv.to(grad.dtype).to(tl.float32)\n",
            ),
        ),
    ),
    Mistake(
        "rounded-for-the-tensor-cores",
        "float32 inputs are rounded to eleven bits before their scores are made, in the backward pass",
        "Tensor cores do not take float32.",
        "test_float32_is_not_rounded_before_it_is_multiplied",
        change=(
            (
                'scores = tl.dot(k, q, input_precision="ieee") * (scale',
                "scores = tl.dot(k.to(tl.float16), q.to(tl.float16)) * (scale",
            ),
            (
                'scores = tl.dot(q, k, input_precision="ieee") * (scale',
                "scores = tl.dot(q.to(tl.float16), k.to(tl.float16)) * (scale",
            ),
        ),
    ),
    Mistake(
        "log-sum-kept-in-half-precision",
        "the logarithm of the sum is kept in the dtype of q",
        "What is made from q has the dtype of q.",
        "test_weights_made_again_sum_to_one_however_large_the_scores",
        change=(("lse = q.new_empty(q.shape[:3], dtype=torch.float32)", "lse = q.new_empty(q.shape[:3])"),),
    ),
    Mistake(
        "gradient-with-the-strides-of-the-result",
        "the gradient from above is read with the strides of the result",
        "Gradients lie in memory as what they belong to.",
        "test_any_gradient_from_above_will_do",
        change=(
            (
                "strides = *q.stride(), *k.stride(), *v.stride(), *grad.stride()",
                "strides = *q.stride(), *k.stride(), *v.stride(), *out.stride()",
            ),
        ),
    ),
    Mistake(
        "scaled-queries-kept",
        "a scaled copy of q is kept for the backward pass",
        "Scaling again would be a waste.",
        "test_only_two_numbers_a_query_are_kept_and_no_scores_made",
        change=((SAVED, SAVED + "\n        ctx.scaled = q * scale"),),
    ),
    # --- groups and window ---
    Mistake(
        "options-kept-on-the-class",
        "what a call was asked for is kept on the class, so that the next call's options serve its backward pass",
        "Backward comes right after forward.",
        "test_backward_passes_do_not_disturb_one_another",
        change=(
            ("        ctx.options = {", "        _Flash.options = ctx.options = {"),
            (
                "*strides, *dk.stride(), **ctx.options,",
                "*strides, *dk.stride(), **_Flash.options,",
            ),
            (
                "*strides, *dq.stride(), **ctx.options,",
                "*strides, *dq.stride(), **_Flash.options,",
            ),
        ),
    ),
    Mistake(
        "heads-dealt-out",
        "head h of q uses head h mod kv_heads of k and v",
        "The heads are dealt out one after the other.",
        "test_heads_share_keys_in_groups",
        change=(
            (FORWARD_HEADS, FORWARD_HEADS.replace("head // group", "head % (tl.num_programs(1) // group)")),
        ),
    ),
    Mistake(
        "first-head-only",
        "the gradient of shared keys is that of the first head of queries",
        "One program for each head of keys.",
        "test_shared_keys_sum_their_gradients",
        change=(
            (
                "for head in range(kv_head * group, (kv_head + 1) * group):",
                "for head in range(kv_head * group, kv_head * group + 1):",
            ),
        ),
    ),
    Mistake(
        "window-off-by-one",
        "a query sees window keys beside its own",
        "The window counts what came before.",
        "test_the_window_keeps_the_last_keys",
        change=(("columns > rows + reach - window", "columns >= rows + reach - window"),),
    ),
    Mistake(
        "window-skips-too-much",
        "the loop starts at the first key that the last query of the block sees",
        "What the block sees is what its end sees.",
        "test_the_window_keeps_the_last_keys",
        change=(
            (
                "lo = tl.maximum(first + reach + 1 - window, 0) // BLOCK_N * BLOCK_N",
                "lo = tl.maximum(first + BLOCK_M + reach - window, 0) // BLOCK_N * BLOCK_N",
            ),
        ),
    ),
    Mistake(
        "window-unheard-by-backward",
        "the backward pass does not know the window",
        "What is outside has weight zero.",
        "test_gradients_keep_to_the_window",
        change=(
            (
                "        inputs = q, k, v, grad, lse, delta\n",
                '        inputs = q, k, v, grad, lse, delta\n        ctx.options = ctx.options | {"WINDOWED": False}\n',
            ),
        ),
    ),
    Mistake(
        "window-forgotten-by-whole-blocks",
        "the gradients of keys take every whole block of queries for one that sees them all, however far it is",
        "Behind the diagonal nothing is hidden.",
        "test_a_short_window_passes_over_several_blocks",
        change=(
            (
                "        full_hi = tl.minimum(full_hi, tl.maximum(first + window - reach, 0) // BLOCK_M * BLOCK_M)\n",
                "",
            ),
        ),
    ),
    Mistake(
        "last-query-of-the-window-lost",
        "the loop over the queries that see a block of keys ends one before the last",
        "The window counts its own key, so its last query comes one earlier.",
        "test_blocks_begin_and_end_where_they_should",
        change=(
            (
                "hi = tl.minimum(hi, tl.maximum(first + BLOCK_N - 1 + window - reach, 0))",
                "hi = tl.minimum(hi, tl.maximum(first + BLOCK_N - 2 + window - reach, 0))",
            ),
        ),
    ),
    Mistake(
        "diagonal-block-taken-for-whole",
        "a block of queries whose first one does not see the last key of the block is not masked",
        "The block begins at the diagonal.",
        "test_blocks_begin_and_end_where_they_should",
        change=(
            (
                "full_lo = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - reach, 0), BLOCK_M) * BLOCK_M",
                "full_lo = tl.cdiv(tl.maximum(first + BLOCK_N - 2 - reach, 0), BLOCK_M) * BLOCK_M",
            ),
        ),
    ),
    Mistake(
        "window-starts-at-the-first-key",
        "the blocks before the window are computed, and then masked",
        "Masked scores weigh nothing, so it is right.",
        "test_values_far_before_the_window_are_never_read",
        change=(("lo = tl.maximum(first + reach + 1 - window, 0) // BLOCK_N * BLOCK_N", "lo = 0"),),
    ),
    Mistake(
        "window-of-zero",
        "a window below 1 is not refused",
        "A window of 0 is no window.",
        "test_groups_and_windows_that_do_not_fit_are_refused",
        change=(("(window < 1 or not causal)", "(not causal)"),),
    ),
)

SIZE = "how much a program takes at a time changes the speed alone"
ORDER = "the order in which blocks are taken changes the speed alone"
ALWAYS_MASKED = "a mask where none is needed, or a loop over no block, changes the speed alone"
BEYOND = "what is read for places beyond the end is stored nowhere, and masked before it is summed"
EARLIER = "the loop under a mask takes a block more: the speed alone"
SAME_BLOCK = "0 and 1 lie in the same block, and so does −1 in a division that rounds to 0"

EQUIVALENT = (
    *((None, None, SIZE, piece) for piece in (
        'os.environ.get("TRITON_INTERPRET")', "chosen = ", "elif q.itemsize", "elif torch.cuda.get_device_capability",
        "narrow = q.shape", '"forward": (128', '"short": (64', '"keys": (64', '"queries": (128', '_blocks("short"',
    )),
    *((None, None, ORDER, piece) for piece in ("first = (tl.num_programs(0)",)),
    *((None, None, ALWAYS_MASKED, piece) for piece in ("if WINDOWED:", "if TAIL:", "if CAUSAL:", "if MASKED:")),
    ("False", "True", ALWAYS_MASKED, "window, scale, False, D"),
    *((None, None, BEYOND, piece) for piece in ("other=0.0", 'other=float("inf")')),
    ("rows < queries", "rows <= queries", BEYOND, "inside = (rows < queries)[:, None]"),
    ("1.0", "2.0", "any number will do where nothing was seen: 0 is divided by it", "tl.where(sighted, total"),
    *(("0.0", n, "of all that is −∞, any number may be taken", "shift = tl.where") for n in ("1.0", "-1.0")),
    *(("0", n, "lo is set anew where it is read", "lo, full_lo, full_hi, hi = 0, 0") for n in ("1", "-1")),
    *(("0", n, SAME_BLOCK, "tl.maximum(first") for n in ("1", "-1")),
    ("0", "1", "a window that is not there is not read", '"window": window or 0'),
    ("0", "-1", "a window that is not there is not read", '"window": window or 0'),
    ("scale < 0", "scale <= 0", "0 has no sign"),
    ("0", "-1", ALWAYS_MASKED, "TAIL="),
    ("64", "63", "one program more may be started, which finds nothing", "_row_sums[_grid"),
    ("True", "False", "the two always have the same length", "strict=True"),
    (
        "zip(('BLOCK_M', 'BLOCK_N', 'num_warps', 'num_stages'), chosen, strict=True)",
        "zip(('BLOCK_M', 'BLOCK_N', 'num_warps', 'num_stages'), chosen)",
        "the two always have the same length",
    ),
    ("first + reach + 1", "first + reach - 1", EARLIER),
    ("first + BLOCK_N - 1", "first + BLOCK_N + 1", EARLIER),
    ("first + BLOCK_M + reach - window", "first + BLOCK_M + reach + window", EARLIER),
    ("first + window", "first - window", EARLIER, "full_hi = tl.minimum"),
    ("1", "0", EARLIER, "lo = tl.maximum(first + reach + 1 - window"),
    ("1", "0", EARLIER, "full_hi = tl.minimum(full_hi, tl.maximum(first + reach + 1"),
    ("1", "0", EARLIER, "tl.maximum(first + BLOCK_N - 1"),
)  # fmt: skip
