"""The laws of the feed-forward layer: an activation with two exact formulas, and two networks that see one
position at a time, whose every matrix stands in its own place."""

import math
from dataclasses import dataclass, fields, replace
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
    gradients,
    refuses,
    untouched,
)
from dojo.draw import examples, fill, laid_out

SHAPES = ((), (1,), (5,), (2, 3), (3, 1), (4, 2, 3), (2, 1, 3, 2))
LEADING = ((), (1,), (3,), (1, 1), (2, 3), (3, 2), (2, 1, 3))
WIDTHS = ((1, 1), (1, 3), (2, 1), (2, 3), (3, 5), (4, 2), (3, 3), (5, 4))
"""d_model and d_ff."""
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)
SCALES = (1.0, 3.0, 0.1)
FORMS = st.sampled_from(("none", "tanh"))
APPROXIMATE = st.sampled_from((None, "none", "tanh"))
"""None leaves the argument out."""
PLACES = st.integers(0, 9)
SLOPE = 1.2
"""No slope of GELU or SiLU is larger."""


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Entries:
    x: Tensor


@dataclass
class Network:
    x: Tensor
    w_up: Tensor
    w_down: Tensor


@dataclass
class Plain(Network):
    b_up: Tensor
    b_down: Tensor
    options: dict

    @property
    def approximate(self):
        return self.options.get("approximate", "none")


@dataclass
class Gated(Network):
    w_gate: Tensor


@dataclass
class SlopedEntries(Entries):
    """With the gradient that arrives from above."""

    upstream: Tensor


@dataclass
class SlopedPlain(Plain):
    upstream: Tensor


@dataclass
class SlopedGated(Gated):
    upstream: Tensor


@dataclass
class PlainAmong(Plain):
    """The position at ``at`` is also given alone."""

    at: tuple


@dataclass
class GatedAmong(Gated):
    at: tuple


def more(kind, case, value):
    """The case as a ``kind``, which has one field more."""
    return kind(*(getattr(case, f.name) for f in fields(case)), value)


def made(dtypes=WIDE, scales=SCALES, layouts=LAYOUTS):
    """How x is made: the memory layout, the size of the noise, the dtype."""
    return st.sampled_from(list(product(layouts, scales, dtypes)))


@st.composite
def entries(draw, make=made(scales=(1.0, 3.0, 10.0, 0.01))):
    shape = draw(st.sampled_from(SHAPES))
    layout, scale, dtype = draw(make)
    return Entries(laid_out(fill(draw, shape, dtype=dtype, scale=scale), layout if shape else "contiguous"))


@st.composite
def networks(draw, kind, make=made(), leading=LEADING, approximate=APPROXIMATE):
    lead, (d, f) = draw(st.sampled_from(leading)), draw(st.sampled_from(WIDTHS))
    layout, scale, dtype = draw(make)
    shapes = [(*lead, d), (f, d), (d, f), *([(f,), (d,)] if kind is Plain else [(f, d)])]
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    x, *rest = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    layout = layout if layout != "expanded" or lead else "strided"
    values = [laid_out((x * scale).to(dtype), layout), *(w.to(dtype) for w in rest)]
    if kind is Gated:
        return Gated(*values)
    form = draw(approximate)
    return Plain(*values, {} if form is None else {"approximate": form})


@st.composite
def sloped(draw, cases):
    case = draw(cases)
    kind = {Entries: SlopedEntries, Plain: SlopedPlain, Gated: SlopedGated}[type(case)]
    return more(kind, case, fill(draw, case.x.shape, dtype=case.x.dtype))


def among(kind, others=(0.0, 3.0, -50.0)):
    """Networks with one position of its own; the others are all alike, and loud at times."""

    def made(case, place, other):
        at = tuple(place % n for n in case.x.shape[:-1])
        x = torch.full_like(case.x, other)
        x[at] = case.x[at]
        return more(PlainAmong if kind is Plain else GatedAmong, replace(case, x=x), at)

    return st.builds(made, networks(kind, leading=LEADING[1:]), PLACES, st.sampled_from(others))


