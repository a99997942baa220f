"""The laws of AdamW: the first step is lr·sign(g), decay never meets the gradient, a parameter without
a gradient is not there, nothing is shared; a run taken up from its snapshot is the run that never
stopped; and the same in a fixed number of operations.

Most claims give one or more parameters a script of gradients (``Run``) and compare every parameter with
``Truth``, the rule in float64, after every step."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dojo.close import (
    Mismatch,
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    epsilon,
    refuses,
    untouched,
)
from dojo.draw import LAYOUTS, distinct, examples, fill, laid_out

DTYPES = st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float64))
WIDE = st.sampled_from((torch.float64, torch.float32))
DOUBLE = st.just(torch.float64)
DEFAULTS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from((0.1, 0.5, 0.02)),
        "betas": st.sampled_from(((0.5, 0.75), (0.8, 0.9), (0.0, 0.9), (0.9, 0.25))),
        "eps": st.sampled_from((0.5, 1e-3, 2.0)),
        "weight_decay": st.sampled_from((0.5, 0.0, 0.1)),
    },
)
DECAYING = st.fixed_dictionaries(
    {"lr": st.sampled_from((0.5, 0.1, 1e-3)), "weight_decay": st.sampled_from((0.5, 0.1, 1.0))},
    optional={
        "betas": st.sampled_from(((0.5, 0.75), (0.8, 0.9), (0.0, 0.9))),
        "eps": st.sampled_from((0.5, 1e-3)),
    },
)
EPS_GIVEN = st.fixed_dictionaries(
    {"eps": st.sampled_from((0.5, 1e-3, 2.0)), "betas": st.sampled_from(((0.5, 0.75), (0.9, 0.999)))},
    optional={"lr": st.sampled_from((0.1, 0.5, 0.02)), "weight_decay": st.sampled_from((0.5, 0.0, 0.1))},
)
STEPS = 6
"""Intermediates in one step for one parameter, each of which may be rounded to its dtype."""


@dataclass
class Run:
    """Parameters, their gradients step by step, and the hyperparameters that are not left to default.

    With ``reused`` the gradients of all steps are written into the same tensors, as backward does after
    a zero_grad that sets them to zero; else each step has new ones."""

    params: list[Tensor]
    grads: list[list[Tensor | None]]
    options: dict[str, Any]
    layout: str = "contiguous"
    reused: bool = False

    def leaves(self):
        return [laid_out(x.clone(), self.layout).detach().requires_grad_() for x in self.params]


@st.composite
def runs(draw, *, dtypes=DTYPES, gaps=True, least=1, most=4, count=(1, 4), options=OPTIONS, mixed=False):
    """One to four parameters, the first two of one shape, and a script of up to four steps. Some gradients
    are None if ``gaps``; the second parameter has a dtype of its own if ``mixed``."""
    a, b = distinct(draw, 2, high=4)
    shapes = [(a, b), (a, b), (b,), ()][: draw(st.integers(*count))]
    steps = draw(st.integers(least, most))
    kinds = [draw(dtypes)] * len(shapes)
    if mixed and len(kinds) > 1:
        kinds[1] = draw(dtypes)
    sizes = [math.prod(shape) for shape in shapes]
    scale = draw(st.sampled_from((1.0, 1e-3, 300.0)))
    start = fill(draw, (sum(sizes),), dtype=torch.float64).split(sizes)
    slopes = fill(draw, (steps, sum(sizes)), dtype=torch.float64, scale=scale).split(sizes, dim=1)
    layout, grad_layout = draw(st.sampled_from(("contiguous", "transposed", "strided"))), draw(LAYOUTS)
    absent = draw(st.integers(0, 2**16 - 1)) & draw(st.integers(0, 2**16 - 1)) if gaps else 0
    script = []
    for s in range(steps):
        row = [
            laid_out(g[s].reshape(shape).to(kind), grad_layout)
            for g, shape, kind in zip(slopes, shapes, kinds, strict=True)
        ]
        script.append([None if absent >> (4 * s + i) & 1 else g for i, g in enumerate(row)])
    params = [x.reshape(shape).to(kind) for x, shape, kind in zip(start, shapes, kinds, strict=True)]
    return Run(params, script, draw(options), layout, draw(st.booleans()))


def steep(case):
    """The same, where no gradient is smaller than 0.001, and zeros are 1."""
    return replace(case, grads=[[g + g.sign() * 1e-3 + (g == 0) for g in grads] for grads in case.grads])


def flat(case):
    """The same with gradients of 0."""
    return replace(case, grads=[[torch.zeros_like(g) for g in grads] for grads in case.grads])


def as_small_as_eps(case):
    """The same with gradients of one to two times eps."""
    eps = case.options["eps"]
    near = [[g.sign() * eps * (1 + g.abs() % 1) + (g == 0) * eps for g in grads] for grads in case.grads]
    return replace(case, grads=near)


@st.composite
def gapped(draw):
    """Four steps or more, in one or two of which the parameter at the second, a place, has no gradient."""
    case, place, when = draw(runs(gaps=False, least=3)), draw(st.integers(0, 3)), draw(st.integers(0, 2))
    place %= len(case.params)
    script = [list(grads) for grads in case.grads]
    for at in range(when, 3) if when < 2 else (1,):
        script[at][place] = None
    return replace(case, grads=[*script, case.grads[0]]), place


class Truth:
    """The rule in float64, and ``size``: what the rounding errors of a parameter are proportional to."""

    def __init__(self, params, options):
        self.hyper = DEFAULTS | options
        self.dtypes = [x.dtype for x in params]
        self.p = [x.double().clone() for x in params]
        self.m, self.v, self.size = ([torch.zeros_like(x) for x in self.p] for _ in range(3))
        self.m_size, self.v_size = ([torch.zeros_like(x) for x in self.p] for _ in range(2))
        self.t = [0] * len(params)
        self.taken = 0

    def step(self, grads):
        lr, (beta1, beta2) = self.hyper["lr"], self.hyper["betas"]
        self.taken += 1
        for i, g in enumerate(grads):
            if g is None:
                continue
            g = g.double()
            self.t[i] += 1
            self.m[i], self.m_size[i] = averaged(self.m[i], self.m_size[i], g, beta1)
            self.v[i], self.v_size[i] = averaged(self.v[i], self.v_size[i], g * g, beta2)
            c1, c2 = 1 - beta1 ** self.t[i], 1 - beta2 ** self.t[i]
            root = (self.v[i] / c2).sqrt() + self.hyper["eps"]
            before = self.p[i].abs()
            self.p[i] = self.p[i] * (1 - lr * self.hyper["weight_decay"]) - lr * (self.m[i] / c1) / root
            # 1 − βᵗ cancels; for all but float64 it may be computed in float32.
            kept, dtype = (
                (torch.float64 if self.dtypes[i] == torch.float64 else torch.float32),
                self.dtypes[i],
            )
            cancelled = 1 + (1 / c1 + 1 / c2) * epsilon(kept) / epsilon(dtype)
            self.size[i] = self.size[i] + before + lr * (self.m_size[i] / c1) / root * cancelled

    def compare(self, leaves, what=""):
        """The parameters as they are now, with the rule's."""
        for i, (leaf, p, dtype) in enumerate(zip(leaves, self.p, self.dtypes, strict=True)):
            name = f"parameter {i} after step {self.taken}{what}"
            assert_close(
                leaf, p, dtype=dtype, magnitude=self.size[i], length=self.taken, steps=STEPS, name=name
            )


