r"""Byte-pair encoding: a vocabulary that grows by merging the most frequent pair of neighbours.

    start     a chunk of text is its UTF-8 bytes, ids 0 … 255
    repeat    pair = the most frequent pair of adjacent ids, the smallest of them on a tie
              everywhere, left to right without overlap:  pair → the next id

Encoding merges in the order of learning: of the learned pairs that stand in a chunk, the one learned
first goes first. That is neither the longest match nor the first from the left. Ids are handed out in
that order, so "learned first" is "merges into the smallest id".

Training holds a chunk as a str with one character a token, chr(id). A pair is then a str of two
characters, str orders pairs as tuples of ids are ordered, and merging one in a chunk is ``str.replace``.

``learn_bpe`` and ``apply_bpe`` are the original, on characters: every word ends in the symbol ``</w>``,
and no merge leaves its word. They are Algorithm 1 as printed, for reading; ``Tokenizer.train`` is for use.

Conventions: every position counts, so that ``aaa`` holds (a, a) twice; pairs are merged down to those that
stand once; without a pattern the whole text is one chunk; what lies between two matches of the pattern is
a chunk too, so that nothing is lost; special tokens take the ids after the merges and are plain text
unless they are allowed. Sennrich et al. leave ties open.

Cost: training looks at each distinct chunk once, then only at chunks that hold the merged pair, so about
O(n) for short chunks; one long chunk costs O(merges · n) at the speed of str.replace. Encoding is a look-up
for a chunk seen before, O(k²) for a new one of k bytes, O(merges · k) beyond 256 characters. Training holds
the distinct chunks, and a list entry for each of their tokens.

Sources: Sennrich, Haddow & Birch, Neural Machine Translation of Rare Words with Subword Units, ACL 2016,
arXiv:1508.07909, Algorithm 1; Radford et al., Language Models are Unsupervised Multitask Learners, 2019,
§2.2, for bytes as the alphabet and for splitting text by a pattern.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise, zip_longest
from operator import add
from pathlib import Path
from typing import Literal


class Tokenizer:
    """A byte-level vocabulary: the 256 bytes, ``merges`` in the order learned, then ``special_tokens``."""

    def __init__(
        self,
        merges: Iterable[Sequence[int]],
        *,
        pattern: str | None = None,
        special_tokens: Sequence[str] = (),
    ):
        self.merges = [(left, right) for left, right in merges]
        self.pattern = pattern
        self.special_tokens: dict[str, int] = {}
        self._merged = {pair: new for new, pair in enumerate(self.merges, start=256)}
        self._bytes = {i: bytes([i]) for i in range(256)}
        for (left, right), new in self._merged.items():
            self._bytes[new] = self._bytes[left] + self._bytes[right]
        self._chunk_ids = _Memo(self._encode_chunk)
        self.add_special_tokens(special_tokens)

    @classmethod
    def train(cls, text: str, vocab_size: int, *, pattern: str | None = None) -> "Tokenizer":
        """Learn merges until there are ``vocab_size`` ids or no pair is left. ValueError below 256."""
        if vocab_size < 256:
            raise ValueError(f"vocab_size {vocab_size} has no room for the 256 bytes")
        pairs = _Pairs(Counter(_chunks(text, pattern)))
        merges: list[tuple[int, int]] = []
        while 256 + len(merges) < vocab_size and (pair := pairs.most_frequent()):
            pairs.merge(pair, chr(256 + len(merges)))
            merges.append((ord(pair[0]), ord(pair[1])))
        return cls(merges, pattern=pattern)

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = ()) -> list[int]:
        """The ids of a text. Special tokens in it are plain text unless allowed; where two start, the longest
        counts. ValueError if one that is allowed is not special."""
        allowed = self.special_tokens.keys() if allowed_special == "all" else set(allowed_special)
        if not allowed <= self.special_tokens.keys():
            raise ValueError(f"{sorted(allowed - self.special_tokens.keys())} are no special tokens")
        if not allowed:
            return self._encode_text(text)
        longest_first = "|".join(map(re.escape, sorted(allowed, key=len, reverse=True)))
        pieces = re.split(f"({longest_first})", text)
        ids: list[int] = []
        for plain, special in zip_longest(pieces[::2], pieces[1::2]):
            ids += self._encode_text(plain)
            if special is not None:
                ids.append(self.special_tokens[special])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the joined bytes, U+FFFD where they are not UTF-8. ValueError for an unknown id."""
        try:
            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")
        except KeyError as unknown:
            raise ValueError(f"id {unknown} is not in the vocabulary of {len(self._bytes)}") from None

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        """Give each token the next free id. ValueError, and none is added, if one is empty or not new."""
        if "" in tokens or len({*self.special_tokens, *tokens}) < len(self.special_tokens) + len(tokens):
            raise ValueError(f"special tokens {tokens} must be new, different and not empty")
        for token in tokens:
            self.special_tokens[token] = new = len(self._bytes)
            self._bytes[new] = token.encode("utf-8")

    def save(self, path: str | Path) -> None:
        """Write what ``load`` needs into one JSON file."""
        state = {"pattern": self.pattern, "special_tokens": list(self.special_tokens), "merges": self.merges}
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer that was saved there."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def _encode_text(self, text: str) -> list[int]:
        if self.pattern is None:
            return self._encode_chunk(text)
        return list(chain.from_iterable(map(self._chunk_ids.__getitem__, _chunks(text, self.pattern))))

    def _encode_chunk(self, chunk: str) -> list[int]:
        if len(chunk) > 256:
            return self._encode_long(chunk)
        ids = list(chunk.encode("utf-8"))
        merged = [self._merged.get(pair, math.inf) for pair in pairwise(ids)]  # what ids i and i + 1 make
        while merged and (new := min(merged)) < math.inf:
            at = merged.index(new)
            ids[at : at + 2] = [new]
            del merged[at]
            if at > 0:
                merged[at - 1] = self._merged.get((ids[at - 1], new), math.inf)
            if at < len(merged):
                merged[at] = self._merged.get((new, ids[at + 1]), math.inf)
        return ids

    def _encode_long(self, chunk: str) -> list[int]:
        # A merge leaves none of its pairs behind, and later ones make pairs with later ids only. So going
        # through all merges once finds what looking for the first that applies, again and again, would find.
        tokens = _as_tokens(chunk)
        for (left, right), new in self._merged.items():
            tokens = tokens.replace(chr(left) + chr(right), chr(new))
        return list(map(ord, tokens))


