"""Chunks by sizes worked out by hand, a landing tensor for each step, and one piece posted ahead of the one waited
for; empty messages are left out."""

import torch
import torch.distributed as dist


def _ring(group):
    g = dist.group.WORLD if group is None else group
    n, me = dist.get_world_size(g), dist.get_rank(g)
    return n, me, dist.get_global_rank(g, (me - 1) % n), dist.get_global_rank(g, (me + 1) % n)


def _sizes(numel, n):
    return [numel // n + (1 if i < numel % n else 0) for i in range(n)]


def _exchange(out, into, left, right, group):
    ops = []
    if out.numel():
        ops.append(dist.P2POp(dist.isend, out, right, group))
    if into.numel():
        ops.append(dist.P2POp(dist.irecv, into, left, group))
    return dist.batch_isend_irecv(ops) if ops else []


def _walk(chunks, start, n, left, right, group, add, pieces=1):
    for s in range(n - 1):
        out = chunks[(start - s) % n]
        mine = chunks[(start - s - 1) % n]
        into = torch.empty_like(mine)
        cut_out = torch.tensor_split(out, pieces)
        cut_in = torch.tensor_split(into, pieces)
        cut_mine = torch.tensor_split(mine, pieces)
        pending = [_exchange(cut_out[0], cut_in[0], left, right, group)]
        for k in range(pieces):
            if k + 1 < pieces:
                pending.append(_exchange(cut_out[k + 1], cut_in[k + 1], left, right, group))
            for r in pending[k]:
                r.wait()
            if add:
                cut_mine[k].add_(cut_in[k])
            else:
                cut_mine[k].copy_(cut_in[k])


def reduce_scatter(x, *, group=None):
    n, me, left, right = _ring(group)
    flat = x.detach().clone().reshape(-1).contiguous()
    chunks = list(torch.split(flat, _sizes(flat.numel(), n)))
    _walk(chunks, me - 1, n, left, right, group, True)
    return chunks[me].clone()


def all_gather(chunk, numel, *, group=None):
    n, me, left, right = _ring(group)
    sizes = _sizes(numel, n)
    if chunk.numel() != sizes[me]:
        raise ValueError(f"chunk has {chunk.numel()} elements, rank {me} holds {sizes[me]} of {numel}")
    whole = torch.empty(numel, dtype=chunk.dtype, device=chunk.device)
    chunks = list(torch.split(whole, sizes))
    chunks[me].copy_(chunk)
    _walk(chunks, me, n, left, right, group, False)
    return whole


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces must be at least 1, got {pieces}")
    n, me, left, right = _ring(group)
    flat = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
    flat.view(x.shape).copy_(x)
    chunks = list(torch.split(flat, _sizes(flat.numel(), n)))
    _walk(chunks, me - 1, n, left, right, group, True, pieces)
    _walk(chunks, me, n, left, right, group, False, pieces)
    return flat.view(x.shape)
