"""What people get wrong in a mixture of experts."""

from dojo.mistake import Mistake

SOFTMAX = "logits.gather(-1, experts).softmax(-1).to(x.dtype), experts"
SWIGLU = "outputs = (silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T"
ADDED = "out.index_add_(0, at, _widened(outputs) * weights[served, None])"
RUNS = "        runs = experts.argsort(stable=True).split(_load(experts, self.n_experts).tolist())\n"
LOSS = "return (n_experts * (share * probabilities).sum()).to(logits.dtype)"
STEP = "self.bias += rate * (load.sum() - self.n_experts * load).sign().to(self.bias.dtype)"
CAPACITY = "math.ceil(self.capacity_factor * tokens * self.top_k / self.n_experts)"
DISPATCH = "        out = torch.zeros_like(_widened(tokens))\n        for run, gate"

EVERY_EXPERT = """        shares = torch.zeros(len(tokens), self.n_experts, dtype=weights.dtype)
        shares[torch.arange(len(weights)) // self.top_k, experts] = weights
        if room is None:
            out = torch.zeros_like(_widened(tokens))
            for e in range(self.n_experts):
                hidden = silu(tokens @ self.w_gate[e].T) * (tokens @ self.w_up[e].T)
                out = out + KEPT
            return out.to(x.dtype).reshape(x.shape)
"""
TOKEN_BY_TOKEN = """        if room is None:
            rows = []
            for t, token in enumerate(tokens):
                row = torch.zeros_like(_widened(token))
                for a in range(t * self.top_k, (t + 1) * self.top_k):
                    e = int(experts[a])
                    hidden = silu(self.w_gate[e] @ token) * (self.w_up[e] @ token)
                    row = row + weights[a] * (self.w_down[e] @ hidden)
                rows.append(row)
            return torch.stack([*rows, *tokens[:0]]).to(x.dtype).reshape(x.shape) if rows else x.clone()
"""
PADDED = """        if room is None and len(tokens):
            longest = max(map(len, runs))
            slots = torch.zeros(self.n_experts, longest, dtype=torch.long)
            used = torch.zeros(self.n_experts, longest, dtype=torch.bool)
            for e, run in enumerate(runs):
                slots[e, : len(run)], used[e, : len(run)] = run, True
            inputs = tokens[slots // self.top_k]
            hidden = silu(inputs @ self.w_gate.mT) * (inputs @ self.w_up.mT)
            outputs = (_widened(hidden @ self.w_down.mT) * weights[slots, None])[used]
            at = slots[used] // self.top_k
            return torch.zeros_like(_widened(tokens)).index_add(0, at, outputs).to(x.dtype).reshape(x.shape)
"""
NEVER_SORTED_BACK = """        if room is None and len(tokens):
            outputs = []
            for e, run in enumerate(runs):
                inputs = tokens[run // self.top_k]
                hidden = silu(inputs @ self.w_gate[e].T) * (inputs @ self.w_up[e].T)
                outputs.append(_widened(hidden @ self.w_down[e].T) * weights[run, None])
            return torch.cat(outputs).reshape(len(tokens), self.top_k, -1).sum(1).to(x.dtype).reshape(x.shape)
"""


EVERY_TOKEN_FOR_THE_BUSY = """        if room is None:
            out = torch.zeros_like(_widened(tokens))
            for e, run in enumerate(runs):
                if len(run) > 0:
                    share = torch.zeros(len(tokens), dtype=weights.dtype).index_put((run // self.top_k,), weights[run])
                    hidden = silu(tokens @ self.w_gate[e].T) * (tokens @ self.w_up[e].T)
                    out = out + share[:, None] * _widened(hidden @ self.w_down[e].T)
            return out.to(x.dtype).reshape(x.shape)
"""
PLACES_IN_HALF = """        if room is not None:
            asked = nn.functional.one_hot(experts, self.n_experts).to(x.dtype)
            places = (asked.cumsum(0) * asked).sum(-1)
            runs = [run[places[run] <= room] for run in runs]
"""


BY_CHOICE = """        if room is not None:
            asked = nn.functional.one_hot(experts.reshape(-1, self.top_k), self.n_experts)
            kept = (asked * (asked.cumsum(0) <= room)).sum(-1).flatten().bool()
            runs, room = [run[kept[run]] for run in runs], None
"""


def before_the_loop(text):
    """The change that puts another dispatch before the reference's, which returns."""
    return ((RUNS, RUNS + text),)


