import csv
import hashlib
import itertools
import json
import os
import statistics
from collections import Counter

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agnews_helpers import DataError, Recipe, data, load_data, load_tokenizer
from agnews_helpers.data import SAMPLE, SUPPORT
from agnews_helpers.plumbing.tables import read_texts
from agnews_helpers.recipe import LABELS
from tests.test_tables import CONTENTS

ROWS = [
    (label, f"Title {i}", f"Words of number {i}, class {label}.")
    for i in range(12)
    for label in (1, 2, 3, 4)
]


# How the columns of files without a header are described
COLUMNS = " · label column 'column 1' · text 'column 2', 'column 3' · "


def write(folder, train=ROWS, test=ROWS[:8], convert=str):
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                [(convert(label), title + name, text) for label, title, text in rows]
            )
    return folder


def load(folder, **fields):
    return load_data(
        Recipe(profile="offline", model="mini", data=str(folder), **fields)
    )


def read(path):
    """Labels, texts and lines of a file."""
    texts = read_texts([path])
    return texts.rows["name"].tolist(), texts.rows["text"].tolist(), texts.rows.index


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "rows")


# the sample


def test_the_sample_is_balanced_and_split():
    for name, rows in (("train", 400), ("test", 200)):
        labels, texts, _ = read(SAMPLE / f"{name}.csv")
        assert Counter(labels) == {str(label): rows // 4 for label in (1, 2, 3, 4)}
        assert len(set(texts)) == rows
    both = [
        text for name in ("train", "test") for text in read(SAMPLE / f"{name}.csv")[1]
    ]
    assert len(set(both)) == 600


def test_the_sample_is_as_long_as_ag_news():
    texts = read(SAMPLE / "train.csv")[1]
    lengths = [
        len(ids) for ids in load_tokenizer(Recipe(model="mini"))(texts)["input_ids"]
    ]
    assert 48 <= statistics.mean(lengths) <= 58  # AG News: 52.7
    assert min(lengths) < 32 and max(lengths) > 80


def test_no_two_items_of_the_sample_share_a_sentence():
    seen = Counter()
    for name in ("train", "test"):
        for text in read(SAMPLE / f"{name}.csv")[1]:
            words = text.lower().split()
            seen.update({tuple(words[i : i + 8]) for i in range(len(words) - 7)})
    assert max(seen.values()) == 1


# what must simply work


def test_a_folder_becomes_three_splits(folder):
    news = load(folder)
    assert {name: len(rows) for name, rows in news.items()} == {
        "train": 44,
        "validation": 4,
        "test": 8,
    }
    assert news["train"].features["label"].names == list(LABELS)
    assert (
        news["test"][0]["text"] == "Title 0test Words of number 0, class 1."
        and news["test"][0]["label"] == 0
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
    assert names_of(news) == list(LABELS)


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
    ids=[
        "header",
        "quoted header",
        "BOM",
        "BOM and header",
        "LF",
        "CRLF",
        "blank lines at the end",
    ],
)
def test_files_as_people_have_them(folder, change):
    expected = load(folder)["train"].to_list()
    for path in folder.iterdir():
        path.write_bytes(change(path.read_bytes().replace(b"\r\n", b"\n")))
    assert load(folder)["train"].to_list() == expected


def test_a_line_break_inside_a_field_stays_in_the_text(tmp_path):
    rows = [*ROWS, (4, "Broken", 'one line\nand another, "quoted"')]
    path = write(tmp_path / "rows", train=rows) / "train.csv"
    labels, texts, lines = read(path)
    assert texts[-1].endswith('one line\nand another, "quoted"') and lines[-1] == len(
        rows
    )


@pytest.mark.parametrize(
    "word", ["N/A", "null", "nan", "NULL", "None", "\u2028", "a\x0cb\x85c"]
)
def test_words_that_other_readers_take_for_missing_are_text(tmp_path, word):
    train = [*ROWS, (1, "", word + " end")]
    texts = read(write(tmp_path / "rows", train=train) / "train.csv")[1]
    assert len(texts) == len(train) and texts[-1] == f"train {word} end"


def test_parquet_in_the_hubs_schema(tmp_path):
    for name in ("train", "test"):
        table = pd.DataFrame(
            {
                "text": [f"{name} {i}" for i in range(40)],
                "label": [i % 4 for i in range(40)],
            }
        )
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert load(tmp_path)["test"]["label"][:5] == [0, 1, 2, 3, 0]


def test_a_subset_keeps_the_classes_and_the_seed(folder):
    news = load(folder, train_rows=24, test_rows=4)
    assert (
        Counter(news["train"]["label"]) == {0: 5, 1: 5, 2: 5, 3: 5}
        and len(news["validation"]) == 4
    )
    assert Counter(news["test"]["label"]) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert (
        news["train"].to_list()
        == load(folder, train_rows=24, test_rows=4)["train"].to_list()
    )
    assert (
        news["train"].to_list()
        != load(folder, train_rows=24, test_rows=4, seed=1)["train"].to_list()
    )


def test_a_subset_is_in_the_order_of_the_file(folder):
    _, texts, _ = read(folder / "train.csv")
    news = load(folder, train_rows=24)
    for split in ("train", "validation"):
        drawn = news[split]["text"][:]
        assert drawn == [text for text in texts if text in {*drawn}]


def test_rows_in_both_splits_are_counted(tmp_path, capsys):
    folder = write(tmp_path / "rows")
    (folder / "test.csv").write_bytes(
        (folder / "train.csv").read_bytes()[:300].rsplit(b"\r\n", 1)[0]
    )
    shared = len(read(folder / "test.csv")[1])
    load(folder)
    assert (
        f"note: {shared} texts occur in both train and test, which makes"
        in capsys.readouterr().out
    )
    load(write(tmp_path / "other"))
    lines = capsys.readouterr().out.splitlines()
    classes = "4 classes: World 12, Sports 12, Business 12, Sci/Tech 12"
    assert lines[0] == f"train.csv · 48 rows read, 48 used, 0 not{COLUMNS}{classes}"
    assert (
        lines[1].startswith("test.csv · 8 rows read, 8 used, 0 not") and not lines[2:]
    )


def test_the_sample_says_nothing(capsys):
    load("sample")
    assert capsys.readouterr().out == ""


# four layouts as they are found


def own(
    folder,
    rows,
    test=None,
    separator=",",
    encoding="utf-8",
    header=("label", "text"),
    name="train.csv",
):
    """A folder of other classes."""
    folder.mkdir(exist_ok=True)
    for path, part in (
        (folder / name, rows),
        (folder / name.replace("train", "test"), test),
    ):
        if part is not None:
            with path.open("w", newline="", encoding=encoding) as file:
                csv.writer(file, delimiter=separator).writerows(
                    [header, *part] if header else part
                )
    return folder


def mail(n=24, classes=("Praise", "Blame", "Question"), word="message"):
    return [
        (classes[i % len(classes)], f"{word} of number {i}, text of its own {i * 7919}")
        for i in range(n)
    ]


def names_of(news):
    return news["train"].features["label"].names


def test_ag_news_as_the_hub_stores_it(tmp_path):
    for name in ("train", "test"):
        table = pd.DataFrame(
            dict(
                text=[f"{name} {i}" for i in range(40)],
                label=[i % 4 for i in range(40)],
            )
        )
        features = Features(
            {"text": Value("string"), "label": ClassLabel(names=[*LABELS])}
        )
        rows = Dataset.from_dict(table.to_dict("list"), features)
        rows.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    news = load(tmp_path)
    assert news["test"]["label"][:5] == [0, 1, 2, 3, 0] and names_of(news) == [*LABELS]


def test_zhangs_folders(tmp_path, capsys):
    classes = [f"Kind {i}" for i in range(14)]
    (tmp_path / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    for name in ("train", "test"):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(i % 14 + 1, f"{name} {i}", f"Words {i * 7919}") for i in range(70)]
            csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    news = load(tmp_path)
    assert names_of(news) == classes and news["test"]["label"][:] == [
        i % 14 for i in range(70)
    ]
    assert news["test"]["text"][0] == "test 0 Words 0"
    assert COLUMNS + "14 classes: Kind 0 5, Kind 1 5" in capsys.readouterr().out


def test_a_csv_from_kaggle(tmp_path, capsys):
    rows = [(i, text, label) for i, (label, text) in enumerate(mail(60))]
    news = load(own(tmp_path, rows, header=("", "message", "Category")))
    assert names_of(news) == ["Blame", "Praise", "Question"]
    assert {name: len(split) for name, split in news.items()} == {
        "train": 48,
        "validation": 4,
        "test": 8,
    }
    assert Counter(news["test"]["label"]) == {0: 4, 1: 2, 2: 2}
    out = capsys.readouterr().out
    columns = "label column 'Category' · text 'message' · not used ''"
    assert f"train.csv · 60 rows read, 60 used, 0 not · {columns} · 3 classes:" in out
    assert "no test file; 8 rows of the training file are held out as test" in out


def test_held_out_rows_stay_held_out(tmp_path):
    """Whatever the file and the seed become, no later test has a row trained on."""
    rows = mail(300)
    folder = own(tmp_path / "mine", rows)
    before = load(folder)
    learned = {*before["train"]["text"], *before["validation"]["text"]}
    assert (
        20 <= len(before["test"]) <= 40
        and min(Counter(before["test"]["label"]).values()) >= 4
    )
    assert len(learned) + len(before["test"]) == 300
    later = mail(330)
    changes = [
        (rows, 1),
        (rows[::-1], 42),
        (later, 42),
        (later[150:], 3),
        (rows[40:] + later[300:], 5),
    ]
    for changed, seed in changes:
        own(folder, changed)
        again = load(folder, seed=seed)["test"]
        assert len(again) >= 10 and learned.isdisjoint(again["text"])


@pytest.mark.parametrize("sizes", [(4, 4), (4, 200), (5, 6, 7)])
def test_of_each_small_class_a_row_is_held_out(tmp_path, sizes):
    for turn in range(20):
        rows = [
            (f"Kind {i}", f"{turn} row {n} of {i}")
            for i, size in enumerate(sizes)
            for n in range(size)
        ]
        news = load(own(tmp_path / str(turn), rows), batch_size=1)
        for i, size in enumerate(sizes):
            held = news["test"]["label"][:].count(i)
            assert 1 <= held <= size - 2 and held <= max(3, size // 5)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_an_export_from_excel(tmp_path, capsys, encoding):
    folder = own(
        tmp_path,
        mail(40, ("Größe", "Preis")),
        mail(8, ("Preis", "Größe"), "Frage"),
        ";",
        header=("Label", "Text"),
    )
    for name in ("train", "test"):
        text = (folder / f"{name}.csv").read_text(encoding="utf-8") + ";\n;\n"
        (folder / f"{name}.csv").write_bytes(text.encode(encoding))
    news = load(folder)
    assert (
        names_of(news) == ["Größe", "Preis"] and news["test"]["label"][:] == [1, 0] * 4
    )
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "train.csv · 42 rows read, 40 used, 2 not (2 of them empty) · label column "
        "'Label' · text 'Text' · 2 classes: Größe 20, Preis 20"
    )


def test_the_messages_of_a_web_shop_in_the_package(capsys):
    news = load(SUPPORT)
    count = Counter(news["train"]["label"]) + Counter(news["validation"]["label"])
    assert {names_of(news)[i]: n for i, n in count.items()} == {
        "Delivery": 96,
        "Returns": 60,
        "Payment": 40,
        "Account": 32,
        "Product question": 12,
    }
    assert "label column 'category'" in capsys.readouterr().out
    assert len(news["test"]) == 60
    assert {*news["train"]["label"]} == {0, 1, 2, 3, 4}


# classes


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "Train.CSV", "train.jsonl"])
def test_files_of_every_kind_give_the_same(tmp_path, name):
    rows = mail()
    folder = own(tmp_path / "rows", rows)
    expected = load(folder)["train"].to_list()
    path = folder / "train.csv"
    table = pd.DataFrame(rows, columns=["label", "text"])
    if name.endswith("jsonl"):
        data = table.to_json(orient="records", lines=True).encode()
    else:
        data = table.to_csv(sep="\t" if "tsv" in name else ",", index=False).encode()
    path.unlink()
    (folder / name).write_bytes(data)
    assert load(folder)["train"].to_list() == expected


