"""The laws of rotary embedding: tables whose angle is position times base^(−2i / head_dim); a rotation
that keeps lengths, does nothing at position 0 and leaves of two positions only their distance; two
layouts that differ in the order of channels alone; and positions that may start anywhere."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo.close import assert_close, assert_equal, assert_tensor, assert_true, gradients, refuses, untouched
from dojo.draw import LAYOUTS, distinct, examples, laid_out

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = st.sampled_from([(dtype, scale) for scale in (1.0, 1e-3, 1e3) for dtype in DTYPES])
"""What x is made of; one draw in place of two."""
BASES = st.sampled_from((100.0, 10000.0, 16.0, 500000.0))
SEEDS, READABLE = st.integers(0, 2**16), 2**10
"""One seed fills all the tensors of a case; those below READABLE give whole numbers and quarter turns."""
STEPS = 1
"""A rotated value is x·cos − y·sin. Without any upcast that rounds the table entry, the product and the
sum, each by half an epsilon: 1.5 ε · Σ|terms| in all, against the 4 ε that one step allows."""


@dataclass
class Sizes:
    length: int
    head_dim: int
    base: float


@dataclass
class Rotation:
    """A tensor with tables for its tokens, and perhaps for more."""

    x: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def clones(self):
        return {name: value.clone() for name, value in self.tensors().items()}

    def tensors(self):
        return {"x": self.x, "cos": self.cos, "sin": self.sin}


@dataclass
class Placed(Rotation):
    """The same with a table row for every token."""

    positions: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def tensors(self):
        return super().tensors() | {"positions": self.positions}


@dataclass
class Pair:
    query: Tensor
    key: Tensor
    base: float


@st.composite
def sizes(draw, shortest=1, longest=8, pairs=4):
    return Sizes(draw(st.integers(shortest, longest)), 2 * draw(st.integers(1, pairs)), draw(BASES))


def values(seed, *shape):
    """1 … 9, over and over, for seed 0, which is what shrinking ends at; small whole numbers, then noise,
    for others."""
    if seed == 0:
        return (torch.arange(math.prod(shape), dtype=torch.float64) % 9 + 1).reshape(shape)
    generator = torch.Generator().manual_seed(seed)
    if seed < READABLE:
        return torch.randint(-4, 5, shape, generator=generator).double()
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def turns(seed, length, pairs):
    """Tables of arbitrary angles, so that none but those given can serve. Quarter turns while a person is
    to follow them: one at row 0 and column 0, and one more with every row and every column."""
    generator = torch.Generator().manual_seed(seed)
    if seed >= READABLE:
        angles = torch.rand(length, pairs, generator=generator, dtype=torch.float64) * 2 * math.pi
        return angles.cos().float(), angles.sin().float()
    quarters = torch.randint(4, (length, pairs), generator=generator)
    if seed == 0:
        quarters = (torch.arange(length).unsqueeze(1) + torch.arange(pairs) + 1) % 4
    return torch.tensor([1.0, 0.0, -1.0, 0.0])[quarters], torch.tensor([0.0, 1.0, 0.0, -1.0])[quarters]


def rows_for(seed, length, shape):
    """A table row for every token: backwards from the last one for seed 0, any otherwise."""
    if seed == 0:
        count = sum(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
        return (length - 1 - count) % length
    rows = torch.randint(length, shape, generator=torch.Generator().manual_seed(seed))
    return rows.to(torch.int32 if seed % 3 == 0 else torch.int64)


def shape_for(draw, seed, shortest=1):
    """batch, heads and time, all different or, at times, all the same."""
    batch, heads, time = distinct(draw, 3, high=4)
    time = max(time, shortest)
    return (time, time, time) if seed % 5 == 4 else (batch, heads, time)


@st.composite
def rotations(draw, interleaved=False, fewest_pairs=1, spares=(0, 1, 2)):
    """Any memory layout, and tables of as many rows as tokens and some to spare."""
    pairs, spare, seed = draw(st.integers(fewest_pairs, 3)), draw(st.sampled_from(spares)), draw(SEEDS)
    (dtype, scale), layout = draw(KINDS), draw(LAYOUTS)
    batch, heads, time = shape_for(draw, seed)
    length, time = max(1, time + spare), max(time, 1 - spare)
    x = laid_out((values(seed, batch, heads, time, 2 * pairs) * scale).to(dtype), layout)
    turned_over = "transposed" if layout == "transposed" else "contiguous"
    return Rotation(x, *(laid_out(table, turned_over) for table in turns(seed, length, pairs)), interleaved)


@st.composite
def placed(draw, per_sequence=None, shortest=1):
    """Any table row for any token; the tables may be shorter than the sequence or longer."""
    pairs, length, seed = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(SEEDS)
    batch, heads, time = shape_for(draw, seed, shortest)
    (dtype, scale), interleaved = draw(KINDS), draw(st.booleans())
    own = draw(st.booleans()) if per_sequence is None else per_sequence
    x = laid_out((values(seed, batch, heads, time, 2 * pairs) * scale).to(dtype), draw(LAYOUTS))
    positions = rows_for(seed, length, (batch, time) if own else (time,))
    return Placed(x, *turns(seed, length, pairs), interleaved, positions)


LARGE = ((1, 12, 3, 192), (9, 1, 150, 2))
"""batch, heads, time and head_dim, each of them large for once; no more than a loop over tokens can pay for."""


@st.composite
def large(draw, interleaved=False):
    """Sizes as models have them, under rows of the tables in any order. The tables are stretched, as some
    ways to longer texts have it: no rotation any more, but they are the ones given."""
    seed, (batch, heads, time, head_dim) = READABLE + draw(SEEDS), draw(st.sampled_from(LARGE))
    tables = [1.25 * table for table in turns(seed, time + 5, head_dim // 2)]
    rows = rows_for(seed, time + 5, (batch, time))
    return Placed(values(seed, batch, heads, time, head_dim).float(), *tables, interleaved, rows)


@st.composite
def vectors(draw):
    """One query and one key, to be put at every position."""
    return Pair(*values(draw(SEEDS), 2, 2 * draw(st.integers(1, 3))), draw(BASES))


def angles_oracle(length, head_dim, base):
    """p · base^(−2i / head_dim) in float64, straight from the definition."""
    positions = torch.arange(length, dtype=torch.float64)
    exponents = -2 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim
    return torch.outer(positions, base**exponents)


def tables_oracle(length, head_dim, base):
    """Float32 tables of the definition, for the claims about what is done with them."""
    angles = angles_oracle(length, head_dim, base)
    return angles.cos().float(), angles.sin().float()


def angle_error(angles, base):
    """What a few float32 roundings may change a cosine by, in epsilons: itself and the angle.

    A power is off by its exponent's rounding times the logarithm of its base: e · ln(base), e < 1."""
    exponents = torch.arange(angles.shape[1], dtype=torch.float64) / angles.shape[1]
    return 1 + angles * (1 + exponents * abs(math.log(base)))


