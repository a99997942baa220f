"""What people get wrong in layer and batch normalisation."""

from dojo.mistake import Mistake

# LayerNorm
CHECK = "if x.shape[-1:] != self.weight.shape:"
LN_WIDE = "        wide = _widened(x)\n        mean = wide.mean(dim=-1, keepdim=True)\n"
LN_MEAN = "mean = wide.mean(dim=-1, keepdim=True)"
LN_VAR = "var = (wide - mean).square().mean(dim=-1, keepdim=True)"
LN_NORMED = "normed = (wide - mean) * (var + self.eps).rsqrt()"
LN_RESULT = "return (normed * self.weight + self.bias).to(x.dtype)"
# BatchNorm1d
BN_WIDE = "wide = _widened(x).movedim(1, -1)"
CHOICE = "mean, var = self._observe(wide) if self.training else (self.running_mean, self.running_var)"
SCALE = "scale = (var + self.eps).rsqrt() * self.weight"
BN_RESULT = "return ((wide - mean) * scale + self.bias).movedim(-1, 1).to(x.dtype)"
COUNT = "        if count < 2:\n"
BN_VAR = "var = (rows - mean).square().mean(dim=0)"
FOLLOW_MEAN = "self.running_mean += self.momentum * (mean - self.running_mean)"
FOLLOW_VAR = "self.running_var += self.momentum * (var * count / (count - 1) - self.running_var)"
COUNTED = "            self.num_batches_tracked += 1\n"
BN_OBSERVE = """        # No graph: the statistics would otherwise hold on to every batch ever seen.
        with torch.no_grad():
"""

