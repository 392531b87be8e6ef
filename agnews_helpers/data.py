"""Labelled texts from the Hub, from a folder or from this package: always the same `DatasetDict`.

Notebook 02 looks at the rows of AG News, notebook 07 brings its own. Whatever could spoil a training run is
checked here, before it starts.
"""

import hashlib
from collections import Counter, namedtuple
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import compress
from pathlib import Path

from .plumbing.errors import DataError
from .plumbing.hub import FILES, from_hub
from .plumbing.repeats import note_repeats
from .plumbing.tables import find_table, plain_label, read_lines, read_texts, wrong
from .profiles import PROFILES
from .recipe import HUB_DATA, LABELS, Recipe

SAMPLE = Path(__file__).parent / "sample"  # 600 rows in the layout of AG News
SUPPORT = (
    Path(__file__).parent / "support"
)  # 300 messages to a web shop: five classes of unequal size
NEEDED = "train.csv and, if there is one, test.csv (or .tsv, .jsonl, .parquet)"
FEWEST = 4  # training rows that make a class of a label; fewer look like a typo
# What a file holds: label, text and line of each row, its columns, and its layout in words.
Labelled = namedtuple("Labelled", "path labels texts lines columns layout")


def load_data(recipe: Recipe):
    """Texts as a `DatasetDict` with ``train``, ``validation`` and ``test``.

    Each split has ``text`` and ``label``, whose feature knows the names of the classes: World, Sports,
    Business and Sci/Tech for AG News. Of the training rows `recipe.validation_share` is held out, the same
    share of each class; before that about a tenth, where a folder has no test file. What was found out
    about a folder, and texts that stand in two splits, are printed.

    DataError for a missing folder or file, a malformed row, an unknown label, a class with too few rows, or
    fewer rows than the recipe asks for. HubUnreachable when the Hub fails, whatever the way.
    """
    if recipe.data == HUB_DATA:
        names, (train, test) = LABELS, _read_hub()
    else:
        names, train, test = _read_folder(_folder(recipe), recipe)
    train = _draw("train", train, recipe.train_rows, recipe)
    test = _draw("test", test, recipe.test_rows, recipe)
    return _split(train, test, list(names), recipe)


def load_test(recipe: Recipe, names: list[str]):
    """The test rows alone, for a model whose classes are called `names`. Errors as of `load_data`.

    The training file is read only where there is no test file, or where it alone tells what its labels mean.
    """
    path = None if recipe.data == HUB_DATA else find_table(_folder(recipe), "test")
    if path:
        found, listed = _read(path, recipe), _listed(path.parent)
        names = listed or names
        coding = _coding(found, names)
        # Numbers mean the lines of classes.txt, or AG News' classes; of others the training file tells.
        if coding and (
            listed or [*names] == [*LABELS] or _folded(found.labels) <= _folded(names)
        ):
            return _dataset(
                _draw("test", _decode(found, coding), recipe.test_rows, recipe), names
            )
    return load_data(recipe)["test"]


def _folder(recipe: Recipe) -> Path:
    folder = SAMPLE if recipe.data == "sample" else Path(recipe.data).expanduser()
    if not folder.is_dir():
        what = (
            f"{folder} is a file."
            if folder.exists()
            else f"There is no folder {folder}."
        )
        raise DataError(f"{what} --data (AGNEWS_DATA) must be a folder with {NEEDED}.")
    return folder


def _read_hub():
    """Both splits of the public data set, from the Hub or from its local cache."""
    import pandas as pd
    from huggingface_hub import hf_hub_download

    def load(**options):
        paths = [
            hf_hub_download(HUB_DATA, name, repo_type="dataset", **options)
            for name in FILES["data"]
        ]
        tables = [pd.read_parquet(path, columns=["text", "label"]) for path in paths]
        return [table.to_dict("list") for table in tables]

    return from_hub(HUB_DATA, load)


def _read_folder(folder: Path, recipe: Recipe):
    """Names of the classes, train and test. The training file decides how labels are coded."""
    if not (path := find_table(folder, "train")):
        there = (
            ", ".join(sorted(path.name for path in folder.iterdir())[:9]) or "nothing"
        )
        needed = f"It must have {NEEDED}, each one whole file."
        raise DataError(f"{folder} has no train.csv, but {there}. {needed}")
    found = _read(path, recipe)
    names = _classes(folder, found)
    if (coding := _coding(found, names)) is None:
        problem = f"has fewer labels than the {len(names)} classes: do they begin at 0 or at 1?"
        raise DataError(f"{path} {problem} Write names instead, or mend classes.txt.")
    train, layout = _decode(found, coding), found.layout
    for other in filter(
        None,
        (find_table(folder, name) for name in ("validation", "valid", "val", "dev")),
    ):
        print(f"note: {other.name} is not used; a share of {path.name} validates.")
    if recipe.data != "sample":
        counts = Counter(train["label"])
        classes = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(names))
        print(" · ".join([path.name, *layout, f"{len(names)} classes: {classes}"]))
    if path := find_table(folder, "test"):
        found = _read(path, recipe)
        test = _decode(found, coding)
        if found.layout != layout:
            print(" · ".join([path.name, *(found.layout or ["separator ','"])]))
        used = {*test["label"]}
        if used and len(used) < len(names):
            absent = ", ".join(name for i, name in enumerate(names) if i not in used)
            print(
                f"note: {path.name} has no row of {absent}: missing, or coded in another way?"
            )
        return names, train, test
    train, test = _hold_out(train)
    print(
        f"note: {folder.name} has no test file; {len(test['label']):,} of its rows are held out as test."
    )
    return names, train, test


