"""AG News from the Hub, from a folder or from the sample in this package: always the same `DatasetDict`.

Notebook 02 looks at the rows. Everything that could spoil a training run is checked here, before it starts.
"""

import csv
import io
from collections import Counter
from pathlib import Path

from .plumbing.errors import DataError
from .plumbing.hub import from_hub
from .recipe import HUB_DATA, LABELS, Recipe

SAMPLE = Path(__file__).parent / "sample"
CSV_FIELDS = ("class", "title", "description")
HEADERS = {"class", "class index", "label"}  # what the first column is called in the copies in circulation
CODINGS = "1-4 (1 World, 2 Sports, 3 Business, 4 Sci/Tech), 0-3 in the same order, or the four names"


def load_data(recipe: Recipe):
    """News as a `DatasetDict` with ``train``, ``validation`` and ``test``.

    Each split has ``text`` (title, a space, description) and ``label`` (0 World, 1 Sports, 2 Business,
    3 Sci/Tech). `recipe.validation_share` of the training rows is held out, the same share of each class.
    Rows that stand in both train and test are counted and reported.

    Raises
    ------
    DataError
        For a missing folder or file, a malformed row, an unknown label, a class without rows, or fewer
        rows than the recipe asks for.
    HubUnreachable
        When the Hub fails, whatever the way.
    """
    if recipe.data == HUB_DATA:
        name, (train, test) = f"{HUB_DATA} on the Hub", _read_hub()
    elif recipe.data == "sample":
        name, (train, test) = "the sample", _read_folder(SAMPLE)
    else:
        name, (train, test) = f"the data in {recipe.data}", _read_folder(Path(recipe.data))
    if shared := len(set(train["text"]) & set(test["text"])):
        print(f"note: {shared:,} texts stand in both train and test; a test score counts them as known.")
    drawn = []
    for split, rows, n in (("train", train, recipe.train_rows), ("test", test, recipe.test_rows)):
        have = len(rows["label"])
        if n is not None and n > have:
            raise DataError(f"{split}_rows is {n:,}, but {name} has only {have:,} {split} rows.")
        drawn.append(rows if n in (None, have) else _deal(rows, n, recipe.seed)[0])
    return _split(*drawn, name, recipe)


def _read_hub():
    """Both splits of the public data set, from the Hub or from its local cache."""
    from datasets import load_dataset

    def load(anew):
        news = load_dataset(HUB_DATA, download_mode="force_redownload" if anew else None)
        return [{key: news[split][key][:] for key in ("text", "label")} for split in ("train", "test")]

    return from_hub(HUB_DATA, load)


def _read_folder(folder: Path):
    """Both files of a folder. The training file decides the coding of the labels, since it has all four."""
    if not folder.is_dir():
        files = "train.csv and test.csv (or train.parquet and test.parquet)"
        raise DataError(f"There is no folder {folder}. AGNEWS_DATA must be a folder with {files}.")
    files, readers = [], {".csv": read_csv, ".parquet": read_parquet}
    for split in ("train", "test"):
        there = [path for ending in readers if (path := folder / (split + ending)).is_file()]
        if not there:
            raise DataError(f"{folder} has neither {split}.csv nor {split}.parquet.")
        files.append((there[0], *readers[there[0].suffix](there[0])))
    code = _coding(*files[0][:2])
    return [dict(text=texts, label=_decode(code, path, raw, lines)) for path, raw, texts, lines in files]


def read_csv(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Raw labels, texts and line numbers of a ``"class","title","description"`` file.

    A header, a byte-order mark, CRLF endings and line breaks inside a field all work. Words such as
    "N/A" and "null" are text like any other.

    Raises
    ------
    DataError
        For bytes that are not UTF-8, a row without exactly three fields, or a row without text.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _wrong(path, line, "a byte that is not UTF-8. Save the file as UTF-8.") from None
    labels, texts, lines = [], [], []
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        line = 1  # where the row at hand begins
        for row in reader:
            if row and not (line == 1 and row[0].strip().lower() in HEADERS):
                if len(row) != len(CSV_FIELDS):
                    found = f"{len(row)} fields, expected 3: {', '.join(CSV_FIELDS)}. Put quotation marks "
                    raise _wrong(path, line, found + "around a field that has a comma in it.")
                labels.append(row[0].strip())
                texts.append(_join(path, line, *row[1:]))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"not a well-formed CSV row ({error}).") from None
    return labels, texts, lines


