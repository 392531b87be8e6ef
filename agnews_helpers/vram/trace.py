"""Run training steps on tensors without storage and note every allocation and release. Notebook 05.

The step is that of the loop: `training.forward_backward` itself, then the optimizer. It runs on PyTorch's
fake tensors, which live on the "cpu" here: autograd on fake CUDA tensors aborts a PyTorch without CUDA. Where
CUDA would choose another kernel than the CPU, the CUDA kernel is called by name: native dropout,
memory-efficient attention, autocast's lists. Not traced, because it never reaches the dispatcher: scratch
memory inside a kernel.
"""

import copy
import functools
import json
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from ..plumbing.errors import InvalidValue
from ..plumbing.hub import pretrained
from ..plumbing.mini import mini_config
from ..recipe import HUB_MODEL
from . import on_cuda
from .recorder import Allocation, Recorder

TRACED_STEPS = 3  # optimizer state appears in the first step, its traces in the allocator in the second


@dataclass(frozen=True)
class StepOptions:
    """How the step is run; the defaults are the recipe's, on a card of compute capability 7.5.

    attention : ``"sdpa"`` is the memory-efficient kernel, the only fused one for fp32 below 8.0.
    precision : ``"fp16"`` is autocast. micro_batch_size : rows whose gradients are accumulated, None for all.
    checkpointing : recompute each layer in the backward pass. mask : whether the batch has padding.
    capability : decides the size of cuBLAS' workspaces. A value out of range is a ValueError with its name.
    """

    attention: Literal["sdpa", "eager"] = "sdpa"
    optimizer: Literal["adam", "adamw"] = "adam"
    implementation: Literal["fused", "foreach", "single"] = "fused"
    precision: Literal["fp32", "fp16"] = "fp32"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    mask: bool = True
    capability: tuple[int, int] = (7, 5)

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            known, value = get_args(kind), getattr(self, name)
            if get_origin(kind) is Literal and value not in known:
                raise InvalidValue(f"StepOptions.{name} is {value!r}; it must be one of {', '.join(known)}.")
        rows = self.micro_batch_size
        if rows is not None and rows < 1:
            raise InvalidValue(f"StepOptions.micro_batch_size is {rows}; it must be at least 1, or None.")

    @property
    def limits(self) -> list[list[int]]:
        """`micro_batch_size` as `forward_backward` takes it: from one token on, parts of so many rows."""
        return [[1, self.micro_batch_size]] if self.micro_batch_size else []


@dataclass(frozen=True)
class Trace:
    """What happened, in order: (allocation, True) where it was made, (allocation, False) where released."""

    events: list[tuple[Allocation, bool]]

    def peak(self) -> tuple[int, int]:
        """Bytes of the tensors that live together at most, without rounding, and the index of that event."""
        live = accumulate(a.size if made else -a.size for a, made in self.events)
        return max((size, i) for i, size in enumerate(live))  # of equal ones the last: a steady step's


def trace_steps(config, shapes, options: StepOptions = StepOptions()) -> Trace:
    """Trace one training step for each (rows, tokens) of `shapes`, from the first one on.

    Optimizer state appears in the first step and its traces in the allocator only later: give at least
    `TRACED_STEPS` shapes to see a steady step. The last traces are kept: asking again costs no time.

    Parameters
    ----------
    config : as for `config_for`; weights are neither needed nor read.

    Raises
    ------
    ValueError
        For no shapes, a shape without rows, a length that the model has no positions for, or a model
        that is no sequence classifier.
    """
    config, shapes = config_for(config), tuple(map(tuple, shapes))
    if not shapes:
        raise InvalidValue("The list of batch shapes is empty; give at least one (rows, tokens).")
    positions = getattr(config, "max_position_embeddings", None)
    for rows, length in shapes:
        if rows < 1 or length < 1 or positions and length > positions:
            allowed = f"rows must be at least 1, tokens from 1 to {positions} (the model's positions)"
            raise InvalidValue(f"A batch of {rows} rows x {length} tokens: {allowed}.")
    return _trace(json.dumps(config.to_dict(), default=str), shapes, options)


@functools.lru_cache(maxsize=64)
def _trace(description: str, shapes: tuple, options: StepOptions) -> Trace:
    config = transformers.AutoConfig.for_model(**json.loads(description))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():
            model = new_model(config, options)
        with on_cuda.patched(model, options):
            return Trace(Recorder(model, options).record(shapes))


def new_model(config, options: StepOptions):
    """A new fp32 model with the attention and the checkpointing of the options."""
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(copy.deepcopy(config), dtype=torch.float32)  # it would write into the config
    model.config._attn_implementation = options.attention
    if options.checkpointing:
        # transformers 5 renamed gradient checkpointing to activation checkpointing
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False, "preserve_rng_state": False})
    return model


def scaled_trace(config, rows: int, length: int, options: StepOptions = StepOptions()) -> Trace:
    """The trace of `TRACED_STEPS` batches of any number of rows, from two that were really made.

    For one length every storage has a size of the form a + b x rows, and the order of events does not
    depend on the rows; so two traces give all others. A test holds this against traces of their own.
    Arguments and errors as for `trace_steps`.
    """
    if rows < 1:
        raise InvalidValue(f"A batch of {rows} rows: rows must be at least 1.")
    two, four = (trace_steps(config, [(n, length)] * TRACED_STEPS, options).events for n in (2, 4))
    if [(a.op, made) for a, made in two] != [(a.op, made) for a, made in four]:
        raise RuntimeError(f"the order of allocations changes with the number of rows at length {length}")
    pairs = [(a, b) for (a, made), (b, _) in zip(two, four) if made]
    scaled = {a: replace(a, size=max(1, a.size + (b.size - a.size) * (rows - 2) // 2)) for a, b in pairs}
    return Trace([(scaled[a], made) for a, made in two])


def config_for(model=HUB_MODEL):
    """The configuration of a sequence classifier, by default of the recipe's: DistilBERT with four classes.

    Parameters
    ----------
    model : a Hub id, a folder or ``"mini"``, as a `Recipe` names its model, or a transformers configuration,
        which comes back as it is. The Hub is asked only for another id than the recipe's own.

    Raises
    ------
    ValueError
        When transformers has no sequence classifier for it.
    FileNotFoundError, HubUnreachable
        When the folder or the Hub has no such model.
    """
    if model == HUB_MODEL:
        return transformers.DistilBertConfig(num_labels=4)
    if model == "mini":
        return mini_config(num_labels=4)
    ready = isinstance(model, transformers.PretrainedConfig)
    config = model if ready else pretrained(transformers.AutoConfig, str(model))
    if type(config) not in transformers.AutoModelForSequenceClassification._model_mapping:
        name = type(config).__name__
        raise InvalidValue(f"{name} has no sequence classifier in transformers; take one like DistilBERT.")
    return config
