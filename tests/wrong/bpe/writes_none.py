"""mistake: no-pattern-read-back-as-a-word"""

import re


def get_stats(ids, counts=None):
    counts = {} if counts is None else counts
    for pair in zip(ids, ids[1:]):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids, pair, idx):
    newids = []
    i = 0
    while i < len(ids):
        if ids[i] == pair[0] and i < len(ids) - 1 and ids[i + 1] == pair[1]:
            newids.append(idx)
            i += 2
        else:
            newids.append(ids[i])
            i += 1
    return newids


class Tokenizer:
    def __init__(self, pattern=None):
        self.pattern = pattern
        self.compiled_pattern = None if pattern is None else re.compile(pattern)
        self._merges = {}
        self.special_tokens = {}
        self.inverse_special_tokens = {}
        self.vocab = self._build_vocab()

    @property
    def merges(self):
        return list(self._merges)

    def _build_vocab(self):
        vocab = {idx: bytes([idx]) for idx in range(256)}
        for (p0, p1), idx in self._merges.items():
            vocab[idx] = vocab[p0] + vocab[p1]
        for special, idx in self.special_tokens.items():
            vocab[idx] = special.encode("utf-8")
        return vocab

    def _split(self, text):
        if self.compiled_pattern is None:
            return [text]
        chunks, last = [], 0
        for m in self.compiled_pattern.finditer(text):
            if last < m.start():
                chunks.append(text[last : m.start()])
            chunks.append(m.group(0))
            last = m.end()
        if last < len(text):
            chunks.append(text[last:])
        return chunks

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError(f"vocab_size {vocab_size} < 256")
        self = cls(pattern)
        ids = [list(ch.encode("utf-8")) for ch in self._split(text)]
        for i in range(vocab_size - 256):
            stats = {}
            for chunk_ids in ids:
                get_stats(chunk_ids, stats)
            if not stats:
                break
            pair = max(stats, key=lambda p: (stats[p], -p[0], -p[1]))
            idx = 256 + i
            ids = [merge(chunk_ids, pair, idx) for chunk_ids in ids]
            self._merges[pair] = idx
        self.vocab = self._build_vocab()
        return self

    def decode(self, ids):
        part_bytes = []
        for idx in ids:
            if idx in self.vocab:
                part_bytes.append(self.vocab[idx])
            else:
                raise ValueError(f"invalid token id: {idx}")
        return b"".join(part_bytes).decode("utf-8", errors="replace")

    def _encode_chunk(self, text_bytes):
        ids = list(text_bytes)
        while len(ids) >= 2:
            stats = get_stats(ids)
            pair = min(stats, key=lambda p: self._merges.get(p, float("inf")))
            if pair not in self._merges:
                break
            ids = merge(ids, pair, self._merges[pair])
        return ids

    def encode_ordinary(self, text):
        ids = []
        for chunk in self._split(text):
            ids.extend(self._encode_chunk(chunk.encode("utf-8")))
        return ids

    def encode(self, text, *, allowed_special=()):
        if allowed_special == "all":
            special = self.special_tokens
        else:
            for t in allowed_special:
                if t not in self.special_tokens:
                    raise ValueError(f"{t!r} is not a special token")
            special = {k: v for k, v in self.special_tokens.items() if k in set(allowed_special)}
        if not special:
            return self.encode_ordinary(text)
        special_pattern = "(" + "|".join(re.escape(k) for k in sorted(special, key=lambda k: -len(k))) + ")"
        ids = []
        for part in re.split(special_pattern, text):
            if part in special:
                ids.append(special[part])
            else:
                ids.extend(self.encode_ordinary(part))
        return ids

    def add_special_tokens(self, tokens):
        tokens = list(tokens)
        for i, t in enumerate(tokens):
            if not t or t in self.special_tokens or t in tokens[:i]:
                raise ValueError(f"bad special token {t!r}")
        for t in tokens:
            self.special_tokens[t] = len(self.vocab)
            self.inverse_special_tokens[len(self.vocab)] = t
            self.vocab = self._build_vocab()

    def save(self, path):
        with open(path, "w", encoding="ascii", newline="\n") as f:
            f.write("minbpe v1\n")
            f.write(f"{str(self.pattern).encode().hex()}\n")
            f.write(f"{len(self.special_tokens)}\n")
            for special, idx in self.special_tokens.items():
                f.write(f"{idx} {ascii(special)}\n")
            for idx1, idx2 in self._merges:
                f.write(f"{idx1} {idx2}\n")

    @classmethod
    def load(cls, path):
        import ast

        with open(path, encoding="ascii", newline="\n") as f:
            version = f.readline().strip()
            if version != "minbpe v1":
                raise ValueError(version)
            self = cls(bytes.fromhex(f.readline().strip()).decode())
            for _ in range(int(f.readline())):
                idx, special = f.readline().split(" ", 1)
                self.special_tokens[ast.literal_eval(special)] = int(idx)
            for i, line in enumerate(f):
                idx1, idx2 = map(int, line.split())
                self._merges[(idx1, idx2)] = 256 + i
        self.inverse_special_tokens = {v: k for k, v in self.special_tokens.items()}
        self.vocab = self._build_vocab()
        return self


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError(num_merges)
    vocab = {}
    for word in text.split():
        key = tuple(word) + ("</w>",)
        vocab[key] = vocab.get(key, 0) + 1
    merges = []
    for _ in range(num_merges):
        pairs = {}
        for word, freq in vocab.items():
            for p in zip(word, word[1:]):
                pairs[p] = pairs.get(p, 0) + freq
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        new = {}
        for word, freq in vocab.items():
            w = tuple(merge(word, best, best[0] + best[1]))
            new[w] = new.get(w, 0) + freq
        vocab = new
        merges.append(best)
    return merges


def apply_bpe(text, merges):
    ranks = {}
    for i, m in enumerate(merges):
        ranks.setdefault(tuple(m), i)
    out = []
    for word in text.split():
        symbols = list(word) + ["</w>"]
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:]), key=lambda p: ranks.get(p, float("inf")))
            if pair not in ranks:
                break
            symbols = merge(symbols, pair, pair[0] + pair[1])
        out.extend(symbols)
    return out
