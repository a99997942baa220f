"""The laws of a mixture of experts: each token has its few experts and no others, their sum is the dense sum
over the chosen, what nobody chose costs nothing; balance costs one; and what exceeds the room is dropped."""

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import permutations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.overrides import TorchFunctionMode

from dojo.close import (
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    gradients,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import LAYOUTS, distinct, examples, fill

DTYPES = st.sampled_from((torch.float32, torch.float64, torch.bfloat16))
EXACT = st.just(torch.float64)
SCALES = st.sampled_from((1.0, 0.1, 3.0))
FACTORS = (1.0, 0.5, 0.25, 1.25, 1.5, 2.0)


@dataclass
class Layer:
    """Tokens, and the weights that they meet."""

    x: Tensor
    router: Tensor
    w_gate: Tensor
    w_up: Tensor
    w_down: Tensor
    top_k: int

    @property
    def weights(self):
        return {
            "router.weight": self.router, "w_gate": self.w_gate, "w_up": self.w_up, "w_down": self.w_down,
        }  # fmt: skip

    @property
    def tokens(self):
        return self.x.detach().double().reshape(-1, self.x.shape[-1])

    @property
    def logits(self):
        return self.tokens @ self.router.double().T


@dataclass
class Sent(Layer):
    """A layer whose router reads the logits off the first numbers of a token: who goes where is known."""

    choices: list[list[int]]


@dataclass
class Biased(Layer):
    """A layer, and the bias that chooses with it."""

    bias: Tensor


@dataclass
class Votes:
    logits: Tensor
    experts: Tensor


@dataclass
class Settled(Votes):
    """Votes whose loss is known."""

    due: int


@st.composite
def layers(draw, dtypes=DTYPES, scales=SCALES):
    """Any number of leading dimensions; all sizes different."""
    batch = distinct(draw, draw(st.sampled_from((1, 2, 1, 0, 3))), high=4)
    d_model, d_ff, n_experts = distinct(draw, 3, high=5)
    dtype, shape = draw(dtypes), (*batch, d_model)
    return Layer(
        fill(draw, shape, dtype=dtype, scale=draw(scales), layout=draw(LAYOUTS)),
        fill(draw, (n_experts, d_model), dtype=dtype),
        fill(draw, (n_experts, d_ff, d_model), dtype=dtype),
        fill(draw, (n_experts, d_ff, d_model), dtype=dtype),
        fill(draw, (n_experts, d_model, d_ff), dtype=dtype),
        draw(st.integers(1, n_experts)),
    )


@st.composite
def sent(draw, dtypes=EXACT, high=6):
    """Tokens that say themselves, strongest first, which experts they want; some experts may stay idle."""
    n_experts = draw(st.integers(2, 5))
    top_k, busy = draw(st.integers(1, n_experts)), draw(st.integers(1, n_experts))
    digits = draw(st.text("0123456789", min_size=1, max_size=high))
    choices = [[(int(c) % busy + i) % n_experts for i in range(top_k)] for c in digits]
    return layer_of(draw, choices, n_experts, draw(dtypes), *distinct(draw, 2, high=4))


def layer_of(draw, choices, n_experts, dtype, extra, d_ff):
    d_model, top_k = n_experts + extra, len(choices[0])
    x = fill(draw, (len(choices), d_model), dtype=dtype)
    x[:, :n_experts] = -1
    x.scatter_(1, torch.tensor(choices), torch.arange(top_k, 0, -1).to(dtype).expand(len(choices), -1) / 2)
    return Sent(
        x,
        torch.eye(n_experts, d_model, dtype=dtype),
        fill(draw, (n_experts, d_ff, d_model), dtype=dtype),
        fill(draw, (n_experts, d_ff, d_model), dtype=dtype),
        fill(draw, (n_experts, d_model, d_ff), dtype=dtype),
        top_k,
        choices,
    )


@st.composite
def crowds(draw):
    """More tokens than a byte counts, or than bfloat16 tells apart, and most of them want expert 0."""
    top_k, dtype = draw(st.integers(1, 2)), draw(st.sampled_from((torch.float64, torch.bfloat16)))
    dice = torch.rand(700, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    first = (dice * 8).long().sub(5).clamp(min=0).tolist()
    choices = [[(e + i) % 3 for i in range(top_k)] for e in first]
    return layer_of(draw, choices, 3, dtype, *distinct(draw, 2, high=3))


@st.composite
def votes(draw, dtypes=DTYPES):
    """Logits, and a choice of experts that need not be the best."""
    batch = distinct(draw, draw(st.sampled_from((1, 2, 3))), high=4)
    n_experts = draw(st.integers(1, 6))
    logits = fill(draw, (*batch, n_experts), dtype=draw(dtypes), scale=draw(SCALES), layout=draw(LAYOUTS))
    some = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ranked = torch.rand(logits.shape, generator=some).argsort(dim=-1)
    return Votes(logits, ranked[..., : draw(st.integers(1, n_experts))])


@st.composite
def nobody(draw):
    """No tokens at all, in any number of leading dimensions."""
    case, shape = draw(layers()), draw(st.sampled_from(((0,), (2, 0), (0, 3), (1, 0, 2))))
    return replace(case, x=case.x.new_empty(*shape, case.x.shape[-1]))


@st.composite
def idle_nan(draw):
    """What no token wants holds NaN."""
    case = draw(sent())
    idle = [e for e in range(len(case.router)) if not any(e in wanted for wanted in case.choices)]
    for w in (case.w_gate, case.w_up, case.w_down):
        w[idle] = math.nan
    return case


@st.composite
def pushed(draw, cases, by):
    """One expert is pushed by the bias."""
    case, by = draw(cases), draw(st.sampled_from(by))
    bias = torch.zeros(len(case.router), dtype=torch.float64)
    bias[draw(st.integers(0, len(bias) - 1))] = by
    return biased(case, bias)


@st.composite
def overruled(draw):
    """Loud logits, and a bias far above them."""
    case = draw(layers())
    order = draw(st.permutations(range(len(case.router))))
    loud = replace(case, router=case.router * 1e3)
    return biased(loud, torch.tensor(order).double() * 2.0**20)


def biased(case, bias):
    return Biased(**{f.name: getattr(case, f.name) for f in fields(Layer)}, bias=bias)


@st.composite
def settled(draw):
    """Balanced loads with any logits, or tokens that are all certain of expert 0."""
    n_experts, rounds = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    token = torch.arange(n_experts * rounds)
    if draw(st.booleans()):
        return Settled(torch.eye(n_experts)[token * 0] * 99, token[:, None] * 0, n_experts)
    experts = (token[:, None] + torch.arange(draw(st.integers(1, n_experts)))) % n_experts
    return Settled(fill(draw, (len(token), n_experts), dtype=torch.float64), experts, 1)


# --- the oracle, in float64 ------------------------------------------------------------------------


def best(case, bias=0.0):
    """Which experts each token chooses, and for which tokens that is beyond rounding."""
    scores = case.logits + bias
    order = scores.sort(dim=-1, descending=True)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order.indices[:, : case.top_k], True)
    if case.top_k == scores.shape[1]:
        return chosen, torch.ones(len(scores), dtype=torch.bool)
    gap = order.values[:, case.top_k - 1] - order.values[:, case.top_k]
    return chosen, gap > doubt(case, bias).amax(-1)


def doubt(case, bias=0.0):
    """How much rounding may change a logit, twice over."""
    size = case.tokens.abs() @ case.router.double().abs().T + torch.as_tensor(bias).abs()
    return 2 * tolerance(case.x.dtype, length=case.x.shape[-1] + 1, magnitude=size, steps=1)


def mixed(logits, chosen):
    """The softmax over the chosen logits, zero elsewhere."""
    return logits.masked_fill(~chosen, -math.inf).softmax(-1)


def dense(x, w_gate, w_up, w_down, shares):
    """Every expert on every token, times its share."""
    hidden = silu(torch.einsum("td,efd->etf", x, w_gate)) * torch.einsum("td,efd->etf", x, w_up)
    return torch.einsum("te,etf,edf->td", shares, hidden, w_down)


def expected(case, chosen, kept=None):
    """The output by token, and the size of what it is summed from."""
    shares = mixed(case.logits, chosen)
    shares = shares if kept is None else shares * kept
    wide = [w.double() for w in (case.w_gate, case.w_up, case.w_down)]
    sizes = [w.abs() for w in wide]
    # silu(g) is at most |g|, and its slope at most 1.1; a share errs by the logits' error, relatively.
    into = [torch.einsum("td,efd->etf", case.tokens.abs(), w) for w in sizes[:2]]
    error = 1 + (case.tokens.abs() @ case.router.double().abs().T).amax(-1)
    size = torch.einsum("te,etf,edf->td", shares, into[0] * into[1], sizes[2]) * 2 * error[:, None]
    return dense(case.tokens, *wide, shares), size


def capacity(factor, tokens, top_k, n_experts):
    return math.ceil(Fraction(factor) * tokens * top_k / n_experts)


def with_room(chosen, top_k, factor):
    """Of the chosen, those within the capacity, in the order of the tokens."""
    return chosen & (chosen.cumsum(0) <= capacity(factor, len(chosen), top_k, chosen.shape[1]))


def even(factor, tokens, top_k, n_experts):
    """Do the ways to write the capacity in floating point agree?"""
    exact, n = capacity(factor, tokens, top_k, n_experts), n_experts
    return all(
        math.ceil(way) == exact
        for a, b, c in permutations((factor, tokens, top_k))
        for way in (a / n * b * c, a * b / n * c, a * b * (c / n), a * b * c * (1 / n), a / (n / b) * c)
    )


# --- asking the subject ------------------------------------------------------------------------------


def made(subject, case, **more):
    """The subject's layer with the weights of the case."""
    n_experts, d_ff, d_model = case.w_gate.shape
    moe = subject.MoE(d_model, d_ff, n_experts, case.top_k, **more)
    assert_true(isinstance(moe, nn.Module), "MoE is no nn.Module", expected="an nn.Module", got=type(moe))
    return loaded(moe.to(case.x.dtype), case.weights)


def loaded(moe, weights):
    own = dict(moe.named_parameters())
    assert_equal(sorted(own), sorted(weights), "the names of the parameters")
    with torch.no_grad():
        for name, value in weights.items():
            assert_equal(tuple(own[name].shape), tuple(value.shape), f"the shape of {name}")
            own[name].copy_(value)
    return moe


def run(moe, x):
    got = moe(x)
    assert_tensor(got, shape=x.shape, dtype=x.dtype, name="the output")
    return got


def routed(moe, case):
    """Weights and experts by token, the experts in ascending order."""
    found = moe.route(case.x)
    assert_true(
        isinstance(found, tuple) and len(found) == 2 and all(isinstance(t, Tensor) for t in found),
        "route gives no pair of tensors", expected="(weights, experts)", got=found,
    )  # fmt: skip
    weights, experts = found
    shape = (*case.x.shape[:-1], case.top_k)
    assert_tensor(weights, shape=shape, dtype=case.x.dtype, name="the weights")
    assert_true(
        not experts.is_floating_point() and experts.dtype != torch.bool,
        "the experts are no integers", expected="integers", got=experts.dtype,
    )  # fmt: skip
    assert_equal(tuple(experts.shape), shape, "the shape of experts")
    experts, order = experts.reshape(-1, case.top_k).long().sort(dim=-1)
    n_experts = len(case.router)
    proper = (experts >= 0).all() and (experts < n_experts).all() and (experts.diff(dim=-1) > 0).all()
    assert_true(proper, f"a token has not {case.top_k} different experts of {n_experts}", got=experts)
    return weights.reshape(-1, case.top_k).gather(-1, order), experts


def assert_output(moe, case, chosen, clear=None, kept=None, name="the output"):
    """The output equals the dense sum, at the tokens whose choice is beyond doubt."""
    clear = slice(None) if clear is None else clear
    want, size = expected(case, chosen, kept)
    got = run(moe, case.x).reshape(want.shape)
    length = sum(case.w_gate.shape[1:]) + case.top_k
    assert_close(
        got[clear], want[clear], dtype=case.x.dtype, magnitude=size[clear], length=length, steps=8, name=name
    )


def set_bias(moe, values):
    assert_true(
        isinstance(getattr(moe, "bias", None), Tensor), "there is no bias", expected="a tensor", got=None
    )
    with torch.no_grad():
        moe.bias.copy_(values)


FIRST = {"addmm": 1, "baddbmm": 1, "addmv": 1, "addbmm": 1, "__rmatmul__": 1}
"""Where the left factor stands, if it is not the first argument."""

PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "mv", "dot", "inner", "vdot", "linear", *FIRST}


