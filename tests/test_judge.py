"""The judge against files that are wrong in every way but wrong answers: each gets the right outcome in
time, and nothing is left running."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import psutil
import pytest

from dojo import catalogue
from dojo.places import ROOT, room_file

REFERENCE = room_file("reference", "softmax").read_text(encoding="utf-8")
PATH = Path("/somewhere/practice/softmax.py")
SECONDS = 3.0


def softmax_that(body: str) -> str:
    """The reference with this done first in every call of softmax."""
    head = "    weights = _shifted(x, dim).exp()\n"
    assert REFERENCE.count(head) == 1
    return REFERENCE.replace(head, textwrap.indent(textwrap.dedent(body).strip() + "\n", "    ") + head)


def loaded_with(prelude: str) -> str:
    """The reference with this run when the file is loaded."""
    return REFERENCE + "\n\n" + textwrap.dedent(prelude)


def judged(judge, source: str, **options):
    verdict = judge.judge("softmax", PATH, source, seconds=SECONDS, **options).verdict
    time.sleep(0.05)
    warm = psutil.Process(judge._process.pid)
    assert warm.children(recursive=True) == [], "a process was left running"
    return verdict, verdict.seconds


def test_the_reference_passes_and_is_confirmed(judge):
    verdict, _ = judged(judge, REFERENCE)
    assert (verdict.outcome, verdict.confirmed) == ("passed", True)
    assert {c.status for c in verdict.claims} == {"held"}
    assert [p.status for p in verdict.parts] == ["held"] * 3
    assert verdict.versions.keys() >= {"python", "torch", "hypothesis"}


ENDS = {
    "os._exit in a call": (softmax_that("import os\nos._exit(0)"), "crashed", "exit code 0"),
    "os._exit at import": (loaded_with("import os\nos._exit(0)"), "crashed", "exit code 0"),
    "sys.exit at import": (loaded_with("import sys\nsys.exit(0)"), "does_not_load", "exit"),
    "sys.exit in a call": (softmax_that("import sys\nsys.exit(0)"), "rejected", None),
    "an infinite loop": (softmax_that("while True:\n    pass"), "timed_out", "Softmax returns a new tensor"),
    "an infinite loop at import": (loaded_with("while True:\n    pass"), "timed_out", "being loaded"),
    "an endless operator": (
        softmax_that("big = x.new_ones(3000, 3000)\nfor _ in range(10**6):\n    big = big @ big"),
        "timed_out",
        "Softmax returns",
    ),
    "100 GB by torch": (softmax_that("x.new_empty(25 * 10**9)"), "out_of_memory", "2 GB"),
    "100 GB by Python": (softmax_that("bytearray(100 * 10**9)"), "out_of_memory", "2 GB"),
    "MemoryError of its own": (softmax_that('raise MemoryError("no block is free")'), "rejected", None),
    "memory at import": (loaded_with("held = bytearray(100 * 10**9)"), "out_of_memory", "loaded"),
    "endless printing": (softmax_that("while True:\n    print('x' * 1000)"), "timed_out", "Softmax returns"),
    "a syntax error": (REFERENCE + "\ndef broken(:\n", "does_not_load", "SyntaxError"),
    "a missing name": (
        "import no_such_module_at_all\n" + REFERENCE,
        "does_not_load",
        "no_such_module_at_all",
    ),
    "a missing function": (
        REFERENCE.replace("def log_softmax", "def logsoftmax"),
        "does_not_load",
        "log_softmax",
    ),
    "an empty file": ("", "does_not_load", "does not define"),
    "null bytes": ("x = '\0'\n", "does_not_load", "null bytes"),
    "recursion": (softmax_that("return softmax(x, dim)"), "rejected", None),
    "a raised BaseException": (loaded_with("raise KeyboardInterrupt"), "does_not_load", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_other_end_has_its_outcome(judge, name):
    source, outcome, told = ENDS[name]
    verdict, took = judged(judge, source)
    assert verdict.outcome == outcome, verdict.message
    assert told is None or told in verdict.message
    assert took < 5 * SECONDS, "the deadline, and what a loaded machine adds"


def test_a_segmentation_fault_is_a_crash(judge):
    # Without ctypes, which the rules forbid: a code object whose stack is a lie.
    source = softmax_that(
        """
        import os
        os.abort()
        """
    )
    verdict, _ = judged(judge, source)
    assert verdict.outcome == "crashed"
    assert "SIGABRT" in verdict.message
    assert "os.abort()" in verdict.text, "the person's own line is named"


def test_a_real_segmentation_fault(judge):
    source = softmax_that("import ctypes\nctypes.string_at(0)")
    verdict, _ = judged(judge, source)
    assert verdict.outcome == "rule_broken", "ctypes is outside the rules"
    source = softmax_that(
        "import torch\ntorch.ops.load_library('x') if dim > 99 else None\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert judged(judge, source)[0].outcome in ("crashed", "rule_broken")


def test_a_library_that_torch_loads_is_not_the_files(judge):
    # Asked for a GPU, torch looks for its library, in the midst of anyone's call.
    verdict, _ = judged(
        judge,
        softmax_that(
            "import torch\ntry:\n    torch.cuda._raw_device_count_nvml()\nexcept OSError:\n    pass"
        ),
    )
    assert (verdict.outcome, verdict.rules_broken) == ("passed", [])
    reached = "import sys\nsys.modules['ctypes'].CDLL('libnvidia-ml.so.1')"
    for mine in (reached, "import torch\ntorch.ops.load_library('libm.so.6')"):
        assert judged(judge, softmax_that(mine))[0].outcome == "rule_broken"


def test_the_line_that_hangs_is_named(judge):
    verdict, _ = judged(judge, softmax_that("while True:\n    pass"))
    assert verdict.line > 0
    assert verdict.text in ("while True:", "pass")


def test_a_crash_of_the_persons_own_is_their_line(judge):
    verdict, _ = judged(judge, softmax_that("raise KeyError('mine')"))
    assert verdict.outcome == "rejected"
    card = verdict.cards[0]
    assert card.message == "KeyError: 'mine'"
    assert card.text == "raise KeyError('mine')"


def test_the_stub_is_not_implemented(judge):
    verdict, _ = judged(judge, room_file("katas", "softmax").read_text(encoding="utf-8"))
    assert verdict.outcome == "not_implemented"
    assert [p.status for p in verdict.parts] == ["not_implemented", "not_reached", "not_reached"]


def test_a_written_first_part_is_held_and_the_second_not_reached(judge):
    start = REFERENCE.index("    shifted = _shifted(x, dim)")
    end = REFERENCE.index("def cross_entropy")
    half = REFERENCE[:start] + "    raise NotImplementedError\n\n\n" + REFERENCE[end:]
    verdict, _ = judged(judge, half)
    assert verdict.outcome == "not_implemented"
    assert [p.status for p in verdict.parts] == ["held", "not_implemented", "not_reached"]


TAMPERING = {
    "assert_close": "import torch.testing\ntorch.testing.assert_close = lambda *a, **k: None",
    "allclose": "import torch\ntorch.allclose = lambda *a, **k: True",
    "Tensor.__eq__": "import torch\ntorch.Tensor.__eq__ = lambda a, b: torch.ones(())",
    "Tensor.all": "import torch\ntorch.Tensor.all = lambda *a, **k: torch.ones((), dtype=torch.bool)",
    "a method that shadows": "import torch\ntorch.Tensor.double = lambda self: self",
    "hypothesis": "import sys\nm = vars(sys)['modules']\nm['hypothesis'].given = None",
    "hypothesis's engine": "import sys\nm = vars(sys)['modules']\nm['hypothesis.core'].StateForActualGivenExecution.run_engine = lambda self: None",
    "pytest": "import sys\nm = vars(sys)['modules']\nm['pytest'].raises = None",
    "the comparison": "import sys\nm = vars(sys)['modules']\nm['dojo.close'].assert_close = lambda *a, **k: None",
    "the comparison's code": "import sys\nc = vars(sys)['modules']['dojo.close']\nsetattr(c.assert_close, '__co' + 'de__', (lambda *a, **k: None).__getattribute__('__co' + 'de__'))",
    "the claims": "import sys\nm = vars(sys)['modules']\nm['properties.softmax'].oracle = lambda x, dim: x",
    "the claims' builtins": "import sys\nm = vars(sys)['modules']\nm['properties.softmax'].assert_true = print",
    "builtins": "import builtins\nbuiltins.isinstance = lambda *a: True",
    "a mode of torch's": "import torch.utils._python_dispatch as d\nclass Yes(d.TorchDispatchMode):\n    _should_skip_dynamo = classmethod(lambda cls: False)\n    def __torch_dispatch__(self, f, types, args=(), kwargs=None):\n        r = f(*args, **(kwargs or {}))\n        return r.new_ones(r.shape) if 'all' in str(f) else r\nd._get_current_dispatch_mode_stack() or Yes().__enter__()",
    "the way out": "import os\nos.write = lambda *a: 0",
}


@pytest.mark.parametrize("name", TAMPERING)
@pytest.mark.parametrize("moment", ["load", "call"])
def test_replacing_what_the_verdict_rests_on_is_seen(judge, name, moment):
    source = (loaded_with if moment == "load" else softmax_that)(TAMPERING[name])
    verdict, _ = judged(judge, source)
    assert verdict.outcome in ("tampered", "rule_broken"), verdict.message


def test_a_patch_without_a_broken_rule_is_called_tampering(judge):
    for name in (
        "assert_close",
        "allclose",
        "Tensor.__eq__",
        "Tensor.all",
        "a mode of torch's",
        "pytest",
        "hypothesis",
    ):
        assert judged(judge, loaded_with(TAMPERING[name]))[0].outcome == "tampered", name


RULES = {
    "the reference": "from reference.softmax import softmax as answer",
    "the reference, by a name": "import reference.softmax",
    "the claims": "import properties.softmax",
    "torch's own, directly": "def g(x):\n    import torch\n    return torch.softmax(x, 0)",
    "torch's own, by import": "from torch.nn.functional import softmax as sm",
    "threads": "import threading",
    "jit": "import torch\nf = torch.jit.script",
    "exec": "exec('1')",
    "the torch function mode": "import torch\nd = torch._C.DisableTorchFunction",
}


@pytest.mark.parametrize("name", RULES)
def test_what_the_source_shows_breaks_a_rule(judge, name):
    verdict, _ = judged(judge, loaded_with(RULES[name]))
    assert verdict.outcome == "rule_broken", verdict.message
    assert verdict.line > 0


FORBIDDEN_CALLS = {
    "directly": "import torch\nreturn torch.softmax(x, dim)",
    "a method": "return x.softmax(dim)",
    "an alias": "import torch.nn.functional as F\nf = F.softmax\nreturn f(x, dim)",
    "getattr": "import torch\nreturn getattr(torch, 'soft' + 'max')(x, dim)",
    "vars": "import torch.nn.functional as F\nreturn vars(F)['softm' + 'ax'](x, dim)",
    "aten": "import torch\nreturn torch.ops.aten.softmax.int(x, dim)",
    "aten's inner one": "import torch\nreturn torch.ops.aten._softmax(x, dim, False)",
    "a module": "import torch\nreturn torch.nn.Softmax(dim)(x)",
    "log_softmax": "return getattr(x, 'log_' + 'softmax')(dim).exp()",
    "logsumexp": "return (x - x.logsumexp(dim, keepdim=True)).exp()",
}


@pytest.mark.parametrize("name", FORBIDDEN_CALLS)
def test_a_forbidden_call_is_seen_however_it_is_made(judge, name):
    verdict, _ = judged(judge, softmax_that(FORBIDDEN_CALLS[name]))
    assert verdict.outcome == "rule_broken", verdict.message
    assert "forbids" in verdict.message


REACHING = {
    "opening the reference": "import pathlib, re\nopen(re.sub('practice.*', '', '%s') + 'reference/softmax.py').read()" % str(room_file("reference", "softmax").parent.parent / "practice"),
    "a process by os": "import os\nos.system('true')",
    "a fork": "import os\nif os.fork() == 0:\n    import time\n    time.sleep(600)",
    "importing by a hidden name": "from builtins import __import__ as fetch\nfetch('reference.softmax')",
}  # fmt: skip


@pytest.mark.parametrize("name", REACHING)
def test_reaching_for_the_answer_or_out_of_the_process_is_refused(judge, name):
    verdict, _ = judged(judge, softmax_that(REACHING[name]))
    assert verdict.outcome == "rule_broken", verdict.message


def test_too_long_is_a_broken_rule_once_it_holds(judge):
    verdict, _ = judged(
        judge, REFERENCE + "\n".join(f"x{i} = {i}" for i in range(catalogue.brief("softmax").lines))
    )
    assert verdict.outcome == "rule_broken"
    assert "the limit is" in verdict.message
    assert {c.status for c in verdict.claims} == {"held"}


def test_a_wrong_answer_gets_its_claim_its_input_and_its_name(judge):
    source = REFERENCE.replace("weights / weights.sum(dim, keepdim=True)", "weights / weights.sum()")
    verdict, _ = judged(judge, source, hurried=False)
    assert verdict.outcome == "rejected"
    assert verdict.mistake is not None
    assert verdict.mistake.name == "sum-over-everything"
    card = verdict.cards[0]
    assert card.claim == "test_probabilities_sum_to_one_along_dim"
    assert card.inputs["x"].count(",") <= 2, "small enough to work by hand"
    assert "expected" in card.where


def test_a_failing_example_is_replayed_first(judge):
    source = softmax_that("if x.numel() == 6 and dim == 0: x = -x")
    first = judge.judge("softmax", PATH, source)
    assert first.verdict.outcome == "rejected"
    claim = next(iter(first.examples))
    again = judge.judge("softmax", PATH, source, examples=first.examples).verdict
    replayed = next(c for c in again.claims if c.claim == claim)
    assert replayed.status == "failed"
    assert replayed.examples <= 2, "once from memory, and once more to be sure"


def test_a_new_trial_replaces_the_one_under_way(judge):
    slow = softmax_that("import time\ntime.sleep(0.05)")
    events = judge.trial("softmax", PATH, slow)
    assert next(events)["event"] == "claim"
    time.sleep(0.2)
    assert judged(judge, REFERENCE)[0].outcome == "passed"
    assert all(event["event"] != "verdict" for event in events)


def test_a_forged_verdict_is_not_believed(judge):
    forged = '{"event": "finished", "nonce": "guess", "claims": []}'
    source = softmax_that(
        f"import os\nfor fd in range(3, 50):\n    try: os.write(fd, b'{forged}\\n')\n    except OSError: pass\nos._exit(0)"
    )
    assert judged(judge, source)[0].outcome == "crashed"


def test_the_judge_needs_nothing_but_the_plain_install():
    """Whoever follows README's first command has none of the extras."""
    extras = (
        "pytest",
        "_pytest",
        "xdist",
        "beartype",
        "jsonschema",
        "tiktoken",
        "tokenizers",
        "regex",
        "transformers",
    )
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {extras} else found(name, package)
from dojo import catalogue
from dojo.judge import claims, warm
warm.preload()
for kata in catalogue.here():
    claims.claims(kata)
    importlib.import_module("reference." + kata)
    importlib.import_module("mistakes." + kata)
