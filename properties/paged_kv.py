"""The laws of a paged cache: it behaves as one contiguous cache per sequence, while every block is either
free or held, by one sequence unless shared on purpose; and what cannot be done is not half done.

Most claims run a short script of steps on a pool and on a model of it in plain lists (``World``), and
compare the two after each step. Tables stand in numbered places; a step that has no table to work on, or
whose place is taken, is passed over.

The key of token number n is n.hd in head h and dimension d, and its value is −n.hd: in a card, 3.10 is the
third token's key in head 1, dimension 0."""

import functools
import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dojo.close import Mismatch, assert_close, assert_equal, assert_tensor, assert_true, refuses, untouched
from dojo.draw import examples, fill

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
PLACES = (0, 1, 2)
APPENDS = [("append", i, n) for n in (1, 2, 3, 5) for i in PLACES]
FREES = [("free", i) for i in PLACES]
FORKS = [("fork", i, j) for i in PLACES for j in PLACES if i != j]
PROMPTS = [
    ("prompt", i, *ids)
    for ids in ((0,), (0, 0), (0, 1), (0, 0, 1), (0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 0, 0), (1, 1, 0, 1, 0))
    for i in PLACES
]
DECODES = [("decode", i, n) for n in (1, 2, 4) for i in PLACES]
AGAINS = [("again", i, j) for i in PLACES for j in PLACES]


@dataclass
class Script:
    """A pool and what is done with it.

    append i n: n tokens to the table in place i, a new one if the place is empty; decode i n: the same with
    ids never seen before; fork i j: the table in place i, into place j; prompt i ids…: a new table in place
    i from match_prefix(ids), and an append of the ids that were not found; again i j: a prompt of the ids
    that the latest table in place j was told, up to the first token without; skip i j: of all its ids;
    guess i j id: of all its ids, with this one for each token without; free i."""

    num_blocks: int
    block_size: int
    steps: list
    num_heads: int = 1
    head_dim: int = 1

    def __post_init__(self):
        self.steps = [Step(step) for step in self.steps]


class Step(tuple):
    """A step, which a card writes in words."""

    def __repr__(self):
        verb, place, *rest = self
        found = "table {}: match_prefix({}), and an append of the rest".format
        return {
            "append": lambda n: f"append {n} to table {place}",
            "decode": lambda n: f"append {n} with ids to table {place}",
            "free": lambda: f"free table {place}",
            "fork": lambda to: f"fork table {place} to table {to}",
            "prompt": lambda *ids: found(place, [*ids]),
            "again": lambda other: found(place, f"ids of table {other}"),
            "skip": lambda other: found(place, f"ids of table {other}, as if all had been told"),
            "guess": lambda other, number: found(place, f"ids of table {other}, {number} for each not told"),
        }[verb](*rest)


@dataclass
class Pieces:
    """A sequence as it arrives, piece by piece, and the queries of its last positions."""

    k: Tensor
    v: Tensor
    q: Tensor
    pieces: list[int]
    block_size: int
    layout: str = "contiguous"


def picker(data):
    """A function that gives the next whole number from 0 to n − 1, as the next byte says; 0 behind the last."""
    left = iter(data)
    return lambda n: next(left, 0) % n


DRAWN = st.binary(min_size=64, max_size=64).map(picker)
"""One draw in all: what Hypothesis takes for each draw is half of what an example takes. Each byte shrinks."""


def cases(make, *args, **settings):
    return DRAWN.map(lambda pick: make(pick, *args, **settings))


def between(pick, low, high):
    return low + pick(high - low + 1)


def one_of(pick, options):
    return options[pick(len(options))]


def shuffled(pick, items):
    """The items in any order, their own if shrunk."""
    left = list(items)
    return [left.pop(pick(len(left))) for _ in items]


def several(pick, most, item):
    """Up to ``most`` items, one after the other."""
    return [item() for _ in range(pick(most + 1))]


def scripts(pick, *kinds, most=10, blocks=(1, 8), sizes=(1, 2, 3)):
    """Each step is one of those that apply: its table is live, and the place of a new one is empty.

    A kind is drawn with equal chance, and then a step of that kind."""
    steps, live = [], set()
    shape = between(pick, *blocks), one_of(pick, sizes)
    heads, dim = between(pick, 1, 2), between(pick, 1, 2)
    for _ in range(between(pick, 1, most)):
        open_ = [[step for step in kind if applies(step, live)] for kind in kinds]
        steps.append(one_of(pick, one_of(pick, [kind for kind in open_ if kind])))
        verb, place, *rest = steps[-1]
        live = live - {place} if verb == "free" else live | {rest[0] if verb == "fork" else place}
    return Script(*shape, steps, heads, dim)


def branches(pick):
    """A sequence, one or two forks of it, of which one may end at once, an append to each in any order; then more
    appends, and frees."""
    steps = [("append", 0, between(pick, 1, 5)), ("fork", 0, 1)]
    if pick(2):
        steps.append(("fork", pick(2), 2))
    live = [*range(len(steps))]
    if len(live) == 3 and pick(2):
        steps.append(("free", live.pop(pick(3))))
    steps += [("append", place, between(pick, 1, 3)) for place in shuffled(pick, live)]
    for place, n in several(pick, 4, lambda: (one_of(pick, live), pick(4))):
        steps.append(("append", place, n) if n else ("free", place))
    return Script(between(pick, 8, 12), one_of(pick, (2, 3, 1)), steps)


def branches_or_scripts(pick, *kinds, **settings):
    return scripts(pick, *kinds, **settings) if pick(2) else branches(pick)


def evictions(pick):
    """Up to three prompts, some of them asked for by a second sequence; all are freed in any order, and some
    taken up again. Then appends that may need their blocks, sometimes shared for a while before they are
    freed, and a look at what is left of each prompt."""
    size, counts = between(pick, 1, 2), [between(pick, 1, 3) for _ in range(between(pick, 1, 3))]
    steps = [("prompt", i, *[i] * count * size) for i, count in enumerate(counts)]
    steps += [("again", 3 + i, of) for i, of in enumerate(several(pick, 2, lambda: pick(len(counts))))]
    steps += [("free", step[1]) for step in shuffled(pick, steps)]
    for i, freed in several(pick, 2, lambda: (pick(len(counts)), pick(2))):
        steps += [("again", i, i)] + [("free", i)] * freed
    total = sum(counts) + pick(3)
    for _ in range(between(pick, 2, 3)):
        steps += [("free", 9), ("append", 9, between(pick, 1, total) * size)]
        steps += [("fork", 9, 7), ("free", 7)] * pick(2)
    steps += [step for i in range(len(counts)) for step in (("again", 8, i), ("free", 8))]
    return Script(total, size, steps)


def evictions_or_scripts(pick, *kinds, **settings):
    return scripts(pick, *kinds, **settings) if pick(3) == 2 else evictions(pick)


def chats(pick):
    """Each turn takes up the sequence before it, by its ids or by a fork, and goes on with new ids; sometimes
    a token comes without. In the end each sequence is looked up again."""
    size, turns = one_of(pick, (2, 1, 3)), between(pick, 1, 3)
    steps = [("decode", 0, between(pick, 1, 4))]
    for place in range(1, turns + 1):
        steps.append(("fork", place - 1, place) if pick(2) else ("again", place, place - 1))
        steps += [("append", place, 1)] * (pick(4) == 1) + [("decode", place, between(pick, 1, 4))]
        steps += [[], [("decode", place - 1, 3)], [("free", place - 1)]][pick(3)]
    for place in range(turns + 1):
        steps += [("again", 9, place), ("free", 9), ("skip", 9, place), ("free", 9)]
    return Script(40, size, steps)


def applies(step, live):
    verb, place, *rest = step
    if verb in ("prompt", "again"):
        return place not in live
    return verb in ("append", "decode") or (place in live and (verb != "fork" or rest[0] not in live))


def pieces(pick, dtypes=DTYPES, scales=(1.0,), sizes=(1.0,), queries=True, most=4):
    """Heads, head_dim, and block size differ; the sequence comes in one to four pieces, some of them empty.

    ``scales`` are those of q, ``sizes`` those of k and v. Scores stay such that fp16 can
    hold them, and that their rounding in float32 does not decide which key wins."""
    heads, dim, size = shuffled(pick, (1, 2, 3, 4))[:3]
    cut = [between(pick, 1, 5), *(pick(6) for _ in range(pick(most) or pick(most)))]
    length, dtype, layout = sum(cut), one_of(pick, dtypes), one_of(pick, LAYOUTS)
    asked = min(between(pick, 1, 4), length) if queries else 1
    scale, size_ = one_of(pick, scales), one_of(pick, sizes)
    scale = min(scale, {2: 30.0, 4: 1000.0, 8: 1e5}[dtype.itemsize])
    k = filled(pick, (heads, length, dim), dtype=dtype, scale=size_)
    v = filled(pick, (heads, length, dim), dtype=dtype, scale=size_)
    q = filled(pick, (heads, asked, dim), dtype=dtype, scale=scale, layout=layout) if queries else k[:, :1]
    return Pieces(k, v, q, cut, size, layout)


def filled(pick, shape, **settings):
    """``fill``, its seed and its bytes taken from the case's bytes. Squares reach the seeds that use every bit."""
    drawn = iter((pick(256) ** 2, bytes(pick(256) for _ in range(12))))
    return fill(lambda strategy: next(drawn), shape, **settings)


@functools.cache
def numbered(heads, dim):
    """Key number n for n < 256: n.hd in head h and dimension d."""
    place = torch.arange(heads, dtype=torch.float64).reshape(-1, 1, 1) / 10 + torch.arange(dim) / 100
    return (torch.arange(256, dtype=torch.float64).reshape(1, -1, 1) + place).float()


