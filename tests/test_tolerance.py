"""How conftest.py runs notebooks: what a tag lets differ, and which share a folder."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each cell: what is stored, what the cell prints, its tag, whether it must pass.
CELLS = [
    ("loss 1.391 after 20 steps", "loss 1.391 after 20 steps", None, True),
    ("loss 1.391", "loss 1.392", None, False),  # without a tag every digit counts
    ("loss 1.391 at 20", "loss 1.431 at 20", "numbers-within-0.05", True),
    ("loss 1.391", "loss 1.491", "numbers-within-0.05", False),  # 7 % away
    ("loss 1.391", "lost 1.391", "numbers-within-0.05", False),  # a wrong word
    ("loss 1.391 at 3", "loss 1.391 at", "numbers-within-0.05", False),  # one missing
    ("loss 1.391", "loss 1.391 4", "numbers-within-0.05", False),  # one too many
    ("loss 1.391", "loss  1.391", "numbers-within-0.05", False),  # another layout
    ("loss 1.391", "loss 1.39", "numbers-within-0.05", False),  # fewer digits
    ("loss -0.10", "loss 0.10", "numbers-within-0.05", False),
    ("1,391 rows", "1,392 rows", "numbers-within-0.01", True),
    ("cell v1.2", "cell v1.3", "numbers-within-0.5", False),  # no number, but a word
]
PRINTED = [(stored, f"print({text!r})", tag) for stored, text, tag, _ in CELLS]
LIST = "import os; print(sorted(os.listdir()))"
TRAIN = [("[]", LIST, None), ("made", "os.mkdir('made'); print('made')", None)]


def write(file, cells):
    """A notebook of cells: what is stored, the code, its tag."""
    made = nbformat.v4.new_notebook()
    for stored, code, tag in cells:
        cell = nbformat.v4.new_code_cell(code, execution_count=1)
        cell.metadata["tags"] = [tag] if tag else []
        output = nbformat.v4.new_output("stream", name="stdout", text=stored + "\n")
        cell.outputs = [output]
        made.cells.append(cell)
    nbformat.write(made, file)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """nbval with our conftest.py in two processes: (notebook, cell) -> passed."""
    folder = tmp_path_factory.mktemp("notebooks")
    conftest = (ROOT / "conftest.py").read_text(encoding="utf-8")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    write(folder / "01_tolerance.ipynb", PRINTED)
    write(folder / "02_train_the_classifier.ipynb", TRAIN)
    write(folder / "03_something_else.ipynb", [("[]", LIST, None)])
    write(folder / "04_use_your_classifier.ipynb", [("['made']", LIST, None)])
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_")
    }
    options = ["-n2", "-rA", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    found = re.findall(r"^(PASSED|FAILED) (\w+)\.ipynb::Cell (\d+)", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return {(name, int(cell)): how == "PASSED" for how, name, cell in found}


@pytest.mark.slow
def test_a_tag_lets_numbers_differ_and_nothing_else(outcomes):
    for number, (stored, printed, _, passes) in enumerate(CELLS):
        assert outcomes["01_tolerance", number] is passes, (stored, printed)


@pytest.mark.slow
def test_a_notebook_sees_what_its_group_left_and_nothing_else(outcomes):
    assert outcomes["02_train_the_classifier", 0]  # in an empty folder
    assert outcomes["02_train_the_classifier", 1]
    assert outcomes["03_something_else", 0]  # in an empty folder, too
    assert outcomes["04_use_your_classifier", 0]  # beside what the other one made


def test_the_longest_groups_come_first_and_each_stays_in_order(request):
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "conftest.py"))

    def item(nodeid, *, slow=False):
        marker = object() if slow else None
        return SimpleNamespace(
            nodeid=nodeid, get_closest_marker=lambda name: marker and name
        )

    items = [
        item("notebooks/01_some.ipynb::Cell 0"),
        item("notebooks/02_train_the_classifier.ipynb::Cell 0"),
        item("notebooks/03_more.ipynb::Cell 0"),
        item("notebooks/03_more.ipynb::Cell 1"),
        item("notebooks/04_use_your_classifier.ipynb::Cell 0"),
        item("notebooks/04_use_your_classifier.ipynb::Cell 1"),
        item("tests/test_a.py::test_1"),
        item("tests/test_b.py::test_1"),
        item("tests/test_b.py::test_2"),
        item("tests/test_c.py::test_1", slow=True),
    ]
    found = [items.index(item) for item in conftest.longest_first(items)]
    assert found == [1, 4, 5, 2, 3, 0, 9, 7, 8, 6]
