"""Byte-pair encoding: train a tokenizer on text, encode with it, decode.

Part 1, the tokenizer on bytes. Ids 0 … 255 are the bytes of UTF-8; id 256 + i is what merge i makes.

    Tokenizer.train(text, vocab_size, *, pattern=None)   learns the merges and returns a Tokenizer
    .merges           the pairs (left id, right id), each a tuple, in the order learned
    .encode(text)     the ids, a list of int
    .decode(ids)      the text, a str
    .save(path)       writes one file there, in any format, in place of what stands there; path is a str or a Path
    Tokenizer.load(path)   a tokenizer that does all that the saved one does, also from a file that was moved

- Training starts from the bytes and repeats: count the pairs of adjacent ids, take the most frequent (on a
  tie the smallest, as Python compares tuples), and replace it everywhere by the next new id. It ends when
  there are vocab_size ids or when no pair is left; a pair that stands once is merged as well.
- Every position counts: 1 1 1 holds the pair (1, 1) twice. Replacing goes from left to right without
  overlap: 1 1 1 becomes 256 1.
- pattern is a regular expression for the module re, without flags, that never matches the empty string. Each of its matches
  is a chunk, and so is each stretch of text between two matches. Pairs are counted and merged inside
  chunks only, in training and in encoding. Without a pattern the whole text is one chunk.
- encode merges in the order of learning: of all learned pairs in a chunk, the one learned first is merged
  first, until none is left.
- decode joins the bytes of all ids and then decodes them; what is not UTF-8 becomes U+FFFD, as
  bytes.decode does with errors="replace".
- decode(encode(text)) == text for every text, whatever the training text was. (A text is a str without
  lone surrogates.)
- ValueError for vocab_size below 256, and for an id in decode that does not exist.

Part 2, special tokens.

    .add_special_tokens(tokens)    gives each token, in order, the next free id after all there are
    .special_tokens                a dict from token to id
    .encode(text, *, allowed_special=())

- allowed_special is a collection of special tokens, or "all". Wherever one of them stands in the text, it
  becomes its one id, from left to right; each stretch of text between them is encoded as a text of its own.
  Where several could start, the longest is taken. A special token that is not allowed is plain text.
- decode turns the id back into the token; save and load keep the tokens.
- ValueError for a token that is empty, repeated or special already (then none is added), and for an
  allowed_special that holds anything but special tokens.

Part 3, the original on words. A word, as text.split() gives it, is its characters and the symbol "</w>"
at the end. No pair crosses from word to word. Frequency, ties, order, overlap and the end of training
are as in part 1, with symbols (str) for ids; a merge makes left + right. No text holds "</w>" itself.

    learn_bpe(text, num_merges)    the merges, tuples of two symbols; ValueError if num_merges is negative
    apply_bpe(text, merges)        the symbols of all words of the text, one list

Example:

    tokenizer = Tokenizer.train("aaabdaaabac", 259)      aa 4 times, then ab and 256a twice each, …
    tokenizer.merges                   →  [(97, 97), (97, 98), (256, 257)]
    tokenizer.encode("aaabdaaabac")    →  [258, 100, 258, 97, 99]
    learn_bpe("low low lower", 3)      →  [("l", "o"), ("lo", "w"), ("low", "</w>")]
    apply_bpe("lower low", _)          →  ["low", "e", "r", "</w>", "low</w>"]
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal


class Tokenizer:
    merges: list[tuple[int, int]]
    special_tokens: dict[str, int]

    @classmethod
    def train(cls, text: str, vocab_size: int, *, pattern: str | None = None) -> "Tokenizer":
        raise NotImplementedError

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = ()) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        raise NotImplementedError

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        raise NotImplementedError


def learn_bpe(text: str, num_merges: int) -> list[tuple[str, str]]:
    raise NotImplementedError


def apply_bpe(text: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    raise NotImplementedError
