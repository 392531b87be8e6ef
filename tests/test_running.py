"""What `run_notebooks` prints, and what it leaves in its target folder; whole runs are in test_cli.py."""

import pytest

from agnews_helpers import running


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "01_first.ipynb").touch()
    return folder


def test_a_classifier_from_earlier_is_kept_and_is_not_this_runs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "_execute", lambda path, target: None)
    earlier = tmp_path / "target" / "runs" / "agnews" / "test_report.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"accuracy": 0.9}', encoding="utf-8")
    figures = running.run_notebooks(source, tmp_path / "target")
    [kept] = (tmp_path / "target").glob("runs-until-*")
    assert (kept / "agnews" / "test_report.json").read_text(encoding="utf-8") == '{"accuracy": 0.9}'
    printed = capsys.readouterr().out
    assert "accuracy" not in figures and str(kept) in printed and "notebook 04 did not finish" in printed


def test_an_error_is_printed_below_its_notebook(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "_execute", lambda path, target: "ZeroDivisionError: by zero")
    assert not running.run_notebooks(source, tmp_path / "target")["notebooks"][0]["ok"]
    printed = capsys.readouterr().out
    assert "FAILED     0 s\nZeroDivisionError: by zero\n" in printed and "FAILED     01_first" in printed
