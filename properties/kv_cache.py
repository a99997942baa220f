"""The laws of a KV cache: it reads as what was appended; attention over it, in whatever pieces the tokens
come, is attention over the whole sequence; and what cannot be done is not half done."""

import gc
import itertools
import math
import types
from dataclasses import dataclass, replace
from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dojo.close import (
    HALF_TYPES,
    assert_close,
    assert_equal,
    assert_tensor,
    assert_true,
    refuses,
    tolerance,
    untouched,
)
from dojo.draw import LAYOUTS, examples, fill, laid_out

WIDE = (torch.float32, torch.float64)
EVERY = (torch.float64, torch.float32, *HALF_TYPES)
# batch, key-value heads, query heads to each, head_dim
SIZES = ((1, 1, 1, 1), (1, 1, 1, 2), (2, 1, 1, 3), (1, 2, 1, 3), (1, 1, 2, 3), (3, 2, 1, 4), (2, 3, 1, 1))
SHARED = ((1, 2, 3, 1), (1, 3, 2, 4), (2, 2, 3, 4), (3, 2, 4, 1), (1, 1, 3, 2))
PIECES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
SEVERAL = st.lists(st.integers(1, 5), min_size=2, max_size=4)
WINDOWS = st.integers(1, 6)
PLACES = st.integers(0, 9)


# --- what is drawn -------------------------------------------------------------------------------


@dataclass
class Sequence:
    """The queries, keys and values of a sequence, and the pieces in which its tokens come.

    The cache has room for ``max_len``; ``window`` asks for a WindowKVCache."""

    q: Tensor
    k: Tensor
    v: Tensor
    pieces: list[int]
    max_len: int | None = None
    window: int | None = None
    scale: float | None = None

    @property
    def length(self):
        return sum(self.pieces)

    @property
    def spare(self):
        """How much of the room is left in the end."""
        return 0 if self.max_len is None else self.max_len - self.length


def sequences(
    sizes=SIZES + SHARED,
    pieces=PIECES,
    *,
    dtypes=EVERY,
    loudness=(1.0, 0.25),
    layouts=tuple(LAYOUTS.elements),
    windows=None,
    scales=(None,),
):
    """Sizes, smallest first, since that is where shrinking ends; then how the tensors are made."""
    sizes = sorted(sizes, key=lambda s: (math.prod(s), s))
    makes = list(product(layouts, loudness, dtypes, scales))
    return drawn(st.sampled_from(sizes), pieces, st.sampled_from(makes), windows)


@st.composite
def drawn(draw, sizes, pieces, makes, windows):
    (B, K, group, D), cut = draw(sizes), draw(pieces)
    layout, loud, dtype, scale = draw(makes)
    T = sum(cut)
    shapes = (B, K * group, T, D), (B, K, T, D), (B, K, T, D)
    parts = fill(draw, (sum(map(math.prod, shapes)),), dtype=torch.float64).split([*map(math.prod, shapes)])
    q, k, v = (
        laid_out((gain * part).reshape(shape).to(dtype), layout)
        for gain, part, shape in zip((loud, loud, 1), parts, shapes, strict=True)
    )
    if windows is None:
        return Sequence(q, k, v, cut, T + T % 3, None, scale)
    return Sequence(q, k, v, cut, None, draw(windows), scale)


def made(subject, case, *, tokens=None, **options):
    """An empty cache that has room for the case."""
    B, K, T, D = case.k.shape
    options = {"dtype": case.k.dtype} | options
    if case.window is not None:
        return subject.WindowKVCache(B, K, case.window, D, **options)
    return subject.KVCache(B, K, (T if tokens is None else tokens) + case.spare, D, **options)


def parts(case):
    """q, k and v piece by piece, and where the piece ends."""
    splits = (x.split(case.pieces, dim=2) for x in (case.q, case.k, case.v))
    return zip(*splits, itertools.accumulate(case.pieces), strict=True)


def attend(subject, cache, q, k, v, scale=None):
    """The call itself. Whatever is claimed of its result, its inputs must be left as they were."""
    inputs = {"q": q, "k": k, "v": v}
    before = {name: x.clone() for name, x in inputs.items()}
    options = {} if scale is None else {"scale": scale}
    got = subject.attend_with_cache(q, k, v, cache, **options)
    untouched(before, inputs)
    return got


def append(cache, k, v):
    inputs = {"k": k, "v": v}
    before = {name: x.clone() for name, x in inputs.items()}
    cache.append(k, v)
    untouched(before, inputs)


def filled(subject, case, **options):
    """A cache into which the case was appended piece by piece."""
    cache = made(subject, case, **options)
    for _, k, v, _ in parts(case):
        append(cache, k, v)
    return cache


def reads(cache, k, v, length, at=""):
    """The cache must hold ``length`` tokens, and give back k and v bit for bit."""
    assert_equal(cache.length, length, f"the length{at}")
    got = cache.view()
    assert_true(isinstance(got, (tuple, list)) and len(got) == 2, "view is not a pair", got=got)
    for name, found, want in zip(("keys", "values"), got, (k, v), strict=True):
        assert_equal(found, want, f"the {name} held{at}")


def holds(cache, case, end, start=0, at=""):
    """The cache must read as the tokens of the case before ``end``, or the last of them."""
    if case.window is not None:
        start = max(start, end - case.window)
    reads(cache, case.k[:, :, start:end], case.v[:, :, start:end], end, at)


def bytes_held(thing):
    """The bytes of the floating-point tensors that can be reached from an object, each memory once."""
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in numbers(thing)}.values()
    )


def on_the_cpu(thing):
    """Does an object hold numbers on the CPU?"""
    return any(x.device.type == "cpu" for x in numbers(thing))


def numbers(thing):
    """The floating-point tensors that can be reached from an object."""
    found, seen, left = [], set(), [thing]
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            if part.is_floating_point():
                found.append(part)
        else:
            left += gc.get_referents(part)
    return found


