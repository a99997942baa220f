"""mistake: pattern-forgotten-in-encode

Strings all the way; encode replays the merges on the whole text.
"""

import re
from collections import Counter


def as_string(text):
    return "".join(map(chr, text.encode()))


class Tokenizer:
    def __init__(self, pairs="", pattern=None, special=()):
        self.pairs, self.pattern, self.special = pairs, pattern, list(special)

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError("too small")
        self = cls(pattern=pattern)
        chunks = [as_string(chunk) for chunk in self.split(text)]
        while 256 + len(self.pairs) // 2 < vocab_size:
            counts = Counter(chunk[i : i + 2] for chunk in chunks for i in range(len(chunk) - 1))
            if not counts:
                break
            pair = max(counts, key=lambda two: (counts[two], [-ord(c) for c in two]))
            chunks = [chunk.replace(pair, chr(256 + len(self.pairs) // 2)) for chunk in chunks]
            self.pairs += pair
        return self

    @property
    def merges(self):
        return [(ord(a), ord(b)) for a, b in zip(self.pairs[::2], self.pairs[1::2], strict=True)]

    @property
    def special_tokens(self):
        return {token: 256 + len(self.pairs) // 2 + i for i, token in enumerate(self.special)}

    def split(self, text):
        if self.pattern is None:
            return [text]
        found, end = [], 0
        for match in re.finditer(self.pattern, text):
            found += [text[end : match.start()], text[match.start() : match.end()]]
            end = match.end()
        return found + [text[end:]]

    def encode(self, text, *, allowed_special=()):
        chosen = self.special if allowed_special == "all" else list(allowed_special)
        if not set(chosen) <= set(self.special):
            raise ValueError(chosen)
        if not chosen:
            return self.replay(text)
        # The longest at a place: sorted in reverse, a token stands before its own beginnings.
        regex = re.compile("|".join(re.escape(token) for token in sorted(chosen, reverse=True)))
        match = regex.search(text)
        if not match:
            return self.encode(text)
        before, after = text[: match.start()], text[match.end() :]
        special = self.special_tokens[match.group()]
        return self.encode(before) + [special] + self.encode(after, allowed_special=chosen)

    def replay(self, chunk):
        tokens = as_string(chunk)
        for i in range(0, len(self.pairs), 2):
            tokens = tokens.replace(self.pairs[i : i + 2], chr(256 + i // 2))
        return [ord(c) for c in tokens]

    def decode(self, ids):
        ids = list(ids)
        learned, known = len(self.pairs) // 2, len(self.pairs) // 2 + len(self.special)
        out = bytearray()
        while ids:
            i = ids.pop(0)
            if i < 0 or i >= 256 + known:
                raise ValueError(i)
            if i < 256:
                out.append(i)
            elif i < 256 + learned:
                ids[:0] = map(ord, self.pairs[2 * (i - 256) :][:2])
            else:
                out += self.special[i - 256 - learned].encode()
        return bytes(out).decode(errors="replace")

    def add_special_tokens(self, tokens):
        wanted = self.special + list(tokens)
        if "" in wanted or any(wanted.count(token) > 1 for token in wanted):
            raise ValueError(tokens)
        self.special = wanted

    def save(self, path):
        with open(path, "w", encoding="ascii") as file:
            for part in ([*map(ord, self.pairs)], self.pattern, self.special):
                print(ascii(part), file=file)

    @classmethod
    def load(cls, path):
        import ast

        with open(path, encoding="ascii") as file:
            pairs, pattern, special = map(ast.literal_eval, file.read().split("\n")[:3])
        return cls("".join(map(chr, pairs)), pattern, special)


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(num_merges)
    symbols = [[*word, "</w>"] for word in text.split()]
    merges = []
    while len(merges) != num_merges:
        pairs = [pair for word in symbols for pair in zip(word[:-1], word[1:], strict=True)]
        if not pairs:
            break
        count, ties = 0, []
        for pair in sorted(set(pairs)):
            if pairs.count(pair) > count:
                count, ties = pairs.count(pair), [pair]
        merges += ties
        symbols = [joined(word, merges[-1]) for word in symbols]
    return merges


def joined(word, pair):
    if len(word) < 2:
        return word
    if tuple(word[:2]) == tuple(pair):
        return [pair[0] + pair[1], *joined(word[2:], pair)]
    return [word[0], *joined(word[1:], pair)]


def apply_bpe(text, merges):
    def one(word):
        symbols = [*word, "</w>"]
        for pair in merges:
            symbols = joined(symbols, pair)
        return symbols

    return sum(map(one, text.split()), [])
