"""Binds the claims to an implementation: the reference, or the file given with ``--subject``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dojo import catalogue

# Read by torch when it is first imported: two threads for small tensors lose far more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read by Triton when it is first imported, which torch's compiler does as well: without a GPU, interpret.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

collect_ignore = [f"{name}.py" for name in catalogue.names() if catalogue.lacking(name)]

common = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
    "max_examples": 10,
}
settings.register_profile("ci", derandomize=True, **common)
settings.register_profile("deep", **common | {"max_examples": 2000})
settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption("--subject", type=Path, help="the file to put on trial, instead of the reference")
    parser.addoption("--deep", action="store_true", help="random seeds and two thousand examples")


def pytest_configure(config):
    if config.getoption("--deep"):
        settings.load_profile("deep")


@pytest.fixture(scope="module")
def subject(request):
    """The implementation on trial, as a module."""
    name = Path(request.module.__file__).stem
    path = request.config.getoption("--subject") or Path(__file__).parent.parent / "reference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"subject_{name}", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
