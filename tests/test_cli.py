import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from agnews_helpers import LABELS
from agnews_helpers.checkpoints import checkpoints_in
from agnews_helpers.cli import main
from agnews_helpers.plumbing import mini


@pytest.fixture
def small(monkeypatch, tiny):
    """The tiny model and few rows, as a user would ask for them."""
    monkeypatch.setenv("AGNEWS_MODEL", str(tiny))
    monkeypatch.setenv("AGNEWS_TRAIN_ROWS", "44")
    monkeypatch.setenv("AGNEWS_TEST_ROWS", "20")


def test_train_evaluate_predict(small, tmp_path, capsys):
    run, figures = tmp_path / "run", tmp_path / "figures" / "train.json"
    assert (
        main(
            [
                "train",
                "--epochs",
                "2",
                "--learning-rate",
                "1e-3",
                "--no-group-by-length",
                "--output-dir",
                str(run),
                "--json",
                str(figures),
            ]
        )
        == 0
    )
    trained = json.loads(figures.read_text(encoding="utf-8"))
    assert trained["test"]["rows"] == 20 and 0 <= trained["test"]["accuracy"] <= 1
    assert [epoch["epoch"] for epoch in trained["history"]] == [1, 2]
    assert trained["recipe"]["learning_rate"] == 1e-3 and trained["recipe"]["group_by_length"] is False
    assert "profile    offline (asked for by AGNEWS_PROFILE)" in capsys.readouterr().out

    assert main(["evaluate", "--output-dir", str(run), "--json", str(tmp_path / "test.json")]) == 0
    again = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))["test"]
    assert (again["accuracy"], again["confusion"]) == (
        trained["test"]["accuracy"],
        trained["test"]["confusion"],
    )
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
    predictions = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["predictions"]
    assert len(predictions) == 2 and sum(predictions[0][name] for name in LABELS) == pytest.approx(1)
    assert printed.startswith(predictions[0]["label"]) and "Stocks fall as oil climbs" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--batch-size", "0"], "agnews train: Recipe.batch_size is 0"),
        (["train", "--max-length", "513"], "Recipe.max_length is 513"),
        (["train", "--data", "no/such/folder"], "There is no folder"),
        (["train", "--train-rows", "9999"], "only 400 train rows"),
        (["train", "--profile", "tiny"], "argument is 'tiny'; it must be one of"),
        (["train", "--steps", "0"], "steps is 0; it must be at least 1"),
        (["predict", "text", "--output-dir", "no/such/run"], "holds no trained classifier"),
        (["evaluate", "--output-dir", "no/such/run"], "holds no trained classifier"),
        (["notebooks", "--source", "no/such/notebooks"], "holds no numbered notebook"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_run_is_stopped_and_continued(small, tmp_path, capsys):
    train = ["train", "--epochs", "2", "--learning-rate", "1e-3", "--output-dir", str(tmp_path / "run")]
    assert main([*train, "--steps", "3"]) == 0
    output = capsys.readouterr().out
    assert (
        "Stopped after step 3 of 10 (epoch 1 of 2)" in output
        and "At this pace all 2 epochs of 40 training rows take about" in output
    )
    assert main(train) == 2  # not discarded without a word
    assert (
        "holds an unfinished run. Continue it with --resume, or discard it with --no-resume."
        in capsys.readouterr().err
    )
    assert main([*train, "--resume", "--epochs", "3"]) == 2
    assert "epochs is 2 there and 3 here" in capsys.readouterr().err
    assert main([*train, "--resume", "--json", str(tmp_path / "whole.json")]) == 0
    assert "Continuing after step 3 of 10" in capsys.readouterr().out
    assert main([*train, "--no-resume", "--json", str(tmp_path / "again.json")]) == 0
    one, other = (
        json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("whole.json", "again.json")
    )
    assert one["test"] == other["test"]


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot send Ctrl-C to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_ends_with_130(number, small, tmp_path):
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
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for _ in range(1200):
            if (tmp_path / "run" / "agnews_run.json").exists():  # the first epoch is done
                break
            time.sleep(0.1)
        child.send_signal(number)
        output, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Stopped after step" in output and "Traceback" not in errors
    assert checkpoints_in(tmp_path / "run")


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


def test_doctor_draws_the_card(tmp_path, capsys):
    assert (
        main(["doctor", "--picture", str(tmp_path / "GPU.png"), "--json", str(tmp_path / "facts.json")]) == 0
    )
    assert (tmp_path / "GPU.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert facts["recipe"]["profile"] == "offline" and facts["versions"]["torch"]
    output = capsys.readouterr().out
    assert (
        "profile    offline" in output
        and output.count("[OK]") >= 14
        and "[FAIL]" not in output
        and "Ready." in output
    )


def test_doctor_fails_where_something_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("agnews_helpers.doctor.DISK_GB", {"offline": 1e9})
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert (
        "[FAIL] disk" in output
        and "Make room" in output
        and "Not ready: disk." in output
        and "[OK]   torch" in output
    )


def test_notebooks_are_run_and_a_failing_one_is_named(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    report = (
        "import json, pathlib; folder = pathlib.Path('runs/agnews'); folder.mkdir(parents=True)\n"
        "(folder / 'test_report.json').write_text(json.dumps({'accuracy': 0.915}))\n"
        "(folder / 'agnews_run.json').write_text(json.dumps({'rows': {'train': 1380, 'test': 200}}))"
    )
    for name, code in (("01_good", report), ("02_bad", "print('so far')\n1 / 0"), ("03_after", "6 * 7")):
        nbformat.write(
            new_notebook(cells=[new_markdown_cell("# Title"), new_code_cell(code)]), source / f"{name}.ipynb"
        )
    assert (
        main(
            [
                "notebooks",
                "--source",
                str(source),
                "--target",
                str(target),
                "--json",
                str(tmp_path / "run.json"),
            ]
        )
        == 1
    )
    printed = capsys.readouterr().out
    assert "[1/3] 01_good" in printed and "ZeroDivisionError" in printed and "FAILED     02_bad" in printed
    assert (
        "accuracy   91.5% on the test rows" in printed
        and "rows       1,380 train, 200 test" in printed
        and "profile    offline" in printed
    )
    figures = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [n["ok"] for n in figures["notebooks"]] == [True, False, True]
    assert "<pre>42</pre>" in (target / "03_after.html").read_text(encoding="utf-8")
    assert "so far" in (target / "02_bad.ipynb").read_text(encoding="utf-8")
    assert nbformat.read(source / "03_after.ipynb", 4).cells[1].outputs == []  # the source stays as it was
