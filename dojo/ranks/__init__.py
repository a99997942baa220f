"""Several processes for the katas that need them: a rank each, connected by gloo, watched.

``run`` calls one function of the subject on every rank at once and returns what each gave, together with its
messages. The ranks are workers, forked once and kept: a call then costs a millisecond or two. After a failure
they are ended and forked anew, so that no message of one example reaches the next.

What a rank sends and receives goes through a process group written here, which hands it to gloo and keeps
a log. It is also strict where gloo is merely undefined: what is received reaches its buffer in ``wait`` and
not before, and a buffer that is written to while it is under way is noted.

Each rank says in shared memory what it has posted and what it waits for. If every rank that has not answered
waits for something that nobody has posted, no time can help them, and ``Stuck`` is raised at once.

Under torchrun (RANK and WORLD_SIZE are set) every process runs the same claims and forks one worker, its own
rank's. The answers are exchanged through torchrun's store, so that all come to the same verdict. Where each
rank has a GPU, a call is run twice, on gloo for the log and on NCCL for the values.
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence
from typing import Any

from dojo.places import place_among_ranks
from dojo.ranks.pool import PATIENCE, SIZE, Pool
from dojo.ranks.wire import Answer, Message, Stuck

__all__ = ["PATIENCE", "SIZE", "Answer", "Message", "Stuck", "most", "run"]


def most() -> int:
    """How many ranks a claim may ask for."""
    place = place_among_ranks()
    return place[1] if place else SIZE


def run(
    subject: types.ModuleType, name: str, calls: Sequence[tuple], *, world: int,
    group: Sequence[int] | None = None, **options: Any,
) -> list[Answer]:  # fmt: skip
    """Call ``subject.name(*args, group=…, **options)`` on ranks of a world of ``world``, with ``calls`` holding
    each one's args, and return their answers.

    ``group`` names the ranks that take part (default: all, and the function gets no group). Raises what
    the lowest rank that raised has raised; Mismatch if a rank's process ended; Stuck if one does not answer.
    """
    members = tuple(range(world) if group is None else group)
    if len(calls) != len(members):
        raise ValueError(f"{len(calls)} calls for {len(members)} ranks")
    global _pool
    if _pool is None or _pool.owner != os.getpid():
        _pool = Pool()
    return _pool.run(subject, name, calls, world, members, group is not None, options)


_pool: Pool | None = None
