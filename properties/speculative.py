"""The laws of speculative decoding: what must and what can never be emitted, and how likely the rest is; a
loop that writes the target's text in as few runs as the drafts allow; and the arithmetic that chooses k.

Most claims are about support and have no false alarms: rows are multiples of 1/8, exact in every dtype,
and what is said of them holds whatever is drawn. Eight claims count. Theirs are fixed tables and fixed
seeds, so that a file gets the same verdict every time; what is random is only which of the right ways to
use a generator the file has chosen. A cell that a right file fills with probability p deviates as far as
``surprise`` allows with a probability of at most 2·exp(−SURPRISE) (Chernoff's bound, no approximation);
there are fewer than 160 cells in the kata, so a right file is refused with a probability below
160 · 2·exp(−27) + 3 · 1e-10 = 9e-10, all stages together.
"""

import math
import operator
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

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
from dojo.draw import examples, laid_out

WIDE = (torch.float32, torch.float64)
"""Only these where acceptance is certain: u < p/q with p = q may fail for a u that half types round to 1."""

DTYPES = (*WIDE, *HALF_TYPES)
LAYOUTS = ("contiguous", "transposed", "strided")
SEEDS = 64
"""No uniform number among the first 20,000 of the seeds below it is 0 in float32, so that u < r and u ≤ r are the
same at r = 0: no verdict hangs on a chance of 2⁻²⁴."""

TRIFLES = {torch.float32: 2.0**-16, torch.float64: 2.0**-28}
"""Differences that are small, and exact in the dtype for numbers from 1/8 to 1; float32 loses the second."""

EIGHTHS = 8
SURPRISE = 27.0
"""How many nats a count may deviate: the false-alarm rate of a cell is at most 2·exp(−27) = 3.8e-12."""


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
        self.keys, self.most_runs = [0], 100

    def __len__(self):
        return len(self.cache)

    def probs(self, tokens):
        if not isinstance(tokens, Tensor) or tokens.ndim != 1:
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise Mismatch(f"the {self.name} was given no row of tokens", got=shape)
        if len(self.contexts) == self.most_runs:
            raise Mismatch(f"the {self.name} has run {self.most_runs} times, and the text is not done")
        before = self.cache.copy()
        for token in tokens.tolist():
            self.cache.append(token)
            self.keys.append(self.keys[-1] + len(self.cache) * (token + 1))
        self.contexts.append((before, self.cache.copy()))
        return self.table[[key % len(self.table) for key in self.keys[len(before) + 1 :]]]

    def reads(self):
        """What it read, run by run."""
        return [context[len(before) :] for before, context in self.contexts if len(context) > len(before)]

    def rollback(self, length):
        assert_true(length >= 0, f"the {self.name} was rolled back to {length} tokens")
        del self.cache[length:], self.keys[length + 1 :]


def row_of(context, rows):
    return sum((i + 1) * (token + 1) for i, token in enumerate(context)) % rows


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- cases: all of one comes from one seed or, shrunk, from one short byte string -------------------


def picker(drawn):
    """A function that gives the next whole number from 0 to n − 1; shrunk, 0, 1, 2 … as the bytes say."""
    seed, data = drawn
    if seed:
        return random.Random(seed).randrange
    left = iter(data)
    return lambda n: next(left, 0) % n


DRAWN = st.tuples(st.integers(0, 2**16), st.binary(max_size=48)).map(picker)
"""Two draws in all: what Hypothesis takes for each draw is half of what an example takes."""


def cases(make, **settings):
    return DRAWN.map(lambda pick: make(pick, **settings))


def one_of(pick, options):
    return options[pick(len(options))]


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
    return one_of(pick, [i for i, weight in enumerate(row) if weight])


def onehot(token, vocab):
    return [EIGHTHS * (i == token) for i in range(vocab)]


def raised(pick, row, token):
    """The row with what others have moved to the token, in part or not at all."""
    moved = [w if i == token else pick(w + 1) for i, w in enumerate(row)]
    moved[token] += EIGHTHS - sum(moved)
    return moved


def table(rows, dtype, layout, vocab):
    values = torch.tensor(rows, dtype=dtype) / EIGHTHS if rows else torch.empty(0, vocab, dtype=dtype)
    return laid_out(values, layout)


def built(pick, target, draft, tokens, vocab, *, dtypes, outcome=None):
    dtype, layout = one_of(pick, dtypes), one_of(pick, LAYOUTS)
    step = (
        table(target, dtype, layout, vocab),
        table(draft, dtype, layout, vocab),
        laid_out(torch.tensor(tokens, dtype=torch.int64), layout),
        pick(SEEDS),
    )
    return Step(*step) if outcome is None else Sure(*step, torch.tensor(outcome, dtype=torch.int64))


def any_step(pick, dtypes=DTYPES, least=0):
    """Any step: K from ``least`` to 4, rows of eighths that have little to do with each other."""
    count = one_of(pick, [k for k in (1, 2, 3, 4, 0) if k >= least])
    vocab = pick(6) + 1 if least == 0 else pick(5) + 2
    target, draft = ([distribution(pick, vocab) for _ in range(n)] for n in (count + 1, count))
    return built(pick, target, draft, [some(pick, row) for row in draft], vocab, dtypes=dtypes)


def perfect(pick):
    """The draft's rows are the target's. The last row is one-hot, so that the bonus is known as well. Now
    and then the rows come a hundred times: what is only almost always accepted fails there."""
    count, vocab, times = pick(4) + 1, pick(6) + 1, one_of(pick, (1, 1, 1, 100))
    draft = [distribution(pick, vocab) for _ in range(count)] * times
    tokens, bonus = [some(pick, row) for row in draft[:count]] * times, pick(vocab)
    target, outcome = [*draft, onehot(bonus, vocab)], [*tokens, bonus]
    return built(pick, target, draft, tokens, vocab, dtypes=WIDE, outcome=outcome)


def understated(pick):
    """The target gives each draft at least what its own row gives it; the rest of the rows differ."""
    count, vocab = pick(4) + 1, pick(5) + 2
    draft = [distribution(pick, vocab) for _ in range(count)]
    tokens, bonus = [some(pick, row) for row in draft], pick(vocab)
    target = [raised(pick, row, token) for row, token in zip(draft, tokens, strict=True)]
    target, outcome = [*target, onehot(bonus, vocab)], [*tokens, bonus]
    return built(pick, target, draft, tokens, vocab, dtypes=WIDE, outcome=outcome)


