"""The laws of attention for kernels: whatever the blocks, nothing is lost at their edges, nothing read beyond
them, and nothing computed that no query sees; and the gradients are those of the same function.

They hold on a GPU and on Triton's interpreter, which needs TRITON_INTERPRET=1 before Triton is imported. The
interpreter takes milliseconds for each block, so that lengths are little more than one block of 16 and
examples are few; and it cannot multiply bfloat16, which is left out there. On a GPU blocks are larger, and
lengths grow with them (``grown``): those that are written here are in blocks of 16.

On a GPU each kernel is compiled anew for each dtype, width and constant, and for each argument that is 1 or a
multiple of 16 where it was not before. So most claims keep to a width of 16 and to lengths that are neither; the
lengths of 1 and of whole blocks, the other widths and the strides beside 1 are left to the claims about them."""

import gc
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
from dojo.draw import examples, fill
from properties.flash_attention import Work

HEADS = ((1, 1, 1), (1, 2, 2), (2, 1, 1))  # batch, heads, kv_heads
GROUPED = ((1, 4, 2), (1, 2, 1), (1, 6, 3), (2, 3, 1))
SQUARE = ((5, 5), (18, 18), (20, 20))
SHORT = ((2, 18), (3, 17), (5, 20), (17, 34))  # fewer queries than keys
TALL = ((4, 2), (18, 3), (20, 17), (34, 18))  # more queries than keys
ONE_OR_WHOLE = ((1, 1), (16, 16), (1, 18))  # a length of 1, and whole blocks
RAGGED = ((17, 18), (20, 19), (3, 17), (18, 5), (2, 33))
WIDTHS = (16,)
LAYOUTS = ("contiguous", "heads last", "beside", "strided", "expanded")
UNIT = ("contiguous", "heads last", "beside", "expanded")  # those whose last stride is 1
SEEDS = st.integers(0, 999)
SMALL = st.integers(-4, 4)


def device():
    """Asked when a claim runs and not before: CUDA must not be woken in a process that forks."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def halves():
    return HALF_TYPES if device() == "cuda" else (torch.float16,)


# --- what is drawn -------------------------------------------------------------------------------


def grown(length, dtype):
    """As many blocks as ``length`` has of 16, and as much beside them: on a GPU blocks have 32 for float32, 64 or
    128 for half types. Lengths above 64 span several blocks as they are."""
    if device() != "cuda" or length > 64:
        return length
    return length // 16 * (128 if dtype in HALF_TYPES else 32) + length % 16


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool = False
    scale: float | None = None
    window: int | None = None


def placed(x, layout):
    """The same values in another memory layout; "beside" has NaN behind each sequence."""
    if layout == "heads last":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "beside":
        return torch.cat([x, torch.full_like(x, torch.nan)], dim=2)[:, :, : x.shape[2]]
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "expanded":
        return x[:, :1].expand_as(x)
    return x


@st.composite
def cases(
    draw, lengths=SQUARE + SHORT + TALL, heads=HEADS, widths=WIDTHS, layouts=LAYOUTS[:3], half=False,
    loudness=(1.0, 0.1), causal=st.just(False), scale=st.none(), window=st.none(), mixed=False,
):  # fmt: skip
    ((B, H, KV), (T_q, T_k), D) = draw(st.sampled_from(list(product(heads, lengths, widths))))
    at, loud, which = draw(st.sampled_from(list(product(range(len(layouts)), loudness, range(2)))))
    dtype = halves()[which % len(halves())] if half else torch.float32
    T_q, T_k = grown(T_q, dtype), grown(T_k, dtype)
    shapes = (B, H, T_q, D), (B, KV, T_k, D), (B, KV, T_k, D)
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    # q and k are such that q·k/√D has the size that ``loud`` says, whatever D.
    parts = parts[0] * loud, parts[1], parts[2]
    given = [x.reshape(s).to(dtype).to(device()) for x, s in zip(parts, shapes, strict=True)]
    # ``mixed`` lays out each of the three in its own way.
    q, k, v = (placed(x, layouts[(at + mixed * n) % len(layouts)]) for n, x in enumerate(given))
    causal, scale, window = draw(causal), draw(scale), draw(window)
    return Case(q, k, v, causal, scale, window and grown(window, dtype))


@st.composite
def sloped(draw, drawn):
    """A case, and the gradient that arrives from above."""
    case = draw(drawn)
    return case, fill(draw, case.q.shape, dtype=torch.float32).to(case.q)


def noise_case(seed, queries, keys, dim=16, dtype=torch.float32, **options):
    """One head of noise, for what is too long to be drawn."""
    queries, keys = grown(queries, dtype), grown(keys, dtype)
    noise = torch.randn(queries + 2 * keys, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Case(*(x[None, None].to(device()) for x in noise.split([queries, keys, keys])), **options)


def in_the_first_channel(numbers):
    """One head of 16 channels that are zero but for the first."""
    return torch.nn.functional.pad(
        torch.tensor(numbers, dtype=torch.float32)[None, None, :, None], (0, 15)
    ).to(device())


def call(subject, q, k, v, case):
    """The call itself. Arguments that have their default value are left out."""
    options = {"causal": case.causal, "scale": case.scale, "window": case.window}
    return subject.triton_flash(
        q, k, v, **{n: x for n, x in options.items() if x is not None and x is not False}
    )


def attend(subject, case):
    """The result. Whatever is claimed of it, q, k and v must be left as they were."""
    inputs = {"q": case.q, "k": case.k, "v": case.v}
    before = {name: x.clone() for name, x in inputs.items()}
    got = call(subject, *inputs.values(), case)
    untouched({n: x.nan_to_num() for n, x in before.items()}, {n: x.nan_to_num() for n, x in inputs.items()})
    return got


def leaves_of(case):
    """Inputs in the layout of the case, as an optimiser's parameters would never be, but a slice may."""
    return [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]


