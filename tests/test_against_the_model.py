"""Twenty headlines, sorted against the model: the notebook's own cells, clicked."""

import html
import re
from collections import Counter
from math import comb
from pathlib import Path
from symtable import symtable

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset
from matplotlib import pyplot as plt

from agnews_helpers import LABELS, Recipe, load_data, plots, score
from tests import test_notebooks as rules

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "08_use_your_classifier.ipynb"
CELLS, CODE = rules.read(NOTEBOOK)
SOURCES = [cell["text"] for cell in CODE]


def cell_with(words):
    """The number of the one cell with these words."""
    [number] = [i for i, source in enumerate(SOURCES) if words in source]
    return number


DRAW, PLAYERS = cell_with("draw = "), cell_with('who, mine = "you"')
GAME = range(DRAW, cell_with("in combinations(") + 1)
CALIBRATION = range(cell_with("def equal_groups"), cell_with("axes.axline(") + 1)


@pytest.fixture(autouse=True)
def _as_before():
    """The cells draw, with letters of another size."""
    with plt.rc_context():
        yield
    plt.close("all")


class Game:
    """The cells of the game, on some test rows and a stub's answers."""

    def __init__(self, test, train=None, twice=False, seed=1):
        self.twice = twice
        names = test.features["label"].names
        logits = np.random.default_rng(seed).normal(size=(len(test), len(names)))
        self.names = {
            "np": np,
            "pd": pd,
            "html": html,
            "widgets": widgets,
            "plots": plots,
            "names": names,
            "test": test,
            "news": {"train": train or test},
            "recipe": Recipe(),
            "report": score(logits, test["label"][:], test["text"][:], names),
        }
        self.run(GAME)

    def run(self, numbers):
        for number in numbers:
            for _ in range(1 + self.twice):
                exec(SOURCES[number], self.names)

    def run_after_clicks(self):
        """As the text says: the cell that looks for clicks, and those below."""
        self.run([*range(PLAYERS, GAME.stop), *CALIBRATION])

    def __getattr__(self, name):
        return self.names[name]

    def click(self, name, level):
        self.which.value = name
        self.sure[level].click()


def own_texts(n=30, names=("cats", "dogs", "birds")):
    rows = {
        "text": [f"No. {i} is about {names[i % len(names)]}" for i in range(n)],
        "label": [i % len(names) for i in range(n)],
    }
    return Dataset.from_dict(rows).cast_column("label", ClassLabel(names=list(names)))


@pytest.fixture(scope="module")
def sample():
    """Its test rows; few to train on, as nothing depends on what TF-IDF learns."""
    news = load_data(Recipe(profile="offline", model="mini", data="sample"))
    return {"test": news["test"], "train": news["train"].select(range(0, 380, 9))}


@pytest.fixture
def game():
    return Game(own_texts())


@pytest.mark.parametrize("twice", [False, True], ids=["once", "each cell twice"])
def test_without_a_click_the_recorded_reader_plays(sample, twice):
    game = Game(sample["test"], sample["train"], twice)
    assert game.who == "recorded reader" and len(game.mine) == 20
    assert list(game.right) == ["recorded reader", "TF-IDF", "model"]
    said = [game.mine[row][0] for row in range(20)]
    assert {*said} == {*LABELS}
    assert list(game.right[game.who]) == list(game.twenty["true"] == said)
    game.run(CALIBRATION)
    assert [*game.compared] == ["model", "recorded reader"]


def test_for_other_rows_there_is_no_recorded_reader(game):
    assert game.who == "nobody" and list(game.right) == ["TF-IDF", "model"]
    assert list(game.right.index) == list(range(20))
    game.run(CALIBRATION)
    assert [*game.compared] == ["model"]


def test_the_rows_are_drawn_and_each_player_is_judged_on_them(game):
    rows = game.twenty.index
    assert len({*rows}) == 20 and not {*rows} <= {*range(20)}
    report = game.report.answers.loc[rows]
    assert list(game.right["model"]) == list(report["true"] == report["predicted"])
    said = game.baseline.predict(game.test["text"][:])[rows]
    true = np.array(game.test["label"][:])[rows]
    assert list(game.right["TF-IDF"]) == list(said == true)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "each cell twice"])
def test_twenty_clicks_take_the_recorded_readers_place(sample, twice):
    game = Game(sample["test"], sample["train"], twice)
    for row in range(20):
        assert f"{row} of 20" in game.question.value and game.which.value is None
        assert html.escape(game.twenty["text"].iloc[row]) in game.question.value
        game.click(game.names["names"][row % 4], row % 3)
    assert "20 of 20" in game.question.value
    assert "You said Sci/Tech, 50% sure." in game.question.value  # the last row stays
    game.run_after_clicks()
    assert game.who == "you" and list(game.right)[0] == "you"
    true = game.twenty["true"].tolist()
    expected = [true[row] == LABELS[row % 4] for row in range(20)]
    assert list(game.right["you"]) == expected
    own, group = game.compared["you"]
    assert own["confidence"].tolist() == [0.25 + 0.25 * (row % 3) for row in range(20)]
    assert own["right"].tolist() == expected
    assert list(group) == [row % 3 for row in range(20)]