print("all there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip().endswith("all there"), done.stderr[-2000:]


def test_importing_the_compiler_is_no_tampering():
    """Ordinary calls of torch import it, and it replaces torch.manual_seed."""
    code = (
        "from dojo.judge import claims, guard; claims.claims('softmax'); seal = guard.seal('softmax');"
        "import torch._dynamo; print(seal.broken())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_where_fork_is_unsafe_children_are_spawned(monkeypatch, elsewhere):
    from dojo.judge.claims import QUICK
    from dojo.judge.client import Judge

    monkeypatch.setenv("DOJO_JUDGE", "spawn")
    with Judge() as spawning:
        spawning.wait()
        assert not spawning.forks
        two = ("test_order_is_kept", "test_large_logits_do_not_overflow")
        verdict = spawning.judge("softmax", PATH, REFERENCE, only=two).verdict
        tried = {c.claim: c.examples for c in verdict.claims if c.status == "held"}
        assert tried.keys() == set(two)
        assert all(count > QUICK for count in tried.values()), "the full stage ran"
        wrong = REFERENCE.replace("_shifted(x, dim).exp()", "_shifted(-x, dim).exp()", 1)
        verdict = spawning.judge(
            "softmax", PATH, wrong, only=("test_order_is_kept",), confirm=False, hurried=False
        ).verdict
        assert verdict.outcome == "rejected"
        assert verdict.mistake.name == "softmin"


def test_killing_the_client_ends_everything(elsewhere):
    from dojo.judge.client import Judge

    judge = Judge()
    events = judge.trial("softmax", PATH, softmax_that("while True: pass"))
    next(events)
    warm = psutil.Process(judge._process.pid)
    family = [warm, *warm.children(recursive=True)]
    assert len(family) > 1
    judge.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_lost_gpu_ends_the_trial_as_a_crash_of_the_file(monkeypatch):
    """Whatever is computed afterwards fails too, the claims' own arithmetic included: that is no judge error."""
    from dojo.judge import claims

    def kernel(*args, **kwargs):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered\nmore")

    subject = types.ModuleType("practice")
    subject.softmax = kernel
    first = claims.claims("softmax")[0]
    assert claims.search(first, subject, 3).failure is not None
    monkeypatch.setattr(claims, "device_lost", lambda: True)
    with pytest.raises(claims.DeviceLost, match=r"illegal memory access was encountered$"):
        claims.search(first, subject, 3)
