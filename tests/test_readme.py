"""README.md is true: its commands are run, and what it names is there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from packaging.requirements import Requirement

from agnews_helpers import LABELS
from agnews_helpers.cli import main
from agnews_helpers.data import SUPPORT
from agnews_helpers.profiles import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def commands():
    """Each command of a fenced block without its comment, and the block's number."""
    for number, (_, block) in enumerate(
        re.findall(r"```(sh|powershell)\n(.*?)```", TEXT, re.DOTALL)
    ):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s+)#.*", "", line).strip():
                yield number, command


COMMANDS = list(commands())
OURS = [(number, command) for number, command in COMMANDS if "agnews " in command]
# What other tests do, or what cannot be done here. Everything else must be tried below.
ELSEWHERE = {
    r"py -3.11 -m venv .*|\S*Activate.*": "Windows' own way to make an environment",
    r"python -m pip (install|uninstall -y) torch.*": "a download; tried without, below",
    r"uv (venv|pip install torch).*": "an environment, a download; the next is tried",
    r"conda .*": "conda is not here; test_house compares its environment.yml",
    r"jupyter lab notebooks": "tests/browser does",
    r"python -m pytest -n 2": "this is it",
}


def elsewhere(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in ELSEWHERE)


def tried(command: str) -> bool:
    """Whether a test below takes this command."""
    ours = r"(AGNEWS_\w+=\S+ )?agnews "
    others = r"make |python -m pip install -c |python bench|uv pip "
    return re.match(f"{ours}|{others}", command)


