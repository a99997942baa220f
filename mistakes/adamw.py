"""What people get wrong in AdamW."""

from dojo.mistake import Mistake

DECAY = "            w.mul_(1 - self.lr * self.weight_decay)\n"
FIRST = "            m.lerp_(g, 1 - beta1)\n"
SECOND = "            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)\n"
UPDATE = "            w.addcdiv_(m, v.sqrt().add_(floor), value=-rate)\n"
ROOT = "        root = math.sqrt(1 - self.betas[1] ** step)\n"
RATE = "        return self.lr * root / (1 - self.betas[0] ** step), self.eps * root\n"
TICK = '        self._state[i]["step"] += 1\n'
LIVE = "        live = [i for i, p in enumerate(self.params) if p.grad is not None]\n"
FRESH = "        self._state: dict[int, dict[str, Any]] = {}\n"
LOADED = '        self._state = deepcopy(saved["state"])\n'
HYPER = '        self.lr, self.betas = saved["lr"], saved["betas"]\n'
HYPER_TOO = '        self.eps, self.weight_decay = saved["eps"], saved["weight_decay"]\n'
TOGETHER_DECAY = "        torch._foreach_mul_(ps, 1 - self.lr * self.weight_decay)\n"
CORRECTED = '        corrected = [self._corrected(s["step"]) for s in states]\n'
GATHERED = '        gs, ms, vs = [p.grad for p in ps], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]\n'
SQUARED = "        torch._foreach_addcmul_(vs, gs, gs, 1 - beta2)\n"

