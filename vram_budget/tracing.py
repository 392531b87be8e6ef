"""Runs training steps on tensors without storage and lists what they allocate.

The step is the caller's own. It runs on PyTorch's fake tensors, which live on the "cpu"
here: autograd on fake CUDA tensors aborts a PyTorch that was built without CUDA. If
CUDA would choose another kernel than the CPU, the CUDA kernel is called by name: native
dropout, memory-efficient attention, autocast's lists. Scratch memory inside a kernel is
not traced, because it never reaches the dispatcher.
"""

import copy
import functools
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest import mock

import torch
import transformers
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from transformers.initialization import no_init_weights
from transformers.optimization import Adafactor

from .cuda_standins import cuda_kernels_on_cpu
from .errors import InvalidValue, check_type
from .recorder import Allocation, Recorder

# A training step: step(model, batch, optimizer)
Step = Callable[[torch.nn.Module, dict[str, torch.Tensor], torch.optim.Optimizer], Any]
Events = list[tuple[Allocation, bool]]
# The optimizer's state appears in step 1, and its effect on the allocator in step 2.
TRACED_STEPS = 3
# More bytes that each step leaves are a leak; a kept loss or its logits are not.
MOST_LEFT = 16 * 1024
# A prime batch size: what is divisible by it scales with the rows, unless a weight is.
PRIME_ROWS = 4099
ON_CUDA = (
    " Leave tensors where the model is, and use torch.autocast("
    'batch["input_ids"].device.type, torch.bfloat16).'
)
OWN_LOSS = (
    " If the model's own loss does, set problem_type in the configuration (such as "
    '"single_label_classification"), or compute the loss yourself.'
)
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class StepOptions:
    """How a step is run.

    Attributes
    ----------
    attention : str
        ``"sdpa"`` is a fused kernel: flash attention for half precision without a mask
        from compute capability 8.0 on, otherwise the memory-efficient one. Where CUDA
        has neither a step is refused: bf16 below 8.0; heads whose width is no multiple
        of 8 (in fp32, from 8.0 on, of 4); fewer heads of keys than of queries.
        ``"eager"`` multiplies the matrices one by one.
    optimizer : str
        ``"adam"``, ``"adamw"``, ``"sgd"``, or ``"adafactor"`` as transformers' Trainer
        sets it.
    implementation : str
        Of Adam, AdamW and SGD: ``"fused"``, ``"foreach"`` (PyTorch's default) or
        ``"single"``.
    precision : str
        ``"fp16"`` and ``"bf16"`` are autocast around the model's forward pass, and have
        no effect on a step that calls only a part of it (``model.bert(...)``). There,
        use ``torch.autocast(batch["input_ids"].device.type, torch.bfloat16)``.
        ``"pure fp16"`` and ``"pure bf16"`` have weights and optimizer state in it as
        well.
    checkpointing : bool
        Gradient checkpointing: recompute the layers in the backward pass.
    mask : bool
        Whether the batch has an attention mask, which it needs for padding.
    capability : tuple of int
        The compute capability, which decides on kernels and workspaces. Empty: that of
        the card; without a card 7.5.
    scalable : bool
        True only if each tensor of the step has either a fixed size or one that is
        proportional to the rows: one trace of another number of rows then does for all,
        which is faster. It is wrong for products of rows with rows, for parts of a
        batch, and for rows that are padded or added. False: each number of rows is
        traced.
    auto_class : type
        The model's class: one of transformers like `AutoModelForSequenceClassification`
        or `BertForSequenceClassification`, or your own `PreTrainedModel`.

    Raises
    ------
    InvalidValue
        If a value is not allowed; names the field and what is allowed.
    """

    attention: Literal["sdpa", "eager"] = "sdpa"
    optimizer: Literal["adam", "adamw", "sgd", "adafactor"] = "adam"
    implementation: Literal["fused", "foreach", "single"] = "fused"
    precision: Literal["fp32", "fp16", "bf16", "pure fp16", "pure bf16"] = "fp32"
    checkpointing: bool = False
    mask: bool = True
    capability: tuple[int, ...] = ()
    scalable: bool = False
    auto_class: type = transformers.AutoModelForSequenceClassification

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is not Literal:
                check_type(name, value, get_origin(kind) or kind)
            elif value not in get_args(kind):
                raise InvalidValue(
                    f"StepOptions.{name} is {value!r}; it must be one of "
                    f"{', '.join(get_args(kind))}."
                )

    @property
    def dtype(self) -> torch.dtype:
        """The half precision of autocast or of the weights; otherwise fp32."""
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        return dtypes.get(self.precision.removeprefix("pure "), torch.float32)


