"""The laws of speculative decoding: what must and what can never be emitted, and how likely the rest is; a
loop that writes the target's text in as few runs as the drafts allow; and the arithmetic that chooses k.

Most claims are about support and have no false alarms: rows are multiples of 1/8, exact in every dtype,
and what is said of them holds whatever is drawn. Four claims count outcomes. Theirs are fixed tables and
fixed seeds, so that a file gets the same verdict every time; what is random is only which of the right
ways to use a generator the file has chosen. A cell that a right file fills with probability p deviates
as far as ``surprise`` allows with a probability of at most 2·exp(−SURPRISE) (Chernoff's bound, no
approximation); there are fewer than 90 cells in the kata, so a right file is refused with a probability
below 90 · 2·exp(−28) = 1.3e-10, all stages together.
"""

import math
import operator
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo.close import (
    HALF_TYPES,
    Mismatch,
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    refuses,
    untouched,
)
from dojo.draw import distinct, examples, laid_out

WIDE = st.sampled_from((torch.float32, torch.float64))
"""Only these where acceptance is certain: u < p/q with p = q may fail for a u that half types round to 1."""

DTYPES = st.sampled_from((torch.float32, torch.float64, *HALF_TYPES))
LAYOUTS = st.sampled_from(("contiguous", "transposed", "strided"))
SEEDS = st.integers(0, 63)
"""No uniform number among the first 20,000 of these seeds is 0 in float32, so that u < r and u ≤ r are the
same at r = 0: no verdict hangs on a chance of 2⁻²⁴."""

EIGHTHS = 8
SURPRISE = 28.0
"""How many nats a count may deviate: the false-alarm rate of a cell is at most 2·exp(−28) = 1.4e-12."""


@dataclass
class Step:
    target_probs: Tensor
    draft_probs: Tensor
    draft_tokens: Tensor
    seed: int

    def on(self, subject):
        return subject.speculative_step(
            self.target_probs, self.draft_probs, self.draft_tokens, generator=seeded(self.seed)
        )


@dataclass
class Sure:
    """A step whose outcome, or its beginning, does not depend on what is drawn."""

    target_probs: Tensor
    draft_probs: Tensor
    draft_tokens: Tensor
    seed: int
    outcome: Tensor

    on = Step.on


@dataclass
class Run:
    """Two models over tables (see ``Model``), and how to run the loop with them."""

    target_table: list
    draft_table: list
    prompt: Tensor
    max_new_tokens: int
    k: int
    eos: int | None
    seed: int

    def on(self, subject, target=None, draft=None):
        # An empty model has length 0, and would count as false.
        target = Model("target", self.target_table) if target is None else target
        draft = Model("draft", self.draft_table) if draft is None else draft
        stop = {} if self.eos is None else {"eos": self.eos}
        return subject.speculative_generate(
            target, draft, self.prompt, self.max_new_tokens, k=self.k, generator=seeded(self.seed), **stop
        )


@dataclass
class Odds:
    """Rows, drafts, and how often to ask for a step."""

    target_probs: list
    draft_probs: list
    draft_tokens: list
    calls: int


class Model:
    """A cached model over a table: all tokens of the context, and their places, say which row it is.

    It keeps a record of what it was asked. ``contexts`` holds for each run what was in the cache, and what
    it read then.
    """

    def __init__(self, name, table, dtype=torch.float32):
        self.name, self.table, self.cache, self.contexts = name, torch.tensor(table, dtype=dtype), [], []

    def __len__(self):
        return len(self.cache)

    def probs(self, tokens):
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        assert_true(
            isinstance(tokens, Tensor) and tokens.ndim == 1,
            f"the {self.name} was given no row of tokens",
            got=shape,
        )
        assert_true(len(self.contexts) < 100, f"the {self.name} has run 100 times, and the text is not done")
        before = list(self.cache)
        rows = []
        for token in tokens.tolist():
            self.cache.append(token)
            rows.append(row_of(self.cache, len(self.table)))
        self.contexts.append((before, list(self.cache)))
        return self.table[rows]

    def reads(self):
        """What it read, run by run."""
        return [context[len(before) :] for before, context in self.contexts if len(context) > len(before)]

    def rollback(self, length):
        assert_true(length >= 0, f"the {self.name} was rolled back to {length} tokens")
        del self.cache[length:]


def row_of(context, rows):
    return sum((i + 1) * (token + 1) for i, token in enumerate(context)) % rows


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- strategies: everything is drawn from one seed, or, shrunk, from one short byte string -----------


@st.composite
def picks(draw):
    """A function that gives the next whole number from 0 to n − 1; shrunk, 0, 1, 2 … as the bytes say."""
    seed, data = draw(st.integers(0, 2**16)), draw(st.binary(max_size=40))
    if seed:
        return random.Random(seed).randrange
    left = iter(data)
    return lambda n: next(left, 0) % n


def distribution(pick, vocab, without=()):
    """A row of eighths that sums to 1 exactly, zeros likely, nothing at the tokens ``without``."""
    places = [i for i in range(vocab) if i not in without]
    cuts = sorted(pick(EIGHTHS + 1) for _ in places[1:])
    row = [0] * vocab
    for place, low, high in zip(places, [0, *cuts], [*cuts, EIGHTHS], strict=True):
        row[place] = high - low
    return row


def some(pick, row):
    """A token that the row gives some probability."""
    possible = [i for i, weight in enumerate(row) if weight]
    return possible[pick(len(possible))]


def onehot(token, vocab):
    return [EIGHTHS * (i == token) for i in range(vocab)]


def raised(pick, row, token):
    """The row with what others have moved to the token, in part or not at all."""
    moved = [w if i == token else pick(w + 1) for i, w in enumerate(row)]
    moved[token] += EIGHTHS - sum(moved)
    return moved


def table(rows, dtype, layout, vocab):
    return laid_out(torch.tensor(rows, dtype=torch.float64).reshape(-1, vocab).div(EIGHTHS).to(dtype), layout)


def built(draw, target, draft, tokens, vocab, *, dtypes, outcome=None):
    dtype, layout = draw(dtypes), draw(LAYOUTS)
    step = (
        table(target, dtype, layout, vocab),
        table(draft, dtype, layout, vocab),
        laid_out(torch.tensor(tokens, dtype=torch.int64), layout),
    )
    return (
        Step(*step, draw(SEEDS))
        if outcome is None
        else Sure(*step, draw(SEEDS), torch.tensor(outcome, dtype=torch.int64))
    )


@st.composite
def steps(draw, dtypes=DTYPES, least=0):
    """Any step: K from ``least`` to 4, rows of eighths that have little to do with each other."""
    count = draw(st.sampled_from([k for k in (1, 2, 3, 4, 0) if k >= least]))
    vocab = draw(st.integers(2 if least else 1, 6))
    pick = draw(picks())
    target, draft = ([distribution(pick, vocab) for _ in range(n)] for n in (count + 1, count))
    return built(draw, target, draft, [some(pick, row) for row in draft], vocab, dtypes=dtypes)


