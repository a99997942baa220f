"""The laws of attention: every query takes an average of the values, by its own scores alone, over the
keys that it may see, and over nothing else."""

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo.close import (
    HALF_TYPES,
    assert_close,
    assert_tensor,
    assert_true,
    gradients,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import examples, fill, laid_out

BATCH_HEADS = ((1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (2, 2))
SQUARE = ((1, 1), (2, 2), (3, 3), (5, 5))
SHORT = ((1, 2), (2, 3), (1, 4), (3, 5), (2, 6))  # fewer queries than keys
TALL = ((2, 1), (3, 2), (4, 3), (5, 2))  # more queries than keys
WIDTHS = ((1, 1), (2, 1), (1, 2), (3, 2), (2, 4), (4, 3), (6, 5))

WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)
LOUDNESS = (1.0, 0.1, 5.0)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
KINDS = ("mask", "causal", "both")
HALF = st.sampled_from(HALF_TYPES)
PLACES = st.integers(0, 9)
HIDDEN = st.sampled_from((1.0, 1e30, 1e3, -1e30))
"""What hidden keys and values hold: however large, products with it are finite."""


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Plain:
    q: Tensor
    k: Tensor
    v: Tensor


@dataclass
class Masked(Plain):
    mask: Tensor | None
    causal: bool


@dataclass
class Scaled(Masked):
    scale: float | None


@dataclass
class Row(Masked):
    """A case of which one query is looked at."""

    row: int


@dataclass
class Single(Plain):
    """A case of which one head of one batch entry is looked at."""

    entry: int
    head: int


@dataclass
class Reordered(Plain):
    """The keys and values once more, in another order."""

    k_reordered: Tensor
    v_reordered: Tensor


@dataclass
class Above:
    """The gradient that arrives from above."""

    upstream: Tensor


def sizes(lengths=SQUARE + SHORT + TALL, batch_heads=BATCH_HEADS, widths=WIDTHS):
    """(B, H), (T_q, T_k), (D, D_v) in one draw, the smallest first: that is where shrinking ends."""
    return st.sampled_from(
        sorted(product(batch_heads, lengths, widths), key=lambda s: (math.prod(sum(s, ())), s))
    )


def makes(dtypes=WIDE, loudness=LOUDNESS, layouts=LAYOUTS):
    """How q, k and v are made: the memory layout, the size of the noise in q and k, the dtype."""
    return st.sampled_from(list(product(layouts, loudness, dtypes)))


@st.composite
def plain(draw, make=makes(), size=sizes()):
    (B, H), (T_q, T_k), (D, D_v) = draw(size)
    layout, loudness, dtype = draw(make)
    shapes = (B, H, T_q, D), (B, H, T_k, D), (B, H, T_k, D_v)
    # All three are filled at once: that is the cheapest, and a byte is a byte when it comes to shrinking.
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    parts = parts[0] * loudness, parts[1] * loudness, parts[2]
    return Plain(
        *(laid_out(x.reshape(shape).to(dtype), layout) for x, shape in zip(parts, shapes, strict=True))
    )


ALIKE_AND_APART = ((1, 2), (2, 1), (2, 3), (2, 2), (2, 2), (2, 2), (2, 2))
"""As many heads as batch entries for the most part: a mask that takes one for the other fits only then."""
ALIKE = ((2, 3), (3,), (2,))
APART = ((1, 3), (0, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2, 3))
"""The axes along which a mask varies: alike for all heads and batch entries, or not."""


@st.composite
def masked(draw, cases=plain(), kinds=KINDS, axes=ALIKE + APART, blind=False, sighted=False):
    """q, k and v under a mask, a causal mask, or both. ``blind`` leaves one row of the mask without keys,
    ``sighted`` none."""
    case = draw(cases)
    kind, varies = draw(st.sampled_from(list(product(kinds, axes))))
    mask = None
    if kind in ("mask", "both"):
        full = (*case.q.shape[:3], case.k.shape[2])
        shape = [n if axis in varies else 1 for axis, n in enumerate(full)]
        mask = fill(draw, shape[varies[0] :] if 3 in varies else shape) <= 0
        if blind:
            rows = mask.view(-1, mask.shape[-1])
            rows[draw(PLACES) % len(rows)] = False
        if sighted:
            past = torch.ones(full[2:], dtype=torch.bool).tril(
                full[3] - full[2] if kind == "both" else full[3]
            )
            lost = ~(mask & past).any(-1)
            mask[..., 0] |= (
                lost if mask.ndim > 1 and mask.shape[-2] > 1 else lost.any(-1, keepdim=mask.ndim > 1)
            )
        mask = laid_out(mask, "contiguous" if case.q.is_contiguous() else "transposed")
    return Masked(case.q, case.k, case.v, mask, kind in ("causal", "both"))


@st.composite
def loud(draw, kinds):
    """Scores that are very negative for one half of the cases, and small for the other."""
    case = draw(masked(plain(makes(loudness=(1.0, 300.0))), kinds))
    return replace(case, q=case.q.abs(), k=-case.k.abs())


@st.composite
def scaled(draw, cases=masked(kinds=("neither", *KINDS)), scales=(1.0, 0.0, -1.0, 0.25, -0.5, 2.0, None)):
    """Every argument at once."""
    case = draw(cases)
    return Scaled(case.q, case.k, case.v, case.mask, case.causal, draw(st.sampled_from(scales)))


@st.composite
def sloped(draw, cases):
    """A case, and the gradient that arrives from above."""
    case = draw(cases)
    return case, Above(fill(draw, (*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype))


@st.composite
def average(draw):
    """Any values, or equal ones: the average of those is seen at once."""
    case, level = draw(plain()), draw(st.sampled_from((1, None, -1, None, 3, None)))
    return case if level is None else replace(case, v=torch.full_like(case.v, level))


@st.composite
def rooted(draw):
    """The first key has score_0 = a·head_dim before it is scaled, the others 0; of the values, too, the first stands
    out. So small that the average is found by hand."""
    heads, queries, keys, D, D_v, a, dtype = draw(ROOTED)
    q, k, v = (torch.zeros(1, heads, *size, dtype=dtype) for size in ((queries, D), (keys, D), (keys, D_v)))
    q[:], k[:, :, 0], v[:, :, 0] = 1, a, 1
    return Plain(q, k, v)


ROOTED = st.sampled_from(
    sorted(
        product((1, 2, 3), (1, 2), (2, 3, 5), (4, 2, 3, 9), (1, 2, 3), (1.0, -1.0, 0.5), WIDE),
        key=lambda s: (math.prod(s[:3]), s[3] != 4, s[4], s[5] != 1, s[6] != torch.float32),
    )
)


@st.composite
def reordered(draw):
    case, turn = draw(plain()), draw(PLACES)
    return Reordered(case.q, case.k, case.v, *(x.flip(2).roll(turn, 2) for x in (case.k, case.v)))


@st.composite
def one_row(draw, cases=plain()):
    case = draw(cases)
    return Row(case.q, case.k, case.v, None, False, draw(PLACES) % case.q.shape[2])


@st.composite
def one_head(draw):
    case = draw(plain(size=sizes(batch_heads=BATCH_HEADS[1:])))
    return Single(case.q, case.k, case.v, draw(PLACES) % case.q.shape[0], draw(PLACES) % case.q.shape[1])


@st.composite
def shouted(draw):
    """Scores in the ten thousands, but for one query."""
    case = draw(plain(makes(loudness=(1.0,)), sizes(((2, 2), (2, 3), (3, 4), (1, 2)))))
    loud = torch.full((case.q.shape[2], 1), 100.0, dtype=case.q.dtype)
    if len(loud) > 1:
        loud[draw(PLACES) % len(loud)] = 0.01
    return replace(case, q=case.q * loud, k=case.k * 100)


@st.composite
def noisy(draw, cases, sizes):
    """A case in which the keys and values that one query may not see hold something large."""
    case = draw(cases)
    row, size = draw(PLACES) % case.q.shape[2], draw(sizes)
    hidden = ~Truth(case).seen[:, :, row, :, None]
    k, v = (x.where(~hidden, torch.full_like(x, size)) for x in (case.k, case.v))
    return Row(case.q, k, v, case.mask, case.causal, row)


@st.composite
def overrun(draw):
    """Half precision: one key is seen, and the scores of all others are as far above as its own is below."""
    dtype, keys, causal = draw(HALF), draw(st.integers(2, 5)), draw(st.booleans())
    near, far = (100.0, 200.0) if dtype == torch.float16 else (512.0, 1024.0)
    above = draw(st.sampled_from((far, far if dtype == torch.float16 else 1e30)))
    seen = torch.arange(keys) == (0 if causal else draw(PLACES) % keys)
    q = torch.full((1, 1, keys if causal else 1, 1), near, dtype=dtype)
    k, v = (
        x.to(dtype)[None, None, :, None]
        for x in (torch.where(seen, -far, above), torch.arange(1.0, keys + 1))
    )
    return Scaled(q, k, v, seen, causal, 1.0)


@st.composite
def sunken(draw):
    """The first query sees the first key alone, with a score of −1e6 or −1e5; the second sees the second key, or both."""
    low, dtype = draw(st.sampled_from((1e6, 1e5))), draw(st.sampled_from(WIDE))
    q, k = torch.ones(1, 1, 2, 1, dtype=dtype), torch.full((1, 1, 2, 1), -low, dtype=dtype)
    v = torch.tensor([[[[1.0], [100.0]]]], dtype=dtype)
    causal = draw(st.booleans())
    return Masked(q, k, v, None if causal else torch.tensor([[True, False], [False, True]]), causal)


@st.composite
def sloped_noise(draw):
    """The same, and a gradient from above for that query alone."""
    case, above = draw(sloped(noisy(masked(plain(makes(DOUBLE))), st.sampled_from((3.0, 1e4, -1e4, 1e30)))))
    only = torch.zeros_like(above.upstream)
    only[:, :, case.row] = above.upstream[:, :, case.row]
    return case, Above(only)


def options(case):
    """The keyword arguments of a call. A case without a scale leaves out what has its default value."""
    if isinstance(case, Scaled):
        return {"mask": case.mask, "causal": case.causal, "scale": case.scale}
    given = {"mask": getattr(case, "mask", None), "causal": getattr(case, "causal", False)}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def attend(subject, case):
    """The call itself. Whatever is claimed of its result, q, k, v and the mask must be left as they were, and the
    result must be a tensor of its own."""
    inputs = {name: x for name, x in vars(case).items() if isinstance(x, Tensor)}
    before = {name: x.clone() for name, x in inputs.items()}
    got = subject.attention(case.q, case.k, case.v, **options(case))
    untouched(before, inputs)
    for name, x in inputs.items():
        if isinstance(got, Tensor) and got.numel():
            shared = got.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            assert_true(
                not shared,
                f"the result lies in the memory of {name}: to write into it changes {name}",
                got=got,
            )
    return got


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """Attention in float64, straight from the definition, with what bounds its rounding errors."""

    def __init__(self, case):
        self.dtype = case.q.dtype
        self.q, self.k, self.v = (x.detach().double() for x in (case.q, case.k, case.v))
        scale, mask = getattr(case, "scale", None), getattr(case, "mask", None)
        self.scale = self.q.shape[3] ** -0.5 if scale is None else scale
        queries, keys = self.q.shape[2], self.k.shape[2]
        self.seen = torch.ones(*self.q.shape[:3], keys, dtype=torch.bool)
        if mask is not None:
            self.seen = self.seen & mask
        if getattr(case, "causal", False):
            last = torch.arange(queries) + keys - queries  # the last key that each query sees
            self.seen = self.seen & (torch.arange(keys) <= last[:, None])
        scores = (self.scale * self.q @ self.k.mT).where(self.seen, -torch.inf)
        self.sighted = self.seen.any(-1, keepdim=True)
        top = scores.amax(-1, keepdim=True).where(self.sighted, 0)
        terms = (scores - top).exp()
        self.weights = terms / terms.sum(-1, keepdim=True).where(self.sighted, 1)
        self.out = self.weights @ self.v
        self.length = self.q.shape[3] + keys  # of both sums
        self.steps = 1 if self.dtype in HALF_TYPES else 4

        self.unit = float(tolerance(self.dtype, length=self.length, steps=self.steps))

    def loudness(self):
        """The size of each query's largest score, as the sum of products that it is: Σ |scale·q||k|."""
        return (abs(self.scale) * self.q.abs() @ self.k.abs().mT).where(self.seen, 0).amax(-1, keepdim=True)

    def growth(self, loudness):
        """e^{2η} − 1, in units of the tolerance, where η bounds the rounding errors of an exponent."""
        return (2 * self.unit * loudness).clamp(max=50).expm1() / self.unit

    def spread(self):
        """The magnitude for ``assert_close``.

        If every exponent is off by at most η, a weight is off by at most (e^{2η} − 1)·min(w, 1 − w): a query
        that has made up its mind is not moved by noise. A normaliser that is kept as its logarithm, as in
        exp(s − logsumexp(s)), is rounded once more at the size of the scores, for all weights alike."""
        loudness = self.loudness()
        unsure = torch.minimum(self.weights, 1 - self.weights)
        rounded = 1 + 4 * torch.finfo(self.dtype).eps / self.unit * loudness
        return rounded * (self.weights @ self.v.abs()) + self.growth(loudness) * (unsure @ self.v.abs())

    def agrees(self, got, rows=slice(None), name="the result", want=None, times=1):
        """``got`` must be the rows of the truth (or of ``want``) within what rounding explains."""
        assert_close(
            got, self.out[:, :, rows] if want is None else want, dtype=self.dtype, length=self.length,
            magnitude=times * self.spread()[:, :, rows], steps=self.steps, name=name,
        )  # fmt: skip

    def gradients_agree(self, subject, case, above):
        """The gradients of Σ upstream·attention must be those of the definition."""
        upstream = above.upstream
        leaves = [x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v)]
        out = subject.attention(*leaves, **options(case))
        if not self.sighted.any() and isinstance(out, Tensor) and not out.requires_grad:
            return  # zeros made from nothing: right, and without a gradient
        found = gradients(out, leaves, upstream)
        q, k, v, w, g = self.q, self.k, self.v, self.weights, upstream.double()
        pull, size = g @ v.mT, g.abs() @ v.abs().mT
        pull = self.scale * w * (pull - (w * pull).sum(-1, keepdim=True))
        size = abs(self.scale) * w * (size + (w * size).sum(-1, keepdim=True))
        loose = 2 + 2 * self.growth(
            self.loudness()
        )  # query by query: a loud one lends nothing to a quiet one
        size, weight = loose * size, loose * w
        for name, got, want, magnitude in (
            ("q", found[0], pull @ k, size @ k.abs()),
            ("k", found[1], pull.mT @ q, size.mT @ q.abs()),
            ("v", found[2], w.mT @ g, weight.mT @ g.abs()),
        ):
            assert_close(
                got, want, dtype=self.dtype, length=self.length + q.shape[2] + v.shape[3], steps=self.steps,
                magnitude=magnitude, name=f"the gradient of {name}",
            )  # fmt: skip


def row_agrees(subject, case):
    """One query gets what is due to it."""
    row = slice(case.row, case.row + 1)
    got = attend(subject, case)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype)
    Truth(case).agrees(got[:, :, row], rows=row, name=f"what query {case.row} gets")


