"""The classifier and its tokenizer: from the Hub or a folder, and back to a folder.

Notebooks 01 and 04.
"""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from .plumbing import storage
from .plumbing.errors import InvalidValue, check_types
from .plumbing.hub import FILES, pretrained
from .plumbing.mini import mini_folder
from .plumbing.tables import plain_label
from .recipe import LABELS, Recipe

BEST_MANIFEST = f"{storage.BEST}/{storage.MANIFEST}"


@check_types
def pretrained_name(recipe: Recipe) -> str:
    """Return what ``from_pretrained`` takes: a Hub id, or the path of a folder.

    Parameters
    ----------
    recipe : Recipe
        Names the model.

    Returns
    -------
    str

    Raises
    ------
    MiniUnavailable, SaveError
        If the offline model is asked for, and its package is not installed or the cache
        cannot be written.
    """
    if recipe.model == "mini":
        return str(mini_folder())
    folder = Path(recipe.model).expanduser()
    return str(folder) if folder.is_dir() else recipe.model


@check_types
def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer: ``AutoTokenizer.from_pretrained(name)``.

    Parameters
    ----------
    recipe : Recipe
        Names the model.

    Returns
    -------
    PreTrainedTokenizerBase

    Raises
    ------
    FileNotFoundError, HubUnreachable, MiniUnavailable
        As for `load_model`.
    """
    return pretrained(AutoTokenizer, pretrained_name(recipe))


@check_types
def load_model(recipe: Recipe, names: Sequence[str] = LABELS) -> PreTrainedModel:
    """Load a classifier to train, in fp32, on the CPU.

    ``AutoModelForSequenceClassification.from_pretrained(name, num_labels=4)``. The
    head, which a pretrained model lacks, is initialized from `recipe.seed`: the same
    recipe starts from the same weights. The global random generators are not changed.

    Parameters
    ----------
    recipe : Recipe
        Names the model.
    names : sequence of str
        The names of the classes. Default: AG News'; for other data
        ``load_data(recipe)["train"].features["label"].names``.

    Returns
    -------
    PreTrainedModel

    Raises
    ------
    FileNotFoundError
        If the recipe names a folder that does not hold a model.
    HubUnreachable
        If the model has to come from the Hub and cannot.
    MiniUnavailable
        If the offline model's package is not installed.
    InvalidValue
        If there are fewer than two names, or one twice.
    """
    are_names = not isinstance(names, str) and all(isinstance(n, str) for n in names)
    if not are_names or len({*map(plain_label, names)}) < max(2, len(names)):
        raise InvalidValue(
            f"The classes are {names!r}; there must be two names or more, each once."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        model, new_weights = _load(
            pretrained_name(recipe),
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,  # a head for other classes is replaced
        )
    missing = [w for w in new_weights if w.startswith(model.base_model_prefix)]
    if missing:
        print(
            f"note: {recipe.model} has no weights for {', '.join(missing)}; they are "
            "initialized at random, as the head is."
        )
    return model


def _load(name, **options):
    """Load a classifier in fp32; also return the names of weights that were missing."""
    with _quiet(name):
        model, info = pretrained(
            AutoModelForSequenceClassification,
            name,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    # transformers maps the file into memory, and Windows cannot replace a mapped file:
    # the next notebook could not save there.
    for weight in model.parameters():
        weight.data = weight.data.clone()
    wrong_shape = [weight for weight, *_ in info["mismatched_keys"]]
    return model, sorted({*info["missing_keys"], *wrong_shape})


def check_model_and_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Check that model and tokenizer belong together, and can take the recipe.

    Parameters
    ----------
    model : PreTrainedModel
        The classifier.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer.
    max_length : int
        The recipe's, in tokens.

    Raises
    ------
    InvalidValue
        If the model gives one number or several labels, or answers otherwise beside
        other rows; if the tokenizer saves no tokenizer.json, has more tokens than the
        model, or not more than half of them; if there is no padding token; or if the
        model has fewer positions than `max_length`.
    """
    config = model.config
    positions = getattr(config, "max_position_embeddings", max_length)
    positions -= 2 * (positions % 8 == 2)  # RoBERTa's first two are of no token
    positions = min(positions, tokenizer.model_max_length)
    if config.num_labels < 2 or "multi" in (config.problem_type or ""):
        raise InvalidValue("The model does not choose one of several classes.")
    if config.model_type in ("big_bird", "fnet", "xlnet"):
        raise InvalidValue(
            "The model answers otherwise where other rows stand in the batch; take one "
            "like DistilBERT."
        )
    pads = tokenizer.pad_token_id, config.pad_token_id
    if None in pads or not tokenizer.is_fast:
        raise InvalidValue(
            "The model has no padding token, or a tokenizer that saves no "
            "tokenizer.json; take one like DistilBERT."
        )
    if not 0.5 < len(tokenizer) / config.vocab_size <= 1:
        raise InvalidValue(
            f"The tokenizer has {len(tokenizer):,} tokens and the model "
            f"{config.vocab_size:,}: they do not belong together, or a file is "
            "missing. Take the folder of one model, with its tokenizer.json."
        )
    if positions < max_length:
        raise InvalidValue(
            f"The model takes {positions} tokens; max_length is {max_length}. Make it "
            "smaller."
        )