def pairs_of(head_dim, interleaved):
    half = head_dim // 2
    return [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]


def rotated(x, cos, sin, positions=None, *, interleaved=False):
    """x rotated pair by pair in float64, and the size Σ|terms| of what was added up."""
    batch, _, time, head_dim = x.shape
    rows = torch.arange(time) if positions is None else positions.long()
    rows = rows.expand(batch, time)
    x = x.detach().double()
    out, size = torch.empty_like(x), torch.empty_like(x)
    for i, (first, second) in enumerate(pairs_of(head_dim, interleaved)):
        c, s = (table.double()[rows, i].unsqueeze(1) for table in (cos, sin))
        a, b = x[..., first], x[..., second]
        out[..., first], out[..., second] = a * c - b * s, a * s + b * c
        size[..., first], size[..., second] = (a * c).abs() + (b * s).abs(), (a * s).abs() + (b * c).abs()
    return out, size


def agrees(got, case, positions=None, name="the rotated x"):
    want, size = rotated(case.x, case.cos, case.sin, positions, interleaved=case.interleaved)
    assert_close(got, want, dtype=case.x.dtype, magnitude=size, length=2, steps=STEPS, name=name)


def slope_agrees(got, case, upstream, positions=None):
    """The gradient is upstream turned back: the same rotation with the sign of sin changed."""
    want, size = rotated(upstream, case.cos, -case.sin, positions, interleaved=case.interleaved)
    dtype = case.x.dtype
    assert_close(got, want, dtype=dtype, magnitude=size, length=2, steps=2 * STEPS, name="the gradient of x")


def tables_agree(got, case):
    angles = angles_oracle(case.length, case.head_dim, case.base)
    size = angle_error(angles, case.base)
    for name, table, want in zip(("cos", "sin"), got, (angles.cos(), angles.sin()), strict=True):
        assert_close(table, want, dtype=torch.float32, magnitude=size, length=0, steps=1, name=name)


def upstream_of(case):
    """A gradient from above with every entry different, and another in every place of the batch."""
    count = torch.arange(1.0, case.x.numel() + 1, dtype=torch.float64)
    return (count % 17 - 8).reshape(case.x.shape).to(case.x.dtype)


