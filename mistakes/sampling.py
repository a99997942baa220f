"""What people get wrong in sampling."""

from dojo.mistake import Mistake

LEAST_K = "    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]\n"
CUT_K = "    return logits.masked_fill(logits < least, -math.inf)\n"
SEARCH = """    if (mass[..., -1] < p).any():
        ranked, mass = _around_the_edge(wide, total, p)
"""
PLACE = "    place = (mass < p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)\n"
CUT_P = "    return torch.where(wide < ranked.gather(-1, place), -math.inf, logits)\n"
LEAST_M = "    least = wide.amax(-1, keepdim=True) + (math.log(p) if p else -math.inf)\n"
CUT_M = "    return logits.masked_fill(wide < least, -math.inf)\n"
COLD = "    if temperature == 0:\n        return greedy(logits)\n"
WEIGHTS = "    weights = _filtered(_widened(logits), temperature, top_k, top_p, min_p).softmax(-1)\n"
DRAWN = "    drawn = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1, generator=generator)\n"
SHAPED = "    return drawn.reshape(logits.shape[:-1])\n"
ORDER = """    logits = temperature(logits, t)
    logits = logits if k is None else top_k(logits, k)
    logits = logits if p is None else top_p(logits, p)
    return logits if share is None else min_p(logits, share)
"""
FILTER_P = "    logits = logits if p is None else top_p(logits, p)\n"
STOP = "        if ended.all():\n            break\n"
TOKEN = "        token = sample(model(text)[:, -1], generator=generator, **options)\n"
FILL = "            token = token.masked_fill(ended, eos)\n"
ENDED = "            ended = token == eos\n"
MAYBE = "        if eos is not None:\n"
REST = "    return text[:, prompt.shape[1] :]\n"
NOTHING = "    text, ended = prompt, torch.zeros_like(prompt[:, 0], dtype=torch.bool)\n"


