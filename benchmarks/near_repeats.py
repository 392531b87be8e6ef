"""The same story twice: how many test rows of AG News have a near twin in train, and whose label differs?

    AGNEWS_DATA=folder python benchmarks/near_repeats.py

Under a minute. It prints the figures of notebook 06 and writes near_repeats.json. Texts are compared by their
sets of words, in small letters and without sources in brackets; twins share 80 % of their words or more.
"""

import json
from collections import Counter
from pathlib import Path

from agnews_helpers import (
    LABELS,
    load_data,
    near_repeats,
    recipe_for_this_machine,
)

HERE = Path(__file__)


def main() -> None:
    news = load_data(recipe_for_this_machine(profile="offline", validation_share=0.01))
    train = {
        key: news["train"][key][:] + news["validation"][key][:]
        for key in ("text", "label")
    }
    test = {key: news["test"][key][:] for key in ("text", "label")}
    looked, pairs = near_repeats(train["text"], test["text"], seconds=600)
    labels = [(test["label"][here], train["label"][there]) for here, there in pairs]
    other = Counter(
        " and ".join(sorted((LABELS[a], LABELS[b]))) for a, b in labels if a != b
    )
    figures = {
        "train_rows": looked,
        "test_rows": len(test["text"]),
        "near_twins": len(pairs),
        "with_another_label": other.total(),
        "labels_of_those": dict(other.most_common()),
    }
    print(*(f"{name:20} {value}" for name, value in figures.items()), sep="\n")
    print(
        f"of twins {other.total() / len(pairs):.1%} differ; if both err alike, half of that are wrong labels"
    )
    HERE.with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
