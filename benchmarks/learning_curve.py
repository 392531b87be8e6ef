"""How does accuracy grow with the rows, and with the epochs?

    AGNEWS_DATA=folder python benchmarks/learning_curve.py

`mini`, trained or frozen, is compared with TF-IDF. All rows, those of the test too, are
drawn from AG News' training split; CONTRIBUTING.md says how to make the folder. Of the
frozen model a linear head reads the vector at [CLS], as a classifier of DistilBERT
does, or the mean of all vectors, for which MiniLM was made.

Three seeds per size, for `mini` one with 24,300 rows; every seed draws its own rows.
The test rows decide nothing: what is told is what the fourth epoch has. The last point
is that of `long_run.py`, on all test rows. About three hours on two cores, ten minutes
of it for the frozen model. It writes learning_curve.json and .png. What is in the JSON
is not measured again, so the script can be stopped at any time. The stored lines of
`mini` were made before `train()` became plain PyTorch: dropout then drew other numbers.
"""

import argparse
import json
from functools import partial
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
    make_loader,
    recipe_for_this_machine,
    sorted_batches,
    tokenize,
)

HERE = Path(__file__)
SEEDS, EPOCHS = (1, 2, 3), 4
SIZES = {size: SEEDS for size in (100, 300, 900, 2700, 8100)} | {24300: SEEDS[:1]}
FROZEN_SIZES = (100, 300, 900, 2700, 8100)
FROZEN = {"frozen": "[CLS]", "frozen, mean": "mean"}  # model -> what the head reads


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


@torch.inference_mode()
def vectors(model, split, recipe: Recipe, pooling: str) -> torch.Tensor:
    """Return a vector of each row: the one at [CLS], or the mean of all its tokens'.

    Shape [rows, hidden size]. Padding does not count.
    """
    batches = sorted_batches(split["length"][:])
    found = torch.zeros(len(split), model.config.dim)
    model.eval()
    for indices, batch in zip(batches, make_loader(split, batches, recipe)):
        mask = batch["attention_mask"]
        outputs = model.base_model(batch["input_ids"], mask).last_hidden_state
        if pooling == "mean":
            weights = mask[:, :, None] / mask.sum(dim=1)[:, None, None]
            found[indices] = (outputs * weights).sum(dim=1)
        else:
            found[indices] = outputs[:, 0]
    return found


def frozen(recipe: Recipe, news, name: str) -> dict:
    """Train and test a linear head on the vectors of the pretrained model."""
    from sklearn.linear_model import LogisticRegression

    tokens, model = tokenize(news, load_tokenizer(recipe), recipe), load_model(recipe)
    train_vectors, test_vectors = (
        vectors(model, tokens[split], recipe, FROZEN[name])
        for split in ("train", "validation")
    )
    head = LogisticRegression(max_iter=2000).fit(
        train_vectors, news["train"]["label"][:]
    )
    return {
        "model": name,
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
    for model, name, colour, marker in (
        ("TF-IDF", "TF-IDF, logistic regression", ORANGE, "s"),
        ("frozen", "mini frozen, linear head on [CLS]", GREY, "v"),
        ("frozen, mean", "mini frozen, linear head on the mean", PURPLE, "^"),
        ("mini", f"mini, trained ({EPOCHS} epochs)", BLUE, "o"),
    ):
        last = table[(table["model"] == model) & table["epoch"].isin((0, EPOCHS))]
        spread = 100 * last.groupby("rows")["accuracy"].agg(["mean", "min", "max"])
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


def measure(path: Path, sizes: list[int], test_rows: int) -> None:
    """Train what is missing in the JSON; every size with the first seed first."""
    figures = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"lines": []}
    )
    done = {(line["model"], line["rows"], line["seed"]) for line in figures["lines"]}
    for seed, size in product(SEEDS, sizes):
        wanted = {"TF-IDF": linear}
        if size in FROZEN_SIZES:
            wanted |= {name: partial(frozen, name=name) for name in FROZEN}
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
        "--sizes", type=int, nargs="+", choices=SIZES, default=[*SIZES], metavar="ROWS"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE.with_suffix(".json"), help="a JSON file"
    )
    parser.add_argument(
        "--redraw",
        action="store_true",
        help="only draw the figure again, from the JSON",
    )
    options = parser.parse_args()
    path = options.output
    if not options.redraw:
        measure(path, options.sizes, options.test_rows)
    figures = json.loads(path.read_text(encoding="utf-8"))
    table = pd.DataFrame(figures["lines"] + long_run())
    draw(table, path.with_suffix(".png"))
    last = table[table["epoch"].isin((0, EPOCHS))].pivot_table(
        "accuracy", "rows", "model", ["mean", "count"]
    )
    print(last.round(3).to_string())


if __name__ == "__main__":
    main()
