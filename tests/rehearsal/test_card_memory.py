"""Every notebook fits the card that it is about, and README says how much it needs.

What is held on the stand-in card is counted after each cell, scaled to DistilBERT, and
added to the traced peaks of the cell's own steps.
"""

import json
import re
from pathlib import Path

import pytest

from tests.rehearsal.card_memory import DISTILBERT_MIB, LEFT_MIB, cell_mib, step_mib
from tests.rehearsal.rehearse import run, stand_in_hub

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\]\(notebooks/(\d\d_\w+)\.ipynb\).*\| ([^|]*) \|$", re.M)
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]


QUICK = [  # the fullest ones; `make rehearse` runs all
    name
    for name in NAMES
    if re.search("train_the_cl|budget_the|use_your|keep_a_long", name)
]


@pytest.fixture(
    scope="module",
    params=[QUICK, pytest.param(NAMES, marks=pytest.mark.rehearsal)],
    ids=["quick", "all"],
)
def notebooks(request, tmp_path_factory):
    """What the cells of notebooks hold on the card, in the profile `full`."""
    found = on_card(tmp_path_factory.mktemp("card"), "--only", *request.param)
    assert [*found] == request.param
    return found


def on_card(folder, *flags):
    """Run notebooks on the stand-in card; return what their cells hold."""
    file = folder / "card.json"
    with stand_in_hub(folder / "hub", 200, 60) as address:
        done = run(address, folder, "--card", str(file), *flags, AGNEWS_PROFILE="full")
    assert done.returncode == 0, done.stdout
    return json.loads(file.read_text(encoding="utf-8"))


def needs(notebook):
    """Return the most MiB that a notebook needs; print the cell."""
    mib = [cell_mib(cell, notebook["weights"]) for cell in notebook["cells"]]
    cell = notebook["cells"][mib.index(max(mib))]
    held = max(each["held"] for each in notebook["cells"])
    held *= DISTILBERT_MIB / notebook["weights"]
    print(f"{max(mib):,.0f} MiB in cell {cell['cell']}; at most {held:,.0f} held")
    return max(mib)


def gib_in(text):
    """Return the first number of GiB in a text; without one, 0."""
    number = re.search(r"([\d.]+) GiB", text)
    return float(number[1]) if number else 0.0


def test_every_notebook_fits(notebooks):
    for name, notebook in notebooks.items():
        assert needs(notebook) <= LEFT_MIB, name


def test_every_model_is_on_the_card(notebooks):
    """But for one step that counts bytes on a CPU, and where README says "none"."""
    told = dict(ROW.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    used = {
        (name.partition("_")[2], cell["on_cpu"])
        for name, notebook in notebooks.items()
        for cell in notebook["cells"]
        if cell["on_cpu"] and told[name] != "none"
    }
    assert used == {("budget_the_vram", 1)}


def test_readme_and_the_notebook_say_how_much(notebooks):
    told = dict(ROW.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert [*told] == NAMES
    for name in NAMES:
        gib = gib_in(told[name])
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        opening = "".join(json.loads(text)["cells"][0]["source"])
        none = re.search(r"VRAM[^:.]*: none", opening)
        assert f"{gib:.1f} GiB of VRAM" in opening or (none and gib == 0)
        if name in notebooks:
            assert gib == pytest.approx(needs(notebooks[name]) / 1024, abs=0.06), name
    # Without notebook 05's classifier the next one trains one first.
    alone = step_mib("training step", 8, 358) / 1024
    assert any(f"{alone:.1f} if it must train" in text for text in told.values())


@pytest.fixture(scope="module")
def without_a_card(tmp_path_factory):
    """The notebooks that need no card, and then the first one that uses it."""
    return on_card(tmp_path_factory.mktemp("none"), "--only", "01", "02", "03", "04")


def test_what_needs_no_card_makes_no_context(without_a_card):
    """It would take up to 426 MiB of the card until the kernel is shut down."""
    last = {name: cells["cells"][-1] for name, cells in without_a_card.items()}
    *none, user = last
    assert {name: last[name]["context"] for name in none} == dict.fromkeys(none, [])
    assert last[user]["context"]  # so it would have been noticed


def test_what_is_held_too_long_is_found(notebooks):
    """Seven copies of the weights beside the longest step, as once in notebook 05."""
    weights = notebooks[QUICK[0]]["weights"]
    cell = {"held": 7 * weights, "calls": [["training step", 8, 358, 7 * weights]]}
    assert cell_mib(cell, weights) > LEFT_MIB > cell_mib(cell | {"calls": []}, weights)


@pytest.mark.rehearsal
@pytest.mark.parametrize("name", NAMES)
def test_alone_and_every_cell_twice(name, tmp_path):
    [notebook] = on_card(tmp_path, "--only", name, "--twice").values()
    assert needs(notebook) <= LEFT_MIB
