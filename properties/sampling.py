"""The laws of sampling: what a filter keeps and what it must not, in which order the filters see one
another's work, and how likely each token then is; and a text whose rows end on their own.

Most claims are about support and hold whatever is drawn. Four count outcomes. Theirs are fixed tables and
fixed seeds, so that a file gets the same verdict every time; what is random is only which of the right
ways to use a generator the file has chosen. A cell that a right file fills with probability p deviates as
far as ``surprise`` allows with a probability of at most 2·exp(−SURPRISE) (Chernoff's bound, no
approximation); there are fewer than 180 cells in the kata, so a right file is refused with a probability
below 180 · 2·exp(−28) = 2.5e-10. The claims about tokens that must come, or must not, add less than 1e-10 (see there)."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

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
    epsilon,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import LAYOUTS, distinct, examples, fill

DTYPES = st.sampled_from((torch.float32, torch.float64, *HALF_TYPES))
NOT_FP16 = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))
"""Only these where a logit over the temperature may exceed what float16 holds."""

SCALES = st.sampled_from((1.0, 0.1, 5.0))
SHARES = st.sampled_from((0.5, 0.9, 0.05, 0.3, 0.7, 0.99, 1.0, 0.0))
TEMPERATURES = st.sampled_from((0.5, 2.0, 1.0, 0.1, 3.0, 1e-3, 50.0, 1e-5))
SEEDS = st.integers(0, 63)
SURPRISE = 28.0
"""How many nats a count may deviate: the false-alarm rate of a cell is at most 2·exp(−28) = 1.4e-12."""
DRAWS = 64
OUT = -math.inf


@dataclass
class Rows:
    logits: Tensor


@dataclass
class Draw:
    """One row of logits without ties, the options of sample, and a seed."""

    logits: Tensor
    options: dict[str, Any]
    seed: int


@dataclass
class Text:
    """A model, by the logits that follow each sum of places and tokens (see ``Model``), and a prompt."""

    table: list
    prompt: Tensor
    max_new_tokens: int
    eos: int | None
    options: dict[str, Any]
    seed: int

    def on(self, subject, model=None):
        model = Model(self.table) if model is None else model
        stop = {} if self.eos is None else {"eos": self.eos}
        return subject.generate(
            model, self.prompt, self.max_new_tokens, generator=seeded(self.seed), **stop, **self.options
        )


@st.composite
def rows(draw, dtypes=DTYPES, scales=SCALES, high=6):
    """Logits of one to three dimensions; ties are likely, and some places may hold −inf already."""
    shape = distinct(draw, draw(st.integers(1, 3)), high=high)
    x = fill(draw, shape, dtype=draw(dtypes), scale=draw(scales), layout=draw(LAYOUTS))
    masked = draw(st.integers(0, 3))
    if masked == 3 and shape[-1] > 1:
        x = x.clone()
        x[..., draw(st.integers(0, shape[-1] - 1))] = OUT
    return Rows(x)


@st.composite
def options(draw):
    """Any combination of temperature and filters, each left out at times."""
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "temperature": st.sampled_from((0.5, 2.0, 1.0, 3.0)),
                "top_k": st.sampled_from((2, 3, 1, 5, 9)),
                "top_p": st.sampled_from((0.62, 0.31, 0.85, 0.97, 0.0)),
                "min_p": st.sampled_from((0.37, 0.11, 0.73)),
            },
        )
    )


def ladder(pick, vocab):
    """Different numbers in any order, steps of 1/4 to 2 between them: exact in every dtype."""
    values = [0.0]
    for _ in range(vocab - 1):
        values.append(values[-1] + (0.25, 0.5, 1.0, 2.0)[pick(4)])
    middle = values[len(values) // 2]
    row = [v - middle for v in values]
    for i in range(vocab - 1, 0, -1):
        j = pick(i + 1)
        row[i], row[j] = row[j], row[i]
    return row


@st.composite
def draws(draw, dtypes=DTYPES, least=1):
    vocab, pick = draw(st.integers(least, 7)), random.Random(draw(st.integers(0, 2**16))).randrange
    row = torch.tensor(ladder(pick, vocab), dtype=draw(dtypes))
    return Draw(row, draw(options()), draw(SEEDS))


def with_two_likely_ones(case):
    """The same, where the two likeliest are nearly equal, exact in every dtype, and far above the others."""
    row = case.logits.clone()
    row[row.topk(2).indices] = row.max() + 8 - torch.tensor([0, 1 / 16], dtype=row.dtype)
    return replace(case, logits=row)


@st.composite
def texts(draw, *, greedily=False, stop=False, batch=(1, 3), lengths=range(7)):
    """A table of ladders, or of rows with one clear winner, and one to three prompts."""
    vocab, states = draw(st.integers(2, 5)), draw(st.integers(1, 7))
    length, new = draw(st.integers(1, 3)), draw(st.sampled_from(lengths))
    pick = random.Random(draw(st.integers(0, 2**16))).randrange
    table = [ladder(pick, vocab) for _ in range(states)]
    prompt = torch.tensor([[pick(vocab) for _ in range(length)] for _ in range(draw(st.integers(*batch)))])
    chosen = draw(st.sampled_from(({"temperature": 0.0}, {"top_k": 1}))) if greedily else draw(options())
    return Text(table, prompt, new, pick(vocab) if stop else None, chosen, draw(SEEDS))


class Model:
    """Logits by a table: all tokens of the text, and their places, say which of its rows is next.

    It keeps what it was shown. What it says of earlier places is of use to nobody here."""

    def __init__(self, table, dtype=torch.float32):
        self.table, self.seen = torch.tensor(table, dtype=dtype), []

    def __call__(self, tokens):
        assert_true(
            isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.dtype == torch.int64,
            "the model was given something other than int64 tokens of shape (batch, length)",
            got=tokens,
        )
        assert_true(len(self.seen) < 100, "the model has run 100 times, and the text is not done")
        self.seen.append(tokens.tolist())
        sums = ((tokens + 1) * torch.arange(1, tokens.shape[1] + 1)).cumsum(1)
        return self.table[sums % len(self.table)]


def state_of(text, states):
    return sum((i + 1) * (token + 1) for i, token in enumerate(text)) % states


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- the oracles, in float64 from the definitions --------------------------------------------------


def probabilities(row):
    """The softmax of a list of logits, by the definition."""
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = math.fsum(weights)
    return [w / total for w in weights]


def survivors(row, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Which tokens of a row without ties remain, after the filters in their order."""
    z = [x / temperature for x in row]
    order = sorted((i for i, x in enumerate(z) if x > OUT), key=lambda i: -z[i])
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        chance, mass, kept = probabilities([z[i] for i in order]), 0.0, 0
        while kept == 0 or (mass < top_p and kept < len(order)):
            mass, kept = mass + chance[kept], kept + 1
        order = order[:kept]
    if min_p is not None:
        order = [i for i in order if math.exp(z[i] - z[order[0]]) >= min_p]
    return sorted(order)


def possible(row, dtype=torch.float32, **chosen):
    """The survivors, and whatever else rounding at an edge may let through; the logits may have been rounded
    to their dtype after the division by the temperature."""
    finite = [abs(x) for x in row if x > OUT]
    slack = 1e-5 + 4 * epsilon(dtype) * max(finite) / chosen.get("temperature", 1.0)
    for key, sign in (("top_p", 1), ("min_p", -1)):
        if chosen.get(key) is not None:
            chosen = chosen | {key: chosen[key] + sign * slack}
    return survivors(row, **chosen)