# --- part 1: tables, and the half-split rotation -------------------------------------------------


@examples(quick=8, full=30)
@given(case=sizes())
def test_tables_are_float32_with_a_column_a_pair(subject, case):
    """rope_tables gives two float32 tables of shape (length, head_dim / 2).

    Catches tables as wide as head_dim, left in float64, and complex tables."""
    got = subject.rope_tables(case.length, case.head_dim, base=case.base)
    paired = isinstance(got, (tuple, list)) and len(got) == 2
    assert_true(paired, "rope_tables gives no pair of tables", expected="(cos, sin)", got=got)
    for name, table in zip(("cos", "sin"), got, strict=True):
        assert_tensor(table, shape=(case.length, case.head_dim // 2), dtype=torch.float32, name=name)


def test_a_length_of_zero_gives_empty_tables(subject):
    """rope_tables(0, head_dim) gives two tables without rows, (0, head_dim / 2): only a negative length is wrong.

    Catches a length of 0 that is refused, and tables that lose their columns with their rows."""
    for head_dim in (2, 6):
        for name, table in zip(("cos", "sin"), subject.rope_tables(0, head_dim), strict=True):
            assert_tensor(table, shape=(0, head_dim // 2), dtype=torch.float32, name=name)


@examples(quick=12, full=40)
@given(case=rotations())
def test_rotation_keeps_shape_dtype_and_leaves_its_inputs_alone(subject, case):
    """apply_rope returns a new tensor of x's shape and dtype; x, cos and sin still hold what they held.

    Catches a rotation in place, and half types left in float32 by their float32 tables."""
    before = case.clones()
    got = subject.apply_rope(case.x, case.cos, case.sin)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype, name="the rotated x")
    untouched(before, case.tensors())


@examples(quick=8, full=30)
@given(case=rotations())
def test_a_quarter_turn_sends_the_first_half_to_the_second(subject, case):
    """With cos 0 and sin 1, the halves (a, b) of head_dim become (−b, a).

    Catches the identity, a turn the other way, pairs of neighbours, and a swap without the minus."""
    quarter_turn_is_exact(subject.apply_rope, case)


def quarter_turn_is_exact(apply_rope, case):
    """It only moves values and changes signs, and so it rounds nothing."""
    case.cos, case.sin = torch.zeros_like(case.cos), torch.ones_like(case.sin)
    want, _ = rotated(case.x, case.cos, case.sin, interleaved=case.interleaved)
    assert_equal(apply_rope(case.x, case.cos, case.sin), want.to(case.x.dtype), "the rotated x")


@examples(quick=8, full=40)
@given(case=sizes(), dtype=st.sampled_from(DTYPES))
def test_position_zero_is_not_rotated(subject, case, dtype):
    """At position 0 every angle is 0, so a single token comes back as it was.

    Catches positions counted from 1, cosine and sine exchanged, and reflections."""
    x = torch.arange(1.0, case.head_dim + 1).to(dtype).reshape(1, 1, 1, -1)
    tables = subject.rope_tables(case.length, case.head_dim, base=case.base)
    got = subject.apply_rope(x, *tables)
    assert_close(got, x.double(), dtype=dtype, steps=STEPS, name="the token at position 0")


@examples(quick=8, full=40)
@given(case=sizes(shortest=2))
def test_the_first_pair_turns_one_radian_a_position(subject, case):
    """Column 0 of the tables is cos p and sin p, whatever head_dim and base: base^0 = 1.

    Catches frequencies in reverse order, an exponent that starts at 2, and angles in other units."""
    got = subject.rope_tables(case.length, case.head_dim, base=case.base)
    angle = torch.arange(case.length, dtype=torch.float64)
    for name, table, want in zip(("cos", "sin"), got, (angle.cos(), angle.sin()), strict=True):
        name = f"column 0 of {name}"
        assert_close(
            table[:, 0], want, dtype=torch.float32, magnitude=1 + angle, length=0, steps=1, name=name
        )


@given(case=sizes() | sizes(shortest=100, longest=300, pairs=32))
def test_tables_equal_their_definition(subject, case):
    """Entry [p, i] is the cosine or sine of p · base^(−2i / head_dim).

    Catches i in place of 2i, a positive exponent, exponents spread up to 1, and half precision."""
    tables_agree(subject.rope_tables(case.length, case.head_dim, base=case.base), case)


@examples(quick=6, full=30)
@given(case=sizes(shortest=2), other=st.sampled_from((16.0, 500000.0, 1.0, 0.5)))
def test_the_base_sets_the_frequencies(subject, case, other):
    """Another base gives other tables, call after call, and no base means 10,000. Any positive one will do.

    Catches a base that is ignored, tables kept from an earlier call with another base, and bases up to 1
    that are refused."""
    for base in (case.base, other):
        tables_agree(subject.rope_tables(case.length, case.head_dim, base=base), replace(case, base=base))
    tables_agree(subject.rope_tables(case.length, case.head_dim), replace(case, base=10000.0))


@examples(quick=2, full=6)
@given(case=sizes(shortest=2))
def test_every_call_makes_tables_of_its_own(subject, case):
    """What is written into the tables of one call does not show in those of the next.

    Catches tables that are kept and handed out again, as by a cache around rope_tables."""
    for table in subject.rope_tables(case.length, case.head_dim, base=case.base):
        table.zero_()
    tables_agree(subject.rope_tables(case.length, case.head_dim, base=case.base), case)


@given(case=rotations())
def test_the_length_of_every_pair_is_kept(subject, case):
    """A rotation changes no lengths: a² + b² of every pair is what it was.

    Catches a second coordinate computed from the already rotated first, and pairs rotated in part."""
    got = subject.apply_rope(case.x, case.cos, case.sin)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype, name="the rotated x")
    before, after = (t.double().unflatten(-1, (2, -1)).norm(dim=-2) for t in (case.x, got))
    # The tables are float32, so cos² + sin² is 1 to float32 only. A coordinate is off by its rounding,
    # relative to |a·cos| + |b·sin| ≤ √2 · length; the length, by both of them.
    dtype = torch.float32 if case.x.dtype == torch.float64 else case.x.dtype
    size, name = 2 * before, "the length of the pairs"
    assert_close(after.to(dtype), before, dtype=dtype, magnitude=size, length=2, steps=STEPS, name=name)


@given(case=rotations())
def test_half_split_equals_its_definition(subject, case):
    """Value by value, channels i and i + head_dim / 2 turn by the angle of their row and column.

    Catches tables repeated in the wrong order, angles shared by all tokens or taken by head, tables
    worked out anew instead of the ones given, and float64 cut down to float32."""
    agrees(subject.apply_rope(case.x, case.cos, case.sin), case)


@examples(quick=1, full=14)
@given(case=large())
def test_large_sizes_equal_the_definition(subject, case):
    """A dozen heads, 150 tokens, 192 channels: all of them turn, the last ones, too, by the tables as given,
    which may stretch x as well.

    Catches a rotation that ends after the first 64 channels, tokens or heads, and tables brought to length 1."""
    agrees(subject.apply_rope(case.x, case.cos, case.sin), case)


@examples(quick=6, full=30)
@given(case=vectors(), time=st.integers(2, 7))
def test_scores_depend_only_on_the_distance(subject, case, time):
    """One query and one key put at all positions: their score at (m, n) is that at (m − n, 0).

    Catches tables and a rotation that do not fit together, such as two angles for one pair."""
    tables = subject.rope_tables(time, len(case.query), base=case.base)

    def everywhere(vector):
        x = vector.expand(1, 1, time, -1)
        got = subject.apply_rope(x, *tables)
        assert_tensor(got, shape=x.shape, dtype=torch.float64, name="the rotated x")
        return got[0, 0]

    got = everywhere(case.query) @ everywhere(case.key).T
    m, n = torch.arange(time).unsqueeze(1), torch.arange(time)
    want = got[(m - n).clamp(min=0), (n - m).clamp(min=0)]
    size = score_error(case, time)
    assert_close(got.float(), want, dtype=torch.float32, magnitude=size, steps=2, name="the score")


def score_error(case, time):
    """Σ|q||k| over pairs, times what the tables' rounding changes four of their entries by."""
    q, k = (v.unflatten(-1, (2, -1)).norm(dim=0) for v in (case.query, case.key))
    return float((q * k).sum()) * 4 * (1 + time * (1 + math.log(case.base)))


@given(case=rotations())
def test_gradient_is_the_rotation_back(subject, case):
    """The gradient of Σ g · rope(x) is g rotated by the opposite angle.

    Catches results cut off from the graph, and a gradient that is cut in one of its two terms."""
    x, upstream = case.x.clone().requires_grad_(), upstream_of(case)
    (got,) = gradients(subject.apply_rope(x, case.cos, case.sin), [x], upstream)
    slope_agrees(got, case, upstream)


@examples(quick=1, full=5)
@given(case=sizes(shortest=20_000, longest=100_000, pairs=2))
def test_tables_hold_far_out(subject, case):
    """At positions up to 100,000 the angles are still right to float32 rounding.

    Catches positions, frequencies or angles in half precision, and angles added up step by step."""
    tables_agree(subject.rope_tables(case.length, case.head_dim, base=case.base), case)


@examples(quick=4, full=20)
@given(case=sizes())
def test_bad_table_arguments_are_refused(subject, case):
    """A head_dim that is not positive and even, a negative length or a base that is not positive raise
    ValueError.

    Catches an odd head_dim whose last channel is forgotten, and NaN or infinite frequencies."""
    for bad in (
        {"head_dim": case.head_dim - 1},
        {"head_dim": 0},
        {"head_dim": -case.head_dim},
        {"length": -case.length},
        {"base": 0.0},
        {"base": -case.base},
    ):
        asked = replace(case, **bad)
        call = partial(subject.rope_tables, asked.length, asked.head_dim, base=asked.base)
        refuses(ValueError, call, because=f"there are no tables for {asked}")


@examples(quick=4, full=20)
@given(case=rotations(fewest_pairs=2))
def test_tables_that_do_not_fit_are_refused(subject, case):
    """Tables without head_dim / 2 columns, or cos and sin of different shapes, raise ValueError.

    Catches tables that broadcast by accident, and an odd head_dim cut in unequal halves."""
    refuses_misfits(subject, case)


def refuses_misfits(subject, case):
    x, cos, sin = case.x, case.cos, case.sin
    for wrong in (
        (x, cos[:, :1], sin[:, :1]),
        (x, cos, sin[:, :1]),
        (x, cos[:, :1], sin),
        (x, torch.cat([cos, cos]), sin[:1]),
        (x, torch.cat([cos, cos[:, :1]], dim=1), torch.cat([sin, sin[:, :1]], dim=1)),
        (x, torch.cat([cos, cos], dim=1), torch.cat([sin, sin], dim=1)),
        (x[..., :-1], cos, sin),
        (x[..., :3], cos[:, :1], sin[:, :1]),
    ):
        case.x, case.cos, case.sin = wrong  # so that what was called stands on the card
        shapes = "x {}, cos {} and sin {}".format(*(tuple(t.shape) for t in wrong))
        call = partial(subject.apply_rope, *wrong, interleaved=case.interleaved)
        refuses(ValueError, call, because=f"{shapes} do not fit")


@examples(quick=8, full=30)
@given(case=rotations(spares=(-1, -2, -3)))
def test_more_tokens_than_rows_are_refused(subject, case):
    """Without positions, a sequence longer than the tables raises ValueError.

    Catches a table of one row that broadcasts to all tokens, positions that wrap, and a cut sequence."""
    call = partial(subject.apply_rope, case.x, case.cos, case.sin)
    refuses(ValueError, call, because=f"{case.x.shape[2]} tokens need more than {len(case.cos)} rows")


# --- part 2: the interleaved layout --------------------------------------------------------------


@examples(quick=8, full=30)
@given(case=rotations(interleaved=True))
def test_interleaved_turns_neighbours(subject, case):
    """With cos 0, sin 1 and interleaved=True, the channels (a, b, c, d …) become (−b, a, −d, c …).

    Catches an interleaved that is ignored, and one that hands the channels back in halves."""
    quarter_turn_is_exact(partial(subject.apply_rope, interleaved=True), case)


@given(case=rotations(interleaved=True))
def test_interleaved_equals_its_definition(subject, case):
    """Value by value, channels 2i and 2i + 1 turn by the angle of row p and column i, and the inputs
    are left alone.

    Catches tables laid out for halves, and what holds for one layout but not for the other."""
    before = case.clones()
    agrees(subject.apply_rope(case.x, case.cos, case.sin, interleaved=True), case)
    untouched(before, case.tensors())


@examples(quick=1, full=14)
@given(case=large(interleaved=True))
def test_interleaved_large_sizes_equal_the_definition(subject, case):
    """With interleaved=True, too, all heads, tokens and channels turn where there are many.

    Catches a rotation that ends after the first 64 of them."""
    agrees(subject.apply_rope(case.x, case.cos, case.sin, interleaved=True), case)


@examples(quick=6, full=30)
@given(case=rotations())
def test_layouts_are_one_rotation_with_channels_reordered(subject, case):
    """Putting the halves of x beside each other, rotating interleaved and putting them back is the
    half-split rotation, which is also what no interleaved and interleaved=False mean.

    Catches a flag that is turned round, and layouts that turn different ways."""
    beside = case.x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    agrees(subject.apply_rope(case.x, case.cos, case.sin), case, name="x rotated by default")
    got = subject.apply_rope(case.x, case.cos, case.sin, interleaved=False)
    agrees(got, case, name="x rotated with interleaved=False")
    got = subject.apply_rope(beside, case.cos, case.sin, interleaved=True)
    assert_tensor(got, shape=case.x.shape, dtype=case.x.dtype, name="x rotated with interleaved=True")
    back = got.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    agrees(back, case, name="x reordered, rotated with interleaved=True and put back")


@given(case=rotations(interleaved=True))
def test_interleaved_gradient_is_the_rotation_back(subject, case):
    """With interleaved=True, too, the gradient is the one from above rotated by the opposite angle.

    Catches results written into a buffer that the graph does not see."""
    x, upstream = case.x.clone().requires_grad_(), upstream_of(case)
    (got,) = gradients(subject.apply_rope(x, case.cos, case.sin, interleaved=True), [x], upstream)
    slope_agrees(got, case, upstream)


@examples(quick=4, full=20)
@given(case=rotations(interleaved=True, fewest_pairs=2))
def test_interleaved_refuses_tables_that_do_not_fit(subject, case):
    """With interleaved=True, too, tables of the wrong width raise ValueError.

    Catches checks made for one layout only."""
    refuses_misfits(subject, case)


# --- part 3: positions ---------------------------------------------------------------------------


@given(case=placed(per_sequence=False))
def test_positions_pick_rows_of_the_tables(subject, case):
    """positions (time,) are the rows to turn by, in any order, for every sequence; nothing is modified.

    Catches positions that are ignored, taken for an offset, shifted by one, sorted, or checked by the
    number of tokens."""
    before = case.clones()
    got = subject.apply_rope(case.x, case.cos, case.sin, case.positions, interleaved=case.interleaved)
    agrees(got, case, case.positions)
    untouched(before, case.tensors())


@given(case=placed(per_sequence=True))
def test_each_sequence_has_its_own_positions(subject, case):
    """positions (batch, time) hold a row for every token of every sequence, shared by its heads.

    Catches the first sequence's positions used for all, and angles that go to heads for sequences."""
    before = case.clones()
    got = subject.apply_rope(
        case.x, case.cos, case.sin, positions=case.positions, interleaved=case.interleaved
    )
    agrees(got, case, case.positions)
    untouched(before, case.tensors())


@examples(quick=1, full=14)
@given(case=large())
def test_positions_of_large_sizes_pick_their_rows(subject, case):
    """Many tokens, heads or sequences turn each by the row that its position names.

    Catches positions that are heard up to a length only."""
    agrees(subject.apply_rope(case.x, case.cos, case.sin, case.positions), case, case.positions)


@examples(quick=2, full=12)
@given(
    start=st.sampled_from((255, 2047, 257, 1021, 4097, 40_000)),
    own=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
)
def test_large_positions_are_exact(subject, start, own, dtype):
    """Positions in the thousands pick the rows that they name, whatever the dtype of x.

    Catches positions that pass through the dtype of x, where bfloat16 counts no further than 256 and float16
    than 2048, or through int16, which ends at 32,767."""
    positions = torch.tensor([start, start + 2, start + 1])
    angles = torch.outer(torch.arange(start + 4.0), torch.tensor([1.0, 0.5]))
    x = torch.ones(2, 1, 3, 4, dtype=dtype)
    case = Placed(
        x,
        angles.cos(),
        angles.sin(),
        False,
        torch.stack([positions, positions.flip(0)]) if own else positions,
    )
    got = subject.apply_rope(case.x, case.cos, case.sin, case.positions)
    agrees(got, case, case.positions)


@given(case=rotations(), cut=st.integers(1, 3), interleaved=st.booleans())
def test_chunks_at_their_offsets_equal_one_pass(subject, case, cut, interleaved):
    """A prompt and then token after token at their positions give what the whole sequence gives.

    Catches decoding steps that start again at 0, and steps that are one behind or ahead."""
    case.interleaved, time = interleaved, case.x.shape[2]
    starts = [0, *range(min(cut, time), time)]
    chunks = []
    for start, end in pairwise([*starts, time]):
        x, positions = case.x[:, :, start:end], torch.arange(start, end)
        chunks.append(subject.apply_rope(x, case.cos, case.sin, positions, interleaved=interleaved))
        assert_tensor(chunks[-1], shape=x.shape, dtype=x.dtype, name=f"the chunk from {start}")
    agrees(torch.cat(chunks, dim=2), case, name="the chunks put together")


@examples(quick=6, full=30)
@given(case=vectors(), m=st.integers(0, 5), n=st.integers(0, 5), shift=st.integers(1, 50), own=st.booleans())
def test_moving_both_positions_keeps_the_score(subject, case, m, n, shift, own):
    """A query at m + shift and a key at n + shift have the score that they have at m and n.

    Catches positions that queries and keys count differently, and offsets that only one of them gets."""
    tables = subject.rope_tables(60, len(case.query), base=case.base)

    def at(position, vector):
        positions = torch.tensor([[position]] if own else [position])
        got = subject.apply_rope(vector.reshape(1, 1, 1, -1), *tables, positions)
        assert_tensor(got, shape=(1, 1, 1, len(vector)), dtype=torch.float64, name="the rotated x")
        return got.flatten()

    want = at(m, case.query) @ at(n, case.key)
    got = at(m + shift, case.query) @ at(n + shift, case.key)
    size = score_error(case, 60)
    assert_close(got.float(), want, dtype=torch.float32, magnitude=size, steps=2, name="the score")


@given(case=placed())
def test_gradient_with_positions_is_the_rotation_back(subject, case):
    """Under positions, too, the gradient is the one from above rotated by the opposite angle.

    Catches a graph that is cut where positions are given."""
    x, upstream = case.x.clone().requires_grad_(), upstream_of(case)
    turned = subject.apply_rope(x, case.cos, case.sin, case.positions, interleaved=case.interleaved)
    (got,) = gradients(turned, [x], upstream)
    slope_agrees(got, case, upstream, case.positions)


@examples(quick=6, full=30)
@given(case=placed(), where=st.integers(0, 99))
def test_positions_outside_the_tables_are_refused(subject, case, where):
    """A single position below 0 or past the last row raises ValueError.

    Catches negative positions that wrap around, and large ones that are clamped or wrap."""
    length, good = len(case.cos), case.positions
    for bad in (length, -1, length + 1, -2, -length, -length - 1, 2 * length):
        case.positions = good.clone()
        case.positions.view(-1)[where % good.numel()] = bad
        refuses_positions(subject, case, f"position {bad} is no row of tables of length {length}")


def refuses_positions(subject, case, because):
    call = partial(subject.apply_rope, case.x, case.cos, case.sin, interleaved=case.interleaved)
    refuses(ValueError, lambda: call(case.positions), because=because)


@examples(quick=6, full=30)
@given(case=placed(shortest=2))
def test_positions_of_another_shape_are_refused(subject, case):
    """positions that are neither (time,) nor (batch, time) raise ValueError.

    Catches one position that broadcasts to many tokens, and positions that enlarge the result."""
    batch, _, time, _ = case.x.shape
    fits = ((time,), (batch, time))
    for shape in (
        (1,), (time + 1,), (batch, 1), (batch + 1, time), (batch, time + 1), (batch, 1, time), (),
        (1, time), (time, batch), (time, 1), (batch * time,),
    ):  # fmt: skip
        if shape in fits:
            continue
        case.positions = torch.zeros(shape, dtype=torch.int64)
        refuses_positions(subject, case, f"positions {shape} do not fit x {tuple(case.x.shape)}")


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    x = ((torch.arange(96.0, dtype=torch.float64) * 7 % 19 - 9) / 4).reshape(2, 2, 4, 6)
    cos, sin = tables_oracle(6, 6, 100.0)
    turn = torch.arange(18.0).reshape(6, 3) ** 2 / 5
    other = (turn.cos(), turn.sin())
    upstream = ((torch.arange(96.0, dtype=torch.float64) * 5 % 23 - 11) / 8).reshape(x.shape)
    shuffled, ragged = torch.tensor([4, 2, 5, 2]), torch.tensor([[2, 3, 4, 5], [5, 0, 3, 1]])

    def rope(*positions, x=x, tables=(cos, sin), **layout):
        return subject.apply_rope(x, *tables, *positions, **layout)

    def slope(*positions, **layout):
        leaf = x.clone().requires_grad_()
        return gradients(rope(*positions, x=leaf, **layout), [leaf], upstream)[0]

    def afterwards(**layout):
        mine = x.clone()
        rope(x=mine, **layout)
        return mine

    def again():
        for table in subject.rope_tables(3, 4, base=64.0):
            table.zero_()
        return subject.rope_tables(3, 4, base=64.0)

    def positions_afterwards():
        mine = shuffled.clone()
        rope(mine)
        return mine

    def twice():
        return [rope(rows) for rows in (shuffled, shuffled.flip(0))]

    strided = torch.stack([x, x], dim=-1)[..., 0]

    def far(head_dim, rows):
        return [table[rows] for table in subject.rope_tables(3001, head_dim)]

    return {
        "tables": lambda: subject.rope_tables(4, 8, base=100.0),
        "tables of another base": lambda: subject.rope_tables(4, 8, base=16.0),
        "tables without a base": lambda: subject.rope_tables(4, 8),
        "tables of one pair": lambda: subject.rope_tables(4, 2),
        "tables far out": lambda: far(4, slice(2990, 3001)),
        "tables, odd head_dim": lambda: subject.rope_tables(4, 5),
        "tables, head_dim 0": lambda: subject.rope_tables(4, 0),
        "tables, negative length": lambda: subject.rope_tables(-1, 4),
        "tables, length 0": lambda: subject.rope_tables(0, 4),
        "tables, base 0.5": lambda: subject.rope_tables(4, 4, base=0.5),
        "tables, base 0": lambda: subject.rope_tables(4, 4, base=0.0),
        "tables asked for again": again,
        "half-split": lambda: rope(),
        "half-split, x in strides": lambda: rope(x=strided),
        "half-split, as many rows as tokens": lambda: rope(tables=(cos[:4], sin[:4])),
        "interleaved, x in strides": lambda: rope(x=strided, interleaved=True),
        "positions, int32": lambda: rope(shuffled.int()),
        "positions, each its own, as many sequences as tokens": lambda: rope(ragged[:, :2], x=x[:, :, :2]),
        "positions afterwards": positions_afterwards,
        "positions of two calls": twice,
        "half-split, other tables": lambda: rope(tables=other),
        "half-split, stretched tables": lambda: rope(tables=[1.25 * t for t in other]),
        "half-split, bf16": lambda: rope(x=x.bfloat16()),
        "half-split, float32": lambda: rope(x=x.float()),
        "half-split, one token": lambda: rope(x=x[:, :, :1]),
        "half-split, one token, turned": lambda: rope(x=x[:, :, :1], tables=[t[1:] for t in other]),
        "half-split, wide": lambda: rope(
            x=x.reshape(1, 1, 1, 96), tables=[t[1:2].repeat(1, 16) for t in other]
        ),
        "half-split, gradient": lambda: slope(),
        "half-split, its input afterwards": lambda: afterwards(),
        "half-split, tables of one column": lambda: rope(tables=(cos[:, :1], sin[:, :1])),
        "half-split, sin of one column": lambda: rope(tables=(cos, sin[:, :1])),
        "half-split, sin of one row": lambda: rope(tables=(cos, sin[:1])),
        "half-split, too few rows": lambda: rope(tables=(cos[:2], sin[:2])),
        "half-split, one row": lambda: rope(tables=(cos[1:2], sin[1:2])),
        "interleaved": lambda: rope(interleaved=True),
        "interleaved, bf16": lambda: rope(x=x.bfloat16(), interleaved=True),
        "interleaved, gradient": lambda: slope(interleaved=True),
        "interleaved, its input afterwards": lambda: afterwards(interleaved=True),
        "interleaved, tables of one column": lambda: rope(tables=(cos[:, :1], sin[:, :1]), interleaved=True),
        "positions": lambda: rope(shuffled),
        "positions, interleaved": lambda: rope(shuffled, interleaved=True),
        "positions of one token": lambda: rope(torch.tensor([3]), x=x[:, :, :1]),
        "positions from an offset": lambda: rope(torch.arange(2, 6)),
        "positions, each its own": lambda: rope(ragged),
        "positions, each its own, interleaved": lambda: rope(ragged, interleaved=True),
        "positions, short tables": lambda: rope(shuffled % 2, tables=(cos[:2], sin[:2])),
        "positions, gradient": lambda: slope(shuffled),
        "positions, negative": lambda: rope(torch.tensor([0, 1, 2, -1])),
        "positions, past the end": lambda: rope(torch.tensor([0, 1, 2, 7])),
        "positions, one for many": lambda: rope(torch.tensor([3])),
        "positions, one row for all": lambda: rope(shuffled[None]),
        "positions, huge": lambda: rope(
            torch.tensor([39_999, 0, 33_000, 7]), tables=[t[:1].repeat(40_000, 1).cumsum(0) for t in other]
        ),
        "positions, large": lambda: rope(
            torch.tensor([257, 259, 258, 260]),
            x=x.bfloat16(),
            tables=tuple(
                f(torch.outer(torch.arange(264.0), torch.tensor([1.0, 0.5, 0.2])))
                for f in (torch.cos, torch.sin)
            ),
        ),
    }
