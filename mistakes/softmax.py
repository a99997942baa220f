"""What people get wrong in softmax, its logarithm, and cross-entropy."""

import torch

from dojo.mistake import Mistake


def running_sum(x, dim):
    weights = (x - x.detach().amax(dim, keepdim=True)).exp()
    total = 0 * weights.narrow(dim, 0, 1)
    for column in weights.split(1, dim):
        total = total + column
    return weights / total


def running_log_sum(x, dim):
    shifted = x - x.detach().amax(dim, keepdim=True)
    total = 0 * shifted.narrow(dim, 0, 1).exp()
    for column in shifted.exp().split(1, dim):
        total = total + column
    return shifted - total.log()


def sums_outside_the_graph(logits, targets):
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            log_p = log_softmax(_widened(logits), dim=-1)
            ctx.slope = (log_p.exp() - torch.nn.functional.one_hot(targets, logits.shape[-1])) / len(targets)
            return -log_p.gather(-1, targets.unsqueeze(-1)).mean().to(logits.dtype)

        @staticmethod
        def backward(ctx, upstream):
            return ctx.slope.to(upstream.dtype)

    return Loss.apply(logits)


LIKELIHOOD = (
    "    likelihood = log_softmax(_widened(logits[kept]), dim=-1).gather(-1, targets[kept].unsqueeze(-1))\n"
)