def averaged(old, size, new, beta):
    """β·old + (1 − β)·new, and the sizes that rounding errors go with, added up over the steps; it may be
    computed as old + (1 − β)·(new − old), so that the old one counts in full."""
    mean = beta * old + (1 - beta) * new
    return mean, beta * size + (1 - beta) * (new.abs() + old.abs()) + mean.abs()


def give(leaves, grads, reused=False):
    """Put the gradients where backward would."""
    for leaf, g in zip(leaves, grads, strict=True):
        if g is not None and reused and leaf.grad is not None:
            leaf.grad.copy_(g)
        elif g is not None and reused:
            leaf.grad = g.clone()
        else:
            leaf.grad = g


def follow(optimiser, leaves, truth, script, *, reused=False, what=""):
    """Take the steps, and compare after each."""
    for grads in script:
        give(leaves, grads, reused)
        optimiser.step()
        truth.step(grads)
        truth.compare(leaves, what)


def trained(subject, case, **more):
    """An optimiser that has gone through the whole script, its parameters, and the rule's state."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options, **more)
    follow(optimiser, leaves, truth, case.grads, reused=case.reused)
    return optimiser, leaves, truth


def assert_snapshot(saved, truth, what="state_dict()"):
    """The dict has the keys that are pinned, and the rule's hyperparameters and moments as values."""
    assert_true(isinstance(saved, dict), f"{what} is not a dict", got=type(saved).__name__)
    assert_equal(set(saved), {*DEFAULTS, "state"}, f"the keys of {what}")
    for key in DEFAULTS:
        want = truth.hyper[key]
        got = tuple(saved[key]) if key == "betas" else saved[key]
        assert_equal(got, want, f"{key} in {what}")
    assert_equal(
        set(saved["state"]), {i for i, t in enumerate(truth.t) if t}, f"the parameters with a state in {what}"
    )
    for i, state in saved["state"].items():
        assert_equal(set(state), {"step", "exp_avg", "exp_avg_sq"}, f"the keys of state {i} in {what}")
        assert_true(type(state["step"]) is int, f"step of state {i} is not an int", got=state["step"])
        assert_equal(state["step"], truth.t[i], f"step of state {i} in {what}")
        moments = {"exp_avg": (truth.m[i], truth.m_size[i]), "exp_avg_sq": (truth.v[i], truth.v_size[i])}
        for key, (want, size) in moments.items():
            got, name, dtype = state[key], f"{key} of state {i} in {what}", truth.dtypes[i]
            assert_true(isinstance(got, Tensor), f"{name} is not a tensor", got=got)
            assert_true(not got.requires_grad, f"{name} hangs on an autograd graph", got=got)
            # A moment of a bfloat16 parameter may be kept wider than the parameter.
            kept = got.dtype if dtype == torch.bfloat16 and got.dtype.is_floating_point else dtype
            assert_tensor(got, shape=want.shape, dtype=kept, name=name)
            close = (got.double().to(dtype), want)
            assert_close(*close, dtype=dtype, magnitude=size, length=truth.t[i], steps=STEPS, name=name)


# --- part 1: the loop ----------------------------------------------------------------------------


