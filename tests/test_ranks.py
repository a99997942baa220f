"""Several processes: deadlocks and deaths are noticed, named, and leave nothing behind; torchrun comes to one verdict."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from dojo import ranks
from dojo.close import Mismatch
from dojo.judge.subject import load
from dojo.places import ROOT, room_file

KATA = "ring_allreduce"
REFERENCE = room_file("reference", KATA)
POST = "        under_way.append((dist.batch_isend_irecv(batch) if batch else [], landing, term))\n"
FIRST = "    first = dist.get_rank(group) - 1\n"

HEAD = "import os, sys, time, torch\nimport torch.distributed as dist\n\n"


def changed(old, new):
    source = REFERENCE.read_text(encoding="utf-8")
    assert source.count(old) == 1
    return source.replace(old, new)


def line_of(source, text):
    return next(n for n, line in enumerate(source.splitlines(), 1) if text in line)


def nothing_left(process):
    """Whether the warm judge is alone again, within a second or two."""
    for _ in range(40):
        if not psutil.Process(process).children(recursive=True):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def pool():
    """What a test starts here ends with it."""
    yield
    if ranks._pool is not None:
        ranks._pool.end()


def module(body):
    return load(Path("<a subject>"), HEAD + body, ())


# --- through the judge ---------------------------------------------------------------------------------


def test_a_deadlock_times_out_at_once_and_names_the_ranks(judge):
    wrong = "        for end in batch:\n            end.op(end.tensor, end.peer, end.group).wait()\n"
    source = changed(POST, wrong + "        under_way.append(([], landing, term))\n")
    verdict = judge.judge(KATA, Path("deadlock.py"), source, seed=3, likeness=False).verdict
    assert verdict.outcome == "timed_out", verdict.message
    assert re.search(r"rank 0 of \d waits in send to rank 1", verdict.message)
    assert verdict.line == line_of(source, "end.op(end.tensor")
    assert nothing_left(judge._process.pid)


def test_a_rank_that_dies_ends_the_others(judge):
    source = changed(FIRST, "    if dist.get_rank() == 1:\n        os._exit(3)\n" + FIRST)
    source = source.replace("\nfrom collections", "\nimport os\nfrom collections", 1)
    verdict = judge.judge(KATA, Path("dies.py"), source, seed=3, likeness=False).verdict
    assert verdict.outcome == "rejected", verdict.message
    assert any(
        re.search(r"rank 1 of \d ended its process with exit code 3", c.message) for c in verdict.cards
    )
    assert nothing_left(judge._process.pid)


def test_an_exception_names_its_rank_and_line(judge):
    source = changed(FIRST, "    if dist.get_rank() == 1:\n        raise KeyError('left')\n" + FIRST)
    verdict = judge.judge(KATA, Path("raises.py"), source, seed=3, likeness=False).verdict
    assert verdict.outcome == "rejected", verdict.message
    card = verdict.cards[0]
    assert "rank 1 of" in card.message
    assert (card.line, card.text) == (line_of(source, "KeyError('left')"), "raise KeyError('left')")


def test_a_trial_that_is_cancelled_leaves_no_rank_behind(judge):
    source = changed(FIRST, "    while True:\n        pass\n" + FIRST)
    events = judge.trial(KATA, Path("endless.py"), source)
    next(events)
    time.sleep(0.5)
    judge.cancel()
    assert nothing_left(judge._process.pid)


def test_collectives_are_refused(judge):
    body = "def ring_allreduce(x, *, pieces=1, group=None):\n    x = x.clone()\n    getattr(dist, 'all_' + 'reduce')(x, group=group)\n    return x\n"
    source = re.sub(r"^def ring_allreduce.*?\n\n\n", body + "\n\n", REFERENCE.read_text(), flags=re.M | re.S)
    verdict = judge.judge(KATA, Path("collective.py"), source, seed=3, likeness=False).verdict
    assert verdict.outcome == "rejected", verdict.message
    assert "allreduce is a collective" in verdict.cards[0].message


# --- in this process -----------------------------------------------------------------------------------


def test_what_was_started_is_ended(pool):
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    subject = module("def echo(x, *, group=None):\n    return x + dist.get_rank(group)\n")
    if ranks._pool is not None:
        ranks._pool.end()
    answers = ranks.run(subject, "echo", [(torch.zeros(2),)] * 2, world=3, group=(0, 2))
    assert [a.value.tolist() for a in answers] == [[0, 0], [1, 1]]
    workers = [w.pid for w in ranks._pool.workers.values()]
    assert len(workers) == ranks.SIZE
    ranks._pool.end()
    assert not any(psutil.pid_exists(pid) for pid in workers)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the directory itself


def test_what_cannot_be_proved_to_be_stuck_is_given_up_after_a_while(pool, monkeypatch):
    monkeypatch.setattr(ranks.pool, "PATIENCE", 1.0)
    ranks._pool = None
    subject = module(
        "def sleeps(x, *, group=None):\n    while dist.get_rank() == 1:\n        time.sleep(0.1)\n\n\n"
        "def tags(x, *, group=None):\n    dist.recv(x, 1 - dist.get_rank(), tag=1 + dist.get_rank())\n"
    )
    with pytest.raises(ranks.Stuck, match="rank 1 of 2 has not answered for 1 s, line 6"):
        ranks.run(subject, "sleeps", [(torch.zeros(1),)] * 2, world=2)
    with pytest.raises(ranks.Stuck, match="rank 0 of 2 waits in an operation, line 10"):
        ranks.run(subject, "tags", [(torch.zeros(1),)] * 2, world=2)
    ranks._pool.end()
    ranks._pool = None


def test_a_rank_that_waits_for_one_that_has_finished_is_stuck_at_once(pool, monkeypatch):
    monkeypatch.setattr(ranks.pool, "PATIENCE", 1e6)  # so that it must have been proved
    ranks._pool = None
    subject = module("def f(x, *, group=None):\n    if dist.get_rank() == 0:\n        dist.recv(x, 1)\n")
    with pytest.raises(ranks.Stuck, match=r"^rank 0 of 2 waits in recv from rank 1, line 6$") as caught:
        ranks.run(subject, "f", [(torch.zeros(1),)] * 2, world=2)
    assert caught.value.line == 6
    with pytest.raises(Mismatch, match="rank 1 of 2 ended its process with exit code 5"):
        ranks.run(
            module("def f(x):\n    if dist.get_rank():\n        os._exit(5)\n    dist.recv(x, 1)\n"),
            "f",
            [(torch.zeros(1),)] * 2,
            world=2,
        )
    ranks._pool.end()
    ranks._pool = None


def test_the_log_tells_what_was_sent_and_what_was_done_to_buffers(pool):
    subject = module("""
