"""One file at a time: what people save, and what is no table at all."""

import csv
import gzip
import io
import json
import os
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agnews_helpers import DataError
from agnews_helpers.plumbing.tables import (
    EMPTY,
    find_tables,
    plain_label,
    problem_of,
    read_texts,
    written_label,
)

LONG = bool(os.environ.get("AGNEWS_LONG"))  # five minutes of every kind of bytes
ANY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PAIRS = [
    ("Sports", "The cup final."),
    ("World", "A treaty, signed; at last"),
    ("Sports", "Rain at the race"),
]


def read(folder, content, name="any.csv", **options):
    """(label, text) of each row of a file with this content, or a DataError."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    texts = read_texts([path], **options)
    assert len(texts.rows) == len(texts.table) + len(texts.unused)
    found = texts.problems[["line", "problem"]].to_numpy().tolist()
    if found := [f"{texts.unit} {line}: {problem}" for line, problem in found]:
        raise DataError(f"{name}: {'; '.join(found[:5])}")
    return list(zip(texts.rows["name"], texts.rows["text"]))


def refused(folder, content, *parts, name="any.csv", **options):
    """The line in which a file is refused; it names the file and has these parts."""
    with pytest.raises(DataError) as error:
        read(folder, content, name, **options)
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 500, message
    assert message.isprintable() and not [
        part for part in parts if part not in message
    ], message
    return message


def as_csv(rows, separator=",", quoting=csv.QUOTE_MINIMAL, header=()):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, quoting=quoting).writerows(
        [header, *rows] if header else rows
    )
    return file.getvalue()


# separators and headers


@pytest.mark.parametrize(
    "separator, quoting, header",
    [
        (",", csv.QUOTE_MINIMAL, ("label", "text")),
        (",", csv.QUOTE_ALL, ()),
        (";", csv.QUOTE_ALL, ("Class Index", "Description")),
        ("\t", csv.QUOTE_MINIMAL, ()),
        ("|", csv.QUOTE_MINIMAL, ("Category", "Body")),
    ],
)
def test_separators_quoted_or_not_with_and_without_a_header(
    tmp_path, separator, quoting, header
):
    assert read(tmp_path, as_csv(PAIRS, separator, quoting, header)) == PAIRS


def test_the_separator_stands_first_and_may_stand_in_every_text(tmp_path):
    rows = [("Sports", f"first, second {i}") for i in range(9)]
    assert read(tmp_path, "".join(f"{label};{text}\n" for label, text in rows)) == rows
    rows = [("Food, drink", f"bread; cheese {i}") for i in range(9)]
    assert read(tmp_path, as_csv(rows, ";", csv.QUOTE_ALL)) == rows
    assert read(tmp_path, as_csv(rows, ",")) == rows
    content = "\r\n \r\n" + as_csv(rows, ";", csv.QUOTE_ALL)
    assert read(tmp_path, content) == rows


@pytest.mark.parametrize(
    "header, row",
    [
        (["", "text", "label"], ["0", "The words", "Sports"]),
        (["Unnamed: 0", "label", "text"], ["0", "Sports", "The words"]),
        (["text", "label"], ["The words", "Sports"]),
        (["label", "text"], ["Sports", "The words"]),
        (["message", "Category"], ["The words", "Sports"]),
        (["label_id", "text"], ["Sports", "The words"]),
        (["id", "label", "text"], ["17", "Sports", "The words"]),
        (["id", "topic", "headline"], ["17", "Sports", "The words"]),
        (["text_id", "text", "labels"], ["17", "The words", "Sports"]),
        (["text", "label", "label_text"], ["The words", "3", "Sports"]),
        (
            ["author", "class name", "description", "title"],
            ["Ann", "Sports", "words", "The"],
        ),
        (["TARGET", " Text "], ["Sports", "The words"]),
        (["\u200blabel", "te\u200bxt"], ["Sports", "The words"]),
        (["label", "text", "", ""], ["Sports", "The words", "", ""]),
    ],
)
def test_headers_in_many_words_and_any_order(tmp_path, header, row):
    assert read(tmp_path, as_csv([row], header=header)) == [("Sports", "The words")]


def test_columns_that_the_reader_names(tmp_path):
    content = as_csv(
        [["7", "Lob", "Gut", "und billig"]],
        ";",
        header=["Nr", "Kategorie", "Titel", "Nachricht"],
    )
    asked = dict(label_column="Kategorie", text_columns=["Titel", "Nachricht"])
    assert read(tmp_path, content, **asked) == [("Lob", "Gut und billig")]
    layout = read_texts([tmp_path / "any.csv"], **asked).notes[0]
    columns = "label column 'Kategorie' · text 'Titel', 'Nachricht' · not used 'Nr'"
    assert layout == columns
    asked = dict(label_column="kategorie", text_columns=["titel", " Nachricht"])
    assert read(tmp_path, content, **asked) == [("Lob", "Gut und billig")]
    columns, question = "['Nr', 'Kategorie'", "which is the text?"
    refused(tmp_path, content, columns, question, label_column="Sorte")
    refused(tmp_path, content, "--text-columns", question, label_column="Kategorie")
    asked = dict(label_column="Kategorie", text_columns=["Titel", "Titel"])
    assert read(tmp_path, content, **asked) == [("Lob", "Gut Gut")]
    asked = dict(label_column="Kategorie", text_columns=["Titel", "Kategorie"])
    refused(tmp_path, content, "'Kategorie'", question, **asked)
    twice = content.replace("Nr", "Kategorie", 1)
    asked = dict(label_column="Kategorie", text_columns=["Titel"])
    twice_there = "'Kategorie', 'Kategorie'", "which is the label?", "there once"
    refused(tmp_path, twice, *twice_there, **asked)


@pytest.mark.parametrize(
    "header",
    [
        ["headline", "text"],
        ["label", "category", "text"],
        ["label", "subject", "body"],
        ["label"],
    ],
)
def test_a_header_that_leaves_a_question_is_asked_about(tmp_path, header):
    same = ["x"] * len(header)
    content = as_csv([same, same, ["y", *same[1:]]], header=header)
    refused(tmp_path, content, repr(header[0]), "which is the ", "--label-column")


@pytest.mark.parametrize(
    "row", ["3,Target,What it sells", "3,,Words without a title", "3,Text,Another"]
)
def test_a_first_row_is_no_header_for_one_word_in_it(tmp_path, row):
    assert [label for label, _ in read(tmp_path, f"{row}\n4,Title,Words\n")] == [
        "3",
        "4",
    ]


def test_blank_lines_and_empty_rows(tmp_path):
    content = "\r\n\r\nlabel,text\r\n\r\nSports,The cup\r\n,\r\n , \r\n\r\n"
    (tmp_path / "any.csv").write_bytes(content.encode())
    found = read_texts([tmp_path / "any.csv"])
    assert found.table.index.tolist() == [5, 6, 7]  # a blank line is no row
    assert found.rows["problem"].tolist() == ["", EMPTY, EMPTY]
    assert found.describe_problems() == []
    (tmp_path / "any.csv").write_bytes(b",,\n" + b'3, "a title", "a, text"\n,,\n')
    found = read_texts([tmp_path / "any.csv"])
    assert found.rows["text"].tolist() == ["a title a, text", ""]
    # But of one column: an empty cell is saved as one.
    (tmp_path / "any.csv").write_bytes(b'text\n\nThe cup\n""\n')
    found = read_texts([tmp_path / "any.csv"], None, ["text"], labelled=False)
    assert found.rows["text"].tolist() == ["", "The cup", ""]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_line_for_excel_is_no_row(tmp_path, mark):
    (tmp_path / "any.csv").write_bytes(
        mark + b"sep=;\r\nlabel;text\r\nSports;A cup\r\n"
    )
    found = read_texts([tmp_path / "any.csv"])
    assert found.separator == ";" and found.rows["text"].tolist() == ["A cup"]
    assert found.table.index.tolist() == [3]


@pytest.mark.parametrize(
    "name, content",
    [
        ("any.csv", ""),
        ("any.csv", "label,text\n"),
        ("any.tsv", " \r\n"),
        ("any.jsonl", "\n\n"),
        ("any.csv", "\ufeff"),
    ],
)
def test_a_file_without_rows_is_an_error(tmp_path, name, content):
    refused(tmp_path, content, f"{name} has no rows", name=name)


@pytest.mark.parametrize(
    "content, parts",
    [
        ("3,one\n4,two, three\n", ["line 2", "3 fields", "first row has 2", "','"]),
        ("3,one,two\n4,three\n", ["line 2", "2 fields", "first row has 3"]),
        ("3;one\n4;two; three\n", ["line 2", "3 fields", "';'"]),
        ("3~one\n4~two\n", ["the columns ['column 1']", "which is the text?"]),
        ("\a~one\n", ["Row 1 is ['\\x07~one']; if that is the header"]),
        ('3,"one\n4,two\n3,three\n', ["line 1: a quotation mark opens", "Close it"]),
        ('3,one\n4,"two\n3,"three"\n4,"four"\n', ["line 2: a quotation mark opens"]),
        ('3,one\n4,"two \\"backslash\\" marks"\n', ["line 2", "inside a field twice"]),
        (
            '3,one,two\n4,"open\n3,three,four\n4,five 12"\n',
            ["line 2: 2 fields, and the first row has 3"],
        ),
        ("label,text\n3,\n", ["line 2", "without text"]),
        ('3,"\u200b\ufeff\x07"\n', ["which is the text?"]),
        ("3,one\n4,\x1b\x1b\n", ["line 2", "without text"]),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, content, parts):
    refused(tmp_path, content, *parts)


def test_a_first_row_that_is_unlike_most_is_the_one_to_mend(tmp_path):
    rows = [f"{('Sport', 'Web')[i % 2]};a text of its own {i}" for i in range(20)]
    content = "\n".join(["label;text;source", *rows])
    problem = "no rows that can be read: line 2: 2 fields, and the first row has 3"
    refused(tmp_path, content, problem, "Put quotation marks", "title")
    content = "\n".join(["Wirtschaft;'Nach der Wahl; ein Ueberblick'", *rows])
    (tmp_path / "any.csv").write_text(content, encoding="utf-8")
    problems = read_texts([tmp_path / "any.csv"]).problems
    assert problems["line"].tolist() == [*range(2, 22)]
    assert problems["problem"].str.startswith("2 fields, and the first row has 3").all()


def test_all_rows_that_cannot_be_used_are_listed_and_no_other_row_is_lost(tmp_path):
    """One quotation mark opens in a row, and one ends in another: one row of five."""
    words = [f"{chr(97 + i % 26)} word {'of ' * (i // 26)}it" for i in range(60)]
    lines = [f"{text},{('neg', 'pos')[i % 2]}" for i, text in enumerate(words)]
    lines[10] = '"He said it would not,neg'
    lines[12], lines[14] = "one field", 'and then he left",pos'
    lines[20], lines[30], lines[40] = ",neg", "one,two,three", '"never, closed,pos'
    (tmp_path / "any.csv").write_text("\n".join(["text,label", *lines]))
    texts = read_texts([tmp_path / "any.csv"])
    problems = texts.problems
    assert problems["line"].tolist() == [12, 22, 32, 42]
    marks = problems["problem"].str.startswith("a quotation mark")
    assert marks.tolist() == [True, False, False, True]
    swallowed = "\n".join(lines[10:15]).replace('"', "")
    assert problems["content"][0] == swallowed
    contents = [lines[n - 2] for n in problems["line"][1:]]
    assert problems["content"].tolist()[1:] == contents
    assert len(texts.rows) == 56 and (texts.rows["problem"] == "").sum() == 52


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("second", ["Thanks, Jo", "12345", "", "1. it is late"])
def test_texts_of_two_lines_between_other_columns_are_whole(
    tmp_path, separator, second
):
    """As tickets are exported: the row's own ends are no sign of other rows."""
    texts = [f"{chr(97 + i)} is wrong\n{second}" for i in range(26)]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    rows = [(i, text, ("Billing", "Bug")[i % 2]) for i, text in enumerate(texts)]
    writer.writerows([("id", "text", "topic"), *rows])
    name = "any.tsv" if separator == "\t" else "any.csv"
    found = read(tmp_path, file.getvalue().encode(), name)
    assert [text for _, text in found] == [text.strip() for text in texts]


