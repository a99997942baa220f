"""The laws of the two normalisations: LayerNorm looks at one token and nothing else; BatchNorm looks at one
channel over the batch while it trains, remembers what it saw, and goes by memory afterwards."""

import contextlib
import math
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dojo.close import (
    HALF_TYPES,
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    epsilon,
    gradients,
    refuses,
    untouched,
)
from dojo.draw import examples, fill, laid_out

TOKENS = (
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
BATCHES = tuple(shape for shape in TOKENS if len(shape) > 1)
SINGLE = tuple(shape for shape in TOKENS if len(shape) == 1)
CROWDS = tuple(shape for shape in BATCHES if math.prod(shape[:-1]) > 1)
SEVERAL = ((3,), (6,), (2, 3), (5, 6), (3, 2, 5))
FLAT = ((2, 1), (3, 2), (2, 3), (4, 1), (2, 2), (5, 6))
LARGE = ((40, 2), (9, 2, 5), (130, 1))
LONG = ((1, 2, 3), (2, 3, 1), (3, 2, 4), (2, 1, 3), (4, 3, 2), (2, 2, 2))
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
WIDE = ((torch.float32,) * 2, (torch.float64,) * 2)
DOUBLE = ((torch.float64,) * 2,)
HALF = tuple((x, own) for x in HALF_TYPES for own in (torch.float32, x))
HALF_OVER_FLOAT = tuple((x, torch.float32) for x in HALF_TYPES)
SCALES = (1.0, 30.0, 3e-3)
"""Deviations far above √eps for the usual eps, and beside it."""


class LeftOut:
    """An argument that is not given."""

    def __init__(self, default):
        self.default = default

    def __repr__(self):
        return f"left out ({self.default:g})"


NO_EPS, NO_MOMENTUM = LeftOut(1e-5), LeftOut(0.1)
EPS = (0.5, NO_EPS, 1e-3)
MOMENTUM = (NO_MOMENTUM, 0.3, 1.0, 0.75, 0.0)
PLACES = st.integers(0, 9)
LN = {"weight", "bias"}
BN = LN | {"running_mean", "running_var", "num_batches_tracked"}


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Tokens:
    x: Tensor
    weight: Tensor
    bias: Tensor
    eps: float | LeftOut


@dataclass
class Batch(Tokens):
    running_mean: Tensor
    running_var: Tensor
    momentum: float | LeftOut


@dataclass
class Above:
    upstream: Tensor
    """The gradient that arrives from above."""


@dataclass
class Place:
    place: tuple[int, ...]


def made(dtypes=WIDE, scales=SCALES, layouts=LAYOUTS):
    """How x and the layer are made: the memory layout, the size of the noise in x, the two dtypes."""
    return st.sampled_from(list(product(layouts, scales, dtypes)))


@st.composite
def tokens(draw, make=made(), shapes=TOKENS, eps=EPS):
    shape = draw(st.sampled_from(shapes))
    layout, scale, (dtype, own) = draw(make)
    x, weight, bias = parts(draw, math.prod(shape), shape[-1], shape[-1])
    return Tokens(
        lain(x, shape, scale, dtype, layout), weight.to(own), bias.to(own), draw(st.sampled_from(eps))
    )


@st.composite
def batches(draw, make=made(), shapes=FLAT + LONG, eps=EPS, momentum=MOMENTUM):
    """One batch, and a layer that has seen others before."""
    shape = draw(st.sampled_from(shapes))
    layout, scale, (dtype, own) = draw(make)
    x, weight, bias, mean, var = parts(draw, math.prod(shape), *[shape[1]] * 4)
    return Batch(
        lain(x, shape, scale, dtype, layout), weight.to(own), bias.to(own), draw(st.sampled_from(eps)),
        mean.to(own), (var.abs() + 0.25).to(own), draw(st.sampled_from(momentum)),
    )  # fmt: skip


@st.composite
def sloped(draw, cases):
    """A case, and the gradient that arrives from above."""
    case = draw(cases)
    return case, Above(fill(draw, case.x.shape, dtype=case.x.dtype))


def plain(cases):
    """The same with a weight of ones and a bias of zeros."""
    return cases.map(
        lambda case: replace(case, weight=torch.ones_like(case.weight), bias=torch.zeros_like(case.bias))
    )


def times(cases, *sizes):
    """The same with x so many times as large."""
    return st.builds(lambda case, size: replace(case, x=case.x * size), cases, st.sampled_from(sizes))


def far(cases):
    """The same with a mean far above the deviation."""
    return cases.map(far_from_zero)


@st.composite
def constant(draw):
    case = draw(tokens(made(WIDE, (1.0,))))
    return replace(case, x=torch.full_like(case.x, draw(st.sampled_from((1.0, -2.0, 8.0, 0.0)))))


@st.composite
def crowds(draw):
    """Tokens, and the place of one that is louder or quieter than the others."""
    case = draw(plain(tokens(made(WIDE[:1], (1.0, 30.0)), CROWDS, (NO_EPS,))))
    others, one = draw(st.sampled_from(((1.0, 1.0), (1e4, 1.0), (1.0, 1e4))))
    factor = torch.full((*case.x.shape[:-1], 1), others, dtype=case.x.dtype)
    place = draw(PLACES)
    at = tuple(place % n for n in case.x.shape[:-1])
    factor[at] = one
    return replace(case, x=case.x * factor), Place(at)


@st.composite
def half_of_any_size(draw):
    """Half-precision tokens around 100, of thousands, or of ±60,000."""
    case = draw(tokens(made(HALF, (1.0,)), SEVERAL))
    size = draw(st.sampled_from((1.0, 2.0, 3000.0, 6e4)))
    case = replace(case, x=case.x.sign() * size if size == 6e4 else case.x.clamp(-8, 8) * size)
    return far_from_zero(case) if size < 10 else case


@st.composite
def long_tokens(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = (1 + torch.randn(1, 4099, generator=generator) / 4).to(draw(st.sampled_from(HALF_TYPES)))
    return Tokens(x, torch.ones(4099), torch.zeros(4099), NO_EPS)


@st.composite
def fresh(draw):
    """A batch for a layer that has seen none."""
    case = draw(plain(batches(made(WIDE[:1], (30.0, 1.0)), FLAT, (NO_EPS,), (NO_MOMENTUM,))))
    return replace(case, running_mean=case.bias, running_var=case.weight)


@st.composite
def half_batches(draw):
    """Half-precision batches: around 0 or 100, of thousands, or of ±60,000. The largest come to layers in
    float32, whose running variance is as large already."""
    size = draw(st.sampled_from((1.0, 2.0, 3000.0, 6e4)))
    case = draw(batches(made(HALF_OVER_FLOAT if size > 10 else HALF, (1.0,))))
    if size > 10:
        x = case.x.sign() * size if size == 6e4 else case.x.clamp(-8, 8) * size
        return replace(case, x=x, running_var=torch.full_like(case.running_var, size**2))
    return far_from_zero(case) if size > 1 else case


def parts(draw, *counts):
    # All at once: that is the cheapest.
    return fill(draw, (sum(counts),), dtype=torch.float64).split(counts)


def lain(x, shape, scale, dtype, layout):
    layout = "strided" if layout == "expanded" and len(shape) == 1 else layout
    return laid_out((x.reshape(shape) * scale).to(dtype), layout)


# --- the layers ----------------------------------------------------------------------------------


def given_options(case):
    return {n: v for n in ("eps", "momentum") if not isinstance(v := getattr(case, n, NO_EPS), LeftOut)}


def loaded(layer, names, state):
    """The layer with its state replaced. It must be a module with the names of torch.nn."""
    assert_true(isinstance(layer, nn.Module), "the layer is no torch.nn.Module", got=type(layer).__name__)
    assert_equal(sorted(layer.state_dict()), sorted(names), "the names in the state_dict")
    layer = layer.to(state["weight"].dtype)
    layer.load_state_dict(state)
    return layer


def layer_norm(subject, case):
    layer = subject.LayerNorm(case.x.shape[-1], **given_options(case))
    return loaded(layer, LN, {"weight": case.weight, "bias": case.bias})


def batch_norm(subject, case, *, training=True, seen=3):
    """The layer of a case, after so many batches."""
    layer = subject.BatchNorm1d(case.x.shape[1], **given_options(case))
    state = {n: getattr(case, n) for n in ("weight", "bias", "running_mean", "running_var")}
    return loaded(layer, BN, {**state, "num_batches_tracked": torch.tensor(seen)}).train(training)


def applied(layer, x):
    """The call itself. Whatever is claimed of its result, x must be left as it was."""
    before = x.clone()
    got = layer(x)
    untouched({"x": before}, {"x": x})
    return got


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """Either normalisation in float64, straight from the definition, with what bounds its rounding errors.

    The mean is off by a few ε of the values added up, however small the deviation is that is left of them.
    That error is one of sums, so in a half type it is float32's; the rest is relative to |x − mean|."""

    def __init__(self, case, training=True):
        self.dtype, self.own = case.x.dtype, case.weight.dtype
        self.x = case.x.detach().double()
        self.batch, self.training = isinstance(case, Batch), training
        self.over = [d for d in range(self.x.ndim) if d != 1] if self.batch else [-1]
        self.weight, self.bias = self.spread(case.weight), self.spread(case.bias)
        self.eps = case.eps.default if isinstance(case.eps, LeftOut) else case.eps
        self.count = self.x.numel() // self.x.shape[1] if self.batch else self.x.shape[-1]
        if self.batch and not training:
            self.mean, self.var = self.spread(case.running_mean), self.spread(case.running_var)
            size = self.mean.abs()
        else:
            self.mean = self.x.mean(self.over, keepdim=True)
            self.var = (self.x - self.mean).square().mean(self.over, keepdim=True)
            size = self.x.abs().mean(self.over, keepdim=True)
        self.r = 1 / (self.var + self.eps).sqrt()
        self.normed = (self.x - self.mean) * self.r
        self.out = self.normed * self.weight + self.bias
        # ε of the sums, in units of the ε of what is stored
        self.ratio = epsilon(torch.float32) / epsilon(self.dtype) if self.dtype in HALF_TYPES else 1
        if not training and self.own in HALF_TYPES:
            self.ratio = 1  # what folds such statistics into scale and shift may do so in their dtype
        self.loud = self.ratio * (self.x.abs() + size) * self.r
        self.steps = 1 if self.dtype in HALF_TYPES else 4

    def spread(self, values):
        """One value a channel, so that it broadcasts against x."""
        values = values.detach().double()
        return values.reshape(-1, *[1] * (self.x.ndim - 2)) if self.batch else values

    def agrees(self, got, want=None, at=slice(None), times=1, name="the result"):
        magnitude = (self.normed * self.weight).abs() + self.bias.abs() + self.loud * self.weight.abs()
        assert_close(
            got, self.out[at] if want is None else want, dtype=self.dtype, length=self.count, steps=self.steps,
            magnitude=times * magnitude[at], name=name,
        )  # fmt: skip

    def gradients_agree(self, layer, x, upstream):
        """The gradients of Σ upstream·result: r·(u − mean(u) − x̂·mean(u·x̂)) with u = upstream·weight for x,
        Σ upstream·x̂ for weight and Σ upstream for bias; no means where the statistics are given."""
        leaves = [x.detach().clone().requires_grad_(), layer.weight, layer.bias]
        found = gradients(applied(layer, leaves[0]), leaves, upstream)
        g, normed, over = upstream.double(), self.normed, self.over
        u, loud = g * self.weight, 1 + self.loud
        slope, size = u, u.abs()
        if self.training:
            slope = u - u.mean(over, keepdim=True) - normed * (u * normed).mean(over, keepdim=True)
            size = size + size.mean(over, keepdim=True)
            size = size + normed.abs() * (u * normed).abs().mean(over, keepdim=True)
            size = size + loud.amax(over, keepdim=True) * size.amax(over, keepdim=True)
        rest = over if self.batch else list(range(self.x.ndim - 1))

        def summed(terms):
            return (terms.sum(rest) if rest else terms).reshape(-1)

        added = self.x.numel()
        for name, got, want, magnitude, dtype in (
            ("x", found[0], self.r * slope, self.r * size, self.dtype),
            ("weight", found[1], summed(g * normed), summed(g.abs() * (normed.abs() + loud)), self.own),
            ("bias", found[2], summed(g), summed(g.abs()), self.own),
        ):
            name = f"the gradient of {name}"
            assert_tensor(got, shape=want.shape, dtype=dtype, name=name)
            # A wider weight meets values that may have been rounded to x's dtype, and so does its gradient.
            assert_close(
                got.to(self.dtype), want, dtype=self.dtype, length=3 * added, steps=4, magnitude=magnitude,
                name=name,
            )  # fmt: skip


class Memory:
    """What the running statistics should be after some batches, in float64."""

    def __init__(self, case, seen=3):
        self.mean, self.var = case.running_mean.double(), case.running_var.double()
        self.dtype = case.running_mean.dtype
        self.momentum = case.momentum
        if isinstance(case.momentum, LeftOut):
            self.momentum = case.momentum.default
        self.size, self.spread, self.added, self.seen = self.mean.abs(), self.var, 0, seen

    def sees(self, x):
        rows = x.double().movedim(1, -1).flatten(0, -2)
        m, var = self.momentum, rows.var(0)
        self.mean, self.var = (1 - m) * self.mean + m * rows.mean(0), (1 - m) * self.var + m * var
        self.size, self.spread = self.size + rows.abs().mean(0), self.spread + var
        # The mean's own error, squared, is in the variance of values far from zero.
        self.spread = self.spread + epsilon(self.dtype) * len(rows) ** 2 * rows.abs().mean(0) ** 2
        self.added, self.seen = self.added + len(rows) + 4, self.seen + 1

    def agrees(self, layer, when=""):
        for name, want, size in (
            ("running_mean", self.mean, self.size),
            ("running_var", self.var, self.spread),
        ):
            got = getattr(layer, name)
            assert_true(not got.requires_grad, f"{name} carries a gradient")
            if self.dtype in HALF_TYPES:
                got = got.to(self.dtype)  # float32 is welcome too
            assert_close(got, want, dtype=self.dtype, length=self.added, magnitude=size, name=f"{name}{when}")
        assert_equal(layer.num_batches_tracked, torch.tensor(self.seen), f"num_batches_tracked{when}")


def far_from_zero(case):
    """The case with a mean far above the deviation, as far as the dtype can take."""
    level = {torch.float32: 1e4, torch.float64: 1e7}.get(case.x.dtype, 100.0)
    signs = torch.ones(case.x.shape[-1], dtype=case.x.dtype)
    if isinstance(case, Batch):
        signs = torch.ones(case.x.shape[1], *[1] * (case.x.ndim - 2), dtype=case.x.dtype)
        signs[1::2] = -1
        mean = case.running_mean + level * signs.flatten().to(case.running_mean.dtype)
        case = replace(case, running_mean=mean)
    return replace(case, x=(case.x + level * signs).contiguous())


# --- part 1: LayerNorm ---------------------------------------------------------------------------


@given(case=plain(tokens(made(WIDE[:1], (30.0,)), SINGLE, (NO_EPS,))))
def test_a_fresh_layer_norm_only_normalises(subject, case):
    """A new LayerNorm has a weight of ones and a bias of zeros, both trained, and nothing else to keep: a token
    comes out with mean 0 and mean square var/(var + eps), in training and in eval.

    Catches parameters that autograd or the state_dict does not know, other first values, and the unbiased
    variance."""
    dim = case.x.shape[-1]
    layer = subject.LayerNorm(dim)
    assert_true(isinstance(layer, nn.Module), "the layer is no torch.nn.Module", got=type(layer).__name__)
    found = dict(layer.named_parameters())
    assert_equal(sorted(found), sorted(LN), "the names of the parameters")
    assert_equal(sorted(layer.state_dict()), sorted(LN), "the names in the state_dict")
    assert_equal(found["weight"].detach(), torch.ones(dim), "the first weight")
    assert_equal(found["bias"].detach(), torch.zeros(dim), "the first bias")
    Truth(case).agrees(applied(layer, case.x))
    Truth(case).agrees(applied(layer.eval(), case.x), name="the result in eval")


@given(case=times(plain(tokens(made(WIDE[:1], (1.0,)), SINGLE, (NO_EPS, *EPS))), 3e-3, 1e-2, 1e-4, 1e-7))
def test_eps_is_added_to_the_variance(subject, case):
    """A token that deviates by about √eps, or far less, is divided by √(var + eps).

    Catches std + eps, max(var, eps), and an eps that is fixed."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=crowds())
def test_each_token_is_normalised_alone(subject, case):
    """The token at this place gives alone what it gives among others, however loud or quiet those are.

    Catches statistics over the batch, over the positions, or over the whole tensor."""
    case, at = case[0], case[1].place
    layer = layer_norm(subject, case)
    got = applied(layer, case.x)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    Truth(case).agrees(got[at], at=at, name="the token among others")
    alone = replace(case, x=case.x[at])
    Truth(alone).agrees(applied(layer, alone.x), name="the token alone")


@given(
    case=plain(tokens(made(WIDE, (1.0, 30.0)), eps=(0.5, 1e-3))),
    c=st.sampled_from((2.0, 0.25, -4.0)),
    b=st.integers(-9, 9),
)
def test_size_and_offset_of_a_token_do_not_matter(subject, case, c, b):
    """The norm of c·x + b, with c²·eps, is the norm of x with eps, up to the sign of c.

    Catches a mean that is not subtracted, a missing root, and an eps outside of it or ignored."""
    got = applied(layer_norm(subject, case), case.x)
    moved = replace(case, x=case.x * c + b, eps=case.eps * c * c)
    Truth(case).agrees(got, name="the norm of x")
    Truth(moved).agrees(applied(layer_norm(subject, moved), moved.x), name=f"the norm of {c:g}·x + {b}")
    want = math.copysign(1, c) * Truth(case).out
    Truth(moved).agrees(math.copysign(1, c) * got, want=want, times=2)


@given(case=constant())
def test_constant_tokens_give_the_bias(subject, case):
    """A token that holds the same number throughout has nothing left once its mean is gone: bias remains.

    Catches a mean that is not subtracted, a division by zero where eps is missing, and a bias left out."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=far(tokens(made(WIDE, (1.0,)), SEVERAL)))
def test_a_mean_far_above_the_deviation_keeps_the_digits(subject, case):
    """Tokens around 1e4 (in float64 around 1e7) that deviate by 1 are normalised as well as their mean is
    known.

    Catches the variance as E[x²] − E[x]², which subtracts numbers of 1e8 to get 1, and may be negative."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=tokens())
def test_layer_norm_equals_its_definition(subject, case):
    """Value by value, the result is (x − mean)/√(var + eps)·weight + bias computed in float64, with the
    variance over dim values and not dim − 1; and it is what torch.nn.functional.layer_norm gives.

    Catches the unbiased variance, bias before weight, either of them ignored, and float64 cut to float32."""
    truth = Truth(case)
    got = applied(layer_norm(subject, case), case.x)
    truth.agrees(got)
    theirs = F.layer_norm(truth.x, truth.x.shape[-1:], truth.weight, truth.bias, truth.eps)
    truth.agrees(got, want=theirs, name="the result, against torch.nn.functional.layer_norm")


@examples(quick=1, full=10)
@given(case=tokens(made(layouts=("contiguous",)), ((1100, 2), (2, 700))))
def test_hundreds_of_tokens_equal_the_definition(subject, case):
    """Hundreds of tokens, and tokens of hundreds of channels, equal the definition as well.

    Catches what is done block by block and leaves the rest out."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=sloped(tokens(made(DOUBLE))))
def test_layer_norm_gradients_equal_the_definition(subject, case):
    """With u = upstream·weight, x̂ the normalised token and r = 1/√(var + eps), the gradient of x is
    r·(u − mean(u) − x̂·mean(u·x̂)); those of weight and bias are Σ upstream·x̂ and Σ upstream over all tokens.

    Catches a mean or a variance cut off from the graph, and parameters that are."""
    case, above = case
    Truth(case).gradients_agree(layer_norm(subject, case), case.x, above.upstream)


@given(case=tokens(made(WIDE)), step=st.integers(1, 3))
def test_two_layer_norms_share_nothing(subject, case, step):
    """A layer whose parameters are moved by this step leaves another of the same size as it is, and a call
    leaves the results of earlier ones.

    Catches parameters kept in the class or the module, and results in a buffer that is used again."""
    first, second = layer_norm(subject, case), layer_norm(subject, case)
    earlier = applied(second, case.x)
    applied(second, 1 - case.x)
    Truth(case).agrees(earlier, name="the first result after a second call with 1 − x")
    with torch.no_grad():
        second.weight.add_(step)
        second.bias.sub_(step)
    Truth(case).agrees(applied(first, case.x))
    moved = replace(case, weight=case.weight + step, bias=case.bias - step)
    Truth(moved).agrees(applied(second, case.x), name="the result of the other layer")


@examples(quick=6, full=20)
@given(case=tokens(made(WIDE), shapes=((2,), (2, 3), (3, 2), (1, 4), (2, 3, 5), (3, 1, 2))))
def test_no_tokens_and_tokens_of_another_size(subject, case):
    """No tokens in, no tokens out; ValueError if the tokens do not have dim channels: one channel would
    broadcast, and so would be the only one that is caught too late.

    Catches a reduction that needs an element, and a shape that nobody checks."""
    dim, layer = case.x.shape[-1], layer_norm(subject, case)
    for shape in ((0, dim), (2, 0, dim)):
        got = layer(torch.zeros(shape, dtype=case.x.dtype))
        assert_tensor(got, shape=shape, dtype=case.x.dtype)
    for wrong in ((2, 1), (2, dim + 1), (dim, 1), (2, dim, 1)):
        x = torch.ones(wrong, dtype=case.x.dtype)
        refuses(ValueError, lambda x=x: layer(x), because=f"x {wrong} does not end in {dim} channels")


@given(case=tokens(made(HALF)))
def test_half_precision_tokens_equal_the_definition(subject, case):
    """bfloat16 and float16 come back in their own dtype, under parameters in float32 or in their own, right
    to the last stored bit or two.

    Catches results left in float32."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=half_of_any_size())
def test_half_precision_statistics_are_float32(subject, case):
    """Half-precision tokens around 100, of thousands, or of ±60,000 are normalised as if they had been float32.

    Catches a mean that is rounded to bf16, which moves a token by half its deviation, and squares or
    differences taken in float16, which end at 65504."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@examples(quick=2, full=8)
@given(case=long_tokens())
def test_long_half_precision_tokens_sum_in_float32(subject, case):
    """Over tokens of 4,099 channels the result is still right to the last stored bits.

    Catches running sums in bf16, which stop growing at 256 terms, and in fp16, which stall at 2,048."""
    Truth(case).agrees(applied(layer_norm(subject, case), case.x))


@given(case=sloped(tokens(made(HALF, (1.0,)))))
def test_half_precision_gradients_of_layer_norm_equal_the_definition(subject, case):
    """Gradients flow through half precision, and through the widening, to x, weight and bias.

    Catches copies made by torch.tensor or numpy on the way to float32, which cut the graph."""
    case, above = case
    Truth(case).gradients_agree(layer_norm(subject, case), case.x, above.upstream)


# --- part 2: BatchNorm1d -------------------------------------------------------------------------


@given(case=fresh())
def test_a_fresh_batch_norm_has_the_state_of_torchs(subject, case):
    """A new BatchNorm1d has weight 1, bias 0, running_mean 0, running_var 1 and num_batches_tracked 0, the
    first two as parameters, the others as buffers; what torch's layer saved, it loads and continues.

    Catches buffers that are parameters or that no state_dict knows, and other first values or defaults."""
    channels = case.x.shape[1]
    layer, theirs = subject.BatchNorm1d(channels), nn.BatchNorm1d(channels)
    assert_true(isinstance(layer, nn.Module), "the layer is no torch.nn.Module", got=type(layer).__name__)
    assert_equal(sorted(dict(layer.named_parameters())), sorted(LN), "the names of the parameters")
    assert_equal(sorted(layer.state_dict()), sorted(BN), "the names in the state_dict")
    for name, want in theirs.state_dict().items():
        assert_equal(layer.state_dict()[name], want, f"the first {name}")
    layer = layer.to(case.x.dtype).eval()
    Truth(case, training=False).agrees(applied(layer, case.x), name="the result of the new layer in eval")
    theirs = theirs.to(case.x.dtype)
    theirs(case.x)
    layer.load_state_dict(theirs.state_dict())
    seen = replace(case, running_mean=theirs.running_mean, running_var=theirs.running_var)
    Truth(seen, training=False).agrees(
        applied(layer, case.x), name="the result in eval after loading torch's state"
    )


@given(case=batches(shapes=FLAT))
def test_training_normalises_each_channel_over_the_batch(subject, case):
    """While training, a channel is normalised by the mean and the variance of its own values in this batch,
    whatever the running statistics are; the variance divides by n.

    Catches running statistics used too early, LayerNorm's axis, and the unbiased variance."""
    Truth(case).agrees(applied(batch_norm(subject, case), case.x))


@given(case=batches(shapes=LONG))
def test_the_length_counts_as_batch(subject, case):
    """In (batch, channels, length) the values of a channel at all positions make one mean and one variance;
    the channel is axis 1.

    Catches statistics for each position, channels taken from the last axis, and a reshape that mixes them."""
    Truth(case).agrees(applied(batch_norm(subject, case), case.x))
    Truth(case, training=False).agrees(applied(batch_norm(subject, case, training=False), case.x))


@examples(quick=1, full=10)
@given(case=batches(made(layouts=("contiguous",)), ((300, 2), (70, 2, 5))))
def test_hundreds_of_values_a_channel_equal_the_definition(subject, case):
    """Hundreds of values a channel are normalised by their own mean and variance as well.

    Catches statistics of the first block only, taken for those of the batch."""
    Truth(case).agrees(applied(batch_norm(subject, case), case.x))


@given(case=batches(), example=PLACES)
def test_eval_goes_by_the_running_statistics(subject, case, example):
    """In eval the running statistics normalise, each example alone gives what it gives in a batch, and no
    buffer changes.

    Catches batch statistics in eval, running statistics that are updated in eval, and a batch of 1 refused."""
    layer, truth = batch_norm(subject, case, training=False), Truth(case, training=False)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    got = applied(layer, case.x)
    applied(layer, 1 - case.x)
    truth.agrees(got)
    example %= len(case.x)
    at = slice(example, example + 1)
    truth.agrees(applied(layer, case.x[at]), at=at, name=f"the result for example {example} alone")
    for name, was in before.items():
        assert_equal(layer.state_dict()[name], was, f"{name} after a call in eval")


@given(
    case=batches(shapes=FLAT + LONG + 3 * LARGE),
    calls=st.integers(1, 3),
    recorded=st.booleans(),
    seen=st.sampled_from((0, 3, 0)),
)
def test_running_statistics_follow_the_batches(subject, case, calls, recorded, seen):
    """Each call in training moves running_mean and running_var by momentum towards the mean and the unbiased
    variance of its batch, and counts; with gradients on (recorded) or off, and without a gradient of their
    own. The calls see x, 2x + 1 and 3x + 2; so many batches had been seen before. A call in eval before them
    and one after them go by the statistics of that moment.

    Catches momentum the wrong way round, the biased variance, deviations instead of variances, statistics
    that are only taken once, a first batch that is taken whole, a graph that grows from batch to batch, and
    a scale that is kept from the first call in eval."""
    layer, memory = batch_norm(subject, case, training=False, seen=seen), Memory(case, seen)
    Truth(case, training=False).agrees(applied(layer, case.x), name="the result in eval before")
    layer.train()
    for n in range(calls):
        x = (case.x * (1 + n) + n).detach()
        with torch.set_grad_enabled(recorded):
            got = applied(layer, x.clone().requires_grad_())
        Truth(replace(case, x=x)).agrees(got, name=f"the result of call {n + 1}")
        memory.sees(x)
        memory.agrees(layer, f" after call {n + 1}")
    state = layer.state_dict()
    after = replace(case, running_mean=state["running_mean"], running_var=state["running_var"])
    Truth(after, training=False).agrees(applied(layer.eval(), case.x), name="the result in eval")


@given(case=far(batches(made(WIDE, (1.0,)), shapes=((3, 2), (5, 6), (3, 2, 4), (4, 3, 2)))))
def test_channels_far_from_zero_keep_the_digits(subject, case):
    """Channels around ±1e4 (in float64 ±1e7) that deviate by 1 are normalised as well as their mean is known,
    in training and in eval.

    Catches the variance as E[x²] − E[x]², which subtracts numbers of 1e8 to get 1, and may be negative."""
    Truth(case).agrees(applied(batch_norm(subject, case), case.x))
    layer = batch_norm(subject, case, training=False)
    Truth(case, training=False).agrees(applied(layer, case.x), name="the result in eval")


@given(case=sloped(batches(made(DOUBLE))))
def test_training_gradients_go_through_the_statistics(subject, case):
    """While training, the gradient of x is r·(u − mean(u) − x̂·mean(u·x̂)), with means over the batch, where
    u = upstream·weight, x̂ is the normalised x and r = 1/√(var + eps).

    Catches batch statistics computed under no_grad along with the running ones."""
    case, above = case
    Truth(case).gradients_agree(batch_norm(subject, case), case.x, above.upstream)


@given(case=sloped(batches(made(DOUBLE))))
def test_eval_gradients_are_those_of_an_affine_map(subject, case):
    """In eval the gradient of x is upstream·weight/√(running_var + eps): the statistics are constants.

    Catches gradients through batch statistics in eval, and parameters cut off from the graph."""
    case, above = case
    layer = batch_norm(subject, case, training=False)
    Truth(case, training=False).gradients_agree(layer, case.x, above.upstream)


@given(case=batches(made(WIDE)))
def test_two_batch_norms_share_nothing(subject, case):
    """What one layer sees is not remembered by another.

    Catches buffers kept in the class or the module, or as one tensor for two names."""
    first, second = batch_norm(subject, case), batch_norm(subject, case)
    memory = Memory(case)
    memory.agrees(second)
    applied(first, case.x + 1)
    memory.agrees(second)
    memory.sees(case.x + 1)
    memory.agrees(first)


@given(case=half_batches())
def test_half_precision_batches_equal_the_definition(subject, case):
    """Half-precision batches, small or as large as float16 holds, come back in their own dtype, normalised by
    float32 statistics. They leave running statistics that are right to float32, or to what a layer in half
    precision holds.

    Catches means and variances rounded to half precision before they are remembered or used, and squares or
    differences taken in float16, which end at 65504."""
    layer, memory = batch_norm(subject, case), Memory(case)
    Truth(case).agrees(applied(layer, case.x))
    memory.sees(case.x)
    memory.agrees(layer)
    layer = batch_norm(subject, case, training=False)
    Truth(case, training=False).agrees(applied(layer, case.x), name="the result in eval")


@given(case=sloped(batches(made(HALF_OVER_FLOAT, (1.0,)))))
def test_half_precision_gradients_of_batch_norm_equal_the_definition(subject, case):
    """Gradients flow through half precision, and through the widening, to x, weight and bias.

    Catches copies made by torch.tensor or numpy on the way to float32, which cut the graph."""
    case, above = case
    Truth(case).gradients_agree(batch_norm(subject, case), case.x, above.upstream)


@examples(quick=6, full=20)
@given(
    case=batches(made(WIDE), shapes=((2, 2), (3, 2), (2, 3), (2, 3, 4), (3, 2, 2))), training=st.booleans()
)
def test_batches_that_do_not_fit_are_refused(subject, case, training):
    """ValueError for one dimension or four, for another number of channels, one that would broadcast too,
    and in training for a channel with fewer than two values; the buffers are then as before.

    Catches a variance of one value, which is 0 or NaN, and statistics that are updated before the check."""
    channels, dtype = case.x.shape[1], case.x.dtype
    layer = batch_norm(subject, case, training=training)
    wrong = [
        (channels,),
        (2, channels + 1),
        (2, 1),
        (2, channels, 1, 2),
        (2, channels + 1, 3),
        (2, 1, channels),
    ]
    wrong += [(1, channels), (0, channels), (1, channels, 1)] if training else []
    for shape in wrong:
        refuses(
            ValueError, lambda shape=shape: layer(torch.ones(shape, dtype=dtype)),
            because=f"x {shape} does not fit {channels} channels in {'training' if training else 'eval'}",
        )  # fmt: skip
    Memory(case).agrees(layer)
    Truth(case, training=training).agrees(applied(layer, case.x))


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    def layer(kind, size, dtype=torch.float64, **options):
        made = getattr(subject, kind)(size, **options).to(dtype)
        with torch.no_grad():
            made.weight.copy_(waves(size, step=0.7) + 2)
            made.bias.copy_(waves(size, step=2.9))
            if kind == "BatchNorm1d":
                made.running_mean.copy_(waves(size, step=1.1))
                made.running_var.copy_(waves(size, step=0.3) + 1.5)
        return made

    def norm(kind, x, dtype=torch.float64, training=True, **options):
        return lambda: layer(kind, x.shape[-1 if kind == "LayerNorm" else 1], dtype, **options).train(
            training
        )(x)

    def slopes(kind, x, dtype=torch.float64, training=True):
        def call():
            made = layer(kind, x.shape[1], dtype).train(training)
            leaf = x.clone().requires_grad_()
            upstream = waves(*x.shape, step=3.1).to(x.dtype)
            found = gradients(made(leaf), [leaf, made.weight, made.bias], upstream)
            return [slope.to(x.dtype) for slope in found]  # as far as the rounding of x goes

        return call

    def state(x, dtype=torch.float64, training=True, calls=1, **options):
        def call():
            made = layer("BatchNorm1d", x.shape[1], dtype, **options).train(training)
            for n in range(calls):
                made(x + n)
            return [made.running_mean.clone(), made.running_var.clone(), made.num_batches_tracked.clone()]

        return call

    def names(kind):
        def call():
            made = getattr(subject, kind)(3)
            parameters = [n for n, _ in made.named_parameters()]
            state = sorted(made.state_dict().items())
            return [sorted(parameters), [name for name, _ in state], [value for _, value in state]]

        return call

    def afterwards(kind):
        def call():
            held = waves(4, 3) * 2
            layer(kind, 3)(held)
            return held

        return call

    def shared(kind):
        def call():
            first, second = layer(kind, 3, torch.float32), layer(kind, 3, torch.float32)
            first(waves(4, 3).float() + 1)
            with torch.no_grad():
                first.weight.add_(1)
            return second.eval()(waves(4, 3).float())

        return call

    def refused_state():
        made = layer("BatchNorm1d", 3)
        with contextlib.suppress(ValueError):
            made(waves(1, 3))
        return [made.running_mean.clone(), made.running_var.clone(), made.num_batches_tracked.clone()]

    def recorded():
        made = layer("BatchNorm1d", 3)
        made(waves(4, 3).requires_grad_())
        return made.running_mean.requires_grad or made.running_var.requires_grad

    def far_in_eval():
        made = layer("BatchNorm1d", 3, torch.float32).eval()
        with torch.no_grad():
            made.running_mean.add_(100)
        return made(torch.full((2, 3), 100.0).bfloat16())

    def again():
        made = layer("LayerNorm", 3)
        with torch.no_grad():
            first = made(x)
            made(-x)
        return first

    def new_in_eval():
        made = subject.BatchNorm1d(3).double().eval()
        made.running_mean.zero_()
        return made(flat)

    def evaluated_twice():
        made = layer("BatchNorm1d", 3).eval()
        made(flat)
        made.train()(flat)
        return made.eval()(flat)

    x, deep, flat, long = waves(2, 3) * 2, waves(2, 3, 4), waves(5, 3) * 2, waves(3, 2, 4)
    bf16 = torch.bfloat16
    return {
        "LN": norm("LayerNorm", x),
        "LN, one token": norm("LayerNorm", x[0]),
        "LN, three dimensions": norm("LayerNorm", deep),
        "LN, hundreds of tokens": lambda: norm("LayerNorm", waves(100, 3))()[64:],
        "LN, constant": norm("LayerNorm", torch.full((1, 3), 2.0, dtype=torch.float64)),
        "LN, eps 0.5": norm("LayerNorm", x, eps=0.5),
        "LN, tiny": norm("LayerNorm", x * 2e-3),
        "LN, tinier": norm("LayerNorm", x * 1e-6),
        "LN, far from zero": norm("LayerNorm", x + 1e7),
        "LN, float32 far from zero": lambda: norm("LayerNorm", (x + 1e4).float(), torch.float32)().half(),
        "LN, gradients": slopes("LayerNorm", waves(4, 3)),
        "LN, x afterwards": afterwards("LayerNorm"),
        "LN, eps left out, tiny": lambda: subject.LayerNorm(3).double()(x * 2e-3),
        "LN, names": names("LayerNorm"),
        "LN, shared": shared("LayerNorm"),
        "LN, a result after the next call": again,
        "LN, one channel for three": lambda: layer("LayerNorm", 3)(waves(2, 1)),
        "LN, bf16": norm("LayerNorm", x.bfloat16(), torch.float32),
        "LN, bf16 far from zero": norm("LayerNorm", (8 * x + 100).bfloat16(), torch.float32),
        "LN, bf16 close together": norm(
            "LayerNorm", torch.tensor([[99, 100, 100.5]], dtype=bf16), torch.float32
        ),
        "LN, fp16 largest": norm("LayerNorm", torch.tensor([[6e4, -6e4, 6e4]]).half(), torch.float32),
        "LN, fp16 large": norm("LayerNorm", (3000 * x).half(), torch.float32),
        "LN, bf16 long": norm("LayerNorm", (1 + waves(1, 2048) / 4).bfloat16(), bf16),
        "LN, bf16 gradients": slopes("LayerNorm", waves(4, 3).bfloat16(), torch.float32),
        "BN": norm("BatchNorm1d", flat),
        "BN, hundreds of values": norm("BatchNorm1d", waves(100, 3).cumsum(0)),
        "BN, length": norm("BatchNorm1d", long),
        "BN, eps 0.5": norm("BatchNorm1d", flat, eps=0.5),
        "BN, far from zero": norm("BatchNorm1d", flat + 1e7),
        "BN, eval": norm("BatchNorm1d", flat, training=False),
        "BN, eval, eps 0.5": norm("BatchNorm1d", flat, training=False, eps=0.5),
        "BN, eval, length": norm("BatchNorm1d", long, training=False),
        "BN, gradients": slopes("BatchNorm1d", flat),
        "BN, gradients in eval": slopes("BatchNorm1d", flat, training=False),
        "BN, x afterwards": afterwards("BatchNorm1d"),
        "BN, eps left out, in eval": new_in_eval,
        "BN, one example": norm("BatchNorm1d", long[:1]),
        "BN, names": names("BatchNorm1d"),
        "BN, shared": shared("BatchNorm1d"),
        "BN, state": state(flat),
        "BN, state of a large batch": state(waves(20, 3)),
        "BN, state of a long batch": state(long),
        "BN, state, momentum 0": state(flat, momentum=0.0),
        "BN, state, momentum 0.3": state(flat, momentum=0.3, calls=2),
        "BN, state after eval": state(flat, training=False),
        "BN, state of bf16": state((8 * flat + 100).bfloat16(), torch.float32),
        "BN, eval, training, eval": evaluated_twice,
        "BN, eval, bf16 far from zero": far_in_eval,
        "BN, state recorded": recorded,
        "BN, one value a channel": norm("BatchNorm1d", flat[:1]),
        "BN, state after a refusal": refused_state,
        "BN, one channel for three": lambda: layer("BatchNorm1d", 3)(waves(2, 1)),
        "BN, fp16 largest": norm("BatchNorm1d", (6e4 * flat.sign()).half(), torch.float32),
        "BN, fp16 large": norm("BatchNorm1d", (3000 * flat).half(), torch.float32),
        "BN, all in bf16": norm("BatchNorm1d", flat.bfloat16(), bf16),
        "BN, bf16": norm("BatchNorm1d", flat.bfloat16(), torch.float32),
        "BN, bf16 far from zero": norm("BatchNorm1d", (8 * flat + 100).bfloat16(), torch.float32),
        "BN, bf16 gradients": slopes("BatchNorm1d", flat.bfloat16(), torch.float32),
    }
