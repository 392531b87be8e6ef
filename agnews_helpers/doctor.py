"""What this machine has of what the tutorial needs, and what to do about the rest: ``agnews doctor``."""
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .hardware import this_card
from .mini import MiniUnavailable, checked_file
from .recipe import Recipe, hub_status

INSTALL = 'pip install -c constraints.txt -e ".[offline]"'
# GB on the disk: `full` needs the Hub's model and data, two checkpoints of 0.8 GB and three classifiers of 0.27 GB.
DISK_GB = {"offline": 1.0, "laptop": 3.5, "full": 3.5}


@dataclass(frozen=True)
class Check:
    """One requirement: what was found, and what to do where it is not met. ok None: worth knowing, nothing is wrong."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "[OK]  ", False: "[FAIL]", None: "[note]"}[self.ok]
        return f"{mark} {self.name:18} {self.found}" + (f"\n       {'':18} {self.remedy}" if self.remedy and self.ok is not True else "")


def examine(recipe: Recipe, folder: Path = Path(".")) -> list[Check]:
    """All checks, in the order in which a reader would mend things."""
    return [_python(), *_packages(), _kernel(), *_cuda(), _disk(recipe, folder), _hub(recipe), _mini(recipe)]


def _python() -> Check:
    return Check("Python", sys.version_info >= (3, 11), platform.python_version(), "Install Python 3.11 or newer; transformers 5 needs it.")


def _packages() -> list[Check]:
    """Each package of pyproject.toml against its range."""
    from packaging.requirements import Requirement

    checks = []
    for needed in map(Requirement, requires("agnews-helpers") or []):
        if needed.marker is not None:  # an extra
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            checks.append(Check(needed.name, False, "is not installed", f"Run: {INSTALL}"))
            continue
        ok = needed.specifier.contains(found, prereleases=True)
        checks.append(Check(needed.name, ok, f"{found}, needed {needed.specifier}", f"Run: {INSTALL}"))
    return checks


def _kernel() -> Check:
    from jupyter_client.kernelspec import KernelSpecManager

    kernels = sorted(KernelSpecManager().find_kernel_specs())
    return Check("Jupyter kernel", "python3" in kernels, ", ".join(kernels) or "none", "Run: python -m ipykernel install --sys-prefix")


def _cuda() -> list[Check]:
    """The build of PyTorch against the driver, and the card against the build and against the memory budget."""
    import torch

    card, driver = this_card(), shutil.which("nvidia-smi")
    if card is None:
        if driver is None:
            return [Check("graphics card", None, "no NVIDIA driver; training runs on the CPU, in the small profiles")]
        if torch.version.cuda is None:
            return [Check("CUDA", False, "an NVIDIA driver is here, and this PyTorch was built without CUDA",
                          "Install the CUDA build: https://pytorch.org/get-started/locally/")]
        return [Check("CUDA", False, f"this PyTorch was built for CUDA {torch.version.cuda}, and the driver does not run it",
                      "Update the NVIDIA driver; nvidia-smi says which CUDA it runs.")]
    built, wanted = torch.cuda.get_arch_list(), "sm_{}{}".format(*card.capability)
    same_major = any(arch.startswith(f"sm_{card.capability[0]}") and arch <= wanted for arch in built)
    return [Check("CUDA", True, f"{torch.version.cuda}, {card.name}"),
            Check("compute capability", same_major, f"{wanted}; this PyTorch has {', '.join(built)}", "Install a PyTorch that was built for this card."),
            _vram()]


def _vram() -> Check:
    """Free memory against what a step of the recipe needs with the longest row of AG News."""
    import torch
    from transformers import DistilBertConfig

    from .vram.budget import step_budget

    free = torch.cuda.mem_get_info()[0] / 2**20
    needed = step_budget(DistilBertConfig(num_labels=4), 8, 358).reserved
    return Check("free VRAM", free >= needed, f"{free:,.0f} MiB; a step of 8 x 358 tokens reserves {needed:,.0f} (predicted)",
                 "Close what else uses the card (nvidia-smi lists it), and restart the kernels of other notebooks.")


def _disk(recipe: Recipe, folder: Path) -> Check:
    free, needed = shutil.disk_usage(folder).free / 1e9, DISK_GB[recipe.profile]
    return Check("disk", free >= needed, f"{free:,.1f} GB free; the profile '{recipe.profile}' needs {needed:g}", "Make room, or run this on another disk.")


def _hub(recipe: Recipe) -> Check:
    hub = hub_status()
    if recipe.profile == "offline":
        return Check("Hugging Face Hub", None, f"not needed by the profile 'offline' ({hub.reason})")
    return Check("Hugging Face Hub", hub.usable, hub.reason, "Go online, or set AGNEWS_PROFILE=offline.")


def _mini(recipe: Recipe) -> Check:
    try:
        checked_file("model.safetensors"), checked_file("vocab.txt")
    except MiniUnavailable as error:
        return Check("offline model", False if recipe.model == "mini" else None, "is not here, or damaged", str(error))
    return Check("offline model", True, "is here, and its SHA-256 is right")