@dataclass(frozen=True)
class Trace:
    """What happened in the traced steps.

    Attributes
    ----------
    events : list of (Allocation, bool)
        In order: True if it was allocated, False if it was released.
    flops : int
        Floating-point operations of the last step's products (matrices, attention,
        convolutions).
    """

    events: Events
    flops: int = 0

    def peak(self) -> tuple[int, int]:
        """Find the peak of what the tensors need together, before any rounding.

        Returns
        -------
        tuple of int
            (bytes, index of the event); of equal peaks the last.
        """
        live = accumulate(a.size if made else -a.size for a, made in self.events)
        return max((size, i) for i, size in enumerate(live))


def trace(
    step: Step,
    config: transformers.PretrainedConfig,
    shapes: Iterable[tuple[int, int]],
    options: StepOptions = StepOptions(),
) -> Trace:
    """Trace one training step for each shape, in this order.

    Give at least `TRACED_STEPS` shapes to see a steady step. Of equal shapes two steps
    are run, and the second stands for all that follow. The last traces are cached.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: forward pass, ``loss.backward()``,
        ``optimizer.step()``, ``optimizer.zero_grad()``. The batch has ``input_ids``
        and, by the options, ``attention_mask`` of shape [rows, tokens], and ``labels``
        of shape [rows]. What it returns lives until the next step returns, like the
        loss of a loop. It must be hashable, must not read a number (``loss.item()``)
        and must leave all tensors on their device. A step that reads a global which has
        changed is answered from the cache: make it a new function. Without a backward
        pass it is inference.
    config : transformers.PretrainedConfig
        The model's shape. Weights are neither needed nor read.
    shapes : iterable of tuple
        (rows, tokens) of each batch.
    options : StepOptions
        How the step is run.

    Returns
    -------
    Trace
        It is cached, so do not change its events.

    Raises
    ------
    InvalidValue
        If there is no shape, a shape has no rows or more tokens than the model has
        positions, or the step cannot be traced: it reads numbers, makes no update while
        its gradients add up, or (with equal shapes) leaves more in memory each time.
    """
    shapes = tuple(map(tuple, shapes))
    if not shapes:
        raise InvalidValue("The list of batch shapes is empty; give (rows, tokens).")
    # XLNet has -1, which means any number; some have None.
    positions = getattr(config, "max_position_embeddings", None) or 0
    check_type("config", config, transformers.PretrainedConfig)
    check_type("options", options, StepOptions)
    for rows, length in shapes:
        check_type("rows", rows, int)
        check_type("length", length, int)
        if rows < 1:
            raise InvalidValue(f"A batch of {rows} rows: rows must be at least 1.")
        if length < 1 or 0 < positions < length:
            raise InvalidValue(
                f"A batch of rows of {length} tokens: a row has from 1 to {positions} "
                "(the model's positions)."
            )
    description = config.to_json_string(use_diff=False)
    options = replace(options, capability=options.capability or (7, 5))
    return _trace(step, type(config), description, shapes, options)


@functools.lru_cache(maxsize=64)
def _trace(
    step: Step, kind: type, description: str, shapes: tuple, options: StepOptions
) -> Trace:
    """Trace with hashable arguments."""
    name = options.auto_class.__name__
    name = kind.model_type if name.startswith("Auto") else name
    equal_shapes = len(shapes) > 2 and len(set(shapes)) == 1
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            # The options say it. A torch.autocast around theirs would keep its copies
            # of the weights, which go when the outermost one ends.
            torch._C._DisableAutocast(),
            mock.patch.object(
                logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True
            ),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("error", ".*Disabling")  # of autocast
            config = kind.from_dict(json.loads(description))
            with no_init_weights():
                model = new_model(config, options)
            model.tie_weights()  # which is part of the initialization
            if options.checkpointing:
                _enable_checkpointing(model)
            recorder = Recorder(model, make_optimizer(model, options), options)
            with cuda_kernels_on_cpu(model, options):
                events = recorder.record(step, shapes[:2] if equal_shapes else shapes)
    except InvalidValue:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        advice = OWN_LOSS * ("nonzero" in str(error.func))
        raise InvalidValue(
            f"A step of {name} cannot be traced: the model, or the step, reads values "
            f"of a tensor ({error.func}), and traced tensors have none.{advice}"
        ) from error
    except Exception as error:  # whatever a model or a step of others may raise
        first_line = str(error).partition("\n")[0][:120]
        advice = ON_CUDA * ("cuda" in first_line.lower())
        raise InvalidValue(
            f"A step of {name} cannot be traced "
            f"({type(error).__name__}: {first_line}).{advice}"
        ) from error
    if not recorder.flops:
        raise InvalidValue(
            "The step computed nothing: it must call the model; a training step also "
            "loss.backward() and optimizer.step()."
        )
    if equal_shapes:
        events = _continued(events, len(shapes))
    return Trace(events, recorder.flops)


