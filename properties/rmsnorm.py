"""The laws of RMSNorm: each row is divided by its root mean square and by nothing else, eps is a floor
inside the root, and the weight comes last."""

from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo.close import HALF_TYPES, assert_close, assert_equal, assert_tensor, gradients, refuses, untouched
from dojo.draw import examples, fill, laid_out

SHAPES = (
    (1,),
    (3,),
    (6,),
    (1, 1),
    (1, 4),
    (2, 3),
    (3, 2),
    (4, 1),
    (5, 6),
    (2, 1, 3),
    (3, 2, 5),
    (2, 3, 1, 4),
)
BATCHES = tuple(shape for shape in SHAPES if len(shape) > 1)
SINGLE = tuple(shape for shape in SHAPES if len(shape) == 1)
CROWDS = tuple(shape for shape in BATCHES if torch.Size(shape[:-1]).numel() > 1)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
WIDE = ((torch.float32,) * 2, (torch.float64,) * 2)
MIXED = (*WIDE, (torch.float64, torch.float32), (torch.float32, torch.float64))
DOUBLE = ((torch.float64,) * 2,)
HALF = tuple((x, weight) for x in HALF_TYPES for weight in (x, torch.float32))
SCALES = (1.0, 30.0, 1e-3)
"""Rows far above √eps for the usual eps, and rows beside it."""


class LeftOut:
    """An argument that is not given."""

    def __repr__(self):
        return "left out (1e-6)"


EPS = (2.0, LeftOut(), 1e-5, 0.1)
HALF_TYPE = st.sampled_from(HALF_TYPES)
PLACES = st.integers(0, 9)


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Case:
    x: Tensor
    weight: Tensor
    eps: float | LeftOut


@dataclass
class Above:
    upstream: Tensor
    """The gradient that arrives from above."""


@dataclass
class Place:
    place: tuple[int, ...]


def shaped(shapes=SHAPES):
    return st.sampled_from(shapes)


def made(dtypes=MIXED, scales=SCALES, layouts=LAYOUTS):
    """How x and weight are made: the memory layout, the size of the noise in x, the two dtypes."""
    return st.sampled_from(list(product(layouts, scales, dtypes)))


@st.composite
def rows(draw, make=made(), shape=shaped(), eps=EPS):
    shape = draw(shape)
    layout, scale, (dtype, weight_dtype) = draw(make)
    both = fill(draw, (torch.Size(shape).numel() + shape[-1],), dtype=torch.float64)
    x, weight = both[: -shape[-1]].reshape(shape) * scale, both[-shape[-1] :]
    if layout == "expanded" and len(shape) == 1:
        layout = "strided"
    return Case(
        laid_out(x.to(dtype), layout),
        laid_out(weight.to(weight_dtype), "strided" if layout == "strided" else "contiguous"),
        draw(st.sampled_from(eps)),
    )


@st.composite
def sloped(draw, cases):
    """A case, and the gradient that arrives from above."""
    case = draw(cases)
    return case, Above(fill(draw, case.x.shape, dtype=case.x.dtype))


def plain(cases):
    """The same with a weight of ones."""
    return cases.map(lambda case: replace(case, weight=torch.ones_like(case.weight)))


def times(cases, *sizes):
    """The same with x so many times as large."""
    return st.builds(lambda case, size: replace(case, x=case.x * size), cases, st.sampled_from(sizes))


@st.composite
def weighted(draw):
    """Rows under any weight, or under the same one for all channels."""
    case, level = draw(rows(made(WIDE))), draw(st.sampled_from((None, 1.0, -1.0, 3.0, 0.0)))
    return case if level is None else replace(case, weight=torch.full_like(case.weight, level))


@st.composite
def constant(draw):
    case = draw(plain(rows(made(WIDE[:1], (1.0,)), eps=EPS[1:2])))
    return replace(case, x=torch.full_like(case.x, draw(st.sampled_from((3.0, -2.0, 7.0)))))


