"""Read labelled texts as people have them: bytes to cells, columns, and rows.

Every row of a file is either usable or has a reason why it is not; nothing is dropped.
"""

import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd

from .errors import DataError

KINDS = "csv|tsv|jsonl|ndjson|json|parquet"
LINE_END = re.compile("\r\n?|\n")
# The separator behind the first field, which may have one inside quotation marks.
FIRST_SEPARATOR = re.compile(r'(?:(?:"[^"]*")+ *|[^,;\t|\r\n]*)([,;\t|]?)')
LABEL_NAME = re.compile(
    "(labels?|class|category|target|topic|sentiment|emotion|intent)"
    "([ _-]?(id|index|names?|text))?"
)
HEADER_NAME = re.compile(
    "id|index|text|description|messages?|reviews?|comments?|content|sentence|headline|body|tweet"
    f"|question|{LABEL_NAME.pattern}"
)
ROW_NUMBER_NAME = re.compile("(unnamed.*|id|index)?")
# What a text in Windows-1252 does not have: bytes without a meaning, most control
# characters, and letters, quotation marks and emoji as UTF-8 writes them (a capital A
# with a tilde ends words in capitals in Portuguese: some marks may follow it)
NOT_WINDOWS = re.compile(
    rb"[\0-\b\x0e-\x1a\x1c-\x1f\x81\x8d\x8f\x90\x9d]|(?<![A-Z])[\xc2\xc3][\x80-\xbf]"
    rb"|[\xc2\xc3](?![\x85\x91-\x97\xa0\xbb])[\x80-\xbf]|\xe2\x80|\xf0\x9f"
)
# A null byte, or half of a character that takes two units in UTF-16.
UNREADABLE = re.compile("[\0\ud800-\udfff]")
WORD = re.compile(r"[^\W\d_]")
JOINERS = "\u200c\u200d"  # not printable, and yet part of words
NAMED = 20  # so many kinds of problems, and lines of each, are named
NO_TEXT = "without text"
EMPTY = "empty"  # all cells, as in the rows that spreadsheets append
WRONG_MARK = (
    "a quotation mark opens or ends in this row. Close it, or write each one inside a "
    "field twice"
)


@dataclass
class Texts:
    """The texts of a file, checked.

    Attributes
    ----------
    path : Path
        The file; of several parts the first.
    table : pd.DataFrame
        All rows that could be read. The index is the line on which each begins (in
        Parquet and in a JSON list the number of the row, from 1).
    unused : dict
        Line -> why a row could not be read, and what stands there.
    separator : str
        What separates the fields; empty if the file has none.
    encoding : str
        How the file is written.
    unit : str
        What the index counts: "line" or "row".
    notes : list of str
        What was taken for what, and what was assumed.
    rows : pd.DataFrame
        ``text``, ``name``, ``plain``, ``problem`` and ``content`` of each row, also of
        those in `unused`. The name is the label as in the file, empty if there is none,
        and ``plain`` is what it is compared by. The problem is the reason why a row
        cannot be used, empty if it can; the content is what stands in the file.
    columns : tuple
        Names of the label's column (None if there is none) and of the text's columns.
    """

    path: Path
    table: pd.DataFrame
    unused: dict = field(default_factory=dict)
    separator: str = ""
    encoding: str = "utf-8"
    unit: str = "line"
    notes: list[str] = field(default_factory=list)
    rows: pd.DataFrame | None = None
    columns: tuple = ()

    @property
    def usable(self) -> pd.DataFrame:
        """pd.DataFrame: Those of `rows` that have no problem."""
        return self.rows[self.rows["problem"] == ""]

    @property
    def problems(self) -> pd.DataFrame:
        """pd.DataFrame: ``line``, ``problem`` and ``content`` of the other rows."""
        bad = self.rows[self.rows["problem"] != ""]
        return bad[["problem", "content"]].rename_axis("line").reset_index()

    def describe_problems(self, but: str = "") -> list[str]:
        """Say which rows cannot be used: each kind of problem with its first lines.

        Rows of empty cells, as spreadsheets append them, are left out.

        Parameters
        ----------
        but : str
            A problem that is none here.

        Returns
        -------
        list of str
            Empty if all can.
        """
        bad = self.problems
        bad = bad[~bad["problem"].isin([EMPTY, but])]
        kinds = [*bad.groupby("problem", sort=False)["line"]]
        found = []
        for problem, lines in kinds[:NAMED]:
            named = ", ".join(map(str, lines[:NAMED]))
            if len(lines) > NAMED:
                named += f" and {len(lines) - NAMED:,} more"
            found.append(f"{self.path.name}, {self.unit} {named}: {problem}")
        if rest := kinds[NAMED:]:
            found.append(f"{self.path.name}: {len(rest):,} kinds more")
        return found