class Made(TorchFunctionMode):
    """Counts the elements of the tensors that torch makes, views aside, by device."""

    def __init__(self):
        super().__init__()
        self.elements = {"cpu": 0, "meta": 0}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        flat = itertools.chain.from_iterable(a if isinstance(a, (list, tuple)) else [a] for a in args)
        known = {a.untyped_storage()._cdata for a in flat if isinstance(a, Tensor)}
        for part in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(part, Tensor) and part.untyped_storage()._cdata not in known:
                self.elements[part.device.type] += part.numel()
        return out


# --- what is due ---------------------------------------------------------------------------------


class Truth:
    """Attention of the whole sequence at once in float64, with what bounds its rounding errors.

    Of long sequences, the rows from ``first`` on will do."""

    def __init__(self, case, first=0):
        self.dtype = case.q.dtype
        q, k, v = (x.double() for x in (case.q[:, :, first:], case.k, case.v))
        server = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
        k, v = k[:, server], v[:, server]
        T, D = k.shape[2:]
        scale = D**-0.5 if case.scale is None else case.scale
        age = torch.arange(first, T)[:, None] - torch.arange(T)
        seen = (age >= 0) & (age < (T if case.window is None else case.window))
        w = (scale * q @ k.mT).where(seen, -torch.inf).softmax(-1)
        self.out = w @ v
        self.length, self.steps = D + T, 4
        # If every exponent is off by at most η, a weight is off by at most (e^{2η} − 1)·min(w, 1 − w); and a
        # normaliser kept as its logarithm is rounded once more at the size of the scores.
        unit = float(tolerance(self.dtype, length=self.length, steps=self.steps))
        loud = (abs(scale) * q.abs() @ k.abs().mT).where(seen, 0).amax(-1, keepdim=True)
        growth = (2 * unit * loud).clamp(max=50).expm1() / unit
        rounded = 1 + 4 * torch.finfo(self.dtype).eps / unit * loud
        self.magnitude = rounded * (w @ v.abs()) + growth * (torch.minimum(w, 1 - w) @ v.abs())

    def agrees(self, got, rows=slice(None), name="the result"):
        """``got`` must be these rows of the truth within what rounding explains."""
        assert_close(
            got, self.out[:, :, rows], dtype=self.dtype, length=self.length,
            magnitude=self.magnitude[:, :, rows], steps=self.steps, name=name,
        )  # fmt: skip


def run(subject, case, cache=None, start=0, truth=None, then=lambda cache, end: None):
    """Attend piece by piece from ``start`` on, and compare every row with the whole pass."""
    cache, truth = cache or made(subject, case), truth or Truth(case)
    for q, k, v, end in parts(case):
        if end <= start:
            continue
        first = end - q.shape[2]
        got = attend(subject, cache, q, k, v, case.scale)
        truth.agrees(got, slice(first, end), name=f"the rows {first} … {end - 1}")
        then(cache, end)
    return cache


# --- part 1: the cache ---------------------------------------------------------------------------


@given(case=sequences())
def test_the_cache_reads_as_what_was_appended(subject, case):
    """After each append view gives all keys and values so far, bit for bit, in the cache's dtype.

    Catches a length that is not moved on, slots off by one, keys read as values, and the empty room read too."""
    cache = made(subject, case)
    assert_equal(cache.max_len, case.length + case.spare, "max_len")
    for number, (_, k, v, end) in enumerate(parts(case), 1):
        append(cache, k, v)
        holds(cache, case, end, at=f" after append {number}")


@given(case=sequences(), n=st.integers(0, 1))
def test_an_empty_cache_holds_nothing(subject, case, n):
    """A new cache has length 0 and gives (batch, n_kv_heads, 0, head_dim); to append no tokens changes nothing.

    Catches zeros that are read as tokens, and a −1 in a reshape that cannot be told."""
    cache = made(subject, case)
    if n:
        append(cache, case.k[:, :, :0], case.v[:, :, :0])
    holds(cache, case, 0)
    append(cache, case.k, case.v)
    append(cache, case.k[:, :, :0], case.v[:, :, :0])
    holds(cache, case, case.length)


def test_the_dtype_is_that_of_torch_unless_given(subject):
    """Without a dtype the cache has torch's default.

    Catches half precision as a default."""
    cache = subject.KVCache(2, 3, 4, 1)
    for part in cache.view():
        assert_tensor(part, shape=(2, 3, 0, 1), dtype=torch.float32)


@given(case=sequences(pieces=SEVERAL))
def test_cache_and_caller_share_no_memory(subject, case):
    """Whatever the caller does to k and v after an append, the cache keeps what it was given.

    Catches a list of the pieces, and a cache that takes over the first piece as its memory."""
    k, v = case.k.contiguous(), case.v.contiguous()
    cache, mine = made(subject, case), [x.clone() for x in (k, v)]
    for end, n in zip(itertools.accumulate(case.pieces), case.pieces, strict=True):
        cache.append(*(x[:, :, end - n : end] for x in mine))
        for x in mine:
            x[:, :, end - n : end] = 77
    reads(cache, k, v, case.length)


@examples(quick=3, full=20)
@given(case=sequences(pieces=SEVERAL))
def test_view_copies_nothing(subject, case):
    """view makes no tensor: what it gives lies in the same memory before and after an append.

    Catches pieces joined when they are read, and a cache that grows by torch.cat."""
    cache, places = made(subject, case), []
    for _, k, v, _ in parts(case):
        append(cache, k, v)
        with Made() as counter:
            got = cache.view()
        assert_equal(counter.elements["cpu"], 0, "the number of elements that view made")
        places.append([part.data_ptr() for part in got])
    for number, place in enumerate(places, 1):
        assert_true(
            place == places[0], f"what view gives lies in other memory after append {number}",
            expected="the same memory as after append 1", got="other memory",
        )  # fmt: skip
    holds(cache, case, case.length)


