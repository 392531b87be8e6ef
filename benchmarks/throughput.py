"""How fast is the training loop, compared with what a reader would use instead?

    python benchmarks/throughput.py                       on the sample
    AGNEWS_DATA=folder python benchmarks/throughput.py    on rows of AG News

About 20 minutes on two cores. It prints tables and writes throughput.json and .png.
Every contender trains the same model on the same rows in its own process, in turn,
several times. Ratios are computed within a round, because a laptop's speed drifts. The
speed is also given as a share of the processor's limit for matrix products.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

HERE = Path(__file__)
CONTENDERS = {
    "letter": "exactly the recipe: all rows padded to 512, plain Adam",
    "trainer": "transformers.Trainer, dynamic padding",
    "grouped": "transformers.Trainer, group_by_length",
    "ours": "train()",
}
LETTER_ROWS = 32  # fewer, because each takes twenty times as long


def newsletter(rows: int):
    """Return recipe, tokenized splits and model, the same for every contender.

    If the data has fewer training rows, they are repeated.
    """
    from datasets import concatenate_datasets

    from agnews_helpers import load_data, load_model, load_tokenizer, tokenize

    recipe = _recipe()
    tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
    train = tokens["train"]
    repeated = concatenate_datasets([train] * -(-rows // len(train)))
    tokens["train"] = repeated.select(range(rows))
    tokens["validation"] = tokens["validation"].select(range(16))
    return recipe, tokens, load_model(recipe)


def _recipe():
    from agnews_helpers import recipe_for_this_machine

    return recipe_for_this_machine(
        model="mini",
        data=os.environ.get("AGNEWS_DATA", "sample"),
        profile="offline",
        epochs=1,
    )


def letter(rows: int) -> dict:
    """Train in the plain loop: fixed padding, shuffled, ``torch.optim.Adam``."""
    import torch
    from torch.utils.data import DataLoader

    from agnews_helpers import Collator

    recipe, tokens, model = newsletter(min(rows, LETTER_ROWS))
    loader = DataLoader(
        tokens["train"],
        batch_size=8,
        shuffle=True,
        collate_fn=Collator(0, recipe.max_length),
    )
    optimizer = torch.optim.Adam(model.train().parameters(), lr=recipe.learning_rate)
    started = time.perf_counter()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return _figures(
        tokens, time.perf_counter() - started, recipe.max_length * len(tokens["train"])
    )


def trainer(rows: int, **settings) -> dict:
    """Train with `transformers.Trainer` as its documentation shows it.

    Without checkpoints, and without reports to services.
    """
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
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=recipe.learning_rate,
            save_strategy="no",
            report_to=[],
            seed=recipe.seed,
            use_cpu=not torch.cuda.is_available(),
            **settings,
        )
        columns = ["input_ids", "label"] + (["length"] if settings else [])
        rows = tokens["train"].select_columns(columns)
        contender = Trainer(
            model,
            arguments,
            train_dataset=rows,
            data_collator=Counting(load_tokenizer(recipe)),
        )
        seconds = contender.train().metrics["train_runtime"]
    return _figures(tokens, seconds, sum(padded))


def grouped(rows: int) -> dict:
    return trainer(rows, train_sampling_strategy="group_by_length")


def ours(rows: int, **changes) -> dict:
    from step_time import encoder_weights, product_speed
    from whole_run import whole_run

    from agnews_helpers import epoch_batches

    recipe, tokens, model = newsletter(rows)
    recipe = recipe.replace(**changes)
    lengths = tokens["train"]["length"][:]
    tokens_a_batch = round(8 * statistics.fmean(lengths))
    before = product_speed(model, tokens_a_batch, 3.0)
    started = time.perf_counter()
    run = whole_run(model, tokens, recipe)
    whole = time.perf_counter() - started
    batches = epoch_batches(lengths, recipe, 1)
    figures = _figures(
        tokens,
        rows / run.history["rows_per_second"][1],
        sum(len(batch) * max(lengths[i] for i in batch) for batch in batches),
    )
    shape = {
        "weights": sum(weight.numel() for weight in encoder_weights(model)),
        "layers": model.config.n_layers,
        "width": model.config.dim,
    }
    # Measured before and after the run, because the machine's speed drifts.
    after = product_speed(model, tokens_a_batch, 3.0)
    return figures | {
        "with_validation_and_saving": whole,
        "limit": {"flops": (before + after) / 2, **shape},
    }


def ours_bf16(rows: int) -> dict:
    return ours(rows, precision="bf16")


def _figures(tokens, seconds: float, padded: int) -> dict:
    lengths = tokens["train"]["length"][:]
    return {
        "rows": len(lengths),
        "seconds": seconds,
        "tokens": sum(lengths),
        "padded": padded,
        "attention": sum(length * length for length in lengths),
        "peak_gib": _peak_gib(),
    }


def _peak_gib() -> float:
    """Return this process's peak memory in GiB."""
    if os.name == "posix":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return float("nan")


