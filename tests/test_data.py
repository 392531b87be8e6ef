import csv
import statistics
from collections import Counter

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agnews_helpers import DataError, Recipe, load_data, load_tokenizer
from agnews_helpers.data import SAMPLE, read_csv
from agnews_helpers.recipe import LABELS

ROWS = [
    (label, f"Title {i}", f"Words of number {i}, class {label}.") for i in range(12) for label in (1, 2, 3, 4)
]


def write(folder, train=ROWS, test=ROWS[:8], convert=str):
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                [(convert(label), title + name, text) for label, title, text in rows]
            )
    return folder


def load(folder, **fields):
    return load_data(Recipe(profile="offline", model="mini", data=str(folder), **fields))


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "rows")


# the sample


def test_the_sample_is_balanced_and_split():
    for name, rows in (("train", 400), ("test", 200)):
        labels, texts, _ = read_csv(SAMPLE / f"{name}.csv")
        assert Counter(labels) == {str(label): rows // 4 for label in (1, 2, 3, 4)}
        assert len(set(texts)) == rows
    both = [text for name in ("train", "test") for text in read_csv(SAMPLE / f"{name}.csv")[1]]
    assert len(set(both)) == 600


def test_the_sample_is_as_long_as_ag_news():
    texts = read_csv(SAMPLE / "train.csv")[1]
    lengths = [len(ids) for ids in load_tokenizer(Recipe(model="mini"))(texts)["input_ids"]]
    assert 48 <= statistics.mean(lengths) <= 58  # AG News: 52.7
    assert min(lengths) < 32 and max(lengths) > 80


def test_no_two_items_of_the_sample_share_a_sentence():
    seen = Counter()
    for name in ("train", "test"):
        for text in read_csv(SAMPLE / f"{name}.csv")[1]:
            words = text.lower().split()
            seen.update({tuple(words[i : i + 8]) for i in range(len(words) - 7)})
    assert max(seen.values()) == 1


# what must simply work


def test_a_folder_becomes_three_splits(folder):
    news = load(folder)
    assert {name: len(rows) for name, rows in news.items()} == {"train": 44, "validation": 4, "test": 8}
    assert news["train"].features["label"].names == list(LABELS)
    assert (
        news["test"][0]["text"] == "Title 0test Words of number 0, class 1." and news["test"][0]["label"] == 0
    )
    assert Counter(news["validation"]["label"]) == {0: 1, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    "convert",
    [
        str,
        lambda label: str(label - 1),
        lambda label: LABELS[label - 1],
        lambda label: LABELS[label - 1].upper(),
    ],
    ids=["1-4", "0-3", "names", "capital names"],
)
def test_three_codings(tmp_path, convert):
    news = load(write(tmp_path / "rows", convert=convert))
    assert news["test"]["label"][:] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"Class Index,Title,Description\n" + data,
        lambda data: b'"class","title","description"\r\n' + data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"\xef\xbb\xbfclass,title,description\n" + data,
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data + b"\r\n\r\n",
    ],
    ids=["header", "quoted header", "BOM", "BOM and header", "LF", "CRLF", "blank lines at the end"],
)
def test_files_as_people_have_them(folder, change):
    expected = load(folder)["train"].to_list()
    path = folder / "train.csv"
    path.write_bytes(change(path.read_bytes().replace(b"\r\n", b"\n")))
    assert load(folder)["train"].to_list() == expected


def test_a_line_break_inside_a_field_stays_in_the_text(tmp_path):
    rows = [*ROWS, (4, "Broken", 'one line\nand another, "quoted"')]
    path = write(tmp_path / "rows", train=rows) / "train.csv"
    labels, texts, lines = read_csv(path)
    assert texts[-1].endswith('one line\nand another, "quoted"') and lines[-1] == len(rows)


@pytest.mark.parametrize("word", ["N/A", "null", "nan", "NULL", "None", "\u2028", "a\x0cb\x85c"])
def test_words_that_other_readers_take_for_missing_are_text(tmp_path, word):
    train = [*ROWS, (1, "", word + " end")]
    texts = read_csv(write(tmp_path / "rows", train=train) / "train.csv")[1]
    assert len(texts) == len(train) and texts[-1] == f"train {word} end"


def test_parquet_in_the_hubs_schema(tmp_path):
    for name in ("train", "test"):
        table = pd.DataFrame(
            {"text": [f"{name} {i}" for i in range(40)], "label": [i % 4 for i in range(40)]}
        )
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert load(tmp_path)["test"]["label"][:5] == [0, 1, 2, 3, 0]


def test_a_subset_keeps_the_classes_and_the_seed(folder):
    news = load(folder, train_rows=24, test_rows=4)
    assert Counter(news["train"]["label"]) == {0: 5, 1: 5, 2: 5, 3: 5} and len(news["validation"]) == 4
    assert Counter(news["test"]["label"]) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert news["train"].to_list() == load(folder, train_rows=24, test_rows=4)["train"].to_list()
    assert news["train"].to_list() != load(folder, train_rows=24, test_rows=4, seed=1)["train"].to_list()


def test_rows_in_both_splits_are_counted(tmp_path, capsys):
    folder = write(tmp_path / "rows")
    (folder / "test.csv").write_bytes((folder / "train.csv").read_bytes()[:300].rsplit(b"\r\n", 1)[0])
    shared = len(read_csv(folder / "test.csv")[1])
    load(folder)
    assert f"{shared} texts stand in both train and test" in capsys.readouterr().out
    load(write(tmp_path / "other"))
    assert capsys.readouterr().out == ""


