"""How fast is the training loop, beside what a reader would use instead, and beside what the processor can do?

    python benchmarks/throughput.py            about 20 minutes on two cores; prints tables, writes throughput.json and .png
    AGNEWS_DATA=folder python benchmarks/throughput.py        on rows of AG News itself

Every contender trains the same model on the same rows in a process of its own, in turn, several times; ratios are of
the same round, because a laptop's speed is not the same from one minute to the next.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__)
CONTENDERS = {
    "letter": "the recipe to the letter: all rows padded to 512, plain Adam",
    "trainer": "transformers.Trainer, dynamic padding",
    "grouped": "transformers.Trainer, group_by_length",
    "ours": "train()"}
LETTER_ROWS = 48  # it takes a hundred times as long for a row: fewer of them


def newsletter(rows: int):
    """Recipe, tokenized rows and model, the same for all. More rows than there are come round again."""
    from datasets import concatenate_datasets

    from agnews_helpers import Recipe, load_agnews, load_model, load_tokenizer, tokenize

    recipe = Recipe.for_this_machine(model="mini", data=os.environ.get("AGNEWS_DATA", "sample"), profile="offline", epochs=1)
    tokens = tokenize(load_agnews(recipe), load_tokenizer(recipe), recipe)
    train = tokens["train"]
    train = concatenate_datasets([train] * -(-rows // len(train))).select(range(rows))
    tokens["train"], tokens["validation"] = train, tokens["validation"].select(range(16))
    return recipe, tokens, load_model(recipe)


def letter(rows: int) -> dict:
    """The loop as question and answer have it: fixed padding, shuffled, ``torch.optim.Adam``."""
    import torch
    from torch.utils.data import DataLoader

    from agnews_helpers import Collator

    recipe, tokens, model = newsletter(min(rows, LETTER_ROWS))
    loader = DataLoader(tokens["train"], batch_size=8, shuffle=True, collate_fn=Collator(0, recipe.max_length))
    optimizer = torch.optim.Adam(model.train().parameters(), lr=recipe.learning_rate)
    started = time.perf_counter()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return _figures(tokens, time.perf_counter() - started, recipe.max_length * len(tokens["train"]))


def trainer(rows: int, **settings) -> dict:
    """`transformers.Trainer` as its documentation shows it, without saving and without reports to services."""
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    recipe, tokens, model = newsletter(rows)
    from agnews_helpers import load_tokenizer

    padded = []

    class Counting(DataCollatorWithPadding):
        def __call__(self, features):
            batch = super().__call__(features)
            padded.append(batch["input_ids"].numel())
            return batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, num_train_epochs=1, per_device_train_batch_size=8, learning_rate=recipe.learning_rate,
                                      save_strategy="no", report_to=[], seed=recipe.seed, use_cpu=not torch.cuda.is_available(), **settings)
        columns = ["input_ids", "label"] + (["length"] if settings else [])
        rows = tokens["train"].select_columns(columns)
        contender = Trainer(model, arguments, train_dataset=rows, data_collator=Counting(load_tokenizer(recipe)))
        seconds = contender.train().metrics["train_runtime"]
    return _figures(tokens, seconds, sum(padded))


def grouped(rows: int) -> dict:
    return trainer(rows, train_sampling_strategy="group_by_length")


def ours(rows: int, **changes) -> dict:
    from agnews_helpers import epoch_batches, padded_tokens, train

    recipe, tokens, model = newsletter(rows)
    recipe = recipe.but(**changes)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(model, tokens, recipe, folder, resume=False)
    whole = time.perf_counter() - started
    lengths = tokens["train"]["length"][:]
    figures = _figures(tokens, rows / run.history["rows_per_second"][1], padded_tokens(lengths, epoch_batches(lengths, recipe, 1)))
    return figures | {"with_validation_and_saving": whole}


def _figures(tokens, seconds: float, padded: int) -> dict:
    lengths = tokens["train"]["length"][:]
    return {"rows": len(lengths), "seconds": seconds, "tokens": sum(lengths), "padded": padded,
            "attention": sum(length * length for length in lengths), "peak_gib": _peak_gib()}


def _peak_gib() -> float:
    """Most memory that this process had at any time, in GiB."""
    if os.name == "posix":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return float("nan")


def limit(rows: int, seconds: float = 4.0) -> dict:
    """FLOP/s of matrix products alone, in the shapes of the model's linear layers: forward, and both of backward."""
    import torch

    _, tokens, model = newsletter(rows)
    tokens_a_batch = round(8 * statistics.fmean(tokens["train"]["length"][:]))
    layers = [layer for name, layer in model.distilbert.transformer.named_modules() if isinstance(layer, torch.nn.Linear)]
    inputs = {size: torch.randn(tokens_a_batch, size) for layer in layers for size in (layer.in_features, layer.out_features)}

    def once():
        for layer in layers:
            x, y, weight = inputs[layer.in_features], inputs[layer.out_features], layer.weight.detach()
            torch.mm(x, weight.t()), torch.mm(y, weight), torch.mm(y.t(), x)

    once()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        once()
        rounds += 1
    weights = sum(layer.weight.numel() for layer in layers)
    return {"flops": 6 * weights * tokens_a_batch * rounds / (time.perf_counter() - started), "weights": weights,
            "layers": model.config.n_layers, "width": model.config.dim}