def test_own_classes_that_are_numbers_stand_in_their_order(tmp_path):
    news = load(own(tmp_path, mail(60, ("10", "9.0", "1")), mail(6, ("9", "1"))))
    assert names_of(news) == ["1", "9", "10"] and news["test"]["label"][:] == [1, 0] * 3


@pytest.mark.parametrize(
    "names", [["-1", "1"], ["1", "2", "10"], ["1", "2", "10", "none"]]
)
def test_numbers_are_in_their_order_and_words_in_the_alphabets(tmp_path, names):
    assert names_of(load(own(tmp_path, mail(48, names[::-1])))) == names


def test_labels_that_differ_in_case_or_in_what_nobody_sees_are_one(tmp_path):
    rows = mail(60, ("Praise", " praise", "Pra\u200bise\u00a0", "Blame", "BLAME"))
    assert names_of(load(own(tmp_path, rows))) == ["Blame", "Praise"]


def test_twenty_classes(tmp_path):
    names = [f"class {i:02}" for i in range(20)]
    news = load(own(tmp_path, mail(400, names), mail(40, names, "other")), test_rows=10)
    assert names_of(news) == names and {*news["validation"]["label"]} == {*range(20)}
    assert (
        len({*news["test"]["label"]}) > 4
    )  # drawn from all of the file, which has fewer rows than classes