def _read(path: Path, recipe: Recipe) -> Labelled:
    """All rows of a file with labels, none of them swallowed by a quotation mark in one before."""
    read = read_texts(path, recipe.label_column, recipe.text_columns)
    found = Labelled(path, [], [], [], read.columns, read.layout)
    for line, _, label, text in read.rows:
        found.labels.append(label), found.texts.append(text), found.lines.append(line)
    known = {*found.labels}

    def is_row(text):
        cells = text.split(read.separator) if read.separator else []
        return len(cells) == len(read.columns) and not known.isdisjoint(
            map(plain_label, cells)
        )

    for line, text in zip(found.lines, found.texts):
        inner = text.splitlines()[1:] if "\n" in text else []
        if inner and all(map(is_row, inner)):
            problem = (
                f"a quotation mark opens here and swallows the row {inner[0][:40]!r}"
            )
            raise wrong(
                path,
                line,
                f"{problem}. Close it, or write each one inside a field twice.",
            )
    return found


def _classes(folder: Path, train: Labelled) -> Sequence[str]:
    """The lines of classes.txt; else AG News' four; else the labels of the training file."""
    if not train.labels:
        raise DataError(f"{train.path} has no rows.")
    if listed := _listed(folder):
        return listed
    if _folded(train.labels) in map(_folded, _codings(LABELS)):
        return LABELS
    rows = Counter(label.casefold() for label in train.labels)
    names = {
        label.casefold(): label
        for label, _ in Counter(train.labels).most_common()[::-1]
    }
    if len(names) < 2:
        raise DataError(
            f"{train.path} has one label, {train.labels[0][:40]!r}; it takes two or more."
        )
    for line, label in zip(train.lines, train.labels):
        if (n := rows[label.casefold()]) < FEWEST:
            same = [other.casefold() == label.casefold() for other in train.labels]
            lines = ", ".join(map(str, compress(train.lines, same)))
            problem = f"the label {label[:40]!r} has {n} of {len(same)} rows; a class needs {FEWEST}"
            advice = _advice(
                label,
                [name for key, name in names.items() if rows[key] >= FEWEST],
                line,
            )
            small = " Or list so small a class in classes.txt." * (
                n > 1
            )  # one row cannot learn and validate
            raise wrong(train.path, lines, f"{problem}.{advice}{small}")
    if others := sorted({*train.labels} - {*names.values()})[:5]:
        print(
            f"note: {train.path.name} has {', '.join(others)}, too, taken for the same in other letters."
        )
    return sorted(
        names.values(),
        key=lambda n: (not n.isdecimal(), n.isdecimal() * len(n), n.casefold()),
    )


def _listed(folder: Path) -> list[str] | None:
    """The lines of classes.txt; None where there is no such file."""
    found = [
        path
        for path in folder.iterdir()
        if path.name.lower() == "classes.txt" and path.is_file()
    ]
    if not found:
        return None
    names = [name for line in read_lines(found[0]) if (name := plain_label(line))]
    if len(_folded(names)) < max(2, len(names)):
        raise DataError(
            f"{found[0]} must name two classes or more, one on each line, each once."
        )
    return names


def _folded(labels) -> set[str]:
    return {label.casefold() for label in labels}


def _codings(names) -> list[dict[str, int]]:
    """The ways in which labels may be written: the names, 0 to n-1 or 1 to n, as label -> class."""
    ways = names, range(len(names)), range(1, len(names) + 1)
    return [{plain_label(label): i for i, label in enumerate(way)} for way in ways]


def _coding(found: Labelled, names) -> dict[str, int] | None:
    """The coding that explains most labels of a file; None where they may begin at 0 or at 1."""
    used = _folded(found.labels)
    by_name, *by_number = _codings(names)
    if not used <= _folded(by_name) and all(used <= {*coding} for coding in by_number):
        return None
    return max((by_name, *by_number), key=lambda coding: len(used & _folded(coding)))


