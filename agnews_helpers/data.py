"""Load labelled texts from the Hub, a folder or the sample; check and split them."""

import hashlib
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import hf_hub_download

from .plumbing.errors import DataError, check_types
from .plumbing.hub import FILES, from_hub
from .plumbing.tables import (
    decode_file,
    find_table,
    plain_label,
    read_texts,
    row_error,
    written_label,
)
from .profiles import PROFILES
from .recipe import HUB_DATA, LABELS, Recipe

# 600 rows in the layout of AG News
SAMPLE = Path(__file__).parent / "sample"
# 300 messages to a web shop: five classes of unequal size
SUPPORT = Path(__file__).parent / "support"
# The layouts in which AG News is published with numbers for its classes.
AG_NEWS_COLUMNS = (
    ["class index", "title", "description"],
    ["column 1", "column 2", "column 3"],  # without a header
)
# A label on fewer training rows looks like a typing error.
MIN_ROWS_PER_CLASS = 4


@check_types
def load_data(recipe: Recipe) -> DatasetDict:
    """Load the texts of a recipe as ``train``, ``validation`` and ``test``.

    Each split has ``text`` and ``label``, whose feature holds the names of the
    classes: World, Sports, Business and Sci/Tech for AG News. Of the training rows
    `recipe.validation_share` is held out for validation, the same share of each
    class. If a folder has no test file, about a tenth of the training rows is held
    out as test before that. What was found out about a folder, and how many texts
    occur in two splits, is printed.

    Parameters
    ----------
    recipe : Recipe
        Where the data is, and how many rows are used.

    Returns
    -------
    DatasetDict
        The three splits.

    Raises
    ------
    DataError
        If a folder or file is missing, a row is malformed, a label is unknown, a
        class has too few rows, or there are fewer rows than the recipe asks for.
    HubUnreachable
        If the Hub fails for any reason.
    """
    if recipe.data == HUB_DATA:
        names = LABELS
        train, test = _read_hub()
    else:
        names, train, test = _read_folder(recipe)
    train = _draw("train", train, recipe.train_rows, recipe)
    test = _draw("test", test, recipe.test_rows, recipe)
    return _split(train, test, names, recipe)


def _read_hub():
    """Read both splits of the public data set, from the Hub or its local cache."""

    def load(**options):
        return [
            pd.read_parquet(
                hf_hub_download(HUB_DATA, name, repo_type="dataset", **options),
                columns=["text", "label"],
            )
            for name in FILES["data"]
        ]

    return from_hub(HUB_DATA, load)


def _read_folder(recipe):
    """Read the classes, train and test. The training file decides what labels mean."""
    folder = SAMPLE if recipe.data == "sample" else Path(recipe.data).expanduser()
    path = find_table(folder, "train") if folder.is_dir() else None
    if path is None:
        raise DataError(
            f"{folder} is no folder with a training file. --data (AGNEWS_DATA) must "
            "name one with train.csv and, if there is one, test.csv (or .tsv, .jsonl, "
            ".parquet), each one whole file."
        )
    columns = recipe.label_column, recipe.text_columns
    read = read_texts(path, *columns)
    names = _listed_classes(folder) or _classes(read)
    coding = _coding(read, names)
    train = _decode(read, coding)
    if recipe.data != "sample":
        counts = Counter(train["label"])
        sizes = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(names))
        print(f"{path.name} · {read.layout} · {len(names)} classes: {sizes}")
    unused = find_table(folder, "(validation|valid|val|dev)")
    if unused:
        print(f"note: {unused.name} is not used; a share of {path.name} validates.")
    test_path = find_table(folder, "test")
    if test_path:
        return names, train, _decode(read_texts(test_path, *columns), coding)
    train, test = _hold_out(train)
    print(
        f"note: no test file; {len(test):,} rows of {path.name} are held out as test."
    )
    return names, train, test


def _listed_classes(folder):
    """Return the lines of classes.txt; None if there is no such file."""
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = [written_label(line) for line in decode_file(path).splitlines()]
    names = [name for name in names if name]
    if len({*map(plain_label, names)}) < max(2, len(names)):
        raise DataError(f"{path} must name two classes or more, one a line, each once.")
    return names


def _classes(train):
    """Name the classes: AG News' four, or the labels as they are written first."""
    labels = train.rows["label"]
    folded = labels.map(plain_label)
    counts = Counter(folded)
    is_ag_news = [*map(plain_label, train.table.columns)] in AG_NEWS_COLUMNS
    codings = _codings(LABELS) if is_ag_news else _codings(LABELS)[:1]
    if any(counts.keys() == coding.keys() for coding in codings):
        return LABELS
    if len(counts) < 2:
        raise DataError(
            f"{train.path} has one label, {labels.iloc[0][:40]!r}; it takes two or "
            "more."
        )
    rarest = min(counts, key=counts.get)
    if counts[rarest] < MIN_ROWS_PER_CLASS:
        raise _label_error(
            train.path,
            folded,
            rarest,
            counts.keys() - {rarest},
            f"a class needs {MIN_ROWS_PER_CLASS}, or 2 if classes.txt lists it",
        )
    return sorted(
        labels[~folded.duplicated()],
        key=lambda name: (len(name) if name.isdecimal() else 99, name.casefold()),
    )


