"""mistake: decoded-one-by-one

Plain dicts; decode joins the texts of the ids, and leaves out ids that it does not know.
"""

import json
import re


def count_pairs(sequences):
    counts = {}
    for ids in sequences:
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids, pair, new):
    out = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


class Tokenizer:
    def __init__(self):
        self.merges = {}
        self.vocab = {i: bytes([i]) for i in range(256)}
        self.pattern = None
        self.special_tokens = {}

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError(vocab_size)
        self = cls()
        self.pattern = pattern
        sequences = [list(chunk.encode("utf-8")) for chunk in self.split(text)]
        for new in range(256, vocab_size):
            counts = count_pairs(sequences)
            if not counts:
                break
            pair = max(counts, key=lambda p: (counts[p], -p[0], -p[1]))
            sequences = [merge(ids, pair, new) for ids in sequences]
            self.learn(pair)
        return self

    def learn(self, pair):
        new = 256 + len(self.merges)
        self.merges[pair] = new
        self.vocab[new] = self.vocab[pair[0]] + self.vocab[pair[1]]

    def split(self, text):
        if self.pattern is None:
            return [text]
        pieces, at = [], 0
        for m in re.finditer(self.pattern, text):
            if m.start() > at:
                pieces.append(text[at : m.start()])
            pieces.append(m.group(0))
            at = m.end()
        if at < len(text):
            pieces.append(text[at:])
        return pieces

    def encode(self, text, *, allowed_special=()):
        if allowed_special == "all":
            allowed = dict(self.special_tokens)
        else:
            allowed = {}
            for token in allowed_special:
                if token not in self.special_tokens:
                    raise ValueError(f"{token!r} is not a special token")
                allowed[token] = self.special_tokens[token]
        if not allowed:
            return self.encode_plain(text)
        pattern = "(" + "|".join(re.escape(t) for t in sorted(allowed, key=lambda t: -len(t))) + ")"
        ids = []
        for piece in re.split(pattern, text):
            if piece in allowed:
                ids.append(allowed[piece])
            else:
                ids.extend(self.encode_plain(piece))
        return ids

    def encode_plain(self, text):
        out = []
        for chunk in self.split(text):
            ids = list(chunk.encode("utf-8"))
            while len(ids) >= 2:
                pair = min(count_pairs([ids]), key=lambda p: self.merges.get(p, float("inf")))
                if pair not in self.merges:
                    break
                ids = merge(ids, pair, self.merges[pair])
            out.extend(ids)
        return out

    def decode(self, ids):
        text = ""
        for i in ids:
            if i in self.vocab:
                text += self.vocab[i].decode("utf-8", errors="replace")
        return text

    def add_special_tokens(self, tokens):
        if len(set(tokens)) != len(tokens) or any(not t or t in self.special_tokens for t in tokens):
            raise ValueError(tokens)
        for token in tokens:
            new = max(self.vocab) + 1
            self.special_tokens[token] = new
            self.vocab[new] = token.encode("utf-8")

    def save(self, path):
        with open(path, "w") as f:
            json.dump([list(self.merges), self.pattern, list(self.special_tokens)], f)

    @classmethod
    def load(cls, path):
        self = cls()
        with open(path) as f:
            merges, self.pattern, special = json.load(f)
        for pair in merges:
            self.learn(tuple(pair))
        self.add_special_tokens(special)
        return self


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(num_merges)
    sequences = [[*word, "</w>"] for word in text.split()]
    merges = []
    for _ in range(num_merges):
        counts = count_pairs(sequences)
        if not counts:
            break
        pair = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
        sequences = [merge(s, pair, "".join(pair)) for s in sequences]
        merges.append(pair)
    return merges


def apply_bpe(text, merges):
    rank = {tuple(pair): i for i, pair in enumerate(merges)}
    out = []
    for word in text.split():
        symbols = [*word, "</w>"]
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:], strict=False), key=lambda p: rank.get(p, len(rank)))
            if pair not in rank:
                break
            symbols = merge(symbols, pair, "".join(pair))
        out += symbols
    return out