def test_columns_that_the_recipe_names(tmp_path):
    rows = [(text, label, "x") for label, text in mail()]
    folder = own(tmp_path, rows, header=("Nachricht", "Kategorie", "Text"))
    news = load(folder, label_column="Kategorie", text_columns="Nachricht")
    assert names_of(news) == ["Blame", "Praise", "Question"] and news["test"]["text"][
        0
    ].startswith("message of")


@pytest.mark.parametrize(
    "listed",
    [("Praise", "Blame", "Question"), ("praise ", "\u200bBLAME", "", "Question")],
)
def test_classes_txt_gives_the_order_and_allows_small_classes(tmp_path, listed):
    folder = own(tmp_path, mail(39) + [("Praise", "one"), ("praise", "two")])
    (folder / "classes.txt").write_text("\r\n".join(listed), encoding="utf-8-sig")
    news = load(folder)
    assert [name.casefold() for name in names_of(news)] == [
        "praise",
        "blame",
        "question",
    ]


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
    return str(error.value)


def test_the_label_is_no_text(tmp_path):
    fails(
        own(tmp_path, mail()),
        "which is the text?",
        text_columns="text,label",
    )


def test_bytes_are_no_label(tmp_path):
    labels = [name.encode() for name in ("red", "green") * 10]
    table = pd.DataFrame({"text": [f"text {i}" for i in range(20)], "label": labels})
    table.to_parquet(tmp_path / "train.parquet")
    fails(tmp_path, "train.parquet needs two labels or more", "b'red'")


def test_codes_with_zeros_are_not_numbers(tmp_path):
    news = load(own(tmp_path, mail(classes=("0123", "123", "77"))))
    assert names_of(news) == ["77", "0123", "123"]


def test_a_folder_with_the_name_of_the_list_of_classes_lists_nothing(tmp_path):
    folder = own(tmp_path, mail(classes=("0", "1", "2")))
    (folder / "classes.txt").mkdir()
    assert names_of(load(folder)) == ["0", "1", "2"]


def test_a_missing_folder(tmp_path):
    fails(
        tmp_path / "nowhere",
        "nowhere is not there, or is no folder with a training file",
        "train.csv and, if there are any, test.csv and validation.csv",
    )


def test_a_missing_train_file(folder):
    (folder / "train.csv").rename(folder / "training.xlsx")
    fails(
        folder,
        "rows is not there, or is no folder with a training file",
        "(or .tsv, .jsonl, .json, .parquet), or one such file.",
    )