def forbidden(pick):
    """The target likes the first drafts at least as well as the draft does, and forbids the next. The
    outcome is what comes before the replacement."""
    before, after, vocab = pick(3), pick(3), pick(5) + 2
    draft = [distribution(pick, vocab) for _ in range(before + 1 + after)]
    tokens = [some(pick, row) for row in draft]
    target = [raised(pick, row, token) for row, token in zip(draft, tokens, strict=True)]
    target[before] = distribution(pick, vocab, without=(tokens[before],))
    target.append(distribution(pick, vocab))
    return built(pick, target, draft, tokens, vocab, dtypes=WIDE, outcome=tokens[:before])


def greedy(pick):
    """One-hot target rows, drafts that agree with them for a while or longer."""
    count, vocab = one_of(pick, (0, 1, 2, 3, 4, 3, 4)), pick(6) + 1
    says, draft, tokens = [pick(vocab) for _ in range(count + 1)], [], []
    for token in says[:-1]:
        draft.append(distribution(pick, vocab))
        tokens.append(token if draft[-1][token] and pick(3) else some(pick, draft[-1]))
    if pick(12) == 11:  # a large vocabulary, of which the last of each thousand has all
        draft = [[w for weight in row for w in (*[0] * 999, weight)] for row in draft]
        says, tokens = ([1000 * token + 999 for token in row] for row in (says, tokens))
        vocab *= 1000
    agree = next((i for i in range(count) if tokens[i] != says[i]), count)
    target = [onehot(token, vocab) for token in says]
    return built(pick, target, draft, tokens, vocab, dtypes=WIDE, outcome=says[: agree + 1])


def nearly_equal(pick, *, residual):
    """Two rows that differ by a trifle at one draft, which the target forbids. The target's row has the
    trifle somewhere else or, without a residual, nowhere: the rest of the two rows is equal then."""
    dtype = one_of(pick, WIDE if residual else DTYPES)
    vocab, after = pick(4) + 2, pick(3)
    draft = [distribution(pick, vocab) for _ in range(after + 1)]
    target = [distribution(pick, vocab) for _ in range(after + 2)]
    tokens = [some(pick, row) for row in draft]
    target[0] = distribution(pick, vocab, without=tokens[:1])
    step = built(pick, target, draft, tokens, vocab, dtypes=(dtype,))
    trifle = TRIFLES[dtype] if residual else torch.finfo(dtype).eps
    step.draft_probs[0] = step.target_probs[0]
    step.draft_probs[0, some(pick, target[0])] -= trifle
    if not residual:
        step.target_probs[0] = step.draft_probs[0]
    step.draft_probs[0, tokens[0]] = trifle
    return step


def runs(pick, *, one_hot, stop=False, many=False):
    """Tables over a small vocabulary. The draft's agrees with the target's in most rows."""
    vocab, rows, length = pick(2 if stop else 3) + 2, pick(7) + 1, pick(3) + 1
    row = (lambda: onehot(pick(vocab), vocab)) if one_hot else (lambda: distribution(pick, vocab))
    target = [row() for _ in range(rows)]
    draft = [r if pick(2 if stop else 4) else row() for r in target]
    target, draft = ([[w / EIGHTHS for w in r] for r in t] for t in (target, draft))
    prompt = torch.tensor([pick(vocab) for _ in range(length)])
    count, k = (
        3 + pick(6) if stop else pick(25 if many else 9),
        pick(8) + 1 if many else one_of(pick, (1, 2, 3, 1, 2, 4)),
    )
    return Run(target, draft, prompt, count, k, pick(2) if stop else None, pick(SEEDS))


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


def assert_as_likely(seen, law, what, most=1):
    """``seen`` counts outcomes; ``law`` gives each its probability. The one that is furthest off is shown.

    How often there was an outcome at all may depend on what came before, as long as whether the next one
    counts was known before it came: the first n of a row of independent draws, with at most ``most``
    different n, each with a bound of its own."""
    calls = sum(seen.values())

    def off(outcome):
        return surprise(seen.get(outcome, 0), calls, law.get(outcome, 0.0))

    worst = max({**law, **seen}, key=off)
    if off(worst) > SURPRISE + math.log(most):
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


def assert_tokens(got, want, what="the result"):
    """Equal rows of tokens; of another length, they are shown all the same."""
    if isinstance(got, Tensor) and got.ndim == 1 and got.dtype == want.dtype and len(got) != len(want):
        few = "few" if len(got) < len(want) else "many"
        raise Mismatch(f"{what}: too {few} tokens", expected=want.tolist(), got=got.tolist())
    assert_equal(got, want, what)


def written(case):
    """What a text is called, with the rule by which a model picks a row."""
    rows = len(case.target_table)
    rule = f" (row Σ i·(tᵢ + 1) mod {rows} of a table follows t₁ t₂ …)" if rows > 1 else ""
    return "the new text" + rule


def as_tuple(got):
    assert_true(isinstance(got, Tensor) and got.ndim == 1, "the result is no row of tokens", got=got)
    return tuple(got.tolist())


# Chosen so that what people get wrong moves some outcome by a factor of two or more. In LONG nearly every
# step judges several drafts, so that one call is worth several, and ends with a residual that looks like
# neither row. In the next two a ratio above 1 precedes one below, the second place differs from the first,
# and the order of the tokens shows if one uniform number serves two draws. In the last one the number that
# kept the first draft says much.
LONG = Odds(
    [[112 / 256, 9 / 256, 34 / 256, 101 / 256]] * 21,
    [[128 / 256, 1 / 256, 27 / 256, 100 / 256]] * 20,
    [0] * 20,
    280,
)
COUPLED = Odds(
    [[1 / 2, 1 / 2], [1 / 4, 3 / 4], [1 / 2, 1 / 2]], [[1 / 4, 3 / 4], [1 / 2, 1 / 2]], [0, 0], 240
)
ODDS = (
    LONG,
    COUPLED,
    Odds(
        [[1 / 2, 1 / 2, 0], [1 / 8, 25 / 64, 31 / 64], [1 / 2, 1 / 4, 1 / 4]],
        [[1 / 4, 1 / 2, 1 / 4], [1 / 2, 3 / 8, 1 / 8]],
        [0, 0],
        200,
    ),
    Odds(
        [[1 / 4, 3 / 8, 3 / 8], [1 / 4, 3 / 8, 3 / 8], [1 / 2, 1 / 2, 0]],
        [[1 / 2, 1 / 4, 1 / 4]] * 2,
        [0, 0],
        300,
    ),
)


# --- part 1: one step ----------------------------------------------------------------------------


@given(case=cases(any_step))
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


@given(case=cases(perfect))
def test_a_perfect_draft_is_accepted_whole(subject, case):
    """If the draft's rows are the target's, all K drafts are emitted, and a bonus from row K after them.

    min(1, p/q) = 1. Catches comparing with the target's own sample or argmax, reject-all, no bonus, and a
    bonus from row K − 1."""
    assert_tokens(case.on(subject), case.outcome)


