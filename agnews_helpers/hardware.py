"""What this machine is, and which precision is safe on it. Notebook 07."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from subprocess import SubprocessError, check_output

import torch

from vram_budget.cards import Card, found_card

from .plumbing.errors import InvalidValue
from .plumbing.vram_cap import free_mib


def training_device() -> str:
    """Return where models run here.

    Returns
    -------
    str
        ``"cuda"``, ``"mps"``, or the name of another accelerator that PyTorch knows;
        ``"cpu"`` if there is none.
    """
    if not torch.accelerator.is_available():
        return "cpu"
    return torch.accelerator.current_accelerator().type


def this_card() -> Card | None:
    """Read the facts of the CUDA device that training would use.

    That makes a CUDA context, which keeps some of the card's memory until Python ends.

    Returns
    -------
    Card or None
        With its free memory, and with speed and bandwidth from the list of cards or
        derived from its clocks; None if there is no CUDA device.
    """
    if not torch.cuda.is_available():
        return None
    return found_card(torch.cuda.get_device_properties("cuda"), free_mib())


def version_of(package: str) -> str | None:
    """Look up the version of an installed package.

    Parameters
    ----------
    package : str
        Its name on the package index.

    Returns
    -------
    str or None
        None if it is not installed.
    """
    with suppress(PackageNotFoundError):
        return version(package)


def describe_machine() -> str:
    """Describe versions, system and device in three lines, without a CUDA context.

    Returns
    -------
    str
    """
    device = training_device()
    if device == "cuda":
        device = _cards()
    elif device == "cpu":
        device = f"CPU, {torch.get_num_threads()} threads"
    names = ("torch", "transformers", "datasets")
    versions = ", ".join(f"{name} {version_of(name)}" for name in names)
    return (
        f"versions   python {platform.python_version()}, {versions}\n"
        f"system     {platform.system()} {platform.machine()}\n"
        f"device     {device}"
    )


def _cards():
    """Ask the driver's own program for name and memory of each card."""
    command = (
        "nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv,noheader"
    )
    try:
        lines = check_output(command.split(), encoding="utf-8", timeout=30)
    except (OSError, SubprocessError):
        return "a CUDA card; nvidia-smi, which knows more, does not answer"
    return lines.strip().replace("\n", " free; ") + " free"


def check_precision(precision: str, card: Card | None) -> None:
    """Refuse bf16 on a card that only emulates it.

    Below compute capability 8.0 bf16 is emulated: in matrix products others measured
    0.4 to 1.6 times fp32's speed, by card and size
    (zzc0721/torch-performance-test-data, issues 60, 73, 111 and 140).

    Parameters
    ----------
    precision : str
        ``"fp32"`` or ``"bf16"``.
    card : Card or None
        The card that trains; None for another device, where bf16 is not refused.

    Raises
    ------
    InvalidValue
        If it is bf16, and the card's compute capability is below 8.0.
    """
    if precision == "bf16" and card and card.capability < (8, 0):
        raise InvalidValue(
            f"precision='bf16' is refused: the {card.name} has no tensor cores for "
            "bf16. It is emulated, and how well that trains was not tried. Use "
            "precision='fp32'."
        )