@pytest.mark.parametrize(
    "lines",
    [
        ["id,text", "1,Where?", '2,"My number is\n123456"', "3,Money back"],
        ["id,kind,text", "1,a,Where?", '2,b,"My number is\n123456"', "3,a,Money"],
        ["rating,text", "5,Great", '4,"Call me at\n0171234567"', "1,Never again"],
        ["text,rating", "Great,5", '"5\nGreat product",4', "Never again,1"],
    ],
)
def test_a_number_on_a_line_of_its_own_is_no_row(tmp_path, lines):
    content = "\n".join(lines).encode()
    assert len(read(tmp_path, content, labelled=False)) == 3


@pytest.mark.parametrize("header", ["text,label,when", "when,text,label"])
def test_swallowed_rows_are_found_by_dates(tmp_path, header):
    """Also where no value of the first or the last column is there twice."""
    names = header.split(",")
    lines = []
    for i in range(30):
        row = {"text": f"{chr(97 + i % 26)}{i // 26} is wrong", "label": "ab"[i % 2]}
        row["when"] = f"2026-03-{i + 1:02}"
        row["text"] = {3: '"' + row["text"], 5: row["text"] + '"'}.get(i, row["text"])
        lines.append(",".join(row[name] for name in names))
    if names[0] == "when":  # a field begins with the mark only there
        lines[3] = lines[3].replace('"', "").replace(",", ',"', 1)
    path = tmp_path / "any.csv"
    path.write_text("\n".join([header, *lines]))
    texts = read_texts([path])
    assert texts.problems["line"].tolist() == [5]
    assert texts.problems["problem"][0].startswith("a quotation mark opens")
    assert len(texts.usable) == 27


