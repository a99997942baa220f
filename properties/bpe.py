"""The laws of byte-pair encoding: no text is lost, the most frequent pair goes first, ties are settled, no
pair leaves its chunk, what was learned first is merged first, and a tokenizer keeps to itself."""

import random
import re
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise, permutations
from numbers import Integral
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dojo.close import Mismatch, assert_equal, assert_true, refuses
from dojo.draw import examples

ALPHABETS = (
    "ab", "ab ", "abc", "abc ", "ab", "ab ", "abcd", "a b\n", "aAb ", "aé ", "日本a", "🙂🙃a ", "e\u0301é",
    "a\x00\r\n", "ab.-1 ", "áàa ",
)  # fmt: skip
"""Few letters make many ties. Some share the first bytes of their UTF-8, some are spelled in two ways,
and some are control characters."""

PATTERNS = (
    None, r"\s?\w+|\s+|[^\w\s]+", r"\w+", "a+|b", "(a)b|(b)", r"(\w)(\s)?", r"(\s?)\w+|\s", r"(?i)A.|\s",
    "a(?=b)|b+", "(?<=a)[ab]", "[^a\n]+", r"^\w|\w\w", "..",
)  # fmt: skip
"""Some cover every text, others leave stretches between their matches; some have groups, or look around."""

LOOKS_BACK = (r"^\w|\w\w", r"\bab|.", r"\Ba|b")
"""Patterns whose matches depend on where the text begins."""

READ_AS = (".+", "..", r"^.|b$", "A+|b", r"\w+", r"^\s|a$", r"(a)|(b)\s", r"\s+$|[^\S\n]", r"(.)\1|.")
"""Patterns that say something else with a flag set, to re.findall, or inside another group."""

FAMILIES = (
    ("ab", "a", "aab", "b a", "b", "b ab"),
    ("<|end|>", "<|end", "end", "|>", "|><|end|>", "<|"),
    ("a|b", "a.b", "[ab]", "|", "b|a.b", "\\"),
    ("\n", " ", "é", "é\n", "\n a b", "🙂"),
)
"""Special tokens: ordinary words, text that means something in a regex, white space. Some are the
beginning of another, and some end as another begins."""


# The fields of a case are what a card shows. So a claim that goes on to another text, pattern or size puts it there.


@dataclass
class Training:
    text: str
    vocab_size: int
    pattern: str | None


@dataclass
class Encoding:
    trained_on: str
    vocab_size: int
    pattern: str | None
    text: str
    other: str = field(default="", repr=False)


@dataclass
class Special:
    trained_on: str
    vocab_size: int
    pattern: str | None
    tokens: list[str]
    allowed: list[str] | str
    text: str


@dataclass
class Words:
    text: str
    num_merges: int


@dataclass
class Segmenting:
    trained_on: str
    num_merges: int
    text: str


@dataclass
class Long:
    """A text of so many letters drawn with a seed, and another one to encode."""

    letters: str
    size: int
    vocab_size: int
    pattern: str | None
    seed: int
    text: str = field(init=False, repr=False)
    other: str = field(init=False, repr=False)

    def __post_init__(self):
        one, two = random.Random(self.seed), random.Random(self.seed + 1)
        self.text = "".join(one.choices(self.letters, k=self.size))
        self.other = "".join(two.choices(self.letters, k=min(self.size, 1050)))


@dataclass
class Prose:
    """A stretch of CPython's own help texts, and another one to encode."""

    start: int
    size: int
    vocab_size: int
    pattern: str | None
    text: str = field(init=False, repr=False)
    other: str = field(init=False, repr=False)

    def __post_init__(self):
        help_texts = prose()
        self.text = help_texts[self.start : self.start + self.size]
        self.other = help_texts[self.start + 200_000 :][: self.size]


@cache
def prose():
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


@cache
def letters(alphabet, at_least):
    # The longest size never depends on what was drawn, so that a text shrinks freely.
    return st.text(alphabet, min_size=at_least, max_size=48)


OFTEN_NONE = (None,) * 10 + PATTERNS[1:]
NO_PATTERN = " None null"
"""What may stand in a file for no pattern, and be read back as one."""
AWKWARD = ("", "é", "e\u0301", "\r\n", " a ", "\x00", "\ufeffa", "ﬁ", "A", "\U0010ffff", "\u200d\u2028")
"""Texts that clean-up of any kind would change."""

SOME_OF_ALL = "".join(
    map(chr, (*range(0x250), *range(0x300, 0x320), *range(0x5D0, 0x5E0), *range(0x1100, 0x1110),
              *range(0x1E00, 0x1E20), *range(0x2000, 0x2070), *range(0x3000, 0x3060), *range(0x4E00, 0x4E10),
              0xD7FF, *range(0xE000, 0xE004), *range(0xFB00, 0xFB07), *range(0xFE00, 0xFE10), *range(0xFF10, 0xFF30),
              *range(0xFFF9, 0x10004), *range(0x1F1E6, 0x1F200), *range(0x1F600, 0x1F610), 0xE0001, 0x10FFFF))
)  # fmt: skip
"""Every length of UTF-8, its least and its greatest; marks that combine, ligatures, controls, wide letters.
(st.text() without an alphabet reads a table of all of Unicode first, which takes longer than a verdict.)"""

ANY_TEXT = st.text(SOME_OF_ALL, max_size=12)
NO_TEXT = st.just("")
SIZES = st.sampled_from((0, 12, 20, 28, 36))
ROOM = st.sampled_from((0, 1, 2, 4, 6, 8, 10, 12, 16, 20))
# A string of digits is one draw, and much faster than a list of draws.
CHOSEN = st.text("012345", min_size=2, max_size=6)
PLACED = st.text("0123456789", max_size=9)


def of_few_letters(draw):
    return draw(letters(draw(st.sampled_from(ALPHABETS)), draw(SIZES)))


@st.composite
def trainings(draw, patterns=OFTEN_NONE):
    """A text of few letters, and room for a few merges."""
    return Training(of_few_letters(draw), 256 + draw(ROOM), draw(st.sampled_from(patterns)))


@st.composite
def encodings(draw, patterns=OFTEN_NONE, others=NO_TEXT):
    """A text to train on, and one of the same letters to encode."""
    alphabet = draw(st.sampled_from(ALPHABETS))
    seen, unseen = (draw(letters(alphabet, draw(SIZES))) for _ in range(2))
    return Encoding(seen, 256 + draw(ROOM), draw(st.sampled_from(patterns)), unseen, draw(others))