@st.composite
def far_from_zero(draw):
    # float16 has no room for a thousand squared.
    rooms = [(1e3, torch.float32), (1e6, torch.float64), (1e6, torch.float32), (1e3, torch.bfloat16)]
    rooms += [(1e6, torch.bfloat16), (30.0, torch.float64), (30.0, torch.float16), (100.0, torch.float16)]
    size, dtype = draw(st.sampled_from(rooms))
    return Entries(torch.tensor([size, -size, size / 2, -size / 2], dtype=dtype))


def weights(case):
    """The parameters by name, as the contract has them."""
    named = {"w_up.weight": case.w_up, "w_down.weight": case.w_down}
    if isinstance(case, Plain):
        return named | {"w_up.bias": case.b_up, "w_down.bias": case.b_down}
    return named | {"w_gate.weight": case.w_gate}


def made_of(subject, case):
    """The network with its parameters replaced by those of the case."""
    f, d = case.w_up.shape
    plain = isinstance(case, Plain)
    network = subject.FeedForward(d, f, **case.options) if plain else subject.SwiGLU(d, f)
    named_as_due(network, case)
    network = network.to(case.x.dtype)
    network.load_state_dict(weights(case))
    return network


def named_as_due(network, case):
    assert_true(isinstance(network, nn.Module), "it is no torch.nn.Module", got=type(network).__name__)
    found = {name: tuple(p.shape) for name, p in network.named_parameters()}
    due = {name: tuple(w.shape) for name, w in weights(case).items()}
    assert_equal(sorted(found.items()), sorted(due.items()), "the names and shapes of the parameters")
    assert_equal(sorted(network.state_dict()), sorted(due), "the names in the state_dict")


def applied(call, x):
    """The call itself. Whatever is claimed of its result, x must be left as it was."""
    before = x.clone()
    got = call(x)
    untouched({"x": before}, {"x": x})
    return got


# --- what is due ---------------------------------------------------------------------------------


