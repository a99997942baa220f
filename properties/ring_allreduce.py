"""The laws of a ring: each rank ends up with the sum, the same to the last bit; what travels goes one way round, no
rank sends more than its share, nobody waits for one who waits, and a buffer is left alone while it is under way."""

import math
from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dojo import ranks
from dojo.close import Mismatch, assert_close, assert_equal, assert_tensor, assert_true, refuses, untouched
from dojo.draw import LAYOUTS, distinct, examples, fill

few = examples(quick=3, full=16)
"""An example costs some milliseconds here: several processes have to take turns."""

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WHOLE = (torch.int64, torch.int32, torch.uint8)
MOST = ranks.most()
WORLDS = tuple(n for n in (2, 3, 2, 3, 2, 2, 4) if n <= MOST) or (1,)
LARGER = tuple(n for n in (3, 4, 3) if n <= MOST) or WORLDS
SUBGROUPS = tuple(g for g in ((1, 2), (0, 2), (1, 3), (1, 2, 3), (1,), (0, 1)) if g[-1] < MOST) or ((0,),)


@dataclass
class Ranks:
    """How many ranks there are, which of them form the group (None: all, by default), and their tensors."""

    world: int
    group: tuple[int, ...] | None
    xs: list[Tensor]
    pieces: int = 1


@dataclass
class Chunks:
    """The chunks of a flat tensor, one a rank."""

    world: int
    group: tuple[int, ...] | None
    chunks: list[Tensor]
    numel: int


@st.composite
def rings(draw, worlds=WORLDS, sizes=st.integers(1, 13), dtypes=FLOATS[:1], pieces=(1,)):
    """Flat tensors on the ranks of a whole world."""
    world, n, dtype = draw(st.sampled_from(worlds)), draw(sizes), draw(st.sampled_from(dtypes))
    return Ranks(
        world, None, [fill(draw, (n,), dtype=dtype) for _ in range(world)], draw(st.sampled_from(pieces))
    )


@st.composite
def shaped(draw, pieces=(1,), worlds=WORLDS):
    """Tensors of up to three dimensions, in any memory layout."""
    world, shape = draw(st.sampled_from(worlds)), distinct(draw, draw(st.integers(0, 3)), high=4)
    xs = [fill(draw, shape, layout=draw(LAYOUTS)) for _ in range(world)]
    return Ranks(world, None, xs, draw(st.sampled_from(pieces)))


@st.composite
def strided(draw):
    """Tensors of two or three dimensions, none of them contiguous."""
    world = draw(st.sampled_from((2, 3, 1) if MOST > 2 else WORLDS))
    shape = distinct(draw, draw(st.integers(2, 3)), low=2, high=4)
    layouts = ("transposed", *(draw(st.sampled_from(("transposed", "strided"))) for _ in range(world - 1)))
    return Ranks(world, None, [fill(draw, shape, layout=layout) for layout in layouts])


@st.composite
def subgroups(draw, pieces=(1,)):
    """Some ranks of a world are a group; the others take no part."""
    group, n = draw(st.sampled_from(SUBGROUPS)), draw(st.integers(1, 9))
    world = draw(st.integers(group[-1] + 1, MOST))
    return Ranks(world, group, [fill(draw, (n,)) for _ in group], draw(st.sampled_from(pieces)))


@st.composite
def even(draw, pieces=(2, 3, 4)):
    """Sizes that ranks and pieces divide."""
    world, count = draw(st.sampled_from(WORLDS)), draw(st.sampled_from(pieces))
    n = world * count * draw(st.integers(1, 3))
    return Ranks(world, None, [fill(draw, (n,)) for _ in range(world)], count)


@st.composite
def uneven(draw):
    """Sizes that pieces do not divide, and ranks not always."""
    world = draw(st.sampled_from(WORLDS))
    share, count = draw(st.sampled_from(((4, 3), (5, 2), (5, 4), (7, 3), (9, 4))))
    n = world * share - draw(st.integers(0, 1)) * (world > 1)
    return Ranks(world, None, [fill(draw, (n,)) for _ in range(world)], count)


