"""What people get wrong in byte-pair encoding."""

from dojo.mistake import Mistake

# --- how encode goes wrong: each replaces the loop over one chunk ---------------------------------

SHORT = """        if len(chunk) > 256:
            return self._encode_long(chunk)
        ids = list(chunk.encode("utf-8"))
"""
LOOP = """        while merged and (new := min(merged)) < math.inf:
            at = merged.index(new)
"""


def encoding(body):
    """The change that gives ``_encode_chunk`` another beginning, which returns."""
    return ((SHORT, body),)


LONGEST_MATCH = """        rest, ids = chunk.encode("utf-8"), []
        table = {spelled: i for i, spelled in self._bytes.items() if i < 256 + len(self.merges)}
        while rest:
            size = next(n for n in range(len(rest), 0, -1) if rest[:n] in table)
            ids.append(table[rest[:size]])
            rest = rest[size:]
        return ids
"""
FROM_THE_LEFT = """        ids, at = list(chunk.encode("utf-8")), 0
        while at + 1 < len(ids):
            new = self._merged.get((ids[at], ids[at + 1]))
            if new is None:
                at += 1
            else:
                ids[at : at + 2], at = [new], 0
        return ids
"""
LAST_LEARNED_FIRST = """        ids = list(chunk.encode("utf-8"))
        while present := [self._merged[pair] for pair in pairwise(ids) if pair in self._merged]:
            at = next(i for i, pair in enumerate(pairwise(ids)) if self._merged.get(pair) == max(present))
            ids[at : at + 2] = [max(present)]
        return ids
"""
FROM_THE_RIGHT = """        ids = list(chunk.encode("utf-8"))
        while present := [self._merged[pair] for pair in pairwise(ids) if pair in self._merged]:
            at = max(i for i, pair in enumerate(pairwise(ids)) if self._merged.get(pair) == min(present))
            ids[at : at + 2] = [min(present)]
        return ids
"""
ONCE_EACH = """        ids = list(chunk.encode("utf-8"))
        for pair, new in self._merged.items():
            at = next((i for i, here in enumerate(pairwise(ids)) if here == pair), None)
            if at is not None:
                ids[at : at + 2] = [new]
        return ids
"""
ONE_MERGE = """        ids = list(chunk.encode("utf-8"))
        present = [self._merged[pair] for pair in pairwise(ids) if pair in self._merged]
        if present:
            tokens = _as_tokens(chunk).replace("".join(map(chr, self.merges[min(present) - 256])), chr(min(present)))
            ids = list(map(ord, tokens))
        return ids
"""
# --- how train goes wrong: a plain loop, each with one slip ---------------------------------------

TRAINING = """        pairs = _Pairs(Counter(_chunks(text, pattern)))
        merges: list[tuple[int, int]] = []
        while 256 + len(merges) < vocab_size and (pair := pairs.most_frequent()):
"""


def training(count="zip(ids, ids[1:])", choose="min(counts, key=lambda p: (-counts[p], p))", stop="not counts",
             words="list(_chunks(text, pattern))", overlap="tokens[at + 2 :]"):  # fmt: skip
    """The change that puts a plain training loop before the reference's, with one expression of it wrong."""
    return (
        (
            TRAINING,
            f"""        sequences = [list(chunk.encode("utf-8")) for chunk in {words}]
        merges: list[tuple[int, int]] = []
        while 256 + len(merges) < vocab_size:
            counts = Counter()
            for ids in sequences:
                for p in {count}:
                    counts[p] += 1
            if {stop}:
                break
            spelled = [bytes([i]) for i in range(256)]
            for left, right in merges:
                spelled.append(spelled[left] + spelled[right])
            merges.append({choose})
            sequences = [_replaced(ids, merges[-1], 255 + len(merges)) for ids in sequences]
        return cls(merges, pattern=pattern)
        pairs = _Pairs(Counter(_chunks(text, pattern)))
        while 256 + len(merges) < vocab_size and (pair := pairs.most_frequent()):
""",
        ),
        (
            "def _as_tokens(",
            f"""def _replaced(tokens, pair, new):
    out, at = [], 0
    while at < len(tokens):
        if tuple(tokens[at : at + 2]) == pair:
            out.append(new)
            tokens, at = {overlap}, 0
        else:
            out.append(tokens[at])
            at += 1
    return out


def _as_tokens(""",
        ),
    )


