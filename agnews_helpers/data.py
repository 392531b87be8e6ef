"""AG News from the Hub, from a folder or from the sample in this package: always the same `DatasetDict`.

Notebook 02 looks at the rows. Everything that could spoil a training run is checked here, before it starts.
"""
import csv
import io
from collections import Counter
from pathlib import Path

from .hub import from_hub
from .recipe import HUB_DATA, LABELS, Recipe

SAMPLE = Path(__file__).parent / "sample"
COLUMNS = ("class", "title", "description")
HEADERS = {"class", "class index", "label"}  # what the first column is called in the copies in circulation
CODINGS = "1-4 (1 World, 2 Sports, 3 Business, 4 Sci/Tech), 0-3 in the same order, or the four names"


class DataError(ValueError):
    """The data cannot be used; the message names the file, the row and the remedy."""


def load_agnews(recipe: Recipe):
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
        train, test = _read_hub()
    else:
        folder = SAMPLE if recipe.data == "sample" else Path(recipe.data)
        train, test = _read_folder(folder)
    shared = len(set(train["text"]) & set(test["text"]))
    if shared:
        print(f"note: {shared:,} texts stand in both train and test; a test score counts them as known.")
    train, test = _draw(train, recipe.train_rows, recipe, "train"), _draw(test, recipe.test_rows, recipe, "test")
    return _split(train, test, recipe)


def _read_hub():
    """Both splits of the public data set, from the Hub or from its local cache."""
    from datasets import load_dataset

    def load(anew):
        news = load_dataset(HUB_DATA, download_mode="force_redownload" if anew else None)
        return tuple({"text": news[split]["text"][:], "label": news[split]["label"][:]} for split in ("train", "test"))

    return from_hub(HUB_DATA, load)


def _read_folder(folder: Path):
    """Both files of a folder. The training file decides the coding of the labels, since it has all four."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. AGNEWS_DATA must be a folder with train.csv and test.csv "
                        "(or train.parquet and test.parquet).")
    raw = {}
    for split in ("train", "test"):
        for ending, read in ((".csv", read_csv), (".parquet", read_parquet)):
            path = folder / (split + ending)
            if path.is_file():
                raw[split] = (path, *read(path))
                break
        else:
            raise DataError(f"{folder} has neither {split}.csv nor {split}.parquet.")
    coding = _coding(raw["train"][0], raw["train"][1])
    return tuple({"text": texts, "label": _decode(path, labels, lines, coding)}
                 for path, labels, texts, lines in raw.values())


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
        line = path.read_bytes()[:error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: a byte that is not UTF-8. Save the file as UTF-8.") from None
    labels, texts, lines = [], [], []
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        line = 1  # where the row at hand begins
        for row in reader:
            first = line == 1
            start, line = line, reader.line_num + 1
            if not row or first and row[0].strip().lower() in HEADERS:
                continue
            if len(row) != len(COLUMNS):
                raise DataError(f"{path}, line {start}: {len(row)} fields, expected 3: {', '.join(COLUMNS)}. "
                                "Put quotation marks around a field that has a comma in it.")
            texts.append(_join(path, start, row[1], row[2]))
            labels.append(row[0].strip())
            lines.append(start)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a well-formed CSV row ({error}).") from None
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
        raise DataError(f"{path} has the columns {', '.join(map(str, table.columns))}; it needs text and label.")
    lines = list(range(1, len(table) + 1))
    texts = [_join(path, line, "", text) for line, text in zip(lines, table["text"])]
    return [str(label) for label in table["label"]], texts, lines


def _join(path: Path, line: int, title: str, description: str) -> str:
    text = f"{title} {description}".strip() if isinstance(description, str) else ""
    if not text:
        raise DataError(f"{path}, line {line}: a row without text. Remove it or fill it in.")
    return text


def _coding(path: Path, labels: list[str]) -> dict[str, int]:
    """Which of the three codings the training file uses, as raw label -> 0..3."""
    if not labels:
        raise DataError(f"{path} has no rows.")
    by_name = {name.lower(): i for i, name in enumerate(LABELS)}
    codings = ({str(i + 1): i for i in range(4)}, {str(i): i for i in range(4)}, by_name)
    found = {label.lower() for label in labels}
    # Labels 1 to 3 alone would fit two codings, so all four must be there to tell. An unknown label is
    # reported against the coding that explains most rows.
    best = max(codings, key=lambda coding: sum(label.lower() in coding for label in labels))
    absent = [LABELS[i] for name, i in best.items() if name not in found]
    if found <= set(best) and absent:
        raise DataError(f"{path} has no row of class {', '.join(absent)}; training needs all four. "
                        f"Labels found: {', '.join(sorted(found))}. Accepted codings: {CODINGS}.")
    return best


def _decode(path: Path, labels: list[str], lines: list[int], coding: dict[str, int]) -> list[int]:
    for label, line in zip(labels, lines):
        if label.lower() not in coding:
            raise DataError(f"{path}, line {line}: label {label!r} is not one of the four "
                            f"({', '.join(coding)} in this data). Accepted codings: {CODINGS}.")
    return [coding[label.lower()] for label in labels]


def _draw(rows: dict, n: int | None, recipe: Recipe, split: str) -> dict:
    """`n` rows with each class's share kept, in the file's order; all of them for None."""
    from sklearn.model_selection import train_test_split

    have = len(rows["label"])
    if n is not None and n > have:
        raise DataError(f"{split}_rows is {n:,}, but {_name(recipe)} has only {have:,} {split} rows.")
    if n is None or n == have:
        return rows
    if min(Counter(rows["label"]).values()) < 2 or have - n < 4:
        keep = list(range(n))  # too few to stratify; the checks that follow still hold
    else:
        keep, _ = train_test_split(range(have), train_size=n, stratify=rows["label"], random_state=recipe.seed)
    keep = sorted(keep)
    return {name: [values[i] for i in keep] for name, values in rows.items()}


def _split(train: dict, test: dict, recipe: Recipe):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from sklearn.model_selection import train_test_split

    count = Counter(train["label"])
    few = [f"{LABELS[i]} {count[i]}" for i in range(4) if count[i] < 2]
    if few:
        raise DataError(f"{_name(recipe)}: each class needs at least 2 training rows, one to learn from and one to "
                        f"validate with; found {', '.join(few)}.")
    n_validation = max(4, round(recipe.validation_share * len(train["label"])))
    if len(train["label"]) - n_validation < recipe.batch_size:
        raise DataError(f"{_name(recipe)}: {len(train['label'])} training rows, of which {n_validation} validate, leave "
                        f"fewer than one batch of {recipe.batch_size}. Use more rows or a smaller batch_size.")
    if not test["label"]:
        raise DataError(f"{_name(recipe)} has no test rows.")
    learn, validate = train_test_split(range(len(train["label"])), test_size=n_validation,
                                       stratify=train["label"], random_state=recipe.seed)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})

    def dataset(rows, keep):
        return Dataset.from_dict({name: [values[i] for i in keep] for name, values in rows.items()}, features=features)

    return DatasetDict(train=dataset(train, sorted(learn)), validation=dataset(train, sorted(validate)),
                       test=dataset(test, range(len(test["label"]))))


def _name(recipe: Recipe) -> str:
    return {"sample": "the sample", HUB_DATA: f"{HUB_DATA} on the Hub"}.get(recipe.data, f"the data in {recipe.data}")
