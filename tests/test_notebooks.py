"""What nbval does not look at: how a notebook is written, and that one run made it."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = sorted((ROOT / "notebooks" / "pictures").iterdir())
SHOWN = re.compile(r"!\[([^\]]*)\]\(pictures/([^)]*)\)")  # what it says, and its file
SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "01_choose_the_model",
    "02_tokenize_the_news",
    "03_build_the_batches",
    "04_look_inside_the_model",
    "05_train_the_classifier",
    "06_heal_a_bad_run",
    "07_budget_the_vram",
    "08_use_your_classifier",
    "09_train_on_your_own_texts",
    "10_keep_a_long_run_safe",
]


def read(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["text"] = "".join(cell["source"])
        cell["tags"] = cell["metadata"].get("tags", [])
    return cells, [cell for cell in cells if cell["cell_type"] == "code"]


def prose(cells):
    """What a reader is told: all cells that are no code."""
    return "\n".join(cell["text"] for cell in cells if cell["cell_type"] == "markdown")


def stored(name):
    """What a benchmark measured, as it wrote it."""
    return json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return read(request.param)


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


def test_committed_from_one_run(notebook):
    _, code = notebook
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))  # nbval passes a stripped notebook


def test_no_stored_output_is_an_error_or_names_a_machine(notebook):
    _, code = notebook
    stored = json.dumps([cell["outputs"] for cell in code])
    assert all(
        output["output_type"] != "error" for cell in code for output in cell["outputs"]
    )
    assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\\\\\", stored)
    assert "offline" in json.dumps(code[0]["outputs"])


def test_cells_are_short(notebook):
    _, code = notebook
    lines = sorted(
        sum(bool(line.strip()) for line in cell["text"].splitlines()) for cell in code
    )
    assert lines[len(lines) // 2] <= 7 and lines[-1] <= 25


def test_few_outputs_are_ignored(notebook):
    _, code = notebook
    ignored = [cell for cell in code if "nbval-ignore-output" in cell["tags"]]
    assert len(ignored) <= 0.15 * len(code)  # and of all notebooks a tenth, see below
    assert not any(
        "NBVAL_" in cell["text"]
        or "nbval-skip" in cell["tags"]
        or cell["text"].rstrip().endswith(";")
        for cell in code
    )


def test_a_tenth_of_all_outputs_at_most_is_ignored():
    code = [cell for path in NOTEBOOKS for cell in read(path)[1]]
    assert sum("nbval-ignore-output" in cell["tags"] for cell in code) <= 0.1 * len(
        code
    )


def words(cells):
    """How many words of prose: without code blocks, tags, links and pictures."""
    text = " ".join(cell["text"] for cell in cells if cell["cell_type"] == "markdown")
    return len(
        re.sub(
            r"!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|<[^>]*>|```.*?```", "", text, flags=re.S
        ).split()
    )


def test_the_training_notebook_is_short():
    [path] = [path for path in NOTEBOOKS if path.stem.endswith("train_the_classifier")]
    assert words(read(path)[0]) <= 1200


def test_a_notebook_is_no_book(notebook):
    assert words(notebook[0]) <= 1500


FIGURES = {"05": 4, "06": 8, "07": 2, "08": 5}  # the others have one or more


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_said_in_words(path):
    """In the cell's metadata, where the exported page takes its text from."""
    figures = [
        cell
        for cell in read(path)[1]
        if any("image/png" in output.get("data", {}) for output in cell["outputs"])
    ]
    assert figures and len(figures) == FIGURES.get(path.stem[:2], len(figures))
    assert all(len(cell["metadata"]["alt"].split()) >= 30 for cell in figures)


def test_an_answer_is_one_block(notebook):
    """A blank line inside would end it: the exported page would show the answer."""
    text = "\n".join(c["text"] for c in notebook[0] if c["cell_type"] == "markdown")
    answers = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    assert len(answers) >= 4 and not any("\n\n" in answer for answer in answers)


def test_a_link_has_the_number_of_its_notebook(notebook):
    text = "\n".join(cell["text"] for cell in notebook[0])
    links = re.findall(r"\[(?:[Nn]otebook )?0*(\d+)(?: · [^\]]*)?\]\(0*(\d+)_", text)
    assert links and all(said == number for said, number in links)


def test_a_notebook_needs_no_run_of_another(request):
    """But for those that conftest.py keeps together, in this order."""
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "conftest.py"))
    users = {}
    for path in NOTEBOOKS:
        for cell in read(path)[1]:
            for run in re.findall(r"runs/([\w-]+)", cell["text"]):
                users.setdefault(run, []).append(path.stem.partition("_")[2])
    shared = {tuple(dict.fromkeys(names)) for names in users.values()}
    assert {names for names in shared if len(names) > 1} == {conftest.TOGETHER}


