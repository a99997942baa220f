"""What people get wrong in attention: its scale, its softmax, its masks, and its half precision."""

import torch

from dojo.mistake import Mistake

SCALE = "    scale = q.shape[-1] ** -0.5 if scale is None else scale\n"
SCORES = "scores = (_widened(q) * scale) @ _widened(k).mT"
FILL = "scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)"
OUT = "out = scores.softmax(dim=-1) @ _widened(v)"
ZERO = "out = out.masked_fill(~visible.any(dim=-1, keepdim=True), 0)"
VISIBLE = "    visible = _visible(q, k, mask, causal)\n"
TRIANGLE = "tril(keys - queries)"
BOTH = "return past if mask is None else mask & past"


def running_sums(q, k, v, *, mask=None, causal=False, scale=None):
    _check(q, k, v, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    visible = _visible(q, k, mask, causal)
    scores = (q * scale) @ k.mT
    if visible is None:
        visible = torch.ones_like(scores, dtype=torch.bool)
    visible = visible.expand_as(scores)
    top = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    weights = (scores - top).clamp(max=0).exp() * visible
    total, out = torch.zeros_like(top), torch.zeros_like(q @ k.mT @ v)
    for j in range(k.shape[2]):
        total = total + weights[..., j : j + 1]
        out = out + weights[..., j : j + 1] * v[:, :, j : j + 1]
    return out / total.masked_fill(total == 0, 1)


def widened_by_copy(x):
    return torch.tensor(x.detach().float().numpy()) if x.itemsize < 4 else x


def hides_the_future_below_full_rows_only(q, k, mask, causal):
    if not causal or q.shape[2] == 1:
        return mask
    queries, keys = q.shape[2], k.shape[2]
    past = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril()
    return past if mask is None else mask & past


def keeps_the_triangle(q, k, mask, causal):
    if not causal:
        return mask
    queries, keys = q.shape[2], k.shape[2]
    kept = _visible.__dict__
    if queries not in kept or kept[queries].shape[1] < keys:
        kept[queries] = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    past = kept[queries][:, :keys]
    return past if mask is None else mask & past


MISTAKES = (
    # --- the scale ---
    Mistake(
        "no-scale",
        "the scores are not divided by √head_dim",
        "The scale is a detail of training; softmax normalises anyway.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5 if scale is None", "1.0 if scale is None"),),
    ),
    Mistake(
        "divided-by-head-dim",
        "the scores are divided by head_dim, not by its root",
        "Dividing by the number of terms turns the dot product into a mean.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5", "q.shape[-1] ** -1.0"),),
    ),
    Mistake(
        "multiplied-by-the-root",
        "the scores are multiplied by √head_dim, not divided",
        "The scale is √d.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5", "q.shape[-1] ** 0.5"),),
    ),
    Mistake(
        "root-of-d-model",
        "the scores are divided by √(heads · head_dim), the width of the model",
        "d in √d is d_model.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5", "(q.shape[1] * q.shape[-1]) ** -0.5"),),
    ),
    Mistake(
        "root-of-value-dim",
        "the scores are divided by the root of value_dim",
        "v is as wide as q and k.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5", "v.shape[-1] ** -0.5"),),
    ),
    Mistake(
        "root-of-the-keys",
        "the scores are divided by the root of the number of keys",
        "Softmax over n keys must be tempered by n.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5", "k.shape[-2] ** -0.5"),),
    ),
    Mistake(
        "scaled-for-head-dim-64",
        "the scores are always divided by 8",
        "head_dim is 64.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("q.shape[-1] ** -0.5 if scale is None", "0.125 if scale is None"),),
    ),
    Mistake(
        "scaled-twice",
        "the scale is applied to q and again to k",
        "Both sides of the product are scaled.",
        "test_scores_are_divided_by_the_root_of_head_dim",
        change=(("@ _widened(k).mT", "@ (_widened(k) * scale).mT"),),
    ),
    Mistake(
        "scaled-after-the-softmax",
        "the weights are divided by √head_dim, not the scores",
        "It does not matter where the scale stands.",
        "test_each_row_is_an_average_of_the_values",
        change=(
            (SCORES, "scores = _widened(q) @ _widened(k).mT"),
            (OUT, "out = scores.softmax(dim=-1) * scale @ _widened(v)"),
        ),
    ),
    # --- the softmax ---
    Mistake(
        "no-softmax",
        "the raw scores are used as weights",
        "The product with the values is what matters.",
        "test_each_row_is_an_average_of_the_values",
        change=((OUT, "out = scores @ _widened(v)"),),
    ),
    Mistake(
        "scores-over-their-sum",
        "the scores are divided by their sum, without an exponential",
        "Any normalisation makes weights.",
        "test_attention_equals_its_definition",
        change=((OUT, "out = (scores / scores.sum(dim=-1, keepdim=True)) @ _widened(v)"),),
    ),
    Mistake(
        "softmax-over-queries",
        "the softmax runs over the queries, not over the keys",
        "The last dimension but one is that of the keys.",
        "test_each_row_is_an_average_of_the_values",
        change=(("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),),
    ),
    Mistake(
        "softmax-over-heads",
        "the softmax runs over the heads",
        "softmax(dim=1) normalises the rows, as for a matrix.",
        "test_each_row_is_an_average_of_the_values",
        change=(("scores.softmax(dim=-1)", "scores.softmax(dim=1)"),),
    ),
    Mistake(
        "softmax-over-everything",
        "the softmax runs over all queries and keys of a head at once",
        "The weights of the whole matrix sum to one.",
        "test_each_row_is_an_average_of_the_values",
        change=(("scores.softmax(dim=-1)", "scores.flatten(2).softmax(dim=-1).view_as(scores)"),),
    ),
    Mistake(
        "no-shift",
        "exp is taken of the raw scores, so that large ones overflow",
        "Softmax is exp over its sum.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                OUT,
                "weights = scores.exp()\n    out = weights / weights.sum(dim=-1, keepdim=True) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "one-shift-for-all",
        "one maximum is subtracted from all scores, so that a quiet row vanishes beside a loud one",
        "Subtracting the maximum is enough against overflow.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                OUT,
                "weights = (scores - scores.max()).exp()\n    out = weights / weights.sum(dim=-1, keepdim=True) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "shift-by-the-mean",
        "the mean is subtracted from the scores, not the maximum",
        "Any shift will do against overflow.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                OUT,
                "weights = (scores - scores.mean(dim=-1, keepdim=True)).exp()\n"
                "    out = weights / weights.sum(dim=-1, keepdim=True) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "clamped-scores",
        "scores are clamped to ±80, so that larger ones become equal",
        "Beyond 80 the exponential overflows, and the softmax is saturated anyway.",
        "test_large_scores_do_not_overflow",
        change=(
            (
                "    if visible is not None:\n        scores =",
                "    scores = scores.clamp(-80, 80)\n    if visible is not None:\n        scores =",
            ),
        ),
    ),
    Mistake(
        "epsilon-in-the-sum",
        "an ε is added to the sum of the exponentials, so that the weights sum to less than one",
        "An ε keeps the division safe.",
        "test_each_row_is_an_average_of_the_values",
        change=(
            (
                OUT,
                "weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()\n"
                "    out = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "base-two",
        "the exponential has base 2, not e",
        "exp2 is the fast exponential and gives the same thing.",
        "test_attention_equals_its_definition",
        change=(
            (
                OUT,
                "weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp2()\n"
                "    out = weights / weights.sum(dim=-1, keepdim=True) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "hard-attention",
        "each query takes the value of its best key only",
        "Softmax is a soft argmax; the best key decides.",
        "test_attention_equals_its_definition",
        change=(
            (
                OUT,
                "out = torch.nn.functional.one_hot(scores.argmax(dim=-1), k.shape[2]).to(scores) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "plain-average",
        "every query gets the plain average of the values, whatever it asks",
        "At the start of training attention is nearly uniform.",
        "test_attention_equals_its_definition",
        change=((OUT, "out = (0 * scores).softmax(dim=-1) @ _widened(v)"),),
    ),
    Mistake(
        "cosine-scores",
        "q and k are normalised to length one before the product",
        "Similarity is the cosine.",
        "test_attention_equals_its_definition",
        change=(
            (
                SCORES,
                "scores = (torch.nn.functional.normalize(_widened(q), dim=-1) * scale)"
                " @ torch.nn.functional.normalize(_widened(k), dim=-1).mT",
            ),
        ),
    ),
    # --- shapes ---
    Mistake(
        "keys-reshaped",
        "k is reshaped to (head_dim, keys), where it should be transposed",
        "reshape and transpose both turn (keys, head_dim) into (head_dim, keys).",
        "test_the_order_of_the_keys_does_not_matter",
        change=(("_widened(k).mT", "_widened(k).reshape(*k.shape[:2], k.shape[3], k.shape[2])"),),
    ),
    Mistake(
        "keys-as-values",
        "the keys are averaged, not the values",
        "The values are the keys.",
        "test_the_result_has_one_row_per_query_as_wide_as_v",
        change=(("@ _widened(v)", "@ _widened(k)"),),
    ),
    Mistake(
        "merged-heads",
        "the result is (batch, queries, heads · value_dim): the heads are merged already",
        "Attention ends with the heads side by side.",
        "test_the_result_has_one_row_per_query_as_wide_as_v",
        change=(("return out.to(q.dtype)", "return out.to(q.dtype).transpose(1, 2).flatten(2)"),),
    ),
    Mistake(
        "weights-returned-too",
        "the weights are returned beside the result",
        "Callers like to see the weights.",
        "test_the_result_has_one_row_per_query_as_wide_as_v",
        change=(("return out.to(q.dtype)", "return out.to(q.dtype), scores.softmax(dim=-1)"),),
    ),
    Mistake(
        "first-head-for-all",
        "the scores of the first head are used for every head",
        "All heads look at the same places.",
        "test_batch_and_heads_are_independent",
        change=((SCORES, SCORES + "\n    scores = scores[:, :1].expand_as(scores)"),),
    ),
    Mistake(
        "first-entry-for-all",
        "the scores of the first batch entry are used for the whole batch",
        "The batch is only there for speed.",
        "test_batch_and_heads_are_independent",
        change=((SCORES, SCORES + "\n    scores = scores[:1].expand_as(scores)"),),
    ),
    Mistake(
        "query-scaled-in-place",
        "q itself is multiplied by the scale, in place",
        "q is mine once it is passed in.",
        "test_the_result_has_one_row_per_query_as_wide_as_v",
        change=(
            (
                SCORES,
                "q = q if q.requires_grad else q.mul_(scale)\n    scores = _widened(q) @ _widened(k).mT * (scale if q.requires_grad else 1)",
            ),
        ),
    ),
    Mistake(
        "shapes-unchecked",
        "shapes that do not fit broadcast in silence, or fail inside a matrix product",
        "The matrix product complains by itself.",
        "test_shapes_that_do_not_fit_are_refused",
        change=(("    if not (sizes_agree and", "    if False and not (sizes_agree and"),),
    ),
    Mistake(
        "always-float32",
        "float64 inputs are computed in float32",
        "float32 is precise enough.",
        "test_attention_equals_its_definition",
        change=(("return x.float() if x.itemsize < 4 else x", "return x.float()"),),
    ),
    Mistake(
        "softmax-in-float32",
        "the softmax runs in float32 for float64 inputs too",
        "Model code calls softmax with dtype=torch.float32, and so it is right for every dtype.",
        "test_attention_equals_its_definition",
        change=(
            ("scores.softmax(dim=-1) @", "scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype) @"),
        ),
    ),
    Mistake(
        "the-only-value-itself",
        "with a single key the result is a view of v: to write into it changes v",
        "Every query gets the only value; expand costs nothing.",
        "test_a_single_key_is_copied_to_every_query",
        change=(
            (
                OUT,
                OUT + "\n    if k.shape[2] == 1 and visible is None:\n"
                "        out = v.expand(*q.shape[:3], v.shape[3])",
            ),
        ),
    ),
    Mistake(
        "one-buffer-for-all-results",
        "results of the same shape lie in one buffer, which the next call overwrites",
        "Allocating is dear; the caller has used the last result by now.",
        "test_calls_do_not_disturb_one_another",
        change=(
            (
                "return out.to(q.dtype)",
                "if out.requires_grad:\n        return out.to(q.dtype)\n"
                "    key = (*out.shape, q.dtype)\n"
                "    return attention.__dict__.setdefault(key, torch.empty_like(out, dtype=q.dtype)).copy_(out)",
            ),
        ),
    ),
    Mistake(
        "one-key-taken-raw",
        "with a single key the softmax is left out",
        "Softmax over one number changes nothing.",
        "test_a_single_key_is_copied_to_every_query",
        change=((OUT, "out = (scores.softmax(dim=-1) if k.shape[2] > 1 else scores) @ _widened(v)"),),
    ),
    # --- the graph ---
    Mistake(
        "weights-cut-from-the-graph",
        "the weights are detached, so that q and k get no gradient",
        "The weights are constants of the average.",
        "test_gradients_equal_the_definition",
        change=(("scores.softmax(dim=-1) @", "scores.softmax(dim=-1).detach() @"),),
    ),
    Mistake(
        "keys-cut-from-the-graph",
        "k is detached, so that it gets no gradient",
        "The keys are a cache.",
        "test_gradients_equal_the_definition",
        change=(("_widened(k).mT", "_widened(k).detach().mT"),),
    ),
    Mistake(
        "normaliser-cut-from-the-graph",
        "the sum of the exponentials is detached, so that the gradient misses its second term",
        "The normaliser is a constant.",
        "test_gradients_equal_the_definition",
        change=(
            (
                OUT,
                "weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()\n"
                "    out = weights / weights.sum(dim=-1, keepdim=True).detach() @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "no-grad",
        "everything is computed under no_grad",
        "Attention is inference.",
        "test_gradients_equal_the_definition",
        change=(
            (
                "    _check(q, k, v, mask)\n",
                "    _check(q, k, v, mask)\n    q, k, v = q.detach(), k.detach(), v.detach()\n",
            ),
        ),
    ),
    # --- causal ---
    Mistake(
        "causal-ignored",
        "causal changes nothing",
        "The caller passes a mask if one is needed.",
        "test_each_query_sees_the_past_and_itself",
        change=(("    if not causal:\n        return mask\n", "    if True:\n        return mask\n"),),
    ),
    Mistake(
        "aligned-to-the-first-key",
        "the causal triangle starts at the first key, so that a query beside a cache sees one key only",
        "tril() is the causal mask.",
        "test_causal_is_aligned_to_the_last_key",
        change=((TRIANGLE, "tril()"),),
    ),
    Mistake(
        "triangle-of-the-last-call",
        "the triangle is kept by the number of queries, and cut to the keys of the next call from the left",
        "The triangle is always the same.",
        "test_calls_do_not_disturb_one_another",
        define=(("_visible", keeps_the_triangle),),
    ),
    Mistake(
        "triangle-of-2048",
        "the triangle is made for 2,048 keys; later ones are never seen",
        "No context is longer.",
        "test_a_few_queries_beside_thousands_of_keys_see_them_all",
        change=((TRIANGLE, TRIANGLE + " & (torch.arange(keys) < 2048)"),),
    ),
    Mistake(
        "one-query-sees-all",
        "the triangle starts at the first key, but for a single query, which sees everything",
        "Decoding has one query; otherwise there are as many queries as keys.",
        "test_causal_is_aligned_to_the_last_key",
        define=(("_visible", hides_the_future_below_full_rows_only),),
    ),
    Mistake(
        "never-blind",
        "with more queries than keys the triangle falls back to the first key",
        "There are never more queries than keys.",
        "test_queries_before_the_first_key_give_zeros",
        change=((TRIANGLE, "tril(max(keys - queries, 0))"),),
    ),
    Mistake(
        "blind-to-itself",
        "the triangle leaves out the diagonal: a query does not see its own key",
        "A token must not see itself.",
        "test_each_query_sees_the_past_and_itself",
        change=((TRIANGLE, "tril(keys - queries - 1)"),),
    ),
    Mistake(
        "one-key-ahead",
        "the triangle reaches one key too far: a query sees the next token",
        "tril(1) includes the diagonal.",
        "test_each_query_sees_the_past_and_itself",
        change=((TRIANGLE, "tril(keys - queries + 1)"),),
    ),
    Mistake(
        "sees-the-future-only",
        "the triangle is turned round: a query sees the future and not the past",
        "The upper triangle is the mask, and True may attend.",
        "test_each_query_sees_the_past_and_itself",
        change=((TRIANGLE, "triu(keys - queries)"),),
    ),
    # --- mask ---
    Mistake(
        "mask-ignored",
        "the mask changes nothing",
        "The mask is optional.",
        "test_true_in_the_mask_means_may_attend",
        change=((VISIBLE, "    visible = _visible(q, k, None, causal)\n"),),
    ),
    Mistake(
        "mask-inverted",
        "the mask is read the other way round: True hides",
        "True means masked out, as in nn.MultiheadAttention.",
        "test_true_in_the_mask_means_may_attend",
        change=((VISIBLE, "    visible = _visible(q, k, None if mask is None else ~mask, causal)\n"),),
    ),
    Mistake(
        "mask-added-as-a-bias",
        "the mask is added to the scores as 0 and 1",
        "A mask is added before the softmax.",
        "test_true_in_the_mask_means_may_attend",
        change=((FILL, "scores = scores + visible.to(scores.dtype)"),),
    ),
    Mistake(
        "masked-scores-become-zero",
        "masked scores are set to 0, and exp(0) is 1",
        "Multiplying the scores by the mask removes them.",
        "test_hidden_keys_never_matter",
        change=((FILL, "scores = scores * visible"),),
    ),
    Mistake(
        "filled-with-1e4",
        "masked scores are set to −1e4, which large scores overrun",
        "−1e4 is as good as −∞ and fits float16.",
        "test_hidden_keys_never_matter",
        change=((FILL, "scores = scores.masked_fill(~visible, -1e4)"),),
    ),
    Mistake(
        "1e4-subtracted",
        "1e4 is subtracted from masked scores, so that a large one shines through",
        "−1e4 is as good as −∞ and fits float16.",
        "test_hidden_keys_never_matter",
        change=((FILL, "scores = scores - 1e4 * ~visible"),),
    ),
    Mistake(
        "1e9-subtracted",
        "1e9 is subtracted from masked scores, which a hidden key of 1e30 outweighs",
        "−1e9 is as good as −∞ in float32.",
        "test_hidden_keys_never_matter",
        change=((FILL, "scores = scores - 1e9 * ~visible"),),
    ),
    Mistake(
        "scores-bounded-in-long-rows",
        "where there are many keys, scores are bounded so that exp does not overflow",
        "No score that matters is above 30.",
        "test_long_sequences_equal_the_definition",
        change=(
            (SCORES, SCORES + "\n    scores = scores.clamp(max=30) if scores.shape[-1] > 64 else scores"),
        ),
    ),
    Mistake(
        "three-dimensions-may-begin-with-batch",
        "a mask of (batch, queries, keys) is taken as well, where it does not fit (heads, queries, keys)",
        "What was meant is clear.",
        "test_masks_that_do_not_fit_are_refused",
        change=(
            (
                "    _check(q, k, v, mask)\n",
                "    if mask is not None and mask.ndim == 3 and len(mask) == len(q) != q.shape[1]:\n"
                "        mask = mask.unsqueeze(1)\n    _check(q, k, v, mask)\n",
            ),
        ),
    ),
    Mistake(
        "three-dimensions-begin-with-batch",
        "a mask of three dimensions is read as (batch, queries, keys), not (heads, queries, keys)",
        "The first dimension is always the batch.",
        "test_the_mask_broadcasts_over_batch_and_heads",
        change=(
            (
                "    _check(q, k, v, mask)\n",
                "    if mask is not None and mask.ndim == 3 and len(mask) == len(q):\n"
                "        mask = mask.unsqueeze(1)\n    _check(q, k, v, mask)\n",
            ),
        ),
    ),
    Mistake(
        "masked-after-the-softmax",
        "the weights are masked after the softmax and sum to less than one",
        "A weight of zero removes the key.",
        "test_hidden_keys_never_matter",
        change=(
            (FILL, "pass"),
            (OUT, OUT.replace("dim=-1)", "dim=-1) * (1 if visible is None else visible)")),
        ),
    ),
    Mistake(
        "masked-after-and-renormalised",
        "the weights are masked after a softmax over all keys, so that a loud hidden key drowns the others",
        "Dividing by the remaining sum makes up for it.",
        "test_hidden_keys_never_matter",
        change=(
            (FILL, "pass"),
            (
                OUT,
                "weights = scores.softmax(dim=-1) * (1 if visible is None else visible)\n"
                "    out = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30) @ _widened(v)",
            ),
        ),
    ),
    Mistake(
        "keys-zeroed",
        "masked keys and values are set to zero instead of their scores",
        "A key of zeros is no key.",
        "test_true_in_the_mask_means_may_attend",
        change=(
            (FILL, "pass"),
            (
                OUT,
                OUT.replace(
                    "scores.softmax(dim=-1)",
                    "(scores if visible is None else scores * visible).softmax(dim=-1) * (1 if visible is None else visible)",
                ),
            ),
        ),
    ),
    Mistake(
        "mask-of-the-first-head",
        "only the first head's mask is used, for all heads",
        "All heads share one mask.",
        "test_the_mask_broadcasts_over_batch_and_heads",
        change=(
            (
                VISIBLE,
                "    mask = mask[..., :1, :, :] if mask is not None and mask.ndim > 2 else mask\n" + VISIBLE,
            ),
        ),
    ),
    Mistake(
        "mask-of-the-first-entry",
        "only the first batch entry's mask is used, for the whole batch",
        "A mask is (queries, keys).",
        "test_the_mask_broadcasts_over_batch_and_heads",
        change=(
            (VISIBLE, "    mask = mask[:1] if mask is not None and mask.ndim == 4 else mask\n" + VISIBLE),
        ),
    ),
    Mistake(
        "key-mask-only",
        "only the first query's mask is used, for all queries",
        "A mask hides padding, which is the same for all queries.",
        "test_true_in_the_mask_means_may_attend",
        change=(
            (
                VISIBLE,
                "    mask = mask[..., :1, :] if mask is not None and mask.ndim > 1 else mask\n" + VISIBLE,
            ),
        ),
    ),
    Mistake(
        "mask-or-causal",
        "a key is seen where the mask or the order of time allows it: either is enough",
        "Masks are joined by or.",
        "test_mask_and_causal_must_both_allow",
        change=((BOTH, "return past if mask is None else mask | past"),),
    ),
    Mistake(
        "mask-instead-of-causal",
        "where a mask is given, causal is ignored",
        "Either a mask or causal: the caller's mask says it all.",
        "test_mask_and_causal_must_both_allow",
        change=((BOTH, "return past if mask is None else mask"),),
    ),
    Mistake(
        "causal-instead-of-mask",
        "where causal is set, the mask is ignored",
        "Either a mask or causal: causal needs no mask.",
        "test_mask_and_causal_must_both_allow",
        change=((BOTH, "return past"),),
    ),
    Mistake(
        "triangle-written-into-the-mask",
        "the causal triangle is written into the caller's mask",
        "&= is shorter.",
        "test_the_mask_is_left_alone",
        change=(
            (
                BOTH,
                "if mask is None:\n        return past\n    return mask.logical_and_(past) if mask.ndim > 1 and mask.shape[-2:] == past.shape else mask & past",
            ),
        ),
    ),
    Mistake(
        "mask-of-any-dtype",
        "a mask that is not boolean is read as one: an additive mask of 0 and −inf comes out inverted",
        "bool() makes a mask of anything.",
        "test_masks_that_do_not_fit_are_refused",
        change=(
            (
                '    if mask.dtype != torch.bool:\n        raise ValueError(f"mask must be boolean, not {mask.dtype}")\n',
                "",
            ),
            (VISIBLE, "    mask = None if mask is None else mask.bool()\n" + VISIBLE),
        ),
    ),
    Mistake(
        "mask-shape-unchecked",
        "the shape of the mask is not checked",
        "Broadcasting complains by itself.",
        "test_masks_that_do_not_fit_are_refused",
        change=(("    if mask.ndim > 4 or any(", "    if False and any("),),
    ),
    Mistake(
        "ragged-end-lost",
        "keys are taken in blocks of 64, and those after the last full block are lost",
        "The length is a multiple of the block.",
        "test_long_sequences_equal_the_definition",
        change=(
            (
                SCORES,
                SCORES + "\n    if k.shape[2] > 64:\n        whole = k.shape[2] // 64 * 64\n"
                "        scores = torch.cat([scores[..., :whole], scores[..., whole:] - torch.inf], dim=-1)",
            ),
        ),
    ),
    # --- queries that see nothing ---
    Mistake(
        "blind-queries-average",
        "a query that sees no key gets the average of all values",
        "A large negative number is as good as −∞.",
        "test_a_query_that_sees_no_key_gives_zeros",
        change=((ZERO, "pass"),),
    ),
    Mistake(
        "blind-queries-are-nan",
        "a query that sees no key gives NaN",
        "Every query sees at least itself.",
        "test_a_query_that_sees_no_key_gives_zeros",
        change=((FILL, "scores = scores.masked_fill(~visible, -torch.inf)"), (ZERO, "pass")),
    ),
    Mistake(
        "nan-cleaned-from-the-result",
        "the NaN of a query that sees no key is cleaned from the result, and comes back in the gradient of v",
        "nan_to_num repairs it.",
        "test_a_query_that_sees_no_key_passes_no_gradient",
        change=(
            (FILL, "scores = scores.masked_fill(~visible, -torch.inf)"),
            (ZERO, "out = out.nan_to_num(0)"),
        ),
    ),
    Mistake(
        "nan-behind-an-added-mask",
        "−inf is added to the scores and NaN cleaned from the weights; it comes back in the gradients of q and k",
        "nan_to_num repairs it.",
        "test_a_query_that_sees_no_key_passes_no_gradient",
        change=(
            (
                FILL,
                "scores = scores + torch.zeros(visible.shape, dtype=scores.dtype).masked_fill(~visible, -torch.inf)",
            ),
            (OUT, "out = scores.softmax(dim=-1).nan_to_num(0) @ _widened(v)"),
        ),
    ),
    Mistake(
        "every-query-sees-itself",
        "the diagonal is always visible, so that a query that may see no key sees its own",
        "Opening the diagonal keeps the softmax from dividing 0 by 0.",
        "test_a_query_that_sees_no_key_gives_zeros",
        change=(
            (
                VISIBLE,
                VISIBLE + "    if visible is not None:\n"
                "        visible = visible | torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]).triu("
                "k.shape[2] - q.shape[2])\n",
            ),
        ),
    ),
    Mistake(
        "blind-queries-see-all",
        "a query that may see no key sees them all",
        "Opening the whole row keeps the softmax from dividing 0 by 0.",
        "test_a_query_that_sees_no_key_gives_zeros",
        change=(
            (
                VISIBLE,
                VISIBLE
                + "    visible = visible if visible is None else visible | ~visible.any(dim=-1, keepdim=True)\n",
            ),
        ),
    ),
    Mistake(
        "zeros-unless-all-is-seen",
        "a query that misses a single key gives zeros",
        "all() finds the rows that are masked.",
        "test_true_in_the_mask_means_may_attend",
        change=(("visible.any(dim=-1", "visible.all(dim=-1"),),
    ),
    Mistake(
        "zeros-by-the-mask-alone",
        "only rows that the mask empties are zeroed, not those that causal leaves without a key",
        "Causal always leaves a key.",
        "test_queries_before_the_first_key_give_zeros",
        change=(
            (ZERO, "out = out if mask is None else out.masked_fill(~mask.any(dim=-1, keepdim=True), 0)"),
        ),
    ),
    Mistake(
        "exp-of-hidden-scores",
        "exp is taken of masked scores too and then dropped: infinity times 0 is NaN in the backward pass",
        "where() takes care of what is not chosen.",
        "test_hidden_keys_get_no_gradient",
        change=(
            (
                OUT,
                "top = scores.detach().amax(dim=-1, keepdim=True)\n"
                "    weights = (_widened(q) * scale @ _widened(k).mT - top).exp()\n"
                "    weights = weights if visible is None else torch.where(visible, weights, 0)\n"
                "    out = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30) @ _widened(v)",
            ),
        ),
    ),
    # --- scale and half precision ---
    Mistake(
        "scale-ignored",
        "scale is ignored: the scores are always divided by √head_dim",
        "There is only one right scale.",
        "test_scale_takes_the_place_of_the_root",
        change=((SCALE, "    scale = q.shape[-1] ** -0.5\n"),),
    ),
    Mistake(
        "scale-zero-is-none",
        "scale=0 is taken for no scale",
        "`scale or default` fills in the default.",
        "test_scale_zero_averages_evenly",
        change=((SCALE, "    scale = scale or q.shape[-1] ** -0.5\n"),),
    ),
    Mistake(
        "scale-on-top",
        "scale comes on top of 1/√head_dim instead of taking its place",
        "scale is a temperature.",
        "test_scale_takes_the_place_of_the_root",
        change=((SCALE, "    scale = q.shape[-1] ** -0.5 * (1 if scale is None else scale)\n"),),
    ),
    Mistake(
        "divided-by-scale",
        "the scores are divided by scale",
        "The scale is what the scores are divided by.",
        "test_scale_takes_the_place_of_the_root",
        change=((SCALE, "    scale = q.shape[-1] ** -0.5 if scale is None else 1 / (scale or 1e-9)\n"),),
    ),
    Mistake(
        "size-of-scale-only",
        "the sign of scale is lost",
        "A scale is positive: half of it goes to q, half to k, as a square root.",
        "test_scale_takes_the_place_of_the_root",
        change=(
            (SCORES, "scores = (_widened(q) * abs(scale) ** 0.5) @ (_widened(k) * abs(scale) ** 0.5).mT"),
        ),
    ),
    Mistake(
        "masked-before-the-scale",
        "the mask is laid over the scores before they are scaled: 0 · −∞ is NaN, and −1 · −∞ wins",
        "The scale may come last.",
        "test_a_negative_scale_hides_the_same_keys",
        change=(
            (SCORES, "scores = _widened(q) @ _widened(k).mT"),
            (FILL, "scores = scores.masked_fill(~visible, -torch.inf)"),
            (OUT, "out = (scores * scale).softmax(dim=-1) @ _widened(v)"),
        ),
    ),
    Mistake(
        "filled-before-the-scale",
        "−1e9 is filled in before the scores are scaled, so that a scale of 0 undoes the mask",
        "The scale may come last.",
        "test_scale_zero_averages_evenly",
        change=(
            (SCORES, "scores = _widened(q) @ _widened(k).mT"),
            (FILL, "scores = scores.masked_fill(~visible, -1e9)"),
            (OUT, "out = (scores * scale).softmax(dim=-1) @ _widened(v)"),
        ),
    ),
    Mistake(
        "left-in-float32",
        "half-precision inputs come back as float32",
        "Wider is better, so the result stays wide.",
        "test_half_precision_equals_the_definition",
        change=(("return out.to(q.dtype)", "return out"),),
    ),
    Mistake(
        "filled-with-1e4-in-half-precision",
        "masked scores of half-precision inputs are set to −1e4, which large scores overrun",
        "−∞ does not fit float16.",
        "test_half_precision_masks_hold_for_large_scores",
        change=(
            (
                FILL,
                FILL.replace(
                    "torch.finfo(scores.dtype).min",
                    "-1e4 if q.itemsize < 4 else torch.finfo(scores.dtype).min",
                ),
            ),
        ),
    ),
    Mistake(
        "negative-scale-ignored",
        "a scale that is not positive is taken for none",
        "A scale is positive.",
        "test_scale_takes_the_place_of_the_root",
        change=((SCALE, "    scale = scale if scale is not None and scale > 0 else q.shape[-1] ** -0.5\n"),),
    ),
    Mistake(
        "bfloat16-through-float16",
        "bfloat16 is computed in float16, which ends at 65,504",
        "Half precision is half precision.",
        "test_half_precision_masks_hold_for_large_scores",
        change=(("return x.float() if x.itemsize < 4 else x", "return x.half() if x.itemsize < 4 else x"),),
    ),
    Mistake(
        "float32-copies",
        "half-precision inputs are copied to float32 outside the graph, so that they get no gradient",
        "torch.tensor converts the dtype.",
        "test_half_precision_gradients_equal_the_definition",
        define=(("_widened", widened_by_copy),),
    ),
    Mistake(
        "running-sums-in-half-precision",
        "the weighted values of half-precision inputs are added up in half precision",
        "The dtype that comes in is the dtype to compute in.",
        "test_long_half_precision_rows_sum_in_float32",
        define=(("attention", running_sums),),
    ),
    Mistake(
        "fill-of-minus-a-million",
        "hidden scores are set to −1e6, which a visible score may be too",
        "A million is as good as infinity.",
        "test_hidden_keys_never_matter_beside_scores_of_minus_a_million",
        change=(("torch.finfo(scores.dtype).min", "-1e6"),),
    ),
)

HALF = "torch sums half types in float32 by itself, so that both are within rounding"
EQUIVALENT = (
    ("x.float() if x.itemsize < 4 else x", "x if x.itemsize < 4 else x", HALF),
    ("4", "3", HALF),
    ("x.itemsize < 4", "x.itemsize <= 4", "float32.float() is float32"),
    ("4", "5", "float32.float() is float32"),
    (
        "torch.ones(queries, keys, dtype=torch.bool, device=q.device)",
        "torch.ones(queries, keys, dtype=torch.bool)",
        "the judge has no device but the CPU",
    ),
    (
        "zip(mask.shape[::-1], full[::-1], strict=False)",
        "zip(mask.shape[::-1], full[::-1])",
        "strict is False by default",
    ),
)
"""Mutants that do the same: what stood there, what stands there, and why nothing can tell."""