def law(row, **chosen):
    """The probability of each token that sample may return."""
    kept = survivors(row, **chosen)
    t = chosen.get("temperature", 1.0)
    return dict(zip(kept, probabilities([row[i] / t for i in kept]), strict=True))


def kept_by(subject, name, case, value):
    """What the filter returns, checked for all that filters have in common, as a boolean mask."""
    before = case.logits.clone()
    got = getattr(subject, name)(case.logits, value)
    untouched({"logits": before}, {"logits": case.logits})
    what = f"{name}(logits, {value})"
    assert_tensor(got, shape=case.logits.shape, dtype=case.logits.dtype, name=what)
    kept = got != OUT
    changed = kept & (got != case.logits)
    assert_true(
        not bool(changed.any()),
        f"{what} holds something that is neither the logit nor −inf",
        expected=case.logits,
        got=got,
    )
    return kept


def each_row(case, kept):
    """The rows one by one: their logits as floats from the largest down, and how many of them are kept.
    What is kept must be the largest; of equals at the edge, any."""
    vocab = case.logits.shape[-1]
    for row, mask in zip(case.logits.double().reshape(-1, vocab), kept.reshape(-1, vocab), strict=True):
        x, inside = row.tolist(), mask.tolist()
        some = [v for v, stays in zip(x, inside, strict=True) if stays]
        rest = [v for v, stays in zip(x, inside, strict=True) if not stays]
        assert_true(
            some and (not rest or min(some) >= max(rest)),
            "a larger logit is removed and a smaller one kept" if some else "a row has no token left",
            expected=row,
            got=mask,
        )
        yield sorted((v for v in x if v > OUT), reverse=True), len(some)


def to_the_end_of_ties(ranked, count):
    """``count``, and the logits further on that equal the last of them."""
    while count < len(ranked) and ranked[count] == ranked[count - 1]:
        count += 1
    return count


def assert_count(count, least, most, ranked, what):
    due = f"{least}" if least == most else f"{least} to {most}"
    assert_true(
        least <= count <= most,
        f"{what} keeps {count} of the logits {short(ranked)}",
        expected=f"{due} of them",
        got=count,
    )


def short(ranked):
    return "[" + ", ".join(f"{v:.4g}" for v in ranked[:8]) + (", …]" if len(ranked) > 8 else "]")


# --- part 1: the filters -------------------------------------------------------------------------


@examples(quick=3)
@given(case=rows())
def test_greedy_takes_a_largest_logit(subject, case):
    """greedy returns, for each row, an int64 token whose logit no other exceeds; of equals, any.

    Catches the value in place of its index, a maximum over all rows, and a dimension that is kept."""
    before = case.logits.clone()
    got = subject.greedy(case.logits)
    untouched({"logits": before}, {"logits": case.logits})
    assert_tensor(got, shape=case.logits.shape[:-1], dtype=torch.int64)
    inside = (got >= 0) & (got < case.logits.shape[-1])
    assert_true(bool(inside.all()), "a token lies outside the vocabulary", got=got)
    picked = case.logits.gather(-1, got[..., None])[..., 0]
    assert_equal(picked, case.logits.amax(-1), "the logits of the tokens that greedy takes")


@examples(quick=3)
@given(case=rows(), t=TEMPERATURES)
def test_temperature_divides_the_logits(subject, case, t):
    """temperature(logits, t) is logits / t, in the dtype of the logits, which are left alone; −inf stays.

    Catches a product, a temperature on the probabilities, and division in place."""
    before = case.logits.clone()
    got = subject.temperature(case.logits, t)
    untouched({"logits": before}, {"logits": case.logits})
    want = case.logits.double() / t
    if case.logits.dtype == torch.float16:
        want = want.where((want.abs() < 65504) | want.isinf(), want.sign() * math.inf)
    size = want.abs().nan_to_num(posinf=0.0)
    assert_close(got, want, dtype=case.logits.dtype, magnitude=size)


@examples(quick=2, full=15)
@given(seed=SEEDS, dtype=DTYPES, vocab=st.integers(2, 6), k=st.integers(1, 5), start=st.sampled_from((1, -3)))
def test_neighbouring_numbers_are_told_apart(subject, seed, dtype, vocab, k, start):
    """Of logits that are neighbours in their dtype greedy, and sample with temperature=0, take the largest, and
    top_k keeps the k largest exactly.

    Catches logits rounded to a narrower type, float64 to float32 as well, and their probabilities, many of
    which are equal then, in place of the logits."""
    steps = torch.randperm(vocab, generator=seeded(seed))
    row = (start + steps.double() * epsilon(dtype) * abs(start)).to(dtype)
    largest = steps.argmax()
    numbers = f"{start} + {epsilon(dtype) * abs(start):.2g} · {steps.tolist()}"
    assert_equal(subject.greedy(row), largest, f"greedy of {numbers}")
    cold = subject.sample(row, generator=seeded(seed), temperature=0.0)
    assert_equal(cold, largest, f"sample with temperature=0 of {numbers}")
    kept = kept_by(subject, "top_k", Rows(row), k)
    assert_equal(kept, steps >= vocab - k, f"what top_k keeps of {numbers}")


@examples(quick=4, full=40)
@given(case=rows(), k=st.integers(1, 8))
def test_top_k_keeps_the_k_largest(subject, case, k):
    """top_k keeps the k largest logits of each row as they are, all if there are fewer, and puts −inf for
    the others. Of those that tie with the k-th it may keep more.

    Catches k − 1 or k + 1, zeros in place of −inf, one threshold for all rows, and a k beyond the vocabulary
    that raises."""
    kept = kept_by(subject, "top_k", case, k)
    for ranked, count in each_row(case, kept):
        due = min(k, len(ranked))
        assert_count(count, due, to_the_end_of_ties(ranked, due), ranked, f"top_k with k = {k}")


@examples(quick=6, full=40)
@given(case=rows(), p=SHARES)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(subject, case, p):
    """top_p keeps the fewest of the likeliest tokens whose probabilities add up to p: with the last of them
    they reach it, without it they do not.

    Catches a nucleus that stops short of p, or goes one further, and sums over unsorted tokens."""
    kept = kept_by(subject, "top_p", case, p)
    for ranked, count in each_row(case, kept):
        assert_nucleus(ranked, count, p, rounding(case.logits.dtype, ranked))


def assert_nucleus(ranked, count, p, slack):
    """So many of the ranked logits are kept: right if they are the nucleus for p, give or take ``slack``."""
    chance, mass = probabilities(ranked), [0.0]
    for one in chance:
        mass.append(mass[-1] + one)
    least = next((n for n in range(1, len(ranked)) if mass[n] >= p - slack), len(ranked))
    most = next((n for n in range(1, len(ranked)) if mass[n] >= p + slack), len(ranked))
    what = f"top_p with p = {p:.4g} over probabilities {short(chance)}"
    assert_count(count, least, to_the_end_of_ties(ranked, most), ranked, what)


