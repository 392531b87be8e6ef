import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from transformers import XLNetConfig
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
    tokenize,
    train,
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
from agnews_helpers.plumbing.storage import sha256
from agnews_helpers.recipe import HUB_MODEL
from tests.compare import assert_same_weights
from tests.tiny import tiny_model_folder


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
    assert capsys.readouterr().out == (
        f"note: {folder} has no weights for {lacking}; they are initialized at "
        "random, as the head is.\n"
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


def test_a_new_head_chooses_one_class_whatever_the_old_one_did(tmp_path):
    folder = tiny_model_folder(tmp_path / "old", problem_type="regression")
    config = load_model(Recipe(model=str(folder)), NAMES).config
    assert config.problem_type == "single_label_classification"


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
        match=r"spoiled' does not hold a model that can be read \(.+\)\. Save it "
        "again, or give another",
    ):
        load(Recipe(model=str(folder)))
    with pytest.raises(FileNotFoundError, match="does not hold a model"):
        load_classifier(folder)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_model_that_is_nowhere_is_named(monkeypatch, load):
    monkeypatch.setattr(hub, "why_unreachable", lambda: "the Hub is a test")
    with pytest.raises(
        HubUnreachable,
        match=r"'no/such' \(there is no such folder\) cannot be loaded.*"
        "the Hub is a test.*Go online",
    ):
        load(Recipe(model="no/such"))


def test_a_classifier_that_cannot_be_read_is_named(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "mine"))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="mine holds no trained classifier"):
        load_classifier(folder)
    # A folder in place of a file cannot be read, even by root.
    (folder / "config.json").mkdir()
    with pytest.raises(OSError, match="mine.*config.json"):
        load_classifier(folder)


@pytest.mark.parametrize("name", ["run.json", "agnews_run.json"])
@pytest.mark.parametrize("text", ["", '{"recipe": ', "[1, 2]", "\udcff"])
def test_facts_that_are_damaged_are_named(tmp_path, name, text):
    assert run_facts(tmp_path) == {} == run_facts(tmp_path / "nowhere")
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    expected = rf"{name} (is no JSON|does not ).*a classifier can be loaded without it"
    with pytest.raises(Damaged, match=expected):
        run_facts(tmp_path)


# Where a classifier may be


@pytest.fixture(scope="module")
def run(recipe, tokens, tmp_path_factory):
    """A finished run, trained with rows of at most 16 tokens."""
    short = recipe.replace(max_length=16)
    texts = tokens.remove_columns(["input_ids", "length"])
    split = tokenize(texts, load_tokenizer(short), short)
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return train(load_model(short), split, short, folder)


def version_2_folder(run, folder):
    """What version 2 wrote: all files side by side, their checksums in the record.

    Its tokenizer did not know where the run cut its texts.
    """
    shutil.copytree(run.folder / "best", folder)
    (folder / "manifest.json").unlink()
    for name in ("history.csv", "steps.csv"):
        shutil.copy(run.folder / name, folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"model_max_length": 512}), encoding="utf-8")
    facts = run_facts(run.folder)
    names = ("recipe", "steps", "epoch", "finished")
    record = {name: facts[name] for name in names}
    record["files"] = {file.name: sha256(file) for file in folder.iterdir()}
    path = folder / "agnews_run.json"
    path.write_text(json.dumps(record, indent=2), encoding="utf-8")
    return folder


def run_folder(run, folder):
    return run.folder


def best_folder(run, folder):
    return run.folder / "best"


def copied_folder(run, folder):
    return shutil.copytree(run.folder / "best", folder / "sent to a friend")


def saved_folder(run, folder):
    """As any program saves model and tokenizer, beside something of its own."""
    model, tokenizer = load_classifier(run.folder)
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    (folder / "saved" / "best").mkdir()
    (folder / "saved" / "history.csv").write_text("foreign", encoding="utf-8")
    return folder / "saved"


def folder_of_version_2(run, folder):
    return version_2_folder(run, folder / "finished")