@st.composite
def lopsided(draw):
    """Pieces divide all chunks but the first: only the ends of a message together know how long it is."""
    world, count = draw(st.sampled_from(LARGER)), draw(st.sampled_from((2, 3, 4)))
    n = world * count * draw(st.integers(1, 2)) + 1
    return Ranks(world, None, [fill(draw, (n,)) for _ in range(world)], count)


@st.composite
def cut(draw, sizes=st.integers(0, 13), dtypes=FLOATS + WHOLE):
    """A flat tensor, cut into a chunk for each rank of a world or of a group."""
    group = draw(st.sampled_from((None, None, *SUBGROUPS)))
    world = draw(st.sampled_from(WORLDS)) if group is None else draw(st.integers(group[-1] + 1, MOST))
    n = draw(sizes)
    whole = fill(draw, (n,), dtype=draw(st.sampled_from(dtypes)), scale=3.0)
    return Chunks(world, group, list(whole.tensor_split(world if group is None else len(group))), n)


def total(xs):
    """The sum in float64, or modulo the range of an integer dtype; and the sum of the magnitudes."""
    if not xs[0].is_floating_point():
        return torch.stack([x.contiguous() for x in xs]).sum(0, dtype=xs[0].dtype), None
    wide = torch.stack([x.double() for x in xs])
    return wide.sum(0), wide.abs().nan_to_num(0, 0, 0).sum(0)  # no room around what is not finite


def assert_sum(got, want, size, xs, name):
    if size is None:
        assert_equal(got, want, name)
    else:
        assert_close(got, want, dtype=xs[0].dtype, steps=len(xs), magnitude=size, name=name)


def members(case):
    return tuple(range(case.world)) if case.group is None else case.group


def scattered(subject, case):
    """Run reduce_scatter on all ranks, see to it that each got its chunk, and return their answers."""
    calls = [(x,) for x in case.xs]
    answers = ranks.run(subject, "reduce_scatter", calls, world=case.world, group=case.group)
    want, size = total(case.xs)
    wants = want.flatten().tensor_split(len(calls))
    sizes = [None] * len(calls) if size is None else size.flatten().tensor_split(len(calls))
    for answer, chunk, magnitude in zip(answers, wants, sizes, strict=True):
        assert_sum(answer.value, chunk, magnitude, case.xs, f"the chunk of rank {answer.rank}")
    return answers


def gathered(subject, case):
    """The same for all_gather."""
    calls = [(chunk, case.numel) for chunk in case.chunks]
    answers = ranks.run(subject, "all_gather", calls, world=case.world, group=case.group)
    for answer in answers:
        assert_equal(answer.value, torch.cat(case.chunks), f"what rank {answer.rank} has gathered")
    return answers


def reduced(subject, case):
    """The same for ring_allreduce. One piece is the default, and left out."""
    options = {} if case.pieces == 1 else {"pieces": case.pieces}
    calls = [(x,) for x in case.xs]
    answers = ranks.run(subject, "ring_allreduce", calls, world=case.world, group=case.group, **options)
    want, size = total(case.xs)
    for answer in answers:
        assert_sum(answer.value, want, size, case.xs, f"the sum on rank {answer.rank}")
    return answers


def answered(run, subject, case):
    """A wait without end is what the claim is about, and so no end of the trial."""
    try:
        return run(subject, case)
    except ranks.Stuck as stuck:
        raise Mismatch(f"the ranks wait for each other: {stuck}") from stuck


def one_way(answers, case):
    """Everybody sends to one neighbour and receives from the other."""
    ring = members(case)
    for at, answer in enumerate(answers):
        left, right = ring[at - 1], ring[(at + 1) % len(ring)]
        way = {m.peer for m in answer.sent}, {m.peer for m in answer.received}
        legal = (
            ({right}, {left}),
            ({left}, {right}),
            (set(), {left}),
            (set(), {right}),
            ({left}, set()),
            ({right}, set()),
        )
        assert_true(
            way in legal or way == (set(), set()),
            f"rank {answer.rank} does not send to one neighbour and receive from the other",
            expected=f"sends to {right} and receives from {left}, or the reverse",
            got=f"sends to {sorted(way[0])} and receives from {sorted(way[1])}",
        )