@examples(quick=4, full=30)
@given(case=rows(), above=st.booleans())
def test_the_token_that_crosses_p_belongs_to_the_nucleus(subject, case, above):
    """Whatever is just above or just below the mass of the first n tokens decides whether there are n + 1
    or n.

    Here p is put beside each step of the cumulative sum. Catches < for ≤ across whole tokens, a mask that is
    shifted the wrong way, and probabilities in less precision than is due."""
    row, ranked, slack = first_row(case)
    mass = 0.0
    for one in probabilities(ranked):
        mass += one
        p = min(max(mass + (3 if above else -3) * slack, 0.0), 1.0)
        kept = kept_by(subject, "top_p", Rows(row), p)
        for again, count in each_row(Rows(row), kept):
            assert_nucleus(again, count, p, slack)


def first_row(case):
    """The first row of the logits, its finite numbers from the largest down, and how far off rounding may be."""
    row = case.logits.reshape(-1, case.logits.shape[-1])[0]
    ranked = sorted((v for v in row.double().tolist() if v > OUT), reverse=True)
    return row, ranked, rounding(row.dtype, ranked)


def rounding(dtype, ranked):
    kind = torch.float32 if dtype in HALF_TYPES else dtype
    return tolerance(kind, length=len(ranked), magnitude=1 + max(map(abs, ranked)))


@examples(quick=4, full=30)
@given(case=rows(), p=SHARES)
def test_min_p_is_relative_to_the_likeliest(subject, case, p):
    """min_p keeps a token if its probability is at least p times that of the likeliest of its row.

    Catches a threshold of p itself, a ratio of logits in place of probabilities, one maximum for all rows,
    and > in place of ≥, which at p = 1 keeps nothing."""
    kept = kept_by(subject, "min_p", case, p)
    for ranked, count in each_row(case, kept):
        assert_likely_enough(ranked, count, p, rounding(case.logits.dtype, ranked))


def assert_likely_enough(ranked, count, p, slack):
    """So many of the ranked logits are kept: right if they are those that min_p keeps, give or take ``slack``."""
    ratios = [math.exp(v - ranked[0]) for v in ranked]
    least = sum(r >= p * (1 + slack) or v == ranked[0] for r, v in zip(ratios, ranked, strict=True))
    most = sum(r >= p * (1 - slack) for r in ratios)
    assert_count(count, least, most, ranked, f"min_p with p = {p:.4g} over ratios {short(ratios)}")


@examples(quick=2, full=30)
@given(case=rows(), above=st.booleans())
def test_min_p_tells_just_above_from_just_below(subject, case, above):
    """A token stays if its probability is just above p times that of the likeliest, and goes if it is just
    below.

    Here p is put beside the ratio of each token. Catches probabilities in less precision than is due, and
    thresholds that are a little off."""
    row, ranked, slack = first_row(case)
    for value in dict.fromkeys(ranked):
        p = min(math.exp(value - ranked[0]) * (1 - 3 * slack if above else 1 + 3 * slack), 1.0)
        for again, count in each_row(Rows(row), kept_by(subject, "min_p", Rows(row), p)):
            assert_likely_enough(again, count, p, slack)


@examples(quick=3, full=20)
@given(case=rows(dtypes=DTYPES), scale=st.sampled_from((1e3, 1e4)))
def test_filters_do_not_overflow(subject, case, scale):
    """Logits in the thousands are as good as any: the likeliest is kept, what is far below is not, and
    nothing is NaN.

    Catches exp without a shift. Here two logits differ by hundreds of nats or not at all."""
    top = case.logits.where(case.logits > OUT, 0).abs().max().clamp(min=1)
    case = Rows((case.logits / top * scale).round())
    for name, value in (("top_p", 0.5), ("min_p", 0.5), ("top_p", 0.0), ("top_k", 1)):
        kept = kept_by(subject, name, case, value)
        for ranked, count in each_row(case, kept):
            ties = to_the_end_of_ties(ranked, 1)
            least = 1 if name != "min_p" else ties
            if name == "top_p" and value:
                least = math.ceil(ties / 2 - 1e-4)
            near = sum(v > ranked[0] - 20 for v in ranked)
            assert_count(count, min(least, near), max(ties, near), ranked, f"{name} with {value}")


@examples(quick=2, full=10)
@given(
    seed=SEEDS,
    dtype=DTYPES,
    p=st.sampled_from((0.3, 0.6, 0.9)),
    peak=st.sampled_from((0.0, 2.0)),
    vocab=st.sampled_from((4096, 1500)),
)
def test_large_vocabularies_have_a_nucleus_too(subject, seed, dtype, p, peak, vocab):
    """Also of thousands of tokens, flat or peaked, in half precision too, the nucleus is the smallest set,
    top_k keeps as many as are due, and greedy and sample with top_k=1 find the largest.

    Catches probabilities summed in half precision: the sum stops growing long before p, or moves in steps; and
    a search that gives up after the first hundreds."""
    noise = torch.randn(2, vocab, generator=seeded(seed), dtype=torch.float64)
    case = Rows((noise * torch.tensor([[peak], [0.2]], dtype=torch.float64)).to(dtype))
    kept = kept_by(subject, "top_p", case, p)
    kind = torch.float32 if dtype in HALF_TYPES else dtype
    slack = tolerance(kind, length=vocab) + tolerance(kind, magnitude=float(case.logits.double().abs().max()))
    for ranked, count in each_row(case, kept):
        assert_nucleus(ranked, count, p, slack)
    k = vocab * 9 // 10
    for ranked, count in each_row(case, kept_by(subject, "top_k", case, k)):
        assert_count(count, k, to_the_end_of_ties(ranked, k), ranked, f"top_k with k = {k}")
    best = case.logits.amax(-1)
    for token in (subject.greedy(case.logits), subject.sample(case.logits, generator=seeded(seed), top_k=1)):
        assert_tensor(token, shape=best.shape, dtype=torch.int64)
        assert_equal(case.logits.gather(-1, token[:, None])[:, 0], best, "the logits of the likeliest tokens")


@examples(quick=2, full=10)
@given(case=rows(), by=st.sampled_from((1e-6, 0.5, 1.0)))
def test_filters_refuse_what_makes_no_sense(subject, case, by):
    """t ≤ 0, k < 1 and p outside [0, 1] raise ValueError, in the filters and in sample; the ends of the
    ranges do not.

    Catches a top_k of 0 that means all, and negative numbers that slip through."""
    bad = [("temperature", "t", v) for v in (0.0, -by)] + [("top_k", "k", v) for v in (0, -1)]
    bad += [(name, "p", v) for name in ("top_p", "min_p") for v in (-by, 1 + by)]
    for name, letter, value in bad:
        refuses(
            ValueError,
            lambda name=name, value=value: getattr(subject, name)(case.logits, value),
            because=f"{name} has {letter} = {value}",
        )
        if (name, value) != ("temperature", 0.0):
            refuses(
                ValueError,
                lambda name=name, value=value: subject.sample(
                    case.logits, generator=seeded(0), **{name: value}
                ),
                because=f"sample has {name} = {value}",
            )
    for name, value in (("top_k", 1), ("top_p", 0.0), ("min_p", 1.0), ("top_p", 1.0), ("min_p", 0.0)):
        kept = kept_by(subject, name, case, value)
        for ranked, count in each_row(case, kept):
            least = len(ranked) if (name, value) == ("min_p", 0.0) else 1
            most = to_the_end_of_ties(ranked, 1) if (name, value) not in EVERYTHING else len(ranked)
            assert_count(count, least, most, ranked, f"{name} with {value}")


