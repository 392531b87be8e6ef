"""What this machine has of what the tutorial needs, and what to do about the rest: ``agnews doctor``."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from .hardware import this_card, version_of
from .plumbing.errors import HubUnreachable
from .plumbing.hub import NO_ID, HubStatus, why_unreachable
from .plumbing.mini import MiniUnavailable, checked_file, mini_place
from .plumbing.storage import damaged_files
from .profiles import (
    PROFILES,
    environment_overrides,
    hub_status,
    recipe_for_this_machine,
)
from .recipe import (
    HUB_DATA,
    HUB_MODEL,
    Recipe,
)

CHECK_IMPORTS = (
    "packaging",
    "huggingface_hub",
    "torch",
    "transformers",
    "ipykernel",
)  # what the checks import
DRIVERS = {"12": 525, "13": 580}  # the oldest that runs a PyTorch built for such a CUDA
INSTALL = (
    'Run in the folder of the project: pip install -c constraints.txt -e ".[offline]"'
)
# GB on the disk: `full` needs the Hub's model and data, three checkpoints of 1.03 at a time, two classifiers.
DISK_GB = {"offline": 1.0, "laptop": 4.5, "full": 4.5}


@dataclass(frozen=True)
class Check:
    """One requirement: what was found, and what to do where it is not met.

    ok : whether it is met; None where it is worth knowing and nothing is wrong.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "[OK]  ", False: "[FAIL]", None: "[note]"}[self.ok]
        advice = "" if self.ok or not self.remedy else f"\n{'':26}{self.remedy}"
        return f"{mark} {self.name:18} {self.found}{advice}"


def broken_imports() -> Iterator[Check]:
    """The packages that the checks stand on and that are missing or broken: with one, ask no further."""
    remedy = f"{INSTALL}. On Windows PyTorch needs Microsoft's Visual C++ Redistributable (x64) as well."
    for name in CHECK_IMPORTS:
        try:
            importlib.import_module(name)
        except (
            ImportError,
            OSError,
        ) as error:  # the second where a library of the system is missing
            yield Check(name, False, f"cannot be loaded: {error}", remedy)


def recipe_or_default() -> Recipe:
    """The recipe that would run, also where it needs the Hub and the Hub does not answer: a finding, here."""
    try:
        return recipe_for_this_machine()
    except HubUnreachable:
        values = (
            PROFILES[profile := os.environ["AGNEWS_PROFILE"]] | environment_overrides()
        )
        return Recipe(profile, **values).with_reason("asked for by AGNEWS_PROFILE")


def examine(recipe: Recipe, folder: Path = Path(".")) -> list[Check]:
    """All checks, in the order in which a reader would mend things."""
    return [*_packages(), _kernel(), *_cuda(), *_needs(recipe, folder)]


def nvidia_smi() -> tuple[int, float]:
    """Number of the NVIDIA driver and its card's compute capability, 0 where they are not to be known."""
    command = [
        shutil.which("nvidia-smi"),
        "--query-gpu=driver_version,compute_cap",
        "--format=csv,noheader",
    ]
    with suppress(
        TypeError, OSError, subprocess.SubprocessError
    ):  # the first where there is no such program
        told = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if found := re.match(r"(\d+)[.\d]*, (\d+[.]\d+)", told.stdout):
            return int(found[1]), float(found[2])
    return 0, 0.0


def _packages() -> Iterator[Check]:
    """Python, and each package of pyproject.toml, against its range."""
    from packaging.requirements import Requirement

    yield Check(
        "Python",
        sys.version_info >= (3, 11),
        platform.python_version(),
        "Install 3.11 or newer.",
    )
    try:
        listed = requires("agnews-helpers") or []
    except PackageNotFoundError:
        yield Check("agnews-helpers", False, "is not installed", INSTALL)
        return
    for needed in map(Requirement, listed):
        if needed.marker is None:  # else it belongs to an extra
            found = version_of(needed.name)
            ok = found is not None and needed.specifier.contains(
                found, prereleases=True
            )
            yield Check(
                needed.name,
                ok,
                f"{found or 'is not installed'}, needed {needed.specifier}",
                INSTALL,
            )