@pytest.mark.skipif(
    os.name != "posix",
    reason="Windows has no pipes among its files, and links need rights",
)
@pytest.mark.parametrize("kind", ["folder", "pipe", "dead link", "circle"])
def test_a_train_file_that_is_none(folder, kind):
    """A pipe would be waited for without end."""
    path = folder / "train.csv"
    path.unlink()
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}
    make.get(
        kind, lambda: path.symlink_to("nowhere" if kind == "dead link" else path)
    )()
    fails(folder, "train.csv is not there, or is a folder or a pipe")


def test_two_train_files(folder):
    (folder / "train.parquet").touch()
    fails(folder, "train.csv and train.parquet", "keep one")


def test_a_wrong_number_of_columns(folder):
    replaced(folder, b'"3","Title 0train"', b'"3"')
    fails(
        folder,
        "train.csv, line 3",
        "2 fields, and the first row has 3",
        "quotation marks",
    )


@pytest.mark.parametrize("label", ["5", "0", "politics", "buisness", "22"])
def test_a_label_that_few_rows_have(folder, label):
    replaced(folder, b'"2","Title 1train"', f'"{label}","Title 1train"'.encode())
    said = fails(
        folder,
        f"train.csv, line 6: the label '{label}' is none of the classes, and has 1 of",
    )
    assert "meant?" not in said
    replaced(folder, b'"2","Title 5train"', f'"{label}","Title 5train"'.encode())
    fails(
        folder,
        "and has 2 of 48 rows (a class needs 4 training rows",
        "or 2 if classes.txt in the folder lists it",
    )


@pytest.mark.parametrize(
    "label, meant",
    [
        ("Sci & Tech", "Sci/Tech"),
        ("Buisness", "Business"),
        ("Sport", "Sports"),
        ("Wor ld", "World"),
    ],
)
def test_a_name_that_is_written_almost_right(tmp_path, label, meant):
    folder = write(tmp_path / "rows", convert=lambda number: LABELS[number - 1])
    replaced(
        folder,
        f'"{meant}","Title 1train"'.encode(),
        f'"{label}","Title 1train"'.encode(),
    )
    few = f"the label '{label}' is none of the classes, and has 1 of "
    similar = f"Is '{meant}' meant?"
    fails(folder, "train.csv, line", f"{few}48 rows", similar)
    write(folder, convert=lambda number: LABELS[number - 1])
    replaced(
        folder,
        f'"{meant}","Title 0test"'.encode(),
        f'"{label}","Title 0test"'.encode(),
        "test",
    )
    fails(folder, "test.csv, line", f"{few}8 rows", similar)


@pytest.mark.parametrize(
    "names, other",
    [
        (("atis_flight", "atis_quantity", "atis_airline"), "atis_city"),
        (("BLACK VOICES", "QUEER VOICES", "WOMEN"), "LATINO VOICES"),
        (("2", "3", "9"), "19"),
        (("Wirtschaft", "Sport", "Kultur"), "Wissenschaft"),
    ],
)
def test_another_class_is_no_typing_error(tmp_path, names, other):
    rows = [*mail(24, names), (other, "the only one")]
    said = fails(own(tmp_path, rows), f"the label '{other}' is none of the classes")
    assert "meant?" not in said


@pytest.mark.parametrize("empty", ["-", "NULL", "#N/A"])
def test_a_word_for_nothing_is_no_class(tmp_path, empty):
    rows = [*mail(24), *((empty, f"number {i}") for i in range(6))]
    fails(own(tmp_path, rows), f"the label '{empty}', where one class is needed")


def test_every_line_of_a_small_class_is_named(tmp_path):
    rows = (
        mail()
        + [("Other", "one")]
        + mail(3, word="more")
        + [("other", "two"), ("OTHER", "three")]
    )
    fails(
        own(tmp_path, rows),
        "train.csv, line 26, 30, 31: the label 'OTHER' is none of the classes",
    )
    own(tmp_path, [*rows, ("other", "four")])
    assert "other" in names_of(load(tmp_path))  # as it is mostly written


def test_at_most_twenty_lines_of_a_problem_and_twenty_problems_are_named(tmp_path):
    folder = own(tmp_path, mail(), mail(9) + mail(25, ("Odd",), "odd"))
    twenty = ", ".join(str(line) for line in range(11, 31))
    said = "the label 'Odd' is none of the classes, and has 25 of 34 rows"
    fails(folder, f"test.csv, line {twenty} and 5 more: {said}")
    own(tmp_path, mail() + mail(20, ("Odd", "Rare", "Seldom", "Few", "Some"), "odd"))
    other = [f"label {i}" for i in range(23)]
    said = fails(own(tmp_path, mail() + mail(23, other)), "test.csv, line 11")
    assert said.count("train.csv, line ") == 20 and "train.csv: 3 kinds more" in said


@pytest.mark.parametrize(
    "label, problem",
    [
        ("", "without a label"),
        ("\u200b", "without a label"),
        (" ", "without a label"),
        ("#N/A", "the label '#N/A', where one class is needed"),
        ("NaN", "the label 'NaN', where one class is needed"),
        ("['Blame', 'Praise']", "where one class is needed"),
        ("2,5", "the label '2,5', where one class is needed"),
    ],
)
def test_a_row_without_one_label(folder, label, problem):
    replaced(folder, b'"2","Title 1train"', f'"{label}","Title 1train"'.encode())
    fails(folder, "train.csv, line 6: ", problem)


