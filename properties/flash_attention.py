"""The laws of FlashAttention: it is attention, whatever the tiles; it never holds more than a tile of the
scores, keeps next to nothing for its backward pass, and does no work in the future.

What it makes, holds and multiplies is measured under a dispatch mode (``Work``), which sees every operation
that torch runs, in the backward pass too."""

import gc
import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

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

BATCH_HEADS = ((1, 1), (1, 2), (2, 1), (2, 3), (3, 2))
SQUARE = ((1, 1), (2, 2), (4, 4), (5, 5), (7, 7))
SHORT = ((1, 3), (2, 5), (3, 7), (4, 6), (1, 9))  # fewer queries than keys
TALL = ((2, 1), (5, 2), (7, 3), (6, 5), (9, 2))  # more queries than keys
LENGTHS = SQUARE + SHORT + TALL
WIDTHS = ((1, 1), (2, 1), (1, 2), (3, 2), (2, 4), (4, 3))
BLOCKS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (1, 8), (8, 1), (16, 32))

WIDE = (torch.float32, torch.float64)
DOUBLE = (torch.float64,)
LOUDNESS = (1.0, 0.1, 5.0)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
HALF = st.sampled_from(HALF_TYPES)
PLACES = st.integers(0, 9)
SEEDS = st.integers(0, 999)


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    block_q: int
    block_k: int
    causal: bool = False


@dataclass
class Row(Case):
    """A case of which one query is looked at."""

    row: int = 0


@dataclass
class Above:
    """The gradient that arrives from above."""

    upstream: Tensor


@dataclass
class Shape:
    """A sequence of many blocks, for what is measured; its numbers do not matter."""

    queries: int
    keys: int
    block_q: int
    block_k: int
    causal: bool = False
    seed: int = 0

    def case(self, head_dim=1, value_dim=1, dtype=torch.float32, batch_heads=(1, 1)):
        sizes = (self.queries, head_dim), (self.keys, head_dim), (self.keys, value_dim)
        generator = torch.Generator().manual_seed(self.seed)
        q, k, v = (torch.randn(*batch_heads, *size, generator=generator).to(dtype) for size in sizes)
        return Case(q, k, v, self.block_q, self.block_k, self.causal)


def sizes(lengths=LENGTHS, blocks=BLOCKS, widths=WIDTHS):
    """(B, H), (T_q, T_k), (D, D_v), (block_q, block_k), the smallest first: that is where shrinking ends."""
    return st.tuples(
        st.sampled_from(
            sorted(product(BATCH_HEADS, lengths, widths), key=lambda s: (math.prod(sum(s, ())), s))
        ),
        st.sampled_from(blocks),
    )


def makes(dtypes=WIDE, loudness=LOUDNESS, layouts=LAYOUTS):
    """How q, k and v are made: the memory layout, the size of the noise in q and k, the dtype."""
    return st.sampled_from(list(product(layouts, loudness, dtypes)))


@st.composite
def cases(draw, make=makes(), size=sizes(), causal=st.just(False)):
    ((B, H), (T_q, T_k), (D, D_v)), (block_q, block_k) = draw(size)
    layout, loudness, dtype = draw(make)
    shapes = (B, H, T_q, D), (B, H, T_k, D), (B, H, T_k, D_v)
    # All three are filled at once: that is the cheapest, and a byte is a byte when it comes to shrinking.
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    parts = parts[0] * loudness, parts[1] * loudness, parts[2]
    parts = (laid_out(x.reshape(shape).to(dtype), layout) for x, shape in zip(parts, shapes, strict=True))
    return Case(*parts, block_q, block_k, draw(causal))


RAGGED = [
    (lengths, blocks)
    for lengths, blocks in product(LENGTHS, BLOCKS)
    if all(t > b and t % b for t, b in zip(lengths, blocks, strict=True))
]


@st.composite
def ragged(draw):
    """Several blocks of queries and of keys, of which the last are not full."""
    lengths, blocks = draw(st.sampled_from(RAGGED))
    return draw(cases(size=sizes((lengths,), (blocks,))))