def check_gradients(subject, case, upstream, steps=None):
    """Values and gradients together: the ones must not be had at the cost of the others."""
    truth, leaves = Truth(case, steps), leaves_of(case)
    out = call(subject, *leaves, case)
    truth.agrees(out)
    truth.slopes_agree(gradients(out, leaves, upstream), upstream)


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """Attention in float64 on the CPU, straight from the definition, with what bounds its rounding errors.
    ``steps`` says how many roundings there are, one after another, unless the dtype says enough."""

    def __init__(self, case, steps=None):
        self.dtype, self.device = case.q.dtype, case.q.device
        self.q, k, v = (x.detach().cpu().double() for x in (case.q, case.k, case.v))
        self.group = self.q.shape[1] // k.shape[1]
        self.k, self.v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        self.scale = self.q.shape[3] ** -0.5 if case.scale is None else case.scale
        queries, keys = self.q.shape[2], k.shape[2]
        last = torch.arange(queries)[:, None] + (keys - queries if case.causal else keys)
        self.seen = torch.arange(keys) <= last
        if case.window is not None:
            self.seen = self.seen & (torch.arange(keys) > last - case.window)
        self.sighted = self.seen.any(-1, keepdim=True)
        scores = (self.scale * self.q @ self.k.mT).where(self.seen, -torch.inf)
        top = scores.amax(-1, keepdim=True).where(self.sighted, 0)
        terms = (scores - top).exp()
        self.weights = terms / terms.sum(-1, keepdim=True).where(self.sighted, 1)
        self.out = self.weights @ self.v
        self.length = self.q.shape[3] + keys  # of both sums
        self.steps = steps or (1 if self.dtype in HALF_TYPES else 4)
        self.unit = float(tolerance(self.dtype, length=self.length, steps=self.steps))

    def loudness(self):
        """The size of each query's largest score, as the sum of products that it is: Σ |scale·q||k|."""
        return (abs(self.scale) * self.q.abs() @ self.k.abs().mT).where(self.seen, 0).amax(-1, keepdim=True)

    def growth(self, loudness):
        """e^{2η} − 1, in units of the tolerance, where η bounds the rounding errors of an exponent."""
        return (2 * self.unit * loudness).clamp(max=50).expm1() / self.unit

    def spread(self):
        """The magnitude for ``assert_close``: errors of exponents move undecided weights only; a normaliser
        kept as its logarithm is rounded once more, at the size of the scores."""
        loudness = self.loudness()
        unsure = torch.minimum(self.weights, 1 - self.weights)
        rounded = 1 + 4 * torch.finfo(self.dtype).eps / self.unit * loudness
        return rounded * (self.weights @ self.v.abs()) + self.growth(loudness) * (unsure @ self.v.abs())

    def agrees(self, got, rows=slice(None), name="the result"):
        """``got`` must be the rows of the truth within what rounding explains."""
        assert_tensor(got, shape=self.out[:, :, rows].shape, dtype=self.dtype, name=name)
        assert_true(
            got.device == self.device, f"{name} is on another device", expected=self.device, got=got.device
        )
        assert_close(
            got.cpu(), self.out[:, :, rows], dtype=self.dtype, length=self.length,
            magnitude=self.spread()[:, :, rows], steps=self.steps, name=name,
        )  # fmt: skip

    def slopes_agree(self, found, upstream):
        """``found`` must be the gradients of Σ upstream·attention by the definition."""
        q, k, v, w, g = self.q, self.k, self.v, self.weights, upstream.detach().cpu().double()
        pull, size = g @ v.mT, g.abs() @ v.abs().mT
        pull = self.scale * w * (pull - (w * pull).sum(-1, keepdim=True))
        size = abs(self.scale) * w * (size + (w * size).sum(-1, keepdim=True))
        loose = 2 + 2 * float(self.growth(self.loudness()).amax()) if w.numel() else 2
        due = (
            ("q", pull @ k, size @ k.abs()),
            ("k", self.shared(pull.mT @ q), self.shared(size.mT @ q.abs())),
            ("v", self.shared(w.mT @ g), self.shared(w.mT @ g.abs())),
        )
        for got, (name, want, magnitude) in zip(found, due, strict=True):
            assert_close(
                got.cpu(), want, dtype=self.dtype, length=self.length + self.group * q.shape[2] + v.shape[3],
                steps=self.steps, magnitude=loose * magnitude, name=f"the gradient of {name}",
            )  # fmt: skip

    def shared(self, x):
        """The sum over the heads of queries that share a head of keys."""
        return x.unflatten(1, (-1, self.group)).sum(2)


def no_scores(work, case, when):
    """No tensor was made outside the kernels that could hold the scores."""
    allowed = 4 * max(x.numel() for x in (case.q, case.k, case.v))
    assert_true(
        work.largest <= allowed,
        f"with {case.q.shape[2]} queries and {case.k.shape[2]} keys, {when} made a tensor of {work.largest} elements",
        expected=f"at most {allowed}",
        got=work.largest,
    )


