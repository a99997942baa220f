"""The command line as a person or a script uses it, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from dojo.places import ROOT, room_file
from dojo.store import Store

REFERENCE = room_file("reference", "softmax")


@pytest.fixture
def run(tmp_path):
    """Runs runner.py with a home of its own and no terminal."""

    def runner(*argv: str, stdin: str = ""):
        return subprocess.run(
            [sys.executable, str(ROOT / "runner.py"), *argv], input=stdin, capture_output=True, text=True,
            env=os.environ | {"KATA_HOME": str(tmp_path)}, cwd=tmp_path, timeout=120, check=False,
        )  # fmt: skip

    runner.home = tmp_path
    return runner


def test_a_newcomer_is_told_what_to_type_and_nothing_is_created(run):
    done = run()
    assert done.returncode == 0
    assert "python runner.py softmax --timed" in done.stdout
    assert list(run.home.iterdir()) == []


def test_without_a_terminal_the_main_command_gives_one_verdict(run):
    done = run("softmax", "--timed")
    assert done.returncode == 1
    assert "not implemented yet" in done.stdout
    assert (run.home / "practice" / "softmax.py").read_text() == room_file("katas", "softmax").read_text()


def test_once_judges_the_file_as_it_stands(run):
    (run.home / "practice").mkdir()
    mine = run.home / "practice" / "softmax.py"
    mine.write_text(REFERENCE.read_text())
    done = run("softmax", "--once")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "an interviewer would ask next" in done.stdout
    assert mine.read_text() == REFERENCE.read_text()


def test_json_is_one_object_that_fits_its_schema(run):
    wrong = run.home / "wrong.py"
    wrong.write_text(
        REFERENCE.read_text().replace("weights / weights.sum(dim, keepdim=True)", "weights / weights.sum()")
    )
    done = run("softmax", "--json", "--file", str(wrong))
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    jsonschema.validate(verdict, json.loads((ROOT / "docs" / "verdict.schema.json").read_text()))
    assert verdict["outcome"] == "rejected"
    assert verdict["mistake"]["name"] == "sum-over-everything"
    assert not (run.home / "practice").exists(), "--file leaves practice/ alone"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["sofmax"], "Did you mean 'softmax'"),
        (["lst"], "Did you mean 'list'"),
        (["show", "sofmax"], "Did you mean 'softmax'"),
        (["softmax", "--file", "nowhere.py"], "nowhere.py"),
        (["softmax", "--no-such-flag"], "--no-such-flag"),
        (["history", "softmax", "--show", "99"], "99"),
        (["--once"], "kata"),
    ],
)
def test_bad_input_is_named_and_exits_2(run, argv, told):
    done = run(*argv)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_used_is_named(run, tmp_path):
    (tmp_path / ".dojo").write_text("a file where a folder should be")
    done = run("softmax", "--once")
    assert done.returncode == 2
    assert ".dojo" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_as_table_and_as_json(run):
    assert "softmax" in run("list").stdout
    rows = json.loads(run("list", "--json").stdout)
    assert {row["kata"] for row in rows} >= {"softmax"}


def test_show_prints_statement_rules_and_answers(run):
    done = run("show", "softmax")
    assert "par 6 min" in done.stdout
    assert "cross_entropy" in done.stdout
    assert "red flag" in run("show", "softmax", "--answers").stdout


def test_hints_are_a_ladder_and_are_recorded(run):
    first, second = run("hint", "softmax"), run("hint", "softmax")
    assert "hint 1 of" in first.stdout
    assert "hint 2 of" in second.stdout
    store = Store(run.home / ".dojo" / "store.sqlite3")
    assert store.open_attempt("softmax").hints == 2


def test_the_solution_ends_the_attempt_as_given_up(run):
    run("hint", "softmax")
    done = run("solution", "softmax")
    assert "def softmax" in done.stdout
    store = Store(run.home / ".dojo" / "store.sqlite3")
    assert store.attempts("softmax")[0].outcome == "given_up"


def test_reset_keeps_what_was_there(run):
    run("softmax", "--once")
    mine = run.home / "practice" / "softmax.py"
    mine.write_text("my_precious = 1\n")
    done = run("reset", "softmax")
    assert "number 1" in done.stdout
    assert mine.read_text() == room_file("katas", "softmax").read_text()
    assert run("history", "softmax", "--show", "1").stdout == "my_precious = 1\n"


def test_nothing_light_imports_torch(run):
    code = "import sys; sys.argv=['runner.py','list']; import dojo.cli; dojo.cli.main(['list']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_claims_run_under_pytest_against_any_file(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(REFERENCE.read_text().replace("_shifted(x, dim).exp()", "_shifted(-x, dim).exp()", 1))
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-n0",
        "properties/softmax.py",
        "-k",
        "order",
        "-p",
        "no:cacheprovider",
    ]
    assert subprocess.run(argv, cwd=ROOT, capture_output=True, check=False).returncode == 0
    done = subprocess.run(
        [*argv, "--subject", str(wrong)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "a larger logit got a smaller probability" in done.stdout


def test_names_of_rooms_do_not_clash_with_files(tmp_path):
    assert Path(ROOT / "runner.py").read_text().count("\n") < 20
