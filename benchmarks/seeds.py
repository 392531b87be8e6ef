"""Does bf16 change how good the classifier becomes?

    python benchmarks/seeds.py

Four epochs with three seeds each, about eight minutes. It prints a table and writes
seeds.json.
"""

import json
import time
from pathlib import Path

import pandas as pd
from whole_run import whole_run

from agnews_helpers import (
    Recipe,
    evaluate,
    load_data,
    load_model,
    load_tokenizer,
    tokenize,
)

WAYS = {"train() as it is": "fp32", "train(), bf16": "bf16"}


def main() -> None:
    lines = []
    for seed in (1, 2, 3):
        for way, precision in WAYS.items():
            recipe = Recipe(
                profile="offline",
                model="mini",
                data="sample",
                seed=seed,
                precision=precision,
            )
            tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
            started = time.perf_counter()
            run = whole_run(load_model(recipe), tokens, recipe)
            report = evaluate(run.model, tokens["test"], recipe)
            low, high = report.interval
            lines.append(
                {
                    "seed": seed,
                    "way": way,
                    "accuracy": report.accuracy,
                    "low": low,
                    "high": high,
                    "loss": report.loss,
                    "epoch_kept": run.best_epoch,
                    "minutes": (time.perf_counter() - started) / 60,
                }
            )
            print(f"seed {seed}  {way:32} {report}", flush=True)
    table = pd.DataFrame(lines)
    print(
        "\n",
        table.groupby("way", sort=False)[["accuracy", "loss", "minutes"]]
        .agg(["mean", "min", "max"])
        .round(3)
        .to_string(),
        sep="",
    )
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(table.round(4).to_dict("records"), indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
