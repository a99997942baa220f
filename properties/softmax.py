"""The laws of softmax: a probability along one dimension, blind to shifts, faithful to order; its
logarithm, which never forms the probability; and a mean over the targets that count."""

import math
from dataclasses import dataclass, field, replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo.close import assert_close, assert_equal, assert_tensor, assert_true, gradients, refuses, untouched
from dojo.draw import LAYOUTS, distinct, examples, fill, laid_out

DTYPES = st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16))
WIDE, HALF = st.sampled_from((torch.float32, torch.float64)), st.sampled_from((torch.bfloat16, torch.float16))
SCALES = st.sampled_from((1.0, 0.01, 20.0))
LOUD, LARGEST = st.just(100.0), st.sampled_from((1e4, 1e3, 2e5))
LEVELS = st.sampled_from((0, -200_000, 300_000))
"""Added to all logits, exact in float32: neither softmax nor the loss depends on it."""
PLACES = st.integers(0, 9)


@dataclass
class Logits:
    x: Tensor
    dim: int


@dataclass
class Slope:
    x: Tensor
    dim: int
    upstream: Tensor


@dataclass
class Pair:
    x: Tensor
    gap: int


@dataclass
class Bad:
    """How far from a class a target is, and where it goes; the message shows what came of it."""

    by: int = field(repr=False)
    place: int = field(repr=False)


@dataclass
class Labelled:
    logits: Tensor
    targets: Tensor
    ignore_index: int


@st.composite
def logits(draw, dtypes=DTYPES, scales=SCALES):
    """One to four dimensions, all of different size, any of them the one to sum over."""
    shape = distinct(draw, draw(st.integers(1, 4)), high=4)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    return Logits(fill(draw, shape, dtype=draw(dtypes), scale=draw(scales), layout=draw(LAYOUTS)), dim)


@st.composite
def slopes(draw):
    """Logits, loud or with a masked place at times, and the gradient that arrives from above."""
    case = draw(st.one_of(logits(), masked(), loud()))
    return Slope(case.x, case.dim, fill(draw, case.x.shape, dtype=case.x.dtype))


@st.composite
def masked(draw):
    """Logits with −inf at one place of every slice along dim, and something finite beside it."""
    case, place = draw(logits()), draw(PLACES)
    x = case.x.clone().movedim(case.dim, -1)
    if x.shape[-1] < 2:
        x = torch.cat([x, torch.zeros_like(x)], -1)
    x[..., place % x.shape[-1]] = -math.inf
    return Logits(x.movedim(-1, case.dim), case.dim)


@st.composite
def loud(draw):
    case = draw(logits(scales=LOUD))
    return Logits(grown(case.x, draw(LARGEST)), case.dim)