def _enable_checkpointing(model: transformers.PreTrainedModel) -> None:
    """Turn gradient checkpointing on."""
    if not model.supports_gradient_checkpointing:
        name = type(model).__name__
        raise InvalidValue(f"{name} does not support gradient checkpointing.")
    # The newest transformers calls it activation checkpointing.
    new_name = "activation_checkpointing_enable"
    enable = getattr(model, new_name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})


def _continued(events: Events, steps: int) -> Events:
    """Repeat the second of two equal steps until there are `steps`."""
    start = next(i for i, (allocation, _) in enumerate(events) if allocation.step == 2)
    steady = events[start:]
    freed = {allocation for allocation, made in steady if not made}
    # The second step releases these of the first, and leaves as many for the third.
    old = [a for a, _ in events[:start] if a in freed]
    lasting = [a for a, made in steady if made and a not in freed]
    grown = sum(a.size for a in lasting) - sum(a.size for a in old)
    if grown > MOST_LEFT:
        raise InvalidValue(
            f"Each step leaves {grown / 2**20:.2f} MiB more than the one before: keep "
            "no loss with its graph (use loss.detach()), and no outputs."
        )
    before = dict(zip(old, lasting))
    for step in range(3, steps + 1):
        new = {a: replace(a, step=step) for a, made in steady if made}
        events = events + [(new.get(a) or before[a], made) for a, made in steady]
        before = {a: new[b] for a, b in zip(old, lasting)}
    return events


def new_model(
    config: transformers.PretrainedConfig, options: StepOptions
) -> transformers.PreTrainedModel:
    """Build a model in the precision, and with the attention, of the options.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        Its shape; stays as it is.
    options : StepOptions
        How its step is run.

    Returns
    -------
    transformers.PreTrainedModel
        In training mode, with random weights.
    """
    is_pure = options.precision.startswith("pure")
    dtype = options.dtype if is_pure else torch.float32
    own = options.auto_class
    build = own._from_config if hasattr(own, "_from_config") else own.from_config
    model = build(copy.deepcopy(config), dtype=dtype)  # it writes into the copy
    model.config._attn_implementation = options.attention
    return model.train()


def make_optimizer(
    model: torch.nn.Module, options: StepOptions
) -> torch.optim.Optimizer:
    """Make the optimizer of the options.

    Parameters
    ----------
    model : torch.nn.Module
        Whose parameters it updates.
    options : StepOptions
        Its `optimizer` and `implementation` count.

    Returns
    -------
    torch.optim.Optimizer
        At a learning rate of 2e-5, which does not matter for memory.
    """
    if options.optimizer == "adafactor":
        fixed_rate = {"scale_parameter": False, "relative_step": False}
        return Adafactor(model.parameters(), lr=2e-5, **fixed_rate)
    flags = {name: options.implementation == name for name in ("fused", "foreach")}
    return OPTIMIZERS[options.optimizer](model.parameters(), lr=2e-5, **flags)


def scaled_trace(
    step: Step,
    config: transformers.PretrainedConfig,
    rows: int,
    length: int,
    options: StepOptions = StepOptions(),
) -> Trace:
    """Trace `TRACED_STEPS` equal batches, or scale a recorded trace to their rows.

    A batch of `rows` rows itself is traced, unless ``options.scalable`` says that for
    one length the order of the events does not depend on the rows, and a storage is
    either fixed or proportional to them. Then `PRIME_ROWS` rows are traced once, and
    every multiple of that is scaled; not if a weight's size is such a multiple.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    rows : int
        Of the batch.
    length : int
        Tokens per row.
    options : StepOptions
        How the step is run.

    Returns
    -------
    Trace

    Raises
    ------
    InvalidValue
        As for `trace`.
    """
    check_type("options", options, StepOptions)
    check_type("rows", rows, int)
    if options.scalable and rows > 0:
        whole = trace(step, config, [(PRIME_ROWS, length)] * TRACED_STEPS, options)
        # A weight that the prime divides, its gradient and its means do not scale.
        if all(a.step or a.size % PRIME_ROWS for a, _ in whole.events):
            scaled = {
                a: replace(a, size=a.size // PRIME_ROWS * rows)
                for a, made in whole.events
                if made and not a.size % PRIME_ROWS
            }
            events = [(scaled.get(a, a), made) for a, made in whole.events]
            return Trace(events, whole.flops // PRIME_ROWS * rows)
    return trace(step, config, [(rows, length)] * TRACED_STEPS, options)