def longer(x, dim):
    """x with one more slice along dim."""
    return torch.cat([x, x.narrow(dim, 0, 1)], dim)


CAUSAL, EITHER = st.just(True), st.booleans()

# --- part 1: forward -----------------------------------------------------------------------------


@examples(quick=2, full=5)
@given(q=st.tuples(SMALL, SMALL), k=st.tuples(SMALL, SMALL, SMALL), v=st.tuples(SMALL, SMALL, SMALL))
def test_one_channel_can_be_followed_on_paper(subject, q, k, v):
    """With head_dim 16 and zeros in all channels but the first, the result there is softmax(q·k/4)·v, and zero in
    the others. Shown is the first channel.

    Catches a lost scale, exp2 without log2 e, and keys beyond the end that take weight."""
    case = Case(*map(in_the_first_channel, (q, k, v)))
    Truth(case).agrees(attend(subject, case))


@examples(quick=4, full=8)
@given(
    first=st.sampled_from((0, -200, 200)),
    rise=st.sampled_from((1, -1, 3, -3, 20, -20)),
    late=st.sampled_from((2, 3, 17)),
)
def test_a_second_block_can_be_followed_on_paper(subject, first, rise, late):
    """Where a first block of n keys has the score ``first`` and the value 1, and ``late`` keys after it a score higher
    by ``rise`` and the value 0, the result is n / (n + late·e^rise). n is 16, or 32 on a GPU.

    Catches running sums that are not carried on, or not rescaled when the maximum rises, and a maximum that
    starts at 0."""
    n = grown(16, torch.float32)
    k, v = [first] * n + [first + rise] * late, [1] * n + [0] * late
    case = Case(*map(in_the_first_channel, ((4, 4), k, v)))
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=4)
@given(case=cases(SQUARE + ONE_OR_WHOLE), level=st.integers(1, 3))
def test_each_row_is_an_average_of_the_values(subject, case, level):
    """Equal values come out as they are: the weights of a query sum to one over all blocks.

    Catches blocks that are normalised each by itself, and keys beyond the end that take weight."""
    even = replace(case, v=torch.full_like(case.v, level))
    Truth(even).agrees(attend(subject, even))


@examples(quick=2, full=5)
@given(case=cases(((5, 18), (17, 20), (3, 34)), widths=(16, 32), loudness=(1.0,)))
def test_several_blocks_equal_the_definition(subject, case):
    """Value by value softmax(q·kᵀ/√head_dim)·v in float64, over several blocks of keys, of several heads and
    batch entries.

    Catches running sums that are not carried on, a lost scale, exp2 without log2 e, heads mixed up."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=5)
@given(step=st.sampled_from((1, -1, 3, -3, 20, -20)), keys=st.sampled_from((20, 33)), seed=SEEDS)
def test_a_louder_block_rescales_what_came_before(subject, step, keys, seed):
    """If scores rise, or fall, from key to key, the early blocks count as little, or as much, as they should.

    Catches sums that are not rescaled when the maximum rises, and a maximum of each block alone."""
    case = noise_case(seed, 2, keys)
    case.q.fill_(1.0)
    case.k.copy_(step / 8 * torch.arange(case.k.shape[2])[:, None])
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=4)
@given(case=cases(half=True, widths=(32,)))
def test_half_precision_equals_the_definition(subject, case):
    """Half types come back in their own dtype, right within what rounding explains; q, k and v are left alone.

    Catches results left in float32, and fills such as −1e9 that float16 does not hold."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=3, full=6)
@given(case=cases(RAGGED, layouts=("beside",)))
def test_nothing_is_read_beyond_the_end(subject, case):
    """Lengths need not divide by the block: what lies in memory behind the last query and the last key, be it
    NaN, is not read, and the last rows are written.

    Catches loads and stores without a bound, and zero keys that take weight in the last block."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=6)
@given(case=cases(((17, 18), (5, 20), (3, 3)), heads=((2, 3, 3),), layouts=LAYOUTS, mixed=True))
def test_strides_are_minded(subject, case):
    """Inputs may lie in memory in any way: transposed, a slice of something larger, one head for all.

    Catches offsets computed from shapes, and one tensor's strides used for all three."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=4)
@given(case=cases(((3, 18), (17, 5)), heads=((1, 1, 1),), widths=(64, 128, 16), loudness=(0.5,)))
def test_every_head_dim_will_do(subject, case):
    """Heads of 16, 32, 64 and 128 alike, in half precision too.

    Catches a width that is fixed in the kernel, and blocks of wide heads that no GPU has room for."""
    half = replace(case, **{name: getattr(case, name).to(halves()[-1]) for name in ("q", "k", "v")})
    for each in (case, half):
        Truth(each).agrees(attend(subject, each))


@examples(quick=1, full=3)
@given(seed=SEEDS, largest=st.sampled_from((1e4, 1e6)))
def test_large_scores_do_not_overflow(subject, seed, largest):
    """Scores of up to a million in size, of either sign or of both, give finite averages.

    Catches exp without the running maximum, and a maximum that starts at 0: all weights underflow below."""
    case = noise_case(seed, 3, 18)
    grow = math.sqrt(largest / float((case.q @ case.k.mT).abs().amax()) * 4)
    q, k = case.q * grow, case.k * grow
    for loud in (
        replace(case, q=q.abs(), k=-k.abs()),
        replace(case, q=q.abs(), k=k.abs()),
        replace(case, q=q, k=k),
    ):
        Truth(loud).agrees(attend(subject, loud))


