"""How good are the predictions of ``vram_budget``? Three checks, without a GPU.

1. Published figures of a whole card, as nvidia-smi shows them: rows whose recipe is
   known well enough to be repeated. One constant for each machine, the CUDA context of
   its driver, is fitted and named: the one whose largest relative error is least. The
   errors with the median as the constant are printed beside it.
2. Published peaks of what PyTorch allocated, with transformers of today: nothing is
   fitted. A masked language model shares its output weights with its embeddings
   ("tied"): so `from_pretrained` makes it, and so it is predicted. Where the source
   does not say how it was made, it is predicted untied, too.
3. The same step, run for real on the CPU under PyTorch's memory profiler: the traced
   peak against the real one.

    python benchmarks/vram_accuracy.py

prints the tables and writes vram_accuracy.json beside this file.

An error is the prediction over what was published, minus 1: below 0 it is too low. None
of the published rows is of a GTX 1650 Ti. The second table has memory-efficient
attention, and one training with fused Adam, on other cards of capability 7.5.
"""

import json
import statistics
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AlbertConfig,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    PreTrainedModel,
    RobertaConfig,
)

from vram_budget import (
    Allocation,
    CachingAllocator,
    StepOptions,
    Trace,
    cuda_standins,
    find_card,
    replay,
    step_budget,
    trace,
    tracing,
)
from vram_budget.allocator import MIB
from vram_budget.tracing import make_optimizer, new_model

DOCS = "transformers docs, "
BERT_LARGE = BertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
MRPC = BertConfig(vocab_size=28996, num_labels=2)  # bert-base-cased
ROBERTA = dict(
    vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
)  # roberta-base


# Training steps. What a step returns lives until the next one returns.


