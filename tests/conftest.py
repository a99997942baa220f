"""What the tests share: one warm judge a worker, and a home that is not the checkout's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

# Read by torch when it is first imported: two threads for small tensors lose far more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read by Triton when it is first imported, which torch's compiler does as well: without a GPU, interpret.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="every mistake, every style on all examples")


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: only tried with --thorough")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Nothing that a test does touches the person's own practice/ and store.

    What the probes give is the same for all workers: it is computed once."""
    home = tmp_path_factory.mktemp("home")
    os.environ["KATA_HOME"] = str(home)
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "traces"
    shared.mkdir(exist_ok=True)
    (home / ".dojo").mkdir()
    (home / ".dojo" / "traces").symlink_to(shared, target_is_directory=True)


@pytest.fixture(scope="session")
def judge(elsewhere):
    """A warm judge."""
    from dojo.judge.client import Judge

    with Judge() as warm:
        yield warm
