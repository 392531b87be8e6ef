"""How fast is the training loop, compared with what a reader would use instead?

    python benchmarks/throughput.py                       on the sample
    AGNEWS_DATA=folder python benchmarks/throughput.py    on rows of AG News

Five ways train `mini` on the same 800 rows for one epoch, validate it on 40, and save
it; each in its own process, in random order, five times. There are two clocks: the
epoch's steps alone, and the whole call with validation and saving. `train()` and the
Trainer save Adam's state, too, from which a run can be resumed; that takes as long
after few rows as after many. The way that pads all rows to 512 trains on 32 rows,
because each takes twenty times as long; its steps are scaled up. At last a profile
tells where a step's time goes.

About 15 minutes on two cores. It prints a table and writes throughput.json and .png.
CONTRIBUTING.md says how to make the folder; its rows are from AG News' training split.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from datasets import concatenate_datasets
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from agnews_helpers import (
    Collator,
    epoch_batches,
    load_data,
    load_model,
    load_tokenizer,
    make_loader,
    recipe_for_this_machine,
    sorted_batches,
    tokenize,
)

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[1]))  # where this is run as a script
from benchmarks.paired import compared, order_of  # noqa: E402
from benchmarks.whole_run import whole_run  # noqa: E402

FEW_ROWS = 32  # padded to 512
ROUNDS, ROWS = 5, 800
CLOCKS = {"steps": "steps alone", "whole": "whole call"}


def newsletter(rows: int):
    """Return recipe, tokenized splits and model, the same for every contender.

    If the data has fewer rows, they are repeated.
    """
    sizes = {"train": rows, "validation": max(1, rows // 20)}
    recipe = recipe_for_this_machine(
        model="mini",
        data=os.environ.get("AGNEWS_DATA", "sample"),
        profile="offline",
        epochs=1,
        train_rows=max(40, sum(sizes.values())),
    )
    news = load_data(recipe)
    del news["test"]
    tokens = tokenize(news, load_tokenizer(recipe), recipe)
    for split, size in sizes.items():
        repeated = [tokens[split]] * -(-size // len(tokens[split]))
        tokens[split] = concatenate_datasets(repeated).select(range(size))
    torch.manual_seed(recipe.seed)  # for dropout
    return recipe, tokens, load_model(recipe)


# ---- the contenders: each trains, validates and saves, and returns the seconds of the
# ---- steps alone and the rows that they took


def plain_loop(model, loader, optimizer) -> float:
    """Train as notebook 05's plain loop does, and return the seconds."""
    started = time.perf_counter()
    model.train()
    for batch in loader:
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        loss = F.cross_entropy(logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model, split, recipe) -> float:
    """Validate as notebook 05 does."""
    model.eval()
    right = 0
    for batch in make_loader(split, sorted_batches(split["length"][:]), recipe):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        right += (logits.argmax(-1) == batch["labels"]).sum().item()
    return right / len(split)


def letter(recipe, tokens, model, folder) -> tuple[float, int]:
    rows = tokens["train"].select(range(min(FEW_ROWS, len(tokens["train"]))))
    pad = Collator(0, recipe.max_length)
    loader = DataLoader(rows, recipe.batch_size, shuffle=True, collate_fn=pad)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    seconds = plain_loop(model, loader, adam)
    accuracy(model, tokens["validation"], recipe.replace(padding="max_length"))
    model.save_pretrained(folder)
    return seconds, len(rows)


def plain(recipe, tokens, model, folder) -> tuple[float, int]:
    rows = tokens["train"]
    batches = epoch_batches(rows["length"][:], recipe, 1)
    loader = make_loader(rows, batches, recipe)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    seconds = plain_loop(model, loader, adam)
    accuracy(model, tokens["validation"], recipe)
    model.save_pretrained(folder)
    return seconds, len(rows)


class Clock(TrainerCallback):
    """Take the seconds of an epoch; validation and saving come after its end."""

    def on_epoch_begin(self, *_, **__):
        self.started = time.perf_counter()

    def on_epoch_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.started


def trainer(recipe, tokens, model, folder, **settings) -> tuple[float, int]:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        seed=recipe.seed,
        use_cpu=True,
        **settings,
    )
    names = ["input_ids", "label"] + (["length"] if settings else [])
    clock = Clock()
    contender = Trainer(
        model,
        arguments,
        train_dataset=tokens["train"].select_columns(names),
        eval_dataset=tokens["validation"].select_columns(names),
        data_collator=DataCollatorWithPadding(load_tokenizer(recipe)),
        callbacks=[clock],
    )
    contender.train()
    contender.save_model(f"{folder}/best")
    return clock.seconds, len(tokens["train"])


def grouped(*contest) -> tuple[float, int]:
    return trainer(*contest, train_sampling_strategy="group_by_length")


