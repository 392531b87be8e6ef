"""Load labelled texts from the Hub, a folder or the sample; check and split them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import hf_hub_download

from .plumbing.errors import DataError
from .plumbing.hub import FILES, from_hub
from .plumbing.tables import (
    Texts,
    find_table,
    plain_label,
    read_text,
    read_texts,
    row_error,
)
from .profiles import PROFILES
from .recipe import HUB_DATA, LABELS, Recipe

# 600 rows in the layout of AG News
SAMPLE = Path(__file__).parent / "sample"
# 300 messages to a web shop: five classes of unequal size
SUPPORT = Path(__file__).parent / "support"
EXPECTED_FILES = "train.csv and, if there is one, test.csv (or .tsv, .jsonl, .parquet)"
# A label on fewer training rows looks like a typing error.
MIN_ROWS_PER_CLASS = 4


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
        names, train, test = _read_folder(_folder(recipe), recipe)
    train = _draw("train", train, recipe.train_rows, recipe)
    test = _draw("test", test, recipe.test_rows, recipe)
    return _split(train, test, names, recipe)


def load_test(recipe: Recipe, names: Sequence[str]) -> Dataset:
    """Load the test split alone, for a model whose classes are known.

    The training file is read only if there is no test file, or if only the training
    file tells what the labels mean.

    Parameters
    ----------
    recipe : Recipe
        Where the data is, and how many rows are used.
    names : sequence of str
        Names of the model's classes.

    Returns
    -------
    Dataset
        The test split.

    Raises
    ------
    DataError
        As in `load_data`.
    HubUnreachable
        If the Hub fails for any reason.
    """
    path = None
    if recipe.data != HUB_DATA:
        path = find_table(_folder(recipe), "test")
    if path:
        test, listed = _read(path, recipe), _listed_classes(path.parent)
        names = listed or names
        coding = _coding(test.labels, names)
        # Numbers mean the lines of classes.txt, or AG News' classes; what others mean
        # only the training file tells.
        is_known = listed or [*names] == [*LABELS]
        if coding and (is_known or _folded(test.labels) <= _folded(names)):
            frame = _draw("test", _decode(test, coding), recipe.test_rows, recipe)
            return _dataset(frame, names)
    return load_data(recipe)["test"]


def _folder(recipe: Recipe):
    """Return the folder of the recipe's data."""
    folder = SAMPLE if recipe.data == "sample" else Path(recipe.data).expanduser()
    if folder.is_dir():
        return folder
    problem = (
        f"{folder} is a file" if folder.exists() else f"There is no folder {folder}"
    )
    raise DataError(
        f"{problem}. --data (AGNEWS_DATA) must be a folder with {EXPECTED_FILES}."
    )


def _read_hub():
    """Read both splits of the public data set, from the Hub or its local cache."""

    def load(**options: bool) -> list[pd.DataFrame]:
        paths = [
            hf_hub_download(HUB_DATA, name, repo_type="dataset", **options)
            for name in FILES["data"]
        ]
        return [pd.read_parquet(path, columns=["text", "label"]) for path in paths]

    return from_hub(HUB_DATA, load)


def _read(path: Path, recipe: Recipe):
    """Read a file with the columns that the recipe names."""
    return read_texts(path, recipe.label_column, recipe.text_columns)


def _read_folder(folder: Path, recipe: Recipe):
    """Read the classes, train and test. The training file decides what labels mean."""
    path = find_table(folder, "train")
    if path is None:
        files = ", ".join(sorted(path.name for path in folder.iterdir())[:9])
        raise DataError(
            f"{folder} has no train.csv, but {files or 'nothing'}. "
            f"It must have {EXPECTED_FILES}, each one whole file."
        )
    read = _read(path, recipe)
    names = _classes(read)
    coding = _coding(read.labels, names)
    if coding is None:
        raise DataError(
            f"{path} has fewer labels than the {len(names)} classes: do they begin at "
            "0 or at 1? Write names instead, or mend classes.txt."
        )
    train = _decode(read, coding)
    for split in ("validation", "valid", "val", "dev"):
        if unused := find_table(folder, split):
            print(f"note: {unused.name} is not used; a share of {path.name} validates.")
    if recipe.data != "sample":
        counts = Counter(train["label"])
        sizes = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(names))
        print(" · ".join([path.name, *read.layout, f"{len(names)} classes: {sizes}"]))
    if test_path := find_table(folder, "test"):
        return names, train, _read_test(test_path, recipe, names, coding, read.layout)
    train, test = _hold_out(train)
    print(
        f"note: {folder.name} has no test file; "
        f"{len(test):,} of its rows are held out as test."
    )
    return names, train, test