MISTAKES = (
    # --- part 1: the rule
    Mistake(
        "decay-in-the-gradient",
        "weight decay is added to the gradient, as L2, and divided by the root with it",
        "Weight decay is the gradient of ½λ‖θ‖².",
        "test_decay_is_decoupled_from_the_gradient",
        change=((DECAY, "            g = g.add(w, alpha=self.weight_decay)\n"),),
    ),
    Mistake(
        "decay-without-lr",
        "weights shrink by weight_decay a step, not by lr·weight_decay",
        "Decoupled from the gradient means decoupled from the learning rate too.",
        "test_decay_is_decoupled_from_the_gradient",
        change=((DECAY, "            w.mul_(1 - self.weight_decay)\n"),),
    ),
    Mistake(
        "no-decay",
        "weight_decay is never used",
        "The decay belongs into the loss.",
        "test_decay_is_decoupled_from_the_gradient",
        change=((DECAY, ""),),
    ),
    Mistake(
        "decay-after-the-update",
        "the decay is applied after the update, and shrinks the update too",
        "The order of the two does not matter.",
        "test_decay_comes_before_the_update",
        change=((DECAY, ""), (UPDATE, UPDATE + DECAY)),
    ),
    Mistake(
        "decay-at-the-corrected-rate",
        "the decay takes the learning rate that is corrected for m's bias, ten times lr in the first step",
        "There is one step size, for all that moves the weight.",
        "test_decay_is_decoupled_from_the_gradient",
        change=(
            (
                DECAY,
                '            w.mul_(1 - self.lr / (1 - beta1 ** state["step"]) * self.weight_decay)\n',
            ),
        ),
    ),
    Mistake(
        "vectors-not-decayed",
        "only parameters of two dimensions and more decay",
        "Biases and norms are left out, as everybody does.",
        "test_decay_is_decoupled_from_the_gradient",
        change=((DECAY, "            if p.ndim > 1:\n    " + DECAY),),
    ),
    Mistake(
        "zero-gradient-is-none",
        "a gradient of zeros counts as none: neither decay nor momentum moves the weight",
        "Nothing to do where the gradient is zero.",
        "test_decay_is_decoupled_from_the_gradient",
        change=((LIVE, LIVE.replace("is not None", "is not None and p.grad.any()")),),
    ),
    Mistake(
        "forgetful-by-default",
        "β₂ is 0.95 unless it is given, as language models are trained",
        "Everybody trains with 0.95.",
        "test_the_snapshot_holds_what_is_pinned",
        change=(("= (0.9, 0.999),", "= (0.9, 0.95),"),),
    ),
    Mistake(
        "decay-off-by-default",
        "weight_decay is 0 unless it is given",
        "No regularisation that nobody asked for.",
        "test_every_step_equals_the_definition",
        change=(("weight_decay: float = 1e-2,", "weight_decay: float = 0.0,"),),
    ),
    Mistake(
        "looks-ahead",
        "m takes in the new gradient a second time, as in NAdam",
        "Nesterov's momentum is always the better one.",
        "test_the_first_step_is_lr_in_each_weight",
        change=((UPDATE, UPDATE.replace("w.addcdiv_(m,", "w.addcdiv_(m.lerp(g, 1 - beta1),")),),
    ),
    Mistake(
        "no-bias-correction",
        "the moments are used as they are, without correction for their start at zero",
        "The bias goes away by itself.",
        "test_the_first_step_is_lr_in_each_weight",
        change=((ROOT, ""), (RATE, "        return self.lr, self.eps\n")),
    ),
    Mistake(
        "second-moment-not-corrected",
        "only the first moment is corrected for its bias",
        "v only sets the scale.",
        "test_the_first_step_is_lr_in_each_weight",
        change=((ROOT, "        root = 1.0\n"),),
    ),
    Mistake(
        "steps-counted-from-two",
        "the correction is a step ahead: the counter is moved on twice before the first use",
        "t + 1 is safe against dividing by zero.",
        "test_the_first_step_is_lr_in_each_weight",
        change=((ROOT, "        step += 1\n" + ROOT),),
    ),
    Mistake(
        "mean-without-its-weight",
        "m adds the whole gradient, β₁m + g, as momentum in SGD does",
        "The first moment is momentum.",
        "test_the_first_step_is_lr_in_each_weight",
        change=((FIRST, "            m.mul_(beta1).add_(g)\n"),),
    ),
    Mistake(
        "no-root",
        "the update is divided by v̂, not by its root",
        "Adam divides by the variance.",
        "test_the_first_step_is_lr_in_each_weight",
        change=(
            (
                UPDATE,
                "            w.addcdiv_(m * (floor / self.eps), v + floor * floor / self.eps, value=-rate)\n",
            ),
        ),
    ),
    Mistake(
        "betas-swapped",
        "β₁ is used for the squares and β₂ for the mean",
        "The larger one is for momentum.",
        "test_every_step_equals_the_definition",
        change=(
            ("p, state, (beta1, beta2) = ", "p, state, (beta2, beta1) = "),
            (ROOT, ROOT.replace("[1]", "[0]")),
            (RATE, RATE.replace("[0]", "[1]")),
        ),
    ),
    Mistake(
        "square-of-the-mean",
        "v averages the squares of m, not of the gradient",
        "v is the square of m, smoothed.",
        "test_every_step_equals_the_definition",
        change=((SECOND, "            v.mul_(beta2).addcmul_(m, m, value=1 - beta2)\n"),),
    ),
    Mistake(
        "largest-second-moment",
        "v never falls below what it was: the maximum is kept, as in AMSGrad",
        "The denominator must not shrink.",
        "test_every_step_equals_the_definition",
        change=((SECOND, "            v.copy_(torch.maximum(v, v * beta2 + g * g * (1 - beta2)))\n"),),
    ),
    Mistake(
        "eps-under-the-root",
        "eps is added under the root",
        "√(v̂ + ε), as in the norms.",
        "test_eps_is_added_to_the_corrected_root",
        change=(
            (RATE, RATE.replace("self.eps * root", "self.eps * root * root")),
            (UPDATE, "            w.addcdiv_(m, v.add(floor).sqrt(), value=-rate)\n"),
        ),
    ),
    Mistake(
        "eps-before-the-correction",
        "eps is added to the uncorrected root, which makes it larger in the first steps",
        "√v + ε, and the corrections go into the learning rate.",
        "test_eps_is_added_to_the_corrected_root",
        change=((RATE, RATE.replace("self.eps * root", "self.eps")),),
    ),
    Mistake(
        "eps-fixed",
        "eps is always 1e-8, whatever was asked for",
        "eps only avoids a division by zero.",
        "test_eps_is_added_to_the_corrected_root",
        change=((RATE, RATE.replace("self.eps * root", "1e-8 * root")),),
    ),
    Mistake(
        "eps-of-a-millionth",
        "eps is 1e-6 unless it is given",
        "The default is that of the norms.",
        "test_the_snapshot_holds_what_is_pinned",
        change=(("eps: float = 1e-8,", "eps: float = 1e-6,"),),
    ),
    Mistake(
        "moments-in-float32",
        "the moments are float32, whatever the parameter is",
        "torch.zeros(p.shape) has the parameter's dtype.",
        "test_every_step_equals_the_definition",
        change=(
            (
                "            zeros = torch.zeros_like(self.params[i])\n",
                "            zeros = torch.zeros(self.params[i].shape)\n",
            ),
            (FIRST, "            m.mul_(beta1).add_(g, alpha=1 - beta1)\n"),
            (SECOND, "            v.mul_(beta2).add_(g * g, alpha=1 - beta2)\n"),
        ),
    ),
    # --- part 1: whose state, whose step
    Mistake(
        "one-clock-for-all",
        "one step counter serves all parameters, those without a gradient included",
        "A step is a step of the optimiser.",
        "test_a_parameter_without_a_gradient_is_left_out",
        change=(
            (FRESH, FRESH + "        self._steps = 0\n"),
            (LIVE, "        self._steps += 1\n" + LIVE),
            (TICK, '        self._state[i]["step"] = self._steps\n'),
        ),
    ),
    Mistake(
        "clock-ticks-per-parameter",
        "the one step counter is moved on once for each parameter",
        "self.t += 1 belongs into the loop.",
        "test_parameters_do_not_share_state",
        change=(
            (FRESH, FRESH + "        self._steps = 0\n"),
            (TICK, '        self._steps += 1\n        self._state[i]["step"] = self._steps\n'),
        ),
    ),
    Mistake(
        "no-gradient-is-zero",
        "a gradient of None counts as zero: momentum and decay move the weight all the same",
        "No gradient means a gradient of zero.",
        "test_a_parameter_without_a_gradient_is_left_out",
        change=(
            (
                LIVE,
                "        for p in self.params:\n            p.grad = torch.zeros_like(p) if p.grad is None else p.grad\n"
                + LIVE,
            ),
        ),
    ),
    Mistake(
        "decay-without-a-gradient",
        "weights without a gradient decay all the same",
        "Decay is decoupled, so it does not wait for a gradient.",
        "test_a_parameter_without_a_gradient_is_left_out",
        change=(
            (
                LIVE,
                LIVE + "        for p in self.params:\n            if p.grad is None:\n"
                "                p.mul_(1 - self.lr * self.weight_decay)\n",
            ),
        ),
    ),
    Mistake(
        "state-by-shape",
        "parameters of one shape share their moments",
        "The shape says which buffer is meant.",
        "test_parameters_do_not_share_state",
        change=(
            (
                "        if i not in self._state:\n",
                "        i = next(j for j, p in enumerate(self.params) if p.shape == self.params[i].shape)\n"
                "        if i not in self._state:\n",
            ),
        ),
    ),
    Mistake(
        "state-in-the-class",
        "all optimisers share one dictionary of states",
        "A dictionary in the class body is an attribute like any other.",
        "test_optimisers_do_not_share_state",
        change=(
            (FRESH, "        self._state = self._shared\n"),
            ("    def __init__(\n", "    _shared: dict[int, dict[str, Any]] = {}\n\n    def __init__(\n"),
        ),
    ),
    Mistake(
        "state-on-the-parameter",
        "the state hangs on the parameter, where the next optimiser finds it",
        "An attribute of the tensor is as good a place as any.",
        "test_optimisers_do_not_share_state",
        change=(
            (
                "        if i not in self._state:\n",
                "        if hasattr(self.params[i], 'state') and i not in self._state:\n"
                "            self._state[i] = self.params[i].state\n"
                "        if i not in self._state:\n",
            ),
            (TICK, "        self.params[i].state = self._state[i]\n" + TICK),
        ),
    ),
    # --- part 1: in place, and the graph
    Mistake(
        "parameters-replaced",
        "p.data is bound to a new tensor, and whoever shares the old memory keeps the old weights",
        "p.data = … is in place.",
        "test_parameters_change_in_place_and_gradients_do_not",
        change=(
            (
                "                self._move(i)\n",
                "                self.params[i].data = self.params[i].data.clone()\n                self._move(i)\n",
            ),
        ),
    ),
    Mistake(
        "gradient-squared-in-place",
        "the gradient is squared in place, so that p.grad is something else after the step",
        "Nobody looks at the gradient after the step.",
        "test_parameters_change_in_place_and_gradients_do_not",
        change=((SECOND, "            v.mul_(beta2).add_(g.mul_(g), alpha=1 - beta2)\n"),),
    ),
    Mistake(
        "graph-kept",
        "the step runs without no_grad, so that the moments hang on the graph of the gradients",
        "p.data is enough to stay out of autograd.",
        "test_no_step_is_recorded",
        change=(
            ("    @torch.no_grad()\n    def step", "    def step"),
            ("_pieces(p, p.grad, state", "_pieces(p.data, p.grad, state"),
            (
                "        torch._foreach_mul_(ps, 1",
                "        ps = [p.data for p in ps]\n        torch._foreach_mul_(ps, 1",
            ),
        ),
    ),
    Mistake(
        "autograd-left-off",
        "autograd is switched off for the step and never on again",
        "set_grad_enabled(False) ends with the function.",
        "test_no_step_is_recorded",
        change=(
            ("    @torch.no_grad()\n    def step", "    def step"),
            (LIVE, "        torch.set_grad_enabled(False)\n" + LIVE),
        ),
    ),
    Mistake(
        "autograd-switched-on",
        "autograd is on after the step, also where it was off before",
        "set_grad_enabled(True) puts back what was.",
        "test_no_step_is_recorded",
        change=(
            ("    @torch.no_grad()\n    def step", "    def step"),
            (LIVE, "        torch.set_grad_enabled(False)\n" + LIVE),
            (
                "                self._move(i)\n",
                "                self._move(i)\n        torch.set_grad_enabled(True)\n",
            ),
        ),
    ),
    Mistake(
        "flattened-copies",
        "parameters are moved through reshape(-1), which copies those that are not contiguous",
        "reshape gives a view.",
        "test_parameters_change_in_place_and_gradients_do_not",
        change=(
            ("    if all(x.is_contiguous() for x in tensors):\n", "    if tensors:\n"),
            ("x.view(-1).split(PIECE)", "x.reshape(-1).split(PIECE)"),
        ),
    ),
    Mistake(
        "one-piece-only",
        "of a large tensor only the first piece is moved",
        "The rest comes with the next step.",
        "test_tensors_may_be_large_or_empty",
        change=(("x.view(-1).split(PIECE)", "x.view(-1)[:PIECE].split(PIECE)"),),
    ),
    Mistake(
        "zero-grad-forgets",
        "zero_grad stops at the first parameter without a gradient",
        "Then there is nothing left to do.",
        "test_zero_grad_empties_every_gradient",
        change=(
            (
                "        for p in self.params:\n            p.grad = None\n",
                "        for p in self.params[:1]:\n            p.grad = None\n",
            ),
        ),
    ),
    Mistake(
        "zero-grad-multiplies",
        "zero_grad multiplies the gradients by 0, and an infinite one becomes NaN",
        "Anything times 0 is 0.",
        "test_zero_grad_empties_every_gradient",
        change=(
            (
                "            p.grad = None\n",
                "            p.grad = None if p.grad is None else p.grad * 0\n",
            ),
        ),
    ),
    Mistake(
        "powers-multiplied-up",
        "βᵗ is multiplied up step by step, so that a β assigned later does not count for the steps before",
        "A running product saves the power.",
        "test_hyperparameters_count_from_the_next_step_on",
        change=(
            (FRESH, FRESH + "        self._powers: dict[int, list[float]] = {}\n"),
            (
                TICK,
                TICK + "        powers = self._powers.get(i, [1.0, 1.0])\n"
                "        self._powers[i] = [power * beta for power, beta in zip(powers, self.betas)]\n",
            ),
            ("    def _corrected(self, step: int)", "    def _corrected(self, i: int)"),
            (ROOT, "        root = math.sqrt(1 - self._powers[i][1])\n"),
            (RATE, RATE.replace("self.betas[0] ** step", "self._powers[i][0]")),
            ('self._corrected(state["step"])', "self._corrected(i)"),
            ('self._corrected(s["step"]) for s in states', "self._corrected(i) for i in live"),
            (
                LOADED,
                LOADED
                + '        self._powers = {i: [b ** s["step"] for b in self.betas] for i, s in self._state.items()}\n',
            ),
        ),
    ),
    Mistake(
        "lr-fixed-at-the-start",
        "the learning rate is remembered from the constructor; assigning to lr changes nothing",
        "Hyperparameters do not change.",
        "test_hyperparameters_count_from_the_next_step_on",
        change=(
            (FRESH, FRESH + "        self._lr = lr\n"),
            (RATE, RATE.replace("self.lr", "self._lr")),
        ),
    ),
    Mistake(
        "anything-goes",
        "hyperparameters are not checked: a β of 1 divides zero by zero",
        "Nobody passes such a thing.",
        "test_hyperparameters_out_of_range_are_refused",
        change=(("not (min(lr, eps, weight_decay) >= 0 and all(0 <= beta < 1 for beta in betas))", "False"),),
    ),
    Mistake(
        "betas-unchecked",
        "betas are not checked: a β of 1 divides zero by zero",
        "Only the signs can be wrong.",
        "test_hyperparameters_out_of_range_are_refused",
        change=((" and all(0 <= beta < 1 for beta in betas)", ""),),
    ),
    Mistake(
        "beta-of-one",
        "a β of 1 is accepted, which divides zero by zero",
        "Both ends belong to the range.",
        "test_hyperparameters_out_of_range_are_refused",
        change=(("all(0 <= beta < 1 for", "all(0 <= beta <= 1 for"),),
    ),
    Mistake(
        "nothing-to-optimise",
        "an empty params is accepted",
        "Then there is just nothing to do.",
        "test_hyperparameters_out_of_range_are_refused",
        change=(("        if not self.params:\n", "        if self.params is None:\n"),),
    ),
    Mistake(
        "zeros-refused",
        "a learning rate, eps or decay of 0 is refused, though it is in range",
        "Zero makes no sense for any of them.",
        "test_hyperparameters_out_of_range_are_refused",
        change=(("min(lr, eps, weight_decay) >= 0", "min(lr, eps, weight_decay) > 0"),),
    ),
    # --- part 1: the snapshot
    Mistake(
        "corrected-moments-in-the-snapshot",
        "the snapshot holds the second moment's root instead of the moment",
        "The root is what is needed.",
        "test_the_snapshot_holds_what_is_pinned",
        change=(
            (
                '        return kept | {"state": deepcopy(self._state)}\n',
                "        state = deepcopy(self._state)\n"
                "        for one in state.values():\n"
                '            one["exp_avg_sq"].sqrt_()\n'
                '        return kept | {"state": state}\n',
            ),
            (
                LOADED,
                LOADED
                + '        for one in self._state.values():\n            one["exp_avg_sq"].square_()\n',
            ),
        ),
    ),
    Mistake(
        "steps-start-again",
        "after loading the steps count from the beginning",
        "The moments are the state.",
        "test_a_resumed_run_equals_one_that_never_stopped",
        change=(
            (LOADED, LOADED + '        for one in self._state.values():\n            one["step"] = 0\n'),
        ),
    ),
    Mistake(
        "hyperparameters-not-loaded",
        "loading takes the moments over and keeps the hyperparameters of the new optimiser",
        "Those were passed to the constructor.",
        "test_a_resumed_run_equals_one_that_never_stopped",
        change=((HYPER, ""), (HYPER_TOO, "")),
    ),
    Mistake(
        "old-states-survive-loading",
        "loading adds to the states that there are, instead of replacing them",
        "dict.update is for that.",
        "test_a_resumed_run_equals_one_that_never_stopped",
        change=((LOADED, '        self._state.update(deepcopy(saved["state"]))\n'),),
    ),
    Mistake(
        "snapshot-by-reference",
        "the snapshot holds the moments themselves, which later steps change",
        "A new dict is a copy.",
        "test_a_snapshot_is_independent_of_later_steps",
        change=(
            (
                "deepcopy(self._state)}",
                "{i: dict(one) for i, one in self._state.items()}}",
            ),
        ),
    ),
    Mistake(
        "loaded-by-reference",
        "loading keeps the tensors of the dict, and later steps change them",
        "Whoever passes the dict does not need it any more.",
        "test_a_snapshot_is_independent_of_later_steps",
        change=((LOADED, '        self._state = {i: dict(one) for i, one in saved["state"].items()}\n'),),
    ),
    Mistake(
        "loaded-unchecked",
        "a snapshot of another model is loaded without a word",
        "It will fail by itself in the next step.",
        "test_a_snapshot_that_does_not_fit_is_refused",
        change=(
            (
                '            if not state["exp_avg"].shape == state["exp_avg_sq"].shape == shape:\n',
                "            if shape == 0:\n",
            ),
        ),
    ),
    Mistake(
        "second-moment-unchecked",
        "only the shape of exp_avg is compared when a snapshot is loaded",
        "The other has the same shape.",
        "test_a_snapshot_that_does_not_fit_is_refused",
        change=(
            (
                'state["exp_avg"].shape == state["exp_avg_sq"].shape == shape:',
                'state["exp_avg"].shape == shape:',
            ),
        ),
    ),
    Mistake(
        "counted-from-the-end",
        "a state −1 is loaded, for the last parameter",
        "An index is too large or it is fine.",
        "test_a_snapshot_that_does_not_fit_is_refused",
        change=(("if 0 <= i < len(self.params) else None", "if i < len(self.params) else None"),),
    ),
    Mistake(
        "half-loaded",
        "the hyperparameters are taken over before the states are looked at, and stay when those do not fit",
        "An error ends the run anyway.",
        "test_a_snapshot_that_does_not_fit_is_refused",
        change=(
            (
                '        for i, state in saved["state"].items():\n',
                HYPER + HYPER_TOO + '        for i, state in saved["state"].items():\n',
            ),
        ),
    ),
    Mistake(
        "states-for-all-or-none",
        "a snapshot in which a parameter has no state yet is refused",
        "Every parameter has a state.",
        "test_a_resumed_run_equals_one_that_never_stopped",
        change=(
            (
                '        for i, state in saved["state"].items():\n',
                '        if len(saved["state"]) != len(self.params):\n'
                "            raise ValueError(f\"{len(saved['state'])} states for {len(self.params)} parameters\")\n"
                '        for i, state in saved["state"].items():\n',
            ),
        ),
    ),
    Mistake(
        "snapshot-emptied",
        "loading takes the states out of the dict, and nobody can load it again",
        "pop is a way to read.",
        "test_a_snapshot_is_independent_of_later_steps",
        change=((LOADED, '        self._state = deepcopy(saved.pop("state"))\n'),),
    ),
    Mistake(
        "elements-counted",
        "a snapshot is loaded if its moments have as many elements as the parameter, whatever their shape",
        "What has the right size fits.",
        "test_a_snapshot_that_does_not_fit_is_refused",
        change=(
            (
                '            if not state["exp_avg"].shape == state["exp_avg_sq"].shape == shape:\n',
                '            sizes = {state["exp_avg"].numel(), state["exp_avg_sq"].numel()}\n'
                "            if shape is None or sizes != {shape.numel()}:\n",
            ),
        ),
    ),
    # --- part 2
    Mistake(
        "foreach-ignored",
        "foreach=True runs the same loop",
        "The results are the same, so nobody will notice.",
        "test_foreach_takes_as_many_operations_for_many_parameters_as_for_few",
        change=(("        if self.foreach:\n", "        if self.foreach is None:\n"),),
    ),
    Mistake(
        "foreach-roots-one-by-one",
        "under foreach the roots are still taken one by one",
        "Only the updates have to be foreach.",
        "test_foreach_takes_as_many_operations_for_many_parameters_as_for_few",
        change=(("        roots = torch._foreach_sqrt(vs)\n", "        roots = [v.sqrt() for v in vs]\n"),),
    ),
    Mistake(
        "foreach-one-correction",
        "under foreach all parameters get the correction of the first",
        "They all have taken equally many steps.",
        "test_foreach_copes_with_gaps_and_other_dtypes",
        change=((CORRECTED, CORRECTED + "        corrected = corrected[:1] * len(ps)\n"),),
    ),
    Mistake(
        "foreach-oldest-correction",
        "under foreach all parameters get the correction of the one that has taken the most steps",
        "The optimiser's steps are everybody's.",
        "test_foreach_copes_with_gaps_and_other_dtypes",
        change=(
            (
                CORRECTED,
                '        most = max(s["step"] for s in states)\n'
                "        corrected = [self._corrected(most)] * len(ps)\n",
            ),
        ),
    ),
    Mistake(
        "foreach-lr-fixed-at-the-start",
        "under foreach the learning rate is that of the constructor, whatever is assigned to lr",
        "The lists of factors can be made once.",
        "test_foreach_reads_the_hyperparameters_at_every_step",
        change=(
            (FRESH, FRESH + "        self._lr = lr\n"),
            (TOGETHER_DECAY, TOGETHER_DECAY.replace("self.lr", "self._lr")),
            (
                CORRECTED,
                "        now, self.lr = self.lr, self._lr\n" + CORRECTED + "        self.lr = now\n",
            ),
        ),
    ),
    Mistake(
        "foreach-moments-out-of-line",
        "under foreach the moments are those of the first parameters, with a gradient or not",
        "The lists are all in the same order.",
        "test_foreach_copes_with_gaps_and_other_dtypes",
        change=((GATHERED, "        states = list(self._state.values())[: len(ps)]\n" + GATHERED),),
    ),
    Mistake(
        "foreach-squares-the-gradients",
        "under foreach the gradients are squared in place",
        "The underscore saves memory.",
        "test_foreach_equals_the_definition",
        change=(
            (
                SQUARED,
                "        torch._foreach_mul_(gs, gs)\n        torch._foreach_add_(vs, gs, alpha=1 - beta2)\n",
            ),
        ),
    ),
    Mistake(
        "foreach-without-decay",
        "under foreach the decay is forgotten",
        "The second form only needs the update.",
        "test_foreach_equals_the_definition",
        change=((TOGETHER_DECAY, ""),),
    ),
    Mistake(
        "foreach-decay-lost-in-bfloat16",
        "under foreach parameters of bfloat16 never decay",
        "The copy in float32 has seen the decay already.",
        "test_decay_reaches_parameters_of_every_dtype",
        change=((TOGETHER_DECAY, "        if ps[0].dtype != torch.bfloat16:\n    " + TOGETHER_DECAY),),
    ),
    Mistake(
        "foreach-on-nothing",
        "under foreach a step without any gradient raises, for the lists are empty",
        "There is always a gradient.",
        "test_a_step_without_any_gradient_does_nothing",
        change=(
            (
                "        if self.foreach:\n",
                "        if self.foreach:\n            self._move_together(live)\n            return\n",
            ),
        ),
    ),
    Mistake(
        "foreach-moments-made-once",
        "under foreach the lists of moments are made once, and do not know of what is loaded later",
        "The moments stay the same tensors for good.",
        "test_both_forms_resume_each_other",
        change=(
            (FRESH, FRESH + "        self._once: dict[int, dict[str, Any]] = {}\n"),
            (
                GATHERED,
                "        states = [self._once.setdefault(i, self._state[i]) for i in live]\n" + GATHERED,
            ),
        ),
    ),
    Mistake(
        "foreach-switches-autograd-on",
        "under foreach autograd is on after the step, also where it was off before",
        "set_grad_enabled(True) puts back what was.",
        "test_foreach_records_nothing_and_zero_grad_empties",
        change=(
            (
                "                self._move_together([i for i, _ in run])\n",
                "                self._move_together([i for i, _ in run])\n            torch.set_grad_enabled(True)\n",
            ),
            ("    @torch.no_grad()\n    def step", "    def step"),
            (LIVE, "        was = torch.is_grad_enabled()\n        torch.set_grad_enabled(False)\n" + LIVE),
            (
                "                self._move(i)\n",
                "                self._move(i)\n            torch.set_grad_enabled(was)\n",
            ),
        ),
    ),
    Mistake(
        "foreach-snapshot-by-name",
        "under foreach the snapshot holds all steps in one list, which the loop cannot load",
        "Each form has its own format.",
        "test_both_forms_resume_each_other",
        change=(
            (
                '        return kept | {"state": deepcopy(self._state)}\n',
                "        state = deepcopy(self._state)\n"
                "        if self.foreach:\n"
                '            return kept | {"state": list(state.values())}\n'
                '        return kept | {"state": state}\n',
            ),
            (
                '        for i, state in saved["state"].items():\n',
                '        if isinstance(saved["state"], list):\n            saved = saved | {"state": dict(enumerate(saved["state"]))}\n        for i, state in saved["state"].items():\n',
            ),
        ),
    ),
)