@st.composite
def sloped(draw, drawn):
    """A case, and the gradient that arrives from above."""
    case = draw(drawn)
    return case, Above(fill(draw, (*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype))


@st.composite
def level(draw):
    """All values are equal, and so is their average."""
    case = draw(cases(size=sizes(blocks=((1, 1), (2, 2), (2, 3), (1, 8)))))
    return replace(case, v=torch.full_like(case.v, draw(st.sampled_from((1, -1, 3, 0)))))


@st.composite
def rooted(draw):
    """One tile; the first key has score a·head_dim before it is scaled, the others 0; of the values, too, the first
    stands out. So small that the average is found by hand."""
    queries, keys, D, D_v, a, dtype = draw(ROOTED)
    q, k, v = (torch.zeros(1, 1, *size, dtype=dtype) for size in ((queries, D), (keys, D), (keys, D_v)))
    q[:], k[:, :, 0], v[:, :, 0] = 1, a, 1
    return Case(q, k, v, 8, 8)


ROOTED = st.sampled_from(
    sorted(
        product((1, 2), (2, 3, 5), (4, 2, 3, 9), (1, 2, 3), (1.0, -1.0, 0.5), WIDE),
        key=lambda s: (math.prod(s[:2]), s[2] != 4, s[3], s[4] != 1, s[5] != torch.float32),
    )
)


@st.composite
def rising(draw):
    """Scores that rise, or fall, from key to key."""
    case = draw(cases(size=sizes(SQUARE[2:] + SHORT[1:], BLOCKS[:9])))
    steps = draw(st.sampled_from((1, -1, 3, -3, 40, -40))) * torch.arange(case.k.shape[2], dtype=case.k.dtype)
    return replace(case, q=torch.ones_like(case.q), k=case.k * 0 + steps[:, None])


@st.composite
def shouted(draw):
    """Scores of up to a million in size."""
    case = draw(cases(makes(loudness=(300.0,), layouts=LAYOUTS[:1])))
    largest, sign = draw(st.sampled_from((1e4, 1e6))), draw(st.sampled_from((1, -1, 0)))
    size = float((case.q.double() @ case.k.double().mT).abs().amax()) * case.q.shape[3] ** -0.5
    q, k = (x * math.sqrt(largest / max(size, 1.0)) for x in (case.q, case.k))
    return replace(case, q=q.abs() if sign else q, k=sign * k.abs() if sign else k)


@st.composite
def noisy(draw):
    """Keys and values in the future of one query that hold something large."""
    case = draw(cases(makes(loudness=(1.0, 300.0)), causal=CAUSAL))
    row, size = draw(PLACES) % case.q.shape[2], draw(st.sampled_from((1.0, 1e3, 1e6, 1e30)))
    case = replace(case, q=case.q.abs(), k=-case.k.abs())
    hidden = ~Truth(case).seen[row, :, None]
    k, v = (x.where(~hidden, torch.full_like(x, size)) for x in (case.k, case.v))
    return Row(case.q, k, v, case.block_q, case.block_k, True, row)


CAUSAL = st.just(True)


def call(subject, q, k, v, case):
    """The call itself. A case that is not causal leaves causal out."""
    options = {"causal": True} if case.causal else {}
    return subject.flash_attention(q, k, v, block_q=case.block_q, block_k=case.block_k, **options)


def attend(subject, case):
    """The result. Whatever is claimed of it, q, k and v must be left as they were."""
    inputs = {"q": case.q, "k": case.k, "v": case.v}
    before = {name: x.clone() for name, x in inputs.items()}
    got = call(subject, *inputs.values(), case)
    untouched(before, inputs)
    return got


def leaves_of(case):
    return [x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v)]


class FromAbove(torch.autograd.Function):
    """A number whose backward pass hands ``out`` this very tensor as its gradient, strides and all.

    ``grad_outputs`` would do it too, but its check imports sympy: half a second, for nothing."""

    @staticmethod
    def forward(ctx, out, above):
        ctx.above = above
        return out.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return ctx.above, None


def pulled(out, leaves, above):
    """The gradients of ``leaves`` where ``above`` arrives at ``out``; the graph may be used again."""
    assert_true(isinstance(out, Tensor) and out.requires_grad, "the result has no gradient")
    return torch.autograd.grad(FromAbove.apply(out, above), leaves, retain_graph=True)


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """Attention in float64, straight from the definition, with what bounds its rounding errors.

    ``exact`` says that the dtype of the inputs holds every score as it is, so that none of it is rounding of scores."""

    def __init__(self, case, *, exact=False):
        self.dtype, self.exact = case.q.dtype, exact
        self.q, self.k, self.v = (x.detach().double() for x in (case.q, case.k, case.v))
        self.scale = self.q.shape[3] ** -0.5
        queries, keys = self.q.shape[2], self.k.shape[2]
        reach = keys - queries if case.causal else keys
        self.seen = torch.arange(keys) <= torch.arange(queries)[:, None] + reach
        self.sighted = self.seen.any(-1, keepdim=True)
        scores = (self.scale * self.q @ self.k.mT).where(self.seen, -torch.inf)
        top = scores.amax(-1, keepdim=True).where(self.sighted, 0)
        terms = (scores - top).exp()
        self.weights = terms / terms.sum(-1, keepdim=True).where(self.sighted, 1)
        self.out = self.weights @ self.v
        self.length = self.q.shape[3] + keys  # of both sums
        self.steps = 1 if self.dtype in HALF_TYPES else 4
        self.unit = float(tolerance(self.dtype, length=self.length, steps=self.steps))

    def loudness(self):
        """The size of each query's largest score, as the sum of products that it is: Σ |scale·q||k|."""
        return (self.scale * self.q.abs() @ self.k.abs().mT).where(self.seen, 0).amax(-1, keepdim=True)

    def growth(self, loudness):
        """e^{2η} − 1, in units of the tolerance, where η bounds the rounding errors of an exponent."""
        if self.exact:
            return torch.zeros_like(loudness)
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

    def agrees(self, got, rows=slice(None), name="the result"):
        """``got`` must be the rows of the truth within what rounding explains."""
        assert_close(
            got, self.out[:, :, rows], dtype=self.dtype, length=self.length,
            magnitude=self.spread()[:, :, rows], steps=self.steps, name=name,
        )  # fmt: skip

    def slopes_agree(self, found, upstream):
        """``found`` must be the gradients of Σ upstream·attention by the definition; None is not looked at."""
        q, k, v, w, g = self.q, self.k, self.v, self.weights, upstream.double()
        pull, size = g @ v.mT, g.abs() @ v.abs().mT
        pull = self.scale * w * (pull - (w * pull).sum(-1, keepdim=True))
        size = self.scale * w * (size + (w * size).sum(-1, keepdim=True))
        loose = 2 + 2 * self.growth(
            self.loudness()
        )  # query by query: a loud one lends nothing to a quiet one
        size, weight = loose * size, loose * w
        due = (
            ("q", pull @ k, size @ k.abs()),
            ("k", pull.mT @ q, size.mT @ q.abs()),
            ("v", w.mT @ g, weight.mT @ g.abs()),
        )
        for got, (name, want, magnitude) in zip(found, due, strict=True):
            if got is not None:
                assert_close(
                    got, want, dtype=self.dtype, length=self.length + q.shape[2] + v.shape[3],
                    steps=self.steps, magnitude=magnitude, name=f"the gradient of {name}",
                )  # fmt: skip