MISTAKES = (
    Mistake(
        "no-shift",
        "exp is taken of the raw logits, without subtracting their maximum",
        "The maximum cancels, so it can be left out.",
        "test_large_logits_do_not_overflow",
        change=(("return wide - wide.detach().amax(dim, keepdim=True)", "return wide"),),
    ),
    Mistake(
        "shift-by-the-mean",
        "the logits are shifted by their mean, not by their maximum",
        "Any shift will do against overflow.",
        "test_large_logits_do_not_overflow",
        change=(("wide.detach().amax(dim, keepdim=True)", "wide.detach().mean(dim, keepdim=True)"),),
    ),
    Mistake(
        "one-shift-for-all",
        "one maximum is subtracted from all slices, so that a quiet one vanishes beside a loud one",
        "Subtracting the maximum is enough against overflow.",
        "test_large_logits_do_not_overflow",
        change=(("wide.detach().amax(dim, keepdim=True)", "wide.detach().amax()"),),
    ),
    Mistake(
        "dim-ignored",
        "the softmax always runs over the last dimension, whatever dim says",
        "Softmax is always taken over the last dimension.",
        "test_probabilities_sum_to_one_along_dim",
        change=(
            (
                "    weights = _shifted(x, dim).exp()\n",
                "    dim = -1\n    weights = _shifted(x, dim).exp()\n",
            ),
        ),
    ),
    Mistake(
        "sum-over-everything",
        "the exponentials are divided by their sum over all dimensions",
        "The sum of the exponentials is one number.",
        "test_probabilities_sum_to_one_along_dim",
        change=(("weights / weights.sum(dim, keepdim=True)", "weights / weights.sum()"),),
    ),
    Mistake(
        "softmin",
        "the sign is turned: the largest logit gets the smallest probability",
        "exp(−x), as in a Boltzmann distribution over energies.",
        "test_order_is_kept",
        change=(("    weights = _shifted(x, dim).exp()", "    weights = _shifted(-x, dim).exp()"),),
    ),
    Mistake(
        "base-two",
        "the base is 2, not e",
        "exp2 is the fast exponential and gives the same thing.",
        "test_softmax_equals_its_definition",
        change=(("    weights = _shifted(x, dim).exp()", "    weights = _shifted(x, dim).exp2()"),),
    ),
    Mistake(
        "epsilon-in-the-sum",
        "a small ε is added to the exponentials, so that masked places get a share",
        "An ε keeps the division safe.",
        "test_minus_infinity_gets_exactly_zero",
        change=(("    weights = _shifted(x, dim).exp()", "    weights = _shifted(x, dim).exp() + 1e-6"),),
    ),
    Mistake(
        "epsilon-in-the-divisor",
        "1e-8 is added to the sum of the exponentials, which is at least 1 already",
        "An ε keeps the division safe.",
        "test_softmax_equals_its_definition",
        change=(
            ("weights / weights.sum(dim, keepdim=True)", "weights / (weights.sum(dim, keepdim=True) + 1e-8)"),
        ),
    ),
    Mistake(
        "always-float32",
        "float64 is cut down to float32 on the way",
        ".float() makes it precise.",
        "test_softmax_equals_its_definition",
        change=(("return x.float() if x.itemsize < 4 else x", "return x.float()"),),
    ),
    Mistake(
        "in-place-shift",
        "the maximum is subtracted from x itself, in place",
        "x is mine once it is passed in.",
        "test_softmax_keeps_shape_dtype_and_leaves_x_alone",
        change=(
            (
                "    weights = _shifted(x, dim).exp()\n",
                "    if not x.requires_grad:\n        x -= x.amax(dim, keepdim=True)\n    weights = _shifted(x, dim).exp()\n",
            ),
        ),
    ),
    Mistake(
        "result-in-a-kept-buffer",
        "the probabilities are written to a buffer that is kept for their shape, and the next call overwrites them",
        "Allocating is slow.",
        "test_softmax_keeps_shape_dtype_and_leaves_x_alone",
        change=(
            ("def softmax(", "_KEPT = {}\n\n\ndef softmax("),
            (
                "    return (weights / weights.sum(dim, keepdim=True)).to(x.dtype)",
                "    done = (weights / weights.sum(dim, keepdim=True)).to(x.dtype)\n"
                "    return done if x.requires_grad else _KEPT.setdefault((x.shape, x.dtype), done).copy_(done)",
            ),
        ),
    ),
    Mistake(
        "left-in-float32",
        "half-precision logits come back as float32 probabilities",
        "Wider is better, so the result stays wide.",
        "test_softmax_keeps_shape_dtype_and_leaves_x_alone",
        change=(
            (
                "(weights / weights.sum(dim, keepdim=True)).to(x.dtype)",
                "weights / weights.sum(dim, keepdim=True)",
            ),
        ),
    ),
    Mistake(
        "cut-from-the-graph",
        "the sum of exponentials is detached, so the gradient misses its second term",
        "The normaliser is a constant.",
        "test_softmax_gradient_equals_the_jacobian",
        change=(
            ("weights / weights.sum(dim, keepdim=True)", "weights / weights.sum(dim, keepdim=True).detach()"),
        ),
    ),
    Mistake(
        "reciprocal-exponential",
        "the weights are 1 / exp(max − x): for a logit far below the best their gradient is 0 · inf = NaN",
        "exp(−a) is 1 / exp(a).",
        "test_softmax_gradient_equals_the_jacobian",
        change=(("    weights = _shifted(x, dim).exp()", "    weights = 1 / (-_shifted(x, dim)).exp()"),),
    ),
    Mistake(
        "running-sum-in-half-precision",
        "the exponentials of half-precision logits are added up in half precision",
        "torch.cumsum and loops keep enough digits.",
        "test_long_half_precision_rows_sum_in_float32",
        define=(("softmax", running_sum),),
    ),
    Mistake(
        "missing-dim-wraps",
        "dim is taken modulo the number of dimensions, so that one too many means the first",
        "dim % ndim takes care of negative ones.",
        "test_a_missing_dimension_is_refused",
        change=(
            ("    wide = _widened(x)\n", "    wide = _widened(x)\n    dim = dim % x.ndim\n"),
            ("weights.sum(dim, keepdim", "weights.sum(dim % x.ndim, keepdim"),
            ("shifted.exp().sum(dim, keepdim", "shifted.exp().sum(dim % x.ndim, keepdim"),
        ),
    ),
    Mistake(
        "log-of-softmax",
        "log is taken of the softmax, which is 0 for a class far below the best",
        "The logarithm of softmax is log(softmax).",
        "test_log_of_a_vanishing_probability_is_finite",
        change=(("(shifted - shifted.exp().sum(dim, keepdim=True).log())", "softmax(shifted, dim).log()"),),
    ),
    Mistake(
        "log-of-softmax-plus-epsilon",
        "log is taken of softmax + 1e-9, which caps the loss near 20.7",
        "An ε inside the logarithm makes it safe.",
        "test_log_of_a_vanishing_probability_is_finite",
        change=(
            (
                "(shifted - shifted.exp().sum(dim, keepdim=True).log())",
                "(softmax(shifted, dim) + 1e-9).log()",
            ),
        ),
    ),
    Mistake(
        "log-clamped",
        "log-probabilities are clamped to the lowest finite number, where −inf is due",
        "−inf in a tensor is always a bug.",
        "test_the_log_of_probability_zero_is_minus_infinity",
        change=(
            (
                "(shifted - shifted.exp().sum(dim, keepdim=True).log()).to(x.dtype)",
                "(shifted - shifted.exp().sum(dim, keepdim=True).log()).to(x.dtype).clamp(min=-1e5)",
            ),
        ),
    ),
    Mistake(
        "minus-infinity-made-finite",
        "a logit of −inf is replaced by −1e9, and so is its log-probability",
        "−1e9 is as good as −inf.",
        "test_the_log_of_probability_zero_is_minus_infinity",
        change=(("    wide = _widened(x)\n", "    wide = _widened(x).clamp(min=-1e9)\n"),),
    ),
    Mistake(
        "running-log-sum-in-half-precision",
        "log_softmax adds up the exponentials of half-precision logits in half precision",
        "torch.cumsum and loops keep enough digits.",
        "test_long_half_precision_rows_take_their_log_in_float32",
        define=(("log_softmax", running_log_sum),),
    ),
    Mistake(
        "log-sum-exp-cut-from-the-graph",
        "the log-sum-exp is detached, so the gradient of log_softmax misses its second term",
        "The normaliser is a constant.",
        "test_log_softmax_gradient_equals_the_jacobian",
        change=(
            (
                "shifted.exp().sum(dim, keepdim=True).log()",
                "shifted.exp().sum(dim, keepdim=True).log().detach()",
            ),
        ),
    ),
    Mistake(
        "mean-over-the-batch",
        "the loss is divided by all targets, the ignored ones included",
        "Mask the loss, then take the mean.",
        "test_only_kept_targets_count",
        change=(("-likelihood.mean().to(", "(-likelihood.sum() / kept.numel()).to("),),
    ),
    Mistake(
        "mean-of-means",
        "the loss is averaged over each row of targets first and then over the rows, though they keep different numbers",
        "A mean of means is the mean.",
        "test_cross_entropy_equals_its_definition",
        change=(
            (
                "    return -likelihood.mean()",
                "    if targets.ndim > 1:\n"
                "        kept_rows = kept.sum(-1)\n"
                "        rows = torch.zeros(kept.shape, dtype=likelihood.dtype).masked_scatter(kept, likelihood[:, 0])\n"
                "        likelihood = (rows.sum(-1) / kept_rows)[kept_rows > 0]\n"
                "    return -likelihood.mean()",
            ),
            ("from jaxtyping import Float, Int\n", "import torch\nfrom jaxtyping import Float, Int\n"),
        ),
    ),
    Mistake(
        "running-loss-in-half-precision",
        "the losses of half-precision logits are added up in half precision, which stops growing on the way",
        "The sum has the dtype of its terms.",
        "test_long_half_precision_batches_are_averaged_in_float32",
        change=(
            ("-likelihood.mean().to(logits.dtype)", "-sum(likelihood.to(logits.dtype)[:, 0]) / kept.sum()"),
            (
                "    if targets.shape",
                '    if not kept.any():\n        return logits.sum() * float("nan")\n    if targets.shape',
            ),
        ),
    ),
    Mistake(
        "gradient-from-above-forgotten",
        "the hand-written backward pass forgets the gradient that arrives from above",
        "The loss is the end of the graph, and its own gradient is 1.",
        "test_cross_entropy_gradient_is_p_minus_onehot",
        change=(
            (
                LIKELIHOOD,
                "    return _loss(logits[kept], targets[kept])\n\n\ndef _loss(logits, targets):\n    pass\n",
            ),
            ("    return -likelihood.mean().to(logits.dtype)\n", ""),
            ("from jaxtyping import Float, Int\n", "import torch\nfrom jaxtyping import Float, Int\n"),
        ),
        define=(("_loss", sums_outside_the_graph),),
    ),
    Mistake(
        "one-hot-product",
        "the log-probabilities are multiplied by a one-hot vector, so that a class that cannot be gives 0 · inf = NaN",
        "Times zero is gone.",
        "test_a_class_that_cannot_be_costs_nothing",
        change=(
            (
                LIKELIHOOD,
                "    log_p = log_softmax(_widened(logits[kept]), dim=-1)\n"
                "    likelihood = (log_p * torch.nn.functional.one_hot(targets[kept], logits.shape[-1])).sum(-1)\n",
            ),
            ("from jaxtyping import Float, Int\n", "import torch\nfrom jaxtyping import Float, Int\n"),
        ),
    ),
    Mistake(
        "logits-clamped",
        "the logits are clamped to ±1e4 before the loss",
        "No logit is larger than that.",
        "test_confidently_wrong_costs_the_logit_gap",
        change=(
            ("log_softmax(_widened(logits[kept])", "log_softmax(_widened(logits[kept]).clamp(-1e4, 1e4)"),
        ),
    ),
    Mistake(
        "summed-loss",
        "the loss is summed over the targets, not averaged",
        "Cross-entropy is the sum of the surprises.",
        "test_cross_entropy_equals_its_definition",
        change=(("-likelihood.mean()", "-likelihood.sum()"),),
    ),
    Mistake(
        "ignore-index-fixed",
        "only −100 is ignored, whatever ignore_index says",
        "ignore_index is always −100.",
        "test_only_kept_targets_count",
        change=(("kept = targets != ignore_index", "kept = targets != -100"),),
    ),
    Mistake(
        "nothing-ignored",
        "ignored targets count as class 0",
        "Clamping the targets takes care of −100.",
        "test_only_kept_targets_count",
        change=(
            (
                "    kept = targets != ignore_index\n",
                "    targets = targets.where(targets != ignore_index, 0)\n    kept = targets == targets\n",
            ),
        ),
    ),
    Mistake(
        "minus-100-always-ignored",
        "−100 is ignored, too, where ignore_index is something else",
        "−100 never counts.",
        "test_bad_targets_are_refused",
        change=(
            (
                "    kept = targets != ignore_index\n",
                "    kept = (targets != ignore_index) & (targets != -100)\n",
            ),
        ),
    ),
    Mistake(
        "negatives-ignored",
        "every negative target is ignored",
        "What is below 0 is padding.",
        "test_bad_targets_are_refused",
        change=(
            (
                "    kept = targets != ignore_index\n",
                "    kept = (targets != ignore_index) & (targets >= 0)\n",
            ),
        ),
    ),
    Mistake(
        "only-counted",
        "targets of another shape are taken as long as there are as many of them",
        "Both are flattened anyway.",
        "test_targets_of_another_shape_are_refused",
        change=(
            (
                "    kept = targets != ignore_index\n    if targets.shape != logits.shape[:-1]:",
                "    logits = logits.reshape(-1, logits.shape[-1])\n    targets = targets.flatten()\n"
                "    kept = targets != ignore_index\n    if targets.shape != logits.shape[:-1]:",
            ),
        ),
    ),
    Mistake(
        "negative-classes-wrap",
        "targets are not checked: −2 means the class before the last",
        "Indexing will complain by itself.",
        "test_bad_targets_are_refused",
        change=(
            (
                "(targets < 0) | (targets >= logits.shape[-1])",
                "(targets < -logits.shape[-1]) | (targets >= logits.shape[-1])",
            ),
            ("targets[kept].unsqueeze(-1)", "(targets[kept] % logits.shape[-1]).unsqueeze(-1)"),
        ),
    ),
    Mistake(
        "masked-by-multiplying",
        "ignored rows are multiplied by zero, so an infinite loss in one of them becomes NaN",
        "Times zero is gone.",
        "test_only_kept_targets_count",
        change=(
            ("log_softmax(_widened(logits[kept]), dim=-1)", "log_softmax(_widened(logits), dim=-1)"),
            (
                ".gather(-1, targets[kept].unsqueeze(-1))",
                ".gather(-1, targets.where(kept, 0).unsqueeze(-1))[..., 0] * kept",
            ),
            ("-likelihood.mean().to(", "(-likelihood.sum() / kept.sum()).to("),
        ),
    ),
    Mistake(
        "nothing-costs-nothing",
        "the number of kept targets is held at 1 or more, so that a batch without any has loss 0",
        "A division by zero is an accident to be avoided.",
        "test_the_mean_over_no_target_is_nan",
        change=(
            ("return -likelihood.mean().to(", "return (-likelihood.sum() / kept.sum().clamp(min=1)).to("),
        ),
    ),
    Mistake(
        "nothing-in-float32",
        "a batch without targets returns a NaN of its own, in float32 whatever the logits are",
        "NaN is NaN.",
        "test_the_mean_over_no_target_is_nan",
        change=(
            (
                "    # Dropping the ignored rows",
                '    if not kept.any():\n        return torch.tensor(float("nan"))\n    # Dropping the ignored rows',
            ),
            ("from jaxtyping import Float, Int\n", "import torch\nfrom jaxtyping import Float, Int\n"),
        ),
    ),
    Mistake(
        "infinite-loss-made-finite",
        "an infinite loss is replaced by a large finite one",
        "inf in a loss is always a bug.",
        "test_a_target_that_cannot_be_costs_infinity",
        change=(
            (
                "return -likelihood.mean()",
                "likelihood = likelihood.nan_to_num(neginf=-1e4)\n    return -likelihood.mean()",
            ),
        ),
    ),
    Mistake(
        "targets-in-16-bits",
        "targets are kept in 16 bits, so that a class above 32,767 is read as another one",
        "Half the memory.",
        "test_any_class_of_a_large_vocabulary_may_be_the_target",
        change=(
            (
                "targets[kept].unsqueeze(-1)",
                "targets[kept].short().long().remainder(logits.shape[-1]).unsqueeze(-1)",
            ),
        ),
    ),
)

HALF = "torch sums half types in float32 by itself, so that both are within rounding"
EQUIVALENT = (
    ("x.float() if x.itemsize < 4 else x", "x if x.itemsize < 4 else x", HALF),
    ("4", "3", HALF),
    ("x.itemsize < 4", "x.itemsize <= 4", "float32.float() is float32"),
    ("4", "5", "float32.float() is float32"),
    ("-1", "+1", "logits have two dimensions: the last one is dimension 1"),
    ("wide.detach", "wide.clone", "the shift cancels, so its gradient is zero"),
)
"""Mutants that do the same: what stood there, what stands there, and why nothing can tell."""
