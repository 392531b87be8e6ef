"""Keep PyTorch within what is free on a CUDA card. Notebook 07.

On Windows CUDA does not report a full card: it spills into the computer's memory, and a
step gets many times slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import check_types

GROWTH_MIB = 86  # left to the CUDA context, which grows as kernels are loaded


def free_mib() -> float:
    """Return how much PyTorch may reserve on the current CUDA card.

    What is free, and what it has reserved already, less `GROWTH_MIB`.

    Returns
    -------
    float
        MiB, at least 0.
    """
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return max(0.0, free / 2**20 - GROWTH_MIB)


@check_types
@contextmanager
def vram_cap(device: torch.device) -> Iterator:
    """Context manager: PyTorch reserves no more of a card than is free now.

    So running out of memory is an error on Windows too, not a slow run. On a device
    that is not CUDA nothing changes. Tested with a stand-in for ``torch.cuda``, not on
    a card.

    Parameters
    ----------
    device : torch.device
        Where training runs; if it is a CUDA card, the current one.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_per_process_memory_fraction()
    total = torch.cuda.mem_get_info()[1] / 2**20
    # On Windows what has spilled already is reserved, and more than the card.
    torch.cuda.set_per_process_memory_fraction(min(1.0, free_mib() / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before)