ALL_AT_ONCE = (
    "self.foreach:\n    ends = accumulate((self.params[i].numel() for i in live))\n"
    "    for _, run in groupby(zip(live, ends, strict=True), key=lambda item: item[1] // PIECE):\n"
    "        self._move_together([i for i, _ in run])\nelse:\n    for i in live:\n        self._move(i)"
)
PIECES = "zip(*(x.view(-1).split(PIECE) for x in tensors)"
FLAT = f"all((x.is_contiguous() for x in tensors)):\n    return {PIECES}, strict=True)"
SIZE = "the size of a piece decides about time alone"
LENGTHS = "strict only guards against what cannot happen: both are of one length"

EQUIVALENT = (
    ("262144", "262145", SIZE),
    ("262144", "262143", SIZE),
    ("1", "0", "grouping by position and not by elements makes another number of calls, all of them few"),
    ("if " + FLAT, "if False" + FLAT[FLAT.index(":") :], "tensors are walked whole: slower, and the same"),
    (
        "if " + ALL_AT_ONCE,
        "if True" + ALL_AT_ONCE[ALL_AT_ONCE.index(":") :],
        "both forms give the same results",
    ),
    ("False", "True", "the default of foreach: both forms give the same results"),
    (PIECES + ", strict=True)", PIECES + ")", LENGTHS),
    ("zip(live, ends, strict=True)", "zip(live, ends)", LENGTHS),
    ("True", "False", LENGTHS),
)
"""Mutants that do the same as the reference."""
