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
from agnews_helpers.plumbing.mini import MiniUnavailable
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL

OFFLINE = Recipe(profile="offline", model="mini", data="sample")


def source(recipe, name):
    """Return the check of the data or of the model."""
    return next(check for check in doctor._sources(recipe) if check.name == name)


@pytest.fixture
def hub(monkeypatch):
    """Make the Hub answer, or be silent, with or without files in its cache."""

    def become(problem, cached=False):
        monkeypatch.setattr(doctor, "why_unreachable", lambda: problem)
        monkeypatch.setattr(doctor, "in_cache", lambda name, kind: cached)

    become("")
    return become


def test_this_machine_passes():
    checks = doctor.examine(OFFLINE)
    assert not [str(check) for check in checks if check.ok is False]
    project = tomllib.loads(
        (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    needed = {Requirement(text).name for text in project["dependencies"]}
    others = {"Jupyter kernel", "CUDA", "disk", "data", "model"}
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
        ("torch>=2.6", "2.14.0.dev1+cu130", True),
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


def test_a_clone_that_is_not_installed(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    [check] = doctor._packages()
    assert str(check).startswith("[FAIL] agnews-helpers") and "is not installed" in str(
        check
    )
    assert "Run in the folder of the project: pip install -c constraints.txt" in str(
        check
    )


@pytest.mark.parametrize(
    "driver, built, words",
    [
        (None, None, "[note] CUDA .*no NVIDIA driver"),
        ("nvidia-smi", None, "[FAIL] CUDA .*built without CUDA.*uninstall -y torch"),
        ("nvidia-smi", "13.0", "[FAIL] CUDA .*driver on your system is too old.*torch"),
    ],
)
def test_no_card_that_can_be_used(driver, built, words, monkeypatch):
    def ones(*size, device):
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore")

    monkeypatch.setattr(doctor.shutil, "which", lambda _: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch, "ones", ones)
    [check] = map(str, doctor._card())
    assert re.match(re.escape(words[:6]) + words[6:], check, re.DOTALL), check
    assert "more" not in check


@pytest.mark.parametrize(
    "runs, free_gib, failed",
    [
        (True, 3.2, set()),
        (False, 3.2, {"CUDA"}),
        (True, 1.0, {"free VRAM"}),
    ],
)
def test_a_card_against_the_build_and_its_free_memory(
    runs, free_gib, failed, monkeypatch
):
    def ones(*size, device):
        if not runs:
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return real(*size)

    real = torch.ones
    memory = (int(free_gib * 2**30), 4 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1650 Ti")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: memory)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "ones", ones)
    checks = list(doctor._card())
    assert {check.name for check in checks if check.ok is False} == failed
    found = checks[0].found
    assert found == "13.0, GTX 1650 Ti" if runs else found.endswith("is available")


def test_the_memory_of_a_step_is_the_predicted_one():
    from agnews_helpers.vram.budget import step_budget
    from agnews_helpers.vram.trace import config_for

    assert doctor.STEP_MIB == step_budget(config_for(), 8, 358).reserved


def test_a_full_disk(monkeypatch):
    usage = collections.namedtuple("Usage", "free")(2e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor._disk(OFFLINE, Path()).ok
    assert not doctor._disk(Recipe(), Path()).ok


def test_the_data(tmp_path, hub):
    for data in ("sample", HUB_DATA, str(tmp_path)):
        check = source(replace(OFFLINE, data=data), "data")
        assert check.ok and check.found.startswith(data)
    for data in ("lost", "owner/lost"):  # the Hub is asked for AG News alone
        check = source(replace(OFFLINE, data=data), "data")
        assert str(check).startswith("[FAIL] data")
        assert f"there is no folder {data}" in str(check)
        assert "Set AGNEWS_DATA to an existing folder" in str(check)


@pytest.mark.parametrize(
    "model, ok",
    [
        ("mini", True),
        (HUB_MODEL, True),
        ("bert-base-cased", True),
        ("/no/such", False),
        ("./model/", False),
        ("no id of a model", False),
    ],
)
def test_the_model(model, ok, hub):
    assert source(replace(OFFLINE, model=model), "model").ok is ok


def test_a_models_folder(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    assert source(replace(OFFLINE, model=str(tmp_path)), "model").ok
    Path("weights").touch()  # could be a Hub id, but for the file of this name
    assert source(replace(OFFLINE, model="weights"), "model").ok is False


@pytest.mark.parametrize("model", [HUB_MODEL, "bert-base-cased"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_silent_hub(model, cached, hub):
    hub("it is silent", cached)
    for check in doctor._sources(replace(Recipe(), model=model)):
        assert check.ok is cached and "it is silent" in check.found
        assert ("Go online" in str(check)) is not cached


def test_a_silent_hub_that_is_not_needed(hub):
    hub("it is silent")
    assert all(check.ok for check in doctor._sources(OFFLINE))


def test_no_offline_model(monkeypatch):
    def missing():
        raise MiniUnavailable("install it so")

    monkeypatch.setattr(doctor, "mini_folder", missing)
    check = source(OFFLINE, "model")
    assert check.ok is False and "install it so" in str(check)
    assert source(Recipe(), "model").name == "model"  # it is not asked for


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
                "[WinError 126] The specified module could not be found. "
                "Error loading c10.dll"
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
    monkeypatch.setattr(doctor, "why_unreachable", lambda: silent.reason)
    monkeypatch.setattr(doctor, "in_cache", lambda name, kind: False)
    monkeypatch.setenv("AGNEWS_PROFILE", profile)
    if model:
        monkeypatch.setenv("AGNEWS_MODEL", model)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert (
        "[FAIL] model" in output
        and "[OK]   torch" in output
        and f"profile    {profile}" in output
    )
