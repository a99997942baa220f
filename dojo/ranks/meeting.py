"""Where ranks find each other: a file on one machine, torchrun's store across processes and machines."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta

import torch.distributed as dist

STARTING = 120.0
"""Seconds for the ranks to find each other."""


def run_name() -> str:
    """What the keys of this run begin with: torchrun starts another after a failure."""
    return "dojo/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def kept_by_torchrun() -> bool:
    """Does torchrun keep the store, and not the process of rank 0?"""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def tcp_store(host: bool) -> dist.Store:
    """The store that torchrun keeps; without one, rank 0's judge is the host."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address,
        port,
        is_master=host and not kept_by_torchrun(),
        wait_for_workers=False,
        timeout=timedelta(seconds=STARTING),
    )


class Meeting:
    """Where workers of one machine find each other: a file, without a name where the system can do that."""

    def __init__(self) -> None:
        self.unnamed = hasattr(os, "memfd_create")
        if self.unnamed:
            self.fd = os.memfd_create("ranks", 0)
            self.path = f"/proc/self/fd/{self.fd}"
        else:
            self.fd, self.path = tempfile.mkstemp()

    def close(self) -> None:
        os.close(self.fd)
        if not self.unnamed:
            os.unlink(self.path)