def test_the_row_behind_a_wrong_quotation_mark_is_read(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text('label,text\na,one\nb,"5" inch\na,three\nb,four\n')
    texts = read_texts([path])
    assert texts.problems["line"].tolist() == [3]
    assert texts.usable["text"].tolist() == ["one", "three", "four"]


def test_numbers_below_two_lines_of_headers_are_no_texts(tmp_path):
    """Merged cells leave names empty; the second line would be the only word."""
    rows = [f"{i},It is number {i},{'ab'[i % 2]}" for i in range(40)]
    lines = "\n".join(["Ticket,,Category", "Number,Text,Final", *rows])
    refused(tmp_path, lines.encode(), "which is the text?", "delete the lines above")
    [_, *lines] = lines.split("\n")
    assert len(read(tmp_path, "\n".join(lines).encode(), label_column="Final")) == 40


# encodings


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le"]
)
@pytest.mark.parametrize("name", ["any.csv", "any.tsv", "any.jsonl", "any.csv.gz"])
def test_encodings_with_a_mark(tmp_path, encoding, name):
    rows = [("Größe", "zu groß; naïve 新聞 😀"), ("Preis", "5 €"), ("Preis", "zu 6 €")]
    lines = as_csv(rows, "\t" if "tsv" in name else ",")
    if "jsonl" in name:
        lines = "".join(
            json.dumps(dict(label=a, text=b), ensure_ascii=False) + "\n"
            for a, b in rows
        )
    mark = "\ufeff" if encoding[-2:] in ("be", "le") else ""
    data = (mark + lines).encode(encoding)
    data = gzip.compress(data) if name.endswith("gz") else data
    assert read(tmp_path, data, name) == rows


