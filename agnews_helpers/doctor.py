"""What this machine has of what the tutorial needs, and what to do about the rest: ``agnews doctor``."""
import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .hardware import this_card
from .mini import MiniUnavailable, checked_file
from .recipe import HUB_DATA, HUB_MODEL, PROFILES, HubUnreachable, Recipe, from_environment, hub_status

STAND_ON = ("packaging", "huggingface_hub", "torch", "transformers", "jupyter_client")  # imported by the checks themselves
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


def cannot_load() -> list[Check]:
    """The packages that the checks stand on and that are missing or broken: with one of these, ask no further."""
    checks = []
    for name in STAND_ON:
        try:
            importlib.import_module(name)
        except ImportError as error:
            checks.append(Check(name, False, f"cannot be imported: {error}", f"Run: {INSTALL}"))
        except OSError as error:  # a library of the system is missing; on Windows usually this one
            checks.append(Check(name, False, f"is here and cannot be loaded: {error}",
                                "On Windows install Microsoft's Visual C++ Redistributable (x64), which PyTorch needs."))
    return checks


def recipe_here() -> Recipe:
    """The recipe that would run, also where it needs the Hub and the Hub does not answer: here that is a finding."""
    try:
        return Recipe.for_this_machine()
    except HubUnreachable:
        profile = os.environ["AGNEWS_PROFILE"]
        return Recipe(**{**PROFILES[profile], **from_environment(os.environ), "profile": profile, "reason": "asked for by AGNEWS_PROFILE"})


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
    """The notebooks' kernel, and that it is this Python: another one would not find the package."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = "Run: python -m ipykernel install --sys-prefix"
    try:
        program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except NoSuchKernel:
        return Check("Jupyter kernel", False, "there is no kernel python3", remedy)
    here = not program.is_absolute() or program.parent == Path(sys.executable).parent  # a bare name means the Python that asks
    return Check("Jupyter kernel", here, "python3 is this Python" if here else f"python3 is another Python: {program}", remedy)


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
    return [Check("CUDA", True, f"{torch.version.cuda}, {card.name}"),
            Check("compute capability", _runs_on(card.capability, built), f"{wanted}; this PyTorch has {', '.join(built)}", "Install a PyTorch that was built for this card."),
            _vram()]


def _runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether a card runs one of the architectures: ``sm_75`` is code for 7.5 to 7.9, ``compute_75`` for 7.5 and all later."""
    wanted = 10 * capability[0] + capability[1]
    for arch in built:
        kind, _, number = arch.partition("_")
        number = int(number.rstrip("af"))  # sm_90a
        if number <= wanted and (kind == "compute" or number // 10 == capability[0]):
            return True
    return False


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
    if not {recipe.model, recipe.data} & {HUB_MODEL, HUB_DATA}:
        return Check("Hugging Face Hub", None, f"not needed by the profile '{recipe.profile}' ({hub.reason})")
    return Check("Hugging Face Hub", hub.usable, hub.reason, "Go online, or set AGNEWS_PROFILE=offline.")


def _mini(recipe: Recipe) -> Check:
    try:
        checked_file("model.safetensors"), checked_file("vocab.txt")
    except MiniUnavailable as error:
        return Check("offline model", False if recipe.model == "mini" else None, "is not here, or damaged", str(error))
    return Check("offline model", True, "is here, and its SHA-256 is right")