def grown(x, dim):
    """x with one more slice along dim."""
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


# --- part 1: plain attention ---------------------------------------------------------------------


@given(case=plain(makes(layouts=("contiguous", "transposed", "strided"))))
def test_the_result_has_one_row_per_query_as_wide_as_v(subject, case):
    """The result is one new tensor (batch, heads, queries, value_dim) in the dtype of q, and q, k and v
    still hold what they held.

    Catches k used as values, merged heads, weights returned too, a query scaled in place."""
    got = attend(subject, case)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype)


@given(case=average())
def test_each_row_is_an_average_of_the_values(subject, case):
    """No result leaves the range of the values, and equal values come out as they are: the weights of a
    query are not negative and sum to one over the keys.

    Catches a missing softmax, one over the queries or the heads, and an ε in its denominator."""
    truth, got = Truth(case), attend(subject, case)
    assert_tensor(got, shape=truth.out.shape, dtype=truth.dtype)
    slack = tolerance(truth.dtype, length=truth.length, magnitude=truth.spread())
    inside = (got >= truth.v.amin(2, keepdim=True) - slack) & (got <= truth.v.amax(2, keepdim=True) + slack)
    assert_true(inside.all(), "a result lies outside the range of the values", expected=truth.out, got=got)


@given(case=rooted())
def test_scores_are_divided_by_the_root_of_head_dim(subject, case):
    """The weights are softmax(q·k / √head_dim).

    Catches a forgotten scale, 1/head_dim, √head_dim as a factor, and the root of another size: of
    d_model, of value_dim, of the number of keys."""
    Truth(case).agrees(attend(subject, case))