class Counted(TorchFunctionMode):
    """Counts torch operations, and the multiply-adds of matrix products among them."""

    def __init__(self):
        super().__init__()
        self.operations = self.products = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name, out = getattr(func, "__name__", ""), func(*args, **(kwargs or {}))
        if name in PRODUCTS and len(args) > FIRST.get(name, 0):
            self.products += out.numel() * args[FIRST.get(name, 0)].shape[-1]
        elif name == "einsum":
            equation, *tensors = args
            tensors = tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors
            sizes = {}
            for letters, tensor in zip(equation.split("->")[0].split(","), tensors, strict=True):
                named = letters.replace(" ", "").split("...")
                sizes |= dict(zip(named[0], tensor.shape, strict=False))
                sizes |= dict(zip(reversed(named[-1]), reversed(tensor.shape), strict=False))
                if len(named) == 2:
                    spread = tensor.numel() // math.prod(sizes[n] for n in "".join(named))
                    sizes["..."] = max(sizes.get("...", 1), spread)
            self.products += math.prod(sizes.values())
        return out


def cost(moe, x):
    with torch.no_grad(), Counted() as counted:
        moe(x)
    return counted


# --- part 1: routing -----------------------------------------------------------------------------------


@given(case=layers())
def test_every_token_gets_its_top_k_experts(subject, case):
    """route names top_k different experts for each token, none of whose logits is below one left out.

    Catches the smallest logits, an expert that counts twice, and one choice where top_k are asked for."""
    _, experts = routed(made(subject, case), case)
    logits = case.logits
    inside = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, experts, True)
    least = logits.masked_fill(~inside, math.inf).amin(-1)
    missed = (logits - doubt(case)).masked_fill(inside, -math.inf).amax(-1)
    assert_true(
        bool((least >= missed).all()), "an expert was left out for one with a smaller logit",
        expected=best(case)[0].nonzero()[:, 1].reshape(-1, case.top_k), got=experts,
    )  # fmt: skip