@examples(quick=3, full=30)
@given(case=runs(gaps=False), seed=st.integers(0, 3))
def test_parameters_change_in_place_and_gradients_do_not(subject, case, seed):
    """A view of a parameter taken before the step shows its new values, right ones; its gradient, dtype, and
    place in autograd are as before.

    Catches p = p − …, p.data = …, decay added into p.grad, and gradients squared in place."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    views = [leaf.detach() for leaf in leaves]
    optimiser = subject.AdamW(leaves, **case.options)
    for grads in case.grads:
        give(leaves, grads, case.reused)
        before = [leaf.grad.clone() for leaf in leaves]
        optimiser.step()
        truth.step(grads)
        truth.compare(views, ", seen through a view")
        for i, (leaf, was) in enumerate(zip(leaves, before, strict=True)):
            assert_true(leaf.grad is not None, f"the gradient of parameter {i} is gone after the step")
            untouched({f"gradient of parameter {i}": was}, {f"gradient of parameter {i}": leaf.grad})
            assert_true(leaf.is_leaf and leaf.requires_grad, f"parameter {i} is no leaf of autograd any more")


@given(
    case=runs(gaps=False, most=1, dtypes=WIDE, count=(1, 1)).map(steep), lr=st.sampled_from((0.1, 0.01, 2.0))
)
def test_the_first_step_is_lr_in_each_weight(subject, case, lr):
    """Without decay the first step moves each weight by lr against the sign of its gradient, however large
    or small that is.

    Both corrected moments are then those of g alone: m̂ = g and √v̂ = |g|. Catches a missing bias
    correction, one that counts from 0 or 2, m without its factor 1 − β₁, and a missing root."""
    options = {k: v for k, v in case.options.items() if k == "betas"} | {"lr": lr, "weight_decay": 0.0}
    options["eps"] = 1e-12
    grads = case.grads[0]
    leaves, truth = case.leaves(), Truth(case.params, options)
    optimiser = subject.AdamW(leaves, **options)
    give(leaves, grads)
    optimiser.step()
    truth.step(grads)
    for i, (leaf, start, g) in enumerate(zip(leaves, case.params, grads, strict=True)):
        want = start.double() - lr * g.double().sign()
        size = truth.size[i] + lr * 1e-9 / epsilon(start.dtype)  # ε is 1e-12 of at least 1e-3
        assert_close(leaf, want, dtype=start.dtype, magnitude=size, steps=STEPS, name=f"parameter {i}")


@given(case=runs(gaps=False, dtypes=WIDE, least=2, options=DECAYING).map(flat))
def test_decay_is_decoupled_from_the_gradient(subject, case):
    """Zero gradients leave only the decay, a factor 1 − lr·weight_decay a step; the moments stay zero.

    Catches L2: a decay that is added to the gradient is divided by its own root, and takes lr off every
    weight. Also a decay that is not multiplied by lr, and one that is forgotten."""
    lr, decay = case.options["lr"], case.options["weight_decay"]
    leaves = case.leaves()
    optimiser = subject.AdamW(leaves, **case.options)
    for taken, grads in enumerate(case.grads, 1):
        give(leaves, grads, case.reused)
        optimiser.step()
        for i, (leaf, start) in enumerate(zip(leaves, case.params, strict=True)):
            want = start.double() * (1 - lr * decay) ** taken
            size = start.double().abs() * taken
            name = f"parameter {i} after {taken} step{'s' * (taken > 1)} with gradient 0"
            assert_close(leaf, want, dtype=start.dtype, magnitude=size, name=name)


@examples(quick=3, full=20)
@given(
    weight=st.sampled_from((1.0, 2.0, -4.0, 0.5)),
    gradient=st.sampled_from((1.0, -1.0, 4.0, -0.5)),
    lr=st.sampled_from((0.5, 0.25)),
    weight_decay=st.sampled_from((0.5, 1.0, 0.25)),
    steps=st.integers(1, 3),
)
def test_decay_comes_before_the_update(subject, weight, gradient, lr, weight_decay, steps):
    """With the same gradient in every step, each step takes a weight w to w·(1 − lr·weight_decay) − lr·sign(g):
    the decay shrinks the weight as it was, and not the update.

    Both corrected moments are then those of g alone, so that the update is lr·sign(g). Catches a decay after
    the update, which shrinks that as well, and one whose rate is corrected along with m."""
    start = torch.tensor([weight], dtype=torch.float64)
    leaf, truth = start.clone().requires_grad_(), Truth([start], {"lr": lr, "weight_decay": weight_decay})
    optimiser = subject.AdamW([leaf], lr=lr, weight_decay=weight_decay)
    want = start
    for taken in range(1, steps + 1):
        give([leaf], [torch.full_like(start, gradient)])
        optimiser.step()
        truth.step([torch.full_like(start, gradient)])
        want = want * (1 - lr * weight_decay) - lr * math.copysign(1.0, gradient)
        size = truth.size[0] + lr * 1e-5 / epsilon(torch.float64)  # what ε takes off is not the point
        name = f"the weight after {taken} step{'s' * (taken > 1)}"
        assert_close(leaf, want, dtype=leaf.dtype, magnitude=size, length=taken, steps=STEPS, name=name)


@examples(quick=3, full=30)
@given(case_and_place=gapped())
def test_a_parameter_without_a_gradient_is_left_out(subject, case_and_place):
    """While its gradient is None a parameter keeps its value bit for bit, its moments, and its number of
    steps; the others go on.

    Catches None taken for zeros (momentum and decay move the weight), decay of every parameter, one step
    counter for all, and a counter that goes on without the parameter."""
    case, place = case_and_place
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options)
    for grads in case.grads:
        give(leaves, grads)
        before = leaves[place].detach().clone()
        optimiser.step()
        if grads[place] is None:
            assert_equal(leaves[place].detach(), before, f"parameter {place}, which has no gradient,")
        truth.step(grads)
        truth.compare(leaves)


@examples(quick=3, full=30)
@given(case=runs(count=(2, 4)))
def test_parameters_do_not_share_state(subject, case):
    """Several parameters, the first two of one shape, move as each would alone.

    Catches moments that are kept by shape, or once for all, and a counter that ticks once a parameter."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    follow(subject.AdamW(leaves, **case.options), leaves, truth, case.grads, reused=case.reused)


@examples(quick=3, full=20)
@given(case=runs(least=2, dtypes=WIDE))
def test_optimisers_do_not_share_state(subject, case):
    """A second optimiser starts afresh, over the same parameters too, whatever the first one has done, and
    the first goes on undisturbed.

    Catches state in the class, in a default argument, in the module, or on the parameters themselves."""
    first, leaves, truth = trained(subject, case)
    other, fresh = case.leaves(), Truth(case.params, DEFAULTS)
    follow(subject.AdamW(other), other, fresh, case.grads, what=" of a second optimiser")
    follow(first, leaves, truth, case.grads, what=" of the first optimiser")
    values = [leaf.detach().clone() for leaf in leaves]
    again, fresh = subject.AdamW(leaves, **case.options), Truth(values, case.options)
    what = " of another optimiser over the same parameters"
    follow(again, leaves, fresh, case.grads, what=what)


@examples(quick=3, full=30)
@given(case=runs(gaps=False, count=(1, 1)), given_as=st.sampled_from((list, tuple, iter)))
def test_every_step_equals_the_definition(subject, case, given_as):
    """After every step each parameter equals the rule computed in float64, for any hyperparameters, dtype,
    memory layout, and iterable of parameters.

    Catches betas in the wrong order, the square of the mean taken for the mean of the squares, and a
    hyperparameter that is not used, or has another default."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(given_as(leaves), **case.options)
    follow(optimiser, leaves, truth, case.grads, reused=case.reused)


@examples(quick=3, full=30)
@given(case=runs(gaps=False, dtypes=DOUBLE, least=2, count=(1, 1), options=EPS_GIVEN).map(as_small_as_eps))
def test_eps_is_added_to_the_corrected_root(subject, case):
    """Where the gradient is of the size of eps, the denominator is √(v / (1 − β₂ᵗ)) + eps.

    Catches √(v̂ + eps), eps added before the correction, eps² and an eps that is ignored: all of them agree
    where gradients are large."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    follow(subject.AdamW(leaves, **case.options), leaves, truth, case.grads)