@pytest.mark.parametrize(
    "text", ["IRÃ…", "CRISTÃ’s", "AMANHÃ»", "IRÃ—EUA", "IRMÃ”", "CAMPEÃ\xa0"]
)
def test_legal_words_of_windows_1252_are_read(tmp_path, text):
    path = tmp_path / "any.csv"
    path.write_bytes(f"3,one\n4,{text} é\n3,two\n".encode("cp1252"))
    assert text.strip() in read_texts([path]).rows["text"].tolist()[1]


def test_windows_1252_is_read_with_a_note_that_shows_a_word(tmp_path):
    path = tmp_path / "any.csv"
    path.write_bytes("Größe,5 € für “Zoë”\nPreis,one\nPreis,two\n".encode("cp1252"))
    texts = read_texts([path])
    assert texts.rows["name"].tolist() == ["Größe", "Preis", "Preis"]
    assert texts.rows["text"].tolist()[0] == "5 € für “Zoë”"
    assert texts.encoding == "cp1252"
    assert texts.notes[1] == "not UTF-8, so read as Windows-1252, such as 'Größe'"


@pytest.mark.parametrize(
    "data, parts",
    [
        (b"3,one\n4,two\r\n3,\x81\n", ["line 3: neither UTF-8", "CSV UTF-8"]),
        (b"3,caf\xe9\n4,a\0b\n", ["line 1: neither UTF-8"]),
        (b"3,one\n4,a\0b\n", ["line 2", "null byte"]),
        ("3,one\n4,two\n".encode("utf-16-le"), ["line"]),
        ("3,one\n".encode("utf-32"), ["line"]),
        ("3,one\n4,two\n".encode("utf-16")[:-1], ["line 2: neither UTF-8"]),
        (b"\xff\xfe3\0,\0\x00\xd8x\0\n\0", ["line 1: neither UTF-8"]),
        ("Größe,Grüße\n".encode() + b"Lob,f\xfcr\n", ["line 2: neither UTF-8"]),
        ("Lob,Österreich\n".encode() + b"Lob,f\xfcr\n", ["line 2: neither UTF-8"]),
        ("LOB,MÜLL\n".encode() + b"Lob,f\xfcr\n", ["line 2: neither UTF-8"]),
        ("Ñandu,à la\n".encode() + b"Lob,f\xfcr\n", ["line 2: neither UTF-8"]),
        ("3,it’s\n".encode() + b"4,\xfc\n", ["line 2: neither UTF-8"]),
        ("3,\U0001f600\n".encode() + b"4,\xfc\n", ["line 2: neither UTF-8"]),
    ],
)
def test_bytes_that_are_no_text(tmp_path, data, parts):
    refused(tmp_path, data, *parts)


# big and odd fields


@pytest.mark.parametrize("name", ["any.csv", "any.jsonl", "any.parquet"])
def test_a_field_of_three_million_characters(tmp_path, name):
    rows = [("Sports", "word \u00e9 " * 400_000), ("World", "a"), ("World", "b")]
    table = pd.DataFrame(rows, columns=["label", "text"])
    if name == "any.parquet":
        table.to_parquet(buffer := io.BytesIO())
        data = buffer.getvalue()
    elif name == "any.jsonl":
        data = table.to_json(orient="records", lines=True)
    else:
        data = as_csv(rows)
    assert read(tmp_path, data, name) == [(label, text.strip()) for label, text in rows]


def test_a_quotation_mark_that_swallows_the_rest_is_named_where_it_opens(tmp_path):
    content = '3,one\n4,"two\n' + "".join(f"3,row {i}\n" for i in range(9_000))
    refused(tmp_path, content, "any.csv: line 2: a quotation mark opens", "twice")


def test_text_is_kept_as_it_is(tmp_path):
    text = 'N/A "null" \x0b\u2028 a\tb\nline, and\r\nanother $x_{$ [SEP] \x1b[31m'
    assert read(tmp_path, as_csv([("3", text)])) == [("3", text)]


# labels


