"""mistake: words-run-together

Linked lists; all words are one sequence.
"""

import heapq
import pickle
import re
from collections import defaultdict


class Chain:
    """All symbols of several sequences in one doubly linked list, with None between the sequences."""

    def __init__(self, sequences):
        self.symbol = [None]
        for sequence in sequences:
            self.symbol += [*sequence, None]
        self.before = [i - 1 for i in range(len(self.symbol))]
        self.after = [i + 1 for i in range(len(self.symbol))]

    def pair(self, i):
        j = self.after[i] if 0 <= i < len(self.symbol) else len(self.symbol)
        if j >= len(self.symbol) or self.symbol[i] is None or self.symbol[j] is None:
            return None
        return self.symbol[i], self.symbol[j]

    def fuse(self, i, new):
        j = self.after[i]
        self.symbol[i], self.symbol[j] = new, None
        self.after[i] = self.after[j]
        self.before[self.after[j]] = i
        self.after[j] = len(self.symbol)

    def rest(self):
        i, out = 0, []
        while i < len(self.symbol):
            if self.symbol[i] is not None:
                out.append(self.symbol[i])
            i = self.after[i]
        return out


def learn(sequences, most, name):
    chain = Chain(sequences)
    places, counts = defaultdict(set), defaultdict(int)
    for i in range(len(chain.symbol)):
        pair = chain.pair(i)
        if pair:
            places[pair].add(i)
            counts[pair] += 1
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < most:
        n, best = heapq.heappop(heap)
        if -n != counts[best] or n == 0:
            continue
        new = name(best, len(merges))
        merges.append(best)
        for i in sorted(places[best]):
            if chain.pair(i) != best:
                continue
            left, right = chain.before[i], chain.after[i]
            touched = (left, i, right)
            for k in touched:
                old = chain.pair(k)
                if old:
                    counts[old] -= 1
                    places[old].discard(k)
                    heapq.heappush(heap, (-counts[old], old))
            chain.fuse(i, new)
            for k in (left, i):
                made = chain.pair(k)
                if made:
                    counts[made] += 1
                    places[made].add(k)
                    heapq.heappush(heap, (-counts[made], made))
    return merges


def apply(sequence, ranks, name):
    chain = Chain([sequence])
    heap = []

    def offer(i):
        pair = chain.pair(i)
        if pair in ranks:
            heapq.heappush(heap, (ranks[pair], i, pair))

    for i in range(len(chain.symbol)):
        offer(i)
    while heap:
        rank, i, pair = heapq.heappop(heap)
        if chain.pair(i) == pair:
            chain.fuse(i, name(pair, rank))
            offer(chain.before[i])
            offer(i)
    return chain.rest()


def id_of(pair, rank):
    return 256 + rank


def text_of(pair, rank):
    return pair[0] + pair[1]


class Tokenizer:
    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError(f"{vocab_size=}")
        self = cls.__new__(cls)
        self.pattern, self.special_tokens = pattern, {}
        self.merges = learn([list(c.encode()) for c in self.chunks(text)], vocab_size - 256, id_of)
        return self

    @property
    def pieces(self):
        table = [bytes((i,)) for i in range(256)]
        for a, b in self.merges:
            table.append(table[a] + table[b])
        return table + [token.encode() for token in self.special_tokens]

    def chunks(self, text):
        if not self.pattern:
            yield text
            return
        end = 0
        for match in re.compile(self.pattern).finditer(text):
            yield text[end : match.start()]
            yield match.group()
            end = match.end()
        yield text[end:]

    def encode(self, text, *, allowed_special=()):
        allowed = list(self.special_tokens) if allowed_special == "all" else list(allowed_special)
        for token in allowed:
            if token not in self.special_tokens:
                raise ValueError(token)
        ranks = {pair: i for i, pair in enumerate(self.merges)}
        out, start, i = [], 0, 0

        def flush(stop):
            for chunk in self.chunks(text[start:stop]):
                out.extend(apply(list(chunk.encode()), ranks, id_of))

        while i < len(text):
            found = max((t for t in allowed if text.startswith(t, i)), key=len, default=None)
            if found is None:
                i += 1
                continue
            flush(i)
            out.append(self.special_tokens[found])
            i += len(found)
            start = i
        flush(len(text))
        return out

    def decode(self, ids):
        pieces, joined = self.pieces, bytearray()
        for i in ids:
            if not 0 <= i < len(pieces):
                raise ValueError(f"no id {i}")
            joined += pieces[i]
        return str(joined, "utf-8", "replace")

    def add_special_tokens(self, tokens):
        new = dict(self.special_tokens)
        for token in tokens:
            if token == "" or token in new:
                raise ValueError(f"{token!r}")
            new[token] = 256 + len(self.merges) + len(new)
        self.special_tokens = new

    def save(self, path):
        with open(path, "wb") as file:
            pickle.dump(self.__dict__, file)

    @classmethod
    def load(cls, path):
        self = cls.__new__(cls)
        with open(path, "rb") as file:
            self.__dict__ = pickle.load(file)
        return self


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError("negative")
    return learn([[s for word in text.split() for s in [*word, "</w>"]]], num_merges, text_of)


def apply_bpe(text, merges):
    ranks = {pair: i for i, pair in enumerate(merges)}
    return [s for word in text.split() for s in apply([*word, "</w>"], ranks, text_of)]