def _read_test(
    path: Path,
    recipe: Recipe,
    names: Sequence[str],
    coding: list[str],
    train_layout: list[str],
):
    """Read the test file, and note what differs from the training file."""
    read = _read(path, recipe)
    test = _decode(read, coding)
    if read.layout != train_layout:
        print(" · ".join([path.name, *read.layout]))
    present = {*test["label"]}
    absent = [name for i, name in enumerate(names) if i not in present]
    if absent:
        print(
            f"note: {path.name} has no row of {', '.join(absent)}: "
            "missing, or coded in another way?"
        )
    return test


def _classes(train: Texts):
    """Name the classes: the lines of classes.txt, AG News' four, or the labels."""
    path = train.table.path
    if listed := _listed_classes(path.parent):
        return listed
    if _folded(train.labels) in map(_folded, _codings(LABELS)):
        return LABELS
    # Of several spellings the most frequent is the name.
    spellings = Counter(train.labels).most_common()
    names = {label.casefold(): label for label, _ in reversed(spellings)}
    if len(names) < 2:
        label = train.labels[0][:40]
        raise DataError(f"{path} has one label, {label!r}; it takes two or more.")
    counts = Counter(label.casefold() for label in train.labels)
    for key, count in counts.items():
        if count < MIN_ROWS_PER_CLASS:
            raise _small_class(train, names[key], counts)
    others = sorted({*train.labels} - {*names.values()})
    if others:
        print(
            f"note: {path.name} has {', '.join(others[:5])}, too, "
            "taken for the same in other letters."
        )
    in_order = sorted(names.values(), key=str.casefold)
    numbers = sorted(filter(str.isdecimal, in_order), key=len)
    return numbers + [name for name in in_order if not name.isdecimal()]


def _small_class(train: Texts, label: str, counts: Counter):
    """Build the error of a class that has too few rows."""
    lines = [
        line
        for line, other in zip(train.table.records, train.labels)
        if other.casefold() == label.casefold()
    ]
    larger = [
        name for name in train.labels if counts[name.casefold()] >= MIN_ROWS_PER_CLASS
    ]
    problem = (
        f"the label {label[:40]!r} has {len(lines)} of {len(train.labels)} rows; "
        f"a class needs {MIN_ROWS_PER_CLASS}.{_advice(label, larger, lines[0])}"
    )
    # One row cannot both be learned from and validate.
    if len(lines) > 1:
        problem += " Or list so small a class in classes.txt."
    return row_error(train.table.path, ", ".join(map(str, lines)), problem)


def _listed_classes(folder: Path):
    """Return the lines of classes.txt; None if there is no such file."""
    for path in folder.iterdir():
        if path.name.lower() == "classes.txt" and path.is_file():
            names = [plain_label(line) for line in read_text(path).splitlines()]
            names = [name for name in names if name]
            if len(_folded(names)) < max(2, len(names)):
                problem = "must name two classes or more, one on each line, each once"
                raise DataError(f"{path} {problem}.")
            return names
    return None


def _folded(labels: Iterable[str]):
    """Return the labels as they are compared: capital letters count as small ones."""
    return {label.casefold() for label in labels}


def _codings(names: Sequence[str]):
    """List the ways to write a class: its name, from 0 on, from 1 on."""
    ways = names, range(len(names)), range(1, len(names) + 1)
    return [[plain_label(label) for label in way] for way in ways]


def _coding(labels: list[str], names: Sequence[str]):
    """Choose the coding that explains most labels; None if it is from 0 or from 1."""
    used = _folded(labels)
    by_name, from_0, from_1 = _codings(names)
    if not used <= _folded(by_name) and used <= {*from_0} and used <= {*from_1}:
        return None
    return max(by_name, from_0, from_1, key=lambda coding: len(used & _folded(coding)))


