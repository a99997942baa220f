"""The laws of multi-head attention: every head attends through rows of its own, in order; heads of a group
share their keys and values; and a token sees the tokens that causal and window leave it, and no other."""

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
    assert_equal,
    assert_tensor,
    assert_true,
    gradients,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import LAYOUTS, examples, fill, laid_out

NAMES = ("wq", "wk", "wv", "wo")
PLAIN = ((1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (3, 2), (2, 4), (4, 2), (4, 3), (5, 2))  # heads, head_dim
SEVERAL = tuple(size for size in PLAIN if size[0] > 1)
EVEN = ((1, 2), (2, 4), (3, 2), (3, 4), (1, 4), (5, 2), (2, 6))
GROUPED = (
    (2, 1, 3),
    (4, 2, 1),
    (3, 1, 2),
    (4, 1, 3),
    (6, 2, 4),
    (6, 3, 4),
    (6, 2, 1),
    (8, 2, 3),
)  # heads, their keys, dim
GROUPED_EVEN = ((3, 1, 2), (2, 1, 4), (6, 2, 4), (6, 3, 4), (8, 2, 6))
SHORT = ((1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (2, 3), (3, 2), (1, 5), (2, 5), (3, 4))  # batch, time
LONGER = tuple(size for size in SHORT if size[1] > 1)
SQUARE = ((2, 2), (2, 2), (3, 3))
WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)
LOUDNESS = (0.5, 0.25, 1.0)
ROPES = ("quarter turns", 10000.0, 100.0, 2.0, "any")
ROWS = ("none", "one row for all", "one row each", "int32")
PLACES = st.integers(0, 9)
SIMPLE = ("one-hot", "any", "any", "any")
SIMPLEST = ("means", *SIMPLE)
"""Kinds of weights, those first that a person can follow, since that is where shrinking ends."""


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Case:
    """A module and its input. A rope of None, a window of None and positions of None are left out."""

    x: Tensor
    wq: Tensor
    wk: Tensor
    wv: Tensor
    wo: Tensor
    n_heads: int
    n_kv_heads: int | None = None
    causal: bool = False
    rope: tuple[Tensor, Tensor] | None = None
    positions: Tensor | None = None
    window: int | None = None

    @property
    def head_dim(self):
        return self.x.shape[2] // self.n_heads


def cases(
    heads=PLAIN,
    times=SHORT,
    *,
    causal=(False, True),
    dtypes=WIDE,
    loudness=LOUDNESS,
    layouts=tuple(LAYOUTS.elements),
    ropes=(None,),
    rows=("none",),
    windows=False,
    kinds=("any",),
):
    """Sizes, smallest first, since that is where shrinking ends; then how the tensors are made."""
    sizes = sorted(product(heads, times, causal), key=lambda s: (math.prod(s[0]) * math.prod(s[1]), s))
    makes = list(product(kinds, layouts, loudness, dtypes))
    turns = list(product(ropes, rows)) if ropes != (None,) else []
    return drawn(*(st.sampled_from(every) if every else None for every in (sizes, makes, turns)), windows)


@st.composite
def drawn(draw, sizes, makes, turns, windows):
    """Weights and input are filled at once: that is the cheapest, and a byte is a byte in shrinking."""
    (H, *KV, D), (B, T), causal = draw(sizes)
    kind, layout, loud, dtype = draw(makes)
    K = (KV or [H])[0] * D
    shapes = (B, T, H * D), (H * D, H * D), (K, H * D), (K, H * D), (H * D, H * D)
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    x, *weights = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    weights = [loud * w for w in weights]
    if kind != "any":
        x, weights = followed(kind, x, K)
    weights = (w.to(dtype) for w in weights)
    case = Case(laid_out(x.to(dtype), layout), *weights, H, *KV, causal=causal)
    rope, how = draw(turns) if turns is not None else (None, None)
    if rope is not None:
        case.rope, case.positions = turned(draw(PICKS), rope, how, B, T, D)
    if windows and causal:
        case.window = draw(WINDOWS) % (T + 1) + 1
    return case


def followed(kind, x, keys):
    """One-hot rows: q, k and v are channels of x, as they are, and wo puts the heads in reverse order. For
    means, wq and wk are 0, so that all scores are, and x counts."""
    wide = x.shape[2]
    rows = torch.eye(wide, dtype=x.dtype)
    back = rows.flip(0)
    if kind == "one-hot":
        return x, [rows, rows[:keys], rows[:keys], back]
    count = torch.arange(1, x.numel() + 1, dtype=x.dtype).reshape(x.shape)
    return count, [0 * rows, 0 * rows[:keys], rows[:keys], back]


PICKS = st.binary(min_size=1, max_size=17)
WINDOWS = st.integers(0, 5)


def turned(picks, rope, how, B, T, D):
    """Tables, some rows longer than the input or made of anything at all, and positions in them.

    Where positions are given the tables may be shorter than the input: rows may be named twice."""
    length = T + picks[0] % 4 if how == "none" or picks[0] % 3 != 2 else 1 + picks[0] % T
    if rope == "any":
        noise = torch.randn(2, length, D // 2, generator=torch.Generator().manual_seed(picks[-1]))
        cos, sin = (noise * 8).round() / 8
    elif rope == "quarter turns":
        quarters = torch.outer(torch.arange(length), torch.arange(1, D // 2 + 1)) % 4
        cos, sin = torch.tensor([1.0, 0, -1, 0])[quarters], torch.tensor([0.0, 1, 0, -1])[quarters]
    else:
        cos, sin = tables(length, D, rope)
    if how == "none":
        return (cos, sin), None
    count = T if how == "one row for all" else B * T
    positions = [(i + b) % length for i, b in enumerate(picks[1:].ljust(count, b"\0")[:count])]
    positions = torch.tensor(positions, dtype=torch.int32 if how == "int32" else torch.int64)
    return (cos, sin), positions if count == T else positions.reshape(B, T)


def tables(length, head_dim, base, start=0):
    """The angles of RoPE: row p, column i is p · base^(−2i / head_dim)."""
    pace = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(start, start + length, dtype=torch.float64), pace)
    return angles.cos().float(), angles.sin().float()


@st.composite
def sloped(draw, drawn):
    """A case, and the gradient that arrives from above."""
    case = draw(drawn)
    return case, fill(draw, case.x.shape, dtype=case.x.dtype, scale=4.0)


def made(subject, case):
    """The module of a case, with its weights loaded."""
    given = {name: getattr(case, name) for name in ("n_kv_heads", "causal", "rope", "window")}
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    module = subject.MultiHeadAttention(case.x.shape[2], case.n_heads, **options)
    weights = {f"{name}.weight": getattr(case, name) for name in NAMES}
    held = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    want = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert_equal(held, want, "what the state dict holds")
    module = module.to(case.x.dtype)
    module.load_state_dict(weights)
    return module


def apply(module, case):
    """The call itself. Whatever is claimed of its result, the input and the weights must be left alone."""
    inputs = {"x": case.x, "positions": case.positions, **dict(module.named_parameters())}
    inputs |= dict(zip(("cos", "sin"), case.rope or (), strict=False))
    inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    got = module(case.x) if case.positions is None else module(case.x, positions=case.positions)
    untouched(before, inputs)
    return got


def attend(subject, case):
    return apply(made(subject, case), case)


def changed(case, **fields):
    """The case itself with other fields, so that the card shows what the module was given."""
    for name, value in fields.items():
        setattr(case, name, value)
    return case


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """The module in float64, straight from the definition, with what bounds its rounding errors.

    ``_heads`` and ``backward`` compute the values, or with ``size`` the sums of the absolute values of the
    same terms, which is what a rounding error is measured against.
    """

    def __init__(self, case):
        self.case, self.dtype = case, case.x.dtype
        self.x, *weights = (x.detach().double() for x in (case.x, *(getattr(case, n) for n in NAMES)))
        D, H = case.head_dim, case.n_heads
        self.wq, self.wk, self.wv = (w.unflatten(0, (-1, D)) for w in weights[:3])  # (heads, dim, model)
        self.wo = weights[3].unflatten(1, (H, D))  # (model, heads, dim)
        self.group = H // len(self.wk)
        self.server = torch.arange(H) // self.group  # which head of keys serves each query head
        T = case.x.shape[1]
        i, j = torch.arange(T)[:, None], torch.arange(T)
        self.seen = torch.ones(T, T, dtype=torch.bool)
        if case.causal:
            self.seen = j <= i
        if case.window is not None:
            self.seen = self.seen & (i - j < case.window)
        self.turn = None if case.rope is None else self._turn(T, D)
        # d_model, head_dim, keys, d_model again; and in the backward pass batch and time
        self.length = 4 * case.x.shape[2] + 2 * case.x.shape[0] * T
        self.steps = 6
        self.unit = float(tolerance(self.dtype, length=self.length, steps=self.steps))

        self.q, self.k, self.v = self._heads()
        scores = (D**-0.5 * self.q @ self.k.mT).where(self.seen, -torch.inf)
        self.w = scores.softmax(-1)
        self.o = self.w @ self.v
        self.out = torch.einsum("bhtd,mhd->btm", self.o, self.wo)

    def _turn(self, T, D):
        """For every token the matrix that turns its channels, (batch or 1, time, dim, dim)."""
        rows = torch.arange(T) if self.case.positions is None else self.case.positions.long()
        cos, sin = (torch.diag_embed(table.double()[rows]) for table in self.case.rope)
        turn = torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)
        return turn if turn.ndim == 4 else turn[None]

    def _heads(self, size=False):
        """q, k and v of every query head, (batch, heads, time, dim)."""
        a = torch.abs if size else torch.Tensor.double
        q, k, v = (torch.einsum("btm,hdm->bhtd", a(self.x), a(w)) for w in (self.wq, self.wk, self.wv))
        if self.turn is not None:
            q, k = (
                torch.einsum("btij,bhtj->bhti", a(self.turn).expand(len(q), -1, -1, -1), h) for h in (q, k)
            )
        return q, k[:, self.server], v[:, self.server]

    def growth(self, loudness):
        """e^{2η} − 1, in units of the tolerance, where η bounds the rounding errors of a score."""
        return (2 * self.unit * loudness).clamp(max=50).expm1() / self.unit

    def sizes(self):
        """The sizes of q, k and v, and by how much an error of the scores makes the weights grow."""
        q, k, v = self._heads(size=True)
        loudness = self.case.head_dim**-0.5 * q @ k.mT
        return q, k, v, self.growth(loudness.where(self.seen, 0).amax(-1, keepdim=True))

    def magnitude(self):
        """If every score is off by at most η, a weight is off by at most (e^{2η} − 1)·min(w, 1 − w)."""
        *_, v, growth = self.sizes()
        o = 2 * self.w @ v + growth * (torch.minimum(self.w, 1 - self.w) @ v)
        return torch.einsum("bhtd,mhd->btm", o, self.wo.abs())

    def agrees(self, got, name="the result", want=None, times=1, rows=slice(None)):
        """``got`` must be the rows of the truth (or of ``want``) within what rounding explains."""
        assert_close(
            got, (self.out if want is None else want)[:, rows], dtype=self.dtype, length=self.length,
            magnitude=times * self.magnitude()[:, rows], steps=self.steps, name=name,
        )  # fmt: skip

    def backward(self, upstream, size=False):
        """The gradients of Σ upstream · out by name."""
        a = torch.abs if size else torch.Tensor.double
        sign = 1 if size else -1
        q, k, v = self._heads(size)
        x, wq, wk, wv, wo, g = map(a, (self.x, self.wq, self.wk, self.wv, self.wo, upstream.double()))
        o = self.w @ v
        above = torch.einsum("btm,mhd->bhtd", g, wo)
        pull = above @ v.mT
        ds = self.case.head_dim**-0.5 * self.w * (pull + sign * (self.w * pull).sum(-1, keepdim=True))
        dq, dk, dv = ds @ k, ds.mT @ q, self.w.mT @ above
        dk, dv = (d.unflatten(1, (-1, self.group)).sum(2) for d in (dk, dv))
        if self.turn is not None:
            turn = a(self.turn).expand(len(q), -1, -1, -1)
            dq, dk = (torch.einsum("btji,bhtj->bhti", turn, d) for d in (dq, dk))
        found = {"wo": torch.einsum("btm,bhtd->mhd", g, o).flatten(1), "x": torch.zeros_like(x)}
        for name, d, w in (("wq", dq, wq), ("wk", dk, wk), ("wv", dv, wv)):
            found[name] = torch.einsum("bhtd,btm->hdm", d, x).flatten(0, 1)
            found["x"] = found["x"] + torch.einsum("bhtd,hdm->btm", d, w)
        return found

    def gradients_agree(self, module, upstream):
        """The gradients of x and of the four weights must be those of the definition."""
        x = self.case.x.detach().clone().requires_grad_()
        weights = dict(module.named_parameters())
        assert_equal(
            sorted(weights), sorted(f"{name}.weight" for name in NAMES), "the names of the parameters"
        )
        out = apply(module, replace(self.case, x=x))
        assert_tensor(out, shape=x.shape, dtype=x.dtype)
        found = gradients(out, [x, *(weights[f"{name}.weight"] for name in NAMES)], upstream)
        want, size = self.backward(upstream), self.backward(upstream, size=True)
        loose = 2 + 4 * float(self.sizes()[3].amax())
        for name, got in zip(("x", *NAMES), found, strict=True):
            assert_close(
                got, want[name], dtype=self.dtype, length=self.length, steps=self.steps,
                magnitude=loose * size[name], name=f"the gradient of {name}",
            )  # fmt: skip


def with_noise(case, hidden, size):
    """The case, now with other tokens wherever ``hidden``, (time,), says so."""
    return changed(case, x=case.x.where(~hidden[:, None], torch.full_like(case.x, size)))


# --- part 1: heads -------------------------------------------------------------------------------


@examples(quick=4, full=16)
@given(size=st.sampled_from(PLAIN + EVEN), causal=st.booleans(), rope=st.booleans())
def test_the_module_holds_four_weights_of_its_own(subject, size, causal, rope):
    """The parameters are wq, wk, wv and wo, each `.weight` and trainable; the state dict holds nothing
    else, and two modules share nothing.

    Catches biases, other names and layouts, tables or masks stored as buffers, and weights made once for all."""
    heads, head_dim = size
    d_model = heads * head_dim
    options = {"causal": causal}
    if rope and head_dim % 2 == 0:
        options["rope"] = tables(5, head_dim, 100.0)
    one, two = (subject.MultiHeadAttention(d_model, heads, **options) for _ in range(2))
    want = {f"{name}.weight": (d_model, d_model) for name in NAMES}
    for held in (dict(one.named_parameters()), one.state_dict()):
        assert_equal({name: tuple(w.shape) for name, w in held.items()}, want, "the weights and their shapes")
    assert_true(all(p.requires_grad for p in one.parameters()), "a weight is not trainable")
    apart = {p.data_ptr() for module in (one, two) for p in module.parameters()}
    assert_equal(len(apart), 8, "the number of weights in two modules that lie apart in memory")


@examples(quick=3, full=24)
@given(case=cases())
def test_the_result_has_the_shape_and_dtype_of_x(subject, case):
    """The result is one new tensor of x's shape and dtype, and x and the weights still hold what they held.

    Catches weights returned too, heads left unmerged, and an x that is changed in place."""
    got = attend(subject, case)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)


@examples(quick=4, full=24)
@given(case=cases(SEVERAL, LONGER, kinds=("means",), loudness=(1.0,)))
def test_equal_scores_give_the_mean_of_what_a_token_sees(subject, case):
    """Where wq and wk are 0 all scores are equal, so that a token gets the mean of the values that it sees,
    channel by channel, put through wo.

    Here wv leaves x as it is and wo turns the order of the channels round. Catches a reshape where a
    transpose is due, on the way in or out, x taken as (time, batch, d_model), wo left out, and causal ignored."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=cases(times=LONGER, causal=(False,), kinds=SIMPLE))
def test_scores_are_divided_by_the_root_of_head_dim(subject, case):
    """The weights are softmax(q·k / √head_dim).

    Catches √d_model, a forgotten scale, and one that is applied twice."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=cases(SEVERAL, kinds=SIMPLE), head=PLACES)
def test_each_head_has_rows_of_its_own(subject, case, head):
    """With the columns of wo zero for all heads but one, the result is that head's attention, made of that
    head's rows of wq, wk and wv, and no other row has a say.

    Catches channels dealt out to the heads in turn, a reshape where a transpose is due, on the way in or
    out, and heads merged in another order."""
    head, D = head % case.n_heads, case.head_dim
    mine = torch.arange(case.x.shape[2]) // D == head
    changed(case, wo=case.wo * mine)
    Truth(case).agrees(attend(subject, case), name=f"the result of head {head} alone")
    others = {name: getattr(case, name).where(mine[:, None], 0.5) for name in ("wq", "wk", "wv")}
    changed(case, **others)
    Truth(case).agrees(attend(subject, case), name=f"the result of head {head} beside other heads")


@examples(quick=3, full=24)
@given(case=cases(times=LONGER, causal=(False,), kinds=SIMPLE), turn=PLACES)
def test_the_order_of_tokens_does_not_matter_unless_causal(subject, case, turn):
    """Without causal and rope, tokens in another order give the same rows in that order.

    Catches a causal mask that is always on, and time mixed up with heads in a reshape."""
    truth, got = Truth(case), attend(subject, case)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    truth.agrees(got)
    changed(case, x=case.x.flip(1).roll(turn, 1))
    want = got.flip(1).roll(turn, 1)
    Truth(case).agrees(attend(subject, case), want=want, times=2, name="what x gives in this order")


@examples(quick=3, full=30)
@given(case=cases(times=LONGER, causal=(True,), kinds=SIMPLEST))
def test_causal_shows_a_token_the_past_and_itself(subject, case):
    """Token t attends to the tokens 0 … t.

    Catches causal ignored, and a triangle that is off by one or turned round."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=cases(times=LONGER, causal=(True,)), place=PLACES, size=st.sampled_from((1.0, 100.0)))
def test_future_tokens_never_matter(subject, case, place, size):
    """Whatever comes after a token, its row stays as it was.

    Catches a mask laid over the weights and not over the scores, and fills that large scores overrun."""
    time = case.x.shape[1]
    place %= time
    truth = Truth(case)
    with_noise(case, torch.arange(time) > place, size)
    truth.agrees(attend(subject, case)[:, : place + 1], rows=slice(place + 1))


@examples(quick=3, full=24)
@given(case=cases(times=((2, 1), (2, 3), (3, 2), (3, 4))), place=PLACES)
def test_batch_entries_are_independent(subject, case, place):
    """A sequence alone gives what it gives in a batch.

    Catches attention across the batch, and batch and time mixed up in a reshape."""
    got, at = attend(subject, case), place % case.x.shape[0]
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    alone = replace(case, x=case.x[at : at + 1])
    truth = Truth(alone)
    truth.agrees(got[at : at + 1], name="a sequence in a batch")
    truth.agrees(attend(subject, alone), want=got[at : at + 1], times=2, name="a sequence alone")


@examples(quick=3, full=24)
@given(case=cases(times=LONGER), shorter=PLACES)
def test_calls_do_not_remember_each_other(subject, case, shorter):
    """One module, called with other sequences, lengths and batches in between, in training and in evaluation,
    gives each time what it gives to that sequence alone.

    Catches a mask or keys kept from an earlier call, and dropout."""
    module = made(subject, case)
    part = replace(case, x=case.x[:1, : 1 + shorter % case.x.shape[1]])
    turned = replace(case, x=case.x.flip(1))
    for call, mode, now in (
        ("first", True, part), ("second", False, case), ("third", False, turned), ("fourth", True, case),
        ("fifth", True, part),
    ):  # fmt: skip
        module.train(mode)
        how = f"the {call} call, {'in training' if mode else 'in evaluation'}, with x {_shape(now.x)}"
        Truth(now).agrees(apply(module, now), name=how)


def _shape(x):
    return tuple(x.shape)


@examples(quick=2, full=8)
@given(
    case=cases(SEVERAL, LONGER, kinds=SIMPLEST),
    name=st.sampled_from(("wv", "wo", "wq", "wk")),
    training=st.booleans(),
)
def test_new_weights_count_from_the_next_call_on(subject, case, name, training):
    """Weights that are loaded between two calls, or changed in place, are the ones that the second call uses, in
    training and in evaluation.

    Here the second is a half less the first, and shown. Catches weights put together once, when the module is
    made or first called, and kept."""
    module = made(subject, case).train(training)
    Truth(case).agrees(apply(module, case), name="the result before the weights change")
    changed(case, **{name: case.x.new_tensor(0.5) - getattr(case, name)})
    module.load_state_dict({f"{n}.weight": getattr(case, n) for n in NAMES})
    Truth(case).agrees(apply(module, case), name=f"the result after another {name} was loaded")
    changed(case, **{name: -getattr(case, name)})
    with torch.no_grad():
        dict(module.named_parameters())[f"{name}.weight"].neg_()
    Truth(case).agrees(apply(module, case), name=f"the result after {name} changed its sign")


@examples(quick=3, full=30)
@given(case=cases(times=LONGER, loudness=(20.0, 60.0)), place=PLACES)
def test_large_scores_do_not_overflow(subject, case, place):
    """Scores in the thousands and beyond give finite weights, none to a hidden token, and a quiet token beside
    loud ones keeps its own.

    Catches exp without a shift, one maximum for all rows, clamped scores, and hidden scores of −10,000, which are
    the highest where those that count are lower still."""
    quiet = torch.ones(case.x.shape[1], 1, dtype=case.x.dtype)
    quiet[place % len(quiet)] = 1 / 1024
    changed(case, x=case.x * quiet)
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=cases())
def test_the_module_equals_its_definition(subject, case):
    """Value by value, the module equals the heads computed one by one in float64, in float32 and in float64,
    however x lies in memory.

    Catches whatever the laws let through: a weight used transposed, or in the place of another."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=sloped(cases(dtypes=DOUBLE)))
def test_gradients_equal_the_definition(subject, case):
    """The gradients of x and of all four weights are those of the definition.

    Catches weights copied by .data, detached keys, and results computed under no_grad."""
    case, upstream = case
    Truth(case).gradients_agree(made(subject, case), upstream)


@given(case=cases(EVEN, LONGER, ropes=ROPES, kinds=SIMPLE))
def test_rope_turns_queries_and_keys(subject, case):
    """With tables, the queries and keys of every head are turned half-split by the row of their token; the
    values are not.

    Catches interleaved pairs, only one of the two turned, values turned as well, the turn the other way
    round, heads turned as if they were tokens, and tables of one's own."""
    Truth(case).agrees(attend(subject, case))


@given(case=cases(EVEN, (*LONGER, *SQUARE), ropes=ROPES, rows=ROWS[1:], kinds=SIMPLE))
def test_positions_choose_the_rows_of_the_tables(subject, case):
    """Each token is turned by the row that positions names in this call, (time,) for all or (batch, time), in
    any order and with repetitions, the first rows and those beyond the 256th; causal still goes by the order
    in x.

    Catches positions ignored, those of the first sequence used for all, those of the first call used for all, a
    causal mask made of positions, and positions kept in bytes."""
    module = made(subject, case)
    Truth(case).agrees(apply(module, case))
    changed(case, positions=case.positions.flip(-1))
    Truth(case).agrees(apply(module, case), name="the result of a second call, with positions turned round")
    far = tables(300, 2 * case.rope[0].shape[1], 100.0)
    changed(case, rope=far, positions=case.positions % 20 + 270)
    Truth(case).agrees(attend(subject, case), name="the result for rows from the 270th on")


@st.composite
def far_out(draw):
    """Row p is p quarter turns. The two tokens stand two rows apart, so that their score is as low as a token's
    own is high, and each gets its own value; in a second sequence they may stand on the same row."""
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    start, own = draw(st.sampled_from((271, 2051, 40_003))), draw(st.booleans())
    turn, both = torch.arange(start + 4) % 4, torch.eye(2)
    rope = torch.tensor([1.0, 0, -1, 0])[turn, None], torch.tensor([0.0, 1, 0, -1])[turn, None]
    first, second = (torch.kron(both, torch.tensor([row, [0.0, 0.0]])) for row in ([1.0, 0.0], [0.0, 1.0]))
    x = torch.tensor([[[3, -1, 3, -1], [3, 1, 3, 1]]] * 2)
    rows = [[start, start + 2], [start, start]] if own else [start, start + 2]
    tensors = (t.to(dtype) for t in (x, first, first, second, torch.eye(4)))
    return Case(*tensors, 2, rope=rope, positions=torch.tensor(rows))


@examples(quick=2, full=12)
@given(case=far_out())
def test_every_token_is_turned_by_the_very_row_it_names(subject, case):
    """The rows are exactly those that positions name, far out and in half precision, too, and for each sequence
    its own.

    Row p is p quarter turns here, so that a token two rows away gets next to no weight. Catches positions that
    pass through the dtype of x, where bfloat16 counts no further than 256 and float16 than 2,048, or through
    int16, which ends at 32,767, and positions that go to heads for sequences, or to tokens."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=cases(times=LONGER), picks=st.lists(st.integers(-9, 10**6), min_size=5, max_size=5))
def test_without_rope_positions_have_no_effect(subject, case, picks):
    """Positions choose rows of tables. Where there are none they change nothing, whatever they say.

    Catches a causal mask made of positions, and positions that are looked at without need."""
    changed(case, positions=torch.tensor(picks[: case.x.shape[1]]))
    Truth(case).agrees(attend(subject, case))


HALF = {"dtypes": HALF_TYPES, "loudness": (0.25, 0.125)}
QUIET = (0.0625, 0.125)
"""Scores so small that rounding them hardly moves the weights: what is left of an error is not theirs."""


@examples(quick=3, full=30)
@given(case=cases(PLAIN + EVEN, **HALF))
def test_half_precision_equals_the_definition(subject, case):
    """bfloat16 and float16 come back in their own dtype, right within what rounding explains.

    Catches results left in float32, and fills such as −1e9, which float16 does not hold."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=sloped(cases(EVEN, dtypes=HALF_TYPES, loudness=QUIET, ropes=(None, *ROPES))))
def test_half_precision_gradients_equal_the_definition(subject, case):
    """Gradients flow through half precision, with tables and without.

    Catches copies on the way to float32 that cut the graph, and tables that lift the result to float32."""
    case, upstream = case
    Truth(case).gradients_agree(made(subject, case), upstream)


@examples(quick=0, full=1)
@given(seed=st.integers(0, 999))
def test_long_half_precision_sequences_sum_in_float32(subject, seed):
    """Over 1,030 tokens, and over 600 channels, the result is right to what bfloat16 stores.

    Catches running sums in bf16, which stop growing at 256 terms, and a mask that was made for 1,024 tokens."""
    noise = torch.randn(1030, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    long, one = (1 + noise / 4).reshape(1, -1, 1).bfloat16(), torch.ones(1, 1, dtype=torch.bfloat16)
    case = Case(long, 0.25 * one, 0.25 * one, one, one, 1, causal=True)
    with torch.no_grad():  # a loop over pairs of tokens must be able to pay for it
        got = attend(subject, case)
    Truth(case).agrees(got, name="the result over 1,030 tokens")
    wide, row = long[:, :600].mT.repeat(1, 2, 1), torch.full((600, 600), 1 / 512, dtype=torch.bfloat16)
    case = Case(wide, row, row, row, row, 300)
    Truth(case).agrees(attend(subject, case), name="the result over 600 channels")


def test_an_empty_batch_gives_an_empty_result(subject):
    """No sequences in, none out: the shape is (0, time, d_model).

    Catches a loop over sequences that stacks nothing, and a reshape with a −1 that cannot be told."""
    module = subject.MultiHeadAttention(6, 2, causal=True)
    assert_tensor(module(torch.zeros(0, 4, 6)), shape=(0, 4, 6), dtype=torch.float32)


def test_sizes_that_do_not_fit_are_refused(subject):
    """ValueError for sizes below 1, for heads that do not divide d_model, and for tables that do not fit a
    head, as soon as the module is made.

    Catches head_dim rounded down in silence, and tables for d_model rather than head_dim."""
    for d_model, heads in ((7, 2), (6, 4), (0, 1), (-4, 2), (4, 0), (4, -2), (2, 4)):
        because = f"{heads} heads do not divide d_model {d_model}"
        refuses(ValueError, lambda m=d_model, h=heads: subject.MultiHeadAttention(m, h), because=because)
    fits, longer = tables(4, 4, 100.0), tables(5, 4, 100.0)
    narrow = tables(4, 2, 100.0)
    wrong = (
        tables(4, 8, 100.0), narrow, (fits[0], longer[1]), (fits[0], narrow[1]), (narrow[0], fits[1]),
    )  # fmt: skip
    for rope in wrong:
        because = f"tables {[tuple(t.shape) for t in rope]} do not fit heads of 4 channels"
        refuses(ValueError, lambda r=rope: subject.MultiHeadAttention(8, 2, rope=r), because=because)
    refuses(
        ValueError,
        lambda: subject.MultiHeadAttention(6, 2, rope=tables(4, 2, 9.0)),
        because="a head of 3 channels has no pairs",
    )


def test_inputs_that_do_not_fit_are_refused(subject):
    """ValueError for an x of another width or without a batch, and with rope for more tokens than rows, for
    positions of another shape, and for one that is no row.

    Catches negative positions that count from the end, and a longer x whose last tokens go unturned."""
    module = subject.MultiHeadAttention(8, 2, rope=tables(4, 4, 100.0))
    for shape in ((1, 2, 4), (1, 2, 9), (2, 8), (1, 1, 2, 8)):
        refuses(ValueError, lambda s=shape: module(torch.zeros(s)), because=f"x {shape} is not (…, 8)")
    x = torch.zeros(2, 3, 8)
    refuses(ValueError, lambda: module(torch.zeros(2, 5, 8)), because="5 tokens need more than 4 rows")
    for rows in (
        [0, 1, 4],
        [0, -1, 1],
        [0, 1],
        [[0, 1, 2]],
        [[0, 1, 2]] * 3,
        [[0, 1, 2], [0, 1, 9]],
        [[[0, 1, 2]] * 2],
    ):
        refuses(
            ValueError,
            lambda r=rows: module(x, positions=torch.tensor(r)),
            because=f"the positions {rows} do not fit x (2, 3, 8) and 4 rows",
        )


# --- part 2: grouped keys and values -------------------------------------------------------------


@examples(quick=4, full=30)
@given(case=cases(GROUPED, LONGER, kinds=SIMPLEST))
def test_consecutive_heads_share_keys_and_values(subject, case):
    """Query head h is served by the key-value head ⌊h · n_kv_heads / n_heads⌋: 0 0 0 1 1 1, not 0 1 0 1 0 1.

    Where wq and wk are 0 all scores are equal, and a head gives the mean of the values of its key-value head.
    Catches the block of key-value heads repeated as a whole, for both or for one of k and v, the first one
    serving all, and queries averaged over a group."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=20)
@given(case=cases(SEVERAL, LONGER))
def test_as_many_key_value_heads_as_heads_is_plain(subject, case):
    """n_kv_heads = n_heads is what None stands for.

    Catches a grouped branch that is wrong where nothing is shared."""
    changed(case, n_kv_heads=case.n_heads)
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=sloped(cases(GROUPED, dtypes=DOUBLE)))
def test_a_shared_head_collects_the_gradients_of_its_group(subject, case):
    """The gradients of wk and wv are summed over the heads that they serve.

    Catches gradients of one head of the group only, and keys detached before they are repeated."""
    case, upstream = case
    Truth(case).gradients_agree(made(subject, case), upstream)


@examples(quick=3, full=30)
@given(case=cases(GROUPED_EVEN, LONGER, ropes=ROPES, rows=ROWS, kinds=SIMPLE))
def test_grouped_keys_are_turned_as_well(subject, case):
    """Rope turns the shared keys by the rows of their tokens.

    Catches rope that is applied where keys and queries have equally many heads only."""
    Truth(case).agrees(attend(subject, case))


def test_groups_that_do_not_come_out_even_are_refused(subject):
    """ValueError for an n_kv_heads that does not divide n_heads, or is below 1.

    Catches a number of repeats that is rounded down, and 0 taken for not given."""
    for heads, groups in ((4, 3), (6, 4), (2, 4), (2, 0), (2, -1)):
        because = f"n_kv_heads {groups} does not divide {heads} heads"
        refuses(
            ValueError,
            lambda h=heads, g=groups: subject.MultiHeadAttention(12, h, n_kv_heads=g),
            because=because,
        )


# --- part 3: sliding window ----------------------------------------------------------------------

WINDOWED = {"causal": (True,), "windows": True}


@examples(quick=4, full=30)
@given(case=cases(times=LONGER, kinds=SIMPLEST, **WINDOWED))
def test_a_token_sees_the_last_window_tokens(subject, case):
    """Token t attends to the tokens t − window + 1 … t, as far as there are any.

    Where wq and wk are 0 all scores are equal, and the row of a token is the mean of the values that it sees.
    Catches a window that leaves the token itself out of the count, one of fixed blocks, one that looks
    ahead, and a window ignored."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=cases(times=LONGER, **WINDOWED), place=PLACES, size=st.sampled_from((1.0, 100.0)))
def test_tokens_outside_the_window_never_matter(subject, case, place, size):
    """Whatever stands before the window of a token or after the token, its row stays as it was.

    Catches a window laid over the weights after the softmax, and fills that large scores overrun."""
    time = case.x.shape[1]
    place %= time
    age = place - torch.arange(time)
    row, truth = slice(place, place + 1), Truth(case)
    with_noise(case, (age < 0) | (age >= case.window), size)
    truth.agrees(attend(subject, case)[:, row], rows=row, name=f"row {place}")


@examples(quick=3, full=24)
@given(case=cases(causal=(True,)), more=st.integers(0, 3))
def test_a_window_as_long_as_x_hides_nothing(subject, case, more):
    """A window of at least the length of x is plain causal attention.

    Catches a window that must be smaller than x, and one that is cut to its length less one."""
    changed(case, window=case.x.shape[1] + more)
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=cases(EVEN, LONGER, ropes=ROPES, rows=ROWS[1:], kinds=SIMPLEST, **WINDOWED))
def test_the_window_counts_tokens_and_not_positions(subject, case):
    """The window goes by the order in x, whatever rows positions name.

    Catches a mask made of differences of positions."""
    Truth(case).agrees(attend(subject, case))


EVERYTHING = {"ropes": (None, *ROPES), "rows": ROWS}


@given(case=cases((*GROUPED_EVEN, (2, 2, 4), (3, 3, 2)), **EVERYTHING, **WINDOWED))
def test_all_arguments_together_equal_the_definition(subject, case):
    """Groups, tables, positions and window at once: value by value what the definition gives in float64.

    Catches an argument that is heard only where another one is absent."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(
    case=sloped(cases(GROUPED_EVEN, dtypes=(*DOUBLE, *HALF_TYPES), loudness=QUIET, **EVERYTHING, **WINDOWED))
)
def test_gradients_follow_every_argument(subject, case):
    """With groups, tables, positions and window the gradients are those of the definition, in float64 and in
    half precision, in training and in evaluation.

    Catches a hand-written backward pass without the window or with the turn the wrong way round, and no_grad
    in evaluation."""
    case, upstream = case
    module = made(subject, case)
    for training in (True, False):
        Truth(case).gradients_agree(module.train(training), upstream)


@examples(quick=1, full=4)
@given(time=st.integers(70, 150), window=st.integers(1, 70), seed=st.integers(0, 999))
def test_long_sequences_equal_the_definition(subject, time, window, seed):
    """Over a hundred tokens and any window give what the definition gives, and so do a dozen sequences with
    twelve heads and with heads of eighty channels.

    Catches masks of a fixed size, blocks whose ragged end is lost, and sizes that are taken for granted."""
    generator = torch.Generator().manual_seed(seed)
    for batch, tokens, heads, groups, dim in ((1, time, 3, 1, 2), (12, 9, 12, 4, 2), (1, 9, 2, 1, 80)):
        wide, narrow = heads * dim, groups * dim
        shapes = (batch, tokens, wide), (wide, wide), (narrow, wide), (narrow, wide), (wide, wide)
        x, *weights = (torch.randn(shape, generator=generator).double() for shape in shapes)
        weights = (w / (2 * wide**0.5) for w in weights)
        rope = tables(tokens, dim, 100.0)
        case = Case(x, *weights, heads, groups, causal=True, rope=rope, window=1 + window % tokens)
        Truth(case).agrees(attend(subject, case), name=f"the result for x {tuple(x.shape)}")


def test_windows_that_make_no_sense_are_refused(subject):
    """ValueError for a window below 1, and for one without causal.

    Catches 0 taken for no window, and a window that is ignored where causal is not given."""
    for window, causal in ((0, True), (-3, True), (3, False), (0, False)):
        refuses(
            ValueError,
            lambda w=window, c=causal: subject.MultiHeadAttention(4, 2, causal=c, window=w),
            because=f"the window is {window} and causal is {causal}",
        )


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    x = waves(2, 4, 12)
    rows = torch.tensor([[2, 0, 3, 3], [5, 1, 1, 4]])

    state = {
        f"w{c}.weight": 0.5 * waves(12, 12, step=s) for c, s in zip("qkvo", (2.3, 0.9, 3.1, 1.3), strict=True)
    }

    def build(heads=3, groups=None, dtype=torch.float64, **options):
        if groups is not None:
            options["n_kv_heads"] = groups
        module = subject.MultiHeadAttention(12, heads, **options).to(dtype)
        with torch.no_grad():  # load_state_dict is slow
            for name, weight in module.named_parameters():
                weight.copy_(state[name][: len(weight)])
        return module

    def attend(x=x, positions=None, **options):
        def call():
            given = {} if positions is None else {"positions": positions}
            return build(**options)(x.to(options.get("dtype", torch.float64)), **given)

        return call

    def slopes(training=True, **options):
        def call():
            leaf = x.to(options.get("dtype", torch.float64)).clone().requires_grad_()
            module = build(**options).train(training)
            out = module(leaf)
            weights = dict(module.named_parameters())
            return gradients(out, [leaf, *(weights[f"{n}.weight"] for n in NAMES)], x.to(out.dtype))

        return call

    def held(**options):
        return lambda: {
            n: tuple(w.shape) for n, w in subject.MultiHeadAttention(12, 3, **options).state_dict().items()
        }

    def afterwards():
        mine = x.clone()
        build(causal=True)(mine)
        return mine

    def again():
        module = build(causal=True)
        return [module(part).detach() for part in (x[:, :2], x, x[:1])]

    def twice():
        module = build(causal=True).eval()
        return [module(part).detach() for part in (x, -x)]

    def reloaded():
        module = build(causal=True).eval()
        first = module(x).detach()
        module.load_state_dict({name: w.flip(0) for name, w in module.state_dict().items()})
        return [first, module(x).detach()]

    def moved_on():
        module = build(**pairs)
        return [module(x, positions=r).detach() for r in (rows, rows.flip(1))]

    rope, far = tables(6, 4, 100.0), tables(286, 4, 100.0)
    pairs = {"rope": rope, "causal": True}
    return {
        "state dict": held(rope=rope, causal=True),
        "one token": attend(x=x[:, :1]),
        "three calls": again,
        "two calls in evaluation": twice,
        "x afterwards": afterwards,
        "weights loaded between two calls": reloaded,
        "positions of two calls": moved_on,
        "x in strides": attend(x=torch.stack([x, x], dim=-1)[..., 0]),
        "large scores": attend(x=400 * x, causal=True),
        "tables that are no turns": attend(rope=(waves(6, 2).float(), waves(6, 2, step=0.7).float())),
        "an empty batch": attend(x=x[:0], causal=True),
        "positions of as many sequences as heads": attend(
            x=waves(3, 4, 12), positions=torch.cat([rows, rows[:1].flip(1)]), **pairs
        ),
        "positions of as many sequences as tokens": attend(x=x[:, :2], positions=rows[:, :2].int(), **pairs),
        "bf16 far out": attend(positions=57 * rows, rope=far, dtype=torch.bfloat16),
        "n_kv_heads of 0": held(n_kv_heads=0),
        "bf16": attend(dtype=torch.bfloat16, causal=True),
        "bf16 with rope": attend(dtype=torch.bfloat16, **pairs),
        "gradients of groups": slopes(heads=6, groups=2),
        "bf16 gradients": slopes(dtype=torch.bfloat16),
        "gradients in evaluation": slopes(training=False),
        "positions without rope": attend(positions=rows, causal=True),
        "no row": attend(positions=rows + 1, **pairs),
        "a negative row": attend(positions=rows - 2, **pairs),
        "too long for the tables": attend(rope=tables(3, 4, 100.0)),
        "rows beyond the 256th": attend(positions=57 * rows, rope=far),
        "fewer rows than tokens": attend(positions=rows % 3, rope=tables(3, 4, 100.0)),
        "one row of positions": attend(positions=rows[:1], **pairs),
        "heads that do not divide": lambda: tuple(subject.MultiHeadAttention(12, 5).state_dict()),
        "groups of two": attend(heads=6, groups=3),
        "groups of three": attend(heads=6, groups=2, causal=True),
        "groups with rope": attend(heads=3, groups=1, **pairs),
        "groups that do not divide": held(n_kv_heads=2),
        "window of 2": attend(causal=True, window=2),
        "window of 3 with positions": attend(positions=rows, window=3, **pairs),
        "window of 0": held(causal=True, window=0),
        "window without causal": held(window=2),
        "everything": attend(heads=3, groups=1, positions=rows, window=2, **pairs),
    }  # fmt: skip
