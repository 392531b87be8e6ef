"""The facts of graphics cards, and what system and CUDA context take of them."""

import re
from dataclasses import dataclass
from difflib import get_close_matches

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
    cuda_cores : int or None
        How many cores they have together.
    memory : str or None
        The kind of its memory and the width of its bus.
    bandwidth : float or None
        Of its memory, in GB/s.
    fp32_tflops : float or None
        Products and sums of fp32 numbers at the boost clock, in 10**12 per second.
    tensor_cores : bool or None
        Whether it has units for products of fp16 matrices.
    source : str
        Where these facts are from.
    free_mib : float or None
        What PyTorch may take of a card in this machine at present, in MiB.
    """

    name: str
    vram_gib: float
    capability: tuple[int, int]
    multiprocessors: int
    cuda_cores: int | None = None
    memory: str | None = None
    bandwidth: float | None = None
    fp32_tflops: float | None = None
    tensor_cores: bool | None = None
    source: str = "read from this machine"
    free_mib: float | None = None

    @property
    def half_precision(self) -> str | None:
        """The half precision its tensor cores multiply: "bf16" or "fp16"; or None."""
        if self.capability < (7, 0) or "GTX 16" in self.name:
            return None
        return "bf16" if self.capability >= (8, 0) else "fp16"

    def facts(self) -> list[tuple[str, str]]:
        """Return the known facts for a table.

        Returns
        -------
        list of tuple
            (name, value with its unit) of each known fact.
        """
        cores = f"{self.cuda_cores or 0:,} in {self.multiprocessors} multiprocessors"
        tensor_cores = {True: "yes", False: "none: stay with fp32"}
        rows = {
            "memory": f"{self.vram_gib:.2f} GiB {self.memory or ''}".rstrip(),
            "bandwidth": self.bandwidth and f"{self.bandwidth:.0f} GB/s",
            "CUDA cores": self.cuda_cores and cores,
            "fp32 speed": self.fp32_tflops and f"{self.fp32_tflops:.2f} TFLOP/s",
            "tensor cores": tensor_cores.get(self.tensor_cores),
            "compute capability": "{}.{}".format(*self.capability),
        }
        return [(name, value) for name, value in rows.items() if value]


# The fields of `Card` after its name, in their order, without the source. Two figures
# of the GTX 1650 Ti: 1024 cores x 2 operations x 1.485 GHz boost = 3.04 TFLOP/s, and
# 128 bit x 12 Gbit/s / 8 = 192 GB/s.
_FACTS = {
    "GTX 1650 Ti": (4.0, (7, 5), 16, 1024, "GDDR6, 128 bit", 192, 3.04, False),
    "GTX 1650": (4.0, (7, 5), 14, 896, "GDDR5, 128 bit", 128, 2.98, False),
    "GTX 1050 Ti": (4.0, (6, 1), 6, 768, "GDDR5, 128 bit", 112, 2.14, False),
    "RTX 3050": (8.0, (8, 6), 20, 2560, "GDDR6, 128 bit", 224, 9.1, True),
    "RTX 3050 Laptop": (4.0, (8, 6), 16, 2048, "GDDR6, 128 bit", 192, None, True),
    "RTX 2060": (6.0, (7, 5), 30, 1920, "GDDR6, 192 bit", 336, 6.45, True),
    "T4": (16.0, (7, 5), 40, 2560, "GDDR6, 256 bit", 320, 8.1, True),
    "V100": (16.0, (7, 0), 80, 5120, "HBM2, 4096 bit", 900, 15.7, True),
    "RTX 3090": (24.0, (8, 6), 82, 10496, "GDDR6X, 384 bit", 936, 35.6, True),
    "A100": (40.0, (8, 0), 108, 6912, "HBM2, 5120 bit", 1555, 19.5, True),
}
_SHEET = "the manufacturer's published facts"
_SOURCES = {
    "GTX 1650 Ti": "published facts of the 50 W laptop version, not measured here",
    "RTX 3050": f"{_SHEET}, 8 GB version",
    "RTX 3050 Laptop": f"{_SHEET}, laptop version",
    "V100": f"{_SHEET}, 16 GB version",
    "A100": f"{_SHEET}, 40 GB version",
}
CARDS = {
    name: Card(
        f"NVIDIA GeForce {name}" if "TX " in name else f"NVIDIA {name}",
        *facts,
        source=_SOURCES.get(name, _SHEET),
    )
    for name, facts in _FACTS.items()
}
GTX_1650_TI = CARDS["GTX 1650 Ti"]

# What the CUDA context takes beside PyTorch's own memory, in MiB (least, most): bare,
# it took 256 (InvokeAI#9413) to 426 (unsloth-zoo#1053); the kernels of a training step
# add to it, for which we allow 86. None of these cards is a GTX 1650 Ti, so this is a
# range. Of a card in this machine the free memory is read instead.
CONTEXT_MIB = (256, 512)

# What the system takes of the card before PyTorch starts, in GiB (least, most), without
# the context. From reports of 4 GB cards:
#   linux, no display: cards show 3.94 GiB (PCT_Pytorch#27) to 3.81 GiB (yolov5#285,
#   lc0#1670) of 4
#   linux-desktop: 0.94 GiB outside PyTorch when memory ran out (PCT_Pytorch#27), minus
#   the smallest context
#   windows: when memory ran out, PyTorch had 2.99, 3.02, 3.10 (TFix#22), 3.35, 3.41 or
#   3.47 GiB of "4.00 GiB": 0.53 to 1.01 GiB outside, minus the smallest context and the
#   largest
SYSTEMS_GIB = {
    "linux": (0.06, 0.19),
    "linux-desktop": (0.19, 0.69),
    "windows": (0.28, 0.51),
}


def find_card(name: str) -> Card:
    """Find a card of the list by any of its usual names.

    Describe another card yourself: ``Card(name, vram_gib, capability,
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
        If the list has no such card; the message has the list and the nearest name.
    """
    check_type("name", name, str)
    known = {_plain(known): known for known in CARDS}
    found = known.get(_plain(name))
    if found:
        return CARDS[found]
    nearest = get_close_matches(_plain(name), known, 1)
    hint = "".join(f" Is the {known[near]} meant?" for near in nearest)
    raise InvalidValue(f"No card {name!r} in the list: {', '.join(CARDS)}.{hint}")


def _plain(name: str) -> str:
    """Reduce a card's name to the part that all spellings share."""
    extras = "nvidia|geforce|tesla|gpu|[gr]tx|(sxm|pcie).*|[^a-z0-9]"
    return re.sub(extras, "", name.lower())
