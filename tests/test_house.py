"""The plan of the house: who imports whom, what is declared where, how small it stays."""
import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agnews_helpers"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
# Each module may import only from floors below its own.
FLOORS = [
    {"cli"},
    {"plots", "running", "doctor"},
    {"training"},
    {"session"},
    {"vram.report"},
    {"vram.budget", "roofline"},
    {"vram.trace"},
    {"vram.recorder"},
    {"evaluation"},
    {"prediction"},
    {"data", "model", "batching", "checkpoints", "precision"},
    {"step", "storage", "hub"},
    {"recipe", "hardware", "mini", "cpu_kernels", "errors", "interrupts", "vram.allocator", "vram.cuda_kernels"}]


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """Names of our modules that a file imports, anywhere in it, such as 'recipe' or 'vram.budget'."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1]
            yield from [".".join([*base, node.module])] if node.module else [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("agnews_helpers."):
            yield node.module.removeprefix("agnews_helpers.")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    assert name_of(path) in level, "a module without a floor"
    for imported in imports_of(path):
        same_floor = (name_of(path), imported) == ("model", "mini")
        assert level[imported] > level[name_of(path)] or same_floor, f"{name_of(path)} imports {imported}"


def test_the_package_stays_small():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert sum(lines.values()) < 4400 and max(lines.values()) <= 300, lines


def test_import_is_quick_and_loads_no_torch():
    code = ("import sys, time; start = time.perf_counter(); import agnews_helpers; seconds = time.perf_counter() - start\n"
            "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules)\n"
            "print(seconds < 0.3 and not heavy, seconds, heavy)")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("True"), output


def test_every_public_name_is_there_and_documented():
    import agnews_helpers

    for name in agnews_helpers.__all__:
        assert getattr(agnews_helpers, name) is not None
        assert name == "LABELS" or getattr(agnews_helpers, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        agnews_helpers.trian


def requirement(text):
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", text.strip()).groups()
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def test_environment_yml_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = dict(requirement(text) for text in environment["dependencies"] if isinstance(text, str))
    assert environment["name"] == "agnews" and environment["channels"][0] == "conda-forge" and "pytorch" not in environment["channels"]
    assert conda.pop("python") == project["requires-python"] and conda.pop("pip") == ""
    conda["torch"] = conda.pop("pytorch")
    assert conda == dict(requirement(text) for text in project["dependencies"])
    assert {"pip": ["-e .[offline]"]} in environment["dependencies"]


def pins(name):
    """A constraints file as package -> version."""
    lines = [line.partition("#")[0] for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return {package: bounds.removeprefix("==") for package, bounds in (requirement(line) for line in lines if line)}


def test_constraints_pin_what_the_project_needs_inside_its_ranges():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = pins("constraints.txt")
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        needed = Requirement(text)
        assert needed.specifier.contains(tested[needed.name.lower()]), text


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = pins("constraints-oldest.txt")
    for needed in map(Requirement, project["dependencies"]):
        [bound] = [part.version for part in needed.specifier if part.operator == ">="]
        assert Version(oldest[needed.name.lower()]) == Version(bound), needed.name


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement(text)[0] for text in project["dependencies"]}
    brought = {"huggingface_hub": "transformers", "filelock": "torch", "packaging": "transformers", "jupyter_client": "jupyterlab", "safetensors": "transformers", "scipy": "scikit-learn", "sklearn": "scikit-learn",
               "numpy": "pandas", "nbformat": "jupyterlab", "nbclient": "jupyterlab", "nbconvert": "jupyterlab"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (name.split(".")[0] for name in names):
                assert name in sys.stdlib_module_names or brought.get(name, name) in declared, f"{path.name} imports {name}"


def test_no_unsafe_loading_and_no_guessed_encoding():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text and "pickle" not in text
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call
        for call in re.findall(r"\.(?:read|write)_text\([^\n]*", text):
            assert "encoding=" in call, f"{path.name}: {call}"


def project_files():
    """The files of the project, without what was made from them."""
    made = {".git", ".venv", ".venv-oldest", ".venv-newest", "build", "runs", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "agnews_helpers.egg-info"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - made)
        yield from (Path(folder) / name for name in names if name not in made)  # a worktree's .git is a file


def test_the_working_tree_is_small():
    sizes = {path: path.stat().st_size for path in project_files()}
    assert sum(sizes.values()) < 15 * 2**20 and max(sizes.values()) < 1.5 * 2**20
