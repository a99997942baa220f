"""What people get wrong in RMSNorm."""

from dojo.mistake import Mistake

WIDE = "    wide = x.to(torch.promote_types(x.dtype, torch.float32))\n"
INVERSE = "inverse_rms = (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()"
MEAN = "wide.square().mean(dim=-1, keepdim=True)"
RESULT = "return (wide * inverse_rms * weight).to(x.dtype)"


MISTAKES = (
    # --- part 1
    Mistake(
        "mean-subtracted",
        "the mean of the row is subtracted first, as in LayerNorm",
        "A normalisation centres and scales.",
        "test_constant_rows_keep_their_value",
        change=((WIDE, WIDE + "    wide = wide - wide.mean(dim=-1, keepdim=True)\n"),),
    ),
    Mistake(
        "centred-for-the-size-only",
        "the row is divided by its standard deviation, not by its root mean square",
        "Without the recentring, what is left of LayerNorm is the division by std.",
        "test_constant_rows_keep_their_value",
        change=((MEAN, "wide.var(dim=-1, keepdim=True, correction=0)"),),
    ),
    Mistake(
        "eps-outside-the-root",
        "eps is added to the root, not to the mean under it",
        "eps only has to keep the divisor from zero.",
        "test_eps_stands_inside_the_root",
        change=((INVERSE, f"inverse_rms = 1 / ({MEAN}.sqrt() + eps)"),),
    ),
    Mistake(
        "eps-as-a-floor",
        "the mean of the squares is clamped at eps from below; eps is not added",
        "max(mean, eps) is the same guard.",
        "test_eps_stands_inside_the_root",
        change=((INVERSE, f"inverse_rms = {MEAN}.clamp(min=eps).rsqrt()"),),
    ),
    Mistake(
        "eps-in-the-sum",
        "eps is added to the sum of the squares, before it is divided by dim",
        "Sum or mean, eps is small.",
        "test_eps_stands_inside_the_root",
        change=(
            (INVERSE, "inverse_rms = (x.shape[-1] / (wide.square().sum(-1, keepdim=True) + eps)).sqrt()"),
        ),
    ),
    Mistake(
        "no-eps",
        "eps is left out, so that a row of zeros is 0/0",
        "Activations are never all zero.",
        "test_a_row_of_zeros_gives_zeros",
        change=((INVERSE, f"inverse_rms = {MEAN}.rsqrt()"),),
    ),
    Mistake(
        "eps-fixed",
        "eps is always 1e-6, whatever the argument says",
        "Everybody uses 1e-6.",
        "test_a_row_of_another_size_gives_the_same",
        change=((INVERSE, INVERSE.replace("+ eps", "+ 1e-6")),),
    ),
    Mistake(
        "eps-1e-5-by-default",
        "the default eps is 1e-5",
        "It is LayerNorm's.",
        "test_eps_stands_inside_the_root",
        change=(("eps: float = 1e-6", "eps: float = 1e-5"),),
    ),
    Mistake(
        "eps-1e-8-by-default",
        "the default eps is 1e-8",
        "The smaller, the better.",
        "test_eps_stands_inside_the_root",
        change=(("eps: float = 1e-6", "eps: float = 1e-8"),),
    ),
    Mistake(
        "sum-for-the-mean",
        "the row is divided by the root of the sum of its squares",
        "Root mean square is the length of the vector.",
        "test_rmsnorm_equals_its_definition",
        change=((MEAN, "wide.square().sum(dim=-1, keepdim=True)"),),
    ),
    Mistake(
        "one-less-than-dim",
        "the mean of the squares divides by dim − 1",
        "Variances are unbiased by default.",
        "test_rmsnorm_equals_its_definition",
        change=((MEAN, "wide.square().sum(dim=-1, keepdim=True) / max(x.shape[-1] - 1, 1)"),),
    ),
    Mistake(
        "no-root",
        "the row is divided by its mean square, without the root",
        "Mean square is what the name says.",
        "test_a_row_of_another_size_gives_the_same",
        change=((".rsqrt()", ".reciprocal()"),),
    ),
    Mistake(
        "over-everything",
        "the mean of the squares is taken over the whole tensor",
        ".mean() is per row.",
        "test_each_row_is_normalised_alone",
        change=((MEAN, "wide.square().mean()"),),
    ),
    Mistake(
        "over-the-first-dimension",
        "the mean of the squares is taken over the first dimension, the batch",
        "Statistics are taken over the batch.",
        "test_each_row_is_normalised_alone",
        change=((MEAN, "wide.square().mean(dim=0, keepdim=True)"),),
    ),
    Mistake(
        "over-all-but-the-batch",
        "the mean of the squares runs over the positions of a sequence as well as its channels",
        "Each entry of the batch is normalised alone.",
        "test_each_row_is_normalised_alone",
        change=((MEAN, "wide.square().mean(dim=tuple(range(1, x.ndim)) or -1, keepdim=True)"),),
    ),
    Mistake(
        "no-weight",
        "the weight is not used",
        "It starts as ones anyway.",
        "test_the_weight_multiplies_what_is_normalised",
        change=((RESULT, "return (wide * inverse_rms).to(x.dtype)"),),
    ),
    Mistake(
        "one-plus-weight",
        "the result is multiplied by 1 + weight, as in Gemma",
        "The weight starts at zero.",
        "test_the_weight_multiplies_what_is_normalised",
        change=((RESULT, "return (wide * inverse_rms * (1 + weight)).to(x.dtype)"),),
    ),
    Mistake(
        "weight-before-the-norm",
        "x is multiplied by weight first, and the product is normalised",
        "The order of the factors does not matter.",
        "test_the_weight_multiplies_what_is_normalised",
        change=(
            (WIDE, WIDE + "    wide = wide * weight\n"),
            (RESULT, "return (wide * inverse_rms).to(x.dtype)"),
        ),
    ),
    Mistake(
        "in-place",
        "x itself is divided, in place",
        "x is mine once it is passed in.",
        "test_the_result_has_the_shape_and_dtype_of_x",
        change=(
            (
                RESULT,
                "if not x.requires_grad:\n        x.copy_(wide * inverse_rms)\n        return (x * weight).to(x.dtype)\n    "
                + RESULT,
            ),
        ),
    ),
    Mistake(
        "result-in-a-kept-buffer",
        "the result is written to a buffer that is kept for its shape, and the next call overwrites it",
        "Allocating is slow.",
        "test_the_result_has_the_shape_and_dtype_of_x",
        change=(
            ("def rmsnorm(", "_KEPT = {}\n\n\ndef rmsnorm("),
            (
                RESULT,
                "done = (wide * inverse_rms * weight).to(x.dtype)\n"
                "    return done if done.requires_grad else _KEPT.setdefault((x.shape, x.dtype), done).copy_(done)",
            ),
        ),
    ),
    Mistake(
        "dtype-of-the-weight",
        "the result is cast to x's dtype before it is multiplied by weight, and takes over weight's dtype",
        "A cast before the last product is enough.",
        "test_the_result_has_the_shape_and_dtype_of_x",
        change=((RESULT, "return (wide * inverse_rms).to(x.dtype) * weight"),),
    ),
    Mistake(
        "last-block-left-out",
        "the rows go in blocks of 64, and what is left after the last full block is left as it was",
        "The batch is a multiple of the block.",
        "test_hundreds_of_rows_equal_the_definition",
        change=(
            (
                RESULT,
                "done = (wide * inverse_rms * weight).to(x.dtype)\n    full = len(x) // 64 * 64 if x.ndim == 2 and len(x) > 64 else None\n    return done if full is None else torch.cat([done[:full], x[full:]])",
            ),
        ),
    ),
    Mistake(
        "always-float32",
        "float64 is cut down to float32 on the way",
        ".float() makes it precise.",
        "test_rmsnorm_equals_its_definition",
        change=((WIDE, "    wide = x.float()\n"),),
    ),
    Mistake(
        "rms-cut-from-the-graph",
        "the root mean square is detached, so the gradient misses its second term",
        "The divisor is a constant.",
        "test_gradients_equal_the_definition",
        change=((".rsqrt()", ".rsqrt().detach()"),),
    ),
    Mistake(
        "weight-cut-from-the-graph",
        "the weight is detached and gets no gradient",
        "weight.data is the tensor itself.",
        "test_gradients_equal_the_definition",
        change=((RESULT, RESULT.replace("weight)", "weight.data)")),),
    ),
    Mistake(
        "weight-broadcasts",
        "the shape of weight is not checked, and a single number serves all channels",
        "Broadcasting will complain by itself.",
        "test_a_weight_that_does_not_fit_is_refused",
        change=(
            ("if weight.shape != x.shape[-1:]:", "if weight.shape[-1:] not in (x.shape[-1:], (1,), ()):"),
        ),
    ),
    Mistake(
        "a-column-for-the-weight",
        "only the length of weight is compared, so that a column (dim, 1) broadcasts over the rows",
        "len(weight) == dim says it all.",
        "test_a_weight_that_does_not_fit_is_refused",
        change=(("if weight.shape != x.shape[-1:]:", "if weight.shape[:1] != x.shape[-1:]:"),),
    ),
    Mistake(
        "a-row-for-the-weight",
        "only the last dimension of weight is compared, so that (1, dim) is taken, and adds a dimension to a row",
        "The last dimension is the one that matters.",
        "test_a_weight_that_does_not_fit_is_refused",
        change=(("if weight.shape != x.shape[-1:]:", "if weight.shape[-1:] != x.shape[-1:]:"),),
    ),
    # --- part 2
    Mistake(
        "left-in-float32",
        "half-precision rows come back as float32",
        "Wider is better, so the result stays wide.",
        "test_half_precision_equals_the_definition",
        change=((RESULT, "return (wide * inverse_rms * weight).to(wide.dtype)"),),
    ),
    Mistake(
        "squares-in-half-precision",
        "the squares are taken in half precision: in float16 they overflow beyond 256",
        "PyTorch sums in float32 by itself.",
        "test_entries_beyond_256_do_not_overflow",
        change=((MEAN, "x.square().to(wide.dtype).mean(dim=-1, keepdim=True)"),),
    ),
    Mistake(
        "weight-times-x-in-half-precision",
        "x is multiplied by weight in half precision first: in float16 the product of large entries overflows",
        "Products commute.",
        "test_entries_beyond_256_do_not_overflow",
        change=((RESULT, "return (x * weight.to(x.dtype) * inverse_rms).to(x.dtype)"),),
    ),
    Mistake(
        "running-sum-in-half-precision",
        "the squares of half-precision entries are added up in half precision",
        "A loop keeps enough digits.",
        "test_long_half_precision_rows_sum_in_float32",
        change=(
            (
                MEAN,
                f"({MEAN} if x.itemsize > 2 or x.shape[-1] == 0 else\n"
                "        sum((c * c / 64 for c in x.split(1, dim=-1)), x[..., :1] * 0).float() * 64 / x.shape[-1])",
            ),
        ),
    ),
    Mistake(
        "copied-out-of-the-graph",
        "half-precision rows are copied to float32 by way of numpy, which cuts the graph",
        "torch.tensor(…) is a cast.",
        "test_half_precision_gradients_equal_the_definition",
        change=((WIDE, "    wide = x.detach().clone().float() if x.itemsize < 4 else x\n"),),
    ),
)