@st.composite
def crowds(draw):
    """Rows, and the place of one that is louder or quieter than the others."""
    case = draw(plain(rows(made(WIDE[:1], (1.0, 30.0)), shaped(CROWDS), EPS[1:2])))
    others, one = draw(st.sampled_from(((1.0, 1.0), (1e4, 1.0), (1.0, 1e4))))
    factor = torch.full((*case.x.shape[:-1], 1), others, dtype=case.x.dtype)
    place = draw(PLACES)
    at = tuple(place % n for n in case.x.shape[:-1])
    factor[at] = one
    return replace(case, x=case.x * factor), Place(at)


@st.composite
def with_zeros(draw):
    """A case with a row of zeros, and the gradient that arrives from above."""
    case, above = draw(sloped(rows(made(DOUBLE), shaped(BATCHES))))
    x, place = case.x.clone(), draw(PLACES)
    x[tuple(place % n for n in x.shape[:-1])] = 0
    return replace(case, x=x), above


@st.composite
def large_half(draw):
    """Half-precision rows of hundreds, of thousands, and as large as the dtype holds, up to 1e15."""
    case, size = draw(rows(made(HALF, (1.0,)))), draw(st.sampled_from((300.0, 3000.0, 1e14, 5e4)))
    most = min(torch.finfo(case.x.dtype).max, 1e15)
    return replace(case, x=(case.x.double() * size).clamp(-most, most).to(case.x.dtype))


@st.composite
def long_rows(draw):
    generator, dtype = torch.Generator().manual_seed(draw(st.integers(0, 999))), draw(HALF_TYPE)
    return Case(torch.randn(1, 4099, generator=generator).to(dtype), torch.ones(4099, dtype=dtype), EPS[1])


@st.composite
def empty(draw):
    dim, dtype = draw(st.integers(1, 6)), draw(st.sampled_from((torch.float32, torch.float64)))
    shape = draw(st.sampled_from(((0, dim), (2, 0, dim))))
    return Case(torch.zeros(shape, dtype=dtype), torch.ones(dim, dtype=dtype), EPS[1])


