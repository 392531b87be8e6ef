"""What `run_notebooks` prints and writes; whole runs are in test_cli.py."""

import errno
import os

import nbformat
import pytest

from agnews_helpers import SaveError, running


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "01_first.ipynb").touch()
    return folder


def test_a_classifier_from_earlier_is_kept_and_is_not_this_runs(
    source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(running, "_execute", lambda path, target: None)
    earlier = tmp_path / "target" / "runs" / "agnews" / "test_report.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"accuracy": 0.9}', encoding="utf-8")
    for name in ("01_first.ipynb", "02_mine.ipynb"):
        (tmp_path / "target" / name).write_text("with my notes", encoding="utf-8")
    running.run_notebooks(source, tmp_path / "target")
    [kept] = (tmp_path / "target").glob("until-*")
    assert (kept / "runs" / "agnews" / "test_report.json").read_text(
        encoding="utf-8"
    ) == '{"accuracy": 0.9}'
    assert (kept / "01_first.ipynb").read_text(encoding="utf-8") == "with my notes"
    assert sorted(path.name for path in kept.iterdir()) == ["01_first.ipynb", "runs"]
    assert (
        tmp_path / "target" / "02_mine.ipynb"
    ).exists()  # of no name that is written: it stays
    printed = capsys.readouterr().out
    assert str(kept) in printed and "accuracy" not in printed


def test_runs_that_no_notebook_wrote_are_not_moved(source, tmp_path, monkeypatch):
    """As with --target . in a folder in which one trains."""
    monkeypatch.setattr(running, "_execute", lambda *_: pytest.fail("ran"))
    mine = tmp_path / "target" / "runs" / "agnews" / "run.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(
        SaveError, match="runs is of no notebook. Give another --target"
    ):
        running.run_notebooks(source, tmp_path / "target")
    assert [*(tmp_path / "target").rglob("*.*")] == [mine]


def test_a_folder_is_not_its_own_target(source):
    with pytest.raises(FileNotFoundError, match="or is --target"):
        running.run_notebooks(source, source.parent / "source")
    assert [path.name for path in source.iterdir()] == ["01_first.ipynb"]


def test_an_error_is_printed_below_its_notebook(source, tmp_path, monkeypatch, capsys):
    def fail(path, target):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(running, "_execute", fail)
    assert running.run_notebooks(source, tmp_path / "target") == ["01_first"]
    printed = capsys.readouterr().out
    assert "FAILED     0 s\nby zero\n" in printed and "FAILED     01_first" in printed


def test_a_file_that_is_no_notebook_is_named_and_the_next_one_runs(
    source, tmp_path, capsys
):
    (source / "01_first.ipynb").write_text("not JSON", encoding="utf-8")
    nbformat.write(nbformat.v4.new_notebook(), source / "02_second.ipynb")
    target = tmp_path / "target"
    assert running.run_notebooks(source, target) == ["01_first"]
    printed = capsys.readouterr().out
    assert "not JSON" in printed and "FAILED     01_first\n" in printed
    assert sorted(path.name for path in target.iterdir()) == [
        "02_second.html",
        "02_second.ipynb",
    ]


def test_a_full_disk_is_named_and_leaves_no_half_file(
    source, tmp_path, monkeypatch, capsys
):
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "01_first.ipynb")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert running.run_notebooks(source, tmp_path / "target") == ["01_first"]
    printed = capsys.readouterr().out
    assert "01_first.ipynb could not be saved in" in printed and "Make room" in printed
    assert not [*(tmp_path / "target").iterdir()]


def test_a_notebook_that_fails_is_kept_as_far_as_it_came(source, tmp_path, capsys):
    cells = [
        nbformat.v4.new_code_cell(code)
        for code in ("print(6 * 7)", "1 / 0", "print('never')")
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "01_first.ipynb")
    failed = running.run_notebooks(source, tmp_path / "target")
    kept = nbformat.read(tmp_path / "target" / "01_first.ipynb", as_version=4)
    assert failed == ["01_first"] and "ZeroDivisionError" in capsys.readouterr().out
    assert kept.cells[0].outputs[0].text == "42\n" and not kept.cells[2].outputs
    assert "ZeroDivisionError" in (tmp_path / "target" / "01_first.html").read_text(
        encoding="utf-8"
    )