@pytest.mark.parametrize(
    "label, plain",
    [
        ("3.0", "3"),
        ("-3.00", "-3"),
        ("1.000", "1.000"),  # in Germany a thousand
        ("0", "0"),
        ("0.0", "0"),
        ("0123", "0123"),
        ("3.5", "3.5"),
        (" 3 ", "3"),
        ("\u00a03\u200b", "3"),
        ("\ufeffSports\u200d", "Sports"),
        ("\uff13", "3"),
        ("Sci /\u00a0 Tech\t", "Sci / Tech"),
        ("Two\twords\nand more", "Two words and more"),
        (3, "3"),
        (3.0, "3"),
        (True, "True"),
        (None, ""),
        (float("nan"), ""),
        ("nan", "nan"),
        ("\x1b[31mred", "[31mred"),
        ("half\ud800", "half"),
        ("-1", "-1"),
        ("9" * 5000, "9" * 5000),
        ("1e3", "1e3"),
        ("1_000", "1_000"),
    ],
)
def test_labels_are_read_as_they_are_meant(label, plain):
    assert plain_label(label) == plain.casefold() == plain_label(plain)


@pytest.mark.parametrize(
    "label, written",
    [
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e33"),  # Thai: NFKC takes it apart
        ("\u0645\u06cc\u200c\u0631\u0648", "\u0645\u06cc\u200c\u0631\u0648"),
        ("01", "01"),
        ("\uff21", "\uff21"),
        (" Sci /  Tech ", "Sci / Tech"),
        ("\x1b[31mred", "[31mred"),
        (3.0, "3"),
        (None, ""),
    ],
)
def test_labels_are_written_as_in_the_file(label, written, tmp_path):
    assert written_label(label) == written == written_label(written)
    assert plain_label(label) == plain_label(written)


def test_names_beside_the_labels_are_the_labels(tmp_path):
    rows = [("0", f"calm {i}", "joy") for i in range(3)]
    rows += [("1", f"loud {i}", "anger") for i in range(3)]
    content = as_csv(rows, header=("label", "text", "label_text"))
    labels = [label for label, _ in read(tmp_path, content)]
    assert labels == ["joy"] * 3 + ["anger"] * 3
    labels = [label for label, _ in read(tmp_path, content, label_column="label")]
    assert labels == ["0"] * 3 + ["1"] * 3


def test_a_label_of_a_million_characters_takes_no_time():
    assert plain_label("0" * 10**6 + "x") == "0" * 10**6 + "x"


@pytest.mark.parametrize("number", ["0", "1", "2"])
def test_two_columns_of_the_label_that_are_not_one_to_one_are_asked_about(
    tmp_path, number
):
    rows = [("0", "calm", "joy"), ("1", "loud", "joy"), (number, "fair", "fear")]
    content = as_csv(rows, header=("label", "text", "label_text"))
    refused(tmp_path, content, "'label_text']: which is the label?")


@pytest.mark.parametrize(
    "header",
    ["label,text,label_text", "label,text,label_name", "target,text,target_names"],
)
def test_of_two_columns_of_the_label_the_names_are_taken(tmp_path, header):
    content = f"{header}\n0,calm,joy\n1,loud,anger\n0,fair,joy\n"
    assert [label for label, _ in read(tmp_path, content)] == ["joy", "anger", "joy"]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("?!", ""),
        ("😀", ""),
        ("", "without text"),
        ("\u200b \x00\ufeff\u00ad", "without text"),
        ("\ud800", "without text"),
        ("words \ud800", "half a character"),
        ("words \0", "null byte"),
        (5, "int 5"),
        (None, "NoneType"),
        (["a"], "list"),
    ],
)
def test_what_cannot_be_a_text(text, problem):
    assert problem in problem_of(text) and bool(problem) == bool(problem_of(text))


# not what its name says


def workbook():
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        # A fixed time, because a test needs the same name in each of two processes.
        file.writestr(zipfile.ZipInfo("xl/worksheets/sheet1.xml"), "<worksheet/>")
    return buffer.getvalue()


def parquet(**columns):
    pd.DataFrame(columns).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


