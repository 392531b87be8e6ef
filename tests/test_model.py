import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from agnews_helpers import (
    LABELS,
    HubUnreachable,
    InvalidValue,
    Recipe,
    classify,
    load_classifier,
    load_model,
    load_tokenizer,
)
from agnews_helpers.model import (
    check_model_and_tokenizer,
    class_names,
    label_mapping,
    pretrained_name,
    run_facts,
    write_classifier,
)
from agnews_helpers.plumbing import hub
from agnews_helpers.plumbing.errors import Damaged
from agnews_helpers.plumbing.mini import mini_folder
from agnews_helpers.recipe import HUB_MODEL


def test_the_name_is_what_from_pretrained_takes():
    assert (
        pretrained_name(Recipe()) == HUB_MODEL
        and pretrained_name(Recipe(model="a/folder")) == "a/folder"
    )
    assert pretrained_name(Recipe(model="mini")) == str(mini_folder())


def test_loading_says_nothing_and_leaves_the_libraries_as_they_were(capsys):
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    logger, level = (
        logging.getLogger("transformers"),
        transformers_logging.get_verbosity(),
    )
    logger.addHandler(handler)
    try:
        load_model(Recipe(model="mini"))
    finally:
        logger.removeHandler(handler)
    assert not told and capsys.readouterr() == ("", "")
    assert (
        transformers_logging.get_verbosity() == level
        and transformers_logging.is_progress_bar_enabled()
    )


def test_a_weight_that_an_encoder_lacks_is_named(tiny, tmp_path, capsys):
    folder, lacking = (
        Path(shutil.copytree(tiny, tmp_path / "cut")),
        "distilbert.embeddings.LayerNorm.weight",
    )
    weights = load_file(folder / "model.safetensors")
    del weights[lacking], weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(Recipe(model=str(folder)))
    assert (
        capsys.readouterr().out
        == f"note: {folder} lacks {lacking}; drawn anew, as the head is.\n"
    )
    with pytest.raises(
        FileNotFoundError,
        match="without a trained head .classifier.weight.*agnews train",
    ):
        load_classifier(folder)


def test_the_labels_are_in_the_configuration():
    config = load_model(Recipe(model="mini")).config
    assert (
        config.id2label == dict(enumerate(LABELS)) and config.label2id["Sci/Tech"] == 3
    )


def test_the_same_seed_gives_the_same_head_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    heads = [
        load_model(Recipe(model="mini", seed=seed)).classifier.weight
        for seed in (1, 1, 2)
    ]
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
    with pytest.raises(
        FileNotFoundError,
        match="empty' does not hold a model that can be read .*AGNEWS_MODEL=mini",
    ):
        load(Recipe(model=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    "load, name",
    [
        (load_model, "model.safetensors"),
        (load_tokenizer, "tokenizer.json"),
        (load_model, "config.json"),
    ],
)
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_damaged_file_of_a_folder_is_one_clear_line(tiny, tmp_path, load, name, left):
    folder = Path(shutil.copytree(tiny, tmp_path / "spoiled"))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(left * len(whole))])
    with pytest.raises(
        FileNotFoundError,
        match=r"spoiled' does not hold a model that can be read \(.+\)\. Save it again, or give another",
    ):
        load(Recipe(model=str(folder)))
    with pytest.raises(FileNotFoundError, match="does not hold a model"):
        load_classifier(folder)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_nowhere_is_named(monkeypatch, load):
    monkeypatch.setattr(hub, "why_unreachable", lambda: "the Hub is a test")
    with pytest.raises(
        HubUnreachable,
        match=r"'no/such' \(there is no such folder\) cannot be loaded.*the Hub is a test.*Go online",
    ):
        load(Recipe(model="no/such"))