EVERYTHING = (("top_p", 1.0), ("min_p", 0.0))


# --- part 1: drawing -----------------------------------------------------------------------------


def drawn(subject, case, count=DRAWS):
    """So many tokens for one row, drawn as the rows of a batch."""
    before = case.logits.clone()
    got = subject.sample(case.logits.expand(count, -1), generator=seeded(case.seed), **case.options)
    untouched({"logits": before}, {"logits": case.logits})
    assert_tensor(got, shape=(count,), dtype=torch.int64, name="the tokens of a batch of equal rows")
    return got.tolist()


def how_often(tokens):
    return dict(sorted(Counter(tokens).items()))


@examples(quick=5, full=40)
@given(case=draws())
def test_only_what_the_filters_leave_is_drawn(subject, case):
    """No token is ever drawn that temperature, top_k, top_p and min_p, applied in this order, remove.

    Catches filters that are ignored, or see the logits in another order or not renormalised, options of 0
    taken for None, and rounding that lets a token of probability 0 slip through."""
    row = case.logits.double().tolist()
    allowed, got = possible(row, case.logits.dtype, **case.options), drawn(subject, case)
    others = sorted(set(got) - set(allowed))
    assert_true(
        not others,
        f"token {others[:1]} is drawn, which the filters remove",
        expected=f"of {allowed} only",
        got=how_often(got),
    )


@given(
    t=st.sampled_from((1.0, 0.5, 2.0, 0.25)),
    share=st.sampled_from((0.5, 0.1)),
    seed=SEEDS,
    name=st.sampled_from(("top_p", "min_p")),
)
def test_shares_are_those_after_the_temperature(subject, t, share, seed, name):
    """One token just within top_p or min_p, thirty just beyond it once the temperature has acted: only it comes.

    Without the filter the thirty have most of the mass. Catches top_p and min_p on the logits as they came, or
    with a share that is changed with the temperature."""
    # min_p: thirty at 0.8 of the share. top_p: the likeliest has 1.2 times the share, the thirty the rest.
    ratio = 0.8 * share if name == "min_p" else (1 / (1.2 * share) - 1) / 30
    row = torch.full((31,), t * math.log(ratio), dtype=torch.float64)
    row[0] = 0
    got = Counter(drawn(subject, Draw(row, {"temperature": t, name: share}, seed)))
    message = f"of a logit of 0 and thirty of {row[1]:.4g}, {name} = {share} at temperature {t} leaves only the first"
    assert_true(got[0] == DRAWS, message, expected={0: DRAWS}, got=how_often(got))


@examples(quick=4, full=80)
@given(case=draws(least=2).map(with_two_likely_ones))
def test_likely_tokens_are_drawn(subject, case):
    """In 64 independent draws every token comes whose probability is 0.45 or more.

    It stays away with a probability of 0.55⁶⁴ = 2.4e-17, in all 80 examples below 2e-15. Catches a sampler
    that always takes the likeliest, rows that share one draw, and too much filtered away."""
    row = case.logits.double().tolist()
    chances, allowed = law(row, **case.options), possible(row, case.logits.dtype, **case.options)
    got, sure = drawn(subject, case), set(chances) == set(allowed)
    absent = [i for i, chance in chances.items() if chance >= 0.45 and i not in got] if sure else []
    assert_true(
        not absent and set(got) <= set(allowed),
        f"token {absent[:1]} never comes in {DRAWS} draws",
        expected={i: round(chance * DRAWS, 1) for i, chance in chances.items()},
        got=how_often(got),
    )


@examples(quick=3, full=30)
@given(case=rows(scales=st.sampled_from((1.0, 5.0))), options=options(), seed=SEEDS)
def test_sample_returns_one_token_for_each_row(subject, case, options, seed):
    """The result is int64, of the shape of the logits without their last dimension, for any number of
    dimensions and any memory layout; each row gets a token of its own support.

    Catches (…, 1), a Python number, tokens of another row's support, and logits changed in place."""
    before = case.logits.clone()
    got = subject.sample(case.logits, generator=seeded(seed), **options)
    untouched({"logits": before}, {"logits": case.logits})
    assert_tensor(got, shape=case.logits.shape[:-1], dtype=torch.int64)
    t = options.get("temperature", 1.0)
    vocab = case.logits.shape[-1]
    for row, token in zip(
        case.logits.double().reshape(-1, vocab).tolist(), got.flatten().tolist(), strict=True
    ):
        assert_true(0 <= token < vocab and row[token] > OUT, "a token of probability 0 is drawn", got=token)
        # As far as rounding to the dtype after the division may move two logits against each other.
        near, top = 4 * epsilon(case.logits.dtype) * max(abs(x) for x in row if x > OUT), max(row)
        if options.get("min_p") is not None:
            ratio = math.exp((row[token] - top + near) / t) * (1 + 1e-4)
            assert_true(ratio >= options["min_p"], f"token {token} is below min_p", expected=row, got=got)
        if options.get("top_k") is not None:
            larger = sum(x > row[token] + near for x in row)
            message = f"token {token} is not among the top k"
            assert_true(larger < options["top_k"], message, expected=row, got=got)


@examples(quick=3, full=30)
@given(case=rows(dtypes=NOT_FP16), seed=SEEDS, filters=options())
def test_without_temperature_it_is_greedy(subject, case, seed, filters):
    """With temperature=0, or one so small that the runner-up has a chance below e⁻¹⁰⁰, sample takes a largest
    logit, whatever the filters; and so it does with top_k=1, top_p=0 or min_p=1 alone.

    Catches a division by zero, 0 taken for None, and a temperature that multiplies."""
    ranked = case.logits.double().where(case.logits > OUT, -1e9).sort(-1, descending=True).values
    gaps = ranked[..., :1] - ranked
    gap = float(gaps[gaps > 0].min()) if bool((gaps > 0).any()) else 1.0
    best = case.logits.amax(-1)
    # A power of two: the division then rounds nothing, and makes no ties.
    for t in (0.0, 0, 2.0 ** math.floor(math.log2(min(gap / 100, 1.0)))):
        got = subject.sample(case.logits, generator=seeded(seed), **filters | {"temperature": t})
        assert_tensor(got, shape=best.shape, dtype=torch.int64)
        picked = case.logits.gather(-1, got[..., None])[..., 0]
        assert_equal(picked, best, f"the logits of the tokens drawn with temperature={t}")
    for name, value in (("top_k", 1), ("top_p", 0.0), ("min_p", 1.0)):
        got = subject.sample(case.logits, generator=seeded(seed), **{name: value})
        assert_tensor(got, shape=best.shape, dtype=torch.int64)
        picked = case.logits.gather(-1, got[..., None])[..., 0]
        # The probabilities of neighbouring logits may be equal.
        near = 4 * epsilon(torch.float32) * best.double().abs().clamp(min=1)
        assert_true(
            bool((best.double() - picked.double() <= near).all()),
            f"with {name}={value} a token is drawn that is not the likeliest",
            expected=best,
            got=picked,
        )