@examples(quick=2, full=4)
@given(case=cases(((3, 5), (5, 18)), heads=HEADS[:1], causal=EITHER), scale=st.sampled_from((1.0, 0.5, 2.0)))
def test_scale_takes_the_place_of_the_root(subject, case, scale):
    """The weights are softmax(scale · q·k) for a scale of any sign, and the plain average for 0.

    Catches scale ignored, 0 taken for None, a maximum that is scaled after it was taken, and 0 · −inf."""
    for each in (scale, -scale, 0.0):
        scaled = replace(case, scale=each)
        Truth(scaled).agrees(attend(subject, scaled))


@examples(quick=3, full=8)
@given(case=cases(SHORT + SHORT + SQUARE + ((1, 18), (16, 32)), causal=CAUSAL))
def test_causal_is_aligned_to_the_last_key(subject, case):
    """The last query sees every key, the one before it every key but the last, and so on, whatever the blocks.

    Catches a diagonal that is off by one or aligned to the first key, and blocks skipped too early."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=5)
@given(case=cases((*TALL, (4, 1), (34, 16)), causal=CAUSAL))
def test_queries_before_the_first_key_give_zeros(subject, case):
    """With more queries than keys, the first ones come before every key, alone in their block or beside others
    that see something: they give zeros.

    Catches NaN from 0/0 and from −inf − −inf, and an average that a finite fill gives."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=6)
@given(
    case=cases(((5, 5), (3, 18), (18, 18)), causal=CAUSAL, half=True, widths=(32,), layouts=LAYOUTS[:1]),
    size=st.sampled_from((1.0, 1e2)),
)
def test_future_keys_never_matter(subject, case, size):
    """What stands in the keys and values after a query has no effect on its row, be its own scores ever so low.

    Catches finite fills that large scores overrun, and a mask applied after the maximum has seen the future."""
    q, k, v = case.q.abs() * 150, -case.k.abs() * 150 - 100, case.v.clone()
    k[:, :, -1], v[:, :, -1] = size, size  # seen by the last query alone
    loud = replace(case, q=q, k=k, v=v)
    rows = slice(0, case.q.shape[2] - 1) if case.q.shape[2] > 1 else slice(None)
    Truth(loud).agrees(attend(subject, loud)[:, :, rows], rows=rows)


@examples(quick=0, full=1)
@given(seed=SEEDS)
def test_values_far_in_the_future_are_never_read(subject, seed):
    """A NaN among the values, 256 or more keys in the future of a query, does not reach it: the blocks that
    causal hides are skipped and not computed and masked, where 0 · NaN would be NaN.

    Catches a loop over all keys under a mask."""
    case = noise_case(seed, 271, 271, causal=True)
    truth = Truth(case)
    case.v[:, :, 270:] = torch.nan
    got = call(subject, case.q, case.k, case.v, case)
    assert_tensor(got, shape=case.q.shape, dtype=case.q.dtype)
    truth.agrees(got[:, :, :15], rows=slice(0, 15))


@examples(quick=1, full=3)
@given(seed=SEEDS, index=st.integers(0, 1))
def test_long_half_precision_rows_sum_in_float32(subject, seed, index):
    """Over 520 keys in half precision the result is right to the last stored bits.

    Catches running sums kept in the dtype of the inputs: in fp16 they overflow, in bf16 they stop growing."""
    dtype = halves()[index % len(halves())]
    case = noise_case(seed, 2, 520, dim=32)
    late = (torch.arange(520, device=device()) > 250)[:, None]
    v = (case.v / 4 + late) * (1 if dtype == torch.bfloat16 else 900)
    case = Case((case.q / 4).to(dtype), (case.k / 4).to(dtype), v.to(dtype))
    Truth(case).agrees(attend(subject, case))


@examples(quick=1, full=2)
@given(seed=SEEDS, causal=EITHER)
def test_no_scores_are_made_outside_the_kernels(subject, seed, causal):
    """The forward pass makes no tensor that could hold the scores, and the result is right.

    Catches attention written in PyTorch, and kernels that pass the scores through memory."""
    case = noise_case(seed, 97, 98, causal=causal)
    with Work(case.q, case.k, case.v) as work:
        got = call(subject, case.q, case.k, case.v, case)
    Truth(case).agrees(got)
    no_scores(work, case, "the forward pass")


def test_an_empty_batch_gives_an_empty_result(subject):
    """No batch entries in, none out.

    Catches a launch of no programs that fails."""
    q, k = torch.zeros(0, 2, 3, 16, device=device()), torch.zeros(0, 2, 5, 16, device=device())
    assert_tensor(subject.triton_flash(q, k, k), shape=(0, 2, 3, 16), dtype=torch.float32)


@examples(quick=3, full=5)
@given(case=cases(((3, 5), (2, 4)), layouts=LAYOUTS[:1]), dim=st.sampled_from((8, 24, 48, 256)))
def test_what_does_not_fit_is_refused(subject, case, dim):
    """ValueError if q, k and v differ in batch or head_dim, or k and v in anything; for another head_dim; and
    for dtypes that differ or are not among the three.

    Catches kernels that read whatever lies there."""
    q, k, v = case.q, case.k, case.v
    wide = torch.zeros(1, 1, 3, dim, device=device())
    misfits = (
        (q, longer(k, 0), longer(v, 0)), (longer(q, 0), k, v), (q, torch.cat([k, k], 3), torch.cat([v, v], 3)),
        (q, k, longer(v, 2)), (q, k, longer(v, 0)), (q, k, longer(v, 1)), (q, k, torch.cat([v, v], 3)), (wide, wide, wide),
    )  # fmt: skip
    for parts in misfits:
        q_, k_, v_ = (tuple(x.shape) for x in parts)
        because = f"q {q_}, k {k_} and v {v_} do not fit"
        refuses(ValueError, lambda parts=parts: subject.triton_flash(*parts), because=because)
    for parts in (
        (q.half(), k, v),
        (q, k, v.half()),
        (q.double(), k.double(), v.double()),
        (q.int(), k.int(), v.int()),
    ):
        because = f"the dtypes are {', '.join(str(x.dtype) for x in parts)}"
        refuses(ValueError, lambda parts=parts: subject.triton_flash(*parts), because=because)