MISTAKES = (
    # --- training
    Mistake(
        "first-seen-on-a-tie",
        "of equally frequent pairs the one that was counted first is merged, not the smallest",
        "max() over the counts settles ties somehow.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(choose="max(counts, key=counts.get)"),
    ),
    Mistake(
        "greatest-on-a-tie",
        "of equally frequent pairs the greatest is merged, not the smallest",
        "max() over (count, pair) settles ties the right way.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(choose="max(counts, key=lambda p: (counts[p], p))"),
    ),
    Mistake(
        "bytes-on-a-tie",
        "ties go to the pair whose bytes come first, not to the smallest pair of ids",
        "Comparing what the ids stand for is the same as comparing the ids.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(choose="min(counts, key=lambda p: (-counts[p], spelled[p[0]], spelled[p[1]]))"),
    ),
    Mistake(
        "smallest-second-id-on-a-tie",
        "ties go to the smallest sum of ids, not to the smallest pair",
        "Any order of the pairs will do.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(choose="min(counts, key=lambda p: (-counts[p], sum(p), p))"),
    ),
    Mistake(
        "rarest-pair",
        "the least frequent pair is merged",
        "min() of the counts, with the sign forgotten.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(choose="min(counts, key=lambda p: (counts[p], p))"),
    ),
    Mistake(
        "counted-without-overlap",
        "aaa is counted as one (a, a), not two",
        "Pairs that overlap cannot both be merged, so they count once.",
        "test_in_a_run_every_position_counts",
        change=(
            *training(count="_apart(ids)"),
            (
                "def _chunks(",
                "def _apart(ids):\n    found, at = [], 0\n    while at + 1 < len(ids):\n        found.append((ids[at], ids[at + 1]))\n        at += 2 if ids[at] == ids[at + 1] else 1\n    return found\n\n\ndef _chunks(",
            ),
        ),
    ),
    Mistake(
        "every-other-pair",
        "pairs are counted at every other position only",
        "Cutting the sequence into twos gives its pairs.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=training(count="zip(ids[::2], ids[1::2])"),
    ),
    Mistake(
        "chunks-counted-once",
        "a chunk that occurs often counts as if it occurred once",
        "Distinct words are enough to find the pairs.",
        "test_no_merge_crosses_from_chunk_to_chunk",
        change=training(words="dict.fromkeys(_chunks(text, pattern))"),
    ),
    Mistake(
        "counts-never-updated",
        "pairs are counted once at the start, so a merge never changes what comes next",
        "The most frequent pairs of the text are the vocabulary.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("            pairs.merge(pair, chr(256 + len(merges)))\n", ""),),
    ),
    Mistake(
        "stale-counts",
        "after a merge the counts of the neighbouring pairs are not taken down",
        "Adding the new pairs is all that a merge changes.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("self.counts[before] -= self.enter(made, places)", "self.enter(made, places)"),),
    ),
    Mistake(
        "twins-missed",
        "two new tokens side by side are counted from both sides",
        "Each new token adds one pair to its left and one to its right.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("found[twins] = found[twins][::2]  # seen from both sides", "pass"),),
    ),
    Mistake(
        "counts-end-at-255",
        "pairs that stand more often than 255 times are taken for equally frequent",
        "A count fits into a byte.",
        "test_a_long_text_is_like_a_short_one",
        change=training(choose="min(counts, key=lambda p: (-min(counts[p], 255), p))"),
    ),
    Mistake(
        "pairs-that-stand-once-left",
        "training ends when no pair stands twice",
        "Merging a pair that stands once saves nothing.",
        "test_training_ends_when_no_pair_is_left",
        change=training(stop="not counts or max(counts.values()) < 2"),
    ),
    Mistake(
        "max-of-nothing",
        "training fails when no pair is left",
        "There is always another pair.",
        "test_training_ends_when_no_pair_is_left",
        change=training(stop="False"),
    ),
    Mistake(
        "vocab-size-counts-merges",
        "vocab_size is taken for the number of merges",
        "The bytes come for free.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("while 256 + len(merges) < vocab_size and", "while len(merges) < vocab_size and"),),
    ),
    Mistake(
        "one-merge-too-many",
        "there is one id more than vocab_size",
        "vocab_size is the last id.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("while 256 + len(merges) < vocab_size and", "while 256 + len(merges) <= vocab_size and"),),
    ),
    Mistake(
        "one-merge-too-few",
        "there is one id less than vocab_size",
        "One id is kept for the end of text.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("while 256 + len(merges) < vocab_size and", "while 257 + len(merges) < vocab_size and"),),
    ),
    Mistake(
        "learns-nothing",
        "training returns a tokenizer without merges",
        "Bytes are a vocabulary already.",
        "test_the_training_text_gets_shorter",
        change=(
            (
                "        return cls(merges, pattern=pattern)\n\n    def encode",
                "        return cls([], pattern=pattern)\n\n    def encode",
            ),
        ),
    ),
    Mistake(
        "small-vocabulary-accepted",
        "a vocab_size below 256 is taken for 256",
        "The loop does not run, so nothing happens.",
        "test_a_vocabulary_below_the_bytes_is_refused",
        change=(("        if vocab_size < 256:\n", "        if vocab_size < 0:\n"),),
    ),
    Mistake(
        "no-room-for-a-merge-refused",
        "a vocab_size of exactly 256 is refused",
        "A tokenizer without merges is none.",
        "test_a_vocabulary_below_the_bytes_is_refused",
        change=(("        if vocab_size < 256:\n", "        if vocab_size <= 256:\n"),),
    ),
    # --- encoding
    Mistake(
        "encode-merges-nothing",
        "encode returns the bytes and merges nothing",
        "UTF-8 bytes are ids already.",
        "test_the_training_text_gets_shorter",
        change=encoding('        return list(chunk.encode("utf-8"))\n'),
    ),
    Mistake(
        "ids-are-floats",
        "encode returns numbers that are no integers",
        "numpy keeps integers integers, an empty array joined to them or not.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(
            '        ids = list(map(float, chunk.encode("utf-8")))\n        for pair, new in self._merged.items():\n            at = 0\n            while at + 1 < len(ids):\n                if (ids[at], ids[at + 1]) == pair:\n                    ids[at : at + 2] = [float(new)]\n                at += 1\n        return ids\n'
        ),
    ),
    Mistake(
        "two-bytes-never-merged",
        "encode leaves a chunk of two ids as it is",
        "One merge needs more than two ids.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(
            SHORT + "        if len(ids) < 3:\n            return ids\n"
            "        for pair, new in self._merged.items():\n            at = 0\n            while at + 1 < len(ids) and len(ids) > 2:\n                if (ids[at], ids[at + 1]) == pair:\n                    ids[at : at + 2] = [new]\n                at += 1\n        return ids\n"
        ),
    ),
    Mistake(
        "longest-match",
        "encode takes the longest token that fits, from the left",
        "A longer token is always the better one.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(LONGEST_MATCH),
    ),
    Mistake(
        "first-match-from-the-left",
        "encode merges the first learned pair from the left, whenever it was learned",
        "The order of merging does not matter.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(FROM_THE_LEFT),
    ),
    Mistake(
        "last-learned-first",
        "encode merges the pair that was learned last",
        "Later merges make longer tokens, so they come first.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(LAST_LEARNED_FIRST),
    ),
    Mistake(
        "from-the-right",
        "encode merges a pair from the right, so aaa becomes a (aa)",
        "Where a pair overlaps itself, either half will do.",
        "test_in_a_run_every_position_counts",
        change=encoding(FROM_THE_RIGHT),
    ),
    Mistake(
        "each-merge-once",
        "each merge is made at its first occurrence only",
        "Going through the merges once merges everything.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(ONCE_EACH),
    ),
    Mistake(
        "one-merge-a-chunk",
        "encode makes one merge and does not look again",
        "A merge makes no new pairs.",
        "test_encode_merges_what_was_learned_first",
        change=encoding(ONE_MERGE),
    ),
    Mistake(
        "long-chunks-cut",
        "a chunk of more than 300 characters is cut, and no merge crosses the cut",
        "Nobody notices where a long text is cut.",
        "test_a_long_text_is_like_a_short_one",
        change=encoding(
            "        if len(chunk) > 300:\n            return self._encode_chunk(chunk[:300]) + self._encode_chunk(chunk[300:])\n"
            + SHORT
        ),
    ),
    Mistake(
        "pattern-forgotten-in-encode",
        "encode treats the whole text as one chunk, although training used the pattern",
        "The pattern is for training.",
        "test_no_merge_crosses_from_chunk_to_chunk",
        change=(
            (
                "        if self.pattern is None:\n            return self._encode_chunk(text)\n",
                "        return self._encode_chunk(text)\n",
            ),
        ),
    ),
    Mistake(
        "pattern-forgotten-in-training",
        "training ignores the pattern and merges across chunks",
        "The pattern is for encoding.",
        "test_no_merge_crosses_from_chunk_to_chunk",
        change=(("_Pairs(Counter(_chunks(text, pattern)))", "_Pairs(Counter(_chunks(text, None)))"),),
    ),
    Mistake(
        "words-by-default",
        "without a pattern the text is split at spaces all the same",
        "BPE never merges across words.",
        "test_training_learns_the_most_frequent_pairs_in_order",
        change=(("        return [text]\n", '        return re.findall(r" ?[^ ]+| +", text)\n'),),
    ),
    Mistake(
        "unmatched-text-lost",
        "text that the pattern does not match is dropped",
        "findall returns all chunks.",
        "test_decode_undoes_encode",
        change=(
            ("chunks += text[end : match.start()], match[0]", "chunks.append(match[0])"),
            ("return [*chunks, text[end:]]", "return chunks"),
            ('if "".join(matches) == text:', "if matches:"),
        ),
    ),
    Mistake(
        "end-of-text-lost",
        "what stands after the last match of the pattern is dropped",
        "The loop over the matches keeps what lies before each.",
        "test_decode_undoes_encode",
        change=(("return [*chunks, text[end:]]", "return chunks"),),
    ),
    Mistake(
        "groups-for-chunks",
        "a pattern with groups gives its groups as chunks, not its matches",
        "findall returns the matches.",
        "test_decode_undoes_encode",
        change=(
            (
                "    if not regex.groups:\n",
                '    if regex.groups:\n        return list(map("".join, regex.findall(text)))\n    else:\n',
            ),
        ),
    ),
    Mistake(
        "pattern-in-a-group",
        "the pattern is put into a group of its own, and what it says of its groups means others",
        "Brackets change nothing.",
        "test_a_pattern_is_read_as_re_reads_it",
        change=(("    regex = re.compile(pattern)\n", '    regex = re.compile(f"({pattern})")\n'),),
    ),
    Mistake(
        "stretches-joined-to-matches",
        "text before a match of the pattern is put into one chunk with it",
        "What the pattern does not match belongs to the next chunk.",
        "test_no_merge_crosses_from_chunk_to_chunk",
        change=(("chunks += text[end : match.start()], match[0]", "chunks.append(text[end : match.end()])"),),
    ),
    Mistake(
        "unmatched-text-as-bytes",
        "the stretches between two matches are cut into single characters",
        "Only matches are chunks worth merging.",
        "test_no_merge_crosses_from_chunk_to_chunk",
        change=(
            (
                "chunks += text[end : match.start()], match[0]",
                "chunks += *text[end : match.start()], match[0]",
            ),
            ("return [*chunks, text[end:]]", "return [*chunks, *text[end:]]"),
        ),
    ),
    Mistake(
        "line-by-line",
        "^ and $ of the pattern hold at every line, not at the ends of the text",
        "A pattern is about lines.",
        "test_a_pattern_is_read_as_re_reads_it",
        change=(("regex = re.compile(pattern)", "regex = re.compile(pattern, re.MULTILINE)"),),
    ),
    Mistake(
        "dot-takes-line-ends",
        "a dot in the pattern takes line ends as well",
        "A dot is any character.",
        "test_a_pattern_is_read_as_re_reads_it",
        change=(("regex = re.compile(pattern)", "regex = re.compile(pattern, re.DOTALL)"),),
    ),
    Mistake(
        "either-case",
        "the pattern is matched in either case",
        "Case does not matter to words.",
        "test_a_pattern_is_read_as_re_reads_it",
        change=(("regex = re.compile(pattern)", "regex = re.compile(pattern, re.IGNORECASE)"),),
    ),
    Mistake(
        "only-ascii-letters",
        "\\w in the pattern is an ASCII letter only",
        "Letters are A to Z.",
        "test_a_pattern_is_read_as_re_reads_it",
        change=(("regex = re.compile(pattern)", "regex = re.compile(pattern, re.ASCII)"),),
    ),
    # --- bytes and text
    Mistake(
        "normalised",
        "text is normalised to NFC before it is encoded",
        "Both spellings of é are the same text.",
        "test_decode_undoes_encode",
        change=(
            (
                "        if not allowed:\n            return self._encode_text(text)\n",
                '        import unicodedata\n\n        text = unicodedata.normalize("NFC", text)\n        if not allowed:\n            return self._encode_text(text)\n',
            ),
        ),
    ),
    Mistake(
        "line-ends-translated",
        "carriage returns are lost",
        "\\r\\n and \\n are the same.",
        "test_decode_undoes_encode",
        change=(
            (
                "        if not allowed:\n            return self._encode_text(text)\n",
                '        text = text.replace("\\r\\n", "\\n").replace("\\r", "\\n")\n        if not allowed:\n            return self._encode_text(text)\n',
            ),
        ),
    ),
    Mistake(
        "stripped",
        "decode strips white space from the ends of the text",
        "White space at the ends is an artefact of joining tokens.",
        "test_decode_undoes_encode",
        change=(('.decode("utf-8", errors="replace")', '.decode("utf-8", errors="replace").strip()'),),
    ),
    Mistake(
        "decoded-one-by-one",
        "each id is decoded by itself, so a character spread over two ids is lost",
        "Every token is a piece of text.",
        "test_decode_undoes_encode",
        change=(
            (
                'b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")',
                '"".join([self._bytes[i].decode("utf-8", errors="replace") for i in ids])',
            ),
        ),
    ),
    Mistake(
        "strict-utf-8",
        "decode raises where the bytes are not UTF-8",
        "Tokens always come from encode.",
        "test_decode_joins_the_bytes_of_all_ids",
        change=(('.decode("utf-8", errors="replace")', '.decode("utf-8")'),),
    ),
    Mistake(
        "errors-ignored",
        "decode leaves out what is not UTF-8",
        "What cannot be decoded is noise.",
        "test_decode_joins_the_bytes_of_all_ids",
        change=(('errors="replace"', 'errors="ignore"'),),
    ),
    Mistake(
        "latin-1",
        "decode reads the bytes as Latin-1, one character a byte",
        "A byte is a character.",
        "test_decode_undoes_encode",
        change=(('.decode("utf-8", errors="replace")', '.decode("latin-1")'),),
    ),
    Mistake(
        "decode-wants-a-list",
        "decode fails for a tuple of ids",
        "A sequence of ids is a list.",
        "test_decode_joins_the_bytes_of_all_ids",
        change=(
            (
                '        try:\n            return b"".join(',
                '        ids = ids.copy()\n        try:\n            return b"".join(',
            ),
        ),
    ),
    Mistake(
        "unknown-id-is-a-key-error",
        "an id that does not exist raises KeyError",
        "A look-up that fails is refusal enough.",
        "test_unknown_ids_are_refused",
        change=(
            ('            raise ValueError(f"id {unknown}', '            raise KeyError(f"id {unknown}'),
        ),
    ),
    Mistake(
        "negative-ids-wrap",
        "a negative id counts from the end of the vocabulary",
        "Indexing a list will complain by itself.",
        "test_unknown_ids_are_refused",
        change=(
            (
                "[self._bytes[i] for i in ids]",
                "[self._bytes[i % len(self._bytes) if -len(self._bytes) <= i < 0 else i] for i in ids]",
            ),
        ),
    ),
    Mistake(
        "unknown-ids-skipped",
        "ids that do not exist are left out",
        "decode should never fail.",
        "test_unknown_ids_are_refused",
        change=(("[self._bytes[i] for i in ids]", '[self._bytes.get(i, b"") for i in ids]'),),
    ),
    Mistake(
        "unknown-ids-become-replacement",
        "ids that do not exist become U+FFFD",
        "An unknown id is like an invalid byte.",
        "test_unknown_ids_are_refused",
        change=(("[self._bytes[i] for i in ids]", '[self._bytes.get(i, b"\\xff") for i in ids]'),),
    ),
    Mistake(
        "ids-used-up",
        "decode empties the list that it was given",
        "The ids are mine once they are passed in.",
        "test_decode_joins_the_bytes_of_all_ids",
        change=(("[self._bytes[i] for i in ids]", "[self._bytes[ids.pop(0)] for _ in range(len(ids))]"),),
    ),
    # --- state
    Mistake(
        "merges-of-the-class",
        "the merges belong to the class, so the last tokenizer trained is every tokenizer",
        "There is one tokenizer in a program.",
        "test_tokenizers_share_nothing",
        change=(
            ("        self._merged = {pair: new", "        type(self)._merged = {pair: new"),
            ("        self.merges = [(left, right)", "        type(self).merges = [(left, right)"),
        ),
    ),
    Mistake(
        "pattern-of-the-class",
        "the pattern belongs to the class, so that the last one is that of every tokenizer",
        "There is one tokenizer in a program.",
        "test_tokenizers_share_nothing",
        change=(("        self.pattern = pattern\n", "        type(self).pattern = pattern\n"),),
    ),
    Mistake(
        "cache-of-the-module",
        "the cache of encoded chunks is shared by all tokenizers",
        "A chunk has its ids.",
        "test_tokenizers_share_nothing",
        change=(
            (
                "        self._chunk_ids = _Memo(self._encode_chunk)\n",
                "        _SHARED.encode = self._encode_chunk\n        self._chunk_ids = _SHARED\n",
            ),
            ("def learn_bpe(", "def _nothing(chunk):\n    return ()\n\n\ndef learn_bpe("),
            ("class _Pairs:", "_SHARED = _Memo(_nothing)\n\n\nclass _Pairs:"),
        ),
    ),
    Mistake(
        "cached-list-handed-out",
        "encode hands out the list that it keeps in its cache",
        "Nobody changes a list of ids.",
        "test_encoding_again_gives_the_same",
        change=(
            (
                "        if not allowed:\n            return self._encode_text(text)\n",
                "        if not allowed:\n            if text not in self._texts:\n                self._texts[text] = self._encode_text(text)\n            return self._texts[text]\n",
            ),
            (
                "        self.add_special_tokens(special_tokens)\n",
                "        self._texts = {}\n        self.add_special_tokens(special_tokens)\n",
            ),
        ),
    ),
    Mistake(
        "pattern-not-saved",
        "save forgets the pattern",
        "The merges are the tokenizer.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(('state = {"pattern": self.pattern,', 'state = {"pattern": None,'),),
    ),
    Mistake(
        "no-pattern-read-back-as-a-word",
        "no pattern is saved as the word None, and read back as a pattern",
        "A format string writes what is there.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(('state = {"pattern": self.pattern,', 'state = {"pattern": f"{self.pattern}",'),),
    ),
    Mistake(
        "merges-sorted-by-saving",
        "save writes the merges in the order of their ids, not in the order learned",
        "A vocabulary is a set.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            (
                '"merges": self.merges}',
                '"merges": sorted(self.merges, key=lambda pair: (max(pair) > 255, pair))}',
            ),
        ),
    ),
    Mistake(
        "last-merge-not-saved",
        "the last merge is lost on the way through the file",
        "The last line of a file is empty.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(('"merges": self.merges}', '"merges": self.merges[:-1]}'),),
    ),
    Mistake(
        "suffix-added-to-the-path",
        "save writes to another path than the one it was given",
        "A model file ends in .model.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            (
                "        Path(path).write_text(json.dumps(state)",
                '        Path(f"{path}.model").write_text(json.dumps(state)',
            ),
            ("json.loads(Path(path).read_text(", 'json.loads(Path(f"{path}.model").read_text('),
        ),
    ),
    Mistake(
        "kept-in-memory",
        "load returns the object that was saved, not what stands in the file",
        "Nobody restarts the program in between.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            (
                '        Path(path).write_text(json.dumps(state), encoding="utf-8")\n',
                '        Path(path).write_text("", encoding="utf-8")\n        _SAVED[str(path)] = state\n',
            ),
            (
                'cls(**json.loads(Path(path).read_text(encoding="utf-8")))',
                'cls(**_SAVED.get(str(path), {"merges": []}))',
            ),
            ("class _Memo(dict):", "_SAVED = {}\n\n\nclass _Memo(dict):"),
        ),
    ),
    Mistake(
        "last-saved-in-memory",
        "load returns what was saved last, whatever file it is given",
        "Nobody restarts the program in between.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            (
                '        Path(path).write_text(json.dumps(state), encoding="utf-8")\n',
                '        Path(path).write_text("", encoding="utf-8")\n        _SAVED.update(state)\n',
            ),
            ('cls(**json.loads(Path(path).read_text(encoding="utf-8")))', "cls(**_SAVED)"),
            ("class _Memo(dict):", "_SAVED = {}\n\n\nclass _Memo(dict):"),
        ),
    ),
    Mistake(
        "file-appended-to",
        "save writes behind what stands in the file already, and load reads what stands first",
        "A file is new when it is written.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            (
                '        Path(path).write_text(json.dumps(state), encoding="utf-8")\n',
                '        with open(path, "a", encoding="utf-8") as file:\n            print(json.dumps(state), file=file)\n',
            ),
            (
                'Path(path).read_text(encoding="utf-8")',
                'Path(path).read_text(encoding="utf-8").splitlines()[0]',
            ),
        ),
    ),
    Mistake(
        "loaded-merges-are-lists",
        "the merges of a loaded tokenizer are lists of two ids, not tuples",
        "JSON gives back what it was given.",
        "test_a_loaded_tokenizer_equals_the_saved_one",
        change=(
            ("self.merges = [(left, right) for left, right in merges]", "self.merges = list(merges)"),
            ("self._merged = {pair: new for", "self._merged = {tuple(pair): new for"),
        ),
    ),
    # --- part 2
    Mistake(
        "ids-from-the-alphabet",
        "special tokens get their ids in sorted order, not in the order given",
        "A set of tokens has no order of its own.",
        "test_special_tokens_take_the_next_free_ids",
        change=(("        for token in tokens:\n", "        for token in sorted(tokens):\n"),),
    ),
    Mistake(
        "second-call-starts-over",
        "special tokens that are added later get ids that are taken",
        "Special tokens are added once.",
        "test_special_tokens_take_the_next_free_ids",
        change=(
            (
                "        for token in tokens:\n            self.special_tokens[token] = new = len(self._bytes)\n",
                "        for new, token in enumerate(tokens, start=256 + len(self.merges)):\n            self.special_tokens[token] = new\n",
            ),
        ),
    ),
    Mistake(
        "an-id-is-skipped",
        "the first special token leaves an id unused",
        "len(vocab) is the last id.",
        "test_special_tokens_take_the_next_free_ids",
        change=(
            (
                "self.special_tokens[token] = new = len(self._bytes)",
                "self.special_tokens[token] = new = 257 + len(self.merges) + len(self.special_tokens)",
            ),
        ),
    ),
    Mistake(
        "special-tokens-from-zero",
        "special tokens take ids from 0, which are bytes already",
        "Special tokens come first.",
        "test_special_tokens_take_the_next_free_ids",
        change=(
            (
                "self.special_tokens[token] = new = len(self._bytes)",
                "self.special_tokens[token] = new = len(self.special_tokens)",
            ),
        ),
    ),
    Mistake(
        "unescaped",
        "special tokens go into the regex as they are, so | and . have a meaning",
        "<|end|> is just a string.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                '"|".join(map(re.escape, sorted(allowed, key=len, reverse=True)))',
                '"|".join(sorted(allowed, key=len, reverse=True))',
            ),
            ('pieces = re.split(f"({longest_first})", text)', "pieces = _split(longest_first, text)"),
            (
                "                ids.append(self.special_tokens[special])\n",
                "                ids += [self.special_tokens[special]] if special in self.special_tokens else self._encode_text(special)\n",
            ),
            (
                "def _as_tokens(",
                "def _split(pattern, text):\n    try:\n        regex = re.compile(pattern)\n    except re.error:\n        return [text]\n    pieces, end = [], 0\n    for match in regex.finditer(text):\n        pieces += text[end : match.start()], match[0]\n        end = match.end()\n    return [*pieces, text[end:]]\n\n\ndef _as_tokens(",
            ),
        ),
    ),
    Mistake(
        "specials-in-any-case",
        "special tokens are found in upper and lower case",
        "<|END|> means the same.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                '        pieces = re.split(f"({longest_first})", text)\n',
                '        pieces = re.split(f"({longest_first})", text, flags=re.IGNORECASE)\n',
            ),
            (
                "ids.append(self.special_tokens[special])",
                "ids.append({token.lower(): i for token, i in self.special_tokens.items()}[special.lower()])",
            ),
        ),
    ),
    Mistake(
        "shortest-special-first",
        "of two special tokens that start alike the shorter is found",
        "The regex finds the longest alternative by itself.",
        "test_an_allowed_special_token_is_one_id",
        change=(("sorted(allowed, key=len, reverse=True)", "sorted(allowed, key=len)"),),
    ),
    Mistake(
        "specials-in-the-order-added",
        "special tokens are tried in the order in which they were added",
        "No special token is the beginning of another.",
        "test_an_allowed_special_token_is_one_id",
        change=(("sorted(allowed, key=len, reverse=True)", "sorted(allowed, key=self.special_tokens.get)"),),
    ),
    Mistake(
        "longest-special-wins-anywhere",
        "the longest special token is looked for in the whole text before the others",
        "Longest first means one token after the other.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                '        pieces = re.split(f"({longest_first})", text)\n',
                "        pieces = [text]\n        for token in sorted(allowed, key=len, reverse=True):\n            pieces[::2], old = [None] * len(pieces[::2]), pieces[::2]\n            parts = []\n            for i, plain in enumerate(old):\n                for piece in plain.split(token):\n                    parts += piece, token\n                parts.pop()\n                parts += pieces[2 * i + 1 : 2 * i + 2]\n            pieces = parts\n",
            ),
        ),
    ),
    Mistake(
        "always-special",
        "special tokens are recognised whether they are allowed or not",
        "A special token is special everywhere.",
        "test_a_special_token_that_is_not_allowed_is_text",
        change=(
            (
                "        if not allowed:\n",
                "        allowed = self.special_tokens.keys()\n        if not allowed:\n",
            ),
        ),
    ),
    Mistake(
        "all-or-nothing",
        "as soon as one special token is allowed, all are",
        "allowed_special switches special tokens on.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                "        if not allowed:\n",
                "        allowed = self.special_tokens.keys() if allowed else allowed\n        if not allowed:\n",
            ),
        ),
    ),
    Mistake(
        "allowed-ignored",
        "special tokens are text even where they are allowed",
        "The merges will make one token of them.",
        "test_an_allowed_special_token_is_one_id",
        change=(("        if not allowed:\n", "        if allowed is not None:\n"),),
    ),
    Mistake(
        "longer-special-hides-a-shorter",
        "a longer token that is not allowed hides a shorter one that is",
        "First find the tokens, then ask whether they are allowed.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            ("sorted(allowed, key=len, reverse=True)", "sorted(self.special_tokens, key=len, reverse=True)"),
            (
                "                ids.append(self.special_tokens[special])\n",
                "                ids += [self.special_tokens[special]] if special in allowed else self._encode_text(special)\n",
            ),
        ),
    ),
    Mistake(
        "pattern-before-specials",
        "the pattern cuts the text before special tokens are looked for",
        "Chunks come first, in encode as in train.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                '        pieces = re.split(f"({longest_first})", text)\n',
                '        pieces = []\n        for chunk in _chunks(text, self.pattern):\n            pieces += re.split(f"({longest_first})", chunk)\n            pieces.append(None)\n',
            ),
        ),
    ),
    Mistake(
        "merged-across-specials",
        "what stands before and after a special token is encoded as one text",
        "Special tokens are taken out, the rest is encoded.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                "        ids: list[int] = []\n",
                '        ids, at = self._encode_text("".join(pieces[::2])), 0\n        for plain, special in zip(pieces[::2], pieces[1::2]):\n            at += len(self._encode_text(plain))\n            ids.insert(at, self.special_tokens[special])\n            at += 1\n        return ids\n',
            ),
        ),
    ),
    Mistake(
        "space-after-a-special-lost",
        "white space around a special token is lost",
        "Special tokens stand on their own.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                "            ids += self._encode_text(plain)\n",
                "            ids += self._encode_text(plain.strip())\n",
            ),
        ),
    ),
    Mistake(
        "specials-dropped-by-decode",
        "decode leaves special tokens out",
        "Special tokens are not text.",
        "test_decode_gives_special_tokens_back",
        change=(('self._bytes[new] = token.encode("utf-8")', 'self._bytes[new] = b""'),),
    ),
    Mistake(
        "specials-split-the-bytes",
        "the bytes before and after a special token are decoded apart from it",
        "A special token ends the text before it.",
        "test_decode_gives_special_tokens_back",
        change=(
            (
                '            return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")\n',
                '            text, part = "", b""\n            for i in ids:\n                if i < 256 + len(self.merges):\n                    part += self._bytes[i]\n                else:\n                    text, part = text + part.decode("utf-8", errors="ignore") + self._bytes[i].decode("utf-8"), b""\n            return text + part.decode("utf-8", errors="replace")\n',
            ),
        ),
    ),
    Mistake(
        "special-tokens-of-the-class",
        "the special tokens belong to the class",
        "Special tokens are the same for every tokenizer.",
        "test_special_tokens_belong_to_one_tokenizer",
        change=(
            ("        self.special_tokens: dict[str, int] = {}\n", ""),
            (
                "    @classmethod\n    def train(",
                "    special_tokens: ClassVar[dict[str, int]] = {}\n\n    @classmethod\n    def train(",
            ),
            ("from typing import Literal\n", "from typing import ClassVar, Literal\n"),
            (
                "        self.add_special_tokens(special_tokens)\n",
                "        self.special_tokens.update((t, 256 + len(self.merges) + i) for i, t in enumerate(special_tokens))\n        self._bytes.update((i, t.encode()) for t, i in self.special_tokens.items())\n",
            ),
            (
                '        if "" in tokens or len({*self.special_tokens, *tokens}) < len(self.special_tokens) + len(tokens):\n',
                '        if "" in tokens or len(set(tokens)) < len(tokens):\n',
            ),
        ),
    ),
    Mistake(
        "special-ids-from-vocab-size",
        "special tokens are counted from vocab_size, not from the ids that there are",
        "Training always makes as many ids as it was asked for.",
        "test_special_tokens_take_the_next_free_ids",
        change=(
            (
                "        return cls(merges, pattern=pattern)\n\n    def encode",
                "        tokenizer = cls(merges, pattern=pattern)\n        tokenizer._first = vocab_size\n        return tokenizer\n\n    def encode",
            ),
            (
                "self.special_tokens[token] = new = len(self._bytes)",
                'self.special_tokens[token] = new = getattr(self, "_first", 256 + len(self.merges)) + len(self.special_tokens)',
            ),
        ),
    ),
    Mistake(
        "pattern-looks-back-at-the-token",
        "behind a special token the pattern still sees it",
        "finditer(text, start, end) is finditer(text[start:end]).",
        "test_a_stretch_is_a_text_of_its_own",
        change=(
            (
                "        for plain, special in zip_longest(pieces[::2], pieces[1::2]):\n            ids += self._encode_text(plain)\n",
                "        end = 0\n        for plain, special in zip_longest(pieces[::2], pieces[1::2]):\n            end += len(plain)\n            ids += self._encode_text(text[:end], end - len(plain))\n            end += len(special or '')\n",
            ),
            (
                "    def _encode_text(self, text: str) -> list[int]:\n        if self.pattern is None:\n            return self._encode_chunk(text)\n        return list(chain.from_iterable(map(self._chunk_ids.__getitem__, _chunks(text, self.pattern))))\n",
                "    def _encode_text(self, text, start=0):\n        if self.pattern is None:\n            return self._encode_chunk(text[start:])\n        chunks, end = [], start\n        for match in re.compile(self.pattern).finditer(text, start):\n            chunks += text[end : match.start()], match[0]\n            end = match.end()\n        return list(chain.from_iterable(map(self._chunk_ids.__getitem__, [*chunks, text[end:]])))\n",
            ),
        ),
    ),
    Mistake(
        "no-tokens-refused",
        "add_special_tokens with no tokens is refused",
        "Nobody adds nothing.",
        "test_special_tokens_may_come_at_any_time",
        change=(
            ('        if "" in tokens or len({', '        if not tokens or "" in tokens or len({'),
            (
                "        self.add_special_tokens(special_tokens)\n",
                "        if special_tokens:\n            self.add_special_tokens(special_tokens)\n",
            ),
        ),
    ),
    Mistake(
        "tokens-must-be-a-list",
        "add_special_tokens fails for a tuple of tokens",
        "Every sequence can be added to a list.",
        "test_special_tokens_may_come_at_any_time",
        change=(
            (
                "        special_tokens: Sequence[str] = (),\n",
                "        special_tokens: Sequence[str] = [],\n",
            ),
            (
                "len({*self.special_tokens, *tokens}) <",
                "len(set(list(self.special_tokens) + tokens)) <",
            ),
        ),
    ),
    Mistake(
        "special-tokens-saved-in-lines",
        "a special token with an unusual end of a line in it does not survive its file",
        "Only \\\\n ends a line.",
        "test_a_loaded_tokenizer_keeps_its_special_tokens",
        change=(
            (
                '"special_tokens": list(self.special_tokens)',
                '"special_tokens": ["".join(token.splitlines()) if "\\n" not in token else token for token in self.special_tokens]',
            ),
        ),
    ),
    Mistake(
        "special-tokens-sorted-by-saving",
        "the special tokens come back in the order of the alphabet, with other ids",
        "A set of tokens is all that there is to save.",
        "test_a_loaded_tokenizer_keeps_its_special_tokens",
        change=(
            ('"special_tokens": list(self.special_tokens)', '"special_tokens": sorted(self.special_tokens)'),
        ),
    ),
    Mistake(
        "special-tokens-of-a-default-argument",
        "all tokenizers that were trained share one dict of special tokens",
        "A default argument is made anew for each call.",
        "test_special_tokens_belong_to_one_tokenizer",
        change=(
            ("        self.special_tokens: dict[str, int] = {}\n", "        self.special_tokens = shared\n"),
            (
                "        special_tokens: Sequence[str] = (),\n",
                "        special_tokens: Sequence[str] = (),\n        shared={},\n",
            ),
            (
                "        self.add_special_tokens(special_tokens)\n",
                "        self.special_tokens.update((t, 256 + len(self.merges) + i) for i, t in enumerate(special_tokens))\n        for token, i in self.special_tokens.items():\n            self._bytes[i] = token.encode()\n",
            ),
            (
                "            self.special_tokens[token] = new = len(self._bytes)\n",
                "            self.special_tokens[token] = new = 256 + len(self.merges) + len(self.special_tokens)\n",
            ),
        ),
    ),
    Mistake(
        "special-tokens-not-saved",
        "save forgets the special tokens",
        "Special tokens are added after loading.",
        "test_a_loaded_tokenizer_keeps_its_special_tokens",
        change=(('"special_tokens": list(self.special_tokens)', '"special_tokens": []'),),
    ),
    Mistake(
        "special-tokens-saved-as-words",
        "a special token with white space in it does not survive its file",
        "Tokens can be written one a line, and stripped.",
        "test_a_loaded_tokenizer_keeps_its_special_tokens",
        change=(
            (
                '"special_tokens": list(self.special_tokens)',
                '"special_tokens": list(dict.fromkeys("\\n".join(self.special_tokens).split()))',
            ),
        ),
    ),
    Mistake(
        "empty-special-accepted",
        "an empty special token is accepted",
        "Nobody adds an empty token.",
        "test_bad_special_tokens_are_refused",
        change=(('        if "" in tokens or len({', "        if len({"),),
    ),
    Mistake(
        "repeated-special-accepted",
        "a token that is special already gets a second id",
        "Adding a token again does nothing.",
        "test_bad_special_tokens_are_refused",
        change=(
            (
                'if "" in tokens or len({*self.special_tokens, *tokens}) < len(self.special_tokens) + len(tokens):',
                'if "" in tokens:',
            ),
        ),
    ),
    Mistake(
        "repeated-within-a-call",
        "a token that stands twice in one call is accepted, and an id is lost",
        "What is new cannot be there already.",
        "test_bad_special_tokens_are_refused",
        change=(
            (
                "len({*self.special_tokens, *tokens}) < len(self.special_tokens) + len(tokens)",
                "self.special_tokens.keys() & set(tokens)",
            ),
        ),
    ),
    Mistake(
        "half-of-them-added",
        "tokens before a bad one are added although the call is refused",
        "A loop may check as it goes.",
        "test_bad_special_tokens_are_refused",
        change=(
            (
                '        if "" in tokens or len({*self.special_tokens, *tokens}) < len(self.special_tokens) + len(tokens):\n            raise ValueError(f"special tokens {tokens} must be new, different and not empty")\n        for token in tokens:\n',
                '        for token in tokens:\n            if not token or token in self.special_tokens:\n                raise ValueError(f"special tokens {tokens} must be new, different and not empty")\n',
            ),
        ),
    ),
    Mistake(
        "ids-used-up-by-a-refusal",
        "a refused call takes ids all the same, and the next token gets a later one",
        "A counter may run ahead of the checks.",
        "test_bad_special_tokens_are_refused",
        change=(
            (
                '        if "" in tokens or',
                '        first, self._next = self._next, self._next + len(tokens)\n        if "" in tokens or',
            ),
            (
                "        for token in tokens:\n            self.special_tokens[token] = new = len(self._bytes)\n",
                "        for new, token in enumerate(tokens, start=first):\n            self.special_tokens[token] = new\n",
            ),
            (
                "        self.add_special_tokens(special_tokens)\n",
                "        self._next = len(self._bytes)\n        self.add_special_tokens(special_tokens)\n",
            ),
        ),
    ),
    Mistake(
        "unknown-allowed-accepted",
        "allowed_special may name tokens that are not special, and they are ignored",
        "What is not there cannot be found.",
        "test_only_special_tokens_can_be_allowed",
        change=(
            (
                "        if not allowed <= self.special_tokens.keys():\n",
                "        allowed = allowed & self.special_tokens.keys()\n        if not allowed <= self.special_tokens.keys():\n",
            ),
        ),
    ),
    Mistake(
        "unknown-allowed-is-a-key-error",
        "a name in allowed_special that is not special raises KeyError",
        "A dict says what it lacks.",
        "test_only_special_tokens_can_be_allowed",
        change=(
            (
                '            raise ValueError(f"{sorted(allowed',
                '            raise KeyError(f"{sorted(allowed',
            ),
        ),
    ),
    Mistake(
        "special-regex-kept",
        "special tokens that are added after the first call of encode are not found",
        "The regex of the special tokens is made once.",
        "test_special_tokens_may_come_at_any_time",
        change=(
            (
                '        pieces = re.split(f"({longest_first})", text)\n',
                '        if allowed_special == "all":\n            longest_first = self.__dict__.setdefault("_regex", longest_first)\n        pieces = re.split(f"({longest_first})", text)\n',
            ),
        ),
    ),
    Mistake(
        "remembered-by-the-text-alone",
        "encode remembers the ids of a text, whatever was allowed then",
        "A text has its ids.",
        "test_an_allowed_special_token_is_one_id",
        change=(
            (
                "        if not allowed:\n            return self._encode_text(text)\n",
                "        if text in self._known:\n            return list(self._known[text])\n        if not allowed:\n            self._known[text] = self._encode_text(text)\n            return list(self._known[text])\n",
            ),
            (
                "                ids.append(self.special_tokens[special])\n        return ids\n",
                "                ids.append(self.special_tokens[special])\n        self._known[text] = ids\n        return list(ids)\n",
            ),
            (
                "        self.special_tokens: dict[str, int] = {}\n",
                "        self.special_tokens: dict[str, int] = {}\n        self._known: dict[str, list[int]] = {}\n",
            ),
        ),
    ),
    Mistake(
        "table-of-bytes-kept",
        "special tokens that are added after the first call of decode have no text",
        "The table from ids to bytes is made once.",
        "test_special_tokens_may_come_at_any_time",
        change=(
            (
                '            return b"".join([self._bytes[i] for i in ids])',
                '            table = self.__dict__.setdefault("_table", dict(self._bytes))\n            return b"".join([table[i] for i in ids])',
            ),
        ),
    ),
    Mistake(
        "tokens-used-up",
        "add_special_tokens empties the list that it was given",
        "The tokens are mine once they are passed in.",
        "test_special_tokens_take_the_next_free_ids",
        change=(
            (
                "        for token in tokens:\n            self.special_tokens[token] = new",
                "        for token in [tokens.pop(0) for _ in range(len(tokens))]:\n            self.special_tokens[token] = new",
            ),
        ),
    ),
    Mistake(
        "all-in-a-list",
        "a list that holds 'all' allows every special token",
        "'all' in allowed_special asks whether it is 'all'.",
        "test_only_special_tokens_can_be_allowed",
        change=(('if allowed_special == "all" else', 'if "all" in allowed_special else'),),
    ),
    Mistake(
        "unknown-allowed-where-none-are",
        "a tokenizer without special tokens accepts any name in allowed_special",
        "Without special tokens there is nothing to check.",
        "test_only_special_tokens_can_be_allowed",
        change=(
            (
                "        allowed = self.special_tokens.keys() if",
                "        if not self.special_tokens:\n            return self._encode_text(text)\n        allowed = self.special_tokens.keys() if",
            ),
        ),
    ),
    # --- part 3
    Mistake(
        "end-glued-to-the-last-letter",
        "</w> is glued to the last letter, not a symbol of its own",
        "The end of a word belongs to its last letter.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(('    return (*word, "</w>")\n', '    return (*word[:-1], word[-1] + "</w>")\n'),),
    ),
    Mistake(
        "no-end-of-word",
        "words have no </w>",
        "Words are kept apart anyway.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(('    return (*word, "</w>")\n', "    return tuple(word)\n"),),
    ),
    Mistake(
        "end-is-four-letters",
        "</w> is appended as the characters < / w >",
        "</w> is a string like any other.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(('    return (*word, "</w>")\n', '    return (*word, *"</w>")\n'),),
    ),
    Mistake(
        "words-counted-once",
        "a word that occurs often counts as if it occurred once",
        "The vocabulary of words is enough.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(("                counts[pair] += count\n", "                counts[pair] += 1\n"),),
    ),
    Mistake(
        "first-seen-symbols-on-a-tie",
        "of equally frequent pairs the one seen first is merged",
        "max(counts, key=counts.get), as in the paper's listing.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            (
                "best = min(counts, key=lambda pair: (-counts[pair], pair))",
                "best = max(counts, key=counts.get)",
            ),
        ),
    ),
    Mistake(
        "greatest-symbols-on-a-tie",
        "of equally frequent pairs the greatest is merged",
        "max() over (count, pair).",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            (
                "best = min(counts, key=lambda pair: (-counts[pair], pair))",
                "best = max(counts, key=lambda pair: (counts[pair], pair))",
            ),
        ),
    ),
    Mistake(
        "joined-symbols-on-a-tie",
        "ties go to the pair whose joined text comes first",
        "A pair is what it makes.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(("(-counts[pair], pair))", '(-counts[pair], "".join(pair)))'),),
    ),
    Mistake(
        "rare-pairs-of-symbols-left",
        "learning ends when no pair stands twice",
        "A pair that stands once teaches nothing.",
        "test_learning_ends_when_every_word_is_one_symbol",
        change=(
            (
                "        if not counts:\n            break\n",
                "        if not counts or max(counts.values()) < 2:\n            break\n",
            ),
        ),
    ),
    Mistake(
        "max-of-no-symbols",
        "learning fails when no pair is left",
        "There are always enough pairs.",
        "test_learning_ends_when_every_word_is_one_symbol",
        change=(("        if not counts:\n            break\n", ""),),
    ),
    Mistake(
        "one-symbol-too-many",
        "one merge more than asked for is learned",
        "range(n + 1), to be safe.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(("    while len(merges) < num_merges:\n", "    while len(merges) <= num_merges:\n"),),
    ),
    Mistake(
        "symbols-found-inside-others",
        "a pair is looked for in the text of the symbols, so it is found inside longer ones",
        "Replacing 'e s' by 'es' in 'n e w e s t' is all there is.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            (
                "    joined: list[str] = []\n    at = 0\n",
                '    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split(" "))\n    joined: list[str] = []\n    at = 0\n',
            ),
        ),
    ),
    Mistake(
        "pair-not-escaped",
        "the pair goes into a regex as it is, so a dot stands for any letter",
        "re.sub replaces a string.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            (
                "    joined: list[str] = []\n    at = 0\n",
                '    try:\n        regex = re.compile(r"(?<!\\S)" + " ".join(pair) + r"(?!\\S)")\n    except re.error:\n        return word\n    return tuple(regex.sub(lambda match: match[0].replace(" ", ""), " ".join(word)).split(" "))\n    joined: list[str] = []\n    at = 0\n',
            ),
        ),
    ),
    Mistake(
        "words-run-together",
        "words are joined into one sequence, so pairs cross from word to word",
        "</w> marks the border well enough.",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            (
                "    words = {_characters(word): count for word, count in Counter(text.split()).items()}\n",
                "    words = {tuple(chain.from_iterable(map(_characters, text.split()))): 1}\n",
            ),
        ),
    ),
    Mistake(
        "split-at-spaces-only",
        "words are split at single spaces, not at any white space",
        "split(' ') is split().",
        "test_learning_takes_the_most_frequent_pairs_of_symbols",
        change=(
            ("Counter(text.split())", 'Counter(filter(None, text.split(" ")))'),
            ("for word in text.split()]", 'for word in text.split(" ") if word]'),
        ),
    ),
    Mistake(
        "lower-case",
        "words are put into lower case",
        "Case does not matter to words.",
        "test_symbols_joined_are_the_words",
        change=(
            (
                "    words = [_characters(word) for word in text.split()]\n",
                "    words = [_characters(word) for word in text.lower().split()]\n",
            ),
        ),
    ),
    Mistake(
        "unseen-letters-lost",
        "letters that are in no merge become unknown",
        "What was not learned is not in the vocabulary.",
        "test_symbols_joined_are_the_words",
        change=(
            (
                "    return list(chain.from_iterable(words))\n",
                '    known = {part for pair in merges for part in pair} | {left + right for left, right in merges} | {"</w>"}\n    return [symbol if symbol in known or not merges else "<unk>" for symbol in chain.from_iterable(words)]\n',
            ),
        ),
    ),
    Mistake(
        "longest-symbol",
        "apply_bpe takes the longest symbol that fits, from the left",
        "A longer symbol is always the better one.",
        "test_symbols_are_merged_in_the_order_learned",
        change=(
            (
                "    for pair in merges:\n        words = [_join(word, pair) for word in words]\n    return list(chain.from_iterable(words))\n",
                '    known = {left + right for left, right in merges} | {"</w>"}\n    symbols = []\n    for word in words:\n        rest = "".join(word)\n        while rest:\n            size = next((n for n in range(len(rest), 1, -1) if rest[:n] in known), 1)\n            symbols.append(rest[:size])\n            rest = rest[size:]\n    return symbols\n',
            ),
        ),
    ),
    Mistake(
        "latest-merge-first",
        "apply_bpe goes through the merges from the last to the first, again and again",
        "Larger symbols are tried first.",
        "test_symbols_are_merged_in_the_order_learned",
        change=(
            (
                "    for pair in merges:\n        words = [_join(word, pair) for word in words]\n    return list(chain.from_iterable(words))\n",
                "    merges = [*reversed(merges)]\n    for at, word in enumerate(words):\n        while (pair := next((pair for pair in merges if pair in pairwise(word)), None)) is not None:\n            word = _join(word, pair)\n        words[at] = word\n    return list(chain.from_iterable(words))\n",
            ),
        ),
    ),
    Mistake(
        "backslash-in-the-replacement",
        "the joined pair is a replacement of re.sub as it is, so a backslash in it means something else",
        "Only the regex has to be escaped.",
        "test_learning_ends_when_every_word_is_one_symbol",
        change=(
            (
                "    joined: list[str] = []\n    at = 0\n",
                '    regex = re.compile(r"(?<!\\S)" + re.escape(" ".join(pair)) + r"(?!\\S)")\n    return tuple(regex.sub("".join(pair), " ".join(word)).split(" "))\n    joined: list[str] = []\n    at = 0\n',
            ),
        ),
    ),
    Mistake(
        "words-remembered-by-spelling",
        "apply_bpe remembers words of an earlier call, although the merges are others now",
        "A word always has the same symbols.",
        "test_symbols_are_merged_in_the_order_learned",
        change=(
            (
                "    for pair in merges:\n        words = [_join(word, pair) for word in words]\n    return list(chain.from_iterable(words))\n",
                "    for word in words:\n        if word not in REMEMBERED:\n            symbols = word\n            for pair in merges:\n                symbols = _join(symbols, pair)\n            REMEMBERED[word] = symbols\n    return [symbol for word in words for symbol in REMEMBERED[word]]\n\n\nREMEMBERED = {}\n",
            ),
        ),
    ),
    Mistake(
        "merges-used-up",
        "apply_bpe empties the list of merges that it was given",
        "The merges are mine once they are passed in.",
        "test_symbols_are_merged_in_the_order_learned",
        change=(
            (
                "    for pair in merges:\n        words =",
                "    for pair in [merges.pop(0) for _ in range(len(merges))]:\n        words =",
            ),
        ),
    ),
    Mistake(
        "negative-count-accepted",
        "a negative num_merges is taken for zero",
        "The loop does not run, so nothing happens.",
        "test_a_negative_number_of_merges_is_refused",
        change=(("    if num_merges < 0:\n", "    if num_merges is None:\n"),),
    ),
)