@given(case=reordered())
def test_the_order_of_the_keys_does_not_matter(subject, case):
    """Keys and values in another order, the same for both, give the same result: a sum has no order.

    Catches k reshaped where it should be transposed, and a causal mask that is always on."""
    truth, got = Truth(case), attend(subject, case)
    moved = Plain(case.q, case.k_reordered, case.v_reordered)
    truth.agrees(attend(subject, moved), want=got, times=2, name="the result of k_reordered and v_reordered")


@given(case=one_row())
def test_each_query_is_answered_alone(subject, case):
    """A query alone gives the row that it gives among others.

    Catches softmax over the queries, and a normalisation over the whole matrix of scores."""
    truth, got = Truth(case), attend(subject, case)
    assert_tensor(got, shape=truth.out.shape, dtype=truth.dtype)
    row = slice(case.row, case.row + 1)
    alone = attend(subject, replace(case, q=case.q[:, :, row]))
    truth.agrees(alone, rows=row, want=got[:, :, row], times=2, name=f"what query {case.row} gets alone")


@given(case=one_head())
def test_batch_and_heads_are_independent(subject, case):
    """One head of one batch entry alone gives what it gives among others.

    Catches softmax over the heads, weights shared between heads or entries, and heads mixed by a reshape."""
    got = attend(subject, case)
    at = slice(case.entry, case.entry + 1), slice(case.head, case.head + 1)
    single = Plain(case.q[at], case.k[at], case.v[at])
    truth = Truth(single)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=truth.dtype)
    name = f"head {case.head} of batch entry {case.entry}, among the others,"
    truth.agrees(got[at], want=attend(subject, single), times=2, name=name)