def check_trainable(model: PreTrainedModel) -> None:
    """Check that a model can be trained here, and that its folder will be the model.

    Parameters
    ----------
    model : PreTrainedModel
        The model.

    Raises
    ------
    InvalidValue
        If it is no sequence classifier; if its weights are all frozen, in half
        precision, or one weight under two names; or if they are not those of its class
        and configuration, as with LoRA: what was loaded again would be another model.
    """
    with torch.device("meta"):
        fresh = type(model)(model.config)
    weights = dict(model.named_parameters())  # without second names
    problems = {
        "is no sequence classifier": "SequenceClass" not in type(model).__name__,
        "has only frozen weights": not any(w.requires_grad for w in weights.values()),
        "is in half precision (choose Recipe(precision=...) instead)": {
            weight.dtype for weight in weights.values()
        }
        & {torch.float16, torch.bfloat16},
        "has other layers or weights than its configuration says, or one under two "
        "names": _layout(model) != _layout(fresh),
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        raise InvalidValue(
            f"The {type(model).__name__} {', and '.join(found)}. Pass a model from "
            "load_model(recipe, names)."
        )


def _layout(model):
    """Describe all layers and weights; how much is dropped out is not saved anyway."""
    shapes = [(name, weight.shape) for name, weight in model.named_parameters()]
    return re.sub("p=[0-9.]+", "", repr(model)), shapes


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass instead of storing them.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place.

    Raises
    ------
    ValueError
        If the model does not support it, from transformers.
    """
    # The newest transformers calls it activation checkpointing.
    new_name = "activation_checkpointing_enable"
    enable = getattr(model, new_name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def class_names(model: PreTrainedModel) -> list[str]:
    """Return a model's class names, in the order of its logits.

    Parameters
    ----------
    model : PreTrainedModel
        The classifier.

    Returns
    -------
    list of str

    Raises
    ------
    InvalidValue
        If a class has no name.
    """
    names = [model.config.id2label.get(i) for i in range(model.config.num_labels)]
    if None in names:
        nameless = names.index(None)
        raise InvalidValue(
            f"{model.name_or_path}: add a name for class {nameless} in config.json."
        )
    return names


def label_mapping(model: PreTrainedModel, split: Dataset) -> list[int]:
    """Map the data's class indices to the model's, by name.

    If the data has no names, by index.

    Parameters
    ----------
    model : PreTrainedModel
        The classifier.
    split : Dataset
        Its label feature knows the data's names.

    Returns
    -------
    list of int
        At each class of the data: the index of that class in the model's logits.

    Raises
    ------
    InvalidValue
        If the data has a class that the model does not know.
    """
    ours = class_names(model)
    theirs = getattr(split.features["label"], "names", None) or ours
    known = [*map(plain_label, ours)]
    wanted = [*map(plain_label, theirs)]
    if not {*wanted} <= {*known} or len({*known}) < len(known):
        raise InvalidValue(
            f"The model's classes are {', '.join(ours)}, the data's "
            f"{', '.join(theirs)}. They must agree."
        )
    return [known.index(name) for name in wanted]


@contextmanager
def _quiet(folder):
    """Silence transformers' report of a new head, and the progress bar of a folder."""
    verbosity = logging.get_verbosity()
    has_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(folder).is_dir():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def write_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Save model and tokenizer to a staging folder (not yet visible to readers).

    Parameters
    ----------
    model : PreTrainedModel
        The classifier.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    folder : Path
        Made if it does not exist.
    """
    with _quiet(folder.parent):
        # Under the names that the layers have here: BERT's file has others.
        model.save_pretrained(folder, save_original_format=False)
        tokenizer.save_pretrained(folder)


def damaged_classifier(folder: Path, facts: dict) -> list[str]:
    """List the files of a saved classifier that are not as its run saved them.

    Parameters
    ----------
    folder : Path
        With its manifest.
    facts : dict
        What run.json says; empty if there is none. If `folder` is the ``best`` of a
        finished run, its manifest must be the one that is named there.

    Returns
    -------
    list of str
        Their names.
    """
    damaged = storage.damaged_files(folder)
    # Unless finished, a run may have died between best/ and run.json.
    if folder.name == storage.BEST and facts.get("finished"):
        wanted = facts.get("files", {}).get(BEST_MANIFEST)
        damaged += storage.damaged_files(folder.parent, {BEST_MANIFEST: wanted})
    return damaged


@check_types
def load_classifier(
    folder: str | Path,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a trained classifier and its tokenizer.

    Parameters
    ----------
    folder : str or Path
        A run's output folder, its ``best``, or any folder that ``save_pretrained``
        wrote.

    Returns
    -------
    tuple
        The model, in fp32 on the CPU, and the tokenizer.

    Raises
    ------
    FileNotFoundError
        If the folder does not hold a classifier, or a damaged one.
    OSError
        If its files may not be read.
    Damaged, InvalidValue
        As for `run_facts`.
    """
    folder = Path(folder).expanduser()
    remedy = f'Run notebook 05, or: agnews train --output-dir "{folder.as_posix()}"'
    facts = run_facts(folder)
    best = folder / storage.BEST
    is_run = (folder / storage.RUN_FILE).is_file()
    if best.is_dir() and (is_run or not (folder / "config.json").exists()):
        folder = best
    for name in FILES["model"]:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder.as_posix()} holds no trained classifier (no {name}). {remedy}"
            )
    if facts and not facts.get("finished"):
        print(
            f"note: the run that wrote {folder.as_posix()} is not finished; this is "
            "its classifier so far."
        )
    has_manifest = (folder / storage.MANIFEST).is_file()
    changed = damaged_classifier(folder, facts) if has_manifest else []
    if changed := [name for name in changed if name != storage.CARD]:
        print(
            f"note: {', '.join(changed)} in {folder.as_posix()} changed since the run "
            "wrote it, or is damaged."
        )
    model, new_weights = _load(folder)
    if new_weights:
        raise FileNotFoundError(
            f"{folder.as_posix()} holds a model without a trained head "
            f"({new_weights[0]}). {remedy}"
        )
    return model, pretrained(AutoTokenizer, folder)


