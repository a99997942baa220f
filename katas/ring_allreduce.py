"""Ring all-reduce over point-to-point messages.

Several processes, the ranks of a group, hold a tensor each, all of one shape and dtype; n is its number of
elements and N the number of ranks. Each shall end up with the sum. There are no collectives: messages go by
isend, irecv, send, recv and batch_isend_irecv of torch.distributed.

    reduce_scatter(x, *, group=None)
        This rank's chunk of the sum: a new tensor of one dimension. The chunks are those of
        torch.tensor_split(sum.flatten(), N), so that the first n mod N have one element more; rank i of the
        group gets chunk i.
    all_gather(chunk, numel, *, group=None)
        The reverse, without the sum: every rank brings its chunk of a flat tensor of numel elements, and
        gets the whole, a new tensor of one dimension. ValueError if chunk has not as many elements as
        torch.tensor_split gives this rank.
    ring_allreduce(x, *, pieces=1, group=None)
        The sum on every rank: a new tensor, with the shape and dtype of x. ValueError if pieces < 1.

- The ranks of a group stand in a ring, in the order of the group. Each receives from one of its two neighbours
  only and sends to the other only (of two ranks, each is both neighbours of the other).
- A rank sends at most (N − 1)·ceil(n/N) elements in reduce_scatter, as many in all_gather, and the two together
  in ring_allreduce; messages are of x's dtype, and nothing else is sent.
- Sums are taken in x's dtype. The result is the same on all ranks, bit by bit.
- Any N from 1 (no messages at all), any n from 0, also less than N or no multiple of it; x may have any shape,
  also (), and any strides. Inputs are left alone.
- ``group`` is as in torch.distributed: None is the default group; otherwise its ranks may be any of the world's,
  and peers are named by their rank in the world (dist.get_global_rank).
- Every request is waited for before the function returns; a buffer is not touched between the posting of its
  message and the end of the wait. Empty messages may be sent or left out. On gloo a loop that asks is_completed()
  may go on for ever: only wait() is sure to finish a request.
- With ``pieces``, each chunk travels as up to so many messages, none of more than ceil(ceil(n/N)/pieces) elements,
  and while a rank waits for a message, the receive of the next one of that chunk is already posted: so it is on
  its way while this one is added.
- To run on NCCL as well, post the send and the receive that belong together with one batch_isend_irecv.

Example, on two ranks with x = [1, 2, 3] and x = [10, 20, 30]:

    reduce_scatter(x)              →  [11, 22] on rank 0, [33] on rank 1
    all_gather([11, 22] or [33], 3)  →  [11, 22, 33] on both
    ring_allreduce(x)              →  [11, 22, 33] on both
"""

from jaxtyping import Shaped
from torch import Tensor
from torch.distributed import ProcessGroup


def reduce_scatter(
    x: Shaped[Tensor, "*shape"], *, group: ProcessGroup | None = None
) -> Shaped[Tensor, "chunk"]:
    raise NotImplementedError


def all_gather(
    chunk: Shaped[Tensor, "chunk"], numel: int, *, group: ProcessGroup | None = None
) -> Shaped[Tensor, "{numel}"]:
    raise NotImplementedError


def ring_allreduce(
    x: Shaped[Tensor, "*shape"], *, pieces: int = 1, group: ProcessGroup | None = None
) -> Shaped[Tensor, "*shape"]:
    raise NotImplementedError