def test_an_empty_parquet_with_classes_has_no_rows(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a"])})
    empty = Dataset.from_dict({"text": [], "label": []}, features)
    empty.to_parquet(tmp_path / "any.parquet")
    with pytest.raises(DataError, match="has no rows that can be read"):
        read_texts([tmp_path / "any.parquet"])


@pytest.mark.parametrize(
    "data, name, parts",
    [
        (gzip.compress(b"3,one\n", mtime=0), "any.csv", ["line 1", "UTF-8"]),
        (workbook(), "any.csv", ["line 1: neither UTF-8"]),
        (bytes(9) + b"\xd0\xcf\x11\xe0", "any.tsv", ["line 1", "UTF-8"]),
        (parquet(text=["a"], label=[1]), "any.csv", ["neither UTF-8"]),
        (b"3,one\n", "any.csv.gz", ["damaged gzip"]),
        (gzip.compress(b"3,one\n" * 999, mtime=0)[:-9], "any.csv.gz", ["damaged gzip"]),
        (
            gzip.compress(b"3,one\n" * 999, mtime=0)[:20] + b"\xff" * 40,
            "any.csv.gz",
            ["damaged gzip"],
        ),
        (workbook(), "any.xlsx", ["must end in .csv", "save it as CSV UTF-8"]),
        (b"3,one\n", "any.parquet", ["cannot be read as Parquet"]),
        (
            b"PAR1 and nothing else",
            "any.parquet",
            ["cannot be read as Parquet", "Get it again"],
        ),
        (
            parquet(text=["a"], label=[1])[:-9],
            "any.parquet",
            ["cannot be read as Parquet"],
        ),
        (b"3,one\n", "any.jsonl", ["line 1", "no JSON object"]),
        (b"<!DOCTYPE html>\n<p>404</p>\n", "any.csv", ["which is the text?"]),
        (b"BZh91AY&SY\xff\xfe\x00", "any.csv", ["line 1"]),
        (b"3,one\n", "any.txt", ["must end in .csv, .tsv, .jsonl, .ndjson, .json"]),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path, data, name, parts):
    refused(tmp_path, data, *parts, name=name)


@pytest.mark.parametrize(
    "name",
    [
        "train.csv",
        "Train.csv",
        "TRAIN.CSV",
        "train.csv.gz",
        "train.tsv",
        "train.ndjson",
        "train-00000-of-00001.parquet",
        "data/train-00000-of-00001-0a1b2c3d.parquet",
    ],
)
def test_names_of_files_that_are_found(tmp_path, name):
    (tmp_path / "data").mkdir()
    for other in (
        name,
        "train-0-of-2.csv",
        "trainer.csv",
        "train.csv.bak",
        "._train.csv",
    ):
        (tmp_path / other).touch()
    assert find_tables(tmp_path, "train|training") == [tmp_path / name]
    assert find_tables(tmp_path, "test") == []


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "train.jsonl"),
        ("train.csv", "training.csv"),
        ("train-00000-of-00002.parquet",),
        ("train-00000-of-00002-0a1b.parquet", "train-00000-of-00002.parquet"),
        ("train-00001-of-00002.parquet", "train.parquet"),
        ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00003.parquet"),
    ],
)
def test_files_of_which_some_would_be_lost(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="One whole file is needed, or all parts") as e:
        find_tables(tmp_path, "train|training")
    assert " and ".join(names) in str(e.value)


# Parquet and JSON lines


@pytest.mark.parametrize(
    "labels", [[3.0, 4.0], [3, 4], ["3", "4"], ["3.0", "4.0"], pd.Categorical([3, 4])]
)
def test_parquet_with_labels_of_any_type(tmp_path, labels):
    assert read(tmp_path, parquet(Text=["a", "b"], Label=labels), "any.parquet") == [
        ("3", "a"),
        ("4", "b"),
    ]


