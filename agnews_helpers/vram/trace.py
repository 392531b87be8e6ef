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
import logging
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, get_args, get_origin, get_type_hints
from unittest import mock

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from ..model import gradient_checkpointing
from ..plumbing.errors import InvalidValue
from ..plumbing.hub import pretrained
from ..plumbing.mini import mini_config
from ..recipe import HUB_MODEL
from . import on_cuda
from .recorder import Allocation, Recorder

TRACED_STEPS = 3  # optimizer state appears in the first step, its traces in the allocator in the second
PRIME_ROWS = 4099  # rows that stand for any number; no size in a model is a multiple of it by chance


@dataclass(frozen=True)
class StepOptions:
    """How the step is run; the defaults are the recipe's, on a card of compute capability 7.5.

    attention : ``"sdpa"`` is a fused kernel: flash attention where it can be, for half precision without a
    mask from compute capability 8.0 on, and else the memory-efficient one.
    precision : ``"fp16"`` and ``"bf16"`` are autocast, ``"pure ..."`` has weights and states in it as well.
    implementation : of Adam, AdamW and SGD; Adafactor is transformers', as its Trainer sets it.
    micro_batch_size : rows whose gradients are accumulated, None for all. checkpointing : recompute each
    layer in the backward pass. mask : whether the batch has padding. capability : see `on_cuda`, too.
    zero_grad : where it stands. keep_outputs : whether the model's outputs live until the next step has its
    own, as in a loop that gives them a name. A value out of range is a ValueError with its name.
    """

    attention: Literal["sdpa", "eager"] = "sdpa"
    optimizer: Literal["adam", "adamw", "sgd", "adafactor"] = "adam"
    implementation: Literal["fused", "foreach", "single"] = "fused"
    precision: Literal["fp32", "fp16", "bf16", "pure fp16", "pure bf16"] = "fp32"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    mask: bool = True
    capability: tuple[int, int] = (7, 5)
    zero_grad: Literal["after the step", "before backward"] = "after the step"
    keep_outputs: bool = False

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            known, value = get_args(kind), getattr(self, name)
            if get_origin(kind) is Literal and value not in known:
                raise InvalidValue(
                    f"StepOptions.{name} is {value!r}; it must be one of {', '.join(known)}."
                )
        if (rows := self.micro_batch_size) is not None and rows < 1:
            raise InvalidValue(
                f"StepOptions.micro_batch_size is {rows}; it must be at least 1, or None."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The half precision that is asked for; fp32 where none is."""
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
        return kinds.get(self.precision.removeprefix("pure "), torch.float32)


@dataclass(frozen=True)
class Trace:
    """What happened, in order: (allocation, True) where it was made, (allocation, False) where released.

    flops : floating-point operations of the last traced step's products (matrices, attention, convolutions).
    """

    events: list[tuple[Allocation, bool]]
    flops: int = 0

    def peak(self) -> tuple[int, int]:
        """Bytes of the tensors that live together at most, without rounding, and the index of that event."""
        live = accumulate(a.size if made else -a.size for a, made in self.events)
        return max(
            (size, i) for i, size in enumerate(live)
        )  # of equal ones the last: a steady step's


def trace_steps(config, shapes, options: StepOptions = StepOptions()) -> Trace:
    """Trace one training step for each (rows, tokens) of `shapes`, from the first one on.

    Optimizer state appears in the first step and its traces in the allocator only later: give at least
    `TRACED_STEPS` shapes to see a steady step. Of equal shapes two steps are run, and the second stands for
    those that follow. The last traces are kept: asking again costs no time.

    config : as for `config_for`; weights are neither needed nor read. ValueError for no shapes, a shape
    without rows, a length that the model has no positions for, or a model that is no sequence classifier,
    has no padding token, or whose step cannot be traced.
    """
    config, shapes = config_for(config), tuple(map(tuple, shapes))
    if not shapes:
        raise InvalidValue(
            "The list of batch shapes is empty; give at least one (rows, tokens)."
        )
    positions = (
        getattr(config, "max_position_embeddings", None) or -1
    )  # XLNet says -1: as many as you like
    for rows, length in shapes:
        if rows < 1 or length < 1 or 0 < positions < length:
            allowed = f"rows must be at least 1, tokens from 1 to {positions} (the model's positions)"
            found = f"{rows} rows" if rows < 1 else f"rows of {length} tokens"
            raise InvalidValue(f"A batch of {found}: {allowed}.")
    return _trace(json.dumps(config.to_dict(), default=str), shapes, options)


@functools.lru_cache(maxsize=64)
def _trace(description: str, shapes: tuple, options: StepOptions) -> Trace:
    config = transformers.AutoConfig.for_model(**json.loads(description))
    alike = len(shapes) > 2 and len({*shapes}) == 1
    quiet = mock.patch.object(
        logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True
    )
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            with no_init_weights():
                model = new_model(config, options)
            again = gradient_checkpointing(
                model, options.checkpointing, preserve_rng_state=False
            )
            with again, quiet, on_cuda.cuda_kernels_on_cpu(model, options):
                recorder = Recorder(model, options)
                events = recorder.record(shapes[:2] if alike else shapes)
    except InvalidValue:
        raise
    except (
        Exception
    ) as error:  # some look at their numbers, which tensors without storage do not have
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        raise InvalidValue(
            f"A step of {config.model_type} cannot be traced ({reason})."
        ) from error
    return Trace(
        _continued(events, len(shapes)) if alike else events,
        recorder.flops[recorder.step],
    )


def _continued(events, steps: int):
    """The events of two equal steps, followed by those of the second once more for each further step."""
    start = next(i for i, (allocation, _) in enumerate(events) if allocation.step == 2)
    steady, freed = (
        events[start:],
        {allocation for allocation, made in events[start:] if not made},
    )
    old = [
        allocation
        for allocation, made in events[:start]
        if made and allocation in freed
    ]
    lasting = [
        allocation for allocation, made in steady if made and allocation not in freed
    ]
    before = dict(zip(old, lasting))  # what a step releases of the one before it
    for step in range(3, steps + 1):
        new = {
            allocation: replace(allocation, step=step)
            for allocation, made in steady
            if made
        }
        events = events + [(new.get(a) or before[a], made) for a, made in steady]
        before = {a: new[b] for a, b in zip(old, lasting)}
    return events


def new_model(config, options: StepOptions):
    """A new model in the precision, and with the attention, of the options."""
    auto, pure = (
        transformers.AutoModelForSequenceClassification,
        options.precision.startswith("pure"),
    )
    dtype = options.dtype if pure else torch.float32
    model = auto.from_config(
        copy.deepcopy(config), dtype=dtype
    )  # it would write into the config
    model.config._attn_implementation = options.attention
    return model


def scaled_trace(
    config, rows: int, length: int, options: StepOptions = StepOptions()
) -> Trace:
    """The trace of `TRACED_STEPS` batches of any number of rows at once, from one that was really made.

    For one length the order of events does not depend on the rows, and a storage has room for every row or
    has nothing to do with them. So `PRIME_ROWS` rows are traced: what is a multiple of that belongs to the rows.
    A test holds this against traces of their own, which a batch in parts still has. Arguments and errors as
    for `trace_steps`.
    """
    if rows < 1:
        raise InvalidValue(f"A batch of {rows} rows: rows must be at least 1.")
    if options.micro_batch_size:
        return trace_steps(config, [(rows, length)] * TRACED_STEPS, options)
    trace = trace_steps(config, [(PRIME_ROWS, length)] * TRACED_STEPS, options)
    by_row = {
        a for a, made in trace.events if made and a.step and a.size % PRIME_ROWS == 0
    }
    scaled = {a: replace(a, size=a.size // PRIME_ROWS * rows) for a in by_row}
    return Trace(
        [(scaled.get(a, a), made) for a, made in trace.events],
        trace.flops // PRIME_ROWS * rows,
    )


def config_for(model=HUB_MODEL):
    """The configuration of a sequence classifier, by default of the recipe's: DistilBERT with four classes.

    model : a Hub id, a folder or ``"mini"``, as a `Recipe` names its model, or a transformers configuration,
    which comes back as it is. The Hub is asked only for another id than the recipe's own. ValueError where
    transformers has no sequence classifier for it, or it has no padding token; FileNotFoundError and
    HubUnreachable where the folder or the Hub has no such model.
    """
    if model == HUB_MODEL:
        return transformers.DistilBertConfig(num_labels=4)
    if model == "mini":
        return mini_config(num_labels=4)
    ready = isinstance(model, transformers.PretrainedConfig)
    config = model if ready else pretrained(transformers.AutoConfig, str(model))
    if (
        type(config)
        not in transformers.AutoModelForSequenceClassification._model_mapping
    ):
        name = type(config).__name__
        raise InvalidValue(
            f"{name} has no sequence classifier in transformers; take one like DistilBERT."
        )
    if getattr(config, "pad_token_id", None) is None:
        raise InvalidValue(
            f"{config.model_type} has no padding token, which batches need (pad_token_id)."
        )
    return config