def _decode(read: Texts, coding: list[str]):
    """Return the columns text and label, the labels as 0 to n-1."""
    classes = {label.casefold(): i for i, label in enumerate(coding)}
    for line, label in zip(read.table.records, read.labels):
        if label.casefold() not in classes:
            known = f"the labels {', '.join(coding)} of train or classes.txt"
            problem = (
                f"{label[:40]!r} is none of {known}.{_advice(label, coding, line)}"
            )
            raise row_error(read.table.path, line, problem)
    labels = [classes[label.casefold()] for label in read.labels]
    return pd.DataFrame({"text": read.texts, "label": labels})


def _advice(label: str, known: Iterable[str], line: int):
    """Ask whether a label that is written almost the same was meant, or no label."""
    names = {name.casefold(): name for name in known}
    advice = ""
    for similar in get_close_matches(label.casefold(), names, 1):
        advice = f" Is {names[similar]!r} meant?"
    if line == 1:
        advice += (
            " Is another column the label? --label-column NAME says so, if this line "
            "has the columns' names."
        )
    return advice


def _draw(split: str, frame: pd.DataFrame, n: int | None, recipe: Recipe):
    """Draw as many rows as the recipe asks for, the same share of each class."""
    available = len(frame)
    if available == 0:
        raise DataError(f"{recipe.data} has no {split} rows.")
    if n is None:
        return frame
    # The number of a profile is a maximum.
    if n > available and n != PROFILES[recipe.profile][f"{split}_rows"]:
        raise DataError(
            f"{split}_rows is {n:,}, but {recipe.data} has only {available:,} "
            f"{split} rows."
        )
    return _deal(frame, min(n, available), recipe.seed)[0]


def _split(
    train: pd.DataFrame, test: pd.DataFrame, names: Sequence[str], recipe: Recipe
):
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
    _note_shared("train", train, "test", test)
    train, validation = _deal(train, n_train, recipe.seed)
    _note_shared("train", train, "validation", validation)
    absent = [names[i] for i in sorted({*counts} - {*validation["label"]})]
    if absent:
        print(
            f"note: no row of {', '.join(absent)} validates; "
            "a larger validation_share would have some."
        )
    splits = {"train": train, "validation": validation, "test": test}
    return DatasetDict({key: _dataset(frame, names) for key, frame in splits.items()})


def _note_shared(
    split: str, frame: pd.DataFrame, other_split: str, other_frame: pd.DataFrame
):
    """Print how many different texts occur in both splits."""
    shared = {*frame["text"]} & {*other_frame["text"]}
    if shared:
        print(
            f"note: {len(shared):,} texts occur in both {split} and {other_split}, "
            f"which makes the {other_split} score too high."
        )


def _dataset(frame: pd.DataFrame, names: Sequence[str]):
    """Make a split whose label feature holds the names of the classes."""
    label = ClassLabel(names=[*names])
    features = Features({"text": Value("string"), "label": label})
    return Dataset.from_dict(frame.to_dict("list"), features)


def _hold_out(frame: pd.DataFrame):
    """Split off about a tenth of each class: at least one row, leaving at least two.

    A hash of the text selects them: a random draw would change when rows are added to
    the file, and `evaluate` could then test on rows that had been trained on.
    """
    hashes = frame["text"].map(lambda text: hashlib.sha256(text.encode()).hexdigest())
    held_out = []
    for _, of_class in hashes.sort_values(kind="stable").groupby(frame["label"]):
        tenth = sum(of_class < "1a")  # as 26 of 256 first bytes are
        n = max(0, min(max(1, tenth), len(of_class) - 2))
        held_out += of_class.index[:n].tolist()
    is_test = frame.index.isin(held_out)
    return frame[~is_test], frame[is_test]


def _deal(frame: pd.DataFrame, n: int, seed: int):
    """Draw `n` rows, the same share of each class if that is possible.

    Returns them and the others, each in the order of the file.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < n < len(frame):
        return frame, frame[:0]
    counts = Counter(frame["label"])
    n_smaller = min(n, len(frame) - n)
    can_stratify = n_smaller >= len(counts) and min(counts.values()) >= 2
    drawn, others = train_test_split(
        frame,
        train_size=n,
        stratify=frame["label"] if can_stratify else None,
        random_state=seed,
    )
    return drawn.sort_index(), others.sort_index()
