"""Run training steps on tensors without storage and note every allocation and release. Notebook 05.

The step is `training.training_step`, not a copy of it. It runs on PyTorch's fake tensors, which live on the
"cpu" here: autograd on fake CUDA tensors aborts a PyTorch without CUDA. Where CUDA would choose another
kernel than the CPU, the CUDA kernel is called by name: native dropout, memory-efficient attention, autocast's
lists. Not traced, because it never reaches the dispatcher: scratch memory inside a kernel.
"""
import functools
import json
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..hub import pretrained
from . import cuda_kernels
from .recorder import Allocation, Recorder, fuse_in_place


@dataclass(frozen=True)
class Setup:
    """How the step is run; the defaults are the recipe's, on a card of compute capability 7.5.

    attention : ``"sdpa"`` (the memory-efficient kernel, the only fused one for fp32 below 8.0) or ``"eager"``.
    optimizer : ``"adam"`` or ``"adamw"``. implementation : ``"fused"``, ``"foreach"`` or ``"single"``.
    precision : ``"fp32"`` or ``"fp16"`` (autocast). micro_batch_size : rows whose gradients are accumulated.
    checkpointing : recompute each layer in the backward pass. mask : whether the batch has padding.
    keep_gradients : ``zero_grad(set_to_none=False)``, PyTorch's default before 2.0.
    era : ``"now"``, or ``"torch<1.11"``, whose softmax also saved its input and which had its cuBLAS
    workspaces outside the allocator. capability : decides the size of those workspaces.
    """

    attention: str = "sdpa"
    optimizer: str = "adam"
    implementation: str = "fused"
    precision: str = "fp32"
    micro_batch_size: int | None = None
    checkpointing: bool = False
    mask: bool = True
    keep_gradients: bool = False
    era: str = "now"
    capability: tuple[int, int] = (7, 5)

    def __post_init__(self):
        allowed = dict(attention=("sdpa", "eager"), optimizer=("adam", "adamw"), implementation=("fused", "foreach", "single"),
                       precision=("fp32", "fp16"), era=("now", "torch<1.11"))
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"Setup.{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}.")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"Setup.micro_batch_size is {self.micro_batch_size}; it must be at least 1, or None.")


@dataclass
class Trace:
    """What happened, in order: (allocation, True) when it was made, (allocation, False) when it was released."""

    events: list[tuple[Allocation, bool]] = field(default_factory=list)

    def peak(self) -> tuple[int, int]:
        """Bytes of the tensors that live together at most, without any rounding, and the index of that event."""
        live = best = place = 0
        for i, (allocation, made) in enumerate(self.events):
            live += allocation.size if made else -allocation.size
            if live > best:
                best, place = live, i
        return best, place


def trace_steps(config, shapes, setup: Setup = Setup()) -> Trace:
    """Trace one training step for each (rows, tokens) of `shapes`, from the first one on.

    Optimizer state appears in the first step and its traces in the allocator only later: give at least
    three shapes to see a steady step.

    Parameters
    ----------
    config : a transformers configuration, a Hub id or a folder; weights are neither needed nor read.

    Raises
    ------
    ValueError
        For no shapes, a shape without rows, a length that the model has no positions for, or a model
        that is no sequence classifier.
    """
    return _trace(config, shapes, setup, Recorder.train)


def trace_inference(config, shapes, setup: Setup = Setup()) -> Trace:
    """Trace one forward pass without gradients for each shape, as evaluation runs it. Arguments as for `trace_steps`."""
    return _trace(config, shapes, setup, Recorder.infer)


def _trace(config, shapes, setup: Setup, run) -> Trace:
    config, shapes = sequence_classifier_config(config), list(shapes)
    _check(config, shapes)
    mode, model = _fake_model(type(config).model_type, json.dumps(config.to_dict(), sort_keys=True, default=str))
    recorder = Recorder(model, setup)
    model.config._attn_implementation = cuda_kernels.attention_name(setup)
    with mode, cuda_kernels.patched(setup), _checkpointing(model, setup.checkpointing), recorder.watching():
        recorder.load()
        run(recorder, shapes)
    return Trace(fuse_in_place(recorder.events))


def sequence_classifier_config(config):
    """A configuration from a configuration, a Hub id or a folder.

    Raises
    ------
    ValueError
        When transformers has no sequence classifier for it.
    FileNotFoundError, HubUnreachable
        When the folder or the Hub has no such model.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

    if not isinstance(config, PretrainedConfig):
        config = pretrained(AutoConfig, str(config))
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ValueError(f"{type(config).__name__} has no sequence classifier in transformers; give a model such as "
                         "distilbert-base-uncased.")
    return config


def _check(config, shapes) -> None:
    if not shapes:
        raise ValueError("The list of batch shapes is empty; give at least one (rows, tokens).")
    positions = getattr(config, "max_position_embeddings", None)
    for rows, length in shapes:
        if rows < 1 or length < 1 or positions and length > positions:
            raise ValueError(f"A batch of {rows} rows x {length} tokens: rows must be at least 1, tokens from 1 to "
                             f"{positions} (the model's positions).")


@functools.lru_cache(maxsize=4)
def _fake_model(model_type: str, description: str):
    """A model without storage, and the mode that its tensors belong to."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    fields = {name: value for name, value in json.loads(description).items() if name != "model_type"}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, no_init_weights():
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32)
    return mode, model


@contextmanager
def _checkpointing(model, on: bool):
    if not on:
        yield
        return
    # transformers 5 renamed gradient checkpointing to activation checkpointing
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    enable({"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        disable()