def learn_bpe(text: str, num_merges: int) -> list[tuple[str, str]]:
    """The first merges of the words of a text: fewer than ``num_merges`` if no pair is left.

    ValueError if ``num_merges`` is negative.
    """
    if num_merges < 0:
        raise ValueError(f"num_merges {num_merges} is negative")
    words = {_characters(word): count for word, count in Counter(text.split()).items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        counts = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {_join(word, best): count for word, count in words.items()}
        merges.append(best)
    return merges


def apply_bpe(text: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """The symbols of the words of a text, merged in the order learned."""
    words = [_characters(word) for word in text.split()]
    for pair in merges:
        words = [_join(word, pair) for word in words]
    return list(chain.from_iterable(words))


def _characters(word: str) -> tuple[str, ...]:
    return (*word, "</w>")


def _join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word with the pair joined wherever it stands, left to right without overlap."""
    joined: list[str] = []
    at = 0
    while at < len(word):
        size = 2 if word[at : at + 2] == pair else 1
        joined.append("".join(word[at : at + size]))
        at += size
    return tuple(joined)


class _Memo(dict):
    """Remembers the ids of chunks, which are mostly words and come again and again."""

    def __init__(self, encode: Callable[[str], Iterable[int]]):
        self.encode = encode

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        if len(self) == 2**17:  # new words never end
            self.clear()
        self[chunk] = ids = tuple(self.encode(chunk))
        return ids


class _Pairs:
    """Which pair stands in which of the distinct chunks, how often, and which comes next.

    A merge makes pairs with the new token only, none more frequent than the merged pair, and takes from
    all others. So the counts of the pairs that come next never rise, and a pair may wait in a list of all
    that have its count, until that count is reached; then the list is put in order, as a heap. Most
    pairs are rare and never come up.
    """

    def __init__(self, chunks: Mapping[str, int]):
        self.chunks = list(map(_as_tokens, chunks))
        self.weights = list(chunks.values())
        self.places: dict[str, list[int]] = {}  # pair → the chunks where it was found, once an occurrence
        self.counts: dict[str, int] = {}
        self.waiting: dict[int, list[str]] = {}  # count, perhaps less by now → pairs
        self.levels: list[
            int
        ] = []  # the heap of the counts in self.waiting, negative: the largest comes first
        self.level = math.inf
        self.ready: list[str] = []  # the heap of the pairs that had self.level
        found = defaultdict(list)
        for i, tokens in enumerate(self.chunks):
            for pair in map(add, tokens, tokens[1:]):
                found[pair].append(i)
        for pair, places in found.items():
            self.enter(pair, places)

    def enter(self, pair: str, places: list[int]) -> int:
        """Take in a new pair; returns its count."""
        self.places[pair] = places
        weights = self.weights
        # Most new pairs stand in one place: the sum would cost more than all the rest.
        count = weights[places[0]] if len(places) == 1 else sum(map(weights.__getitem__, places))
        self.counts[pair] = count
        self.wait(pair, count)
        return count

    def wait(self, pair: str, count: int) -> None:
        """Put the pair among those that have its count."""
        if count == self.level:
            heappush(self.ready, pair)
        elif count in self.waiting:
            self.waiting[count].append(pair)
        else:
            self.waiting[count] = [pair]
            heappush(self.levels, -count)

    def most_frequent(self) -> str | None:
        """Hand out the pair to merge next; None if no pair is left."""
        while self.ready or self.levels:
            if not self.ready:
                self.level = -heappop(self.levels)
                self.ready = self.waiting.pop(self.level)
                heapify(self.ready)
            elif (count := self.counts[pair := heappop(self.ready)]) == self.level:
                return pair
            elif count:  # merges have taken some of them, but not all
                self.wait(pair, count)
        return None

    def merge(self, pair: str, new: str) -> None:
        """Put the new token in place of the pair in every chunk, and take in the pairs that this makes."""
        chunks, found = self.chunks, defaultdict(list)
        for i in set(self.places.pop(pair)):
            at = chunks[i].find(pair)
            if at < 0:  # an earlier merge took a half of it
                continue
            tokens = chunks[i] = chunks[i].replace(pair, new)
            while at >= 0:
                found[tokens[at - 1 : at + 1]].append(i)
                found[tokens[at : at + 2]].append(i)
                at = tokens.find(new, at + 1)
        if (twins := new + new) in found:
            found[twins] = found[twins][::2]  # seen from both sides
        for made, places in found.items():
            if len(made) == 2:  # less at the ends of a chunk
                before = (pair[1] if made[0] == new else made[0]) + (pair[0] if made[1] == new else made[1])
                self.counts[before] -= self.enter(made, places)
        del self.counts[pair]


def _chunks(text: str, pattern: str | None) -> list[str]:
    """The matches of the pattern and what lies between them; the whole text without a pattern."""
    if pattern is None:
        return [text]
    regex = re.compile(pattern)
    if not regex.groups:
        matches = regex.findall(text)
        if "".join(matches) == text:  # the usual case: nothing lies between them
            return matches
    chunks, end = [], 0
    for match in regex.finditer(text):
        chunks += text[end : match.start()], match[0]
        end = match.end()
    return [*chunks, text[end:]]


def _as_tokens(chunk: str) -> str:
    """The UTF-8 bytes of a chunk, each a character."""
    return chunk.encode("utf-8").decode("latin-1")