@given(case=cases(understated))
def test_a_draft_that_the_target_likes_better_is_accepted(subject, case):
    """A draft with p ≥ q is always accepted, whatever the rest of the two rows.

    Catches the ratio upside down, acceptance with probability p (the draft's rows unused), and a match
    with the target's own sample."""
    assert_tokens(case.on(subject), case.outcome)


@examples(full=60)
@given(case=cases(greedy))
def test_one_hot_targets_give_the_greedy_tokens(subject, case):
    """With one-hot target rows the result is the target's tokens up to the first that was not drafted.

    Catches accept-all, going on after a refusal, and replacements from another row."""
    assert_tokens(case.on(subject), case.outcome)


@given(case=cases(forbidden))
def test_a_draft_that_the_target_forbids_ends_the_step(subject, case):
    """A draft to which the target gives 0 is refused, and the step ends with its replacement, even if later
    drafts would pass.

    Catches accept-all, going on after a refusal, and counting all accepted drafts, not the leading ones."""
    got, count = case.on(subject), len(case.outcome)
    assert_tensor(got, shape=(count + 1,), dtype=torch.int64)
    assert_equal(got[:-1], case.outcome, "the result before the replacement")


@examples(full=60)
@given(case=cases(forbidden))
def test_a_replacement_is_a_token_that_was_drafted_too_rarely(subject, case):
    """What replaces a refused draft has p > q there: the others got all of their probability by drafting.

    Catches replacements from the target's row, from |p − q|, from q − p, from another row, and an inverse
    CDF over weights that do not sum to one."""
    place = len(case.outcome)
    target, draft = case.target_probs[place].tolist(), case.draft_probs[place].tolist()
    lacking = [i for i in range(len(target)) if target[i] > draft[i]]
    for seed in range(case.seed, case.seed + 3):
        got = replace(case, seed=seed).on(subject)
        assert_tensor(got, shape=(place + 1,), dtype=torch.int64)
        token, refused_ = int(got[-1]), int(case.draft_tokens[place])
        message = f"token {token} replaces draft {refused_} though it was drafted often enough"
        assert_true(token in lacking, message, expected=f"one of {lacking}", got=got)


@given(seed=st.integers(0, SEEDS - 1), dtype=st.sampled_from(WIDE), ratio=st.sampled_from((1.0, 2.0, 1000.0)))
def test_tiny_probabilities_are_compared_as_they_are(subject, seed, dtype, ratio):
    """A draft of a tiny probability is accepted for certain if the target likes it as well or better.

    Catches rows rounded to a narrower type, in which such a probability is 0, and an ε in p / q."""
    tiny = 1e-60 if dtype == torch.float64 else 1e-30
    target, draft = (
        torch.tensor([[1, ratio * tiny], [1, 0]], dtype=dtype),
        torch.tensor([[1, tiny]], dtype=dtype),
    )
    got = subject.speculative_step(target, draft, torch.tensor([1]), generator=seeded(seed))
    assert_equal(got, torch.tensor([1, 0]))


@given(case=cases(nearly_equal, residual=True))
def test_a_small_residual_is_a_residual(subject, case):
    """However close the two rows are, a refused draft is replaced by a token that they differ in.

    Catches a residual that counts as none below some threshold, and rows rounded to half precision, or from
    float64 to float32."""
    target, draft = case.target_probs[0], case.draft_probs[0]
    for seed in range(case.seed, case.seed + 3):
        assert_equal(replace(case, seed=seed).on(subject), (target > draft).nonzero()[0])


@given(case=cases(nearly_equal, residual=False))
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


@examples(quick=0, full=2)
@given(drafts=st.sampled_from((1, 0)))
def test_rows_that_sum_to_a_little_less_are_drawn_from_as_others(subject, drafts):
    """A row of 127/256, 127/256 and 0 gives either of the first two tokens and never the third, as a bonus and,
    where nothing else is left to draw from, in place of a refused draft.

    In 1,200 steps each comes in the first 64 but for a probability of 2⁻⁶³. Catches an inverse CDF that takes
    the sum to be 1 and gives the last token what is missing, the likeliest token, and the draft's row in place
    of the target's."""
    row, rest = [127 / 256, 127 / 256, 0], [127 / 256, 127 / 256, 1 / 64]
    target = torch.tensor([row] * (drafts + 1), dtype=torch.bfloat16)
    draft = torch.tensor([rest] * drafts, dtype=torch.bfloat16).reshape(drafts, 3)
    generator, tokens, seen = seeded(17), torch.full((drafts,), 2), Counter()
    for call in range(1200):
        got = as_tuple(subject.speculative_step(target, draft, tokens, generator=generator))
        assert_true(got in ((0,), (1,)), "a token of probability 0 is emitted", expected=row, got=list(got))
        seen[got] += 1
        assert_true(
            call < 63 or len(seen) == 2, f"{call + 1} steps all end alike", expected=row, got=list(got)
        )


@examples(quick=0, full=2)
@given(drafts=st.sampled_from((0, 1)))
def test_what_is_all_but_impossible_is_not_drawn(subject, drafts):
    """If one token of sixteen has all but 2⁻⁴⁵ of what is drawn from, no other comes in 1,500 steps: neither as a
    bonus nor as a replacement.

    One would with a probability of 1500 · 2⁻⁴⁵ = 4e-11. Catches a law that is mixed with the uniform one, be it
    by 1%, and an ε on the weights."""
    row = torch.full((17,), 2.0**-49, dtype=torch.float64)
    row[0], row[16] = 1 - 15 * 2.0**-49, 0
    target, draft = row.expand(drafts + 1, -1).contiguous(), torch.zeros(drafts, 17, dtype=torch.float64)
    draft[:, 16] = 1
    generator, tokens = seeded(19), torch.full((drafts,), 16)
    for _ in range(1500):
        got = as_tuple(subject.speculative_step(target, draft, tokens, generator=generator))
        message = "a token of probability 2⁻⁴⁹ is drawn"
        assert_true(got == (0,), message, expected=[0], got=list(got))


@given(case=cases(any_step, dtypes=WIDE, least=3))
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
@given(seed=st.integers(0, SEEDS - 1), vocab=st.sampled_from((16, 12, 15)), count=st.integers(0, 2))
def test_the_generator_moves_on(subject, seed, vocab, count):
    """Sixteen steps on one generator do not all end with the same token of 12 or more, all equally likely.

    They would once in 12¹⁵ = 1.5e16. Catches a fresh generator with a fixed seed in each call, one seeded
    with generator.initial_seed(), and a copy of the state that is used in place of the generator."""
    generator, rows = seeded(seed), torch.full((count + 1, vocab), 1 / vocab)
    tokens = torch.zeros(count, dtype=torch.int64)
    got = [int(subject.speculative_step(rows, rows[1:], tokens, generator=generator)[-1]) for _ in range(16)]
    assert_true(len(set(got)) > 1, "sixteen steps on one generator all end with the same token", got=got)


