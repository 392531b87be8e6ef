"""How does accuracy grow with the rows, and with the epochs? `mini`, trained or frozen, beside TF-IDF.

    AGNEWS_DATA=folder python benchmarks/learning_curve.py

It takes about half an hour on two cores and writes learning_curve.json and .png.

Three seeds each; every seed draws its own rows. Nothing is chosen by the test rows: a classifier counts as it
is after its fourth epoch.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch

from agnews_helpers import Recipe, load_data, load_model, load_tokenizer, tokenize, train

HERE = Path(__file__)
SIZES, SEEDS = (100, 300, 900), (1, 2, 3)
FROZEN_SIZES = (*SIZES, 2700, 8100)
LINEAR_SIZES = (*FROZEN_SIZES, 24300)
EPOCHS = 4


def rows_of(recipe: Recipe, size: int):
    """`size` rows to train on, none of them held out, and the test rows."""
    from datasets import DatasetDict, concatenate_datasets

    news = load_data(recipe.but(train_rows=size))
    return DatasetDict(
        train=concatenate_datasets([news["train"], news["validation"]]), validation=news["test"]
    )


def transformer(recipe: Recipe, news) -> list[dict]:
    """Accuracy on the test rows after each epoch."""
    tokens = tokenize(news, load_tokenizer(recipe), recipe)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # what train() calls validation are the test rows: only looked at
        run = train(load_model(recipe), tokens, recipe, folder)
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
    """The baseline of notebook 01."""
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
        "accuracy": model.score(news["validation"]["text"][:], news["validation"]["label"][:]),
    }


def cls_vectors(model, rows) -> torch.Tensor:
    """What the head reads of each row, its vector at [CLS]: shape [rows, hidden size]."""
    with torch.inference_mode():
        ids = [torch.tensor([row]) for row in rows["input_ids"][:]]
        return torch.cat([model.eval().base_model(one).last_hidden_state[:, 0] for one in ids])


def frozen(recipe: Recipe, news) -> dict:
    """A linear head on the vectors at [CLS] of the model as it was loaded."""
    from sklearn.linear_model import LogisticRegression

    tokens, model = tokenize(news, load_tokenizer(recipe), recipe), load_model(recipe)
    train_vectors, test_vectors = (cls_vectors(model, tokens[split]) for split in ("train", "validation"))
    head = LogisticRegression(max_iter=2000).fit(train_vectors, news["train"]["label"][:])
    return {
        "model": "frozen",
        "rows": len(news["train"]),
        "seed": recipe.seed,
        "epoch": 0,
        "accuracy": head.score(test_vectors, news["validation"]["label"][:]),
    }


def draw(table: pd.DataFrame, test_rows: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from agnews_helpers.plots import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1.3, 1))
    for model, colour, marker in (("TF-IDF", ORANGE, "s"), ("frozen", PURPLE, "^"), ("mini", BLUE, "o")):
        last = table[(table["model"] == model) & table["epoch"].isin((0, EPOCHS))]
        spread = 100 * last.groupby("rows")["accuracy"].agg(["mean", "min", "max"])
        name = {
            "mini": f"mini, trained ({EPOCHS} epochs)",
            "frozen": "mini frozen, linear head",
            "TF-IDF": "TF-IDF, logistic regression",
        }[model]
        left.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.25, linewidth=0)
        left.plot(spread.index, spread["mean"], color=colour, marker=marker, label=name)
    sizes = sorted(table["rows"].unique())
    left.set(
        xscale="log",
        xlabel="training rows",
        ylabel=f"% of {test_rows:,} test rows right",
        title="Mean and range of three seeds",
    )
    left.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
    left.minorticks_off()
    left.legend(frameon=False, loc="lower right")
    epochs = (
        table[table["model"] == "mini"].groupby(["rows", "epoch"])["accuracy"].mean().mul(100).unstack("rows")
    )
    for (size, values), colour, marker in zip(
        epochs.items(), (SKY, PURPLE, GREEN, ORANGE, RED, BLUE), "os^vD*"
    ):
        right.plot(values.index, values, color=colour, marker=marker, label=f"{size:,} rows")
    right.legend(frameon=False, loc="lower right")
    right.set(xlabel="epoch", xticks=epochs.index, title="After each epoch, mean of three seeds")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test-rows", type=int, default=1_000)
    parser.add_argument("--redraw", action="store_true", help="only draw the figure again, from the JSON")
    options = parser.parse_args()
    lines = []
    for size in LINEAR_SIZES if not options.redraw else ():
        for seed in SEEDS:
            recipe = Recipe.for_this_machine(profile="offline", seed=seed, test_rows=options.test_rows)
            news = rows_of(recipe, size)
            found = [
                linear(recipe, news),
                *([frozen(recipe, news)] if size in FROZEN_SIZES else []),
                *(transformer(recipe, news) if size in SIZES else []),
            ]
            lines += found
            print(
                f"{size:6,} rows, seed {seed}:",
                *(f"{line['model']} {line['accuracy']:.3f}" for line in found),
                flush=True,
            )
        HERE.with_suffix(".json").write_text(
            json.dumps({"test_rows": options.test_rows, "lines": lines}, indent=1), encoding="utf-8"
        )
    figures = json.loads(HERE.with_suffix(".json").read_text(encoding="utf-8"))
    draw(pd.DataFrame(figures["lines"]), figures["test_rows"], HERE.with_suffix(".png"))


if __name__ == "__main__":
    main()