@examples(quick=2, full=6)
@given(n=st.integers(1, 3), attends=st.booleans())
def test_append_moves_the_new_tokens_only(subject, n, attends):
    """Appending a few tokens to 500 makes tensors of a few tokens' size, and a cache never holds more memory
    than it took at the start.

    Catches a cache that is joined, cloned, rolled or rewritten with every token, and one that keeps the
    pieces besides."""
    cache, x = subject.KVCache(2, 3, 512, 4), torch.ones(2, 3, 500, 4)
    before = bytes_held(cache)
    cache.append(x, -x)
    new = x[:, :, :n].clone()
    with Made() as counter:
        cache.append(new, -new)
    allowed = x.numel() // 8
    assert_true(
        counter.elements["cpu"] <= allowed,
        f"appending {n} tokens to 500 made tensors of {counter.elements['cpu']} elements in all",
        expected=f"at most {allowed}, an eighth of the keys held",
        got=counter.elements["cpu"],
    )
    full = torch.ones(2, 3, 500 + n, 4)
    reads(cache, full, -full, 500 + n)
    if attends:
        last = x[:, :, :1].clone()
        subject.attend_with_cache(last, last, -last, cache)
    assert_equal(bytes_held(cache), before, "the bytes held by a cache of 512 tokens after 500 and more")


@given(case=sequences(), over=st.integers(1, 3), attends=st.booleans())
def test_a_cache_that_is_full_refuses_and_changes_nothing(subject, case, over, attends):
    """There is room for max_len tokens exactly. One more, in append or in attend_with_cache, raises CacheFull,
    and the cache reads and goes on as before.

    Catches a length moved on or a part written before the check, silent cuts, and a bound off by one."""
    cache = made(subject, case)
    *before, (_, k, v, end) = parts(case)
    for _, k_, v_, _ in before:
        append(cache, k_, v_)
    held = end - k.shape[2]
    much = [torch.ones_like(x[:, :, :1]).repeat(1, 1, k.shape[2] + case.spare + over, 1) for x in (case.q, k)]
    refuses(
        subject.CacheFull,
        lambda: subject.attend_with_cache(*much, much[1], cache) if attends else cache.append(*much[1:] * 2),
        because=f"{much[1].shape[2]} tokens came behind {held} and max_len is {cache.max_len}",
    )
    by = "attend_with_cache" if attends else "append"
    holds(cache, case, held, at=f" after {much[1].shape[2]} tokens behind {held} were refused by {by}")
    append(cache, k, v)
    rest = case.k.new_zeros(*k.shape[:2], case.spare, k.shape[3])
    append(cache, rest, rest)
    reads(cache, torch.cat([case.k, rest], 2), torch.cat([case.v, rest], 2), end + case.spare)


@given(case=sequences(), stale=st.sampled_from((math.nan, math.inf, 100.0)))
def test_a_reset_forgets_everything(subject, case, stale):
    """After reset the length is 0, the whole room is free, and nothing that was held has any influence.

    Catches a length that stays, and attention over the whole room, where 0 · NaN is NaN."""
    cache = made(subject, case)
    old = torch.full_like(case.k, stale)
    cache.append(old, old)
    cache.reset()
    holds(cache, case, 0, at=" after reset")
    run(subject, case, cache, then=lambda cache, end: holds(cache, case, end))


@given(case=sequences(pieces=SEVERAL), branch=PLACES)
def test_clones_do_not_see_each_other(subject, case, branch):
    """A clone holds what the cache held, and has the same room; from then on each goes on by itself, also after
    a reset of the other. Here the clone goes on with −k and −v.

    Catches a shallow copy, whose branches write over each other, a length that is shared, and a clone with room
    for what it holds."""
    fork = sum(case.pieces[: branch % len(case.pieces)])
    cache = made(subject, case)
    for _, k, v, end in parts(case):
        if end <= fork:
            append(cache, k, v)
    other = cache.clone()
    assert_true(type(other) is type(cache), "a clone is a cache of the same kind", got=type(other))
    assert_equal(other.max_len, cache.max_len, "max_len of a clone")
    holds(other, case, fork, at=" of a clone")
    k, v = (torch.cat([x[:, :, :fork], -x[:, :, fork:]], 2) for x in (case.k, case.v))
    twin = replace(case, k=k, v=v)
    truths = Truth(case), Truth(twin)
    for (q, k, v, end), (_, k_, v_, _) in zip(parts(case), parts(twin), strict=True):
        if end > fork:
            rows = slice(end - q.shape[2], end)
            first, second = attend(subject, cache, q, k, v), attend(subject, other, q, k_, v_)
            said = f"rows {rows.start} … {end - 1} of the"
            truths[0].agrees(first, rows, name=f"{said} cache, cloned after {fork} tokens,")
            truths[1].agrees(second, rows, name=f"{said} clone, made after {fork} tokens,")
    holds(cache, case, case.length, at=" beside its clone")
    cache.reset()
    holds(other, twin, case.length, at=" of the clone, after the first was reset")
    holds(cache, case, 0, at=" after reset")


@given(case=sequences())
def test_two_caches_share_nothing(subject, case):
    """Two caches, filled in turn, read as if each were alone.

    Catches memory or a length that belongs to the class."""
    one, two = made(subject, case), made(subject, case)
    for _, k, v, end in parts(case):
        append(one, k, v)
        append(two, -k, -v)
        holds(one, case, end, at=" of one cache")
    reads(two, -case.k, -case.v, case.length, " of the other")


@given(case=sequences(SIZES))
def test_prefill_then_decode_in_any_split_equals_one_pass(subject, case):
    """Whatever pieces the tokens come in, all at once, one by one or in chunks, each row is that of causal
    attention over the whole sequence, and the cache holds the tokens so far.

    Catches a chunk whose tokens see each other's future or not the past, queries that count from 0, the
    new tokens left out or taken twice, and attention over slots that are not filled."""
    run(subject, case, then=lambda cache, end: holds(cache, case, end))