def within(answers, share, rounds, itemsize):
    """Nobody sends more than ``rounds`` times N − 1 chunks, counted in bytes."""
    most = rounds * (len(answers) - 1) * share * itemsize
    for answer in answers:
        sent = sum(m.bytes for m in answer.sent)
        assert_true(
            sent <= most, f"rank {answer.rank} sends more than its share",
            expected=f"at most {rounds}·(N − 1)·ceil(n/N) elements: {most} bytes", got=f"{sent} bytes",
        )  # fmt: skip


def orderly(answers):
    """Every request is waited for, and no buffer is written to before."""
    for answer in answers:
        for message in answer.messages:
            kind = f"{'isend to' if message.sent else 'irecv from'} rank {message.peer}"
            assert_true(message.waited, f"rank {answer.rank} does not wait for its {kind}")
            assert_true(
                not message.disturbed,
                f"rank {answer.rank} writes to the buffer of its {kind} before it has waited",
            )


def ceil(a, b):
    return -(-a // b)


# --- part 1: reduce-scatter ----------------------------------------------------------------------


@few
@given(case=rings())
def test_no_rank_waits_for_one_that_waits(subject, case):
    """Reduce-scatter comes to an end: no ring of ranks forms in which each waits for the next.

    Catches a blocking send before the receive on every rank, which only buffers could save, and messages that
    one side has posted and the other has not."""
    answered(scattered, subject, case)


@few
@given(case=rings(sizes=st.integers(1, 24), dtypes=FLOATS[:2]))
def test_each_rank_gets_its_chunk_of_the_sum(subject, case):
    """Rank i gets chunk i of the sum over all ranks.

    Catches chunks that end up one rank further, partial sums after too few steps, terms added twice after too
    many, the mean for the sum, and a buffer that is read before its message has arrived."""
    scattered(subject, case)


@examples(quick=3, full=24)
@given(case=rings(worlds=LARGER, sizes=st.sampled_from((4, 5, 7, 2, 10, 4, 5, 7, 1, 0))))
def test_any_size_is_cut_as_tensor_split_does(subject, case):
    """The first n mod N chunks have one element more, and where n is less than N the last ones are empty.

    Catches a remainder that is dropped, one that is left to the last chunk, and chunks of ceil(n/N)."""
    scattered(subject, case)


@examples(quick=3, full=48)
@given(case=shaped())
def test_x_may_have_any_shape_and_strides(subject, case):
    """The chunks are cut from x in its logical order, whatever its shape, () included, and memory layout.

    Catches messages cut from memory that is not contiguous, and a first dimension taken for all of x."""
    scattered(subject, case)


@few
@given(case=shaped())
def test_reduce_scatter_leaves_x_alone(subject, case):
    """x still holds what it held, and the chunk lies in memory of its own.

    Catches partial sums that are added up in x itself, and a chunk that is a view of x."""
    for x, answer in zip(case.xs, scattered(subject, case), strict=True):
        untouched({"x": x}, {"x": answer.args[0]})
        assert_true(not answer.shares, f"the chunk of rank {answer.rank} lies in the memory of x")


@few
@given(case=rings(dtypes=FLOATS[1:] + WHOLE))
def test_sums_are_taken_in_the_dtype_of_x(subject, case):
    """Doubles keep their digits, integers are exact and wrap around, half types stay what they are.

    Catches float32 buffers whatever the dtype, and results that are left in the wider one."""
    if not case.xs[0].is_floating_point():
        case.xs = [(x.long() * 16_777_259 + 1).to(x.dtype) for x in case.xs]
    scattered(subject, case)


@examples(quick=2, full=16)
@given(case=rings(sizes=st.integers(2, 9), dtypes=FLOATS), bad=st.sampled_from((math.inf, math.nan)))
def test_what_is_not_finite_is_in_its_chunk(subject, case, bad):
    """An infinity or a NaN on one rank is in its chunk of the sum, in its place and no other.

    Catches NaN and infinities that are made finite, and zeros that multiply."""
    case.xs[-1][1], case.xs[0][0] = bad, -bad
    answered(scattered, subject, case)


@few
@given(case=rings(worlds=LARGER, sizes=st.integers(4, 12)))
def test_reduce_scatter_goes_one_way_round(subject, case):
    """Every rank sends to one neighbour only and receives from the other only.

    Catches sends to everyone, a root that collects, and a ring that turns round."""
    one_way(scattered(subject, case), case)


@few
@given(case=rings(sizes=st.integers(0, 16), dtypes=FLOATS + WHOLE))
def test_reduce_scatter_sends_no_more_than_its_share(subject, case):
    """A rank sends at most (N − 1)·ceil(n/N) elements, each in x's dtype.

    Catches whole tensors passed round, half types that travel as float32, sizes sent beforehand, and one step
    too many."""
    answers = scattered(subject, case)
    within(answers, ceil(case.xs[0].numel(), len(answers)), 1, case.xs[0].itemsize)


@few
@given(case=subgroups())
def test_the_ranks_of_a_group_form_a_ring_of_their_own(subject, case):
    """In a group whose ranks are not 0 … N − 1, place and number are the group's, and peers the world's.

    Catches the rank in the group used as a peer, and the number of ranks of the whole world."""
    one_way(answered(scattered, subject, case), case)


@few
@given(case=rings(sizes=st.integers(2, 12)))
def test_requests_are_waited_for_and_their_buffers_left_alone(subject, case):
    """Every isend and irecv is waited for, and nobody writes to its buffer before that.

    Catches sends that are posted and forgotten, and one buffer for a message that comes and one that goes."""
    orderly(scattered(subject, case))


@few
@given(case=rings(worlds=(1,)))
def test_a_rank_alone_sends_nothing(subject, case):
    """With one rank the chunk is a copy of x, and there is no message.

    Catches messages to oneself, and x handed back as it came."""
    (answer,) = scattered(subject, case)
    assert_equal(len(answer.messages), 0, "the number of messages of a rank alone")
    assert_true(not answer.shares, "the chunk lies in the memory of x")


# --- part 2: all-gather and all-reduce -----------------------------------------------------------


@few
@given(case=cut())
def test_every_rank_gathers_every_chunk(subject, case):
    """all_gather gives every rank the concatenation of all chunks, bit by bit, of any size and dtype.

    Catches chunks in the order of their arrival, a missing own chunk, and ranks taken for those of the world."""
    answered(gathered, subject, case)


@few
@given(case=cut(sizes=st.integers(1, 13)))
def test_all_gather_leaves_its_chunk_alone(subject, case):
    """The chunk still holds what it held, the result lies in memory of its own, and requests are waited for.

    Catches chunks that later ones are received into."""
    answers = gathered(subject, case)
    for chunk, answer in zip(case.chunks, answers, strict=True):
        untouched({"chunk": chunk}, {"chunk": answer.args[0]})
        assert_true(not answer.shares, f"the result of rank {answer.rank} lies in the memory of its chunk")
    orderly(answers)


@few
@given(case=cut(sizes=st.integers(0, 16)))
def test_all_gather_passes_each_chunk_once_round(subject, case):
    """A rank sends at most (N − 1)·ceil(n/N) elements, to one neighbour, and receives from the other.

    Catches a chunk sent to everyone, and everything known so far sent on at each step."""
    answers = gathered(subject, case)
    one_way(answers, case)
    within(answers, ceil(case.numel, len(answers)), 1, case.chunks[0].itemsize)


@few
@given(case=cut(sizes=st.integers(1, 9), dtypes=FLOATS[:1]), extra=st.sampled_from((1, -1, 2)))
def test_a_chunk_of_the_wrong_size_is_refused(subject, case, extra):
    """A chunk that has more or fewer elements than tensor_split gives this rank is a ValueError; the right one is not.

    Also where it is of the size that another rank's has. Every rank brings a wrong one, so that none need wait for
    one that has raised. Catches chunks that are cut off or padded in silence, and floor or ceil of n/N for anyone."""
    gathered(subject, case)
    right = [len(c) for c in case.chunks]
    brought = [[size + (extra if size + extra >= 0 else 1) for size in right]]
    if right[0] != right[-1]:
        brought.append([right[0] + right[-1] - size for size in right])
    for sizes in brought:
        calls = [(torch.ones(size), case.numel) for size in sizes]
        refuses(
            ValueError, lambda calls=calls: ranks.run(subject, "all_gather", calls, world=case.world, group=case.group),
            because=f"of {case.numel} elements the ranks hold {right}, and they bring {sizes}",
        )  # fmt: skip


@few
@given(case=rings(sizes=st.integers(0, 16), dtypes=FLOATS + WHOLE))
def test_every_rank_gets_the_sum(subject, case):
    """ring_allreduce gives every rank the sum over all ranks, of any size and dtype.

    Catches partial sums that are gathered, the mean, and a remainder that is left out."""
    answered(reduced, subject, case)


@examples(quick=3, full=20)
@given(case=shaped(worlds=(2, 1, 3) if MOST > 2 else (MOST, 1)))
def test_all_reduce_returns_a_new_tensor_of_the_shape_of_x(subject, case):
    """The sum has the shape and dtype of x, () included, lies in memory of its own, and x is left alone.

    Catches flat results, a sum that is built up in x, and x handed back by a rank alone."""
    for x, answer in zip(case.xs, reduced(subject, case), strict=True):
        assert_tensor(answer.value, shape=x.shape, dtype=x.dtype)
        untouched({"x": x}, {"x": answer.args[0]})
        assert_true(not answer.shares, f"the sum on rank {answer.rank} lies in the memory of x")


@examples(quick=2, full=16)
@given(case=strided())
def test_all_reduce_takes_any_strides(subject, case):
    """ring_allreduce sums x in its logical order, also where x is transposed or every second element of memory.

    Catches elements taken in the order in which they lie in memory."""
    answered(reduced, subject, case)


@few
@given(case=rings(worlds=LARGER, sizes=st.integers(3, 16), dtypes=FLOATS))
def test_all_ranks_hold_the_same_bits(subject, case):
    """The results of the ranks are equal bit by bit, also where rounding depends on the order of the terms.

    Catches ranks that each add up what passes them, in an order of their own."""
    first, *others = reduced(subject, case)
    for other in others:
        assert_true(
            torch.equal(first.value.view(torch.uint8), other.value.view(torch.uint8)),
            f"ranks {first.rank} and {other.rank} hold different sums", expected=first.value, got=other.value,
        )  # fmt: skip


@few
@given(case=rings(worlds=LARGER + WORLDS, sizes=st.integers(0, 16), dtypes=FLOATS + WHOLE))
def test_all_reduce_sends_two_shares_one_way_round(subject, case):
    """A rank sends at most 2(N − 1)·ceil(n/N) elements in all, to one neighbour, and receives from the other.

    Catches gathering on one rank and broadcasting from there, whole tensors passed round, and float32 on the way."""
    answers = reduced(subject, case)
    one_way(answers, case)
    within(answers, ceil(case.xs[0].numel(), len(answers)), 2, case.xs[0].itemsize)


@few
@given(case=subgroups())
def test_all_reduce_stays_within_its_group(subject, case):
    """The ranks of a group get the sum over the group; the others take no part.

    Catches group handed on to one round and not to the other."""
    one_way(answered(reduced, subject, case), case)


@few
@given(case=rings(sizes=st.integers(2, 12)))
def test_all_reduce_leaves_buffers_alone_while_they_travel(subject, case):
    """Every request is waited for, and nobody writes to its buffer before that.

    Catches a chunk that the second round overwrites while the first is still sending it."""
    orderly(reduced(subject, case))


@few
@given(case=rings(worlds=LARGER + WORLDS, sizes=st.integers(8, 16)))
def test_a_chunk_travels_whole_unless_told_otherwise(subject, case):
    """Without pieces a rank sends at most 2(N − 1) messages that hold something, and the sum is right.

    Catches another default than one piece, and chunks that are cut although nobody asked."""
    for answer in reduced(subject, case):
        sent = sum(m.numel > 0 for m in answer.sent)
        most = 2 * (case.world - 1)
        assert_true(
            sent <= most, f"rank {answer.rank} sends {sent} messages", expected=f"at most {most}", got=sent
        )


@few
@given(
    case=rings(sizes=st.integers(2, 9), dtypes=FLOATS),
    bad=st.sampled_from((math.inf, math.nan)),
)
def test_what_is_not_finite_reaches_every_rank(subject, case, bad):
    """An infinity or a NaN on one rank is in the sum on all of them, in its place and no other.

    That is how a loss that has overflowed is noticed. Catches NaN taken for 0, and zeros that multiply."""
    case.xs[-1][1], case.xs[0][0] = bad, -bad
    answered(reduced, subject, case)


@few
@given(case=rings(sizes=st.integers(1, 6), dtypes=(torch.int64,)))
def test_large_integers_are_exact(subject, case):
    """Sums of 64-bit integers beyond 2^53 come out to the last digit.

    Catches integers that travel, or are added, as floating point numbers."""
    case.xs = [x * 9_007_199_254_740_993 + 1 for x in case.xs]
    reduced(subject, case)


@examples(quick=0, full=2)
@given(case=rings(sizes=st.integers(100_000, 200_000)))
def test_large_tensors_are_summed_as_well(subject, case):
    """The sum is right for tensors that no buffer of the system holds.

    Catches an order of messages that only works while they are small."""
    answered(reduced, subject, case)


# --- part 3: pieces ------------------------------------------------------------------------------


@examples(quick=3, full=24)
@given(case=rings(sizes=st.integers(0, 24), dtypes=FLOATS + WHOLE, pieces=(2, 3, 4, 7)) | lopsided())
def test_pieces_do_not_change_the_sum(subject, case):
    """With any number of pieces, also more than a chunk has elements, every rank gets the sum, in the same bits.

    Catches pieces of a length that some chunks do not have or that the two ends of a message see differently, and a
    piece that is passed on before it is added."""
    first, *others = answered(reduced, subject, case)
    for other in others:
        assert_equal(
            other.value, first.value, f"the sum on rank {other.rank}, beside that on rank {first.rank},"
        )


@examples(quick=0, full=2)
@given(case=rings(sizes=st.integers(100_000, 200_000), pieces=(3, 2)))
def test_large_tensors_travel_in_pieces_as_well(subject, case):
    """The sum is right where a piece is larger than any buffer of the system.

    Catches pieces that are all sent, one after the other, before the first is received."""
    answered(reduced, subject, case)


@few
@given(case=even())
def test_no_message_is_larger_than_a_piece(subject, case):
    """No message has more than ceil(ceil(n/N)/pieces) elements, and the traffic is that of one piece.

    Catches pieces that are ignored, also in one of the two rounds, and traffic that grows with them."""
    answers = reduced(subject, case)
    share = ceil(case.xs[0].numel(), len(answers))
    most = ceil(share, case.pieces)
    for answer in answers:
        largest = max((m.numel for m in answer.messages), default=0)
        assert_true(
            largest <= most, f"a message of rank {answer.rank} is larger than a piece",
            expected=f"at most {most} elements", got=f"{largest} elements",
        )  # fmt: skip
    within(answers, share, 2, case.xs[0].itemsize)
    one_way(answers, case)


@examples(quick=2, full=16)
@given(case=uneven())
def test_a_chunk_travels_in_no_more_messages_than_pieces(subject, case):
    """A rank sends at most 2(N − 1)·pieces messages that hold something, also where pieces does not divide a chunk.

    Catches pieces whose length is rounded down, so that a rest is left for one message more."""
    answers, most = reduced(subject, case), 2 * (case.world - 1) * case.pieces
    cap = ceil(ceil(case.xs[0].numel(), case.world), case.pieces)
    for answer in answers:
        sent = sum(m.numel > 0 for m in answer.sent)
        assert_true(
            sent <= most, f"rank {answer.rank} sends {sent} messages with pieces={case.pieces}",
            expected=f"at most 2·(N − 1)·pieces = {most}", got=sent,
        )  # fmt: skip
        largest = max((m.numel for m in answer.messages), default=0)
        assert_true(
            largest <= cap, f"a message of rank {answer.rank} is larger than a piece",
            expected=f"at most {cap} elements", got=f"{largest} elements",
        )  # fmt: skip


@few
@given(case=even())
def test_the_next_receive_is_posted_before_a_piece_is_waited_for(subject, case):
    """While a rank waits for a piece, the receive of the next piece of that chunk is already posted.

    Hence at most one wait for each chunk that comes in, 2(N − 1) in all, has no other receive open. Catches pieces
    that travel one after the other."""
    for answer in reduced(subject, case):
        lonely, most = sum(m.ahead == 0 for m in answer.received), 2 * (len(case.xs) - 1)
        assert_true(
            lonely <= most, f"rank {answer.rank} waits for a piece before it has posted the receive of the next",
            expected=f"at most {most} receives that are alone when they are waited for", got=f"{lonely} such receives",
        )  # fmt: skip


@few
@given(case=even(pieces=(2, 3, 5)))
def test_pieces_under_way_have_buffers_of_their_own(subject, case):
    """With several messages under way, each is waited for, and no buffer serves two of them at a time.

    Catches one spare buffer for two receives, and a piece that is sent on while it is still being added."""
    orderly(reduced(subject, case))


@few
@given(case=subgroups(pieces=(2, 3)))
def test_pieces_travel_within_a_group(subject, case):
    """Pieces and group go together.

    Catches a group that is lost on the way to the pieces."""
    one_way(answered(reduced, subject, case), case)


@few
@given(case=rings(sizes=st.integers(0, 9)), pieces=st.sampled_from((0, -1, -4)))
def test_less_than_one_piece_is_refused(subject, case, pieces):
    """pieces below 1 raises ValueError on every rank, whatever the size of x; one piece does not.

    Catches zero pieces taken for one, and a check that is left to torch."""
    calls = [(x,) for x in case.xs]
    refuses(
        ValueError, lambda: ranks.run(subject, "ring_allreduce", calls, world=case.world, pieces=pieces),
        because=f"pieces is {pieces}",
    )  # fmt: skip
    reduced(subject, case)


# --- to recognise a mistake by -------------------------------------------------------------------


def probes(subject):
    """Fixed calls, each seen in two ways: what came of it, and which rules its messages break."""

    def tensors(world, n, dtype=torch.float64, times=1.0):
        values = torch.arange(n, dtype=torch.float64)
        return [((values * (rank + 1.5) + 10**rank) * times).to(dtype) for rank in range(world)]

    def asked(name, calls, world, group=None, **options):
        return ranks.run(subject, name, calls, world=world, group=group, **options)

    def values(answers):
        return [(a.value, a.shares, [x for x in a.args if isinstance(x, Tensor)]) for a in answers]

    def traffic(answers, n, pieces, rounds, itemsize):
        """What the contract forbids and how much of it, in chunks: nothing, for all that is right."""
        share, others = ceil(n, len(answers)), len(answers) - 1
        return [
            (
                ceil(max(0, sum(m.bytes for m in a.sent) - rounds * others * share * itemsize), max(1, share * itemsize)),
                sum(m.numel > ceil(share, pieces) for m in a.sent),
                len({m.peer for m in a.sent}) > 1, all(m.waited for m in a.messages), any(m.disturbed for m in a.messages),
                sum(m.ahead == 0 for m in a.received) > rounds * others,
                sorted({m.peer for m in a.sent} & {m.peer for m in a.received}) if others > 1 else [],
            )
            for a in answers
        ]  # fmt: skip

    def both(label, name, calls, world, group=None, **options):
        """One run, seen in two ways: what came of it, and what was sent."""
        kept = []

        def once():
            kept or kept.append(asked(name, calls, world, group, **options))
            return kept[0]

        n = calls[0][1] if name == "all_gather" else calls[0][0].numel()
        rules = n, options.get("pieces", 1), 1 + (name == "ring_allreduce"), calls[0][0].itemsize
        return {
            label: lambda: values(once()),
            f"{label}, its messages": lambda: traffic(once(), *rules),
        }

    def calls(*args, **kwargs):
        return [(x,) for x in tensors(*args, **kwargs)]

    def others_size():
        """Whether it is refused; what else comes of it, a crash of gloo for one, is not the point."""
        try:
            asked("all_gather", [(whole[:size], 5) for size in (2, 3)], 2)
        except ValueError:
            return "refused"
        except Exception:
            return "not refused"
        return "not refused"

    whole = torch.arange(7.0)
    chunks = [(c, 7) for c in whole.tensor_split(3)]
    group = SUBGROUPS[2] if MOST > 3 else SUBGROUPS[-1]
    return (
        both("a chunk of the sum", "reduce_scatter", calls(3, 7), 3)
        | both("even chunks", "reduce_scatter", calls(2, 8), 2)
        | both("n below N", "reduce_scatter", calls(3, 2), 3)
        | both("halves", "reduce_scatter", calls(3, 6, torch.bfloat16), 3)
        | both("whole numbers", "reduce_scatter", calls(2, 4, torch.int64, 2.0**40 + 2), 2)
        | both("strided", "reduce_scatter", [(x.view(3, 2).t(),) for x in tensors(2, 6)], 2)
        | both(
            "an infinity in a chunk",
            "reduce_scatter",
            [(torch.tensor([1.0, math.inf, 2.0]),), (torch.tensor([math.nan, 1.0, 2.0]),)],
            2,
        )
        | both("in a group", "reduce_scatter", calls(len(group), 5), group[-1] + 1, group)
        | both("alone", "reduce_scatter", calls(1, 3), 1)
        | both("gathered", "all_gather", chunks, 3)
        | both("gathered evenly", "all_gather", [(c, 6) for c in whole[:6].tensor_split(3)], 3)
        | both("a chunk too small", "all_gather", [(c[:1], 7) for c, _ in chunks], 3)
        | {"each other's size": others_size}
        | both("the sum", "ring_allreduce", calls(3, 7), 3)
        | both("an even sum", "ring_allreduce", calls(3, 6), 3)
        | both("a sum of halves", "ring_allreduce", calls(3, 6, torch.bfloat16), 3)
        | both("a sum of whole numbers", "ring_allreduce", calls(2, 4, torch.int64, 2.0**40 + 2), 2)
        | both("a number", "ring_allreduce", [(x[0],) for x in tensors(2, 1)], 2)
        | both("a table", "ring_allreduce", [(x.view(3, 2),) for x in tensors(2, 6)], 2)
        | both("a table on its side", "ring_allreduce", [(x.view(3, 2).t(),) for x in tensors(2, 6)], 2)
        | both("a sum alone", "ring_allreduce", calls(1, 3), 1)
        | both("a sum in a group", "ring_allreduce", calls(len(group), 5), group[-1] + 1, group)
        | both("three pieces", "ring_allreduce", calls(2, 12), 2, pieces=3)
        | both("two pieces", "ring_allreduce", calls(3, 13), 3, pieces=2)
        | both("no pieces", "ring_allreduce", calls(2, 4), 2, pieces=0)
        | both(
            "an infinity",
            "ring_allreduce",
            [(torch.tensor([1.0, math.inf, 2.0]),), (torch.tensor([math.nan, 1.0, 2.0]),)],
            2,
        )
        | both(
            "large whole numbers",
            "ring_allreduce",
            [(torch.tensor([2**53 + 1, 3]),), (torch.tensor([2, 5]),)],
            2,
        )
        | {
            "messages of uneven pieces": lambda: [
                max(12, sum(m.numel > 0 for m in a.sent))
                for a in ranks.run(subject, "ring_allreduce", [(torch.ones(12),)] * 3, world=3, pieces=3)
            ]
        }
        | {
            "messages of a sum": lambda: [
                max(2, sum(m.numel > 0 for m in a.sent))
                for a in ranks.run(subject, "ring_allreduce", [(torch.ones(4),), (torch.ones(4),)], world=2)
            ]
        }
    )
