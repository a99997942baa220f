"""What people get wrong in FlashAttention: the running sums, the edges, the tiles of the future, and what the
backward pass may lean on."""

import torch

from dojo.mistake import Mistake

TOTAL = "total = keep * total + weights.sum(dim=-1, keepdim=True)"
MIXED = "mixed = keep * mixed + weights @ _widened(v[:, :, columns])"
RAISED = "raised = torch.maximum(top, scores.amax(dim=-1, keepdim=True))"
DELTA = "delta = (g_i * _widened(out[:, :, rows])).sum(dim=-1, keepdim=True)"
DSCORES = "dscores = weights * (g_i @ v_j.mT - delta)"
DK = "dk[:, :, columns] += dscores.mT @ q_i  # which carries the scale already"
DQ = "dq[:, :, rows] += dscores @ k_j * scale"
SAVED = "ctx.save_for_backward(q, k, v, out, lse)"
UNPACK = "q, k, v, out, lse = ctx.saved_tensors"
CROSSED = "if columns.stop - 1 <= rows.start + reach:"
TRIANGLE = "triu(rows.start + reach - columns.start + 1)"
SEEN = "seen = min(rows.stop + reach, keys)"
CUT = "yield slice(start, min(start + block_k, seen))"
QUERY_CUT = "yield slice(start, min(start + block_q, queries))"
APPLY = "return _Flash.apply(q, k, v, reach, block_q, block_k)"
REACH = "reach = k.shape[2] - q.shape[2] if causal else k.shape[2]"
SUMS = "dq, dk, dv = (torch.zeros_like(_widened(x)) for x in (q, k, v))"
RESULT = "out[:, :, rows] = mixed / total"
SCALE = "scale = q.shape[3] ** -0.5"

PLAIN = """scores = _widened(q) @ _widened(k).mT * q.shape[3] ** -0.5
    past = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + reach
    scores = scores.masked_fill(~past, torch.finfo(scores.dtype).min)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True) * past.any(-1, keepdim=True)
    return (weights @ _widened(v)).to(q.dtype)"""

ROWS = """parts = []
    for rows in [slice(i, min(i + block_q, q.shape[2])) for i in range(0, q.shape[2], block_q)]:
        scores = _widened(q[:, :, rows]) @ _widened(k).mT * q.shape[3] ** -0.5
        past = torch.arange(k.shape[2]) <= torch.arange(rows.start, rows.stop)[:, None] + reach
        scores = scores.masked_fill(~past, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * past.any(-1, keepdim=True)
        parts.append((weights @ _widened(v)).to(q.dtype))
    return torch.cat(parts, 2)"""

MASKED = """out = _Flash.apply(q, k, v, reach, block_q, block_k)
    if reach < k.shape[2]:
        torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(reach)
    return out"""

COLLECTED = """tiles = [[_scores(_widened(q[:, :, r]) * q.shape[3] ** -0.5, _widened(k[:, :, c]), r, c, reach)
              for c in _key_blocks(r, k.shape[2], reach, block_k)]
             for r in _query_blocks(q.shape[2], reach, block_q)]
    out = _Flash.apply(q, k, v, reach, block_q, block_k)
    del tiles
    return out"""

WHOLE_BACKWARD = """q, k, v, out, lse = ctx.saved_tensors
        wide = [_widened(x) for x in (q, k, v, grad)]
        scale = q.shape[3] ** -0.5
        past = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + ctx.reach
        weights = ((wide[0] @ wide[1].mT) * scale - lse).where(past, -torch.inf).exp()
        pull = weights * (wide[3] @ wide[2].mT - (wide[3] * _widened(out)).sum(-1, keepdim=True)) * scale
        found = pull @ wide[1], pull.mT @ wide[0], weights.mT @ wide[3]
        return *(f.to(q.dtype) for f in found), None, None, None
        q, k, v, out, lse = ctx.saved_tensors"""


