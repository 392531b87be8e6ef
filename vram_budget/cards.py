"""The facts of graphics cards, and what system and CUDA context take of them."""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import inf
from numbers import Real
from typing import Any

from .errors import InvalidValue, check_type


@dataclass(frozen=True)
class Card:
    """The facts of one graphics card; None is unknown.

    Attributes
    ----------
    name : str
        As nvidia-smi shows it, such as "NVIDIA GeForce GTX 1650 Ti".
    vram_gib : float
        Its memory, in GiB.
    capability : tuple of int
        CUDA's compute capability, such as ``(7, 5)``.
    multiprocessors : int
        How many streaming multiprocessors it has.
    memory : str or None
        The kind of its memory and the width of its bus.
    bandwidth : float or None
        Of its memory, in GB/s.
    fp32_tflops : float or None
        Products and sums of fp32 numbers at the boost clock, in 10**12 per second.
    power_limited : bool
        Whether its power keeps it from its boost clock: a laptop's, or a server's card
        of 75 W.
    source : str
        Where these facts are from.
    free_mib : float or None
        What PyTorch may take of a card in this machine at present, in MiB.

    Raises
    ------
    InvalidValue
        If size, multiprocessors or `free_mib` are no numbers from 0, or the capability
        is no pair of them.
    """

    name: str
    vram_gib: float
    capability: tuple[int, int]
    multiprocessors: int
    memory: str | None = None
    bandwidth: float | None = None
    fp32_tflops: float | None = None
    power_limited: bool = False
    source: str = "read from this machine"
    free_mib: float | None = None

    def __post_init__(self):
        pair = self.capability if isinstance(self.capability, tuple) else ()
        numbers = self.vram_gib, self.multiprocessors, self.free_mib or 0, *pair
        if len(pair) != 2 or not all(
            isinstance(each, Real) and 0 <= each < inf for each in numbers
        ):
            raise InvalidValue(
                f"Card: vram_gib is {self.vram_gib!r}, capability {self.capability!r}, "
                f"multiprocessors {self.multiprocessors!r}, free_mib {self.free_mib!r}"
                ": these are numbers from 0, and the capability two, such as (7, 5)."
            )

    @property
    def cuda_cores(self) -> int:
        """How many cores its multiprocessors have together."""
        # In other cards for PCs since 2016 each has 128.
        of_64 = self.capability in ((6, 0), (7, 0), (7, 5), (8, 0))
        return self.multiprocessors * (64 if of_64 else 128)

    @property
    def tensor_cores(self) -> bool:
        """Whether it has units for products of fp16 matrices."""
        without = re.search(r"GTX|MX|T\d{3}", self.name)
        return self.capability >= (7, 0) and not without

    @property
    def half_precision(self) -> str | None:
        """The half precision its tensor cores multiply: "bf16" or "fp16"; or None."""
        if not self.tensor_cores:
            return None
        return "bf16" if self.capability >= (8, 0) else "fp16"

    def facts(self) -> list[tuple[str, str]]:
        """Return the known facts for a table.

        Returns
        -------
        list of tuple
            (name, value with its unit) of each known fact.
        """
        cores = f"{self.cuda_cores:,} in {self.multiprocessors} multiprocessors"
        rows = {
            "memory": f"{self.vram_gib:.2f} GiB {self.memory or ''}".rstrip(),
            "bandwidth": self.bandwidth and f"{self.bandwidth:.0f} GB/s",
            "CUDA cores": self.cuda_cores and cores,
            "fp32 speed": self.fp32_tflops and f"{self.fp32_tflops:.2f} TFLOP/s",
            "tensor cores": "yes" if self.tensor_cores else "none: stay with fp32",
            "compute capability": "{}.{}".format(*self.capability),
        }
        return [(name, value) for name, value in rows.items() if value]


