"""What holds a file on trial within bounds, in the child process.

- ``limit_resources``: memory, CPU time, file size, no core files.
- ``Guard``: watches torch calls, imports, opened files and started processes while the claims run, and
  notes those that the person's code makes against the rules.
- ``Seal``: a record of the callables that a verdict rests on; whatever replaced one of them is seen.

None of this is proof against an attacker who knows it: the file shares the process. It ends every
shortcut that a person takes by habit or for fun, and says which.
"""

from __future__ import annotations

import builtins
import functools
import importlib.abc
import importlib.machinery
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from dojo.catalogue import Brief
from dojo.places import ROOMS, ROOT
from dojo.rules import Broken

STARTS_PROCESS = frozenset({
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "os.spawn",
    "pty.spawn",
})  # fmt: skip
REACHES_OUT = frozenset(
    {"socket.connect", "socket.bind", "os.kill", "os.killpg", "signal.pthread_kill", "ctypes.dlopen"}
)


def _by_torch() -> bool:
    """Is it torch or Triton that loads a library? Both look for a GPU in the middle of any call. What
    ``torch.ops.load_library`` loads is the person's choice."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "") in ("ctypes", __name__):
        frame = frame.f_back
    module = "" if frame is None else frame.f_globals.get("__name__", "")
    return module.split(".")[0] in ("torch", "triton") and module != "torch._ops"


def limit_resources(memory_gb: float, seconds: float) -> None:
    """Bound this process. Does nothing for a limit that the platform lacks.

    CUDA reserves address space for the memory of all GPUs, so where there is one that is not bounded.
    """
    try:
        import resource
    except ImportError:
        return
    bounds = {"RLIMIT_CPU": int(2 * seconds) + 5, "RLIMIT_FSIZE": 2**30, "RLIMIT_CORE": 0}
    size = _address_space()
    if size and not gpu_here():
        bounds["RLIMIT_AS"] = size + int(memory_gb * 2**30)
    for name, bound in bounds.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, hard))


def gpu_here() -> bool:
    """Is there a GPU that torch can use? Asked without starting CUDA, which would not survive a fork."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1")
    return torch.backends.cuda.is_built() and not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def _address_space() -> int:
    try:
        pages = Path("/proc/self/statm").read_text().split()[0]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGESIZE")


class Guard(TorchFunctionMode, importlib.abc.MetaPathFinder):
    """Notes what the person's code does against the rules while it is active.

    ``broken`` fills up as things happen; ``on_broken`` hears of each the first time. A forbidden torch
    operation is noted and let through, so that the claims still tell what is wrong with the result;
    a room, a process or a socket is refused with PermissionError. Imports, files and processes are watched
    once it is armed, torch operations within ``with guard:``, because that costs every operation a call.
    """

    def __init__(self, path: Path, brief: Brief, on_broken: Callable[[Broken], None]):
        super().__init__()
        self.path, self.brief, self.on_broken = str(path), brief, on_broken
        self.forbidden = frozenset(brief.forbidden)
        self.broken: set[Broken] = set()
        self.armed = False
        # Not the claims and the machinery: a warning or a traceback quotes their lines by opening them.
        self.answers = tuple(str(ROOT / room) + os.sep for room in ("reference", "mistakes", "tests"))

    def arm(self) -> None:
        """Start watching. The audit hook cannot be taken away again: one process, one trial."""
        sys.meta_path.insert(0, self)
        sys.addaudithook(self.audit)
        self.armed = True

    def note(self, says: str) -> None:
        broken = Broken(says, self.subject_line())
        if broken not in self.broken:
            self.broken.add(broken)
            self.on_broken(broken)

    def subject_line(self) -> int:
        """The line of the person's file that is running, or 0 if none is on the stack."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == self.path:
                return frame.f_lineno
            frame = frame.f_back
        return 0

    def compiling(self) -> bool:
        """Is it Triton that is at work, which calls an assembler for a kernel of the person's?"""
        if "triton" not in self.brief.needs:
            return False
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self.path:
            if frame.f_globals.get("__name__", "").startswith("triton."):
                return True
            frame = frame.f_back
        return False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").split(".")[0]
        if (name in self.forbidden or name.strip("_") in self.forbidden) and self.subject_line():
            self.note(f"calls torch's {name}, which this kata forbids")
        return func(*args, **(kwargs or {}))

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> None:
        room, _, rest = name.partition(".")
        allowed = room == "reference" and (not rest or rest.split(".")[0] in self.brief.builds_on)
        if room in (*ROOMS, "dojo", "tests") and not allowed and self.subject_line():
            self.note(f"imports {name}: the answer is to be written, not fetched")
            raise PermissionError(f"{name} is not yours to import")
        if name.split(".")[0] in self.brief.forbidden_imports and self.subject_line():
            self.note(f"imports {name}, which is what this kata asks you to write")

    def audit(self, event: str, args: tuple) -> None:
        if not self.armed:
            return
        if event == "open":
            where, mode = str(args[0]), str(args[1] or "r")
            if where.startswith(str(ROOT)) and self.subject_line():
                allowed = any(
                    where.startswith(str(ROOT / "reference" / name)) for name in self.brief.builds_on
                )
                if (where.startswith(self.answers) and not allowed) or any(m in mode for m in "wax+"):
                    self.note(f"opens {Path(where).relative_to(ROOT)}")
                    raise PermissionError(f"{where} is not yours to open")
        elif event in STARTS_PROCESS and self.subject_line() and not self.compiling():
            self.note("starts a process")
            raise PermissionError("a file on trial starts no processes")
        elif event in REACHES_OUT and self.subject_line() and not (event == "ctypes.dlopen" and _by_torch()):
            self.note(f"reaches out of its process ({event})")
            raise PermissionError(f"{event} is not for a file on trial")


