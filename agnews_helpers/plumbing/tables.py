"""Files of texts as people have them, row by row: CSV, TSV, JSON lines and Parquet. Notebook 07.

No row is read before it is asked for, so a file may be larger than the memory.
"""

import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections import namedtuple
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from .errors import DataError

# How a file begins whose name must end in this.
SIGNATURES = {
    b"\x1f\x8b": ".gz",
    b"PAR1": ".parquet",
    b"PK\x03\x04": ".xlsx",
    b"\xd0\xcf\x11\xe0": ".xls",
}
LABEL = re.compile(
    "(labels?|class|category|target|topic)([ _-]?(id|index|name))?"
)  # what a header calls it
SEPARATORS = ",;\t|"
# The separator behind the first field, which may have one inside quotation marks.
FIRST = re.compile(rf'(?:"[^"]*")+\s*([{SEPARATORS}])|[^{SEPARATORS}]*([{SEPARATORS}])')
UNREADABLE = re.compile(
    "[\0\ud800-\udfff]"
)  # a null byte, and what is made below of bytes that are no text
NO_CLASS = re.compile(
    r"|-\d+|\[.*\]|\{.*\}|b'.*'"
)  # -1 often means that there is none; lists are several
# A file's rows as (line, values, label, text), the names of its columns, and its layout in words.
Texts = namedtuple("Texts", "rows columns separator layout")
MOST = (
    2**24
)  # characters of a field or line; more is a quotation mark or a line break that is missing


def wrong(path: Path, line: int | str, problem: str) -> DataError:
    """The error of a row: its file and line, what is wrong, what to do."""
    return DataError(
        f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {line}: {problem}"
    )


def find_table(folder: Path, split: str) -> Path | None:
    """The file of a split, such as train.csv, Train.tsv, train.csv.gz or train-00000-of-00001.parquet.

    DataError where there are several.
    """
    pattern = rf"{split}(-\d+-of-\d+)?\.(csv|tsv|jsonl|parquet)(\.gz)?"
    found = sorted(
        path
        for path in folder.iterdir()
        if re.fullmatch(pattern, path.name, re.IGNORECASE)
    )
    if len(found) > 1 or found and re.search("-of-(?!0*1[.])", found[0].name):
        names = " and ".join(path.name for path in found)
        raise DataError(
            f"{folder} holds {names}. One whole file is needed: keep one, or join the parts."
        )
    return found[0] if found else None


def open_table(path: Path) -> tuple[list[str] | None, Iterator[tuple[int, list]], str]:
    """Columns, rows and separator, if any, of a file, whose name says of what kind it is.

    The columns are None in CSV and TSV, where the first row may have their names. With each row comes the
    line where it begins; in Parquet its number. DataError, here or while rows are taken, where the file is
    not what its name says, or a row is malformed.
    """
    name = path.name.lower()
    if not path.is_file():
        raise DataError(
            f"{path} is not there, or no file: a folder, a pipe, a link to nothing. Mend that."
        )
    with path.open("rb") as file:
        start = file.read(4)
    for signature, ending in SIGNATURES.items():
        if start.startswith(signature) and not name.endswith(ending):
            remedy = f"it begins as {ending} does. Call it so, or save a workbook's sheet as CSV UTF-8."
            raise DataError(f"{path} is not what its name says: {remedy}")
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("csv", "tsv"):
        separator, skipped = _separator(path, kind)
        return None, _csv_rows(path, separator, skipped), separator
    if kind not in ("jsonl", "parquet"):
        raise DataError(
            f"{path} has no name of a table; it must end in .csv, .tsv, .jsonl or .parquet."
        )
    records = (_json_records if kind == "jsonl" else _parquet_records)(path)
    return next(records, []), records, ""