@examples(quick=1, full=6)
@given(seed=st.integers(0, 99), dtype=WIDE, betas=st.sampled_from(((0.9, 0.999), (0.9, 0.95))))
def test_many_steps_equal_the_definition(subject, seed, dtype, betas):
    """Also after sixty steps, with gradients that are large at first and small later, the parameters are
    the rule's.

    Catches a maximum kept in place of the moving average, and a correction that wears off early or late."""
    noise = torch.randn(61, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    script = [[g / (1 + i)] for i, g in enumerate(noise[1:])]
    leaf, truth = noise[0].clone().requires_grad_(), Truth([noise[0]], {"betas": betas})
    optimiser = subject.AdamW([leaf], betas=betas)
    for number, grads in enumerate(script, 1):
        give([leaf], grads)
        optimiser.step()
        truth.step(grads)
        if number % 20 == 0:
            truth.compare([leaf])


SHAPES = ((300,), (5, 4, 3, 6), (0,), (2, 0, 3), (300_001,), (1, 1, 70), (13, 9))


@examples(quick=2, full=6)
@given(seed=st.integers(0, 99), first=st.integers(0, 6))
def test_tensors_may_be_large_or_empty(subject, seed, first):
    """Parameters of no element, of 300,001, and of four dimensions are moved to their last element.

    Catches what is done piece by piece and stops short, and what is told by the number of dimensions."""
    large_or_empty(subject, seed, (SHAPES[first], SHAPES[(first + 3) % 7], SHAPES[(first + 4) % 7]))


def large_or_empty(subject, seed, shapes, **more):
    # One step where there is a large one, for the sake of those who walk in a loop of their own.
    noise, steps = torch.Generator().manual_seed(seed), 1 if (300_001,) in shapes else 2
    start, *script = (
        [torch.randn(s, generator=noise, dtype=torch.float64) for s in shapes] for _ in range(1 + steps)
    )
    leaves, truth = (
        [x.clone().requires_grad_() for x in start],
        Truth(start, {"weight_decay": 0.5, "lr": 0.1}),
    )
    follow(subject.AdamW(leaves, lr=0.1, weight_decay=0.5, **more), leaves, truth, script)


@examples(quick=3, full=10)
@given(case=runs(gaps=False, dtypes=WIDE, options=st.just({"lr": 0.1, "weight_decay": 0.5})))
def test_it_agrees_with_torch(subject, case):
    """Step by step the parameters are those of torch's own AdamW.

    It is the fused kernel that is asked here; it computes what torch.optim.AdamW does by default. The
    definition above is thus the one that PyTorch's users rely on."""
    leaves, theirs = case.leaves(), [x.clone() for x in case.params]
    truth, optimiser = Truth(case.params, case.options), subject.AdamW(leaves, **case.options)
    m, v = ([torch.zeros_like(x) for x in theirs] for _ in range(2))
    counts = [torch.tensor(0.0) for _ in theirs]
    for grads in case.grads:
        give(leaves, grads, case.reused)
        optimiser.step()
        truth.step(grads)
        for count in counts:
            count += 1
        torch._fused_adamw_(
            theirs, [g.contiguous() for g in grads], m, v, [], counts, lr=0.1, beta1=0.9, beta2=0.999,
            weight_decay=0.5, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        for i, (leaf, want) in enumerate(zip(leaves, theirs, strict=True)):
            # Twice the tolerance: torch rounds too.
            size, name = truth.size[i] * 2, f"parameter {i} after step {truth.taken}"
            assert_close(
                leaf, want, dtype=want.dtype, magnitude=size, length=truth.taken, steps=STEPS, name=name
            )


@examples(quick=3, full=30)
@given(case=runs(gaps=False, dtypes=WIDE, least=2, most=3), later=OPTIONS)
def test_hyperparameters_count_from_the_next_step_on(subject, case, later):
    """Assigning to lr, betas, eps or weight_decay between two steps, as a schedule does, takes effect with
    the next step; the moments go on.

    Catches factors computed once in the constructor, and powers of β that are multiplied up step by step."""
    rescheduled(subject, case, later)


def rescheduled(subject, case, later, **more):
    later = {"lr": 0.3} | later
    optimiser, leaves, truth = trained(subject, case, **more)
    for key, value in later.items():
        setattr(optimiser, key, value)
    truth.hyper = truth.hyper | later
    follow(optimiser, leaves, truth, case.grads, reused=case.reused, what=f", with {later} from then on")


@examples(quick=3, full=30)
@given(case=runs(dtypes=WIDE, gaps=False), absent=st.booleans())
def test_zero_grad_empties_every_gradient(subject, case, absent):
    """After zero_grad each gradient is None or zeros, no parameter has moved, and backward fills in the new
    gradient alone.

    Catches a zero_grad that does nothing, forgets some parameters, or multiplies an infinite gradient by 0."""
    # Gradients in memory of their own, as backward makes them, which can be set to zero in place.
    optimiser, leaves, truth = trained(subject, replace(case, reused=True))
    cleared(optimiser, leaves, truth, case, absent)


def cleared(optimiser, leaves, truth, case, absent):
    if absent:
        leaves[0].grad = None
    leaves[-1].grad.fill_(math.inf) if leaves[-1].grad is not None else None
    optimiser.zero_grad()
    for i, leaf in enumerate(leaves):
        empty = leaf.grad is None or not bool(leaf.grad.any())
        assert_true(empty, f"parameter {i} still has a gradient", expected="None or zeros", got=leaf.grad)
    truth.compare(leaves, " and zero_grad")
    sum((leaf * (i + 2)).sum() for i, leaf in enumerate(leaves)).backward()
    for i, leaf in enumerate(leaves):
        want = torch.full_like(case.params[i], i + 2)
        assert_equal(leaf.grad, want, f"the gradient of parameter {i} after zero_grad and backward")


@examples(quick=3, full=30)
@given(case=runs(gaps=False, dtypes=WIDE, least=2, most=3))
def test_no_step_is_recorded(subject, case):
    """Where the gradients themselves hang on a graph (create_graph), parameters and moments do not; and
    autograd is on or off after the step as it was before.

    Catches a step without no_grad, whose moments keep the graphs of all steps alive, a no_grad that is
    never left, and autograd switched on where it was off."""
    unrecorded(subject, case)


def unrecorded(subject, case, **more):
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options, **more)
    for number, grads in enumerate(case.grads):
        give(leaves, [g.clone().requires_grad_() * 1 for g in grads])
        with torch.set_grad_enabled(number != 1):
            optimiser.step()
            now = torch.is_grad_enabled()
        truth.step(grads)
        switch = ("off", "on")
        assert_true(
            now == (number != 1),
            f"autograd was {switch[number != 1]} before step {number + 1}, and is {switch[now]} after it",
        )
        for i, leaf in enumerate(leaves):
            assert_true(leaf.is_leaf and leaf.requires_grad, f"parameter {i} is no leaf of autograd any more")
        truth.compare(leaves)
        assert_snapshot(optimiser.state_dict(), truth)


@examples(quick=3, full=30)
@given(case=runs(dtypes=DOUBLE))
def test_the_snapshot_holds_what_is_pinned(subject, case):
    """state_dict() has the hyperparameters and, for each parameter that has ever had a gradient, its number
    of steps and its two moments, uncorrected.

    Catches moments stored after correction, the root in place of the second moment, states for parameters
    that have none, and numbers kept as tensors."""
    optimiser, _, truth = trained(subject, case)
    assert_snapshot(optimiser.state_dict(), truth)


@examples(quick=3, full=30)
@given(case=runs(least=2), cut=st.integers(0, 3), before=st.booleans(), other=OPTIONS)
def test_a_resumed_run_equals_one_that_never_stopped(subject, case, cut, before, other):
    """A snapshot loaded into an optimiser with other hyperparameters, and perhaps a past of its own, goes on
    as the one that it was taken from.

    Catches a step count that starts again, hyperparameters that are not taken over, and an old state that
    survives for a parameter which has none in the snapshot."""
    cut = min(cut, len(case.grads) - 1)
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options)
    follow(optimiser, leaves, truth, case.grads[:cut], reused=case.reused)
    saved = copy.deepcopy(optimiser.state_dict())  # as from a file
    restored = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    resumed = subject.AdamW(restored, **({"lr": 0.3, "betas": (0.7, 0.8)} | other))
    if before:
        values = [leaf.detach().clone() for leaf in restored]
        give(restored, [torch.ones_like(x) for x in values])
        resumed.step()
        with torch.no_grad():
            for leaf, value in zip(restored, values, strict=True):
                leaf.copy_(value)
    resumed.load_state_dict(saved)
    assert_snapshot(resumed.state_dict(), truth, "state_dict() after load_state_dict()")
    for leaf in restored:
        leaf.grad = None
    follow(resumed, restored, truth, case.grads[cut:], what=f", resumed after step {cut}")