@pytest.mark.parametrize(
    "columns, parts",
    [
        (
            dict(text=[5, 6], label=[1, 2]),
            ["row 1", "the int 5"],
        ),
        (dict(text=["a", None], label=[1, 2]), ["row 2", "without text"]),
        (dict(text=["a", "b\0"], label=[1, 2]), ["row 2", "null byte"]),
        (dict(text=[b"a", b"b"], label=[1, 2]), ["row 1", "bytes"]),
        (dict(headline=["a"]), ["'headline'", "which is the label"]),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path, columns, parts):
    refused(tmp_path, parquet(**columns), *parts, name="any.parquet")


def test_no_part_of_a_text_is_dropped_for_its_type(tmp_path):
    data = parquet(label=["a"], title=["words"], price=[3.5])
    refused(
        tmp_path,
        data,
        "row 1",
        "float 3.5",
        name="any.parquet",
        text_columns=["title", "price"],
    )


def test_parquet_whose_words_are_not_utf8(tmp_path):
    text = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pa.parquet.write_table(pa.table(dict(text=text, label=[1])), buffer := io.BytesIO())
    refused(
        tmp_path, buffer.getvalue(), "cannot be read as Parquet", name="any.parquet"
    )


@pytest.mark.parametrize(
    "line, parts",
    [
        ('{"label": 1, "text": null}', ["line 2", "without text"]),
        ('{"label": 1, "text": "half \\ud800"}', ["line 2", "half a character"]),
        ('{"label": 1, "text": "a \\u0000 b"}', ["line 2", "null byte"]),
        ('{"label": 1, "text": "\\u200b\\u0007"}', ["line 2", "without text"]),
        ('{"label": 1}', ["line 2", "without text"]),
        ('{"label": 1, "text": 7}', ["line 2", "the int 7"]),
        ('{"label": 1, "text": {"a": "' + "b" * 999 + '"}}', ["line 2", "the dict"]),
        ('["a", "b"]', ["line 2", "no JSON object"]),
        ('{"label": 1, ', ["line 2", "no JSON object"]),
        ("[" * 10**5, ["line 2", "no JSON object"]),
        ('{"label": ' + "9" * 5000 + ', "text": "a"}', ["line 2", "no JSON object"]),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path, line, parts):
    refused(
        tmp_path,
        '{"label": 1, "text": "fine"}\n' + line + "\n",
        *parts,
        name="any.jsonl",
    )


def test_a_list_of_json_objects_counts_its_rows(tmp_path):
    content = """[
      {"text": "a", "label": "x"}, ["b", "x"], {"label": "y"}, "", {},
      {"text": "c", "label": ["x"]}, null]"""
    (tmp_path / "any.json").write_text(content, encoding="utf-8")
    texts = read_texts([tmp_path / "any.json"])
    assert texts.unit == "row" and len(texts.rows) == 7
    problems = texts.problems
    assert problems["line"].tolist() == [2, 3, 4, 5, 7]
    reasons = [problem.split(",")[0] for problem in problems["problem"]]
    assert reasons == [
        "no JSON object",
        "without text",
        "no JSON object",
        "without text",
        "no JSON object",
    ]
    assert texts.rows["name"].tolist() == ["x", "", "y", "", "", "x", ""]


@pytest.mark.parametrize("content", ["[1, 2", '["a"] ["b"]', "[" * 10**5])
def test_what_is_no_list_of_json_objects(tmp_path, content):
    refused(tmp_path, content, "is no list of JSON objects", name="any.json")


def test_json_lines_with_more_or_other_order(tmp_path):
    content = (
        '{"text": "a", "label": "x"}\n\n{"other": [1], "label": "y", "text": "b"}\n'
    )
    assert read(tmp_path, content, "any.jsonl") == [("x", "a"), ("y", "b")]


# without labels, for predicting


def test_labels_are_not_needed_everywhere(tmp_path):
    rows = [("", "first"), ("", "second")]
    assert read(tmp_path, "text\nfirst\nsecond\n", labelled=False) == rows
    refused(tmp_path, "first\nsecond\n", "Row 1 is ['first']", labelled=False)
    no_header = dict(labelled=False, text_columns=["column 1"])
    assert read(tmp_path, "first\nsecond\n", **no_header) == rows
    header = dict(labelled=False, text_columns=["Nachricht"])
    assert read(tmp_path, "Nachricht\nfirst\nsecond\n", **header) == rows
    assert read(tmp_path, "id,text\n1,first\n", labelled=False) == [("", "first")]
    assert read(tmp_path, "label,text\n-1,first\n,second\n", labelled=False) == [
        ("-1", "first"),
        ("", "second"),
    ]
    other = dict(labelled=False, label_column="mood")
    assert read(tmp_path, "text,topic\nfirst,a\n", **other) == [("", "first")]


def test_a_column_that_is_not_there_is_not_replaced_by_the_first(tmp_path):
    content = "".join(f"{i},words {i}\n" for i in range(20))
    assert len(read(tmp_path, content, label_column="column 1")) == 20
    refused(tmp_path, content, "which is the label?", label_column="column 9")
    content = "".join(f"words {i} of it,{'ab'[i % 2]}\n" for i in range(20))
    assert [name for name, _ in read(tmp_path, content)] == ["a", "b"] * 10


# whatever stands in a file: rows, or our own error

FIELDS = st.text(max_size=12) | st.sampled_from(
    [
        "N/A",
        "a,b",
        "a;b",
        'say ""x""',
        "line\nbreak",
        "\r",
        "\x00",
        "\ufeff",
        "\u2028",
        "1",
        "text",
        "\x1a",
        '"',
    ]
)
LABELS = st.sampled_from(
    ["1", "2", "3.0", "04", "World", "sports", "", "label", "-1", "sep=;"]
)
ROWS = st.builds(
    lambda label, fields, quote, separator: separator.join(
        f"{quote}{field}{quote}" for field in (label, *fields)
    ),
    LABELS,
    st.lists(FIELDS, max_size=3),
    st.sampled_from(['"', ""]),
    st.sampled_from([",", ";", "\t"]),
)
OBJECTS = st.dictionaries(
    st.sampled_from(["label", "text", "title", "description", "id"]),
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | FIELDS
    | st.lists(st.integers(), max_size=2),
)
LINES = st.lists(ROWS | OBJECTS.map(json.dumps), max_size=20)
TABLES = st.builds(
    lambda texts, labels: parquet(text=texts, label=labels[: len(texts)]),
    st.lists(
        st.text(max_size=5).map(lambda text: text.encode("utf-8", "replace").decode()),
        max_size=5,
    ),
    st.lists(st.integers(-1, 5), min_size=5, max_size=5),
)


def spoiled(content, changes):
    data = bytearray(content)
    for place, byte, cut in changes:
        if data:
            data[place % len(data)] = byte
            del data[place % len(data) : place % len(data) + cut]
    return bytes(data)


CONTENTS = st.binary(max_size=200) | st.builds(
    spoiled,
    TABLES
    | st.builds(
        lambda rows, end, encoding, squeeze: squeeze(
            end.join(rows).encode(encoding, "replace")
        ),
        LINES,
        st.sampled_from(["\n", "\r\n", "\r"]),
        st.sampled_from(["utf-8", "utf-8", "utf-16", "cp1252"]),
        st.sampled_from([bytes, bytes, gzip.compress]),
    ),
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3)),
        max_size=3,
    ),
)
ENDINGS = st.sampled_from(
    ["csv", "csv", "tsv", "jsonl", "jsonl", "parquet", "csv.gz", "jsonl.gz", "Parquet"]
)


