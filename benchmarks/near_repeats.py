"""The same story twice: how many test rows have a near twin in train?

    AGNEWS_DATA=folder python benchmarks/near_repeats.py

Under a minute. It prints the figures of the lesson on near repeats, also how many
twins carry different labels, and writes near_repeats.json. All rows are from AG News'
training split; CONTRIBUTING.md says how to make the folder. Texts are compared by their
sets of words, in small letters and without sources in brackets; twins share 80 % of
their words or more (Jaccard).
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from agnews_helpers import LABELS, load_data, recipe_for_this_machine

HERE = Path(__file__)
ALIKE = 0.8  # words in both texts, as a share of the words in either
BLOCK = (
    200  # test rows at a time, which bounds the memory (8 million pairs with 40,000)
)


def plain(text: str) -> str:
    """Write a text in small letters, without sources in brackets such as (Reuters)."""
    return re.sub(r"\([^()]*\)", " ", text.lower())


def near_repeats(
    train_texts: list[str], test_texts: list[str]
) -> list[tuple[int, int]]:
    """Find the nearest training text of each test text, if their words are `ALIKE`.

    Parameters
    ----------
    train_texts : list of str
        The training texts.
    test_texts : list of str
        The test texts.

    Returns
    -------
    list of tuple of int and int
        Indices of a test text and of its nearest training text; of several equally
        near the first. Equal texts are no near repeats.
    """
    vectorizer = CountVectorizer(
        binary=True, preprocessor=plain, token_pattern=r"\w+", dtype=np.int32
    )
    words = vectorizer.fit_transform([*train_texts, *test_texts])
    sizes = np.asarray(words.sum(axis=1)).ravel()
    train_words, test_words = words[: len(train_texts)], words[len(train_texts) :]
    nearest = {}
    for start in range(0, len(test_texts), BLOCK):
        shared = (test_words[start : start + BLOCK] @ train_words.T).tocoo()
        tests, trains, n_shared = shared.row + start, shared.col, shared.data
        n_words = sizes[tests + len(train_texts)] + sizes[trains] - n_shared
        similarity = n_shared / n_words
        alike = similarity >= ALIKE
        for _, train, test in sorted(
            zip(-similarity[alike], trains[alike], tests[alike])
        ):
            if test_texts[test] != train_texts[train]:
                nearest.setdefault(int(test), int(train))
    return sorted(nearest.items())


def main() -> None:
    """Print the figures and write them beside this file."""
    news = load_data(recipe_for_this_machine(profile="offline", validation_share=0.01))
    train = {
        key: news["train"][key][:] + news["validation"][key][:]
        for key in ("text", "label")
    }
    test = {key: news["test"][key][:] for key in ("text", "label")}
    pairs = near_repeats(train["text"], test["text"])
    labels = [(test["label"][i], train["label"][j]) for i, j in pairs]
    other = Counter(
        " and ".join(sorted((LABELS[a], LABELS[b]))) for a, b in labels if a != b
    )
    figures = {
        "train_rows": len(train["text"]),
        "test_rows": len(test["text"]),
        "near_twins": len(pairs),
        "with_another_label": other.total(),
        "labels_of_those": dict(other.most_common()),
    }
    print(*(f"{name:20} {value}" for name, value in figures.items()), sep="\n")
    differ = other.total() / len(pairs)
    print(
        f"{differ:.1%} of the twins differ; if both err alike, half of these are wrong"
    )
    HERE.with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