@given(case=layers())
def test_the_weights_are_the_softmax_over_the_chosen(subject, case):
    """A token's weights are positive, sum to one, and equal the softmax over its chosen logits.

    Catches probabilities among all experts, equal weights, and weights in another order than the experts."""
    weights, experts = routed(made(subject, case), case)
    want = case.logits.gather(1, experts).softmax(-1)
    size = 1 + (case.tokens.abs() @ case.router.double().abs().T).amax(-1, keepdim=True)
    assert_close(
        weights, want, dtype=case.x.dtype, magnitude=size * want, length=case.x.shape[-1], name="the weights"
    )


@given(case=layers(), training=st.booleans())
def test_the_output_is_the_dense_sum_over_the_chosen(subject, case, training):
    """Token by token, the output equals all experts computed densely, times weights that are zero for all
    but the chosen; in training and in evaluation.

    Catches results that land at another token, an expert that overwrites what others gave, weights on the
    way in, gate and up exchanged, another activation, and noise in training."""
    moe = made(subject, case).train(training)
    chosen, clear = best(case)
    assert_output(moe, case, chosen, clear)


@examples(quick=3, full=30)
@given(case=layers())
def test_the_layer_leaves_its_inputs_alone(subject, case):
    """The output has x's shape and dtype, and x, parameters and bias hold what they held.

    Catches sums that are gathered in x itself, and results left in float32."""
    moe = made(subject, case)
    state = {name: value.clone() for name, value in moe.state_dict().items()}
    before = case.x.clone()
    run(moe, case.x)
    moe.route(case.x)
    untouched({"x": before, **state}, {"x": case.x, **moe.state_dict()})
    chosen, clear = best(case)
    assert_output(moe, case, chosen, clear, name="the output of a second call")


@examples(quick=3, full=30)
@given(case=layers(dtypes=EXACT))
def test_gradients_are_those_of_the_dense_sum(subject, case):
    """x, the router and the experts get the gradients of the dense sum, value by value.

    Catches weights cut off from the graph, so that the router never learns, and experts that get the
    gradient of their neighbours."""
    chosen, clear = best(case)
    moe, x = made(subject, case), case.x.clone().requires_grad_()
    upstream = torch.sin(torch.arange(1.0, x.numel() + 1, dtype=x.dtype)).reshape(len(clear), -1)
    upstream = upstream * clear[:, None]
    own = dict(moe.named_parameters())
    found = gradients(
        run(moe, x).reshape(upstream.shape), [x, *(own[name] for name in case.weights)], upstream
    )
    leaves = [w.clone().requires_grad_() for w in (x.detach(), *case.weights.values())]
    tokens = leaves[0].reshape(-1, x.shape[-1])
    right = dense(tokens, *leaves[2:], mixed(tokens @ leaves[1].T, chosen))
    size = math.prod(1 + float(leaf.detach().abs().max()) if leaf.numel() else 1 for leaf in leaves)
    for name, got, want in zip(("x", *case.weights), found, gradients(right, leaves, upstream), strict=True):
        assert_close(
            got, want, dtype=torch.float64, magnitude=size * x.shape[-1] * case.w_up.shape[1],
            length=len(clear) + 20, name=f"the gradient of {name}",
        )  # fmt: skip


@examples(quick=2, full=20)
@given(case=layers(dtypes=EXACT))
def test_tokens_do_not_see_each_other(subject, case):
    """A token alone, in any batch, and in any order gives the same.

    Catches groups that are never sorted back, and anything taken over the batch."""
    moe, clear = made(subject, case), best(case)[1]
    rows = case.x.reshape(-1, case.x.shape[-1])
    _, size = expected(case, best(case)[0])
    together = run(moe, rows)[clear].detach()
    for name, apart in (
        ("the tokens one by one", torch.cat([run(moe, row[None]) for row in rows])),
        ("the tokens in reverse", run(moe, rows.flip(0)).flip(0)),
        ("the tokens without a batch", torch.stack([run(moe, row) for row in rows])),
    ):
        assert_close(
            apart[clear], together, dtype=torch.float64, magnitude=size[clear], length=30, steps=8, name=name
        )
    assert_output(moe, case, best(case)[0], clear)


@examples(quick=2, full=20)
@given(case=nobody())
def test_no_tokens_give_no_output(subject, case):
    """Where x holds no tokens, route and the output hold none, in the same leading dimensions.

    Catches a maximum over nothing, and a shape that is lost where there is nothing to do."""
    moe = made(subject, case)
    run(moe, case.x)
    routed(moe, case)


@examples(quick=3, full=30)
@given(case=idle_nan())
def test_idle_experts_do_not_matter(subject, case):
    """An expert that no token chose may hold NaN: nothing changes, and its gradient is exactly zero.

    Catches experts that are run on every token and multiplied by zero."""
    idle = [e for e in range(len(case.router)) if not any(e in wanted for wanted in case.choices)]
    moe, names = made(subject, case), ("w_gate", "w_up", "w_down")
    own = dict(moe.named_parameters())
    got, x = run(moe, case.x), case.x.clone().requires_grad_()
    clean = replace(case, **{name: case.weights[name].nan_to_num() for name in names})
    want, size = expected(clean, best(case)[0])
    assert_close(got, want, dtype=torch.float64, magnitude=size, length=30, steps=8, name="the output")
    slope, *found = gradients(run(moe, x), [x, *(own[name] for name in names)])
    assert_true(
        bool(slope.isfinite().all()), "the gradient of x is not finite", expected="numbers", got=slope
    )
    for name, gradient in zip(names, found, strict=True):
        assert_true(
            bool((gradient[idle] == 0).all()), f"{name} of an idle expert has a gradient", got=gradient
        )


@st.composite
def busy(draw, n_experts, tokens, idle=0):
    """Each token wants two of the experts, and none of the idle ones."""
    step = draw(st.integers(0, 9))
    choices = [[(t + step) % n_experts, (t + step + 1) % n_experts] for t in range(tokens)]
    return layer_of(draw, choices, n_experts + idle, torch.float32, 1, draw(st.integers(5, 9)))