def first_of_batch(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """One draw of the uniform number for all rows."""
    if temperature == 0:
        return greedy(logits)
    weights = _filtered(_widened(logits), temperature, top_k, top_p, min_p).softmax(-1)
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    edges = weights.double().cumsum(-1)
    return (edges / edges[..., -1:] <= uniform).sum(-1)


def not_renormalised(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """An inverse CDF over what is left of the probabilities, which do not add up to one."""
    if temperature == 0:
        return greedy(logits)
    wide = _widened(logits)
    left = _filtered(wide, temperature, top_k, top_p, min_p) > -math.inf
    weights = (wide / temperature).softmax(-1) * left
    uniform = torch.rand(weights.shape[:-1], generator=generator, dtype=weights.dtype)[..., None]
    token = (weights.cumsum(-1) <= uniform).sum(-1)
    last = logits.shape[-1] - 1 - left.flip(-1).int().argmax(-1)
    return torch.minimum(token, last)


def cut_at_half_the_bits(logits, *, generator, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """An inverse CDF in the dtype of the logits."""
    if temperature == 0:
        return greedy(logits)
    weights = _filtered(_widened(logits), temperature, top_k, top_p, min_p).softmax(-1)
    edges = weights.double().cumsum(-1).to(logits.dtype).double()
    uniform = torch.rand(edges.shape[:-1], generator=generator, dtype=edges.dtype)[..., None]
    return (edges <= uniform * edges[..., -1:]).sum(-1)


MISTAKES = (
    # --- part 1: the filters
    Mistake(
        "greedy-over-the-batch",
        "greedy looks for the one largest logit of the whole batch",
        "argmax() needs no dimension.",
        "test_greedy_takes_a_largest_logit",
        change=(
            (
                "    return logits.argmax(-1)\n",
                "    return (logits.argmax() % logits.shape[-1]).expand(logits.shape[:-1]).clone()\n",
            ),
        ),
    ),
    Mistake(
        "temperature-multiplies",
        "logits are multiplied by the temperature",
        "Hotter means larger.",
        "test_temperature_divides_the_logits",
        change=(("    return logits / t\n", "    return logits * t\n"),),
    ),
    Mistake(
        "temperature-in-place",
        "the temperature divides the caller's logits in place",
        "logits /= t is the same.",
        "test_temperature_divides_the_logits",
        change=(("    return logits / t\n", "    return logits.div_(t)\n"),),
    ),
    Mistake(
        "top-k-one-too-many",
        "k + 1 tokens are kept",
        "The k-th is at index k.",
        "test_top_k_keeps_the_k_largest",
        change=((LEAST_K, LEAST_K.replace("min(k, ", "min(k + 1, ")),),
    ),
    Mistake(
        "top-k-removes-the-threshold",
        "the k-th largest itself is removed, and all that tie with it",
        "Everything up to the threshold goes.",
        "test_top_k_keeps_the_k_largest",
        change=(
            (
                CUT_K,
                "    return logits.masked_fill((logits <= least) & (least < logits.amax(-1, keepdim=True)), -math.inf)\n",
            ),
        ),
    ),
    Mistake(
        "top-k-puts-zero",
        "removed logits are set to 0, which is not improbable at all",
        "Zero means no probability.",
        "test_top_k_keeps_the_k_largest",
        change=((CUT_K, "    return logits.masked_fill(logits < least, 0)\n"),),
    ),
    Mistake(
        "top-k-of-the-batch",
        "one threshold, that of the first row, serves all rows",
        "The batch is one distribution.",
        "test_top_k_keeps_the_k_largest",
        change=(
            (
                CUT_K,
                "    least = least.reshape(-1)[0]\n    return logits.masked_fill((logits < least) & (logits < logits.amax(-1, keepdim=True)), -math.inf)\n",
            ),
        ),
    ),
    Mistake(
        "top-k-wider-than-the-vocabulary",
        "a k beyond the vocabulary raises",
        "Nobody asks for more than there is.",
        "test_top_k_keeps_the_k_largest",
        change=((LEAST_K, LEAST_K.replace("min(k, logits.shape[-1])", "k")),),
    ),
    Mistake(
        "filters-in-place",
        "top_k fills the caller's logits with −inf",
        "The underscore saves memory.",
        "test_top_k_keeps_the_k_largest",
        change=(
            (
                CUT_K,
                "    return logits.clone(memory_format=torch.contiguous_format).masked_fill_(logits < least, -math.inf) if logits.stride(0) == 0 else logits.masked_fill_(logits < least, -math.inf)\n",
            ),
        ),
    ),
    Mistake(
        "nucleus-falls-short",
        "the token that crosses p is left out, unless it is the first",
        "The nucleus must not exceed p.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=(
            (
                PLACE,
                PLACE.replace(
                    "(mass < p).sum(-1, keepdim=True)", "((mass < p).sum(-1, keepdim=True) - 1)"
                ).replace("max=", "0, "),
            ),
        ),
    ),
    Mistake(
        "nucleus-may-be-empty",
        "the token that crosses p is left out even if it is the first: nothing is left",
        "cumsum > p is what goes.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=((CUT_P, "    return logits.masked_fill(wide <= ranked.gather(-1, place), -math.inf)\n"),),
    ),
    Mistake(
        "nucleus-one-too-many",
        "one token more than needed is kept",
        "Shift the mask by one, to be safe.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=((PLACE, PLACE.replace("keepdim=True)", "keepdim=True).add(1)")),),
    ),
    Mistake(
        "nucleus-of-the-least-likely",
        "the sum starts at the least likely tokens, and those are kept",
        "sort() is in descending order.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=(
            (
                CUT_P,
                "    ranked, mass = ranked.flip(-1), (ranked.flip(-1) - total).exp().cumsum(-1)\n    place = (mass < p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)\n    return logits.masked_fill(wide > ranked.gather(-1, place), -math.inf)\n",
            ),
        ),
    ),
    Mistake(
        "sorted-mask-on-unsorted-logits",
        "the mask is found in sorted order and applied to the logits as they stand",
        "Position i of the mask is token i.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=(
            (CUT_P, "    return logits.masked_fill(torch.arange(logits.shape[-1]) > place, -math.inf)\n"),
        ),
    ),
    Mistake(
        "top-p-ignored",
        "top_p returns the logits as they are",
        "Temperature is enough.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=((CUT_P, "    return logits.clone()\n"),),
    ),
    Mistake(
        "probabilities-returned",
        "top_p returns the probabilities of the nucleus, not its logits",
        "The next step wants probabilities anyway.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=(
            (
                CUT_P,
                "    kept = wide >= ranked.gather(-1, place)\n"
                "    return torch.where(kept, (wide - total).exp(), -math.inf).to(logits.dtype)\n",
            ),
        ),
    ),
    Mistake(
        "nucleus-of-the-batch",
        "all rows are cut at the same place in their order, the widest that any of them needs",
        "Tensors have no ragged rows.",
        "test_the_nucleus_is_the_smallest_set_that_reaches_p",
        change=((PLACE, PLACE + "    place = place.amax().expand(place.shape)\n"),),
    ),
    Mistake(
        "nucleus-summed-in-half-precision",
        "half-precision probabilities are added up in half precision",
        "cumsum keeps enough digits.",
        "test_large_vocabularies_have_a_nucleus_too",
        change=(
            ("import math\nfrom collections", "import itertools\nimport math\nfrom collections"),
            (
                SEARCH,
                SEARCH + "    if logits.itemsize < 4:\n"
                "        ranked = wide.sort(descending=True).values\n"
                "        steps = (ranked - total).exp().to(logits.dtype).unbind(-1)\n"
                "        mass = torch.stack(list(itertools.accumulate(steps)), -1)\n",
            ),
        ),
    ),
    Mistake(
        "nucleus-of-rounded-probabilities",
        "the probabilities of half types are rounded to half precision before they are added up",
        "It is the sum that needs the digits.",
        "test_the_token_that_crosses_p_belongs_to_the_nucleus",
        change=(
            (
                SEARCH,
                SEARCH + "    if logits.itemsize < 4:\n"
                "        ranked = wide.sort(descending=True).values\n"
                "        mass = logits.softmax(-1).sort(descending=True).values.float().cumsum(-1)\n",
            ),
        ),
    ),
    Mistake(
        "only-the-first-thousand",
        "tokens beyond the first 1,024 are never kept, however flat the distribution",
        "The nucleus is always small.",
        "test_large_vocabularies_have_a_nucleus_too",
        change=((SEARCH, ""),),
    ),
    Mistake(
        "no-shift",
        "exp is taken of the raw logits, and overflows",
        "Softmax is exp over its sum.",
        "test_filters_do_not_overflow",
        change=(
            (
                "    total = wide.logsumexp(-1, keepdim=True)\n",
                "    total = wide.exp().sum(-1, keepdim=True).log()\n",
            ),
            (
                SEARCH,
                "    if (mass[..., -1] < p).any():\n"
                "        ranked = wide.sort(descending=True).values\n"
                "        mass = (ranked - total).exp().cumsum(-1)\n",
            ),
        ),
    ),
    Mistake(
        "min-p-absolute",
        "min_p removes every token below probability p, whatever the likeliest has",
        "min_p is the least probability.",
        "test_min_p_is_relative_to_the_likeliest",
        change=(
            (
                LEAST_M,
                "    top = wide.amax(-1, keepdim=True)\n    least = torch.minimum(top, wide.logsumexp(-1, keepdim=True) + (math.log(p) if p else -math.inf))\n",
            ),
        ),
    ),
    Mistake(
        "min-p-of-the-batch",
        "min_p compares with the likeliest token of the whole batch, so that a row may lose all of its own",
        "max() finds the largest.",
        "test_min_p_is_relative_to_the_likeliest",
        change=(
            (LEAST_M, "    chances = wide.softmax(-1)\n    least = p * chances.max()\n"),
            (CUT_M, CUT_M.replace("wide < least", "chances < least")),
        ),
    ),
    Mistake(
        "min-p-of-logits",
        "min_p compares logits with p times the largest logit",
        "A share of the best is a share of its score.",
        "test_min_p_is_relative_to_the_likeliest",
        change=(
            (LEAST_M, "    top = wide.amax(-1, keepdim=True)\n    least = torch.minimum(top, top * p)\n"),
        ),
    ),
    Mistake(
        "min-p-strict",
        "min_p keeps only what is above the threshold: p = 1 keeps nothing",
        "At least and more than are the same for floats.",
        "test_min_p_is_relative_to_the_likeliest",
        change=((CUT_M, "    return logits.masked_fill(wide <= least, -math.inf)\n"),),
    ),
    Mistake(
        "anything-goes",
        "arguments out of range are not refused",
        "Nobody passes such a thing.",
        "test_filters_refuse_what_makes_no_sense",
        change=(
            ("    if not 0 <= p <= 1:\n", "    if p == math.inf:\n"),
            (LEAST_M, "    least = wide.amax(-1, keepdim=True) + (math.log(p) if p > 0 else -math.inf)\n"),
            (PLACE, PLACE.replace("clamp(max=", "clamp(0, ")),
        ),
    ),
    Mistake(
        "assertions",
        "arguments out of range raise AssertionError, not ValueError",
        "assert is shorter.",
        "test_filters_refuse_what_makes_no_sense",
        change=(
            ('raise ValueError(f"got temperature', 'raise AssertionError(f"got temperature'),
            ('raise ValueError(f"got k', 'raise AssertionError(f"got k'),
            ('raise ValueError(f"got p {', 'raise AssertionError(f"got p {'),
            ('raise ValueError(f"got prompt', 'raise AssertionError(f"got prompt'),
        ),
    ),
    Mistake(
        "negative-temperature-is-greedy",
        "sample takes a temperature below 0 for 0",
        "temperature <= 0 means greedy.",
        "test_filters_refuse_what_makes_no_sense",
        change=((COLD, COLD.replace("temperature == 0", "temperature <= 0")),),
    ),
    # --- part 1: the draw
    Mistake(
        "always-the-likeliest",
        "sample takes the likeliest token at any temperature",
        "The likeliest token is the best one.",
        "test_likely_tokens_are_drawn",
        change=((DRAWN, "    drawn = weights.argmax(-1)\n"),),
    ),
    Mistake(
        "drawn-evenly",
        "every token that the filters leave is equally likely",
        "The filters have done the choosing.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        change=((DRAWN, "    weights = (weights > 0).to(weights.dtype)\n" + DRAWN),),
    ),
    Mistake(
        "zero-temperature-is-none",
        "a temperature of 0 counts as none: sample draws at temperature 1",
        "if temperature: … else leave it.",
        "test_without_temperature_it_is_greedy",
        change=((COLD, "    temperature = temperature or 1.0\n"),),
    ),
    Mistake(
        "zero-top-p-is-none",
        "top_p = 0 counts as None: nothing is removed",
        "if top_p: is shorter.",
        "test_without_temperature_it_is_greedy",
        change=((FILTER_P, FILTER_P.replace("p is None", "not p")),),
    ),
    Mistake(
        "temperature-last",
        "the temperature is applied after the filters",
        "First choose who may, then how hot.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                ORDER,
                "    logits = logits if k is None else top_k(logits, k)\n"
                + FILTER_P
                + "    logits = logits if share is None else min_p(logits, share)\n    return temperature(logits, t)\n",
            ),
        ),
    ),
    Mistake(
        "top-p-before-top-k",
        "top_p comes before top_k, and sees the mass of all tokens",
        "Both only remove tokens, so the order does not matter.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                "    logits = logits if k is None else top_k(logits, k)\n" + FILTER_P,
                FILTER_P + "    logits = logits if k is None else top_k(logits, k)\n",
            ),
        ),
    ),
    Mistake(
        "min-p-before-top-p",
        "min_p comes before top_p",
        "Both only remove tokens, so the order does not matter.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                FILTER_P + "    return logits if share is None else min_p(logits, share)\n",
                "    logits = logits if share is None else min_p(logits, share)\n"
                + FILTER_P
                + "    return logits\n",
            ),
        ),
    ),
    Mistake(
        "min-p-left-out",
        "sample never applies min_p",
        "top_p does the same.",
        "test_only_what_the_filters_leave_is_drawn",
        change=(("    return logits if share is None else min_p(logits, share)\n", "    return logits\n"),),
    ),
    Mistake(
        "weights-not-renormalised",
        "an inverse CDF runs over weights that do not add up to one: the last token left gets the rest",
        "What is removed is just 0.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        define=(("sample", not_renormalised),),
    ),
    Mistake(
        "one-uniform-for-all-rows",
        "all rows of a batch are drawn with the same random number",
        "One draw a call.",
        "test_draws_are_independent",
        define=(("sample", first_of_batch),),
    ),
    Mistake(
        "noise-on-the-probabilities",
        "Gumbel noise is added to the probabilities, not to the logits",
        "The noise belongs to what is drawn from.",
        "test_every_token_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                DRAWN,
                "    noise = -torch.rand(weights.shape, generator=generator, dtype=torch.float64).log()\n"
                "    drawn = (weights - noise.log()).masked_fill(weights == 0, -math.inf).argmax(-1)\n",
            ),
        ),
    ),
    Mistake(
        "cdf-in-half-precision",
        "the CDF is rounded to half precision, and moves in steps that skip most tokens of a large vocabulary",
        "A CDF has the dtype of the logits.",
        "test_no_token_is_skipped_in_half_precision",
        define=(("sample", cut_at_half_the_bits),),
    ),
    Mistake(
        "shifted-in-place",
        "sample subtracts the largest logit in place",
        "softmax does not mind a shift.",
        "test_sample_returns_one_token_for_each_row",
        change=(
            (
                WEIGHTS,
                "    if 0 not in logits.stride():\n"
                "        logits.sub_(logits.amax(-1, keepdim=True))\n" + WEIGHTS,
            ),
        ),
    ),
    Mistake(
        "squeezed",
        "the tokens are squeezed, and a batch of one row is none any more",
        "squeeze() removes the last dimension.",
        "test_sample_returns_one_token_for_each_row",
        change=(
            (SHAPED, "    return drawn.reshape(logits.shape[:-1]).squeeze()\n"),
            (TOKEN, TOKEN.replace("**options)", "**options).reshape(-1)")),
        ),
    ),
    Mistake(
        "columns-of-tokens",
        "tokens come back as (…, 1)",
        "multinomial's shape is as good as any.",
        "test_sample_returns_one_token_for_each_row",
        change=(
            (COLD, "    if temperature == 0:\n        return greedy(logits)[..., None]\n"),
            (SHAPED, "    return drawn.reshape(*logits.shape[:-1], 1)\n"),
            (TOKEN, TOKEN.replace("**options)", "**options)[..., 0]")),
        ),
    ),
    Mistake(
        "global-generator",
        "the draw uses torch's global random state, not the generator",
        "torch.manual_seed takes care of it.",
        "test_the_generator_is_the_only_source_of_randomness",
        change=((DRAWN, DRAWN.replace(", generator=generator", "")),),
    ),
    Mistake(
        "generator-made-anew",
        "each call seeds a generator of its own: every call draws the same",
        "A fixed seed makes it reproducible.",
        "test_the_generator_moves_on",
        change=(
            (
                DRAWN,
                DRAWN.replace(
                    "generator=generator", "generator=torch.Generator().manual_seed(generator.initial_seed())"
                ),
            ),
        ),
    ),
    Mistake(
        "logits-in-half-precision",
        "logits are rounded to half precision, in which neighbours are equal",
        "bfloat16 is precise enough for a ranking.",
        "test_neighbouring_numbers_are_told_apart",
        change=(
            ("    return logits.argmax(-1)\n", "    return logits.bfloat16().argmax(-1)\n"),
            (LEAST_K, "    rough = logits.bfloat16()\n" + LEAST_K.replace("logits.topk", "rough.topk")),
            (CUT_K, CUT_K.replace("logits < least", "rough < least")),
        ),
    ),
    Mistake(
        "min-p-in-half-precision",
        "min_p compares half-precision probabilities, which are off by half a percent",
        "The result is in the dtype that came in.",
        "test_min_p_tells_just_above_from_just_below",
        change=(
            (LEAST_M, "    chances = logits.softmax(-1)\n    least = p * chances.amax(-1, keepdim=True)\n"),
            (CUT_M, CUT_M.replace("wide < least", "chances < least")),
        ),
    ),
    Mistake(
        "fifty-at-most",
        "sample never looks beyond the fifty likeliest tokens, though no top_k is given",
        "Everybody's default for top_k is 50.",
        "test_a_large_half_precision_vocabulary_is_drawn_evenly",
        change=(
            (ORDER, ORDER.replace("logits if k is None else top_k(logits, k)", "top_k(logits, k or 50)")),
        ),
    ),
    Mistake(
        "low-temperature-is-greedy",
        "a temperature below 0.1 is taken for 0: of equal tokens one always comes",
        "So cold a distribution is as good as its maximum.",
        "test_a_low_temperature_draws_among_equals",
        change=((COLD, COLD.replace("temperature == 0", "0 <= temperature < 0.1")),),
    ),
    Mistake(
        "epsilon-on-the-probabilities",
        "an ε is added to every probability, and in a large vocabulary all of them together outweigh the likely tokens",
        "An ε keeps the draw from failing.",
        "test_many_unlikely_tokens_stay_unlikely",
        change=((DRAWN, "    weights = (weights + 1e-4) * (weights > 0)\n" + DRAWN),),
    ),
    Mistake(
        "few-seeds",
        "each call seeds a generator with a number below 1,024: the calls soon repeat one another",
        "A random seed is random enough.",
        "test_no_two_calls_draw_alike",
        change=(
            (
                DRAWN,
                "    seed = int(torch.randint(1024, (), generator=generator))\n"
                + DRAWN.replace("generator=generator", "generator=torch.Generator().manual_seed(seed)"),
            ),
        ),
    ),
    Mistake(
        "temperature-a-little-off",
        "sample draws at a temperature that is a few percent too high",
        "A little more temperature makes up for rounding.",
        "test_one_token_is_as_likely_as_many_others_together",
        change=((ORDER, ORDER.replace("temperature(logits, t)", "temperature(logits, 1.05 * t)")),),
    ),
    Mistake(
        "read-from-a-copy",
        "the draw reads a copy of the generator, which itself moves on by one number only",
        "One number a call is enough to be different.",
        "test_draws_are_independent",
        change=(
            (
                DRAWN,
                "    copied = torch.Generator().set_state(generator.get_state())\n"
                "    torch.rand(1, generator=generator)\n"
                + DRAWN.replace("generator=generator", "generator=copied"),
            ),
        ),
    ),
    # --- part 2
    Mistake(
        "first-place-not-last",
        "the next token is drawn from the logits of the first place",
        "model(text)[:, 0] is the row of the batch.",
        "test_greedy_text_is_the_likeliest_token_again_and_again",
        change=((TOKEN, TOKEN.replace("[:, -1]", "[:, 0]")),),
    ),
    Mistake(
        "only-the-newest-token",
        "the model is shown only the newest token, without the text before it",
        "The model remembers the rest.",
        "test_greedy_text_is_the_likeliest_token_again_and_again",
        change=((TOKEN, TOKEN.replace("model(text)", "model(text[:, -1:])")),),
    ),
    Mistake(
        "a-window-of-the-text",
        "the model is shown the last sixteen tokens only",
        "What is far back hardly matters.",
        "test_greedy_text_is_the_likeliest_token_again_and_again",
        change=((TOKEN, TOKEN.replace("model(text)", "model(text[:, -16:])")),),
    ),
    Mistake(
        "prompt-returned-too",
        "the prompt is returned with the new tokens",
        "The text is the result.",
        "test_greedy_text_is_the_likeliest_token_again_and_again",
        change=((REST, "    return text\n"),),
    ),
    Mistake(
        "options-not-passed-on",
        "generate passes the temperature on, and forgets the filters",
        "The defaults are fine.",
        "test_every_new_token_is_one_that_sample_may_draw",
        change=((TOKEN, TOKEN.replace("**options", "temperature=temperature")),),
    ),
    Mistake(
        "a-seed-for-each-token",
        "each token is drawn with a fresh copy of the generator",
        "The generator must be left as it was.",
        "test_the_text_is_as_likely_as_its_tokens_in_turn",
        change=(
            (
                TOKEN,
                "        copied = torch.Generator()\n        copied.set_state(generator.get_state())\n"
                + TOKEN.replace("generator=generator", "generator=copied"),
            ),
        ),
    ),
    Mistake(
        "ends-with-the-first-row",
        "the text ends when any row has ended",
        "eos ends the text.",
        "test_a_row_ends_with_its_first_eos",
        change=((STOP, STOP.replace("all()", "any()")),),
    ),
    Mistake(
        "rows-go-on-after-eos",
        "a row that has ended goes on until all have",
        "What follows eos is cut off later.",
        "test_a_row_ends_with_its_first_eos",
        change=((FILL, ""), (ENDED, "            ended = ended | (token == eos)\n")),
    ),
    Mistake(
        "padded-with-zero",
        "a row that has ended is filled with 0, not with eos",
        "0 is padding.",
        "test_a_row_ends_with_its_first_eos",
        change=(
            (FILL, ""),
            (
                ENDED,
                "            token = token.masked_fill(ended, 0)\n            ended = ended | (token == eos)\n",
            ),
        ),
    ),
    Mistake(
        "eos-zero-is-none",
        "an eos of 0 counts as none",
        "if eos: is shorter.",
        "test_a_row_ends_with_its_first_eos",
        change=((MAYBE, "        if eos:\n"),),
    ),
    Mistake(
        "eos-of-the-prompt-counts",
        "a row whose prompt holds eos has ended before it begins",
        "eos anywhere ends the row.",
        "test_a_row_ends_with_its_first_eos",
        change=((NOTHING, "    text, ended = prompt, (prompt == (-1 if eos is None else eos)).any(1)\n"),),
    ),
    Mistake(
        "as-many-columns-as-allowed",
        "the result always has max_new_tokens columns, though all rows have ended before",
        "What is left over is filled with eos.",
        "test_a_row_ends_with_its_first_eos",
        change=(
            (
                REST,
                "    rest = prompt.shape[1] + max_new_tokens - text.shape[1]\n"
                "    filled = torch.nn.functional.pad(text, (0, rest), value=eos or 0)\n"
                "    return filled[:, prompt.shape[1] :]\n",
            ),
        ),
    ),
    Mistake(
        "no-text-of-none",
        "max_new_tokens = 0 raises",
        "Nobody asks for nothing.",
        "test_bad_prompts_and_lengths_are_refused",
        change=(("or max_new_tokens < 0:", "or max_new_tokens <= 0:"),),
    ),
    Mistake(
        "eos-left-out",
        "the column with the last eos is cut off",
        "eos is no text.",
        "test_a_row_ends_with_its_first_eos",
        change=((REST, "    return text[:, prompt.shape[1] : text.shape[1] - bool(ended.all())]\n"),),
    ),
    Mistake(
        "runs-to-the-end",
        "the model runs on to max_new_tokens after all rows have ended",
        "Ended rows cost nothing.",
        "test_the_model_runs_once_for_each_column",
        change=(
            (STOP, "        done = bool(ended.all())\n"),
            (
                "        text = torch.cat([text, token[:, None]], dim=1)\n",
                "        text = text if done else torch.cat([text, token[:, None]], dim=1)\n",
            ),
        ),
    ),
    Mistake(
        "no-check-of-the-prompt",
        "a prompt of any shape is taken, and a negative length is none",
        "The model will complain.",
        "test_bad_prompts_and_lengths_are_refused",
        change=(
            (
                "    if prompt.ndim != 2 or prompt.shape[1] == 0 or max_new_tokens < 0:\n",
                "    if prompt.ndim != 2:\n",
            ),
        ),
    ),
    Mistake(
        "share-softened-with-the-temperature",
        "below a temperature of 1, min_p is raised to the power of 1/temperature along with the probabilities",
        "The threshold has to be as sharp as the distribution.",
        "test_shares_are_those_after_the_temperature",
        change=(
            (
                "return logits if share is None else min_p(logits, share)",
                "return logits if share is None else min_p(logits, share ** max(1.0, 1 / t))",
            ),
        ),
    ),
)