@examples(quick=3, full=20)
@given(case=draws(least=3))
def test_the_generator_is_the_only_source_of_randomness(subject, case):
    """The same state of the generator gives the same tokens, and no global random state is moved.

    Catches torch.multinomial and torch.rand without the generator, NumPy's and Python's global ones, and a
    generator made once and kept."""
    generator, before = seeded(case.seed), global_states()
    batch, allowed = (
        case.logits.expand(16, -1),
        possible(case.logits.double().tolist(), case.logits.dtype, **case.options),
    )
    first = subject.sample(batch, generator=generator, **case.options)
    assert_tensor(first, shape=(16,), dtype=torch.int64)
    assert_states_kept(before)
    assert_true(set(first.tolist()) <= set(allowed), "a token is drawn that the filters remove", got=first)
    subject.sample(batch, generator=generator, **case.options)
    generator.set_state(seeded(case.seed).get_state())
    again = subject.sample(batch, generator=generator, **case.options)
    assert_equal(again, first, "the tokens from the same state of the generator")


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


@examples(quick=2, full=6)
@given(seed=SEEDS, vocab=st.sampled_from((16, 12, 15)), dtype=DTYPES)
def test_the_generator_moves_on(subject, seed, vocab, dtype):
    """Sixteen calls on one generator do not all give the same token of 12 or more, all equally likely.

    They would once in 12¹⁵ = 1.5e16. Catches a fresh generator with a fixed seed in each call, one seeded
    with generator.initial_seed(), and a copy of the state in place of the generator."""
    generator, flat = seeded(seed), torch.zeros(vocab, dtype=dtype)
    got = []
    for _ in range(16):
        token = subject.sample(flat, generator=generator)
        assert_tensor(token, shape=(), dtype=torch.int64)
        got.append(int(token))
    assert_true(len(set(got)) > 1, "sixteen calls on one generator all give the same token", got=got)


# --- part 1: counting outcomes -------------------------------------------------------------------


def surprise(count, calls, chance):
    """calls · KL(count/calls ‖ chance): at least as far from the chance, on the same side, comes a binomial
    with a probability of at most exp(−surprise) (Chernoff, Hoeffding 1963, theorem 1)."""
    total = 0.0
    for seen, due in ((count, calls * chance), (calls - count, calls * (1 - chance))):
        if seen:
            total += seen * math.log(seen / due) if due > 0 else math.inf
    return total


def assert_as_likely(seen, chances, calls, what):
    """``seen`` counts outcomes; the one that is furthest from its probability is shown."""

    def off(outcome):
        return surprise(seen.get(outcome, 0), calls, min(chances.get(outcome, 0.0), 1.0))

    worst = max({**chances, **seen}, key=off)
    if off(worst) > SURPRISE:
        count, chance = seen.get(worst, 0), chances.get(worst, 0.0)
        raise Mismatch(
            f"{what} {worst} came {count} times in {calls}, and its probability is {chance:.4g}",
            expected={str(o): round(calls * p, 1) for o, p in sorted(chances.items())},
            got={str(o): n for o, n in sorted(seen.items())},
        )


def logs(*weights):
    return [math.log(w) for w in weights]


# Chosen so that another order of the filters, one left out, or masses that are not renormalised, keeps
# another number of tokens, each worth a twentieth at least.
PIE = logs(0.4, 0.25, 0.2, 0.1, 0.05)
SETTINGS = (
    (PIE, {}),
    (PIE, {"temperature": 0.5}),
    (PIE, {"temperature": 2.0}),
    (PIE, {"top_k": 3, "top_p": 0.75}),  # two remain; three, if top_p sees all five, before or after
    (PIE, {"temperature": 2.0, "top_p": 0.75}),  # four; three, if the temperature comes later
    (PIE, {"temperature": 2.0, "min_p": 0.4}),  # four; three, if the temperature comes later
    (PIE, {"top_p": 0.7, "min_p": 0.3}),  # three; two, if min_p comes first
    (PIE, {"top_k": 4, "min_p": 0.24}),
    (PIE, {"temperature": 1.5, "top_k": 4, "top_p": 0.8, "min_p": 0.3}),
    (logs(0.05, 0.1, 0.2, 0.25, 0.4), {"top_k": 4}),
    (logs(0.1, 0.5, 0.15, 0.25), {"top_p": 0.6}),
)
MANY = 1500


@examples(quick=0, full=5)
@given(t=st.sampled_from((0.05, 0.09, 0.02, 0.01, 0.001)))
def test_a_low_temperature_draws_among_equals(subject, t):
    """Of two equal logits both tokens come, however low the temperature, as long as it is not 0.

    In 64 rows one stays away with a probability of 2⁻⁶³. Catches a low temperature that is taken for greedy."""
    case = Draw(torch.tensor([0.5, 0.5]), {"temperature": t}, 21)
    message = f"at temperature {t} one of two equal tokens never comes in {DRAWS} draws"
    assert_equal(sorted(set(drawn(subject, case))), [0, 1], message)


@examples(quick=0, full=2)
@given(dtype=st.sampled_from((torch.float32, torch.float64)))
def test_many_unlikely_tokens_stay_unlikely(subject, dtype):
    """Beside one logit of 0, none of 32,000 of −50 is drawn in twenty rows.

    One would with a probability of 20 · 32000 · e⁻⁵⁰ = 1.2e-16. Catches an ε on the probabilities: it is small
    for a token, and large for a vocabulary."""
    row = torch.full((32_001,), -50.0, dtype=dtype)
    row[16_000] = 0
    got = subject.sample(row.expand(20, -1), generator=seeded(22))
    assert_equal(got, torch.full((20,), 16_000), "the tokens beside 32,000 of e⁻⁵⁰ times the probability")


@examples(quick=0, full=2)
@given(seed=st.sampled_from((23, 24)))
def test_no_two_calls_draw_alike(subject, seed):
    """Of 600 calls on one generator no two give the same tokens for 64 rows of two equal logits.

    Two would with a probability of 600² / 2 · 2⁻⁶⁴ = 1e-14. Catches draws that are seeded by a number out of
    a few thousand, or of 65,536."""
    generator, flat, known = seeded(seed), torch.zeros(DRAWS, 2), {}
    for call in range(600):
        got = subject.sample(flat, generator=generator)
        assert_tensor(got, shape=(DRAWS,), dtype=torch.int64)
        before = known.setdefault(tuple(got.tolist()), call)
        assert_true(before == call, f"calls {before} and {call} give the same {DRAWS} tokens", got=got)


def one_beside_many(t):
    """A logit of 0 and 64 that, at the temperature, share as much: how often the one comes tells 1 from 1.05."""
    return torch.tensor([0.0, *[-t * math.log(64)] * 64], dtype=torch.float64)


@examples(quick=0, full=3)
@given(t=st.sampled_from((1.0, 0.5, 2.0)))
def test_one_token_is_as_likely_as_many_others_together(subject, t):
    """In 12,000 rows the one comes as often as 64 others together, if it is 64 times as likely as each.

    An exact test with fixed seeds, 6 cells. Catches a temperature that is off by five percent."""
    options = {} if t == 1 else {"temperature": t}
    got = subject.sample(one_beside_many(t).expand(12_000, -1), generator=seeded(25), **options)
    assert_tensor(got, shape=(12_000,), dtype=torch.int64)
    seen = Counter("the one" if token == 0 else "one of 64" for token in got.tolist())
    assert_as_likely(seen, {"the one": 0.5, "one of 64": 0.5}, 12_000, f"at temperature {t},")


