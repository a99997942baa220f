r"""Ring all-reduce: the sum on every rank, at the cost in traffic of two copies, however many ranks there are.

The flat tensor is cut into N chunks, and the ranks stand in a ring. Let c_s(i) be the chunk that rank i sends to
its right in step s, counted modulo N, while it receives c_s(i−1) from its left:

    reduce-scatter   c_s(i) = i − 1 − s     what comes in is added to the own term
    all-gather       c_s(i) = i − s         what comes in is kept as it is                   s = 0 … N − 2

A chunk that comes in at step s leaves at step s + 1: c_{s+1}(i) = c_s(i−1). In the first round each chunk thus
collects one term a step and comes to rest, complete, at the rank of its own number; in the second it visits all
others. The order in which the terms of a chunk are added is that of the ring, one order for all ranks, and what is
passed on is a copy: the results are equal bit by bit.

Each rank sends N − 1 chunks a round, 2(N−1)/N · n elements in all, and no algorithm whose ranks each hold the whole
result can do with less than that on every link. Latency is 2(N−1) messages, which is why small tensors are better
served by trees.

What comes in lands in the result, where it belongs, and the own term is added to it there. So x is only read: no
copy of it is made, and there is no spare buffer. That counts for large tensors, since memory that is touched for
the first time can cost as much as the messages that fill it.

Pipelining cuts each chunk into pieces and keeps two messages under way: a piece is added while the next one is
travelling. Piece k of step s needs only piece k of step s − 1, so that with two pieces or more the one is always
there when its turn comes.

Source: Patarasuk & Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, J. Parallel Distrib.
Comput. 69 (2009), §4; for deep learning Gibiansky, Bringing HPC techniques to deep learning, 2017. They send to the
right as here; the numbering of the chunks is such that reduce-scatter leaves chunk i on rank i, as the collective of
that name does. Costs 2(N−1)/N · n elements sent and (N−1)/N · n additions, and no memory beside the result;
reduce_scatter has n elements of its own while it runs.
"""

from collections import deque

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import P2POp, ProcessGroup


def reduce_scatter(
    x: Shaped[Tensor, "*shape"], *, group: ProcessGroup | None = None
) -> Shaped[Tensor, "chunk"]:
    """This rank's chunk of the sum over all ranks, as ``torch.tensor_split`` cuts the flat tensor."""
    chunks = _flat_like(x).tensor_split(dist.get_world_size(group))
    _reduce(x, chunks, group)
    return chunks[dist.get_rank(group)].clone()


def all_gather(
    chunk: Shaped[Tensor, "chunk"], numel: int, *, group: ProcessGroup | None = None
) -> Shaped[Tensor, "{numel}"]:
    """The flat tensor whose chunks the ranks hold. ValueError if ``chunk`` is not of this rank's size."""
    whole = chunk.new_empty(numel)
    chunks = whole.tensor_split(dist.get_world_size(group))
    own = chunks[dist.get_rank(group)]
    if chunk.shape != own.shape:
        raise ValueError(f"of {numel} elements this rank holds {len(own)}, got {tuple(chunk.shape)}")
    own.copy_(chunk)
    _gather(chunks, group)
    return whole


def ring_allreduce(
    x: Shaped[Tensor, "*shape"], *, pieces: int = 1, group: ProcessGroup | None = None
) -> Shaped[Tensor, "*shape"]:
    """The sum of x over all ranks, in a new tensor. Chunks travel in ``pieces``; ValueError if that is below 1."""
    if pieces < 1:
        raise ValueError(f"a chunk travels in at least one piece, got pieces={pieces}")
    whole = _flat_like(x)
    chunks = whole.tensor_split(dist.get_world_size(group))
    _reduce(x, chunks, group, pieces)
    _gather(chunks, group, pieces)
    return whole.view(x.shape)


def _flat_like(x: Tensor) -> Tensor:
    """Room for the elements of x in one dimension."""
    return x.new_empty(x.numel())


def _reduce(x: Tensor, chunks: tuple[Tensor, ...], group: ProcessGroup | None, pieces: int = 1) -> None:
    """Let chunk i of the sum come to rest on rank i. What stands in the other chunks then are partial sums."""
    terms = x.detach().reshape(-1).split([len(chunk) for chunk in chunks])
    first = dist.get_rank(group) - 1
    chunks[first].copy_(terms[first])  # the one that leaves without having come; all of x, for a rank alone
    _circulate(chunks, first, group, pieces, terms)


def _gather(chunks: tuple[Tensor, ...], group: ProcessGroup | None, pieces: int = 1) -> None:
    """Let chunk i of rank i replace everybody's."""
    _circulate(chunks, dist.get_rank(group), group, pieces)


def _circulate(
    chunks: tuple[Tensor, ...],
    first: int,
    group: ProcessGroup | None,
    pieces: int,
    terms: tuple[Tensor, ...] | None = None,
) -> None:
    """Send chunk ``first`` to the right, then each that came from the left, with this rank's term added if there are
    ``terms``."""
    world, left, right = len(chunks), *_neighbours(group)
    cut = [chunk.tensor_split(pieces) for chunk in chunks]
    added = [term.tensor_split(pieces) for term in terms or ()]
    under_way: deque[tuple[list, Tensor, Tensor | None]] = deque()
    for turn in range((world - 1) * pieces):
        step, piece = divmod(turn, pieces)
        if len(under_way) == min(pieces, 2):
            _finish(*under_way.popleft())
        leaving, coming = (first - step) % world, (first - step - 1) % world
        outgoing, landing = cut[leaving][piece], cut[coming][piece]
        # Both in one batch: on NCCL, two ranks that send before they receive wait for each other.
        ends = (P2POp(dist.isend, outgoing, right, group), P2POp(dist.irecv, landing, left, group))
        batch = [end for end in ends if end.tensor.numel()]
        term = added[coming][piece] if added else None
        under_way.append((dist.batch_isend_irecv(batch) if batch else [], landing, term))
    while under_way:
        _finish(*under_way.popleft())


def _finish(requests: list, landing: Tensor, term: Tensor | None) -> None:
    for request in requests:
        request.wait()
    if term is not None:
        landing += term


def _neighbours(group: ProcessGroup | None) -> tuple[int, int]:
    """The ranks to the left and to the right, by their number in the world."""
    group = dist.group.WORLD if group is None else group
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    return dist.get_global_rank(group, (rank - 1) % world), dist.get_global_rank(group, (rank + 1) % world)
