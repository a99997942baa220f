"""mistake: end-glued-to-the-last-letter

Words as strings with spaces between their symbols; the last letter and </w> are one symbol, and no count is refused.
"""

import re
from collections import Counter
from functools import lru_cache
from itertools import accumulate


def spread(ids, pair, new):
    if len(ids) < 2:
        return tuple(ids)
    out, skip = [], False
    for here, following in zip(ids, (*ids[1:], None), strict=True):
        if skip:
            skip = False
        elif (here, following) == pair:
            out.append(new)
            skip = True
        else:
            out.append(here)
    return tuple(out)


class Tokenizer:
    def __init__(self, merges, pattern, special):
        self.merges, self.pattern, self.special_tokens = list(merges), pattern, dict(special)

        @lru_cache(maxsize=10_000)
        def encode_chunk(ids):
            ranked = [self.merges.index(p) for p in set(zip(ids, ids[1:], strict=False)) if p in self.merges]
            return encode_chunk(spread(ids, self.merges[min(ranked)], 256 + min(ranked))) if ranked else ids

        self.encode_chunk = encode_chunk

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size not in range(256, 2**40):
            raise ValueError(vocab_size)
        words = Counter(tuple(chunk.encode()) for chunk in cls([], pattern, {}).split(text))
        merges = []
        while 256 + len(merges) < vocab_size:
            counts = Counter()
            for word, n in words.items():
                for i in range(len(word) - 1):
                    counts[word[i : i + 2]] += n
            if not counts:
                break
            merges.append(sorted(counts, key=lambda pair: (-counts[pair], *pair))[0])
            words = Counter({spread(word, merges[-1], 255 + len(merges)): n for word, n in words.items()})
        return cls(merges, pattern, {})

    def split(self, text):
        if self.pattern is None:
            return (text,)
        regex = re.compile(self.pattern)

        def walk(at):
            while match := regex.search(text, at):
                yield text[at : match.start()]
                yield match.group()
                at = match.end()
            yield text[at:]

        return tuple(walk(0))

    def encode(self, text, *, allowed_special=()):
        names = self.special_tokens if allowed_special == "all" else allowed_special
        for name in names:
            if name not in self.special_tokens:
                raise ValueError(name)
        ids = []
        while text:
            cuts = [(text.index(name), -len(name), name) for name in names if name in text]
            at, _, name = min(cuts, default=(len(text), 0, ""))
            for chunk in self.split(text[:at]):
                ids.extend(self.encode_chunk(tuple(chunk.encode())))
            if name:
                ids.append(self.special_tokens[name])
            text = text[at + len(name) :]
        return ids

    def decode(self, ids):
        names = {i: name for name, i in self.special_tokens.items()}

        def spell(i):
            if i in names:
                return names[i].encode()
            if i in range(256):
                return bytes([i])
            if i in range(256, 256 + len(self.merges)):
                left, right = self.merges[i - 256]
                return spell(left) + spell(right)
            raise ValueError(f"unknown {i}")

        return b"".join(map(spell, ids)).decode("utf-8", "replace")

    def add_special_tokens(self, tokens):
        if any(not t or t in self.special_tokens or tokens.count(t) > 1 for t in tokens):
            raise ValueError(tokens)
        first = 256 + len(self.merges) + len(self.special_tokens)
        self.special_tokens.update(zip(tokens, range(first, first + len(tokens)), strict=True))

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(repr((self.merges, self.pattern, self.special_tokens)))

    @classmethod
    def load(cls, path):
        from ast import literal_eval

        with open(path, encoding="utf-8") as file:
            return cls(*literal_eval(file.read()))


def learn_bpe(text, num_merges):
    words = Counter(" ".join(word) + "</w>" for word in text.split())
    merges = []
    for _ in range(num_merges):
        counts = Counter()
        for word, n in words.items():
            symbols = word.split(" ")
            for pair in zip(symbols, symbols[1:], strict=False):
                counts[pair] += n
        if not counts:
            break
        pair = min(sorted(counts), key=lambda p: -counts[p])
        merges.append(pair)
        words = Counter({fuse(word, pair): n for word, n in words.items()})
    return merges


def fuse(word, pair):
    regex = re.compile(r"(?<!\S)" + re.escape(" ".join(pair)) + r"(?!\S)")
    return regex.sub(lambda match: "".join(pair), word)


def apply_bpe(text, merges):
    out = []
    for word in text.split():
        steps = accumulate(merges, fuse, initial=" ".join(word) + "</w>")
        out.extend(list(steps)[-1].split(" "))
    return out