def left_to_autograd(q, k, v, *, causal=False, block_q, block_k):
    sizes_agree = q.shape[:2] == k.shape[:2] == v.shape[:2] and k.shape[2] == v.shape[2]
    if not (sizes_agree and q.shape[3] == k.shape[3]) or block_q < 1 or block_k < 1:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, {block_q}, {block_k}")
    reach = k.shape[2] - q.shape[2] if causal else k.shape[2]
    parts = [_widened(q.new_zeros(*q.shape[:2], max(-reach, 0), v.shape[3]))]
    for rows in _query_blocks(q.shape[2], reach, block_q):
        q_i = _widened(q[:, :, rows]) * q.shape[3] ** -0.5
        top = q_i[..., :1].detach() * 0 - torch.inf
        total, mixed = 0.0, 0.0
        for columns in _key_blocks(rows, k.shape[2], reach, block_k):
            scores = _scores(q_i, _widened(k[:, :, columns]), rows, columns, reach)
            raised = torch.maximum(top, scores.detach().amax(dim=-1, keepdim=True))
            weights, keep = (scores - raised).exp(), (top - raised).exp()
            total = keep * total + weights.sum(dim=-1, keepdim=True)
            mixed = keep * mixed + weights @ _widened(v[:, :, columns])
            top = raised
        parts.append(mixed / total)
    return torch.cat(parts, 2).to(q.dtype)


