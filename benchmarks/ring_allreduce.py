"""The reference beside dist.all_reduce: over gloo on CPUs, over NCCL where there is a GPU for each rank.

    python -m benchmarks.ring_allreduce [--world N]      starts N processes by itself (default: one a GPU, or 2)
    torchrun --nproc-per-node N -m benchmarks.ring_allreduce

Bus bandwidth is 2(N − 1)/N · bytes / time: what each link carries if nobody sends more than is needed, and so
comparable between numbers of ranks. float32; medians over repeats that take turns, so that the ratios hold even
where the machine is shared. The time of a repeat is the slowest rank's. The ring returns a new tensor, while
dist.all_reduce works in place: "of a copy" is what it takes to have a new tensor from it. On a CPU that counts,
since from about 32 MB on the allocator takes fresh memory from the system at each call, whose pages cost on first
touch as much as the messages do.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from reference.ring_allreduce import ring_allreduce

MB = 2**20
PIECES = (1, 2, 4, 8)
GLOO_SIZES, NCCL_SIZES = (1, 16, 64), (1, 16, 256, 1024)
REPEATS = 15


def spawn(world: int) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.run([*command, "-m", "benchmarks.ring_allreduce"], check=False).returncode


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long the slowest rank takes."""
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = torch.tensor(time.perf_counter() - started, device=device, dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took)


def summed_copy(x: torch.Tensor) -> torch.Tensor:
    copy = x.clone()
    dist.all_reduce(copy)
    return copy


def measure(megabytes: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each way to sum a tensor of that size."""
    x = torch.full((megabytes * MB // 4,), float(dist.get_rank()), device=device)
    work = torch.empty_like(x)
    ways: dict[str, Callable[[], object]] = {"dist.all_reduce": lambda: dist.all_reduce(work)}
    ways["  of a copy"] = lambda: summed_copy(x)
    for pieces in PIECES:
        ways[f"ring, pieces={pieces}"] = lambda pieces=pieces: ring_allreduce(x, pieces=pieces)
    want = sum(range(dist.get_world_size()))
    for name, way in ways.items():
        work.copy_(x)
        got = way()
        if not torch.equal(work if got is None else got, torch.full_like(x, want)):
            raise SystemExit(f"{name} gives a wrong sum")
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            work.copy_(x)
            seen[name].append(seconds(way, device))
    return {name: statistics.median(times) for name, times in seen.items()}


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.ring_allreduce")
    parser.add_argument("--world", type=int, help="how many processes to start")
    asked = parser.parse_args()
    gpus = torch.cuda.device_count()
    if "RANK" not in os.environ:
        return spawn(asked.world or (gpus if gpus > 1 else 2))
    fast = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if fast else torch.device("cpu")
    if fast:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if fast else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if fast:
        versions += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}, {torch.cuda.get_device_name()}"
    if rank == 0:
        print(f"All-reduce of float32 over {'NCCL' if fast else 'gloo'}, {world} ranks, median of {REPEATS}")
        print(f"  {'':18s}{'MB':>6s}{'ms':>10s}{'bus GB/s':>10s}{'× all_reduce':>14s}")
    for megabytes in NCCL_SIZES if fast else GLOO_SIZES:
        times = measure(megabytes, device)
        for name, took in times.items() if rank == 0 else ():
            speed = 2 * (world - 1) / world * megabytes * MB / took / 1e9
            ratio = times["dist.all_reduce"] / took
            print(f"  {name:18s}{megabytes:6d}{took * 1e3:10.2f}{speed:10.2f}{ratio:14.2f}", flush=True)
    if rank == 0:
        print(f"  {versions}, {platform.machine()}, {os.cpu_count()} CPUs")
        print(f"  command: python -m benchmarks.ring_allreduce --world {world}")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