@examples(quick=0, full=len(SETTINGS))
@given(setting=st.sampled_from(SETTINGS))
def test_every_token_is_as_likely_as_the_rule_makes_it(subject, setting):
    """Over 1,500 draws, in batches and one by one, each token comes as often as the softmax of what the
    filters leave says.

    An exact test with fixed seeds (see the head of the file), 48 cells. Catches tokens drawn evenly from
    what is left, a temperature applied after a filter, top_p before top_k, and weights not renormalised."""
    row, chosen = setting
    generator, logits = seeded(SETTINGS.index(setting)), torch.tensor(row)
    got = []
    for batch in (1000, 400, 60):
        tokens = subject.sample(logits.expand(batch, -1), generator=generator, **chosen)
        assert_tensor(tokens, shape=(batch,), dtype=torch.int64)
        got += tokens.tolist()
    got += [int(subject.sample(logits, generator=generator, **chosen)) for _ in range(MANY - len(got))]
    shares = [round(p, 2) for p in probabilities(row)]
    assert_as_likely(
        Counter(got), law(row, **chosen), MANY, f"of probabilities {shares} with {chosen}, token"
    )


@examples(quick=0, full=2)
@given(way=st.sampled_from(("rows", "calls")))
def test_draws_are_independent(subject, way):
    """Pairs of tokens, from two rows of one call, from two calls, or from two with another between them, come
    as often as the product of their probabilities.

    An exact test with fixed seeds, 24 cells. Catches one uniform number for all rows, and a generator that is
    read by a copy and moved on by less than was read: the next call but one shares its draws, if a number
    takes two of the generator's."""
    one, other = logs(0.5, 0.3, 0.2), logs(0.35, 0.65)
    generator, count = seeded(5), 400 if way == "rows" else 1600
    if way == "rows":
        wide = torch.tensor([one, [*other, OUT]], dtype=torch.float64)
        got = subject.sample(wide.expand(count, 2, 3), generator=generator)
        assert_tensor(got, shape=(count, 2), dtype=torch.int64)
        found, laws = {"rows": got.tolist()}, (law(one), law(other))
    else:
        row, laws = torch.tensor(one, dtype=torch.float64), (law(one), law(one))
        got = [int(subject.sample(row, generator=generator)) for _ in range(2 * count)]
        fours = list(zip(*[iter(got)] * 4, strict=True))
        # No token is in two pairs of a kind, so that the pairs of a kind are independent.
        found = {"calls": [p for a, b, c, d in fours for p in ((a, b), (c, d))]}
        found["next calls but one"] = [p for a, b, c, d in fours for p in ((a, c), (b, d))]
    chances = {(a, b): laws[0][a] * laws[1][b] for a, b in product(*laws)}
    for of, pairs in found.items():
        assert_as_likely(Counter(map(tuple, pairs)), chances, count, f"in {of}, the pair")


@examples(quick=0, full=2)
@given(dtype=st.sampled_from(HALF_TYPES))
def test_a_large_half_precision_vocabulary_is_drawn_evenly(subject, dtype):
    """Of 2,400 tokens, the first half of which are a trifle likelier in half precision, each half, and each
    half of every four, comes as often as the other.

    An exact test with fixed seeds, 8 cells. Catches a CDF summed in half precision: it stops growing, or moves
    in steps that skip tokens; and a filter that nobody asked for."""
    row, count = torch.zeros(2400, dtype=dtype), 240
    row[1200:] = -(2.0**-9)
    got = subject.sample(row.expand(count, -1), generator=seeded(11))
    assert_tensor(got, shape=(count,), dtype=torch.int64)
    halves = Counter("lower" if token < 1200 else "upper" for token in got.tolist())
    lower = 1 / (1 + math.exp(-(2.0**-9)))
    assert_as_likely(halves, {"lower": lower, "upper": 1 - lower}, count, "half of the vocabulary:")
    fours = Counter("outer" if token % 4 in (0, 3) else "inner" for token in got.tolist())
    assert_as_likely(fours, {"outer": 0.5, "inner": 0.5}, count, "two of each four tokens:")


@examples(quick=0, full=2)
@given(dtype=st.sampled_from(HALF_TYPES))
def test_no_token_is_skipped_in_half_precision(subject, dtype):
    """Beside one logit of 9, of 8,281 of 0 those whose place leaves 1, 2, 3 or 4 over 8 come as often as the
    others.

    In half precision a CDF from e⁹ to e⁹ + 8,281 = 8 · 2,048 moves once in eight tokens of the float16, and once
    in 64 of the bfloat16, each time at the same place of the eight; none of the tokens between is ever drawn.
    An exact test with a fixed seed, 6 cells. Catches a CDF that is rounded to the dtype of the logits."""
    row, count = torch.zeros(8282, dtype=dtype), 160
    row[0] = 9
    got = subject.sample(row.expand(count, -1), generator=seeded(26))
    assert_tensor(got, shape=(count,), dtype=torch.int64)
    seen = Counter(
        "token 0" if token == 0 else "places 1 to 4" if 1 <= token % 8 <= 4 else "places 5 to 8"
        for token in got.tolist()
    )
    total = math.exp(9) + 8281
    chances = {"token 0": math.exp(9) / total, "places 1 to 4": 4141 / total, "places 5 to 8": 4140 / total}
    assert_as_likely(seen, chances, count, "of each eight tokens,")


# --- part 2: the loop ----------------------------------------------------------------------------


def written(case):
    """What a text is called, with the rule by which the model picks a row."""
    rows = len(case.table)
    rule = f" (row Σ i·(tᵢ + 1) mod {rows} of the table follows t₁ t₂ …)" if rows > 1 else ""
    return "the new text" + rule


def spoken(case):
    """What each row says greedily: columns until all rows have ended, filled with eos."""
    texts, ended = [list(row) for row in case.prompt.tolist()], [False] * len(case.prompt)
    columns = 0
    while columns < case.max_new_tokens and not all(ended):
        for i, text in enumerate(texts):
            row = case.table[state_of(text, len(case.table))]
            text.append(case.eos if ended[i] else row.index(max(row)))
            ended[i] = case.eos is not None and text[-1] == case.eos
        columns += 1
    return torch.tensor([t[len(t) - columns :] for t in texts], dtype=torch.int64).reshape(
        len(texts), columns
    )


@examples(quick=5, full=30)
@given(case=texts(greedily=True, lengths=(1, 2, 3, 4, 6, 0, 5, 70)))
def test_greedy_text_is_the_likeliest_token_again_and_again(subject, case):
    """With temperature=0, or top_k=1, each new token is the likeliest after all tokens before it, in every
    row; only the new ones are returned.

    Catches the logits of another place than the last, a model that is shown only the newest token, or the
    newest few, the prompt returned with the text, and options that are not passed on."""
    before = case.prompt.clone()
    got = case.on(subject)
    untouched({"prompt": before}, {"prompt": case.prompt})
    assert_equal(got, spoken(case), written(case))