@examples(quick=2, full=5)
@given(few=busy(3, 6), many=busy(3, 60))
def test_tokens_are_not_looped_over(subject, few, many):
    """Ten times the tokens take no more torch operations.

    Catches a loop over tokens, which is slow whatever the batch."""
    operations = [cost(made(subject, case), case.x).operations for case in (few, many)]
    assert_true(
        0 < operations[1] <= 2 * operations[0], "the operations grow with the tokens",
        expected=f"about {operations[0]} for 60 tokens, as for 6", got=operations[1],
    )  # fmt: skip
    assert_output(made(subject, few), few, best(few)[0])


@examples(quick=2, full=5)
@given(case=busy(6, 18, idle=10))
def test_only_chosen_experts_are_computed(subject, case):
    """The multiply-adds of matrix products are tokens · top_k · 3 · d_model · d_ff beside the router's.

    Catches experts that are run on every token, those that somebody chose among them, and groups padded to
    the size of the longest."""
    moe = made(subject, case)
    n_experts, d_ff, d_model = case.w_gate.shape
    due = len(case.x) * (case.top_k * 3 * d_model * d_ff + n_experts * d_model)
    products = cost(moe, case.x).products
    assert_true(
        products <= 1.5 * due, "experts are computed for tokens that did not choose them",
        expected=f"{due} multiply-adds", got=products,
    )  # fmt: skip
    assert_output(moe, case, best(case)[0])


@examples(quick=1, full=12)
@given(case=crowds())
def test_hundreds_of_tokens_are_served(subject, case):
    """The output is the dense sum for hundreds of tokens too, most of which want the same expert.

    Catches numbers of tokens kept in a byte or in bfloat16, which has no odd numbers above 256, and whatever
    is done by blocks and misses the last one."""
    assert_output(made(subject, case), case, best(case)[0])


@examples(quick=2, full=20)
@given(case=layers(dtypes=st.sampled_from((torch.float32, torch.float64))), size=st.sampled_from((1e3, 1e4)))
def test_large_logits_are_safe(subject, case, size):
    """Logits in the thousands give weights that are finite and right.

    Catches exponentials that are taken without a shift."""
    case.router = case.router * size
    weights, experts = routed(made(subject, case), case)
    want = case.logits.gather(1, experts).softmax(-1)
    error = 1 + (case.tokens.abs() @ case.router.double().abs().T).amax(-1, keepdim=True)
    assert_close(
        weights, want, dtype=case.x.dtype, magnitude=error, length=case.x.shape[-1], name="the weights"
    )


@examples(quick=0, full=2)
@given(value=st.sampled_from((1.0, 0.5, 2.0)))
def test_half_precision_experts_add_up_in_float32(subject, value):
    """512 equal shares of equal results add up to the result, in bfloat16 too.

    Catches a running sum in bfloat16, which no longer grows once it is 256 times what is added."""
    one = torch.full((512, 1, 1), value, dtype=torch.bfloat16)
    case = Layer(one[0], torch.zeros(512, 1, dtype=torch.bfloat16), one, one, one, 512)
    with torch.no_grad():
        got = run(made(subject, case), case.x)
    want, _ = expected(case, torch.ones(1, 512, dtype=torch.bool))
    assert_close(got, want, dtype=torch.bfloat16, length=512, name="the output")


@examples(quick=2, full=15)
@given(one=sent(), two=sent(), seed=st.integers(0, 99))
def test_layers_share_nothing(subject, one, two, seed):
    """Two layers keep apart; all parameters learn; and fresh experts differ, in a layer and between layers.

    Equal experts would get equal gradients wherever they are equally weighted. Catches zeros, one network
    repeated, a seed in the constructor, and parameters or sizes that belong to the class."""
    torch.manual_seed(seed)
    n_experts, d_ff, d_model = one.w_gate.shape
    fresh, next_one = (
        dict(subject.MoE(d_model, d_ff, n_experts, one.top_k).named_parameters()) for _ in range(2)
    )
    names = ("w_gate", "w_up", "w_down")
    for name in names:
        weights = fresh[name].detach()
        assert_true(weights.isfinite().all(), f"{name} of a fresh layer is not finite", got=weights)
    # Some begin with zeros in w_down: experts differ if anything of theirs does.
    assert_true(
        not all(torch.equal(fresh[name], next_one[name]) for name in names),
        "two fresh layers have the same experts", got=fresh["w_up"].detach(),
    )  # fmt: skip
    assert_true(
        not all(torch.equal(fresh[name][0], fresh[name][1]) for name in names),
        "two fresh experts have the same weights", got=fresh["w_up"].detach(),
    )  # fmt: skip
    assert_true(all(p.requires_grad for p in fresh.values()), "a parameter is frozen", got=sorted(fresh))
    first, second = made(subject, one), made(subject, two)
    for moe, case in ((first, one), (second, two), (first, one)):
        assert_output(moe, case, best(case)[0])


@examples(quick=2, full=15)
@given(case=layers(), by=st.integers(1, 2))
def test_bad_sizes_are_refused(subject, case, by):
    """Sizes and top_k below 1, more choices than experts, and an x of another width raise ValueError.

    Catches a top_k that is silently cut, and widths that broadcast."""
    for bad in ((0, 3, 2, 1), (3, 1 - by, 2, 1), (3, 3, 0, 1), (3, 3, 2, 1 - by), (3, 3, 2, 2 + by)):
        refuses(ValueError, lambda bad=bad: subject.MoE(*bad), because=f"{bad} are no sizes")
    moe = made(subject, case)
    for wrong in (torch.cat([case.x] * 2, -1), case.x[..., :0]):
        because = f"x is {wrong.shape[-1]} wide and d_model {case.x.shape[-1]}"
        refuses(ValueError, lambda wrong=wrong: moe(wrong), because=because)
        refuses(ValueError, lambda wrong=wrong: moe.route(wrong), because=because)


# --- part 1: the loss ------------------------------------------------------------------------------------


def loss_of(logits, experts, **more):
    """n_experts Σ f P, in float64."""
    n_experts = logits.shape[-1]
    probabilities = logits.reshape(-1, n_experts).softmax(-1).mean(0)
    load = torch.stack([(experts == e).sum() for e in range(n_experts)]).double()
    return n_experts * (load / load.sum() * probabilities).sum()


@examples(quick=8, full=60)
@given(case=settled())
def test_balanced_routing_costs_one(subject, case):
    """If all experts have the same load the loss is 1, whatever the logits, top_k and n_experts; if all
    tokens are certain of one expert, it is n_experts.

    Catches a sum over top_k, which gives top_k, and a missing factor n_experts."""
    got = subject.load_balancing_loss(case.logits, case.experts)
    # A share kept in float32 is right as well.
    want = torch.tensor(float(case.due), dtype=torch.float64)
    assert_close(got.float(), want, dtype=torch.float32, length=len(case.experts) + 5, name="the loss")


