"""A stand-in for a CUDA card: a device that refuses to mix with the CPU.

Inside `stand_in_card` everything says that there is a card, so the branches that only a
card reaches are run. A tensor on it is a `CardTensor`: a subclass that holds a tensor
of the CPU, which computes. An operation with tensors of both devices is an error, as on
a card. The card has random generators of its own. To PyTorch's C++ code its tensors are
"meta" ones, since autograd on "cuda" aborts a PyTorch that was built without CUDA.

CONTRIBUTING.md lists what this cannot show.
"""

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import import_utils

from agnews_helpers import hardware
from vram_budget import GTX_1650_TI, usable_mib

CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")
IN_CPP = torch.device("meta", 1)  # what C++ code takes the card for
aten = torch.ops.aten
# They read one device and write the other; the others may index with CPU tensors.
COPIES = {aten._to_copy.default, aten.copy_.default}
# The inner tensors that live: id -> reference.
LIVING: dict[int, weakref.ref] = {}
ROOMS: list[SimpleNamespace] = []  # what is free, if that is limited
CONTEXT: set[str] = set()  # what made CUDA's context, which takes memory of the card
READS: list = []  # the operations that wait for the card: its numbers are read
READING = {aten._local_scalar_dense.default, aten.is_nonzero.default}
MOVES = {torch.Tensor.to, torch.Tensor.cuda}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class CardTensor(torch.Tensor):
    """A tensor on the stand-in card.

    Parameters
    ----------
    inner : torch.Tensor
        Its numbers, on the CPU.
    """

    device = property(lambda self: CARD)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=IN_CPP,
        )

    def __init__(self, inner):
        CONTEXT.add("a tensor")
        self.inner = inner
        LIVING[id(inner)] = weakref.ref(inner, partial(forget, id(inner)))

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return CardTensor(inner["inner"])

    def __repr__(self):
        return f"{self.inner!r} on the stand-in card"

    def __reduce_ex__(self, protocol):
        return self.inner.detach().__reduce_ex__(protocol)

    def __format__(self, form):
        return format(self.item(), form) if form else repr(self)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def __array__(self, *_, **__):
        return self.numpy()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()


def forget(key: int, reference: weakref.ref) -> None:
    """Drop a tensor that is gone; another one may have its id by now."""
    if LIVING.get(key) is reference:
        del LIVING[key]


class Generator:
    """The card's random generator, beside the CPU's."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    @contextmanager
    def as_default(self):
        """Context manager: what is drawn comes from this generator."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(self.generator.get_state())
            yield
            self.generator.set_state(torch.default_generator.get_state())


GENERATOR = Generator()


def compute(func, args, kwargs):
    """Run an operation on the CPU tensors that the card's tensors hold."""
    if func.namespace == "prim":  # a question about a fake tensor
        return func(*args, **kwargs)
    is_composite, draws = facts_of(func)
    if is_composite:  # inference_mode() does not take it apart
        with Dispatch():
            return func.decompose(*args, **kwargs)
    on_card, on_cpu = {}, []

    def unwrapped(x):
        if isinstance(x, CardTensor):
            on_card[id(x.inner)] = x
            return x.inner
        if isinstance(x, torch.Tensor):
            on_cpu.append(x)
        return x

    inner, kwargs = mapped(unwrapped, args), mapped(unwrapped, kwargs)
    if on_card and on_cpu and func not in COPIES:
        refuse_cpu(func, args, on_cpu)
    to_card = bool(on_card)
    if to_card and (func in READING or kwargs.get("device") == CPU):
        READS.append(func)
    if goal := kwargs.get("device"):
        to_card = goal in (CARD, IN_CPP)
        here = {"device": CPU if to_card else goal, "pin_memory": False}
        kwargs = {name: here.get(name, value) for name, value in kwargs.items()}
    with GENERATOR.as_default() if to_card and draws else nullcontext():
        result = func(*inner, **kwargs)
    return on_the_card(result, on_card, on_cpu) if to_card else result


def on_the_card(result, on_card, on_cpu):
    """Return what an operation made as tensors of the card; note the memory."""

    def placed(x):
        if id(x) in on_card:  # changed in place
            return on_card[id(x)]
        return CardTensor(x) if isinstance(x, torch.Tensor) else x

    # Also inside inference_mode() a view of an ordinary tensor is an ordinary one.
    inputs = [*on_card.values(), *on_cpu]
    if torch.is_inference_mode_enabled() and not all(x.is_inference() for x in inputs):
        with torch.inference_mode(False):
            result = mapped(placed, result)
    else:
        result = mapped(placed, result)
    for room in ROOMS:
        room.peak = max(room.peak, bytes_on_card() - room.before)
        if room.peak > room.size:
            room.peak = 0
            raise torch.OutOfMemoryError("CUDA out of memory (on the stand-in card)")
    return result


@cache
def facts_of(func):
    """Return whether an operation is made of others, and whether it draws numbers."""
    return func._can_decompose(), torch.Tag.nondeterministic_seeded in func.tags


def mapped(function, value):
    """Return a value with `function` applied to all that is in its lists."""
    if type(value) in (list, tuple):
        return type(value)([mapped(function, x) for x in value])
    if type(value) is dict:
        return {name: mapped(function, x) for name, x in value.items()}
    return function(value)


def refuse_cpu(func, args, on_cpu):
    """Raise an error, as a card does, for CPU tensors that are not single numbers."""
    if func in INDEXED:  # its indices may be on the CPU
        on_cpu = [x for x in (args[0], *args[2:3]) if type(x) is not CardTensor]
    if any(tensor.dim() for tensor in on_cpu):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two "
            f"devices, cuda:0 and cpu! ({func})"
        )


