"""How good are the predictions of ``vram``? Two checks, neither of which needs a GPU.

1. Published measurements: rows whose recipe is known well enough to be repeated, predicted and compared.
   One constant for each machine, the CUDA context of its driver, is fitted and named: the one whose largest
   relative error is least. The errors with the median as the constant are printed beside it.
2. The same step, run for real on the CPU under PyTorch's memory profiler: the traced peak against the real one.

    python benchmarks/vram_accuracy.py            prints both tables, writes vram_accuracy.json beside this file

None of the published rows is of a GTX 1650 Ti, of memory-efficient attention or of fused Adam.
"""
import json
import statistics
from pathlib import Path

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, DistilBertConfig, GPT2Config
from transformers.initialization import no_init_weights

from agnews_helpers import find_card, step_budget, training_step
from agnews_helpers.vram import cuda_kernels
from agnews_helpers.vram.allocator import MIB, CachingAllocator, replay
from agnews_helpers.vram.recorder import Allocation, Recorder, fuse_in_place
from agnews_helpers.vram.trace import Setup, Trace, trace_inference, trace_steps

OLD = dict(attention="eager", era="torch<1.11")
DOCS = "transformers docs, "
BERT_LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
MRPC = BertConfig(vocab_size=28996, num_labels=2)  # bert-base-cased


def reserved(events) -> float:
    return replay(events, CachingAllocator()).memory_stats()["reserved_bytes.all.peak"] / MIB


def loading() -> float:
    """bert-large-uncased copied to a card that holds one small tensor already: the difference."""
    first = [(Allocation(4, "ones", "", "load", 0), True)]
    weights = [event for event in trace_inference(BERT_LARGE, [(1, 8)], Setup(**OLD)).events if event[0].phase == "load"]
    return reserved(first + weights) - reserved(first)


def inference(config, length: int) -> float:
    return reserved(trace_inference(config, [(8, length)], Setup(**OLD)).events)


def distributed(rows: int, precision: str) -> float:
    """run_glue on MRPC under DistributedDataParallel, whose buckets hold the gradients once more."""
    shapes = [(rows, 128)] * 4 + [(3668 % rows or rows, 128), (rows, 128)]  # MRPC's last batch is smaller
    setup = Setup(optimizer="adamw", implementation="single", keep_gradients=True, precision=precision, **OLD)
    events = trace_steps(MRPC, shapes, setup).events
    weights = [allocation.size for allocation, made in events if made and allocation.phase == "load"]
    place = len(weights)
    return reserved(events[:place] + [(bucket, True) for bucket in buckets(weights)] + events[place:])


def buckets(weights: list[int]) -> list[Allocation]:
    """DDP's buckets: parameters from the last to the first, closed at 1 MiB for the first bucket and 25 MiB after."""
    found, size, limit = [], 0, MIB
    for weight in reversed(weights):
        size += weight
        if size >= limit:
            found.append(size)
            size, limit = 0, 25 * MIB
    return [Allocation(size, "bucket", "", "load", 0, "gradients") for size in [*found, size] if size]


def published() -> pd.DataFrame:
    """Name, machine, source, published and predicted MiB; the machine's constant is added last."""
    rows = [("bert-large-uncased on the card", "V100 (a difference)", DOCS + "perf_train_gpu_one", 1288, loading())]
    for name, config, figures in (
            ("BERT-base", BertConfig(), {8: 1277, 32: 1281, 128: 1307, 512: 1539}),
            ("BERT, 6 layers", BertConfig(num_hidden_layers=6), {8: 1097, 32: 1101, 128: 1127, 512: 1359}),
            ("BERT, 384 wide", BertConfig(hidden_size=384), {8: 1005, 32: 1027, 128: 1035, 512: 1255})):
        for length, figure in figures.items():
            rows.append((f"{name}, inference 8 x {length}", "TITAN RTX, 2020", DOCS + "benchmarks", figure, inference(config, length)))
    for precision, figures in (("fp32", (4247, 4971, 6827, 10037)), ("fp16", (4163, 4793, 6207, 8061))):
        for batch, figure in zip((8, 16, 32, 64), figures):
            rows.append((f"BERT-base, training {batch} x 128, {precision}", "2 GPUs, 2021", DOCS + "performance", figure, distributed(batch, precision)))
    table = pd.DataFrame(rows, columns=["what", "machine", "source", "published", "traced"])
    machines = table.groupby("machine")
    constants = {machine: 0.0 if "difference" in machine else fitted(group) for machine, group in machines}
    medians = {machine: 0.0 if "difference" in machine else statistics.median(group["published"] - group["traced"]) for machine, group in machines}
    table["constant"] = table["machine"].map(constants)
    table["predicted"] = table["traced"] + table["constant"]
    table["error"] = table["predicted"] / table["published"] - 1
    table["error_by_median"] = (table["traced"] + table["machine"].map(medians)) / table["published"] - 1
    return table


def fitted(rows: pd.DataFrame) -> float:
    """The constant in MiB that makes the largest relative error of these rows least.

    There two rows are off by as much, one above and one below: the constant of some pair is the best.
    """
    inverse, wanted = 1 / rows["published"].to_numpy(), (1 - rows["traced"] / rows["published"]).to_numpy()
    candidates = [(wanted[i] + wanted[j]) / (inverse[i] + inverse[j]) for i in range(len(rows)) for j in range(i + 1)]
    return float(min(candidates, key=lambda constant: abs(constant * inverse - wanted).max()))