def test_there_is_no_command_that_nobody_runs():
    assert len(COMMANDS) > 20
    assert [
        command
        for _, command in COMMANDS
        if not elsewhere(command) and not tried(command)
    ] == []
    for pattern in ELSEWHERE:
        assert any(re.fullmatch(pattern, command) for _, command in COMMANDS), pattern


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme") / "runs/mine"
    small = [
        "--profile",
        "offline",
        "--model",
        str(tiny),
        "--train-rows",
        "45",
        "--test-rows",
        "20",
    ]
    assert main(["train", *small, "--epochs", "1", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def reader(tiny, trained, tmp_path, monkeypatch):
    """A reader's folder: texts, a file of them, their own data; small sizes."""
    small = {"PROFILE": "offline", "MODEL": tiny, "TRAIN_ROWS": 45, "TEST_ROWS": 20}
    for name, value in small.items():
        monkeypatch.setenv(f"AGNEWS_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    texts = ["Stocks fall as oil climbs", "The striker scored twice"]
    shutil.copy(SUPPORT / "train.csv", "tickets.csv")
    pd.DataFrame({"text": texts, "day": [1, 2]}).to_csv("new.csv", sep=";")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    Path("notebooks").mkdir()
    nbformat.write(notebook, "notebooks/01_small.ipynb")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", sorted({number for number, command in OURS if not elsewhere(command)})
)
def test_the_commands_of_a_block_run(block, reader, trained, monkeypatch, capsys):
    ours = [
        command
        for number, command in OURS
        if number == block and not elsewhere(command)
    ]
    if not any(" train " in command for command in ours):
        shutil.copytree(trained, "runs/mine")
    for command in ours:
        words = shlex.split(command)
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        stopped = "# Ctrl-C" in next(
            line for line in TEXT.splitlines() if command in line
        )
        status = main(words[1:] + ["--steps", "3"] * stopped)
        told = capsys.readouterr()
        assert status == (
            1 if words[1] == "doctor" and "Not ready" in told.out else 0
        ), command + told.err
        assert told.out


def test_no_training_finds_the_folder_of_another():
    """A reader goes on in one folder, from the first command to the last."""
    trainings = [
        command
        for _, command in COMMANDS
        if " train " in command and "--resume" not in command
    ]
    folders = [re.search(r"--output-dir (\S+)", command)[1] for command in trainings]
    folders += re.findall(r'train\(.*output_dir="(.*?)"\)', TEXT)
    assert len(folders) >= 4 and len({*folders}) == len(folders)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_knows_its_targets():
    for _, command in COMMANDS:
        if command.startswith("make "):
            done = subprocess.run(
                [shutil.which("make"), "-n", command[5:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0 and done.stdout, command + done.stderr


def test_what_is_installed_is_there():
    extras = PROJECT["project"]["optional-dependencies"]
    found = [command for _, command in COMMANDS if " pip " in command]
    found = [command for command in found if not elsewhere(command)]
    assert found
    for command in found:
        assert set(re.search(r"\[(.*?)\]", command)[1].split(",")) <= {*extras}, command
        assert (ROOT / re.search(r"-c (\S+)", command)[1]).is_file(), command


UV, PIP, BOTH = (
    [command for number, command in COMMANDS if number == block] for block in (1, 2, 3)
)
WINDOWS = [*PIP, *BOTH]


def test_on_windows_pytorch_for_cuda_comes_first_and_stays(tmp_path):
    """Environment, activation, CUDA, the rest; and the rest is content with it."""
    kinds = ["venv", "Activate", "install torch==", '".[offline]"']
    for way in (UV, PIP):
        assert len(way) == 4
        assert all(kind in command for kind, command in zip(kinds, way, strict=True))
    assert UV[2:] == [line.replace("python -m", "uv") for line in PIP[2:]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    [wanted] = [Requirement(line) for line in lines if line.startswith("torch==")]
    assert f" {wanted} --index-url" in WINDOWS[2]
    # The selector's builds have names of their own, which the constraint takes.
    version = str(wanted.specifier).removeprefix("==")
    assert all(
        wanted.specifier.contains(f"{version}+{build}")
        for build in ("cpu", "cu126", "cu130")
    )


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_cpu_build_stays_until_it_is_removed(is_removed, tmp_path):
    """As pip itself decides, from a build that is only a name."""
    version = torch.__version__.partition("+")[0]
    wheel = tmp_path / f"torch-{version}+cu126-py3-none-any.whl"
    folder = f"torch-{version}+cu126.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        head = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{folder}/WHEEL", head)
        about = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+cu126\n"
        file.writestr(f"{folder}/METADATA", about)
        file.writestr(f"{folder}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"]
    pip += ["--no-deps", "--find-links", str(tmp_path), f"torch=={version}"]
    pip += ["--ignore-installed"] * is_removed
    done = subprocess.run(pip, capture_output=True, text=True)
    expected = f"Would install torch-{version}+cu126" if is_removed else "already sat"
    assert expected in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_benchmark_says_what_it_needs():
    """`on_cuda.py` is the one in a block: run as if there were no card."""
    done = subprocess.run(
        [sys.executable, "benchmarks/on_cuda.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and "CUDA" in done.stdout + done.stderr
    for script in re.findall(r"python (benchmarks/\w+\.py)", TEXT):
        assert (ROOT / script).is_file(), script


def test_the_program_runs(reader, monkeypatch):
    training, service = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(training, "README.md", "exec"), {})
    assert Path("runs/program/best/model.safetensors").is_file()
    shutil.copytree("runs/program", "runs/tickets")
    names = {}
    exec(compile(service, "README.md", "exec"), names)
    assert names["drawer"]("Stocks fall as oil climbs", 0.0) in LABELS
    assert names["drawer"]("Stocks fall as oil climbs", 1.0) == "unsure"


def test_the_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in TEXT.splitlines()
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_its_flags_and_variables_exist(capsys):
    for name in re.findall(r"`agnews (\w+)", TEXT):
        if name.islower():
            with pytest.raises(SystemExit) as end:
                main([name, "--help"])
            assert end.value.code == 0
    known = {"AGNEWS_PROFILE"}
    known |= {f"AGNEWS_{name.upper()}" for name in VARIABLES}
    assert set(re.findall(r"AGNEWS_[A-Z_]+", TEXT)) <= known


# The workflow on Windows


def test_the_workflow_on_windows_is_what_a_reader_is_told():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["windows"]
    assert job["runs-on"] == "windows-latest"
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in lines:
        quick = f"$(BIN)/{line}\n" in makefile  # of `make quick`
        if "notebooks" in line:
            names = [word for word in line.split() if word.endswith(".ipynb")]
            assert len(names) == 3 and all((ROOT / name).is_file() for name in names)
        else:
            assert line in WINDOWS or quick, line
    assert WINDOWS[0] == lines[0] and WINDOWS[1] == lines[1]
    # Of a step the last command's status counts; none activates for another.
    for step in job["steps"]:
        commands = [c for c in step.get("run", "").splitlines() if c not in WINDOWS[:2]]
        assert len(commands) <= 1 and (not commands or WINDOWS[1] in step["run"])
