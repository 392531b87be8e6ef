"""What `run_notebooks` prints and writes; whole runs are in test_cli.py."""

import errno
import os
import re
from pathlib import Path

import nbformat
import pytest

from agnews_helpers import running


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "01_first.ipynb").touch()
    return folder


def test_what_an_earlier_run_left_is_not_touched(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "_execute", lambda path, target: None)
    earlier = tmp_path / "target" / "runs" / "agnews" / "test_report.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"accuracy": 0.9}', encoding="utf-8")
    for number in ("2", "3"):
        running.run_notebooks(source, tmp_path / "target")
        folder = tmp_path / f"target-{number}"
        assert f"results in {folder.as_posix()}\n" in capsys.readouterr().out
        assert folder.is_dir()
    assert [*(tmp_path / "target").rglob("*.*")] == [earlier]


def test_the_folder_of_the_notebooks_is_no_target(source, monkeypatch):
    """As with --target . in it."""
    monkeypatch.setattr(running, "_execute", lambda path, target: None)
    monkeypatch.chdir(source)
    running.run_notebooks(Path(), Path())
    assert [path.name for path in source.iterdir()] == ["01_first.ipynb"]


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook .*. Give --source"):
        running.run_notebooks(tmp_path, tmp_path / "target")


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
        "index.html",
    ]


def test_a_full_disk_is_named_and_leaves_no_half_file(
    source, tmp_path, monkeypatch, capsys
):
    cells = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "01_first.ipynb")

    def full(handle):
        if [*(tmp_path / "target").glob("index.html")]:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert running.run_notebooks(source, tmp_path / "target") == ["01_first"]
    printed = capsys.readouterr().out
    assert "01_first.ipynb could not be saved in" in printed and "Make room" in printed
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["index.html"]


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


def test_a_page_shows_pictures_and_hides_answers(source, tmp_path):
    drawn = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    (source / "pictures").mkdir()
    (source / "pictures" / "dot.svg").write_bytes(drawn)
    answer = "<details>\n<summary>What is it?</summary>\n\nA *dot*.\n\n</details>"
    texts = ["![a small dot](pictures/dot.svg)", answer]
    cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "01_first.ipynb")
    target = tmp_path / "target"
    assert running.run_notebooks(source, target) == []
    page = (target / "01_first.html").read_text(encoding="utf-8")
    assert 'src="pictures/dot.svg"' in page and 'alt="a small dot"' in page
    assert "<title>01_first</title>" in page
    # With its own option for pictures nbconvert closes an element at a blank line.
    assert re.search(r"</summary>\s*<p>A <em>dot</em>.</p>\s*</details>", page)
    assert (target / "pictures" / "dot.svg").read_bytes() == drawn


def test_a_page_needs_nothing_from_elsewhere_and_its_links_lead_to_pages(
    source, tmp_path
):
    code = (
        "from IPython.display import HTML, display\n"
        "from ipywidgets import IntSlider\n"
        "display(IntSlider(7))\n"
        "display(HTML('<b>bold</b>'))\n"
        "%matplotlib inline\nfrom matplotlib import pyplot\n"
        "lines = pyplot.plot([1, 2])\npyplot.show()"
    )
    figure = nbformat.v4.new_code_cell(code, metadata={"alt": "Up & up"})
    answer = nbformat.v4.new_code_cell("print(6 * 7)", metadata={"tags": ["solution"]})
    link = nbformat.v4.new_markdown_cell("See [the next](02_second.ipynb).")
    cells = [link, figure, answer]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "01_first.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), source / "02_second.ipynb")
    target = tmp_path / "target"
    assert running.run_notebooks(source, target) == []
    page = (target / "01_first.html").read_text(encoding="utf-8")
    assert not re.search(
        r"<script|<link|@import|(?:src|url)\W*https?:|<pre>IntSlider", page
    )
    assert '<a href="02_second.html">the next</a>' in page and "<b>bold</b>" in page
    assert 'alt="Up &amp; up"' in page
    folded = re.search(r"<details><summary>.*?</details>", page, re.S)[0]
    assert "42" in folded and page.count("<pre>42") == 1
    index = (target / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<li><a href="(.*?)">(.*?)</a>', index) == [
        ("01_first.html", "01 first"),
        ("02_second.html", "02 second"),
    ]


def test_only_one_is_run(source, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(running, "_execute", lambda path, target: ran.append(path.stem))
    (source / "02_second.ipynb").touch()
    running.run_notebooks(source, tmp_path / "target", "02")
    assert ran == ["02_second"]
    with pytest.raises(FileNotFoundError, match="no notebook 03.*. Give"):
        running.run_notebooks(source, tmp_path / "target", "03")
