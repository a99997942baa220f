"""All receives of a call are posted before anything is sent, each into a place of its own."""

import torch
import torch.distributed as dist


def _ring(group):
    n, r = dist.get_world_size(group), dist.get_rank(group)
    w = group if group is not None else dist.distributed_c10d._get_default_group()
    return n, r, dist.get_global_rank(w, (r + 1) % n), dist.get_global_rank(w, (r - 1) % n)


def _cuts(numel, n, pieces):
    table = []
    lo = 0
    for c in range(n):
        m = numel // n + (c < numel % n)
        row = []
        left = m
        for p in range(pieces):
            k = -(-left // (pieces - p))
            row.append((lo, lo + k))
            lo += k
            left -= k
        table.append(row)
    return table


def _run(flat, n, r, nxt, prv, group, pieces, reduce, gather):
    cuts = _cuts(flat.numel(), n, pieces)
    plan = []
    if reduce:
        plan += [((r - 1 - s) % n, (r - 2 - s) % n, True) for s in range(n - 1)]
    if gather:
        plan += [((r - s) % n, (r - s - 1) % n, False) for s in range(n - 1)]
    rooms = []
    for _, into, _ in plan:
        for lo, hi in cuts[into]:
            room = flat.new_empty(hi - lo)
            rooms.append((dist.irecv(room, prv, group=group) if hi > lo else None, room, lo, hi))
    sends = []

    def send(c):
        for lo, hi in cuts[c]:
            send_piece(lo, hi)

    def send_piece(lo, hi):
        if hi > lo:
            copy = flat[lo:hi].clone()
            sends.append((dist.isend(copy, nxt, group=group), copy))

    if plan:
        send(plan[0][0])
    it = iter(rooms)
    for i, (_, into, add) in enumerate(plan):
        for _ in cuts[into]:
            work, room, lo, hi = next(it)
            if work is not None:
                work.wait()
                if add:
                    flat[lo:hi] += room
                else:
                    flat[lo:hi] = room
            if i + 1 < len(plan) and plan[i + 1][0] == into:
                send_piece(lo, hi)
        if i + 1 < len(plan) and plan[i + 1][0] != into:
            send(plan[i + 1][0])
    for work, _ in sends:
        work.wait()


def reduce_scatter(x, *, group=None):
    n, r, nxt, prv = _ring(group)
    flat = x.detach().flatten().clone()
    _run(flat, n, r, nxt, prv, group, 1, True, False)
    return torch.tensor_split(flat, n)[r].clone()


def all_gather(chunk, numel, *, group=None):
    n, r, nxt, prv = _ring(group)
    ((lo, hi),) = _cuts(numel, n, 1)[r]
    if chunk.shape != (hi - lo,):
        raise ValueError(f"chunk {tuple(chunk.shape)}, numel {numel}, rank {r} of {n}")
    flat = chunk.new_zeros(numel)
    flat[lo:hi] = chunk.detach()
    _run(flat, n, r, nxt, prv, group, 1, False, True)
    return flat


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces <= 0:
        raise ValueError(f"pieces {pieces}")
    n, r, nxt, prv = _ring(group)
    flat = x.detach().flatten().clone()
    _run(flat, n, r, nxt, prv, group, pieces, True, True)
    return flat.unflatten(0, x.shape) if x.ndim else flat.reshape(())