# Name, GiB, compute capability, multiprocessors, memory, GB/s, GHz of the boost clock,
# version. Two figures of the GTX 1650 Ti: 16 x 64 cores x 2 operations x 1.485 GHz =
# 3.04 TFLOP/s, and 128 bit x 12 Gbit/s / 8 = 192 GB/s. A Max-Q card is listed with its
# own low clock, which it keeps. Where ECC is on it takes a sixteenth of GDDR6: what is
# left is listed (a T4 told PyTorch 14.75 GiB, an A10 22.6 to 22.2).
_FULL_POWER = """\
GTX 1050 2GB | 2 | 6.1 | 5 | GDDR5, 128 bit | 112 | 1.455 | desktop
GTX 1050 Ti | 4 | 6.1 | 6 | GDDR5, 128 bit | 112 | 1.392 | desktop
GTX 1060 6GB | 6 | 6.1 | 10 | GDDR5, 192 bit | 192 | 1.708 | desktop, 6 GB
GTX 1070 | 8 | 6.1 | 15 | GDDR5, 256 bit | 256 | 1.683 | desktop
GTX 1070 Ti | 8 | 6.1 | 19 | GDDR5, 256 bit | 256 | 1.683 | desktop
GTX 1080 | 8 | 6.1 | 20 | GDDR5X, 256 bit | 320 | 1.733 | desktop
GTX 1080 Ti | 11 | 6.1 | 28 | GDDR5X, 352 bit | 484 | 1.582 | desktop
GTX 1650 | 4 | 7.5 | 14 | GDDR5, 128 bit | 128 | 1.665 | desktop, GDDR5
GTX 1650 Super | 4 | 7.5 | 20 | GDDR6, 128 bit | 192 | 1.725 | desktop
GTX 1660 | 6 | 7.5 | 22 | GDDR5, 192 bit | 192 | 1.785 | desktop
GTX 1660 Super | 6 | 7.5 | 22 | GDDR6, 192 bit | 336 | 1.785 | desktop
GTX 1660 Ti | 6 | 7.5 | 24 | GDDR6, 192 bit | 288 | 1.77 | desktop
RTX 2060 6GB | 6 | 7.5 | 30 | GDDR6, 192 bit | 336 | 1.68 | desktop, 6 GB
RTX 2070 | 8 | 7.5 | 36 | GDDR6, 256 bit | 448 | 1.62 | desktop
RTX 2070 Super | 8 | 7.5 | 40 | GDDR6, 256 bit | 448 | 1.77 | desktop
RTX 2080 | 8 | 7.5 | 46 | GDDR6, 256 bit | 448 | 1.71 | desktop
RTX 2080 Ti | 11 | 7.5 | 68 | GDDR6, 352 bit | 616 | 1.545 | desktop
Titan RTX | 24 | 7.5 | 72 | GDDR6, 384 bit | 672 | 1.77 | desktop
GTX 1650 Ti Max-Q | 4 | 7.5 | 16 | GDDR6, 128 bit | 160 | 1.2 | Max-Q, 35 W
GTX 1660 Ti Max-Q | 6 | 7.5 | 24 | GDDR6, 192 bit | 288 | 1.335 | Max-Q
RTX 2060 Max-Q | 6 | 7.5 | 30 | GDDR6, 192 bit | 264 | 1.185 | Max-Q
RTX 2070 Max-Q | 8 | 7.5 | 36 | GDDR6, 256 bit | 384 | 1.185 | Max-Q
RTX 2080 Max-Q | 8 | 7.5 | 46 | GDDR6, 256 bit | 384 | 1.095 | Max-Q
RTX 2080 Super Max-Q | 8 | 7.5 | 48 | GDDR6, 256 bit | 352 | 1.08 | Max-Q
RTX 3050 8GB | 8 | 8.6 | 20 | GDDR6, 128 bit | 224 | 1.777 | desktop, 8 GB
RTX 3060 12GB | 12 | 8.6 | 28 | GDDR6, 192 bit | 360 | 1.777 | desktop, 12 GB
RTX 3060 Ti | 8 | 8.6 | 38 | GDDR6, 256 bit | 448 | 1.665 | desktop
RTX 3070 | 8 | 8.6 | 46 | GDDR6, 256 bit | 448 | 1.725 | desktop
RTX 3080 10GB | 10 | 8.6 | 68 | GDDR6X, 320 bit | 760 | 1.71 | desktop, 10 GB
RTX 3090 | 24 | 8.6 | 82 | GDDR6X, 384 bit | 936 | 1.695 | desktop
RTX 4060 | 8 | 8.9 | 24 | GDDR6, 128 bit | 272 | 2.46 | desktop
RTX 4060 Ti 8GB | 8 | 8.9 | 34 | GDDR6, 128 bit | 288 | 2.535 | desktop
RTX 4070 | 12 | 8.9 | 46 | GDDR6X, 192 bit | 504 | 2.475 | desktop
RTX 4080 | 16 | 8.9 | 76 | GDDR6X, 256 bit | 717 | 2.505 | desktop
RTX 4090 | 24 | 8.9 | 128 | GDDR6X, 384 bit | 1008 | 2.52 | desktop
RTX 5050 | 8 | 12.0 | 20 | GDDR6, 128 bit | 320 | 2.572 | desktop
RTX 5060 | 8 | 12.0 | 30 | GDDR7, 128 bit | 448 | 2.497 | desktop
RTX 5060 Ti 16GB | 16 | 12.0 | 36 | GDDR7, 128 bit | 448 | 2.572 | desktop, 16 GB
RTX 5070 | 12 | 12.0 | 48 | GDDR7, 192 bit | 672 | 2.512 | desktop
P100 16GB | 16 | 6.0 | 56 | HBM2, 4096 bit | 732 | 1.303 | PCIe
V100 16GB | 16 | 7.0 | 80 | HBM2, 4096 bit | 900 | 1.53 | SXM2, 16 GB
A10 | 22.2 | 8.6 | 72 | GDDR6, 384 bit | 600 | 1.695 | server, ECC
A100 40GB | 40 | 8.0 | 108 | HBM2, 5120 bit | 1555 | 1.41 | 40 GB
"""
# The clocks of laptops from the RTX 20 on are the highest that the manufacturer allows.
_POWER_LIMITED = """\
GTX 1650 Ti | 4 | 7.5 | 16 | GDDR6, 128 bit | 192 | 1.485 | laptop, 50 W
GTX 1650 Laptop | 4 | 7.5 | 16 | GDDR5, 128 bit | 128 | 1.56 | laptop, 50 W
GTX 1660 Ti Laptop | 6 | 7.5 | 24 | GDDR6, 192 bit | 288 | 1.59 | laptop, 80 W
MX350 | 2 | 6.1 | 5 | GDDR5, 64 bit | 56 | 1.468 | laptop
MX450 | 2 | 7.5 | 14 | GDDR6, 64 bit | 80 | 1.575 | laptop, GDDR6
RTX 2050 | 4 | 8.6 | 16 | GDDR6, 64 bit | 112 | 1.477 | laptop
RTX 3050 Laptop 4GB | 4 | 8.6 | 16 | GDDR6, 128 bit | 192 | 1.74 | laptop, 4 GB
RTX 3050 Ti Laptop | 4 | 8.6 | 20 | GDDR6, 128 bit | 192 | 1.695 | laptop
RTX 3060 Laptop | 6 | 8.6 | 30 | GDDR6, 192 bit | 336 | 1.703 | laptop
RTX 3070 Laptop | 8 | 8.6 | 40 | GDDR6, 256 bit | 448 | 1.62 | laptop
RTX 3070 Ti Laptop | 8 | 8.6 | 46 | GDDR6, 256 bit | 448 | 1.485 | laptop
RTX 3080 Laptop 8GB | 8 | 8.6 | 48 | GDDR6, 256 bit | 448 | 1.71 | laptop, 8 GB
RTX 4050 Laptop | 6 | 8.9 | 20 | GDDR6, 96 bit | 192 | 2.37 | laptop
RTX 4060 Laptop | 8 | 8.9 | 24 | GDDR6, 128 bit | 256 | 2.37 | laptop
RTX 4070 Laptop | 8 | 8.9 | 36 | GDDR6, 128 bit | 256 | 2.175 | laptop
RTX 5060 Laptop | 8 | 12.0 | 26 | GDDR7, 128 bit | 384 | 2.497 | laptop
RTX 5070 Laptop | 8 | 12.0 | 36 | GDDR7, 128 bit | 384 | 2.347 | laptop
T4 | 14.75 | 7.5 | 40 | GDDR6, 256 bit | 320 | 1.59 | server, 70 W, ECC
L4 | 22.2 | 8.9 | 58 | GDDR6, 192 bit | 300 | 2.04 | server, 72 W, ECC
"""


