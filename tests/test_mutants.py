"""`benchmarks/mutants.py`: each mutant still applies, and the judge can judge."""

import ast
import shutil
import subprocess

import pytest

from benchmarks import mutants
from benchmarks.mutants import ROOT, Mutant, campaign, check_names, listed, summary

SUMS = "def total(numbers):\n    return sum(numbers, 0)\n"
TESTS = """
from sums import total


def test_total():
    assert total([1, 2]) == 3


def test_nothing():
    assert True
"""


@pytest.fixture
def project(tmp_path):
    """A repository with one module, its tests, and a file that git ignores."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "sums.py").write_text(SUMS, encoding="utf-8")
    (root / "test_sums.py").write_text(TESTS, encoding="utf-8")
    (root / ".gitignore").write_text("conftest.py\n", encoding="utf-8")
    (root / "conftest.py").write_text("raise ValueError\n", encoding="utf-8")
    subprocess.run([shutil.which("git"), "init", "--quiet", root], check=True)
    return root


def change(old, new, test="test_total", why=""):
    return Mutant("sums.py", old, new, f"test_sums.py::{test}", why)


def try_all(project, *changes):
    return campaign(project, list(changes), mutants.processes([]), seconds=10)


def test_every_mutant_applies_and_its_test_is_there():
    found = listed()
    assert len(found) >= 90 and len({*found}) == len(found)
    check_names(ROOT, found)
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in files(found)}
    for mutant in found:
        changed = mutant.changed(texts[mutant.file])
        assert changed != texts[mutant.file] and ast.parse(changed)


def files(found):
    return {mutant.file for mutant in found}


def test_a_text_that_is_gone_or_there_twice_is_an_error(project):
    for old, times in (("minus", 0), ("numbers", 2)):
        with pytest.raises(ValueError, match=f"the old text is there {times} times"):
            change(old, "x").apply(project)
    with pytest.raises(SyntaxError):
        change("0)", "0").apply(project)
    assert (project / "sums.py").read_text(encoding="utf-8") == SUMS


def test_a_test_that_is_gone_is_an_error(project):
    with pytest.raises(ValueError, match="No such test: test_sums.py::test_gone"):
        try_all(project, change("0)", "1)", "test_gone"))


@pytest.mark.slow
def test_what_came_of_each(project):
    found = {
        change("0)", "1)"): "killed",
        change("numbers, 0", "iter(int, 1), 0"): "timed out",
        change("numbers, 0", "numbers, -0"): "survived",
        change("0)", "1)", "test_nothing", "nothing looks at it"): "survived",
    }
    assert try_all(project, *found) == found
    told = summary(found, 1.2)
    counts = [told[name] for name in ("mutants", "killed", "timed out")]
    assert counts == [4, 1, 1]
    assert told["survived"] == ["sums.py: 'numbers, 0' -> 'numbers, -0'"]
    assert [*told["explained"].values()] == ["nothing looks at it"]


@pytest.mark.slow
def test_a_test_that_cannot_judge_is_an_error(project):
    """It fails without a change, or cannot be collected with it."""
    with pytest.raises(RuntimeError, match="cannot be run"):
        try_all(project, change("def total", "def other"))
    (project / "sums.py").write_text(SUMS.replace("0", "5"), encoding="utf-8")
    with pytest.raises(RuntimeError, match="Without a change"):
        try_all(project, change("5)", "0)"))