def normed(subject, case):
    """The call itself. Whatever is claimed of its result, x and weight must be left as they were."""
    before = {"x": case.x.clone(), "weight": case.weight.clone()}
    options = {} if isinstance(case.eps, LeftOut) else {"eps": case.eps}
    got = subject.rmsnorm(case.x, case.weight, **options)
    untouched(before, {"x": case.x, "weight": case.weight})
    return got


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """RMSNorm in float64, straight from the definition.

    Nothing cancels in it: squares are positive, and the rest are products. So every error is relative."""

    def __init__(self, case):
        self.dtype = case.x.dtype
        self.x, self.weight = case.x.detach().double(), case.weight.detach().double()
        self.eps = 1e-6 if isinstance(case.eps, LeftOut) else case.eps
        self.r = 1 / (self.x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        self.out = self.x * self.r * self.weight
        self.length = self.x.shape[-1]
        self.steps = 1 if self.dtype in HALF_TYPES else 4

    def agrees(self, got, want=None, rows=slice(None), times=1, name="the result"):
        want = self.out[rows] if want is None else want
        assert_close(
            got, want, dtype=self.dtype, length=self.length, steps=self.steps, name=name,
            magnitude=times * self.out[rows].abs(),
        )  # fmt: skip

    def gradients_agree(self, subject, case, upstream):
        """The gradients of Σ upstream·rmsnorm: r·(u − x·r²·mean(u·x)) with u = upstream·weight, and
        Σ over rows of upstream·x·r."""
        leaves = [case.x.detach().clone().requires_grad_(), case.weight.detach().clone().requires_grad_()]
        found = gradients(normed(subject, Case(*leaves, case.eps)), leaves, upstream)
        g, x, r = upstream.double(), self.x, self.r
        u = g * self.weight
        along, size = (u * x).mean(-1, keepdim=True), (u * x).abs().mean(-1, keepdim=True)
        slope, terms = g * x * r, (g * x * r).abs()
        count = x.numel() // self.length
        for name, got, want, magnitude, dtype in (
            ("x", found[0], r * (u - x * r**2 * along), r * (u.abs() + x.abs() * r**2 * size), self.dtype),
            (
                "weight", found[1], slope.reshape(count, -1).sum(0), terms.reshape(count, -1).sum(0),
                case.weight.dtype,
            ),
        ):  # fmt: skip
            assert_tensor(got, shape=want.shape, dtype=dtype, name=f"the gradient of {name}")
            # A wider weight meets rows that may have been rounded to x's dtype, and so does its gradient.
            assert_close(
                got.to(self.dtype), want, dtype=self.dtype, length=2 * self.length + count, steps=4,
                magnitude=magnitude, name=f"the gradient of {name}",
            )  # fmt: skip


# --- part 1: the norm ----------------------------------------------------------------------------


@given(case=rows())
def test_the_result_has_the_shape_and_dtype_of_x(subject, case):
    """The result is one tensor of x's shape and dtype, whatever the dtype of weight; x and weight still
    hold what they held, and so does the result after another call.

    Catches x divided in place, a result that takes its dtype from weight, and a buffer that is used again."""
    got = normed(subject, case)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    first = got.clone()
    normed(subject, replace(case, x=1 - case.x))
    assert_equal(got, first, "the first result after a second call with 1 − x")


@given(case=constant())
def test_constant_rows_keep_their_value(subject, case):
    """A row that holds c throughout comes out as c/√(c² + eps), under a weight of ones: nothing is subtracted
    from it.

    Catches the mean taken out first, as LayerNorm does: a constant row would be zero."""
    Truth(case).agrees(normed(subject, case))


@given(
    case=times(plain(rows(made(WIDE[:1], (1.0,)), shaped(SINGLE), (EPS[1], *EPS))), 1e-3, 1e-2, 1e-4, 1e-8)
)
def test_eps_stands_inside_the_root(subject, case):
    """A row about as large as √eps, or far smaller, is divided by √(mean(x²) + eps).

    Catches √mean + eps, max(mean, eps), eps added to the sum and not to the mean, and an eps that is fixed."""
    Truth(case).agrees(normed(subject, case))


@given(case=crowds())
def test_each_row_is_normalised_alone(subject, case):
    """The row at this place gives alone what it gives among others, however loud or quiet those are.

    Catches a mean over the whole tensor or over the batch, and one maximum or scale for all rows."""
    case, at = case[0], case[1].place
    alone = replace(case, x=case.x[at])
    got = normed(subject, case)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    Truth(case).agrees(got[at], rows=at, name="the row among others")
    Truth(alone).agrees(normed(subject, alone), name="the row alone")


@given(case=weighted())
def test_the_weight_multiplies_what_is_normalised(subject, case):
    """The weight is a factor of the result, channel by channel, and does not enter the mean: x comes out as
    x/√(mean(x²) + eps) times weight.

    Catches a weight that is ignored, applied before the norm, taken as 1 + weight, or as its size."""
    Truth(case).agrees(normed(subject, case))


@given(
    case=rows(made(WIDE, (1.0, 100.0)), eps=(2.0, 1e-5, 0.1)),
    c=st.sampled_from((2.0, 8.0, 0.5, 64.0, 0.0625)),  # powers of two: nothing is rounded
)
def test_a_row_of_another_size_gives_the_same(subject, case, c):
    """rmsnorm(c·x) with c²·eps is rmsnorm(x) with eps: eps has the unit of x².

    Catches eps added outside the root or ignored, a missing root, and an ε that does not scale."""
    truth, got = Truth(case), normed(subject, case)
    moved = Case(case.x * c, case.weight, case.eps * c * c)
    truth.agrees(got, name="the norm of x")
    truth.agrees(normed(subject, moved), want=got, times=2, name=f"the norm of {c:g}·x with {c:g}²·eps")


@given(case=rows())
def test_rmsnorm_equals_its_definition(subject, case):
    """Value by value, the result is x / √(mean(x²) + eps) · weight computed in float64, for any number of
    dimensions and however the inputs lie in memory; where PyTorch has the same convention, it is its own.

    Catches a sum for the mean, n − 1 for n, another dimension, and float64 computed in float32."""
    truth = Truth(case)
    truth.agrees(normed(subject, case))
    theirs = F.rms_norm(truth.x, truth.x.shape[-1:], truth.weight, truth.eps)
    truth.agrees(normed(subject, case), want=theirs, name="the result, against torch.nn.functional.rms_norm")


@examples(quick=1, full=10)
@given(case=rows(made(layouts=("contiguous",)), shaped(((1100, 2), (2, 700)))))
def test_hundreds_of_rows_equal_the_definition(subject, case):
    """Hundreds of rows, and rows of hundreds of entries, equal the definition as well.

    Catches what is done block by block and leaves the rest out."""
    Truth(case).agrees(normed(subject, case))


@given(case=sloped(rows(made(DOUBLE))))
def test_gradients_equal_the_definition(subject, case):
    """With u = upstream·weight, the gradient of x is r·(u − x·r²·mean(u·x)) where r = 1/√(mean(x²) + eps), and
    that of weight is Σ upstream·x·r over all rows; upstream is the gradient that arrives from above.

    Catches a root mean square cut off from the graph, a weight that is, and results under no_grad."""
    case, above = case
    Truth(case).gradients_agree(subject, case, above.upstream)


@given(case=with_zeros())
def test_a_row_of_zeros_gives_zeros(subject, case):
    """A row of zeros gives zeros; its gradient is upstream·weight/√eps, and the other rows keep theirs.

    Catches 0/0 where eps is left out, and a root whose gradient at zero is infinite."""
    case, above = case
    Truth(case).agrees(normed(subject, case))
    Truth(case).gradients_agree(subject, case, above.upstream)


@given(case=times(rows(made(WIDE, (1.0,))), 1e15, 1e12, 1e-15, 1e-25))
def test_very_large_and_very_small_rows_are_finite(subject, case):
    """Entries of 1e15 give what the definition gives, and so do entries of 1e-25.

    Catches sums of fourth powers, clamped inputs, and an eps that swallows or is swallowed."""
    Truth(case).agrees(normed(subject, case))


@given(case=empty())
def test_an_empty_batch_gives_an_empty_result(subject, case):
    """No rows in, no rows out: the shape is x's.

    Catches a reduction that needs at least one element, and a loop that stacks nothing."""
    assert_tensor(normed(subject, case), shape=case.x.shape, dtype=case.x.dtype)


@examples(quick=6, full=30)
@given(case=rows(made(WIDE), shaped(((2,), (2, 3), (3, 2), (1, 4), (2, 3, 5), (3, 1, 2)))))
def test_a_weight_that_does_not_fit_is_refused(subject, case):
    """ValueError if weight is not (dim,): one number for all, one more than there are channels, a column, or
    a weight for every entry.

    Catches a weight that broadcasts in silence."""
    dim = case.x.shape[-1]
    for shape in ((1,), (dim + 1,), (), (1, dim), (dim, 1), (dim, dim), (2, *case.x.shape)):
        refuses(
            ValueError,
            lambda shape=shape: subject.rmsnorm(case.x, torch.ones(shape, dtype=case.x.dtype)),
            because=f"weight {shape} does not fit x {tuple(case.x.shape)}",
        )


# --- part 2: half precision ----------------------------------------------------------------------


@given(case=rows(made(HALF)))
def test_half_precision_equals_the_definition(subject, case):
    """bfloat16 and float16 come back in their own dtype, also under a float32 weight, right to the last
    stored bit or two.

    Catches results left in float32, and a mean of squares kept in half precision beside a small eps."""
    Truth(case).agrees(normed(subject, case))


@given(case=large_half())
def test_entries_beyond_256_do_not_overflow(subject, case):
    """float16 rows of up to 65504 give what the definition gives, though their squares do not fit float16, and
    so do bfloat16 rows of up to 1e15.

    Catches squares taken before the widening (300² is infinite in float16, and the row comes out as zero),
    and a weight that multiplies x in half precision, before the size is taken out."""
    Truth(case).agrees(normed(subject, case))


@given(case=sloped(rows(made(HALF, (1.0, 0.1)))))
def test_half_precision_gradients_equal_the_definition(subject, case):
    """Gradients flow through half precision, and through the widening, to x and to weight, each in its own
    dtype.

    Catches copies made by torch.tensor or numpy on the way to float32, which cut the graph."""
    case, above = case
    Truth(case).gradients_agree(subject, case, above.upstream)


@examples(quick=2, full=8)
@given(case=long_rows())
def test_long_half_precision_rows_sum_in_float32(subject, case):
    """Over rows of 4,099 entries the result is still right to the last stored bits.

    Catches running sums in bf16, which stop growing at 256 terms, and in fp16, which stall at 2,048."""
    Truth(case).agrees(normed(subject, case))


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    x = torch.tensor([[3.0, 4.0, -1.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    deep = torch.sin(torch.arange(1.0, 25.0, dtype=torch.float64)).reshape(2, 4, 3)
    long = 1 + torch.sin(torch.arange(4096.0)) / 4

    def norm(*inputs, **options):
        return lambda: subject.rmsnorm(*inputs, **options)

    def slopes(x, weight):
        def call():
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            upstream = torch.arange(1.0, 7.0, dtype=x.dtype).reshape(2, 3)
            return gradients(subject.rmsnorm(*leaves), leaves, upstream)

        return call

    def again():
        first = subject.rmsnorm(x, weight)
        subject.rmsnorm(-x, weight)
        return first

    def afterwards():
        held = x.clone()
        subject.rmsnorm(held, weight)
        return held

    return {
        "hundreds of rows": lambda: subject.rmsnorm(deep.reshape(8, 3).repeat(9, 1), weight)[64:],
        "plain": norm(x, weight),
        "one row": norm(x[0], weight),
        "three dimensions": norm(deep, weight),
        "constant row": norm(torch.full((1, 3), 2.0, dtype=torch.float64), weight),
        "one channel": norm(x[:, :1], weight[:1]),
        "eps 0.1": norm(x, weight, eps=0.1),
        "tiny": norm(x * 1e-3, weight),
        "tinier": norm(x * 1e-6, weight),
        "large eps, tiny": norm(x * 1e-3, weight, eps=0.1),
        "zeros": norm(x * 0, weight),
        "exact in float64": norm(x + 1e-7, weight),
        "gradients": slopes(x, weight),
        "x afterwards": afterwards,
        "a result after the next call": again,
        "float32, weight in float64": norm(x.float(), weight),
        "float64, weight in float32": norm(x, weight.float()),
        "weight (1,)": norm(x, weight[:1]),
        "weight (1, dim)": norm(x, weight[None]),
        "weight (dim, 1)": norm(x[:, :2], weight[:2, None]),
        "bf16": norm(x.bfloat16(), weight.bfloat16()),
        "bf16, weight in float32": norm(x.bfloat16(), weight.float()),
        "bf16, long": norm(long.bfloat16(), torch.ones(4096).bfloat16()),
        "bf16, gradients": slopes(x.bfloat16(), weight.bfloat16()),
        "bf16, 1e14": norm((x * 1e14).bfloat16(), weight.bfloat16()),
        "fp16, beyond 256": norm((x * 1000).half(), weight.half()),
        "fp16, largest": norm((x * 15_000).half(), weight.half()),
        "fp16, tiny": norm((x * 1e-3).half(), weight.half()),
    }