def flops(figures: dict, shape: dict) -> float:
    """Operations that the real tokens need: 6 for each weight and token, 12 x width for each pair of tokens and layer."""
    return 6 * shape["weights"] * figures["tokens"] + 12 * shape["width"] * shape["layers"] * figures["attention"]


def measure(name: str, rows: int) -> dict:
    """One contender in a process of its own."""
    command = [sys.executable, str(HERE), "--contender", name, "--rows", str(rows)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "AGNEWS_PROFILE": "offline"})
    if result.returncode:
        raise RuntimeError(f"{name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def rounds(repeat: int, rows: int) -> pd.DataFrame:
    """All contenders in turn, `repeat` times: one line for each measurement."""
    lines = []
    for number in range(1, repeat + 1):
        shape = measure("limit", rows)
        for name in CONTENDERS:
            figures = measure(name, rows)
            figures |= {"round": number, "contender": name, "rows_per_second": figures["rows"] / figures["seconds"],
                        "share_of_limit": flops(figures, shape) / figures["seconds"] / shape["flops"], "limit_gflops": shape["flops"] / 1e9}
            lines.append(figures)
            print(f"round {number}  {name:8} {figures['rows_per_second']:8.2f} rows/s  {figures['share_of_limit']:6.1%} of the limit "
                  f"({shape['flops'] / 1e9:.0f} GFLOP/s)  {figures['peak_gib']:.2f} GiB", flush=True)
    return pd.DataFrame(lines)


def ratios(lines: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast as each other contender ours is: median, least and most over the rounds."""
    speeds = lines.pivot(index="round", columns="contender", values="rows_per_second")
    others = speeds.rdiv(speeds["ours"], axis=0).drop(columns="ours")
    return pd.DataFrame({"median": others.median(), "least": others.min(), "most": others.max()}).loc[[n for n in CONTENDERS if n != "ours"]]


def growth(sizes=(1_000, 10_000, 40_000), steps: int = 60) -> pd.DataFrame:
    """Does a step cost more, or need more memory, when there are more rows? The first steps of an epoch over each size."""
    return pd.DataFrame([{"rows": size, **measure(f"growth:{steps}", size)} for size in sizes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        name, _, argument = options.contender.partition(":")
        print(json.dumps(globals()[name](options.rows, *([int(argument)] if argument else []))))
        return
    lines = rounds(options.repeat, options.rows)
    print("\n", ratios(lines).round(2).to_string())


if __name__ == "__main__":
    main()