@examples(quick=8, full=40)
@given(case=votes())
def test_the_loss_equals_its_definition(subject, case):
    """The loss is n_experts Σ f P in float64, a scalar in the dtype of the logits, for any leading shape.

    Catches probabilities squared, shares squared, shares of first choices only, a mean of products, and
    probabilities in float32 where the logits are in float64."""
    before = {"logits": case.logits.clone(), "experts": case.experts.clone()}
    got = subject.load_balancing_loss(case.logits, case.experts)
    assert_tensor(got, shape=(), dtype=case.logits.dtype, name="the loss")
    want, wide = (
        loss_of(case.logits.double(), case.experts),
        torch.promote_types(case.logits.dtype, torch.bfloat16),
    )
    # Shares kept in float32 are right as well; those that float32 holds exactly excuse nothing.
    held = case.experts.numel().bit_count() == 1
    dtype = torch.float32 if wide == torch.float64 and not held else wide
    size = case.logits.shape[-1] * (1 + case.logits.double().abs().max())
    assert_close(
        got.to(dtype), want, dtype=dtype, magnitude=size, length=case.logits.numel(), name="the loss"
    )
    untouched(before, {"logits": case.logits, "experts": case.experts})


@given(case=votes(dtypes=EXACT))
def test_the_loss_teaches_through_the_probabilities(subject, case):
    """The gradient is that of n_experts Σ f P with the shares f held fixed.

    Catches a loss of counts alone, which teaches nothing, and probabilities used in place of the counts."""
    mine, theirs = (case.logits.clone().requires_grad_() for _ in range(2))
    (got,) = gradients(subject.load_balancing_loss(mine, case.experts), [mine])
    (want,) = gradients(loss_of(theirs, case.experts), [theirs])
    size = case.logits.shape[-1] * (1 + case.logits.abs().max())
    assert_close(
        got.float(), want, dtype=torch.float32, magnitude=size, length=5, name="the gradient of the logits"
    )


@examples(quick=2, full=20)
@given(case=votes(), by=st.integers(0, 2))
def test_a_bad_choice_costs_no_loss(subject, case, by):
    """Experts of another leading shape, or outside 0 … n_experts − 1, raise ValueError.

    Catches negative numbers that wrap around, and shapes that broadcast."""
    n_experts = case.logits.shape[-1]
    for bad in (n_experts + by, -1 - by):
        wrong = case.experts.clone()
        wrong.view(-1)[-1] = bad
        because = f"in {wrong.tolist()} there is an expert {bad}, and the experts are 0 … {n_experts - 1}"
        refuses(
            ValueError, lambda wrong=wrong: subject.load_balancing_loss(case.logits, wrong), because=because
        )
    twice = torch.stack([case.experts, case.experts])
    for other in (twice.flatten(0, -2), case.experts[None]):
        if other.shape[:-1] != case.logits.shape[:-1]:
            because = f"experts {tuple(other.shape)} do not fit logits {tuple(case.logits.shape)}"
            refuses(
                ValueError,
                lambda other=other: subject.load_balancing_loss(case.logits, other),
                because=because,
            )


@examples(quick=1, full=12)
@given(case=crowds())
def test_the_loss_counts_hundreds_of_tokens(subject, case):
    """The loss equals its definition for hundreds of tokens, most of which went to the same expert.

    Catches counts in bfloat16, which stop at 256, and those of the first tokens only."""
    experts, logits = torch.tensor(case.choices), case.x[:, : len(case.router)]
    want = loss_of(logits.double(), experts)
    wide = torch.float32 if case.x.dtype == torch.float64 else case.x.dtype  # a share in float32 is right
    got = subject.load_balancing_loss(logits, experts)
    assert_tensor(got, shape=(), dtype=logits.dtype, name="the loss")
    assert_close(got.to(wide), want, dtype=wide, length=len(experts), name="the loss")


# --- part 2: capacity ------------------------------------------------------------------------------------


