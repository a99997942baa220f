"""What people get wrong in speculative decoding: the rule, the draws, the caches, and the arithmetic of k."""

import torch

from dojo.mistake import Mistake

UNIFORM = "torch.rand(len(draft), generator=generator, dtype=target.dtype, device=target.device)"
ACCEPTED = "(uniform < wanted / offered).cumprod(0).sum()"
RESIDUAL = "(weights - draft[accepted]).clamp(min=0)"
GUARD = "        weights = residual if residual.any() else weights\n"
LAST = "torch.multinomial(weights, 1, generator=generator)"
UNREAD = "unread, tokens, rows = text[len(draft) :], [], []"
ONLY_THE_LAST = "unread, tokens, rows = text[-1:] if len(draft) else text, [], []"
ROUND = "        target_probs = target.probs(torch.cat([text[len(target) :], draft_tokens]))\n"
EOS = "        if eos is not None and eos in emitted:\n"
SHARED = (
    "    shared = torch.minimum(_widened(target_probs), _widened(draft_probs))\n    return shared.sum(-1)"
)
SUM = "float(sum(alpha**i for i in range(k + 1)))"
SPEED = "return max(range(max_k + 1), key=lambda k: expected_tokens(alpha, k) / (k * cost + 1))"


def match_the_targets_sample(target_probs, draft_probs, draft_tokens, *, generator):
    target, draft = _widened(target_probs), _widened(draft_probs)
    _check(target, draft, draft_tokens)
    sampled = torch.multinomial(target, 1, generator=generator)[:, 0]
    accepted = int((sampled[:-1] == draft_tokens).cumprod(0).sum())
    return sampled[: accepted + 1]


def go_on_after_a_refusal(target_probs, draft_probs, draft_tokens, *, generator):
    target, draft = _widened(target_probs), _widened(draft_probs)
    _check(target, draft, draft_tokens)
    tokens = []
    for p, q, token in zip(target, draft, draft_tokens.tolist(), strict=False):
        if torch.rand((), generator=generator) < p[token] / q[token]:
            tokens.append(token)
        else:
            tokens.append(int(torch.multinomial((p - q).clamp(min=0), 1, generator=generator)))
    return torch.tensor([*tokens, int(torch.multinomial(target[-1], 1, generator=generator))])


def skip_what_is_refused(target_probs, draft_probs, draft_tokens, *, generator):
    target, draft = _widened(target_probs), _widened(draft_probs)
    _check(target, draft, draft_tokens)
    wanted, offered = (x[: len(draft)].gather(1, draft_tokens[:, None])[:, 0] for x in (target, draft))
    kept = draft_tokens[torch.rand(len(draft), generator=generator) < wanted / offered]
    return torch.cat([kept, torch.multinomial(target[len(kept)], 1, generator=generator)])


def percent(alpha, k):
    if k < 0:
        raise ValueError(f"got k {k}")
    return float(sum(alpha**i for i in range(k + 1)))


# A draw from weights by an inverse CDF, written out so that the uniform number can be chosen.
DRAW = "(({0}).cumsum(0) <= {1}).sum().clamp(max=len(weights) - 1)[None]"
DRAFT_DRAW = "(_widened(rows[-1]).cumsum(0) <= torch.rand((), generator=generator)).sum()[None]"

