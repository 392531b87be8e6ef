"""Read texts from files: bytes to cells, header to columns, row to problem."""

import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .errors import DataError

LINE_END = re.compile("\r\n?|\n")
# The separator behind the first field, which may have one inside quotation marks.
FIRST_SEPARATOR = re.compile(r'(?:(?:"[^"]*")+ *|[^,;\t|\r\n]*)([,;\t|])')
LABEL_NAME = re.compile("(labels?|class|category|target|topic)([ _-]?(id|index|name))?")
ROW_NUMBER_NAME = re.compile("(unnamed.*|id|index)?")
# -1 often means that there is no class; lists are several.
NO_CLASS = re.compile(r"|-\d+|\[.*\]|\{.*\}|b'.*'")
# A null byte, or half of a character that takes two units in UTF-16.
UNREADABLE = re.compile("[\0\ud800-\udfff]")
CLOSE_IT = "Close it, or write each one inside a field twice."


@dataclass
class Table:
    """The cells of a file.

    Attributes
    ----------
    path : Path
        The file.
    header : list of str or None
        The names of the columns; None in CSV and TSV before they are found.
    records : dict of int to list
        The cells of each row that is not blank, by the line on which the row begins
        (in Parquet by the number of the row, from 1). All rows are of one length.
    separator : str
        What separates the fields in CSV and TSV; otherwise empty.
    """

    path: Path
    header: list[str] | None
    records: dict[int, list]
    separator: str = ""


@dataclass
class Texts:
    """The texts of a file, checked.

    Attributes
    ----------
    table : Table
        All cells, with names for all columns.
    labels : list of str
        The label of each row in its plain form; empty if the file has none.
    texts : list of str
        The text of each row.
    layout : list of str
        What was taken for what, in words.
    """

    table: Table
    labels: list[str]
    texts: list[str]
    layout: list[str]


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
        The name of the split.

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

    With a header the label is the column that `LABEL_NAME` matches; the text is
    ``text``, or ``title`` and ``description``, or the only other column. Without
    one the first column is the label and the rest is text, as in the data sets of
    Zhang, Zhao and LeCun (2015).

    Parameters
    ----------
    path : Path
        A .csv, .tsv, .jsonl or .parquet file; the first three also as .gz.
    label_column : str or None
        Name of the label's column; None: the header tells.
    text_columns : str or None
        Names of the text columns with commas between; None: the header tells.
    labelled : bool
        Whether each row needs a label.

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
    wanted = [name.strip() for name in (text_columns or "").split(",") if name.strip()]
    table = split_header(read_table(path), bool(label_column or wanted))
    if not table.records:
        raise DataError(f"{path} has no rows.")
    if table.header is None:
        first_row = next(iter(table.records.values()))
        table.header = [f"column {i + 1}" for i in range(len(first_row))]
        # Without labels a number in front is one all the same, or a number of the row.
        if labelled or len(first_row) > 1 and first_row[0].isdecimal():
            label_column, *wanted = table.header
    label, texts = choose_columns(table.header, label_column, wanted)
    if labelled and label is None or not texts or label in texts:
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, table.header))}. Which is "
            "the label, and which are the text? Say so: --label-column NAME, "
            "--text-columns A,B (AGNEWS_LABEL_COLUMN, AGNEWS_TEXT_COLUMNS)."
        )
    read = Texts(table, [], [], _describe(table, label, texts))
    for line, cells in table.records.items():
        read.labels.append("" if label is None else plain_label(cells[label]))
        read.texts.append(_join([cells[i] for i in texts]))
        problem = row_problem(read.labels[-1], read.texts[-1], labelled)
        if problem:
            raise row_error(path, line, problem)
    if label is not None and table.separator:
        _check_quotation_marks(table, label, set(read.labels) - {""})
    return read


# Bytes to cells


