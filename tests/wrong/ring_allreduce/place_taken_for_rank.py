"""mistake: peers-by-rank-in-the-group

Even and odd ranks take turns, by their place in the group."""

import torch
import torch.distributed as dist


def place(group):
    group = group if group is not None else dist.group.WORLD
    ring = dist.get_process_group_ranks(group)
    at = ring.index(dist.get_rank())
    return at, len(ring), (at - 1) % len(ring), (at + 1) % len(ring)


def swap(out, into, at, left, right, group):
    if at % 2 == 0:
        dist.send(out, right, group=group)
        dist.recv(into, left, group=group)
    else:
        dist.recv(into, left, group=group)
        dist.send(out, right, group=group)


def reduce_scatter(x, *, group=None):
    at, n, left, right = place(group)
    parts = [p.clone() for p in x.reshape(-1).tensor_split(n)]
    for s in range(1, n):
        mine = parts[at - 1 - s]
        got = torch.zeros_like(mine)
        swap(parts[at - s], got, at, left, right, group)
        parts[at - 1 - s] = got + mine
    return parts[at]


def all_gather(chunk, numel, *, group=None):
    at, n, left, right = place(group)
    parts = list(torch.zeros(numel, dtype=chunk.dtype).tensor_split(n))
    if len(parts[at]) != len(chunk):
        raise ValueError(f"{len(chunk)} elements, not {len(parts[at])}")
    parts[at] = chunk.clone()
    for s in range(n - 1):
        into = torch.zeros_like(parts[at - 1 - s])
        swap(parts[at - s], into, at, left, right, group)
        parts[at - 1 - s] = into
    return torch.cat(parts)


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces <= 0:
        raise ValueError(pieces)
    at, n, left, right = place(group)
    if n == 1:
        return x.clone()
    size = -(-(-(-x.numel() // n)) // pieces)
    parts = [p.clone() for p in x.reshape(-1).tensor_split(n)]
    for turn in range(2 * (n - 1)):
        start = at - 1 - turn if turn < n - 1 else at - (turn - n + 1)
        out, old = parts[start % n], parts[(start - 1) % n]
        if size == 0:
            break
        new = torch.zeros_like(old)
        # Every receive of the step is posted; then a blocking send always finds its receiver.
        coming = [dist.irecv(piece, left, group=group) for piece in new.split(size) if len(piece)]
        for piece in out.split(size):
            if len(piece):
                dist.send(piece, right, group=group)
        for request in coming:
            request.wait()
        old.copy_(old + new if turn < n - 1 else new)
    return torch.cat(parts).reshape(x.shape)