def test_after_a_few_clicks_all_play_on_these_rows(game):
    for row in (7, 2):
        game.number.index = row
        game.click(game.twenty["true"].iloc[row], 3)
    whole = game.all_right.loc[game.twenty.index]
    game.run_after_clicks()
    assert list(game.right.index) == [2, 7] and list(game.right["you"]) == [True, True]
    for name in ("TF-IDF", "model"):
        assert list(game.right[name]) == list(whole[name].iloc[[2, 7]])


def test_an_answer_can_be_changed(game):
    game.click("dogs", 1)
    game.click("birds", 2)
    game.number.index = 0
    assert game.which.value == "dogs"
    assert "You said dogs, 56% sure." in game.question.value
    game.click("cats", 3)
    assert game.clicked == {0: ("cats", 1.0), 1: ("birds", pytest.approx(7 / 9))}
    assert "2 of 20" in game.question.value and game.number.index == 1


@pytest.mark.parametrize("names", [("cats", "dogs", "birds"), ("a <b>", "c & d")])
def test_on_paper_each_row_has_its_class_folded(names):
    """What a page without a kernel has in place of the buttons."""
    game = Game(own_texts(30, names))
    item = r"<li>([^<]*)<details><summary>[^<]*</summary>([^<]*)</details></li>"
    rows = [[*map(html.unescape, row)] for row in re.findall(item, game.listed)]
    assert rows == game.twenty[["text", "true"]].values.tolist()
    assert "<b>" not in game.listed and "open" not in game.listed


def test_without_a_class_nothing_is_noted(game):
    game.sure[2].click()
    assert game.clicked == {} and game.number.index == 0
    assert "First choose a class." in game.question.value


def test_the_clicks_outlive_the_cells_but_for_the_one_that_draws(game):
    game.click("dogs", 1)
    first = range(DRAW + 1, GAME.stop)
    game.run([*first, *first])
    assert len(game.clicked) == 1 and game.which.value == "dogs"
    game.click("cats", 0)  # noted once, by the newest buttons
    assert game.clicked[0] == ("cats", pytest.approx(1 / 3)) and len(game.clicked) == 1
    game.run([DRAW])
    assert game.clicked == {}


@pytest.mark.parametrize(
    "classes, told",
    [(2, ["50%", "67%", "83%", "100%"]), (20, ["5%", "37%", "68%", "100%"])],
)
def test_the_buttons_are_those_of_the_classes(classes, told):
    names = [f"class {i}" for i in range(classes)]
    game = Game(own_texts(60, names))
    assert list(game.which.options) == names
    assert [button.description for button in game.sure] == told


def test_fewer_rows_than_twenty():
    game = Game(own_texts(9))
    assert len(game.twenty) == 9 and "0 of 9" in game.question.value
    game.run(CALIBRATION)


def test_a_text_is_readable_in_both_themes(game):
    """At the end of the notebook, too: no later cell takes a name that is in use."""
    game.run(CALIBRATION)
    game.sure[0].click()
    style = re.match("<div style='(.*?)'>", game.question.value)[1]
    assert "background:#fff; color:#000;" in style


def taken_from_outside(table):
    """The global names that a function, or one inside it, uses."""
    names = {s.get_name() for s in table.get_symbols() if s.is_global()}
    return names.union(*map(taken_from_outside, table.get_children()))


def test_no_function_uses_a_name_that_two_cells_give():
    """The reader's clicks come after the last cell has run."""
    given, used = Counter(), set()
    for source in SOURCES:
        table = symtable(source, "cell", "exec")
        given.update(s.get_name() for s in table.get_symbols() if s.is_assigned())
        for part in table.get_children():
            if part.get_name().isidentifier() and f"def {part.get_name()}" in source:
                used |= taken_from_outside(part)
    twice = {name for name, cells in given.items() if cells > 1}
    assert {"clicked", "twenty", "frame"} <= used and twice and not twice & used


def test_a_text_is_no_markup():
    names = ["a <b>", "c & d"]
    game = Game(own_texts(30, names))
    shown = html.escape(game.twenty["text"].iloc[0])
    assert shown in game.question.value and "<b>0 of" in game.question.value
    game.click("a <b>", 0)
    game.number.index = 0
    assert "You said a &lt;b&gt;, 50% sure." in game.question.value
    exec(SOURCES[cell_with("def bar(")].partition("def bar")[0].partition("names =")[0])
    bar = "def bar" + SOURCES[cell_with("def bar(")].partition("def bar")[2]
    exec(bar.partition("\n\n\n")[0], game.names)
    assert "a &lt;b&gt;<div" in game.bar("a <b>", "red", 0.5)


