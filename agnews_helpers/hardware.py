"""What this machine is, and what a GTX 1650 Ti is. Notebook 05."""

import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version

from .plumbing.errors import InvalidValue


@dataclass(frozen=True)
class Card:
    """Facts of a graphics card; None is unknown.

    Parameters
    ----------
    vram_gib : memory in GiB. memory : its kind and the width of its bus.
    capability : CUDA's compute capability, such as (7, 5).
    multiprocessors, cuda_cores : how many. bandwidth : of the memory, in GB/s.
    fp32_tflops : 10**12 products and sums of fp32 numbers per second, at the boost clock.
    tensor_cores : whether it has units for products of fp16 matrices. source : where this is from.
    free_mib : what PyTorch may take of it now, where it is here.
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

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of each known fact, for people."""
        cores = (
            self.cuda_cores
            and f"{self.cuda_cores:,} in {self.multiprocessors} multiprocessors"
        )
        rows = {
            "memory": f"{self.vram_gib:.2f} GiB {self.memory or ''}".rstrip(),
            "bandwidth": self.bandwidth and f"{self.bandwidth:.0f} GB/s",
            "CUDA cores": cores,
            "fp32 speed": self.fp32_tflops and f"{self.fp32_tflops:.2f} TFLOP/s",
            "tensor cores": {True: "yes", False: "none: stay with fp32"}.get(
                self.tensor_cores
            ),
            "compute capability": "{}.{}".format(*self.capability),
        }
        return [(name, value) for name, value in rows.items() if value]


_SHEET = "the manufacturer's published facts"
_MOBILE = _SHEET + ", laptop version"
_50_W = "published facts of the 50 W laptop version, not measured here"
# The fields of `Card`, in its order. GTX 1650 Ti: 1024 cores x 2 operations x 1.485 GHz boost = 3.04 TFLOP/s,
# 128 bit x 12 Gbit/s / 8 = 192 GB/s.
_FACTS = {
    "GeForce GTX 1650 Ti": (
        4.0,
        (7, 5),
        16,
        1024,
        "GDDR6, 128 bit",
        192,
        3.04,
        False,
        _50_W,
    ),
    "GeForce GTX 1650": (
        4.0,
        (7, 5),
        14,
        896,
        "GDDR5, 128 bit",
        128,
        2.98,
        False,
        _SHEET,
    ),
    "GeForce GTX 1050 Ti": (
        4.0,
        (6, 1),
        6,
        768,
        "GDDR5, 128 bit",
        112,
        2.14,
        False,
        _SHEET,
    ),
    "GeForce RTX 3050": (
        8.0,
        (8, 6),
        20,
        2560,
        "GDDR6, 128 bit",
        224,
        9.1,
        True,
        _SHEET + ", 8 GB version",
    ),
    "GeForce RTX 3050 Laptop": (
        4.0,
        (8, 6),
        16,
        2048,
        "GDDR6, 128 bit",
        192,
        None,
        True,
        _MOBILE,
    ),
    "GeForce RTX 2060": (
        6.0,
        (7, 5),
        30,
        1920,
        "GDDR6, 192 bit",
        336,
        6.45,
        True,
        _SHEET,
    ),
    "T4": (16.0, (7, 5), 40, 2560, "GDDR6, 256 bit", 320, 8.1, True, _SHEET),
    "V100": (
        16.0,
        (7, 0),
        80,
        5120,
        "HBM2, 4096 bit",
        900,
        15.7,
        True,
        _SHEET + ", 16 GB version",
    ),
    "GeForce RTX 3090": (
        24.0,
        (8, 6),
        82,
        10496,
        "GDDR6X, 384 bit",
        936,
        35.6,
        True,
        _SHEET,
    ),
    "A100": (
        40.0,
        (8, 0),
        108,
        6912,
        "HBM2, 5120 bit",
        1555,
        19.5,
        True,
        _SHEET + ", 40 GB version",
    ),
}
CARDS = {
    name.removeprefix("GeForce "): Card(f"NVIDIA {name}", *facts)
    for name, facts in _FACTS.items()
}
GTX_1650_TI = CARDS["GTX 1650 Ti"]

# What the CUDA context takes beside PyTorch's own memory, in MiB: bare, 256 (InvokeAI#9413) to 426
# (unsloth-zoo#1053); the kernels of a training step add to it, for which we allow 86 (`vram_cap.GROWTH_MIB`).
# Where a card is there, what is free on it is read. None of these is of a GTX 1650 Ti, so we keep a range.
CONTEXT_MIB = (256, 512)