@st.composite
def specials(draw):
    """Special tokens, some of them allowed, and a text of them and of what lies between."""
    family = draw(st.sampled_from(FAMILIES))
    tokens = list(dict.fromkeys(family[int(digit)] for digit in draw(CHOSEN)))
    some = draw(st.integers(0, 90))  # each of its bits allows a token, beyond them all are
    allowed = "all" if some > 63 else [token for i, token in enumerate(tokens) if some >> i & 1]
    parts = (*tokens, "a", "b", "ab ", family[0], family[1])
    text = "".join(parts[int(digit) % len(parts)] for digit in draw(PLACED))
    trained_on = draw(letters(draw(st.sampled_from(("ab", "ab ", "ab", "a|<e"))), draw(SIZES)))
    return Special(trained_on, 256 + draw(ROOM), draw(st.sampled_from(PATTERNS)), tokens, allowed, text)


WORD_ALPHABETS = ("ab ", "abc ", "a \n", "ab. ", "a\\1 ", "é日 \t", "<w> ", "aA ")


@st.composite
def words(draw):
    """A text of short words."""
    return Words(draw(letters(draw(st.sampled_from(WORD_ALPHABETS)), draw(SIZES))), draw(ROOM))


@st.composite
def segmentings(draw):
    """A text to learn from, and one of the same letters to segment."""
    alphabet = draw(st.sampled_from(WORD_ALPHABETS))
    seen, unseen = (draw(letters(alphabet, draw(SIZES))) for _ in range(2))
    return Segmenting(seen, draw(ROOM), unseen)


LONG = (("abb", 1600, 4, None), ("abcdefgé ", 600, 280, None), ("aabbcde   ", 2000, 60, r"\w+|\s"))
"""Letters, how many, and room for how many merges: large counts in a long chunk, many merges, many words."""


