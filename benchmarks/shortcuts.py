"""Does the classifier read the story, or who wrote it?

    AGNEWS_DATA=folder python benchmarks/shortcuts.py

About ten minutes on two cores. `mini` is trained on 2,000 rows, of which a twentieth is
held out for validation. The test rows with "(Reuters)", with "(AP)" and with a link to
a stock quote are then scored twice: as they are, and with that removed. All rows are
from AG News' training split; CONTRIBUTING.md says how to make the folder. It prints a
table and writes shortcuts.json.
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
# What is removed: a source in brackets, with the "Reuters - " or "AP - " after it, and
# a link to a stock quote.
TELLTALES = {
    "(Reuters)": r"\(Reuters\)|\bReuters\b",
    "(AP)": r"\(AP\)|\bAP\b",
    "link to a stock quote": r"&lt;A HREF=.*?&lt;/A&gt;",
}


def main() -> None:
    recipe = recipe_for_this_machine(profile="offline", model="mini", train_rows=2000)
    tokenizer = load_tokenizer(recipe)
    tokens = tokenize(load_data(recipe), tokenizer, recipe)
    run = whole_run(load_model(recipe), tokens, recipe)
    model, test, found = run.model, tokens["test"], []
    for name, pattern in TELLTALES.items():
        rows = test.filter(
            lambda row, pattern=pattern: re.search(pattern, row["text"], re.S)
        )
        if not len(rows):
            print(f"No test row has {name}.")
            continue
        texts = [re.sub(pattern, " ", text, flags=re.S) for text in rows["text"]]
        without = Dataset.from_dict({"text": texts, "label": rows["label"][:]})
        without = without.cast_column("label", rows.features["label"])
        before, after = (
            evaluate(model, r, recipe)
            for r in (rows, tokenize(without, tokenizer, recipe))
        )
        said = [report.answers["predicted"] for report in (before, after)]
        found.append(
            {
                "telltale": name,
                "rows": before.rows,
                "accuracy": before.accuracy,
                "accuracy without": after.accuracy,
                "answers changed": float((said[0] != said[1]).mean()),
                "says Business": float((said[0] == "Business").mean()),
                "says Business without": float((said[1] == "Business").mean()),
                "confidence": float(before.answers["confidence"].mean()),
                "confidence without": float(after.answers["confidence"].mean()),
            }
        )
    everything = evaluate(model, test, recipe)
    print(pd.DataFrame(found).round(3).to_string(index=False))
    print(f"all test rows: {everything}")
    facts = {
        "train_rows": len(tokens["train"]),
        "test": everything.to_dict(),
        "telltales": found,
    }
    HERE.with_suffix(".json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
