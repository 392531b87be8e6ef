"""Each finding of ``agnews doctor``, on machines that this one is made to look like."""

import importlib.metadata
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from agnews_helpers import doctor
from agnews_helpers.cli import main
from agnews_helpers.plumbing.mini import MiniUnavailable
from tests.test_house import pins

ROOT = Path(__file__).parent.parent
TORCH_LINE = f"torch=={pins('constraints.txt')['torch']}"
# Some figures are those of this PyTorch, and others of another.
IS_PINNED = Requirement(TORCH_LINE).specifier.contains(torch.__version__)


def test_this_machine_passes():
    checks = list(doctor.examine())
    assert not [str(check) for check in checks if check.ok is False]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    needed = {Requirement(text).name for text in project["dependencies"]}
    others = {"Jupyter kernel", "CUDA", "profile"}
    assert needed | others <= {check.name for check in checks}


@pytest.mark.parametrize(
    "line, found, ok",
    [
        ("transformers<6,>=5.0", "5.0.0", True),
        ("transformers<6,>=5.0", "4.57.3", False),
        ("transformers<6,>=5.0", "6.0", False),
        ("transformers<6,>=5.0", None, False),
        ("ipywidgets>=8.0", "8.1.9", True),
        ("ipywidgets>=8.0", "7.8.5", False),
        ("torch>=2.8", "2.14.0.dev1+cu130", True),
    ],
)
def test_a_package_against_its_range(line, found, ok, monkeypatch):
    monkeypatch.setattr(
        doctor, "requires", lambda _: [line, "extra-only; extra == 'offline'"]
    )
    monkeypatch.setattr(doctor, "version_of", lambda _: found)
    [check] = doctor._packages()
    assert (
        check.ok is ok
        and (
            "Run in the folder of the project: pip install -c constraints.txt"
            in str(check)
        )
        is not ok
    )


def test_a_clone_that_is_not_installed(monkeypatch, capsys):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "[FAIL] No package metadata was found for agnews-helpers" in said
    assert "Install the project as README.md says." in said


@pytest.mark.parametrize("driver, mark", [(None, "[note]"), ("nvidia-smi", "[FAIL]")])
@pytest.mark.parametrize(
    "kind, found, remedy",
    [
        (AssertionError, "not compiled with CUDA", "uninstall -y torch"),
        (RuntimeError, "The NVIDIA driver is too old", "too old: update it"),
        (torch.OutOfMemoryError, "CUDA out of memory", "nvidia-smi lists it"),
        (RuntimeError, "CUDA unknown error", "Unknown error: restart"),
        (RuntimeError, "no kernel image is available", "No kernel image:"),
    ],
)
def test_no_card_that_can_be_used(driver, mark, kind, found, remedy, monkeypatch):
    def ones(*size, device):
        raise kind(f"{found}\nmore")

    monkeypatch.setattr(doctor.shutil, "which", lambda _: driver)
    monkeypatch.setattr(torch, "ones", ones)
    check = str(doctor._card())
    assert check.startswith(f"{mark} CUDA") and found in check
    assert "more" not in check
    assert (remedy in check) is (mark == "[FAIL]")
    assert "uninstall" not in check or kind is AssertionError


@pytest.mark.parametrize("free_gib, ok", [(3.2, True), (1.0, False)])
def test_the_free_memory_of_a_card(free_gib, ok, monkeypatch):
    real = torch.ones
    memory = (int(free_gib * 2**30), 4 * 2**30)
    monkeypatch.setattr(torch, "ones", lambda *size, device: real(*size))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1650 Ti")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: memory)
    check = doctor._card()
    assert check.ok is ok and "GTX 1650 Ti" in check.found
    assert ("nvidia-smi lists it" in str(check)) is not ok


def test_the_memory_of_a_step_is_the_predicted_one():
    from agnews_helpers.budgeting import config_for, training_step
    from vram_budget.budget import step_budget

    budget = step_budget(training_step(), config_for(), 8, 358)
    # Each PyTorch has its own; the stated one is that of constraints.txt.
    spread = 0 if IS_PINNED else 0.05
    assert doctor.STEP_MIB == pytest.approx(budget.reserved, rel=spread)


def test_no_offline_model(monkeypatch, capsys):
    def missing():
        raise MiniUnavailable("install it so")

    monkeypatch.setattr(doctor, "mini_folder", missing)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "install it so" in printed and "Not ready: profile." in printed


def test_the_profile_with_its_model_and_data(monkeypatch, capsys):
    monkeypatch.setenv("AGNEWS_PROFILE", "offline")
    main(["doctor"])
    found = "offline (asked for by AGNEWS_PROFILE): mini on sample\n"
    assert f"[OK]   profile            {found}" in capsys.readouterr().out


