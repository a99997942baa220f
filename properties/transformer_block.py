"""The laws of a Transformer block and of the decoder made of it: every part writes into a residual stream,
norms stand before or behind it, no token sees the future, and one matrix serves at both ends."""

import math
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar

import torch
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

HEADS = ((2, 1, None), (4, 2, None), (4, 2, 1), (8, 4, 2), (6, 3, 1), (8, 2, None), (4, 1, None), (12, 6, 3))
"""d_model, n_heads, n_kv_heads."""
TURNING = ((4, 1, None), (8, 2, None), (8, 2, 1), (12, 2, None))
"""Heads of more than one pair of channels, whose second one turns by the base."""
GROUPED = ((2, 1, None), (4, 2, None), (8, 4, 2), (12, 6, 3))
TIMES = ((1, 1), (1, 3), (2, 2), (2, 4), (3, 5), (1, 6))
"""batch and time."""
LAYOUTS = ("contiguous", "transposed", "strided")
WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)
NORMS = ("pre", "post")
PLACES = st.integers(0, 9)


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Stream:
    """x for a block, with the options of the Config and all weights by name. A card shows them part by part."""

    cfg: dict
    x: Tensor
    weights: dict = field(repr=False)
    attention: dict = field(init=False)
    feed_forward: dict = field(init=False)
    norms: dict = field(init=False)

    def __post_init__(self):
        named = {name.removesuffix(".weight"): w for name, w in self.weights.items()}
        self.attention = {n: w for n, w in named.items() if "attn." in n}
        self.feed_forward = {n: w for n, w in named.items() if "ff." in n}
        self.norms = {n: w for n, w in named.items() if w.ndim == 1}


@dataclass
class Silent(Stream):
    """Neither part writes anything: only the norms matter."""

    ZERO: ClassVar = ("wo.weight", "w_down.weight")
    attention: dict = field(init=False, repr=False)
    feed_forward: dict = field(init=False, repr=False)


@dataclass
class AttentionAlone(Stream):
    """The feed-forward network writes nothing, whatever its other two matrices."""

    ZERO: ClassVar = ("w_down.weight",)
    feed_forward: dict = field(init=False, repr=False)


@dataclass
class FeedForwardAlone(Stream):
    """Attention writes nothing, whatever its other three matrices."""

    ZERO: ClassVar = ("wo.weight",)
    attention: dict = field(init=False, repr=False)


@dataclass
class Cut(Stream):
    """A sequence of which the first ``kept`` tokens are also given alone."""

    kept: int


@dataclass
class Sloped(Stream):
    """With the gradient that arrives from above."""

    upstream: Tensor


@dataclass
class Text(Stream):
    """Tokens for a model."""

    x: Tensor = field(repr=False)
    tokens: Tensor = field(init=False)
    embed: Tensor = field(init=False)

    def __post_init__(self):
        super().__post_init__()
        self.tokens, self.embed = self.x, self.weights["embed.weight"]


@dataclass
class CutText(Text):
    kept: int


@dataclass
class RowText(Text):
    """Sequences of which the one at ``row`` is also given alone."""

    row: int


@dataclass
class SlopedText(Text):
    upstream: Tensor


def sizes(heads=HEADS, times=TIMES, norms=NORMS, layers=(1,)):
    return st.sampled_from(list(product(times, norms, layers, heads)))


def made(dtypes=WIDE, eps=(None, 1e-5, 0.3), bases=(None, 100.0, 3.0)):
    return st.sampled_from(list(product(LAYOUTS, dtypes, eps, bases)))


PLAIN = made(eps=(None,), bases=(None,))
"""For claims about the order of things, which an eps or a base not heard is not to break: others are for those."""


