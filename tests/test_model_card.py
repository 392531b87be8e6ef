"""What who gets a classifier reads about it."""

import pandas as pd
import pytest
from huggingface_hub import ModelCard

from agnews_helpers import LABELS, Recipe, load_classifier, load_model, train
from agnews_helpers.model_card import write_card
from agnews_helpers.recipe import HUB_DATA, HUB_MODEL

COUNTS = pd.DataFrame({"train": [90, 60], "validation": [30, 5]}, ["cat", "dog"])
RESULT = "accuracy 90.0% (35 rows)\n  precision\ncat  0.9\ndog  0.7"


def card(folder, recipe=None, epoch=2, result=RESULT, counts=COUNTS):
    write_card(folder, recipe or Recipe(), counts, epoch, result)
    return ModelCard.load(folder / "README.md")


def test_a_card_says_what_the_classifier_is(tmp_path):
    found = card(tmp_path)
    assert found.data.base_model == HUB_MODEL
    assert found.data.pipeline_tag == "text-classification"
    for words in (
        "one of the classes below. Fine-tuned with agnews_helpers",
        f"model: {HUB_MODEL}\n",
        HUB_DATA,
        "Epoch 2 of 4, on the validation rows.",
        RESULT,
        "learning_rate: 2e-05",
        "only the first 512 tokens",
        'pipeline("text-classification"',
    ):
        assert words in found.text
    lines = [line.split() for line in found.text.splitlines()]
    assert ["cat", "90", "30"] in lines and ["dog", "60", "5"] in lines


def test_a_card_without_a_validation_says_so(tmp_path):
    text = card(tmp_path, epoch=0, result="").text
    assert "It was not validated yet." in text and "accuracy" not in text


def test_a_card_names_no_folder_of_the_machine(tiny, tmp_path):
    data = tmp_path / "secret" / "tickets.csv"
    text = card(tmp_path, Recipe(model=str(tiny), data=str(data))).content
    assert str(tmp_path) not in text and str(tiny.parent) not in text
    assert "data: tickets.csv\n" in text and "base_model" not in text


@pytest.mark.parametrize(
    "names",
    [["a: b", "#c"], ["{x}", "%s"], ["日本", "x|y"], ["<script>", "```"], ["---", "*"]],
)
def test_any_names_of_classes_stand_in_a_fence(names, tmp_path):
    found = card(tmp_path, counts=COUNTS.set_axis(names))
    assert found.data.pipeline_tag == "text-classification"
    outside = found.text.split("\n```")[::2]
    rows = [line for line in found.text.splitlines() if line.endswith((" 30", " 5"))]
    assert [row.split("  ")[0].strip() for row in rows] == names
    assert not any(row in part for row in rows for part in outside)


@pytest.fixture(scope="module")
def trained(recipe, tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "run"
    return train(load_model(recipe), tokens, recipe.replace(epochs=2), folder)


def test_a_run_writes_the_card_of_its_best_epoch(trained, tokens):
    text = (trained.folder / "best" / "README.md").read_text(encoding="utf-8")
    accuracy = trained.history["validation_accuracy"][trained.best_epoch]
    rows = len(tokens["validation"])
    assert f"Epoch {trained.best_epoch} of 2, on the validation rows" in text
    assert f"accuracy {accuracy:.1%} (95 % interval" in text and f"{rows} rows)" in text
    lines = [line.split() for line in text.splitlines()]
    for i, name in enumerate(LABELS):
        counts = [tokens[s]["label"][:].count(i) for s in ("train", "validation")]
        assert [name, *map(str, counts)] in lines


def test_who_passes_a_classifier_on_may_add_to_its_card(
    trained, recipe, tokens, capsys
):
    path = trained.folder / "best" / "README.md"
    text = path.read_text(encoding="utf-8") + "\nLicence: CC0\n"
    path.write_text(text, encoding="utf-8")
    again = recipe.replace(epochs=2)
    run = train(load_model(recipe), tokens, again, trained.folder)
    load_classifier(trained.folder)
    assert run.finished and "note" not in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == text