@examples(quick=3, full=20)
@given(case=runs(least=2, dtypes=WIDE))
def test_a_snapshot_is_independent_of_later_steps(subject, case):
    """Later steps change neither a snapshot that was taken nor one that was loaded, and two optimisers
    loaded from one snapshot go their own ways.

    Catches moments handed out, or taken in, without a copy: they go on changing in place."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options)
    follow(optimiser, leaves, truth, case.grads[:1], reused=case.reused)
    saved, then = optimiser.state_dict(), copy.deepcopy(truth)
    twins = []
    for _ in range(2):
        again = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        twin = subject.AdamW(again)
        twin.load_state_dict(saved)
        twins.append((twin, again))
    rest = [[g if g is not None else torch.ones_like(p) for p, g in zip(case.params, grads, strict=True)]
            for grads in case.grads[1:]]  # fmt: skip
    follow(optimiser, leaves, truth, rest)
    assert_snapshot(saved, then, "a snapshot, after later steps of its optimiser,")
    for twin, again in twins:
        follow(twin, again, copy.deepcopy(then), rest, what=" of an optimiser loaded from a snapshot")
        assert_snapshot(saved, then, "a snapshot, after steps of an optimiser that loaded it,")


@examples(quick=3, full=30)
@given(
    case=runs(gaps=False, dtypes=DOUBLE),
    by=st.integers(0, 2),
    which=st.sampled_from(("index", "dims", "second", "length", "order")),
)
def test_a_snapshot_that_does_not_fit_is_refused(subject, case, by, which):
    """A state for a parameter that does not exist, or of another shape, raises ValueError, and the
    optimiser goes on as if nothing had been tried.

    Catches states that are loaded unchecked, broadcast, or half loaded, and shapes of which only the number
    of dimensions, or of elements, is compared."""
    optimiser, leaves, truth = trained(subject, case)
    saved = copy.deepcopy(optimiser.state_dict())
    saved |= {"lr": 7.0, "betas": (0.1, 0.2), "eps": 3.0, "weight_decay": 0.7}
    last = len(leaves) - 1
    if which == "index":
        none = last + by if by else -1
        saved["state"][none] = copy.deepcopy(saved["state"][last])
        because = f"there is a state {none} for {last + 1} parameters"
    else:
        other = {
            "length": lambda x: torch.cat([x.reshape(1, -1)] * (2 + by), dim=1).reshape(-1, *x.shape[1:]),
            "order": lambda x: x.reshape(*x.shape[::-1]) if len(set(x.shape)) > 1 else x[None],
        }.get(which, lambda x: torch.cat([x[None]] * (2 + by)))
        wrong, shape = saved["state"][last], tuple(case.params[last].shape)
        for key in ("exp_avg", "exp_avg_sq")[which == "second" :]:
            wrong[key] = other(wrong[key])
        keys = "exp_avg_sq" if which == "second" else "both moments"
        because = (
            f"parameter {last} has the shape {shape}, and {keys} have {tuple(wrong['exp_avg_sq'].shape)}"
        )
    for state in saved["state"].values():
        state["step"] += 5
    refuses(ValueError, lambda: optimiser.load_state_dict(saved), because=because)
    what = " after a snapshot that did not fit"
    follow(optimiser, leaves, truth, case.grads, reused=case.reused, what=what)


@examples(quick=3, full=12)
@given(case=runs(dtypes=WIDE, count=(1, 2), most=2), by=st.sampled_from((1e-9, 0.5, 1.0)))
def test_hyperparameters_out_of_range_are_refused(subject, case, by):
    """No parameters, a negative lr, eps or weight_decay, and a beta outside [0, 1) raise ValueError; zeros are
    in range.

    A β of 1 never forgets the zero that its average starts from, and divides 0 by 0."""
    bad = [{"lr": -by}, {"eps": -by}, {"weight_decay": -by}]
    bad += [{"betas": betas} for betas in ((-by, 0.9), (0.9, -by), (1.0, 0.9), (0.9, 1.0), (0.9, 1.0 + by))]
    for wrong in bad:
        options = case.options | wrong
        refuses(
            ValueError, lambda options=options: subject.AdamW(case.leaves(), **options), because=str(wrong)
        )
    refuses(ValueError, lambda: subject.AdamW(iter(())), because="there are no parameters")
    least = {"lr": 0.0, "betas": (0.0, 0.0), "weight_decay": 0.0, "eps": 0.0}
    grads = [None if g is None else g + (g == 0) for g in case.grads[0]]  # ε is 0: none of 0 ÷ 0
    for zero in ({}, *({key: value} for key, value in least.items()), least):
        options, leaves = case.options | zero, case.leaves()
        truth = Truth(case.params, options)
        follow(subject.AdamW(leaves, **options), leaves, truth, [grads], what=f" with {zero}")


# --- part 2: foreach -----------------------------------------------------------------------------


@examples(quick=3, full=30)
@given(case=runs(gaps=False), given_as=st.sampled_from((list, iter)))
def test_foreach_equals_the_definition(subject, case, given_as):
    """With foreach=True every step equals the rule computed in float64, and the gradients are left as they
    were.

    Catches foreach operations that write into the gradients, decay or correction left out of the second
    form, and parameters that are replaced instead of changed."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    views = [leaf.detach() for leaf in leaves]
    optimiser = subject.AdamW(given_as(leaves), **case.options, foreach=True)
    for grads in case.grads:
        give(leaves, grads, case.reused)
        before = [leaf.grad.clone() for leaf in leaves]
        optimiser.step()
        truth.step(grads)
        truth.compare(views)
        for i, (leaf, was) in enumerate(zip(leaves, before, strict=True)):
            untouched({f"gradient of parameter {i}": was}, {f"gradient of parameter {i}": leaf.grad})


