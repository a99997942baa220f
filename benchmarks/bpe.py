"""Byte-pair encoding: the reference beside Hugging Face tokenizers (training) and tiktoken (encoding).

    python -m benchmarks.bpe [--merges 4000] [--megabytes 1.0] [--repeats 7]

All run on one thread, on the same text with the same pattern, and take turns, so that a busy machine slows
all of them alike; a ratio is the median of the ratios of the rounds. Before anything is timed, the merges
are compared with those of a naive implementation, and the ids with tiktoken's.

Text: CPython's own help texts (pydoc_data.topics), then sources of its standard library up to the size
asked for. Pattern: GPT-4's (cl100k_base), written for the module re.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import metadata, util
from itertools import pairwise
from pathlib import Path
from typing import Any

from reference.bpe import Tokenizer

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\w]?+[^\W\d_]++|\d{1,3}+| ?(?:[^\s\w]|_)++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
TRAIN_TARGET, COLD_TARGET, WARM_TARGET = 0.8, 0.3, 0.8
NAIVE_CHARACTERS, NAIVE_MERGES = 20_000, 60


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    # Read by the peers' thread pools when they start.
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    text = corpus(round(options.megabytes * 1e6))
    say_where(options, text)
    check_merges(text)
    print(f"{'what':<28}{'median':>12}{'peer':>12}{'ratio':>9}{'target':>11}")
    tokenizer = compare_training(text, options)
    compare_encoding(text, tokenizer, options)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; argparse leaves with status 2 if they are bad."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bpe", description=__doc__.splitlines()[0])
    parser.add_argument("--merges", type=int, default=4000)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.merges < 1 or not 0.05 <= options.megabytes <= 100 or options.repeats < 1:
        parser.error("merges and repeats are at least 1, megabytes lie between 0.05 and 100")
    return options


def corpus(size: int) -> str:
    """That many characters of real text, the same ones on every run of one Python."""
    from pydoc_data.topics import topics

    parts = [topics[name] for name in sorted(topics)]
    length = sum(map(len, parts))
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        if length >= size:
            break
        parts.append(path.read_text(encoding="utf-8", errors="ignore"))
        length += len(parts[-1])
    text = "\n".join(parts)
    return (text * (size // len(text) + 1))[:size]


def say_where(options: argparse.Namespace, text: str) -> None:
    peers = [f"{n} {metadata.version(n)}" for n in ("tokenizers", "tiktoken") if util.find_spec(n)]
    print(f"command: python -m benchmarks.bpe {' '.join(f'--{k} {v}' for k, v in vars(options).items())}")
    print(f"python {platform.python_version()}, {', '.join(peers) or 'no peers'}")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread each")
    print(
        f"text: {len(text.encode()):,} bytes, {options.merges} merges, medians of {options.repeats} rounds\n"
    )


def check_merges(text: str) -> None:
    """The merges of the reference, and of the peer, against a naive implementation with their tie rules."""
    few = text[:NAIVE_CHARACTERS]
    ours = Tokenizer.train(few, 256 + NAIVE_MERGES, pattern=PATTERN)
    names = [bytes([i]) for i in range(256)]
    require(spell(ours.merges, names) == naive_merges(few, names), "merges differ from the naive ones")
    print(f"merges: {NAIVE_MERGES} equal those of a naive implementation (ties: smallest pair of ids)")
    if util.find_spec("tokenizers"):
        model = json.loads(train_hugging_face(few, NAIVE_MERGES).to_str())["model"]
        alphabet = sorted(range(256), key=gpt2_character)
        to_byte = {gpt2_character(i): bytes([i]) for i in range(256)}
        theirs = [tuple(b"".join(to_byte[c] for c in part) for part in pair) for pair in model["merges"]]
        require(
            theirs == naive_merges(few, [bytes([i]) for i in alphabet]), "tokenizers learned other merges"
        )
        print(
            f"        {NAIVE_MERGES} of tokenizers too, under its own rule: bytes numbered in GPT-2's order"
        )
    print()


def spell(merges: Sequence[tuple[int, int]], names: list[bytes]) -> list[tuple[bytes, bytes]]:
    names = list(names)
    for left, right in merges:
        names.append(names[left] + names[right])
    return [(names[left], names[right]) for left, right in merges]


def naive_merges(text: str, names: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Training as the definition has it; ``names`` says which byte has which id, and so settles ties."""
    numbers = {name: i for i, name in enumerate(names)}
    words = [
        [numbers[bytes([b])] for b in chunk.encode()] for chunk in re.findall(PATTERN, text)
    ]  # it covers every text
    merges: list[tuple[int, int]] = []
    while len(merges) < NAIVE_MERGES:
        counts = Counter(pair for word in words for pair in pairwise(word))
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == pair:
                    word[at : at + 2] = [256 + len(merges)]
                at += 1
        merges.append(pair)
    return spell(merges, names)