@examples(full=30)
@given(case=cases(any_step, least=1), extra=st.integers(1, 2))
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
@given(case=cases(any_step, least=1), place=st.integers(0, 7))
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


@given(case=cases(any_step, least=1), place=st.integers(0, 3), by=st.integers(0, 3))
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
    """Over many steps on one generator each outcome comes as often as its probability says, given the drafts;
    and so does each verdict on a draft, and each replacement.

    An exact test (56 cells), fixed seeds. Catches acceptance with √(p/q), (p/q)² or p, one uniform for all
    drafts, one for a draft and for what follows it, the likeliest token of the residual, and p cut to where
    p > q."""
    law, got = law_of_a_step(odds), outcomes(subject, odds, seeded(ODDS.index(odds)))
    if odds is not LONG:
        assert_as_likely(Counter(got), law, "the outcome")
        return
    count, row = len(odds.draft_tokens), odds.target_probs[0]
    kept = sum(len(tokens) - 1 for tokens in got)
    replaced = Counter(tokens[-1] for tokens in got if len(tokens) <= count)
    verdicts, accepted = {"kept": kept, "refused": replaced.total()}, row[0] / odds.draft_probs[0][0]
    law = {"kept": accepted, "refused": 1 - accepted}
    assert_as_likely(verdicts, law, f"a draft with p/q = {accepted} that is", most=count * odds.calls)
    excess = [max(p - q, 0) for p, q in zip(row, odds.draft_probs[0], strict=True)]
    law = {token: weight / sum(excess) for token, weight in enumerate(excess) if weight}
    assert_as_likely(replaced, law, "the replacement", most=odds.calls)


@examples(quick=0, full=2)
@given(odds=st.sampled_from((COUPLED, replace(LONG, calls=80))))
def test_consecutive_steps_are_independent(subject, odds):
    """What a step emits does not depend on what the two steps before it on the same generator emitted.

    An exact test (34 cells). Catches a generator that is read by a copy and moved on by less than was read,
    so that steps share their draws: the next but one, if a uniform number takes two of the generator's."""
    got = outcomes(subject, odds, seeded(7))
    for lag in (1, 2):
        assert_independent(list(zip(got, got[lag:], strict=False)), odds, "one step" if lag == 1 else "two")


def assert_independent(pairs, odds, ago):
    if len(odds.draft_tokens) < 20:
        law = law_of_a_step(odds)
        for before in law:
            after = Counter(b for a, b in pairs if a == before)
            assert_as_likely(after, law, f"after {list(before)} {ago} ago, the outcome", most=odds.calls)
        return
    # Shared draws make a step keep as many drafts as the earlier one, less the numbers that it moved on by.
    # Given the earlier step, no number of drafts is likelier than 1/8, that of a refusal.
    for fewer in range(9):
        count = sum(len(a) - len(b) == fewer for a, b in pairs)
        much = count > len(pairs) / 8 and surprise(count, len(pairs), 1 / 8) > SURPRISE
        message = f"in {count} of {len(pairs)} steps, {fewer} drafts fewer were kept than {ago} before"
        kept = [(len(a) - 1, len(b) - 1) for a, b in pairs]
        assert_true(not much, message, expected=f"at most {len(pairs) // 8} or so", got=kept)


@examples(quick=0, full=2)
@given(dtype=st.sampled_from(WIDE))
def test_a_draft_is_refused_now_and_then_if_the_target_likes_it_less(subject, dtype):
    """Of 12,000 drafts with p/q = 511/512 some are refused, and not many more than one in 512.

    All would be accepted with a probability of (511/512)¹²⁰⁰⁰ = 6.5e-11; the rest is an exact test (2 cells).
    Catches a ratio that is scaled up or down, however little, uniform numbers from a coarse grid, one for
    all drafts, and drafts that are refused because the target likes them less."""
    count, calls, generator = 300, 40, seeded(13)
    target = torch.tensor([511 / 1024, 513 / 1024], dtype=dtype).expand(count + 1, 2).contiguous()
    draft, tokens = torch.full((count, 2), 0.5, dtype=dtype), torch.zeros(count, dtype=torch.int64)
    kept = [
        len(as_tuple(subject.speculative_step(target, draft, tokens, generator=generator))) - 1
        for _ in range(calls)
    ]
    assert_true(
        min(kept) < count, f"all of {calls * count} drafts with p/q = 511/512 are accepted", got=sum(kept)
    )
    verdicts = {"kept": sum(kept), "refused": sum(n < count for n in kept)}
    law = {"kept": 511 / 512, "refused": 1 / 512}
    assert_as_likely(verdicts, law, "a draft with p/q = 511/512 that is", most=count * calls)


@examples(quick=0, full=3)
@given(how=st.sampled_from(((0, torch.bfloat16), (1, torch.bfloat16), (0, torch.float16))))
def test_a_large_half_precision_vocabulary_is_drawn_evenly(subject, how):
    """With one token of probability 1/2 and 512 (in float16 2,048) that share the other half, the one comes as
    often as the others together, and these as often from either half of each four: as a bonus, and as a
    replacement.

    An exact test (12 cells). Catches a bonus or a residual with a temperature, be it 1.15, a CDF summed in
    half precision, which stops growing or moves in steps that skip tokens, and uniforms of few bits."""
    drafts, dtype = how
    small, calls = (2048, 120) if dtype == torch.float16 else (512, 200 if drafts else 450)
    vocab = small + 1 + drafts
    rows = torch.zeros(2, vocab, dtype=dtype)
    rows[0, : small + 1] = 1 / 2 / small
    rows[0, 0] = 1 / 2
    rows[1, -1] = 1
    tokens, generator = torch.full((drafts,), vocab - 1), seeded(11)
    # With a draft: one that the target forbids, and all that it allows is residual.
    args = (torch.cat([rows[:1]] * (drafts + 1)), rows[1 : 1 + drafts], tokens)
    got = [as_tuple(subject.speculative_step(*args, generator=generator))[0] for _ in range(calls)]
    one = Counter("one of 1/2" if token == 0 else "a small one" for token in got)
    assert_as_likely(one, {"one of 1/2": 0.5, "a small one": 0.5}, "the token, by its probability,")
    # Of the steps of a CDF that is too coarse, most fall on the same two of four tokens.
    halves = Counter("first" if token % 4 in (0, 1) else "second" for token in got if token)
    assert_as_likely(halves, {"first": 0.5, "second": 0.5}, "of four tokens, one of the half", most=calls)