def check_gradients(subject, case, above, *, exact=False):
    """Values and gradients together: the ones must not be had at the cost of the others."""
    truth, leaves, upstream = Truth(case, exact=exact), leaves_of(case), above.upstream
    out = call(subject, *leaves, case)
    truth.agrees(out)
    truth.slopes_agree(gradients(out, leaves, upstream), upstream)


def grown(x, dim):
    """x with one more slice along dim."""
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


# --- what is measured ----------------------------------------------------------------------------

LEFT, PLAIN = {"mm", "bmm", "linear"}, {"mv", "dot", "vdot", "inner"}  # by which argument comes first
ADDED = {"addmm", "baddbmm", "addbmm", "addmv"}
EXPONENTIALS = {
    "exp", "exp2", "expm1", "_softmax", "_safe_softmax", "_log_softmax", "logsumexp", "logaddexp", "logaddexp2",
    "sigmoid",
}  # fmt: skip


class Work(TorchDispatchMode):
    """Watches what torch does: how many operations; the elements of the largest tensor made and of all alive at
    once, views and ``inputs`` aside; the numbers that were read out of tensors one by one; the multiplications
    in matrix products; and the exponentials.

    Memory is followed by storage, weakly, so that what autograd or a context holds on to counts as well."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in inputs}
        self.held = {}
        self.operations = self.products = self.exponentials = 0
        self.largest = self.live = self.peak = self.read = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else the first operation imports torch._dynamo: a second, for nothing

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count(func.overloadpacket.__name__.removesuffix("_"), args)
        for x in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(x, Tensor):
                self.hold(x)
        return out

    def count(self, name, args):
        self.operations += 1
        if name == "_local_scalar_dense":  # item(), float(), if
            self.read += 1
        elif name in LEFT:
            self.products += args[0].numel() * args[1].shape[0 if name == "linear" else -1]
        elif name in PLAIN:
            self.products += args[0].numel()
        elif name in ADDED:
            self.products += args[1].numel() * (args[2].shape[-1] if args[2].ndim > 1 else 1)
        elif name in EXPONENTIALS:
            self.exponentials += args[0].numel()

    def hold(self, x):
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.held:
            return
        size = storage.nbytes() // x.element_size()
        # The weak reference keeps the address from being given to another storage.
        self.held[key] = StorageWeakRef(storage), size
        self.largest, self.live = max(self.largest, size), self.live + size
        if self.live > self.peak:
            self.peak = max(self.peak, self.alive())

    def sizes(self, *but):
        """The elements of every storage that is alive now, those of ``but`` aside."""
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.live = sum(size for _, size in self.held.values())
        left_out = {x.untyped_storage()._cdata for x in but}
        return [size for key, (_, size) in self.held.items() if key not in left_out]

    def alive(self, *but):
        return sum(self.sizes(*but))


def visible_part(shape):
    """The share of the tiles in which some query may see some key."""
    reach = shape.keys - shape.queries if shape.causal else shape.keys
    seen = torch.arange(shape.keys) <= torch.arange(shape.queries)[:, None] + reach
    tiles = seen.unfold(0, shape.block_q, shape.block_q).unfold(1, shape.block_k, shape.block_k)
    return float(tiles.flatten(2).any(-1).double().mean())


def within_a_tile(work, case, when):
    """Nothing made was larger than a tile or an input, within a factor of four, and all of it was small."""
    tile = case.block_q * case.block_k
    allowed = 4 * max(x.numel() for x in (case.q, case.k, case.v, torch.empty(tile)))
    T_q, T_k = case.q.shape[2], case.k.shape[2]
    assert_true(
        work.largest <= allowed,
        f"with {T_q} queries, {T_k} keys and tiles of {case.block_q} × {case.block_k}, {when} made a tensor of "
        f"{work.largest} elements",
        expected=f"at most {allowed}",
        got=work.largest,
    )
    held = work.peak + work.read  # a number that was read may be held as well
    assert_true(
        2 * held <= T_q * T_k,
        f"{when} held {held} elements at once, of {T_q} × {T_k} scores",
        expected=f"at most {T_q * T_k // 2}",
        got=held,
    )


def fewer(small, large, when):
    """Large blocks, which ``large`` saw, take fewer operations than small ones."""
    assert_true(
        large.operations < small.operations,
        f"tiles of 2 × 2 and a single tile for everything took {when} equally many operations, or fewer: the "
        "block sizes are not used",
        expected=f"less than {small.operations}",
        got=large.operations,
    )


def skipped(all_, some, shape, when):
    """Of the work that ``all_`` saw, ``some`` saw the part that lies in tiles with something to see."""
    part = visible_part(shape)
    for what in ("products", "exponentials"):
        due, done = getattr(all_, what), getattr(some, what)
        assert_true(
            done <= due * (part + 0.01),
            f"{when}, of {shape.queries} queries and {shape.keys} keys, {part:.0%} of the tiles have something to see, "
            f"but causal does {done / max(due, 1):.0%} of the {WORDS[what]}",
            expected=f"at most {round(due * part)} of {due}",
            got=done,
        )


WORDS = {"products": "multiplications", "exponentials": "exponentials"}


MANY = st.builds(
    Shape,
    queries=st.sampled_from((112, 116)),
    keys=st.sampled_from((112, 106)),
    block_q=st.sampled_from((16, 12)),
    block_k=st.sampled_from((16, 12)),
)
"""Tiles so small that a row of them has more elements than is allowed, and all of them many times more."""

TILES = st.sampled_from(((4, 8), (4, 4), (8, 4), (2, 4)))
ASKEW = ((16, 16), (24, 8), (8, 24))
"""As many queries as keys, more, and fewer, in whole blocks of ``TILES``."""


# --- part 1: forward in tiles --------------------------------------------------------------------


@examples(quick=3, full=24)
@given(case=cases(makes(layouts=("contiguous", "transposed", "strided"))))
def test_the_result_has_one_row_per_query_as_wide_as_v(subject, case):
    """The result is one new tensor (batch, heads, queries, value_dim) in the dtype of q, and q, k and v
    still hold what they held.

    Catches the log-sum-exp returned too, a query scaled in place, accumulators as wide as the keys."""
    got = attend(subject, case)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype)


@examples(quick=3, full=24)
@given(case=level())
def test_each_row_is_an_average_of_the_values(subject, case):
    """Equal values come out as they are: the weights of a query sum to one over all tiles.

    Catches tiles that are normalised each by itself and added, and a total that forgets the early tiles."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=rooted())