@st.composite
def long_rows(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return Logits(torch.randn(1, 4096, generator=generator).to(draw(HALF)), -1)


@st.composite
def pairs(draw, low):
    """Two logits that far apart, in float32 or float64, the first the larger one."""
    gap, level = draw(st.integers(low, 10_000)), draw(LEVELS)
    return Pair(torch.tensor([gap + level, level], dtype=draw(WIDE)), gap)


@st.composite
def labelled(draw, dtypes=DTYPES, scales=SCALES):
    """Logits with targets, some of them ignored (never all), under any ignore_index. No batch at times."""
    *batch, vocab = distinct(draw, draw(st.sampled_from((2, 3, 1, 4))), high=4)
    ignore_index = draw(st.sampled_from((-100, -1, 0, 1, 255)))
    classes = [c for c in range(vocab) if c != ignore_index] or [0]
    if classes == [0] and ignore_index == 0:
        ignore_index = -100
    count = math.prod(batch)
    targets = draw(st.lists(st.sampled_from([*classes, ignore_index]), min_size=count, max_size=count))
    targets[draw(st.integers(0, count - 1))] = draw(st.sampled_from(classes))
    layout = draw(LAYOUTS)
    x = fill(draw, (*batch, vocab), dtype=draw(dtypes), scale=draw(scales), layout=layout)
    # "expanded" would repeat the first targets, which may all be ignored
    strides = "strided" if layout == "expanded" else layout
    return Labelled(x, laid_out(torch.tensor(targets).reshape(batch), strides), ignore_index)


@st.composite
def loud_labelled(draw):
    case = draw(labelled(scales=LOUD))
    return replace(case, logits=grown(case.logits, draw(LARGEST)))


@st.composite
def padded(draw):
    """Rows of logits, and ignored ones behind them, where a loss of infinity must not leak as inf · 0."""
    case, extra = draw(labelled(dtypes=st.just(torch.float64))), draw(st.integers(1, 3))
    rows = case.logits.reshape(-1, case.logits.shape[-1])
    padding = torch.full((extra, rows.shape[-1]), 7.0, dtype=rows.dtype)
    padding[:, 0] = -math.inf
    targets = torch.cat([case.targets.flatten(), torch.full((extra,), case.ignore_index)])
    return Labelled(torch.cat([rows, padding]), targets, case.ignore_index)


@st.composite
def with_an_impossible_class(draw):
    """Logits with a class that is −inf everywhere and no kept target."""
    case = draw(labelled())
    at = draw(PLACES) % (case.logits.shape[-1] + 1)
    never = torch.full_like(case.logits[..., :1], -math.inf)
    x = torch.cat([case.logits[..., :at], never, case.logits[..., at:]], -1)
    kept = case.targets != case.ignore_index
    moved = torch.where(case.targets >= at, case.targets + 1, case.targets)
    return Labelled(x, moved.where(kept, -100), -100)


@st.composite
def with_an_impossible_target(draw):
    """Equal logits, but for the target of the last row, which is −inf."""
    vocab, place, rows = draw(st.integers(2, 5)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    x, target = torch.zeros(rows, vocab, dtype=torch.float64), place % vocab
    x[-1, target] = -math.inf
    return Labelled(x, torch.full((rows,), target), -100)


@st.composite
def long_batches(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(4096, 2, generator=generator).to(draw(HALF))
    return Labelled(x, torch.randint(2, (4096,), generator=generator), -100)


@st.composite
def all_ignored(draw):
    shape, ignore = draw(st.sampled_from(((), (1,), (3,), (2, 3)))), draw(st.sampled_from((-100, 0, 2)))
    return Labelled(torch.ones(*shape, 4, dtype=draw(DTYPES)), torch.full(shape, ignore), ignore)


@st.composite
def large_vocabularies(draw):
    target = draw(st.sampled_from((39_999, 300, 0)))
    x = torch.zeros(1, 40_000, dtype=draw(WIDE))
    x[0, target] = 8
    return Labelled(x, torch.tensor([target]), -100)


def log_oracle(x, dim):
    """log softmax in float64, straight from the definition."""
    x = x.detach().double()
    top = x.amax(dim, keepdim=True)
    return x - top - (x - top).exp().sum(dim, keepdim=True).log()


def oracle(x, dim):
    return log_oracle(x, dim).exp()


def loss_oracle(case):
    log_p = log_oracle(case.logits, -1).reshape(-1, case.logits.shape[-1])
    kept = [(i, t) for i, t in enumerate(case.targets.flatten().tolist()) if t != case.ignore_index]
    return -sum(log_p[i, t] for i, t in kept) / len(kept), kept


def exponent_error(x, dim):
    """What a few roundings of the exponent may change exp by, relatively: the size of what is subtracted.

    Both x − max and x − (max + log Σ) are right, so the size of the logits themselves counts too."""
    x = x.detach().double()
    top = x.amax(dim, keepdim=True)
    return 1 + (x - top).nan_to_num(neginf=0).abs() + top.abs()


def grown(x, largest):
    """x stretched so that its largest entry has that size, or half of what its dtype holds."""
    largest = min(largest, torch.finfo(x.dtype).max / 2)
    return x * (largest / x.abs().max().clamp(min=1))


# --- part 1: softmax -----------------------------------------------------------------------------


@given(case=logits())
def test_softmax_keeps_shape_dtype_and_leaves_x_alone(subject, case):
    """Softmax returns a new tensor of x's shape and dtype; x still holds what it held, and so does the result
    after another call.

    Catches in-place subtraction of the maximum, results left in float32, and a buffer that is used again."""
    before = case.x.clone()
    got = subject.softmax(case.x, case.dim)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    untouched({"x": before}, {"x": case.x})
    first = got.clone()
    subject.softmax(-2 * case.x + torch.arange(case.x.numel()).reshape(case.x.shape), case.dim)
    assert_equal(got, first, "the first result after a second call with −2x + (0, 1, 2, …)")


@given(case=logits())
def test_probabilities_sum_to_one_along_dim(subject, case):
    """Every slice along dim sums to one and holds nothing negative.

    Catches a dim that is ignored, and division by a sum over everything."""
    got = subject.softmax(case.x, case.dim)
    assert_true(bool((got >= 0).all()), "a probability is negative", got=got)
    total = got.double().sum(case.dim)
    size = case.x.shape[case.dim]
    assert_close(
        total.to(case.x.dtype),
        torch.ones_like(total),
        dtype=case.x.dtype,
        length=size,
        name="the sum along dim",
    )


@given(case=logits(dtypes=st.sampled_from((torch.float32, torch.float64))), shift=st.integers(-1000, 1000))
def test_adding_a_constant_changes_nothing(subject, case, shift):
    """softmax(x + c) = softmax(x), since exp(c) cancels.

    Catches other normalisations: division by the plain sum, squares, absolute values."""
    moved = case.x + shift  # rounded once, so the expectation is taken of the moved logits
    got = subject.softmax(moved, case.dim)
    want = oracle(case.x, case.dim)
    loss = case.x.double().abs().max() + abs(shift)
    assert_close(
        got, want, dtype=case.x.dtype, magnitude=want * (loss + exponent_error(case.x, case.dim)), length=5
    )


@given(case=logits())
def test_order_is_kept(subject, case):
    """A larger logit never gets a smaller probability than another of its slice.

    Catches a sign slip (softmin) and scores squared before the exponential."""
    got = subject.softmax(case.x, case.dim)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    x, p = case.x.movedim(case.dim, -1), got.movedim(case.dim, -1)
    ordered = p.gather(-1, x.argsort(dim=-1))
    assert_true(bool((ordered.diff(dim=-1) >= 0).all()), "a larger logit got a smaller probability", got=got)


@given(case=masked())
def test_minus_infinity_gets_exactly_zero(subject, case):
    """A logit of −inf (a masked place) gets probability exactly 0, and the others share the rest.

    Catches −inf replaced by a large finite number, and an ε added to the exponentials."""
    x = case.x
    got = subject.softmax(x, case.dim)
    assert_tensor(got, shape=x.shape, dtype=x.dtype)
    assert_true(
        bool((got[x == -math.inf] == 0).all()), "a logit of −inf has a probability other than 0", got=got
    )
    want = oracle(x, case.dim)
    assert_close(got, want, dtype=x.dtype, magnitude=want * exponent_error(x, case.dim), length=5)


@given(case=loud())
def test_large_logits_do_not_overflow(subject, case):
    """Logits in the thousands give finite probabilities; the largest of a slice gets at least 1/n.

    Catches exp without the shift, a shift by the mean, and a maximum taken over the wrong slice."""
    x = case.x
    got = subject.softmax(x, case.dim)
    want = oracle(x, case.dim)
    assert_close(got, want, dtype=x.dtype, magnitude=want * exponent_error(x, case.dim), length=5)


@given(case=logits())
def test_softmax_equals_its_definition(subject, case):
    """Value by value, softmax equals exp(x) / Σ exp(x) computed in float64, in every dtype.

    Catches a base other than e, a dim other than the one asked for, and a temperature left in."""
    want = oracle(case.x, case.dim)
    magnitude = want * exponent_error(case.x, case.dim)
    assert_close(subject.softmax(case.x, case.dim), want, dtype=case.x.dtype, magnitude=magnitude, length=5)


@given(case=slopes())
def test_softmax_gradient_equals_the_jacobian(subject, case):
    """The gradient of Σ g·p is p·(g − Σ g·p) along dim, g being what arrives from above (upstream), also
    where logits are in the thousands or −inf.

    Catches a maximum or a sum cut off from the graph, results computed under no_grad, and NaN from −inf."""
    x = case.x.clone().requires_grad_()
    (got,) = gradients(subject.softmax(x, case.dim), [x], case.upstream)
    p, upstream = oracle(x, case.dim), case.upstream.double()
    want = p * (upstream - (upstream * p).sum(case.dim, keepdim=True))
    size = upstream.abs().amax() * exponent_error(x, case.dim).amax()
    assert_close(got, want, dtype=x.dtype, magnitude=size, length=8, name="the gradient of x")


@examples(quick=2, full=10)
@given(case=long_rows())
def test_long_half_precision_rows_sum_in_float32(subject, case):
    """Over 4,096 half-precision logits the result is still right to the last stored bit or two.

    Catches a running sum in bf16, which stops growing at 256, and one in fp16, which stalls at 2,048."""
    x = case.x
    want = oracle(x, -1)
    magnitude = want * exponent_error(x, -1)
    assert_close(subject.softmax(x, -1), want, dtype=x.dtype, magnitude=magnitude, length=4096, steps=2)


@given(case=logits())
def test_a_missing_dimension_is_refused(subject, case):
    """A dim that x does not have raises, rather than falling back to another one.

    Catches a dim that is never used, and one taken modulo the number of dimensions."""
    refuses_missing_dims(subject.softmax, case.x)


def refuses_missing_dims(function, x):
    for dim in (x.ndim, -x.ndim - 1):
        because = f"x {tuple(x.shape)} has no dimension {dim}"
        refuses((IndexError, ValueError), lambda dim=dim: function(x, dim), because=because)


# --- part 2: log_softmax -------------------------------------------------------------------------


@given(case=logits())
def test_log_softmax_equals_its_definition(subject, case):
    """log_softmax equals x − log Σ exp(x) in float64, keeps shape and dtype, and leaves x alone.

    Catches the logarithm of a rounded probability, log2 and log10, and a sum along another dim."""
    before = case.x.clone()
    got = subject.log_softmax(case.x, case.dim)
    assert_close(
        got,
        log_oracle(case.x, case.dim),
        dtype=case.x.dtype,
        magnitude=exponent_error(case.x, case.dim),
        length=5,
    )
    untouched({"x": before}, {"x": case.x})


@given(case=pairs(110))
def test_log_of_a_vanishing_probability_is_finite(subject, case):
    """log_softmax([gap, 0]) is [0, −gap], however large the gap, and whatever is added to both logits.

    Catches log(softmax(x)), which is −inf from a gap of 104, log(p + 1e-9), which stops at −20.7, and
    logits that are clamped."""
    want, size = torch.tensor([0.0, -case.gap], dtype=torch.float64), 1 + case.gap + abs(case.x[1].item())
    assert_close(subject.log_softmax(case.x, 0), want, dtype=case.x.dtype, magnitude=size)


@given(case=loud())
def test_large_logits_have_finite_logs(subject, case):
    """Logits in the thousands give finite log-probabilities, in quiet slices beside loud ones, too.

    Catches one maximum for all slices: the sum of a quiet one is then 0, and its logarithm −inf."""
    x, size = case.x, exponent_error(case.x, case.dim)
    assert_close(
        subject.log_softmax(x, case.dim), log_oracle(x, case.dim), dtype=x.dtype, magnitude=size, length=5
    )


@given(case=masked())
def test_the_log_of_probability_zero_is_minus_infinity(subject, case):
    """A logit of −inf has log-probability −inf, and those of the others are what they are without it.

    Catches a logarithm that is clamped, and NaN from −inf − (−inf) or 0 · −inf."""
    x = case.x
    got, size = subject.log_softmax(x, case.dim), exponent_error(x, case.dim)
    assert_close(got, log_oracle(x, case.dim), dtype=x.dtype, magnitude=size, length=5)


@given(case=slopes())
def test_log_softmax_gradient_equals_the_jacobian(subject, case):
    """The gradient of Σ g·log p is g − p·Σ g along dim, g being what arrives from above (upstream), also
    where logits are in the thousands or −inf.

    Catches a log-sum-exp cut off from the graph, and NaN from −inf."""
    x = case.x.clone().requires_grad_()
    (got,) = gradients(subject.log_softmax(x, case.dim), [x], case.upstream)
    upstream = case.upstream.double()
    want = upstream - oracle(x, case.dim) * upstream.sum(case.dim, keepdim=True)
    size = upstream.abs().sum(case.dim, keepdim=True) * exponent_error(x, case.dim).amax()
    assert_close(got, want, dtype=x.dtype, magnitude=size, length=8, name="the gradient of x")


@examples(quick=2, full=10)
@given(case=long_rows())
def test_long_half_precision_rows_take_their_log_in_float32(subject, case):
    """Over 4,096 half-precision logits the log-probabilities are still right to the last stored bits.

    Catches a running sum in bf16, which stops growing at 256, and one in fp16, which stalls at 2,048."""
    x = case.x
    want = log_oracle(x, -1)
    magnitude = want.abs() + exponent_error(x, -1)
    assert_close(subject.log_softmax(x, -1), want, dtype=x.dtype, magnitude=magnitude, length=4096, steps=2)


@given(case=logits())
def test_log_softmax_refuses_a_missing_dimension(subject, case):
    """log_softmax, too, raises for a dim that x does not have.

    Catches a dim that is checked in one of the two only."""
    refuses_missing_dims(subject.log_softmax, case.x)


# --- part 3: cross_entropy -----------------------------------------------------------------------


@given(case=labelled())
def test_cross_entropy_is_a_scalar_and_leaves_its_inputs_alone(subject, case):
    """The loss is one number in the dtype of the logits; logits and targets still hold what they held.

    Catches a loss per token, and targets whose ignored entries were overwritten in place."""
    before = {"logits": case.logits.clone(), "targets": case.targets.clone()}
    got = subject.cross_entropy(case.logits, case.targets, ignore_index=case.ignore_index)
    assert_tensor(got, shape=(), dtype=case.logits.dtype, name="the loss")
    untouched(before, {"logits": case.logits, "targets": case.targets})


@given(case=padded())
def test_only_kept_targets_count(subject, case):
    """Rows whose target is ignored, here the last ones at least, leave the loss as it is without them,
    whatever their logits.

    Catches a mean over the whole batch, and an ignore_index that is assumed to be −100."""
    got = subject.cross_entropy(case.logits, case.targets, ignore_index=case.ignore_index)
    want, _ = loss_oracle(case)
    size = 1 + 2 * case.logits[case.logits.isfinite()].abs().amax()
    assert_close(got, want, dtype=torch.float64, magnitude=size, length=20, name="the loss")


@given(case=labelled())
def test_cross_entropy_equals_its_definition(subject, case):
    """The loss equals the mean of −log softmax at the kept targets, in float64, for any leading shape.

    Catches a sum instead of a mean, a base other than e, and softmax over the wrong dimension."""
    got = subject.cross_entropy(case.logits, case.targets, ignore_index=case.ignore_index)
    want, kept = loss_oracle(case)
    size = exponent_error(case.logits, -1).amax()
    assert_close(got, want, dtype=case.logits.dtype, magnitude=size, length=len(kept) + 5, name="the loss")
    if case.ignore_index == -100:
        assert_close(
            subject.cross_entropy(case.logits, case.targets),
            want,
            dtype=case.logits.dtype,
            magnitude=size,
            length=len(kept) + 5,
            name="the loss without ignore_index",
        )


@examples(quick=1, full=3)
@given(case=large_vocabularies())
def test_any_class_of_a_large_vocabulary_may_be_the_target(subject, case):
    """Of 40,000 classes the loss is that of the target, whose logit is 8 where all others are 0, be it the
    last one.

    Catches targets kept in 8 or 16 bits, as token files keep them."""
    got = subject.cross_entropy(case.logits, case.targets)
    want = torch.tensor(math.log(39_999 + math.exp(8)) - 8, dtype=torch.float64)
    assert_close(got, want, dtype=case.logits.dtype, magnitude=20, length=40_000, name="the loss")


@given(case=st.one_of(labelled(), with_an_impossible_class()), factor=st.sampled_from((1.0, -2.0, 0.5)))
def test_cross_entropy_gradient_is_p_minus_onehot(subject, case, factor):
    """The gradient of factor · loss is factor · (p − onehot(target)) / kept in kept rows, and exactly zero
    in ignored ones.

    Catches a mean over the batch, gradients that leak through ignored rows, NaN from a class of −inf, and a
    backward pass that forgets what arrives from above."""
    x = case.logits.clone().requires_grad_()
    loss = subject.cross_entropy(x, case.targets, ignore_index=case.ignore_index)
    (got,) = gradients(loss, [x], torch.tensor(factor, dtype=x.dtype))
    _, kept = loss_oracle(case)
    p = oracle(x, -1).reshape(-1, x.shape[-1])
    want = torch.zeros_like(p)
    for row, target in kept:
        want[row] = p[row]
        want[row, target] -= 1
    want = (want * factor / len(kept)).reshape(x.shape)
    ignored = case.targets == case.ignore_index
    assert_true(bool((got[ignored] == 0).all()), "an ignored row has a gradient", expected=want, got=got)
    size = abs(factor) / len(kept) * exponent_error(x, -1).amax()
    assert_close(got, want, dtype=x.dtype, magnitude=size, length=8, name="the gradient of the logits")


@given(case=pairs(50))
def test_confidently_wrong_costs_the_logit_gap(subject, case):
    """Logits [gap, 0] with target 1 cost exactly gap, and the gradient is still [1, −1], whatever is added
    to both.

    Catches a loss clamped by an ε inside the logarithm: the worst examples would stop teaching."""
    x, dtype = case.x[None].clone().requires_grad_(), case.x.dtype
    loss, size = subject.cross_entropy(x, torch.tensor([1])), 1 + case.gap + abs(case.x[1].item())
    want = torch.tensor(float(case.gap), dtype=torch.float64)
    assert_close(loss, want, dtype=dtype, magnitude=size, name="the loss")
    want = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    (got,) = gradients(loss, [x])
    assert_close(got, want, dtype=dtype, magnitude=size, name="the gradient")


@given(case=loud_labelled())
def test_large_logits_have_a_finite_loss(subject, case):
    """Logits in the thousands have a finite loss, in quiet rows beside loud ones, too.

    Catches one maximum for all rows, and a loss that is clamped."""
    got = subject.cross_entropy(case.logits, case.targets, ignore_index=case.ignore_index)
    want, kept = loss_oracle(case)
    size = exponent_error(case.logits, -1).amax()
    assert_close(got, want, dtype=case.logits.dtype, magnitude=size, length=len(kept) + 5, name="the loss")


@given(case=with_an_impossible_class())
def test_a_class_that_cannot_be_costs_nothing(subject, case):
    """A class whose logit is −inf everywhere, and which is no target, leaves the loss as it is without it.

    Catches a one-hot product: 0 · −inf is NaN."""
    got = subject.cross_entropy(case.logits, case.targets)
    want, kept = loss_oracle(case)
    size = exponent_error(case.logits, -1).amax()
    assert_close(got, want, dtype=case.logits.dtype, magnitude=size, length=len(kept) + 5, name="the loss")


@examples(quick=2, full=6)
@given(case=long_batches())
def test_long_half_precision_batches_are_averaged_in_float32(subject, case):
    """Over 4,096 targets the loss of half-precision logits is still right to the last stored bits.

    Catches a running sum of the losses in bf16 or fp16, which stops growing long before the end."""
    got, dtype = subject.cross_entropy(case.logits, case.targets), case.logits.dtype
    want, _ = loss_oracle(case)
    assert_close(got, want, dtype=dtype, length=4096, name="the loss")


@given(case=all_ignored())
def test_the_mean_over_no_target_is_nan(subject, case):
    """If every target is ignored the loss is NaN, whatever the shape of the batch, in the dtype of the logits.

    Catches a count that is held at 1 or more, which makes a batch without targets look perfect, and a special
    case that forgets the dtype."""
    got = subject.cross_entropy(case.logits, case.targets, ignore_index=case.ignore_index)
    want = torch.tensor(math.nan, dtype=torch.float64)
    assert_close(got, want, dtype=case.logits.dtype, name="the loss of nothing")


@given(case=with_an_impossible_target())
def test_a_target_that_cannot_be_costs_infinity(subject, case):
    """A target whose logit is −inf has probability 0, and −log 0 is infinite.

    Catches logarithms that are clamped, or that get an ε: the worst example of all becomes a cheap one."""
    got = subject.cross_entropy(case.logits, case.targets)
    assert_equal(got, torch.tensor(math.inf, dtype=torch.float64), name="the loss")


@given(case=labelled(), bad=st.builds(Bad, st.integers(0, 3), PLACES))
def test_bad_targets_are_refused(subject, case, bad):
    """A kept target that is no class raises ValueError, wherever it stands; −100 is no exception where
    another is ignored.

    Catches negative indices that wrap around, and targets below 0 that are all taken for ignored."""
    vocab, ignored, by = case.logits.shape[-1], case.ignore_index, bad.by
    for target in sorted({vocab, vocab + by, -1, -1 - by, -vocab, -100} - {ignored}):
        wrong = case.targets.clone()
        wrong[tuple(bad.place % n for n in wrong.shape)] = target
        refuses(
            ValueError,
            lambda wrong=wrong: subject.cross_entropy(case.logits, wrong, ignore_index=ignored),
            because=f"{target} in targets {wrong.tolist()} is no class of {vocab}",
        )


@given(case=labelled())
def test_targets_of_another_shape_are_refused(subject, case):
    """Targets whose shape is not that of the logits without their last dimension raise ValueError.

    Catches shapes that broadcast by accident, and checks of the number of targets only."""
    targets, fits = case.targets, tuple(case.logits.shape[:-1])
    for wrong in (
        torch.cat([targets, targets]) if fits else targets.repeat(2),
        targets[None],
        targets[..., None],
        targets.flatten(),
        targets.mT if len(fits) > 1 else targets[None, None],
        targets.narrow(-1, 0, 1) if fits else targets[None],
        targets[..., None].expand(case.logits.shape).clone(),
    ):
        if tuple(wrong.shape) == fits:
            continue
        refuses(
            ValueError,
            lambda wrong=wrong: subject.cross_entropy(case.logits, wrong, ignore_index=case.ignore_index),
            because=f"targets {tuple(wrong.shape)} do not fit logits {tuple(case.logits.shape)}",
        )


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    x = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, 3.0]], dtype=torch.float64)
    loud = torch.tensor([[1e4, 0.0, -1e4]])
    quiet_beside_loud = torch.tensor([[300.0, 0.0], [0.0, 1.0]], dtype=torch.float64) * 10
    masked = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64)
    targets = torch.tensor([2, 0])
    padded = torch.tensor([1, -100])

    def touched(call, *args):
        call(*args)
        return args[0]

    def again():
        first = subject.softmax(x, 1)
        subject.softmax(-x, 1)
        return first

    def slope(call, leaf):
        leaf = leaf.clone().requires_grad_()
        return gradients(call(leaf), [leaf], torch.arange(1.0, 7.0, dtype=leaf.dtype).reshape(2, 3))[0]

    def loss_slope(targets, factor=1.0):
        leaf = x.clone().requires_grad_()
        loss = subject.cross_entropy(leaf, targets)
        return gradients(loss, [leaf], torch.tensor(factor, dtype=leaf.dtype))[0]

    long = torch.linspace(0, 1, 1024).bfloat16()
    padded_unevenly = torch.tensor([[2, -100], [0, 1]])
    return {
        "softmax, last dim": lambda: subject.softmax(x, -1),
        "softmax, first dim": lambda: subject.softmax(x, 0),
        "softmax, positive dim": lambda: subject.softmax(x, 1),
        "softmax, loud": lambda: subject.softmax(loud, -1),
        "softmax, a quiet slice beside a loud one": lambda: subject.softmax(quiet_beside_loud, -1),
        "softmax, masked": lambda: subject.softmax(masked, -1),
        "softmax, bf16": lambda: subject.softmax(x.bfloat16(), -1),
        "softmax, long bf16": lambda: subject.softmax(long, 0),
        "softmax, gradient": lambda: slope(lambda leaf: subject.softmax(leaf, 1), x),
        "softmax, gradient of a far logit": lambda: slope(lambda leaf: subject.softmax(leaf, 1), x * 1000),
        "softmax, a result after the next call": again,
        "softmax, its input afterwards": lambda: touched(subject.softmax, x.clone(), 1),
        "softmax, no such dim": lambda: subject.softmax(x, 2),
        "log_softmax": lambda: subject.log_softmax(x, -1),
        "log_softmax, first dim": lambda: subject.log_softmax(x, 0),
        "log_softmax, loud": lambda: subject.log_softmax(loud, -1),
        "log_softmax, a quiet slice beside a loud one": lambda: subject.log_softmax(quiet_beside_loud, -1),
        "log_softmax, masked": lambda: subject.log_softmax(masked, -1),
        "log_softmax, no such dim": lambda: subject.log_softmax(x, 2),
        "log_softmax, long bf16": lambda: subject.log_softmax(long, 0),
        "log_softmax, bf16": lambda: subject.log_softmax(x.bfloat16(), -1),
        "log_softmax, gradient": lambda: slope(lambda leaf: subject.log_softmax(leaf, 1), x),
        "log_softmax, its input afterwards": lambda: touched(subject.log_softmax, x.clone(), 1),
        "loss": lambda: subject.cross_entropy(x, targets),
        "loss, many classes": lambda: subject.cross_entropy(
            torch.arange(4e4)[None] / 4e4, torch.tensor([39_999])
        ),
        "loss, padded": lambda: subject.cross_entropy(x, padded),
        "loss, class 0 ignored": lambda: subject.cross_entropy(x, targets, ignore_index=0),
        "loss, loud": lambda: subject.cross_entropy(loud, torch.tensor([2])),
        "loss, everything ignored": lambda: subject.cross_entropy(x, torch.tensor([-100, -100])),
        "loss, three dims": lambda: subject.cross_entropy(x.reshape(1, 2, 3), targets.reshape(1, 2)),
        "loss, rows that keep different numbers": lambda: subject.cross_entropy(
            torch.stack([x, -x]), padded_unevenly
        ),
        "loss, long bf16": lambda: subject.cross_entropy(
            torch.stack([long, 1 - long], -1), torch.ones(len(long), dtype=torch.int64)
        ),
        "loss, bf16": lambda: subject.cross_entropy(x.bfloat16(), targets),
        "loss, gradient": lambda: loss_slope(targets),
        "loss, gradient padded": lambda: loss_slope(padded),
        "loss, gradient times −2": lambda: loss_slope(targets, -2.0),
        "loss, no such class": lambda: subject.cross_entropy(x, torch.tensor([3, 0])),
        "loss, negative class": lambda: subject.cross_entropy(x, torch.tensor([-2, 0])),
        "loss, −100 where −1 is ignored": lambda: subject.cross_entropy(x, padded, ignore_index=-1),
        "loss, as many targets in another shape": lambda: subject.cross_entropy(x, targets[None]),
        "loss, a class that cannot be": lambda: subject.cross_entropy(masked, torch.tensor([2])),
        "loss, very loud": lambda: subject.cross_entropy(loud * 20, torch.tensor([1])),
        "loss, targets of another shape": lambda: subject.cross_entropy(x, torch.tensor([0, 1, 2])),
        "loss, infinity in an ignored row": lambda: subject.cross_entropy(
            torch.stack([x[0], masked[0].roll(-1)]), torch.tensor([2, -100])
        ),
        "loss, a target that cannot be": lambda: subject.cross_entropy(masked, torch.tensor([1])),
    }