@pytest.mark.parametrize(
    "make", [run_folder, best_folder, copied_folder, saved_folder, folder_of_version_2]
)
def test_a_classifier_is_loaded_from(make, run, tmp_path, capsys):
    """And it cuts texts where its run did."""
    folder = make(run, tmp_path)
    capsys.readouterr()
    model, tokenizer = load_classifier(folder)
    assert capsys.readouterr().out == ""
    assert_same_weights(model, run.model)
    start = "word " * 14
    texts = [start + "end " * 300, start + "other " * 300, "Stocks fall"]
    answers = classify(texts, folder)
    first, second = answers.iloc[:2, 2:].to_numpy().tolist()
    assert first == second
    assert answers.equals(classify(texts, run.folder))


def test_the_facts_of_a_run_are_found_from_its_classifier_too(run, tmp_path):
    facts = run_facts(run.folder)
    assert facts == run_facts(run.folder / "best")
    assert facts["recipe"]["max_length"] == 16 and facts["finished"]
    version_2 = run_facts(version_2_folder(run, tmp_path / "finished"))
    assert version_2["recipe"] == facts["recipe"]


@pytest.mark.parametrize("make", [run_folder, best_folder])
def test_a_changed_file_of_a_classifier_is_named(make, run, tmp_path, capsys):
    copied = shutil.copytree(run.folder, tmp_path / "run")
    folder = make(SimpleNamespace(folder=copied), tmp_path)
    load_classifier(folder)
    assert capsys.readouterr().out == ""
    [config] = [*folder.glob("config.json")] or [*folder.glob("best/config.json")]
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    load_classifier(folder)
    expected = f"note: config.json in {config.parent} changed since the run wrote it"
    assert expected in capsys.readouterr().out


def test_the_best_of_another_run_is_named(run, tmp_path, capsys):
    copied = Path(shutil.copytree(run.folder, tmp_path / "run"))
    other = json.loads((copied / "best/manifest.json").read_text(encoding="utf-8"))
    (copied / "best/manifest.json").write_text(json.dumps(other, indent=3))
    load_classifier(copied)
    assert "best/manifest.json in" in capsys.readouterr().out


def test_a_subfolder_called_best_is_not_the_classifier_of_a_saved_model(
    run, tiny, tmp_path
):
    """That of somebody's own model, or of version 2."""
    for make in (saved_folder, folder_of_version_2):
        folder = make(run, tmp_path)
        shutil.rmtree(folder / "best", ignore_errors=True)
        shutil.copytree(tiny, folder / "best")
        assert_same_weights(load_classifier(folder)[0], run.model)


# Classes, and parts that do not belong together

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


SLOW = {"is_fast": False}  # written in Python, as some tokenizers are


def rows_of(names):
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)


def test_classes_are_found_by_name(tiny):
    model = load_model(Recipe(model=str(tiny)))
    assert label_mapping(model, rows_of(list(LABELS))) == [0, 1, 2, 3]
    assert label_mapping(model, rows_of(["business", "World"])) == [2, 0]
    with pytest.raises(
        InvalidValue,
        match="classes are World, .*, the data's Delivery, Returns.* must agree",
    ):
        label_mapping(model, rows_of(NAMES))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda model, tokenizer: tokenizer.add_tokens("zyzzyva"),
            "tokenizer has 30,523 tokens and the model 30,522",
        ),
        (
            lambda model, tokenizer: setattr(model.config, "vocab_size", 61_044),
            "tokenizer has 30,522 tokens and the model 61,044",
        ),
        (
            lambda model, tokenizer: setattr(model, "config", XLNetConfig()),
            "answers otherwise where other rows stand in the batch",
        ),
        (
            lambda model, tokenizer: (
                setattr(tokenizer, "model_max_length", 10**30),
                setattr(model.config, "max_position_embeddings", 514),
            ),
            "takes 512 tokens",
        ),
        (
            lambda model, tokenizer: setattr(
                model.config, "max_position_embeddings", 258
            ),
            "takes 256 tokens",
        ),
        (
            lambda model, tokenizer: setattr(model.config, "pad_token_id", None),
            "no padding token",
        ),
        (
            lambda model, tokenizer: setattr(
                tokenizer, "__class__", type("Slow", (type(tokenizer),), SLOW)
            ),
            "no tokenizer.json",
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
        check_model_and_tokenizer(model, tokenizer, 513)


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


@pytest.mark.parametrize("names", [[], ["one"], ["a", "b", "a"]])
def test_classes_that_no_model_can_have_are_refused(names, recipe):
    with pytest.raises(
        InvalidValue, match="there must be two names or more, each once"
    ):
        load_model(recipe, names)