@examples(quick=8, full=40)
@given(case=sent(high=9), factor=st.sampled_from(FACTORS), training=st.booleans(), split=st.booleans())
def test_an_expert_serves_the_first_tokens_it_has_room_for(subject, case, factor, training, split):
    """The output is the dense sum over each token's experts that had room: the first ⌈factor · tokens ·
    top_k / n_experts⌉ of an expert's tokens by position; what is dropped adds zero and changes no weight.

    Catches a capacity rounded down or without top_k, the strongest or the last tokens kept, first choices
    served before second ones, weights renormalised, tokens passed through, batch rows counted apart, and a
    capacity kept from an earlier call."""
    tokens, n_experts = len(case.x), len(case.router)
    factor = factor if even(factor, tokens, case.top_k, n_experts) else 1.0
    chosen, _ = best(case)
    kept = with_room(chosen, case.top_k, factor)
    moe = made(subject, case, capacity_factor=factor).train(training)
    want, size = expected(case, chosen, kept)
    x = case.x.reshape(2, tokens // 2, -1) if split and tokens % 2 == 0 else case.x
    each = f", with room for {capacity(factor, tokens, case.top_k, n_experts)} in each expert,"
    for name in (f"the output{each}", f"the output of a second call{each}"):
        got = run(moe, x).reshape(case.x.shape)
        assert_close(got, want, dtype=torch.float64, magnitude=size, length=30, steps=8, name=name)
    fewer = (tokens + 1) // 2
    if even(factor, fewer, case.top_k, n_experts):
        part = replace(case, x=case.x[:fewer])
        want, size = expected(part, chosen[:fewer], with_room(chosen[:fewer], case.top_k, factor))
        got, name = run(moe, part.x), f"the output of the first {fewer} tokens alone"
        assert_close(got, want, dtype=torch.float64, magnitude=size, length=30, steps=8, name=name)


@examples(quick=2, full=25)
@given(case=sent(high=9), factor=st.sampled_from(FACTORS))
def test_capacity_changes_no_route(subject, case, factor):
    """route gives the same experts and weights with a capacity as without.

    Catches weights that are zeroed or renormalised where a choice is dropped."""
    weights, experts = routed(made(subject, case, capacity_factor=factor), case)
    want = [sorted(wanted) for wanted in case.choices]
    assert_equal(experts, torch.tensor(want), "the experts")
    right = case.logits.gather(1, experts).softmax(-1)
    assert_close(weights, right, dtype=torch.float64, magnitude=1 + case.top_k, name="the weights")


@examples(quick=3, full=30)
@given(case=st.one_of(layers(), nobody()), beyond=st.sampled_from((0.0, 1.0, 2.5)))
def test_room_for_all_drops_nothing(subject, case, beyond):
    """From a capacity_factor of n_experts / top_k on, every expert has room for all the tokens, if there are any.

    Catches a capacity that forgets n_experts or top_k, one that is counted by row of the batch, and the longest
    queue where nobody queues."""
    factor = len(case.router) / case.top_k * (1 + beyond)
    chosen, clear = best(case)
    assert_output(made(subject, case, capacity_factor=factor), case, chosen, clear)


@examples(quick=3, full=30)
@given(case=sent(high=9), factor=st.sampled_from((0.25, 0.5, 1.0)))
def test_what_is_dropped_teaches_nothing(subject, case, factor):
    """Gradients are those of the sum over what was kept, also the router's.

    A dropped expert still takes part in the softmax of the weights. Catches gradients through dropped
    assignments, and a softmax over what is left."""
    factor = factor if even(factor, len(case.x), case.top_k, len(case.router)) else 1.0
    chosen, _ = best(case)
    kept = with_room(chosen, case.top_k, factor)
    moe, x = made(subject, case, capacity_factor=factor), case.x.clone().requires_grad_()
    own = dict(moe.named_parameters())
    found = gradients(run(moe, x), [x, *(own[name] for name in case.weights)])
    leaves = [w.clone().requires_grad_() for w in (case.x, *case.weights.values())]
    right = dense(leaves[0], *leaves[2:], mixed(leaves[0] @ leaves[1].T, chosen) * kept)
    size = math.prod(1 + float(leaf.detach().abs().max()) for leaf in leaves)
    for name, got, want in zip(("x", *case.weights), found, gradients(right, leaves), strict=True):
        assert_close(
            got, want, dtype=torch.float64, magnitude=size * 30, length=30, name=f"the gradient of {name}"
        )


@examples(quick=1, full=12)
@given(case=crowds())
def test_room_is_counted_for_hundreds_of_tokens(subject, case):
    """Of hundreds of tokens, too, an expert serves exactly as many as it has room for.

    Catches places in the queue that are counted in bfloat16, where 256 + 1 is 256."""
    chosen, _ = best(case)
    kept = with_room(chosen, case.top_k, 1.25)  # room for more than 256 either way, and for fewer than come
    assert_output(made(subject, case, capacity_factor=1.25), case, chosen, kept=kept)


@examples(quick=2, full=15)
@given(case=sent(), factor=st.sampled_from((0.0, -1.0, -0.5)))
def test_a_capacity_factor_must_be_positive(subject, case, factor):
    """A capacity_factor of zero or below raises ValueError; a tiny one still leaves room for one token.

    Catches a falsy 0.0 that is taken for None, and a capacity rounded down to nothing."""
    because = f"capacity_factor {factor} is not positive"
    refuses(ValueError, lambda: made(subject, case, capacity_factor=factor), because=because)
    chosen, _ = best(case)
    kept = chosen & (chosen.cumsum(0) <= 1)
    assert_output(made(subject, case, capacity_factor=1e-3), case, chosen, kept=kept)


# --- part 3: the bias ------------------------------------------------------------------------------------


@examples(quick=3, full=40)
@given(case=pushed(layers(), (1.0, 0.25, -2.0, 50.0)))
def test_the_bias_chooses_and_weighs_nothing(subject, case):
    """Experts are chosen by logit + bias; the weights are the softmax over the chosen logits alone.

    Catches a bias that is ignored, and one that leaks into the weights and so into the output."""
    moe = made(subject, case)
    set_bias(moe, case.bias)
    chosen, clear = best(case, case.bias)
    weights, experts = routed(moe, case)
    inside = torch.zeros_like(chosen).scatter_(1, experts, True)
    assert_equal(inside[clear], chosen[clear], "who chose whom")
    want = case.logits.gather(1, experts).softmax(-1)
    size = 1 + (case.tokens.abs() @ case.router.double().abs().T).amax(-1, keepdim=True)
    assert_close(
        weights, want, dtype=case.x.dtype, magnitude=size * want, length=case.x.shape[-1], name="the weights"
    )
    assert_output(moe, case, chosen, clear)


@examples(quick=3, full=25)
@given(case=overruled())
def test_the_weights_stay_right_where_the_bias_overrules(subject, case):
    """Under a bias far above the logits, experts that the router would never choose are chosen, and their
    weights are still the softmax over the chosen logits.

    Catches probabilities among all experts, renormalised: those of the chosen are all zero, and 0 / 0."""
    moe = made(subject, case)
    set_bias(moe, case.bias)
    chosen, _ = best(case, case.bias)
    weights, experts = routed(moe, case)
    assert_equal(torch.zeros_like(chosen).scatter_(1, experts, True), chosen, "who chose whom")
    want = case.logits.gather(1, experts).softmax(-1)
    error = 1 + (case.tokens.abs() @ case.router.double().abs().T).amax(-1, keepdim=True)
    assert_close(
        weights, want, dtype=case.x.dtype, magnitude=error, length=case.x.shape[-1], name="the weights"
    )


@examples(quick=3, full=30)
@given(case=pushed(sent(high=9), (4.0, 1.75)), factor=st.sampled_from(FACTORS))
def test_an_expert_has_room_for_those_whom_the_bias_sends(subject, case, factor):
    """With a capacity, too, the bias chooses and weighs nothing: an expert serves the first of those whom logit
    + bias sent to it.

    Catches a way with a capacity that routes for itself, by the logits alone."""
    tokens, n_experts = len(case.x), len(case.router)
    factor = factor if even(factor, tokens, case.top_k, n_experts) else 1.0
    moe = made(subject, case, capacity_factor=factor)
    set_bias(moe, case.bias)
    chosen, _ = best(case, case.bias)
    name = f"the output, with room for {capacity(factor, tokens, case.top_k, n_experts)} in each expert,"
    assert_output(moe, case, chosen, kept=with_room(chosen, case.top_k, factor), name=name)


@examples(quick=2, full=15)
@given(case=sent(), seed=st.integers(0, 99))
def test_the_bias_is_a_buffer(subject, case, seed):
    """bias starts at zero, is in the state dict, is no parameter, and another layer loads it.

    Catches a parameter that the optimiser moves, a buffer that is not saved, and one shared by all layers."""
    moe, other = made(subject, case), made(subject, case)
    assert_true(
        "bias" in dict(moe.named_buffers()), "bias is no buffer", got=sorted(dict(moe.named_buffers()))
    )
    assert_equal(moe.bias.double(), torch.zeros(len(case.router), dtype=torch.float64), "the bias at first")
    noise = torch.randn(len(case.router), generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    set_bias(moe, noise)
    assert_true(
        bool((other.bias == 0).all()), "the bias of another layer changed", expected=0.0, got=other.bias
    )
    state = moe.state_dict()
    assert_equal(sorted(state), sorted([*case.weights, "bias"]), "the names in the state dict")
    other.load_state_dict(state)
    assert_equal(other.bias, moe.bias, "the bias that was loaded")


@examples(quick=10, full=40)
@given(
    case=votes(dtypes=EXACT),
    rate=st.sampled_from((None, 0.125, 1e-3, 2.0)),
    start=st.sampled_from((0.0, 0.5)),
    training=st.booleans(),
)
def test_update_bias_moves_against_the_load(subject, case, rate, start, training):
    """Experts above the mean load go down by rate, those below it go up by rate, those at it stay; in
    training and in evaluation.

    Catches the sign turned round, a step in proportion to the load, the median for the mean, a rate that is
    ignored, a bias that starts afresh, and a load of first choices only."""
    n_experts = case.logits.shape[-1]
    moe = subject.MoE(2, 3, n_experts, case.experts.shape[-1]).double().train(training)
    set_bias(moe, torch.full((n_experts,), start).double())
    held, more = moe.bias, {} if rate is None else {"rate": rate}
    load = torch.stack([(case.experts == e).sum() for e in range(n_experts)])
    step = (load.sum() - n_experts * load).sign().double() * (1e-3 if rate is None else rate)
    want = torch.full((n_experts,), start).double()
    turned = (n_experts - 1 - case.experts, step.flip(0))
    for times, (experts, move) in enumerate(((case.experts, step), turned, (case.experts, step)), start=1):
        moe.update_bias(experts, **more)
        want = want + move
        # A rate that was rounded to float32 is right as well.
        assert_close(
            moe.bias.float(), want, dtype=torch.float32, magnitude=8.0,
            name=f"the bias after update {times}, by the experts {experts.tolist()},",
        )  # fmt: skip
    assert_true(
        held is moe.bias, "bias was replaced, not changed in place", expected="the same tensor", got="another"
    )


@examples(quick=1, full=12)
@given(dtype=st.sampled_from((torch.float32, torch.bfloat16)), turned=st.booleans())
def test_update_bias_counts_hundreds_of_tokens(subject, dtype, turned):
    """After loads of 720, 240 and 80 the first expert goes down and the others, below the mean of 347, go up.

    Catches loads that are counted in bfloat16 and stop at 256, which moves the mean below the second, and
    those of the first tokens only."""
    experts = torch.tensor([0] * 720 + [1] * 240 + [2] * 80)
    experts = experts.flip(0) if turned else experts
    moe = subject.MoE(2, 3, 3, 1).to(dtype)
    moe.update_bias(experts[:, None], rate=0.5)
    assert_equal(moe.bias.double().tolist(), [-0.5, 0.5, 0.5], "the bias")


@examples(quick=2, full=15)
@given(case=votes(), by=st.integers(0, 2))
def test_unknown_experts_move_no_bias(subject, case, by):
    """An expert outside 0 … n_experts − 1 in update_bias raises ValueError, and the bias stays.

    Catches counts that grow beyond the experts, and negative numbers that wrap around."""
    n_experts = case.logits.shape[-1]
    moe = subject.MoE(2, 3, n_experts, case.experts.shape[-1])
    for bad in (n_experts + by, -1 - by):
        wrong = case.experts.clone()
        wrong.view(-1)[-1] = bad
        because = f"in {wrong.tolist()} there is an expert {bad}, and the experts are 0 … {n_experts - 1}"
        refuses(ValueError, lambda wrong=wrong: moe.update_bias(wrong), because=because)
    assert_equal(
        moe.bias.double(), torch.zeros(n_experts, dtype=torch.float64), "the bias after the refusals"
    )


@examples(quick=0, full=10)
@given(seed=st.integers(0, 999))
def test_updates_balance_a_crowded_expert(subject, seed):
    """A router that sends all tokens to one expert is balanced by a hundred updates.

    Catches a bias that moves but steers nothing, and one that drives the load apart."""
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = 1.0
    moe = subject.MoE(4, 1, 4, 1)
    with torch.no_grad():
        moe.router.weight.copy_(torch.eye(4) * torch.tensor([3.0, 0.25, 0.25, 0.25]))
        for _ in range(100):
            moe.update_bias(moe.route(x)[1], rate=0.05)
        load = moe.route(x)[1].flatten().bincount(minlength=4)
    assert_true(bool(load.max() <= 30), "an expert still has most of the tokens", expected=12, got=load)


# --- what tells one mistake from another -----------------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    noise = torch.randn(200, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    router, gate, up, down = (
        noise[i : i + math.prod(shape)].reshape(shape)
        for i, shape in ((0, (3, 4)), (20, (3, 2, 4)), (60, (3, 2, 4)), (100, (3, 4, 2)))
    )
    x = noise[140:164].reshape(6, 4)
    crowd = x.sign() * x.abs() + 2 * router[0]  # all of them want expert 0

    def layer(top_k=2, **more):
        case = Layer(x, router, gate, up, down, top_k)
        return loaded(subject.MoE(4, 2, 3, top_k, **more).double(), case.weights)

    def biased(values=(0.0, 3.0, 0.0), **more):
        moe = layer(**more)
        set_bias(moe, torch.tensor(values))
        return moe

    def route(moe, x=x):
        weights, experts = moe.route(x)
        experts, order = experts.sort(dim=-1)
        return [weights.detach().gather(-1, order), experts.long()]

    def slopes(moe, x=x, names=("router.weight", "w_gate")):
        own, leaf = dict(moe.named_parameters()), x.clone().requires_grad_()
        return list(gradients(moe(leaf), [leaf, *(own[name] for name in names)], x.cos()))

    def afterwards(moe):
        mine = x.clone()
        moe(mine)
        return mine

    def idle():
        moe = layer(1)
        with torch.no_grad():
            moe.w_up[1:] = math.nan
        return moe(crowd[:1])

    def growth():
        moe = layer()
        return cost(moe, torch.cat([x] * 4)).operations <= 2 * cost(moe, x).operations

    def thrifty(tokens):
        return cost(layer(1), tokens).products <= 1.5 * len(tokens) * (3 * 4 * 2 + 3 * 4)

    def half():
        return layer().bfloat16()(x.bfloat16())

    def lopsided():
        one = torch.ones(33, 1, 1, dtype=torch.bfloat16)
        router = torch.tensor([6.0] + [0.0] * 32, dtype=torch.bfloat16)[:, None]
        case = Layer(one[0], router, one, one, one, 33)
        return loaded(subject.MoE(1, 1, 33, 33).bfloat16(), case.weights)(case.x)

    def answered(top_k, **more):
        """Which of 700 tokens in bfloat16 have an answer. Most of them want expert 0."""
        tokens = torch.full((700, 4), -1, dtype=torch.bfloat16)
        first = torch.arange(700) % 9 % 5 % 3
        tokens[torch.arange(700), first] = 1.0
        tokens[torch.arange(700), (first + 1) % 3] = 0.5
        eye, one = torch.eye(3, 4), torch.ones(3, 4, 4)
        moe = subject.MoE(4, 4, 3, top_k, **more).bfloat16()
        return (loaded(moe, Layer(tokens, eye, one, one, one, top_k).weights)(tokens) != 0).any(-1)

    def updated(*experts, training=True, **more):
        moe = biased((0.5, 0.0, -0.5)).train(training)
        for one in experts:
            moe.update_bias(torch.tensor(one), **more)
        return moe.bias.double()

    def updated_by_many():
        moe = layer().bfloat16()
        moe.update_bias(torch.tensor([[0]] * 720 + [[1]] * 240 + [[2]] * 80), rate=0.5)
        return moe.bias.sign().tolist()

    def shape_of(moe, *shape):
        return list(moe(x[:0].reshape(*shape, 4)).shape)

    def valued(call, *args):
        """Is it refused by a ValueError?"""
        try:
            call(*args)
        except Exception as error:
            return isinstance(error, ValueError)
        return False

    def unknown():
        loss, scores = subject.load_balancing_loss, x[:, :3]
        return [valued(loss, scores, votes + by) for by in (-1, 1)] + [
            valued(layer().update_bias, votes + by) for by in (-1, 1)
        ]

    def refused_update():
        moe = biased()
        valued(moe.update_bias, votes[:1] + 2)
        return moe.bias.clone()

    def kinds():
        moe = biased()
        return ["bias" in names for names in map(dict, (moe.named_buffers(), moe.named_parameters()))] + [
            "bias" in moe.state_dict()
        ]

    def run_and_look(moe):
        moe(x)
        return moe.bias.clone()

    def fewer():
        moe = layer(capacity_factor=0.4)
        moe(crowd)
        return moe(crowd[:2])

    def replaced():
        moe = layer()
        held = moe.bias
        moe.update_bias(torch.tensor([[0]]))
        return held is moe.bias

    def alike():
        fresh, other = subject.MoE(4, 2, 3, 2), subject.MoE(4, 2, 3, 2)
        return all(torch.equal(w[0], w[1]) for w in (fresh.w_gate, fresh.w_up, fresh.w_down)), torch.equal(
            fresh.w_up, other.w_up
        )

    def loss_slope(experts):
        leaf = x[:, :3].clone().requires_grad_()
        return gradients(subject.load_balancing_loss(leaf, experts), [leaf])[0].float()

    votes = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0], [0, 1], [2, 0]])
    return {
        "output": lambda: layer()(x),
        "output, one expert each": lambda: layer(1)(x),
        "output, all experts": lambda: layer(3)(x),
        "output, batched": lambda: layer()(x.reshape(2, 3, 4)),
        "output, evaluated": lambda: layer().eval()(x),
        "output, bfloat16": half,
        "output, many experts": lopsided,
        "route": lambda: route(layer()),
        "route, bfloat16": lambda: str(layer().bfloat16().route(x.bfloat16())[0].dtype),
        "no tokens": lambda: shape_of(layer(), 2, 0),
        "capacity, no tokens": lambda: shape_of(layer(capacity_factor=1.0), 0),
        "capacity, negative": lambda: len(subject.MoE(4, 2, 3, 2, capacity_factor=-1.0).state_dict()),
        "unknown experts": unknown,
        "bias, after a refusal": refused_update,
        "bias, with a capacity": lambda: biased(capacity_factor=0.5)(crowd),
        "loss, batched": lambda: subject.load_balancing_loss(
            x[:, :3].reshape(2, 3, 3), votes.sort(0).values.reshape(2, 3, 2)
        ).float(),
        "route, large logits": lambda: route(layer(), x * 1e4),
        "gradients": lambda: slopes(layer()),
        "x afterwards": lambda: afterwards(layer()),
        "idle experts": idle,
        "products": lambda: [thrifty(tokens) for tokens in (x, crowd)],
        "operations": growth,
        "hundreds of tokens": lambda: answered(2),
        "fresh experts": alike,
        "too many choices": lambda: route(subject.MoE(4, 2, 2, 3).double())[1],
        "another width": lambda: layer()(x[:, :3]),
        "loss": lambda: subject.load_balancing_loss(x[:, :3], votes).float(),
        "loss, one choice": lambda: subject.load_balancing_loss(x[:, :3], votes[:, :1]).float(),
        "loss, its gradient": lambda: loss_slope(votes),
        "loss, unknown expert": lambda: subject.load_balancing_loss(x[:, :3], votes - 1),
        "loss, another shape": lambda: subject.load_balancing_loss(x[:, :3], votes.reshape(2, 3, 2)),
        "loss, hundreds of tokens": lambda: subject.load_balancing_loss(
            torch.eye(3, dtype=torch.bfloat16)[[0] * 600 + [1] * 100], torch.tensor([[0]] * 600 + [[1]] * 100)
        ),
        "loss, in float64": lambda: subject.load_balancing_loss(x[:2, :3], votes[:2]).detach(),
        "loss, half": lambda: subject.load_balancing_loss(x[:, :3].bfloat16(), votes).dtype,
        "capacity": lambda: layer(capacity_factor=0.8)(crowd),
        "capacity, one expert each": lambda: layer(1, capacity_factor=0.8)(crowd),
        "capacity, batched": lambda: layer(capacity_factor=0.8)(crowd.reshape(2, 3, 4)),
        "capacity, evaluated": lambda: layer(capacity_factor=0.8).eval()(crowd),
        "capacity, of order": lambda: layer(capacity_factor=0.8)(crowd.flip(0)),
        "capacity, of fewer": fewer,
        "capacity, mixed": lambda: layer(capacity_factor=0.5)(x),
        "capacity, route": lambda: route(layer(capacity_factor=0.5), crowd),
        "capacity, gradients": lambda: slopes(layer(capacity_factor=0.5), crowd),
        "capacity, none": lambda: layer(capacity_factor=0.0)(crowd),
        "capacity, tiny": lambda: layer(capacity_factor=1e-3)(crowd),
        "capacity, hundreds of tokens": lambda: answered(1, capacity_factor=1.25),
        "bias, route": lambda: route(biased()),
        "bias, small": lambda: route(biased((0.0, 0.4, -0.4))),
        "bias, replaced": replaced,
        "a size below 0": lambda: len(subject.MoE(4, 2, 3, -1).state_dict()),
        "bias, overruling": lambda: route(biased((0.0, 1e6, 2e6)), x * 1e4),
        "bias, output": lambda: biased(top_k=1)(x),
        "bias, kinds": kinds,
        "bias, after a call": lambda: run_and_look(biased()),
        "bias, updated": lambda: updated([[0], [0], [1]]),
        "bias, updated twice": lambda: updated([[0, 1], [0, 2]], [[2, 1], [2, 0]], rate=0.25),
        "bias, updated by all choices": lambda: updated([[0, 1], [0, 1], [2, 1]], rate=0.5),
        "bias, updated in evaluation": lambda: updated([[0], [0], [1]], training=False),
        "bias, updated by hundreds": updated_by_many,
        "bias, median": lambda: updated([[0]] * 5 + [[1]] * 3 + [[2]], rate=0.5),
        "bias, level": lambda: updated([[0], [1], [2]], rate=0.5),
        "bias, unknown expert": lambda: updated([[-1]]),
    }
