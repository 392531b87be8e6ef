"""What a training step keeps in memory, counted before it runs. Notebook 05.

Weights, gradients and Adam's moments follow from the number of parameters. Activations are counted: the
forward pass runs on tensors without storage (PyTorch's fake tensors) and every tensor that autograd saves
for the backward pass is noted, once per storage.
"""
from dataclasses import dataclass

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..hardware import CONTEXT_MIB

MIB = 2**20
PARTS = ("weights", "gradients", "Adam's moments", "activations", "CUDA context")


@dataclass(frozen=True)
class Budget:
    """The memory of one training step in fp32, in MiB.

    `context` is the middle of a published range, `context_range` the range itself. Left out: temporaries
    inside a kernel, cuBLAS workspaces and the gaps that the allocator leaves.
    """

    batch_size: int
    length: int
    attention: str
    weights: float
    gradients: float
    moments: float
    activations: float
    context_range: tuple[int, int] = CONTEXT_MIB

    @property
    def context(self) -> float:
        return sum(self.context_range) / 2

    @property
    def tensors(self) -> float:
        """Everything that PyTorch itself allocates, in MiB."""
        return self.weights + self.gradients + self.moments + self.activations

    @property
    def total(self) -> float:
        """Tensors and context, in MiB."""
        return self.tensors + self.context

    def parts(self) -> dict[str, float]:
        """MiB of each part, in the order in which the figures stack them."""
        return dict(zip(PARTS, (self.weights, self.gradients, self.moments, self.activations, self.context)))


def step_budget(config, batch_size: int, length: int, attention: str = "sdpa") -> Budget:
    """The budget of a step of the classifier that `config` describes, without weights and without a GPU.

    Parameters
    ----------
    config : a transformers configuration, such as ``DistilBertConfig(num_labels=4)``.
    batch_size, length : rows and tokens a row of the batch.
    attention : ``"sdpa"``, today's default, whose memory-efficient kernel keeps no table of scores;
        ``"eager"``, the implementation of 2019, which keeps it: batch x heads x length x length.

    Raises
    ------
    ValueError
        For a length that the model has no positions for, a batch without rows or an unknown attention.
    """
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention is {attention!r}; it must be 'sdpa' or 'eager'.")
    if batch_size < 1 or not 1 <= length <= config.max_position_embeddings:
        raise ValueError(f"batch_size {batch_size} and length {length}: need at least one row, and a length from 1 to "
                         f"{config.max_position_embeddings}.")
    parameters, activations = _count(config, batch_size, length, attention)
    return Budget(batch_size, length, attention, weights=parameters, gradients=parameters, moments=2 * parameters,
                  activations=activations)


def _count(config, batch_size: int, length: int, attention: str) -> tuple[float, float]:
    """MiB of the parameters, and MiB that autograd saves in one forward pass."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(**config.to_dict())  # a copy: two fields change
    config._attn_implementation = attention
    if attention == "sdpa":
        # On CUDA the memory-efficient kernel applies dropout without keeping scores. On the CPU dropout would
        # switch to a kernel that keeps them; without dropout the CPU kernel saves what the CUDA one does.
        for name in ("attention_dropout", "attention_probs_dropout_prob"):  # DistilBERT's name and BERT's
            if hasattr(config, name):
                setattr(config, name, 0.0)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor  # the reference keeps the storage's address taken
        return tensor

    with FakeTensorMode():
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).train()
        tokens = torch.ones(batch_size, length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(input_ids=tokens, attention_mask=tokens, labels=tokens[:, 0]).loss
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        activations = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own)
        del loss
    return parameters / MIB, activations / MIB


def budget_table(config, batch_size: int = 8, lengths=(64, 128, 256, 512), attentions=("sdpa", "eager")) -> pd.DataFrame:
    """One row for each attention and length: MiB of each part, and their total."""
    rows = []
    for attention in attentions:
        for length in lengths:
            budget = step_budget(config, batch_size, length, attention)
            rows.append({"attention": attention, "length": length, **budget.parts(), "total": budget.total})
    return pd.DataFrame(rows).set_index(["attention", "length"])


def measure_step(config, batch_size: int, length: int, attention: str = "sdpa", steps: int = 3) -> float:
    """Peak MiB that PyTorch really allocates in a training step with random weights, on this CUDA device.

    Raises
    ------
    RuntimeError
        Without a CUDA device: there is nothing to measure.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("measure_step needs a CUDA device; without one, step_budget gives the prediction.")
    from accelerate import Accelerator
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ..training import training_step

    config = AutoConfig.for_model(**config.to_dict())
    config._attn_implementation = attention
    accelerator = Accelerator()
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).to(accelerator.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5)
    tokens = torch.ones(batch_size, length, dtype=torch.long, device=accelerator.device)
    batch = {"input_ids": tokens, "attention_mask": tokens, "labels": tokens[:, 0]}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        training_step(model, batch, optimizer, accelerator)
    return torch.cuda.max_memory_allocated() / MIB
