"""The rules that are read off the source: how lines are counted, and what a scan sees and leaves alone."""

from __future__ import annotations

import dataclasses

import pytest

from dojo import catalogue
from dojo.rules import logical_lines, scan

BRIEF = dataclasses.replace(
    catalogue.brief("softmax"), builds_on=("rope",), forbidden_imports=("tokenizers",)
)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("", 0),
        ("# a comment\n\n\n", 0),
        ('"""A docstring."""\n', 0),
        ("import os\nfrom math import (\n    pi,\n    e,\n)\n", 0),
        ("x = 1\n", 1),
        ("x = [\n    1,\n    2,\n]\n", 1),
        ("x = 1; y = 2\n", 2),
        ("if x: y = 1\n", 1),
        ("def f(\n    a,\n    b,\n):\n    '''Doc.\n\n    More.\n    '''\n    return a  # why\n", 2),
        ("class A:\n    '''Doc.'''\n\n    def f(self):\n        pass\n", 3),
        ("@decorated\ndef f(): return 1\n", 2),
        ("x = 1 \\\n    + 2\n", 1),
        ("x = '''a\nb\nc'''\n", 1),
        ("x = 1", 1),
    ],
)
def test_logical_lines_are_statements_as_written(source, lines):
    assert logical_lines(source) == lines


LEGAL = [
    "def softmax(x, dim):\n    return x\ndef g(x):\n    return softmax(x, 0)",
    "class Net:\n    def softmax(self): ...\n    def run(self):\n        return self.softmax()",
    "import torch\nmodel.eval()",
    "import torch.nn.functional as F\ny = F.relu(x)",
    "from reference.rope import apply_rope",
    "import math, random, heapq, collections, dataclasses, functools, itertools, re, json, numpy as np",
    "import re\np = re.compile('x')",
    "from torch import nn, Tensor",
    "def softmax_rows(x): ...",
]


@pytest.mark.parametrize("source", LEGAL)
def test_ordinary_code_breaks_no_rule(source):
    assert scan(source, BRIEF) == []


ILLEGAL = [
    "import tokenizers",
    "from tokenizers import Tokenizer",
    "import reference",
    "from reference import softmax",
    "from reference import *",
    "from mistakes.softmax import MISTAKES",
    "import torch as t\nt.softmax(x, 0)",
    "import torch.nn.functional as F\nF.softmax",
    "from torch import softmax as s",
    "import torch\ngetattr(torch, 'softmax')",
    "import torch\ntorch._C._nn",
    "import torch\ntorch.compile(f)",
    "from torch import jit",
    "import sys\nsys.modules['x']",
    "import sys\nsys._getframe()",
    "eval('x')",
    "import inspect",
    "from multiprocessing import Pool",
]


@pytest.mark.parametrize("source", ILLEGAL)
def test_what_is_forbidden_is_named_with_its_line(source):
    (found, *_) = scan(source, BRIEF)
    assert found.forbidden
    assert found.line >= 1