# what gets an error: file, row and remedy


def replaced(folder, old, new, name="train"):
    path = folder / f"{name}.csv"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def fails(folder, *parts, **fields):
    with pytest.raises(DataError) as error:
        load(folder, **fields)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_a_missing_folder(tmp_path):
    fails(tmp_path / "nowhere", "There is no folder", "nowhere", "train.csv")


def test_a_missing_file(folder):
    (folder / "test.csv").unlink()
    fails(folder, "neither test.csv nor test.parquet")


def test_a_wrong_number_of_columns(folder):
    replaced(folder, b'"3","Title 0train"', b'"3"')
    fails(folder, "train.csv, line 3", "2 fields, expected 3", "quotation marks")


@pytest.mark.parametrize("label", [b"5", b"0", b"Politics", b""])
def test_a_label_that_is_not_one_of_the_four(folder, label):
    replaced(folder, b'"2","Title 1train"', b'"' + label + b'","Title 1train"')
    fails(folder, "train.csv, line 6", "is not one of the four", "1-4", "0-3", "the four names")


def test_a_test_file_in_another_coding(folder):
    replaced(folder, b'"1","Title 0test"', b'"0","Title 0test"', name="test")
    fails(folder, "test.csv, line 1", "'0' is not one of the four")


@pytest.mark.parametrize("text", [b'"",""', b'" ","\n"'])
def test_a_row_without_text(folder, text):
    replaced(folder, b'"Title 2train","Words of number 2, class 4."', text)
    fails(folder, "train.csv, line 12", "without text")


def test_bytes_that_are_not_utf8(folder):
    replaced(folder, b"Title 3", b"Titl\xe9 3")
    fails(folder, "train.csv, line 13", "not UTF-8")


def test_a_quotation_mark_that_is_never_closed(folder):
    replaced(folder, b'class 1."', b"class 1.")
    fails(folder, "train.csv, line", "not a well-formed CSV row")


@pytest.mark.parametrize(
    "rows, names",
    [([r for r in ROWS if r[0] != 2], "Sports"), ([r for r in ROWS if r[0] in (1, 2)], "Business, Sci/Tech")],
)
def test_a_class_absent_from_train(tmp_path, rows, names):
    fails(write(tmp_path / "rows", train=rows), f"no row of class {names}", "Accepted codings")


def test_labels_that_fit_two_codings_are_not_guessed(tmp_path):
    fails(
        write(tmp_path / "rows", train=[r for r in ROWS if r[0] != 4]),
        "no row of class Sci/Tech",
        "Labels found: 1, 2, 3",
    )


def test_fewer_rows_than_a_batch(tmp_path):
    fails(write(tmp_path / "rows", train=ROWS[:8]), "fewer than one batch of 8")


def test_one_row_of_a_class_cannot_be_split(tmp_path):
    fails(
        write(tmp_path / "rows", train=[r for r in ROWS if r[0] != 4] + [ROWS[3]]),
        "at least 2 training rows",
        "Sci/Tech 1",
    )


def test_more_rows_asked_for_than_there_are(folder):
    fails(folder, "train_rows is 1,000", "only 48", train_rows=1000)


@pytest.mark.parametrize("name", ["train", "test"])
def test_an_empty_file(folder, name):
    (folder / f"{name}.csv").write_text("")
    fails(folder, "has no rows" if name == "train" else "no test rows")


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    fails(tmp_path, "train.parquet cannot be read as Parquet", "Download it again")


def test_a_parquet_file_with_other_columns(tmp_path):
    pd.DataFrame({"headline": ["a"]}).to_parquet(tmp_path / "train.parquet")
    fails(tmp_path, "columns headline", "needs text and label")


# whatever stands in a file: rows, or our own error

WORDS = st.text(max_size=12) | st.sampled_from(
    ["N/A", "null", "a,b", 'say ""x""', "line\nbreak", "\r", "\x00", "\ufeff", "\u2028", "1"]
)
ROW = st.builds(
    lambda label, title, text, quote: ",".join(f"{quote}{field}{quote}" for field in (label, title, text)),
    st.sampled_from(["1", "2", "3", "4", "0", "5", "World", "sports", "x", "", "class"]),
    WORDS,
    WORDS,
    st.sampled_from(['"', ""]),
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
    st.lists(ROW, max_size=30).flatmap(
        lambda rows: st.sampled_from(["\n", "\r\n"]).map(
            lambda end: end.join(rows).encode("utf-8", "replace")
        )
    ),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 3)), max_size=3),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENTS)
def test_any_bytes_as_csv_are_rows_or_our_error(tmp_path, content):
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    try:
        labels, texts, lines = read_csv(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(labels) == len(texts) == len(lines) and all(texts) and lines == sorted(lines)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS, name=st.sampled_from(["train.csv", "test.csv", "train.parquet"]))
def test_any_bytes_in_a_folder_are_a_dataset_or_our_error(tmp_path, content, name):
    folder = write(tmp_path / "rows")
    if name == "train.parquet":
        (folder / "train.csv").unlink()
    (folder / name).write_bytes(content)
    try:
        news = load(folder)
    except DataError:
        pass
    else:
        assert set(news) == {"train", "validation", "test"} and set(news["test"]["label"][:]) <= {0, 1, 2, 3}
    (folder / name).unlink()