def read_texts(
    path: Path, label_column=None, text_columns=None, labelled: bool = True
) -> Texts:
    """Label and text of each row.

    With a header the label is the column that `LABEL` describes; the text is ``text``, or ``title`` and
    ``description``, or the only other column. Without one the first column is the label and the rest is text,
    joined by a space: the layout of Zhang, Zhao and LeCun's sets. `label_column` and `text_columns` (several
    with commas between) are their names where they have others; `labelled` says whether a label is needed.
    DataError where a file or row cannot be used, as of `open_table`, or where a label or a text is missing.
    """
    columns, records, separator = open_table(path)
    if (first := next(records, None)) is None and not columns:
        return Texts(iter(()), [], separator, [])
    asked = [name.strip() for name in (text_columns or "").split(",") if name.strip()]
    cells = columns or first[1]
    kinds, width = [plain_label(cell).lower() for cell in cells], len(cells)
    known = any(
        kind in ("text", "description") or LABEL.fullmatch(kind) for kind in kinds
    )
    # Beside a number, which is a label, "Target" is a title.
    if columns is None and (
        label_column or asked or known and not any(map(str.isdecimal, kinds))
    ):
        columns, first = [name.strip() for name in cells], None
    label, texts = _choose(path, columns, kinds, label_column, asked, labelled)

    def rows():
        for line, values in chain([first] if first else [], records):
            if len(values) != width:
                advice = f"Put quotation marks around a field with {separator!r} in it, and close each one."
                raise wrong(
                    path,
                    line,
                    f"{len(values)} fields, and the first row has {width}. {advice}",
                )
            if values == columns:
                raise wrong(path, line, "the header once more. Remove this line.")
            found = "" if label is None else plain_label(values[label])
            if labelled and NO_CLASS.fullmatch(found):
                problem = (
                    f"the label {found[:40]}, where one class is needed"
                    if found
                    else "no label"
                )
                raise wrong(
                    path,
                    line,
                    f"{problem}. Write its name (below 0 means none), or remove the row.",
                )
            parts = ["" if values[i] is None else values[i] for i in texts]
            odd = [part for part in parts if not isinstance(part, str)]
            text = odd[0] if odd else " ".join(parts).strip()
            if problem := problem_of(text):
                raise wrong(
                    path,
                    line,
                    f"a row {problem}. Remove it, or say which column is text.",
                )
            yield line, values, found, text

    layout = [f"separator {separator!r}"] if separator not in ("", ",") else []
    if columns is None and not labelled:
        layout.append(
            "no header: "
            + ("the first column is no text" if width > 1 else "each line is a text")
        )
    if columns and (
        asked or kinds != ["text", "label"] and kinds[1:] != ["title", "description"]
    ):
        unused = [i for i in range(width) if i not in (label, *texts)]
        use = {
            "label column": [] if label is None else [label],
            "text": texts,
            "not used": unused,
        }
        named = {
            what: ", ".join(repr(columns[i]) for i in some)
            for what, some in use.items()
        }
        layout += [f"{what} {names}" for what, names in named.items() if names]
    return Texts(
        rows(), columns or [f"column {i + 1}" for i in range(width)], separator, layout
    )


def _choose(
    path, columns, kinds, label_column, asked, labelled
) -> tuple[int | None, list[int]]:
    """Which column is the label, and which are the text."""
    if columns is None:
        if len(kinds) == 1 and labelled:
            raise DataError(
                f"{path} has one column; a label and a text are needed, comma or tab between."
            )
        if len(kinds) > 1 and not labelled and not kinds[0].isdecimal():
            advice = "If they are names, say which: --text-columns A,B. If not, write names above them."
            raise DataError(
                f"{path}: which of the {len(kinds)} columns of its first line are text? {advice}"
            )
        return (0 if len(kinds) > 1 else None), [*range(len(kinds))][
            -max(1, len(kinds) - 1) :
        ]
    listed = f"{path} has the columns {', '.join(map(repr, columns))}"
    for name in filter(None, [label_column, *asked]):
        if columns.count(name) != 1:
            raise DataError(
                f"{listed}; {name!r} is {'several' if name in columns else 'none'} of them."
            )
    labels = [i for i, kind in enumerate(kinds) if LABEL.fullmatch(kind)]
    label = (
        columns.index(label_column)
        if label_column
        else labels[0]
        if len(labels) == 1
        else None
    )
    if label is None and labelled:
        raise DataError(
            f"{listed}. Which is the label? Say so: --label-column NAME (AGNEWS_LABEL_COLUMN)."
        )
    for names, wanted in (
        (columns, asked),
        (kinds, ["text"]),
        (kinds, ["title", "description"]),
    ):
        if wanted and {*wanted} <= {*names}:
            if label in (texts := [names.index(name) for name in wanted]):
                raise DataError(
                    f"{listed}; {columns[label]!r} is the label, and cannot be a text as well."
                )
            return label, texts
    number = ("", "unnamed", "id", "index")  # of a row
    texts = [
        i
        for i, kind in enumerate(kinds)
        if i != label and kind.split(":")[0] not in number
    ]
    if len(texts) != 1:
        raise DataError(
            f"{listed}. Which are the text? Say so: --text-columns A,B (AGNEWS_TEXT_COLUMNS)."
        )
    return label, texts


def plain_label(label) -> str:
    """A label without what nobody sees or means: space around it, zero-width characters, 03 or 3.0 for 3."""
    text = (
        "" if label is None or label != label else str(label)
    )  # not a number: pandas' missing value
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    text = "".join(
        character for character in text if unicodedata.category(character)[0] != "C"
    ).strip()
    number = re.fullmatch(r"\+?(-?)(?:0(?=\d(?:\.|$)))?([1-9]\d*|\d)(\.0*)?", text)
    return number[1] + number[2] if number else text


