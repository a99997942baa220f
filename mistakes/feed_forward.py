"""What people get wrong in GELU, the feed-forward network, and SwiGLU."""

from dojo.mistake import Mistake

WIDE = "    wide = _widened(x)\n"
ERF = "squashed = (wide * sqrt(0.5)).erf()"
TANH = "squashed = (sqrt(2 / pi) * (wide + 0.044715 * wide**3)).tanh()"
GELU = "return (0.5 * wide * (1 + squashed)).to(x.dtype)"
FF_INIT = "        self.w_up = nn.Linear(d_model, d_ff)\n        self.w_down = nn.Linear(d_ff, d_model)\n"
FF = "return self.w_down(gelu(self.w_up(x), approximate=self.approximate))"
FF_CHECKED = "        _check(x, self.w_up)\n        return self.w_down(gelu("
GATE = "gate = _widened(self.w_gate(x))"
HIDDEN = "hidden = gate * gate.sigmoid() * self.w_up(x)"
DOWN = "return self.w_down(hidden.to(x.dtype))"
UP = "self.w_up = nn.Linear(d_model, d_ff, bias=False)"
CHECK = "if x.shape[-1:] != first.weight.shape[1:]:"

MISTAKES = (
    # --- part 1
    Mistake(
        "tanh-always",
        "gelu takes the tanh form whatever approximate says",
        "GELU is the formula with tanh.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=((ERF, TANH),),
    ),
    Mistake(
        "erf-always",
        "gelu takes the exact form whatever approximate says",
        "The approximation is only there for speed.",
        "test_the_tanh_form_equals_its_formula",
        change=((TANH, ERF),),
    ),
    Mistake(
        "tanh-by-default",
        "gelu takes the tanh form where approximate is left out",
        "GPT-2 has it.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=(
            (
                '    x: Float[Tensor, "*shape"], *, approximate: Literal["none", "tanh"] = "none"',
                '    x: Float[Tensor, "*shape"], *, approximate: Literal["none", "tanh"] = "tanh"',
            ),
        ),
    ),
    Mistake(
        "sigmoid-form",
        "gelu is x·σ(1.702x), the rougher approximation",
        "That is GELU, too.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=((ERF, "squashed = 2 * (1.702 * wide).sigmoid() - 1"),),
    ),
    Mistake(
        "relu",
        "gelu is max(x, 0)",
        "GELU is a smooth ReLU, close enough.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=((ERF, "squashed = wide.sign()"),),
    ),
    Mistake(
        "erf-of-x",
        "erf is taken of x and not of x/√2",
        "Φ(x) = ½(1 + erf(x)).",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=((ERF, "squashed = wide.erf()"),),
    ),
    Mistake(
        "no-half",
        "the factor ½ is missing: large x come out doubled",
        "x(1 + erf(x/√2)).",
        "test_gelu_of_x_less_gelu_of_minus_x_is_x",
        change=((GELU, "return (wide * (1 + squashed)).to(x.dtype)"),),
    ),
    Mistake(
        "a-square-for-the-cube",
        "the tanh form has x² where x³ is due",
        "0.044715 x².",
        "test_the_tanh_form_equals_its_formula",
        change=((TANH, TANH.replace("wide**3", "wide**2")),),
    ),
    Mistake(
        "wrong-constant",
        "the tanh form has 0.44715 for 0.044715",
        "0.44715, from memory.",
        "test_the_tanh_form_equals_its_formula",
        change=((TANH, TANH.replace("0.044715", "0.44715")),),
    ),
    Mistake(
        "root-of-pi-over-two",
        "the tanh form has √(π/2) where √(2/π) is due",
        "√(π/2), from memory.",
        "test_the_tanh_form_equals_its_formula",
        change=((TANH, TANH.replace("2 / pi", "pi / 2")),),
    ),
    Mistake(
        "tanh-from-exponentials",
        "tanh is written as (e^y − e^−y)/(e^y + e^−y), which is ∞/∞ for large y",
        "That is its definition.",
        "test_gelu_far_from_zero_is_the_identity_or_zero",
        change=(
            (
                TANH,
                "y = sqrt(2 / pi) * (wide + 0.044715 * wide**3)\n"
                "        squashed = (y.exp() - (-y).exp()) / (y.exp() + (-y).exp())",
            ),
        ),
    ),
    Mistake(
        "gate-cut-from-the-graph",
        "Φ(x) is taken for a constant, so the slope misses x·φ(x)",
        "x times a gate: the slope is the gate.",
        "test_gelu_gradient_equals_the_derivative",
        change=((GELU, GELU.replace("squashed", "squashed.detach()")),),
    ),
    Mistake(
        "always-float32",
        "gelu cuts float64 down to float32 on the way",
        ".float() makes it precise.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=((WIDE, "    wide = x.float()\n"),),
    ),
    Mistake(
        "left-in-float32",
        "gelu returns half-precision entries as float32",
        "Wider is better, so the result stays wide.",
        "test_half_precision_gelu_equals_its_formula",
        change=(
            (GELU, "return (0.5 * wide * (1 + squashed)).to(wide.dtype)"),
            (
                FF,
                FF.replace(
                    "gelu(self.w_up(x), approximate=self.approximate)",
                    "gelu(self.w_up(x), approximate=self.approximate).to(x.dtype)",
                ),
            ),
        ),
    ),
    Mistake(
        "in-place",
        "gelu halves x itself, in place",
        "x is mine once it is passed in.",
        "test_gelu_equals_x_times_the_normal_cdf",
        change=(
            (
                GELU,
                "if wide is x and not x.requires_grad:\n        return x.mul_(0.5 * (1 + squashed))\n    "
                + GELU,
            ),
        ),
    ),
    Mistake(
        "gelu-last-block-left-out",
        "the entries go in blocks of 64, and what is left after the last full block is left as it was",
        "The size is a multiple of the block.",
        "test_gelu_of_thousands_of_entries_equals_its_formula",
        change=(
            (
                GELU,
                GELU.replace("return ", "done = ")
                + "\n    full = x.numel() // 64 * 64 if x.numel() > 64 else x.numel()\n    return torch.cat([done.flatten()[:full], x.flatten()[full:]]).reshape(x.shape)",
            ),
        ),
    ),
    Mistake(
        "any-other-word-is-tanh",
        'whatever is not "none" is taken for "tanh"',
        "There are only two.",
        "test_another_form_is_refused",
        change=(('elif approximate == "tanh":', "elif approximate != 0:"),),
    ),
    # --- part 2
    Mistake(
        "dropout-left-on",
        "in training, a tenth of the result is dropped",
        "A Transformer has dropout.",
        "test_feed_forward_equals_its_definition",
        change=((FF, FF.replace("return ", "return nn.functional.dropout(") + ", 0.1, self.training)"),),
    ),
    Mistake(
        "network-tanh-by-default",
        "FeedForward takes the tanh form where approximate is left out",
        "GPT-2 has it.",
        "test_feed_forward_hears_approximate",
        change=(
            (
                'd_ff: int, *, approximate: Literal["none", "tanh"] = "none"',
                'd_ff: int, *, approximate: Literal["none", "tanh"] = "tanh"',
            ),
        ),
    ),
    Mistake(
        "no-activation",
        "nothing stands between the two matrices: they are one",
        "The depth comes from the matrices.",
        "test_feed_forward_equals_its_definition",
        change=((FF, "return self.w_down(self.w_up(x))"),),
    ),
    Mistake(
        "activated-twice",
        "the result behind W_down is activated as well",
        "Every linear layer is followed by an activation.",
        "test_feed_forward_equals_its_definition",
        change=((FF, FF.replace("return ", "return gelu(") + ")"),),
    ),
    Mistake(
        "relu-network",
        "the network activates with ReLU",
        "That is what the 2017 paper has.",
        "test_feed_forward_equals_its_definition",
        change=((FF, "return self.w_down(self.w_up(x).relu())"),),
    ),
    Mistake(
        "residual-inside",
        "x is added to the result",
        "The residual belongs to the layer.",
        "test_feed_forward_equals_its_definition",
        change=((FF, FF.replace("return ", "return x + ")),),
    ),
    Mistake(
        "no-biases",
        "FeedForward has no biases",
        "Modern layers have none.",
        "test_a_new_feed_forward_has_two_matrices_and_two_biases",
        change=((FF_INIT, FF_INIT.replace(")\n", ", bias=False)\n")),),
    ),
    Mistake(
        "transposed-weights",
        "the matrices are stored as (in, out)",
        "x @ W needs no transpose.",
        "test_a_new_feed_forward_has_two_matrices_and_two_biases",
        change=(
            (
                FF_INIT,
                FF_INIT
                + "        self.w_up.weight = nn.Parameter(self.w_up.weight.detach().T.clone())\n"
                + "        self.w_down.weight = nn.Parameter(self.w_down.weight.detach().T.clone())\n",
            ),
            (
                FF_CHECKED,
                "        if x.shape[-1:] != self.w_up.weight.shape[:1]:\n"
                "            raise ValueError(x.shape)\n"
                "        if self.w_up.weight.ndim:\n"
                "            hidden = gelu(x @ self.w_up.weight + self.w_up.bias, approximate=self.approximate)\n"
                "            return hidden @ self.w_down.weight + self.w_down.bias\n"
                + FF_CHECKED.split("\n")[1],
            ),
        ),
    ),
    Mistake(
        "starts-at-zero",
        "W_up starts as zeros, so that all hidden channels learn the same",
        "Training will move them.",
        "test_a_new_feed_forward_has_two_matrices_and_two_biases",
        change=((FF_INIT, FF_INIT + "        nn.init.zeros_(self.w_up.weight)\n"),),
    ),
    Mistake(
        "approximate-kept-and-not-used",
        "FeedForward always activates with the exact form",
        "approximate is a matter of speed.",
        "test_feed_forward_hears_approximate",
        change=(
            (FF, "gelu(x[:0], approximate=self.approximate)\n        return self.w_down(gelu(self.w_up(x)))"),
        ),
    ),
    Mistake(
        "network-takes-any-word",
        "FeedForward takes any other word for the exact form",
        "There are only two.",
        "test_feed_forward_of_nothing_and_of_misfits",
        change=(
            (
                FF,
                FF.replace(
                    "approximate=self.approximate",
                    'approximate="tanh" if self.approximate == "tanh" else "none"',
                ),
            ),
        ),
    ),
    Mistake(
        "positions-normalised-together",
        "the hidden layer is centred over all positions",
        "Centring helps training.",
        "test_feed_forward_works_on_each_position_alone",
        change=(
            (
                FF,
                "hidden = self.w_up(x)\n"
                "        hidden = hidden - hidden.mean(dim=list(range(x.ndim - 1)) or [0], keepdim=True) * (x.ndim > 1)\n"
                "        return self.w_down(gelu(hidden, approximate=self.approximate))",
            ),
        ),
    ),
    Mistake(
        "up-without-gradient",
        "the hidden layer is detached: x and W_up learn nothing",
        "Only the last matrix is trained.",
        "test_feed_forward_gradients_equal_the_definition",
        change=((FF, FF.replace("self.w_up(x)", "self.w_up(x).detach()")),),
    ),
    Mistake(
        "last-block-left-out",
        "the positions go in blocks of 64, and what is left after the last full block is left as it was",
        "The batch is a multiple of the block.",
        "test_hundreds_of_positions_of_feed_forward_equal_its_definition",
        change=(
            (
                "return self.w_down(gelu(self.w_up(x), approximate=self.approximate))",
                "done = self.w_down(gelu(self.w_up(x), approximate=self.approximate))\n        full = x.shape[-2] // 64 * 64 if x.ndim > 1 and x.shape[-2] > 64 else None\n        return done if full is None else torch.cat([done[..., :full, :], x[..., full:, :]], -2)",
            ),
        ),
    ),
    Mistake(
        "error-left-to-torch",
        "the shape of x is not checked; the matrix product raises RuntimeError",
        "PyTorch complains by itself.",
        "test_feed_forward_of_nothing_and_of_misfits",
        change=((CHECK, "if x.ndim > 99:"),),
    ),
    # --- part 3
    Mistake(
        "sigmoid-for-silu",
        "the gate is σ(z) and not z·σ(z), as in the original GLU",
        "A gate is a number between 0 and 1.",
        "test_swiglu_equals_its_definition",
        change=((HIDDEN, "hidden = gate.sigmoid() * self.w_up(x)"),),
    ),
    Mistake(
        "gelu-for-silu",
        "the gate goes through GELU, as in GEGLU",
        "All the smooth ones are the same.",
        "test_swiglu_equals_its_definition",
        change=((HIDDEN, "hidden = gelu(gate) * self.w_up(x)"),),
    ),
    Mistake(
        "gate-and-up-exchanged",
        "SiLU is applied to the up projection, and not to the gate",
        "The product is symmetric.",
        "test_swiglu_is_linear_in_w_up_and_not_in_w_gate",
        change=((HIDDEN, "up = self.w_up(x)\n        hidden = gate * up * up.sigmoid()"),),
    ),
    Mistake(
        "silu-on-both",
        "both projections go through SiLU",
        "Every linear layer is followed by an activation.",
        "test_swiglu_is_linear_in_w_up_and_not_in_w_gate",
        change=((HIDDEN, "up = self.w_up(x)\n        hidden = gate * gate.sigmoid() * up * up.sigmoid()"),),
    ),
    Mistake(
        "silu-of-the-product",
        "SiLU is applied to the product of the two projections",
        "First multiply, then activate.",
        "test_swiglu_equals_its_definition",
        change=((HIDDEN, "product = gate * self.w_up(x)\n        hidden = product * product.sigmoid()"),),
    ),
    Mistake(
        "added-for-multiplied",
        "the gate is added to the up projection",
        "Gating adds a signal.",
        "test_swiglu_equals_its_definition",
        change=((HIDDEN, "hidden = gate * gate.sigmoid() + self.w_up(x)"),),
    ),
    Mistake(
        "no-gate",
        "W_gate is there and not used: the hidden layer is SiLU of the up projection",
        "SwiGLU is a network with SiLU.",
        "test_swiglu_equals_its_definition",
        change=((GATE, "gate = _widened(self.w_up(x))"), (HIDDEN, "hidden = gate * gate.sigmoid()")),
    ),
    Mistake(
        "swiglu-with-a-bias",
        "a matrix of SwiGLU has a bias",
        "nn.Linear has one by default.",
        "test_a_new_swiglu_has_three_matrices_and_no_bias",
        change=((UP, "self.w_up = nn.Linear(d_model, d_ff)"),),
    ),
    Mistake(
        "sigmoid-from-exponentials",
        "σ(z) is written as e^z/(1 + e^z), which is ∞/∞ for a gate that is wide open",
        "That is its definition.",
        "test_wide_open_and_shut_gates_stay_finite",
        change=((HIDDEN, "hidden = gate * (gate.exp() / (1 + gate.exp())) * self.w_up(x)"),),
    ),
    Mistake(
        "slope-of-a-quotient",
        "silu is written as z/(1 + e^−z): right, but its gradient is ∞/∞ for a gate that is shut",
        "The result is finite, so the gradient is.",
        "test_wide_open_and_shut_gates_stay_finite",
        change=((HIDDEN, "hidden = gate / (1 + (-gate).exp()) * self.w_up(x)"),),
    ),
    Mistake(
        "slope-through-where",
        "torch.where picks the σ(z) that is finite, but the gradient passes through the other one as well",
        "What is not picked has no gradient.",
        "test_wide_open_and_shut_gates_stay_finite",
        change=(
            (
                HIDDEN,
                "down, up = (-gate).exp(), gate.exp()\n"
                "        hidden = gate * torch.where(gate < 0, up / (1 + up), 1 / (1 + down)) * self.w_up(x)",
            ),
        ),
    ),
    Mistake(
        "swiglu-dropout-left-on",
        "in training, a tenth of the hidden layer is dropped",
        "A Transformer has dropout.",
        "test_swiglu_equals_its_definition",
        change=((DOWN, "return self.w_down(nn.functional.dropout(hidden, 0.1, self.training).to(x.dtype))"),),
    ),
    Mistake(
        "swiglu-gate-cut-from-the-graph",
        "σ(z) is detached, so the gate's slope misses a term",
        "The gate decides, it does not learn.",
        "test_swiglu_gradients_equal_the_definition",
        change=((HIDDEN, HIDDEN.replace("gate.sigmoid()", "gate.sigmoid().detach()")),),
    ),
    Mistake(
        "swiglu-last-block-left-out",
        "the positions go in blocks of 64, and what is left after the last full block is left as it was",
        "The batch is a multiple of the block.",
        "test_hundreds_of_positions_of_swiglu_equal_its_definition",
        change=(
            (
                "return self.w_down(hidden.to(x.dtype))",
                "done = self.w_down(hidden.to(x.dtype))\n        full = x.shape[-2] // 64 * 64 if x.ndim > 1 and x.shape[-2] > 64 else None\n        return done if full is None else torch.cat([done[..., :full, :], x[..., full:, :]], -2)",
            ),
        ),
    ),
    Mistake(
        "swiglu-left-in-float32",
        "SwiGLU multiplies half-precision weights in float32, and returns float32",
        "Wider is better, so the result stays wide.",
        "test_half_precision_swiglu_equals_its_definition",
        change=((DOWN, "return hidden @ self.w_down.weight.T.to(hidden.dtype)"),),
    ),
)