@st.composite
def stretches(draw):
    start, size = draw(st.integers(0, 150_000)), draw(st.sampled_from((800, 1600)))
    pattern = draw(st.sampled_from((r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+", None)))
    return Prose(start, size, 256 + draw(st.sampled_from((20, 30))), pattern)


# --- the oracle: each step as the statement has it ------------------------------------------------


def chunked(text, pattern):
    """The matches of the pattern and the stretches between them."""
    if pattern is None:
        return [text]
    chunks, end = [], 0
    for match in re.finditer(pattern, text):
        chunks += [text[end : match.start()], match.group()]
        end = match.end()
    return [*chunks, text[end:]]


def replaced(symbols, pair, new):
    """The sequence with the pair replaced everywhere, left to right without overlap."""
    out = []
    for symbol in symbols:
        # What a merge has just put there is new, and so no half of the pair any more.
        if out and (out[-1], symbol) == pair:
            out[-1] = new
        else:
            out.append(symbol)
    return out


def trained(sequences, most, name):
    """The merges learned from {sequence: how often}, at most so many, and the sequences as they end up."""
    merges, sequences = [], [(list(symbols), count) for symbols, count in sequences.items()]
    while len(merges) < most:
        counts = Counter()
        for symbols, count in sequences:
            for pair in pairwise(symbols):
                counts[pair] += count
        if not counts:
            break
        top = max(counts.values())
        pair = min(pair for pair, count in counts.items() if count == top)
        sequences = [
            (replaced(symbols, pair, name(pair, len(merges))), count) for symbols, count in sequences
        ]
        merges.append(pair)
    return merges, sequences


def next_id(pair, done):
    return 256 + done


def learned(text, vocab_size, pattern):
    chunks = Counter(chunk.encode() for chunk in chunked(text, pattern))
    return trained(chunks, vocab_size - 256, next_id)[0]


def encoded(merges, text, pattern):
    """The ids of a text: again and again, the pair that was learned first."""
    rank, ids = {pair: i for i, pair in enumerate(merges)}, []
    for chunk in chunked(text, pattern):
        symbols = list(chunk.encode())
        while present := [pair for pair in pairwise(symbols) if pair in rank]:
            first = min(present, key=rank.__getitem__)
            symbols = replaced(symbols, first, 256 + rank[first])
        ids += symbols
    return ids


def spelled(merges):
    """The bytes of every id."""
    table = [bytes([i]) for i in range(256)]
    for left, right in merges:
        table.append(table[left] + table[right])
    return table


def encoded_with(merges, text, pattern, tokens):
    """The ids of a text in which the special tokens of {token: id} are allowed."""
    ids, start, at = [], 0, 0
    while at < len(text):
        here = [token for token in tokens if text.startswith(token, at)]
        if not here:
            at += 1
            continue
        token = max(here, key=len)
        ids += [*encoded(merges, text[start:at], pattern), tokens[token]]
        start = at = at + len(token)
    return ids + encoded(merges, text[start:], pattern)


def characters(text):
    return [(*word, "</w>") for word in text.split()]


def joined(pair, done):
    return pair[0] + pair[1]


def learned_words(case):
    return trained(Counter(characters(case.trained_on)), case.num_merges, joined)[0]


def segmented(text, merges):
    rank, out = {pair: i for i, pair in enumerate(merges)}, []
    for symbols in characters(text):
        symbols = list(symbols)
        while present := [pair for pair in pairwise(symbols) if pair in rank]:
            first = min(present, key=rank.__getitem__)
            symbols = replaced(symbols, first, "".join(first))
        out += symbols
    return out


# --- asking the subject ---------------------------------------------------------------------------


def returned(call, what):
    """What the call returns; a Mismatch, where it has no reason to raise but does."""
    try:
        return call()
    except NotImplementedError:
        raise
    except Exception as error:
        raise Mismatch(
            f"{what} raised", expected="a result", got=f"{type(error).__name__}: {error}"
        ) from error


def train(subject, case):
    """The tokenizer of a case, trained with its pattern left out where it has none."""
    text = case.text if isinstance(case, (Training, Long, Prose)) else case.trained_on
    more = {} if case.pattern is None else {"pattern": case.pattern}
    return returned(lambda: subject.Tokenizer.train(text, case.vocab_size, **more), "train")


def pairs_of(merges):
    """The pairs as plain tuples; one that is no tuple stays, and is equal to none."""
    return [tuple(pair) if isinstance(pair, tuple) else pair for pair in merges]


def merges_of(tokenizer):
    return pairs_of(tokenizer.merges)


def ids_of(tokenizer, text, **more):
    ids = returned(lambda: tokenizer.encode(text, **more), "encode")
    assert_true(isinstance(ids, list), "encode gave no list", expected="a list of ids", got=ids)
    assert_true(
        all(isinstance(i, Integral) for i in ids), "an id is no integer", expected="a list of int", got=ids
    )
    return ids


def assert_text(tokenizer, ids, want, name="the text"):
    got = returned(lambda: tokenizer.decode(list(ids)), "decode")
    assert_true(isinstance(got, str) and got == want, f"{name} differs", expected=want, got=got)


def assert_merges(tokenizer, want, name="the merges"):
    assert_equal(merges_of(tokenizer), want, name)


def through_files(tokenizers, load):
    """The tokenizers, each saved where the one before was, its file moved, and then all of them loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved")
        moved = [Path(folder, f"moved {i}") for i in range(len(tokenizers))]
        for tokenizer, there in zip(tokenizers, moved, strict=True):
            returned(lambda tokenizer=tokenizer: tokenizer.save(path if path.exists() else str(path)), "save")
            assert_true(
                path.is_file(),
                "save wrote no file at its path",
                expected="saved",
                got=sorted(p.name for p in Path(folder).iterdir()),
            )
            there.write_bytes(path.read_bytes())
        path.unlink()
        return [
            returned(lambda there=there: load(there if there is moved[0] else str(there)), "load")
            for there in moved
        ]


def through_a_file(tokenizer, load):
    return through_files([tokenizer], load)[0]


# --- part 1: the tokenizer ------------------------------------------------------------------------


@given(case=encodings(patterns=PATTERNS, others=ANY_TEXT))
def test_decode_undoes_encode(subject, case):
    """decode(encode(text)) is the text, whatever the tokenizer was trained on.

    Since every byte has an id, nothing is unknown. Catches characters that were never seen, spaces and
    line ends that are stripped or changed, and text that the pattern does not match."""
    tokenizer = train(subject, case)
    texts = case.text, case.trained_on, case.other, *AWKWARD
    for case.text in texts:
        assert_text(tokenizer, ids_of(tokenizer, case.text), case.text, "decode(encode(text))")


@given(text=ANY_TEXT, case=trainings())
def test_without_merges_the_ids_are_the_bytes(subject, text, case):
    """With vocab_size 256 nothing is learned, and a text's ids are its UTF-8 bytes.

    Catches ids of characters, a vocabulary of the letters seen, and another encoding."""
    case.vocab_size = 256
    tokenizer = train(subject, case)
    assert_merges(tokenizer, [])
    assert_equal(ids_of(tokenizer, text), list(text.encode()), "the ids")


@given(case=trainings())
def test_training_learns_the_most_frequent_pairs_in_order(subject, case):
    """Merge by merge, training takes the most frequent pair of adjacent ids, and on a tie the smallest.

    Catches ties left to the order of a dict, ties settled the other way round, counts that miss a
    merge's new neighbours, and one merge too many or too few."""
    texts = "aab", case.text, f"{case.text} {case.text[:5]} {case.text}"
    for case.text in texts:
        assert_merges(train(subject, case), learned(case.text, case.vocab_size, case.pattern))


@given(first=st.integers(1, 9), others=st.lists(st.integers(0, 5), max_size=5), room=st.integers(1, 6))
def test_in_a_run_every_position_counts(subject, first, others, room):
    """Every position of a run counts, so aaa holds (a, a) twice; merged from the left it is (aa) a.

    Catches counts without overlap, a pair that is merged into its own other half, and merging from the
    right."""
    runs = "".join(letter * size for letter, size in zip("babab", others, strict=False))
    case = Training("a" * first + runs, 256 + room, None)
    tokenizer = train(subject, case)
    merges = learned(case.text, case.vocab_size, None)
    assert_merges(tokenizer, merges)
    assert_equal(ids_of(tokenizer, case.text), encoded(merges, case.text, None), "the ids")


@given(case=trainings(), room=st.sampled_from((1000, 100_000)))
def test_training_ends_when_no_pair_is_left(subject, case, room):
    """With more room than there are pairs, training ends when every chunk is a single id.

    Pairs that stand once are merged as well. Catches max() of nothing, a threshold of two, and merges
    that repeat themselves to fill the room."""
    case.vocab_size = 256 + room
    tokenizer = train(subject, case)
    assert_merges(tokenizer, learned(case.text, case.vocab_size, case.pattern))
    chunks = [chunk for chunk in chunked(case.text, case.pattern) if chunk]
    ids = ids_of(tokenizer, case.text)
    assert_true(
        len(ids) == len(chunks),
        "a chunk of the training text is more than one id",
        expected=len(chunks),
        got=ids,
    )


@given(case=trainings())
def test_the_training_text_gets_shorter(subject, case):
    """Wherever there is a pair and room for a merge, the training text has fewer ids than bytes.

    Catches an encode that merges nothing, and a train that learns nothing."""
    size, case.vocab_size, case.pattern = len(case.text.encode()), 257, None
    tokenizer = train(subject, case)
    ids = ids_of(tokenizer, case.text)
    assert_true(len(ids) < size or size < 2, "nothing was merged", expected=f"fewer than {size} ids", got=ids)


@given(case=encodings())
def test_encode_merges_what_was_learned_first(subject, case):
    """Of the learned pairs in a chunk, encode merges the one that was learned first, everywhere, and repeats.

    Catches the longest match, the first match from the left, one merge an occurrence, merges in one
    pass over the text, and a pattern that encode forgets."""
    drawn = replace(case)
    # Learned are bc and then ab, which both stand in abc.
    for case.trained_on, case.vocab_size, case.pattern, texts in (
        ("bcbcab", 258, None, ("abc",)),
        (
            drawn.trained_on,
            drawn.vocab_size,
            drawn.pattern,
            (drawn.text, drawn.text + drawn.trained_on, drawn.trained_on[::-1]),
        ),
    ):
        tokenizer = train(subject, case)
        for case.text in texts:
            want = encoded(merges_of(tokenizer), case.text, case.pattern)
            assert_equal(ids_of(tokenizer, case.text), want, "the ids")


@given(case=encodings(patterns=PATTERNS[1:]))
def test_no_merge_crosses_from_chunk_to_chunk(subject, case):
    """Each match of the pattern, and each stretch between two, is trained on and encoded by itself.

    So encoding a text is encoding its chunks one after the other. Catches a pattern that train or
    encode ignores, chunks that were joined again, and groups of the pattern taken for chunks."""
    texts = (case.text, case.trained_on)
    case.trained_on = f"{case.trained_on} {case.text[:5]} {case.trained_on}"
    for pattern in (case.pattern, r"\w\w", "a+|[^a]", None):
        case.pattern = pattern
        tokenizer = train(subject, case)
        merges = learned(case.trained_on, case.vocab_size, case.pattern)
        assert_merges(tokenizer, merges, "the merges of trained_on")
        for case.text in texts:
            want = encoded(merges, case.text, case.pattern)
            assert_equal(ids_of(tokenizer, case.text), want, "the ids of text")


@examples(quick=2, full=20)
@given(text=st.text("aAbé\n ", max_size=24))
def test_a_pattern_is_read_as_re_reads_it(subject, text):
    """Where there is room for all merges, the ids of a text spell its chunks, as re finds them without flags.

    A dot ends at a line end, ^ and $ are the ends of the text, A is not a, and é is a letter. Catches flags,
    matches looked for line by line or in the bytes, groups that are taken for the match, and a group around all."""
    for pattern in READ_AS:
        tokenizer = train(subject, Training(text, 1256, pattern))
        want = [chunk for chunk in chunked(text, pattern) if chunk]
        got = [returned(lambda i=i: tokenizer.decode([i]), "decode") for i in ids_of(tokenizer, text)]  # noqa: B023
        assert_equal(got, want, f"the chunks of {text!r} by the pattern {pattern!r}")


@given(case=encodings(), choice=st.lists(st.integers(0, 10**6), max_size=10))
def test_decode_joins_the_bytes_of_all_ids(subject, case, choice):
    """Any list of ids decodes to the text of its joined bytes, with U+FFFD for what is not UTF-8.

    A character may be spread over several ids. Catches ids decoded one by one, errors that are raised or
    left out, text that is stripped, and ids that must be in a list where a tuple is a sequence as well."""
    tokenizer = train(subject, case)
    table = spelled(merges_of(tokenizer))
    # Mostly ids that the text's own bytes make, or the joined bytes would seldom be UTF-8.
    near = [*case.trained_on.encode(), *range(256, len(table)), 0xE6, 0xFF, 0x80]
    ids = [near[i % len(near)] for i in choice]
    want = b"".join(table[i] for i in ids).decode("utf-8", errors="replace")
    before = list(ids)
    got = returned(lambda: tokenizer.decode(ids), "decode")
    assert_true(isinstance(got, str) and got == want, f"decode({ids}) differs", expected=want, got=got)
    assert_equal(ids, before, "the list of ids afterwards")
    got = returned(lambda: tokenizer.decode(tuple(ids)), "decode")
    assert_true(got == want, f"decode({tuple(ids)}) differs", expected=want, got=got)


@given(case=trainings(), beyond=st.integers(0, 3), at=st.integers(0, 2))
def test_unknown_ids_are_refused(subject, case, beyond, at):
    """An id that does not exist, negative ones included, is a ValueError wherever it stands in the list.

    Catches negative ids that count from the end, and unknown ids that are skipped."""
    tokenizer = train(subject, case)
    for bad in (256 + len(merges_of(tokenizer)) + beyond, -1 - beyond):
        ids = [97, 98]
        ids.insert(at, bad)
        refuses(ValueError, lambda ids=ids: tokenizer.decode(ids), because=f"there is no id {bad}")


@given(case=trainings(), below=st.integers(0, 256))
def test_a_vocabulary_below_the_bytes_is_refused(subject, case, below):
    """vocab_size below 256 is a ValueError; 256 itself is not.

    Catches a vocab_size that is taken for the number of merges."""
    size = 255 - below
    refuses(
        ValueError,
        lambda: subject.Tokenizer.train(case.text, size),
        because=f"vocab_size {size} is below 256",
    )
    refuses(
        ValueError,
        lambda: subject.Tokenizer.train(case.text, size, pattern=r"\w+"),
        because=f"vocab_size {size} is below 256",
    )
    assert_merges(train(subject, Training(case.text, 256, None)), [])


@given(one=encodings(), two=encodings())
def test_tokenizers_share_nothing(subject, one, two):
    """A tokenizer does the same before and after another one is trained and used.

    Catches merges, patterns and caches that belong to the class or the module."""
    first = train(subject, one)
    merges, both = merges_of(first), (one.text, two.text)
    ids = [ids_of(first, text) for text in both]
    second = train(subject, two)
    for text in both:
        want = encoded(merges_of(second), text, two.pattern)
        assert_equal(ids_of(second, text), want, f"the second tokenizer's ids of {text!r}")
    assert_merges(first, merges, "the first tokenizer's merges")
    assert_equal([ids_of(first, text) for text in both], ids, "the first tokenizer's ids, asked again")


@given(case=encodings())
def test_encoding_again_gives_the_same(subject, case):
    """What is done to a list that encode returned, and what was encoded before, changes nothing.

    Catches a cache whose lists are handed out, and merges that are used up."""
    tokenizer = train(subject, case)
    text = case.text * 2
    first = ids_of(tokenizer, text)
    want = list(first)
    first.append(7)
    first[0] = 7
    ids_of(tokenizer, case.trained_on).append(7)
    assert_equal(ids_of(tokenizer, text), want, "the ids, asked again")
    assert_text(tokenizer, want, text)


@given(case=encodings(patterns=(*PATTERNS, "[ab]+|\n| ", 'a"b|[é日]\t?')))
def test_a_loaded_tokenizer_equals_the_saved_one(subject, case):
    """Saved and loaded, from a file that was moved, a tokenizer has the same merges, ids and texts.

    Three are saved at one path, one after the other, and their files moved. Catches a pattern that is not
    saved, merges that lose their order or come back as lists, a file that is not where it should be or that
    keeps what stood there, what is kept beside the file, and no pattern read back as a word for nothing."""
    texts = case.text, case.trained_on, case.text + case.trained_on
    cases = replace(case, pattern=r"\w\w"), replace(case), Encoding(NO_PATTERN, 264, None, NO_PATTERN)
    saved_ones = [train(subject, one) for one in cases]
    loaded_ones = through_files(saved_ones, subject.Tokenizer.load)
    for which, one, saved, loaded in zip(
        ("first", "second", "third"), cases, saved_ones, loaded_ones, strict=True
    ):
        case.trained_on, case.vocab_size, case.pattern = one.trained_on, one.vocab_size, one.pattern
        assert_merges(loaded, merges_of(saved), f"the merges loaded from the {which} of three files")
        for case.text in (*texts, one.text):
            want = ids_of(saved, case.text)
            assert_equal(ids_of(loaded, case.text), want, f"the ids by the {which} of three loaded")
        table = spelled(merges_of(saved))
        want = b"".join(table[97:]).decode(errors="replace")
        assert_text(loaded, range(97, len(table)), want, "what the loaded one decodes")
        refuses(
            ValueError,
            lambda loaded=loaded, bad=len(table): loaded.decode([bad]),
            because="there is no such id",
        )


@examples(quick=0, full=2)
@given(seed=st.integers(0, 999))
def test_a_long_text_is_like_a_short_one(subject, seed):
    """On texts of some hundred or thousand letters: the right merges, the right ids, and the text comes back.

    Catches counts that end at 255, merges that go wrong after the first dozens, and chunks that are cut."""
    for letters, size, room, pattern in LONG:
        check(subject, Long(letters, size + seed % 100, 256 + room, pattern, seed))


@examples(quick=1, full=3)
@given(case=stretches())
def test_real_text(subject, case):
    """On a page of prose: the right merges, the right ids, and the text comes back.

    Catches whatever works on a few letters only."""
    check(subject, case)


def check(subject, case):
    tokenizer = train(subject, case)
    merges = learned(case.text, case.vocab_size, case.pattern)
    of = f"of {len(case.text)} characters, {case.text[:16]!r} …, with the pattern {case.pattern!r}"
    assert_merges(tokenizer, merges, f"the merges {of}")
    ids = ids_of(tokenizer, case.other)
    of = f"of {len(case.other)} characters, {case.other[:16]!r} …, with the pattern {case.pattern!r}"
    assert_equal(ids, encoded(merges, case.other, case.pattern), f"the ids {of}")
    assert_text(tokenizer, ids, case.other)


# --- part 2: special tokens -----------------------------------------------------------------------


def with_tokens(subject, case):
    """The tokenizer of a case with its special tokens, and the ids that they should have."""
    tokenizer = train(subject, case)
    given = list(case.tokens)
    returned(lambda: tokenizer.add_special_tokens(given), "add_special_tokens")
    assert_equal(given, case.tokens, "the list of tokens afterwards")
    first = 256 + len(merges_of(tokenizer))
    return tokenizer, {token: first + i for i, token in enumerate(case.tokens)}


def overlapping(tokens):
    """Texts in which one token begins before another has ended."""
    for one, other in permutations(tokens, 2):
        shared = next((n for n in range(min(len(one), len(other)) - 1, 0, -1) if one.endswith(other[:n])), 0)
        if shared:
            yield one + other[shared:]


@given(case=specials())
def test_special_tokens_take_the_next_free_ids(subject, case):
    """Special tokens get the ids after the merges, in the order given, also when they come in two goes.

    Catches ids in the order of the alphabet, ids counted from vocab_size, and a second call that starts
    over."""
    at_once, want = with_tokens(subject, case)
    assert_true(
        dict(at_once.special_tokens) == want,
        "special_tokens differs",
        expected=want,
        got=dict(at_once.special_tokens),
    )
    tokenizer = train(subject, case)
    for token in case.tokens:
        tokenizer.add_special_tokens([token])
    got = dict(tokenizer.special_tokens)
    assert_true(got == want, "special_tokens, added one by one, differs", expected=want, got=got)
    assert_merges(tokenizer, merges_of(at_once))


@given(case=specials())
def test_an_allowed_special_token_is_one_id(subject, case):
    """An allowed token becomes its id wherever it stands, and what lies between is encoded on its own.

    Catches a regex made of unescaped tokens, the shorter of two, tokens that are not allowed, merges and
    matches of the pattern that reach across a token."""
    tokenizer, tokens = with_tokens(subject, case)
    merges = merges_of(tokenizer)
    between = ("ab".join(("", *tokens, "")), " ".join(("", *tokens, "")))
    other_case = "".join(case.tokens).swapcase()
    permissions = (case.allowed, "all", tuple(case.tokens[::2]), set(case.tokens[1:]))
    for text in (case.text, *between, *overlapping(case.tokens), other_case):
        for allowed in permissions:
            case.text, case.allowed = text, allowed
            found = {token: tokens[token] for token in (tokens if allowed == "all" else allowed)}
            want = encoded_with(merges, text, case.pattern, found)
            got = ids_of(tokenizer, text, allowed_special=allowed)
            assert_equal(got, want, "the ids")
            assert_true(
                allowed == "all" or len(allowed) == len(found), "allowed_special was changed", got=allowed
            )


@given(case=specials())
def test_a_stretch_is_a_text_of_its_own(subject, case):
    """A stretch begins behind its special token as a text begins: the pattern sees nothing before it.

    ^ matches there, and \\b takes the token for no letter. Catches matches looked for in the whole text, from
    the end of the token on."""
    case.trained_on, case.vocab_size, case.allowed = "ab ab aab" + case.trained_on, 262, "all"
    case.text = "ab".join(("", *case.tokens, ""))
    for case.pattern in LOOKS_BACK:
        tokenizer, tokens = with_tokens(subject, case)
        want = encoded_with(merges_of(tokenizer), case.text, case.pattern, tokens)
        assert_equal(ids_of(tokenizer, case.text, allowed_special="all"), want, "the ids")


@given(case=specials())
def test_a_special_token_that_is_not_allowed_is_text(subject, case):
    """Unless it is allowed, a special token in a text is encoded as if it were not special.

    Catches tokens that are always recognised: a user could then write one into the prompt."""
    tokenizer, _ = with_tokens(subject, case)
    plain = encoded(merges_of(tokenizer), case.text, case.pattern)
    assert_equal(ids_of(tokenizer, case.text), plain, "the ids, nothing allowed")
    assert_equal(ids_of(tokenizer, case.text, allowed_special=set()), plain, "the ids, nothing allowed")


@given(case=specials())
def test_decode_gives_special_tokens_back(subject, case):
    """decode(encode(text)) is the text with special tokens in it, whichever are allowed.

    Catches special ids that decode drops or does not know, and bytes that are decoded before they are
    joined."""
    tokenizer, tokens = with_tokens(subject, case)
    assert_text(tokenizer, ids_of(tokenizer, case.text, allowed_special=case.allowed), case.text)
    table = [*spelled(merges_of(tokenizer)), *(token.encode() for token in tokens)]
    ids = [part for id in tokens.values() for part in (0xF0, id, 0x9F)]
    want = b"".join(table[i] for i in ids).decode(errors="replace")
    assert_text(tokenizer, ids, want, "special tokens between broken bytes")
    refuses(ValueError, lambda: tokenizer.decode([len(table)]), because=f"there is no id {len(table)}")


@given(case=specials())
def test_special_tokens_may_come_at_any_time(subject, case):
    """A token that is added to a tokenizer in use is one id from then on, and decodes.

    Catches a regex or a table of the tokens that is made once and kept, an empty list that is refused, and a
    list that is asked for where a tuple is a sequence as well."""
    tokenizer = train(subject, case)
    for none in ([], ()):
        returned(lambda none=none: tokenizer.add_special_tokens(none), f"add_special_tokens({none})")
    merges, tokens = merges_of(tokenizer), {}
    case.text, case.allowed = "ab".join(case.tokens), "all"
    for token in case.tokens:
        returned(
            lambda token=token: tokenizer.add_special_tokens((token,)), f"add_special_tokens({(token,)})"
        )
        tokens[token] = new = 256 + len(merges) + len(tokens)
        want = encoded_with(merges, case.text, case.pattern, tokens)
        assert_equal(
            ids_of(tokenizer, case.text, allowed_special="all"), want, f"the ids with {[*tokens]} added"
        )
        assert_text(tokenizer, [97, new], "a" + token)


@given(case=specials())
def test_special_tokens_belong_to_one_tokenizer(subject, case):
    """Special tokens of one tokenizer are unknown to another, and to one that was loaded before they came.

    Catches a dict that belongs to the class or to a default argument."""
    other = train(subject, case)
    copy = through_a_file(other, subject.Tokenizer.load)
    tokenizer, tokens = with_tokens(subject, case)
    for one in (other, copy):
        assert_true(
            dict(one.special_tokens) == {},
            "another tokenizer's special tokens appeared",
            expected={},
            got=one.special_tokens,
        )
        assert_equal(
            ids_of(one, case.text, allowed_special="all"),
            encoded(merges_of(one), case.text, case.pattern),
            "the ids",
        )
    other.add_special_tokens(["<|other|>"])
    assert_true(
        dict(tokenizer.special_tokens) == tokens,
        "special_tokens differs",
        expected=tokens,
        got=tokenizer.special_tokens,
    )


@given(case=specials())
def test_a_loaded_tokenizer_keeps_its_special_tokens(subject, case):
    """Saved and loaded, a tokenizer has the same special tokens under the same ids, and can be given more.

    Catches tokens that are not saved, and a file that breaks at a token with a space or a line end, of which
    Unicode has many."""
    case.tokens += [" two\nlines ", "\t,\r\u2028\x85\x00|\\\"'"]
    saved, tokens = with_tokens(subject, case)
    loaded = through_a_file(saved, subject.Tokenizer.load)
    assert_true(
        dict(loaded.special_tokens) == tokens,
        "special_tokens differs",
        expected=tokens,
        got=loaded.special_tokens,
    )
    want = ids_of(saved, case.text, allowed_special=case.allowed)
    assert_equal(ids_of(loaded, case.text, allowed_special=case.allowed), want, "the ids")
    assert_text(loaded, want, case.text)
    assert_text(loaded, tokens.values(), "".join(tokens), "the loaded one's special tokens")
    returned(lambda: loaded.add_special_tokens(["<|more|>"]), "add_special_tokens")
    assert_equal(loaded.special_tokens["<|more|>"], 256 + len(merges_of(saved)) + len(tokens), "the next id")
    assert_true(
        dict(saved.special_tokens) == tokens,
        "the saved one changed with the loaded",
        expected=tokens,
        got=saved.special_tokens,
    )


@given(case=specials(), at=st.integers(0, 5))
def test_bad_special_tokens_are_refused(subject, case, at):
    """A token that is empty, repeated or special already is a ValueError, and then none is added.

    An empty token would stand everywhere, and a repeated one would have two ids."""
    tokenizer, tokens = with_tokens(subject, case)
    bad = [
        ("", "the token is empty"),
        *((token, f"{token!r} is special already") for token in case.tokens[:1]),
    ]
    for token, because in bad:
        new = ["<|x|>", "<|y|>"]
        new.insert(at % 3, token)
        refuses(ValueError, lambda new=new: tokenizer.add_special_tokens(new), because=because)
    refuses(
        ValueError, lambda: tokenizer.add_special_tokens(["<|x|>", "<|x|>"]), because="'<|x|>' is repeated"
    )
    got = dict(tokenizer.special_tokens)
    assert_true(got == tokens, "a refused call added tokens", expected=tokens, got=got)
    returned(lambda: tokenizer.add_special_tokens(["<|z|>"]), "add_special_tokens")
    assert_equal(
        tokenizer.special_tokens["<|z|>"], 256 + len(merges_of(tokenizer)) + len(tokens), "the next id"
    )


@given(case=specials())
def test_only_special_tokens_can_be_allowed(subject, case):
    """allowed_special that names anything but a special token is a ValueError.

    Catches a misspelled token that is silently encoded as text, also where there are no special tokens, and
    "all" found in a list."""
    tokenizer, tokens = with_tokens(subject, case)
    for allowed in ({"<|unknown|>"}, [*tokens, "<|unknown|>"], ["all"]):
        for one in (tokenizer, train(subject, case)):
            refuses(
                ValueError,
                lambda one=one, allowed=allowed: one.encode(case.text, allowed_special=allowed),
                because=f"{[*allowed][-1]!r} is no special token",
            )


# --- part 3: words --------------------------------------------------------------------------------


def merges_learned(subject, text, num_merges):
    return pairs_of(returned(lambda: subject.learn_bpe(text, num_merges), "learn_bpe"))


def symbols_of(subject, text, merges):
    given = list(merges)
    symbols = returned(lambda: subject.apply_bpe(text, given), "apply_bpe")
    assert_equal(given, list(merges), "the list of merges afterwards")
    assert_true(
        isinstance(symbols, list), "apply_bpe gave no list", expected="a list of symbols", got=symbols
    )
    return symbols


@given(case=words())
def test_learning_takes_the_most_frequent_pairs_of_symbols(subject, case):
    """Merge by merge, learning takes the most frequent pair of symbols, words counted as often as they stand.

    Catches </w> glued to the last letter or left out, words counted once each, ties settled otherwise,
    symbols that are found inside longer ones, and pairs from word to word."""
    for text in (
        case.text,
        f"{case.text} {case.text[:5]} {case.text}",
        case.text.replace("b", ".").replace(" ", "\n"),
    ):
        case.text = text
        want = trained(Counter(characters(case.text)), case.num_merges, joined)[0]
        assert_equal(merges_learned(subject, case.text, case.num_merges), want, "the merges")


@given(case=words())
def test_learning_ends_when_every_word_is_one_symbol(subject, case):
    """With room for any number of merges, learning ends when each word is one symbol that ends in </w>.

    Catches max() of nothing, and a threshold of two."""
    merges = merges_learned(subject, case.text, 1000)
    assert_equal(merges, trained(Counter(characters(case.text)), 1000, joined)[0], "the merges")
    want = [word + "</w>" for word in case.text.split()]
    assert_equal(symbols_of(subject, case.text, merges), want, "the symbols")


@given(case=segmentings())
def test_symbols_joined_are_the_words(subject, case):
    """The symbols of a text, joined, are its words with </w> after each; without merges, its characters.

    Catches letters that were never seen and get lost, and words that run into each other."""
    for text in (case.text, "aB É", "e\u0301\u00a0\\n"):
        symbols = symbols_of(subject, text, learned_words(case))
        want = "".join(word + "</w>" for word in text.split())
        assert_true(
            "".join(symbols) == want, f"the joined symbols of {text!r} differ", expected=want, got=symbols
        )
    assert_equal(
        symbols_of(subject, case.text, []),
        [s for word in characters(case.text) for s in word],
        "the characters",
    )


@given(case=segmentings())
def test_symbols_are_merged_in_the_order_learned(subject, case):
    """Of the given pairs in a word, apply_bpe merges the earliest in the list first, wherever it stands.

    Catches the longest match, the first match from the left, and symbols found inside longer ones."""
    merges = learned_words(case)
    for text in (case.text, case.text + case.trained_on, case.trained_on[::-1]):
        case.text = text
        assert_equal(symbols_of(subject, case.text, merges), segmented(case.text, merges), "the symbols")


@given(case=words(), below=st.integers(1, 3))
def test_a_negative_number_of_merges_is_refused(subject, case, below):
    """num_merges below zero is a ValueError; zero learns nothing.

    Catches a loop that takes a negative count for an empty one."""
    refuses(
        ValueError, lambda: subject.learn_bpe(case.text, -below), because=f"num_merges {-below} is negative"
    )
    assert_equal(merges_learned(subject, case.text, 0), [], "the merges")


# --- what tells one mistake from another ---------------------------------------------------------


def probes(subject):
    """Calls whose results differ from mistake to mistake, by name."""
    ties = "abcbcaabdcaddabcdbca"
    words = r"\s?\w+|\s+|[^\w\s]+"

    def merges(text, size, pattern=None):
        return merges_of(subject.Tokenizer.train(text, size, pattern=pattern))

    def ids(text, size, pattern, other):
        return subject.Tokenizer.train(text, size, pattern=pattern).encode(other)

    def text(size, numbers):
        return subject.Tokenizer.train("ééaé", size).decode(numbers)

    def tokens(*groups, seen="é 日a", size=260, pattern=None):
        tokenizer = subject.Tokenizer.train(seen, size, pattern=pattern)
        for group in groups:
            tokenizer.add_special_tokens(group)
        return tokenizer

    def special(allowed, text, *groups, **more):
        return tokens(*groups, **more).encode(text, allowed_special=allowed)

    def file(tokenizer):
        return through_a_file(tokenizer, subject.Tokenizer.load)

    def files(*trainings):
        tokenizers = [subject.Tokenizer.train(*training) for training in trainings]
        return through_files(tokenizers, subject.Tokenizer.load)

    def two():
        one = subject.Tokenizer.train("abab", 257, pattern=words)
        before = one.encode("abab")
        other = subject.Tokenizer.train("baba", 257, pattern=words)
        return [before, other.encode("abab"), one.encode("abab"), merges_of(one)]

    def two_with_tokens():
        one, other = tokens(["<x>"]), tokens(["<y>"])
        return [dict(one.special_tokens), dict(other.special_tokens)]

    def twice():
        tokenizer = subject.Tokenizer.train("abab", 257)
        tokenizer.encode("ab").append(7)
        return tokenizer.encode("ab")

    def which_error():
        try:
            return text(256, [999])
        except ValueError:
            return "ValueError"
        except Exception:
            return "another"

    def used():
        numbers = [97, 98]
        subject.Tokenizer.train("ab", 256).decode(numbers)
        return numbers

    def later():
        tokenizer = tokens(["<x>"])
        tokenizer.encode("<x>", allowed_special="all")
        tokenizer.add_special_tokens(["<y>"])
        return tokenizer.encode("<x><y>", allowed_special="all")

    def decoded_later():
        tokenizer = tokens(["<x>"])
        tokenizer.decode([97])
        tokenizer.add_special_tokens(["<y>"])
        return tokenizer.decode([256 + len(tokenizer.merges) + 1])

    def tokens_given():
        new = ["<x>"]
        tokens(new)
        return new

    def merges_given():
        merges = [("a", "b")]
        subject.apply_bpe("ab", merges)
        return merges

    def refused():
        tokenizer = tokens(["<x>"])
        try:
            tokenizer.add_special_tokens(["<y>", "<x>"])
        except ValueError:
            return dict(tokenizer.special_tokens)
        return "accepted"

    def refused_then_added():
        tokenizer = tokens(["<x>"])
        with suppress(ValueError):
            tokenizer.add_special_tokens(["<y>", "<x>"])
        tokenizer.add_special_tokens(["<z>"])
        return tokenizer.special_tokens["<z>"] - tokenizer.special_tokens["<x>"] == 1

    def which_error_of_allowed():
        try:
            return special(["<y>"], "a", ["<x>"])
        except ValueError:
            return "ValueError"
        except Exception:
            return "another"

    def allowed_in_turns():
        tokenizer = tokens(["<x>"])
        return [tokenizer.encode("a<x>", allowed_special=allowed) for allowed in ((), "all", ())]

    def two_patterns():
        one = subject.Tokenizer.train("ababab", 259)
        subject.Tokenizer.train("abab", 258, pattern="a|b")
        return one.encode("abab")

    nested = [["<|end", "<|end|>", "a", "ab", "aab"]]
    return {
        "merges, ties": lambda: merges(ties, 264),
        "merges, words": lambda: merges("a low lower lowest low. low", 268, words),
        "merges, no pattern": lambda: merges("a low lower lowest low. low", 262),
        "merges, gaps": lambda: merges("a+a+bc-bc-bc", 300, r"\w+"),
        "merges, runs": lambda: merges("aaaaabaaabbbb", 262),
        "merges, blocks": lambda: merges("ababababab", 262),
        "merges, weights": lambda: merges("yz yz yz ab ac", 258, r"\w+"),
        "merges, nothing left": lambda: merges("abc", 300),
        "merges, nothing": lambda: merges("", 300),
        "merges, 255": lambda: merges("abc", 255),
        "merges, 256": lambda: merges("abc", 256),
        "ids, rank": lambda: ids("bcbcbcababcd", 262, None, "abcdabcbcdbcaabcd"),
        "ids, from the left": lambda: ids("abcd abcd abcd bcd bcd bcd ab", 260, r"\w+", "abcd"),
        "ids, ties": lambda: ids(ties, 266, None, "abcdabcadbcabdca"),
        "ids, two letters": lambda: ids("abbabbbabaaaabbbb", 263, None, "abbbabbaaaaabba"),
        "ids, three letters": lambda: ids("bcbacbaaababccaa", 266, None, "aacaabaccbaaabcb"),
        "ids, run": lambda: ids("aaaa", 258, None, "aaaaaaa"),
        "ids, words": lambda: ids("a low lower a lowest", 266, words, "low a lowera  low"),
        "ids, gaps": lambda: ids("a+a+bc-bc-bc++++", 262, r"\w+", "a+bc++bc--"),
        "ids, groups": lambda: ids("ab", 258, "(a)b|(b)", "abba"),
        "ids, unseen": lambda: ids("ab", 258, None, "e\u0301\r\n日"),
        "ids, long": lambda: len(ids("ab", 257, None, "ab" * 129)),
        "ids, very long": lambda: len(ids("ab", 257, None, "a" + "ab" * 160)),
        "merges, hundreds": lambda: merges("b" * 300 + "a" * 280, 257),
        "ids, lines": lambda: ids("aa\nbb", 300, "^.|b$", "aa\nbb"),
        "ids, dot": lambda: ids("ab\nb" * 2, 300, "b.", "ab\nb"),
        "ids, case": lambda: ids("ABAB", 300, "ab", "ABAB"),
        "ids, a group again": lambda: ids("aabb", 300, r"(.)\1|.", "aabbab"),
        "ids, letters": lambda: ids("éb" * 2, 300, r"\w+", "éb"),
        "text, broken": lambda: text(257, [0xE6, 256, 97, 0x80]),
        "text, two halves": lambda: text(256, [0xC3, 0xA9]),
        "text, three thirds": lambda: text(256, [97, 0xE6, 0x97, 0xA5]),
        "text, four quarters": lambda: text(256, [0xF0, 0x9F, 0x99, 0x82, 97]),
        "text, a tuple": lambda: text(256, (97, 98)),
        "ids, int": lambda: [isinstance(i, Integral) for i in ids("ab", 257, None, "abc")],
        "text, white": lambda: text(256, [32, 97, 10]),
        "text, unknown": lambda: text(256, [97, 256]),
        "text, unknown, which error": which_error,
        "text, negative": lambda: text(257, [97, -1]),
        "the ids afterwards": used,
        "two tokenizers": two,
        "two patterns": two_patterns,
        "loaded, no pattern": lambda: file(subject.Tokenizer.train(NO_PATTERN, 264)).encode(NO_PATTERN),
        "tokens, after a refusal": refused_then_added,
        "tokens, repeated at once": lambda: dict(tokens(["<x>", "<x>"]).special_tokens),
        "special, unknown, which error": which_error_of_allowed,
        "special, in turns": allowed_in_turns,
        "encoded twice": twice,
        "loaded, merges": lambda: merges_of(file(subject.Tokenizer.train("zyzyzyabab", 260))),
        "loaded, pattern": lambda: file(subject.Tokenizer.train("abab", 260, pattern=r"\w\w")).encode("xab"),
        "loaded, tokens": lambda: dict(file(tokens(["b a", "<x>\n"])).special_tokens),
        "loaded, tuples": lambda: [type(pair) for pair in file(tokens()).merges] == [tuple] * 4,
        "loaded, two": lambda: [merges_of(one) for one in files(("abab", 257), ("cdcd", 257))],
        "loaded, over another": lambda: merges_of(files(("abab", 257), ("cdcd", 258))[1]),
        "tokens, in order": lambda: dict(tokens(["b", "a"]).special_tokens),
        "tokens, in two goes": lambda: dict(tokens(["b"], ["a"]).special_tokens),
        "tokens, two tokenizers": two_with_tokens,
        "tokens, empty": lambda: dict(tokens([""]).special_tokens),
        "tokens, repeated": lambda: dict(tokens(["<x>"], ["<x>"]).special_tokens),
        "tokens, refused": refused,
        "tokens, later": later,
        "tokens, decoded later": decoded_later,
        "tokens, the list afterwards": tokens_given,
        "special, all": lambda: special("all", "<|end|>x<|endaabab", *nested),
        "special, longest first": lambda: special("all", "<|end|>", ["<|end|>", "<|end"]),
        "special, one": lambda: special(["<|end"], "<|end|>ab", *nested),
        "special, none": lambda: special((), "<|end|>ab", *nested),
        "special, none of one": lambda: special([], "a<x>b", ["<x>"]),
        "special, none of two": lambda: special((), "<y><x>", ["<x>", "<y>"]),
        "special, none, in words": lambda: special((), "ab <x>", ["<x>"], pattern=words),
        "special, regex": lambda: special("all", "axb a.b|", ["a.b", "[ab]", "|"]),
        "special, case": lambda: special("all", "<X>", ["<x>"]),
        "special, overlapping": lambda: special("all", "abcd", ["ab", "bcd"]),
        "special, unknown": lambda: special(["<y>"], "a", ["<x>"]),
        "special, unknown to none": lambda: special(["<y>"], "a"),
        "special, all in a list": lambda: special(["all"], "a", ["<x>"]),
        "special, between": lambda: special("all", "ab<x>cd", ["<x>"], seen="abcd" * 3),
        "special, white": lambda: special("all", "a <x> b", ["<x>"]),
        "special, pattern": lambda: special("all", "ab a b", ["b a"], pattern=r"\w+|\s"),
        "special, at its own start": lambda: special("all", "<x>ab", ["<x>"], seen="ab" * 3, pattern=r"^\w|\w\w"),
        "special, after a letter": lambda: special("all", "xab", ["x"], seen="ab ab", pattern=r"\bab|."),
        "tokens, none": lambda: dict(tokens([], ["<x>"]).special_tokens),
        "tokens, a tuple": lambda: dict(tokens(("<x>",)).special_tokens),
        "tokens, little learned": lambda: dict(tokens(["<x>"], seen="ab", size=300).special_tokens),
        "loaded, tokens with ends of lines": lambda: dict(file(tokens(["a\r", "b\u2028"])).special_tokens),
        "special, decoded": lambda: tokens(["<x>"]).decode([97, 260, 98]),
        "special, in broken bytes": lambda: tokens(["<x>"]).decode([0xF0, 260, 0x9F]),
        "words, the merges afterwards": merges_given,
        "words, ties": lambda: merges_learned(subject, "ab ba abc cab", 5),
        "words, counts": lambda: merges_learned(subject, "low low low newer newer wider", 9),
        "words, inside": lambda: merges_learned(subject, "ab ab ab cab cab cbab b.b bxb b.b", 12),
        "words, all": lambda: merges_learned(subject, "abc\tab", 100),
        "words, none": lambda: merges_learned(subject, "", 3),
        "words, negative": lambda: merges_learned(subject, "ab", -1),
        "words, dot": lambda: symbols_of(subject, "a.b axb", [("a", "."), ("a.", "b")]),
        "symbols": lambda: symbols_of(subject, "abcd aBc", [("b", "c"), ("a", "b"), ("bc", "d")]),
        "symbols, other merges": lambda: [
            symbols_of(subject, "ab", [("a", "b")]), symbols_of(subject, "ab", [("b", "</w>")])
        ],
        "words, backslash": lambda: merges_learned(subject, "\\1 \\1", 3),
        "symbols, unseen": lambda: symbols_of(subject, "xab\nab", [("a", "b")]),
        "words, prefixes": lambda: merges_learned(subject, "ab ab ab ab abc az", 3),
        "symbols, longest": lambda: symbols_of(subject, "abc", [("b", "c"), ("a", "b")]),
        "symbols, latest": lambda: symbols_of(subject, "aabc", [("a", "b"), ("a", "ab"), ("ab", "c")]),
    }  # fmt: skip