@examples(quick=2, full=20)
@given(
    case=runs(gaps=False, most=2, dtypes=st.sampled_from((torch.bfloat16, torch.float32, torch.bfloat16))),
    foreach=st.sampled_from((True, True, False)),
)
def test_decay_reaches_parameters_of_every_dtype(subject, case, foreach):
    """With lr 0.5 and weight_decay 1 a zero gradient halves every weight at each step, in bfloat16 too, with
    foreach or without.

    So strong a decay stands clear of bfloat16's rounding. Catches a decay of the parameters when it is a
    copy in float32 that is updated and written back."""
    options = case.options | {"lr": 0.5, "weight_decay": 1.0}
    starts = [start + (start == 0) for start in case.params]
    leaves = replace(case, params=starts).leaves()
    optimiser = subject.AdamW(leaves, **options, foreach=foreach)
    for taken in range(1, len(case.grads) + 1):
        give(leaves, [torch.zeros_like(x) for x in starts], case.reused)
        optimiser.step()
        for i, (leaf, start) in enumerate(zip(leaves, starts, strict=True)):
            want, name = start.double() / 2**taken, f"parameter {i} after {taken} steps with gradient 0"
            assert_close(leaf, want, dtype=start.dtype, name=name)


@examples(quick=3, full=30)
@given(case=runs(mixed=True, count=(2, 4), least=2))
def test_foreach_copes_with_gaps_and_other_dtypes(subject, case):
    """With foreach=True too each parameter counts its own steps and has its own gradient, whichever of the
    others are absent, and parameters of two dtypes go together.

    Catches one correction for all, and lists of which one leaves absent parameters out and another does
    not."""
    trained(subject, case, foreach=True)


@examples(quick=2, full=20)
@given(case=runs(gaps=False, dtypes=WIDE, least=2, most=3), later=OPTIONS)
def test_foreach_reads_the_hyperparameters_at_every_step(subject, case, later):
    """With foreach=True too, what is assigned to lr, betas, eps or weight_decay counts from the next step on.

    Catches lists of numbers that are made once for all steps, in the constructor or when a snapshot is loaded."""
    rescheduled(subject, case, later, foreach=True)