@pytest.mark.parametrize("first", ["Kategorie", "Thema"])
def test_a_header_in_other_words(tmp_path, first):
    fails(
        own(tmp_path, mail(), header=(first, "Nachricht")),
        f"line 1: the label '{first}' is none of the classes",
    )


def test_a_first_column_that_is_no_label(tmp_path):
    rows = [(text, label) for label, text in mail()]
    own(tmp_path, rows, header=None)
    fails(tmp_path, "needs two labels", "'message of number 0", "called column 1")
    rows = [(i, label, text) for i, (label, text) in enumerate(mail())]
    few = "needs two labels or more that 4 usable rows have; it has '0' 1, '1' 1"
    fails(own(tmp_path, rows, header=None), few, "--label-column")
    news = load(own(tmp_path, [(text, label) for label, text in mail(60)], header=None))
    assert names_of(news) == ["Blame", "Praise", "Question"]


def test_one_label_is_nothing_to_classify(tmp_path):
    few = "needs two labels or more that 4 usable rows have; it has 'Spam' 20"
    fails(own(tmp_path, mail(20, ("Spam",))), few)


def test_what_leaves_too_few_labels_is_listed(tmp_path):
    rows = [(label, text if label == "a" else "") for label, text in mail(20, "ab")]
    said = fails(own(tmp_path, rows), "it has 'a' 10. (")
    lines = ", ".join(str(line) for line in range(3, 22, 2))
    assert said.startswith(f"train.csv, line {lines}: without text")
    empty = [(label, "") for label, _ in rows]
    said = fails(own(tmp_path, empty), "it has none.")
    assert "train.csv, line 2, 3, 4" in said and "without text" in said


@pytest.mark.parametrize("label", ["0", "5", "Business"])
def test_a_test_file_in_another_coding(folder, label):
    replaced(
        folder, b'"1","Title 0test"', f'"{label}","Title 0test"'.encode(), name="test"
    )
    fails(
        folder,
        "test.csv, line 1",
        f"the label '{label}' is none of the classes, and has 1 of 8 rows",
    )


@pytest.mark.parametrize(
    "text", [b'"",""', b'" ","\n"', '"\u200b","\x07\u00ad"'.encode()]
)
def test_a_row_without_text(folder, text):
    replaced(folder, b'"Title 2train","Words of number 2, class 4."', text)
    fails(folder, "train.csv, line 12", "without text")


def test_bytes_that_are_not_utf8(folder, capsys):
    replaced(folder, b"Title 3", b"Titl\xe9 3")
    assert "Titlé 3train Words" in " ".join(load(folder)["train"]["text"])
    said = "not UTF-8, so read as Windows-1252, such as 'Titlé'"
    assert said in capsys.readouterr().out
    replaced(folder, b"Title 4", b"Titl\x81 4")
    fails(folder, "train.csv, line 13", "neither UTF-8", "CSV UTF-8")


def test_a_null_byte(folder):
    replaced(folder, b"Title 3", b"Title\x003")
    fails(folder, "train.csv, line 13", "null byte")


def test_a_quotation_mark_that_is_never_closed(folder):
    replaced(folder, b'class 1."', b"class 1.")
    fails(folder, "train.csv, line 1: a quotation mark opens or ends", "Close it")
    folder.joinpath("train.csv").write_bytes(
        folder.joinpath("test.csv").read_bytes() + b'"1","a","never closed\n\n'
    )
    fails(folder, "train.csv, line 9: a quotation mark opens or ends", "Close it")


def test_a_quotation_mark_that_swallows_rows(tmp_path):
    rows = [
        f"{label},message {i} about a thing of its own"
        for i in range(12)
        for label in ("Praise", "Blame")
    ]
    rows[4], rows[9] = 'Praise,"screen of many inches', 'Blame,and its size is 5"'
    own(tmp_path, [])
    (tmp_path / "train.csv").write_text(
        "\n".join(["label,text", *rows]), encoding="utf-8"
    )
    fails(
        tmp_path,
        "train.csv, line 6: a quotation mark opens or ends in this row",
    )


def test_a_text_of_several_lines_is_no_swallowed_row(tmp_path):
    texts = (
        "Praise, they say, is cheap.\nBlame, too\nand so on",
        "Long:\n" + "word, " * 30_000,
    )
    news = load(
        own(
            tmp_path,
            [*mail(), *(("Praise", text) for text in texts)],
            mail(3, word="other"),
        )
    )
    assert {text.strip() for text in texts} <= {
        *news["train"]["text"],
        *news["validation"]["text"],
    }
    pd.DataFrame(
        [*mail(), ("Praise", "Two lines:\nBlame, too")], columns=["label", "text"]
    ).to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    (tmp_path / "train.csv").unlink()
    assert len(load(tmp_path)["train"]) == 21  # nothing can be swallowed there


@pytest.mark.parametrize("kept", [(1, 3, 4), (1, 2)])
def test_ag_news_without_a_class_is_other_classes(tmp_path, capsys, kept):
    rows = [row for row in ROWS if row[0] in kept]
    assert names_of(load(write(tmp_path / "rows", rows, rows[:8]))) == [
        str(label) for label in kept
    ]
    assert f"{COLUMNS}{len(kept)} classes: 1 12, " in capsys.readouterr().out


def test_a_listed_class_needs_rows_to_learn_from(tmp_path):
    folder = write(tmp_path / "rows", train=[row for row in ROWS if row[0] != 3])
    (folder / "classes.txt").write_text("\n".join(LABELS), encoding="utf-8")
    fails(folder, "at least 2 training rows", "found Business 0")