@given(case=sequences(dtypes=WIDE), place=PLACES, size=st.sampled_from((1.0, 1e3)))
def test_later_tokens_of_a_chunk_never_matter(subject, case, place, size):
    """Whatever comes later, in the same chunk or in one after it, the row of a token stays as it was.

    Catches a chunk without a mask, one with the triangle at its first key, and fills that scores overrun."""
    last = place % case.length
    late = (torch.arange(case.length) > last)[:, None]
    k, v = (x.where(~late, torch.full_like(x, size)) for x in (case.k, case.v))
    changed, truth = replace(case, k=k, v=v), Truth(case)
    cache, end = made(subject, case), 0
    for q, k, v, end in parts(changed):
        got = attend(subject, cache, q, k, v)
        first = end - q.shape[2]
        if first <= last:
            count = min(last + 1, end) - first
            assert_tensor(got, shape=q.shape, dtype=q.dtype)
            name = f"the result with all keys and values after token {last} set to {size:g}"
            truth.agrees(got[:, :, :count], slice(first, first + count), name=name)
    holds(cache, changed, end)


@given(case=sequences(SHARED))
def test_consecutive_heads_share_keys_and_values(subject, case):
    """Query head h is served by the key-value head ⌊h · n_kv_heads / n_heads⌋: 0 0 0 1 1 1, not 0 1 0 1 0 1.

    Catches heads repeated as a block, and the first head serving all."""
    run(subject, case)


@given(case=sequences(dtypes=WIDE, scales=(1.0, 2.0, 0.0, -0.5, None)))
def test_scale_multiplies_the_scores(subject, case):
    """scale takes the place of 1/√head_dim; 0 averages evenly.

    Catches scale ignored, 0 taken for None, and √head_dim of the wrong size."""
    run(subject, case)


@given(case=sequences(pieces=SEVERAL, dtypes=WIDE, loudness=(100.0,)))
def test_large_scores_do_not_overflow(subject, case):
    """Scores in the ten thousands give finite weights.

    Catches exp without a shift."""
    run(subject, case)


@given(case=sequences(pieces=SEVERAL, dtypes=WIDE))
def test_attention_reads_the_cache_as_it_is(subject, case):
    """Tokens appended without queries are attended to later, as any others.

    Catches keys kept beside the cache by attend_with_cache, and a position counted by its calls."""
    *before, (q, k, v, end) = parts(case)
    cache = made(subject, case)
    for _, k_, v_, _ in before:
        append(cache, k_, v_)
    got = attend(subject, cache, q, k, v)
    first = end - q.shape[2]
    Truth(case).agrees(got, slice(first, end), name=f"the result behind {first} tokens without queries")
    holds(cache, case, end)


@dataclass
class Long:
    """Noise: tokens that come before, and those that come after them with their queries."""

    before: int
    with_queries: int
    seed: int


LONG = st.builds(
    lambda sizes, seed: Long(*sizes, seed),
    st.sampled_from(((40, 3), (64, 1), (0, 130), (63, 66), (200, 2), (1100, 1))),
    st.integers(0, 99),
)


def attends_at_length(subject, long, window=None):
    before, n = long.before, long.with_queries
    noise = torch.randn(4, 1, 1, before + n, 3, generator=torch.Generator().manual_seed(long.seed)).double()
    case = Sequence(noise[:2, 0].transpose(0, 1), noise[2], noise[3], [before, n], window=window)
    cache, (q, k, v) = made(subject, case), (x[:, :, before:] for x in (case.q, case.k, case.v))
    cache.append(case.k[:, :, :before], case.v[:, :, :before])
    got = attend(subject, cache, q, k, v)
    Truth(case, before).agrees(got, name=f"the rows {before} … {before + n - 1}")
    holds(cache, case, case.length)


@examples(quick=1, full=8)
@given(long=LONG)
def test_every_token_of_a_long_sequence_counts(subject, long):
    """Behind hundreds of tokens the result is still that of attention over all of them.

    Catches keys taken in tiles of which the last is cut off, tiles that are put together wrongly, and a
    length that is right for short prompts only."""
    attends_at_length(subject, long)


@examples(quick=0, full=2)
@given(seed=st.integers(0, 999), dtype=st.sampled_from(HALF_TYPES))
def test_long_half_precision_sequences_sum_in_float32(subject, seed, dtype):
    """Over 4,099 tokens in half precision the result is still right to the last stored bits.

    Catches running sums in bf16, which stop growing at 256 terms, and in fp16, which stall at 2,048."""
    long_half_precision(subject.KVCache, subject, seed, dtype)


def long_half_precision(kind, subject, seed, dtype):
    noise = torch.randn(3, 1, 1, 4099, 2, generator=torch.Generator().manual_seed(seed))
    q, k, v = (noise[0] / 4).to(dtype), (noise[1] / 4).to(dtype), (1 + noise[2] / 4).to(dtype)
    cache = kind(1, 1, 4100, 2, dtype=dtype)
    cache.append(k[:, :, :-2], v[:, :, :-2])
    got = attend(subject, cache, q[:, :, -2:], k[:, :, -2:], v[:, :, -2:])
    wide = [x.double() for x in (q[:, :, -2:], k, v)]
    seen = torch.ones(2, 4099, dtype=torch.bool).tril(4097)
    want = (wide[0] @ wide[1].mT / 2**0.5).where(seen, -torch.inf).softmax(-1) @ wide[2]
    assert_close(got, want, dtype=dtype, length=4099, magnitude=2 * want.abs().amax(), steps=2)