# --- part 2: backward ----------------------------------------------------------------------------


@examples(quick=2, full=5)
@given(case=sloped(cases(((3, 5), (5, 18), (18, 5), (17, 17)), loudness=(1.0,), layouts=LAYOUTS)))
def test_gradients_equal_the_definition(subject, case):
    """The gradients of q, k and v are those of plain attention, over several blocks of either side.

    Catches a lost scale, δ left out, blocks that overwrite one another's sums, log2 e left in."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=2, full=5)
@given(
    case=sloped(cases(((5, 5), (18, 18), (17, 3), (20, 17)), causal=CAUSAL, layouts=("contiguous", "beside")))
)
def test_causal_gradients_equal_the_definition(subject, case):
    """Under causal too, with lengths that do not divide, and where queries see no key.

    Catches blocks made again without their mask, and NaN from L = −inf."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=2, full=5)
@given(case=sloped(cases(((3, 17), (5, 18), (2, 20), (17, 33)), causal=CAUSAL)))
def test_causal_gradients_are_aligned_to_the_last_key(subject, case):
    """With fewer queries than keys, the keys of every block get what the queries that see them pull.

    Catches loops over queries that start at the number of the block of keys, and blocks skipped too early."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=2, full=4)
@given(case=sloped(cases(((3, 5), (5, 18)), scale=st.sampled_from((-1.0, -0.5, -2.0)))))
def test_gradients_follow_the_scale(subject, case):
    """A negative scale acts in the backward pass as in the forward pass.

    Catches 1/√head_dim or |scale| in the backward pass."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=1, full=3)
