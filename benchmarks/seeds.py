"""How much does the seed decide? And does bf16 change how good the classifier becomes?

    python benchmarks/seeds.py

`train()` with `mini` on the sample, as notebook 05 does: four epochs with each of four
seeds, of which 42 is the notebooks', in fp32 and in bf16. The seed draws the validation
rows, the head's first weights, the order and dropout; the 200 test rows are the same.
About five minutes on two cores. It prints mean and range of the seeds, and writes
seeds.json.
"""

import argparse
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

SEEDS, PRECISIONS = (1, 2, 3, 42), ("fp32", "bf16")


def measure(recipe: Recipe) -> dict:
    """Train and test once."""
    tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
    started = time.perf_counter()
    run = whole_run(load_model(recipe), tokens, recipe)
    minutes = (time.perf_counter() - started) / 60
    report = evaluate(run.model, tokens["test"], recipe)
    low, high = report.interval
    print(f"seed {recipe.seed}  {recipe.precision}  {report}", flush=True)
    return {
        "seed": recipe.seed,
        "precision": recipe.precision,
        "accuracy": report.accuracy,
        "low": low,
        "high": high,
        "loss": report.loss,
        "epoch_kept": run.best_epoch,
        "minutes": minutes,
    }


def spread_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Tabulate mean, least and most of the seeds, a row per precision."""
    names = ["accuracy", "loss", "minutes"]
    spread = runs.groupby("precision", sort=False)[names].agg(["mean", "min", "max"])
    spread.columns = [f"{name}_{how}" for name, how in spread.columns]
    return spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--train-rows", type=int, help="default: all 400")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    options = parser.parse_args()
    recipe = Recipe(
        profile="offline", model="mini", data="sample", train_rows=options.train_rows
    )
    runs = pd.DataFrame(
        measure(recipe.replace(seed=seed, precision=precision))
        for seed in options.seeds
        for precision in PRECISIONS
    )
    spread = spread_of(runs)
    print(f"\n{spread.T.round(3).to_string()}")
    figures = {
        "spread": spread.round(4).to_dict("index"),
        "runs": runs.round(4).to_dict("records"),
    }
    text = json.dumps(figures, indent=2) + "\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