@given(case=sequences(dtypes=WIDE), clone=st.booleans())
def test_the_cache_keeps_no_graph(subject, case, clone):
    """Keys and values that require a gradient are stored as numbers: view requires none, and the cache can
    be cloned.

    Catches a graph that grows with every token and keeps all activations alive."""
    k, v = (x.clone().requires_grad_() for x in (case.k, case.v))
    cache = made(subject, case)
    cache.append(k, v)
    cache = cache.clone() if clone else cache
    assert_true(
        not any(x.requires_grad for x in cache.view()),
        "what view gives requires a gradient",
        expected=False,
        got=True,
    )
    holds(cache, case, case.length)
    cache = made(subject, case)
    got = subject.attend_with_cache(case.q, k, v, cache)
    assert_true(
        not any(x.requires_grad for x in cache.view()),
        "what view gives requires a gradient",
        expected=False,
        got=True,
    )
    Truth(case).agrees(got)


def misfits(case):
    """q, k and v that fit neither the cache nor each other, each with what is wrong with it."""
    for because, *given_ in odd_ones(case):
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in zip("qkv", given_, strict=True))
        yield f"{because} ({shapes} came to a cache of k {tuple(case.k.shape)})", *given_


def odd_ones(case):
    q, k, v = case.q, case.k, case.v
    more = [torch.cat([x, x], dim) for dim in range(4) for x in (k,)]
    for dim, name in enumerate(("batch", "heads", "tokens", "head_dim")):
        yield f"v has more {name} than k", q, k, more[dim]
        yield f"k has more {name} than v", q, more[dim], v
        if dim != 2:
            yield f"k and v have more {name} than the cache", torch.cat([q, q], dim), more[dim], more[dim]
        if dim != 2 and k.shape[dim] > 1:
            less = [x.narrow(dim, 0, 1) for x in (q, k, v)]
            yield f"k and v have less {name} than the cache", less[0], less[1], less[2]
    yield "k and v have no batch", q, k[0], v[0]


@examples(quick=3, full=20)
@given(case=sequences())
def test_shapes_that_do_not_fit_are_refused(subject, case):
    """ValueError, and nothing has changed, if k and v differ from each other or from the cache, if q has
    another batch, number of tokens or head_dim, or if n_kv_heads does not divide its heads.

    Catches one head that broadcasts over all, keys written before the queries are looked at, and a chunk
    with fewer queries than keys."""
    cache = made(subject, case, tokens=3 * case.length)
    cache.append(case.k, case.v)
    for because, q, k, v in misfits(case):
        refuses(ValueError, lambda k=k, v=v: cache.append(k, v), because=because)
        refuses(
            ValueError,
            lambda q=q, k=k, v=v: subject.attend_with_cache(q, k, v, cache),
            because=because,
        )
    q, k, v = case.q, case.k, case.v
    wrong = [torch.cat([q, q], dim) for dim in (0, 2, 3)]
    if k.shape[1] > 1:
        wrong += [torch.cat([q, q[:, :1]], 1), q[:, :1]]
    for x in (*wrong, q[0], q[:, :, :0]):
        because = f"q {tuple(x.shape)} does not fit k {tuple(k.shape)}"
        refuses(ValueError, lambda x=x: subject.attend_with_cache(x, k, v, cache), because=because)
        assert_equal(cache.length, case.length, f"the length after a refusal of q {tuple(x.shape)}")
    holds(cache, case, case.length, at=" after the refusals")


def test_sizes_below_one_are_refused(subject):
    """ValueError for a batch, a number of heads, a max_len or a head_dim below 1.

    Catches a cache of nothing that fails far from here."""
    for at, size in product(range(4), (0, -1)):
        sizes = [2, 3, 4, 5]
        sizes[at] = size
        refuses(ValueError, lambda s=sizes: subject.KVCache(*s), because=f"the sizes are {sizes}")


@examples(quick=0, full=1)
@given(tokens=st.integers(100, 200))
def test_a_cache_lies_on_its_device(subject, tokens):
    """The memory of a cache is taken on the device that was asked for: here "meta", which has none.

    Catches a device that is ignored, and a mask or slots on the CPU."""
    with Made() as counter:
        cache = subject.KVCache(2, 3, tokens, 4, device="meta")
    assert_equal(cache.max_len, tokens, "max_len")
    size = 2 * 3 * tokens * 4
    assert_true(
        counter.elements["cpu"] < size,
        f"a cache of {size} keys on another device was made on the CPU",
        expected="no such tensor on the CPU",
        got=counter.elements,
    )
    new = torch.ones(2, 3, 5, 4, device="meta")
    cache.append(new, new)
    assert_equal([x.device.type for x in cache.view()], ["meta", "meta"], "the device of what is held")


# --- part 2: a ring for a sliding window ---------------------------------------------------------


@given(case=sequences(windows=WINDOWS))
def test_the_ring_reads_as_the_last_tokens(subject, case):
    """After each append view gives the last min(length, window) keys and values, oldest first, bit for bit,
    and length counts all tokens.

    Catches the order of the slots, a chunk longer than the window whose first tokens stay, a length that
    stops at the window, and a start that is off by one."""
    cache = made(subject, case)
    assert_equal(cache.window, case.window, "window")
    holds(cache, case, 0)
    for number, (_, k, v, end) in enumerate(parts(case), 1):
        append(cache, k, v)
        append(cache, k[:, :, :0], v[:, :, :0])
        holds(cache, case, end, at=f" after append {number}")


@given(case=sequences(windows=WINDOWS))
def test_windowed_attention_in_any_split_equals_one_pass(subject, case):
    """Whatever pieces the tokens come in, each row is that of attention over the whole sequence in which a
    token sees the last `window` tokens, itself included.

    Catches a chunk whose first queries miss the tokens that its last ones push out, a window one too wide or
    narrow, the triangle laid over slots and not over tokens, and a window ignored within a chunk."""
    run(subject, case, then=lambda cache, end: holds(cache, case, end))


