"""One step of AdamW over 25 million parameters: the reference beside torch.optim.AdamW.

    python -m benchmarks.adamw [--millions 25] [--repeats 15]

One thread, float32, the shapes of a transformer of width 512.
All take turns, so that a busy machine slows them alike, and a ratio is the median of the ratios of the
rounds. Before anything is timed, a few steps of each are compared with torch's default.

- torch default: on a CPU this is its loop over parameters; foreach and fused are what it can be asked for.
- reference, loop: cache-blocked, all operations on a piece of 256K elements before the next piece.
- reference, loop unblocked: the same loop with whole tensors, to show what the pieces are worth.
- textbook: the formulas out of place, as a first answer has them.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reference import adamw

OPTIONS = {"lr": 1e-3, "weight_decay": 1e-2}
FOREACH_TARGET, BLOCKED_TARGET = 1.0, 0.8
PEER = "torch default"


class Textbook(adamw.AdamW):
    """The loop out of place."""

    def _move(self, i: int) -> None:
        p, state, (beta1, beta2) = self.params[i], self._state[i], self.betas
        step, grad = state["step"], p.grad
        p.copy_(p - self.lr * self.weight_decay * p)
        state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * grad
        state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad**2
        mean, square = state["exp_avg"] / (1 - beta1**step), state["exp_avg_sq"] / (1 - beta2**step)
        p.copy_(p - self.lr * mean / (square.sqrt() + self.eps))


class Unblocked:
    """The reference's loop while pieces are as large as anything."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.inner = adamw.AdamW(params, **OPTIONS)

    def step(self) -> None:
        piece, adamw.PIECE = adamw.PIECE, 2**62
        try:
            self.inner.step()
        finally:
            adamw.PIECE = piece


def shapes(count: int) -> list[tuple[int, ...]]:
    """A transformer's parameters, width 512: as many layers as fit, and the rest is the embedding."""
    layer = [(512,), (1536, 512), (512, 512), (512,), (2048, 512), (512, 2048)]
    size = sum(torch.Size(shape).numel() for shape in layer)
    layers = (count * 9 // 10) // size
    return [((count - layers * size) // 512, 512)] + layer * layers


def contestants(params: dict[str, list[Tensor]]) -> dict[str, Callable[[], None]]:
    made = {
        PEER: torch.optim.AdamW(params[PEER], **OPTIONS),
        "torch foreach": torch.optim.AdamW(params["torch foreach"], **OPTIONS, foreach=True),
        "torch fused": torch.optim.AdamW(params["torch fused"], **OPTIONS, fused=True),
        "reference, loop": adamw.AdamW(params["reference, loop"], **OPTIONS),
        "reference, loop unblocked": Unblocked(params["reference, loop unblocked"]),
        "reference, foreach": adamw.AdamW(params["reference, foreach"], **OPTIONS, foreach=True),
        "textbook": Textbook(params["textbook"], **OPTIONS),
    }
    return {name: optimiser.step for name, optimiser in made.items()}


NAMES = (
    PEER, "torch foreach", "torch fused", "reference, loop", "reference, loop unblocked",
    "reference, foreach", "textbook",
)  # fmt: skip


def check(count: int = 50_000) -> float:
    """The largest distance from torch's default after five steps, in units of lr."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((count,), (7, 11), (300, 100))]
    params = {name: [x.clone().requires_grad_() for x in start] for name in NAMES}
    steps = contestants(params)
    for _ in range(5):
        slopes = [torch.randn(x.shape, generator=generator) for x in start]
        for name, step in steps.items():
            for p, slope in zip(params[name], slopes, strict=True):
                p.grad = slope.clone()
            step()
    worst = max(
        float((p - q).detach().abs().max())
        for name in NAMES
        for p, q in zip(params[name], params[PEER], strict=True)
    )
    if worst > 1e-2 * OPTIONS["lr"]:
        raise SystemExit(f"the contestants disagree by {worst}")
    return worst / OPTIONS["lr"]


def measure(count: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of a step, round by round. All work on the same parameters and gradients: what is
    measured does not depend on the values, and memory stays within 2 GB."""
    params = [torch.randn(shape).requires_grad_() for shape in shapes(count)]
    for p in params:
        p.grad = torch.randn_like(p)
    steps = contestants(dict.fromkeys(NAMES, params))
    seen: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:
                seen[name].append((time.perf_counter() - started) * 1e3)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adamw", description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=25.0)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    if options.millions < 4 or options.repeats < 1:
        parser.error("at least 4 million parameters and one repeat")
    torch.set_num_threads(1)
    count = round(options.millions * 1e6)
    print(f"largest difference from {PEER} after five steps: {check():.1e} lr")
    seen = measure(count, options.repeats)
    print(f"one step over {count / 1e6:g} M parameters, one thread, median of {options.repeats} rounds")
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, seen[PEER], strict=True))
        for name, times in seen.items()
    }
    for name, times in seen.items():
        print(f"  {name:<28}{statistics.median(times):8.1f} ms{ratios[name]:8.2f} × {PEER}")
    for name, target in (("reference, foreach", FOREACH_TARGET), ("reference, loop", BLOCKED_TARGET)):
        met = "met" if ratios[name] <= target else "MISSED"
        print(f"  target: {name} at most {target:g} ×; got {ratios[name]:.2f} × ({met})")
    print(f"  Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    print(
        f"  command: python -m benchmarks.adamw --millions {options.millions:g} --repeats {options.repeats}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