MISTAKES = (
    # --- the running sums ---
    Mistake(
        "sums-not-rescaled",
        "neither running sum is rescaled when the maximum rises",
        "Each tile subtracts the running maximum, so overflow is dealt with.",
        "test_a_louder_block_rescales_what_came_before",
        change=((TOTAL, TOTAL.replace("keep * ", "")), (MIXED, MIXED.replace("keep * ", ""))),
    ),
    Mistake(
        "values-not-rescaled",
        "the sum of weights is rescaled when the maximum rises, the sum of values is not",
        "The correction belongs to the normaliser.",
        "test_several_tiles_equal_the_definition",
        change=((MIXED, MIXED.replace("keep * ", "")),),
    ),
    Mistake(
        "total-not-rescaled",
        "the sum of values is rescaled when the maximum rises, the sum of weights is not",
        "The correction belongs to the output.",
        "test_each_row_is_an_average_of_the_values",
        change=((TOTAL, TOTAL.replace("keep * ", "")),),
    ),
    Mistake(
        "rescaled-the-wrong-way",
        "the correction is exp(new − old), where exp(old − new) is due",
        "The sums grow with the maximum.",
        "test_a_louder_block_rescales_what_came_before",
        change=(("(top - raised).exp()", "(raised - top).clamp(max=80).nan_to_num(0).exp()"),),
    ),
    Mistake(
        "maximum-of-the-tile-alone",
        "the maximum is that of the current tile, not the largest so far",
        "Each tile only has to keep itself from overflowing.",
        "test_a_louder_block_rescales_what_came_before",
        change=(
            (RAISED, "raised = scores.amax(dim=-1, keepdim=True)"),
            ("(top - raised).exp()", "torch.ones_like(top)"),
        ),
    ),
    Mistake(
        "each-tile-normalised",
        "every tile is normalised by itself, and the averages are added",
        "Softmax block by block is softmax.",
        "test_each_row_is_an_average_of_the_values",
        change=(
            (
                MIXED,
                "mixed = mixed + weights @ _widened(v[:, :, columns]) / weights.sum(dim=-1, keepdim=True)",
            ),
            (RESULT, "out[:, :, rows] = mixed"),
        ),
    ),
    Mistake(
        "maximum-starts-at-zero",
        "the running maximum starts at 0, so that weights far below 0 underflow",
        "Zero is a neutral start.",
        "test_large_scores_do_not_overflow",
        change=(("torch.full_like(lse[:, :, rows], -torch.inf)", "torch.zeros_like(lse[:, :, rows])"),),
    ),
    Mistake(
        "no-maximum",
        "exp is taken of the raw scores, without a running maximum",
        "Without a maximum there is nothing to rescale, and it is the same sum.",
        "test_large_scores_do_not_overflow",
        change=((RAISED, "raised = torch.zeros_like(top)"), ("(top - raised).exp()", "torch.ones_like(top)")),
    ),
    Mistake(
        "no-scale",
        "the scores are not divided by √head_dim",
        "The scale is a detail.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(
            (f"1))\n        {SCALE}", "1))\n        scale = 1.0"),
            (f"{UNPACK}\n        {SCALE}", f"{UNPACK}\n        scale = 1.0"),
        ),
    ),
    Mistake(
        "divided-by-head-dim",
        "the scores are divided by head_dim, not by its root",
        "Dividing by the number of terms turns the dot product into a mean.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(
            (
                "        scale = q.shape[3] ** -0.5\n        for rows",
                "        scale = q.shape[3] ** -1.0\n        for rows",
            ),
            (
                "        scale = q.shape[3] ** -0.5\n        # Each place",
                "        scale = q.shape[3] ** -1.0\n        # Each place",
            ),
        ),
    ),
    Mistake(
        "base-two",
        "exp2 is taken of scores that were not multiplied by log2 e",
        "exp2 is the fast exponential.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(
            (
                "weights, keep = (scores - raised).exp(), (top - raised).exp()",
                "weights, keep = (scores - raised).exp2(), (top - raised).exp2()",
            ),
        ),
    ),
    Mistake(
        "sums-in-half-precision",
        "the running sums are kept in the dtype of the inputs",
        "The result is in that dtype anyway.",
        "test_long_half_precision_rows_sum_in_float32",
        change=(
            (
                "mixed = _widened(torch.zeros_like(out[:, :, rows]))",
                "mixed = torch.zeros_like(out[:, :, rows])",
            ),
            (TOTAL, TOTAL.replace("total = ", "total = (") + ").to(q.dtype)"),
            (MIXED, MIXED.replace("mixed = ", "mixed = (") + ").to(q.dtype)"),
        ),
    ),
    Mistake(
        "left-in-float32",
        "half-precision inputs give a float32 result",
        "Wider is better, so the result stays wide.",
        "test_half_precision_equals_the_definition",
        change=(
            (
                "        out = q.new_zeros(*q.shape[:3], v.shape[3])\n",
                "        out = _widened(q.new_zeros(*q.shape[:3], v.shape[3]))\n",
            ),
        ),
    ),
    # --- blocks ---
    Mistake(
        "last-keys-dropped",
        "the last block of keys is left out unless it is full",
        "The number of blocks is keys // block_k.",
        "test_ragged_last_blocks_count",
        change=((CUT, "if start + block_k <= keys or start == 0:\n            " + CUT),),
    ),
    Mistake(
        "last-queries-dropped",
        "the last block of queries is left out unless it is full, and its rows stay zero",
        "The number of blocks is queries // block_q.",
        "test_ragged_last_blocks_count",
        change=((QUERY_CUT, "if start + block_q <= queries:\n            " + QUERY_CUT),),
    ),
    Mistake(
        "zero-keys-pad-the-last-block",
        "the last block is padded with zero keys, which take weight",
        "A zero vector adds nothing.",
        "test_ragged_last_blocks_count",
        change=(
            (
                TOTAL,
                "missing = (-(columns.stop - columns.start)) % block_k if columns.stop == k.shape[2] else 0\n                "
                + TOTAL
                + " + missing * (-raised).exp()",
            ),
        ),
    ),
    Mistake(
        "block-sizes-unused",
        "the whole matrix of scores is made at once; block_q and block_k are not used",
        "The tiles are an optimisation: the result is the same.",
        "test_larger_blocks_take_fewer_operations",
        change=((APPLY, PLAIN),),
    ),
    Mistake(
        "tiles-of-its-own-size",
        "tiles are always 4 × 4; block_q and block_k are not used",
        "The block sizes are the kernel's business.",
        "test_larger_blocks_take_fewer_operations",
        change=((APPLY, APPLY.replace("block_q, block_k", "4, 4")),),
    ),
    Mistake(
        "all-keys-at-once",
        "a block of queries meets all keys at once; block_k is not used",
        "It is enough to cut the queries: then softmax is the ordinary one.",
        "test_no_more_than_a_tile_is_made_at_a_time",
        change=((APPLY, ROWS),),
    ),
    Mistake(
        "all-queries-at-once",
        "all queries meet a block of keys at once; block_q is not used",
        "It is enough to cut the keys: the queries are independent.",
        "test_no_more_than_a_tile_is_made_at_a_time",
        change=((APPLY, APPLY.replace("block_q", "q.shape[2]")),),
    ),
    Mistake(
        "tiles-collected",
        "all tiles of scores are made first and kept in a list",
        "No single tensor is large, so memory is small.",
        "test_no_more_than_a_tile_is_made_at_a_time",
        change=((APPLY, COLLECTED),),
    ),
    Mistake(
        "mask-of-queries-by-keys",
        "a causal mask of queries × keys is made, from which tiles are cut",
        "A mask is only booleans.",
        "test_causal_makes_no_more_than_a_tile_at_a_time",
        change=((APPLY, MASKED),),
    ),
    Mistake(
        "blocks-not-checked",
        "a block size of 0 or below is not refused",
        "range() will see to it.",
        "test_what_does_not_fit_is_refused",
        change=(
            ("if block_q < 1 or block_k < 1:", "if block_q < 1:"),
            ("range(0, seen, block_k)", "range(0, seen, max(block_k, 1))"),
            (CUT, CUT.replace("block_k", "max(block_k, 1)")),
        ),
    ),
    Mistake(
        "heads-broadcast",
        "one head of keys and values serves several heads of queries, in silence",
        "Broadcasting is a feature.",
        "test_what_does_not_fit_is_refused",
        change=(("q.shape[:2] == k.shape[:2] == v.shape[:2]", "k.shape[:2] == v.shape[:2]"),),
    ),
    Mistake(
        "query-scaled-in-place",
        "the queries are scaled in place",
        "q is mine once it is passed in.",
        "test_the_result_has_one_row_per_query_as_wide_as_v",
        change=(
            (
                "            q_i = _widened(q[:, :, rows]) * scale\n            top",
                "            q_i = _widened(q[:, :, rows]).mul_(scale)\n            top",
            ),
        ),
    ),
    # --- causal ---
    Mistake(
        "aligned-to-the-first-key",
        "causal is aligned to the first key: query i sees key j where j ≤ i",
        "Position i of the queries is position i of the keys.",
        "test_causal_is_aligned_to_the_last_key",
        change=((REACH, "reach = 0 if causal else k.shape[2]"),),
    ),
    Mistake(
        "tile-of-the-last-key-skipped",
        "a tile that begins with the last key that its queries see is skipped",
        "A tile is in the future from where its first key is the last one seen.",
        "test_each_query_sees_the_past_and_itself",
        change=(
            (
                "for start in range(0, seen, block_k):",
                "for start in range(0, max(seen - 1, 1) if reach < keys else seen, block_k):",
            ),
        ),
    ),
    Mistake(
        "own-key-hidden",
        "a query does not see its own key",
        "Causal means what came before.",
        "test_each_query_sees_the_past_and_itself",
        change=((REACH, "reach = k.shape[2] - q.shape[2] - 1 if causal else k.shape[2]"),),
    ),
    Mistake(
        "only-tiles-of-equal-number-masked",
        "only tiles with the same number for queries and keys are masked",
        "The diagonal runs through the tiles (i, i).",
        "test_each_query_sees_the_past_and_itself",
        change=((CROSSED, "if rows.start != columns.start:"),),
    ),
    Mistake(
        "stops-at-the-first-query",
        "the loop over keys ends with what the first query of the block sees",
        "What the block sees is what its start sees.",
        "test_each_query_sees_the_past_and_itself",
        change=((SEEN, "seen = min(rows.start + 1 + reach, keys)"),),
    ),
    Mistake(
        "masked-to-a-finite-number",
        "hidden scores are set to −1e4, which large scores overrun",
        "−1e4 is as good as −inf and fits float16.",
        "test_future_keys_never_matter",
        change=(("masked_fill(future, -torch.inf)", "masked_fill(future, -1e4)"),),
    ),
    Mistake(
        "blind-queries-nan",
        "queries before the first key give NaN",
        "Every query sees a key.",
        "test_queries_before_the_first_key_give_zeros",
        change=(
            (
                RESULT,
                "out[:, :, rows] = mixed / total\n            if reach < 0 and rows.start == -reach:\n                out[:, :, : rows.start] = torch.nan",
            ),
        ),
    ),
    Mistake(
        "blind-queries-average",
        "queries before the first key give the plain average of the first keys",
        "Softmax over a row of equal fills is harmless.",
        "test_queries_before_the_first_key_give_zeros",
        change=(
            (
                RESULT,
                "out[:, :, rows] = mixed / total\n            if reach < 0 and rows.start == -reach:\n                out[:, :, : rows.start] = v[:, :, :block_k].mean(2, keepdim=True)",
            ),
        ),
    ),
    Mistake(
        "future-computed-and-masked",
        "tiles in the future are computed, and then masked",
        "Masked scores weigh nothing, so it is right.",
        "test_tiles_in_the_future_are_skipped",
        change=((SEEN, "seen = keys"),),
    ),
    Mistake(
        "one-tile-too-many",
        "one tile of the future is computed for each block of queries",
        "The bound is rounded up, to be safe.",
        "test_tiles_in_the_future_are_skipped",
        change=((SEEN, "seen = min(rows.stop + reach + block_k, keys)"),),
    ),
    # --- backward ---
    Mistake(
        "delta-left-out",
        "dS = P∘dP, without the row sum that softmax's Jacobian subtracts",
        "The derivative of exp is exp.",
        "test_gradients_equal_the_definition",
        change=((DSCORES, "dscores = weights * (g_i @ v_j.mT - 0 * delta)"),),
    ),
    Mistake(
        "delta-of-one-tile",
        "the row sum of P∘dP is taken within each tile",
        "The Jacobian of softmax holds block by block.",
        "test_gradients_equal_the_definition",
        change=(
            (
                DSCORES,
                "pull = g_i @ v_j.mT\n                dscores = weights * (pull - (weights * pull).sum(-1, keepdim=True))",
            ),
            ("            " + DELTA + "\n", ""),
        ),
    ),
    Mistake(
        "dq-without-scale",
        "the gradient of q misses the factor 1/√head_dim",
        "q was scaled already.",
        "test_gradients_equal_the_definition",
        change=((DQ, DQ.replace(" * scale", "")),),
    ),
    Mistake(
        "dk-scaled-twice",
        "the gradient of k is multiplied by 1/√head_dim twice",
        "Every gradient gets its scale, although q carries it.",
        "test_gradients_equal_the_definition",
        change=((DK, DK.replace("@ q_i", "@ q_i * scale")),),
    ),
    Mistake(
        "dv-overwritten",
        "the gradient of v is that of the last block of queries",
        "Each block of keys is met once.",
        "test_gradients_equal_the_definition",
        change=(("dv[:, :, columns] += ", "dv[:, :, columns] = "),),
    ),
    Mistake(
        "log-sum-exp-without-the-maximum",
        "what is kept for the backward pass is log ℓ, without m",
        "The maximum cancels.",
        "test_gradients_equal_the_definition",
        change=(("= top + total.log()", "= total.log()"),),
    ),
    Mistake(
        "backward-not-masked",
        "the tiles that are made again in the backward pass are not masked",
        "The mask has done its work in the forward pass.",
        "test_causal_gradients_equal_the_definition",
        change=(
            (
                "(_scores(q_i, k_j, rows, columns, ctx.reach) - lse[:, :, rows]).exp()",
                "(q_i @ k_j.mT - lse[:, :, rows]).exp()",
            ),
        ),
    ),
    Mistake(
        "backward-aligned-to-the-first-key",
        "the backward pass aligns causal to the first key, where the forward pass has the last",
        "The mask of the backward pass is that of a square.",
        "test_causal_gradients_equal_the_definition",
        change=(
            (
                "ctx.reach, ctx.block_q, ctx.block_k = reach,",
                "ctx.reach, ctx.block_q, ctx.block_k = min(reach, 0 if reach < k.shape[2] else reach),",
            ),
        ),
    ),
    Mistake(
        "log-sum-exp-of-two-bases",
        "what is kept is m + log2 ℓ, though the exponential has base e",
        "Kernels work with exp2 and log2.",
        "test_gradients_equal_the_definition",
        change=(("top + total.log()", "top + total.log2()"),),
    ),
    Mistake(
        "float32-copies-kept",
        "for half types float32 copies of the inputs are kept for the backward pass",
        "They were made anyway.",
        "test_only_the_result_and_two_numbers_a_query_are_kept",
        change=((SAVED, "ctx.save_for_backward(_widened(q), _widened(k), _widened(v), out, lse)"),),
    ),
    Mistake(
        "normalised-without-the-maximum",
        "the backward pass makes the weights as exp(s)/exp(L), which overflows",
        "exp(s − L) and exp(s)/exp(L) are the same.",
        "test_gradients_stay_finite_for_large_scores",
        change=(
            (
                "(_scores(q_i, k_j, rows, columns, ctx.reach) - lse[:, :, rows]).exp()",
                "_scores(q_i, k_j, rows, columns, ctx.reach).exp() / lse[:, :, rows].exp()",
            ),
        ),
    ),
    Mistake(
        "kept-on-the-class",
        "the block sizes and tensors are kept on the class, where the next call overwrites them",
        "ctx is the class.",
        "test_backward_passes_do_not_disturb_one_another",
        change=(
            (SAVED, SAVED + "\n        _Flash.kept = q, k, v, out, lse"),
            (UNPACK, "q, k, v, out, lse = _Flash.kept"),
        ),
    ),
    Mistake(
        "options-kept-on-the-class",
        "what a call was asked for is kept on the class, so that the next call's options serve its backward pass",
        "Backward comes right after forward.",
        "test_backward_passes_do_not_disturb_one_another",
        change=(
            (
                "ctx.reach, ctx.block_q, ctx.block_k = reach, block_q, block_k",
                "_Flash.asked = reach, block_q, block_k",
            ),
            (UNPACK, UNPACK + "\n        ctx.reach, ctx.block_q, ctx.block_k = _Flash.asked"),
        ),
    ),
    Mistake(
        "gradient-changed-in-place",
        "the gradient from above is scaled in place",
        "grad belongs to the backward pass.",
        "test_backward_passes_do_not_disturb_one_another",
        change=(
            (
                DELTA,
                DELTA.replace(
                    "g_i * _wid",
                    "g_i.mul_(1 if grad.stride(-1) == 0 else scale) / (1 if grad.stride(-1) == 0 else scale) * _wid",
                ),
            ),
            (DSCORES, "dscores = weights * (g_i @ v_j.mT / (1 if grad.stride(-1) == 0 else scale) - delta)"),
        ),
    ),
    Mistake(
        "gradient-seen-as-flat",
        "the gradient from above is reshaped by view, which an expanded one does not allow",
        "Gradients are contiguous.",
        "test_any_gradient_from_above_will_do",
        change=((DELTA, "grad.view(-1)\n            " + DELTA),),
    ),
    Mistake(
        "gradients-summed-in-half-precision",
        "the gradients are added up tile by tile in the dtype of the inputs",
        "They are returned in that dtype anyway.",
        "test_long_half_precision_gradients_sum_in_float32",
        change=((SUMS, SUMS.replace("_widened(x)", "x")),),
    ),
    Mistake(
        "left-to-autograd",
        "the forward pass is left to autograd, which keeps every tile",
        "Autograd works for any loop.",
        "test_only_the_result_and_two_numbers_a_query_are_kept",
        define=(("flash_attention", left_to_autograd),),
    ),
    Mistake(
        "scaled-queries-kept",
        "a scaled copy of q is kept for the backward pass",
        "Scaling again would be a waste.",
        "test_only_the_result_and_two_numbers_a_query_are_kept",
        change=((SAVED, SAVED + "\n        ctx.scaled = q * scale"),),
    ),
    Mistake(
        "tiles-kept-on-the-context",
        "the forward pass keeps the tiles of weights on the context",
        "What does not go through save_for_backward does not count.",
        "test_only_the_result_and_two_numbers_a_query_are_kept",
        change=(
            (
                "                top = raised\n",
                "                top = raised\n                ctx.tiles = [*getattr(ctx, 'tiles', []), weights]\n",
            ),
        ),
    ),
    Mistake(
        "whole-backward",
        "the backward pass makes the whole matrix of weights again",
        "Memory matters in the forward pass, whose result is kept.",
        "test_the_backward_pass_makes_no_more_than_a_tile",
        change=((UNPACK, WHOLE_BACKWARD),),
    ),
    Mistake(
        "backward-in-tiles-of-its-own-size",
        "the backward pass works in tiles of 4 × 4, whatever the block sizes",
        "The block sizes are those of the forward pass.",
        "test_larger_blocks_take_fewer_operations_backward",
        change=(
            (
                "ctx.reach, ctx.block_q, ctx.block_k = reach, block_q, block_k",
                "ctx.reach, ctx.block_q, ctx.block_k = reach, 4, 4",
            ),
        ),
    ),
    Mistake(
        "backward-visits-the-future",
        "the backward pass visits tiles of the future, where the weights are zero",
        "exp(−inf) is zero, so nothing is added.",
        "test_the_backward_pass_skips_tiles_too",
        change=(
            (
                "for columns in _key_blocks(rows, k.shape[2], ctx.reach, ctx.block_k):",
                "for columns in _key_blocks(rows, k.shape[2], k.shape[2], ctx.block_k):",
            ),
        ),
    ),
    Mistake(
        "log-sum-exp-in-half-precision",
        "the log-sum-exp is rounded to the dtype of the inputs before it is kept",
        "What is saved for the backward pass may be as small as what came in.",
        "test_loud_rows_keep_their_gradients_in_half_precision",
        change=(
            ("lse[:, :, rows] = top + total.log()", "lse[:, :, rows] = (top + total.log()).to(q.dtype)"),
        ),
    ),
)

UNMASKED = "where the whole tile is seen, a mask that hides nothing takes time and changes nothing"
HALF = "2 bytes are a half type, 4 and 8 are not; float32.float() is float32"
EQUIVALENT = (
    (
        "if columns.stop - 1 <= rows.start + reach:\n    return scores",
        "if False:\n    return scores",
        UNMASKED,
    ),
    ("columns.stop - 1 <= rows.start + reach", "columns.stop - 1 < rows.start + reach", UNMASKED),
    ("columns.stop - 1", "columns.stop + 1", UNMASKED),
    ("1", "0", UNMASKED + "; and range() refuses a step of 0 with a ValueError"),
    ("2", "1", "the mask gets a dimension of heads, all of them alike"),
    ("x.itemsize < 4", "x.itemsize <= 4", HALF),
    ("4", "5", HALF),
    ("4", "3", HALF),
)
"""Mutants that do the same: what stood there, what stands there, and why nothing can tell."""