@given(case=sloped(cases(((3, 18), (18, 3)), half=True, widths=(32,), causal=EITHER, loudness=(0.5, 0.1))))
def test_half_precision_gradients_equal_the_definition(subject, case):
    """Gradients in half precision come in the dtype of their inputs, right within what rounding explains.

    Catches gradients left in float32."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=0, full=2)
@given(case=sloped(cases(((3, 18), (17, 5)), heads=HEADS[:1], widths=(128,), causal=CAUSAL, loudness=(0.5,))))
def test_every_head_dim_has_its_gradients(subject, case):
    """Heads of 32, 64 and 128 have right gradients as well as those of 16, be the scale negative or not given,
    and the widest in half precision too.

    Catches a width, or its root, that is fixed in the backward kernels, and a branch for wide heads that forgets
    what the scale is."""
    case, upstream = case
    for dim in (128, 64, 32):
        q, k, v, above = (x[..., :dim].contiguous() for x in (case.q, case.k, case.v, upstream))
        for scale in (-0.1, None):
            check_gradients(subject, replace(case, q=q, k=k, v=v, scale=scale), above)
    q, k, v, above = (x.to(halves()[-1]) for x in (case.q, case.k, case.v, upstream))
    check_gradients(subject, replace(case, q=q, k=k, v=v), above)


@examples(quick=0, full=1)
@given(seed=SEEDS)
def test_long_half_precision_gradients_sum_in_float32(subject, seed):
    """Over 776 queries in float16 the gradients of k and v are right to what the stored bits allow.

    The first queries pull one way, the others back. Catches running sums kept in the dtype of the inputs: they
    overflow on the way."""
    case = noise_case(seed, 776, 2, dim=32, dtype=torch.float16)
    case.q.div_(4), case.v.div_(4)
    early = torch.arange(776, device=device())[:, None] < 256
    upstream = torch.where(early, 900.0, -220.0).expand_as(case.q).to(case.q.dtype).contiguous()
    check_gradients(subject, case, upstream)


@examples(quick=1, full=2)
@given(seed=SEEDS)
def test_float32_is_not_rounded_before_it_is_multiplied(subject, seed):
    """Results and gradients of float32 inputs are right to float32, also where each input lies just below the
    middle of two numbers of eleven bits.

    Catches products in TF32, which is what tl.dot makes of float32 unless told otherwise, and in float16."""
    case = noise_case(seed, 5, 2, scale=1 / 64)
    q, k, v = (2 ** (x.abs() > 1) * (1 + 2**-11 - 2**-20) for x in (case.q, case.k, case.v))
    # One key and value positive, one negative: what is lost in one place is won back in no other.
    sign = torch.tensor([1.0, -1.0], device=device())[:, None]
    check_gradients(subject, replace(case, q=q, k=k * sign, v=v * sign), q.flip(2), steps=1)


@examples(quick=1, full=3)
@given(seed=SEEDS)
def test_weights_made_again_sum_to_one_however_large_the_scores(subject, seed):
    """In half precision, at scores of a thousand, the weights that the backward pass makes again still sum to one.

    Catches a logarithm of the sum that is kept in half precision: at a thousand that is right to 0.5 only."""
    dtype = halves()[seed % len(halves())]
    case = noise_case(seed, 5, 18, dtype=dtype)
    case.q.mul_(30), case.k.mul_(30)
    leaves = leaves_of(case)
    # Row i from above is 1 in place i alone: the gradient of v holds the weight of each key for query i there.
    above = torch.eye(16, device=device(), dtype=dtype)[: case.q.shape[2]].expand(case.q.shape).contiguous()
    weights = gradients(call(subject, *leaves, case), leaves, above)[2]
    total = weights.cpu().float().sum(2)[0, 0, : case.q.shape[2]].to(dtype)
    assert_close(total, torch.ones_like(total), dtype=dtype, length=18, name="the sum of a query's weights")


@examples(quick=1, full=3)
@given(case=cases(((3, 5), (5, 17)), heads=((2, 2, 2),), layouts=LAYOUTS[:1]))
def test_any_gradient_from_above_will_do(subject, case):
    """A gradient from above may lie in memory in any way, as one number repeated or transposed, and is left
    alone.

    Catches a gradient read with the strides of the result."""
    leaves = leaves_of(case)
    ones = torch.ones((), device=device()).expand(case.q.shape)
    Truth(case).slopes_agree(gradients(call(subject, *leaves, case), leaves), ones)
    above = placed(case.q.flip(2) + 1, "heads last")
    before = above.clone()
    found = torch.autograd.grad(call(subject, *leaves, case), leaves, above)
    untouched({"of the backward pass": before}, {"of the backward pass": above})
    Truth(case).slopes_agree(found, above)


@examples(quick=1, full=2)
@given(case=sloped(cases(((5, 17), (3, 3)), heads=HEADS[:1], causal=EITHER)))
def test_backward_passes_do_not_disturb_one_another(subject, case):
    """Two calls, one causal, then their backward passes, and one of them twice: each gets its own gradients.

    Catches what is kept on the class instead of the call, and sums that start where the last call ended."""
    case, upstream = case
    other = Case(case.k[:, :, :2] * 2, case.k.flip(2), case.v * 2 - 1, not case.causal, scale=0.5)
    leaves, others = leaves_of(case), leaves_of(other)
    out, apart = call(subject, *leaves, case), call(subject, *others, other)
    assert_true(out.requires_grad and apart.requires_grad, "the result has no gradient")
    for _ in range(2):
        Truth(case).slopes_agree(torch.autograd.grad(out, leaves, upstream, retain_graph=True), upstream)
    above = upstream[:, :, :2].contiguous()
    Truth(other).slopes_agree(torch.autograd.grad(apart, others, above), above)


@examples(quick=1, full=2)
@given(seed=SEEDS, causal=EITHER)
def test_only_two_numbers_a_query_are_kept_and_no_scores_made(subject, seed, causal):
    """Between forward and backward nothing lives but q, k, v, the result and at most two numbers for each
    query; neither pass makes a tensor that could hold the scores; and the gradients are right.

    Catches weights or scaled copies kept for the backward pass, and a backward pass in PyTorch."""
    case = noise_case(seed, 97, 98, causal=causal)
    leaves = leaves_of(case)
    with Work(*leaves) as work:
        out = call(subject, *leaves, case)
        gc.collect()  # Triton's launchers leave cycles behind
        alive = work.alive(out)
        found = gradients(out, leaves)
    Truth(case).slopes_agree(found, torch.ones_like(out))
    allowed = 2 * 97 + 64
    assert_true(
        alive <= allowed,
        f"{alive} elements are kept for the backward pass, beside q, k, v and the result",
        expected="at most 194, two for each of 97 queries",
        got=alive,
    )
    no_scores(work, case, "forward and backward")


# --- part 3: grouped heads and a sliding window --------------------------------------------------


@examples(quick=2, full=5)
@given(case=cases(((3, 5), (5, 18), (3, 3)), heads=((1, 4, 2), (1, 6, 3), (2, 6, 2)), causal=EITHER))
def test_heads_share_keys_in_groups(subject, case):
    """Head h of q uses head h // (heads / kv_heads) of k and v: neighbours share.

    Catches h mod kv_heads, and one head of keys for all."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=4)
@given(case=sloped(cases(((3, 5), (5, 17), (17, 5)), heads=GROUPED[:2], causal=EITHER)))
def test_shared_keys_sum_their_gradients(subject, case):
    """The gradient of a head of keys is the sum over all heads of queries that share it.

    Catches heads that overwrite one another, and the gradient of the first or the last one alone."""
    case, upstream = case
    check_gradients(subject, case, upstream)


LONGER = (2, 3, 7, 5, 17, 100)
WINDOWS = st.sampled_from((1, 2, 3, 7, 2, 5, 16, 17, 100))


@examples(quick=3, full=8)
@given(
    case=cases(
        ((5, 5), (18, 18), (3, 17), (5, 20), (17, 34), (20, 17)),
        heads=HEADS[:2],
        causal=CAUSAL,
        window=WINDOWS,
    )
)
def test_the_window_keeps_the_last_keys(subject, case):
    """Of the keys that causal leaves, a query sees the last so many, its own included; a window longer than
    the sequence hides nothing.

    Catches a window that is off by one, aligned to the first key, or heard only by the mask of one block."""
    Truth(case).agrees(attend(subject, case))