# --- part 2: the loop ----------------------------------------------------------------------------


@given(case=cases(runs, one_hot=False))
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


@given(case=cases(runs, one_hot=True))
def test_one_hot_models_give_the_targets_own_text(subject, case):
    """With one-hot models the loop writes, token by token, what the target writes alone.

    Catches a target cache that keeps refused drafts or lacks accepted ones, rows taken one place off, and
    drafts emitted unjudged."""
    want = torch.tensor(
        spoken(case.target_table, case.prompt.tolist(), case.max_new_tokens), dtype=torch.int64
    )
    assert_tokens(case.on(subject), want, written(case))


@given(case=cases(runs, one_hot=True, stop=True))
def test_the_first_eos_is_the_last_token(subject, case):
    """The text ends with the first eos that is emitted, wherever in a round that is; eos in the prompt or in
    a refused draft does not end it.

    Catches looking at the last token of a round only, eos = 0 taken for None, and eos left out."""
    want = spoken(case.target_table, case.prompt.tolist(), case.max_new_tokens, case.eos)
    assert_tokens(case.on(subject), torch.tensor(want, dtype=torch.int64), written(case))


@examples(full=60)
@given(case=cases(runs, one_hot=True))
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


@given(case=cases(runs, one_hot=False))
def test_no_model_reads_a_token_twice(subject, case):
    """Each run of a model reads only what its cache has not held yet: no context is computed twice.

    Catches a prompt that is read anew in every round, caches rolled back too far, and drafts that the
    target has judged and is given again."""
    target, draft, _ = with_models(subject, case)
    for model in (target, draft):
        for *context, token in rereads(model):
            raise Mismatch(f"the {model.name} reads token {token} after {context} again", got=model.reads())


@given(case=cases(runs, one_hot=True))
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