def test_scores_are_divided_by_the_root_of_head_dim(subject, case):
    """The weights are softmax(q·k / √head_dim), in a single tile as well.

    Catches a forgotten scale, a division by head_dim itself, and an exponential of another base."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=cases(size=sizes(SQUARE[2:] + SHORT[1:], BLOCKS[:9])))
def test_several_tiles_equal_the_definition(subject, case):
    """A query that meets its keys block by block gets what softmax over all of them at once gives.

    Catches a running maximum, sum or average that is not carried from one block of keys to the next."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=rising())
def test_a_louder_block_rescales_what_came_before(subject, case):
    """If scores rise, or fall, from key to key, the early tiles count as little, or as much, as they should.

    Catches sums that are not rescaled when the maximum rises, and a maximum taken of each tile alone."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=ragged())
def test_ragged_last_blocks_count(subject, case):
    """A last block that is not full counts with what it has: no key and no query is lost or added.

    Catches a number of blocks that is rounded down, and zero keys that pad a block and take weight."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=24)
@given(case=cases(size=sizes(blocks=((16, 32), (10, 1), (1, 10), (512, 512)))))
def test_a_block_may_be_larger_than_the_sequence(subject, case):
    """One block that holds the whole sequence, or either side of it, is as good as many.

    Catches sizes read off the block instead of the tensor."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=6, full=30)
@given(case=shouted())
def test_large_scores_do_not_overflow(subject, case):
    """Scores of up to a million in size, of either sign or of both, give finite averages.

    Catches exp without the running maximum, and a maximum that starts at 0: all weights underflow below."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=40)
@given(case=cases())
def test_flash_attention_equals_its_definition(subject, case):
    """Value by value softmax(q·kᵀ/√head_dim)·v computed in float64, in float32 and float64, for any sizes and
    blocks, however the inputs lie in memory.

    Catches whatever the laws let through: the scale, another base, one head for all."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=cases(makes(HALF_TYPES, (0.5, 0.1))))
def test_half_precision_equals_the_definition(subject, case):
    """bfloat16 and float16 come back in their own dtype, right within what rounding explains.

    Catches results left in float32, and fills such as −1e9 that float16 does not hold."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=1, full=4)
@given(seed=SEEDS, dtype=HALF)
def test_long_half_precision_rows_sum_in_float32(subject, seed, dtype):
    """Over 643 keys in half precision, tile by tile, the result is right to the last stored bits.

    Catches running sums kept in the dtype of the inputs: in bf16 they stop growing, in fp16 they overflow."""
    noise = torch.randn(3, 1, 1, 643, 2, generator=torch.Generator().manual_seed(seed)) / 4
    late = (torch.arange(643) > 320)[:, None]
    v = (noise[2] + late) * (1 if dtype == torch.bfloat16 else 800)
    case = Case(noise[0, :, :, :2].to(dtype), noise[1].to(dtype), v.to(dtype), 2, 2)
    Truth(case).agrees(attend(subject, case))


@examples(quick=1, full=3)
@given(shape=MANY)
def test_no_more_than_a_tile_is_made_at_a_time(subject, shape):
    """The forward pass makes no tensor larger than a tile or an input, within a factor of four; the tensors
    alive at once hold less than half of the scores; and the result is right.

    Catches plain attention with block sizes that nobody reads, a tile that spans all keys or all queries, and
    tiles that are collected in a list."""
    check_memory(subject, shape.case())


def check_memory(subject, case):
    with Work(case.q, case.k, case.v) as work:
        got = call(subject, case.q, case.k, case.v, case)
    Truth(case).agrees(got)
    within_a_tile(work, case, "the forward pass")


def test_larger_blocks_take_fewer_operations(subject):
    """The tiles are those that the block sizes ask for: one tile for everything takes torch fewer operations than
    tiles of 2 × 2.

    Catches block sizes that nobody reads, whatever is done in their place: plain attention, or tiles of a size
    of one's own."""
    for kind in KINDS:
        seen = []
        for blocks in ((2, 2), (12, 10)):
            case = Shape(12, 10, *blocks).case(**kind)
            with Work(case.q, case.k, case.v) as work:
                got = call(subject, case.q, case.k, case.v, case)
            Truth(case).agrees(got)
            seen.append(work)
        fewer(*seen, "forward")


KINDS = {"head_dim": 2}, {"dtype": torch.bfloat16, "batch_heads": (2, 3)}


def test_an_empty_batch_gives_an_empty_result(subject):
    """No batch entries in, none out: the shape is (0, heads, queries, value_dim).

    Catches a loop over the batch that stacks nothing."""
    q, k, v = torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 5, 4), torch.zeros(0, 2, 5, 6)
    got = subject.flash_attention(q, k, v, block_q=2, block_k=2)
    assert_tensor(got, shape=(0, 2, 3, 6), dtype=torch.float32)


