"""Each finding of ``agnews doctor``, on machines that this one is made to look like."""

import collections
import re
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from agnews_helpers import Recipe, doctor
from agnews_helpers.cli import main
from agnews_helpers.plumbing.hub import HubStatus
from agnews_helpers.plumbing.mini import MiniUnavailable, mini_place
from agnews_helpers.plumbing.storage import write_folder
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL
from vram_budget import GTX_1650_TI

OFFLINE = Recipe(profile="offline", model="mini", data="sample")


def needed(recipe, name):
    """The check of this name, of those that ask for what a recipe needs."""
    return next(check for check in doctor._needs(recipe, Path()) if check.name == name)


def test_this_machine_passes():
    checks = doctor.examine(OFFLINE)
    assert not [str(check) for check in checks if check.ok is False]
    project = tomllib.loads(
        (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    needed = {Requirement(text).name for text in project["dependencies"]}
    others = {
        "Python",
        "Jupyter kernel",
        "disk",
        "data",
        "Hugging Face Hub",
        "offline model",
    }
    assert needed | others <= {check.name for check in checks}


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    check = str(next(doctor._packages()))
    assert check.startswith("[FAIL] Python") and "3.11" in check


@pytest.mark.parametrize(
    "line, found, ok",
    [
        ("transformers<6,>=5.0", "5.0.0", True),
        ("transformers<6,>=5.0", "4.57.3", False),
        ("transformers<6,>=5.0", "6.0", False),
        ("transformers<6,>=5.0", None, False),
        ("ipywidgets>=8.0", "8.1.9", True),
        ("ipywidgets>=8.0", "7.8.5", False),
        ("torch>=2.6", "2.14.0.dev1+cu130", True),
    ],
)
def test_a_package_against_its_range(line, found, ok, monkeypatch):
    monkeypatch.setattr(
        doctor, "requires", lambda _: [line, "extra-only; extra == 'offline'"]
    )
    monkeypatch.setattr(doctor, "version_of", lambda _: found)
    _, check = doctor._packages()  # the first is Python's
    assert (
        check.ok is ok
        and (
            "Run in the folder of the project: pip install -c constraints.txt"
            in str(check)
        )
        is not ok
    )


def test_a_clone_that_is_not_installed(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    _, check = doctor._packages()
    assert str(check).startswith("[FAIL] agnews-helpers") and "is not installed" in str(
        check
    )
    assert "Run in the folder of the project: pip install -c constraints.txt" in str(
        check
    )


@pytest.mark.parametrize(
    "driver, built, told",
    [
        ((0, 0.0), None, ["[note] CUDA .*no NVIDIA driver"]),
        ((580, 7.5), None, ["[FAIL] CUDA .*built without CUDA"]),
        (
            (570, 7.5),
            "13.0",
            [
                "[FAIL] NVIDIA driver .*570; CUDA 13.0 needs 580 .*CUDA 12",
                "[FAIL] CUDA .*no card",
            ],
        ),
        (
            (524, 7.5),
            "12.8",
            [
                "[FAIL] NVIDIA driver .*524; CUDA 12.8 needs 525",
                "[FAIL] CUDA .*no card",
            ],
        ),
        ((581, 7.5), "13.0", ["[OK]   NVIDIA driver .*581", "[FAIL] CUDA .*no card"]),
        (
            (580, 6.1),
            "13.0",
            [
                "[OK]   NVIDIA driver",
                "[FAIL] age of the card .*6.1.*cu126",
                "[FAIL] CUDA .*no card",
            ],
        ),
        ((560, 6.1), "12.6", ["[OK]   NVIDIA driver", "[FAIL] CUDA .*no card"]),
    ],
)
def test_no_card_to_be_seen(driver, built, told, monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_smi", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(doctor, "this_card", lambda: None)
    checks = list(map(str, doctor._cuda()))
    assert len(checks) == len(told)
    for check, words in zip(checks, told):
        assert re.match(re.escape(words[:6]) + words[6:], check, re.DOTALL), check


@pytest.mark.parametrize(
    "answer, found",
    [
        ("581.15, 7.5\n", (581, 7.5)),
        ("525.147.05, 6.1\n525.147.05, 8.6\n", (525, 6.1)),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
            (0, 0.0),
        ),
        (None, (0, 0.0)),
    ],
)
def test_what_nvidia_smi_says(answer, found, monkeypatch):
    def run(command, **how):
        if command[0] is None:
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(
        doctor.shutil, "which", lambda _: answer and "/usr/bin/nvidia-smi"
    )
    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert doctor.nvidia_smi() == found


def test_a_machine_without_nvidia_smi(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.nvidia_smi() == (0, 0.0)


@pytest.mark.parametrize(
    "runs, free_gib, failed",
    [
        (True, 3.2, set()),
        (False, 3.2, {"a sum on the card"}),
        (True, 1.0, {"free VRAM"}),
    ],
)
def test_a_card_against_the_build_and_the_budget(runs, free_gib, failed, monkeypatch):
    def ones(*size, device=None, **how):
        if device == "cuda" and not runs:
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nmore"
            )
        return real(*size, **how)

    real = torch.ones
    monkeypatch.setattr(doctor, "this_card", lambda: GTX_1650_TI)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda: (int(free_gib * 2**30), 4 * 2**30)
    )
    monkeypatch.setattr(torch, "ones", ones)
    checks = list(doctor._cuda())
    assert {check.name for check in checks if check.ok is False} == failed
    assert (
        runs or "no kernel image" in checks[1].found and "more" not in checks[1].found
    )


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(
        doctor.shutil,
        "disk_usage",
        lambda _: collections.namedtuple("Usage", "free")(2e9),
    )
    assert needed(OFFLINE, "disk").ok and not needed(Recipe(), "disk").ok


def test_the_data(tmp_path):
    for data in ("sample", HUB_DATA, str(tmp_path)):
        check = needed(replace(OFFLINE, data=data), "data")
        assert check.ok and check.found == data
    check = needed(replace(OFFLINE, data=str(tmp_path / "lost")), "data")
    assert str(check).startswith(
        "[FAIL] data"
    ) and f"there is no folder {tmp_path / 'lost'}" in str(check)
    assert "AGNEWS_DATA must name a folder" in str(check)


@pytest.mark.parametrize(
    "model, there",
    [
        ("mini", True),
        (HUB_MODEL, True),
        ("bert-base-cased", True),
        ("/no/such", False),
        ("./model/", False),
    ],
)
def test_the_model(model, there):
    assert needed(replace(OFFLINE, model=model), "model").ok is there


def test_a_models_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert needed(replace(OFFLINE, model=str(tmp_path)), "model").ok
    Path("weights").touch()  # could be a Hub id, but for the file of this name
    assert needed(replace(OFFLINE, model="weights"), "model").ok is False


@pytest.mark.parametrize(
    "recipe, usable, ok",
    [(OFFLINE, False, None), (Recipe(), False, False), (Recipe(), True, True)],
)
def test_the_hub(recipe, usable, ok, monkeypatch):
    monkeypatch.setattr(doctor, "hub_status", lambda: HubStatus(usable, "a reason"))
    check = needed(recipe, "Hugging Face Hub")
    assert check.ok is ok and "a reason" in str(check)
    assert ("Go online" in str(check)) is (ok is False)


@pytest.mark.parametrize(
    "silent, cached, model, ok",
    [
        ("it is silent", None, "bert-base-cased", False),
        ("it is silent", "config.json", "bert-base-cased", True),
        ("", None, "bert-base-cased", True),
        ("it is silent", None, "no id of a model", False),
        ("it is silent", None, "mini", None),
    ],
)
def test_another_model_of_the_hub(silent, cached, model, ok, monkeypatch):
    if " " not in model:
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: cached)
    monkeypatch.setattr(doctor, "why_unreachable", lambda: silent)
    monkeypatch.setattr(doctor, "hub_status", lambda: HubStatus(True, "here"))
    assert needed(replace(OFFLINE, model=model), "Hugging Face Hub").ok is ok


@pytest.mark.parametrize("recipe, ok", [(OFFLINE, False), (Recipe(), None)])
def test_no_offline_model(recipe, ok, tmp_path, monkeypatch):
    def missing(name):
        raise MiniUnavailable("install it so")

    monkeypatch.setattr(doctor, "checked_file", missing)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check = needed(recipe, "offline model")
    assert check.ok is ok and "install it so" in str(check)
    write_folder(
        mini_place(), lambda folder: (folder / "config.json").touch()
    )  # it was made here before
    assert needed(recipe, "offline model").ok


@pytest.mark.parametrize(
    "program, ok, words",
    [
        (sys.executable, True, "is this Python"),
        ("python", True, "is this Python"),
        (
            str(Path(sys.executable).parent.parent / "other" / "python"),
            False,
            "another Python",
        ),
    ],
)
def test_the_kernel(program, ok, words, monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    def get_kernel_spec(self, name):
        return SimpleNamespace(argv=[program, "-m", "ipykernel_launcher"])

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", get_kernel_spec)
    check = doctor._kernel()
    assert (
        check.ok is ok
        and words in check.found
        and ("ipykernel install" in str(check)) is not ok
    )


@pytest.mark.parametrize(
    "name", ["packaging", "huggingface_hub", "torch", "transformers", "ipykernel"]
)
def test_a_package_that_the_checks_stand_on_is_missing(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert (
        f"[FAIL] {name}" in output
        and "Run in the folder of the project: pip install -c constraints.txt" in output
        and f"Not ready: {name}." in output
    )


def test_a_package_that_windows_cannot_load(monkeypatch):
    def import_module(name):
        if name == "torch":
            raise OSError(
                "[WinError 126] The specified module could not be found. Error loading c10.dll"
            )

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    [check] = list(doctor.broken_imports())
    assert (
        check.name == "torch"
        and not check.ok
        and "c10.dll" in str(check)
        and "Visual C++ Redistributable" in str(check)
    )


@pytest.mark.parametrize("profile, model", [("laptop", None), ("offline", HUB_MODEL)])
def test_the_hub_that_a_profile_needs_is_one_finding_among_others(
    profile, model, monkeypatch, capsys
):
    silent = HubStatus(False, "the Hugging Face Hub does not answer")
    monkeypatch.setattr("agnews_helpers.profiles.hub_status", lambda: silent)
    monkeypatch.setattr(doctor, "hub_status", lambda: silent)
    monkeypatch.setenv("AGNEWS_PROFILE", profile)
    if model:
        monkeypatch.setenv("AGNEWS_MODEL", model)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert (
        "[FAIL] Hugging Face Hub" in output
        and "[OK]   torch" in output
        and f"profile    {profile}" in output
    )