class Seal:
    """Every callable that a verdict rests on, as it was before any file was loaded.

    In the modules of torch and the standard library only what was there is compared, since they add
    names lazily; in classes and in our own modules a name that is new counts too, because it may shadow
    the one that a claim means (``Tensor.__eq__``, a module's own ``len``).
    """

    def __init__(self, kata: str):
        self.record = [(space, strict, _callables(space)) for space, strict in _spaces(kata)]
        self.builtins = dict(vars(builtins))

    def broken(self) -> list[str]:
        """The names that were replaced or added since, and the modes that were left on."""
        found = self._restored_builtins() + list(modes_left_on())
        for space, strict, before in self.record:
            now = vars(space)
            names = [
                name
                for name, (was, code) in before.items()
                if now.get(name) is not was or (code is not None and was.__code__ is not code)
            ]
            if strict:
                names += [name for name in now.keys() - before.keys() if _counts(now[name])]
            found += [f"{getattr(space, '__name__', space)}.{name}" for name in names]
        return sorted(found)

    def _restored_builtins(self) -> list[str]:
        """Put the builtins back before anything else is called: the check itself uses them."""
        names: list[str] = []
        if builtins.__dict__ != self.builtins:
            now = {**builtins.__dict__}
            builtins.__dict__.update(self.builtins)
            names = [
                f"builtins.{n}" for n, was in self.builtins.items() if now.get(n) is not was and n != "_"
            ]
        return names


def modes_left_on() -> Iterator[str]:
    """A mode sees every torch operation, those of the claims too, and may change what they say.

    That of ``torch.set_default_device`` is harmless."""
    on = _get_current_function_mode_stack() + _get_current_dispatch_mode_stack()
    yield from ("torch's operations, by a mode left on" for m in on if not isinstance(m, DeviceContext))


LATE = frozenset({(torch, "manual_seed")})
"""What torch itself replaces when its compiler is imported, which an ordinary call can bring about."""


def _counts(value: Any) -> bool:
    return callable(value) or isinstance(value, (property, staticmethod, classmethod))


def _callables(space: Any) -> dict[str, tuple[Any, types.CodeType | None]]:
    return {
        name: (value, value.__code__ if isinstance(value, types.FunctionType) else None)
        for name, value in list(vars(space).items())
        if _counts(value) and (space, name) not in LATE
    }


@functools.cache
def seal(kata: str) -> Seal:
    """The seal for a kata; made once in the warm process, whose children inherit it."""
    return Seal(kata)


def _spaces(kata: str) -> Iterator[tuple[Any, bool]]:
    """What to seal, and whether new names count."""
    tensor_bases = [c for c in torch.Tensor.__mro__ if c is not object]
    yield from ((cls, True) for cls in tensor_bases)
    own = [m for n, m in list(sys.modules.items()) if n == f"properties.{kata}" or n.split(".")[0] == "dojo"]
    yield from ((module, True) for module in own)
    for module in own:
        yield from (
            (v, True)
            for v in vars(module).values()
            if isinstance(v, type) and v.__module__ == module.__name__
        )
    for name in (
        "hypothesis.core",
        "hypothesis.internal.conjecture.engine",
        "hypothesis.internal.conjecture.data",
    ):
        module = sys.modules[name]
        yield from ((v, False) for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)
    watched = ("torch", "hypothesis", "_pytest", "pytest")
    deep = (
        "torch.testing",
        "torch.autograd",
        "torch.nn.functional",
        "torch.overrides",
        "torch._tensor",
        "torch.linalg",
        "torch.random",
    )
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and (
            name in watched or name.startswith((*deep, "hypothesis.", "_pytest."))
        ):
            yield module, False
    yield from ((module, False) for module in (math, os, sys, importlib.machinery))