def test_a_classifier_that_may_not_be_read_is_not_called_missing(
    tiny, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(tiny, tmp_path / "mine"))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="mine holds no trained classifier"):
        load_classifier(folder)
    (
        folder / "config.json"
    ).mkdir()  # a folder in place of a file cannot be read either, even by root
    with pytest.raises(OSError, match="config.json") as caught:
        load_classifier(folder)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("text", ["", '{"recipe": ', "[1, 2]", "\udcff"])
def test_facts_that_are_damaged_are_named(tmp_path, text):
    assert run_facts(tmp_path) == {} == run_facts(tmp_path / "nowhere")
    (tmp_path / "agnews_run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        Damaged, match="agnews_run.json is damaged .*delete or rename it"
    ):
        run_facts(tmp_path)


# classes, and parts that do not belong together

NAMES = ["Delivery", "Returns", "Payment", "Account", "Product question"]


def test_other_classes_travel_in_the_configuration(tiny, tmp_path):
    model = load_model(Recipe(model=str(tiny)), NAMES)
    assert class_names(model) == NAMES and model.classifier.out_features == 5
    write_classifier(model, load_tokenizer(Recipe(model="mini")), tmp_path)
    assert class_names(load_classifier(tmp_path)[0]) == NAMES


def test_a_class_without_a_name_is_said(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "World", "1": "Sports", "3": "Business", "4": "Sci/Tech"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        InvalidValue, match="model: add a name for class 2 in config.json"
    ):
        classify(["a text"], folder)


def rows_of(names):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)


def test_classes_are_found_by_name(tiny):
    model = load_model(Recipe(model=str(tiny)))
    assert label_mapping(model, rows_of(list(LABELS))) == [0, 1, 2, 3]
    assert label_mapping(model, rows_of(["business", "World"])) == [2, 0]
    with pytest.raises(
        InvalidValue,
        match="knows the classes World, .* and the data has Delivery, Returns",
    ):
        label_mapping(model, rows_of(NAMES))
    model.config.id2label = {
        i: f"LABEL_{i}" for i in range(4)
    }  # of a model that was saved without names
    assert label_mapping(model, rows_of(["a", "b", "c", "d"])) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda model, tokenizer: tokenizer.add_tokens("zyzzyva"),
            "tokenizer has 30,523 tokens and the model 30,522",
        ),
        (
            lambda model, tokenizer: setattr(model.config, "pad_token_id", None),
            "no padding token",
        ),
        (
            lambda model, tokenizer: setattr(
                model.config, "max_position_embeddings", 64
            ),
            "takes 64 tokens",
        ),
        (
            lambda model, tokenizer: setattr(tokenizer, "model_max_length", 100),
            "takes 100 tokens",
        ),
    ],
)
def test_parts_that_do_not_belong_together(tiny, change, message):
    model, tokenizer = (
        load_model(Recipe(model=str(tiny))),
        load_tokenizer(Recipe(model=str(tiny))),
    )
    check_model_and_tokenizer(model, tokenizer, 512)
    change(model, tokenizer)
    with pytest.raises(InvalidValue, match=message):
        check_model_and_tokenizer(model, tokenizer, 512)


@pytest.mark.parametrize(
    "name", ["~/no-such-model", "./model/", "/nowhere/model", "models/", r"C:\\models"]
)
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "from_hub", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_model(Recipe(model=name))


def test_the_home_folder_may_be_abbreviated(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.parent))
    monkeypatch.setenv("USERPROFILE", str(tiny.parent))
    assert pretrained_name(Recipe(model=f"~/{tiny.name}")) == str(tiny)


def test_code_in_a_model_folder_does_not_run(tiny, tmp_path):
    folder, ran = Path(shutil.copytree(tiny, tmp_path / "code")), tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nclass Model: pass\n", encoding="utf-8"
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for kind in ("distilbert", "unheard-of"):
        changed = config | {
            "model_type": kind,
            "auto_map": {"AutoModelForSequenceClassification": "evil.Model"},
        }
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        with suppress(FileNotFoundError):
            load_model(Recipe(model=str(folder)))
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, load):
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder 'model.json'"):
        load(Recipe(model="model.json"))