@examples(quick=5, full=40)
@given(case=texts(greedily=True, stop=True))
def test_a_row_ends_with_its_first_eos(subject, case):
    """After its first new eos a row holds only eos, the other rows go on, and the text ends when all have
    ended; an eos in the prompt does not count.

    Catches an end at the first eos of any row, rows that go on after theirs, padding with 0, and eos = 0
    taken for None."""
    assert_equal(case.on(subject), spoken(case), written(case))


@examples(quick=3, full=30)
@given(case=texts(greedily=True, stop=True))
def test_the_model_runs_once_for_each_column(subject, case):
    """The model runs as often as the result has columns, and sees the whole text so far.

    Catches a run too many at the end, loops that go on after all rows have ended, and a second run for the
    same token."""
    model = Model(case.table)
    got = case.on(subject, model)
    assert_equal(got, spoken(case), written(case))
    assert_equal(len(model.seen), got.shape[1], f"the runs of the model for {got.shape[1]} columns")


@examples(quick=4, full=40)
@given(case=texts(stop=True))
def test_every_new_token_is_one_that_sample_may_draw(subject, case):
    """Sampled with any options, each token that a row gets before it has ended is one that the filters leave,
    given the text before it; int64, and as many columns as it took.

    Catches options that are not passed on, context of another row, and tokens after the end."""
    got = case.on(subject)
    columns = got.shape[1] if isinstance(got, Tensor) and got.ndim == 2 else 0
    assert_tensor(got, shape=(len(case.prompt), columns), dtype=torch.int64)
    last = [-1] * len(case.prompt)
    for i, (prompt, new) in enumerate(zip(case.prompt.tolist(), got.tolist(), strict=True)):
        text = list(prompt)
        for column, token in enumerate(new):
            if last[i] >= 0:
                assert_true(token == case.eos, f"row {i} goes on after its eos, {case.eos}", got=got)
                continue
            row = case.table[state_of(text, len(case.table))]
            allowed = possible(row, **case.options)
            message = f"after {text} row {i} gets token {token}, which the filters remove"
            assert_true(token in allowed, message, expected=allowed, got=got)
            text.append(token)
            if token == case.eos:
                last[i] = column
    due = max(last) + 1 if min(last) >= 0 else case.max_new_tokens
    assert_equal(columns, due, f"the number of columns, where rows ended at {last} (−1: not at all)")


@examples(quick=2, full=20)
@given(case=texts(batch=(2, 3)))
def test_the_loop_draws_from_the_generator_only(subject, case):
    """The same seed writes the same text, and no global random state is moved.

    Catches a loop that draws from another source, or seeds one of its own."""
    before = global_states()
    first = case.on(subject)
    assert_states_kept(before)
    assert_tensor(first, shape=(len(case.prompt), case.max_new_tokens), dtype=torch.int64)
    assert_equal(case.on(subject), first, "the text from the same seed")


@examples(quick=2, full=10)
@given(case=texts(), by=st.integers(1, 3))
def test_bad_prompts_and_lengths_are_refused(subject, case, by):
    """A prompt that is a single row without batch, empty, or three-dimensional, and a negative
    max_new_tokens raise ValueError; 0 new tokens are legal.

    Catches prompts that broadcast, and a loop that silently does nothing."""
    for because, prompt, count in (
        ("the prompt has no batch dimension", case.prompt[0], 1),
        ("the prompt is empty", case.prompt[:, :0], 1),
        ("the prompt has three dimensions", case.prompt[None], 1),
        (f"max_new_tokens is {-by}", case.prompt, -by),
    ):
        refuses(
            ValueError,
            lambda prompt=prompt, count=count: subject.generate(
                Model(case.table), prompt, count, generator=seeded(0)
            ),
            because=because,
        )
    got = subject.generate(Model(case.table), case.prompt, 0, generator=seeded(0))
    assert_equal(got, case.prompt[:, :0], "the text of 0 new tokens")


@examples(quick=0, full=2)
@given(chosen=st.sampled_from(({"temperature": 1.5, "top_k": 2}, {})))
def test_the_text_is_as_likely_as_its_tokens_in_turn(subject, chosen):
    """Pairs of new tokens come as often as the probability of the first times that of the second given it, in
    one batch of rows and over many calls.

    An exact test with fixed seeds, 26 cells. Catches rows that share their draws, a seed that is set anew for
    each token, and a default that is not that of sample."""
    table = [logs(0.5, 0.3, 0.2), logs(0.2, 0.3, 0.5), logs(0.25, 0.5, 0.25 - 1e-3)]
    prompt, chances = [1, 0], {}
    for a, first in law(table[state_of(prompt, 3)], **chosen).items():
        for b, second in law(table[state_of([*prompt, a], 3)], **chosen).items():
            chances[a, b] = first * second
    generator, count = seeded(3), 300
    text = torch.tensor([prompt])
    wide = subject.generate(Model(table), text.expand(count, -1), 2, generator=generator, **chosen)
    assert_tensor(wide, shape=(count, 2), dtype=torch.int64)
    assert_as_likely(Counter(map(tuple, wide.tolist())), chances, count, "the text, in a batch,")
    pairs = Counter()
    for _ in range(count):
        one = subject.generate(Model(table), text, 2, generator=generator, **chosen)
        assert_tensor(one, shape=(1, 2), dtype=torch.int64)
        pairs[tuple(one[0].tolist())] += 1
    assert_as_likely(pairs, chances, count, "the text")


# --- what tells one mistake from another ---------------------------------------------------------


