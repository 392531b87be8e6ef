"""Each notebook, run from JupyterLab's menu: what nbval cannot see.

Pictures of every notebook as it stood at the end are left in build/screenshots.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One after the other: one of them uses what another one leaves.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
RED = "application/vnd.jupyter.stderr"  # what warnings and tracebacks are shown as
# A kernel says so where other programs leave it no time; the notebook is not to blame.
BUSY = "IOStream.flush timed out"

FOLDED = """cell.querySelector('.jp-InputPlaceholder') !== null
    && cell.querySelector('.jp-Editor') === null"""
ANSWER_HIDDEN = "cell.querySelector('.jp-OutputPlaceholder') !== null"
IMAGES = """[...cell.querySelectorAll('{} img')]
    .filter(it => it.naturalWidth && it.offsetWidth).length"""
DRAWN = IMAGES.format(".jp-OutputArea-output")
PICTURES = IMAGES.format(".jp-RenderedMarkdown")
BARS = """[...cell.querySelectorAll('.jp-OutputArea-output .widget-hbox')].map(it => {
    const bar = it.querySelector('.progress-bar')
    const place = bar.parentElement
    return {text: it.innerText, width: bar.style.width,
            red: bar.classList.contains('progress-bar-danger'),
            visible: place.offsetWidth > 0 && place.offsetHeight > 0}})"""
TOO_WIDE = """[...cell.querySelectorAll('*')]
    .filter(it => it.scrollWidth > it.clientWidth + 1)
    .filter(it => ['auto', 'scroll'].includes(getComputedStyle(it).overflowX))
    .map(it => `${it.className}: ${it.scrollWidth} in ${it.clientWidth} px: ` +
        it.innerText.slice(0, 80))"""
TEXT = """[...cell.querySelectorAll('.jp-OutputArea-output')]
    .map(it => it.innerText).join('\\n')"""
WORDS = """[...cell.querySelectorAll('.jp-RenderedMarkdown')].map(it => {
    const words = it.cloneNode(true)
    words.querySelectorAll('code, pre').forEach(code => code.remove())
    return words.textContent}).join(' ')"""
ANSWERS = "[...cell.querySelectorAll('details')].map(it => it.open)"
REDS = f"""[...cell.querySelectorAll('.jp-OutputArea-output[data-mime-type="{RED}"]')]
    .map(it => it.innerText.trim())"""


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def run(request, opened):
    """A notebook, opened, run and saved: its cells as `stored`, and as `saved` then."""
    with opened(request.param.name) as notebook:
        first = SimpleNamespace(
            folded=notebook.cells(FOLDED), answers_hidden=notebook.cells(ANSWER_HIDDEN)
        )
        notebook.start_all()
        try:
            notebook.wait_until_done()
        finally:
            notebook.take_pictures(ROOT / "build" / "screenshots")
        stored = json.loads(request.param.read_text(encoding="utf-8"))["cells"]
        yield SimpleNamespace(
            notebook=notebook, first=first, stored=stored, saved=notebook.save()
        )


def count(cell, kind):
    return sum(kind in output.get("data", {}) for output in cell.get("outputs", []))


def bars_of(cell):
    """How many progress bars a cell shows; its sliders are a VBox."""
    shown = [
        output["data"]
        for output in cell.get("outputs", [])
        if WIDGET in output.get("data", {})
    ]
    return sum(not "".join(data["text/plain"]).startswith("VBox") for data in shown)


def test_every_cell_ran_and_none_ended_in_an_error(run):
    code = [cell for cell in run.saved if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output
        for cell in code
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def test_no_red_box_that_the_stored_notebook_has_not(run):
    for stored, reds in zip(run.stored, run.notebook.cells(REDS), strict=True):
        expected = any(
            output.get("name") == "stderr" for output in stored.get("outputs", [])
        )
        assert expected or not [text for text in reds if text.replace(BUSY, "").strip()]


def test_solutions_are_folded_before_and_after_the_run(run):
    """What a solution prints may be hidden as well; running the cell shows it."""
    hidden = [cell["metadata"].get("jupyter", {}) for cell in run.stored]
    folded = [cell.get("source_hidden", False) for cell in hidden]
    assert any(folded)
    assert run.first.folded == folded and run.notebook.cells(FOLDED) == folded
    assert run.first.answers_hidden == [
        cell.get("outputs_hidden", False) for cell in hidden
    ]


def test_every_figure_is_drawn(run):
    expected = [count(cell, "image/png") for cell in run.stored]
    assert any(expected) and run.notebook.cells(DRAWN) == expected


def test_every_picture_in_the_text_is_loaded(run):
    expected = [
        "".join(cell["source"]).count("![") if cell["cell_type"] == "markdown" else 0
        for cell in run.stored
    ]
    assert run.notebook.cells(PICTURES) == expected


def test_the_text_is_rendered_to_the_last_mark(run):
    """JupyterLab shows a star, bracket or tag that it did not understand as it is."""
    left = [
        found
        for text in run.notebook.cells(WORDS)
        for found in re.findall(r".{0,40}(?:\*\*|`|\]\(|</?\w+>|\n#).{0,40}", text)
    ]
    assert not left


def test_the_questions_hide_their_answers(run):
    found = run.notebook.cells(ANSWERS)
    for cell, open_ones in zip(run.stored, found, strict=True):
        count = "".join(cell["source"]).count("<details>")
        if cell["cell_type"] == "markdown":
            assert len(open_ones) == count
    assert not any(sum(found, []))  # nor what a code cell shows
    question = run.notebook.page.locator("details:has(p)").first
    answer = question.locator("p").first
    assert not answer.is_visible()
    question.locator("summary").click()
    assert answer.is_visible()
    question.locator("summary").click()


def test_progress_bars_are_drawn_and_full(run):
    """All but the last one of a cell that says its run was stopped."""
    for saved, bars, text in zip(
        run.saved, run.notebook.cells(BARS), run.notebook.cells(TEXT), strict=True
    ):
        assert len(bars) == bars_of(saved) and all(bar["visible"] for bar in bars), text
        assert not [
            words
            for words in ("HBox(", "Error displaying widget", "Loading widget")
            if words in text
        ], text
        for bar in bars[:-1] if "Stopped after" in text else bars:
            assert bar["width"] == "100%" and not bar["red"], bar["text"]


SHOWN = ".widget-html-content"
CONTROLS = {  # what a reader does, so that another value stands there, and back
    ".noUi-handle": (["ArrowLeft", "ArrowRight"], ["ArrowRight", "ArrowLeft"]),
    "select": (["ArrowDown", "ArrowUp"], ["ArrowUp", "ArrowDown"]),
    "input[type=text]": (["x", "Enter"], ["Backspace", "Enter"]),
    "button.widget-button >> nth=0": (["Enter"], []),  # as any other one in its row
}


def changes(page, control, cell, keys):
    """Whether one of these keys changes what the cell shows, within ten seconds."""
    control.scroll_into_view_if_needed()
    before = cell.locator(SHOWN).evaluate_all("all => all.map(it => it.innerHTML)")
    for key in keys:
        if control.evaluate("it => it.tagName") == "SELECT":
            control.select_option(index=int(key == "ArrowDown"))
        else:
            control.press(key)
        for _ in range(20):
            page.wait_for_timeout(500)
            now = cell.locator(SHOWN).evaluate_all("all => all.map(it => it.innerHTML)")
            if now != before:
                return True
    return False


def test_each_control_changes_what_is_shown(run):
    """A slider, a list, a field or a button: the text or drawing beside it follows."""
    page, tried = run.notebook.page, 0
    for number in range(page.locator(".jp-Notebook-cell").count()):
        cell = page.locator(".jp-Notebook-cell").nth(number)
        for kind, (keys, back) in CONTROLS.items():
            for place in range(cell.locator(kind).count()):
                control = cell.locator(kind).nth(place)
                if control.is_visible() and cell.locator(SHOWN).count():
                    assert changes(page, control, cell, keys), (number, kind, place)
                    changes(page, control, cell, back)
                    tried += 1
    source = "".join("".join(cell["source"]) for cell in run.stored)
    widgets = re.findall(
        r"\b(?:\w*Slider|Dropdown|ToggleButtons|Text|Button)\(", source
    )
    assert bool(tried) == bool(widgets)


CORNERS = """[...cell.querySelectorAll('.jp-OutputArea-output img')].map(image => {
    const canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth
    canvas.height = image.naturalHeight
    const pen = canvas.getContext('2d')
    pen.drawImage(image, 0, 0)
    return pen.getImageData(1, 1, 1, 1).data[3]})"""


def test_figures_can_be_read_in_the_dark_theme(run):
    """They have a white background: dark words on a dark page could not be read."""
    page = run.notebook.page
    theme = (
        "jupyterapp.commands.execute("
        "'apputils:change-theme', {{theme: 'JupyterLab {}'}})"
    )
    page.evaluate(theme.format("Dark"))
    try:
        page.wait_for_selector(
            "body[data-jp-theme-light='false']", state="attached", timeout=20_000
        )
        run.notebook.take_pictures(ROOT / "build" / "screenshots" / "dark")
        corners = sum(run.notebook.cells(CORNERS), [])
        assert corners and set(corners) == {255}
    finally:
        page.evaluate(theme.format("Light"))
        page.wait_for_selector(
            "body[data-jp-theme-light='true']", state="attached", timeout=20_000
        )


def test_nothing_has_to_be_scrolled_sideways(run):
    assert not sum(run.notebook.cells(TOO_WIDE), [])


def test_the_browser_complains_about_nothing(run):
    # JupyterLab shows a text before the pictures attached to it, so that its first
    # attempt fails.
    # And it cancels a request of its own that a newer one replaces, such as to save the
    # layout.
    harmless = (
        "request: attachment:",
        "console: Failed to load resource: net::ERR_UNKNOWN_URL_SCHEME",
    )
    assert not [
        complaint
        for complaint in run.notebook.complaints
        if not complaint.startswith(harmless)
        and not complaint.endswith("net::ERR_ABORTED")
    ]


def test_a_folded_solution_opens_when_clicked(run):
    """The last of the tests that look at `run`: it changes what is on the screen."""
    number = run.first.folded.index(True)
    cell = run.notebook.page.locator(".jp-Notebook-cell").nth(number)
    cell.locator(".jp-InputPlaceholder").click()
    cell.locator(".cm-content").wait_for(state="visible", timeout=10_000)
    assert (
        "".join(run.stored[number]["source"]).splitlines()[-1]
        in cell.locator(".cm-content").inner_text()
    )
    cell.locator(".jp-InputCollapser").click()
    assert run.notebook.cells(FOLDED)[number]


def test_the_stop_button_ends_a_run_with_a_message_and_no_error(opened, lab, tiny):
    import nbformat.v4 as v4

    source = f"""
        from agnews_helpers import Recipe, load_data, load_model
        from agnews_helpers import load_tokenizer, tokenize, train
        model = {str(tiny)!r}
        recipe = Recipe(profile="offline", model=model, data="sample", epochs=1000)
        tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
        folder = "runs/stop-button"
        run = train(load_model(recipe), tokens, recipe, output_dir=folder)"""
    cells = [
        v4.new_code_cell("\n".join(map(str.strip, source.splitlines())).strip()),
        v4.new_code_cell(
            "print('finished:', run.finished, '| steps taken:', len(run.steps) > 0)"
        ),
    ]
    kernel = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    (lab.folder / "stop.ipynb").write_text(
        json.dumps(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})),
        encoding="utf-8",
    )
    with opened("stop.ipynb") as notebook:
        notebook.start_all()
        notebook.page.locator(".progress-bar").nth(1).wait_for(
            state="attached", timeout=120_000
        )  # into the second epoch
        notebook.page.get_by_role("button", name="Interrupt the kernel").click()
        notebook.wait_until_done()
        (trained, looked), texts = notebook.save(), notebook.cells(TEXT)
        assert "Stopped after" in texts[0] and "error" not in [
            output["output_type"] for output in trained["outputs"]
        ]
        assert (
            texts[1].strip() == "finished: False | steps taken: True"
            and looked["execution_count"] == 2
        )
        assert not any(notebook.cells(REDS))