def flops(figures: dict, shape: dict) -> float:
    """Return the floating-point operations of the whole model on the real tokens.

    6 for each weight and token, and 12 x width for each pair of tokens in each layer.
    """
    return (
        6 * shape["weights"] * figures["tokens"]
        + 12 * shape["width"] * shape["layers"] * figures["attention"]
    )


def measure(name: str, rows: int, **environment: str) -> dict:
    """Run one contender in its own process."""
    command = [sys.executable, str(HERE), "--contender", name, "--rows", str(rows)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "AGNEWS_PROFILE": "offline", **environment},
    )
    if result.returncode:
        raise RuntimeError(f"{name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def rounds(repeat: int, rows: int) -> pd.DataFrame:
    """Run all contenders `repeat` times, each time in another order.

    Return a row per measurement.
    """
    lines = []
    for number in range(1, repeat + 1):
        order = random.Random(number).sample([*CONTENDERS], len(CONTENDERS))
        found = {name: measure(name, rows) for name in order}
        shape = found["ours"].pop("limit")
        for name, figures in found.items():
            figures |= {
                "round": number,
                "contender": name,
                "rows_per_second": figures["rows"] / figures["seconds"],
                "share_of_limit": flops(figures, shape)
                / figures["seconds"]
                / shape["flops"],
                "limit_gflops": shape["flops"] / 1e9,
            }
            lines.append(figures)
            print(
                f"round {number}  {name:8} {figures['rows_per_second']:8.2f} rows/s  "
                f"{figures['share_of_limit']:6.1%} of the limit "
                f"({shape['flops'] / 1e9:.0f} GFLOP/s)  {figures['peak_gib']:.2f} GiB",
                flush=True,
            )
    return pd.DataFrame(lines)


def ratios(lines: pd.DataFrame) -> pd.DataFrame:
    """Return how many times faster ours is: median, least and most of the rounds."""
    speeds = lines.pivot(index="round", columns="contender", values="rows_per_second")
    others = speeds.rdiv(speeds["ours"], axis=0).drop(columns="ours")
    return pd.DataFrame(
        {"median": others.median(), "least": others.min(), "most": others.max()}
    ).loc[[n for n in CONTENDERS if n != "ours"]]


def pass_over(rows: int) -> dict:
    """Measure `train` with a tiny model: what everything but the model costs."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification
    from whole_run import whole_run

    recipe, tokens, _ = newsletter(rows)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=4)
    )
    before, started = _peak_gib(), time.perf_counter()
    whole_run(model, tokens, recipe)
    return {
        "seconds": time.perf_counter() - started,
        "gib_before": before,
        "gib_after": _peak_gib(),
    }


def growth(sizes=(1_000, 10_000, 40_000)) -> pd.DataFrame:
    """Measure whether time and memory of an epoch grow with the rows."""
    return pd.DataFrame(
        [{"rows": size, **measure("pass_over", size)} for size in sizes]
    )


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "Adam": ("aten::_fused_adam_",),
    "random numbers of dropout": ("aten::random_", "aten::lt", "aten::bernoulli_"),
    "GELU, LayerNorm, softmax": (
        "aten::gelu",
        "aten::gelu_backward",
        "aten::native_layer_norm",
        "aten::native_layer_norm_backward",
        "aten::_softmax",
        "aten::_softmax_backward_data",
    ),
    "copies, sums, filling": (
        "aten::copy_",
        "aten::sum",
        "aten::fill_",
        "aten::mul",
        "aten::add",
        "aten::add_",
    ),
}


def parts(rows: int, steps: int = 30) -> dict:
    """Return the share of a step's time that each kind of operation takes.

    By PyTorch's profiler; the time for data is measured with a clock.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from agnews_helpers import epoch_batches, forward_backward, make_loader
    from agnews_helpers.training import check_finite

    recipe, tokens, model = newsletter(rows)
    optimizer = torch.optim.Adam(
        model.train().parameters(), lr=recipe.learning_rate, fused=True
    )

    def step(batch):
        loss = forward_backward(model, batch)
        check_finite(loss, model)  # reads the loss, too
        optimizer.step()
        optimizer.zero_grad()

    started = time.perf_counter()
    batches = epoch_batches(tokens["train"]["length"][:], recipe, 1)
    batches = list(make_loader(tokens["train"], batches, recipe))
    data = (time.perf_counter() - started) / len(batches)
    for batch in batches[:5]:
        step(batch)
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in batches[5 : 5 + steps]:
            step(batch)
    seconds = (time.perf_counter() - started) / len(batches[5 : 5 + steps])
    spent = {
        event.key: event.self_cpu_time_total / 1e6 / len(batches[5 : 5 + steps])
        for event in profiler.key_averages()
    }
    shares = {
        name: sum(spent.get(op, 0.0) for op in ops) / seconds
        for name, ops in PARTS.items()
    }
    return shares | {
        "everything else": 1 - sum(shares.values()),
        "data, beside the step": data / seconds,
    }


def start_up(rows: int = 40_000) -> dict:
    """Measure the seconds to tokenize, and until the first step of `train`."""
    return {"rows": rows, **measure("seconds_to_start", rows)}


def seconds_to_start(rows: int) -> dict:
    from datasets import concatenate_datasets

    from agnews_helpers import load_data, load_tokenizer, tokenize, train, training

    recipe = _recipe()
    news, tokenizer = load_data(recipe), load_tokenizer(recipe)
    texts = concatenate_datasets(
        [news["train"]] * -(-rows // len(news["train"]))
    ).select(range(rows))
    started = time.perf_counter()
    tokenize(texts, tokenizer, recipe)
    tokenizing = time.perf_counter() - started
    recipe, tokens, model = newsletter(rows)
    first_step = []

    def stop_at_first_step(*_, **__):
        first_step.append(time.perf_counter())
        raise KeyboardInterrupt

    training.forward_backward = stop_at_first_step
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with suppress(KeyboardInterrupt):
            train(model, tokens, recipe, folder, resume=False)
    return {"tokenize": tokenizing, "first_step": first_step[0] - started}


def draw(lines: pd.DataFrame, shares: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = {
        "letter": "padded to 512",
        "trainer": "Trainer",
        "grouped": "Trainer,\ngroup_by_length",
        "ours": "train()",
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    speeds = lines.groupby("contender")["rows_per_second"]
    middle = speeds.median().loc[list(names)]
    spread = [
        middle - speeds.min().loc[list(names)],
        speeds.max().loc[list(names)] - middle,
    ]
    bars = left.barh(
        list(names.values()),
        middle,
        xerr=spread,
        color=["#999999", "#56B4E9", "#0072B2", "#E69F00"],
        error_kw={"ecolor": "#333333"},
    )
    for bar, value, most in zip(bars, middle, speeds.max().loc[list(names)]):
        left.text(
            most + 0.6, bar.get_y() + bar.get_height() / 2, f"{value:.1f}", va="center"
        )
    left.set_xlim(0, 1.12 * speeds.max().max())
    left.set(xlabel="rows per second", title="Training, median and range of the rounds")
    left.invert_yaxis()
    inside = {
        name: share for name, share in shares.items() if name != "data, beside the step"
    }
    right.barh(
        list(inside), [100 * share for share in inside.values()], color="#009E73"
    )
    right.set(xlabel="% of a step's time", title="Where a step's time goes")
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(globals()[options.contender](options.rows)))
        return
    lines = rounds(options.repeat, options.rows)
    table, shares, grown = ratios(lines), measure("parts", 400), growth()
    start = start_up()
    share = lines[lines["contender"] == "ours"]["share_of_limit"]
    data = "AG News rows" if os.environ.get("AGNEWS_DATA") else "the sample"
    print(
        f"\nHow many times faster train() is ({data}, {options.rows} rows, batches of "
        f"8):\n{table.round(2).to_string()}\n\nShare of the matrix-product limit: "
        f"{share.median():.1%} ({share.min():.1%} to {share.max():.1%}).\n\n"
        "Where a step's time goes:\n"
        f"{pd.Series(shares).map('{:.1%}'.format).to_string()}\n\n"
        f"{grown.round(2).to_string(index=False)}\n\nstart-up {start}"
    )
    figures = {
        "data": data,
        "rows": options.rows,
        "rounds": lines.round(4).to_dict("records"),
        "times_as_fast": table.round(3).to_dict("index"),
        "share_of_limit": share.round(4).tolist(),
        "parts": shares,
        "growth": grown.round(3).to_dict("records"),
        "start_up": start,
    }
    HERE.with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )
    draw(lines, shares, HERE.with_suffix(".png"))


if __name__ == "__main__":
    main()
