"""README.md is true: its commands are run, and what it names is there."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from agnews_helpers.cli import main
from agnews_helpers.data import SAMPLE
from agnews_helpers.profiles import NUMBER_VARIABLES, TEXT_VARIABLES

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
OURS = [
    (number, command)
    for number, command in COMMANDS
    if " predict - " in command or "agnews " in command
]
# What other tests do, or what cannot be done here. Everything else must be tried below.
ELSEWHERE = {
    r"py -3.11 -m venv .*|\S*Activate.*": "Windows' own way to make an environment",
    r"uv venv .*": "an environment; its next line is compared with pyproject.toml",
    r"conda .*": "conda is not here; test_house compares its environment.yml",
    r"jupyter lab notebooks": "tests/browser does",
    r"python -m pytest -n 2": "this is it",
    r"accelerate launch .*": "test_parallel does, with two processes of the CPU",
}


def elsewhere(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in ELSEWHERE)


def tried(command: str) -> bool:
    """Whether a test below takes this command."""
    ours = r"(AGNEWS_\w+=\S+ )?agnews |cat .*\| agnews "
    others = r"make |python -m pip |python bench|uv pip "
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
    shutil.copytree(SAMPLE, "my/folder")
    texts = ["Stocks fall as oil climbs", "The striker scored twice"]
    Path("texts.txt").write_text("\n".join(texts), encoding="utf-8")
    pd.DataFrame({"text": texts, "day": [1, 2]}).to_csv("texts.csv", index=False)
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
        if lines := re.match(r"cat (\S+) \| ", command):
            text = Path(lines[1]).read_bytes()
            monkeypatch.setattr(
                sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
            )
            command = command[lines.end() :]
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
    assert len(folders) >= 6 and len({*folders}) == len(folders)


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
    assert found
    for command in found:
        assert set(re.search(r"\[(.*?)\]", command)[1].split(",")) <= {*extras}, command
        assert (ROOT / re.search(r"-c (\S+)", command)[1]).is_file(), command


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
    [program] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(program, "README.md", "exec"), {})
    assert Path("runs/program/best/model.safetensors").is_file()


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
    known |= {f"AGNEWS_{name.upper()}" for name in (*TEXT_VARIABLES, *NUMBER_VARIABLES)}
    assert set(re.findall(r"AGNEWS_[A-Z_]+", TEXT)) <= known
