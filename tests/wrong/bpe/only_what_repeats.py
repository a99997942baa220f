"""mistake: pairs-that-stand-once-left

NumPy; training and learning end at the first pair that stands once.
"""

import re

import numpy as np

WIDE = 2**32


def flat(chunks):
    parts = [np.array([-1])]
    for chunk in chunks:
        parts += [np.frombuffer(chunk.encode(), dtype=np.uint8).astype(np.int64), np.array([-1])]
    return np.concatenate(parts)


def replace(ids, left, right, new):
    hits = (ids[:-1] == left) & (ids[1:] == right)
    at = np.flatnonzero(hits)
    if left == right and len(at):
        # Of a run of hits every other one counts, from its start.
        start = np.concatenate([[True], np.diff(at) != 1])
        first = np.maximum.accumulate(np.where(start, np.arange(len(at)), 0))
        at = at[(np.arange(len(at)) - first) % 2 == 0]
    out = ids.copy()
    out[at] = new
    return np.delete(out, at + 1)


def keys(ids):
    both = (ids[:-1] >= 0) & (ids[1:] >= 0)
    return ids[:-1][both] * WIDE + ids[1:][both]


class Tokenizer:
    def __init__(self, merges=(), pattern="", special=()):
        self.table = np.array(list(merges), dtype=np.int64).reshape(-1, 2)
        self.pattern = pattern
        self.special = list(special)

    @property
    def merges(self):
        return [tuple(row) for row in self.table.tolist()]

    @property
    def special_tokens(self):
        return {token: 256 + len(self.table) + i for i, token in enumerate(self.special)}

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError(f"vocab_size is {vocab_size}")
        self = cls(pattern=pattern or "")
        ids, merges = flat(self.chunks(text)), []
        while len(merges) < vocab_size - 256:
            pairs, counts = np.unique(keys(ids), return_counts=True)
            if len(pairs) == 0 or counts.max() < 2:
                break
            left, right = divmod(int(pairs[counts.argmax()]), WIDE)
            ids = replace(ids, left, right, 256 + len(merges))
            merges.append((left, right))
        return cls(merges, self.pattern)

    def chunks(self, text):
        if not self.pattern:
            return [text]
        spans = [m.span() for m in re.finditer(self.pattern, text)]
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    def encode(self, text, *, allowed_special=()):
        table = self.special_tokens
        if allowed_special == "all":
            allowed_special = table
        if not set(allowed_special) <= set(table):
            raise ValueError(str(allowed_special))
        out, begin = [], 0
        if allowed_special:
            names = sorted(allowed_special, key=len)[::-1]
            for match in re.finditer("|".join(map(re.escape, names)), text):
                out += self.plain(text[begin : match.start()]) + [table[match[0]]]
                begin = match.end()
        return out + self.plain(text[begin:])

    def plain(self, text):
        ids = flat(self.chunks(text))
        for new, (left, right) in enumerate(self.table.tolist(), 256):
            ids = replace(ids, left, right, new)
        return ids[ids >= 0].tolist()

    def decode(self, ids):
        pieces = [bytes([i]) for i in range(256)]
        for left, right in self.table.tolist():
            pieces.append(pieces[left] + pieces[right])
        pieces += [token.encode() for token in self.special]
        ids = np.array(ids, dtype=np.int64)
        if ((ids < 0) | (ids >= len(pieces))).any():
            raise ValueError(f"{ids} are not all below {len(pieces)}")
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    def add_special_tokens(self, tokens):
        new = self.special + list(tokens)
        if "" in new or sorted(set(new)) != sorted(new):
            raise ValueError(str(tokens))
        self.special = new

    def save(self, path):
        with open(path, "wb") as file:
            np.savez(file, table=self.table, texts=np.array([self.pattern, *self.special], dtype=object))

    @classmethod
    def load(cls, path):
        with np.load(path, allow_pickle=True) as file:
            pattern, *special = file["texts"].tolist()
            return cls(file["table"], pattern, special)


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(str(num_merges))
    names = sorted(set("".join(text.split())) | {"</w>"})
    number = {name: i for i, name in enumerate(names)}
    ids = np.array([-1] + [i for w in text.split() for i in [*(number[c] for c in w), number["</w>"], -1]])
    merges = []
    while len(merges) < num_merges:
        pairs, counts = np.unique(keys(ids), return_counts=True)
        if not len(pairs) or counts.max() == 1:
            break
        best = [divmod(int(p), WIDE) for p in pairs[counts == counts.max()]]
        left, right = min(best, key=lambda p: (names[p[0]], names[p[1]]))
        merges.append((names[left], names[right]))
        names.append(names[left] + names[right])
        ids = replace(ids, left, right, len(names) - 1)
    return merges


def apply_bpe(text, merges):
    out = []
    for word in text.split():
        symbols = np.array([*word, "</w>"], dtype=object)
        for left, right in merges:
            i = 0
            while i + 1 < len(symbols):
                if symbols[i] == left and symbols[i + 1] == right:
                    symbols = np.concatenate([symbols[:i], [left + right], symbols[i + 2 :]]).astype(object)
                i += 1
        out += symbols.tolist()
    return out