def _card(row: str, power_limited: bool) -> Card:
    """Make the card of one row of the lists above."""
    name, gib, capability, count, memory, bandwidth, ghz, version = row.split(" | ")
    card = Card(
        f"NVIDIA GeForce {name}" if "X" in name[:3] else f"NVIDIA {name}",
        float(gib),
        tuple(map(int, capability.split("."))),
        int(count),
        memory,
        float(bandwidth),
        power_limited=power_limited,
        source=f"the manufacturer's published facts ({version})",
    )
    return replace(card, fp32_tflops=2e-3 * card.cuda_cores * float(ghz))


CARDS = {
    row.partition(" | ")[0]: _card(row, rows is _POWER_LIMITED)
    for rows in (_POWER_LIMITED, _FULL_POWER)
    for row in rows.splitlines()
}
GTX_1650_TI = CARDS["GTX 1650 Ti"]

# What the system takes of the card before PyTorch starts, in GiB (least, most), without
# the context. From reports of 4 GB cards:
#   linux, no display: cards show 3.94 GiB (PCT_Pytorch#27) to 3.81 GiB (yolov5#285,
#   lc0#1670) of 4
#   linux-desktop: 0.94 GiB outside PyTorch when memory ran out (PCT_Pytorch#27), minus
#   the smallest context
#   windows: when memory ran out, PyTorch had 2.93, 2.99, 3.02, 3.10 (TFix#22), 3.35 and
#   ten times 3.36 (once InvokeAI#1759) to 3.48 GiB of "4.00 GiB": 0.52 to 1.07 GiB
#   outside, minus the smallest context and the largest. The threads of the other
#   reports were not noted down, nor found again; TFix#22 does not name its system
SYSTEMS_GIB = {
    "linux": (0.06, 0.19),
    "linux-desktop": (0.19, 0.87),
    "windows": (0.45, 0.92),
}


