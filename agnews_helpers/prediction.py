"""The one place that turns tokens into logits, and texts into labels. Notebook 06."""
from collections.abc import Sequence
from pathlib import Path

import torch

from .batching import make_loader, tokenize
from .checkpoints import load_classifier
from .cpu_kernels import NAME as CPU_ATTENTION
from .hardware import processes
from .recipe import Recipe


def best_device() -> torch.device:
    """The device that Accelerate would train on: CUDA, Apple's MPS or the CPU."""
    return processes().device


def predict_logits(model, rows, recipe: Recipe) -> torch.Tensor:
    """Logits of tokenized rows in the rows' own order: fp32 tensor on the CPU, shape [rows, classes].

    The model is put into evaluation mode, so that dropout is off, and left in the mode it was in. Without
    dropout PyTorch has a fused attention kernel for every device, so that one is used. Where several
    processes run, all must call this: each computes its share, and all get all logits.
    """
    return _run(model, rows, recipe, lambda inputs: model(**inputs).logits, model.config.num_labels)


def cls_vectors(model, rows, recipe: Recipe) -> torch.Tensor:
    """What the head reads of each row, the encoder's vector at [CLS]: fp32, shape [rows, hidden size], else as `predict_logits`."""
    return _run(model, rows, recipe, lambda inputs: model.base_model(**inputs).last_hidden_state[:, 0], model.config.hidden_size)


@torch.inference_mode()
def _run(model, rows, recipe, ask, width):
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    if attention == CPU_ATTENTION:
        model.config._attn_implementation = "sdpa"
    state = processes()
    loader = make_loader(rows, recipe, pad_token_id=model.config.pad_token_id, process=state.process_index, processes=state.num_processes)
    answers = torch.zeros(len(rows), width)
    for numbers, batch in zip(loader.batch_sampler, loader):
        answers[numbers] = ask({name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}).float().cpu()
    if state.num_processes > 1:  # each did its share of the batches; the rest of its rows are zeros
        from accelerate.utils import reduce

        answers = reduce(answers.to(state.device), "sum").cpu()
    model.train(was_training)
    model.config._attn_implementation = attention
    return answers


def classify(texts: Sequence[str], folder: str | Path, recipe: Recipe | None = None):
    """Label and class probabilities of each text, by the classifier saved in `folder`.

    Returns
    -------
    pandas.DataFrame
        One row a text: ``text``, ``label``, and the probability of each class under its name.

    Raises
    ------
    FileNotFoundError
        When the folder holds no classifier.
    ValueError
        When `texts` is one string instead of a list, is empty, or holds something without text.
    """
    import pandas as pd
    from datasets import Dataset

    if isinstance(texts, str):
        raise ValueError(f"classify() takes a list of texts; write classify([{texts[:30]!r}...], folder).")
    texts = list(texts)
    if not texts:
        raise ValueError("classify() got no texts.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"Text {number} is {text!r}; every text must be a string with something in it.")
    recipe = recipe or Recipe()
    model, tokenizer = load_classifier(folder)
    rows = tokenize(Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), tokenizer, recipe)
    probabilities = predict_logits(model.to(best_device()), rows, recipe).softmax(-1)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    table = pd.DataFrame(probabilities.numpy(), columns=names)
    table.insert(0, "label", [names[i] for i in probabilities.argmax(-1)])
    table.insert(0, "text", texts)
    return table