class World:
    """A pool on trial, and beside it a model: for each live table its tokens and the names of its blocks.

    A name is a number that the model gives to a block when it is allocated; which id the pool gave to it
    is learned from ``table.blocks``, and may not change while the block is in use or cached.
    """

    def __init__(self, subject, case):
        self.subject, self.size, self.total = subject, case.block_size, case.num_blocks
        self.shape = heads, dim = case.num_heads, case.head_dim
        self.keys_by_number = numbered(heads, dim)
        self.pool = subject.BlockPool(case.num_blocks, case.num_heads, case.block_size, case.head_dim)
        self.tables = {}
        self.tokens = {}  # place → ids, where an id that was not told is a string
        self.blocks = {}  # place → names
        self.ids = {}  # name → block id, for names in use or cached
        self.cached, self.keys, self.idle = (
            {},
            {},
            [],
        )  # ids from the start → name, the reverse, those not in use
        self.past = {}  # place → the ids told to the latest table there
        self.numbers = {}  # ids from the start → number of the last of these tokens
        self.fresh = itertools.count(100)
        self.names = itertools.count()
        self.at = ""

    # -- the steps

    def run(self, steps, *checks):
        """Take each step and make the checks after it. A card ends with the step that failed."""
        number = 0
        try:
            for number, step in enumerate(map(Step, steps), 1):
                self.at = f" after step {number}, {step}"
                if getattr(self, step[0])(*step[1:]) is not False:
                    for check in checks:
                        check()
        except Exception:
            del steps[number:]
            raise

    def append(self, place, n):
        return self.add(place, [f"?{next(self.fresh)}" for _ in range(n)])

    def decode(self, place, n):
        return self.add(place, [next(self.fresh) for _ in range(n)])

    def prompt(self, place, *ids):
        if place in self.tables:
            return False
        names, mine = self.find(ids), list(ids)
        table = self.pool.match_prefix(mine)
        self.leave_alone(mine, ids)
        assert_equal(
            table.length, len(names) * self.size, f"the length of match_prefix({list(ids)}){self.at}"
        )
        self.tables[place], self.tokens[place], self.blocks[place] = table, list(ids[: table.length]), names
        self.past[place] = self.tokens[place].copy()
        self.idle = [name for name in self.idle if name not in names]
        self.add(place, ids[table.length :])

    def again(self, place, other):
        return self.prompt(place, *self.past[other]) if other in self.past else False

    def skip(self, place, other):
        known = [label for label in self.tokens.get(other, ()) if isinstance(label, int)]
        return self.prompt(place, *known) if len(known) < len(self.tokens.get(other, ())) else False

    def guess(self, place, other, number):
        ids = [label if isinstance(label, int) else number for label in self.tokens.get(other, ())]
        return (
            self.prompt(place, *ids) if any(isinstance(t, str) for t in self.tokens.get(other, ())) else False
        )

    def fork(self, place, to):
        if place not in self.tables or to in self.tables:
            return False
        try:
            self.tables[to] = self.pool.fork(self.tables[place])
        except self.subject.OutOfBlocks as raised:
            raise Mismatch(
                f"fork raised OutOfBlocks{self.at}", expected="no block is needed", got=str(raised)
            ) from None
        self.tokens[to], self.blocks[to] = self.tokens[place].copy(), self.blocks[place].copy()
        self.past[to] = self.past[place].copy()

    def free(self, place):
        if place not in self.tables:
            return False
        self.pool.free(self.tables.pop(place))
        del self.tokens[place]
        for name in reversed(self.blocks.pop(place)):
            if name in self.keys and name not in self.used():
                self.idle.append(name)

    def add(self, place, labels):
        """Append tokens that fit; ids that are numbers are told. False if they do not fit."""
        need, split = self.need(place, len(labels))
        if need > self.num_free():
            return False
        if place not in self.tables:
            self.tables[place] = self.subject.PageTable()
        tokens = self.tokens.setdefault(place, [])
        start = len(tokens)
        tokens += labels
        k, v = self.content(tokens, start)
        mine = list(labels)
        told = {"tokens": mine} if labels and isinstance(labels[0], int) else {}
        try:
            self.pool.append(self.tables[place], k, v, **told)
        except self.subject.OutOfBlocks as raised:
            free = self.num_free()
            raise Mismatch(
                f"append raised OutOfBlocks{self.at}",
                expected=f"{need} of {free} free blocks suffice",
                got=str(raised),
            ) from None
        self.leave_alone(mine, labels)
        self.allocate(place, need, split, start)

    def leave_alone(self, mine, ids):
        """The list of ids is the caller's, who goes on to use it for something else."""
        assert_equal(mine, list(ids), f"the list of ids that was passed in{self.at}")
        mine.append(-77)

    def need(self, place, n):
        """How many blocks an append takes, and whether one of them is a copy of a shared one."""
        names, length = self.blocks.get(place, []), len(self.tokens.get(place, []))
        split = (
            n > 0 and length % self.size > 0 and sum(names[-1] in held for held in self.blocks.values()) > 1
        )
        return math.ceil((length + n) / self.size) - len(names) + split, split

    def allocate(self, place, need, split, start):
        names, tokens = self.blocks.setdefault(place, []), self.tokens[place]
        evicted = max(0, need - (self.num_free() - len(self.idle)))
        for name in self.idle[:evicted]:
            del self.cached[self.keys.pop(name)]
        del self.idle[:evicted]
        if split:
            names.pop()
        names += [next(self.names) for _ in range(need)]
        told = tokens[: next((i for i, label in enumerate(tokens) if isinstance(label, str)), len(tokens))]
        self.past[place] = told
        for i in range(start // self.size, len(told) // self.size):
            self.cached[tuple(told[: (i + 1) * self.size])] = names[i]
            self.keys[names[i]] = tuple(told[: (i + 1) * self.size])

    def find(self, ids):
        """The names of the longest run of cached blocks."""
        names = []
        for end in range(self.size, len(ids) + 1, self.size):
            if tuple(ids[:end]) not in self.cached:
                break
            names.append(self.cached[tuple(ids[:end])])
        return names

    def used(self):
        return {name for names in self.blocks.values() for name in names}

    def num_free(self):
        return self.total - len(self.used())

    def content(self, tokens, start=0):
        """k and v of the tokens from start on. They depend on the tokens before, as a model's do."""
        numbers = [
            self.numbers.setdefault(tuple(tokens[: i + 1]), len(self.numbers) + 1)
            for i in range(start, len(tokens))
        ]
        k = self.keys_by_number[:, numbers]
        return k, -k

    # -- the checks

    def check_sum(self):
        """Free and held blocks make the pool."""
        held = {int(b) for table in self.tables.values() for b in table.blocks}
        assert_equal(self.pool.num_blocks, self.total, f"num_blocks{self.at}")
        assert_equal(
            self.pool.num_free + len(held), self.total, f"num_free plus the {len(held)} blocks held{self.at}"
        )

    def check_count(self):
        assert_equal(self.pool.num_free, self.num_free(), f"num_free{self.at}")

    def check_sizes(self):
        """No block too many, none too few."""
        for place, table in self.tables.items():
            assert_equal(table.length, len(self.tokens[place]), f"the length of table {place}{self.at}")
            assert_equal(
                len(table.blocks), len(self.blocks[place]), f"the number of blocks of table {place}{self.at}"
            )

    def check_owners(self):
        """Two tables, or one at two times, hold the same block exactly where the model says so."""
        self.check_sizes()
        kept = self.used() | set(self.keys)
        self.ids = {name: block for name, block in self.ids.items() if name in kept}
        for place, table in self.tables.items():
            for name, block in zip(self.blocks[place], map(int, table.blocks), strict=True):
                assert_true(
                    0 <= block < self.total, f"table {place} holds block {block} of {self.total}{self.at}"
                )
                was = self.ids.setdefault(name, block)
                if was != block:
                    message = f"table {place} holds block {block} where it should hold {was}{self.at}"
                    raise Mismatch(message, expected=was, got=list(table.blocks))
        by_id = {}
        for name, block in self.ids.items():
            other = by_id.setdefault(block, name)
            if other != name:
                message = f"block {block} is both {self.holders(other)} and {self.holders(name)}{self.at}"
                raise Mismatch(
                    message, expected="one of them", got={i: list(t.blocks) for i, t in self.tables.items()}
                )

    def holders(self, name):
        places = [
            f"number {names.index(name)} of table {place}"
            for place, names in self.blocks.items()
            if name in names
        ]
        return " and ".join(places) or f"cached for {list(self.keys[name])}"

    def check_content(self):
        """Each table reads as a cache of its own; what was read from one stays when the next is read."""
        read = {place: self.pool.gather(table) for place, table in self.tables.items()}
        for place, (got_k, got_v) in read.items():
            want_k, want_v = self.content(self.tokens[place])
            assert_equal(got_k, want_k, f"k of table {place}{self.at}")
            assert_equal(got_v, want_v, f"v of table {place}{self.at}")

    def check_attention(self):
        """A query of zeros gives the mean of the table's values."""
        q = torch.zeros(self.shape[0], 1, self.shape[1])
        for place, table in self.tables.items():
            if self.tokens[place]:
                k, v = self.content(self.tokens[place])
                assert_attends(
                    self.pool.attend(table, q),
                    q,
                    k,
                    v,
                    None,
                    f"attend with a query of zeros to table {place}{self.at}",
                )

    def check_all(self):
        self.check_owners()
        self.check_count()
        self.check_content()

    @contextmanager
    def nothing_changes(self, what):
        """Tables, blocks and content after the block of code are those before it."""
        self.at = f" before {what}"
        self.check_all()
        yield
        self.at = f" after {what}"
        self.check_all()


def store(subject, case, pool=None, table=None):
    """A pool with a table that holds the case's sequence, appended piece by piece."""
    heads, length, dim = case.k.shape
    blocks = math.ceil(length / case.block_size)
    pool = pool or subject.BlockPool(blocks, heads, case.block_size, dim, dtype=case.k.dtype)
    table = table or subject.PageTable()
    for k, v in zip(case.k.split(case.pieces, 1), case.v.split(case.pieces, 1), strict=True):
        pool.append(table, k, v)
    return pool, table


def oracle(q, k, v, scale):
    """Causal attention of the last positions in float64, and the size of what is added up.

    An error in a score moves its weight by as much relatively, hence the size of the scores counts too."""
    q, k, v = q.double(), k.double(), v.double()
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores, sizes = q @ k.mT * scale, q.abs() @ k.abs().mT * abs(scale)
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(k.shape[1] - q.shape[1] + 1)
    p = scores.masked_fill(hidden, -math.inf).softmax(-1)
    reach = sizes.masked_fill(hidden, 0).amax(-1, keepdim=True)
    return p @ v, p @ v.abs() * (1 + 2 * reach)


def assert_attends(got, q, k, v, scale, name="the result"):
    want, magnitude = oracle(q, k, v, scale)
    assert_close(got, want, dtype=q.dtype, length=sum(k.shape[1:]), magnitude=magnitude, steps=6, name=name)


# --- part 1: the pool ----------------------------------------------------------------------------


@given(case=cases(pieces, queries=False, sizes=(1.0, 2e4, 1e-7)))
def test_gather_returns_what_was_appended(subject, case):
    """However a sequence is cut into appends, gather returns its k and v bit for bit, in the pool's dtype.

    Catches slots counted from the wrong position, whole blocks returned with their empty slots, heads
    mixed up with tokens, and a pool that is always float32."""
    before = {"k": case.k.clone(), "v": case.v.clone()}
    pool, table = store(subject, case)
    got_k, got_v = pool.gather(table)
    assert_equal(got_k, case.k, "k")
    assert_equal(got_v, case.v, "v")
    assert_equal(table.length, case.k.shape[1], "the length")
    untouched(before, {"k": case.k, "v": case.v})


def new_pools(pick):
    return [between(pick, 1, 4) for _ in range(4)], one_of(pick, (None, *DTYPES))


@examples(quick=3, full=20)
@given(case=cases(new_pools))
def test_an_empty_sequence_has_no_block_and_gathers_nothing(subject, case):
    """A new pool is all free; a new table has length 0 and no block, whatever others hold, and gathers
    (num_heads, 0, head_dim).

    Catches sizes that change places, a block reserved beforehand, a dtype that is ignored, and one list of
    blocks for all tables."""
    sizes, dtype = case
    blocks, heads, _, dim = sizes
    pool, one = subject.BlockPool(*sizes, dtype=dtype), torch.ones(heads, 1, dim, dtype=dtype)
    for held in (0, 1):
        table = subject.PageTable()
        assert_equal([len(table.blocks), table.length], [0, 0], "blocks and length of a new table")
        assert_equal([pool.num_blocks, pool.num_free], [blocks, blocks - held], "num_blocks and num_free")
        for part in pool.gather(table):
            assert_tensor(part, shape=(heads, 0, dim), dtype=one.dtype)
        pool.append(table, one, one) if not held else None


@examples(full=60)
@given(case=cases(scripts, APPENDS, blocks=(4, 10), sizes=(2, 3, 1)))
def test_a_sequence_holds_as_many_blocks_as_its_tokens_need(subject, case):
    """A table of length n holds exactly ⌈n / block_size⌉ blocks, so no slot is wasted but in the last one.

    Catches a new block for every append, blocks counted from the new tokens alone, and one block too many
    where the length is a multiple of block_size."""
    world = World(subject, case)
    world.run(case.steps, world.check_sizes, world.check_count)


@given(case=cases(scripts, APPENDS, APPENDS, FREES))
def test_free_and_held_blocks_make_the_pool(subject, case):
    """After any steps, num_free plus the blocks that live tables hold is num_blocks.

    Catches blocks lost by free, freed twice, and a num_free that is not kept up to date."""
    world = World(subject, case)
    world.run(case.steps, world.check_sum)


@given(case=cases(scripts, APPENDS, APPENDS, FREES))
def test_no_block_has_two_owners(subject, case):
    """Two tables never hold the same block, no table holds one twice, and a block stays while it is held.

    Catches blocks that are given out while in use, and free lists that hold a block twice."""
    world = World(subject, case)
    world.run(case.steps, world.check_owners)


@given(case=cases(scripts, APPENDS, APPENDS, FREES))
def test_each_sequence_reads_as_a_cache_of_its_own(subject, case):
    """Whatever other sequences append and free, each one gathers its own tokens in order.

    Catches blocks gathered by id and not in the table's order, writes into another sequence's block, and
    tables that share a list."""
    world = World(subject, case)
    world.run(case.steps, world.check_content)


@examples(quick=3)
@given(case=cases(scripts, APPENDS, most=3, blocks=(4, 8)), n=st.integers(0, 3))
def test_a_freed_table_is_refused(subject, case, n):
    """Once a table is freed, each use of it raises ValueError, a second free included, and changes nothing.

    Catches a second free that puts blocks on the free list twice, or passes in silence because the list of
    blocks is empty by then."""
    world = World(subject, case)
    world.run(case.steps)
    if world.append(9, n) is False:
        return
    dead = world.tables[9]
    world.free(9)
    one, none = (
        torch.ones(2, world.shape[0], 1, world.shape[1]),
        torch.ones(2, world.shape[0], 0, world.shape[1]),
    )
    with world.nothing_changes("a freed table was used"):
        for name, call in {
            "free": lambda: world.pool.free(dead),
            "append": lambda: world.pool.append(dead, *one),
            "append of no token": lambda: world.pool.append(dead, *none),
            "gather": lambda: world.pool.gather(dead),
            "attend": lambda: world.pool.attend(dead, one[0]),
        }.items():
            refuses(ValueError, call, because=f"the table was freed before this {name}")


def fillings(pick):
    rounds = [[between(pick, 1, 3) for _ in range(between(pick, 1, 3))] for _ in range(between(pick, 2, 3))]
    return between(pick, 1, 3), rounds, pick(2)


@examples(quick=3, full=20)
@given(case=cases(fillings))
def test_every_block_can_be_used_again(subject, case):
    """All blocks of a pool can be held at once, and again after they were freed, however they are split.

    Catches blocks that free forgets, a last block that is never given out, and lost ends of sequences."""
    block_size, rounds, spare = case
    total = max(map(sum, rounds)) + spare
    world = World(subject, Script(total, block_size, []))
    for blocks in rounds:
        if extra := total - sum(blocks):
            blocks = [*blocks, extra]
        for place, count in enumerate(blocks):
            world.run([("append", place, count * block_size)], world.check_owners, world.check_count)
        world.check_content()
        world.run([("free", place) for place in range(len(blocks))], world.check_count)


@given(
    case=cases(scripts, APPENDS, APPENDS, FREES, blocks=(1, 5)),
    place=st.integers(0, 2),
    beyond=st.integers(1, 7),
)
def test_an_append_that_does_not_fit_changes_nothing(subject, case, place, beyond):
    """An append that needs more blocks than are free raises OutOfBlocks, and nothing has changed; one that
    fills the last free slot still works.

    Catches blocks taken one by one until none is left, a length moved on before the check, tokens written as
    far as they fit, and blocks demanded for tokens that fit the last one."""
    world = World(subject, case)
    world.run(case.steps)
    room = world.num_free() * world.size + -len(world.tokens.get(place, [])) % world.size
    if place not in world.tables:
        world.append(place, 0)
    k, v = world.content([f"!{i}" for i in range(room + beyond)])
    with world.nothing_changes(f"{room + beyond} tokens for table {place} that has room for {room}"):
        refuses(
            subject.OutOfBlocks,
            lambda: world.pool.append(world.tables[place], k, v),
            because=f"{room + beyond} tokens do not fit {room} slots",
        )
    world.run([("append", place, room)], world.check_all)


@examples(quick=3)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=2), same=st.booleans(), n=st.integers(1, 4))
def test_two_pools_share_nothing(subject, sizes, same, n):
    """What happens in one pool leaves another one alone, of the same size or not.

    Catches free lists, storage or page tables kept in the class or the module."""
    first, second = (
        World(subject, Script(size, 2, [])) for size in (sizes[0], sizes[0] if same else sizes[1])
    )
    first.append(0, min(n, 2 * first.total))
    second.numbers = {("elsewhere", i): i for i in range(50)}
    second.append(0, min(n + 1, 2 * second.total))
    for world in (first, second):
        world.check_all()
    first.free(0)
    for world in (second, first):
        world.check_all()


