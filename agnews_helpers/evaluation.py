"""Use a classifier and measure it: logits, answers, F1, mistakes."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from datasets import Dataset
from pandas import DataFrame
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .batching import (
    check_labels,
    check_texts,
    check_tokenizer,
    check_tokens,
    make_loader,
    sorted_batches,
    tokenize,
)
from .hardware import training_device
from .model import (
    check_model_and_tokenizer,
    class_names,
    label_mapping,
    load_classifier,
    load_tokenizer,
    run_facts,
)
from .plumbing.errors import InvalidValue, NonFiniteError, check_types
from .plumbing.storage import write_json
from .recipe import LABELS, Recipe


@check_types
@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel, split: Dataset, recipe: Recipe
) -> torch.Tensor:
    """Compute the logits of a tokenized split.

    The model runs in eval mode, so without dropout. Afterwards it and all of its parts
    are in the mode that the model itself was in.

    Parameters
    ----------
    model : PreTrainedModel
        The classifier, on the device to use.
    split : Dataset
        A split of the result of `tokenize`.
    recipe : Recipe
        Its `padding` decides to which length the rows are padded.

    Returns
    -------
    torch.Tensor
        [rows, classes], fp32, on the CPU; in the order of `split`.

    Raises
    ------
    InvalidValue
        If the split has no tokenized rows.
    NonFiniteError
        If a logit is NaN or infinite, because the weights are damaged.
    """
    check_tokens(split)
    lengths = [recipe.pad_to or length for length in split["length"][:]]
    batches = sorted_batches(lengths)
    loader = make_loader(split, batches, recipe, pad_token_id=model.config.pad_token_id)
    logits = torch.zeros(len(split), model.config.num_labels)
    was_training = model.training
    model.eval()
    try:
        progress = tqdm(batches, desc="predict", disable=len(batches) < 20)
        for indices, batch in zip(progress, loader):
            names = ("input_ids", "attention_mask")
            inputs = {name: batch[name].to(model.device) for name in names}
            logits[indices] = model(**inputs).logits.float().cpu()
    finally:
        model.train(was_training)
    if not logits.isfinite().all():
        raise NonFiniteError(
            "Some logits are not finite: the model's weights are damaged. Train it "
            "again, in fp32."
        )
    return logits


class Classifier:
    """A trained classifier that is loaded once and called often, as in a service.

    Several threads may call it; they take turns.

    Parameters
    ----------
    folder : str or Path
        A folder that `train` or ``save_pretrained`` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder holds no classifier.
    InvalidValue
        If model and tokenizer do not belong together.
    """

    @check_types
    def __init__(self, folder: str | Path):
        self.model, self.tokenizer = load_classifier(folder)
        longest = {"max_length": min(512, self.tokenizer.model_max_length)}
        self.recipe = Recipe.from_dict(run_facts(folder).get("recipe", longest))
        check_model_and_tokenizer(self.model, self.tokenizer, self.recipe.max_length)
        self.model.to(training_device())
        self.lock = Lock()  # a tokenizer is not thread-safe

    @check_types
    def __call__(self, texts: list[str]) -> DataFrame:
        """Label texts.

        Parameters
        ----------
        texts : list[str]
            The texts, such as [text] or list(table["text"]); each is truncated to the
            length that the classifier was trained with.

        Returns
        -------
        DataFrame
            One row per text: ``text``, ``label``, and ``probability_NAME`` for each
            class.

        Raises
        ------
        InvalidValue
            If there is no text, or one cannot be read.
        NonFiniteError
            If the weights of the classifier are damaged.
        """
        check_texts(texts)  # before Arrow, which cannot hold half a character
        rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
        with self.lock:
            split = tokenize(rows, self.tokenizer, self.recipe)
            logits = predict_logits(self.model, split, self.recipe)
        probabilities = logits.softmax(dim=1).numpy()
        names = np.array(class_names(self.model))
        labels = names[probabilities.argmax(axis=1)]
        answers = DataFrame({"text": texts, "label": labels})
        answers[[f"probability_{name}" for name in names]] = probabilities
        return answers


@check_types
def classify(texts: list[str], folder: str | Path) -> DataFrame:
    """Label texts with the classifier saved in `folder`; see `Classifier`.

    Parameters
    ----------
    texts : list[str]
        The texts.
    folder : str or Path
        A folder that `train` or ``save_pretrained`` wrote.

    Returns
    -------
    DataFrame
        One row per text: ``text``, ``label``, and ``probability_NAME`` for each class.

    Raises
    ------
    InvalidValue
        If there is no text, or one cannot be read, or if model and tokenizer do not
        belong together.
    FileNotFoundError
        If the folder holds no classifier.
    NonFiniteError
        If the weights of the classifier are damaged.
    """
    check_texts(texts)  # before the classifier is loaded
    return Classifier(folder)(texts)


@dataclass(frozen=True)
class Report:
    """The result of `evaluate` or `score`.

    Parameters
    ----------
    rows : int
        Number of rows.
    accuracy : float
        Share of correct answers.
    interval : tuple[float, float]
        Lower and upper end of the 95 % Wilson score interval of the accuracy, which
        stays within 0 to 1 and is valid for few rows, too.
    macro_f1 : float
        Unweighted mean of F1 over the classes that are true or predicted for any row.
    loss : float
        Mean cross-entropy in nats.
    per_class : DataFrame
        ``precision``, ``recall``, ``f1`` and ``rows`` of each class.
    confusion : DataFrame
        Counts; the true classes are the index, the predicted ones the columns.
    answers : DataFrame
        For each row ``true`` and ``predicted`` class, ``confidence`` (probability of
        the predicted class), ``p_true`` (that of the true class), ``loss``, ``text``.
    """

    rows: int
    accuracy: float
    interval: tuple
    macro_f1: float
    loss: float
    per_class: DataFrame
    confusion: DataFrame
    answers: DataFrame

    @property
    def worst(self) -> DataFrame:
        """The wrong answers, highest loss first."""
        wrong = self.answers["true"] != self.answers["predicted"]
        return self.answers[wrong].sort_values("loss", ascending=False, kind="stable")

    def __str__(self) -> str:
        """Return accuracy, interval, rows, macro-F1 and loss on one line."""
        return (
            f"accuracy {self.accuracy:.1%} (95 % interval {self.interval[0]:.1%} to "
            f"{self.interval[1]:.1%}, {self.rows:,} rows), macro-F1 "
            f"{self.macro_f1:.3f}, loss {self.loss:.3f}"
        )

    def describe(self) -> str:
        """Return the figures of all rows on one line, and of each class below.

        Returns
        -------
        str
        """
        return f"{self}\n{self.per_class.round(3).to_string()}"

    def to_dict(self) -> dict:
        """Return the figures without the texts, ready for JSON.

        Returns
        -------
        dict
            All fields except `answers`, as plain Python values.
        """
        figures = vars(self) | {
            "per_class": self.per_class.to_dict("index"),
            "confusion": self.confusion.to_numpy().tolist(),
        }
        del figures["answers"]
        return figures

    def save(self, path: str | Path) -> None:
        """Write the result of `to_dict` as JSON.

        Parameters
        ----------
        path : str or Path
            The file; an existing one is overwritten.

        Raises
        ------
        SaveError
            If the file cannot be written.
        """
        write_json(Path(path), self.to_dict())


@check_types
def evaluate(model: PreTrainedModel, split: Dataset, recipe: Recipe) -> Report:
    """Score a classifier on a tokenized split.

    The classes of the data are matched with those of the model by name. The report uses
    the model's names, from its ``config.id2label``.

    Parameters
    ----------
    model : PreTrainedModel
        The classifier, on the device to use.
    split : Dataset
        A split of the result of `tokenize`, with ``label`` and ``text``.
    recipe : Recipe
        Its `padding` decides to which length the rows are padded.

    Returns
    -------
    Report
        The figures, and the answer for every row.

    Raises
    ------
    InvalidValue
        If the split has no tokenized rows, a class that the model does not know or a
        label out of range; for a model from a folder, if the rows are of another
        tokenizer.
    NonFiniteError
        If a logit is NaN or infinite.
    """
    check_tokens(split)
    mapping = np.array(label_mapping(model, split))
    labels = split["label"][:]
    check_labels(labels, len(mapping))
    name = model.name_or_path  # empty if the model was made by hand
    if name and Path(name).is_dir():
        check_tokenizer(split, load_tokenizer(Recipe(model=name)), recipe)
    logits = predict_logits(model, split, recipe).numpy()
    return score(logits, mapping[labels], split["text"][:], class_names(model))


@check_types
def score(
    logits: np.ndarray,
    labels: np.ndarray | list,
    texts: list[str],
    names: tuple | list = LABELS,
) -> Report:
    """Compare logits with the true classes.

    Parameters
    ----------
    logits : np.ndarray
        [rows, classes]; log-probabilities give the same result.
    labels : np.ndarray or list of int
        [rows], the index of the true class.
    texts : list[str]
        The text of each row, for the list of answers.
    names : tuple or list of str
        Names of the classes in the order of the logits.

    Returns
    -------
    Report
        The figures, and the answer for every row.

    Raises
    ------
    InvalidValue
        If a logit is NaN or +inf, a label is out of range, there is no row, or the
        arguments do not have equally many rows and classes.
    """
    from scipy import special, stats  # SciPy comes with scikit-learn
    from sklearn import metrics

    names = np.array(names)
    check_labels(labels, len(names))
    if np.shape(logits) != (len(labels), len(names)) or len(texts) != len(labels):
        raise InvalidValue(
            f"The logits have the shape {np.shape(logits)}, for {len(labels)} labels, "
            f"{len(texts)} texts and {len(names)} names of classes."
        )
    log_p = special.log_softmax(logits, axis=1)
    if np.isnan(log_p).any():
        raise InvalidValue("Some logits are NaN or infinite: the weights are damaged.")
    losses = -log_p[np.arange(len(labels)), labels]
    true, predicted = names[labels], names[logits.argmax(axis=1)]
    figures = metrics.precision_recall_fscore_support(
        true, predicted, labels=names, zero_division=0
    )
    counts = metrics.confusion_matrix(true, predicted, labels=names)
    right = predicted == true
    test = stats.binomtest(right.sum(), len(right))
    return Report(
        rows=len(labels),
        accuracy=float(right.mean()),
        interval=test.proportion_ci(method="wilson"),
        macro_f1=metrics.f1_score(true, predicted, average="macro", zero_division=0),
        loss=float(losses.mean()),
        per_class=DataFrame(
            dict(zip(["precision", "recall", "f1", "rows"], figures)), names
        ),
        confusion=DataFrame(counts, names, names).rename_axis(
            index="true", columns="predicted"
        ),
        answers=DataFrame(
            {
                "true": true,
                "predicted": predicted,
                "confidence": np.exp(log_p.max(axis=1)),
                "p_true": np.exp(-losses),
                "loss": losses,
                "text": texts,
            }
        ),
    )