@given(case=shouted())
def test_large_scores_do_not_overflow(subject, case):
    """Scores in the ten thousands give finite weights, and a quiet query beside loud ones keeps its own.

    Catches exp without a shift, a shift by the mean or by one maximum for all rows, and clamped scores."""
    Truth(case).agrees(attend(subject, case))


@given(case=plain(size=sizes(((1, 1), (2, 1), (3, 1)))))
def test_a_single_key_is_copied_to_every_query(subject, case):
    """With one key the weights are 1, whatever the scores: every query gets its value.

    Catches scores that are returned or used unnormalised, and length 1 treated apart."""
    Truth(case).agrees(attend(subject, case))


@given(case=sloped(plain(makes(DOUBLE))))
def test_gradients_equal_the_definition(subject, case):
    """The gradients of q, k and v are those of the definition: with g what arrives from above (upstream),
    dS = w·(g·v − Σ w·g·v), dq = scale·dS·k, dk = scale·dSᵀ·q, dv = wᵀ·g.

    Catches weights, scores or a normaliser cut off from the graph, and results computed under no_grad."""
    Truth(case[0]).gradients_agree(subject, *case)


@given(case=plain())
def test_attention_equals_its_definition(subject, case):
    """Value by value, attention equals softmax(q·kᵀ/√head_dim)·v computed in float64, in float32 and in
    float64, however the inputs lie in memory.

    Catches whatever the laws let through: another base, float64 computed in float32, one head for all."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=4)
@given(dtype=st.sampled_from((*WIDE, *HALF_TYPES)))
def test_an_empty_batch_gives_an_empty_result(subject, dtype):
    """No batch entries in, none out: the shape is (0, heads, queries, value_dim), the dtype that of q.

    Catches a reduction that needs at least one element, and a loop that stacks nothing."""
    assert_tensor(subject.attention(*empty(dtype)), shape=(0, 2, 3, 6), dtype=dtype)


def empty(dtype):
    return [torch.zeros(0, 2, *size, dtype=dtype) for size in ((3, 4), (5, 4), (5, 6))]


@examples(quick=6, full=30)
@given(case=plain())
def test_shapes_that_do_not_fit_are_refused(subject, case):
    """ValueError if q, k and v differ in batch or heads, q and k in head_dim, or k and v in keys.

    Catches a single head of keys that broadcasts in silence, and checks of one size only."""
    q, k, v = case.q, case.k, case.v
    misfits = (
        (q, grown(k, 0), grown(v, 0)), (q, grown(k, 1), grown(v, 1)), (grown(q, 0), k, v),
        (grown(q, 1), k, v), (q, grown(k, 3), v), (q, k, grown(v, 2)), (q, k, grown(v, 0)), (q, k, grown(v, 1)),
    )  # fmt: skip
    for q, k, v in misfits:
        because = f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit"
        refuses(ValueError, lambda q=q, k=k, v=v: subject.attention(q, k, v), because=because)


# --- part 2: causal and mask ---------------------------------------------------------------------


@given(case=masked(kinds=("both",), axes=((2, 3), (0, 2, 3), (0, 1, 2, 3))))
def test_the_mask_is_left_alone(subject, case):
    """After the call q, k, v and the mask still hold what they held.

    Catches the causal triangle written into the caller's mask."""
    got = attend(subject, case)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype)