@given(case=sequences(dtypes=WIDE, windows=WINDOWS), place=PLACES, size=st.sampled_from((1.0, 1e3)))
def test_tokens_outside_the_window_never_matter(subject, case, place, size):
    """Whatever stands before the window of a token or after the token, its row stays as it was.

    Catches a window that is laid over the weights after the softmax, and slots that are seen too long."""
    row = place % case.length
    age = row - torch.arange(case.length)
    hidden = ((age < 0) | (age >= case.window))[:, None]
    k, v = (x.where(~hidden, torch.full_like(x, size)) for x in (case.k, case.v))
    changed, truth = replace(case, k=k, v=v), Truth(case)
    cache = made(subject, case)
    for q, k, v, end in parts(changed):
        got, first = attend(subject, cache, q, k, v), end - q.shape[2]
        assert_tensor(got, shape=q.shape, dtype=q.dtype)
        if first <= row < end:
            name = f"row {row}, with all keys and values that it does not see set to {size:g},"
            truth.agrees(got[:, :, row - first : row - first + 1], slice(row, row + 1), name=name)
    holds(cache, changed, case.length)


@given(case=sequences(windows=WINDOWS, scales=(1.0, 0.0, -0.5)))
def test_the_ring_hears_scale_and_groups(subject, case):
    """scale and shared heads mean the same over a ring.

    Catches an argument that is heard where there is no window only."""
    run(subject, case)


@given(case=sequences(), more=st.integers(0, 3))
def test_a_window_as_long_as_the_sequence_hides_nothing(subject, case, more):
    """A window of at least the length of the sequence gives what a plain cache gives.

    Catches a ring that is one slot short, or turns before it is full."""
    ring = made(subject, replace(case, window=case.length + more))
    run(subject, case, ring, then=lambda cache, end: holds(cache, case, end))


@examples(quick=1, full=8)
@given(long=LONG, window=st.integers(60, 300))
def test_every_token_of_a_long_window_counts(subject, long, window):
    """With a window of hundreds of tokens the result is still that of attention over all of them.

    Catches a ring that is right while it fits into a tile only."""
    attends_at_length(subject, long, window)


@examples(quick=0, full=2)
@given(seed=st.integers(0, 999), dtype=st.sampled_from(HALF_TYPES))
def test_long_half_precision_windows_sum_in_float32(subject, seed, dtype):
    """With a window of 4,100 tokens in half precision the result is still right to the last stored bits.

    Catches running sums in half precision where there is a window only."""
    long_half_precision(subject.WindowKVCache, subject, seed, dtype)


@examples(quick=2, full=6)
@given(window=st.integers(3, 9), chunk=st.integers(1, 30), seed=st.integers(0, 99))
def test_memory_is_bounded_by_the_window(subject, window, chunk, seed):
    """After sixty tokens, one by one or in chunks, the ring holds memory for 2 · window tokens at most.

    Catches a cache that keeps everything and masks it, and views of long chunks that keep them alive."""
    ring = subject.WindowKVCache(1, 2, window, 3)
    x = torch.randn(1, 2, 60, 3, generator=torch.Generator().manual_seed(seed))
    for part in x.split(chunk, dim=2):
        subject.attend_with_cache(part, part, -part, ring)
    reads(ring, x[:, :, 60 - window :], -x[:, :, 60 - window :], 60)
    most = 2 * 2 * window * (2 * 3) * 4  # k and v; 2 · window; heads · head_dim; bytes
    held = bytes_held(ring)
    assert_true(
        held <= most, f"the ring holds {held} bytes, {most} are 2 · window tokens", expected=most, got=held
    )


@examples(quick=2, full=6)
@given(n=st.integers(1, 3), start=st.integers(400, 700))
def test_an_append_to_the_ring_moves_the_new_tokens_only(subject, n, start):
    """Appending a few tokens to a ring of 512 makes tensors of a few tokens' size, wherever it stands.

    Catches a ring that is rolled, joined or cloned with every token."""
    ring, x = subject.WindowKVCache(2, 3, 512, 4), torch.ones(2, 3, start, 4)
    ring.append(x, -x)
    with Made() as counter:
        ring.append(2 * x[:, :, :n], -x[:, :, :n])
    allowed = 512 * 24 // 8
    assert_true(
        counter.elements["cpu"] <= allowed,
        f"appending {n} tokens to a ring of 512 made tensors of {counter.elements['cpu']} elements in all",
        expected=f"at most {allowed}, an eighth of its keys",
        got=counter.elements["cpu"],
    )
    x = torch.ones(2, 3, min(512, start + n), 4)
    k = x.clone()
    k[:, :, -n:] = 2
    reads(ring, k, -x, start + n)


@examples(quick=0, full=1)
@given(window=st.integers(100, 200))
def test_a_ring_lies_on_its_device(subject, window):
    """The memory of a ring is taken on the device that was asked for: here "meta", which has none.

    Catches a device that only the plain cache hears of."""
    with Made() as counter:
        ring = subject.WindowKVCache(2, 3, window, 4, device="meta")
    size = 2 * 3 * window * 4
    assert_true(
        counter.elements["cpu"] < size,
        f"a ring of {size} keys on another device was made on the CPU",
        expected="no such tensor on the CPU",
        got=counter.elements,
    )
    assert_equal([x.device.type for x in ring.view()], ["meta", "meta"], "the device of what is held")


