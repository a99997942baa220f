"""Top-p over a vocabulary of 128k: the reference beside Hugging Face's TopPLogitsWarper.

    python -m benchmarks.sampling [--vocab 128000] [--rows 4] [--repeats 15]

One thread, float32. Peaked logits are those of a confident model (noise of standard deviation 4: the nucleus
holds some hundreds of tokens), flat ones have a nucleus of tens of thousands, beyond the 1,024 that the
reference looks at first. The two take turns, so that a busy machine slows both alike; a ratio is the
median of the ratios of the rounds. Before anything is timed, the nuclei are compared: they may differ by
tokens that tie at the edge, or that rounding decides.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from torch import Tensor

from reference.sampling import sample, top_p

SHARE = 0.9
CASES = {"peaked": (4.0, 5.0), "flat": (0.5, 1.0)}
"""The noise's standard deviation, and how many times as fast the reference is to be at least."""


def theirs() -> Callable[[Tensor], Tensor]:
    try:
        from transformers import TopPLogitsWarper
    except ImportError:
        raise SystemExit("this needs transformers beside the benchmarks' other packages") from None
    warper = TopPLogitsWarper(SHARE)
    return lambda logits: warper(None, logits)


def compare(ours: Tensor, other: Tensor, logits: Tensor) -> int:
    """The size of the largest nucleus; stops the run if the two differ in more than the edge."""
    chances = logits.double().softmax(-1)
    mass = (chances * ((ours > -torch.inf) ^ (other > -torch.inf))).sum(-1).max()
    if mass > 1e-4:
        raise SystemExit(f"the nuclei differ by tokens of probability {mass:.2g}")
    return int((ours > -torch.inf).sum(-1).max())


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, round by round."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                seen[name].append((time.perf_counter() - started) * 1e3)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--vocab", type=int, default=128_000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    if min(options.vocab, options.rows, options.repeats) < 1:
        parser.error("vocab, rows and repeats are at least 1")
    torch.set_num_threads(1)
    warp, generator = theirs(), torch.Generator().manual_seed(0)
    print(
        f"top-p {SHARE} over {options.rows} × {options.vocab}, one thread, median of {options.repeats} rounds"
    )
    for name, (spread, target) in CASES.items():
        logits = torch.randn(options.rows, options.vocab, generator=generator) * spread
        largest = compare(top_p(logits, SHARE), warp(logits), logits)
        seen = measure(
            {
                "Hugging Face's warper": lambda logits=logits: warp(logits),
                "reference, top_p": lambda logits=logits: top_p(logits, SHARE),
                "reference, sample": lambda logits=logits: sample(logits, generator=generator, top_p=SHARE),
            },
            options.repeats,
        )
        peer = seen["Hugging Face's warper"]
        print(f"  {name}: a nucleus of up to {largest} tokens")
        for what, times in seen.items():
            ratio = statistics.median(a / b for a, b in zip(peer, times, strict=True))
            print(f"    {what:<24}{statistics.median(times):8.1f} ms{ratio:8.2f} × as fast")
            if what == "reference, top_p":
                met = "met" if ratio >= target else "MISSED"
                print(f"    target: at least {target:g} × as fast; got {ratio:.2f} × ({met})")
    versions = f"torch {torch.__version__}, transformers {metadata.version('transformers')}"
    print(f"  Python {platform.python_version()}, {versions}, {platform.machine()}")
    command = f"--vocab {options.vocab} --rows {options.rows} --repeats {options.repeats}"
    print(f"  command: python -m benchmarks.sampling {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
