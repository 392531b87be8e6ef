"""The classifier and its tokenizer: from the Hub or a folder, into a folder, and back. Notebooks 01, 04."""

from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from .plumbing import storage
from .plumbing.errors import Damaged, InvalidValue
from .plumbing.hub import pretrained
from .plumbing.mini import mini_folder
from .recipe import LABELS, Recipe

FILES = ("config.json", "model.safetensors")  # what makes a folder a model's


def pretrained_name(recipe: Recipe) -> str:
    """What ``from_pretrained`` takes: a Hub id or a folder. May raise MiniUnavailable."""
    if recipe.model == "mini":
        return str(mini_folder())
    folder = Path(recipe.model).expanduser()
    return str(folder) if folder.is_dir() else recipe.model


def load_tokenizer(recipe: Recipe):
    """The model's own tokenizer: ``AutoTokenizer.from_pretrained(name)``. Errors as of `load_model`."""
    return pretrained(AutoTokenizer, pretrained_name(recipe))


def load_model(recipe: Recipe, names=LABELS):
    """``AutoModelForSequenceClassification.from_pretrained(name, num_labels=4)``, in fp32, on the CPU.

    `names` are what the classes are called: AG News', or those of ``load_data(recipe)``'s label feature. The
    head, which a pretrained model lacks, is drawn from `recipe.seed`: the same recipe starts from the same
    weights. The global random generators are left as they were. FileNotFoundError, HubUnreachable or
    MiniUnavailable where folder, Hub or the offline package does not give what is needed; it says why.
    """
    known = dict(
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        anew = dict(
            num_labels=len(names), ignore_mismatched_sizes=True
        )  # where it is one for other classes
        model, new = _load(pretrained_name(recipe), **anew, **known)
    if lacking := [
        weight for weight in new if weight.startswith(model.base_model_prefix)
    ]:
        print(
            f"note: {recipe.model} lacks {', '.join(lacking)}; drawn anew, as the head is."
        )
    return model


def _load(name: str | Path, **options):
    """A classifier in fp32, whatever was stored, and the weights that it lacked, or had in other shapes."""
    auto = AutoModelForSequenceClassification
    with _quietly(name):
        model, info = pretrained(
            auto, name, dtype=torch.float32, output_loading_info=True, **options
        )
    # transformers maps the file, and Windows replaces no mapped file: the next notebook could not save there.
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model, sorted(
        {*info["missing_keys"], *(weight for weight, *_ in info["mismatched_keys"])}
    )


def check_model_and_tokenizer(model, tokenizer, max_length: int) -> None:
    """Raise InvalidValue where a model and a tokenizer do not belong together, or cannot take the recipe."""
    config = model.config
    positions = min(
        getattr(config, "max_position_embeddings", max_length),
        tokenizer.model_max_length,
    )
    if len(tokenizer) > config.vocab_size:
        sizes = f"The tokenizer has {len(tokenizer):,} tokens and the model {config.vocab_size:,}"
        raise InvalidValue(
            f"{sizes}: they do not belong together. Take the folder of one model."
        )
    if tokenizer.pad_token_id is None or config.pad_token_id is None:
        raise InvalidValue(
            "The model has no padding token, which batches need; take one like DistilBERT."
        )
    if positions < max_length:
        raise InvalidValue(
            f"The model takes {positions} tokens; max_length is {max_length}. Make it less."
        )


@contextmanager
def gradient_checkpointing(model, wanted: bool = True, **options):
    """While this is entered, each layer's activations are not kept, but computed again in the backward pass.

    InvalidValue where the model cannot do that. `options` are those of ``torch.utils.checkpoint``.
    """
    if not wanted:
        yield
        return
    if not model.supports_gradient_checkpointing:
        raise InvalidValue(f"{type(model).__name__} cannot compute its layers again.")
    # The newest transformers calls gradient checkpointing activation checkpointing.
    kind = (
        "activation"
        if hasattr(model, "activation_checkpointing_enable")
        else "gradient"
    )
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False, **options})
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


