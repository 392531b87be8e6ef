"""Keep PyTorch within what is free on a CUDA card. Notebook 05.

On Windows CUDA does not report a full card: it spills into the computer's memory, and a
step gets many times slower.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import InvalidValue

GROWTH_MIB = 86  # left to the CUDA context, which grows as kernels are loaded


def requested_gib() -> float | None:
    """Return what ``AGNEWS_VRAM_GIB`` asks for.

    Returns
    -------
    float or None
        Memory in GiB; None if the variable is not set.

    Raises
    ------
    InvalidValue
        If it is no number above 0.
    """
    if not (text := os.environ.get("AGNEWS_VRAM_GIB")):
        return None
    if re.fullmatch(r"\d{1,4}([.]\d*)?", text) and float(text):
        return float(text)
    raise InvalidValue(
        f"AGNEWS_VRAM_GIB is {text!r}; it must be a number of GiB above 0, such as 4."
    )


def free_mib(index: int | None = None) -> float:
    """Return how much PyTorch may reserve on a CUDA card.

    What is free, or would be if the card had ``AGNEWS_VRAM_GIB``, less `GROWTH_MIB`.

    Parameters
    ----------
    index : int, optional
        Of the card. Default: the current one.

    Returns
    -------
    float
        MiB, at least 0.

    Raises
    ------
    InvalidValue
        If ``AGNEWS_VRAM_GIB`` is more than the card has.
    """
    free, total = (size / 2**20 for size in torch.cuda.mem_get_info(index))
    # By the context, and by other programs.
    taken = total - free - torch.cuda.memory_reserved(index) / 2**20
    allowed = (requested_gib() or total / 1024) * 1024
    if allowed > total:
        raise InvalidValue(
            f"AGNEWS_VRAM_GIB is {allowed / 1024:g}; the card has {total / 1024:.2f}. "
            "Give less."
        )
    return max(0.0, allowed - taken - GROWTH_MIB)


@contextmanager
def vram_cap(device: torch.device) -> Iterator[None]:
    """Context manager: PyTorch reserves no more of a card than is free now.

    So running out of memory is an error on Windows too, not a slow run, and
    ``AGNEWS_VRAM_GIB=4`` makes a larger card behave like one of 4 GiB. On a device that
    is not CUDA nothing changes. Tested with a stand-in for ``torch.cuda``, not on a
    card.

    Parameters
    ----------
    device : torch.device
        Where training runs.

    Raises
    ------
    InvalidValue
        As for `free_mib`; a wrong ``AGNEWS_VRAM_GIB`` is an error on every machine.
    """
    requested_gib()
    if device.type != "cuda":
        yield
        return
    before = 1.0
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # new in PyTorch 2.8
        before = torch.cuda.get_per_process_memory_fraction(device.index)
    total = torch.cuda.mem_get_info(device.index)[1] / 2**20
    fraction = min(1.0, free_mib(device.index) / total)
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device.index)
