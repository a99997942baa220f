"""A coroutine yields which views to send and where to put what comes; a small loop posts, waits and answers."""

import torch
import torch.distributed as dist
from torch.distributed import P2POp


class Ring:
    def __init__(self, group):
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.next = dist.get_global_rank(self.group, (self.rank + 1) % self.size)
        self.last = dist.get_global_rank(self.group, (self.rank + self.size - 1) % self.size)

    def bounds(self, n, i):
        i %= self.size
        base, more = divmod(n, self.size)
        low = i * base + min(i, more)
        return low, low + base + (i < more)

    def post(self, out, into):
        ops = []
        if into.numel():
            ops.append(P2POp(dist.irecv, into, self.last, self.group))
        if out.numel():
            ops.append(P2POp(dist.isend, out, self.next, self.group))
        return dist.batch_isend_irecv(ops) if ops else []

    def drive(self, turns):
        open_ = []
        for out, into, then, most in turns:
            while len(open_) >= most:
                self.settle(open_.pop(0))
            open_.append((self.post(out, into), then))
        for each in open_:
            self.settle(each)

    def settle(self, posted):
        requests, then = posted
        [r.wait() for r in requests]
        then()


def turns(ring, flat, start, pieces, summing):
    n = flat.numel()
    for step in range(ring.size - 1):
        a, b = ring.bounds(n, start - step)
        c, d = ring.bounds(n, start - step - 1)
        sender, receiver = flat[a:b], flat[c:d]
        for k in range(pieces):
            cut = lambda t: t[len(t) * k // pieces : len(t) * (k + 1) // pieces]
            out, own = cut(sender), cut(receiver)
            into = torch.empty_like(own) if summing else own
            yield out, into, (lambda own=own, into=into: own.add_(into) if summing else None), min(pieces, 2)


def reduce_scatter(x, *, group=None):
    ring = Ring(group)
    flat = torch.cat([x.reshape(-1), x.reshape(-1)[:0]])
    ring.drive(turns(ring, flat, ring.rank - 1, 1, True))
    low, high = ring.bounds(flat.numel(), ring.rank)
    return flat[low:high].clone()


def all_gather(chunk, numel, *, group=None):
    ring = Ring(group)
    low, high = ring.bounds(numel, ring.rank)
    if high - low != chunk.numel():
        raise ValueError(f"expected {high - low} elements, got {chunk.numel()}")
    flat = torch.zeros(numel, dtype=chunk.dtype, device=chunk.device)
    flat[low:high] = chunk
    ring.drive(turns(ring, flat, ring.rank, 1, False))
    return flat


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces must be positive, not {pieces}")
    ring = Ring(group)
    flat = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x).flatten()
    ring.drive(turns(ring, flat, ring.rank - 1, pieces, True))
    ring.drive(turns(ring, flat, ring.rank, pieces, False))
    return flat.reshape(x.shape)