def gpt2_character(byte: int) -> str:
    """The character that stands for a byte in GPT-2's files: itself where it prints, else from 256 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in prints else chr(256 + sum(b not in prints for b in range(byte)))


def train_hugging_face(text: str, merges: int) -> Any:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Peer

    peer = Peer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    )
    return peer


def compare_training(text: str, options: argparse.Namespace) -> Tokenizer:
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: Tokenizer.train(text, 256 + options.merges, pattern=PATTERN)
    }
    if util.find_spec("tokenizers"):
        calls["peer"] = lambda: train_hugging_face(text, options.merges)
    times = in_turns(calls, options.repeats)
    say(
        "train, seconds / tokenizers", times, "ours", f"<= {TRAIN_TARGET}", lambda s: f"{s:.3f} s", time_ratio
    )
    return Tokenizer.train(text, 256 + options.merges, pattern=PATTERN)


def compare_encoding(text: str, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    ids = tokenizer.encode(text)
    fresh = {"merges": tokenizer.merges, "pattern": PATTERN}
    # A tokenizer made for each round: building one is not encoding, and is left out of the time.
    calls: dict[str, Callable[[], object]] = {
        "cold": lambda: timed(Tokenizer(**fresh), text),
        "warm": lambda: timed(tokenizer, text),
    }
    if util.find_spec("tiktoken"):
        import tiktoken

        ranks = {token: i for i, token in enumerate(vocabulary(tokenizer.merges))}
        peer = tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        require(peer.encode_ordinary(text) == ids, "the ids differ from tiktoken's")
        calls["peer"] = lambda: peer.encode_ordinary(text)
    times = in_turns(calls, options.repeats)
    megabytes = len(text.encode()) / 1e6
    speed = "{:.1f} MB/s".format
    for name, target in (("cold", COLD_TARGET), ("warm", WARM_TARGET)):
        shown = lambda s: speed(megabytes / s)  # noqa: E731
        say(f"encode, {name} / tiktoken", times, name, f">= {target}", shown, speed_ratio)
    if "peer" in times:
        print(f"\nids: {len(ids):,}, equal to tiktoken's")


def timed(tokenizer: Tokenizer, text: str) -> float:
    started = time.perf_counter()
    tokenizer.encode(text)
    return time.perf_counter() - started


def vocabulary(merges: Sequence[tuple[int, int]]) -> list[bytes]:
    table = [bytes([i]) for i in range(256)]
    for left, right in merges:
        table.append(table[left] + table[right])
    return table


def in_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each call, round by round; a call that returns seconds has timed itself."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            own = call()
            times[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return times


def time_ratio(ours: float, peer: float) -> float:
    return ours / peer


def speed_ratio(ours: float, peer: float) -> float:
    return peer / ours


def say(
    what: str, times: dict[str, list[float]], name: str, target: str, shown: Callable[[float], str],
    ratio: Callable[[float, float], float],
) -> None:  # fmt: skip
    ours = shown(statistics.median(times[name]))
    if "peer" not in times:
        print(f"{what:<28}{ours:>12}{'missing':>12}{'-':>9}{target:>11}")
        return
    between = statistics.median(map(ratio, times[name], times["peer"]))
    print(f"{what:<28}{ours:>12}{shown(statistics.median(times['peer'])):>12}{between:>9.2f}{target:>11}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"not comparable: {otherwise}")


if __name__ == "__main__":
    sys.exit(main())
