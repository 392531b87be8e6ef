"""The plan of the house: who imports whom, and what is declared in which file."""

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
MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)
# Each module may import only from floors below its own.
FLOORS = [
    {"cli"},
    {"doctor", "running"},
    {"budgeting", "plots"},
    {"training"},
    {"runs"},
    {"checkpoints", "evaluation", "checking"},
    {"data", "model", "batching", "model_card"},
    {"profiles"},
    {"recipe", "hardware"},
    {"plumbing.interrupts", "plumbing.memory", "plumbing.hub", "plumbing.mini"},
    {"plumbing.storage", "plumbing.tables"},
    {"plumbing.vram_cap"},
    {"plumbing.errors"},
]


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """Names of our modules that a file imports, such as 'recipe' or 'vram.budget'."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(
                [
                    *package[: len(package) - node.level + 1],
                    *([node.module] if node.module else []),
                ]
            )
            if PACKAGE.joinpath(
                *base.split(".")
            ).is_dir():  # `from .plumbing import storage`, `from . import data`
                found = [
                    alias.name for alias in node.names if alias.name != "__version__"
                ]
                yield from (f"{base}.{name}".removeprefix(".") for name in found)
            else:
                yield base
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("agnews_helpers.")
        ):
            yield node.module.removeprefix("agnews_helpers.")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    assert name_of(path) in level, "a module without a floor"
    for imported in imports_of(path):
        assert level[imported] > level[name_of(path)], (
            f"{name_of(path)} imports {imported}"
        )


def test_import_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import agnews_helpers; seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
        "print(seconds < 0.3 and not heavy, seconds, heavy)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("True"), output


def test_every_public_name_is_there_and_documented():
    import agnews_helpers

    for name in agnews_helpers.__all__:
        assert getattr(agnews_helpers, name) is not None
        assert name == "LABELS" or getattr(agnews_helpers, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = agnews_helpers.trian


def requirement(text):
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", text.strip()).groups()
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def project_and_needed():
    """[project] of pyproject.toml, and its dependencies with those of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    return project, [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
    ]


def test_a_wheel_has_every_folder_of_code_and_the_notebooks():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "tool"
    ]["setuptools"]
    code = {"vram_budget"} | {
        ".".join(path.relative_to(ROOT).parent.parts) for path in PACKAGE.rglob("*.py")
    }
    assert {*setuptools["packages"]} == code | {"agnews_helpers.notebooks"}
    data = setuptools["package-data"]
    files = [
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    matched = {
        path for pattern in data["agnews_helpers"] for path in PACKAGE.glob(pattern)
    }
    assert {*files} == matched
    assert setuptools["package-dir"] == {"agnews_helpers.notebooks": "notebooks"}
    notebooks, patterns = ROOT / "notebooks", data["agnews_helpers.notebooks"]
    packed = {path for pattern in patterns for path in notebooks.glob(pattern)}
    pictures = (notebooks / "pictures").iterdir()
    assert packed == {*notebooks.glob("*.ipynb"), *pictures}
    others = {path.name for path in (ROOT / "vram_budget").iterdir() if path.is_file()}
    others = {name for name in others if not name.endswith((".py", ".pyc"))}
    assert {*data["vram_budget"]} == others


def test_environment_yml_is_in_step_with_pyproject():
    project, needed = project_and_needed()
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = dict(
        requirement(text)
        for text in environment["dependencies"]
        if isinstance(text, str)
    )
    assert (
        environment["name"] == "agnews"
        and environment["channels"][0] == "conda-forge"
        and "pytorch" not in environment["channels"]
    )
    assert conda.pop("python") == project["requires-python"] and conda.pop("pip") == ""
    conda["torch"] = conda.pop("pytorch")
    assert conda == dict(requirement(text) for text in needed)
    assert {"pip": ["-e .[offline]"]} in environment["dependencies"]


def pins(name):
    """A constraints file as package -> version."""
    lines = [
        line.partition("#")[0]
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    ]
    return {
        package: bounds.removeprefix("==")
        for package, bounds in (requirement(line) for line in lines if line)
    }


def test_constraints_pin_what_the_project_needs_inside_its_ranges():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    tested = pins("constraints.txt")
    for text in sum(project["optional-dependencies"].values(), project["dependencies"]):
        needed = Requirement(text)
        assert needed.specifier.contains(tested[needed.name.lower()]), text


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    from packaging.requirements import Requirement
    from packaging.version import Version

    oldest = pins("constraints-oldest.txt")
    for needed in map(Requirement, project_and_needed()[1]):
        [bound] = [part.version for part in needed.specifier if part.operator == ">="]
        assert Version(oldest[needed.name.lower()]) == Version(bound), needed.name


def test_a_version_is_the_same_wherever_it_stands():
    import agnews_helpers

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(
        r"^## \[([0-9.]+)\] - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE
    )
    assert released[0] == (citation["version"], citation["date-released"])
    assert released[0][0] == agnews_helpers.__version__
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"ruff==([0-9.]+)", hooks)) == {
        pins("constraints.txt")["ruff"]
    }


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    declared = {requirement(text)[0] for text in project["dependencies"]}
    brought = {
        "huggingface_hub": "transformers",
        "filelock": "torch",
        "tokenizers": "transformers",
        "packaging": "transformers",
        "ipykernel": "jupyterlab",
        "jupyter_client": "jupyterlab",
        "safetensors": "transformers",
        "scipy": "scikit-learn",
        "sklearn": "scikit-learn",
        "numpy": "pandas",
        "nbformat": "jupyterlab",
        "nbclient": "jupyterlab",
        "nbconvert": "jupyterlab",
        "pyarrow": "datasets",
    }
    ours = {"vram_budget"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            for name in (name.split(".")[0] for name in names):
                assert (
                    name in sys.stdlib_module_names | ours
                    or brought.get(name, name) in declared
                ), f"{path.name} imports {name}"


def test_no_unsafe_loading():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in text
        assert set(re.findall(r"trust_remote_code *[=:] *\w+", text)) <= {
            "trust_remote_code=False"
        }
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords)


def project_files():
    """The files of the project, without what was made from them."""
    made = {
        ".git",
        ".venv",
        ".venv-oldest",
        ".venv-newest",
        "build",
        "runs",
        "__pycache__",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".ipynb_checkpoints",
        "agnews_helpers.egg-info",
    }
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - made)
        yield from (
            Path(folder) / name for name in names if name not in made
        )  # a worktree's .git is a file


def test_the_working_tree_is_small():
    sizes = {path: path.stat().st_size for path in project_files()}
    assert sum(sizes.values()) < 15 * 2**20 and max(sizes.values()) < 1.5 * 2**20