def _kernel() -> Check:
    """The notebooks' kernel, and that it is this Python: another one would not find the package."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = Path(
        KernelSpecManager().get_kernel_spec("python3").argv[0]
    )  # ipykernel always has one
    # A bare name means the Python that asks.
    here = not program.is_absolute() or program.parent == Path(sys.executable).parent
    found = (
        "python3 is this Python" if here else f"python3 is another Python: {program}"
    )
    return Check(
        "Jupyter kernel", here, found, "Run: python -m ipykernel install --sys-prefix"
    )


def _cuda() -> Iterator[Check]:
    """PyTorch's build against driver and card, and free memory against a step with AG News' longest row."""
    import torch

    card, cuda, (driver, capability) = this_card(), torch.version.cuda, nvidia_smi()
    if card is None and not driver:
        yield Check(
            "CUDA",
            None,
            "no NVIDIA driver; training runs on the CPU, in the small profiles",
        )
        return
    if cuda is None:
        found = "an NVIDIA driver is here, and this PyTorch was built without CUDA"
        yield Check(
            "CUDA", False, found, "Install it: https://pytorch.org/get-started/locally/"
        )
        return
    if driver:
        needed = DRIVERS.get(cuda.partition(".")[0], 0)
        remedy = f"Update the driver, or install a PyTorch for CUDA 12, which needs {DRIVERS['12']}."
        found = f"{driver}; CUDA {cuda} needs {needed} or newer"
        yield Check("NVIDIA driver", driver >= needed, found, remedy)
    if 0 < capability < 7 and cuda != "12.6":
        remedy = "Install a build for CUDA 12.6 (cu126); PyTorch 2.14 is the last that has one."
        yield Check(
            "age of the card",
            False,
            f"compute capability {capability}, and CUDA {cuda}",
            remedy,
        )
    if card is None:
        found = f"this PyTorch, built for CUDA {cuda}, finds no card"
        yield Check(
            "CUDA",
            False,
            found,
            "Mend what is above; then see whether nvidia-smi lists the card.",
        )
        return
    from vram_budget import step_budget  # only now: it takes seconds

    from .budgeting import config_for, training_step

    yield Check("CUDA", True, f"{cuda}, {card.name}")
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:  # it has no kernels for such a card, or none is free
        reason = str(error).splitlines()[0]
        yield Check(
            "a sum on the card", False, reason, "Install a PyTorch built for this card."
        )
    free, needed = (
        torch.cuda.mem_get_info()[0] / 2**20,
        step_budget(training_step(), config_for(), 8, 358).reserved,
    )
    found = (
        f"{free:,.0f} MiB; a step of 8 x 358 tokens reserves {needed:,.0f} (predicted)"
    )
    remedy = "Close what else uses the card (nvidia-smi lists it), and restart other notebooks' kernels."
    yield Check("free VRAM", free >= needed, found, remedy)


def _needs(recipe: Recipe, folder: Path) -> Iterator[Check]:
    """What the recipe needs beside packages and a card: room on the disk, its data, the Hub, its model."""
    free, room, hub = (
        shutil.disk_usage(folder).free / 1e9,
        DISK_GB[recipe.profile],
        hub_status(),
    )
    found = f"{free:,.1f} GB free; the profile '{recipe.profile}' needs {room:g}"
    yield Check("disk", free >= room, found, "Make room, or run this on another disk.")
    elsewhere = {
        "data": recipe.data in (HUB_DATA, "sample"),
        "model": not NO_ID.match(recipe.model),
    }
    for what, name in (("data", recipe.data), ("model", recipe.model)):
        there = (
            (path := Path(name).expanduser()).is_dir()
            or elsewhere[what]
            and not path.is_file()
        )
        found = name if there else f"there is no folder {name}"
        yield Check(
            what,
            there,
            found,
            f"AGNEWS_{what.upper()} must name a folder that is there.",
        )
    named = (
        recipe.model not in ("mini", HUB_MODEL)
        and not Path(recipe.model).expanduser().exists()
    )
    if named and (silent := why_unreachable()):
        from huggingface_hub import try_to_load_from_cache

        hub = HubStatus(False, silent)
        with suppress(ValueError):  # no id, and so no model
            hub = HubStatus(
                isinstance(try_to_load_from_cache(recipe.model, "config.json"), str),
                silent,
            )
    if named or {recipe.model, recipe.data} & {HUB_MODEL, HUB_DATA}:
        remedy = "Go online, or set AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini."
        yield Check("Hugging Face Hub", hub.usable, hub.reason, remedy)
    else:
        yield Check(
            "Hugging Face Hub",
            None,
            f"not needed by the profile '{recipe.profile}' ({hub.reason})",
        )
    ok, found = True, "is here, and its SHA-256 is right"
    try:
        if damaged_files(
            mini_place()
        ):  # else it was made here before, and needs the package no longer
            checked_file("model.safetensors"), checked_file("vocab.txt")
    except MiniUnavailable as error:
        ok, found = (
            False if recipe.model == "mini" else None,
            str(error),
        )  # None: it is not asked for
    yield Check("offline model", ok, found)
