"""`agnews check`: everything that is wrong with a spreadsheet, at once."""

import csv
import io
import json
import shutil

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agnews_helpers import DataError, Recipe, check_data, load_data
from agnews_helpers.checking import print_check
from agnews_helpers.cli import main
from agnews_helpers.data import read_source
from agnews_helpers.plumbing.tables import problem_of
from tests.test_data import fails, mail, names_of, own

CLASSES = ["Delivery"] * 120 + ["Returns"] * 80 + ["Payment"] * 52 + ["Account"] * 40
CLASSES += ["Gift card"] * 8
WORDS = "where is my parcel money back shoe size broken late box card pay help".split()
# What is wrong with the spreadsheet: the line of each fault, and the line instead.
FAULTS = {
    17: "Delivry;where is it",
    30: 'Returns;"it came broken',
    45: "Payment;",
    60: ";nobody knows what this is about",
    75: "Account;one;two",
}


def message(i):
    """A text of its own, with a letter that Windows-1252 writes in another way."""
    words = [WORDS[(i * 7 + j * (1 + i // 14)) % len(WORDS)] for j in range(3 + i % 9)]
    return f"{' '.join(words)} für {i}"


@pytest.fixture(params=["cp1252", "utf-8-sig"])
def spreadsheet(request, tmp_path):
    """300 rows as Excel saves them: mixed case, missing cells, a typo, a rare class."""
    labels = [CLASSES[i * 7 % 300] for i in range(300)]
    labels = [name.lower() if i % 10 == 3 else name for i, name in enumerate(labels)]
    file = io.StringIO(newline="")
    rows = [(label, message(i)) for i, label in enumerate(labels)]
    csv.writer(file, delimiter=";").writerows([("Kategorie", "Nachricht"), *rows])
    lines = file.getvalue().splitlines()
    for line, content in FAULTS.items():
        lines[line - 1] = content
    path = tmp_path / "tickets.csv"
    path.write_bytes("\r\n".join(lines).encode(request.param))
    return path


def check(path, **fields):
    return check_data(Recipe(profile="offline", model="mini", data=str(path), **fields))


def test_all_that_is_wrong_with_a_spreadsheet_is_told_at_once(spreadsheet):
    figures = check(spreadsheet)
    told = figures["problems"]
    assert [problem.split(":")[0] for problem in told] == [
        "tickets.csv, line 17",
        "tickets.csv, line 30",
        "tickets.csv, line 45",
        "tickets.csv, line 60",
        "tickets.csv, line 75",
    ]
    assert "Is 'Delivery' meant?" in told[0] and "quotation mark" in told[1]
    assert "without text" in told[2] and "without a label" in told[3]
    assert "3 fields, and the first row has 2" in told[4]
    (note,) = figures["notes"]
    assert "300 rows read, 295 used, 5 not · label column 'Kategorie'" in note
    assert "'Delivery' and 'delivery' are one class" in note
    assert figures["classes"]["Gift card"] == {"train": 8}
    assert sum(rows["train"] for rows in figures["classes"].values()) == 295


def test_train_stops_with_the_same_list(spreadsheet):
    said = fails(spreadsheet, f'agnews check "{spreadsheet}" --write FOLDER')
    assert said.splitlines()[:-1] == check(spreadsheet)["problems"]


def test_what_check_writes_is_trained_with_and_nothing_is_lost(spreadsheet, tmp_path):
    target, figures = tmp_path / "usable", tmp_path / "figures.json"
    command = ["check", str(spreadsheet), "--model", "mini", "--json", str(figures)]
    assert main([*command, "--write", str(target)]) == 1
    news = load_data(Recipe(profile="offline", model="mini", data=str(target)))
    assert {*names_of(news)} == {*CLASSES}
    texts = [text for split in news.values() for text in split["text"]]
    faulty = {line - 2 for line in FAULTS}
    assert sorted(texts) == sorted(message(i) for i in range(300) if i not in faulty)
    unused = pd.read_csv(target / "unused.csv")
    assert dict(zip(unused["line"], unused["content"])) == FAULTS
    assert {*unused["file"]} == {"tickets.csv"} and unused["problem"].all()
    read = json.loads(figures.read_text(encoding="utf-8"))
    assert "300 rows read, 295 used, 5 not" in read["notes"][0]
    assert main(["check", str(target), "--model", "mini"]) == 0


def test_check_prints_classes_tokens_and_flags(spreadsheet, capsys):
    command = ["check", str(spreadsheet), "--model", "mini", "--max-length", "10"]
    assert main(command) == 1
    out = capsys.readouterr().out
    for part in (
        "tickets.csv, line 30: a quotation mark",
        "Gift card      8\n",
        "texts cut at 10: ",
        "equal      0 texts occur twice or more",
        "suggested  --class-weights balanced: Delivery has 117 rows, Gift card 8\n",
        "suggested  --learning-rate 1e-4: at most 148 steps, few for 2e-5\n",
        "suggested  --max-length 1",
    ):
        assert part in out, out


def test_a_clean_folder_needs_nothing(tmp_path, capsys):
    own(tmp_path, mail(600), mail(60, word="other"))
    figures = check(tmp_path)
    assert figures["problems"] == [] and figures["suggestions"] == {}
    assert figures["classes"]["Praise"] == {"train": 200, "test": 20}
    assert main(["check", str(tmp_path), "--model", "mini"]) == 0
    assert "suggested" not in capsys.readouterr().out


def test_equal_texts_are_listed_with_their_lines_and_labels(tmp_path, capsys):
    rows = mail(30)
    text = rows[0][1].upper()  # an uncased model does not see the difference
    own(tmp_path, [*rows, rows[1], ("Blame", text)], [*mail(6, word="new"), rows[0]])
    figures = check(tmp_path)
    assert figures["equal_texts"] == [
        "train 2 Praise = train 33 Blame = test 8 Praise",
        "train 3 Blame = train 32 Blame",
    ]
    print_check(figures)
    said = "equal      2 texts occur twice or more\ntrain 2 Praise = train 33"
    assert said in capsys.readouterr().out


def test_texts_with_two_labels_come_first(tmp_path):
    rows = mail(30)
    last = rows[-1][1]
    own(tmp_path, [*rows, rows[0], rows[1], rows[1], ("Praise", last)])
    figures = check(tmp_path)
    assert figures["equal_texts"] == [
        "train 31 Question = train 35 Praise",
        "train 2 Praise = train 32 Praise",
        "train 3 Blame = train 33 Blame = train 34 Blame",
    ]


def test_check_says_what_train_refuses(tmp_path):
    path = own(tmp_path, mail(12)) / "train.csv"
    [problem] = check(path)["problems"]
    assert "train.csv has 4 rows to train, 4 to validate and 4 to test with" in problem
    assert check(path, batch_size=4)["problems"] == []
    fails(path, problem)


def test_tokens_are_counted_whole(tmp_path):
    long = ("Praise", "word " * 700)
    own(tmp_path, [*mail(29), long])
    tokens = check(tmp_path)["tokens"]
    assert tokens["longest"] == 702 and tokens["cut"] == 1
    assert tokens["median"] < 30 and tokens["max_length"] == 512
    assert "--max-length 512" in check(tmp_path, max_length=128)["suggestions"]
    assert not [flag for flag in check(tmp_path)["suggestions"] if "length" in flag]


def test_a_class_that_has_too_few_rows_is_a_problem(tmp_path):
    own(tmp_path, [*mail(30), ("Rare", "seldom")])
    names = ["Praise", "Blame", "Question", "Rare", "Never"]
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    (problem,) = check(tmp_path)["problems"]
    assert "at least 2 training rows" in problem and "found Rare 1, Never 0" in problem
    assert check(tmp_path)["classes"]["Never"] == {"train": 0}


@pytest.mark.parametrize("both", ["billing|login", "login, billing", "login / billing"])
def test_several_labels_in_one_cell_are_told(both, tmp_path):
    labels = ["billing", "login", "Sci/Tech", both]
    rows = [f'"{labels[i % 4]}","{message(i)}"\n' for i in range(40)]
    (tmp_path / "train.csv").write_text("label,text\n" + "".join(rows))
    told = check(tmp_path)["suggestions"]["one label per text"]
    assert told == f"such as {both!r}, which is now a class"


def test_a_folder_is_written_only_if_there_is_something_to_write(tmp_path):
    folder = own(tmp_path / "rows", [(name, " ") for name in "aabb" * 20])
    (folder / "classes.txt").write_text("a\nb", encoding="utf-8")
    with pytest.raises(ValueError, match="There is no text"):
        check_data(Recipe(model="mini", data=str(folder)), tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_the_usable_rows_go_to_a_new_folder(tmp_path):
    recipe = Recipe(model="mini", data=str(own(tmp_path / "a", mail())))
    with pytest.raises(FileExistsError):
        check_data(recipe, tmp_path / "a")


def test_a_row_that_is_no_unicode_is_written_with_its_reason(tmp_path):
    rows = [json.dumps(dict(label=a, text=b)) for a, b in mail()]
    rows[3] = '{"label": "Praise", "text": "half \\ud800"}'
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    check_data(Recipe(model="mini", data=str(tmp_path)), tmp_path / "usable")
    written = (tmp_path / "usable" / "unused.csv").read_text(encoding="utf-8")
    assert "half \\ud800" in written and "train.jsonl" in written


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(texts=st.lists(st.text(max_size=20), min_size=12, max_size=12))
def test_any_text_that_is_usable_is_written_and_read_again(tmp_path, texts):
    source, target = tmp_path / "source.parquet", tmp_path / "usable"
    shutil.rmtree(target, ignore_errors=True)
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    labels = ["Praise", "Blame"] * 6
    rows = [*zip(labels * 2, texts + [f"plain words {i}" for i in range(12)])]
    Dataset.from_pandas(pd.DataFrame(rows, columns=["label", "text"])).to_parquet(
        source
    )
    figures = check_data(Recipe(model="mini", data=str(source)), target)
    again = check_data(Recipe(model="mini", data=str(target)))
    used = [text.strip() for _, text in rows if not problem_of(text)]
    n = len(used)
    assert f"24 rows read, {n} used, {24 - n} not" in figures["notes"][0]
    assert f"{n} rows read, {n} used, 0 not" in again["notes"][0]
    written = pd.read_csv(target / "train.csv", keep_default_na=False)
    assert len(written) == len(used)


def test_a_class_is_called_as_it_is_mostly_written(tmp_path):
    rows = ["DELIVERY;Where is it", *["Delivery;Not here"] * 3, *["returns;Back"] * 5]
    rows += ["Returns;Money back"] * 2
    path = tmp_path / "tickets.csv"
    text = "\n".join(f"{row} {i}" for i, row in enumerate(rows))
    path.write_text(f"label;text\n{text}\n", encoding="utf-8")
    assert read_source(Recipe(data=str(path))).names == ["Delivery", "returns"]


def test_numbers_and_dates_are_no_texts(tmp_path):
    rows = [f"{i},2026-11-{i % 9 + 1},{'ab'[i % 2]},{i}.50,Text {i}" for i in range(60)]
    path = tmp_path / "tickets.csv"
    path.write_text("\n".join(["Nr,Datum,Art,Preis,Wort", *rows]), encoding="utf-8")
    [texts] = read_source(Recipe(data=str(path))).files.values()
    assert texts.columns == ("Art", ["Wort"]) and texts.usable["text"][2] == "Text 0"
    text = path.read_text(encoding="utf-8").replace(",Text", ",")  # no text at all
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="which is the text"):
        read_source(Recipe(data=str(path)))


def test_the_written_text_column_is_called_as_before(tiny, tmp_path):
    rows = [f"{'ab'[i % 2]};Text {i};Bonn {i}" for i in range(60)]
    path = tmp_path / "tickets.csv"
    path.write_text("\n".join(["Art;Wort;Ort", *rows]), encoding="utf-8")
    for columns, name in (("Wort", "Wort"), ("Wort,Ort", "text")):
        recipe = Recipe(model=str(tiny), data=str(path), text_columns=columns)
        target = tmp_path / columns
        check_data(recipe, target)
        [texts] = read_source(Recipe(data=str(target))).files.values()
        assert texts.columns == ("label", [name]) and len(texts.usable) == 60
