import ast
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import jedi
import pytest
import torch
import transformers

import vram_budget

PACKAGE = Path(vram_budget.__file__).parent
ROOT = PACKAGE.parent


README = (PACKAGE / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.+?)```\n\n```text\n(.+?)```", README, re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?= |$)", re.MULTILINE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with `vram_budget` and a package in whose place it must not look."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    trap = folder / "agnews_helpers"
    trap.mkdir()
    (trap / "__init__.py").write_text("raise ImportError('of the tutorial')\n", "utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_example_of_the_readme_prints_what_stands_below_it(number, alone):
    """A classifier of rows, a masked language model, a classifier of tokens."""
    assert len(EXAMPLES) == README.count("```text") == 3
    code, told = EXAMPLES[number]
    place = "import vram_budget\nprint(vram_budget.__file__)\n"
    command = [sys.executable, "-c", place + code]
    settings = {**os.environ, "PYTHONPATH": str(alone), "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=alone, env=settings, check=True
    )
    file, _, printed = run.stdout.partition("\n")
    assert Path(file).parent == alone / PACKAGE.name
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", told)
    numbers = [
        [float(n.replace(",", "")) for n in NUMBER.findall(text)]
        for text in (printed, told)
    ]
    # Another transformers or PyTorch may take some MiB more or less.
    assert numbers[0] == pytest.approx(numbers[1], rel=0.03)


def step(model, batch, optimizer):
    logits = model(batch["input_ids"], batch["attention_mask"])
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    optimizer.step()
    optimizer.zero_grad()


def frozen(model, batch, optimizer):
    model.base_model.requires_grad_(False)
    step(model, batch, optimizer)


def test_the_class_of_the_readme_and_how_it_is_frozen():
    names = {"torch": torch, "StepOptions": vram_budget.StepOptions}
    [code] = re.findall(r"```python\n(class .+?)```", README, re.DOTALL)
    for name in ("PreTrainedModel", "BertConfig", "BertModel"):
        names[name] = getattr(transformers, name)
    exec(code, names)
    assert "`model.base_model.requires_grad_(False)`" in README
    config = transformers.BertConfig(num_hidden_layers=2)
    whole, part = (
        vram_budget.step_budget(one, config, 2, 16, names["options"]).parts
        for one in (step, frozen)
    )
    assert part["optimizer state"] < 0.01 * whole["optimizer state"]
    assert part["weights"] == whole["weights"]


def test_the_readme_lists_every_allowed_value():
    for field in dataclasses.fields(vram_budget.StepOptions):
        [row] = re.findall(rf"^\| `{field.name}` \| (.+) \|$", README, re.MULTILINE)
        kind = typing.get_type_hints(vram_budget.StepOptions)[field.name]
        allowed = typing.get_args(kind) if "Literal" in str(kind) else ()
        for value in allowed:
            assert f'`"{value}"`' in row
        if isinstance(field.default, str | bool | tuple):
            told = str(field.default).replace("'", '"')
            told = f'"{told}"' if isinstance(field.default, str) else told
            assert row.startswith(f"`{told}`")
    for system in vram_budget.SYSTEMS_GIB:
        assert f'`"{system}"`' in README


def test_it_is_installed_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    assert PACKAGE.name in setuptools["packages"]
    assert "README.md" in setuptools["package-data"][PACKAGE.name]
    needed = {re.split(r"\W", line)[0] for line in project["project"]["dependencies"]}
    assert {"torch", "transformers", "pandas"} <= needed


def test_the_readme_says_what_the_benchmark_found():
    """Its table of evidence is that of the JSON, sign for sign."""
    stored = (ROOT / "benchmarks" / "vram_accuracy.json").read_text(encoding="utf-8")
    found = json.loads(stored)["evidence"]
    assert evidence_table(found) in README
    of_models = {row["kind"]: row for row in found}
    assert of_models["masked language models, tied"]["rows"] >= 40


def evidence_table(rows):
    """Write the evidence as the README has it."""
    lines = [
        "| kind of published figure | figures | too low | lowest | median | highest |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        errors = " | ".join(
            f"{row[name] * 100:+.1f} %" for name in ("lowest", "median", "highest")
        )
        lines.append(f"| {row['kind']} | {row['rows']} | {row['too low']} | {errors} |")
    return "\n".join(lines)


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