def fits() -> pd.DataFrame:
    """Reports of what ran and what did not on a 4 GB card (transformers#1469), against the verdict."""
    rows = []
    for batch, ran in ((1, True), (12, False)):
        setup = Setup(keep_gradients=True, implementation="single", **OLD)
        budget = step_budget(MRPC, batch, 384, setup, find_card("GTX 1050 Ti"), "linux")
        rows.append((f"BERT-base {batch} x 384 on a GTX 1050 Ti", "ran" if ran else "out of memory", budget.reserved, budget.verdict))
    return pd.DataFrame(rows, columns=["what", "reported", "reserved", "verdict"])


class LanguageModel(Recorder):
    """Watches a model that predicts each next token: its labels are the tokens themselves."""

    def _batch(self, rows: int, length: int) -> dict:
        batch = super()._batch(rows, length)
        batch["labels"] = torch.ones(rows, length, dtype=torch.long)
        self._mark(batch.values(), "batch")
        return batch


def language_model() -> pd.DataFrame:
    """A plot of PyTorch's profiler, read by its author as "8 GiB": GPT-2, 8 x 512, the Trainer's defaults."""
    setup, mode = Setup(optimizer="adamw", mask=False), FakeTensorMode(allow_non_fake_inputs=True)
    with mode, no_init_weights():
        model = AutoModelForCausalLM.from_config(GPT2Config(), dtype=torch.float32)
    recorder = LanguageModel(model, setup)
    with mode, cuda_kernels.patched(setup), recorder.watching():
        recorder.load()
        recorder.train([(8, 512)] * 3)
    peak, _ = Trace(fuse_in_place(recorder.events)).peak()
    return pd.DataFrame([("GPT-2 as a language model, 8 x 512, fp32", "forum of Hugging Face, 172332", 8, peak / MIB / 1024)],
                        columns=["what", "source", "reported_gib", "traced_gib"])


def real_peak(config, rows: int, length: int, setup: Setup, steps: int = 2) -> float:
    """MiB that the step really allocates on the CPU with CUDA's ops, weights included, by the memory profiler."""
    class Accelerator:
        def backward(self, loss):
            loss.backward()

    config._attn_implementation = setup.attention
    with cuda_kernels.patched(setup):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).train()
        own = sum(tensor.untyped_storage().nbytes() for tensor in [*model.parameters(), *model.buffers()])
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setup.optimizer]
        optimizer = kind(model.parameters(), lr=2e-5, fused=setup.implementation == "fused", foreach=setup.implementation == "foreach")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            for _ in range(steps):
                batch = {"input_ids": torch.ones(rows, length, dtype=torch.long), "attention_mask": torch.ones(rows, length, dtype=torch.long)}
                batch["attention_mask"][0, -1] = 0
                batch["labels"] = torch.ones(rows, dtype=torch.long)
                training_step(model, batch, optimizer, Accelerator(), setup.micro_batch_size)
    live = peak = 0
    for event in sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return (own + peak) / MIB


def exact() -> pd.DataFrame:
    """Traced against real peaks on the CPU, in MiB, without the workspaces that only CUDA has."""
    rows = []
    for name, config, shape in (("DistilBERT", DistilBertConfig(num_labels=4), (8, 64)), ("DistilBERT", DistilBertConfig(num_labels=4), (8, 256)),
                                ("BERT-base", BertConfig(num_labels=4), (4, 128))):
        for implementation in ("fused", "foreach", "single"):
            setup = Setup(attention="eager", implementation=implementation)
            found = trace_steps(config, [shape] * 2, setup)
            peak, place = found.peak()
            workspaces = sum(a.size for a, made in found.events[:place + 1] if a.category == "workspaces")
            traced, real = (peak - workspaces) / MIB, real_peak(config, *shape, setup)
            rows.append((f"{name} {shape[0]} x {shape[1]}, {implementation} Adam", traced, real, traced / real - 1))
    return pd.DataFrame(rows, columns=["step", "traced", "real", "error"])


def main() -> None:
    others, cards, language, own = published(), fits(), language_model(), exact()
    percent = dict.fromkeys(("error", "error_by_median"), "{:+.2%}".format)
    print(others.drop(columns="source").to_string(index=False, float_format="{:,.0f}".format, formatters=percent))
    errors = others["error"].abs()
    print(f"\nmedian {errors.median():.2%}, largest {errors.max():.2%} of {len(errors)} published rows; "
          f"with the median as the constant, largest {others['error_by_median'].abs().max():.2%}\n")
    print(cards.to_string(index=False, float_format="{:,.0f}".format), "\n")
    print(language.to_string(index=False, float_format="{:,.2f}".format), "\n")
    print(own.to_string(index=False, float_format="{:,.2f}".format, formatters={"error": "{:+.4%}".format}))
    figures = {"published": others.round(4).to_dict("records"), "median_error": errors.median(), "largest_error": errors.max(),
               "fits": cards.round(1).to_dict("records"),
               "language_model": language.round(3).to_dict("records"), "exact": own.round(6).to_dict("records")}
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
