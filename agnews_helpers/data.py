"""Load labelled texts from the Hub, a folder or the sample; check and split them."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import hf_hub_download

from .plumbing import hub
from .plumbing.errors import DataError, check_types
from .plumbing.tables import (
    EMPTY,
    NAMED,
    Texts,
    decode_file,
    find_tables,
    plain_label,
    read_texts,
    written_label,
)
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
# What the files of each split are called.
SPLITS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev|eval",
    "test": "test|testing",
}
# No label, a word for nothing, several labels, an object or bytes
NO_CLASS = re.compile(
    r"|-|\\n|#?n/[abdv]|#?na|#n[bdv]|#[\w/]+[!?]|nan|null|<na>|[\[{].*[\]}]|b'.*'|\d+(,\d+)+"
)


@check_types
def load_data(recipe: Recipe) -> DatasetDict:
    """Load the texts of a recipe as ``train``, ``validation`` and ``test``.

    Each split has ``text`` and ``label``, whose feature holds the names of the
    classes: World, Sports, Business and Sci/Tech for AG News. Of the training rows
    `recipe.validation_share` is held out for validation, the same share of each
    class, unless a folder has a file for validation. If it has no test file, about a
    tenth of the training rows is held out as test before that. What was found out
    about a folder, and how many texts occur in two splits, is printed.

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
        If a folder or file is missing, a row cannot be used (all of them are listed),
        or a class has too few rows.
    HubUnreachable
        If the Hub fails for any reason.
    """
    if recipe.data == HUB_DATA:
        return _split(_read_hub(), LABELS, recipe)
    source = read_source(recipe)
    if recipe.data != "sample":
        print(*source.notes, sep="\n")
    news, problems = source.split(recipe)
    if problems:
        lines = "\n".join(problems)
        raise DataError(
            f"{lines}\nMend this. The rows that can be used are written by: "
            f'agnews check "{recipe.data}" --write FOLDER.'
        )
    return news


def load_test(recipe: Recipe, names: list[str]) -> Dataset:
    """Load the rows of a file, or of a folder's test file (else its training file).

    Parameters
    ----------
    recipe : Recipe
        Its `data`, `label_column`, `text_columns`, `test_rows` and `seed` are used.
    names : list of str
        The classes of the classifier.

    Returns
    -------
    Dataset
        ``text`` and ``label``, in the order of the file.

    Raises
    ------
    DataError
        If there is no such file, or a row cannot be used (all of them are listed).
    """
    source = read_source(recipe, names)
    print(*source.notes, sep="\n")
    if problems := source.files["train"].describe_problems():
        raise DataError("\n".join(problems))
    rows, _ = _deal(source.usable()["train"], recipe.test_rows, recipe.seed)
    return _dataset(rows, names)


def _dataset(frame, names, columns=()):
    """Make a split of some rows; it remembers what the file calls the text."""
    # `id` tells the columns that it was in the file: `agnews predict` looks for them.
    text = Value("string", id="\n".join(columns) or None)
    features = Features({"text": text, "label": ClassLabel(names=[*names])})
    return Dataset.from_dict(frame[["text", "label"]].to_dict("list"), features)


def _read_hub():
    """Read both splits of the public data set, from the Hub or its local cache."""

    def load(**options):
        return {
            split: pd.read_parquet(
                hf_hub_download(HUB_DATA, name, repo_type="dataset", **options)
            )
            for split, name in zip(("train", "test"), hub.FILES["dataset"])
        }

    return hub.from_hub(HUB_DATA, load)


@dataclass
class Source:
    """What a folder or a file of labelled texts holds.

    Attributes
    ----------
    names : list of str
        The classes.
    files : dict
        Split ("train", "validation", "test") -> its `Texts`, whose rows have ``label``
        as well: the index of the class.
    notes : list of str
        What was found, and what was assumed.
    """

    names: list[str]
    files: dict[str, Texts]
    notes: list[str]

    def split(self, recipe: Recipe) -> tuple:
        """Make the splits, and say what stands against them.

        Parameters
        ----------
        recipe : Recipe
            How many rows are used, and how many are held out.

        Returns
        -------
        tuple
            The splits, None if that fails; and each kind of problem with its first
            lines.
        """
        files = self.files.values()
        found = [line for texts in files for line in texts.describe_problems()]
        _, columns = self.files["train"].columns
        try:
            return _split(self.usable(), self.names, recipe, columns), found
        except DataError as error:
            return None, [*found, str(error)]

    def usable(self) -> dict[str, pd.DataFrame]:
        """Return the usable rows.

        Returns
        -------
        dict
            Split -> ``text`` and ``label``, the index of the class.
        """
        return {
            split: texts.usable[["text", "label"]].astype({"label": int})
            for split, texts in self.files.items()
        }


def read_source(recipe: Recipe, names: list[str] | None = None) -> Source:
    """Read a folder or a file of labelled texts; the training file names the classes.

    Parameters
    ----------
    recipe : Recipe
        Its `data`, `label_column` and `text_columns` are used.
    names : list of str, optional
        The classes of a trained classifier. Then only the test file, or without one
        the training file, is read, and called "train" in the result.

    Returns
    -------
    Source
        All rows, also those that cannot be used.

    Raises
    ------
    DataError
        If there is no training file, or a file cannot be read at all.
    """
    place = SAMPLE if recipe.data == "sample" else Path(recipe.data).expanduser()
    found = {"train": [place]}
    if not place.is_file():
        found = {split: find_tables(place, word) for split, word in SPLITS.items()}
    if names:
        found = {"train": found.get("test") or found["train"]}
    if not found["train"]:
        raise DataError(
            f"{place} is not there, or is no folder with a training file. Name one "
            "with train.csv and, if there are any, test.csv and "
            "validation.csv (or .tsv, .jsonl, .json, .parquet), or one such file."
        )
    by_name = names and (*names,) != LABELS  # not by numbers: whose order is it?
    asked = recipe.text_columns.split(",") if recipe.text_columns else []
    train = read_texts(found.pop("train"), recipe.label_column, asked)
    names = names or _listed_classes(place) or _classes(train)
    coding = _codings(names)[0] if by_name else _coding(train, names)
    files = {"train": _assign_classes(train, names, coding)}
    notes = []
    for split, paths in found.items():
        if not paths:
            continue
        texts = read_texts(paths, *train.columns, labelled=False)
        if {*texts.rows["plain"]} <= {"", "-1"}:
            notes.append(
                f"note: {texts.path.name} has no labels in {train.columns[0]!r}: its "
                f"{len(texts.rows):,} rows are not used."
            )
        else:
            files[split] = _assign_classes(texts, names, coding)
    notes = [_summary(texts, names) for texts in files.values()] + notes
    return Source([*names], files, notes)


def _summary(texts, names):
    """Say in one line what a file holds, and what was taken for what."""
    used = texts.usable
    counts = used["label"].value_counts()
    sizes = ", ".join(f"{name} {counts.get(i, 0):,}" for i, name in enumerate(names))
    unused = texts.problems["problem"]
    empty = (unused == EMPTY).sum()
    rows = f"{len(texts.rows):,} rows read, {len(used):,} used, {len(unused):,} not"
    if empty:
        rows += f" ({empty:,} of them empty)"
    spellings = used.groupby("plain")["name"].unique()
    notes = [
        f"{' and '.join(map(repr, s))} are one class" for s in spellings if len(s) > 1
    ]
    notes = [*texts.notes, f"{len(names)} classes: {sizes}", *notes]
    return " · ".join([texts.path.name, rows, *notes])


def _listed_classes(folder):
    """Return the lines of classes.txt; None if there is no such file."""
    path = folder / "classes.txt"
    if not path.is_file():
        return None
    names = [*filter(None, map(written_label, decode_file(path)[0].splitlines()))]
    if len({*map(plain_label, names)}) < max(2, len(names)):
        raise DataError(f"{path} must name two classes or more, one a line, each once.")
    return names


def _classes(train):
    """Name the classes: AG News' four, or the labels as they are mostly written."""
    used = train.usable
    counts = Counter(used["plain"])
    common = {
        label
        for label, n in counts.items()
        if n >= MIN_ROWS_PER_CLASS and not NO_CLASS.fullmatch(label)
    }
    is_ag_news = (
        [*map(plain_label, train.table.columns)] in AG_NEWS_COLUMNS
        and train.table.columns[0] in train.columns  # is the label
    )
    codings = _codings(LABELS)[: 3 if is_ag_news else 1]
    if any(coding.keys() in (common, counts.keys()) for coding in codings):
        return LABELS
    if len(common) < 2:
        found = [
            f"{label[:40]!r} {n}" for label, n in Counter(used["name"]).most_common(5)
        ]
        needed = (
            f"{train.path} needs two labels or more that {MIN_ROWS_PER_CLASS} usable "
            f"rows have; it has {', '.join(found) or 'none'}. (--label-column, "
            "--text-columns? Without a header they are called column 1, column 2. A "
            "label is one class: no list, no number with a comma, no merged cell. The "
            "header is the first line: delete a title above it.)"
        )
        raise DataError("\n".join([*train.describe_problems(), needed]))
    spellings = used[used["plain"].isin(common)].groupby("plain")["name"]
    names = spellings.agg(lambda found: Counter(found).most_common(1)[0][0])
    # Numbers by their size
    return sorted(
        names, key=lambda name: name.zfill(9) if name.isdecimal() else name.casefold()
    )