def shapes_of(cfg, model):
    """The names and shapes of all parameters, as the contract has them."""
    d, f, h = cfg["d_model"], cfg["d_ff"], cfg["n_heads"]
    kv = (cfg.get("n_kv_heads") or h) * (d // h)
    block = {
        "attn.wq.weight": (d, d), "attn.wk.weight": (kv, d), "attn.wv.weight": (kv, d), "attn.wo.weight": (d, d),
        "attn_norm.weight": (d,), "ff_norm.weight": (d,),
        "ff.w_gate.weight": (f, d), "ff.w_up.weight": (f, d), "ff.w_down.weight": (d, f),
    }  # fmt: skip
    if not model:
        return block
    found = {f"blocks.{n}.{name}": shape for n in range(cfg["n_layers"]) for name, shape in block.items()}
    found["embed.weight"] = (cfg["vocab_size"], d)
    return found | ({"norm.weight": (d,)} if cfg["norm"] == "pre" else {})


def about_root(n):
    return 2.0 ** round(math.log2(n) / 2)


@st.composite
def streams(draw, size=sizes(), make=made(), model=False):
    (batch, time), norm, layers, (d, h, kv) = draw(size)
    layout, dtype, eps, base = draw(make)
    cfg = {
        "d_model": d, "n_heads": h, "n_layers": layers, "d_ff": draw(st.sampled_from((1, 3, 5))),
        "vocab_size": draw(st.sampled_from((2, 3, 7))), "norm": norm,
    }  # fmt: skip
    cfg |= {"n_kv_heads": kv} if kv else {}
    cfg |= {"eps": eps} if eps else {}
    cfg |= {"rope_base": base, "max_len": 16} if base else {}
    shapes = shapes_of(cfg, model)
    counts = [batch * time * d, *map(math.prod, shapes.values())]
    x, *parts = fill(draw, (sum(counts),), dtype=torch.float64).split(counts)
    # Matrices about keep the size of what they multiply, and small numbers short: by a power of two near √in.
    # The weights of a norm are about 1.
    weights = {
        name: (part.reshape(shape) / about_root(shape[1]) if len(shape) == 2 else 1 + part / 4).to(dtype)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    if model:
        x = (x.reshape(batch, time, d)[..., 0] * 1000).long() % cfg["vocab_size"]
        return Text(cfg, x, weights)
    return Stream(cfg, laid_out(x.reshape(batch, time, d).to(dtype), layout), weights)


def models(size=sizes(layers=(1, 2, 3)), make=made()):
    return streams(size, make, model=True)


def silenced(kind, cases):
    """The cases with the last matrix of the parts that ``kind`` hides zero."""

    def silence(case):
        zeroed = {n: torch.zeros_like(w) if n.endswith(kind.ZERO) else w for n, w in case.weights.items()}
        return kind(case.cfg, case.x, zeroed)

    return cases.map(silence)


def with_room(cases, places):
    return cases.map(lambda case: replace(case, cfg=case.cfg | {"max_len": places}))


def quiet(cases, sizes):
    return st.builds(lambda case, size: replace(case, x=case.x * size), cases, st.sampled_from(sizes))


def cut(cases, behind):
    """Cases with something else behind the first ``kept`` tokens."""

    def made(case, place, other):
        kept = place % (case.x.shape[1] - 1) + 1
        x, kind = case.x.clone(), CutText if isinstance(case, Text) else Cut
        x[:, kept:] = other % case.cfg["vocab_size"] if isinstance(case, Text) else other
        return kind(case.cfg, x, case.weights, kept)

    return st.builds(made, cases, PLACES, behind)


def built(subject, case, model=None):
    """The module with its parameters replaced by those of the case. It must have the names that are due."""
    model = not case.x.is_floating_point() if model is None else model
    module = (subject.DecoderLM if model else subject.Block)(subject.Config(**case.cfg))
    named_as_due(module, case, model)
    module = module.to(next(iter(case.weights.values())).dtype)
    module.load_state_dict(case.weights)
    return module


def named_as_due(module, case, model):
    assert_true(isinstance(module, nn.Module), "it is no torch.nn.Module", got=type(module).__name__)
    due = {name: tuple(shape) for name, shape in shapes_of(case.cfg, model).items()}
    found = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert_equal(sorted(found.items()), sorted(due.items()), "the names and shapes of the parameters")
    assert_equal(sorted(module.state_dict()), sorted(due), "the names in the state_dict")


def applied(module, x):
    """The call itself. Whatever is claimed of its result, x must be left as it was."""
    before = x.clone()
    got = module(x)
    untouched({"x": before}, {"x": x})
    return got


# --- what is due ---------------------------------------------------------------------------------


# ``moved`` stands where a gradient is a difference of what may be equal: there rounding shows, however small
# the difference is. ``Truth`` moves those places, too.


def as_it_is(t):
    return t


def normed(x, weight, eps, moved=as_it_is):
    return x / (moved(x.square().mean(-1, keepdim=True)) + eps).sqrt() * weight


def attended(x, w, cfg, moved=as_it_is):
    batch, time, d = x.shape
    h = cfg["n_heads"]
    kv, size = cfg.get("n_kv_heads") or h, d // h
    q, k, v = (
        (x @ w[f"attn.{name}.weight"].T).reshape(batch, time, -1, size).transpose(1, 2)
        for name in ("wq", "wk", "wv")
    )
    half = size // 2
    theta = cfg.get("rope_base", 10000.0) ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(time, dtype=torch.float64)[:, None] * theta

    def turned(t):
        a, b = t[..., :half], t[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    group = torch.arange(h) // (h // kv)
    scores = turned(q) @ turned(k)[:, group].mT / size**0.5
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, -math.inf)
    heads = (scores - moved(scores.logsumexp(-1, keepdim=True))).exp() @ v[:, group]
    return heads.transpose(1, 2).reshape(batch, time, d) @ w["attn.wo.weight"].T


def fed(x, w):
    z = x @ w["ff.w_gate.weight"].T
    return (z * z.sigmoid() * (x @ w["ff.w_up.weight"].T)) @ w["ff.w_down.weight"].T


def block_of(x, w, cfg, moved=as_it_is):
    def norm(x, name):
        return normed(x, w[f"{name}.weight"], cfg.get("eps", 1e-6), moved)

    if cfg["norm"] == "pre":
        x = x + attended(norm(x, "attn_norm"), w, cfg, moved)
        return x + fed(norm(x, "ff_norm"), w)
    x = norm(x + attended(x, w, cfg, moved), "attn_norm")
    return norm(x + fed(x, w), "ff_norm")


def model_of(tokens, w, cfg, moved=as_it_is):
    x = moved(w["embed.weight"][tokens.long()])
    for n in range(cfg["n_layers"]):
        start = f"blocks.{n}."
        x = block_of(x, {k.removeprefix(start): v for k, v in w.items() if k.startswith(start)}, cfg, moved)
    if cfg["norm"] == "pre":
        x = normed(x, w["norm.weight"], cfg.get("eps", 1e-6), moved)
    return x @ w["embed.weight"].T


class Truth:
    """Block or model in float64, from the definition, with a measured bound on rounding errors.

    A bound by hand through softmax, norms and layers would be long and loose. Instead every input, and what
    softmax and norms divide by, is moved by a relative 1e-7, up or down at random, and what that does to a
    token is taken for the size of the numbers that went into it: rounding is such a movement, of ε and more
    often."""

    def __init__(self, case, upstream=None):
        self.case, self.upstream = case, upstream
        self.model = not case.x.is_floating_point()
        self.dtype = next(iter(case.weights.values())).dtype
        self.out, self.slopes = self.run(0)
        self.size = self.out.abs().amax(-1, keepdim=True)
        self.slope_sizes = [s.abs().amax() if s.numel() else 0 for s in self.slopes]
        for seed in range(1, 4):
            out, slopes = self.run(seed)
            if out.numel():
                moved = (out - self.out).abs().amax(-1, keepdim=True) / MOVE
                self.size = self.size.maximum(moved)
                self.slope_sizes = [
                    max(size, float((a - b).abs().amax()) / MOVE)
                    for size, a, b in zip(self.slope_sizes, slopes, self.slopes, strict=True)
                ]
        # cos and sin may be float32, and with them everything that a second token depends on.
        alone = case.x.shape[1] <= 1 or self.dtype != torch.float64
        self.size = self.size * (1 if alone else epsilon(torch.float32) / epsilon(self.dtype))
        self.ratio = 1 if alone else epsilon(torch.float32) / epsilon(self.dtype)
        self.length = case.cfg["d_model"] + case.cfg["d_ff"] + case.x.shape[1]
        self.steps = 12 * (case.cfg["n_layers"] if self.model else 1)

    def run(self, seed):
        noise = torch.Generator().manual_seed(seed)

        def moved(t):
            return t * (1 + MOVE * (2 * torch.randint(0, 2, t.shape, generator=noise) - 1)) if seed else t

        def leaf(t):
            return moved(t.detach().double()).requires_grad_(self.upstream is not None)

        w = {name: leaf(t) for name, t in self.case.weights.items()}
        x = self.case.x if self.model else leaf(self.case.x)
        out = (model_of if self.model else block_of)(x, w, self.case.cfg, moved)
        if self.upstream is None:
            return out, []
        leaves = [*w.values()] + ([] if self.model else [x])
        return out.detach(), torch.autograd.grad((out * self.upstream.double()).sum(), leaves)

    def agrees(self, got, at=slice(None), times=1, want=None, name="the result"):
        want = self.out[at] if want is None else want
        assert_close(
            got, want, dtype=self.dtype, length=self.length, steps=self.steps,
            magnitude=times * self.size[at], name=name,
        )  # fmt: skip

    def gradients_agree(self, module):
        """The gradients of Σ upstream·result for every parameter, and for x."""
        named = dict(module.named_parameters())
        x = self.case.x if self.model else self.case.x.detach().clone().requires_grad_()
        out = applied(module, x)
        leaves = [named[name] for name in self.case.weights] + ([] if self.model else [x])
        found = gradients(out, leaves, self.upstream)
        names = [*self.case.weights, *([] if self.model else ["x"])]
        for name, got, want, size in zip(names, found, self.slopes, self.slope_sizes, strict=True):
            assert_close(
                got, want, dtype=self.dtype, length=self.length + self.case.x.numel(), steps=self.steps,
                magnitude=self.ratio * size, name=f"the gradient of {name}",
            )  # fmt: skip


MOVE = 1e-7


@st.composite
def sloped(draw, cases):
    case = draw(cases)
    kind, width = (SlopedText, "vocab_size") if isinstance(case, Text) else (Sloped, "d_model")
    dtype = next(iter(case.weights.values())).dtype
    upstream = fill(draw, (*case.x.shape[:2], case.cfg[width]), dtype=dtype)
    return kind(case.cfg, case.x, case.weights, upstream)


def starts_well(module, case, model):
    named_as_due(module, case, model)
    for name, p in module.named_parameters():
        assert_tensor(p, shape=p.shape, dtype=torch.float32, name=f"the first {name}")
        assert_true(p.requires_grad, f"{name} is not trained")
        if p.ndim == 1:
            assert_equal(p.detach(), torch.ones(p.shape), f"the first {name}")
        else:
            assert_true(
                len(p.detach().unique(dim=0)) == len(p), f"two rows of the first {name} are the same", got=p
            )


# --- part 1: the block ---------------------------------------------------------------------------


@examples(quick=3, full=12)
@given(case=streams())
def test_a_new_block_has_the_parameters_of_its_parts(subject, case):
    """The parameters are four matrices of attention, three of SwiGLU and two norm weights of ones, with the
    names and shapes of the contract; matrices start random, and nothing else is in the state_dict.

    Catches biases, n_kv_heads ignored, one norm for both places, and tables kept as buffers."""
    starts_well(subject.Block(subject.Config(**case.cfg)), case, False)


@examples(quick=3, full=18)
@given(case=silenced(Silent, streams(sizes(norms=("pre",)))))
def test_a_silent_pre_norm_block_is_the_identity(subject, case):
    """With wo and w_down zero a pre-norm block returns x, bit by bit: nothing stands on the residual path.

    Catches a missing residual, a norm on the path, the residual taken behind the norm, and a factor on it."""
    got = applied(built(subject, case), case.x)
    assert_equal(got.detach(), case.x, "the result of a block whose parts are silent")


@examples(quick=3, full=18)
@given(case=silenced(Silent, streams(sizes(norms=("post",)), PLAIN)))
def test_a_silent_post_norm_block_is_two_norms(subject, case):
    """With wo and w_down zero a post-norm block returns ff_norm(attn_norm(x)).

    Catches pre-norm in its place, a norm left out, and the two norms exchanged."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(case=silenced(FeedForwardAlone, streams(sizes(times=((1, 1), (2, 3))), PLAIN)))
def test_a_block_of_silent_attention_is_its_feed_forward(subject, case):
    """With wo zero and y = x, a pre-norm block is y + ff(ff_norm(y)); with y = attn_norm(x), a post-norm block is
    ff_norm(y + ff(y)). ff is SwiGLU: silu(w_gate y) ∘ (w_up y), times w_down.

    Catches GELU or a sigmoid for SiLU, gate and up exchanged, biases, and dropout."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(case=silenced(AttentionAlone, streams(sizes(GROUPED, times=((1, 1), (1, 2), (2, 3), (1, 4))), PLAIN)))
def test_a_block_of_silent_feed_forward_is_its_attention(subject, case):
    """With w_down zero a pre-norm block is x + attn(attn_norm(x)), and a post-norm block is
    ff_norm(attn_norm(x + attn(x))). Heads of keys and values serve consecutive query heads, scores are divided by
    √head_dim, and heads are merged in order.

    Catches key-value heads dealt out in turn, √d_model, heads merged by a reshape alone, values that are turned,
    and dropout."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(case=streams(sizes(norms=("pre",)), PLAIN))
def test_pre_norm_equals_its_definition(subject, case):
    """x + attn(norm(x)), and then that plus ff(norm(that)), computed in float64.

    Catches both parts side by side, ff before attn, LayerNorm, a norm that is left out, and x added to in place."""
    truth, module = Truth(case), built(subject, case)
    truth.agrees(applied(module, case.x))
    with torch.no_grad():
        truth.agrees(applied(module.eval(), case.x), name="the result in eval")


@examples(quick=3, full=18)
@given(case=streams(sizes(norms=("post",)), PLAIN))
def test_post_norm_equals_its_definition(subject, case):
    """norm(x + attn(x)), and then norm of that plus ff of that, computed in float64.

    Catches norm(attn(x)) added to x, and ff fed with what the norm has not seen."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(
    case=silenced(AttentionAlone, streams(sizes(norms=("pre",)), made(eps=(1e-5, 0.3)))),
    c=st.sampled_from((8.0, 0.25, 64.0)),
)
def test_what_pre_norm_adds_does_not_depend_on_the_size_of_x(subject, case, c):
    """With w_down zero, block(c·x) − c·x under c²·eps is block(x) − x under eps.

    Catches attention fed with x itself, and an eps that is fixed or outside the root."""
    moved = replace(case, x=case.x * c, cfg=case.cfg | {"eps": case.cfg["eps"] * c * c})
    truth, got = Truth(case), applied(built(subject, case), case.x)
    truth.agrees(got)
    Truth(moved).agrees(applied(built(subject, moved), moved.x), name=f"the result of {c:g} · x")


@examples(quick=3, full=18)
@given(case=quiet(streams(make=made(eps=(None, 1e-3))), (1e-3, 1e-2)))
def test_quiet_streams_meet_eps(subject, case):
    """Streams about as small as √eps are normalised with the eps of the Config.

    Catches an eps that is fixed, or that one of the two norms does not hear."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(case=cut(streams(sizes(times=((1, 2), (2, 3), (3, 5), (1, 6))), PLAIN), st.sampled_from((1.0, 50.0))))
def test_the_future_does_not_reach_a_block(subject, case):
    """Whatever stands behind the first ``kept`` tokens, their results are those of the sequence cut there.

    Catches attention that is not causal, norms over the whole sequence, and a mask kept from the first call."""
    cut = replace(case, x=case.x[:, : case.kept])
    module = built(subject, case).eval()  # dropout is for other claims
    first = applied(module, cut.x)
    got = applied(module, case.x)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype)
    want, truth = got[:, : case.kept].detach().double(), Truth(cut)
    truth.agrees(first, want=want, name="the result of the sequence cut short")
    truth.agrees(applied(module, cut.x), want=want, name="the result of the sequence cut short, once more")


def long_stream(seed, norm, dtype):
    """A single example is Hypothesis' simplest, which of ``streams`` is all zeros: this one is noise throughout."""
    cfg = {
        "d_model": 4, "n_heads": 1, "n_layers": 1, "d_ff": 3, "vocab_size": 2, "norm": norm, "max_len": 1100,
    }  # fmt: skip
    noise = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    weights = {
        name: (drawn(*shape) / about_root(shape[1]) if len(shape) == 2 else 1 + drawn(*shape) / 4).to(dtype)
        for name, shape in shapes_of(cfg, False).items()
    }
    return Stream(cfg, drawn(1, 1030, 4).to(dtype), weights)


@examples(quick=0, full=1)
@given(case=st.builds(long_stream, st.integers(1, 999), st.sampled_from(NORMS), st.sampled_from(WIDE)))
def test_long_sequences_equal_the_definition(subject, case):
    """A sequence of 1,030 tokens gives what the definition gives, at every token, where max_len allows it.

    Catches a window, a mask or a table of a fixed size, be it 1,024."""
    with torch.no_grad():  # a loop over the queries takes seconds, and as long again for the graph
        Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(
    case=streams(sizes(TURNING, times=((1, 3), (2, 4), (3, 5), (1, 6))), made(bases=(None, 100.0, 3.0, 1.0)))
)
def test_positions_turn_by_the_base_of_the_config(subject, case):
    """Queries and keys are turned by rope_base^(−2i/head_dim) a position, half-split.

    Catches no positions at all, a base that is fixed, tables for d_model, and the interleaved layout."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=15)
@given(case=sloped(streams(make=made(DOUBLE))), training=st.booleans())
def test_block_gradients_equal_the_definition(subject, case, training):
    """The gradients of x and of all nine parameters are those of the definition, in training and in eval mode.

    Catches a branch, a norm or the stream cut off from the graph."""
    Truth(case, case.upstream).gradients_agree(built(subject, case).train(training))


@examples(quick=3, full=18)
@given(case=streams(make=made(HALF_TYPES)))
def test_half_precision_blocks_keep_their_dtype(subject, case):
    """In bfloat16 and float16 the result comes back in that dtype, as near as its rounding allows.

    Catches a stream that is promoted to float32 on the way."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=18)
@given(case=streams(), step=st.sampled_from((0.5, -1.0)))
def test_two_blocks_share_nothing(subject, case, step):
    """What is done to the parameters of one block leaves another of the same Config as it is.

    Catches modules or weights kept by Config, in a cache or in the class."""
    first, second = built(subject, case), built(subject, case)
    applied(second, case.x)
    with torch.no_grad():
        for p in second.parameters():
            p.add_(step)
    Truth(case).agrees(applied(first, case.x), name="the result of the first block")


@examples(quick=3, full=12)
@given(case=with_room(streams(), 7))
def test_blocks_that_do_not_fit_are_refused(subject, case):
    """ValueError for a norm that is neither pre nor post, heads that do not divide d_model into even sizes or
    are not divided by n_kv_heads, and an x of another shape or longer than max_len. More sequences than that, of
    the full length, are taken.

    Catches an else branch that takes every other word for post, and shapes left to the matrix product."""
    d, cfg = case.cfg["d_model"], case.cfg
    h = cfg["n_heads"]
    for wrong, because in (
        ({"norm": "none"}, "norm 'none' is neither 'pre' nor 'post'"),
        ({"norm": "Pre"}, "norm 'Pre' is neither 'pre' nor 'post'"),
        ({"n_heads": d, "n_kv_heads": None}, f"{d} heads of d_model {d} have an odd size, 1"),
        ({"n_heads": d + 1, "n_kv_heads": None}, f"{d + 1} heads do not divide d_model {d}"),
        ({"n_kv_heads": h + 1}, f"n_kv_heads {h + 1} does not divide n_heads {h}"),
    ):
        refuses(
            ValueError, lambda wrong=wrong: subject.Block(subject.Config(**(cfg | wrong))), because=because
        )  # fmt: skip
    module, dtype = built(subject, case), case.x.dtype
    for shape in ((2, 3, d + 1), (3, d), (1, 2, 3, d), (2, 8, d)):
        x = torch.ones(shape, dtype=dtype)
        refuses(ValueError, lambda x=x: module(x), because=f"x {shape} is not (batch, time ≤ 7, {d})")
    assert_tensor(module(torch.zeros(8, 7, d, dtype=dtype)), shape=(8, 7, d), dtype=dtype)


# --- part 2: the model ---------------------------------------------------------------------------


@examples(quick=3, full=12)
@given(case=models())
def test_a_new_model_has_one_embedding_and_its_blocks(subject, case):
    """The parameters are embed.weight, those of n_layers blocks and, for pre-norm, one last norm: there is no
    second matrix for the output.

    Catches an output matrix of its own, a last norm in post-norm or none in pre-norm, and one block for all."""
    starts_well(subject.DecoderLM(subject.Config(**case.cfg)), case, True)


@examples(quick=3, full=15)
@given(case=models(sizes(norms=("pre",), layers=(1, 2, 3))))
def test_the_pre_norm_model_equals_its_definition(subject, case):
    """Embedding, blocks in order, last norm, product with the embedding: logits as computed in float64, for
    tokens of int64 and of int32.

    Catches a last norm left out, probabilities for logits, a factor √d_model, and layers in another order."""
    truth, module = Truth(case), built(subject, case)
    truth.agrees(applied(module, case.x))
    truth.agrees(applied(module.eval(), case.x.int()), name="the result of int32 tokens in eval")


@examples(quick=3, full=15)
@given(case=models(sizes(norms=("post",), layers=(1, 2, 3))))
def test_the_post_norm_model_equals_its_definition(subject, case):
    """Embedding, blocks in order, product with the embedding, without a last norm: logits as in float64.

    Catches pre-norm blocks in its place, and a stream that is normalised once more."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=15)
@given(case=cut(models(sizes(times=((1, 2), (2, 3), (3, 5), (1, 6)), layers=(2, 3))), PLACES))
def test_the_future_does_not_reach_through_the_layers(subject, case):
    """The logits at the first ``kept`` tokens are the same whatever tokens follow, at any depth.

    Catches a layer that is not causal: two of them would pass the future on."""
    got, width = applied(built(subject, case), case.x), case.cfg["vocab_size"]
    assert_tensor(got, shape=(*case.x.shape, width), dtype=next(iter(case.weights.values())).dtype)
    Truth(case).agrees(got)
    cut = replace(case, x=case.x[:, : case.kept])
    Truth(cut).agrees(got[:, : case.kept], name="the logits of the tokens kept")


def one_row(cases):
    return st.builds(lambda c, place: RowText(c.cfg, c.x, c.weights, place % len(c.x)), cases, PLACES)


@examples(quick=3, full=15)
@given(case=one_row(models(sizes(times=((2, 2), (2, 4), (3, 5)), layers=(1, 2)))))
def test_each_sequence_is_read_alone(subject, case):
    """The sequence at ``row`` gives alone the logits that it gives in a batch.

    Catches norms or attention over the batch, and batch and time exchanged."""
    module, at = built(subject, case), slice(case.row, case.row + 1)
    got = applied(module, case.x)
    Truth(case).agrees(got)
    alone = replace(case, x=case.x[at])
    Truth(alone).agrees(applied(module, alone.x), name="the logits of a sequence alone")
    Truth(alone).agrees(got[at], name="the logits of the same sequence in a batch")


@examples(quick=3, full=12)
@given(case=sloped(models(make=made(DOUBLE), size=sizes(layers=(1, 2)))), training=st.booleans())
def test_the_embedding_learns_from_both_ends(subject, case, training):
    """The gradient of embed.weight is the sum of that of the lookup and that of the output; those of all other
    parameters are of the definition, too, in training and in eval mode.

    Catches a copy for the output, either end detached, and blocks cut off from the graph."""
    Truth(case, case.upstream).gradients_agree(built(subject, case).train(training))


@examples(quick=3, full=12)
@given(case=models(make=made(HALF_TYPES), size=sizes(layers=(1, 2))))
def test_half_precision_models_keep_their_dtype(subject, case):
    """In bfloat16 and float16 the logits come back in that dtype, as near as its rounding allows.

    Catches logits in float32."""
    Truth(case).agrees(applied(built(subject, case), case.x))


@examples(quick=3, full=15)
@given(case=with_room(models(sizes(layers=(1, 2))), 7), by=st.integers(0, 3))
def test_tokens_that_do_not_fit_are_refused(subject, case, by):
    """ValueError for a token below 0 or beyond the vocabulary, for tokens that are no integers or not (batch,
    time), and for more than max_len of them. As many as that are taken, in more rows than that.

    Catches negative ids that wrap around, and IndexError left to the lookup."""
    vocab, module = case.cfg["vocab_size"], built(subject, case)
    for bad in (vocab + by, -1 - by):
        tokens = case.x.clone()
        tokens[-1, -1] = bad
        refuses(ValueError, lambda tokens=tokens: module(tokens), because=f"token {bad} is none of {vocab}")
    for wrong in (
        case.x[0],
        case.x[None],
        case.x.double(),
        case.x.half(),
        torch.zeros(1, 8, dtype=torch.long),
    ):
        because = f"tokens {tuple(wrong.shape)} of {wrong.dtype} are not (batch, time ≤ 7) of integers"
        refuses(ValueError, lambda wrong=wrong: module(wrong), because=because)
    dtype = next(iter(case.weights.values())).dtype
    assert_tensor(module(torch.zeros(8, 7, dtype=torch.long)), shape=(8, 7, vocab), dtype=dtype)


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name.

    cos and sin may be float32, so that results are compared as such; of half types, where a rounding more or less
    is nobody's mistake, only the dtype is."""
    base = {"d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 5, "vocab_size": 7}

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    def unbiased(made):
        return [p for n, p in sorted(made.named_parameters()) if not n.endswith("bias")]

    def module(kind, dtype=torch.float64, **options):
        made = getattr(subject, kind)(subject.Config(**(base | options))).to(dtype)
        with torch.no_grad():
            for p in made.parameters():
                p.zero_()  # a bias is a matter of names, and nothing else
            for n, p in enumerate(unbiased(made)):
                p.copy_(waves(*p.shape, step=0.7 + 0.3 * n) + 0.5 * (p.ndim == 1))
        return made.eval()

    def run(kind, x, **options):
        return lambda: module(kind, **options)(x).float()

    def dtype_of(kind, x, **options):
        return lambda: str(module(kind, torch.bfloat16, **options)(x).dtype)

    def slopes(kind, x, **options):
        def call():
            made = module(kind, **options)
            x_ = x.clone().requires_grad_() if x.is_floating_point() else x
            out = made(x_)
            inputs = unbiased(made) + ([x_] if x_ is not x else [])
            return [g.float() for g in gradients(out, inputs, waves(*out.shape, step=3.1))]

        return call

    def names(kind, **options):
        def call():
            made = getattr(subject, kind)(subject.Config(**(base | options)))
            named = dict(made.named_parameters())
            more = [v for n, v in made.state_dict().items() if n not in named]
            twice = [any(v.data_ptr() == p.data_ptr() for p in named.values()) for v in more]
            biases = [n for n in named if n.endswith("bias")]
            return [sorted({*named}.difference(biases)), bool(biases), any(twice), not all(twice)]

        return call

    def refused(call):
        """Is a ValueError raised? Whatever else comes is none."""

        def probe():
            try:
                call()
            except NotImplementedError:
                raise
            except ValueError:
                return True
            except Exception:
                return False
            return False

        return probe

    def twice_in_training():
        """Is a second call like the first?"""
        made = module("Block").train()
        return torch.equal(made(many), made(many))

    def longer_later():
        made = module("Block")
        made(x[:, :2])
        return made(x).float()

    def afterwards():
        held = waves(2, 3, 8)
        module("Block")(held)
        return held

    x, many, tokens = waves(2, 3, 8), waves(8, 30, 8), torch.tensor([[1, 5, 2, 6], [0, 0, 3, 4]])
    found = {"x afterwards": afterwards}
    for norm in NORMS:
        found |= {
            f"block, {norm}": run("Block", x, norm=norm),
            f"block, {norm}, quiet": run("Block", x * 1e-3, norm=norm),
            f"block, {norm}, eps": run("Block", x, norm=norm, eps=0.5),
            f"block, {norm}, base": run("Block", x, norm=norm, rope_base=3.0),
            f"block, {norm}, one token": run("Block", x[:, :1], norm=norm),
            f"block, {norm}, groups": run("Block", x, norm=norm, n_heads=4, n_kv_heads=2),
            f"block, {norm}, gradients": slopes("Block", x, norm=norm),
            f"block, {norm}, bf16": dtype_of("Block", x.bfloat16(), norm=norm),
            f"block, {norm}, names": names("Block", norm=norm),
            f"model, {norm}": run("DecoderLM", tokens, norm=norm),
            f"model, {norm}, gradients": slopes("DecoderLM", tokens, norm=norm),
            f"model, {norm}, bf16": dtype_of("DecoderLM", tokens, norm=norm, n_layers=1),
            f"model, {norm}, names": names("DecoderLM", norm=norm),
        }
    found |= {
        "long": lambda: module("Block")(waves(1, 70, 8))[0, -1].float(),
        "longest": lambda: module("Block", d_model=2, n_heads=1, max_len=1100)(waves(1, 1030, 2))[
            0, -1
        ].float(),
        "a longer sequence later": longer_later,
        "model, eps": run("DecoderLM", tokens, n_layers=1, eps=0.5),
        "twice in training": twice_in_training,
        "another norm": lambda: bool(module("Block", norm="none")),  # raises, or says that it was taken
        "negative token": refused(lambda: module("DecoderLM", n_layers=1)(tokens - 1)),
        "token too large": refused(lambda: module("DecoderLM", n_layers=1)(tokens + 1)),
        "too many tokens": refused(lambda: module("DecoderLM", n_layers=1, max_len=3)(tokens)),
    }
    return found
