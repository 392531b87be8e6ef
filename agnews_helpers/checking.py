"""What is wrong with labelled texts, and what to train them with: ``agnews check``."""

import csv
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset

from .batching import tokenize
from .data import plain_texts, read_source
from .model import load_tokenizer
from .plumbing.errors import check_types
from .plumbing.storage import save_text
from .recipe import Recipe

# 104 steps at 2e-5 left a head of five classes at 45 %, at 1e-4 they reached 59 %
# (notebook 09 and its first exercise); 152 steps at 2e-5 sufficed for four equal
# classes (benchmarks/learning_curve.json).
FEW_STEPS = 150
UNEQUAL = 4  # times as many rows of one class as of another


@check_types
def check_data(recipe: Recipe, target: Path | None = None) -> dict:
    """Find out all that is wrong with labelled texts, and what fits them.

    Parameters
    ----------
    recipe : Recipe
        Its `data` and columns are read; `model`, `max_length`, `batch_size` and
        `epochs` are what they would be trained with.
    target : Path, optional
        A new folder for the usable rows, as `load_data` reads them, and for
        ``unused.csv``, the others with their reasons.

    Returns
    -------
    dict
        Plain values, for JSON: ``notes``; ``problems``; ``classes``, with their rows by
        split; ``tokens``; ``equal_texts``, where the rows of each stand, those with
        two labels first; ``suggestions``, a flag of ``agnews train`` or other advice ->
        the reason for it.

    Raises
    ------
    DataError
        If there is no training file, or a file cannot be read at all.
    FileExistsError
        If `target` exists.
    """
    source = read_source(recipe)
    usable = pd.concat(source.usable()).reset_index(0, names="split")
    usable["label"] = usable["label"].map(dict(enumerate(source.names)))
    counts = pd.crosstab(usable["label"], usable["split"]).reindex(
        index=source.names, columns=[*source.files], fill_value=0
    )
    _, problems = source.split(recipe)
    tokens = _tokens(usable, recipe)
    if target:
        _write(target, source, usable)
    return {
        "notes": source.notes,
        "problems": problems,
        "classes": counts.to_dict("index"),
        "tokens": tokens,
        "equal_texts": _equal_texts(usable),
        "suggestions": _suggestions(counts["train"], tokens, recipe),
    }


def _write(target, source, usable):
    """Write the usable rows of each split, and the others with their reasons."""
    target.mkdir(parents=True)
    unused = [
        texts.problems.assign(file=texts.path.name) for texts in source.files.values()
    ]
    tables = {"unused": pd.concat(unused)}
    texts = source.files["train"].columns[1]
    text = "text" if texts[1:] else texts[0]  # by which predict knows it again
    for split, rows in usable.groupby("split"):
        tables[split] = rows[["label", "text"]].rename(columns={"text": text})
    for name, table in tables.items():
        table.to_csv(
            target / f"{name}.csv",
            index=False,
            # All quoted: elsewhere a lone \r would be read as the end of a row.
            quoting=csv.QUOTE_ALL,
            lineterminator="\n",
            # Half a character can be a reason not to use a row.
            errors="backslashreplace",
        )
    save_text(target / "classes.txt", "\n".join(source.names))


def _tokens(usable, recipe):
    """Count the tokens of all texts, and those that are cut."""
    rows = Dataset.from_dict({"text": usable["text"]})
    tokens = tokenize(rows, load_tokenizer(recipe), recipe.replace(max_length=8192))
    lengths = pd.Series(tokens["length"][:])
    return {
        "median": int(lengths.median()),
        "longest": int(lengths.max()),
        "max_length": recipe.max_length,
        "cut": int((lengths > recipe.max_length).sum()),
    }


def _equal_texts(usable):
    """Say where texts stand that occur twice (nine places), and their labels."""
    rows = usable.assign(text=plain_texts(usable))
    rows["place"] = rows["split"] + " " + rows.index.map(str) + " " + rows["label"]
    equal = rows[rows["text"].duplicated(keep=False)].groupby("text", sort=False)
    found = equal.agg({"place": lambda at: " = ".join(at[:9]), "label": "nunique"})
    found = found.sort_values("label", ascending=False, kind="stable")
    return found["place"].tolist()


def _suggestions(counts, tokens, recipe):
    """Suggest flags of `agnews train`, each with the reason."""
    flags = {}
    if counts.max() >= UNEQUAL * counts.min():
        flags["--class-weights balanced"] = (
            f"{counts.idxmax()} has {counts.max():,} rows, {counts.idxmin()} "
            f"{counts.min():,}"
        )
    for name in counts.index:
        parts = {*re.split(r"\s*[|;,/]\s*", name)}
        if name not in parts and parts < {*counts.index}:
            flags["one label per text"] = f"such as {name!r}, which is now a class"
    steps = recipe.epochs * -(-counts.sum() // recipe.batch_size)
    if steps < FEW_STEPS:
        flags["--learning-rate 1e-4"] = f"at most {steps:,} steps, few for 2e-5"
    longest = min(512, tokens["longest"])  # DistilBERT's and BERT's most
    if longest > recipe.max_length:
        flags[f"--max-length {longest}"] = f"{tokens['cut']:,} texts are cut"
    return flags


def print_check(figures: dict) -> None:
    """Print what `check_data` found.

    Parameters
    ----------
    figures : dict
        From `check_data`.
    """
    print(*figures["notes"], *figures["problems"], sep="\n")
    print(f"\n{pd.DataFrame(figures['classes']).T.to_string()}\n")
    tokens = figures["tokens"]
    print(
        f"tokens     median {tokens['median']}, longest {tokens['longest']} "
        f"(counted up to 8192); texts cut at {tokens['max_length']}: {tokens['cut']:,}"
    )
    equal = figures["equal_texts"]
    print(f"equal      {len(equal):,} texts occur twice or more")
    print(*equal[:20], sep="\n")
    for flag, reason in figures["suggestions"].items():
        print(f"suggested  {flag}: {reason}")