def context_mib(card: Card) -> tuple[float, float]:
    """Estimate what the CUDA context takes beside PyTorch's own memory.

    Bare, it grows with the multiprocessors: reported are about 65 MiB for 14, 107 for
    34 and 555 for 188 (llama.cpp#23604), 256 for 82 (InvokeAI#9413) and 426 for 142
    (unsloth-zoo#1053); the line through them misses none by more than 12 MiB, but the
    612 of a B200 (unsloth#8669) by 170. The kernels of a training step add to it, for
    which we allow 86 MiB. Of a card in this machine the free memory is read instead.

    Parameters
    ----------
    card : Card
        Its multiprocessors count.

    Returns
    -------
    tuple of float
        MiB, (least, most).
    """
    bare = 22 + 2.84 * card.multiprocessors
    return bare, bare + 86


def find_card(name: str) -> Card:
    """Find a card of the list by any of its usual names.

    Of a card that is sold with memory of several sizes the list has one: see the name
    of what is found. Describe another card yourself: ``Card(name, vram_gib, capability,
    multiprocessors)`` is enough for its memory.

    Parameters
    ----------
    name : str
        As people write it ("1650ti") or as nvidia-smi does ("Tesla V100-SXM2-16GB").

    Returns
    -------
    Card

    Raises
    ------
    InvalidValue
        If the list has no such card, or not of that size; the message has the nearest
        names.
    """
    check_type("name", name, str)
    plain = _plain(name)
    size = re.search(r"(\d+) ?gi?b", name.lower())
    known = {_plain(listed): card for listed, card in CARDS.items()}
    card = known.get(plain)
    # Of 16 GB a T4 keeps 14.75 for programs; ECC takes the rest.
    if card and (not size or 1 <= float(size[1]) / card.vram_gib < 1.1):
        return card
    near = get_close_matches(plain, known, 5, 0)
    names = ", ".join(known[other].name for other in near)
    raise InvalidValue(
        f"No card {name!r} in the list; the nearest are {names}. In Python, describe "
        "another: Card(name, vram_gib, capability, multiprocessors)."
    )


def found_card(properties: Any, free_mib: float | None = None) -> Card:
    """Return the facts of a card in this machine.

    One of the list is known by its name and its multiprocessors. Of any other, speed
    and bandwidth are derived from clocks and bus, if this PyTorch tells them.

    Parameters
    ----------
    properties : object
        From `torch.cuda.get_device_properties`.
    free_mib : float, optional
        What PyTorch may take of it at present, in MiB.

    Returns
    -------
    Card
        ``source`` says where its facts are from.
    """
    gib = properties.total_memory / 2**30
    count = properties.multi_processor_count
    with suppress(InvalidValue):
        listed = find_card(properties.name)
        if listed.multiprocessors == count:
            return replace(
                listed, name=properties.name, vram_gib=gib, free_mib=free_mib
            )
    card = Card(
        properties.name,
        gib,
        (properties.major, properties.minor),
        count,
        power_limited="Laptop" in properties.name,
        free_mib=free_mib,
    )
    clock, memory_clock, bits = (
        getattr(properties, name, 0)
        for name in ("clock_rate", "memory_clock_rate", "memory_bus_width")
    )
    if not (clock and memory_clock and bits):
        return card
    return replace(
        card,
        memory=f"{bits} bit",
        bandwidth=2e-6 * memory_clock * bits / 8,  # two bits per wire and clock in kHz
        fp32_tflops=2e-9 * card.cuda_cores * clock,
        source="derived from this machine's clocks and bus",
    )


def _plain(name: str) -> str:
    """Reduce a card's name to the part that all spellings share."""
    return re.sub(
        r"nvidia|geforce|tesla|gpu|with|design|(sxm|pcie).*|\d+ ?gi?b"
        # This one is made for laptops only: Linux calls it Mobile, NVIDIA does not.
        r"|(?<=1650 ti )laptop|(?<=1650ti )laptop|(?<!titan )[gr]tx|[^a-z0-9]",
        "",
        name.lower().replace("mobile", "laptop"),
    )
