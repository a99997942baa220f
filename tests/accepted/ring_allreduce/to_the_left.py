"""The ring runs to the left, peers are named by their rank in the group, and NumPy adds where it can."""

import torch
import torch.distributed as dist


def add(a, b):
    if a.dtype == torch.bfloat16:
        return a + b
    return torch.from_numpy(a.numpy() + b.numpy())


def exchange(out, shape_of, rank, world, group):
    into = torch.empty_like(shape_of)
    receiving = dist.irecv(into, group=group, group_src=(rank + 1) % world)
    sending = dist.isend(out, group=group, group_dst=(rank - 1) % world)
    sending.wait()
    receiving.wait()
    return into


def walk(parts, first, combine, group):
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    for step in range(world - 1):
        leaving, coming = (first + step) % world, (first + step + 1) % world
        parts[coming] = combine(exchange(parts[leaving], parts[coming], rank, world, group), parts[coming])


def cut(x, group):
    return list(x.contiguous().clone().view(-1).tensor_split(dist.get_world_size(group)))


def reduce_scatter(x, *, group=None):
    parts = cut(x, group)
    rank = dist.get_rank(group)
    walk(parts, rank + 1, add, group)
    return parts[rank]


def all_gather(chunk, numel, *, group=None):
    rank = dist.get_rank(group)
    parts = cut(torch.empty(numel, dtype=chunk.dtype), group)
    if parts[rank].numel() != chunk.numel():
        raise ValueError(f"{chunk.numel()} is not {parts[rank].numel()}")
    parts[rank] = chunk.clone()
    walk(parts, rank, lambda new, old: new, group)
    return torch.cat(parts)


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces={pieces}")
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    parts = cut(x, group)
    for first, summing in ((rank + 1, True), (rank, False)):
        for step in range(world - 1):
            out, own = parts[(first + step) % world], parts[(first + step + 1) % world]
            landed = torch.empty_like(own)
            requests = []
            for into in landed.tensor_split(pieces):
                requests.append(dist.irecv(into, group=group, group_src=(rank + 1) % world))
            sends = [
                dist.isend(o, group=group, group_dst=(rank - 1) % world) for o in out.tensor_split(pieces)
            ]
            for request, into, old in zip(requests, landed.tensor_split(pieces), own.tensor_split(pieces)):
                request.wait()
                old.copy_(add(old, into) if summing else into)
            for sent in sends:
                sent.wait()
    return torch.cat(parts).view(x.shape)
