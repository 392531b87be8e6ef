"""What a notebook holds on the stand-in card, cell by cell, as it were with DistilBERT.

The rehearsal's model is tiny, so what is held is counted in units of its weights. The
peaks of the steps that a cell runs are traced with the real model's shape.
"""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import transformers
from torch._guards import detect_fake_mode
from transformers import PreTrainedModel

from agnews_helpers import forward_backward
from agnews_helpers.budgeting import config_for, training_step
from tests.rehearsal.ag_news_shape import LONGER
from tests.rehearsal.stand_in_device import CONTEXT, bytes_of, bytes_on_card
from tests.tiny import SIZE
from vram_budget import GTX_1650_TI, step_budget, usable_mib

PARAMETERS = 66_956_548  # DistilBERT with four classes
DISTILBERT_MIB = PARAMETERS * 4 / 2**20
LEFT_MIB = usable_mib(GTX_1650_TI, "windows")[0]  # at worst, without the CUDA context


class CardMemory:
    """Notes, for each cell, what it holds on the card, and the calls of models there.

    Attributes
    ----------
    weights : int
        Bytes of the weights of the models that were called.
    cells : list of dict
        Of each cell its number; ``held``: bytes on the card at its end; ``calls``: the
        largest calls, each as ``[kind, rows, tokens, bytes held beside it]``;
        ``on_cpu``: how many calls were of a model on the CPU; ``context``: what has
        made CUDA's context so far.
    """

    def __init__(self):
        self.weights = 1
        self.cells = []
        self._calls, self._on_cpu = {}, 0
        self._optimizers = weakref.WeakSet()

    def end_cell(self, number: int) -> None:
        """Note what is held after a cell, and forget its calls."""
        gc.collect()
        calls = [[*call, beside] for call, beside in self._calls.items()]
        largest = [call for call in calls if not any(is_below(call, c) for c in calls)]
        facts = {"held": bytes_on_card(), "calls": largest, "on_cpu": self._on_cpu}
        facts["context"] = sorted(CONTEXT)
        self.cells.append({"cell": number, **facts})
        self._calls, self._on_cpu = {}, 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Context manager: each call of a model on the card is noted."""
        call, init = PreTrainedModel.__call__, torch.optim.Optimizer.__init__
        depth = []

        def noted_call(model, *inputs, **named):
            if not depth and model.device.type == "cuda":
                self._note(model, named.get("input_ids", inputs and inputs[0]))
            elif not depth and detect_fake_mode() is None:
                self._on_cpu += 1
            depth.append(model)
            try:
                return call(model, *inputs, **named)
            finally:
                depth.pop()

        def noted_init(optimizer, *inputs, **named):
            init(optimizer, *inputs, **named)
            self._optimizers.add(optimizer)

        with (
            mock.patch.object(PreTrainedModel, "__call__", noted_call),
            mock.patch.object(torch.optim.Optimizer, "__init__", noted_init),
        ):
            yield

    def _note(self, model, ids):
        """Note a call: what kind, its size, and what is held that is not its own."""
        weights = list(model.parameters())
        states = [
            state
            for optimizer in self._optimizers
            for weight in weights
            for state in optimizer.state.get(weight, {}).values()
        ]
        has_optimizer = any(
            weight is weights[-1]
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for weight in group["params"]
        )
        self.weights = sum(bytes_of(weights).values())
        own = self.weights
        kind = "forward"
        if torch.is_grad_enabled():
            kind = "training step" if has_optimizer else "backward"
            own += sum(bytes_of(w.grad for w in weights if w.grad is not None).values())
            # A second optimizer of the same model is no part of its step.
            own += min(2 * self.weights, sum(bytes_of(states).values()))
        key = (kind, *ids.shape)
        self._calls[key] = max(self._calls.get(key, 0), bytes_on_card() - own)


@contextmanager
def tiny_models() -> Iterator[None]:
    """Context manager: a model made from a configuration is tiny, unless traced."""
    auto_class = transformers.AutoModelForSequenceClassification
    from_config = auto_class.from_config

    def tiny(config, **options):
        if detect_fake_mode() is None:
            config = copy.deepcopy(config)
            config.update(SIZE)
        return from_config(config, **options)

    with mock.patch.object(auto_class, "from_config", tiny):
        yield


def is_below(call: list, other: list) -> bool:
    """Whether another call of the kind is as large or larger, and not the same."""
    sizes = [(rows * tokens, beside) for _, rows, tokens, beside in (call, other)]
    (size, beside), (larger, more) = sizes
    is_smaller = size <= larger and beside <= more and (size, beside) != (larger, more)
    return call[0] == other[0] and is_smaller


def backward(model, batch, optimizer):
    """Forward and backward pass of the training step, without the optimizer."""
    loss = forward_backward(model, batch)
    model.zero_grad()
    return loss


@torch.no_grad()
def forward(model, batch, optimizer):
    """Logits alone, as in evaluation."""
    model.eval()
    return model(batch["input_ids"], batch["attention_mask"]).logits


STEPS = {"training step": training_step(), "backward": backward, "forward": forward}


def step_mib(kind: str, rows: int, tokens: int) -> float:
    """Return what PyTorch reserves for such a step of DistilBERT, weights included."""
    if tokens > LONGER:  # the longest made-up row stands for AG News' longest
        tokens = max(tokens, 358)
    return step_budget(STEPS[kind], config_for(), rows, tokens).reserved


def cell_mib(cell: dict, weights: int) -> float:
    """Return the most that a cell needs on the card, with DistilBERT."""
    scale = DISTILBERT_MIB / weights
    needs = [
        scale * beside + step_mib(kind, rows, tokens)
        for kind, rows, tokens, beside in cell["calls"]
    ]
    return max([scale * cell["held"], *needs])
