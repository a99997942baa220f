"""What the tests share: one warm judge a worker, and a home that is not the checkout's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

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
    """Nothing that a test does touches the person's own practice/ and store."""
    os.environ["KATA_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def judge(elsewhere):
    """A warm judge."""
    from dojo.judge.client import Judge

    with Judge() as warm:
        yield warm