@examples(quick=2, full=10)
@given(case=cases(), bad=st.sampled_from((0, -1, -4)))
def test_what_does_not_fit_is_refused(subject, case, bad):
    """ValueError if q, k and v differ in batch or heads, q and k in head_dim, or k and v in keys, and for a
    block size below 1.

    Catches a single head of keys that broadcasts in silence, and a loop that a block of 0 never enters."""
    q, k, v = case.q, case.k, case.v
    misfits = (
        (q, grown(k, 0), grown(v, 0)), (q, grown(k, 1), grown(v, 1)), (grown(q, 0), k, v),
        (grown(q, 1), k, v), (q, grown(k, 3), v), (q, k, grown(v, 2)), (q, k, grown(v, 0)), (q, k, grown(v, 1)),
    )  # fmt: skip
    for parts in misfits:
        q_, k_, v_ = (tuple(x.shape) for x in parts)
        because = f"q {q_}, k {k_} and v {v_} do not fit"
        refuses(ValueError, lambda parts=parts: call(subject, *parts, case), because=because)
    for blocks in ((bad, case.block_k), (case.block_q, bad)):
        wrong = replace(case, block_q=blocks[0], block_k=blocks[1])
        refuses(ValueError, lambda w=wrong: call(subject, q, k, v, w), because=f"the blocks are {blocks}")


# --- part 2: causal ------------------------------------------------------------------------------


@examples(quick=4, full=30)
@given(case=cases(size=sizes(SQUARE), causal=CAUSAL))
def test_each_query_sees_the_past_and_itself(subject, case):
    """With as many queries as keys, query i averages over the keys 0 … i, its own included, whatever tile
    they lie in.

    Catches a diagonal that is off by one, and one that is looked for only in tiles of equal number."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=cases(size=sizes(SHORT), causal=CAUSAL))
def test_causal_is_aligned_to_the_last_key(subject, case):
    """With fewer queries than keys, the queries are the newest positions: the last one sees every key.

    Catches a diagonal aligned to the first key, under which a query beside a cache sees one key only."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=30)
@given(case=cases(size=sizes(TALL), causal=CAUSAL))
def test_queries_before_the_first_key_give_zeros(subject, case):
    """With more queries than keys, the first ones come before every key, alone in their tile or beside others
    that see something: they give zeros.

    Catches NaN from 0/0 and from −inf − −inf, and the average over a tile that a finite fill gives."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=30)
@given(case=noisy())
def test_future_keys_never_matter(subject, case):
    """Whatever stands in the keys and values after a query, its row stays as it was.

    Catches finite fills such as −1e4 that large scores overrun, and a maximum over hidden scores too."""
    got, row = attend(subject, case), slice(case.row, case.row + 1)
    assert_tensor(got, shape=(*case.q.shape[:3], case.v.shape[3]), dtype=case.q.dtype)
    Truth(case).agrees(got[:, :, row], rows=row, name=f"what query {case.row} gets")


@examples(quick=3, full=24)
@given(case=cases(makes(HALF_TYPES, (0.5, 0.1)), causal=CAUSAL))
def test_causal_in_half_precision_equals_the_definition(subject, case):
    """Causal too gives half-precision results in their own dtype, right within what rounding explains.

    Catches fills that float16 does not hold, and masks that lift the result to float32."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=1, full=2)
@given(shape=MANY)
def test_causal_makes_no_more_than_a_tile_at_a_time(subject, shape):
    """Under causal, as without, no tensor is larger than a tile or an input, within a factor of four, and the
    tensors alive at once hold less than half of the scores.

    Catches a mask of queries × keys, and plain attention where causal is asked for."""
    check_memory(subject, replace(shape.case(), causal=True))


@examples(quick=1, full=3)
@given(blocks=TILES, seed=SEEDS)
def test_tiles_in_the_future_are_skipped(subject, blocks, seed):
    """Causal costs products and exponentials only in tiles where some query may see some key, and gives the
    right result.

    Catches tiles that are computed and then masked, a bound that is one tile too far, and block sizes other
    than those asked for."""
    for lengths in ASKEW:
        shape, work = Shape(*lengths, *blocks, causal=True, seed=seed), []
        case = shape.case()
        for each in (replace(case, causal=False), case):
            with Work(case.q, case.k, case.v) as seen:
                got = call(subject, case.q, case.k, case.v, each)
            work.append(seen)
        Truth(case).agrees(got)
        all_, some = work
        assert_true(
            all_.products + all_.exponentials, "no product and no exponential was made by torch", got=0
        )
        skipped(all_, some, shape, "forward")


# --- part 3: backward ----------------------------------------------------------------------------


@examples(quick=4, full=30)
@given(case=sloped(cases(makes(DOUBLE))))
def test_gradients_equal_the_definition(subject, case):
    """The gradients of q, k and v are those of plain attention, with g what arrives from above (upstream):
    dS = P·(g·v − g·O)/√head_dim, dq = dS·k, dk = dSᵀ·q, dv = Pᵀ·g, summed over all tiles.

    Catches a lost scale, δ left out or taken of one tile, and sums that are overwritten by the next tile."""
    check_gradients(subject, *case)


@examples(quick=3, full=30)
@given(case=sloped(cases(makes(DOUBLE, layouts=LAYOUTS[:1]), causal=CAUSAL)))
def test_causal_gradients_equal_the_definition(subject, case):
    """Under causal too, and where queries see no key: they get gradient zero and give none.

    Catches tiles made again without their mask, and NaN from exp(s − L) where L is −inf."""
    check_gradients(subject, *case)


@examples(quick=3, full=24)
@given(case=sloped(cases(makes(WIDE, (300.0,), LAYOUTS[:1]), causal=st.booleans())))
def test_gradients_stay_finite_for_large_scores(subject, case):
    """Scores in the tens of thousands give the gradients of the definition.

    Catches weights made again as exp(s)/ℓ, without the maximum."""
    check_gradients(subject, *case)


