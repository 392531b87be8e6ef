"""Does the classifier read the story, or who wrote it?

    AGNEWS_DATA=folder python benchmarks/shortcuts.py

`mini` is trained with each of four seeds, of which 42 is the notebooks', on 2,000 rows
that the seed draws; a twentieth of them is held out for validation. The test rows with
"(Reuters)", with "(AP)" and with a link to a stock quote are then scored twice: as they
are, and with that removed. All rows are from AG News' training split; CONTRIBUTING.md
says how to make the folder. About ten minutes on two cores. It prints a table and
writes shortcuts.json.
"""

import json
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset
from whole_run import whole_run

from agnews_helpers import (
    evaluate,
    load_data,
    load_model,
    load_tokenizer,
    recipe_for_this_machine,
    tokenize,
)

HERE = Path(__file__)
SEEDS = (42, 1, 2, 3)
# What is removed: a source in brackets, with the "Reuters - " or "AP - " after it, and
# a link to a stock quote.
TELLTALES = {
    "(Reuters)": r"\(Reuters\)|\bReuters\b",
    "(AP)": r"\(AP\)|\bAP\b",
    "link to a stock quote": r"&lt;A HREF=.*?&lt;/A&gt;",
}


def telltale(recipe, model, tokenizer, rows, name: str) -> dict:
    """Score rows that have the telltale, as they are and without it."""
    texts = [re.sub(TELLTALES[name], " ", text, flags=re.S) for text in rows["text"]]
    without = Dataset.from_dict({"text": texts, "label": rows["label"][:]})
    without = without.cast_column("label", rows.features["label"])
    without = tokenize(without, tokenizer, recipe)
    before, after = (evaluate(model, split, recipe) for split in (rows, without))
    changed = before.answers["predicted"] != after.answers["predicted"]
    return {
        "telltale": name,
        "seed": recipe.seed,
        "rows": before.rows,
        "right": int(before.confusion.to_numpy().trace()),
        "right without": int(after.confusion.to_numpy().trace()),
        "answers changed": int(changed.sum()),
    }


def measure(recipe) -> tuple[dict, list[dict]]:
    """Train once; return the test's figures, and those of each telltale."""
    tokenizer = load_tokenizer(recipe)
    tokens = tokenize(load_data(recipe), tokenizer, recipe)
    model = whole_run(load_model(recipe), tokens, recipe).model
    report = evaluate(model, tokens["test"], recipe)
    print(f"seed {recipe.seed}: {report}", flush=True)
    found = []
    for name, pattern in TELLTALES.items():
        rows = tokens["test"].filter(
            lambda row, pattern=pattern: re.search(pattern, row["text"], re.S)
        )
        if len(rows):
            found.append(telltale(recipe, model, tokenizer, rows, name))
        else:
            print(f"No test row has {name}.")
    facts = {"seed": recipe.seed, "train_rows": len(tokens["train"])}
    return facts | report.to_dict(), found


def main() -> None:
    recipe = recipe_for_this_machine(profile="offline", model="mini", train_rows=2000)
    tests, found = zip(*(measure(recipe.replace(seed=seed)) for seed in SEEDS))
    table = pd.DataFrame([line for lines in found for line in lines])
    print(table.to_string(index=False))
    facts = {"tests": tests, "telltales": table.to_dict("records")}
    HERE.with_suffix(".json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