@examples(quick=2, full=6)
@given(
    case=sloped(
        cases(
            ((5, 5), (18, 18), (3, 20), (20, 17)),
            heads=HEADS[:2],
            causal=CAUSAL,
            window=st.sampled_from(LONGER),
        )
    )
)
def test_gradients_keep_to_the_window(subject, case):
    """The gradients follow the window, over blocks that it leaves, enters, and lies within.

    Catches a backward pass without the window, and bounds of rows turned round."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=1, full=5)
@given(
    case=sloped(
        cases(
            ((20, 17), (36, 34), (34, 36)), heads=HEADS[:1], causal=CAUSAL, window=st.sampled_from((2, 3, 5))
        )
    )
)
def test_a_short_window_passes_over_several_blocks(subject, case):
    """A window shorter than a block leaves whole blocks behind on either side, also where there are more queries
    than keys, and the gradients know it.

    Catches bounds of blocks that are right only while the window reaches from one end to the other."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=0, full=1)
@given(seed=SEEDS)
def test_blocks_begin_and_end_where_they_should(subject, seed):
    """Wherever the diagonal and the window cross the blocks, the first and the last key and query of each block
    count, forward and backward.

    Catches the bounds of a loop that are off by one, which show only where a bound is the first of its block, and
    whole blocks that are taken for seen by all."""
    block = 16 if device() == "cpu" else 128  # and so of every smaller block
    whole = [(2 * block + 2, n, None) for n in (2 * block, 2 * block + 1, 2 * block + 3, 2 * block + 4)]
    edge = [(2 * block + 2, 2 * block + 2, n) for n in (1, 2, block - 1, block, block + 1, block + 2)]
    ahead = [(block + 4, 3 * block + 4, 5), (2 * block + 2, 2 * block, block + 1)]
    for queries, keys, window in whole + edge + ahead:
        noise = torch.randn(2 * (queries + keys), 16, generator=torch.Generator().manual_seed(seed))
        q, above, k, v = noise[None, None].to(device()).split([queries, queries, keys, keys], dim=2)
        check_gradients(subject, Case(q, k, v, causal=True, window=window), above)


@examples(quick=0, full=1)
@given(seed=SEEDS, window=st.sampled_from((5, 20)))
def test_values_far_before_the_window_are_never_read(subject, seed, window):
    """A NaN among the values, 256 or more keys before the window of a query, does not reach it: the blocks
    before the window are skipped.

    Catches a loop that starts at the first key, whatever the window."""
    case = noise_case(seed, 290, 290, causal=True, window=window)
    truth = Truth(case)
    case.v[:, :, :2] = torch.nan
    got = call(subject, case.q, case.k, case.v, case)
    assert_tensor(got, shape=case.q.shape, dtype=case.q.dtype)
    truth.agrees(got[:, :, 279:], rows=slice(279, None))


@examples(quick=2, full=6)
@given(
    case=sloped(cases(((5, 18), (18, 18), (18, 17)), GROUPED, causal=CAUSAL, window=st.sampled_from(LONGER),
                      scale=st.sampled_from((-0.5, 0.5)), layouts=UNIT, mixed=True))
)  # fmt: skip
def test_all_arguments_together_equal_the_definition(subject, case):
    """Groups, window and scale at once, forward and backward, however the inputs lie in memory.

    Catches an argument that is heard only where another one is absent."""
    case, upstream = case
    check_gradients(subject, case, upstream)