@examples(quick=3, full=24)
@given(case=sloped(cases(causal=st.booleans())), wanted=st.sampled_from(("q", "k", "v", "qk", "qv", "kv")))
def test_some_inputs_may_want_no_gradient(subject, case, wanted):
    """If only some of q, k and v require a gradient, those get the right one; if none does, neither does the
    result.

    Catches gradients returned in another order, and a backward pass that needs all three."""
    case, upstream = case[0], case[1].upstream
    leaves = [
        x.detach().clone().requires_grad_(n in wanted)
        for n, x in zip("qkv", (case.q, case.k, case.v), strict=True)
    ]
    out = call(subject, *leaves, case)
    found = iter(gradients(out, [x for x in leaves if x.requires_grad], upstream))
    Truth(case).slopes_agree([next(found) if x.requires_grad else None for x in leaves], upstream)
    still = attend(subject, case)
    assert_true(not still.requires_grad, "nothing requires a gradient, but the result does", got=still)


@examples(quick=3, full=20)
@given(case=cases(causal=st.booleans()))
def test_any_gradient_from_above_will_do(subject, case):
    """A gradient from above that is one number repeated, as that of a sum, is as good as any, and is left
    alone.

    Catches view() of a gradient that has no strides, and a gradient scaled in place."""
    leaves = leaves_of(case)
    out = call(subject, *leaves, case)
    above = torch.full((1, 1, 1, 1), 1.5, dtype=case.q.dtype).expand(*case.q.shape[:3], case.v.shape[3])
    for name, arrives in (("turned round", above.mT.contiguous().mT), ("expanded", above)):
        before = arrives.clone()
        Truth(case).slopes_agree(pulled(out, leaves, arrives), before)
        untouched({f"of the backward pass, {name}": before}, {f"of the backward pass, {name}": arrives})


@examples(quick=3, full=20)
@given(case=sloped(cases(causal=st.booleans())), factor=st.sampled_from((1.0, -2.0, 0.5)))
def test_backward_passes_do_not_disturb_one_another(subject, case, factor):
    """Two calls, one of them causal, then their backward passes in any order, and one of them twice: each gets its
    own gradients, and the gradient from above still holds what it held.

    Catches what is kept on the class instead of the call, saved tensors that are overwritten, and a gradient
    from above changed in place."""
    case, upstream = case[0], case[1].upstream
    q, k = case.k[:, :, :1] * factor, case.k.flip(2) * factor
    other = replace(case, q=q, k=k, v=case.v * 2 - 1, causal=not case.causal)
    leaves, others = leaves_of(case), leaves_of(other)
    out, apart = call(subject, *leaves, case), call(subject, *others, other)
    before = upstream.clone()
    for name in ("first", "second"):
        found = pulled(out, leaves, upstream)
        untouched({"of the backward pass": before}, {"of the backward pass": upstream})
        Truth(case).slopes_agree(found, before)
        Truth(case).agrees(out, name=f"the result after its {name} backward pass")
    Truth(other).slopes_agree(pulled(apart, others, upstream[:, :, :1]), upstream[:, :, :1])


@examples(quick=3, full=30)
@given(case=sloped(cases(makes(HALF_TYPES, (0.5, 0.1)), causal=st.booleans())))
def test_half_precision_gradients_equal_the_definition(subject, case):
    """Gradients in half precision come in the dtype of their inputs, right within what rounding explains.

    Catches gradients left in float32, and exponents rounded to bf16 before they are taken."""
    check_gradients(subject, *case)


@examples(quick=2, full=12)
@given(
    dtype=st.sampled_from(HALF_TYPES), above=st.sampled_from(([1.0, 2.0], [-3.0, 1.0])), causal=st.booleans()
)
def test_loud_rows_keep_their_gradients_in_half_precision(subject, dtype, above, causal):
    """Where all scores of a row lie above a hundred, all of them whole numbers, the gradients of half-precision
    inputs are as right as elsewhere.

    Catches a log-sum-exp that is kept in the dtype of the inputs: bfloat16 counts whole numbers there."""
    # Scores of 128 or 512 and one or two more, which the dtype holds.
    loud, step = (32.0, 1 / 64) if dtype == torch.float16 else (8.0, 1 / 16)
    q = torch.full((1, 1, 2, 4), loud, dtype=dtype)
    k = 8 + step * torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0])[None, None, :, None].repeat(1, 1, 1, 4)
    k = k.to(dtype)
    v = torch.tensor([[1.0], [-2.0], [3.0], [0.0], [2.0]])[None, None].to(dtype)
    upstream = torch.tensor(above, dtype=dtype).reshape(1, 1, 2, 1)
    check_gradients(subject, Case(q, k, v, 1, 2, causal), Above(upstream), exact=True)


@examples(quick=1, full=2)
@given(seed=SEEDS)
def test_long_half_precision_gradients_sum_in_float32(subject, seed):
    """The gradients of four keys over 259 queries, and of one query over 259 keys, are right in bf16.

    Catches gradients that are added up tile by tile in the dtype of the inputs: they stop growing."""
    noise = torch.randn(4, 1, 1, 259, 2, generator=torch.Generator().manual_seed(seed)) / 4
    # One early term of 1,100, then many of about two, which bf16 cannot add to it one by one.
    above = 1 + noise[3]
    above[:, :, 0] = 1100
    many_queries = Case(*(x.bfloat16() for x in (noise[0] / 4, noise[1, :, :, :4], noise[2, :, :, :4])), 2, 4)
    check_gradients(subject, many_queries, Above(above.bfloat16()))
    sign = torch.ones(1, 1, 259, 2)
    sign[:, :, 125:] = -1
    k, v = sign.clone(), sign + noise[2] / 4
    k[:, :, 0] = 1100
    many_keys = Case(torch.zeros(1, 1, 1, 2).bfloat16(), k.bfloat16(), v.bfloat16(), 1, 2)
    check_gradients(subject, many_keys, Above(torch.ones(1, 1, 1, 2).bfloat16()))