def read_parquet(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Raw labels, texts and row numbers of a Parquet file with the Hub's columns ``text`` and ``label``.

    Raises
    ------
    DataError
        For an unreadable file, missing columns or a row without text.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow has many ways to say it
        raise DataError(f"{path} cannot be read as Parquet ({error}). Download it again.") from None
    if not {"text", "label"} <= set(table.columns):
        columns = ", ".join(map(str, table.columns))
        raise DataError(f"{path} has the columns {columns}; it needs text and label.")
    texts = [_join(path, line, "", text) for line, text in enumerate(table["text"], 1)]
    return [str(label) for label in table["label"]], texts, list(range(1, len(texts) + 1))


def _wrong(path: Path, line: int, problem: str) -> DataError:
    return DataError(f"{path}, line {line}: {problem}")


def _join(path: Path, line: int, title: str, description: str) -> str:
    """Title, a space, description. Where a Parquet file has no value, the description is no string."""
    text = f"{title} {description}".strip() if isinstance(description, str) else ""
    if not text:
        raise _wrong(path, line, "a row without text. Remove it or fill it in.")
    return text


def _coding(path: Path, labels: list[str]) -> dict[str, int]:
    """Which of the three codings the training file uses, as raw label -> 0..3."""
    if not labels:
        raise DataError(f"{path} has no rows.")
    names = [name.lower() for name in LABELS]
    codings = [{code: i for i, code in enumerate(codes)} for codes in ("1234", "0123", names)]
    found = {label.lower() for label in labels}
    # Labels 1 to 3 alone would fit two codings, so all four must be there to tell. An unknown label is
    # reported against the coding that explains most rows.
    best = max(codings, key=lambda coding: sum(label.lower() in coding for label in labels))
    absent = [LABELS[i] for name, i in best.items() if name not in found]
    if found <= set(best) and absent:
        problem = f"has no row of class {', '.join(absent)}; training needs all four. Labels found: "
        raise DataError(f"{path} {problem}{', '.join(sorted(found))}. Accepted codings: {CODINGS}.")
    return best


def _decode(coding: dict[str, int], path: Path, labels: list[str], lines: list[int]) -> list[int]:
    """The labels of a file as 0..3."""
    for label, line in zip(labels, lines):
        if label.lower() not in coding:
            problem = f"label {label!r} is not one of the four ({', '.join(coding)} in this data). "
            raise _wrong(path, line, f"{problem}Accepted codings: {CODINGS}.")
    return [coding[label.lower()] for label in labels]


def _split(train: dict, test: dict, name: str, recipe: Recipe):
    """The three splits, checked: two rows of each class to train on, a whole batch, something to test."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    have, count = len(train["label"]), Counter(train["label"])
    few = [f"{label} {count[i]}" for i, label in enumerate(LABELS) if count[i] < 2]
    if few:
        need = "each class needs at least 2 training rows, one to learn from and one to validate with"
        raise DataError(f"{name}: {need}; found {', '.join(few)}.")
    n_validation = max(4, round(recipe.validation_share * have))
    if have - n_validation < recipe.batch_size:
        left = f"{have} training rows, of which {n_validation} validate, leave fewer than one batch"
        raise DataError(f"{name}: {left} of {recipe.batch_size}. Use more rows or a smaller batch_size.")
    if not test["label"]:
        raise DataError(f"{name} has no test rows.")
    learn, validate = _deal(train, have - n_validation, recipe.seed)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
    splits = {"train": learn, "validation": validate, "test": test}
    return DatasetDict({key: Dataset.from_dict(rows, features=features) for key, rows in splits.items()})


def _deal(rows: dict, n: int, seed: int) -> tuple[dict, dict]:
    """`n` rows and the others, the same share of each class in both, each in the file's order.

    Where that cannot be, the first `n`; the checks in `_split` still hold.
    """
    from sklearn.model_selection import train_test_split

    labels = rows["label"]
    fair = len(labels) - n >= 4 and min(Counter(labels).values()) >= 2
    how = dict(stratify=labels, random_state=seed) if fair else dict(shuffle=False)
    parts = train_test_split(range(len(labels)), train_size=n, **how)
    # Lists, because `Dataset.select` leaves row numbers that `add_column` resolves behind a progress bar.
    return tuple({key: [values[i] for i in sorted(part)] for key, values in rows.items()} for part in parts)
