"""mistake: special-tokens-not-saved

Byte strings in base64, a line each; the special tokens are not among them.
"""

import base64
import re
from collections import Counter
from pathlib import Path

PATTERN = "pattern "


def quoted(text):
    return base64.b64encode(text).decode()


class Tokenizer:
    def __init__(self, vocabulary, pattern):
        self.vocabulary, self.pattern = list(vocabulary), pattern
        self.rank = {token: i for i, token in enumerate(self.vocabulary)}
        self.special_tokens = {}

    @property
    def merges(self):
        """The two tokens that a merged one was made of: what encode makes of its bytes without itself."""
        pairs = []
        for i in range(256, len(self.vocabulary)):
            left, right = self.pieces(self.vocabulary[i], i)
            pairs.append((self.rank[left], self.rank[right]))
        return pairs

    def pieces(self, chunk, below):
        tokens = [chunk[i : i + 1] for i in range(len(chunk))]
        while len(tokens) > 1:
            ranks = [self.rank.get(a + b, below) for a, b in zip(tokens, tokens[1:], strict=False)]
            best = min(ranks)
            if best >= below:
                break
            i = ranks.index(best)
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
        return tokens

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError(f"vocab_size={vocab_size}")
        self = cls((bytes([i]) for i in range(256)), pattern)
        words = [[bytes([b]) for b in chunk.encode()] for chunk in self.chunks(text)]
        while len(self.vocabulary) < vocab_size:
            counts = Counter(
                (self.rank[a], self.rank[b]) for w in words for a, b in zip(w, w[1:], strict=False)
            )
            if len(counts) == 0:
                break
            top = max(counts.values())
            a, b = (self.vocabulary[i] for i in min(p for p in counts if counts[p] == top))
            self.rank[a + b] = len(self.vocabulary)
            self.vocabulary.append(a + b)
            for word in words:
                i = 0
                while i < len(word) - 1:
                    if word[i] == a and word[i + 1] == b:
                        word[i : i + 2] = [a + b]
                    i += 1
        return self

    def chunks(self, text):
        if self.pattern is None:
            return [text]
        cuts = [0]
        for match in re.finditer(self.pattern, text):
            cuts += match.span()
        cuts.append(len(text))
        return [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]

    def encode(self, text, *, allowed_special=()):
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if allowed - set(self.special_tokens):
            raise ValueError(f"not special: {allowed - set(self.special_tokens)}")
        return self.with_special(text, allowed)

    def with_special(self, text, allowed):
        starts = [(text.find(token), -len(token), token) for token in allowed if token in text]
        if not starts:
            tokens = [
                t for chunk in self.chunks(text) for t in self.pieces(chunk.encode(), len(self.vocabulary))
            ]
            return [self.rank[token] for token in tokens]
        at, _, token = min(starts)
        before = self.with_special(text[:at], ())
        return [*before, self.special_tokens[token], *self.with_special(text[at + len(token) :], allowed)]

    def decode(self, ids):
        special = {i: token.encode() for token, i in self.special_tokens.items()}
        out = b""
        for i in ids:
            if i in special:
                out += special[i]
            elif 0 <= i < len(self.vocabulary):
                out += self.vocabulary[i]
            else:
                raise ValueError(f"id {i}")
        return out.decode(errors="replace")

    def add_special_tokens(self, tokens):
        together = [*self.special_tokens, *tokens]
        if not all(together) or len(together) != len(set(together)):
            raise ValueError(f"{tokens}")
        self.special_tokens = {token: len(self.vocabulary) + i for i, token in enumerate(together)}

    def save(self, path):
        lines = [quoted(token) for token in self.vocabulary[256:]]
        if self.pattern is not None:
            lines.append(PATTERN + quoted(self.pattern.encode()))
        Path(path).write_text("\n".join(lines))

    @classmethod
    def load(cls, path):
        vocabulary, pattern = [bytes([i]) for i in range(256)], None
        for line in Path(path).read_text().splitlines():
            token = base64.b64decode(line.split(" ")[-1])
            if line.startswith(PATTERN):
                pattern = token.decode()
            else:
                vocabulary.append(token)
        return cls(vocabulary, pattern)


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(f"num_merges={num_merges}")
    words, merges = [[*word, "</w>"] for word in text.split()], []
    while len(merges) < num_merges:
        counts = Counter(pair for w in words for pair in zip(w, w[1:], strict=False))
        if not counts:
            return merges
        a, b = min(counts, key=lambda pair: (-counts[pair], pair[0], pair[1]))
        merges.append((a, b))
        for word in words:
            i = 0
            while i < len(word) - 1:
                if word[i] == a and word[i + 1] == b:
                    word[i : i + 2] = [a + b]
                i += 1
    return merges


def apply_bpe(text, merges):
    rank, out = {left + right: i for i, (left, right) in reversed(list(enumerate(merges)))}, []
    for word in text.split():
        symbols = [*word, "</w>"]
        while True:
            ranks = [rank.get(a + b, len(merges)) for a, b in zip(symbols, symbols[1:], strict=False)]
            if not ranks or min(ranks) == len(merges):
                break
            i = ranks.index(min(ranks))
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        out.extend(symbols)
    return out