MISTAKES = (
    # --- routing
    Mistake(
        "weights-not-renormalised",
        "the weights are the probabilities among all experts, so they do not sum to one",
        "The softmax over all logits is the gate.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=((SOFTMAX, "logits.softmax(-1).gather(-1, experts).to(x.dtype), experts"),),
    ),
    Mistake(
        "equal-weights",
        "every chosen expert counts the same, 1 / top_k",
        "The router only chooses.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=((SOFTMAX, "(logits.gather(-1, experts) * 0).softmax(-1).to(x.dtype), experts"),),
    ),
    Mistake(
        "softmax-twice",
        "the softmax is taken of the chosen probabilities, not of the chosen logits",
        "Renormalising means another softmax.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=((SOFTMAX, "logits.softmax(-1).gather(-1, experts).softmax(-1).to(x.dtype), experts"),),
    ),
    Mistake(
        "sigmoid-gates",
        "the weights are sigmoids of the logits, divided by their sum",
        "DeepSeek-V3's gate is everyone's.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=(
            (
                "        return logits.gather(-1, experts).softmax(-1)",
                "        gates = logits.gather(-1, experts).sigmoid()\n        return (gates / gates.sum(-1, keepdim=True))",
            ),
        ),
    ),
    Mistake(
        "no-shift",
        "exp is taken of the chosen logits as they are, and overflows",
        "Router logits are small.",
        "test_large_logits_are_safe",
        change=(
            (
                "        return logits.gather(-1, experts).softmax(-1)",
                "        gates = logits.gather(-1, experts).exp()\n        return (gates / gates.sum(-1, keepdim=True))",
            ),
        ),
    ),
    Mistake(
        "logits-divided-by-root-d",
        "the router's logits are divided by √d_model",
        "Dot products want scaling.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=(
            (
                "_widened(self.router.weight).T\n",
                "_widened(self.router.weight).T / math.sqrt(self.d_model)\n",
            ),
        ),
    ),
    Mistake(
        "experts-in-order-weights-not",
        "the experts of a token are put in order, and their weights stay where they were",
        "The order of the experts is open.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=((SOFTMAX, SOFTMAX.removesuffix("experts") + "experts.sort(-1).values"),),
    ),
    Mistake(
        "weights-left-in-float32",
        "route gives float32 weights for half-precision tokens",
        "Weights are kept as precise as they are.",
        "test_the_weights_are_the_softmax_over_the_chosen",
        change=((SOFTMAX, SOFTMAX.replace(".to(x.dtype)", "")),),
    ),
    Mistake(
        "smallest-logits-chosen",
        "the experts with the smallest logits are chosen",
        "Logits are distances.",
        "test_every_token_gets_its_top_k_experts",
        change=((".topk(self.top_k).indices", ".topk(self.top_k, largest=False).indices"),),
    ),
    Mistake(
        "largest-in-size",
        "the experts are chosen by the size of their logits, whatever the sign",
        "A strongly negative logit is a strong opinion.",
        "test_every_token_gets_its_top_k_experts",
        change=(("(logits + self.bias).topk", "(logits.abs() + self.bias).topk"),),
    ),
    Mistake(
        "first-choice-only",
        "only the first choice of a token is served",
        "The best expert is enough.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=(("served = run[:room]\n", "served = run[run % self.top_k == 0][:room]\n"),),
    ),
    Mistake(
        "router-cut-off",
        "the weights are detached, so the router learns nothing",
        "A choice has no gradient.",
        "test_gradients_are_those_of_the_dense_sum",
        change=((SOFTMAX, "logits.gather(-1, experts).softmax(-1).to(x.dtype).detach(), experts"),),
    ),
    Mistake(
        "router-noise-in-training",
        "noise is added to the logits in training",
        "Noisy top-k, as Shazeer et al. have it, is always on.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=(
            (
                "        experts = (logits",
                "        if self.training:\n            logits = logits + 0.3 * torch.ones_like(logits).cumsum(-1)\n        experts = (logits",
            ),
        ),
    ),
    # --- the experts
    Mistake(
        "gate-and-up-exchanged",
        "silu is applied to the up projection, not to the gate",
        "The product is symmetric.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((SWIGLU, "outputs = ((inputs @ gate.T) * silu(inputs @ up.T)) @ down.T"),),
    ),
    Mistake(
        "no-gate",
        "the up projection is left out: silu of the gate goes down alone",
        "An expert is an ordinary feed-forward network.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((SWIGLU, "outputs = silu(inputs @ gate.T) @ down.T"),),
    ),
    Mistake(
        "relu-for-silu",
        "the activation is ReLU, not SiLU",
        "Any activation will do.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((SWIGLU, "outputs = ((inputs @ gate.T).relu() * (inputs @ up.T)) @ down.T"),),
    ),
    Mistake(
        "gelu-for-silu",
        "the activation is GELU, not SiLU",
        "Transformers use GELU.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((SWIGLU, SWIGLU.replace("silu", "nn.functional.gelu")),),
    ),
    Mistake(
        "weights-forgotten",
        "the experts' results are added without their weights",
        "The sum of the experts is the output.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((ADDED, "out.index_add_(0, at, _widened(outputs))"),),
    ),
    Mistake(
        "weights-on-the-way-in",
        "a token is multiplied by its weight before the expert, which is not linear",
        "Scaling before or after is the same.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=(
            ("inputs = tokens[at]\n", "inputs = tokens[at] * weights[served, None]\n"),
            (ADDED, "out.index_add_(0, at, _widened(outputs))"),
        ),
    ),
    Mistake(
        "weights-of-the-token",
        "an assignment gets the weight that stands at its token's number in the flattened list",
        "Tokens and assignments are numbered alike.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((ADDED, "out.index_add_(0, at, _widened(outputs) * weights[at, None])"),),
    ),
    Mistake(
        "choices-outermost",
        "assignment a is taken to be of token a mod tokens, as if all first choices came first",
        "Flattening puts the columns one after the other.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=(("at = served // self.top_k", "at = served % len(tokens)"),),
    ),
    Mistake(
        "last-expert-wins",
        "an expert's result overwrites what other experts gave for the token",
        "Indexed assignment puts the results in place.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=((ADDED, "out[at] = _widened(outputs) * weights[served, None].to(out.dtype)"),),
    ),
    Mistake(
        "never-sorted-back",
        "the results stay sorted by expert and are added up as if they were in the order of the tokens",
        "What is put in order for the experts comes back in order.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=before_the_loop(NEVER_SORTED_BACK),
    ),
    Mistake(
        "residual-inside",
        "the layer adds its input to the output",
        "Every layer has a residual connection.",
        "test_the_output_is_the_dense_sum_over_the_chosen",
        change=(("out = torch.zeros_like(_widened(tokens))", "out = _widened(tokens).clone()"),),
    ),
    Mistake(
        "gathered-in-x",
        "the results are gathered in the memory of x",
        "x is not needed any more.",
        "test_the_layer_leaves_its_inputs_alone",
        change=(
            (
                "return out.to(x.dtype).reshape(x.shape)",
                "out = out.to(x.dtype).reshape(x.shape)\n        return x.copy_(out) if x.is_contiguous() and not x.requires_grad else out",
            ),
        ),
    ),
    Mistake(
        "left-in-float32",
        "half-precision tokens come back as float32",
        "Wider is better, so the result stays wide.",
        "test_the_layer_leaves_its_inputs_alone",
        change=(("return out.to(x.dtype).reshape(x.shape)", "return out.reshape(x.shape)"),),
    ),
    Mistake(
        "no-tokens-lose-their-shape",
        "an x without tokens comes back with one leading dimension, whatever it had",
        "Nothing has no shape.",
        "test_no_tokens_give_no_output",
        change=(
            (
                "        weights, experts = self.route(x)\n        tokens",
                "        if not x.numel():\n            return x.reshape(-1, self.d_model).clone()\n"
                "        weights, experts = self.route(x)\n        tokens",
            ),
        ),
    ),
    Mistake(
        "half-precision-sums",
        "softmax and the sum over experts run in half precision",
        "bfloat16 in, bfloat16 all the way.",
        "test_half_precision_experts_add_up_in_float32",
        change=(("return x.to(torch.promote_types(x.dtype, torch.float32))", "return x"),),
    ),
    Mistake(
        "every-expert-times-its-weight",
        "every expert is run on every token and multiplied by a weight that is mostly zero",
        "Zero times anything is zero.",
        "test_idle_experts_do_not_matter",
        change=before_the_loop(
            EVERY_EXPERT.replace("KEPT", "shares[:, e, None] * _widened(hidden @ self.w_down[e].T)")
        ),
    ),
    Mistake(
        "every-expert-then-a-mask",
        "every expert is run on every token, and the results of those that were not chosen are masked",
        "Sparse means that most results are not used.",
        "test_only_chosen_experts_are_computed",
        change=before_the_loop(
            EVERY_EXPERT.replace(
                "KEPT",
                "(shares[:, e, None] * _widened(hidden @ self.w_down[e].T)).where(shares[:, e, None] != 0, 0)",
            )
        ),
    ),
    Mistake(
        "every-token-for-the-busy",
        "each expert that somebody chose is run on every token, not only on its own",
        "Sparse means that idle experts are passed over.",
        "test_only_chosen_experts_are_computed",
        change=before_the_loop(EVERY_TOKEN_FOR_THE_BUSY),
    ),
    Mistake(
        "padded-groups",
        "all experts' groups are padded to the longest, so idle experts cost as much as busy ones",
        "One batched product is the fastest.",
        "test_only_chosen_experts_are_computed",
        change=before_the_loop(PADDED),
    ),
    Mistake(
        "token-by-token",
        "the tokens are looped over",
        "Every token has other experts, so each goes alone.",
        "test_tokens_are_not_looped_over",
        change=before_the_loop(TOKEN_BY_TOKEN),
    ),
    Mistake(
        "token-numbers-in-half-precision",
        "the numbers of the tokens go through the dtype of x, and bfloat16 has no odd numbers above 256",
        "Everything takes the dtype of x.",
        "test_hundreds_of_tokens_are_served",
        change=(
            ("at = served // self.top_k", "at = (served // self.top_k).to(x.dtype).long() % len(tokens)"),
        ),
    ),
    Mistake(
        "experts-begin-alike",
        "all experts begin with the same weights, and equally weighted ones stay the same",
        "The router will tell them apart.",
        "test_layers_share_nothing",
        change=(
            (
                "torch.randn(count, width, fan_in)",
                "torch.randn(width, fan_in).repeat(count, 1, 1)",
            ),
        ),
    ),
    Mistake(
        "seeded-in-the-constructor",
        "the constructor seeds the random numbers of the whole program, so all layers begin alike",
        "Reproducible weights want a seed.",
        "test_layers_share_nothing",
        change=(
            (
                "        self.router = nn.Linear(",
                "        torch.manual_seed(0)\n        self.router = nn.Linear(",
            ),
        ),
    ),
    Mistake(
        "too-many-choices-cut",
        "a top_k above n_experts is silently cut",
        "More experts than there are means all of them.",
        "test_bad_sizes_are_refused",
        change=(
            (
                "        if min(d_model, d_ff, n_experts, top_k) < 1 or top_k > n_experts:\n",
                "        top_k = min(top_k, n_experts)\n        if min(d_model, d_ff, n_experts, top_k) < 1:\n",
            ),
        ),
    ),
    Mistake(
        "sizes-below-zero",
        "a size of 0 is refused and one below it is not",
        "A size that is falsy is no size.",
        "test_bad_sizes_are_refused",
        change=(
            (
                "if min(d_model, d_ff, n_experts, top_k) < 1 or",
                "if not all((d_model, d_ff, n_experts, top_k)) or",
            ),
        ),
    ),
    # --- the loss
    Mistake(
        "loss-grows-with-top-k",
        "the shares are of the tokens, not of the assignments, so that balance costs top_k",
        "f is the share of tokens that an expert sees.",
        "test_balanced_routing_costs_one",
        change=(("/ experts.numel()", "* experts.shape[-1] / experts.numel()"),),
    ),
    Mistake(
        "loss-without-n",
        "the factor n_experts is missing, so balance costs 1 / n_experts",
        "A constant factor does not matter.",
        "test_balanced_routing_costs_one",
        change=((LOSS, "return (share * probabilities).sum().to(logits.dtype)"),),
    ),
    Mistake(
        "loss-by-sequence",
        "the loss is taken of each sequence of a batch apart, and averaged",
        "A sequence is what should be balanced.",
        "test_the_loss_equals_its_definition",
        change=(
            (
                LOSS,
                "if logits.ndim > 2:\n"
                "        return torch.stack([load_balancing_loss(*one) for one in zip(logits, experts)]).mean()\n"
                "    " + LOSS,
            ),
        ),
    ),
    Mistake(
        "loss-of-probabilities",
        "the mean probabilities are squared; the counts are not used",
        "Probabilities are soft counts.",
        "test_the_loss_equals_its_definition",
        change=((LOSS, "return (n_experts * (probabilities * probabilities).sum()).to(logits.dtype)"),),
    ),
    Mistake(
        "loss-of-counts",
        "the shares are squared, so the loss teaches nothing",
        "The counts are what should be even.",
        "test_the_loss_teaches_through_the_probabilities",
        change=(
            (LOSS, "return (n_experts * (share * share).sum() + 0 * probabilities.sum()).to(logits.dtype)"),
        ),
    ),
    Mistake(
        "loss-of-first-choices",
        "only the first choice of each token is counted",
        "Switch counts the argmax.",
        "test_the_loss_equals_its_definition",
        change=(
            (
                "share = _load(experts, n_experts).to(probabilities.dtype) / experts.numel()",
                "share = _load(experts[..., :1], n_experts).to(probabilities.dtype) / experts[..., :1].numel()\n    _load(experts, n_experts)",
            ),
        ),
    ),
    Mistake(
        "loss-of-the-best-logits",
        "the experts are counted by the largest logit, not by where the tokens were sent",
        "The logits say who was chosen.",
        "test_the_loss_equals_its_definition",
        change=(
            (
                "share = _load(experts, n_experts).to(probabilities.dtype) / experts.numel()",
                "_load(experts, n_experts)\n    best = logits.topk(experts.shape[-1]).indices\n    share = _load(best, n_experts).to(probabilities.dtype) / best.numel()",
            ),
        ),
    ),
    Mistake(
        "loss-counts-in-half-precision",
        "the assignments are counted in the dtype of the logits, and bfloat16 stops at 256",
        "A count is a sum of ones.",
        "test_the_loss_counts_hundreds_of_tokens",
        change=(
            (
                "share = _load(experts, n_experts).to(probabilities.dtype) / experts.numel()",
                "_load(experts, n_experts)\n    ones = torch.ones(experts.numel(), dtype=logits.dtype)\n    share = torch.zeros(n_experts, dtype=logits.dtype).index_add_(0, experts.flatten(), ones)\n    share = share.to(probabilities.dtype) / experts.numel()",
            ),
        ),
    ),
    Mistake(
        "loss-always-in-float32",
        "the loss takes the softmax in float32, even of float64 logits",
        "Routers run in float32.",
        "test_the_loss_equals_its_definition",
        change=(
            ("probabilities = _widened(logits).softmax(-1)", "probabilities = logits.float().softmax(-1)"),
        ),
    ),
    Mistake(
        "loss-of-another-shape",
        "the leading dimensions of experts may be any, as long as the tokens are as many",
        "Both are flattened anyway.",
        "test_a_bad_choice_costs_no_loss",
        change=(
            (
                "if experts.shape[:-1] != logits.shape[:-1]:",
                "if experts.shape[:-1].numel() != logits.shape[:-1].numel():",
            ),
        ),
    ),
    Mistake(
        "unknown-experts-unchecked",
        "experts outside 0 … n_experts − 1 are not looked for: torch fails on them somewhere",
        "They come from topk.",
        "test_a_bad_choice_costs_no_loss",
        change=(("    if ((experts < 0) | (experts >= n_experts)).any():", "    if False:"),),
    ),
    Mistake(
        "unknown-experts-counted",
        "experts outside 0 … n_experts − 1 are taken modulo n_experts",
        "Indices wrap around.",
        "test_a_bad_choice_costs_no_loss",
        change=(
            (
                '    if ((experts < 0) | (experts >= n_experts)).any():\n        raise ValueError(f"experts {experts.tolist()} must be in [0, {n_experts})")\n',
                "    experts = experts % n_experts\n",
            ),
        ),
    ),
    # --- capacity
    Mistake(
        "capacity-rounded-down",
        "the capacity is rounded down",
        "int() of the fair share.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=((CAPACITY, CAPACITY.replace("math.ceil", "int")),),
    ),
    Mistake(
        "capacity-rounded-to-nearest",
        "the capacity is rounded to the nearest number",
        "round() of the fair share.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=((CAPACITY, CAPACITY.replace("math.ceil", "round")),),
    ),
    Mistake(
        "capacity-by-choice",
        "first and second choices queue apart, and an expert has room for each of the queues",
        "A choice is dispatched at a time.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=before_the_loop(BY_CHOICE),
    ),
    Mistake(
        "longest-queue-of-nobody",
        "with a capacity the longest queue is asked for, which fails where there are no tokens",
        "There is always a token.",
        "test_room_for_all_drops_nothing",
        change=before_the_loop(
            "        if room is not None:\n            room = min(room, int(experts.bincount().max()))\n"
        ),
    ),
    Mistake(
        "capacity-one-short",
        "an expert serves one token fewer than it has room for",
        "Places are counted from 0, so the last one is below the capacity.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "            served = run[:room]\n",
                "            served = run if room is None else run[: room - 1]\n",
            ),
        ),
    ),
    Mistake(
        "capacity-without-top-k",
        "the capacity forgets that each token makes top_k assignments",
        "Tokens over experts is the fair share.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=((CAPACITY, "math.ceil(self.capacity_factor * tokens / self.n_experts)"),),
    ),
    Mistake(
        "last-tokens-served",
        "a full expert drops its first tokens and serves the last",
        "The most recent tokens matter most.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            ("served = run[:room]\n", "served = run if room is None else run[max(0, len(run) - room) :]\n"),
        ),
    ),
    Mistake(
        "strongest-tokens-served",
        "a full expert serves the tokens that weigh it most",
        "Drop what matters least, as in batch prioritised routing.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "served = run[:room]\n",
                "served = run if room is None else run[weights[run].argsort(descending=True, stable=True)][:room]\n",
            ),
        ),
    ),
    Mistake(
        "first-choices-served-first",
        "a full expert serves those whose first choice it was before the others",
        "GShard gives first choices precedence.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "served = run[:room]\n",
                "served = run if room is None else run[(run % self.top_k).argsort(stable=True)][:room]\n",
            ),
        ),
    ),
    Mistake(
        "renormalised-after-dropping",
        "the weights of what was not dropped are renormalised",
        "Weights must sum to one.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "        out = torch.zeros_like(_widened(tokens))\n",
                "        if room is not None:\n            kept = torch.zeros_like(weights).index_fill(0, torch.cat([run[:room] for run in runs]), 1)\n            kept = (weights * kept).reshape(-1, self.top_k)\n            weights = (kept / kept.sum(-1, keepdim=True).clamp(min=1e-30)).flatten()\n        out = torch.zeros_like(_widened(tokens))\n",
            ),
        ),
    ),
    Mistake(
        "dropped-tokens-pass-through",
        "a token that no expert had room for comes out as it went in",
        "The residual connection is inside.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "        return out.to(x.dtype).reshape(x.shape)\n",
                "        if room is not None:\n            alone = torch.ones(len(tokens), 1, dtype=torch.bool)\n            alone[torch.cat([run[:room] for run in runs]) // self.top_k] = False\n            out = torch.where(alone, tokens, out)\n        return out.to(x.dtype).reshape(x.shape)\n",
            ),
        ),
    ),
    Mistake(
        "capacity-in-training-only",
        "in evaluation nothing is dropped",
        "Dropping is for training.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            ("if self.capacity_factor is None:", "if self.capacity_factor is None or not self.training:"),
        ),
    ),
    Mistake(
        "capacity-by-row",
        "the capacity is that of one row of the batch",
        "A sequence is what the tokens are counted over.",
        "test_room_for_all_drops_nothing",
        change=(("self._capacity(len(tokens))", "self._capacity(x.shape[-2] if x.ndim > 1 else 1)"),),
    ),
    Mistake(
        "capacity-of-the-first-call",
        "the capacity is worked out in the first call and kept, however many tokens come later",
        "A layer has one capacity.",
        "test_an_expert_serves_the_first_tokens_it_has_room_for",
        change=(
            (
                "        return math.ceil(self.capacity_factor * tokens * self.top_k / self.n_experts)",
                "        if not hasattr(self, 'room'):\n"
                "            self.room = math.ceil(self.capacity_factor * tokens * self.top_k / self.n_experts)\n"
                "        return self.room",
            ),
        ),
    ),
    Mistake(
        "places-in-half-precision",
        "the places in an expert's queue are counted in the dtype of x, and bfloat16 has no odd numbers above 256",
        "A cumulative sum over the one-hot choices, in the dtype at hand.",
        "test_room_is_counted_for_hundreds_of_tokens",
        change=((DISPATCH, PLACES_IN_HALF + DISPATCH), ("served = run[:room]", "served = run")),
    ),
    Mistake(
        "negative-capacity",
        "a capacity_factor of 0 is refused and one below it is not",
        "Zero is what goes wrong.",
        "test_a_capacity_factor_must_be_positive",
        change=(("not capacity_factor > 0:", "capacity_factor == 0:"),),
    ),
    Mistake(
        "no-capacity-for-zero",
        "a capacity_factor of 0 is taken for none",
        "0 and None are both false.",
        "test_a_capacity_factor_must_be_positive",
        change=(
            (
                "if capacity_factor is not None and not capacity_factor > 0:",
                "if capacity_factor and capacity_factor < 0:",
            ),
            ("if self.capacity_factor is None:", "if not self.capacity_factor:"),
        ),
    ),
    # --- the bias
    Mistake(
        "bias-ignored",
        "the bias is never added",
        "Updating the bias is what balances.",
        "test_the_bias_chooses_and_weighs_nothing",
        change=(("(logits + self.bias).topk", "logits.topk"),),
    ),
    Mistake(
        "bias-beside-probabilities",
        "the bias is added to probabilities, of a softmax or of sigmoids, and not to the logits, to choose experts",
        "DeepSeek-V3 adds it to what the gate gives, which lies between 0 and 1.",
        "test_the_bias_chooses_and_weighs_nothing",
        change=(("(logits + self.bias).topk", "(logits.softmax(-1) + self.bias).topk"),),
    ),
    Mistake(
        "capacity-forgets-the-bias",
        "with a capacity the layer routes by the logits alone",
        "Dropping balances the load already.",
        "test_an_expert_has_room_for_those_whom_the_bias_sends",
        change=(
            (
                "        weights, experts = self.route(x)\n        tokens",
                "        weights, experts = self.route(x)\n"
                "        if self.capacity_factor is not None:\n"
                "            logits = _widened(x) @ _widened(self.router.weight).T\n"
                "            experts = logits.topk(self.top_k).indices\n"
                "            weights = logits.gather(-1, experts).softmax(-1).to(x.dtype)\n"
                "        tokens",
            ),
        ),
    ),
    Mistake(
        "bias-in-the-weights",
        "the bias is part of the logits that the weights are made of",
        "A bias belongs to the logits.",
        "test_the_bias_chooses_and_weighs_nothing",
        change=(
            (
                "        experts = (logits + self.bias).topk",
                "        logits = logits + self.bias\n        experts = logits.topk",
            ),
        ),
    ),
    Mistake(
        "probabilities-renormalised-to-nothing",
        "the weights are the chosen experts' probabilities among all, divided by their sum, which may be zero",
        "Softmax, top-k, renormalise is the same.",
        "test_the_weights_stay_right_where_the_bias_overrules",
        change=(
            (
                "        return logits.gather(-1, experts).softmax(-1)",
                "        gates = logits.softmax(-1).gather(-1, experts)\n        return (gates / gates.sum(-1, keepdim=True))",
            ),
        ),
    ),
    Mistake(
        "bias-a-parameter",
        "the bias is a parameter, which the optimiser moves",
        "What changes in training is a parameter.",
        "test_the_bias_is_a_buffer",
        change=(
            (
                'self.register_buffer("bias", torch.zeros(n_experts))',
                "self.bias = nn.Parameter(torch.zeros(n_experts))",
            ),
        ),
    ),
    Mistake(
        "bias-not-saved",
        "the bias is missing from the state dict",
        "A buffer is temporary.",
        "test_the_bias_is_a_buffer",
        change=(
            (
                'self.register_buffer("bias", torch.zeros(n_experts))',
                'self.register_buffer("bias", torch.zeros(n_experts), persistent=False)',
            ),
        ),
    ),
    Mistake(
        "bias-with-the-load",
        "busy experts become more likely to be chosen, and idle ones less",
        "The sign of load − mean.",
        "test_update_bias_moves_against_the_load",
        change=(
            (STEP, STEP.replace("load.sum() - self.n_experts * load", "self.n_experts * load - load.sum()")),
        ),
    ),
    Mistake(
        "bias-in-proportion",
        "the bias moves in proportion to how far the load is from the mean",
        "A larger error wants a larger step.",
        "test_update_bias_moves_against_the_load",
        change=((STEP, "self.bias += rate * (load.double().mean() - load)"),),
    ),
    Mistake(
        "bias-always-moves",
        "an expert whose load is the mean is moved too",
        "Not above the mean is below it.",
        "test_update_bias_moves_against_the_load",
        change=((STEP, "self.bias += torch.where(load > load.double().mean(), -rate, rate)"),),
    ),
    Mistake(
        "bias-rests-in-evaluation",
        "update_bias does nothing in evaluation",
        "Balancing is for training.",
        "test_update_bias_moves_against_the_load",
        change=((STEP, "self.bias += self.training * " + STEP.partition("+= ")[2]),),
    ),
    Mistake(
        "load-in-half-precision",
        "the load is counted in the dtype of the bias, and bfloat16 stops at 256",
        "Counts are added to the bias, so they have its dtype.",
        "test_update_bias_counts_hundreds_of_tokens",
        change=(
            (
                STEP,
                "ones = torch.ones(experts.numel(), dtype=self.bias.dtype)\n        load = torch.zeros_like(self.bias).index_add_(0, experts.flatten(), ones)\n        self.bias += rate * (load.mean() - load).sign()",
            ),
        ),
    ),
    Mistake(
        "bias-against-the-median",
        "loads are compared with the median, not with the mean",
        "Half of the experts should go up and half down.",
        "test_update_bias_moves_against_the_load",
        change=((STEP, "self.bias += rate * (load.median() - load).sign()"),),
    ),
    Mistake(
        "mean-load-rounded-down",
        "the mean load is a whole number, so that experts a little below it stay or go down",
        "Loads are whole numbers.",
        "test_update_bias_moves_against_the_load",
        change=(("(load.sum() - self.n_experts * load)", "(load.sum() // self.n_experts - load)"),),
    ),
    Mistake(
        "mean-of-busy-experts",
        "the mean load is taken over the experts that have any",
        "An idle expert has no load to count.",
        "test_update_bias_moves_against_the_load",
        change=(("(load.sum() - self.n_experts * load)", "(load.sum() - (load > 0).sum() * load)"),),
    ),
    Mistake(
        "bias-replaced",
        "update_bias puts a new tensor in the place of the buffer, which others still hold",
        "The module shows the new one.",
        "test_update_bias_moves_against_the_load",
        change=(("self.bias += rate *", "self.bias = self.bias + rate *"),),
    ),
    Mistake(
        "bias-updated-by-forward",
        "forward updates the bias in training by itself",
        "It is balanced while it trains.",
        "test_the_layer_leaves_its_inputs_alone",
        change=(
            (
                "        tokens, weights, experts = x.reshape(",
                "        if self.training:\n            self.update_bias(experts)\n        tokens, weights, experts = x.reshape(",
            ),
        ),
    ),
    Mistake(
        "bias-moved-before-the-check",
        "update_bias moves the bias, and then refuses the experts that it does not know",
        "An error is an error.",
        "test_unknown_experts_move_no_bias",
        change=(
            (
                "        load = _load(experts, self.n_experts)\n        # In",
                "        load = torch.stack([(experts == e).sum() for e in range(self.n_experts)])\n        # In",
            ),
            (STEP, STEP + "\n        _load(experts, self.n_experts)"),
        ),
    ),
    Mistake(
        "bias-counts-first-choices",
        "the load is that of the first choices only",
        "The first choice is the one that counts.",
        "test_update_bias_moves_against_the_load",
        change=(
            (
                "        load = _load(experts, self.n_experts)\n        # In",
                "        load = _load(experts[..., 0], self.n_experts)\n        # In",
            ),
        ),
    ),
    Mistake(
        "bias-starts-afresh",
        "each update starts from zero, not from the bias so far",
        "The bias is a function of the load.",
        "test_update_bias_moves_against_the_load",
        change=((STEP, "self.bias.copy_(rate * (load.sum() - self.n_experts * load).sign())"),),
    ),
)

EQUIVALENT = (
    (
        "zip(runs, self.w_gate.unbind(), self.w_up.unbind(), self.w_down.unbind(), strict=True)",
        "zip(runs, self.w_gate.unbind(), self.w_up.unbind(), self.w_down.unbind())",
        "all four hold one entry for each expert",
    ),
    ("True", "False", "the strictness of that zip"),
    (
        "if not len(run):\n    continue",
        "if False:\n    continue",
        "no tokens times the weights is nothing to add, whatever they hold",
    ),
    (
        "torch.randn(count, width, fan_in) / math.sqrt(fan_in)",
        "torch.randn(count, width, fan_in) * math.sqrt(fan_in)",
        "how experts begin is open, as long as they differ",
    ),
)