def _codings(names):
    """List the ways to write a class: its name, from 0 on, from 1 on."""
    ways = names, range(len(names)), range(1, len(names) + 1)
    return [{plain_label(label): i for i, label in enumerate(way)} for way in ways]


def _coding(train, names):
    """Choose the coding that explains the labels of most rows."""
    used = Counter(train.rows["plain"])
    codings = _codings(names)
    scores = [sum(used[label] for label in coding) for coding in codings]
    if scores[1] == scores[2] > scores[0] or not any(scores):
        raise DataError(
            f"{train.path}: no label is one of the {len(names)} classes, or there are "
            "fewer numbers than classes: do they begin at 0 or at 1? Write the names "
            "of the classes, or mend classes.txt."
        )
    return codings[scores.index(max(scores))]


def _assign_classes(texts, names, coding):
    """Add to each row the index of its class; a label without one is a problem."""
    rows = texts.rows
    counts = Counter(rows["plain"])
    problems = {}
    for label, name in dict(zip(rows["plain"], rows["name"])).items():
        if label in coding:
            continue
        problem = (
            f"the label {name[:40]!r} is none of the classes, and has {counts[label]} "
            f"of {len(rows)} rows (a class needs {MIN_ROWS_PER_CLASS} training rows, "
            "or 2 if classes.txt in the folder lists it; a trained classifier gets no "
            "new one. Delete the lines above a header)"
        )
        similar = len(problems) < NAMED and get_close_matches(
            label[:40], coding, 1, 0.76
        )
        if similar:
            problem += f". Is {names[coding[similar[0]]]!r} meant?"
        if NO_CLASS.fullmatch(label):
            problem = f"the label {name[:40]!r}, where one class is needed"
        problems[label] = problem if label else "without a label"
    is_new = rows["plain"].isin(problems) & (rows["problem"] == "")
    rows.loc[is_new, "problem"] = rows["plain"].map(problems)
    rows["label"] = rows["plain"].map(coding)
    return texts