@given(case=cases(runs, one_hot=False, many=True))
def test_a_perfect_draft_gives_k_plus_one_tokens_a_round(subject, case):
    """If the draft is the target, each round emits k + 1 tokens: n of them take ⌈n / (k + 1)⌉ target runs.

    Catches draft rows one place off, a draft model that does not read its last draft, drafts that are taken
    for certain, and a lost bonus."""
    target, draft = Model("target", case.target_table), Model("draft", case.target_table)
    try:
        as_tuple(case.on(subject, target, draft))
    except ValueError as error:
        raise Mismatch("the rows of a perfect draft are refused", got=f"ValueError: {error}") from error
    assert_few_runs(target, -(-case.max_new_tokens // (case.k + 1)), case)


@given(case=cases(runs, one_hot=False))
def test_the_loop_draws_from_the_generator_only(subject, case):
    """The same state of the generator gives the same text, and no global random state is moved.

    Catches drafts sampled without the generator, or with another one."""
    before = global_states()
    first = as_tuple(case.on(subject))
    assert_states_kept(before)
    assert_equal(as_tuple(case.on(subject)), first, "the text from the same state of the generator")


# One uniform number that decides two draws shows in what comes after what. In the first, a draft of 0 is as
# likely as its acceptance; in the second, a draft of 0 is rare, and tells most of what it was drawn with; in
# the third all drafts are kept, and what follows them is as likely as a draft.
LOOPS = (
    Run([[25 / 64, 39 / 64]], [[5 / 8, 3 / 8]], torch.tensor([1]), 130, 3, None, 3),
    Run([[1 / 8, 7 / 8]], [[1 / 4, 3 / 4]], torch.tensor([1]), 400, 1, None, 3),
    Run([[1 / 2, 1 / 2]], [[1 / 2, 1 / 2]], torch.tensor([1]), 160, 4, None, 3),
)


@examples(quick=0, full=2)
@given(seed=st.sampled_from((3, 4)))
def test_each_text_has_drafts_of_its_own(subject, seed):
    """Two texts on one generator do not begin with the same sixty drafts, of two tokens that are equally likely.

    They would with a probability of 2⁻⁶⁰. Catches drafts drawn with a generator that each call makes anew from
    the first seed of the one given, while the verdicts use that one."""
    even = [[1 / 2, 1 / 2]]
    case, generator, first = Run(even, even, torch.tensor([1]), 61, 60, None, seed), seeded(seed), []
    for _ in range(2):
        target, draft = (Model(name, even, torch.float64) for name in ("target", "draft"))
        got = subject.speculative_generate(target, draft, case.prompt, 61, k=60, generator=generator)
        assert_tensor(got, shape=(61,), dtype=torch.int64)
        first.append(next((drafts for _, drafts in rounds(case, target)), []))
    message = "the second text begins with the drafts of the first"
    assert_true(not first[0] or first[0] != first[1], message, got=first[1])


@examples(quick=0, full=len(LOOPS))
@given(case=st.sampled_from(LOOPS))
def test_the_text_is_distributed_as_the_targets(subject, case):
    """In long texts each token comes as often as the target's row says, each draft as often as the draft's
    row, and each verdict as the rule says, whatever came just before.

    An exact test (40 cells). Catches drafts chosen greedily but judged as samples, draft rows one place off,
    draws from a copy of the generator, and a generator that starts anew each time."""
    generator, texts, seen = seeded(case.seed), [], Tally()
    for _ in range(2):
        target, draft = (
            Model(name, rows, torch.float64)
            for name, rows in (("target", case.target_table), ("draft", case.draft_table))
        )
        target.most_runs = draft.most_runs = 1000
        got = subject.speculative_generate(
            target, draft, case.prompt, case.max_new_tokens, k=case.k, generator=generator
        )
        assert_tensor(got, shape=(case.max_new_tokens,), dtype=torch.int64)
        texts.append(got.tolist())
        seen.read(case, target, texts[-1])
    for what, (law, counts) in seen.by_what.items():
        assert_as_likely(counts, law, what, most=2 * case.max_new_tokens * (case.k + 1))
    # Probability: at most (39/64)¹³⁰ = 1e-28, (7/8)⁴⁰⁰ = 6e-24, 2⁻¹⁶⁰.
    assert_true(texts[0] != texts[1], "two texts on one generator are equal", got=texts[0])


class Tally:
    """Counts what comes of each draw of the loop, as far as the text and the target's runs show it."""

    def __init__(self):
        self.by_what = {}

    def add(self, what, outcome, law):
        self.by_what.setdefault(what, (law, Counter()))[1][outcome] += 1

    def read(self, case, target, new):
        """One row for all places: what came before decides nothing."""
        (p,), (q,), text = case.target_table, case.draft_table, case.prompt.tolist() + new
        for token in new:
            self.add("token", token, dict(enumerate(p)))
        earlier = []
        for (start, drafts), (after, _) in pairwise(rounds(case, target)):
            kept, last = after - start - 1, text[start - 1]
            for i, token in enumerate(drafts):
                verdict = earlier[i] if i < len(earlier) else "not judged"
                self.add(
                    f"where this draft of the last round was {verdict}, draft", token, dict(enumerate(q))
                )
                if q[0] == q[1]:
                    what = f"draft {i}, beside the last token:"
                    self.add(
                        what, "the same" if token == last else "another", {"the same": 0.5, "another": 0.5}
                    )
            earlier = ["kept"] * kept + ["refused"] * (kept < len(drafts))
            for token, verdict in zip(drafts, earlier, strict=False):
                law = {"kept": min(1.0, p[token] / q[token]), "refused": max(0.0, 1 - p[token] / q[token])}
                self.add(f"a draft with p/q = {p[token] / q[token]:.3g} that is", verdict, law)


def rounds(case, target):
    """Where each round begins, and its drafts: what the target reads beyond the text, of which it has not
    read the last token."""
    for before, context in target.contexts:
        start = len(before) + 1 if len(before) >= len(case.prompt) else len(case.prompt)
        if len(context) > start:
            yield start, context[start:]


@examples(full=30)
@given(case=cases(runs, one_hot=False), by=st.integers(0, 2))
def test_bad_arguments_of_the_loop_are_refused(subject, case, by):
    """An empty prompt, a prompt that is no row, k < 1 or max_new_tokens < 0 raise ValueError.

    Catches a range that is silently empty, and a loop that never ends."""
    for because, change in {
        "the prompt is empty": {"prompt": case.prompt[:0]},
        "the prompt has a batch dimension": {"prompt": case.prompt[None]},
        f"k is {-by}": {"k": -by},
        f"max_new_tokens is {-1 - by}": {"max_new_tokens": -1 - by},
    }.items():
        # Once with tokens to come and once without: the round that k would fail in may never begin.
        for count in (1 + case.max_new_tokens, 0):
            wrong = replace(case, **({"max_new_tokens": count} | change))
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


def pairs_of_rows(pick):
    """Rows of eighths or, one time in four, of 1,500 numbers that no type holds exactly."""
    places, vocab = [pick(3) + 1 for _ in range(pick(3))], pick(6) + 1
    dtype, layout, count = one_of(pick, DTYPES), one_of(pick, LAYOUTS), math.prod(places)
    if pick(4) == 3:
        noise = torch.rand(2, *places, 1500, generator=seeded(pick(SEEDS)), dtype=torch.float64)
        return Rows(*(laid_out(x, layout) for x in (noise / noise.sum(-1, keepdim=True)).to(dtype)))
    rows = ([distribution(pick, vocab) for _ in range(count)] for _ in range(2))
    return Rows(
        *(laid_out(table(r, dtype, "contiguous", vocab).reshape(*places, vocab), layout) for r in rows)
    )


@given(case=cases(pairs_of_rows))
def test_acceptance_rate_is_the_mass_that_the_rows_share(subject, case):
    """The acceptance rate is Σ min(p, q) = 1 − ½ Σ |p − q|, place by place: Σ q(x) min(1, p(x)/q(x)).

    Catches the total variation itself, its double, a mean over the vocabulary or over the places, Σ p·q, a
    sum over another dimension, and one that is run in less precision than it should."""
    p, q = case.target_probs, case.draft_probs
    before = {"target_probs": p.clone(), "draft_probs": q.clone()}
    want = torch.minimum(p.double(), q.double()).sum(-1)
    assert_close(subject.acceptance_rate(p, q), want, dtype=p.dtype, length=p.shape[-1] + 1, magnitude=2.0)
    untouched(before, {"target_probs": p, "draft_probs": q})


@examples(full=30)
@given(case=cases(pairs_of_rows))
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


@given(
    alpha=st.sampled_from((8, 16, 0, 4, 12, 15, 1, Fraction(1023, 64))).map(lambda x: Fraction(x) / 16),
    k=st.sampled_from((0, 1, 2, 3, 4, 5, 7, 10, 40)),
)
def test_expected_tokens_sums_the_chances_of_getting_that_far(subject, alpha, k):
    """A step emits (1 − α^{k+1}) / (1 − α) tokens on average: 1 + α + … + α^k, and k + 1 if α is 1.

    Catches a forgotten bonus, an exponent k, drafts counted whether accepted or not, and 0/0 at α = 1."""
    try:
        got = subject.expected_tokens(float(alpha), k)
    except ZeroDivisionError as error:
        raise Mismatch(
            "division by zero", expected=float(k + 1), got=f"ZeroDivisionError: {error}"
        ) from error
    assert_true(isinstance(got, (int, float)), "the result is no number", got=got)
    want = torch.tensor(float(sum(alpha**i for i in range(k + 1))), dtype=torch.float64)
    # The closed form divides two rounded numbers by 1 − α.
    magnitude = float((k + 1) / (1 - alpha if alpha < 1 else 1))
    assert_close(
        torch.tensor(float(got), dtype=torch.float64), want, dtype=torch.float64, magnitude=magnitude
    )


@given(
    sixteenths=st.integers(0, 16),
    eighths=st.sampled_from((1, 0, 2, 4, 8, 10, None)),
    max_k=st.sampled_from((1, 0, 2, 3, 4, 8, 12, 40)),
)
def test_best_k_gives_most_tokens_per_unit_of_time(subject, sixteenths, eighths, max_k):
    """best_k maximises expected_tokens(α, k) / (k·cost + 1) over 0 … max_k, the smallest k of equals.

    Where α ≤ cost speculation cannot pay (Leviathan, corollary 3.9), and k is 0. Catches a target run that
    costs nothing, most tokens whatever they cost, a k of at least 1, and a max_k that is left out."""
    alpha = Fraction(sixteenths, 16)
    cost = alpha if eighths is None else Fraction(eighths, 8)
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

    None depends on how a file draws: where an outcome is not certain or nearly so, a few of them are
    counted, and sorted into classes that lie far apart."""
    tiny = 2.0**-20

    def step(target, draft, tokens, seed=0, dtype=torch.float64):
        rows = torch.tensor(target, dtype=dtype), torch.tensor(draft, dtype=dtype).reshape(-1, len(target[0]))
        return subject.speculative_step(
            *rows, torch.tensor(tokens, dtype=torch.int64), generator=seeded(seed)
        )

    def taken(*args):
        """Whether a step takes arguments that it should refuse; what it makes of them shows elsewhere."""
        try:
            step(*args)
        except Exception:
            return False
        return True

    def support(*odds, calls=12):
        return sorted(set(outcomes(subject, Odds(*odds, calls), seeded(5))))

    def moved(call):
        before = global_states()
        call()
        return [whose for whose, state in global_states().items() if state != before[whose]]

    def afterwards():
        target = torch.tensor([[0.0, 1.0], [1 / 2, 1 / 2]])
        args = target, torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        subject.speculative_step(*args, generator=seeded(5))
        return target

    def dice():
        """Whether throws of 256 sides on one generator are all alike, and the first on three."""
        row, none = (
            torch.full((1, 256), 1 / 256, dtype=torch.float64),
            torch.empty(0, 256, dtype=torch.float64),
        )
        generators, tokens = [seeded(5)] * 3 + [seeded(seed) for seed in (6, 7, 8)], torch.empty(0, dtype=int)
        got = [int(subject.speculative_step(row, none, tokens, generator=g)[-1]) for g in generators]
        return len(set(got[:3])) > 1, len(set(got[3:])) > 1

    def many():
        """Steps with forty drafts of p/q = 7/8: 7 are kept on average, with √ 13, and with ² 3."""
        row = [28 / 64, 3 / 64, 3 / 64 - tiny, 30 / 64 + tiny]
        draft = [32 / 64, 1 / 64, 1 / 64, 30 / 64]
        got = outcomes(subject, Odds([row] * 41, [draft] * 40, [0] * 40, 36), seeded(5))
        kept = [len(tokens) - 1 for tokens in got]
        if len(set(kept)) == 1:
            return "all alike"
        shifts = Counter(a - b for a, b in pairwise(kept))
        ends = Counter(tokens[-1] for tokens in got if len(tokens) < 41)
        likely = [ends[token] > ends.total() / 8 for token in range(4)]
        ends = "again" if likely[0] else "other" if ends[3] > 0.6 * ends.total() else likely
        shift, often = shifts.most_common(1)[0]
        return [sum(kept) / 36 > limit for limit in (4.7, 9.7, 25)], shift if often > 18 else 0, ends

    def all_kept(count, target, draft):
        return len(step([target] * (count + 1), [draft] * count, [0] * count)) > count

    def uneven():
        """Draws of one token of 1/2 and 1,024 of 1/2048, in bfloat16."""
        row = torch.full((1, 1025), 1 / 2048, dtype=torch.bfloat16)
        row[0, 0] = 1 / 2
        generator, tokens = seeded(5), torch.empty(0, dtype=torch.int64)
        got = [
            int(subject.speculative_step(row, row[1:], tokens, generator=generator)[-1]) for _ in range(18)
        ]
        small = [token for token in got if token]
        inner = sum(token % 8 in (3, 4, 5, 6) for token in small)
        return len(small) > 14, len(small) < 4, inner > 0.9 * len(small)

    def text(case, **change):
        return replace(case, **change).on(subject)

    def habits(case, perfect=False):
        """What can be said of the models' runs whatever the style: too many, too long, repeated, astray."""
        target = Model("target", case.target_table)
        draft = Model("draft", case.target_table if perfect else case.draft_table)
        whole = case.prompt.tolist() + case.on(subject, target, draft).tolist()
        rounds = -(-case.max_new_tokens // (case.k + 1)) if perfect else rounds_needed(case)
        return [
            perfect or whole,
            spare_runs(target, rounds, case.prompt) > 0,
            max(len(context) - max(len(before), len(case.prompt)) for before, context in target.contexts)
            > case.k + 1,
            *(bool([*rereads(model)]) for model in (target, draft)),
            *(not perfect and bool([*strays(model, case, whole)]) for model in (target, draft)),
        ]

    def written(target, draft, count, k, seed=5):
        models = Model("target", target, torch.float64), Model("draft", draft, torch.float64)
        got = subject.speculative_generate(*models, torch.tensor([0]), count, k=k, generator=seeded(seed))
        return models[0], got.tolist()

    def drafts_after_a_refusal():
        case, seen = replace(LOOPS[0], prompt=torch.tensor([0])), Tally()
        seen.read(case, *written(case.target_table, case.draft_table, 32, 3))
        _, drafts = seen.by_what["where this draft of the last round was refused, draft"]
        return drafts[1] > 0.8 * drafts.total()

    def first_drafts():
        """Whether two texts on one generator begin with the same twenty drafts."""
        even, generator, first = [[1 / 2, 1 / 2]], seeded(5), []
        case = replace(LOOPS[2], prompt=torch.tensor([0]))
        for _ in range(2):
            models = Model("target", even, torch.float64), Model("draft", even, torch.float64)
            subject.speculative_generate(*models, case.prompt, 21, k=20, generator=generator)
            first.append(next((drafts for _, drafts in rounds(case, models[0])), []))
        return first[0] == first[1]

    def drafts_like_the_last_token():
        seen, even = Tally(), [[1 / 2, 1 / 2]]
        seen.read(replace(LOOPS[2], prompt=torch.tensor([0])), *written(even, even, 56, 4))
        like = [counts["the same"] for what, (_, counts) in seen.by_what.items() if "beside" in what]
        return max(like) > 10

    def alike():
        generator, table = seeded(5), [[0.25] * 4]
        texts = [
            subject.speculative_generate(
                Model("target", table), Model("draft", table), torch.tensor([0]), 9, k=4, generator=generator
            )
            for _ in range(2)
        ]
        return torch.equal(*texts)

    hardly = Odds([[tiny, 1 - tiny], [1, 0]], [[1, 0]], [0], 500)
    sure = [1 - 15 * tiny**2, *[tiny**2] * 15]
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
        "a perfect draft, and an unlikely one": lambda: step(
            [[1 - tiny, 0, tiny], [0, 1, 0]], [[1 - tiny, 0, tiny]], [2]
        ),
        "an unlikely draft that the target likes better": lambda: step(
            [[1 - tiny, 0, tiny], [0, 1, 0]], [[1 - tiny**2, 0, tiny**2]], [2]
        ),
        "a draft that the target likes a little less": lambda: all_kept(
            1, [1 / 2 - tiny, 1 / 2 + tiny], [1 / 2, 1 / 2]
        ),
        "a ratio above 1, and one far below": lambda: step(
            [[1 / 2, 1 / 2], [tiny**2, 1 - tiny**2], [0, 1]],
            [[tiny**2, 1 - tiny**2], [1 / 2, 1 / 2]],
            [0, 0],
        ),
        "what replaces a draft": lambda: step([[0, 1 - tiny, tiny], [1, 0, 0]], [[tiny, 1 - tiny, 0]], [0]),
        "what replaces a draft that the target allows": lambda: step(
            [[tiny, 1 - 2 * tiny, tiny], [1, 0, 0]], [[1 / 2, 1 / 2, 0]], [0]
        ),
        "what replaces the first of two": lambda: step(
            [[0, 1 - tiny, tiny], [1 / 2, 1 / 2, 0], [1, 0, 0]], [[tiny, 1 - tiny, 0], [0, 0, 1]], [0, 2]
        ),
        "what replaces the second": lambda: step(
            [[1 / 2, 1 / 2, 0], [0, 1 - tiny, tiny], [1, 0, 0]],
            [[1 / 2, 1 / 2, 0], [tiny, 1 - tiny, 0]],
            [1, 0],
        ),
        "what follows a refusal": lambda: step(
            [[0, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]], [0, 1]
        ),
        "a small part of the residual": lambda: step([[0, tiny, 1 - tiny], [1, 0, 0]], [[1, 0, 0]], [0]),
        "many drafts": many,
        "accepted and bonus": lambda: support(COUPLED.target_probs, COUPLED.draft_probs, [0, 0], calls=20),
        "one likely and many unlikely": uneven,
        "a likely draft after an unlikely one": lambda: [
            len(tokens)
            for tokens in support([[1 / 2, 1 / 2], [1, 0], [1, 0]], [[1, 0], [1, 0]], [0, 0], calls=14)
        ],
        "no residual, two to choose from": lambda: support(
            [[1 / 2, 1 / 2, 0], [1, 0, 0]], [[1 / 2, 1 / 2, 2**-20]], [2], calls=12
        ),
        "no residual": lambda: step([[1 - tiny, 0, 0], [1, 0, 0]], [[1 - tiny, tiny, 0]], [1]),
        "small residual": lambda: support(
            [[1 / 2, 1 / 2, 0], [1, 0, 0]], [[1 / 2 - 2**-12, 1 / 2, 2**-12]], [2]
        ),
        "tiny residual": lambda: support([[1 / 2, 1 / 2, 0], [1, 0, 0]], [[1 / 2 - tiny, 1 / 2, tiny]], [2]),
        "kept, and a bonus": lambda: support(
            [[1 / 2, 1 / 2], [1, 0], [1 / 2, 1 / 2]], [[1, 0], [1, 0]], [0, 0], calls=24
        ),
        "residual lost in half precision": lambda: step(
            [[7 / 8, 1 / 8, 0], [1, 0, 0]], [[7 / 8 - 3 / 2048, 1 / 8, 3 / 2048]], [2]
        ),
        "six hundred perfect drafts": lambda: all_kept(600, [1 / 2, 1 / 2], [1 / 2, 1 / 2]),
        "nine hundred drafts with p/q = 127/128": lambda: all_kept(
            900, [127 / 256, 129 / 256], [1 / 2, 1 / 2]
        ),
        "six hundred drafts that the target likes better": lambda: all_kept(
            600, [3 / 4, 1 / 4], [1 / 2, 1 / 2]
        ),
        "a draft that the target hardly allows": lambda: any(
            len(tokens) > 1 for tokens in outcomes(subject, hardly, seeded(5))
        ),
        "all but impossible": lambda: len(support([sure], [], [], calls=400)) > 1,
        "random states moved by acceptance": lambda: moved(
            lambda: step([*near, says[0]], near[::-1], [1, 0])
        ),
        "random states moved by a bonus": lambda: moved(lambda: step(near[:1], [], [])),
        "throws": dice,
        "the target afterwards": afterwards,
        "its type": lambda: type(step(near[:1], [], [])).__name__,
        "draft without probability": lambda: taken(says, [[1, 0, 0], [1, 0, 0]], [1, 0]),
        "draft −1": lambda: taken(says, even, [1, -1]),
        "draft beyond the vocabulary": lambda: taken(says, even, [1, 3]),
        "target rows that sum to 2": lambda: taken([[0, 2, 0], [2, 0, 0], [0, 0, 2]], even, [1, 0]),
        "draft rows that sum to 2": lambda: taken(says, [[1, 1, 0], [1, 1, 0]], [1, 0]),
        "NaN": lambda: taken([*says[:2], [math.nan, 0, 1]], even, [0, 0]),
        "a row to spare": lambda: taken([*says, says[0]], even, [1, 0]),
        "one-hot models, one token": lambda: text(run, max_new_tokens=1),
        "one-hot models, no token": lambda: text(run, max_new_tokens=0),
        "eos 0": lambda: text(run, eos=0),
        "eos 1": lambda: text(run, eos=1),
        "eos 2": lambda: text(run, eos=2),
        "habits": lambda: habits(run),
        "habits, k 1": lambda: habits(replace(run, k=1)),
        "drafts of one row": lambda: len(set(written([[1 / 2, 1 / 2]], [[1 / 2, 1 / 2]], 16, 16)[1])),
        "drafts after a refusal": drafts_after_a_refusal,
        "drafts and the last token": drafts_like_the_last_token,
        "two texts": alike,
        "drafts of two texts": first_drafts,
        "random states moved by the loop": lambda: moved(lambda: text(soft, max_new_tokens=3)),
        "an eos that is drafted and refused": lambda: text(stubborn, eos=1),
        "an eos in the prompt": lambda: text(stubborn, eos=2),
        "no prompt": lambda: text(run, prompt=run.prompt[:0]),
        "k of 0": lambda: text(run, k=0),
        "acceptance rate": lambda: subject.acceptance_rate(p, q),
        "acceptance rate of sevenths": lambda: subject.acceptance_rate(
            *torch.tensor([[2 / 7, 5 / 7], [3 / 7, 4 / 7]], dtype=torch.float64)
        ),
        "acceptance rate of other shapes": lambda: subject.acceptance_rate(p, q[:1]),
        "expected tokens": lambda: float(subject.expected_tokens(0.5, 2)),
        "expected tokens at 1": lambda: float(subject.expected_tokens(1.0, 2)),
        "alpha 2": lambda: subject.expected_tokens(2.0, 2),
        "best k": lambda: subject.best_k(0.75, 0.125, 8),
        "best k of few": lambda: subject.best_k(0.75, 0.125, 2),
        "best k, dear drafts": lambda: subject.best_k(0.5, 0.75, 8),
        "best k at a negative cost": lambda: isinstance(subject.best_k(0.5, -1.5, 3), int),
        "best k of equals": lambda: subject.best_k(0.5, 0.5, 8),
        "a tiny probability": lambda: step([[1, 2e-60], [1, 0]], [[1, 1e-60]], [1]),
    }
