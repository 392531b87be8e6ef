import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from agnews_helpers import (
    LABELS,
    SaveError,
    __version__,
    classify,
    cli,
    load_model,
    running,
    train,
)
from agnews_helpers.checkpoints import find_checkpoints
from agnews_helpers.cli import main
from agnews_helpers.data import SUPPORT
from agnews_helpers.doctor import Check
from agnews_helpers.plumbing import mini
from agnews_helpers.runs import recipe_of_run
from tests.compare import flip
from tests.signals import signals_of_a_terminal
from tests.tiny import tiny_model_folder


@pytest.fixture
def small(monkeypatch, tiny):
    """The tiny model and few rows, as a user would ask for them."""
    monkeypatch.setenv("AGNEWS_MODEL", str(tiny))
    monkeypatch.setenv("AGNEWS_TRAIN_ROWS", "44")
    monkeypatch.setenv("AGNEWS_TEST_ROWS", "20")


def test_train_evaluate_predict(small, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--epochs", "2", "--learning-rate", "1e-3", "--no-group-by-length"]
    assert main(["train", *flags, "--output-dir", str(run)]) == 0
    trained = json.loads((run / "test_report.json").read_text(encoding="utf-8"))
    assert trained["rows"] == 20 and 0 <= trained["accuracy"] <= 1
    recipe = recipe_of_run(run)
    assert recipe.learning_rate == 1e-3 and not recipe.group_by_length
    output = capsys.readouterr().out
    assert output.startswith("device     cpu\nprofile    offline (asked for by ")
    assert "test: accuracy " in output and f"kept in {run}\n" in output
    assert "World   " in output and "note: 10 steps are few." in output
    assert "4 validation rows chose epoch" in output
    assert "each of them 25.0% of their accuracy" in output
    card = (run / "best" / "README.md").read_text(encoding="utf-8")
    assert "\nSci/Tech  " in card and "epochs: 2\n" in card
    assert str(tmp_path) not in card

    figures = ["--json", str(tmp_path / "figures" / "test.json")]
    assert main(["evaluate", "--output-dir", str(run), *figures]) == 0
    text = (tmp_path / "figures" / "test.json").read_text(encoding="utf-8")
    again = json.loads(text)["test"]
    assert again["accuracy"] == trained["accuracy"]
    assert again["confusion"] == trained["confusion"]
    capsys.readouterr()

    assert (
        main(
            [
                "predict",
                "Stocks fall as oil climbs",
                "Second text",
                "--output-dir",
                str(run),
                "--json",
                str(tmp_path / "p.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    predictions = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))[
        "predictions"
    ]
    assert len(predictions) == 2 and sum(
        predictions[0][f"probability_{name}"] for name in LABELS
    ) == pytest.approx(1)
    assert (
        printed.startswith(predictions[0]["label"])
        and "Stocks fall as oil climbs" in printed
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["budget", "--max-length", "513"],
            "A batch of rows of 513 tokens",
        ),
        (["train", "--data", "no/such/folder"], "is no folder with a training file"),
        (
            ["predict", "text", "--output-dir", "no/such/run"],
            "holds no trained classifier",
        ),
        (["evaluate", "--output-dir", "no/such/run"], "holds no trained classifier"),
        (["notebooks", "--source", "no/such/notebooks"], "holds no notebook"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_the_notebooks_are_found_wherever_it_runs(tmp_path, monkeypatch):
    """Those of this folder; else those inside the package, else those beside it."""
    used = []

    def source():
        assert main(["notebooks"]) == 0
        return used[-1].resolve()

    def run_notebooks(source, target, only):
        used.append(source)

    monkeypatch.setattr(running, "run_notebooks", run_notebooks)
    monkeypatch.chdir(tmp_path)
    assert len(list(source().glob("[0-9][0-9]_*.ipynb"))) >= 9
    installed = tmp_path / "site-packages" / "agnews_helpers"
    (installed / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(cli, "__file__", str(installed / "cli.py"))
    assert source() == installed / "notebooks"
    (tmp_path / "notebooks").mkdir()
    assert source() == tmp_path / "notebooks"


def wait_until_it_answers(url):
    for _ in range(300):
        with suppress(OSError):
            return urllib.request.urlopen(url, timeout=60).close()
        time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


@pytest.mark.slow
def test_lab_opens_a_copy_and_ctrl_c_ends_it(tmp_path):
    """The reader's changes stay; one Ctrl-C is enough, with a terminal or without."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"ip": "127.0.0.1", "port": free.getsockname()[1]}
    settings = {"allow_root": True, "open_browser": False, **address}
    (tmp_path / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": settings}), encoding="utf-8"
    )
    folder = tmp_path / "my notebooks"
    for word in ("print(1)", "print(2)"):
        with signals_of_a_terminal():
            lab = subprocess.Popen(
                [sys.executable, "-m", "agnews_helpers", "lab", str(folder)],
                env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        lines = []
        for line in lab.stderr:  # ends if JupyterLab does
            lines.append(line)
            if "/lab?token=" in line:
                wait_until_it_answers(line.split()[-1])
                lab.send_signal(signal.SIGINT)
                break
        rest = lab.communicate(timeout=60)[1]
        assert lab.returncode == 0, "".join(lines) + rest
        assert str(folder) in "".join(lines) and "Traceback" not in rest
        assert (folder / "pictures" / "headline.svg").is_file()
        [first] = folder.glob("01_*.ipynb")
        changed = "" if word == "print(1)" else "print(1)"
        assert first.read_text(encoding="utf-8").startswith(changed)
        first.write_text(word, encoding="utf-8")


def test_a_run_is_stopped_and_resumed(small, tmp_path, capsys):
    train = [
        "train",
        "--epochs",
        "2",
        "--learning-rate",
        "1e-3",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    assert main([*train, "--steps", "3"]) == 0
    output = capsys.readouterr().out
    assert (
        "Stopped after step 3 of 10 (epoch 1 of 2)" in output
        and "At this pace all 2 epochs of 40 training rows take about" in output
    )
    for flags in (["--epochs", "3"], ["--resume", "--epochs", "3"]):
        assert main([*train, *flags]) == 2  # not discarded silently
        assert "epochs is 2 there and 3 here" in capsys.readouterr().err
    assert main([*train, "--steps", "2"]) == 0  # the same again: resumed
    assert "Resuming after step 3 of 10" in capsys.readouterr().out
    assert main(["train", "--resume", "--output-dir", str(tmp_path / "run")]) == 0
    assert "Resuming after step 5 of 10" in capsys.readouterr().out
    report = (tmp_path / "run" / "test_report.json").read_text(encoding="utf-8")
    assert main([*train, "--no-resume"]) == 0
    again = (tmp_path / "run" / "test_report.json").read_text(encoding="utf-8")
    assert report == again


@pytest.mark.skipif(
    os.name != "posix", reason="Windows cannot send Ctrl-C to one process"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_saves_and_ends_with_130_or_143(number, small, tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "agnews_helpers",
        "train",
        "--epochs",
        "4000",
        "--output-dir",
        str(tmp_path / "run"),
    ]
    if number == signal.SIGTERM:
        arguments += ["--steps", "1000000"]  # a signal is no number of steps
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        for _ in range(1200):
            if (tmp_path / "run" / "run.json").exists():  # the first epoch is done
                break
            time.sleep(0.1)
        child.send_signal(number)
        output, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number, errors
    assert "Stopped after step" in output and "Traceback" not in errors
    assert find_checkpoints(tmp_path / "run")


def test_mini_missing_is_one_line_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(mini.SHA256, "model.safetensors", "0" * 64)
    mini.mini_folder.cache_clear()
    assert main(["train"]) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_every_field_of_the_recipe_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in (
        "profile",
        "model",
        "data",
        "train-rows",
        "test-rows",
        "validation-share",
        "max-length",
        "padding",
        "group-by-length",
        "batch-size",
        "learning-rate",
        "epochs",
        "precision",
        "seed",
        "resume",
        "no-resume",
        "steps",
    ):
        assert f"--{name}" in text


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert (
        "profile            offline (asked for by" in output
        and output.count("[OK]") >= 11
        and "[FAIL]" not in output
        and "Ready." in output
    )


def test_doctor_fails_where_something_is_missing(monkeypatch, capsys):
    other = Check("Jupyter kernel", False, "that of another Python", "Mend it")
    monkeypatch.setattr("agnews_helpers.doctor._kernel", lambda: other)
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert (
        "[FAIL] Jupyter kernel" in output
        and "Mend it" in output
        and "Not ready: Jupyter kernel." in output
        and "[OK]   torch" in output
    )


@pytest.mark.slow
def test_notebooks_are_run_and_a_failing_one_is_named(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name, code in (
        ("01_good", "1 + 1"),
        ("02_bad", "print('so far')\n1 / 0"),
        ("03_after", "6 * 7"),
    ):
        nbformat.write(
            new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell(code)]),
            source / f"{name}.ipynb",
        )
    assert (
        main(
            [
                "notebooks",
                "--source",
                str(source),
                "--target",
                str(target),
            ]
        )
        == 1
    )
    printed = capsys.readouterr().out
    assert (
        "01_good" in printed
        and "ZeroDivisionError" in printed
        and "FAILED     02_bad" in printed
    )
    assert "<pre>42</pre>" in (target / "03_after.html").read_text(encoding="utf-8")
    assert "so far" in (target / "02_bad.ipynb").read_text(encoding="utf-8")
    assert (
        nbformat.read(source / "03_after.ipynb", 4).cells[1].outputs == []
    )  # the source stays as it was


# five classes, and texts in files

SUPPORT_ARGUMENTS = ["--data", str(SUPPORT), "--epochs", "1", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def shop(tiny, tmp_path_factory):
    """A classifier of five classes, trained by the command."""
    folder = tmp_path_factory.mktemp("shop") / "run"
    assert (
        main(
            [
                "train",
                "--model",
                str(tiny),
                *SUPPORT_ARGUMENTS,
                "--output-dir",
                str(folder),
            ]
        )
        == 0
    )
    return folder


def test_five_classes_are_evaluated(shop, tmp_path, capsys):
    assert (
        main(
            [
                "evaluate",
                "--output-dir",
                str(shop),
                "--json",
                str(tmp_path / "test.json"),
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))["test"]
    assert found["rows"] == 60 and len(found["confusion"]) == 5
    trained = json.loads((shop / "test_report.json").read_text(encoding="utf-8"))
    assert (
        found["confusion"] == trained["confusion"]
        and "Product question" in capsys.readouterr().out
    )


def test_other_classes_than_the_models_are_one_line(shop, capsys):
    assert (
        main(
            [
                "evaluate",
                "--output-dir",
                str(shop),
                "--data",
                "sample",
            ]
        )
        == 2
    )
    [line] = capsys.readouterr().err.splitlines()
    assert "The model's classes are" in line and "They must agree." in line


def test_a_file_of_texts_is_labelled(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "new" / "labelled.csv"
    lines = [f'{i};"Where is my parcel; it is number {i}"' for i in range(1_203)]
    source.write_text("\n".join(["id;text", *lines]), encoding="utf-16")
    command = [
        "predict",
        "--output-dir",
        str(shop),
        "--file",
        str(source),
        "--output",
        str(target),
    ]
    assert main(command) == 0 and "1,203 rows labelled" in capsys.readouterr().out
    assert target.read_bytes().startswith(b"\xef\xbb\xbfid;text;label;confidence;")
    table = pd.read_csv(target, sep=";")
    classes = ["Delivery", "Returns", "Payment", "Account", "Product question"]
    wanted = ["id", "text", "label", "confidence"]
    assert table.columns[:4].tolist() == wanted
    assert {*table.columns[4:]} == {f"probability_{name}" for name in classes}
    assert table["id"].tolist() == [*range(1_203)]
    assert {*table["label"]} <= {*classes}
    assert table.iloc[:, 4:].sum(axis=1).to_numpy() == pytest.approx(1.0, abs=1e-3)
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--json",
                str(tmp_path / "one.json"),
                table["text"][7],
            ]
        )
        == 0
    )
    [one] = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))[
        "predictions"
    ]
    assert one["label"] == table["label"][7]
    confidence = one["confidence"]
    assert confidence == pytest.approx(table["confidence"][7], abs=1e-3)
    capsys.readouterr()
    assert (
        main(command) == 2
        and "labelled.csv must be the name of a new file" in capsys.readouterr().err
    )
    if os.name == "posix":
        (tmp_path / "link.csv").symlink_to(
            tmp_path / "nothing.csv"
        )  # of the reader: it is not replaced
        command[command.index("--output") + 1] = str(tmp_path / "link.csv")
        assert (
            main(command) == 2
            and "link.csv must be the name of a new file" in capsys.readouterr().err
        )
    for name in (
        "labelled.jsonl",
        "labelled.csv.gz",
        "labelled.parquet",
    ):  # what is written is CSV
        command[command.index("--output") + 1] = str(tmp_path / name)
        with pytest.raises(SystemExit):
            main(command)
        said = f"{name}' must be the name of a new file that ends in .csv or .tsv"
        assert said in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_a_file_without_rows_is_not_labelled(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    source.write_text("", encoding="utf-8")
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--file",
                str(source),
                "--output",
                str(target),
            ]
        )
        == 2
    )
    assert "texts.csv has no rows" in capsys.readouterr().err and not target.exists()


def test_the_home_is_found_where_the_shell_left_it(monkeypatch, tmp_path, capsys):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--output-dir", "~/mine"]) == 2
    assert f"{tmp_path / 'mine'} holds no trained classifier" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_columns_of_those_names_are_kept(shop, tmp_path):
    source, target = tmp_path / "texts.jsonl", tmp_path / "labelled.csv"
    source.write_text(
        '{"text": "Is the lamp still sold?", "label": "unknown"}\n', encoding="utf-8"
    )
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--file",
                str(source),
                "--output",
                str(target),
            ]
        )
        == 0
    )
    columns = pd.read_csv(target).columns.tolist()
    assert columns[:4] == ["text", "label", "predicted_label", "confidence"]
    again = tmp_path / "again.csv"
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--file",
                str(target),
                "--output",
                str(again),
            ]
        )
        == 0
    )
    table = pd.read_csv(again)  # what was predicted before is kept
    new = [name for name in table.columns if name not in columns]
    assert new[:2] == ["predicted_predicted_label", "predicted_confidence"]
    assert all(name.startswith("predicted_probability_") for name in new[2:])
    assert len(new) == 7
    assert table["predicted_label"].equals(pd.read_csv(target)["predicted_label"])


def test_numbers_stay_as_they_are(shop, tmp_path):
    source, target = tmp_path / "texts.jsonl", tmp_path / "labelled.csv"
    lines = ['{"text": "Is the lamp still sold?", "n": 1}', '{"text": "And the desk?"}']
    source.write_text("\n".join(lines), encoding="utf-8")
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--file",
                str(source),
                "--output",
                str(target),
            ]
        )
        == 0
    )
    assert pd.read_csv(target, dtype=str)["n"].fillna("").tolist() == [
        "1",
        "",
    ]  # not 1.0


def test_columns_without_a_name_are_not_guessed(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    command = [
        "predict",
        "--output-dir",
        str(shop),
        "--file",
        str(source),
        "--output",
        str(target),
    ]
    source.write_text("headline,body\nWhere is it,I wait\n", encoding="utf-8")
    assert main(command) == 2 and not target.exists()
    assert "which is the text? --text-columns A,B" in capsys.readouterr().err
    assert (
        main([*command, "--text-columns", "headline,body"]) == 0
        and len(pd.read_csv(target)) == 1
    )
    target.unlink()
    source.write_text(
        "1,Where is it,I wait\n3,Paid twice,Give it back\n", encoding="utf-8"
    )
    assert main(command) == 2 and not target.exists()
    for columns in ("column 2,column 3", "column 2, column 3"):
        assert main([*command, "--text-columns", columns]) == 0
        assert len(pd.read_csv(target)) == 2
        target.unlink()
    source.write_text("my column a,other\nWhere is it,x\n", encoding="utf-8")
    assert main([*command, "--text-columns", "my column a"]) == 0
    assert pd.read_csv(target)["my column a"].tolist() == ["Where is it"]


@pytest.mark.parametrize("line", ["\r", "\r\n", "\n"])
def test_each_row_stays_one_row(line, shop, tmp_path):
    """Python below 3.13 leaves a text with a lone carriage return without quotes."""
    source, target = tmp_path / "texts.jsonl", tmp_path / "labelled.csv"
    rows = [{"text": f"Where is it?{line}I wait"}, {"text": "Paid twice"}]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["--output-dir", str(shop), "--file", str(source), "--output", str(target)]
    assert main(["predict", *words]) == 0
    with target.open(encoding="utf-8-sig", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [row["text"] for row in found] == [row["text"] for row in rows]


def test_a_text_column_may_be_called_like_a_label(tiny, tmp_path):
    """`--text-columns topic,message` trained with a column `topic`."""
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    source.write_text("topic,message\nParcel,Where is it\n", encoding="utf-8")
    words = ["--output-dir", str(tiny), "--file", str(source), "--output", str(target)]
    assert main(["predict", *words, "--text-columns", "topic,message"]) == 0
    assert len(pd.read_csv(target)) == 1


@pytest.mark.parametrize("header", ["title,description", "id,Title,Description"])
def test_columns_with_the_names_of_ag_news_are_known(header, shop, tmp_path):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    row = "Where is it,I wait" if header[0] == "t" else "7,Where is it,I wait"
    source.write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert (
        main(
            [
                "predict",
                "--output-dir",
                str(shop),
                "--file",
                str(source),
                "--output",
                str(target),
            ]
        )
        == 0
    )
    [label] = pd.read_csv(target)["label"]
    assert label == classify(["Where is it I wait"], shop)["label"][0]


def test_files_that_are_not_as_the_run_wrote_them_are_named(shop, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(shop, folder)
    assert main(["predict", "--output-dir", str(folder), "Where is it?"]) == 0
    assert "note" not in capsys.readouterr().out
    flip(folder / "best" / "model.safetensors", -5)
    for command in (["predict", "Where is it?"], ["evaluate"]):
        assert main([*command, "--output-dir", str(folder)]) == 0
        told = f"note: model.safetensors in {folder / 'best'} changed since the run"
        assert told in capsys.readouterr().out


def test_the_classifier_of_an_unfinished_run_says_so(recipe, tokens, tmp_path, capsys):
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=2)
    capsys.readouterr()
    assert main(["predict", "--output-dir", str(tmp_path / "run"), "Stocks fall"]) == 0
    expected = "run/best is not finished; this is its classifier so far."
    assert expected in capsys.readouterr().out.replace("\\", "/")


def test_what_would_steer_a_terminal_is_not_printed(shop, capsys):
    assert (
        main(["predict", "--output-dir", str(shop), "\x1b[31mred\u202e and\ntwo lines"])
        == 0
    )
    output = capsys.readouterr().out
    assert (
        "\x1b" not in output
        and "\u202e" not in output
        and " [31mred  and two lines" in output
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["\u200b\u200b"], "Text 1"),
        (["good", "a\udce9b"], "Text 2"),
        ([], "Give texts"),
        (["a", "--file", "b.csv"], "Give texts"),
        (["-"], "Give texts"),  # the lines of the input, until version 3
        (["--output", "b.csv"], "Give texts"),
        (["--file", "no-such.csv", "--output", "out.csv"], "no-such.csv"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    shop, arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--output-dir", str(shop), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("agnews predict: ") and message in line


# the command itself


def test_the_help_lists_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(
        name in output
        for name in "doctor budget train evaluate predict notebooks --version".split()
    )


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (
        ended.value.code == 0 and capsys.readouterr().out == f"agnews {__version__}\n"
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "budget"])
def test_every_flag_has_a_word_of_help(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split("options:")[1].split())
    for flag in re.findall(r"(--[a-z-]+) (?:[A-Z]+ )?(?=--)", text):
        pytest.fail(f"{flag} has no help")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict", "-oil"],
        ["budget", "--data", "x"],
        ["evaluate", "--epochs", "2"],
        ["train", "--json", "figures.json"],
        ["train", "--epochs", "two"],
    ],
)
def test_a_flag_that_a_command_has_not_is_told_in_two_lines(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    usage, error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and " error: " in error
    assert usage.startswith("usage: agnews ")


USAGE_ERRORS = {
    "train --profile tiny": "--profile: 'tiny' must be one of",
    "train --max-length 8193": "--max-length: '8193' must be a number of tokens",
    "train --epochs 0": "--epochs: '0' must be a whole number of passes",
    "train --learning-rate nan": "--learning-rate: 'nan' must be above 0",
    "train --steps 0": "--steps: '0' must be a whole number from 1",
    "train --batch-size 8.5": "--batch-size: '8.5' must be a whole number of rows",
    "evaluate --padding short": "--padding: 'short' must be 'longest'",
    "budget --system mac": "--system: invalid choice: 'mac' (choose from",
    "predict": "Give texts, or --file and --output",
    "predict --file texts.csv": "Give texts, or --file and --output",
}


def test_arguments_are_looked_at_before_torch_is_imported(capfd):
    """Errors name the flags. Importing torch takes seconds on a laptop."""
    code = (
        "import sys; from contextlib import suppress; from agnews_helpers.cli import "
        f"main\nfor line in {[*USAGE_ERRORS]}:\n with suppress(SystemExit): "
        "main(line.split())\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    lines = capfd.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith("usage: ")]
    assert len(lines) == len(USAGE_ERRORS)
    for line, message in zip(lines, USAGE_ERRORS.values()):
        assert message in line


def test_a_file_that_cannot_be_written_is_found_out_first(
    tmp_path, monkeypatch, capsys
):
    def _evaluate(options):
        pytest.fail("worked first")

    monkeypatch.setattr("agnews_helpers.cli._evaluate", _evaluate)
    (tmp_path / "file.json").touch()
    assert main(["evaluate", "--json", str(tmp_path / "file.json")]) == 2
    assert (
        "file.json must be the name of a new file or folder, outside"
        in capsys.readouterr().err
    )
    assert main(["evaluate", "--json", str(tmp_path / "file.json" / "below")]) == 2
    assert "File exists: " in capsys.readouterr().err


def test_ctrl_c_while_something_loads_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("agnews_helpers.doctor.examine", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "agnews doctor: interrupted\n"


@pytest.mark.parametrize(
    "error, message",
    [
        (SaveError("a\x1b[2J\nb is full"), "agnews doctor: a [2J\nb is full\n"),
        (KeyError("rows"), "agnews doctor: KeyError: 'rows'\n"),
    ],
)
def test_an_error_is_printed_without_control_characters(
    error, message, monkeypatch, capsys
):
    """An error that is not one of ours keeps its type, without which it says little."""

    def fail():
        raise error

    monkeypatch.setattr("agnews_helpers.doctor.examine", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == message


def test_a_class_that_is_never_answered_is_said(small, tmp_path, capsys):
    """One step is too few to learn four classes: all answers are the same."""
    flags = ["--epochs", "1", "--batch-size", "40", "--learning-rate", "1e-9"]
    assert main(["train", *flags, "--output-dir", str(tmp_path / "run")]) == 0
    [note] = re.findall(
        "note: (.*): never predicted.*--class-w", capsys.readouterr().out
    )
    assert {*note.split(", ")} < {*LABELS}


def test_a_row_that_cannot_be_read_is_named_before_any_work(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    command = ["predict", "--output-dir", str(shop), "--file", str(source)]
    for row in ('3,"never closed', "3,one,two", '3,"5 inch\n4,of 5"\n5,a'):
        source.write_text(f"id,text\n2,Where is it?\n{row}\n", encoding="utf-8")
        assert main([*command, "--output", str(target)]) == 2 and not target.exists()
        assert "texts.csv, line 3: " in capsys.readouterr().err


def test_rows_without_text_get_no_label_and_are_counted(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    source.write_text("id,text\n1,Where is it?\n2,\n3,Money back\n", encoding="utf-8")
    command = ["predict", "--output-dir", str(shop), "--file", str(source)]
    assert main([*command, "--output", str(target)]) == 0
    assert "2 rows labelled in " in capsys.readouterr().out
    table = pd.read_csv(target)
    assert table["label"].isna().tolist() == [False, True, False]
    assert table["confidence"].isna().tolist() == [False, True, False]


def test_the_text_columns_of_a_run_are_those_of_its_predictions(
    small, tmp_path, capsys
):
    rows = [f"{'ab'[i % 2]},{'ab'[i % 2]} {i},words {i % 3}" for i in range(40)]
    text = "\n".join(["label,Title,Description", *rows])
    for name in ("data/train.csv", "data/test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("words", name), encoding="utf-8")
    run, target = ["--output-dir", str(tmp_path / "run")], tmp_path / "labelled.csv"
    data = ["--data", str(tmp_path / "data"), "--text-columns", "Title"]
    limits = ["--train-rows", "40", "--test-rows", "40"]
    assert main(["train", "--epochs", "1", *run, *data, *limits]) == 0
    file = ["--file", str(tmp_path / "data" / "test.csv"), "--output", str(target)]
    assert main(["predict", *run, *file]) == 0
    assert "text 'Title' · not used 'Description'" in capsys.readouterr().out


def left_over(monkeypatch):
    """What a launcher leaves in the environment, as of the second of two processes."""
    ranks = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for name, value in (ranks | address).items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_what_a_launcher_left_over_stops_no_evaluation(small, monkeypatch, tmp_path):
    """In processes of their own, because they might wait for the others for ever."""
    folder = ["--output-dir", str(tmp_path / "run")]
    monkeypatch.setenv("WORLD_SIZE", "1")  # as of `torchrun --nproc-per-node 1`
    assert main(["train", "--epochs", "1", *folder]) == 0
    left_over(monkeypatch)
    for command in (["evaluate"], ["predict", "Stocks fall as oil climbs"]):
        command = [sys.executable, "-m", "agnews_helpers", *command, *folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["AGNEWS_DATA", "AGNEWS_MODEL"])
def test_a_home_that_is_not_there_is_one_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(name, "~nobody-of-this-name/x")
    assert main(["train", "--output-dir", str(tmp_path / "run")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("agnews train: ") and "home directory" in line


@pytest.mark.parametrize("folder", ["", "~nobody-of-this-name/x"])
def test_a_folder_that_is_none_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--output-dir", folder])
    assert end.value.code == 2 and "--output-dir" in capsys.readouterr().err


def test_two_results_cannot_have_one_name(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", str(tmp_path / "same.csv")
    source.write_text("text\nWhere is it?\n", encoding="utf-8")
    command = ["predict", "--output-dir", str(shop), "--file", str(source)]
    assert main([*command, "--output", target, "--json", target]) == 2
    assert "must be the name of a new file" in capsys.readouterr().err


def test_a_model_that_chooses_no_class_is_refused(tiny, tmp_path, capsys):
    for number, change in enumerate(
        ({"num_labels": 1}, {"problem_type": "multi_label_classification"})
    ):
        folder = tiny_model_folder(tmp_path / str(number), **change)
        assert main(["predict", "text", "--output-dir", str(folder)]) == 2
        assert "does not choose one of several classes" in capsys.readouterr().err


def label_file(folder, source, target, *more):
    """Run `agnews predict` on a file; returns its status."""
    files = ["--file", str(source), "--output", str(target)]
    return main(["predict", "--model", str(folder), *files, *more])


@pytest.mark.parametrize("ending", ["", ",,\n", ",,\n,,\n"])
def test_every_row_of_a_file_is_in_the_labelled_one(ending, shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    text = "id,text,note\n1,Where is it?,a\n,,\n3,,b\n4,Money back,\n" + ending
    source.write_text(text, encoding="utf-8")
    assert label_file(shop, source, target) == 0
    table = pd.read_csv(target, dtype=str, keep_default_na=False)
    given = pd.read_csv(
        source, dtype=str, keep_default_na=False, skip_blank_lines=False
    )
    pd.testing.assert_frame_equal(table[["id", "text", "note"]], given)
    assert ((table["label"] == "") == (given["text"] == "")).all()
    without = len(given) - 2
    assert f"0 of them unsure; {without} rows without text" in capsys.readouterr().out


def test_answers_that_are_not_sure_enough_are_marked(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.tsv", tmp_path / "labelled.tsv"
    texts = ["Where is my parcel?", "asdf", "Send me the money back", "Hello"]
    source.write_text("\n".join(["text", *texts]), encoding="utf-8")
    answers = classify(texts, shop)
    confidence = answers.iloc[:, 2:].max(axis=1)
    least = float(confidence.sort_values().iloc[1:3].mean())  # half of them are surer
    flag = ["--min-confidence", str(least)]
    assert label_file(shop, source, target, *flag) == 0
    wanted = answers["label"].where(confidence >= least, "unsure")
    assert (wanted == "unsure").sum() == 2
    table = pd.read_csv(target, sep="\t")
    assert table["label"].tolist() == wanted.tolist()
    assert table["confidence"].to_numpy() == pytest.approx(confidence, abs=1e-4)
    assert "4 rows labelled" in capsys.readouterr().out
    assert main(["predict", "--model", str(shop), *texts, *flag]) == 0
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == [label.split()[0] for label in wanted]


def test_the_name_of_a_file_is_no_text(shop, tmp_path, capsys):
    source = tmp_path / "texts.csv"
    source.write_text("text\nWhere is it?\n", encoding="utf-8")
    command = ["predict", "--model", str(shop), "Money back"]
    assert main([*command, str(source)]) == 2
    assert "Give texts, or --file and --output." in capsys.readouterr().err
    assert main([*command, "x" * 5000]) == 0  # too long for the name of a file


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "high"])
def test_a_confidence_that_is_none_is_refused(value, capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", "text", f"--min-confidence={value}"])
    assert end.value.code == 2 and "from 0 to 1" in capsys.readouterr().err


def test_all_rows_that_cannot_be_read_are_listed_at_once(shop, tmp_path, capsys):
    source, target = tmp_path / "texts.csv", tmp_path / "labelled.csv"
    lines = ["id,text", "1,Where is it?", "2,one,two", '3,"5 inch', "4,a\0b", "5,", "6"]
    source.write_text("\n".join(lines), encoding="utf-8")
    assert label_file(shop, source, target) == 2 and not target.exists()
    errors = capsys.readouterr().err
    for line in (3, 4, 5, 7):
        assert f"texts.csv, line {line}: " in errors
    assert "line 6" not in errors and "line 2" not in errors


@pytest.mark.parametrize(
    "header, row",
    [
        ("message", "{text}"),
        ("date,message,shop", "2026-11-29,{text},Bonn"),
        ("shop,text,message", "Bonn,12 words,{text}"),  # not its `text`
    ],
)
def test_the_column_that_was_found_in_training_is_found_again(
    header, row, small, tmp_path, capsys
):
    rows = [f"{'ab'[i % 2]},{'ab'[i % 2]} {i}" for i in range(40)]
    data = tmp_path / "tickets.csv"
    data.write_text("\n".join(["kind,message", *rows]), encoding="utf-8")
    run, target = tmp_path / "run", tmp_path / "labelled.csv"
    flags = ["--epochs", "1", "--train-rows", "40", "--test-rows", "40"]
    assert main(["train", "--data", str(data), "--output-dir", str(run), *flags]) == 0
    source = tmp_path / "new.csv"
    lines = [header, *(row.format(text=text) for text in ("a 1", "b 2"))]
    source.write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    assert label_file(run, source, target) == 0
    assert "text 'message'" in capsys.readouterr().out
    assert len(pd.read_csv(target)) == 2


def test_other_columns_than_in_training_are_found_as_ever(shop, tmp_path, capsys):
    source, target = tmp_path / "new.csv", tmp_path / "labelled.csv"
    source.write_text("id,Nachricht\n1,Where is it?\n", encoding="utf-8")
    assert label_file(shop, source, target) == 0
    assert "text 'Nachricht'" in capsys.readouterr().out
    other = tmp_path / "other.csv"
    source.write_text("Datum,Nachricht\nheute,Where is it?\n", encoding="utf-8")
    assert label_file(shop, source, other) == 2
    error = capsys.readouterr().err
    assert "['column 1', 'column 2']: which is the text? --text-columns A,B " in error
    assert "Row 1 is ['Datum', 'Nachricht']; if that is the header, give" in error


def test_mistakes_are_written_the_worst_first(shop, tmp_path, capsys):
    target = tmp_path / "mistakes.csv"
    command = ["evaluate", "--model", str(shop), "--mistakes", str(target)]
    figures = ["--json", str(tmp_path / "figures.json")]
    assert main([*command, *figures]) == 0
    output = capsys.readouterr().out
    test = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["test"]
    wrong = test["rows"] - sum(row[i] for i, row in enumerate(test["confusion"]))
    table = pd.read_csv(target)
    assert len(table) == wrong > 0 and f"{wrong} mistakes in " in output
    assert (table["true"] != table["predicted"]).all()
    assert table["loss"].is_monotonic_decreasing
    assert main(command) == 2  # an existing file is not replaced
    assert "must be the name of a new file" in capsys.readouterr().err


def test_a_misspelt_column_is_named(shop, tmp_path, capsys):
    source = tmp_path / "new.csv"
    source.write_text("id,message\n1,Where is it?\n", encoding="utf-8")
    flags = ["--text-columns", "mesage"]
    assert label_file(shop, source, tmp_path / "labelled.csv", *flags) == 2
    assert (
        "has the columns ['id', 'message']: which is the text?"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "lines, columns",
    [
        (["Nachricht", "Where is it?", "Money back"], "Nachricht"),
        (["Kunde,Nachricht", "A,Where is it?", "B,Money back"], "Nachricht"),
        (["Where is it?", "Money back"], "column 1"),
    ],
)
def test_a_header_is_never_labelled(lines, columns, shop, tmp_path, capsys):
    """If it cannot be told whether the first row is one, that is asked."""
    source, target = tmp_path / "new.csv", tmp_path / "labelled.csv"
    source.write_text("\n".join(lines), encoding="utf-8")
    assert label_file(shop, source, target) == 2 and not target.exists()
    said = capsys.readouterr().err
    assert "which is the text?" in said and repr(lines[0].split(",")[-1]) in said
    assert label_file(shop, source, target, "--text-columns", columns) == 0
    assert len(pd.read_csv(target)) == 2


def test_the_column_of_the_label_is_said(shop, tmp_path, capsys):
    source, target = tmp_path / "new.csv", tmp_path / "labelled.csv"
    source.write_text("label,text\nx,Where is it?\n", encoding="utf-8")
    assert label_file(shop, source, target) == 0
    output = capsys.readouterr().out
    assert "new.csv · text 'text' · not used 'label'\n" in output
    assert "labelled.csv, column 'predicted_label', 0 of them unsure" in output


def test_all_rows_of_another_file_are_scored(shop, tmp_path, capsys):
    """Also three rows, with classes that are fewer than the run's."""
    rows = "Delivery,Where is it?\nPayment,Money back\ndelivery,Parcel gone\n"
    source, wrong = tmp_path / "mine.csv", tmp_path / "wrong.csv"
    source.write_text(f"label,text\n{rows}", encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(source, folder / "test.csv")
    target = tmp_path / "mistakes.csv"
    command = ["evaluate", "--model", str(shop), "--data"]
    for place in (source, folder):
        assert main([*command, str(place), "--mistakes", str(target)]) == 0
        output = capsys.readouterr().out
        assert f"scored: 3 test rows of {place.name}\n" in output
        assert ".csv · 3 rows read, 3 used, 0 not" in output
        assert target.read_bytes().startswith(b"\xef\xbb\xbftrue,predicted,")
        target.unlink()
    wrong.write_text(f"label,text\n{rows * 2}", encoding="utf-8")
    assert main([*command, str(wrong), "--test-rows", "4"]) == 0
    output = capsys.readouterr().out
    assert "scored: 4 test rows of wrong.csv\n" in output
    wrong.write_text(f"label,text\n{rows}Garden,A hose\n", encoding="utf-8")
    assert main([*command, str(wrong)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "wrong.csv, line 5: the label 'Garden' is none of the classes" in line
    # Numbers do not say in whose order they count.
    wrong.write_text("label,text\n0,Where is it?\n1,Money back\n", encoding="utf-8")
    assert main([*command, str(wrong)]) == 2
    assert "the label '0' is none of the classes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, str(source), "--mistakes", "mistakes.txt"])
    assert "ends in .csv or .tsv" in capsys.readouterr().err


def test_a_test_of_another_file_is_not_the_runs_own(small, tmp_path, capsys):
    """All rows of it count, and a class that it lacks need not be predicted."""
    run = ["--output-dir", str(tmp_path / "run")]
    flags = ["--epochs", "1", "--batch-size", "40", "--learning-rate", "1e-9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AGNEWS_TEST_ROWS")
        assert main(["train", *flags, "--test-rows", "20", *run]) == 0
        source = tmp_path / "mine.csv"
        lines = [f"{label},word {i}" for i, label in enumerate(LABELS[:3] * 9)]
        source.write_text("\n".join(["label,text", *lines]), encoding="utf-8")
        capsys.readouterr()
        assert main(["evaluate", *run, "--data", str(source)]) == 0
    output = capsys.readouterr().out
    assert "scored: 27 test rows of mine.csv\n" in output
    [never] = re.findall("note: (.*): never predicted", output)
    assert LABELS[3] not in never and set(LABELS[:3]) & set(never.split(", "))


def test_what_check_would_write_to_must_be_new(tmp_path, capsys):
    assert main(["check", "tickets.csv", "--write", str(tmp_path)]) == 2
    assert (
        "must be the name of a new file or folder, outside" in capsys.readouterr().err
    )


def test_no_result_is_written_into_the_folder_of_another(tmp_path, capsys):
    target = tmp_path / "clean"
    command = ["check", "tickets.csv", "--write", str(target)]
    assert main([*command, "--json", str(target / "figures.json")]) == 2
    assert "figures.json must be the name of a new file" in capsys.readouterr().err
    assert not target.exists()