@st.composite
def perfect(draw):
    """The draft's rows are the target's. The last row is one-hot, so that the bonus is known as well. Now
    and then there are many drafts: what is only almost always accepted fails there."""
    count, vocab = draw(st.sampled_from((1, 2, 3, 4, 40))), draw(st.integers(1, 6))
    pick = draw(picks())
    draft = [distribution(pick, vocab) for _ in range(count)]
    tokens, bonus = [some(pick, row) for row in draft], pick(vocab)
    return built(
        draw, [*draft, onehot(bonus, vocab)], draft, tokens, vocab, dtypes=WIDE, outcome=[*tokens, bonus]
    )


@st.composite
def understated(draw):
    """The target gives each draft at least what its own row gives it; the rest of the rows differ."""
    count, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    pick = draw(picks())
    draft = [distribution(pick, vocab) for _ in range(count)]
    tokens, bonus = [some(pick, row) for row in draft], pick(vocab)
    target = [raised(pick, row, token) for row, token in zip(draft, tokens, strict=True)]
    return built(
        draw, [*target, onehot(bonus, vocab)], draft, tokens, vocab, dtypes=WIDE, outcome=[*tokens, bonus]
    )


@st.composite
def forbidden(draw):
    """The target likes the first drafts at least as well as the draft does, and forbids the next. The
    outcome is what comes before the replacement."""
    before, after, vocab = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(2, 6))
    pick = draw(picks())
    draft = [distribution(pick, vocab) for _ in range(before + 1 + after)]
    tokens = [some(pick, row) for row in draft]
    target = [raised(pick, row, token) for row, token in zip(draft[:before], tokens, strict=False)]
    target.append(distribution(pick, vocab, without=(tokens[before],)))
    target += [
        raised(pick, row, token) for row, token in zip(draft[before + 1 :], tokens[before + 1 :], strict=True)
    ]
    target.append(distribution(pick, vocab))
    return built(draw, target, draft, tokens, vocab, dtypes=WIDE, outcome=tokens[:before])


@st.composite
def greedy(draw):
    """One-hot target rows, drafts that agree with them for a while or longer."""
    count, vocab = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    pick = draw(picks())
    says, draft, tokens = [pick(vocab) for _ in range(count + 1)], [], []
    for token in says[:-1]:
        draft.append(distribution(pick, vocab))
        tokens.append(token if draft[-1][token] and pick(3) else some(pick, draft[-1]))
    agree = next((i for i in range(count) if tokens[i] != says[i]), count)
    target = [onehot(token, vocab) for token in says]
    return built(draw, target, draft, tokens, vocab, dtypes=WIDE, outcome=says[: agree + 1])


@st.composite
def nearly_equal(draw, *, residual):
    """Two rows that differ by a trifle at one draft, which the target forbids. The target's row has the
    trifle somewhere else or, without a residual, nowhere: the rest of the two rows is equal then."""
    dtype = draw(WIDE if residual else DTYPES)
    vocab, after = draw(st.integers(2, 5)), draw(st.integers(0, 2))
    pick = draw(picks())
    draft = [distribution(pick, vocab) for _ in range(after + 1)]
    target = [distribution(pick, vocab) for _ in range(after + 2)]
    tokens = [some(pick, row) for row in draft]
    target[0] = distribution(pick, vocab, without=tokens[:1])
    step = built(draw, target, draft, tokens, vocab, dtypes=st.just(dtype))
    trifle = 2.0**-12 if residual else torch.finfo(dtype).eps
    step.draft_probs[0] = step.target_probs[0]
    step.draft_probs[0, some(pick, target[0])] -= trifle
    if not residual:
        step.target_probs[0] = step.draft_probs[0]
    step.draft_probs[0, tokens[0]] = trifle
    return step