def ours(recipe, tokens, model, folder) -> tuple[float, int]:
    run = whole_run(model, tokens, recipe)  # in a folder of its own
    rows = len(tokens["train"])
    return rows / run.history["rows_per_second"][1], rows


CONTENDERS = {
    "letter": (letter, "plain loop, all rows padded to 512"),
    "trainer": (trainer, "transformers.Trainer"),
    "grouped": (grouped, "transformers.Trainer, group_by_length"),
    "plain": (plain, "plain loop, the batches of train()"),
    "ours": (ours, "train()"),
}


# ---- measuring them


def contest(name: str, rows: int) -> dict:
    """Measure one contender in this process: seconds on both clocks."""
    prepared = newsletter(rows)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        steps, trained = CONTENDERS[name][0](*prepared, folder)
        beside = time.perf_counter() - started - steps
    steps *= rows / trained
    return {"steps": steps, "whole": steps + beside}


def in_a_process(what: str, rows: int) -> dict:
    """Measure a contender, or the parts of a step, in a process of its own."""
    command = [sys.executable, str(HERE), "--part", what, "--rows", str(rows)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int, rows: int) -> list[dict]:
    """Measure all contenders in turn; return a line per measurement."""
    lines = []
    for number in range(1, rounds + 1):
        for name in order_of(CONTENDERS, number):
            found = in_a_process(name, rows)
            lines.append({"round": number, "contender": name} | found)
            print(
                f"round {number}  {name:8} {found['steps']:8.2f} s the steps alone, "
                f"{found['whole']:8.2f} s the whole call",
                flush=True,
            )
    return lines


def tables_of(lines: list[dict]) -> dict[str, pd.DataFrame]:
    """Compare all contenders with `train()`, once for each clock."""
    table = pd.DataFrame(lines)
    return {
        name: compared(
            table.pivot(index="round", columns="contender", values=clock), "ours"
        ).loc[list(CONTENDERS)]
        for clock, name in CLOCKS.items()
    }


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "Adam": ("aten::_fused_adam_",),
    "random numbers of dropout": ("aten::bernoulli_",),
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
    from torch.profiler import ProfilerActivity, profile

    from agnews_helpers import forward_backward
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


def draw(lines: list[dict], rows: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from agnews_helpers.plots import BLUE, SKY

    names = {
        "letter": "plain loop,\npadded to 512",
        "trainer": "Trainer",
        "grouped": "Trainer,\ngroup_by_length",
        "plain": "plain loop,\nbatches of train()",
        "ours": "train()",
    }
    plt.rcParams["font.size"] = 13  # readable on a phone, too
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for place, colour, (clock, label) in zip((-0.2, 0.2), (BLUE, SKY), CLOCKS.items()):
        seconds = pd.DataFrame(lines).groupby("contender")[clock]
        speeds = rows / seconds.agg(["median", "max", "min"]).loc[list(names)]
        spread = [speeds["median"] - speeds["max"], speeds["min"] - speeds["median"]]
        places = [place + number for number in range(len(names))]
        axes.barh(
            places,
            speeds["median"],
            0.38,
            xerr=spread,
            color=colour,
            label=label,
            error_kw={"ecolor": "#333333", "elinewidth": 1},
        )
        for where, value, most in zip(places, speeds["median"], speeds["min"]):
            axes.text(most, where, f" {value:.1f}", va="center", fontsize=12)
    axes.set_yticks(range(len(names)), names.values())
    axes.margins(x=0.15)
    axes.set_xlabel("rows per second, median and range of the rounds")
    axes.legend(frameon=False)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS, help="for training")
    parser.add_argument(
        "--output", type=Path, default=HERE.with_suffix(".json"), help="a JSON file"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work = parts if options.part == "parts" else partial(contest, options.part)
        print(json.dumps(work(options.rows)))
        return
    lines = measure(options.rounds, options.rows)
    tables, shares = tables_of(lines), in_a_process("parts", ROWS)
    data = os.environ.get("AGNEWS_DATA") and "AG News' training split"
    data = data or "the sample"
    print(f"\n{data}: {options.rows} rows, {options.rounds} rounds")
    for clock, table in tables.items():
        shown = table.rename(index={name: CONTENDERS[name][1] for name in CONTENDERS})
        print(f"\n{clock}; times: as long as train()\n{shown.round(2).to_string()}")
    print(f"\na step's time\n{pd.Series(shares).map('{:.1%}'.format).to_string()}")
    figures = {
        "data": data,
        "rows": options.rows,
        "threads": torch.get_num_threads(),
        "contenders": {name: CONTENDERS[name][1] for name in CONTENDERS},
        "rounds": lines,
        "parts": shares,
    }
    for clock, table in tables.items():
        figures[clock] = table.round(3).to_dict("index")
    text = json.dumps(figures, indent=2) + "\n"
    options.output.write_text(text, encoding="utf-8")
    draw(lines, options.rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