def find_tables(folder: Path, split: str) -> list[Path]:
    """Find the file of a split, such as train.csv, Train.tsv or data/train.jsonl.gz.

    Parameters
    ----------
    folder : Path
        The folder with the data; its folder ``data`` is looked into as well.
    split : str
        The names of the split, as a regular expression.

    Returns
    -------
    list of Path
        The file, or all parts of a Parquet file such as
        ``train-00000-of-00002.parquet``; empty if there is none.

    Raises
    ------
    DataError
        If there are several files, or one of several parts is missing.
    """
    pattern = re.compile(
        rf"({split})(\.({KINDS})|-(\d+)-of-(\d+)(-\w+)?\.parquet)(\.gz)?", re.IGNORECASE
    )
    for place in (folder, folder / "data"):
        names = sorted(path.name for path in place.glob("*"))
        found = [*filter(None, map(pattern.fullmatch, names))]
        numbers = [int(match[4] or 0) for match in found]
        totals = {int(match[5] or 1) for match in found}
        count = len(found)
        if numbers != [*range(count)] or totals - {count}:
            raise DataError(
                f"{place} holds {' and '.join(match[0] for match in found[:4])}. One "
                "whole file is needed, or all parts of one Parquet file: keep one, or "
                "join them."
            )
        if found:
            return [place / match[0] for match in found]
    return []


def read_texts(
    paths: list[Path],
    label_column: str | None = None,
    text_columns: Sequence[str] = (),
    labelled: bool = True,
    known: Sequence[str] = (),
) -> Texts:
    """Read a file, choose its columns, and check each of its rows.

    The label is the column that `LABEL_NAME` matches (of ``label`` and ``label_text``,
    if they are one to one, the one with names), or the only one beside ``text``, or the
    only one whose values repeat: at most a tenth of the rows have different ones. The
    text is ``text``, or ``title`` and ``description``, or the only other column.
    Without a header and repeating values the first column is the label and the rest is
    text, as in the data sets of Zhang, Zhao and LeCun (2015). A file that need not be
    labelled is read without a header only if `text_columns` are such as "column 1": its
    header would else become a row.

    Parameters
    ----------
    paths : list of Path
        One file, or all parts of a Parquet file.
    label_column : str or None
        Name of the label's column; None: see above.
    text_columns : sequence of str
        Names of the text columns; empty: see above.
    labelled : bool
        Whether there must be a column of labels.
    known : sequence of str
        Text columns of a file like this: they are taken if they are there.

    Returns
    -------
    Texts
        All rows, also those that cannot be used.

    Raises
    ------
    DataError
        If the file cannot be read or has no rows, or if it is unclear which columns are
        label and text.
    """
    found = _read_table(paths)
    table = found.table
    asked = [name for name in (label_column, *text_columns) if name]
    if found.separator and len(table):
        if _has_header(table, asked, known):
            table = table[1:].set_axis(table.iloc[0].str.strip(), axis=1)
        else:
            table.columns = [f"column {i + 1}" for i in table.columns]
    if table.empty:
        reasons = [f": {found.unit} {n}: {why[0]}" for n, why in found.unused.items()]
        raise DataError(
            f"{found.path} has no rows that can be read{''.join(reasons[:1])}."
        )
    label, texts = _choose_columns(table, label_column, text_columns, labelled, known)
    if question := _question(table, label, texts, labelled, asked):
        raise DataError(f"{found.path} {question}")
    words = [_join(row) for row in table.iloc[:, texts].to_numpy()]
    separator = found.separator or " | "
    contents = [separator.join(map(str, row)) for row in table.to_numpy()]
    rows = pd.DataFrame({"text": words, "content": contents}, table.index, dtype=object)
    rows["name"] = table.iloc[:, label[0]].map(written_label) if label else ""
    rows["plain"] = rows["name"].map(plain_label)
    rows["problem"] = rows["text"].map(problem_of)
    cells = rows["content"].str.strip(f"{separator} ")
    rows.loc[cells == "", "problem"] = EMPTY
    unused = pd.DataFrame.from_dict(
        found.unused, "index", object, ["problem", "content"]
    )
    found.table = table
    found.rows = pd.concat([rows, unused]).fillna("").sort_index()
    found.columns = next(iter(table.columns[label]), None), [*table.columns[texts]]
    role = label if labelled or label_column else []
    found.notes.insert(0, _describe(table.columns, role, texts))
    return found