MISTAKES = (
    # --- which drafts are accepted ---
    Mistake(
        "drafts-as-they-are",
        "the drafts are returned as they came, without being judged",
        "The draft model has already sampled the tokens.",
        "test_one_hot_targets_give_the_greedy_tokens",
        change=(
            (f"    return torch.cat([draft_tokens[:accepted], {LAST}])", "    return draft_tokens.clone()"),
        ),
    ),
    Mistake(
        "accept-all",
        "every draft is accepted",
        "The target's pass over the drafts is what makes them right.",
        "test_one_hot_targets_give_the_greedy_tokens",
        change=((f"int({ACCEPTED})", "len(draft)"),),
    ),
    Mistake(
        "reject-all",
        "no draft is ever accepted: the step is one token, and correct, and slow",
        "Sampling from the residual keeps the distribution.",
        "test_a_perfect_draft_is_accepted_whole",
        change=((f"int({ACCEPTED})", "0"), (RESIDUAL, "weights.clone()")),
    ),
    Mistake(
        "comparison-turned",
        "a draft is accepted if the uniform number exceeds p/q",
        "The larger the draw, the better for the draft.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(("uniform < wanted / offered", "uniform > wanted / offered"),),
    ),
    Mistake(
        "ratio-upside-down",
        "a draft is accepted with probability min(1, q/p)",
        "The draft's probability goes on top: it is the draft that is judged.",
        "test_a_draft_that_the_target_likes_better_is_accepted",
        change=(("uniform < wanted / offered", "uniform < offered / wanted"),),
    ),
    Mistake(
        "accept-with-p",
        "a draft is accepted with the target's probability p; the draft's rows have no say in it",
        "A token deserves to stay as often as the target would have chosen it.",
        "test_a_draft_that_the_target_likes_better_is_accepted",
        change=(("uniform < wanted / offered", "uniform < wanted"),),
    ),
    Mistake(
        "accept-what-the-target-prefers",
        "a draft is accepted if p ≥ q and refused otherwise, without a draw",
        "A draft that the target likes less is a bad draft.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(("uniform < wanted / offered", "wanted >= offered"),),
    ),
    Mistake(
        "square-root-of-the-ratio",
        "a draft is accepted with probability √(p/q)",
        "A softer rule accepts more and changes little.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(("uniform < wanted / offered", "uniform < (wanted / offered).sqrt()"),),
    ),
    Mistake(
        "square-of-the-ratio",
        "a draft is accepted with probability (p/q)²: two uniforms must both pass",
        "Once for the draft and once for the target.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(("uniform < wanted / offered", "uniform < (wanted / offered).square()"),),
    ),
    Mistake(
        "ratios-multiplied-without-the-cap",
        "draft i is kept while a uniform is below the product of p/q so far: a ratio above 1 makes up for one below",
        "What counts is the probability of the drafts together.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (UNIFORM, "torch.rand(1, generator=generator, dtype=target.dtype, device=target.device)"),
            ("uniform < wanted / offered", "uniform < (wanted / offered).cumprod(0)"),
        ),
    ),
    Mistake(
        "ratios-multiplied",
        "draft i is accepted with the product of min(1, p/q) up to it: what came before is paid for twice",
        "Draft i is kept only if those before it are, so the probabilities multiply.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(("uniform < wanted / offered", "uniform < (wanted / offered).clamp(max=1).cumprod(0)"),),
    ),
    Mistake(
        "almost-always-accepted",
        "the acceptance probability is held below 0.99",
        "Clamping keeps the comparison away from 1.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(("uniform < wanted / offered", "uniform < (wanted / offered).clamp(max=0.99)"),),
    ),
    Mistake(
        "ratio-scaled-up",
        "a draft is accepted with probability 1.15 · p/q",
        "A little generosity towards the draft saves target runs.",
        "test_a_draft_is_refused_now_and_then_if_the_target_likes_it_less",
        change=(("uniform < wanted / offered", "uniform < 1.15 * wanted / offered"),),
    ),
    Mistake(
        "ratio-a-little-too-large",
        "a draft is accepted with probability 1.01 · p/q, or so: one that the target likes a little less always is",
        "A tolerance keeps rounding from refusing a good draft.",
        "test_a_draft_is_refused_now_and_then_if_the_target_likes_it_less",
        change=(("uniform < wanted / offered", "uniform < 1.01 * wanted / offered"),),
    ),
    Mistake(
        "ratio-a-little-too-small",
        "a draft is accepted with probability 0.99 · p/q, or so: one that the target likes as well may be refused",
        "A margin keeps the text on the target's side.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(("uniform < wanted / offered", "uniform < 0.99 * wanted / offered"),),
    ),
    Mistake(
        "ratio-scaled-down",
        "a draft is accepted with probability 0.97 · p/q, or less, though the target likes it as well",
        "A little caution keeps bad drafts out.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(("uniform < wanted / offered", "uniform < 0.97 * wanted / offered"),),
    ),
    Mistake(
        "epsilon-in-the-ratio",
        "an ε is added to q before p is divided by it, which is far too much where q is tiny",
        "An ε keeps the division safe.",
        "test_tiny_probabilities_are_compared_as_they_are",
        change=(("uniform < wanted / offered", "uniform < wanted / (offered + 1e-9)"),),
    ),
    Mistake(
        "match-with-the-targets-sample",
        "a draft is accepted if the target's own sample is the same token: Σ p·q instead of Σ min(p, q)",
        "Verifying means sampling from the target, and comparing.",
        "test_a_perfect_draft_is_accepted_whole",
        define=(("speculative_step", match_the_targets_sample),),
    ),
    Mistake(
        "match-with-the-targets-argmax",
        "a draft is accepted if it is the target's likeliest token",
        "Speculative decoding keeps the longest prefix that the target agrees with.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(("uniform < wanted / offered", "target[:-1].argmax(-1) == draft_tokens"),),
    ),
    Mistake(
        "probabilities-taken-for-logits",
        "a softmax is taken of the probabilities",
        "Models give logits.",
        "test_one_hot_targets_give_the_greedy_tokens",
        change=(
            (
                "    wanted, offered = (",
                "    target, draft = target.softmax(-1), draft.softmax(-1)\n    wanted, offered = (",
            ),
        ),
    ),
    Mistake(
        "target-rows-one-place-late",
        "draft i is judged by the target's row i + 1",
        "Row i of the target is what it says after reading draft i.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(
            (
                "(x[: len(draft)].gather(1, draft_tokens[:, None])[:, 0] for x in (target, draft))",
                "(x.gather(1, draft_tokens[:, None])[:, 0] for x in (target[1:], draft))",
            ),
        ),
    ),
    Mistake(
        "refused-drafts-are-skipped",
        "a refused draft is left out, and those after it are judged and kept as well",
        "Every draft is judged for itself.",
        "test_a_draft_that_the_target_forbids_ends_the_step",
        define=(("speculative_step", skip_what_is_refused),),
    ),
    Mistake(
        "all-acceptances-counted",
        "the number of accepted drafts is counted, not the number before the first refusal",
        "The sum of the mask says how many are kept.",
        "test_a_draft_that_the_target_forbids_ends_the_step",
        change=((".cumprod(0).sum()", ".sum()"),),
    ),
    Mistake(
        "going-on-after-a-refusal",
        "a refused draft is replaced, and the drafts after it are judged as if it had stayed",
        "The later rows are there already; it would be a waste not to use them.",
        "test_a_draft_that_the_target_forbids_ends_the_step",
        define=(("speculative_step", go_on_after_a_refusal),),
    ),
    # --- what follows them ---
    Mistake(
        "no-bonus",
        "if all drafts are accepted nothing follows them",
        "K drafts can give K tokens at most.",
        "test_a_perfect_draft_is_accepted_whole",
        change=((f"{LAST}])", f"{LAST}])[: max(len(draft), 1)]"),),
    ),
    Mistake(
        "no-replacement",
        "a refused draft is not replaced: the step ends before it",
        "The next round will find the right token.",
        "test_a_draft_that_the_target_forbids_ends_the_step",
        change=((f"{LAST}])", f"{LAST}])[: accepted + (accepted == len(draft))]"),),
    ),
    Mistake(
        "bonus-from-the-row-before",
        "the bonus is drawn from the last draft's row of the target, not from the one after it",
        "There are K drafts, so the last row is K − 1.",
        "test_a_perfect_draft_is_accepted_whole",
        change=(
            (
                "    weights = target[accepted]\n",
                "    weights = target[min(accepted, max(len(draft) - 1, 0))]\n",
            ),
        ),
    ),
    Mistake(
        "bonus-is-the-argmax",
        "the bonus is the target's likeliest token",
        "The bonus is free, so it may as well be the best.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                "    if accepted < len(draft):\n",
                "    weights = (weights == weights.max()).to(weights)\n    weights = target[accepted] if accepted < len(draft) else weights * (weights.cumsum(0) == 1)\n    if accepted < len(draft):\n",
            ),
        ),
    ),
    Mistake(
        "bonus-with-a-temperature",
        "the bonus is drawn at a temperature of 1.5, the drafts are judged without one",
        "Temperature belongs to sampling, and only the bonus is sampled.",
        "test_a_large_half_precision_vocabulary_is_drawn_evenly",
        change=(
            (
                "    if accepted < len(draft):\n",
                "    if accepted == len(draft):\n        weights = weights ** (1 / 1.5)\n    if accepted < len(draft):\n",
            ),
        ),
    ),
    Mistake(
        "bonus-mixed-with-the-uniform",
        "the bonus comes from the target's row mixed with a little of the uniform law",
        "A little smoothing keeps the text from repeating itself.",
        "test_what_is_all_but_impossible_is_not_drawn",
        change=(
            (
                "    if accepted < len(draft):\n",
                "    if accepted == len(draft):\n        weights = 0.99 * weights + 0.01 * (weights > 0) / (weights > 0).sum()\n    if accepted < len(draft):\n",
            ),
        ),
    ),
    Mistake(
        "replacement-from-the-target",
        "a refused draft is replaced by a sample of the target's row, so that what was drafted counts twice",
        "The target's row is where right tokens come from.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((GUARD, ""),),
    ),
    Mistake(
        "replacement-from-the-target-without-the-draft",
        "the replacement is drawn from the target's row with the refused token taken out",
        "Only the refused token must not come again.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((RESIDUAL, "weights.index_fill(0, draft_tokens[accepted], 0)"),),
    ),
    Mistake(
        "residual-of-absolute-differences",
        "the replacement is drawn from |p − q|",
        "The residual is the difference of the two.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((RESIDUAL, "(weights - draft[accepted]).abs()"),),
    ),
    Mistake(
        "residual-turned",
        "the replacement is drawn from max(q − p, 0)",
        "What is left over is what the draft has and the target has not.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((RESIDUAL, "(draft[accepted] - weights).clamp(min=0)"),),
    ),
    Mistake(
        "residual-of-the-next-target-row",
        "the replacement is drawn from the target's row after the refused draft",
        "Row n is used up; the next token comes from row n + 1.",
        "test_one_hot_targets_give_the_greedy_tokens",
        change=((RESIDUAL, "(target[accepted + 1] - draft[accepted]).clamp(min=0)"),),
    ),
    Mistake(
        "residual-of-the-last-draft-row",
        "the replacement is drawn from the target's row less the last row of the draft, whichever was refused",
        "draft_probs[-1] is the row at hand when the loop ends.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((RESIDUAL, "(weights - draft[-1]).clamp(min=0)"),),
    ),
    Mistake(
        "residual-of-the-first-rows",
        "the replacement is drawn from the residual of the first place, whichever was refused",
        "There is one residual.",
        "test_one_hot_targets_give_the_greedy_tokens",
        change=((RESIDUAL, "(target[0] - draft[0]).clamp(min=0)"),),
    ),
    Mistake(
        "argmax-of-the-residual",
        "the replacement is the likeliest token of the residual",
        "The token that was missed most is the right one.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (RESIDUAL, "torch.zeros_like(weights).index_fill_(0, (weights - draft[accepted]).argmax(), 1)"),
        ),
    ),
    Mistake(
        "target-cut-to-the-residuals-support",
        "the replacement is drawn from p where p > q, without q being subtracted",
        "Tokens that the draft overrates are masked, the others keep their probability.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=((RESIDUAL, "weights * (weights > draft[accepted])"),),
    ),
    Mistake(
        "residual-evened-out",
        "the replacement is drawn evenly from the tokens with p > q",
        "Any token that the draft underrates will do.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=((RESIDUAL, "(weights > draft[accepted]).to(weights)"),),
    ),
    Mistake(
        "residual-not-renormalised",
        "the inverse CDF runs over a residual that does not sum to one: what is missing falls to the last token",
        "A CDF is a running sum.",
        "test_a_replacement_is_a_token_that_was_drafted_too_rarely",
        change=((LAST, DRAW.format("weights", "torch.rand((), generator=generator)")),),
    ),
    Mistake(
        "small-residual-taken-for-none",
        "a residual below 1e-3 counts as none, and the target's row takes its place",
        "So small a residual is rounding.",
        "test_a_small_residual_is_a_residual",
        change=((GUARD, "        weights = residual if residual.sum() > 1e-3 else weights\n"),),
    ),
    Mistake(
        "rows-in-half-precision",
        "the rows are rounded to half precision",
        "bfloat16 is precise enough for probabilities.",
        "test_a_small_residual_is_a_residual",
        change=(("return x.float() if x.itemsize < 4 else x", "return x.bfloat16().float()"),),
    ),
    Mistake(
        "residual-without-a-guard",
        "a residual that is zero everywhere is divided by its sum",
        "A draft is refused only where p < q, so p > q somewhere.",
        "test_rounding_may_leave_no_residual",
        change=((GUARD, "        weights = residual / residual.sum()\n"),),
    ),
    Mistake(
        "likeliest-where-no-residual-is-left",
        "if nothing is left to draw from, the target's likeliest token is taken",
        "It hardly ever happens, so anything will do.",
        "test_rows_that_sum_to_a_little_less_are_drawn_from_as_others",
        change=(
            (
                GUARD,
                "        weights = residual if residual.any() else torch.eye(len(weights))[weights.argmax()]\n",
            ),
        ),
    ),
    Mistake(
        "epsilon-on-the-residual",
        "an ε is added to the residual, so that tokens come that the target forbids",
        "An ε keeps the division safe.",
        "test_rounding_may_leave_no_residual",
        change=((GUARD, "        weights = residual + 1e-12\n"),),
    ),
    # --- the draws ---
    Mistake(
        "one-uniform-for-all-drafts",
        "all drafts are compared with the same uniform number",
        "One draw decides how far the drafts go.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=((UNIFORM, "torch.rand(1, generator=generator, dtype=target.dtype, device=target.device)"),),
    ),
    Mistake(
        "replacement-tied-to-the-refusal",
        "the uniform number that refused the draft also picks its replacement",
        "A uniform number is a uniform number.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                GUARD,
                GUARD
                + "        last = "
                + DRAW.format("weights / weights.sum()", "uniform[accepted]")
                + "\n        return torch.cat([draft_tokens[:accepted], last])\n",
            ),
        ),
    ),
    Mistake(
        "bonus-tied-to-the-acceptance",
        "the uniform number that accepted the last draft also picks the bonus",
        "A uniform number is a uniform number.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                "    return torch.cat([draft_tokens[:accepted]",
                "    if len(draft) and accepted == len(draft):\n        return torch.cat([draft_tokens, "
                + DRAW.format("weights", "uniform[-1]")
                + "])\n    return torch.cat([draft_tokens[:accepted]",
            ),
        ),
    ),
    Mistake(
        "bonus-tied-to-the-first-acceptance",
        "the uniform number that accepted the first draft also picks the bonus",
        "The first of the row will do for the one draw that is left.",
        "test_every_outcome_is_as_likely_as_the_rule_makes_it",
        change=(
            (
                "    return torch.cat([draft_tokens[:accepted]",
                "    if len(draft) and accepted == len(draft):\n        return torch.cat([draft_tokens, "
                + DRAW.format("weights", "uniform[0]")
                + "])\n    return torch.cat([draft_tokens[:accepted]",
            ),
        ),
    ),
    Mistake(
        "global-uniforms",
        "the uniform numbers come from the global random state",
        "torch.rand needs no generator.",
        "test_the_generator_is_the_only_source_of_randomness",
        change=((UNIFORM, "torch.rand(len(draft), dtype=target.dtype, device=target.device)"),),
    ),
    Mistake(
        "global-last-draw",
        "the replacement and the bonus are drawn from the global random state",
        "The generator is for the acceptance test.",
        "test_the_generator_is_the_only_source_of_randomness",
        change=((LAST, "torch.multinomial(weights, 1)"),),
    ),
    Mistake(
        "fresh-generator",
        "each call makes a generator of its own with a fixed seed",
        "A fixed seed makes it reproducible.",
        "test_the_generator_moves_on",
        change=(
            (
                f"    uniform = {UNIFORM}",
                f"    generator = torch.Generator().manual_seed(0)\n    uniform = {UNIFORM}",
            ),
        ),
    ),
    Mistake(
        "seeded-anew-by-the-initial-seed",
        "each call starts again from the generator's initial seed",
        "The generator's seed is what it stands for.",
        "test_the_generator_moves_on",
        change=(
            (
                f"    uniform = {UNIFORM}",
                f"    generator = torch.Generator().manual_seed(generator.initial_seed())\n    uniform = {UNIFORM}",
            ),
        ),
    ),
    Mistake(
        "read-ahead-on-a-copy",
        "the draws come from a copy of the generator, which itself moves on by one number: calls share draws",
        "A copy leaves the caller's generator in order.",
        "test_consecutive_steps_are_independent",
        change=(
            (
                f"    uniform = {UNIFORM}",
                "    ahead = torch.Generator().set_state(generator.get_state())\n"
                "    torch.rand((), generator=generator, dtype=torch.float64)\n"
                "    uniform = torch.rand(len(draft), generator=ahead, dtype=torch.float64)",
            ),
            (
                LAST,
                DRAW.format(
                    "weights / weights.sum()", "torch.rand((), generator=ahead, dtype=torch.float64)"
                ),
            ),
        ),
    ),
    Mistake(
        "uniforms-from-a-coarse-grid",
        "the uniform numbers are multiples of 1/64",
        "A random integer divided by its range is uniform.",
        "test_a_draft_is_refused_now_and_then_if_the_target_likes_it_less",
        change=((UNIFORM, "torch.randint(64, (len(draft),), generator=generator) / 64"),),
    ),
    Mistake(
        "verdicts-on-a-copy-only",
        "the uniform numbers come from a copy of the generator, and only the last draw moves the generator on",
        "The verdicts must not disturb the sampling.",
        "test_consecutive_steps_are_independent",
        change=(
            (UNIFORM, UNIFORM.replace("=generator,", "=torch.Generator().set_state(generator.get_state()),")),
        ),
    ),
    Mistake(
        "cdf-in-half-precision",
        "half-precision rows are summed up to a CDF in half precision, which skips tokens",
        "The result is in the dtype that came in.",
        "test_a_large_half_precision_vocabulary_is_drawn_evenly",
        change=(
            (
                LAST,
                DRAW.format(
                    "(weights / weights.sum()).to(target_probs.dtype)", "torch.rand((), generator=generator)"
                ),
            ),
        ),
    ),
    # --- the contract ---
    Mistake(
        "target-row-overwritten",
        "q is subtracted from the target's row in place",
        "target_probs is mine once it is passed in.",
        "test_the_result_is_some_drafts_and_one_token",
        change=((RESIDUAL, "weights.sub_(draft[accepted]).clamp(min=0)"),),
    ),
    Mistake(
        "list-of-tokens",
        "the tokens come back as a Python list",
        "Tokens are a list of numbers.",
        "test_the_result_is_some_drafts_and_one_token",
        change=((f"{LAST}])", f"{LAST}]).tolist()"),),
    ),
    Mistake(
        "impossible-drafts-accepted",
        "a draft with probability 0 in its own row is accepted, since p/0 is infinite",
        "It was drafted, so its probability cannot be 0.",
        "test_drafts_that_cannot_have_been_drafted_are_refused",
        change=(("    if not draft.gather(1, tokens[:, None]).all():\n", "    if False:\n"),),
    ),
    Mistake(
        "negative-tokens-wrap",
        "a draft of −1 means the last token of the vocabulary",
        "Indexing will complain by itself.",
        "test_drafts_that_cannot_have_been_drafted_are_refused",
        change=(
            (
                "(tokens >= 0) & (tokens < target.shape[1])",
                "(tokens >= -target.shape[1]) & (tokens < target.shape[1])",
            ),
            ("draft.gather(1, tokens[:, None])", "draft.gather(1, tokens[:, None] % target.shape[1])"),
            ("gather(1, draft_tokens[:, None])", "gather(1, draft_tokens[:, None] % target.shape[1])"),
        ),
    ),
    Mistake(
        "rows-unchecked",
        "rows that are no distributions are taken as they are",
        "They are called probs.",
        "test_rows_that_are_no_distributions_are_refused",
        change=(
            (
                "        if not ((rows >= 0).all() and ((rows.sum(-1) - 1).abs() <= 0.01).all()):\n",
                "        if False:\n",
            ),
        ),
    ),
    Mistake(
        "draft-rows-unchecked",
        "only the target's rows are checked",
        "The draft's rows cancel out.",
        "test_rows_that_are_no_distributions_are_refused",
        change=(('(("target_probs", target), ("draft_probs", draft))', '(("target_probs", target),)'),),
    ),
    Mistake(
        "nan-passes-the-check",
        "a row with NaN passes the check, because every comparison with NaN is false",
        "If it is neither negative nor too large, it is fine.",
        "test_rows_that_are_no_distributions_are_refused",
        change=(
            (
                "not ((rows >= 0).all() and ((rows.sum(-1) - 1).abs() <= 0.01).all())",
                "(rows < 0).any() or ((rows.sum(-1) - 1).abs() > 0.01).any()",
            ),
        ),
    ),
    Mistake(
        "spare-rows-ignored",
        "target rows beyond K + 1 are silently left unused",
        "More rows do no harm.",
        "test_shapes_that_do_not_fit_are_refused",
        change=(
            (
                "[(len(target) - 1, target.shape[1]), (len(target) - 1,)]",
                "[(len(tokens), target.shape[1]), (min(len(tokens), len(target) - 1),)]",
            ),
        ),
    ),
    # --- the loop ---
    Mistake(
        "target-cache-keeps-refused-drafts",
        "the target's cache is not rolled back, so it goes on from drafts that were refused",
        "The cache holds what the model has read.",
        "test_one_hot_models_give_the_targets_own_text",
        change=(
            ("        target.rollback(len(text) - 1)\n", ""),
            (
                "target.probs(torch.cat([text[len(target) :], draft_tokens]))",
                "target.probs(torch.cat([text[-1:] if len(target) else text, draft_tokens]))",
            ),
        ),
    ),
    Mistake(
        "draft-cache-keeps-refused-drafts",
        "the draft's cache is not rolled back: the text stays right, and fewer and fewer drafts are",
        "Only the target's cache matters for the text.",
        "test_what_a_model_reads_follows_the_text_and_its_drafts",
        change=(("        draft.rollback(len(text) - 1)\n", ""), (UNREAD, ONLY_THE_LAST)),
    ),
    Mistake(
        "last-draft-never-read",
        "if all drafts are accepted, the draft model never reads the last of them",
        "The draft model knows its own drafts.",
        "test_what_a_model_reads_follows_the_text_and_its_drafts",
        change=((UNREAD, ONLY_THE_LAST),),
    ),
    Mistake(
        "text-read-anew-by-the-target",
        "the target's cache is emptied in every round, and the whole text read again",
        "A new round is a new forward pass.",
        "test_no_model_reads_a_token_twice",
        change=(("        target.rollback(len(text) - 1)\n", "        target.rollback(0)\n"),),
    ),
    Mistake(
        "text-read-anew-by-the-draft",
        "the draft's cache is emptied in every round, and the whole text read again",
        "The draft is cheap.",
        "test_no_model_reads_a_token_twice",
        change=(("        draft.rollback(len(text) - 1)\n", "        draft.rollback(0)\n"),),
    ),
    Mistake(
        "rolled-back-one-too-far",
        "both caches are rolled back by one token too many, which is then read again",
        "Better one too many than one too few.",
        "test_no_model_reads_a_token_twice",
        change=(
            ("        target.rollback(len(text) - 1)\n", "        target.rollback(max(len(text) - 2, 0))\n"),
            ("        draft.rollback(len(text) - 1)\n", "        draft.rollback(max(len(text) - 2, 0))\n"),
        ),
    ),
    Mistake(
        "drafts-judged-one-by-one",
        "the target runs once for each draft",
        "The target scores a token at a time.",
        "test_the_target_runs_once_a_round",
        change=(
            (
                ROUND,
                "        target_probs = torch.cat([target.probs(t) for t in torch.cat([text[len(target) :], draft_tokens]).split(1)])\n",
            ),
        ),
    ),
    Mistake(
        "k-never-used",
        "each round drafts four tokens, whatever k is",
        "Four is a good number.",
        "test_the_target_runs_once_a_round",
        change=(("min(k, end - len(text))", "min(4, end - len(text))"),),
    ),
    Mistake(
        "one-draft-too-many",
        "each round drafts k + 1 tokens",
        "A round gives k + 1 tokens, so it needs k + 1 drafts.",
        "test_what_a_model_reads_follows_the_text_and_its_drafts",
        change=(("min(k, end - len(text))", "min(k + 1, end - len(text))"),),
    ),
    Mistake(
        "bonus-thrown-away",
        "the loop keeps the accepted drafts and throws the bonus away",
        "A round of k drafts gives k tokens.",
        "test_a_perfect_draft_gives_k_plus_one_tokens_a_round",
        change=(
            (
                "        if eos is not None",
                "        emitted = emitted[: len(draft_tokens)]\n        if eos is not None",
            ),
        ),
    ),
    Mistake(
        "first-rows-of-the-run",
        "the drafts are judged by the first rows of the run, which in the first round belong to the prompt",
        "Row i judges draft i.",
        "test_one_hot_models_give_the_targets_own_text",
        change=(("target_probs[-len(draft_tokens) - 1 :]", "target_probs[: len(draft_tokens) + 1]"),),
    ),
    Mistake(
        "greedy-drafts",
        "the draft model's likeliest tokens are judged as if they had been sampled",
        "The draft should propose its best.",
        "test_the_text_is_distributed_as_the_targets",
        change=(
            (
                "unread = torch.multinomial(_widened(rows[-1]), 1, generator=generator)",
                "unread = rows[-1].argmax()[None]",
            ),
        ),
    ),
    Mistake(
        "draft-rows-one-place-late",
        "draft i is judged by the draft's row after it, not by the one it was sampled from",
        "The row of a draft is what the model says when it reads it.",
        "test_a_perfect_draft_gives_k_plus_one_tokens_a_round",
        change=(
            (
                "        rows.append(draft.probs(unread)[-1])\n        unread = torch.multinomial(_widened(rows[-1]), 1, generator=generator)\n",
                "        row = rows[-1] if rows else draft.probs(unread)[-1]\n        unread = torch.multinomial(_widened(row), 1, generator=generator)\n        rows.append(draft.probs(unread)[-1])\n",
            ),
        ),
    ),
    Mistake(
        "global-drafts",
        "the drafts are sampled from the global random state",
        "Only the acceptance has to be reproducible.",
        "test_the_loop_draws_from_the_generator_only",
        change=(
            (
                "torch.multinomial(_widened(rows[-1]), 1, generator=generator)",
                "torch.multinomial(_widened(rows[-1]), 1)",
            ),
        ),
    ),
    Mistake(
        "drafts-from-a-copy-of-the-generator",
        "the drafts are drawn from a copy of the generator, so that a draft and its verdict share a uniform",
        "A copy keeps the draft model from disturbing the verdicts.",
        "test_the_text_is_distributed_as_the_targets",
        change=(
            (UNREAD, "generator = torch.Generator().set_state(generator.get_state())\n    " + UNREAD),
            ("torch.multinomial(_widened(rows[-1]), 1, generator=generator)", DRAFT_DRAW),
            (UNIFORM, "torch.rand(len(draft), generator=generator)"),
        ),
    ),
    Mistake(
        "verdicts-from-a-copy-of-the-generator",
        "the step gets a copy of the generator, so that a verdict and the next draft share a uniform",
        "A copy keeps the step from disturbing the draft model.",
        "test_the_text_is_distributed_as_the_targets",
        change=(
            (
                "emitted = speculative_step(target_probs, draft_probs, draft_tokens, generator=generator)",
                "ahead = torch.Generator().set_state(generator.get_state())\n"
                "        emitted = speculative_step(target_probs, draft_probs, draft_tokens, generator=ahead)",
            ),
            ("torch.multinomial(_widened(rows[-1]), 1, generator=generator)", DRAFT_DRAW),
            (UNIFORM, "torch.rand(len(draft), generator=generator)"),
        ),
    ),
    Mistake(
        "multinomial-on-a-copy-of-the-generator",
        "the step gets a copy of the generator: what it draws last, a draft of the next round repeats",
        "The step should not disturb the draft model.",
        "test_the_text_is_distributed_as_the_targets",
        change=(
            (
                "emitted = speculative_step(target_probs, draft_probs, draft_tokens, generator=generator)",
                "ahead = torch.Generator().set_state(generator.get_state())\n"
                "        emitted = speculative_step(target_probs, draft_probs, draft_tokens, generator=ahead)",
            ),
        ),
    ),
    Mistake(
        "drafts-from-the-initial-seed",
        "every call draws its drafts with a new generator, from the first seed of the one it is given",
        "The draft model has a generator of its own, and the seed makes it reproducible.",
        "test_each_text_has_drafts_of_its_own",
        change=(
            (
                "    text, end = prompt,",
                "    own = torch.Generator().manual_seed(generator.initial_seed())\n    text, end = prompt,",
            ),
            ("min(k, end - len(text)), generator)", "min(k, end - len(text)), own)"),
        ),
    ),
    Mistake(
        "generator-starts-anew",
        "every call of the loop starts the generator again from its seed",
        "Seeding at the start makes it reproducible.",
        "test_the_text_is_distributed_as_the_targets",
        change=(
            (
                "    text, end = prompt,",
                "    generator.manual_seed(generator.initial_seed())\n    text, end = prompt,",
            ),
        ),
    ),
    Mistake(
        "prompt-returned-too",
        "the prompt is returned with the new tokens",
        "The text is prompt and continuation.",
        "test_the_loop_returns_exactly_the_new_tokens",
        change=(("    return text[len(prompt) :]", "    return text"),),
    ),
    Mistake(
        "last-round-overshoots",
        "the last round may give more tokens than were asked for",
        "max_new_tokens ends the loop.",
        "test_the_loop_returns_exactly_the_new_tokens",
        change=(("text = torch.cat([text, emitted])[:end]", "text = torch.cat([text, emitted])"),),
    ),
    Mistake(
        "prompt-counted",
        "max_new_tokens counts the prompt as well",
        "It is the length of the text.",
        "test_the_loop_returns_exactly_the_new_tokens",
        change=(("len(prompt) + max_new_tokens\n", "max(max_new_tokens, len(prompt))\n"),),
    ),
    Mistake(
        "eos-only-at-the-end-of-a-round",
        "eos is looked for in the last token of a round only; among accepted drafts it is passed over",
        "A round ends with the token that was just sampled.",
        "test_the_first_eos_is_the_last_token",
        change=(
            (EOS, "        if eos is not None and eos == emitted[-1]:\n"),
            ("emitted.tolist().index(eos) + 1", "len(emitted)"),
        ),
    ),
    Mistake(
        "eos-zero-is-none",
        "an eos of 0 is taken for none",
        "if eos: is how one asks whether it is given.",
        "test_the_first_eos_is_the_last_token",
        change=((EOS, "        if eos and eos in emitted:\n"),),
    ),
    Mistake(
        "eos-left-out",
        "eos is cut off the text",
        "eos is a signal, not a token.",
        "test_the_first_eos_is_the_last_token",
        change=(("emitted.tolist().index(eos) + 1)", "emitted.tolist().index(eos))"),),
    ),
    Mistake(
        "round-with-eos-kept-whole",
        "the round in which eos comes is kept to its end, with what follows eos",
        "eos ends the loop.",
        "test_the_first_eos_is_the_last_token",
        change=(("emitted.tolist().index(eos) + 1)", "len(emitted))"),),
    ),
    Mistake(
        "eos-in-a-refused-draft",
        "an eos that was drafted ends the text, even if the target refuses it",
        "When the draft model is done, the text is done.",
        "test_the_first_eos_is_the_last_token",
        change=(
            (
                EOS,
                "        if eos is not None and eos in draft_tokens and eos not in emitted:\n            end = min(end, len(text) + len(emitted))\n"
                + EOS,
            ),
        ),
    ),
    Mistake(
        "eos-in-the-prompt",
        "an eos in the prompt ends the text after the first round",
        "The text holds eos, so it is done.",
        "test_the_first_eos_is_the_last_token",
        change=(
            (
                EOS,
                "        if eos is not None and eos in text and eos not in emitted:\n            end = min(end, len(text) + len(emitted))\n"
                + EOS,
            ),
        ),
    ),
    # --- choosing k ---
    Mistake(
        "total-variation-itself",
        "acceptance_rate gives the total variation, which is how often a draft is refused",
        "The two are the same up to a sign.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=((SHARED, SHARED.replace("shared.sum(-1)", "(1 - shared.sum(-1))")),),
    ),
    Mistake(
        "total-variation-without-the-half",
        "acceptance_rate is 1 − Σ |p − q|, without the half",
        "Total variation is the sum of the differences.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=(
            (
                SHARED,
                "    shared = (_widened(target_probs) - _widened(draft_probs)).abs()\n    return (1 - shared.sum(-1))",
            ),
        ),
    ),
    Mistake(
        "probability-of-a-match",
        "acceptance_rate is Σ p·q, the chance that two independent samples agree",
        "A draft is accepted if the target would have said the same.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=(
            (
                SHARED,
                SHARED.replace(
                    "torch.minimum(_widened(target_probs), _widened(draft_probs))",
                    "_widened(target_probs) * _widened(draft_probs)",
                ),
            ),
        ),
    ),
    Mistake(
        "mean-over-the-vocabulary",
        "acceptance_rate averages min(p, q) over the vocabulary, where it should add up",
        "A rate is a mean.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=(("shared.sum(-1)", "shared.mean(-1)"),),
    ),
    Mistake(
        "mean-over-the-places",
        "acceptance_rate averages over all places",
        "Alpha is one number.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=(("shared.sum(-1)", "shared.sum(-1).mean()"),),
    ),
    Mistake(
        "rates-of-doubles-in-floats",
        "acceptance_rate rounds float64 rows to float32",
        "It is only an estimate.",
        "test_acceptance_rate_is_the_mass_that_the_rows_share",
        change=((SHARED, SHARED.replace("_widened(", "torch.Tensor.float(")),),
    ),
    Mistake(
        "rates-of-broadcast-rows",
        "rows of different shapes are broadcast",
        "One draft row for all places is a draft as well.",
        "test_rows_of_different_shapes_have_no_acceptance_rate",
        change=(
            (
                "    if target_probs.shape != draft_probs.shape:\n",
                "    if target_probs.shape[-1] != draft_probs.shape[-1]:\n",
            ),
        ),
    ),
    Mistake(
        "bonus-not-expected",
        "expected_tokens counts the accepted drafts without the token that follows them",
        "What the target adds is not speculative.",
        "test_expected_tokens_sums_the_chances_of_getting_that_far",
        change=((SUM, "float(sum(alpha ** (i + 1) for i in range(k)))"),),
    ),
    Mistake(
        "one-power-too-few",
        "expected_tokens is (1 − α^k) / (1 − α)",
        "There are k drafts, so there are k terms.",
        "test_expected_tokens_sums_the_chances_of_getting_that_far",
        change=((SUM, "float(sum(alpha**i for i in range(k)))"),),
    ),
    Mistake(
        "drafts-counted-one-by-one",
        "expected_tokens is k·α + 1, as if a refusal did not end the step",
        "Each of k drafts is accepted with probability α.",
        "test_expected_tokens_sums_the_chances_of_getting_that_far",
        change=((SUM, "float(k * alpha + 1)"),),
    ),
    Mistake(
        "zero-by-zero-at-one",
        "expected_tokens divides 0 by 0 if every draft is accepted",
        "Nothing is accepted always.",
        "test_expected_tokens_sums_the_chances_of_getting_that_far",
        change=((SUM, "(1 - alpha ** (k + 1)) / (1 - alpha)"),),
    ),
    Mistake(
        "most-tokens-at-any-cost",
        "best_k maximises the tokens of a round, whatever the round costs",
        "More accepted tokens are faster.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((" / (k * cost + 1))", ")"),),
    ),
    Mistake(
        "target-run-for-free",
        "a round costs k draft runs; the target's run is forgotten",
        "The target runs anyway.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((" / (k * cost + 1))", " / max(k * cost, 1))"),),
    ),
    Mistake(
        "cost-turned",
        "cost is taken for the speed of the draft model",
        "A cost of 8 means that the target is 8 times as slow.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((" / (k * cost + 1))", " / (k / max(cost, 1e-9) + 1))"),),
    ),
    Mistake(
        "always-speculates",
        "best_k is at least 1, also where the drafts cost more than they bring",
        "Speculation always helps a little.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((SPEED, SPEED.replace("range(max_k + 1)", "range(min(1, max_k), max_k + 1)")),),
    ),
    Mistake(
        "max-k-left-out",
        "best_k never gives max_k",
        "range(max_k) runs to max_k.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((SPEED, SPEED.replace("range(max_k + 1)", "range(max(max_k, 1))")),),
    ),
    Mistake(
        "largest-of-equals",
        "of several k that are equally fast the largest is chosen",
        "More drafts cannot hurt.",
        "test_best_k_gives_most_tokens_per_unit_of_time",
        change=((SPEED, SPEED.replace("range(max_k + 1)", "range(max_k, -1, -1)")),),
    ),
    Mistake(
        "any-cost",
        "a negative cost is not refused",
        "Nobody passes one.",
        "test_impossible_rates_and_counts_are_refused",
        change=(("    if not cost >= 0 or max_k < 0:\n", "    if max_k < 0:\n"),),
    ),
    Mistake(
        "any-alpha",
        "an alpha outside [0, 1] is not refused",
        "It is a number like any other.",
        "test_impossible_rates_and_counts_are_refused",
        define=(("expected_tokens", percent),),
    ),
    Mistake(
        "doubles-judged-as-floats",
        "float64 rows are rounded to float32, in which tiny probabilities are 0",
        "float32 is precise enough for a probability.",
        "test_tiny_probabilities_are_compared_as_they_are",
        change=(
            (
                "target, draft = _widened(target_probs), _widened(draft_probs)",
                "target, draft = target_probs.float(), draft_probs.float()",
            ),
        ),
    ),
)