def test_a_wrong_variable_is_a_finding(monkeypatch, capsys):
    monkeypatch.setenv("AGNEWS_PROFILE", "huge")
    assert main(["doctor"]) == 1
    assert "Recipe.profile is 'huge'; it must be one of" in capsys.readouterr().out


@pytest.mark.parametrize(
    "program, ok",
    [
        (sys.executable, True),
        ("python", True),
        (str(Path(sys.executable).parent.parent / "other" / "python"), False),
    ],
)
def test_the_kernel(program, ok, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    def get_kernel_spec(self, name):
        return SimpleNamespace(argv=[program, "-m", "ipykernel_launcher"])

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", get_kernel_spec)
    check = doctor._kernel()
    assert check.ok is ok and program in check.found
    assert ("ipykernel install" in str(check)) is not ok


@pytest.mark.parametrize("name", ["packaging.requirements", "ipykernel.kernelspec"])
def test_a_package_that_the_checks_stand_on_is_missing(name, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "agnews_helpers.doctor")
    monkeypatch.delattr("agnews_helpers.doctor")
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "[FAIL] " in output and name in output
    assert "Install the project as README.md says." in output


def test_the_hub_that_a_profile_needs_is_one_finding_among_others(monkeypatch, capsys):
    silent = (False, "the Hugging Face Hub does not answer")
    monkeypatch.setattr("agnews_helpers.profiles.hub_status", lambda *_: silent)
    monkeypatch.setenv("AGNEWS_PROFILE", "laptop")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "[OK]   torch" in output and "Not ready: profile." in output
    assert "The profile 'laptop' needs the Hugging Face Hub" in output


# Whole machines


class Result:
    """What a step of `torch.ones(8, device="cuda").sum().item()` needs."""

    def sum(self):
        return self

    def item(self):
        return 8.0


def no_cuda(*size, device):
    raise AssertionError("Torch not compiled with CUDA enabled")


def no_card(*size, device):
    raise RuntimeError("No CUDA GPUs are available")


MACHINES = {
    "all well, with a card": ({}, []),
    "no card, as most laptops": (
        {"ones": no_card},
        ["[note] CUDA               No CUDA GPUs are available (above stands the"],
    ),
    "the CPU build beside an NVIDIA driver": (
        {"ones": no_cuda, "driver": "nvidia-smi"},
        [
            "[FAIL] CUDA               Torch not compiled with CUDA enabled",
            "Run: pip uninstall -y torch\n",
            "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu",
            "Not ready: CUDA.",
        ],
    ),
    "OneDrive": (
        {"folder": "OneDrive - Example"},
        [
            "[note] folder             OneDrive copies",
            "git clone into a folder outside",
        ],
    ),
}


@pytest.fixture
def machine(request, monkeypatch, tmp_path):
    """This machine made to look like another, with all well but for what is told."""
    told, _ = MACHINES[request.param]
    monkeypatch.setenv("AGNEWS_PROFILE", "offline")
    folder = tmp_path / told.get("folder", "agnews")
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: told.get("driver"))
    ones = told.get("ones", lambda *_, device: Result())
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1650 Ti")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 4 * 2**30))
    return request.param


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_what_is_said_of_a_whole_machine(machine, capsys):
    expected = MACHINES[machine][1]
    status = main(["doctor"])
    said = capsys.readouterr().out
    for text in expected:
        assert text in said
    findings = [line for line in said.splitlines() if line[:6] in ("[note]", "[FAIL]")]
    assert len(findings) == len([text for text in expected if text[0] == "["])
    assert status == ("Not ready" in said) == any("[FAIL]" in t for t in expected)


def test_the_commands_that_repair_a_cpu_build_are_of_the_tested_version():
    """A constraint is met by the CPU build, too: it has to go first."""
    assert f"pip install {TORCH_LINE} --index-url" in doctor.INSTALL_TORCH
    before, after = doctor.INSTALL_TORCH.split("pip install")
    assert "pip uninstall -y torch" in before and "cu126" in after
    assert Requirement("torch==2.13.0").specifier.contains("2.13.0+cpu")


def test_the_longest_path_of_torch():
    """Counted in the torch that is installed here, for a name as long as CUDA's."""
    files = importlib.metadata.files("torch")
    # The folder's name has the build in it, or has not.
    paths = [re.sub(r"^torch-[^/]+\.dist-info", "", p.as_posix()) for p in files]
    longest = max(map(len, paths))
    cuda = len("torch-2.13.0+cu130.dist-info") + longest
    whole = 67 + len("\\Lib\\site-packages\\") + cuda
    assert whole == 259 if IS_PINNED else whole < 260