def loss_of(model, batch, rows):
    """Return the share of a part in the mean cross-entropy of `rows` rows."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"]
    return F.cross_entropy(model(**inputs).logits, labels, reduction="sum") / rows


def plain_step(model, batch, optimizer):
    """Take a step as the tutorial's loop does."""
    loss = loss_of(model, batch, len(batch["labels"]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def accumulated_step(model, batch, optimizer):
    """Take the same step two rows at a time; the gradients add up."""
    rows = len(batch["labels"])
    losses = []
    for start in range(0, rows, 2):
        part = {name: tensor[start : start + 2] for name, tensor in batch.items()}
        loss = loss_of(model, part, rows)
        loss.backward()
        losses.append(loss.detach())
    optimizer.step()
    optimizer.zero_grad()
    return sum(losses)


def late_zero_grad_step(model, batch, optimizer):
    """Take a step that clears the gradients only after the forward pass."""
    loss = loss_of(model, batch, len(batch["labels"]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def kept_outputs_step(model, batch, optimizer):
    """Take a step that keeps the model's outputs, as a loop with a name for them."""
    labels = batch.pop("labels")
    outputs = model(**batch)
    loss = F.cross_entropy(outputs.logits, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return outputs, loss


def own_loss_step(model, batch, optimizer):
    """Take a step with the loss that the model itself computes."""
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def trainers_step(model, batch, optimizer):
    """Take a step as the Trainer of transformers does, which clips the gradients."""
    loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def masked_token_step(model, batch, optimizer):
    """Take a step of a masked language model; every token is a label."""
    labels = {**batch, "labels": batch["input_ids"]}
    return own_loss_step(model, labels, optimizer)


def zeroed_gradients_step(model, batch, optimizer):
    """Take the same step, but set gradients to zero: PyTorch's default before 2.0."""
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.detach()


def next_token_step(model, batch, optimizer):
    """Take a step that predicts each next token."""
    ids = batch["input_ids"]
    return own_loss_step(model, {"input_ids": ids, "labels": ids}, optimizer)


def forward_pass(model, batch, optimizer):
    """Run one forward pass without training, as in evaluation."""
    model.eval()
    del batch["labels"]
    with torch.no_grad():
        model(**batch)


class LoopOfTheDocs:
    """The loop behind the tables of transformers' documentation.

    No mask, no labels, no optimizer: forward pass, ``logits.sum().backward()``,
    ``zero_grad``. The outputs live until the next step has its own.
    """

    def __call__(self, model, batch, optimizer):
        del batch["labels"]
        self.outputs = model(**batch)
        self.outputs.logits.sum().backward()
        model.zero_grad()


# What needed other memory when the published figures were measured, in 2019 to 2021


@dataclass(frozen=True)
class OptionsOf2019(StepOptions):
    """Eager attention as transformers had it before version 5."""

    attention: Literal["eager_2019"] = "eager_2019"


def attention_of_2019(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_
):
    """Compute attention as before version 5: the probabilities are freed on return.

    Version 5 returns them to the layer, which keeps them longer.
    """
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = scores / (query.shape[-1] ** 0.5)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None


def mask_of_2019(attention_mask=None, dtype=torch.float32, **_):
    """Return the additive mask of 2019, not expanded: [rows, 1, 1, tokens]."""
    return (
        None
        if attention_mask is None
        else (1.0 - attention_mask[:, None, None, :].to(dtype)) * -10000.0
    )


AttentionInterface.register("eager_2019", attention_of_2019)
AttentionMaskInterface.register("eager_2019", mask_of_2019)


class SoftmaxKeepsInput(torch.autograd.Function):
    """Softmax before PyTorch 1.11, which also saved its input (pytorch#64000)."""

    @staticmethod
    def forward(ctx, input, dim):
        output = torch.softmax(input, dim)
        ctx.save_for_backward(input, output)
        ctx.dim = dim
        return output

    @staticmethod
    def backward(ctx, gradient):
        input, output = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(
            gradient, output, ctx.dim, input.dtype
        ), None

    @classmethod
    def call(cls, input, dim=-1, _stacklevel=3, dtype=None):
        return cls.apply(input if dtype is None else input.to(dtype), dim)


NO_WORKSPACE = mock.patch.object(cuda_standins, "workspace_size", lambda capability: 0)
OF_2019 = (
    mock.patch.object(F, "softmax", SoftmaxKeepsInput.call),
    NO_WORKSPACE,  # outside of the allocator before PyTorch 2.0
)


@contextmanager
def changed(*patches):
    """Context manager: apply patches, and clear the cache of traces on both ends."""
    tracing._trace.cache_clear()
    try:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
    finally:
        tracing._trace.cache_clear()


# 1. Published measurements


def reserved_mib(found: Trace) -> float:
    """Return the most MiB that the allocator reserves, without a limit."""
    return replay(found.events, CachingAllocator()).max_reserved / MIB


def loading() -> float:
    """Return the MiB reserved for bert-large-uncased, beside one small tensor."""
    first = [(Allocation(4, "ones", "", "load", 0), True)]
    with changed(*OF_2019):
        events = trace(forward_pass, BERT_LARGE, [(1, 8)], OptionsOf2019()).events
    weights = [event for event in events if event[0].phase == "load"]
    return reserved_mib(Trace(first + weights)) - reserved_mib(Trace(first))


def inference(config, length: int) -> float:
    """Return the MiB reserved by one forward pass of 8 rows."""
    with changed(*OF_2019):
        return reserved_mib(trace(forward_pass, config, [(8, length)], OptionsOf2019()))


def distributed(rows: int, precision: str) -> float:
    """Return the MiB of run_glue on MRPC under DistributedDataParallel.

    Its buckets hold a second copy of the gradients.
    """
    last_rows = 3668 % rows or rows  # MRPC has 3,668 rows
    shapes = [(rows, 128)] * 4 + [(last_rows, 128), (rows, 128)]
    options = OptionsOf2019(
        optimizer="adamw", implementation="single", precision=precision
    )
    with changed(*OF_2019):
        events = trace(zeroed_gradients_step, MRPC, shapes, options).events
    weights = [
        allocation.size
        for allocation, made in events
        if made and allocation.phase == "load"
    ]
    loaded = len(weights)
    made = [(bucket, True) for bucket in buckets(weights)]
    return reserved_mib(Trace(events[:loaded] + made + events[loaded:]))


def buckets(weights: list[int]) -> list[Allocation]:
    """Return the buckets of DDP: parameters from last to first.

    The first bucket is closed at 1 MiB, the others at 25 MiB.
    """
    found, size, limit = [], 0, MIB
    for weight in reversed(weights):
        size += weight
        if size >= limit:
            found.append(size)
            size, limit = 0, 25 * MIB
    return [
        Allocation(size, "bucket", "", "load", 0, "gradients")
        for size in [*found, size]
        if size
    ]


def published() -> pd.DataFrame:
    """Return name, machine, source, published and predicted MiB of each measurement.

    The machine's constant is added last.
    """
    rows = [
        (
            "bert-large-uncased on the card",
            "V100 (a difference)",
            DOCS + "perf_train_gpu_one",
            1288,
            loading(),
        )
    ]
    for name, config, figures in (
        ("BERT-base", BertConfig(), {8: 1277, 32: 1281, 128: 1307, 512: 1539}),
        (
            "BERT, 6 layers",
            BertConfig(num_hidden_layers=6),
            {8: 1097, 32: 1101, 128: 1127, 512: 1359},
        ),
        (
            "BERT, 384 wide",
            BertConfig(hidden_size=384),
            {8: 1005, 32: 1027, 128: 1035, 512: 1255},
        ),
    ):
        for length, figure in figures.items():
            rows.append(
                (
                    f"{name}, inference 8 x {length}",
                    "TITAN RTX, 2020",
                    DOCS + "benchmarks",
                    figure,
                    inference(config, length),
                )
            )
    for precision, figures in (
        ("fp32", (4247, 4971, 6827, 10037)),
        ("fp16", (4163, 4793, 6207, 8061)),
    ):
        for batch, figure in zip((8, 16, 32, 64), figures):
            rows.append(
                (
                    f"BERT-base, training {batch} x 128, {precision}",
                    "2 GPUs, 2021",
                    DOCS + "performance",
                    figure,
                    distributed(batch, precision),
                )
            )
    table = pd.DataFrame(
        rows, columns=["what", "machine", "source", "published", "traced"]
    )
    machines = table.groupby("machine")
    constants = {
        machine: 0.0 if "difference" in machine else fitted(group)
        for machine, group in machines
    }
    medians = {
        machine: 0.0
        if "difference" in machine
        else statistics.median(group["published"] - group["traced"])
        for machine, group in machines
    }
    table["constant"] = table["machine"].map(constants)
    table["predicted"] = table["traced"] + table["constant"]
    table["error"] = table["predicted"] / table["published"] - 1
    table["error_by_median"] = (
        table["traced"] + table["machine"].map(medians)
    ) / table["published"] - 1
    return table


def fitted(rows: pd.DataFrame) -> float:
    """Return the constant in MiB that minimizes the largest relative error.

    At the minimum two rows have the same error, one above and one below, so the best
    constant is that of a pair.
    """
    inverse, wanted = (
        1 / rows["published"].to_numpy(),
        (1 - rows["traced"] / rows["published"]).to_numpy(),
    )
    candidates = [
        (wanted[i] + wanted[j]) / (inverse[i] + inverse[j])
        for i in range(len(rows))
        for j in range(i + 1)
    ]
    return float(
        min(candidates, key=lambda constant: abs(constant * inverse - wanted).max())
    )


def fits() -> pd.DataFrame:
    """Compare the verdict with reports from a 4 GB card (transformers#1469)."""
    rows = []
    for batch, ran in ((1, True), (12, False)):
        options = OptionsOf2019(implementation="single")
        card = find_card("GTX 1050 Ti")
        step = zeroed_gradients_step
        with changed(*OF_2019):
            budget = step_budget(step, MRPC, batch, 384, options, card, "linux")
        rows.append(
            (
                f"BERT-base {batch} x 384 on a GTX 1050 Ti",
                "ran" if ran else "out of memory",
                budget.reserved,
                budget.verdict,
            )
        )
    return pd.DataFrame(rows, columns=["what", "reported", "reserved", "verdict"])


def language_model() -> pd.DataFrame:
    """GPT-2, 8 x 512, the Trainer's defaults, against a plot of PyTorch's profiler.

    Its author read the plot as "8 GiB".
    """
    options = StepOptions(
        optimizer="adamw", mask=False, auto_class=AutoModelForCausalLM
    )
    peak, _ = trace(next_token_step, GPT2Config(), [(8, 512)] * 3, options).peak()
    return pd.DataFrame(
        [
            (
                "GPT-2 as a language model, 8 x 512, fp32",
                "forum of Hugging Face, 172332",
                8,
                peak / MIB / 1024,
            )
        ],
        columns=["what", "source", "reported_gib", "traced_gib"],
    )


# 2. Published peaks of what PyTorch allocated


def loop_of_the_docs(
    auto_class, config, shape: tuple[int, int], attention: str, capability
) -> float:
    """Peak of allocated memory in MB (10**6 bytes) of fp16 weights in that loop."""
    options = StepOptions(
        attention=attention,
        precision="pure fp16",
        mask=False,
        capability=capability,
        auto_class=auto_class,
    )
    events = trace(LoopOfTheDocs(), config, [shape] * 3, options).events
    return replay(events, CachingAllocator()).max_allocated / 1e6


ALBERT_BASE = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
)
WITHOUT_DROPOUT = dict(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
# Rows x tokens -> MB with eager attention and with SDPA, as published (None: as above)
TODAY = (
    (
        "DistilBERT, masked LM",
        "RTX 2060 (7.5), torch 2.3",
        "transformers docs to v4.50, distilbert.md",
        AutoModelForMaskedLM,
        DistilBertConfig(),
        (7, 5),
        {
            (1, 128): (397.038, 399.629),
            (1, 256): (412.505, 412.606),
            (2, 128): (412.213, 412.606),
            (2, 256): (427.491, 425.787),
            (4, 128): (427.491, 425.787),
            (8, 128): (545.922, 502.745),
        },
    ),
    (
        "BERT, masked LM (its head is inferred)",
        "A100 (8.0), torch 2.2",
        "transformers docs to v4.50, bert.md",
        AutoModelForMaskedLM,
        BertConfig(),
        (8, 0),
        {
            (4, 256): (939.213, 764.834),
            (4, 512): (1970.447, 1227.162),
            (8, 256): (1594.295, 1226.114),
            (8, 512): (3629.401, 2134.262),
            (16, 512): (6964.659, 3961.013),
        },
    ),
    (
        "BERT, masked LM (its head is inferred), anew",
        "A100 (8.0), torch 2.2.0",
        "gist of hackyon, 2bfcfb59666fab23655f6e62bc0752ba, for PR #28802",
        AutoModelForMaskedLM,
        BertConfig(),
        (8, 0),
        {
            (4, 256): (None, 782.791),
            (4, 512): (None, 1263.469),
            (8, 256): (None, 1263.993),
            (8, 512): (None, 2209.760),
        },
    ),
    (
        "ALBERT base v2, masked LM",
        "RTX 2060 (7.5), torch 2.3",
        "transformers PR #32092, comment of 2024-07-20",
        AutoModelForMaskedLM,
        AlbertConfig(**ALBERT_BASE, **WITHOUT_DROPOUT),
        (7, 5),
        {
            (1, 256): (234.781, 217.758),
            (1, 512): (454.029, 378.171),
            (2, 256): (416.281, 378.171),
            (2, 512): (868.131, 717.332),
            (4, 256): (794.206, 717.332),
            (4, 512): (1664.025, 1363.268),
        },
    ),
    (
        "ELECTRA base, masked LM (which of two checkpoints is inferred)",
        "card not read (8.0 assumed)",
        "transformers PR #37106",
        AutoModelForMaskedLM,
        ElectraConfig(
            embedding_size=768,
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
        ),
        (8, 0),
        {
            (2, 32): (568.647, 566.126),
            (2, 64): (572.187, 570.846),
            (2, 128): (588.412, 587.232),
            (2, 256): (631.001, 602.644),
            (4, 32): (572.187, 570.846),
        },
    ),
    (
        "ALBERT base, classifier without dropout (both inferred)",
        "RTX 2060 (7.5), torch 2.3",
        "transformers PR #32092",
        AutoModelForSequenceClassification,
        AlbertConfig(**ALBERT_BASE),
        (7, 5),
        {
            (2, 256): (358.411, 321.088),
            (2, 512): (753.458, 602.660),
            (8, 512): (2820.398, 2219.695),
        },
    ),
)
UNTIED = mock.patch.object(PreTrainedModel, "tie_weights", lambda *_, **__: None)


def loops_of_today() -> list[dict]:
    """Return the rows of `TODAY`, predicted."""
    rows = []
    for what, machine, source, auto_class, config, capability, cells in TODAY:
        is_lm = auto_class is AutoModelForMaskedLM
        for shape, figures in cells.items():
            for attention, figure in zip(("eager", "sdpa"), figures):
                if figure is None:
                    continue
                case = auto_class, config, shape, attention, capability
                row = {
                    "what": f"{what}, {shape[0]} x {shape[1]}, {attention}",
                    "machine": machine,
                    "source": source,
                    "output weights": "not said" if is_lm else "none to tie",
                    "published": figure,
                    "predicted": loop_of_the_docs(*case),
                }
                if is_lm:
                    with changed(UNTIED):
                        row["untied"] = loop_of_the_docs(*case)
                rows.append(row)
    return rows


def trainings_of_today() -> list[dict]:
    """Return the published trainings in fp32 whose recipe is known, predicted."""
    adamw = StepOptions(optimizer="adamw")
    bert = BertConfig(num_labels=2)
    events = trace(trainers_step, bert, [(16, 128)] * 3, adamw).events
    on_t4 = replay(events, CachingAllocator())
    foreach = StepOptions(optimizer="adamw", implementation="foreach")
    with changed(NO_WORKSPACE):  # AMD's libraries took theirs outside of the allocator
        config = RobertaConfig(**ROBERTA)
        events = trace(plain_step, config, [(2, 16)] * 3, foreach).events
    on_amd = replay(events, CachingAllocator())
    t4 = "T4 (7.5), torch 2.8, transformers 4.55"
    notebook = "KyriakosTop/bert-distilbert-compression, n8_bert_qlora_gpu_t4.ipynb"
    amd = "optimum-benchmark/rocm, f9324062"
    bert, roberta = "BERT-base, training 16 x 128", "RoBERTa, training 2 x 16"
    cases = (
        (f"{bert}, allocated", t4, notebook, 2526.11 * MIB / 1e6, on_t4.max_allocated),
        (f"{roberta}, allocated", "ROCm", amd, 2497.9, on_amd.max_allocated),
        (f"{roberta}, reserved", "ROCm", amd, 2707.4, on_amd.max_reserved),
    )
    return [
        {
            "what": f"{what}, fp32, AdamW",
            "machine": machine,
            "source": source,
            "output weights": "none to tie",
            "published": figure,
            "predicted": size / 1e6,
        }
        for what, machine, source, figure, size in cases
    ]


def today() -> pd.DataFrame:
    """Allocated MB, published and predicted, with transformers of today."""
    table = pd.DataFrame(loops_of_today() + trainings_of_today())
    for error, column in (("error", "predicted"), ("error untied", "untied")):
        table[error] = table[column] / table["published"] - 1
    return table


# 3. Steps that were really taken


def real_peak(
    config, rows: int, length: int, options: StepOptions, step=plain_step, steps=2
) -> float:
    """MiB that a step really allocates on the CPU with CUDA's ops, with the weights.

    Measured by the profiler. Without oneDNN, which on CPUs with units for bf16 takes
    buffers of its own.
    """
    model = new_model(config, options)
    own = sum(
        tensor.untyped_storage().nbytes()
        for tensor in [*model.parameters(), *model.buffers()]
    )
    optimizer = make_optimizer(model, options)
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with (
        cuda_standins.cuda_kernels_on_cpu(model, options),
        torch.backends.mkldnn.flags(enabled=False),
        profiler,
    ):
        for _ in range(steps):
            ids = torch.ones(rows, length, dtype=torch.long)
            mask = ids.clone()
            mask[0, -1] = 0  # transformers drops a mask that hides nothing
            labels = torch.ones(rows, dtype=torch.long)
            batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            result = step(model, batch, optimizer)
        del result
    live = peak = 0
    for event in sorted(
        (
            e
            for e in profiler.profiler.kineto_results.events()
            if e.name() == "[memory]"
        ),
        key=lambda e: e.start_ns(),
    ):
        live += event.nbytes()
        peak = max(peak, live)
    return (own + peak) / MIB


def exact() -> pd.DataFrame:
    """Compare traced with real peaks on the CPU, in MiB, without CUDA's workspaces."""
    rows = []
    for name, config, shape in (
        ("DistilBERT", DistilBertConfig(num_labels=4), (8, 64)),
        ("DistilBERT", DistilBertConfig(num_labels=4), (8, 256)),
        ("BERT-base", BertConfig(num_labels=4), (4, 128)),
    ):
        for implementation in ("fused", "foreach", "single"):
            options = StepOptions(attention="eager", implementation=implementation)
            found = trace(plain_step, config, [shape] * 2, options)
            peak, at = found.peak()
            workspaces = sum(
                a.size
                for a, made in found.events[: at + 1]
                if a.category == "workspaces"
            )
            traced, real = (peak - workspaces) / MIB, real_peak(config, *shape, options)
            rows.append(
                (
                    f"{name} {shape[0]} x {shape[1]}, {implementation} Adam",
                    traced,
                    real,
                    traced / real - 1,
                )
            )
    return pd.DataFrame(rows, columns=["step", "traced", "real", "error"])


def evidence(others: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return for each kind the number of rows and the errors with their signs."""
    difference = others["machine"].str.contains("difference")
    fitted = others["constant"] != 0
    inference = others["what"].str.contains("inference")
    training = new["what"].str.contains("training")
    is_lm = new["output weights"] == "not said"
    kinds = {
        "loading a model, nothing fitted": others[difference]["error"],
        "inference, after one fitted constant": others[fitted & inference]["error"],
        "training, after one fitted constant": others[fitted & ~inference]["error"],
        "masked language models, tied": new[is_lm]["error"],
        "masked language models, untied": new[is_lm]["error untied"],
        "classifiers, forward and backward": new[~is_lm & ~training]["error"],
        "training, nothing fitted": new[training]["error"],
    }
    figures = {
        kind: {
            "rows": len(errors),
            "too low": int((errors.round(4) < 0).sum()),
            "lowest": round(errors.min(), 4),
            "median": round(errors.median(), 4),
            "highest": round(errors.max(), 4),
        }
        for kind, errors in kinds.items()
    }
    return pd.DataFrame.from_dict(figures, "index").rename_axis("kind")


def main() -> None:
    others, new, cards, language, own = (
        published(),
        today(),
        fits(),
        language_model(),
        exact(),
    )
    signed = "error", "error_by_median", "error untied", "lowest", "median", "highest"
    percent = dict.fromkeys(signed, "{:+.2%}".format)
    print(
        others.drop(columns="source").to_string(
            index=False, float_format="{:,.0f}".format, formatters=percent
        )
    )
    errors = others["error"].abs()
    by_median = others["error_by_median"].abs()
    print(
        f"\nmedian {errors.median():.2%}, largest {errors.max():.2%} of {len(errors)} "
        f"published rows; with the median as the constant, largest "
        f"{by_median.max():.2%}\n"
    )
    print(
        new.drop(columns="source").to_string(
            index=False, float_format="{:,.1f}".format, formatters=percent
        )
    )
    told = evidence(others, new)
    print(f"\n{told.to_string(formatters=percent)}\n")
    print(cards.to_string(index=False, float_format="{:,.0f}".format), "\n")
    print(language.to_string(index=False, float_format="{:,.2f}".format), "\n")
    print(
        own.to_string(
            index=False,
            float_format="{:,.2f}".format,
            formatters={"error": "{:+.4%}".format},
        )
    )
    figures = {
        "published": others.round(4).to_dict("records"),
        "median_error": errors.median(),
        "largest_error": errors.max(),
        "today": [
            {name: value for name, value in row.items() if value == value}
            for row in new.round(4).to_dict("records")
        ],
        "evidence": told.reset_index().to_dict("records"),
        "fits": cards.round(1).to_dict("records"),
        "language_model": language.round(3).to_dict("records"),
        "exact": own.round(6).to_dict("records"),
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