def _decode(found: Labelled, coding: dict[str, int]) -> dict:
    """Texts and labels of a file, the labels as 0 to n-1."""
    classes = {label.casefold(): i for label, i in coding.items()}
    for label, line in zip(found.labels, found.lines):
        if label.casefold() not in classes:
            problem = f"{label[:40]!r} is none of the labels {', '.join(coding)} of train or classes.txt"
            raise wrong(found.path, line, f"{problem}.{_advice(label, coding, line)}")
    return dict(
        text=found.texts, label=[classes[label.casefold()] for label in found.labels]
    )


def _advice(label: str, known, line: int) -> str:
    """Whether a label was meant that is written almost the same, or no label at all."""
    names = {name.casefold(): name for name in known}
    near = get_close_matches(label.casefold(), names, 1)
    meant = f" Is {names[near[0]]!r} meant?" if near else ""
    header = " Is another column the label? --label-column NAME says so, if this line has the columns' names."
    return meant + (header if line == 1 else "")


def _draw(split: str, rows: dict, n: int | None, recipe: Recipe) -> dict:
    """So many rows as the recipe asks for, the same share of each class."""
    if not (have := len(rows["label"])):
        raise DataError(f"{recipe.data} has no {split} rows.")
    if (
        n is not None and n > have and n != PROFILES[recipe.profile][f"{split}_rows"]
    ):  # that is a maximum
        raise DataError(
            f"{split}_rows is {n:,}, but {recipe.data} has only {have:,} {split} rows."
        )
    return rows if n is None else _deal(rows, min(n, have), recipe.seed)[0]


def _split(train: dict, test: dict, names: list[str], recipe: Recipe):
    """The three splits, checked: two rows of each class to train on, a whole batch, something to test."""
    from datasets import DatasetDict

    have, count = len(train["label"]), Counter(train["label"])
    if few := [f"{name} {count[i]}" for i, name in enumerate(names) if count[i] < 2]:
        need = "each class needs at least 2 training rows, one to learn from and one to validate with"
        raise DataError(f"{recipe.data}: {need}; found {', '.join(few)}.")
    n_validation = max(4, len(names), round(recipe.validation_share * have))
    if have - n_validation < recipe.batch_size:
        left = f"{have} training rows, of which {n_validation} validate, leave fewer than one batch of"
        raise DataError(
            f"{recipe.data}: {left} {recipe.batch_size}. Use more rows or a smaller batch_size."
        )
    note_repeats(train, test)
    learn, validate = _deal(train, have - n_validation, recipe.seed)
    if shared := len({*learn["text"]} & {*validate["text"]}):
        print(
            f"note: {shared:,} texts stand in both train and validation; they validate nothing."
        )
    if absent := [names[i] for i in sorted({*count} - {*validate["label"]})]:
        print(
            f"note: no row of {', '.join(absent)} validates; a larger validation_share would have some."
        )
    splits = {"train": learn, "validation": validate, "test": test}
    return DatasetDict({key: _dataset(rows, names) for key, rows in splits.items()})


def _dataset(rows: dict, names: list[str]):
    from datasets import ClassLabel, Dataset, Features, Value

    return Dataset.from_dict(
        rows, Features({"text": Value("string"), "label": ClassLabel(names=[*names])})
    )


def _hold_out(rows: dict) -> tuple[dict, dict]:
    """The rows, and about a tenth of each class, chosen by their texts: at least one, and two remain.

    Drawn from the file as it is, a later `evaluate` would test on rows that were trained on before it grew.
    """
    labels, taken, size = rows["label"], Counter(), Counter(rows["label"])
    marks = [hashlib.sha256(text.encode("utf-8")).hexdigest() for text in rows["text"]]
    held = [False] * len(labels)
    for i in sorted(range(len(labels)), key=marks.__getitem__):
        tenth = marks[i] < "1a"  # as 26 of 256 first bytes are
        held[i] = (tenth or not taken[labels[i]]) and taken[labels[i]] < size[
            labels[i]
        ] - 2
        taken[labels[i]] += held[i]
    sides = [not one for one in held], held
    return tuple(
        {key: [*compress(values, side)] for key, values in rows.items()}
        for side in sides
    )


def _deal(rows: dict, n: int, seed: int) -> tuple[dict, dict]:
    """`n` rows and the others, the same share of each class in both, each in the file's order.

    Where that cannot be, `n` of all alike; the checks in `_split` still hold.
    """
    from sklearn.model_selection import train_test_split

    labels = rows["label"]
    if not 0 < n < len(labels):
        return rows, {key: [] for key in rows}
    count = Counter(labels)
    fair = min(n, len(labels) - n) >= len(count) and min(count.values()) >= 2
    how = dict(stratify=labels if fair else None, random_state=seed)
    parts = train_test_split(range(len(labels)), train_size=n, **how)
    # Lists, because `Dataset.select` leaves row numbers that `add_column` resolves behind a progress bar.
    return tuple(
        {key: [values[i] for i in sorted(part)] for key, values in rows.items()}
        for part in parts
    )