@examples(quick=2, full=4)
@given(case=cases(((3, 5),), layouts=LAYOUTS[:1]), window=st.sampled_from((0, -1, -5)))
def test_groups_and_windows_that_do_not_fit_are_refused(subject, case, window):
    """ValueError if heads is no multiple of kv_heads, and for a window below 1 or without causal.

    Catches division that rounds, and a window that hides everything."""
    q, k, v = case.q[:, :1], case.k[:, :1], case.v[:, :1]
    three, two = (x.expand(-1, n, -1, -1) for x, n in ((q, 3), (k, 2)))
    refuses(ValueError, lambda: subject.triton_flash(three, two, two), because="3 heads do not share 2")
    refuses(ValueError, lambda: subject.triton_flash(q, two, two), because="1 head cannot share 2")
    refuses(
        ValueError,
        lambda: subject.triton_flash(q, k, v, causal=True, window=window),
        because=f"window is {window}",
    )
    refuses(
        ValueError,
        lambda: subject.triton_flash(q, k, v, window=2),
        because="there is a window, but not causal",
    )


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name. Few and small: the interpreter is slow."""

    def waves(*shape, step=1.7):
        values = torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64))
        return values.reshape(shape).float().to(device())

    many = grown(18, torch.float32)
    q, k, v = waves(1, 1, 3, 16), waves(1, 1, many, 16, step=2.3), waves(1, 1, many, 16, step=0.9)
    few = k[:, :, :3], v[:, :, :3]
    heads = q.expand(-1, 4, -1, -1) * torch.tensor([1.0, -2.0, 0.5, 3.0], device=device())[:, None, None]
    pair = [torch.cat([x, x.flip(3)], dim=1) for x in few]
    ramp = torch.arange(many, device=device()).float()[:, None].expand(1, 1, many, 16)

    def run(*inputs, **options):
        return lambda: subject.triton_flash(*inputs, **options).cpu()

    def slopes(*inputs, **options):
        def call():
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = subject.triton_flash(*leaves, **options)
            return [g.cpu() for g in gradients(out, leaves, waves(*out.shape, step=3.1).to(out.dtype))]

        return call

    def from_heads_last():
        leaves = [x.detach().requires_grad_() for x in (heads[:, :2].contiguous(), *pair)]
        out = subject.triton_flash(*leaves)
        above = placed(waves(*out.shape, step=3.1), "heads last")
        return [g.cpu() for g in torch.autograd.grad(out, leaves, above)]

    def slopes_of_many():
        half = grown(32, torch.float16) // 2
        above = torch.tensor([8000.0, 16000 / half - 8000], device=device()).repeat_interleave(half)
        leaves = [torch.zeros(1, 1, n, 16, device=device()).half().requires_grad_() for n in (2 * half, 1, 1)]
        out = subject.triton_flash(*leaves)
        return [g.cpu() for g in gradients(out, leaves, above[:, None].expand(out.shape).half().contiguous())]

    def two_calls():
        leaves = [x.detach().requires_grad_() for x in (q, *few)]
        out = subject.triton_flash(*leaves, causal=True)
        subject.triton_flash(*(2 * x for x in leaves), scale=2.0)
        return [g.cpu() for g in gradients(out, leaves, waves(*out.shape, step=3.1))]

    def weights_made_again():
        """Their sum, for each query, at scores of a thousand."""
        leaves = [(60 * x).half().requires_grad_() for x in (q, *few)]
        out = subject.triton_flash(*leaves)
        above = torch.eye(16, device=device(), dtype=out.dtype)[:3].expand(out.shape).contiguous()
        return gradients(out, leaves, above)[2].float().sum(2)[..., :3].half().cpu()

    def measured(backward):
        def call():
            case = noise_case(1, 65, 65)
            leaves = leaves_of(case) if backward else [case.q, case.k, case.v]
            kept = 0
            with Work(*leaves) as work:
                out = subject.triton_flash(*leaves)
                if backward:
                    gc.collect()
                    kept = work.alive(out)
                    gradients(out, leaves)
            return [work.largest > 4160, kept > 256, kept > 1200]

        return call

    def far(queries, keys, window, nan):
        """The first row, with a NaN far from what it sees."""

        def call():
            case = noise_case(1, queries, keys)
            case.v[:, :, nan] = torch.nan
            return subject.triton_flash(case.q, case.k, case.v, causal=True, window=window)[:, :, 0].cpu()

        return call

    return {
        "plain": run(q, k, v),
        "more queries": run(k, *few),
        "NaN beside": run(*(placed(x, "beside") for x in (k, *few))),
        "transposed": run(placed(heads[:, :2], "heads last"), pair[0], placed(pair[1], "heads last")),
        "rising": run(q.abs() + 0.1, ramp, v),
        "loud and negative": run(q.abs() * 900, -few[0].abs() * 300, few[1]),
        "scale 0": run(q, *few, scale=0.0),
        "scale −1": run(q * 3, k, v, scale=-1.0),
        "fp16": run(q.half(), k.half(), v.half()),
        "fp16, long": run(
            *(
                x.half()
                for x in (q * 0, torch.zeros_like(k.repeat(1, 1, 5, 1)), v.repeat(1, 1, 5, 1) * 0 + 1000)
            )
        ),
        "fp16, gradients of many": slopes_of_many,
        "fp16, gradients": slopes(q.half(), few[0].half(), few[1].half()),
        "causal": run(k, k.flip(2), v, causal=True),
        "causal, more keys": run(q, k, v, causal=True),
        "causal, more queries": run(k, *few, causal=True),
        "causal, loud": run(
            q.abs() * 300,
            torch.cat([-few[0][:, :, :2].abs() * 300, few[0][:, :, :1] * 0], 2),
            few[1],
            causal=True,
        ),
        "gradients": slopes(q, k, v),
        "gradients, more queries": slopes(k, *few),
        "gradients, wider heads": slopes(*(waves(1, 1, 3, 32, step=n) for n in (1.7, 2.3, 0.9))),
        "gradients, widest heads, scale −1/8": slopes(
            *(waves(1, 1, 3, 128, step=n) for n in (1.7, 2.3, 0.9)), scale=-0.125
        ),
        "gradients, heads last above": from_heads_last,
        "gradients, causal, more keys": slopes(q, k, v, causal=True),
        "gradients, scale −1": slopes(q, *few, scale=-1.0),
        "gradients, after another call": two_calls,
        "gradients, causal": slopes(k, k.flip(2), v, causal=True),
        "gradients, causal, more queries": slopes(k, *few, causal=True),
        "gradients, causal, two more queries": slopes(
            *(waves(1, 1, grown(n, torch.float32), 16, step=x) for n, x in ((34, 1.7), (32, 2.3), (32, 0.9))),
            causal=True,
        ),
        "fp16, weights made again": weights_made_again,
        "groups": run(heads, *pair),
        "groups, gradients": slopes(heads, *pair),
        "window 2": run(k, k.flip(2), v, causal=True, window=2),
        "window 2, gradients": slopes(k, k.flip(2), v, causal=True, window=2),
        "window 2, gradients, several blocks": slopes(
            *(waves(1, 1, grown(n, torch.float32), 16, step=x) for n, x in ((34, 1.7), (36, 2.3), (36, 0.9))),
            causal=True,
            window=2,
        ),
        "window 0": run(q, *few, causal=True, window=0),
        "head_dim 8": run(*[waves(1, 1, 3, 8)] * 3),
        "far in the future": far(70, 70, None, -1),
        "far before the window": far(2, 160, 2, 0),
        "made": measured(False),
        "made by backward": measured(True),
    }