def _split(rows, names, recipe, text_columns=()):
    """Draw the rows, hold out those that have no file, and check all three splits."""
    rows = {
        split: part.assign(plain_text=plain_texts(part)) for split, part in rows.items()
    }
    train, test = rows["train"], rows.get("test")
    if test is None:
        train, test = _keep_equal_together(train, _hold_out)
        print(
            f"note: no test file; {len(test):,} rows of the training file are held out "
            "as test."
        )
    train, _ = _deal(train, recipe.train_rows, recipe.seed)
    test, _ = _deal(test, recipe.test_rows, recipe.seed)
    different = train.drop_duplicates("plain_text")
    counts = Counter(different["label"])
    small = [f"{name} {counts[i]}" for i, name in enumerate(names) if counts[i] < 2]
    if small:
        raise DataError(
            f"{recipe.data}: each class needs at least 2 training rows with different "
            "texts, one to learn from and one to validate with; found "
            f"{', '.join(small)}."
        )
    validation = rows.get("validation")
    if validation is None:
        n = max(4, len(names), round(recipe.validation_share * len(different)))
        train, validation = _keep_equal_together(
            train, lambda rows: _deal(rows, max(1, len(rows) - n), recipe.seed)
        )
    if test.empty or len(train) < recipe.batch_size:
        raise DataError(
            f"{recipe.data} has {len(train)} rows to train, {len(validation)} to "
            f"validate and {len(test)} to test with: too few for batches of "
            f"{recipe.batch_size}. Use more rows, or a smaller batch_size "
            "(--batch-size)."
        )
    splits = {"train": train, "validation": validation, "test": test}
    for one, other in combinations(splits, 2):
        if shared := {*splits[one]["plain_text"]} & {*splits[other]["plain_text"]}:
            print(
                f"note: {len(shared):,} texts occur in both {one} and {other}, which "
                f"makes the {other} score too high."
            )
    return DatasetDict(
        {split: _dataset(frame, names, text_columns) for split, frame in splits.items()}
    )


