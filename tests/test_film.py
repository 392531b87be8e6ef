"""The film of a training: the camera, what it costs, the slider, and what is told.

The functions are read from the notebook's cells: what is tested is what is shown.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from agnews_helpers import Recipe, epoch_batches, make_loader, plots, sorted_batches
from tests import test_notebooks as rules

ROOT = Path(__file__).resolve().parent.parent
CELLS, CODE = rules.read(ROOT / "notebooks" / "05_train_the_classifier.ipynb")
CLASSES = ["World", "Sports", "Business", "Sci/Tech"]


def cell(part):
    """The one code cell that has this part."""
    [found] = [each for each in CODE if part in each["text"]]
    return found


def printed(part):
    return "".join("".join(out.get("text", "")) for out in cell(part)["outputs"])


@pytest.fixture
def studio():
    """The loop and the camera of the notebook, with a tiny model and 64 rows."""
    torch.manual_seed(1)
    config = DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=50, num_labels=4
    )
    ids = torch.randint(1, 50, (64, 9)).tolist()
    rows = Dataset.from_dict(
        {
            "input_ids": ids,
            "text": ["a text"] * 64,
            "label": [i % 4 for i in range(64)],
            "length": [9] * 64,
        }
    )
    scene = torch.randint(1, 50, (40, 7))
    names = {
        "torch": torch,
        "F": F,
        "recipe": Recipe(model="mini"),
        "epoch_batches": epoch_batches,
        "make_loader": make_loader,
        "sorted_batches": sorted_batches,
        "on_device": dict,
        "headline": {"input_ids": scene[:1]},
        "forty": {"input_ids": scene},
        "model": DistilBertForSequenceClassification(config),
        "rows": rows,
        **{reel: [] for reel in ("chances", "vectors", "seconds")},
    }
    for part in ("def accuracy(", "def fine_tune(", "def film("):
        exec(cell(part)["text"], names)
    return names


def train(studio, after_step):
    """Train a fresh copy for two epochs, as the notebook does; return the losses."""
    model = DistilBertForSequenceClassification(studio["model"].config)
    model.load_state_dict(studio["model"].state_dict())
    torch.manual_seed(42)
    few = studio["rows"].select(range(4))
    return studio["fine_tune"](model, studio["rows"], few, 2, 1e-3, after_step), model


def test_the_camera_changes_nothing(studio):
    plain, without = train(studio, None)
    filmed, with_camera = train(studio, studio["film"])
    assert len(plain) == 16 and filmed == plain  # dropout drew the same numbers
    for one, other in zip(without.parameters(), with_camera.parameters()):
        assert torch.equal(one, other)


def test_the_camera_sees_the_model_as_it_is(studio):
    """Without dropout; and the model goes on with it."""
    model = studio["model"].train()
    studio["film"](model)
    assert all(part.training for part in model.modules())
    model.eval()
    with torch.no_grad():
        expected = model(**studio["headline"]).logits.softmax(-1)[0]
        vectors = model.distilbert(**studio["forty"])[0][:, 0]
    assert studio["chances"] == [pytest.approx(expected.tolist(), abs=1e-6)]
    torch.testing.assert_close(studio["vectors"][0], vectors)
    assert not studio["vectors"][0].requires_grad  # or it keeps every step


def test_every_step_and_every_tenth_step_is_seen(studio):
    studio["film"](studio["model"])  # before the first
    train(studio, studio["film"])
    assert [len(studio[reel]) for reel in ("chances", "vectors")] == [17, 2]


def test_the_camera_costs_at_most_a_tenth():
    """As stored; the cell compares it on each machine, too."""
    [percent] = re.findall(r"(\d+) % more", printed("sum(seconds[1:])"))
    assert 1 <= int(percent) <= 10


def film_of(names, steps):
    """The cells with the pictures of a made-up film; return their names."""
    random = np.random.default_rng(3)
    every = random.dirichlet(np.ones(len(names)), steps + 1)
    variables = {
        "names": names,
        "chances": every.tolist(),
        "vectors": [
            torch.tensor(random.normal(size=(4 * len(names), 5))) for _ in every[::10]
        ],
        "picked": [range(4)] * len(names),
        **{"torch": torch, "pd": pd, "np": np, "plots": plots},
    }
    for part in ("PCA(2)", "def frame(", "widgets.HTML("):
        exec(cell(part)["text"], variables)
    return variables


def seen(film):
    """The texts of the view and the places of its dots."""
    svg = ElementTree.fromstring(film["view"].value)
    texts = [(each.text, float(each.get("x")), float(each.get("y"))) for each in svg]
    below = 26 * len(film["names"])
    words = [text for text, _, y in texts if text and y <= below]
    return words, np.array([(x, y) for text, x, y in texts if text and y > below])


def test_the_slider_shows_each_step():
    film = film_of(CLASSES, 25)
    for step in (0, 7, 20, 25):
        film["slider"].value = step
        words, _ = seen(film)
        assert [word for word in words if "." in word] == [
            f"{share:.2f}" for share in film["chances"][step]
        ]
        assert [word for word in words if word in CLASSES] == CLASSES


def test_the_dots_are_where_the_vectors_were_and_glide_between():
    film = film_of(CLASSES, 25)
    places = []
    for step in (10, 15, 20, 25):
        film["slider"].value = step
        places.append(seen(film)[1])
    assert places[0].shape == (16, 2) and np.ptp(places[0], 0).min() > 50
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2, atol=1)
    np.testing.assert_array_equal(places[2], places[3])  # the last look stays
    # Distances in the picture are those of the two directions, up to its scale.
    dots = film["dots"]
    size = np.ptp(dots, (0, 1)) / (312, -230)  # up is up
    moves = (dots[2] - dots[1]) / size
    np.testing.assert_allclose(places[2] - places[0], moves, atol=1)


def test_the_film_can_be_played():
    film = film_of(CLASSES, 25)
    film["play"].value = 25
    assert film["slider"].value == 25 == film["play"].max
    assert f"{film['chances'][25][0]:.2f}" in seen(film)[0]


def test_a_stopped_film_and_other_classes_are_shown_too():
    for names in (["a<b", "c&d"], [f"class {i}" for i in range(9)]):
        film = film_of(names, 3)  # one look at the vectors
        film["slider"].value = 3
        words, places = seen(film)
        assert {*names} <= {*words} and len(places) == 4 * len(names)


def test_the_view_is_narrow_and_has_its_own_background():
    """So it can be read on a phone and in the dark theme."""
    svg = ElementTree.fromstring(film_of(CLASSES, 25)["view"].value)
    assert int(svg.get("width")) <= 340 and "background: #fff" in svg.get("style")
    assert "max-width: 100%" in svg.get("style")
    for each in svg:
        assert each.get("fill").startswith("#")
        assert 0 <= float(each.get("x")) <= 330
        assert 0 <= float(each.get("y")) <= int(svg.get("height")) - 4


@pytest.mark.parametrize("count, trained", [(400, 240), (60, 40)])
def test_the_scene_is_of_every_class_and_none_of_the_training_rows(count, trained):
    labels = np.arange(count) % 4
    lengths = np.random.default_rng(5).integers(10, 99, count)
    rows = Dataset.from_dict({"label": labels, "length": lengths})
    texts = Dataset.from_dict({"text": [f"text {i}" for i in range(count)]})

    class Batch(dict):
        def to(self, device):
            return self

    variables = {
        "names": CLASSES,
        "tokens": {"train": rows},
        "news": {"train": texts},
        "tokenizer": lambda texts, **options: Batch(texts=texts, **options),
        "device": "cpu",
    }
    exec(cell("forty = tokenizer")["text"], variables)
    picked, few = np.concatenate(variables["picked"]), variables["few"]
    assert len(few) == trained and max(few["length"]) <= lengths[picked].min()
    assert not {*picked} & {*variables["order"][:trained]}
    assert np.bincount(labels[picked]).min() == 10 if count > 60 else len(picked) == 20
    assert variables["forty"]["texts"] == [f"text {i}" for i in picked]
    assert variables["forty"]["max_length"] == 12


def test_the_learning_curve_is_the_measured_one():
    measured = pd.DataFrame(rules.stored("learning_curve.json")["lines"])
    measured = measured[
        measured["epoch"] == measured.groupby("model")["epoch"].transform("max")
    ]
    means = 100 * measured.groupby(["model", "rows"])["accuracy"].mean()
    text = "\n".join(each["text"] for each in CELLS)
    [sizes] = re.findall(r"^\|training rows\|(.*)\|$", text, re.M)
    models = {"TF-IDF": "TF-IDF", "`mini`, frozen": "frozen, mean", "`mini`": "mini"}
    for name, model in models.items():
        [told] = re.findall(rf"^\|{name}\|(.*)\|$", text, re.M)
        shares = [
            means.get((model, int(size.replace(",", "")))) for size in sizes.split("|")
        ]
        expected = ["-" if share is None else f"{share:.1f}" for share in shares]
        assert told.split("|") == expected, name
    gains = (means["mini"] - means["frozen, mean"]).dropna()
    told = re.search(
        r"100 rows, the same frozen model beats the trained one; with 300, training "
        r"gains (\S+) points, with 8,100 it gains (\S+) \(",
        text,
    )
    assert gains[100] < 0
    assert told.groups() == (f"{gains[300]:.1f}", f"{gains[8100]:.1f}")
