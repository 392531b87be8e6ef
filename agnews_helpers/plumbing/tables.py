"""Read texts from CSV, TSV, JSON lines and Parquet, and check each row."""

import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .errors import DataError

LINE_END = re.compile("\r\n?|\n")
# The separator behind the first field, which may have one inside quotation marks.
FIRST_SEPARATOR = re.compile(r'(?:(?:"[^"]*")+ *|[^,;\t|\r\n]*)([,;\t|]?)')
LABEL_NAME = re.compile("(labels?|class|category|target|topic)([ _-]?(id|index|name))?")
HEADER_NAME = re.compile(f"text|description|{LABEL_NAME.pattern}")
ROW_NUMBER_NAME = re.compile("(unnamed.*|id|index)?")
# -1 often means that there is no class; lists are several.
NO_CLASS = re.compile(r"|-\d+|\[.*\]|\{.*\}|b'.*'")
# A null byte, or half of a character that takes two units in UTF-16.
UNREADABLE = re.compile("[\0\ud800-\udfff]")
JOINERS = "\u200c\u200d"  # not printable, and yet part of words
CLOSE_IT = "Close it, or write each one inside a field twice."


@dataclass
class Texts:
    """The texts of a file, checked.

    Attributes
    ----------
    path : Path
        The file.
    table : pd.DataFrame
        All cells. The index is the line on which each row begins (in Parquet the
        number of the row, from 1).
    rows : pd.DataFrame
        ``text`` and ``label`` of each row, with the same index. A label is written as
        in the file; it is empty if the file has none.
    layout : str
        Which columns were taken for what.
    """

    path: Path
    table: pd.DataFrame
    rows: pd.DataFrame
    layout: str


def row_error(path: Path, line: int | str, problem: str) -> DataError:
    """Build the error of a row.

    Parameters
    ----------
    path : Path
        The file.
    line : int or str
        The line, or several with commas between.
    problem : str
        What is wrong, and what to do.

    Returns
    -------
    DataError
        The error, to be raised.
    """
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    return DataError(f"{path}, {unit} {line}: {problem}")


def find_table(folder: Path, split: str) -> Path | None:
    """Find the file of a split, such as train.csv, Train.tsv or train.jsonl.gz.

    Parameters
    ----------
    folder : Path
        The folder with the data.
    split : str
        The name of the split, as a regular expression.

    Returns
    -------
    Path or None
        The file; None if there is none.

    Raises
    ------
    DataError
        If there are several files, or the file is one of several parts.
    """
    pattern = rf"{split}(-\d+-of-\d+)?\.(csv|tsv|jsonl|parquet)(\.gz)?"
    files = sorted(
        path
        for path in folder.iterdir()
        if re.fullmatch(pattern, path.name, re.IGNORECASE)
    )
    if len(files) > 1 or files and re.search("-of-(?!0*1[.])", files[0].name):
        raise DataError(
            f"{folder} holds {' and '.join(path.name for path in files)}. "
            "One whole file is needed: keep one, or join the parts."
        )
    return files[0] if files else None