def problem_of(text) -> str | None:
    """Why something cannot be used as a text; None where it can."""
    if not isinstance(text, str):
        return f"whose text is the {type(text).__name__} {str(text)[:40]}"
    if not any(unicodedata.category(character)[0] not in "CZ" for character in text):
        return "without text"
    return (
        "with a null byte or half a character, so not UTF-8"
        if UNREADABLE.search(text)
        else None
    )


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends: UTF-8, or UTF-16 with a byte-order mark; gzip is unpacked.

    DataError for a line that is no text, or too long.
    """
    opened, number = gzip.open if path.name.lower().endswith(".gz") else open, 0
    try:
        with opened(path, "rb") as file:
            wide = file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            how = (
                ("utf-16", "surrogatepass")
                if wide
                else ("utf-8-sig", "surrogateescape")
            )
            text = io.TextIOWrapper(file, *how, newline="")
            for number, line in enumerate(iter(lambda: text.readline(MOST + 1), ""), 1):
                if bad := UNREADABLE.search(line):
                    raise wrong(path, number, _not_text(bad[0]))
                if len(line) > MOST:
                    raise wrong(
                        path,
                        number,
                        f"over {MOST:,} characters. Is a line break missing?",
                    )
                yield (
                    "" if line.strip() == "\x1a" else line.rstrip("\x1a")
                )  # an end mark of old systems
    except UnicodeDecodeError:
        raise wrong(
            path, number + 1, "UTF-16 that breaks off here. Get the file again."
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip ({error}). Get it again.") from None


def _not_text(character: str) -> str:
    if not "\udc80" <= character <= "\udcff":
        return "a null byte or half a character. Save the file as UTF-8, without it."
    byte = bytes([ord(character) - 0xDC00])
    likely = f"{byte[0]:#04x}; {byte.decode('cp1252', 'replace')!r} in Windows-1252, Excel's plain CSV"
    return f"a byte that is not UTF-8 ({likely}). Save the file as UTF-8; Excel calls that CSV UTF-8."


def _separator(path: Path, kind: str) -> tuple[str, int]:
    """What separates the fields, as the first line shows, and how many lines come before it (``sep=;``)."""
    for number, line in enumerate(read_lines(path)):
        if said := re.fullmatch(rf'"?sep=([{SEPARATORS}])"?\s*', line, re.IGNORECASE):
            return said[1], number + 1
        if line.strip():
            found = FIRST.match(line.lstrip(" "))
            return "\t" if kind == "tsv" else found[
                found.lastindex
            ] if found else ",", number
    return ",", 0


def _csv_rows(
    path: Path, separator: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    lines = islice(read_lines(path), skipped, None)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    row, line = [], skipped + 1  # where the row at hand begins
    while row is not None:
        if any(
            field.strip() for field in row
        ):  # else separators, as spreadsheets leave them at the end
            yield line, row
        line, limit = (
            skipped + reader.line_num + 1,
            csv.field_size_limit(MOST),
        )  # one for all of Python
        try:
            row = next(reader, None)
        except csv.Error as error:
            problem = f"a quotation mark opens in this row, and the rest is not well-formed ({error})"
            raise wrong(
                path,
                line,
                f"{problem}. Close it, or write each one inside a field twice.",
            ) from None
        finally:
            csv.field_size_limit(limit)


def _json_records(path: Path) -> Iterator:
    """First the names of the columns, those of the first object; then (line, values) of each."""
    columns, left_out = None, set()
    for line, text in enumerate(read_lines(path), 1):
        if text.strip():
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise wrong(
                    path,
                    line,
                    'no JSON object on one line, as {"label": "...", "text": "..."} is.',
                )
            if bad := UNREADABLE.search("".join(map(str, chain(*values.items())))):
                raise wrong(path, line, _not_text(bad[0]))
            if columns is None:
                yield (columns := list(values))
            if new := {*values}.difference(columns, left_out):
                left_out |= new
                print(
                    f"note: {path.name} has {', '.join(sorted(new))} from line {line} on: left out."
                )
            yield line, [values.get(name) for name in columns]


def _parquet_records(path: Path) -> Iterator:
    """First the names of the columns; then (number, values) of each row."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield (columns := file.schema_arrow.names)
            told = json.loads(
                (file.schema_arrow.metadata or {}).get(b"huggingface", "{}")
            )
            kinds = told.get("info", {}).get(
                "features", {}
            )  # where `datasets` notes names of classes
            names = [kinds.get(column, {}).get("names") for column in columns]
            lists = (
                [c.to_pylist() for c in batch.columns]
                for batch in file.iter_batches(4096)
            )
            rows = chain.from_iterable(zip(*columns) for columns in lists)
            for line, row in enumerate(rows, 1):
                yield (
                    line,
                    [
                        n[v] if n and v in range(len(n)) else v
                        for n, v in zip(names, row)
                    ],
                )
    except Exception as error:  # pyarrow has many ways to say it
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as Parquet ({reason}). Get it again."
        ) from None
