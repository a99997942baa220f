"""Chunks are the rows of a padded table, all of one length, cut into padded pieces: every message is as long."""

import torch
import torch.distributed as dist


def to_rows(x, world, pieces):
    parts = x.reshape(-1).tensor_split(world)
    length = -(-x.numel() // world)
    table = x.new_zeros(world, length)
    for row, part in zip(table, parts):
        row[: len(part)] = part
    return table, [len(p) for p in parts], max(1, -(-length // pieces))


def shift(table, start, adding, size, group):
    world = table.shape[0]
    ring = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
    me = dist.get_rank(group)
    before, after = ring[(me + world - 1) % world], ring[(me + 1) % world]
    for step in range(world - 1):
        going, old = table[(start - step) % world], table[(start - step - 1) % world]
        landing = torch.zeros_like(old)
        receives, sends = [], []
        for low in range(0, table.shape[1], size):
            receives.append((dist.irecv(landing[low : low + size], src=before, group=group), low))
            sends.append(dist.isend(going[low : low + size], dst=after, group=group))
        for request, low in receives:
            request.wait()
            if adding:
                torch.add(old[low : low + size], landing[low : low + size], out=old[low : low + size])
            else:
                old[low : low + size] = landing[low : low + size]
        for request in sends:
            request.wait()


def reduce_scatter(x, *, group=None):
    world, me = dist.get_world_size(group), dist.get_rank(group)
    table, lengths, size = to_rows(x, world, 1)
    shift(table, me - 1, True, size, group)
    return table[me, : lengths[me]].clone()


def all_gather(chunk, numel, *, group=None):
    world, me = dist.get_world_size(group), dist.get_rank(group)
    table, lengths, size = to_rows(chunk.new_zeros(numel), world, 1)
    if lengths[me] != len(chunk):
        raise ValueError(f"{len(chunk)} elements for {lengths[me]}")
    table[me, : len(chunk)] = chunk
    shift(table, me, False, size, group)
    return torch.cat([row[:n] for row, n in zip(table, lengths)])


def ring_allreduce(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces = {pieces}")
    world, me = dist.get_world_size(group), dist.get_rank(group)
    table, lengths, size = to_rows(x, world, pieces)
    shift(table, me - 1, True, size, group)
    shift(table, me, False, size, group)
    return torch.cat([row[:n] for row, n in zip(table, lengths)]).reshape(x.shape)
