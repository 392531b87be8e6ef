import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

import vram_budget

PACKAGE = Path(vram_budget.__file__).parent
ROOT = PACKAGE.parent


def test_the_example_of_the_readme_runs(capsys):
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[0-9,]+ MiB, peak at .+ \(backward\): fits", first)
    worst, best = map(int, re.findall(r"\d+", second))
    assert 16 <= worst <= best


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py*")), ids=lambda p: p.name)
def test_nothing_of_agnews_helpers_is_imported(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1  # from this package, or from a library
            imported |= {"" if node.level else node.module.split(".")[0]}
    libraries = {"torch", "transformers", "numpy", "pandas", ""}
    assert imported <= libraries | sys.stdlib_module_names


def test_the_import_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import vram_budget; vram_budget.find_card('T4')\n"
        "seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'transformers', 'pandas', 'agnews_helpers'}\n"
        "heavy &= {*sys.modules}\n"
        "print(seconds < 0.3 and not heavy, seconds, heavy)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.startswith("True"), run.stdout


def test_every_public_name_is_there_and_in_the_stub():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    found = {alias.asname: node.module for node in imports for alias in node.names}
    assert sorted(found) == vram_budget.__all__
    for name, module in found.items():
        home = importlib.import_module(f"vram_budget.{module}")
        assert getattr(vram_budget, name) is getattr(home, name)
    assert {*vram_budget.__all__} <= {*dir(vram_budget)}
    with pytest.raises(AttributeError, match="no attribute 'tarce'"):
        _ = vram_budget.tarce


@pytest.mark.parametrize("name", ["trace", "step_budget", "Card", "find_card"])
def test_an_editor_finds_the_definition(name):
    script = jedi.Script(
        f"from vram_budget import {name}\n{name}", project=jedi.Project(ROOT)
    )
    [found] = script.infer(2, 1)
    assert found.module_path.parent == PACKAGE and found.docstring()