@examples(quick=1, full=1)
@given(shape=MANY)
def test_only_the_result_and_two_numbers_a_query_are_kept(subject, shape):
    """Between forward and backward nothing lives but q, k, v, the result, and at most two numbers for each
    query; and the gradients are right.

    Catches the forward pass left to autograd, which keeps every tile, and tiles, masks or copies of the inputs
    kept on purpose, such as those of half types in float32."""
    for causal, dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16)):
        case = replace(shape, keys=shape.keys - 16).case(head_dim=12, value_dim=5, dtype=dtype)
        case = replace(case, causal=causal)
        leaves = leaves_of(case)
        with Work(*leaves) as work:
            out = call(subject, *leaves, case)
        assert_true(isinstance(out, Tensor) and out.requires_grad, "the result has no gradient")
        # Rows may be padded to whole blocks; and a few numbers are no matter.
        T_q, padded = case.q.shape[2], case.q.shape[2] + case.block_q
        gc.collect()  # a cycle is not kept on purpose
        kept = work.sizes(out)
        # The result may be kept once more, apart from the one that was returned.
        again = next((size for size in kept if out.numel() <= size <= padded * out.shape[3]), 0)
        assert_true(
            sum(kept) - again <= 2 * padded + 16,
            f"{sum(kept) - again} elements are kept for the backward pass, beside q, k, v and the result",
            expected=f"at most {2 * T_q}, two for each of {T_q} queries",
            got=sum(kept) - again,
        )
        Truth(case).slopes_agree(torch.autograd.grad(out.sum(), leaves), torch.ones_like(out))


@examples(quick=1, full=1)
@given(shape=MANY)
def test_the_backward_pass_makes_no_more_than_a_tile(subject, shape):
    """Forward and backward together make no tensor larger than a tile or an input, within a factor of four; the
    tensors alive at once hold less than half of the scores; and the gradients are right.

    Catches a backward pass that makes the whole matrix of weights again, or is plain autograd over it."""
    for causal in (False, True):
        case = replace(shape.case(), causal=causal)
        leaves = leaves_of(case)
        with Work(*leaves) as work:
            out = call(subject, *leaves, case)
            found = gradients(out, leaves)
        Truth(case).slopes_agree(found, torch.ones_like(out))
        within_a_tile(work, case, "the backward pass")


def test_larger_blocks_take_fewer_operations_backward(subject):
    """The backward pass works in the tiles that the block sizes ask for: one tile for everything takes fewer
    operations than tiles of 2 × 2.

    Catches a backward pass that does not read the block sizes."""
    for kind in KINDS:
        seen = []
        for blocks in ((2, 2), (12, 10)):
            case = Shape(12, 10, *blocks).case(**kind)
            leaves = leaves_of(case)
            out = call(subject, *leaves, case)
            with Work(*leaves, out) as work:
                found = gradients(out, leaves)
            Truth(case).slopes_agree(found, torch.ones_like(out))
            seen.append(work)
        fewer(*seen, "backward")