@given(case=cases(pieces, queries=False, dtypes=(torch.float32,)))
def test_pool_and_caller_share_no_memory(subject, case):
    """Writing into k and v after append, or into what gather returned, changes nothing in the pool.

    Catches views of the caller's tensors kept in place of copies, and views of the pool handed out."""
    mine = Pieces(case.k.clone(), case.v.clone(), case.q, case.pieces, case.block_size)
    pool, table = store(subject, mine)
    mine.k.fill_(99)
    mine.v.fill_(99)
    for name in ("k and v were written to after append", "the result of gather was written to"):
        got = pool.gather(table)
        assert_equal(got[0], case.k, f"k, after {name},")
        assert_equal(got[1], case.v, f"v, after {name},")
        for part in got:
            part.fill_(77)


@examples(quick=3)
@given(
    case=cases(pieces, dtypes=(torch.float32, torch.float64)),
    stale=st.sampled_from((math.nan, math.inf, 1e30)),
)
def test_what_a_block_held_before_has_no_influence(subject, case, stale):
    """Blocks that held NaN or infinity serve the next sequence as new ones do, and so do blocks beside them.

    Catches attention over whole blocks, or the whole pool, with foreign slots masked: 0 · NaN = NaN."""
    heads, length, dim = case.k.shape
    blocks = math.ceil(length / case.block_size)
    pool = subject.BlockPool(blocks + 1, heads, case.block_size, dim, dtype=case.k.dtype)
    last, beside = subject.PageTable(), subject.PageTable()
    full = torch.full((heads, case.block_size, dim), stale, dtype=case.k.dtype)
    for _ in range(blocks):
        pool.append(last, full, full)
    pool.append(beside, full, full)
    pool.free(last)
    _, table = store(subject, case, pool)
    got = pool.gather(table)
    assert_equal(got[0], case.k, "k")
    assert_equal(got[1], case.v, "v")
    assert_attends(pool.attend(table, case.q), case.q, case.k, case.v, None)