@given(case=masked(plain(size=sizes(SQUARE)), kinds=("causal",)))
def test_each_query_sees_the_past_and_itself(subject, case):
    """With as many queries as keys, query i averages over the keys 0 … i, its own included.

    Catches a triangle that is off by one, turned round, or applied after the softmax."""
    Truth(case).agrees(attend(subject, case))


@given(case=masked(plain(size=sizes(SHORT)), kinds=("causal",)))
def test_causal_is_aligned_to_the_last_key(subject, case):
    """With fewer queries than keys, the queries are the newest positions: the last one sees every key.

    Catches a triangle aligned to the first key, under which a query beside a cache sees one key only."""
    Truth(case).agrees(attend(subject, case))


@given(case=noisy(loud(("causal",)), HIDDEN))
def test_future_keys_never_matter(subject, case):
    """Whatever stands in the keys and values after a query, its row stays as it was.

    Catches causal ignored, finite fills such as −1e4 that large scores overrun, and a mask applied after
    the softmax has divided by the future too."""
    row_agrees(subject, case)


@given(case=masked(kinds=("mask",), axes=ALIKE, sighted=True))
def test_true_in_the_mask_means_may_attend(subject, case):
    """Each query averages over the keys where its row of the mask says True, and over no other.

    Catches an inverted mask, one added as 0 and 1, and one that only looks at the first query."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=6, full=60)
@given(case=masked(plain(size=sizes(batch_heads=ALIKE_AND_APART)), kinds=("mask",), axes=APART, sighted=True))
def test_the_mask_broadcasts_over_batch_and_heads(subject, case):
    """A mask may differ from head to head and from one batch entry to the next, or be the same for all.

    Catches one mask for the whole batch or for all heads, and three dimensions read as (batch, queries, keys)."""
    Truth(case).agrees(attend(subject, case))


@given(case=noisy(loud(("mask",)), HIDDEN))
def test_hidden_keys_never_matter(subject, case):
    """Whatever stands in the keys and values that a query may not see, its row stays as it was.

    Catches masked scores set to 0 or −1e4, −1e9 added to them, weights masked after the softmax, and a
    maximum over all keys."""
    row_agrees(subject, case)


@given(case=sunken())
def test_hidden_keys_never_matter_beside_scores_of_minus_a_million(subject, case):
    """A hidden key gets no weight even where the keys that a query sees have scores of −1e6.

    Catches a fill that is merely large: −1e4 and −1e6 are scores like any other."""
    Truth(case).agrees(attend(subject, case))


@given(case=masked(plain(size=sizes(SQUARE + SHORT)), kinds=("both",), sighted=True))
def test_mask_and_causal_must_both_allow(subject, case):
    """A query sees a key only if the mask and the order of time both allow it.

    Catches causal ignored where a mask is given, the mask ignored where causal is, and either being enough."""
    Truth(case).agrees(attend(subject, case))


@given(case=masked(blind=True, kinds=("mask", "both")))
def test_a_query_that_sees_no_key_gives_zeros(subject, case):
    """Where the mask leaves a query nothing, its row is zero, and the rows beside it are right.

    Catches NaN from a softmax over −inf alone, and the average over all keys that a finite fill gives."""
    Truth(case).agrees(attend(subject, case))


@given(case=masked(plain(size=sizes(TALL)), kinds=("causal", "both")))
def test_queries_before_the_first_key_give_zeros(subject, case):
    """With more queries than keys, the first ones come before every key: causal leaves them nothing.

    Catches a triangle that falls back to the first key, and zeros that only a mask can bring about."""
    Truth(case).agrees(attend(subject, case))


@given(case=sloped(masked(plain(makes(DOUBLE)), kinds=("mask", "both"), blind=True)))
def test_a_query_that_sees_no_key_passes_no_gradient(subject, case):
    """A row without keys has gradient zero and adds nothing to that of k and v; the others are right.

    Catches NaN that is hidden in the result and comes back in the backward pass."""
    Truth(case[0]).gradients_agree(subject, *case)


@given(case=sloped_noise())
def test_hidden_keys_get_no_gradient(subject, case):
    """The row of one query passes no gradient to the keys and values that it may not see.

    Catches gradients through masked scores, and exp of a masked score, whose infinity times 0 is NaN."""
    Truth(case[0]).gradients_agree(subject, *case)


@examples(quick=2, full=8)
@given(
    queries=st.integers(100, 300), keys=st.integers(100, 300), causal=st.booleans(), seed=st.integers(0, 999)
)
def test_long_sequences_equal_the_definition(subject, queries, keys, causal, seed):
    """Hundreds of queries and keys give what the definition gives, the last ones included, be the scores small or
    of a hundred.

    Catches blocks whose ragged end is lost, a triangle of fixed size, and scores that are bounded where there are
    many."""
    noise = torch.randn(queries + 2 * keys, 2, generator=torch.Generator().manual_seed(seed))
    q, k, v = (x[None, None] for x in noise.split([queries, keys, keys]))
    for loud in (1, 30):
        case = Masked(loud * q, k, v, None if causal else torch.arange(keys) % 3 > 0, causal)
        Truth(case).agrees(attend(subject, case))


@examples(quick=1, full=2)
@given(queries=st.integers(1, 3), seed=st.integers(0, 999))
def test_a_few_queries_beside_thousands_of_keys_see_them_all(subject, queries, seed):
    """The last query sees each of 2,100 keys, and the one before it all but one, as beside a long cache.

    Catches a triangle that was made once, for so many keys and no more."""
    noise = torch.randn(queries + 4200, 2, generator=torch.Generator().manual_seed(seed))
    q, k, v = (x[None, None] for x in noise.split([queries, 2100, 2100]))
    v[:, :, -8:] += 1000  # the newest keys tell whether they were seen
    case = Masked(q, k, v, None, True)
    Truth(case).agrees(attend(subject, case))


@given(case=masked(plain(size=sizes(SQUARE[1:] + SHORT + TALL[1:])), kinds=("causal", "neither", "both")))
def test_calls_do_not_disturb_one_another(subject, case):
    """A second call, without the first key, gives what it should, and the result of the first call stays as it was.

    Catches a triangle that is kept from one call to the next, and a buffer that all results share."""
    first = attend(subject, case)
    mask = case.mask
    if mask is not None and mask.shape[-1] > 1:
        mask = mask[..., 1:]
    other = replace(case, q=-case.q, k=case.k[:, :, 1:], v=case.v[:, :, 1:], mask=mask)
    Truth(other).agrees(attend(subject, other), name="the result of −q, without the first key,")
    Truth(case).agrees(first, name="the result of the first call, after a second one,")


@examples(quick=2, full=8)
@given(dtype=st.sampled_from((*WIDE, *HALF_TYPES)), shape=st.sampled_from(((5,), (3, 5), (0, 1, 1, 5), None)))
def test_an_empty_batch_stays_empty_under_a_mask(subject, dtype, shape):
    """No batch entries in, none out, whether a mask or causal hides something or not.

    Catches rows without a key that are looked for where there is no row at all."""
    options = {"causal": True} if shape is None else {"mask": torch.ones(shape, dtype=torch.bool)}
    assert_tensor(subject.attention(*empty(dtype), **options), shape=(0, 2, 3, 6), dtype=dtype)


@examples(quick=6, full=30)
@given(case=plain(), causal=st.booleans())
def test_masks_that_do_not_fit_are_refused(subject, case, causal):
    """ValueError for a mask that is not boolean, or that does not broadcast to (batch, heads, queries, keys).

    Catches an additive mask of 0 and −inf read as booleans, a mask that makes the result grow, and one of
    (batch, queries, keys) that is taken for what was meant."""
    full = torch.ones(*case.q.shape[:3], case.k.shape[2], dtype=torch.bool)
    batch, heads = full.shape[:2]
    for mask in (
        *([full[:, 0]] if batch not in (1, heads) else []),
        full.to(case.q.dtype),
        full.long(),
        full.byte(),
        full[None],
        *(grown(full, dim) for dim in range(4)),
    ):
        because = f"a mask {tuple(mask.shape)} of {mask.dtype} does not fit scores {tuple(full.shape)}"
        refuses(
            ValueError,
            lambda m=mask: subject.attention(case.q, case.k, case.v, mask=m, causal=causal),
            because=because,
        )


# --- part 3: own scale and half precision --------------------------------------------------------


@given(case=scaled(masked(kinds=("neither",)), (1.0, -1.0, 0.25, -0.5, 2.0, None)))
def test_scale_takes_the_place_of_the_root(subject, case):
    """The weights are softmax(scale · q·k); scale=None stands for 1/√head_dim.

    Catches scale ignored, a division by it, a factor on top of 1/√head_dim, and a sign that is lost."""
    Truth(case).agrees(attend(subject, case))


@given(case=scaled(scales=(0.0,)))
def test_scale_zero_averages_evenly(subject, case):
    """scale=0 makes all scores equal, so that a query gets the plain average of what it sees.

    Catches 0 taken for None, and a mask laid over the scores before they are scaled: 0 · −inf is NaN."""
    Truth(case).agrees(attend(subject, case))


@given(case=scaled(masked(), (-1.0, -0.5)))
def test_a_negative_scale_hides_the_same_keys(subject, case):
    """A negative scale turns the scores round, but not the mask.

    Catches a mask laid over the scores before they are scaled: −1 · −inf takes all the weight."""
    Truth(case).agrees(attend(subject, case))


@given(case=scaled())
def test_all_arguments_together_equal_the_definition(subject, case):
    """Any mask, causal or not, under any scale: value by value what the definition gives in float64.

    Catches an argument that is heard only where another one is absent."""
    Truth(case).agrees(attend(subject, case))


@given(case=sloped(scaled(masked(plain(makes(DOUBLE)), kinds=("neither", *KINDS)))))
def test_gradients_follow_every_argument(subject, case):
    """Under any mask and scale the gradients of q, k and v are those of the definition.

    Catches a hand-written backward pass without the scale or without the mask."""
    Truth(case[0]).gradients_agree(subject, *case)


HALF_CASES = scaled(masked(plain(makes(HALF_TYPES, (0.5, 0.1))), kinds=("neither", *KINDS)))


@given(case=HALF_CASES)
def test_half_precision_equals_the_definition(subject, case):
    """bfloat16 and float16 come back in their own dtype, right within what rounding explains.

    Catches results left in float32, and fills such as −1e9 that float16 does not hold."""
    Truth(case).agrees(attend(subject, case))


@given(case=sloped(HALF_CASES))
def test_half_precision_gradients_equal_the_definition(subject, case):
    """Gradients flow through half precision, and through the widening to float32, to q, k and v.

    Catches copies made by torch.tensor or numpy on the way to float32, which cut the graph."""
    Truth(case[0]).gradients_agree(subject, *case)


@given(case=overrun())
def test_half_precision_masks_hold_for_large_scores(subject, case):
    """A query that sees one key gets its value, though its score is −2e4 and those of all others are 2e4, or
    −5e5 and 5e5 or 5e32 in bfloat16.

    Catches −1e4 as a fill, chosen because it fits float16: scores overrun it there as well. In bfloat16,
    catches a detour through float16, which ends at 65,504."""
    got = attend(subject, case)
    assert_close(got, Truth(case).out, dtype=case.q.dtype, length=case.k.shape[2])


@examples(quick=2, full=8)
@given(seed=st.integers(0, 999), dtype=HALF)
def test_long_half_precision_rows_sum_in_float32(subject, seed, dtype):
    """Over 4,099 keys in half precision the result is still right to the last stored bits.

    Catches running sums in bf16, which stop growing at 256 terms, and in fp16, which stall at 2,048."""
    noise = torch.randn(3, 1, 1, 4099, 2, generator=torch.Generator().manual_seed(seed))
    case = Plain(
        *((noise[0, :, :, :2] / 4).to(dtype), (noise[1] / 4).to(dtype), (1 + noise[2] / 4).to(dtype))
    )
    Truth(case).agrees(attend(subject, case))


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    q, k, v = waves(2, 2, 3, 4), waves(2, 2, 5, 4, step=2.3), waves(2, 2, 5, 3, step=0.9)
    square, tall = (k, k.flip(2), v), (k, q, q)
    padded = torch.tensor([True, True, False, True, False])
    varied = waves(2, 2, 3, 5, step=0.7) > -0.3
    blind = varied[0, 0].clone()
    blind[1] = False
    shy = (
        q.abs() * 300,
        -k.abs() * 300,
        v,
    )  # scores far below zero; the hidden keys of the next are far above
    bold, bright = (
        (q.abs(), torch.where(padded[:, None], -k.abs() * 9, s * (1 + k.abs())), v) for s in (1e5, 2e3)
    )
    many = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2100, 2), torch.arange(2100.0).reshape(1, 1, 2100, 1)
    long = (torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1024, 2), 1 + waves(1, 1, 1024, 1) / 4)

    def attend(*inputs, **options):
        return lambda: subject.attention(*inputs, **options)

    def slopes(*inputs, **options):
        def call():
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = subject.attention(*leaves, **options)
            return gradients(out, leaves, waves(*out.shape, step=3.1).to(out.dtype))

        return call

    def afterwards(pick, *inputs, **options):
        def call():
            held = (
                [x.clone() for x in inputs],
                {n: x.clone() if isinstance(x, Tensor) else x for n, x in options.items()},
            )
            subject.attention(*held[0], **held[1])
            return held[0][0] if pick == "q" else held[1][pick]

        return call

    def one_after_the_other(pick):
        """The results of two calls, the second with fewer keys."""

        def call():
            first = subject.attention(q, k, v, causal=True)
            return (first, subject.attention(q + 1, k[:, :, 1:], v[:, :, 1:], causal=True))[pick]

        return call

    def shares_memory():
        held = v[:, :, :1].clone()
        return (
            subject.attention(q, k[:, :, :1], held).untyped_storage().data_ptr()
            == held.untyped_storage().data_ptr()
        )

    half = [x.bfloat16() for x in (q, k, v)]

    def halves_agree():
        """Whether gradients in half precision are near the others: how near is open."""
        pairs = zip(slopes(*half)(), slopes(*(x.double() for x in half))(), strict=True)
        return [(got.dtype, bool((got - want).abs().max() <= 0.1 * want.abs().max())) for got, want in pairs]

    return {
        "plain": attend(q, k, v),
        "one head": attend(q[:1, :1], k[:1, :1], v[:1, :1]),
        "one key, its memory": shares_memory,
        "a second call": one_after_the_other(1),
        "a first call, after a second": one_after_the_other(0),
        "causal, 2,100 keys": attend(*many, causal=True),
        "one key": attend(q, k[:, :, :1], v[:, :, :1]),
        "equal values": attend(q, k, torch.ones_like(v)),
        "loud and quiet rows": attend(q * torch.tensor([[900.0], [1.0], [0.001]]), k * 300, v),
        "scores around 2000": attend(1000 + q, 1 + k / 1000, v, scale=0.5),
        "float32": attend(q.float(), k.float(), v.float()),
        "gradients": slopes(q, k, v),
        "q afterwards": afterwards("q", q, k, v),
        "head_dim differs": attend(q, k[..., :3], v),
        "one head of keys": attend(q, k[:, :1], v[:, :1]),
        "causal, square": attend(*square, causal=True),
        "causal, more keys": attend(q, k, v, causal=True),
        "causal, more queries": attend(*tall, causal=True),
        "causal, one query": attend(q[:, :, :1], k, v, causal=True),
        "mask of keys": attend(q, k, v, mask=padded),
        "mask of queries and keys": attend(q, k, v, mask=varied[0, 0]),
        "mask of everything": attend(q, k, v, mask=varied),
        "many keys, loud": attend(
            *(waves(1, 1, n, 2, step=s) * 9 for n, s in ((1, 1.7), (70, 2.3), (70, 0.9)))
        ),
        "mask of batch, queries and keys": attend(*(x[:, :1] for x in (q, k, v)), mask=varied[:, 0]),
        "mask of heads, queries and keys": attend(q, k, v, mask=varied[0]),
        "mask with a blind query": attend(q, k, v, mask=blind),
        "mask with a blind query, gradients": slopes(q, k, v, mask=blind),
        "mask over scores below −1e4": attend(*shy, mask=padded),
        "mask over loud keys": attend(*bold, mask=padded),
        "mask over loud keys, gradients": slopes(*bright, mask=padded),
        "mask over keys of 1e12": attend(
            q.abs(), torch.where(padded[:, None], -k.abs(), 1e12), v, mask=padded
        ),
        "mask and causal": attend(q, k, v, mask=varied, causal=True),
        "mask afterwards": afterwards("mask", q, k, v, mask=varied, causal=True),
        "mask of floats": attend(q, k, v, mask=varied.double()),
        "mask too large": attend(q, k, v, mask=varied[None]),
        "scale 0.25": attend(q, k, v, scale=0.25),
        "scale 0": attend(q, k, v, scale=0.0),
        "scale −1": attend(q, k, v, scale=-1.0),
        "scale 0 under a mask": attend(q, k, v, scale=0.0, mask=padded),
        "scale −1 under a mask": attend(q, k, v, scale=-1.0, mask=padded),
        "long": attend(waves(1, 1, 70, 2), waves(1, 1, 70, 2, step=2.3), waves(1, 1, 70, 1)),
        "bf16, mask over scores below −1e4": attend(*(x.bfloat16() for x in shy), mask=padded),
        "bf16": attend(*half),
        "bf16, gradients": halves_agree,
        "bf16, beyond float16": attend(*(1e3 * x.bfloat16() for x in (q, k, v)), scale=0.5),
        "bf16, long": attend(*(x.bfloat16() for x in long)),
        "a mask over scores of −1e6": attend(
            torch.ones(1, 1, 1, 1),
            torch.full((1, 1, 2, 1), -1e6),
            torch.tensor([[[[1.0], [9.0]]]]),
            mask=torch.tensor([True, False]),
        ),
    }