MISTAKES = (
    # --- part 1: LayerNorm
    Mistake(
        "mean-left-in",
        "the mean is not subtracted, as in RMSNorm",
        "What matters is the division.",
        "test_size_and_offset_of_a_token_do_not_matter",
        change=((LN_MEAN, "mean = 0 * wide.mean(dim=-1, keepdim=True)"),),
    ),
    Mistake(
        "unbiased-variance",
        "the variance of a token divides by dim − 1",
        "torch.var is the variance.",
        "test_layer_norm_equals_its_definition",
        change=(
            (LN_VAR, "var = (wide - mean).square().sum(dim=-1, keepdim=True) / max(len(self.bias) - 1, 1)"),
        ),
    ),
    Mistake(
        "no-root",
        "a token is divided by its variance, not by its deviation",
        "Normalising divides by the variance.",
        "test_size_and_offset_of_a_token_do_not_matter",
        change=((LN_NORMED, "normed = (wide - mean) / (var + self.eps)"),),
    ),
    Mistake(
        "eps-outside-the-root",
        "eps is added to the deviation, not to the variance",
        "eps only has to keep the divisor from zero.",
        "test_eps_is_added_to_the_variance",
        change=((LN_NORMED, "normed = (wide - mean) / (var.sqrt() + self.eps)"),),
    ),
    Mistake(
        "eps-as-a-floor",
        "the variance is clamped at eps from below; eps is not added",
        "max(var, eps) is the same guard.",
        "test_eps_is_added_to_the_variance",
        change=((LN_NORMED, "normed = (wide - mean) * var.clamp(min=self.eps).rsqrt()"),),
    ),
    Mistake(
        "eps-fixed",
        "eps is always 1e-5 in LayerNorm, whatever the argument says",
        "Everybody uses 1e-5.",
        "test_eps_is_added_to_the_variance",
        change=((LN_NORMED, LN_NORMED.replace("self.eps", "1e-5")),),
    ),
    Mistake(
        "no-eps",
        "eps is left out of LayerNorm, so that a constant token is 0/0",
        "No token is constant.",
        "test_constant_tokens_give_the_bias",
        change=((LN_NORMED, "normed = (wide - mean) * var.rsqrt()"),),
    ),
    Mistake(
        "variance-by-difference",
        "the variance of a token is E[x²] − E[x]², whose digits cancel when the mean is large",
        "It is the same by algebra, and saves a pass.",
        "test_a_mean_far_above_the_deviation_keeps_the_digits",
        change=((LN_VAR, "var = (wide.square().mean(dim=-1, keepdim=True) - mean.square()).clamp(min=0)"),),
    ),
    Mistake(
        "over-the-batch",
        "LayerNorm takes its statistics over the first axis",
        "Statistics are taken over the batch.",
        "test_each_token_is_normalised_alone",
        change=(
            (LN_MEAN, LN_MEAN.replace("dim=-1", "dim=0")),
            (LN_VAR, LN_VAR.replace("dim=-1", "dim=0")),
        ),
    ),
    Mistake(
        "over-all-but-the-batch",
        "LayerNorm takes its statistics over the positions of a sequence as well as its channels",
        "A layer norm normalises an example.",
        "test_each_token_is_normalised_alone",
        change=(
            (LN_MEAN, LN_MEAN.replace("dim=-1", "dim=tuple(range(1, x.ndim)) or -1")),
            (LN_VAR, LN_VAR.replace("dim=-1", "dim=tuple(range(1, x.ndim)) or -1")),
        ),
    ),
    Mistake(
        "bias-before-weight",
        "the bias is added before the weight multiplies",
        "The order of scale and shift is free.",
        "test_layer_norm_equals_its_definition",
        change=((LN_RESULT, "return ((normed + self.bias) * self.weight).to(x.dtype)"),),
    ),
    Mistake(
        "no-affine",
        "weight and bias are there, but LayerNorm does not use them",
        "They start as 1 and 0 anyway.",
        "test_layer_norm_equals_its_definition",
        change=((LN_RESULT, "return normed.to(x.dtype)"),),
    ),
    Mistake(
        "not-registered",
        "LayerNorm's weight and bias are plain tensors, which neither an optimiser nor a state_dict finds",
        "requires_grad makes a parameter.",
        "test_a_fresh_layer_norm_only_normalises",
        change=(
            (
                "self.weight = nn.Parameter(torch.ones(dim))",
                "self.weight = torch.ones(dim, requires_grad=True)",
            ),
            (
                "self.bias = nn.Parameter(torch.zeros(dim))",
                "self.bias = torch.zeros(dim, requires_grad=True)",
            ),
        ),
    ),
    Mistake(
        "another-eps-by-default",
        "the default eps of LayerNorm is 1e-6",
        "It is the same in every norm.",
        "test_eps_is_added_to_the_variance",
        change=(
            (
                "def __init__(self, dim: int, *, eps: float = 1e-5)",
                "def __init__(self, dim: int, *, eps: float = 1e-6)",
            ),
        ),
    ),
    Mistake(
        "weight-starts-at-zero",
        "the weight of LayerNorm starts as zeros, so that a new layer gives zeros",
        "A residual branch should start at zero.",
        "test_a_fresh_layer_norm_only_normalises",
        change=(("nn.Parameter(torch.ones(dim))", "nn.Parameter(torch.zeros(dim))"),),
    ),
    Mistake(
        "one-weight-for-all-layers",
        "the weights of all LayerNorms are slices of one tensor in the module",
        "Ones are ones: allocate them once.",
        "test_two_layer_norms_share_nothing",
        change=(
            ("class LayerNorm(nn.Module):", "_ONES = torch.ones(8192)\n\n\nclass LayerNorm(nn.Module):"),
            ("nn.Parameter(torch.ones(dim))", "nn.Parameter(_ONES[:dim])"),
        ),
    ),
    Mistake(
        "result-in-a-kept-buffer",
        "LayerNorm writes a result without gradient to a buffer that is kept for its shape, and overwrites it next time",
        "Allocating is slow.",
        "test_two_layer_norms_share_nothing",
        change=(
            (
                LN_RESULT,
                "done = (normed * self.weight + self.bias).to(x.dtype)\n"
                "        if x.requires_grad:\n            return done\n"
                '        self.__dict__.setdefault("_kept", {}).setdefault((x.shape, x.dtype), done).data = done\n'
                "        return self._kept[x.shape, x.dtype]",
            ),
        ),
    ),
    Mistake(
        "statistics-cut-from-the-graph",
        "the mean and the variance of a token are detached, so the gradient misses two of its three terms",
        "Statistics are constants.",
        "test_layer_norm_gradients_equal_the_definition",
        change=((LN_NORMED, "normed = (wide - mean.detach()) * (var.detach() + self.eps).rsqrt()"),),
    ),
    Mistake(
        "variance-cut-from-the-graph",
        "the variance of a token is detached, so the gradient misses its last term",
        "The divisor is a constant.",
        "test_layer_norm_gradients_equal_the_definition",
        change=((LN_NORMED, "normed = (wide - mean) * (var.detach() + self.eps).rsqrt()"),),
    ),
    Mistake(
        "last-block-left-out",
        "the tokens go in blocks of 64, and what is left after the last full block is left as it was",
        "The batch is a multiple of the block.",
        "test_hundreds_of_tokens_equal_the_definition",
        change=(
            (
                LN_RESULT,
                LN_RESULT.replace("return ", "done = ")
                + "\n        full = len(x) // 64 * 64 if x.ndim == 2 and len(x) > 64 else None\n        return done if full is None else torch.cat([done[:full], x[full:]])",
            ),
        ),
    ),
    Mistake(
        "in-place",
        "LayerNorm subtracts the mean from x itself, in place",
        "x is mine once it is passed in.",
        "test_each_token_is_normalised_alone",
        change=(
            (
                LN_WIDE,
                LN_WIDE
                + "        if not x.requires_grad:\n            x -= mean.to(x.dtype)\n            wide, mean = _widened(x), 0 * mean\n",
            ),
        ),
    ),
    Mistake(
        "a-channel-broadcasts",
        "the size of a token is not checked: one channel broadcasts to dim",
        "Broadcasting will complain by itself.",
        "test_no_tokens_and_tokens_of_another_size",
        change=((CHECK, "if x.shape[-1] not in (1, len(self.weight)):"),),
    ),
    Mistake(
        "left-in-float32",
        "half-precision tokens come back as float32",
        "Wider is better, so the result stays wide.",
        "test_half_precision_tokens_equal_the_definition",
        change=((LN_RESULT, "return (normed * self.weight + self.bias).to(wide.dtype)"),),
    ),
    Mistake(
        "dtype-of-the-weight",
        "tokens are cast to their dtype before they are multiplied by weight, and take over weight's dtype",
        "A cast before the last product is enough.",
        "test_half_precision_tokens_equal_the_definition",
        change=((LN_RESULT, "return normed.to(x.dtype) * self.weight + self.bias"),),
    ),
    Mistake(
        "mean-in-half-precision",
        "the mean of a half-precision token is rounded to its dtype before it is subtracted",
        "The mean fits the dtype of the values.",
        "test_half_precision_statistics_are_float32",
        change=((LN_MEAN, "mean = wide.mean(dim=-1, keepdim=True).to(x.dtype)"),),
    ),
    Mistake(
        "centred-in-half-precision",
        "the mean is subtracted in half precision, where a difference may overflow",
        "Only the squares are large.",
        "test_half_precision_statistics_are_float32",
        change=(
            (
                LN_WIDE,
                "        wide = _widened(x - x.mean(dim=-1, keepdim=True))\n        mean = wide.mean(dim=-1, keepdim=True)\n",
            ),
        ),
    ),
    Mistake(
        "squares-in-half-precision",
        "the deviations are squared in half precision: in float16 they overflow beyond 256",
        "PyTorch sums in float32 by itself.",
        "test_half_precision_statistics_are_float32",
        change=(
            (LN_VAR, "var = (wide - mean).to(x.dtype).square().to(wide.dtype).mean(dim=-1, keepdim=True)"),
        ),
    ),
    # --- part 2: BatchNorm1d
    Mistake(
        "statistics-of-the-first-block",
        "mean and variance are those of the first 64 values a channel",
        "A sample is enough.",
        "test_hundreds_of_values_a_channel_equal_the_definition",
        change=(("rows = wide.flatten(0, -2)", "rows = wide.flatten(0, -2)[:64]"),),
    ),
    Mistake(
        "running-variance-biased",
        "running_var takes over the variance that divides by n",
        "There is one variance.",
        "test_running_statistics_follow_the_batches",
        change=((FOLLOW_VAR, "self.running_var += self.momentum * (var - self.running_var)"),),
    ),
    Mistake(
        "running-deviation",
        "running_var takes over the deviation, not its square",
        "The deviation is what is divided by.",
        "test_running_statistics_follow_the_batches",
        change=(
            (
                FOLLOW_VAR,
                FOLLOW_VAR.replace("var * count / (count - 1)", "(var * count / (count - 1)).sqrt()"),
            ),
        ),
    ),
    Mistake(
        "another-eps-by-default-in-batch-norm",
        "the default eps of BatchNorm1d is 1e-3",
        "That is what other libraries have.",
        "test_a_fresh_batch_norm_has_the_state_of_torchs",
        change=(
            (
                "def __init__(self, num_features: int, *, eps: float = 1e-5",
                "def __init__(self, num_features: int, *, eps: float = 1e-3",
            ),
        ),
    ),
    Mistake(
        "one-example-refused",
        "a batch of one example is refused in training, though its length gives two values a channel or more",
        "One example has no variance.",
        "test_the_length_counts_as_batch",
        change=((COUNT, "        if count < 2 or len(wide) < 2:\n"),),
    ),
    Mistake(
        "counted-before-the-check",
        "num_batches_tracked counts a batch that is then refused",
        "Counting comes first.",
        "test_batches_that_do_not_fit_are_refused",
        change=(
            (COUNT, "        self.num_batches_tracked += 1\n" + COUNT),
            (COUNTED, ""),
        ),
    ),
    Mistake(
        "batch-variance-unbiased",
        "the batch is normalised by the variance that divides by n − 1",
        "There is one variance.",
        "test_training_normalises_each_channel_over_the_batch",
        change=(
            (BN_VAR, "var = (rows - mean).square().sum(dim=0) / (count - 1)"),
            (FOLLOW_VAR, "self.running_var += self.momentum * (var - self.running_var)"),
        ),
    ),
    Mistake(
        "a-large-first-batch-is-taken-whole",
        "the first batch, if it is large, replaces the running statistics",
        "The zeros and ones they start with mean nothing.",
        "test_running_statistics_follow_the_batches",
        change=(
            (
                FOLLOW_MEAN,
                "taken = 1 if count > 16 and not self.num_batches_tracked else self.momentum\n            "
                + FOLLOW_MEAN.replace("self.momentum", "taken"),
            ),
            (FOLLOW_VAR, FOLLOW_VAR.replace("self.momentum", "taken")),
        ),
    ),
    Mistake(
        "momentum-the-wrong-way-round",
        "momentum is how much of the old statistics is kept, not how much of the new is taken",
        "Momentum 0.9 keeps nine tenths, as in an optimiser.",
        "test_running_statistics_follow_the_batches",
        change=(
            (FOLLOW_MEAN, FOLLOW_MEAN.replace("self.momentum", "(1 - self.momentum)")),
            (FOLLOW_VAR, FOLLOW_VAR.replace("self.momentum", "(1 - self.momentum)")),
        ),
    ),
    Mistake(
        "batch-statistics-in-eval",
        "in eval, too, the statistics of the batch normalise",
        "BatchNorm normalises the batch.",
        "test_eval_goes_by_the_running_statistics",
        change=(
            (
                CHOICE,
                "rows = wide.flatten(0, -2)\n"
                "        batch = (rows.mean(0), rows.var(0, correction=0))\n"
                "        mean, var = self._observe(wide) if self.training else batch",
            ),
        ),
    ),
    Mistake(
        "running-statistics-in-training",
        "in training the running statistics normalise, just after they were moved",
        "The running statistics are the better estimate.",
        "test_training_normalises_each_channel_over_the_batch",
        change=(
            (
                CHOICE,
                "if self.training:\n            self._observe(wide)\n        mean, var = self.running_mean.clone(), self.running_var.clone()",
            ),
        ),
    ),
    Mistake(
        "learns-in-eval",
        "the running statistics move in eval as well",
        "More data makes a better estimate.",
        "test_eval_goes_by_the_running_statistics",
        change=(
            (
                CHOICE,
                "was = (self.running_mean.clone(), self.running_var.clone())\n"
                "        seen = self._observe(wide) if self.training or wide.numel() > 1 * wide.shape[-1] else was\n"
                "        mean, var = seen if self.training else was",
            ),
        ),
    ),
    Mistake(
        "each-position-alone",
        "with a length, statistics are taken over the batch only, for each position alone",
        "The batch is axis 0.",
        "test_the_length_counts_as_batch",
        change=(
            (
                SCALE,
                f"if self.training and x.ndim == 3:\n            mean, var = wide.mean(0), wide.var(0, correction=0)\n        {SCALE}",
            ),
        ),
    ),
    Mistake(
        "each-example-alone",
        "with a length, statistics are taken over the length only, for each example alone",
        "The length is what is normalised in a sequence.",
        "test_the_length_counts_as_batch",
        change=(
            (
                SCALE,
                f"if self.training and x.ndim == 3:\n            mean, var = wide.mean(1, keepdim=True), wide.var(1, correction=0, keepdim=True)\n        {SCALE}",
            ),
        ),
    ),
    Mistake(
        "reshaped-for-transposed",
        "(batch, channels, length) is reshaped to (…, channels), which mixes channels and positions",
        "reshape swaps two axes.",
        "test_the_length_counts_as_batch",
        change=(
            (BN_WIDE, "wide = _widened(x).reshape(len(x), *x.shape[2:], x.shape[1])"),
            (BN_RESULT, "return ((wide - mean) * scale + self.bias).reshape(x.shape).to(x.dtype)"),
        ),
    ),
    Mistake(
        "batch-variance-by-difference",
        "the variance of a channel is E[x²] − E[x]², whose digits cancel when the mean is large",
        "It is the same by algebra, and saves a pass.",
        "test_channels_far_from_zero_keep_the_digits",
        change=((BN_VAR, "var = (rows.square().mean(dim=0) - mean.square()).clamp(min=0)"),),
    ),
    Mistake(
        "batch-statistics-without-gradient",
        "the batch's statistics are computed under no_grad, with the running ones",
        "Statistics are constants.",
        "test_training_gradients_go_through_the_statistics",
        change=(
            (COUNTED + "        return mean, var", COUNTED + "        return mean.detach(), var.detach()"),
        ),
    ),
    Mistake(
        "running-statistics-in-the-graph",
        "the running statistics keep the graph of every batch that they have seen",
        "A buffer has no gradient anyway.",
        "test_running_statistics_follow_the_batches",
        change=(
            (BN_OBSERVE, "        if True:\n"),
            (
                FOLLOW_MEAN,
                "self.running_mean = self.running_mean + self.momentum * (mean - self.running_mean)",
            ),
            (
                FOLLOW_VAR,
                "self.running_var = self.running_var + self.momentum * (var * count / (count - 1) - self.running_var)",
            ),
        ),
    ),
    Mistake(
        "statistics-as-plain-tensors",
        "running_mean and running_var are attributes and no buffers: no state_dict keeps them",
        "They are not trained, so they are no state.",
        "test_a_fresh_batch_norm_has_the_state_of_torchs",
        change=(
            (
                'self.register_buffer("running_mean", torch.zeros(num_features))',
                "self.running_mean = torch.zeros(num_features)",
            ),
            (
                'self.register_buffer("running_var", torch.ones(num_features))',
                "self.running_var = torch.ones(num_features)",
            ),
        ),
    ),
    Mistake(
        "running-variance-starts-at-zero",
        "running_var starts at 0, so that a layer which has seen nothing divides by √eps",
        "Running statistics start at zero.",
        "test_a_fresh_batch_norm_has_the_state_of_torchs",
        change=(('"running_var", torch.ones(num_features)', '"running_var", torch.zeros(num_features)'),),
    ),
    Mistake(
        "one-memory-for-all-layers",
        "the running means of all layers are slices of one tensor in the module",
        "Zeros are zeros: allocate them once.",
        "test_two_batch_norms_share_nothing",
        change=(
            (
                "class BatchNorm1d(nn.Module):",
                "_ZEROS = torch.zeros(8192)\n\n\nclass BatchNorm1d(nn.Module):",
            ),
            ('"running_mean", torch.zeros(num_features)', '"running_mean", _ZEROS[:num_features]'),
        ),
    ),
    Mistake(
        "one-value-is-enough",
        "a channel with a single value is trained on: it gives the bias, and running_var takes over 0",
        "The variance of one value is 0.",
        "test_batches_that_do_not_fit_are_refused",
        change=(
            (COUNT, "        if count < 1:\n"),
            (FOLLOW_VAR, FOLLOW_VAR.replace("(count - 1)", "max(count - 1, 1)")),
        ),
    ),
    Mistake(
        "one-value-ends-in-nan",
        "a channel with one value is trained on, and its running variance becomes NaN",
        "0 / 0 will not come up.",
        "test_batches_that_do_not_fit_are_refused",
        change=((COUNT, "        if count < 1:\n"),),
    ),
    Mistake(
        "one-channel-for-all",
        "x with one channel is normalised by a layer of several, as if it had as many",
        "Broadcasting is a feature.",
        "test_batches_that_do_not_fit_are_refused",
        change=(
            (
                "if x.ndim not in (2, 3) or x.shape[1] != len(self.weight):",
                "if x.ndim not in (2, 3) or x.shape[1] not in (1, len(self.weight)):",
            ),
        ),
    ),
    Mistake(
        "batch-squares-in-half-precision",
        "BatchNorm squares the deviations in half precision: in float16 they overflow beyond 256",
        "PyTorch sums in float32 by itself.",
        "test_half_precision_batches_equal_the_definition",
        change=(
            (CHOICE, CHOICE.replace("self._observe(wide)", "self._observe(wide, x.dtype)")),
            ("def _observe(self, wide: Tensor)", "def _observe(self, wide: Tensor, kept: torch.dtype)"),
            (BN_VAR, "var = (rows - mean).to(kept).square().to(rows.dtype).mean(dim=0)"),
        ),
    ),
    Mistake(
        "running-mean-in-half-precision",
        "in eval the running mean is rounded to half precision before it is subtracted",
        "The mean fits the dtype of the values.",
        "test_half_precision_batches_equal_the_definition",
        change=(
            (CHOICE, CHOICE.replace("(self.running_mean,", "(self.running_mean.to(x.dtype).to(wide.dtype),")),
        ),
    ),
    Mistake(
        "statistics-of-the-first-eval",
        "the running statistics are read at the first call in eval, and kept when training goes on",
        "After training the statistics do not change any more.",
        "test_running_statistics_follow_the_batches",
        change=(
            (
                CHOICE,
                'if not self.training and not hasattr(self, "_kept"):\n'
                "            self._kept = (self.running_mean.clone(), self.running_var.clone())\n"
                "        mean, var = self._observe(wide) if self.training else self._kept",
            ),
        ),
    ),
    Mistake(
        "momentum-zero-left-out",
        "a momentum of 0 is taken for one that was left out, and becomes 0.1",
        "`momentum or 0.1` supplies the default.",
        "test_running_statistics_follow_the_batches",
        change=(
            ("self.eps, self.momentum = eps, momentum\n", "self.eps, self.momentum = eps, momentum or 0.1\n"),
        ),
    ),
    Mistake(
        "statistics-in-half-precision",
        "the statistics of a half-precision batch are rounded to its dtype",
        "The mean fits the dtype of the values.",
        "test_half_precision_batches_equal_the_definition",
        change=(
            (CHOICE, CHOICE.replace("self._observe(wide)", "self._observe(wide, x.dtype)")),
            ("def _observe(self, wide: Tensor)", "def _observe(self, wide: Tensor, kept: torch.dtype)"),
            ("mean = rows.mean(dim=0)", "mean = rows.mean(dim=0).to(kept).to(rows.dtype)"),
            (BN_VAR, BN_VAR + ".to(kept).to(rows.dtype)"),
        ),
    ),
)
