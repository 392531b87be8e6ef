"""Each finding of ``agnews doctor``, on machines that this one is made to look like."""
import collections
import sys

import pytest
import torch

from agnews_helpers import Recipe, doctor
from agnews_helpers.hardware import GTX_1650_TI
from agnews_helpers.mini import MiniUnavailable
from agnews_helpers.recipe import HubStatus

OFFLINE = Recipe(profile="offline", model="mini", data="sample")


def test_this_machine_passes():
    checks = doctor.examine(OFFLINE)
    assert not [str(check) for check in checks if check.ok is False]
    assert {"Python", "torch", "ipywidgets", "jupyterlab", "Jupyter kernel", "disk", "Hugging Face Hub", "offline model"} <= {check.name for check in checks}


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert str(doctor._python()).startswith("[FAIL] Python") and "3.11" in str(doctor._python())


@pytest.mark.parametrize("found, ok", [("5.0.0", True), ("4.57.3", False), ("6.0", False), (None, False)])
def test_a_package_against_its_range(found, ok, monkeypatch):
    def version(name):
        if found is None:
            raise doctor.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "requires", lambda _: ["transformers<6,>=5.0", "extra-only; extra == 'offline'"])
    monkeypatch.setattr(doctor, "version", version)
    [check] = doctor._packages()
    assert check.ok is ok and ("Run: pip install -c constraints.txt" in str(check)) is not ok


@pytest.mark.parametrize("driver, built, mark, words", [
    (None, None, "[note]", "no NVIDIA driver"), ("/usr/bin/nvidia-smi", None, "[FAIL]", "built without CUDA"),
    ("/usr/bin/nvidia-smi", "13.0", "[FAIL]", "built for CUDA 13.0, and the driver does not run it")])
def test_no_card_to_be_seen(driver, built, mark, words, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda _: driver)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(doctor, "this_card", lambda: None)
    [check] = doctor._cuda()
    assert str(check).startswith(mark) and words in str(check)


@pytest.mark.parametrize("built, free_gib, failed", [
    (["sm_75", "sm_80"], 3.2, set()), (["sm_70", "sm_80"], 3.2, set()), (["sm_80", "sm_90"], 3.2, {"compute capability"}),
    (["sm_75"], 1.0, {"free VRAM"})])
def test_a_card_against_the_build_and_the_budget(built, free_gib, failed, monkeypatch):
    monkeypatch.setattr(doctor, "this_card", lambda: GTX_1650_TI)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_gib * 2**30), 4 * 2**30))
    checks = doctor._cuda()
    assert len(checks) == 3 and {check.name for check in checks if check.ok is False} == failed


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(2e9))
    assert doctor._disk(OFFLINE, tmp_path).ok and not doctor._disk(Recipe(), tmp_path).ok


@pytest.mark.parametrize("recipe, usable, ok", [(OFFLINE, False, None), (Recipe(), False, False), (Recipe(), True, True)])
def test_the_hub(recipe, usable, ok, monkeypatch):
    monkeypatch.setattr(doctor, "hub_status", lambda: HubStatus(usable, False, "a reason"))
    assert doctor._hub(recipe).ok is ok and "a reason" in str(doctor._hub(recipe))


@pytest.mark.parametrize("recipe, ok", [(OFFLINE, False), (Recipe(), None)])
def test_no_offline_model(recipe, ok, monkeypatch):
    def missing(name):
        raise MiniUnavailable("install it so")

    monkeypatch.setattr(doctor, "checked_file", missing)
    assert doctor._mini(recipe).ok is ok and "install it so" in str(doctor._mini(recipe))


def test_no_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda _: {})
    assert "ipykernel install" in str(doctor._kernel())
