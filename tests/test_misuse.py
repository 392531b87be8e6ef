"""What the API is given by mistake: each call is refused in words, before any work."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Value
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel

import vram_budget
from agnews_helpers import (
    InvalidValue,
    Recipe,
    classify,
    config_for,
    epoch_batches,
    evaluate,
    full_run_hours,
    load_classifier,
    load_data,
    load_model,
    load_tokenizer,
    make_loader,
    predict_logits,
    pretrained_name,
    score,
    sorted_batches,
    tokenize,
    train,
    training_step,
    vram_cap,
)
from agnews_helpers.plumbing.errors import check_types
from vram_budget import StepOptions, find_card, step_budget

TINY = DistilBertConfig(num_labels=4, dim=32, hidden_dim=64, n_layers=2, n_heads=4)


@pytest.fixture
def given(recipe, tokens, tmp_path):
    return SimpleNamespace(
        recipe=recipe,
        tokens=tokens,
        model=load_model(recipe),
        tokenizer=load_tokenizer(recipe),
        folder=tmp_path / "run",
    )


def trained_with(**changes):
    """Return a call of `train` with some arguments replaced by functions of `given`."""

    def call(given):
        arguments = {
            "model": given.model,
            "tokens": given.tokens,
            "recipe": given.recipe,
            "output_dir": given.folder,
        }
        train(**arguments | {name: change(given) for name, change in changes.items()})

    return call


def splits(change):
    """Return a call of `train` with `change` applied to the training split."""
    return trained_with(
        tokens=lambda given: {**given.tokens, "train": change(given.tokens["train"])}
    )


def labels(values):
    """Return a function that gives a split other labels."""

    def change(split):
        rest = split.remove_columns("label")
        return rest.add_column("label", [values] * len(split))

    return change


def changed(change):
    """Return a call of `train` with a model that `change` has changed in place."""

    def model(given):
        change(given.model)
        return given.model

    return trained_with(model=model)


def share(model):
    first, second = model.distilbert.transformer.layer
    second.ffn.lin1.weight = first.ffn.lin1.weight


def adapt(model):
    """As LoRA does: beside a layer another one, under new names."""
    layer = model.distilbert.transformer.layer[0].ffn
    layer.lin1 = torch.nn.Sequential(layer.lin1, torch.nn.Linear(64, 64))


def react(model):
    for layer in model.distilbert.transformer.layer:
        layer.ffn.activation = torch.nn.ReLU()


def inside(context):
    def call(given):
        with context():
            trained_with()(given)

    return call


CALLS = {
    # train: the data
    "one split": (trained_with(tokens=lambda g: g.tokens["train"]), "takes Mapping"),
    "no data": (trained_with(tokens=lambda g: None), "got NoneType"),
    "no validation": (
        trained_with(tokens=lambda g: {"train": g.tokens["train"]}),
        "'validation' has no tokenized rows",
    ),
    "no rows": (splits(lambda s: s.select([])), "'train' has no tokenized rows"),
    "texts": (splits(lambda s: s.remove_columns("input_ids")), "no tokenized rows"),
    "no labels": (splits(lambda s: s.remove_columns("label")), "with text, label,"),
    "a DataFrame": (splits(Dataset.to_pandas), "no tokenized rows"),
    "a dict": (splits(Dataset.to_dict), "no tokenized rows"),
    "a stream": (splits(Dataset.to_iterable_dataset), "no tokenized rows"),
    "tensors": (splits(lambda s: s.with_format("torch")), "as plain Python values"),
    "arrays": (splits(lambda s: s.with_format("numpy")), "as plain Python values"),
    "labels of -1": (splits(labels(-1)), "numbers from 0 to 3.*such as .-1"),
    "a label too high": (splits(labels(4)), "numbers from 0 to 3.*such as .4"),
    "names": (splits(labels("World")), "numbers from 0 to 3.*World"),
    "fractions": (
        splits(lambda s: s.cast_column("label", Value("float64"))),
        "of float64",
    ),
    # train: the model
    "a name": (trained_with(model=lambda g: "distilbert"), "takes PreTrainedModel"),
    "swapped": (
        trained_with(model=lambda g: g.tokens, tokens=lambda g: g.model),
        "takes PreTrainedModel for 'model', and got DatasetDict",
    ),
    "compiled": (trained_with(model=lambda g: torch.compile(g.model)), "OptimizedM"),
    "wrapped": (
        trained_with(model=lambda g: torch.nn.DataParallel(g.model)),
        "takes PreTrainedModel for 'model', and got DataParallel",
    ),
    "no head": (
        trained_with(model=lambda g: DistilBertModel(TINY)),
        "is no sequence classifier",
    ),
    "another head": (
        trained_with(model=lambda g: DistilBertForMaskedLM(TINY)),
        "is no sequence classifier",
    ),
    "frozen": (changed(lambda m: m.requires_grad_(False)), "only frozen weights"),
    "fp16": (changed(torch.nn.Module.half), "in half precision"),
    "bf16": (changed(torch.nn.Module.bfloat16), "in half precision"),
    "shared": (changed(share), "or one under two names"),
    "an adapter": (
        changed(adapt),
        "other layers or weights than its configuration says",
    ),
    "another activation": (changed(react), "other layers or weights than"),
    "all at once": (
        changed(lambda m: share(m.half().requires_grad_(False))),
        "only frozen weights, and is in half precision.*, and has other layers",
    ),
    # train: the rest
    "a dict of fields": (
        trained_with(recipe=lambda g: g.recipe.to_dict()),
        r"train\(\) takes Recipe for 'recipe', and got dict. help\(train\) says more",
    ),
    "1.5 steps": (trained_with(steps=lambda g: 1.5), "got float"),
    "a NumPy integer": (trained_with(steps=lambda g: np.int64(2)), "got int64"),
    "0 steps": (trained_with(steps=lambda g: 0), "steps is 0; it must be from 1"),
    "resume as 1": (trained_with(resume=lambda g: 1), "takes str | bool"),
    "resume as a word": (trained_with(resume=lambda g: "yes"), "resume is 'yes'"),
    "no folder": (trained_with(output_dir=lambda g: None), "got NoneType"),
    "minutes as text": (trained_with(save_minutes=lambda g: "1"), "got str"),
    "no_grad": (inside(torch.no_grad), "outside torch.no_grad"),
    "inference": (inside(torch.inference_mode), "outside torch.no_grad"),
    "autocast": (
        inside(lambda: torch.autocast("cpu", torch.bfloat16)),
        "autocast is on",
    ),
    # evaluate and its like
    "evaluate all": (lambda g: evaluate(g.model, g.tokens, g.recipe), "takes Dataset"),
    "evaluate a run": (
        lambda g: evaluate(g, g.tokens["test"], g.recipe),
        "takes PreTrainedModel",
    ),
    "evaluate a table": (
        lambda g: evaluate(g.model, g.tokens["test"].to_pandas(), g.recipe),
        "takes Dataset for 'split', and got DataFrame",
    ),
    "evaluate texts": (
        lambda g: evaluate(g.model, g.tokens["test"].select([]), g.recipe),
        "no tokenized rows",
    ),
    "evaluate at another length": (
        lambda g: evaluate(g.model, g.tokens["test"], g.recipe.replace(max_length=8)),
        "another length than max_length=8",
    ),
    "logits of texts": (lambda g: predict_logits(g.model, ["a"], g.recipe), "got list"),
    "logits without tokens": (
        lambda g: predict_logits(
            g.model, g.tokens["test"].remove_columns("length"), g.recipe
        ),
        "no tokenized rows",
    ),
    "classify a text": (lambda g: classify("a", g.folder), "takes list for 'texts'"),
    "classify a table": (
        lambda g: classify(pd.DataFrame({"text": ["a"]}), g.folder),
        "takes list for 'texts', and got DataFrame",
    ),
    "classify a column": (
        lambda g: classify(g.tokens["test"]["text"], g.folder),
        "got Column",
    ),
    "classify a number": (lambda g: classify([1], g.folder), "Text 1 of 1 is .* int 1"),
    "classify with a model": (lambda g: classify(["a"], g.model), "for 'folder'"),
    "score tensors": (lambda g: score(torch.zeros(1, 4), [0], ["a"]), "got Tensor"),
    "score nothing": (lambda g: score(np.zeros((0, 4)), [], []), "There are 0"),
    "score infinity": (
        lambda g: score(np.full((1, 4), np.inf), [0], ["a"]),
        "NaN or infinite",
    ),
    "score names": (lambda g: score(np.zeros((1, 4)), ["World"], ["a"]), "World"),
    "load a run": (lambda g: load_classifier(g), "takes str . pathlib.Path"),
    # before training
    "data of a name": (lambda g: load_data("sample"), "takes Recipe"),
    "model of a name": (lambda g: load_model("mini"), "takes Recipe"),
    "a number of classes": (lambda g: load_model(g.recipe, 4), "takes Sequence"),
    "one word as names": (
        lambda g: load_model(g.recipe, "abcd"),
        "The classes are 'ab",
    ),
    "names alike": (lambda g: load_model(g.recipe, ["A", "a"]), "each once"),
    "a missing label": (
        splits(lambda s: Dataset.from_dict(s.to_dict() | {"label": [None] * len(s)})),
        "remove rows without a label",
    ),
    "some columns": (
        splits(lambda s: s.with_format(None, columns=["text", "label"])),
        "no tokenized rows",
    ),
    "numbers as names": (lambda g: load_model(g.recipe, [0, 1]), "classes are .0, 1"),
    "tokens of a list": (
        lambda g: tokenize(["a"], g.tokenizer, g.recipe),
        "takes datasets.arrow_dataset.Dataset | datasets.dataset_dict.DatasetDict",
    ),
    "tokens by a name": (
        lambda g: tokenize(g.tokens, "mini", g.recipe),
        "takes PreTrainedTokenizerBase",
    ),
    "tokens of no text": (
        lambda g: tokenize(
            Dataset.from_dict({"text": ["a", None]}), g.tokenizer, g.recipe
        ),
        "Text 2 of 2 is one whose text is the NoneType None",
    ),
    "another column": (
        lambda g: tokenize(Dataset.from_dict({"t": ["a"]}), g.tokenizer, g.recipe),
        "no column 'text'",
    ),
    "batches of a split": (
        lambda g: epoch_batches(g.tokens["train"], g.recipe, 1),
        "takes Sequence",
    ),
    "epoch 1.5": (lambda g: epoch_batches([3, 4], g.recipe, 1.5), "takes int"),
    "lengths of a split": (lambda g: sorted_batches(g.tokens["test"]), "Sequence"),
    "a loader of a table": (
        lambda g: make_loader(g.tokens["test"].to_pandas(), [[0]], g.recipe),
        "takes Dataset for 'split'",
    ),
    "a loader of texts": (
        lambda g: make_loader(
            g.tokens["test"].select_columns(["text", "label"]), [[0]], g.recipe
        ),
        "no tokenized rows",
    ),
    # the recipe and the card
    "a recipe of a list": (lambda g: Recipe.from_dict([1]), "takes dict"),
    "no name": (lambda g: pretrained_name("mini"), "takes Recipe"),
    "no configuration": (lambda g: config_for(None), "takes str for 'model'"),
    "parts of -1": (lambda g: training_step(-1), "micro_batch_size is -1"),
    "parts of 1.5": (lambda g: training_step(1.5), "takes int | None"),
    "a card's name": (
        lambda g: full_run_hours(TINY, [9], g.recipe, "T4"),
        "takes Card for 'card'",
    ),
    "hours of a name": (
        lambda g: full_run_hours("mini", [8], g.recipe),
        "for 'config', and got str",
    ),
    "a device's name": (lambda g: vram_cap("cpu"), "takes device for 'device'"),
    # what has no name of its own in the package
    "a budget of 1.5 rows": (
        lambda g: step_budget(training_step(), TINY, 1.5, 8),
        "rows is 1.5, a float; it must be of type int",
    ),
    "a budget of a name": (
        lambda g: step_budget(training_step(), "mini", 8, 8),
        "config is 'mini', a str",
    ),
    "a budget on a name": (
        lambda g: step_budget(training_step(), TINY, 8, 8, card="T4"),
        "card is 'T4', a str; it must be of type Card",
    ),
    "a budget with a word": (
        lambda g: step_budget(training_step(), TINY, 8, 8, "sdpa"),
        "options is 'sdpa'",
    ),
    "a step that does nothing": (
        lambda g: step_budget(lambda *_: None, TINY, 8, 8),
        "must call the model",
    ),
    "checkpointing as a word": (
        lambda g: StepOptions(checkpointing="no"),
        "checkpointing is 'no'",
    ),
    "a capability of 7": (lambda g: StepOptions(capability=7), "capability is 7"),
    "no card": (lambda g: find_card(None), "name is None"),
}


@pytest.mark.parametrize("name", CALLS)
def test_is_refused_before_any_work(name, given, tmp_path):
    call, message = CALLS[name]
    with pytest.raises((InvalidValue, vram_budget.InvalidValue), match=message):
        call(given)
    assert not any(tmp_path.iterdir())


def test_what_is_meant_is_taken(given):
    """Plain dicts of splits, labels without names, tokens made twice, whole minutes."""
    rows = tokenize(given.tokens["train"], given.tokenizer, given.recipe)
    assert rows.column_names == given.tokens["train"].column_names
    plain = rows.cast_column("label", Value("int64"))
    data = {"train": plain, "validation": rows}
    run = train(given.model, data, given.recipe, given.folder, steps=1, save_minutes=1)
    assert len(run.steps) == 1


def test_types_are_checked_by_name_and_by_place_and_defaults_are_not():
    @check_types
    def double(value: int, text: str | None = 3) -> int:
        """Return twice the value."""
        return 2 * value

    assert double(2) == double(value=2) == double(2, None) == 4
    assert double.__name__ == "double" and double.__doc__ == "Return twice the value."
    for wrong in (lambda: double("2"), lambda: double(value="2"), lambda: double(2, 5)):
        with pytest.raises(InvalidValue, match=r"double\(\) takes .* help\(.*double\)"):
            wrong()
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        double()


def test_a_union_may_have_an_origin():
    """As in Python 3.14, where that of each is the class of all unions."""

    class Union:
        __origin__ = property(type)

        def __instancecheck__(self, value):
            return isinstance(value, (int, str))

    @check_types
    def same(value: Union()):
        return value

    assert same(1) == 1 and same("two") == "two"
    with pytest.raises(InvalidValue, match="got float"):
        same(1.5)