@given(case=sequences(pieces=SEVERAL, windows=WINDOWS), stale=st.sampled_from((math.nan, 100.0)))
def test_rings_are_cloned_and_reset(subject, case, stale):
    """A clone of a ring goes on by itself, here with −k and −v; after a reset nothing that was held has any
    influence.

    Catches a shallow copy, an order of the slots that is shared, a place in the ring that stays, and slots that
    are read before they are written."""
    ring = made(subject, case)
    for clone in (ring.clone(), ring):
        assert_true(type(clone) is type(ring), "a clone is a cache of the same kind", got=type(clone))
        assert_equal(clone.window, case.window, "the window of a clone")
    first = case.pieces[0]
    ring.append(case.k[:, :, :first], case.v[:, :, :first])
    branch = ring.clone()
    branch.append(*(-x[:, :, first:] for x in (case.k, case.v)))
    holds(ring, case, first, at=f" after {first} tokens, and more to a clone")
    ring.append(*(x[:, :, first:] for x in (case.k, case.v)))
    signs = torch.where(torch.arange(case.length) < first, 1, -1)[:, None].to(case.k.dtype)
    holds(branch, replace(case, k=case.k * signs, v=case.v * signs), case.length, at=" of a clone")
    ring.reset()
    old = torch.full_like(case.k, stale)
    ring.append(old, old)
    other = ring.clone()
    ring.reset()
    reads(ring, case.k[:, :, :0], case.v[:, :, :0], 0, " after reset")
    run(subject, case, ring, then=lambda cache, end: holds(cache, case, end))
    assert_equal(other.length, case.length, "the length of the clone")
    last = old[:, :, -case.window :]
    for part in other.view():
        assert_tensor(part, shape=last.shape, dtype=last.dtype, name="what the clone holds")
        assert_true(
            torch.equal(part.nan_to_num(5), last.nan_to_num(5)), "the clone lost what it held", got=part
        )
    other.append(case.k, case.v)
    holds(ring, case, case.length, at=" beside its clone")


@given(case=sequences(dtypes=WIDE, windows=WINDOWS))
def test_ring_and_caller_share_no_memory_and_no_graph(subject, case):
    """The ring keeps what it was given, whatever becomes of k and v, as numbers without a graph.

    Catches a chunk that becomes the ring, and a graph that grows with every token."""
    ring, k, v = made(subject, case), *(x.contiguous().clone() for x in (case.k, case.v))
    grad = [x.requires_grad_() for x in (k, v)]
    for end, n in zip(itertools.accumulate(case.pieces), case.pieces, strict=True):
        ring.append(*(x[:, :, end - n : end] for x in grad))
        assert_true(not any(x.requires_grad for x in ring.view()), "what the ring holds requires a gradient")
        with torch.no_grad():
            for x in grad:
                x[:, :, end - n : end] = 77
    holds(ring.clone(), case, case.length)