@settings(
    max_examples=40_000 if LONG else 300, deadline=None, suppress_health_check=ANY
)
@given(CONTENTS, ENDINGS, st.booleans())
def test_any_bytes_are_rows_or_our_error(tmp_path, content, ending, labelled):
    path = tmp_path / f"any.{ending}"
    path.write_bytes(content)
    try:
        read = read_texts([path], labelled=labelled)
    except DataError as error:
        assert str(path) in str(error)
        return
    rows, problems = read.rows, read.problems
    lines = sorted([*read.table.index, *read.unused])
    assert len(rows) and rows.index.tolist() == lines
    assert rows.index.is_unique and rows.index.is_monotonic_increasing
    usable = rows[rows["problem"] == ""]
    assert not any(map(problem_of, usable["text"]))
    assert all(problem_of(text) for text in rows["text"].drop(usable.index))
    assert len(read.rows) == len(usable) + len(problems)
    assert {*usable.index}.isdisjoint(problems["line"]) and problems["line"].is_unique


@settings(max_examples=200, deadline=None, suppress_health_check=ANY)
@given(
    st.lists(
        st.tuples(LABELS.filter(lambda label: label.isalpha()), FIELDS), min_size=1
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_is_written_is_read(tmp_path, rows, separator, encoding, quoting):
    rows = [
        (label, text)
        for label, text in rows
        if not problem_of(text) and not {*text} & {"\0", "\x1a"}
    ]
    data = as_csv(rows, separator, quoting, header=["label", "text"]).encode(encoding)
    if not rows:
        refused(tmp_path, data, "has no rows")
    else:
        assert read(tmp_path, data) == [(label, text.strip()) for label, text in rows]


def test_the_line_of_a_row_is_the_one_on_which_it_begins(tmp_path):
    path = tmp_path / "any.csv"
    path.write_text('\n3,"two\nlines"\n\n4,one\n', encoding="utf-8")
    table = read_texts([path]).table
    assert table.to_dict("index") == {
        2: {"column 1": "3", "column 2": "two\nlines"},
        5: {"column 1": "4", "column 2": "one"},
    }


def test_columns_that_come_later_are_kept(tmp_path):
    path = tmp_path / "later.jsonl"
    path.write_text(
        '{"text": "one", "n": 1}\n{"text": "two", "new": 2}\n', encoding="utf-8"
    )
    table = read_texts([path], labelled=False, text_columns=["text"]).table
    assert table.columns.tolist() == ["text", "n", "new"]
    assert table.fillna("").to_numpy().tolist() == [["one", 1, ""], ["two", "", 2]]


# rows that a quotation mark swallows


@pytest.mark.parametrize(
    "content",
    [
        'label,text\nPraise,"5 inch\nBlame,one\nBlame,of 5"\nPraise,a\nBlame,b\n',
        'text,label\n"5 inch,Praise\none,Blame\nof 5",Blame\na,Praise\nb,Blame\n',
        'id,text,label\n1,"5 inch,Praise\n2,of 5",Blame\n3,a,Praise\n4,b,Blame\n',
        'label,title,text\nPraise,"a, b","5\nBlame,c,5"\nPraise,a,b\nBlame,c,d\n',
        'text,label\n"5 inch,Praise\nof, 5",Blame\na,Praise\nb,Blame\n',
    ],
)
def test_swallowed_rows_are_found_wherever_the_label_is(tmp_path, content):
    refused(tmp_path, content, "any.csv: line 2: a quotation mark opens or ends")


@pytest.mark.parametrize(
    "content",
    [
        'label,text\nPraise,"two\nlines"\nBlame,b\n',
        'text,label\n"two lines:\nBlame, too",Praise\nb,Blame\n',
        'text,label\n"two, lines:\nBlame, too",Praise\nb,Blame\n',
        'text,label\n"two\nlines",Praise\nb,Blame\n',
        'title,label,text\na,Praise,"two\nlines"\nb,Blame,c\n',
    ],
)
def test_a_text_of_several_lines_is_no_swallowed_row(tmp_path, content):
    assert [label for label, _ in read(tmp_path, content)] == ["Praise", "Blame"]
    more = content + 8 * content.splitlines(keepends=True)[-1]  # so that ends repeat
    labels = [label for label, _ in read(tmp_path, more)]
    assert labels == ["Praise", *9 * ["Blame"]]


def test_a_row_without_a_label_is_no_swallowed_row_if_none_is_needed(tmp_path):
    content = 'label,text\n,"two lines\n, it seems"\nPraise,a\n'
    assert len(read(tmp_path, content, labelled=False)) == 2


def test_swallowed_rows_are_found_if_labels_are_not_needed(tmp_path):
    content = 'label,text\nPraise,"5 inch\nBlame,of 5"\nPraise,a\nBlame,b\n'
    refused(tmp_path, content, "line 2: a quotation mark", labelled=False)