@given(
    case=cases(pieces, scales=(1.0, 0.1, 30.0, 1e5)),
    scale=st.sampled_from((None, None, None, 0.25, -1.0)),
    crossed=st.booleans(),
)
def test_attend_equals_its_definition(subject, case, scale, crossed):
    """attend is Σ softmax(q·k·scale) v over the keys up to each query's own position, value by value.

    Catches a mask aligned to the first key instead of the last, no mask among several queries, a scale that
    is ignored or missing, heads mixed up, and keys taken for values."""
    heads, length, dim = case.k.shape
    before = case.q.clone()
    if crossed:  # another sequence grows and ends in between, so that blocks lie out of order
        blocks = math.ceil(length / case.block_size) + 2
        pool, other = (
            subject.BlockPool(blocks, heads, case.block_size, dim, dtype=case.k.dtype),
            subject.PageTable(),
        )
        table = subject.PageTable()
        pool.append(table, case.k[:, :1], case.v[:, :1])
        pool.append(other, case.k[:, :1], case.v[:, :1])
        pool.append(table, case.k[:, 1:-1], case.v[:, 1:-1])
        pool.free(other)
        pool.append(table, case.k[:, 1:][:, -1:], case.v[:, 1:][:, -1:])
    else:
        pool, table = store(subject, case)
    got = pool.attend(table, case.q, scale=scale) if scale is not None else pool.attend(table, case.q)
    assert_attends(got, case.q, case.k, case.v, scale)
    untouched({"q": before}, {"q": case.q})


@examples(quick=3, full=40)
@given(case=cases(scripts, APPENDS, APPENDS, FREES, most=6))
def test_attend_reads_the_table_as_it_is(subject, case):
    """attend answers for the table that it is given, with all that was appended by then.

    Catches keys and values kept from an earlier call, or of the sequence that was written last."""
    world = World(subject, case)
    world.run(case.steps, world.check_attention)


@examples(quick=3, full=40)
@given(case=cases(pieces, dtypes=(torch.float64,)), scale=st.sampled_from((0.5, -1.0, 3.0)))
def test_scale_multiplies_the_scores(subject, case, scale):
    """Scaling the scores is scaling q; a scale of 0 gives the mean of the values up to each query.

    Catches a scale that is ignored, applied twice, or taken for missing because it is 0."""
    pool, table = store(subject, case)
    for factor in (scale, 0.0):
        assert_attends(
            pool.attend(table, case.q, scale=factor),
            case.q,
            case.k,
            case.v,
            factor,
            f"attend with scale={factor}",
        )
    same = pool.attend(table, case.q * scale * math.sqrt(case.q.shape[-1]))
    assert_attends(same, case.q, case.k, case.v, scale, "attend with q scaled beforehand")