def _label_error(path, labels, label, known, rule):
    """Build the error of a label that cannot be used."""
    lines = [str(line) for line in labels.index[labels == label]]
    problem = (
        f"the label {label[:40]!r} has {len(lines)} of {len(labels)} rows; {rule}. If "
        "another column is the label, --label-column NAME says so."
    )
    for similar in get_close_matches(label, known, 1):
        problem += f" Is {similar!r} meant?"
    return row_error(path, ", ".join(lines[:20]), problem)


def _codings(names):
    """List the ways to write a class: its name, from 0 on, from 1 on."""
    ways = names, range(len(names)), range(1, len(names) + 1)
    return [{plain_label(label): i for i, label in enumerate(way)} for way in ways]


def _coding(read, names):
    """Choose the coding that explains most labels."""
    used = {*map(plain_label, read.rows["label"])}
    by_name, from_0, from_1 = codings = _codings(names)
    if not used <= by_name.keys() and used <= from_0.keys() & from_1.keys():
        raise DataError(
            f"{read.path} has fewer labels than the {len(names)} classes: do they "
            "begin at 0 or at 1? Write names instead, or mend classes.txt."
        )
    return max(codings, key=lambda coding: len(used & coding.keys()))


def _decode(read, coding):
    """Return the columns text and label, the labels as 0 to n-1."""
    labels = read.rows["label"].map(plain_label)
    for label in labels:
        if label not in coding:
            raise _label_error(
                read.path,
                labels,
                label,
                coding,
                f"the classes are {', '.join(coding)}",
            )
    return read.rows.assign(label=labels.map(coding))


def _draw(split, frame, n, recipe):
    """Draw as many rows as the recipe asks for, the same share of each class."""
    wanted = n or len(frame) or 1
    # The number of a profile is a maximum.
    is_maximum = n == PROFILES[recipe.profile].get(f"{split}_rows")
    if frame.empty or wanted > len(frame) and not is_maximum:
        raise DataError(
            f"{split}_rows is {wanted:,}, but {recipe.data} has only {len(frame):,} "
            f"{split} rows."
        )
    if wanted >= len(frame):
        return frame
    return _deal(frame, wanted, recipe.seed)[0]


def _split(train, test, names, recipe):
    """Hold out the validation rows, and check that all three splits can be used."""
    counts = Counter(train["label"])
    small = [f"{name} {counts[i]}" for i, name in enumerate(names) if counts[i] < 2]
    if small:
        raise DataError(
            f"{recipe.data}: each class needs at least 2 training rows, one to learn "
            f"from and one to validate with; found {', '.join(small)}."
        )
    n_validation = max(4, len(names), round(recipe.validation_share * len(train)))
    n_train = len(train) - n_validation
    if n_train < recipe.batch_size:
        raise DataError(
            f"{recipe.data}: {len(train)} training rows, of which {n_validation} "
            f"validate, leave fewer than one batch of {recipe.batch_size}. Use more "
            "rows or a smaller batch_size."
        )
    drawn, validation = _deal(train, n_train, recipe.seed)
    _note("validation", validation, drawn, names)
    _note("test", test, train, names)
    splits = {"train": drawn, "validation": validation, "test": test}
    label = ClassLabel(names=[*names])
    features = Features({"text": Value("string"), "label": label})
    return DatasetDict(
        {
            split: Dataset.from_dict(frame.to_dict("list"), features)
            for split, frame in splits.items()
        }
    )


def _note(split, frame, train, names):
    """Print what makes the score of a split less than it seems."""
    shared = {*frame["text"]} & {*train["text"]}
    if shared:
        print(
            f"note: {len(shared):,} texts occur in both train and {split}, which makes "
            f"the {split} score too high."
        )
    present = {*frame["label"]}
    absent = [name for i, name in enumerate(names) if i not in present]
    if absent:
        print(f"note: {split} has no row of {', '.join(absent)}.")


def _hold_out(frame):
    """Split off about a tenth of each class: at least one row, leaving at least two.

    A hash of the text selects them: a random draw would change when rows are added to
    the file, and `evaluate` could then test on rows that had been trained on.
    """
    hashes = frame["text"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    labels = frame["label"][hashes.sort_values(kind="stable").index]
    of_class = labels.groupby(labels)
    place, size = of_class.cumcount(), of_class.transform("size")
    # "1a": 26 of 256 first bytes, about a tenth
    is_chosen = (hashes < "1a") | (place == 0)
    is_held_out = is_chosen & (place < size - 2)
    return frame[~is_held_out], frame[is_held_out]


def _deal(frame, n, seed):
    """Draw `n` rows, the same share of each class if that is possible.

    Returns them and the others, each in the order of the file.
    """
    from sklearn.model_selection import train_test_split

    options = {"train_size": n, "random_state": seed}
    try:
        parts = train_test_split(frame, stratify=frame["label"], **options)
    except ValueError:  # fewer rows than classes, or a class of one row
        parts = train_test_split(frame, **options)
    return [part.sort_index() for part in parts]
