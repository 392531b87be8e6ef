"""The one place that turns tokens into logits, and texts into labels. Notebook 06."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import reduce
from datasets import Dataset
from tqdm.auto import tqdm

from .batching import PROGRESS_BAR_FROM_ROWS, make_loader, sorted_batches, tokenize
from .model import check_model_and_tokenizer, class_names, load_classifier, run_facts
from .plumbing.errors import InvalidValue, NonFiniteError
from .plumbing.processes import process_state
from .plumbing.tables import problem_of
from .recipe import Recipe


@torch.inference_mode()
def predict_logits(model, rows, recipe: Recipe) -> torch.Tensor:
    """Logits of tokenized rows in the rows' own order: fp32 tensor on the CPU, shape [rows, classes].

    The model is put into evaluation mode, so that dropout is off, and left in the mode it was in. Where
    several processes run, all must call this: each computes its share, and all get all logits.
    NonFiniteError where an answer is not a number: the model's weights are damaged.
    """
    lengths = [recipe.pad_to or length for length in rows["length"][:]]
    state, was_training = process_state(), model.training
    batches = sorted_batches(lengths)[state.process_index :: state.num_processes]
    loader = make_loader(rows, batches, recipe, pad_token_id=model.config.pad_token_id)
    logits = torch.zeros(len(rows), model.config.num_labels)
    model.eval()
    quiet = len(rows) <= PROGRESS_BAR_FROM_ROWS or not state.is_main_process
    try:
        with tqdm(
            total=sum(map(len, batches)), unit="row", desc="predict", disable=quiet
        ) as bar:
            for numbers, batch in zip(batches, loader):
                inputs = {
                    name: batch[name].to(model.device)
                    for name in ("input_ids", "attention_mask")
                }
                logits[numbers] = model(**inputs).logits.float().cpu()
                bar.update(len(numbers))
    finally:
        model.train(was_training)
    # Each process did its share of the batches; the rest of its rows are zeros.
    logits = reduce(logits.to(state.device), "sum").cpu()
    if bad := int((~logits.isfinite()).any(-1).sum()):
        found = (
            f"The model's answers are not finite for {bad:,} of {len(logits):,} rows"
        )
        raise NonFiniteError(
            f"{found}: its weights are damaged. Train it again, in fp32."
        )
    return logits


def classify(
    texts: Sequence[str], folder: str | Path, recipe: Recipe | None = None
) -> pd.DataFrame:
    """Label and class probabilities of each text, by the classifier saved in `folder`.

    One line per text: ``text``, ``label``, and the probability of each class under its name. The texts are
    cut where the classifier's own run cut them; `recipe` says otherwise.

    FileNotFoundError where the folder holds no classifier, NonFiniteError where its weights are damaged.
    ValueError where `texts` is one string instead of a list, is empty, or holds something without text; and
    where model and tokenizer do not belong together.
    """
    if isinstance(texts, str):
        raise InvalidValue(
            f"classify() takes a list of texts; write classify([{texts[:30]!r}...], folder)."
        )
    if not (texts := list(texts)):
        raise InvalidValue("classify() got no texts.")
    return next(classify_lists([texts], folder, recipe))


def classify_lists(
    lists: Iterable[list[str]], folder: str | Path, recipe=None
) -> Iterator[pd.DataFrame]:
    """What `classify` returns for one list of texts after the other; the classifier is loaded once."""
    model, tokenizer = load_classifier(folder)
    own = run_facts(folder).get(
        "recipe", {"max_length": min(512, tokenizer.model_max_length)}
    )
    recipe = recipe or Recipe.from_dict(own)
    check_model_and_tokenizer(model, tokenizer, recipe.max_length)
    names, done = class_names(model.to(process_state().device)), 0
    for texts in lists:
        for number, text in enumerate(texts, done + 1):
            if problem := problem_of(text):
                raise InvalidValue(
                    f"Text {number} is one {problem}: {str(text)[:40]!r}."
                )
        rows = tokenize(
            Dataset.from_dict({"text": texts, "label": [0] * len(texts)}),
            tokenizer,
            recipe,
        )
        chances = predict_logits(model, rows, recipe).softmax(-1)
        answers = pd.DataFrame(
            {"text": texts, "label": [names[i] for i in chances.argmax(-1)]}
        )
        done += len(texts)
        yield pd.concat([answers, pd.DataFrame(chances.numpy(), columns=names)], axis=1)
