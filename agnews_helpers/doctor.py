"""``agnews doctor``: what this machine lacks for the tutorial, and what to do."""

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple

import torch
from ipykernel.kernelspec import KERNEL_NAME
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement

from .hardware import version_of
from .plumbing.errors import AgnewsError
from .plumbing.mini import mini_folder
from .profiles import recipe_for_this_machine

INSTALL = (
    'Run in the folder of the project: pip install -c constraints.txt -e ".[offline]"'
)
INSTALL_TORCH = (
    "Run: pip uninstall -y torch\n"
    f"{'':26}and then what https://pytorch.org/get-started/locally/ gives, such as\n"
    f"{'':26}pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126"
)
CARD_REMEDY = f"""Out of memory: close what else uses the card (nvidia-smi lists it),
{"":26}also other kernels. Driver too old: update it. No kernel image:
{"":26}README.md, An NVIDIA card. Unknown error: restart the computer."""
ONEDRIVE = f"""OneDrive copies, and holds meanwhile, what a run saves:
{"":26}git clone into a folder outside, such as C:\\agnews"""
# MiB that PyTorch reserves for a step of 8 rows of AG News' longest text, 358 tokens:
# predicted by vram_budget.step_budget for distilbert-base-uncased
STEP_MIB = 1822


class Check(NamedTuple):
    """One requirement.

    Attributes
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
        """Return the finding on one line; a failure has its remedy on the next."""
        if self.ok is False:
            return f"[FAIL] {self.name:18} {self.found}\n{'':26}{self.remedy}"
        return f"{'[OK]  ' if self.ok else '[note]'} {self.name:18} {self.found}"


def examine() -> Iterator[Check]:
    """Run all checks, in the order in which a reader would repair things.

    Yields
    ------
    Check

    Raises
    ------
    ImportError
        If the project is not installed, or a package that it needs is broken.
    """
    yield from _packages()
    yield _kernel()
    yield _card()
    if "OneDrive" in str(Path.cwd()):
        yield Check("folder", None, ONEDRIVE)
    try:
        recipe = recipe_for_this_machine()
        if recipe.model == "mini":
            mini_folder()
    except AgnewsError as error:  # a wrong variable, no Hub, no offline model
        yield Check("profile", False, "none can run", str(error))
        return
    found = f"{recipe.profile} ({recipe.reason}): {recipe.model} on {recipe.data}"
    yield Check("profile", True, found)


def _packages():
    """Check each package of pyproject.toml against its range."""
    for requirement in map(Requirement, requires("agnews-helpers")):
        if requirement.marker is None:  # the others belong to an extra
            version = version_of(requirement.name)
            allowed = requirement.specifier
            ok = version is not None and allowed.contains(version, prereleases=True)
            found = f"{version or 'not installed'}, needed {allowed}"
            yield Check(requirement.name, ok, found, INSTALL)


def _kernel():
    """Check that the notebooks' kernel is this Python; another lacks our package."""
    program = KernelSpecManager().get_kernel_spec(KERNEL_NAME).argv[0]
    # A program without a folder is the Python that starts the kernel.
    ok = Path(program).parent in (Path(), Path(sys.executable).parent)
    return Check(
        "Jupyter kernel",
        ok,
        f"{KERNEL_NAME} is {program}",
        "Run: python -m ipykernel install --sys-prefix",
    )


def _card():
    """Check that PyTorch can compute on the card, and finds enough memory there."""
    try:
        torch.ones(8, device="cuda").sum().item()
    except (AssertionError, RuntimeError) as error:  # a CPU build; no card or driver
        ok = False if shutil.which("nvidia-smi") else None
        found = f"{str(error).splitlines()[0]} (above stands the device that trains)"
        remedy = INSTALL_TORCH if isinstance(error, AssertionError) else CARD_REMEDY
        return Check("CUDA", ok, found, remedy)
    free = torch.cuda.mem_get_info()[0] / 2**20
    found = (
        f"{torch.cuda.get_device_name()}, {free:,.0f} MiB free; 8 rows of 358 tokens "
        f"take {STEP_MIB:,} (predicted)"
    )
    return Check("CUDA", free >= STEP_MIB, found, CARD_REMEDY)