SLOWER = "the head and the bins find the same edge; only the time that they take differs"
HALF = "half types have two bytes, float32 is what it becomes"
EQUIVALENT = (
    ("1024", "1025", SLOWER),
    ("1024", "1023", SLOWER),
    ("4096", "4097", SLOWER),
    ("4096", "4095", SLOWER),
    ("256", "257", SLOWER),
    ("256", "255", SLOWER),
    ("1", "2", SLOWER),
    ("1", "0", SLOWER),
    ("mass[..., -1] < p", "mass[..., -1] <= p", SLOWER),
    (
        "if (mass[..., -1] < p).any():\n    ranked, mass = _around_the_edge(wide, total, p)",
        "if True:\n    ranked, mass = _around_the_edge(wide, total, p)",
        SLOWER,
    ),
    ("(ranked - total).exp().cumsum", "(ranked - total).exp().cumprod", SLOWER),
    (
        "(logits.amax(-1, keepdim=True) - logits) * BINS_A_NAT",
        "(logits.amax(-1, keepdim=True) - logits) / BINS_A_NAT",
        SLOWER,
    ),
    ("mass < p", "mass <= p", "it shows only where the mass is p to the last bit, which rounding decides"),
    ("0", "-1", "of the prompt's first column only the shape is used, which the last has too"),
    ("x.itemsize < 4", "x.itemsize <= 4", HALF),
    ("4", "5", HALF),
    ("4", "3", HALF),
)
"""Mutants that do the same as the reference, with the reason."""