@examples(quick=3, full=30)
@given(case=runs(dtypes=WIDE, gaps=False), foreach=st.booleans())
def test_a_step_without_any_gradient_does_nothing(subject, case, foreach):
    """If no parameter has a gradient, a step is legal and changes nothing, with foreach or without.

    Catches foreach operations on empty lists, which raise."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    optimiser = subject.AdamW(leaves, **case.options, foreach=foreach)
    for grads in (None, *case.grads, None):
        give(leaves, [None] * len(leaves) if grads is None else grads)
        try:
            optimiser.step()
        except NotImplementedError:
            raise
        except Exception as error:
            if grads is not None:
                raise
            said = f"{type(error).__name__}: {error}"
            raise Mismatch(
                "a step without any gradient raises", expected="nothing happens", got=said
            ) from error
        if grads is not None:
            truth.step(grads)
        truth.compare(leaves)


@examples(quick=3, full=30)
@given(case=runs(least=2), foreach=st.booleans(), cut=st.integers(1, 3), past=st.booleans())
def test_both_forms_resume_each_other(subject, case, foreach, cut, past):
    """A run begun with one value of foreach goes on with the other as if nothing had changed, also if that
    one has a past of its own.

    Catches a snapshot whose content depends on foreach, one that later steps overwrite, and lists of
    moments made once, which do not know of the loaded ones."""
    leaves, truth = case.leaves(), Truth(case.params, case.options)
    first = subject.AdamW(leaves, **case.options, foreach=foreach)
    follow(first, leaves, truth, case.grads[:cut], reused=case.reused)
    second = subject.AdamW(leaves, foreach=not foreach)
    if past:
        values = [leaf.detach().clone() for leaf in leaves]
        give(leaves, [torch.ones_like(x) for x in values])
        second.step()
        with torch.no_grad():
            for leaf, value in zip(leaves, values, strict=True):
                leaf.copy_(value)
        give(leaves, [None] * len(leaves))
    saved, then = first.state_dict(), copy.deepcopy(truth)
    assert_snapshot(saved, truth)
    second.load_state_dict(saved)
    follow(second, leaves, truth, case.grads[cut:], reused=case.reused)
    assert_snapshot(saved, then, "a snapshot, after later steps,")


@examples(quick=2, full=20)
@given(case=runs(gaps=False, dtypes=WIDE, least=2, most=3), absent=st.booleans())
def test_foreach_records_nothing_and_zero_grad_empties(subject, case, absent):
    """With foreach=True too no step is recorded, autograd is after the step as it was before, and zero_grad
    leaves no gradient.

    Catches a second form that is written outside no_grad, or that forgets to come back."""
    unrecorded(subject, case, foreach=True)
    optimiser, leaves, truth = trained(subject, replace(case, reused=True), foreach=True)
    cleared(optimiser, leaves, truth, case, absent)


@examples(quick=1, full=4)
@given(seed=st.integers(0, 99), first=st.integers(0, 6))
def test_foreach_takes_large_and_empty_tensors(subject, seed, first):
    """With foreach=True parameters of no element, of 300,001, and of four dimensions are moved as well.

    Catches lists that are cut into groups of which one is lost."""
    shapes = (SHAPES[first], SHAPES[(first + 3) % 7], SHAPES[(first + 4) % 7])
    large_or_empty(subject, seed, shapes, foreach=True)


class Count(TorchDispatchMode):
    """How many operations reach torch's kernels, apart from views and from reading a number."""

    def __init__(self):
        super().__init__()
        self.calls = []

    @classmethod
    def _should_skip_dynamo(cls):
        """No, or torch would import its compiler, two seconds' worth, to keep it out of here."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "_local_scalar_dense" not in func.name():
            self.calls.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def counted(subject, shapes, dtype, options, judged=True):
    """The operations of the third step over so many parameters, which then are right if ``judged``."""
    start = [torch.linspace(-1, 2, math.prod(shape), dtype=dtype).reshape(shape) for shape in shapes]
    leaves = [x.clone().requires_grad_() for x in start]
    truth = Truth(start, options)
    optimiser = subject.AdamW(leaves, **options, foreach=True)
    for step in range(3):
        grads = [x * (step + 1) + i for i, x in enumerate(start)]
        give(leaves, grads)
        with Count() as count:
            optimiser.step()
        truth.step(grads)
    if judged:
        truth.compare(leaves)
    return count.calls


@examples(quick=2, full=8)
@given(few=st.integers(1, 3), more=st.integers(4, 12), dtype=WIDE, options=OPTIONS)
def test_foreach_takes_as_many_operations_for_many_parameters_as_for_few(subject, few, more, dtype, options):
    """With foreach=True a step over few + more parameters makes as many torch operations as one over few.

    On a GPU each operation is a launch of about 5 µs, which for small parameters is all the time there
    is. Catches foreach that is ignored, and a loop hidden inside (copies back one by one, a root each)."""
    shapes = [(1 + i % 3, 2) for i in range(few + more)]
    one, other = counted(subject, shapes[:few], dtype, options), counted(subject, shapes, dtype, options)
    assert_true(
        len(one) == len(other) > 0,
        f"a step over {few} parameters takes {len(one)} operations, one over {few + more} takes {len(other)}",
        expected=one,
        got=other,
    )


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Short runs whose traces differ from mistake to mistake, by name."""
    start = [[0.5, -1.0, 2.0], [3.0, 0.25, -0.5], [4.0], [1.5, -2.0, 0.5]]
    slopes = [[1.0, -2.0, 0.5], [0.03, 0.0, -3.0], [0.7], [-1.0, 0.2, 2.0]]
    strong = {"lr": 0.1, "betas": (0.6, 0.8), "eps": 0.3, "weight_decay": 0.4}

    def make(options, *, graph=False):
        leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in start]
        return leaves, subject.AdamW(leaves, **options)

    def take(leaves, optimiser, steps, *, gap=None, at=(0, 1, 2), graph=False, reused=False):
        seen = []
        for step in range(steps):
            for i, leaf in enumerate(leaves):
                g = torch.tensor(slopes[i], dtype=torch.float64) * (1 - 0.4 * step) + 0.1 * i * step
                if i == gap and step in at:
                    leaf.grad = None
                elif reused and leaf.grad is not None:
                    leaf.grad.copy_(g)
                else:
                    leaf.grad = g.requires_grad_() * 1 if graph else g
            optimiser.step()
            seen.append([leaf.detach().clone() for leaf in leaves])
        return seen

    def run(options, steps=3, **more):
        leaves, optimiser = make(options)
        return take(leaves, optimiser, steps, **more)

    def in_place(options):
        leaves, optimiser = make(options)
        views = [leaf.detach() for leaf in leaves]
        take(leaves, optimiser, 2)
        return [*views, *(leaf.grad for leaf in leaves)]

    def second(options):
        run(options)
        return run(options, 2)

    def scheduled(options, **later):
        leaves, optimiser = make(options)
        take(leaves, optimiser, 1)
        for key, value in later.items():
            setattr(optimiser, key, value)
        return take(leaves, optimiser, 2)

    def cleared():
        leaves, optimiser = make({})
        take(leaves, optimiser, 1)
        optimiser.zero_grad()
        return [leaf.grad is None or not bool(leaf.grad.any()) for leaf in leaves], [
            leaf.detach() for leaf in leaves
        ]

    def switched_off(options):
        leaves, optimiser = make(options)
        give(leaves, [torch.ones_like(leaf) for leaf in leaves])
        try:
            with torch.no_grad():
                optimiser.step()
                return torch.is_grad_enabled()
        finally:
            torch.set_grad_enabled(True)

    def large(options):
        leaf = torch.zeros(300_000, dtype=torch.float64, requires_grad=True)
        optimiser = subject.AdamW([leaf], **options)
        leaf.grad = torch.ones_like(leaf)
        optimiser.step()
        return leaf.detach()[::99_999]

    def recorded(options):
        leaves, optimiser = make(options)
        try:
            seen = take(leaves, optimiser, 2, graph=True)
            states = optimiser.state_dict()["state"].values()
            graphs = [state[key].requires_grad for state in states for key in ("exp_avg", "exp_avg_sq")]
            return graphs, torch.is_grad_enabled(), seen
        finally:
            torch.set_grad_enabled(True)

    def snapshot(options, later=0):
        leaves, optimiser = make(options)
        take(leaves, optimiser, 2, gap=2)
        saved = optimiser.state_dict()
        take(leaves, optimiser, later)
        return saved

    def resumed(options, other, past=0):
        leaves, optimiser = make(options)
        take(leaves, optimiser, 2, gap=3)
        saved = optimiser.state_dict()
        again = subject.AdamW(leaves, **other)
        take(leaves, again, past)
        again.load_state_dict(saved)
        return take(leaves, again, 2), saved if saved.get("state") else "emptied"

    def refused_then():  # the hyperparameters after a snapshot that does not fit
        leaves, optimiser = make(strong)
        take(leaves, optimiser, 1)
        saved = copy.deepcopy(optimiser.state_dict()) | {"lr": 7.0, "betas": (0.1, 0.2), "eps": 3.0}
        twice(saved)
        try:
            optimiser.load_state_dict(saved)
        except ValueError:
            return optimiser.lr, list(optimiser.betas), optimiser.eps
        return "loaded"

    def misfit(change):
        leaves, optimiser = make(strong)
        take(leaves, optimiser, 1)
        saved = copy.deepcopy(optimiser.state_dict())
        change(saved)
        try:
            optimiser.load_state_dict(saved)
        except ValueError:
            return "refused"
        return "loaded"

    def twice(saved):
        saved["state"][0] = {k: v if k == "step" else v[:1] for k, v in saved["state"][0].items()}

    def second_twice(saved):
        saved["state"][0]["exp_avg_sq"] = saved["state"][0]["exp_avg_sq"].repeat(2)

    def turned(saved):
        for key in ("exp_avg", "exp_avg_sq"):
            saved["state"][1][key] = saved["state"][1][key][:, None]

    def accepted(options):
        try:
            make(options)
        except ValueError:
            return False
        return True

    def nothing_given():
        try:
            subject.AdamW(iter(()))
        except ValueError:
            return "refused"
        return "taken"

    def matrix(options, layout="contiguous"):
        start = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]], dtype=torch.float64)
        leaf = laid_out(start, layout).detach().requires_grad_()
        optimiser = subject.AdamW([leaf], **options)
        for _ in range(2):
            leaf.grad = torch.ones_like(start)
            optimiser.step()
        return leaf.detach().clone()

    def idle(options):  # two gradients, then zeros
        leaf = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimiser = subject.AdamW([leaf], **options)
        for slope in (1.0, 0.5, 0.0, 0.0):
            leaf.grad = torch.full_like(leaf, slope)
            optimiser.step()
        return leaf.detach().clone()

    def cleared_of_infinity():
        leaves, optimiser = make({})
        give(leaves, [torch.full_like(leaf, math.inf) for leaf in leaves])
        optimiser.zero_grad()
        return [leaf.grad is None or not bool(leaf.grad.any()) for leaf in leaves]

    def operations():  # of so many more parameters, a parameter
        few, many = (len(counted(subject, [(2,)] * n, torch.float64, {}, judged=False)) for n in (1, 9))
        return min(3, round((many - few) / 8))

    def still(options):
        leaves, optimiser = make(options)
        optimiser.step()
        return [leaf.detach() for leaf in leaves]

    def halved(foreach):  # weights of bfloat16, exactly
        leaf = torch.tensor([1.0, -2.0, 4.0], dtype=torch.bfloat16).requires_grad_()
        optimiser = subject.AdamW([leaf], lr=0.5, weight_decay=1.0, foreach=foreach)
        give([leaf], [torch.zeros(3, dtype=torch.bfloat16)])
        optimiser.step()
        return leaf.detach().double()

    together = strong | {"foreach": True}
    tiny = {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-10}
    return {
        "defaults": lambda: run({}),
        "strong": lambda: run(strong),
        "no decay": lambda: run(tiny),
        "decay only": lambda: run({"lr": 0.1, "weight_decay": 0.5}, 2),
        "a gap at the start": lambda: run(strong, gap=1),
        "a gap later": lambda: run(strong, 4, gap=1, at=(1,)),
        "reused gradients": lambda: run(strong, reused=True),
        "in place": lambda: in_place(strong),
        "a second optimiser": lambda: second(strong),
        "a schedule": lambda: scheduled(strong, lr=0.01),
        "a schedule of betas": lambda: scheduled(strong, betas=(0.2, 0.4)),
        "zeros after gradients": lambda: idle(strong),
        "a matrix": lambda: matrix(strong),
        "a transposed matrix": lambda: matrix(strong, "transposed"),
        "zero_grad": cleared,
        "zero_grad of infinity": cleared_of_infinity,
        "with a graph": lambda: recorded(strong),
        "a snapshot": lambda: snapshot(strong),
        "a snapshot, later": lambda: snapshot(strong, 2),
        "a snapshot of the defaults": lambda: snapshot({}),
        "resumed": lambda: resumed(strong, {}),
        "resumed with a past": lambda: resumed(strong, {"lr": 0.7}, past=1),
        "a state too many": lambda: [
            misfit(lambda saved, i=i: saved["state"].update({i: saved["state"][3]})) for i in (4, -1)
        ],
        "a state of another shape": lambda: [misfit(twice), misfit(second_twice), refused_then()],
        "a state in another order": lambda: misfit(turned),
        "autograd off": lambda: switched_off(strong),
        "a large tensor": lambda: large(strong),
        "negative": lambda: [accepted({key: -1.0}) for key in ("lr", "eps", "weight_decay")],
        "betas out of range": lambda: [accepted({"betas": betas}) for betas in ((0.9, 1.0), (-0.5, 0.9))],
        "no parameters": nothing_given,
        "zeros": lambda: [accepted({key: 0.0}) for key in ("lr", "eps", "weight_decay")],
        "foreach": lambda: run(together),
        "foreach with gaps": lambda: run(together, 4, gap=0, at=(1,)),
        "foreach with a gap at the start": lambda: run(together, gap=0),
        "foreach, a schedule": lambda: scheduled(together, lr=0.01),
        "foreach, a matrix": lambda: matrix(together),
        "foreach, zeros after gradients": lambda: idle(together),
        "foreach, a snapshot": lambda: snapshot(together),
        "foreach in place": lambda: in_place(together),
        "foreach, resumed with a past": lambda: resumed(together, {"lr": 0.7, "foreach": True}, past=1),
        "foreach, autograd off": lambda: switched_off(together),
        "foreach without gradients": lambda: still(together),
        "foreach, decay in bfloat16": lambda: halved(True),
        "foreach, operations": operations,
    }