PROMPT = torch.tensor([[1, 0], [0, 2]])


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name; draws are summed up as who comes at all,
    and how often in coarse steps, so that the use of the generator does not show."""
    pie = torch.tensor(PIE, dtype=torch.float64)
    two = torch.stack([pie, pie.flip(0) * 3])
    ties = torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    small = torch.tensor([[0.02, 0.05, 0.03, 0.9], [0.28, 0.26, 0.24, 0.22]], dtype=torch.float64).log()
    long = torch.linspace(0, 1, 3000).repeat(1, 1).bfloat16()
    near, many = 1 + torch.tensor([2.0, 3, 1, 0]) * 2.0**-23, torch.linspace(0, 0.1, 80).expand(400, 80)
    unlikely = torch.tensor([0.0] + [-50.0] * 20_000, dtype=torch.float64)
    edge = torch.tensor([1.5625, 1.5, 1, 0.5], dtype=torch.bfloat16)

    def alone(call, x, *rest):
        x = x.clone()
        before = x.clone()
        return call(x, *rest), torch.equal(x, before)

    def come(logits, count=400, **chosen):
        got = subject.sample(logits.expand(count, *logits.shape), generator=seeded(1), **chosen)
        got = got.reshape(count, -1)
        found = [Counter(column) for column in got.T.tolist()]
        chances = [law(row, **chosen) for row in logits.reshape(got.shape[1], -1).tolist()]
        off = [
            [round(surprise(seen.get(i, 0), count, c.get(i, 0.0)) / 30) for i in sorted({*seen, *c})]
            for seen, c in zip(found, chances, strict=True)
        ]
        # Which token that is depends on the use of the generator too.
        if all(len(seen) == 1 for seen in found) and min(max(c.values()) for c in chances) < 0.9:
            return "all alike"
        # Whether a token of a chance of 3 % or less comes at all is a matter of the use of the generator.
        sure = [
            sorted(i for i in seen if not 0 < c.get(i, 0.0) < 0.03)
            for seen, c in zip(found, chances, strict=True)
        ]
        return sure, [[min(x, 9) for x in row] for row in off]

    def skipped():
        """Whether of each four tokens of bfloat16, in the upper half of the CDF, only one ever comes."""
        row = torch.zeros(622, dtype=torch.bfloat16)
        row[0] = 6
        got = subject.sample(row.expand(100, -1), generator=seeded(10)).tolist()
        return len({token % 4 for token in got if token > 120}) == 1

    def together():
        got = subject.sample(pie.expand(60, -1), generator=seeded(2))
        return len(set(got.tolist())) > 1

    def repeated():
        generator = seeded(4)
        return len({int(subject.sample(torch.zeros(40), generator=generator)) for _ in range(8)}) > 1

    def tied():
        """Which of two pairs of equals, and the least, are left; of one pair one may be."""
        first, second, third, fourth, least = (subject.top_k(ties, 3) > OUT).tolist()
        return first and third, second or fourth, least

    def shared():
        """Whether some pair of tokens never comes, in calls with another between them."""
        generator, row = seeded(4), torch.tensor(logs(0.5, 0.3, 0.2), dtype=torch.float64)
        got = [int(subject.sample(row, generator=generator)) for _ in range(250)]
        return len(set(zip(got, got[2:], strict=False))) < 9

    def alike():
        generator, flat = seeded(6), torch.zeros(40, 2)
        got = [tuple(subject.sample(flat, generator=generator).tolist()) for _ in range(150)]
        return len(set(got)) < 150

    def share():
        """Whether the one comes less often than it should, or more often."""
        count = 8000
        got = subject.sample(one_beside_many(1.0).expand(count, -1), generator=seeded(7))
        often = int((got == 0).sum()) / count
        return "all alike" if often in (0.0, 1.0) else (often < 0.474, often > 0.526)

    def steady():
        before = torch.get_rng_state()
        subject.sample(pie, generator=seeded(0))
        return torch.equal(before, torch.get_rng_state())

    def text(eos=None, prompt=PROMPT, count=6, **chosen):
        model = Model([[0.0, 1.0, 2.5], [2.0, 0.0, 1.0], [0.5, 3.0, 1.0], [0.1, 0.2, 4.0]], torch.float64)
        stop = {} if eos is None else {"eos": eos}
        got = subject.generate(
            model, prompt.clone(), count, generator=seeded(0), **stop, **{"temperature": 0.0} | chosen
        )
        return got, len(model.seen)

    def varied():
        flat = Model([[0.0] * 30], torch.float64)
        got = subject.generate(flat, torch.tensor([[1]]), 8, generator=seeded(0))
        return len(set(got[0].tolist())) > 1

    def refused(call):
        try:
            call()
        except ValueError:
            return True
        except AssertionError:
            return "asserted"
        return False

    def ranges():
        calls = [
            lambda: subject.top_p(pie, 1.5),
            lambda: subject.min_p(pie, -0.5),
            lambda: subject.top_k(pie, 0),
        ]
        calls += [lambda: subject.temperature(pie, 0.0), lambda: subject.temperature(pie, -1.0)]
        calls += [lambda: subject.sample(pie, generator=seeded(0), temperature=-1.0)]
        return [refused(call) for call in calls]

    return {
        "greedy": lambda: alone(subject.greedy, two),
        "greedy of neighbours": lambda: subject.greedy(near),
        "top_k of neighbours": lambda: subject.top_k(near, 2) > OUT,
        "min_p at an edge": lambda: [
            subject.min_p(edge, math.exp(-0.0625) + by) > OUT for by in (-1e-3, 1e-3)
        ],
        "temperature": lambda: alone(subject.temperature, two, 0.5),
        "top_k": lambda: [alone(subject.top_k, two, k) for k in (1, 3)],
        "top_k with ties": tied,
        "top_k of too many": lambda: subject.top_k(pie, 9),
        "top_p": lambda: [alone(subject.top_p, two, p) for p in (0.0, 0.3, 0.6, 0.8, 0.97)],
        "top_p of other rows": lambda: [subject.top_p(small, p) for p in (0.6, 0.85, 0.93)],
        "top_p of many": lambda: [
            (subject.top_p(long, p) > OUT).sum() // 25 for p in (0.3, 0.5, 0.7, 0.8, 0.95)
        ],
        "top_p of rounded logits": lambda: [
            subject.top_p(small.bfloat16(), p) > OUT for p in (0.279, 0.281, 0.539, 0.541)
        ],
        "top_p of large logits": lambda: subject.top_p(pie * 3000 + 5000, 0.9),
        "min_p": lambda: [alone(subject.min_p, two, p) for p in (0.0, 0.3, 0.6, 1.0)],
        "min_p of other rows": lambda: subject.min_p(small, 0.04),
        "sample": lambda: come(two),
        "sample, in place": lambda: alone(
            lambda x: subject.sample(x, generator=seeded(0), temperature=0.5).shape, two
        ),
        "sample, one row": lambda: subject.sample(two[:1], generator=seeded(0)).shape,
        "sample, places skipped": skipped,
        "sample, hot": lambda: come(pie, temperature=2.0),
        "sample, cold": lambda: subject.sample(two, generator=seeded(0), temperature=0.0),
        "sample, k then p": lambda: come(pie, top_k=3, top_p=0.75),
        "sample, t then p": lambda: come(pie, temperature=2.0, top_p=0.75),
        "sample, t then min_p": lambda: come(pie, temperature=2.0, min_p=0.4),
        "sample, sharp t then min_p": lambda: come(pie, temperature=0.5, min_p=0.5),
        "sample, very sharp t then min_p": lambda: come(pie, temperature=0.5, min_p=0.25),
        "sample, p then min_p": lambda: come(pie, top_p=0.7, min_p=0.3),
        "sample, p of 0": lambda: come(pie, top_p=0.0),
        "sample, rows": together,
        "sample, calls": repeated,
        "sample, calls that share draws": shared,
        "sample, many": lambda: len(set(subject.sample(many, generator=seeded(6)).tolist())) > 60,
        "sample, nearly cold": lambda: len(
            set(subject.sample(torch.zeros(40, 2), generator=seeded(8), temperature=0.05).tolist())
        ),
        "sample, many unlikely": lambda: subject.sample(unlikely.expand(10, -1), generator=seeded(9)).sum(),
        "sample, calls alike": alike,
        "sample, one beside many": share,
        "sample, elsewhere": steady,
        "ranges": ranges,
        "text": lambda: text(),
        "text of none": lambda: text(count=0)[0],
        "text of many": lambda: text(count=24)[0],
        "text with eos": lambda: [text(eos=e) for e in (0, 1, 2)],
        "text with top_k": lambda: text(temperature=1.0, top_k=1),
        "text with a filter": lambda: text(temperature=1.0, top_p=0.0, count=3),
        "text with another filter": lambda: text(temperature=1.0, min_p=1.0, count=3),
        "text, varied": varied,
        "no prompt": lambda: refused(lambda: text(prompt=PROMPT[:, :0])),
        "no count": lambda: refused(lambda: text(count=-1)),
    }