def read_texts(
    path: Path,
    label_column: str | None = None,
    text_columns: str | None = None,
    labelled: bool = True,
) -> Texts:
    """Read a file, and check each of its rows.

    With a header the label is the column ``label_text``, or the one that `LABEL_NAME`
    matches; the text is ``text``, or ``title`` and ``description``, or the only other
    column. Without a header the first column is the label and the rest is text, as in
    the data sets of Zhang, Zhao and LeCun (2015).

    Parameters
    ----------
    path : Path
        A .csv, .tsv, .jsonl or .parquet file; the first three also as .gz.
    label_column : str or None
        Name of the label's column; None: the header tells.
    text_columns : str or None
        Names of the text columns with commas between; None: the header tells.
    labelled : bool
        Whether each row needs a label and a text.

    Returns
    -------
    Texts
        All rows of the file.

    Raises
    ------
    DataError
        If the file cannot be read or has no rows, if it is unclear which columns
        are label and text, or if a row cannot be used.
    """
    table, separator = _read_table(path)
    if separator and len(table):
        if label_column or text_columns or _is_header(table.iloc[0]):
            table = table[1:].set_axis(table.iloc[0].str.strip(), axis=1)
        else:
            table.columns = [f"column {i + 1}" for i in table.columns]
            # Even without labels, a number in front of a text is not part of it.
            if labelled or len(table.columns) > 1 and table.iloc[0, 0].isdecimal():
                label_column = table.columns[0]
                text_columns = ",".join(table.columns[1:])
    if table.empty:
        raise DataError(f"{path} has no rows.")
    label, texts = _choose_columns(table.columns, label_column, text_columns)
    if labelled and len(label) != 1 or not texts or {*label} & {*texts}:
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, table.columns))}. Which is "
            "the label, and which are the text? Say so: --label-column NAME, "
            "--text-columns A,B (AGNEWS_LABEL_COLUMN, AGNEWS_TEXT_COLUMNS)."
        )
    cells = table.iloc[:, texts].fillna("").to_numpy().tolist()
    labels = table.iloc[:, label[0]].map(written_label) if label else ""
    columns = {"text": [*map(_join, cells)], "label": labels}
    rows = pd.DataFrame(columns, table.index, dtype=object)
    _check_rows(path, rows, labelled)
    if separator:
        known = {*map(plain_label, rows["label"])} - {""}
        _check_quotation_marks(path, table, separator, known)
    return Texts(path, table, rows, _describe(table.columns, label, texts))


# Bytes to cells


