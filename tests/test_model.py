import shutil
from pathlib import Path

import pytest
import torch

from agnews_helpers import LABELS, HubUnreachable, Recipe, hub, load_classifier, load_model, load_tokenizer
from agnews_helpers.recipe import HubStatus


def test_the_labels_are_in_the_configuration():
    config = load_model(Recipe(model="mini")).config
    assert config.id2label == dict(enumerate(LABELS)) and config.label2id["Sci/Tech"] == 3


def test_the_same_seed_gives_the_same_head_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    heads = [load_model(Recipe(model="mini", seed=seed)).classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_is_loaded_in_fp32_whatever_was_stored(tiny, tmp_path):
    recipe = Recipe(model=str(tiny))
    load_model(recipe).half().save_pretrained(tmp_path / "half")
    load_tokenizer(recipe).save_pretrained(tmp_path / "half")
    model = load_model(Recipe(model=str(tmp_path / "half")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_folder_without_a_model_is_named(tmp_path, load):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty' does not hold a model that can be read .it has no config.json.*AGNEWS_MODEL=mini"):
        load(Recipe(model=str(tmp_path / "empty")))


@pytest.mark.parametrize("load, name", [(load_model, "model.safetensors"), (load_tokenizer, "tokenizer.json"), (load_model, "config.json")])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_damaged_file_of_a_folder_is_one_clear_line(tiny, tmp_path, load, name, left):
    folder = Path(shutil.copytree(tiny, tmp_path / "spoiled"))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:int(left * len(whole))])
    with pytest.raises(FileNotFoundError, match=r"spoiled' does not hold a model that can be read \(.+\)\. Give another folder"):
        load(Recipe(model=str(folder)))
    with pytest.raises(FileNotFoundError, match="does not hold a model"):
        load_classifier(folder)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_nowhere_is_named(monkeypatch, load):
    monkeypatch.setattr(hub, "hub_status", lambda: HubStatus(False, False, "the Hub is a test"))
    with pytest.raises(HubUnreachable, match=r"'no/such' \(there is no such folder\) cannot be loaded.*the Hub is a test.*Go online"):
        load(Recipe(model="no/such"))