def read_table(path: Path) -> Table:
    """Read the cells of a file; its name says of which kind it is.

    Parameters
    ----------
    path : Path
        A .csv, .tsv, .jsonl or .parquet file; the first three also as .gz.

    Returns
    -------
    Table
        The cells.

    Raises
    ------
    DataError
        If the file is not what its name says, or is malformed.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there, or is a folder or a pipe.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return _parse_parquet(path)
    if kind == "jsonl":
        return _parse_json_lines(path)
    if kind in ("csv", "tsv"):
        return _parse_csv(path, kind)
    raise DataError(f"{path} must end in .csv, .tsv, .jsonl or .parquet.")


def read_text(path: Path) -> str:
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
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if is_wide else "utf-8-sig"
        text = content.decode(encoding)
        before, null_byte, _ = text.partition("\0")
        if not null_byte:
            return text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip ({error}). Get it again.") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding)
    problem = "not UTF-8 text. Save the file as UTF-8; Excel calls that CSV UTF-8."
    raise row_error(path, len(LINE_END.split(before)), problem)


def _parse_csv(path: Path, kind: str):
    """Parse CSV or TSV, and note the line on which each row begins."""
    text = read_text(path)
    match = FIRST_SEPARATOR.match(text.lstrip(" \r\n"))
    separator = match[1] if match else ","
    if kind == "tsv":
        separator = "\t"
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    records, line = {}, 1
    limit = csv.field_size_limit(len(text))  # Python's own is 131,072 characters
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records[line] = cells
            line = reader.line_num + 1
    except csv.Error as error:
        problem = f"a quotation mark opens in this row, and then: {error}. {CLOSE_IT}"
        raise row_error(path, line, problem) from None
    finally:
        csv.field_size_limit(limit)
    width = len(next(iter(records.values()), ()))
    for line, cells in records.items():
        if len(cells) != width:
            problem = f"{len(cells)} fields, and the first row has {width}"
            advice = f"Put quotation marks around a field with {separator!r} in it."
            raise row_error(path, line, f"{problem}. {advice}")
    return Table(path, None, records, separator)


def _parse_json_lines(path: Path):
    """Parse JSON lines; the columns are the names that any of the objects has."""
    items = {}
    for line, content in enumerate(LINE_END.split(read_text(path)), 1):
        try:
            if content.strip():
                items[line] = {**json.loads(content)}
        except (TypeError, ValueError, RecursionError):
            problem = 'no JSON object, such as {"label": "...", "text": "..."}.'
            raise row_error(path, line, problem) from None
    header = list(dict.fromkeys(chain(*items.values())))
    records = {
        line: [item.get(name) for name in header] for line, item in items.items()
    }
    return Table(path, header, records)


def _parse_parquet(path: Path):
    """Parse Parquet; classes whose names `datasets` has stored are read as names."""
    from datasets import ClassLabel, Dataset
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            dataset = Dataset(file.read())
        columns = dataset.to_dict()
    except Exception as error:  # pyarrow has many ways to say it
        problem = f"cannot be read as Parquet ({type(error).__name__}). Get it again."
        raise DataError(f"{path} {problem}") from error
    for name, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            names = dict(enumerate(feature.names))
            columns[name] = [names.get(value, value) for value in columns[name]]
    return Table(path, list(columns), dict(enumerate(zip(*columns.values()), 1)))


# Header to columns


def split_header(table: Table, is_expected: bool) -> Table:
    """Take the first row of CSV or TSV as the header, if it holds names of columns.

    Parameters
    ----------
    table : Table
        The cells of a file.
    is_expected : bool
        Whether the first row is known to be a header.

    Returns
    -------
    Table
        The rows below the header, or the table itself if it has no such row.

    Raises
    ------
    DataError
        If the header comes a second time.
    """
    if table.header is not None or not table.records:
        return table
    (_, first_row), *others = table.records.items()
    names = _plain_names(first_row)
    known = {"text", "description", *filter(LABEL_NAME.fullmatch, names)}
    # Beside a number, which is a label, "Target" is a title.
    has_number = any(map(str.isdecimal, names))
    if not is_expected and (has_number or known.isdisjoint(names)):
        return table
    for line, cells in others:
        if cells == first_row:
            raise row_error(table.path, line, "the header once more. Remove this line.")
    header = [name.strip() for name in first_row]
    return Table(table.path, header, dict(others), table.separator)


def choose_columns(
    header: list[str], label_column: str | None, text_columns: list[str]
) -> tuple[int | None, list[int]]:
    """Choose the columns of label and text by their names.

    Parameters
    ----------
    header : list of str
        The names of the columns.
    label_column : str or None
        The name that was asked for, if any.
    text_columns : list of str
        The names that were asked for, if any.

    Returns
    -------
    tuple of int or None and list of int
        The index of the label's column and those of the text columns; None or an
        empty list if they are unclear.
    """
    names = _plain_names(header)
    labels = [i for i, name in enumerate(names) if LABEL_NAME.fullmatch(name)]
    if label_column:
        labels = _positions(header, [label_column])
    label = labels[0] if len(labels) == 1 else None
    if text_columns:
        return label, _positions(header, text_columns)
    texts = _positions(names, ["text"]) or _positions(names, ["title", "description"])
    others = [
        i
        for i, name in enumerate(names)
        if i != label and not ROW_NUMBER_NAME.fullmatch(name)
    ]
    return label, texts or (others if len(others) == 1 else [])


def _positions(names: list[str], wanted: list[str]):
    """Return the indices of names; none unless each of them is there exactly once."""
    if all(names.count(name) == 1 for name in wanted):
        return [names.index(name) for name in wanted]
    return []


def _plain_names(names: list[str]):
    """Write names of columns as they are compared."""
    return [plain_label(name).lower() for name in names]


def _describe(table: Table, label: int | None, texts: list[int]):
    """Say what was taken for what."""
    names = [repr(name) for name in table.header]
    unused = [name for i, name in enumerate(names) if i not in (label, *texts)]
    layout = []
    if table.separator not in ("", ","):
        layout.append(f"separator {table.separator!r}")
    if label is not None:
        layout.append(f"label column {names[label]}")
    layout.append(f"text {', '.join(names[i] for i in texts)}")
    if unused:
        layout.append(f"not used {', '.join(unused)}")
    return layout


# Row to problem


def row_problem(label: str, text: object, labelled: bool) -> str | None:
    """Say why a row cannot be used.

    Parameters
    ----------
    label : str
        Its label in its plain form.
    text : object
        Its text, or what stands in its place.
    labelled : bool
        Whether a label is needed.

    Returns
    -------
    str or None
        What is wrong, and what to do; None if the row can be used.
    """
    if labelled and NO_CLASS.fullmatch(label):
        problem = f"the label {label[:40]}, where one class is needed"
        advice = "Write its name (below 0 means none), or remove the row."
        return f"{problem if label else 'no label'}. {advice}"
    if problem := problem_of(text):
        return f"a row {problem}. Remove it, or say which column is text."
    return None


def _check_quotation_marks(table: Table, label: int, labels: set[str]):
    """Raise DataError if a field holds whole rows of the file."""
    separator = table.separator
    for line, cells in table.records.items():
        # Without its quotation marks the row is several lines. If these are rows, each
        # looks like one. The line with this row's own label need not: it may have
        # separators inside other quotation marks.
        lines = LINE_END.split(separator.join(cells))
        up_to_label = LINE_END.split(separator.join(cells[: label + 1]))
        del lines[len(up_to_label) - 1]
        rows = [other.split(separator) for other in lines]
        if rows and all(
            len(row) == len(cells) and plain_label(row[label]) in labels for row in rows
        ):
            problem = (
                f"a quotation mark opens here and swallows the row {lines[0][:40]!r}"
            )
            raise row_error(table.path, line, f"{problem}. {CLOSE_IT}")


def _join(cells: list):
    """Join the parts of a text; a cell that is no string is returned alone."""
    parts = ["" if cell is None else cell for cell in cells]
    for part in parts:
        if not isinstance(part, str):
            return part
    return " ".join(parts).strip()


def plain_label(label: object) -> str:
    """Write a label as it is compared.

    Parameters
    ----------
    label : object
        A cell.

    Returns
    -------
    str
        The label without invisible characters and needless spaces, in normal width,
        and with 03 and 3.0 as 3; empty for None and NaN.
    """
    if label is None or label != label:
        return ""
    text = unicodedata.normalize("NFKC", str(label))
    visible = [char for char in text if char.isprintable() or char.isspace()]
    text = " ".join("".join(visible).split())
    if re.fullmatch(r"[+-]?\d+(\.0*)?", text):
        text = text.removeprefix("+").partition(".")[0]
    # A longer number that begins with 0 is a code, such as that of a district.
    return text[1] if re.fullmatch(r"0\d", text) else text


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