def class_names(model) -> list[str]:
    """What a model calls its classes, in the order of its logits. InvalidValue where one has no name."""
    names = [model.config.id2label.get(i) for i in range(model.config.num_labels)]
    if None in names:
        raise InvalidValue(
            f"{model.name_or_path}: add a name for class {names.index(None)} in config.json."
        )
    return names


def label_mapping(model, rows) -> list[int]:
    """Which class of the model each class of the data is, by their names.

    Where one of them has no names (LABEL_0, LABEL_1, ... of transformers), by their numbers. InvalidValue
    where the data has a class that the model does not know.
    """
    known = [name.casefold() for name in class_names(model)]
    names = getattr(rows.features["label"], "names", None) or class_names(model)
    if known[0] == "label_0" and len(names) == len(known):
        return [*range(len(known))]
    if {name.casefold() for name in names} - {*known}:
        theirs, ours = ", ".join(class_names(model)), ", ".join(names)
        raise InvalidValue(
            f"The model knows the classes {theirs}, and the data has {ours}. They must agree."
        )
    return [known.index(name.casefold()) for name in names]


@contextmanager
def _quietly(folder: str | Path):
    """Without transformers' report of a new head and its progress bars; those of a download stay."""
    with ExitStack() as afterwards:
        afterwards.callback(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        if logging.is_progress_bar_enabled() and Path(folder).is_dir():
            afterwards.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield


def write_classifier(model, tokenizer, folder: Path) -> None:
    """Write model and tokenizer into a folder that nobody reads yet."""
    with _quietly(folder.parent):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_classifier(folder: str | Path):
    """Model and tokenizer from a folder that `train` or ``save_pretrained`` wrote.

    FileNotFoundError where it holds no classifier, or a damaged one; OSError where its files may not be read.
    """
    how = f"Run notebook 04, or: agnews train --output-dir {folder}"
    folder = Path(folder).expanduser()
    for path in (folder / name for name in (*FILES, "tokenizer.json")):
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no trained classifier (no {path.name}). {how}"
            )
        path.open("rb").close()
    facts = run_facts(folder)
    if facts.get("writing"):
        raise FileNotFoundError(
            f"{folder} holds a part of a classifier, whose run was ended. {how}"
        )
    if "steps" in facts and not facts.get("finished"):
        so_far = (
            f"epoch {facts['epoch']}"
            if facts.get("epoch")
            else f"{facts['steps']:,} steps"
        )
        print(
            f"note: the run in {folder} is not finished; this is its classifier after {so_far}."
        )
    if changed := storage.damaged_files(folder, facts.get("files", {})):
        print(
            f"note: {', '.join(changed)} in {folder} is not as its run wrote it: damaged, or changed since."
        )
    model, new = _load(folder)
    if new:
        raise FileNotFoundError(
            f"{folder} holds a model without a trained head ({new[0]}). {how}"
        )
    return model, pretrained(AutoTokenizer, folder)


def source_files(name: str) -> list[Path]:
    """Configuration and weights that ``from_pretrained(name)`` reads: of a folder, or in the Hub's cache."""
    if name and Path(name).is_dir():
        kinds = ("config.json", "*.safetensors", "*.bin")
        return sorted(path for kind in kinds for path in Path(name).glob(kind))
    found = [try_to_load_from_cache(name, file) for file in FILES] if name else []
    return [Path(path) for path in found if isinstance(path, str)]


def run_facts(folder: str | Path) -> dict:
    """What `train` noted about the run, or an empty dict for a model from elsewhere.

    Damaged where the file is there, and is empty, cut, or of something else.
    """
    path = Path(folder) / storage.RUN_FILE
    try:
        return storage.read_json(path) if path.is_file() else {}
    except Damaged as error:
        raise Damaged(
            f"{path} is damaged ({error}). It tells of a run: delete or rename it."
        ) from error
