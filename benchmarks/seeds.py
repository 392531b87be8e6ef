"""Do the CPU's own kernels, or bf16, change how good the classifier becomes? Four epochs, three seeds, three ways.

    python benchmarks/seeds.py             about eight minutes; prints a table, writes seeds.json beside this file
"""
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from agnews_helpers import Recipe, evaluate, load_agnews, load_model, load_tokenizer, tokenize, train
from agnews_helpers.mini import mini_model
from agnews_helpers.model import ID2LABEL, LABEL2ID

WAYS = {"PyTorch's dropout and attention": dict(stock=True, precision="fp32"), "train() as it is": dict(stock=False, precision="fp32"),
        "train(), bf16": dict(stock=False, precision="bf16")}


def stock_model(seed: int):
    """The model that `load_model` makes, left as `transformers` has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mini_model(num_labels=4, id2label=ID2LABEL, label2id=LABEL2ID)


def main() -> None:
    lines = []
    for seed in (1, 2, 3):
        for way, choice in WAYS.items():
            recipe = Recipe(profile="offline", model="mini", data="sample", seed=seed, precision=choice["precision"])
            tokens = tokenize(load_agnews(recipe), load_tokenizer(recipe), recipe)
            model, started = stock_model(seed) if choice["stock"] else load_model(recipe), time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                run = train(model, tokens, recipe, folder)
            report = evaluate(run.model, tokens["test"], recipe)
            low, high = report.interval
            lines.append({"seed": seed, "way": way, "accuracy": report.accuracy, "low": low, "high": high, "loss": report.loss, "epoch_kept": run.best_epoch,
                          "minutes": (time.perf_counter() - started) / 60})
            print(f"seed {seed}  {way:32} {report}", flush=True)
    table = pd.DataFrame(lines)
    print("\n", table.groupby("way", sort=False)[["accuracy", "loss", "minutes"]].agg(["mean", "min", "max"]).round(3).to_string(), sep="")
    Path(__file__).with_suffix(".json").write_text(json.dumps(table.round(4).to_dict("records"), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