# Bytes to cells


def _read_table(paths):
    """Read the cells of a file; its name tells of which kind it is."""
    path = paths[0]
    if not all(map(Path.is_file, paths)):  # a pipe would be waited for
        raise DataError(f"{path} is not there, or is a folder or a pipe.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        return _parse_parquet(paths)
    if kind in ("jsonl", "ndjson", "json"):
        return _parse_json(path)
    if kind in ("csv", "tsv"):
        return _parse_csv(path, kind)
    raise DataError(
        f"{path} must end in .{KINDS.replace('|', ', .')}: save it as CSV UTF-8."
    )


def decode_file(path: Path) -> tuple[str, str, list[str]]:
    """Read a text file in UTF-8, in UTF-16 with a byte-order mark, or Windows-1252.

    Parameters
    ----------
    path : Path
        The file; gzip is unpacked.

    Returns
    -------
    tuple
        The text with its line ends as they are, the name of the encoding, and a note if
        that was a guess.

    Raises
    ------
    DataError
        If the file is no text, or its gzip is damaged.
    """
    content = path.read_bytes()
    try:
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip ({error}). Get it again.") from None
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    has_mark = content.startswith(codecs.BOM_UTF8)
    encoding = "utf-16" if is_wide else "utf-8-sig" if has_mark else "utf-8"
    try:
        return content.decode(encoding), encoding, []
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
    if encoding != "utf-8" or NOT_WINDOWS.search(content):
        raise DataError(
            f"{path}, line {line}: neither UTF-8 text nor, as a whole, Windows-1252. "
            "Save it as UTF-8 (Excel: CSV UTF-8), unpack a zip, call Parquet .parquet."
        )
    text = content.decode("cp1252")
    word = re.search(r"\w*[^\0-\x7f]\w*", text)[0]
    return text, "cp1252", [f"not UTF-8, so read as Windows-1252, such as {word!r}"]


def _parse_csv(path, kind):
    """Parse CSV or TSV; a quotation mark that is wrong spoils its own line alone."""
    text, encoding, notes = decode_file(path)
    text = re.sub(r"^sep=.", "", text)  # for Excel
    separator = FIRST_SEPARATOR.match(text.lstrip(" \r\n"))[1] or ","
    if kind == "tsv":
        separator = "\t"
    lines = list(io.StringIO(text, newline=""))
    rows, unused = _split(lines, separator)
    if kind == "tsv" and (unused or len({*map(len, rows.values())}) > 1):
        unquoted, _ = _split(lines, separator, csv.QUOTE_NONE)
        if len({*map(len, unquoted.values())}) == 1:
            rows, unused = unquoted, {}
            notes.append("quotation marks are part of the texts")
    width = len(next(iter(rows.values()), ()))
    for line, cells in [*rows.items()]:
        if len(cells) != width:
            problem = (
                f"{len(cells)} fields, and the first row has {width}, separated by "
                f"{separator!r}. Put quotation marks around a field with {separator!r} "
                "in it (the next row may be its end), fill up missing ones, or delete "
                "a title or footer"
            )
            unused[line] = problem, separator.join(rows.pop(line))
    for line in [*_swallowing(rows, separator)]:
        unused[line] = WRONG_MARK, separator.join(rows.pop(line))
    return Texts(
        path,
        _as_frame(rows),
        unused,
        separator,
        encoding,
        notes=notes,
    )


def _split(lines, separator, quoting=csv.QUOTE_MINIMAL):
    """Split lines into rows of cells, by the line on which each begins.

    A line with a wrong quotation mark is left out; a new row begins in the next one.
    """
    rows, unused, start = {}, {}, 0
    csv.field_size_limit(2**31 - 1)  # Python's own is 131,072 characters
    while start < len(lines):
        reader = csv.reader(
            lines[start:],
            delimiter=separator,
            skipinitialspace=True,
            quoting=quoting,
            strict=True,
        )
        line = start + 1
        try:
            for cells in reader:
                rows[line] = cells
                line = start + reader.line_num + 1
            start = len(lines)
        except csv.Error:
            unused[line] = WRONG_MARK, lines[line - 1].rstrip("\r\n")
            start = line
    # A row of empty cells is a row, but not above the first one; a blank line is none.
    first = next((n for n, row in rows.items() if "".join(row).strip()), 1e9)
    single = max(map(len, rows.values()), default=0) < 2  # but of one column it is
    rows = {
        n: row or [""]
        for n, row in rows.items()
        if n >= first and (single or len(row) > 1 or "".join(row).strip())
    }
    return rows, unused


def _swallowing(rows, separator):
    """Find rows of several lines that mostly end, and go on, as rows do.

    Two quotation marks that are no pair have made one row of several.
    """

    def shape(cell):
        return re.sub(r"\d+", "0", cell)  # numbers and dates are all alike

    firsts, lasts = ({shape(row[i]) for row in rows.values()} - {""} for i in (0, -1))
    # Texts hardly repeat, so they tell nothing.
    first, last = (4 * len(ends) <= 3 * len(rows) for ends in (firsts, lasts))
    for line, row in rows.items():
        parts = [part.split(separator) for part in LINE_END.split(separator.join(row))]
        breaks = [
            (not last or shape(before[-1]) in lasts)
            and (not first or shape(after[0]) in firsts)
            for before, after in pairwise(parts)
        ]
        whole = sum(len(part) >= len(row) for part in parts)
        mostly = 2 * whole > len(parts) and sum(breaks) > len(breaks) / 2
        if mostly and (first or last):
            yield line


def _parse_json(path):
    """Parse one list of objects, or one object a line."""
    text, encoding, notes = decode_file(path)
    is_list = text.lstrip().startswith("[")
    try:
        items = json.loads(text) if is_list else LINE_END.split(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no list of JSON objects: {error}.") from None
    rows, unused = {}, {}
    for number, item in enumerate(items, 1):
        try:
            if is_list or item.strip():
                rows[number] = {**(item if is_list else json.loads(item))}
        except (TypeError, ValueError, RecursionError):
            problem = (
                'no JSON object, such as {"label": "...", "text": "..."}; a file has '
                "one a line, or one list of them"
            )
            unused[number] = problem, str(item)
    return Texts(
        path,
        _as_frame(rows),
        unused,
        encoding=encoding,
        unit="row" if is_list else "line",
        notes=notes,
    )


def _parse_parquet(paths):
    """Parse Parquet; classes whose names `datasets` has stored are read as names."""
    from datasets import ClassLabel, Dataset
    from pyarrow import concat_tables
    from pyarrow.parquet import ParquetFile

    try:
        dataset = Dataset(concat_tables([ParquetFile(path).read() for path in paths]))
        table = _as_frame(dict(enumerate(dataset.to_list(), 1)))
    except Exception as error:  # pyarrow has many ways to say it
        raise DataError(
            f"{paths[0]} cannot be read as Parquet ({type(error).__name__}). Get it "
            "again."
        ) from error
    for name in table:
        if isinstance(feature := dataset.features[name], ClassLabel):
            # -1 is none of them, so it becomes NaN.
            table[name] = table[name].map(dict(enumerate(feature.names)))
    return Texts(paths[0], table, unit="row")


def _as_frame(rows):
    """Make a table of rows by line, without a change of any type."""
    return pd.DataFrame([*rows.values()], [*rows], dtype=object)


# Header to columns


def _has_header(table, asked, known):
    """Say whether the first row holds names of columns, such as those asked for."""
    names = [*map(plain_label, table.iloc[0])]
    # "column 1" is our own name for a column without one.
    if asked and not plain_label(asked[-1]).startswith("column "):
        return True
    wanted = {*map(plain_label, known)}
    # Beside a number, which is a label, "Target" is a title.
    if any(HEADER_NAME.fullmatch(name) or name in wanted for name in names):
        return not any(map(str.isdecimal, names))
    if max(map(len, names)) > 50:  # a text
        return False
    rest = table[1:]
    labels = [i for i in rest if _repeats(rest[i], 0.1)]
    return bool(labels) and all(
        names[i] not in {*map(plain_label, rest[i])} for i in labels
    )


def _repeats(column, share):
    """Say whether at most this share of the values differ, so that they may be labels.

    One value alone tells nothing.
    """
    values = {*map(plain_label, {*map(str, column)})}
    return 2 <= len(values) <= share * len(column)


def _has_words(column):
    """Say whether a column is more than numbers and dates below a header."""
    words = [cell for cell in column if isinstance(cell, str) and WORD.search(cell)]
    return 2 * len(words) >= len(column)


def _choose_columns(table, label_column, text_columns, labelled, known):
    """Return the indices of label and text: as asked for, by name, or by values."""
    names = [*map(plain_label, table.columns)]
    has_header = names[0] != "column 1"

    def find(wanted):
        # Empty unless each of them is there exactly once
        wanted = [*map(plain_label, wanted)]
        if all(names.count(name) == 1 for name in wanted):
            return [names.index(name) for name in wanted]
        return []

    free = [i for i, name in enumerate(names) if not ROW_NUMBER_NAME.fullmatch(name)]
    label = find(
        [label_column] if label_column else filter(LABEL_NAME.fullmatch, names)
    )
    if len(label) > 1:
        pairs = table.iloc[:, label].map(plain_label).drop_duplicates()
        if (pairs.nunique() == len(pairs)).all():  # such as label and label_text
            # The last label in the alphabet stands for its column.
            label = [i for i, name in zip(label, pairs.max()) if not name.isdecimal()]
    usual = find(known) or find(["text"]) or find(["title", "description"])
    texts = find(text_columns) if text_columns else usual
    if labelled and not label and not label_column:
        others = [i for i in free if i not in texts]
        most = 0.5 if texts and len(others) == 1 else 0.1
        label = [i for i in others if _repeats(table.iloc[:, i], most)]
        if not has_header and not label:
            label = [0]
    if not texts and not text_columns:
        others = [i for i in free if i not in label and _has_words(table.iloc[:, i])]
        # Without a header behind a label: title and text, as of Zhang et al.
        is_all_text = len(others) == 1 or not has_header and label == [0]
        texts = others if is_all_text and len(others) <= 3 else []
    return label, texts


def _question(table, label, texts, labelled, asked):
    """Ask which columns are text and label; empty if that is clear."""
    # A header that is not known as one must not become an answer.
    may_be_header = table.columns[0] == "column 1" and not (labelled or asked)
    if not texts or labelled and {*label} & {*texts} or may_be_header:
        wanted = "text? --text-columns A,B (beside a --label-column, to train)"
    elif labelled and len(label) != 1:
        wanted = "label? --label-column NAME"
    else:
        return ""
    return (
        f"has the columns {[*table.columns]}: which is the {wanted} says it. Row 1 is "
        f"{[str(cell)[:20] for cell in table.iloc[0]]}; if that is the header, give "
        "its names, each of which must be there once; if it stands further down, "
        "delete the lines above. A comma or semicolon separates columns, in a .tsv a "
        "tab. Test files have the training file's header."
    )


def _describe(columns, label, texts):
    """Say what was taken for what."""
    roles = f"text {', '.join(map(repr, columns[texts]))}"
    if label:
        roles = f"label column {columns[label[0]]!r} · {roles}"
    rest = columns.delete(label + texts)
    return f"{roles} · not used {', '.join(map(repr, rest))}" if len(rest) else roles


# Row to problem


def _join(cells):
    """Join the parts of a text; a cell that is no string is returned alone."""
    parts = [cell for cell in cells if cell is not None and cell == cell]
    odd = [cell for cell in parts if not isinstance(cell, str)]
    return odd[0] if odd else " ".join(parts).strip()


def written_label(label: object) -> str:
    """Write a label as it is shown: as in the file, but for what cannot be seen.

    Parameters
    ----------
    label : object
        A cell.

    Returns
    -------
    str
        The label without control characters and needless spaces, and with 3.0 as 3; of
        a list of one label that label. Empty for None, NaN and an empty list.
    """
    if isinstance(label, list) and len(label) < 2:
        label = label[0] if label else None
    if label is None or label != label:
        return ""
    text = "".join(
        char
        for char in str(label)
        if char.isprintable() or char.isspace() or char in JOINERS
    )
    text = " ".join(text.split())
    return re.sub(r"^(-?\d+)\.0{0,2}$", r"\1", text)


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


def problem_of(text: object) -> str:
    """Say why something cannot be used as a text.

    Parameters
    ----------
    text : object
        What may be a text.

    Returns
    -------
    str
        What is wrong; empty if it can be used.
    """
    if not isinstance(text, str):
        return f"whose text is the {type(text).__name__} {str(text)[:40]}"
    if not any(char.isprintable() and char != " " for char in text):
        return NO_TEXT
    if UNREADABLE.search(text):
        return "with a null byte or half a character: take it out, or save it as UTF-8"
    return ""