def source_files(name: str) -> list[Path]:
    """Return the files that ``from_pretrained(name)`` reads a model from.

    Parameters
    ----------
    name : str
        A folder, or an id whose files are in the Hub's cache.

    Returns
    -------
    list of Path
        Configuration and weights; empty if there are none.
    """
    if not name:
        return []
    if Path(name).is_dir():
        return sorted(
            path
            for path in Path(name).iterdir()
            if path.suffix in (".safetensors", ".bin") or path.name == "config.json"
        )
    cached = [
        try_to_load_from_cache(name, file)
        for file in ("config.json", "model.safetensors")
    ]
    return [Path(path) for path in cached if isinstance(path, str)]


def run_facts(folder: str | Path) -> dict:
    """Return what `train` noted about the run that trained a classifier.

    Parameters
    ----------
    folder : str or Path
        A run's output folder, of version 2 too, or its ``best``.

    Returns
    -------
    dict
        Empty for a model from elsewhere.

    Raises
    ------
    Damaged, InvalidValue
        If the record is damaged, or another version wrote it.
    """
    folder = Path(folder).expanduser()
    record = folder / storage.RUN_FILE
    if folder.name == storage.BEST and not record.is_file():
        record = folder.parent / storage.RUN_FILE
    version_2 = folder / "agnews_run.json"
    if record.is_file():
        return storage.read_record(record)
    return storage.read_json(version_2) if version_2.is_file() else {}