def plain_texts(frame: pd.DataFrame) -> pd.Series:
    """Write texts as they are compared: nearly as an uncased model reads them.

    Parameters
    ----------
    frame : pd.DataFrame
        Rows with ``text``.

    Returns
    -------
    pd.Series
        The texts in small letters of normal width, with single spaces.
    """
    return frame["text"].str.normalize("NFKC").str.casefold().str.split().str.join(" ")


def _keep_equal_together(frame, draw):
    """Draw from different texts; equal ones go where the first of them goes."""
    _, drawn = draw(frame.drop_duplicates("plain_text"))
    is_drawn = frame["plain_text"].isin(drawn["plain_text"])
    return frame[~is_drawn], frame[is_drawn]


def _hold_out(frame):
    """Split off about a tenth of each class: at least one row, leaving at least two.

    A hash of the text selects them: a random draw would change when rows are added to
    the file, and `evaluate` could then test on rows that had been trained on.
    """
    hashes = frame["plain_text"].map(
        lambda text: hashlib.sha256(text.encode()).hexdigest()
    )
    labels = frame["label"][hashes.sort_values(kind="stable").index]
    of_class = labels.groupby(labels)
    place, size = of_class.cumcount(), of_class.transform("size")
    # "1a": 26 of 256 first bytes, about a tenth
    is_chosen = (hashes < "1a") | (place == 0)
    is_held_out = is_chosen & (place < size - 2)
    return frame[~is_held_out], frame[is_held_out]


def _deal(frame, n, seed):
    """Draw at most `n` rows (None: all), of each class the same share if possible.

    Returns them and the others, each in the order of the file.
    """
    if n is None or n >= len(frame):
        return frame, frame[:0]
    from sklearn.model_selection import train_test_split

    options = {"train_size": n, "random_state": seed}
    try:
        parts = train_test_split(frame, stratify=frame["label"], **options)
    except ValueError:  # fewer rows than classes, or a class of one row
        parts = train_test_split(frame, **options)
    return [part.sort_index() for part in parts]