@examples(quick=3, full=40)
@given(case=cases(pieces, dtypes=(torch.float64,)), seed=st.integers(0, 99), loud=st.sampled_from((1.0, 1e5)))
def test_queries_may_come_one_by_one_or_together(subject, case, seed, loud):
    """Attending with each query when its token is the last gives what attending with all at the end gives.

    Catches queries that see tokens after their own, positions counted from the start of the chunk, and a mask
    of −10,000 that a loud score goes below."""
    heads, length, dim = case.k.shape
    whole = (
        torch.randn(case.k.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * loud
    )
    blocks = math.ceil(length / case.block_size)
    pool, table = (
        subject.BlockPool(blocks, heads, case.block_size, dim, dtype=torch.float64),
        subject.PageTable(),
    )
    rows = []
    for t in range(length):
        pool.append(table, case.k[:, t : t + 1], case.v[:, t : t + 1])
        rows.append(pool.attend(table, whole[:, t : t + 1]))
    assert_attends(torch.cat(rows, 1), whole, case.k, case.v, None, "attend with one query after each append")
    for asked in {1, case.q.shape[1], length}:
        q = whole[:, -asked:]
        assert_attends(
            pool.attend(table, q),
            q,
            case.k,
            case.v,
            None,
            f"attend with the last {asked} of {length} queries",
        )


LONG = [(40, 3), (64, 1), (0, 130), (63, 66), (200, 2), (1100, 1)]


@dataclass
class Long:
    """Noise of two heads and head_dim 3: tokens that come before, and as many queries as come with the rest."""

    before: int
    queries: int
    block_size: int
    seed: int


def long_sequences(pick):
    return Long(*one_of(pick, LONG), one_of(pick, (16, 5, 64)), pick(100))


@examples(quick=1, full=8)
@given(case=cases(long_sequences))
def test_every_token_of_a_long_sequence_counts(subject, case):
    """Behind hundreds of tokens, in blocks of a usual size, attention is still that over all of them.

    Catches keys taken in tiles of which the last is cut off, tiles that are put together wrongly, and lengths
    that are right for a few blocks only."""
    before, n = case.before, case.queries
    noise = torch.randn(3, 2, before + n, 3, generator=torch.Generator().manual_seed(case.seed)).double()
    case = Pieces(noise[0], noise[1], noise[2, :, before:], [before, n], case.block_size)
    pool, table = store(subject, case)
    assert_equal(pool.gather(table)[0], case.k, "k")
    assert_equal(pool.gather(table)[1], case.v, "v")
    assert_attends(pool.attend(table, case.q), case.q, case.k, case.v, None)


@examples(quick=0, full=2)
@given(block_size=st.integers(8, 16), dim=st.integers(1, 2))
def test_long_half_precision_sequences_sum_in_float32(subject, block_size, dim):
    """Over hundreds of bf16 tokens, or thousands in fp16, whose values are 0 in the first half and 1 in the
    second, equal scores give 0.5.

    Catches a normaliser or an output added up in half precision: bf16 stops growing at 256, fp16 at 2,048."""
    for dtype, length in ((torch.bfloat16, 600), (torch.float16, 4400)):
        k = torch.zeros(1, length, dim, dtype=dtype)
        v = (torch.arange(length) >= length // 2).to(dtype).reshape(1, -1, 1).expand(1, length, dim)
        case = Pieces(k, v, k[:, :2], [length], block_size)
        pool, table = store(subject, case)
        assert_attends(pool.attend(table, case.q), case.q, k, v, None)


@examples(quick=3)
@given(case=cases(pieces, dtypes=(torch.float32,), most=1), at=st.integers(0, 3), low=st.integers(-1, 0))
def test_bad_arguments_are_refused(subject, case, at, low):
    """Sizes below 1, shapes that do not fit, more queries than tokens: ValueError, and nothing has changed.

    Catches k and v that broadcast by accident, and a check made after blocks were taken."""
    heads, length, dim = case.k.shape
    sizes = [4, heads, case.block_size, dim]
    sizes[at] = low
    refuses(ValueError, lambda: subject.BlockPool(*sizes), because=f"the sizes are {sizes}")
    pool, table = subject.BlockPool(40, heads, case.block_size, dim), subject.PageTable()
    pool.append(table, case.k, case.v)
    before = [pool.num_free, list(table.blocks), table.length]
    good = torch.ones(heads, 2, dim)
    wrong = {
        "one token more": torch.ones(heads, 3, dim),
        "one token": torch.ones(heads, 1, dim),
        "one head more": torch.ones(heads + 1, 2, dim),
        "one dimension more": torch.ones(heads, 2, dim + 1),
        "no dimension": torch.ones(heads, 2),
        "a batch": torch.ones(1, heads, 2, dim),
    }
    if heads > 1:
        wrong["one head"] = torch.ones(1, 2, dim)
    if dim > 1:
        wrong["one dimension"] = torch.ones(heads, 2, 1)
    for name, bad in wrong.items():
        refuses(
            ValueError,
            lambda bad=bad: pool.append(table, good, bad),
            because=f"v has {name} for k's {tuple(good.shape)}",
        )
        refuses(
            ValueError,
            lambda bad=bad: pool.append(table, bad, good),
            because=f"k has {name} for v's {tuple(good.shape)}",
        )
        if "token" not in name:
            refuses(ValueError, lambda bad=bad: pool.append(table, bad, bad), because=f"k and v have {name}")
            bad = bad[..., :1, :] if bad.ndim > 2 else bad[..., :dim]
            refuses(ValueError, lambda bad=bad: pool.attend(table, bad), because=f"q has {name}")
    refuses(
        ValueError,
        lambda: pool.attend(table, torch.ones(heads, length + 1, dim)),
        because=f"{length + 1} queries are more than {length} tokens",
    )
    assert_equal(
        [pool.num_free, list(table.blocks), table.length], before, "num_free, blocks, length after refusals"
    )
    assert_equal(pool.gather(table)[0], case.k, "k after refusals")
    assert_equal(pool.gather(table)[1], case.v, "v after refusals")


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


@examples(quick=2, full=6)
@given(n=st.integers(1, 3))
def test_append_moves_the_new_tokens_only(subject, n):
    """Appending a few tokens to a sequence of 64 blocks makes tensors of a few blocks' size, not of all.

    Catches a cache that is concatenated, cloned or rewritten with every token."""
    heads, size, dim, blocks = 2, 4, 16, 64
    pool, table = subject.BlockPool(blocks + 2, heads, size, dim), subject.PageTable()
    past, new = torch.ones(heads, blocks * size - 2, dim), torch.ones(heads, n, dim)
    pool.append(table, past, past)
    with Made() as made:
        pool.append(table, new, new)
    allowed = blocks // 4 * heads * size * dim  # some twelve passes over what is new and a block
    assert_true(
        made.elements["cpu"] <= allowed,
        f"appending {n} tokens to {past.shape[1]} made tensors of {made.elements['cpu']} elements in all",
        expected=f"at most {allowed}, a quarter of the keys held",
        got=made.elements["cpu"],
    )
    assert_equal(pool.gather(table)[0].shape[1], past.shape[1] + n, "the number of keys held afterwards")


@examples(quick=0, full=1)
@given(num_blocks=st.integers(100, 200))
def test_a_pool_lies_on_its_device(subject, num_blocks):
    """The memory of a pool is taken on the device that was asked for: here "meta", which has none.

    Catches a device that is ignored."""
    with Made() as made:
        pool = subject.BlockPool(num_blocks, 2, 4, 16, device="meta")
    assert_equal(pool.num_free, num_blocks, "the number of free blocks")
    size = num_blocks * 2 * 4 * 16
    assert_true(
        made.elements["cpu"] < size,
        f"a pool of {size} keys on another device was made on the CPU",
        expected="no such tensor on the CPU",
        got=made.elements,
    )


# --- part 2: fork --------------------------------------------------------------------------------


@examples(quick=3)
@given(case=cases(scripts, APPENDS, FORKS, most=6, blocks=(1, 5)), place=st.integers(0, 2))
def test_a_fork_takes_no_block_and_holds_the_same(subject, case, place):
    """fork returns another table of the same length and blocks; num_free is what it was, be it 0.

    Catches copies made at the fork, or by an append of no token, of all blocks or the partly filled one."""
    world = World(subject, case)
    world.run(case.steps, world.check_count)
    if place not in world.tables:
        world.append(place, 0)
    parent, free = world.tables[place], world.pool.num_free
    world.run([("fork", place, 9), ("append", 9, 0)], world.check_all)
    child = world.tables[9]
    assert_true(child is not parent, "fork returned the table itself")
    assert_equal(world.pool.num_free, free, "num_free after the fork")
    assert_equal(list(child.blocks), list(parent.blocks), "the child's blocks")


@given(case=cases(branches))
def test_forks_do_not_see_each_other(subject, case):
    """What a parent or a child appends, the other never reads, in any number of forks of forks.

    Catches writes into a shared block, in either direction, tables that share one list, and copies that
    forget k, v, or the old slots."""
    world = World(subject, case)
    world.run(case.steps, world.check_content)


@given(case=cases(branches_or_scripts, APPENDS, FORKS, APPENDS, FREES, blocks=(2, 9)))
def test_only_a_written_block_is_copied(subject, case):
    """Two forks share every block that neither wrote to after the fork, and no other; num_free shows it.

    Catches copies of the whole sequence at the first append, of a last block that is full, and of a block
    that nobody else holds any more."""
    world = World(subject, case)
    world.run(case.steps, world.check_owners, world.check_count)


@given(case=cases(branches_or_scripts, APPENDS, FORKS, FREES, blocks=(2, 9)), turn=st.integers(0, 5))
def test_a_shared_block_is_free_when_its_last_owner_is(subject, case, turn):
    """Blocks come back exactly when no live table holds them, whatever the order of parents and children.

    Catches free without counting owners, counts that are never lowered, and forks of forks counted once."""
    world = World(subject, case)
    ends = [("free", i) for i in list(itertools.permutations(PLACES))[turn]]
    world.run([*case.steps, *ends], world.check_sum, world.check_count)
    assert_equal(world.pool.num_free, case.num_blocks, "num_free once every table is freed")


@dataclass
class Copy:
    """Tables that share all their blocks, the last of them filled with one token, and an append to one table
    of as many tokens as take the ``free_blocks``: none is left for the copy."""

    block_size: int
    full_blocks: int
    forks: int
    free_blocks: int
    writer: int
    n: int


def copies(pick):
    full, size, forks, free = pick(3), between(pick, 2, 3), between(pick, 1, 2), pick(3)
    extra = pick(size) if free else between(pick, 1, size - 1)
    return Copy(size, full, forks, free, pick(2) * forks, free * size + extra)


@examples(quick=3)
@given(case=cases(copies))
def test_a_copy_that_does_not_fit_changes_nothing(subject, case):
    """An append that must copy a shared block, while there are blocks for its tokens but none for the copy,
    raises OutOfBlocks and changes nothing; once the others are freed, the same append writes in place.

    Catches a copy left out of the count of blocks, owners counted down before the check, and a count of
    owners that never gets back to one."""
    size, forks, free, writer, n = case.block_size, case.forks, case.free_blocks, case.writer, case.n
    world = World(subject, Script(case.full_blocks + 1 + free, size, []))
    world.append(0, case.full_blocks * size + 1)
    for place in range(1, forks + 1):
        world.fork(0, place)
    k, v = world.content(["!"] * n)
    with world.nothing_changes(f"{n} tokens for table {writer}, whose last block is shared"):
        refuses(
            subject.OutOfBlocks,
            lambda: world.pool.append(world.tables[writer], k, v),
            because=f"{n} tokens and the copy take {free + 1} blocks and {free} are free",
        )
    world.run([("free", place) for place in range(forks + 1) if place != writer], world.check_all)
    world.run([("append", writer, n)], world.check_all)


@examples(quick=3)
@given(case=cases(scripts, APPENDS, FORKS, most=5, blocks=(3, 8)), place=st.integers(0, 2))
def test_a_freed_table_cannot_be_forked(subject, case, place):
    """fork of a freed table raises ValueError; a fork outlives its parent.

    Catches blocks that come back to life after they were freed."""
    world = World(subject, case)
    world.run(case.steps)
    if place not in world.tables:
        world.append(place, 0)
    dead = world.tables[place]
    world.fork(place, 9)
    world.free(place)
    with world.nothing_changes("a freed table was forked"):
        refuses(ValueError, lambda: world.pool.fork(dead), because="the table was freed before")
        refuses(ValueError, lambda: world.pool.free(dead), because="the table was freed before")


# --- part 3: the prefix cache --------------------------------------------------------------------


@dataclass
class Prompts:
    """Two prompts that begin with the same ``common`` ids and then differ; ``others`` ask for the second as well."""

    block_size: int
    first: list[int]
    second: list[int]
    common: int
    freed: bool
    others: int = 0


def prompts(pick):
    size, same, freed = between(pick, 1, 3), pick(2), bool(pick(2))
    common = several(pick, 7, lambda: pick(3))
    first, second = several(pick, 4, lambda: pick(3)), several(pick, 4, lambda: 3 + pick(3))
    if same:
        first, second = [], []
    return Prompts(size, common + first, common + second, len(common), freed, pick(4))


@given(case=cases(prompts))
def test_whole_blocks_of_a_common_prefix_are_found(subject, case):
    """match_prefix holds exactly the whole blocks that two prompts have in common, while their first owner
    lives and after it was freed; they cost nothing while it lives, however many find them.

    Catches a cache that forgets at free, a partly filled block shared, a run that stops after one block or
    demands the whole prompt, and blocks found but not counted as held."""
    total = len(case.first) + (2 + case.others) * len(case.second) + 1
    world = World(subject, Script(total, case.block_size, []))
    world.prompt(0, *case.first)
    if case.freed:
        world.free(0)
    world.check_all()
    for place in range(1, 2 + case.others):
        world.prompt(place, *case.second)
    world.check_all()
    for place in range(1, 2 + case.others):
        world.free(place)
        world.at = f" after {place} of {1 + case.others} tables with the second prompt were freed"
        world.check_count()
    world.check_all()


def prefixes(pick):
    return between(pick, 1, 2), pick(3), 3 + pick(2), several(pick, 3, lambda: pick(3))


@examples(quick=2, full=20)
@given(case=cases(prefixes))
def test_the_same_ids_after_another_prefix_are_not_shared(subject, case):
    """A block is found only behind the ids that stood before it, since its keys depend on them.

    Catches a key made of the block's own ids, of its ids and its position, or of the ids just before it."""
    size, one, two, rest = case
    rest = rest + [1] * (size + -len(rest) % size)
    world = World(subject, Script(30, size, []))
    world.prompt(0, *[one] * size, *rest)
    for place, ids in enumerate(([two] * size + rest, rest, [one] * 2 * size + rest, [one] * size + rest), 1):
        world.prompt(place, *ids)
        world.check_all()


ALIKE = (
    ([-1], [-2]), ([1, 2], [2, 1]), ([1, 23], [12, 3]), ([0, 1], [1, 0]), ([1, 1], [2, 0]), ([3], [3 + 2**8]),
    ([3], [3 + 2**16]), ([3], [3 + 2**32]), ([3], [-3]), ([0], [2**61 - 1]), ([1, 1, 2], [1, 2, 2]),
    ([0, 0], [0, 256]), ([0, 31], [1, 0]), ([2**53], [2**53 + 1]), ([5, -1], [5, -2]),
    ([0, 2**62], [0, -(2**63)]), ([0, 2, 2], [2, 0, 2]), ([-1], [2**63 - 1]), ([0], [-(2**63)]),
)  # fmt: skip


def each_pair(claim):
    for pair in ALIKE:
        claim = example(pair=pair, turned=False, before=1, after=1)(claim)
    return claim


@examples(quick=2, full=20)
@each_pair
@given(pair=st.sampled_from(ALIKE), turned=st.booleans(), before=st.integers(0, 1), after=st.integers(0, 1))
def test_ids_that_look_alike_are_told_apart(subject, pair, turned, before, after):
    """A block of other ids is never found, however alike they look to a hash.

    Catches hash() of the ids without a comparison (hash(−1) = hash(−2)), ids joined to a string without a
    separator, a set or sum of ids, and ids cut to fewer bits."""
    stored, asked = (pair[1], pair[0]) if turned else pair
    size = len(stored)
    lead, tail = [7] * size * before, [8] * size * after
    world = World(subject, Script(20, size, []))
    world.prompt(0, *lead, *stored, *tail)
    world.prompt(1, *lead, *asked, *tail)
    world.check_all()
    world.prompt(2, *lead, *stored, *tail)
    world.check_all()


@examples(quick=0)
def test_a_block_is_found_after_its_own_past_only(subject):
    """Three hundred sequences that go on alike after different beginnings are found each with its own keys.

    Catches a key of a block that keeps too little of what came before it: with a byte, two of them must meet."""
    count = 300
    pool = subject.BlockPool(2 * count, 1, 1, 1)
    for i in range(count):
        kv = torch.tensor([[[float(i)], [i + 0.5]]])
        pool.append(subject.PageTable(), kv, -kv, tokens=[i, 7])
    for i in range(count):
        found = pool.match_prefix([i, 7])
        assert_equal(found.length, 2, f"the number of tokens found of [{i}, 7]")
        want = torch.tensor([[[float(i)], [i + 0.5]]])
        assert_equal(pool.gather(found)[0], want, f"the keys found for [{i}, 7]")


@examples(quick=3)
@given(case=cases(scripts, PROMPTS, FREES, most=5, blocks=(2, 6)), copied=st.booleans())
def test_cached_blocks_are_free(subject, case, copied):
    """With every table freed, the whole pool can be taken again, cached blocks and all, be it for a copy; a cached
    block that was given up is never found.

    Catches a cache that keeps its blocks for ever, a copy for which none of them is given up, and entries left
    behind that lead to another's content."""
    world = World(subject, case)
    world.run([*case.steps, *FREES], world.check_count)
    if copied and case.block_size > 1:  # the copy takes the last block of the pool
        room = (case.num_blocks - 1) * case.block_size
        world.run([("append", 0, room - 1), ("fork", 0, 1), ("append", 1, 1)], world.check_all)
        world.run(FREES)
    world.run([("append", 0, case.num_blocks * case.block_size)], world.check_all)
    asked = [("prompt", 1, *ids) for _, place, *ids in PROMPTS if place == 0]
    world.run([step for ask in asked for step in (ask, ("free", 1))], world.check_all)


@examples(full=50)
@given(case=cases(evictions_or_scripts, PROMPTS, PROMPTS, FREES, APPENDS, most=12, blocks=(2, 8)))
def test_eviction_spares_what_is_in_use_and_takes_the_longest_free(subject, case):
    """append takes blocks without cached content first; then those let go first, the end of a sequence before
    its beginning; never one that a table holds.

    Catches eviction of blocks in use, cached blocks given up while others are free, first in first out, last
    in first out, and a prefix given up before what was built on it."""
    world = World(subject, case)
    world.run(case.steps, world.check_all)


@examples(quick=3)
@given(case=cases(scripts, PROMPTS, FREES, most=6, blocks=(2, 6)), beyond=st.integers(1, 3))
def test_a_refused_append_gives_up_nothing(subject, case, beyond):
    """An append that raises OutOfBlocks leaves every cached block where it was, and still to be found.

    Catches blocks evicted one by one until it turns out that they do not suffice."""
    world = World(subject, case)
    world.run(case.steps)
    world.append(9, 0)
    n = world.num_free() * world.size + beyond
    k, v = world.content([f"!{i}" for i in range(n)])
    with world.nothing_changes(f"{n} tokens for {world.num_free()} free blocks"):
        refuses(
            subject.OutOfBlocks,
            lambda: world.pool.append(world.tables[9], k, v),
            because=f"{n} tokens do not fit",
        )
    world.run([("free", i) for i in PLACES])
    known = list(world.cached)
    for ids in known:
        world.run([("prompt", 0, *ids), ("free", 0)], world.check_all)


@dataclass
class Again:
    """A sequence of ``before`` tokens whose ids are told, an append that is refused for what is ``wrong`` with it, and
    ``after`` more tokens with their ids."""

    block_size: int
    before: int
    wrong: str
    after: int


WRONG = ("too many tokens", "too few ids", "too many tokens, and no ids", "too many ids", "v lacks a token")


def told_again(pick):
    size, before = between(pick, 1, 3), pick(4)
    return Again(size, before, one_of(pick, WRONG), max(1, size - before) + pick(size))


@examples(quick=3)
@given(case=cases(told_again))
def test_a_refused_append_tells_no_ids(subject, case):
    """An append that raises leaves what was told of the ids as it was: the sequence goes on, and is found by its ids.

    Catches ids that are noted before it is known whether their tokens fit, and an append without ids that ends the
    telling although it was refused."""
    size, before, after = case.block_size, case.before, case.after
    world = World(subject, Script(math.ceil((before + after) / size) + 1, size, []))
    world.append(0, 0)
    world.decode(0, before)
    n = world.num_free() * size + size if "tokens" in case.wrong else 2
    ids = [*range(50, 50 + n + {"too few ids": -1, "too many ids": 1}.get(case.wrong, 0))]
    k, v = world.content(["!"] * n)
    told = {} if "no ids" in case.wrong else {"tokens": ids}
    with world.nothing_changes(f"an append with {case.wrong}"):
        refuses(
            subject.OutOfBlocks if "tokens" in case.wrong else ValueError,
            lambda: world.pool.append(world.tables[0], k, v[:, 1:] if "lacks" in case.wrong else v, **told),
            because=f"the append has {case.wrong}",
        )
    world.run([("decode", 0, after), ("again", 9, 0)], world.check_all)


@given(case=cases(chats))
def test_blocks_are_cached_while_all_ids_are_told(subject, case):
    """Blocks that fill up later are cached too, also in forks and in tables from match_prefix, as long as every
    id was told.

    Catches a cache of prompts only, ids that forks share or lose, and keys that miss what match_prefix found."""
    world = World(subject, case)
    world.run(case.steps, world.check_all)


def gaps(pick):
    """Tokens with ids, tokens without, and tokens with ids again, sometimes on both sides of a fork; then a
    look for the ids of each table, and for them with a number in place of each that was not told."""
    size = between(pick, 1, 2)
    steps = [("decode", 0, between(pick, 1, 3))] * (pick(3) > 0) + [("append", 0, between(pick, 1, 2))]
    if forked := pick(3):
        steps += [("fork", 0, 1), ("decode", 1, between(pick, 1, 3))]
    steps += [("decode", 0, between(pick, 1, 3))] * (forked != 1)
    for place in range(2 if forked else 1):
        for look in (("skip", 9, place), ("guess", 9, place, 0), ("guess", 9, place, -1)):
            steps += [look, ("free", 9)]
    return Script(20, size, steps)


@examples(quick=3)
@given(case=cases(gaps))
def test_nothing_is_cached_behind_a_token_without_an_id(subject, case):
    """From the first token on whose id was not told, no block is cached, whatever is told later, also to a fork.

    Catches ids that close up over the gap, a number that stands for a missing id, and a fork that takes its
    parent's ids for complete."""
    world = World(subject, case)
    world.run(case.steps, world.check_all)


@given(case=cases(scripts, PROMPTS, FREES, DECODES, FORKS, AGAINS, APPENDS, most=12, blocks=(3, 9)))
def test_everything_together_is_still_a_cache_for_each(subject, case):
    """Appends, forks, prompts and frees in any order: content, owners and num_free stay the model's.

    Catches what goes wrong only where sharing, copying and eviction meet."""
    world = World(subject, case)
    world.run([*case.steps, *FREES], world.check_all, world.check_attention)


def twins(pick):
    ids = [pick(2) for _ in range(between(pick, 1, 4))]
    return between(pick, 1, 2), ids, shuffled(pick, PLACES), pick(5)


@examples(quick=3)
@given(case=cases(twins))
def test_the_same_ids_appended_twice_are_safe(subject, case):
    """Two sequences that fill blocks with the same ids both keep their own; whichever is freed first, and
    whatever is evicted, what match_prefix finds is right.

    Catches an entry of the cache that outlives its block because the other one took it along."""
    size, ids, order, cut = case
    blocks = math.ceil(len(ids) / size)
    world = World(subject, Script(3 * blocks, size, []))
    k, v = world.content(ids)
    tables = [subject.PageTable() for _ in range(3)]
    for table in tables:
        world.pool.append(table, k, v, tokens=ids)
    held = [int(b) for table in tables for b in table.blocks]
    assert_equal(len(set(held)), 3 * blocks, "the number of blocks of three tables")
    kept = 0  # so many tokens were found in blocks of the table ``keeper``, and are while it lives
    keeper = None
    for round_, place in enumerate([None, *order]):
        live, other = [tables[i] for i in order[round_:]], subject.PageTable()
        if place is not None:
            world.pool.free(tables[place])
            noise = torch.full((1, min(cut, blocks) * size, 1), 55.0)
            world.pool.append(other, noise, noise)
        found = world.pool.match_prefix(ids)
        assert_true(
            found.length % size == 0 and found.length <= len(ids),
            "match_prefix found too much",
            got=found.length,
        )
        if any(table is keeper for table in live):
            assert_true(
                found.length >= kept,
                "what was found in a live table's blocks is not found any more",
                expected=kept,
                got=found.length,
            )
        held = {int(b) for table in [*live, other, found] for b in table.blocks}
        assert_equal(world.pool.num_free + len(held), 3 * blocks, "num_free plus the blocks held")
        got = world.pool.gather(found)
        assert_equal(got[0], k[:, : found.length], "k of what match_prefix found")
        assert_equal(got[1], v[:, : found.length], "v of what match_prefix found")
        for table in live:
            assert_equal(world.pool.gather(table)[0], k, "k of a table with the same ids")
        first = [int(b) for b in found.blocks][:1]
        keeper = next((table for table in live if first and int(table.blocks[0]) == first[0]), None)
        kept = found.length
        world.pool.free(found)
        world.pool.free(other)
    assert_equal(world.pool.num_free, 3 * blocks, "num_free in the end")


@dataclass
class Twins:
    """Two sequences of the same ``ids``; one goes on with ``more``, the other ends, and ``others`` take its blocks."""

    block_size: int
    ids: list[int]
    more: list[int]
    others: list[int]


def twins_that_go_on(pick):
    size, blocks = between(pick, 1, 2), between(pick, 1, 2)
    ids = [pick(2) for _ in range(size * blocks)]
    more = [2 + pick(2) for _ in range(size * between(pick, 1, 2))]
    return Twins(size, ids, more, [4 + pick(2) for _ in range(size * blocks)])


@examples(quick=2, full=20)
@given(case=cases(twins_that_go_on))
def test_what_follows_a_twin_is_found_behind_its_own_ids(subject, case):
    """Where two sequences have the same ids, and one goes on, all its blocks are found behind those ids, and
    never behind the ids of whoever takes the blocks of the other.

    Once the other's blocks are taken, what follows need not be found. Catches keys made of the id of the block
    before, which another sequence may hold by then."""
    size, blocks = case.block_size, len(case.ids) // case.block_size
    story = case.ids + case.more
    for ends in (0, 1):
        world = World(subject, Script(2 * blocks + len(case.more) // size, size, []))
        pool, tables = world.pool, [subject.PageTable(), subject.PageTable()]

        def tell(table, ids, start=0, world=world):
            k, v = world.content(ids, start)
            world.pool.append(table, k, v, tokens=ids[start:])

        def look(ids, least, most, name, world=world):
            found = world.pool.match_prefix(ids)
            assert_true(
                least <= found.length <= most and found.length % size == 0,
                f"the length of match_prefix({ids}), {name},",
                expected=most,
                got=found.length,
            )
            assert_equal(
                world.pool.gather(found)[0],
                world.content(ids[: found.length])[0],
                f"k of match_prefix({ids})",
            )
            held = [int(block) for block in found.blocks]
            world.pool.free(found)
            return held

        for table in tables:
            tell(table, case.ids)
        other, own = tables[ends], tables[1 - ends]
        tell(own, story, len(case.ids))
        held = look(story, len(story), len(story), "while both live")
        kept = held[:blocks] == [int(block) for block in own.blocks][:blocks]
        pool.free(other)
        tell(subject.PageTable(), case.others)
        assert_equal(pool.num_free, 0, "num_free once the others have the blocks of the one that ended")
        for n in range(size, len(case.others) + 1, size):
            look(case.others[:n] + case.more, n, n, "whose end was told behind other ids")
        look(story, len(story) if kept else 0, len(story), "after the other one ended")


@examples(quick=3)
@given(n=st.integers(0, 4), by=st.sampled_from((-1, 1, 2)), told=st.integers(0, 2))
def test_as_many_ids_as_tokens(subject, n, by, told):
    """Fewer or more ids than tokens raise ValueError, and nothing has changed; a sequence of ids of any kind
    is left alone.

    Catches ids that shift against their tokens from then on."""
    world = World(subject, Script(9, 2, []))
    world.decode(0, told)
    k, v = world.content(["!"] * n)
    ids = list(range(max(0, n + by)))
    if len(ids) == n:
        return
    with world.nothing_changes(f"{len(ids)} ids for {n} tokens"):
        refuses(
            ValueError,
            lambda: world.pool.append(world.tables[0], k, v, tokens=ids) if told else
            world.pool.append(subject.PageTable(), k, v, tokens=ids),
            because=f"{len(ids)} ids came with {n} tokens",
        )  # fmt: skip
    assert_equal(ids, list(range(max(0, n + by))), "the ids")


# --- what tells one mistake from another ---------------------------------------------------------


def replay(subject, steps, *, blocks=8, size=2, heads=1, dim=1):
    """The trace of a script: after each step what it raised, num_free, and what each live table reads.

    Block ids are left out, since which ones are taken is open; how many are shared is not. Every block is
    filled with 50 first, and whatever was never appended, 50 included, reads as "blank"."""
    pool = subject.BlockPool(blocks, heads, size, dim, dtype=torch.float64)
    tables, live, log, serial = {}, set(), [], itertools.count(1)
    place_of = torch.arange(heads, dtype=torch.float64).reshape(-1, 1, 1) / 10 + torch.arange(dim) / 100

    def act(verb, place, *rest):
        if verb == "append":
            n, ids = rest if len(rest) == 2 else (rest[0], None)
            if place not in tables:
                tables[place] = subject.PageTable()
                live.add(place)
            k = (
                torch.tensor([next(serial) for _ in range(n)], dtype=torch.float64).reshape(1, n, 1)
                + place_of
            )
            pool.append(tables[place], k, -k, tokens=ids) if ids is not None else pool.append(
                tables[place], k, -k
            )
        elif verb == "free":
            live.discard(place)
            pool.free(tables[place])
        elif verb == "fork":
            tables[rest[0]] = pool.fork(tables[place])
            live.add(rest[0])
        elif verb == "match":
            tables[place] = pool.match_prefix(list(rest))
            live.add(place)
        else:
            getattr(pool, verb)(tables[place], *rest)

    def said(call, *args):
        try:
            return call(*args)
        except Exception as raised:
            return type(raised).__name__

    def state(place):
        table = tables[place]
        read = said(pool.gather, table)
        if not isinstance(read, str):
            read = [[[["blank" if not 1 <= abs(x) < 50 else x for x in row] for row in head]
                     for head in part.tolist()] for part in read]  # fmt: skip
        held = set(map(int, table.blocks))
        shared = [len(held & set(map(int, tables[other].blocks))) for other in sorted(live)]
        return [table.length, len(table.blocks), len(held), shared, read]

    filler, full = subject.PageTable(), torch.full((heads, blocks * size, dim), 50.0, dtype=torch.float64)
    log.append(said(pool.append, filler, full, full))
    log.append(said(pool.free, filler))
    for number, step in enumerate(steps, 1):
        log.append([said(act, *step), pool.num_free])
        seen = sorted(live) if number == len(steps) else [place for place in step[1:2] if place in live]
        log.append([said(state, place) for place in seen])
    return log


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    x = torch.tensor([[0.5, -1.0], [2.0, 0.0], [1.5, 3.0], [-2.0, 0.25], [1.0, 1.0]], dtype=torch.float64)
    k, v = torch.stack([x, x.flip(0) + 1]), torch.stack([x.flip(1), -x])
    q = torch.stack([x[:3] - 0.5, x[2:]])

    def many_beginnings():
        pool, one = subject.BlockPool(80, 1, 1, 1), torch.zeros(1, 2, 1)
        for i in range(40):  # two of them share a byte of a hash, as a rule
            pool.append(subject.PageTable(), one + i, one, tokens=[i, 7])
        return [float(pool.gather(pool.match_prefix([i, 7]))[0][0, -1, 0]) for i in range(40)]

    def stored(dtype=torch.float64, stale=None, size=2, beside=False):
        pool, table = subject.BlockPool(12 if beside else 6, 2, size, 2, dtype=dtype), subject.PageTable()
        old, other = subject.PageTable(), subject.PageTable()
        fill = torch.full((2, 3 * size, 2), 3.0 if stale is None else stale, dtype=dtype)
        pool.append(old, fill, fill)
        pool.append(other, fill, fill)
        pool.free(old)
        if not beside:
            pool.free(other)
        pool.append(table, k[:, :2].to(dtype), v[:, :2].to(dtype))
        pool.append(table, k[:, 2:].to(dtype), v[:, 2:].to(dtype))
        return pool, table

    def attend(q, scale=None, **kwargs):
        pool, table = stored(**kwargs)
        return pool.attend(table, q) if scale is None else pool.attend(table, q, scale=scale)

    def aliased():
        pool, table = subject.BlockPool(3, 1, 2, 1), subject.PageTable()
        mine = torch.ones(1, 3, 1)
        pool.append(table, mine, mine)
        mine.fill_(2)
        first = pool.gather(table)[0]
        before = first.tolist()
        first.fill_(7)
        return [before, pool.gather(table)[0].tolist()]

    def kept():
        pool, one, two = subject.BlockPool(4, 1, 2, 1), subject.PageTable(), subject.PageTable()
        pool.append(one, torch.ones(1, 3, 1), torch.ones(1, 3, 1))
        pool.append(two, torch.zeros(1, 3, 1), torch.zeros(1, 3, 1))
        first = pool.gather(one)[0]
        pool.gather(two)
        attended = [pool.attend(table, torch.zeros(1, 1, 1)).item() for table in (one, two)]
        return [first.tolist(), attended]

    def two_pools():
        table, pools = subject.PageTable(), [subject.BlockPool(3, 1, 2, 1) for _ in range(2)]
        pools[0].append(table, torch.ones(1, 3, 1), torch.ones(1, 3, 1))
        return [pool.num_free for pool in pools]

    def fresh_tables():
        pool, table = subject.BlockPool(3, 1, 2, 1), subject.PageTable()
        pool.append(table, torch.ones(1, 3, 1), torch.ones(1, 3, 1))
        return len(subject.PageTable().blocks)

    def made_by_append():
        pool, table = subject.BlockPool(64, 2, 4, 16), subject.PageTable()
        past, new = torch.ones(2, 250, 16), torch.ones(2, 1, 16)
        pool.append(table, past, past)
        with Made() as made:
            pool.append(table, new, new)
        return [made.elements["cpu"] > size for size in (4096, 14000, 24000)]

    def made_by_pool():
        with Made() as made:
            subject.BlockPool(100, 2, 4, 16, device="meta")
        return made.elements["cpu"] >= 12800

    def wrong(k, v):
        pool, table = subject.BlockPool(4, 2, 2, 3), subject.PageTable()
        pool.append(table, torch.ones(k), torch.ones(v))
        return table.length

    def long():
        pool, table = subject.BlockPool(320, 1, 2, 1, dtype=torch.bfloat16), subject.PageTable()
        ramp = (torch.arange(640) >= 320).bfloat16().reshape(1, -1, 1)
        pool.append(table, torch.zeros_like(ramp), ramp)
        return pool.attend(table, torch.zeros(1, 1, 1, dtype=torch.bfloat16))

    def far():
        pool, table = subject.BlockPool(5, 2, 16, 2, dtype=torch.float64), subject.PageTable()
        x = torch.sin(torch.arange(280, dtype=torch.float64)).reshape(2, 70, 2)
        pool.append(table, x, -x)
        return pool.attend(table, x[:, 68:])

    def twins():
        pool, tables, one = (
            subject.BlockPool(4, 1, 2, 1),
            [subject.PageTable() for _ in range(3)],
            torch.ones(1, 2, 1),
        )
        for table in tables[:2]:
            pool.append(table, one, one, tokens=[1, 2])
        found = pool.match_prefix([1, 2])
        other = tables[
            int(found.blocks[0]) == int(tables[0].blocks[0])
        ]  # either may be the one that is found
        pool.free(found)
        pool.free(other)
        rest = one.repeat(1, pool.num_free, 1)
        pool.append(tables[2], rest, rest)
        return pool.match_prefix([1, 2]).length

    def twin_goes_on(then_ends):
        """How much is found of a twin that went on, and behind the ids of whoever has the other's blocks."""
        lengths, one = [], torch.ones(1, 2, 1)
        for ends in (0, 1):
            pool, tables = subject.BlockPool(3, 1, 2, 1), [subject.PageTable(), subject.PageTable()]
            for table in tables:
                pool.append(table, one, one, tokens=[1, 2])
            pool.append(tables[1 - ends], one, one, tokens=[3, 4])
            if then_ends:
                pool.free(tables[ends])
                pool.append(subject.PageTable(), one, one, tokens=[5, 6])
            lengths.append(pool.match_prefix([5, 6, 3, 4] if then_ends else [1, 2, 3, 4]).length)
        return lengths

    def found(stored, asked):
        pool, table = subject.BlockPool(4, 1, len(stored), 1), subject.PageTable()
        one = torch.ones(1, len(stored), 1)
        pool.append(table, one, one, tokens=list(stored))
        return pool.match_prefix(list(asked)).length

    def reused_list():
        pool, table = subject.BlockPool(4, 1, 2, 1), subject.PageTable()
        ids, one = [1], torch.ones(1, 1, 1)
        pool.append(table, one, one, tokens=ids)
        ids[0] = 9
        pool.append(table, one, one, tokens=[2])
        return [pool.match_prefix([1, 2]).length, pool.match_prefix([9, 2]).length, ids]

    branch = [("append", 0, 3), ("fork", 0, 1), ("append", 1, 1), ("append", 0, 2), ("free", 0), ("free", 1)]
    triple = [
        ("append", 0, 3),
        ("fork", 0, 1),
        ("fork", 0, 2),
        ("append", 1, 1),
        ("append", 2, 1),
        ("append", 0, 1),
    ]
    a, b = [1, 2, 3, 4], [5, 6, 7, 8]
    cached = [("append", 0, 4, a), ("append", 1, 4, b), ("free", 0), ("free", 1)]
    ask = [("match", 8, *a), ("free", 8), ("match", 9, *b), ("free", 9)]
    scripts = {
        "appends": [("append", 0, n) for n in (2, 2, 1, 1, 3)],
        "interleaved": [("append", i, n) for i, n in ((0, 2), (1, 1), (0, 3), (1, 2), (2, 1))],
        "reuse": [("append", 0, 3), ("append", 1, 3), ("free", 0), ("append", 1, 3), ("append", 2, 5),
            ("free", 1), ("append", 3, 4)],
        "partly filled, freed": [("append", 0, 3), ("free", 0), ("append", 1, 8)],
        "double free": [("append", 0, 3), ("free", 0), ("free", 0), ("append", 1, 4)],
        "double free of an empty table": [("append", 0, 0), ("free", 0), ("free", 0)],
        "use after free": [("append", 0, 3), ("free", 0), ("append", 0, 1), ("gather", 0),
            ("attend", 0, torch.zeros(1, 1, 1, dtype=torch.float64))],
        "fork after free": [("append", 0, 3), ("free", 0), ("fork", 0, 1)],
        "fork": branch,
        "fork at a full block": [("append", 0, 2), ("fork", 0, 1), ("append", 1, 1), ("append", 0, 1)],
        "fork of an empty append": [("append", 0, 3), ("fork", 0, 1), ("append", 1, 0)],
        "forks freed": [*triple[:3], ("free", 0), ("free", 1), ("append", 3, 4), ("free", 2)],
        "last one left": [("append", 0, 3), ("fork", 0, 1), ("free", 0), ("append", 1, 1), ("free", 1)],
        "last one left after a copy": [*branch[:3], ("append", 0, 1), ("free", 1), ("free", 0)],
        "found alive": [("append", 0, 5, [*a, 9]), ("match", 1, *a, 9), ("append", 1, 1), ("free", 0),
            ("append", 2, 6)],
        "found freed": [("append", 0, 5, [*a, 9]), ("free", 0), ("match", 1, *a, 9), ("append", 2, 8),
            ("append", 2, 4)],
        "found in part": [("append", 0, 6, [*a, 5, 6]), ("match", 1, *a, 7, 7), ("match", 2, 1, 2),
            ("match", 3, 1, 2, 3)],
        "another prefix": [("append", 0, 4, a), ("match", 1, 7, 7, 3, 4), ("match", 2, 3, 4),
            ("append", 3, 2, [7, 7]), ("match", 4, 7, 7, 3, 4)],
        "another prefix further back": [("append", 0, 6, [1, 1, 1, 1, 2, 2]),
            ("append", 1, 4, [3, 3, 1, 1]), ("match", 2, 3, 3, 1, 1, 2, 2), ("match", 3, 1, 1, 2, 2)],
        "in several appends": [("append", 0, 1, [1]), ("append", 0, 2, [2, 3]), ("append", 0, 1, [4]),
            ("match", 1, *a)],
        "behind a match": [*cached[:1], ("free", 0), ("match", 1, 1, 2), ("append", 1, 2, [7, 8]),
            ("match", 2, 1, 2, 7, 8), ("match", 3, 7, 8)],
        "behind a fork": [("append", 0, 3, a[:3]), ("fork", 0, 1), ("append", 1, 1, [8]),
            ("append", 0, 1, [4]), ("match", 2, 1, 2, 3, 8), ("match", 3, *a)],
        "behind a gap": [("append", 0, 2, [1, 2]), ("append", 0, 2), ("append", 0, 2, [3, 4]),
            ("match", 1, *a)],
        "numbers for the gap": [("append", 0, 2, [1, 2]), ("append", 0, 2), ("append", 0, 2, [3, 4]),
            ("match", 1, 1, 2, 0, 0, 3, 4), ("match", 2, 1, 2, -1, -1, 3, 4)],
        "same ids twice": [("append", 0, 2, [1, 2]), ("append", 1, 2, [1, 2]), ("free", 0), ("free", 1),
            ("append", 2, 16)],
        "too few ids": [("append", 0, 2, [1]), ("append", 0, 2)],
        "nothing in between": [("append", 0, 1, [1]), ("append", 0, 0), ("append", 0, 1, [2]),
            ("match", 1, 1, 2)],
        "too few ids, then the right ones": [("append", 0, 1, [1]), ("append", 0, 2, [7]), ("append", 0, 1, [2]),
            ("match", 1, 1, 2)],
    }  # fmt: skip
    tight = {
        "does not fit": ([("append", 0, 3), ("append", 1, 5), ("append", 0, 1)], 3),
        "does not fit its own table": ([("append", 0, 3), ("append", 0, 9), ("append", 0, 3)], 3),
        "just fits": ([("append", 0, 4), ("append", 1, 2)], 3),
        "no block for the copy": (
            [("append", 0, 3), ("fork", 0, 1), ("append", 1, 1), ("free", 0), ("append", 1, 1)],
            2,
        ),
        "no block for the copy, two forks": ([*triple, ("free", 1), ("append", 2, 1)], 2),
        "a block for the copy, none for the token": ([("append", 0, 3), ("fork", 0, 1), ("append", 1, 2)], 3),
        "fork of a full pool": ([("append", 0, 4), ("fork", 0, 1), ("append", 1, 0)], 2),
        "cached blocks are taken": ([*cached, ("append", 2, 8), *ask], 4),
        "one cached block is taken": ([*cached, ("append", 2, 2), *ask], 4),
        "two blank ones first": ([*cached, ("append", 2, 2), *ask], 6),
        "let go again": ([*cached, ("match", 0, *a), ("free", 0), ("append", 2, 4), *ask], 4),
        "evicted beside one in use": ([*cached, ("match", 0, *a), ("append", 2, 2), *ask], 4),
        "freed after a fork, beside cached ones": (
            [*cached, ("append", 2, 4), ("fork", 2, 3), ("free", 3), ("free", 2), ("append", 4, 2), *ask],
            4,
        ),
        "refused, then asked": ([*cached, ("append", 2, 9), *ask], 4),
        "a cached block for a copy": (
            [("append", 0, 2, [1, 2]), ("free", 0), ("append", 1, 1), ("fork", 1, 2), ("append", 2, 1)],
            2,
        ),
        "refused with ids, then told": (
            [("append", 0, 1, [1]), ("append", 0, 6, [*a, 5, 6]), ("append", 0, 1, [2]), ("match", 1, 1, 2)],
            3,
        ),
        "refused without ids, then told": (
            [("append", 0, 1, [1]), ("append", 0, 6), ("append", 0, 1, [2]), ("match", 1, 1, 2)],
            3,
        ),
    }
    calls = {name: lambda steps=steps: replay(subject, steps) for name, steps in scripts.items()}
    calls |= {name: lambda s=steps, n=n: replay(subject, s, blocks=n) for name, (steps, n) in tight.items()}
    calls |= {f"{p[0]} against {p[1]}": lambda p=p: [found(*p), found(*reversed(p))] for p in ALIKE}
    return calls | {
        "heads and dimensions": lambda: replay(
            subject, [("append", 0, 3), ("append", 0, 2)], size=3, heads=2, dim=2
        ),
        "block_size 1": lambda: replay(
            subject, [("append", 0, 2), ("append", 1, 1), ("append", 0, 1)], size=1
        ),
        "bf16 pool": lambda: stored(torch.bfloat16)[0].gather(subject.PageTable())[0].dtype == torch.bfloat16,
        "attend": lambda: attend(q),
        "attend, one query": lambda: attend(q[:, :1]),
        "attend, all queries": lambda: attend(k),
        "attend, scale 2": lambda: attend(q, 2.0),
        "attend, scale 0": lambda: attend(q, 0.0),
        "attend, loud": lambda: attend(q * 1e6),
        "attend, loud and negative": lambda: attend(-q.abs() * 1e6),
        "attend, stale NaN": lambda: attend(q, stale=math.nan),
        "attend, NaN beside it": lambda: attend(q, stale=math.nan, size=1, beside=True),
        "attend, long bf16": long,
        "attend, far": far,
        "twins": twins,
        "a twin goes on": lambda: twin_goes_on(False),
        "a twin goes on, the other's block is taken": lambda: twin_goes_on(True),
        "attend, too many queries": lambda: attend(torch.cat([k, k], 1)) is not None,
        "attend, wrong head_dim": lambda: attend(q[..., :1]) is not None,
        "append, one head for two": lambda: wrong((1, 2, 3), (1, 2, 3)),
        "append, v of one token": lambda: wrong((2, 2, 3), (2, 1, 3)),
        "a pool of no block": lambda: subject.BlockPool(0, 1, 1, 1).num_free,
        "written to from outside": aliased,
        "read one after the other": kept,
        "two pools": two_pools,
        "two tables": fresh_tables,
        "made by an append": made_by_append,
        "made by a pool": made_by_pool,
        "a list used again": reused_list,
        "after many beginnings": many_beginnings,
    }