@examples(quick=3, full=20)
@given(case=sequences(windows=WINDOWS))
def test_the_ring_refuses_what_does_not_fit(subject, case):
    """ValueError, and nothing has changed, for the same reasons as with a plain cache, and for a window below 1.

    Catches a ring that was moved on before the queries were looked at."""
    ring = made(subject, case)
    ring.append(case.k, case.v)
    for because, q, k, v in misfits(case):
        refuses(ValueError, lambda k=k, v=v: ring.append(k, v), because=because)
        refuses(ValueError, lambda q=q, k=k, v=v: subject.attend_with_cache(q, k, v, ring), because=because)
    q, k, v = case.q, case.k, case.v
    heads = [torch.cat([q, q[:, :1]], 1), q[:, :1]] if k.shape[1] > 1 else []
    for x in (*(torch.cat([q, q], dim) for dim in (0, 2, 3)), *heads, q[:, :, :0]):
        because = f"q {tuple(x.shape)} does not fit k {tuple(k.shape)}"
        refuses(ValueError, lambda x=x: subject.attend_with_cache(x, k, v, ring), because=because)
        assert_equal(ring.length, case.length, f"the length after a refusal of q {tuple(x.shape)}")
    for at, size in product(range(4), (0, -1)):
        sizes = [2, 3, 4, 5]
        sizes[at] = size
        refuses(ValueError, lambda s=sizes: subject.WindowKVCache(*s), because=f"the sizes are {sizes}")
    holds(ring, case, case.length, at=" after the refusals")


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""

    def waves(*shape, step=1.7):
        return torch.sin(step * torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)

    q, k, v = waves(2, 6, 7, 4), waves(2, 2, 7, 4, step=2.3), waves(2, 2, 7, 4, step=0.9)

    def plain(room=9, dtype=torch.float64, **options):
        return subject.KVCache(2, 2, room, 4, dtype=dtype, **options)

    def ring(window=3, dtype=torch.float64):
        return subject.WindowKVCache(2, 2, window, 4, dtype=dtype)

    def state(cache):
        return [cache.length, torch.stack(tuple(cache.view()))]

    def split(make, *pieces, gain=1.0, dtype=torch.float64, first=0, **options):
        def call():
            cache, log, end = make(), [], 0
            for n in pieces:
                rows = slice(end, end := end + n)
                new = [(g * x[:, :, rows]).to(dtype) for g, x in ((gain, q), (gain, k), (1, v))]
                if end <= first:
                    cache.append(*new[1:])
                else:
                    log.append(subject.attend_with_cache(*new, cache, **options))
                log.append(state(cache))
            return log

        return call

    def refused(cache, call, *args):
        """Whether a call is refused, and then, whether it left the cache alone."""
        before = state(cache)
        try:
            call(*args)
        except (ValueError, TypeError):  # a TypeError is what a check of the signatures raises
            after = state(cache)
            return before[0] == after[0] and torch.equal(before[1], after[1])
        except Exception:
            return None
        return None

    def misfits(make, *keys, queries=()):
        def call():
            cache = make()
            cache.append(k[:, :, :2], v[:, :, :2])
            log = [refused(cache, cache.append, *each) for each in keys]
            return log + [refused(cache, subject.attend_with_cache, *each, cache) for each in queries]

        return call

    def full():
        cache, log = plain(3), []
        cache.append(k[:, :, :2], v[:, :, :2])
        for call in (cache.append, lambda *new: subject.attend_with_cache(q[:, :, :2], *new, cache)):
            try:
                call(k[:, :, :2], v[:, :, :2])
            except Exception as raised:
                log.append(type(raised).__name__)
            log.append(state(cache))
        return log

    def branches(make):
        def call():
            one = make()
            one.append(k[:, :, :3], v[:, :, :3])
            two = one.clone()
            one.append(k[:, :, 3:5], v[:, :, 3:5])
            two.append(v[:, :, 3:4], k[:, :, 3:4])
            log = [state(one), state(two)]
            one.reset()
            return [*log, state(one), state(two)]

        return call

    def reused(make):
        def call():
            cache = make()
            cache.append(torch.full_like(k, math.nan), torch.full_like(v, math.nan))
            cache.reset()
            log = [state(cache), subject.attend_with_cache(q[:, :, :2], k[:, :, :2], v[:, :, :2], cache)]
            return [*log, state(cache)]

        return call

    def aliased(make):
        def call():
            cache, mine = make(), [x.clone() for x in (k, v)]
            cache.append(*mine)
            mine[0].zero_()
            cache.append(k[:, :, :1], v[:, :, :1])
            return state(cache)

        return call

    def graph(make):
        def call():
            cache = make()
            cache.append(*(x.clone().requires_grad_() for x in (k, v)))
            return [x.requires_grad for x in cache.view()]

        return call

    def counts(make, room):
        def call():
            cache, x = make(1, 2, room, 4), torch.ones(1, 2, 250, 4)
            taken, two_windows = bytes_held(cache), 2 * 2 * room * 32
            cache.append(x, x)
            with Made() as appended:
                cache.append(x[:, :, :1].clone(), x[:, :, 1:2].clone())
            with Made() as viewed:
                cache.view()
            much, held = appended.elements["cpu"] > 600, bytes_held(cache)
            if make is not subject.KVCache:  # its view may copy, and its memory be taken as it is needed
                return [much, held > two_windows]
            return [much, held > taken, held < taken, viewed.elements["cpu"] > 1000]

        return call

    def far(make):
        def call():
            cache, x = make(), waves(2, 2, 70, 4)
            cache.append(x[:, :, :68], -x[:, :, :68])
            return subject.attend_with_cache(x[:, :, 68:], x[:, :, 68:], -x[:, :, 68:], cache)

        return call

    def half(kind):
        def call():
            cache = getattr(subject, kind)(1, 1, 640, 1, dtype=torch.bfloat16)
            x = torch.ones(1, 1, 640, 1).bfloat16()
            x[:, :, :320] = 0
            cache.append(0 * x[:, :, 1:], x[:, :, 1:])
            return subject.attend_with_cache(x[:, :, :1], x[:, :, :1], x[:, :, :1], cache)

        return call

    def sizes(make, at):
        return lambda: make(*(0 if i == at else 2 for i in range(4))).length

    def queries_afterwards():
        mine = q.clone()
        subject.attend_with_cache(mine, k, v, plain())
        return mine

    def none_when_full():
        cache = plain(7)
        cache.append(k, v)
        cache.append(k[:, :, :0], v[:, :, :0])
        return cache.length

    def two():
        one, other = plain(), plain()
        one.append(k, v)
        other.append(v, k)
        return [state(one), state(other)]

    one, new = q[:, :, :1], (k[:, :, :1], v[:, :, :1])
    one_head, one_sequence = (k[:, :1, :1], v[:, :1, :1]), (k[:1, :, :1], v[:1, :, :1])
    keys = (
        (k[..., :1, :3], v[..., :1, :3]), (k[:, :, :1], v[:, :, :2]), (k[:, :, :2], v[:, :, :1]),
        (k[:, :, :1], v[:, :, :1, :3]),
    )  # fmt: skip
    queries = (
        (q[:, :, :2], *new), (q[:, :5, :1], *new), (q[:1, :, :1], *new), (one[..., :3], *new),
    )  # fmt: skip
    return {
        "two caches": two,
        "one pass": split(plain, 7),
        "prefill and decode": split(plain, 4, 1, 1, 1),
        "appended, then asked": split(plain, 3, 1, 3, first=4),
        "scale 0": split(plain, 2, 2, scale=0.0),
        "loud": split(plain, 2, 2, gain=200.0),
        "bf16": split(lambda: plain(dtype=torch.bfloat16), 3, 3, dtype=torch.bfloat16),
        "far": far(lambda: plain(70)),
        "long bf16": half("KVCache"),
        "long bf16 in a ring": half("WindowKVCache"),
        "no dtype": lambda: str(subject.KVCache(1, 1, 1, 1).view()[0].dtype),
        "queries afterwards": queries_afterwards,
        "no tokens when full": none_when_full,
        "fewer heads": misfits(plain, queries=((q[:, :1, :1], *new),)),
        "just full": split(lambda: plain(7), 5, 2),
        "full": full,
        "keys of one head": misfits(plain, one_head),
        "keys of one sequence": misfits(plain, one_sequence),
        "misfits": misfits(plain, *keys, queries=queries),
        "branches": branches(plain),
        "reused": reused(plain),
        "aliased": aliased(plain),
        "graph": graph(plain),
        "counts": counts(subject.KVCache, 300),
        "on no device": lambda: [x.device.type for x in plain(device="meta").view()],
        "no room": sizes(subject.KVCache, 2),
        "ring, chunks": split(ring, 2, 3, 2),
        "ring, a long chunk": split(ring, 1, 5, 1),
        "ring, scale 2": split(ring, 2, 2, 3, first=2, scale=2.0),
        "ring, far": far(lambda: ring(66)),
        # Looked at and not asked for its view, which would import what torch needs to index on "meta".
        "ring, on no device": lambda: on_the_cpu(subject.WindowKVCache(1, 1, 2, 1, device="meta")),
        "ring of 1": split(lambda: ring(1), 2, 1),
        "ring, misfits": misfits(ring, one_head, one_sequence, *keys, queries=queries),
        "ring of nothing": sizes(subject.WindowKVCache, 2),
        "ring, branches": branches(ring),
        "ring, reused": reused(ring),
        "ring, aliased": aliased(ring),
        "ring, graph": graph(ring),
        "ring, counts": counts(subject.WindowKVCache, 100),
    }
