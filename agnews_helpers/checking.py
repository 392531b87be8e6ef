"""What is wrong with labelled texts, and what to train them with: ``agnews check``."""

from pathlib import Path

import pandas as pd
from datasets import Dataset

from .batching import tokenize
from .data import read_source
from .model import load_tokenizer
from .plumbing.errors import SaveError, check_types
from .plumbing.storage import save_text
from .recipe import Recipe

FEW_STEPS = 300  # a run of fewer hardly moves a new head at 2e-5: see notebook 07
UNEQUAL = 4  # times as many rows of one class as of another
MODEL_TOKENS = 512  # most that DistilBERT and BERT take


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
        Plain values, for JSON: ``notes``; ``rows`` by split and ``problems``;
        ``classes``, with their rows by split; ``tokens``; ``equal_texts``;
        ``suggestions``, a flag of ``agnews train`` -> the reason for it.

    Raises
    ------
    DataError
        If there is no training file, or a file cannot be read at all.
    SaveError
        If `target` exists.
    """
    source = read_source(recipe)
    problems = pd.concat(
        texts.problems().assign(file=texts.path.name) for texts in source.files.values()
    )
    usable = pd.concat({split: source.usable(split) for split in source.files})
    usable = usable.reset_index(level=0, names="split")
    names = dict(enumerate(source.names))
    usable["label"] = usable["label"].map(names)
    if target:
        _write(target, usable, problems)
    counts = pd.crosstab(usable["label"], usable["split"])
    tokens = _tokens(usable, recipe)
    return {
        "notes": source.notes,
        "rows": {
            split: {"used": int(counts[split].sum()), "not used": len(texts.problems())}
            for split, texts in source.files.items()
        },
        "problems": source.problems(),
        "classes": counts.reindex(source.names).to_dict("index"),
        "tokens": tokens,
        "equal_texts": _equal_texts(usable),
        "suggestions": _suggestions(counts["train"], tokens, recipe),
    }


def _write(target, usable, problems):
    """Write the usable rows of each split, and the others with their reasons."""
    if target.exists():
        raise SaveError(f"{target} must be the name of a new folder.")
    target.mkdir(parents=True)
    for split, rows in usable.groupby("split"):
        table = rows[["label", "text"]].to_csv(index=False, lineterminator="\n")
        save_text(target / f"{split}.csv", table)
    save_text(target / "unused.csv", problems.to_csv(index=False, lineterminator="\n"))


def _tokens(usable, recipe):
    """Count the tokens of all texts, and those that are cut."""
    rows = Dataset.from_dict({"text": [*usable["text"]]})
    whole = recipe.replace(max_length=8192)
    lengths = pd.Series(tokenize(rows, load_tokenizer(recipe), whole)["length"][:])
    return {
        "median": int(lengths.median()),
        "longest": int(lengths.max()),
        "max_length": recipe.max_length,
        "cut": int((lengths > recipe.max_length).sum()),
    }


def _equal_texts(usable):
    """Count texts that occur twice in a split, in two splits, or with two labels."""
    by_text = usable.groupby("text")
    splits = by_text["split"]
    return {
        "within a split": int(usable.duplicated(["split", "text"]).sum()),
        "in two splits": int((splits.nunique() > 1).sum()),
        "with two labels": int((by_text["label"].nunique() > 1).sum()),
    }


def _suggestions(counts, tokens, recipe):
    """Suggest flags of `agnews train`, each with the reason."""
    flags = {}
    if counts.max() >= UNEQUAL * counts.min():
        flags["--class-weights balanced"] = (
            f"{counts.idxmax()} has {counts.max():,} rows, {counts.idxmin()} "
            f"{counts.min():,}"
        )
    steps = recipe.epochs * -(-counts.sum() // recipe.batch_size)
    if steps < FEW_STEPS:
        flags["--learning-rate 1e-4"] = f"{steps:,} steps are few for 2e-5"
    if tokens["cut"] and recipe.max_length < MODEL_TOKENS:
        longest = min(MODEL_TOKENS, tokens["longest"])
        flags[f"--max-length {longest}"] = f"{tokens['cut']:,} texts are cut"
    return flags


def print_check(figures: dict) -> None:
    """Print what `check_data` found.

    Parameters
    ----------
    figures : dict
        From `check_data`.
    """
    print(*figures["notes"], sep="\n")
    for split, rows in figures["rows"].items():
        read = sum(rows.values())
        print(
            f"{split}: {read:,} rows read, {rows['used']:,} used, "
            f"{rows['not used']:,} not"
        )
    print(*figures["problems"], sep="\n")
    print()
    print(pd.DataFrame(figures["classes"]).T.to_string())
    print(
        "\ntokens     {median} in the middle, at most {longest}; {cut:,} texts have "
        "more than {max_length} and are cut".format(**figures["tokens"])
    )
    equal = (f"{n:,} {where}" for where, n in figures["equal_texts"].items())
    print(f"equal      texts: {', '.join(equal)}")
    for flag, reason in figures["suggestions"].items():
        print(f"suggested  {flag}: {reason}")