def by_hand(wins, losses):
    """Twice the chance of a split at least as uneven, at most 1."""
    n = wins + losses
    tail = sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    return min(1, 2 * tail)


@pytest.mark.parametrize("wins, losses", [(10, 2), (0, 6), (1, 0), (3, 3), (0, 0)])
def test_only_disagreements_count(game, wins, losses):
    both = [True] * 5 + [False] * 4
    one = pd.Series(both + [True] * wins + [False] * losses)
    other = pd.Series(both + [False] * wins + [True] * losses)
    *counts, p = game.paired_test(one, other)
    assert counts == [wins, losses] and p == pytest.approx(by_hand(wins, losses))


@pytest.fixture
def calibrated(game):
    """2,000 answers, right as often as their confidence says; the notebook's cells."""
    game.run(CALIBRATION)
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.3, 1, 2000)
    right = rng.random(2000) < confidence
    return game, pd.DataFrame({"confidence": confidence, "right": right})


def test_the_groups_have_equally_many_rows(calibrated):
    game, answers = calibrated
    group = game.equal_groups(answers["confidence"], 7)
    sizes = group.value_counts()
    assert len(sizes) == 7 and sizes.max() - sizes.min() <= 1
    ends = answers.groupby(group)["confidence"].agg(["min", "max"])
    assert (ends["max"].iloc[:-1].to_numpy() < ends["min"].iloc[1:].to_numpy()).all()


def test_the_error_is_the_weighted_mean_of_the_gaps(calibrated):
    game, answers = calibrated
    group = answers.index % 3 // 2  # of two sizes
    found = game.calibration(answers, group)
    gaps = (found["accuracy"] - found["confidence"]).abs()
    expected = np.average(gaps, weights=np.bincount(group))
    assert game.calibration_error(answers, group) == pytest.approx(expected)
    assert expected > 0.001


@pytest.mark.parametrize("rows", [40, 2000])
def test_the_floor_is_what_a_calibrated_model_gets(calibrated, rows):
    """Drawn here in another way: many such models, each scored as the reader's is."""
    game, answers = calibrated
    answers = answers.iloc[:rows]
    group = game.equal_groups(answers["confidence"], 5)
    told = game.with_floor(answers, group)
    rng = np.random.default_rng(5)
    tried = []
    for _ in range(400):
        right = rng.binomial(1, answers["confidence"])
        tried.append(game.calibration_error(answers.assign(right=right), group))
    assert told["floor"] == pytest.approx(100 * np.mean(tried), rel=0.08)
    assert told["high"] == pytest.approx(100 * np.quantile(tried, 0.975), rel=0.15)
    assert told["low"] < told["floor"] < told["high"]


def test_who_is_sure_and_right_has_no_floor(calibrated):
    game, _ = calibrated
    sure = pd.DataFrame({"confidence": [1.0] * 9, "right": [True] * 9})
    assert set(game.with_floor(sure, np.zeros(9, int)).values()) == {0}


TEXT = rules.prose(CELLS)


def test_the_text_tells_what_was_printed():
    printed = "".join(CODE[cell_with("in combinations(")]["outputs"][0]["text"])
    [p] = re.findall(r"recorded reader \d+ : \d+ TF-IDF, p = ([\d.]+)", printed)
    assert f"(p = {p};" in TEXT and f"only {100 * float(p):.0f} times in 100" in TEXT
    assert (
        "recorded reader 1 : 0 model" in printed and "model: one row, no proof" in TEXT
    )
    table = "".join(
        CODE[cell_with("def accuracy(")]["outputs"][0]["data"]["text/plain"]
    )
    assert "recorded reader     20  20" in table and "proud of 20 of 20" in TEXT


def test_the_text_tells_what_was_measured():
    twins = rules.stored("near_repeats.json")
    pairs, differ = twins["near_twins"], twins["with_another_label"]
    assert f"{pairs} have a near twin" in TEXT
    assert f"{differ} of these pairs ({100 * differ / pairs:.1f} %)" in TEXT
    marks = rules.stored("shortcuts.json")
    found = pd.DataFrame(marks["telltales"])
    for (name, rows), changed in found.groupby(["telltale", "rows"])["answers changed"]:
        assert f"|{name}|{rows}|{changed.min()} to {changed.max()}|" in TEXT
    lost = (found["right"] - found["right without"])[
        found["telltale"].str[:4] == "link"
    ]
    said = "Without the link they get {}, {}, {} and {} fewer right."
    assert said.format(*sorted(lost)) in TEXT
    confusion = np.array(marks["tests"][0]["confusion"])  # of the notebooks' seed
    wrong = confusion.sum() - confusion.trace()
    swapped = confusion[2, 3] + confusion[3, 2]  # Business and Sci/Tech
    assert f"made {wrong} mistakes (measured). In {swapped} of them" in TEXT
    assert f"it would be {wrong / 6:.0f}." in TEXT