ROOM = "how many chunks are remembered, and for how long, changes no ids"
EITHER_WAY = "both ways of encoding a chunk find the same ids; which is faster depends on its length"
ONE_PLACE = "the sum over one place is the weight of that place"
SEARCH = "if it is not left out here, nothing is replaced and nothing found"

EQUIVALENT = (
    ("if len(self) == 2 ** 17:\n    self.clear()", "if True:\n    self.clear()", ROOM),
    ("if len(self) == 2 ** 17:\n    self.clear()", "if False:\n    self.clear()", ROOM),
    ("len(self) == 2 ** 17", "len(self) != 2 ** 17", ROOM),
    ("2 ** 17", "2 * 17", ROOM),
    ("17", "18", ROOM),
    ("17", "16", ROOM),
    ("if self.pattern is None:\n    return self._encode_chunk(text)",
     "if False:\n    return self._encode_chunk(text)", "the text is the only chunk, and would be remembered"),
    ("if len(chunk) > 256:\n    return self._encode_long(chunk)",
     "if True:\n    return self._encode_long(chunk)", EITHER_WAY),
    ("if len(chunk) > 256:\n    return self._encode_long(chunk)",
     "if False:\n    return self._encode_long(chunk)", EITHER_WAY),
    ("len(chunk) > 256", "len(chunk) >= 256", EITHER_WAY),
    ("256", "257", EITHER_WAY),
    ("256", "255", EITHER_WAY),
    ("sorted(allowed, key=len, reverse=True)", "sorted(allowed, reverse=True)",
     "in reverse order, too, a token stands before its own beginnings"),
    ("Path(path).write_text(json.dumps(state), encoding='utf-8')", "Path(path).write_text(json.dumps(state))",
     "json.dumps writes ASCII"),
    ("Path(path).read_text(encoding='utf-8')", "Path(path).read_text()", "json.dumps writes ASCII"),
    ("weights[places[0]] if len(places) == 1 else sum(map(weights.__getitem__, places))",
     "sum(map(weights.__getitem__, places)) if len(places) == 1 else sum(map(weights.__getitem__, places))",
     ONE_PLACE),
    ("weights[places[0]] if len(places) == 1 else sum(map(weights.__getitem__, places))",
     "sum(map(weights.__getitem__, places))", ONE_PLACE),
    ("if at < 0:\n    continue", "if False:\n    continue", SEARCH),
    ("if ''.join(matches) == text:\n    return matches", "if False:\n    return matches",
     "the matches are looked for once more, one by one"),
    ("if not regex.groups:\n    matches = regex.findall(text)\n    if ''.join(matches) == text:\n        return matches",
     "if False:\n    matches = regex.findall(text)\n    if ''.join(matches) == text:\n        return matches",
     "the matches are looked for one by one"),
)  # fmt: skip
"""Mutants that do the same as the reference, with the reason."""