@st.composite
def runs(draw, *, one_hot, stop=False, many=False):
    """Tables over a small vocabulary. The draft's agrees with the target's in most rows."""
    vocab, rows, length = draw(st.integers(2, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    pick = draw(picks())
    row = (lambda: onehot(pick(vocab), vocab)) if one_hot else (lambda: distribution(pick, vocab))
    target = [row() for _ in range(rows)]
    draft = [r if pick(4) else row() for r in target]
    target, draft = ([[w / EIGHTHS for w in r] for r in t] for t in (target, draft))
    prompt = torch.tensor([pick(vocab) for _ in range(length)])
    count, k = draw(st.integers(0, 24 if many else 8)), draw(st.integers(1, 8 if many else 4))
    return Run(target, draft, prompt, count, k, pick(vocab) if stop else None, draw(SEEDS))


def spoken(rows, context, count, eos=None):
    """What a one-hot table says after a context, one token at a time."""
    text = list(context)
    for _ in range(count):
        row = rows[row_of(text, len(rows))]
        text.append(row.index(max(row)))
        if text[-1] == eos:
            break
    return text[len(context) :]


def rounds_needed(case):
    """How many rounds one-hot models take: each gets as far as the draft is right, and one token further."""
    text, left, rounds = case.prompt.tolist(), case.max_new_tokens, 0
    while left > 0:
        says = spoken(case.target_table, text, case.k + 1)
        drafts = spoken(case.draft_table, text, case.k)
        right = next((i for i in range(case.k) if says[i] != drafts[i]), case.k)
        text, left, rounds = text + says[: right + 1], left - right - 1, rounds + 1
    return rounds


# --- counting outcomes ---------------------------------------------------------------------------


def surprise(count, calls, chance):
    """calls · KL(count/calls ‖ chance): at least as far from the chance, on the same side, comes a binomial
    with a probability of at most exp(−surprise) (Chernoff, Hoeffding 1963, theorem 1)."""
    total = 0.0
    for seen, due in ((count, calls * chance), (calls - count, calls * (1 - chance))):
        if seen:
            total += seen * math.log(seen / due) if due > 0 else math.inf
    return total


def assert_as_likely(seen, law, calls, what):
    """``seen`` counts outcomes; ``law`` gives each its probability. The one that is furthest off is shown."""

    def off(outcome):
        return surprise(seen.get(outcome, 0), calls, law.get(outcome, 0.0))

    worst = max({**law, **seen}, key=off)
    if off(worst) > SURPRISE:
        count, chance = seen.get(worst, 0), law.get(worst, 0.0)
        raise Mismatch(
            f"{what} {_shown(worst)} came {count} times in {calls}, and its probability is {chance:.4g}",
            expected={_shown(o): round(calls * p, 1) for o, p in sorted(law.items())},
            got={_shown(o): n for o, n in sorted(seen.items())},
        )


def _shown(outcome):
    return str(list(outcome)) if isinstance(outcome, tuple) else str(outcome)


def law_of_a_step(odds):
    """The probability of every outcome given the drafts, by enumeration."""
    law, reached, kept = Counter(), 1.0, ()
    for target, draft, token in zip(odds.target_probs, odds.draft_probs, odds.draft_tokens, strict=False):
        accepted = min(1.0, target[token] / draft[token])
        residual = [max(p - q, 0.0) for p, q in zip(target, draft, strict=True)]
        for other, weight in enumerate(residual):
            if weight:
                law[(*kept, other)] += reached * (1 - accepted) * weight / sum(residual)
        reached, kept = reached * accepted, (*kept, token)
    for bonus, weight in enumerate(odds.target_probs[-1]):
        if weight:
            law[(*kept, bonus)] += reached * weight
    return +law


def outcomes(subject, odds, generator):
    step = [torch.tensor(rows, dtype=torch.float64) for rows in (odds.target_probs, odds.draft_probs)]
    tokens, vocab = torch.tensor(odds.draft_tokens, dtype=torch.int64), len(odds.target_probs[0])
    step[1] = step[1].reshape(-1, vocab)
    return [as_tuple(subject.speculative_step(*step, tokens, generator=generator)) for _ in range(odds.calls)]


def as_tuple(got):
    assert_true(isinstance(got, Tensor) and got.ndim == 1, "the result is no row of tokens", got=got)
    return tuple(got.tolist())


# Chosen so that what people get wrong moves some outcome by a factor of two or more: ratios p/q of 1/4 and
# 1/2 (where √ and ² are far off), residuals that look like neither row, in the first place and in the
# second, and draws whose order shows if one uniform serves two of them.
ODDS = (
    Odds(
        [[1 / 2, 1 / 2, 0], [1 / 8, 25 / 64, 31 / 64], [1 / 2, 1 / 4, 1 / 4]],
        [[1 / 4, 1 / 2, 1 / 4], [1 / 2, 3 / 8, 1 / 8]],
        [0, 0],
        450,
    ),
    Odds([[1 / 4, 3 / 4], [5 / 8, 3 / 8], [1 / 2, 1 / 2]], [[1 / 2, 1 / 2], [1 / 4, 3 / 4]], [0, 1], 400),
    Odds([[13 / 16, 1 / 8, 1 / 16], [1 / 4, 1 / 4, 1 / 2]], [[3 / 4, 1 / 4, 0]], [1], 400),
    Odds(
        [[5 / 8, 3 / 8], [5 / 8, 3 / 8], [3 / 8, 5 / 8], [1 / 8, 7 / 8]],
        [[3 / 8, 5 / 8], [1 / 2, 1 / 2], [3 / 4, 1 / 4]],
        [0, 1, 0],
        350,
    ),
    Odds([[3 / 4, 1 / 4], [1 / 32, 31 / 32]], [[1 / 2, 1 / 2]], [0], 250),
)
PAIRED = Odds([[1 / 4, 3 / 4], [1 / 2, 1 / 2]], [[1 / 2, 1 / 2]], [0], 600)


# --- part 1: one step ----------------------------------------------------------------------------


@given(case=steps())
def test_the_result_is_some_drafts_and_one_token(subject, case):
    """A step returns an int64 row: the first n drafts, n ≤ K, and exactly one token that the target allows.

    Catches drafts returned as they are, a missing bonus, a Python list, tokens of shape (1, n), rows that
    are normalised in place, and a token of probability 0 that slips through."""
    names = ("target_probs", "draft_probs", "draft_tokens")
    before = {name: getattr(case, name).clone() for name in names}
    got = case.on(subject)
    untouched(before, {name: getattr(case, name) for name in names})
    count = len(case.draft_tokens)
    length = got.shape[0] if isinstance(got, Tensor) and got.ndim == 1 else 1
    assert_tensor(got, shape=(length,), dtype=torch.int64)
    assert_true(1 <= length <= count + 1, f"{count} drafts give 1 to {count + 1} tokens", got=got)
    assert_equal(got[:-1], case.draft_tokens[: length - 1], "the result without its last token")
    tokens, vocab = got.tolist(), case.target_probs.shape[1]
    assert_true(
        all(0 <= token < vocab for token in tokens),
        f"a token lies outside the vocabulary of {vocab}",
        got=got,
    )
    for place, token in enumerate(tokens):
        row = case.target_probs[place]
        assert_true(
            row[token] > 0,
            f"token {token} at place {place} has probability 0 in the target",
            expected=row,
            got=got,
        )


@given(case=perfect())
def test_a_perfect_draft_is_accepted_whole(subject, case):
    """If the draft's rows are the target's, all K drafts are emitted, and a bonus from row K after them.

    min(1, p/q) = 1. Catches comparing with the target's own sample or argmax, reject-all, no bonus, and a
    bonus from row K − 1."""
    assert_equal(case.on(subject), case.outcome)


@given(case=understated())
def test_a_draft_that_the_target_likes_better_is_accepted(subject, case):
    """A draft with p ≥ q is always accepted, whatever the rest of the two rows.

    Catches the ratio upside down, acceptance with probability p (the draft's rows unused), and a match
    with the target's own sample."""
    assert_equal(case.on(subject), case.outcome)


@given(case=greedy())
def test_one_hot_targets_give_the_greedy_tokens(subject, case):
    """With one-hot target rows the result is the target's tokens up to the first that was not drafted.

    Catches accept-all, going on after a refusal, and replacements from another row."""
    assert_equal(case.on(subject), case.outcome)


@given(case=forbidden())
def test_a_draft_that_the_target_forbids_ends_the_step(subject, case):
    """A draft to which the target gives 0 is refused, and the step ends with its replacement, even if later
    drafts would pass.

    Catches accept-all, going on after a refusal, and counting all accepted drafts, not the leading ones."""
    got, count = case.on(subject), len(case.outcome)
    assert_tensor(got, shape=(count + 1,), dtype=torch.int64)
    assert_equal(got[:-1], case.outcome, "the result before the replacement")


@given(case=forbidden())
def test_a_replacement_is_a_token_that_was_drafted_too_rarely(subject, case):
    """What replaces a refused draft has p > q there: the others got all of their probability by drafting.

    Catches replacements from the target's row, from |p − q|, from q − p, from another row, and an inverse
    CDF over weights that do not sum to one."""
    got, place = case.on(subject), len(case.outcome)
    assert_tensor(got, shape=(place + 1,), dtype=torch.int64)
    token, target, draft = int(got[-1]), case.target_probs[place], case.draft_probs[place]
    lacking = [i for i in range(len(target)) if target[i] > draft[i]]
    message = (
        f"token {token} replaces draft {int(case.draft_tokens[place])} though it was drafted often enough"
    )
    assert_true(token in lacking, message, expected=f"one of {lacking}", got=got)


@given(case=nearly_equal(residual=True))
def test_a_small_residual_is_a_residual(subject, case):
    """However close the two rows are, a refused draft is replaced by a token that they differ in.

    Catches a residual that counts as none below some threshold, and rows rounded to half precision."""
    got, (target, draft) = case.on(subject), (case.target_probs[0], case.draft_probs[0])
    assert_equal(got, (target > draft).nonzero()[0])


@given(case=nearly_equal(residual=False))
def test_rounding_may_leave_no_residual(subject, case):
    """If a refusal leaves p − q nowhere above 0, the replacement is a token of the target's row.

    Rows that are equal but for rounding do that once in a while, at the end of a long night. Catches 0/0,
    which is NaN or an error, and an ε on all weights, which makes forbidden tokens possible."""
    try:
        got = case.on(subject)
    except NotImplementedError:
        raise  # a RuntimeError too, but it says that there is nothing to judge yet
    except RuntimeError as error:
        raise Mismatch(
            "nothing is left to draw from, and the step fails", got=f"{type(error).__name__}: {error}"
        ) from error
    assert_tensor(got, shape=(1,), dtype=torch.int64)
    token, row = int(got[0]), case.target_probs[0]
    assert_true(
        0 <= token < len(row) and row[token] > 0,
        f"token {token} has probability 0 in the target",
        expected=row,
        got=got,
    )


@given(case=steps(dtypes=WIDE, least=3))
def test_the_generator_is_the_only_source_of_randomness(subject, case):
    """The same state of the generator gives the same tokens, and no global random state is moved.

    Catches torch.rand and torch.multinomial without the generator, NumPy's and Python's global ones, a
    generator made once and kept, and one seeded by the clock."""
    generator = seeded(case.seed)
    before = global_states()
    args = (case.target_probs, case.draft_probs, case.draft_tokens)
    first = as_tuple(subject.speculative_step(*args, generator=generator))
    assert_states_kept(before)
    subject.speculative_step(*args, generator=generator)
    generator.set_state(seeded(case.seed).get_state())
    again = as_tuple(subject.speculative_step(*args, generator=generator))
    assert_equal(again, first, "the result from the same state of the generator")


@examples(quick=2, full=6)
@given(seed=SEEDS, vocab=st.sampled_from((16, 12, 15)), count=st.integers(0, 2))
def test_the_generator_moves_on(subject, seed, vocab, count):
    """Sixteen steps on one generator do not all end with the same token of 12 or more, all equally likely.

    They would once in 12¹⁵ = 1.5e16. Catches a fresh generator with a fixed seed in each call, one seeded
    with generator.initial_seed(), and a copy of the state that is used in place of the generator."""
    generator, rows = seeded(seed), torch.full((count + 1, vocab), 1 / vocab)
    tokens = torch.zeros(count, dtype=torch.int64)
    got = [int(subject.speculative_step(rows, rows[1:], tokens, generator=generator)[-1]) for _ in range(16)]
    assert_true(len(set(got)) > 1, "sixteen steps on one generator all end with the same token", got=got)


@examples(full=30)
@given(case=steps(least=1), extra=st.integers(1, 2))
def test_shapes_that_do_not_fit_are_refused(subject, case, extra):
    """target_probs has one row more than there are drafts, all rows have one vocabulary; else ValueError.

    Catches shapes that broadcast by accident, and rows that are silently left unused."""
    p, q, d = case.target_probs, case.draft_probs, case.draft_tokens
    wider = torch.cat([q, torch.zeros_like(q[:, :extra])], 1)
    for because, args in {
        "target_probs has as many rows as draft_probs": (p[:-1], q, d),
        "target_probs has rows to spare": (torch.cat([p] + [p[-1:]] * extra), q, d),
        "draft_tokens is too short": (p, q, d[:-1]),
        "draft_tokens is too long": (p, q, torch.cat([d, d[:1]])),
        "draft_probs has rows to spare": (p, torch.cat([q, q[:1]]), d),
        "the vocabularies differ": (p, wider, d),
        "draft_tokens is a column": (p, q, d[:, None]),
        "target_probs is a single row": (p[0], q, d),
        "there is a batch dimension": (p[None], q[None], d[None]),
    }.items():
        refused(subject, args, because)


@examples(full=30)
@given(case=steps(least=1), place=st.integers(0, 7))
def test_rows_that_are_no_distributions_are_refused(subject, case, place):
    """A negative number, NaN, infinity, or a sum that is not 1 in any row raises ValueError.

    Catches logits and unnormalised weights passed for probabilities, and checks of one of the two only."""
    for which in ("target_probs", "draft_probs"):
        rows = getattr(case, which)
        row, vocab = place % len(rows), rows.shape[1]
        token = int(case.draft_tokens[row]) if which == "draft_probs" else place % vocab
        here, there = torch.tensor(token), torch.tensor((token + 1) % vocab)
        for because, bad in {
            "sums to 2": rows[row] * 2,
            "sums to 1/2": rows[row] / 2,
            "holds NaN": rows[row].index_fill(0, there, math.nan),
            "holds infinity": rows[row].index_fill(0, here, math.inf),
            "holds −1/2": torch.zeros_like(rows[row]).index_fill(0, here, 1.5).index_fill(0, there, -0.5),
        }.items():
            wrong = rows.clone()
            wrong[row] = bad
            args = {"target_probs": case.target_probs, "draft_probs": case.draft_probs, which: wrong}
            refused(subject, (*args.values(), case.draft_tokens), f"row {row} of {which} {because}")


@given(case=steps(least=1), place=st.integers(0, 3), by=st.integers(0, 3))
def test_drafts_that_cannot_have_been_drafted_are_refused(subject, case, place, by):
    """A draft outside the vocabulary, or with probability 0 in its own row, raises ValueError.

    Catches negative indices that wrap around, and p/0 taken for infinity, so that the draft is accepted."""
    count, vocab = case.draft_probs.shape
    place %= count
    for bad in (vocab + by, -1 - by):
        wrong = case.draft_tokens.clone()
        wrong[place] = bad
        refused(subject, (case.target_probs, case.draft_probs, wrong), f"draft {bad} is no token of {vocab}")
    draft, token = case.draft_probs.clone(), int(case.draft_tokens[place])
    draft[place] = 0
    draft[place, (token + 1) % vocab] = 1
    because = f"draft {token} at place {place} has probability 0 in its row"
    refused(subject, (case.target_probs, draft, case.draft_tokens), because)


def refused(subject, args, because):
    refuses(ValueError, lambda: subject.speculative_step(*args, generator=seeded(0)), because=because)


def global_states():
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": (name, keys.tobytes(), *rest),
        "Python": random.getstate(),
    }


def assert_states_kept(before):
    after = global_states()
    for whose, state in before.items():
        assert_true(after[whose] == state, f"{whose}'s global random state has moved")


@examples(quick=0, full=len(ODDS))
@given(odds=st.sampled_from(ODDS))
def test_every_outcome_is_as_likely_as_the_rule_makes_it(subject, odds):
    """Over many steps on one generator each outcome, and each number of tokens, comes as often as its
    probability says, given the drafts.

    An exact test with a false-alarm rate below 5e-11 (31 cells), fixed seeds, and power above 1 − 1e-4
    against each of these. Catches acceptance with √(p/q), (p/q)² or p, one uniform for all drafts, one for a
    draft and for what follows it, the likeliest token of the residual, and p cut to where p > q."""
    law, lengths = law_of_a_step(odds), Counter()
    for outcome, chance in law.items():
        lengths[len(outcome)] += chance
    seen = outcomes(subject, odds, seeded(ODDS.index(odds)))
    assert_as_likely(Counter(map(len, seen)), lengths, odds.calls, "the number of tokens")
    assert_as_likely(Counter(seen), law, odds.calls, "the outcome")


@examples(quick=0, full=1)
@given(odds=st.just(PAIRED))
def test_consecutive_steps_are_independent(subject, odds):
    """Pairs of outcomes of consecutive steps on one generator are as likely as the product of their laws.

    An exact test with a false-alarm rate below 2e-11 (9 cells). Catches a generator that is read by a copy
    and moved on by less than was read, so that steps share their draws."""
    law, got = law_of_a_step(odds), outcomes(subject, odds, seeded(7))
    pairs = {a + b: law[a] * law[b] for a, b in product(law, law)}
    # Outcomes of one step are told apart by how they begin, so that a pair can be read from its tokens.
    seen = Counter(a + b for a, b in zip(got[::2], got[1::2], strict=True))
    assert_as_likely(seen, pairs, odds.calls // 2, "the pair of steps")


@examples(quick=0, full=1)
@given(dtype=st.just(torch.bfloat16))
def test_a_large_half_precision_vocabulary_is_drawn_evenly(subject, dtype):
    """Of 1,024 tokens that are equally likely in bfloat16, each half, and each half of every four, comes as
    often as the other.

    An exact test with a false-alarm rate below 1e-11 (4 cells). Catches a CDF summed in half precision: it
    stops growing, or moves in steps that skip tokens, and a uniform number of 8 bits."""
    vocab, calls = 1024, 200
    target, draft = torch.full((1, vocab), 1 / vocab, dtype=dtype), torch.empty((0, vocab), dtype=dtype)
    tokens, generator = torch.empty(0, dtype=torch.int64), seeded(11)
    got = [
        int(subject.speculative_step(target, draft, tokens, generator=generator)[-1]) for _ in range(calls)
    ]
    halves = Counter("lower" if token < vocab // 2 else "upper" for token in got)
    assert_as_likely(halves, {"lower": 0.5, "upper": 0.5}, calls, "half of the vocabulary:")
    # Of the steps of a CDF that is too coarse, most fall on the inner two of four tokens.
    fours = Counter("outer" if token % 4 in (0, 3) else "inner" for token in got)
    assert_as_likely(fours, {"outer": 0.5, "inner": 0.5}, calls, "two of each four tokens:")


# --- part 2: the loop ----------------------------------------------------------------------------


@given(case=runs(one_hot=False))
def test_the_loop_returns_exactly_the_new_tokens(subject, case):
    """Without eos the result is an int64 row of max_new_tokens tokens, none of which the target forbids.

    Catches the prompt returned with them, a last round that overshoots, a count that includes the prompt,
    and a prompt that is modified."""
    before = case.prompt.clone()
    got = case.on(subject)
    untouched({"prompt": before}, {"prompt": case.prompt})
    assert_tensor(got, shape=(case.max_new_tokens,), dtype=torch.int64)
    text = before.tolist()
    for token in got.tolist():
        row = case.target_table[row_of(text, len(case.target_table))]
        allowed = 0 <= token < len(row) and row[token] > 0
        assert_true(
            allowed, f"after {text} the target gives token {token} probability 0", expected=row, got=got
        )
        text.append(token)


@given(case=runs(one_hot=True))
def test_one_hot_models_give_the_targets_own_text(subject, case):
    """With one-hot models the loop writes, token by token, what the target writes alone.

    Catches a target cache that keeps refused drafts or lacks accepted ones, rows taken one place off, and
    drafts emitted unjudged."""
    want = torch.tensor(
        spoken(case.target_table, case.prompt.tolist(), case.max_new_tokens), dtype=torch.int64
    )
    assert_equal(case.on(subject), want)


@given(case=runs(one_hot=True, stop=True))
def test_the_first_eos_is_the_last_token(subject, case):
    """The text ends with the first eos that is emitted, wherever in a round that is; eos in the prompt or in
    a refused draft does not end it.

    Catches looking at the last token of a round only, eos = 0 taken for None, and eos left out."""
    want = spoken(case.target_table, case.prompt.tolist(), case.max_new_tokens, case.eos)
    assert_equal(case.on(subject), torch.tensor(want, dtype=torch.int64))


@given(case=runs(one_hot=True))
def test_what_a_model_reads_follows_the_text_and_its_drafts(subject, case):
    """Whatever a model reads, its cache then holds the text so far and at most k drafts after it.

    Catches refused drafts left in a cache, an accepted draft that the draft model never reads, and more
    than k drafts."""
    target, draft, text = with_models(subject, case)
    for model in (target, draft):
        for context in strays(model, case, text):
            kept = common_prefix(context, text)
            drafts = spoken(case.draft_table, context[:kept], case.k)
            message = (
                f"the cache of the {model.name} is not a beginning of the text and at most {case.k} drafts"
            )
            raise Mismatch(message, expected=f"a beginning of {context[:kept]} + {drafts}", got=context)


@given(case=runs(one_hot=False))
def test_no_model_reads_a_token_twice(subject, case):
    """Each run of a model reads only what its cache has not held yet: no context is computed twice.

    Catches a prompt that is read anew in every round, caches rolled back too far, and drafts that the
    target has judged and is given again."""
    target, draft, _ = with_models(subject, case)
    for model in (target, draft):
        for *context, token in rereads(model):
            raise Mismatch(f"the {model.name} reads token {token} after {context} again", got=model.reads())


@given(case=runs(one_hot=True))
def test_the_target_runs_once_a_round(subject, case):
    """One-hot models: there are as many target runs as rounds (and one for the prompt), and no more rounds
    than it takes if each gets as far as the draft is right and one token further.

    Catches drafts judged one by one, a bonus that is thrown away, a k that is not used, and drafts that come
    from a stale cache."""
    target, *_ = with_models(subject, case)
    assert_few_runs(target, rounds_needed(case), case)
    for before, context in target.contexts:
        judged = len(context) - max(len(before), len(case.prompt))
        message = f"the target was given {judged} new tokens in one run, and k is {case.k}"
        assert_true(judged <= case.k + 1, message, got=target.reads())


@given(case=runs(one_hot=False, many=True))
def test_a_perfect_draft_gives_k_plus_one_tokens_a_round(subject, case):
    """If the draft is the target, each round emits k + 1 tokens: n of them take ⌈n / (k + 1)⌉ target runs.

    Catches draft rows one place off, a draft model that does not read its last draft, drafts that are taken
    for certain, and a lost bonus."""
    target, draft = Model("target", case.target_table), Model("draft", case.target_table)
    as_tuple(case.on(subject, target, draft))
    assert_few_runs(target, -(-case.max_new_tokens // (case.k + 1)), case)


@given(case=runs(one_hot=False))
def test_the_loop_draws_from_the_generator_only(subject, case):
    """The same state of the generator gives the same text, and no global random state is moved.

    Catches drafts sampled without the generator, or with another one."""
    before = global_states()
    first = as_tuple(case.on(subject))
    assert_states_kept(before)
    assert_equal(as_tuple(case.on(subject)), first, "the text from the same state of the generator")


EVEN = [1 / 2, 1 / 2]
# In the first the draft is the target and far from even, so that how drafts are drawn shows; in the second
# what one row proposes looks very different under the next. In the third a draft and its verdict, in the
# fourth a verdict and the next draft go the same way, if one uniform decides both.
LOOPS = (
    Run(*[[[1 / 8, 7 / 8], [7 / 8, 1 / 8], [1 / 8, 7 / 8]]] * 2, torch.tensor([1]), 3, 2, None, 3),
    Run(
        [EVEN, EVEN, [3 / 8, 5 / 8]],
        [[7 / 8, 1 / 8], [7 / 8, 1 / 8], [1 / 8, 7 / 8]],
        torch.tensor([1]), 3, 2, None, 3,
    ),
    Run([[3 / 4, 1 / 4], EVEN, [1 / 4, 3 / 4]], [EVEN, EVEN, EVEN], torch.tensor([1]), 2, 1, None, 3),
    Run([EVEN, EVEN, [15 / 32, 17 / 32]], [EVEN, EVEN, [15 / 16, 1 / 16]], torch.tensor([1]), 2, 1, None, 3),
)  # fmt: skip


@examples(quick=0, full=len(LOOPS))
@given(case=st.sampled_from(LOOPS), calls=st.just(300))
def test_the_text_is_distributed_as_the_targets(subject, case, calls):
    """Every text of two or three tokens, and every beginning of one, comes as often as the product of the
    target's probabilities says.

    An exact test of the joint law with a false-alarm rate below 6e-11 (40 cells). Catches drafts chosen
    greedily but judged as samples, draft rows one place off, draws from a copy of the generator, and a
    generator that starts anew each time."""
    generator, texts = seeded(case.seed), []
    for _ in range(calls):
        models = Model("target", case.target_table), Model("draft", case.draft_table)
        got = subject.speculative_generate(
            *models, case.prompt, case.max_new_tokens, k=case.k, generator=generator
        )
        texts.append(as_tuple(got))
    law = {(): 1.0}
    for length in range(1, case.max_new_tokens + 1):
        longer = {}
        for text, chance in law.items():
            row = case.target_table[row_of([*case.prompt.tolist(), *text], len(case.target_table))]
            longer |= {(*text, token): chance * p for token, p in enumerate(row)}
        law = longer
        assert_as_likely(Counter(text[:length] for text in texts), law, calls, "the text")


@examples(full=30)
@given(case=runs(one_hot=False), by=st.integers(0, 2))
def test_bad_arguments_of_the_loop_are_refused(subject, case, by):
    """An empty prompt, a prompt that is no row, k < 1 or max_new_tokens < 0 raise ValueError.

    Catches a range that is silently empty, and a loop that never ends."""
    for because, change in {
        "the prompt is empty": {"prompt": case.prompt[:0]},
        "the prompt has a batch dimension": {"prompt": case.prompt[None]},
        f"k is {-by}": {"k": -by},
        f"max_new_tokens is {-1 - by}": {"max_new_tokens": -1 - by},
    }.items():
        wrong = replace(case, **({"max_new_tokens": 1 + case.max_new_tokens} | change))
        refuses(ValueError, lambda wrong=wrong: wrong.on(subject), because=because)


def with_models(subject, case):
    """Run the loop, and return both models and the whole text."""
    target, draft = Model("target", case.target_table), Model("draft", case.draft_table)
    got = case.on(subject, target, draft)
    assert_tensor(got, shape=(case.max_new_tokens,), dtype=torch.int64)
    return target, draft, case.prompt.tolist() + got.tolist()


def strays(model, case, text):
    """What a model's cache has held that is not a beginning of the text and then at most k drafts."""
    for _, context in model.contexts:
        drafts = context[common_prefix(context, text) :]
        start = context[: len(context) - len(drafts)]
        if len(drafts) > case.k or drafts != spoken(case.draft_table, start, len(drafts)):
            yield context


def rereads(model):
    """The contexts that a model has computed more than once."""
    known = set()
    for before, context in model.contexts:
        for length in range(len(before) + 1, len(context) + 1):
            read = tuple(context[:length])
            if read in known:
                yield read
            known.add(read)


def spare_runs(target, rounds, prompt):
    """How many runs there are beyond one a round, a first one that reads nothing but the prompt left out."""
    runs = [context for before, context in target.contexts if len(context) > len(before)]
    return len(runs) - rounds - (bool(runs) and len(runs[0]) <= len(prompt))


def assert_few_runs(target, rounds, case):
    message = f"{case.max_new_tokens} tokens took {len(target.reads())} target runs"
    expected = f"at most {rounds}, and one for the prompt alone"
    assert_true(spare_runs(target, rounds, case.prompt) <= 0, message, expected=expected, got=target.reads())


def common_prefix(a, b):
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


# --- part 3: choosing k --------------------------------------------------------------------------


@dataclass
class Rows:
    target_probs: Tensor
    draft_probs: Tensor


@st.composite
def pairs_of_rows(draw):
    places, vocab = distinct(draw, draw(st.integers(0, 2)), high=3), draw(st.integers(1, 6))
    pick = draw(picks())
    dtype, layout = draw(DTYPES), draw(LAYOUTS)
    rows = ([distribution(pick, vocab) for _ in range(math.prod(places))] for _ in range(2))
    return Rows(
        *(laid_out(table(r, dtype, "contiguous", vocab).reshape(*places, vocab), layout) for r in rows)
    )


@given(case=pairs_of_rows())
def test_acceptance_rate_is_the_mass_that_the_rows_share(subject, case):
    """The acceptance rate is Σ min(p, q) = 1 − ½ Σ |p − q|, place by place: Σ q(x) min(1, p(x)/q(x)).

    Catches the total variation itself, its double, a mean over the vocabulary or over the places, Σ p·q, and
    a sum over another dimension."""
    p, q = case.target_probs, case.draft_probs
    before = {"target_probs": p.clone(), "draft_probs": q.clone()}
    want = torch.minimum(p.double(), q.double()).sum(-1)
    assert_close(subject.acceptance_rate(p, q), want, dtype=p.dtype, length=p.shape[-1] + 1, magnitude=2.0)
    untouched(before, {"target_probs": p, "draft_probs": q})


@examples(full=30)
@given(case=pairs_of_rows())
def test_rows_of_different_shapes_have_no_acceptance_rate(subject, case):
    """Rows of another vocabulary, or another number of rows, raise ValueError.

    Catches shapes that broadcast."""
    p, q = case.target_probs, case.draft_probs
    wrong = {
        "the vocabularies differ": torch.cat([q, q], -1),
        "the number of rows differs": torch.stack([q, q]),
    }
    for because, other in wrong.items():
        refuses(ValueError, lambda other=other: subject.acceptance_rate(p, other), because=because)
        refuses(ValueError, lambda other=other: subject.acceptance_rate(other, p), because=because)


@given(sixteenths=st.integers(0, 16), k=st.integers(0, 10))
def test_expected_tokens_sums_the_chances_of_getting_that_far(subject, sixteenths, k):
    """A step emits (1 − α^{k+1}) / (1 − α) tokens on average: 1 + α + … + α^k, and k + 1 if α is 1.

    Catches a forgotten bonus, an exponent k, drafts counted whether accepted or not, and 0/0 at α = 1."""
    alpha = Fraction(sixteenths, 16)
    try:
        got = subject.expected_tokens(float(alpha), k)
    except ZeroDivisionError as error:
        raise Mismatch(
            "division by zero", expected=float(k + 1), got=f"ZeroDivisionError: {error}"
        ) from error
    assert_true(isinstance(got, (int, float)), "the result is no number", got=got)
    want = torch.tensor(float(sum(alpha**i for i in range(k + 1))), dtype=torch.float64)
    # The closed form divides two rounded numbers by 1 − α, which may be as small as 1/16.
    assert_close(
        torch.tensor(float(got), dtype=torch.float64), want, dtype=torch.float64, magnitude=16.0 * (k + 1)
    )


@given(sixteenths=st.integers(0, 16), eighths=st.integers(0, 10), max_k=st.integers(0, 12))
def test_best_k_gives_most_tokens_per_unit_of_time(subject, sixteenths, eighths, max_k):
    """best_k maximises expected_tokens(α, k) / (k·cost + 1) over 0 … max_k, the smallest k of equals.

    Where α ≤ cost speculation cannot pay (Leviathan, corollary 3.9), and k is 0. Catches a target run that
    costs nothing, most tokens whatever they cost, a k of at least 1, and a max_k that is left out."""
    alpha, cost = Fraction(sixteenths, 16), Fraction(eighths, 8)
    speed = [sum(alpha**i for i in range(k + 1)) / (k * cost + 1) for k in range(max_k + 1)]
    try:
        got = operator.index(subject.best_k(float(alpha), float(cost), max_k))
    except TypeError as error:
        raise Mismatch("the result is no whole number", got=str(error)) from error
    except ZeroDivisionError as error:
        raise Mismatch(
            "division by zero", expected=speed.index(max(speed)), got=f"ZeroDivisionError: {error}"
        ) from error
    assert_true(0 <= got <= max_k, f"k lies outside 0 … {max_k}", got=got)
    best = speed.index(max(speed))
    # Speeds that float64 can hardly tell apart are equally good; α = cost gives exact equals everywhere.
    as_good = alpha != cost and speed[got] >= speed[best] * (1 - Fraction(1, 10**12))
    message = f"k = {got} gives {float(speed[got]):.4g} tokens per unit of time"
    expected = f"k = {best}, which gives {float(speed[best]):.4g}"
    assert_true(got == best or as_good, message, expected=expected, got=got)


@given(by=st.sampled_from((1, 0.5, 2)), k=st.integers(0, 4))
def test_impossible_rates_and_counts_are_refused(subject, by, k):
    """An alpha outside [0, 1], and a negative k, max_k or cost, raise ValueError.

    Catches percentages, and ranges that are silently empty."""
    for because, call in {
        f"alpha is {1 + by}": lambda: subject.expected_tokens(1 + by, k),
        f"alpha is {-by}": lambda: subject.expected_tokens(-by, k),
        f"k is {-1 - k}": lambda: subject.expected_tokens(0.5, -1 - k),
        f"an alpha of {1 + by} is given to best_k": lambda: subject.best_k(1 + by, 0.5, k),
        f"an alpha of {-by} is given to best_k": lambda: subject.best_k(-by, 0.5, k),
        f"cost is {-by}": lambda: subject.best_k(0.5, -by, k),
        f"max_k is {-1 - k}": lambda: subject.best_k(0.5, 0.5, -1 - k),
    }.items():
        refuses(ValueError, call, because=because)


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name.

    None depends on how a file draws: what is not certain is counted, and sorted into coarse classes."""

    def step(target, draft, tokens, seed=0, dtype=torch.float64):
        rows = torch.tensor(target, dtype=dtype), torch.tensor(draft, dtype=dtype).reshape(-1, len(target[0]))
        return subject.speculative_step(
            *rows, torch.tensor(tokens, dtype=torch.int64), generator=seeded(seed)
        )

    def quarters(odds, outcome):
        """How often an outcome comes, or one of a length, to the nearest quarter."""
        got = outcomes(subject, odds, seeded(5))
        return round(4 * sum(outcome in (one, len(one)) for one in got) / odds.calls)

    def support(*odds):
        return sorted(set(outcomes(subject, Odds(*odds, 60), seeded(5))))

    def moved(call):
        before = global_states()
        call()
        return [whose for whose, state in global_states().items() if state != before[whose]]

    def afterwards():
        target = torch.tensor([[1 / 8, 7 / 8], [1 / 2, 1 / 2]])
        for seed in range(8):
            subject.speculative_step(
                target, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), generator=seeded(seed)
            )
        return target

    def dice(seed):
        generator, row, none = seeded(seed), torch.full((1, 12), 1 / 12), torch.empty(0, 12)
        tokens = torch.empty(0, dtype=torch.int64)
        throws = [subject.speculative_step(row, none, tokens, generator=generator) for _ in range(16)]
        return len({int(throw[-1]) for throw in throws}) > 1, int(throws[0][-1])

    def refused_after_a_bonus_of_0():
        got = outcomes(subject, replace(PAIRED, calls=300), seeded(5))
        after = [b for a, b in zip(got[::2], got[1::2], strict=True) if a == (0, 0)]
        return round(4 * sum(len(b) == 1 for b in after) / max(len(after), 1))

    def coarse():
        row, none = torch.full((1, 1024), 1 / 1024, dtype=torch.bfloat16), torch.empty(0, 1024).bfloat16()
        generator, tokens = seeded(5), torch.empty(0, dtype=torch.int64)
        got = [int(subject.speculative_step(row, none, tokens, generator=generator)[-1]) for _ in range(60)]
        return sum(token % 4 in (0, 3) for token in got) < 18

    def text(case, **change):
        return replace(case, **change).on(subject)

    def habits(case, perfect=False):
        """What can be said of the models' runs whatever the style: too many, too long, repeated, astray."""
        target = Model("target", case.target_table)
        draft = Model("draft", case.target_table if perfect else case.draft_table)
        whole = case.prompt.tolist() + case.on(subject, target, draft).tolist()
        rounds = -(-case.max_new_tokens // (case.k + 1)) if perfect else rounds_needed(case)
        return [
            spare_runs(target, rounds, case.prompt) > 0,
            max(len(context) - max(len(before), len(case.prompt)) for before, context in target.contexts)
            > case.k + 1,
            *(bool([*rereads(model)]) for model in (target, draft)),
            *(not perfect and bool([*strays(model, case, whole)]) for model in (target, draft)),
        ]

    def first_tokens():
        generator, zeros = seeded(5), [0, 0]
        for case in LOOPS[:2] * 60:
            models = Model("target", case.target_table), Model("draft", case.draft_table)
            got = subject.speculative_generate(*models, case.prompt, 2, k=2, generator=generator)
            zeros[LOOPS.index(case)] += int(got[0]) == 0
        return zeros[0] > 0, zeros[1] > 12

    def too_often(case, beginning):
        """Whether more than three of eight texts begin so, where about one in four should."""
        generator, seen = seeded(5), 0
        for _ in range(80):
            models = Model("target", case.target_table), Model("draft", case.draft_table)
            got = subject.speculative_generate(*models, case.prompt, 2, k=1, generator=generator)
            seen += as_tuple(got)[: len(beginning)] == beginning
        return seen > 30

    def alike():
        generator, table = seeded(5), [[0.25] * 4]
        texts = [
            subject.speculative_generate(
                Model("target", table), Model("draft", table), torch.tensor([0]), 20, k=2, generator=generator
            )
            for _ in range(2)
        ]
        return torch.equal(*texts)

    says, even, near = (
        [[0.0, 1, 0], [1, 0, 0], [0, 0, 1]],
        [[1 / 3] * 3] * 2,
        [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4]],
    )
    p, q = torch.tensor([[1 / 2, 1 / 2], [1, 0]]), torch.tensor([[1 / 4, 3 / 4], [1 / 2, 1 / 2]])
    tables = (
        [[0.0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[0.0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]],
    )
    run = Run(*tables, torch.tensor([2, 1]), 9, 3, None, 0)
    soft = Run([[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4]], near, torch.tensor([1, 1]), 12, 1, None, 0)
    stubborn = Run([[1.0, 0, 0]], [[0.0, 1, 0]], torch.tensor([2]), 3, 2, None, 0)
    return {
        "both drafts right": lambda: step(says, even, [1, 0]),
        "the first wrong": lambda: step(says, even, [0, 0]),
        "the second wrong": lambda: step(says, even, [1, 2]),
        "no drafts": lambda: step(says[:1], [], []),
        "a perfect draft": lambda: step([*near, [0, 0, 1]], near, [0, 1]),
        "drafts that the target likes better": lambda: step([*near, [0, 0, 1]], near[::-1], [0, 1]),
        "what replaces a draft": lambda: support([[0, 1 / 2, 1 / 2], [1, 0, 0]], [[1 / 2, 1 / 2, 0]], [0]),
        "what replaces a draft that the target allows": lambda: support(
            [[1 / 4, 1 / 4, 1 / 2], [1, 0, 0]], [[3 / 4, 1 / 4, 0]], [0]
        ),
        "what replaces the first of two": lambda: support(
            [[0, 1 / 2, 1 / 2], [1 / 2, 1 / 2, 0], [1, 0, 0]], [[1 / 2, 1 / 2, 0], [0, 0, 1]], [0, 2]
        ),
        "what replaces the second": lambda: support(
            [[1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2], [1, 0, 0]], [[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0]], [1, 0]
        ),
        "what follows a refusal": lambda: support(
            [[0, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]], [0, 1]
        ),
        "which bonus": lambda: support([[1 / 4, 3 / 4]], [], []),
        "p/q = 1/4": lambda: quarters(Odds([[1 / 4, 1 / 4, 1 / 2], [1, 0, 0]], [[1, 0, 0]], [0], 100), 1),
        "even residual": lambda: quarters(
            Odds([[0, 3 / 4, 1 / 4], [1, 0, 0]], [[1 / 2, 1 / 2, 0]], [0], 100), (1,)
        ),
        "uneven residual": lambda: quarters(
            Odds([[0, 1 / 32, 31 / 32], [1, 0, 0]], [[1, 0, 0]], [0], 60), (1,)
        ),
        "p/q = 1/2 twice": lambda: quarters(
            Odds([[1 / 2, 1 / 2]] * 2 + [[1, 0]], [[1, 0]] * 2, [0, 0], 100), 3
        ),
        "refused and replaced": lambda: quarters(replace(ODDS[2], calls=100), (2,)),
        "accepted and bonus": lambda: quarters(replace(PAIRED, calls=100), (0, 0)),
        "refused after a bonus": refused_after_a_bonus_of_0,
        "1,024 tokens in bfloat16": coarse,
        "no residual": lambda: support([[1 - 2**-20, 0, 0], [1, 0, 0]], [[1 - 2**-20, 2**-20, 0]], [1]),
        "small residual": lambda: support(
            [[1 / 2, 1 / 2, 0], [1, 0, 0]], [[1 / 2 - 2**-12, 1 / 2, 2**-12]], [2]
        ),
        "residual lost in half precision": lambda: support(
            [[7 / 8, 1 / 8, 0], [1, 0, 0]], [[7 / 8 - 3 / 2048, 1 / 8, 3 / 2048]], [2]
        ),
        "ratios above and below 1": lambda: quarters(replace(ODDS[3], calls=100), 2),
        "a hundred perfect drafts": lambda: (
            min(
                len(step([[1 / 2, 1 / 2]] * 101, [[1 / 2, 1 / 2]] * 100, [0] * 100, seed))
                for seed in range(8)
            )
            == 101
        ),
        "random states moved by acceptance": lambda: moved(
            lambda: step([*near, says[0]], near[::-1], [1, 0])
        ),
        "random states moved by a bonus": lambda: moved(lambda: step(near[:1], [], [])),
        "sixteen throws": lambda: dice(0)[0],
        "first throws": lambda: len({dice(seed)[1] for seed in range(8)}) > 1,
        "the target afterwards": afterwards,
        "its type": lambda: type(step(near[:1], [], [])).__name__,
        "draft without probability": lambda: step(says, [[1, 0, 0], [1, 0, 0]], [1, 0]),
        "draft −1": lambda: step(says, even, [1, -1]),
        "draft beyond the vocabulary": lambda: step(says, even, [1, 3]),
        "target rows that sum to 2": lambda: step([[0, 2, 0], [2, 0, 0], [0, 0, 2]], even, [1, 0]),
        "draft rows that sum to 2": lambda: step(says, [[1, 1, 0], [1, 1, 0]], [1, 0]),
        "NaN": lambda: step([*says[:2], [math.nan, 0, 1]], even, [0, 0]),
        "a row to spare": lambda: step([*says, says[0]], even, [1, 0]),
        "one-hot models": lambda: text(run),
        "one-hot models, one token": lambda: text(run, max_new_tokens=1),
        "one-hot models, no token": lambda: text(run, max_new_tokens=0),
        "one-hot models, another prompt": lambda: text(run, prompt=torch.tensor([0])),
        "eos 0": lambda: text(run, eos=0),
        "eos 1": lambda: text(run, eos=1),
        "eos 2": lambda: text(run, eos=2),
        "eos 2, k 1": lambda: text(run, eos=2, k=1, prompt=torch.tensor([0])),
        "habits": lambda: habits(run),
        "habits, k 1": lambda: habits(replace(run, k=1)),
        "habits, perfect draft": lambda: habits(soft, perfect=True),
        "first tokens": first_tokens,
        "draws coupled in a round": lambda: too_often(LOOPS[2], (0,)),
        "draws coupled between rounds": lambda: too_often(LOOPS[3], (1, 1)),
        "two texts": alike,
        "random states moved by the loop": lambda: moved(lambda: text(soft)),
        "an eos that is drafted and refused": lambda: text(stubborn, eos=1),
        "an eos in the prompt": lambda: text(stubborn, eos=2),
        "no prompt": lambda: text(run, prompt=run.prompt[:0]),
        "k of 0": lambda: text(run, k=0),
        "acceptance rate": lambda: subject.acceptance_rate(p, q),
        "acceptance rate of other shapes": lambda: subject.acceptance_rate(p, q[:1]),
        "expected tokens": lambda: float(subject.expected_tokens(0.5, 2)),
        "expected tokens at 1": lambda: float(subject.expected_tokens(1.0, 2)),
        "alpha 2": lambda: subject.expected_tokens(2.0, 2),
        "best k": lambda: subject.best_k(0.75, 0.125, 8),
        "best k of few": lambda: subject.best_k(0.75, 0.125, 2),
        "best k, dear drafts": lambda: subject.best_k(0.5, 0.75, 8),
        "best k of equals": lambda: subject.best_k(0.5, 0.5, 8),
    }
