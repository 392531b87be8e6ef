"""``agnews doctor``: what this machine lacks for the tutorial, and what to do."""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from .hardware import version_of
from .plumbing.errors import HubUnreachable, MiniUnavailable
from .plumbing.hub import HUB_ID, in_cache, why_unreachable
from .plumbing.mini import mini_folder
from .profiles import PROFILES, environment_overrides, recipe_for_this_machine
from .recipe import HUB_DATA, Recipe

# the packages that the checks themselves import
CHECK_IMPORTS = ("packaging", "huggingface_hub", "torch", "transformers", "ipykernel")
INSTALL = (
    'Run in the folder of the project: pip install -c constraints.txt -e ".[offline]"'
)
INSTALL_TORCH = (
    "Run: pip uninstall -y torch; then install the build for your card and driver: "
    "https://pytorch.org/get-started/locally/"
)
# GB on the disk. "laptop" and "full" need the Hub's model and data, up to three
# checkpoints of 1.03 GB at a time, and two classifiers.
DISK_GB = {"offline": 1.0, "laptop": 4.5, "full": 4.5}
# MiB that PyTorch reserves for a step of 8 rows of AG News' longest text, 358 tokens:
# predicted by vram.budget.step_budget for distilbert-base-uncased
STEP_MIB = 1822


@dataclass(frozen=True)
class Check:
    """One requirement.

    Parameters
    ----------
    name : str
        What was examined.
    ok : bool or None
        Whether the requirement is met; None: worth knowing, and nothing is wrong.
    found : str
        What was found.
    remedy : str
        What to do if the requirement is not met.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "[OK]  ", False: "[FAIL]", None: "[note]"}[self.ok]
        line = f"{mark} {self.name:18} {self.found}"
        return line if self.ok is not False else f"{line}\n{'':26}{self.remedy}"


def broken_imports() -> Iterator[Check]:
    """Import the packages that the other checks need.

    Yields
    ------
    Check
        One for each package that is missing or broken. If there is one, the other
        checks cannot run.
    """
    remedy = (
        f"{INSTALL}. On Windows PyTorch also needs Microsoft's Visual C++ "
        "Redistributable (x64)."
    )
    for name in CHECK_IMPORTS:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a system library is missing
            yield Check(name, False, f"cannot be loaded: {error}", remedy)


def recipe_or_default() -> Recipe:
    """Return the recipe that would run here, even if it needs the Hub and has none.

    The missing Hub is then reported as a finding instead of an error.

    Returns
    -------
    Recipe
    """
    try:
        return recipe_for_this_machine()
    except HubUnreachable:
        profile = os.environ["AGNEWS_PROFILE"]
        recipe = Recipe(profile, **PROFILES[profile] | environment_overrides())
        return recipe.with_reason("asked for by AGNEWS_PROFILE")


def examine(recipe: Recipe, folder: Path = Path(".")) -> list[Check]:
    """Run all checks, in the order in which a reader would repair things.

    Parameters
    ----------
    recipe : Recipe
        Its profile, model and data are what has to be available.
    folder : Path
        A folder on the disk that the runs are written to.

    Returns
    -------
    list of Check
    """
    return [*_packages(), _kernel(), *_card(), _disk(recipe, folder), *_sources(recipe)]


def _packages() -> Iterator[Check]:
    """Check each package of pyproject.toml against its range."""
    from packaging.requirements import Requirement

    try:
        lines = requires("agnews-helpers") or []
    except PackageNotFoundError:
        yield Check("agnews-helpers", False, "is not installed", INSTALL)
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None:  # the others belong to an extra
            version = version_of(requirement.name)
            allowed = requirement.specifier
            ok = version is not None and allowed.contains(version, prereleases=True)
            found = f"{version or 'is not installed'}, needed {allowed}"
            yield Check(requirement.name, ok, found, INSTALL)


def _kernel() -> Check:
    """Check that the notebooks' kernel is this Python; another lacks our package."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # A program without a folder is the Python that starts the kernel.
    ok = Path(program).parent in (Path(), Path(sys.executable).parent)
    found = f"python3 is {'this' if ok else 'another'} Python: {program}"
    remedy = "Run: python -m ipykernel install --sys-prefix"
    return Check("Jupyter kernel", ok, found, remedy)


def _card() -> Iterator[Check]:
    """Check that PyTorch can compute on the card, and finds enough memory there."""
    import torch

    if not torch.cuda.is_available() and shutil.which("nvidia-smi") is None:
        found = "no NVIDIA driver; training runs on the CPU, in the small profiles"
        yield Check("CUDA", None, found)
        return
    if torch.version.cuda is None:
        found = "an NVIDIA driver is here, and this PyTorch was built without CUDA"
        yield Check("CUDA", False, found, INSTALL_TORCH)
        return
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:  # an old driver, no card, a build for other cards
        found = f"a sum on the card: {str(error).splitlines()[0]}"
        yield Check("CUDA", False, found, INSTALL_TORCH)
        return
    yield Check("CUDA", True, f"{torch.version.cuda}, {torch.cuda.get_device_name()}")
    free = torch.cuda.mem_get_info()[0] / 2**20
    found = f"{free:,.0f} MiB; 8 rows of 358 tokens take {STEP_MIB:,} (predicted)"
    remedy = "Close what else uses the card (nvidia-smi lists it), also other kernels."
    yield Check("free VRAM", free >= STEP_MIB, found, remedy)


def _disk(recipe: Recipe, folder: Path) -> Check:
    """Check the free space on the disk."""
    free = shutil.disk_usage(folder).free / 1e9
    needed = DISK_GB[recipe.profile]
    found = f"{free:,.1f} GB free; the profile '{recipe.profile}' needs {needed:g}"
    remedy = "Make room, or run this on another disk."
    return Check("disk", free >= needed, found, remedy)


def _sources(recipe: Recipe) -> Iterator[Check]:
    """Check that data and model are here, or on the Hub or in its cache."""
    yield _source("data", recipe.data, recipe.data == HUB_DATA)
    if recipe.model == "mini":
        yield _offline_model()
    else:
        yield _source("model", recipe.model, HUB_ID.match(recipe.model) is not None)


def _source(what: str, name: str, on_hub: bool) -> Check:
    """Check that a folder exists, or that the Hub or its cache has it."""
    path = Path(name).expanduser()
    if name == "sample" or path.is_dir():
        return Check(what, True, name)
    if path.exists() or not on_hub:
        remedy = f"Set AGNEWS_{what.upper()} to an existing folder."
        return Check(what, False, f"there is no folder {name}", remedy)
    problem = why_unreachable()
    ok = not problem or in_cache(name, what)
    found = f"{name} ({problem or 'the Hugging Face Hub answers'})"
    remedy = "Go online, or set AGNEWS_PROFILE=offline and AGNEWS_MODEL=mini."
    return Check(what, ok, found, remedy)


def _offline_model() -> Check:
    """Check that the offline model can be made, or was made before."""
    try:
        return Check("model", True, f"mini, in {mini_folder()}")
    except MiniUnavailable as error:
        return Check("model", False, "mini", str(error))
