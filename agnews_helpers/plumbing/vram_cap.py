"""Keep PyTorch within what is free on a CUDA card, and notice where that does not help. Notebook 05.

On Windows CUDA does not say that a card is full: it goes on in the computer's memory, many times slower.
"""

import os
import re
from collections import deque
from statistics import median

import torch
from tqdm.auto import tqdm

from .errors import InvalidValue

GROWTH_MIB = 86  # left to the CUDA context, which grows as kernels are loaded
TIMES, FIRST = (
    4,
    10,
)  # so much slower than usual is no step on the card; what is usual shows after so many
FULL = 0.01  # of a card's memory; one with less than that free is full
SPILL = """{:,.0f} MiB of the card are free. On Windows the rest may lie in the computer's memory: slow \
(Task Manager: shared GPU memory). Close what else uses the card. A run that is stopped can be continued."""


def asked_gib() -> float | None:
    """What ``AGNEWS_VRAM_GIB`` says, or None. InvalidValue where it is no number above 0."""
    if not (text := os.environ.get("AGNEWS_VRAM_GIB")):
        return None
    if re.fullmatch(r"\d{1,4}([.]\d*)?", text) and float(text):
        return float(text)
    raise InvalidValue(
        f"AGNEWS_VRAM_GIB is {text!r}; it must be a number of GiB above 0, such as 4."
    )


def free_mib(index: int | None = None) -> float:
    """MiB that PyTorch may reserve on a CUDA card: what is free, or would be if it had ``AGNEWS_VRAM_GIB``.

    `GROWTH_MIB` is left. InvalidValue where the card has less than is asked for.
    """
    free, total = (bytes / 2**20 for bytes in torch.cuda.mem_get_info(index))
    taken = (
        total - free - torch.cuda.memory_reserved(index) / 2**20
    )  # by the context, and by others
    most = (asked_gib() or total / 1024) * 1024
    if most > total:
        raise InvalidValue(
            f"AGNEWS_VRAM_GIB is {most / 1024:g}; the card has {total / 1024:.2f}. Give less."
        )
    return max(0.0, most - taken - GROWTH_MIB)


class VramCap:
    """While this is entered, PyTorch takes no more of a CUDA device than is free on it now (`free_mib`).

    So running out of memory is an error on Windows, too, and not a slow run; and ``AGNEWS_VRAM_GIB=4`` has a
    larger card behave like one of 4 GiB. What was allowed before is allowed again afterwards. On another
    device nothing changes. Tested with a stand-in for ``torch.cuda``; it has not run on a card yet.
    """

    def __init__(self, device: torch.device):
        asked_gib()  # what cannot be is told on every machine
        self.index, self.watching = device.index, device.type == "cuda"
        self.steps, self._before = (
            deque(maxlen=100),
            None,
        )  # seconds and tokens of the last steps

    def __enter__(self) -> "VramCap":
        if self.watching:
            before = getattr(
                torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0
            )  # new in 2.8
            total, self._before = (
                torch.cuda.mem_get_info(self.index)[1] / 2**20,
                before(self.index),
            )
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, free_mib(self.index) / total), self.index
            )
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            torch.cuda.set_per_process_memory_fraction(self._before, self.index)

    def watch(self, seconds: float, tokens: int) -> None:
        """Say once if the card is full, or if a step of so many tokens took several times the usual."""
        if not self.watching:
            return
        free, total = torch.cuda.mem_get_info(self.index)
        typical, size = map(median, zip(*self.steps, (seconds, tokens)))
        usual = typical * max(1.0, tokens / size)
        slow = len(self.steps) >= FIRST and seconds > TIMES * usual
        self.steps.append((seconds, tokens))
        if slow or free < FULL * total:
            self.watching = False
            pace = (
                f"this step took {seconds:.1f} s, {seconds / usual:.0f} times the usual; "
                * slow
            )
            tqdm.write(f"note: {pace}{SPILL.format(free / 2**20)}")