def _read_table(path):
    """Return the cells of a file, and its separator; its name tells of which kind."""
    if not path.is_file():
        raise DataError(f"{path} is not there, or is a folder or a pipe.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return _parse_parquet(path), ""
    if kind == "jsonl":
        return _parse_json_lines(path), ""
    if kind in ("csv", "tsv"):
        return _parse_csv(path, kind)
    raise DataError(f"{path} must end in .csv, .tsv, .jsonl or .parquet.")


def decode_file(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte-order mark.

    Parameters
    ----------
    path : Path
        The file; gzip is unpacked.

    Returns
    -------
    str
        The text with its line ends as they are.

    Raises
    ------
    DataError
        If the file is no text, or its gzip is damaged.
    """
    content = path.read_bytes()
    try:
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise row_error(
            path,
            line,
            "not UTF-8 text. Save the file as UTF-8; Excel calls that CSV UTF-8.",
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip ({error}). Get it again.") from None


def _parse_csv(path, kind):
    """Parse CSV or TSV, and note the line on which each row begins."""
    text = decode_file(path)
    separator = FIRST_SEPARATOR.match(text.lstrip(" \r\n"))[1] or ","
    if kind == "tsv":
        separator = "\t"
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # Python's own is 131,072 characters
    rows, line, width = {}, 1, None
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                width = width or len(cells)
                if len(cells) != width:
                    problem = (
                        f"{len(cells)} fields, and the first row has {width}. Put "
                        f"quotation marks around a field with {separator!r} in it."
                    )
                    raise row_error(path, line, problem)
                rows[line] = cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise row_error(
            path,
            line,
            f"a quotation mark opens in this row, and then: {error}. {CLOSE_IT}",
        ) from None
    finally:
        csv.field_size_limit(limit)
    return _as_frame(rows), separator


def _parse_json_lines(path):
    """Parse JSON lines; the columns are the names that any of the objects has."""
    rows = {}
    for line, content in enumerate(LINE_END.split(decode_file(path)), 1):
        try:
            if content.strip():
                rows[line] = {**json.loads(content)}
        except (TypeError, ValueError, RecursionError):
            raise row_error(
                path, line, 'no JSON object, such as {"label": "...", "text": "..."}.'
            ) from None
    return _as_frame(rows)


def _as_frame(rows):
    """Make a table of rows by line, without a change of any type."""
    return pd.DataFrame([*rows.values()], [*rows], dtype=object)


def _parse_parquet(path):
    """Parse Parquet; classes whose names `datasets` has stored are read as names."""
    from datasets import ClassLabel, Dataset
    from pyarrow.parquet import ParquetFile

    try:
        dataset = Dataset(ParquetFile(path).read())
        table = pd.DataFrame(dataset.to_dict(), dtype=object)
    except Exception as error:  # pyarrow has many ways to say it
        raise DataError(
            f"{path} cannot be read as Parquet ({type(error).__name__}). Get it again."
        ) from error
    for name, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            table[name] = table[name].replace(dict(enumerate(feature.names)))
    return table.set_axis(table.index + 1)


# Header to columns


def _is_header(first_row):
    """Say whether the first row holds names of columns."""
    names = _plain_names(first_row)
    # Beside a number, which is a label, "Target" is a title.
    return not any(map(str.isdecimal, names)) and any(map(HEADER_NAME.fullmatch, names))


def _choose_columns(header, label_column, text_columns):
    """Return the indices of label and text, as asked for or by name."""
    names = _plain_names(header)

    def find(wanted):
        # None unless each of them is there exactly once
        wanted = _plain_names(wanted)
        if all(names.count(name) == 1 for name in wanted):
            return [names.index(name) for name in wanted]
        return []

    label = find([label_column or "label_text"])
    if not label_column and not label:
        label = find(filter(LABEL_NAME.fullmatch, names))
    if text_columns:
        return label, find(text_columns.split(","))
    others = [
        i
        for i, name in enumerate(names)
        if i not in label and not ROW_NUMBER_NAME.fullmatch(name)
    ]
    only_other = others if len(others) == 1 else []
    return label, find(["text"]) or find(["title", "description"]) or only_other


def _plain_names(names):
    """Write names of columns as they are compared."""
    return [plain_label(name) for name in names]


def _describe(columns, label, texts):
    """Say what was taken for what."""
    roles = {
        "label column": columns[label],
        "text": columns[texts],
        "not used": columns.delete(label + texts),
    }
    return " · ".join(
        f"{role} {', '.join(map(repr, names))}"
        for role, names in roles.items()
        if len(names)
    )


# Row to problem


def _check_rows(path, rows, labelled):
    """Raise DataError if a row cannot be used."""
    for line, text, label in rows.itertuples():
        problem = problem_of(text) if labelled or text != "" else None
        if labelled and NO_CLASS.fullmatch(label):
            problem = f"with the label {label[:40]!r}, where one class is needed"
        if problem:
            raise row_error(path, line, f"a row {problem}. Mend or remove it.")


def _check_quotation_marks(path, table, separator, labels):
    """Raise DataError if a field holds whole rows of the file."""
    for line, cells in zip(table.index, table.to_numpy().tolist()):
        # Without quotation marks, such a row is several lines, each like a row.
        rows = [
            other.split(separator) for other in LINE_END.split(separator.join(cells))
        ]
        if len(rows) > 1 and all(
            len(row) >= len(cells) and {*map(plain_label, row)} & labels for row in rows
        ):
            raise row_error(
                path,
                line,
                f"a quotation mark opens here and swallows rows. {CLOSE_IT}",
            )


def _join(cells):
    """Join the parts of a text; a cell that is no string is returned alone."""
    for cell in cells:
        if not isinstance(cell, str):
            return cell
    return " ".join(cells).strip()


def written_label(label: object) -> str:
    """Write a label as it is shown: as in the file, but for what cannot be seen.

    Parameters
    ----------
    label : object
        A cell.

    Returns
    -------
    str
        The label without control characters and needless spaces, and with 3.0 as 3;
        empty for None and NaN.
    """
    if label is None or label != label:
        return ""
    text = "".join(
        char
        for char in str(label)
        if char.isprintable() or char.isspace() or char in JOINERS
    )
    text = " ".join(text.split())
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0*", text) else text


def plain_label(label: object) -> str:
    """Write a label as it is compared.

    Parameters
    ----------
    label : object
        A cell.

    Returns
    -------
    str
        As `written_label`, in normal width, in lower case and without joiners.
    """
    text = unicodedata.normalize("NFKC", written_label(label)).casefold()
    return "".join(char for char in text if char not in JOINERS)


def problem_of(text: object) -> str | None:
    """Say why something cannot be used as a text.

    Parameters
    ----------
    text : object
        What may be a text.

    Returns
    -------
    str or None
        What is wrong; None if it can be used.
    """
    if not isinstance(text, str):
        return f"whose text is the {type(text).__name__} {str(text)[:40]}"
    if not any(char.isprintable() and char != " " for char in text):
        return "without text"
    if UNREADABLE.search(text):
        return "with a null byte or half a character, so not UTF-8"
    return None