HALF = "a float32 row stays what it is"
EQUIVALENT = (
    (
        "torch.rand(len(draft), generator=generator, dtype=target.dtype, device=target.device)",
        "torch.rand(len(draft), generator=generator, device=target.device)",
        "the statement lets the uniform numbers be float32",
    ),
    (
        "torch.rand(len(draft), generator=generator, dtype=target.dtype, device=target.device)",
        "torch.rand(len(draft), generator=generator, dtype=target.dtype)",
        "on the CPU, where the claims run, that is the device",
    ),
    ("x.itemsize < 4", "x.itemsize <= 4", HALF),
    ("4", "5", HALF, "x.itemsize"),
    ("0", "-1", "one column is gathered, the first and the last", "gather(1, draft_tokens"),
    ("0", "-1", "the drafts have one dimension", "cumprod(0)"),
    ("0", "-1", "range(0) is empty, and max of nothing raises ValueError by itself", "not cost >= 0"),
    ("-1", "+1", "the rows have two dimensions: the last one is dimension 1", "rows.sum(-1)"),
    (
        "uniform < wanted / offered",
        "uniform <= wanted / offered",
        "they differ only where a uniform number is the ratio to the last bit",
    ),
    (
        "(rows.sum(-1) - 1).abs() <= 0.01",
        "(rows.sum(-1) - 1).abs() < 0.01",
        "they differ only where a sum is off by 0.01 to the last bit",
    ),
)
"""Mutants that do the same as the reference, with the reason."""