class Dispatch(TorchDispatchMode):
    """Sees each operation, also those without a tensor of the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """Gives "cuda" its number, which PyTorch would ask CUDA for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in MOVES and "device" not in kwargs:
            return func(*args, **kwargs)
        args, kwargs = list(args), dict(kwargs)
        if func is torch.Tensor.cuda:
            return args[0].to(CARD)
        if "device" in kwargs:
            kwargs["device"] = numbered(kwargs["device"])
        if func is torch.Tensor.to:
            args[1:] = map(numbered, args[1:])
            if args[1:2] == [CARD]:
                kwargs |= zip(("device", "dtype", "non_blocking", "copy"), args[1:])
                args = args[:1]
            if kwargs.get("device") == CARD and isinstance(args[0], CardTensor):
                del kwargs["device"]  # it is there
                kwargs.setdefault("dtype", args[0].dtype)
        return func(*args, **kwargs)


def numbered(device):
    """Return `CARD` for what names the card, and anything else as it is."""
    if device == 0 and not isinstance(device, bool):
        return CARD
    is_name = isinstance(device, str) and device.startswith("cuda")
    is_card = isinstance(device, torch.device) and device.type == "cuda"
    return CARD if is_name or is_card else device


def bytes_of(tensors) -> dict[int, int]:
    """Return the storages of those tensors that lie on the card: address -> bytes."""
    found = [tensor for tensor in tensors if isinstance(tensor, CardTensor)]
    storages = [tensor.inner.untyped_storage() for tensor in found]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def bytes_on_card() -> int:
    """Return the bytes of all storages that live on the card."""
    alive = [
        tensor for tensor in (ref() for ref in LIVING.values()) if tensor is not None
    ]
    storages = [tensor.untyped_storage() for tensor in alive]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@contextmanager
def room_for(size: float) -> Iterator[SimpleNamespace]:
    """Context manager: so many bytes more fit the card; else memory runs out.

    What it yields has ``peak``, the most that was taken.
    """
    gc.collect()
    ROOMS.append(SimpleNamespace(before=bytes_on_card(), size=size, peak=0))
    try:
        yield ROOMS[-1]
    finally:
        ROOMS.pop()


def cuda_functions() -> dict:
    """Return what replaces the functions of ``torch.cuda``."""
    total = int(GTX_1650_TI.vram_gib * 2**30)
    properties = SimpleNamespace(
        name=GTX_1650_TI.name,
        total_memory=total,
        major=7,
        minor=5,
        multi_processor_count=16,
    )
    left = int(usable_mib(GTX_1650_TI, "windows")[0] * 2**20)

    def held(*_):
        return bytes_on_card()

    fraction = [1.0]
    without_context = {
        "is_available": lambda: True,
        "is_initialized": lambda: bool(CONTEXT),
        "is_current_stream_capturing": lambda: False,  # Adam asks a CUDA build
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "memory_reserved": held,
        "memory_allocated": held,
        "max_memory_reserved": held,
        "max_memory_allocated": held,
        "reset_peak_memory_stats": lambda *_: None,
        "manual_seed_all": GENERATOR.generator.manual_seed,
        "manual_seed": GENERATOR.generator.manual_seed,
    }
    with_context = {
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda *_: None,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (7, 5),
        "mem_get_info": lambda *_: (max(0, left - held()), total),
        "get_per_process_memory_fraction": lambda *_: fraction[-1],
        "set_per_process_memory_fraction": fraction.append,
        "get_rng_state": lambda *_: GENERATOR.generator.get_state(),
        "set_rng_state": lambda state, *_: GENERATOR.generator.set_state(state),
        "is_bf16_supported": lambda *_, **__: False,
    }
    noted = {name: noting(name, function) for name, function in with_context.items()}
    return without_context | noted


def noting(name, function):
    """Return the function; a call of it is noted in `CONTEXT`."""

    def noted(*arguments, **options):
        CONTEXT.add(name)
        return function(*arguments, **options)

    return noted


def nvidia_smi(command, **_):
    """Answer like the driver's program, which makes no context."""
    assert command[0] == "nvidia-smi" and command[2] == "--format=csv,noheader"
    facts = {"name": GTX_1650_TI.name, "memory.total": "4096 MiB"}
    facts["memory.free"] = "3500 MiB"
    names = command[1].removeprefix("--query-gpu=").split(",")
    return ", ".join(facts[name] for name in names) + "\n"


ACCELERATOR = {
    "is_available": lambda: True,
    "current_accelerator": lambda *_, **__: CARD,
    "current_stream": lambda *_: SimpleNamespace(is_capturing=lambda: False),
}


@contextmanager
def stand_in_card() -> Iterator[None]:
    """Context manager: this machine has a CUDA card, as far as Python code can see."""
    CONTEXT.clear()
    lift = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for module, functions in (
            (torch.cuda, cuda_functions()),
            (torch.accelerator, ACCELERATOR),
            (torch.Tensor, {"pin_memory": noting("pin", lambda tensor, *_: tensor)}),
            (hardware, {"check_output": nvidia_smi}),
        ):
            for name, function in functions.items():
                stack.enter_context(
                    mock.patch.object(module, name, function, create=True)
                )
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor() asks `Dispatch`, too
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        forget_devices()
        stack.callback(forget_devices)
        stack.enter_context(Dispatch())
        stack.enter_context(Names())
        yield


def forget_devices() -> None:
    """Let transformers look for a card again."""
    for value in vars(import_utils).values():
        getattr(value, "cache_clear", lambda: None)()