def f(x, *, group=None):
    other = 1 - dist.get_rank()
    a, b = torch.zeros(3), torch.zeros(3)
    early = [dist.irecv(a, other), dist.irecv(b, other)]
    sends = [dist.isend(x, other), dist.isend(x, other)]
    seen = a.isnan().all()
    x += 1
    for request in early + sends[:1]:
        request.wait()
    return torch.stack([a, b]) if seen else None
""")
    for answer in ranks.run(subject, "f", [(torch.ones(3, dtype=torch.float32),)] * 2, world=2):
        assert answer.value.shape == (2, 3)
        assert answer.args[0].tolist() == [2, 2, 2]
        assert [(m.peer, m.numel, m.bytes) for m in answer.messages] == [(1 - answer.rank, 3, 12)] * 4
        assert [m.ahead for m in answer.received] == [1, 0]
        assert [m.waited for m in answer.sent] == [True, False]
        assert answer.sent[0].disturbed


def test_layouts_arrive_as_they_left(pool):
    subject = module(
        "def f(x, *, group=None):\n    return torch.tensor([*x.stride(), *x.shape, x.storage_offset()])\n"
    )
    table = torch.arange(24.0).view(2, 3, 4)
    for x in (table.transpose(0, 2), table[:, 1:, ::2], table[:1].expand(5, 3, 4), torch.zeros(0, 2)):
        (answer,) = ranks.run(subject, "f", [(x,)], world=1)
        assert answer.value.tolist() == [*x.stride(), *x.shape, x.storage_offset()]


# --- torchrun ------------------------------------------------------------------------------------------


def torchrun(count, path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--master-port",
        str(free_port()),
    ]
    command += ["runner.py", KATA, "--once", "--file", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("count", [2, 4])
def test_torchrun_passes_the_reference(count):
    done = torchrun(count, REFERENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ring_allreduce: passed") == 1, "one rank speaks for all"


def test_all_ranks_reject_a_wrong_answer(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(changed("range((world - 1) * pieces)", "range(max(world - 2, 0) * pieces)"))
    done = torchrun(2, wrong)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("ring_allreduce: rejected") == 1
    codes = re.findall(r"exitcode\s*: (-?\d+)", done.stderr)
    assert set(codes) == {"1"}, done.stderr


def test_without_torchrun_the_first_rank_keeps_the_store(tmp_path):
    """Only the environment counts, so that other launchers work too; and a rank that dies is everybody's verdict."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        changed(
            "    if pieces < 1:\n",
            "    if dist.get_rank() == 1:\n        raise SystemExit(4)\n    if pieces < 1:\n",
        )
    )
    port = str(free_port())
    ours = [
        subprocess.Popen(
            [sys.executable, "runner.py", KATA, "--once", "--file", str(wrong)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for r in range(2)
    ]  # fmt: skip
    said = [p.communicate(timeout=280)[0] for p in ours]
    assert [p.returncode for p in ours] == [1, 1], said
    assert "rank 1 of 2" in said[0]
    assert not said[1].strip()
