"""What is installed, what is missing, and what works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator

from dojo.places import home

NEEDED = ("torch", "numpy", "hypothesis", "jaxtyping", "psutil", "rich", "textual")
OPTIONAL = {
    "pytest": "the project's own tests", "pytest-xdist": "running them in parallel", "triton": "Triton katas",
    "tiktoken": "the BPE benchmark", "tokenizers": "the BPE benchmark", "regex": "the BPE benchmark",
}  # fmt: skip


def report() -> int:
    """Print the report; 2 if something that is needed is missing."""
    missing = False
    for what, state, fine in findings():
        print(f"{'ok  ' if fine else 'note' if fine is None else 'NO  '}  {what:<22} {state}")
        missing |= fine is False
    return 2 if missing else 0


def findings() -> Iterator[tuple[str, str, bool | None]]:
    """(what, its state, True: fine, None: optional and absent, False: needed and absent)."""
    yield (
        "python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        sys.version_info >= (3, 11),
    )
    for name in NEEDED:
        version = _version(name)
        yield name, version or "missing: pip install -e .", bool(version)
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield name, version or f"not installed (only for {use})", True if version else None
    yield _store()
    yield _editor()
    if _version("torch"):
        yield from _devices()
        yield from _judge()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _store() -> tuple[str, str, bool]:
    folder = home()
    fine = os.access(folder, os.W_OK) if folder.exists() else os.access(folder.parent, os.W_OK)
    return (
        "store",
        f"{folder / '.dojo'} ({'writable' if fine else 'not writable'}), SQLite {sqlite3.sqlite_version}",
        fine,
    )


def _editor() -> tuple[str, str, bool | None]:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    return "editor (--edit)", editor or "neither $VISUAL nor $EDITOR is set", True if editor else None


def _devices() -> Iterator[tuple[str, str, bool | None]]:
    import torch

    cuda = torch.cuda.is_available()
    yield (
        "CUDA",
        torch.cuda.get_device_name() if cuda else "no GPU: kernels run on Triton's interpreter",
        True if cuda else None,
    )
    triton = importlib.util.find_spec("triton") is not None
    where = "compiled, on the GPU" if cuda else "interpreted, on the CPU"
    yield (
        "Triton",
        where if triton else "not installed: Triton katas cannot be judged here",
        True if triton else None,
    )


def _judge() -> Iterator[tuple[str, str, bool]]:
    from dojo import catalogue
    from dojo.judge.client import Judge, JudgeUnavailable
    from dojo.places import room_file

    started = time.monotonic()
    try:
        with Judge() as judge:
            judge.wait()
            how = "children are forked" if judge.forks else "children are spawned, which is slower"
            yield (
                "judge",
                f"warm after {time.monotonic() - started:.1f} s; {how}",
                True,
            )
            name = catalogue.names()[0]
            verdict = judge.judge(name, room_file("reference", name), likeness=False).verdict
            yield (
                "a trial",
                f"reference/{name}.py {verdict.outcome} in {verdict.seconds:.1f} s",
                verdict.passed,
            )
    except JudgeUnavailable as wrong:
        yield "judge", str(wrong), False