def test_labels_that_fit_two_codings_are_not_guessed(tmp_path):
    folder = write(tmp_path / "rows", train=[row for row in ROWS if row[0] != 4])
    (folder / "classes.txt").write_text("\n".join(LABELS), encoding="utf-8")
    fails(
        folder,
        "train.csv: no label is one of the 4 classes, or there are fewer numbers than",
        "mend classes.txt",
    )
    (folder / "classes.txt").write_text("1\n2\n3\n4", encoding="utf-8")
    fails(folder, "at least 2 training rows", "found 4 0")  # these are names


def test_a_list_of_classes_that_no_label_matches_is_refused(tmp_path):
    folder = write(tmp_path / "rows", convert=lambda label: "abcd"[label - 1])
    (folder / "classes.txt").write_text("Welt\nSport\nFirma", encoding="utf-8")
    fails(folder, "train.csv: no label is one of the 3 classes", "mend classes.txt")


@pytest.mark.parametrize("listed", ["", "One\n", "One\none\n", "One\nTwo\nONE\u200b\n"])
def test_a_list_of_classes_that_names_too_few(folder, listed):
    (folder / "classes.txt").write_text(listed, encoding="utf-8")
    fails(folder, "classes.txt must name two classes or more, one a line, each once")


def test_fewer_rows_than_a_batch(tmp_path):
    said = "has 7 rows to train, 4 to validate and 8 to test with: too few for batches"
    fails(write(tmp_path / "rows", train=ROWS[:11]), said)
    assert len(load(write(tmp_path / "rows", train=ROWS[:12]))["train"]) == 8
    shop = own(tmp_path / "shop", mail(classes=("Praise", "Blame")))
    fails(shop, "has 1 rows to train, 3 to validate", train_rows=4)


def test_one_row_of_a_class_cannot_be_split(tmp_path):
    fails(
        write(tmp_path / "rows", train=[r for r in ROWS if r[0] != 4] + [ROWS[3]]),
        "at least 2 training rows",
        "Sci/Tech 1",
    )


def test_the_number_of_rows_is_a_maximum(folder):
    recipe = Recipe(
        profile="laptop", model="mini", data=str(folder), train_rows=800, test_rows=400
    )
    assert {name: len(rows) for name, rows in load_data(recipe).items()} == {
        "train": 44,
        "validation": 4,
        "test": 8,
    }


@pytest.mark.parametrize("name", ["train", "test"])
def test_an_empty_file(folder, name):
    (folder / f"{name}.csv").write_text("")
    fails(folder, f"{name}.csv has no rows")


def test_a_broken_parquet_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    fails(tmp_path, "train.parquet cannot be read as Parquet", "Get it again")


def test_a_parquet_file_with_other_columns(tmp_path):
    pd.DataFrame({"headline": ["a"]}).to_parquet(tmp_path / "train.parquet")
    fails(tmp_path, "the columns ['headline']", "which is the label")