# What the system takes of the card before PyTorch starts, in GiB, without the context: reports of 4 GB cards.
#   linux, no display: cards show 3.94 GiB (PCT_Pytorch#27) to 3.81 GiB (yolov5#285, lc0#1670) of 4
#   linux-desktop: 0.94 GiB outside PyTorch when memory ran out (PCT_Pytorch#27), less the smallest context
#   windows: PyTorch had 2.99, 3.02, 3.10 (TFix#22), 3.35, 3.41 or 3.47 GiB of "4.00 GiB" when memory ran out:
#   0.53 to 1.01 GiB outside, less the smallest context and the largest
SYSTEMS_GIB = {
    "linux": (0.06, 0.19),
    "linux-desktop": (0.19, 0.69),
    "windows": (0.28, 0.51),
}


def find_card(name: str) -> Card:
    """A card of the list, as people call it ("1650ti") or as nvidia-smi does ("Tesla V100-SXM2-16GB").

    ValueError for a card that is not in the list; the message has the list, and the nearest.
    """

    def plain(text):
        return re.sub(
            "nvidia|geforce|tesla|gpu|[gr]tx|(sxm|pcie).*|[^a-z0-9]", "", text.lower()
        )

    known = {plain(name): name for name in CARDS}
    if found := known.get(plain(name)):
        return CARDS[found]
    nearest = "".join(
        f" Is the {known[near]} meant?"
        for near in get_close_matches(plain(name), known, 1)
    )
    raise InvalidValue(
        f"No card {name!r} in the list: {', '.join(CARDS)}.{nearest} Or give --vram-gib."
    )


def this_card() -> Card | None:
    """The CUDA device that training would use, or None. ``AGNEWS_VRAM_GIB`` as for `vram_cap.free_mib`."""
    import torch

    from .plumbing.vram_cap import free_mib, requested_gib

    requested_gib()  # what cannot be is told on every machine
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    gib, capability = found.total_memory / 2**30, (found.major, found.minor)
    return Card(
        found.name, gib, capability, found.multi_processor_count, free_mib=free_mib()
    )


def version_of(package: str) -> str | None:
    """The version of an installed package, or None."""
    with suppress(PackageNotFoundError):
        return version(package)


def describe_machine() -> str:
    """Versions, device and memory in three lines, for the second cell of each notebook."""
    import torch

    card = this_card()
    if card is not None:
        free, total = torch.cuda.mem_get_info()
        device = f"{card.name}, {free / 2**30:.2f} of {total / 2**30:.2f} GiB free"
    elif torch.backends.mps.is_available():
        device = "Apple GPU (MPS)"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    names = "torch", "transformers", "datasets", "accelerate"
    versions = ", ".join(f"{name} {version_of(name)}" for name in names)
    python, system = (
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
    )
    return f"versions   python {python}, {versions}\nsystem     {system}\ndevice     {device}"


def check_precision(precision: str, device: str, card: Card | None = None) -> None:
    """Raise InvalidValue where a precision is known to be slow, or to fail, on a "cpu", a "cuda" card, ...

    What nobody knows of shows in the first step: the loop takes none whose loss or gradient is not finite.
    """
    card = card or (this_card() if device == "cuda" else None)
    if precision != "fp32" and (reason := precision_problem(precision, device, card)):
        raise InvalidValue(
            f"precision={precision!r} is refused: {reason} Use precision='fp32'."
        )


def precision_problem(precision: str, device: str, card: Card | None) -> str | None:
    """Why `precision` is known not to be worth trying on a device, in a sentence; None where it is.

    Reports: GTX 16xx cards have no tensor cores, fp16 products are slow on them (pytorch#121957, #195716) and
    NaNs are reported (pytorch#58123, #77955); below compute capability 8.0 bf16 is emulated; below 7.0 fp16
    runs at a fraction of fp32's speed.
    """
    if card is None:
        return (
            f"fp16 needs a CUDA card, and training would run on {device}."
            if precision == "fp16"
            else None
        )
    if "GTX 16" in card.name:
        return f"the {card.name} has no tensor cores: fp16 is slow, NaNs are reported, bf16 is only emulated."
    if precision == "bf16" and card.capability < (8, 0):
        return (
            f"the {card.name} only emulates bf16, which needs compute capability 8.0."
        )
    if precision == "fp16" and card.capability < (7, 0):
        return f"fp16 on the {card.name} is slower than fp32: it needs compute capability 7.0."
    return None