def bent(x, form="none"):
    """GELU in float64 and its derivative, from the definition."""
    x = x.detach().double()
    if form == "tanh":
        c = math.sqrt(2 / math.pi)
        t = (c * (x + 0.044715 * x**3)).tanh()
        return x * (1 + t) / 2, (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    normal = torch.erfc(-x / math.sqrt(2)) / 2
    return x * normal, normal + x * (-x * x / 2).exp() / math.sqrt(2 * math.pi)


def gelu_agrees(got, x, form, want=None):
    # 1 + erf(x) is known to ε and no better where erf(x) is near −1: the error is one of ε·|x|.
    assert_close(got, bent(x, form)[0] if want is None else want, dtype=x.dtype, magnitude=x.double().abs())


class Truth:
    """Either network in float64, from the definition, with what bounds its rounding errors: those of a sum
    are as large as Σ|terms|, and an activation passes them on by its slope at most. A capital is the size of
    what the small letter stands for: U = Σ|terms| of u."""

    def __init__(self, case):
        self.case, self.dtype, self.plain = case, case.x.dtype, isinstance(case, Plain)
        self.x, self.up, self.down = (t.detach().double() for t in (case.x, case.w_up, case.w_down))
        self.u, self.U = self.x @ self.up.T, self.x.abs() @ self.up.abs().T
        if self.plain:
            bias = case.b_down.double()
            self.u, self.U = self.u + case.b_up.double(), self.U + case.b_up.double().abs()
            self.hidden, self.slope = bent(self.u, case.approximate)
            self.H = SLOPE * self.U
        else:
            bias = torch.zeros(len(self.down), dtype=torch.float64)
            self.gate = case.w_gate.double()
            self.z, self.Z = self.x @ self.gate.T, self.x.abs() @ self.gate.abs().T
            open_ = self.z.sigmoid()
            self.silu, self.slope = self.z * open_, open_ * (1 + self.z * (1 - open_))
            self.hidden = self.silu * self.u
            self.H = 2 * SLOPE * self.Z * self.U
        self.out = self.hidden @ self.down.T + bias
        self.size = self.H @ self.down.abs().T + bias.abs()
        self.length, self.steps = sum(self.up.shape), 2 if self.dtype in HALF_TYPES else 4

    def agrees(self, got, at=slice(None), want=None, times=1, name="the result"):
        assert_close(
            got, self.out[at] if want is None else want, dtype=self.dtype, length=self.length,
            steps=self.steps, magnitude=times * self.size[at], name=name,
        )  # fmt: skip

    def gradients_agree(self, network):
        """The gradients of Σ upstream·result for x and for every parameter."""
        upstream = self.case.upstream
        x = self.case.x.detach().clone().requires_grad_()
        named = dict(network.named_parameters())
        found = dict(
            zip(["x", *named], gradients(applied(network, x), [x, *named.values()], upstream), strict=True)
        )
        g = upstream.double()
        above, A = g @ self.down, g.abs() @ self.down.abs()
        if self.plain:
            du, DU = above * self.slope, A * SLOPE * (1 + self.U)
            due = {"x": (du @ self.up, DU @ self.up.abs())}
        else:
            du, DU = above * self.silu, A * SLOPE * self.Z
            dz, DZ = above * self.u * self.slope, A * self.U * SLOPE * (1 + self.Z)
            due = {"x": (du @ self.up + dz @ self.gate, DU @ self.up.abs() + DZ @ self.gate.abs())}
            due["w_gate.weight"] = flat(dz).T @ flat(self.x), flat(DZ).T @ flat(self.x.abs())
        due["w_up.weight"] = flat(du).T @ flat(self.x), flat(DU).T @ flat(self.x.abs())
        due["w_down.weight"] = flat(g).T @ flat(self.hidden), flat(g.abs()).T @ flat(self.H)
        if self.plain:
            due["w_up.bias"], due["w_down.bias"] = (
                (flat(du).sum(0), flat(DU).sum(0)), (flat(g).sum(0), flat(g.abs()).sum(0)),
            )  # fmt: skip
        for name, (want, magnitude) in due.items():
            assert_close(
                found[name], want, dtype=self.dtype, length=self.length + len(flat(g)), steps=self.steps + 2,
                magnitude=magnitude, name=f"the gradient of {name}",
            )  # fmt: skip


def flat(t):
    return t.reshape(-1, t.shape[-1])


# --- part 1: GELU --------------------------------------------------------------------------------


@given(case=entries())
def test_gelu_equals_x_times_the_normal_cdf(subject, case):
    """Without approximate, gelu(x) is x·Φ(x) in float64, keeps shape and dtype, and leaves x alone; it is what
    torch.nn.functional.gelu gives.

    Catches the tanh form, x·σ(1.702x), ReLU, erf without the 1/√2, and float64 cut to float32."""
    got = applied(subject.gelu, case.x)
    gelu_agrees(got, case.x, "none")
    gelu_agrees(got, case.x, "none", want=F.gelu(case.x.double()))
    gelu_agrees(subject.gelu(case.x, approximate="none"), case.x, "none")


@given(case=entries())
def test_the_tanh_form_equals_its_formula(subject, case):
    """With approximate="tanh", gelu(x) is ½x(1 + tanh(√(2/π)(x + 0.044715x³))), and not the exact form.

    Catches approximate ignored, a wrong constant, and a cube that is a square."""
    got = applied(lambda x: subject.gelu(x, approximate="tanh"), case.x)
    gelu_agrees(got, case.x, "tanh")
    gelu_agrees(got, case.x, "tanh", want=F.gelu(case.x.double(), approximate="tanh"))


@given(case=entries(), form=FORMS)
def test_gelu_of_x_less_gelu_of_minus_x_is_x(subject, case, form):
    """gelu(x) − gelu(−x) = x, since Φ(x) + Φ(−x) = 1.

    Catches a missing factor ½, and an activation that is not of the form x times a distribution."""
    here, there = subject.gelu(case.x, approximate=form), subject.gelu(-case.x, approximate=form)
    assert_tensor(here, shape=case.x.shape, dtype=case.x.dtype)
    assert_tensor(there, shape=case.x.shape, dtype=case.x.dtype)
    magnitude = 2 * case.x.double().abs()
    assert_close(here - there, case.x.double(), dtype=case.x.dtype, magnitude=magnitude)
    gelu_agrees(here, case.x, form)


@given(case=far_from_zero(), form=FORMS)
def test_gelu_far_from_zero_is_the_identity_or_zero(subject, case, form):
    """gelu(x) is x for large x and 0 for very negative x, with slopes 1 and 0: never NaN.

    Catches exp(x²) that overflows, tanh from exponentials as ∞/∞, and their gradients."""
    x, dtype = case.x.clone().requires_grad_(), case.x.dtype
    got = subject.gelu(x, approximate=form)
    assert_close(got, case.x.double().clamp(min=0), dtype=dtype, magnitude=case.x.double().abs())
    (slope,) = gradients(got, [x])
    assert_close(slope, (case.x > 0).double(), dtype=dtype, magnitude=1.0, name="the slope")


@given(case=sloped(entries(made(DOUBLE, (1.0, 3.0, 0.01)))), form=FORMS)
def test_gelu_gradient_equals_the_derivative(subject, case, form):
    """The gradient is upstream times Φ(x) + x·φ(x), or times the derivative of the tanh form.

    Catches a gate that is cut off from the graph, and results computed under no_grad."""
    upstream = case.upstream
    x = case.x.detach().clone().requires_grad_()
    (got,) = gradients(subject.gelu(x, approximate=form), [x], upstream)
    size = upstream.abs() * (1 + x.detach().abs()) ** 3
    assert_close(got, upstream * bent(x, form)[1], dtype=x.dtype, magnitude=size, name="the gradient of x")


@given(case=sloped(entries(made(HALF_TYPES, (1.0, 3.0)))), form=FORMS)
def test_half_precision_gelu_equals_its_formula(subject, case, form):
    """bfloat16 and float16 come back in their own dtype, right to the rounding of x, and pass a gradient.

    Catches results left in float32, and copies that cut the graph on the way to float32."""
    upstream = case.upstream
    gelu_agrees(applied(lambda x: subject.gelu(x, approximate=form), case.x), case.x, form)
    x = case.x.detach().clone().requires_grad_()
    (got,) = gradients(subject.gelu(x, approximate=form), [x], upstream)
    size = upstream.double().abs() * (1 + x.detach().double().abs()) ** 2
    want = upstream.double() * bent(x, form)[1]
    assert_close(got, want, dtype=x.dtype, magnitude=size, name="the gradient of x")


@examples(quick=1, full=5)
@given(seed=st.integers(0, 999), form=FORMS, dtype=st.sampled_from(WIDE))
def test_gelu_of_thousands_of_entries_equals_its_formula(subject, seed, form, dtype):
    """Thousands of entries are each given their own value as well.

    Catches what is done block by block and leaves the rest out."""
    x = 3 * torch.randn(3, 700, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    gelu_agrees(applied(lambda x: subject.gelu(x, approximate=form), x), x, form)


@given(case=entries(), form=st.sampled_from(("erf", "sigmoid", "", "Tanh", True, None)))
def test_another_form_is_refused(subject, case, form):
    """ValueError for an approximate that is neither "none" nor "tanh"; the two are taken.

    Catches an else branch that takes every other word for one of the two."""
    for legal in ("none", "tanh"):  # what they give is for other claims to judge
        assert_tensor(subject.gelu(case.x, approximate=legal), shape=case.x.shape, dtype=case.x.dtype)
    refuses(
        ValueError, lambda: subject.gelu(case.x, approximate=form),
        because=f"approximate={form!r} is neither 'none' nor 'tanh'",
    )  # fmt: skip


# --- part 2: FeedForward -------------------------------------------------------------------------


def starts_well(network, case):
    """The parameters of a new network: their names and shapes, float32, and matrices that are random."""
    named_as_due(network, case)
    for name, p in network.named_parameters():
        assert_tensor(p, shape=p.shape, dtype=torch.float32, name=f"the first {name}")
        assert_true(p.requires_grad, f"{name} is not trained")
        assert_true(p.isfinite().all(), f"the first {name} is not finite", got=p)
        if p.ndim == 2:
            alike = len(p.detach().unique(dim=0)) < len(p)
            assert_true(not alike, f"two rows of the first {name} are the same", got=p)


@examples(quick=5, full=20)
@given(case=networks(Plain, made((torch.float32,))))
def test_a_new_feed_forward_has_two_matrices_and_two_biases(subject, case):
    """The parameters are w_up and w_down with a weight (out, in) and a bias each, 2·d_model·d_ff + d_ff +
    d_model numbers in all, and matrices start random.

    Catches transposed weights, a missing bias, and zeros or ones to start with."""
    f, d = case.w_up.shape
    starts_well(subject.FeedForward(d, f), case)


@given(case=networks(Plain))
def test_feed_forward_equals_its_definition(subject, case):
    """The result is gelu(x W_upᵀ + b_up) W_downᵀ + b_down computed in float64, in training and in eval.

    Catches no activation, another one, one behind W_down as well, a bias left out, and a residual that is
    added here already."""
    network = made_of(subject, case)
    Truth(case).agrees(applied(network, case.x))
    Truth(case).agrees(applied(network.eval(), case.x), name="the result in eval")


@examples(quick=1, full=10)
@given(case=networks(Plain, made(layouts=("contiguous",)), ((300,), (2, 70))))
def test_hundreds_of_positions_of_feed_forward_equal_its_definition(subject, case):
    """Hundreds of positions equal the definition as well.

    Catches what is done block by block and leaves the rest out."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))


@given(case=networks(Plain, made(DOUBLE, (1.0, 3.0)), approximate=st.sampled_from(("tanh", "none"))))
def test_feed_forward_hears_approximate(subject, case):
    """FeedForward(…, approximate="tanh") activates with the tanh form, and otherwise with the exact one.

    Catches an argument that is kept and not used."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))
    other = replace(case, options={"approximate": "none" if case.approximate == "tanh" else "tanh"})
    Truth(other).agrees(applied(made_of(subject, other), case.x), name=f"the result with {other.approximate}")
    default = replace(case, options={})
    Truth(default).agrees(applied(made_of(subject, default), case.x), name="the result without approximate")


def position_alone(case, network):
    """A position gives alone what it gives among others, whatever these hold."""
    at, got = case.at, applied(network, case.x)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    Truth(case).agrees(got[at], at=at, name="a position among others")
    alone = replace(case, x=case.x[at])
    Truth(alone).agrees(applied(network, alone.x), name="the same position alone")


@given(case=among(Plain))
def test_feed_forward_works_on_each_position_alone(subject, case):
    """The position ``at`` gives alone what it gives among others, whatever these hold.

    Catches a reshape that mixes positions, and norms or averages over them."""
    position_alone(case, made_of(subject, case))


@given(case=sloped(networks(Plain, made(DOUBLE))))
def test_feed_forward_gradients_equal_the_definition(subject, case):
    """The gradients of x, both matrices and both biases are those of the definition.

    Catches a branch or a parameter that is cut off from the graph."""
    Truth(case).gradients_agree(made_of(subject, case))


@examples(quick=6, full=30)
@given(case=sloped(networks(Plain, made(HALF_TYPES, (1.0,)))))
def test_half_precision_feed_forward_equals_its_definition(subject, case):
    """In bfloat16 and float16, parameters and all, the result and the gradients come back in that dtype.

    Catches results left in float32, and weights converted by a copy that cuts the graph."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))
    Truth(case).gradients_agree(made_of(subject, case))


def misfits_refused(case, network):
    d, dtype = case.x.shape[-1], case.x.dtype
    for shape in ((0, d), (2, 0, d)):
        got = network(torch.zeros(shape, dtype=dtype))
        assert_tensor(got, shape=shape, dtype=dtype)
    for wrong in ((2, d + 1), (d, 1) if d > 1 else (1, 3), (1, 2, 2 * d), ()):
        x = torch.ones(wrong, dtype=dtype)
        refuses(ValueError, lambda x=x: network(x), because=f"x {wrong} does not end in {d} channels")


@examples(quick=5, full=20)
@given(case=networks(Plain))
def test_feed_forward_of_nothing_and_of_misfits(subject, case):
    """No positions in, none out; ValueError for an x that does not end in d_model channels, and for another
    approximate, at the latest when it is called.

    Catches a RuntimeError left to the matrix product, a loop that stacks nothing, and an unknown form that
    is taken for the exact one."""
    misfits_refused(case, made_of(subject, case))
    f, d = case.w_up.shape
    refuses(
        ValueError, lambda: subject.FeedForward(d, f, approximate="erf").to(case.x.dtype)(case.x),
        because="approximate='erf' is neither 'none' nor 'tanh'",
    )  # fmt: skip


def nothing_shared(subject, case, step):
    first, second = made_of(subject, case), made_of(subject, case)
    Truth(case).agrees(applied(second, case.x), name="the result before the parameters change")
    with torch.no_grad():
        for p in second.parameters():
            p.add_(step)
    moved = {n: getattr(case, n) + step for n in vars(case) if n.startswith(("w_", "b_"))}
    Truth(case).agrees(applied(first, case.x), name="the result of the first network")
    Truth(replace(case, **moved)).agrees(applied(second, case.x), name="the result of the second network")


@given(case=networks(Plain), step=st.sampled_from((1.0, -1.0, 0.5)))
def test_two_feed_forwards_share_nothing(subject, case, step):
    """What is done to the parameters of one network leaves another of the same size as it is.

    Catches parameters, or products of them, kept in the class or from the first call."""
    nothing_shared(subject, case, step)


# --- part 3: SwiGLU ------------------------------------------------------------------------------


@examples(quick=5, full=20)
@given(case=networks(Gated, made((torch.float32,))))
def test_a_new_swiglu_has_three_matrices_and_no_bias(subject, case):
    """The parameters are the weights (out, in) of w_gate, w_up and w_down, 3·d_model·d_ff numbers in all, and
    start random.

    Catches biases, one fused matrix, transposed weights, and zeros or ones to start with."""
    f, d = case.w_up.shape
    starts_well(subject.SwiGLU(d, f), case)


@given(case=networks(Gated))
def test_swiglu_equals_its_definition(subject, case):
    """The result is (silu(x W_gateᵀ) ∘ (x W_upᵀ)) W_downᵀ computed in float64, in training and in eval.

    Catches σ alone as the gate, GELU, SiLU on both factors or behind the product, and a sum of the two."""
    network = made_of(subject, case)
    Truth(case).agrees(applied(network, case.x))
    Truth(case).agrees(applied(network.eval(), case.x), name="the result in eval")


@examples(quick=1, full=10)
@given(case=networks(Gated, made(layouts=("contiguous",)), ((300,), (2, 70))))
def test_hundreds_of_positions_of_swiglu_equal_its_definition(subject, case):
    """Hundreds of positions equal the definition as well.

    Catches what is done block by block and leaves the rest out."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))


@given(case=networks(Gated, made(scales=(1.0, 3.0))), c=st.sampled_from((2.0, -1.0, 0.0)))
def test_swiglu_is_linear_in_w_up_and_not_in_w_gate(subject, case, c):
    """c·W_up gives c times the result: only the gate goes through SiLU. With W_gate = 0 the result is 0, for
    silu(0) = 0.

    Catches gate and up exchanged, SiLU on both, and a sigmoid for a gate, which is half open at 0."""
    truth, got = Truth(case), applied(made_of(subject, case), case.x)
    truth.agrees(got)
    scaled = applied(made_of(subject, replace(case, w_up=case.w_up * c)), case.x)
    truth.agrees(scaled, want=c * got, times=3, name=f"the result with {c:g} · W_up")
    scaled = replace(case, w_gate=case.w_gate * c)
    Truth(scaled).agrees(applied(made_of(subject, scaled), case.x), name=f"the result with {c:g} · W_gate")


@given(case=among(Gated))
def test_swiglu_works_on_each_position_alone(subject, case):
    """The position ``at`` gives alone what it gives among others, whatever these hold.

    Catches a reshape that mixes positions, and gates shared between them."""
    position_alone(case, made_of(subject, case))


def opened(case):
    """Weights of the gate that are at least 1."""
    return replace(case, w_gate=torch.where(case.w_gate < 0, case.w_gate - 1, case.w_gate + 1))


@given(case=sloped(networks(Gated, made(WIDE, (100.0, 300.0))).map(opened)))
def test_wide_open_and_shut_gates_stay_finite(subject, case):
    """Gates of hundreds, of either sign, give finite results, and finite gradients too.

    Catches σ(z) as 1/(1 + exp(−z)) and as exp(z)/(1 + exp(z)): ∞/∞ in one pass or the other."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))
    Truth(case).gradients_agree(made_of(subject, case))


@given(case=sloped(networks(Gated, made(DOUBLE))))
def test_swiglu_gradients_equal_the_definition(subject, case):
    """The gradients of x and of the three matrices are those of the definition.

    Catches a gate that is cut off from the graph."""
    Truth(case).gradients_agree(made_of(subject, case))


@examples(quick=6, full=30)
@given(case=sloped(networks(Gated, made(HALF_TYPES, (1.0,)))))
def test_half_precision_swiglu_equals_its_definition(subject, case):
    """In bfloat16 and float16, parameters and all, the result and the gradients come back in that dtype.

    Catches results left in float32, and weights converted by a copy that cuts the graph."""
    Truth(case).agrees(applied(made_of(subject, case), case.x))
    Truth(case).gradients_agree(made_of(subject, case))


@examples(quick=1, full=6)
@given(seed=st.integers(0, 999), dtype=st.sampled_from(HALF_TYPES))
def test_long_half_precision_rows_sum_in_float32(subject, seed, dtype):
    """With 2,050 channels in and 2,050 hidden ones the result is still right to the last stored bits.

    Catches running sums in bf16, which stop growing at 256 terms, and in fp16, which stall at 2,048."""
    noise = torch.rand(3, 2050, generator=torch.Generator().manual_seed(seed))
    x, gate = noise[:1].to(dtype), (noise[1:2] / 1024).to(dtype)
    narrow = Gated(x, (1 + noise[2:]).to(dtype) / 1024, torch.ones(2050, 1).to(dtype), gate)
    Truth(narrow).agrees(applied(made_of(subject, narrow), x), name="the result of one hidden channel")
    wide = Gated(x[:, :1], noise[1:2].T.to(dtype), noise[2:].to(dtype), torch.ones(2050, 1).to(dtype))
    Truth(wide).agrees(applied(made_of(subject, wide), wide.x), name="the result of 2,050 hidden channels")


@examples(quick=5, full=20)
@given(case=networks(Gated), step=st.sampled_from((1.0, -1.0, 0.5)))
def test_swiglu_of_nothing_of_misfits_and_of_two(subject, case, step):
    """No positions in, none out; ValueError for an x that does not end in d_model channels; two networks
    share nothing.

    Catches a RuntimeError left to the matrix product, and parameters kept in the class."""
    misfits_refused(case, made_of(subject, case))
    nothing_shared(subject, case, step)


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    def network(kind, dtype=torch.float64, **options):
        made = getattr(subject, kind)(3, 4, **options).to(dtype)
        with torch.no_grad():
            for p in made.parameters():
                p.zero_()  # a bias of SwiGLU is a matter of names, and nothing else
            for n, p in enumerate(due(kind, made)):
                p.copy_(waves(*p.shape, step=0.7 + n) + 0.2 * n)
        return made.eval()

    def due(kind, made):
        named = sorted(made.named_parameters())
        return [p for n, p in named if kind == "FeedForward" or not n.endswith("bias")]

    def run(kind, x, **options):
        return lambda: network(kind, x.dtype, **options)(x)

    def slopes(kind, x):
        def call():
            made, leaf = network(kind, x.dtype), x.clone().requires_grad_()
            inputs = [leaf, *due(kind, made)]
            return gradients(made(leaf), inputs, waves(*x.shape, step=3.1).to(x.dtype))

        return call

    def slope(x, **options):
        def call():
            leaf = x.clone().requires_grad_()
            return gradients(subject.gelu(leaf, **options), [leaf])[0]

        return call

    def afterwards(call):
        def probe():
            held = waves(2, 3)
            call(held)
            return held

        return probe

    def names(kind):
        def call():
            made = getattr(subject, kind)(3, 4)
            drawn = [p.detach() for _, p in sorted(made.named_parameters()) if p.ndim == 2]
            start = [len(p.unique(dim=0)) == len(p) for p in drawn]
            shapes = [(n, list(p.shape)) for n, p in sorted(made.named_parameters())]
            biases = [n for n, _ in shapes if n.endswith("bias")] if kind == "SwiGLU" else []
            return [[pair for pair in shapes if pair[0] not in biases], bool(biases), start]

        return call

    def twice_in_training(kind):
        """Is a second call like the first?"""

        def call():
            made = network(kind).train()
            return torch.equal(made(waves(200, 3)), made(waves(200, 3)))

        return call

    def refusal(kind, x):
        def call():
            try:
                return network(kind)(x)
            except ValueError:
                return "ValueError"

        return call

    def shared(kind):
        def call():
            first, second = network(kind, torch.float32), network(kind, torch.float32)
            with torch.no_grad():
                for p in first.parameters():
                    p.add_(1)
            return second(waves(2, 3).float())

        return call

    x, wide, far = waves(2, 3), 3 * waves(4, 5), torch.tensor([300.0, -300.0, 40.0, -40.0])
    found = {
        "gelu": lambda: subject.gelu(wide),
        "gelu, named": lambda: subject.gelu(wide, approximate="none"),
        "gelu, tanh": lambda: subject.gelu(wide, approximate="tanh"),
        "gelu, far": lambda: subject.gelu(far),
        "gelu, tanh, far": lambda: subject.gelu(far, approximate="tanh"),
        "gelu, gradient": slope(wide),
        "gelu, tanh, gradient": slope(wide, approximate="tanh"),
        "gelu, tanh, gradient far": slope(far, approximate="tanh"),
        "gelu, bf16": lambda: subject.gelu(wide.bfloat16()),
        "gelu, bf16 gradient": slope(wide.bfloat16()),
        "gelu, sigmoid": lambda: subject.gelu(wide, approximate="sigmoid"),
        "gelu, x afterwards": afterwards(subject.gelu),
        "gelu, hundreds": lambda: subject.gelu(waves(3, 100))[-1],
        "FeedForward, another form": run("FeedForward", x, approximate="erf"),
        "tanh": run("FeedForward", x, approximate="tanh"),
    }
    for kind in ("FeedForward", "SwiGLU"):
        found |= {
            f"{kind}": run(kind, x),
            f"{kind}, one position": run(kind, x[0]),
            f"{kind}, three dimensions": run(kind, waves(2, 2, 3)),
            f"{kind}, hundreds of positions": lambda kind=kind: run(kind, waves(100, 3))()[64:],
            f"{kind}, large": run(kind, 5000 * x),
            f"{kind}, gradients": slopes(kind, x),
            f"{kind}, gradients of large": slopes(kind, 5000 * x),
            f"{kind}, bf16": run(kind, x.bfloat16()),
            f"{kind}, bf16 gradients": slopes(kind, x.bfloat16()),
            f"{kind}, names": names(kind),
            f"{kind}, twice in training": twice_in_training(kind),
            f"{kind}, shared": shared(kind),
            f"{kind}, four channels": refusal(kind, waves(2, 4)),
            f"{kind}, nothing": run(kind, waves(0, 3)),
        }
    return found