def test_few_rows_without_a_test_file(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n", encoding="utf-8")
    for n in (1, 2, 3, 4, 9):
        fails(own(tmp_path, mail(n, ("a", "b"))), "")


# how many rows of a class go to which split


def texts_by_hash(prefix, is_tenth, n):
    """The first `n` texts that `_hold_out` takes, or does not take, for its tenth."""
    texts = (f"{prefix} {i}" for i in itertools.count())
    hashed = ((hashlib.sha256(text.encode()).hexdigest(), text) for text in texts)
    chosen = (text for value, text in hashed if (value < "1a") == is_tenth)
    return list(itertools.islice(chosen, n))


@pytest.mark.parametrize(
    "tenths, others, held_out",
    [(0, 1, 0), (2, 0, 0), (3, 0, 1), (0, 4, 1), (5, 0, 3), (3, 20, 3), (0, 20, 1)],
)
def test_of_each_class_two_rows_remain_for_training(tenths, others, held_out):
    texts = texts_by_hash("t", True, tenths) + texts_by_hash("o", False, others)
    other_class = [f"another class {i}" for i in range(9)]
    labels = [0] * len(texts) + [1] * len(other_class)
    frame = pd.DataFrame({"text": texts + other_class, "label": labels})
    frame["plain_text"] = data.plain_texts(frame)
    train, test = data._hold_out(frame)
    assert list(test["label"]).count(0) == held_out
    assert sorted([*train.index, *test.index]) == list(frame.index)
    assert list(train.index) == sorted(train.index)


@pytest.mark.parametrize("has_test", [True, False])
def test_equal_texts_are_all_in_one_split(tmp_path, has_test):
    """In other letters or with other spaces, too, and with other labels."""
    rows = mail(60)
    again = [(label, text.upper()) for label, text in rows[:20]]
    again += [(label, text.replace(" ", "\xa0 ")) for label, text in rows[20:40]]
    again += [("Blame", text) for _, text in rows[::7]]
    test = {"test": mail(6, word="other")} if has_test else {}
    for name, part in {"train": [*rows, *again, *rows[20:30]], **test}.items():
        own(tmp_path, part, name=f"{name}.csv")
    for seed in range(5):
        news = load(tmp_path, seed=seed)
        assert sum(map(len, news.values())) == 60 + 40 + 9 + 10 + 6 * has_test
        train, validation, test = (
            {" ".join(text.casefold().split()) for text in news[split]["text"]}
            for split in news
        )
        assert not (train & validation or train & test or validation & test)
        # One in twenty of the texts, not of the rows
        assert len(validation) == 4
    turned = own(tmp_path / "turned", [*rows, *again, *rows[20:30]][::-1])
    texts = load(turned)["test"]["text"]
    assert has_test or test == {" ".join(text.casefold().split()) for text in texts}


def test_rows_that_stand_in_both_train_and_validation_are_counted(tmp_path, capsys):
    rows = mail(40)
    upper = [(label, text.upper()) for label, text in rows[:3]]
    own(tmp_path, rows)
    own(tmp_path, [*upper, *mail(6, word="new")], name="dev.csv")
    load(tmp_path)
    said = capsys.readouterr().out
    assert (
        "note: 3 texts occur in both train and validation, which makes the val" in said
    )
    assert "test" not in said.partition("note: 3")[2]
    own(tmp_path, [*upper[:2], *mail(6, word="last")], name="test.csv")
    load(tmp_path)
    said = capsys.readouterr().out
    for pair, n in {"train and validation": 3, "validation and test": 2}.items():
        assert f"note: {n} texts occur in both {pair}, which makes the" in said


def test_equal_texts_are_one_text_to_learn_from(tmp_path):
    """The other could not be validated with."""
    twice = [("Rare", "seldom")] * 2
    own(tmp_path, [*mail(40), *twice])
    (tmp_path / "classes.txt").write_text(
        "Praise\nBlame\nQuestion\nRare\n", encoding="utf-8"
    )
    fails(tmp_path, "at least 2 training rows with different texts", "found Rare 1.")


def test_with_many_classes_each_has_a_row_to_validate_with(tmp_path):
    names = [f"class {i}" for i in range(9)]
    news = load(own(tmp_path, mail(54, names), mail(9, names, "other")))
    assert sorted(news["validation"]["label"]) == list(range(9))  # 5 % would be 3


def test_a_class_of_one_row_is_drawn_from_without_an_error(tmp_path):
    test = mail(20, word="other") + [("Rare", "seldom")]
    folder = own(tmp_path, mail(48, ("Praise", "Blame", "Question", "Rare")), test)
    for n in (4, 10, 20):
        assert len(load(folder, test_rows=n)["test"]) == n


# whatever stands in a folder: three splits, or our own error

LONG = bool(os.environ.get("AGNEWS_LONG"))


@settings(
    max_examples=8_000 if LONG else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    content=CONTENTS,
    name=st.sampled_from(
        [
            "train.csv",
            "test.csv",
            "train.tsv",
            "train.jsonl",
            "train.parquet",
            "classes.txt",
        ]
    ),
)
def test_any_bytes_in_a_folder_are_a_dataset_or_our_error(tmp_path, content, name):
    folder = write(tmp_path / "rows")
    if name.startswith("train"):
        (folder / "train.csv").unlink()
    (folder / name).write_bytes(content)
    try:
        news = load(folder)
    except DataError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
    else:
        classes = range(len(names_of(news)))
        assert set(news) == {"train", "validation", "test"}
        assert all(
            {*split["label"]} <= {*classes} and len(split) for split in news.values()
        )
    (folder / name).unlink()


# what a file says of itself, and what is said of it


@pytest.mark.parametrize("labels", ["0123", "1234"])
def test_four_own_classes_with_numbers_are_not_taken_for_ag_news(
    labels, tmp_path, capsys
):
    """Only in the layouts in which AG News is published are numbers its classes."""
    rows = [(text, label) for label, text in mail(24, labels)]
    load(own(tmp_path, rows, header=("text", "label")))
    first = labels[0]
    assert f"text 'text' · 4 classes: {first} 6, " in capsys.readouterr().out
    named = [(label, f"title {i}", text) for i, (text, label) in enumerate(rows)]
    load(own(tmp_path, named, header=("Class Index", "Title", "Description")))
    assert "4 classes: World 6, Sports 6, " in capsys.readouterr().out
    rated = [(f"{i}", *row) for i, row in enumerate(mail(60, labels))]
    load(own(tmp_path, rated, header=()))
    assert f"4 classes: {first} 15, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "label",
    ["#NV", "#N/D", "#N/B", "#DIV/0!", "#VALUE!", "#N/A", "NA", "n/a", "N/D", "#ND"],
)
def test_a_spreadsheets_error_is_no_class(label, tmp_path):
    errors = [(label, f"text {i}") for i in range(6)]
    with pytest.raises(DataError, match="where one class is needed"):
        load(own(tmp_path, mail(24) + errors))


@pytest.mark.parametrize("state", ["NV", "ND", "NB"])
def test_a_state_is_a_class(state, tmp_path):
    assert state in names_of(load(own(tmp_path, mail(24, ["Ohio", state]))))


def test_classes_in_thai_and_persian_are_the_files_own(tmp_path):
    names = ["\u0e19\u0e49\u0e33", "\u0645\u06cc\u200c\u0631\u0648", "01"]
    news = load(own(tmp_path, mail(24, names)))
    assert {*names_of(news)} == {*names}


