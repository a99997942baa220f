"""mistake: pattern-looks-back-at-the-token"""

import json
import re
from collections import Counter
from pathlib import Path


def fuse(seq, pair, new):
    out, i = [], 0
    while i < len(seq):
        if i + 1 < len(seq) and (seq[i], seq[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(seq[i])
            i += 1
    return out


def pairs(seqs):
    c = Counter()
    for s in seqs:
        c.update(zip(s, s[1:]))
    return c


class Tokenizer:
    def __init__(self, merges, pattern):
        self.merges = merges
        self.pattern = pattern
        self.special_tokens = {}

    def split(self, text, at=0, end=None):
        end = len(text) if end is None else end
        if self.pattern is None:
            return [text[at:end]]
        out = []
        for m in re.compile(self.pattern).finditer(text, at, end):
            out.append(text[at : m.start()])
            out.append(m.group(0))
            at = m.end()
        out.append(text[at:end])
        return out

    @classmethod
    def train(cls, text, vocab_size, *, pattern=None):
        if vocab_size < 256:
            raise ValueError("vocab_size is below 256")
        self = cls([], pattern)
        seqs = [list(c.encode("utf-8")) for c in self.split(text)]
        while 256 + len(self.merges) < vocab_size:
            counts = pairs(seqs)
            if not counts:
                break
            best = min(counts, key=lambda p: (-counts[p], p))
            new = 256 + len(self.merges)
            self.merges.append(best)
            seqs = [fuse(s, best, new) for s in seqs]
        return self

    def encode(self, text, *, allowed_special=()):
        if isinstance(allowed_special, str) and allowed_special == "all":
            allowed = list(self.special_tokens)
        else:
            allowed = list(allowed_special)
            for a in allowed:
                if a not in self.special_tokens:
                    raise ValueError(f"{a!r} is not special")
        if not allowed:
            return self.ordinary(text)
        rx = "(" + "|".join(re.escape(t) for t in sorted(allowed, key=len, reverse=True)) + ")"
        ids, at = [], 0
        for m in re.finditer(rx, text):
            ids.extend(self.ordinary(text, at, m.start()))
            ids.append(self.special_tokens[m[0]])
            at = m.end()
        return ids + self.ordinary(text, at)

    def ordinary(self, text, at=0, end=None):
        ids = []
        for chunk in self.split(text, at, end):
            ids.extend(self.chunk(chunk))
        return ids

    def chunk(self, chunk):
        seq = list(chunk.encode("utf-8"))
        rank = {p: i for i, p in enumerate(self.merges)}
        while len(seq) > 1:
            best = min(zip(seq, seq[1:]), key=lambda p: rank.get(p, float("inf")))
            if best not in rank:
                break
            seq = fuse(seq, best, 256 + rank[best])
        return seq

    def table(self):
        t = {i: bytes([i]) for i in range(256)}
        for i, (a, b) in enumerate(self.merges):
            t[256 + i] = t[a] + t[b]
        for token, i in self.special_tokens.items():
            t[i] = token.encode("utf-8")
        return t

    def decode(self, ids):
        t = self.table()
        out = []
        for i in ids:
            if i not in t:
                raise ValueError(f"no id {i}")
            out.append(t[i])
        return b"".join(out).decode("utf-8", errors="replace")

    def save(self, path):
        state = {"merges": self.merges, "pattern": self.pattern, "special": self.special_tokens}
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def load(cls, path):
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self = cls([tuple(p) for p in state["merges"]], state["pattern"])
        self.special_tokens = dict(state["special"])
        return self

    def add_special_tokens(self, tokens):
        seen = set(self.special_tokens)
        for t in tokens:
            if not t or t in seen:
                raise ValueError(f"bad token {t!r}")
            seen.add(t)
        for t in tokens:
            self.special_tokens[t] = 256 + len(self.merges) + len(self.special_tokens)


def learn_bpe(text, num_merges):
    if num_merges < 0:
        raise ValueError("num_merges is negative")
    words = [[*w, "</w>"] for w in text.split()]
    merges = []
    while len(merges) < num_merges:
        counts = pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda p: (-counts[p], p))
        merges.append(best)
        words = [fuse(w, best, best[0] + best[1]) for w in words]
    return merges


def apply_bpe(text, merges):
    out = []
    for w in text.split():
        s = [*w, "</w>"]
        for p in merges:
            s = fuse(s, p, p[0] + p[1])
        out.extend(s)
    return out