@examples(quick=1, full=2)
@given(blocks=TILES, seed=SEEDS)
def test_the_backward_pass_skips_tiles_too(subject, blocks, seed):
    """Causal costs the backward pass products and exponentials only where some query may see some key, and its
    gradients are right.

    Catches a backward pass that visits all tiles, and one that relies on masked weights being zero."""
    for lengths in ASKEW:
        shape, work = Shape(*lengths, *blocks, causal=True, seed=seed), []
        case = shape.case()
        for each in (replace(case, causal=False), case):
            leaves = leaves_of(case)
            out = call(subject, *leaves, each)
            with Work(*leaves, out) as seen:
                found = gradients(out, leaves)
            work.append(seen)
        Truth(case).slopes_agree(found, torch.ones_like(out))
        skipped(*work, shape, "backward")


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    q, k, v = waves(2, 2, 3, 4), waves(2, 2, 5, 4, step=2.3), waves(2, 2, 5, 3, step=0.9)
    square, tall = (k, k.flip(2), v), (k, q, q)
    rising = (
        torch.ones(1, 1, 1, 1).double(),
        torch.arange(6.0).double()[None, None, :, None],
        waves(1, 1, 6, 1),
    )

    def run(*inputs, blocks=(2, 2), **options):
        return lambda: subject.flash_attention(*inputs, block_q=blocks[0], block_k=blocks[1], **options)

    def slopes(*inputs, blocks=(2, 2), above=None, **options):
        def call():
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = subject.flash_attention(*leaves, block_q=blocks[0], block_k=blocks[1], **options)
            g = waves(*out.shape, step=3.1).to(out.dtype)
            return [pulled(out, leaves, g), g] if above else gradients(out, leaves, g)

        return call

    def q_afterwards():
        held = q.clone()
        subject.flash_attention(held, k, v, block_q=2, block_k=2)
        return held

    def measured(causal=False, backward=False, time=20, blocks=(16, 4)):
        """Whether a tensor was too large; and if none was, with many tiles, whether too much was alive at once."""

        def call():
            case = Shape(time, time, *blocks).case()
            leaves = leaves_of(case) if backward else [case.q, case.k, case.v]
            with Work(*leaves) as work:
                out = subject.flash_attention(*leaves, causal=causal, block_q=blocks[0], block_k=blocks[1])
                gradients(out, leaves) if backward else None
            whole, large = time * time, work.largest > 4 * math.prod(blocks)
            return [large, work.largest >= whole, time > 20 and not large and work.peak >= whole]

        return call

    def kept(time, head_dim, block, dtype=torch.float32):
        """Whether more is kept than is allowed."""

        def call():
            leaves = leaves_of(Shape(time, time, block, block).case(head_dim=head_dim, dtype=dtype))
            with Work(*leaves) as work:
                out = subject.flash_attention(*leaves, block_q=block, block_k=block)
                return work.alive(out) > 3 * time + 16

        return call

    def counted(backward=False):
        """Whether causal does more than the six of nine tiles that have something to see, or all of them."""

        def call():
            case, counts = Shape(12, 12, 4, 4).case(), []
            for causal in (True, False):
                leaves = leaves_of(case)
                out = (
                    subject.flash_attention(*leaves, causal=causal, block_q=4, block_k=4)
                    if backward
                    else None
                )
                with Work(*leaves) as work:
                    if backward:
                        gradients(out, leaves)
                    else:
                        subject.flash_attention(*leaves, causal=causal, block_q=4, block_k=4)
                counts.append((work.products, work.exponentials))
            return [(9 * some > 6 * all_, 0 < all_ <= some) for some, all_ in zip(*counts, strict=True)]

        return call

    def fewer_operations(backward=False):
        def call():
            counts = []
            for blocks in ((2, 2), (4, 4)):
                leaves = leaves_of(Shape(4, 4, *blocks).case())
                out = (
                    subject.flash_attention(*leaves, block_q=blocks[0], block_k=blocks[1])
                    if backward
                    else None
                )
                with Work(*leaves) as work:
                    if backward:
                        gradients(out, leaves)
                    else:
                        subject.flash_attention(*leaves, block_q=blocks[0], block_k=blocks[1])
                counts.append(work.operations)
            return counts[1] < counts[0]

        return call

    def interleaved():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        one, two = (subject.flash_attention(a * leaves[0], *leaves[1:], block_q=2, block_k=2) for a in (1, 2))
        first = [gradients_of(one, leaves), gradients_of(two, leaves)]
        return [*first, gradients_of(one, leaves)]

    def after_another_call():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = subject.flash_attention(*leaves, block_q=2, block_k=2)
        subject.flash_attention(*(x * 1 for x in leaves), causal=True, block_q=3, block_k=1)
        return gradients(out, leaves, waves(2, 2, 3, 3))

    def from_transposed():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = subject.flash_attention(*leaves, block_q=2, block_k=2)
        return pulled(out, leaves, waves(2, 2, 3, 3).mT)

    def gradients_of(out, leaves):
        return torch.autograd.grad(out.sum(), leaves, retain_graph=True)

    half = [x.bfloat16() for x in (q, k, v)]
    # bf16 cannot add 1 to 300
    first = torch.ones(1, 1, 40, 1).bfloat16()
    first[:, :, 0] = 300

    def gradient_of_v():
        """All scores are above a hundred; of the gradients only that of v has no cancellation."""
        loud = 8 + torch.tensor([0.0, 0.0625, 0.125])[None, None, :, None].repeat(1, 1, 1, 4)
        leaves = torch.full((1, 1, 2, 4), 8.0), loud, torch.tensor([[[[1.0], [-2.0], [3.0]]]])
        leaves = [x.bfloat16().requires_grad_() for x in leaves]
        return gradients(subject.flash_attention(*leaves, block_q=2, block_k=2), leaves)[2]

    def long_gradients():
        leaves = [x.bfloat16().requires_grad_() for x in (first * 0, first[:, :, :4] * 0, first[:, :, :4])]
        return gradients(subject.flash_attention(*leaves, block_q=1, block_k=4), leaves, first)

    return {
        "plain": run(q, k, v),
        "blocks 1 × 3": run(q, k, v, blocks=(1, 3)),
        "blocks 3 × 1": run(q, k, v, blocks=(3, 1)),
        "one block": run(q, k, v, blocks=(8, 8)),
        "rising": run(*rising),
        "falling": run(rising[0], -9 * rising[1], rising[2]),
        "loud": run(q * 900, k * 300, v),
        "loud and negative": run(q.abs() * 900, -k.abs() * 300, v),
        "float32": run(q.float(), k.float(), v.float()),
        "q afterwards": q_afterwards,
        "head_dim differs": run(q, k[..., :3], v),
        "one head of keys": run(q, k[:, :1], v[:, :1]),
        "a block of 0": run(q, k, v, blocks=(2, 0)),
        "causal, square": run(*square, causal=True),
        "causal, blocks 1 × 3": run(*square, causal=True, blocks=(1, 3)),
        "causal, blocks 3 × 1": run(*square, causal=True, blocks=(3, 1)),
        "causal, more keys": run(q, k, v, causal=True),
        "causal, more queries": run(*tall, causal=True),
        "causal, negative and loud": run(k.abs() * 300, -k.abs() * 300, v, causal=True),
        "gradients": slopes(q, k, v),
        "gradients, above": slopes(q, k, v, above=True),
        "gradients, loud": slopes(q * 900, k * 300, v),
        "gradients, causal": slopes(*square, causal=True),
        "gradients, causal, more keys": slopes(q, k, v, causal=True),
        "gradients, causal, more queries": slopes(*tall, causal=True),
        "gradients, interleaved": interleaved,
        "gradients, after another call": after_another_call,
        "gradients, transposed above": from_transposed,
        "bf16": run(*half),
        "bf16, gradients": slopes(*half),
        "bf16, long": run(first[:, :, :1] * 0, first * 0, first, blocks=(1, 1)),
        "bf16, long, gradients": long_gradients,
        "made": measured(time=40, blocks=(8, 8)),
        "made, causal": measured(causal=True),
        "made, tiles of 4 × 16": measured(blocks=(4, 16)),
        "made by backward": measured(backward=True),
        "kept, of four tiles": kept(8, 1, 4),
        "kept, of wide heads": kept(2, 64, 2),
        "kept, of wide heads in bf16": kept(2, 64, 2, torch.bfloat16),
        "operations": fewer_operations(),
        "operations of backward": fewer_operations(backward=True),
        "work": counted(),
        "work of backward": counted(backward=True),
        "bf16, loud, gradient of v": gradient_of_v,
    }