def test_names_of_classes_that_datasets_wrote_into_parquet(tmp_path):
    names = ["World", "Praise", "Blame"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = dict(
        text=[f"text of its own {i * 7919}" for i in range(30)],
        label=[i % 3 for i in range(30)],
    )
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    news = load(tmp_path)
    assert names_of(news) == ["Blame", "Praise", "World"]
    for row in news["train"]:
        assert (
            names_of(news)[row["label"]]
            == names[int(row["text"].split()[-1]) // 7919 % 3]
        )
    rows["label"][3] = -1
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    fails(tmp_path, "train.parquet, row 4: without a label")


def test_parts_of_a_split_are_one_split(tmp_path):
    rows = pd.DataFrame(mail(60), columns=["label", "text"])
    (tmp_path / "data").mkdir()
    for part in (0, 1):
        name = tmp_path / f"data/train-0000{part}-of-00002.parquet"
        rows[30 * part :][:30].to_parquet(name)
        if part == 0:
            fails(tmp_path, "-of-00002.parquet", "all parts of one Parquet file")
    news = load(tmp_path)
    texts = [text for split in news.values() for text in split["text"]]
    assert sorted(texts) == sorted(rows["text"])


@pytest.mark.parametrize("name", ["validation", "valid", "Val", "dev", "eval"])
def test_a_file_for_validation_is_used(tmp_path, capsys, name):
    folder = own(tmp_path, mail(30), mail(6, word="other"))
    own(folder, mail(9, word="third"), name=f"{name}.csv")
    news = load(folder)
    assert {split: len(rows) for split, rows in news.items()} == {
        "train": 30,
        "validation": 9,
        "test": 6,
    }
    assert news["validation"]["text"][0].startswith("third")
    assert f"\n{name}.csv · 9 rows read, 9 used, 0 not" in capsys.readouterr().out


def test_labels_that_are_written_in_two_ways_are_told(tmp_path, capsys):
    load(own(tmp_path, [*mail(), ("PRAISE", "once more"), ("blame ", "and again")]))
    printed = capsys.readouterr().out
    assert (
        "3 classes: Blame 9, Praise 9, Question 8 · 'Blame' and 'blame' are one class "
        "· 'Praise' and 'PRAISE' are one class\n" in printed
    )


@pytest.mark.parametrize("header", [("id", "text"), ("id", "keyword", "text")])
def test_a_test_file_without_labels_is_left_out_with_a_note(tmp_path, capsys, header):
    rows = [(i, "fire", text)[-len(header) :] for i, (_, text) in enumerate(mail(40))]
    train = [(*row, label) for row, (label, _) in zip(rows, mail(40))]
    own(tmp_path, train, header=(*header, "target"))
    own(tmp_path, rows, header=header, name="test.csv")
    assert len(load(tmp_path)["test"]) < 20
    said = "note: test.csv has no labels in 'target': its 40 rows are not used.\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("labels", [("-1", "1"), ("-1", "0", "1")])
def test_minus_one_is_a_class_beside_one(tmp_path, capsys, labels):
    news = load(own(tmp_path, mail(30, labels), header=("sentiment", "review")))
    assert names_of(news) == [*labels]
    assert f"{len(labels)} classes: -1 " in capsys.readouterr().out


def test_half_a_character_in_a_column_that_may_be_the_label(tmp_path):
    rows = [json.dumps({"a": text, "b": label}) for label, text in mail(60)]
    rows[2] = '{"a": "half \\ud800", "b": "Praise"}'
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    fails(tmp_path, "train.jsonl, line 3: with a null byte or half a character")


def test_a_first_row_whose_label_is_rare_is_no_header(tmp_path):
    first = ("Complaint", "It came late, it was wet, and nobody answered the telephone")
    own(tmp_path, [first, *mail(60)], header=None)
    fails(tmp_path, "train.csv, line 1: the label 'Complaint' is none of the classes")


@pytest.mark.parametrize("header", [("Nachricht", "Kategorie"), ("intent", "words")])
def test_a_test_file_with_another_header_is_asked_about(tmp_path, header):
    """Without a header, or with another, its columns could be taken for each other."""
    own(tmp_path, mail(60), [row[::-1] for row in mail(6, word="other")])
    replaced(tmp_path, b"label,text", ",".join(header).encode(), "test")
    fails(
        tmp_path,
        f"test.csv has the columns {[*header]}",
        "Test files have the training file's",
    )
    own(tmp_path, mail(6, word="other"), header=None, name="test.csv")
    fails(tmp_path, "test.csv has the columns ['Praise', 'other of number 0")


def test_a_test_file_needs_no_training_rows(tmp_path, capsys):
    names = ["Blame", "Praise", "Question"]
    own(tmp_path, mail(5), name="test.csv")
    for place in (tmp_path, tmp_path / "test.csv"):
        rows = data.load_test(Recipe(data=str(place)), names)
        assert rows.features["label"].names == names
        assert rows["label"][:] == [1, 0, 2, 1, 0] and len({*rows["text"]}) == 5
        assert "test.csv · 5 rows read, 5 used, 0 not" in capsys.readouterr().out
    own(tmp_path, [*mail(5), ("Parise", "words"), ("", "more")], name="test.csv")
    with pytest.raises(DataError) as error:
        data.load_test(Recipe(data=str(tmp_path)), names)
    first, second = str(error.value).splitlines()
    assert "line 7: the label 'Parise' is none of the classes" in first
    assert "Is 'Praise' meant?" in first and "line 8: without a label" in second


def test_one_file_is_enough(tmp_path):
    for name in ("tickets.csv", "tickets.tsv"):
        folder = own(
            tmp_path, mail(), separator="\t" if "tsv" in name else ",", name=name
        )
        assert sum(map(len, load(folder / name).values())) == 24
