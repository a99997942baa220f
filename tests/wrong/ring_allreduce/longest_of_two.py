"""mistake: pieces-of-the-larger-chunk

Blocking calls without pieces; with pieces, both chunks of a step are cut by the longer one."""

import torch
import torch.distributed as dist


def _setup(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    g = group or dist.group.WORLD
    return (
        rank,
        size,
        dist.get_global_rank(g, (rank + 1) % size),
        dist.get_global_rank(g, (rank + size - 1) % size),
    )


def _blocking(rank, out, to, into, frm, group):
    if rank == 0:
        if into.numel():
            dist.recv(into, src=frm, group=group)
        if out.numel():
            dist.send(out, dst=to, group=group)
    else:
        if out.numel():
            dist.send(out, dst=to, group=group)
        if into.numel():
            dist.recv(into, src=frm, group=group)


def _move(rank, out, to, into, frm, group, pieces, done):
    if pieces == 1:
        _blocking(rank, out, to, into, frm, group)
        done(0, into.numel())
        return
    size = max(1, -(-max(out.numel(), into.numel()) // pieces))
    pend_out = [(i, min(i + size, out.numel())) for i in range(0, out.numel(), size)]
    pend_in = [(i, min(i + size, into.numel())) for i in range(0, into.numel(), size)]
    ins = [dist.irecv(into[a:b], src=frm, group=group) for a, b in pend_in]
    outs = [dist.isend(out[a:b], dst=to, group=group) for a, b in pend_out]
    for (a, b), w in zip(pend_in, ins):
        w.wait()
        done(a, b)
    for w in outs:
        w.wait()


def _scatter(x, group, pieces):
    rank, size, nxt, prv = _setup(group)
    flat = x.detach().reshape(-1)
    res = flat.new_empty(flat.shape)
    res.copy_(flat)
    own = flat
    parts, terms = torch.tensor_split(res, size), torch.tensor_split(own, size)
    for i in range(size - 1):
        a, b = (rank - 1 - i) % size, (rank - 2 - i) % size

        def plus(lo, hi, b=b):
            parts[b][lo:hi] += terms[b][lo:hi]

        _move(rank, parts[a], nxt, parts[b], prv, group, pieces, plus)
    return res, parts, rank


def _nothing(lo, hi):
    pass


def _spread(parts, group, pieces):
    rank, size, nxt, prv = _setup(group)
    for i in range(size - 1):
        _move(rank, parts[(rank - i) % size], nxt, parts[(rank - i - 1) % size], prv, group, pieces, _nothing)


def reduce_scatter(x, *, group=None):
    _, parts, rank = _scatter(x, group, 1)
    return parts[rank].clone()


def all_gather(chunk, numel, *, group=None):
    rank, size, *_ = _setup(group)
    res = torch.empty((numel,), dtype=chunk.dtype)
    parts = torch.tensor_split(res, size)
    if parts[rank].shape != chunk.shape:
        raise ValueError(f"{tuple(chunk.shape)} for {tuple(parts[rank].shape)}, numel {numel}")
    parts[rank].copy_(chunk.detach())
    _spread(parts, group, 1)
    return res


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces {pieces}")
    res, parts, _ = _scatter(x, group, pieces)
    _spread(parts, group, pieces)
    return res.view(x.shape)
