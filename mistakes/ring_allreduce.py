"""What people get wrong in a ring of messages."""

import torch.distributed as dist
from torch.distributed import P2POp

from dojo.mistake import Mistake

POST = "        under_way.append((dist.batch_isend_irecv(batch) if batch else [], landing, term))\n"
ROOM = "    return x.new_empty(x.numel())"
COPIED = "    return x.detach().reshape(-1).clone()"
TERMS = "    terms = x.detach().reshape(-1).split("
SCATTER = (
    "    chunks = _flat_like(x).tensor_split(dist.get_world_size(group))\n    _reduce(x, chunks, group)\n"
)
REDUCE = "    whole = _flat_like(x)\n    chunks = whole.tensor_split(dist.get_world_size(group))\n"
OWN = "    return chunks[dist.get_rank(group)].clone()"
BOTH = "        outgoing, landing = cut[leaving][piece], cut[coming][piece]\n"
NEXT = (
    "return dist.get_global_rank(group, (rank - 1) % world), dist.get_global_rank(group, (rank + 1) % world)"
)


def gathered_on_a_root(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces={pieces}")
    world = dist.group.WORLD if group is None else group
    ranks, rank = dist.get_process_group_ranks(world), dist.get_rank(group)
    total = x.contiguous().clone()
    if rank == 0:
        for other in ranks[1:]:
            theirs = total.new_empty(total.shape)
            dist.recv(theirs, other, group)
            total += theirs
        for other in ranks[1:]:
            dist.send(total, other, group)
    else:
        dist.send(total, ranks[0], group)
        dist.recv(total, ranks[0], group)
    return total


def sent_to_everyone(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces={pieces}")
    world = dist.group.WORLD if group is None else group
    ranks, rank = dist.get_process_group_ranks(world), dist.get_rank(group)
    own = x.contiguous().clone()
    theirs = [own if i == rank else own.new_empty(own.shape) for i in range(len(ranks))]
    batch = [P2POp(dist.isend, own, other, group) for i, other in enumerate(ranks) if i != rank]
    batch += [P2POp(dist.irecv, theirs[i], other, group) for i, other in enumerate(ranks) if i != rank]
    for request in dist.batch_isend_irecv(batch) if batch and own.numel() else []:
        request.wait()
    total = theirs[0].clone()
    for one in theirs[1:]:
        total += one
    return total


def whole_tensors_round(x, *, pieces=1, group=None):
    if pieces < 1:
        raise ValueError(f"pieces={pieces}")
    left, right = _neighbours(group)  # the reference's
    total = x.contiguous().clone()
    passing = total.clone()
    for _ in range(dist.get_world_size(group) - 1 if x.numel() else 0):
        landing = passing.new_empty(passing.shape)
        batch = [P2POp(dist.isend, passing, right, group), P2POp(dist.irecv, landing, left, group)]
        for request in dist.batch_isend_irecv(batch):
            request.wait()
        total += landing
        passing = landing
    return total


MISTAKES = (
    Mistake(
        "send-then-receive",
        "every rank sends, and waits for it, before it receives: all wait for each other",
        "A send returns once the data are on their way.",
        "test_no_rank_waits_for_one_that_waits",
        change=(
            (
                POST,
                "        for end in batch:\n            end.op(end.tensor, end.peer, end.group).wait()\n"
                "        under_way.append(([], landing, term))\n",
            ),
        ),
    ),
    Mistake(
        "read-before-it-arrived",
        "what comes in is added before the request has been waited for",
        "irecv returns the data; wait is for the sends.",
        "test_each_rank_gets_its_chunk_of_the_sum",
        change=(
            (
                "    for request in requests:\n        request.wait()\n    if term is not None:\n        landing += term\n",
                "    if term is not None:\n        landing += term\n    for request in requests:\n        request.wait()\n",
            ),
        ),
    ),
    Mistake(
        "one-rank-further",
        "reduce-scatter leaves chunk i + 1 on rank i",
        "Rank i starts with its own chunk.",
        "test_each_rank_gets_its_chunk_of_the_sum",
        change=(
            (OWN, "    return chunks[(dist.get_rank(group) + 1) % len(chunks)].clone()"),
            ("    first = dist.get_rank(group) - 1\n", "    first = dist.get_rank(group)\n"),
            (
                "    _gather(chunks, group, pieces)\n",
                "    _circulate(chunks, dist.get_rank(group) + 1, group, pieces)\n",
            ),
        ),
    ),
    Mistake(
        "a-step-too-few",
        "the ring takes N − 2 steps, so that each chunk lacks a term",
        "With N ranks there are N − 2 others to hear of.",
        "test_each_rank_gets_its_chunk_of_the_sum",
        change=(
            ("range((world - 1) * pieces)", "range(max(world - 2, 0) * pieces)"),
            (ROOM, COPIED),
            ("chunk.new_empty(numel)", "chunk.new_zeros(numel)"),
        ),
    ),
    Mistake(
        "a-step-too-many",
        "the ring takes N steps: the last one passes on what nobody needs any more",
        "N ranks, N steps.",
        "test_reduce_scatter_sends_no_more_than_its_share",
        change=(("range((world - 1) * pieces)", "range((world if world > 1 else 0) * pieces)"),),
    ),
    Mistake(
        "replaced-for-added",
        "reduce-scatter receives over its own term, so that the sum is one rank's term",
        "What comes in is the sum so far.",
        "test_each_rank_gets_its_chunk_of_the_sum",
        change=(("        landing += term\n", "        pass\n"),),
    ),
    Mistake(
        "mean",
        "the sum is divided by the number of ranks",
        "All-reduce averages the gradients.",
        "test_each_rank_gets_its_chunk_of_the_sum",
        change=(
            (
                "    _circulate(chunks, first, group, pieces, terms)\n",
                "    _circulate(chunks, first, group, pieces, terms)\n"
                "    for chunk in chunks:\n        chunk.copy_(chunk / len(chunks))\n",
            ),
        ),
    ),
    Mistake(
        "remainder-dropped",
        "chunks have n // N elements, and the remainder is left out of the sum",
        "N divides n.",
        "test_any_size_is_cut_as_tensor_split_does",
        change=(
            (
                SCATTER,
                "    whole, world = _flat_like(x), dist.get_world_size(group)\n"
                "    chunks = whole[: len(whole) // world * world].tensor_split(world)\n    _reduce(x, chunks, group)\n",
            ),
            (
                REDUCE,
                "    whole, world = _flat_like(x), dist.get_world_size(group)\n"
                "    chunks = whole[: len(whole) // world * world].tensor_split(world)\n",
            ),
            (TERMS, TERMS.replace(".split(", "[: sum(map(len, chunks))].split(")),
            (ROOM, COPIED),
        ),
    ),
    Mistake(
        "chunks-of-ceil",
        "every chunk but the last has ceil(n/N) elements",
        "torch.chunk and tensor_split cut alike.",
        "test_any_size_is_cut_as_tensor_split_does",
        change=(
            (
                SCATTER,
                "    whole, world = _flat_like(x), dist.get_world_size(group)\n    size = -(-len(whole) // world)\n"
                "    chunks = tuple(whole[i * size : (i + 1) * size] for i in range(world))\n    _reduce(x, chunks, group)\n",
            ),
        ),
    ),
    Mistake(
        "order-of-memory",
        "the elements are taken in the order in which they lie in memory",
        "A view of the storage is the flat tensor.",
        "test_x_may_have_any_shape_and_strides",
        change=(
            (
                TERMS,
                "    x = x.detach().clone()\n"
                + TERMS.replace("x.detach().reshape(-1)", "x.as_strided((x.numel(),), (1,))"),
            ),
        ),
    ),
    Mistake(
        "summed-in-place",
        "partial sums are added up in x itself",
        "x is mine once it is passed in.",
        "test_reduce_scatter_leaves_x_alone",
        change=(
            (ROOM, "    return x.detach().contiguous().view(-1)"),
            (TERMS, TERMS.replace("x.detach()", "x.detach().clone()")),
        ),
    ),
    Mistake(
        "float32-for-all",
        "everything is summed in float32: integers and doubles lose digits",
        "Sums run in float32.",
        "test_sums_are_taken_in_the_dtype_of_x",
        change=(
            (ROOM, ROOM + ".float()"),
            (OWN, OWN.replace("clone()", "to(x.dtype, copy=True)")),
            ("    return whole.view(x.shape)", "    return whole.view(x.shape).to(x.dtype)"),
        ),
    ),
    Mistake(
        "half-types-travel-as-float32",
        "half types are sent and summed as float32, at twice the traffic",
        "Reductions of half types run in float32.",
        "test_reduce_scatter_sends_no_more_than_its_share",
        change=(
            (
                ROOM,
                "    flat = x.new_empty(x.numel())\n"
                "    return flat.float() if flat.is_floating_point() and flat.itemsize == 2 else flat",
            ),
            (OWN, OWN.replace("clone()", "to(x.dtype, copy=True)")),
            ("    return whole.view(x.shape)", "    return whole.view(x.shape).to(x.dtype)"),
        ),
    ),
    Mistake(
        "peers-by-rank-in-the-group",
        "the neighbours are named by their rank in the group, not in the world",
        "With group= given, peers are counted in it.",
        "test_the_ranks_of_a_group_form_a_ring_of_their_own",
        change=((NEXT, "return (rank - 1) % world, (rank + 1) % world"),),
    ),
    Mistake(
        "sends-forgotten",
        "only the receives are waited for",
        "What has been posted will be sent.",
        "test_requests_are_waited_for_and_their_buffers_left_alone",
        change=(
            (BOTH, BOTH + "        own, landing = landing, landing.new_empty(len(landing))\n"),
            (
                POST,
                POST.replace(
                    "batch_isend_irecv(batch)", "batch_isend_irecv(batch)[outgoing.numel() > 0 :]"
                ).replace("term)", "term, own)"),
            ),
            ("term: Tensor | None) -> None", "term: Tensor | None, own: Tensor) -> None"),
            (
                "    if term is not None:\n        landing += term\n",
                "    own.copy_(landing if term is None else landing + term)\n",
            ),
        ),
    ),
    Mistake(
        "alone-hands-back-x",
        "a rank alone hands back x itself",
        "With one rank there is nothing to do.",
        "test_a_rank_alone_sends_nothing",
        change=(
            (
                SCATTER,
                "    if dist.get_world_size(group) == 1:\n        return x.detach().contiguous().view(-1)\n"
                + SCATTER,
            ),
            (REDUCE, "    if dist.get_world_size(group) == 1:\n        return x\n" + REDUCE),
        ),
    ),
    Mistake(
        "own-chunk-missing",
        "all_gather leaves zeros where its own chunk belongs",
        "The own chunk comes round like the others.",
        "test_every_rank_gathers_every_chunk",
        change=(
            (
                "    own.copy_(chunk)\n    _gather(chunks, group)\n",
                "    own.copy_(chunk)\n    _gather(chunks, group)\n    own.zero_()\n",
            ),
        ),
    ),
    Mistake(
        "in-order-of-arrival",
        "all_gather concatenates the chunks in the order in which they arrive",
        "Everybody receives them in the same order.",
        "test_every_rank_gathers_every_chunk",
        change=(
            (
                "    _gather(chunks, group)\n    return whole\n",
                "    _gather(chunks, group)\n    rank = dist.get_rank(group)\n"
                "    return whole.new_tensor([y for i in range(len(chunks)) for y in chunks[rank - i].tolist()])\n",
            ),
        ),
    ),
    Mistake(
        "chunk-not-checked",
        "a chunk of another size is cut off or leaves a gap, without a word",
        "The caller knows what the sizes are.",
        "test_a_chunk_of_the_wrong_size_is_refused",
        change=(
            ("    if chunk.shape != own.shape:\n", "    if chunk.ndim != 1:\n"),
            ("    own.copy_(chunk)\n", "    own.zero_()[: len(chunk)] = chunk[: len(own)]\n"),
        ),
    ),
    Mistake(
        "turns-round",
        "the second round goes the other way: each rank sends to both neighbours",
        "The sum has to go back where it came from.",
        "test_all_reduce_sends_two_shares_one_way_round",
        change=(
            (
                "    _circulate(chunks, dist.get_rank(group), group, pieces)\n",
                "    _circulate(chunks[::-1], len(chunks) - 1 - dist.get_rank(group), group, pieces)\n",
            ),
            (
                "    world, left, right = len(chunks), *_neighbours(group)\n",
                "    world, left, right = len(chunks), *_neighbours(group)\n"
                "    if terms is None:\n        left, right = right, left\n",
            ),
        ),
    ),
    Mistake(
        "gathered-on-a-root",
        "one rank collects everything, adds it up and sends the sum back",
        "Reduce, then broadcast.",
        "test_all_reduce_sends_two_shares_one_way_round",
        define=(("ring_allreduce", gathered_on_a_root),),
    ),
    Mistake(
        "sent-to-everyone",
        "every rank sends all of x to every other",
        "The links are there, so use them all.",
        "test_all_reduce_sends_two_shares_one_way_round",
        define=(("ring_allreduce", sent_to_everyone),),
    ),
    Mistake(
        "whole-tensors-round",
        "whole tensors go round the ring, and each rank adds them up in an order of its own",
        "A ring is a ring.",
        "test_all_ranks_hold_the_same_bits",
        define=(("ring_allreduce", whole_tensors_round),),
    ),
    Mistake(
        "flat-result",
        "the sum comes back with one dimension",
        "The shape is the caller's business.",
        "test_all_reduce_returns_a_new_tensor_of_the_shape_of_x",
        change=(("    return whole.view(x.shape)", "    return whole"),),
    ),
    Mistake(
        "a-number-becomes-a-vector",
        "a tensor without dimensions comes back with one",
        "There is always a dimension to cut.",
        "test_all_reduce_returns_a_new_tensor_of_the_shape_of_x",
        change=(("    return whole.view(x.shape)", "    return whole.view(x.shape or (1,))"),),
    ),
    Mistake(
        "group-lost-on-the-way-back",
        "the second round of ring_allreduce runs in the default group",
        "The default group will do.",
        "test_all_reduce_stays_within_its_group",
        change=(("    _gather(chunks, group, pieces)\n", "    _gather(chunks, None, pieces)\n"),),
    ),
    Mistake(
        "pieces-ignored",
        "chunks travel whole, whatever pieces says",
        "Pieces are the backend's business.",
        "test_no_message_is_larger_than_a_piece",
        change=((REDUCE, "    pieces = 1\n" + REDUCE),),
    ),
    Mistake(
        "pieces-only-on-the-way-there",
        "the second round sends chunks whole",
        "There is nothing to add on the way back, so nothing to overlap.",
        "test_no_message_is_larger_than_a_piece",
        change=(("    _gather(chunks, group, pieces)\n", "    _gather(chunks, group)\n"),),
    ),
    Mistake(
        "one-after-the-other",
        "a piece is waited for and added before the next receive is posted",
        "Smaller messages overlap by themselves.",
        "test_the_next_receive_is_posted_before_a_piece_is_waited_for",
        change=(("if len(under_way) == min(pieces, 2):", "if len(under_way) == 1:"),),
    ),
    Mistake(
        "one-spare-buffer",
        "two receives that are under way land in the same buffer",
        "One buffer is enough, since pieces are added one by one.",
        "test_pieces_under_way_have_buffers_of_their_own",
        change=(
            (BOTH, BOTH + "        own, landing = landing, spare[: len(landing)] if added else landing\n"),
            (
                "    under_way: deque",
                "    spare = chunks[0].new_empty(-(-len(chunks[0]) // pieces))\n    under_way: deque",
            ),
            (POST, POST.replace("term)", "term, own)")),
            ("term: Tensor | None) -> None", "term: Tensor | None, own: Tensor) -> None"),
            ("        landing += term\n", "        own.copy_(landing + term)\n"),
        ),
    ),
    Mistake(
        "no-pieces-is-one",
        "zero and negative pieces are taken for one",
        "Clamping is friendlier than raising.",
        "test_less_than_one_piece_is_refused",
        change=(
            (
                '        raise ValueError(f"a chunk travels in at least one piece, got pieces={pieces}")\n',
                "        pieces = 1\n",
            ),
        ),
    ),
    Mistake(
        "two-pieces-by-default",
        "a chunk is cut in two although nobody asked for pieces",
        "A little overlap never hurts.",
        "test_a_chunk_travels_whole_unless_told_otherwise",
        change=(
            (
                '    x: Shaped[Tensor, "*shape"], *, pieces: int = 1, group: ProcessGroup',
                '    x: Shaped[Tensor, "*shape"], *, pieces: int = 2, group: ProcessGroup',
            ),
        ),
    ),
    Mistake(
        "integers-as-doubles",
        "64-bit integers pass through float64, which holds 53 bits",
        "A double holds any integer.",
        "test_large_integers_are_exact",
        change=(
            (
                TERMS,
                "    if not x.is_floating_point():\n        x = x.double().to(x.dtype)\n" + TERMS,
            ),
        ),
    ),
    Mistake(
        "nan-taken-for-zero",
        "what comes in is cleaned of NaN and infinities before it is added",
        "nan_to_num does no harm.",
        "test_what_is_not_finite_is_in_its_chunk",
        change=(("        landing += term\n", "        landing.nan_to_num_()\n        landing += term\n"),),
    ),
    Mistake(
        "sums-cleaned",
        "each sum is cleaned of NaN and infinities once the own term is added",
        "A NaN must not spread.",
        "test_what_is_not_finite_is_in_its_chunk",
        change=(("        landing += term\n", "        landing += term\n        landing.nan_to_num_()\n"),),
    ),
    Mistake(
        "sum-made-finite",
        "NaN and infinities are taken out of the sum that ring_allreduce returns",
        "An optimizer shall not see a NaN.",
        "test_what_is_not_finite_reaches_every_rank",
        change=(("    return whole.view(x.shape)", "    return whole.nan_to_num().view(x.shape)"),),
    ),
    Mistake(
        "order-of-memory-in-the-sum",
        "ring_allreduce takes the elements in the order in which they lie in memory",
        "A clone is contiguous.",
        "test_all_reduce_takes_any_strides",
        change=(
            (
                "    _reduce(x, chunks, group, pieces)\n",
                "    _reduce(x.clone().as_strided((x.numel(),), (1,)), chunks, group, pieces)\n",
            ),
        ),
    ),
    Mistake(
        "floor-or-ceil-for-anyone",
        "a chunk of floor(n/N) or ceil(n/N) elements is accepted from any rank",
        "Chunks have one of two sizes.",
        "test_a_chunk_of_the_wrong_size_is_refused",
        change=(
            (
                "    if chunk.shape != own.shape:\n",
                "    if chunk.ndim != 1 or len(chunk) not in (len(chunks[0]), len(chunks[-1])):\n",
            ),
            ("    own.copy_(chunk)\n", "    own.zero_()[: len(chunk)] = chunk[: len(own)]\n"),
        ),
    ),
    Mistake(
        "pieces-of-the-larger-chunk",
        "a rank cuts by the larger of the two chunks of a step, so that sender and receiver cut a chunk differently",
        "Both messages of a step have pieces of one length.",
        "test_pieces_do_not_change_the_sum",
        change=(
            (
                BOTH,
                "        size = max(1, -(-max(len(chunks[leaving]), len(chunks[coming])) // pieces))\n"
                "        here = slice(piece * size, (piece + 1) * size)\n"
                "        outgoing, landing = chunks[leaving][here], chunks[coming][here]\n",
            ),
            ("        term = added[coming][piece] if added", "        term = terms[coming][here] if added"),
        ),
    ),
    Mistake(
        "a-message-for-the-rest",
        "the length of a piece is rounded down, so that a rest travels in messages of its own",
        "The length of a piece is share // pieces.",
        "test_a_chunk_travels_in_no_more_messages_than_pieces",
        change=(
            (
                "    _reduce(x, chunks, group, pieces)\n",
                "    share = len(chunks[0])\n    pieces = -(-share // max(1, share // pieces)) or 1\n"
                "    _reduce(x, chunks, group, pieces)\n",
            ),
        ),
    ),
)

EQUIVALENT = (
    ("1", "2", "reduce_scatter and all_gather may cut their chunks: only ring_allreduce is told not to"),
    ("2", "3", "one message more under way, where there are three pieces or more"),
    ("x.detach", "x.clone", "one copy more"),
)
"""Mutants that keep the contract as well, with the reason."""
