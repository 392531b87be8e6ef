"""How does accuracy grow with the rows, and with the epochs?

    AGNEWS_DATA=folder python benchmarks/learning_curve.py

`mini`, trained or frozen, is compared with TF-IDF. It takes about three hours on two
cores and writes learning_curve.json and .png. What is in the JSON is not measured
again, so the script can be stopped at any time.

Three seeds per size, one for 24,300 rows; every seed draws its own rows. The test rows
decide nothing: each classifier is tested after its fourth epoch. The last point is that
of `long_run.py`, on all test rows.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from whole_run import whole_run

from agnews_helpers import (
    Recipe,
    load_data,
    load_model,
    load_tokenizer,
    recipe_for_this_machine,
    tokenize,
)

HERE = Path(__file__)
SEEDS, EPOCHS = (1, 2, 3), 4
SIZES = {size: SEEDS for size in (100, 300, 900, 2700, 8100)} | {24300: SEEDS[:1]}
FROZEN_SIZES = (100, 300, 900, 2700, 8100)


def rows_of(recipe: Recipe, size: int):
    """Return `size` training rows, none of them held out, and the test rows."""
    from datasets import DatasetDict, concatenate_datasets

    news = load_data(recipe.replace(train_rows=size))
    return DatasetDict(
        train=concatenate_datasets([news["train"], news["validation"]]),
        validation=news["test"],
    )


def transformer(recipe: Recipe, news) -> list[dict]:
    """Train `mini`; return its accuracy on the test rows after each epoch."""
    tokens = tokenize(news, load_tokenizer(recipe), recipe)
    # The test rows are passed as validation rows; their accuracy is only reported.
    run = whole_run(load_model(recipe), tokens, recipe)
    return [
        {
            "model": "mini",
            "rows": len(news["train"]),
            "seed": recipe.seed,
            "epoch": epoch,
            "accuracy": row.validation_accuracy,
            "train_loss": row.train_loss,
            "test_loss": row.validation_loss,
        }
        for epoch, row in run.history.iterrows()
    ]


def linear(recipe: Recipe, news) -> dict:
    """Train and test the baseline of notebook 01."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, stop_words="english"),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit(news["train"]["text"][:], news["train"]["label"][:])
    return {
        "model": "TF-IDF",
        "rows": len(news["train"]),
        "seed": recipe.seed,
        "epoch": 0,
        "accuracy": model.score(
            news["validation"]["text"][:], news["validation"]["label"][:]
        ),
    }


def cls_vectors(model, split) -> torch.Tensor:
    """Return each row's vector at [CLS], the head's input: [rows, hidden size]."""
    with torch.inference_mode():
        ids = [torch.tensor([row]) for row in split["input_ids"][:]]
        return torch.cat(
            [model.eval().base_model(one).last_hidden_state[:, 0] for one in ids]
        )


def frozen(recipe: Recipe, news) -> dict:
    """Train and test a linear head on the [CLS] vectors of the pretrained model."""
    from sklearn.linear_model import LogisticRegression

    tokens, model = tokenize(news, load_tokenizer(recipe), recipe), load_model(recipe)
    train_vectors, test_vectors = (
        cls_vectors(model, tokens[split]) for split in ("train", "validation")
    )
    head = LogisticRegression(max_iter=2000).fit(
        train_vectors, news["train"]["label"][:]
    )
    return {
        "model": "frozen",
        "rows": len(news["train"]),
        "seed": recipe.seed,
        "epoch": 0,
        "accuracy": head.score(test_vectors, news["validation"]["label"][:]),
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from agnews_helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1.3, 1)
    )
    for model, colour, marker in (
        ("TF-IDF", ORANGE, "s"),
        ("frozen", PURPLE, "^"),
        ("mini", BLUE, "o"),
    ):
        last = table[(table["model"] == model) & table["epoch"].isin((0, EPOCHS))]
        spread = 100 * last.groupby("rows")["accuracy"].agg(["mean", "min", "max"])
        name = {
            "mini": f"mini, trained ({EPOCHS} epochs)",
            "frozen": "mini frozen, linear head",
            "TF-IDF": "TF-IDF, logistic regression",
        }[model]
        ends = spread["mean"] - spread["min"], spread["max"] - spread["mean"]
        left.errorbar(
            spread.index,
            spread["mean"],
            ends,
            color=colour,
            marker=marker,
            capsize=3,
            label=name,
        )
    sizes = sorted(table["rows"].unique())
    left.set(
        xscale="log",
        xlabel="training rows",
        ylabel="% of the test rows right",
        title="Mean and range of the seeds",
    )
    left.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
    left.minorticks_off()
    left.legend(frameon=False, loc="lower right")
    epochs = (
        table[table["model"] == "mini"]
        .groupby(["rows", "epoch"])["accuracy"]
        .mean()
        .mul(100)
        .unstack("rows")
    )
    for (size, values), colour, marker in zip(
        epochs.items(), (SKY, PURPLE, GREEN, ORANGE, RED, BLUE, GREY), "os^vD*P"
    ):
        right.plot(
            values.index, values, color=colour, marker=marker, label=f"{size:,} rows"
        )
    right.legend(frameon=False, loc="lower right")
    right.set(
        xlabel="epoch", xticks=epochs.index, title="After each epoch, mean of the seeds"
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def long_run() -> list[dict]:
    """Return the last point of both lines, from the results of `long_run.py`."""
    path = HERE.with_name("long_run.json")
    if not path.exists():
        return []
    run = json.loads(path.read_text(encoding="utf-8"))
    same = {"rows": run["train_rows"], "seed": 42}
    mini = [
        same | {"model": "mini", "epoch": e["epoch"], "accuracy": e["accuracy"]}
        for e in run["tested"]
    ]
    return [
        *mini,
        same | {"model": "TF-IDF", "epoch": 0, "accuracy": run["tfidf_accuracy"]},
    ]


def measure(path: Path, test_rows: int) -> None:
    """Train what is missing in the JSON; every size with the first seed first."""
    figures = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"lines": []}
    )
    done = {(line["model"], line["rows"], line["seed"]) for line in figures["lines"]}
    for seed, size in product(SEEDS, SIZES):
        wanted = {"TF-IDF": linear} | (
            {"frozen": frozen} if size in FROZEN_SIZES else {}
        )
        wanted |= {"mini": transformer} if seed in SIZES[size] else {}
        wanted = {
            name: method
            for name, method in wanted.items()
            if (name, size, seed) not in done
        }
        recipe = recipe_for_this_machine(
            profile="offline", seed=seed, test_rows=test_rows
        )
        news = rows_of(recipe, size) if wanted else None
        for name, method in wanted.items():
            found = method(recipe, news)
            figures["lines"] += found if isinstance(found, list) else [found]
            figures["test_rows"] = test_rows
            path.write_text(json.dumps(figures, indent=1), encoding="utf-8")
            accuracy = figures["lines"][-1]["accuracy"]
            print(f"{size:6,} rows, seed {seed}: {name} {accuracy:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test-rows", type=int, default=1_000)
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="only draw the figure again, from the JSON",
    )
    options = parser.parse_args()
    path = HERE.with_suffix(".json")
    if not options.redraw:
        measure(path, options.test_rows)
    figures = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(figures["lines"] + long_run())
    draw(table, HERE.with_suffix(".png"))
    last = table[table["epoch"].isin((0, EPOCHS))].pivot_table(
        "accuracy", "rows", "model", ["mean", "count"]
    )
    print(last.round(3).to_string())


if __name__ == "__main__":
    main()
