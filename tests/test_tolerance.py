"""What the tag ``numbers-within-0.05`` lets pass in a notebook's cell, and what it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
# Each cell: what is stored, what the cell prints, its tag, whether it must pass.
CELLS = [
    ("loss 1.391 after 20 steps", "loss 1.391 after 20 steps", None, True),
    ("loss 1.391", "loss 1.392", None, False),  # without a tag every digit counts
    (
        "loss 1.391 after 20 steps",
        "loss 1.431 after 20 steps",
        "numbers-within-0.05",
        True,
    ),
    ("loss 1.391", "loss 1.491", "numbers-within-0.05", False),  # 7 % away
    ("loss 1.391", "lost 1.391", "numbers-within-0.05", False),  # a wrong word
    (
        "loss 1.391 at 3",
        "loss 1.391 at",
        "numbers-within-0.05",
        False,
    ),  # a missing number
    ("loss 1.391", "loss 1.391 4", "numbers-within-0.05", False),  # one too many
    ("loss 1.391", "loss  1.391", "numbers-within-0.05", False),  # another layout
    ("loss 1.391", "loss 1.39", "numbers-within-0.05", False),  # fewer digits
    ("loss -0.10", "loss 0.10", "numbers-within-0.05", False),
    ("1,391 rows", "1,392 rows", "numbers-within-0.01", True),
    (
        "cell v1.2",
        "cell v1.3",
        "numbers-within-0.5",
        False,
    ),  # a part of a word is no number
]


def notebook(cells):
    made = nbformat.v4.new_notebook()
    for stored, printed, tag, _ in cells:
        cell = nbformat.v4.new_code_cell(f"print({printed!r})", execution_count=1)
        cell.metadata["tags"] = [tag] if tag else []
        cell.outputs = [
            nbformat.v4.new_output("stream", name="stdout", text=stored + "\n")
        ]
        made.cells.append(cell)
    return made


def test_what_passes_and_what_does_not(tmp_path):
    """nbval itself, with our conftest.py, on a notebook whose stored outputs differ from what it prints."""
    (tmp_path / "conftest.py").write_text(
        CONFTEST.read_text(encoding="utf-8"), encoding="utf-8"
    )
    nbformat.write(notebook(CELLS), tmp_path / "tolerance.ipynb")
    command = [
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-rA",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_")
    }
    done = subprocess.run(
        [sys.executable, *command, "tolerance.ipynb"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    outcomes = re.findall(r"^(PASSED|FAILED) .*Cell (\d+)", done.stdout, re.M)
    found = {int(cell): how == "PASSED" for how, cell in outcomes}
    assert found == {i: passes for i, (*_, passes) in enumerate(CELLS)}, done.stdout
