"""What this machine is, and what a GTX 1650 Ti is. Notebook 05."""
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "jupyterlab", "ipywidgets",
            "matplotlib", "pandas", "scikit-learn", "tqdm", "nbval", "pytest")


@dataclass(frozen=True)
class Card:
    """Facts of a graphics card. Memory in GiB, bandwidth in GB/s, fp32 speed in TFLOP/s; None is unknown."""

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

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of each known fact, for people."""
        rows = [
            ("memory", f"{self.vram_gib:.2f} GiB" + (f" {self.memory}" if self.memory else "")),
            ("bandwidth", self.bandwidth and f"{self.bandwidth:.0f} GB/s"),
            ("CUDA cores", self.cuda_cores and f"{self.cuda_cores:,} in {self.multiprocessors} multiprocessors"),
            ("fp32 speed", self.fp32_tflops and f"{self.fp32_tflops:.2f} TFLOP/s"),
            ("tensor cores", None if self.tensor_cores is None else "yes" if self.tensor_cores else "none: stay with fp32"),
            ("compute capability", "{}.{}".format(*self.capability))]
        return [(name, value) for name, value in rows if value]


# 1024 cores x 2 operations x 1.485 GHz boost = 3.04 TFLOP/s; 128 bit x 12 Gbit/s / 8 = 192 GB/s.
GTX_1650_TI = Card("NVIDIA GeForce GTX 1650 Ti", 4.0, (7, 5), 16, cuda_cores=1024, memory="GDDR6, 128 bit",
                   bandwidth=192, fp32_tflops=3.04, tensor_cores=False,
                   source="published facts of the 50 W laptop version, not measured here")

# What the CUDA context takes beside PyTorch's own memory, in MiB: reports for CUDA 11.7 and later say about
# 300 (pytorch#107667) and 400 (pytorch#109888). None is of a GTX 1650 Ti, so we keep a range.
CONTEXT_MIB = (250, 450)


def this_card() -> Card | None:
    """The CUDA device that training would use, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card(properties.name, properties.total_memory / 2**30, (properties.major, properties.minor),
                properties.multi_processor_count)


def versions() -> dict[str, str | None]:
    """Python's and each package's version; None where a package is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


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
    found = versions()
    names = ("python", "torch", "transformers", "datasets", "accelerate")
    return (f"versions   {', '.join(f'{name} {found[name]}' for name in names)}\n"
            f"system     {platform.system()} {platform.machine()}, {'64' if sys.maxsize > 2**32 else '32'} bit\n"
            f"device     {device}")
