"""Ranks belong to byte strings, one merge at a time; part 3 keeps words as strings of symbols with spaces."""

import re
from collections import defaultdict


def _spans(pattern, text):
    if pattern is None:
        return [text]
    out, last = [], 0
    for m in re.finditer(pattern, text):
        out.append(text[last : m.start()])
        out.append(m.group())
        last = m.end()
    out.append(text[last:])
    return out


class Tokenizer:
    def __init__(self, ranks, merges, pattern, special_tokens=None):
        self._ranks = ranks  # bytes → id
        self._bytes = {i: b for b, i in ranks.items()}
        self.merges = merges
        self._pattern = pattern
        self.special_tokens = special_tokens if special_tokens is not None else {}

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError("vocab_size must be at least 256, so we can encode all bytes")
        ranks = {bytes([i]): i for i in range(256)}
        words = [[bytes([b]) for b in w.encode("utf-8")] for w in _spans(pattern, text)]
        merges = []
        while len(ranks) < vocab_size:
            stats = defaultdict(int)
            for piece in words:
                for pair in zip(piece[:-1], piece[1:]):
                    stats[ranks[pair[0]], ranks[pair[1]]] += 1
            if not stats:
                break
            n = max(stats.values())
            ids = min(p for p, c in stats.items() if c == n)
            back = {i: b for b, i in ranks.items()}
            pair = back[ids[0]], back[ids[1]]
            merges.append(ids)
            ranks[pair[0] + pair[1]] = len(ranks)
            new_words = []
            for word in words:
                new, i = [], 0
                while i < len(word) - 1:
                    if (word[i], word[i + 1]) == pair:
                        new.append(word[i] + word[i + 1])
                        i += 2
                    else:
                        new.append(word[i])
                        i += 1
                if i == len(word) - 1:
                    new.append(word[i])
                new_words.append(new)
            words = new_words
        return cls(ranks, merges, pattern)

    def _bpe(self, data):
        parts = [bytes([b]) for b in data]
        while True:
            min_idx = min_rank = None
            for i, pair in enumerate(zip(parts[:-1], parts[1:])):
                rank = self._ranks.get(pair[0] + pair[1])
                if rank is not None and (min_rank is None or rank < min_rank):
                    min_idx, min_rank = i, rank
            if min_rank is None:
                break
            parts = parts[:min_idx] + [parts[min_idx] + parts[min_idx + 1]] + parts[min_idx + 2 :]
        return [self._ranks[p] for p in parts]

    def encode(self, text, *, allowed_special=()):
        if allowed_special == "all":
            allowed_special = set(self.special_tokens)
        if bad := set(allowed_special) - set(self.special_tokens):
            raise ValueError(f"{bad} not special")
        out = []
        while True:
            m = None
            if allowed_special:
                m = re.search("|".join(re.escape(t) for t in sorted(allowed_special, reverse=True)), text)
            for chunk in _spans(self._pattern, text[: m.start()] if m else text):
                out.extend(self._bpe(chunk.encode("utf-8")))
            if m is None:
                return out
            out.append(self.special_tokens[m.group()])
            text = text[m.end() :]

    def decode(self, ids):
        special = {i: t.encode("utf-8") for t, i in self.special_tokens.items()}
        out = []
        for i in ids:
            b = self._bytes.get(i, special.get(i))
            if b is None:
                raise ValueError(f"Invalid token id {i}")
            out.append(b)
        return b"".join(out).decode("utf-8", errors="replace")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(repr((self._ranks, self.merges, self._pattern, self.special_tokens)))

    @classmethod
    def load(cls, path):
        from ast import literal_eval

        with open(path, encoding="utf-8") as f:
            return cls(*literal_eval(f.read()))

    def add_special_tokens(self, tokens):
        tokens = list(tokens)
        for t in tokens:
            if not t or tokens.count(t) > 1 or t in self.special_tokens:
                raise ValueError(t)
        n = len(self._ranks) + len(self.special_tokens)
        self.special_tokens.update(zip(tokens, range(n, n + len(tokens))))


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(num_merges)
    vocab = defaultdict(int)
    for w in text.split():
        vocab[" ".join(w) + " </w>"] += 1
    merges = []
    for _ in range(num_merges):
        pairs = defaultdict(int)
        for word, freq in vocab.items():
            symbols = word.split(" ")
            for i in range(len(symbols) - 1):
                pairs[symbols[i], symbols[i + 1]] += freq
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        p = re.compile(r"(?<!\S)" + re.escape(" ".join(best)) + r"(?!\S)")
        new = defaultdict(int)
        for word, freq in vocab.items():
            new[p.sub(lambda _: "".join(best), word)] += freq
        vocab = new
        merges.append(best)
    return merges


def apply_bpe(text, merges):
    codes = dict((tuple(p), i) for i, p in reversed(list(enumerate(merges))))
    cache, out = {}, []
    for orig in text.split():
        if orig not in cache:
            word = tuple(orig) + ("</w>",)
            while len(word) > 1:
                first, second = bigram = min(zip(word, word[1:]), key=lambda p: codes.get(p, float("inf")))
                if bigram not in codes:
                    break
                new_word, i = [], 0
                while i < len(word):
                    try:
                        j = word.index(first, i)
                    except ValueError:
                        new_word.extend(word[i:])
                        break
                    new_word.extend(word[i:j])
                    i = j
                    if i < len(word) - 1 and word[i + 1] == second:
                        new_word.append(first + second)
                        i += 2
                    else:
                        new_word.append(word[i])
                        i += 1
                word = tuple(new_word)
            cache[orig] = word
        out += cache[orig]
    return out
