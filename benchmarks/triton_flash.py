"""FlashAttention in Triton on a GPU, beside the attention that ships with PyTorch.

    python -m benchmarks.triton_flash [--dim 64 128] [--length 1024 4096 16384] [--only plain|causal]
                                      [--forward] [--skip NAME ...]

First it checks the reference on this GPU against float64: at most twice the error of plain attention in the
same dtype. Then it prints TFLOP/s, forward and backward, in one process and side by side with

- fa2: ``scaled_dot_product_attention`` with its flash backend, which is FlashAttention-2,
- cudnn: the same with cuDNN's backend,
- flex: ``flex_attention``, compiled.

Hidden size 2,048 and 16,384 tokens a batch, in bf16; medians of ``triton.testing.do_bench``. A forward pass
counts 4·T²·head_dim operations for each head, a backward pass 2.5 times as many, causal half of it. The
target is a forward pass at least level with fa2 in every case.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

from reference.triton_flash import triton_flash

HIDDEN, TOKENS = 2048, 16384
PEERS = ("fa2", "cudnn", "flex")


def plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None) -> Tensor:
    """Attention by its definition, in the dtype of its inputs."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * q.shape[3] ** -0.5
    last = torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
    columns = torch.arange(k.shape[2], device=q.device)
    seen = columns <= last if causal else columns >= 0
    if window is not None:
        seen = seen & (columns > last - window)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~seen.any(-1, keepdim=True), 0) @ v


def errors(call: Callable, inputs: list[Tensor], upstream: Tensor, truth: list[Tensor] | None) -> list:
    """Result and gradients in float64; with a truth, the largest error of each."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(*leaves)
    found = [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]
    if truth is None:
        return [x.detach().double() for x in found]
    return [float((x.detach().double() - t).abs().max()) for x, t in zip(found, truth, strict=True)]


def agreement() -> bool:
    """Values and gradients against float64, over dtypes, widths, ragged lengths, grouped heads and windows."""
    cases = [
        (torch.bfloat16, 64, 8, 8, 1024, 1024, False, None),
        (torch.bfloat16, 64, 8, 2, 1000, 1291, True, None),
        (torch.bfloat16, 128, 8, 8, 1024, 1024, True, None),
        (torch.bfloat16, 128, 4, 1, 515, 1027, False, None),
        (torch.float16, 128, 4, 2, 1291, 1000, True, 300),
        (torch.float16, 32, 4, 4, 700, 700, True, None),
        (torch.float32, 64, 4, 2, 300, 411, True, 100),
    ]
    good = True
    for dtype, dim, heads, kv_heads, queries, keys, causal, window in cases:
        shapes = (
            (2, heads, queries, dim),
            (2, kv_heads, keys, dim),
            (2, kv_heads, keys, dim),
            (2, heads, queries, dim),
        )
        generator = torch.Generator("cuda").manual_seed(queries)
        *inputs, upstream = (torch.randn(s, dtype=dtype, device="cuda", generator=generator) for s in shapes)
        naive = partial(plain, causal=causal, window=window)
        truth = errors(naive, [x.double() for x in inputs], upstream, None)
        own = errors(partial(triton_flash, causal=causal, window=window), inputs, upstream, truth)
        same = errors(naive, inputs, upstream, truth)
        floor = 8 * torch.finfo(dtype).eps
        fine = all(o <= 2 * s + floor for o, s in zip(own, same, strict=True))
        good &= fine
        shown = "  ".join(
            f"{name} {o:.1e}/{s:.1e}" for name, o, s in zip(("out", "dq", "dk", "dv"), own, same, strict=True)
        )
        what = f"{str(dtype)[6:]:<9} D{dim:<4} H{heads}/{kv_heads} T{queries}/{keys} {'causal' if causal else 'plain '}"
        print(
            f"  {'ok ' if fine else 'OFF'} {what} window {window or '-':<4} largest error, own/plain: {shown}",
            flush=True,
        )
    return good


def contenders(skip: list[str]) -> dict[str, Callable]:
    """The calls to compare, by name, each made for a case by (length, causal)."""

    def own(length: int, causal: bool) -> Callable:
        return partial(triton_flash, causal=causal)

    def sdpa(backend: SDPBackend, length: int, causal: bool) -> Callable:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return call

    def flex(length: int, causal: bool) -> Callable:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.config.recompile_limit = 64
        mask = None
        if causal:
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cuda")
        return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)

    made = {
        "triton": own,
        "fa2": partial(sdpa, SDPBackend.FLASH_ATTENTION),
        "cudnn": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
        "flex": flex,
    }
    return {name: make for name, make in made.items() if name not in skip}


def speeds(make: Callable, dim: int, length: int, causal: bool, forward_only: bool) -> Iterator[float]:
    """TFLOP/s of the forward pass, then of the backward pass."""
    shape = TOKENS // length, HIDDEN // dim, length, dim
    q, k, v, upstream = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    call = make(length, causal)
    work = 4 * TOKENS * HIDDEN * length * (0.5 if causal else 1) / 1e9
    with torch.no_grad():
        yield work / do_bench(lambda: call(q, k, v), warmup=50, rep=200, return_mode="median")
    if not forward_only:
        out = call(*leaves)
        yield 2.5 * work / do_bench(
            lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True),
            warmup=50, rep=200, return_mode="median",
        )  # fmt: skip


def main() -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser("benchmarks.triton_flash", description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, nargs="+", default=[64, 128], help="head dimensions")
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 4096, 16384], help="sequence lengths")
    parser.add_argument("--only", choices=("plain", "causal"), help="leave out the others")
    parser.add_argument("--forward", action="store_true", help="leave out the backward passes")
    parser.add_argument("--skip", nargs="*", default=[], choices=PEERS, help="contenders to leave out")
    parser.add_argument("--no-check", action="store_true", help="leave out the agreement with float64")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing to measure", file=sys.stderr)
        return 2
    started = time.monotonic()
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}, triton {triton.__version__}, ", end="")
    print(
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}"
    )
    print(f"command: python -m benchmarks.triton_flash {' '.join(sys.argv[1:])}".rstrip())
    if not asked.no_check:
        print("agreement with float64 (at most twice the error of plain attention in the same dtype):")
        if not agreement():
            return 1
    made = contenders(asked.skip)
    print("TFLOP/s, forward / backward, bf16, medians; in brackets our forward over fa2's")
    print(f"{'':<20}" + "".join(f"{name:>14}" for name in made))
    behind = []
    for dim in asked.dim:
        for length in asked.length:
            for causal in (False, True):
                if asked.only and causal != (asked.only == "causal"):
                    continue
                found, cells = {}, ""
                for name, make in made.items():
                    try:
                        found[name] = list(speeds(make, dim, length, causal, asked.forward))
                        cells += f"{' / '.join(f'{x:.0f}' for x in found[name]):>14}"
                    except (RuntimeError, ImportError) as error:
                        cells += f"{'not available':>14}"
                        print(f"  {name}: {str(error).splitlines()[0][:150]}", file=sys.stderr)
                label = f"D{dim} T{length} {'causal' if causal else 'plain'}"
                if "fa2" in found:
                    ratio = found["triton"][0] / found["fa2"][0]
                    cells += f"   [{ratio:.2f}]"
                    behind += [label] if ratio < 1 else []
                print(f"{label:<20}{cells}", flush=True)
                torch.cuda.empty_cache()
    if "fa2" in made:
        print(
            "forward level with fa2 in every case"
            if not behind
            else f"forward behind fa2 in: {', '.join(behind)}"
        )
    print(f"{time.monotonic() - started:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