def test_outputs_are_values_and_not_verdicts(notebook):
    """A reader sees `loss 1.391`, not that it is near something: True."""
    _, code = notebook
    for cell in code:
        printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert not re.search(r"(?<!=)\b(True|False)\b", printed), cell["text"]


def test_the_opening_and_the_end(notebook):
    cells, _ = notebook
    assert re.match(r"# \d+ · [A-Z]", cells[0]["text"])
    for words in (
        "**What you'll do**",
        "**What you'll learn**",
        "**What you'll need**",
        "minute",
        "VRAM",
        "GTX 1650 Ti",
    ):
        assert words in cells[0]["text"], words
    everything = "\n".join(cell["text"] for cell in cells)
    assert "## In this notebook we have" in everything and "## Exercises" in everything
    assert 5 <= len(re.findall(r"^## ", everything, re.M)) <= 12
    assert (
        "**What could go wrong**" in everything
        and everything.count("<b>Think first.</b>") >= 2
    )
    for cell in cells:  # or several kernels share one card
        is_left = "**Next**" in cell["text"]
        assert is_left == ("Shut this kernel down first" in cell["text"])


def test_the_question_of_the_map_stands_under_the_title():
    """The map is the table at the end of the first notebook."""
    texts = ["\n".join(cell["text"] for cell in read(path)[0]) for path in NOTEBOOKS]
    found = re.findall(r"\]\((\d\d_\w+)\.ipynb\)\|([^|]+\?)\|", texts[0])
    assert [name for name, _ in found] == NAMES
    titles = [text.split("\n\n")[1] for text in texts]
    assert titles == [f"*{question}*" for _, question in found]


def test_outputs_are_followed_by_a_sentence(notebook):
    """At most two cells in a row show something without a word between."""
    cells, _ = notebook
    run = 0
    for cell in cells:
        shows = (
            cell["cell_type"] == "code"
            and cell["outputs"]
            and "solution" not in cell["tags"]
        )
        run = run + 1 if shows else 0 if cell["cell_type"] == "markdown" else run
        assert run <= 2, cell["text"]
    assert cells[-1]["cell_type"] == "markdown" or "solution" in cells[-1]["tags"]


def test_solutions_are_folded_and_run(notebook):
    _, code = notebook
    solutions = [cell for cell in code if "solution" in cell["tags"]]
    assert len(solutions) >= 2
    assert all(
        cell["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
        and cell["outputs"]
        for cell in solutions
    )


def test_links_lead_somewhere(notebook):
    cells, _ = notebook
    for cell in cells:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell["text"]):
            if link.startswith("attachment:"):
                assert link.removeprefix("attachment:") in cell["attachments"]
            else:
                assert (ROOT / "notebooks" / link).is_file(), link


def test_each_picture_is_shown_and_said_in_words():
    cells = [cell for path in NOTEBOOKS for cell in read(path)[0]]
    shown = [found for cell in cells for found in SHOWN.findall(cell["text"])]
    assert sorted(name for _, name in shown) == [path.name for path in PICTURES]
    assert all(len(words.split()) >= 30 for words, _ in shown)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_whole_and_readable_on_a_phone(path):
    """Half as wide, as on a phone, its smallest letters still are 8 pixels high."""
    text = path.read_text(encoding="utf-8")
    svg = ElementTree.fromstring(text)
    assert svg.get("viewBox") == f"0 0 {svg.get('width')} {svg.get('height')}"
    assert svg.get("width") == "760" and len(text) < 12_000
    title, described = (svg.find(SVG + name).text or "" for name in ("title", "desc"))
    assert title.strip() and len(described.split()) >= 15
    assert re.search(r"^ *text \{[^}]*font-size: \d+px", text, re.M)  # of every text
    sizes = re.findall(r"font-size(?::|=)\W*([\d.]+)", text)
    assert all(float(size) >= 16 for size in sizes) and "scale(" not in text
    panel = svg.find(SVG + "rect")  # white, so that the dark theme hides no word
    assert panel.get("fill") == "#fff" and float(panel.get("width")) >= 756
    assert not re.search(r"<script|<image|@import|url\((?!#)|href=\W(?!#)", text)


def test_the_numbers_in_a_picture_are_those_of_the_outputs_before_it(notebook):
    printed = ""
    for cell in notebook[0]:
        printed += json.dumps(cell.get("outputs", ""))
        for _, name in SHOWN.findall(cell["text"]):
            svg = ElementTree.parse(ROOT / "notebooks" / "pictures" / name).getroot()
            words = ["".join(text.itertext()) for text in svg.iter(SVG + "text")]
            numbers = {*re.findall(r"\d+\.\d+", " ".join(words))}
            assert numbers <= {*re.findall(r"\d+\.\d+", printed)}, name
