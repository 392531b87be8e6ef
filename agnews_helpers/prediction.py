"""The one place that turns tokens into logits, and texts into labels. Notebook 06."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import reduce
from datasets import Dataset

from .batching import make_loader, sorted_batches, tokenize
from .hardware import processes
from .model import load_classifier, run_facts
from .plumbing.errors import InvalidValue, NonFiniteError
from .recipe import Recipe


def best_device() -> torch.device:
    """The device that Accelerate would train on: CUDA, Apple's MPS or the CPU."""
    return processes().device


def predict_logits(model, rows, recipe: Recipe) -> torch.Tensor:
    """Logits of tokenized rows in the rows' own order: fp32 tensor on the CPU, shape [rows, classes].

    The model is put into evaluation mode, so that dropout is off, and left in the mode it was in. Where
    several processes run, all must call this: each computes its share, and all get all logits.

    Raises
    ------
    NonFiniteError
        When an answer is not a number: the model's weights are damaged.
    """
    logits = _run(model, rows, recipe, lambda inputs: model(**inputs).logits, model.config.num_labels)
    if bad := int((~logits.isfinite()).any(-1).sum()):
        raise NonFiniteError(
            f"The model's answers are not finite for {bad:,} of {len(logits):,} rows: its weights are "
            "damaged. Train it again, in fp32."
        )
    return logits


def cls_vectors(model, rows, recipe: Recipe) -> torch.Tensor:
    """What the head reads of each row, its vector at [CLS]: fp32 tensor on the CPU, [rows, hidden size]."""
    size = model.config.hidden_size
    return _run(model, rows, recipe, lambda inputs: model.base_model(**inputs).last_hidden_state[:, 0], size)


@torch.inference_mode()
def _run(model, rows, recipe, ask, width):
    lengths = [recipe.pad_to or length for length in rows["length"][:]]
    state, was_training = processes(), model.training
    batches = sorted_batches(lengths)[state.process_index :: state.num_processes]
    loader = make_loader(rows, batches, recipe, pad_token_id=model.config.pad_token_id)
    answers = torch.zeros(len(rows), width)
    model.eval()
    try:
        for numbers, batch in zip(batches, loader):
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            answers[numbers] = ask(inputs).float().cpu()
    finally:
        model.train(was_training)
    # Each process did its share of the batches; the rest of its rows are zeros.
    return reduce(answers.to(state.device), "sum").cpu()


def classify(texts: Sequence[str], folder: str | Path, recipe: Recipe | None = None) -> pd.DataFrame:
    """Label and class probabilities of each text, by the classifier saved in `folder`.

    The texts are cut where the classifier's own run cut them; `recipe` says otherwise.

    Returns
    -------
    pandas.DataFrame
        One row a text: ``text``, ``label``, and the probability of each class under its name.

    Raises
    ------
    FileNotFoundError
        When the folder holds no classifier.
    NonFiniteError
        When its weights are damaged.
    ValueError
        When `texts` is one string instead of a list, is empty, or holds something without text.
    """
    if isinstance(texts, str):
        raise InvalidValue(f"classify() takes a list of texts; write classify([{texts[:30]!r}...], folder).")
    if not (texts := list(texts)):
        raise InvalidValue("classify() got no texts.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise InvalidValue(f"Text {number} is {text!r}; it must be a string with something in it.")
    recipe = recipe or Recipe.from_dict(run_facts(folder).get("recipe", {}))
    model, tokenizer = load_classifier(folder)
    rows = tokenize(Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), tokenizer, recipe)
    probabilities = predict_logits(model.to(best_device()), rows, recipe).softmax(-1)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    labels = [names[i] for i in probabilities.argmax(-1)]
    return pd.DataFrame({"text": texts, "label": labels} | dict(zip(names, probabilities.T.numpy())))
